# SPDX-License-Identifier: Apache-2.0
"""`SegmentationNode`: a lifecycle node that turns colour and depth images into segmentation masks."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo

from m3l_model.errors import M3LError
from m3l_model.sync import Frame, RgbdSynchronizer, SyncStatus
from m3l_ros.diagnostics import Diagnostics, ModelStatus, Snapshot
from m3l_ros.inputs import Inputs
from m3l_ros.judgement import ERROR_KIND, OUTAGE_KIND, Judgement
from m3l_ros.models import check_model, device_memory, load_model, release_memory
from m3l_ros.outage import Change, OutageWatch
from m3l_ros.outputs import Outputs
from m3l_ros.parameters import (
    NodeParameters,
    ParameterError,
    check_change,
    declare_parameters,
    read_parameters,
    with_parameters,
)
from m3l_ros.pipeline import Pipeline
from m3l_ros.providers import CONVERSION, MESSAGE_FILTERS
from m3l_ros.qos import NO_PUBLISHER_EVENTS

_BUSY_AFTER = 0.5
_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE


class SegmentationNode(LifecycleNodeMixin, Node):
    """Publishes one segmentation mask for every colour image, with the depth image of the same moment or without.

    configure loads the model, warms it up and offers the outputs; activate subscribes; deactivate unsubscribes;
    cleanup frees the model. A transition that fails says why in one line, releases what it took and leaves the node in
    the state it was in. Another checkpoint, set while there is a model, is loaded in a thread of its own and swapped in
    between two frames, or refused and the parameter set back.

    Images, diagnostics, transitions and parameters have callback groups of their own, so that none keeps another from
    being served; images are segmented in a thread of the pipeline.

    Args:
        **kwargs: of ``rclpy.node.Node``, such as ``namespace``, ``context`` and ``parameter_overrides``.

    Raises:
        ParameterError: a parameter given at the start has a value that it cannot have.
    """

    def __init__(self, **kwargs: Any) -> None:
        Node.__init__(self, "segmentation_node", **kwargs)  # LifecycleNode gives the mixin no callback group
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        try:
            declare_parameters(self)
        except M3LError:
            self.destroy_node()
            raise
        self._answer_impossible_transitions()
        self._transition = threading.Lock()  # held by whoever changes what is below
        self._state = "unconfigured"
        self._error: str | None = None
        self._settings = read_parameters(self)
        self._swap: threading.Thread | None = None
        self._swapping = False
        self._swap_error: str | None = None
        self._pipeline: Pipeline | None = None
        self._inputs: Inputs | None = None
        self._core: RgbdSynchronizer | None = None
        self._outage = OutageWatch(self._ros_seconds)
        self._problems: frozenset[str] = frozenset()
        self.add_on_set_parameters_callback(self._on_set_parameters)

        self._diagnostics = Diagnostics(self.get_fully_qualified_name().lstrip("/"))
        self._diagnostics_publisher = self.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=NO_PUBLISHER_EVENTS
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(
            self._settings.diagnostics_period,
            self._publish_diagnostics,
            MutuallyExclusiveCallbackGroup(),
            steady,
        )
        self.get_logger().info(f"image conversion: {CONVERSION}; message filters: {MESSAGE_FILTERS}")
        if self._settings.autostart:
            # Once the executor spins: transitions in the constructor would keep it from serving anybody meanwhile.
            self._autostart_timer = self.create_timer(
                0.0, self._autostart, MutuallyExclusiveCallbackGroup(), steady
            )

    # Transitions. rclpy swallows what they raise, so they do not.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, warm it up and offer the outputs."""
        with self._transition:
            self._state = "configuring"
            done = self._attempt("configure", self._configure)
            if not done:
                self._release()
            self._state = "inactive" if done else "unconfigured"
            return _SUCCESS if done else _FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        with self._transition:
            done = self._attempt("activate", self._activate)
            if not done:
                self._deactivate()
            self._state = "active" if done else "inactive"
            return _SUCCESS if done else _FAILURE

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, finish the frame in hand and discard those that wait."""
        with self._transition:
            self._deactivate()
            self._state = "inactive"
            return _SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Withdraw the outputs and free the model."""
        return self._go_to("unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs and free everything, for good."""
        return self._go_to("finalized")

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, so that the node can be configured again."""
        return self._go_to("unconfigured")

    def _go_to(self, state: str) -> TransitionCallbackReturn:
        with self._transition:
            self._release()
            self._state = state
            return _SUCCESS

    def shut_down(self) -> None:
        """Stop working and free everything, whatever the state; for the end of the process, when nothing spins."""
        with self._transition:
            self._release()

    def _answer_impossible_transitions(self) -> None:
        """Answer a request for a transition that the state does not have; rclpy raises, and lets the caller wait."""
        for service in self.services:
            if service.srv_type is ChangeState:
                service.callback = partial(self._change_state, service.callback)

    def _change_state(self, change: Callable[[Any, Any], Any], request: Any, response: Any) -> Any:
        try:
            return change(request, response)
        except Exception as error:  # rclpy's RCLError is not public
            self.get_logger().error(f"transition refused in state {self._state}: {error}")
            response.success = False
            return response

    def _attempt(self, transition: str, action: Callable[[], None]) -> bool:
        self._swap_error = None
        try:
            action()
        except Exception as error:
            self._error = f"cannot {transition}: {_reason(error)}"
            self.get_logger().error(self._error)
            return False
        self._error = None
        return True

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def _configure(self) -> None:
        parameters = read_parameters(self)
        begin = time.monotonic()
        predictor = load_model(parameters)
        self._core = RgbdSynchronizer(
            slop=parameters.slop,
            max_wait=parameters.max_wait,
            depth_timeout=parameters.depth_timeout,
            queue_size=parameters.queue_size,
            anchor="either" if parameters.anchor == "either" else "rgb",
        )
        self._outage = OutageWatch(self._ros_seconds)
        self._settings = parameters
        outputs = Outputs(self, predictor.labels, parameters)
        self._pipeline = Pipeline(predictor, outputs, parameters, self.get_logger())
        self._say_loaded(begin)

    def _activate(self) -> None:
        if self._core is None or self._pipeline is None:
            raise M3LError("the node is not configured")
        self._pipeline.start()
        self._inputs = Inputs(
            self, self._core, self._settings, self._on_frame, self._pipeline.wait_until_idle
        )
        status = self._inputs.status()
        self.get_logger().info(f"active: colour from {status.rgb.topic}, depth from {status.depth.topic}")

    def _deactivate(self) -> None:
        inputs, self._inputs = self._inputs, None
        if self._pipeline is None:
            return
        if inputs is not None:
            self._pipeline.discard(inputs.close())
        self._pipeline.stop()

    def _release(self) -> None:
        self._deactivate()
        pipeline, self._pipeline, self._core = self._pipeline, None, None
        if pipeline is not None:
            pipeline.outputs.close()
            del pipeline
            release_memory()

    # Parameters

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Take over values that may change now, and refuse others; what is accepted here is set, nobody is asked after.

        Humble has no callback for parameters that are set.
        """
        values = {parameter.name: parameter.value for parameter in parameters}
        if threading.current_thread() is self._swap:  # gives the old checkpoint back
            return SetParametersResult(successful=True)
        if not self._transition.acquire(timeout=_BUSY_AFTER):
            return _refusal("the node is changing its state; try again when it has")
        try:
            check_change(values, self._state)
            if "checkpoint" in values and self._pipeline is not None:
                self._begin_swap(values["checkpoint"])
                del values["checkpoint"]
            self._use(with_parameters(self._settings, values))
        except Exception as error:  # whatever it is, who set the parameter is waiting for an answer
            return _refusal(_reason(error))
        finally:
            self._transition.release()
        return SetParametersResult(successful=True)

    def _use(self, settings: NodeParameters) -> None:
        before, self._settings = self._settings, settings
        if self._pipeline is not None:
            self._pipeline.outputs.use_parameters(settings)
        tolerances = (settings.slop, settings.max_wait, settings.depth_timeout)
        if self._core is None or tolerances == (before.slop, before.max_wait, before.depth_timeout):
            return
        if self._inputs is not None:
            self._inputs.set_tolerances(*tolerances)
        else:
            self._core.set_tolerances(*tolerances)

    def _begin_swap(self, checkpoint: str) -> None:
        if self._swapping:
            raise ParameterError("another checkpoint is being loaded; try again when it is in use or refused")
        if not checkpoint:
            raise ParameterError(
                "parameter checkpoint: a configured node needs one; clean it up to go without"
            )
        check_model(checkpoint, self._settings.num_classes)
        settings = with_parameters(self._settings, {"checkpoint": checkpoint})
        self._swap = threading.Thread(
            target=self._load_and_swap, args=(settings, self._pipeline), name="swap", daemon=True
        )
        self._swapping = True
        self._swap.start()

    def _load_and_swap(self, settings: NodeParameters, pipeline: Pipeline) -> None:
        """Load a model while the old one works, and go on with it; if that fails, say so and restore the parameter."""
        begin = time.monotonic()
        try:
            predictor = load_model(settings)
        except Exception as error:
            self._swap_error = f"{settings.checkpoint} was refused: {_reason(error)}"
            self.get_logger().error(
                f"{self._swap_error}; the checkpoint is {self._settings.checkpoint}, as before"
            )
            self._wait_until_set(settings.checkpoint)
            if self.get_parameter("checkpoint").value == settings.checkpoint:
                self.set_parameters([Parameter("checkpoint", value=self._settings.checkpoint)])
            self._swapping = False
            return
        with self._transition:
            self._swapping = False
            if self._pipeline is not pipeline:  # cleaned up meanwhile; it will be configured with the new one
                return
            pipeline.swap(predictor)
            self._settings = with_parameters(self._settings, {"checkpoint": settings.checkpoint})
            self._swap_error = None
            self._say_loaded(begin)
        release_memory()

    def _wait_until_set(self, checkpoint: str) -> None:
        """Let a value that was accepted be stored, which rclpy does later: it would replace what is set before."""
        deadline = time.monotonic() + _BUSY_AFTER
        while self.get_parameter("checkpoint").value != checkpoint and time.monotonic() < deadline:
            time.sleep(0.001)

    def _say_loaded(self, begin: float) -> None:
        assert self._pipeline is not None
        predictor = self._pipeline.predictor
        self.get_logger().info(
            f"loaded {self._settings.checkpoint}: {len(predictor.labels.classes)} classes, on {predictor.device}, "
            f"{_name(predictor.precision)}, in {time.monotonic() - begin:.1f} s"
        )

    # Work

    def _on_frame(self, frame: Frame, camera_info: CameraInfo | None, waited: float) -> None:
        if self._pipeline is not None:
            self._pipeline.outputs.publish_decision(frame)
            self._pipeline.submit(frame, camera_info, waited)
        if self._inputs is not None:
            depth_stamp = None if frame.rgb is None else frame.depth_stamp_ns
            self._log_outage(self._outage.note(self._inputs.outage, depth_stamp))

    def _ros_seconds(self) -> float:
        return float(self.get_clock().now().nanoseconds) / 1e9

    def _log_outage(self, change: Change | None) -> None:
        if change is Change.BACK:
            self.get_logger().info(change.value)
        elif change is not None:
            self.get_logger().warning(change.value)

    def _publish_diagnostics(self) -> None:
        snapshot = self._snapshot()
        sync = snapshot.sync
        if snapshot.inputs and sync and (sync.rgb_accepted or sync.depth_accepted):
            self._log_outage(self._outage.note(sync.outage))
        elif snapshot.inputs and sync:
            self._outage.follow(sync.outage)
        message, problems = self._diagnostics.message(self.get_clock().now().to_msg(), snapshot)
        self._diagnostics_publisher.publish(message)
        self._note_problems(problems)

    def _note_problems(self, problems: Sequence[Judgement]) -> None:
        """Log each problem once, when it begins; errors and outages have been logged already."""
        for problem in problems:
            if problem.kind not in (*self._problems, ERROR_KIND, OUTAGE_KIND):
                self.get_logger().warning(problem.text)
        self._problems = frozenset(problem.kind for problem in problems)

    def _snapshot(self) -> Snapshot:
        pipeline, inputs, core = self._pipeline, self._inputs, self._core
        # The pipeline's books before the synchronizer's: what is counted there must have been received here.
        tally = pipeline.tally() if pipeline else None
        sync: SyncStatus | None = None
        if inputs is not None:
            sync = inputs.sync_status()
        elif core is not None:
            sync = core.status()
        return Snapshot(
            time=time.monotonic(),
            state=self._state,
            error=self._error or self._swap_error,
            model=self._model_status(pipeline) if pipeline else None,
            inputs=inputs.status() if inputs else None,
            sync=sync,
            tally=tally,
            timings=pipeline.timings() if pipeline else [],
            parameters=self._settings,
            outage_length=self._outage.length,
            memory=_resident_bytes(),
        )

    def _model_status(self, pipeline: Pipeline) -> ModelStatus:
        return ModelStatus(
            checkpoint=self._settings.checkpoint,
            classes=len(pipeline.predictor.labels.classes),
            device=str(pipeline.predictor.device),
            precision=_name(pipeline.predictor.precision),
            subscribed=pipeline.outputs.wanted(),
            device_memory=device_memory(pipeline.predictor.device),
        )


def _name(precision: object) -> str:
    return str(precision).removeprefix("torch.")


def _reason(error: Exception) -> str:
    reason = str(error) if isinstance(error, M3LError) else f"{type(error).__name__}: {error}"
    return " ".join(reason.split())


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _refusal(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)

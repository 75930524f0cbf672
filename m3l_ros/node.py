# SPDX-License-Identifier: Apache-2.0
"""`SegmentationNode`: a lifecycle node that turns colour and depth images into segmentation masks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo

from m3l_model.errors import M3LError
from m3l_model.sync import Frame, RgbdSynchronizer, SyncStatus
from m3l_ros.diagnostics import Diagnostics, ModelStatus, Snapshot
from m3l_ros.inputs import Inputs
from m3l_ros.outputs import Outputs
from m3l_ros.parameters import NodeParameters, declare_parameters, read_parameters
from m3l_ros.pipeline import Pipeline
from m3l_ros.providers import CONVERSION, MESSAGE_FILTERS

if TYPE_CHECKING:
    from m3l_model.predictor import Predictor

_WARM_UP_SHAPE = (480, 640)
_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE


class SegmentationNode(LifecycleNode):
    """Publishes one segmentation mask for every colour image, with the depth image of the same moment or without.

    configure loads the model, warms it up and offers the outputs; activate subscribes; deactivate unsubscribes;
    cleanup frees the model. A transition that fails says why in one line, releases what it took and leaves the node in
    the state it was in. Images are received in one callback group and segmented in a thread of the pipeline;
    diagnostics go out in every state.

    Args:
        **kwargs: of ``rclpy.node.Node``, such as ``namespace``, ``context`` and ``parameter_overrides``.

    Raises:
        ParameterError: a parameter given at the start has a value that it cannot have.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("segmentation_node", **kwargs)
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
        self._pipeline: Pipeline | None = None
        self._inputs: Inputs | None = None
        self._core: RgbdSynchronizer | None = None
        self._outage: bool | None = None
        self._outage_lock = threading.Lock()
        self._image_group = MutuallyExclusiveCallbackGroup()

        self._diagnostics = Diagnostics(self.get_fully_qualified_name().lstrip("/"))
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
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
            self._autostart_timer = self.create_timer(0.0, self._autostart, None, steady)

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
        try:
            action()
        except Exception as error:
            reason = str(error) if isinstance(error, M3LError) else f"{type(error).__name__}: {error}"
            self._error = f"cannot {transition}: {' '.join(reason.split())}"
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
        if not parameters.checkpoint:
            raise M3LError(
                "parameter checkpoint is empty; give a model file, as in --ros-args -p checkpoint:=model.safetensors"
            )
        begin = time.monotonic()
        predictor = _load_predictor(parameters)
        self._core = RgbdSynchronizer(
            slop=parameters.slop,
            max_wait=parameters.max_wait,
            depth_timeout=parameters.depth_timeout,
            queue_size=parameters.queue_size,
            anchor="either" if parameters.anchor == "either" else "rgb",
        )
        self._outage = None
        self._settings = parameters
        self._pipeline = Pipeline(
            predictor,
            Outputs(self, predictor.labels, parameters.overlay_opacity),
            parameters,
            self.get_logger(),
        )
        self.get_logger().info(
            f"loaded {parameters.checkpoint}: {len(predictor.labels.classes)} classes, on {predictor.device}, "
            f"{_name(predictor.precision)}, in {time.monotonic() - begin:.1f} s"
        )

    def _activate(self) -> None:
        if self._core is None or self._pipeline is None:
            raise M3LError("the node is not configured")
        self._pipeline.start()
        self._inputs = Inputs(self, self._core, self._settings, self._on_frame, self._image_group)
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
            on_gpu = pipeline.predictor.device.type == "cuda"
            pipeline.outputs.close()
            del pipeline
            _collect_garbage(on_gpu)

    # Work

    def _on_frame(self, frame: Frame, camera_info: CameraInfo | None) -> None:
        if self._pipeline is not None:
            self._pipeline.submit(frame, camera_info)
        if self._inputs is not None:
            self._note_outage(self._inputs.sync_status())

    def _note_outage(self, sync: SyncStatus) -> None:
        """Log once that depth was lost, and once that it is back; nothing before the first image."""
        if not (sync.rgb_accepted or sync.depth_accepted):
            return
        with self._outage_lock:
            before, self._outage = self._outage, sync.outage
        if before == sync.outage:
            return
        if sync.outage:
            never = "" if sync.depth_accepted else " yet"
            self.get_logger().warning(f"no depth{never}: segmenting colour alone until it comes")
        elif before is not None:
            self.get_logger().info("depth is back: segmenting colour and depth")

    def _publish_diagnostics(self) -> None:
        snapshot = self._snapshot()
        if snapshot.inputs and snapshot.sync:
            self._note_outage(snapshot.sync)
        self._diagnostics_publisher.publish(
            self._diagnostics.message(self.get_clock().now().to_msg(), snapshot)
        )

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
            error=self._error,
            model=None
            if pipeline is None
            else ModelStatus(
                checkpoint=self._settings.checkpoint,
                classes=len(pipeline.predictor.labels.classes),
                device=str(pipeline.predictor.device),
                precision=_name(pipeline.predictor.precision),
                subscribed=pipeline.outputs.wanted(),
            ),
            inputs=inputs.status() if inputs else None,
            sync=sync,
            tally=tally,
            timings=pipeline.timings() if pipeline else [],
            slop=self._settings.slop,
        )


def _load_predictor(parameters: NodeParameters) -> Predictor:
    """Load the model and run it once, so that the first frame does not pay for what torch prepares on first use."""
    # torch takes seconds to import: here the node is up by then, and answers.
    import torch

    from m3l_model.predictor import Predictor

    if parameters.num_threads:
        torch.set_num_threads(parameters.num_threads)
    predictor = Predictor.from_checkpoint(
        Path(parameters.checkpoint).expanduser(), parameters.device, parameters.precision
    )
    predictor.predict(np.zeros((*_WARM_UP_SHAPE, 3), np.uint8), np.ones(_WARM_UP_SHAPE, np.float32))
    return predictor


def _name(precision: object) -> str:
    return str(precision).removeprefix("torch.")


def _collect_garbage(on_gpu: bool) -> None:
    """Give back the memory of a model that is no longer used; torch would keep a GPU's for itself."""
    gc.collect()
    if on_gpu:
        import torch

        torch.cuda.empty_cache()

# SPDX-License-Identifier: Apache-2.0
"""Train Linear Fusion from few labelled and many unlabelled frames: M3L (arXiv 2304.10756) and its rivals.

One loop for every recipe, on one device or many; it can be killed at any moment and goes on to the same result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from tqdm import tqdm

from m3l_model import ranks
from m3l_model.checkpoint import Metadata, save_checkpoint
from m3l_model.data import NetworkFrame, StepSampler, default_workers, read_batches
from m3l_model.draws import StepDraws
from m3l_model.errors import M3LError
from m3l_model.evaluation_plan import EvaluationPlan
from m3l_model.folders import check_folder, writing
from m3l_model.labels import CHANNELS, LabelSet
from m3l_model.learner import Learner, StepResult
from m3l_model.predictor import choose_device
from m3l_model.pretrained import load_pretrained
from m3l_model.recipe import TrainConfig
from m3l_model.reconstruction import make_reconstruction_views
from m3l_model.run_log import RunLog
from m3l_model.run_state import STATE_FILE, Progress, RunIdentity, Surroundings, load_state, save_state
from m3l_model.segmenter import LinearFusionSegmenter
from m3l_model.stop_signals import StopSignals
from m3l_model.training_frames import NetworkFrames, TrainingFrames
from m3l_model.training_memory import check_memory, step_bytes
from m3l_model.validation import merit, panels, plan_validation, reconstruction_panels, validate
from m3l_model.views import make_views

PRECISIONS = ("32", "bf16-mixed", "16-mixed")
CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_FILE = "best.safetensors"
_PANELS = 3

_T = TypeVar("_T")


@dataclass(frozen=True)
class Machine:
    """Where a run computes; its result does not depend on ``workers``, nor, but for rounding, on ``devices``.

    Attributes:
        device: as for ``Predictor``; with several devices only its kind.
        devices: processes on this machine, one for each device; under torchrun it says how many.
        nodes: machines; likewise.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
        workers: processes that read the bags, for each device; None chooses by the cores.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32"
    workers: int | None = None

    @property
    def local_processes(self) -> int:
        """Processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.devices))

    def fabric(self) -> Fabric:
        """Set up the processes, of which all but the first are yet to be started.

        Raises:
            M3LError: a device is not there, no such precision, or several nodes that no launcher starts.
        """
        if self.precision not in PRECISIONS:
            raise M3LError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        chosen = choose_device(self.device)
        if chosen.type == "cuda" and self.devices > torch.cuda.device_count():
            raise M3LError(f"--devices {self.devices}: torch sees {torch.cuda.device_count()} GPUs")
        local = self.local_processes
        nodes = int(os.environ.get("WORLD_SIZE", local * self.nodes)) // local
        one = local * nodes == 1
        warnings.filterwarnings(
            "ignore", "Grad strides do not match bucket view strides"
        )  # a depth-wise kernel's
        devices: Any = [chosen.index] if one and chosen.index is not None else local
        fabric = Fabric(
            accelerator=chosen.type,
            devices=devices,
            num_nodes=nodes,
            strategy="auto" if one else "ddp",
            precision=self.precision,  # type: ignore[arg-type]
        )
        environment = getattr(fabric.strategy, "cluster_environment", None)
        if nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
            raise M3LError(
                f"--nodes {nodes}: nothing here starts the other machines' processes; start this command on each "
                "machine by torchrun, which tells how many there are"
            )
        return fabric


@dataclass(frozen=True)
class Intervals:
    """Every how many steps a run writes its state, and validates and draws panels; 0: at its end only."""

    state: int = 500
    validation: int = 500


def train(
    config: TrainConfig,
    frames: TrainingFrames,
    out: Path,
    seed: int,
    machine: Machine | None = None,
    intervals: Intervals | None = None,
    pretrained: str | None = None,
    resume: bool = False,
    notes: Mapping[str, Any] | None = None,
    allow_unlabelled_classes: bool = False,
) -> Path | None:
    """Train from bags, with a progress bar, and keep the result.

    Args:
        config: the recipe.
        frames: which frames of which bags.
        out: folder to create; gets ``checkpoint.safetensors``, where frames validate also ``best.safetensors``,
            ``state.safetensors`` to go on from, ``run.json`` (recipe, bags, seed), and logs.
        seed: of everything drawn at random.
        machine: where to compute.
        intervals: of states and validations.
        pretrained: weights to start from, a model's or ImageNet's, as for ``load_pretrained``.
        resume: go on in ``out`` from its state, or, where there is none yet, from the start.
        notes: what else is to be kept in ``run.json``, in plain types.
        allow_unlabelled_classes: train although some class of the label set is in no labelled frame.

    Returns:
        The checkpoint's path; None where SIGTERM or SIGINT ended the run early: with its state written, or before its
        first step, with nothing written.

    Raises:
        M3LError: the folder exists or cannot be written, a bag, label, device or weights cannot be used, there is not
            enough memory, the state is of another run, or the loss is not finite any more.
    """
    machine = machine or Machine()
    intervals = intervals or Intervals()
    with StopSignals() as stop:
        ready = _prepare(
            config, frames, out, seed, machine, pretrained, resume, allow_unlabelled_classes, stop
        )
        if ready is None:
            return None
        fabric = ready.fabric
        fabric.launch()
        if ranks.any_of_us(stop.requested):
            return None
        if fabric.device.type != "cpu":  # each process has its own, from now on
            _all_or_none(lambda: check_memory(ready.step_bytes, config, fabric.device))
        learner = Learner(config, ready.network, fabric)
        identity = RunIdentity(config, seed, frames.label_set.classes, frames.digest(), pretrained)
        surroundings = Surroundings(machine.precision, fabric.device.type, fabric.world_size)
        progress = _go_on(out, learner, identity, surroundings, fabric)
        run = _Run(
            learner,
            frames,
            ready.validation,
            out,
            identity,
            surroundings,
            intervals,
            fabric.is_global_zero,
        )
        if fabric.is_global_zero:
            facts = {"workers": ready.workers, **dataclasses.asdict(machine), "device": str(fabric.device)}
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
                run.write_facts(facts, notes)
        steps = [config.step_frames(step) for step in range(config.steps)]
        sampler = StepSampler(
            frames.labelled,
            frames.unlabelled,
            steps,
            seed,
            progress.steps,
            fabric.global_rank,
            fabric.world_size,
        )
        batches = read_batches(ready.frames, sampler, ready.workers)
        progress = run.go(learn(learner, batches, seed, progress.steps, fabric), progress, stop)
        if progress.steps < config.steps or progress.look_due:
            return None
        if fabric.is_global_zero:
            save_checkpoint(out / CHECKPOINT_FILE, learner.model)
        fabric.barrier()
        return out / CHECKPOINT_FILE


class _Ready(NamedTuple):
    """What a run needs for its first step."""

    fabric: Fabric
    workers: int
    validation: EvaluationPlan | None
    frames: NetworkFrames
    network: LinearFusionSegmenter
    step_bytes: int


def _prepare(
    config: TrainConfig,
    frames: TrainingFrames,
    out: Path,
    seed: int,
    machine: Machine,
    pretrained: str | None,
    resume: bool,
    allow_unlabelled_classes: bool,
    stop: StopSignals,
) -> _Ready | None:
    """Do what comes before the processes are started; None where one that is alone is to stop."""
    if is_first_process():
        check_folder(out)
    if out.exists() and not resume and is_first_process():
        raise M3LError(f"{out} exists already; choose another --out, remove it, or go on in it with --resume")
    reads_unlabelled = config.task == "segment" and config.step_frames(config.steps - 1).unlabelled > 0
    if reads_unlabelled and not len(frames.unlabelled):
        raise M3LError(
            "every frame has labels, and this recipe also reads frames without; use a copy of the recipe with "
            "pseudo_weight: 0 or --config supervised_dropout, or add bags without labels"
        )
    fabric = machine.fabric()
    workers = default_workers() if machine.workers is None else machine.workers
    _check_shares(config, fabric.world_size)
    validation = (
        plan_validation(config, frames.dataset, frames.validation) if len(frames.validation) else None
    )
    if is_first_process():
        if config.task == "segment":
            frames.check_labels(workers, allow_unlabelled_classes)
        if config.modalities == "both":
            frames.check_depth()
        frames.check_overlap()
    if stop.requested and fabric.world_size == 1:
        return None  # of several, the others wait until this one has started too
    at_network_size = frames.at_network_size(config.preprocessing())
    height, width = at_network_size[frames.example].depth_m.shape
    goes_on = resume and (out / STATE_FILE).is_file()  # with weights of its own
    network = new_network(config, frames.label_set, seed, None if goes_on else pretrained)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    window = config.window(height, width)
    needed = step_bytes(config, network.num_classes, parameters, window, fabric.world_size, machine.precision)
    if fabric.device.type == "cpu":
        check_memory(needed, config, fabric.device, machine.local_processes)
    return _Ready(fabric, workers, validation, at_network_size, network, needed)


def is_first_process() -> bool:
    """Tell whether this is the first process of its machine, which sees for all of them that all is well."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def new_network(
    config: TrainConfig, labels: LabelSet, seed: int, pretrained: str | None = None
) -> LinearFusionSegmenter:
    """Make the network as it is before the first step; the seed decides what no weights are given for.

    One that reconstructs has the channels of its inputs for classes, whatever the labels.

    Raises:
        M3LError: the weights cannot be used.
    """
    torch.manual_seed(seed)
    labels = CHANNELS if config.task == "reconstruct" else labels
    network = LinearFusionSegmenter(
        config.backbone, len(labels.classes), config.fusion_ratio, config.skip_missing
    )
    network.metadata = Metadata(labels, config.preprocessing())
    if pretrained:
        load_pretrained(network, pretrained)
    return network


def _go_on(
    out: Path, learner: Learner, identity: RunIdentity, surroundings: Surroundings, fabric: Fabric
) -> Progress:
    """Load the state, where there is one, in every process.

    Raises:
        M3LError: it cannot be used, or not every process finds the same; in all of them.
    """

    def load() -> Progress:
        if not (out / STATE_FILE).is_file():
            return Progress()
        return load_state(out, learner, identity, surroundings, fabric.is_global_zero)

    progress = _all_or_none(load)
    if ranks.any_of_us(progress != fabric.broadcast(progress)):
        raise M3LError(
            f"{out / STATE_FILE}: not every process finds the same state (this one of {progress.steps} steps); let "
            "--out be a folder that all machines share"
        )
    return progress


def _all_or_none(work: Callable[[], _T]) -> _T:
    """Do what may be refused in some processes; then it is in all, rather than that the others wait for those.

    Raises:
        M3LError: this process's, or that of another.
    """
    done: _T | None = None
    refusal: M3LError | None = None
    try:
        done = work()
    except M3LError as error:
        refusal = error
    if ranks.any_of_us(refusal is not None):
        raise refusal or M3LError("another process of this run cannot go on; it says why")
    return cast(_T, done)


class StepTime(NamedTuple):
    """Seconds that a step took, and those of them that were spent waiting for its frames."""

    total: float
    waited: float


def learn(
    learner: Learner, batches: Iterator[NetworkFrame], seed: int, start: int, fabric: Fabric
) -> Iterator[tuple[StepResult, StepTime]]:
    """Do the steps from ``start`` on, one for each batch.

    Yields:
        The step's losses, and its time.
    """
    config = learner.config
    for step in range(start, config.steps):
        began = time.perf_counter()
        frames = next(batches)
        waited = time.perf_counter() - began
        first, second, third = config.step_frames(step).of_rank(fabric.global_rank, fabric.world_size)
        draws = StepDraws(seed, step, (*first, *second, *third))
        draws.seed_network()
        if config.task == "reconstruct":
            result = learner.step(step, make_reconstruction_views(config, frames, draws, fabric.device))
        else:
            result = learner.step(step, make_views(config, frames, draws, len(first), fabric.device))
        yield result, StepTime(time.perf_counter() - began, waited)


class _Run:
    """The loop around the steps: progress bar, logs, validation, states and stops; only the first process writes.

    Args:
        learner: what is trained.
        frames: of the run.
        validation: what is validated, and how; None where no frame is set apart for it.
        out: its folder.
        identity: of the run.
        surroundings: in which it goes on.
        intervals: of states and validations.
        writes: whether this is the first process.
    """

    def __init__(
        self,
        learner: Learner,
        frames: TrainingFrames,
        validation: EvaluationPlan | None,
        out: Path,
        identity: RunIdentity,
        surroundings: Surroundings,
        intervals: Intervals,
        writes: bool,
    ) -> None:
        self._learner = learner
        self._frames = frames
        self._validation = validation
        self._out = out
        self._identity = identity
        self._surroundings = surroundings
        self._intervals = intervals
        self._writes = writes

    def write_facts(self, machine: Mapping[str, Any], notes: Mapping[str, Any] | None) -> None:
        """Write ``run.json``."""
        frames = self._frames
        facts = {
            "bags": [str(bag.index.path) for bag in frames.dataset.bags],
            "label_set": frames.label_set.name,
            "label_files": None if frames.label_files is None else str(frames.label_files.path),
            "labelled_frames": len(frames.labelled),
            "unlabelled_frames": len(frames.unlabelled),
            "validation_frames": len(frames.validation),
            **(notes or {}),
            **machine,
            "torch": torch.__version__,
            **self._identity.plain(),
        }
        partial = self._out / "run.json.part"
        partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._out / "run.json")

    def go(
        self, results: Iterator[tuple[StepResult, StepTime]], progress: Progress, stop: StopSignals
    ) -> Progress:
        """Do the steps that are left, or those until a signal asks for a stop.

        Returns:
            How far the run is; its state is on the disk. A look that is due still was ended by a signal.

        Raises:
            M3LError: the loss is not finite any more, in all processes; the last state is of before.
        """
        with ExitStack() as opened:
            log = opened.enter_context(self._log(progress)) if self._writes else None
            bar = opened.enter_context(self._bar(progress))
            if progress.look_due:
                progress = self._look_together(log, progress, stop)
                if progress.look_due:
                    return progress
            meter = _Meter(self._learner.config)
            for result, spent in results:
                steps = result.step + 1
                if not math.isfinite(result.loss_supervised + result.loss_pseudo):
                    raise M3LError(
                        f"{self._out}: training diverged: the loss is not finite in step {steps}; make learning_rate "
                        "smaller or warmup_steps longer in the recipe, and train with another --out"
                    )
                look_due = self._due(steps, self._intervals.validation)
                progress = replace(progress, steps=steps, look_due=look_due)
                bar.set_postfix(meter.add(result, spent.waited), refresh=False)
                bar.update()
                stopped = ranks.any_of_us(stop.requested) and steps < self._learner.config.steps
                if log:
                    log.step(result, spent.total)
                    if stopped or self._due(steps, self._intervals.state):
                        self._save(log, progress)
                if look_due and not stopped:
                    progress = self._look_together(log, progress, stop)
                    stopped = progress.look_due
                if stopped:
                    break
        return progress

    def _log(self, progress: Progress) -> RunLog:
        return RunLog(self._out, progress.steps, progress.look_due)

    def _bar(self, progress: Progress) -> tqdm:
        return tqdm(
            total=self._learner.config.steps,
            initial=progress.steps,
            desc=f"train {self._out.name}",
            mininterval=1,
            disable=not self._writes,
        )

    def _due(self, steps: int, interval: int) -> bool:
        return steps == self._learner.config.steps or (interval > 0 and steps % interval == 0)

    def _save(self, log: RunLog, progress: Progress) -> None:
        log.flush()
        save_state(self._out, self._learner, self._identity, progress, self._surroundings)

    def _look_together(self, log: RunLog | None, progress: Progress, stop: StopSignals) -> Progress:
        """Have the first process look while the others wait; ended by a signal, it stays due, as the state says."""
        if log:
            progress = self._look(log, progress, stop)
            if progress.look_due:
                self._save(log, progress)
        return replace(progress, look_due=ranks.any_of_us(log is not None and progress.look_due))

    def _look(self, log: RunLog, progress: Progress, stop: StopSignals) -> Progress:
        """Validate, keep the model if it is the best so far, and draw what the networks say.

        A state that was written before says that this is due; after the last step it is written once more.
        """
        frames, learner = self._frames, self._learner
        if self._validation:
            scores = validate(learner.model, self._validation, lambda: stop.requested)
            if scores is None:
                return progress
            log.validated(progress.steps, scores)
            score = merit(self._identity.config, scores)
            if progress.best_miou is None or score > progress.best_miou:
                save_checkpoint(self._out / BEST_FILE, learner.model)
                progress = replace(progress, best_step=progress.steps, best_miou=score)
        shown = frames.validation if len(frames.validation) else frames.trained_on
        chosen = shown[np.linspace(0, len(shown) - 1, min(_PANELS, len(shown))).astype(int)]
        if learner.config.task == "reconstruct":
            image = reconstruction_panels(learner.network, frames.dataset, chosen)
            name = "colour, depth, depth from colour, colour from depth"
        else:
            image = panels(learner.network, learner.model, frames.dataset, chosen, frames.label_set)
            name = "colour, depth, teacher, student without depth, student without colour"
        log.panel(name, image, progress.steps)
        progress = replace(progress, look_due=False)
        if progress.steps == learner.config.steps:
            self._save(log, progress)
        return progress


class _Meter:
    """What the progress bar tells beside the number of steps."""

    def __init__(self, config: TrainConfig) -> None:
        self._loss = "supervised" if config.task == "segment" else "reconstruction"
        self._teaches = config.mean_teacher and config.pseudo_weight > 0
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def add(self, result: StepResult, waited: float) -> dict[str, str]:
        """Take a step; give losses, steps a second, and the share of the time that was spent waiting for frames."""
        self._waited += waited
        self._steps += 1
        elapsed = time.perf_counter() - self._began
        return {
            self._loss: f"{result.loss_supervised:.3f}",
            **({"pseudo": f"{result.loss_pseudo:.3f}"} if self._teaches else {}),
            "steps/s": f"{self._steps / elapsed:.2f}",
            "waiting": f"{self._waited / elapsed:.0%}",
        }


def _check_shares(config: TrainConfig, processes: int) -> None:
    """See that every process gets as many frames as every other, and no sample's partner."""
    each = processes * (2 if config.cutmix and processes > 1 else 1)
    frames = config.step_frames(config.steps - 1)
    for name, taken in (("labelled_batch", frames.labelled), ("unlabelled_batch", frames.unlabelled)):
        if taken % each:
            pairs = ", in pairs for cutmix" if each > processes else ""
            raise M3LError(
                f"{name} {taken} cannot be shared by {processes} processes{pairs}; make it a multiple "
                f"of {each}"
            )

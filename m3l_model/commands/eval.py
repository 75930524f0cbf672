# SPDX-License-Identifier: Apache-2.0
"""``m3l eval``: what models are worth on bags, under the conditions a robot meets."""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from m3l_model.commands.bag_options import (
    add_label_file_argument,
    add_split_bag_arguments,
    non_negative,
    open_bags_of_splits,
    open_label_files,
    positive,
)
from m3l_model.errors import M3LError
from m3l_model.shipped import DEFAULT_MODEL, model_file

if TYPE_CHECKING:
    from m3l_model.agreement import Agreement
    from m3l_model.evaluation_plan import EvaluationPlan
    from m3l_model.evaluation_summary import Summary
    from m3l_model.label_files import LabelFiles
    from m3l_model.predictor import Predictor
    from m3l_model.scenarios import Scenario

HELP = "score models on bags, with depth and without, late, noisy, or with colour gone, and write a report"
EXIT_BELOW = 1
IN_STEP = 0.0
PROGRESS = "progress"
LIVE_GROUP = "m3l.live"
"""Its entry point ``check`` gives m3l_ros's ``check_live``, which needs ROS."""


class Limit(NamedTuple):
    """The least that a headline figure may be."""

    figure: str
    least: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``robust=0.45``."""
        figure, separator, least = text.partition("=")
        if not (figure and separator):
            raise argparse.ArgumentTypeError(f"{text!r} is not FIGURE=LEAST, such as robust=0.45")
        try:
            return cls(figure, float(least))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{least!r} is no number") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--checkpoint",
        type=model_file,
        action="append",
        required=True,
        dest="checkpoints",
        metavar="FILE",
        help=f"a model's file, or {DEFAULT_MODEL}; given again, another one to compare with it",
    )
    add_split_bag_arguments(parser, "its validation part")
    add_label_file_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write index.html, evaluation.json, scores.csv and frames.csv here; "
        "an evaluation that was interrupted goes on when the same command is given again",
    )
    parser.add_argument(
        "--scenarios",
        nargs="+",
        metavar="NAME",
        help="evaluate these only, with clean, depth_missing and rgb_missing (default: all)",
    )
    parser.add_argument(
        "--seed", type=non_negative, default=0, help="of all that is random (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="evaluate one labelled frame in N"
    )
    parser.add_argument("--frames", type=positive, metavar="N", help="stop after N frames")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--live",
        nargs="?",
        type=rate,
        const=IN_STEP,
        metavar="RATE",
        help="evaluate nothing, but play the bags to the live node under the scenarios, message by message or at this "
        f"many seconds of the bag per second, and end with exit code {EXIT_BELOW} unless decisions and masks are the "
        "offline ones; needs ROS",
    )
    parser.add_argument(
        "--fail-under",
        type=Limit.parse,
        action="append",
        default=[],
        metavar="FIGURE=LEAST",
        help=f"end with exit code {EXIT_BELOW} if a model's headline figure is below, such as robust=0.45; "
        "can be given again",
    )


def rate(text: str) -> float:
    """Read a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no rate above 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the headline and, with ``--out``, write the report; or compare with the live node."""
    if args.live is not None:
        return _run_live(args)

    from m3l_model.evaluation import common_labels
    from m3l_model.predictor import Predictor

    checkpoints = named(args.checkpoints)
    predictors = {name: Predictor.from_checkpoint(path, args.device) for name, path in checkpoints.items()}
    label_files = open_label_files(args.labels, common_labels(predictors))
    plan = _plan(args, predictors, label_files)
    _check_limits(args.fail_under, plan)
    summary = _evaluate(args, plan, predictors, checkpoints)
    return _judge(args.fail_under, summary)


def _run_live(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from m3l_model.bag_dataset import RgbdBagDataset
    from m3l_model.predictor import Predictor
    from m3l_model.scenarios import RGB_MISSING, chosen_scenarios

    unused = {
        "--labels": args.labels,
        "--out": args.out,
        "--every": args.every > 1,
        "--frames": args.frames,
        "--fail-under": args.fail_under,
    }
    given = [option for option, value in unused.items() if value]
    if given:
        raise M3LError(f"--live plays whole bags and evaluates nothing; leave {', '.join(given)} out")
    check_live = _live_check()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the node is ended too
    scenarios = [
        scenario for scenario in chosen_scenarios(args.scenarios) if scenario.name != RGB_MISSING.name
    ]
    if len(scenarios) < len(chosen_scenarios(args.scenarios)):
        print(f"{RGB_MISSING.name}: not played, as it depends on what is paired, and not on stamps")
    bags, _ = open_bags_of_splits(args, labels_read=False)
    dataset = RgbdBagDataset(bags)
    code = 0
    for name, path in named(args.checkpoints).items():
        predictor = Predictor.from_checkpoint(path, args.device)
        for bag, frames in enumerate(dataset.bags):
            checked = check_live(dataset, predictor, path, scenarios, args.seed, bag, args.live or None)
            for scenario, agreement in tqdm(checked, total=len(scenarios), desc="live", unit="scenario"):
                holds = agreement.holds(timed=args.live != IN_STEP)
                code = code if holds else EXIT_BELOW
                verdict = "" if holds else "NOT THE SAME: "
                tqdm.write(f"{name}, {frames.index.name}, {scenario.name}: {verdict}{agreement}")
    return code


def _live_check() -> Callable[..., Iterator[tuple[Scenario, Agreement]]]:
    for entry in entry_points(group=LIVE_GROUP, name="check"):
        return cast("Callable[..., Iterator[tuple[Scenario, Agreement]]]", entry.load()())
    raise M3LError("--live needs m3l_ros, which this installation does not know of; install it again")


def named(checkpoints: list[Path]) -> dict[str, Path]:
    """Give models short names: the folder's where the file is called checkpoint, else the file's, where that is clear.

    Raises:
        M3LError: a file is named twice.
    """
    names = [path.resolve().parent.name if path.stem == "checkpoint" else path.stem for path in checkpoints]
    count = Counter(names)
    names = [name if count[name] == 1 else str(path) for name, path in zip(names, checkpoints, strict=True)]
    if len(set(names)) < len(names):
        raise M3LError(f"--checkpoint {checkpoints[0]}: named twice; name each model once")
    return dict(zip(names, checkpoints, strict=True))


def _plan(
    args: argparse.Namespace, predictors: dict[str, Predictor], label_files: LabelFiles | None
) -> EvaluationPlan:
    """Open bags and labels, and see that they fit."""
    from m3l_model.bag_dataset import RgbdBagDataset
    from m3l_model.data import default_workers
    from m3l_model.evaluation_plan import evaluated_positions, plan_evaluation
    from m3l_model.label_check import check_labels, require_labels_of
    from m3l_model.scenarios import chosen_scenarios

    scenarios = chosen_scenarios(args.scenarios)
    labels = next(iter(predictors.values())).labels
    bags, splits = open_bags_of_splits(args)
    dataset = RgbdBagDataset(bags, labels, label_files)
    if args.labels or args.label_topic:
        require_labels_of(dataset, label_files)
    positions = evaluated_positions(dataset, splits)
    count, labelled = len(positions), int(dataset.labelled.sum())
    positions = positions[:: args.every][: args.frames]
    if labelled:
        check_labels(dataset, positions, labels, label_files, default_workers())
        if labelled < len(dataset):
            print(f"{labelled} of {len(dataset)} frames have labels: only those are evaluated")
    else:
        print(
            f"none of the {count} frames has labels: what is measured are proxies, that say nothing about right or "
            "wrong; name labels with --labels or --label-topic"
        )
    return plan_evaluation(dataset, positions, scenarios, args.seed)


def _evaluate(
    args: argparse.Namespace,
    plan: EvaluationPlan,
    predictors: dict[str, Predictor],
    checkpoints: dict[str, Path],
) -> Summary:
    from tqdm import tqdm

    from m3l_model import evaluation_files as files
    from m3l_model.evaluation import evaluate
    from m3l_model.evaluation_pictures import PictureMaker, choose_frames
    from m3l_model.evaluation_report import write_report
    from m3l_model.evaluation_store import FileStore
    from m3l_model.evaluation_summary import score_table, summarise

    facts = files.describe(plan, predictors, checkpoints)
    if args.out:
        files.refuse_other_report(args.out / files.JSON, facts)
    store = FileStore(args.out / PROGRESS, facts) if args.out else None
    pictures = PictureMaker(*choose_frames(plan, len(predictors))) if args.out else None
    with tqdm(total=plan.frames, desc="evaluate", unit="frame", mininterval=1) as progress:
        try:
            evaluation = evaluate(plan, predictors, store, pictures, progress.update)
        except KeyboardInterrupt:
            progress.close()
            kept = "; the same command goes on from the last block that was finished" if args.out else ""
            print(f"interrupted after {progress.n} of {plan.frames} frames{kept}", file=sys.stderr)
            raise
    if evaluation.unreadable:
        print(f"{evaluation.unreadable} of {plan.frames} colour images are damaged and got no mask")
    summary = summarise(evaluation, args.seed)
    print(score_table(summary))
    if store is not None:
        command = shlex.join(["m3l", *sys.argv[1:]])
        files.write_json(args.out / files.JSON, facts, summary, command)
        files.write_scores_csv(args.out / files.SCORES_CSV, summary)
        files.write_frames_csv(args.out / files.FRAMES_CSV, evaluation)
        write_report(args.out / "index.html", evaluation, summary, facts, command, store, predictors)
        store.remove()
        print(f"report: {args.out / 'index.html'}")
    return summary


def _check_limits(limits: list[Limit], plan: EvaluationPlan) -> None:
    """See, before hours are spent, that the figures to be judged will be there."""
    from m3l_model.robustness import headline_names

    known = headline_names([scenario.name for scenario in plan.scenarios]) if plan.labelled else []
    for limit in limits:
        if limit.figure not in known:
            listed = ", ".join(known) or "none without labels"
            raise M3LError(f"--fail-under {limit.figure}: no such figure here; there are {listed}")


def _judge(limits: list[Limit], summary: Summary) -> int:
    code = 0
    for name, model in summary.models.items():
        for limit in limits:
            value = model.headline[limit.figure].value
            if not value >= limit.least:
                print(f"{name}: {limit.figure} is {value:.4f}, below {limit.least:g}", file=sys.stderr)
                code = EXIT_BELOW
    return code

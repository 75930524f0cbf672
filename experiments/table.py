# SPDX-License-Identifier: Apache-2.0
"""Make the NYUv2 table of docs/experiments.md from the results that there are, as Markdown.

python experiments/table.py [--part test] [--against m3l] [--rates 0.001]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from paired import verdict
from rows import criterion

RESULTS = Path(__file__).resolve().parent / "results" / "nyuv2"
COLUMNS = ("both", "rgb_only", "depth_only", "robust", "holes")
COMPARED = ("both", "rgb_only", "robust")
"""What docs/experiments.md claims something of."""


def main() -> int:
    """Print the table, every run, and the paired differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--against", default="m3l", help="row that the others are subtracted from")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        help="learning rates that count, the paper's apart; all unless given",
    )
    args = parser.parse_args()
    runs = [
        {**json.loads(path.read_text()), "digest": path.stem.rpartition("-")[2]}
        for path in sorted(RESULTS.glob("*.json"))
    ]
    runs = [run for run in runs if args.part in run and _counts(run, args.rates)]
    if not runs:
        sys.exit(f"{RESULTS}: no results of {args.part}; experiments/run.py makes them")
    chosen = _chosen(runs)
    print(
        f"| row | draws | rate | {' | '.join(COLUMNS)} | best on validation | GFLOP | images | steps | wall s |"
    )
    print("|" + "---|" * (len(COLUMNS) + 8))
    for row, of_row in chosen.items():
        print(_line(row, of_row, args.part))
    print()
    for row, of_row in chosen.items():
        if row == args.against or args.against not in chosen:
            continue
        for name in COMPARED:
            if name in _columns(of_row[min(of_row)]):
                one, other = (_scores(runs, args.part, name) for runs in (chosen[args.against], of_row))
                print(f"{name}, {args.against} - {row}: {verdict(one, other)}")
    print(f"\n{len(runs)} runs:")
    for run in runs:
        figures = ", ".join(f"{name} {100 * run[args.part]['final'][name]:.1f}" for name in _columns(run))
        print(f"- {run['row']}, draw {run['draw']}, rate {run['learning_rate']:g}: {figures}")
    return 0


def _counts(run: dict[str, Any], rates: list[float] | None) -> bool:
    return rates is None or run["row"] == "m3l_paper" or run["learning_rate"] in rates


def _chosen(runs: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """For each row its runs by draw, with the configuration that was best on validation in draw 1."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for run in sorted(runs, key=_merit):
        of_row = rows.setdefault(run["row"], {})
        if run["draw"] == 1 or 1 not in of_row or run["digest"] == of_row[1]["digest"]:
            of_row[run["draw"]] = run
    return rows


def _merit(run: dict[str, Any]) -> tuple[int, float]:
    return run["draw"], run["validation"]["final"][_criterion(run)]


def _criterion(run: dict[str, Any]) -> str:
    return criterion(run["config"]["modalities"])


def _line(row: str, of_row: dict[int, dict[str, Any]], part: str) -> str:
    runs = list(of_row.values())
    columns = _columns(runs[0])
    means = {name: statistics.mean(_scores(of_row, part, name).values()) for name in columns}
    cells = " | ".join(f"{means[name]:.1f}" if name in means else "-" for name in COLUMNS)
    best = 100 * statistics.mean(run[part]["best"][_criterion(run)] for run in runs)
    seconds = [run["wall_seconds"] for run in runs if run.get("wall_seconds") is not None]
    wall = f"{statistics.mean(seconds):.0f}" if len(seconds) == len(runs) else "-"
    return (
        f"| {row} | {', '.join(map(str, of_row))} | {runs[0]['learning_rate']:g} | {cells} | {best:.1f} | "
        f"{runs[0]['gflop']:.0f} | {runs[0]['images']} | "
        f"{runs[0]['steps']} | {wall} |"
    )


def _scores(of_row: dict[int, dict[str, Any]], part: str, name: str) -> dict[int, float]:
    return {draw: 100 * run[part]["final"][name] for draw, run in of_row.items()}


def _columns(run: dict[str, Any]) -> tuple[str, ...]:
    """What a run is scored for: a row of colour alone has no token for colour, and sees nothing of depth."""
    return ("rgb_only",) if run["config"]["modalities"] == "rgb" else COLUMNS


if __name__ == "__main__":
    sys.exit(main())

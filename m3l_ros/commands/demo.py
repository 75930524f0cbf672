# SPDX-License-Identifier: Apache-2.0
"""``m3l demo``: the whole product in one run, on synthetic rooms."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "see the whole product work: bags, training, evaluation, the live node, a report"

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo_out"), help="folder for it all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of rooms and training (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; exit code 1 where an image did not get exactly one mask."""
    from m3l_ros.availability import require_ros

    require_ros()
    from m3l_ros.demo import Demo

    demo = Demo(args.out, args.seed)
    complete = demo.run()
    print(f"\nreport: {(args.out / 'index.html').resolve()}")
    if not complete:
        print("not every colour image got exactly one mask; the report says which kind is off")
        return EXIT_FAILED
    return 0

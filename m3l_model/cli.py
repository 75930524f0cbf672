# SPDX-License-Identifier: Apache-2.0
"""The program ``m3l``: finds the chosen subcommand, runs it, and turns what goes wrong into one line and an exit code.

A subcommand is a module (see ``Command``), registered as an entry point of the group ``m3l.commands``, so that what
needs ROS lives in m3l_ros and other packages can add their own.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from m3l_model import __version__
from m3l_model.errors import M3LError
from m3l_model.openmp import share_cores

PROGRAM = "m3l"
COMMAND_GROUP = "m3l.commands"

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# How to come by a module that the bare installation lacks; what m3l_ros needs it says itself.
_REMEDIES = {
    "PIL": "pip install 'm3l_ros[train]', or on a robot apt install python3-pil",
    **dict.fromkeys(
        ("apsw", "backports", "lz4"), "pip install 'm3l_ros[train]', or on a robot pip install rosbags"
    ),
    "cv2": "pip install 'm3l_ros[train]', or on a robot apt install python3-opencv",
    **dict.fromkeys(
        ("lightning_fabric", "tensorboard"),
        "pip install 'm3l_ros[train]', or on a robot pip install lightning-fabric tensorboard",
    ),
    "jinja2": "pip install 'm3l_ros[train]', or on a robot apt install python3-jinja2",
    "matplotlib": "pip install 'm3l_ros[train]', or on a robot apt install python3-matplotlib",
    "onnx": "pip install 'm3l_ros[onnx]'",
    "onnxscript": "pip install 'm3l_ros[onnx]'",
    "rosbags": "pip install 'm3l_ros[train]', or on a robot pip install rosbags rosbags-image",
    "tqdm": "pip install 'm3l_ros[train]', or on a robot apt install python3-tqdm",
}


class Command(Protocol):
    """What a subcommand's module has. It imports fast: heavy imports belong in ``run``."""

    HELP: str
    """One line, for ``m3l --help``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; return the exit code. Raises ``M3LError`` for what the user can mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m3l`` with these arguments (the process's own by default) and return its exit code.

    Exit codes: 0 done, 2 wrong use or an ``M3LError``, 130 interrupted, 141 the reader of stdout went away; a command
    may have others of its own.
    """
    share_cores(os.environ)
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    try:
        try:
            if not name or name.startswith("-"):
                return _run_program(arguments)
            return _run_command(name, arguments[1:])
        finally:
            sys.stdout.flush()
    except M3LError as error:
        print(f"{PROGRAM} {name}: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _silence_broken_stdout():
            raise
        return EXIT_BROKEN_PIPE


def _run_program(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [-h] [--version] COMMAND ...",
        description="RGB-D semantic segmentation that survives a missing modality: from bags to masks.",
        epilog=_command_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.parse_args(arguments)
    parser.print_help(sys.stderr)
    return EXIT_ERROR


def _run_command(name: str, arguments: Sequence[str]) -> int:
    commands = _commands()
    if name not in commands:
        known = ", ".join(commands) or "none; install the package first: pip install -e ."
        raise M3LError(f"no such command; commands: {known}")
    try:
        command = cast(Command, commands[name].load())
        parser = argparse.ArgumentParser(prog=f"{PROGRAM} {name}", description=command.HELP)
        command.add_arguments(parser)
        return command.run(parser.parse_args(arguments))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _REMEDIES:
            raise
        raise M3LError(f"needs {module}, which is not installed: {_REMEDIES[module]}") from error


def _commands() -> dict[str, EntryPoint]:
    return {
        entry.name: entry for entry in sorted(entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name)
    }


def _command_list() -> str:
    lines = [f"  {name:<14} {_help_line(entry)}" for name, entry in _commands().items()]
    return "\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help says more."])


def _help_line(entry: EntryPoint) -> str:
    """Give a command's help; one that cannot be imported says why and spoils no other."""
    try:
        return cast(Command, entry.load()).HELP
    except Exception as error:
        return f"(cannot be loaded: {error})"


def _silence_broken_stdout() -> bool:
    """Tell whether the reader of stdout is gone; then keep the interpreter's exit from writing to it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return broken

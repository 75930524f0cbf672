# SPDX-License-Identifier: Apache-2.0
"""The program m3l as a user meets it: real processes, commands found through real entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from m3l_model import __version__

PLUGIN = """
import os, signal, time
HELP = "does what its argument says"

def add_arguments(parser):
    parser.add_argument("what")

def run(args):
    if args.what == "succeed":
        return 0
    if args.what == "score":
        return 7
    if args.what == "refuse":
        from m3l_model.errors import M3LError
        raise M3LError("bags/a.mcap: no colour topic; name one with --rgb-topic")
    if args.what == "lack":
        raise ModuleNotFoundError("No module named 'rosbags'", name="rosbags")
    if args.what == "crash":
        import no_such_module
    if args.what == "flood":
        while True:
            print("line")
    if args.what == "lose-worker":
        raise BrokenPipeError("a worker's pipe")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the path, is an installed distribution with a command `act` and a broken one."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "act_command.py").write_text(PLUGIN)
    (folder / "broken_command.py").write_text("import no_such_module\n")
    metadata = folder / "m3l_plugins-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: m3l-plugins\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[m3l.commands]\nact = act_command\nbroken = broken_command\n")
    return folder


def test_help_lists_every_command(run_python):
    result = run_python("-m", "m3l_model", "--help")
    assert result.returncode == 0
    assert "cannot be loaded" not in result.stdout
    own = [entry for entry in entry_points(group="m3l.commands") if entry.module.startswith("m3l_")]
    assert {"demo", "eval", "import-images", "node", "replay", "train"} <= {entry.name for entry in own}
    for entry in own:
        assert f"  {entry.name} " in result.stdout
        assert entry.load().HELP in result.stdout


@pytest.mark.parametrize("name", ["demo", "eval", "import-images", "node", "replay", "train"])
def test_every_command_explains_itself(run_python, name):
    result = run_python("-m", "m3l_model", name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: m3l {name} ")


def test_help_loads_nothing_heavy(run_python):
    result = run_python(
        "-c",
        "import sys, m3l_model.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('loaded:', [name for name in ('torch', 'cv2', 'rclpy') if name in sys.modules])",
    )
    assert result.stdout.splitlines()[-1] == "loaded: []"


def test_program_is_installed_and_knows_its_version():
    program = Path(sys.executable).with_name("m3l")
    result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"m3l {__version__}\n")


def test_without_a_command_usage_goes_to_stderr(run_python):
    result = run_python("-m", "m3l_model")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: m3l ")


def test_unknown_command_lists_the_commands_in_one_line(run_python):
    result = run_python("-m", "m3l_model", "evaluate")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("m3l evaluate: error: no such command; commands: ")
    assert "eval, export, frames, import-images, info" in line


@pytest.mark.parametrize(
    ("what", "code", "stderr"),
    [
        ("succeed", 0, ""),
        ("score", 7, ""),
        ("refuse", 2, "m3l act: error: bags/a.mcap: no colour topic; name one with --rgb-topic\n"),
        ("be-interrupted", 130, ""),
    ],
)
def test_exit_code_and_message(run_python, plugins, what, code, stderr):
    result = run_python("-m", "m3l_model", "act", what, path=plugins)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", stderr)


def test_a_missing_extra_is_named_in_one_line(run_python, plugins):
    result = run_python("-m", "m3l_model", "act", "lack", path=plugins)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "m3l act: error: needs rosbags, which is not installed: pip install 'm3l_ros[train]'"
    )


@pytest.mark.parametrize("what", ["crash", "lose-worker"])
def test_a_defect_is_not_hidden(run_python, plugins, what):
    result = run_python("-m", "m3l_model", "act", what, path=plugins)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")


def test_a_broken_command_spoils_no_other(run_python, plugins):
    result = run_python("-m", "m3l_model", "--help", path=plugins)
    assert result.returncode == 0
    assert "  broken         (cannot be loaded: No module named 'no_such_module')" in result.stdout
    assert "  act            does what its argument says" in result.stdout


@pytest.mark.parametrize("arguments", [["act", "flood"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(plugins, arguments):
    environment = {**os.environ, "PYTHONPATH": str(plugins)}
    environment.pop("PYTHONUNBUFFERED", None)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "m3l_model", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        os.close(writer)
        os.close(reader)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (141, "")

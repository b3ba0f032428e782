"""Ctrl-C while a command starts: one line and exit code 130, in real processes and at moments that are the same in
every run, which is when a given module is about to be imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# Runs when the interpreter starts, before anything of ours.
CUSTOM = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
AT_ONCE = "neuroshed: stopped before it began"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """What an installer writes for the command `neuroshed`."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["neuroshed"].partition(":")
    path = tmp_path / "neuroshed"
    path.write_text(f"import sys\nfrom {module} import {name}\nif __name__ == '__main__':\n    sys.exit({name}())\n")
    return path


def interrupted(at: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python that gets SIGINT when it is about to import a module."""
    (folder / "sitecustomize.py").write_text(CUSTOM)
    places = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": places, "INTERRUPT_AT": at}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("at", ["neuroshed.cli", "click", "numpy", "neuroshed.api", "numba", "pyarrow.lib"])
def test_before_a_command_has_begun_it_ends_at_once(at: str, tmp_path: Path) -> None:
    done = interrupted(at, tmp_path, "-m", "neuroshed", "status", "nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{AT_ONCE}\n")


@pytest.mark.parametrize("at", ["click", "neuroshed.api"])
def test_the_installed_command_does_so_too(at: str, tmp_path: Path, script: Path) -> None:
    done = interrupted(at, tmp_path, str(script), "status", "nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{AT_ONCE}\n")


def test_without_an_interrupt_the_installed_command_works(tmp_path: Path, script: Path) -> None:
    done = interrupted("nothing", tmp_path, str(script), "--version")
    assert (done.returncode, done.stdout.startswith("neuroshed, version "), done.stderr) == (0, True, "")

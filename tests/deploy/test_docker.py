"""The images: what hadolint says of them, and what they start with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
LINES = [line for line in re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text()).splitlines() if line]


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style"]
    done = subprocess.run([*command, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    # It would say something of what is wrong.
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    done = subprocess.run([*command, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    version = next(line for line in LINES if line.startswith("ARG PYTHON="))
    assert re.fullmatch(r"ARG PYTHON=\d+\.\d+\.\d+", version)
    assert [line.split()[1] for line in LINES if line.startswith("USER")] == ["10001:10001"]
    for line in LINES:
        for installed in re.findall(r"pip (?:install|wheel) ([^&;]*)", line):
            assert "constraints.txt" in installed


def test_what_is_copied_into_the_image_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        source
        for line in LINES
        if line.startswith("COPY") and "--from" not in line
        for source in [word for word in line.split()[1:] if not word.startswith("--")][:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


def test_what_was_compiled_is_put_where_it_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "kernel.nbi").write_text("compiled")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "NEUROSHED_COMPILED": str(tmp_path / "image")}
    environment.pop("NUMBA_CACHE_DIR", None)
    (tmp_path / "scratch").mkdir()
    command = [str(DOCKER / "entrypoint.sh"), "sh", "-c", 'echo "$NUMBA_CACHE_DIR"; exit 3']
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout) == (3, f"{tmp_path}/scratch/numba\n")
        assert (tmp_path / "scratch" / "numba" / "kernel.nbi").read_text() == "compiled"

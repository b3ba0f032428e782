"""`retry` tries some of the blocks that failed again, and leaves the others set aside."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.geometry import Vec

from .held import before_blocks, failing, settings

FIRST, SECOND = (0, 0, 3), (1, 1, 1)


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """A run of which two blocks failed, and what depends on them is not done."""
    with failing(FIRST, SECOND), pytest.raises(RunFailedError):
        neuroshed.run("stitch", settings(tmp_path))
    return tmp_path / "run"


def failures(run: Path) -> list[Vec]:
    return sorted(tuple(row["block"]) for row in neuroshed.status(run)["failures"])


def test_only_what_is_meant_is_tried_again(failed: Path) -> None:
    tried: list[Vec] = []
    with (
        before_blocks(tried.append),
        pytest.raises(RunFailedError, match=r"1 block of run .* at \[1, 1, 1\]") as caught,
    ):
        neuroshed.retry(failed, stage="fragments", blocks=[FIRST])
    assert tried == [FIRST]
    assert failures(failed) == [SECOND]
    rows = caught.value.summary["stages"]
    assert (rows["fragments"]["done"], rows["fragments"]["failed"]) == (15, 1)
    assert [row["block"] for row in caught.value.summary["failures"]] == [[1, 1, 1]]
    assert neuroshed.retry(failed)["status"] == "done"
    assert failures(failed) == []


def test_what_fails_again_stays_failed(failed: Path) -> None:
    with failing(FIRST), pytest.raises(RunFailedError, match="2 blocks of run"):
        neuroshed.retry(failed, blocks=[FIRST])
    assert failures(failed) == [FIRST, SECOND]
    assert neuroshed.resume(failed, cluster="in-process:1")["status"] == "done"
    # Where it was done last is where it goes on.
    assert yaml.safe_load((failed / "workflow.yaml").read_text())["cluster"]["workers"] == 1


def test_the_command(failed: Path) -> None:
    result = CliRunner().invoke(main, ["retry", str(failed), "--stage", "fragments", "--blocks", "0,0,3"])
    assert result.exit_code == 1
    assert failures(failed) == [SECOND]
    result = CliRunner().invoke(main, ["retry", str(failed), "--blocks", "[1, 1, 1]"])
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(main, ["retry", str(failed), "--blocks", "1,1"])
    assert result.exit_code == 2
    assert "got '1,1'; needed are three numbers such as 0,1,2" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("stage", "blocks", "asked"),
    [
        ("predict", [], "stage predict"),
        (None, [(7, 7, 7)], "block 7,7,7"),
        ("segment", [FIRST], "stage segment, block 0,0,3"),
    ],
)
def test_nothing_is_meant(failed: Path, stage: str | None, blocks: list[Vec], asked: str) -> None:
    with pytest.raises(WorkflowError, match=f"no failed block of run .* matches {asked}") as caught:
        neuroshed.retry(failed, stage=stage, blocks=blocks)
    assert "failed are fragments 0,0,3; fragments 1,1,1" in str(caught.value)
    with pytest.raises(WorkflowError, match="no failed block"):
        neuroshed.retry(failed, stage=stage, blocks=blocks, detach=True)


def test_nothing_failed(tmp_path: Path) -> None:
    neuroshed.run("stitch", settings(tmp_path))
    with pytest.raises(WorkflowError, match="has no failed blocks; `neuroshed resume"):
        neuroshed.retry(tmp_path / "run")

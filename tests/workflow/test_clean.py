"""`clean` frees what no run needs, and touches nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.workflow.clean import INTERMEDIATE, LEFTOVER, SUPERSEDED

from .held import settings


def tree(folder: Path) -> dict[str, bytes]:
    """All files but those of the journal, in which the call itself is noted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "journal" not in path.relative_to(folder).parts
    }


def names(found: dict[str, Any], reason: str) -> list[str]:
    return sorted(Path(row["path"]).name for row in found["finds"] if row["reason"] == reason)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was run with other parameters before."""
    folder = tmp_path_factory.mktemp("finished")
    neuroshed.run("stitch", settings(folder, "fragments.small=5"))
    before = sorted(path.name for path in (folder / "run").glob("*-*"))
    neuroshed.run("stitch", settings(folder))
    (folder / "before.json").write_text(json.dumps(before))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True)) / "run"


def superseded(run: Path) -> list[str]:
    before = json.loads((run.parent / "before.json").read_text())
    return sorted(name for name in before if not name.startswith("affinities-"))


def test_stages_of_earlier_parameters_go(run: Path) -> None:
    old = superseded(run)
    assert len(old) == 3
    new = {name: data for name, data in tree(run).items() if name.split("/")[0] not in old}
    size = sum(bytes_of(run / name) for name in old)
    found = neuroshed.clean(run, dry_run=True)
    assert (found["removed"], found["bytes"]) == (False, size)
    assert found["by_reason"] == {SUPERSEDED: size}
    assert names(found, SUPERSEDED) == old
    assert all((run / name).exists() for name in old)

    assert neuroshed.clean(run, confirm=lambda shown: False)["removed"] is False
    assert all((run / name).exists() for name in old)
    asked: list[dict[str, Any]] = []
    done = neuroshed.clean(run, confirm=lambda shown: not asked.append(shown))
    assert asked == [found]
    assert done == found | {"removed": True}
    assert tree(run) == new
    assert neuroshed.clean(run)["finds"] == []

    # Nothing is believed of what is gone: the same parameters compute all of it again.
    known = {*read_ledger(run).figures}
    assert not [name for name in old if any(stage.startswith(name.rpartition("-")[2]) for stage in known)]
    again = neuroshed.run("stitch", settings(run.parent, "fragments.small=5"))
    assert (again["status"], again["restored_blocks"]) == ("done", 0)


def test_a_removal_that_was_broken_off_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = superseded(run)
    real = shutil.rmtree

    def broken(path: str) -> None:
        real(path)
        raise OSError(5, "the disk is gone", path)

    monkeypatch.setattr(shutil, "rmtree", broken)
    with pytest.raises(WorkflowError, match=r"cannot be removed \(the disk is gone: .* `neuroshed clean .* goes on"):
        neuroshed.clean(run)
    monkeypatch.undo()
    assert all((run / name / "stage.json").exists() for name in old)
    assert names(neuroshed.clean(run), SUPERSEDED) == old
    assert not any((run / name).exists() for name in old)


def test_what_was_broken_off_goes(run: Path) -> None:
    neuroshed.clean(run)
    before = tree(run)
    segment = next(run.glob("segment-*"))
    draft = segment / ".0.5.zarr.0123456789abcdef0123456789abcdef"
    (draft / "c").mkdir(parents=True)
    (draft / "c" / "0").write_bytes(b"x" * 1000)
    (run / ".plan.json.0123456789abcdef0123456789abcdef.partial").write_bytes(b"y" * 10)
    (segment / "0.5.zarr" / "zarr.json.0123456789abcdef0123456789abcdef.partial").write_bytes(b"z" * 5)
    (run / "verify-0123456789ab" / "verify-ba9876543210").mkdir(parents=True)
    (run / "verify-0123456789ab" / "verify-ba9876543210" / "stage.json").write_text('{"kind": "verify"}')
    found = neuroshed.clean(run)
    assert found["by_reason"] == {LEFTOVER: 1000 + 10 + 5 + 18}
    assert len(found["finds"]) == 4
    assert tree(run) == before
    assert not draft.exists()


@pytest.mark.parametrize("work", ["verify", "evaluate"])
def test_what_is_at_work_stays(work: str, run: Path) -> None:
    scratch = run / f"{work}-0123456789ab"
    with Journal(scratch):
        assert names(neuroshed.clean(run), LEFTOVER) == []
    assert names(neuroshed.clean(run), LEFTOVER) == [scratch.name]


def test_what_is_not_known_stays(run: Path) -> None:
    neuroshed.clean(run)
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stage.json").write_text('{"kind": "segment"}')
    for name in ("segment-0123456789ab", "notes-0123456789ab", "my-results", "verify-mine"):
        (run / name).mkdir()
        (run / name / "data").write_text("mine")
    (run / "notes-0123456789ab" / "stage.json").write_text('{"kind": "other"}')
    (run / "segment-ffffffffffff").symlink_to(elsewhere)
    (run / ".hidden").write_text("mine")
    (run / ".link.0123456789abcdef0123456789abcdef").symlink_to(elsewhere)
    (run / "x.partial").write_text("mine")
    before = tree(run)
    assert neuroshed.clean(run)["finds"] == []
    assert tree(run) == before
    assert (elsewhere / "stage.json").exists()


def test_nobody_may_be_at_work(run: Path) -> None:
    with Journal(run):
        with pytest.raises(WorkflowError, match="is being worked on by"):
            neuroshed.clean(run)
        assert neuroshed.clean(run, dry_run=True)["finds"]
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.clean(run.parent)


def test_intermediates_that_nothing_reads_go(tmp_path: Path) -> None:
    given = settings(tmp_path, "keep=[segmentation,fragments]")
    kept = neuroshed.run("stitch", settings(tmp_path, "keep=[segmentation,fragments,merges]"))
    run = tmp_path / "run"
    assert neuroshed.clean(run)["finds"] == []
    tables = [path for path in run.rglob("*.parquet") if not path.parts[-3].startswith("segment-")]
    size = sum(path.stat().st_size for path in tables)
    labels = bytes_of(next(run.glob("fragments-*")) / "labels.zarr" / "0" / "c")
    values = yaml.safe_load((run / "workflow.yaml").read_text())
    (run / "workflow.yaml").write_text(yaml.safe_dump(values | {"keep": ["segmentation", "fragments"]}))
    found = neuroshed.clean(run)
    assert found["by_reason"] == {INTERMEDIATE: size + labels}
    assert not any(path.exists() for path in tables)
    again = neuroshed.run("stitch", given)
    assert again["restored_blocks"] == sum(row["done"] for row in again["stages"].values())
    assert again["segmentations"] == kept["segmentations"]


def test_intermediates_that_should_have_gone_go(tmp_path: Path) -> None:
    def forget(self: Any, step: str, index: Vec) -> None:
        """The coordinator died before it deleted what it had noted as dropped."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "drop", forget)
        neuroshed.run("stitch", settings(tmp_path, "keep=[segmentation]"))
    run = tmp_path / "run"
    left = [path for path in run.rglob("*.parquet") if not path.parts[-3].startswith("segment-")]
    assert left
    found = neuroshed.clean(run)
    assert [*found["by_reason"]] == [INTERMEDIATE]
    assert not any(path.exists() for path in left)
    assert neuroshed.clean(run)["finds"] == []


def test_intermediates_that_a_crash_left_go_when_the_run_goes_on(tmp_path: Path) -> None:
    def forget(*order: Any) -> None:
        """The coordinator died before it deleted what it had noted as dropped, or noted its own end."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "drop", forget)
        patch.setattr(Journal, "_end", forget)
        neuroshed.run("stitch", settings(tmp_path, "keep=[segmentation]"))
    run = tmp_path / "run"
    left = [path for path in run.rglob("*.parquet") if not path.parts[-3].startswith("segment-")]
    assert left
    again = neuroshed.resume(run)
    assert again["restored_blocks"] == sum(row["done"] for row in again["stages"].values())
    assert not any(path.exists() for path in left)
    assert neuroshed.clean(run)["finds"] == []


def test_the_command_asks(run: Path) -> None:
    def call(*words: str, answer: str = "") -> Any:
        return CliRunner().invoke(main, ["clean", str(run), *words], input=answer)

    dry = call("--dry-run")
    assert dry.exit_code == 0
    assert "in all" in dry.stdout
    assert all(name in dry.stdout for name in superseded(run))
    no = call(answer="n\n")
    assert "nothing was removed" in no.stdout
    assert (run / superseded(run)[0]).exists()
    assert "cannot ask" in call("--json").stderr
    yes = call("--yes", "--json")
    assert json.loads(yes.stdout)["removed"] is True
    assert not (run / superseded(run)[0]).exists()
    assert "nothing to remove" in call().stdout

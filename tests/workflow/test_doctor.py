"""What `neuroshed doctor` finds wrong with workers, one line each with a remedy, and that it leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from distributed import LocalCluster

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import WorkflowError
from neuroshed.workflow import doctor as module
from neuroshed.workflow.examine import Findings, examine

CHECKS = ["connects", "versions", "reads", "writes", "memory", "disk", "clock", "open files"]


def call(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--cluster", "in-process:1", "--output", str(folder), *words])


def test_nothing_is_wrong_with_this_machine(tmp_path: Path) -> None:
    report = neuroshed.doctor("in-process:1", tmp_path)
    assert [line["check"] for line in report["lines"]] == CHECKS
    wrong = [line for line in report["lines"] if not line["ok"] and line["check"] not in ("disk", "open files")]
    assert not wrong
    assert not list(tmp_path.iterdir())
    assert all(line["told"] for line in report["lines"])


def test_in_a_bucket_too(bucket: str) -> None:
    lines = {line["check"]: line for line in neuroshed.doctor("in-process:1", f"{bucket}/runs")["lines"]}
    assert lines["reads"]["ok"]
    assert lines["writes"]["ok"]


Change = Callable[[Findings], Findings]
FAULTS: dict[str, tuple[Change, str, str]] = {
    "versions": (
        lambda found: replace(found, versions=found.versions | {"torch": "1.0"}),
        "torch 1.0 (here ",
        "install the same there",
    ),
    "reads": (lambda found: replace(found, read="no such file"), "(no such file)", "mount the same file system"),
    "writes": (lambda found: replace(found, wrote="read-only"), "(read-only)", "mount the same file system"),
    "clock": (lambda found: replace(found, time=time.time() - 100), "s off", "NTP"),
    "disk": (lambda found: replace(found, scratch_bytes=1), "0.0 GB free in ", "TMPDIR"),
    "open files": (lambda found: replace(found, open_files=256), "256", "ulimit -n 4096"),
}


@pytest.mark.parametrize("check", FAULTS)
def test_each_fault_is_told_with_its_remedy(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, told, remedy = FAULTS[check]
    healthy = {"scratch_bytes": 10**12, "open_files": 10**5}

    def changed(*args: Any) -> Findings:
        return change(replace(examine(*args), **healthy))

    monkeypatch.setattr(module, "examine", changed)
    result = call(tmp_path)
    assert result.exit_code == 1, result.output
    (line,) = [number for number, line in enumerate(result.stdout.splitlines()) if line.startswith("FAIL")]
    assert check in result.stdout.splitlines()[line]
    assert told in result.stdout.splitlines()[line]
    assert remedy in result.stdout.splitlines()[line + 1]


def test_what_a_worker_writes_must_be_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def apart(folder: str, word: str, name: str) -> Findings:
        (elsewhere / "asked").write_text("of another file system")
        return examine(str(elsewhere), word, name)

    monkeypatch.setattr(module, "examine", apart)
    lines = {line["check"]: line for line in neuroshed.doctor("in-process:1", tmp_path / "runs")["lines"]}
    assert "it holds 'of another file system'" in lines["reads"]["told"]
    assert "not to be seen here" in lines["writes"]["told"]


def test_what_is_no_cluster_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"'mesos' is no cluster: .*'slurm'"):
        neuroshed.doctor("mesos", tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkflowError, match=r"folder .*file cannot be written here"):
        neuroshed.doctor("in-process:1", tmp_path / "file")


def test_a_pool_of_which_no_worker_comes_is_told_with_the_place_of_its_output(tmp_path: Path) -> None:
    pools = {"cpu": {"memory_gb": 1, "workers": 1}}
    site = tmp_path / "site.yaml"
    site.write_text(str({"kind": "gpus", "pools": pools}))
    report = neuroshed.doctor(str(site), tmp_path / "runs", seconds=0)
    ((line,), faults) = report["lines"], report["faults"]
    assert (line["pool"], line["check"], line["ok"], faults) == ("cpu", "connects", False, 1)
    place = Path(line["told"].rpartition(" in ")[2])
    assert place.is_dir()


@pytest.mark.system
def test_a_worker_without_neuroshed_is_told_as_such(tmp_path: Path) -> None:
    preload = tmp_path / "without.py"
    preload.write_text("import sys\nsys.modules['neuroshed'] = None\n")
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", preload=[str(preload)]
    ) as cluster:
        report = neuroshed.doctor(cluster.scheduler_address, tmp_path)
    (line,) = report["lines"]
    assert (line["check"], line["ok"], report["faults"]) == ("imports neuroshed", False, 1)
    assert "neuroshed" in line["told"]
    assert "install neuroshed there" in line["remedy"]

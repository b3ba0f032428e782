"""The runs of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, RunFailedError

from .held import BLOCKS, failing, halted, settings


def test_each_run_has_a_line(tmp_path: Path) -> None:
    given = settings(tmp_path)
    neuroshed.run("stitch", [*given, f"output={tmp_path / 'a'}"])
    with failing((1, 1, 3)), pytest.raises(RunFailedError):
        neuroshed.run("stitch", [*given, f"output={tmp_path / 'b'}"])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "plan.json").write_text("[")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("")
    with halted(given):
        rows = neuroshed.runs(tmp_path)
        by_name = {row["name"]: row for row in rows}
        result = CliRunner().invoke(main, ["runs", str(tmp_path)])
        quick = CliRunner().invoke(main, ["runs", str(tmp_path), "--json"])
    assert list(by_name) == ["a", "b", "c", "run"]
    assert (by_name["a"]["state"], by_name["a"]["done"], by_name["a"]["blocks"]) == ("done", BLOCKS, BLOCKS)
    assert by_name["a"]["holder"] is None
    assert by_name["a"]["started"] < by_name["a"]["changed"] <= by_name["b"]["started"]
    assert (by_name["b"]["state"], by_name["b"]["failed"]) == ("failed", 1)
    assert by_name["c"]["state"] == "unreadable"
    assert "plan.json is damaged" in by_name["c"]["error"]
    assert by_name["run"]["state"] == "running"
    assert "process" in by_name["run"]["holder"]
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:5]] == ["a", "b", "c", "run"]
    assert "is damaged" in result.stdout
    assert [row["name"] for row in json.loads(quick.stdout)] == list(by_name)


def test_no_runs_and_no_folder(tmp_path: Path) -> None:
    assert neuroshed.runs(tmp_path) == []
    assert "no runs here" in CliRunner().invoke(main, ["runs", str(tmp_path)]).stdout
    with pytest.raises(InputError, match="there is no folder"):
        neuroshed.runs(tmp_path / "nowhere")

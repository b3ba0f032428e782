"""Figures for Prometheus, and word of a run's end and of its failures to a command and a webhook."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import neuroshed
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.workflow.monitor import STATES

from .commands import free_port, wait_until
from .held import failing, halted, settings

NOTE = "import os, sys; open(sys.argv[1], 'a').write(os.environ['NEUROSHED_EVENT'] + ' ' + sys.stdin.read() + '\\n')"


def news(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """What a command was told, in order."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.partition(" ")[0], json.loads(line.partition(" ")[2])) for line in lines]


def command(file: Path) -> str:
    return f"monitor.command={json.dumps([sys.executable, '-c', NOTE, str(file)])}"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes what is posted, and its address."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/T0KEN", taken
    server.shutdown()
    thread.join()
    server.server_close()


def read(port: int) -> dict[tuple[str, ...], float]:
    """All figures, by name and labels but the run."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, *(value for label, value in sample.labels.items() if label != "run")): sample.value
        for sample in samples
    }


def test_prometheus_reads_blocks_by_stage_and_state(tmp_path: Path) -> None:
    port = free_port()
    with halted([*settings(tmp_path), f"monitor.port={port}"]) as (future, go_on):
        found = wait_until(lambda: (f := read(port)) and f.get(("neuroshed_workers", "all", "connected")) and f)
        status = neuroshed.status(tmp_path / "run")
        for stage, row in status["stages"].items():
            counts = {state: found["neuroshed_blocks", stage, state] for state in STATES}
            assert sum(counts.values()) == row["blocks"]
            assert ("neuroshed_voxels_per_second", stage) in found
        assert found["neuroshed_retries_total",] == found["neuroshed_failures_total",] == 0
        assert found["neuroshed_threads",] >= 1
        go_on.set()
        future.result(60)
    with pytest.raises(OSError, match="refused"):
        read(port)


def test_a_port_that_is_taken_is_told_before_anything_runs(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(WorkflowError, match=r"nothing can listen on 127.0.0.1:\d+ .*choose another port"):
            neuroshed.run("stitch", [*settings(tmp_path), f"monitor.port={taken.getsockname()[1]}"])


def test_the_end_is_told_to_a_command_and_a_webhook_and_the_address_is_written_nowhere(
    tmp_path: Path, hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, taken = hook
    monkeypatch.setenv("LAB_HOOK", url)
    neuroshed.run("stitch", [*settings(tmp_path), command(tmp_path / "news"), "monitor.webhook=LAB_HOOK"])
    ((event, told),) = news(tmp_path / "news")
    assert taken == [told]
    assert (event, told["event"], told["run"], told["failed"]) == ("done", "done", str(tmp_path / "run"), 0)
    assert all(row["done"] == row["blocks"] for row in told["stages"].values())
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"T0KEN" not in file.read_bytes(), file


def test_failures_are_told_once_they_pass_the_limit_and_then_the_end(
    tmp_path: Path,
) -> None:
    with failing((0, 0, 1), (1, 1, 1)), pytest.raises(RunFailedError):
        neuroshed.run("stitch", [*settings(tmp_path), command(tmp_path / "news"), "monitor.failures=2"])
    assert [event for event, _ in news(tmp_path / "news")] == ["failures", "failed"]
    assert "blocks failed" in news(tmp_path / "news")[0][1]["text"]


def test_ctrl_c_is_told_as_an_end_that_was_asked_for(tmp_path: Path) -> None:
    def interrupted(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        neuroshed.run("stitch", [*settings(tmp_path), command(tmp_path / "news")], interrupted)
    assert [(event, told["text"]) for event, told in news(tmp_path / "news")] == [("stopped", "KeyboardInterrupt")]


def test_what_goes_wrong_in_telling_harms_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAB_HOOK", "http://127.0.0.1:1/T0KEN")
    summary = neuroshed.run(
        "stitch", [*settings(tmp_path), "monitor.webhook=LAB_HOOK", "monitor.command=[/no/such/program]"]
    )
    assert summary["status"] == "done"
    warnings = [record.message for record in caplog.records if "nobody could be told" in record.message]
    assert len(warnings) == 2
    assert not any("T0KEN" in warning for warning in warnings)


def test_a_webhook_without_a_url_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="no environment variable NO_SUCH_HOOK"):
        neuroshed.run("stitch", [*settings(tmp_path), "monitor.webhook=NO_SUCH_HOOK"])


def test_the_dashboard_shows_every_figure_and_no_other(tmp_path: Path) -> None:
    port = free_port()
    with halted([*settings(tmp_path), f"monitor.port={port}"]) as (_, go_on):
        wait_until(lambda: read(port).get(("neuroshed_workers", "all", "connected")))
        there = {name for name, *_ in read(port)}
        go_on.set()
    dashboard = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"neuroshed_\w+", target["expr"])
    }
    # Known only once blocks have shown how long they take.
    assert shown == there | {"neuroshed_seconds_left"}

"""A job says of each of its blocks how it went, and what led to a failure."""

from __future__ import annotations

import errno
import itertools
import logging
import pickle
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuroshed.engine import capture, worker
from neuroshed.engine.worker import Job, Report, run_job
from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Step
from neuroshed.stages.imports import Import
from neuroshed.stages.registry import save_stage, stage_digest
from neuroshed.storage.volumes import open_volume

GRID = Grid(Box((2, 4, 0), (6, 10, 9)), (2, 3, 4))
FIRST = GRID.index(0)
Run = Callable[[Vec], Done]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """A job of all blocks of `GRID`, each of which is run by the given function."""

    def make(run: Run, *positions: int, **options: Any) -> Job:
        stage = SimpleNamespace(
            title="made up", steps=(Step("other", Grid(Box((0, 0, 0), (1, 1, 1)), (1, 1, 1))), Step("up0", GRID))
        )

        def run_step(step: str, index: Vec) -> Done:
            assert step == "up0"
            return run(index)

        stage.run = run_step
        stage.check_outputs = options.pop("check_outputs", None)
        monkeypatch.setattr(worker, "load_stage", lambda path, digest: stage)
        return Job("nowhere/stage.json", uuid.uuid4().hex, "up0", positions or tuple(range(len(GRID))), **options)

    return make


def position(index: Vec) -> int:
    return list(GRID).index(index)


def voxels(index: Vec) -> Done:
    return Done(GRID.block_box(index).size)


def test_blocks_are_those_at_the_places_asked_for(job: Callable[..., Job]) -> None:
    seen: list[Vec] = []

    def run(index: Vec) -> Done:
        seen.append(index)
        return voxels(index)

    report = run_job(job(run, 5, 0, 11))
    assert seen == [list(GRID)[place] for place in (5, 0, 11)]
    assert report.done == (5, 0, 11)
    assert report.failed == ()
    assert report.figures == {"voxels": sum(GRID.block_box(index).size for index in seen)}
    assert report.host == socket.gethostname()
    assert run_job(job(voxels)).figures == {"voxels": GRID.box.size}


def test_figures_are_added_up_in_any_order(job: Callable[..., Job]) -> None:
    figures: list[dict[str, float]] = [
        {"edges": 2.0, "largest_voxels": 7, "largest_segment": 2**63 + 5},
        {"edges": 3.0, "merges": 1.0},
        {"largest_voxels": 9, "largest_segment": 2**63 + 3},
        {"largest_voxels": 9, "largest_segment": 2**63 + 2},
    ]

    def run(index: Vec) -> Done:
        if position(index) == 4:
            raise BlockError("its figures do not count")
        return Done(10, figures[position(index)])

    for order in itertools.permutations(range(4)):
        report = run_job(job(run, *order, 4))
        # Of equal segments the one of the smaller id; ids keep all their digits.
        assert report.figures == {"voxels": 40, "edges": 5.0, "merges": 1.0, "largest": [9, 2**63 + 2]}
    assert run_job(job(run, 1)).figures == {"voxels": 10, "edges": 3.0, "merges": 1.0}
    assert run_job(job(run, 4)).figures == {"voxels": 0}


def test_a_block_that_fails_stops_no_other(job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        if position(index) % 3 == 0:
            raise BlockError(f"no result for {index}\nand a second line")
        return voxels(index)

    report = run_job(job(run))
    bad = [place for place in range(len(GRID)) if place % 3 == 0]
    assert list(report.done) == [place for place in range(len(GRID)) if place % 3]
    assert [failed.position for failed in report.failed] == bad
    for failed in report.failed:
        assert failed.error == f"BlockError: no result for {GRID.index(failed.position)}"
        assert failed.trace.startswith("Traceback")
        assert "in run\n" in failed.trace
        assert "and a second line" in failed.trace
        assert not failed.disk_full


class PanicError(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize("error", [PanicError("index out of range"), MemoryError("too much"), AssertionError()])
def test_errors_of_any_kind_are_of_their_block_alone(error: BaseException, job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        if position(index) == 1:
            raise error
        return voxels(index)

    report = run_job(job(run, 0, 1, 2))
    assert report.done == (0, 2)
    assert report.failed[0].error == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_no_failure(error: type[BaseException], job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        raise error

    before = state()
    with pytest.raises(error):
        run_job(job(run))
    assert state() == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_ends_the_job(code: int, wrapped: bool, job: Callable[..., Job]) -> None:
    tried = []

    def run(index: Vec) -> Done:
        tried.append(position(index))
        if position(index) != 2:
            return voxels(index)
        try:
            raise OSError(code, "no space")
        except OSError as error:
            if wrapped:
                raise BlockError("cannot be written") from error
            raise

    report = run_job(job(run, 0, 1, 2, 3, 4))
    assert report.done == (0, 1)
    assert [failed.position for failed in report.failed] == [2]
    assert report.failed[0].disk_full
    assert tried == [0, 1, 2]


def test_other_errors_of_the_file_system_do_not(job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        raise OSError(errno.EIO, "a bad disk")

    report = run_job(job(run))
    assert len(report.failed) == len(GRID)
    assert not any(failed.disk_full for failed in report.failed)


def test_seconds_are_those_of_the_blocks(job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        time.sleep(0.1 * position(index))
        if position(index) == 3:
            raise BlockError("")
        return voxels(index)

    report = run_job(job(run, 0, 1, 2, 3))
    assert report.seconds >= 0.3
    assert report.failed[0].seconds >= 0.3
    assert report.seconds + report.failed[0].seconds <= report.busy
    assert run_job(job(run, 0)).seconds < 0.3


def test_a_late_block_is_told(job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        time.sleep(0.1 if position(index) == 1 else 0)
        return voxels(index)

    report = run_job(job(run, 0, 1, 2, seconds=0.05))
    assert report.done == (0, 2)
    assert f"made up up0 {list(GRID.index(1))} took" in report.failed[0].error


def test_outputs_are_checked_if_asked(job: Callable[..., Job]) -> None:
    checked = []

    def check(step: str, index: Vec) -> None:
        checked.append((step, index))
        if position(index) == 1:
            raise BlockError("a damaged file")

    report = run_job(job(voxels, 0, 1, 2, check=True, check_outputs=check))
    assert checked == [("up0", GRID.index(place)) for place in range(3)]
    assert report.done == (0, 2)
    assert report.failed[0].error == "BlockError: a damaged file"
    run_job(job(voxels, check_outputs=check))
    assert len(checked) == 3


def test_blocks_are_read_back_if_asked(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    inside = []
    depth = 0

    @contextmanager
    def reading_back() -> Iterator[None]:
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    def run(index: Vec) -> Done:
        inside.append(depth)
        return voxels(index)

    monkeypatch.setattr(worker, "reading_back", reading_back)
    run_job(job(run, 0, 1, verify=True))
    run_job(job(run, 0))
    assert inside == [1, 1, 0]
    assert depth == 0


def state() -> tuple[Any, ...]:
    """What a job must leave as it was."""
    ours = logging.getLogger("neuroshed")
    return [*logging.getLogger().handlers], warnings.showwarning, ours.level, ours.handlers, threading.active_count()


def shout(text: str) -> None:
    """One record of each kind."""
    logging.getLogger("zarr.core").warning("zarr %s", text)
    logging.getLogger("zarr.core").info("zarr in passing")
    logging.getLogger("neuroshed.stages").info("ours %s", text)
    logging.getLogger("neuroshed.stages").debug("ours in detail")
    logging.getLogger("neuroshedding").info("somebody else's")
    warnings.warn(f"python {text}", UserWarning, stacklevel=1)


@pytest.fixture
def in_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Log as in a worker process."""
    monkeypatch.setattr(capture, "is_worker", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.mark.usefixtures("in_worker")
@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
def test_a_failure_comes_with_what_was_logged(
    level: int, job: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level)

    def run(index: Vec) -> Done:
        shout(str(index))
        if position(index) == 1:
            raise BlockError("")
        return voxels(index)

    before = state()
    report = run_job(job(run, 0, 1, 2))
    assert state() == before
    index = GRID.index(1)
    zarr, ours, python, *source = report.failed[0].log
    assert zarr.endswith(f"WARNING zarr.core: zarr {index}")
    assert ours.endswith(f"INFO neuroshed.stages: ours {index}")
    assert f"UserWarning: python {index}" in python
    assert len(source) <= 2


@pytest.mark.usefixtures("in_worker")
def test_only_the_last_lines_are_kept_and_none_is_endless(job: Callable[..., Job]) -> None:
    def run(index: Vec) -> Done:
        for number in range(50):
            logging.getLogger("neuroshed.x").info("%s\n%s", number, "long " * 1000)
        raise BlockError("")

    (failed,) = run_job(job(run, 0)).failed
    assert len(failed.log) == 30
    assert [line.rpartition(" ")[2] for line in failed.log[::2]] == [str(number) for number in range(35, 50)]
    assert max(map(len, failed.log)) == 400


@pytest.mark.usefixtures("in_worker")
@pytest.mark.parametrize("in_step", [True, False])
def test_threads_keep_their_lines_apart(in_step: bool, job: Callable[..., Job]) -> None:
    number, lines, jobs = 6, 20, 30
    together = threading.Barrier(number)
    reports: dict[str, list[Report]] = {f"thread-{n}": [] for n in range(number)}

    def run(index: Vec) -> Done:
        name = threading.current_thread().name
        for line in range(lines):
            if in_step:
                together.wait(60)
            logging.getLogger("neuroshed.x").info("%s %s", name, line)
        raise BlockError("")

    # Out of step, some end their last job for now while others begin one.
    sent = job(run, *range(2))

    def work() -> None:
        for _ in range(1 if in_step else jobs):
            reports[threading.current_thread().name].append(run_job(sent))

    before = state()
    threads = [threading.Thread(target=work, name=name) for name in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert state() == before
    for name, found in reports.items():
        assert len(found) == (1 if in_step else jobs)
        for failed in (failed for report in found for failed in report.failed):
            assert failed.error == "BlockError: "
            assert [text.partition("x: ")[2] for text in failed.log] == [f"{name} {line}" for line in range(lines)]


def test_in_a_users_own_process_nothing_more_is_logged(
    job: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    def run(index: Vec) -> Done:
        logging.getLogger("neuroshed.x").info("unasked")
        logging.getLogger("neuroshed.x").warning("bad")
        raise BlockError("")

    (failed,) = run_job(job(run, 0)).failed
    assert [line[9:] for line in failed.log] == ["WARNING neuroshed.x: bad"]
    assert caplog.messages == ["bad"]
    with caplog.at_level(logging.INFO):
        (failed,) = run_job(job(run, 0)).failed
    assert len(failed.log) == 2


def test_warnings_reach_the_user_as_without_a_job(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(index: Vec) -> Done:
        shout("loud")
        return voxels(index)

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_job(job(run, 0))
    text = capsys.readouterr().err
    assert "zarr loud" in text
    assert "UserWarning: python loud" in text
    assert "passing" not in text


def test_nothing_is_written_beside_a_users_own_log(
    job: Callable[..., Job], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(index: Vec) -> Done:
        logging.getLogger("zarr.core").warning("loud")
        return voxels(index)

    run_job(job(run, 0))
    assert caplog.messages == ["loud"]
    assert capsys.readouterr().err == ""


def test_a_users_own_capture_of_warnings_stays(job: Callable[..., Job]) -> None:
    before = warnings.showwarning
    logging.captureWarnings(True)
    try:
        captured = warnings.showwarning
        run_job(job(voxels))
        assert warnings.showwarning is captured
    finally:
        logging.captureWarnings(False)
    assert warnings.showwarning is before


def test_a_record_that_cannot_be_written_harms_no_block(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(index: Vec) -> Done:
        logging.getLogger("neuroshed.x").warning("%d", "no number")
        return voxels(index)

    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run_job(job(run, 0)).done == (0,)


@pytest.fixture
def stage(tmp_path: Path) -> Import:
    """A real stage of 8 blocks."""
    np.save(tmp_path / "a.npy", np.random.default_rng(1).integers(0, 255, (8, 10, 12), np.uint8))
    stage = Import.of(tmp_path / "run", tmp_path / "a.npy", "a.zarr", (1.0, 1.0, 1.0), block_shape=(4, 8, 8))
    stage.prepare()
    return stage


def test_a_real_stage_is_loaded_by_its_file(stage: Import) -> None:
    path = save_stage(stage)
    sent = pickle.loads(pickle.dumps(Job(str(path), stage_digest(path), "", tuple(range(8)))))
    report = pickle.loads(pickle.dumps(run_job(sent)))
    assert report.done == tuple(range(8))
    assert report.figures == {"voxels": 8 * 10 * 12}
    volume = open_volume(stage.target)
    np.testing.assert_array_equal(volume.read(volume.box), np.load(stage.source.local))


def test_a_stage_that_cannot_be_loaded_fails_every_block(stage: Import, tmp_path: Path) -> None:
    path = save_stage(stage)
    for file, digest, word in ((path, "0" * 64, "not what the coordinator wrote"), (tmp_path / "none", "", "missing")):
        report = run_job(Job(str(file), digest, "", (0, 1)))
        assert report.done == ()
        assert [failed.position for failed in report.failed] == [0, 1]
        assert all(failed.error.startswith("InputError: ") and word in failed.error for failed in report.failed)
    # It is looked at anew when it is there.
    assert run_job(Job(str(path), stage_digest(path), "", (0,))).done == (0,)


def test_a_report_names_its_worker(stage: Import) -> None:
    from distributed import Client, LocalCluster

    path = save_stage(stage)
    sent = Job(str(path), stage_digest(path), "", (0,))
    with (
        LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert client.submit(run_job, sent).result().worker == "0"
    assert run_job(sent).worker.startswith("process ")

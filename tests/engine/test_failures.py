"""What is kept of blocks that fail: of the first and of each new kind all, of others a line and where to look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroshed.engine import failures as module
from neuroshed.engine.attempts import FailureOptions
from neuroshed.engine.books import Books, Work
from neuroshed.engine.coordinator import restore
from neuroshed.engine.failures import ERROR_LENGTH, TRACE_LENGTH, Kinds, bounded_trace, error_line
from neuroshed.engine.progress import Failure, Progress
from neuroshed.engine.worker import Failed, Report
from neuroshed.stages.imports import Import
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.locations import Location
from neuroshed.workflow import summary
from neuroshed.workflow.summary import Summary, stage_rows, summarise


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_FAILURES", 3)
    monkeypatch.setattr(module, "KINDS_KNOWN", 4)


def told(kinds: Kinds, errors: list[str], stage: str = "a") -> list[int | None]:
    """For each error the place of the one that it is like."""
    found = [kinds.like(stage, "up0", (0, 0, place), error) for place, error in enumerate(errors)]
    assert all(like is None or like[0] == "up0" for like in found)
    return [None if like is None else like[1][2] for like in found]


def test_the_first_of_a_stage_and_of_each_kind_are_kept() -> None:
    kinds = Kinds()
    errors = ["E: block 1 of 9"] * 4 + ["E: block 77 of 8", "E: no block", "E: no block", "F: block 1 of 9"]
    assert told(kinds, errors) == [None, None, None, 0, 0, None, 5, None]
    # Of another stage none is known.
    assert told(kinds, ["E: block 1 of 9"] * 4, "b") == [None, None, None, 0]


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("E: block [0, 1, 2]", "E: block [10, 11, 12]", True),
        ("E: 1.5e-07 of -3", "E: 20.25e-17 of -4444", True),
        ("E: at 0x7f3a2b", "E: at 0xdeadbe", True),
        ("E: affinities-0123456789ab missing", "E: affinities-ba98765ffff0 missing", True),
        ("E: no space left", "E: no place left", False),
        ("E: 3 blocks", "F: 3 blocks", False),
        ("E: defaced", "E: effaced", False),
    ],
)
def test_numbers_make_no_difference(first: str, second: str, alike: bool) -> None:
    found = told(Kinds(), ["E: x", "E: y", first, second])
    assert found == [None, None, None, 2 if alike else None]


def test_kinds_without_end_are_told_apart_by_their_type_only() -> None:
    words = ["".join(pair) for pair in zip("abcdefghij" * 10, "q" * 10 + "r" * 10 + "stuvwxyz" * 10, strict=True)]
    errors = [f"E: {word}" for word in words[:50]] + ["F: a", "F: b"]
    assert told(Kinds(), errors) == [None] * 4 + [0] * 46 + [None, 50]


def test_very_long_errors_and_traces_are_cut_and_say_so() -> None:
    assert error_line("") == ""
    whole = "x" * ERROR_LENGTH
    assert error_line(f"{whole}\nmore") == whole
    assert error_line(f"{whole}yyy\nmore") == f"{whole}... (3 more characters)"
    whole = "head" + "x" * (TRACE_LENGTH - 8) + "tail"
    assert bounded_trace(whole) == whole
    cut = bounded_trace(f"first{'-' * 10_000}{whole}")
    assert cut.startswith("first---")
    assert cut.endswith("xxxtail")
    assert "\n... 10,005 characters left out ...\n" in cut
    assert len(cut) < TRACE_LENGTH + 50


def books_of(journal: Journal, folder: Path) -> tuple[Books, Import]:
    """Of a stage of 48 blocks, each of which is tried once."""
    if not (folder / "a.npy").exists():
        np.save(folder / "a.npy", np.zeros((4, 4, 3), np.uint8))
    stage = Import.of(journal.run_folder, folder / "a.npy", "a.zarr", (1.0, 1.0, 1.0), block_shape=(1, 1, 1))
    readiness, progress, _ = restore(journal.ledger, [stage])
    return Books(journal, [stage], readiness, progress, FailureOptions(attempts=1), lambda key, positions: None), stage


def fail(books: Books, stage: Import, error: str, number: int) -> None:
    key = (stage.fingerprint, "")
    positions = books.readiness.take(key, number).tolist()
    assert len(positions) == number
    failed = [Failed(at, f"{error} {at}", f"Traceback of {at}", (f"try {at}",), False, 0.1) for at in positions]
    report = Report((), 0.0, {"voxels": 0}, tuple(failed), "gpu003", "3", 1.0)
    books.report([(Work(key, tuple(positions)), report)])


def test_the_journal_says_of_each_failure_what_is_kept_of_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "run") as journal:
        books, stage = books_of(journal, tmp_path)
        fail(books, stage, "E: no", 20)
        fail(books, stage, "F: no", 20)
        progress = books.progress
        progress.stages = books.readiness.counts()
        found = list(progress.failures)
        row = stage_rows(progress)[stage.title]
    assert (row["failed"], len(found), progress.failed[stage.title]) == (40, 40, 40)
    whole = [failure for failure in found if failure.like is None]
    assert whole == [*found[:3], found[20]]
    for failure in found:
        assert failure.error in (f"E: no {at}" for at in range(48)) or failure.error.startswith("F: no ")
        place = failure.error.rpartition(" ")[2]
        kept = (f"Traceback of {place}", (f"try {place}",)) if failure in whole else ("", ())
        assert (failure.trace, failure.log) == kept
    assert {failure.like for failure in found[3:20]} == {("", found[0].index)}
    assert {failure.like for failure in found[21:]} == {("", found[20].index)}
    _, again, _ = restore(read_ledger(tmp_path / "run"), [stage])
    assert again.failures == found
    assert again.failed == progress.failed


def test_the_next_session_keeps_the_first_ones_anew(tmp_path: Path) -> None:
    for known in (0, 5):
        with Journal(tmp_path / "run") as journal:
            books, stage = books_of(journal, tmp_path)
            assert len(books.progress.failures) == known
            fail(books, stage, "E: no", 5)
            found = books.progress.failures[known:]
            assert [failure.like is None for failure in found] == [True, True, True, False, False]


def test_what_a_dead_worker_left_is_bounded_too(tmp_path: Path) -> None:
    with Journal(tmp_path / "run") as journal:
        books, stage = books_of(journal, tmp_path)
        key = (stage.fingerprint, "")
        (at,) = books.readiness.take(key, 1).tolist()
        for _ in range(FailureOptions().worker_deaths):
            books.died(Work(key, (at,)), "E" * 10_000, "T" * 100_000, "tcp://9", "gpu003")
        (failure,) = books.progress.failures
    assert len(failure.error) < ERROR_LENGTH + 50
    assert len(failure.trace) < TRACE_LENGTH + 50


def summary_of(folder: Path, failures: list[Failure]) -> Summary:
    progress = Progress({}, {})
    progress.add(failures)
    return summarise(Location.of(folder), (), progress)


def test_a_summary_tells_so_many_failures_and_how_many_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "FAILURES_TOLD", 5)
    like = ("", (0, 0, 1))
    failures = [Failure("a", "", (0, 0, n), f"E {n}", "", like=None if n in (1, 7) else like) for n in range(20)]
    for number in (0, 5):
        found = summary_of(tmp_path, failures[:number])
        assert (len(found["failures"]), found["failures_left_out"]) == (number, 0)
    found = summary_of(tmp_path, failures)
    # Those that others are like, and the last.
    assert [row["block"][2] for row in found["failures"]] == [1, 7, 17, 18, 19]
    assert found["failures"][2]["like"] == {"step": "", "block": [0, 0, 1]}
    assert found["failures"][1]["like"] is None
    assert found["failures_left_out"] == 15
    found = summary_of(tmp_path, [Failure("a", "", (0, 0, n), "E", "t") for n in range(7)])
    assert [row["block"][2] for row in found["failures"]] == [0, 1, 2, 3, 4]
    assert found["failures_left_out"] == 2

"""The journal keeps what it took, drops a torn tail, refuses a second writer, and never hides damage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.journal import Journal, read_journal

EVENTS = [{"stage": "a" * 64, "step": "up0", "block": [0, 1, n], "state": "done", "note": "ä\n"} for n in range(5)]


def write(folder: Path, events: list[dict[str, Any]]) -> Path:
    """One session; returns its segment."""
    with Journal(folder) as journal:
        journal.append(events)
    return max((folder / "journal").glob("*.log"))


def test_a_run_that_never_started_has_no_events(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path)) == []


def test_sessions_are_read_in_order(tmp_path: Path) -> None:
    for event in EVENTS:
        write(tmp_path, [event])
    with Journal(tmp_path) as journal:
        for event in EVENTS:
            journal.append([event])
        journal.append([])
    assert list(read_journal(tmp_path)) == EVENTS * 2


def test_more_than_nine_sessions_keep_their_order(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, [{"number": number}])
    assert [event["number"] for event in read_journal(tmp_path)] == list(range(12))


def test_a_torn_tail_is_dropped_wherever_it_is_cut(tmp_path: Path) -> None:
    write(tmp_path, EVENTS[:1])
    segment = write(tmp_path, EVENTS[1:])
    whole = segment.read_bytes()
    ends = [position for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        segment.write_bytes(whole[:cut])
        # A line that lacks nothing but its end is whole.
        kept = sum(end <= cut for end in ends)
        assert list(read_journal(tmp_path)) == EVENTS[: 1 + kept]


def test_a_session_after_a_torn_one_goes_on(tmp_path: Path) -> None:
    segment = write(tmp_path, EVENTS[:2])
    segment.write_bytes(segment.read_bytes()[:-7])
    write(tmp_path, EVENTS[2:])
    assert list(read_journal(tmp_path)) == [EVENTS[0], *EVENTS[2:]]


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("place", [0, 5, 9, 40, -2])
def test_damage_before_the_end_is_an_error(line: int, place: int, tmp_path: Path) -> None:
    segment = write(tmp_path, EVENTS)
    lines = segment.read_bytes().splitlines(keepends=True)
    damaged = bytearray(lines[line])
    damaged[place] ^= 0x04
    segment.write_bytes(b"".join([*lines[:line], bytes(damaged), *lines[line + 1 :]]))
    with pytest.raises(InputError) as caught:
        list(read_journal(tmp_path))
    assert f"{segment} is damaged at line {line + 1}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_writer_is_refused_by_name_and_readers_are_not(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(EVENTS[:1])
        with pytest.raises(WorkflowError, match=f"worked on by process {os.getpid()} on .+; wait for it or stop it"):
            Journal(tmp_path).__enter__()
        assert list(read_journal(tmp_path)) == EVENTS[:1]
        journal.append(EVENTS[1:])
    assert list(read_journal(tmp_path)) == EVENTS
    write(tmp_path, EVENTS[:1])


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from neuroshed.storage.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])).__enter__(); journal.append([{'number': 1}])\n"
        "print('held', flush=True); os.read(0, 1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WorkflowError, match=f"process {holder.pid} on"):
            Journal(tmp_path).__enter__()
        holder.kill()
    write(tmp_path, [{"number": 2}])
    assert [event["number"] for event in read_journal(tmp_path)] == [1, 2]


def test_a_write_that_fails_is_not_made_later(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(EVENTS[:1])
        # A descriptor that cannot be written stands in for a full disk.
        reading = os.open(tmp_path / "journal" / "000001.log", os.O_RDONLY)
        os.dup2(reading, journal._segment.fileno())
        os.close(reading)
        with pytest.raises(OSError, match="Bad file descriptor"):
            journal.append(EVENTS[1:])
    assert list(read_journal(tmp_path)) == EVENTS[:1]
    write(tmp_path, EVENTS[1:])
    assert list(read_journal(tmp_path)) == EVENTS

"""A torn tail is dropped, damage is never hidden, and older formats are read."""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path

import pytest

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid
from neuroshed.storage import journal as module
from neuroshed.storage import segments as reading
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.lease import holder_of
from neuroshed.storage.ledger import Event, Ledger
from neuroshed.storage.locations import Location
from neuroshed.storage.segments import Content, Segment, encode
from tests.storage.conftest import Client
from tests.storage.records import GRID, STAGE, done, overwrite, positions_in, recorded, segments, small, write


def test_a_torn_tail_is_dropped_wherever_it_is_cut(client: Client) -> None:
    write(client(), [0])
    if segments(client())[0].is_local:
        write(client(), range(1, 5))
    else:
        with Journal(client()) as journal:
            journal.append([done(position) for position in range(1, 5)])
    segment = next(found for found in segments(client()) if b'"at":[4]' in found.read_bytes())
    for later in segments(client())[segments(client()).index(segment) + 1 :]:
        later.delete()
    whole = segment.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n") and b'"done"' in whole[:at].split(b"\n")[-1]]
    assert len(ends) == 4
    for cut in range(len(whole)):
        overwrite(segment, whole[:cut])
        # A line that lacks nothing but its end is whole.
        kept = sum(end <= cut for end in ends)
        assert recorded(client()) == list(range(kept + 1)), cut
    overwrite(segment, whole + bytes(5000))
    assert recorded(client()) == list(range(5)), "a file that grew before it was written"


def test_a_session_after_a_torn_one_goes_on(tmp_path: Path) -> None:
    run = Location.of(tmp_path)
    write(run, [0, 1])
    segment = segments(run)[-1]
    data = segment.read_bytes()
    overwrite(segment, data[: data.index(b'"at":[1]')])
    write(run, [2])
    assert recorded(run) == [0, 2]
    overwrite(segment, data)
    assert recorded(run) == [0, 2], "what the next session did not see never comes back"
    write(run, [3])
    assert recorded(run) == [0, 2, 3]


@pytest.mark.parametrize("line", range(6))
@pytest.mark.parametrize("at", [0, 5, 9, 30, -2])
def test_damage_before_the_end_is_an_error(line: int, at: int, client: Client) -> None:
    with Journal(client()) as journal:
        number = len(segments(client()))
        journal.part(STAGE, "block", GRID)
        journal.append([done(position) for position in range(7)])
    segment = segments(client())[number - (1 if segments(client())[0].is_local else 0)]
    lines = segment.read_bytes().splitlines(keepends=True)
    damaged = bytearray(lines[line])
    damaged[at] ^= 0x04
    overwrite(segment, b"".join([*lines[:line], bytes(damaged), *lines[line + 1 :]]))
    for action in (lambda: read_ledger(client()), Journal(client()).__enter__):
        with pytest.raises(InputError) as caught:
            action()
        assert f"{segment} is damaged at line {line + 1}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert holder_of(client()) is None


def test_segments_that_are_missing_or_cut_short_are_an_error(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(reading, "TRIES", 2)
    for session in range(3):
        write(client(), range(5 * session, 5 * session + 5))
    found = segments(client())
    # Of the last session's segments, nobody has said yet that they were there.
    sealed = [segment for segment in found if not segment.name.startswith("000003")]
    assert len(sealed) >= 10
    for segment in sealed:
        data = segment.read_bytes()
        for harm in (segment.delete, partial(overwrite, segment, data[: len(data) // 2])):
            harm()
            with pytest.raises(InputError, match=f"lacks all or a part of {segment.name}; restore it"):
                read_ledger(client())
            overwrite(segment, data)
    found[-2].delete()
    with pytest.raises(InputError, match=f"lacks all or a part of {found[-2].name}"):
        read_ledger(client())


OLD = [
    {"stage": "a", "step": "block", "block": [0, 2, 3], "state": "done", "seconds": 1.5, "time": 1.0, "voxels": 8},
    {"stage": "a", "step": "block", "block": [1, 2, 5], "state": "failed", "seconds": 0.5, "time": 2.0}
    | {"error": "OSError: no", "trace": "Traceback\n"},
    {"stage": "a", "step": "block", "block": [1, 3, 4], "state": "done", "seconds": 0.5, "time": 3.0, "voxels": 4},
    {"stage": "b", "step": "up1", "block": [0, 0, 0], "state": "done", "seconds": 1.0, "time": 4.0, "voxels": 1},
    {"stage": "b", "state": "lost", "time": 5.0},
    {"stage": "c", "step": "block", "block": [0, 0, 0], "state": "done", "seconds": 1.0, "time": 6.0, "voxels": 3}
    | {"largest_voxels": 7, "largest_segment": 2},
]


def test_a_journal_of_format_1_is_read_and_gone_on_with(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = client() / "journal"
    folder.make_folder()
    for number, events in enumerate((OLD[:2], OLD[2:]), 1):
        folder_data = b"".join(map(encode, events))
        (folder / f"{number:06d}.log").put(folder_data + b"torn")
    grid = Grid(Box((0, 0, 0), (2, 4, 6)), (1, 1, 1))

    def check(ledger: Ledger) -> None:
        found = [index for index, true in zip(grid, ledger.done("a", "block", grid), strict=True) if true]
        assert found == [(0, 2, 3), (1, 3, 4)]
        assert not ledger.done("b", "up1", grid).any()
        assert ledger.figures["a"] == {"seconds": 2.0, "voxels": 12}
        assert ledger.figures["c"] == {"seconds": 1.0, "voxels": 3, "largest": [7, 2]}
        assert "b" not in ledger.figures
        assert ledger.failures == {
            ("a", "block", (1, 2, 5)): {"error": "OSError: no", "trace": "Traceback\n", "time": 2.0}
        }

    check(read_ledger(client()))
    with Journal(client()) as journal:
        check(journal.ledger)
        number = journal.part(STAGE, "block", GRID)
        journal.append([{"e": "done", "id": number, "at": [7]}])
        journal.flush()
        check(read_ledger(client()))
        assert positions_in(read_ledger(client())) == [7]
    small(monkeypatch, 0)
    with Journal(client()) as journal:
        check(journal.ledger)
    assert not (folder / "000001.log").exists()
    check(read_ledger(client()))
    assert positions_in(read_ledger(client())) == [7]


def test_a_newer_format_is_refused_with_the_version_to_use(client: Client) -> None:
    write(client(), [1])
    newer = client() / "journal" / "000002-000001.log"
    assert newer.create(encode({"e": "format", "format": 3, "version": "7.1.0"}) + encode({"what": "is this"}))
    for action in (lambda: read_ledger(client()), Journal(client()).__enter__):
        with pytest.raises(
            InputError, match=r"journal format 3 of neuroshed 7\.1\.0; .* install version 7\.1\.0 or newer"
        ):
            action()
    assert holder_of(client()) is None


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"17",
        b"{",
        b"[" * 100_000,
        b"{}",
        b'{"e": "format", "format": "x"}',
        b'{"e": "format"}',
        b'{"e": "done", "id": 7, "at": [0]}',
    ],
)
def test_whole_lines_that_make_no_sense_are_an_error(text: bytes, at: int, client: Client) -> None:
    write(client(), [1])
    insert(text, at, segments(client())[-1])
    for action in (lambda: read_ledger(client()), Journal(client()).__enter__):
        with pytest.raises(InputError) as caught:
            action()
        assert "\n" not in str(caught.value)
    assert holder_of(client()) is None


def insert(text: bytes, at: int, segment: Location) -> None:
    """Make a line of it, whole and with its checksum, before line `at`, counted from 0."""
    lines = segment.read_bytes().splitlines(keepends=True)
    lines.insert(at, b"%08x %s\n" % (zlib.crc32(text), text))
    overwrite(segment, b"".join(lines))


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("said", [b"[1]", b'{"000001-000001.log": -5}', b'{"000001-000001.log": "all"}', b"null"])
def test_lengths_that_make_no_sense_are_an_error(said: bytes, at: int, client: Client) -> None:
    write(client(), [1])
    insert(b'{"e": "sealed", "segments": %s}' % said, at, segments(client())[0])
    with pytest.raises(InputError, match=f"damaged at line {at + 1}; restore"):
        read_ledger(client())


@pytest.mark.parametrize("event", [{}, {"state": "done"}, {"stage": "a", "step": "s", "block": [1], "state": "done"}])
def test_old_events_that_make_no_sense_are_an_error(event: Event, client: Client) -> None:
    (client() / "journal").make_folder()
    (client() / "journal" / "000001.log").put(encode(event))
    with pytest.raises(InputError, match="does not add up"):
        read_ledger(client())


def test_names_of_segments_are_read_back_and_sorted_by_number() -> None:
    names = ["000002.log", "000001-000009.log", "000001-000010.log", "000001-000011.base", "1000001-000001.log"]
    assert [str(Segment.parse(name)) for name in names] == names
    assert sorted(names, key=Segment.parse) == names
    assert [Segment.parse(name) for name in ("lease", "epoch-000001", "x.log", "1.logs")] == [None] * 4


def test_lines_are_what_they_say() -> None:
    event = {"e": "end", "error": "ü\n", "time": 1.25}
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line[9:]) == event
    content = Content.of(Location.of("/x"), line * 2 + line[:-3])
    assert list(content.events()) == [event, event]
    assert len(content.data) == 2 * len(line)

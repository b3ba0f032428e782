"""Whether all files of a volume can be read: each block reads those that lie in it, and lists what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done
from neuroshed.stages.passes import Pass, blocks_of, voxel_bytes
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.notes import read_note, write_note
from neuroshed.storage.shards import DataFile, Fault, data_files, examine
from neuroshed.storage.volumes import Volume, open_volume


class Check(Pass):
    """Files of a volume that are missing, empty, damaged or cannot be read."""

    kind: Literal["check"] = "check"
    path: Location
    identity: dict[str, Any]
    """What the volume was when the check was planned."""
    volume_shape: Vec
    block_shape: Vec
    """Made of whole files."""
    list_missing: bool
    """Whether files that are missing are listed; else they are only counted."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "path"})

    @classmethod
    def of(cls, run_folder: Location, volume: Volume, list_missing: bool) -> Check:
        """Plan a check. Raises `InputError` if the volume's metadata cannot be read."""
        return cls(
            run_folder=run_folder,
            path=volume.path,
            identity=volume_identity(volume, damaged=True),
            volume_shape=volume.shape,
            block_shape=blocks_of(volume.shard_shape, voxel_bytes(volume)),
            list_missing=list_missing,
        )

    @property
    def grid(self) -> Grid:
        """Blocks of whole files."""
        return Grid(Box.of_shape(self.volume_shape), self.block_shape)

    @cached_property
    def volume(self) -> Volume:
        """The volume, opened for reading."""
        return open_volume(self.path)

    @property
    def _piece(self) -> Vec:
        """What is read at a time: less than a block, if files are very large."""
        return blocks_of(self.volume.chunk_shape, voxel_bytes(self.volume))

    def run(self, step: str, index: Vec) -> Done:
        """Read the files of one block."""
        box = self.grid.block_box(index)
        faults = self._faults(box)
        listed = [fault for fault in faults if self.list_missing or fault.kind != "missing"]
        note = {
            "files": sum(1 for _ in data_files(self.volume, box)),
            "missing": _missing(faults),
            "listed": [_as_json(fault) for fault in listed],
        }
        write_note(self.node_path(step, index), note)
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """A piece as it is read, and which of its voxels are like its first."""
        z, y, x = map(min, self._piece, self.volume_shape)
        channels = self.volume.channels or 1
        return self.volume.read_bytes((z, y, x), channels) + z * y * x * channels + (16 << 20)

    def found(self) -> tuple[int, int, list[Fault]]:
        """When all blocks are done: how many files there are, how many of them are missing, and what is listed."""
        files, missing, listed = 0, 0, []
        for index in self.grid:
            note = read_note(self.node_path("", index))
            files, missing = files + note["files"], missing + note["missing"]
            listed += [_fault(row) for row in note["listed"]]
        return files, missing, listed

    def look_again(self, faults: Sequence[Fault]) -> tuple[list[Fault], int]:
        """Those that are still there, as they are now, and how many files are not missing any more."""
        files = {fault.file for fault in faults}
        boxes = dict.fromkeys(file.box for file in files)
        found = [fault for box in boxes for fault in self._faults(box) if fault.file in files]
        return found, _missing(faults) - _missing(found)

    def _faults(self, box: Box) -> list[Fault]:
        with unchanged(self.volume, self.identity):
            return examine(self.volume, box, self._piece)


def _missing(faults: Sequence[Fault]) -> int:
    return sum(fault.kind == "missing" for fault in faults)


def _as_json(fault: Fault) -> list[Any]:
    file = fault.file
    return [str(file.place), file.box.start, file.box.stop, file.channels, fault.kind, fault.reason]


def _fault(row: list[Any]) -> Fault:
    place, start, stop, channels, kind, reason = row
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    file = DataFile(Location.of(place), box, None if channels is None else (channels[0], channels[1]))
    return Fault(file, kind, reason)

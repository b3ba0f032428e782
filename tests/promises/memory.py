"""Running the stages in memory: their own code, with tables in a dictionary and volumes in arrays instead of files.

A case takes some tens of milliseconds, so thousands can be tried. Blocks fail and are run again on the way.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.conventions import Convention
from neuroshed.stages.affinities import NEAREST, Affinities
from neuroshed.stages.base import Stage
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.segment import Segment
from neuroshed.storage import coarse
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns

from .chunks import Task

HERE = Location.of("/in/memory")


class CrashError(Exception):
    """A block was stopped at one of its writes."""


@dataclass
class Memory:
    """Everything that blocks wrote. What is written again must be the same as before."""

    nodes: dict[Location, dict[str, Columns]] = field(default_factory=dict)
    volumes: dict[Location, Array] = field(default_factory=dict)
    writes_left: int | None = None
    """After so many more writes a block is stopped; None: never."""

    def count_write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise CrashError
            self.writes_left -= 1

    def write_node(self, path: Location, tables: Mapping[str, Columns | Iterator[Columns]]) -> dict[str, int]:
        self.count_write()
        whole = {name: joined(rows) if isinstance(rows, Iterator) else rows for name, rows in tables.items()}
        stored = {name: {key: stored_column(values) for key, values in rows.items()} for name, rows in whole.items()}
        if path in self.nodes:
            assert same_tables(self.nodes[path], stored), f"{path} differs when its block is run again"
        self.nodes[path] = stored
        return {name: len(next(iter(rows.values()))) for name, rows in stored.items()}

    def read_node(self, path: Location, *names: str) -> tuple[Columns, ...]:
        return tuple(dict(self.nodes[path][name]) for name in names)

    def read_nodes(self, paths: Sequence[Location], *names: str) -> Iterator[Columns]:
        return (joined(self.read_node(path, name)[0] for path in paths) for name in names)

    def read_pieces(self, path: Location, name: str) -> Iterator[Columns]:
        return iter(self.read_node(path, name))

    def volume(self, path: Location, shape: Vec, dtype: np.dtype) -> Array:
        if path not in self.volumes:
            # Of final labels, what was left out is 0 to whoever opens them.
            filled = None if dtype == np.uint64 else np.zeros(shape, np.bool_)
            self.volumes[path] = Array(self, np.zeros(shape, dtype), filled=filled)
        return self.volumes[path]


def joined(pieces: Iterator[Columns]) -> Columns:
    """All pieces of a table."""
    found = list(pieces)
    return {key: np.concatenate([piece[key] for piece in found]) for key in found[0]}


def stored_column(values: np.ndarray) -> np.ndarray:
    """A copy that nobody can change, as what is read from a file."""
    copy = np.array(values)
    copy.flags.writeable = False
    return copy


def same_tables(one: dict[str, Columns], other: dict[str, Columns]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(
            values.dtype == other[name][key].dtype and np.array_equal(values, other[name][key])
            for key, values in one[name].items()
        )
        for name in one
    )


@dataclass
class Array:
    """What the stages use of a `storage.volumes.Volume`."""

    memory: Memory
    values: np.ndarray
    written: set[Box] = field(default_factory=set)
    filled: np.ndarray | None = None
    """Which voxels were written, if reading others is an error."""

    @property
    def box(self) -> Box:
        z, y, x = self.values.shape
        return Box.of_shape((z, y, x))

    def read(self, box: Box) -> np.ndarray:
        assert self.box.contains(box)
        assert self.filled is None or self.filled[box.slices()].all(), f"{box} is read before it is written"
        return self.values[box.slices()].copy()

    def write(self, box: Box, data: np.ndarray, region: Box) -> None:
        self.memory.count_write()
        assert region.contains(box)
        assert data.dtype == self.values.dtype
        if box in self.written:
            assert np.array_equal(self.values[box.slices()], data), f"{box} differs when its block is run again"
        self.values[box.slices()] = data
        self.written.add(box)
        if self.filled is not None:
            self.filled[box.slices()] = True


@contextlib.contextmanager
def in_memory(affinities: np.ndarray, beside: Mapping[Location, np.ndarray | None] | None = None) -> Iterator[Memory]:
    """While this lasts, stages read `affinities`, uint8 `(c, z, y, x)`, and classes and masks that are `beside` them,
    and write to the memory.
    """
    memory = Memory()
    inputs = {path: Array(memory, values) for path, values in (beside or {}).items() if values is not None}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("neuroshed.stages."):
                for function in {"read_node", "read_nodes", "read_pieces", "write_node"} & vars(module).keys():
                    patch.setattr(module, function, getattr(memory, function))
        patch.setattr(type(HERE), "make_folder", lambda place: None)
        patch.setattr(Affinities, "read", lambda stage, box: affinities[(slice(None), *box.slices())].copy())
        patch.setattr(coarse, "open_cached", lambda path, metadata_sha256: inputs[path])
        patch.setattr(
            Fragments,
            "label_volume",
            lambda stage, path, dtype=np.uint64: memory.volume(path, stage.source.volume_shape, np.dtype(dtype)),
        )
        yield memory


def given(affinities: np.ndarray, further: tuple[Vec, ...] = ()) -> Affinities:
    """The stage of affinities that lie in memory; `further` are the offsets of the channels after the third."""
    _, z, y, x = affinities.shape
    return Affinities(
        run_folder=HERE,
        path=HERE,
        volume_shape=(z, y, x),
        voxel_size=(1.0, 1.0, 1.0),
        offset=(0.0, 0.0, 0.0),
        axes="czyx",
        convention=Convention((*NEAREST, *further), "source", False, (0.0, 255.0)),
        long_range=further,
        identity={},
    )


@dataclass
class Faults:
    """Runs blocks, some of which are stopped at a write and have to be run again, or are run once more when long done.

    `order` decides which, in `rate` of all attempts.
    """

    memory: Memory
    order: random.Random
    rate: float
    done: list[tuple[Stage, Task]] = field(default_factory=list)

    def __call__(self, stage: Stage, task: Task) -> bool:
        """Whether the block is done."""
        if self.order.random() < self.rate:
            self.memory.writes_left = self.order.randrange(3)
            with contextlib.suppress(CrashError):
                stage.run(task.step, task.index)
            self.memory.writes_left = None
            return False
        stage.run(task.step, task.index)
        self.done.append((stage, task))
        if self.order.random() < self.rate:
            again, old = self.order.choice(self.done)
            again.run(old.step, old.index)
        return True


def recorded_merges(memory: Memory, segments: Sequence[Segment]) -> list[tuple[int, int, int]]:
    """The merges of all tree nodes as (id, id, score)."""
    folder = segments[0].agglomerate.folder
    found = []
    for path, tables in memory.nodes.items():
        if path.is_relative_to(folder):
            found += list(zip(*(tables["merges"][name].tolist() for name in ("left", "right", "score")), strict=True))
    return found

"""Affinities that are there already: a volume that somebody else predicted, in a convention that is declared."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec, add
from neuroshed.kernels.across import NEAREST
from neuroshed.kernels.conventions import (
    Convention,
    Provider,
    check_type,
    default_range,
    edges_box,
    opposite,
    providers,
    to_uint8,
)
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume


class AffinityConvention(BaseModel):
    """How given affinities are stored. The defaults are this project's own convention."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    channels: Literal["zyx", "xyz"] | None = None
    """The first three channels are the nearest neighbours along these axes, in this order. Default: zyx."""
    sign: Literal["negative", "positive"] | None = None
    """Whether the offsets of `channels` are -1 or +1. Default: negative."""
    offsets: tuple[Vec, ...] | None = None
    """Instead of `channels` and `sign`: the offset of each of the first channels in voxels, always z, y, x. Default:
    those in the volume's metadata, if it has some."""
    stored_at: Literal["source", "destination"] = "source"
    """The value at voxel p is the edge between p and p + offset (source) or between p - offset and p (destination)."""
    inverted: bool = False
    """High values mean boundaries."""
    value_range: tuple[float, float] | None = None
    """Stored values that mean 0 and 1. Default: 0 and 255 for uint8, 0 and 1 for floats."""
    array_axes: Literal["zyx", "xyz"] = "zyx"
    """Order in which the array stores its spatial axes."""
    channel_axis: Literal["first", "last"] = "first"
    """Whether the array's channel axis comes before or after its spatial axes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offsets is not None:
            if self.channels is not None or self.sign is not None:
                raise ValueError("offsets say all that channels and sign say; leave those out")
            if len({*self.offsets, (0, 0, 0)}) <= max(len(self.offsets), 1):
                raise ValueError(f"offsets must be some, none twice and none 0, got {_listed(self.offsets)}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must be [low, high] with low < high, got {list(self.value_range)}")
        return self

    @property
    def axes(self) -> str:
        """The array's axes in their stored order, such as `czyx`."""
        return f"c{self.array_axes}" if self.channel_axis == "first" else f"{self.array_axes}c"

    @property
    def declared_offsets(self) -> tuple[Vec, ...] | None:
        """The offsets that were declared in either form; None if none were."""
        if self.channels is None and self.sign is None:
            return self.offsets
        order = self.channels or "zyx"
        nearest = [NEAREST["zyx".index(axis)] for axis in order]
        return tuple(map(opposite, nearest) if self.sign == "positive" else nearest)

    def resolve(self, volume: Volume) -> Convention:
        """The convention with everything that was left out filled in from a volume.

        Raises `InputError` for a volume that it cannot be true of.
        """
        declared, told = self.declared_offsets, volume.voxel_offsets
        if declared and told and any(a != b for a, b in zip(declared, told, strict=False)):
            raise InputError(
                f"affinities at {volume.path} have offsets {_listed(told)} in their metadata, declared are "
                f"{_listed(declared)}; leave the declaration out, or bring a copy without that metadata"
            )
        offsets = max(declared or (), told or (), key=len) or NEAREST
        count = volume.channels or 0
        if count < len(offsets):
            raise InputError(
                f"affinities at {volume.path} have {count} channels for {len(offsets)} offsets {_listed(offsets)}; "
                "declare only offsets that it has, and on which side its channel axis is"
            )
        try:
            check_type(volume.dtype)
            return Convention(offsets, self.stored_at, self.inverted, self.value_range or default_range(volume.dtype))
        except ValueError as error:
            raise InputError(f"affinities at {volume.path}: {error}") from error


class Affinities(Stage):
    """A given affinity volume, which is read as uint8 `(c, z, y, x)` in the convention of `NEAREST`, whatever its own;
    it has no blocks to run.
    """

    kind: Literal["affinities"] = "affinities"
    path: Location
    volume_shape: Vec
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    axes: str
    """The array's axes in their stored order."""
    convention: Convention
    """What the stored values mean, with nothing left to defaults: declared in other words, it hashes the same."""
    long_range: tuple[Vec, ...] = ()
    """Offsets of the channels after the nearest three, z y x."""
    identity: dict[str, Any]
    """What the array was when the run was planned."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "path"})

    @classmethod
    def of(
        cls,
        run_folder: Location,
        path: Location,
        convention: AffinityConvention | None = None,
        long_range: tuple[Vec, ...] = (),
    ) -> Affinities:
        """Describe the volume at `path`, from which the nearest three and the `long_range` offsets are wanted.

        Raises `InputError` if it has no such channels, is of a type that cannot be affinities, or contradicts the
        declared convention.
        """
        declared = convention or AffinityConvention()
        volume = open_volume(path, declared.axes)
        resolved = declared.resolve(volume)
        wanted = (*NEAREST, *long_range)
        if len({max(offset, opposite(offset)) for offset in wanted}) < len(wanted) or (0, 0, 0) in wanted:
            raise InputError(
                f"long-range offsets {_listed(long_range)} must differ from 0, from each other and from the nearest "
                "neighbours, and not only in sign"
            )
        try:
            providers(resolved, wanted)
        except ValueError as error:
            raise InputError(f"affinities at {path}: {error}") from error
        return cls(
            run_folder=run_folder,
            path=volume.path,
            volume_shape=volume.shape,
            voxel_size=volume.voxel_size,
            offset=volume.offset,
            axes=declared.axes,
            convention=resolved,
            long_range=long_range,
            identity=volume_identity(volume),
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """None: the data is there."""
        return ()

    def run(self, step: str, index: Vec) -> Done:
        """Never called, since there are no steps; raises `BlockError`."""
        raise BlockError(f"affinities {self.path} are given; there is no step {step!r} to run at block {index}")

    def memory_bytes(self, step: str) -> int:
        """Nothing is computed."""
        return 0

    @cached_property
    def affinities(self) -> Volume:
        """The affinity volume as it is stored, its axes turned to c, z, y, x."""
        return open_volume(self.path, self.axes)

    @property
    def offsets(self) -> tuple[Vec, ...]:
        """Offset of each channel that `read` gives."""
        return (*NEAREST, *self.long_range)

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Affinities of a box inside the volume: uint8 `(3 + long_range, z, y, x)`, channel c at voxel p being the edge
        between p and p + `offsets[c]`, 0 where that leaves the volume.

        Raises `BlockError` naming the channel and voxel if a stored value is NaN or outside the declared range, and if
        the volume was removed or replaced since the run was planned.
        """
        if not self.affinities.box.contains(box):
            raise ValueError(f"box {box} is not inside {self.path} of shape {self.volume_shape}")
        with unchanged(self.affinities, self.identity):
            return self._read(box)

    def _read(self, box: Box) -> npt.NDArray[np.uint8]:
        if self._canonical is not None:
            found = self.affinities.read(box, self._canonical)
            for values, offset in zip(found, self.offsets, strict=True):
                _clear_outside(values, box, self._edges(box, offset))
            return found
        out = np.empty((len(self.offsets), *box.shape), np.uint8)
        for group in self._groups:
            self._read_group(group, box, out)
        return out

    def _read_group(self, group: list[Provider], box: Box, out: npt.NDArray[np.uint8]) -> None:
        around = _needed(box, group).intersect(self.affinities.box)
        first, last = group[0].channel, group[-1].channel
        stored = self.affinities.read(around, slice(first, last + 1))
        for provider in group:
            target = out[self.offsets.index(provider.offset)]
            own = self._edges(box, provider.offset)
            _clear_outside(target, box, own)
            if not own.empty:
                there = _moved(own, provider.shift)
                values = stored[provider.channel - first][there.slices(around.start)]
                self._convert(values, provider, there.start, target[own.slices(box.start)])

    def _edges(self, box: Box, offset: Vec) -> Box:
        """The voxels of a box whose edges do not leave the volume: of others nothing is stored that means anything."""
        return box.intersect(edges_box(self.affinities.box, offset))

    def _convert(self, values: npt.NDArray[Any], provider: Provider, start: Vec, target: npt.NDArray[np.uint8]) -> None:
        try:
            to_uint8(values, self.convention, start, target)
        except ValueError as error:
            stored = list(self.convention.offsets[provider.channel])
            raise BlockError(f"{self.path}, channel {provider.channel} (offset {stored}): {error}") from error

    @cached_property
    def _canonical(self) -> slice | None:
        """The stored channels that are those of `offsets` as they stand; None if something has to be converted."""
        found = providers(self.convention, self.offsets)
        first = found[0].channel
        as_stored = all(
            provider.channel == first + place and provider.shift == (0, 0, 0) for place, provider in enumerate(found)
        )
        ours = as_stored and self.convention.is_ours(self.affinities.dtype)
        return slice(first, first + len(found)) if ours else None

    @property
    def _groups(self) -> list[list[Provider]]:
        """Channels that are read at once, so that no chunk is decoded twice and no more is held than must be."""
        together = self.affinities.channels_together
        found = sorted(providers(self.convention, self.offsets), key=lambda provider: provider.channel)
        return [list(group) for _, group in itertools.groupby(found, key=lambda provider: provider.channel // together)]

    def read_bytes(self, shape: Vec) -> int:
        """Upper bound in bytes of what `read` takes at its peak for a box of `shape`: what is stored of one group, the
        result, four planes of float64.
        """
        if self._canonical is not None:
            return self.affinities.read_bytes(shape, len(self.offsets))
        box = Box.of_shape(shape)
        stored = max(
            self.affinities.read_bytes(_needed(box, group).shape, 1 + group[-1].channel - group[0].channel)
            for group in self._groups
        )
        return stored + len(self.offsets) * box.size + 32 * math.prod(shape[1:])


def _clear_outside(values: npt.NDArray[np.uint8], box: Box, inside: Box) -> None:
    """Make those of a box's values (z, y, x) zero that are not in `inside`, a part of it."""
    if inside.empty:
        values[...] = 0
        return
    for axis, kept in enumerate(inside.slices(box.start)):
        layers = values.swapaxes(0, axis)
        layers[: kept.start] = 0
        layers[kept.stop :] = 0


def _needed(box: Box, group: list[Provider]) -> Box:
    """The voxels at which the edges of a box may be stored."""
    shifts = np.array([provider.shift for provider in group])
    low, high = (-shifts).max(axis=0).clip(0).tolist(), shifts.max(axis=0).clip(0).tolist()
    return box.grow((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _moved(box: Box, by: Vec) -> Box:
    return Box(add(box.start, by), add(box.stop, by))


def _listed(offsets: tuple[Vec, ...]) -> list[list[int]]:
    return [list(offset) for offset in offsets]

"""Affinities in anybody's convention to ours: which stored value is an edge's, and which byte it becomes.

Ours: uint8, 0..255, higher is stronger; the value of channel c at voxel p is the edge between p and p + offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec

TOLERANCE = 1e-3
"""Share of the range by which a value may lie outside it: networks and resampling overshoot by a rounding error."""


@dataclass(frozen=True, slots=True)
class Convention:
    """What stored affinities mean. Offsets are in voxels, z y x, of either sign, one for each of the first channels."""

    offsets: tuple[Vec, ...]
    stored_at: Literal["source", "destination"]
    """The value at voxel p is the edge between p and p + offset (source) or between p - offset and p (destination)."""
    inverted: bool
    """High values mean boundaries."""
    value_range: tuple[float, float]
    """The stored values that mean 0 and 1, before inversion."""

    def __post_init__(self) -> None:
        low, high = self.value_range
        if not (low < high and math.isfinite(high - low)):
            raise ValueError(f"value_range must be [low, high] with low < high, got {list(self.value_range)}")

    def is_ours(self, dtype: npt.DTypeLike) -> bool:
        """Whether stored values of this type are our bytes already."""
        return np.dtype(dtype) == np.uint8 and self.value_range == (0, 255) and not self.inverted


@dataclass(frozen=True, slots=True)
class Provider:
    """Where one of our channels is: the edge between p and p + `offset` is stored in `channel` at p + `shift`."""

    offset: Vec
    channel: int
    shift: Vec


def providers(convention: Convention, wanted: Sequence[Vec]) -> tuple[Provider, ...]:
    """The stored channel and shift for each wanted offset.

    An edge has two ends, so an offset is served by a channel of the same or of the opposite offset; the same is
    preferred. Raises ValueError for an offset that no channel serves.

    >>> positive = Convention(((0, 0, 1),), "source", False, (0.0, 1.0))
    >>> providers(positive, [(0, 0, -1)])
    (Provider(offset=(0, 0, -1), channel=0, shift=(0, 0, -1)),)
    """
    return tuple(_provider(convention, offset) for offset in wanted)


def _provider(convention: Convention, offset: Vec) -> Provider:
    for stored in (offset, opposite(offset)):
        if stored in convention.offsets:
            # Of the edge's ends, p and p + offset, the value lies at the one that the stored offset starts from
            # (source) or leads to (destination).
            at_own_end = (stored == offset) == (convention.stored_at == "source")
            return Provider(offset, convention.offsets.index(stored), (0, 0, 0) if at_own_end else offset)
    there = ", ".join(str(list(o)) for o in convention.offsets) or "none"
    raise ValueError(
        f"no channel holds the edges of offset {list(offset)} or {list(opposite(offset))} (z y x); there are "
        f"{there}: declare the offsets that the channels have, or ask only for those"
    )


def opposite(offset: Vec) -> Vec:
    """The same edge seen from its other end.

    >>> opposite((0, -1, 2))
    (0, 1, -2)
    """
    z, y, x = offset
    return -z, -y, -x


def edges_box(bounds: Box, offset: Vec) -> Box:
    """The voxels p of `bounds` for which p + `offset` is in `bounds` as well.

    >>> edges_box(Box.of_shape((4, 4, 4)), (-1, 0, 2))
    Box(start=(1, 0, 0), stop=(4, 4, 2))
    """
    z, y, x = offset
    low, high = (min(z, 0), min(y, 0), min(x, 0)), (-max(z, 0), -max(y, 0), -max(x, 0))
    return bounds.grow(low, high)


def default_range(dtype: npt.DTypeLike) -> tuple[float, float]:
    """The values that mean 0 and 1 where nothing is declared: 0 and 255 for uint8, 0 and 1 for floats.

    Raises ValueError for types without a usual range, and for those that cannot be affinities.
    """
    kind = np.dtype(dtype)
    if kind == np.uint8:
        return 0.0, 255.0
    if kind.kind == "f" and kind.itemsize <= 8:
        return 0.0, 1.0
    check_type(kind)
    raise ValueError(f"{kind} affinities have no usual range; declare value_range: [low, high]")


def check_type(dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless `to_uint8` takes this type: those that float64 holds exactly."""
    kind = np.dtype(dtype)
    if not ((kind.kind in "ui" and kind.itemsize <= 4) or (kind.kind == "f" and kind.itemsize <= 8)):
        raise ValueError(
            f"affinities are {kind}; needed are integers of 8 to 32 bits or floats of 16 to 64: convert them"
        )


def to_uint8(
    values: npt.NDArray[Any],
    convention: Convention,
    start: Vec = (0, 0, 0),
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Stored values `(z, y, x)` of one channel as our bytes: 255 * (value - low) / (high - low), computed in float64
    and rounded half up; then 255 minus that if inverted. They are written to `out`; without it the result may be
    `values` itself.

    `start` is the volume's voxel at which `values` begin. Raises ValueError naming the first voxel that is NaN or
    outside the range by more than `TOLERANCE` of it.
    """
    if convention.is_ours(values.dtype) and out is None:
        return values
    result = np.empty(values.shape, np.uint8) if out is None else out
    if values.dtype == np.uint8 and convention.value_range == (0, 255):
        np.bitwise_xor(values, np.uint8(255 if convention.inverted else 0), out=result)
        return result
    check_type(values.dtype)
    low, high = convention.value_range
    # Plane by plane: the float64 copy stays small.
    for plane, (target, source) in enumerate(zip(result, values, strict=True)):
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.subtract(source, low, dtype=np.float64)
            scaled *= 255.0
            scaled /= high - low
            right = (scaled >= -255 * TOLERANCE) & (scaled <= 255 * (1 + TOLERANCE))
        if not right.all():
            y, x = np.unravel_index(int(right.argmin()), right.shape)
            voxel = [plane + start[0], int(y) + start[1], int(x) + start[2]]
            raise ValueError(
                f"voxel {voxel} (z y x) holds {source[y, x]}, needed are values in {low:g} to {high:g}; mend the data, "
                "or declare the value_range that it has"
            )
        scaled += 0.5
        np.floor(scaled, out=scaled)
        target[...] = scaled.clip(0, 255, out=scaled)
        if convention.inverted:
            np.subtract(255, target, out=target)
    return result

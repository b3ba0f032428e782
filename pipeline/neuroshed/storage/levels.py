"""The levels of an OME-Zarr pyramid: how much smaller each is, where it lies, and how readers are told of it.

Level 0 is the volume. Windows of voxels begin at its first voxel, whatever part of it is computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Vec, mul
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import chunk_side, new_metadata, open_sink
from neuroshed.storage.volumes import Volume, open_volume

SMALLEST_SIDE = 128
"""A level of which no side is longer is the last."""
NEAR = 1.5
"""Axes whose voxels are up to so many times as long as the shortest are halved together with it."""
GROUP_FILE = "zarr.json"


def level_factors(shape: Vec, voxel_size: Sequence[float], levels: int | None = None) -> list[Vec]:
    """By how much each level is smaller than the one before, z y x, for as many `levels`, or until all sides are short.

    The finest axes are halved first: those with voxels of up to 1.5 times the shortest side, until all are alike.

    >>> level_factors((200, 1000, 1000), (40, 4, 4))
    [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    >>> level_factors((300, 300, 300), (8, 8, 8))
    [(2, 2, 2), (2, 2, 2)]
    >>> level_factors((300, 300, 300), (8, 8, 8), levels=1), level_factors((128, 90, 1), (8, 8, 8))
    ([(2, 2, 2)], [])
    """
    found: list[Vec] = []
    sides, sizes = list(shape), list(voxel_size)
    while len(found) < levels if levels is not None else max(sides) > SMALLEST_SIDE:
        longer = [size for side, size in zip(sides, sizes, strict=True) if side > 1]
        if not longer:
            break
        z, y, x = (2 if side > 1 and size <= NEAR * min(longer) else 1 for side, size in zip(sides, sizes, strict=True))
        found.append((z, y, x))
        sides = [-(-side // f) for side, f in zip(sides, (z, y, x), strict=True)]
        sizes = [size * f for size, f in zip(sizes, (z, y, x), strict=True)]
    return found


def total_factor(factors: Sequence[Vec]) -> Vec:
    """By how much the last of these levels is smaller than level 0.

    >>> total_factor([(1, 2, 2), (2, 2, 2)])
    (2, 4, 4)
    """
    total: Vec = (1, 1, 1)
    for factor in factors:
        total = mul(total, factor)
    return total


def smaller_box(box: Box, factor: Vec) -> Box:
    """The windows of `factor` that touch a box, numbered from the first voxel of the volume.

    >>> smaller_box(Box((3, 0, 0), (7, 4, 5)), (2, 2, 2))
    Box(start=(1, 0, 0), stop=(4, 2, 3))
    """
    z0, y0, x0 = (a // f for a, f in zip(box.start, factor, strict=True))
    z1, y1, x1 = (-(-b // f) for b, f in zip(box.stop, factor, strict=True))
    return Box((z0, y0, x0), (z1, y1, x1))


def level_shards(shape: Vec, shard_shape: Vec) -> Vec:
    """Sides of the files of a level of `shape`: those of level 0, or fewer of their chunks if the level has less.

    >>> level_shards((40, 300, 100), (256, 256, 256))
    (64, 256, 128)
    """
    z, y, x = (
        min(shard, -(-side // chunk_side(shard)) * chunk_side(shard))
        for side, shard in zip(shape, shard_shape, strict=True)
    )
    return z, y, x


def create_level(base: Volume, number: int, factor: Vec, shard_shape: Vec, path: Location) -> Volume:
    """Create the array of a level that is smaller by `factor` than `base`, level 0, in the volume at `path`, or open it
    for writing. Readers learn of it from `announce_levels` alone.

    Raises `WorkflowError` if another array has its name.
    """
    shape = smaller_box(base.box, factor).shape
    size = [a * b for a, b in zip(base.voxel_size, factor, strict=True)]
    place = [o + s * (f - 1) / 2 for o, s, f in zip(base.offset, base.voxel_size, factor, strict=True)]
    name = str(number)
    file = path / name / GROUP_FILE
    if not file.exists():
        channels = None if base.channels is None else ((0, 0, 0),) * base.channels
        files = new_metadata(name, shape, base.dtype, shard_shape, size, place, channels)
        (path / name).make_folder()
        file.create(files[f"0/{GROUP_FILE}"])
    with path.telling():
        array = zarr.open_array(path.zarr_store(read_only=True), path=name, mode="r")
    level = replace(
        base,
        path=path,
        array=array,
        shape=shape,
        voxel_size=(size[0], size[1], size[2]),
        offset=(place[0], place[1], place[2]),
        sink=open_sink(path, name),
    )
    if tuple(array.shape[-3:]) != shape or array.dtype != base.dtype or level.shard_shape != shard_shape:
        raise WorkflowError(
            f"{path / name} exists with shape {array.shape}, {array.dtype}, shards {level.shard_shape}, where {shape}, "
            f"{base.dtype}, {shard_shape} is wanted; remove it"
        )
    return level


def announce_levels(path: Location, factors: Sequence[Vec], kind: str, window: dict[str, float] | None = None) -> None:
    """Tell readers of a volume's levels, all of them at once: its metadata file is replaced.

    `kind` (mean or mode) is how they were made. `window`, of an image, is what viewers show from black to white.
    """
    file = path / GROUP_FILE
    metadata = json.loads(file.read_bytes())
    # Copies of the metadata of all arrays, as other programs may have left them there, would hide the new ones.
    metadata.pop("consolidated_metadata", None)
    ome = metadata["attributes"]["ome"]
    image = ome["multiscales"][0]
    if factors:
        finest = image["datasets"][0]
        levels = [_smaller(finest, number, total_factor(factors[:number])) for number in range(1, len(factors) + 1)]
        image |= {"datasets": [finest, *levels], "type": kind}
    if window is not None:
        ome["omero"] = {
            "channels": [{"label": image.get("name", ""), "active": True, "color": "FFFFFF", "window": window}]
        }
    file.put(json.dumps(metadata, indent=2).encode())


def _smaller(finest: dict[str, Any], number: int, factor: Vec) -> dict[str, Any]:
    """How a level is described, from how level 0 is. Places are those of voxels' centres."""
    found = {transform["type"]: transform[transform["type"]] for transform in finest["coordinateTransformations"]}
    scale = found["scale"]
    factors = [1] * (len(scale) - 3) + list(factor)
    moved = [s * (f - 1) / 2 for s, f in zip(scale, factors, strict=True)]
    translation = [t + m for t, m in zip(found.get("translation", [0.0] * len(scale)), moved, strict=True)]
    return {
        "path": str(number),
        "coordinateTransformations": [
            {"type": "scale", "scale": [s * f for s, f in zip(scale, factors, strict=True)]},
            {"type": "translation", "translation": translation},
        ],
    }


def level_count(path: Location) -> int:
    """Levels that a volume tells of; a plain array is one."""
    file = path / GROUP_FILE
    if not file.exists():
        file = path / ".zattrs"
    attributes = json.loads(file.read_bytes()) if file.exists() else {}
    attributes = attributes.get("attributes", attributes)
    images = attributes.get("ome", attributes).get("multiscales")
    return len(images[0]["datasets"]) if images else 1


def open_levels(path: Location) -> Iterator[Volume]:
    """All levels of a volume, the finest first. Raises `InputError` if one of them cannot be opened."""
    finest = open_volume(path)
    yield finest
    for number in range(1, level_count(path)):
        yield open_volume(path, level=number)


def factor_of(finest: Volume, level: Volume) -> Vec:
    """By how much a level is smaller than the finest, in whole numbers. Raises `InputError` if it is by none."""
    ratios = [b / a for a, b in zip(finest.voxel_size, level.voxel_size, strict=True)]
    z, y, x = (max(round(ratio), 1) for ratio in ratios)
    if any(not math.isclose(ratio, f, rel_tol=1e-3) for ratio, f in zip(ratios, (z, y, x), strict=True)):
        raise InputError(
            f"{level.path} has a level with voxels of {list(level.voxel_size)} nm, no whole multiple of "
            f"{list(finest.voxel_size)}; export it without levels"
        )
    return z, y, x


def is_labels(dtype: np.dtype[Any]) -> bool:
    """Whether a volume of this type most likely holds labels, not an image.

    >>> is_labels(np.dtype(np.uint64)), is_labels(np.dtype(np.uint16))
    (True, False)
    """
    return dtype.kind in "ui" and dtype.itemsize >= 4

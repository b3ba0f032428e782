"""What stages share that pass once over volumes of others: blocks that fit their files, and types that are numbers."""

from __future__ import annotations

import math

from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.storage.metadata import CHUNK_SIDE
from neuroshed.storage.volumes import Volume

BLOCK_BYTES = 128 * 2**20
"""A block has at most about this many bytes, as long as files of the volume have."""
SIDE = 4 * CHUNK_SIDE
"""And about this many voxels a side."""


def check_type(volume: Volume) -> None:
    """Raise `InputError` for voxels that are no numbers."""
    if volume.dtype.kind not in "buif":
        raise InputError(f"{volume.path} holds {volume.dtype}; needed are integers, floats or bool: convert it first")


def voxel_bytes(volume: Volume) -> int:
    """Bytes of a voxel with all its channels."""
    return (volume.channels or 1) * volume.dtype.itemsize


def even_blocks(shape: Vec, voxel: int) -> Vec:
    """Shards for a new volume of a shape, made of our chunks, no larger than they must be.

    >>> even_blocks((40, 1000, 1000), 1), even_blocks((1000, 1000, 1000), 48)
    ((64, 256, 256), (128, 128, 128))
    """
    z, y, x = (min(SIDE, -(-side // CHUNK_SIDE) * CHUNK_SIDE) for side in shape)
    sides = [z, y, x]
    for axis in (0, 2, 1) * 4:
        if voxel * math.prod(sides) > BLOCK_BYTES and sides[axis] > CHUNK_SIDE:
            sides[axis] //= 2
            sides[axis] = -(-sides[axis] // CHUNK_SIDE) * CHUNK_SIDE
    return sides[0], sides[1], sides[2]


def blocks_of(unit: Vec, voxel: int) -> Vec:
    """Blocks made of whole units: chunks or files.

    >>> blocks_of((64, 64, 64), 1), blocks_of((1, 512, 512), 1), blocks_of((512, 512, 512), 8)
    ((256, 256, 256), (256, 512, 512), (512, 512, 512))
    """
    sides = list(unit)
    while True:
        small = min(range(3), key=sides.__getitem__)
        if 2 * sides[small] > SIDE or 2 * voxel * math.prod(sides) > BLOCK_BYTES:
            return sides[0], sides[1], sides[2]
        sides[small] *= 2

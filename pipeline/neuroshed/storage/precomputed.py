"""Neuroglancer's precomputed format, sharded: what `info` says, which chunks share a file, and writing whole files.

As https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed describes it. Its triples are x y z,
ours are z y x; what this module takes and returns is z y x.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from neuroshed.errors import BlockError
from neuroshed.geometry import Vec
from neuroshed.storage.tensors import open_in_memory, reason_of

Encoding = Literal["compressed_segmentation", "raw", "png", "jpeg"]

CHUNK: Vec = (64, 64, 64)
SHARD_BYTES = 128 * 2**20
"""A file holds about so many bytes before compression: large enough that files are few, small enough for a worker."""
INFO_FILE = "info"
INDEX_BYTES = 16
"""Of a file of one minishard, as ours are: where the index of its chunks begins and ends."""


def number_bits(counts: Vec) -> list[int]:
    """The axes (0 z, 1 y, 2 x) whose bits make up the number of a chunk of so many along each axis, the lowest first: a
    compressed Morton code.

    >>> number_bits((1, 2, 5))
    [2, 1, 2, 2]
    """
    needed = [(count - 1).bit_length() for count in counts]
    return [axis for bit in range(max(needed)) for axis in (2, 1, 0) if bit < needed[axis]]


def chunk_number(index: Vec, bits: Sequence[int]) -> int:
    """The number of a chunk, or of what is at an index, whose bits are those of these axes.

    >>> chunk_number((0, 1, 4), [2, 1, 2, 2])
    10
    """
    places = list(index)
    number = 0
    for bit, axis in enumerate(bits):
        number |= (places[axis] & 1) << bit
        places[axis] >>= 1
    return number


class Scale(BaseModel):
    """One level, z y x."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Vec
    resolution: tuple[float, float, float]
    """nm."""
    voxel_offset: Vec
    """Of its first voxel, in voxels of this level."""

    @property
    def key(self) -> str:
        """Name of its folder.

        >>> Scale(shape=(1, 1, 1), resolution=(40, 4, 4), voxel_offset=(0, 0, 0)).key
        '4_4_40'
        """
        return "_".join(f"{size:g}" for size in reversed(self.resolution))

    @property
    def counts(self) -> Vec:
        """Chunks along each axis."""
        z, y, x = (-(-side // chunk) for side, chunk in zip(self.shape, CHUNK, strict=True))
        return z, y, x

    @property
    def bits(self) -> list[int]:
        """Those of chunks' numbers, as `number_bits` has it."""
        return number_bits(self.counts)

    def shared_bits(self, voxel_bytes: int) -> int:
        """How many of the lowest bits number the chunks of one file."""
        chunk_bytes = int(np.prod(CHUNK)) * voxel_bytes
        return min(max(SHARD_BYTES // chunk_bytes, 1).bit_length() - 1, len(self.bits))

    def shard_shape(self, voxel_bytes: int) -> Vec:
        """Voxels of one file: as chunks are numbered, those that share all but the lowest bits fill a box."""
        shared = self.bits[: self.shared_bits(voxel_bytes)]
        z, y, x = (chunk << shared.count(axis) for axis, chunk in enumerate(CHUNK))
        return z, y, x

    def shard_file(self, index: Vec, voxel_bytes: int) -> str:
        """Name of a file, by the index of its box among all."""
        bits = self.bits[self.shared_bits(voxel_bytes) :]
        return f"{self.key}/{chunk_number(index, bits):0{-(-len(bits) // 4)}x}.shard"

    def described(self, encoding: Encoding, voxel_bytes: int) -> dict[str, Any]:
        """What `info` says of it."""
        shared = self.shared_bits(voxel_bytes)
        told: dict[str, Any] = {
            "key": self.key,
            "size": self.shape[::-1],
            "resolution": self.resolution[::-1],
            "voxel_offset": self.voxel_offset[::-1],
            "chunk_sizes": [CHUNK[::-1]],
            "encoding": encoding,
            "sharding": {
                "@type": "neuroglancer_uint64_sharded_v1",
                "hash": "identity",
                "preshift_bits": shared,
                "minishard_bits": 0,
                "shard_bits": len(self.bits) - shared,
                "minishard_index_encoding": "gzip",
                # Pictures are compressed already.
                "data_encoding": "raw" if encoding in ("png", "jpeg") else "gzip",
            },
        }
        return told | (
            {"compressed_segmentation_block_size": [8, 8, 8]} if encoding == "compressed_segmentation" else {}
        )


def info(scales: Sequence[Scale], encoding: Encoding, dtype: np.dtype[Any], channels: int) -> dict[str, Any]:
    """What stands in the file `info` of a volume of these levels."""
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if encoding == "compressed_segmentation" else "image",
        "data_type": dtype.name,
        "num_channels": channels,
        "scales": [scale.described(encoding, dtype.itemsize * channels) for scale in scales],
    }


def encode_shard(told: dict[str, Any], number: int, start: Vec, data: npt.NDArray[Any], name: str) -> bytes:
    """A whole file of level `number` of a volume of which `told` is the `info`, `name` among its files. `data` is
    `(z, y, x)` or `(c, z, y, x)` and begins at voxel `start` of the level.

    Raises `BlockError` for what cannot be encoded.
    """
    import tensorstore

    files = {INFO_FILE: json.dumps(told).encode()}
    opened = open_in_memory("neuroglancer_precomputed", files, name, scale_index=number)
    turned = data.T if data.ndim == 4 else data.T[..., np.newaxis]
    origin = [o + s for o, s in zip(opened.domain.origin[:3], start[::-1], strict=True)]
    place = tuple(slice(o, o + n) for o, n in zip(origin, turned.shape[:3], strict=True))
    try:
        # In one transaction: chunk by chunk, the file would be made anew for each.
        with tensorstore.Transaction() as transaction:
            target = opened.with_transaction(transaction)[place]
            target.write(turned, can_reference_source_data_indefinitely=True).result()
        found = opened.kvstore.read(name).result()
        # Chunks of zeros are left out, whatever is asked for, and a file of nothing else; this is an index of no chunk.
        return bytes(found.value) if found.state == "value" else bytes(INDEX_BYTES)
    except ValueError as error:
        raise BlockError(f"{name} cannot be encoded ({reason_of(error)})") from error

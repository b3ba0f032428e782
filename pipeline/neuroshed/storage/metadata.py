"""New volumes: metadata (OME-Zarr 0.5 of one level, Zarr v3, sharded, zstd with checksum), and arrays to write to."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, WrapperStore

from neuroshed.geometry import Vec
from neuroshed.storage.files import make_folder, sync_path
from neuroshed.storage.locations import Location

CHUNK_SIDE = 64
"""Chunks are the unit of reading: about this many voxels along each side."""


class _Unread(WrapperStore[Store]):
    """A store in which nothing but metadata is there already, for a writer that owns all shards it writes.

    Zarr reads a shard before it writes it, whatever it writes: it would take as long again, and fail where a shard is
    damaged that is to be replaced.
    """

    async def get(self, key: str, *options: Any, **more: Any) -> Buffer | None:
        """Metadata, and no shard."""
        return await super().get(key, *options, **more) if key.endswith("zarr.json") else None


def open_sink(path: Location, name: str) -> zarr.Array[Any]:
    """An array of a volume of ours, to write whole shards to."""
    with path.telling():
        array = zarr.open_array(_Unread(path.zarr_store(read_only=False)), path=name, mode="r+")
    # A block of zeros leaves a file too, so one that is missing later was lost.
    return array.with_config({"write_empty_chunks": True})


def put_metadata(path: Location, metadata: dict[str, bytes]) -> None:
    """Make a volume of its `new_metadata` at `path`, which appears when all of it is there; what another process made
    meanwhile stays.
    """
    if path.is_local:
        _put_on_disk(path.local, metadata)
        return
    # The group's own comes last: it is what makes the volume exist.
    for name in sorted(metadata, key=lambda name: -name.count("/")):
        (path / name).create(metadata[name])


def _put_on_disk(path: Path, metadata: dict[str, bytes]) -> None:
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    for name, data in metadata.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(data)
    for entry in (*draft.rglob("*"), draft):
        sync_path(entry)
    try:
        draft.rename(path)
    except OSError:
        # Another process may have been first; what it made is checked by the caller.
        shutil.rmtree(draft)
        if not path.exists():
            raise
    sync_path(path.parent)


def new_metadata(
    name: str,
    shape: Vec,
    dtype: np.dtype[Any],
    shard_shape: Vec,
    voxel_size: Sequence[float],
    offset: Sequence[float],
    voxel_offsets: Sequence[Vec] | None,
    channels: int | None = None,
    whole: bool = False,
) -> dict[str, bytes]:
    """The files that make a volume without voxels, by their names in it."""
    count = channels if voxel_offsets is None else len(voxel_offsets)
    lead = () if count is None else (count,)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    if lead:
        axes.insert(0, {"name": "c", "type": "channel"})
    transforms = [
        {"type": "scale", "scale": [1.0] * len(lead) + [float(size) for size in voxel_size]},
        {"type": "translation", "translation": [0.0] * len(lead) + [float(o) for o in offset]},
    ]
    image = {"name": name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    attributes: dict[str, Any] = {"ome": {"version": "0.5", "multiscales": [image]}}
    own: dict[str, Any] = {} if voxel_offsets is None else {"offsets": [list(o) for o in voxel_offsets]}
    if own := own | ({"whole": True} if whole else {}):
        attributes["neuroshed"] = own
    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=attributes)
    group.create_array(
        "0",
        shape=(*lead, *shape),
        dtype=dtype,
        chunks=(*(1 for _ in lead), *(chunk_side(side) for side in shard_shape)),
        shards=(*lead, *shard_shape),
        compressors=ZstdCodec(level=compression_level(dtype), checksum=True),
        fill_value=0,
        dimension_names=(*("c" for _ in lead), "z", "y", "x"),
    )
    return {file: data.to_bytes() for file, data in files.items()}


def compression_level(dtype: np.dtype[Any]) -> int:
    """Of zstd. Labels, integers of 32 bits or more, become smaller at 3 than at 1 in no more time; noise does not
    (`benchmarks/io.py`).

    >>> [compression_level(np.dtype(name)) for name in ("uint8", "uint64")]
    [1, 3]
    """
    return 3 if dtype.kind in "ui" and dtype.itemsize >= 4 else 1


def chunk_side(shard_side: int) -> int:
    """The divisor of a shard's side that is nearest to 64 in ratio.

    >>> [chunk_side(n) for n in (256, 96, 61, 100)]
    [64, 48, 61, 50]
    """
    divisors = [d for d in range(1, shard_side + 1) if shard_side % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / CHUNK_SIDE)))

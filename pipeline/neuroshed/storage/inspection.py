"""What a volume is and holds: layout, size on its store, and values of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from neuroshed.geometry import Box, Grid
from neuroshed.storage.shards import root_of
from neuroshed.storage.volumes import Volume

SAMPLES = 64
"""Boxes whose values are looked at, spread evenly over the volume; all of it if there are no more."""
SAMPLE_SIDE = 64
"""Their longest sides."""
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BINS = 32


def describe(volume: Volume, samples: int = SAMPLES) -> dict[str, Any]:
    """What `neuroshed volume info` tells of a volume; reads up to `samples` small boxes, and lists all of its files.

    Sizes are in bytes, lengths in nm, shapes in voxels z y x. `files.missing` are shards (chunks, where there are no
    shards) of which there is none: they read as zeros. Web servers cannot be listed: `files` and `stored_bytes` are
    None. Of the sampled values: their smallest, largest, mean, some percentiles, the share that is 0, and a histogram
    of equal bins.
    """
    array = volume.array
    raw = math.prod(array.shape) * volume.dtype.itemsize
    sizes = [size for _, size in _data_files(volume)] if volume.path.can_list else None
    stored = sum(sizes or ())
    expected = math.prod(-(-n // s) for n, s in zip(array.shape, array.shards or array.chunks, strict=True))
    return {
        "path": str(volume.path),
        "zarr_format": int(array.metadata.zarr_format),
        "shape": list(volume.shape),
        "channels": volume.channels,
        "dtype": volume.dtype.str,
        "voxel_size": list(volume.voxel_size),
        "offset": list(volume.offset),
        "chunk_shape": volume.chunk_shape,
        "shard_shape": None if array.shards is None else volume.shard_shape,
        "codecs": [_name(codec) for codec in (*array.filters, *array.compressors)],
        "raw_bytes": raw,
        "stored_bytes": None if sizes is None else stored,
        "ratio": round(raw / stored, 2) if stored else None,
        "files": None
        if sizes is None
        else {"there": len(sizes), "expected": expected, "missing": expected - len(sizes)},
        "values": _values(volume, samples),
    }


def sample_boxes(volume: Volume, samples: int) -> Iterator[Box]:
    """Boxes of at most `SAMPLE_SIDE` a side, on chunks, spread evenly."""
    z, y, x = (min(side, SAMPLE_SIDE) for side in volume.chunk_shape)
    grid = Grid(volume.box, (z, y, x))
    count = math.prod(grid.counts)
    # Beginning half a step from the first one, so that the middle of the volume is among them.
    for number in range(min(samples, count)):
        yield grid.block_box(grid.index(int((number + 0.5) * count / min(samples, count))))


def _values(volume: Volume, samples: int) -> dict[str, Any]:
    found = [volume.read(box).ravel() for box in sample_boxes(volume, samples)]
    values = np.concatenate(found)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    told: dict[str, Any] = {
        "sampled_share": round(len(values) / (math.prod(volume.shape) * (volume.channels or 1)), 6),
        "zero_share": round(float((values == 0).mean()), 6),
        "not_finite": len(values) - len(finite),
    }
    if not len(finite):
        return told
    counts, edges = np.histogram(finite.astype(np.float64), bins=BINS)
    percentiles = np.percentile(finite, PERCENTILES).tolist()
    return told | {
        "least": finite.min().item(),
        "most": finite.max().item(),
        "mean": round(float(finite.mean(dtype=np.float64)), 4),
        "percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
        "histogram": {"counts": counts.tolist(), "from": float(edges[0]), "to": float(edges[-1])},
    }


def _data_files(volume: Volume) -> Iterator[tuple[Any, int]]:
    """Files of the array's voxels, and their sizes."""
    metadata = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return ((file, size) for file, size in root_of(volume).files() if file.name not in metadata)


def _name(codec: Any) -> str:
    """A codec with what it was given.

    >>> from zarr.codecs import ZstdCodec
    >>> _name(ZstdCodec(level=1, checksum=True))
    'zstd(level=1, checksum=True)'
    """
    values = (
        codec.to_dict() if hasattr(codec, "to_dict") else {"name": codec.codec_id, "configuration": codec.get_config()}
    )
    given = {key: value for key, value in values.get("configuration", {}).items() if key != "id"}
    return f"{values['name']}({', '.join(f'{key}={value}' for key, value in given.items())})"


def display_window(volume: Volume) -> dict[str, float]:
    """What viewers show from black to white (`start`, `end`): the percentiles 0.5 and 99.5 of samples of an image,
    zeros left out; and the values that its type can hold (`min`, `max`).
    """
    found = np.concatenate([volume.read(box).ravel() for box in sample_boxes(volume, SAMPLES)])
    limits = np.iinfo(volume.dtype)
    least, most = float(limits.min), float(limits.max)
    shown = found[found != 0]
    start, end = np.percentile(shown, (0.5, 99.5)).tolist() if shown.size else (least, most)
    if start == end:
        start, end = least, most
    return {"min": least, "max": most, "start": start, "end": end}

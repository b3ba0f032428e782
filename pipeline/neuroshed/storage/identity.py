"""What an input array is, in a few lines that go into fingerprints: other data under the same path is another input."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.views import Voxels
from neuroshed.storage.volumes import Volume

# Voxels along each side of a sample: at most one chunk of a usual volume has to be read for it.
SAMPLE_SIDE = 32


def volume_identity(volume: Volume, *, damaged: bool = False) -> dict[str, Any]:
    """Path, place, shape, type, a SHA-256 of the array's metadata file and one of eight sampled boxes; plain JSON.

    The samples lie in the middle of the eight octants, whatever the chunks, and nothing depends on file times: copying
    back the same bytes keeps the identity. Changes that touch neither metadata nor a sample go unseen.

    Raises `InputError` if the metadata or a sample cannot be read; of a volume that may be `damaged` that a sample
    cannot be read is part of what it is.
    """
    sample = hashlib.sha256()
    for box in sample_boxes(volume.shape):
        try:
            data = read_sample(volume, box)
        except InputError:
            if not damaged:
                raise
            sample.update(b"cannot be read")
        else:
            sample.update(np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes())
    return {
        "path": str(volume.path),
        "shape": list(volume.shape),
        "channels": volume.channels,
        "dtype": volume.dtype.name,
        "voxel_size": list(volume.voxel_size),
        "offset": list(volume.offset),
        "metadata_sha256": metadata_digest(volume),
        "sample_sha256": sample.hexdigest(),
    }


@contextmanager
def unchanged(volume: Volume, identity: dict[str, Any]) -> Iterator[None]:
    """While voxels of an input are read. Afterwards raises `BlockError` if its metadata is gone or not that of its
    identity: chunks that were taken away may have been read as zeros.
    """
    try:
        yield
    finally:
        try:
            same = metadata_digest(volume) == identity["metadata_sha256"]
        except InputError:
            same = False
        if not same:
            raise BlockError(
                f"{volume.path} was removed or replaced since this was planned; put it back as it was, or start anew "
                "with what it is now"
            )


def read_sample(volume: Voxels, box: Box) -> npt.NDArray[Any]:
    """The voxels of a box of an input; raises `InputError` if they cannot be read."""
    try:
        return volume.read(box)
    except Exception as error:
        # Codecs and stores raise what they like; here all of it means that the input is damaged.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"box {box} of {volume.path} cannot be read ({reason}); copy the volume again") from error


def sample_boxes(shape: Vec, divisions: int = 2) -> Iterator[Box]:
    """Boxes of up to 32 voxels a side in the middle of the eight octants of a volume, or of finer divisions.

    >>> [box.start for box in sample_boxes((100, 100, 8))][:2]
    [(9, 9, 0), (9, 9, 0)]
    >>> [box.start for box in sample_boxes((1000, 1, 1), 4)][::16]
    [(109, 0, 0), (359, 0, 0), (609, 0, 0), (859, 0, 0)]
    """
    for place in itertools.product(range(1, 2 * divisions, 2), repeat=3):
        sides = [min(SAMPLE_SIDE, n) for n in shape]
        z, y, x = (
            min(max(n * half // (2 * divisions) - side // 2, 0), n - side)
            for n, half, side in zip(shape, place, sides, strict=True)
        )
        yield Box((z, y, x), (z + sides[0], y + sides[1], x + sides[2]))


def metadata_digest(volume: Volume) -> str:
    """Of the array's own metadata, as it stands on disk: zarr.json (Zarr v3) or .zarray (v2)."""
    name = "zarr.json" if volume.array.metadata.zarr_format == 3 else ".zarray"
    file = volume.path / volume.array.path / name
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); copy the volume again") from error

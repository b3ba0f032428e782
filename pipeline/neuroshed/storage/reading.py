"""What memory the reading of chunked arrays takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import zarr

from neuroshed.storage.disk_arrays import DECODERS

CHUNK_BYTES = 4 << 10
"""What is held of each chunk that is read beside its bytes."""
THREAD_BYTES = 8 << 20
"""What the threads that read and decode have put by."""


def reading_bytes(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], itemsize: int, on_disk: bool
) -> int:
    """Upper bound in bytes of what is taken to read any box of `shape`, its result included; all by the array's own
    axes. `on_disk` arrays are read by tensorstore, others by zarr.
    """
    result = itemsize * math.prod(shape)
    # Wherever the box is, so that its first voxel may be the last of a chunk.
    count = math.prod((n + chunk - 2) // chunk + 1 for n, chunk in zip(shape, chunks, strict=True))
    touched = count * itemsize * math.prod(chunks)
    if on_disk:
        # All is read that is to be decoded, while so many chunks are; then axes are turned.
        decoded = 2 * DECODERS * itemsize * math.prod(chunks)
        return max(2 * result, result + touched + decoded) + count * CHUNK_BYTES + THREAD_BYTES
    # So many files are at work at once, each as stored, decoded and collected; at the end axes are turned.
    files = int(zarr.config.get("async.concurrency")) * itemsize * math.prod(shards)
    return 2 * result + 3 * min(touched, files) + count * CHUNK_BYTES

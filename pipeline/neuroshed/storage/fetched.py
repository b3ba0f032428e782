"""N5 and precomputed arrays in buckets: what a box needs is fetched by our own clients, and decoded in memory.

So credentials, retries and messages are those of everything else in buckets, for all kinds of stores.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage.locations import Location
from neuroshed.storage.many import at_once
from neuroshed.storage.sharded import Shards
from neuroshed.storage.tensors import open_in_memory


class Fetched(ABC):
    """An array of which nothing is held: called with a box, it gives a tensor in which that box can be read."""

    driver: ClassVar[str]

    def __init__(self, place: Location, files: dict[str, bytes], **options: Any) -> None:
        """`files` are those that describe the array, by name. Raises `InputError` if they do not."""
        self._place, self._files, self._options = place, files, options
        self.tensor = self._open(files)
        """With no chunks."""
        z, y, x = self.tensor.shape[2::-1]
        self._grid = Grid(Box.of_shape((z, y, x)), self.tensor.chunk_layout.read_chunk.shape[2::-1])

    def _open(self, files: dict[str, bytes]) -> Any:
        return open_in_memory(self.driver, files, self._place, **self._options)

    def __call__(self, box: Box) -> Any:
        """Raises `WorkflowError` for what the store does not give, `BlockError` for a file that is damaged."""
        wanted = [*self._grid.touching(box)]
        found = self._read(wanted)
        chunks = {self._name(index): data for index, data in zip(wanted, found, strict=True) if data is not None}
        return self._open(self._files | chunks)

    @abstractmethod
    def _name(self, index: Vec) -> str:
        """What the file of a chunk is called."""

    def _read(self, indices: Sequence[Vec]) -> list[bytes | None]:
        """Chunks as they are stored; None for one that is not there."""
        return at_once(_content, [self._place / self._name(index) for index in indices])


def _content(file: Location) -> bytes | None:
    with suppress(FileNotFoundError):
        return file.read_bytes()
    return None


class FetchedN5(Fetched):
    """An N5 dataset in a folder, with its `attributes`."""

    driver = "n5"

    def __init__(self, folder: Location, attributes: dict[str, Any]) -> None:
        super().__init__(folder, {"attributes.json": json.dumps(attributes).encode()})

    def _name(self, index: Vec) -> str:
        return "/".join(map(str, index[::-1]))


class FetchedPrecomputed(Fetched):
    """Scale `number` of a precomputed volume, with its `info`. Chunks of shards are taken for files of their own."""

    driver = "neuroglancer_precomputed"

    def __init__(self, path: Location, info: dict[str, Any], number: int) -> None:
        scales = [{name: value for name, value in scale.items() if name != "sharding"} for scale in info["scales"]]
        files = {"info": json.dumps(info | {"scales": scales}).encode()}
        super().__init__(path, files, scale_index=number)
        scale = info["scales"][number]
        self._key = str(scale["key"])
        sharding = scale.get("sharding")
        self._shards = Shards(path / self._key, sharding, self._grid.counts) if sharding else None

    def _name(self, index: Vec) -> str:
        box = self._grid.block_box(index)
        sides = zip(box.start[::-1], box.stop[::-1], self.tensor.domain.origin[:3], strict=True)
        return f"{self._key}/" + "_".join(f"{start + o}-{stop + o}" for start, stop, o in sides)

    def _read(self, indices: Sequence[Vec]) -> list[bytes | None]:
        return self._shards.read(indices) if self._shards else super()._read(indices)

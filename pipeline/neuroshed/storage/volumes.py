"""OME-Zarr volumes: opening somebody's image, creating our own arrays, reading and writing boxes.

Volumes are written as OME-Zarr 0.5 (Zarr v3, sharded, zstd with checksum); 0.4 (Zarr v2) is read as well. A block
owns whole shards and is their only writer. Volumes that were opened, not created, are read-only.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage import files
from neuroshed.storage.disk_arrays import DiskArray, encode, encode_to, knows, told
from neuroshed.storage.locations import Location
from neuroshed.storage.many import at_once, lacking
from neuroshed.storage.metadata import CHUNK_SIDE, new_metadata, open_sink, put_metadata
from neuroshed.storage.readback import forget_cached, is_reading_back, not_held
from neuroshed.storage.reading import reading_bytes
from neuroshed.storage.tensors import was_forked

MAX_CHUNKS = 1 << 18
"""Chunks of a shard, whose index is held while it is written and read."""

_NANOMETRES = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "angstrom": 0.1, "picometer": 1e-3}


@dataclass(frozen=True)
class Volume:
    """An image, label or affinity array with its place in space.

    `shape` is z, y, x; `channels` is the length of a leading channel axis or None. `voxel_size` and `offset` are in nm,
    z y x. `voxel_offsets` are the edge offsets of affinity channels (channel c at voxel p joins p and p + offset).
    `order` are the array's own axes, turned so that z, y, x come last, after the channels.
    """

    path: Location
    array: zarr.Array[Any]
    shape: Vec
    channels: int | None
    order: tuple[int, ...]
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    voxel_offsets: tuple[Vec, ...] | None = None
    sink: zarr.Array[Any] | None = None
    """The array to write to, of a volume that blocks write."""
    whole: bool = False
    """Whether every shard was written, so that one that is missing was lost."""

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box.of_shape(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one voxel."""
        return np.dtype(self.array.dtype)

    @property
    def shard_shape(self) -> Vec:
        """Sides of the unit of writing."""
        shards = self.array.shards or self.array.chunks
        z, y, x = (shards[axis] for axis in self.order[-3:])
        return z, y, x

    @property
    def chunk_shape(self) -> Vec:
        """Sides of the unit of reading."""
        z, y, x = (self.array.chunks[axis] for axis in self.order[-3:])
        return z, y, x

    @property
    def channels_together(self) -> int:
        """Channels that share a chunk, so that none of them is decoded without the others."""
        return 1 if self.channels is None else int(self.array.chunks[self.order[-4]])

    def read(self, box: Box, channels: int | slice | None = None) -> npt.NDArray[Any]:
        """The voxels of `box`, which must lie inside the volume: `(z, y, x)`, or `(c, z, y, x)` if it has channels, in
        C order and the machine's order of bytes, the caller's to change.

        `channels` reads only that many of the first channels, or a slice of them. Raises `BlockError` for what cannot
        be decoded, and naming a file that is missing from a volume that blocks write (nothing is read before it is
        written) or of which all was written. Raises OSError as the file system does, `WorkflowError` as the object
        store does.
        """
        if not self.box.contains(box):
            raise ValueError(f"box {box} is not inside {self.path} of shape {self.shape}")
        index, disk = self._index(box, channels), self._on_disk
        try:
            with self.path.telling():
                data = disk.read(index) if disk else self.array[index]
        except (OSError, WorkflowError):
            raise
        except Exception as error:
            # Each codec has its own ways to say so.
            if self._all_there and (lost := lacking(self.files(box))) is not None:
                raise self._lost(lost) from error
            raise BlockError(
                f"{self.path} is damaged in {box} ({told(error)}); bring it back if it is an input, else remove its "
                "stage's folder and run again"
            ) from error
        kept = self.order[-np.ndim(data) :]
        turned = np.asarray(data).transpose([sorted(kept).index(axis) for axis in kept])
        found = np.ascontiguousarray(turned, turned.dtype.newbyteorder("="))
        if self._all_there and disk is None:
            self._check_there(box, found)
        return found

    def _index(self, box: Box, channels: int | slice | None) -> tuple[Any, ...]:
        """What to ask the array for, by its own axes."""
        lead: tuple[Any, ...]
        if self.channels is None:
            lead = (0,) * (self.array.ndim - 3)
        else:
            part = channels if isinstance(channels, slice) else slice(0, channels)
            lead = (0,) * (self.array.ndim - 4) + (part,)
        wanted = dict(zip(self.order, (*lead, *box.slices()), strict=True))
        return tuple(wanted[axis] for axis in range(self.array.ndim))

    @property
    def _all_there(self) -> bool:
        """Whether what is not there is an error, and no fill value."""
        return self.sink is not None or self.whole

    @property
    def _on_disk(self) -> DiskArray | None:
        """The array in the way that is faster than zarr-python, where there is one."""
        return self._opened if self.path.is_local and not was_forked() else None

    @functools.cached_property
    def _opened(self) -> DiskArray | None:
        return DiskArray.of(self.array, self._root.local, strict=self._all_there)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is of one process."""
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def _check_there(self, box: Box, found: npt.NDArray[Any]) -> None:
        """Raise `BlockError` naming a shard that is missing or empty, which zarr takes for one of nothing but zeros."""
        grid = Grid(self.box, self.shard_shape)
        suspects = []
        for index, file in zip(grid.touching(box), self.files(box), strict=True):
            part = grid.block_box(index).intersect(box).slices(box.start)
            # To ask a store may take as long as to read, to look at a disk takes nothing.
            if self.path.is_local or not found[(..., *part)].any():
                suspects.append(file)
        if (lost := lacking(suspects)) is not None:
            raise self._lost(lost)

    def _lost(self, file: Location) -> BlockError:
        remedy = "bring it back" if self.sink is None else "remove its stage's folder and run again"
        return BlockError(f"{file} is missing or empty; {remedy}")

    def read_bytes(self, shape: Vec, channels: int = 1) -> int:
        """Upper bound in bytes of what `read` takes at its peak, its result included, for any box of `shape`."""
        wanted = dict(zip(self.order, (*(channels for _ in self.order[:-3]), *shape), strict=True))
        return reading_bytes(
            [wanted[axis] for axis in range(self.array.ndim)],
            self.array.chunks,
            self.array.shards or self.array.chunks,
            self.dtype.itemsize,
            on_disk=self._on_disk is not None,
        )

    def write(self, box: Box, data: npt.NDArray[Any], region: Box | None = None) -> None:
        """Write `box`, which must own whole shards, and sync files and folders to disk before returning.

        A shard that is cut by `region` (default: the volume), outside which nobody writes, counts as whole.
        Raises OSError as the file system does (a full disk included), `WorkflowError` as the object store does,
        `BlockError` if it is read back (`reading_back`) as something else.
        """
        sink = self._owned(box, region or self.box)

        def write_shard(index: Vec) -> None:
            part = Grid(self.box, self.shard_shape).block_box(index).intersect(box)
            self._write_shard(sink, part, data[(..., *part.slices(box.start))])

        indices = list(Grid(self.box, self.shard_shape).touching(box))
        if self.path.is_local:
            for index in indices:
                write_shard(index)
        else:
            at_once(write_shard, indices)
        if is_reading_back():
            self._check_held(box, data)

    def _write_shard(self, sink: zarr.Array[Any], part: Box, data: npt.NDArray[Any]) -> None:
        index = self._index(part, None)
        (file,) = self.files(part)
        if was_forked() or not knows(sink):
            with self.path.telling():
                sink[index] = data
        elif self.path.is_local:
            with files.draft_folder(self._root.local / "c") as folder:
                draft = encode_to(folder, sink, index, data)
                files.sync_path(draft)
                file.local.parent.mkdir(parents=True, exist_ok=True)
                files.put_in_place(draft, file.local)
        else:
            file.put(encode(sink, index, data))
        if self.path.is_local:
            files.sync_entry(file.local, self._root.local)

    def _check_held(self, box: Box, data: npt.NDArray[Any]) -> None:
        forget_cached(self.files(box))
        try:
            differs = np.argwhere(self.read(box) != data)
        except BlockError as error:
            raise not_held(next(self.files(box)), error) from error
        if len(differs):
            z, y, x = (differs[0][-3:] + box.start).tolist()
            file = next(self.files(Box((z, y, x), (z + 1, y + 1, x + 1))))
            raise not_held(file, f"{len(differs)} values of {box} differ, the first at voxel {[z, y, x]}")

    def _owned(self, box: Box, region: Box) -> zarr.Array[Any]:
        """The array to write to, of which a box owns whole shards."""
        if self.sink is None:
            raise ValueError(f"{self.path} was opened for reading; inputs are never changed")
        owns = all(
            (a % s == 0 or a == first) and (b % s == 0 or b == last)
            for a, b, s, first, last in zip(
                box.start, box.stop, self.shard_shape, region.start, region.stop, strict=True
            )
        )
        if not owns or not self.box.contains(box):
            raise ValueError(f"box {box} does not own whole shards of {self.shard_shape} in {self.path}")
        return self.sink

    @property
    def _root(self) -> Location:
        return self.path / self.array.path if self.array.path else self.path

    def files(self, box: Box) -> Iterator[Location]:
        """The files of a volume of ours that hold a box; all its channels are in one shard."""
        lead = (0,) * (self.array.ndim - 3)
        for index in Grid(self.box, self.shard_shape).touching(box):
            yield self._root / self.array.metadata.encode_chunk_key((*lead, *index))


def open_volume(path: str | os.PathLike[str] | Location, axes: str | None = None, level: int | str = 0) -> Volume:
    """Open an OME-Zarr 0.4 or 0.5 image or a plain Zarr array, read-only. `level` is the number of a level, 0
    the finest, or the name of its array.

    A plain array without OME metadata gets a voxel size of 1 nm. Leading axes of length 1 (time, channel) are dropped.
    `axes` says that the array has channels, and in which order its last four axes are stored, such as `xyzc`.

    Raises `InputError` if there is no array, it is not 3-D (plus channels), or `axes` contradicts what the array says.
    """
    path = Location.of(path)
    if not path.exists():
        raise InputError(f"no volume at {path}: the path does not exist or is empty; check the spelling")
    try:
        with path.telling():
            node = zarr.open(path.zarr_store(read_only=True), mode="r")
    except WorkflowError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is not a Zarr array or group ({type(error).__name__}); "
            "bring other formats in with `neuroshed import`"
        ) from error
    if isinstance(node, zarr.Array):
        return _describe(path, node, {}, {}, axes)
    attributes: dict[str, Any] = dict(node.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        arrays = sorted(name for name, _ in node.arrays())
        hint = f"; name one of its arrays: {', '.join(arrays)}" if arrays else ""
        raise InputError(f"{path} is a Zarr group without OME-Zarr multiscales{hint}")
    try:
        levels = images[0]["datasets"]
        chosen = levels[level:] if isinstance(level, int) else [entry for entry in levels if entry["path"] == level]
        image = images[0] | {"datasets": chosen}
        return _describe(path, _finest(path, node, image), image, attributes, axes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} has broken OME-Zarr metadata ({type(error).__name__}: {error}); write it again with its own tool"
        ) from error


def _finest(path: Location, group: zarr.Group, image: dict[str, Any]) -> zarr.Array[Any]:
    name = image["datasets"][0]["path"]
    if name not in group:
        raise InputError(f"{path} names the array {name!r} in its metadata, but it is missing")
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{path}/{name} is a group where an array was expected")
    return array


def _order(path: Location, array: zarr.Array[Any], image: dict[str, Any], declared: str | None) -> tuple[int, ...]:
    """The array's axes with z, y, x last, after the channels; raises `InputError` if it says otherwise itself."""
    if declared is None:
        return tuple(range(array.ndim))
    # OME-Zarr images that can be opened at all are c, z, y, x.
    own = [*"czyx"] if image else list(getattr(array.metadata, "dimension_names", None) or ())
    named = [name for name in own if name in [*declared]]
    if array.ndim < 4:
        raise InputError(f"{path} has {array.ndim} axes; needed are 4: {', '.join(declared)}")
    if len(named) >= 3 and named != [name for name in declared if name in named]:
        raise InputError(
            f"{path} says that its axes are {', '.join(map(str, own))}, declared are {', '.join(declared)}; declare "
            "what it says"
        )
    lead = array.ndim - 4
    return (*range(lead), *(lead + declared.index(axis) for axis in "czyx"))


def _describe(
    path: Location, array: zarr.Array[Any], image: dict[str, Any], attributes: dict[str, Any], declared: str | None
) -> Volume:
    order = _order(path, array, image, declared)
    shape = tuple(array.shape[axis] for axis in order)
    axes = image.get("axes") or ["t", "c", "z", "y", "x"][-array.ndim :]
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in axes]
    extra = shape[: max(array.ndim - 3, 0)]
    if 0 in shape:
        raise InputError(f"{path} has shape {shape} and so no voxels; check that it was written whole")
    offsets = attributes.get("neuroshed", {}).get("offsets")
    keep_channels = offsets is not None or (
        bool(extra) and (extra[-1] != 1 or declared is not None) and names[-4] != "t"
    )
    if array.ndim < 3 or names[-3:] != ["z", "y", "x"] or any(n != 1 for n in extra[: len(extra) - keep_channels]):
        raise InputError(
            f"{path} has axes {names} and shape {shape}; needed are z, y, x, with at most one channel axis before them"
        )
    scale, translation = [1.0] * array.ndim, [0.0] * array.ndim
    transforms = [*image.get("datasets", [{}])[0].get("coordinateTransformations", [])]
    for transform in (*transforms, *image.get("coordinateTransformations", [])):
        if transform["type"] == "scale":
            scale = [a * b for a, b in zip(scale, transform["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, transform["scale"], strict=True)]
        elif transform["type"] == "translation":
            translation = [a + b for a, b in zip(translation, transform["translation"], strict=True)]
    units = [_NANOMETRES.get(axis.get("unit", ""), 1.0) if isinstance(axis, dict) else 1.0 for axis in axes[-3:]]
    size = [s * u for s, u in zip(scale[-3:], units, strict=True)]
    place = [s * u for s, u in zip(translation[-3:], units, strict=True)]
    return Volume(
        path=path,
        array=array,
        shape=(shape[-3], shape[-2], shape[-1]),
        channels=shape[-4] if keep_channels else None,
        order=order,
        voxel_size=(size[0], size[1], size[2]),
        offset=(place[0], place[1], place[2]),
        voxel_offsets=tuple((o[0], o[1], o[2]) for o in offsets) if offsets is not None else None,
        whole=bool(attributes.get("neuroshed", {}).get("whole", False)),
    )


def create_volume(
    path: str | os.PathLike[str] | Location,
    *,
    shape: Vec,
    dtype: npt.DTypeLike,
    shard_shape: Vec,
    voxel_size: Sequence[float],
    offset: Sequence[float] = (0.0, 0.0, 0.0),
    voxel_offsets: Sequence[Vec] | None = None,
    channels: int | None = None,
    whole: bool = False,
) -> Volume:
    """Create an OME-Zarr 0.5 image of one level at `path`, or open it for writing if the same one is there already.

    Affinities give `voxel_offsets`, one a channel; they are stored beside the OME metadata as `neuroshed.offsets`.
    Other `channels` have none. `whole` says that every block will be written, so that a shard that is not there was
    lost; it is stored as `neuroshed.whole`. The volume appears under its name only when its metadata is complete.

    Raises `WorkflowError` if something else is at `path`.
    """
    path = Location.of(path)
    if not path.exists() or not (path.is_local or (path / "zarr.json").exists()):
        new = new_metadata(
            path.name, shape, np.dtype(dtype), shard_shape, voxel_size, offset, voxel_offsets, channels, whole
        )
        put_metadata(path, new)
    volume = open_volume(path)
    if volume.shape != shape or volume.dtype != np.dtype(dtype) or volume.shard_shape != shard_shape:
        raise WorkflowError(
            f"{path} exists with shape {volume.shape}, {volume.dtype}, shards {volume.shard_shape}, where {shape}, "
            f"{np.dtype(dtype)}, {shard_shape} is wanted; choose another path or remove it"
        )
    return replace(volume, sink=open_sink(path, volume.array.basename))


def check_block_shape(block_shape: Vec, shard_shape: Vec) -> None:
    """Raise `WorkflowError` unless a block is made of whole shards, and a shard of a number of chunks that can be
    listed.
    """
    chunks = math.prod(-(-side // CHUNK_SIDE) for side in shard_shape)
    if chunks > MAX_CHUNKS:
        raise WorkflowError(
            f"a shard of {list(shard_shape)} holds {chunks} chunks of {CHUNK_SIDE} voxels a side, more than "
            f"{MAX_CHUNKS}; choose a smaller shard_shape, or block_shape if there is none"
        )
    if any(block % shard for block, shard in zip(block_shape, shard_shape, strict=True)):
        fit = [max(round(b / s), 1) * s for b, s in zip(block_shape, shard_shape, strict=True)]
        raise WorkflowError(
            f"block {list(block_shape)} is not a multiple of shard {list(shard_shape)}; nearest that fits: {fit}"
        )

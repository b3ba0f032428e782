"""Volumes in chunks that others wrote: N5, Zarr and OME-Zarr, Neuroglancer precomputed; on disk, in buckets, online.

A chunk that is not there is one of zeros (Zarr: of the fill value), as these formats have it. Boxes are read in pieces
of whole chunks, so that memory does not depend on them.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Box, Vec, divided
from neuroshed.storage import spacing
from neuroshed.storage.datasets import at, choose_level, find_datasets, listed, read_json
from neuroshed.storage.fetched import Fetched, FetchedN5, FetchedPrecomputed
from neuroshed.storage.locations import Location
from neuroshed.storage.readers import Reader
from neuroshed.storage.tensors import CACHE_BYTES, check_process, is_damage, open_tensor, reason_of
from neuroshed.storage.volumes import Volume, open_volume

PIECE_BYTES = 32 << 20
"""What is read at once, or one chunk if that is larger."""
SAMPLE_FILES = 100
"""So many are looked at to learn how chunks are named."""
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def open_chunked(path: Location, dataset: str | None) -> Reader | None:
    """A reader of the volume in a folder, or None if it is of none of these formats.

    Raises `InputError` for what cannot be read, with what there is.
    """
    if _is_there(path, "info") and "scales" in (read_json(path / "info") or {}):
        return PrecomputedSource(path, dataset)
    folders = [path] if dataset is None else [path, at(path, dataset)]
    if any(_is_there(folder, name) for folder in folders for name in ZARR_FILES):
        return ZarrSource(path, dataset)
    in_container = any(part.endswith(".n5") for part in f"{path}".split("/"))
    if in_container or any(_is_there(folder, "attributes.json") for folder in folders):
        return N5Source(path, dataset)
    return None


def _is_there(folder: Location, name: str) -> bool:
    return (folder / name).size() is not None


class _InPieces(Reader):
    """Reads boxes by pieces of whole chunks."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of `box`. Raises `BlockError` for a chunk that cannot be decoded."""
        out = np.empty(box.shape, self.dtype)
        grid = divided(box, self.unit, PIECE_BYTES // self.dtype.itemsize)
        for index in grid:
            piece = grid.block_box(index)
            out[piece.slices(box.start)] = self._fetch(piece)
        return out

    @property
    def _piece_shape(self) -> Vec:
        """Sides of the largest piece."""
        return divided(Box.of_shape(self.shape), self.unit, PIECE_BYTES // self.dtype.itemsize).block_shape

    @abstractmethod
    def _fetch(self, box: Box) -> npt.NDArray[Any]: ...


class _Tensor(_InPieces):
    """An array of tensorstore, whose axes are x, y, z."""

    def _show(self, path: Location, name: str, opened: Any) -> None:
        """`opened` is the tensor, or gives one for each box."""
        self._path, self._name, self._opened = path, name, opened
        self._tensor = _turned(opened.tensor if isinstance(opened, Fetched) else opened)
        z, y, x = self._tensor.shape
        self.shape = (z, y, x)
        self.dtype = np.dtype(self._tensor.dtype.numpy_dtype)
        z, y, x = self._tensor.chunk_layout.read_chunk.shape
        self.unit = (min(z, self.shape[0]), min(y, self.shape[1]), min(x, self.shape[2]))
        # Pieces as stored, decoded and collected; those at an edge may be of chunks that reach beyond it.
        decoded = max(math.prod(self._piece_shape), z * y * x)
        self.cache_bytes = CACHE_BYTES + 3 * decoded * self.dtype.itemsize

    def _fetch(self, box: Box) -> npt.NDArray[Any]:
        check_process(self._path)
        tensor = _turned(self._opened(box)) if isinstance(self._opened, Fetched) else self._tensor
        try:
            found: npt.NDArray[Any] = tensor[box.slices()].read().result()
        except Exception as error:
            place = f"{self._path}, dataset {self._name}," if self._name else f"{self._path}"
            if is_damage(error):
                raise BlockError(f"{place} cannot be decoded in {box} ({reason_of(error)}); copy it again") from error
            raise WorkflowError(f"{place} cannot be read in {box} ({reason_of(error)}); see that it can") from error
        return found


def _turned(tensor: Any) -> Any:
    """With axes z, y, x that begin at 0; of channels the first."""
    import tensorstore

    plain = tensor[..., 0] if tensor.ndim == 4 else tensor
    return plain[tensorstore.d[:].translate_to[0]].T


def _is_fetched(path: Location) -> bool:
    """Whether an array is in a bucket."""
    return not path.is_local and path.can_list


class N5Source(_Tensor):
    """A 3-D dataset of an N5 container."""

    def __init__(self, path: Location, dataset: str | None) -> None:
        name = (choose_level(path, _n5_shapes(path)) if dataset is None else dataset).strip("/")
        attributes = read_json(at(path, name) / "attributes.json") or {}
        shape = attributes.get("dimensions")
        if shape is None:
            raise InputError(f"{path} has no dataset {name!r}; there are: {listed(_n5_shapes(path))}")
        if not isinstance(shape, list) or len(shape) != 3:
            raise InputError(f"{path} dataset {name!r} is {shape} (x y z ...); needed is a 3-D one (x y z)")
        folder = at(path, name)
        self._show(path, name, FetchedN5(folder, attributes) if _is_fetched(path) else open_tensor("n5", folder))
        parts = name.split("/") if name else []
        folders = [at(path, "/".join(parts[:count])) for count in range(len(parts), -1, -1)]
        self.metadata = tuple(folder / "attributes.json" for folder in folders)
        told = spacing.of_n5([read_json(file) or {} for file in self.metadata], folders[0].name)
        if told is not None:
            self.voxel_size, self.offset = told
        self.description = f"N5 dataset {name or path.name}"


def _n5_shapes(path: Location) -> dict[str, Any]:
    """Shapes, x y z, of the datasets in a container, by name."""
    return find_datasets(path, lambda folder: (read_json(folder / "attributes.json") or {}).get("dimensions"))


class PrecomputedSource(_Tensor):
    """One scale of a Neuroglancer precomputed volume of one channel."""

    def __init__(self, path: Location, dataset: str | None) -> None:
        info = read_json(path / "info") or {}
        try:
            scales = {str(scale["key"]): scale for scale in info["scales"]}
            sizes = {key: [float(side) for side in scale["resolution"]] for key, scale in scales.items()}
            finest = min(sizes, key=lambda key: math.prod(sizes[key]))
            channels = info["num_channels"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path / 'info'} does not describe a volume ({type(error).__name__}: {error})") from error
        key = finest if dataset is None else dataset.strip("/")
        if key not in scales:
            there = listed({name: scale.get("size") for name, scale in scales.items()})
            raise InputError(f"{path} has no scale {key!r}; there are: {there}")
        if channels != 1:
            raise InputError(f"{path} has {channels} channels; export the one that is wanted as a volume of its own")
        _refuse_compressed(path / key)
        number = list(scales).index(key)
        if _is_fetched(path):
            self._show(path, key, FetchedPrecomputed(path, info, number))
        else:
            self._show(path, key, open_tensor("neuroglancer_precomputed", path, scale_index=number))
        told = spacing.of_precomputed(sizes[key], sizes[finest], scales[key].get("voxel_offset", [0, 0, 0]))
        if told is not None:
            self.voxel_size, self.offset = told
        self.labels = {"segmentation": True, "image": False}.get(str(info.get("type")))
        self.metadata = (path / "info",)
        self.description = f"precomputed scale {key} ({scales[key].get('encoding')})"


def _refuse_compressed(scale: Location) -> None:
    """CloudVolume compresses chunks on disk under other names, where they would be taken for missing ones."""
    if not scale.is_local or not scale.local.is_dir():
        return
    for file in itertools.islice(scale.local.iterdir(), SAMPLE_FILES):
        if file.suffix in (".gz", ".br", ".zstd"):
            raise InputError(
                f"{file} is a compressed chunk, which only CloudVolume reads; unpack them all (`gunzip -r {scale}` for "
                ".gz) in a copy of the volume"
            )


class ZarrSource(_InPieces):
    """An array of Zarr v2 or v3, or a level of an OME-Zarr image (the finest, if none is named)."""

    def __init__(self, path: Location, dataset: str | None) -> None:
        volume, placed = _open_zarr(path, dataset)
        if volume.channels is not None:
            raise InputError(
                f"{path} has {volume.channels} channels; export the one that is wanted as a volume of its own"
            )
        self._volume = volume
        self.shape = volume.shape
        self.dtype = volume.dtype.newbyteorder("=")
        z, y, x = (min(volume.array.chunks[axis], volume.array.shape[axis]) for axis in volume.order[-3:])
        self.unit = (z, y, x)
        self.cache_bytes = volume.read_bytes(self._piece_shape)
        if placed:
            self.voxel_size, self.offset = volume.voxel_size, volume.offset
            self.labels = "image-label" in _ome_attributes(volume.path) or None
        else:
            self.voxel_size = spacing.of_hdf5(dict(volume.array.attrs))
        array = at(volume.path, volume.array.path)
        files = [folder / name for folder in (volume.path, array) for name in ZARR_FILES]
        self.metadata = tuple(dict.fromkeys(file for file in files if file.size() is not None))
        kind = "OME-Zarr" if placed else "Zarr"
        self.description = f"{kind} array {str(array).removeprefix(f'{path}').strip('/') or path.name}"

    def _fetch(self, box: Box) -> npt.NDArray[Any]:
        return self._volume.read(box)


def _open_zarr(path: Location, dataset: str | None) -> tuple[Volume, bool]:
    """An array, and whether OME-Zarr metadata place it."""
    if dataset is None:
        return open_volume(path), bool(_levels(path))
    parts = dataset.strip("/").split("/")
    for count in range(len(parts) - 1, -1, -1):
        group, level = at(path, "/".join(parts[:count])), "/".join(parts[count:])
        if level in _levels(group):
            return open_volume(group, level=level), True
    folder = at(path, dataset)
    if not any(_is_there(folder, name) for name in ZARR_FILES):
        found = find_datasets(path, _zarr_shape) or dict.fromkeys(_levels(path))
        raise InputError(f"{path} has no dataset {dataset!r}; there are: {listed(found)}")
    return open_volume(folder), bool(_levels(folder))


def _levels(group: Location) -> list[str]:
    """Names of the arrays of an OME-Zarr image, finest first; none if it is no image."""
    try:
        return [level["path"] for level in _ome_attributes(group)["multiscales"][0]["datasets"]]
    except (LookupError, TypeError, AttributeError):
        return []


def _ome_attributes(group: Location) -> dict[str, Any]:
    """What a group says by the rules of OME-Zarr 0.5 or 0.4, or all of its attributes."""
    attributes = (read_json(group / "zarr.json") or {}).get("attributes") or read_json(group / ".zattrs") or {}
    found: dict[str, Any] = attributes.get("ome", attributes)
    return found


def _zarr_shape(folder: Location) -> Any:
    """The shape of an array; None if it is none."""
    return (read_json(folder / ".zarray") or read_json(folder / "zarr.json") or {}).get("shape")

"""Volumes in one file: NumPy arrays, MRC volumes, HDF5 datasets."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.readers import Reader
from neuroshed.storage.spacing import of_hdf5, of_mrc

# Large enough to hold the chunks of a few hundred rows of a block: h5py's own default is 1 MiB.
HDF5_CACHE_BYTES = 64 * 2**20


class NpySource(Reader):
    """A NumPy `.npy` array, memory-mapped."""

    def __init__(self, path: Path) -> None:
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path} is not a readable .npy array ({reason})") from error
        self.shape: Vec = self._array.shape
        self.dtype = np.dtype(self._array.dtype)
        self.unit: Vec = (1, 1, 1)
        self.cache_bytes = 0
        self.description = "NumPy array"

    def read(self, box: Box) -> npt.NDArray[Any]:
        """A copy of the voxels of `box`."""
        return np.array(self._array[box.slices()])


class MrcSource(Reader):
    """An MRC 2014 volume (`.mrc`, `.rec`, `.map`), memory-mapped."""

    def __init__(self, path: Path) -> None:
        import mrcfile

        try:
            with warnings.catch_warnings():
                # A file that is longer than it says, or of an older format.
                warnings.simplefilter("ignore", RuntimeWarning)
                file = mrcfile.mmap(path, mode="r", permissive=False)
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is not a readable MRC file ({str(error).splitlines()[0]})") from error
        self._array = file.data
        self.shape: Vec = self._array.shape
        self.dtype = np.dtype(self._array.dtype)
        self.unit: Vec = (1, 1, 1)
        self.cache_bytes = 0
        self.description = "MRC volume"
        header = file.header
        cell = [float(header.cella[axis]) for axis in "xyz"]
        self.voxel_size = of_mrc(cell, [int(header[f"m{axis}"]) for axis in "xyz"])

    def read(self, box: Box) -> npt.NDArray[Any]:
        """A copy of the voxels of `box`."""
        return np.array(self._array[box.slices()])


class Hdf5Source(Reader):
    """One dataset of an HDF5 file."""

    def __init__(self, path: Path, dataset: str | None) -> None:
        try:
            # Locks are for writers; read-only file systems refuse them.
            file = h5py.File(path, "r", locking=False, rdcc_nbytes=HDF5_CACHE_BYTES)
            self._array = _choose_dataset(path, file, dataset)
        except OSError as error:
            raise InputError(f"{path} is not a readable HDF5 file ({str(error).splitlines()[0]})") from error
        self._path = path
        self.shape: Vec = self._array.shape
        self.dtype = np.dtype(self._array.dtype)
        self.unit: Vec = self._array.chunks or (1, 1, 1)
        self.cache_bytes = HDF5_CACHE_BYTES + math.prod(self.unit) * self.dtype.itemsize
        self.description = f"HDF5 dataset {self._array.name}"
        self.voxel_size = of_hdf5(self._array.attrs)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of `box`. Raises `BlockError` for a chunk that cannot be decoded."""
        try:
            return np.asarray(self._array[box.slices()])
        except OSError as error:
            raise BlockError(
                f"box {box} of {self._array.name} in {self._path} cannot be decoded ({str(error).splitlines()[0]})"
            ) from error


def _choose_dataset(path: Path, file: Any, dataset: str | None) -> Any:
    found: dict[str, Any] = {}
    file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
    listing = ", ".join(f"{name} {list(node.shape or ())} {node.dtype}" for name, node in found.items()) or "none"
    if dataset is None:
        volumes = [name for name, node in found.items() if node.ndim == 3]
        if len(volumes) != 1:
            raise InputError(f"{path} has {len(volumes)} 3-D datasets; choose with `--dataset` (there are: {listing})")
        dataset = volumes[0]
    node = found.get(dataset.strip("/"))
    if node is None:
        raise InputError(f"{path} has no dataset {dataset!r}; there are: {listing}")
    if node.ndim != 3:
        raise InputError(f"{path} has no 3-D (z, y, x) dataset {dataset!r}; there are: {listing}")
    _check_filters(path, node)
    return node


def _check_filters(path: Path, node: Any) -> None:
    properties = node.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"{path} is compressed with the HDF5 filter {code} ({name.decode(errors='replace').splitlines()}), "
                "which is not installed; rewrite it with `h5repack -f GZIP=4`"
            )

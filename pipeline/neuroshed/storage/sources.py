"""Foreign formats behind one interface: a shape, a type, and `read(box)`, as lazily as the format allows.

`open_source` takes a multi-page TIFF, a folder of TIFF or PNG sections, an HDF5 dataset, an MRC volume or a `.npy`
array. Nothing is read before a box is asked for, and source files are never changed. The `import` stage turns a source
into a volume.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.sections import SectionFolder, TiffStack
from neuroshed.storage.spacing import VoxelSize, of_hdf5, of_mrc

# Large enough to hold the chunks of a few hundred rows of a block: h5py's own default is 1 MiB.
HDF5_CACHE_BYTES = 64 * 2**20

_FORMATS = "a .tif/.tiff stack, a folder of .tif or .png sections, .h5/.hdf5/.hdf, .mrc/.rec/.map or .npy"


class Reader(Protocol):
    """Voxels of one format as they are stored.

    `unit` is the box that has to be decoded at once, `cache_bytes` the most that is kept of decoded ones.
    """

    shape: Vec
    dtype: np.dtype[Any]
    unit: Vec
    cache_bytes: int
    description: str
    voxel_size: VoxelSize | None
    """As the file tells it, in nm, z y x."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box inside the shape."""


@dataclass(frozen=True)
class Source:
    """A volume in a foreign format. `dtype` is what `read` returns: uint8, uint16, uint32 or uint64.

    Booleans become uint8, signed labels the unsigned type of their width. With an `intensity` range any number becomes
    uint8: the low end 0, the high end 255, rounded, clipped.
    """

    path: Path
    reader: Reader
    dtype: np.dtype[Any]
    intensity: tuple[float, float] | None = None

    @property
    def shape(self) -> Vec:
        """Voxels, z y x."""
        return self.reader.shape

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of a voxel in the file."""
        return self.reader.dtype

    @property
    def unit(self) -> Vec:
        """Sides of what has to be decoded at once: a section, a strip, a chunk; 1 where voxels can be picked."""
        return self.reader.unit

    @property
    def cache_bytes(self) -> int:
        """The most memory that reading holds besides what it returns."""
        return self.reader.cache_bytes

    @property
    def voxel_size(self) -> VoxelSize | None:
        """In nm, z y x, if the file tells it."""
        return self.reader.voxel_size

    @property
    def description(self) -> str:
        """One line for the user: format, shape, type."""
        z, y, x = self.shape
        return f"{self.reader.description}, {z} x {y} x {x} {self.reader.dtype}"

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of `box`, which must lie inside the shape.

        Raises `BlockError` for data that cannot be decoded, negative labels, and NaN or infinity.
        """
        if not Box.of_shape(self.shape).contains(box):
            raise ValueError(f"box {box} is not inside {self.path} of shape {self.shape}")
        data = self.reader.read(box)
        if self.intensity is not None:
            return self._rescale(data, box)
        if data.dtype.kind == "i":
            self._refuse(data < 0, data, box, "labels must not be negative")
        return data.astype(self.dtype, copy=False)

    def _rescale(self, data: npt.NDArray[Any], box: Box) -> npt.NDArray[np.uint8]:
        assert self.intensity is not None
        low, high = self.intensity
        if data.dtype.kind == "f":
            self._refuse(~np.isfinite(data), data, box, "intensities must be finite")
        out = np.empty(data.shape, np.uint8)
        # Section by section: the float64 copy stays small.
        for plane, values in zip(out, data, strict=True):
            inside = np.clip(values.astype(np.float64), low, high)
            plane[...] = np.rint((inside - low) * (255.0 / (high - low)))
        return out

    def _refuse(self, wrong: npt.NDArray[np.bool_], data: npt.NDArray[Any], box: Box, rule: str) -> None:
        if wrong.any():
            place = np.unravel_index(int(wrong.argmax()), wrong.shape)
            voxel = [int(p) + start for p, start in zip(place, box.start, strict=True)]
            raise BlockError(f"{self.path} has the value {data[place]} at voxel {voxel} (z y x); {rule}")


def open_source(
    path: str | os.PathLike[str],
    dataset: str | None = None,
    *,
    intensity: tuple[float, float] | None = None,
    check: bool = True,
) -> Source:
    """Open a volume in a foreign format.

    `dataset` names the array in an HDF5 file; it may be left out if the file has one 3-D dataset. Floating-point data
    need an `intensity` range. `check` looks at the header of every section at once; without it, a section that differs
    from the first is found when it is read.

    Raises `InputError` for what cannot be imported, with the remedy.
    """
    path = Path(path).resolve()
    if not path.exists():
        raise InputError(f"no source at {path}: the path does not exist; check the spelling")
    reader = _open_reader(path, dataset, check)
    if len(reader.shape) != 3 or 0 in reader.shape:
        raise InputError(f"{path} has shape {list(reader.shape)}; needed is a 3-D array (z, y, x) with voxels in it")
    return Source(path, reader, _target_dtype(path, reader.dtype, intensity), intensity)


def _open_reader(path: Path, dataset: str | None, check: bool) -> Reader:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".h5", ".hdf5", ".hdf"):
        return Hdf5Source(path, dataset)
    if dataset is not None:
        raise InputError(
            f"{path} has no datasets to choose {dataset!r} from, as HDF5 files have; leave `--dataset` out"
        )
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
            raise InputError(f"{path} is a Zarr volume already; use it as it is, without importing it")
        return SectionFolder(path, check=check)
    if suffix in (".tif", ".tiff"):
        return TiffStack(path)
    if suffix == ".npy":
        return NpySource(path)
    if suffix in (".mrc", ".rec", ".map"):
        return MrcSource(path)
    raise InputError(f"{path} is of no known format; known are {_FORMATS}")


def _target_dtype(path: Path, dtype: np.dtype[Any], intensity: tuple[float, float] | None) -> np.dtype[Any]:
    if dtype.kind not in "buif" or dtype.itemsize > 8 or dtype == np.float16:
        raise InputError(
            f"{path} has voxels of type {dtype}; supported are bool, integers of 8 to 64 bits, float32 and float64"
        )
    if intensity is not None:
        low, high = intensity
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"intensity range {low} to {high} is empty; the low end must be below the high end")
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        raise InputError(f"{path} has {dtype} voxels; say which intensities become 0 and 255 with `--range LOW HIGH`")
    return np.dtype(f"uint{8 * dtype.itemsize}")


class NpySource:
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
        self.voxel_size: VoxelSize | None = None

    def read(self, box: Box) -> npt.NDArray[Any]:
        """A copy of the voxels of `box`."""
        return np.array(self._array[box.slices()])


class MrcSource:
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


class Hdf5Source:
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

"""Foreign formats behind one interface: a shape, a type, and `read(box)`, as lazily as the format allows.

`open_source` takes a multi-page TIFF, a folder of TIFF, PNG or JPEG sections, an HDF5 dataset, an MRC volume, a `.npy`
array, and arrays of Zarr, N5 and Neuroglancer precomputed. Nothing is read before a box is asked for, and source files
are never changed. The `import` stage turns a source into a volume.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.arrays import Hdf5Source, MrcSource, NpySource
from neuroshed.storage.chunked import open_chunked
from neuroshed.storage.locations import Location
from neuroshed.storage.readers import Reader
from neuroshed.storage.sections import SectionFolder, TiffStack
from neuroshed.storage.spacing import Place, VoxelSize

_FORMATS = (
    "a .tif/.tiff stack, a folder of .tif, .png or .jpg sections, .h5/.hdf5/.hdf, .mrc/.rec/.map, .npy, and folders of "
    "Zarr, N5 and Neuroglancer precomputed"
)


@dataclass(frozen=True)
class Source:
    """A volume in a foreign format. `dtype` is what `read` returns: uint8, uint16, uint32 or uint64.

    Booleans become uint8, signed labels the unsigned type of their width. With an `intensity` range any number becomes
    uint8: the low end 0, the high end 255, rounded, clipped.
    """

    path: Location
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
    def offset(self) -> Place | None:
        """Of the first voxel in nm, z y x, if the file tells it."""
        return self.reader.offset

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
    path: str | os.PathLike[str] | Location,
    dataset: str | None = None,
    *,
    intensity: tuple[float, float] | None = None,
    check: bool = True,
) -> Source:
    """Open a volume in a foreign format.

    `dataset` names the array in an HDF5 file, an N5 container or a Zarr group, or the scale of a precomputed volume; it
    may be left out where there is one, or levels of one, of which the finest is taken. Floating-point data need an
    `intensity` range. `check` looks at the header of every section at once; without it, a section that differs from the
    first is found when it is read.

    Raises `InputError` for what cannot be imported, with the remedy.
    """
    path = Location.of(path)
    if path.is_local and not path.local.exists():
        raise InputError(f"no source at {path}: the path does not exist; check the spelling")
    reader = _open_reader(path, dataset, check)
    if len(reader.shape) != 3 or 0 in reader.shape:
        raise InputError(f"{path} has shape {list(reader.shape)}; needed is a 3-D array (z, y, x) with voxels in it")
    return Source(path, reader, _target_dtype(path, reader.dtype, intensity), intensity)


def _open_reader(place: Location, dataset: str | None, check: bool) -> Reader:
    if not (place.is_local and place.local.is_file()) and (chunked := open_chunked(place, dataset)) is not None:
        return chunked
    if not place.is_local:
        raise InputError(
            f"there is no Zarr, N5 or precomputed volume at {place}; check the spelling, and copy other formats to a "
            "disk of this machine first"
        )
    path = place.local
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".h5", ".hdf5", ".hdf"):
        return Hdf5Source(path, dataset)
    if dataset is not None:
        raise InputError(
            f"{path} has no datasets to choose {dataset!r} from, as HDF5, Zarr and N5 have; leave `--dataset` out"
        )
    if path.is_dir():
        return SectionFolder(path, check=check)
    if suffix in (".tif", ".tiff"):
        return TiffStack(path)
    if suffix == ".npy":
        return NpySource(path)
    if suffix in (".mrc", ".rec", ".map"):
        return MrcSource(path)
    raise InputError(f"{path} is of no known format; known are {_FORMATS}")


def _target_dtype(path: Location, dtype: np.dtype[Any], intensity: tuple[float, float] | None) -> np.dtype[Any]:
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

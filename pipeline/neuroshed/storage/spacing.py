"""Voxel sizes as files of other programs tell them, in nm, z y x; None where a file does not say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

VoxelSize = tuple[float, float, float]
Place = tuple[float, float, float]
Placed = tuple[VoxelSize, Place] | None

NANOMETRES = {
    "pm": 1e-3, "picometer": 1e-3,
    "å": 0.1, "angstrom": 0.1,
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "µm": 1e3, "μm": 1e3, "um": 1e3, "micron": 1e3, "micrometer": 1e3, "micrometre": 1e3, "\\u00b5m": 1e3,
    "mm": 1e6, "millimeter": 1e6,
}  # fmt: skip
"""Of units as they are written, in lower case."""
HDF5_ATTRIBUTES = {"resolution": 1.0, "voxel_size": 1.0, "element_size_um": 1e3}
"""Of datasets, z y x, and their units in nm: CREMI's, ours, and that of ImageJ's HDF5 plugin."""


def of_hdf5(attributes: Mapping[str, Any]) -> VoxelSize | None:
    """By the attributes of an HDF5 dataset.

    >>> of_hdf5({"resolution": [40.0, 4.0, 4.0]}), of_hdf5({"element_size_um": [0.04, 0.004, 0.004]}), of_hdf5({})
    ((40.0, 4.0, 4.0), (40.0, 4.0, 4.0), None)
    """
    for name, unit in HDF5_ATTRIBUTES.items():
        if name in attributes and (found := _checked(attributes[name], unit)):
            return found
    return None


def of_mrc(cell: Sequence[float], samples: Sequence[int]) -> VoxelSize | None:
    """By the cell (x y z, in ångström) of an MRC header and the samples along it.

    >>> of_mrc((1000, 1000, 4000), (10, 10, 100)), of_mrc((0, 0, 0), (10, 10, 100))
    ((4.0, 10.0, 10.0), None)
    """
    if any(count <= 0 for count in samples):
        return None
    return _checked([side / count for side, count in zip(cell, samples, strict=True)][::-1], NANOMETRES["angstrom"])


def of_ome(xml: str) -> VoxelSize | None:
    """By OME-XML, as TIFFs hold it.

    >>> size = 'PhysicalSizeX="0.004" PhysicalSizeY="0.004" PhysicalSizeZ="40" PhysicalSizeZUnit="nm"'
    >>> of_ome(f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels {size}/></Image></OME>')
    (40.0, 4.0, 4.0)
    """
    try:
        pixels = next(node for node in ElementTree.fromstring(xml).iter() if node.tag.endswith("}Pixels"))
        sides = [
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * NANOMETRES[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm").lower()]
            for axis in "ZYX"
        ]
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError):
        return None
    return _checked(sides, 1.0)


def of_imagej(metadata: Mapping[str, Any], per_unit: tuple[float, float]) -> VoxelSize | None:
    """By ImageJ's description of a TIFF and its pixels per unit (y, x).

    >>> of_imagej({"unit": "micron", "spacing": 0.04}, (250, 250)), of_imagej({"spacing": 0.04}, (72, 72))
    ((40.0, 4.0, 4.0), None)
    """
    unit = NANOMETRES.get(str(metadata.get("unit", "")).lower())
    if unit is None or "spacing" not in metadata or min(per_unit) <= 0:
        return None
    return _checked([metadata["spacing"], *(1 / count for count in per_unit)], unit)


def of_precomputed(resolution: Sequence[float], finest: Sequence[float], voxel_offset: Sequence[int]) -> Placed:
    """By a scale of Neuroglancer precomputed (nm, x y z), where offsets are of corners; ours are of the first voxel's
    centre, seen from the centre of a voxel of the finest scale.

    >>> of_precomputed([8, 8, 40], [4, 4, 40], [5, 0, 1])
    ((40.0, 8.0, 8.0), (40.0, 2.0, 42.0))
    """
    x, y, z = (
        corner * side + (side - base) / 2 for side, base, corner in zip(resolution, finest, voxel_offset, strict=True)
    )
    size = _checked(list(resolution)[::-1], 1.0)
    return (size, (z, y, x)) if size else None


def of_n5(attributes: Sequence[Mapping[str, Any]], name: str) -> Placed:
    """By the attributes (x y z) of an N5 dataset of that name, followed by those of the folders above it.

    The dataset's `transform` (OpenOrganelle) tells all; else its voxels are `downsamplingFactors` times as large as the
    `pixelResolution` (with its unit) or `resolution` (nm) that the dataset has, or a folder above it.

    >>> whole = {"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}}
    >>> of_n5([{"downsamplingFactors": [2, 2, 1]}, whole], "s1")
    ((40.0, 8.0, 8.0), (0.0, 2.0, 2.0))
    >>> of_n5([{}, whole], "s0"), of_n5([{}, whole], "s1")
    (((40.0, 4.0, 4.0), (0.0, 0.0, 0.0)), None)
    """
    own = attributes[0]
    if (found := _by_transform(own.get("transform"))) is not None:
        return found
    for depth, told in enumerate(attributes):
        if (finest := _resolution(told)) is None:
            continue
        factors = _factors(own.get("downsamplingFactors"))
        if factors is None and depth and re.fullmatch("s[0-9]+", name):
            scales = told.get("scales") or told.get("downsamplingFactors") or [[1, 1, 1]]
            level = int(name[1:])
            factors = _factors(scales[level]) if isinstance(scales, list) and level < len(scales) else None
            if factors is None:
                return None
        z, y, x = (finest[axis] * (factors or (1, 1, 1))[axis] for axis in range(3))
        place = [(coarse - fine) / 2 for coarse, fine in zip((z, y, x), finest, strict=True)]
        size = _checked((z, y, x), 1.0)
        return (size, (place[0], place[1], place[2])) if size else None
    return None


def _resolution(attributes: Mapping[str, Any]) -> VoxelSize | None:
    found = attributes.get("pixelResolution")
    if isinstance(found, Mapping):
        unit = NANOMETRES.get(str(found.get("unit", "")).lower())
        return _checked(_turned(found.get("dimensions")), unit) if unit else None
    # BigDataViewer's has its unit in another file.
    if "resolution" in attributes and "saved_completely" not in attributes:
        return _checked(_turned(attributes["resolution"]), 1.0)
    return None


def _turned(values: Any) -> Any:
    return values[::-1] if isinstance(values, list) else values


def _factors(values: Any) -> VoxelSize | None:
    return _checked(_turned(values), 1.0)


def _by_transform(transform: Any) -> Placed:
    """OpenOrganelle's, whose axes stand in the order that it names."""
    try:
        order = [list(transform["axes"]).index(axis) for axis in "zyx"]
        units = [NANOMETRES[transform["units"][axis].lower()] for axis in order]
        size = _checked([transform["scale"][axis] * unit for axis, unit in zip(order, units, strict=True)], 1.0)
        z, y, x = (float(transform["translate"][axis]) * unit for axis, unit in zip(order, units, strict=True))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return (size, (z, y, x)) if size else None


def _checked(sides: Any, unit: float) -> VoxelSize | None:
    """Three lengths in nm; None if they are no such thing."""
    try:
        # Seven digits: single precision stands in many headers.
        found = [float(f"{float(side) * unit:.7g}") for side in sides]
    except (TypeError, ValueError):
        return None
    if len(found) != 3 or not all(math.isfinite(side) and side > 0 for side in found):
        return None
    return found[0], found[1], found[2]

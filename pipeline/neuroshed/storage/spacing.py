"""Voxel sizes as files of other programs tell them, in nm, z y x; None where a file does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

VoxelSize = tuple[float, float, float]

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

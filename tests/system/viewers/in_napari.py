"""What napari and ome-zarr-py make of an OME-Zarr: `in_napari.py VOLUME FOLDER` writes result.json and voxels.npz."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from napari_ome_zarr._reader import napari_get_reader
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader


def main(volume: str, folder: Path) -> None:
    """napari's layers, as its viewer holds them, and the nodes of ome-zarr-py, with the voxels of all levels."""
    voxels: dict[str, np.ndarray] = {}

    def told(name: str, data: list[Any], **more: Any) -> dict[str, Any]:
        for number, level in enumerate(data):
            voxels[f"{name}/{number}"] = np.asarray(level)
        return {"levels": len(data), **more}

    # The reader prints.
    with contextlib.redirect_stdout(sys.stderr):
        layers = napari_get_reader(volume)(volume)
    viewer = ViewerModel()
    for data, settings, kind in layers:
        viewer.layers.append(Layer.create(data, settings, kind))
    result = {
        "napari": [
            told(
                f"napari/{number}",
                layer.data,
                kind=type(layer).__name__,
                nm=[(size * unit).to("nm").magnitude for size, unit in zip(layer.scale, layer.units, strict=True)],
                start=layer.extent.world[0].tolist(),
                window=getattr(layer, "contrast_limits", None),
            )
            for number, layer in enumerate(viewer.layers)
        ],
        "ome-zarr": [
            told(
                f"ome-zarr/{number}",
                node.data,
                specs=[type(spec).__name__ for spec in node.specs],
                units=[axis["unit"] for axis in node.metadata["axes"]],
                transformations=node.metadata["coordinateTransformations"],
                windows=node.metadata.get("contrast_limits"),
            )
            for number, node in enumerate(node for node in Reader(parse_url(volume))() if node.data)
        ],
    }
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(folder / "voxels.npz", **voxels)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

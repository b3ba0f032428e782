"""Promise 1 from the image on: three block shapes give identical arrays of the demo volume."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import neuroshed
from neuroshed.storage.volumes import open_volume

pytestmark = pytest.mark.system
# Whole strides of the network, the whole volume, and sides that divide neither it nor the strides.
BLOCK_SHAPES = ([64, 64, 64], [128, 256, 64], [70, 140, 23])


def test_three_block_shapes_give_identical_segmentations(tmp_path: Path) -> None:
    source = resources.files("neuroshed") / "assets" / "demo" / "fib25.h5"
    image = neuroshed.import_volume(str(source), tmp_path / "image.zarr", (10.0, 10.0, 10.0), dataset="raw")
    found: list[dict[str, np.ndarray]] = []
    for number, block in enumerate(BLOCK_SHAPES):
        summary = neuroshed.run(
            "segment",
            [
                f"image={image}",
                f"output={tmp_path / str(number)}",
                f"block_shape={block}",
                "keep=[segmentation,fragments,merges,affinities]",
                "cluster=local:2",
            ],
        )
        paths = {"affinities": summary["affinities"], "fragments": summary["fragments"], **summary["segmentations"]}
        volumes = {name: open_volume(path) for name, path in paths.items()}
        found.append({name: volume.read(volume.box) for name, volume in volumes.items()})
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert len(np.unique(found[0]["0.5"])) > 20

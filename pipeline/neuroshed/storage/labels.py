"""Segmentations in the `labels` group of an OME-Zarr image."""

from __future__ import annotations

import json

from neuroshed.storage.levels import GROUP_FILE
from neuroshed.storage.locations import Location

LABELS = "labels"


def announce_labels(image: Location, name: str) -> None:
    """Tell readers of an image of the segmentation that lies in its group of labels, with as many levels."""
    file = image / LABELS / name / GROUP_FILE
    metadata = json.loads(file.read_bytes())
    metadata["attributes"]["ome"]["image-label"] = {"version": "0.5", "source": {"image": "../../"}}
    file.put(json.dumps(metadata, indent=2).encode())
    attributes = {"ome": {"version": "0.5", LABELS: [name]}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (image / LABELS / GROUP_FILE).put(json.dumps(group, indent=2).encode())

"""Small results of blocks that are no tables: JSON in a node's file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node, write_node


def write_note(path: Location, value: Any) -> None:
    """Write plain JSON as the one table of a node, checksummed; raises as `write_node`."""
    write_node(path, {"note": {"json": np.frombuffer(json.dumps(value).encode(), np.uint8)}})


def read_note(path: Location) -> Any:
    """What `write_note` wrote; raises as `read_node`."""
    (columns,) = read_node(path, "note")
    return json.loads(columns["json"].tobytes())

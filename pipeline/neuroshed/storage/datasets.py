"""Arrays in a folder of a chunked format: which there are, and which is meant if none is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from neuroshed.errors import InputError
from neuroshed.storage.locations import Location
from neuroshed.storage.sections import natural_key

MAX_FOLDERS = 1000
"""So many are looked at for datasets."""


def at(folder: Location, name: str) -> Location:
    """What lies at a name, which may be empty or have several parts, in a folder."""
    return folder / name.strip("/") if name.strip("/") else folder


def read_json(file: Location) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no file; raises `InputError` if there is something else in it."""
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{file} is damaged: it is no JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it holds no JSON object; copy it again")
    return found


def find_datasets(root: Location, shape_of: Callable[[Location], Any]) -> dict[str, Any]:
    """Shapes of the arrays at or below a folder by their names in it, in natural order; none where nothing is listed.

    `shape_of` is None for a folder that is no array. Nothing below an array is looked at: there are its chunks.
    """
    found: dict[str, Any] = {}
    names = [""]
    for count, name in enumerate(names):
        if count == MAX_FOLDERS:
            break
        folder = at(root, name)
        if (shape := shape_of(folder)) is not None:
            found[name] = shape
        elif root.can_list:
            names += [f"{name}/{inner}".strip("/") for inner in _folders(folder)]
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def _folders(folder: Location) -> list[str]:
    try:
        return [name for name in folder.names() if not name.endswith(".json")]
    except NotADirectoryError:
        return []


def listed(shapes: Mapping[str, Any]) -> str:
    """Names and shapes, for a message.

    >>> listed({"raw/s0": [4, 4, 4], "": [2, 2]}), listed({})
    ('raw/s0 [4, 4, 4], (the folder itself) [2, 2]', 'none that can be listed')
    """
    entries = [
        f"{name or '(the folder itself)'}" + (f" {shape}" if shape else "") for name, shape in list(shapes.items())[:20]
    ]
    more = [f"and {len(shapes) - 20} more"] if len(shapes) > 20 else []
    return ", ".join(entries + more) or "none that can be listed"


def choose_level(path: Location, shapes: Mapping[str, Any]) -> str:
    """The only dataset, or the finest of the levels `s0`, `s1`, ... of one; raises `InputError` if it is not clear."""
    bases = {re.sub(r"(^|/)s[0-9]+$", "", name) for name in shapes}
    if not shapes or len(bases) > 1:
        raise InputError(f"{path} has {len(bases)} datasets; choose with `--dataset` (there are: {listed(shapes)})")
    return next(iter(shapes))

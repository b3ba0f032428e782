"""Versions that decide what comes out, or whether processes understand each other."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from neuroshed.version import __version__, installed

PACKAGES = ("torch", "numpy", "numba", "zarr", "dask", "distributed")
TALK = ("python", "dask", "distributed", "msgpack", "cloudpickle")
"""What a scheduler has to have the same of. It runs no code of ours."""


def versions() -> dict[str, str]:
    """Versions here, by name: of Python, neuroshed, and the packages that matter to both."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "neuroshed": __version__,
        **{package: str(installed(package)) for package in PACKAGES},
    }


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What is not the same there, for people; empty if all is.

    >>> differences({"python": "3.11", "torch": "2.4.0"}, {"python": "3.11", "torch": "2.13.0"})
    'torch 2.4.0 (here 2.13.0)'
    """
    return ", ".join(
        f"{name} {there.get(name, 'missing')} (here {version})"
        for name, version in here.items()
        if there.get(name) != version
    )

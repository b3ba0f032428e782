"""Stages by kind: how a worker, `status` and `resume` read a `stage.json`."""

from __future__ import annotations

import functools
import hashlib
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError

from neuroshed.errors import InputError
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.check import Check
from neuroshed.stages.compare import Compare
from neuroshed.stages.copy import Copy
from neuroshed.stages.drift import Drift
from neuroshed.stages.evaluate import Contingency
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.imports import Import
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.precomputed import Precomputed
from neuroshed.stages.predict import Predict
from neuroshed.stages.pyramid import Pyramid
from neuroshed.stages.segment import Segment
from neuroshed.stages.tiff import Tiff, TiffStack
from neuroshed.stages.verify import Verify
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.locations import Location

_KINDS: list[type[Stage]] = [
    Affinities,
    Agglomerate,
    Check,
    Compare,
    Contingency,
    Copy,
    Fragments,
    Import,
    MutexFragments,
    Drift,
    Precomputed,
    Predict,
    Pyramid,
    Segment,
    Tiff,
    TiffStack,
    Verify,
    WaterzFragments,
    WaterzScores,
]


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[Union[tuple(_KINDS)], Field(discriminator="kind")])  # noqa: UP007


def kinds() -> tuple[type[Stage], ...]:
    """All that this process knows."""
    return tuple(_KINDS)


def add_kind(stage: type[Stage]) -> None:
    """Make a further kind of stage known to this process; each worker has to do so too, say by a Dask preload.

    It takes the place of one of the same kind.
    """
    kind = stage.model_fields["kind"].default
    _KINDS[:] = [known for known in _KINDS if known.model_fields["kind"].default != kind] + [stage]
    _adapter.cache_clear()


def save_stage(stage: Stage) -> Location:
    """Write `stage.json` into the stage's folder; returns its path."""
    stage.folder.make_folder()
    path = stage.folder / "stage.json"
    path.put(stage.model_dump_json(indent=2).encode())
    return path


def stage_digest(path: Location) -> str:
    """Digest of a `stage.json` as it stands."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_stage(text: str | bytes, source: Location) -> Stage:
    """The stage that the JSON of `source` describes. Raises `InputError` if this version knows no such stage."""
    try:
        stage: Stage = _adapter().validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"{source} was written by another version ({error.error_count()} fields differ); use that one, or start a "
            "new run folder"
        ) from error
    return stage


@functools.lru_cache(maxsize=64)
def load_stage(path: Location, digest: str | None = None) -> Stage:
    """The stage described by a `stage.json`, once a process and digest. Raises `InputError` if it cannot be read."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the workers must see the run folder under the same path") from None
    stage = parse_stage(text, path)
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise InputError(f"{path} is not what the coordinator wrote; the workers must see the same run folder")
    return stage

"""Any model that a workflow may name: our own, by name or path, or somebody else's, as it is declared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from neuroshed.errors import InputError
from neuroshed.storage.declared import SUFFIXES, ForeignModel

if TYPE_CHECKING:
    from neuroshed.storage.foreign import Foreign
    from neuroshed.storage.models import Model

    Opened = Model | Foreign

ModelChoice = str | ForeignModel
"""The name of a shipped model or the path of one of ours, or what is declared of a foreign one."""


def resolved(choice: ModelChoice) -> ModelChoice:
    """The choice as it is meant from anywhere: paths absolute, a file of declarations read.

    Raises `InputError` for a file that is no model of ours and of which nothing is declared.
    """
    if isinstance(choice, ForeignModel):
        if choice.actual_kind == "callable":
            weights = choice.weights and str(Path(choice.weights).expanduser().resolve())
            return choice.model_copy(update={"weights": weights})
        return choice.model_copy(update={"path": str(Path(choice.path).expanduser().resolve())})
    path = Path(choice).expanduser()
    if path.suffix in (".yaml", ".yml") and path.name != "rdf.yaml":
        return resolved(read_declaration(path))
    if path.suffix in (*SUFFIXES, ".pt", ".pth", ".ts") or path.name == "rdf.yaml" or (path / "rdf.yaml").exists():
        raise InputError(
            f"model {choice} is not one of ours, whose conventions travel with it; declare them: model: {{path: ..., "
            "channels: zyx, sign: negative, output: probabilities, input_shape: [...]}}, or in a .yaml file"
        )
    stems = (path, path.with_name(path.name + ".json"))
    return str(path.resolve()) if any(stem.exists() for stem in stems) else choice


def read_declaration(path: Path, *, trust: bool = False) -> ForeignModel:
    """What a YAML file declares of a foreign model; its paths are relative to the file's folder.

    Whether to trust the model is not for the file to say. Raises `InputError` for what it cannot be.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"model {path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict) or "trust" in values:
        told = (
            "says itself that it is to be trusted, which is for who uses it to say: leave that out, and give --trust "
            "to `model check`, or write its keys and trust: true into the workflow's `model:`"
        )
        raise InputError(f"model {path} {told if isinstance(values, dict) else 'must hold keys and values'}")
    for key in ("path", "weights"):
        if isinstance(values.get(key), str) and not (key == "path" and ":" in values[key]):
            values[key] = str(path.parent.resolve() / Path(values[key]).expanduser())
    try:
        return ForeignModel.model_validate(values | {"trust": trust})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(f"model {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def open_model(choice: ModelChoice) -> Opened:
    """Our network, loaded, or a foreign one, looked at; raises `InputError` if it cannot be used."""
    # Torch, half of what a process that runs no network would start with.
    from neuroshed.storage.foreign import open_foreign
    from neuroshed.storage.models import load_model

    if isinstance(choice, ForeignModel):
        return open_foreign(choice)
    return load_model(Path(choice).expanduser())

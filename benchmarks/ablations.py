"""What each part of the training recipe is worth: the shipped recipe, and the same with one part changed.

    python benchmarks/ablations.py --data DIR [--quick] [--steps N] [--only NAME ...] [--work DIR] [--out FILE.json]

DIR holds `fib25_labelled.h5` and `gala_fibsem_train.h5` (see workflows/train.yaml). Every variant learns for the same
number of steps from the same samples, then predicts and segments the choosing crop of the recipe (its `validation`
box), where its best threshold is chosen; nothing else is looked at. Trainings go on where they stopped if `--work` is
given. `flips` and `last weights` are other uses of the shipped recipe's training. The last line is JSON.

VOI in bits by `neuroshed sweep`: split + merge over voxels with a truth, predicted 0 counts as one segment.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import neuroshed
from neuroshed.geometry import Box
from neuroshed.storage.models import ModelCard, load_model, save_model
from neuroshed.training.checkpoints import load_checkpoint, newest_checkpoint
from neuroshed.workflow.config import find

VOXEL_SIZE = (10.0, 10.0, 10.0)
VOLUMES = {"fib25": "fib25_labelled.h5", "gala": "gala_fibsem_train.h5"}
RECIPE = "the recipe"
NEAREST = 3


def _without(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one key of a configuration."""

    def change(config: dict[str, Any]) -> None:
        values = config
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return change


def _nearest_only(config: dict[str, Any]) -> None:
    config["offsets"] = config["offsets"][:NEAREST]
    config["network"]["out_channels"] = NEAREST


def _descriptors(config: dict[str, Any]) -> None:
    config["descriptors"] = {"sigma": [8, 8, 8]}
    config["network"]["out_channels"] += 10


def _plain_intensities(config: dict[str, Any]) -> None:
    config["augment"] |= {"contrast": 0, "brightness": 0, "gamma": 0, "noise": 0}


def _no_defects(config: dict[str, Any]) -> None:
    config["augment"] |= {"blurred": 0, "missing": 0, "misaligned": 0}


VARIANTS: dict[str, Callable[[dict[str, Any]], None]] = {
    RECIPE: lambda config: None,
    "no long-range channels": _nearest_only,
    "with local shape descriptors": _descriptors,
    "no bending": _without("augment", "elastic", to=0),
    "no changes of intensity": _plain_intensities,
    "no defects of sections": _no_defects,
    "no swaps of axes": _without("augment", "swap", to=[]),
    "GroupNorm": _without("network", "norm", to="group"),
}


def main() -> None:
    """Train and score all variants, print the table."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.work or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        volumes = _import(args.data, folder)
        recipe = _recipe(volumes, args)
        rows: dict[str, dict[str, float]] = {}
        for name, change in VARIANTS.items():
            if args.only and name not in args.only:
                continue
            config = copy.deepcopy(recipe)
            change(config)
            rows[name] = _train(folder, name, config)
            model = folder / _folder_name(name) / "last"
            rows[name] |= _score(folder, name, str(model), recipe)
            _print_row(name, rows[name])
            if name == RECIPE:
                raw = _raw_weights(folder / _folder_name(name))
                for other, path, settings in (
                    ("last weights instead of their average", raw, ()),
                    ("flips at prediction", model, ("predict.flips=[z,y,x]",)),
                ):
                    rows[other] = _score(folder, other, str(path), recipe, *settings)
                    _print_row(other, rows[other])
    figures = {"steps": recipe["steps"], "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the HDF5 files")
    parser.add_argument("--quick", action="store_true", help="20 steps of small samples: shows that it works")
    parser.add_argument("--steps", type=int, help="default 1500")
    parser.add_argument("--only", nargs="+", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--work", type=Path, help="folder that keeps trainings, so that they go on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", help="float32 on CPUs without bfloat16 units")
    parser.add_argument("--out", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    args.steps = args.steps or (20 if args.quick else 1500)
    return args


def _import(data: Path, folder: Path) -> dict[str, str]:
    paths = {}
    for name, file in VOLUMES.items():
        for suffix, dataset in (("", "raw"), ("_labels", "labels")):
            target = folder / f"{name}{suffix}.zarr"
            if not target.exists():
                neuroshed.import_volume(data / file, target, VOXEL_SIZE, dataset=dataset)
            paths[target.name] = str(target)
    return paths


def _recipe(volumes: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """The shipped training, shortened: a fifth of it warms up or decays."""
    config: dict[str, Any] = yaml.safe_load(find("train"))
    for source in (*config["samples"], *config["validation"]):
        source |= {key: volumes[source[key]] for key in ("image", "labels")}
    steps = args.steps
    config |= {"steps": steps, "warmup_steps": min(100, steps // 10), "decay_steps": steps // 5}
    config |= {"validate_every": steps, "checkpoint_every": max(steps // 4, 1), "log_every": max(steps // 20, 1)}
    config |= {"device": args.device, "threads": args.threads, "precision": args.precision}
    if args.quick:
        config |= {"patch_shape": [32, 32, 32], "lattice": {"patch": [64, 64, 64], "context": [8, 8, 8]}}
    return config


def _folder_name(name: str) -> str:
    return name.replace(" ", "-")


def _train(folder: Path, name: str, config: dict[str, Any]) -> dict[str, float]:
    output = folder / _folder_name(name)
    file = folder / f"{output.name}.yaml"
    file.write_text(yaml.safe_dump(config | {"output": str(output)}))
    begin = time.perf_counter()
    neuroshed.train(file)
    held_out = load_model(output / "last").card.training["held_out"]
    return {**held_out, "training_seconds": round(time.perf_counter() - begin, 1)}


def _raw_weights(output: Path) -> Path:
    """The model of the newest checkpoint without averaging."""
    newest = newest_checkpoint(output / "checkpoints")
    assert newest is not None
    card: ModelCard = load_model(output / "last").card
    return save_model(output / "raw", card, load_checkpoint(newest).weights)


def _score(folder: Path, name: str, model: str, recipe: dict[str, Any], *settings: str) -> dict[str, float]:
    """VOI on the choosing crop at the threshold that is best there."""
    source = recipe["validation"][0]
    (start, stop), run = source["box"], folder / f"run-{_folder_name(name)}"
    given = [f"image={source['image']}", f"box={source['box']}", f"model={model}", f"output={run}"]
    neuroshed.run("segment", [*given, "agglomerate.lowest_threshold=0.1", "thresholds=[0.3]", *settings])
    found = neuroshed.sweep(run, source["labels"], box=Box(tuple(start), tuple(stop)))
    best = found["best_threshold"]
    scores = found["scores"][best]
    return {key: round(scores[key], 4) for key in ("voi", "voi_split", "voi_merge")} | {"threshold": float(best)}


def _print_row(name: str, row: dict[str, float]) -> None:
    precision = f"{row['boundary_precision']:.3f}" if "boundary_precision" in row else "     "
    told = f"VOI {row['voi']:.3f} = {row['voi_split']:.3f} + {row['voi_merge']:.3f} at {row['threshold']:g}"
    print(f"{name:40} {told}   boundary precision {precision}", flush=True)


if __name__ == "__main__":
    main()

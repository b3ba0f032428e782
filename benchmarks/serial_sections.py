"""How a model does on serial sections, simulated from the held-out parts of isotropic volumes.

    python benchmarks/serial_sections.py --data DIR [--model NAME] [--thickness 4] [--seed 1] [--work DIR] [SETTING ...]

DIR holds `fib25_labelled.h5` and `gala_fibsem_test.h5` (see workflows/train_sections.yaml). Each is cut along z into
sections of that many voxels, once `clean` and once `spoilt`: misaligned, blurred, left out and changed in contrast
section by section, as the training configuration has it, all decided by the seed. Truth labels move with their
sections, and only those of the held-out part are kept. SETTINGs are of the `segment` workflow (`predict.flips=[y,x]`).

VOI in bits by `neuroshed sweep` at the default threshold and at the one that is best on the choosing crop. `--work`
keeps the volumes and runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

import neuroshed
from neuroshed.geometry import Box, Vec
from neuroshed.storage.views import Sections
from neuroshed.storage.volumes import create_volume, open_volume
from neuroshed.training.augment import Geometry, change_intensities, draw_geometry
from neuroshed.training.config import Augment
from neuroshed.workflow.config import find

VOXEL_SIZE = (10.0, 10.0, 10.0)
DEFAULT = "0.3"


@dataclass(frozen=True)
class Part:
    """A held-out part of an isotropic volume; without a box the whole."""

    name: str
    file: str
    box: Box | None


PARTS = (
    Part("choosing", "fib25_labelled.h5", Box((0, 0, 150), (125, 250, 185))),
    Part("report", "fib25_labelled.h5", Box((125, 0, 150), (250, 250, 185))),
    Part("gala", "gala_fibsem_test.h5", None),
)


def main() -> None:
    """Write, segment and score all parts; print the table."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.work or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"model": args.model, "thickness": args.thickness, "seed": args.seed, "settings": args.settings}
        for state in ("clean", "spoilt"):
            chosen = None
            for part in PARTS:
                image, labels, box = _sections(args, part, state, folder)
                scores = _score(args, folder / f"run-{part.name}-{state}", image, labels, box)
                chosen = chosen or min(scores, key=lambda text: scores[text]["voi"])
                figures[f"{part.name} {state}"] = {text: _short(scores[text]) for text in (chosen, DEFAULT)}
                told = "   ".join(_row(scores[text], text) for text in dict.fromkeys((chosen, DEFAULT)))
                print(f"{state:7} {part.name:9} {told}", flush=True)
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the HDF5 files")
    parser.add_argument("--model", default="sections")
    parser.add_argument("--thickness", type=int, default=4, help="voxels of 10 nm to a section")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="empty or new folder that keeps volumes and runs")
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    return parser.parse_args()


def _sections(args: argparse.Namespace, part: Part, state: str, folder: Path) -> tuple[Path, Path, Box]:
    """Image and truth, and the box that is scored in them."""
    solid = folder / Path(part.file).stem
    for dataset in ("raw", "labels"):
        target = solid.with_name(f"{solid.name}_{dataset}.zarr")
        if not target.exists():
            neuroshed.import_volume(args.data / part.file, target, VOXEL_SIZE, dataset=dataset)
    image, labels = (open_volume(solid.with_name(f"{solid.name}_{name}.zarr")) for name in ("raw", "labels"))
    seen, truth = (
        Sections(volume, axis=0, thickness=args.thickness, phase=0, averaged=volume is image)
        for volume in (image, labels)
    )
    scored = truth.box_inside(part.box or labels.box)
    kept = np.zeros(truth.shape, truth.dtype)
    kept[scored.slices()] = truth.read(scored)
    pixels = seen.read(Box.of_shape(seen.shape))
    if state == "spoilt":
        pixels, kept = _spoilt(pixels, kept, args.seed)
        scored = _bounds(kept)
    paths = [
        _write(folder / f"{part.name}-{state}-{name}.zarr", array, seen.voxel_size)
        for name, array in (("image", pixels), ("labels", kept))
    ]
    return paths[0], paths[1], scored


def _spoilt(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[Any], seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """The sections with defects, each drawn as for a training sample that has them."""
    trained = yaml.safe_load(find("train_sections"))["augment"]
    kept = ("blurred", "blur_sigma", "missing", "max_shift", "jitter", "section_contrast", "section_brightness")
    off = {"flip": (), "swap": (), "contrast": 0, "brightness": 0, "gamma": 0, "noise": 0, "misaligned": 1}
    augment = Augment.model_validate({key: trained[key] for key in kept} | off)
    rng = np.random.default_rng(seed)
    drawn = draw_geometry(rng, _shape(image), augment)
    room = [2 * margin for margin in drawn.margin]
    z, y, x = (side - lost for side, lost in zip(image.shape, room, strict=True))
    geometry = Geometry((z, y, x), drawn.order, drawn.flips, drawn.shifts)
    changed = change_intensities(geometry.apply(image), rng, augment, (0.0, 255.0))
    return np.rint((changed + 1) * 127.5).astype(np.uint8), geometry.apply(labels)


def _shape(array: npt.NDArray[Any]) -> Vec:
    return array.shape[0], array.shape[1], array.shape[2]


def _bounds(labels: npt.NDArray[Any]) -> Box:
    """The box that holds all labels."""
    places = np.nonzero(labels)
    z, y, x = ((int(place.min()), int(place.max()) + 1) for place in places)
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def _write(path: Path, array: npt.NDArray[Any], voxel_size: tuple[float, float, float]) -> Path:
    volume = create_volume(
        path, shape=_shape(array), dtype=array.dtype, shard_shape=(64, 128, 128), voxel_size=voxel_size
    )
    volume.write(volume.box, array)
    return path


def _score(args: argparse.Namespace, run: Path, image: Path, labels: Path, box: Box) -> dict[str, dict[str, float]]:
    given = [f"image={image}", f"box={json.dumps([box.start, box.stop])}", f"model={args.model}", f"output={run}"]
    neuroshed.run("segment", [*given, "agglomerate.lowest_threshold=0.1", f"thresholds=[{DEFAULT}]", *args.settings])
    return neuroshed.sweep(run, labels, box=box)["scores"]


def _short(scores: dict[str, float]) -> dict[str, float]:
    return {key: round(scores[key], 4) for key in ("voi", "voi_split", "voi_merge")}


def _row(scores: dict[str, float], threshold: str) -> str:
    told = _short(scores)
    return f"{told['voi']:.3f} = {told['voi_split']:.3f} + {told['voi_merge']:.3f} at {threshold}"


if __name__ == "__main__":
    main()

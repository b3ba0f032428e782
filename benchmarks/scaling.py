"""How much climbs the octree: fragments that a node cannot settle, by block size, lowest threshold and size rule.

    python benchmarks/scaling.py [--quick] [--data DIR] [--shape Z Y X] [--work DIR] [--out DIR]
    python benchmarks/scaling.py --project DIR/scaling.json

A node hands up what touches its faces, and what that freezes: parts inside that may merge with it. What touches should
be a layer, so many for each voxel of the faces at any level; what is frozen may fill the volume. Each setting is run as
users run it (plan, run, journal) up to the root, one thing changed at a time; then nodes of many times that size are
made of real ones, to measure memory and speed. From these figures alone follows what a petabyte would take: an
extrapolation. With --work, what an earlier call did is not done again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import large
import shapes
from curves import draw, print_settings
from history import Past, past_of
from neuroshed.engine.coordinator import Options, ordered
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.affinities import NEAREST
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.segment import Segment
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node
from neuroshed.storage.volumes import create_volume
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import Plan, make_plan
from neuroshed.workflow.run import run_stages
from projection import face_voxels, largest_cubes, print_all, project_all

VOXEL_SIZE = (8, 8, 8)
SHARD = (64, 128, 128)


@dataclass(frozen=True)
class Setting:
    """What is varied: side of a block, agglomerate.lowest_threshold, fragments.small."""

    block: int
    lowest: str
    small: int


def main() -> None:
    """Run all settings, print tables, write figures."""
    args = _arguments()
    if args.project:
        figures: dict[str, Any] = json.loads(args.project.read_text())
    else:
        with tempfile.TemporaryDirectory() as name:
            figures = _measure(args, (args.work or Path(name)).resolve())
        print_settings(figures["settings"])
    figures |= {"projections": project_all(figures), "largest_cubes": largest_cubes(figures)}
    print_all(figures)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.json").write_text(json.dumps(figures, indent=1) + "\n")
        draw(figures, args.out / "scaling.png")
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64x128x128, few settings: under a minute")
    parser.add_argument("--data", type=Path, help="folder with real labels; without it shapes are synthetic")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default 256 512 512")
    parser.add_argument("--cluster", default="in-process:1", help="where tasks run; seconds are those of a task")
    parser.add_argument("--work", type=Path, help="folder for scratch files, kept, some 15 bytes a voxel")
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.png")
    parser.add_argument(
        "--project", type=Path, metavar="JSON", help="only the arithmetic, from an earlier scaling.json"
    )
    args = parser.parse_args()
    args.shape = tuple(args.shape or ((64, 128, 128) if args.quick else (256, 512, 512)))
    return args


def _settings(shape: Vec, quick: bool) -> list[Setting]:
    """The default first, then one thing changed at a time."""
    first = Setting(32 if quick else 128, "0.2", 200)
    blocks = [side for side in ((16, 32, 64) if quick else (64, 128, 256, 512)) if 2 * side <= max(shape)]
    found = [first, *(replace(first, block=side) for side in blocks)]
    found += [replace(first, lowest=lowest) for lowest in (("0.4",) if quick else ("0.3", "0.4", "0.5", "0.6"))]
    found += [replace(first, small=small) for small in ((0,) if quick else (1000, 50, 0))]
    return list(dict.fromkeys(found))


def _measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Figures of all settings and of large nodes."""
    path, source = _affinities(work, args.shape, args.data)
    place = Location.of(work)
    run_folder, warm = place / f"run-{path.stem}", place / "warm"
    print(f"{source}: {'x'.join(map(str, args.shape))}, {np.prod(args.shape) / 1e6:.1f} Mvoxel", flush=True)
    # Kernels are compiled, or read from their cache, on a corner.
    small = _plan(path, warm, Setting(16, "0.2", 200), args.cluster, Box((0, 0, 0), (32, 32, 32)))
    run_stages(warm, small.stages, Options(cluster=small.workflow.cluster))
    rows, plans = [], []
    settings = _settings(args.shape, args.quick)
    for setting in settings:
        plan = _plan(path, run_folder, setting, args.cluster)
        # What comes after the tree does not depend on the rest.
        whole = setting == replace(settings[0], block=setting.block)
        stages = plan.stages if whole else ordered([plan.segments[0].agglomerate])
        run_stages(run_folder, stages, Options(cluster=plan.workflow.cluster))
        row = asdict(setting) | _row(run_folder, stages)
        rows.append(row)
        plans.append(plan)
        print(json.dumps({key: row[key] for key in ("block", "lowest", "small", "seconds")}), flush=True)
    named = [("default", plans[0]), (f"small {settings[-1].small}", plans[-1])]
    scratch = work / "large"
    return {
        "input": source,
        "shape": args.shape,
        "settings": rows,
        "large": large.large_nodes(scratch, named, small, large.ENTERING // (20 if args.quick else 1)),
        "coordinator": large.coordinator(scratch, 16 if args.quick else 40),
    }


def _affinities(work: Path, shape: Vec, data: Path | None) -> tuple[Path, str]:
    """Noisy affinities of neuron shapes as Zarr, made in slabs; and what they are made of."""
    truth, source = shapes.labels(shape, data)
    path = work / f"{'real' if data else 'synthetic'}-{'x'.join(map(str, shape))}.zarr"
    if not path.exists():
        draft = path.with_suffix(".draft")
        volume = create_volume(
            draft, shape=shape, dtype=np.uint8, shard_shape=SHARD, voxel_size=VOXEL_SIZE, voxel_offsets=NEAREST
        )

        class Slabs:
            def __setitem__(self, key: tuple[slice, slice], values: np.ndarray) -> None:
                volume.write(Box((key[1].start, 0, 0), (key[1].stop, *shape[1:])), values)

        shapes.affinities(truth, out=Slabs(), slab=SHARD[0])
        draft.rename(path)
    return path, source


def _plan(path: Path, output: Location, setting: Setting, cluster: str, box: Box | None = None) -> Plan:
    settings = [
        f"affinities={path}",
        f"output={output}",
        f"cluster={cluster}",
        f"block_shape={[setting.block] * 3}",
        f"shard_shape={[min(setting.block, 128)] * 3}",
        f"agglomerate.lowest_threshold={setting.lowest}",
        f"fragments.small={setting.small}",
        f"fragments.dust={min(50, setting.small)}",
        "thresholds=[0.6]",
    ]
    if box is not None:
        settings.append(f"box={[[*box.start], [*box.stop]]}")
    return make_plan(load("stitch", settings))


def _row(run_folder: Location, stages: list[Stage]) -> dict[str, Any]:
    """What the journal and the files say of the stages of one setting."""
    past = past_of(run_folder)
    tree = next(stage for stage in stages if isinstance(stage, Agglomerate))
    segment = next((stage for stage in stages if isinstance(stage, Segment)), None)
    fragments = past[tree.fragments.fingerprint, ""].figures
    region = tree.fragments.region
    return {
        "seconds": {
            f"{stage.kind} {step.name}".strip(): past[stage.fingerprint, step.name].figures["seconds"]
            for stage in stages
            for step in stage.steps
        },
        "region_voxels": region.size,
        "blocks": len(past[tree.fragments.fingerprint, ""].blocks),
        "fragments_per_voxel": fragments["fragments"] / region.size,
        "unsettled_per_face_voxel": fragments["handed_up"] / face_voxels(tree.grids[0]),
        "table_bytes_per_voxel": _bytes(tree.fragments.folder / "blocks") / region.size,
        "label_bytes_per_voxel": _bytes(tree.fragments.path) / region.size,
        "levels": list(_levels(tree, segment, past)),
        "depths": _depths(tree),
    }


def _levels(tree: Agglomerate, segment: Segment | None, past: dict[tuple[str, str], Past]) -> Iterator[dict[str, Any]]:
    """Sums and means of each level of the tree."""
    for level, grid in enumerate(tree.grids):
        found = past[tree.fingerprint, f"up{level}"]
        nodes = len(found.blocks)
        paths = [tree.node_path(f"up{level}", index) for index in found.blocks]
        tables = [read_node(path, "entering", "nodes") for path in paths]
        entering = [rows["id"].size for rows, _ in tables]
        touching = sum(int(np.count_nonzero(rows["touching"] > level)) for _, rows in tables)
        up, edges = (int(found.figures[key]) for key in ("nodes_up", "edges_up"))
        faces = face_voxels(grid)
        yield {
            "level": level,
            "side": grid.block_shape[0],
            "nodes": nodes,
            "entering": sum(entering),
            "most_entering": max(entering),
            "nodes_up": up,
            "edges_up": edges,
            "merges": int(found.figures["merges"]),
            "face_voxels": faces,
            "up_per_face_voxel": up / faces if faces else None,
            "edges_per_face_voxel": edges / faces if faces else None,
            "touching_per_face_voxel": touching / faces if faces else None,
            "frozen_per_face_voxel": (up - touching) / faces if faces else None,
            "file_bytes": sum(path.size() or 0 for path in paths) / nodes,
            "seconds": found.figures["seconds"] / nodes,
            "down": _down(segment, level, past) if segment else None,
        }


def _depths(tree: Agglomerate) -> list[dict[str, float]]:
    """What is frozen in the nodes below the root, by the distance of its first voxel from their nearest face."""
    level = max(len(tree.grids) - 2, 0)
    grid = tree.grids[level]
    found = []
    for index in grid:
        (rows,) = read_node(tree.node_path(f"up{level}", index), "nodes")
        ids = rows["id"][rows["touching"] <= level]
        found.append((ids & ~large.OF_COPIES).astype(np.int64) - 1)
    places = np.unravel_index(np.concatenate(found), tree.fragments.source.volume_shape)
    along = [_distances(grid, axis) for axis in range(3)]
    depths = np.min([axis[at - start] for axis, at, start in zip(along, places, grid.box.start, strict=True)], axis=0)
    side = grid.block_shape[0]
    bounds = [side * share // 32 for share in (0, 1, 2, 4, 8, 16, 24)]
    # Of a box as deep as that along each axis.
    voxels = [math.prod(int(np.count_nonzero(axis >= bound)) for axis in along) for bound in bounds]
    deep = [int(np.count_nonzero(depths >= bound)) for bound in bounds]
    return [
        {"from": a, "to": b, "frozen_per_megavoxel": 1e6 * (n - deeper) / max(v - beyond, 1)}
        for a, b, n, deeper, v, beyond in zip(
            bounds, [*bounds[1:], side], deep, [*deep[1:], 0], voxels, [*voxels[1:], 0], strict=True
        )
    ]


def _distances(grid: Grid, axis: int) -> np.ndarray:
    """Of each plane of voxels along an axis from the nearest face between blocks."""
    start, stop, side = grid.box.start[axis], grid.box.stop[axis], grid.block_shape[axis]
    faces = [face for face in range(side, stop, side) if face > start]
    planes = np.arange(start, stop) + 0.5
    return np.min([np.abs(planes - face) for face in faces], axis=0) if faces else np.full(planes.size, np.inf)


def _down(segment: Segment, level: int, past: dict[tuple[str, str], Past]) -> dict[str, float]:
    step = f"down{level}"
    found = past[segment.fingerprint, step]
    nodes = len(found.blocks)
    return {"seconds": found.figures["seconds"] / nodes, "file_bytes": _bytes(segment.folder / step) / nodes}


def _bytes(folder: Location) -> int:
    return sum(size for _, size in folder.files())


if __name__ == "__main__":
    main()

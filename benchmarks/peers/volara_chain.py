"""volara's blockwise tasks as its examples chain them, on the same Zarr volume: fragments by mutex watershed, mean
affinities of touching fragments, mutex watershed of that graph, relabelling. The graph is in an SQLite file, the worker
is this process.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from measure import Clock, serve
from volara.blockwise import AffAgglom, ExtractFrags, GraphMWS, Relabel
from volara.blockwise.blockwise import BlockwiseTask
from volara.datasets import Affs, Labels
from volara.dbs import SQLite
from volara.logging import set_log_basedir
from volara.lut import LUT

NEAREST = [Coordinate(-1, 0, 0), Coordinate(0, -1, 0), Coordinate(0, 0, -1)]
SCORE = "mean_affinity"
CONTEXT = Coordinate(6, 12, 12)
"""That of volara's CREMI example."""
SMALLEST = 64
"""Fragments of fewer voxels are dropped, as in that example; kept, they make the data base ten times slower."""
SEEDS = {"adaptive_seed_spacing": 2.0, "voronoi": "geodesic"}
"""What its documentation recommends where fragments shall be small: without, affinities of nearest neighbours alone
merge too much."""
NOISE = 1e-3
"""Added to the affinities, as volara's documentation wants it for uint8: else ties go in raster order."""


def run(task: BlockwiseTask) -> None:
    """Run all blocks one by one; raises RuntimeError if one failed."""
    states = task.run_blockwise(multiprocessing=False)
    failed = [name for name, state in states.items() if state.failed_count or not state.is_done()]
    if failed:
        raise RuntimeError(f"blocks of {', '.join(map(str, failed))} failed")


def work(job: dict, clock: Clock) -> dict:
    """Time the tasks one by one; labels go where `job["labels"]` says."""
    logging.disable(logging.WARNING)
    folder = Path(job["folder"])
    set_log_basedir(folder / "logs")
    affinities = Affs(
        store=Path(job["zarr"]),
        neighborhood=NEAREST,
        voxel_size=Coordinate(1, 1, 1),
        axis_names=["offset^", "z", "y", "x"],
        writable=False,
    )
    fragments = Labels(store=folder / "fragments.zarr")
    graph = SQLite(path=folder / "graph.sqlite", edge_attrs={SCORE: "float"})
    roi = affinities.array("r").roi
    common = {"db": graph, "affs_data": affinities, "frags_data": fragments, "context": CONTEXT}
    common |= {"block_size": Coordinate(job["block"]), "num_workers": 1}
    thresholds = sorted(job["thresholds"], key=float, reverse=True)
    with clock("fragments"):
        bias = [-float(thresholds[0])] * len(NEAREST)
        seeds = SEEDS if job["seeded"] else {}
        run(ExtractFrags(**common, bias=bias, noise_eps=NOISE, remove_debris=SMALLEST, **seeds))
    with clock("graph"):
        run(AffAgglom(**common, scores={SCORE: NEAREST}))
    np.save(job["labels"]["fragments"], fragments.array("r")[:])
    for threshold in thresholds:
        lut = LUT(path=folder / f"lut-{threshold}.npz")
        segments = Labels(store=folder / f"segments-{threshold}.zarr")
        with clock("agglomerate"):
            run(GraphMWS(db=graph, lut=lut, weights={SCORE: (1, -float(threshold))}, roi=Roi(roi.offset, roi.shape)))
        with clock("segment"):
            run(Relabel(lut=lut, frags_data=fragments, seg_data=segments, block_size=job["block"], num_workers=1))
        np.save(job["labels"][threshold], segments.array("r")[:])
    return {"version": version("volara")}


if __name__ == "__main__":
    serve(work)

"""How much of their time workers spend inside stage code: the segmentation of a volume, by its own journal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import neuroshed
from arena import WARM_BLOCK, write_inputs
from history import past_of
from neuroshed.storage.locations import Location


def occupancy(shape: list[int], block: list[int], workers: list[int], data: Path | None) -> list[dict[str, Any]]:
    """Blocks, seconds from the first job to the last record, and the share of the workers' time inside blocks, for each
    number of workers.

    Fetching jobs, scheduling, recording and waiting count against it; so does a worker for which nothing is ready, as
    at the root of the tree.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="neuroshed-occupancy-") as name:
        folder = Path(name)
        write_inputs(folder, (shape[0], shape[1], shape[2]), (block[0], block[1], block[2]), data)
        # Kernels are compiled, or read from their cache, before anything is timed.
        neuroshed.run("segment", _settings(folder, "warm", [*WARM_BLOCK], "in-process:1"))
        for count in workers:
            neuroshed.run("segment", _settings(folder, "affinities", block, f"local:{count}", f"run-{count}"))
            found.append(_shares(Location.of(folder / f"run-{count}"), count))
    return found


def _settings(folder: Path, source: str, block: list[int], cluster: str, output: str = "warm") -> list[str]:
    return [
        f"affinities={folder / source}.zarr",
        f"block_shape={block}",
        f"output={folder / output}",
        f"cluster={cluster}",
        "thresholds=[0.5, 0.3]",
        "agglomerate.lowest_threshold=0.3",
    ]


def _shares(run_folder: Location, workers: int) -> dict[str, Any]:
    past = past_of(run_folder)
    jobs = [job for step in past.values() for job in step.jobs]
    wall = max(recorded for recorded, _ in jobs) - min(recorded - seconds for recorded, seconds in jobs)
    inside = sum(seconds for _, seconds in jobs)
    blocks = sum(len(step.blocks) for step in past.values())
    return {"workers": workers, "blocks": blocks, "wall_s": wall, "inside": inside / (workers * wall)}

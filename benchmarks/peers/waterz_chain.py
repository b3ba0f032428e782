"""waterz on a whole volume: watershed and region graph, then mean agglomeration to each threshold.

With `fragments` in the job, the region graph and agglomeration of these instead of its own.
"""

from __future__ import annotations

import numpy as np
import waterz
from measure import Clock, serve

# The default scoring function of waterz, and the only one for the mean that its wheels bring compiled. The queue is
# exact (no bins).
MEAN = "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"


def work(job: dict, clock: Clock) -> dict:
    """Time the steps one by one and save the labels after each, as `job["labels"]` says."""
    affinities = np.load(job["affinities"], mmap_mode="r")
    with clock("convert"):
        floats = affinities.astype(np.float32)
        floats /= 255
    given = np.load(job["fragments"]) if "fragments" in job else None
    # Scores of waterz are 1 - affinity. Up to -inf nothing is merged nor even scored, which gives the fragments.
    thresholds = sorted(job["thresholds"], key=float, reverse=True)
    cuts = [float("-inf"), *(1 - float(threshold) for threshold in thresholds)]
    levels = waterz.agglomerate(
        floats,
        cuts,
        fragments=given,
        aff_threshold_low=job["low"],
        aff_threshold_high=job["high"],
        scoring_function=MEAN,
    )
    with clock("fragments" if given is None else "contacts"):
        labels = next(levels)
    if "fragments" in job["labels"]:
        np.save(job["labels"]["fragments"], labels)
    for threshold in thresholds:
        with clock("agglomerate"):
            labels = next(levels)
        np.save(job["labels"][threshold], labels)
    return {"version": waterz.__version__}


if __name__ == "__main__":
    serve(work)

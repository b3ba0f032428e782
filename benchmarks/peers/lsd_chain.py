"""The recipe of local shape descriptors (Sheridan et al. 2022) from affinities on, written from its description.

In blocks with context: mean affinities above one half are the mask, maxima of the distance to its border the seeds of a
watershed; waterz agglomerates each block by a quantile of the affinities; connected components of all merges up to a
threshold are the segments. The published scripts keep the graph in a data base; here it stays in memory, which is
faster. Their scripts' values: seeds 10 voxels apart, 75 % quantile in 256 bins, queue of 256 bins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import mahotas
import numpy as np
import waterz
from measure import Clock, serve
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SEED_DISTANCE = 10
QUANTILE = "OneMinus<HistogramQuantileAffinity<RegionGraphType, 75, ScoreValue, 256, false>>"
QUEUE_BINS = 256

Slices = tuple[slice, slice, slice]


def blocks(shape: tuple[int, ...], block: list[int], context: int) -> Iterator[tuple[Slices, Slices, Slices]]:
    """Of each block: what it writes, what it reads, and where the first lies in the second."""
    for corner in itertools.product(*(range(0, n, b) for n, b in zip(shape, block, strict=True))):
        stop = [min(c + b, n) for c, b, n in zip(corner, block, shape, strict=True)]
        low = [max(c - context, 0) for c in corner]
        high = [min(s + context, n) for s, n in zip(stop, shape, strict=True)]
        inner = (slice(c - a, s - a) for c, s, a in zip(corner, stop, low, strict=True))
        yield tuple(map(slice, corner, stop)), tuple(map(slice, low, high)), tuple(inner)


def seeded_watershed(affinities: np.ndarray) -> np.ndarray:
    """Fragments of uint8 affinities; none is 0."""
    inside = affinities.mean(axis=0, dtype=np.float32) > 0.5 * 255
    distances = ndimage.distance_transform_edt(inside)
    seeds, _ = mahotas.label(ndimage.maximum_filter(distances, SEED_DISTANCE) == distances)
    return mahotas.cwatershed(distances.max() - distances, seeds)


def dense(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered from 1, and the original of each number (from 0), in rising order."""
    seen = np.zeros(int(labels.max()) + 1, bool)
    seen[labels] = True
    originals = np.flatnonzero(seen)
    numbers = np.zeros(seen.size, np.uint64)
    numbers[originals] = np.arange(1, originals.size + 1)
    return numbers[labels], originals


def agglomerate(affinities: np.ndarray, fragments: np.ndarray, cuts: list[float]) -> Iterator[np.ndarray]:
    """For each cut the pairs `(n, 2)` of touching fragments that this block puts into one segment."""
    numbers, originals = dense(fragments)
    levels = waterz.agglomerate(
        affinities.astype(np.float32) / 255,
        # The region graph is asked for before anything is merged: after merges that leaves rescored edges in the queue
        # at their old places, and waterz 0.10.1 stops the next level at the first of them.
        [0, max(cuts)],
        fragments=numbers,
        scoring_function=QUANTILE,
        discretize_queue=QUEUE_BINS,
        return_region_graph=True,
        return_merge_history=True,
    )
    _, _, graph = next(levels)
    edges = np.array([(edge["u"], edge["v"]) for edge in graph], np.int64).reshape(-1, 2)
    _, history, _ = next(levels)
    merges = np.array([(merge["a"], merge["b"]) for merge in history], np.int64).reshape(-1, 2)
    scores = np.array([merge["score"] for merge in history])
    for cut in cuts:
        segment = components(originals.size, merges[scores < cut])
        yield originals[edges[segment[edges[:, 0]] == segment[edges[:, 1]]] - 1]


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """The segment, from 1, of each of `count` fragments and of the 0 before them."""
    graph = coo_matrix((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(count + 1, count + 1))
    return connected_components(graph, directed=False)[1].astype(np.uint64) + 1


def work(job: dict, clock: Clock) -> dict:
    """Time the steps one by one; labels go where `job["labels"]` says."""
    affinities = np.load(job["affinities"], mmap_mode="r")
    shape = affinities.shape[1:]
    thresholds = sorted(job["thresholds"], key=float, reverse=True)
    places = list(blocks(shape, job["block"], job["context"]))
    fragments = np.lib.format.open_memmap(job["labels"]["fragments"], "w+", np.uint64, shape)
    last = [0]
    with clock("fragments"):
        for write, read, inner in places:
            numbers, originals = dense(seeded_watershed(affinities[(slice(None), *read)])[inner])
            fragments[write] = numbers + last[-1]
            last.append(last[-1] + originals.size)
    merged: list[list[np.ndarray]] = [[] for _ in thresholds]
    cuts = [1 - float(threshold) for threshold in thresholds]
    with clock("agglomerate"):
        for number, (_, read, _) in enumerate(places):
            for level, pairs in enumerate(agglomerate(affinities[(slice(None), *read)], fragments[read], cuts)):
                # An edge belongs to the block of its first fragment, which sees the most around it.
                owned = (pairs[:, 0] > last[number]) & (pairs[:, 0] <= last[number + 1])
                merged[level].append(pairs[owned])
    for threshold, pairs in zip(thresholds, merged, strict=True):
        labels = np.lib.format.open_memmap(job["labels"][threshold], "w+", np.uint64, shape)
        with clock("segment"):
            segments = components(last[-1], np.concatenate(pairs))
            for write, _, _ in places:
                labels[write] = segments[fragments[write]]
    return {"version": f"waterz {waterz.__version__}, mahotas {mahotas.__version__}"}


if __name__ == "__main__":
    serve(work)

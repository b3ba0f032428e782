"""Our side of the comparison, in a process of its own like the peers: the whole workflow, or its kernels on arrays."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

import neuroshed
from neuroshed.geometry import Box
from neuroshed.kernels.blocks import Rules, block_graph
from neuroshed.kernels.merging import Edges, Nodes, agglomerate, clusters_at, integer_threshold
from neuroshed.kernels.regions import Contacts, ranks, region_graph
from neuroshed.kernels.scores import Score
from neuroshed.kernels.watershed import Place, watershed
from peers.measure import Clock, serve

WARM_SIDE = 48
SMALL, DUST = 200, 50
"""Of the size rule: the workflow's defaults."""


def chain(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """The segmentation workflow from a Zarr volume to one volume for each threshold."""
    settings = [
        f"thresholds=[{','.join(job['thresholds'])}]",
        f"agglomerate.lowest_threshold={min(job['thresholds'], key=float)}",
        f"fragments.low={job['low']}",
        f"fragments.high={job['high']}",
        f"cluster={job['cluster']}",
    ]
    # Kernels are compiled, or read from their cache, on a small volume.
    warm = [f"affinities={job['warm_zarr']}", f"block_shape={job['warm_block']}", f"output={job['folder']}/warm"]
    neuroshed.run("segment", [*settings, *warm])
    real = [f"affinities={job['zarr']}", f"block_shape={job['block']}", f"output={job['folder']}/run"]
    with clock("chain"):
        summary = neuroshed.run("segment", [*settings, *real])
    # At threshold 1 nothing is merged. Of the same run, so only this labelling is new, and it is not timed.
    fragments = neuroshed.run("segment", [*settings, *real, "thresholds=[1]"])["segmentations"]["1"]
    return {
        "version": neuroshed.__version__,
        "stages": {kind: row["seconds"] for kind, row in summary["stages"].items()},
        "volumes": summary["segmentations"] | {"fragments": fragments},
    }


def kernels(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Watershed and region graph of the volume as one block, then agglomeration of the fragments in the job."""
    affinities = np.load(job["affinities"])
    given = np.load(job["fragments"])
    assert given.max() < 2**31, "our kernels number fragments in int32"
    given = given.astype(np.int32)
    corner = (slice(0, WARM_SIDE),) * 3
    _, small = np.unique(given[corner], return_inverse=True)
    small = small.reshape(given[corner].shape).astype(np.int32)
    _kernels(np.ascontiguousarray(affinities[:, *corner]), small, job, Clock(), save=False)
    _kernels(affinities, given, job, clock, save=True)
    return {"version": neuroshed.__version__}


def _kernels(affinities: np.ndarray, given: np.ndarray, job: dict[str, Any], clock: Clock, save: bool) -> None:
    box = Box.of_shape(given.shape)
    place = Place(box, box, given.shape)
    low, high = (math.ceil(Fraction(str(job[key])) * 255) for key in ("low", "high"))
    with clock("fragments"):
        basins = watershed(affinities, place, low, high)
        region_graph(basins.labels, affinities, basins.sizes.size)
    if save:
        np.save(job["labels"]["fragments"], basins.labels)
    del basins
    # What the workflow does in a block: the size rule first, which leaves few contacts to count.
    with clock("sized fragments"):
        block_graph(affinities, place, Rules(low, high, SMALL, DUST))
    count = int(given.max())
    with clock("contacts"):
        contacts = region_graph(given, affinities, count)
    thresholds = [Fraction(threshold) for threshold in job["thresholds"]]
    with clock("agglomerate"):
        nodes = _nodes(given, place, count)
        merges = agglomerate(nodes, _edges(contacts), Score.parse("mean"), integer_threshold(min(thresholds))).merges
        ends = merges.left.astype(np.int64) - 1, merges.right.astype(np.int64) - 1
    for name, threshold in zip(job["thresholds"], thresholds, strict=True):
        with clock("agglomerate"):
            clusters = clusters_at(count, *ends, merges.scores, integer_threshold(threshold))
            labels = np.concatenate([[0], clusters + 1]).astype(np.uint64)[given]
        if save:
            np.save(job["labels"][name], labels)


def _nodes(fragments: np.ndarray, place: Place, count: int) -> Nodes:
    return Nodes(
        ids=np.arange(1, count + 1, dtype=np.uint64),
        ranks=ranks(fragments, place, count),
        sizes=np.bincount(fragments.reshape(-1), minlength=count + 1)[1:],
        classes=np.zeros(count, np.uint8),
        frozen=np.zeros(count, bool),
    )


def _edges(contacts: Contacts) -> Edges:
    return Edges(contacts.left - 1, contacts.right - 1, np.stack([contacts.sums, contacts.counts], axis=1))


if __name__ == "__main__":
    serve(lambda job, clock: {"chain": chain, "kernels": kernels}[job["task"]](job, clock))

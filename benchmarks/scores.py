"""Variation of information of labels against a truth, by one protocol for everybody.

The truth's labels are divided into connected components (what leaves the volume and comes back is two), those under
`SMALLEST` voxels and label 0 are left out, and predicted 0 is filled by the nearest label: left out, it would reward
whoever labels less; as one segment, it would be one great merger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import label

from neuroshed.kernels.metrics import ContingencyTable, add_contingency, contingency, variation_of_information

SMALLEST = 100
SLAB, MARGIN = 64, 16


def components(truth: np.ndarray) -> np.ndarray:
    """Connected components (26 neighbours) of equal labels, uint32, 0 where the truth is 0 or a component small."""
    parts = label(truth, background=0, connectivity=3).astype(np.uint32)
    small = np.bincount(parts.reshape(-1)) < SMALLEST
    parts[small[parts]] = 0
    return parts


def score(labels: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    """Split and merge error in bits, the same at best, number of labels and share of voxels that have none.

    At best means: had every label been joined to all others that overlap the same component the most. It is the limit
    of what agglomeration can make of fragments.
    """
    table = add_contingency(
        contingency(_filled(labels, z, min(z + SLAB, len(labels))), parts[z : z + SLAB])
        for z in range(0, len(labels), SLAB)
    )
    split, merge = variation_of_information(table)
    return {
        "split": round(split, 4),
        "merge": round(merge, 4),
        "voi": round(split + merge, 4),
        "best_voi": round(sum(variation_of_information(_assigned(table))), 4),
        "labels": int(np.count_nonzero(np.unique(table.seg))),
        "unlabelled": round(1 - int(np.count_nonzero(labels)) / labels.size, 4),
    }


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Variation of information between two segmentations, 0 included: 0 bits if they are the same but for names."""
    return round(sum(variation_of_information(contingency(one, other), ignore_truth_zero=False)), 6)


def _filled(labels: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Planes `start:stop` with the nearest label, looked for up to `MARGIN` planes beyond, in place of 0."""
    low = max(start - MARGIN, 0)
    planes = labels[low : stop + MARGIN]
    empty = planes == 0
    if empty.any() and not empty.all():
        nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
        planes = planes[tuple(nearest)]
    return planes[start - low : stop - low]


def _assigned(table: ContingencyTable) -> ContingencyTable:
    """The table with each label renamed to the component, of those it overlaps, that it overlaps the most."""
    inside = table.truth != 0
    seg, truth, counts = (column[inside] for column in table)
    order = np.lexsort((counts, seg))
    last = np.append(seg[order][1:] != seg[order][:-1], True)
    labels, best = seg[order][last], truth[order][last]
    return add_contingency([ContingencyTable(best[np.searchsorted(labels, seg)], truth, counts)])

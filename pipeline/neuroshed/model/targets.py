"""What the network should answer: affinities of a ground-truth segmentation.

Channel `c` at voxel `p` is the edge between `p` and `p + offset_c`. The first three offsets are (-1, 0, 0), (0, -1, 0)
and (0, 0, -1), the convention of waterz; further, longer ones are auxiliary tasks that help the nearest-neighbour
channels (Lee et al. 2017, arXiv:1706.00120).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec

NEAREST: tuple[Vec, Vec, Vec] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def affinity_targets(
    labels: npt.NDArray[np.integer[Any]], offsets: Sequence[Vec], mask: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The true affinities and which of them count, both bool `(len(offsets), z, y, x)`, of integer labels `(z, y, x)`.

    An edge counts if both its voxels lie in the array, have a label other than 0 and, given a bool `mask` `(z, y, x)`,
    lie in the mask. Edges that do not count have affinity False.

    >>> targets, counts = affinity_targets(np.array([[[1, 1, 2, 0]]]), [(0, 0, -1)])
    >>> targets[0, 0, 0].tolist(), counts[0, 0, 0].tolist()
    ([False, True, False, False], [False, True, True, False])
    """
    labelled = labels != 0
    if mask is not None:
        labelled &= mask
    targets = np.zeros((len(offsets), *labels.shape), bool)
    counts = np.zeros_like(targets)
    whole = Box.of_shape((labels.shape[0], labels.shape[1], labels.shape[2]))
    for channel, offset in enumerate(offsets):
        here = whole.intersect(shifted(whole, offset, -1))
        if here.empty:
            continue
        a, b = here.slices(), shifted(here, offset, 1).slices()
        counts[channel][a] = labelled[a] & labelled[b]
        targets[channel][a] = counts[channel][a] & (labels[a] == labels[b])
    return targets, counts


def shifted(box: Box, offset: Vec, sign: int) -> Box:
    """The box moved by `sign * offset`.

    >>> shifted(Box((0, 0, 0), (2, 2, 2)), (0, 0, -1), -1).start
    (0, 0, 1)
    """
    z, y, x = (sign * side for side in offset)
    (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
    return Box((z0 + z, y0 + y, x0 + x), (z1 + z, y1 + y, x1 + x))

"""Scores of a segmentation against a truth, all computed from one contingency table.

Tables of parts of a volume add up to the table of the whole, and everything before the last division is an integer
(or a correctly rounded sum), so a score depends neither on how the volume was divided nor on the order of the parts.

Published programs differ in what they do with label 0, which moves "the" adapted Rand error by tens of percent, so each
variant has a name; see `adapted_rand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

RandVariant = Literal["cremi", "snemi", "skimage"]
Table = TypeVar("Table")
SLICE_VOXELS = 2**20
"""Voxels counted at once: bounds the memory of counting, whatever the labels."""

RAND_VARIANTS: tuple[RandVariant, ...] = ("cremi", "snemi", "skimage")


class ContingencyTable(NamedTuple):
    """How many voxels each pair of labels shares: three arrays of one length, sorted by (seg, truth), pairs unique."""

    seg: npt.NDArray[np.uint64]
    truth: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]

    @property
    def voxels(self) -> int:
        """Number of voxels counted, those of label 0 included."""
        return int(self.counts.sum())


class Variation(NamedTuple):
    """Variation of information in bits: `split` is H(seg | truth), `merge` is H(truth | seg)."""

    split: float
    merge: float


class RandScore(NamedTuple):
    """Adapted Rand error, and the precision (low when merged) and recall (low when split) of voxel pairs."""

    error: float
    precision: float
    recall: float


def contingency(seg: npt.NDArray[Any], truth: npt.NDArray[Any]) -> ContingencyTable:
    """The contingency table of two unsigned label arrays of one shape, label 0 counted like any other.

    Raises ValueError if the shapes differ.
    """
    if seg.shape != truth.shape:
        raise ValueError(f"label arrays of shapes {seg.shape} and {truth.shape} cannot be compared")
    flat_seg, flat_truth = seg.reshape(-1), truth.reshape(-1)
    slices = (slice(start, start + SLICE_VOXELS) for start in range(0, flat_seg.size, SLICE_VOXELS))
    return add_contingency(_count_runs(flat_seg[part], flat_truth[part]) for part in slices)


def _count_runs(seg: npt.NDArray[Any], truth: npt.NDArray[Any]) -> ContingencyTable:
    """Labels run along x: sorting runs instead of voxels is many times faster."""
    starts = np.flatnonzero((seg[1:] != seg[:-1]) | (truth[1:] != truth[:-1])) + 1
    starts = np.concatenate(([0], starts))
    lengths = np.diff(starts, append=seg.size).astype(np.int64)
    return _sum_pairs(seg[starts], truth[starts], lengths)


def add_contingency(tables: Iterable[ContingencyTable]) -> ContingencyTable:
    """The sum of tables, taken one by one, as `add_up` does."""
    return add_up(tables, _merge)


def add_up(tables: Iterable[Table], merge: Callable[[list[Table]], Table]) -> Table:
    """The sum of tables, taken one by one: at most log2(n) partial sums are held, none larger than the result.

    Each is merged only with a sum of as many tables, so n tables cost log2(n) sorts of the result, not n.
    """
    sums: list[tuple[int, Table]] = []
    for table in tables:
        level = 0
        while sums and sums[-1][0] == level:
            table = merge([sums.pop()[1], table])
            level += 1
        sums.append((level, table))
    return merge([table for _, table in sums])


def _merge(tables: list[ContingencyTable]) -> ContingencyTable:
    if not tables:
        return ContingencyTable(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    seg, truth, counts = (np.concatenate(columns) for columns in zip(*tables, strict=True))
    return _sum_pairs(seg, truth, counts)


def _sum_pairs(seg: npt.NDArray[Any], truth: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> ContingencyTable:
    """Sort pairs and add up the counts of equal ones."""
    order = np.lexsort((truth, seg))
    seg, truth, counts = seg[order], truth[order], counts[order]
    first = np.ones(seg.size, np.bool_)
    first[1:] = (seg[1:] != seg[:-1]) | (truth[1:] != truth[:-1])
    starts = np.flatnonzero(first)
    # reduceat does not take an empty list of starts.
    sums = np.add.reduceat(counts, starts) if starts.size else counts
    return ContingencyTable(seg[starts].astype(np.uint64), truth[starts].astype(np.uint64), sums.astype(np.int64))


def collapse_unlabelled(table: ContingencyTable) -> ContingencyTable:
    """The table with all voxels of truth 0 in the one pair (0, 0).

    No score that leaves out truth 0 changes, and the table of a sparsely labelled volume stays small.
    """
    labelled = table.truth != 0
    nothing = np.zeros(1, np.uint64)
    unlabelled = ContingencyTable(nothing, nothing, np.array([table.counts[~labelled].sum()]))
    kept = ContingencyTable(table.seg[labelled], table.truth[labelled], table.counts[labelled])
    return kept if labelled.all() else _merge([unlabelled, kept])


def variation_of_information(table: ContingencyTable, *, ignore_truth_zero: bool = True) -> Variation:
    """Variation of information (Meila, J. Multivariate Analysis 98, 2007) as split and merge errors in bits.

    By default voxels of truth 0 are left out and predicted 0 counts as one segment like any other, as in CREMI's
    evaluation (cremi_python, evaluation/voi.py). With `ignore_truth_zero` off nothing is left out, as is the default of
    `skimage.metrics.variation_of_information`.

    Raises ValueError if no voxel is left.
    """
    seg, truth, counts = _labelled(table) if ignore_truth_zero else table
    _check_any(counts)
    total = int(counts.sum())
    pairs = _sum_of_logs(counts)
    split = (_sum_of_logs(_group_sums(truth, counts)) - pairs) / total
    merge = (_sum_of_logs(_group_sums(seg, counts)) - pairs) / total
    return Variation(max(split, 0.0), max(merge, 0.0))


def adapted_rand(table: ContingencyTable, variant: RandVariant) -> RandScore:
    """Adapted Rand error: 1 - the F score of precision and recall of voxel pairs. All variants leave out truth 0.

    `snemi`
        SNEMI3D_metrics.m (Arganda-Carreras et al., Front. Neuroanat. 9:142, 2015). Predicted 0 is no segment: its c
        voxels of nonzero truth are merged with nothing. The script adds c / n to the sums of squares of overlaps and
        segments (n: all voxels, truth 0 included), the relic of a version on probabilities, where it stood for c
        segments of one voxel; on voxel counts it is next to nothing. Voxels pair with themselves.
    `cremi`
        cremi_python, evaluation/rand.py: the same arithmetic as `snemi`. CREMI's files mark background by 2**64 - 1.
    `skimage`
        skimage.metrics.adapted_rand_error with its default ignore_labels=(0,). Predicted 0 is one segment like any
        other, and voxels do not pair with themselves. skimage 0.26 returns what is here `precision` and `recall` in
        the other order, and NaN where no two voxels share a label, which here is 1 (nothing could be wrong).

    Raises ValueError if no voxel has a nonzero truth.
    """
    seg, truth, counts = _labelled(table)
    _check_any(counts)
    truth_squares = _sum_of_squares(_group_sums(truth, counts))
    if variant == "skimage":
        total = int(counts.sum())
        seg_squares = _sum_of_squares(_group_sums(seg, counts))
        return _rand_score(_sum_of_squares(counts) - total, seg_squares - total, truth_squares - total)
    inside = seg != 0
    outside = int(counts[~inside].sum())
    # Both sides of every fraction are multiplied by n, so that c / n stays an integer.
    n = table.voxels
    pair_squares = _sum_of_squares(counts[inside]) * n + outside
    seg_squares = _sum_of_squares(_group_sums(seg[inside], counts[inside])) * n + outside
    return _rand_score(pair_squares, seg_squares, truth_squares * n)


def _rand_score(both: int, in_seg: int, in_truth: int) -> RandScore:
    return RandScore(
        error=1.0 - _fraction(2 * both, in_seg + in_truth),
        precision=_fraction(both, in_seg),
        recall=_fraction(both, in_truth),
    )


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _labelled(table: ContingencyTable) -> ContingencyTable:
    keep = table.truth != 0
    return ContingencyTable(table.seg[keep], table.truth[keep], table.counts[keep])


def _check_any(counts: npt.NDArray[np.int64]) -> None:
    if counts.size == 0:
        raise ValueError("the table holds no voxel to score: the truth has no label but 0")


def _group_sums(labels: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The size of each label."""
    return _sum_pairs(labels, np.zeros_like(labels), counts).counts


def _sum_of_squares(counts: npt.NDArray[np.int64]) -> int:
    """Exact, beyond 64 bits: over distinct sizes, of which there are few."""
    sizes, times = np.unique(counts, return_counts=True)
    return sum(t * s * s for s, t in zip(sizes.tolist(), times.tolist(), strict=True))


def _sum_of_logs(counts: npt.NDArray[np.int64]) -> float:
    """The sum of c log2 c: rounded once (fsum), over distinct sizes, so that equal partitions give equal sums."""
    sizes, times = np.unique(counts, return_counts=True)
    return math.fsum(t * (s * math.log2(s)) for s, t in zip(sizes.tolist(), times.tolist(), strict=True))

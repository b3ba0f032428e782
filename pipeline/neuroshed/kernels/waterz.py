"""Watershed and agglomeration by waterz (github.com/funkey/waterz, 0.10), the yardstick for our own.

waterz holds the GIL, prints, and sizes its memory by the largest label: so it runs in a process of its own (`child`)
on labels made dense. It scores in float32 and merges the lowest score first, strictly below a threshold; here scores
are turned round to affinities: 0..1, higher is stronger, merged at score >= threshold. A score counts as reaching a
threshold that it misses by less than `SLACK`, since sums of float32 are not exact. (Its running mean over the faces
of one contact drifts: by 5e-7 for 1e4 faces, up to 5e-3 for 1e6, measured.)

Order of merges: by `mean` and the quantiles it is exactly greedy, best score first, all scores brought up to date
after each merge. It does rescore lazily, but a joined edge never scores better than the better of its parts, so a
score that is out of date only comes up too early, is redone, and waits again. Which of equal scores goes first depends
on its heap. By `size_similarity` joining can raise a score, and it is not greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.child import call

Ids = npt.NDArray[np.uint64]
Affinities = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_QUANTILE = "OneMinus<HistogramQuantileAffinity<RegionGraphType,{},ScoreValue,256,{}>>"
_SIZES = "MaxSize<RegionGraphType>,MinSize<RegionGraphType>"
SCORES = {
    "mean": "OneMinus<MeanAffinity<RegionGraphType,ScoreValue>>",
    **{f"quantile_{q}": _QUANTILE.format(q, "false") for q in range(10, 100, 5)},
    **{f"quantile_{q}_max": _QUANTILE.format(q, "true") for q in range(10, 100, 5)},
    "size_similarity": f"Divide<Subtract<{_SIZES}>,Add<{_SIZES}>>",
}
"""The scoring functions that waterz ships compiled; any other needs a C++ compiler on every worker.

- `mean`: the mean affinity of a contact.
- `quantile_10`, `quantile_15` .. `quantile_95`: that percentile of its affinities, as the middle of one of 256 bins,
  so never above 511/512; about 1 KB of memory a contact.
- `quantile_10_max` ..: the same, but each contact between two fragments counts as its single largest affinity.
- `size_similarity`: 1 for segments of equal size, towards 0 the more they differ; ignores affinities (a control).
"""

SLACK = 2.0**-20
"""What rounding to float32 may take from a score: less than this below a threshold still reaches it."""


def watershed(affinities: Affinities, low: float, high: float) -> Ids:
    """Fragments by waterz's own watershed (Zlateski and Seung 2015): uint64 `(z, y, x)`, 1..n, 0 where nothing reaches
    `low`.

    `affinities` is uint8 (255 is 1) or float32 in 0..1, `(3 or more, z, y, x)`, of which the first three count:
    channel c at voxel p is the edge between p and p - e_c. An edge of at least `high` always joins. (waterz by itself
    asks for more than `low`; one step of float32 makes that "at least", as in our own watershed.) The result depends
    on the block: plateaus are divided from their rims.

    Raises ValueError for affinities that are not finite or leave 0..1, or if not 0 <= low <= high <= 1.
    """
    _check_affinities(affinities)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low {low} and high {high} are not in order in 0..1; they must be 0 <= low <= high <= 1")
    below = float(np.nextafter(np.float32(low), np.float32(-1)))
    return call("waterz.watershed", [affinities[:3]], low=below, high=high)[0]


def agglomerate(affinities: Affinities, fragments: Ids, thresholds: Sequence[float], score: str = "mean") -> list[Ids]:
    """Segments at each of `thresholds` (any order): one new uint64 array of the shape of `fragments` for each.

    `affinities` as for `watershed`; `fragments` is uint64 `(z, y, x)`, of any ids, and is not changed. Two segments
    merge while their `score` (a name in `SCORES`) is at least the threshold. A segment's id is the smallest id of its
    fragments; 0 is background and never merges.

    Raises ValueError for affinities, fragments, thresholds or a score that do not fit.
    """
    _check_affinities(affinities, fragments)
    scoring = _scoring(score)
    if not thresholds:
        return []
    cuts = [_cut(threshold) for threshold in thresholds]
    order = sorted(set(cuts))
    ids, dense = _densify(fragments)
    tables = call("waterz.agglomerate", [affinities[:3], dense], cuts=order, scoring=scoring)
    return [ids[tables[order.index(cut)]][dense] for cut in cuts]


def scored_edges(
    affinities: Affinities, fragments: Ids, lowest: float, score: str = "mean"
) -> tuple[Ids, Ids, npt.NDArray[np.float64]]:
    """Every two touching fragments that end up in one segment at `lowest`, and the score at which they got there.

    That is what the classic blockwise recipe (Funke et al. 2019; "Local shape descriptors", Sheridan et al. 2023)
    keeps of a block: the two need not have merged with each other; they got together by the merge that first put them
    in one segment, and the edge takes the score of that merge, or of a worse merge before it. So at any threshold t of
    at least `lowest`, the connected components of the edges with score >= t are the segments of `agglomerate` at t.

    Returns `left` < `right`, uint64 fragment ids, sorted, and `scores`, float64 in 0..1. Parameters and errors as for
    `agglomerate`.
    """
    _check_affinities(affinities, fragments)
    ids, dense = _densify(fragments)
    into, merged, costs = call("waterz.history", [affinities[:3], dense], cut=_cut(lowest), scoring=_scoring(score))
    reached = np.minimum.accumulate(np.clip(1.0 - costs.astype(np.float64) + SLACK, 0.0, 1.0))
    left, right = _contacts(dense, ids.size)
    when = _joined(ids.size, into, merged, left, right)
    joined = when >= 0
    return ids[left[joined]], ids[right[joined]], reached[when[joined]]


def _check_affinities(affinities: Affinities, fragments: Ids | None = None) -> None:
    if affinities.ndim != 4 or affinities.shape[0] < 3 or affinities.size == 0:
        raise ValueError(f"affinities have shape {affinities.shape}; they must be (3 or more, z, y, x), none 0")
    if affinities.dtype not in (np.uint8, np.float32):
        raise ValueError(f"affinities are {affinities.dtype}; make them uint8, or float32 in 0..1")
    if fragments is not None and (fragments.dtype != np.uint64 or fragments.shape != affinities.shape[1:]):
        raise ValueError(
            f"fragments are {fragments.dtype} {fragments.shape}; they must be uint64 {affinities.shape[1:]}, "
            "as the affinities are"
        )
    if affinities.dtype == np.float32:
        # Written so that NaN, which compares as false, is found.
        bad = ~((affinities[:3] >= 0) & (affinities[:3] <= 1))
        if bad.any():
            channel, *voxel = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
            value = affinities[(channel, *voxel)]
            raise ValueError(f"affinity {value!s} of channel {channel} at voxel {tuple(voxel)}; all must be in 0..1")


def _scoring(score: str) -> str:
    if score not in SCORES:
        raise ValueError(
            f"score {score!r} is unknown; take mean, quantile_10 .. quantile_95 in steps of 5, the same with _max, "
            "or size_similarity"
        )
    return SCORES[score]


def _cut(threshold: float) -> float:
    """The float32 below which waterz shall merge: just above all scores that reach `threshold`.

    >>> _cut(0.25) > 0.75
    True
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in 0..1")
    most = 1.0 - threshold + SLACK
    nearest = np.float32(most)
    return float(nearest if nearest > most else np.nextafter(nearest, np.float32(2)))


def _densify(labels: Ids) -> tuple[Ids, Ids]:
    """Sorted ids, with 0 in front, and the place of each voxel's label among them (uint64).

    >>> ids, dense = _densify(np.array([[[7, 7, 3]]], np.uint64))
    >>> ids.tolist(), dense.tolist()
    ([0, 3, 7], [[[2, 2, 1]]])
    """
    flat = labels.ravel()
    # Labels come in runs along x; sorting one voxel of each is several times faster.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    ids, places = np.unique(np.concatenate([np.zeros(1, np.uint64), flat[starts]]), return_inverse=True)
    lengths = np.diff(starts, append=flat.size)
    return ids, np.repeat(places[1:].astype(np.uint64), lengths).reshape(labels.shape)


def _contacts(dense: Ids, count: int) -> tuple[Ids, Ids]:
    """Pairs of touching non-zero labels below `count`, the smaller first, sorted."""
    pairs = []
    for axis in range(3):
        along = np.moveaxis(dense, axis, 0)
        upper, lower = along[1:], along[:-1]
        face = (upper != lower) & (upper > 0) & (lower > 0)
        upper, lower = upper[face], lower[face]
        pairs.append(np.unique(np.minimum(upper, lower) * np.uint64(count) + np.maximum(upper, lower)))
    left, right = np.divmod(np.unique(np.concatenate(pairs)), np.uint64(count))
    return left, right


@numba.njit(cache=True, nogil=True)
def _joined(count: Any, into: Any, merged: Any, left: Any, right: Any) -> Any:
    """Index of the merge that put `left[k]` and `right[k]` into one segment, -1 if none did.

    Union by size without shortcuts: paths stay short, and go up in time, so the last step to the common node is it.
    """
    up = np.arange(count)
    size = np.ones(count, dtype=np.int64)
    when = np.full(count, into.size, dtype=np.int64)
    for merge in range(into.size):
        a, b = np.int64(into[merge]), np.int64(merged[merge])
        while up[a] != a:
            a = up[a]
        while up[b] != b:
            b = up[b]
        if size[a] < size[b]:
            a, b = b, a
        up[b] = a
        when[b] = merge
        size[a] += size[b]
    out = np.full(left.size, -1, dtype=np.int64)
    for k in range(left.size):
        a, b = np.int64(left[k]), np.int64(right[k])
        last = -1
        while a != b:
            if when[a] > when[b]:
                a, b = b, a
            if when[a] == into.size:
                last = -1
                break
            last = when[a]
            a = up[a]
        out[k] = last
    return out


# What follows runs in the other process.


def _as_float(affinities: Affinities) -> npt.NDArray[np.float32]:
    if affinities.dtype == np.uint8:
        return affinities.astype(np.float32) / np.float32(255)
    return affinities.astype(np.float32, copy=False)


def _watershed(affinities: Affinities, *, low: float, high: float) -> list[Ids]:
    import waterz

    found = waterz.agglomerate(_as_float(affinities), [0.0], aff_threshold_low=low, aff_threshold_high=high)
    return [np.asarray(next(found))]


def _agglomerate(affinities: Affinities, dense: Ids, *, cuts: list[float], scoring: str) -> list[Ids]:
    """For each cut, rising, the smallest label of the segment that each label 0..n is in."""
    import waterz

    places = dense.ravel()
    tables = []
    for labels in waterz.agglomerate(_as_float(affinities), cuts, fragments=dense.copy(), scoring_function=scoring):
        table = np.zeros(int(places.max()) + 1, dtype=np.uint64)
        # waterz names a segment by any of its fragments.
        table[places] = np.asarray(labels).ravel()
        _, first, segment = np.unique(table, return_index=True, return_inverse=True)
        tables.append(first[segment].astype(np.uint64))
    return tables


def _history(affinities: Affinities, dense: Ids, *, cut: float, scoring: str) -> list[npt.NDArray[Any]]:
    """The merges below `cut`, in order: the label that stayed, the label that went, and waterz's score (float32).

    Its region graph is not asked for: extracting that between two thresholds pushes rescored edges a second time, and
    the next threshold may then stop early.
    """
    import waterz

    found: Any = waterz.agglomerate(
        _as_float(affinities), [cut], fragments=dense, scoring_function=scoring, return_merge_history=True
    )
    _, merges = next(found)
    return [
        np.fromiter((merge["a"] for merge in merges), np.uint64, len(merges)),
        np.fromiter((merge["b"] for merge in merges), np.uint64, len(merges)),
        np.fromiter((merge["score"] for merge in merges), np.float32, len(merges)),
    ]

"""Watershed by one best edge: each voxel picks its best edge, basins are what picked edges connect.

This is the first Boruvka round of the maximum spanning forest (Cousty et al., "Watershed cuts", 2009), with edges
of at least `high` picked as well. Because the order of edges is strict, there are no plateaus to divide, and a
voxel's pick depends on its six edges alone: one voxel of halo makes the picks of a block those of the whole volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.order import edge_key, strides
from neuroshed.kernels.pairs import marked, row_buffers
from neuroshed.kernels.unions import union

LIT = np.uint8(8)
"""Bit of a voxel with an edge of at least `low`; bits 0 to 2: it is joined to its lower neighbour along z, y, x."""

_TIES = [[way for way in range(6) if bits >> way & 1] for bits in range(64)]
# By six bits, one for each of a voxel's edges: how many are set, and which.
_TIED = np.array([len(ways) for ways in _TIES], np.int64)
_WAYS = np.array([ways + [0] * (6 - len(ways)) for ways in _TIES], np.uint8)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: its box, the region that is segmented, and the shape of the whole volume."""

    box: Box
    region: Box
    volume_shape: Vec

    def inner_faces(self) -> npt.NDArray[np.bool_]:
        """Which faces have voxels of the region beyond them: `(3, 2)`, by axis, low then high.

        >>> Place(Box((0, 0, 0), (2, 2, 2)), Box((0, 0, 0), (4, 2, 2)), (4, 2, 2)).inner_faces()[0].tolist()
        [False, True]
        """
        low = [a > b for a, b in zip(self.box.start, self.region.start, strict=True)]
        high = [a < b for a, b in zip(self.box.stop, self.region.stop, strict=True)]
        return np.array([low, high], dtype=np.bool_).T

    @property
    def first(self) -> np.uint64:
        """Global linear index of the block's first voxel."""
        return np.uint64(np.ravel_multi_index(self.box.start, self.volume_shape))

    @property
    def steps(self) -> npt.NDArray[np.uint64]:
        """Steps of the global linear index along z, y, x."""
        return np.array(strides(self.volume_shape), dtype=np.uint64)

    def global_index(self, local: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Global linear indices of voxels given by their linear index in the block."""
        along = np.unravel_index(local, self.box.shape)
        index = np.full(local.shape, self.first)
        for step, axis in zip(self.steps, along, strict=True):
            index += step * axis.astype(np.uint64)
        return index


class Basins(NamedTuple):
    """Basins of one block, numbered from 1 in the order of their first voxels.

    `labels` int32 `(z, y, x)`, 0 where no edge reaches `low`. `first` int64 `(n,)`: linear index in the block of each
    basin's first voxel; `sizes` int64 `(n,)` in voxels. `picked`: for each axis the two faces' voxels (low, high) that
    picked the edge across the face, uint8.
    """

    labels: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    picked: tuple[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], ...]


def read_box(box: Box, region: Box) -> Box:
    """The affinities that a block's picks depend on: one voxel beyond its high faces, inside the region."""
    return box.grow(0, 1).intersect(region)


def watershed(affinities: npt.NDArray[np.uint8], place: Place, low: int, high: int) -> Basins:
    """Basins of one block.

    `affinities` is uint8 `(3 or more, z, y, x)` over `read_box`; channel c < 3 at voxel p is the edge between p and
    p - e_c. Edges below `low` join nothing; edges of at least `high` (0..255, 256 for none) always join.
    """
    nz, ny, nx = place.box.shape
    # One layer more than the block: bits there, and those of the first layers, are edges across faces.
    joined = np.zeros((nz + 1, ny + 1, nx + 1), np.uint8)
    pick_edges(affinities, place.inner_faces()[:, 0], place.first, place.steps, low, high, row_buffers(nx), joined)
    own = joined[:nz, :ny, :nx]
    faces = []
    for axis, side in enumerate(place.box.shape):
        whole = [slice(None, n) for n in place.box.shape]
        planes = []
        for at in (0, side):
            cut = tuple(at if a == axis else part for a, part in enumerate(whole))
            planes.append((joined[cut] >> np.uint8(axis)) & np.uint8(1))
        faces.append((planes[0], planes[1]))
        own.swapaxes(0, axis)[0] &= ~np.uint8(1 << axis)
    return Basins(*connect(joined, int(np.count_nonzero(own == LIT)), place.box.shape), tuple(faces))


def connect(
    joined: npt.NDArray[np.uint8], starts: int, shape: Vec | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Connected components of the bits in `joined`: labels from 1 in raster order, first voxels and sizes (`Basins`).

    `starts`: number of voxels that are lit but joined to no lower neighbour, the most labels there can be on the way.
    `shape`: of the labels, where `joined` has further layers.
    """
    nz, ny, nx = joined.shape if shape is None else shape
    # numpy asks for large pages of memory, compiled code does not.
    labels = np.empty((nz, ny, nx), np.int32)
    first, sizes = _connect(joined, labels.view(np.uint32), starts, row_buffers(nx), row_buffers(nx))
    return labels, first, sizes[1:, 0] + sizes[1:, 1]


@numba.njit(cache=True, nogil=True)
def pick_edges(
    affinities: Any, low_inner: Any, first: Any, step: Any, low: Any, high: Any, row: Any, joined: Any
) -> Any:
    """Set the bits of `joined` for the edges that voxels pick or that reach `high`.

    Row by row and without branches, which compiles to vector instructions; voxels whose best edge is not their only
    best are settled one by one.
    """
    nz, ny, nx = joined.shape[0] - 1, joined.shape[1] - 1, joined.shape[2] - 1
    _, ez, ey, ex = affinities.shape
    best, ties = np.zeros(nx, np.uint8), np.zeros(nx, np.uint8)
    marks, at = row.marks, row.at
    # The edges of a row's voxels down z, y, x, then up. What is not there counts as 0, which is best only where all
    # edges are 0; those voxels are among the ties.
    edges = np.zeros((6, nx), np.uint8)
    for z in range(nz):
        for y in range(ny):
            _take(edges[0], affinities[0, z, y], z > 0 or low_inner[0])
            _take(edges[1], affinities[1, z, y], y > 0 or low_inner[1])
            _take(edges[2], affinities[2, z, y], True)
            if not low_inner[2]:
                edges[2, 0] = 0
            _take(edges[3], affinities[0, min(z + 1, ez - 1), y], z + 1 < ez)
            _take(edges[4], affinities[1, z, min(y + 1, ey - 1)], y + 1 < ey)
            _take(edges[5], affinities[2, z, y, 1:], True)
            if ex == nx:
                edges[5, nx - 1] = 0
            _best_of_rows(edges, best, ties)
            _join_down(edges, best, ties, low, high, joined[z, y])
            _join_up(best, ties, low, 3, joined[z + 1, y])
            _join_up(best, ties, low, 4, joined[z, y + 1])
            _join_up(best, ties, low, 5, joined[z, y, 1:])
            _mark_ties(best, ties, low, high, marks)
            count = marked(row)
            if count:
                # Which edges are there, but for those at the ends of the row.
                there = 0b100100 | (z > 0 or low_inner[0]) | (y > 0 or low_inner[1]) << 1
                there |= (z + 1 < ez) << 3 | (y + 1 < ey) << 4
                lacks_first, lacks_last = not low_inner[2], ex == nx
                voxel = first + np.uint64(z) * step[0] + np.uint64(y) * step[1]
                for i in range(count):
                    x = at[i]
                    ways = np.uint8(there)
                    if x == 0 and lacks_first:
                        ways &= np.uint8(0b111011)
                    if x == nx - 1 and lacks_last:
                        ways &= np.uint8(0b011111)
                    way = _best_of_ties(ties[x] & ways, best[x], voxel + np.uint64(x), step)
                    if way >= 0:
                        joined[z, y, x] |= LIT
                        joined[z + (way == 3), y + (way == 4), x + (way == 5)] |= np.uint8(1 << way % 3)


@numba.njit(cache=True, nogil=True)
def _take(row: Any, values: Any, there: Any) -> Any:
    for x in range(min(row.size, values.size)):
        row[x] = values[x] if there else np.uint8(0)


@numba.njit(cache=True, nogil=True)
def _best_of_rows(edges: Any, best: Any, ties: Any) -> Any:
    """The best affinity of each voxel of a row, and a bit for each of its edges that has it."""
    a, b, c, d, e, f = edges[0], edges[1], edges[2], edges[3], edges[4], edges[5]
    for x in range(best.size):
        v = max(a[x], b[x])
        v = max(v, c[x])
        v = max(v, d[x])
        v = max(v, e[x])
        best[x] = max(v, f[x])
    for x in range(best.size):
        v = best[x]
        ties[x] = (
            np.uint8(a[x] == v)
            | np.uint8(b[x] == v) << np.uint8(1)
            | np.uint8(c[x] == v) << np.uint8(2)
            | np.uint8(d[x] == v) << np.uint8(3)
            | np.uint8(e[x] == v) << np.uint8(4)
            | np.uint8(f[x] == v) << np.uint8(5)
        )


@numba.njit(cache=True, nogil=True)
def _join_down(edges: Any, best: Any, ties: Any, low: Any, high: Any, joined: Any) -> Any:
    """Edges down that their upper voxel picks as its only best, or that reach `high`; and which voxels are lit."""
    a, b, c = edges[0], edges[1], edges[2]
    least, most = np.uint8(max(low, 1)), np.uint8(min(high, 255))
    some = np.uint8(high <= 255)
    for x in range(best.size):
        lit = np.uint8(best[x] >= least)
        single = lit & np.uint8(ties[x] & (ties[x] - np.uint8(1)) == 0)
        always = some & np.uint8(a[x] >= most)
        always |= (some & np.uint8(b[x] >= most)) << np.uint8(1)
        always |= (some & np.uint8(c[x] >= most)) << np.uint8(2)
        joined[x] |= always | (ties[x] & np.uint8(7) & (np.uint8(0) - single)) | lit << np.uint8(3)


@numba.njit(cache=True, nogil=True)
def _join_up(best: Any, ties: Any, low: Any, way: Any, joined: Any) -> Any:
    """Edges up that their lower voxel picks as its only best."""
    least, only, bit = np.uint8(max(low, 1)), np.uint8(1 << way), np.uint8(1 << (way - 3))
    for x in range(best.size):
        joined[x] |= bit * (np.uint8(best[x] >= least) & np.uint8(ties[x] == only))


@numba.njit(cache=True, nogil=True)
def _mark_ties(best: Any, ties: Any, low: Any, high: Any, marks: Any) -> Any:
    """Mark voxels of a row that must choose between edges: not if all of those are joined anyway."""
    least, most, some = np.uint8(low), np.uint8(min(high, 255)), np.uint8(high > 255)
    for x in range(best.size):
        v = best[x]
        tied = np.uint8(ties[x] & (ties[x] - np.uint8(1)) != 0)
        marks[x] = tied & np.uint8(v >= least) & (some | np.uint8(v < most) | np.uint8(v == 0))


@numba.njit(cache=True, nogil=True)
def _best_of_ties(ties: Any, best: Any, voxel: Any, step: Any) -> Any:
    """Which of a voxel's edges in `ties`, all of affinity `best`, has the best key: 0 to 2 down z, y, x, 3 to 5 up, or
    -1 if there is none.
    """
    best_key, best_way = np.uint64(0), -1
    for k in range(_TIED[ties]):
        way = int(_WAYS[ties, k])
        axis = way % 3
        upper = voxel if way < 3 else voxel + step[axis]
        key = edge_key(best, upper, np.uint64(axis))
        if best_way < 0 or key > best_key:
            best_key, best_way = key, way
    return best_way


@numba.njit(cache=True, nogil=True)
def _connect(joined: Any, labels: Any, starts: Any, meet: Any, cross: Any) -> Any:
    """Write the labels; returns first voxels, and sizes in two parts, entry 0 for background."""
    nz, ny, nx = labels.shape
    roots = np.empty(starts + 1, np.uint32)
    for label in range(starts + 1):
        roots[label] = label
    given, passes, nothing = np.zeros(nx, np.uint32), np.zeros(nx, np.uint32), np.zeros(nx, np.uint32)
    count = np.uint32(0)
    for z in range(nz):
        for y in range(ny):
            bits, row = joined[z, y, :nx], labels[z, y]
            below_z = labels[z - 1, y] if z else nothing
            below_y = labels[z, y - 1] if y else nothing
            _inherit(bits, below_z, below_y, given, passes, meet.marks, cross.marks)
            count = _pass_along(bits, given, passes, meet.marks, row, count)
            for i in range(marked(meet)):
                union(roots, row[meet.at[i] - 1], row[meet.at[i]])
            for i in range(marked(cross)):
                union(roots, below_z[cross.at[i]], below_y[cross.at[i]])
            # So the rows after this one meet few labels that are one already.
            for x in range(nx):
                row[x] = roots[row[x]]
    return _number(labels, roots, count)


@numba.njit(cache=True, nogil=True)
def all_ones(bit: Any) -> Any:
    """A uint32 of ones if the last bit of one is set, else 0."""
    return np.uint32(0) - (bit & np.uint32(1))


@numba.njit(cache=True, nogil=True)
def _inherit(bits: Any, below_z: Any, below_y: Any, given: Any, passes: Any, meets: Any, crosses: Any) -> Any:
    """What a row's voxels have from the rows below it, without branches.

    `given`: a label, 0 for none; `passes`: all ones where the label of the voxel before is passed on; `meets`: joined
    to the voxel before, but has a label; `crosses`: two labels to be joined.
    """
    for x in range(given.size):
        b = np.uint32(bits[x])
        p, q = below_z[x] & all_ones(b), below_y[x] & all_ones(b >> np.uint32(1))
        label = p if p != 0 else q
        along = all_ones(b >> np.uint32(2))
        given[x] = label
        passes[x] = along if label == 0 else np.uint32(0)
        meets[x] = np.uint8(along != 0) & np.uint8(label != 0)
        crosses[x] = np.uint8(p != 0) & np.uint8(q != 0) & np.uint8(p != q)


@numba.njit(cache=True, nogil=True)
def _pass_along(bits: Any, given: Any, passes: Any, meets: Any, row: Any, count: Any) -> Any:
    """Label a row: labels from below, new ones, and those of the voxel before. No branches, for none could be foreseen.

    Clears `meets` where both labels are the same.
    """
    last = np.uint32(0)
    for x in range(row.size):
        new = np.uint32(bits[x] == LIT)
        count += new
        label = given[x] | (count & all_ones(new))
        meets[x] &= np.uint8(last != label)
        last = (last & passes[x]) | label
        row[x] = last
    return count


@numba.njit(cache=True, nogil=True)
def _number(labels: Any, roots: Any, count: Any) -> Any:
    """Dense labels of the roots, which are the first labels of their components."""
    number = 0
    for label in range(1, count + 1):
        parent = roots[label]
        if parent == label:
            number += 1
            roots[label] = number
        else:
            # A parent is smaller, so its number is there already.
            roots[label] = roots[parent]
    # One more than there are labels: where the next would begin is written at every voxel.
    first = np.empty(number + 1, np.int64)
    # Even and odd places are counted apart: a count must not wait for that of the voxel before.
    sizes = np.zeros((number + 1, 2), np.int64)
    nz, ny, nx = labels.shape
    seen = np.uint32(0)
    for z in range(nz):
        for y in range(ny):
            row, start = labels[z, y], (z * ny + y) * nx
            for x in range(nx):
                row[x] = roots[row[x]]
            for x in range(nx):
                label = row[x]
                sizes[label, x & 1] += 1
                first[seen] = start + x
                seen += np.uint32(label > seen)
    return first[:number], sizes

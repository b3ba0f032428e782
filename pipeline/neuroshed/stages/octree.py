"""What the tree stages share: needs up and down a tree, what enters a node, and answers on the way down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.relabel import Ids, look_up
from neuroshed.stages.base import Need, Stage, Step
from neuroshed.stages.masks import Skipped, left_out
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, read_node


class Entering(NamedTuple):
    """What a tree node works on, by ids (uint64).

    `nodes`, sorted by id: id, start and total (voxels, see `kernels.stitch`), rank, touching (the level below which it
    reaches an outer face of its node), formed (score of its last merge); class and votes `(n, classes)` where segments
    of different classes are kept apart. `gains`: id, key, voxels. `links`, for the size rule: left, right, key, joined.
    `edges`: left, right, stats `(n, k)`, in pieces, once. `copies` of fragments of other leaves: copy (as it is now),
    original (as its leaf named it), level at which both are in one node. `names` of fragments that other leaves may
    have copies of: leaf (as it named it), id (as it is now), level.
    """

    nodes: Columns
    gains: Columns
    links: Columns
    edges: Iterator[Columns]
    copies: Columns
    names: Columns


def needs(stage: Stage, step: str = "", low: Vec = (0, 0, 0), high: Vec = (0, 0, 0)) -> tuple[Need, ...]:
    """The need of one step's output around a block; none for a stage whose data is there already."""
    return (Need(stage.fingerprint, step, low, high),) if stage.steps else ()


def climb(
    own: str, grids: Sequence[Grid], leaf_needs: tuple[Need, ...], skipped: Skipped | None = None
) -> tuple[Step, ...]:
    """Steps `up0`, `up1`, ... of a tree; a parent needs the box of its children. `own` is the stage's fingerprint;
    nodes of `skipped` blocks alone are left out.
    """
    return tuple(
        Step(f"up{level}", grid, (Need(own, f"up{level - 1}"),) if level else leaf_needs, left_out(skipped, level))
        for level, grid in enumerate(grids)
    )


def descend(own: str, grids: Sequence[Grid], up: str, skipped: Skipped | None = None) -> tuple[Step, ...]:
    """Steps from the root's `down` to `down0`; each node needs its own way up (of the stage `up`) and its parent's
    answer. Nodes of `skipped` blocks alone are left out.
    """
    steps = []
    for level in reversed(range(len(grids))):
        node_needs = [Need(up, f"up{level}")]
        if level + 1 < len(grids):
            node_needs.append(Need(own, f"down{level + 1}"))
        steps.append(Step(f"down{level}", grids[level], tuple(node_needs), left_out(skipped, level)))
    return tuple(steps)


def level_of(step: str) -> int:
    """Tree level in a step's name.

    >>> level_of("down12")
    12
    """
    return int(step.lstrip("updown"))


def parent_of(index: Vec) -> Vec:
    """Index of the parent node."""
    z, y, x = (i // 2 for i in index)
    return z, y, x


def concatenate(tables: Iterable[Columns]) -> Columns:
    """Rows of several tables with the same columns."""
    listed = list(tables)
    return {name: np.concatenate([table[name] for table in listed]) for name in listed[0]}


def select(table: Columns, rows: npt.NDArray[np.bool_]) -> Columns:
    """The rows of a table where `rows` is true."""
    return {name: column[rows] for name, column in table.items()}


def answer(local: Ids, handed_up: Ids, parent: Location | None, column: str) -> Ids:
    """Final ids: what the parent's table says of every local id that was handed up; the rest stays.

    Raises `BlockError` if the parent has no answer for an id that was handed up: a guess would be a wrong segment.
    """
    if parent is None:
        return local
    (answers,) = read_node(parent, "answers")
    final, found = look_up(local, answers["id"], answers[column])
    unanswered = np.isin(local, handed_up) & ~found
    if unanswered.any():
        raise BlockError(
            f"{parent} has no answer for id {local[unanswered][0]}; remove this stage's folder and run again"
        )
    return np.where(np.isin(local, handed_up), final, local)

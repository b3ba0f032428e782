"""What a large volume would take, from the figures that `scaling.py` measures: an extrapolation, no measurement.

Grids, tasks and predicted memory are those of the package itself for such a volume. What touches a node's faces, and
what is frozen near them, is taken to stay in proportion to them: the densest level that was measured counts for all.
What is frozen farther inside than was measured is not known. `least` takes it for nothing, `most` for as dense as the
farthest that was measured, through all of the volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import large
from neuroshed.geometry import Grid
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.windows import MAX_NODES

VOLUMES = {"1 TB": 10**12, "100 TB": 10**14, "1 PB": 10**15}
"""Voxels, of one byte each."""
BLOCKS = (256, 512)
MACHINE_BYTES = 256e9
"""Memory that is compared with."""
STAGES = ("fragments", "tree, up", "tree, down", "paint")
BY_VOXEL = (("fragments", "fragments"), ("paint", "segment paint"))
"""Stages that take time by voxels, and what the figures call them."""
BOUNDS = ("least", "most")
COSTS = ("seconds", "file_bytes")
Row = dict[str, Any]


@dataclass(frozen=True)
class Densities:
    """What enters a tree node, for each voxel of its children's faces and for each voxel of its box."""

    per_face_voxel: float
    per_voxel: float

    @classmethod
    def of(cls, row: Row, bound: str, blocks: Row | None = None) -> Densities:
        """As measured with a setting; what touches faces with that of `blocks`, since it depends on block size alone as
        what is frozen does not at all.
        """
        most = {
            key: max(level[f"{key}_per_face_voxel"] for level in found["levels"] if level["face_voxels"])
            for key, found in (("touching", blocks or row), ("frozen", row))
        }
        deep = row["depths"][-1]["frozen_per_megavoxel"] / 1e6
        return cls(sum(most.values()), deep if bound == "most" else 0.0)

    def entering(self, faces: float, voxels: float) -> float:
        """Fragments that enter a node whose children have that many face voxels and voxels."""
        return self.per_face_voxel * faces + self.per_voxel * voxels

    def largest_cube(self, most: float) -> float:
        """Voxels of the largest cube at whose root no more than `most` fragments enter."""
        low, high = 1.0, 1e8
        while high - low > 1:
            side = (low + high) / 2
            low, high = (side, high) if self.entering(6 * side**2, side**3) <= most else (low, side)
        return low**3


def face_voxels(grid: Grid, inside: Grid | None = None) -> int:
    """Voxels of the faces of a grid's blocks that have region beyond, both sides of each plane; or the most that the
    blocks in one block of the grid `inside` have.
    """
    if inside is None:
        size, shape = grid.box.size, grid.box.shape
        return sum(2 * (count - 1) * size // side for count, side in zip(grid.counts, shape, strict=True))
    total = 0
    for axis in range(3):
        # The middle one of three has two outer faces; of two, each has one.
        side = min(inside.block_shape[axis], grid.box.shape[axis])
        across = [min(inside.block_shape[other], grid.box.shape[other]) for other in range(3) if other != axis]
        planes = 2 * (-(-side // grid.block_shape[axis]) - 1) + min(inside.counts[axis] - 1, 2)
        total += planes * across[0] * across[1]
    return total


def project_all(figures: Row) -> list[Row]:
    """The arithmetic for all volumes, with the block sizes that were measured."""
    first = figures["settings"][0]
    same = [row for row in figures["settings"] if all(row[key] == first[key] for key in ("lowest", "small"))]
    chosen = [row for row in same if row["block"] in BLOCKS] or same[-1:]
    return [_project(figures, row, name, voxels) for name, voxels in VOLUMES.items() for row in chosen]


def largest_cubes(figures: Row) -> list[Row]:
    """For each setting the densities that count, and the largest cube whose root fits one machine; then the same with
    the largest blocks.
    """
    rows, memory = figures["settings"], _memory(figures)
    # More than that a node does not take.
    most = min((MACHINE_BYTES - memory.graph) / memory.per_fragment, MAX_NODES)
    large_blocks = max(rows, key=lambda row: row["block"])
    pairs = [(row, row) for row in rows]
    pairs += [(row, large_blocks) for row in rows[1:] if row["block"] == rows[0]["block"]]
    found = []
    for row, blocks in pairs:
        setting = {key: row[key] for key in ("lowest", "small")} | {"block": blocks["block"]}
        bounds = {bound: Densities.of(row, bound, blocks) for bound in BOUNDS}
        densities = {
            "per_face_voxel": bounds["most"].per_face_voxel,
            "per_megavoxel": 1e6 * bounds["most"].per_voxel,
        }
        cubes = {bound: bounds[bound].largest_cube(most) for bound in BOUNDS}
        found.append(setting | densities | cubes | {"combined": row is not blocks})
    return found


def _large_roots(figures: Row) -> list[Row]:
    """The root made large, with room for its graph and with little."""
    return sorted((node for node in figures["large"] if "down" in node), key=lambda node: -float(node["graph_gb"]))


@dataclass(frozen=True)
class Memory:
    """Bytes of a large node: for each fragment that enters, and for the graph of each until that is `graph`."""

    per_fragment: float
    graph_per_fragment: float
    graph: float

    def of(self, entering: float) -> float:
        """Bytes of a node that so many fragments enter."""
        return self.per_fragment * entering + min(self.graph_per_fragment * entering, self.graph)


def _memory(figures: Row) -> Memory:
    whole, windows = (node["peak_bytes"] / node["entering"] for node in _large_roots(figures))
    return Memory(windows, whole - windows, 1e9 * _large_roots(figures)[0]["graph_gb"])


def _project(figures: Row, row: Row, name: str, voxels: int) -> Row:
    side, block = round(voxels ** (1 / 3)), row["block"]
    tree = large.imagined(side, block, row["small"]).agglomerate
    blocks, nodes = len(tree.grids[0]), sum(len(grid) for grid in tree.grids)
    tasks = dict(zip(STAGES, (blocks, nodes, nodes, blocks), strict=True))
    total, coordinator = sum(tasks.values()), figures["coordinator"]
    hours = {stage: voxels * row["seconds"][stage_name] / row["region_voxels"] / 3600 for stage, stage_name in BY_VOXEL}
    return {
        "volume": name,
        "voxels": voxels,
        "block": block,
        "side": side,
        "tree_levels": len(tree.grids),
        "tasks": tasks,
        # Labels of fragments and of segments, one shard a block; node files of blocks and of the tree, up and down.
        "files": 3 * blocks + 2 * nodes,
        "core_hours": hours,
        "fragment_table_bytes": voxels * row["table_bytes_per_voxel"],
        "label_bytes": voxels * row["label_bytes_per_voxel"],
        **{bound: _tree(figures, row, tree, Densities.of(row, bound)) for bound in BOUNDS},
        "root_predicted_bytes": tree.memory_bytes(f"up{len(tree.grids) - 1}"),
        "root_if_crumbs_climbed": row["unsettled_per_face_voxel"] * face_voxels(tree.grids[-2]),
        "state_bytes": total * coordinator["bytes_per_task"],
        "journal_bytes": total * coordinator["journal_bytes_per_task"],
        "coordinator_hours": total * (coordinator["start_seconds_per_task"] + coordinator["seconds_per_task"]) / 3600,
    }


def _tree(figures: Row, row: Row, tree: Agglomerate, densities: Densities) -> Row:
    """What the tree takes, up and down, and its largest node of each level."""
    root, memory = _large_roots(figures)[-1], _memory(figures)
    each = {"up": root, "down": root["down"]}
    measured = {"up": row["levels"], "down": [level["down"] for level in row["levels"]]}
    cost = {(way, key): len(tree.grids[0]) * measured[way][0][key] for way in each for key in COSTS}
    # What a task takes however little enters it.
    floor = {(way, key): min(level[key] for level in measured[way][1:]) for way, key in cost}
    slope = {(way, key): each[way][key] / root["entering"] for way, key in cost}
    # What does not fit the processor's caches takes longer.
    largest = max(figures["large"], key=lambda node: node["entering"])
    slope["up", "seconds"] = max(slope["up", "seconds"], largest["seconds"] / largest["entering"])
    levels: list[Row] = []
    path = sum(measured[way][0]["seconds"] for way in each)
    for level, (children, grid) in enumerate(itertools.pairwise(tree.grids), 1):
        entering = densities.entering(face_voxels(children), children.box.size)
        inside = math.prod(min(pair) for pair in zip(grid.block_shape, grid.box.shape, strict=True))
        most = densities.entering(face_voxels(children, grid), inside)
        for both in cost:
            cost[both] += len(grid) * floor[both] + entering * slope[both]
        seconds = {way: floor[way, "seconds"] + most * slope[way, "seconds"] for way in each}
        path += sum(seconds.values())
        levels.append(
            {
                "level": level,
                "side": grid.block_shape[0],
                "tasks": len(grid),
                "entering": most,
                "edges": most * root["edges"] / root["entering"],
                "bytes": memory.of(most),
                "hours": seconds["up"] / 3600,
            }
        )
    return {
        "core_hours": {f"tree, {way}": cost[way, "seconds"] / 3600 for way in each},
        "table_bytes": {f"tree, {way}": cost[way, "file_bytes"] for way in each},
        "levels": levels,
        "path_hours": path / 3600,
    }


def print_all(figures: Row) -> None:
    """The largest cubes; a column for each volume and block size; the levels of the largest volume."""
    print(f"\nExtrapolated: the largest cube with a root of {MACHINE_BYTES / 1e9:.0f} GB, {MAX_NODES:.2g} fragments")
    print(f"{'block':>5}{'lowest':>7}{'small':>6}{'up/face':>10}{'deep/Mvox':>11}{'Tvoxel':>16}")
    for row in figures["largest_cubes"]:
        print(
            f"{row['block']:5}{row['lowest']:>7}{row['small']:6}{row['per_face_voxel']:10.5f}"
            f"{row['per_megavoxel']:11.2f}{_span(row['most'] / 1e12, row['least'] / 1e12):>16}"
            + ("  not run: two settings combined" if row["combined"] else "")
        )
    found = figures["projections"]
    print("\nExtrapolated: GB are 10^9 bytes, hours those of one core; least - most of what is frozen far from faces")
    print(f"{'':38}" + "".join(f"{row['volume'] + ', ' + str(row['block']):>18}" for row in found))
    for title, value in _lines():
        print(f"{title:38}" + "".join(f"{_text(value, row):>18}" for row in found))
    last = found[-1]
    print(f"\nTree of {last['volume']} in blocks of {last['block']}: the largest node of each level")
    print(f"{'level':>5}{'side':>8}{'tasks':>12}{'entering':>24}{'GB':>18}{'hours':>20}")
    for least, most in zip(last["least"]["levels"], last["most"]["levels"], strict=True):
        spans = (
            _span(least[key] / unit, most[key] / unit) for key, unit in (("entering", 1), ("bytes", 1e9), ("hours", 1))
        )
        print(f"{least['level']:5}{least['side']:8}{least['tasks']:12,}" + "{:>24}{:>18}{:>20}".format(*spans))


Value = Callable[[Row, Row], float]


def _lines() -> list[tuple[str, Value]]:
    """Titles, and figures of a projection and of one of its bounds."""
    lines: list[tuple[str, Value]] = [
        ("side, voxels", lambda row, tree: row["side"]),
        ("levels of the tree", lambda row, tree: row["tree_levels"]),
    ]
    lines += [(f"tasks: {s}", lambda row, tree, s=s: row["tasks"][s]) for s in STAGES]
    lines += [(f"core hours: {s}", lambda row, tree, s=s: (row["core_hours"] | tree["core_hours"])[s]) for s in STAGES]
    lines += [(f"GB of tables: {s}", lambda row, tree, s=s: tree["table_bytes"][s] / 1e9) for s in STAGES[1:3]]
    return [
        *lines,
        ("GB of tables: fragments", lambda row, tree: row["fragment_table_bytes"] / 1e9),
        ("GB of labels of fragments", lambda row, tree: row["label_bytes"] / 1e9),
        ("files", lambda row, tree: row["files"]),
        ("root: fragments that enter", lambda row, tree: tree["levels"][-1]["entering"]),
        ("root: edges", lambda row, tree: tree["levels"][-1]["edges"]),
        ("root: GB of memory", lambda row, tree: tree["levels"][-1]["bytes"] / 1e9),
        (f"  of {MACHINE_BYTES / 1e9:.0f} GB", lambda row, tree: tree["levels"][-1]["bytes"] / MACHINE_BYTES),
        ("root: GB that the plan predicts", lambda row, tree: row["root_predicted_bytes"] / 1e9),
        ("root: hours", lambda row, tree: tree["levels"][-1]["hours"]),
        ("longest path up and down, hours", lambda row, tree: tree["path_hours"]),
        ("root: enters if crumbs climbed, least", lambda row, tree: row["root_if_crumbs_climbed"]),
        ("coordinator: GB of states", lambda row, tree: row["state_bytes"] / 1e9),
        ("coordinator: GB of journal before compaction", lambda row, tree: row["journal_bytes"] / 1e9),
        ("coordinator: hours of bookkeeping", lambda row, tree: row["coordinator_hours"]),
    ]


def _text(value: Value, row: Row) -> str:
    return _span(*(value(row, row[bound]) for bound in BOUNDS))


def _span(least: float, most: float) -> str:
    texts = [_short(least), _short(most)]
    return texts[0] if texts[0] == texts[1] else " - ".join(texts)


def _short(value: float) -> str:
    if 0.01 <= value < 100:
        return f"{value:.3g}"
    return (
        f"{value:,.0f}"
        if 100 <= value < 1e7
        else f"{value:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    )

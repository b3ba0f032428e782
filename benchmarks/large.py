"""Nodes of the octree far larger than a test volume has, and a coordinator with many blocks: memory and speed.

A large node is made of a real one: what its children handed up is written many times over under other ids, the copies
interleaved. Each is then run in a process of its own, which reads, settles and writes as in any run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import processes
from neuroshed.engine.coordinator import ordered
from neuroshed.engine.readiness import Readiness
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.conventions import Convention
from neuroshed.stages.affinities import NEAREST, Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.registry import load_stage, save_stage
from neuroshed.stages.segment import Segment
from neuroshed.storage.ledger import Ledger, runs_of
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, read_node, write_node
from neuroshed.storage.segments import encode
from neuroshed.workflow.plan import Plan
from peers.measure import Clock, serve

HERE = Path(__file__)
ENTERING = 8_000_000
"""Fragments that enter a node which is made large."""
GRAPH_GB = 0.001
"""Memory for the graph in another run of the root: a tenth of what one copy takes, since copies are not connected."""
MOST_COPIES = 4000
HANDED_UP = ("nodes", "gains", "links", "edges", "copies", "names")
IDS = {"id", "left", "right", "copy", "original", "leaf"}
OF_COPIES = np.uint64(0xFF << 56)
"""Bits of an id that say that it is that of a copy (`stages.leaves`)."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def large_nodes(folder: Path, settings: list[tuple[str, Plan]], warm: Plan, entering: int = ENTERING) -> list[Any]:
    """Memory and seconds of nodes of each setting as they are; of the first also made large, with the way down, and
    once more with little memory for the graph.
    """
    found = []
    for name, plan in settings:
        tree = plan.segments[0].agglomerate
        found += [_node(folder, name, tree, level, warm) for level in range(len(tree.grids))]
    first = settings[0][1].segments[0]
    top = len(first.agglomerate.grids) - 1
    for level in sorted({max(top - 1, 1), top}):
        found.append(_node(folder, "default", first.agglomerate, level, warm, first, entering))
    found.append(_node(folder, "default", first.agglomerate, top, warm, first, entering, GRAPH_GB))
    return found


def coordinator(folder: Path, side: int) -> dict[str, float]:
    """What a block costs the coordinator of `side` blocks cubed: bytes and seconds of bookkeeping, bytes of journal."""
    figures: dict[str, float] = processes.run(HERE, {"side": side}, folder)["tasks"][0]
    return figures


def imagined(side: int, block: int, small: int = 200) -> Segment:
    """The last stage of a run over a cube of affinities that is not there."""
    shape = (side, side, side)
    none, convention = Path("/none"), Convention(NEAREST, "source", False, (0.0, 255.0))
    source = Affinities(
        run_folder=none,
        path=none,
        volume_shape=shape,
        voxel_size=(8.0, 8.0, 8.0),
        offset=(0.0, 0.0, 0.0),
        axes="czyx",
        convention=convention,
        identity={},
    )
    fragments = Fragments(
        run_folder=none,
        source=source,
        region=Box.of_shape(shape),
        block_shape=(block, block, block),
        shard_shape=(block, block, block),
        low=26,
        high=250,
        small=small,
        dust=min(50, small),
    )
    tree = Agglomerate(run_folder=none, fragments=fragments, score="mean", lowest=51 << 20)
    return Segment(run_folder=none, agglomerate=tree, threshold="0.5")


def _node(
    folder: Path,
    name: str,
    tree: Agglomerate,
    level: int,
    warm: Plan,
    segment: Segment | None = None,
    entering: int = 0,
    graph_gb: float | None = None,
) -> dict[str, Any]:
    """One node in a process of its own; with `segment` made to have some `entering` fragments, and its way down."""
    grid, step = tree.grids[level], f"up{level}"
    # In the middle, where a node has faces on all sides if any has.
    z, y, x = (first + count // 2 for first, count in zip(grid.first, grid.counts, strict=True))
    index = (z, y, x)
    copies, edges = 1, 0
    tasks = [[str(tree.folder / "stage.json"), step]]
    if level:
        inside = list(tree.grids[level - 1].touching(grid.block_box(index)))
        sizes = [len(read_node(tree.node_path(f"up{level - 1}", child), "edges")[0]["left"]) for child in inside]
        if segment:
            before = len(read_node(tree.node_path(step, index), "entering")[0]["id"])
            copies = max(1, min(entering // max(before, 1), MOST_COPIES))
            tree, segment = _moved(tree, segment, folder, level, inside, copies)
            tree = tree.model_copy(update={"graph_gb": graph_gb or tree.graph_gb})
            tasks = [[str(save_stage(tree)), step]]
            if level + 1 == len(tree.grids):
                tasks.append([str(save_stage(segment)), f"down{level}"])
        edges = copies * sum(sizes)
    first = warm.segments[0]
    warming = [
        [str(stage.folder / "stage.json"), kind] for stage, kind in ((first.agglomerate, "up0"), (first, "down1"))
    ]
    job = {"tasks": tasks, "index": index, "warm": warming}
    up, *down = processes.run(HERE, job, folder / "child")["tasks"]
    path = tree.node_path(step, index)
    found = {
        "setting": name,
        "level": level,
        "copies": copies,
        "entering": len(read_node(path, "entering")[0]["id"]),
        "edges": edges,
        "graph_gb": tree.graph_gb,
        "predicted_bytes": tree.memory_bytes(step),
        "file_bytes": path.size(),
        **up,
    }
    if down and segment:
        answers = segment.node_path(f"down{level}", index).size()
        found["down"] = down[0] | {"file_bytes": answers}
    return found


def _moved(
    tree: Agglomerate, segment: Segment, folder: Path, level: int, inside: list[Vec], copies: int
) -> tuple[Agglomerate, Segment]:
    """The stages with their outputs elsewhere, where what the nodes `inside` handed up stands `copies` times."""
    place = Location.of(folder)
    moved = tree.model_copy(update={"run_folder": place})
    last = segment.model_copy(update={"run_folder": place, "agglomerate": moved})
    for path in (moved.folder / f"up{level - 1}", moved.folder / f"up{level}", last.folder / f"down{level}"):
        path.make_folder()
    for child in inside:
        tables = read_node(tree.node_path(f"up{level - 1}", child), *HANDED_UP)
        many = {name: _copied(table, copies) for name, table in zip(HANDED_UP, tables, strict=True)}
        write_node(moved.node_path(f"up{level - 1}", child), many)
    return moved, last


def _copied(table: Columns, copies: int) -> Columns:
    return {
        name: np.concatenate([_renamed(name, column, number, copies) for number in range(copies)])
        for name, column in table.items()
    }


def _renamed(name: str, column: np.ndarray, number: int, copies: int) -> np.ndarray:
    if name == "rank":
        # No two may have the same; an odd factor keeps them apart as well as chance does.
        return column + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64)
    if name in IDS:
        return (column & OF_COPIES) | ((column & ~OF_COPIES) * np.uint64(copies) + np.uint64(number))
    return column


def _work(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    if "side" in job:
        return {"tasks": [_bookkeeping(job["side"])]}
    for path, step in job["warm"]:
        load_stage(Location.of(path)).run(step, (0, 0, 0))
    found = []
    for path, step in job["tasks"]:
        stage = load_stage(Location.of(path))
        before, begin = _reset_peak(), time.perf_counter()
        stage.run(step, tuple(job["index"]))
        found.append({"seconds": time.perf_counter() - begin, "peak_bytes": _peak() - before})
    return {"tasks": found}


def _bookkeeping(side: int) -> dict[str, float]:
    """All blocks of a run go through `Readiness` and a ledger one by one, as fast as they can."""
    steps = [(s.fingerprint, step) for s in ordered([imagined(side * 256, 256)]) for step in s.steps]
    grids = {(fingerprint, step.name): step.grid for fingerprint, step in steps}
    before, begin = _reset_peak(), time.perf_counter()
    readiness, ledger = Readiness(steps), Ledger()
    readiness.start()
    numbers = {}
    for key, grid in grids.items():
        event = ledger.declaration(*key, grid)
        ledger.apply(event)
        numbers[key] = event["id"]
    started = time.perf_counter()
    held = _peak() - before
    done = written = 0
    while not readiness.finished:
        key, _ = readiness.ready()[0]
        positions = readiness.take(key, 1)
        figures = {"seconds": 12.3456, "voxels": 256**3}
        event = {"e": "done", "id": numbers[key], "at": runs_of(positions), "figures": figures, "worker": "worker-1234"}
        event["time"] = round(time.time(), 3)
        written += len(encode(event))
        ledger.apply(event)
        readiness.finish(key, positions)
        done += 1
    return {
        "blocks": side**3,
        "bytes_per_task": held / done,
        "start_seconds_per_task": (started - begin) / done,
        "seconds_per_task": (time.perf_counter() - started) / done,
        "journal_bytes_per_task": written / done,
    }


def _reset_peak() -> int:
    if CLEAR.exists():
        CLEAR.write_text("5")
    return _peak()


def _peak() -> int:
    """Peak resident bytes since the last reset; 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    serve(_work)

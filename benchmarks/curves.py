"""How what goes up changes from level to level and with each setting of `scaling.py`: a table and a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

LAYER = 1.25
"""Density may grow so much from a level to the next, by chance and by the form of the volume, and still be flat."""
HEADER = (
    f"{'block':>5}{'lowest':>7}{'small':>6}{'side':>6}{'nodes':>6}{'entering':>10}{'up':>9}{'edges':>9}"
    f"{'up/face':>10}{'edges/face':>11}{'touch/face':>11}{'frozen/face':>12}{'KB':>7}{'ms':>7}"
)
TITLES = {"block": "blocks of {}³", "lowest": "lowest_threshold {}", "small": "small {}"}


def growth(row: dict[str, Any], key: str) -> float | None:
    """The largest factor from a level to the next; None if only one level has faces."""
    values = [level[key] for level in row["levels"] if level["face_voxels"]]
    return max((after / before for before, after in itertools.pairwise(values) if before), default=None)


def print_settings(rows: list[dict[str, Any]]) -> None:
    """A line a level of each setting."""
    print("\nMeans of a tree node; KB of its file, ms of its task. /face: per voxel of the faces with region beyond.")
    print(HEADER)
    for row in rows:
        for level in row["levels"]:
            nodes, faces = level["nodes"], level["face_voxels"]
            print(
                f"{row['block']:5}{row['lowest']:>7}{row['small']:6}{level['side']:6}{nodes:6}"
                f"{level['entering'] / nodes:10.0f}{level['nodes_up'] / nodes:9.0f}{level['edges_up'] / nodes:9.0f}"
                + (f"{level['up_per_face_voxel']:10.5f}{level['edges_per_face_voxel']:11.4f}" if faces else " " * 21)
                + (f"{level['touching_per_face_voxel']:11.5f}" if faces else " " * 11)
                + (f"{level['frozen_per_face_voxel']:12.5f}" if faces else " " * 12)
                + f"{level['file_bytes'] / 1e3:7.0f}{1e3 * level['seconds']:7.0f}"
            )
        print("      " + _verdict(row))
        print("      frozen per Mvoxel by distance from a face: " + ", ".join(_depth(part) for part in row["depths"]))


def _depth(part: dict[str, float]) -> str:
    return f"{part['from']}-{part['to']}: {part['frozen_per_megavoxel']:.3g}"


def _verdict(row: dict[str, Any]) -> str:
    found = []
    for part in ("up", "touching", "frozen"):
        factor = growth(row, f"{part}_per_face_voxel")
        if factor is not None:
            found.append(f"{part} x {factor:.2f} a level (layer: {'yes' if factor <= LAYER else 'no'})")
    return ", ".join(found)


def draw(figures: dict[str, Any], target: Path) -> None:
    """What goes up over the side of a node, and what is frozen over the distance from its faces, by what was varied."""
    from matplotlib.figure import Figure

    rows = figures["settings"]
    default = {key: rows[0][key] for key in TITLES}
    figure = Figure(figsize=(13, 8), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3, sharex="row", sharey="row")
    for column, key in enumerate(TITLES):
        chosen = [row for row in rows if all(row[name] == default[name] for name in TITLES if name != key)]
        chosen.sort(key=lambda row: float(row[key]))
        for number, row in enumerate(chosen):
            style = {"color": f"C{number}", "marker": "osD^v"[number % 5]}
            _lines(panels[0, column], panels[1, column], row, TITLES[key].format(row[key]), style)
    panels[0, 0].set_ylabel("handed up per voxel of the node's faces\n(dashed: what touches them)")
    panels[1, 0].set_ylabel("frozen inside, per million voxels")
    sides = sorted({level["side"] for row in rows for level in row["levels"] if level["face_voxels"]})
    for top, bottom in panels.T:
        top.set_xscale("log", base=2)
        top.set_xticks(sides, [str(side) for side in sides])
        top.set_xlabel("side of the node's box (voxels)")
        bottom.set_xlabel("distance from the nearest face (voxels)")
        for axes in (top, bottom):
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        top.legend(fontsize=9)
    what = "x".join(map(str, figures["shape"]))
    figure.suptitle(
        f"Fragments that a tree node hands up ({figures['input']}, {what} voxels)\n"
        f"unless varied: blocks of {default['block']}³, lowest_threshold {default['lowest']}, small {default['small']}"
    )
    figure.savefig(target)


def _lines(top: Any, bottom: Any, row: dict[str, Any], title: str, style: dict[str, Any]) -> None:
    levels = [level for level in row["levels"] if level["face_voxels"]]
    sides = [level["side"] for level in levels]
    top.plot(sides, [level["up_per_face_voxel"] for level in levels], label=title, **style)
    top.plot(sides, [level["touching_per_face_voxel"] for level in levels], "--", alpha=0.6, **style)
    deep = [((part["from"] + part["to"]) / 2, part["frozen_per_megavoxel"]) for part in row["depths"]]
    bottom.plot(*zip(*((x, y) for x, y in deep if y > 0), strict=True), label=title, **style)

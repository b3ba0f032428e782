"""One picture of a result: image, affinities, fragments, segmentation and truth of one section, side by side.

Labels take the colour of the truth they overlap most, so that the same neuron looks the same in every panel, a split
shows as shades of one colour and a merge as one colour over two of the truth's.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.storage.volumes import Volume, open_volume

Colours = npt.NDArray[np.float64]
GOLDEN = 0.618033988749895


def section_box(shape: Vec) -> Box:
    """The middle section across the thinnest axis: the largest plane of a volume.

    >>> section_box((125, 250, 35))
    Box(start=(0, 0, 17), stop=(125, 250, 18))
    """
    axis = int(np.argmin(shape))
    start = [0, 0, 0]
    stop = list(shape)
    start[axis], stop[axis] = shape[axis] // 2, shape[axis] // 2 + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def draw_result(
    target: Path,
    image: Path,
    affinities: Path,
    labels: Mapping[str, Path],
    truth: Path,
    titles: Sequence[str],
    heading: str,
) -> Path:
    """Write a PNG of the middle section: image, affinities (z, y, x as red, green, blue), each of `labels`, truth.

    `titles` holds one line for each panel of `labels`, shown below its name.
    """
    from matplotlib.figure import Figure

    volume = open_volume(image)
    box = section_box(volume.shape)
    true_labels = _section(open_volume(truth), box)
    panels: list[tuple[str, npt.NDArray[Any]]] = [
        ("image", _section(volume, box)),
        ("affinities\nred z, green y, blue x", np.moveaxis(_section(open_volume(affinities), box), 0, -1)),
    ]
    for (name, path), title in zip(labels.items(), titles, strict=True):
        panels.append((f"{name}\n{title}", _paint(_section(open_volume(path), box), true_labels)))
    panels.append((f"truth\n{np.unique(true_labels[true_labels != 0]).size} neurons", _paint(true_labels, true_labels)))
    tall = [panel.swapaxes(0, 1) if panel.shape[0] < panel.shape[1] else panel for _, panel in panels]
    ratio = tall[0].shape[0] / tall[0].shape[1]
    width = 2.6
    figure = Figure(figsize=(width * len(panels), width * ratio + 0.8), dpi=110, layout="constrained")
    for place, ((title, _), panel) in enumerate(zip(panels, tall, strict=True), 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.imshow(panel, cmap="gray" if panel.ndim == 2 else None, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    figure.suptitle(heading, fontsize=12)
    figure.savefig(target)
    return target


def _section(volume: Volume, box: Box) -> npt.NDArray[Any]:
    axis = int(np.argmin(box.shape))
    section: npt.NDArray[Any] = volume.read(box).take(0, axis - 3)
    return section


def _paint(labels: npt.NDArray[np.uint64], truth: npt.NDArray[np.uint64]) -> Colours:
    """Colours `(rows, columns, 3)` of a label section; 0 is black, borders between labels are dark."""
    ids, inverse = np.unique(labels, return_inverse=True)
    true_ids, true_inverse = np.unique(truth, return_inverse=True)
    overlap = np.zeros((ids.size, true_ids.size), np.int64)
    np.add.at(overlap, (inverse.ravel(), true_inverse.ravel()), 1)
    best = overlap.argmax(1)
    shades = _shades(best, overlap.max(1))
    palette = np.array([_colour(int(hue), int(shade)) for hue, shade in zip(best, shades, strict=True)])
    palette[ids == 0] = 0
    painted = palette[inverse.reshape(labels.shape)]
    for axis in range(2):
        border = np.diff(labels.astype(np.int64), axis=axis, prepend=labels.take([0], axis).astype(np.int64)) != 0
        painted[border] *= 0.35
    return painted


def _shades(groups: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rank of every label among those of its group, the largest first."""
    ranks = np.zeros(groups.size, np.int64)
    seen: dict[int, int] = {}
    for label in np.argsort(-sizes, kind="stable"):
        group = int(groups[label])
        ranks[label] = seen.get(group, 0)
        seen[group] = ranks[label] + 1
    return ranks


def _colour(hue: int, shade: int) -> tuple[float, float, float]:
    light = (0.60, 0.78, 0.42, 0.70, 0.50, 0.86)[shade % 6]
    return colorsys.hls_to_rgb(hue * GOLDEN % 1, light, 0.45 + 0.4 * ((hue * 7) % 3) / 2)

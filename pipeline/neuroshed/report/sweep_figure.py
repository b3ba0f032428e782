"""VOI split against merge over thresholds, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neuroshed.stages.evaluate import Scores

FARTHEST = 2.5
"""Thresholds with a VOI of more than this many times the best lie outside the picture."""


def draw_sweep(target: Path, scores: Mapping[str, Scores], best: str, heading: str) -> Path:
    """Write a PNG: a point for each threshold, lines of equal VOI behind them, the best one marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    splits = np.array([found.voi_split for found in scores.values()])
    merges = np.array([found.voi_merge for found in scores.values()])
    # Far beyond the best there is nothing to choose.
    near = splits + merges <= FARTHEST * max(scores[best].voi, 0.05)
    limit = float(max(splits[near].max(), merges[near].max(), 0.1)) * 1.1
    for total in np.linspace(0, 2 * limit, 13)[1:]:
        axes.plot([0, total], [total, 0], color="0.9", lw=0.8, zorder=0)
    axes.plot(splits, merges, color="tab:blue", lw=1.2, marker="o", ms=4)
    for text, split, merge in _spaced(scores, limit):
        axes.annotate(text, (split, merge), textcoords="offset points", xytext=(6, 5), fontsize=8)
    chosen = scores[best]
    axes.plot(chosen.voi_split, chosen.voi_merge, "o", color="tab:red", ms=8, label=f"{best}: VOI {chosen.voi:.3f}")
    axes.set(
        xlabel="VOI split in bits: H(segmentation | truth)",
        ylabel="VOI merge in bits: H(truth | segmentation)",
        xlim=(0, limit),
        ylim=(0, limit),
        title=heading,
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper right")
    figure.savefig(target, format="png", dpi=130)
    return target


def _spaced(scores: Mapping[str, Scores], limit: float) -> list[tuple[str, float, float]]:
    """Thresholds whose points lie far enough from the last labelled one to be read."""
    shown: list[tuple[str, float, float]] = []
    for text, found in scores.items():
        point = found.voi_split, found.voi_merge
        if max(point) > limit:
            continue
        if not shown or np.hypot(point[0] - shown[-1][1], point[1] - shown[-1][2]) > 0.045 * limit:
            shown.append((text, *point))
    return shown

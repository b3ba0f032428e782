"""`neuroshed.demo`: the main job on a real volume that ships with the package, from an image to scored neurons and a
picture.

A module of the function's own name would hide it: importing `neuroshed.demo` would replace what `neuroshed.demo` is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from neuroshed import api
from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.progress import Watcher
from neuroshed.report.figure import draw_result

VOXEL_SIZE = (10.0, 10.0, 10.0)
BLOCK_SHAPE = (64, 64, 64)


def demo(
    output: api.PathLike = "demo",
    thresholds: Sequence[str | float] = ("0.3", "0.5"),
    *,
    cluster: ClusterConfig | None = None,
    watch: Watcher = api.quiet,
) -> dict[str, Any]:
    """Import, predict, segment and evaluate the demo volume into the folder `output`; returns scores, figure and the
    run's summary.

    Called again on the same folder it does only what is missing.
    """
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    used = cluster or ClusterConfig()
    image, truth = folder / "image.zarr", folder / "truth.zarr"
    with resources.as_file(resources.files("neuroshed") / "assets" / "demo" / "fib25.h5") as source:
        for dataset, target in (("raw", image), ("labels", truth)):
            if not target.exists():
                # Three small blocks: threads of this process are enough.
                api.import_volume(
                    source,
                    target,
                    VOXEL_SIZE,
                    dataset=dataset,
                    block_shape=BLOCK_SHAPE,
                    cluster=ClusterConfig(kind="in-process"),
                    watch=watch,
                )
    settings = [
        f"image={image}",
        f"output={folder / 'run'}",
        f"block_shape={list(BLOCK_SHAPE)}",
        f"thresholds={[str(threshold) for threshold in thresholds]}",
        "keep=[segmentation,fragments,merges,affinities]",
    ]
    summary = api.run("segment", [*settings, f"cluster={used.model_dump_json()}"], watch)
    scores = {threshold: api.evaluate(path, truth, watch=watch) for threshold, path in summary["segmentations"].items()}
    best = min(scores, key=lambda threshold: scores[threshold]["voi"])
    figure = draw_result(
        folder / "demo.png",
        image,
        Path(summary["affinities"]),
        {"fragments": Path(summary["fragments"]), "segmentation": Path(summary["segmentations"][best])},
        truth,
        titles=["watershed and stitching", f"threshold {best}, VOI {scores[best]['voi']:.2f} bits"],
        heading="neuroshed demo: FIB-25 optic medulla, middle section",
    )
    return {"scores": scores, "best_threshold": best, "figure": str(figure), **summary}


def clear(output: api.PathLike) -> None:
    """Remove what an earlier demo left in `output`, and nothing else."""
    folder = Path(output)
    for name in ("image.zarr", ".image.zarr.import", "truth.zarr", ".truth.zarr.import", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "demo.png").unlink(missing_ok=True)

"""From affinities to a segmentation in blocks, beside waterz on the same affinities in one piece.

    python benchmarks/segment.py [--quick] [--data DIR]

waterz (pip install waterz) is the peer; without it only our own figures are printed. Both run on one thread. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import neuroshed
import shapes
from neuroshed.kernels.metrics import contingency, variation_of_information
from neuroshed.stages.affinities import NEAREST
from neuroshed.storage.volumes import create_volume, open_volume

PEER = """
import sys, time
import numpy as np, waterz
from pathlib import Path
affinities = np.load(sys.argv[1])
start = time.perf_counter()
floats = affinities.astype(np.float32) / 255
for labels in waterz.agglomerate(floats, [1 - 0.5], aff_threshold_low=0.1, aff_threshold_high=0.98):
    seconds = time.perf_counter() - start
    np.save(sys.argv[2], labels)
Path(sys.argv[3]).write_text(str(seconds))
"""


def run_ours(affinities: np.ndarray, block: tuple[int, int, int], folder: Path) -> tuple[dict, np.ndarray]:
    """Summary and labels of a second run, once kernels are compiled and files are in the cache."""
    shape = affinities.shape[1:]
    volume = create_volume(
        folder / "affinities.zarr",
        shape=shape,
        dtype=np.uint8,
        shard_shape=block,
        voxel_size=(10, 10, 10),
        voxel_offsets=NEAREST,
    )
    padded = tuple(-(-n // b) * b for n, b in zip(shape, block, strict=True))
    assert padded == shape, "benchmark volumes are whole blocks"
    volume.write(volume.box, affinities)
    settings = [f"affinities={volume.path}", f"block_shape={list(block)}", "thresholds=[0.5]", "cluster=in-process:1"]
    neuroshed.run("segment", [*settings, f"output={folder / 'warm'}"])
    summary = neuroshed.run("segment", [*settings, f"output={folder / 'run'}"])
    found = open_volume(summary["segmentations"]["0.5"])
    return summary, found.read(found.box)


def run_peer(affinities: np.ndarray, folder: Path) -> tuple[float, np.ndarray] | None:
    """Seconds and labels of waterz in a process of its own, since it prints a lot and holds the GIL."""
    np.save(folder / "affinities.npy", affinities)
    files = [str(folder / name) for name in ("affinities.npy", "labels.npy", "seconds")]
    done = subprocess.run([sys.executable, "-c", PEER, *files], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        print("waterz did not run:", done.stderr.decode().strip().splitlines()[-1])
        return None
    return float((folder / "seconds").read_text()), np.load(folder / "labels.npy")


def main() -> None:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small volume, under a minute")
    parser.add_argument("--data", type=Path, help="folder with real labels")
    args = parser.parse_args()
    shape, block = ((128, 128, 128), (64, 64, 64)) if args.quick else ((256, 512, 512), (128, 128, 128))
    truth, source = shapes.labels(shape, args.data)
    affinities = shapes.affinities(truth)
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        summary, ours = run_ours(affinities, block, Path(name))
        figures = {"shape": shape, "block": block, "input": source, "neuroshed_seconds": summary["wall_seconds"]}
        for kind, row in summary["stages"].items():
            print(f"{kind:12} {row['blocks']:6} blocks {row['seconds']:8.2f} s")
            figures[f"{kind}_seconds"] = row["seconds"]
        figures["neuroshed_voi"] = sum(variation_of_information(contingency(ours, truth)))
        peer = run_peer(affinities, Path(name))
        if peer:
            figures["waterz_seconds"] = peer[0]
            figures["waterz_voi"] = sum(variation_of_information(contingency(peer[1], truth)))
            figures["speed_ratio"] = round(peer[0] / summary["wall_seconds"], 3)
        figures["benchmark_seconds"] = round(time.perf_counter() - start, 1)
    figures["megavoxels_per_second"] = round(np.prod(shape) / 1e6 / summary["wall_seconds"], 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

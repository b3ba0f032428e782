"""The contenders on one volume: what each is given, its process, and its labels scored and thrown away."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import environments
import processes
import scores
import shapes
from neuroshed.geometry import Box
from neuroshed.stages.affinities import NEAREST
from neuroshed.storage.volumes import create_volume, open_volume

HERE = Path(__file__).parent
OURS = HERE / "ours.py"
WATERZ, LSD, VOLARA = (HERE / "peers" / f"{peer}_chain.py" for peer in ("waterz", "lsd", "volara"))
LOW, HIGH = 0.1, 0.98
"""Of the watershed, ours and waterz's: the defaults of our workflow."""
CONTEXT = 32
"""Voxels that the LSD recipe reads around each block."""
SEEDED_SIDE = 128
"""Longest side of a block of volara with seeds, whose time grows faster than the block: minutes for 256 x 256 x 128."""
WARM_SHAPE, WARM_BLOCK = (64, 64, 64), (32, 32, 32)
VOXEL_SIZE = (40, 8, 8)
GIB = 2**30

Row = dict[str, Any]


@dataclass(frozen=True)
class Arena:
    """One volume of affinities, as .npy and as Zarr, and the components of its truth."""

    folder: Path
    environments: Path
    shape: tuple[int, int, int]
    block: tuple[int, int, int]
    thresholds: tuple[str, ...]
    limit_s: float
    parts: np.ndarray

    @property
    def affinities(self) -> Path:
        """uint8 `(3, z, y, x)`."""
        return self.folder / "affinities.npy"

    @property
    def given(self) -> Path:
        """Fragments of waterz, uint64, dense."""
        return self.folder / "fragments.npy"

    def waterz(self) -> Row:
        """The whole volume at once; keeps its fragments for the two that agglomerate the same ones."""
        return self._run("waterz", WATERZ, peer="waterz", keep={"fragments": self.given}, low=LOW, high=HIGH)

    def waterz_given(self) -> Row:
        """Region graph and agglomeration of waterz's own fragments; keeps its labels to compare with."""
        keep = {threshold: self._reference(threshold) for threshold in self.thresholds}
        return self._run(
            "waterz-given", WATERZ, peer="waterz", keep=keep, low=LOW, high=HIGH, fragments=str(self.given)
        )

    def lsd(self) -> Row:
        """The recipe of local shape descriptors, in blocks."""
        return self._run("lsd", LSD, peer="lsd", context=CONTEXT)

    def volara(self, seeded: bool = False) -> Row:
        """The tasks of volara, as in its example or with its seeds."""
        name = "volara-seeded" if seeded else "volara"
        zarr = str(self.folder / "affinities.zarr" / "0")
        block = [min(side, SEEDED_SIDE) for side in self.block] if seeded else self.block
        return self._run(name, VOLARA, peer="volara", zarr=zarr, seeded=seeded, block=block)

    def kernels(self) -> Row:
        """Our kernels on the whole volume at once, and on waterz's fragments."""
        mine = {threshold: self.folder / f"mine-{threshold}.npy" for threshold in self.thresholds}
        row = self._run("kernels", OURS, task="kernels", keep=mine, low=LOW, high=HIGH, fragments=str(self.given))
        row["bits_from_waterz"] = {
            threshold: scores.distance(np.load(path, "r"), np.load(self._reference(threshold), "r"))
            for threshold, path in mine.items()
            if self._reference(threshold).exists()
        }
        for path in mine.values():
            path.unlink()
        return row

    def neuroshed(self, cluster: str = "in-process:1", scored: bool = True) -> Row:
        """Our whole workflow in blocks."""
        name = f"neuroshed-{cluster.replace(':', '-')}"
        job: dict[str, Any] = {"task": "chain", "cluster": cluster, "pinned": cluster.startswith("in-process")}
        job |= {"zarr": str(self.folder / "affinities.zarr"), "warm_zarr": str(self.folder / "warm.zarr")}
        return self._run(name, OURS, low=LOW, high=HIGH, warm_block=WARM_BLOCK, scored=scored, **job)

    def _reference(self, threshold: str) -> Path:
        return self.folder / f"reference-{threshold}.npy"

    def _run(
        self,
        name: str,
        script: Path,
        peer: str | None = None,
        keep: dict[str, Path] | None = None,
        scored: bool = True,
        **job: Any,
    ) -> Row:
        """Seconds, memory and scores of one contender; `keep` says where labels go that are not thrown away.

        Raises `PeerError` if it cannot be had or fails.
        """
        python = environments.python_of(peer, self.environments) if peer else None
        folder = self.folder / name
        kinds = self.thresholds if name == "waterz-given" else ("fragments", *self.thresholds)
        labels = {kind: folder / f"{kind}.npy" for kind in kinds}
        job = {"block": self.block} | job
        job |= {
            "affinities": str(self.affinities),
            "folder": str(folder),
            "thresholds": self.thresholds,
            "labels": {kind: str(path) for kind, path in labels.items()},
        }
        try:
            row = processes.run(script, job, folder, python, self.limit_s)
            row["peak_gib"] = round(row.pop("peak_bytes") / GIB, 3)
            volumes = row.pop("volumes", {})
            if scored:
                row["scores"] = {kind: self._score(volumes.get(kind, labels[kind])) for kind in kinds}
            for kind, path in (keep or {}).items():
                labels[kind].rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return row

    def _score(self, path: Path | str) -> dict[str, Any]:
        if isinstance(path, Path):
            return scores.score(np.load(path, mmap_mode="r"), self.parts)
        volume = open_volume(path)
        return scores.score(volume.read(volume.box), self.parts)


def write_inputs(
    folder: Path, shape: tuple[int, int, int], block: tuple[int, int, int], data: Path | None
) -> tuple[np.ndarray, str]:
    """Make the affinities in `folder`, as .npy and as Zarr; returns the components of the truth, and what it is."""
    truth, source = shapes.labels(shape, data)
    affinities = np.lib.format.open_memmap(folder / "affinities.npy", "w+", np.uint8, (3, *shape))
    shapes.affinities(truth, out=affinities)
    affinities.flush()
    _write_zarr(folder / "affinities.zarr", affinities, block)
    _write_zarr(folder / "warm.zarr", affinities[:, *(slice(0, n) for n in WARM_SHAPE)], WARM_BLOCK)
    return scores.components(truth), source


def _write_zarr(path: Path, affinities: np.ndarray, block: tuple[int, int, int]) -> None:
    shape = affinities.shape[1:]
    if any(n % b for n, b in zip(shape, block, strict=True)):
        raise SystemExit(f"shape {shape} is not whole blocks of {block}; choose another with --shape or --block")
    volume = create_volume(
        path, shape=shape, dtype=np.uint8, shard_shape=block, voxel_size=VOXEL_SIZE, voxel_offsets=NEAREST
    )
    # Along z block by block: the array may be larger than memory.
    for z in range(0, shape[0], block[0]):
        box = Box((z, 0, 0), (z + block[0], *shape[1:]))
        volume.write(box, np.ascontiguousarray(affinities[:, z : z + block[0]]))

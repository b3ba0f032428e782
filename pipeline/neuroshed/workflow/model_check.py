"""`neuroshed model check`: a patch through a model, and what it shows: shapes, values, conventions, seams, cost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from neuroshed.model.agreement import MARGIN, Agreements, agreements
from neuroshed.model.inference import Predictor
from neuroshed.model.lattice import Lattice, redundancy
from neuroshed.storage.locations import Location
from neuroshed.storage.networks import ModelChoice, open_model, resolved
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow.config import PredictOptions
from neuroshed.workflow.prediction import check_image, device_of, intensity_of, odd_voxel_size
from neuroshed.workflow.trial import Trial

if TYPE_CHECKING:
    from neuroshed.storage.networks import Opened

Report = dict[str, Any]
SEAM, SEAM_RATIO = 3.0, 2.5
"""A border of a patch is told as a seam if it differs from the middle of another patch by this much on the average, in
1/255, and by so many times as much as places between border and middle do.
"""
EMPTY = 2.0
"""Deviation of a channel, in 1/255, below which it says nothing."""


def check_model(model: ModelChoice, image: Location, options: PredictOptions) -> Report:
    """Run one patch in the middle of an image, and a few more to time them; see `neuroshed.check_model`."""
    choice = resolved(model)
    opened, volume = open_model(choice), open_volume(image)
    check_image(volume, volume.box)
    device = device_of(options.device)
    intensity = intensity_of(volume, opened, options)
    network = opened.network(intensity, device, options.precision)
    trial = Trial(volume, Predictor(network, opened.lattice, 1, options.threads), volume.box)
    box = trial.cell.intersect(volume.box)
    with _Memory(device) as memory:
        affinities = trial.predict(box)
    pixels = volume.read(box)
    agreement = _agreement(affinities, pixels, inverted=intensity[0] > intensity[1])
    seam = trial.seam(affinities)
    seconds, batch_size = trial.speed(memory.bytes)
    warning = odd_voxel_size(str(volume.path), volume.voxel_size, opened.voxel_size)
    report: Report = {
        "model": choice if isinstance(choice, str) else choice.path,
        "image": str(volume.path),
        "device": device,
        "patch": list(opened.lattice.patch),
        "context": list(opened.lattice.context),
        "kept": list(opened.lattice.stride),
        "redundant_compute": round(redundancy(opened.lattice, opened.lattice.stride), 2),
        "intensity": [round(value, 2) for value in intensity] if opened.scales_intensities else None,
        "box": str(box),
        "channels": _channels(affinities, agreement),
        "shift": list(agreement.shift) if agreement else None,
        "seam": seam,
        "seconds": {str(size): round(each, 3) for size, each in seconds.items()},
        "voxels_per_second": round(max(_voxels(opened) / each for each in seconds.values())),
        "memory_bytes": memory.bytes,
        "suggested": {"batch_size": batch_size, **_suggested_context(opened.lattice, seam)},
    }
    report["faults"] = _faults(report, agreement, affinities) + ([warning] if warning else [])
    return report


class _Memory:
    """The most memory that is taken inside, in bytes, on top of what was taken before."""

    def __init__(self, device: str) -> None:
        self._gpu = device if device.startswith("cuda") else None
        self.bytes = 0

    def __enter__(self) -> _Memory:
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._before = torch.cuda.memory_allocated(self._gpu)
        else:
            _reset_peak()
            self._before = _peak()
        return self

    def __exit__(self, *error: object) -> None:
        after = torch.cuda.max_memory_allocated(self._gpu) if self._gpu else _peak()
        self.bytes = max(after - self._before, 0)


def _reset_peak() -> None:
    with suppress(OSError):  # not Linux: the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory of this process since the last reset, in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return 0


def _voxels(opened: Opened) -> int:
    return int(np.prod(opened.lattice.stride))


def _agreement(affinities: npt.NDArray[np.uint8], pixels: npt.NDArray[Any], *, inverted: bool) -> Agreements | None:
    if min(pixels.shape) < 4 * MARGIN:
        return None
    return agreements(affinities, pixels, membranes_dark=not inverted)


def _channels(affinities: npt.NDArray[np.uint8], agreement: Agreements | None) -> list[Report]:
    rows = []
    for number, (name, channel) in enumerate(zip("zyx", affinities, strict=True)):
        row: Report = {
            "channel": name,
            "lowest": round(float(channel.min()) / 255, 3),
            "mean": round(float(channel.mean()) / 255, 3),
            "highest": round(float(channel.max()) / 255, 3),
        }
        if agreement:
            told = agreement.channels[number]
            row |= {"neighbour": told.found, "lag": list(told.lag), "correlation": told.correlation}
        rows.append(row)
    return rows


def _is_seam(seam: Report | None) -> bool:
    return seam is not None and bool(seam["border"] >= max(SEAM, SEAM_RATIO * seam["inside"]))


def _suggested_context(lattice: Lattice, seam: Report | None) -> Report:
    if not _is_seam(seam):
        return {}
    assert seam is not None
    axis = "zyx".index(seam["axis"])
    more = [c + (c // 2 + 2 if own == axis else 0) for own, c in enumerate(lattice.context)]
    return {"context": more}


def _faults(report: Report, agreement: Agreements | None, affinities: npt.NDArray[np.uint8]) -> list[str]:
    """What is most likely wrong, each with what to do."""
    faults = []
    for name, channel in zip("zyx", affinities, strict=True):
        if channel.std() < EMPTY:
            faults.append(f"channel {name} is nearly constant ({channel.mean() / 255:.2f}): check scaling and weights")
    if faults:
        return faults
    seam = report["seam"]
    if seam and _is_seam(seam):
        faults.append(
            f"seams along {seam['axis']}: the border of a patch differs by {seam['border']:.1f}/255 from the middle of "
            f"another (inside {seam['inside']:.1f}); give it more context"
        )
    if agreement is None:
        return faults
    if agreement.bright:
        faults.append("affinities are low where the image is bright: declare `inverted`, or set predict.inverted")
    if any(agreement.shift):
        z, y, x = agreement.shift
        faults.append(
            f"all channels lie about ({z}, {y}, {x}) voxels (z y x) from the membranes in the image: check how the "
            "answer is cropped (input_shape, output_shape), and stored_at"
        )
    for channel in agreement.channels:
        if not channel.found:
            faults.append(
                f"channel {channel.channel} hardly follows the image (correlation {channel.correlation:.2f}): the "
                "model may not suit it"
            )
        elif not channel.right:
            opposite = channel.found == f"+{channel.channel}"
            told = "the opposite neighbour: check sign and stored_at" if opposite else "another axis: check channels"
            faults.append(
                f"channel {channel.channel} agrees better with the neighbour {channel.found} than with "
                f"-{channel.channel}, {told}"
            )
    return faults

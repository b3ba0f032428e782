"""Random changes of a training sample: all drawn first from one generator, then applied to image and labels alike.

The geometric ones come before the targets are made, because an affinity between `p` and `p - e_z` is another one after
a flip. Defects of sections (missing, blurred, misaligned) follow Lee et al. 2017,
arXiv:1706.00120.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from neuroshed.geometry import Vec
from neuroshed.training.config import Augment

AXES = {"z": 0, "y": 1, "x": 2}


@dataclass(frozen=True)
class Geometry:
    """A drawn geometric change: which array to read, and what becomes of it.

    `order` transposes what was read (`numpy.transpose`), `flips` are the axes flipped after that, and `shifts`, int
    `(z, 2)`, says by how much each section is displaced along y, x; at most `margin` either way.
    """

    patch_shape: Vec
    order: Vec
    flips: tuple[int, ...]
    shifts: npt.NDArray[np.int64]

    @property
    def margin(self) -> Vec:
        """Voxels needed on each side of the patch, z y x."""
        y, x = (int(np.abs(self.shifts[:, axis]).max(initial=0)) for axis in (0, 1))
        return 0, y, x

    @property
    def read_shape(self) -> Vec:
        """Shape of the array to read, margins included, before axes are swapped."""
        wanted = [side + 2 * extra for side, extra in zip(self.patch_shape, self.margin, strict=True)]
        shape = [0, 0, 0]
        for axis, source in enumerate(self.order):
            shape[source] = wanted[axis]
        return shape[0], shape[1], shape[2]

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The changed `patch_shape` array of a `read_shape` array (image, labels or mask)."""
        turned = np.flip(array.transpose(self.order), self.flips)
        _, y, x = self.margin
        if not y and not x:
            return np.ascontiguousarray(turned)
        _, height, width = self.patch_shape
        sections = [
            section[y + dy : y + dy + height, x + dx : x + dx + width]
            for section, (dy, dx) in zip(turned, self.shifts, strict=True)
        ]
        return np.stack(sections)


def draw_geometry(rng: np.random.Generator, patch_shape: Vec, augment: Augment) -> Geometry:
    """Draw swaps, flips and misalignments."""
    order = [0, 1, 2]
    swappable = sorted(AXES[axis] for axis in augment.swap)
    for axis, source in zip(swappable, rng.permutation(swappable), strict=True):
        order[axis] = int(source)
    flips = tuple(sorted(AXES[axis] for axis in augment.flip if rng.random() < 0.5))
    return Geometry(patch_shape, (order[0], order[1], order[2]), flips, _draw_shifts(rng, patch_shape[0], augment))


def _draw_shifts(rng: np.random.Generator, sections: int, augment: Augment) -> npt.NDArray[np.int64]:
    shifts = np.zeros((sections, 2), np.int64)
    if rng.random() < augment.misaligned and sections > 1:
        start = int(rng.integers(1, sections))
        # A slip displaces one section, a translation that one and all later ones. The labels move with the image, so
        # that the truth across the step is whether the displaced profiles still touch.
        stop = start + 1 if rng.random() < 0.5 else sections
        shifts[start:stop] = rng.integers(-augment.max_shift, augment.max_shift + 1, 2)
    if augment.jitter:
        shifts += rng.integers(-augment.jitter, augment.jitter + 1, shifts.shape)
    return shifts


@dataclass(frozen=True)
class Edges:
    """The slab `start..stop` of an axis, of which the voxels beyond are mirror images; all of it is `start` 0."""

    axis: int
    start: int
    stop: int

    def apply(
        self, image: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """The mirrored image and what is valid of it: nothing beyond the slab."""
        length = image.shape[self.axis]
        if self.stop - self.start == length:
            return image, valid
        slab = [slice(None)] * 3
        slab[self.axis] = slice(self.start, self.stop)
        pad = [(0, 0)] * 3
        pad[self.axis] = (self.start, length - self.stop)
        return np.pad(image[tuple(slab)], pad, mode="reflect"), np.pad(valid[tuple(slab)], pad)


def draw_edges(rng: np.random.Generator, patch_shape: Vec, augment: Augment) -> Edges:
    """Draw an axis and a slab of at least a quarter of the patch, or all of it."""
    if not augment.edges or rng.random() >= augment.edges:
        return Edges(0, 0, patch_shape[0])
    axis = int(rng.integers(3))
    length = patch_shape[axis]
    kept = int(rng.integers(max(length // 4, 1), length + 1))
    start = int(rng.integers(length - kept + 1))
    return Edges(axis, start, start + kept)


def change_intensities(
    image: npt.NDArray[Any], rng: np.random.Generator, augment: Augment, normalisation: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Integer `(z, y, x)` image to float32 -1..1 with random contrast, brightness, gamma, blur, gaps and noise.

    Without changes it equals `neuroshed.model.inference.normalise`.
    """
    low, high = normalisation
    bright = np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    factor = 1 + augment.contrast * rng.uniform(-1, 1)
    extra = augment.brightness * rng.uniform(-1, 1)
    power = 2.0 ** (augment.gamma * rng.uniform(-1, 1))
    if augment.contrast or augment.brightness:
        mean = bright.mean()
        bright = np.clip((bright - mean) * np.float32(factor) + np.float32(mean + extra), 0, 1)
    if augment.gamma:
        bright **= np.float32(power)
    _vary_sections(bright, rng, augment)
    _spoil_sections(bright, rng, augment)
    if augment.noise:
        sigma = np.float32(augment.noise * rng.random())
        bright += sigma * rng.standard_normal(bright.shape, dtype=np.float32)
        np.clip(bright, 0, 1, out=bright)
    changed: npt.NDArray[np.float32] = bright * 2 - 1
    return changed


def _vary_sections(bright: npt.NDArray[np.float32], rng: np.random.Generator, augment: Augment) -> None:
    if not augment.section_contrast and not augment.section_brightness:
        return
    column = (len(bright), 1, 1)
    factors = 1 + augment.section_contrast * rng.uniform(-1, 1, column).astype(np.float32)
    extras = augment.section_brightness * rng.uniform(-1, 1, column).astype(np.float32)
    mean = bright.mean()
    np.clip((bright - mean) * factors + (mean + extras), 0, 1, out=bright)


def _spoil_sections(bright: npt.NDArray[np.float32], rng: np.random.Generator, augment: Augment) -> None:
    blurred = rng.random(len(bright)) < augment.blurred
    missing = rng.random(len(bright)) < augment.missing
    for section in np.flatnonzero(blurred):
        bright[section] = ndimage.gaussian_filter(bright[section], augment.blur_sigma * rng.random())
    for section in np.flatnonzero(missing):
        bright[section] = np.float32(rng.random())

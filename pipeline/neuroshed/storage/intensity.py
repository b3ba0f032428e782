"""Which image values the network sees as darkest and brightest: once for a volume, never for a block.

A model remembers how bright the images were that it learnt from, as two quantiles; those of another image, from boxes
all over it, are laid upon them. So neither contrast and brightness nor the number of bits matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import InputError
from neuroshed.geometry import Box, add
from neuroshed.storage.identity import read_sample, sample_boxes
from neuroshed.storage.views import Voxels

Range = tuple[float, float]
PERCENTILES = (2.0, 98.0)
# Samples along each axis.
DIVISIONS = 4


def spread(samples: Iterable[npt.NDArray[Any]]) -> Range:
    """The 2 % and 98 % quantiles of some values; 0 is what lies outside of images, and does not count.

    >>> spread([np.array([0, 0, 0]), np.arange(101)])
    (2.98, 98.02)
    """
    values = np.concatenate([sample[sample != 0].ravel() for sample in samples])
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def image_spread(image: Voxels, box: Box) -> Range:
    """`spread` of 64 samples in a box of an image; raises `InputError` if it has only one value."""
    boxes = (Box(add(box.start, b.start), add(box.start, b.stop)) for b in sample_boxes(box.shape, DIVISIONS))
    low, high = spread(read_sample(image, b) for b in boxes)
    if low == high:
        raise InputError(
            f"the values of {image.path} cannot be scaled: most of what was sampled is {low:g} or 0; give "
            "`predict.intensity: [LOW, HIGH]`, the values that are darkest and brightest"
        )
    return low, high


def matched(found: Range, trained: Range, *, inverted: bool = False) -> Range:
    """The (low, high) of `normalise` with which the quantiles `found` become `trained`, two numbers in 0..1.

    >>> matched((100.0, 180.0), (0.25, 0.75))
    (60.0, 220.0)
    >>> matched((100.0, 180.0), (0.25, 0.75), inverted=True)
    (220.0, 60.0)
    """
    dark, bright = reversed(found) if inverted else found
    unit = (bright - dark) / (trained[1] - trained[0])
    low = dark - trained[0] * unit
    return low, low + unit

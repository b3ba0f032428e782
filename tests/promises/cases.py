"""Random small volumes, cut into blocks in many ways, and how what the stages make of them is compared."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from neuroshed.geometry import Box, Vec
from neuroshed.stages.masks import Mask
from neuroshed.stages.semantics import Semantics

from .chunks import outputs, random_affinities, run_inline, segment_stages
from .memory import HERE, Faults, given, in_memory, recorded_merges
from .reference import Merge, Sets, Settings, Whole, segment_whole

SCORES = ("mean", "mean", "mean", "max", "min", "quantile_50", "quantile_0", "quantile_85")
THRESHOLDS = ("0", "0.1", "0.25", "0.4", "0.5", "0.6", "0.75", "0.9", "1")


@dataclass(frozen=True)
class Case:
    """`affinities` uint8 `(c, z, y, x)` of a volume, of which `region` is segmented in blocks of `block`.

    `classes` uint8 `(z, y, x)`: for each `factor` of voxels a class that is kept apart from others, or 0.
    """

    name: str
    affinities: np.ndarray
    region: Box
    block: Vec
    settings: Settings
    seed: int
    classes: np.ndarray | None = None
    factor: Vec = (1, 1, 1)
    graph_gb: float = 8.0
    masks: tuple[tuple[Mask, np.ndarray], ...] = ()
    """With what each holds, uint8 `(z, y, x)`."""

    @property
    def inside(self) -> np.ndarray:
        """The affinities of the region."""
        return self.affinities[(slice(None), *self.region.slices())]

    @property
    def classes_inside(self) -> np.ndarray | None:
        """The class of each voxel of the region."""
        if self.classes is None:
            return None
        return np.kron(self.classes, np.ones(self.factor, np.uint8))[self.region.slices()]

    @property
    def semantics(self) -> Semantics | None:
        """How the stages are told of the classes."""
        if self.classes is None:
            return None
        return Semantics(path=HERE, identity={}, classes=(1, 2, 3), factor=self.factor)

    @property
    def allowed_inside(self) -> np.ndarray:
        """Whether each voxel of the region is segmented, by the masks' values alone."""
        found = np.ones(self.region.shape, bool)
        for mask, values in self.masks:
            fine = np.kron(values, np.ones(mask.factor, np.uint8))[self.region.slices()]
            named = [int(value) in (mask.keep or mask.drop or ()) for value in fine.ravel()]
            found &= np.array(named).reshape(fine.shape) == (mask.keep is not None)
        return found

    def __str__(self) -> str:
        volume, classes = self.affinities.shape[1:], "no" if self.classes is None else self.factor
        place = f"{self.region} of {volume} in blocks of {self.block}"
        masks = ", ".join(f"mask of {mask.factor}" for mask, _ in self.masks)
        return f"{self.name}, seed {self.seed}: {place}, {self.settings}, {classes} classes, {self.graph_gb} GB {masks}"


def noise(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """Every affinity on its own."""
    return rng.integers(0, 256, (3, *shape), np.uint8)


def smooth(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """Neighbours alike, 256 values."""
    return random_affinities(rng, shape, 256)


def plateaus(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """Neighbours alike, two to five values."""
    return random_affinities(rng, shape, int(rng.integers(2, 6)))


def ties(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """Two to four values anywhere."""
    return rng.choice(rng.integers(0, 256, int(rng.integers(2, 5))).astype(np.uint8), (3, *shape))


def constant(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """One value."""
    return np.full((3, *shape), rng.choice([0, 1, 100, 254, 255]), np.uint8)


def giant(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """One fragment through everything, with crumbs in it."""
    crumbs = rng.random((3, *shape)) < 0.3
    return np.where(crumbs, rng.integers(0, 200, (3, *shape)), 255).astype(np.uint8)


def cells(rng: np.random.Generator, shape: Vec) -> np.ndarray:
    """The nearest of a few points, weak edges between cells of different ones, and noise."""
    points = rng.random((int(rng.integers(2, 9)), 3)) * shape
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    cell = ((voxels[..., None, :] - points) ** 2).sum(axis=-1).argmin(axis=-1)
    inside = np.stack([cell == np.roll(cell, 1, axis) for axis in range(3)])
    return np.clip(np.where(inside, 200, 60) + rng.normal(0, 40, (3, *shape)), 0, 255).astype(np.uint8)


KINDS: tuple[Callable[[np.random.Generator, Vec], np.ndarray], ...] = (
    noise, smooth, smooth, plateaus, plateaus, plateaus, ties, ties, cells, giant, constant,
)  # fmt: skip


def random_shape(rng: np.random.Generator) -> tuple[str, Vec, Vec]:
    """The region's shape, and its number of blocks along each axis: up to some 60 in all, in up to five tree levels."""
    name = str(rng.choice(["cube", "slab", "rod", "thin", "voxel"], p=[0.58, 0.15, 0.12, 0.13, 0.02]))
    if name == "cube":
        sides, counts = rng.integers(4, 10, 3), rng.integers(1, 4, 3)
    elif name == "slab":
        sides, counts = [rng.integers(1, 4), *rng.integers(5, 15, 2)], [1, *rng.integers(2, 6, 2)]
    elif name == "rod":
        sides, counts = [*rng.integers(1, 4, 2), rng.integers(12, 41)], [1, rng.integers(1, 3), rng.integers(2, 13)]
    elif name == "thin":
        # Blocks of one voxel along an axis.
        sides = [rng.integers(3, 6), *rng.integers(4, 9, 2)]
        counts = [sides[0], *rng.integers(1, 4, 2)]
    else:
        sides, counts = [1, 1, 1], [1, 1, 1]
    axes = rng.permutation(3)
    z, y, x = (int(sides[axis]) for axis in axes)
    a, b, c = (int(counts[axis]) for axis in axes)
    return name, (z, y, x), (a, b, c)


def random_settings(rng: np.random.Generator) -> Settings:
    lowest = int(rng.choice([0, 0, 0, 1, 2, 3, 5, 7]))
    thresholds = rng.choice(THRESHOLDS[lowest:], rng.choice([1, 1, 1, 2]), replace=False)
    low = int(rng.choice([0, 0, 1, 30, 100, 200]))
    adjusted = rng.random() < 0.1
    return Settings(
        low=low,
        high=max(low, int(rng.choice([180, 230, 255, 256, 256]))),
        small=int(rng.choice([0, 0, 2, 4, 4, 8, 12, 40])),
        dust=int(rng.choice([0, 0, 0, 2, 5, 10, 50])),
        lowest=THRESHOLDS[lowest],
        thresholds=tuple(sorted(thresholds.tolist())),
        score=str(rng.choice(SCORES)),
        max_size=int(rng.choice([0, 0, 0, 20, 60])),
        smooth=float(rng.choice([0, 0.4, 0.7]) * adjusted),
        bias=int(rng.choice([-40, 0, 40]) * adjusted),
    )


def random_case(seed: int) -> Case:
    """Any case at all; half of them lie inside a larger volume, and some have classes of tissue."""
    rng = np.random.default_rng(seed)
    name, shape, counts = random_shape(rng)
    kind = KINDS[rng.integers(len(KINDS))]
    before, after = (rng.integers(0, 4, (2, 3)) * rng.integers(0, 2)).tolist()
    z, y, x = (a + n + b for a, n, b in zip(before, shape, after, strict=True))
    region = Box((before[0], before[1], before[2]), (z - after[0], y - after[1], x - after[2]))
    a, b, c = (-(-n // count) for n, count in zip(shape, counts, strict=True))
    case = Case(f"{name} of {kind.__name__}", kind(rng, (z, y, x)), region, (a, b, c), random_settings(rng), seed)
    if rng.random() < 0.3:
        case = with_further(case, rng)
    if rng.random() < 0.85:
        return case
    factor = (int(rng.integers(1, 5)), *[int(rng.integers(2, 6))] * 2)
    classes = rng.integers(0, 4, [-(-n // f) for n, f in zip((z, y, x), factor, strict=True)]).astype(np.uint8)
    return replace(case, classes=classes, factor=factor)


def with_further(case: Case, rng: np.random.Generator) -> Case:
    """The case with one or two further channels, of edges no longer than a block."""
    reach = [min(side, 4) + 1 for side in case.block]
    drawn = {tuple(-rng.integers(0, reach)) for _ in range(2)}
    offsets = tuple((int(z), int(y), int(x)) for z, y, x in sorted(drawn) if z + y + x < -1)
    channels = [KINDS[rng.integers(len(KINDS))](rng, case.affinities.shape[1:])[0] for _ in offsets]
    return replace(
        case,
        affinities=np.stack([*case.affinities, *channels]),
        settings=replace(case.settings, further=offsets),
    )


def tied_case(seed: int) -> Case:
    """Few affinities, many small fragments, everything merged: the most decisions that a block cannot take alone."""
    rng = np.random.default_rng(seed)
    z, y, x = rng.integers(4, 9, 3).tolist()
    a, b, c = (-(-n // int(rng.integers(1, 4))) for n in (z, y, x))
    values = rng.choice(np.array([60, 120, 200, 255], np.uint8), int(rng.integers(2, 4)), replace=False)
    small = int(rng.choice([0, 0, 3, 6]))
    settings = Settings(
        low=int(rng.choice([1, 70, 130])),
        high=256,
        small=small,
        dust=int(rng.choice([0, small + 5])),
        lowest=str(rng.choice(["0", "0.1", "0.4"])),
        thresholds=(),
    )
    affinities = rng.choice(values, (3, z, y, x))
    return Case("tied", affinities, Box((0, 0, 0), (z, y, x)), (a, b, c), settings, seed)


def any_case(seed: int) -> Case:
    """One in five is a `tied_case`. In half of all, tree nodes have room for few edges at once."""
    case = random_case(seed) if seed % 5 else tied_case(seed)
    room = np.random.default_rng([seed, 1]).choice([8.0, 8.0, 8.0, 1e-7, 2e-6, 1e-5])
    return replace(case, graph_gb=float(room))


def masked_case(seed: int) -> Case:
    """Any case with one or two masks at any scale, of which half leave whole sides of the region out."""
    case, rng = any_case(seed), np.random.default_rng([seed, 2])
    volume = case.affinities.shape[1:]
    masks = []
    for number in range(int(rng.choice([1, 1, 2]))):
        factor = (int(rng.integers(1, 5)), *rng.integers(1, 6, 2).tolist())
        shape = [-(-n // f) for n, f in zip(volume, factor, strict=True)]
        values = np.where(rng.random(shape) < rng.choice([0.3, 0.6, 0.9, 1.0]), 1, rng.integers(0, 4, shape))
        if rng.random() < 0.5:
            axis = int(rng.integers(3))
            values.swapaxes(0, axis)[rng.integers(shape[axis]) :: 1 if rng.random() < 0.7 else 2] = 0
        keep, drop = ((1,), None) if rng.random() < 0.5 else (None, (0, 2))
        mask = Mask(path=HERE / f"mask{number}", identity={}, factor=factor, keep=keep, drop=drop)
        masks.append((mask, values.astype(np.uint8)))
    settings = replace(case.settings, low=max(case.settings.low, 1))
    if rng.random() < 0.3:
        settings = replace(settings, smooth=float(rng.choice([0, 0.7])), bias=40)
    masked = replace(case, settings=settings, masks=tuple(masks))
    return masked if masked.allowed_inside.any() else replace(masked, masks=())


def run_case(case: Case, fault_rate: float = 0.05) -> Whole:
    """What the stages make of a case."""
    order = random.Random(case.seed)
    beside = {HERE: case.classes, **{mask.path: values for mask, values in case.masks}}
    with in_memory(case.affinities, beside) as memory:
        source = given(case.affinities, case.settings.further)
        segments = segment_stages(
            HERE,
            source,
            case.block,
            case.settings,
            case.region,
            semantics=case.semantics,
            masks=[mask for mask, _ in case.masks],
            graph_gb=case.graph_gb,
        )
        run_inline(segments, order, Faults(memory, order, fault_rate))
        found = outputs(segments)
        return Whole(found.pop("fragments"), recorded_merges(memory, segments), found)


def expected_of(case: Case) -> Whole:
    """What the reference makes of a case, in the case's volume."""
    volume = case.affinities.shape[1:]
    shape = volume[0], volume[1], volume[2]
    whole = segment_whole(
        case.inside, case.settings, case.region.start, shape, case.classes_inside, case.allowed_inside
    )

    def placed(labels: np.ndarray) -> np.ndarray:
        out = np.zeros(volume, np.uint64)
        out[case.region.slices()] = labels
        return out

    return Whole(placed(whole.fragments), whole.merges, {t: placed(found) for t, found in whole.segments.items()})


def history(merges: list[Merge]) -> list[tuple[int, list[list[int]]]]:
    """For each score, falling, which clusters the merges of that score make one, by smallest fragments.

    Two lists of merges have the same history if and only if they give the same segments at every threshold.
    """
    sets = Sets({end for a, b, _ in merges for end in (a, b)})
    found = []
    for score, group in groupby(sorted(merges, key=lambda merge: -merge[2]), key=lambda merge: merge[2]):
        pairs = [(min(sets.members[sets.home[a]]), min(sets.members[sets.home[b]])) for a, b, _ in group]
        joined = Sets({end for pair in pairs for end in pair})
        for a, b in pairs:
            joined.join(a, b)
            sets.join(a, b)
        found.append((score, sorted(sorted(members) for members in joined.members.values())))
    return found


def differences(found: Whole, expected: Whole) -> list[str]:
    """In what two results differ."""
    names = []
    if found.fragments.dtype != np.uint64 or not np.array_equal(found.fragments, expected.fragments):
        names.append("fragments")
    scores = (Counter(score for *_, score in whole.merges) for whole in (found, expected))
    if len(set(map(frozenset, (counter.items() for counter in scores)))) > 1:
        names.append("scores of merges")
    if history(found.merges) != history(expected.merges):
        names.append("merges")
    return names + [
        f"segments at {threshold}"
        for threshold, labels in expected.segments.items()
        if not np.array_equal(found.segments[threshold], labels)
    ]


def check(case: Case) -> None:
    """Raise AssertionError if the stages' answer is not the reference's."""
    try:
        found = differences(run_case(case), expected_of(case))
    except Exception as error:
        raise AssertionError(f"{case} fails") from error
    assert not found, f"{case} differs in {', '.join(found)}"

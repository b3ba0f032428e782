"""Samples come from inside their boxes, are pure functions of their number, and unusable volumes are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.storage.views import Kept
from neuroshed.storage.volumes import Volume, create_volume
from neuroshed.training.config import Augment, Source, TrainingConfig
from neuroshed.training.samples import Sampler, open_regions

MakeConfig = Callable[..., TrainingConfig]
WriteVolume = Callable[[str, np.ndarray[Any, Any]], Path]
PLAIN = Augment(flip=(), swap=(), contrast=0, brightness=0, gamma=0, noise=0)


def test_nothing_outside_the_box_is_ever_seen(make_config: MakeConfig, write_volume: WriteVolume) -> None:
    image = np.full((24, 24, 24), 255, np.uint8)
    labels = np.full(image.shape, 9, np.uint16)
    box = Box((4, 5, 6), (20, 13, 22))
    image[box.slices()], labels[box.slices()] = 0, 1
    source = Source(
        image=write_volume("i.zarr", image), labels=write_volume("l.zarr", labels), box=(box.start, box.stop)
    )
    # The patch is larger than the box along y, and misalignments ask for still more.
    config = make_config(augment=PLAIN.model_copy(update={"misaligned": 1.0, "swap": ("z", "y", "x")}).model_dump())
    sampler = Sampler(open_regions([source], 0), config)
    for number in range(30):
        sample = sampler.sample(number)
        assert (sample.image == -1).all()
        assert sample.targets[sample.counts].all()
        assert sample.counts.any()


def test_a_sample_depends_on_its_number_alone(make_config: MakeConfig) -> None:
    config = make_config(batch_size=2, loaders=2)
    from_disk = Sampler(open_regions(config.samples, 0), config)
    in_memory = Sampler(open_regions(config.samples, 1), config)
    assert isinstance(in_memory.regions[0].image, Kept)
    assert isinstance(from_disk.regions[0].image, Volume)
    later = list(from_disk.batches(3, 8))
    assert len(later) == 5
    for step, batch in enumerate(later, start=3):
        expected = in_memory.batch(step)
        assert torch.equal(batch.image, expected.image)
        assert torch.equal(batch.targets, expected.targets)
        assert torch.equal(batch.counts, expected.counts)
    assert not torch.equal(later[0].image, later[1].image)


def test_processes_share_out_a_batch(make_config: MakeConfig) -> None:
    config = make_config(batch_size=4)
    regions = open_regions(config.samples, 1)
    whole = Sampler(regions, config).batch(5).image
    parts = [Sampler(regions, config, rank, 2).batch(5).image for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_descriptors_are_made_where_they_are_asked_for(make_config: MakeConfig) -> None:
    network = {"features": [8], "kernels": [[3, 3, 3]], "pools": [], "out_channels": 13}
    config = make_config(network=network, descriptors={"sigma": [2, 2, 2]})
    sampler = Sampler(open_regions(config.samples, 1), config)
    made = sampler.batch(0).descriptors
    assert made.shape == (1, 10, 8, 12, 12)
    labelled = sampler.sample(0).counts.any(0)
    assert torch.isfinite(made[0][:, torch.from_numpy(labelled)]).all()
    assert Sampler(open_regions(make_config().samples, 1), make_config()).batch(0).descriptors.shape[1] == 0


def test_batches_have_a_sample_axis(make_config: MakeConfig) -> None:
    config = make_config(batch_size=2)
    batch = Sampler(open_regions(config.samples, 1), config).batch(0)
    assert batch.image.shape == (2, 1, 8, 12, 12)
    assert batch.image.dtype == torch.float32
    assert batch.targets.shape == batch.counts.shape == (2, 3, 8, 12, 12)
    assert batch.targets.dtype == batch.counts.dtype == torch.bool


def test_an_error_in_a_loader_reaches_the_loop(make_config: MakeConfig) -> None:
    sampler = Sampler([], make_config())
    with pytest.raises(ValueError, match="positive integer"):
        next(sampler.batches(0, 3))


@pytest.mark.parametrize(("weights", "share"), [((None, None), 0.2), ((1.0, 1.0), 0.5)])
def test_sources_are_drawn_by_voxels_or_by_weight(
    make_config: MakeConfig, write_volume: WriteVolume, weights: tuple[float | None, ...], share: float
) -> None:
    sources = []
    for value, (side, weight) in enumerate(zip((8, 32), weights, strict=True)):
        image = write_volume(f"i{value}.zarr", np.full((8, 16, side), 255 * value, np.uint8))
        labels = write_volume(f"l{value}.zarr", np.ones((8, 16, side), np.uint8))
        sources.append(Source(image=image, labels=labels, weight=weight))
    sampler = Sampler(open_regions(sources, 1), make_config(augment=PLAIN.model_dump(), patch_shape=[2, 2, 2]))
    dark = np.mean([sampler.sample(number).image[0, 0, 0, 0] == -1 for number in range(200)])
    assert abs(dark - share) < 0.1


def test_masked_voxels_do_not_count_and_empty_patches_are_drawn_again(
    make_config: MakeConfig, write_volume: WriteVolume
) -> None:
    shape = (16, 16, 64)
    mask = np.zeros(shape, np.uint8)
    mask[..., 40:] = 1
    paths = [
        write_volume(f"{name}.zarr", array)
        for name, array in (("i", np.zeros(shape, np.uint8)), ("l", np.ones(shape, np.int32)), ("m", mask))
    ]
    (region,) = open_regions([Source(image=paths[0], labels=paths[1], mask=paths[2])], 0)
    sampler = Sampler([region], make_config(augment=PLAIN.model_dump()))
    shares = [sampler.sample(number).counts.mean() for number in range(20)]
    assert min(shares) > 0
    assert min(shares) < 0.7 < max(shares)
    _, _, valid = region.read(Box((0, 0, 0), shape))
    np.testing.assert_array_equal(valid, mask == 1)


def test_a_source_is_cut_into_sections_in_every_way_and_never_beyond_its_box(
    make_config: MakeConfig, write_volume: WriteVolume
) -> None:
    image = np.full((24, 26, 28), 255, np.uint8)
    labels = np.full(image.shape, 9, np.uint16)
    box = Box((3, 4, 5), (19, 23, 22))
    image[box.slices()], labels[box.slices()] = 0, 1
    source = Source.model_validate(
        {
            "image": write_volume("i.zarr", image),
            "labels": write_volume("l.zarr", labels),
            "mask": write_volume("m.zarr", np.ones(image.shape, np.uint8)),
            "box": (box.start, box.stop),
            "sections": {"thickness": [2, 5], "axes": ["z", "x"]},
        }
    )
    regions = open_regions([source], 1)
    assert len(regions) == 2 * (2 + 5)
    assert sum(region.weight for region in regions) == pytest.approx(box.size)
    assert {region.image.voxel_size for region in regions} == {(80, 4, 4), (200, 4, 4), (8, 40, 4), (20, 40, 4)}
    on_disk = open_regions([source], 0)
    for region, other in zip(regions, on_disk, strict=True):
        near = region.box.grow(2)
        for mine, its in zip(region.read(near), other.read(near), strict=True):
            np.testing.assert_array_equal(mine, its)
        assert not region.read(near)[0].any()
        assert region.read(near)[2].sum() == region.box.size
    sample = Sampler(regions, make_config(augment=PLAIN.model_dump(), patch_shape=[4, 8, 8])).sample(0)
    assert (sample.image == -1).all()
    assert sample.targets[sample.counts].all()


def test_sections_thicker_than_the_box_are_refused(volumes: tuple[Path, Path]) -> None:
    source = Source.model_validate({"image": volumes[0], "labels": volumes[1], "sections": {"thickness": [4, 25]}})
    with pytest.raises(InputError, match="holds no whole section of 25 voxels along z"):
        open_regions([source], 0)


def test_mirrored_voxels_teach_nothing(make_config: MakeConfig) -> None:
    whole, cut = (
        make_config(augment=PLAIN.model_copy(update={"edges": share}).model_dump(), patch_shape=[16, 16, 16])
        for share in (0.0, 1.0)
    )
    regions = open_regions(whole.samples, 1)
    counted = [[float(Sampler(regions, c).sample(n).counts.mean()) for n in range(20)] for c in (whole, cut)]
    assert min(counted[0]) > 0.9
    assert 0.1 < np.mean(counted[1]) < 0.8


@pytest.mark.parametrize(
    ("image", "labels", "box", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 5), np.uint8), None, "has shape .*they must be equal"),
        (np.zeros((4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8), None, "holds float32; an image must be uint8"),
        (np.zeros((4, 4, 4), np.uint32), np.ones((4, 4, 4), np.uint8), None, "holds uint32; an image must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.float32), None, "holds float32; labels must be integers"),
        (np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8), ((0, 0, 0), (4, 4, 5)), "outside the volume"),
        (np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8), ((2, 0, 0), (2, 4, 4)), "is empty"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(
    write_volume: WriteVolume, image: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], box: Any, message: str
) -> None:
    source = Source(image=write_volume("i.zarr", image), labels=write_volume("l.zarr", labels), box=box)
    with pytest.raises(InputError, match=message) as caught:
        open_regions([source], 0)
    assert "\n" not in str(caught.value)


def test_affinities_are_no_image(tmp_path: Path, volumes: tuple[Path, Path]) -> None:
    offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    path = tmp_path / "affinities.zarr"
    create_volume(
        path, shape=(24, 32, 32), dtype=np.uint8, shard_shape=(16, 16, 16), voxel_size=(1, 1, 1), voxel_offsets=offsets
    )
    with pytest.raises(InputError, match="has 3 channels"):
        open_regions([Source(image=path, labels=volumes[1])], 0)

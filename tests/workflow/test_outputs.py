"""What a block is said to write is what it writes: no file more, none less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import zarr

from neuroshed.errors import BlockError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.check import Check
from neuroshed.stages.compare import Compare
from neuroshed.stages.copy import Copy
from neuroshed.stages.evaluate import Contingency
from neuroshed.stages.imports import Import
from neuroshed.stages.precomputed import Precomputed
from neuroshed.stages.registry import kinds, save_stage
from neuroshed.stages.tiff import Tiff, TiffStack
from neuroshed.stages.verify import Verify
from neuroshed.storage.locations import Location
from neuroshed.storage.models import load_model, save_model
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import make_plan

from ..promises.chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 10, 12), (8, 5, 6)
Make = Callable[..., list[Stage]]
# Of commands, which plan no files.
ALONE = (Check, Compare, Contingency, Copy, Import, Precomputed, Tiff, TiffStack, Verify)


def planned(place: Location, *settings: str) -> list[Stage]:
    fixed = [f"output={place / 'run'}", "fragments.small=4", "fragments.dust=0"]
    return make_plan(load("segment", [*fixed, *settings])).stages


def of_affinities(place: Location, *settings: str) -> list[Stage]:
    found = random_affinities(np.random.default_rng(3), SHAPE, 256)
    path = write_affinities(place / "affinities.zarr", found)
    shards = [side // 2 if side % 2 == 0 else side for side in BLOCK]
    return planned(place, f"affinities={path}", f"block_shape={list(BLOCK)}", f"shard_shape={shards}", *settings)


def exact(place: Location, image: Path, model: Path) -> list[Stage]:
    return of_affinities(place, "keep=[segmentation,fragments,merges,affinities]")


def in_a_box(place: Location, image: Path, model: Path) -> list[Stage]:
    return of_affinities(place, "box=[[1,2,3],[7,9,12]]", "pyramid=2")


def mutex(place: Location, image: Path, model: Path) -> list[Stage]:
    return of_affinities(place, "fragments.method=mutex", "fragments.context=[2,2,2]")


def waterz(place: Location, image: Path, model: Path) -> list[Stage]:
    return of_affinities(place, "engine=waterz", "fragments.context=[2,2,2]")


def predicted(place: Location, image: Path, model: Path) -> list[Stage]:
    return planned(place, f"image={image}", f"model={model}", "block_shape=[16,16,16]", "shard_shape=[8,16,16]")


def levelled(place: Location, image: Path, model: Path) -> list[Stage]:
    loaded = load_model(model)
    card = loaded.card.model_copy(update={"spread": (0.2, 0.8)})
    other = save_model(image.parent / "spread", card, loaded.net.state_dict())
    return planned(place, f"image={image}", f"model={other}", "block_shape=[16,16,16]", "predict.drift=[9,16,12]")


def masked(place: Location, image: Path, model: Path) -> list[Stage]:
    allowed = np.zeros(SHAPE, np.bool_)
    allowed[:, :5, :8] = True
    zarr.create_array(image.parent / "mask.zarr", data=allowed)
    zarr.create_array(image.parent / "affinities.zarr", data=random_affinities(np.random.default_rng(3), SHAPE, 256))
    masks = f"masks=[{{path: {image.parent / 'mask.zarr'}, keep: [1]}}]"
    stages = planned(place, f"affinities={image.parent / 'affinities.zarr'}", f"block_shape={list(BLOCK)}", masks)
    assert [step.blocks_left for step in stages[1].steps] == [2]
    return stages


def imported(place: Location, image: Path, model: Path) -> list[Stage]:
    file = image.parent / "a.npy"
    np.save(file, np.random.default_rng(1).integers(0, 9, (70, 20, 90), np.uint8))
    return [Import.of(place / "run", file, "new.zarr", (1, 1, 1), block_shape=(64, 64, 64))]


def evaluated(place: Location, image: Path, model: Path) -> list[Stage]:
    return [Contingency.of(place / "run", Location.of(image), Location.of(image), (16, 16, 16))]


def of_volumes(place: Location, image: Path, model: Path) -> list[Stage]:
    volume, run = open_volume(image), place / "run"
    return [
        Copy.of(run, volume.path, "part.zarr", volume.box.grow(-2), (16, 16, 16)),
        Compare.of(run, volume, volume, False, (16, 16, 16)),
        Compare.of(run, volume, volume, True, (16, 16, 16)),
        Check.of(run, volume, list_missing=True),
    ]


def precomputed(place: Location, image: Path, model: Path) -> list[Stage]:
    return [Precomputed.of(place / "run", Location.of(image), "new")]


def sections(place: Location, image: Path, model: Path) -> list[Stage]:
    made = Tiff.of(place / "run", Location.of(image), "new")
    return [made, TiffStack(run_folder=place / "run", name="new.tif", sections=made, compression="zlib")]


def verified(place: Location, image: Path, model: Path) -> list[Stage]:
    stages = exact(place, image, model)
    return [*stages, Verify(run_folder=place / "verify", target=stages[1], step="")]


MAKERS = [
    exact,
    in_a_box,
    mutex,
    waterz,
    masked,
    predicted,
    levelled,
    imported,
    evaluated,
    of_volumes,
    precomputed,
    sections,
    verified,
]


def blocks(stages: Iterable[Stage]) -> Iterable[tuple[Stage, str, Vec]]:
    for stage in stages:
        save_stage(stage)
        stage.prepare()
        for step in stage.steps:
            for index in filter(step.holds, step.grid):
                yield stage, step.name, index


def files(place: Location) -> set[Location]:
    return {file for file, _ in place.files()}


def check_every_block(stages: list[Stage]) -> set[str]:
    """Run all blocks; returns the kinds of the stages."""
    appeared: Counter[str] = Counter()
    for stage, step, index in blocks(stages):
        # Levels grow in the volume of another stage.
        folders = {stage.folder, *(volume.path for volume in stage.written(step))}
        before = {file for folder in folders for file in files(folder)}
        if stage.outputs(step, index):
            with pytest.raises(BlockError, match="is missing or empty, though its block is done"):
                stage.check_outputs(step, index)
        stage.run(step, index)
        new = {file for folder in folders for file in files(folder)} - before
        assert sorted(new) == sorted(stage.outputs(step, index)), f"{stage.title} {step} {index}"
        stage.check_outputs(step, index)
        appeared[stage.fingerprint] += len(new)
    for stage in stages:
        if not isinstance(stage, ALONE):
            skips = any(step.blocks_left < len(step.grid) for step in stage.steps)
            planned, found = stage.output_files, appeared[stage.fingerprint]
            assert planned >= found if skips else planned == found, f"{stage.title}: {planned} {found}"
    return {stage.kind for stage in stages}


@pytest.mark.parametrize("make", MAKERS)
def test_outputs_are_the_files_that_appear(make: Make, image: Path, model: Path, tmp_path: Path) -> None:
    check_every_block(make(Location.of(tmp_path), image, model))


def test_all_kinds_are_tried(image: Path, model: Path, tmp_path: Path) -> None:
    known = {kind.model_fields["kind"].default for kind in kinds()}
    tried = {stage.kind for make in MAKERS for stage in make(Location.of(tmp_path) / make.__name__, image, model)}
    assert tried == known


def test_outputs_in_a_bucket_are_the_files_that_appear(bucket: Location, image: Path, model: Path) -> None:
    check_every_block(of_affinities(bucket, "keep=[segmentation,fragments,merges,affinities]", "pyramid=1"))


def test_lost_outputs_are_named_and_dropped_ones_come_again(place: Location, image: Path, model: Path) -> None:
    stages = exact(place, image, model)
    every = list(blocks(stages))
    for stage, step, index in every:
        stage.run(step, index)
    # The last block of each step, after which nothing of the step is read.
    for stage, step, index in {(stage.kind, step): (stage, step, index) for stage, step, index in every}.values():
        written = {file: file.read_bytes() for file in stage.outputs(step, index)}
        assert written
        for file, data in written.items():
            for harm in (lambda file=file: file.put(b""), file.delete):
                harm()
                with pytest.raises(BlockError) as caught:
                    stage.check_outputs(step, index)
                assert str(caught.value).startswith(f"{file} is missing or empty, though its block is done; see that")
                assert "\n" not in str(caught.value)
            file.put(data)
        others = files(stage.folder) - written.keys()
        for _ in range(2):
            stage.drop(step, index)
            assert files(stage.folder) == others
        stage.run(step, index)
        assert {file: file.read_bytes() for file in stage.outputs(step, index)} == written

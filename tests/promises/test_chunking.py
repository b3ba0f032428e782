"""Promise 1: the same neurons, whatever the chunking, bit for bit, and those of a plain whole-volume reference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from distributed.security import Security

import neuroshed
from neuroshed.geometry import Box, Vec
from neuroshed.kernels import order, stitch, watershed
from neuroshed.kernels.order import key_affinity
from neuroshed.stages import agglomerate
from neuroshed.storage.volumes import open_volume

from .chunks import as_affinity, outputs, random_affinities, run_inline, segment_stage, write_affinities
from .reference import Settings, segment_whole


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running multi-process cluster under TLS, and the address that a workflow names."""
    security = Security.temporary()
    keys = {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        **{
            f"distributed.comm.tls.{role}.{part}": getattr(security, f"tls_{role}_{part}")
            for role in ("client", "scheduler", "worker")
            for part in ("key", "cert")
        },
    }
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            security=security,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path_factory.mktemp("workers")),
        ) as cluster,
        dask.config.set(keys),
    ):
        yield cluster.scheduler_address


def random_case(seed: int) -> tuple[np.ndarray, Vec, Settings]:
    """Affinities with ties, a block shape that gives at least eight blocks and two tree levels, and settings."""
    rng = np.random.default_rng(seed)
    z, y, x = (int(n) for n in rng.integers(7, 14, 3))
    sides = [int(rng.integers(-(-n // 3), n // 2 + 1)) for n in (z, y, x)]
    block = (sides[0], sides[1], sides[2])
    settings = Settings(
        low=int(rng.choice([0, 1, 30, 100])),
        high=int(rng.choice([200, 250, 255])),
        small=int(rng.choice([0, 4, 12, 40])),
        dust=int(rng.choice([0, 4, 6])),
    )
    return random_affinities(rng, (z, y, x), levels=(256, 4)[seed % 2]), block, settings


def assert_same(found: dict[str, np.ndarray], affinities: np.ndarray, settings: Settings) -> None:
    expected_fragments, expected = segment_whole(affinities, settings)
    np.testing.assert_array_equal(found["fragments"], expected_fragments)
    for threshold, labels in expected.items():
        np.testing.assert_array_equal(found[threshold], labels)


@pytest.mark.parametrize("seed", range(8))
def test_blocks_on_a_multi_process_cluster_equal_the_whole(seed: int, scheduler: str, tmp_path: Path) -> None:
    affinities, block, settings = random_case(seed)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    results = []
    for name, shape, cluster in (("blocks", block, scheduler), ("whole", affinities.shape[1:], "in-process:1")):
        summary = neuroshed.run(
            "segment",
            [
                f"affinities={path}",
                f"output={tmp_path / name}",
                f"block_shape={list(shape)}",
                f"cluster={cluster}",
                f"thresholds={list(settings.thresholds)}",
                f"fragments.low={as_affinity(settings.low)}",
                f"fragments.high={as_affinity(settings.high)}",
                f"stitch.small={settings.small}",
                f"stitch.dust={settings.dust}",
                f"agglomerate.lowest_threshold={settings.lowest}",
            ],
        )
        assert summary["stages"]["fragments"]["blocks"] >= (8 if name == "blocks" else 1)
        paths = {"fragments": summary["fragments"], **summary["segmentations"]}
        results.append({key: open_volume(path).read(Box.of_shape(affinities.shape[1:])) for key, path in paths.items()})
    for key, labels in results[0].items():
        np.testing.assert_array_equal(labels, results[1][key])
    assert_same(results[0], affinities, settings)


@pytest.mark.parametrize("seed", range(100, 116))
def test_any_order_of_blocks_equals_the_reference(seed: int, tmp_path: Path) -> None:
    affinities, block, settings = random_case(seed)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segment = segment_stage(tmp_path / "run", path, block, settings)
    run_inline(segment, random.Random(seed))
    assert_same(outputs(segment), affinities, settings)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 7), (4, 4, 4)])
def test_constant_affinities(value: int, shape: Vec, tmp_path: Path) -> None:
    affinities = np.full((3, *shape), value, np.uint8)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segment = segment_stage(tmp_path / "run", path, (2, 1, 3), Settings(dust=0))
    run_inline(segment, random.Random(0))
    assert_same(outputs(segment), affinities, Settings(dust=0))


def test_blocks_of_a_region_equal_the_region_in_one_block(tmp_path: Path) -> None:
    affinities, _, settings = random_case(7)
    region = Box((2, 1, 3), (7, 6, 7))
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    results = []
    for name, block in (("blocks", (2, 3, 2)), ("whole", (16, 16, 16))):
        segment = segment_stage(tmp_path / name, path, block, settings, region)
        run_inline(segment, random.Random(0))
        results.append(outputs(segment))
    for key, labels in results[0].items():
        np.testing.assert_array_equal(labels, results[1][key])
        outside = labels.copy()
        outside[region.slices()] = 0
        assert labels.any()
        assert not outside.any()


def crowded_case(seed: int) -> tuple[np.ndarray, Vec, Settings]:
    """Hundreds of fragments of a few voxels in eight blocks, most scores tied: the hardest case for agglomeration."""
    affinities = random_affinities(np.random.default_rng(seed), (12, 12, 12), levels=2 + seed % 3)
    thresholds = ("0.2", "0.4", "0.6", "0.8")
    return affinities, (6, 6, 6), Settings(low=1, high=256, small=3, dust=0, lowest="0.1", thresholds=thresholds)


@pytest.mark.parametrize("seed", range(3))
def test_crowded_volumes_equal_the_reference(seed: int, tmp_path: Path) -> None:
    affinities, block, settings = crowded_case(seed)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segment = segment_stage(tmp_path / "run", path, block, settings)
    run_inline(segment, random.Random(seed))
    assert_same(outputs(segment), affinities, settings)


def test_blocks_of_several_shards_equal_the_reference(tmp_path: Path) -> None:
    affinities, block, settings = crowded_case(0)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segment = segment_stage(tmp_path / "run", path, block, settings, shard_shape=(3, 2, 6))
    run_inline(segment, random.Random(0))
    assert_same(outputs(segment), affinities, settings)


def depends_on_blocks(case: tuple[np.ndarray, Vec, Settings], seed: int, folder: Path) -> bool:
    """Whether the engine, as it is patched now, gives other labels in blocks than in one block."""
    affinities, block, settings = case
    folder.mkdir()
    path = write_affinities(folder / "affinities.zarr", affinities)
    found = []
    for name, shape in (("blocks", block), ("whole", affinities.shape[1:])):
        segment = segment_stage(folder / name, path, shape, settings)
        run_inline(segment, random.Random(seed))
        found.append(outputs(segment))
    return any((labels != found[1][key]).any() for key, labels in found[0].items())


class TestOfTheTest:
    """Labels depend on the blocks as soon as one of the things is taken away that keep them from it."""

    def depends(self, folder: Path) -> bool:
        return any(
            depends_on_blocks(case(seed), seed, folder / f"{case.__name__}{seed}")
            for seed in (101, 103)  # four levels of affinity in the random case, so that ties abound
            for case in (crowded_case, random_case)
        )

    def test_with_everything_in_place(self, tmp_path: Path) -> None:
        assert not self.depends(tmp_path)

    def test_without_halo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watershed, "read_box", lambda box, region: box)
        assert self.depends(tmp_path)

    def test_without_the_tie_break_of_edges(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stitch, "falling_order", lambda keys: np.argsort(key_affinity(keys), kind="stable")[::-1])
        assert self.depends(tmp_path)

    def test_without_the_tie_break_of_scores(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(agglomerate, "voxel_rank", np.zeros_like)
        assert self.depends(tmp_path)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # hashes wrap round, which numba does silently
def test_compiled_kernels_equal_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    affinities, _, settings = random_case(101)
    shape = affinities.shape[1:]
    place = watershed.Place(Box((0, 0, 0), shape), Box((0, 0, 0), shape), shape)
    compiled = watershed.watershed(affinities, place, settings.low, settings.high)
    for module, name in ((watershed, "pick_edges"), (watershed, "edge_key"), (watershed, "name_pieces")):
        monkeypatch.setattr(module, name, getattr(module, name).py_func)
    monkeypatch.setattr(order, "hash56", order.hash56.py_func)
    for one, other in zip(compiled, watershed.watershed(affinities, place, settings.low, settings.high), strict=True):
        np.testing.assert_array_equal(one, other)

"""Promise 1: the same neurons, whatever the chunking, bit for bit, and those of a plain whole-volume reference.

Here through files, processes and the command's own entry; `test_random_volumes` has the many cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from distributed.security import Security
from numba.core.dispatcher import Dispatcher

import neuroshed
from neuroshed.geometry import Box, Vec
from neuroshed.kernels import blocks, inside, order, pairs, regions, stitch, unions, watershed
from neuroshed.kernels.blocks import Rules, block_graph
from neuroshed.kernels.watershed import Place
from neuroshed.storage.volumes import open_volume

from .chunks import as_affinity, outputs, random_affinities, run_inline, segment_stages, write_affinities
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
    expected = segment_whole(affinities, settings)
    np.testing.assert_array_equal(found["fragments"], expected.fragments)
    for threshold, labels in expected.segments.items():
        np.testing.assert_array_equal(found[threshold], labels)


@pytest.mark.parametrize("seed", range(2))
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
                "keep=[segmentation,fragments,merges,affinities]",
                f"thresholds={list(settings.thresholds)}",
                f"fragments.low={as_affinity(settings.low)}",
                f"fragments.high={as_affinity(settings.high)}",
                f"fragments.small={settings.small}",
                f"fragments.dust={settings.dust}",
                f"agglomerate.lowest_threshold={settings.lowest}",
            ],
        )
        assert summary["stages"]["fragments"]["blocks"] >= (8 if name == "blocks" else 1)
        paths = {"fragments": summary["fragments"], **summary["segmentations"]}
        results.append({key: open_volume(path).read(Box.of_shape(affinities.shape[1:])) for key, path in paths.items()})
    for key, labels in results[0].items():
        np.testing.assert_array_equal(labels, results[1][key])
    assert_same(results[0], affinities, settings)


def test_blocks_of_a_region_equal_the_region_in_one_block(tmp_path: Path) -> None:
    affinities, _, settings = random_case(7)
    region = Box((2, 1, 3), (7, 6, 7))
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    results = []
    for name, block in (("blocks", (2, 3, 2)), ("whole", (16, 16, 16))):
        segments = segment_stages(tmp_path / name, path, block, settings, region)
        run_inline(segments, random.Random(0))
        results.append(outputs(segments))
    for key, labels in results[0].items():
        np.testing.assert_array_equal(labels, results[1][key])
        outside = labels.copy()
        outside[region.slices()] = 0
        assert labels.any()
        assert not outside.any()


def test_blocks_of_several_shards_equal_the_reference(tmp_path: Path) -> None:
    affinities = random_affinities(np.random.default_rng(0), (12, 12, 12), levels=2)
    settings = Settings(low=1, high=256, small=3, dust=0, lowest="0.1", thresholds=("0.2", "0.8"))
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segments = segment_stages(tmp_path / "run", path, (6, 6, 6), settings, shard_shape=(3, 2, 6))
    run_inline(segments, random.Random(0))
    assert_same(outputs(segments), affinities, settings)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # hashes wrap round, which numba does silently
def test_compiled_kernels_equal_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a block computes, with every compiled function replaced by what it was compiled from."""
    place = Place(Box((1, 0, 1), (9, 8, 9)), Box((0, 0, 0), (9, 9, 9)), (10, 9, 9))
    affinities = random_affinities(np.random.default_rng(101), (8, 9, 8), 4)
    rules = Rules(low=60, high=250, small=6, dust=2)
    compiled = block_graph(affinities, place, rules)
    for module in (blocks, inside, order, pairs, regions, stitch, unions, watershed):
        for name, value in list(vars(module).items()):
            if isinstance(value, Dispatcher):
                monkeypatch.setattr(module, name, value.py_func)
    plain = block_graph(affinities, place, rules)
    assert compiled.up.any()
    assert compiled.links.keys.any()
    for one, other in zip(arrays(compiled), arrays(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def arrays(found: object) -> Iterator[np.ndarray]:
    """Those in tuples of tuples."""
    if isinstance(found, tuple):
        for part in found:
            yield from arrays(part)
    else:
        assert isinstance(found, np.ndarray)
        yield found

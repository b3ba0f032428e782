"""Which pool gets what, how many workers work is worth, and what a pool may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.dispatch import Demand
from neuroshed.engine.pools import WORTH_SECONDS, Backlog, Pool, add_up, pool_for, workers_wanted

GB = 10**9
SITE = {
    "cpu": Pool(memory_gb=8, cores=4),
    "highmem": Pool(memory_gb=200),
    "gpu": Pool(memory_gb=64, cores=4, gpus=1),
}


@pytest.mark.parametrize(
    ("demand", "pool"),
    [
        (Demand("cpu", 1 * GB), "cpu"),
        (Demand("cpu", 8 * GB), "cpu"),
        (Demand("cpu", 9 * GB), "highmem"),
        (Demand("cpu", 201 * GB), None),
        (Demand("gpu", 1 * GB), "gpu"),
        (Demand("gpu", 65 * GB), None),
    ],
)
def test_a_block_goes_to_the_smallest_pool_that_suffices(demand: Demand, pool: str | None) -> None:
    assert pool_for(demand, SITE) == pool


def test_without_a_kind_of_pool_the_other_will_do() -> None:
    assert pool_for(Demand("gpu", GB), {"cpu": SITE["cpu"]}) == "cpu"
    assert pool_for(Demand("cpu", GB), {"gpu": SITE["gpu"]}) == "gpu"
    # One of which nobody may ever start is none.
    assert pool_for(Demand("cpu", GB), SITE | {"cpu": Pool(memory_gb=8, workers=0)}) == "highmem"


@given(
    st.integers(1, 16),
    st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted),
    st.integers(0, 10**6),
    st.floats(0, 1e5),
    st.integers(0, 10**6),
)
def test_workers_are_within_range_and_have_something_to_do(
    cores: int, workers: list[int], blocks: int, seconds: float, waiting: int
) -> None:
    pool = Pool(memory_gb=1, cores=cores, workers=(workers[0], workers[1]))
    wanted = workers_wanted(pool, Backlog(blocks, blocks * seconds, seconds, blocks + waiting))
    if not blocks + waiting:
        assert wanted == 0
        return
    least, most = pool.range
    assert least <= wanted <= most
    if wanted > max(least, 1):
        assert (wanted - 1) * cores < blocks
        assert (wanted - 1) * cores * WORTH_SECONDS < blocks * seconds
    if blocks and most:
        assert wanted >= 1


def test_backlogs_add_up_by_pool() -> None:
    found = add_up([("a", 10, 2.0, 50), ("b", 0, 0.5, 7), ("a", 5, 1.0, 5), (None, 3, 1.0, 3), ("b", 2, 4.0, 2)])
    assert found == {"a": Backlog(15, 25.0, 1.0, 55), "b": Backlog(2, 8.0, 4.0, 9)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": [3, 1]}, "must be .least, most."),
        ({"gpus": 2}, "2 GPUs needs as many cores"),
        ({"walltime": "90"}, "walltime '90' must be HH:MM:SS"),
        ({"walltime": "00:01:00"}, "5 minutes or more"),
        ({"workers": 3, "hosts": ["a", "b"]}, "3 workers need as many hosts, there are 2"),
        ({"hosts": ["-oProxyCommand=x"]}, "pattern"),
        ({"memory": 3}, "Extra inputs"),
    ],
)
def test_pools_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pool.model_validate({"memory_gb": 4} | values)


@pytest.mark.parametrize(
    ("walltime", "seconds"), [("01:02:03", 3723), ("2-00:00:00", 172800), (None, 0), ("12:00:00", 43200)]
)
def test_walltimes_are_read_as_slurm_writes_them(walltime: str | None, seconds: int) -> None:
    assert Pool(memory_gb=1, walltime=walltime).walltime_seconds == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "slurm"}, "kind slurm needs pools"),
        ({"kind": "local", "pools": {"a": {"memory_gb": 1}}}, "pools go with kinds gpus, ssh, slurm"),
        ({"kind": "ssh", "pools": {"a": {"memory_gb": 1}}}, "pool a needs hosts"),
        ({"kind": "slurm", "pools": {"a": {"memory_gb": 1, "hosts": ["b"]}}}, "go with kind ssh"),
        ({"kind": "slurm", "pools": {"a-b": {"memory_gb": 1}}}, "pattern"),
    ],
)
def test_clusters_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterConfig.model_validate(values)


def test_a_word_stands_for_a_cluster() -> None:
    assert ClusterConfig.model_validate("processes:3") == ClusterConfig(kind="local", workers=3)
    assert ClusterConfig.model_validate("gpus").kind == "gpus"
    slurm = ClusterConfig.model_validate("slurm")
    assert slurm.pools["cpu"].range[1] > 1

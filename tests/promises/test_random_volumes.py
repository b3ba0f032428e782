"""Promise 1 on thousands of random small volumes: in blocks, in any order, through crashes, they give what the
reference gives in one piece.

They run in memory; one test shows that files make no difference.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage.nodes import read_node

from .cases import Case, any_case, check, differences, giant, run_case, tied_case
from .chunks import outputs, run_inline, segment_stages, write_affinities
from .memory import HERE, Memory, in_memory, same_tables
from .mutations import MUTATIONS, Mutation, merged_plainly
from .reference import Settings

CASES, MORE_CASES = 300, 2100
CHUNK = 30


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_any_chunking_equals_the_reference(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(any_case(seed))


@pytest.mark.system
@pytest.mark.parametrize("first", range(10_000, 10_000 + MORE_CASES, CHUNK))
def test_any_chunking_equals_the_reference_in_thousands_more(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(any_case(seed))


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 7), (4, 4, 4)])
def test_constant_affinities(value: int, shape: Vec) -> None:
    affinities = np.full((3, *shape), value, np.uint8)
    for low in (0, 1, 255):
        settings = Settings(low=low, high=256, small=3, dust=0, lowest="0", thresholds=("0", "1"))
        check(Case("constant", affinities, Box.of_shape(shape), (2, 1, 3), settings, seed=0))


@pytest.mark.parametrize("seed", range(3))
def test_one_fragment_through_all_blocks(seed: int) -> None:
    region, block = Box((1, 0, 2), (9, 8, 10)), (2, 3, 2)
    settings = Settings(low=1, high=255, small=(0, 3, 30)[seed], dust=0)
    case = Case("giant", giant(np.random.default_rng(seed), (10, 9, 11)), region, block, settings, seed)
    check(case)
    labels, blocks = run_case(case).fragments, Grid(region, block)
    through = set.intersection(*(set(labels[box.slices()].ravel()) for box in map(blocks.block_box, blocks)))
    assert through - {0}


@pytest.mark.parametrize("seed", [2, 4])
def test_memory_equals_files(seed: int, tmp_path: Path) -> None:
    """The same labels, and the same tables of every block and node."""
    case = tied_case(seed)
    case = replace(case, settings=replace(case.settings, thresholds=("0.5",)))
    for axis in range(3):
        # Edges that leave the volume: anything in memory, but 0 in what is read from a file.
        case.affinities[axis].swapaxes(0, axis)[0] = 0
    path = write_affinities(tmp_path / "affinities.zarr", case.affinities)
    on_disk, in_arrays = (segment_stages(tmp_path / "run", path, case.block, case.settings) for _ in range(2))
    run_inline(on_disk, random.Random(seed))
    with in_memory(case.affinities) as memory:
        run_inline(in_arrays, random.Random(seed + 1))
    for threshold, labels in outputs(on_disk).items():
        np.testing.assert_array_equal(outputs(in_arrays)[threshold], labels)
    assert len(memory.nodes) > 8
    for node, tables in memory.nodes.items():
        assert same_tables(dict(zip(tables, read_node(node, *tables), strict=True)), tables)


class TestOfTheTest:
    """Every wrong version of the rules makes labels depend on the blocks, and the suite sees it."""

    TRIED = range(30)

    @pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
    def test_a_wrong_rule_is_caught(self, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
        assert any(self.depends_on_blocks(tied_case(seed), mutation, monkeypatch) for seed in self.TRIED)

    def depends_on_blocks(self, case: Case, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> bool:
        _, z, y, x = case.affinities.shape
        with monkeypatch.context() as patch:
            mutation(patch, case.settings)
            return bool(differences(run_case(case), run_case(replace(case, block=(z, y, x)))))

    def test_the_right_rules_pass(self) -> None:
        for seed in self.TRIED:
            check(tied_case(seed))

    def test_the_plain_merging_in_some_wrong_versions_is_right_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in self.TRIED:
            assert not self.depends_on_blocks(tied_case(seed), merged_plainly, monkeypatch)

    def test_a_rerun_that_writes_something_else_is_caught(self) -> None:
        memory = Memory()
        for _ in range(2):
            memory.write_node(HERE, {"nodes": {"id": np.array([7])}})
        with pytest.raises(AssertionError, match="run again"):
            memory.write_node(HERE, {"nodes": {"id": np.array([8])}})

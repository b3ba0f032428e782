from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.kernels.order import MAX_VOXELS, edge_key, edge_keys, hash56, hash64

from ..promises.reference import edge_hash, voxel_hash


@given(st.integers(0, 2**56 - 1))
def test_hash_is_that_of_the_reference(index: int) -> None:
    assert int(hash56(np.uint64(index))) == edge_hash(index) < 2**56


@given(st.integers(0, 2**64 - 1))
def test_rank_is_that_of_the_reference(index: int) -> None:
    assert int(hash64(np.uint64(index))) == voxel_hash(index)


def test_hash_can_be_undone() -> None:
    """A bijection has an inverse: multiply by the inverses and undo the shifts, the last first."""
    first, second = (pow(m, -1, 2**56) for m in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

    def unshift(x: int, shift: int) -> int:
        y = x
        for _ in range(56 // shift + 1):
            y = x ^ y >> shift
        return y

    for index in (0, 1, 2**55 + 12345, 2**56 - 1):
        x = unshift(int(hash56(np.uint64(index))), 27)
        x = unshift(x * second % 2**56, 23)
        assert unshift(x * first % 2**56, 26) == index


@given(st.integers(0, 255), st.integers(0, MAX_VOXELS - 1), st.integers(0, 2))
def test_a_key_holds_its_affinity(affinity: int, voxel: int, channel: int) -> None:
    key = edge_key(np.uint8(affinity), np.uint64(voxel), np.uint64(channel))
    assert key >> 56 == affinity


def test_keys_of_arrays_are_those_of_single_edges() -> None:
    affinities, voxels = np.array([0, 7, 255], np.uint8), np.array([5, 2**40, 12], np.uint64)
    keys = [edge_key(a, v, np.uint64(1)) for a, v in zip(affinities, voxels, strict=True)]
    assert edge_keys(affinities, voxels, 1).tolist() == keys


@pytest.mark.parametrize("affinity", [1, 200])
def test_stronger_edges_have_larger_keys(affinity: int) -> None:
    weaker = [edge_key(np.uint8(affinity - 1), np.uint64(v), np.uint64(0)) for v in range(50)]
    stronger = [edge_key(np.uint8(affinity), np.uint64(v), np.uint64(0)) for v in range(50)]
    assert max(weaker) < min(stronger)

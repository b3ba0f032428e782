"""The strict total orders that make ties harmless: hashed edge indices and hashed voxel ranks.

An edge's `key` is one uint64: its affinity in the top 8 bits, below it a bijective 56-bit hash of the edge's global
index. So no two edges of a volume are equal, sorting by key sorts by (affinity, hash), and the affinity can be read
back.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec

MASK56 = np.uint64((1 << 56) - 1)
# Odd multipliers and shifts of half the width: each step is a bijection of 56 bits (the finaliser of SplitMix64,
# Steele, Lea and Flood 2014, with its constants cut to 56 bits).
_M1 = np.uint64(0xBF58476D1CE4E5B9 & ((1 << 56) - 1))
_M2 = np.uint64(0x94D049BB133111EB & ((1 << 56) - 1))
_S1, _S2, _S3 = np.uint64(26), np.uint64(23), np.uint64(27)
_S56, _S57 = np.uint64(56), np.uint64(57)

# The full-width constants, for ranks of voxels.
_L1, _L2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_T1, _T2, _T3 = np.uint64(30), np.uint64(27), np.uint64(31)

MAX_VOXELS = (1 << 56) // 3
"""Largest volume whose edges can be told apart."""


@numba.njit(cache=True, nogil=True, inline="never")
def hash56(index: Any) -> Any:
    """Bijective hash of a uint64 below 2**56."""
    x = index
    x ^= x >> _S1
    x = (x * _M1) & MASK56
    x ^= x >> _S2
    x = (x * _M2) & MASK56
    x ^= x >> _S3
    return x


@numba.njit(cache=True, nogil=True, inline="never")
def edge_key(affinity: Any, upper_voxel: Any, channel: Any) -> Any:
    """Key (uint64) of the edge between a voxel (global linear index) and its lower neighbour along an axis."""
    return (np.uint64(affinity) << _S56) | hash56(upper_voxel * np.uint64(3) + channel)


def edge_keys(
    affinities: npt.NDArray[np.uint8], upper_voxels: npt.NDArray[np.uint64], axis: int
) -> npt.NDArray[np.uint64]:
    """Keys of edges along one axis: `edge_key` for arrays, uint64."""
    keys: npt.NDArray[np.uint64] = _edge_keys(affinities, upper_voxels, np.uint64(axis))
    return keys


@numba.njit(cache=True, nogil=True)
def _edge_keys(affinities: Any, upper_voxels: Any, axis: Any) -> Any:
    keys = np.empty(affinities.size, np.uint64)
    for i in range(affinities.size):
        keys[i] = edge_key(affinities[i], upper_voxels[i], axis)
    return keys


@numba.njit(cache=True, nogil=True)
def hash64(index: Any) -> Any:
    """Bijective hash of a uint64: who wins among clusters whose edges score the same."""
    x = index
    x ^= x >> _T1
    x *= _L1
    x ^= x >> _T2
    x *= _L2
    x ^= x >> _T3
    return x


def strides(volume_shape: Vec) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Steps of the global linear index along z, y, x."""
    return np.uint64(volume_shape[1] * volume_shape[2]), np.uint64(volume_shape[2]), np.uint64(1)

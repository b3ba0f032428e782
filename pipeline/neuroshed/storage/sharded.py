"""Chunks in files of Neuroglancer's sharded format, each found by two small indices.

As https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md has it.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Vec
from neuroshed.storage.locations import Location
from neuroshed.storage.many import at_once
from neuroshed.storage.precomputed import chunk_number, number_bits

INDICES_KEPT = 256
"""Of minishards, each of which usually takes some kB."""
_WORD = 0xFFFFFFFF


class Shards:
    """The chunks of a scale in a folder, read as they are asked for."""

    def __init__(self, folder: Location, sharding: dict[str, Any], counts: Vec) -> None:
        """`counts` are chunks along each axis, z y x. Raises `InputError` for a `sharding` that is not understood."""
        self._folder, self._bits = folder, number_bits(counts)
        try:
            self._preshift, self._minishard, self._shard = (
                int(sharding[f"{name}_bits"]) for name in ("preshift", "minishard", "shard")
            )
            self._hash = {"identity": lambda number: number, "murmurhash3_x86_128": murmur}[sharding["hash"]]
            packed = {"raw": False, "gzip": True}
            self._packed_index = packed[sharding.get("minishard_index_encoding", "raw")]
            self._packed_data = packed[sharding.get("data_encoding", "raw")]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder} has a sharding that is not understood ({error!r}): {sharding}") from error
        self._index = functools.lru_cache(INDICES_KEPT)(self._read_index)

    def read(self, indices: Sequence[Vec]) -> list[bytes | None]:
        """Chunks by their places in the grid, unpacked; None for one that is not there.

        Raises `BlockError` for a file that is damaged.
        """
        numbers = [chunk_number(index, self._bits) for index in indices]
        # What tells where they are first, each once.
        at_once(lambda place: self._index(*place), [*{self._place(number) for number in numbers}])
        return at_once(self._read_chunk, numbers)

    def _read_chunk(self, number: int) -> bytes | None:
        shard, minishard = self._place(number)
        numbers, starts, stops = self._index(shard, minishard)
        found = np.searchsorted(numbers, number)
        if found == len(numbers) or numbers[found] != number:
            return None
        return _part(self._file(shard), int(starts[found]), int(stops[found]), self._packed_data)

    def _place(self, number: int) -> tuple[int, int]:
        """The file and the minishard in it that hold a chunk."""
        hashed = self._hash(number >> self._preshift)
        return hashed >> self._minishard & (1 << self._shard) - 1, hashed & (1 << self._minishard) - 1

    def _file(self, shard: int) -> Location:
        return self._folder / f"{shard:0{-(-self._shard // 4)}x}.shard"

    def _read_index(self, shard: int, minishard: int) -> tuple[npt.NDArray[np.uint64], ...]:
        """Chunk numbers of a minishard, rising, and where each begins and ends in the file."""
        file, head = self._file(shard), 16 << self._minishard
        try:
            start, stop = np.frombuffer(_part(file, 16 * minishard, 16 * (minishard + 1), False), "<u8").tolist()
        except FileNotFoundError:
            start = stop = 0
        if start == stop:
            return (np.zeros(0, np.uint64),) * 3
        data = _part(file, head + start, head + stop, self._packed_index)
        if len(data) % 24:
            raise BlockError(f"{file} is damaged: an index of {len(data)} bytes; copy it again")
        numbers, gaps, sizes = np.frombuffer(data, "<u8").reshape(3, -1)
        stops = head + np.cumsum(gaps + sizes, dtype=np.uint64)
        return np.cumsum(numbers, dtype=np.uint64), stops - sizes, stops


def _part(file: Location, start: int, stop: int, packed: bool) -> bytes:
    """Bytes of a file, unpacked; raises `BlockError` if they are not there or cannot be unpacked."""
    data = file.read_range(start, stop)
    if len(data) != stop - start:
        raise BlockError(f"{file} is damaged: it ends before byte {stop}; copy it again")
    try:
        return gzip.decompress(data) if packed else data
    except (OSError, EOFError, zlib.error) as error:
        raise BlockError(f"{file} is damaged from byte {start} on ({error}); copy it again") from error


def murmur(number: int) -> int:
    """The low 64 bits of MurmurHash3_x86_128 of a number as 8 bytes, seed 0 (Austin Appleby, public domain).

    >>> f"{murmur(0):016x}"
    '4772b084e028ae41'
    """
    second = _turned((number >> 32) * 0xAB0E9789, 16) * 0x38B34AE5
    first = _turned((number & _WORD) * 0x239B961B, 15) * 0xAB0E9789
    words = [8 ^ first & _WORD, 8 ^ second & _WORD, 8, 8]
    words = _added([_mixed(word) for word in _added(words)])
    return words[0] | words[1] << 32


def _turned(value: int, bits: int) -> int:
    value &= _WORD
    return (value << bits | value >> 32 - bits) & _WORD


def _mixed(value: int) -> int:
    value = (value ^ value >> 16) * 0x85EBCA6B & _WORD
    value = (value ^ value >> 13) * 0xC2B2AE35 & _WORD
    return value ^ value >> 16


def _added(words: list[int]) -> list[int]:
    first = sum(words) & _WORD
    return [first, *((word + first) & _WORD for word in words[1:])]

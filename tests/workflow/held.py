"""Runs in threads of this process whose blocks wait or fail at the test's word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroshed
from neuroshed.engine.control import Control
from neuroshed.geometry import Vec
from neuroshed.stages.base import Done
from neuroshed.stages.fragments import Fragments

from ..promises.chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 8, 16), (4, 4, 4)
LEAVES = 2 * 2 * 4
BLOCKS = LEAVES + 2 * (LEAVES + 2 + 1) + LEAVES


def settings(folder: Path, *further: str) -> list[str]:
    """Of a tiny run in `folder / "run"`."""
    path = folder / "affinities.zarr"
    if not path.exists():
        write_affinities(path, random_affinities(np.random.default_rng(1), SHAPE, 256))
    return [
        f"affinities={path}",
        f"output={folder / 'run'}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:2",
        "fragments.small=10",
        "thresholds=[0.5]",
        "failures.backoff_seconds=0",
        *further,
    ]


@contextmanager
def before_blocks(call: Callable[[Vec], None]) -> Iterator[None]:
    """Let something happen before each block of fragments."""
    run = Fragments.run

    def changed(self: Any, step: str, index: Vec) -> Done:
        call(index)
        return run(self, step, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fragments, "run", changed)
        yield


@contextmanager
def failing(*blocks: Vec) -> Iterator[None]:
    """These blocks of fragments fail."""

    def fail(index: Vec) -> None:
        if index in blocks:
            raise neuroshed.BlockError("this block is damaged")

    with before_blocks(fail):
        yield


@contextmanager
def halted(given: list[str], control: Control | None = None) -> Iterator[tuple[Future[Any], threading.Event]]:
    """A run of which the first blocks wait for the event; at the end they do no more."""
    go_on, begun = threading.Event(), threading.Event()

    def wait(index: Vec) -> None:
        begun.set()
        go_on.wait(60)

    with ThreadPoolExecutor(1) as pool, before_blocks(wait):
        future = pool.submit(neuroshed.run, "stitch", given, control=control)
        try:
            while not begun.wait(0.1):
                assert not future.done(), future.result()
            yield future, go_on
        finally:
            go_on.set()

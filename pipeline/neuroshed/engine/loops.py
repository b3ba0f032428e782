"""The event loop of Dask's clusters and clients in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SETTLE_SECONDS = 0.03
"""Longer than Dask waits for more before it sends what is to be sent (10 ms)."""
STOP_SECONDS = 5.0
"""For a loop to do as little as that."""


@contextmanager
def event_loop() -> Iterator[Any]:
    """A loop in a thread of its own, for clusters and clients that are closed by the end.

    It is stopped a moment later than they are: a connection that has just sent something waits whether there is more,
    and if the loop stops before it was told that there is not, Python says at some later time that nobody ever asked
    for its `TimeoutError`.
    """
    from distributed.utils import LoopRunner

    # Those who use it count, and the last to leave stops it.
    runner = LoopRunner()
    runner.start()
    try:
        yield runner.loop
    finally:
        with suppress(OSError):
            runner.run_sync(asyncio.sleep, SETTLE_SECONDS, callback_timeout=STOP_SECONDS)
        runner.stop()

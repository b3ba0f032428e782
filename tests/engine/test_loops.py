"""Nothing is left waiting in a loop that ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tornado import gen, locks

from neuroshed.engine.loops import event_loop


def test_who_waits_for_a_moment_is_told_before_the_loop_ends() -> None:
    told = []

    @gen.coroutine
    def send() -> Iterator[Any]:
        """As Dask's connections do when they have sent something."""
        try:
            yield locks.Event().wait(timedelta(milliseconds=10))
        except TimeoutError:
            told.append(True)

    before = threading.active_count()
    with event_loop() as loop:
        loop.add_callback(send)
    assert told == [True]
    assert threading.active_count() == before

from __future__ import annotations

import pytest

from neuroshed.engine.attempts import Attempts, FailureOptions

BLOCK, OTHER = ("stage", "", 1), ("stage", "", 2)


def test_waits_double_up_to_the_longest_and_then_the_block_is_set_aside() -> None:
    attempts = Attempts(FailureOptions(attempts=14, backoff_seconds=1))
    now, waits = 0.0, []
    while attempts.failed(BLOCK, now):
        due = attempts.next_due
        assert due is not None
        assert attempts.due(due - 0.001) == []
        assert attempts.due(due) == [(BLOCK, False)]
        waits.append(due - now)
        now = due
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    assert attempts.count(BLOCK) == 14
    assert attempts.next_due is None


def test_deaths_count_apart_and_send_a_block_alone() -> None:
    attempts = Attempts(FailureOptions(attempts=2, worker_deaths=3, backoff_seconds=0))
    assert attempts.died(BLOCK, 0)
    assert attempts.died(BLOCK, 0)
    assert attempts.failed(BLOCK, 0)
    assert attempts.waiting == 3
    assert sorted(attempts.due(0)) == [(BLOCK, False), (BLOCK, True), (BLOCK, True)]
    assert not attempts.died(BLOCK, 0)
    assert attempts.count(BLOCK) == 4


def test_a_block_that_is_done_starts_afresh_and_others_keep_their_counts() -> None:
    attempts = Attempts(FailureOptions(attempts=2))
    assert attempts.failed(BLOCK, 0)
    assert attempts.failed(OTHER, 0)
    attempts.forget([BLOCK])
    assert attempts.failed(BLOCK, 0)
    assert not attempts.failed(OTHER, 0)


@pytest.mark.parametrize("number", [0, 1])
def test_one_attempt_means_one(number: int) -> None:
    assert not Attempts(FailureOptions(attempts=1, worker_deaths=1)).failed(BLOCK, 0)
    assert not Attempts(FailureOptions(attempts=1, worker_deaths=1)).died(BLOCK, 0)

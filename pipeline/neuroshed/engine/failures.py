"""What is kept of blocks that fail, so that a million of them fill neither memory nor disk: of each its error in one
line, and traceback and log lines of the first ones and of each that is not like one before it.
"""

from __future__ import annotations

import re
from collections import Counter

from neuroshed.geometry import Vec

FULL_FAILURES = 100
"""Of a stage in a session, that are kept with traceback and log lines whatever they say."""
KINDS_KNOWN = 1000
"""Kinds of errors of a stage that are told apart by their text; beyond that only types of errors are."""
ERROR_LENGTH = 500
TRACE_LENGTH = 20_000

# What tells blocks apart of which the same is to be said: numbers, and names made of random or hashed digits.
_NUMBER = re.compile(r"0x[0-9a-f]+|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\d+", re.IGNORECASE)

_DEVICE_FAULT = re.compile(
    r"CUDA (?:unknown |driver )?error|No CUDA GPUs are available|no CUDA-capable device|CUDNN_STATUS_|CUBLAS_STATUS_"
    r"|HIP error|NCCL error"
)
_NO_FAULT = re.compile(r"out of memory|_STATUS_ALLOC_FAILED|_STATUS_NOT_SUPPORTED|_STATUS_BAD_PARAM")


def error_line(text: str) -> str:
    r"""The first line of what an error says, and if that is very long only its start.

    >>> error_line("KeyError: 'x'\nmore")
    "KeyError: 'x'"
    """
    line = next(iter(text.splitlines()), "")
    more = len(line) - ERROR_LENGTH
    return line if more <= 0 else f"{line[:ERROR_LENGTH]}... ({more:,} more characters)"


def is_device_fault(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a GPU cannot be used any more by this process. Too little
    of its memory is no such fault.

    >>> [is_device_fault(RuntimeError(text)) for text in ("CUDA error: uncorrectable ECC error", "CUDA out of memory.")]
    [True, False]
    """
    while error is not None:
        text = str(error)
        if _DEVICE_FAULT.search(text) and not _NO_FAULT.search(text):
            return True
        error = error.__cause__
    return False


def bounded_trace(trace: str) -> str:
    """A traceback; of a very long one head and tail, and how much is left out between them."""
    head, tail = TRACE_LENGTH // 4, TRACE_LENGTH - TRACE_LENGTH // 4
    more = len(trace) - head - tail
    return trace if more <= 0 else f"{trace[:head]}\n... {more:,} characters left out ...\n{trace[-tail:]}"


class Kinds:
    """The kinds of failures of a session: by stage and error, numbers in it left out."""

    def __init__(self) -> None:
        self._failed: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._first: dict[tuple[str, str], tuple[str, Vec]] = {}

    def like(self, stage: str, step: str, index: Vec, error: str) -> tuple[str, Vec] | None:
        """Take in a failure. Returns the block (step and index) whose traceback was kept and is like this one's; None
        if this one's is to be kept.
        """
        self._failed[stage] += 1
        here = step, index
        # The first of a type is the first of a kind, too, so that its traceback is always there.
        first_of_type = self._first.setdefault((stage, error.partition(":")[0] + ":"), here)
        kind = stage, _NUMBER.sub("#", error)
        first = self._first.get(kind)
        if first is None and self._known[stage] < KINDS_KNOWN:
            self._known[stage] += 1
            first = self._first[kind] = here
        first = first or first_of_type
        return None if first == here or self._failed[stage] <= FULL_FAILURES else first

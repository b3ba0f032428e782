"""Workers with other versions, and workers whose GPU has failed, get no work; why is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from neuroshed.engine.admission import STRIKES, Admission
from neuroshed.engine.failures import is_device_fault
from neuroshed.engine.versions import TALK, differences, versions

PREDICT = ("predict", "")
WORKERS = {"tls://a": {"name": "cpu-1/0", "host": "node1"}, "tls://b": {"name": "cpu-2/0", "host": "node2"}}


class Client:
    """Answers for workers at once, or not yet."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, 0
        self.loop = SimpleNamespace(add_callback=self._call)
        self.waiting: list[Callable[[], Any]] = []

    def _call(self, function: Callable[[str], Any], address: str) -> None:
        self.asked += 1
        self.waiting.append(lambda: asyncio.run(function(address)))

    def answer(self) -> None:
        for function in self.waiting:
            function()
        self.waiting.clear()

    async def _run(self, function: Callable[[], Any], workers: list[str]) -> dict[str, Any]:
        answer = self.answers[workers[0]]
        if isinstance(answer, Exception):
            raise answer
        return {workers[0]: answer}


def admission(client: Client, refused: list[str] | None = None, elsewhere: bool = True) -> Admission:
    connection: Any = SimpleNamespace(client=client, elsewhere=elsewhere)
    return Admission(connection, lambda name, reason: (refused if refused is not None else []).append(name))


def test_workers_are_asked_once_and_used_when_they_have_answered() -> None:
    client = Client({"tls://a": versions(), "tls://b": versions()})
    admitted = admission(client)
    assert admitted.sift(WORKERS) == {}
    assert admitted.sift(WORKERS) == {}
    client.answer()
    assert admitted.sift(WORKERS) == WORKERS
    assert client.asked == 2
    assert admitted.told == ""
    # One that comes back is asked anew.
    assert admitted.sift({}) == {}
    admitted.sift(WORKERS)
    assert client.asked == 4


@pytest.mark.parametrize("name", versions())
def test_other_versions_are_refused_by_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    client = Client({"tls://a": versions(), "tls://b": versions() | {name: "0.0.1"}})
    refused: list[str] = []
    admitted = admission(client, refused)
    admitted.sift(WORKERS)
    client.answer()
    assert list(admitted.sift(WORKERS)) == ["tls://a"]
    assert list(admitted.sift(WORKERS)) == ["tls://a"]
    assert refused == ["cpu-2/0"]
    assert f"worker cpu-2/0 on node2 is not used: {name} 0.0.1 (here {versions()[name]})" in caplog.text
    assert admitted.told.startswith("1 workers are not used, such as cpu-2/0: ")


def test_a_worker_without_neuroshed_is_told_as_such() -> None:
    client = Client({"tls://a": ModuleNotFoundError("No module named 'neuroshed'"), "tls://b": versions()})
    admitted = admission(client)
    admitted.sift(WORKERS)
    client.answer()
    assert list(admitted.sift(WORKERS)) == ["tls://b"]
    assert "No module named 'neuroshed'" in admitted.told


@pytest.mark.parametrize("error", [OSError("Timed out"), KeyError("tls://a")])
def test_a_worker_that_cannot_be_reached_now_is_asked_again(error: Exception) -> None:
    client = Client({"tls://a": error, "tls://b": versions()})
    admitted = admission(client)
    admitted.sift(WORKERS)
    client.answer()
    assert list(admitted.sift(WORKERS)) == ["tls://b"]
    client.answers["tls://a"] = versions()
    client.answer()
    admitted.sift(WORKERS)
    client.answer()
    assert admitted.sift(WORKERS) == WORKERS
    assert not admitted.reasons


def test_workers_of_this_very_installation_are_not_asked() -> None:
    client = Client({})
    assert admission(client, elsewhere=False).sift(WORKERS) == WORKERS
    assert not client.asked


def test_a_gpu_that_fails_again_and_again_is_given_up() -> None:
    admitted = admission(Client({}), elsewhere=False)
    for _ in range(3):
        assert not admitted.device_failed("cpu-1/0", "node1", PREDICT, "CUDA error: unspecified launch failure")
        admitted.device_works("cpu-1/0", PREDICT)
    given_up = []
    for _ in range(STRIKES):
        given_up.append(admitted.device_failed("cpu-1/0", "node1", PREDICT, "CUDA error: ECC"))
        # What needs no GPU says nothing of it.
        admitted.device_works("cpu-1/0", ("another stage", ""))
    assert given_up == [False] * (STRIKES - 1) + [True]
    # Under whatever address it comes back.
    assert list(admitted.sift({"tls://c": WORKERS["tls://a"], "tls://b": WORKERS["tls://b"]})) == ["tls://b"]
    assert "CUDA error: ECC" in admitted.told


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."), True),
        (RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"), True),
        (RuntimeError("No CUDA GPUs are available"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (ValueError("shape"), False),
    ],
)
def test_faults_of_gpus_are_told_from_others(error: Exception, fault: bool) -> None:
    assert is_device_fault(error) == fault
    outer = ValueError("a block")
    outer.__cause__ = error
    assert is_device_fault(outer) == fault


def test_differences_name_what_is_missing() -> None:
    assert differences({}, {"torch": "2.13"}) == "torch missing (here 2.13)"
    assert differences({"torch": "2.13", "more": "1"}, {"torch": "2.13"}) == ""
    assert "python" in TALK

"""Who ran what, where and with which versions; and no secrets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy
import pytest

from neuroshed.storage.locations import Location
from neuroshed.workflow.provenance import provenance, record, user, without_secrets
from tests.storage.objects import Store

ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "SLURM_JOB_ID": "17",
    "SLURM_JWT": "ey.secret",
    "SLURM_API_TOKEN": "hidden",
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": "/keys/me.pem",
    "DASK_CONFIG": "/etc/dask",
    "DASK_GATEWAY__AUTH__PASSWORD": "hidden",
    "DASK_SCHEDULER_ADDRESS": "tls://me:hidden@host:8786",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "AZURE_STORAGE_ACCOUNT_KEY": "hidden",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "hidden",
    "HOME": "/home/me",
}


def test_what_an_entry_says() -> None:
    entry = provenance(["neuroshed", "run", "segment"], ENVIRONMENT)
    assert entry["packages"]["numpy"] == numpy.__version__
    assert entry["pid"] == os.getpid()
    assert entry["cpus"] == os.cpu_count()
    assert entry["memory_bytes"] > 1 << 28
    assert entry["command"] == ["neuroshed", "run", "segment"]
    assert entry["environment"] == {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "SLURM_JOB_ID": "17",
        "DASK_CONFIG": "/etc/dask",
        "DASK_SCHEDULER_ADDRESS": "tls://***@host:8786",
    }
    text = json.dumps(entry)
    assert "hidden" not in text
    assert "secret" not in text
    assert ".pem" not in text


def test_torch_is_not_loaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert provenance([], {})["gpus"] is None
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--token", "abc", "x"], ["--token", "***", "x"]),
        (["--set", "output=s3://a/b"], ["--set", "output=s3://a/b"]),
        (["--Access-Key=abc"], ["--Access-Key=***"]),
        (["--password", "--json"], ["--password", "--json"]),
        (["https://user:pw@host/x?y"], ["https://***@host/x?y"]),
    ],
)
def test_secrets_of_a_command(words: list[str], told: list[str]) -> None:
    assert without_secrets(words) == told


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_the_last_hundred_are_kept(kind: str, tmp_path: Path) -> None:
    run = Location.of(tmp_path) if kind == "disk" else Store().client() / "run"
    for number in range(102):
        record(run, {"number": number})
    entries = json.loads((run / "provenance.json").read_bytes())
    assert [entry["number"] for entry in entries] == list(range(2, 102))
    for damaged in (b"[{", b"{}"):
        (run / "provenance.json").put(damaged)
        record(run, {"number": 0})
        assert json.loads((run / "provenance.json").read_bytes()) == [{"number": 0}]


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert user() == str(os.getuid())

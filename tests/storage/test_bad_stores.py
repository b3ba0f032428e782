"""What a store refuses is said in one line that names the object; what it refuses for a while is tried again."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroshed
from neuroshed.errors import RunFailedError, StorageFullError, WorkflowError
from neuroshed.storage import buckets
from neuroshed.storage.locations import Location
from neuroshed.storage.object_stores import Bucket
from tests.servers import Faults, Served

from ..promises.chaos import contents
from ..promises.chunks import random_affinities, write_affinities

QUICK: dict[str, Any] = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(milliseconds=30), "max_backoff": timedelta(milliseconds=100), "base": 2},
}
CHECKED = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_NAME"}
"""What a refused user is told to look at."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of buckets that are new are quick to give up."""
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | QUICK)
    monkeypatch.setattr(buckets, "CHECK_RETRIES", QUICK["max_retries"])


def verbs(place: Location) -> list[Callable[[], object]]:
    return [
        place.check,
        place.exists,
        place.names,
        lambda: list(place.files()),
        place.delete_tree,
        lambda: (place / "a").read_bytes(),
        lambda: (place / "a").put(b"1"),
        lambda: (place / "a").create(b"1"),
        lambda: write(place / "a"),
    ]


def write(file: Location) -> None:
    with file.replacing() as opened:
        opened.write(b"1")


def one_line(function: Callable[[], object], match: str) -> str:
    with pytest.raises(WorkflowError, match=match) as caught:
        function()
    assert "\n" not in str(caught.value)
    return "".join(traceback.format_exception(caught.value))


def test_a_missing_bucket_is_named(any_bucket: Location) -> None:
    scheme = str(any_bucket)[:2]
    word = "container" if scheme == "az" else "bucket"
    for verb in verbs(Location.of(f"{scheme}://no-such-bucket/runs")):
        one_line(verb, f"^{scheme}://no-such-bucket/runs.*: there is no {word} no-such-bucket; create it, or check its")


@pytest.mark.parametrize(
    ("variable", "scheme", "advice"),
    [
        ("AWS_ENDPOINT_URL", "s3", "AWS_ENDPOINT_URL, AWS_REGION and the network"),
        ("STORAGE_EMULATOR_HOST", "gs", "GOOGLE_BASE_URL, STORAGE_EMULATOR_HOST and the network"),
        ("AZURE_STORAGE_ENDPOINT", "az", "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT, "),
    ],
)
def test_an_endpoint_that_does_not_answer_is_named(
    variable: str, scheme: str, advice: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_BASE_URL", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "name")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | {"max_retries": 0})
    monkeypatch.setattr(buckets, "CHECK_RETRIES", 0)
    # Google's emulators are named without a scheme.
    monkeypatch.setenv(variable, "127.0.0.1:9" if scheme == "gs" else "http://127.0.0.1:9")
    for verb in verbs(Location.of(f"{scheme}://unreachable/runs")):
        one_line(verb, f"127.0.0.1:9.*check {advice}")


def test_missing_credentials_are_said(s3_served: Served, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR", raising=False)
    # Where a machine of Amazon's asks for its own.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    one_line((Location.of("s3://without-credentials") / "a").exists, "no credentials were found; set AWS_ACCESS_KEY_ID")
    for verb in verbs(Location.of("az://without-account/a")):
        one_line(verb, "az://without-account/a.*: no credentials were found; set AZURE_STORAGE_ACCOUNT_NAME")
    for name in ("GOOGLE_BEARER_TOKEN", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/no/such.json")
    for verb in verbs(Location.of("gs://without-key/a")):
        one_line(verb, r"gs://without-key/a.*/no/such\.json.*check GOOGLE_")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", r"the store refuses these credentials \(403 AccessDenied\); check {}"),
        (401, "NoAuthentication", r"the store refuses these credentials \(401 NoAuthentication\); check {}"),
        (403, "QuotaExceeded", r"the store is full \(403 QuotaExceeded\); free space"),
        (507, "XMinioStorageFull", r"the store is full \(507 XMinioStorageFull\); free space"),
        (503, "SlowDown", r"asks to slow down after 2 retries too \(503 SlowDown\); use fewer workers"),
        (503, "ServerBusy", r"asks to slow down after 2 retries too \(503 ServerBusy\)"),
        (429, "TooManyRequests", r"asks to slow down after 2 retries too \(429 TooManyRequests\)"),
        (409, "OperationAborted", r"does not do its work \(.*409 Conflict.*\); check"),
    ],
)
def test_what_a_store_refuses_is_said(
    status: int, code: str, said: str, any_bucket: Location, faults: Faults, quick: None
) -> None:
    file = any_bucket / "runs" / "a"
    tries = 1 + (QUICK["max_retries"] if status >= 500 or status == 429 else 0)
    with faults.refusing(99, status, code, "PUT POST") as asked:
        for number, verb in enumerate((lambda: file.put(b"1"), lambda: write(file)), start=1):
            one_line(verb, f"^{file}: .*{said.format(CHECKED[str(file)[:2]])}")
            assert len(asked) == number * tries
        if status != 409:
            one_line(lambda: file.create(b"1"), f"^{file}: .*{said.format(CHECKED[str(file)[:2]])}")
    assert not file.exists()
    file.put(b"data")
    with faults.refusing(99, status, code, "GET"):
        one_line(file.read_bytes, f"^{file}: .*{said.format(CHECKED[str(file)[:2]])}")
        one_line(any_bucket.names, f"^{any_bucket}: .*{said.format(CHECKED[str(file)[:2]])}")
    assert file.read_bytes() == b"data"


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (503, "SlowDown"), (500, "InternalError")])
def test_what_a_store_refuses_for_a_while_is_tried_again(
    status: int, code: str, any_bucket: Location, faults: Faults, quick: None
) -> None:
    file = any_bucket / "a"

    def tried(function: Callable[[], object]) -> object:
        start = time.monotonic()
        with faults.refusing(QUICK["max_retries"], status, code, "GET PUT POST") as asked:
            answer = function()
        assert len(asked) == QUICK["max_retries"] + 1, asked
        # No wait is shorter than the first.
        assert time.monotonic() - start > QUICK["max_retries"] * 0.03
        return answer

    tried(lambda: file.put(b"data"))
    assert tried(file.read_bytes) == b"data"
    assert tried(lambda: (any_bucket / "b").create(b"1"))
    assert not tried(lambda: (any_bucket / "b").create(b"2"))
    assert (any_bucket / "b").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("any_bucket", "status", "code"),
    [("s3", 403, "AccessDenied"), ("gs", 503, "SlowDown"), ("az", 507, "StorageFull")],
    indirect=["any_bucket"],
)
def test_a_run_that_a_store_refuses_goes_on_when_it_does_not(
    any_bucket: Location, status: int, code: str, faults: Faults, quick: None, tmp_path: Path
) -> None:
    write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(3), (8, 10, 12), 256))
    settings = [f"affinities={tmp_path}/affinities.zarr", "block_shape=[8, 5, 6]", "cluster=in-process:2"]
    run, plain = any_bucket / "run", tmp_path / "plain"
    kind = StorageFullError if status == 507 else RunFailedError
    # Shards of volumes.
    with faults.refusing(999, status, code, "PUT", "/c/"), pytest.raises(kind, match=f"{run}/.*{code}") as caught:
        neuroshed.run("stitch", [*settings, f"output={run}", "failures.attempts=1"])
    assert "\n" not in str(caught.value)
    assert neuroshed.resume(run)["status"] == "done"
    neuroshed.run("stitch", [*settings, f"output={plain}"])
    assert contents(run) == contents(plain)


def test_a_signature_in_a_url_is_not_repeated(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's shared access signatures are a part of each URL."""
    for name in ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2022-11-02&sp=rw&sig=a-secret-of-tests")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    for verb in verbs(Location.of("az://signed/runs")):
        assert "a-secret-of-tests" not in one_line(verb, "check AZURE_STORAGE_ACCOUNT_NAME")


def test_each_bucket_has_one_client(s3_served: Served, gs_served: Served) -> None:
    one = Bucket("s3", "one")
    assert buckets.client(one) is buckets.client(Bucket("s3", "one"))
    assert buckets.client(one) is not buckets.client(Bucket("s3", "other"))
    assert buckets.client(one) is not buckets.client(Bucket("gs", "one"))

"""Settings of the whole suite."""

from __future__ import annotations

import base64
import os
import signal
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from neuroshed.storage.locations import Location
from tests.servers import Azure, Faults, Google, Served, azurite, serving

# Tests are never timed (the first call of a kernel compiles it), and leave no files behind.
settings.register_profile("neuroshed", deadline=None, database=None)
settings.load_profile("neuroshed")

# What a shell without job control starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever libraries and killed processes leave in the folder of temporary files goes with pytest's own."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_served() -> Iterator[Served]:
    """An S3 of this test process, which is where `s3://` leads while it runs."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    def create(address: str, name: str) -> None:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT")):
            pass

    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
        "AWS_REGION": "us-east-1",
    }
    with (
        serving(DomainDispatcherApplication(create_backend_app), create) as served,
        environment({**settings, "AWS_ENDPOINT_URL": served.address}),
    ):
        yield served


@pytest.fixture(scope="session")
def s3_server(s3_served: Served) -> str:
    """Its address."""
    return s3_served.address


@pytest.fixture(scope="session")
def gs_served() -> Iterator[Served]:
    """A Google Cloud Storage of this test process, which is where `gs://` leads while it runs."""
    google = Google("a-secret-of-tests")
    with (
        serving(google, google.create) as served,
        environment({"GOOGLE_BASE_URL": served.address, "GOOGLE_BEARER_TOKEN": google.credentials}),
    ):
        yield served


@pytest.fixture(scope="session")
def az_served() -> Iterator[Served]:
    """An Azure Blob Storage of this test process, which is where `az://` leads while it runs.

    It is Microsoft's own emulator, where the variable AZURITE has the path of its program `azurite-blob`.
    """
    program = os.environ.get("AZURITE")
    if program:
        with azurite(program) as (served, settings), environment(settings):
            yield served
        return
    azure = Azure("account")
    settings = {
        "AZURE_STORAGE_ACCOUNT_NAME": azure.credentials,
        "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(b"a-secret-of-tests").decode(),
    }
    with (
        serving(azure, azure.create) as served,
        environment({**settings, "AZURE_STORAGE_ENDPOINT": served.address}),
    ):
        yield served


STORES = ["s3", "gs", "az"]


def new_bucket(scheme: str, request: pytest.FixtureRequest) -> Location:
    served: Served = request.getfixturevalue(f"{scheme}_served")
    name = f"test-{uuid.uuid4().hex}"
    served.create(name)
    return Location.of(f"{scheme}://{name}")


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Location:
    """A new bucket of S3."""
    return new_bucket("s3", request)


@pytest.fixture(params=STORES)
def any_bucket(request: pytest.FixtureRequest) -> Location:
    """A new bucket of each kind of store."""
    return new_bucket(request.param, request)


@pytest.fixture
def faults(any_bucket: Location, request: pytest.FixtureRequest) -> Faults:
    """What the store of `any_bucket` is told to refuse."""
    scheme = str(any_bucket)[:2]
    if scheme == "az" and "AZURITE" in os.environ:
        pytest.skip("Azurite refuses nothing")
    served: Served = request.getfixturevalue(f"{scheme}_served")
    return served.faults


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on disk, and one in a bucket."""
    return Location.of(tmp_path) if request.param == "disk" else new_bucket("s3", request) / "a folder" / "of runs"


@pytest.fixture(params=["disk", *STORES])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on disk, and one in a bucket of each kind of store."""
    if request.param == "disk":
        return Location.of(tmp_path)
    return new_bucket(request.param, request) / "a folder" / "of runs"

"""Settings of the whole suite."""

from __future__ import annotations

import signal
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from neuroshed.storage.locations import Location

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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 of this test process, which is where `s3://` leads while it runs."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *args: object) -> None:
            """Nothing."""

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(s3_server: str) -> Location:
    """A new bucket."""
    name = f"test-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{s3_server}/{name}", method="PUT")
    with urllib.request.urlopen(request):
        return Location.of(f"s3://{name}")


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on disk, and one in a bucket."""
    if request.param == "disk":
        return Location.of(tmp_path)
    found: Location = request.getfixturevalue("bucket")
    return found / "a folder" / "of runs"

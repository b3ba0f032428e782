"""Run folders on disk and in an object store, machines other than this one, a web server."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from neuroshed.storage import holders
from neuroshed.storage.locations import Location
from tests.storage.objects import Store

Client = Callable[[], Location]
Machine = Callable[[str], None]


@pytest.fixture(params=["disk", "memory"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    """The same run folder, for one more client at each call."""
    if request.param == "disk":
        return lambda: Location.of(tmp_path)
    store = Store()
    return lambda: store.client() / "run"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """From now on the calling thread is on another machine, as far as leases can tell."""
    here = threading.local()
    real = holders._machine()
    monkeypatch.setattr(holders, "_machine", lambda: getattr(here, "machine", real))

    def be(name: str) -> None:
        here.machine = (name, f"boot of {name}", "pid:[1]")

    return be


class Handler(SimpleHTTPRequestHandler):
    """A file server that answers requests for ranges, as real ones do."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        path = Path(self.translate_path(self.path))
        if "secret" in self.path:
            self.send_error(403)
        elif "Range" in self.headers and path.is_file():
            self._part(path.read_bytes())
        elif path.is_dir():
            self.send_error(404)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if "secret" in self.path:
            self.send_error(403)
        elif Path(self.translate_path(self.path)).is_dir():
            self.send_error(404)
        else:
            super().do_HEAD()

    def _part(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"])
        assert found
        first = int(found[1]) if found[1] else len(data) - int(found[2])
        last = min(int(found[2]), len(data) - 1) if found[1] and found[2] else len(data) - 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Last-Modified", self.date_time_string(0))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    handler = type("Served", (Handler,), {"asked": asked})
    folder = tmp_path / "www"
    folder.mkdir()
    served = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder)))
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
    thread.join()

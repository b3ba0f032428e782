"""What Neuroglancer makes of volumes: `in_neuroglancer.py CHROMIUM VOLUMES REQUEST FOLDER`.

Its client runs in a Chromium without a window and reads the folder VOLUMES from a server of its own on loopback, as
it would read a bucket. REQUEST, as JSON, names pictures: their layers, and what is seen of them. FOLDER gets a PNG of
each, result.json, and in voxels.npz the voxels of the finest level of their layers, as the client decoded them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compressed_segmentation
import neuroglancer
import numpy as np
from neuroglancer.static_file_server import StaticFileServer

SECONDS = 60
"""That any single answer may take."""
SOFTWARE_GL = ("--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
QUIET = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # small in containers
    "--enable-logging=stderr",
)


class Viewer(neuroglancer.Viewer):
    """Gives chunks as bytes: those of segmentations are compressed, for which the original is not prepared."""

    def _handle_volume_chunk_reply(self, request: str, told: dict[str, Any], data: bytes) -> None:
        def answered(state: Any) -> None:
            state.volume_requests = [other for other in state.volume_requests if other.id != request]

        self.config_state.retry_txn(answered, lock=True)
        promise = self._volume_chunk_promises.pop(request)
        if "error" in told:
            promise.set_exception(ValueError(told["error"]))
        else:
            promise.set_result((told, data))

    def picture(self, size: list[int]) -> bytes:
        """As soon as all is loaded that is to be seen."""
        found: Future[bytes] = Future()
        with self.config_state.txn() as state:
            state.viewer_size, state.show_ui_controls, state.show_panel_borders = size, False, False
        self.async_screenshot(lambda reply: found.set_result(reply.screenshot.image))
        return found.result(SECONDS)

    def voxels(self, layer: str, packed: bool) -> tuple[dict[str, Any], np.ndarray]:
        """Where the finest level of a layer lies, and its voxels, axes as named; `packed` is stored so, in cubes."""
        info = self.volume_info(layer).result(SECONDS)
        shape = [int(stop - start) for start, stop in zip(info.lower_bound, info.upper_bound, strict=True)]
        found = np.zeros(shape, info.data_type)
        counts = [math.ceil(side / chunk) for side, chunk in zip(shape, info.chunk_shape, strict=True)]
        chunks = {place: self._volume_chunk(layer, info, place) for place in itertools.product(*map(range, counts))}
        nm = [float(scale) * 1e9 for scale in info.dimensions.scales]
        for place, promise in chunks.items():
            told, data = promise.result(SECONDS)
            start = [a * int(b) for a, b in zip(place, info.chunk_shape, strict=True)]
            # Sides are told with the fastest axis first; order names the axes, the slowest first.
            block = [8, 8, 8] if packed else repacked([nm[axis] for axis in reversed(told["order"])])
            chunk = decoded(data, told, block).transpose(np.argsort(told["order"]))
            box = tuple(slice(a, min(a + b, side)) for a, b, side in zip(start, chunk.shape, shape, strict=True))
            found[box] = chunk[tuple(slice(0, b.stop - b.start) for b in box)]
        start = [int(side) for side in info.lower_bound]
        return {"names": list(info.dimensions.names), "nm": nm, "start": start}, found


def decoded(data: bytes, told: dict[str, Any], block: list[int]) -> np.ndarray:
    """A chunk, C-contiguous."""
    dtype, sides = np.dtype(told["dtype"]), told["chunkDataSize"]
    if told["isFillValue"]:
        return np.full(sides[::-1], np.frombuffer(data, dtype)[0])
    if dtype.itemsize < 4:
        return np.frombuffer(data, dtype).reshape(sides[::-1])
    return compressed_segmentation.decompress(data, (*sides, 1), dtype, block, order="F")[..., 0].T


def repacked(nm: list[float]) -> list[int]:
    """Sides of the blocks of 512 voxels, nearly cubes, in which the client itself packs labels, for sides of a voxel.

    >>> repacked([4.0, 8.0, 40.0])
    [32, 8, 2]
    """
    sides = [1] * len(nm)
    while math.prod(sides) < 512:
        sides[min(range(len(nm)), key=lambda axis: sides[axis] * nm[axis])] *= 2
    return sides


@contextmanager
def chromium(program: str, address: str, folder: Path) -> Iterator[None]:
    """At an address, with all that it keeps in a folder. Whoever runs this script ends its process group, in which
    the browser's helpers are too.
    """
    # Root cannot have the sandbox.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [program, *SOFTWARE_GL, *QUIET, *sandbox, f"--user-data-dir={folder / 'profile'}", address]
    with (folder / "chromium.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.kill()


def main(program: str, volumes: str, request: dict[str, Any], folder: Path) -> None:
    """All pictures and layers, one after the other in one browser."""
    neuroglancer.set_server_bind_address("127.0.0.1")
    server = StaticFileServer(volumes, bind_address="127.0.0.1", daemon=True)
    viewer = Viewer()
    voxels: dict[str, np.ndarray] = {}
    places: dict[str, dict[str, Any]] = {}
    with chromium(program, viewer.get_viewer_url(), folder):
        for name, wanted in request.items():
            state = json.loads(json.dumps(wanted["state"]).replace("SERVER", server.url))
            viewer.set_state(neuroglancer.ViewerState(state))
            (folder / f"{name}.png").write_bytes(viewer.picture(wanted["size"]))
            for layer in state["layers"]:
                key = f"{name}/{layer['name']}"
                places[key], voxels[key] = viewer.voxels(layer["name"], layer["source"].startswith("precomputed"))
    (folder / "result.json").write_text(json.dumps(places))
    np.savez(folder / "voxels.npz", **voxels)
    server.stop()
    neuroglancer.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_bytes()), Path(sys.argv[4]))

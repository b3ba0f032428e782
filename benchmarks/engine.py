"""What the engine itself costs: empty blocks through the shipped coordinator and journal, beside plain Dask graphs.

    python benchmarks/engine.py                      # 100^3 blocks x 3 stages that need their neighbours, 2 workers
    python benchmarks/engine.py --side 30            # a minute

The coordinator is killed on the way and started again. Printed: blocks a second, its memory (the scheduler of a local
cluster lives in the same process) and how that grows, bytes of journal, seconds until a restart sends jobs again, and
what 100 million blocks would take by these figures. `--real` segments the volume of `stitch.py` instead, and says how
much of the workers' time was spent inside stages.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
STAGES = 3
PAPER = 100_000_000
KILLED_AT = 0.4
"""Of all blocks."""


def coordinate(folder: Path, side: int, workers: int, out: Connection) -> None:
    """A coordinator's process: says when it sends jobs, and every second how far it is and what it holds."""
    import dask.utils

    from empty import Empty
    from neuroshed.engine.attempts import FailureOptions
    from neuroshed.engine.config import ClusterConfig
    from neuroshed.engine.coordinator import Options, execute, ordered
    from neuroshed.storage.journal import Journal
    from neuroshed.storage.locations import Location

    # Dask remembers the last 100,000 names of tasks, some 1 KB each. Full from the start, what else grows can be seen.
    for number in range(100_000):
        dask.utils.key_split(("benchmark", f"{number:012d}", number))
    begin, process = time.perf_counter(), psutil.Process()
    stage: Empty | None = None
    for number in range(STAGES):
        stage = Empty(run_folder=folder, number=number, counts=(side, side, side), before=stage)
    assert stage is not None

    def say(progress: Any) -> None:
        done = sum(count.done for count in progress.stages.values())
        out.send((time.perf_counter() - begin, done, process.memory_info().rss, size_of(folder / "journal")))

    def told(books: Any, connection: Any, found: Any) -> None:
        say(books.progress)

    preload = {"distributed.worker.preload": [str(HERE / "empty.py")]}
    cluster = ClusterConfig(kind="local", workers=workers)
    with dask.config.set(preload), Journal(Location.of(folder)) as journal:
        failures = FailureOptions(on_failure="stop")
        say(execute(journal, ordered([stage]), Options(cluster=cluster, failures=failures, tick=told)))


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, some of which may go meanwhile."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def follow(folder: Path, side: int, workers: int, kill_at: int | None) -> list[tuple[float, int, int, int]]:
    """What a coordinator said until its end, or until it was killed with so many blocks done."""
    here, there = multiprocessing.Pipe(duplex=False)
    # Not a daemon: it has workers of its own.
    process = multiprocessing.get_context("spawn").Process(target=coordinate, args=(folder, side, workers, there))
    process.start()
    there.close()
    said: list[tuple[float, int, int, int]] = []
    try:
        while True:
            said.append(here.recv())
            if kill_at is not None and said[-1][1] >= kill_at:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                break
    except EOFError:
        pass
    process.join()
    if kill_at is None and process.exitcode:
        raise SystemExit(f"the coordinator ended with exit code {process.exitcode}")
    return said


def plain_dask(blocks: int, workers: int) -> dict[str, float]:
    """The same chain as one graph of Dask tasks, each needing the one before it."""
    import dask
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="neuroshed-engine-") as folder,
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as one,
        Client(one, set_as_default=False) as client,
    ):
        before = psutil.Process().memory_info().rss
        begin = time.perf_counter()
        futures = client.map(_nothing, range(blocks), key=[("first", n) for n in range(blocks)])
        for name in ("second", "third"):
            futures = client.map(_nothing, futures, key=[(name, n) for n in range(blocks)])
        client.gather(futures)
        seconds = time.perf_counter() - begin
        held = psutil.Process().memory_info().rss - before
    return {"blocks_per_s": STAGES * blocks / seconds, "bytes_per_block": held / (STAGES * blocks)}


def _nothing(value: object) -> None:
    return None


def empty_blocks(side: int, workers: int) -> dict[str, Any]:
    """Blocks a second, memory and journal of a run that is killed once, and what a restart takes."""
    total = STAGES * side**3
    folder = Path(tempfile.mkdtemp(prefix="neuroshed-engine-"))
    try:
        first = follow(folder, side, workers, int(KILLED_AT * total))
        second = follow(folder, side, workers, None)
        left = size_of(folder / "journal")
    finally:
        shutil.rmtree(folder)
    if second[-1][1] != total:
        raise SystemExit(f"{second[-1][1]} of {total} blocks are done")
    times, done, memory, journal = (np.array(column, float) for column in zip(*second, strict=True))
    # The first tick is the moment at which workers are there and jobs go out.
    half = times.size // 2
    slope = np.polyfit(done[half:], memory[half:], 1)[0] if times.size - half > 2 else float("nan")
    return {
        "blocks": total,
        "blocks_per_s": (done[-1] - done[0]) / (times[-1] - times[0]),
        "before_kill_blocks_per_s": first[-1][1] / max(first[-1][0] - first[0][0], 1e-9),
        "ready_again_s": times[0],
        "restored": int(done[0]),
        "peak_bytes": max(memory.max(), max(row[2] for row in first)),
        "start_bytes": memory[0],
        "bytes_per_block_slope": slope,
        "journal_bytes": max(journal.max(), max(row[3] for row in first)),
        "journal_bytes_left": left,
    }


def on_paper(found: dict[str, Any]) -> list[str]:
    """100 million blocks in three stages by the measured constants."""
    blocks = STAGES * PAPER
    return [
        f"100 million blocks x {STAGES} on paper: {blocks / found['blocks_per_s'] / 3600:.0f} h of coordinator, "
        f"{(found['start_bytes'] + 3 * blocks) / 1e9:.1f} GB (3 bytes a block: state, needs, journal), "
        f"journal at most {found['journal_bytes'] / found['blocks'] * blocks / 1e9:.1f} GB if it were never compacted"
    ]


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=100, help="blocks along each side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer-blocks", type=int, default=10_000, help="of each stage, for plain Dask")
    parser.add_argument("--real", action="store_true", help="the share of time inside stages, on a volume")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), default=(512, 1024, 1024))
    parser.add_argument("--block", type=int, nargs=3, metavar=("Z", "Y", "X"), default=(256, 256, 256))
    parser.add_argument("--data", type=Path, help="folder with real labels; without it shapes are synthetic")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = real_blocks(options) if options.real else engine_alone(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def real_blocks(options: argparse.Namespace) -> Any:
    """Print how much of the workers' time was spent inside stages."""
    from occupancy import occupancy

    found = occupancy([*options.shape], [*options.block], [1, options.workers], options.data)
    for row in found:
        print(
            f"{row['workers']} workers, {row['blocks']} blocks of all steps in {row['wall_s']:.1f} s: "
            f"{100 * row['inside']:.1f} % of their time inside stages"
        )
    return found


def engine_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Print what empty blocks cost."""
    peer = plain_dask(options.peer_blocks, options.workers)
    found = empty_blocks(options.side, options.workers)
    ratio = found["blocks_per_s"] / peer["blocks_per_s"]
    print(f"{found['blocks']:,} empty blocks in {STAGES} stages that need their neighbours, {options.workers} workers")
    print(f"  {found['blocks_per_s']:,.0f} blocks/s ({found['before_kill_blocks_per_s']:,.0f} before the kill)")
    print(f"  plain Dask graph of {STAGES * options.peer_blocks:,} tasks: {peer['blocks_per_s']:,.0f}/s: {ratio:.1f} x")
    print(
        f"  coordinator and scheduler at most {found['peak_bytes'] / 1e6:,.0f} MB, "
        f"{found['bytes_per_block_slope']:.1f} bytes a block more in the second half "
        f"(plain Dask: {peer['bytes_per_block']:,.0f} a task held)"
    )
    print(
        f"  killed and started again: {found['restored']:,} blocks restored, jobs go out after "
        f"{found['ready_again_s']:.1f} s"
    )
    print(
        f"  journal at most {found['journal_bytes'] / 1e6:.1f} MB, "
        f"{found['journal_bytes'] / found['blocks']:.1f} bytes a block; "
        f"{found['journal_bytes_left'] / 1e3:.1f} KB when all was done"
    )
    print("\n".join(on_paper(found)))
    return found | {"peer": peer}


if __name__ == "__main__":
    main()

from __future__ import annotations

import random

from neuroshed.engine.dispatch import WAITING_PER_THREAD, Demand, Windows, Worker

SMALL, LARGE, GPU = Demand("cpu", 10), Demand("cpu", 70), Demand("gpu", 10)


def worker(name: str, **values: object) -> Worker:
    fields = {"host": "here", "threads": 1, "memory_bytes": 100} | values
    return Worker(address=name, **fields)  # type: ignore[arg-type]


def fill(windows: Windows, demand: Demand, first: int = 0) -> dict[int, str]:
    """Give out jobs until nothing has room."""
    sent = {}
    while (address := windows.place(demand)) is not None:
        job = first + len(sent)
        windows.add(job, address, demand)
        sent[job] = address
    return sent


def test_each_thread_has_a_job_and_one_that_waits_and_all_workers_get_their_share() -> None:
    windows = Windows()
    windows.update([worker("a"), worker("b", threads=3)])
    sent = fill(windows, SMALL)
    assert len(sent) == 4 * (1 + WAITING_PER_THREAD)
    assert list(sent.values()).count("a") == 2
    by_worker = {name: [job for job, address in sent.items() if address == name] for name in "ab"}
    assert [len(jobs) for jobs in by_worker.values()] == [2, 6]
    # Workers take jobs in the order in which they were sent.
    assert {job for job in sent if windows.at_work(job)} == {by_worker["a"][0], *by_worker["b"][:3]}
    windows.remove(0)
    assert windows.place(SMALL) == sent[0]


def test_gpu_jobs_go_to_gpus_and_others_elsewhere() -> None:
    windows = Windows()
    windows.update([worker("gpu", gpus=1), worker("cpu")])
    assert windows.place(GPU) == "gpu"
    assert windows.place(SMALL) == "cpu"
    assert set(fill(windows, GPU).values()) == {"gpu"}
    assert windows.place(GPU) is None
    assert windows.place(SMALL) == "cpu"


def test_where_nobody_has_a_gpu_or_everybody_has_any_worker_will_do() -> None:
    windows = Windows()
    windows.update([worker("a")])
    assert windows.place(GPU) == "a"
    windows.update([worker("a", gpus=1)])
    assert windows.place(SMALL) == "a"


def test_jobs_at_work_never_take_more_than_a_shared_memory() -> None:
    windows = Windows()
    names = ["a", "b", "c"]
    windows.update([worker(name, memory_group="shared") for name in names])
    rng = random.Random(1)
    alive: dict[int, tuple[str, Demand]] = {}
    largest = 0
    for job in range(2000):
        demand = rng.choice([SMALL, LARGE, Demand("cpu", 45)])
        address = windows.place(demand)
        if address is not None:
            windows.add(job, address, demand)
            alive[job] = address, demand
        elif alive:
            gone = rng.choice(sorted(alive))
            windows.remove(gone)
            del alive[gone]
        # Whichever of its jobs each worker is at.
        use = sum(max((d.memory_bytes for a, d in alive.values() if a == name), default=0) for name in names)
        assert use <= 100
        largest = max(largest, use)
    assert largest > 80


def test_a_job_that_fits_no_worker_is_known() -> None:
    windows = Windows()
    windows.update([worker("a"), worker("b", memory_bytes=50)])
    assert windows.fits_somewhere(LARGE)
    assert windows.place(LARGE) == "a"
    assert not windows.fits_somewhere(Demand("cpu", 101))
    assert windows.place(Demand("cpu", 101)) is None
    windows.update([worker("a", memory_bytes=0)])
    assert windows.place(Demand("cpu", 101)) == "a"


def test_workers_that_go_take_their_jobs_and_those_that_stay_keep_theirs() -> None:
    windows = Windows()
    windows.update([worker("a"), worker("b")])
    sent = fill(windows, SMALL)
    assert windows.missing({"b", "c"}) == ["a"]
    windows.update([worker("b"), worker("c")])
    first, second = (job for job, name in sent.items() if name == "a")
    assert windows.leave("a") == [first, second]
    assert windows.leave("a") == []
    assert windows.threads == 2
    assert set(fill(windows, SMALL, first=100).values()) == {"c"}
    windows.remove(first)


def test_a_job_that_must_be_alone_gets_an_empty_worker_and_no_company() -> None:
    windows = Windows()
    windows.update([worker("a", threads=2), worker("b")])
    windows.add(1, "a", SMALL)
    assert windows.place(SMALL, alone=True) == "b"
    windows.add(2, "b", SMALL, alone=True)
    assert set(fill(windows, SMALL, first=10).values()) == {"a"}
    assert windows.place(SMALL, alone=True) is None
    windows.remove(2)
    assert windows.place(SMALL) == "b"

"""What is ready, kept up to date event by event, equals a scan of everything with the rule as it is written."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from neuroshed.engine.readiness import Readiness, Task
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Need, Step
from neuroshed.stages.octree import climb, descend

Steps = list[tuple[str, Step]]
SEEDS = range(40)


def random_steps(rng: random.Random) -> Steps:
    """Flat stages with random halos, and trees up and down, on grids of one volume with different blocks."""
    start = tuple(rng.randrange(3) for _ in range(3))
    box = Box(start, tuple(a + rng.randint(1, 6) for a in start))

    def grid() -> Grid:
        return Grid(box, tuple(rng.randint(1, 4) for _ in range(3)))

    def halo() -> Vec:
        return tuple(rng.choice([0, 0, 1, 2]) for _ in range(3))

    steps: Steps = [("s0", Step("", grid()))]
    for number in range(1, rng.randint(2, 4)):
        name = f"s{number}"
        upstream = rng.sample(steps, rng.randint(0, min(len(steps), 2)))
        wanted = tuple(Need(fingerprint, step.name, halo(), halo()) for fingerprint, step in upstream)
        if rng.random() < 0.5:
            steps.append((name, Step("", grid(), wanted)))
            continue
        levels = grid().octree()
        steps += [(name, step) for step in climb(name, levels, wanted)]
        if rng.random() < 0.7:
            paint = Step("paint", levels[0], (Need(name, "down0", high=(1, 1, 1)), *wanted))
            steps += [(name, step) for step in (*descend(name, levels, name), paint)]
    return steps


def blocks(steps: Steps) -> dict[Task, list[Task]]:
    """Each block with those that it reads from, found by comparing it with every other."""
    grids = {(fingerprint, step.name): step.grid for fingerprint, step in steps}
    out = {}
    for fingerprint, step in steps:
        for index in step.grid:
            box = step.grid.block_box(index)
            reads = []
            for need in step.needs:
                upstream = grids[need.fingerprint, need.step]
                seen = box.grow(need.low, need.high)
                reads += [
                    Task(need.fingerprint, need.step, other)
                    for other in upstream
                    if not upstream.block_box(other).intersect(seen).empty
                ]
            out[Task(fingerprint, step.name, index)] = reads
    return out


def play(
    readiness: Readiness,
    rng: random.Random,
    fails: Callable[[Task], bool] = lambda task: False,
    check: Callable[[set[Task], set[Task]], None] = lambda ready, ended: None,
) -> list[Task]:
    """Take and end blocks in random order until nothing is left; returns those done, in order."""
    done: list[Task] = []
    ended: set[Task] = set()
    taken: list[Task] = []
    while True:
        new = list(readiness.take(1 << 30))
        assert not ({*new} & ({*taken} | ended)), "ready twice"
        assert len({*new}) == len(new)
        taken += new
        check({*taken}, {*done})
        if not taken:
            return done
        task = taken.pop(rng.randrange(len(taken)))
        ended.add(task)
        if fails(task):
            readiness.fail(task)
        else:
            readiness.finish(task)
            done.append(task)


@pytest.mark.parametrize("seed", SEEDS)
def test_ready_is_what_a_scan_of_everything_finds(seed: int) -> None:
    rng = random.Random(seed)
    steps = random_steps(rng)
    reads = blocks(steps)
    readiness = Readiness(steps)
    readiness.start()

    def check(ready: set[Task], done: set[Task]) -> None:
        assert ready == {task for task, upstream in reads.items() if task not in done and done.issuperset(upstream)}

    done = play(readiness, rng, check=check)
    assert sorted(done, key=repr) == sorted(reads, key=repr)
    assert all(count.done == count.total for count in readiness.counts().values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_failed_block_holds_back_what_depends_on_it_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    steps = random_steps(rng)
    reads = blocks(steps)
    bad = {task for task in reads if rng.random() < 0.05}
    readiness = Readiness(steps)
    readiness.start()
    done = play(readiness, rng, fails=bad.__contains__)
    held: set[Task] = set()
    # Steps are listed upstream first, and so are their blocks.
    for task, upstream in reads.items():
        if task in bad or held.intersection(upstream):
            held.add(task)
    assert {*done} == {*reads} - held
    failed = sum(count.failed for count in readiness.counts().values())
    assert failed == len({task for task in bad if not held.intersection(reads[task])})


@pytest.mark.parametrize("seed", SEEDS)
def test_restored_blocks_are_not_run_again_and_the_rest_is(seed: int) -> None:
    rng = random.Random(seed)
    steps = random_steps(rng)
    reads = blocks(steps)
    first = Readiness(steps)
    first.start()
    done = play(first, rng)
    before = done[: rng.randint(0, len(done))]
    again = Readiness(steps)
    for task in before:
        again.restore(task)
    again.start()
    assert {*play(again, rng)} == {*reads} - {*before}


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_blocks_put_back_are_ready_again(seed: int) -> None:
    rng = random.Random(seed)
    steps = random_steps(rng)
    readiness = Readiness(steps)
    readiness.start()
    done = set()
    while readiness.waiting_queue:
        (task,) = readiness.take(1)
        if rng.random() < 0.3:
            readiness.retry(task)
        else:
            readiness.finish(task)
            done.add(task)
    assert done == {*blocks(steps)}


def two_stages() -> Steps:
    grid = Grid(Box((2, 0, 0), (4, 2, 2)), (1, 1, 1))
    return [("a", Step("", grid)), ("b", Step("", grid, (Need("a", ""),)))]


@pytest.mark.parametrize(
    "task",
    [Task("other", "", (2, 0, 0)), Task("a", "up0", (2, 0, 0)), Task("a", "", (0, 0, 0)), Task("a", "", (4, 0, 0))],
)
def test_blocks_of_another_run_are_ignored(task: Task) -> None:
    readiness = Readiness(two_stages())
    readiness.restore(task)
    assert not readiness.knows(task)
    assert all(count.done == 0 for count in readiness.counts().values())


def test_a_forgotten_stage_starts_again_and_the_others_stay() -> None:
    steps = two_stages()
    readiness = Readiness(steps)
    for fingerprint, step in steps:
        for index in step.grid:
            readiness.restore(Task(fingerprint, "", index))
    readiness.forget("a")
    readiness.start()
    assert {task.fingerprint for task in readiness.take(99)} == {"a"}
    assert readiness.counts()["b"].done == 8


def test_what_is_furthest_down_the_flow_comes_first() -> None:
    readiness = Readiness(two_stages())
    readiness.start()
    (first,) = readiness.take(1)
    readiness.finish(first)
    (second,) = readiness.take(1)
    assert second == Task("b", "", first.index)
    assert readiness.counts()["b"].running == 1

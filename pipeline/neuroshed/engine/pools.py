"""Pools of workers: what one worker of each has, and how many of them the work that is there is worth. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.engine.dispatch import Demand

Count = Annotated[int, Field(ge=0)]
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})")
WORTH_SECONDS = 60.0
"""A worker is started for this much work of its own; less is left to those that are there."""
LEAST_WALLTIME = 300


class Host(BaseModel):
    """A machine that is reached by SSH. A plain name stands for the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
    """As ssh takes it: `node1`, `me@node1`, or a Host of ~/.ssh/config."""
    options: tuple[str, ...] = ()
    """More arguments of ssh, such as [-p, "2222", -i, key]."""
    python: str | None = None
    """Python there that has neuroshed. Default: that of the cluster."""
    address: str | None = None
    """Where this host reaches the coordinator, if that differs from the cluster's `host`."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class Job(BaseModel):
    """What a program that runs by itself is given: a job of Slurm, or a worker elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    cores: Annotated[int, Field(ge=1)] = 1
    """Of a worker: blocks that it works on at a time."""
    memory_gb: Annotated[float, Field(gt=0)]
    """Memory in GB; of a worker, what its blocks share."""
    walltime: str | None = None
    """Longest life: HH:MM:SS or D-HH:MM:SS. A worker gets no block that it could not finish, and is replaced. Default:
    what the queue says."""
    partition: str | None = None
    """Of Slurm."""
    account: str | None = None
    """Of Slurm."""
    options: tuple[str, ...] = ()
    """More arguments of sbatch, such as ["--constraint=a100"]."""
    before: str = ""
    """Lines of shell before it starts there, such as `module load cuda`."""

    @model_validator(mode="after")
    def _check_walltime(self) -> Self:
        if self.walltime is not None and self.walltime_seconds < LEAST_WALLTIME:
            raise ValueError(f"walltime {self.walltime!r} must be HH:MM:SS or D-HH:MM:SS, and 5 minutes or more")
        return self

    @property
    def walltime_seconds(self) -> int:
        """`walltime`; 0 if there is none, or it makes no sense."""
        found = _WALLTIME.fullmatch(self.walltime or "")
        if not found:
            return 0
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes."""
        return round(self.memory_gb * 1e9)


class Pool(Job):
    """Workers of one kind. A worker is one Slurm job, one host or one process group."""

    workers: Count | tuple[Count, Count] | None = None
    """How many: a number, or the least and the most, between which they come and go with the work. Default: as many as
    there are hosts or GPUs; else 0 to 4."""
    gpus: Count = 0
    """GPUs of a worker: one process for each, in which its share of the cores is threads."""
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory of each GPU in GB, for the plan to compare with what the network takes. Default: of kind `gpus` what
    nvidia-smi says, else not compared."""
    hosts: tuple[Host, ...] = ()
    """Of ssh: the machines, each of which is one worker."""

    @model_validator(mode="after")
    def _check(self) -> Pool:
        least, most = self.range
        if least > most:
            raise ValueError(f"workers {[least, most]} must be [least, most]")
        if self.gpus > self.cores:
            raise ValueError(f"a worker of {self.gpus} GPUs needs as many cores, it has {self.cores}")
        if self.hosts and most > len(self.hosts):
            raise ValueError(f"{most} workers need as many hosts, there are {len(self.hosts)}")
        return self

    @property
    def range(self) -> tuple[int, int]:
        """The least and the most workers."""
        if self.workers is None:
            return 0, len(self.hosts) or 4
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


@dataclass(slots=True)
class Backlog:
    """What is there to do for the workers of a pool."""

    blocks: int = 0
    """That could be worked on now, or are."""
    seconds: float = 0.0
    """That these take, one after another."""
    shortest: float = 0.0
    """That the quickest of them takes."""
    left: int = 0
    """Blocks that are not done, those included that have to wait for others."""


def pool_for(demand: Demand, pools: Mapping[str, Pool]) -> str | None:
    """The pool whose workers are given what needs so much: of those that suffice the one of the least memory.

    What needs a GPU goes to pools that have some, what needs none to those that have none, as long as one suffices.

    >>> pools = {"cpu": Pool(memory_gb=8), "highmem": Pool(memory_gb=200), "gpu": Pool(memory_gb=64, gpus=1)}
    >>> [pool_for(Demand("cpu", size * 10**9), pools) for size in (2, 100, 300)]
    ['cpu', 'highmem', None]
    >>> pool_for(Demand("gpu", 10**9), pools)
    'gpu'
    """
    enough = {name: pool for name, pool in pools.items() if pool.memory_bytes >= demand.memory_bytes and pool.range[1]}
    fitting = {name: pool for name, pool in enough.items() if bool(pool.gpus) == (demand.resource == "gpu")}
    if not fitting and demand.resource == "gpu" and any(pool.gpus for pool in pools.values()):
        return None
    candidates = fitting or enough
    return min(candidates, key=lambda name: (candidates[name].memory_bytes, name)) if candidates else None


def workers_wanted(pool: Pool, backlog: Backlog) -> int:
    """How many workers of a pool the work is worth, within its range; none once nothing is left for them.

    >>> pool = Pool(memory_gb=8, cores=4, workers=(0, 10))
    >>> [workers_wanted(pool, Backlog(blocks, seconds, left=9)) for blocks, seconds in ((0, 0), (1, 0.1), (100, 9e4))]
    [0, 1, 10]
    >>> workers_wanted(pool, Backlog(100, 480, left=100))
    2
    """
    least, most = pool.range
    if not backlog.left:
        return 0
    by_blocks = math.ceil(backlog.blocks / pool.cores)
    by_seconds = math.ceil(backlog.seconds / pool.cores / WORTH_SECONDS)
    return max(least, min(by_blocks, max(by_seconds, 1), most))


def add_up(parts: Iterable[tuple[str | None, int, float, int]]) -> dict[str, Backlog]:
    """Backlogs by pool of (pool, blocks that could be worked on, seconds of each, blocks left)."""
    found: dict[str, Backlog] = {}
    for pool, blocks, seconds, left in parts:
        if pool is not None:
            backlog = found.setdefault(pool, Backlog())
            if blocks:
                backlog.shortest = min(backlog.shortest, seconds) if backlog.blocks else seconds
            backlog.blocks += blocks
            backlog.seconds += blocks * seconds
            backlog.left += left
    return found

"""`cluster:` of a workflow: where its blocks are worked on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.engine.pools import Job, Pool

Kind = Literal["in-process", "local", "gpus", "ssh", "slurm", "kubernetes", "address"]
STARTED = ("gpus", "ssh", "slurm", "kubernetes")
"""Kinds whose workers are started by the run, pool by pool, as there is work for them."""
SLURM_POOL = Pool(workers=(0, 8), cores=4, memory_gb=16)
"""Of the word `slurm` alone."""


class ClusterConfig(BaseModel):
    """`cluster:` of a workflow. A word stands for the whole: `local`, `local:4`, `in-process`, `gpus`, `slurm`, a
    scheduler address, or a YAML file that holds the section. `processes` is another word for `local`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Kind = "local"
    """`local`: worker processes on this machine; `in-process`: threads of this process; `gpus`: a process for each GPU
    of this machine and others for the rest; `ssh`: hosts that are reached by SSH; `slurm`: jobs of Slurm; `kubernetes`:
    worker groups of the Dask operator; `address`: a running scheduler."""
    workers: int | None = Field(default=None, ge=1)
    """Tasks at a time of `local` and `in-process`; by default one a core."""
    address: str | None = None
    """Scheduler address, such as tls://host:8786. Certificates are taken from Dask's own configuration. Of
    `kubernetes` by default that of the scheduler's service, as pods reach it."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory for all tasks together, in GB, of `local` and `in-process`; by default that of the machine. Workers of an
    `address` say themselves what they have."""
    patience_seconds: float = Field(default=600.0, ge=0)
    """How long to wait for a scheduler or for workers that were lost before the run ends, to be resumed. Workers that
    wait in a queue are waited for without limit."""
    pools: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")], Pool] = Field(default_factory=dict)
    """Of `gpus`, `ssh`, `slurm` and `kubernetes`: kinds of workers, by name. A block goes to the pool of the least
    memory that suffices, with GPUs if it needs one."""
    coordinator: Job | None = None
    """Of `slurm`: the job in which `neuroshed submit` puts the coordinator; when its walltime is over, another goes on.
    Default: 2 cores, 8 GB."""
    host: str | None = None
    """Of `ssh` and `slurm`: the address of this machine at which workers reach it. Default: that of its way out."""
    port: int = Field(default=0, ge=0, le=65535)
    """Of `ssh` and `slurm`: the port at which workers reach this machine. Default: any that is free."""
    python: str = sys.executable
    """Of `ssh` and `slurm`: Python there that has neuroshed. Default: the path of the one that runs here."""
    name: str = Field(default="neuroshed", pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """Of `kubernetes`: the DaskCluster; the worker group of a pool is NAME-POOL."""
    namespace: str | None = None
    """Of `kubernetes`. Default: that of the pod or kubeconfig."""
    folder: Path | None = None
    """Of `slurm`: folder on a file system that all machines share, for scripts, output and keys of workers. Default:
    `workers` in the run folder, which must then be on one."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "://" in value:
            return {"kind": "address", "address": value}
        if value.endswith((".yaml", ".yml")):
            return _section(Path(value))
        kind, _, workers = value.partition(":")
        if kind == "slurm":
            return {"kind": kind, "pools": {"cpu": SLURM_POOL}}
        return {"kind": "local" if kind == "processes" else kind, "workers": workers or None}

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.kind == "address" and self.address is None:
            raise ValueError("kind `address` needs an address, such as tls://host:8786")
        if self.kind not in ("address", "kubernetes") and self.address is not None:
            raise ValueError(f"an address goes with kinds address and kubernetes; kind is {self.kind}")
        if self.kind not in STARTED and self.pools:
            raise ValueError(f"pools go with kinds {', '.join(STARTED)}; kind is {self.kind}")
        if self.kind in ("ssh", "slurm", "kubernetes") and not self.pools:
            raise ValueError(f"kind {self.kind} needs pools, such as pools: {{cpu: {{cores: 8, memory_gb: 32}}}}")
        for name, pool in self.pools.items():
            if self.kind == "ssh" and not pool.hosts:
                raise ValueError(f"pool {name} needs hosts, such as hosts: [node1, node2]")
            if self.kind != "ssh" and pool.hosts:
                raise ValueError(f"pool {name} has hosts, which go with kind ssh")
        return self


def _section(file: Path) -> Any:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cluster file {file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"cluster file {file} must hold keys and values, such as kind: slurm")
    return values

"""Several processes that train one network, one on each GPU, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# The others wait this long for the first process, which validates and writes checkpoints.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """A process's place, `index`, among `count`; the first one leads: it scores, logs and writes."""

    index: int
    count: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether it is the process that scores, logs and writes."""
        return self.index == 0

    def share(self, net: nn.Module) -> nn.Module:
        """The net, whose gradients are from now on the mean over all processes."""
        return DistributedDataParallel(net) if self.count > 1 else net

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, each on its GPU if `device` is cuda; alone without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()

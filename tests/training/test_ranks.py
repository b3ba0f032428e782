"""Two processes under torchrun learn what one learns from the same batches."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from neuroshed.storage.models import load_model
from neuroshed.training.config import TrainingConfig
from neuroshed.training.logs import read_log
from neuroshed.training.loop import train

MakeConfig = Callable[..., TrainingConfig]
CHANGES = {"batch_size": 2, "steps": 6, "warmup_steps": 1, "decay_steps": 2, "average": 0.5, "learning_rate": 1e-4}


def torchrun(config: TrainingConfig, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, "-m", *command, "-m", "neuroshed", "train", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.mark.system
def test_two_processes_learn_what_one_learns(make_config: MakeConfig, tmp_path: Path) -> None:
    alone = make_config(output=str(tmp_path / "alone"), **CHANGES)
    together = make_config(output=str(tmp_path / "together"), **CHANGES)
    train(alone)
    done = torchrun(together, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"best model: {together.output / 'best.json'}\n"
    logged = [event["step"] for event in read_log(together.output / "log.jsonl") if event["event"] == "train"]
    assert logged == [1, 2, 3, 4, 5, 6]
    one, two = (load_model(config.output / "last").net.state_dict() for config in (alone, together))
    first = make_config(output=str(tmp_path / "first"), **CHANGES | {"steps": 1, "warmup_steps": 0, "decay_steps": 0})
    begin = load_model(train(first)).net.state_dict()
    moved, apart = (sum(float((one[name] - other[name]).square().sum()) for name in one) for other in (begin, two))
    assert apart < moved / 10


@pytest.mark.system
def test_a_batch_that_cannot_be_shared_out_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    done = torchrun(make_config(**CHANGES | {"batch_size": 3}), tmp_path)
    assert done.returncode != 0
    assert "batch_size 3 cannot be shared out among 2 processes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_alone_nothing_is_shared(make_config: MakeConfig) -> None:
    assert "WORLD_SIZE" not in os.environ
    assert not torch.distributed.is_initialized()
    train(make_config(steps=1, warmup_steps=0, decay_steps=0))
    assert not torch.distributed.is_initialized()

"""Checkpoints are replaced whole, thinned out, and never run code."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from neuroshed.errors import InputError
from neuroshed.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(net.parameters())
    for _ in range(3):
        optimiser.zero_grad()
        net(torch.rand(4, 2)).sum().backward()
        optimiser.step()
    return net, optimiser


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    net, optimiser = trained(1)
    path = save_checkpoint(tmp_path, 3, net, None, optimiser, 0.5, keep=2)
    drawn = torch.rand(3)
    other_net, other_optimiser = trained(2)
    checkpoint = load_checkpoint(path)
    checkpoint.restore(other_net, None, other_optimiser)
    assert (checkpoint.step, checkpoint.best_score) == (3, 0.5)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(net.weight, other_net.weight)
    moments, other_moments = (o.state_dict()["state"][0]["exp_avg"] for o in (optimiser, other_optimiser))
    assert torch.equal(moments, other_moments)


def test_the_newest_stay(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    net, optimiser = trained(1)
    for step in (5, 90, 100):
        save_checkpoint(tmp_path, step, net, None, optimiser, 0.0, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000090.pt", "step_00000100.pt"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000100.pt"


def test_a_draft_left_by_a_crash_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step_00000007.pt.partial").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("kind", ["cut", "garbage", "code", "missing", "other", "version"])
def test_unusable_checkpoints_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net, optimiser = trained(1)
    path = save_checkpoint(tmp_path, 1, net, None, optimiser, 0.0, keep=1)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "garbage":
        path.write_bytes(b"garbage")
    elif kind == "code":
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    elif kind == "missing":
        path.unlink()
    else:
        torch.save({"format_version": 99} if kind == "version" else {"step": 1}, path)
    with pytest.raises(InputError, match=r"step_00000001\.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not Path("exploded").exists()

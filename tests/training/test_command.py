"""`neuroshed train` by the command line: train, go on, start from a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from neuroshed.cli import main
from neuroshed.training.config import TrainingConfig

MakeConfig = Callable[..., TrainingConfig]


def train(tmp_path: Path, config: TrainingConfig, *options: str) -> Result:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return CliRunner().invoke(main, ["train", str(file), *options])


def test_train_go_on_and_fine_tune(make_config: MakeConfig, tmp_path: Path) -> None:
    first = train(tmp_path, make_config())
    assert first.exit_code == 0, first.output
    best = tmp_path / "out" / "best.json"
    assert first.stdout == f"best model: {best}\n"
    assert "step      12  validation: loss" in first.stderr
    assert {"log.jsonl", "loss.png", "tensorboard", "checkpoints"} <= {path.name for path in best.parent.iterdir()}
    again = train(tmp_path, make_config())
    assert again.exit_code == 0
    assert "step" not in again.stderr
    tuned = train(tmp_path, make_config(output=str(tmp_path / "tuned"), steps=6), "--from", str(best))
    assert tuned.stdout == f"best model: {tmp_path / 'tuned' / 'best.json'}\n"


def test_a_model_of_another_architecture_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    result = train(tmp_path, make_config(), "--from", "fibsem")
    assert result.exit_code == 2
    (told,) = result.stderr.splitlines()
    assert "does not fit the architecture" in told

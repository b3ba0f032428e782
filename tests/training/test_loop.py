"""A training learns, leaves what it promises, and resumed it equals an uninterrupted one bit for bit."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.storage.models import load_model, save_model
from neuroshed.training.checkpoints import load_checkpoint, newest_checkpoint
from neuroshed.training.config import TrainingConfig
from neuroshed.training.logs import read_log
from neuroshed.training.loop import train

MakeConfig = Callable[..., TrainingConfig]


class Stop(Exception):
    """Stands for a crash."""


def at_step(step: int, act: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    def progress(event: dict[str, Any]) -> None:
        if event["event"] == "train" and event["step"] == step:
            act()

    return progress


def crash() -> None:
    raise Stop


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_model(folder / name).net.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in event.items() if key != "seconds"} for event in read_log(folder / "log.jsonl")
    ]


def test_a_short_training_learns_cells_it_has_not_seen(make_config: MakeConfig) -> None:
    config = make_config(
        augment={"flip": []},  # the walls are on the low side of each contact
        steps=120,
        warmup_steps=5,
        decay_steps=60,
        learning_rate=0.01,
        validate_every=20,
        log_every=20,
    )
    seen: list[dict[str, Any]] = []
    best = train(config, progress=seen.append)
    scores = [event for event in seen if event["event"] == "validation"]
    assert scores[-1]["boundary_precision"] > 0.8 > scores[0]["boundary_precision"]
    assert scores[-1]["loss"] < 0.3
    card = load_model(best).card
    assert card.voxel_size == (40.0, 4.0, 4.0)
    assert card.training["held_out"]["boundary_precision"] == pytest.approx(
        max(event["boundary_precision"] for event in scores), abs=1e-4
    )
    assert read_log(config.output / "log.jsonl") == seen
    assert (config.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((config.output / "tensorboard").glob("events.*"))
    assert len(list((config.output / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_resumed_training_equals_an_uninterrupted_one(
    make_config: MakeConfig, tmp_path: Path, average: float
) -> None:
    changes = {"batch_size": 2, "average": average, "augment": {"elastic": 0.5}}
    whole, broken = (make_config(output=str(tmp_path / name), **changes) for name in ("whole", "broken"))
    train(whole)
    with pytest.raises(Stop):
        train(broken, progress=at_step(7, crash))
    train(broken)
    assert same(weights(whole.output), weights(broken.output))
    assert events(whole.output) == events(broken.output)


def test_averaged_weights_lag_behind_the_weights_themselves(make_config: MakeConfig, tmp_path: Path) -> None:
    plain, averaged = (make_config(output=str(tmp_path / str(share)), average=share) for share in (0.0, 0.999))
    train(plain)
    train(averaged)
    newest = newest_checkpoint(averaged.output / "checkpoints")
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    assert same(checkpoint.weights, weights(plain.output))
    assert same(checkpoint.average, weights(averaged.output))
    assert not same(checkpoint.average, checkpoint.weights)


def test_descriptors_teach_beside_affinities(make_config: MakeConfig) -> None:
    network = {"features": [8], "kernels": [[3, 3, 3]], "pools": [], "out_channels": 13, "norm": "weights"}
    seen: list[dict[str, Any]] = []
    config = make_config(network=network, descriptors={"sigma": [2, 2, 2]}, steps=40, log_every=20, learning_rate=0.01)
    card = load_model(train(config, progress=seen.append)).card
    assert (card.descriptors, card.architecture.out_channels, len(card.offsets)) == (True, 13, 3)
    losses = [event["loss"] for event in seen if event["event"] == "train"]
    assert losses[1] < losses[0]


def test_a_finished_training_is_not_done_again(make_config: MakeConfig) -> None:
    config = make_config()
    first = train(config)
    seen: list[dict[str, Any]] = []
    assert train(config, progress=seen.append) == first
    assert seen == []


def test_steps_changed_on_the_plateau_give_the_training_that_was_asked_for(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    straight = make_config(output=str(tmp_path / "straight"), steps=10)
    train(straight)
    with pytest.raises(Stop):
        train(make_config(steps=40), progress=at_step(5, crash))
    train(make_config(steps=10))
    assert same(weights(straight.output), weights(tmp_path / "out"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_the_step_first(
    make_config: MakeConfig, tmp_path: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    whole, stopped = (make_config(output=str(tmp_path / name)) for name in ("whole", "stopped"))
    with pytest.raises(error):
        train(stopped, progress=at_step(5, lambda: os.kill(os.getpid(), number)))
    newest = newest_checkpoint(stopped.output / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000005.pt"
    assert signal.getsignal(number) is before
    train(whole)
    train(stopped)
    assert same(weights(whole.output), weights(stopped.output))


def test_it_runs_outside_the_main_thread(make_config: MakeConfig) -> None:
    config = make_config(steps=2, warmup_steps=0, decay_steps=0)
    thread = threading.Thread(target=train, args=(config,))
    thread.start()
    thread.join()
    assert (config.output / "best.json").exists()


def test_another_configuration_is_refused_by_its_key(make_config: MakeConfig) -> None:
    with pytest.raises(Stop):
        train(make_config(), progress=at_step(5, crash))
    with pytest.raises(WorkflowError, match=r"another learning_rate \(was 0.001, is 0.002\)"):
        train(make_config(learning_rate=0.002))
    train(make_config(log_every=3, checkpoint_every=5, keep_checkpoints=1))


def test_starting_afresh_in_a_used_folder_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(Stop):
        train(make_config(), progress=at_step(5, crash))
    with pytest.raises(WorkflowError, match="holds a training already"):
        train(make_config(), resume=False)


def test_a_training_that_left_no_checkpoint_may_be_changed(make_config: MakeConfig) -> None:
    with pytest.raises(Stop):
        train(make_config(), progress=at_step(1, crash))
    train(make_config(learning_rate=0.002, steps=6), resume=False)


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_fine_tuning_begins_with_the_given_weights(make_config: MakeConfig, tmp_path: Path, kind: str) -> None:
    config = make_config()
    train(config)
    newest = newest_checkpoint(config.output / "checkpoints")
    source = config.output / "last" if kind == "model" else newest
    # A learning rate of nearly nothing leaves the weights where they began.
    tuned = make_config(output=str(tmp_path / "tuned"), steps=1, warmup_steps=0, decay_steps=0, learning_rate=1e-30)
    train(tuned, start_from=source)
    assert same(weights(config.output), weights(tuned.output))


def test_weights_that_do_not_fit_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(steps=6))
    other = {"features": [8, 24], "kernels": [[3, 3, 3]] * 2, "pools": [[2, 2, 2]]}
    for source in (tmp_path / "out" / "last", tmp_path / "out" / "checkpoints" / "step_00000006.pt"):
        with pytest.raises(InputError, match="does not fit the architecture"):
            train(make_config(output=str(tmp_path / "other"), network=other), start_from=source)


def test_a_loss_that_is_no_number_stops_the_training(make_config: MakeConfig, tmp_path: Path) -> None:
    model = load_model(train(make_config(steps=6)))
    broken = {name: torch.full_like(tensor, 1e30) for name, tensor in model.net.state_dict().items()}
    save_model(tmp_path / "broken", model.card, broken)
    with pytest.raises(RunFailedError, match=r"the loss is nan at step 0 with learning rate .* lower learning_rate"):
        train(make_config(output=str(tmp_path / "other")), start_from=tmp_path / "broken")


def test_without_validation_the_last_model_is_the_best(make_config: MakeConfig) -> None:
    config = make_config(validation=[])
    train(config)
    assert same(weights(config.output, "best"), weights(config.output, "last"))
    assert load_model(config.output / "best").card.training["steps"] == 12


def test_bfloat16_trains(make_config: MakeConfig) -> None:
    config = make_config(precision="bfloat16", steps=6)
    train(config)
    assert all(tensor.dtype == torch.float32 for tensor in weights(config.output).values())


def test_a_line_cut_by_a_crash_is_left_out_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text(json.dumps({"event": "train", "step": 1}) + '\n{"event": "tr')
    assert read_log(path) == [{"event": "train", "step": 1}]

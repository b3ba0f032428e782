"""The command line: help with examples, exit codes, JSON on standard output and nothing else there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

import neuroshed
from neuroshed.cli import main
from neuroshed.storage.volumes import create_volume, open_volume

from .promises.chunks import random_affinities, write_affinities

OTHER_NAMES = {
    "import": "import_volume",
    "model": "check_model",
    "cluster": "cluster_certificates",
    "volume": "volume_info",
}
COMMANDS = sorted(name for name, command in main.commands.items() if not command.hidden)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """What is told of a mistake of the user: one line, without a traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if line.startswith("neuroshed: ")]
    assert len(told) == 1
    assert "Traceback" not in result.stderr
    return told[0]


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    return write_affinities(path, random_affinities(np.random.default_rng(1), (6, 8, 8), 256))


def arguments(affinities: Path, output: Path) -> list[str]:
    settings = [f"affinities={affinities}", f"output={output}", "block_shape=[8,8,8]", "cluster=in-process:1"]
    return ["segment", *(word for text in settings for word in ("--set", text))]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(command: str, flag: str) -> None:
    result = call(command, flag)
    assert result.exit_code == 0
    assert f"Example: neuroshed {'init train && neuroshed ' if command == 'train' else ''}{command}" in result.stdout


def test_every_verb_is_a_documented_function() -> None:
    assert COMMANDS == [
        "cancel",
        "clean",
        "cluster",
        "cut",
        "demo",
        "doctor",
        "evaluate",
        "export",
        "import",
        "init",
        "model",
        "plan",
        "pyramid",
        "resume",
        "retry",
        "run",
        "runs",
        "status",
        "submit",
        "sweep",
        "train",
        "verify",
        "volume",
    ]
    for command in COMMANDS:
        function = getattr(neuroshed, OTHER_NAMES.get(command, command))
        assert callable(function)
        assert function.__doc__
        # A module of the same name would take the function's place once it is imported.
        assert not (Path(neuroshed.__path__[0]) / f"{command}.py").exists()


def test_version_and_help_of_the_whole() -> None:
    assert call("--version").stdout == f"neuroshed, version {neuroshed.__version__}\n"
    assert all(command in call("--help").stdout for command in COMMANDS)


def test_it_runs_as_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "neuroshed", "runs", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: neuroshed runs ")


def test_importing_the_package_is_quick() -> None:
    code = (
        "import sys, neuroshed, neuroshed.cli\n"
        "slow = {'torch', 'dask', 'distributed', 'zarr', 'numba', 'pyarrow'} & {*sys.modules}\n"
        "assert not slow, slow; neuroshed.Box; neuroshed.WorkflowError; assert callable(neuroshed.run)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_runs_no_network_starts_without_torch() -> None:
    code = "import sys, neuroshed.workflow.run, neuroshed.engine.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="'neuroshed' has no attribute 'walk'"):
        _ = neuroshed.walk


def test_a_run_from_start_to_end(affinities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Shipped workflows are found by name from anywhere.
    monkeypatch.chdir(tmp_path)
    given = arguments(affinities, Path("run1"))
    planned = call("plan", *given, "--json")
    assert json.loads(planned.stdout)["voxels"] == 6 * 8 * 8
    assert "agglomerate" in call("plan", *given).stdout
    assert not Path("run1").exists()
    assert "holds no run" in refusal("status", "run1")
    assert "holds no run" in refusal("resume", "run1")

    result = call("run", *given, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["status"] == "done"
    assert list(summary["segmentations"]) == ["0.3", "0.5"]
    volume = open_volume(summary["segmentations"]["0.5"])
    assert (volume.shape, volume.dtype) == ((6, 8, 8), np.uint64)

    told = call("run", *given)
    assert told.exit_code == 0
    assert "done: 0 blocks computed, 6 were done before" in told.stdout
    assert f"segmentation at 0.5: {volume.path}" in told.stdout
    for verb in ("status", "resume"):
        again = call(verb, "run1", "--json")
        assert again.exit_code == 0
        found = json.loads(again.stdout)
        assert found["segmentations"] == summary["segmentations"]
        assert found["restored_blocks"] == 6
    assert "segment" in call("status", "run1").stdout
    assert call("resume", "run1").exit_code == 0

    scores = call("evaluate", volume.path, volume.path, "--json")
    assert scores.exit_code == 0
    assert json.loads(scores.stdout)["voi"] == 0
    assert call("evaluate", volume.path, volume.path, "--box", *(0, 0, 0, 4, 4, 4)).exit_code == 0
    assert "is not inside" in refusal("evaluate", volume.path, volume.path, "--box", *(0, 0, 0, 9, 9, 9))


def test_a_model_named_from_here_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroshed.model.lattice import Lattice
    from neuroshed.model.targets import NEAREST
    from neuroshed.model.unet import Architecture, new_network
    from neuroshed.storage.models import ModelCard, save_model

    image = create_volume(
        tmp_path / "a.zarr", shape=(4, 4, 4), dtype=np.uint8, shard_shape=(4, 4, 4), voxel_size=(1, 1, 1)
    )
    image.write(image.box, np.random.default_rng(0).integers(0, 255, (4, 4, 4), np.uint8))
    architecture = Architecture(features=(4,), kernels=((3, 3, 3),), pools=(), groups=4)
    card = ModelCard(
        architecture=architecture,
        offsets=NEAREST,
        lattice=Lattice((4, 4, 4), (1, 1, 1)),
        normalisation=(0.0, 255.0),
        voxel_size=(1.0, 1.0, 1.0),
    )
    save_model(tmp_path / "net", card, new_network(architecture, 0).state_dict())
    monkeypatch.chdir(tmp_path)
    neuroshed.run("segment", ["image=a.zarr", "output=run1", "model=net", "cluster=in-process:1"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert neuroshed.resume("../run1")["status"] == "done"


def test_init_writes_a_copy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init").stdout == "wrote segment.yaml\n"
    assert call("init", "train", "my.yaml").exit_code == 0
    text = Path("segment.yaml").read_text()
    assert "# a shipped model by name" in text
    assert "segment.yaml exists already; choose another name or remove it" in refusal("init")
    assert "neither a file nor one of segment, stitch, train" in refusal("init", "other")
    assert "cannot be written" in refusal("init", "segment", "missing/folder.yaml")
    assert Path("segment.yaml").read_text() == text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my.yaml", "segment.yaml"]


def test_import_of_floats_in_blocks(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 2, 4 * 4 * 4).reshape(4, 4, 4))
    given = [tmp_path / "a.npy", tmp_path / "a.zarr", "--voxel-size", 1, 1, 1, "--cluster", "in-process:1"]
    assert "--range LOW HIGH" in refusal("import", *given)
    result = call("import", *given, "--range", 0, 1, "--block", 2, 4, 4)
    assert result.exit_code == 0, result.output
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.dtype, volume.shard_shape) == (np.uint8, (2, 4, 4))
    assert volume.read(volume.box).ravel()[[0, 16, 40]].tolist() == [0, 130, 255]


def test_levels_and_exports(tmp_path: Path) -> None:
    data = np.random.default_rng(2).integers(0, 250, (6, 40, 150), np.uint8)
    np.save(tmp_path / "a.npy", data)
    path, here = tmp_path / "a.zarr", ("--cluster", "in-process:1")
    assert call("import", tmp_path / "a.npy", path, "--voxel-size", 8, 8, 8, *here).exit_code == 0
    assert call("pyramid", path, *here).stdout == f"{path} has 2 levels\n"
    assert f"{path} has 2 levels already" in refusal("pyramid", path, *here)
    for form, file in (("precomputed", "16_16_16/0.shard"), ("tiff", "z00005.tif"), ("ome-zarr", "1/zarr.json")):
        target = tmp_path / form
        assert call("export", path, target, "--format", form, *here).stdout == f"wrote {target}\n"
        assert (target / file).is_file()
        assert f"target {target} exists already" in refusal("export", path, target, "--format", form, *here)
    one_file = ("export", path, tmp_path / "a.tif", "--format", "tiff", "--compression", "zlib")
    assert call(*one_file, *here).stdout == f"wrote {tmp_path / 'a.tif'}\n"
    assert (tmp_path / "a.tif").read_bytes().startswith(b"II+")
    assert "is no run" in refusal("export", path, tmp_path / "b", "--threshold", "0.5", *here)
    assert "those of format precomputed" in refusal("export", path, tmp_path / "b", "--voxel-offset", *(1, 2, 3), *here)


def test_import_and_its_mistakes(tmp_path: Path) -> None:
    data = np.arange(6 * 7 * 8, dtype=np.uint16).reshape(6, 7, 8)
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["raw"] = data
    source, target = tmp_path / "stack.h5", tmp_path / "a.zarr"
    given = [source, target, "--voxel-size", 40, 4, 4, "--cluster", "in-process:1"]
    result = call("import", *given, "--dataset", "raw", "--offset", 1, 2, 3)
    assert (result.exit_code, result.stdout) == (0, f"wrote {target}\n")
    volume = open_volume(target)
    np.testing.assert_array_equal(volume.read(volume.box), data)
    assert (volume.voxel_size, volume.offset) == ((40, 4, 4), (1, 2, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "stack.h5"]
    assert "exists already; choose another or remove it" in refusal("import", *given)
    assert "raw" in refusal("import", source, tmp_path / "b.zarr", *given[2:], "--dataset", "volume")
    assert "nowhere" in refusal("import", tmp_path / "nowhere.tif", tmp_path / "b.zarr", *given[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "stack.h5"]


def test_a_truth_of_another_shape(affinities: Path, tmp_path: Path) -> None:
    for name, side in (("seg", 4), ("truth", 5)):
        create_volume(tmp_path / name, shape=(side,) * 3, dtype=np.uint64, shard_shape=(4, 4, 4), voxel_size=(1, 1, 1))
    message = refusal("evaluate", tmp_path / "seg", tmp_path / "truth")
    assert "[4, 4, 4]" in message
    assert "[5, 5, 5]; crop or pad one of them" in message
    assert "needed are integer labels" in refusal("evaluate", affinities, affinities)
    assert "has no label but 0" in refusal("evaluate", tmp_path / "truth", tmp_path / "truth")


@pytest.mark.parametrize("word", ["mesos", "local:x", "in-process:0", "address"])
def test_a_cluster_that_is_none(word: str, tmp_path: Path) -> None:
    result = call("import", "a.h5", tmp_path / "b.zarr", "--voxel-size", 1, 1, 1, "--cluster", word)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert f"got '{word}' (" in told
    assert "needed is local, local:N, in-process" in told
    assert isinstance(result.exception, SystemExit)


def test_a_traceback_only_if_asked() -> None:
    assert "Traceback" not in call("run", "nothing").stderr
    result = call("run", "nothing", "--traceback")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("neuroshed: no workflow nothing")


def test_being_interrupted_is_not_an_error_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroshed import api

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "status", interrupted)
    result = call("status", "run1")
    assert result.exit_code == 130
    assert "what is done is kept" in result.stderr


@pytest.mark.parametrize("name", ["info", "crop", "compare", "check"])
def test_every_command_about_volumes_has_an_example_and_a_function(name: str) -> None:
    assert f"Example: neuroshed volume {name}" in call("volume", name, "--help").stdout
    assert getattr(neuroshed, f"volume_{name}").__doc__


def test_commands_take_no_option_that_is_not_described() -> None:
    groups = [command for command in main.commands.values() if isinstance(command, click.Group)]
    for command in (*main.commands.values(), *(inner for group in groups for inner in group.commands.values())):
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "start_from":
                assert option.help, f"{command.name} {option.name}"


def test_what_is_wrong_in_a_cluster_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("{kind: slurm, pools: {cpu: {cores: 2}}}")
    result = call("doctor", "--cluster", tmp_path / "site.yaml")
    assert result.exit_code == 2
    assert "(pools.cpu.memory_gb: Field required)" in " ".join(result.stderr.split())

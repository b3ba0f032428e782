"""From an image to affinities beside the peers: the same net, patches and overlap over the same volume, in one run.

    python benchmarks/predict.py [--quick] [--model NAME] [--side N] [--device cuda] [--threads N] [--out FILE.json]

Peers are MONAI's `sliding_window_inference`, with several values of `sw_batch_size` (best and default are told), and a
plain torch loop over patches. All begin with a uint8 image in memory and end with uint8 affinities in memory; each is
warmed with one patch, then timed `--rounds` times in turn, and its fastest time counts. On a GPU peers run in float32
and under autocast to bfloat16; we run in bfloat16. The last line is JSON; ratios are peer / neuroshed: above 1 we are
better.

Without `--data FILE.npy` the image is noise: no contender's speed depends on it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import environments
from environments import PeerError
from neuroshed.geometry import Box, add
from neuroshed.model.inference import Predictor
from neuroshed.model.networks import UNetNetwork, normalise
from neuroshed.model.words import Precision
from neuroshed.storage.models import Model, load_model

# MONAI's default for `SlidingWindowInferer`.
MONAI_DEFAULT = 1


@dataclass(frozen=True)
class Task:
    """What all contenders have to do."""

    model: Model
    image: npt.NDArray[np.uint8]
    device: str
    threads: int

    @property
    def voxels(self) -> int:
        """Of the image."""
        return self.image.size

    def normalised(self) -> Tensor:
        """The image as peers take it, `(1, 1, z, y, x)` on the device."""
        image = torch.from_numpy(self.image[None, None]).to(self.device)
        return normalise(image, *self.model.card.normalisation)


Contender = Callable[[], npt.NDArray[np.uint8]]


def main() -> None:
    """Time all contenders, print the table."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    image = np.load(args.data) if args.data else _noise(args.side)
    task = Task(model, image, args.device, args.threads)
    contenders, missing = _contenders(task, args.batches, args.environments)
    rows: dict[str, dict[str, float]] = {}
    peaks = {precision: _matmul_rate(args.device, precision) for precision in ("float32", "bfloat16")}
    for who, (turn, precision) in contenders.items():
        print(f"{who} ...", file=sys.stderr, flush=True)
        rows[who] = _time(turn, task, args.rounds) | {"peak": peaks[precision]}
    flops = _flops(task)
    for who, row in rows.items():
        ours = who.startswith("neuroshed")
        row["flop_per_voxel"] = flops["fused" if ours else "plain"]
        row["share_of_peak"] = row["flop_per_voxel"] * row["voxels_per_second"] / row.pop("peak")
    figures = {
        "model": args.model,
        "shape": image.shape,
        "patch": model.card.lattice.patch,
        "context": model.card.lattice.context,
        "device": _device_name(args.device),
        "threads": args.threads,
        "redundant_compute": math.prod(
            p / s for p, s in zip(model.card.lattice.patch, model.card.lattice.stride, strict=True)
        ),
        "matmul_flops": peaks,
        "rows": rows,
        "ratios": _ratios(rows),
        "missing": missing,
    }
    _print(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    if missing:
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 voxels a side, one round: about a minute")
    parser.add_argument("--model", default="fibsem", help="name or path; default fibsem")
    parser.add_argument("--side", type=int, help="voxels of the image along z, y and x; default 192")
    parser.add_argument("--data", type=Path, help="image to use instead, uint8 .npy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="processor threads; default 1, as a worker has")
    parser.add_argument("--batches", type=int, nargs="+", help="values of sw_batch_size; default 1 2 4, on GPUs to 16")
    parser.add_argument("--rounds", type=int, help="default 2")
    parser.add_argument("--out", type=Path, help="write the figures to this file as well")
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="folder of the peers'")
    args = parser.parse_args()
    args.side = args.side or (128 if args.quick else 192)
    args.rounds = args.rounds or (1 if args.quick else 2)
    on_gpu = args.device.startswith("cuda")
    args.batches = args.batches or ([1, 2, 4, 8, 16] if on_gpu else [1, 2] if args.quick else [1, 2, 4])
    return args


def _noise(side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (side, side, side), np.uint8)


def _contenders(
    task: Task, batches: list[int], folder: Path
) -> tuple[dict[str, tuple[Contender, Precision]], dict[str, str]]:
    """Contenders by name, with their precision; and why some are missing."""
    on_gpu = task.device.startswith("cuda")
    contenders: dict[str, tuple[Contender, Precision]] = {}
    missing: dict[str, str] = {}
    own: Precision = "bfloat16" if on_gpu else "float32"
    for batch in batches if on_gpu else batches[:2]:
        contenders[f"neuroshed {own} batch {batch}"] = (_ours(task, batch, own), own)
    peers: tuple[Precision, ...] = ("float32", "bfloat16") if on_gpu else ("float32",)
    for precision in peers:
        contenders[f"torch loop {precision}"] = (_loop(task, precision), precision)
    try:
        sys.path.append(str(environments.library_of("monai", folder)))
        from monai.inferers import sliding_window_inference
    except PeerError as error:
        missing["monai"] = str(error)
        return contenders, missing
    for precision in peers:
        for batch in batches:
            turn = _monai(task, batch, precision, sliding_window_inference)
            contenders[f"monai {precision} batch {batch}"] = (turn, precision)
    return contenders, missing


def _ours(task: Task, batch_size: int, precision: Precision) -> Contender:
    network = UNetNetwork(task.model.net, task.model.card.normalisation, task.device, precision)
    predictor = Predictor(network, task.model.card.lattice, batch_size, task.threads)
    shape = task.image.shape[0], task.image.shape[1], task.image.shape[2]
    return lambda: predictor.predict(task.image, Box.of_shape(shape), Box.of_shape(shape), shape)


class _Affinities(nn.Module):
    """The net as a peer applies it: logits of the three channels that count."""

    def __init__(self, net: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.net, self.precision = net, precision

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.net(x)[:, :3]


def _quantised(logits: Tensor) -> npt.NDArray[np.uint8]:
    return (logits.float().sigmoid() * 255).round().to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def _loop_over(task: Task, net: nn.Module) -> npt.NDArray[np.uint8]:
    lattice = task.model.card.lattice
    shape = task.image.shape[0], task.image.shape[1], task.image.shape[2]
    image = task.normalised()
    pad = [(c, c + s) for c, s in zip(lattice.context, lattice.stride, strict=True)]
    padded = nn.functional.pad(image, [side for pair in reversed(pad) for side in pair], mode="replicate")
    made = np.empty((3, *shape), np.uint8)
    kept = Box(lattice.context, add(lattice.context, lattice.stride))
    for cell in lattice.cells(Box.of_shape(shape)):
        window = Box(cell.start, add(cell.start, lattice.patch))
        part = cell.intersect(Box.of_shape(shape))
        answer = _quantised(net(padded[:, :, *window.slices()])[:, :, *kept.slices()])
        made[:, *part.slices()] = answer[0][:, *part.slices(cell.start)]
    return made


def _loop(task: Task, precision: Precision) -> Contender:
    net = _Affinities(task.model.net, precision).to(task.device)
    return lambda: _loop_over(task, net)


def _monai(task: Task, batch: int, precision: Precision, sliding_window_inference: Callable[..., Tensor]) -> Contender:
    net = _Affinities(task.model.net, precision).to(task.device)
    lattice = task.model.card.lattice
    overlap = [2 * c / p for c, p in zip(lattice.context, lattice.patch, strict=True)]

    @torch.inference_mode()
    def turn() -> npt.NDArray[np.uint8]:
        return _quantised(sliding_window_inference(task.normalised(), lattice.patch, batch, net, overlap))[0]

    return turn


def _time(turn: Contender, task: Task, rounds: int) -> dict[str, float]:
    """Seconds of the fastest round, and the share of the device that was busy in it."""
    turn() if task.device.startswith("cuda") else None
    best = {"seconds": math.inf}
    for _ in range(rounds):
        begin, processor = time.perf_counter(), time.process_time()
        turn()
        seconds = time.perf_counter() - begin
        if seconds < best["seconds"]:
            best = {"seconds": seconds, "busy": (time.process_time() - processor) / seconds / task.threads}
    if task.device.startswith("cuda"):
        best["busy"] = _gpu_busy(turn)
    return best | {"voxels_per_second": task.voxels / best["seconds"]}


def _gpu_busy(turn: Contender) -> float:
    """Share of the time in which the GPU computes, by its own account."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        turn()
        seconds = time.perf_counter() - begin
    spent = sum(event.self_device_time_total for event in profile.key_averages())
    return spent / 1e6 / seconds


def _matmul_rate(device: str, precision: str) -> float:
    """Operations a second of a large matrix product: what the device can do at best."""
    side = 8192 if device.startswith("cuda") else 1536
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))

    def turn() -> float:
        begin = time.perf_counter()
        (a @ b).sum().item()
        return time.perf_counter() - begin

    turn()
    return 2 * side**3 / min(turn() for _ in range(5))


def _flops(task: Task) -> dict[str, float]:
    """Operations for each voxel of a patch that is kept, of the plain net and of its fused form."""
    lattice = task.model.card.lattice
    kept = Box(lattice.context, add(lattice.context, lattice.stride))
    image = torch.zeros((1, 1, *lattice.patch), dtype=torch.uint8, device=task.device)
    network = UNetNetwork(task.model.net, task.model.card.normalisation, task.device)
    with torch.inference_mode(), FlopCounterMode(display=False) as fused:
        network.affinities(image, kept)
    with torch.inference_mode(), FlopCounterMode(display=False) as plain:
        task.model.net.to(task.device)(image.float())
    return {name: counter.get_total_flops() / kept.size for name, counter in (("fused", fused), ("plain", plain))}


def _ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Our best against each peer's best and default."""
    ours = min(row["seconds"] for who, row in rows.items() if who.startswith("neuroshed"))
    ratios = {}
    for precision in ("float32", "bfloat16"):
        of_monai = {who: row["seconds"] for who, row in rows.items() if who.startswith(f"monai {precision}")}
        default = f"monai {precision} batch {MONAI_DEFAULT}"
        if of_monai:
            ratios[f"monai {precision}, best"] = min(of_monai.values()) / ours
        if default in of_monai:
            ratios[f"{default} (its default)"] = of_monai[default] / ours
        if f"torch loop {precision}" in rows:
            ratios[f"torch loop {precision}"] = rows[f"torch loop {precision}"]["seconds"] / ours
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def _print(figures: dict[str, Any]) -> None:
    shape = "x".join(map(str, figures["shape"]))
    print(
        f"{figures['model']} on {figures['device']}, {figures['threads']} threads, image {shape}, patch "
        f"{figures['patch']}, context {figures['context']}: {figures['redundant_compute']:.2f} times computed"
    )
    print(f"{'':28}{'seconds':>9}{'kvoxel/s':>10}{'busy':>7}{'MFLOP/voxel':>13}{'of peak':>9}")
    for who, row in figures["rows"].items():
        print(
            f"{who:28}{row['seconds']:9.2f}{row['voxels_per_second'] / 1e3:10.1f}{row['busy']:7.0%}"
            f"{row['flop_per_voxel'] / 1e6:13.3f}{row['share_of_peak']:9.0%}"
        )
    for peer, ratio in figures["ratios"].items():
        print(f"{ratio:.2f} times {peer}")
    for who, why in figures["missing"].items():
        print(f"without {who}: {why}")


if __name__ == "__main__":
    main()

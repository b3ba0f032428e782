"""Commands about models: model check."""

from __future__ import annotations

from typing import Any

import click

from neuroshed.cli.base import command, json_option, main, show
from neuroshed.terminal.tables import print_model_check


@main.group()
def model() -> None:
    """Look at networks before a run.

    Example: neuroshed model check fibsem a.zarr
    """


@model.command()
@click.argument("model")
@click.argument("volume")
@click.option("--trust", is_flag=True, help="MODEL may run code here: needed for .pt2, TorchScript and callables.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where MODEL runs."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the network's arithmetic.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Processor threads.")
@click.option("--intensity", type=float, nargs=2, metavar="LOW HIGH", help="Darkest and brightest image values.")
@click.option("--inverted", is_flag=True, help="Membranes are bright in VOLUME.")
@json_option
@command
def check(
    model: str,
    volume: str,
    trust: bool,
    device: str,
    precision: str,
    threads: int,
    intensity: tuple[float, float] | None,
    inverted: bool,
    as_json: bool,
) -> None:
    """Run one patch of VOLUME through MODEL, and tell shapes, values, conventions, seams, speed and memory.

    MODEL is a name or path of one of ours, or a YAML file that declares another. Exit code 1 if something is most
    likely wrong.

    Example: neuroshed model check fibsem a.zarr
    """
    from neuroshed import api

    options: dict[str, Any] = {"device": device, "precision": precision, "threads": threads, "inverted": inverted}
    report = api.check_model(model, volume, trust=trust, intensity=intensity, **options)
    show(report, as_json, print_model_check)
    if report["faults"]:
        raise SystemExit(1)

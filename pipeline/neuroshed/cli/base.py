"""What all commands share: the group, options, errors as one line with an exit code, results as text or JSON."""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import format_exc
from typing import Any

import click

from neuroshed import __version__
from neuroshed.engine.control import Control, Wish, on_signals
from neuroshed.errors import NeuroshedError
from neuroshed.geometry import Box
from neuroshed.interrupts import interrupt, raised
from neuroshed.terminal.bars import Bars


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="neuroshed")
def main() -> None:
    """Neurons from electron microscopy, the same whatever the chunking."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors into one line and an exit code; a traceback only if asked."""

    @click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapped(*args: Any, traceback: bool, **options: Any) -> None:
        try:
            # What every command needs; before, Ctrl-C may end the process at once.
            import neuroshed.api  # noqa: F401

            with raised():
                function(*args, **options)
        except NeuroshedError as error:
            if options.get("as_json") and (summary := getattr(error, "summary", None)):
                print(json.dumps(summary, indent=2))
            if traceback:
                click.echo(format_exc(), err=True)
            click.echo(f"neuroshed: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            kept = "what is done is kept, the same command goes on"
            if options.get("work", "") is None:
                kept = "nothing is kept; it is with --work FOLDER"
            click.echo(f"neuroshed: stopped; {kept}", err=True)
            sys.exit(130)

    return wrapped


class Interrupts(Control):
    """The wishes of whoever sits at the terminal. Before the work has begun there is nothing to finish: Ctrl-C ends
    the command at once, as it does in any program.
    """

    has_begun = False

    def ask(self, wish: Wish, reason: str) -> None:
        """Ask for `wish`, or raise KeyboardInterrupt as soon as nothing is being imported."""
        if not self.has_begun and threading.current_thread() is threading.main_thread():
            interrupt()
            return
        super().ask(wish, reason)


@contextmanager
def at_work() -> Iterator[tuple[Interrupts, Callable[[Any], None]]]:
    """While a command runs blocks: bars on the terminal, wishes by Ctrl-C. Gives control and watcher."""
    control = Interrupts()
    with on_signals(control), Bars(control) as bars:

        def watch(progress: Any) -> None:
            control.has_begun = True
            bars(progress)

        yield control, watch


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
cluster_option = click.option(
    "--cluster", default=None, help="local, local:4 (processes), in-process, gpus, slurm, an address, or a YAML file."
)
work_option = click.option(
    "--work",
    metavar="FOLDER",
    help="Keep what is done in here until the answer is there: broken off, the same command goes on.",
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the workflow."
)
run_argument = click.argument("run_folder", metavar="RUN")


def box_option(purpose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--box`, with what it is for."""
    return click.option("--box", type=int, nargs=6, metavar="Z0 Y0 X0 Z1 Y1 X1", help=f"{purpose} (half-open, voxels).")


def box_of(numbers: tuple[int, ...] | None) -> Box | None:
    """The box that `--box` names; None if it was left out."""
    return Box((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])) if numbers else None


def cluster_of(word: str | None) -> Any:
    """The cluster that an option names; None if it was left out."""
    from pydantic import ValidationError

    from neuroshed.engine.config import ClusterConfig

    if word is None:
        return None
    try:
        return ClusterConfig.model_validate(word)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise click.BadParameter(
            f"got {word!r} ({f'{place}: ' if place else ''}{first['msg']}); needed is local, local:N, in-process, "
            "in-process:N, gpus, slurm, an address such as tls://host:8786, or a YAML file",
            param_hint="--cluster",
        ) from None


def show(result: Any, as_json: bool, printer: Callable[[Any], None]) -> None:
    """Print a result in one of two ways."""
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        printer(result)


def print_json(result: Any) -> None:
    """Print a result as one line of JSON, at once."""
    print(json.dumps(result), flush=True)

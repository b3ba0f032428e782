"""How a run stands, on one screen, and the runs of a folder."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroshed.terminal.units import counted, duration, moment, short, size

FAILURES_SHOWN = 5
HOSTS_SHOWN = 8
COUNTS = ("done", "running", "waiting", "failed", "skipped", "blocks")


def print_status(summary: dict[str, Any], errors: int = 0) -> None:
    """Print how a run stands, and of the last `errors` failures all that is known."""
    console = Console()
    console.print(screen(summary))
    shown = summary["failures"][-errors:] if errors else []
    if left_out := min(errors - len(shown), summary["failures_left_out"]):
        console.print(f"\n{left_out:,} more failures are not told one by one", highlight=False)
    for failure in [*shown, *_standing_for(shown, summary["failures"])]:
        console.print()
        console.print(*_whole(failure), sep="\n", markup=False, highlight=False, soft_wrap=True)


def screen(summary: dict[str, Any]) -> RenderableType:
    """How a run stands: who works on it, blocks by stage, what is left, what workers use, the last failures."""
    live = summary["live"]
    lines: list[RenderableType] = [_stages(summary)] if summary["stages"] else []
    if live is not None:
        told = (_left(summary), *_workers(live["workers"], live["memory_bytes"]), _pools(live.get("pools", {})))
        lines += [Text(line) for line in told if line]
        if live["note"]:
            lines.append(Text(live["note"], style="yellow"))
    lines += [Text(f"ALARM: {alarm}", style="yellow") for alarm in summary["alarms"]]
    lines += _failures(summary)
    return Group(Text(summary["run"], style="bold"), Text(title(summary)), *lines, Text(f"log: {summary['log']}"))


def title(summary: dict[str, Any]) -> str:
    """One line: the state of a run, and who works on it since when."""
    live, holder, state = summary["live"], summary["holder"], summary["state"]
    if state not in ("starting", "running"):
        return _ended(summary)
    going = "being started" if state == "starting" else "running"
    verb = {"drain": "finishing blocks at work", "stop": "stopping"}.get(live["wish"] if live else "", going)
    reason = f" ({live['reason']})" if live and live["reason"] else ""
    since = f", since {moment(live['began'])}, for {duration(live['time'] - live['began'])}" if live else ""
    text = f"{verb}{reason}, by {holder['text']}{since}"
    if holder["alive"] is None:
        age = f", figures written {duration(live['age_seconds'])} ago by its clock" if live else ""
        text += f" (whether that process is alive cannot be seen from here{age})"
    return text if live or state == "starting" else f"{text}, starting"


def _ended(summary: dict[str, Any]) -> str:
    state, ended, holder = summary["state"], summary["ended"], summary["holder"]
    again = f"`neuroshed resume {summary['run']}` goes on"
    if state == "lost":
        return f"lost: {holder['text']}, who worked on it, is gone; {again}"
    if state == "done" or ended is None:
        at = f" since {moment(ended['time'])}" if ended else ""
        return f"{state}{at}, nobody works on it{'' if state == 'done' else f'; {again}'}"
    # What failed is listed below.
    reason = f" ({ended['reason']})" if ended["reason"] and state != "failed" else ""
    return f"{state} at {moment(ended['time'])}{reason}; {again}"


def _stages(summary: dict[str, Any]) -> Table:
    """Columns that are empty everywhere are left out."""
    rows = summary["stages"]
    counts = [name for name in COUNTS if name not in ("failed", "skipped") or any(row[name] for row in rows.values())]
    has_speed = summary["live"] is not None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    for name in counts:
        table.add_column("of" if name == "blocks" else name, justify="right")
    table.add_column("", justify="right")
    if has_speed:
        table.add_column("voxels/s", justify="right")
    table.add_column("task time", justify="right")
    for name, row in rows.items():
        share = (row["done"] + row["skipped"]) / row["blocks"] if row["blocks"] else 1.0
        cells = [Text(f"{row[count]:,}", style="red" if count == "failed" and row[count] else "") for count in counts]
        # Not to 100 % before the last block.
        percent = f"{int(1000 * share) / 10:.1f} %" if share < 1 else "100 %"
        # Trees write no voxels.
        speed = [short(row.get("voxels_per_second", 0.0)) if row["voxels"] else ""] if has_speed else []
        table.add_row(name, *cells, percent, *speed, duration(row["seconds"]))
    return table


def _left(summary: dict[str, Any]) -> str:
    left = summary["live"]["seconds_left"]
    if left is not None:
        return f"about {duration(left)} left, at the speed so far"
    unknown = [name for name, row in summary["stages"].items() if not row["done"] and row["blocks"] > row["skipped"]]
    more = f" and {counted(len(unknown) - 1, 'more stage')}" if len(unknown) > 1 else ""
    return f"time left unknown until the first blocks of {unknown[0]}{more} are done" if unknown else ""


def _workers(found: dict[str, Any], memory_bytes: int) -> list[str]:
    predicted = f"; a task takes up to {size(memory_bytes)} by prediction"
    if not found["workers"]:
        return [f"no workers{predicted}"]
    lines = [f"{counted(found['workers'], 'worker')}, {_usage(found)}{predicted}"]
    hosts = found["hosts"]
    if len(hosts) > 1:
        lines += [f"  {row['host']}: {counted(row['workers'], 'worker')}, {_usage(row)}" for row in hosts[:HOSTS_SHOWN]]
        more = len(hosts) - HOSTS_SHOWN + found["more_hosts"]
        lines += [f"  and {counted(more, 'more host')}"] if more > 0 else []
    return lines


def _pools(pools: dict[str, dict[str, int]]) -> str:
    """Where there are pools, the worker processes of each and what waits for its turn."""
    rows = {name: row for name, row in pools.items() if "queued" in row}
    parts = [
        f"{name} {row['connected']}" + (f" and {row['queued']} in the queue" if row["queued"] else "")
        for name, row in rows.items()
    ]
    return f"pools: {', '.join(parts)}" if parts else ""


def _usage(row: dict[str, Any]) -> str:
    limit = f" of {size(row['memory_limit_bytes'])}" if row["memory_limit_bytes"] else ""
    text = f"CPU {row['cpu_percent']:.0f} %, memory {size(row['memory_bytes'])}{limit}"
    if row["gpus"]:
        text += f", {counted(row['gpus'], 'GPU')} {row['gpu_percent']:.0f} %, {size(row['gpu_memory_bytes'])}"
    return text


def _failures(summary: dict[str, Any]) -> list[Text]:
    failures = summary["failures"]
    lines = []
    for failure in failures[-FAILURES_SHOWN:]:
        lines.append(Text(f"failed: {_where(failure)}", style="red"))
        lines.append(Text(f"  {failure['error']}", no_wrap=True, overflow="ellipsis"))
    number = len(failures) + summary["failures_left_out"]
    if number > FAILURES_SHOWN:
        lines.append(Text(f"{number:,} failed in all; --errors {number} shows all that is known of them"))
    elif failures:
        lines.append(Text(f"--errors {number} shows tracebacks and what was logged"))
    return lines


def _where(failure: dict[str, Any]) -> str:
    name = _name(failure["stage"], failure["step"], failure["block"])
    attempts = f", {failure['attempts']} attempts" if failure["attempts"] else ""
    worker = f", worker {failure['worker']}" if failure["worker"] else ""
    return name + attempts + worker + (f" on {failure['host']}" if failure["host"] else "")


def _name(stage: str, step: str, block: list[int]) -> str:
    return " ".join(part for part in (stage, step, str(block)) if part)


def _whole(failure: dict[str, Any]) -> list[str]:
    logged = [f"  logged: {line}" for line in failure["log"]]
    told = [f"{_where(failure)}: {failure['error']}", *logged, *failure["trace"].rstrip().splitlines()]
    if like := failure.get("like"):
        name = _name(failure["stage"], like["step"], like["block"])
        told.append(f"  traceback and log lines left out: they were like those of {name}")
    return told


def _standing_for(shown: list[dict[str, Any]], failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failures that tell what those shown leave out, as far as they are not among them."""
    brief = any(failure.get("like") for failure in shown)
    places = {_place(failure): failure for failure in failures} if brief else {}
    told = {_place(failure) for failure in shown}
    found = []
    waiting = list(shown)
    while waiting:
        failure = waiting.pop()
        like = failure.get("like")
        place = like and (failure["stage"], like["step"], *like["block"])
        # One that is done by now is not there any more.
        if place in places and place not in told:
            told.add(place)
            found.append(places[place])
            waiting.append(places[place])
    return found


def _place(failure: dict[str, Any]) -> tuple[Any, ...]:
    return failure["stage"], failure["step"], *failure["block"]


def print_runs(rows: list[dict[str, Any]]) -> None:
    """A table of runs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("run", "state", "done", "of", "failed", "started", "changed", "by"):
        is_number = column in ("done", "of", "failed")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column != "by")
    unreadable = []
    for row in rows:
        if row["state"] == "unreadable":
            table.add_row(row["name"], Text("unreadable", style="red"))
            unreadable.append(f"{row['name']}: {row['error']}")
            continue
        counts = (f"{row[name]:,}" for name in ("done", "blocks", "failed"))
        times = (moment(row[name])[:16] for name in ("started", "changed"))
        table.add_row(row["name"], row["state"], *counts, *times, row["holder"] or "")
    console = Console()
    console.print(table if rows else "no runs here")
    for line in unreadable:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_submitted(found: dict[str, Any]) -> None:
    """What was started, and how to follow and stop it."""
    console = Console(soft_wrap=True)
    run = found["run"]
    if found["state"] == "done":
        lines = [f"run {run} is done", f"log     {found['log']}"]
    elif found["state"] == "queued":
        lines = [f"run {run} waits for its turn: {found['coordinator']}", f"output  {found['output']}"]
    else:
        lines = [
            f"run {run} goes on in the background: {found['holder']}",
            f"follow  neuroshed status {run} --watch",
            f"stop    neuroshed cancel {run}",
            f"log     {found['log']}",
        ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_ended(summary: dict[str, Any]) -> None:
    """How a run stands after it was asked to stop."""
    rows = summary["stages"].values()
    done, total = sum(row["done"] for row in rows), sum(row["blocks"] - row["skipped"] for row in rows)
    console = Console(soft_wrap=True)
    console.print(
        f"{summary['run']}: {title(summary)}\n{done:,} of {total:,} blocks are done", markup=False, highlight=False
    )

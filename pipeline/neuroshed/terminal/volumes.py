"""What a volume is and holds, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from neuroshed.terminal.units import counted, size

BARS = " ▁▂▃▄▅▆▇█"


def print_volume(found: dict[str, Any]) -> None:
    """What `neuroshed volume info` found."""
    console = Console(soft_wrap=True)
    for name, text in _lines(found):
        console.print(f"{name:12} {text}", markup=False, highlight=False)


def print_compared(found: dict[str, Any]) -> None:
    """What `neuroshed volume compare` found."""
    _print(_compared(found))


def _compared(found: dict[str, Any]) -> list[str]:
    lines = [f"{name.replace('_', ' ')}: {left} and {right}" for name, (left, right) in found["layout"].items()]
    if not found["compared"]:
        return [*lines, "the volumes differ; their voxels were not compared"]
    count = found["values_differing"]
    if count and found["labels"]:
        lines.append(f"{counted(count, 'voxel')} differ by more than names, the first at {found['first']}")
    elif count:
        largest = found["largest_difference"]
        most = "" if largest is None else f", by up to {largest:{'g' if isinstance(largest, float) else ','}}"
        lines.append(f"{counted(count, 'value')} differ, the first at {found['first']}{most}")
    elif found["labels"]:
        names = f", {found['renamed']:,} of them under another name" if found["renamed"] else ""
        lines.append(f"labels are the same: {found['pairs']:,}{names}")
    else:
        lines.append("all values are the same")
    return [*lines, *(["the volumes differ"] if not found["same"] else [])]


def print_checked(found: dict[str, Any]) -> None:
    """What `neuroshed volume check` found."""
    _print(_checked(found))


def _checked(found: dict[str, Any]) -> list[str]:
    lines = []
    for row in found["damaged"]:
        start, stop = row["box"]
        spans = ", ".join(f"{a}:{b}" for a, b in zip(start, stop, strict=True))
        channels = f" channels {row['channels'][0]}:{row['channels'][1]}" if row["channels"] else ""
        reason = f" ({row['reason']})" if row["reason"] else ""
        lines.append(f"{row['kind']}: {row['file']}, voxels [{spans}]{channels}{reason}")
    run, bad = found["run"], len(found["damaged"])
    missing = f", {found['missing']:,} missing ({100 * found['missing_share']:.3g} %)" if found["missing"] else ""
    legal = " which read as fill values" if found["missing"] and not bad else ""
    lines.append(f"{counted(found['files'], 'file')}{missing}{legal}, {f'{bad:,} damaged' if bad else 'none damaged'}")
    if not bad:
        return lines
    if run is None:
        return [*lines, "bring these back from where the volume came from"]
    step = f" {run['step']}" if run["step"] else ""
    lines += [f"block of {run['stage']}{step} in {run['folder']}: {block}" for block in run["blocks"]]
    commands = ", then ".join(f"`{command}`" for command in run["commands"])
    if run["forgotten"]:
        return [*lines, f"these blocks are forgotten; {commands} computes them again"]
    return [*lines, f"these blocks come back by {commands}"]


def _print(lines: list[str]) -> None:
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    files, values = found["files"], found["values"]
    channels = f", {counted(found['channels'], 'channel')}" if found["channels"] else ""
    shards = "no shards" if found["shard_shape"] is None else f"shards {_sides(found['shard_shape'])}"
    ratio = f", {found['ratio']} times less than {size(found['raw_bytes'])}" if found["ratio"] else ""
    missing = f", {files['missing']:,} missing, which read as zeros" if files and files["missing"] else ""
    lines = [
        ("volume", f"{found['path']} (Zarr {found['zarr_format']})"),
        ("shape", f"{_sides(found['shape'])} voxels{channels}, {found['dtype']}"),
        ("voxel size", f"{_sides(found['voxel_size'])} nm, offset {_sides(found['offset'])} nm"),
        ("layout", f"chunks {_sides(found['chunk_shape'])}, {shards}"),
        ("codecs", ", ".join(found["codecs"]) or "none"),
        *(
            [
                ("stored", f"{size(found['stored_bytes'])}{ratio}"),
                ("files", f"{files['there']:,} of {files['expected']:,}{missing}"),
            ]
            if files
            else [("stored", "on a web server, which cannot be listed")]
        ),
        ("sampled", f"{100 * values['sampled_share']:.3g} % of the voxels; {100 * values['zero_share']:.3g} % are 0"),
    ]
    if values["not_finite"]:
        lines.append(("not finite", f"{values['not_finite']:,} of the sampled values are NaN or infinite"))
    if "least" in values:
        percentiles = ", ".join(f"{name} %: {value:g}" for name, value in values["percentiles"].items())
        lines += [
            ("values", f"{values['least']:g} to {values['most']:g}, mean {values['mean']:g}"),
            ("percentiles", percentiles),
            ("histogram", _bars(values["histogram"])),
        ]
    return lines


def _bars(histogram: dict[str, Any]) -> str:
    """Counts as bars of eight heights, between the values where they begin and end.

    >>> _bars({"counts": [0, 1, 8, 4], "from": 0.0, "to": 8.0})
    '0  ▁█▄ 8'
    """
    counts, most = histogram["counts"], max(histogram["counts"])
    # Nothing that is there looks like nothing.
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts)
    return f"{histogram['from']:g} {bars} {histogram['to']:g}"


def _sides(values: list[float]) -> str:
    return " x ".join(f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values)

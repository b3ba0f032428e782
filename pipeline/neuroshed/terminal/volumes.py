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

"""Numbers for people: bytes, durations, counts, times of day."""

from __future__ import annotations

from datetime import datetime


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def duration(seconds: float) -> str:
    """A duration for people, to two units.

    >>> duration(3.21), duration(75), duration(7500), duration(200000)
    ('3 s', '1 min 15 s', '2 h 5 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name} {rest} {small}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"


def short(count: float) -> str:
    """A large number in few letters.

    >>> short(0), short(12.3), short(4567), short(8.9e6), short(2.5e10)
    ('0', '12', '4.6 k', '8.9 M', '25.0 G')
    """
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f} P"


def counted(number: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "worker"), counted(2000, "worker")
    ('1 worker', '2,000 workers')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def moment(seconds: float | None) -> str:
    """A time as this machine's zone writes it; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")

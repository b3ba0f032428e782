"""From affinities to a segmentation beside the peers: speed, memory and quality on the same affinities of real neurons.

    python benchmarks/stitch.py [--quick] [--data DIR] [--shape Z Y X] [--peers waterz,lsd,volara] [--out FILE.json]

Peers are waterz (whole volume), lsd (the blockwise recipe of local shape descriptors), volara (as in its example) and
volara-seeded (with its seeds: better and slower). Each contender runs alone, on one thread and one core, in an
environment of its own that is made on the first run; one that cannot be had is named and left out. Ratios are peer /
neuroshed: above 1 we are better. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import environments
from arena import Arena, Row, write_inputs
from environments import PeerError

PEERS = ("waterz", "lsd", "volara", "volara-seeded")
RATIOS = ("seconds", "cpu_seconds", "peak_gib")
HEADER = f"{'':18}{'seconds':>10}{'cpu s':>10}{'Mvoxel/s':>10}{'peak GiB':>10}"


def main() -> None:
    """Run all contenders, print the tables."""
    args = _arguments()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        parts, source = write_inputs(folder, args.shape, args.block, args.data)
        arena = Arena(folder, args.environments, args.shape, args.block, args.thresholds, args.limit_s, parts)
        megavoxels = float(np.prod(args.shape)) / 1e6
        print(f"{source}: {'x'.join(map(str, args.shape))}, {megavoxels:.1f} Mvoxel", flush=True)
        rows, missing = _contest(arena, args.peers)
    sections = _sections(rows, megavoxels)
    ratios = _ratios(sections)
    _print(sections, rows, ratios)
    for who, why in missing.items():
        print(f"without {who}: {why}")
    figures = {
        "input": source,
        "shape": args.shape,
        "block": args.block,
        "thresholds": args.thresholds,
        "sections": sections,
        "ratios": ratios,
        "rows": rows,
        "missing": missing,
        "benchmark_seconds": round(time.perf_counter() - begin, 1),
    }
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    if any(who.startswith("neuroshed") for who in missing):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128x256x256 and waterz alone, under two minutes")
    parser.add_argument("--data", type=Path, help="folder with real labels; without it shapes are synthetic")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default 256 512 512")
    parser.add_argument("--block", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default 256 256 256")
    parser.add_argument("--thresholds", default="0.5,0.3", help="mean affinities from which fragments join")
    parser.add_argument("--peers", help=f"of {','.join(PEERS)}; default the first three")
    parser.add_argument("--out", type=Path, help="write the figures to this file as well")
    parser.add_argument("--work", type=Path, help="folder for scratch files, about 40 bytes a voxel")
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="folder of the peers'")
    parser.add_argument("--limit-s", type=float, default=7200, help="seconds after which a contender is given up")
    args = parser.parse_args()
    args.shape = tuple(args.shape or ((128, 256, 256) if args.quick else (256, 512, 512)))
    args.block = tuple(args.block or ((64, 128, 128) if args.quick else (256, 256, 256)))
    args.thresholds = tuple(args.thresholds.split(","))
    args.peers = (args.peers or ("waterz" if args.quick else "waterz,lsd,volara")).split(",")
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    return args


def _contest(arena: Arena, peers: list[str]) -> tuple[dict[str, Row], dict[str, str]]:
    """What each contender did, and why some did nothing."""
    turns: dict[str, Callable[[], Row]] = {"neuroshed": arena.neuroshed}
    if "waterz" in peers:
        turns |= {"waterz": arena.waterz, "waterz given": arena.waterz_given, "neuroshed kernels": arena.kernels}
    if "lsd" in peers:
        turns["lsd"] = arena.lsd
    turns |= {peer: lambda peer=peer: arena.volara("seeded" in peer) for peer in peers if peer.startswith("volara")}
    for workers in (1, 2):
        cluster = f"local:{workers}"
        turns[f"neuroshed {cluster}"] = lambda cluster=cluster: arena.neuroshed(cluster, scored=False)
    rows, missing = {}, {}
    for who, turn in turns.items():
        print(f"{who} ...", file=sys.stderr, flush=True)
        try:
            rows[who] = turn()
            print(f"  {sum(rows[who]['seconds'].values()):.1f} s", file=sys.stderr, flush=True)
        except PeerError as error:
            missing[who] = str(error)
    return rows, missing


# Which steps of which contender (None: all) make up a section; ours comes first.
SECTIONS: dict[str, dict[str, tuple[str, list[str] | None]]] = {
    "fragments and region graph": {
        "neuroshed": ("neuroshed kernels", ["fragments"]),
        "with size rule": ("neuroshed kernels", ["sized fragments"]),
        "waterz": ("waterz", ["fragments"]),
        "lsd, no graph": ("lsd", ["fragments"]),
        "volara": ("volara", ["fragments", "graph"]),
        "volara-seeded": ("volara-seeded", ["fragments", "graph"]),
    },
    "region graph of waterz's fragments": {
        "neuroshed": ("neuroshed kernels", ["contacts"]),
        "waterz": ("waterz given", ["contacts"]),
    },
    "agglomeration of waterz's fragments": {
        "neuroshed": ("neuroshed kernels", ["agglomerate"]),
        "waterz": ("waterz given", ["agglomerate"]),
    },
    "whole chain": {who: (who, None) for who in ("neuroshed", *PEERS)},
    # Processor seconds and memory are the coordinator's.
    "scaling: two workers, one": {f"neuroshed local:{n}": (f"neuroshed local:{n}", None) for n in (2, 1)},
}


def _sections(rows: dict[str, Row], megavoxels: float) -> dict[str, dict[str, Any]]:
    """Figures of each section, by contender."""
    sections: dict[str, dict[str, Any]] = {}
    for section, contenders in SECTIONS.items():
        found = {label: _sum(rows[who], steps, megavoxels) for label, (who, steps) in contenders.items() if who in rows}
        if found:
            sections[section] = found
    return sections


def _sum(row: Row, steps: list[str] | None, megavoxels: float) -> dict[str, Any]:
    steps = list(row["seconds"]) if steps is None else steps
    seconds, cpu = (sum(row[kind][step] for step in steps) for kind in ("seconds", "cpu_seconds"))
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "megavoxels_per_second": round(megavoxels / seconds, 3),
        "peak_gib": row["peak_gib"],
    }


def _ratios(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Peer / ours in each section; of the scaling section, one worker / two."""
    ratios: dict[str, dict[str, Any]] = {}
    for section, found in sections.items():
        # Ours is the first of each section, and without it there is nothing to compare.
        ours, *others = found
        if ours.startswith("neuroshed") and others:
            ratios[section] = {
                who: {key: round(found[who][key] / found[ours][key], 2) for key in RATIOS} for who in others
            }
    return ratios


def _print(sections: dict[str, Any], rows: dict[str, Row], ratios: dict[str, Any]) -> None:
    for section, found in sections.items():
        print(f"\n{section}\n{HEADER}")
        for who, row in found.items():
            ratio = ratios.get(section, {}).get(who)
            tail = "   x {seconds:g} the time (cpu x {cpu_seconds:g}), x {peak_gib:g} the memory" if ratio else ""
            speed = f"{row['megavoxels_per_second']:10.3f}{row['peak_gib']:10.2f}"
            print(f"{who:18}{row['seconds']:10.2f}{row['cpu_seconds']:10.2f}{speed}{tail.format(**ratio or {})}")
    for who, row in rows.items():
        steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in row.get("stages", row["seconds"]).items())
        print(f"\n{who} ({row['version']}), seconds by step: {steps}")
        for kind, bits in row.get("bits_from_waterz", {}).items():
            print(f"  {kind:10} on the same fragments {bits:.6f} bits from waterz's labels")
        for kind, score in row.get("scores", {}).items():
            # At best: what agglomeration could still make of the labels.
            print(
                f"  {kind:10} {score['labels']:9} labels, {100 * score['unlabelled']:5.1f} % filled, "
                f"VOI {score['voi']:.3f} = {score['split']:.3f} split + {score['merge']:.3f} merge, "
                f"at best {score['best_voi']:.3f}"
            )


if __name__ == "__main__":
    main()

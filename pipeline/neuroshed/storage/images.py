"""PNG and JPEG images of one section each: what their headers say, and their pixels; grey ones only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt

from neuroshed.errors import InputError

Plane = npt.NDArray[Any]
Header = tuple[tuple[int, int], np.dtype[Any]]
"""Rows and columns, and the type of a pixel."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Frames that libjpeg decodes: baseline, extended, progressive. Others of C0 to CF are lossless or arithmetic, or no
# frames at all (C4, C8, CC).
_JPEG_FRAMES, _NO_FRAMES = (0xC0, 0xC1, 0xC2), (0xC4, 0xC8, 0xCC)


@dataclass(frozen=True)
class ImageFormat:
    """How images of one kind are read; `header` and `decode` raise `InputError` or what the decoder raises."""

    name: str
    suffixes: tuple[str, ...]
    header: Callable[[Path], Header]
    decode: Callable[[Path], Plane]


def _png_header(file: Path) -> Header:
    with file.open("rb") as handle:
        start = handle.read(26)
    if len(start) < 26 or not start.startswith(_PNG_START):
        raise InputError(f"section {file} is not a PNG image; export it again")
    columns, rows, bits, colour = struct.unpack(">IIBB", start[16:26])
    if colour != 0:
        kind = {2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}.get(colour, "unknown")
        raise InputError(f"section {file} is a {kind} image; export grey sections of 8 or 16 bits")
    if bits not in (1, 8, 16):
        raise InputError(f"section {file} has {bits} bits a pixel; export grey sections of 8 or 16 bits")
    return (rows, columns), np.dtype({1: "bool", 8: "uint8", 16: "uint16"}[bits])


def _decode_png(file: Path) -> Plane:
    data = file.read_bytes()
    plane: Plane = imagecodecs.png_decode(data)
    one_bit = data[24] == 1
    return plane > 0 if one_bit else plane


def _jpeg_header(file: Path) -> Header:
    with file.open("rb") as handle:
        frame, (bits, rows, columns, components) = _jpeg_frame(file, handle)
    if components != 1:
        kind = {3: "colour", 4: "CMYK"}.get(components, f"{components}-channel")
        raise InputError(f"section {file} is a {kind} image; export grey sections of 8 bits")
    if bits != 8 or frame not in _JPEG_FRAMES:
        raise InputError(
            f"section {file} is a JPEG of {bits} bits (frame {frame:X}), which is not read; export grey sections of 8 "
            "bits"
        )
    return (rows, columns), np.dtype(np.uint8)


def _jpeg_frame(file: Path, handle: BinaryIO) -> tuple[int, tuple[int, int, int, int]]:
    """The kind of the first frame, and its bits, rows, columns and components (ITU-T T.81, B.2.2)."""
    if handle.read(2) == _JPEG_START:
        while len(head := handle.read(4)) == 4 and head[0] == 0xFF:
            marker, length = head[1], int.from_bytes(head[2:], "big")
            if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and len(body := handle.read(6)) == 6:
                return marker, struct.unpack(">BHHB", body)
            handle.seek(length - 2, 1)
    raise InputError(f"section {file} is not a JPEG image; export it again")


def _decode_jpeg(file: Path) -> Plane:
    data = file.read_bytes()
    # Decoders take what is missing for grey.
    if not data.rstrip(b"\0\r\n").endswith(_JPEG_END):
        raise ValueError("the file ends too early")
    plane: Plane = imagecodecs.jpeg8_decode(data)
    return plane


PNG = ImageFormat("PNG", (".png",), _png_header, _decode_png)
JPEG = ImageFormat("JPEG", (".jpg", ".jpeg"), _jpeg_header, _decode_jpeg)

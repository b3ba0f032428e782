"""Volumes that come as sections: multi-page TIFF, folders of TIFF, PNG or JPEG sections.

A section is decoded in the pieces it was compressed in (a strip or tile of a TIFF, a whole PNG or JPEG), and a bounded
cache keeps the last ones, so that neighbouring blocks of the same sections do not decode them again.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.images import JPEG, PNG, Plane
from neuroshed.storage.readers import Reader
from neuroshed.storage.spacing import VoxelSize, of_imagej, of_ome

# A worker keeps at most this much of decoded sections.
CACHE_BYTES = 512 * 2**20

_TIFF_SUFFIXES = (".tif", ".tiff")
_SUFFIXES = {"TIFF": _TIFF_SUFFIXES} | {image.name: image.suffixes for image in (PNG, JPEG)}


class PieceCache:
    """The most recently used decoded pieces, up to a number of bytes; safe between threads."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._pieces: OrderedDict[Hashable, Plane] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], Plane]) -> Plane:
        """The piece of that name, loaded if it is not kept."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key]
        piece = load()
        with self._lock:
            if key not in self._pieces and piece.nbytes <= self._limit:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
            while self._bytes > self._limit:
                _, dropped = self._pieces.popitem(last=False)
                self._bytes -= dropped.nbytes
        return piece


class TiffStack(Reader):
    """A multi-page TIFF (classic, BigTIFF or ImageJ), one grey page a section."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = tifffile.TiffFile(path)
            weakref.finalize(self, self._file.close)
            series = self._file.series
        except Exception as error:
            raise InputError(f"{path} is not a readable TIFF ({_reason(error)})") from error
        self._path = path
        self._cache = PieceCache()
        self._lock = threading.Lock()
        if len(series) != 1:
            _refuse_mixed_pages(path, self._file.pages)
        self._series = series[0]
        first = self._file.pages[0]
        _refuse_colour(path, first)
        self.shape = _stack_shape(path, self._series)
        self.dtype = np.dtype(self._series.dtype)
        self._mapped = self._map()
        self._check_pages()
        rows, columns = first.chunks[-2:]
        self.unit: Vec = (1, 1, 1) if self._mapped is not None else (1, min(rows, self.shape[1]), columns)
        self.cache_bytes = 0 if self._mapped is not None else _cache_bytes(self.shape, self.unit, self.dtype)
        self.description = f"TIFF stack of {self.shape[0]} sections ({first.compression.name.lower()})"
        self.voxel_size = _voxel_size(self._file)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of `box`. Raises `BlockError` naming the page that cannot be decoded."""
        if self._mapped is not None:
            return np.array(self._mapped[box.slices()])
        out = np.zeros(box.shape, self.dtype)
        for plane, z in zip(out, range(box.start[0], box.stop[0]), strict=True):
            try:
                with self._lock:
                    page = self._series[z]
                _read_page(page, z, self._lock, self._cache, box, plane)
            except Exception as error:
                raise BlockError(f"page {z} of {self._path} cannot be decoded ({_reason(error)})") from error
        return out

    def _map(self) -> npt.NDArray[Any] | None:
        """The pixels as they lie in the file, if they are uncompressed and in one run."""
        offset = self._series.dataoffset
        if offset is None:
            return None
        dtype = self.dtype.newbyteorder(self._file.byteorder)
        try:
            return np.memmap(self._path, dtype, "r", offset, self.shape)
        except ValueError as error:
            raise InputError(f"{self._path} is truncated: it ends before its {self.shape[0]} sections do") from error

    def _check_pages(self) -> None:
        """The chain of pages must end where it says so: readers take a broken chain for the end of the file."""
        pages, handle = self._file.pages, self._file.filehandle
        handle.seek(pages.next_page_offset)
        following = handle.read(self._file.tiff.offsetsize)
        missing = self._mapped is None and len(pages) < self.shape[0]
        if missing or following.strip(b"\0") or len(following) < self._file.tiff.offsetsize:
            raise InputError(f"{self._path} is truncated or damaged after page {len(pages) - 1}; export it again")


def _voxel_size(file: Any) -> VoxelSize | None:
    """As OME or ImageJ told it; the resolution that every TIFF has is that of a printer."""
    if file.is_ome:
        return of_ome(file.ome_metadata)
    if not file.is_imagej:
        return None
    tags = file.pages[0].tags
    found = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]
    if len(found) != 2 or any(down == 0 for _, down in found):
        return None
    return of_imagej(file.imagej_metadata, (found[0][0] / found[0][1], found[1][0] / found[1][1]))


def _voxel_size_of(path: Path) -> VoxelSize | None:
    with tifffile.TiffFile(path) as file:
        return _voxel_size(file)


class SectionFolder(Reader):
    """A folder of sections, one grey image a file, in natural order (section 2 before section 10).

    Opening it looks at the header of each file, unless `check` is off.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self._path = path
        self._files = _section_files(path)
        suffix = self._files[0].suffix.lower()
        self._image = next((image for image in (PNG, JPEG) if suffix in image.suffixes), None)
        self._cache = PieceCache()
        (rows, columns), self.dtype, piece = self._header(self._files[0])
        self.shape: Vec = (len(self._files), rows, columns)
        self.unit: Vec = (1, *piece)
        self.cache_bytes = _cache_bytes(self.shape, self.unit, self.dtype)
        self._checked = {self._files[0]}
        for file in self._files if check else ():
            self._check_section(file)
        self.description = f"folder of {len(self._files)} {self._image.name if self._image else 'TIFF'} sections"
        self.voxel_size = None if self._image else _voxel_size_of(self._files[0])

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of `box`. Raises `BlockError` naming the section that cannot be decoded or differs."""
        out = np.zeros(box.shape, self.dtype)
        for plane, z in zip(out, range(box.start[0], box.stop[0]), strict=True):
            file = self._files[z]
            try:
                self._check_section(file)
                self._read_section(file, box, plane)
            except InputError as error:
                raise BlockError(str(error)) from error
            except Exception as error:
                raise BlockError(f"section {file} cannot be decoded ({_reason(error)}); export it again") from error
        return out

    def _read_section(self, file: Path, box: Box, plane: Plane) -> None:
        if self._image:
            whole = self._cache.get(file, partial(self._image.decode, file))
            plane[...] = whole[box.slices()[1:]]
        else:
            with tifffile.TiffFile(file) as tiff:
                _read_page(tiff.pages[0], file, threading.Lock(), self._cache, box, plane)

    def _header(self, file: Path) -> tuple[tuple[int, int], np.dtype[Any], tuple[int, int]]:
        try:
            if self._image is None:
                return _tiff_header(file)
            shape, dtype = self._image.header(file)
            return shape, dtype, shape
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"section {file} cannot be read ({_reason(error)}); export it again") from error

    def _check_section(self, file: Path) -> None:
        if file in self._checked:
            return
        shape, dtype, _ = self._header(file)
        if (shape, dtype) != (self.shape[1:], self.dtype):
            raise InputError(
                f"section {file} is {list(shape)} {dtype}, where {self._files[0].name} is {list(self.shape[1:])} "
                f"{self.dtype}; all sections must have one size and type"
            )
        self._checked.add(file)


def _section_files(path: Path) -> list[Path]:
    """The sections of a folder in natural order; files of other kinds and hidden ones are passed over."""
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    kinds = {
        name: files
        for name, suffixes in _SUFFIXES.items()
        if (files := [entry for entry in entries if entry.suffix.lower() in suffixes])
    }
    if len(kinds) > 1:
        mixture = " and ".join(f"{len(files)} {name}" for name, files in kinds.items())
        raise InputError(f"folder {path} mixes {mixture} files; keep one kind in it")
    if not kinds:
        raise InputError(f"folder {path} holds no sections: no .tif, .tiff, .png, .jpg or .jpeg file is in it")
    (files,) = kinds.values()
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sorts numbers in names by value.

    >>> sorted(["z10.tif", "z9.tif", "z010.tif"], key=natural_key)
    ['z9.tif', 'z010.tif', 'z10.tif']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts], name


def _tiff_header(file: Path) -> tuple[tuple[int, int], np.dtype[Any], tuple[int, int]]:
    with tifffile.TiffFile(file) as tiff:
        if len(tiff.pages) != 1:
            raise InputError(f"section {file} has {len(tiff.pages)} pages; a folder takes one section a file")
        page = tiff.pages[0]
        _refuse_colour(file, page)
        rows, columns = page.chunks[-2:]
        return (page.imagelength, page.imagewidth), np.dtype(page.dtype), (min(rows, page.imagelength), columns)


def _refuse_colour(path: Path, page: Any) -> None:
    if page.samplesperpixel != 1:
        raise InputError(f"{path} has {page.samplesperpixel} samples a pixel, as RGB has; export it in grey")
    if page.dtype is None or page.imagedepth != 1:
        raise InputError(
            f"{path} has pixels of {page.bitspersample} bits in pages of depth {page.imagedepth}; "
            "export grey pages of 8 or 16 bits"
        )


def _refuse_mixed_pages(path: Path, pages: Any) -> None:
    first = pages[0]
    for number, page in enumerate(pages):
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"page {number} of {path} is {list(page.shape)} {page.dtype}, where page 0 is {list(first.shape)} "
                f"{first.dtype}; all sections must have one size and type"
            )
    raise InputError(f"{path} holds more than one image; export each as a stack of its own")


def _stack_shape(path: Path, series: Any) -> Vec:
    """Pages, rows and columns; ImageJ's other axes must have length 1."""
    axes = {name: n for name, n in zip(series.axes, series.shape, strict=True) if n != 1 and name not in "YX"}
    page = series.keyframe
    if len(axes) > 1 or set(axes) & {"C", "S"}:
        raise InputError(
            f"{path} has axes {series.axes} of {list(series.shape)}, not 3-D; export one channel and time as a stack"
        )
    return next(iter(axes.values()), 1), page.imagelength, page.imagewidth


def _read_page(page: Any, name: Hashable, lock: threading.Lock, cache: PieceCache, box: Box, plane: Plane) -> None:
    """Fill `plane` with the part of a page in `box`, decoding only the strips or tiles that it touches."""
    window = Box((0, *box.start[1:]), (1, *box.stop[1:]))
    for number, place in _pieces(page, window):
        piece = cache.get((name, number), partial(_decode_piece, page, number, lock))
        part = Box(place, (1, place[1] + piece.shape[0], place[2] + piece.shape[1])).intersect(window)
        plane[part.slices(window.start)[1:]] = piece[part.slices(place)[1:]]


def _pieces(page: Any, window: Box) -> Iterator[tuple[int, Vec]]:
    """Numbers and first pixels of the strips or tiles that touch the window."""
    rows, columns = page.chunks[-2:]
    across = -(-page.keyframe.imagewidth // columns)
    for row in range(window.start[1] // rows, -(-window.stop[1] // rows)):
        for column in range(window.start[2] // columns, -(-window.stop[2] // columns)):
            yield row * across + column, (0, row * rows, column * columns)


def _decode_piece(page: Any, number: int, lock: threading.Lock) -> Plane:
    count = page.databytecounts[number]
    handle = page.parent.filehandle
    with lock:
        handle.seek(page.dataoffsets[number])
        data = handle.read(count)
        decode = page.keyframe.decode
    if len(data) < count:
        raise ValueError(f"the file ends {count - len(data)} bytes too early")
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader} if page.jpegtables else {}
    piece, _, (_, rows, columns, _) = decode(data if count else None, number, **tables)
    if piece is None:
        # An omitted piece of a sparse file.
        return np.zeros((rows, columns), page.dtype)
    flat: Plane = np.asarray(piece).reshape(rows, columns)
    return flat.astype(page.dtype, copy=False)


def _cache_bytes(shape: Vec, unit: Vec, dtype: np.dtype[Any]) -> int:
    """What the cache can grow to, and a piece on its way in, compressed and decoded."""
    return min(CACHE_BYTES, math.prod(shape) * dtype.itemsize) + 2 * math.prod(unit) * dtype.itemsize


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__

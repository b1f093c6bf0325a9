"""Reads regions of TIFF files, and of them only the pieces (tiles, strips, rows) that a region touches.

The values are those that data/images.py gives for the file read in one piece: of the same channels and pages, by the
same decoders. Pieces that Pillow has to decode become small TIFF files in memory, one for each.
"""

import io
import itertools
import lzma
import math
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from data.georeference import read_geotiff
from data.images import decoded_kind, pillow_values
from data.measurements import nearest_level, tiff_pixel_size
from data.tiff import MOST_BYTES, TiffError, TiffImage

CACHE_BYTES = 128 << 20  # of decoded pieces: a row of tiles of a striped file of 40,000 pixels in colour fits
TILED_CACHE_BYTES = 32 << 20  # of pieces that are tiles: those that a place and its neighbours touch fit

_NONE, _PACKBITS, _LZMA, _DEFLATE = 1, 32773, 34925, (8, 32946)
_MIN_IS_BLACK, _RGB = 1, 2
_NODATA = 42113  # GDAL's tag
MOST_PIXELS = 1 << 40  # of an image; more is a damaged header

############################################################
#  Pieces
############################################################


class PieceCache:
    """The pieces of images that were used last, up to so many bytes. Threads may share it."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self._pieces: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The piece of a key, made if it is not there. Two threads may make the same one."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key]
        piece = make()
        with self._lock:
            if key not in self._pieces and piece.nbytes <= self.most_bytes:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
                while self._bytes > self.most_bytes:
                    self._bytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece


class _Plane(NamedTuple):
    """A page, or a part of one: where its pieces lie in the file."""

    offsets: Sequence[int]
    counts: Sequence[int]  # of bytes


class Grid(NamedTuple):
    """How an image is cut into pieces."""

    height: int  # of the image
    width: int
    rows: int  # of a piece
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """How many pieces there are, down and across."""
        return -(-self.height // self.rows), -(-self.width // self.columns)

    def touched(self, y1: int, x1: int, y2: int, x2: int) -> Iterator[tuple[int, int, int]]:
        """The pieces of a region: number, and the row and column of the image where each begins."""
        across = self.shape[1]
        rows = range(y1 // self.rows, -(-y2 // self.rows))
        columns = range(x1 // self.columns, -(-x2 // self.columns))
        for row, column in itertools.product(rows, columns):
            yield row * across + column, row * self.rows, column * self.columns


def cache_bytes(grid: Grid, pixel_bytes: int) -> int:
    """How much of an image's decoded pieces to keep: a row of strips; of tiles a few, as they are read side by side."""
    piece = grid.rows * grid.columns * pixel_bytes
    return CACHE_BYTES if grid.columns >= grid.width else min(CACHE_BYTES, max(TILED_CACHE_BYTES, 4 * piece))


def paste(out: np.ndarray, region: Sequence[int], piece: np.ndarray, y: int, x: int) -> None:
    """Copy the part of a piece that lies in a region. out: of the region. y, x: where the piece begins in the image."""
    y1, x1, y2, x2 = region
    top, left = max(y, y1), max(x, x1)
    bottom, right = min(y + piece.shape[0], y2), min(x + piece.shape[1], x2)
    out[top - y1 : bottom - y1, left - x1 : right - x1] = piece[top - y : bottom - y, left - x : right - x]


############################################################
#  Files
############################################################


class TiffRegions:
    """The first image of a TIFF, by regions.

    shape: (H, W) or (H, W, C), as the pixels are stored. dtype: of the values. orientation: EXIF's, 1 to 8.
    bits, notes: as those of TiffImage. pixel_size: micrometres, or None. georeference: a Georeference, or None.
    nodata: the value of pixels that show nothing, or None.
    """

    def __init__(
        self, file: BinaryIO, channels: int = 3, micrometres: float | None = None, cache: PieceCache | None = None
    ) -> None:
        """Reads the header. file: stays open. channels: those that a network takes. micrometres: of a pixel; the level
        of a pyramid that is nearest to it is read. None: the finest. cache: of pieces, which several files may share;
        None: one of its own.

        Raises: TiffError for a file that cannot be read by regions; errors of many kinds for a damaged one.
        """
        self._file, self._lock = file, threading.Lock()
        self._channels = channels
        self.tiff, self.pixel_size = _open_level(file, channels, micrometres)
        self.page = page = self.tiff.page
        self.orientation, self.bits, self.notes = self.tiff.orientation, self.tiff.bits, self.tiff.notes
        self.georeference, self.nodata = read_geotiff(page), _nodata(page)
        self._planes = self._find_planes()
        height, width = self.tiff.layout.height, self.tiff.layout.width
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
        if min(height, width, rows, columns) < 1 or height * width > MOST_PIXELS:
            raise TiffError(f"its size is {width} x {height}, in pieces of {columns} x {rows}; is it damaged?")
        self._grid = Grid(height, width, rows if page.is_tiled else min(rows, height), columns)
        self._is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
        self._in_piece = 1 if self._is_planar else page.samplesperpixel  # samples of a pixel
        self._by_pillow = self._needs_pillow()
        is_contiguous = page.is_contiguous and all(plane.offsets[0] for plane in self._planes)
        self._is_raw = not self._by_pillow and is_contiguous and page.compression == _NONE and page.predictor == 1
        if (
            not self._is_raw
            and self._grid.rows * columns * page.samplesperpixel * max(self.tiff.dtype.itemsize, 1) > MOST_BYTES
        ):
            raise TiffError(
                f"it is stored in pieces of {columns} x {self._grid.rows} pixels, each larger than "
                f"{MOST_BYTES >> 30} GB; save it in tiles, such as 256 x 256"
            )
        self._is_stacked = len(self._planes) > 1 or (self._by_pillow and bool(self.tiff.channel_pages))
        if self._by_pillow:
            count, self.dtype = decoded_kind(self._open_piece(self._nothing, self._grid.rows)[0], channels)
        else:
            self.dtype = self.tiff.dtype.newbyteorder("=")
            count = self.tiff.count if self.tiff.layout.axes[2] is not None and self.tiff.count > 1 else None
        count = len(self._planes) if self._is_stacked else count
        self.shape = (height, width) if count is None else (height, width, count)
        pixel_bytes = self.dtype.itemsize * math.prod(self.shape[2:])
        self._cache = cache or PieceCache(cache_bytes(self._grid, pixel_bytes))
        if self._is_raw:
            self._check_end()

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The values of a region, as the file has them: [y2 - y1, x2 - x1] or [..., C].

        Raises: TiffError, and errors of many kinds, for a damaged file.
        """
        region = (y1, x1, y2, x2)
        if self._is_raw:
            return self._read_raw(region)
        out = np.zeros((y2 - y1, x2 - x1, *self.shape[2:]), self.dtype)
        for number, y, x in self._grid.touched(*region):
            piece = self._cache.get((self._lock, number), lambda number=number: self._piece(number))
            paste(out, region, piece, y, x)
        return out

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether the file has nothing of a region: its pieces were never written."""
        if self._is_raw:
            return False
        return all(
            not any(sum(plane.counts[place : place + 1]) for plane in self._planes for place in self._places(number))
            for number, _, _ in self._grid.touched(y1, x1, y2, x2)
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    ### Header

    def _find_planes(self) -> list[_Plane]:
        """The page of each channel, or the one of all. Raises: TiffError if rows or columns are in several pages."""
        layout, series, page = self.tiff.layout, self.tiff.series, self.page
        shape = series.shape
        start = next(axis for axis in range(len(shape), -1, -1) if math.prod(shape[axis:]) == math.prod(page.shape))
        rows, columns, channels = layout.axes
        _, depth, height, width, _ = page.shaped
        is_usual = depth == 1 and (height, width) == (layout.height, layout.width) and start <= rows < columns
        if not is_usual or (channels is not None and channels >= start and page.samplesperpixel == 1):
            raise TiffError("its rows and columns do not lie in one page each")
        if page.jpegheader is not None:  # NDPI: one JPEG of the whole image
            raise TiffError("its pieces are no images of their own (NDPI)")
        if channels is None or channels >= start:
            numbers = [0]
        else:
            step = math.prod(shape[channels + 1 : start])
            numbers = [step * channel for channel in range(self.tiff.count)]
        if series.is_truncated:  # one page, and the pixels of the others behind its own
            if numbers != [0] and not page.is_contiguous:
                raise TiffError("it lacks the pages that it names")
            return [_Plane([page.dataoffsets[0] + number * page.nbytes], [page.nbytes]) for number in numbers]
        pages = [series.pages[number] for number in numbers]
        if any(found is None or found.parent is not self.tiff.file for found in pages):
            raise TiffError("its pages lie in several files")
        return [_Plane(found.dataoffsets, found.databytecounts) for found in pages]

    def _needs_pillow(self) -> bool:
        """Whether Pillow decodes the pieces, as it does for images of this kind. Raises: TiffError if nothing can."""
        tiff, page = self.tiff, self.page
        is_simple = page.photometric in (_MIN_IS_BLACK, _RGB) and not page.extrasamples
        is_ours = tiff.is_readable and page.bitspersample in (8, 16, 32, 64) and page.fillorder == 1
        is_ours = is_ours and page.predictor in (1, 2) and tiff.dtype.kind in "uif"
        if is_ours and (is_simple or not tiff.is_plain):
            return False
        if tiff.is_plain or tiff.has_whole_pages:
            try:
                self._open_piece(self._nothing, self._grid.rows)
                return True
            except (Image.UnidentifiedImageError, KeyError):  # KeyError: of a compression that it does not know
                pass
        tiff.check_decoder()
        if not is_ours:
            raise TiffError("its values cannot be read by regions")
        return False

    @property
    def _nothing(self) -> list[bytes]:
        """The parts of a piece without any bytes, of which Pillow reads the header."""
        return [b""] * (self.page.samplesperpixel if self._is_planar else 1)

    @cached_property
    def _decoding_fields(self) -> dict[int, tuple[int, int, bytes]]:
        """The file's own fields that say how pieces are decoded, by tag: type, count and bytes."""
        fields = {}
        for code in _DECODING_TAGS:
            tag = self.page.tags.get(code)
            size = 0 if tag is None else _TYPE_SIZES.get(int(tag.dtype), 0) * tag.count
            if 0 < size <= _MOST_FIELD_BYTES:
                fields[code] = (int(tag.dtype), tag.count, self._bytes_at(tag.valueoffset, size))
        return fields

    def _check_end(self) -> None:
        """Raises TiffError for a file that is shorter than its pixels."""
        self._file.seek(0, io.SEEK_END)
        end = self._file.tell()
        if any(plane.offsets[0] + self.page.nbytes > end for plane in self._planes):
            raise TiffError("cannot be decoded; is it cut off or damaged? (it ends before its pixels do)")

    ### Pixels

    def _bytes_at(self, offset: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(count)
        if len(data) < count:
            raise TiffError("cannot be decoded; is it cut off or damaged? (a piece of it is missing)")
        return data

    def _read_raw(self, region: Sequence[int]) -> np.ndarray:
        """A region of a file whose pixels lie in it one after the other."""
        y1, x1, y2, x2 = region
        height, width = self._grid.height, self._grid.width
        stored = self.tiff.dtype.newbyteorder(self.tiff.file.byteorder)
        count = self.tiff.count
        pixel = self._in_piece * stored.itemsize
        parts = []
        for plane in self._planes:
            for sample in range(count if self._is_planar else 1):
                start = plane.offsets[0] + sample * height * width * stored.itemsize + x1 * pixel
                rows = [self._bytes_at(start + y * width * pixel, (x2 - x1) * pixel) for y in range(y1, y2)]
                part = np.frombuffer(b"".join(rows), stored).reshape(y2 - y1, x2 - x1, self._in_piece)
                parts.append(part if self._is_planar or len(self._planes) > 1 else part[..., :count])
        values = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
        return values.reshape(y2 - y1, x2 - x1, *self.shape[2:]).astype(self.dtype)

    def _places(self, number: int) -> list[int]:
        """Where the parts of a piece are listed: one, or one for each sample of a pixel."""
        if not self._is_planar:
            return [number]
        samples = self.page.samplesperpixel if self._by_pillow else self.tiff.count
        return [sample * math.prod(self._grid.shape) + number for sample in range(samples)]

    def _piece(self, number: int) -> np.ndarray:
        """The values of a piece, [rows, columns] or [rows, columns, C]."""
        y = number // self._grid.shape[1] * self._grid.rows
        inside = min(self._grid.rows, self._grid.height - y)
        rows = self._grid.rows if self.page.is_tiled else inside
        planes = []
        for plane in self._planes:
            packed = [self._packed(plane, place) for place in self._places(number)]
            if not any(packed):
                count = 1 if self._is_stacked else math.prod(self.shape[2:])
                values = np.full((rows, self._grid.columns, count), self._filling, self.dtype)
            elif self._by_pillow:
                values = pillow_values(*self._open_piece(packed, rows), self._channels)
            else:
                parts = [self._decoded(part, rows, inside) for part in packed]
                values = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0][..., : self.tiff.count]
            is_gray = self._is_stacked or len(self.shape) == 2
            planes.append(values[..., 0] if is_gray and values.ndim == 3 else values)
        return np.stack(planes, axis=-1) if self._is_stacked else planes[0]

    @property
    def _filling(self) -> float:
        """The value of pixels that were never written."""
        value = 0.0 if self.nodata is None else self.nodata
        return value if self.dtype.kind == "f" or (math.isfinite(value) and _fits(value, self.dtype)) else 0.0

    def _packed(self, plane: _Plane, place: int) -> bytes:
        if place >= min(len(plane.offsets), len(plane.counts)):
            raise TiffError("cannot be decoded; is it cut off or damaged? (it does not list all of its pieces)")
        offset, count = int(plane.offsets[place]), int(plane.counts[place])
        return self._bytes_at(offset, count) if offset and count else b""

    def _decoded(self, packed: bytes, rows: int, inside: int) -> np.ndarray:
        """The values of a piece of one or more samples, [rows, columns, samples]. inside: rows that the image has."""
        stored = self.tiff.dtype.newbyteorder(self.tiff.file.byteorder)
        shape = (self._grid.columns, self._in_piece)
        row = math.prod(shape) * stored.itemsize
        if not packed:
            return np.full((rows, *shape), self._filling, self.dtype)
        data = _unpacked(packed, int(self.page.compression), rows * row)
        found = min(len(data) // row, rows)
        if found < inside:  # the last row of tiles may be shorter
            raise TiffError("cannot be decoded; is it cut off or damaged? (a piece of it is too short)")
        values = np.frombuffer(data, stored, found * math.prod(shape)).reshape(found, *shape).astype(self.dtype)
        if self.page.predictor == 2:
            whole = values.view(f"u{values.dtype.itemsize}")
            values = np.cumsum(whole, axis=1, dtype=whole.dtype).view(values.dtype)
        return values

    def _open_piece(self, packed: Sequence[bytes], rows: int) -> tuple[Image.Image, BinaryIO]:
        """A piece as an image of Pillow, not yet decoded, and the TIFF in memory that it lies in."""
        file = io.BytesIO(self._small_tiff(packed, rows))
        return Image.open(file, formats=["TIFF"]), file

    def _small_tiff(self, packed: Sequence[bytes], rows: int) -> bytes:
        """A TIFF file of one strip for each of the parts, which is decoded as they are in the large file.

        Source: TIFF 6.0, section 2.
        """
        order = self.tiff.file.byteorder
        fields = dict(self._decoding_fields)
        sizes = [len(part) for part in packed]
        starts = [8 + sum(sizes[:i]) for i in range(len(sizes))]
        longs = {256: [self._grid.columns], 257: [rows], 278: [rows], 273: starts, 279: sizes}
        for code, numbers in longs.items():
            fields[code] = (4, len(numbers), struct.pack(f"{order}{len(numbers)}I", *numbers))
        body = b"".join(packed) + bytes(sum(sizes) % 2)  # directories begin at even places
        place = 8 + len(body) + 2 + 12 * len(fields) + 4
        entries, values = b"", b""
        for code, (kind, count, data) in sorted(fields.items()):
            entries += struct.pack(f"{order}HHI", code, kind, count)
            if len(data) <= 4:
                entries += data.ljust(4, b"\0")
            else:
                entries += struct.pack(f"{order}I", place + len(values))
                values += data
        magic = b"II*\0" if order == "<" else b"MM\0*"
        directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
        return magic + struct.pack(f"{order}I", 8 + len(body)) + body + directory + values


# How pieces are decoded: bits, compression, photometric interpretation, fill order, samples, planes, fax, predictor,
# palette, extra samples, kind of numbers, JPEG and YCbCr.
_DECODING_TAGS = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 338, 339, 347, 529, 530, 531, 532)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of the types of TIFF
_MOST_FIELD_BYTES = 1 << 20  # JPEG's tables and palettes have far less


def _open_level(file: BinaryIO, channels: int, micrometres: float | None) -> tuple[TiffImage, float | None]:
    """The level of a pyramid whose pixels are nearest to a size, and that of its pixels."""
    tiff = TiffImage(file, channels)
    finest, levels = tiff_pixel_size(tiff.file), tiff.series.levels
    widths = [level.shape[level.axes.index("X")] for level in levels]
    sizes = [None if finest is None else finest * widths[0] / width for width in widths]
    number = nearest_level(sizes, micrometres)
    file.seek(0)
    return TiffImage(file, channels, number) if number else tiff, sizes[number]


def _unpacked(packed: bytes, compression: int, size: int) -> bytes:
    """The first bytes of what is unpacked, at most `size`."""
    if compression in _DEFLATE:
        return zlib.decompressobj().decompress(packed, size)
    if compression == _LZMA:
        return lzma.LZMADecompressor().decompress(packed, size)
    if compression == _PACKBITS:
        return _unpack_bits(packed, size)
    return packed[:size]


def _unpack_bits(packed: bytes, size: int) -> bytes:
    """PackBits. Source: TIFF 6.0, section 9."""
    out, place = bytearray(), 0
    while place < len(packed) and len(out) < size:
        count = packed[place]
        if count < 128:
            out += packed[place + 1 : place + 2 + count]
            place += 2 + count
        else:
            out += packed[place + 1 : place + 2] * (257 - count if count > 128 else 0)
            place += 2 if count > 128 else 1
    return bytes(out[:size])


def _nodata(page: Any) -> float | None:
    """GDAL's value of pixels that show nothing."""
    try:
        return float(str(page.tags.valueof(_NODATA)).strip("\0 "))
    except ValueError:  # also of "None", where there is no such tag
        return None


def _fits(value: float, dtype: np.dtype) -> bool:
    """Whether numbers of an integer type can have a value."""
    return dtype.kind in "ui" and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max

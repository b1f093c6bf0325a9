"""Images that are read by regions, whatever their size, and their pixels in 8 bits by one rule for the whole image.

    with open_source("slide.tif") as source:
        source.shape, source.pixel_size, source.read(0, 0, 512, 512)

    tiles and strips of TIFF, BigTIFF, OME-TIFF, ImageJ   only the pieces that a region touches: data/tiff_regions.py
    OME-Zarr and Zarr arrays                              the same, by the package zarr: data/zarr_regions.py
    slides                                                the same, by OpenSlide: data/slide_regions.py
    aerial and satellite images                           the same, by rasterio: data/map_regions.py
    other files that read_image reads                     decoded once, when the first region is read

H, W the image's height and width   Regions are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside.
"""

import contextlib
import functools
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

import utils
from config import Config
from data import map_regions, slide_regions
from data.georeference import Georeference
from data.images import (
    Refused,
    channel_mismatch,
    decode,
    decoded_kind,
    eight_bits_rule,
    errors_named,
    exif_orientation,
    fit_channels,
    open_file,
    open_header,
    reading_settings,
    say_once,
    turned,
)
from data.inputs import image_array
from data.map_regions import GeoTiffRegions, MapRegions
from data.measurements import tiff_pixel_size
from data.slide_regions import SlideRegions
from data.tiff import TiffError, is_tiff
from data.tiff_regions import PieceCache, TiffRegions
from data.zarr_regions import ZarrRegions, is_zarr

logger = logging.getLogger(__name__)

############################################################
#  Sources
############################################################


class Source:
    """An image that is read by regions. Threads may share it.

    shape: (H, W) or (H, W, C). dtype: of the values, or None if it is not known. pixel_size: micrometres a pixel, or
    None. georeference: a Georeference, or None.
    """

    shape: Sequence[int]
    dtype: np.dtype | None = None
    pixel_size: float | None = None
    georeference: Georeference | None = None

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The values [y2 - y1, x2 - x1] or [..., C] of a region inside the image."""
        raise NotImplementedError

    def is_blank(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether there is nothing to see in a region, such as where a slide was not scanned."""
        return False

    def close(self) -> None:
        """Close the file, if there is one."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ArraySource(Source):
    """An array [H, W] or [H, W, C]; a memory map reads only what is needed."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        return np.asarray(self.array[y1:y2, x1:x2])


class _ObjectSource(Source):
    """A user's object that has a shape and reads regions, and perhaps more of a Source."""

    def __init__(self, wrapped: Any) -> None:
        self.read = wrapped.read
        self.shape = wrapped.shape
        for name in ("dtype", "pixel_size", "georeference", "is_blank", "close"):
            if hasattr(wrapped, name):
                setattr(self, name, getattr(wrapped, name))


def as_source(source: Any) -> Source:
    """A Source of an array, of an object with `shape` and `read`, or the Source itself. Raises: ValueError for others.

    Values are taken as detect() takes those of arrays. open_source() reads files.
    """
    if isinstance(source, np.ndarray):
        source = ArraySource(source)
    shape = getattr(source, "shape", "")
    if not callable(getattr(source, "read", None)) or not isinstance(shape, Sequence) or len(shape) not in (2, 3):
        raise ValueError(
            "source must be an array [H, W] or [H, W, C], or have a shape like these and a method "
            f"read(y1, x1, y2, x2), got {type(source).__name__} {shape}; open_source reads files"
        )
    return source if isinstance(source, Source) else _ObjectSource(source)


############################################################
#  Files
############################################################


def open_source(
    path: str | os.PathLike, channels: int = 3, micrometres: float | None = None, cache: PieceCache | None = None
) -> "FileSource":
    """Opens a file, or a folder of Zarr, that is read by regions, and reads its header. It stays open until close().

    Values, channels and pages are those of read_image; its pixels are turned as EXIF says. Pixels makes the same 8 bits
    of them.

    channels: Config.IMAGE_CHANNEL_COUNT of the model that is to see them. micrometres: of a pixel; of a pyramid, such
        as a slide, the level that is nearest to it is read. None: the finest. cache: of decoded pieces of TIFF files,
        which several files may share; None: one of its own.

    Raises: FileNotFoundError if there is no such file. ValueError, with the file and the cause, if it is no image that
        can be read, if a package for it is missing, or if it is too large for the memory.
    """
    path = Path(path)
    name = utils.printable(path, 500)
    file = None if path.is_dir() and is_zarr(path) else open_file(path)
    try:
        with errors_named(name, file):
            return FileSource(path, file, _open_reader(path, file, channels, micrometres, cache))
    except BaseException:
        if file is not None:
            file.close()
        raise


def _open_reader(
    path: Path, file: BinaryIO | None, channels: int, micrometres: float | None, cache: PieceCache | None
) -> Any:
    """What reads the regions of an open file, or of a folder."""
    if file is None:
        return ZarrRegions(path, channels, micrometres)
    has_pieces = is_tiff(file)
    if has_pieces or path.suffix.lower() in slide_regions.SUFFIXES:
        if slide_regions.find_vendor(path) not in (None, "generic-tiff"):
            return SlideRegions(path, micrometres)
        if not has_pieces and (missing := slide_regions.missing_package(path)):
            raise Refused(missing)
    reason = ""
    if has_pieces:
        try:
            pixels = TiffRegions(file, channels, micrometres, cache)
            if pixels.georeference is not None and map_regions.is_installed():
                with contextlib.suppress(Exception):  # GDAL wants more of a file than its pixels need
                    return GeoTiffRegions(pixels, MapRegions(path, channels))
            return pixels
        except TiffError as error:
            reason = str(error)
            file.seek(0)
    try:
        return _WholeFile(file, channels, reason)
    except (Refused, TiffError, Image.UnidentifiedImageError) as error:
        with contextlib.suppress(Exception):  # GDAL reads more kinds; if it cannot, the first error says why
            if map_regions.is_installed():
                return MapRegions(path, channels)
        missing = slide_regions.missing_package(path)
        raise (type(error)(f"{error}; {missing}") if missing else error) from None


def source_shape(path: str | os.PathLike) -> tuple[int, int]:
    """(H, W) of what open_source reads, from the header alone. Raises: as open_source."""
    with open_source(path) as source:
        return source.shape[0], source.shape[1]


def georeference_of(path: str | os.PathLike) -> Georeference | None:
    """Where a picture that is read in one piece lies on a map, if it is a TIFF that says it."""
    with contextlib.suppress(OSError, ValueError):  # a picture that only read_image can read has no place
        with open(path, "rb") as file:
            is_possible = is_tiff(file)
        if is_possible:
            with open_source(path) as source:
                return source.georeference
    return None


class FileSource(Source):
    """A file that open_source has opened.

    path: of the file. name: the same, for messages. bits: how many bits of 16 the file says are in use, or None.
    nodata: the value of pixels that show nothing, or None. notes: sentences about what is not read.
    reads_parts: whether a region is read without the rest of the file.
    """

    def __init__(self, path: Path, file: BinaryIO | None, reader: Any) -> None:
        """reader: has shape, dtype, orientation, notes, bits, pixel_size, georeference and nodata, and methods read,
        is_empty and close, all of the pixels as they are stored.
        """
        self.path, self.name, self.notes = path, utils.printable(path, 500), list(reader.notes)
        self._file, self._reader, self.reads_parts = file, reader, not isinstance(reader, _WholeFile)
        height, width, *channels = reader.shape
        self.shape = (*((width, height) if reader.orientation >= 5 else (height, width)), *channels)
        self.dtype, self.nodata, self.pixel_size = reader.dtype, reader.nodata, reader.pixel_size
        self.georeference = reader.georeference if reader.orientation == 1 else None

    @property
    def bits(self) -> int | None:
        with errors_named(self.name, self._file):
            return self._reader.bits

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        self._check(y1, x1, y2, x2)
        with errors_named(self.name, self._file):
            return turned(self._reader.read(*self._stored(y1, x1, y2, x2)), self._reader.orientation)

    def is_blank(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether the file has no pixels there, or all of them are its value for no data or not finite."""
        self._check(y1, x1, y2, x2)
        with errors_named(self.name, self._file):
            if self._reader.is_empty(*self._stored(y1, x1, y2, x2)):
                return True
        if self.nodata is None and self.dtype.kind != "f":
            return False
        missing = self.missing(self.read(y1, x1, y2, x2))
        return missing is not None and bool(missing.all())

    def missing(self, values: np.ndarray) -> np.ndarray | None:
        """Which values are no data or not finite, bool, of the same shape; None if that is none."""
        missing = None if self.nodata is None or math.isnan(self.nodata) else values == self.nodata
        if values.dtype.kind == "f":
            missing = ~np.isfinite(values) if missing is None else missing | ~np.isfinite(values)
        return missing if missing is not None and missing.any() else None

    def close(self) -> None:
        self._reader.close()
        if self._file is not None:
            self._file.close()

    def _check(self, y1: int, x1: int, y2: int, x2: int) -> None:
        height, width = self.shape[:2]
        if not (0 <= y1 < y2 <= height and 0 <= x1 < x2 <= width):
            raise ValueError(
                f"image {self.name}: rows {y1} to {y2} and columns {x1} to {x2} must have pixels, and lie inside "
                f"{height} x {width}"
            )

    def _stored(self, y1: int, x1: int, y2: int, x2: int) -> tuple[int, int, int, int]:
        """The region of the stored pixels that becomes a region when it is turned as EXIF says."""
        height, width = self.shape[:2]
        if self._reader.orientation in (3, 4, 7, 8):
            y1, y2 = height - y2, height - y1
        if self._reader.orientation in (2, 3, 6, 7):
            x1, x2 = width - x2, width - x1
        return (x1, y1, x2, y2) if self._reader.orientation >= 5 else (y1, x1, y2, x2)


_BYTES_A_PIXEL = 12  # that decoding takes: Pillow's image and two arrays
_pillow_limit = threading.Lock()


class _WholeFile:
    """A file that can only be decoded as a whole. That is done when the first region is read."""

    georeference = nodata = None

    def __init__(self, file: BinaryIO, channels: int, reason: str = "") -> None:
        """reason: why a TIFF cannot be read by regions."""
        self._file, self._channels, self._lock = file, channels, threading.Lock()
        self._decoded = None
        with _without_pillows_limit():
            image, tiff = open_header(file, 1 << 62, channels)
        height, width = tiff.layout[:2] if image is None else image.size[::-1]
        if height * width > _most_pixels():
            raise Refused(
                f"its {width} x {height} pixels take about {height * width * _BYTES_A_PIXEL / 2**30:.0f} GB of memory, "
                f"as it cannot be read by regions{f' ({reason})' if reason else ''}; save it as a TIFF in tiles, such "
                "as by `vips tiffsave --tile --compression deflate --bigtiff`"
            )
        self.notes = [] if tiff is None else tiff.notes
        self.pixel_size = None if tiff is None else tiff_pixel_size(tiff.file)
        if image is None:
            tiff.check_decoder()
            count = tiff.count if tiff.layout.axes[2] is not None and tiff.count > 1 else None
            self.dtype, self.orientation = tiff.dtype, tiff.orientation
        else:
            count, self.dtype = decoded_kind(image, channels)
            self.orientation = 1 if image.format == "TIFF" else exif_orientation(image)  # Pillow itself turns a TIFF
            count = len(tiff.channel_pages) if tiff is not None and tiff.channel_pages else count
        self.shape = (height, width) if count is None else (height, width, count)

    @property
    def bits(self) -> int | None:
        return self._all().bits

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        return self._all().values[y1:y2, x1:x2]

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        return False

    def close(self) -> None:
        self._decoded = None

    def _all(self) -> Any:
        with self._lock:
            if self._decoded is None:
                self._file.seek(0)
                with _without_pillows_limit():
                    self._decoded = decode(self._file, _most_pixels(), self._channels)
            return self._decoded


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lets Pillow open images of any size. All that we open is checked by _most_pixels."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _most_pixels() -> int:
    """Of an image that is decoded as a whole: what read_image takes, or more if half of the free memory holds it."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:  # no Linux
        found = None
    return max(utils.MAX_IMAGE_PIXELS, int(found[1]) * 1024 // 2 // _BYTES_A_PIXEL if found else 0)


############################################################
#  Pixels in 8 bits
############################################################

SAMPLED_PIXELS = 4_000_000  # that percentiles of a large image are computed from, about
MOST_SURVEYED = 1 << 28  # pixels that are read to find the range of values; of a larger image, a part of them
_BLOCK = 1024  # side of the regions that are read for both


class Pixels:
    """The pixels of a source in 8 bits, by one rule for the whole image.

    Tiles by themselves would be of different brightness, and seams would show. Files become what read_image gives for
    the whole file, and arrays what detect() gives for the whole array. Where values decide (PIXEL_RANGE "percentiles",
    files of more than 8 bits), the image is read once before; of more than MOST_SURVEYED pixels, a part of it, which is
    logged.

    In files, values that are not finite (NaN) and those that the file calls no data do not count when the rule is
    chosen, and become black. Where values of 8 bits stay as they are, these do, too.
    """

    def __init__(self, source: Any, config: Config) -> None:
        """source: as as_source takes it. config: of the model.

        Raises: as as_source and read_image.
        """
        self.source = as_source(source)
        bit_depth, pixel_range, self.channels = reading_settings(config)
        self._is_file = isinstance(self.source, FileSource)
        self._rule, self._black = None, None
        is_plain = pixel_range != "percentiles" and self.source.dtype in (np.uint8, bool)
        if self._is_file:
            values, limits = (np.zeros((1, 1), self.source.dtype), None) if is_plain else self._survey()
            bits = None if is_plain else self.source.bits
            with errors_named(self.source.name, None):
                self._rule, decisions = eight_bits_rule(values, bits, bit_depth, pixel_range, limits)
            self._black = None if is_plain else limits[0]
            shape = np.zeros((1, 1, *self.source.shape[2:]), np.uint8)
            for note in (*self.source.notes, *decisions, channel_mismatch(shape, self.channels)):
                if note:
                    say_once(note, self.source.path)
        elif pixel_range == "percentiles":
            ranges = utils.percentile_ranges(self._survey()[0], "source")
            self._rule = functools.partial(utils.stretch_to_ranges, ranges=ranges, name="source")

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """uint8 [y2 - y1, x2 - x1, C]."""
        name = f"source at rows {y1} to {y2}, columns {x1} to {x2}"
        pixels = self._read(y1, x1, y2, x2)
        if self._black is not None and (missing := self.source.missing(pixels)) is not None:
            pixels = np.where(missing, np.asarray(self._black, pixels.dtype), pixels)
        pixels = pixels if self._rule is None else self._rule(pixels)
        if self._is_file:
            return np.ascontiguousarray(fit_channels(pixels, self.channels))
        return image_array(pixels, self.channels, name)

    def thumbnail(self, most_pixels: int = SAMPLED_PIXELS) -> np.ndarray:
        """Every n-th pixel of every n-th row, uint8 [h, w, C]: about most_pixels, and all of a smaller image."""
        height, width = self.source.shape[:2]
        step = _step(height * width, most_pixels)
        block = -(-_BLOCK // step) * step
        rows = []
        for y in range(0, height, block):
            y2 = min(y + block, height)
            columns = range(0, width, block)
            blocks = [self.read(y, x, y2, min(x + block, width))[::step, ::step].copy() for x in columns]
            rows.append(np.concatenate(blocks, axis=1))
        return np.concatenate(rows)

    def _survey(self) -> tuple[np.ndarray, tuple[float, float]]:
        """Some pixels of the whole image, [N, 1] or [N, 1, C], and the smallest and the largest value.

        About SAMPLED_PIXELS, and all of a smaller image; without those that show nothing.
        """
        height, width = self.source.shape[:2]
        step = _step(height * width, SAMPLED_PIXELS)
        block = -(-_BLOCK // step) * step
        across = -(-width // block)
        count = -(-height // block) * across
        every = -(-height * width // MOST_SURVEYED)
        while every > 1 and math.gcd(every, across) > 1:  # else only some columns would be looked at
            every += 1
        if every > 1:
            logger.warning(
                "%s: the range of its values is that of every %dth part of it, %d x %d pixels each",
                getattr(self.source, "name", "source"), every, block, block,
            )  # fmt: skip
        parts, low, high = [], math.inf, -math.inf
        for number in range(0, count, every):
            y, x = number // across * block, number % across * block
            values = self._read(y, x, min(y + block, height), min(x + block, width))
            missing = self.source.missing(values) if self._is_file else None
            if missing is None:
                shown, few = values, values[::step, ::step].reshape(-1, 1, *values.shape[2:])
            else:
                hidden = missing if missing.ndim == 2 else missing.any(axis=2)
                shown, few = values[~missing], values[::step, ::step][~hidden[::step, ::step]][:, None]
            if shown.size:
                low, high = min(low, shown.min().item()), max(high, shown.max().item())
            parts.append(few.copy())
        values = np.concatenate(parts)
        return (values, (low, high)) if values.size else (np.zeros((1, *values.shape[1:]), values.dtype), (0, 0))

    def _read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The region as the source gives it, without alpha."""
        pixels = self.source.read(y1, x1, y2, x2)
        if not isinstance(pixels, np.ndarray) or pixels.shape[:2] != (y2 - y1, x2 - x1):
            raise ValueError(
                f"source.read({y1}, {x1}, {y2}, {x2}) must return [{y2 - y1}, {x2 - x1}] or [..., C], "
                f"got {type(pixels).__name__} {getattr(pixels, 'shape', '')}"
            )
        return pixels[..., :3] if pixels.ndim == 3 and self.channels == 3 else pixels


def _step(count: int, most: int) -> int:
    """Of so many pixels, every n-th one of every n-th row leaves about `most`."""
    return max(1, math.ceil(math.sqrt(count / most)))

"""Reads TIFF files that Pillow cannot: more or fewer than three channels, in any order of axes, and more than 8 bits.

Which three channels of a file become red, green and blue, where a network takes three:

    1 channel        it is gray
    2 channels       red and green; blue is 0. If the second one is transparency, the first one is gray
    3 or more        the first three; a fourth may be transparency

A network of another number of channels gets the first ones as they are. What the file calls transparency counts among
them if the file has exactly as many channels as the network.

Channels are an axis that the file calls samples or channels (ImageJ, OME). Files of one unnamed array, such as NumPy's,
have them first or last: the outer axis, if it has at most MOST_CHANNELS entries and both others have more. Of every
other axis (slices, times, pages, series) the first entry is read; but pages of which nothing is said are channels if
there are exactly as many as the network takes.
"""

import lzma
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MOST_CHANNELS = 10  # in an unnamed axis; a longer one has slices or times
MOST_BYTES = 1 << 30  # of the values of an image that are read at once

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2  # photometric interpretations
# What tifffile decodes without the package imagecodecs; Pillow decodes more, but no unusual channels.
_RAW, _DEFLATE, _LZMA, _PACKBITS = (1,), (8, 32946), (34925,), (32773,)


class TiffError(ValueError):
    """A sentence about a TIFF that cannot be read. Errors of other kinds come from tifffile."""


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file begins as a TIFF. It is left at its start."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic in _MAGIC


def open_tiff(file: BinaryIO) -> Any:
    """A TiffFile of the package tifffile, which is imported here: most data sets have no TIFF."""
    import tifffile

    return tifffile.TiffFile(file)


def channels_read(count: int, wanted: int) -> int:
    """How many channels of an image are read for a network: of three, a network of one gets a mixture."""
    return count if (count, wanted) == (3, 1) else min(count, wanted)


def channel_note(kind: str, count: int, wanted: int) -> str:
    """A sentence about the channels that are read, if these are not all, or not colours; else empty. kind: of files."""
    read = channels_read(count, wanted)
    if wanted != 3 and read < count:
        return f"{kind} with {count} channels: the {'first one is' if read == 1 else f'first {read} are'} read"
    if wanted == 3 and count == 2:
        return f"{kind} with 2 channels: they are read as red and green"
    if wanted == 3 and count > 3:
        return f"{kind} with {count} channels: the first three are read as red, green and blue"
    return ""


class Layout(NamedTuple):
    """Where an image lies in the arrays of a file."""

    height: int
    width: int
    channels: int
    axes: tuple[int, int, int | None]  # of rows, columns and channels, in the shape of the series
    other: int  # how many further images the series has
    has_alpha: bool  # the last channel is transparency


class TiffImage:
    """The first image of a file.

    dtype: of its values. orientation: EXIF's, 1 to 8. bits: how many bits of a value the file says are in use, or None.
    layout: a Layout. notes: sentences about what is left out, for messages.
    """

    def __init__(self, file: BinaryIO, wanted: int = 3) -> None:
        """Reads the header. wanted: the channels that a network takes.

        Raises: errors of many kinds for a damaged file.
        """
        self._wanted = wanted
        self.file = open_tiff(file)
        self.series = self.file.series[0]
        self.page = self.series.keyframe
        self.layout = _find_layout(self.series, self.page, wanted)
        self.dtype = np.dtype(self.series.dtype)
        value = self.page.tags.valueof(274)
        self.orientation = value if isinstance(value, int) and 1 <= value <= 8 else 1
        self.bits = _bits_in_use(self.file, self.page)

    @property
    def count(self) -> int:
        """The channels to read: of three, a network of one gets a mixture."""
        return channels_read(self.layout.channels - self.layout.has_alpha, self._wanted)

    @property
    def is_plain(self) -> bool:
        """Whether Pillow reads the same: a single ordinary image of at most 8 bits, or gray of 16."""
        page, layout = self.page, self.layout
        is_in_page = self.has_whole_pages and page.samplesperpixel == layout.channels
        if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
            return True  # colour spaces and palettes are Pillow's work
        is_usual = layout.channels in (1, 3) or layout.has_alpha
        is_small = self.dtype in (np.bool_, np.uint8) or (self.dtype == np.uint16 and layout.channels == 1)
        is_whole = all(page.dataoffsets)  # Pillow takes pieces that were never written for the start of the file
        return is_in_page and is_usual and is_small and is_whole

    @property
    def is_colour(self) -> bool:
        """Whether the channels of a pixel are its colours, by what the file says."""
        return self.page.photometric == _RGB or self.page.samplesperpixel > 1

    @property
    def is_readable(self) -> bool:
        """Whether read() has a decoder for the file. Otherwise Pillow may have one."""
        return not self._missing_decoder()

    @property
    def has_whole_pages(self) -> bool:
        """Whether each page has all rows and columns, and all channels or one of them."""
        page, layout = self.page, self.layout
        is_whole = (page.imagelength, page.imagewidth) == (layout.height, layout.width)
        return is_whole and page.samplesperpixel in (1, layout.channels)

    @property
    def channel_pages(self) -> list[int]:
        """The pages of the channels to read, if each channel has a page of its own; else empty."""
        names, axis = self.series.axes, self.layout.axes[2]
        if axis is None or self.page.samplesperpixel > 1 or not self.has_whole_pages:
            return []
        step = math.prod(self.series.shape[i] for i in range(axis + 1, len(names)) if names[i] not in "YX")
        return [step * channel for channel in range(self.count)]

    @property
    def notes(self) -> list[str]:
        """What is read of the file, if that is not all of it."""
        layout = self.layout
        note = channel_note("TIFF files", layout.channels - layout.has_alpha, self._wanted)
        others = "TIFF files with several slices, times or pages: the first one is read" if layout.other else ""
        return [text for text in (note, others) if text]

    def read(self) -> np.ndarray:
        """The values, [H, W] or [H, W, C], of the file's type. C is at most the number of wanted channels.

        Raises: TiffError if the file's compression is not supported, or its size is absurd; other errors if it is
            damaged.
        """
        self.check_decoder()
        if self.page.compression in (*_DEFLATE, *_LZMA):
            _check_unpacked_sizes(self.series, self.page)
        layout, shape = self.layout, self.series.shape
        size = math.prod(self.page.shape)
        start = next(axis for axis in range(len(shape), -1, -1) if math.prod(shape[axis:]) == size)  # of a page's axes
        if min(axis for axis in layout.axes if axis is not None) >= start:
            values = self._array_of(self.series.pages[0], shape[start:])
        else:
            values, start = self._array_of(self.series, shape), 0
        axes = range(start, len(shape))
        index = tuple(slice(None) if axis in layout.axes else 0 for axis in axes)
        kept = [axis for axis in axes if axis in layout.axes]
        values = values[index].transpose([kept.index(axis) for axis in layout.axes if axis is not None])
        if layout.axes[2] is None:
            return values
        return values[..., 0] if self.count == 1 else values[..., : self.count]

    def _array_of(self, source: Any, shape: Sequence[int]) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        if size > MOST_BYTES:
            raise TiffError(
                f"its values take {size / 2**30:.1f} GB, more than {MOST_BYTES >> 30}; save the image of interest as a "
                "file of its own"
            )
        return source.asarray(maxworkers=1).reshape(shape)

    def check_decoder(self) -> None:
        """Raises TiffError if read() has no decoder for the file."""
        if missing := self._missing_decoder():
            raise TiffError(
                f"a TIFF of {self.layout.channels} channels, {self.dtype} and {missing} cannot be read; save it "
                "without compression, or with deflate (zip)"
            )

    def _missing_decoder(self) -> str:
        """What tifffile needs the package imagecodecs for; empty if it needs nothing."""
        page = self.page
        if page.compression not in (*_RAW, *_DEFLATE, *_LZMA, *_PACKBITS):
            return f"{getattr(page.compression, 'name', page.compression)} compression"
        if page.compression not in _RAW and page.predictor not in (1, 2):
            return f"predictor {int(page.predictor)}"
        return "" if page.bitspersample in (1, 8, 16, 32, 64) else f"values of {page.bitspersample} bits"


def _check_unpacked_sizes(series: Any, page: Any) -> None:
    """Raises TiffError for a decompression bomb: tifffile unpacks a piece wholly before it looks at the size."""
    rows = page.tilelength if page.is_tiled else page.rowsperstrip
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    limit = min(MOST_BYTES, 2 * 8 * rows * columns * page.samplesperpixel + 1024)
    file = page.parent.filehandle
    for frame in series.pages:
        for offset, count in zip(frame.dataoffsets, frame.databytecounts, strict=False):
            file.seek(offset)
            packed = file.read(min(count, file.size))
            if page.compression in _LZMA:
                unpacked = lzma.LZMADecompressor().decompress(packed, limit + 1)
            else:
                unpacked = zlib.decompressobj().decompress(packed, limit + 1)
            if len(unpacked) > limit:
                raise TiffError("a piece of it is much larger when unpacked than it says; is it a decompression bomb?")


def _find_layout(series: Any, page: Any, wanted: int) -> Layout:
    """Finds rows, columns and channels among the axes of a series. wanted: the channels that a network takes."""
    names, shape = series.axes, series.shape
    rows, columns = names.index("Y"), names.index("X")
    channels = next((names.index(name) for name in "SC" if name in names and shape[names.index(name)] > 1), None)
    if channels is None and names == "QYX":  # an unnamed array
        first, middle, last = shape
        if last <= MOST_CHANNELS < min(first, middle):
            rows, columns, channels = 0, 1, 2
        elif 1 < first <= MOST_CHANNELS < min(middle, last):
            channels = 0
    elif channels is None and names == "IYX" and shape[0] == wanted and wanted not in (1, 3):  # unnamed pages
        channels = 0
    axes = (rows, columns, channels)
    other = math.prod(side for axis, side in enumerate(shape) if axis not in axes)
    count = 1 if channels is None else shape[channels]
    is_sample = channels is not None and names[channels] == "S"
    has_alpha = is_sample and count in (2, 4) and any(kind in (1, 2) for kind in page.extrasamples[-1:])
    has_alpha = has_alpha and count != wanted
    return Layout(shape[rows], shape[columns], count, axes, other - 1, has_alpha)


def _bits_in_use(tiff: Any, page: Any) -> int | None:
    """How many bits of each value the file says are in use: by OME's SignificantBits or the tags of largest values.

    16 is what writers put there without knowing, so it says nothing.
    """
    if tiff.is_ome and (found := re.search(r'SignificantBits="(\d{1,2})"', tiff.ome_metadata or "")):
        return int(found[1]) if 8 <= int(found[1]) < 16 else None
    for tag in (281, 341):  # MaxSampleValue, SMaxSampleValue
        value = page.tags.valueof(tag)
        value = max(value) if isinstance(value, tuple) and value else value
        # Other numbers than 2^n - 1 are the largest value of this image, and do not say how many bits there are.
        if isinstance(value, int | float) and 255 <= value < 65535 and math.log2(value + 1).is_integer():
            return int(math.log2(value + 1))
    return page.bitspersample if 8 < page.bitspersample < 16 else None

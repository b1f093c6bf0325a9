"""Large pictures of a data set: a training or an evaluation reads the part that it needs, and never all of one.

    image = open_large(path, reader)      None: decode the file as a whole
    image.shape                           (H, W, C)
    image.read(y1, x1, y2, x2)            uint8 [y2 - y1, x2 - x1, C]

regions.py reads the files. Here is which pictures count as large, and that their pixels are those of data.images. A
smaller picture is decoded faster than its parts are found, and most formats of files have no parts.

H, W the picture's height and width   C channels
"""

import copy
import functools
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import utils
from data.images import ImageReader, image_size, reads_by_regions
from data.regions import Pixels, open_source
from data.tiff_regions import PieceCache
from roialign import resize

LEAST_PIXELS = 1 << 22  # of a picture that is read by regions: a few of the crops that trainings take
_MOST_OPEN = 64  # files that a process keeps open
_MOST_KNOWN = 4096  # files of which it knows whether they are large
_PATCHES = 32  # along each side of a sample; as many as a thumbnail has pixels
_PATCH = 16  # pixels along each side of a patch


class RegionImage:
    """A picture that is read by regions, as uint8 by the rules of its data set. Any number of threads may read.

    shape: (H, W, C). name: for messages.
    """

    def __init__(self, pixels: Pixels, channels: int, name: str) -> None:
        self._pixels, self.name = pixels, utils.printable(name, 500)
        self.shape = (*pixels.source.shape[:2], channels)
        weakref.finalize(self, pixels.source.close)

    @property
    def bits(self) -> int:
        """How many bits of a value are in use, as the file says, or else its type."""
        source = self._pixels.source
        return source.bits or 8 * np.dtype(source.dtype).itemsize

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """uint8 [y2 - y1, x2 - x1, C]. Raises: ValueError for a region that no memory should hold, or damaged data."""
        if (y2 - y1) * (x2 - x1) > utils.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"image {self.name} has {self.shape[1]} x {self.shape[0]} pixels, and is too large to be taken as a "
                "whole: IMAGE_RESIZE_MODE=crop trains on parts of it, without --augmentation of your own"
            )
        try:
            return self._pixels.read(y1, x1, y2, x2)
        except (OSError, ValueError) as error:
            text = utils.printable(error, 500)
            raise type(error)(text if self.name in text else f"image {self.name}: {text}") from error

    def sample(self) -> np.ndarray:
        """Patches of the picture, evenly spread, side by side: uint8 [h, w, C], at most 512 x 512.

        It shows how bright the picture is, and what it is like, for the price of a thousand small regions.
        """
        rows, columns = (_patches(side) for side in self.shape[:2])
        lines = [np.concatenate([self.read(y1, x1, y2, x2) for x1, x2 in columns], axis=1) for y1, y2 in rows]
        return np.concatenate(lines)


def _patches(side: int) -> list[tuple[int, int]]:
    """(start, end) of each patch along a side, in the middle of its share of it."""
    edges = np.linspace(0, side, min(_PATCHES, side) + 1)
    length = min(_PATCH, side // min(_PATCHES, side))
    starts = ((edges[:-1] + edges[1:] - length) / 2).astype(int).tolist()
    return [(start, start + length) for start in starts]


def open_large(path: str | os.PathLike, reader: ImageReader, upright: bool = True) -> RegionImage | None:
    """A picture that is read by regions; None if it is not large, or its file has to be decoded as a whole, or cannot.

    reader: of the data set, by whose rules its pixels become 8 bits. upright: as of reader.read.

    Raises: ValueError that names the file if its pixels cannot be brought to 8 bits.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # whoever decodes it as a whole says what is wrong
        return None
    file = str(Path(path).resolve()), status.st_size, status.st_mtime_ns
    if not _is_large(file, upright):
        return None
    return _opened(os.getpid(), file, reader.chosen, reader.pixel_range, reader.channels)


@functools.lru_cache(_MOST_KNOWN)
def _is_large(file: tuple[str, int, int], upright: bool) -> bool:
    """Whether a picture is read by regions. file: its path and state. Parts are turned as EXIF says."""
    try:
        size = image_size(file[0])
        is_as_shown = upright or size.orientation == 1
        return math.prod(size.stored) >= LEAST_PIXELS and is_as_shown and reads_by_regions(file[0])
    except (OSError, ValueError):
        return False


@functools.lru_cache(_MOST_OPEN)
def _opened(
    process: int, file: tuple[str, int, int], bit_depth: int | str, pixel_range: str, channels: int
) -> RegionImage | None:
    """The open picture; None if it cannot be read by regions.

    process: its number. A fork must share neither the place in a file with its parent, nor a lock.
    """
    source = open_source(file[0], channels, cache=_cache(process))
    if not source.reads_parts:
        source.close()
        return None
    pixels = copy.copy(_rule(file, bit_depth, pixel_range, channels))
    pixels.source = source
    return RegionImage(pixels, channels, file[0])


@functools.lru_cache(1)
def _cache(process: int) -> PieceCache:
    """What all pictures of a process share, so that their number does not decide about the memory."""
    return PieceCache()


@functools.lru_cache(_MOST_KNOWN)
def _rule(file: tuple[str, int, int], bit_depth: int | str, pixel_range: str, channels: int) -> Pixels:
    """How a picture becomes 8 bits, without the picture: finding it out may take as long as reading all of it."""
    config = SimpleNamespace(BIT_DEPTH=bit_depth, PIXEL_RANGE=pixel_range, IMAGE_CHANNEL_COUNT=channels)
    with open_source(file[0], channels) as source:
        pixels = Pixels(source, config)
    pixels.source = None
    return pixels


def resize_region(
    read: Callable[[int, int, int, int], np.ndarray],
    shape: Sequence[int],
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    resampling: str = "opencv",
) -> np.ndarray:
    """A part of an image that is resized as a whole, to the bit, from what it needs of the image.

    With the resampling of OpenCV this is the region and a pixel around it. The others compute each pixel from numbers
    that depend on where the image begins, and get all of it, unless it keeps its size.

    read: (y1, x1, y2, x2) -> the pixels of the image, [y2 - y1, x2 - x1, C]. shape: (height, width) of the image.
    size: (height, width) that it is resized to. region: (y, x, height, width) of the result that is wanted.
    resampling: as for utils.resize_pixels.

    Returns: [height, width, C], as utils.resize_pixels does.
    """
    y, x, height, width = region
    if tuple(shape) == tuple(size):
        part = read(y, x, y + height, x + width)
        return utils.resize_pixels(part, part.shape[:2], resampling)
    if resampling != "opencv":
        whole = utils.resize_pixels(np.ascontiguousarray(read(0, 0, *shape)), size, resampling)
        return whole[y : y + height, x : x + width]
    spans, mixtures = [], []
    for axis, start, count in ((0, y, height), (1, x, width)):
        sources, weights = resize.fixed_point(shape[axis], size[axis])
        sources, weights = sources[:, start : start + count], weights[:, start : start + count]
        first = int(sources.min())
        spans.append((first, int(sources.max()) + 1))
        mixtures += [sources - first, weights]
    (top, bottom), (left, right) = spans
    return resize.mix(read(top, left, bottom, right), *mixtures)

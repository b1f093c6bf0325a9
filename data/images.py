"""Reads image files of every kind as uint8, and their sizes. All code that opens a user's image calls this file.

A file is data: only decoders of raster formats read it, and none of them starts another program. Whatever a file holds,
the result is an image, or one sentence that names the file.
"""

import collections
import contextlib
import functools
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

import utils
from data.tiff import TiffError, TiffImage, is_tiff
from utils import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE

logger = logging.getLogger(__name__)

# What Pillow may read. It also knows formats that it hands to other programs (EPS to Ghostscript), and some that only
# name another file or need a plug-in (WMF, IPTC, FPX, MIC, BUFR, GRIB, HDF5).
FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "PSD", "QOI", "SGI",
    "TGA",
)  # fmt: skip


############################################################
#  Files
############################################################


class ImageSize(NamedTuple):
    """The size of an image file. Annotations may be drawn in either frame, which differ where EXIF turns the image."""

    shown: tuple[int, int]  # (height, width) as read_image returns it: turned as the EXIF orientation says
    stored: tuple[int, int]  # (height, width) of the pixels in the file
    orientation: int  # EXIF's, 1 to 8; 1 if the file has none that is valid

    @property
    def is_ambiguous(self) -> bool:
        """Whether EXIF turns or mirrors the image, and its size is the same before and after."""
        return self.orientation > 1 and self.shown == self.stored


def image_size(path: str | os.PathLike, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageSize:
    """The size of an image file, from its header. No pixel is decoded.

    A file that reads_by_regions may have more than max_pixels: up to 2**32 - 1, which run-length codes can hold.

    Raises: as read_image.
    """
    with opened(Path(path)) as file:
        image, tiff = open_header(file, max_pixels, by_regions=True)
        if image is None:
            orientation, (height, width) = tiff.orientation, tiff.layout[:2]
        else:
            orientation, (width, height) = exif_orientation(image), image.size
            if image.format == "TIFF" and orientation >= 5:  # Pillow itself turns a TIFF.
                height, width = width, height
        shown = (width, height) if orientation >= 5 else (height, width)
        return ImageSize(shown, (height, width), orientation)


def reads_by_regions(path: str | os.PathLike) -> bool:
    """Whether parts of an image can be decoded without the rest of it, so that it may have any size: tiled TIFF files,
    and those in strips. Raises: as read_image.
    """
    with opened(Path(path)) as file:
        return is_tiff(file) and TiffImage(file).is_in_pieces


# From the stored pixels [H, W, 3] to the upright ones. EXIF 2.3, 4.6.4: where the stored row 0 and column 0 belong.
_TURNS = {
    1: lambda pixels: pixels,  # top, left
    2: lambda pixels: pixels[:, ::-1],  # top, right
    3: lambda pixels: pixels[::-1, ::-1],  # bottom, right
    4: lambda pixels: pixels[::-1],  # bottom, left
    5: lambda pixels: pixels.swapaxes(0, 1),  # left, top
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],  # left, bottom
}
_INVERSE = {6: 8, 8: 6}  # The other turns are their own inverses.


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, ...] as EXIF's orientation, 1 to 8, wants them to be shown."""
    return np.ascontiguousarray(_TURNS[orientation](pixels))


def exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. Damaged EXIF data do not make the image unusable."""
    try:
        if image.format == "PNG" and "exif" not in image.info and (chunk := _png_chunk(image.fp, b"eXIf")):
            image.info["exif"] = b"Exif\0\0" + chunk
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own getexif decodes the image.
    except MemoryError:
        raise
    except Exception:  # Pillow parses all of the EXIF data, and raises errors of many kinds.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_image(
    path: str | os.PathLike,
    max_pixels: int = MAX_IMAGE_PIXELS,
    upright: bool = True,
    bit_depth: int | str = "auto",
    pixel_range: str = "depth",
    channels: int = 3,
) -> np.ndarray:
    """Reads an image of any format in FORMATS, upright and in RGB. The content decides, not the file's suffix.

    The image is turned as its EXIF orientation says. An animation gives its first frame. Transparency is dropped; the
    colours under it stay as they are. CMYK, YCbCr and LAB are converted without the file's colour profile. data/tiff.py
    says which channels and pages of a TIFF are read.

    Values of more than 8 bits become 8 bits:

        0 to 65535      bit_depth says which value is white, such as 4095
        other integers  the image's own range becomes 0..255
        floats          those in 0..1 are multiplied by 255; in 0..255 they stay; up to 65535 they are taken as integers
                        are; else the image's own range becomes 0..255

    Each decision is logged once, with its first image. ImageReader reads the images of a data set alike.

    path: the file.
    max_pixels: an image of more pixels is refused before it is decoded. Pillow has a limit of its own, which is twice
        PIL.Image.MAX_IMAGE_PIXELS. Raise that as well to read larger images.
    upright: False leaves the pixels as they are stored, whatever the EXIF orientation says.
    bit_depth: how many bits of 16-bit values are in use, 8 to 16. "auto": as many as the file says, or else the fewest
        of DEPTHS that hold the image's values.
    pixel_range: as Config.PIXEL_RANGE. "percentiles" scales all values by utils.stretch_percentiles instead of the
        rules above, those of 8 bits, too.
    channels: as Config.IMAGE_CHANNEL_COUNT. With another number than 3, see fit_channels.

    Returns: uint8 [H, W, channels].
    Raises: FileNotFoundError if there is no such file. ValueError, with the file and the cause, if the file is empty,
        cut off, a directory, too large, or no image, if it has NaN, or if more than MOST_CLIPPED of its values do not
        fit into bit_depth.
    """
    _check_bit_depth(bit_depth)
    with opened(Path(path)) as file:
        decoded = decode(file, max_pixels, channels)
        pixels, decisions = _eight_bits(decoded, bit_depth, pixel_range)
    if mismatch := channel_mismatch(pixels, channels):
        decisions = [*decisions, mismatch]
    for decision in (*decoded.notes, *decisions):
        say_once(decision, path)
    turn = decoded.orientation
    if decoded.is_turned:
        turn = 1 if upright else _INVERSE.get(turn, turn)
    elif not upright:
        turn = 1
    return np.ascontiguousarray(_TURNS[turn](fit_channels(pixels, channels)))


def read_image_bytes(
    data: bytes,
    name: str,
    max_pixels: int = MAX_IMAGE_PIXELS,
    bit_depth: int | str = "auto",
    pixel_range: str = "depth",
    channels: int = 3,
) -> np.ndarray:
    """read_image of the contents of a file, which is no file itself: in a label file, or sent over the network.

    name: for messages. The other arguments are read_image's. What was decided is not logged: nobody could tell which
    image was the first.
    """
    _check_bit_depth(bit_depth)
    file = io.BytesIO(data)
    with errors_named(utils.printable(name, 500), file):
        decoded = decode(file, max_pixels, channels)
        pixels = _eight_bits(decoded, bit_depth, pixel_range)[0]
    turn = 1 if decoded.is_turned else decoded.orientation
    return np.ascontiguousarray(_TURNS[turn](fit_channels(pixels, channels)))


def other_planes(path: str | os.PathLike) -> tuple[int, int]:
    """(planes that are not read, channels) of an image file: slices, times and pages of a TIFF after the first one.

    (0, 1) for other files, and those that cannot be read.
    """
    try:
        with opened(Path(path)) as file:
            layout = TiffImage(file, 3).layout if is_tiff(file) else None
    except (OSError, ValueError):
        return 0, 1
    return (layout.other, layout.channels) if layout else (0, 1)


def decode_png(data: bytes, size: tuple[int, int], mode: str | None = None) -> np.ndarray:
    """The values of a PNG inside of a label file: a mask that lies in a picture.

    size: (height, width) of the picture, which no mask may exceed. mode: Pillow's, to convert to; None: as it is.

    Raises: ValueError, in words that follow what holds the PNG.
    """
    _silence_libraries()
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width > size[1] or image.height > size[0]:
                raise Refused(f"has a mask of {image.width} x {image.height} pixels, larger than its picture")
            return np.asarray(image.convert(mode) if mode else image)
    except Image.DecompressionBombError:
        raise ValueError("has a mask that is larger than any picture") from None
    except (Refused, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds for damaged data
        raise ValueError(f"has a mask that is no good PNG: {utils.printable(error, 200)}") from None


def read_mask(path: str | os.PathLike, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """The pixels of an image file that are not black, bool [H, W], upright. No value is too small to count.

    Raises: as read_image.
    """
    with opened(Path(path)) as file:
        decoded = decode(file, max_pixels, is_label=True)
    values = decoded.values != 0
    values = values if values.ndim == 2 else values.any(axis=2)
    return np.ascontiguousarray(values if decoded.is_turned else _TURNS[decoded.orientation](values))


def read_numbers(path: str | os.PathLike, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """The values of an image file of labels, [H, W] or [H, W, C], upright: the numbers of a palette, not its colours.

    C may be 2 or 4: then the last channel is transparency.

    Raises: as read_image.
    """
    with opened(Path(path)) as file:
        image = None if is_tiff(file) else Image.open(file, formats=FORMATS)
        if image is not None and image.mode in ("P", "1"):
            check_size(image.size, max_pixels)
            image.load()
            return np.array(image).astype(np.uint8)
        if image is not None and image.mode in ("LA", "RGBA") and "16" not in _rawmode(image):
            check_size(image.size, max_pixels)
            turn = _TURNS[exif_orientation(image)]
            image.load()
            return np.ascontiguousarray(turn(np.asarray(image)))
        file.seek(0)
        decoded = decode(file, max_pixels, is_label=True)
    return np.ascontiguousarray(decoded.values if decoded.is_turned else _TURNS[decoded.orientation](decoded.values))


_ALL_CHANNELS = 1 << 16  # more than any file has


def read_values(path: str | os.PathLike, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """The values of a picture as its file has them, not scaled to 8 bits, upright: [H, W, C].

    A picture whose channels are all equal, as of a gray one, has one. A TIFF has all of its channels, but transparency,
    if it needs no decoder that only Pillow has; else the first three.

    Raises: as read_image.
    """
    with opened(Path(path)) as file:
        decoded = decode(file, max_pixels, _ALL_CHANNELS)
    values = decoded.values if decoded.is_turned else turned(decoded.values, decoded.orientation)
    if values.ndim == 2:
        return values[..., None]
    return values[..., :1] if (values == values[..., :1]).all() else values


class Thumbnail(NamedTuple):
    """A small gray copy of an image, and what its file is like."""

    pixels: np.ndarray  # uint8 [side, side], as they are stored; the sides of the image are stretched to it
    kind: str  # "gray 8 bit", "colour 16 bit"; gray are also files with three equal channels
    format: str  # "JPEG"


def read_thumbnail(path: str | os.PathLike, side: int, max_pixels: int = MAX_IMAGE_PIXELS) -> Thumbnail:
    """A thumbnail of an image file. All of the file is read, a JPEG at a fraction of its resolution, which is fast.

    Raises: as read_image, also for a file that is cut off.
    """
    with opened(Path(path)) as file:
        image, _ = open_header(file, max_pixels)
        name = "TIFF" if image is None else image.format
        if name == "JPEG":
            image.draft(image.mode, (2 * side, 2 * side))
            image.load()
            pixels, bits = _values(image), 8
        else:
            file.seek(0)
            decoded = decode(file, max_pixels)
            pixels, bits = _eight_bits(decoded, "auto")[0], decoded.bits or 8 * decoded.values.dtype.itemsize
        return thumbnail_of(pixels, side, bits, name)


def thumbnail_of(pixels: np.ndarray, side: int, bits: int = 8, name: str = "") -> Thumbnail:
    """A thumbnail of pixels, uint8 [H, W] or [H, W, 2 or 3]. bits, name: of the file that they come from."""
    small = np.asarray(Image.fromarray(_to_rgb(pixels)).resize((side, side), Image.Resampling.BOX))
    is_gray = int(np.ptp(small.astype(np.int16), axis=2).max()) <= 2  # JPEG rounds colours
    gray = np.asarray(Image.fromarray(small).convert("L"))
    return Thumbnail(gray, f"{'gray' if is_gray else 'colour'} {bits} bit", name)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of uint8 [H, W] or [H, W, 2 or 3]."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=2)
    return pixels


def fit_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """An image with as many channels as a network takes.

    With 3 channels, gray is repeated. With 1, colours are mixed to gray (ITU-R 601). With another number, the first
    channels are taken, and those that the image lacks are black.

    pixels: uint8 [H, W] or [H, W, C].

    Returns: uint8 [H, W, channels].
    """
    if channels == 3 and (pixels.ndim == 2 or pixels.shape[2] in (1, 2, 3)):
        return _to_rgb(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels == 1 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    missing = max(channels - pixels.shape[2], 0)
    return np.pad(pixels, ((0, 0), (0, 0), (0, missing)))[..., :channels]


def channel_mismatch(pixels: np.ndarray, channels: int) -> str:
    """A sentence about an image that has not as many channels as a network takes; empty if that is as expected."""
    count = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 3 or count == channels:
        return ""
    if channels == 1 and count == 3:
        return "images in colour, where IMAGE_CHANNEL_COUNT is 1: their colours are mixed to gray"
    done = f"the first {channels} are read" if count > channels else f"the other {channels - count} are black"
    return f"images with {count} channel{'s' * (count != 1)}, where IMAGE_CHANNEL_COUNT is {channels}: {done}"


_said: set[str] = set()  # the notes that this process has logged


def say_once(note: str, path: str | os.PathLike) -> None:
    """Logs a decision once in a process, with the first image that it was taken for."""
    if note not in _said:
        _said.add(note)
        logger.warning("%s (first: %s)", note, utils.printable(path, 500))


def _png_chunk(file: BinaryIO, kind: bytes, max_length: int = 1 << 20) -> bytes | None:
    """The contents of the first chunk of this kind, before or after the pixels. None if a PNG has no such chunk.

    The file is left where it was. Source: PNG (ISO/IEC 15948), 5.3.
    """
    place = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, found = int.from_bytes(header[:4]), header[4:]
            if found == kind:
                return file.read(length) if length <= max_length else None
            file.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        file.seek(place)


# The errors below are raised inside opened, which puts the file's name before them.


class Refused(ValueError):
    """What we ourselves say of an image. Errors of other kinds come from a decoder."""


class SizedFile(io.BufferedReader):
    """A file that never makes room for more bytes than it has. Pillow asks for as many as a damaged header says."""

    def __init__(self, path: Path) -> None:
        raw = io.FileIO(path)
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, max(self._size - self.tell(), 0)))


def open_file(path: Path) -> SizedFile:
    """Opens a file. Raises: FileNotFoundError and ValueError in one sentence that names the file."""
    name = utils.printable(path, 500)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"image {name} is no regular file, but a device or a pipe")
    try:
        return SizedFile(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name}: there is no such file") from None
    except IsADirectoryError:
        hint = "give one of the files in it"
        if path.suffix.lower() == ".zarr":
            hint = "a folder of Zarr is read by regions only, in tiles, so without --tiles off"
        raise ValueError(f"image {name} is a directory; {hint}") from None
    except ValueError:  # of a name with a NUL
        raise ValueError(f"image {name}: no file can have this name") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The open file. Errors inside of the with statement become one sentence that names the file."""
    with open_file(path) as file, errors_named(utils.printable(path, 500), file):
        yield file


@contextlib.contextmanager
def errors_named(name: str, file: BinaryIO | None) -> Iterator[None]:
    """Errors inside of the with statement become one sentence that names the image."""
    _silence_libraries()
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name} is too large for Pillow (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except MemoryError:
        raise
    except (Refused, TiffError) as error:
        raise ValueError(f"image {name}: {error}") from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds for a damaged file.
        raise ValueError(f"image {name}: {_cause(file, error)}") from error


_LIBRARIES = re.compile(r"(PIL|tifffile)(\.|$)")


def _silence_libraries() -> None:
    """Turns off the warnings and log lines of Pillow and tifffile. They show a file's bytes, and do not name the file.

    warnings.catch_warnings would do so for one call, but it is not safe where several threads read images.
    """
    if not any(module == _LIBRARIES for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_LIBRARIES.pattern)
    for name in ("PIL", "tifffile"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


_ONLY = "Images of this size have to be tiled TIFF files: these are read by regions, for crops and in tiles"


def check_size(size: tuple[int, int], max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raises Refused for an image of (width, height) with too many pixels."""
    width, height = size
    if width * height > max_pixels:
        raise Refused(
            f"{width} x {height} pixels are more than max_pixels={max_pixels}; is it a decompression bomb? {_ONLY}"
        )
    if max(size) > MAX_IMAGE_SIDE:
        raise Refused(f"{width} x {height} pixels: no side may be longer than {MAX_IMAGE_SIDE}; cut it into tiles")


# The first bytes of files that are no images for us, and what to say of them.
_OTHER_KINDS = (
    (b"%!PS", "PostScript (EPS), which is a program and not a picture; export a PNG from it"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS), which is a program and not a picture; export a PNG from it"),
    (b"%PDF", "a PDF document; export its pictures as PNG"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile, which is a drawing; export a PNG from it"),
    (b"<svg", "an SVG drawing; export a PNG from it"),
    (b"<?xml", "XML text"),
    (b"<!doctype html", "a web page; was the download refused, or does it need a login?"),
    (b"<html", "a web page; was the download refused, or does it need a login?"),
    (b"version https://git-lfs", "a pointer of Git LFS; `git lfs pull` fetches the image"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"{", "JSON text"),
)


def _cause(file: BinaryIO, error: Exception) -> str:
    """Says in words why an image file could not be read."""
    if isinstance(error, UnicodeError | OverflowError) or not isinstance(
        error, ValueError | Image.UnidentifiedImageError
    ):
        return f"cannot be decoded; is it cut off or damaged? ({utils.printable(error)})"
    if not isinstance(error, Image.UnidentifiedImageError):
        return utils.printable(error, 500)
    file.seek(0)
    head = file.read(256)
    if not head:
        return "the file is empty; was its download or copy interrupted?"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "the file is HEIC, which is not supported; convert it to JPEG or PNG"
    for start, kind in _OTHER_KINDS:
        if head.lstrip(b" \t\r\n\xef\xbb\xbf").lower().startswith(start.lower()):
            return f"the file holds {kind}"
    return f"not an image of a format that is read ({', '.join(FORMATS)}), or cut off at its start"


############################################################
#  Decoding
############################################################


class Decoded(NamedTuple):
    """An image as its file has it, and what the file says of it."""

    values: np.ndarray  # [H, W] or [H, W, C], of any type; C is 2 or 3, or up to the number of channels asked for
    bits: int | None = None  # how many bits of 16 are in use, if the file says so
    orientation: int = 1  # EXIF's
    is_turned: bool = False  # whether the values are already turned as EXIF says
    notes: list[str] = []  # noqa: RUF012  what was left out


def open_header(
    file: BinaryIO, max_pixels: int, channels: int = 3, by_regions: bool = False
) -> tuple[Image.Image | None, TiffImage | None]:
    """Reads the header. channels: those that a network takes. by_regions: nobody is going to decode all of the image.

    Returns: Pillow's image, or the TiffImage of a file that Pillow cannot read rightly. Both, if Pillow may read what
        tifffile cannot.
    """
    if not is_tiff(file):
        image, tiff = Image.open(file, formats=FORMATS), None
    else:
        tiff = TiffImage(file, channels)
        if by_regions and tiff.layout.height * tiff.layout.width > max_pixels and tiff.is_in_pieces:
            if tiff.layout.height * tiff.layout.width >= 2**32:
                raise Refused(f"{tiff.layout.width} x {tiff.layout.height} pixels are 2**32 or more; cut it in parts")
            return None, tiff
        check_size((tiff.layout.width, tiff.layout.height), max_pixels)
        try:
            image = Image.open(file, formats=["TIFF"])
        except (Image.UnidentifiedImageError, KeyError):  # KeyError: of a compression that Pillow does not know
            return None, tiff
        if not tiff.is_plain and (tiff.is_readable or not tiff.has_whole_pages):
            return None, tiff
    check_size(image.size, max_pixels)
    return image, tiff


def decode(file: BinaryIO, max_pixels: int, channels: int = 3, is_label: bool = False) -> Decoded:
    """channels: those that a network takes. With another number than 3, gray stays gray.

    is_label: what counts are the numbers in the file, also where it says that 0 is shown white.
    """
    image, tiff = open_header(file, max_pixels, channels)
    if image is None:
        return Decoded(tiff.read(), tiff.bits, tiff.orientation, False, tiff.notes)
    orientation = exif_orientation(image)
    is_turned = image.format == "TIFF"  # Pillow itself turns a TIFF.
    bits = None if tiff is None else tiff.bits
    notes = [] if tiff is None else tiff.notes
    if tiff is not None and tiff.channel_pages:
        values = np.stack([_page(image, number) for number in tiff.channel_pages], axis=-1)
    else:
        is_inverted = is_label and bool(_WHITE_IS_0.search(_rawmode(image)))
        values = pillow_values(image, file, channels)
        values = 255 - values if is_inverted else values  # Pillow makes 0 white, also in binary images
    if image.format == "PNG" and values.dtype == np.uint16:
        bits = _png_bits(file, values)
    elif image.format in ("PPM", "JPEG2000"):  # Pillow has scaled these by what the file says.
        bits = 16
    return Decoded(values, bits, orientation, is_turned, notes)


def pillow_values(image: Image.Image, file: BinaryIO, channels: int = 3) -> np.ndarray:
    """The values of an image that Pillow has opened, [H, W] or [H, W, C]. file: that it lies in."""
    if image.tile and _rawmode(image) in _LOW_BYTES:
        return _colour_of_16_bits(image, file)
    image.load()
    values = _values(image)
    return _as_stored(image, values, channels) if channels != 3 and values.ndim == 3 else values


def decoded_kind(image: Image.Image, channels: int = 3) -> tuple[int | None, np.dtype]:
    """What pillow_values of an image will be, before it is decoded: how many channels (None: [H, W]), and the type."""
    if image.tile and _rawmode(image) in _LOW_BYTES:
        return None if _rawmode(image) == "LA;16B" else 3, np.dtype(np.uint16)
    pixel = Image.new(image.mode, (1, 1))
    values = _values(pixel)
    values = _as_stored(pixel, values, channels) if channels != 3 and values.ndim == 3 else values
    return values.shape[2] if values.ndim == 3 else None, values.dtype


def _page(image: Image.Image, number: int) -> np.ndarray:
    """The values of a gray page of a TIFF, [H, W]."""
    image.seek(number)
    image.load()
    values = _values(image)
    return values if values.ndim == 2 else values[..., 0]


def _values(image: Image.Image) -> np.ndarray:
    """The values of a decoded image: [H, W] if it has more than 8 bits, else uint8 [H, W, 3]."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode in ("I", "F"):
        return np.asarray(image)
    if mode in ("P", "PA", "LA", "RGBa"):  # Pillow misreads a palette with transparency on the direct way to RGB.
        image = image.convert("RGBA")
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    return np.array(image)[..., :3]


_GRAY = ("1", "L", "LA", "La")  # modes of Pillow


def _as_stored(image: Image.Image, values: np.ndarray, channels: int) -> np.ndarray:
    """The values of a decoded image for a network that takes another number of channels than 3.

    Transparency counts as a channel if there are exactly as many channels. values: [H, W, 3], of _values.
    """
    if image.mode in ("LA", "RGBA") and channels == len(image.mode):
        return np.array(image)
    return values[..., 0] if image.mode in _GRAY else values


# Pillow reads the high bytes of colours of 16 bits. With another raw mode it reads their low bytes. libtiff's bytes
# ("N") are in the machine's own order.
_FOREIGN = "B" if sys.byteorder == "little" else "L"
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGB;16N": f"RGB;16{_FOREIGN}",
    "RGBA;16N": f"RGBA;16{_FOREIGN}",
    "LA;16B": "RGBA",  # both bytes of both channels
}


def _rawmode(image: Image.Image) -> str:
    """What Pillow calls the order of the bytes in a file."""
    arguments = image.tile[0].args
    return arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""


_WHITE_IS_0 = re.compile(r";\d?IR?$")  # as ends what Pillow calls a TIFF of up to 8 bits that says so


def _colour_of_16_bits(image: Image.Image, file: BinaryIO) -> np.ndarray:
    """uint16 [H, W, 3], or [H, W] of gray with transparency. image: opened and not yet decoded."""
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":
        image._mode = "RGBA"
        return _decode_as(image, "RGBA")[..., :2].copy().view(">u2")[..., 0].astype(np.uint16)
    image.load()
    values = np.empty((*image.size[::-1], 3), "<u2")
    both = values.view(np.uint8).reshape(*values.shape, 2)  # [H, W, 3, (low byte, high byte)]
    both[..., 1] = np.asarray(image)[..., :3]
    both[..., 0] = _decode_as(Image.open(file, formats=[image.format]), _LOW_BYTES[rawmode])[..., :3]
    return values.astype(np.uint16, copy=False)


def _decode_as(image: Image.Image, rawmode: str) -> np.ndarray:
    """The bytes of a file, read in another order."""
    image.tile = [
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:])) for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def _png_bits(file: BinaryIO, values: np.ndarray) -> int | None:
    """How many bits a PNG of 16 bits has in use, by its sBIT chunk; None if it has none.

    The standard wants values that are scaled to 16 bits. Some programs write sBIT and leave the values small.
    Source: PNG (ISO/IEC 15948), 11.3.3.4 and 13.12.
    """
    chunk = _png_chunk(file, b"sBIT")
    if not chunk or not 8 <= max(chunk) < 16:
        return None
    bits = max(chunk)
    is_scaled = values.max() >= 2**bits or not (values % 2 ** (16 - bits)).any()
    return 16 if is_scaled else bits


############################################################
#  Values
############################################################

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and microscopes have
MOST_CLIPPED = 0.01  # of the values of an image may be larger than BIT_DEPTH allows; they become white


_NOT_FINITE = "some of its values are infinite or not numbers (NaN); replace them, for example by 0"


def _check_bit_depth(bit_depth: int | str) -> None:
    if bit_depth != "auto" and not (type(bit_depth) is int and 8 <= bit_depth <= 16):
        raise ValueError(f"bit_depth must be 'auto' or a number of bits from 8 to 16, not {bit_depth!r}")


def _depth(high: float, bits: int | None) -> int:
    """The bits of values up to high: as many as the file says, or else the fewest of DEPTHS that hold them."""
    return bits if bits and high < 2**bits else next(depth for depth in DEPTHS if high < 2**depth)


def _eight_bits(decoded: Decoded, bit_depth: int | str, pixel_range: str = "depth") -> tuple[np.ndarray, list[str]]:
    """Values as uint8, in the same shape, and the decisions that were taken. read_image has the rules."""
    convert, decisions = eight_bits_rule(decoded.values, decoded.bits, bit_depth, pixel_range)
    return convert(decoded.values), decisions


Rule = Callable[[np.ndarray], np.ndarray]  # from the values of an image, or of a part of it, to uint8


def eight_bits_rule(
    values: np.ndarray,
    bits: int | None = None,
    bit_depth: int | str = "auto",
    pixel_range: str = "depth",
    limits: tuple[float, float] | None = None,
) -> tuple[Rule, list[str]]:
    """How the values of an image become 8 bits, and the decisions that were taken. read_image has the rules.

    values: of the image, [H, W] or [H, W, C], or some pixels of a large one. bits: how many the file says are in use.
    limits: the smallest and the largest value; None: of `values`. Larger and smaller ones become white and black.

    Raises: ValueError for values that are no picture.
    """
    if pixel_range == "percentiles" and values.size and values.dtype.kind in "buif":
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise Refused(_NOT_FINITE)
        return functools.partial(utils.stretch_to_ranges, ranges=utils.percentile_ranges(values)), []
    if values.dtype == np.uint8:
        return lambda part: part, []
    if values.dtype == bool:
        return lambda part: part.astype(np.uint8) * np.uint8(255), []
    if values.size == 0 or values.dtype.kind not in "uif":
        raise Refused(f"it has values of type {values.dtype} in the shape {list(values.shape)}, and is no picture")
    low, high = (values.min().item(), values.max().item()) if limits is None else limits
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused(_NOT_FINITE)
    if low < 0 or high > 65535:
        return _range_rule(low, high)
    if values.dtype.kind == "f" and high <= 255:
        return functools.partial(_of_fractions, is_fraction=high <= 1), []
    depth, decisions = bit_depth, []
    if bit_depth == "auto":
        depth = _depth(high, bits)
        reason = "as the files say" if depth == bits else f"the fewest of {DEPTHS} that hold them"
        if depth < 16:
            what = f"images of type {values.dtype} are read as numbers of {depth} bits"
            decisions = [f"{what}, {reason}; BIT_DEPTH sets another number"]
    return _depth_rule(values, depth, high, decisions)


def _of_fractions(part: np.ndarray, is_fraction: bool) -> np.ndarray:
    """uint8 of floats in 0..1, or else in 0..255."""
    part = part.astype(np.float32)
    return np.rint(((part if is_fraction else part / 255) * 255.0).clip(0, 255)).astype(np.uint8)


def _depth_rule(values: np.ndarray, depth: int, high: float, decisions: list[str]) -> tuple[Rule, list[str]]:
    """Divides values by the largest number of so many bits. Larger ones become white."""
    top = 2**depth - 1
    if high > top:
        share = np.mean(values > top)
        if share > MOST_CLIPPED:
            raise Refused(
                f"BIT_DEPTH is {depth}, for values up to {top}, but {share:.0%} of its values are larger, up to "
                f"{high:g}; set BIT_DEPTH to a larger number, or to auto"
            )
        decision = f"values above {top}, the largest of {depth} bits (BIT_DEPTH), become white; some images have a few"
        decisions = [*decisions, decision]
    if values.dtype.kind == "f":
        return lambda part: np.rint(part.clip(0, top) * (255.0 / top)).astype(np.uint8), decisions
    if depth == 16 and values.ndim == 3:
        return lambda part: (_in_16_bits(part) >> 8).astype(np.uint8), decisions  # as Pillow reads such files
    table = (np.arange(65536, dtype=np.uint32).clip(max=top) * 255 + top // 2) // top
    table = table.astype(np.uint8)
    return lambda part: table[_in_16_bits(part)], decisions


def _in_16_bits(part: np.ndarray) -> np.ndarray:
    """Integers in 0..65535. Only a part of a large image can have others: what its sample lacks."""
    return part if part.dtype in (np.uint8, np.uint16) else part.astype(np.int64).clip(0, 65535)


def _range_rule(low: float, high: float) -> tuple[Rule, list[str]]:
    """Scales an image by its own range."""
    span = float(high) - float(low)
    if not math.isfinite(span):
        raise Refused(f"its values, from {low:g} to {high:g}, are too far apart for a picture")
    factor = 255.0 / max(span, 1e-300)
    decision = (
        "images with values below 0 or above 65535: the range of each becomes 0..255, so they are not scaled alike; "
        "save them with values from 0 to 65535 for that"
    )
    return lambda part: np.rint(((part.astype(np.float64) - low) * factor).clip(0, 255)).astype(np.uint8), [decision]


############################################################
#  Data sets
############################################################

MOST_HEADERS = 300  # that inspect() reads, and of them so many deep images:
MOST_SAMPLES = 32
MOST_SAMPLE_PIXELS = 1 << 25  # of each; larger ones say no more, and take long


class ImageReader:
    """Reads the images of a data set, all by the same rules.

    bit_depth: of values of 16 bits: a number, which inspect() may be told to replace; "auto" lets inspect() choose.
    chosen: what read() uses: a number of bits; "auto" takes each image by itself.
    pixel_range, channels: what inspect() was told; read() uses them.
    """

    def __init__(self, bit_depth: int | str = "auto") -> None:
        _check_bit_depth(bit_depth)
        self.bit_depth = self.chosen = bit_depth
        self.pixel_range, self.channels = "depth", 3
        self._looked_at: list = []
        self._deep: list = []  # those of them with values of more than 8 bits

    def read(self, path: str | os.PathLike, upright: bool = True) -> np.ndarray:
        """read_image by the rules of the data set."""
        return read_image(
            path, upright=upright, bit_depth=self.chosen, pixel_range=self.pixel_range, channels=self.channels
        )

    def inspect(
        self,
        paths: Sequence[str | os.PathLike],
        bit_depth: int | str = "auto",
        pixel_range: str = "depth",
        channels: int = 3,
    ) -> int | str:
        """Decides what single images cannot tell, by some of them, and logs it.

        Images that cannot be read are left out here.

        paths: of all images; up to MOST_HEADERS of them are looked at. bit_depth: as it was set; "auto" takes
            self.bit_depth. pixel_range, channels: of read_image, for read(). "percentiles" needs no bit depth.

        Returns: the bit depth that was set; of "auto", the number of bits that holds the values of all 16-bit images
            that were looked at, or still "auto" if none was found.
        """
        _check_bit_depth(bit_depth)
        if self._looked_at != (looked_at := _evenly(paths, MOST_HEADERS)):
            self._look_at(looked_at)
        bit_depth = self.bit_depth if bit_depth == "auto" else bit_depth
        self.pixel_range, self.channels = pixel_range, channels
        self.chosen = self._choose() if bit_depth == "auto" and pixel_range == "depth" else bit_depth
        return self.chosen

    def _look_at(self, paths: list) -> None:
        """Reads the headers, and logs how many images may lie in another way than their annotations."""
        deep, ambiguous = [], []
        for path in paths:
            with contextlib.suppress(ValueError, OSError):
                if image_size(path).is_ambiguous:
                    ambiguous.append(path)
                if _is_deep(path):
                    deep.append(path)
        self._looked_at, self._deep = paths, deep
        if ambiguous:
            logger.warning(
                "EXIF turns or mirrors %d of %d images that were looked at, without a change of their size, such as "
                "%s. So the size cannot tell whether they were annotated as displayed or as stored. As displayed is "
                "taken; look at one with its annotations",
                len(ambiguous), len(paths), utils.printable(ambiguous[0], 500),
            )  # fmt: skip

    def _choose(self) -> int | str:
        """The number of bits for the images of more than 8 bits; "auto" if there are none with values in 0..65535."""
        depths, highs = {}, []
        for path in _evenly(self._deep, MOST_SAMPLES):
            with contextlib.suppress(ValueError, OSError), opened(Path(path)) as file:
                decoded = decode(file, MOST_SAMPLE_PIXELS)
                low, high = decoded.values.min().item(), decoded.values.max().item()
                if low >= 0 and (255 if decoded.values.dtype.kind == "f" else -1) < high <= 65535:
                    depths[_depth(high, decoded.bits)] = path
                    highs.append(high)
        if not depths:
            return "auto"
        depth = max(depths)
        logger.warning(
            "%d of %d images that were looked at have values of 16 bits, up to %g: all such images are read as numbers "
            "of %d bits, as %s needs; BIT_DEPTH sets another number",
            len(self._deep), len(self._looked_at), max(highs), depth, utils.printable(depths[depth], 500),
        )  # fmt: skip
        return depth


def reading_settings(config: Any) -> tuple[int | str, str, int]:
    """The settings of a Config that say how files are read: bit depth, pixel range and channels of ImageReader.inspect.

    config: an object that has some of these attributes, or all.
    """
    defaults = {"BIT_DEPTH": "auto", "PIXEL_RANGE": "depth", "IMAGE_CHANNEL_COUNT": 3}
    return tuple(getattr(config, name, value) for name, value in defaults.items())


def count_channels(paths: Sequence[str | os.PathLike]) -> dict[int, int]:
    """How many images have so many channels, by the headers of up to MOST_HEADERS of them; the most frequent first.

    Gray has 1, colour 3, and transparency does not count. Images that cannot be read are left out.
    """
    counts: collections.Counter = collections.Counter()
    for path in _evenly(paths, MOST_HEADERS):
        with contextlib.suppress(ValueError, OSError), opened(Path(path)) as file:
            image, tiff = open_header(file, MAX_IMAGE_PIXELS, by_regions=True)
            if tiff is None or (image is not None and tiff.is_plain):
                counts[1 if image.mode in _GRAY or image.mode[0] in "IF" else 3] += 1
            else:
                counts[tiff.layout.channels - tiff.layout.has_alpha] += 1
    return dict(counts.most_common())


def _evenly(items: Sequence, limit: int) -> list:
    """At most so many items, from all parts of a list."""
    step = max(1, math.ceil(len(items) / limit))
    return list(items[::step])


def _is_deep(path: str | os.PathLike) -> bool:
    """Whether an image has values of more than 8 bits, by its header."""
    with opened(Path(path)) as file:
        image, tiff = open_header(file, MAX_IMAGE_PIXELS, by_regions=True)
        if tiff is not None:
            return tiff.dtype.itemsize > 1
        return image.mode[0] in "IF" or bool(image.tile and _rawmode(image) in _LOW_BYTES)

"""Reads image files of every kind as uint8 RGB, and their sizes. All code that opens a user's image calls this file.

A file is data: only decoders of raster formats read it, and none of them starts another program. Whatever a file holds,
the result is an image, or one sentence that names the file.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

import utils
from utils import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE

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

    Raises: as read_image.
    """
    with _opened(Path(path)) as file:
        image = Image.open(file, formats=FORMATS)
        _check_size(image.size, max_pixels)
        width, height = image.size
        orientation = _orientation(image)
        is_on_its_side = orientation >= 5
        if image.format == "TIFF" and is_on_its_side:  # Pillow itself turns a TIFF.
            height, width = width, height
        return ImageSize((width, height) if is_on_its_side else (height, width), (height, width), orientation)


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


def _orientation(image: Image.Image) -> int:
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


def read_image(path: str | os.PathLike, max_pixels: int = MAX_IMAGE_PIXELS, upright: bool = True) -> np.ndarray:
    """Reads an image of any format in FORMATS, upright and in RGB. The content decides, not the file's suffix.

    The image is turned as its EXIF orientation says. An animation gives its first frame. Transparency is dropped; the
    colours under it stay as they are. 16-bit values, and whole numbers in 0..65535, are scaled to 8 bits. Floats in
    [0, 1] are scaled by 255; others must lie in [0, 255]. CMYK, YCbCr and LAB are converted without the file's colour
    profile.

    path: the file.
    max_pixels: an image of more pixels is refused before it is decoded. Pillow has a limit of its own, which is twice
        PIL.Image.MAX_IMAGE_PIXELS. Raise that as well to read larger images.
    upright: False leaves the pixels as they are stored, whatever the EXIF orientation says.

    Returns: uint8 [H, W, 3].
    Raises: FileNotFoundError if there is no such file. ValueError, with the file and the cause, if the file is empty,
        cut off, a directory, too large, or no image, or if its values lie outside of these ranges.
    """
    with _opened(Path(path)) as file:
        image = Image.open(file, formats=FORMATS)
        _check_size(image.size, max_pixels)
        orientation = _orientation(image)
        is_turned = image.format == "TIFF"  # Pillow itself turns a TIFF.
        image.load()
        pixels = _rgb_pixels(image)
    if is_turned and not upright:
        pixels = _TURNS[_INVERSE.get(orientation, orientation)](pixels)
    elif upright and not is_turned:
        pixels = _TURNS[orientation](pixels)
    return np.ascontiguousarray(pixels)


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


class _Refused(ValueError):
    """What we ourselves say of an image. Errors of other kinds come from a decoder."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The open file. Errors inside of the with statement become one sentence that names the file."""
    name = utils.printable(path, 500)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name}: there is no such file") from None
    except IsADirectoryError:
        raise ValueError(f"image {name} is a directory; give one of the files in it") from None
    with file:
        _silence_libraries()
        try:
            yield file
        except Image.DecompressionBombError as error:
            raise ValueError(f"image {name} is too large for Pillow (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
        except MemoryError:
            raise
        except _Refused as error:
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


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _Refused(f"{width} x {height} pixels are more than max_pixels={max_pixels}; is it a decompression bomb?")
    if max(size) > MAX_IMAGE_SIDE:
        raise _Refused(f"{width} x {height} pixels: no side may be longer than {MAX_IMAGE_SIDE}; cut it into tiles")


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


def _rgb_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a decoded image."""
    mode = image.mode
    if mode.startswith("I;16"):
        return utils.to_rgb(np.asarray(image).astype(np.uint16))
    if mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _Refused(f"32-bit values in {values.min()}..{values.max()}; only 0..65535, 16 bits, are understood")
        return utils.to_rgb(values.astype(np.uint16))
    if mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 255):  # in this form, NaN fails too
            raise _Refused(f"floating values in {values.min()}..{values.max()}; they must lie in 0..1 or 0..255")
        return utils.to_rgb(values if values.max() <= 1 else values / 255)
    if mode in ("P", "PA", "LA", "RGBa"):  # Pillow misreads a palette with transparency on the direct way to RGB.
        image = image.convert("RGBA")
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    return np.array(image)[..., :3]

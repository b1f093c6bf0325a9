"""Damaged image files: each is read as uint8 [H, W, 3], or refused in a sentence that names the file."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from fuzzing import damaged_bytes, fuzz
from PIL import Image

from data.images import ImageReader, image_size, read_image, read_mask

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.uint8)
MANY = np.random.default_rng(1).integers(0, 4096, (12, 17, 5)).astype(np.uint16)


def by_pillow(kind: str, **options) -> bytes:
    """The bytes of a picture that EXIF turns, where the format has EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(
        file, kind, **{"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}, **options
    )
    return file.getvalue()


def by_tifffile(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def gray(mode: str, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOUR).convert(mode).save(file, kind)
    return file.getvalue()


def deep_png(kind: int) -> bytes:
    """A PNG of 16 bits. kind: its colour type."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = MANY[..., : {0: 1, 2: 3, 4: 2, 6: 4}[kind]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 17, 12, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"sBIT", b"\x0c"), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


SAMPLES: dict[str, Callable[[], list[bytes]]] = {
    "png": lambda: [by_pillow("PNG"), gray("P", "PNG"), gray("1", "PNG"), *map(deep_png, (0, 2, 4, 6))],
    "jpeg": lambda: [by_pillow("JPEG"), by_pillow("JPEG", progressive=True), gray("CMYK", "JPEG")],
    "tiff": lambda: [
        by_pillow("TIFF"),
        by_pillow("TIFF", compression="tiff_lzw"),
        by_pillow("TIFF", compression="jpeg"),
        by_tifffile(COLOUR, photometric="rgb"),
        by_tifffile(COLOUR[..., 0], tile=(16, 16)),
        by_tifffile(MANY[..., 0]),
        by_tifffile(MANY[..., 0], extratags=[(281, 3, 1, 4095, True)], bigtiff=True),
    ],
    "channels": lambda: [
        by_tifffile(MANY, photometric="minisblack", planarconfig="contig"),
        by_tifffile(MANY.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate", metadata=None),
        by_tifffile(MANY, photometric="minisblack", planarconfig="contig", compression="zlib", predictor=True),
        by_tifffile(MANY, photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="zlib"),
        by_tifffile(MANY.transpose(2, 0, 1), photometric="minisblack", byteorder=">"),
        by_tifffile(MANY.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
        by_tifffile(MANY.transpose(2, 0, 1), ome=True, metadata={"axes": "CYX", "SignificantBits": 12}),
        by_tifffile(MANY[..., 0].astype(np.float32) / 4095),
        by_tifffile(MANY[..., 0].astype(np.int16) - 1000),
    ],
    "others": lambda: [by_pillow("BMP"), by_pillow("GIF"), by_pillow("WEBP"), by_pillow("WEBP", lossless=True),
                       by_pillow("PPM"), by_pillow("TGA"), by_pillow("JPEG2000"), by_pillow("ICO"), by_pillow("PCX"),
                       by_pillow("SGI")],
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_images(tmp_path, kind):
    samples = SAMPLES[kind]()
    path = tmp_path / "photo.jpg"

    def case(rng: np.random.Generator) -> None:
        path.write_bytes(damaged_bytes(samples[rng.integers(len(samples))], rng))
        ImageReader().inspect([path])  # leaves out what cannot be read
        size = image_size(path, max_pixels=1_000_000)
        pixels = read_image(path, max_pixels=1_000_000)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (*size.shown, 3)
        assert pixels.flags.c_contiguous
        assert read_image(path, 1_000_000, upright=False).shape == (*size.stored, 3)
        channels = int(rng.integers(1, 7))
        several = read_image(path, 1_000_000, pixel_range=("depth", "percentiles")[channels % 2], channels=channels)
        assert several.shape == (*size.shown, channels)
        assert read_mask(path, 1_000_000).shape == size.shown

    fuzz(case, 100, path.name)

"""Damaged files that are read by regions: each gives pixels, or a sentence that names it; memory has its limit."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from fuzzing import damaged_bytes, damaged_json, fuzz
from PIL import Image

from data.regions import Pixels, open_source

COLOUR = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
MANY = np.random.default_rng(1).integers(0, 4096, (40, 50, 5)).astype(np.uint16)
PLACE = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
    (42113, 2, 0, "0", True),
]


def by_tifffile(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def by_pillow(image: Image.Image, compression: str) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    return file.getvalue()


def pyramid() -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True, bigtiff=True) as writer:
        options = {"tile": (16, 16), "photometric": "minisblack", "compression": "zlib"}
        writer.write(MANY.transpose(2, 0, 1), subifds=1, metadata={"axes": "CYX", "PhysicalSizeX": 0.5}, **options)
        writer.write(MANY.transpose(2, 0, 1)[:, ::2, ::2], subfiletype=1, **options)
    return file.getvalue()


def tiffs() -> list[bytes]:
    picture = Image.fromarray(COLOUR)
    tiled = {"tile": (16, 16), "compression": "zlib"}
    return [
        by_tifffile(COLOUR, photometric="rgb"),
        by_tifffile(COLOUR, photometric="rgb", **tiled),
        by_tifffile(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(16, 16)),
        by_tifffile(MANY, photometric="minisblack", planarconfig="contig", rowsperstrip=7, compression="zlib"),
        by_tifffile(MANY[..., 0], compression="lzma", byteorder=">"),
        by_tifffile(MANY[..., 0].astype(np.float32), bigtiff=True, **tiled),
        by_tifffile(MANY.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
        by_tifffile(COLOUR, photometric="rgb", extratags=PLACE, metadata=None),
        pyramid(),
        by_pillow(picture, "tiff_lzw"),
        by_pillow(picture, "jpeg"),
        by_pillow(picture.convert("L"), "packbits"),
        by_pillow(picture.convert("1"), "group4"),
        by_pillow(picture.quantize(20), "tiff_adobe_deflate"),
    ]


def use(path, rng: np.random.Generator) -> None:
    """Read some regions, and make 8 bits of them."""
    channels, pixel_range = int(rng.integers(1, 7)), str(rng.choice(["depth", "percentiles"]))
    config = SimpleNamespace(BIT_DEPTH="auto", PIXEL_RANGE=pixel_range, IMAGE_CHANNEL_COUNT=channels)
    with open_source(path, channels) as source:
        height, width = source.shape[:2]
        y2, x2 = min(height, 30), min(width, 37)
        assert source.read(0, 0, y2, x2).shape == (y2, x2, *source.shape[2:])
        source.is_blank(0, 0, y2, x2)
        if height * width < 1_000_000:
            pixels = Pixels(source, config).read(height - y2, width - x2, height, width)
            assert (pixels.shape, pixels.dtype) == ((y2, x2, channels), np.uint8)


def test_damaged_tiffs(tmp_path):
    samples = tiffs()
    path = tmp_path / "slide.tif"

    def case(rng: np.random.Generator) -> None:
        path.write_bytes(damaged_bytes(samples[rng.integers(len(samples))], rng))
        use(path, rng)

    fuzz(case, 300, path.name)


def test_damaged_zarr(tmp_path):
    zarr = pytest.importorskip("zarr", reason="the optional package zarr is not installed")
    folders = []
    for version in (2, 3):
        folders.append(tmp_path / f"{version}")
        group = zarr.open_group(str(folders[-1]), mode="w", zarr_format=version)
        array = group.create_array("0", shape=(5, 40, 50), dtype=np.uint16, chunks=(2, 16, 16))
        array[:] = MANY.transpose(2, 0, 1)
        scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
        axes = [{"name": "c"}, {"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
        multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group.attrs.update({"ome": {"multiscales": multiscales}} if version == 3 else {"multiscales": multiscales})
    path = tmp_path / "image.zarr"

    def case(rng: np.random.Generator) -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folders[rng.integers(2)], path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        headers = [file for file in files if file.name.startswith((".z", "zarr"))]
        file = (headers if rng.random() < 0.7 else files)[rng.integers(len(headers))]
        if file in headers and rng.random() < 0.8:
            file.write_text(json.dumps(damaged_json(json.loads(file.read_text()), rng)))
        else:
            file.write_bytes(damaged_bytes(file.read_bytes(), rng))
        use(path, rng)

    fuzz(case, 100, path.name)

"""data/regions.py: files of every kind read by regions are the same as read in one piece, and only pieces are read."""

import itertools
import json
import logging
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from helpers import geotiff, random_image, tiny_model
from PIL import Image

import tiles
from data import images, regions, slide_regions, tiff_regions
from data.georeference import Georeference
from data.images import read_image
from data.regions import ArraySource, Pixels, as_source, georeference_of, open_source, source_shape

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (70, 100, 3)).astype(np.uint8)
SMOOTH = np.asarray(Image.fromarray(COLOUR[::10, ::10]).resize((100, 70), Image.Resampling.BICUBIC))
MANY = RNG.integers(0, 4096, (70, 100, 5)).astype(np.uint16)
DEEP = MANY[..., 0]


@pytest.fixture(autouse=True)
def _said_anew():
    images._said.clear()


def settings(bit_depth="auto", pixel_range="depth", channels=3):
    return SimpleNamespace(BIT_DEPTH=bit_depth, PIXEL_RANGE=pixel_range, IMAGE_CHANNEL_COUNT=channels)


def pasted(pixels: Pixels, rng: np.random.Generator) -> np.ndarray:
    """The whole image, pasted together of regions between some rows and columns."""
    height, width = pixels.source.shape[:2]
    rows, columns = (
        sorted({0, side, *rng.integers(1, max(side, 2), 4).clip(max=side).tolist()}) for side in (height, width)
    )
    lines = [
        np.concatenate([pixels.read(y1, x1, y2, x2) for x1, x2 in itertools.pairwise(columns)], axis=1)
        for y1, y2 in itertools.pairwise(rows)
    ]
    return np.concatenate(lines)


def write(array, **options):
    """A function that writes an array by tifffile."""
    return lambda path: tifffile.imwrite(path, array, **options)


def save(image, kind, **options):
    """A function that writes an image by Pillow."""
    return lambda path: image.save(path, kind, **options)


def pages(arrays, **options):
    def to(path):
        with tifffile.TiffWriter(path, **options) as file:
            for array in arrays:
                file.write(array, photometric="minisblack", metadata=None)

    return to


def pyramid(path):
    """An OME-TIFF with channels as planes, and smaller copies in SubIFDs."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        data = MANY.transpose(2, 0, 1)
        common = {"tile": (32, 32), "photometric": "minisblack", "compression": "zlib"}
        metadata = {"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        file.write(data, subifds=1, metadata=metadata, **common)
        file.write(data[:, ::2, ::2], subfiletype=1, **common)
        file.write(COLOUR[..., 0], photometric="minisblack")  # a label, such as slides have


def write_sparse(path, side: int, tile: int, written: dict[int, bytes]) -> None:
    """A BigTIFF in tiles of one byte a pixel, of which only some were written."""
    count = (-(-side // tile)) ** 2
    data, offsets, counts = b"", [0] * count, [0] * count
    for number, content in written.items():
        offsets[number], counts[number] = 16 + len(data), len(content)
        data += content
    place = 16 + len(data)
    shorts = {258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile}
    fields = [(code, 3, 1, struct.pack("<Q", value)) for code, value in shorts.items()]
    fields += [(code, 4, 1, struct.pack("<Q", side)) for code in (256, 257)]
    fields += [(324, 16, count, struct.pack("<Q", place)), (325, 16, count, struct.pack("<Q", place + 8 * count))]
    table = np.array([*offsets, *counts], "<u8").tobytes()
    directory = struct.pack("<Q", len(fields))
    directory += b"".join(struct.pack("<HHQ", *field[:3]) + field[3] for field in sorted(fields))
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, place + len(table))
    path.write_bytes(header + data + table + directory + bytes(8))


GRAY, PALETTE = Image.fromarray(COLOUR).convert("L"), Image.fromarray(SMOOTH).quantize(50)
ALPHA = Image.fromarray(np.dstack([COLOUR, COLOUR[..., 0]]))
EXIF = {274: 6}
KINDS = {
    "tiles": write(COLOUR, photometric="rgb", tile=(32, 48)),
    "tiles, deflate": write(COLOUR, photometric="rgb", tile=(32, 48), compression="zlib", predictor=True),
    "tiles, lzma": write(DEEP, tile=(32, 48), compression="lzma"),
    "packbits": save(GRAY, "TIFF", compression="packbits"),
    "strips": write(COLOUR, photometric="rgb", rowsperstrip=9),
    "strips, deflate": write(COLOUR, photometric="rgb", rowsperstrip=9, compression="zlib"),
    "one strip, deflate": write(COLOUR, photometric="rgb", compression="zlib", rowsperstrip=1000),
    "big, 16 bits": write(DEEP, tile=(16, 16), bigtiff=True),
    "other byte order": write(MANY[..., :3], photometric="rgb", byteorder=">", compression="zlib", predictor=True),
    "planes": write(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(32, 32)),
    "planes, raw": write(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "five channels": write(MANY, photometric="minisblack", planarconfig="contig", tile=(32, 32), compression="zlib"),
    "five planes": write(MANY.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate", metadata=None),
    "five pages": pages(MANY.transpose(2, 0, 1)),
    "unnamed, first": write(MANY.transpose(2, 0, 1), photometric="minisblack"),
    "unnamed, last": write(MANY, photometric="minisblack"),
    "truncated": write(MANY.transpose(2, 0, 1), photometric="minisblack", truncate=True),
    "imagej": write(MANY.transpose(2, 0, 1)[:3], imagej=True, metadata={"axes": "CYX"}),
    "imagej, slices": write(
        np.stack([MANY[..., :2], MANY[..., 1:3]]).transpose(0, 3, 1, 2), imagej=True, metadata={"axes": "ZCYX"}
    ),
    "ome": write(MANY.transpose(2, 0, 1), ome=True, metadata={"axes": "CYX", "SignificantBits": 12}),
    "ome, times": write(
        np.stack([COLOUR, COLOUR[::-1]]), ome=True, photometric="rgb", metadata={"axes": "TYXS"}, tile=(32, 32)
    ),
    "ome, slices and channels": write(
        np.stack([MANY[..., :2], MANY[..., 1:3]]).transpose(0, 3, 1, 2), ome=True, metadata={"axes": "ZCYX"}
    ),
    "ome, pyramid": pyramid,
    "sparse": lambda path: write_sparse(path, 70, 32, {1: DEEP[:32, :32].astype(np.uint8).tobytes()}),
    "floats to 1": write(DEEP.astype(np.float32) / 4095, tile=(32, 32)),
    "floats to 1, predictor": write(DEEP.astype(np.float32) / 4095, compression="zlib", rowsperstrip=8),
    "floats to 255": write(DEEP.astype(np.float64) / 17, tile=(32, 32)),
    "large floats": write(DEEP.astype(np.float32) * 3.3),
    "far floats": write(DEEP.astype(np.float32) * 33 - 5),
    "negative": write(DEEP.astype(np.int16) - 1000, tile=(32, 32)),
    "32 bits": write(DEEP.astype(np.uint32) * 1000),
    "8 signed bits": write((DEEP % 128).astype(np.int8)),
    "white is zero": write(COLOUR[..., 0], photometric="miniswhite", tile=(32, 32)),
    "deep, white is zero": write(DEEP, photometric="miniswhite", rowsperstrip=16),
    "bits in use": write(DEEP // 2, extratags=[(281, 3, 1, 4095, True)], tile=(16, 16)),
    "turned": write(COLOUR, photometric="rgb", tile=(32, 48), extratags=[(274, 3, 1, 6, True)]),
    "lzw": save(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"),
    "lzw, gray": save(GRAY, "TIFF", compression="tiff_lzw"),
    "lzw, deep": save(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "lzw, floats": save(Image.fromarray(DEEP.astype(np.float32)), "TIFF", compression="tiff_lzw"),
    "jpeg in tiff": save(Image.fromarray(SMOOTH), "TIFF", compression="jpeg"),
    "palette": save(PALETTE, "TIFF"),
    "palette, deflate": save(PALETTE, "TIFF", compression="tiff_adobe_deflate"),
    "bilevel": save(GRAY.convert("1"), "TIFF", compression="group4"),
    "bilevel, raw": save(GRAY.convert("1"), "TIFF"),
    "cmyk": save(Image.fromarray(COLOUR).convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "lab": save(Image.fromarray(COLOUR).convert("LAB"), "TIFF"),
    "alpha": save(ALPHA, "TIFF", compression="tiff_lzw"),
    "alpha, raw": save(ALPHA, "TIFF"),
    "gray and alpha": save(GRAY.convert("LA"), "TIFF", compression="tiff_lzw"),
    "alpha in tiles": write(np.asarray(ALPHA), photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32)),
    "premultiplied": write(np.asarray(ALPHA), photometric="rgb", extrasamples=["assocalpha"], tile=(32, 32)),
    "png": save(Image.fromarray(COLOUR), "PNG"),
    "png, palette": save(PALETTE, "PNG"),
    "png, deep": save(Image.fromarray(DEEP), "PNG"),
    "png, alpha": save(ALPHA, "PNG"),
    "jpeg, turned": lambda path: turned_jpeg(path),
    "webp": save(Image.fromarray(COLOUR), "WEBP", lossless=True),
    "jpeg 2000": save(Image.fromarray(COLOUR), "JPEG2000"),
    "one pixel": write(COLOUR[:1, :1], photometric="rgb"),
    "one row": write(DEEP[:1], tile=(16, 16)),
}  # fmt: skip


def turned_jpeg(path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(COLOUR).save(path, "JPEG", exif=exif)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_the_parts_of_the_whole(tmp_path, kind):
    path = tmp_path / "image.tif"
    KINDS[kind](path)
    for number, channels in enumerate((3, 1, 5, 2, 4)):
        for pixel_range in ("depth", "percentiles"):
            expected = read_image(path, pixel_range=pixel_range, channels=channels)
            with open_source(path, channels) as source:
                assert source.shape[:2] == expected.shape[:2]
                part = source.read(0, 0, 1, 1)
                assert (part.shape, part.dtype) == ((1, 1, *source.shape[2:]), source.dtype), "as the header promised"
                actual = pasted(Pixels(source, settings("auto", pixel_range, channels)), np.random.default_rng(number))
            np.testing.assert_array_equal(actual, expected, err_msg=f"{channels} channels, {pixel_range}")
    assert source_shape(path) == expected.shape[:2]


@pytest.mark.parametrize("kind", ["tiles, lzma", "lzw, deep", "png, deep", "five channels", "large floats"])
@pytest.mark.parametrize("depth", [12, 16])
def test_a_bit_depth_that_was_set_holds_for_regions(tmp_path, kind, depth):
    path = tmp_path / "image.tif"
    KINDS[kind](path)
    if kind == "large floats" and depth == 12:
        with open_source(path) as source, pytest.raises(ValueError, match=r"image\.tif: BIT_DEPTH is 12"):
            Pixels(source, settings(12))
        return
    with open_source(path) as source:
        actual = pasted(Pixels(source, settings(depth)), np.random.default_rng(0))
    np.testing.assert_array_equal(actual, read_image(path, bit_depth=depth))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tiles", "five channels", "png"])
def test_pixels_are_turned_as_exif_says(tmp_path, kind, orientation):
    path = tmp_path / "image.tif"
    if kind == "png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(COLOUR).save(path, "PNG", exif=exif)
    else:
        tags = [(274, 3, 1, orientation, True)]
        array, photometric = (COLOUR, "rgb") if kind == "tiles" else (MANY, "minisblack")
        tifffile.imwrite(
            path, array, photometric=photometric, planarconfig="contig", tile=(32, 32), extratags=tags, metadata=None
        )
    with open_source(path) as source:
        actual = pasted(Pixels(source, settings()), np.random.default_rng(orientation))
    np.testing.assert_array_equal(actual, read_image(path))


############################################################
#  Only what is needed
############################################################


class CountingReads:
    """Counts the bytes that TiffRegions takes from a file."""

    def __init__(self, monkeypatch):
        self.counts = []
        original = tiff_regions.TiffRegions._bytes_at

        def counting(regions_of_tiff, offset, count):
            self.counts.append(count)
            return original(regions_of_tiff, offset, count)

        monkeypatch.setattr(tiff_regions.TiffRegions, "_bytes_at", counting)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_of_tiles_only_those_of_the_region_are_read(tmp_path, monkeypatch, compression):
    image = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), compression=compression)
    with open_source(tmp_path / "a.tif") as source:
        reads = CountingReads(monkeypatch)
        np.testing.assert_array_equal(source.read(60, 70, 130, 120), image[60:130, 70:120])
        assert len(reads.counts) == 3  # rows 0, 1, 2 of tiles, and column 1
        assert sum(reads.counts) <= 3 * (64 * 64 + 100)
        source.read(64, 64, 128, 128)
        assert len(reads.counts) == 3, "it is still there"


def test_raw_strips_are_read_row_by_row(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    with open_source(tmp_path / "a.tif") as source:
        reads = CountingReads(monkeypatch)
        np.testing.assert_array_equal(source.read(500, 70, 600, 120), image[500:600, 70:120])
        assert sum(reads.counts) == 100 * 50 * 3


def test_strips_are_unpacked_once_for_a_row_of_tiles(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (300, 1000), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=10, compression="zlib")
    with open_source(tmp_path / "a.tif") as source:
        reads = CountingReads(monkeypatch)
        for x in range(0, 1000, 100):
            np.testing.assert_array_equal(source.read(100, x, 205, x + 100), image[100:205, x : x + 100])
        assert len(reads.counts) == 11


@pytest.mark.parametrize(("piece", "pixel_bytes", "megabytes"), [
    ((512, 512), 3, 32), ((2048, 2048), 3, 48), ((8192, 8192), 3, 128), ((256, 40_000), 3, 128), ((10, 50_000), 1, 128),
])  # fmt: skip
def test_how_many_decoded_pieces_are_kept(piece, pixel_bytes, megabytes):
    assert tiff_regions.cache_bytes(tiff_regions.Grid(40_000, 40_000, *piece), pixel_bytes) == megabytes << 20


def test_the_cache_keeps_to_its_size():
    cache = tiff_regions.PieceCache(100)
    made = []

    def piece(key):
        return cache.get(key, lambda: made.append(key) or np.zeros(40, np.uint8))

    for key in "abacab":  # b goes when c comes
        piece(key)
    assert "".join(made) == "abcb"
    cache.get("large", lambda: np.zeros(101, np.uint8))
    piece("a")
    assert "".join(made) == "abcb", "what never fits does not drive out the others"


def test_threads_read_the_same(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", MANY, photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="zlib"
    )
    places = [(y, x, y + 20, x + 30) for y in range(0, 50, 7) for x in range(0, 70, 9)]
    with open_source(tmp_path / "a.tif", 5) as source, ThreadPoolExecutor(8) as pool:
        for (y1, x1, y2, x2), part in zip(places, pool.map(lambda place: source.read(*place), places), strict=True):
            np.testing.assert_array_equal(part, MANY[y1:y2, x1:x2])


def test_an_ordinary_file_is_decoded_once_and_not_by_opening(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    calls = []
    monkeypatch.setattr(regions, "decode", lambda *arguments: calls.append(1) or images.decode(*arguments))
    with open_source(tmp_path / "a.png") as source:
        assert (source.shape, source.dtype, calls) == ((70, 100, 3), np.uint8, [])
        source.read(0, 0, 5, 5)
        source.read(5, 5, 9, 9)
    assert calls == [1]


def test_an_ordinary_file_may_be_larger_than_read_image_takes(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(regions.utils, "MAX_IMAGE_PIXELS", 1000)
    with open_source(tmp_path / "a.png") as source:
        np.testing.assert_array_equal(source.read(3, 4, 50, 60), COLOUR[3:50, 4:60])
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(regions, "_most_pixels", lambda: 5000)
    with pytest.raises(
        ValueError, match=r"a\.png: its 100 x 70 pixels take about 0 GB of memory, as it cannot be read"
    ):
        open_source(tmp_path / "a.png")


def test_a_sparse_image_of_any_size_is_opened_and_read(tmp_path):
    path = tmp_path / "a.tif"
    write_sparse(path, 30_000, 256, {120: bytes([7]) * 256 * 256})
    with open_source(path) as source:
        assert source.shape == (30_000, 30_000)
        pixels = Pixels(source, settings())
        assert pixels.read(256, 512, 512, 768).tolist() == np.full((256, 256, 3), 7).tolist()
        assert source.is_blank(0, 0, 200, 30_000)
        assert not source.is_blank(500, 500, 600, 600)
        assert not pixels.read(29_000, 29_000, 30_000, 30_000).any()


############################################################
#  What is blank, and values that are no data
############################################################


def test_no_data_do_not_count_and_become_black(tmp_path):
    heights = np.linspace(100, 200, 70 * 100, dtype=np.float32).reshape(70, 100)
    holes = heights.copy()
    holes[:40, :50] = -9999
    holes[50, 60] = np.nan
    geotiff(tmp_path / "plain.tif", heights)
    geotiff(tmp_path / "holes.tif", holes, nodata=-9999)
    expected = read_image(tmp_path / "plain.tif")
    with open_source(tmp_path / "holes.tif") as source:
        pixels = Pixels(source, settings())
        actual = pixels.read(0, 0, 70, 100)
        assert source.is_blank(0, 0, 40, 50)
        assert source.is_blank(50, 60, 51, 61), "not a number"
        assert not source.is_blank(0, 0, 41, 50)
    hidden = (holes == -9999) | np.isnan(holes)
    assert len(np.unique(actual[hidden])) == 1
    assert actual[hidden].max() <= actual[~hidden].min()
    np.testing.assert_array_equal(actual[~hidden], expected[~hidden])
    with open_source(tmp_path / "holes.tif") as source:
        stretched = Pixels(source, settings(pixel_range="percentiles")).read(0, 0, 70, 100)
    assert not stretched[hidden].any()
    assert stretched[~hidden].std() > 50, "the holes do not take the range"


def test_an_image_without_any_data_is_black(tmp_path):
    for number, pixel_range in enumerate(("depth", "percentiles")):
        path = tmp_path / f"{number}.tif"
        geotiff(path, np.full((20, 30), np.nan, np.float32))
        with open_source(path) as source:
            assert source.is_blank(0, 0, 20, 30)
            assert not Pixels(source, settings(pixel_range=pixel_range)).read(0, 0, 20, 30).any()


def test_values_of_8_bits_stay_where_they_are_no_data(tmp_path):
    geotiff(tmp_path / "a.tif", COLOUR, nodata=255, photometric="rgb")
    with open_source(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(Pixels(source, settings()).read(0, 0, 70, 100), COLOUR)


def test_the_network_does_not_see_blank_tiles(tmp_path, monkeypatch):
    model = tiny_model()
    image = random_image(150, 300)
    image[:, :100] = 0
    geotiff(tmp_path / "a.tif", image, nodata=0, photometric="rgb", tile=(16, 16))
    seen = []
    original = tiles._detect
    monkeypatch.setattr(
        tiles, "_detect", lambda model, inputs, dtype: seen.extend(inputs) or original(model, inputs, dtype)
    )
    with open_source(tmp_path / "a.tif") as source:
        plan = tiles.plan_tiles(source.shape, model.config, tile=64, overlap=0)
        found = [
            tile
            for row in plan.rows()
            for tile, _, _ in tiles.detect_views(model, Pixels(source, model.config), plan, row)
        ]
    assert sorted((tile.row, tile.column) for tile in found) == [(y, x) for y in range(3) for x in range(5)]
    assert len(seen) == 3 * 4, "the first column is blank"


############################################################
#  Sizes of pixels, places on maps
############################################################


def test_the_size_of_pixels_is_read(tmp_path):
    pyramid(tmp_path / "ome.tif")
    tifffile.imwrite(tmp_path / "ij.tif", DEEP, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "plain.tif", DEEP, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    tifffile.imwrite(
        tmp_path / "svs.tif", COLOUR, tile=(64, 64), description="Aperio Image Library v1\n1x1 |AppMag = 20|MPP = 0.499"
    )
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    sizes = {}
    for path in sorted(tmp_path.iterdir()):
        with open_source(path) as source:
            sizes[path.stem] = source.pixel_size
    assert sizes == {"a": None, "ij": 0.25, "ome": 0.25, "plain": 0.5, "svs": 0.499}


def test_a_geotiff_has_a_place_on_the_map(tmp_path):
    geotiff(tmp_path / "a.tif", COLOUR, photometric="rgb")
    with open_source(tmp_path / "a.tif") as source:
        place = source.georeference
    assert place == Georeference("EPSG:32633", (0.5, 0.0, 500000.0, 0.0, -0.5, 4000000.0))
    assert place.place(10, 20) == (500005.0, 3999990.0)
    tags = [(34264, 12, 16, (0.0, 2.0, 0.0, 7.0, 3.0, 0.0, 0.0, 9.0, *[0.0] * 7, 1.0), True)]
    tifffile.imwrite(tmp_path / "turned.tif", COLOUR, extratags=tags, metadata=None)
    with open_source(tmp_path / "turned.tif") as source:
        assert source.georeference == Georeference("", (0.0, 2.0, 7.0, 3.0, 0.0, 9.0))
    tags = [(34264, 12, 16, (0.0,) * 16, True)]
    tifffile.imwrite(tmp_path / "flat.tif", COLOUR, extratags=tags, metadata=None)
    with open_source(tmp_path / "flat.tif") as source:
        assert source.georeference is None


def test_a_picture_that_is_read_in_one_piece_may_have_a_place(tmp_path):
    geotiff(tmp_path / "a.tif", COLOUR, photometric="rgb")
    assert georeference_of(tmp_path / "a.tif").place(0, 0) == (500000.0, 4000000.0)
    Image.fromarray(COLOUR).save(tmp_path / "plain.tif")
    (tmp_path / "bad.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:50])
    (tmp_path / "a.txt").write_bytes(b"II*")
    assert [georeference_of(tmp_path / name) for name in ("plain.tif", "bad.tif", "a.txt", "gone.tif")] == [None] * 4


@pytest.mark.parametrize(("micrometres", "step"), [(None, 1), (0.1, 1), (0.35, 1), (0.36, 2), (0.5, 2), (9.0, 2)])
def test_the_level_of_a_pyramid_is_the_nearest_one(tmp_path, micrometres, step):
    pyramid(tmp_path / "a.tif")
    with open_source(tmp_path / "a.tif", 5, micrometres) as source:
        assert source.pixel_size == 0.25 * step
        np.testing.assert_array_equal(source.read(0, 0, *source.shape[:2]), MANY[::step, ::step])


def test_a_pyramid_without_a_size_has_no_level_of_a_size(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(DEEP, subifds=1)
        file.write(DEEP[::2, ::2], subfiletype=1)
    with pytest.raises(ValueError, match=r"a\.tif: it does not say the size of its pixels"):
        open_source(tmp_path / "a.tif", micrometres=0.5)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with open_source(tmp_path / "a.png", micrometres=0.5) as source:
        assert source.shape == COLOUR.shape, "it has one level"


############################################################
#  One rule for the whole image
############################################################


def test_of_a_very_large_image_some_parts_decide(tmp_path, monkeypatch, caplog):
    image = np.zeros((640, 640), np.uint16)
    image[5:10, 5:10] = 4000  # in the first part
    image[300, 300] = 60000  # in no part that is looked at
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64))
    monkeypatch.setattr(regions, "_BLOCK", 64)
    monkeypatch.setattr(regions, "MOST_SURVEYED", 640 * 640 // 9 + 1)
    with open_source(tmp_path / "a.tif") as source, caplog.at_level(logging.WARNING):
        pixels = Pixels(source, settings())
        assert pixels.read(5, 5, 6, 6).tolist() == [[[249] * 3]], "4000 of 4095"
        assert pixels.read(300, 300, 301, 301).tolist() == [[[255] * 3]], "white, not wrapped around"
    assert "the range of its values is that of every 9th part of it, 64 x 64 pixels each" in caplog.text


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
@pytest.mark.parametrize("outlier", [-7e4, 7e4, 1e9])
def test_values_beyond_the_sample_become_black_or_white(dtype, outlier):
    for sample in ([0, 1], [0, 200], [0, 4000], [-5, 70000]):
        rule, _ = images.eight_bits_rule(np.array([sample], dtype))
        expected = 0 if outlier < 0 else 255
        assert rule(np.array([[outlier]], dtype)).tolist() == [[expected]], sample


def test_a_thumbnail_is_every_nth_pixel():
    image = random_image(300, 200)
    pixels = Pixels(image, settings())
    np.testing.assert_array_equal(pixels.thumbnail(1000), image[::8, ::8])
    np.testing.assert_array_equal(pixels.thumbnail(), image)


def test_percentiles_of_a_large_image_are_of_a_sample(monkeypatch):
    monkeypatch.setattr(regions, "SAMPLED_PIXELS", 1000)
    monkeypatch.setattr(regions, "_BLOCK", 64)
    image = random_image(300, 200)
    values, limits = Pixels(image, settings())._survey()
    np.testing.assert_array_equal(np.sort(values, axis=0), np.sort(image[::8, ::8].reshape(-1, 1, 3), axis=0))
    assert limits == (image.min(), image.max()), "of all pixels"


def test_what_was_decided_is_said_once(tmp_path, caplog):
    KINDS["five channels"](tmp_path / "a.tif")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with open_source(tmp_path / "a.tif") as source:
                Pixels(source, settings())
    assert caplog.text.count("TIFF files with 5 channels: the first three are read") == 1
    assert caplog.text.count("are read as numbers of 12 bits") == 1


############################################################
#  Sources of users
############################################################


def test_arrays_and_objects_are_sources():
    source = as_source(COLOUR)
    assert (source.shape, source.dtype, source.pixel_size, source.georeference) == (COLOUR.shape, np.uint8, None, None)
    assert not source.is_blank(0, 0, 5, 5)
    with source:
        np.testing.assert_array_equal(source.read(1, 2, 3, 4), COLOUR[1:3, 2:4])
    own = SimpleNamespace(shape=[5, 6], read=lambda *region: np.zeros(3), is_blank=lambda *region: True)
    assert as_source(own).is_blank(0, 0, 1, 1)
    assert as_source(own).pixel_size is None
    assert isinstance(as_source(source), ArraySource)


############################################################
#  Files that cannot be read
############################################################


def test_regions_outside_of_the_image_are_refused(tmp_path):
    KINDS["tiles"](tmp_path / "a.tif")
    with open_source(tmp_path / "a.tif") as source:
        for region in ((0, 0, 71, 5), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 90, 5, 101)):
            with pytest.raises(ValueError, match=r"a\.tif: rows .* must have pixels, and lie inside 70 x 100"):
                source.read(*region)


@pytest.mark.parametrize("kind", ["tiles", "tiles, deflate", "strips", "lzw", "png", "planes, raw"])
def test_a_file_that_is_cut_off_is_named(tmp_path, kind):
    path = tmp_path / "photo.tif"
    KINDS[kind](path)
    data = path.read_bytes()
    is_lzw = kind == "lzw"  # Pillow writes the header at the end
    data = data[:8] + bytes(200) + data[208:] if is_lzw else data[: len(data) // 2]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"photo\.tif"), open_source(path) as source:
        source.read(0, 0, *source.shape[:2])


def test_a_bomb_in_a_piece_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=(64, 64), compression="zlib")
    bomb = zlib.compress(bytes(30 << 20), 1)
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = tags[324].valueoffset, tags[325].valueoffset
        kinds = int(tags[324].dtype), int(tags[325].dtype)
    data = bytearray(path.read_bytes())
    for place, kind, value in zip(places, kinds, (len(data), len(bomb)), strict=True):
        struct.pack_into("<I" if kind == 4 else "<H", data, place, value)
    path.write_bytes(data + bomb)
    tracked = []
    with open_source(path) as source:
        original = zlib.decompressobj
        try:
            zlib.decompressobj = lambda: SimpleNamespace(
                decompress=lambda packed, size: tracked.append(size) or original().decompress(packed, size)
            )
            assert not source.read(0, 0, 64, 64).any()
        finally:
            zlib.decompressobj = original
    assert tracked == [64 * 64]


def test_pieces_of_absurd_size_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = [(tags[code].valueoffset, int(tags[code].dtype)) for code in (256, 257, 322, 323)]
    data = bytearray(path.read_bytes())
    for place, kind in places:
        struct.pack_into("<I" if kind == 4 else "<H", data, place, 65520)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tif"):
        open_source(path)


def test_a_missing_decoder_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, MANY, photometric="minisblack", planarconfig="contig", tile=(32, 32), compression="zlib")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags[259].valueoffset
    path.write_bytes(data[:place] + struct.pack("<H", 34712) + data[place + 2 :])  # JPEG 2000
    with pytest.raises(
        ValueError, match=r"a\.tif: a TIFF of 5 channels, uint16 and JPEG2000 compression cannot be read"
    ):
        open_source(path)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    for name, cause in (("a.txt", "not an image"), ("folder", "is a directory"), ("none.tif", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{name}.*{cause}"):
            open_source(tmp_path / name)


def test_a_slide_without_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        ValueError, match=r"a\.mrxs: slides \(\.mrxs\) are read by OpenSlide; pip install openslide-python"
    ):
        open_source(tmp_path / "a.mrxs")


############################################################
#  Zarr
############################################################


def ome_zarr(folder, array, axes="cyx", version="0.5", unit="micrometer", chunks=None, **attributes):
    zarr = pytest.importorskip("zarr", reason="the optional package zarr is not installed")
    group = zarr.open_group(str(folder), mode="w", zarr_format=3 if version == "0.5" else 2)
    written = group.create_array(
        "0", shape=array.shape, dtype=array.dtype, chunks=chunks or tuple(min(32, n) for n in array.shape)
    )
    written[:] = array
    scale = [0.5 if axis in "yx" else 1.0 for axis in axes]
    named = [{"name": axis, "type": "space", "unit": unit} if axis in "yx" else {"name": axis} for axis in axes]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    multiscales = [{"axes": named, "datasets": datasets, "version": version}]
    group.attrs.update(
        {"ome": {"version": version, "multiscales": multiscales}} if version == "0.5" else {"multiscales": multiscales}
    )
    group.attrs.update(attributes)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx", "yxc"])
def test_ome_zarr_is_read(tmp_path, version, axes):
    array = {"yx": DEEP, "yxc": MANY}.get(axes, MANY.transpose(2, 0, 1))
    array = np.stack([array[:, None], array[:, None, ::-1]]) if axes == "tczyx" else array
    ome_zarr(tmp_path / "a.zarr", array, axes, version)
    image, options = (DEEP, {}) if axes == "yx" else (MANY, {"planarconfig": "contig"})
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", metadata=None, **options)
    for channels in (3, 1, 5):
        expected = read_image(tmp_path / "a.tif", channels=channels)
        with open_source(tmp_path / "a.zarr", channels) as source:
            assert source.pixel_size == 0.5
            np.testing.assert_array_equal(pasted(Pixels(source, settings(channels=channels)), RNG), expected)


@pytest.mark.parametrize("unit", ["nanometer", "micrometer", "millimeter", "furlong", None])
def test_units_of_ome_zarr(tmp_path, unit):
    ome_zarr(tmp_path / "a.zarr", DEEP, "yx", unit=unit)
    with open_source(tmp_path / "a.zarr") as source:
        assert source.pixel_size == {"nanometer": 0.0005, "micrometer": 0.5, "millimeter": 500.0}.get(unit)


def test_the_level_of_ome_zarr_is_the_nearest_one(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", DEEP, "yx")
    zarr = pytest.importorskip("zarr", reason="the optional package zarr is not installed")
    group = zarr.open_group(str(folder), mode="a")
    group.create_array("1", shape=(35, 50), dtype=DEEP.dtype, chunks=(32, 32))[:] = DEEP[::2, ::2]
    ome = group.attrs["ome"]
    transformations = [{"type": "scale", "scale": [1.0, 1.0]}]
    ome["multiscales"][0]["datasets"].append({"path": "1", "coordinateTransformations": transformations})
    group.attrs["ome"] = ome
    for micrometres, step in ((None, 1), (0.6, 1), (0.9, 2)):
        with open_source(folder, micrometres=micrometres) as source:
            assert source.pixel_size == 0.5 * step
            np.testing.assert_array_equal(source.read(0, 0, *source.shape), DEEP[::step, ::step])


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": (64, 64, 3)}])
def test_plain_zarr_arrays_are_read(tmp_path, options):
    zarr = pytest.importorskip("zarr", reason="the optional package zarr is not installed")
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=COLOUR.shape, dtype=np.uint8, chunks=(32, 32, 3), **options
    )
    array[:64, :64] = COLOUR[:64, :64]
    with open_source(tmp_path / "a.zarr") as source:
        part = source.read(10, 20, 70, 100)
        assert source.is_blank(64, 64, 70, 100), "these chunks were not written"
        assert not source.is_blank(0, 0, 70, 100)
    np.testing.assert_array_equal(part[:54, :44], COLOUR[10:64, 20:64])
    assert not part[54:].any()


def test_folders_of_zarr_without_one_image_are_explained(tmp_path):
    zarr = pytest.importorskip("zarr", reason="the optional package zarr is not installed")
    folder = tmp_path / "a.zarr"
    group = zarr.open_group(str(folder), mode="w")
    with pytest.raises(ValueError, match=r"a\.zarr: it is a group without an image of its own, and has none inside"):
        open_source(folder)
    group.create_array("only", shape=(20, 30), dtype=np.uint8, chunks=(8, 8))
    with open_source(folder) as source:
        assert source.shape == (20, 30)
    group.create_array("second", shape=(20, 30), dtype=np.uint8, chunks=(8, 8))
    with pytest.raises(ValueError, match="only, second"):
        open_source(folder)
    group.attrs["ome"] = {"plate": {}}
    with pytest.raises(ValueError, match="give the folder of one field"):
        open_source(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": [{"id": "pickle"}]}, "coded by pickle, which is not read"),
        ({"compressor": {"id": "pickle"}}, "coded by pickle"),
        ({"dtype": "|O"}, "values of type"),
        ({"dtype": [["a", "<u1"]]}, "values of type"),
        ({"chunks": [100_000, 100_000]}, "chunks take 9.3 GB each"),
        ({"chunks": [0, 8]}, "do not fit"),
        ({"shape": [20, -1]}, "and is no image"),
        ({"shape": [20]}, "and is no image"),
    ],
)
def test_headers_of_zarr_are_looked_at_before(tmp_path, change, message):
    header = {
        "zarr_format": 2,
        "shape": [20, 30],
        "chunks": [8, 8],
        "dtype": "|u1",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
    }
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps({**header, **change}))
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.zarr")


def test_a_path_out_of_the_zarr_folder_is_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    multiscales = [{"axes": ["y", "x"], "datasets": [{"path": "../b.zarr"}]}]
    (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))
    with pytest.raises(ValueError, match="lies outside of the folder"):
        open_source(tmp_path / "a.zarr")


############################################################
#  Maps and slides
############################################################


def test_maps_are_read_by_rasterio(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="the optional package rasterio is not installed")
    transform = rasterio.Affine(0.4, 0.3, 500000, 0.3, -0.4, 4000000)  # turned
    image = COLOUR.copy()
    image[:30, :40] = 0
    options = {"height": 70, "width": 100, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": transform}
    for driver, name in (("GTiff", "a.tif"), ("HFA", "a.img")):
        with rasterio.open(tmp_path / name, "w", driver=driver, nodata=0, **options) as file:
            file.write(image.transpose(2, 0, 1))
        with open_source(tmp_path / name) as source:
            np.testing.assert_array_equal(pasted(Pixels(source, settings()), RNG), image)
            assert source.georeference.crs == "EPSG:32633"
            assert source.georeference.transform == pytest.approx(tuple(transform)[:6])
            assert source.is_blank(0, 0, 30, 40)
            assert not source.is_blank(0, 0, 31, 41)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (SMOOTH, {"compress": "JPEG", "photometric": "YCBCR"}),
        (SMOOTH, {"compress": "JPEG", "photometric": "RGB", "interleave": "pixel"}),
        (SMOOTH, {"compress": "JPEG", "interleave": "band"}),
        (COLOUR, {"compress": "LZW", "predictor": 2}),
        (COLOUR, {"compress": "LZW", "interleave": "band"}),
        (COLOUR, {"compress": "DEFLATE", "predictor": 2, "BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
        (DEEP, {"compress": "LZW", "predictor": 2}),
        (DEEP, {"compress": "ZSTD"}),
        (DEEP.astype(np.float32) / 4095, {"compress": "LZW"}),
        (MANY, {"compress": "DEFLATE", "interleave": "band"}),
        (MANY[..., :3], {"compress": "LZW", "photometric": "RGB"}),
        (COLOUR[..., 0], {"SPARSE_OK": "TRUE", "compress": "JPEG"}),
    ],
)
def test_tiles_that_gdal_writes_are_the_parts_of_the_whole(tmp_path, image, options):
    rasterio = pytest.importorskip("rasterio", reason="the optional package rasterio is not installed")
    path = tmp_path / "a.tif"
    bands = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    size = {"height": image.shape[0], "width": image.shape[1], "count": len(bands), "dtype": image.dtype.name}
    transform = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)
    tiled = {"tiled": True, "blockxsize": 32, "blockysize": 16}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **size, **tiled, **options) as file:
        file.write(bands[:, :16], window=((0, 16), (0, 100))) if "SPARSE_OK" in options else file.write(bands)
    with open_source(path) as source:
        actual = pasted(Pixels(source, settings()), np.random.default_rng(0))
    if "SPARSE_OK" in options:
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(actual[..., 0], file.read(1))
    else:
        np.testing.assert_array_equal(actual, read_image(path))


def test_transparent_parts_of_maps_are_blank(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="the optional package rasterio is not installed")
    alpha = np.full((70, 100), 255, np.uint8)
    alpha[:30, :40] = 0
    options = {"height": 70, "width": 100, "count": 4, "dtype": "uint8", "photometric": "RGB", "alpha": "YES"}
    transform = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", crs="EPSG:32633", transform=transform, **options
    ) as file:
        file.write(np.concatenate([COLOUR.transpose(2, 0, 1), alpha[None]]))
    with open_source(tmp_path / "a.tif") as source:
        assert source.shape == (70, 100, 3)
        np.testing.assert_array_equal(source.read(0, 0, 70, 100), COLOUR)
        assert source.is_blank(0, 0, 30, 40)
        assert not source.is_blank(0, 0, 30, 41)


def write_slide(path, image, mpp=0.5):
    """A slide of Aperio's kind with two levels."""
    description = (
        f"Aperio Image Library v12.0.0\r\n{image.shape[1]}x{image.shape[0]} (32x32) J/100|AppMag = 20|MPP = {mpp}"
    )
    with tifffile.TiffWriter(path) as file:
        for step in (1, 4):
            file.write(
                image[::step, ::step], photometric="rgb", tile=(64, 64), compression="zlib", metadata=None,
                description=description,
            )  # fmt: skip


def test_slides_are_read_by_openslide(tmp_path):
    pytest.importorskip(
        "openslide", reason="the optional packages openslide-python and openslide-bin are not installed"
    )
    image = np.full((512, 768, 3), 245, np.uint8)
    image[100:300, 200:500] = random_image(200, 300)
    write_slide(tmp_path / "a.svs", image)
    assert slide_regions.find_vendor(tmp_path / "a.svs") == "aperio"
    with open_source(tmp_path / "a.svs") as source:
        assert (source.shape, source.pixel_size) == ((512, 768, 3), 0.5)
        np.testing.assert_array_equal(pasted(Pixels(source, settings()), RNG), image)
        assert source.is_blank(0, 0, 90, 190), "white glass"
        assert not source.is_blank(0, 0, 120, 220)
    with open_source(tmp_path / "a.svs", micrometres=1.5) as source:
        assert (source.shape, source.pixel_size) == ((128, 192, 3), 2.0)
        np.testing.assert_array_equal(source.read(20, 50, 70, 120), image[80:280:4, 200:480:4])


def test_a_slide_is_read_as_a_tiff_without_openslide(tmp_path, monkeypatch):
    image = random_image(200, 300)
    write_slide(tmp_path / "a.svs", image)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with open_source(tmp_path / "a.svs") as source:
        assert source.pixel_size == 0.5
        np.testing.assert_array_equal(source.read(50, 60, 150, 170), image[50:150, 60:170])


def test_transparency_of_slides_has_the_colour_of_the_background():
    slide = object.__new__(slide_regions.SlideRegions)
    slide._background = np.array([255, 255, 255], np.uint8)
    pixels = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [100, 100, 100, 51]]], np.uint8)
    assert slide._opaque(pixels).tolist() == [[[10, 20, 30], [255, 255, 255], [224, 224, 224]]]

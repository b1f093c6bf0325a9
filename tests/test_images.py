"""Image files of every kind: which are read, their sizes, and the sentence that each of the others gets."""

import math
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from config import Config
from data import images
from data.dataset import Dataset
from data.images import ImageReader, ImageSize, image_size, read_image, read_mask
from data.samples import TrainingData

CASES = Path(__file__).parents[2] / "shared" / "cases"


def oriented(path, orientation):
    """An image that is stored with 6 rows and 9 columns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


############################################################
#  Sizes
############################################################


@pytest.mark.parametrize("name", ["turned.png", "turned.tiff", "turned.jpg", "turned.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_known_from_the_header(tmp_path, monkeypatch, name, orientation):
    stored = oriented(tmp_path / name, orientation)
    shown = read_image(tmp_path / name)
    as_stored = read_image(tmp_path / name, upright=False)
    assert as_stored.shape == stored.shape
    if name.endswith(("png", "tiff")):
        np.testing.assert_array_equal(as_stored, stored)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    size = image_size(tmp_path / name)
    assert size == (shown.shape[:2], (6, 9), orientation)
    assert size.is_ambiguous == (orientation in (2, 3, 4))


def test_a_png_may_say_its_orientation_after_its_pixels(tmp_path):
    stored = oriented(tmp_path / "early.png", 6)
    content = (tmp_path / "early.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    late = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "late.png").write_bytes(late)
    assert image_size(tmp_path / "late.png") == ((9, 6), (6, 9), 6)
    np.testing.assert_array_equal(read_image(tmp_path / "late.png"), stored.swapaxes(0, 1)[:, ::-1])


def test_a_square_image_that_exif_turns_is_ambiguous():
    assert ImageSize((9, 9), (9, 9), 6).is_ambiguous
    assert not ImageSize((9, 9), (9, 9), 1).is_ambiguous


def test_sizes_are_refused_as_images_are(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image .*broken\.png: not an image of a format that is read"):
        image_size(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.png: there is no such file"):
        image_size(tmp_path / "missing.png")
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png: 300 x 200 pixels are more than max_pixels=59999"):
        image_size(tmp_path / "bomb.png", max_pixels=59_999)


############################################################
#  Files that are no images
############################################################


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "a Windows metafile"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "HEIC"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_of_another_kind_is_named_and_never_run(tmp_path, monkeypatch, content, cause):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"image .*photo\.jpg: .*{cause}"):
            read(path)


def test_a_name_cannot_move_the_cursor(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(tmp_path / "a\x1b[2J.png")
    assert str(caught.value).isprintable()


############################################################
#  More than 8 bits
############################################################


@pytest.fixture
def said(caplog):
    """The lines that have been logged, joined. Each decision counts as new."""
    images._said.clear()
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(pixels, kind, *chunks):
    """The bytes of a PNG of 16 bits. pixels: uint16 [H, W, C]. kind: its colour type. chunks: before the pixels."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    parts = [header, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ramp(high, shape=(4, 5)):
    """Whole numbers from 0 to high, uint16."""
    return np.linspace(0, high, math.prod(shape)).round().astype(np.uint16).reshape(shape)


def by_depth(values, bits):
    return np.rint(values.astype(float) * 255 / (2**bits - 1)).astype(np.uint8)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "float.tif", "int32.tif", "int16.tif"])
@pytest.mark.parametrize(("high", "bits"), [(4095, 12), (1024, 12), (1023, 10), (9000, 14), (16384, 16)])
def test_values_of_16_bits_are_scaled_by_the_bits_in_use(tmp_path, said, name, high, bits):
    values = ramp(high)
    dtype = {"float.tif": np.float32, "int32.tif": np.int32, "int16.tif": np.int16}.get(name, np.uint16)
    if name.endswith("png"):
        Image.fromarray(values).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, values.astype(dtype))
    pixels = read_image(tmp_path / name)
    np.testing.assert_array_equal(pixels, np.repeat(by_depth(values, bits)[..., None], 3, axis=2))
    if bits == 16:
        assert said() == ""
    else:
        assert f"are read as numbers of {bits} bits, the fewest of" in said()
        assert name in said()
        read_image(tmp_path / name)
        assert said().count("numbers of") == 1, "said once"


def test_bits_that_the_caller_knows(tmp_path, said):
    Image.fromarray(ramp(1000)).save(tmp_path / "dark.png")
    np.testing.assert_array_equal(read_image(tmp_path / "dark.png", bit_depth=12)[..., 0], by_depth(ramp(1000), 12))
    np.testing.assert_array_equal(read_image(tmp_path / "dark.png", bit_depth=16)[..., 0], by_depth(ramp(1000), 16))
    assert said() == ""
    with pytest.raises(ValueError, match=r"dark\.png: BIT_DEPTH is 8, for values up to 255, but 75% of its values"):
        read_image(tmp_path / "dark.png", bit_depth=8)
    for wrong in (7, 17, "12", 12.0, True, None):
        with pytest.raises(ValueError, match=r"bit_depth must be 'auto' or a number of bits from 8 to 16, not "):
            read_image(tmp_path / "dark.png", bit_depth=wrong)


def test_a_few_values_beyond_the_bits_become_white(tmp_path, said):
    values = np.full((20, 20), 2000, np.uint16)
    values[0, 0] = 5000
    Image.fromarray(values).save(tmp_path / "hot.png")
    pixels = read_image(tmp_path / "hot.png", bit_depth=12)
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1, 0] == by_depth(values, 12)[0, 1]
    assert "values above 4095, the largest of 12 bits (BIT_DEPTH), become white" in said()


def test_values_of_8_bits_in_16_are_not_black(tmp_path):
    Image.fromarray(ramp(255)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], ramp(255))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_16_bits_keep_their_low_bits(tmp_path, kind, channels):
    """Pillow reads the high bytes alone, which are black for 12 bits."""
    values = ramp(4095, (4, 5, channels))
    (tmp_path / "deep.png").write_bytes(png16(values, kind))
    expected = by_depth(np.repeat(values[..., :1], 3, axis=2) if channels == 2 else values[..., :3], 12)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), expected)
    full = ramp(65535, (4, 5, channels))
    (tmp_path / "full.png").write_bytes(png16(full, kind))
    if channels != 2:
        np.testing.assert_array_equal(read_image(tmp_path / "full.png"), full[..., :3] >> 8)


def test_a_png_says_how_many_bits_it_has(tmp_path, said):
    dark = ramp(900)[..., None]
    (tmp_path / "small.png").write_bytes(png16(dark, 0, chunk(b"sBIT", b"\x0c")))
    np.testing.assert_array_equal(read_image(tmp_path / "small.png")[..., 0], by_depth(dark[..., 0], 12))
    assert "numbers of 12 bits, as the files say" in said()
    scaled = dark << 4  # as the standard wants it
    (tmp_path / "scaled.png").write_bytes(png16(scaled, 0, chunk(b"sBIT", b"\x0c")))
    np.testing.assert_array_equal(read_image(tmp_path / "scaled.png")[..., 0], by_depth(scaled[..., 0], 16))
    darker = (dark // 5) << 4
    (tmp_path / "darker.png").write_bytes(png16(darker, 0, chunk(b"sBIT", b"\x0c")))
    np.testing.assert_array_equal(read_image(tmp_path / "darker.png")[..., 0], by_depth(darker[..., 0], 16))


def test_a_tiff_says_how_many_bits_it_has(tmp_path):
    dark = ramp(900)
    tags = [(281, 3, 1, 4095, True)]
    tifffile.imwrite(tmp_path / "max.tif", dark, extratags=tags)
    np.testing.assert_array_equal(read_image(tmp_path / "max.tif")[..., 0], by_depth(dark, 12))
    tifffile.imwrite(tmp_path / "statistic.tif", dark, extratags=[(281, 3, 1, 900, True)])  # this image's own
    np.testing.assert_array_equal(read_image(tmp_path / "statistic.tif")[..., 0], by_depth(dark, 10))
    tifffile.imwrite(tmp_path / "wrong.tif", ramp(60000), extratags=tags)
    np.testing.assert_array_equal(read_image(tmp_path / "wrong.tif")[..., 0], by_depth(ramp(60000), 16))
    tifffile.imwrite(tmp_path / "a.ome.tif", dark, metadata={"axes": "YX", "SignificantBits": 12})
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif")[..., 0], by_depth(dark, 12))


def test_formats_that_scale_by_what_they_say_are_not_scaled_again(tmp_path):
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">2H", 0, 900))
    assert read_image(tmp_path / "dark.pgm")[0, :, 0].tolist() == [0, round(900 / 4095 * 255)]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([-1000, 0, 1000], np.int16, [0, 128, 255]),
        ([0, 65536, 131072], np.int32, [0, 128, 255]),
        ([0, 2**31, 2**32 - 1], np.uint32, [0, 128, 255]),
        ([-1, 0, 1], np.float32, [0, 128, 255]),
        ([0, 5e5, 1e6], np.float64, [0, 128, 255]),
        ([-7, -7, -7], np.int16, [0, 0, 0]),
    ],
)
def test_other_values_are_scaled_by_their_range(tmp_path, said, values, dtype, expected):
    tifffile.imwrite(tmp_path / "range.tif", np.array([values], dtype))
    assert read_image(tmp_path / "range.tif")[0, :, 0].tolist() == expected
    assert "the range of each becomes 0..255" in said()


def test_values_that_are_no_picture_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "far.tif", np.array([[-1e308, 1e308]]))
    with pytest.raises(ValueError, match=r"far\.tif: its values, from -1e\+308 to 1e\+308, are too far apart"):
        read_image(tmp_path / "far.tif")
    tifffile.imwrite(tmp_path / "complex.tif", np.ones((3, 4), np.complex64))
    with pytest.raises(ValueError, match=r"complex\.tif: it has values of type complex64"):
        read_image(tmp_path / "complex.tif")


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not beside this checkout")
def test_the_cases_of_12_bits_are_not_black(said):
    pixels = read_image(CASES / "files" / "twelve_bit.tif")
    assert (pixels.min(), pixels.max()) == (round(1264 * 255 / 4095), round(3232 * 255 / 4095))
    for number in (1, 2, 3):
        pixels = read_image(CASES / "annotations" / "17_12bit" / "images" / f"im{number}.png")
        assert (pixels.min(), pixels.max()) == (0, 255)
    assert "numbers of 12 bits" in said()


############################################################
#  TIFF
############################################################


def lzw(data):
    """TIFF's LZW of single bytes: a clear code every 200 of them keeps all codes at 9 bits."""
    bits = ""
    for start in range(0, len(data), 200):
        bits += f"{256:09b}" + "".join(f"{byte:09b}" for byte in data[start : start + 200])
    bits += f"{257:09b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def write_lzw(path, pages):
    """A TIFF of LZW strips, which tifffile cannot write here. pages: uint8 or uint16 [H, W, C] each."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in pages:
        height, width, channels = page.shape
        strip = lzw(page.astype(page.dtype.newbyteorder("<")).tobytes())
        place = len(out)
        bits = 8 * page.dtype.itemsize
        out += strip + bytes(len(strip) % 2) + struct.pack(f"<{channels}H", *[bits] * channels)
        bits_at = len(out) - 2 * channels
        tags = [(256, width), (257, height), (258, bits if channels == 1 else bits_at), (259, 5)]
        tags += [(262, 2 if channels >= 3 else 1), (273, place), (277, channels), (278, height), (279, len(strip))]
        out[link : link + 4] = struct.pack("<I", len(out))
        out += struct.pack("<H", len(tags))
        for tag, value in tags:
            count = channels if tag == 258 else 1
            out += struct.pack("<HHII", tag, 3 if tag == 258 else 4, count, value)
        link = len(out)
        out += bytes(4)
    path.write_bytes(out)


CHANNELS = np.random.default_rng(0).integers(0, 256, (5, 12, 16)).astype(np.uint8)


def as_rgb(channels):
    """What read_image makes of channels, uint8 [C, H, W]."""
    if len(channels) == 1:
        channels = np.repeat(channels, 3, axis=0)
    elif len(channels) == 2:
        channels = np.stack([*channels, np.zeros_like(channels[0])])
    return np.moveaxis(channels[:3], 0, -1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"metadata": None, "photometric": "minisblack", "planarconfig": True},
        {"axes": True},
    ],
    ids=str,
)
def test_channels_in_any_order_of_axes(tmp_path, said, count, first, dtype, options):
    channels = CHANNELS[:count]
    factor = 257 if dtype == np.uint16 else 1
    array = channels.astype(dtype) * dtype(factor)
    array[0, 0, 0] = 255 * factor
    channels = (array // factor).astype(np.uint8)
    array = array if first else np.moveaxis(array, 0, -1)
    options = dict(options)
    if options.pop("planarconfig", None):
        options["planarconfig"] = None if count == 1 else "separate" if first else "contig"
        array = array.squeeze()
    if options.pop("axes", False):
        options["metadata"] = {"axes": "CYX" if first else "YXC"}
        options["photometric"] = "minisblack"
    if count in (3, 4):
        options = {"photometric": "rgb", "planarconfig": "separate" if first else "contig", **options}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    pixels = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, as_rgb(channels))
    assert image_size(tmp_path / "a.tif") == ((12, 16), (12, 16), 1)
    assert ("2 channels" in said()) == (count == 2)
    assert ("5 channels: the first three are read as red, green and blue" in said()) == (count == 5)


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "TCYX", "CZYX", "TZCYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_that_microscopes_name(tmp_path, said, axes, kind):
    sides = {"T": 2, "Z": 3, "C": 4, "Y": 12, "X": 16}
    if kind == "imagej":
        axes = "".join(axis for axis in "TZC" if axis in axes) + "YX"
    array = np.random.default_rng(1).integers(0, 65536, [sides[axis] for axis in axes]).astype(np.uint16)
    name = "a.ome.tif" if kind == "ome" else "a.tif"
    tifffile.imwrite(tmp_path / name, array, imagej=kind == "imagej", metadata={"axes": axes})
    first = array[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]  # [C, Y, X]
    np.testing.assert_array_equal(read_image(tmp_path / name), as_rgb((first >> 8).astype(np.uint8)))
    assert "4 channels: the first three" in said()
    assert ("several slices, times or pages: the first one is read" in said()) == (len(axes) > 3)


def test_slices_times_and_pages_give_the_first(tmp_path, said):
    tifffile.imwrite(tmp_path / "stack.tif", np.repeat(CHANNELS, 3, axis=0))
    np.testing.assert_array_equal(read_image(tmp_path / "stack.tif"), as_rgb(CHANNELS[:1]))
    assert "several slices, times or pages: the first one is read" in said()
    pages = [Image.fromarray(page) for page in CHANNELS]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif"), as_rgb(CHANNELS[:1]))
    tifffile.imwrite(tmp_path / "movie.tif", np.stack([CHANNELS[:3], CHANNELS[1:4]]), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "movie.tif"), as_rgb(CHANNELS[:3]))


def test_transparency_is_no_channel(tmp_path):
    gray = np.moveaxis(CHANNELS[:2], 0, -1)
    tifffile.imwrite(tmp_path / "ga.tif", gray, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    np.testing.assert_array_equal(read_image(tmp_path / "ga.tif"), as_rgb(CHANNELS[:1]))
    deep = gray.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "ga16.tif", deep, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    np.testing.assert_array_equal(read_image(tmp_path / "ga16.tif"), as_rgb(CHANNELS[:1]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_turned_too(tmp_path, orientation):
    array = np.moveaxis(CHANNELS[:3], 0, -1)
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "plain.tif", array, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "deep.tif", array.astype(np.uint16) * 257, photometric="rgb", extratags=tag)
    for upright in (True, False):
        expected = read_image(tmp_path / "plain.tif", upright=upright)
        np.testing.assert_array_equal(read_image(tmp_path / "deep.tif", upright=upright), expected)
    assert image_size(tmp_path / "deep.tif") == image_size(tmp_path / "plain.tif")
    assert image_size(tmp_path / "deep.tif").shown == read_image(tmp_path / "deep.tif").shape[:2]


def test_compression_that_tifffile_lacks_is_left_to_pillow(tmp_path):
    deep = ramp(4095, (6, 9, 3))
    write_lzw(tmp_path / "rgb.tif", [deep])
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif"), by_depth(deep, 12))
    write_lzw(tmp_path / "gray.tif", [deep[..., :1]])
    np.testing.assert_array_equal(read_image(tmp_path / "gray.tif")[..., 0], by_depth(deep[..., 0], 12))
    write_lzw(tmp_path / "many.tif", [ramp(4095, (6, 9, 5))])
    with pytest.raises(ValueError, match=r"many\.tif: a TIFF of 5 channels, uint16 and LZW compression cannot be read"):
        read_image(tmp_path / "many.tif")


def test_a_bomb_in_a_tiff_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", ramp(4095, (20, 30, 5)), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"a\.tif: 30 x 20 pixels are more than max_pixels=599"):
        read_image(tmp_path / "a.tif", max_pixels=599)
    monkeypatch.setattr("data.tiff.MOST_BYTES", 5999)
    with pytest.raises(ValueError, match=r"a\.tif: its values take 0\.0 GB, more than"):
        read_image(tmp_path / "a.tif")
    options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((20, 30, 5), np.uint16), **options)
    content = (tmp_path / "b.tif").read_bytes()
    bomb = zlib.compress(bytes(3 << 20))
    monkeypatch.undo()
    content = bytearray(content + bomb)
    for tag, value in ((273, len(content) - len(bomb)), (279, len(bomb))):
        with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
            place = tiff.pages[0].tags[tag].valueoffset
        content[place : place + 4] = struct.pack("<I", value)
    (tmp_path / "b.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.tif: a piece of it is much larger when unpacked than it says"):
        read_image(tmp_path / "b.tif")


############################################################
#  Data sets
############################################################


def test_a_data_set_is_scaled_alike(tmp_path, said):
    highs = [1000, 700, 4000, 200]
    for number, high in enumerate(highs):
        Image.fromarray(ramp(high)).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    reader = ImageReader()
    assert reader.inspect(paths) == 12
    assert "4 of 4 images that were looked at have values of 16 bits, up to 4000" in said()
    assert "all such images are read as numbers of 12 bits" in said()
    for path, high in zip(paths, highs, strict=True):
        np.testing.assert_array_equal(reader.read(path)[..., 0], by_depth(ramp(high), 12))
    assert reader.inspect(paths, 14) == 14
    assert reader.inspect(paths) == 12, "the 14 of another model is not kept"
    assert ImageReader(16).inspect(paths) == 16
    assert reader.inspect(paths, 14) == 14
    np.testing.assert_array_equal(reader.read(paths[0])[..., 0], by_depth(ramp(1000), 14))
    with pytest.raises(ValueError, match="bit_depth must be"):
        reader.inspect(paths, 20)


def test_usual_images_need_no_decision(tmp_path, said):
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(np.moveaxis(CHANNELS[:3], 0, -1)).save(tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"broken")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "missing.png"]
    assert ImageReader().inspect(paths) == "auto"
    assert said() == ""


def test_images_that_exif_mirrors_are_counted_once(tmp_path, said):
    for number, orientation in enumerate([1, 3, 6, 2, 1]):
        oriented(tmp_path / f"{number}.jpg", orientation)
    dataset = Dataset()
    for path in sorted(tmp_path.glob("*.jpg")):
        dataset.add_image("own", path.name, path)
    dataset.prepare()
    for _ in range(2):
        assert dataset.inspect_images() == "auto"
    dataset.inspect_images(12)
    assert said().count("EXIF turns or mirrors 2 of 5 images that were looked at, without a change of their size") == 1
    assert "As displayed is taken" in said()
    assert "1.jpg" in said()


def test_a_data_set_that_nobody_inspected_is_read_alike_too(tmp_path, said):
    dataset = Dataset()
    for number, high in enumerate([4000, 500]):
        Image.fromarray(ramp(high)).save(tmp_path / f"{number}.png")
        dataset.add_image("own", number, tmp_path / f"{number}.png")
    dataset.prepare()
    np.testing.assert_array_equal(dataset.load_image(1)[..., 0], by_depth(ramp(500), 12))
    assert said().count("2 of 2 images that were looked at have values of 16 bits") == 1


def test_training_and_evaluation_read_alike(tmp_path, said):
    """The number of bits is decided by the training data, is stored, and holds for validation and single images."""
    train, val = Dataset(), Dataset()
    for number, (dataset, high) in enumerate([(train, 4095), (train, 800), (val, 900)]):
        Image.fromarray(ramp(high, (40, 40))).save(tmp_path / f"{number}.png")
        dataset.add_class("own", 1, "thing")
        dataset.add_image("own", number, tmp_path / f"{number}.png")
    train.prepare()
    val.prepare()
    config = Config(NUM_CLASSES=2)
    config.BIT_DEPTH = train.inspect_images(config.BIT_DEPTH)
    TrainingData(val, config, augment=False)
    assert config.BIT_DEPTH == 12
    np.testing.assert_array_equal(val.load_image(0)[..., 0], by_depth(ramp(900, (40, 40)), 12))


def test_a_mask_counts_every_value_that_is_not_black(tmp_path):
    values = np.array([[0, 1, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True, True]]
    Image.fromarray(np.array([[[0, 0, 0, 255], [0, 3, 0, 255]]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_mask(tmp_path / "rgba.png").tolist() == [[False, True]]
    oriented(tmp_path / "turned.png", 6)
    assert read_mask(tmp_path / "turned.png").shape == (9, 6)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(ValueError, match=r"pipe\.png is no regular file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"a\\x00b\.png: no file can have this name"):
        read_image(tmp_path / "a\0b.png")


def test_a_length_in_a_damaged_header_takes_no_memory(tmp_path):
    content = png16(ramp(4095)[..., None], 0)
    place = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + b"\xff\xff\xff\xf0" + content[place + 4 :])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), limit[1]))
        pixels = read_image(tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert pixels.shape == (4, 5, 3)

"""Reading pictures of every kind, and resizing them by every rule."""

import contextlib
import hashlib
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.transform
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import utils
from config import Config
from roialign import resize as native_resize

EDGE_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "edge_images"
MANIFEST = json.loads((EDGE_IMAGES / "manifest.json").read_text())["files"] if EDGE_IMAGES.is_dir() else []


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "utils.npz")


@pytest.fixture(scope="module")
def photo():
    """A small colour picture without symmetry."""
    return np.ascontiguousarray(skimage.data.coffee()[100:148, 200:264])  # [48, 64, 3]


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return utils.read_image(tmp_path / name)


############################################################
#  Reading
############################################################


@pytest.mark.skipif(not MANIFEST, reason="shared/data/edge_images is not beside this checkout")
def test_every_edge_image_does_as_the_manifest_says():
    for entry in MANIFEST:
        path = EDGE_IMAGES / entry["file"]
        if entry["expect"] == "error":
            with pytest.raises(ValueError, match="image .*" + path.name):
                utils.read_image(path)
        else:
            image = utils.read_image(path)
            assert image.dtype == np.uint8
            assert image.shape == (*entry["size_after_exif_transpose"][::-1], 3), path.name
            assert image.flags.c_contiguous
            assert image.flags.writeable


@pytest.mark.skipif(not MANIFEST, reason="shared/data/edge_images is not beside this checkout")
def test_edge_images_look_alike():
    reference = utils.read_image(EDGE_IMAGES / "rgb_reference.jpg").astype(float)
    for name in ("exif_orientation_2", "exif_orientation_3", "exif_orientation_5", "exif_orientation_6",
                 "exif_orientation_8", "progressive", "cmyk"):  # fmt: skip
        assert np.abs(utils.read_image(EDGE_IMAGES / f"{name}.jpg") - reference).mean() < 8, name
    gray = reference.mean()
    for name in ("gray_16bit.png", "gray.jpg", "palette.png", "one_bit.png"):
        assert abs(utils.read_image(EDGE_IMAGES / name).mean() - gray) < 12, name


# EXIF 2.3, 4.6.4: where row 0 and column 0 of the stored pixels lie in the upright image.
UPRIGHT = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_as_exif_says(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](photo)
    for name in ("turned.png", "turned.tiff"):  # Pillow itself turns a TIFF.
        image = saved(tmp_path, Image.fromarray(photo), name, exif=exif)
        np.testing.assert_array_equal(image, expected)
        assert image.flags.c_contiguous
    stored = utils.read_image(tmp_path / "turned.png", upright=False)
    np.testing.assert_array_equal(stored, photo)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_turned(tmp_path, photo, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photo)
    image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    name = "turned.jpg" if mode == "CMYK" else "turned.png"
    stored = saved(tmp_path, image, name)
    np.testing.assert_array_equal(saved(tmp_path, image, name, exif=exif), UPRIGHT[6](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(photo), exif=exif), photo)


def test_broken_exif_spoils_no_picture(tmp_path, photo):
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(photo), exif=b"Exif\0\0nonsense"), photo)


def test_gray_is_repeated(tmp_path, photo):
    gray = photo[..., 0]
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(gray)), np.stack([gray] * 3, axis=-1))
    bits = saved(tmp_path, Image.fromarray(gray > 99))
    np.testing.assert_array_equal(bits, np.stack([(gray > 99) * 255] * 3, axis=-1))


def test_16_bits_are_scaled(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        assert saved(tmp_path, Image.fromarray(deep), name)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255], name
    big_endian = Image.frombytes("I;16B", (6, 1), deep.astype(">u2").tobytes())
    assert saved(tmp_path, big_endian, "deep.tiff")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert saved(tmp_path, Image.fromarray(deep.astype(np.int32)), "deep.tiff")[0, :, 0].tolist()[-1] == 255


def test_16_bits_of_colour(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.array([[[0, 0x8000, 0xFFFF], [0x1234, 0x5678, 0x9ABC]]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + pixels.tobytes())
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert utils.read_image(tmp_path / "deep.png").tolist() == [[[0, 0x80, 0xFF], [0x12, 0x56, 0x9A]]]


def test_floats_are_scaled_by_their_range(tmp_path):
    def read(*values):
        return saved(tmp_path, Image.fromarray(np.array([values], np.float32)), "f.tiff")[0, :, 0].tolist()

    assert read(0, 0.5, 1) == [0, 128, 255]
    assert read(0, 0.4, 99.6, 255) == [0, 0, 100, 255]
    for values in ((0, np.nan), (0, np.inf)):
        with pytest.raises(ValueError, match=r"f\.tiff: some of its values are infinite or not numbers"):
            read(*values)


def test_transparency_is_dropped_and_the_colour_kept(tmp_path, photo):
    alpha = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    image = saved(tmp_path, Image.fromarray(np.dstack([photo, alpha])))
    np.testing.assert_array_equal(image, photo)
    gray = saved(tmp_path, Image.fromarray(np.dstack([photo[..., 0], alpha]), "LA"))
    np.testing.assert_array_equal(gray, np.stack([photo[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palettes_are_looked_up(tmp_path, photo, transparency):
    palette = Image.fromarray(photo).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    image = saved(tmp_path, palette, **options)
    np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "c.jpg"), ("YCbCr", "y.jpg"), ("LAB", "l.tiff"), ("CMYK", "c.tiff")]
)
def test_other_colour_spaces_are_converted(tmp_path, photo, mode, name):
    if mode == "LAB":
        gray = saved(tmp_path, Image.new("LAB", (4, 4), (136, 128, 128)), name)
        assert np.abs(gray.astype(int) - 128).max() <= 4  # L* 53 is sRGB 127
        return
    image = saved(tmp_path, Image.fromarray(photo).convert(mode), name)
    assert np.abs(image.astype(int) - photo).mean() < 6


def test_the_first_frame_of_an_animation(tmp_path, photo):
    frames = [Image.fromarray(photo).quantize(64), Image.fromarray(255 - photo).quantize(64)]
    for name in ("a.gif", "a.png"):
        image = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert np.abs(image.astype(int) - photo).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_content_counts_not_the_suffix(tmp_path, photo, kind):
    image = saved(tmp_path, Image.fromarray(photo), "wrong é name.jpg", format=kind)
    assert image.shape == photo.shape
    assert np.abs(image.astype(int) - photo).mean() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (40, 1600)])
def test_slim_pictures(tmp_path, size):
    assert saved(tmp_path, Image.new("RGB", size, (1, 2, 3))).shape == (*size[::-1], 3)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg: there is no such file"):
        utils.read_image(tmp_path / "missing.jpg")


def test_a_directory(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        utils.read_image(tmp_path)


@pytest.mark.parametrize(("content", "cause"), [(b"", "empty"), (b"no picture", "not an image of a format")])
def test_no_picture(tmp_path, content, cause):
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"image\.jpg: .*{cause}") as caught:
        utils.read_image(tmp_path / "image.jpg")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.tiff", "cut.bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_off_files(tmp_path, photo, name, share):
    Image.fromarray(photo).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=name):
        utils.read_image(tmp_path / name)


def test_noise_in_a_file_is_a_value_error_or_a_picture(tmp_path, photo):
    rng = np.random.default_rng(0)
    for name in ("noisy.jpg", "noisy.png", "noisy.gif", "noisy.tiff"):
        Image.fromarray(photo).save(tmp_path / name)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(15):
            broken = content.copy()
            broken[rng.integers(len(broken), size=8)] = rng.integers(256, size=8)
            (tmp_path / name).write_bytes(broken.tobytes())
            with contextlib.suppress(ValueError):
                assert utils.read_image(tmp_path / name).ndim == 3


def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match=r"bomb\.png: 300 x 200 pixels are more than max_pixels=59999"):
        utils.read_image(tmp_path / "bomb.png", max_pixels=59_999)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_000)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"bomb\.png is too large for Pillow"):
        utils.read_image(tmp_path / "bomb.png")


def test_absurd_sides_are_refused(tmp_path):
    Image.new("1", (utils.MAX_IMAGE_SIDE + 1, 1)).save(tmp_path / "line.png")
    with pytest.raises(ValueError, match="no side may be longer than 100000"):
        utils.read_image(tmp_path / "line.png")


def test_to_rgb_by_hand():
    gray = np.array([[0, 7]], np.uint8)
    expected = [[[0, 0, 0], [7, 7, 7]]]
    assert utils.to_rgb(gray).tolist() == utils.to_rgb(gray[..., None]).tolist() == expected
    assert utils.to_rgb(gray > 0).tolist() == [[[0] * 3, [255] * 3]]
    assert utils.to_rgb(np.array([[0, 65535, 128, 129]], np.uint16))[0, :, 1].tolist() == [0, 255, 0, 1]
    for dtype in (np.float16, np.float32, np.float64):
        assert utils.to_rgb(np.array([[0, 1, 0.5]], dtype))[0, :, 2].tolist() == [0, 255, 128]
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert utils.to_rgb(rgb) is not None
    assert np.shares_memory(utils.to_rgb(rgb), rgb)
    np.testing.assert_array_equal(utils.to_rgb(np.dstack([rgb, rgb[..., 0]])), rgb)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 40, 50), np.uint8), r"\[3, 40, 50\]; channels come last"),
        (np.zeros((2, 40, 50, 3), np.uint8), r"\[2, 40, 50, 3\]; is it one image"),
        (np.zeros((4, 5, 2), np.uint8), r"\[4, 5, 2\]"),
        (np.zeros((0, 5, 3), np.uint8), r"no pixels: \[0, 5, 3\]"),
        (np.zeros((4, 5, 3), np.int64), "got int64"),
        (np.full((4, 5), 1.5), r"0, 1\], got 1\.5\.\.1\.5; divide by 255"),
        (np.array([[0.5, np.nan]]), r"\[0, 1\], got NaN, no number$"),
        (np.full((4, 5), -0.1), "-0.1"),
        ([[1, 2]], "NumPy array, got list"),
        (torch.zeros(4, 5, 3), "NumPy array, got Tensor"),
    ],
)
def test_what_to_rgb_refuses(image, message):
    with pytest.raises(ValueError, match=f"the frame .*{message}"):
        utils.to_rgb(image, "the frame")


############################################################
#  Plans
############################################################


def test_half_up_is_mmdetections_table(golden):
    for width, height, new_width, new_height, padded_width, padded_height in golden["mmdet/resize_wh_new_padded"]:
        plan = utils.plan_resize(height, width, 800, 1333)
        assert plan.size == (new_height, new_width)
        assert plan.padding == ((0, padded_height - new_height), (0, padded_width - new_width))
        assert plan.window == (0, 0, new_height, new_width)
        assert plan.scale == min(800 / min(height, width), 1333 / max(height, width))


@pytest.mark.parametrize(("rounding", "peer"), [("truncate", "p2"), ("floor", "p3")])
def test_roundings_are_the_peers(golden, rounding, peer):
    for (width, height), size in zip(golden["in/resize_in_wh"], golden[f"{peer}/resize_out_hw"], strict=True):
        assert utils.plan_resize(int(height), int(width), 800, 1333, rounding=rounding).size == tuple(size)


def test_square_is_the_ports(golden):
    for (width, height), row in zip(golden["in/resize_in_wh"], golden["p1/resize_hw_window_scale"], strict=False):
        plan = utils.plan_resize(int(height), int(width), 800, 1024, mode="square")
        assert list(plan.window) == row[2:6].tolist()
        assert plan.scale == row[6]
        assert [side + sum(pad) for side, pad in zip(plan.size, plan.padding, strict=True)] == [1024, 1024]


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_floor_is_interpolates_own_size(height, width):
    scale = min(800 / min(height, width), 1333 / max(height, width))
    size = utils.plan_resize(height, width, 800, 1333, rounding="floor").size
    if min(height * scale, width * scale) >= 1:
        empty = torch.empty(1, 1, height, width, device="meta")
        resized = F.interpolate(empty, scale_factor=scale, mode="nearest", recompute_scale_factor=True)
        assert size == tuple(resized.shape[2:])


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 20), st.integers(0, 20),
    st.sampled_from([0, None, 0.5, 3]), st.sampled_from(utils.RESIZE_MODES), st.sampled_from([None, *utils.ROUNDINGS]),
)  # fmt: skip
def test_plans_add_up(height, width, min_dim, more, min_scale, mode, rounding):
    min_dim, max_dim = 64 * min_dim, 64 * (min_dim + more)
    plan = utils.plan_resize(height, width, min_dim, max_dim, min_scale, mode, rounding, rng=np.random.default_rng(0))
    shown = plan.crop[2:] if plan.crop else plan.size
    padded = [side + sum(pad) for side, pad in zip(shown, plan.padding, strict=True)]
    assert (plan.image_shape, plan.padded_shape, plan.region[2:]) == ((height, width), tuple(padded), tuple(shown))
    y1, x1, y2, x2 = plan.window
    assert min(plan.size) >= 1
    assert min(map(min, plan.padding)) >= 0
    assert (y2 - y1, x2 - x1) == tuple(shown)
    assert (y1, x1) == (plan.padding[0][0], plan.padding[1][0])
    for size, side in zip(plan.size, (height, width), strict=True):
        assert abs(size - side * plan.scale) <= max(2, 2 * max(height, width) / min(height, width))
    if mode == "square":
        assert padded == [max_dim, max_dim]
    if mode == "shorter":
        assert all(side % 32 == 0 for side in padded)
        slimness = max(height, width) / min(height, width)  # by which "truncate" rounds the longer side
        assert max(plan.size) <= max_dim + (slimness if rounding == "truncate" else 1)
    if mode == "pad64":
        assert all(side % 64 == 0 for side in padded)
        grown = max(1, min_scale or 0) * max(height, width)
        assert max(plan.size) <= max(grown, 16 * min_dim) + 1, "no picture needs any amount of memory"


def test_the_scale_is_limited_by_hand():
    assert utils.plan_resize(800, 2, 256, None, mode="pad64").size == (4096, 10)
    assert utils.plan_resize(800, 2, 256, None, min_scale=6, mode="pad64").size == (4800, 12)
    assert utils.plan_resize(800, 50, 256, None, mode="pad64").size == (4096, 256)
    assert utils.plan_resize(100, 200, 256, None, mode="pad64").size == (256, 512)
    assert utils.plan_resize(100, 200, 800, 1024, mode="square").size == (512, 1024)
    assert utils.plan_resize(900, 1000, 800, 1024, mode="square").size == (900, 1000)  # not down to min_dim
    assert utils.plan_resize(100, 200, 128, 1024, min_scale=3, mode="square").size == (300, 600)
    assert utils.plan_resize(100, 200, 128, 512, min_scale=3, mode="square").size == (256, 512)
    assert utils.plan_resize(100, 200, 128, None, min_scale=2).size == (200, 400)
    assert utils.plan_resize(100, 200, 50, None).size == (50, 100)
    assert utils.plan_resize(1, 5000, 800, 1333).size == (1, 1333)  # never 0


def test_random_crops_lie_inside_and_differ():
    rng = np.random.default_rng(0)
    crops = {utils.plan_resize(100, 150, 64, None, mode="crop", rng=rng).crop for _ in range(20)}
    assert len(crops) > 15
    assert all(0 <= y <= 36 and 0 <= x <= 86 and size == [64, 64] for y, x, *size in crops)
    assert utils.plan_resize(100, 150, 64, None, mode="crop").window == (0, 0, 64, 64)
    assert utils.plan_resize(100, 150, 100, None, mode="crop").crop[0] == 0


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_boxes_follow_the_plan_by_hand(kind):
    """40 x 60 pixels become 80 x 90 of which 50 x 70 at (10, 20) remain, and lie at (3, 4) in the input."""
    plan = utils.ResizePlan((40, 60), (80, 90), ((3, 11), (4, 6)), (10, 20, 50, 70), (3, 4, 53, 74), 2.0)
    assert plan.padded_shape == (64, 80)
    boxes = kind([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 40.0, 60.0]])
    assert plan.boxes_in_region(boxes).tolist() == [[10, 10, 50, 40], [-10, -20, 70, 70]]
    assert plan.boxes(boxes).tolist() == [[13, 14, 53, 44], [-7, -16, 73, 74]]
    assert plan.boxes(kind([[1, 1, 2, 3]])).tolist() == [[-5, -14.5, -3, -11.5]], "whole numbers, too"
    assert plan.boxes_in_image(plan.boxes(boxes)).tolist() == boxes.tolist()
    assert plan.boxes(boxes[:0]).shape == plan.boxes_in_image(boxes[:0]).shape == (0, 4)


@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from(utils.RESIZE_MODES),
    st.sampled_from(["corners", "floor", "centre"]),
)  # fmt: skip
def test_rows_and_columns_are_what_resizing_a_mask_copies(height, width, mode, nearest):
    plan = utils.plan_resize(height, width, 64, 128, mode=mode, rng=np.random.default_rng(0))
    mask = np.random.default_rng(1).random((height, width, 2)) > 0.5
    expected = utils.resize_mask(mask, 1, plan.padding, plan.crop, plan.size, nearest)
    y1, x1, y2, x2 = plan.window
    np.testing.assert_array_equal(mask[plan.rows(nearest)][:, plan.columns(nearest)], expected[y1:y2, x1:x2])


def test_a_config_makes_plans():
    config = Config(IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128)
    assert utils.plan_image((40, 60, 3), config) == utils.plan_resize(40, 60, 64, 128)
    assert utils.plan_image((40, 60), config, min_dim=80).size == (80, 120)
    config = Config(DIALECT="matterport", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128, IMAGE_MIN_SCALE=2)
    assert config.IMAGE_RESIZE_MODE == "square"
    assert utils.plan_image((45, 33), config) == utils.plan_resize(45, 33, 64, 128, 2, "square", "half_even")
    config = Config(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64)
    crops = {utils.plan_image((100, 150), config, rng=np.random.default_rng(3)).crop for _ in range(5)}
    assert len(crops) == 1


def test_an_image_has_the_channels_of_the_network():
    five = np.zeros((4, 6, 5), np.uint8)
    assert utils.check_channels(five, 5) is five
    assert utils.check_channels(five[..., :1], 3).shape == (4, 6, 3), "gray becomes RGB"
    for image in (five[..., :3], five[0], five[:0], "photo.jpg"):
        with pytest.raises(ValueError, match=r"picture 7 must be an array \[H, W, 5\], as IMAGE_CHANNEL_COUNT says"):
            utils.check_channels(image, 5, "picture 7")
    with pytest.raises(ValueError, match="picture 7 must be a NumPy array"):
        utils.check_channels("photo.jpg", 3, "picture 7")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "sqare"}, "square, pad64, crop, shorter, none, got 'sqare'"),
        ({"rounding": "up"}, "half_up, truncate, floor, half_even, scale_twice, got 'up'"),
        ({"height": 0}, "0 x 50"),
        ({"mode": "pad64", "min_dim": 100}, "64 divides, got 100"),
        ({"mode": "square", "max_dim": None}, "needs max_dim"),
        ({"mode": "crop", "min_dim": 0}, "mode crop needs min_dim"),
        ({"min_dim": None}, "mode shorter needs min_dim"),
        ({"divisor": 0}, "divisor"),
    ],
)
def test_what_plan_resize_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        utils.plan_resize(**{"height": 40, "width": 50, "min_dim": 64, "max_dim": 128} | arguments)


############################################################
#  Resampling
############################################################


def test_coffee_as_mmdetection_and_benchmark_resize_it(golden):
    coffee = skimage.data.coffee()
    bgr = utils.resize_pixels(coffee, (800, 1200), "opencv")[..., ::-1]
    assert zlib.crc32(np.ascontiguousarray(bgr).tobytes()) == golden["mmdet/coffee_crc32"]
    pillow = utils.resize_pixels(coffee, (800, 1200), "pillow")
    assert hashlib.sha256(pillow.tobytes()).hexdigest() == str(golden["p2/coffee_sha256"])


def opencv_one_pixel(image, size, y, x, channel):
    """cv2.resize's rule in whole numbers, one pixel at a time."""

    def tap(old, new, i, is_column):
        f = np.float32((i + 0.5) * old / new - 0.5)
        first = math.floor(f)
        part = np.float32(f - np.float32(first))
        if is_column and (first < 0 or first >= old - 1):
            first, part = min(max(first, 0), old - 1), np.float32(0)
        weights = [int(np.rint(2048 * (np.float32(1) - part))), int(np.rint(2048 * part))]
        return [min(max(first + k, 0), old - 1) for k in (0, 1)], weights

    rows, row_weights = tap(image.shape[0], size[0], y, False)
    columns, column_weights = tap(image.shape[1], size[1], x, True)
    total = 2
    for row, row_weight in zip(rows, row_weights, strict=True):
        mixed = sum(w * int(image[row, c, channel]) for c, w in zip(columns, column_weights, strict=True))
        total += (row_weight * (mixed >> 4)) >> 16
    return total >> 2


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.tuples(*[st.integers(1, 70)] * 2),
    st.integers(1, 4),
)
def test_opencv_is_the_rule_in_whole_numbers(seed, old, new, channels):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*old, channels), dtype=np.uint8)
    resized = utils.resize_pixels(image, new, "opencv")
    assert resized.shape == (*new, channels)
    for _ in range(10):
        y, x, channel = rng.integers(new[0]), rng.integers(new[1]), rng.integers(channels)
        assert resized[y, x, channel] == opencv_one_pixel(image, new, y, x, channel)


def test_torch_is_interpolate_not_rounded(photo):
    resized = utils.resize_pixels(photo, (31, 90), "torch")
    planes = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, (31, 90), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected.numpy(), atol=1e-4)
    assert utils.resize_pixels(photo, (48, 64), "torch").dtype == np.float32


def test_pillow_looks_at_all_pixels_the_others_do_not():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    shrunk = {name: utils.resize_pixels(stripes, (8, 8), name) for name in utils.RESAMPLINGS}
    assert shrunk["pillow"].min() > 10
    assert all(shrunk[name].max() == 0 for name in ("opencv", "torch", "skimage"))
    four = utils.resize_pixels(np.dstack([stripes, stripes[..., :1]]), (8, 8), "pillow")
    np.testing.assert_array_equal(four[..., 3], shrunk["pillow"][..., 0])


@pytest.mark.parametrize("resampling", utils.RESAMPLINGS)
def test_resampling_keeps_what_is_flat_or_of_the_same_size(resampling, photo):
    flat = np.full((9, 7, 3), 77, np.uint8)
    inner = utils.resize_pixels(flat, (20, 30), resampling)[3:-3, 4:-4]
    assert (np.abs(inner.astype(float) - 77) <= 1).all()  # skimage truncates 76.99
    np.testing.assert_array_equal(utils.resize_pixels(photo, photo.shape[:2], resampling), photo)
    assert utils.resize_pixels(photo[::-1, ::-1], (1, 1), resampling).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("image", "size", "resampling", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), (2, 2), "cubic", "opencv, pillow, torch, skimage, got 'cubic'"),
        (np.zeros((4, 4), np.uint8), (2, 2), "opencv", r"\[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), "opencv", r"\[0, 4, 3\]"),
        (np.zeros((4, 4, 3)), (2, 2), "pillow", "uint8 for resampling 'pillow', got float64"),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), "opencv", r"\(0, 2\)"),
    ],
)
def test_what_resize_pixels_refuses(image, size, resampling, message):
    with pytest.raises(ValueError, match=message):
        utils.resize_pixels(image, size, resampling)


def test_resize_is_skimages_without_antialiasing(photo):
    expected = skimage.transform.resize(photo, (20, 30), order=1, mode="constant", anti_aliasing=False)
    np.testing.assert_array_equal(utils.resize(photo, (20, 30)), expected)


def test_resize_image_is_matterports(golden):
    small = golden["p4/resize_small/in"]
    image, window, scale, padding, crop = utils.resize_image(small, 24, 40)
    np.testing.assert_array_equal(image, golden["p4/resize_small/out_min24_max40"])
    assert [*window, scale] == golden["p4/resize_small/window_scale"].tolist()
    assert padding == [(8, 8), (3, 3), (0, 0)]
    assert crop is None
    image, window, scale, padding, _ = utils.resize_image(small, min_dim=64, mode="pad64")
    np.testing.assert_array_equal(image, golden["p4/resize_small_pad64/out"])
    assert [*window, scale] == golden["p4/resize_small_pad64/window_scale"].tolist()
    assert padding == [(0, 0), (18, 19), (0, 0)]


@pytest.mark.parametrize("resampling", utils.RESAMPLINGS)
def test_resize_image_pads_with_zeros_and_crops(photo, resampling):
    image, window, scale, padding, _ = utils.resize_image(photo, 96, 200, mode="shorter", resampling=resampling)
    assert (image.shape, window, scale) == ((96, 128, 3), (0, 0, 96, 128), 2)
    assert padding == [(0, 0), (0, 0), (0, 0)]
    image, window, *_ = utils.resize_image(photo, 50, 64, mode="shorter", resampling=resampling, divisor=64)
    np.testing.assert_array_equal(image[:48, :64], photo)
    assert image.shape == (64, 64, 3)
    assert (image[48:] == 0).all()
    image, _, _, _, crop = utils.resize_image(
        photo, 24, mode="crop", rng=np.random.default_rng(1), resampling=resampling
    )
    np.testing.assert_array_equal(image, photo[crop[0] :][:24, crop[1] :][:, :24])
    same, window, scale, padding, crop = utils.resize_image(photo, mode="none", resampling=resampling)
    np.testing.assert_array_equal(same, photo)
    assert (window, scale, crop) == ((0, 0, 48, 64), 1, None)
    with pytest.raises(ValueError, match=r"image must be \[H, W, C\], got \[48, 64\]"):
        utils.resize_image(photo[..., 0], 24, 64)


############################################################
#  Resizing masks
############################################################


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.floats(0.2, 4))
def test_resize_mask_is_scipys_zoom(seed, height, width, count, scale):
    mask = np.random.default_rng(seed).random((height, width, count)) < 0.5
    resized = utils.resize_mask(mask, scale, [(0, 0), (0, 0), (0, 0)])
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    assert resized.shape == (*size, count)
    assert resized.dtype == bool
    if round(height * scale) and round(width * scale) and count:
        # mode nearest: with zoom's default, rounding can push the last row out of the image
        expected = scipy.ndimage.zoom(mask.astype(np.uint8), (scale, scale, 1), order=0, mode="nearest")
        np.testing.assert_array_equal(resized, expected.astype(bool))


@given(st.integers(2, 60), st.integers(2, 60), st.sampled_from(["square", "pad64", "crop", "shorter", "none"]))
def test_masks_come_out_as_large_as_their_image(height, width, mode):
    image = np.zeros((height, width, 3), np.uint8)
    result, window, scale, padding, crop = utils.resize_image(image, 64, 100, mode=mode, resampling="opencv")
    plan = utils.plan_resize(height, width, 64, 100, mode=mode)
    mask = utils.resize_mask(np.ones((height, width, 2), bool), scale, padding, crop, size=plan.size)
    assert mask.shape[:2] == result.shape[:2]
    assert utils.extract_bboxes(mask).tolist() == [list(window)] * 2


def test_nearest_by_hand():
    mask = np.array([[1, 0, 0, 1]], bool)[..., None]
    no_padding = [(0, 0)] * 3
    corners = utils.resize_mask(mask, 2, no_padding, size=(1, 7))[0, :, 0]
    assert corners.tolist() == [1, 0, 0, 0, 0, 1, 1]
    floor = utils.resize_mask(mask, 2, no_padding, size=(1, 8), nearest="floor")[0, :, 0]
    assert floor.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert utils.resize_mask(mask, 1, [(1, 2), (3, 4), (0, 0)]).shape == (4, 11, 1)
    with pytest.raises(ValueError, match="corners, floor, centre, got 'near'"):
        utils.resize_mask(mask, 2, no_padding, nearest="near")
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        utils.resize_mask(mask[..., 0], 2, no_padding)


@given(st.integers(1, 40), st.integers(1, 90))
def test_nearest_floor_takes_the_pixel_of_the_corner(old, new):
    row = np.arange(old)[:, None, None]
    resized = utils.resize_mask(row, 1, [(0, 0)] * 3, size=(new, 1), nearest="floor")[:, 0, 0]
    corners = np.arange(new) * old / new
    on_a_border = np.abs(corners - np.rint(corners)) < 1e-9  # there OpenCV, too, takes the one or the other
    np.testing.assert_array_equal(resized[~on_a_border], np.floor(corners)[~on_a_border])
    assert (np.abs(resized - corners) <= 1 + 1e-9).all()


@given(st.integers(1, 40), st.integers(1, 90))
def test_nearest_centre_takes_the_pixel_of_the_centre(old, new):
    row = np.arange(old)[:, None, None]
    resized = utils.resize_mask(row, 1, [(0, 0)] * 3, size=(new, 1), nearest="centre")[:, 0, 0]
    assert resized.tolist() == [(2 * i + 1) * old // (2 * new) for i in range(new)]
    mirrored = utils.resize_mask(row[::-1], 1, [(0, 0)] * 3, size=(new, 1), nearest="centre")[::-1, 0, 0]
    between = [((2 * i + 1) * old) % (2 * new) == 0 for i in range(new)]  # the centre lies between two pixels
    np.testing.assert_array_equal(resized - mirrored, np.array(between, int))


def test_nearest_floor_is_opencvs_at_a_border():
    resized = utils.resize_mask(np.arange(15)[:, None, None], 1, [(0, 0)] * 3, size=(85, 1), nearest="floor")[:, 0, 0]
    expected = [0, 2, 5, 9, 11]
    assert resized[::17].tolist() == expected  # cv2 4.10: a multiple of 17 lies on a border


def test_images_of_a_folder_are_found_by_their_suffix(tmp_path):
    for name in ("b.PNG", "a.tif", "notes.txt", "inside/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in utils.image_files(tmp_path)] == ["a.tif", "b.PNG"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing has no images \(\.bmp, .*\); look elsewhere"):
        utils.image_files(tmp_path / "nothing", "; look elsewhere")


############################################################
#  The kernel of resizing
############################################################


@pytest.mark.skipif(not native_resize.is_native(), reason="no kernel")
@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 2), st.tuples(*[st.integers(1, 120)] * 2), st.integers(1, 5), st.booleans())
def test_the_kernel_resizes_as_numpy_does(old, new, channels, is_flipped):
    image = np.random.default_rng(0).integers(0, 256, (*old, channels), dtype=np.uint8)
    image = image[:, ::-1] if is_flipped else image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_resize, "_library", None)
        expected = utils.resize_pixels(image, new)
    resized = utils.resize_pixels(image, new)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.skipif(not native_resize.is_native(), reason="no kernel")
def test_the_kernel_reads_nothing_outside_of_the_image():
    image, half = np.zeros((4, 5, 3), np.uint8), np.full((2, 1), 1024, np.int32)
    inside = np.array([[3], [3]])
    assert native_resize.resize(image, inside, half, inside, half).shape == (1, 1, 3)
    for rows in ([[3], [4]], [[-1], [0]], [[0], [2]]):
        with pytest.raises(ValueError, match=r"neighbours in an image of \(4, 5\) pixels"):
            native_resize.resize(image, np.array(rows), half, inside, half)
    with pytest.raises(ValueError, match="as many weights"):
        native_resize.resize(image, inside, half[:, :0], inside, half)

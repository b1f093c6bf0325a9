"""Pictures scaled by their percentiles: PIXEL_RANGE, wherever pixels come from."""

import numpy as np
import pytest
import tifffile
from helpers import TinyConfig, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import utils
from config import Config
from data.dataset import Dataset
from data.images import ImageReader, read_image
from data.samples import TrainingData
from evaluation.detect import detect_dataset
from model import MaskRCNN
from utils import stretch_percentiles


def deep(height=40, width=50, channels=None, dtype=np.uint16, seed=0, low=300, high=3000):
    """An image of few values of many: dark, with a very bright pixel."""
    rng = np.random.default_rng(seed)
    values = rng.integers(low, high, (height, width) if channels is None else (height, width, channels)).astype(dtype)
    values[0, 0] = 60000 if dtype == np.uint16 else high
    return values


############################################################
#  The rule
############################################################


def test_percentiles_become_black_and_white():
    ramp = np.random.default_rng(0).permutation(10000).astype(np.uint16).reshape(100, 100)
    pixels = stretch_percentiles(ramp)
    assert pixels.dtype == np.uint8
    low, high = 9, 9990  # the values at the places 9.999 and 9989.001 of 0 to 9999, outwards
    expected = np.rint(((ramp.astype(float) - low) * 255 / (high - low)).clip(0, 255))
    np.testing.assert_array_equal(pixels, expected)
    usual = np.percentile(ramp, [0.1, 99.9])
    assert (low, high) == pytest.approx(usual, abs=1)
    for dtype in (np.int32, np.uint32, np.float32, np.float64, np.int64):
        np.testing.assert_array_equal(stretch_percentiles(ramp.astype(dtype)), pixels)
        np.testing.assert_array_equal(stretch_percentiles(ramp.astype(dtype) * dtype(3) - dtype(0)), pixels)
    np.testing.assert_array_equal(stretch_percentiles(ramp.astype(np.float32) / 65535), pixels)
    np.testing.assert_array_equal(stretch_percentiles(ramp.astype(np.int32) - 5000), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [None, 2])
def test_a_part_is_scaled_as_the_whole(channels, dtype):
    image = deep(channels=channels, dtype=dtype, low=3, high=250)
    ranges = utils.percentile_ranges(image)
    assert len(ranges) == (channels or 1)
    part = utils.stretch_to_ranges(image[10:20, 5:9], ranges)
    np.testing.assert_array_equal(part, stretch_percentiles(image)[10:20, 5:9])
    black = utils.stretch_to_ranges(np.zeros_like(image[:2, :2]), ranges)
    assert not black.any(), "values outside of the range are clipped"


def test_each_channel_has_its_own_range():
    image = np.stack([deep(seed=1), deep(seed=2, low=0, high=90), np.full((40, 50), 7, np.uint16)], axis=2)
    pixels = stretch_percentiles(image)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], stretch_percentiles(image[..., channel]))
    assert pixels[..., 0].min() == pixels[..., 1].min() == 0
    assert pixels[..., 0].max() == pixels[..., 1].max() == 255
    assert not pixels[..., 2].any(), "a constant channel is black"
    assert np.median(pixels[..., 0]) > 100, "a few bright pixels do not decide"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, bool])
def test_constant_and_nearly_constant_channels(dtype):
    image = np.ones((50, 60), dtype)
    assert not stretch_percentiles(image).any()
    image[3, 4] = 0
    pixels = stretch_percentiles(image)
    assert pixels[3, 4] == 0
    assert (np.delete(pixels.ravel(), 3 * 60 + 4) == 255).all()
    assert stretch_percentiles(np.ones((1, 1), dtype)).tolist() == [[0]]


@given(st.integers(0, 2**32), st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]), st.integers(1, 60))
def test_what_was_scaled_stays(seed, dtype, side):
    rng = np.random.default_rng(seed)
    image = (rng.normal(size=(side, 60, 2)) * rng.choice([0.3, 3, 30]) + 100).astype(dtype)
    once = stretch_percentiles(image)
    np.testing.assert_array_equal(stretch_percentiles(once), once)


def test_numbers_that_are_none():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="picture must have finite numbers, not infinite values or NaN"):
            stretch_percentiles(np.array([[0, value]]), "picture")
    with pytest.raises(ValueError, match="picture must have finite numbers, not values of type complex128"):
        stretch_percentiles(np.ones((2, 2), complex), "picture")
    with pytest.raises(ValueError, match="picture has values from -1e\\+308 to 1e\\+308, which are too far apart"):
        stretch_percentiles(np.array([[-1e308, 1e308]]), "picture")


def test_arrays_of_users():
    image = deep(channels=3)
    pixels = stretch_percentiles(image)
    np.testing.assert_array_equal(utils.to_rgb(image, pixel_range="percentiles"), pixels)
    np.testing.assert_array_equal(utils.check_channels(image, 3, "a", "percentiles"), pixels)
    np.testing.assert_array_equal(utils.check_channels(image[..., :2], 2, "a", "percentiles"), pixels[..., :2])
    gray = utils.check_channels(image[..., 0], 3, "a", "percentiles")
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))
    np.testing.assert_array_equal(utils.check_channels(image[..., 0], 1, "a", "percentiles"), pixels[..., :1])
    assert utils.to_rgb(image).max() > 200, "and by depth the bright ones decide"
    assert np.median(utils.to_rgb(image)) < 10


############################################################
#  Files
############################################################


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("channels", [None, 3])
def test_files(tmp_path, dtype, channels):
    values = deep(channels=channels, dtype=dtype, low=20, high=200) + dtype(20)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack" if channels is None else "rgb")
    expected = stretch_percentiles(values if channels else np.repeat(values[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", pixel_range="percentiles"), expected)
    if dtype == np.uint16 and channels is None:
        Image.fromarray(values).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", pixel_range="percentiles"), expected)


def test_files_with_nan(tmp_path):
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"nan\.tif: some of its values are infinite or not numbers \(NaN\)"):
        read_image(tmp_path / "nan.tif", pixel_range="percentiles")


def test_a_reader_needs_no_bit_depth_for_it(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", deep())
    reader = ImageReader()
    assert reader.inspect([tmp_path / "a.tif"], "auto", "percentiles") == "auto"
    assert "bits" not in caplog.text
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif")[..., 0], stretch_percentiles(deep()))
    assert reader.inspect([tmp_path / "a.tif"]) == 16, "another model, which scales by depth"
    assert np.median(reader.read(tmp_path / "a.tif")) < 10


############################################################
#  Training, evaluation and detection
############################################################


def files(folder, count=2) -> Dataset:
    dataset = Dataset()
    for number, name in enumerate(TinyConfig.CLASS_NAMES[1:], start=1):
        dataset.add_class("deep", number, name)
    for number in range(count):
        tifffile.imwrite(folder / f"{number}.tif", deep(64, 64, 3, seed=number), photometric="rgb")
        dataset.add_image("deep", number, folder / f"{number}.tif")
    dataset.prepare()
    return dataset


def test_training_evaluation_and_detection_see_the_same_pixels(tmp_path, monkeypatch):
    dataset = files(tmp_path)
    model = tiny_model(PIXEL_RANGE="percentiles", IMAGE_RESIZE_MODE="none")
    expected = [stretch_percentiles(deep(64, 64, 3, seed=number)) for number in range(2)]
    data = TrainingData(dataset, model.config, augment=False)
    for number in range(2):
        np.testing.assert_array_equal(data.sample(number).image, expected[number])
        for image in (deep(64, 64, 3, seed=number), tmp_path / f"{number}.tif", dataset.load_image(number)):
            np.testing.assert_array_equal(model._checked([image])[0], expected[number])
    seen = []
    original = model._checked
    monkeypatch.setattr(model, "_checked", lambda images: seen.append(original(images)) or seen[-1])
    by_depth = MaskRCNN(TinyConfig())  # another model read the data set in between
    dataset.inspect_for(by_depth.config)
    detect_dataset(model, dataset)
    np.testing.assert_array_equal([image for images in seen for image in images], expected)


def test_a_data_set_that_makes_its_own_arrays():
    class Own(Dataset):
        def load_image(self, image_id):
            return deep(64, 64, 3, seed=image_id)

    dataset = Own()
    dataset.add_class("own", 1, "thing")
    dataset.add_image("own", 0, None)
    dataset.prepare()
    dataset.load_mask = lambda image_id: (np.zeros((64, 64, 0), bool), np.zeros(0, np.int32))
    config = Config(NUM_CLASSES=2, PIXEL_RANGE="percentiles", IMAGE_RESIZE_MODE="none", WORKERS=0)
    sample = TrainingData(dataset, config, augment=False).sample(0)
    np.testing.assert_array_equal(sample.image, stretch_percentiles(deep(64, 64, 3)))


def test_what_an_augmentation_returns_is_not_scaled_again(tmp_path):
    config = Config(NUM_CLASSES=4, PIXEL_RANGE="percentiles", IMAGE_RESIZE_MODE="none", HORIZONTAL_FLIP=0.0, WORKERS=0)
    data = TrainingData(files(tmp_path), config, augmentation=lambda image, masks: (image // 2, masks))
    np.testing.assert_array_equal(data.sample(0).image, stretch_percentiles(deep(64, 64, 3)) // 2)


def test_the_model_keeps_it(tmp_path, capsys):
    model = tiny_model(PIXEL_RANGE="percentiles")
    model.source = "made by a test"
    model.save(tmp_path / "a.pth")
    assert MaskRCNN.from_checkpoint(tmp_path / "a.pth").config.PIXEL_RANGE == "percentiles"
    by_depth = MaskRCNN(TinyConfig())
    with pytest.raises(ValueError, match="weights were made for PIXEL_RANGE = percentiles, but the model has depth"):
        by_depth.load_weights(tmp_path / "a.pth")
    by_depth.load_weights(tmp_path / "a.pth", by_name=True)
    line = "learned from pixels scaled by PIXEL_RANGE percentiles; from now on it is depth"
    assert capsys.readouterr().out.count(line) == 1
    assert by_depth._frozen_stages() == 1, "the stem is as it was"

"""Images of any number of channels: from TIFF files through training, evaluation and detection to pictures."""

import logging

import numpy as np
import pytest
import tifffile
from helpers import TrainConfig, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import utils
import visualize
from config import Config
from data.dataset import Dataset
from data.images import count_channels, fit_channels, read_image
from data.recognise import open_records
from data.record_dataset import RecordDataset
from evaluation.detect import detect_dataset
from model import MaskRCNN

PLANES = np.random.default_rng(0).integers(0, 256, (12, 24, 30)).astype(np.uint8)  # [C, H, W]


def read(path, channels) -> np.ndarray:
    """[C, H, W]"""
    pixels = read_image(path, channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return np.moveaxis(pixels, 2, 0)


############################################################
#  Files
############################################################


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}], ids=str)
@pytest.mark.parametrize("count", [2, 4, 5, 9, 10])
def test_tiffs_of_many_channels(tmp_path, caplog, count, options, is_first):
    """Unnamed axes of at most 10 entries, and those that ImageJ and OME call channels."""
    planes, named = PLANES[:count], {"imagej", "ome"} & options.keys()
    axes = {"metadata": {"axes": "CYX" if is_first or "imagej" in options else "YXC"}} if named else {}
    array = planes if is_first or "imagej" in options else np.moveaxis(planes, 0, -1)
    layout = {"planarconfig": "contig"} if "ome" in options and not is_first else {}
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", **options, **axes, **layout)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", count), planes)
    assert caplog.text == ""
    assert count_channels([tmp_path / "a.tif"]) == {count: 1}


def test_channels_come_first_where_the_first_axis_is_short(tmp_path):
    planes = np.random.default_rng(1).integers(0, 256, (3, 256, 256)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 3), planes)
    tifffile.imwrite(tmp_path / "slices.tif", PLANES[:11])
    assert count_channels([tmp_path / "a.tif", tmp_path / "slices.tif"]) == {3: 1, 1: 1}, "11 are slices"
    np.testing.assert_array_equal(read(tmp_path / "slices.tif", 1), PLANES[:1])


def test_deep_channels_are_scaled_alike(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PLANES[:5].astype(np.uint16) * 257, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 5), PLANES[:5])
    tifffile.imwrite(tmp_path / "b.tif", PLANES[:2].astype(np.float32) / 255, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "b.tif", 2), PLANES[:2])


def test_pages_are_channels_if_there_are_as_many(tmp_path):
    pages = [Image.fromarray(page) for page in PLANES[:5]]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 5), PLANES[:5])
    for channels in (1, 3):
        np.testing.assert_array_equal(read(tmp_path / "a.tif", channels), np.repeat(PLANES[:1], channels, axis=0))
    pages[0].save(tmp_path / "lzw.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(read(tmp_path / "lzw.tif", 5), PLANES[:5])


def test_transparency_counts_if_there_are_as_many_channels(tmp_path):
    four = np.moveaxis(PLANES[:4], 0, -1)
    Image.fromarray(four, "RGBA").save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unassalpha"])
    two = four[..., :2]
    Image.fromarray(two, "LA").save(tmp_path / "b.png")
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, 4), PLANES[:4])
        np.testing.assert_array_equal(read(tmp_path / name, 3), PLANES[:3])
    np.testing.assert_array_equal(read(tmp_path / "b.png", 2), PLANES[:2])
    assert count_channels([tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "b.png"]) == {3: 2, 1: 1}


def test_gray_is_one_channel_or_three(tmp_path):
    Image.fromarray(PLANES[0]).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", PLANES[0].astype(np.uint16) * 257)
    Image.fromarray(PLANES[0]).convert("RGB").save(tmp_path / "b.png")
    for name in ("a.png", "a.tif", "b.png"):
        np.testing.assert_array_equal(read(tmp_path / name, 1), PLANES[:1])
        np.testing.assert_array_equal(read(tmp_path / name, 3), np.repeat(PLANES[:1], 3, axis=0))
    colour = np.moveaxis(PLANES[:3], 0, -1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    tifffile.imwrite(tmp_path / "c.tif", colour.astype(np.uint16) * 257, photometric="rgb")
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    for name in ("c.png", "c.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, 1), expected[None])


def test_a_picture_of_another_number_of_channels_is_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "five.tif", PLANES[:5], photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "five.tif", 4), PLANES[:4])
    assert "TIFF files with 5 channels: the first 4 are read" in caplog.text
    padded = read(tmp_path / "five.tif", 7)
    np.testing.assert_array_equal(padded[:5], PLANES[:5])
    assert not padded[5:].any()
    assert "images with 5 channels, where IMAGE_CHANNEL_COUNT is 7: the other 2 are black" in caplog.text
    Image.fromarray(np.moveaxis(PLANES[:3], 0, -1)).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read(tmp_path / "colour.png", 2), PLANES[:2])
    assert "images with 3 channels, where IMAGE_CHANNEL_COUNT is 2: the first 2 are read" in caplog.text
    Image.fromarray(PLANES[0]).save(tmp_path / "gray.png")
    assert not read(tmp_path / "gray.png", 2)[1].any(), "gray is one channel"


@given(st.integers(1, 6), st.integers(1, 6))
def test_fitted_channels(count, wanted):
    pixels = np.moveaxis(PLANES[:count], 0, -1)
    fitted = fit_channels(pixels, wanted)
    assert fitted.shape == (24, 30, wanted)
    if (count, wanted) not in ((1, 3), (3, 1)):
        same = min(count, wanted)
        np.testing.assert_array_equal(fitted[..., :same], pixels[..., :same])
        assert not fitted[..., same:].any()


############################################################
#  A data set
############################################################


def label_images(folder, counts, side=64):
    """Pictures of so many channels each, with a square that all channels show, and label images of them."""
    rng = np.random.default_rng(0)
    for number, count in enumerate(counts):
        y, x = rng.integers(4, 20, 2)
        labels = np.zeros((side, side), np.uint8)
        labels[y : y + 24, x : x + 30] = 1
        planes = rng.integers(0, 3000, (count, side, side)) + 20000 * labels.astype(int)
        for name in ("images", "masks"):
            (folder / name).mkdir(exist_ok=True)
        planes = planes.astype(np.uint16)
        tifffile.imwrite(folder / "images" / f"{number}.tif", planes.squeeze(), photometric="minisblack")
        tifffile.imwrite(folder / "masks" / f"{number}.tif", labels)
    return open_records(folder)


@pytest.mark.parametrize(("counts", "expected", "words"), [
    ([2, 2, 2], 2, ""),
    ([1, 1], 3, ""),
    ([3, 1, 3], 3, ""),
    ([4, 4, 3], 4, "1 have 3, 2 have 4. 4 are read of each"),
    ([5, 2], 5, "1 have 2, 1 have 5. 5 are read of each"),
])  # fmt: skip
def test_a_data_set_says_how_many_channels_it_has(tmp_path, caplog, counts, expected, words):
    dataset = RecordDataset(label_images(tmp_path, counts))
    with caplog.at_level(logging.WARNING, "data.record_dataset"):
        assert dataset.channel_count == dataset.channel_count == expected
    said = [record.message for record in caplog.records if record.name == "data.record_dataset"]
    assert len(said) == bool(words)
    assert words in " ".join(said)
    assert "different numbers" in " ".join(said) or not words
    dataset.inspect_images("auto", "depth", expected)
    assert {dataset.load_image(image_id).shape for image_id in dataset.image_ids} == {(64, 64, expected)}


@pytest.mark.parametrize("count", [1, 4])
def test_from_files_to_pictures(tmp_path, count):
    """Training, evaluation and detection of pictures of 16 bits and any number of channels, and how they look."""
    dataset = RecordDataset(label_images(tmp_path, [count] * 4))
    settings = {"IMAGE_CHANNEL_COUNT": count, "PIXEL_RANGE": "percentiles", "NUM_CLASSES": 2, "CLASS_NAMES": None}
    model = MaskRCNN(
        TrainConfig(**settings, STEPS_PER_EPOCH=2, BRIGHTNESS_JITTER=0.2, COPY_PASTE=0.5), tmp_path / "logs"
    )
    model.train_model(dataset, None, 0.001, epochs=1)
    boxes, _ = detect_dataset(model, dataset)
    assert boxes
    image = tifffile.imread(tmp_path / "images" / "0.tif").reshape(count, 64, 64).transpose(1, 2, 0)
    of_array, of_file = model.detect([image, tmp_path / "images" / "0.tif"])
    np.testing.assert_array_equal(of_array["scores"], of_file["scores"])
    loaded = MaskRCNN.from_checkpoint(model.find_last())
    np.testing.assert_array_equal(loaded.detect([image])[0]["scores"], of_array["scores"])
    drawn = visualize.draw_instances(dataset.load_image(0), of_array["rois"], of_array["masks"])
    assert drawn.shape == (64, 64, 3)


def test_pictures_to_look_at():
    two = np.moveaxis(PLANES[:2], 0, -1)
    shown = utils.viewable(two)
    np.testing.assert_array_equal(shown[..., :2], two)
    assert not shown[..., 2].any()
    for count in (3, 4, 5, 9):
        np.testing.assert_array_equal(
            utils.viewable(np.moveaxis(PLANES[:count], 0, -1)), np.moveaxis(PLANES[:3], 0, -1)
        )
    np.testing.assert_array_equal(utils.viewable(PLANES[0]), np.repeat(PLANES[0][..., None], 3, axis=2))
    deep = np.moveaxis(PLANES[:5], 0, -1).astype(np.float32) * 99 - 7
    np.testing.assert_array_equal(utils.viewable(deep), utils.stretch_percentiles(deep[..., :3]))
    with pytest.raises(ValueError, match=r"picture .*channels come last"):
        utils.viewable(PLANES[:3], "picture")


def test_arrays_for_a_network_of_one_or_more_channels():
    assert utils.check_channels(PLANES[0], 1).shape == (24, 30, 1)
    deep = np.moveaxis(PLANES[:2], 0, -1).astype(np.uint16) * 257
    np.testing.assert_array_equal(utils.check_channels(deep, 2), np.moveaxis(PLANES[:2], 0, -1))
    np.testing.assert_array_equal(utils.check_channels((deep / 65535), 2), np.moveaxis(PLANES[:2], 0, -1))
    with pytest.raises(ValueError, match=r"must be an array \[H, W, 2\].*not \(2, 24, 30\); channels come last"):
        utils.check_channels(PLANES[:2], 2)
    model = tiny_model(IMAGE_CHANNEL_COUNT=1)
    (gray,), (picture,) = model._checked([PLANES[0]]), model._checked([Image.fromarray(PLANES[0])])
    np.testing.assert_array_equal(gray, picture)
    (colour,) = model._checked([Image.fromarray(np.moveaxis(PLANES[:3], 0, -1))])
    assert colour.shape == (24, 30, 1)


def test_a_data_set_in_another_class_has_as_many_channels(tmp_path):
    """Every data set of files reads as many channels as the network takes."""
    tifffile.imwrite(tmp_path / "a.tif", PLANES[:5], photometric="minisblack")
    dataset = Dataset()
    dataset.add_image("own", 1, tmp_path / "a.tif")
    dataset.prepare()
    dataset.inspect_for(Config(IMAGE_CHANNEL_COUNT=5))
    np.testing.assert_array_equal(dataset.load_image(0), np.moveaxis(PLANES[:5], 0, -1))
    dataset.inspect_for(Config())
    np.testing.assert_array_equal(dataset.load_image(0), np.moveaxis(PLANES[:3], 0, -1))

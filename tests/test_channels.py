"""Images of any number of channels: from TIFF files through training, evaluation and detection to pictures."""

import logging

import numpy as np
import pytest
import tifffile
import torch
from helpers import TrainConfig, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import conv2d

import cli
import utils
import visualize
from config import Config, for_channels
from data import images
from data.dataset import Dataset
from data.images import count_channels, fit_channels, read_image
from data.recognise import open_records
from data.record_dataset import RecordDataset
from evaluation.detect import detect_dataset
from model import MaskRCNN
from weights.checkpoint import Checkpoint, write_checkpoint
from weights.stem import fit_images, inflate, settings_for_channels

PLANES = np.random.default_rng(0).integers(0, 256, (12, 24, 30)).astype(np.uint8)  # [C, H, W]


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    """Notes on images are logged once in a process, and other tests may have heard them."""
    monkeypatch.setattr(images, "_said", set())


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
    tifffile.imwrite(
        tmp_path / "deep.tif", four.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]
    )
    for name in ("a.png", "a.tif", "deep.tif"):
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
    assert visualize.display_images([two, np.moveaxis(PLANES[:5], 0, -1)]) is not None
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


############################################################
#  Weights
############################################################


@pytest.mark.parametrize("before", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_inflated_filters_answer_equal_channels_as_before(before, count):
    weight = torch.randn(8, before, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inflated = inflate(weight, count)
    assert inflated.shape == (8, count, 7, 7)
    torch.testing.assert_close(inflated.sum(dim=1), weight.sum(dim=1))
    image = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = conv2d(image.expand(1, before, 20, 20), weight)
    torch.testing.assert_close(conv2d(image.expand(1, count, 20, 20), inflated), expected)


def test_the_rule_of_inflation():
    weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert inflate(weight, 3).flatten().tolist() == [1, 2, 6]
    assert inflate(weight, 1).flatten().tolist() == [9]
    assert inflate(weight, 2).flatten().tolist() == [4.5, 4.5]
    assert inflate(weight, 6).flatten().tolist() == [0.5, 1, 3, 1.5, 1.5, 1.5]
    assert for_channels((1.0, 2.0, 6.0), 5) == (1, 2, 6, 3, 3)
    assert for_channels((1.0, 2.0, 6.0), 2) == (3, 3)
    stored = {"MEAN_PIXEL": [1.0, 2.0, 6.0], "STD_PIXEL": [2.0, 2.0, 2.0], "NAME": "a"}
    assert settings_for_channels(stored, 4) == {
        "IMAGE_CHANNEL_COUNT": 4, "MEAN_PIXEL": (1, 2, 6, 3), "STD_PIXEL": (2, 2, 2, 2),
    }  # fmt: skip


def test_settings_of_channels_follow_their_number():
    class Cells(Config):
        MEAN_PIXEL = (10.0, 20.0)
        STD_PIXEL = (5.0, 5.0)
        IMAGE_CHANNEL_COUNT = 2

    assert Cells().MEAN_PIXEL == (10, 20)
    config = Config(IMAGE_CHANNEL_COUNT=5)
    assert (*Config.MEAN_PIXEL, *[pytest.approx(sum(Config.MEAN_PIXEL) / 3)] * 2) == config.MEAN_PIXEL
    assert len(Config(IMAGE_CHANNEL_COUNT=1, DIALECT="torchvision").STD_PIXEL) == 1
    with pytest.raises(ValueError, match="MEAN_PIXEL must have 5 entries"):
        Config(IMAGE_CHANNEL_COUNT=5, MEAN_PIXEL=(1, 2, 3))
    assert Config.from_dict(config.to_dict()).to_dict() == config.to_dict()


def stored(tmp_path, **settings):
    model = MaskRCNN(TrainConfig(**settings))
    model.source = "trained by a test"
    model.save(tmp_path / "rgb.pth")
    return tmp_path / "rgb.pth", model


def test_load_weights_inflates_by_name(tmp_path, capsys):
    path, rgb = stored(tmp_path, MEAN_PIXEL=(10.0, 20.0, 60.0))
    model = MaskRCNN(TrainConfig(IMAGE_CHANNEL_COUNT=5))
    before = model.backbone.stem.weight.clone()
    with pytest.raises(ValueError, match=r"for images of 3 channels, but the model takes 5 .*by_name=True\) inflates"):
        model.load_weights(path)
    assert torch.equal(model.backbone.stem.weight, before)
    model.load_weights(path, by_name=True)
    out = capsys.readouterr().out
    assert (
        f"images have 5 channels, those of {path} 3: the new ones get their mean, and all are multiplied by 3/5" in out
    )
    assert "initialised anew" not in out
    assert torch.equal(model.backbone.stem.weight, inflate(rgb.backbone.stem.weight, 5))
    assert torch.equal(model.box_head.class_logits.weight, rgb.box_head.class_logits.weight)
    assert model._frozen_stages() == 0, "new channels have to learn"
    same = MaskRCNN(TrainConfig(MEAN_PIXEL=(10.0, 20.0, 60.0)))
    same.load_weights(path, by_name=True)
    assert same._frozen_stages() == 1
    assert "channels" not in capsys.readouterr().out


@pytest.mark.parametrize("other_classes", [False, True])
@pytest.mark.parametrize("network_only", [False, True])
def test_a_training_on_other_channels_starts_from_a_checkpoint(tmp_path, capsys, other_classes, network_only):
    path, rgb = stored(tmp_path, MEAN_PIXEL=(10.0, 20.0, 60.0))
    settings = {"IMAGE_CHANNEL_COUNT": 2, "PIXEL_RANGE": "percentiles"}
    settings |= {"CLASS_NAMES": ("BG", "cell", "dog", "x")} if other_classes else {}
    start = cli.find_start(str(path), TrainConfig, tmp_path, settings)
    model = cli.starting_model(start, TrainConfig, tmp_path / "logs", settings, network_only)
    assert (model.config.MEAN_PIXEL, model.config.IMAGE_CHANNEL_COUNT) == ((30, 30), 2)
    assert model.config.PIXEL_RANGE == "percentiles"
    assert torch.equal(model.backbone.stem.weight, inflate(rgb.backbone.stem.weight, 2))
    assert torch.equal(model.fpn.state_dict()[next(iter(model.fpn.state_dict()))],
                       rgb.fpn.state_dict()[next(iter(model.fpn.state_dict()))])  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("images have 2 channels") == out.count("from now on it is percentiles") == 1
    assert model._frozen_stages() == 0
    model.save(tmp_path / "two.pth")
    again = cli.find_start(str(tmp_path / "two.pth"), TrainConfig, tmp_path, {})
    continued = cli.starting_model(again, TrainConfig, tmp_path / "logs", {})
    assert (continued.config.IMAGE_CHANNEL_COUNT, continued.config.PIXEL_RANGE) == (2, "percentiles")
    assert "channels" not in capsys.readouterr().out


def test_a_class_says_its_channels_and_their_mean(tmp_path):
    class Cells(TrainConfig):
        IMAGE_CHANNEL_COUNT = 4

    class Measured(Cells):
        MEAN_PIXEL = (1.0, 2.0, 3.0, 4.0)

    path, _ = stored(tmp_path)
    start = cli.find_start(str(path), Cells, tmp_path, {})
    assert for_channels(TrainConfig().MEAN_PIXEL, 4) == cli.training_config(start, Cells, {}).MEAN_PIXEL
    assert cli.training_config(start, Measured, {}).MEAN_PIXEL == (1, 2, 3, 4)
    assert len(cli.training_config(start, Measured, {}).STD_PIXEL) == 4
    assert cli.training_config(start, Measured, {"IMAGE_CHANNEL_COUNT": 3}).MEAN_PIXEL == TrainConfig().MEAN_PIXEL
    assert cli.starting_model(start, Measured, tmp_path, {}).config.MEAN_PIXEL == (1, 2, 3, 4)


def test_a_backbone_alone_is_inflated(tmp_path, monkeypatch):
    rgb = MaskRCNN(TrainConfig())
    contents = {**rgb.to_checkpoint(), "class_names": None, "category_ids": None}
    contents["model"] = {name: tensor for name, tensor in contents["model"].items() if name.startswith("backbone.")}
    write_checkpoint(tmp_path / "backbone.pth", contents)
    monkeypatch.setattr("weights.published.find_weights", lambda *names: tmp_path / "backbone.pth")
    settings = {"IMAGE_CHANNEL_COUNT": 1}
    start = cli.find_start("imagenet", TrainConfig, tmp_path, settings)
    model = cli.starting_model(start, TrainConfig, tmp_path, settings)
    assert torch.equal(model.backbone.stem.weight, inflate(rgb.backbone.stem.weight, 1))
    torch.testing.assert_close(model.backbone.stem.weight[:, 0], rgb.backbone.stem.weight.sum(dim=1))


def test_a_backbone_of_ones_own_starts_its_first_layer_anew():
    contents = Checkpoint({"config": Config().to_dict(), "model": {"backbone.first.weight": torch.zeros(1)}})
    fitted, sentences = fit_images(contents, Config(IMAGE_CHANNEL_COUNT=2))
    assert fitted["model"] == contents["model"]
    assert fitted["config"]["MEAN_PIXEL"] == Config(IMAGE_CHANNEL_COUNT=2).MEAN_PIXEL
    assert sentences == ["images have 2 channels, those of the checkpoint 3: the backbone is not this project's, and "
                         "its first layer starts anew"]  # fmt: skip
    assert fit_images(contents, Config()) == (contents, [])


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

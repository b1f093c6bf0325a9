"""The runner without torch computes what this project computes: reading, resizing, boxes, masks, run-length codes.

The network in between is ours here; tests/test_export.py compares exported ones.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyConfig, random_image, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

import model as modellib
import onnx_detect
import utils
from config import DIALECTS, Config
from data.images import read_image
from data.inputs import image_array
from export import settings_of
from model import Images
from onnx_detect import Detector, Settings
from roialign import paste_masks, paste_rles

ROOT = Path(onnx_detect.__file__).parent
MODES = ("shorter", "square", "pad64", "none")


def settings_for(config: Config, **changes) -> Settings:
    """What a file says of a model with this config."""
    model = modellib.MaskRCNN(config)
    return Settings.parse(json.dumps({**settings_of(model), **changes}))


TINY = settings_for(TinyConfig())


class OurNetwork(Detector):
    """A Detector whose network is a MaskRCNN."""

    def __init__(self, model: modellib.MaskRCNN) -> None:
        self.name, self.model = "the model", model
        self.settings = Settings.parse(json.dumps(settings_of(model)))
        self.class_names, self.category_ids = list(self.settings.class_names), list(self.settings.category_ids)
        self.outputs = [*onnx_detect.OUTPUTS, *([] if model.maskiou_head is None else ["mask_ious"])]

    def run(self, pixels, windows):
        pixels = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
        found = self.model.predict(Images(pixels, torch.from_numpy(windows)))
        tensors = found.boxes, found.batch_index, found.class_ids, found.scores, found.mask_logits.sigmoid()
        return [t.numpy() for t in (tensors if found.maskious is None else (*tensors, found.maskious))]


############################################################
#  The whole way
############################################################


def assert_alike(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys()
    assert (result["class_ids"] == expected["class_ids"]).all()
    for name in ("rois", "scores", "mask_ious", "mask_scores"):
        if expected[name] is None:
            assert result[name] is None
            continue
        assert result[name].dtype == expected[name].dtype
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-5, atol=1e-4)
    assert result["masks"].dtype == bool
    assert result["masks"].shape == expected["masks"].shape
    differing = (result["masks"] != expected["masks"]).sum(axis=(0, 1))
    assert (differing <= 2).all(), differing  # pixels whose value is 0.5 but for the last digit


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_detection_is_that_of_the_model(dialect, head):
    settings = {"IMAGE_RESIZE_MODE": "square"} if dialect == "matterport" else {}
    model = tiny_model(DIALECT=dialect, USE_MASKIOU_HEAD=head, **settings)
    images = [random_image(50, 90), random_image(90, 50, 1), random_image(70, 64, 2), random_image(50, 90, 3)]
    detector = OurNetwork(model)
    expected = model.detect(images)
    assert sum(len(result["scores"]) for result in expected) > 20
    for result, ours in zip(detector.detect_batch(images), expected, strict=True):
        assert_alike(result, ours)
    codes = detector.detect(images[0], masks="rle")["masks"]
    masks = np.stack([utils.rle_to_mask(code) for code in codes], axis=2)
    assert (masks == detector.detect(images[0])["masks"]).all()


@pytest.mark.parametrize("masks", ["array", "rle"])
def test_boxes_of_masks(masks):
    model, image = tiny_model(BOXES_OF_MASKS=True), random_image(50, 90)
    detector = OurNetwork(model)
    result = detector.detect(image, masks=masks)
    boxes = OurNetwork(tiny_model()).detect(image)["rois"]
    assert result["rois"].dtype == np.float32
    assert result["rois"].tolist() == utils.boxes_of_masks(result["masks"], boxes).tolist()
    np.testing.assert_allclose(result["rois"], model.detect([image])[0]["rois"], atol=1)  # a pixel at 0.5


@pytest.mark.parametrize("box_of_masks", [False, True])
def test_nothing_found(box_of_masks):
    model = tiny_model(DETECTION_MIN_CONFIDENCE=1.0, BOXES_OF_MASKS=box_of_masks)
    (expected,), result = model.detect([random_image(50, 90)]), OurNetwork(model).detect(random_image(50, 90))
    assert len(expected["scores"]) == 0
    assert_alike(result, expected)
    assert OurNetwork(model).detect(random_image(50, 90), masks="rle")["masks"] == []


def test_unknown_masks():
    with pytest.raises(ValueError, match="masks must be 'array' or 'rle', not png"):
        OurNetwork(tiny_model()).detect(random_image(50, 90), masks="png")


############################################################
#  Resizing
############################################################


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", DIALECTS)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), small=st.integers(1, 20), scale=st.sampled_from([0, 2]))
def test_plans(dialect, mode, height, width, small, scale):
    config = TinyConfig(
        DIALECT=dialect, IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=64 * small, IMAGE_MAX_DIM=1344, IMAGE_MIN_SCALE=scale
    )
    expected = utils.plan_image((height, width), config)
    settings = replace(
        TINY, resize_mode=mode, size_rounding=config.dialect.size_rounding, min_dim=64 * small, max_dim=1344,
        min_scale=scale, divisor=config.IMAGE_SIZE_DIVISOR,
    )  # fmt: skip
    if np.prod(expected.padded_shape) > onnx_detect.MAX_IMAGE_PIXELS:
        with pytest.raises(ValueError, match="would become"):
            onnx_detect.plan_resize(height, width, settings)
        return
    plan = onnx_detect.plan_resize(height, width, settings)
    assert (plan.size, plan.window, plan.padded_shape) == (expected.size, expected.window, expected.padded_shape)


SIZES = [((40, 60), (53, 80)), ((300, 200), (64, 43)), ((7, 9), (7, 31)), ((1, 1), (5, 3)), ((33, 57), (33, 57))]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("resampling", utils.RESAMPLINGS)
def test_resampling(resampling, old, new):
    for low in (0, 100):  # images without black: skimage's rule for the border depends on it
        image = np.random.default_rng(0).integers(low, 256, (*old, 3), dtype=np.uint8)
        result, expected = (f(image, new, resampling) for f in (onnx_detect.resize_pixels, utils.resize_pixels))
        assert result.dtype == expected.dtype
        assert result.shape == (*new, 3)
        if resampling == "torch":
            np.testing.assert_allclose(result, expected, atol=1e-3)
        else:
            assert (result == expected).all()


@pytest.mark.parametrize("resampling", utils.RESAMPLINGS)
def test_resampling_of_other_channels(resampling):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 5), dtype=np.uint8)
    result, expected = (f(image, (44, 51), resampling) for f in (onnx_detect.resize_pixels, utils.resize_pixels))
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_network_inputs(dialect):
    config = TinyConfig(DIALECT=dialect, IMAGE_RESIZE_MODE="square")
    image, settings = random_image(50, 90), settings_for(config)
    plan = onnx_detect.plan_resize(50, 90, settings)
    expected = modellib.mold_padded(image, utils.plan_image(image.shape, config), config).permute(2, 0, 1)
    pixels = onnx_detect.network_input(image, plan, settings)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, atol=1e-3 if config.dialect.resampling == "torch" else 1e-5)


############################################################
#  Boxes and masks
############################################################


@pytest.mark.parametrize("dialect", DIALECTS)
def test_boxes(dialect):
    config = TinyConfig(DIALECT=dialect)
    settings = replace(TINY, coordinates=config.dialect.coordinates, clips_result=config.dialect.clips_result)
    rng = np.random.default_rng(0)
    corner = rng.uniform(-5, 90, (50, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(-1, 60, (50, 2)).astype(np.float32)], axis=1)
    for window, shape in (((3, 0, 99, 128), (50, 67)), ((0, 0, 1, 128), (1, 300)), ((0, 0, 128, 96), (300, 200))):
        expected, kept = modellib.unmold_detections(torch.from_numpy(boxes), window, shape, config)
        result, keep = onnx_detect.boxes_in_image(boxes, window, shape, settings)
        assert result.dtype == np.float32
        assert (keep == kept.numpy()).all()
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("rule", ["centres", "expand", "resize"])
def test_pasting(rule):
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.random((40, 1, 6, 6), dtype=np.float32))
    probs = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")[:, 0]
    corner = rng.uniform(-30, 90, (40, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(0, 120, (40, 2)).astype(np.float32)], axis=1)
    boxes[0], boxes[1], boxes[2] = (5, 5, 5, 9), (-np.inf, 0, 5, 5), (-1e30, -1e30, 1e30, 1e30)
    shape = (80, 100)
    expected = paste_masks(probs, torch.from_numpy(boxes), shape, rule)
    crops = [onnx_detect.paste_mask(p, b, shape, rule) for p, b in zip(probs.numpy(), boxes, strict=True)]
    masks = onnx_detect._whole_masks(iter(crops), len(crops), shape)
    assert expected.any(axis=(0, 1)).sum() > 25
    assert (masks != expected).sum(axis=(0, 1)).max() <= 1
    codes = paste_rles(probs, torch.from_numpy(boxes), shape, rule)
    same = [i for i in range(len(crops)) if (masks[..., i] == expected[..., i]).all()]
    assert len(same) >= 38
    assert all(onnx_detect.encode_mask(*crops[i], shape) == codes[i] for i in same)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_codes(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert onnx_detect.encode_mask(0, 0, mask, mask.shape) == utils.mask_to_rle(mask)


############################################################
#  Reading images
############################################################


def picture(mode: str) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 4000, (30, 40), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(rng.random((30, 40), dtype=np.float32))
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 4), dtype=np.uint8), "RGBA" if mode == "RGBA" else None)
    return image if image.mode == mode else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"),
        ("1", "png"), ("I;16", "png"), ("I;16", "tif"), ("F", "tif"), ("RGB", "tif"), ("L", "bmp"),
    ],
)  # fmt: skip
def test_files(mode, suffix, channels, tmp_path):
    path = tmp_path / f"a.{suffix}"
    picture(mode).save(path)
    pixels = onnx_detect.read_image(path, replace(TINY, channels=channels))
    expected = read_image(path, channels=channels)
    if channels == 3 or mode not in ("1", "L", "LA", "I;16", "F"):
        assert (pixels == expected).all()
    assert pixels.shape == expected.shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{suffix}"
    picture("RGB").save(path, exif=exif)
    pixels = onnx_detect.read_image(path, TINY)
    assert pixels.shape == ((40, 30, 3) if orientation > 4 else (30, 40, 3))
    assert (pixels == read_image(path)).all()


@pytest.mark.parametrize("depth", ["auto", 12])
def test_depth_and_percentiles(depth, tmp_path):
    path = tmp_path / "a.png"
    picture("I;16").save(path)
    pixels = onnx_detect.read_image(path, replace(TINY, bit_depth=depth))
    assert (pixels == read_image(path, bit_depth=depth)).all()
    pixels = onnx_detect.read_image(path, replace(TINY, pixel_range="percentiles"))
    assert (pixels == read_image(path, pixel_range="percentiles")).all()
    with pytest.raises(ValueError, match=r"a\.png: the model takes values up to 255"):
        onnx_detect.read_image(path, replace(TINY, bit_depth=8))


@pytest.mark.parametrize("pixel_range", ["depth", "percentiles"])
@pytest.mark.parametrize(
    "image",
    [
        random_image(9, 12),
        random_image(9, 12)[..., 0],
        random_image(9, 12)[..., :1],
        np.dstack([random_image(9, 12), random_image(9, 12)[..., :1]]),
        random_image(9, 12).astype(np.uint16) * 250,
        random_image(9, 12) / 255,
        random_image(9, 12) > 100,
        picture("P"),
        picture("L"),
        picture("I;16"),
        picture("RGBA"),
    ],
    ids=["rgb", "gray", "one", "alpha", "deep", "float", "bool", "palette", "L", "I16", "RGBA"],
)
def test_arrays(image, pixel_range):
    settings = replace(TINY, pixel_range=pixel_range)
    assert (onnx_detect.image_array(image, settings) == image_array(image, 3, "image", "auto", pixel_range)).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (random_image(9, 12).transpose(2, 0, 1), r"array \[H, W, 3\], not \[3, 9, 12\]; channels come last"),
        (np.zeros((0, 3, 3), np.uint8), r"not \[0, 3, 3\]"),
        (np.zeros((3, 3, 3), np.int64), "must be uint8, uint16, bool or floating, not int64"),
        (np.full((3, 3, 3), 2.0), "must lie in"),
        (np.full((3, 3, 3), np.nan), r"not numbers \(NaN\)$"),
        (None, "not NoneType"),
        (np.broadcast_to(np.uint8(0), (1, 200_000, 3)), "no side above 100000"),
    ],
)
def test_wrong_arrays(image, message):
    with pytest.raises(ValueError, match=message):
        onnx_detect.image_array(image, TINY)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        onnx_detect.read_image(tmp_path / "a.png", TINY)
    with pytest.raises(ValueError, match="is a folder"):
        onnx_detect.read_image(tmp_path, TINY)
    (tmp_path / "a.png").write_bytes(b"\x1b[31mno picture")
    with pytest.raises(ValueError, match=r"image .*a\.png: cannot identify image file"):
        onnx_detect.read_image(tmp_path / "a.png", TINY)
    random_path = tmp_path / "b.jpg"
    Image.fromarray(random_image(90, 90)).save(random_path)
    random_path.write_bytes(random_path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"b.jpg: .*truncated"):
        onnx_detect.read_image(random_path, TINY)


############################################################
#  Settings
############################################################

GOOD = {**settings_of(modellib.MaskRCNN(TinyConfig()))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "have format 2, and this onnx_detect.py reads 1"),
        ({"min_dim": 10**9}, "min_dim must be a number from 1 to 20000, not 1000000000"),
        ({"max_dim": "1\x1b[0m"}, r"max_dim must be a number from 1 to 20000, not 1\\x1b"),
        ({"divisor": 0}, "divisor must be"),
        ({"divisor": True}, "divisor must be"),
        ({"min_scale": float("nan")}, "min_scale must be"),
        ({"channels": 10**6}, "channels must be"),
        ({"channels": 4}, "mean must be 4 numbers"),
        ({"std": [0, 1, 1]}, "std must be 3 numbers"),
        ({"paste": "glue"}, "paste must be one of centres, expand, resize, not glue"),
        ({"paste": ["centres"]}, "paste must be one of"),
        ({"clips_result": 1}, "clips_result must be true or false"),
        ({"bit_depth": 99}, "bit_depth must be auto or a number from 8 to 16"),
        ({"class_names": ["BG"]}, "class_names must be 2 names or more"),
        ({"category_ids": [0, 1]}, "category_ids must be 4 numbers"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings.parse(json.dumps({**GOOD, **changes}))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, f'"{"a" * (1 << 22)}"'])
def test_settings_that_are_none(text):
    with pytest.raises(ValueError, match="no JSON object"):
        Settings.parse(text)


def test_every_setting_is_needed():
    for name in GOOD.keys() - {"dialect", "source", "boxes_of_masks"}:
        with pytest.raises(ValueError, match=name):
            Settings.parse(json.dumps({key: value for key, value in GOOD.items() if key != name}))
    older = {key: value for key, value in GOOD.items() if key != "boxes_of_masks"}
    assert Settings.parse(json.dumps(older)).boxes_of_masks is False
    with pytest.raises(ValueError, match="boxes_of_masks must be true or false, not 1"):
        Settings.parse(json.dumps({**older, "boxes_of_masks": 1}))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({}, {}, "it has inputs"),
        ({"pixels": [None, 4, None, None]}, {}, r"and not \[B, 3, H, W\]"),
        ({"pixels": [None, 3, 96, 96]}, {}, "its settings make other sizes"),
        ({}, {"scores": None}, "it has inputs"),
    ],
)
def test_networks_that_do_not_fit_their_settings(inputs, outputs, message):
    detector = Detector.__new__(Detector)
    detector.name = "model a.onnx"
    inputs = {"pixels": [None, 3, None, None], "windows": [None, 4], **inputs}
    names = {name: [None] for name in onnx_detect.OUTPUTS if name not in outputs}
    if message == "it has inputs" and not outputs:
        inputs = {"pixels": inputs["pixels"]}
    with pytest.raises(ValueError, match=f"model a.onnx: .*{message}"):
        detector._set_up(json.dumps(GOOD), inputs, names)


def test_outputs_that_do_not_fit():
    class Liar(OurNetwork):
        def run(self, pixels, windows):
            outputs = super().run(pixels, windows)
            outputs[2] = outputs[2] + 1000
            return outputs

    with pytest.raises(ValueError, match="its outputs have shapes or classes that do not fit together"):
        Liar(tiny_model()).detect(random_image(50, 90))


############################################################
#  Command line
############################################################


def test_files_of_the_command(tmp_path, monkeypatch, capsys):
    model = tiny_model(CATEGORY_IDS=(0, 17, 18, 21))
    monkeypatch.setattr(onnx_detect, "Detector", lambda *_: OurNetwork(model))
    image = random_image(50, 90)
    for name in ("a.png", "folder/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a.png", "missing\x1b.png", "folder/a.png")]
    output = tmp_path / "out"
    (expected,) = model.detect([image], masks="rle")
    threshold = f"{np.median(expected['mask_scores']):.6f}"
    assert onnx_detect.main(["model.onnx", *paths, "--output", str(output), "--threshold", threshold]) == 1
    printed = capsys.readouterr()
    assert r"not read: image" in printed.err
    assert "\x1b" not in printed.err + printed.out
    assert sorted(os.listdir(output)) == ["a_3_detections.png", "a_detections.png", "detections.csv", "detections.json"]
    coco = json.loads((output / "detections.json").read_text())
    order = np.argsort(-expected["mask_scores"], kind="stable")
    order = order[expected["mask_scores"][order] >= float(threshold)]
    assert 0 < len(order) < 20
    assert [image["id"] for image in coco["images"]] == [1, 3]
    assert coco["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 21, "name": "cow"}]
    entries = [entry for entry in coco["annotations"] if entry["image_id"] == 1]
    assert [entry["id"] for entry in coco["annotations"]] == list(range(1, 2 * len(order) + 1))
    for entry, i in zip(entries, order, strict=True):
        assert entry["category_id"] == (0, 17, 18, 21)[expected["class_ids"][i]]
        assert entry["score"] == pytest.approx(float(expected["mask_scores"][i]), abs=1e-5)
        assert entry["area"] == pytest.approx(int(utils.rle_area(expected["masks"][i])), abs=2)
    lines = (output / "detections.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(order)
    drawn = np.asarray(Image.open(output / "a_detections.png"))
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    before = (output / "detections.csv").read_bytes()
    assert onnx_detect.main(["model.onnx", str(tmp_path / "missing.png"), "--output", str(output)]) == 1
    assert (output / "detections.csv").read_bytes() == before  # nothing was read, and nothing is lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.onnx", "a.png"], r"no\.onnx: there is no such file; python export.py MODEL OUT.onnx makes one"),
        (["no.onnx"], "required: IMAGE"),
        (["no.onnx", "a.png", "--threshold", "2"], "must be a number from 0 to 1, not 2"),
        (["no.onnx", "a.png", "--threads", "0"], "--threads: must be a whole number from 1 up, not 0"),
        (["no.onnx", "a.png", "--threads", "-3"], "--threads: must be a whole number from 1 up, not -3"),
        (
            ["no.onnx", "a.png", "--output", "onnx_detect.py/x"],
            r"--output onnx_detect\.py/x: \S*onnx_detect\.py is no folder",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    """In an interpreter without torch, with the file alone."""
    (tmp_path / "onnx_detect.py").write_bytes((ROOT / "onnx_detect.py").read_bytes())
    code = "import sys; sys.modules['torch'] = None; import onnx_detect; sys.exit(onnx_detect.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("onnx_detect.py: ")
    assert done.stderr.count("\n") == 1
    assert __import__("re").search(message, done.stderr), done.stderr

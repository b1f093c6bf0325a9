"""MaskRCNN as its callers see it: detect on whatever images, and weights saved and loaded."""

import copy
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import DEVICES
from helpers import TinyConfig, random_image, tiny_model
from PIL import Image

import utils
from config import DIALECTS
from data.inputs import image_array
from model import (
    BatchNorm,
    Conv,
    Detections,
    Images,
    MaskRCNN,
    clip_to_windows,
    decode_boxes,
    mean_logits,
    shrink,
)
from stages import look_inside
from training.optimizer import make_optimizer

EDGE_IMAGES = Path(__file__).parent.parent.parent / "shared" / "data" / "edge_images"


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return tiny_model()


def assert_same(one: dict, other: dict, tolerance: float = 1e-4) -> None:
    """Two results of one image, up to rounding."""
    assert one["class_ids"].tolist() == other["class_ids"].tolist()
    for name in ("rois", "scores", "mask_ious", "mask_scores"):
        np.testing.assert_allclose(
            one[name], other[name], rtol=10 * tolerance, atol=tolerance * (100 if name == "rois" else 10)
        )
    assert (one["masks"] != other["masks"]).mean() < 1e-3


############################################################
#  detect
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_result_is_what_the_contract_says(dialect, device):
    model = tiny_model(DIALECT=dialect).to(device)
    image = random_image(70, 110)
    (result,) = model.detect([image])
    count = len(result["rois"])
    assert 0 < count <= 20
    kinds = {"rois": np.float32, "class_ids": np.int32, "scores": np.float32, "mask_ious": np.float32}
    assert {name: result[name].dtype.type for name in kinds} == kinds
    assert result["rois"].shape == (count, 4)
    assert result["masks"].shape == (70, 110, count)
    assert result["masks"].dtype == bool
    assert result["mask_scores"].dtype == np.float32
    if dialect != "benchmark":  # whose "+1" boxes of less than a pixel turn over when they are enlarged
        assert (result["rois"][:, 2:] >= result["rois"][:, :2]).all()
    assert result["rois"].min() >= -1
    assert (result["rois"][:, 2:] <= np.array([72, 112])).all()
    assert ((result["class_ids"] >= 1) & (result["class_ids"] <= 3)).all()
    assert np.all(np.diff(result["scores"]) <= 0), "best first"
    np.testing.assert_allclose(result["mask_scores"], result["scores"] * result["mask_ious"].clip(0, 1), rtol=1e-6)
    for i, (y1, x1, y2, x2) in enumerate(result["rois"]):
        y, x = np.nonzero(result["masks"][..., i])
        if len(y):
            assert y.min() >= y1 - 3
            assert y.max() <= y2 + 3
            assert x.min() >= x1 - 3
            assert x.max() <= x2 + 3


def test_without_maskiou_head_the_mask_score_is_the_class_score():
    (result,) = tiny_model(USE_MASKIOU_HEAD=False).detect([random_image(64, 64)])
    assert result["mask_ious"] is None
    assert result["mask_scores"].tolist() == result["scores"].tolist()
    assert len(result["scores"]) > 0


def test_a_batch_gives_what_each_image_gives_alone(model):
    """Different images, and different sizes that are padded alike (64 x 96); more than IMAGES_PER_GPU of them."""
    images = [random_image(64, width, seed) for seed, width in enumerate((96, 90, 80, 96, 65))]
    images.append(random_image(50, 70, 9))
    together = model.detect(images)
    assert [result["masks"].shape[:2] for result in together] == [image.shape[:2] for image in images]
    for image, result in zip(images, together, strict=True):
        assert_same(result, model.detect([image])[0])
    tops = {tuple(result["rois"][0].round(2)) for result in together}
    assert len(tops) == len(images), "images differ in what is found"


def test_a_batch_of_equal_padding_in_every_dialect():
    for dialect in DIALECTS:
        model = tiny_model(DIALECT=dialect, IMAGES_PER_GPU=3)
        images = [random_image(60, 100, seed) for seed in range(3)]
        for image, result in zip(images, model.detect(images), strict=True):
            (alone,) = model.detect([image])  # in any order: uniform padding makes ties, which rounding decides
            near = np.abs(result["rois"][:, None] - alone["rois"][None]).max(-1) < 0.1
            near &= np.abs(result["scores"][:, None] - alone["scores"][None]) < 1e-3
            near &= result["class_ids"][:, None] == alone["class_ids"][None]
            assert near.any(axis=1).mean() >= 0.95


def test_many_images_in_one_call(model):
    images = [random_image(20 + i % 7, 30 + i % 5, i) for i in range(100)]
    results = model.detect(images)
    assert len(results) == 100
    assert all(result["masks"].shape[:2] == image.shape[:2] for result, image in zip(results, images, strict=True))
    assert model.detect([]) == []


def assert_identical(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name]) if isinstance(value, np.ndarray) else pytest.fail(name)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_give_what_detect_gives(device):
    """To the bit and in order: batches of several shapes, larger than IMAGES_PER_GPU, of one image and of none."""
    model = tiny_model(IMAGES_PER_GPU=2).to(device)
    images = [random_image(40 + 9 * (i % 3), 60, i) for i in range(9)]
    batches = [images[:5], [], images[5:6], images[6:]]
    for dtype, masks in (("float32", "array"), ("bfloat16", "rle")):
        actual = list(model.detect_batches(batches, dtype, masks))
        assert [len(results) for results in actual] == [5, 0, 1, 3]
        for batch, results in zip(batches, actual, strict=True):
            for one, other in zip(results, model.detect(batch, dtype=dtype, masks=masks), strict=True):
                if masks == "rle":
                    assert one.pop("masks") == other.pop("masks")
                assert_identical(one, other)
    assert all(seconds > 0 for seconds in model.seconds.values())


def test_batches_are_taken_a_little_ahead(model):
    """Not the whole iterator at once, which may be a video without an end; and none once nobody asks any more."""
    taken = []

    def frames():
        while True:
            taken.append(len(taken))
            yield [random_image(40, 60, len(taken))]

    results = model.detect_batches(frames())
    for _ in range(4):
        next(results)
    assert 4 <= len(taken) <= 12
    results.close()
    at_the_end = len(taken)
    time.sleep(0.05)
    assert len(taken) == at_the_end


def test_an_error_of_the_batches_comes_when_its_batch_is_due(model):
    def batches():
        yield [random_image(40, 60)]
        raise FileNotFoundError("frame 2")

    results = model.detect_batches(batches())
    assert len(next(results)) == 1
    with pytest.raises(FileNotFoundError, match="frame 2"):
        next(results)
    with pytest.raises(ValueError, match=r"images\[1\] must be a NumPy array"):
        list(model.detect_batches([[random_image(40, 60), 3]]))
    with pytest.raises(ValueError, match="dtype must be one of"):
        list(model.detect_batches([], dtype="float64"))
    with pytest.raises(ValueError, match="masks must be"):
        list(model.detect_batches([], masks="polygons"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (80, 3200), (3200, 80), (3, 2000)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_extreme_shapes(shape, dialect):
    model = tiny_model(DIALECT=dialect)
    (result,) = model.detect([random_image(*shape)])
    assert result["masks"].shape[:2] == shape
    assert np.isfinite(result["rois"]).all()
    assert np.isfinite(result["scores"]).all()


@pytest.mark.parametrize("mode", ["shorter", "square", "pad64", "none"])
def test_resize_modes(mode):
    model = tiny_model(IMAGE_RESIZE_MODE=mode)
    for shape in ((50, 70), (33, 127)):
        (result,) = model.detect([random_image(*shape)])
        assert result["masks"].shape[:2] == shape
        assert (result["rois"] >= -1).all()
        assert (result["rois"] <= np.array([*shape, *shape]) + 1).all()
    with pytest.raises(ValueError, match="'crop' takes random crops"):
        tiny_model(IMAGE_RESIZE_MODE="crop").detect([random_image(200, 200)])


@pytest.mark.parametrize("masks", ["array", "rle"])
def test_no_detections(masks):
    model = tiny_model(DETECTION_MIN_CONFIDENCE=1.0)
    nothing, other = model.detect([random_image(40, 60), random_image(30, 30)], masks=masks)
    assert nothing["rois"].shape == (0, 4)
    assert other["rois"].shape == (0, 4)
    for name in ("class_ids", "scores", "mask_ious", "mask_scores"):
        assert nothing[name].shape == (0,)
    if masks == "array":
        assert nothing["masks"].shape == (40, 60, 0)
        assert nothing["masks"].dtype == bool
    else:
        assert nothing["masks"] == []


@pytest.mark.parametrize(("dialect", "kept"), [("matterport", [0.8]), ("mmdet", [0.9, 0.8])])
def test_matterport_drops_what_rounding_leaves_nothing_of(dialect, kept):
    model = tiny_model(DIALECT=dialect)
    boxes = shrink(torch.tensor([[10.0, 5, 10, 30], [5, 5, 20, 20]]), model.config)
    detections = Detections(
        boxes, torch.zeros(2).long(), torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), torch.ones(2, 28, 28)
    )
    result = model.to_result(detections, (0, 0, 40, 40), (40, 40))
    assert result["scores"].tolist() == pytest.approx(kept)
    assert result["class_ids"][-1] == 2
    assert result["masks"].shape == (40, 40, len(kept))
    assert result["masks"][10, 10, -1]


def test_no_proposals():
    """Deltas that are not a number leave no proposal, and so no RoI, at all."""
    model = tiny_model()
    torch.nn.init.constant_(model.rpn.deltas.bias, float("nan"))
    (result,) = model.detect([random_image(40, 60)])
    assert result["masks"].shape == (40, 60, 0)
    assert result["rois"].shape == (0, 4)


def test_one_image_of_a_batch_without_detections(model):
    """The second image's scores lie under the threshold, the first one's above."""
    first, second = random_image(64, 64, 0), np.zeros((64, 64, 3), np.uint8)
    scores = [result["scores"].max() for result in model.detect([first, second])]
    config = model.config
    before, config.DETECTION_MIN_CONFIDENCE = config.DETECTION_MIN_CONFIDENCE, float(sum(scores) / 2)
    try:
        counts = [len(result["scores"]) for result in model.detect([first, second])]
    finally:
        config.DETECTION_MIN_CONFIDENCE = before
    assert min(counts) == 0
    assert max(counts) > 0


def test_rle_is_the_array(model):
    image = random_image(70, 110)
    (arrays,), (rles,) = model.detect([image]), model.detect([image], masks="rle")
    assert (utils.rle_to_mask(rles["masks"]) == arrays["masks"]).all()
    assert rles["rois"].tolist() == arrays["rois"].tolist()


@pytest.mark.parametrize("masks", ["array", "rle"])
def test_boxes_may_be_those_of_the_masks(masks):
    images = [random_image(70, 110), random_image(40, 50)]
    plain = tiny_model().detect(images, masks=masks)
    for result, other in zip(tiny_model(BOXES_OF_MASKS=True).detect(images, masks=masks), plain, strict=True):
        assert not np.array_equal(result["rois"], other["rois"])
        assert result["rois"].dtype == np.float32
        assert result["rois"].tolist() == utils.boxes_of_masks(other["masks"], other["rois"]).tolist()
        for name in ("class_ids", "scores", "mask_ious", "mask_scores"):
            assert result[name].tolist() == other[name].tolist()


def test_gray_alpha_and_deep_images_are_converted(model):
    rgb = random_image(50, 70)
    expected = model.detect([rgb])[0]
    alpha = np.concatenate([rgb, random_image(50, 70, 1)[..., :1]], axis=2)
    assert_same(model.detect([alpha])[0], expected, 0)
    gray = np.repeat(rgb[..., :1], 3, axis=2)
    assert_same(model.detect([rgb[..., 0]])[0], model.detect([gray])[0], 0)
    assert_same(model.detect([rgb.astype(np.uint16) * 257])[0], expected, 0)


def test_images_are_not_changed(model):
    image = random_image(64, 128)  # needs no resizing
    before = image.copy()
    model.detect([image])
    assert (image == before).all()
    image.flags.writeable = False
    assert_same(model.detect([image])[0], model.detect([before])[0], 0)
    flipped, turned = before[::-1, ::-1], np.rot90(before, 2)  # views with steps of -1
    expected = model.detect([flipped.copy()])[0]
    assert_same(model.detect([flipped])[0], expected, 0)
    assert_same(model.detect([turned])[0], expected, 0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_image(8, 8), r"one ndarray: detect\(\[image\]\)"),
        ("photo.jpg", "must be a list of images, not one str"),
        (None, "must be a list of images, not NoneType"),
        (Path("photo.jpg"), "must be a list of images, not one PosixPath"),
        (Image.new("RGB", (8, 8)), r"must be a list of images, not one Image: detect\(\[image\]\)"),
        ([torch.zeros(3, 8, 9)], r"images\[0\] must be .*, got a Tensor \[3, 8, 9\]; image\.permute\(1, 2, 0\)\.cpu"),
        ([torch.zeros(8, 9, 3)], r"images\[0\] .*, got a Tensor \[8, 9, 3\]; image\.cpu\(\)\.numpy\(\)"),
        ([[random_image(8, 8)]], r"images\[0\] must be .*a PIL image or a path, got list"),
        ([b"photo.jpg"], r"images\[0\] .*, got bytes"),
        ([random_image(8, 8), np.zeros((3, 64, 64), np.uint8)], r"images\[1\]"),
        ([np.zeros((8, 8, 2), np.uint8)], r"images\[0\]"),
        ([np.zeros((0, 8, 3), np.uint8)], r"images\[0\]"),
        ([np.full((8, 8, 3), -3)], r"images\[0\]"),
    ],
)
def test_what_is_not_a_list_of_images(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.detect(images)


def test_images_of_pillow_and_paths(model, tmp_path):
    """They give what their pixels give. Pillow's images are not turned: what is found lies in the user's own pixels."""
    image = random_image(50, 80)
    picture = Image.fromarray(image)
    picture.getexif()[0x0112] = 6  # "turn it"
    exif = picture.getexif()
    picture.save(tmp_path / "a.png", exif=exif)
    expected = model.detect([image])[0]
    assert_identical(model.detect([picture])[0], expected)
    turned = utils.read_image(tmp_path / "a.png")
    assert turned.shape == (80, 50, 3)
    for path in (str(tmp_path / "a.png"), tmp_path / "a.png"):
        assert_identical(model.detect([path])[0], model.detect([turned])[0])
    assert_identical(next(model.detect_batches([[tmp_path / "a.png", picture]], masks="array"))[1], expected)
    assert (look_inside(model, picture).result["rois"] == expected["rois"]).all()
    with pytest.raises(FileNotFoundError, match=r"image .*b\.png: there is no such file"):
        model.detect([tmp_path / "b.png"])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "LA", "I", "I;16"])
def test_images_of_pillow_in_every_mode(mode, tmp_path):
    """Each has the pixels that utils.read_image gives it where a file format has the mode."""
    image = random_image(12, 16)
    gray = Image.fromarray(image[..., 0].astype(np.uint16) * 257) if mode in ("I", "I;16") else None
    picture = Image.fromarray(image).convert(mode) if gray is None else gray.convert(mode)
    array = image_array(picture, 3, "images[0]")
    assert array.shape == (12, 16, 3)
    assert array.dtype == np.uint8
    if mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA", "LAB"):
        path = tmp_path / ("a.tif" if mode in ("CMYK", "LAB") else "a.png")
        picture.save(path)
        assert (array == utils.read_image(path)).all()


def test_images_of_pillow_that_are_not_understood():
    deep = Image.fromarray(np.full((4, 4), 70000, np.int32))
    with pytest.raises(ValueError, match=r"images\[0\] must be uint8.*int32"):
        image_array(deep, 3, "images[0]")
    with pytest.raises(ValueError, match=r"images\[0\] is floating and must lie in \[0, 1\]"):
        image_array(Image.fromarray(np.full((4, 4), 3, np.float32)), 3, "images[0]")
    with pytest.raises(ValueError, match=r"images\[2\] must be a NumPy array \[H, W, 5\] or a path, got Image"):
        image_array(Image.new("RGB", (4, 4)), 5, "images[2]")
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: there is no such file"):
        image_array("a.jpg", 5, "images[2]")


def test_unknown_options(model):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, not 'float16'"):
        model.detect([random_image(8, 8)], dtype="float16")
    with pytest.raises(ValueError, match="masks must be 'array' or 'rle'"):
        model.detect([random_image(8, 8)], masks="polygons")


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_close_to_float32(device):
    model = tiny_model(USE_MASKIOU_HEAD=True).to(device)
    image = random_image(64, 96)
    (exact,), (fast,) = model.detect([image]), model.detect([image], dtype="bfloat16")
    assert fast["rois"].dtype == fast["scores"].dtype == np.float32
    distance = np.abs(exact["rois"][:, None] - fast["rois"][None]).max(-1)
    same = exact["class_ids"][:, None] == fast["class_ids"][None]
    near = (distance < 3) & same
    assert near.any(axis=1).mean() > 0.7
    assert_same(model.detect([image])[0], exact, 0)


def test_verbose_and_seconds(model, capsys):
    model.detect([random_image(64, 96)], verbose=1)
    assert "resized" in capsys.readouterr().out
    assert set(model.seconds) == {"resize", "network", "masks"}
    assert all(seconds > 0 for seconds in model.seconds.values())


def test_channels_that_are_not_colours():
    model = tiny_model(IMAGE_CHANNEL_COUNT=5, MEAN_PIXEL=(1,) * 5, STD_PIXEL=(50,) * 5)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 5), dtype=np.uint8)
    (result,) = model.detect([image])
    assert len(result["scores"]) > 0
    with pytest.raises(ValueError, match=r"images\[0\] must be an array \[H, W, 5\]"):
        model.detect([random_image(8, 8)])


############################################################
#  Prepared weights
############################################################


def is_other(result: dict, before: dict) -> bool:
    return result["scores"].tolist() != before["scores"].tolist()


def double_in_place(model: MaskRCNN) -> None:
    with torch.no_grad():
        model.box_head.fcs[0].weight.mul_(2)


def double_through_data(model: MaskRCNN) -> None:
    model.backbone.stem.norm.weight.data.mul_(2)


def update(model: MaskRCNN) -> None:
    """As training does, by the fused optimiser, which does not count changes for torch."""
    optimizer = make_optimizer(model, TinyConfig(OPTIMIZER="adamw", LEARNING_RATE=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("change", [double_in_place, double_through_data, update])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_seen_by_the_next_call(change, dtype):
    model, image = tiny_model(), random_image(64, 96)
    (before,) = model.detect([image], dtype=dtype)
    change(model)
    (after,) = model.detect([image], dtype=dtype)
    assert is_other(after, before)
    again = tiny_model()
    again.load_state_dict(model.state_dict())
    assert_identical(again.detect([image], dtype=dtype)[0], after)


def test_inside_a_block_changes_are_seen_after_it():
    """And by calls in the other dtype, of which the block prepared nothing."""
    model, image = tiny_model(), random_image(64, 96)
    before, before16 = (model.detect([image], dtype=dtype)[0] for dtype in ("float32", "bfloat16"))
    with model.prepared():
        double_through_data(model)
        assert_identical(model.detect([image])[0], before)
        assert_identical(next(model.detect_batches([[image]], masks="array"))[0], before)
        assert is_other(model.detect([image], dtype="bfloat16")[0], before16)
    assert is_other(model.detect([image])[0], before)


def test_batches_that_wait_keep_their_weights_to_themselves():
    model, image = tiny_model(), random_image(64, 96)
    (before,) = model.detect([image])
    waiting = model.detect_batches([[image]] * 9, masks="array")
    next(waiting)
    double_through_data(model)
    assert is_other(model.detect([image])[0], before)
    for (result,) in waiting:
        assert_identical(result, before)


def count_preparations(model: MaskRCNN, monkeypatch) -> list[torch.dtype]:
    """A list that grows by a dtype whenever the weights of the stem are prepared."""
    dtypes, prepare = [], model.backbone.stem._prepare
    monkeypatch.setattr(model.backbone.stem, "_prepare", lambda dtype: dtypes.append(dtype) or prepare(dtype))
    return dtypes


def test_weights_are_prepared_once_a_block_and_once_a_call(monkeypatch):
    model, images = tiny_model(IMAGES_PER_GPU=1), [random_image(64, 96, seed) for seed in range(3)]
    prepared = count_preparations(model, monkeypatch)
    model.detect(images)
    assert prepared == [torch.float32]
    list(model.detect_batches([images, images], dtype="bfloat16"))
    assert prepared == [torch.float32, torch.bfloat16]
    with model.prepared("bfloat16"), model.prepared(), model.prepared("bfloat16"):
        del prepared[:]
        for image in images:
            model.detect([image], dtype="bfloat16")
            model.detect([image])
    assert prepared == []
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert prepared == [torch.float32], "forward alone keeps nothing"


def test_every_layer_takes_its_prepared_weights(monkeypatch):
    """In bfloat16, too, where some layers compute in float32."""
    model = tiny_model()
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "_prepare")}
    for dtype in ("float32", "bfloat16"):
        with model.prepared(dtype), monkeypatch.context() as patch:
            for name, layer in layers.items():
                patch.setattr(layer, "_prepare", lambda _, name=name: pytest.fail(name))
            (result,) = model.detect([random_image(64, 96)], dtype=dtype)
            assert len(result["scores"]) > 0


def test_blocks_may_be_nested_and_end_in_any_order():
    model, image = tiny_model(), random_image(64, 96)
    (before,) = model.detect([image])
    first, second = model.prepared(), model.prepared()
    first.__enter__()
    second.__enter__()
    double_through_data(model)
    first.__exit__(None, None, None)
    assert_identical(model.detect([image])[0], before)
    second.__exit__(None, None, None)
    assert is_other(model.detect([image])[0], before)


def test_an_error_inside_a_block_leaves_nothing_behind():
    model, image = tiny_model(), random_image(64, 96)
    (before,) = model.detect([image])
    with pytest.raises(RuntimeError, match="stop"), model.prepared():
        raise RuntimeError("stop")
    results = model.detect_batches([[image]] * 9)  # nor do batches that nobody takes
    next(results)
    results.close()
    with pytest.raises(ValueError, match=r"images\[0\]"):
        model.detect([3])
    double_through_data(model)
    assert is_other(model.detect([image])[0], before)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, not 'float64'"):
        model.prepared("float64").__enter__()


def test_copies_and_pickles_are_models_of_their_own():
    model, image = tiny_model(), random_image(64, 96)
    with model.prepared():
        (before,) = model.detect([image])
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_identical(other.detect([image])[0], before)
            double_through_data(other)
            assert is_other(other.detect([image])[0], before)


def test_training_computes_its_weights_itself():
    """Even inside a block, gradients reach every parameter that detection has prepared."""
    model = tiny_model().train()
    with model.prepared():
        model.detect([random_image(64, 96)])
        model.rpn(model.fpn(model.backbone(torch.randn(1, 3, 64, 64))))[0][0].sum().backward()
    assert model.backbone.stem.weight.grad.abs().sum() > 0
    assert model.rpn.objectness.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
def test_threads_may_share_a_model(device):
    """Two in each dtype, at once, with images of other sizes: each gets what it gets alone."""
    model = tiny_model().to(device)
    images = [[random_image(40 + 16 * thread, 60 + 8 * i, i) for i in range(6)] for thread in range(4)]
    dtypes = ["float32", "bfloat16"] * 2
    expected = [
        [model.detect([image], dtype=dtype)[0] for image in own] for own, dtype in zip(images, dtypes, strict=True)
    ]
    start = threading.Barrier(4)

    def detect(own: list[np.ndarray], dtype: str, method: str) -> list[dict]:
        start.wait()
        if method == "block":
            with model.prepared(dtype):
                return [model.detect([image], dtype=dtype)[0] for image in own]
        if method == "batches":
            return [result for batch in model.detect_batches([[i] for i in own], dtype, "array") for result in batch]
        return [model.detect([image], dtype=dtype)[0] for image in own]

    with ThreadPoolExecutor(4) as pool:
        for methods in (["calls"] * 4, ["block", "block", "calls", "batches"]):
            for results, alone in zip(pool.map(detect, images, dtypes, methods), expected, strict=True):
                for one, other in zip(results, alone, strict=True):
                    assert_identical(one, other) if device == "cpu" else assert_same(one, other, 1e-3)
    assert set(model.seconds) == {"resize", "network", "masks"}
    assert all(seconds > 0 for seconds in model.seconds.values()), "whole, whichever call ended last"


############################################################
#  forward and Matterport's ways in
############################################################


def test_forward_shows_what_lies_between(model):
    out = {}
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = model(pixels, out=out)
    levels = {f"backbone/c{i}" for i in range(2, 6)} | {f"fpn/p{i}" for i in range(2, 7)}
    assert levels | {
        *("anchors", "rpn/objectness_logits", "rpn/anchor_deltas", "proposals", "proposal_scores", "batch_index"),
        *(
            "box/rois",
            "box/features",
            "box/class_logits",
            "box/box_deltas",
            "mask/features",
            "mask/logits",
            "maskiou/maskious",
        ),
    } == set(out)
    assert [len(level) for level in out["anchors"]] == [3 * 16 * 24, 3 * 8 * 12, 3 * 4 * 6, 3 * 2 * 3, 3 * 1 * 2]
    assert out["mask/logits"] is found.mask_logits
    assert sorted(set(found.batch_index.tolist())) == [0, 1]
    assert out["box/class_logits"].shape == (len(out["proposals"]), 4)
    windows = torch.tensor([[0.0, 0, 64, 96]] * 2)
    with torch.no_grad():
        again = model(Images(pixels, windows))
    assert torch.equal(again.boxes, found.boxes)
    wide = torch.zeros(1, 3, 32, 1066, dtype=torch.bfloat16)
    assert model._check_images(wide).windows.tolist() == [[0, 0, 32, 1066]], "bfloat16 has no 1066"


def test_predict_is_forward_without_gradients(model):
    images, out = Images(torch.randn(1, 3, 64, 96), torch.tensor([[0.0, 0, 64, 96]])), {}
    predicted, expected = model.predict(images, out), model(images)
    assert expected.mask_logits.requires_grad
    assert not any(column.requires_grad for column in (predicted.boxes, predicted.mask_logits, out["fpn/p2"]))
    for name in ("boxes", "class_ids", "scores", "maskious"):
        assert torch.allclose(getattr(predicted, name), getattr(expected, name), rtol=1e-4, atol=1e-3), name


def test_forward_refuses_other_shapes(model):
    with pytest.raises(ValueError, match="channels last"):
        model(torch.zeros(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"targets must be model\.Targets or None, not dict"):
        model(torch.zeros(1, 3, 64, 64), targets={})


def test_molded_inputs_give_the_same(model):
    images = [random_image(64, 96, 0), random_image(64, 90, 1)]
    molded, metas, windows = model.mold_inputs(images)
    assert molded.shape == (2, 64, 96, 3)
    assert metas.shape == (2, 12 + 4)
    assert windows.tolist() == [[0, 0, 64, 96], [0, 0, 64, 90]]
    for one, other in zip(model.detect_molded(molded, metas), model.detect(images), strict=True):
        assert_same(one, other, 0)
    with pytest.raises(ValueError, match="a batch has one"):
        model.mold_inputs([random_image(64, 96), random_image(96, 64)])
    with pytest.raises(ValueError, match="molded_images and image_metas differ"):
        model.detect_molded(molded, metas[:1])


def test_get_anchors(model):
    anchors = model.get_anchors((64, 96, 3))
    assert anchors.shape == (3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2), 4)
    assert anchors.dtype == np.float32
    np.testing.assert_allclose(anchors[1], [-16, -16, 16, 16])


def test_modes_and_train():
    assert MaskRCNN(mode="inference", config=TinyConfig(), model_dir="x").model_dir == Path("x")
    with pytest.raises(ValueError, match=r"arguments are \(config, model_dir\)"):
        MaskRCNN(TinyConfig(), "x", "inferrence")
    model = MaskRCNN(TinyConfig())
    assert model.train() is model
    assert model.training
    assert not model.eval().training
    with pytest.raises(TypeError, match="train_model"):
        model.train(object())


def test_own_backbone(tmp_path):
    class Stub(torch.nn.Module):
        channels = (4, 4, 4, 4)

        def __init__(self, config):
            super().__init__()
            self.convs = torch.nn.ModuleList(Conv(3, 4, 3) for _ in range(4))

        def forward(self, pixels):
            return [
                conv(torch.nn.functional.avg_pool2d(pixels, stride))
                for conv, stride in zip(self.convs, (4, 8, 16, 32), strict=True)
            ]

    model = tiny_model(BACKBONE=Stub)
    (result,) = model.detect([random_image(64, 96)])
    assert result["masks"].shape[:2] == (64, 96)
    model.save(tmp_path / "stub.pth")
    again = MaskRCNN.from_checkpoint(tmp_path / "stub.pth", device="cpu", BACKBONE=Stub)
    assert_same(again.detect([random_image(64, 96)])[0], result, 0)
    with pytest.raises(ValueError, match="give the callable again"):
        MaskRCNN.from_checkpoint(tmp_path / "stub.pth")


############################################################
#  Weights
############################################################


@pytest.fixture
def saved(model, tmp_path) -> Path:
    path = tmp_path / "weights.pth"
    model.save(path)
    return path


def test_round_trip(model, saved):
    contents = torch.load(saved, weights_only=True)
    assert set(contents) == {
        *("format", "version", "config", "dialect", "class_names", "category_ids", "source", "model"),
    }
    assert contents["class_names"] == ["BG", "cat", "dog", "cow"]
    json.dumps(contents["config"])
    again = MaskRCNN.from_checkpoint(saved, device="cpu", DETECTION_MAX_INSTANCES=3)
    assert again.class_names == model.class_names
    assert not again.training
    image = random_image(64, 96)
    (expected,), (result,) = model.detect([image]), again.detect([image])
    assert len(result["scores"]) == 3
    np.testing.assert_array_equal(result["rois"], expected["rois"][:3])
    assert [path.name for path in saved.parent.iterdir()] == ["weights.pth"], "no temporary file remains"


def test_from_checkpoint_refuses_unknown_settings(saved):
    with pytest.raises(ValueError, match="did you mean DETECTION_MAX_INSTANCES"):
        MaskRCNN.from_checkpoint(saved, DETECTION_MAX_INSTANCE=3)


def damaged(path: Path, change) -> Path:
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)
    return path


NAME = "rpn.objectness.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop(NAME), "missing: rpn.objectness.weight"),
        (lambda c: c["model"].update(extra=torch.zeros(1)), "not of this model: extra"),
        (
            lambda c: c["model"].update({NAME: torch.zeros(3, 8, 1, 1)}),
            r"weight is \[3, 8, 1, 1\], the model's",
        ),
        (lambda c: c["model"][NAME].fill_(float("nan")), r"rpn.objectness.weight has \d+ of \d+ values that are NaN"),
        (lambda c: c["model"].update({NAME: [1.0]}), "rpn.objectness.weight is a list, not a tensor"),
        (lambda c: c.update(version=99), "version 99"),
        (lambda c: c.update(format="other"), "not a checkpoint of this project"),
        (lambda c: c.pop("class_names"), "lacks class_names"),
        (lambda c: c["config"].update(NEW_NAME=1), "NEW_NAME is not a setting"),
    ],
)
def test_damaged_checkpoints_are_refused_whole(saved, change, message):
    model = tiny_model(seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    damaged(saved, change)
    with pytest.raises(ValueError, match=message):
        MaskRCNN.from_checkpoint(saved, device="cpu")
    message = message.replace("not a checkpoint of this project", "a bare state dict of this project")
    with pytest.raises(ValueError, match=message):
        model.load_weights(saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "nothing was loaded"


def test_files_that_are_no_checkpoints(tmp_path, saved):
    model = tiny_model()
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        model.load_weights(tmp_path / "missing.pth")
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(ValueError, match=r"page\.pth is a web page"):
        model.load_weights(page)
    half = tmp_path / "half.pth"
    half.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.pth"):
        model.load_weights(half)


def test_weights_made_for_other_settings_are_refused(saved):
    for overrides in ({"DIALECT": "torchvision"}, {"MEAN_PIXEL": (0.0, 0, 0)}, {"RPN_ANCHOR_RATIOS": (2, 1, 0.5)}):
        (name,) = overrides
        with pytest.raises(ValueError, match=f"set {'MEAN_PIXEL|DIALECT' if name == 'DIALECT' else name}"):
            tiny_model(**overrides).load_weights(saved)


def test_by_name_takes_what_fits(saved, capsys):
    model = tiny_model(seed=3, NUM_CLASSES=2, CLASS_NAMES=("BG", "dog"))
    with pytest.raises(ValueError, match="nothing was loaded"):
        model.load_weights(saved)
    own = model.box_head.class_logits.weight.clone()
    model.load_weights(saved, by_name=True)
    stored = torch.load(saved, weights_only=True)["model"]
    assert not torch.equal(model.box_head.class_logits.weight, own)  # initialised anew
    assert torch.equal(model.fpn.lateral[0].weight, stored["fpn.lateral.0.weight"])
    printed = capsys.readouterr().out
    assert f"of the model's {len(stored)} tensors" in printed
    assert "of another shape, initialised anew: box_head.class_logits.weight" in printed
    assert "not used: box_head.class_logits.weight" in printed


def test_exclude_takes_matterports_names(saved):
    model = tiny_model(seed=3)
    stored = torch.load(saved, weights_only=True)["model"]
    own = model.mask_head.mask_logits.weight.clone()
    model.load_weights(saved, exclude=["mrcnn_mask", "box_head.class_logits"])
    assert torch.equal(model.mask_head.mask_logits.weight, own)
    assert not torch.equal(model.box_head.class_logits.weight, stored["box_head.class_logits.weight"])
    assert torch.equal(model.box_head.box_deltas.weight, stored["box_head.box_deltas.weight"])
    with pytest.raises(ValueError, match="there is no layer 'mrcnn_masks'"):
        model.load_weights(saved, exclude=["mrcnn_masks"])


def test_rows_of_classes_of_the_same_name_are_copied(saved):
    model = tiny_model(seed=3, NUM_CLASSES=3, CLASS_NAMES=("BG", "horse", "cat"))
    own = model.state_dict()["box_head.box_deltas.weight"].clone()
    model.load_weights(saved, copy_classes=True)
    stored = torch.load(saved, weights_only=True)["model"]
    for layer in ("box_head.class_logits", "mask_head.mask_logits", "maskiou_head.maskious"):
        for part in ("weight", "bias"):
            mine, theirs = model.state_dict()[f"{layer}.{part}"], stored[f"{layer}.{part}"]
            assert torch.equal(mine[0], theirs[0]), "background"
            assert torch.equal(mine[2], theirs[1]), "cat"
    deltas, theirs = model.state_dict()["box_head.box_deltas.weight"], stored["box_head.box_deltas.weight"]
    assert torch.equal(deltas[8:12], theirs[4:8])
    assert torch.equal(deltas[4:8], own[4:8]), "horse is new"


def test_too_little_that_fits_is_refused(saved):
    model = tiny_model(BACKBONE_WIDTH=0.25, TOP_DOWN_PYRAMID_SIZE=24)
    with pytest.raises(ValueError, match=r"only \d+ of the \d+ tensors of"):
        model.load_weights(saved, by_name=True)


def test_find_last(tmp_path):
    model = MaskRCNN(TinyConfig(), tmp_path / "logs")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        model.find_last()
    for folder, files in {
        "tiny20260101T0900": ["mask_rcnn_tiny_0009.pth", "mask_rcnn_tiny_10000.pth", "mask_rcnn_tiny_9999.pth"],
        "tiny20260102T0900": ["events.log"],
        "other20270101T0900": ["mask_rcnn_other_0001.pth"],
        "tinyother20270101T0900": ["mask_rcnn_tiny_0001.pth"],
    }.items():
        (tmp_path / "logs" / folder).mkdir(parents=True)
        for file in files:
            (tmp_path / "logs" / folder / file).touch()
    assert model.find_last() == str(tmp_path / "logs" / "tiny20260101T0900" / "mask_rcnn_tiny_10000.pth")


def test_untrained_weights_are_finite_and_repeatable():
    torch.manual_seed(0)
    one = MaskRCNN(TinyConfig(BACKBONE="resnet50"))
    torch.manual_seed(0)
    two = MaskRCNN(TinyConfig(BACKBONE="resnet50"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    out = {}
    with torch.no_grad():
        one(torch.randn(1, 3, 64, 64), out=out)
    assert out["fpn/p2"].abs().max() < 1e3
    assert out["rpn/objectness_logits"][0].abs().max() < 5
    norms = [module for module in one.modules() if isinstance(module, BatchNorm)]
    assert all((norm.running_var == 1).all() for norm in norms)


############################################################
#  Real files
############################################################


def edge_images() -> list:
    manifest = EDGE_IMAGES / "manifest.json"
    if not manifest.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{EDGE_IMAGES} is absent"))]
    return [pytest.param(entry, id=entry["file"]) for entry in json.loads(manifest.read_text())["files"]]


@pytest.mark.parametrize("entry", edge_images())
def test_edge_images(model, entry):
    path = EDGE_IMAGES / entry["file"]
    if entry["expect"] == "error":
        with pytest.raises(ValueError, match=entry["file"]):
            utils.read_image(path)
        return
    image = utils.read_image(path)
    width, height = entry["size_after_exif_transpose"]
    assert image.shape == (height, width, 3)
    (result,) = model.detect([image])
    assert result["masks"].shape[:2] == (height, width)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_second_look_of_the_box_head(dialect):
    """By hand: the RoIs as they were refined for their best class, and the mean of the probabilities of both looks."""
    model = tiny_model(DIALECT=dialect, BOX_HEAD_LOOKS=2)
    config, out = model.config, {}
    images = Images(torch.rand(2, 3, 64, 96) * 255, torch.tensor([[0.0, 0, 64, 96], [0, 0, 60, 90]]))
    calls = []
    with patch.object(type(model.box_head), "forward", autospec=True, side_effect=type(model.box_head).forward) as head:
        found = model.predict(images, out)
        calls = head.call_args_list
    assert len(calls) == 2
    once = tiny_model(DIALECT=dialect)
    before = {}
    once.predict(images, before)
    rois, image = before["proposals"], before["batch_index"]
    assert torch.equal(out["proposals"], rois)
    best = before["box/class_logits"][:, 1:].argmax(dim=1) + 1
    deltas = before["box/box_deltas"][range(len(rois)), best]
    windows = shrink(images.windows, config)[image]
    moved = clip_to_windows(decode_boxes(rois, deltas, config.BBOX_STD_DEV, config), windows, config)
    has_area = (moved[:, 2:] > moved[:, :2]).all(dim=1)
    assert torch.equal(out["box/rois"][has_area], moved[has_area])
    assert torch.equal(out["box/rois"][~has_area], rois[~has_area])
    with torch.no_grad():
        pyramid = [out[f"fpn/p{level}"] for level in range(2, 7)]
        logits, deltas = once._classify(pyramid, out["box/rois"], image, (64, 96), {})
    mean = (before["box/class_logits"].softmax(dim=1) + logits.softmax(dim=1)) / 2
    torch.testing.assert_close(out["box/class_logits"].softmax(dim=1), mean)
    torch.testing.assert_close(out["box/box_deltas"], deltas)
    assert len(found)
    assert not torch.equal(found.boxes, once.predict(images).boxes)


def test_looks_are_averaged():
    logits = [torch.randn(5, 3) * 9 for _ in range(3)]
    mean = logits[0]
    for number, each in enumerate(logits[1:], start=2):
        mean = mean_logits(mean, each, number)
    expected = sum(each.softmax(dim=1) for each in logits) / 3
    torch.testing.assert_close(mean.softmax(dim=1), expected)


def test_a_model_without_classes_looks_twice():
    assert (
        len(tiny_model(NUM_CLASSES=1, CLASS_NAMES=None, BOX_HEAD_LOOKS=2).detect([random_image(64, 64)])[0]["rois"])
        == 0
    )

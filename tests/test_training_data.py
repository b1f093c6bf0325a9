"""From a Dataset to batches: what is in a sample, in which order, whoever makes it."""

import json
import logging
import math
import pickle
import random
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import runtime
import utils
from config import REFERENCE_TRAINING, Config
from data.augment import jitter_color
from data.classes import UNKNOWN, ClassMapping
from data.dataset import Dataset, Instances, ObjectBoxes, check_instances
from data.loader import BatchOrder, make_loader, worker_count
from data.samples import Targets, TrainingData, collate, join_targets

SHARED = Path(__file__).parent.parent.parent / "shared"


class Drawn(Dataset):
    """Images and masks given as arrays, and optionally boxes; masks may be asked for as RLEs."""

    def __init__(self, images=(), classes=3, as_rles=False, errors=()):
        super().__init__()
        self.as_rles, self.errors = as_rles, set(errors)
        for class_id in range(1, classes):
            self.add_class("drawn", class_id, f"class {class_id}")
        for number, image in enumerate(images):
            self.add_image("drawn", f"a{number}", None, **image)
        self.prepare()

    def load_image(self, image_id):
        if image_id in self.errors:
            raise OSError("the disk is on fire")
        return self.image_info[image_id]["image"]

    def load_instances(self, image_id):
        info = self.image_info[image_id]
        masks = utils.mask_to_rle(info["masks"]) if self.as_rles else info["masks"]
        return Instances(info["class_ids"], masks, info.get("boxes"))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def drawn(height, width, count=0, seed=0, **more):
    """An image with rectangles of random pixels, in which one corner is filled."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((height, width, count), bool)
    for i in range(count):
        (y1, y2), (x1, x2) = np.sort(rng.integers(0, height, 2)), np.sort(rng.integers(0, width, 2))
        masks[y1:y2, x1:x2, i] = rng.random((y2 - y1, x2 - x1)) < 0.7
        masks[y1, x1, i] = True
    class_ids = rng.integers(1, 3, count).astype(np.int32)
    return {"image": picture(height, width, seed), "masks": masks, "class_ids": class_ids, **more}


def settings(**options) -> Config:
    options = {"IMAGE_MIN_DIM": 32, "IMAGE_MAX_DIM": 64, "HORIZONTAL_FLIP": 0.0, "GPU_COUNT": 0, **options}
    return Config(NUM_CLASSES=3, WORKERS=options.pop("WORKERS", 0), **options)


def as_it_is(**options) -> Config:
    return settings(IMAGE_RESIZE_MODE="none", **options)


def canvases(masks) -> np.ndarray:
    """bool [G, H, W]: the whole masks, all of one size; [] if there are none."""
    whole = []
    for offset, (h, w), (y, x), (height, width) in zip(*(field.tolist() for field in masks[1:]), strict=True):
        whole.append(np.zeros((height, width), bool))
        whole[-1][y : y + h, x : x + w] = masks.pixels[offset : offset + h * w].view(h, w).numpy()
    return np.array(whole)


def equal(value, other) -> bool:
    """Of samples, batches, and what they consist of."""
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(equal, value, other))
    return value == other


############################################################
#  A sample
############################################################


def an_l():
    """An image of 4 x 6 with an L, and a crowd of one pixel."""
    masks = np.zeros((4, 6, 2), bool)
    masks[1:4, 0, 0] = masks[3, 0:3, 0] = masks[0, 5, 1] = True
    return {"image": picture(4, 6), "masks": masks, "class_ids": np.array([2, -1], np.int32)}


def test_a_sample():
    dataset = Drawn([an_l()])
    sample = TrainingData(dataset, as_it_is()).sample(0, seed=5)
    assert sample.image.tolist() == dataset.load_image(0).tolist()
    assert sample.image.dtype == torch.uint8
    assert (sample.window, sample.shape) == ((0, 0, 4, 6), (4, 6))
    assert sample.targets.boxes.tolist() == [[1, 0, 4, 3]]
    assert sample.targets.class_ids.tolist() == [2]
    assert sample.targets.masks.pixels.tolist() == [1, 0, 0, 1, 0, 0, 1, 1, 1]
    assert [field.tolist() for field in sample.targets.masks[1:]] == [[0], [[3, 3]], [[1, 0]], [[4, 6]]]
    assert sample.targets.crowd_boxes.tolist() == [[0, 5, 1, 6]]
    assert (sample.image_id, sample.targets.seeds.tolist()) == (0, [5])
    assert [field.dtype for field in sample.targets.masks] == [torch.uint8, *[torch.int64] * 4]
    assert (sample.targets.boxes.dtype, sample.targets.class_ids.dtype) == (torch.float32, torch.int64)


def test_a_flipped_sample():
    dataset = Drawn([an_l()])
    sample = TrainingData(dataset, as_it_is(HORIZONTAL_FLIP=1.0)).sample(0)
    assert sample.image.tolist() == dataset.load_image(0)[:, ::-1].tolist()
    assert sample.targets.boxes.tolist() == [[1, 3, 4, 6]]
    assert sample.targets.masks.pixels.tolist() == [0, 0, 1, 0, 0, 1, 1, 1, 1]
    assert sample.targets.crowd_boxes.tolist() == [[0, 0, 1, 1]]


def test_without_augmentation():
    config = as_it_is(HORIZONTAL_FLIP=1.0, COLOR_JITTER=0.5, SCALE_JITTER=(0.5, 0.5), MULTI_SCALE=(8,))
    dataset = Drawn([an_l()])
    plain = TrainingData(dataset, as_it_is()).sample(0)
    assert equal(TrainingData(dataset, config, augmentation=None, augment=False).sample(0), plain)
    assert equal(TrainingData(dataset, config, no_augmentation_sources=["drawn"]).sample(0), plain)
    assert not equal(TrainingData(dataset, config, no_augmentation_sources=[]).sample(0), plain)


@pytest.mark.parametrize(
    ("sources", "message"),
    [("drawn", r"must be a list of sources, not a text: \['drawn'\]"), (["other"], "has 'other', .* are of 'drawn'")],
)
def test_sources_that_are_none(sources, message):
    with pytest.raises(ValueError, match=f"no_augmentation_sources {message}"):
        TrainingData(Drawn([an_l()]), as_it_is(), no_augmentation_sources=sources)


@st.composite
def cases(draw):
    mode = draw(st.sampled_from(utils.RESIZE_MODES))
    options = {
        "IMAGE_RESIZE_MODE": mode,
        "DIALECT": draw(st.sampled_from(["mmdet", "matterport", "benchmark"])),
        "IMAGE_MIN_DIM": 64,
        "IMAGE_MAX_DIM": 128,
        "SCALE_JITTER": draw(st.sampled_from([None, (0.3, 2.5)])),
        "MULTI_SCALE": draw(st.sampled_from([None, (64, 128)])),
        "HORIZONTAL_FLIP": 0.5,
    }
    return options, draw(st.integers(1, 90)), draw(st.integers(1, 90)), draw(st.integers(0, 2**32))


@given(cases(), st.booleans())
def test_masks_are_those_of_utils(case, as_rles):
    """Cutting out, resizing, flipping and packing is what doing it with whole masks is."""
    options, height, width, seed = case
    config = settings(**options)
    info = drawn(height, width, 4, seed)
    data = TrainingData(Drawn([info], as_rles=as_rles), config)
    sample = data.sample(0, seed)

    rng = np.random.default_rng(seed)
    plan = data._plan((height, width), True, rng)
    masks = utils.resize_mask(info["masks"], 1.0, ((0, 0), (0, 0)), plan.crop, plan.size, config.MASK_NEAREST)
    pixels = utils.resize_pixels(info["image"], plan.size, config.dialect.resampling)
    pixels = utils._crop(pixels, plan.crop)
    if rng.random() < 0.5:
        masks, pixels = masks[:, ::-1], pixels[:, ::-1]
    masks = np.pad(masks, [*plan.padding, (0, 0)])
    y1, x1, y2, x2 = plan.window
    assert sample.window == plan.window
    assert sample.shape == masks.shape[:2]
    assert (sample.image.numpy() == pixels).all()
    assert sample.image.shape[:2] == (y2 - y1, x2 - x1)
    kept = np.flatnonzero(masks.any(axis=(0, 1)))
    whole = np.moveaxis(masks, 2, 0)[kept]
    assert sample.targets.class_ids.tolist() == info["class_ids"][kept].tolist()
    assert sample.targets.boxes.tolist() == utils.extract_bboxes(masks)[kept].tolist()
    assert canvases(sample.targets.masks).tolist() == (whole.tolist() if len(kept) else [])


def test_masks_and_boxes_lie_where_their_objects_are_in_the_image():
    """A white square on black, scaled by random factors: on average, nothing moves, and the reference moves masks."""

    def shifts(**options) -> np.ndarray:
        config = settings(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, SCALE_JITTER=(0.5, 1.3), **options)
        data = TrainingData(Drawn([info]), config)
        found = []
        for seed in range(150):
            sample = data.sample(0, seed)
            y1, x1, y2, x2 = sample.window
            seen = np.zeros(sample.shape, bool)
            seen[y1:y2, x1:x2] = sample.image[..., 0].numpy() >= 128
            if seen.sum() >= 100 and not (seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any()):
                middles = [np.argwhere(each).mean(axis=0) + 0.5 for each in (canvases(sample.targets.masks)[0], seen)]
                box = sample.targets.boxes[0].numpy()
                found.append([middles[0] - middles[1], (box[:2] + box[2:]) / 2 - middles[1]])
        assert len(found) > 50
        return np.mean(found, axis=0)

    info = drawn(64, 64, 1)
    info["image"][:], info["masks"][:] = 0, False
    info["image"][20:43, 24:45], info["masks"][20:43, 24:45] = 255, True
    assert np.abs(shifts()).max() < 0.1
    assert (shifts(MASK_NEAREST="floor") > 0.2).all()


@pytest.mark.parametrize("mode", utils.RESIZE_MODES)
def test_scale_jitter_keeps_to_the_usual_input(mode):
    config = settings(IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128, SCALE_JITTER=(0.2, 3.0))
    data = TrainingData(Drawn([drawn(50, 80)]), config)
    usual = TrainingData(data.dataset, config, augment=False).sample(0).shape
    samples = [data.sample(0, seed) for seed in range(30)]
    for sample in samples:
        y1, x1, y2, x2 = sample.window
        assert 0 <= y1 < y2 <= sample.shape[0] <= usual[0]
        assert 0 <= x1 < x2 <= sample.shape[1] <= usual[1]
        if mode in ("square", "crop", "none"):
            assert sample.shape == usual
        else:
            assert sample.shape[0] % 32 == sample.shape[1] % 32 == 0
        margins = np.subtract(sample.shape, (y2 - y1, x2 - x1))
        assert (y1, x1) == (tuple(margins // 2) if mode in ("square", "pad64") else (0, 0))
    assert len({sample.window for sample in samples}) > 5
    assert any(sample.window == (0, 0, *usual) for sample in samples)  # cropped


def test_multi_scale():
    data = TrainingData(Drawn([drawn(20, 20)]), settings(MULTI_SCALE=(32, 40, 64)))
    assert {data.sample(0, seed).image.shape[0] for seed in range(30)} == {32, 40, 64}


def test_boxes_of_the_data_set():
    """Scaled by the exact factor of each side, clipped, flipped; what is below a pixel is dropped."""
    info = drawn(10, 20, 4)
    info["masks"][:] = True
    boxes = [[1.5, 2, 9, 12.25], [-3, 15, 5, 99], [2, 2, 2.3, 9], [3, 3, 3, 3]]
    info |= {"boxes": np.array(boxes, np.float32), "class_ids": np.array([1, 2, -1, 1], np.int32)}
    config = settings(IMAGE_MIN_DIM=25, IMAGE_MAX_DIM=100, IMAGE_SIZE_DIVISOR=32)
    dataset = Drawn([info])
    dataset.boxes_are_checked = True  # They are not those of the masks.
    sample = TrainingData(dataset, config).sample(0)
    assert sample.targets.boxes.tolist() == [[3.75, 5, 22.5, 30.625], [0, 37.5, 12.5, 50]]
    assert sample.shape == (32, 64)
    config.HORIZONTAL_FLIP = 1.0
    flipped = TrainingData(dataset, config).sample(0)
    assert flipped.targets.boxes.tolist() == [[3.75, 50 - 30.625, 22.5, 45], [0, 0, 12.5, 12.5]]
    assert flipped.targets.crowd_boxes.tolist() == []


def test_boxes_that_are_not_those_of_the_masks():
    """The masks' are taken, and the image is named. Boxes that nearly fit stay as they are."""
    info = drawn(40, 60, 4)
    info["masks"][:] = False
    info["masks"][10:20, 30:55, 0] = info["masks"][5:8, 6:9, 1] = info["masks"][30:31, 2:20, 2] = True
    boxes = [[30, 10, 55, 20], [4.25, 6.5, 8, 9], [30.25, 2, 30.5, 20], [0, 0, 30, 30]]
    info |= {"boxes": np.array(boxes, np.float32), "class_ids": np.array([1, 2, 1, 2], np.int32)}
    config = settings(IMAGE_RESIZE_MODE="none")
    sample, warning = TrainingData(Drawn([info]), config)._make(0, 0)
    assert sample.targets.boxes.tolist() == [[10, 30, 20, 55], boxes[1]]
    assert warning == (
        "image drawn.a0 has 1 boxes, of 4, that do not fit their masks, whose boxes are taken instead; "
        "does load_instances return (y1, x1, y2, x2)?"
    )
    config.MAX_GT_INSTANCES = 1
    warning = TrainingData(Drawn([info]), config)._make(0, 0)[1]
    assert warning.endswith("(y1, x1, y2, x2)?; it has 2 objects; MAX_GT_INSTANCES leaves the 1 largest")
    info["boxes"][0] = [10.5, 30, 20, 54]
    assert TrainingData(Drawn([info]), settings(IMAGE_RESIZE_MODE="none"))._make(0, 0)[1] is None


def test_a_crop_tightens_the_boxes_that_it_cuts():
    """Of the L's box more is left than of the L."""
    info = {**drawn(64, 200, 1), "boxes": np.array([[0.5, 0.5, 63.5, 199.5]], np.float32)}
    info["masks"][:] = False
    info["masks"][:60, 0:2] = info["masks"][58:60, :200] = True
    config = settings(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64)
    whole = TrainingData(Drawn([info]), settings(IMAGE_RESIZE_MODE="none")).sample(0)
    assert whole.targets.boxes.tolist() == info["boxes"].tolist()
    boxes = [TrainingData(Drawn([info]), config).sample(0, seed).targets.boxes.tolist() for seed in range(5)]
    assert [[58, 0, 60, 64]] in boxes


@pytest.mark.parametrize("as_rles", [False, True])
@pytest.mark.parametrize("class_ids", [[], [-1, -2]])
def test_images_without_objects_are_samples(class_ids, as_rles):
    info = drawn(6, 5, len(class_ids), seed=3)
    info["masks"][:] = True
    info["class_ids"] = np.array(class_ids, np.int32)
    sample = TrainingData(Drawn([info], as_rles=as_rles), as_it_is()).sample(0)
    assert sample.targets.boxes.shape == (0, 4)
    assert sample.targets.class_ids.shape == sample.targets.masks.pixels.shape == (0,)
    assert sample.targets.masks.canvases.shape == (0, 2)
    assert sample.targets.crowd_boxes.tolist() == [[0, 0, 6, 5]] * len(class_ids)
    batch = collate([sample, sample])
    assert batch.targets.boxes.shape == (0, 4)
    assert batch.targets.crowd_index.tolist() == sorted([0, 1] * len(class_ids))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("counts", "steps", "batches"), [
    ([0, 0], 3, 3), ([0, 0], 101, 100), ([0, 1], 4, None), ([1, 0], 4, None),
])  # fmt: skip
def test_a_training_without_objects_is_told(counts, steps, batches, shuffle, caplog):
    infos = [drawn(6, 5, count, seed=3) for count in counts]
    for info in infos:
        info["masks"][:] = True
        info["class_ids"][:] = 1
    config = as_it_is(IMAGES_PER_GPU=1, STEPS_PER_EPOCH=steps, VALIDATION_STEPS=steps)
    loader = make_loader(TrainingData(Drawn(infos), config), shuffle=shuffle)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            loader.set_epoch(epoch)
            list(loader)
    messages = [record.message for record in caplog.records]
    assert len(messages) == (shuffle and batches is not None), "once, and not of validation"
    assert all(f"no object to learn from in batches 1 to {batches} (image drawn.a" in each for each in messages)


def test_objects_that_vanish_are_dropped():
    info = drawn(64, 64, 3)
    info["masks"][:] = False
    info["masks"][1, 1, 0] = True  # every fourth pixel is taken, from the third on
    info["masks"][4:9, 4:9, 1] = True
    info["class_ids"] = np.array([1, 2, 1], np.int32)
    sample = TrainingData(Drawn([info]), settings(IMAGE_MIN_DIM=16, IMAGE_MAX_DIM=16)).sample(0)
    assert sample.targets.class_ids.tolist() == [2]
    assert sample.targets.boxes.tolist() == [[1, 1, 2, 2]]


def test_the_largest_objects_are_kept(caplog):
    info = drawn(10, 10, 4)
    info["masks"][:] = False
    for i, side in enumerate((2, 5, 3, 4)):
        info["masks"][:side, :side, i] = True
    info["class_ids"] = np.array([1, 2, 1, 2], np.int32)
    loader = make_loader(TrainingData(Drawn([info]), as_it_is(MAX_GT_INSTANCES=2, IMAGES_PER_GPU=1, STEPS_PER_EPOCH=3)))
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [batch.targets.boxes.tolist() for batch in batches] == [[[0, 0, 5, 5], [0, 0, 4, 4]]] * 3
    assert canvases(batches[0].targets.masks).sum(axis=(1, 2)).tolist() == [25, 16]
    assert [record.message for record in caplog.records] == [
        "image drawn.a0 has 4 objects; MAX_GT_INSTANCES leaves the 2 largest"
    ]


def test_mini_masks_are_those_of_utils():
    info = drawn(40, 50, 3, seed=2)
    info["boxes"] = np.full((3, 4), 7.5, np.float32)
    config = as_it_is(USE_MINI_MASK=True, MINI_MASK_SHAPE=(12, 14))
    batch = collate([TrainingData(Drawn([info]), config).sample(0)] * 2)
    boxes = utils.extract_bboxes(info["masks"])
    expected = np.moveaxis(utils.minimize_mask(boxes, info["masks"], (12, 14)), 2, 0)
    assert (canvases(batch.targets.masks) == np.concatenate([expected, expected])).all()
    assert batch.targets.boxes.tolist() == boxes.tolist() * 2
    assert batch.targets.masks.origins.unique().tolist() == [0]
    assert batch.targets.mini_masks


def test_other_channels():
    info = {**drawn(6, 5), "image": np.arange(60, dtype=np.uint8).reshape(6, 5, 2)}
    config = as_it_is(IMAGE_CHANNEL_COUNT=2, MEAN_PIXEL=(0, 0), STD_PIXEL=(1, 1), COLOR_JITTER=0.1)
    assert TrainingData(Drawn([info]), config).sample(0).image.shape == (6, 5, 2)
    info["image"] = info["image"][..., :1]
    with pytest.raises(ValueError, match=r"image drawn.a0 must be an array \[H, W, 2\], as IMAGE_CHANNEL_COUNT says"):
        TrainingData(Drawn([info]), config).sample(0)


def test_gray_images_become_rgb():
    info = {**drawn(6, 5), "image": np.arange(30, dtype=np.uint8).reshape(6, 5)}
    assert (TrainingData(Drawn([info]), as_it_is()).sample(0).image[..., 2].numpy() == info["image"]).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/ is not here: the photograph may not be in the repository")
def test_the_sample_is_mmdetections():
    golden = np.load(SHARED / "golden/mmdet/train_r50-caffe_fpn_1x.npz")
    annotations = json.loads((SHARED / "golden/mmdet/train_ann.json").read_text())
    labels = {category["id"]: i for i, category in enumerate(annotations["categories"])}

    class Photograph(Drawn):
        def load_image(self, image_id):
            return utils.read_image(SHARED / "golden/mmdet/img1.jpg")

        def load_instances(self, image_id):
            found = annotations["annotations"]
            x, y, w, h = np.array([one["bbox"] for one in found], np.float32).T
            signs = [-1 if one["iscrowd"] else 1 for one in found]
            class_ids = np.multiply(signs, [labels[one["category_id"]] + 1 for one in found])
            rles = [utils.annotation_to_rle(one["segmentation"], 476, 640) for one in found]
            return Instances(class_ids, rles, np.stack([y, x, y + h, x + w], axis=1))

    config = Config(NUM_CLASSES=81, IMAGE_MIN_DIM=400, IMAGE_MAX_DIM=667, **REFERENCE_TRAINING)
    sample = TrainingData(Photograph([{}], classes=81), config, augment=False).sample(0)
    assert sample.image.shape[:2] == tuple(golden["meta_img_shape"])
    assert sample.shape == tuple(golden["input_shape"][2:])
    assert (sample.targets.class_ids.numpy() - 1).tolist() == golden["gt_labels"].tolist()
    assert sample.targets.boxes[:, [1, 0, 3, 2]].tolist() == golden["gt_boxes"].tolist()
    assert sample.targets.crowd_boxes[:, [1, 0, 3, 2]].tolist() == golden["ignored_boxes"].tolist()
    shape = golden["gt_masks_shape"]
    masks = np.unpackbits(golden["gt_masks_packed"], count=shape.prod()).reshape(shape)
    assert (canvases(sample.targets.masks) == masks).all()


def test_dense_images_need_no_stack_of_masks():
    """400 instances of 800 x 1088: a stack would take 348 MB."""
    rng = np.random.default_rng(0)
    rles = []
    for y, x in rng.integers(0, (740, 1020), (400, 2)).tolist():
        rles.append(utils.crop_to_rle(y, x, rng.random((60, 60)) < 0.9, (800, 1088)))
    dataset = Drawn([{**drawn(800, 1088), "class_ids": np.ones(400, np.int32)}])
    dataset.load_instances = lambda image_id: Instances(np.ones(400, np.int32), rles)
    data = TrainingData(dataset, as_it_is(HORIZONTAL_FLIP=1.0))
    tracemalloc.start()
    sample = data.sample(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sample.targets.boxes) == 400
    assert peak < 20e6


############################################################
#  Instances
############################################################


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_rle_to_crop_undoes_crop_to_rle(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    y, x, crop = utils.rle_to_crop(utils.mask_to_rle(mask))
    y1, x1, y2, x2 = utils.extract_bboxes(mask[..., None])[0]
    assert (y, x) == (y1, x1)
    assert (crop == mask[y1:y2, x1:x2]).all()
    assert crop.shape == (y2 - y1, x2 - x1)


def test_load_instances_by_default():
    class Masks(Dataset):
        def load_mask(self, image_id):
            return np.ones((4, 6, 1)), [1]

    dataset = Masks()
    masks, class_ids = dataset.load_mask(0)
    instances = check_instances(dataset.load_instances(0), (4, 6, 3), "image 0", 2)
    assert (instances.masks == masks).all()
    assert instances.class_ids.tolist() == class_ids
    assert instances.boxes is None


RLE = utils.mask_to_rle(np.ones((4, 6), bool))


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (([1, 3], [RLE, RLE]), r"load_mask must return class_ids of 1 to 2 .*, not 3"),
        (([1, 2], [RLE]), "load_instances returned 1 RLEs for 2 class ids"),
        (([1], [{"size": [6, 4], "counts": b""}]), r"size \[4, 6\] .*, not \[6, 4\] \(instance 0\)"),
        (([1], np.ones((6, 4, 1), bool)), r"masks \[4, 6, 1\].*height comes before width"),
        (([1], [RLE], [[0, 0, np.nan, 1]]), r"finite numbers.*nan, 1.0\] \(instance 0\)"),
        (([1, 1], [RLE, RLE], [[0, 0, 1, 1], [3, 3, 2, 4]]), r"\[3.0, 3.0, 2.0, 4.0\] \(instance 1\); COCO's"),
        (([1], [RLE], [0, 0, 1, 1]), r"boxes float32 \[1, 4\], one for each class id, not int64 \[4\]"),
    ],
)
def test_check_instances_names_the_image_and_the_cause(instances, message):
    with pytest.raises(ValueError, match=f"^image 5: .*{message}"):
        check_instances(Instances(*instances), (4, 6, 3), "image 5", 3)


def test_a_damaged_rle_names_the_image(caplog):
    info = {**an_l(), "class_ids": [1], "masks": np.ones((4, 6, 1), bool)}
    dataset = Drawn([info])
    dataset.load_instances = lambda image_id: Instances([1], [{"size": [4, 6], "counts": [3]}])
    with pytest.raises(ValueError, match=r"image drawn.a0: ValueError: the runs of an RLE must .* fill 4 x 6"):
        list(make_loader(TrainingData(dataset, as_it_is())))


############################################################
#  Augmentation
############################################################


def turn(image, masks):
    return np.rot90(image), np.rot90(masks)


class Keywords:
    """As albumentations' Compose."""

    def __call__(self, *args, force_apply=False, **data):
        assert not args
        assert data.keys() <= {"image", "masks"}
        masks = data.get("masks", [])
        assert all(mask.dtype == np.uint8 and mask.shape == data["image"].shape[:2] for mask in masks)
        return {"image": np.rot90(data["image"]), **({"masks": [np.rot90(mask) for mask in masks]} if masks else {})}


class Deterministic:
    """As imgaug's augmenters: it turns twice as often until it is made deterministic."""

    turns = 2

    def to_deterministic(self):
        fixed = Deterministic()
        fixed.turns = 1
        return fixed

    def augment_image(self, image):
        assert image.dtype == np.uint8
        return np.rot90(image, self.turns)


@pytest.mark.parametrize("augmentation", [turn, Keywords(), Deterministic()], ids=["plain", "keywords", "imgaug"])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("as_rles", [False, True])
def test_augmentation_of_any_style(augmentation, count, as_rles):
    info = drawn(12, 20, count, seed=1, boxes=np.zeros((count, 4), np.float32))
    dataset = Drawn([info], as_rles=as_rles)
    sample = TrainingData(dataset, as_it_is(), augmentation).sample(0)
    masks = np.rot90(info["masks"])
    assert (sample.image.numpy() == np.rot90(info["image"])).all()
    assert sample.shape == (20, 12)
    assert sample.targets.boxes.tolist() == utils.extract_bboxes(masks).tolist()  # not the data set's
    assert canvases(sample.targets.masks).tolist() == (np.moveaxis(masks, 2, 0).tolist() if count else [])
    untouched = TrainingData(dataset, as_it_is(), augmentation, no_augmentation_sources=["drawn"]).sample(0)
    assert untouched.shape == TrainingData(dataset, as_it_is(), augmentation, augment=False).sample(0).shape == (12, 20)


def test_imgaug_changes_no_colours_of_masks(monkeypatch):
    """What Matterport did with hooks."""

    class HooksImages:
        def __init__(self, activator):
            self.activator = activator

    class Brighten(Deterministic):
        def to_deterministic(self):
            return self

        def augment_image(self, image, hooks=None):
            is_active = hooks is None or hooks.activator(image, self, [], True)
            return image + np.uint8(1) if is_active else image

    class Fliplr(Brighten):
        pass

    monkeypatch.setattr(sys.modules[__name__], "HooksImages", HooksImages, raising=False)
    info = {**drawn(8, 8, 2, seed=1), "image": np.zeros((8, 8, 3), np.uint8)}
    sample = TrainingData(Drawn([info]), as_it_is(), Brighten()).sample(0)
    assert sample.image.unique().tolist() == [1]
    assert (canvases(sample.targets.masks) == np.moveaxis(info["masks"], 2, 0)).all()
    flipped = TrainingData(Drawn([info]), as_it_is(), Fliplr()).sample(0)
    assert canvases(flipped.targets.masks).all()


def noise(image, masks):
    """Draws from all the generators that users draw from."""
    return np.full_like(image, [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]), masks  # noqa: NPY002


def test_augmentation_is_seeded_and_leaves_the_generators_alone():
    data = TrainingData(Drawn([an_l()]), as_it_is(), noise)
    before = random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    pixels = [data.sample(0, seed).image[0, 0].tolist() for seed in (1, 2, 1, 2**63 - 1)]
    after = random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after
    assert pixels[0] == pixels[2]
    assert all(a != b for a, b in zip(pixels[0], pixels[1], strict=True))


def test_generators_of_their_own_are_seeded():
    class Own:
        def set_random_seed(self, seed):
            self.rng = np.random.default_rng(seed)

        def __call__(self, image, masks):
            return np.full_like(image, self.rng.integers(256)), masks

    data = TrainingData(Drawn([an_l()]), as_it_is(), Own())
    first, second, again = (int(data.sample(0, seed).image[0, 0, 0]) for seed in (1, 2, 1))
    assert first == again != second


def test_an_augmentation_in_place_does_not_reach_the_data_set():
    def darken(image, masks):
        image[:], masks[:] = 0, False
        return image, masks

    info = an_l()
    pixels, masks = info["image"].copy(), info["masks"].copy()
    sample = TrainingData(Drawn([info]), as_it_is(), darken).sample(0)
    assert not sample.image.any()
    assert (info["image"] == pixels).all()
    assert (info["masks"] == masks).all()


@pytest.mark.parametrize("kind", [np.uint8(255), np.float32(1)])
def test_an_augmentation_may_return_masks_of_other_types(kind):
    data = TrainingData(Drawn([an_l()]), as_it_is())
    other = TrainingData(data.dataset, as_it_is(), lambda image, masks: (image, masks * kind))
    assert equal(other.sample(0), data.sample(0))


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (lambda image, masks: (np.rot90(image), masks), r"^image drawn.a0: augmentation must return masks \[6, 4, 2\]"),
        (lambda image, masks: (image, masks[..., :1]), r"augmentation must return masks \[4, 6, 2\].*not \[4, 6, 1\]"),
        (lambda image, masks: (image.astype(np.int64), masks), r"^image drawn.a0, what augmentation returned, must be"),
    ],
)
def test_what_an_augmentation_must_return(augmentation, message):
    with pytest.raises(ValueError, match=message):
        TrainingData(Drawn([an_l()]), as_it_is(), augmentation).sample(0)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (lambda image, masks: None, r"return \(image, masks\), not NoneType"),
        (lambda image, masks: image, r"return \(image, masks\), not ndarray"),
        (lambda **arrays: None, "return a dict with image and masks, as albumentations does, not NoneType"),
        (lambda **arrays: {"image": arrays["image"]}, "return a dict with image and masks"),
    ],
)
def test_an_augmentation_that_returns_something_else(augmentation, message):
    with pytest.raises(ValueError, match=f"augmentation must {message}"):
        TrainingData(Drawn([an_l()]), as_it_is(), augmentation).sample(0)


def test_what_is_no_augmentation():
    with pytest.raises(ValueError, match=r"augmentation must be a callable \(image, masks\).*not list"):
        TrainingData(Drawn([an_l()]), as_it_is(), [turn])
    keywords = Keywords()
    keywords.processors = {"bboxes": None}
    with pytest.raises(ValueError, match="augmentation has bbox_params"):
        TrainingData(Drawn([an_l()]), as_it_is(), keywords)


def test_color_jitter():
    class Factors:
        def __init__(self, *factors):
            self.factors = np.array(factors)

        def uniform(self, low, high, count):
            assert (low, high, count) == (0.75, 1.25, 3)
            return self.factors

    image = np.array([[[40, 80, 120], [200, 200, 200]]], np.uint8)
    brighter = jitter_color(image, 0.25, Factors(1.25, 1, 1))
    assert brighter.tolist() == [[[50, 100, 150], [250, 250, 250]]]
    gray = 0.299 * 40 + 0.587 * 80 + 0.114 * 120
    paler = jitter_color(image, 0.25, Factors(1, 0.75, 1))
    assert paler.tolist() == [[[round(0.75 * v + 0.25 * gray) for v in (40, 80, 120)], [200, 200, 200]]]
    duller = jitter_color(image[..., :2].astype(np.float32), 0.25, Factors(1, 1, 0.75))
    assert duller.tolist() == [[[62.5, 92.5], [182.5, 182.5]]]  # the mean is 130
    assert jitter_color(image, 0.25, Factors(1.25, 1, 1.25)).max() == 255  # not 0 by overflow
    data = TrainingData(Drawn([drawn(9, 9)]), as_it_is(COLOR_JITTER=0.25))
    assert not equal(data.sample(0, 1).image, data.sample(0, 2).image)


############################################################
#  Batches
############################################################


def test_collate():
    data = TrainingData(Drawn([drawn(20, 9, 3, seed=1), an_l(), drawn(7, 30, 2, seed=4)]), as_it_is())
    samples = [data.sample(i, seed=10 + i) for i in range(3)]
    batch = collate(samples)
    assert batch.shape == (20, 30)
    assert batch.windows.tolist() == [[0, 0, 20, 9], [0, 0, 4, 6], [0, 0, 7, 30]]
    assert batch.targets.batch_index.tolist() == [0, 0, 0, 1, 2, 2]
    for known in (batch.targets, batch.targets._replace(object_counts=None, crowd_counts=None)):
        assert [rows.tolist() for rows in known.objects_of_images()] == [[0, 1, 2], [3], [4, 5]]
        crowds = [rows.tolist() for rows in known.crowds_of_images()]
        assert crowds == [[i for i, image in enumerate(known.crowd_index.tolist()) if image == j] for j in range(3)]
    assert batch.targets.crowd_index.tolist() == [1]
    assert batch.image_ids == [0, 1, 2]
    assert batch.targets.seeds.tolist() == [10, 11, 12]
    assert not batch.targets.mini_masks
    assert equal(batch.targets.boxes, torch.cat([sample.targets.boxes for sample in samples]))
    whole = canvases(batch.targets.masks)
    assert whole.shape == (6, 20, 30)
    assert (whole[:3, :, :9] == canvases(samples[0].targets.masks)).all()
    assert (whole[4:, :7] == canvases(samples[2].targets.masks)).all()
    assert whole.sum() == sum(int(sample.targets.masks.pixels.sum()) for sample in samples)


def test_joined_targets_keep_mini_masks_and_put_others_on_one_canvas():
    data = [
        TrainingData(Drawn([an_l()]), as_it_is(USE_MINI_MASK=mini, MINI_MASK_SHAPE=(4, 3))) for mini in (True, False)
    ]
    mini, whole = (join_targets([each.sample(0, seed=3).targets, each.sample(0).targets], (9, 8)) for each in data)
    assert mini.masks.canvases.tolist() == mini.masks.sizes.tolist() == [[4, 3]] * 2
    assert whole.masks.canvases.tolist() == [[9, 8]] * 2
    assert (mini.mini_masks, whole.mini_masks) == (True, False)
    for joined in (mini, whole):
        assert joined.batch_index.tolist() == joined.crowd_index.tolist() == [0, 1]
        assert joined.seeds.tolist() == [3, 0]


def test_a_batch_moves_whole():
    batch = collate([TrainingData(Drawn([an_l()]), as_it_is()).sample(0)])
    moved = batch.to("meta")
    *fields, mini_masks, object_counts, crowd_counts, labelled = moved.targets
    masks = fields.pop(3)
    assert all(tensor.is_meta for tensor in [*moved.images, moved.windows, *fields, *masks])
    assert (mini_masks, object_counts, crowd_counts, labelled) == (False, [1], [1], None)
    assert moved.image_ids == [0]
    assert type(moved.targets) is Targets
    assert type(masks) is type(batch.targets.masks)
    assert equal(batch.to("cpu"), batch)


def order_of(is_wide, rank=0, world=1, shuffle=True, **options) -> BatchOrder:
    options = {"IMAGES_PER_GPU": 3, "STEPS_PER_EPOCH": None, **options}
    return BatchOrder(np.array(is_wide), settings(**options), rank, world, shuffle)


def images_of(order, epoch, start_step=0):
    order.epoch, order.start_step = epoch, start_step
    return [[image for image, _ in batch] for batch in order]


WIDE = [True] * 10 + [False] * 7


@pytest.mark.parametrize("per_gpu", [1, 2, 3, 5, 17, 20])
def test_a_pass_has_every_image(per_gpu):
    order = order_of(WIDE, IMAGES_PER_GPU=per_gpu)
    batches = images_of(order, epoch=0)
    counts = np.bincount(np.concatenate(batches), minlength=17)
    assert counts.min() == 1
    assert counts.sum() < 17 + per_gpu  # only the last batch is filled up
    assert {len(batch) for batch in batches} == {per_gpu}
    for epoch in range(10):
        assert all(len(set(batch)) == min(per_gpu, 17) for batch in images_of(order, epoch))
    assert order.steps == len(order) == len(batches)
    mixed = [batch for batch in batches if len({WIDE[image] for image in batch}) > 1]
    assert len(mixed) <= 2
    assert images_of(order, epoch=0) == batches
    assert images_of(order, epoch=1) != batches
    assert images_of(order_of(WIDE, IMAGES_PER_GPU=per_gpu, SEED=1), epoch=0) != batches or per_gpu > 16


def test_no_image_is_twice_in_a_batch_that_is_filled_up():
    order = order_of([True] * 10 + [False])  # the last one may be the first of a pass
    assert all(len(set(batch)) == 3 for epoch in range(60) for batch in images_of(order, epoch))


@pytest.mark.parametrize("steps", [1, 4, 6, 15])
def test_epochs_of_any_length_follow_one_another(steps):
    """An epoch goes on in the data where the last one ended."""
    whole = order_of(WIDE)
    passes = [batch for epoch in range(5) for batch in images_of(whole, epoch)]
    order = order_of(WIDE, STEPS_PER_EPOCH=steps)
    assert len(order) == steps
    epochs = [batch for epoch in range(30 // steps) for batch in images_of(order, epoch)]
    assert epochs == passes[: len(epochs)]
    assert images_of(order, 1, start_step=steps - 1) == [epochs[2 * steps - 1]]
    assert images_of(order, 0, start_step=steps) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_batches_of_one_process(shuffle):
    one = order_of(WIDE, IMAGES_PER_GPU=6, shuffle=shuffle)
    ranks = [order_of(WIDE, rank, 3, IMAGES_PER_GPU=2, shuffle=shuffle) for rank in range(3)]
    assert {rank.steps for rank in ranks} == {one.steps}
    for step in range(2 if not shuffle else len(one)):
        shares = [rank.batch(4, step) for rank in ranks]
        assert [pick for share in shares for pick in share] == one.batch(4, step)  # the seeds, too
    if not shuffle:  # 5 are left
        assert [image for rank in ranks for image, _ in rank.batch(0, 2)] == [12, 13, 14, 15, 16, 0]
        assert [image for image, _ in one.batch(0, 2)] == [12, 13, 14, 15, 16]
    with pytest.raises(ValueError, match="rank 3 of world 3"):
        order_of(WIDE, 3, 3)


def test_rare_classes_come_as_often_as_repeat_factors_say():
    """Class 1 is in all of 8 images, class 2 in two of them: these come sqrt(0.5 / 0.25) times as often."""

    class Counted(Drawn):
        def object_boxes(self):
            images, classes = [*range(8), 0, 1, 1, 5], [1] * 8 + [2, 2, 2, -2]
            boxes = np.zeros((12, 4), np.float32)
            return ObjectBoxes(np.array(images), np.array(classes), boxes, np.zeros((8, 2)), 12, 0)

    images = [drawn(9, 9) for _ in range(8)]
    assert TrainingData(Counted(images), settings()).repeats() is None
    data = TrainingData(Counted(images), settings(REPEAT_THRESHOLD=0.5, IMAGES_PER_GPU=2, STEPS_PER_EPOCH=None))
    expected = [math.sqrt(2)] * 2 + [1.0] * 6
    assert data.repeats().tolist() == pytest.approx(expected)
    loader = make_loader(data)
    orders = [
        loader.order,
        *(BatchOrder(data.is_wide(), data.config, rank, 2, True, data.repeats()) for rank in (0, 1)),
    ]
    assert loader.order.steps == 5, "8.83 images, and the last batch is filled up"
    counts = np.zeros(8)
    for number in range(400):
        drawn_images = np.bincount(np.concatenate(images_of(loader.order, number)), minlength=8)
        assert drawn_images.sum() == 10
        assert (drawn_images >= 1).all()
        counts += drawn_images
    shares = counts / counts.sum()
    np.testing.assert_allclose(shares, np.array(expected) / sum(expected), atol=0.005)
    assert images_of(loader.order, 3) == images_of(loader.order, 3), "a training can continue anywhere"
    halves = [images_of(order, 2) for order in orders[1:]]
    wide = BatchOrder(data.is_wide(), settings(IMAGES_PER_GPU=4, STEPS_PER_EPOCH=None), repeats=data.repeats())
    assert [first + second for first, second in zip(*halves, strict=True)] == images_of(wide, 2)
    assert make_loader(data, shuffle=False).order.repeats is None


def test_repeats_need_the_classes_of_all_objects():
    data = TrainingData(Drawn([drawn(9, 9)]), settings(REPEAT_THRESHOLD=0.5))
    with pytest.raises(ValueError, match=r"REPEAT_THRESHOLD is 0.5, .* Drawn.object_boxes does not know them"):
        data.repeats()


def test_validation_is_in_order():
    order = order_of(WIDE, shuffle=False, STEPS_PER_EPOCH=2, VALIDATION_STEPS=None)
    assert np.concatenate(images_of(order, 0)).tolist() == list(range(17))
    assert [order.batch(0, step) for step in range(6)] == [order.batch(9, step) for step in range(6)]
    assert images_of(order_of(WIDE, shuffle=False, VALIDATION_STEPS=2), 0) == [[0, 1, 2], [3, 4, 5]]


def test_seeds_differ():
    order = order_of(WIDE, STEPS_PER_EPOCH=20)
    seeds = [seed for epoch in range(3) for step in range(20) for _, seed in order.batch(epoch, step)]
    seeds += [seed for _, seed in order_of(WIDE, SEED=1).batch(0, 0)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) <= max(seeds) < 2**63


def test_is_wide(tmp_path):
    PIL.Image.new("RGB", (9, 5)).save(tmp_path / "wide.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    PIL.Image.new("RGB", (9, 5)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    dataset = Dataset()
    for name in ("wide.png", "turned.jpg", "broken.png", "missing.png"):
        dataset.add_image("a", name, tmp_path / name)
    dataset.add_image("a", 5, tmp_path / "wide.png", height=9, width=5)
    dataset.add_image("a", 6, None)
    dataset.prepare()
    assert TrainingData(dataset, settings()).is_wide().tolist() == [True, False, True, True, False, True]
    square = settings(IMAGE_RESIZE_MODE="square")
    assert TrainingData(dataset, square).is_wide().tolist() == [True] * 6


############################################################
#  Loader
############################################################


def five(**options) -> TrainingData:
    options = {"HORIZONTAL_FLIP": 0.5, "STEPS_PER_EPOCH": 4, "COLOR_JITTER": 0.2, **options}
    dataset = Drawn([drawn(20, 20 + 5 * i, i, seed=i) for i in range(5)], errors=options.pop("errors", ()))
    return TrainingData(dataset, settings(**options), noise if options.get("COLOR_JITTER") else None)


def epoch_of(loader, epoch, start_step=0) -> list:
    loader.set_epoch(epoch, start_step)
    return list(loader)


def test_workers_change_nothing():
    batches = {}
    for workers in (0, 2):
        loader = make_loader(five(WORKERS=workers))
        assert len(loader) == 4
        batches[workers] = [epoch_of(loader, *start) for start in ((0, 0), (1, 0), (1, 3))]
        loader.set_epoch(3)
        next(iter(loader))  # left in the middle
        assert equal(epoch_of(loader, 1, 3), batches[workers][2])
        assert (loader.steps, len(loader)) == (4, 1)
    assert equal(batches[0], batches[2])
    first, second, rest = batches[0]
    assert [len(part) for part in batches[0]] == [4, 4, 1]
    assert equal(second[3:], rest)
    assert not equal(first, second)


def test_what_workers_get_can_be_pickled():
    """As Windows and macOS need it."""
    loader = make_loader(five())
    fetcher, order = pickle.loads(pickle.dumps((loader._loader.dataset, loader.order)))
    assert equal(fetcher[order.batch(0, 2)].batch, epoch_of(loader, 0, 2)[0])
    assert pickle.loads(pickle.dumps(loader._loader.collate_fn)) is loader._loader.collate_fn


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place_of_a_broken_one(workers, caplog):
    loader = make_loader(five(WORKERS=workers, errors=[1, 2], MAX_DATA_ERRORS=3, COLOR_JITTER=0))
    with caplog.at_level(logging.WARNING):
        batches = epoch_of(loader, 0) + epoch_of(loader, 1)
    assert {image for batch in batches for image in batch.image_ids} == {0, 3, 4}
    messages = sorted(record.message for record in caplog.records)
    assert [message[:44] for message in messages] == [
        "image drawn.a1: OSError: the disk is on fire",
        "image drawn.a2: OSError: the disk is on fire",
    ]
    assert all(message.endswith("; another image takes its place (MAX_DATA_ERRORS is 3)") for message in messages)
    whole = list(make_loader(five(COLOR_JITTER=0)))
    assert equal(batches[0].targets.seeds, whole[0].targets.seeds)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("errors", "limit"), [((1, 3), 2), ((0, 1, 2, 3, 4), 9), ((4,), 1)])
def test_too_many_broken_images_end_the_training(errors, limit, workers):
    loader = make_loader(five(WORKERS=workers, errors=errors, MAX_DATA_ERRORS=limit, COLOR_JITTER=0))
    with pytest.raises(ValueError, match=r"images could not be loaded \(MAX_DATA_ERRORS is ") as caught:
        list(loader)
    message = str(caught.value)
    del caught  # its frames hold the loader in a cycle, and workers that the garbage collector ends take 5 s
    for image in errors:
        assert f"image drawn.a{image}: OSError: the disk is on fire" in message
    assert 'raise OSError("the disk is on fire")' in message  # the traceback


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_leaves_a_broken_image_out(workers, caplog):
    """Two batches of two images and one of one; a batch without images is left out as well."""
    for errors, expected in (((1,), [[0], [2, 3], [4]]), ((4,), [[0, 1], [2, 3]]), ((0, 1, 2, 3), [[4]])):
        loader = make_loader(five(WORKERS=workers, errors=errors, MAX_DATA_ERRORS=1, COLOR_JITTER=0), shuffle=False)
        caplog.clear()
        for _ in range(2):
            batches = list(loader)
            assert [batch.image_ids for batch in batches] == expected
        assert (loader.missing_images, loader.images) == (len(errors), 5)
        messages = [record.message for record in caplog.records]
        assert len(messages) == len(errors), "each is named once"
        assert all(message.endswith("; validation goes on without this image") for message in messages)
    whole = list(make_loader(five(COLOR_JITTER=0), shuffle=False))
    assert equal(batches[0].targets.seeds, whole[2].targets.seeds)
    loader.data.dataset.errors = ()
    assert len(list(loader)) == 3 or workers
    assert loader.missing_images == 0 or workers, "a worker has a copy of the data set"


def test_each_process_of_a_validation_has_as_many_batches():
    """A batch without images takes the next ones, because the processes compute together."""
    for errors, expected in (((0,), [[1], [2], [4]]), ((), [[0], [2], [4]])):
        data = five(errors=errors, IMAGES_PER_GPU=1, COLOR_JITTER=0)
        loader = make_loader(data, rank=0, world=2, shuffle=False)
        assert [batch.image_ids for batch in loader] == expected
        assert (loader.missing_images, loader.images) == (len(errors), 3)
    with pytest.raises(ValueError, match="images could not be loaded"):
        list(make_loader(five(errors=range(5), IMAGES_PER_GPU=1, COLOR_JITTER=0), world=2, shuffle=False))


def test_classes_of_the_data_set_become_rows_of_the_model():
    """Class 1 is the model's third; class 2 is unknown to it, and a crowd."""
    plain, data = five(), five()
    mapping = ClassMapping(np.array([0, 3, UNKNOWN]), ["'x'"], [])
    mapped = TrainingData(data.dataset, data.config, augment=False, classes=mapping)
    plain = TrainingData(plain.dataset, plain.config, augment=False)
    assert plain.classes is None
    for index in range(5):
        before, after = plain.sample(index).targets, mapped.sample(index).targets
        assert after.class_ids.tolist() == [3] * int((before.class_ids == 1).sum())
        unknown = before.boxes[before.class_ids == 2]
        assert len(after.crowd_boxes) == len(before.crowd_boxes) + len(unknown)
    identity = TrainingData(data.dataset, data.config, classes=ClassMapping(np.arange(3), [], ["'A' is taken for 'a'"]))
    assert identity.classes is None
    assert identity.class_notes == ["the data set: 'A' is taken for 'a'"]


def test_memory_errors_are_not_data_errors():
    data = five()
    data.dataset.load_image = lambda image_id: (_ for _ in ()).throw(MemoryError("no more"))
    with pytest.raises(MemoryError, match="no more"):
        list(make_loader(data))


def test_the_shared_generator_is_left_alone():
    loader = make_loader(five())
    state = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_worker_count(monkeypatch):
    monkeypatch.setattr(runtime, "usable_cores", lambda: 12)
    monkeypatch.setattr("data.loader._START_METHOD", "fork")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = settings(WORKERS=None, GPU_COUNT=1)
    assert worker_count(gpu) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(gpu) == 2
    assert worker_count(settings(WORKERS=5)) == 5
    assert worker_count(settings(WORKERS=None, GPU_COUNT=0)) == 0
    monkeypatch.setattr("data.loader._START_METHOD", None)
    assert worker_count(gpu) == 0


def test_data_sets_that_do_not_fit():
    with pytest.raises(ValueError, match="Drawn has no images; was its load_"):
        TrainingData(Drawn(), settings())
    with pytest.raises(ValueError, match="Drawn has 5 classes, background included, and NUM_CLASSES is 3"):
        TrainingData(Drawn([an_l()], classes=5), settings())

"""What the settings of augmentation do: pixels, masks, boxes and crowds stay together, and the seed decides."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import utils
from config import Config
from data.augment import jitter_light
from data.crops import Flips, bounds, cut_out, flip_boxes, resize_crop, turn_boxes, turn_crop
from data.dataset import Dataset, Instances
from data.samples import Sample, TrainingData


class Coded(Dataset):
    """Images whose pixels tell where they are from: red is the row, green the column, blue the number of the image."""

    def __init__(self, sizes, masks, class_ids, boxes=False, broken=()):
        super().__init__()
        for number in (1, 2, 3):
            self.add_class("coded", number, f"class {number}")
        self.masks, self.object_classes, self.has_boxes, self.broken = masks, class_ids, boxes, broken
        for number, size in enumerate(sizes):
            self.add_image("fixed" if size == (9, 9) else "coded", number, None, size=size)
        self.prepare()

    def load_image(self, image_id):
        if image_id in self.broken:
            raise OSError("the disk is on fire")
        height, width = self.image_info[image_id]["size"]
        return coded(height, width, image_id)

    def load_instances(self, image_id):
        masks = self.masks[image_id]
        boxes = utils.extract_bboxes(masks).astype(np.float32) if self.has_boxes else None
        return Instances(np.array(self.object_classes[image_id], np.int32), masks, boxes)


def coded(height, width, number=0) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 10 * number)], axis=2).astype(np.uint8)


def random_masks(height, width, count, seed) -> np.ndarray:
    """bool [H, W, N], each a box with random pixels and a filled corner."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((height, width, count), bool)
    for i in range(count):
        y, x = rng.integers(height - 1), rng.integers(width - 1)
        h, w = rng.integers(2, height - y, endpoint=True) - 1 or 1, rng.integers(2, width - x, endpoint=True) - 1 or 1
        masks[y : y + h, x : x + w, i] = rng.random((h, w)) < 0.7
        masks[y, x, i] = True
    return masks


def settings(**options) -> Config:
    return Config(NUM_CLASSES=4, WORKERS=0, **{"IMAGE_RESIZE_MODE": "none", "HORIZONTAL_FLIP": 0.0, **options})


def whole(masks) -> np.ndarray:
    """bool [H, W, N] of MaskCrops that have one canvas."""
    stack = []
    for offset, (h, w), (y, x), (height, width) in zip(*(field.tolist() for field in masks[1:]), strict=True):
        stack.append(np.zeros((height, width), bool))
        stack[-1][y : y + h, x : x + w] = masks.pixels[offset : offset + h * w].view(h, w).numpy()
    return np.stack(stack, axis=-1)


def is_same(a: Sample, b: Sample) -> bool:
    masks = all(torch.equal(x, y) for x, y in zip(a.targets.masks, b.targets.masks, strict=True))
    return masks and torch.equal(a.image, b.image) and torch.equal(a.targets.boxes, b.targets.boxes)


############################################################
#  Flips and quarter turns
############################################################

sides, seeds = st.integers(2, 40), st.integers(0, 2**32)


@given(sides, sides, seeds, st.integers(-5, 9))
def test_crops_and_boxes_turn_as_whole_masks_do(height, width, seed, turns):
    masks = random_masks(height, width, 3, seed)
    turned = np.rot90(masks, turns)
    for crop, expected in zip(cut_out(masks), cut_out(turned), strict=True):
        crop = turn_crop(crop, masks.shape, turns)
        assert (crop.y, crop.x) == (expected.y, expected.x)
        np.testing.assert_array_equal(crop.mask, expected.mask)
    boxes = turn_boxes(bounds(cut_out(masks)), masks.shape, turns)
    np.testing.assert_array_equal(boxes, bounds(cut_out(turned)))
    back = turn_boxes(boxes, turned.shape, -turns)
    np.testing.assert_array_equal(back, bounds(cut_out(masks)))


@given(sides, sides, seeds)
def test_four_turns_and_two_flips_change_nothing(height, width, seed):
    masks = random_masks(height, width, 2, seed)
    rows, columns = np.arange(height), np.arange(width)
    for crop in cut_out(masks):
        turned, shape = crop, (height, width)
        for _ in range(4):
            turned, shape = turn_crop(turned, shape, 1), shape[::-1]
        assert (turned.y, turned.x, turned.mask.tolist()) == (crop.y, crop.x, crop.mask.tolist())
        for flips in (Flips(True, False), Flips(False, True), Flips(True, True)):
            twice = resize_crop(resize_crop(crop, rows, columns, flips), rows, columns, flips)
            assert (twice.y, twice.x, twice.mask.tolist()) == (crop.y, crop.x, crop.mask.tolist())
        upside_down = resize_crop(crop, rows, columns, Flips(True, True))
        turned = turn_crop(crop, masks.shape, 2)
        assert (upside_down.y, upside_down.x) == (turned.y, turned.x)
        np.testing.assert_array_equal(upside_down.mask, turned.mask)
    boxes = bounds(cut_out(masks))
    for flips in (Flips(True, False), Flips(False, True), Flips(True, True)):
        np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, masks.shape, flips), masks.shape, flips), boxes)


@pytest.mark.parametrize("has_boxes", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (20, 12), (15, 15)])
def test_a_sample_is_turned_and_flipped_as_a_whole(size, has_boxes):
    """Every sample is one of the eight images, with masks, boxes and crowds at the same places."""
    masks = random_masks(*size, 4, seed=1)
    dataset = Coded([size], [masks], [[1, 2, -1, 3]], has_boxes)
    data = TrainingData(dataset, settings(QUARTER_TURNS=True, VERTICAL_FLIP=0.5, HORIZONTAL_FLIP=0.5))
    image, seen = dataset.load_image(0), set()
    poses = {(turns, flip): np.rot90(np.arange(image[..., 0].size).reshape(size), turns)[:: 1 - 2 * flip]
             for turns in range(4) for flip in (0, 1)}  # fmt: skip
    for seed in range(60):
        sample = data.sample(0, seed)
        pixels = sample.image.numpy()
        places = pixels[..., 0].astype(int) * size[1] + pixels[..., 1]  # where each pixel was
        pose = next(name for name, expected in poses.items() if np.array_equal(places, expected))
        seen.add(pose)
        moved = masks.reshape(-1, 4)[places]  # [h, w, 4]
        np.testing.assert_array_equal(whole(sample.targets.masks), moved[..., [0, 1, 3]])
        np.testing.assert_array_equal(sample.targets.boxes, utils.extract_bboxes(moved[..., [0, 1, 3]]))
        np.testing.assert_array_equal(sample.targets.crowd_boxes, utils.extract_bboxes(moved[..., [2]]))
        assert sample.shape == places.shape
    assert seen == poses.keys()


def test_turned_images_are_planned_as_turned():
    """Mode "shorter" pads what it pads of an image that is high."""
    dataset = Coded([(20, 60)], [random_masks(20, 60, 2, 0)], [[1, 2]])
    config = settings(IMAGE_RESIZE_MODE="shorter", IMAGE_MIN_DIM=40, IMAGE_MAX_DIM=100, QUARTER_TURNS=True)
    shapes = {TrainingData(dataset, config).sample(0, seed).shape for seed in range(20)}
    assert shapes == {(64, 128), (128, 64)}
    data = TrainingData(dataset, config)
    for seed in range(8):
        sample = data.sample(0, seed)
        np.testing.assert_array_equal(sample.targets.boxes, utils.extract_bboxes(whole(sample.targets.masks)))


def test_settings_that_are_off_draw_nothing():
    """The samples of a training with older settings stay equal to the bit."""
    dataset = Coded([(30, 40)], [random_masks(30, 40, 3, 0)], [[1, 2, 3]])
    old = {"IMAGE_RESIZE_MODE": "crop", "IMAGE_MIN_DIM": 64, "SCALE_JITTER": (0.5, 2.0), "COLOR_JITTER": 0.3}
    data = TrainingData(dataset, settings(**old, HORIZONTAL_FLIP=0.5))
    digests = [int(data.sample(0, seed).image.to(torch.int64).mul(torch.arange(3)).sum()) for seed in range(4)]
    assert digests == [61783, 28743, 53781, 87261]
    flipped = TrainingData(dataset, settings(**old, HORIZONTAL_FLIP=0.5, VERTICAL_FLIP=1e-12))
    assert not is_same(flipped.sample(0, 0), data.sample(0, 0)), "a setting that is on draws"


############################################################
#  Brightness and contrast
############################################################


class Factors:
    """A generator that draws given factors."""

    def __init__(self, *factors):
        self.factors = list(factors)

    def uniform(self, low, high):
        factor = self.factors.pop(0)
        assert low <= factor <= high
        return factor


def test_brightness_and_contrast_have_one_factor_for_all_channels():
    image = np.array([[[40, 80, 120, 10, 0], [60, 100, 240, 30, 0]]], np.uint8)
    brighter = jitter_light(image, 0.25, 0.0, Factors(1.25, 1.0))
    assert brighter.tolist() == [[[50, 100, 150, 12, 0], [75, 125, 255, 38, 0]]]  # 12.5 and 37.5 round to even
    steeper = jitter_light(image, 0.0, 0.5, Factors(1.0, 1.5))
    assert steeper.tolist() == [[[35, 75, 90, 5, 0], [65, 105, 255, 35, 0]]]  # from the means 50, 90, 180, 20
    both = jitter_light(image.astype(np.float32), 0.5, 0.5, Factors(0.5, 0.5))
    assert both.tolist() == [[[22.5, 42.5, 75, 7.5, 0], [27.5, 47.5, 105, 12.5, 0]]]
    assert both.dtype == np.float32


def test_jitter_of_light_keeps_hue_and_depends_on_the_seed():
    dataset = Coded([(16, 16)], [random_masks(16, 16, 1, 0)], [[1]])
    data = TrainingData(dataset, settings(BRIGHTNESS_JITTER=0.2))
    image = dataset.load_image(0).astype(float)
    factors = []
    for seed in range(40):
        sample = data.sample(0, seed)
        assert is_same(sample, data.sample(0, seed))
        factor = sample.image[15, 15, 0].item() / 15
        np.testing.assert_allclose(sample.image, image * factor, atol=1.1)
        factors.append(factor)
    assert 0.75 < min(factors) < 0.9 < 1.1 < max(factors) < 1.25

"""What the settings of augmentation do: pixels, masks, boxes and crowds stay together, and the seed decides."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import utils
from config import Config
from data.augment import LEAST_LEFT, View, jitter_light, paste_objects
from data.crops import Crop, Flips, bounds, cut_out, flip_boxes, resize_crop, shift_crop, turn_boxes, turn_crop
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


############################################################
#  Copy and paste
############################################################


def view_of(image, masks, class_ids) -> View:
    crops = cut_out(masks)
    return View(
        image, bounds(crops), crops, np.array(class_ids), utils.plan_image(image.shape, settings()), image.shape[:2]
    )


def as_masks(view: View) -> np.ndarray:
    masks = np.zeros((*view.pixels.shape[:2], len(view.crops)), bool)
    for i, (y, x, mask) in enumerate(view.crops):
        masks[y : y + mask.shape[0], x : x + mask.shape[1], i] = mask
    return masks


def test_a_pasted_object_covers_what_is_below():
    below = np.zeros((10, 10, 3), bool)
    below[0:4, 0:4, 0] = below[2:8, 2:8, 1] = below[6:10, 6:10, 2] = True
    above = np.zeros((6, 6, 2), bool)
    above[1:6, 1:6, 0] = above[0, 0, 1] = True
    view, donor = view_of(coded(10, 10, 1), below, [1, 2, -3]), view_of(coded(6, 6, 2), above, [3, 1])
    pasted = paste_objects(view, donor, [0], (2, 2))
    place = np.zeros((10, 10), bool)
    place[3:8, 3:8] = True
    assert pasted.class_ids.tolist() == [1, 2, -3, 3]
    np.testing.assert_array_equal(as_masks(pasted), np.dstack([below & ~place[..., None], place]))
    np.testing.assert_array_equal(pasted.boxes, utils.extract_bboxes(as_masks(pasted)))
    expected = coded(10, 10, 1)
    expected[3:8, 3:8] = coded(6, 6, 2)[1:6, 1:6]
    np.testing.assert_array_equal(pasted.pixels, expected)
    np.testing.assert_array_equal(view.pixels, coded(10, 10, 1))  # the view itself stays
    other = paste_objects(view, donor, [1], (0, 0))
    assert other.class_ids.tolist() == [1, 2, -3, 1]
    assert other.boxes[-1].tolist() == [0, 0, 1, 1]


def test_objects_with_too_little_left_vanish():
    below = np.zeros((10, 20, 3), bool)
    below[:, :10, 0] = below[:5, 10:20, 1] = below[9, 19, 2] = True
    view = view_of(coded(10, 20, 1), below, [1, 2, 3])
    for hidden, stays in ((90, True), (91, False)):  # of 100 pixels
        above = np.zeros((10, 20, 1), bool)
        above[:, :10, 0] = np.arange(100).reshape(10, 10) < hidden
        pasted = paste_objects(view, view_of(coded(10, 20, 2), above, [2]), [0], (0, 0))
        assert pasted.class_ids.tolist() == ([1] if stays else []) + [2, 3, 2]
    assert LEAST_LEFT == 0.1


def test_objects_are_cut_at_the_edges_of_the_view():
    above = np.zeros((10, 10, 2), bool)
    above[0:10, 0:10, 0] = above[0:2, 0:2, 1] = True
    view = view_of(coded(12, 8, 1), np.zeros((12, 8, 0), bool), [])
    pasted = paste_objects(view, view_of(coded(10, 10, 2), above, [1, 2]), [0, 1], (7, -3))
    assert pasted.class_ids.tolist() == [1], "of the other one nothing is inside"
    assert pasted.boxes.tolist() == [[7, 0, 12, 7]]
    np.testing.assert_array_equal(pasted.pixels[7:, :7], coded(10, 10, 2)[:5, 3:])
    far = paste_objects(view, view_of(coded(10, 10, 2), above, [1, 2]), [0], (11, 7))
    assert far is view, "one pixel of 100 is none"
    crop = shift_crop(Crop(2, 3, np.ones((4, 5), bool)), -4, -5, (12, 8))
    assert (crop.y, crop.x, crop.mask.shape) == (0, 0, (2, 3))


def many(broken=(), **options):
    """Six images of other sizes with three objects and a crowd each; classes tell the images."""
    sizes = [(30, 40), (40, 30), (25, 25), (50, 20), (33, 44), (9, 9)]
    masks = [random_masks(*size, 4, seed) for seed, size in enumerate(sizes)]
    classes = [[1 + number % 3] * 3 + [-1] for number in range(6)]
    return Coded(sizes, masks, classes, boxes=True, broken=broken)


@pytest.mark.parametrize("mode", ["none", "crop", "square"])
def test_samples_with_pasted_objects(mode):
    dataset = many()
    options = {"IMAGE_RESIZE_MODE": mode, "IMAGE_MIN_DIM": 64, "IMAGE_MAX_DIM": 64, "DIALECT": "mmdet"}
    data = TrainingData(dataset, settings(**options, COPY_PASTE=1.0, QUARTER_TURNS=True))
    plain = TrainingData(dataset, settings(**options, QUARTER_TURNS=True))
    more = 0
    for index in range(5):
        for seed in range(12):
            sample, without = data.sample(index, seed), plain.sample(index, seed)
            assert is_same(sample, data.sample(index, seed))
            assert (sample.window, sample.shape) == (without.window, without.shape)
            y1, x1, y2, x2 = sample.window
            masks = whole(sample.targets.masks)[y1:y2, x1:x2]
            boxes = sample.targets.boxes - torch.tensor([y1, x1, y1, x1])
            # The data set's boxes are scaled without rounding, masks to whole pixels.
            np.testing.assert_allclose(boxes, utils.extract_bboxes(masks), atol=0 if mode == "none" else 2.6)
            changed = (sample.image != without.image).any(dim=2).numpy()
            blue = sample.image[..., 2].numpy()
            is_pasted = np.array([(blue[mask] != 10 * index).all() for mask in np.moveaxis(masks, 2, 0)], bool)
            if is_pasted.any():  # of another image
                covers = masks[..., is_pasted].any(axis=2)
                assert (covers == changed).all(), "pasted pixels change, and no others"
                assert not (masks[..., ~is_pasted].any(axis=2) & covers).any(), "nothing shows through"
                more += is_pasted.sum()
    assert more > 60


def test_classes_and_pixels_come_from_the_same_image():
    data = TrainingData(many(), settings(COPY_PASTE=1.0))
    pairs = set()
    for seed in range(80):
        sample = data.sample(1, seed)
        for mask, class_id in zip(
            np.moveaxis(whole(sample.targets.masks), 2, 0), sample.targets.class_ids, strict=True
        ):
            numbers = set((sample.image.numpy()[mask][:, 2] // 10).tolist())
            pairs |= {(number, int(class_id)) for number in numbers if len(numbers) == 1}
    assert {number for number, _ in pairs} == set(range(5)) | {5}
    assert all(class_id == 1 + number % 3 for number, class_id in pairs)


def test_the_chance_of_pasting_and_sources_that_take_no_part():
    dataset = many()
    plain = TrainingData(dataset, settings(COPY_PASTE=1e-9))
    sometimes = TrainingData(dataset, settings(COPY_PASTE=0.5))
    count = sum(not is_same(sometimes.sample(0, seed), plain.sample(0, seed)) for seed in range(100))
    assert 30 < count < 60
    of_some = TrainingData(dataset, settings(COPY_PASTE=1.0), no_augmentation_sources=["fixed"])
    assert all(is_same(of_some.sample(5, seed), plain.sample(5, seed)) for seed in range(10))
    assert not any((of_some.sample(0, seed).image[..., 2] == 50).any() for seed in range(60))
    assert (
        TrainingData(dataset, settings(COPY_PASTE=1.0), augment=False).sample(0, 1).targets.class_ids.tolist()
        == [1] * 3
    )


def test_an_image_that_cannot_be_loaded_gives_no_objects_and_is_named():
    data = TrainingData(many(broken=(1, 2, 3, 4, 5)), settings(COPY_PASTE=1.0))
    warnings = [data._make(0, seed)[1] for seed in range(30)]
    assert any(warnings)
    assert not all(warnings), "its own objects may be pasted, too"
    warning = next(filter(None, warnings))
    assert "image coded.0 got no objects of image" in warning
    assert "which cannot be loaded: the disk is on fire" in warning
    without = TrainingData(many(), settings())
    for seed, text in enumerate(warnings):
        assert not text or is_same(data.sample(0, seed), without.sample(0, seed))


def test_pasted_mini_masks_fill_their_boxes():
    data = TrainingData(many(), settings(COPY_PASTE=1.0, USE_MINI_MASK=True, MINI_MASK_SHAPE=(8, 8)))
    sample = data.sample(0, 3)
    assert len(sample.targets.boxes) > 3
    assert sample.targets.masks.sizes.tolist() == [[8, 8]] * len(sample.targets.boxes)

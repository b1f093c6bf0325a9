"""Masks and their overlaps by hand and against peers, codes against pycocotools."""

import json

import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import roialign
import utils

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "utils.npz")


def blobs(seed, shape, level=0.5):
    """Smooth random masks, bool."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.random(shape), (3, 3, 0)[: len(shape)])
    return noise > np.quantile(noise, level)


############################################################
#  Small masks
############################################################


@given(SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_mini_masks_are_skimages(seed, height, width):
    mask = blobs(seed, (50, 50, 1))
    y, x = np.random.default_rng(seed).integers(0, 10, 2)
    crop = mask[y : y + height, x : x + width, 0].astype(float)
    mini = utils.minimize_mask([[y, x, y + height, x + width]], mask, (14, 20))
    resized = skimage.transform.resize(crop, (14, 20), order=1, mode="constant", anti_aliasing=False)
    certain = np.abs(resized - 0.5) > 1e-9  # on ties the last bit decides
    np.testing.assert_array_equal(mini[..., 0][certain], np.around(resized).astype(bool)[certain])


def test_mini_masks_of_the_port(golden):
    masks, box = golden["p1/mini/masks"], golden["p1/mini/bboxes_yxyx"]
    mini = utils.minimize_mask(box, masks, (56, 56))
    assert mini.dtype == bool
    assert utils.compute_overlaps_masks(mini, golden["p1/mini/mini_mask"]) > 0.97  # the port resized with Pillow
    expanded = utils.expand_mask(box, mini, masks.shape)
    assert utils.compute_overlaps_masks(expanded, golden["p1/mini/expanded"]) > 0.97


@given(SEEDS)
def test_expanding_brings_masks_back(seed):
    masks = blobs(seed, (60, 80, 3), 0.6)
    box = utils.extract_bboxes(masks)
    expanded = utils.expand_mask(box, utils.minimize_mask(box, masks, (56, 56)), (60, 80, 3))
    assert expanded.shape == masks.shape
    assert np.diag(utils.compute_overlaps_masks(expanded, masks)).min() > 0.85


def test_mini_masks_of_nothing():
    none = np.zeros((5, 6, 0), bool)
    assert utils.minimize_mask(np.zeros((0, 4)), none, (3, 4)).shape == (3, 4, 0)
    assert utils.expand_mask(np.zeros((0, 4)), none, (7, 8)).shape == (7, 8, 0)


@pytest.mark.parametrize("box", [[2, 2, 2, 4], [3, 3, 1, 5], [9, 9, 12, 12]])
def test_mini_masks_of_empty_boxes_are_refused(box):
    with pytest.raises(ValueError, match=r"bbox 0 is .* holds no pixel of a 5 x 6 mask"):
        utils.minimize_mask([box], np.ones((5, 6, 1), bool), (3, 3))
    with pytest.raises(ValueError, match="bbox 0 is"):
        utils.expand_mask([box], np.ones((3, 3, 1), bool), (5, 6))
    with pytest.raises(ValueError, match=r"for 2 masks, got \[1, 4\]"):
        utils.minimize_mask([box], np.ones((5, 6, 2), bool), (3, 3))


def test_compute_overlaps_masks_by_hand():
    masks = np.zeros((4, 4, 3), bool)
    masks[:2, :, 0] = masks[1:3, :, 1] = True
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]
    assert utils.compute_overlaps_masks(masks, masks) == pytest.approx(np.array(expected))
    assert utils.compute_overlaps_masks(masks * 0.6, masks * 0.4).max() == 0
    assert utils.compute_overlaps_masks(masks, masks[..., :0]).shape == (3, 0)
    with pytest.raises(ValueError, match=r"\[4, 4, 3\] and masks2 \[3, 4, 3\]"):
        utils.compute_overlaps_masks(masks, masks[1:])


def test_compute_overlaps_masks_in_strips(monkeypatch):
    masks = blobs(0, (40, 30, 5))
    whole = utils.compute_overlaps_masks(masks, masks[..., ::-1])
    monkeypatch.setattr(utils, "_STRIP_PIXELS", 700)
    np.testing.assert_array_equal(utils.compute_overlaps_masks(masks, masks[..., ::-1]), whole)


############################################################
#  Run-length codes
############################################################


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_crops_have_the_code_of_the_whole_mask(seed, height, width, density):
    rng = np.random.default_rng(seed)
    y1, y2 = sorted(rng.integers(0, height + 1, 2).tolist())
    x1, x2 = sorted(rng.integers(0, width + 1, 2).tolist())
    if seed % 2:
        y1, y2 = 0, height  # runs go on in the next column
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < density
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for crop in (mask[y1:y2, x1:x2], torch.from_numpy(mask)[y1:y2, x1:x2]):
        assert utils.crop_to_rle(y1, x1, crop, (height, width)) == expected
    assert utils.mask_to_rle(mask) == expected
    np.testing.assert_array_equal(utils.rle_to_mask(expected), mask)
    assert utils.rle_area(expected) == mask.sum()
    assert list(utils.rle_to_bbox(expected)) == utils.extract_bboxes(mask[..., None])[0].tolist()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_an_empty_crop_is_an_empty_mask(shape):
    empty = coco_mask.encode(np.zeros((7, 9), np.uint8, order="F"))
    assert utils.crop_to_rle(2, 3, np.zeros(shape, bool), (7, 9)) == empty
    assert utils.rle_area(empty) == 0
    assert utils.rle_to_bbox(empty) == (0, 0, 0, 0)


@pytest.mark.parametrize("crop", [None, np.zeros(3, bool), np.zeros((2, 2), object), torch.zeros(2, 2, device="meta")])
def test_what_is_no_crop_is_refused(crop):
    with pytest.raises(ValueError, match=r"crop must be \[h, w\] with values, got"):
        roialign.paste.crop_to_rle(0, 0, crop, (5, 5))


def test_a_crop_of_a_huge_image_is_refused():
    with pytest.raises(ValueError, match=r"image_shape .* more pixels than the"):
        roialign.paste.crop_to_rle(0, 0, np.ones((1, 1), bool), (2**16, 2**16))


def test_a_crop_outside_is_refused():
    for y1, x1 in ((-1, 0), (0, -1), (6, 0), (0, 8)):
        with pytest.raises(ValueError, match=r"2 x 2 at .* not inside an image of 7 x 9"):
            utils.crop_to_rle(y1, x1, np.ones((2, 2), bool), (7, 9))


def test_large_masks_keep_their_codes():
    mask = blobs(1, (700, 900))
    code = utils.mask_to_rle(mask)
    assert code == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(utils.rle_to_mask(code), mask)
    huge = utils.crop_to_rle(39_000, 49_000, np.ones((900, 900), bool), (40_000, 50_000))  # 2 gigapixels
    assert (utils.rle_area(huge), utils.rle_to_bbox(huge)) == (810_000, (39_000, 49_000, 39_900, 49_900))


def test_stacks_and_memory_orders():
    masks = blobs(2, (20, 30, 3))
    codes = utils.mask_to_rle(masks)
    assert len(codes) == 3
    assert utils.mask_to_rle(np.asfortranarray(masks)) == codes
    assert utils.mask_to_rle(masks.astype(np.float32) * 7) == codes
    np.testing.assert_array_equal(utils.rle_to_mask(codes), masks)
    assert utils.mask_to_rle(masks[..., :0]) == []
    with pytest.raises(ValueError, match=r"got \[20\]"):
        utils.mask_to_rle(masks[:, 0, 0])


def test_every_kind_of_code_is_read():
    mask = blobs(3, (20, 30))
    code = utils.mask_to_rle(mask)
    text = utils.rle_to_json(code)
    runs = {"size": [20, 30], "counts": utils._counts(code)[2].tolist()}
    assert json.loads(json.dumps(text)) == text
    assert utils.rle_to_json(runs) == runs
    for version in (code, text, runs):
        np.testing.assert_array_equal(utils.rle_to_mask(version), mask)
        assert utils.annotation_to_rle(version, 20, 30) == code


@pytest.mark.parametrize(
    "code",
    [
        {"size": [4, 5], "counts": [10, 5]},
        {"size": [4, 5], "counts": [10, -5, 15]},
        {"size": [4, 5], "counts": [10.5, 9.5]},
        {"size": [4], "counts": [4]},
        {"size": [4, 5], "counts": b"\x00\x01"},
        {"size": [4, 5], "counts": "P" * 30},
        {"size": [4, 5], "counts": "é"},
        {"size": [4, 5], "counts": b""},
        {"size": [5, 5], "counts": b"5:5"},
        {"size": [4, 5], "counts": [[1, 2]]},
        {"size": [4, 5], "counts": [2**62] * 4 + [20]},  # in 64 bits, these sum to 20
        {"size": [4, 5], "counts": [2**63, 2**63, 20]},
        {"size": [4, 5], "counts": [10**30]},
        {"size": [4, 5], "counts": ["10", "10"]},
        {"size": [4, 5], "counts": [10, None]},
        {"size": [4, 5], "counts": [10, [10]]},
        {"size": [4, 5], "counts": [float("nan"), 20]},
        {"size": [4, 5], "counts": [1e300]},
        {"size": [4, 5], "counts": b"oooooooooooo0"},  # a number of 65 bits
        {"size": [4, 5], "counts": b"4o"},  # the last number goes on beyond the end
        {"size": [2**32, 2**32], "counts": []},  # in 64 bits, no pixels
        {"size": [-4, -5], "counts": [20]},
        {"size": [2**16, 2**16], "counts": [2**32]},  # pycocotools' numbers have 32 bits
        {"size": ["4", "5"], "counts": [20]},
        {"counts": b"d0"},
        "d0",
        None,
    ],
)
def test_damaged_codes_are_refused(code):
    for function in (utils.rle_area, utils.rle_to_bbox, lambda code: utils.rle_to_mask([code])):
        with pytest.raises(ValueError, match="RLE"):
            function(code)


def test_runs_may_be_floats_without_a_fraction():
    assert utils.rle_area({"size": [4.0, 5], "counts": [5.0, 10.0, 5.0]}) == 10


def test_codes_without_pixels():
    for size in ([0, 5], [5, 0], [0, 0]):
        for counts in ([], [0], b"", b"0"):
            assert utils.rle_to_mask({"size": size, "counts": counts}).shape == tuple(size)
            code = utils.annotation_to_rle({"size": size, "counts": counts}, *size)
            assert code == utils.polygons_to_rle([[0, 0, 5, 0, 5, 5]], *size)


def test_huge_masks_have_codes_and_no_arrays():
    code = {"size": [2**15, 2**16], "counts": [5, 3, 2**31 - 8]}
    assert utils.rle_area(code) == 3
    assert utils.rle_to_bbox(code) == (5, 0, 8, 1)
    assert utils.rle_to_crop(code)[2].tolist() == [[True]] * 3
    with pytest.raises(ValueError, match="the mask of this RLE has 32768 x 65536 pixels, more than 1073741824"):
        utils.rle_to_mask(code)
    full = {"size": [2**15, 2**16], "counts": [0, 2**31]}
    with pytest.raises(ValueError, match="RLE has 32768 x 65536 pixels"):
        utils.rle_to_crop(full)


def test_stacks_of_codes_have_one_size():
    code, other = utils.mask_to_rle(np.ones((2, 3), bool)), utils.mask_to_rle(np.ones((3, 2), bool))
    with pytest.raises(ValueError, match=r"several sizes .*\(2, 3\), \(3, 2\)"):
        utils.rle_to_mask([code, other])
    with pytest.raises(ValueError, match="has no size"):
        utils.rle_to_mask([])


############################################################
#  Polygons
############################################################


def test_polygons_by_hand():
    square, lower = [2, 1, 6, 1, 6, 4, 2, 4], [0, 5, 3, 5, 3, 7, 0, 7]
    mask = utils.rle_to_mask(utils.polygons_to_rle([square, lower], 7, 8))
    expected = np.zeros((7, 8), bool)
    expected[1:4, 2:6] = expected[5:7, 0:3] = True
    np.testing.assert_array_equal(mask, expected)
    assert utils.rle_area(utils.polygons_to_rle([square, square], 7, 8)) == 12  # the union


def test_what_encloses_nothing_is_left_out():
    empty = coco_mask.encode(np.zeros((7, 8), np.uint8, order="F"))
    for polygons in ([], [[]], [[1, 1]], [[1, 1, 5, 5]]):  # pycocotools takes four numbers for a box
        assert utils.polygons_to_rle(polygons, 7, 8) == empty
    assert utils.rle_area(utils.polygons_to_rle([[1, 1, 5, 5], (2, 1, 6, 1, 6, 4, 2, 4)], 7, 8)) == 12
    assert utils.rle_area(utils.polygons_to_rle([np.array([-9, -9, 99, -9, 99, 99, -9, 99])], 7, 8)) == 56


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 5, 5, 3], "flat list"),
        ([[1, 1], [5, 5], [3, 3]], "flat list"),
        ([1, 1, 5, np.nan, 3, 3], "coordinate"),
        ([1, 1, 5, 1e9, 3, 3], "coordinate beyond 1e"),
        ([1, 1, 5, 10**400, 3, 3], "flat list"),
        (["\x1b[2J", 1], r"flat list .*\\x1b\[2J"),
        (["a", 1], "flat list"),
        (3, "flat list"),
    ],
)
def test_broken_polygons_are_refused(polygon, message):
    with pytest.raises(ValueError, match=f"polygon 1 .*{message}"):
        utils.polygons_to_rle([[1, 1, 5, 1, 5, 5], polygon], 7, 8)


def test_annotations_of_every_kind():
    polygons = [[2, 1, 6, 1, 6, 4, 2, 4]]
    code = utils.annotation_to_rle(polygons, 7, 8)
    assert code == utils.polygons_to_rle(polygons, 7, 8)
    assert utils.annotation_to_rle(code, 7, 8) == code
    with pytest.raises(ValueError, match=r"the segmentation is 7 x 8, the image 8 x 7"):
        utils.annotation_to_rle(code, 8, 7)
    with pytest.raises(ValueError, match="polygons or an RLE, got str"):
        utils.annotation_to_rle("polygons", 8, 7)


@given(SEEDS, st.floats(0.3, 0.9))
def test_outlines_fill_to_the_mask(seed, level):
    mask = scipy.ndimage.binary_fill_holes(blobs(seed, (60, 80), level))
    mask = scipy.ndimage.binary_opening(mask, np.ones((3, 3)))
    polygons = utils.mask_to_polygons(mask)
    assert len(polygons) == scipy.ndimage.label(mask)[1]
    filled = utils.rle_to_mask(utils.polygons_to_rle(polygons, 60, 80))
    if mask.any():
        assert utils.compute_overlaps_masks(filled[..., None], mask[..., None]) >= 0.9


def test_outlines_by_hand():
    assert utils.mask_to_polygons(np.zeros((5, 5), bool)) == []
    ring = np.ones((9, 9), bool)
    ring[3:6, 3:6] = False
    (outline,) = utils.mask_to_polygons(ring)  # the hole has none
    assert min(outline) == 0
    assert max(outline) == 9
    with pytest.raises(ValueError, match=r"\[5, 5, 1\]"):
        utils.mask_to_polygons(np.zeros((5, 5, 1), bool))


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.sampled_from([(2, 0, 1), (0, 1, 2), (1, 0, 2)]))
def test_bounds_and_boxes_of_masks_are_those_of_extract_bboxes(seed, count, order):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    masks = rng.random((height, width, count)) < rng.choice([0.002, 0.5])
    masks = np.ascontiguousarray(masks.transpose(order)).transpose(np.argsort(order))
    expected = utils.extract_bboxes(masks)
    assert utils.mask_bounds(masks).tolist() == expected.tolist()
    before = rng.random((count, 4), np.float32)
    expected = np.where(masks.any(axis=(0, 1))[:, None], expected, before)  # an empty mask keeps its box
    for each in (masks, utils.mask_to_rle(masks)):
        boxes = utils.boxes_of_masks(each, before)
        assert boxes.dtype == np.float32
        assert boxes.tolist() == expected.tolist()

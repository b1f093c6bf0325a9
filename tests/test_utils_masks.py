"""Masks: pasting against four peers, and codes against pycocotools."""

import json
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
import torch.nn.functional as F
from conftest import DEVICES, GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import roialign
import utils
from roialign import reference

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "utils.npz")


def blobs(seed, shape, level=0.5):
    """Smooth random masks, bool."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.random(shape), (3, 3, 0)[: len(shape)])
    return noise > np.quantile(noise, level)


def random_probs(seed, count, side=28):
    coarse = torch.rand(1, count, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bilinear")[0]


@st.composite
def boxes_around(draw, height, width):
    number = st.floats(-30, 90, width=32)
    y1, x1 = draw(number), draw(number)
    sides = st.floats(0, 120, width=32)
    return torch.tensor([[y1, x1, y1 + draw(sides), x1 + draw(sides)]])


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
#  Pasting
############################################################


def test_centres_is_mmdetections(golden):
    probs = torch.from_numpy(golden["mmdet/mask_logits"]).sigmoid()
    boxes = torch.from_numpy(golden["mmdet/final_boxes"][:, [1, 0, 3, 2]])
    crops = reference.paste_crops(probs, boxes, (400, 600), "centres")
    codes = [utils.rle_to_json(utils.crop_to_rle(*crop, (400, 600))) for crop in crops]
    assert [utils.rle_area(code) for code in codes] == golden["mmdet/mask_areas"].tolist()
    assert [code["counts"] for code in codes] == golden["mmdet/counts"].tolist()


@pytest.mark.parametrize("peer", ["p2", "p3"])
def test_expand_is_benchmarks_and_torchvisions(golden, peer):
    masks, boxes = torch.from_numpy(golden["in/masks"]), torch.from_numpy(golden["in/paste_boxes"][:, [1, 0, 3, 2]])
    width, height = golden["in/paste_image_wh"].tolist()
    pasted = roialign.paste_masks(masks, boxes, (height, width), "expand")
    np.testing.assert_array_equal(pasted.transpose(2, 0, 1), golden[f"{peer}/paste"])


def test_resize_is_matterports(golden):
    masks = golden["in/masks"][golden["p4/unmold/mask_index"]]
    boxes, expected = golden["p4/unmold/boxes_yxyx_int"], golden["p4/unmold/out"]
    width, height = golden["in/paste_image_wh"].tolist()
    pasted = roialign.paste_masks(torch.from_numpy(masks), torch.from_numpy(boxes), (height, width), "resize")
    np.testing.assert_array_equal(pasted.transpose(2, 0, 1), expected)
    for mask, box, image in zip(masks, boxes, expected, strict=True):
        np.testing.assert_array_equal(utils.unmold_mask(mask, box, (height, width, 3)), image)


def centres_by_grid_sample(prob, box, height, width):
    y1, x1, y2, x2 = box
    ys = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    xs = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(xs, ys[:, None]), dim=-1)
    return F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]


@given(SEEDS, boxes_around(60, 70))
def test_centres_is_grid_sample_over_the_whole_image(seed, boxes):
    probs = random_probs(seed, 1)
    pasted = roialign.paste_masks(probs, boxes, (60, 70), "centres")[..., 0]
    if (boxes[0, 2:] > boxes[0, :2]).all():
        sampled = centres_by_grid_sample(probs[0], boxes[0], 60, 70).numpy()
        certain = np.abs(sampled - 0.5) > 1e-5
        np.testing.assert_array_equal(pasted[certain], (sampled >= 0.5)[certain])
    else:
        assert not pasted.any()


@given(SEEDS, boxes_around(60, 70))
def test_expand_is_interpolate_of_the_padded_mask(seed, boxes):
    probs = random_probs(seed, 1)
    pasted = roialign.paste_masks(probs, boxes, (60, 70), "expand")[..., 0]
    centre, half = (boxes[0, 2:] + boxes[0, :2]) * 0.5, (boxes[0, 2:] - boxes[0, :2]) * 0.5 * (30 / 28)
    first = (centre - half).to(torch.int64)
    size = ((centre + half).to(torch.int64) - first + 1).clamp(min=1).tolist()
    value = F.interpolate(F.pad(probs[None], [1] * 4), size, mode="bilinear", align_corners=False)[0, 0].numpy()
    expected = np.zeros((60 + 400, 70 + 400))
    y, x = (first + 200).tolist()
    expected[y : y + size[0], x : x + size[1]] = value
    expected = expected[200:260, 200:270]
    certain = np.abs(expected - 0.5) > 1e-5
    np.testing.assert_array_equal(pasted[certain], (expected > 0.5)[certain])


@given(SEEDS, boxes_around(60, 70))
def test_resize_is_skimages_in_the_box(seed, boxes):
    probs, boxes = (random_probs(seed, 1) + seed % 3 * 0.3).clamp(max=1), boxes.trunc()  # some are 0.5 at least
    pasted = roialign.paste_masks(probs, boxes, (60, 70), "resize")[..., 0]
    y1, x1, y2, x2 = boxes[0].int().tolist()
    expected = np.zeros((60 + 400, 70 + 400))
    if y2 > y1 and x2 > x1:
        value = utils.resize(probs[0].numpy(), (y2 - y1, x2 - x1))
        expected[y1 + 200 : y2 + 200, x1 + 200 : x2 + 200] = value
    expected = expected[200:260, 200:270]
    certain = np.abs(expected - 0.5) > 1e-6
    np.testing.assert_array_equal(pasted[certain], (expected >= 0.5)[certain])


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_full_mask_fills_its_box(rule, device):
    probs, box = torch.ones(1, 28, 28, device=device), torch.tensor([[10.0, 20, 40, 60]], device=device)
    ((y1, x1, crop),) = reference.paste_crops(probs, box, (50, 70), rule)
    assert crop.device.type == device
    assert crop.dtype == torch.bool
    pasted = roialign.paste_masks(probs, box, (50, 70), rule)
    # Expanding takes the last pixel in, and blurs by half a cell, which is a pixel here.
    assert utils.extract_bboxes(pasted).tolist() == [[9, 19, 41, 61] if rule == "expand" else [10, 20, 40, 60]]
    np.testing.assert_array_equal(pasted[y1 : y1 + len(crop), x1 : x1 + crop.shape[1], 0], crop.cpu())
    assert pasted.sum() == crop.sum()


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_thresholds(rule):
    half = torch.full((1, 28, 28), 0.5)
    pasted = roialign.paste_masks(half, torch.tensor([[0.0, 0, 28, 28]]), (28, 28), rule)
    assert pasted[5:20, 5:20].all() == (rule != "expand")
    assert pasted[5:20, 5:20].any() == (rule != "expand")


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize(
    "box",
    [
        [0, 0, np.nan, 5], [-np.inf, 0, np.inf, 5], [100, 100, 120, 120], [-50, -50, -20, -20], [9, 9, 2, 2],
        [5, 5, 5, 5], [-1e30, -1e30, 1e30, 1e30], [-3e38, 0, 3e38, 9], [0, 0, 1e9, 1e9], [5, 5, 5.0001, 30],
        [0, 0, 1e-40, 9],
    ],
)  # fmt: skip
def test_odd_boxes(rule, box):
    ((y1, x1, crop),) = reference.paste_crops(torch.ones(1, 28, 28), torch.tensor([box]), (40, 50), rule)
    assert y1 >= 0
    assert x1 >= 0
    assert y1 + crop.shape[0] <= 40
    assert x1 + crop.shape[1] <= 50
    if not np.isfinite(box).all() or min(box) == 100 or max(box) == -20:
        assert crop.numel() == 0
    assert utils.crop_to_rle(y1, x1, crop, (40, 50))["size"] == [40, 50]


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_a_huge_box_covers_the_image(rule):
    pasted = roialign.paste_masks(torch.ones(1, 28, 28), torch.tensor([[-1e6, -1e6, 1e6, 1e6]]), (40, 50), rule)
    assert pasted.all()


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_no_masks(rule):
    none = torch.zeros(0, 28, 28)
    assert list(reference.paste_crops(none, torch.zeros(0, 4), (5, 6), rule)) == []
    assert roialign.paste_masks(none, torch.zeros(0, 4), (5, 6), rule).shape == (5, 6, 0)


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_strips_make_the_same_crop(rule, monkeypatch):
    probs, box = random_probs(3, 1), torch.tensor([[3.3, 2.2, 37.0, 44.4]])
    ((*corner, whole),) = reference.paste_crops(probs, box, (40, 50), rule)
    monkeypatch.setattr(reference, "_STRIP_PIXELS", 90)
    ((*same_corner, crop),) = reference.paste_crops(probs, box, (40, 50), rule)
    assert whole.any()
    assert (same_corner, crop.tolist()) == (corner, whole.tolist())


def test_pasting_ignores_autocast_and_gradients():
    probs = random_probs(4, 3).requires_grad_()
    boxes = torch.tensor([[0.0, 0, 40, 50], [3.3, 4.4, 30, 30], [10, 10, 90, 20]])
    expected = roialign.paste_masks(probs.detach(), boxes, (40, 50), "centres")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(roialign.paste_masks(probs, boxes, (40, 50), "centres"), expected)
    assert roialign.paste_masks(probs.bfloat16(), boxes, (40, 50), "centres").shape == (40, 50, 3)


def test_one_crop_at_a_time():
    probs, boxes = torch.ones(100, 28, 28), torch.tensor([[0.0, 0, 20, 20]]).repeat(100, 1)
    tracemalloc.start()
    crops = reference.paste_crops(probs, boxes, (20_000, 20_000), "centres")
    codes = [utils.crop_to_rle(*crop, (20_000, 20_000)) for crop in crops]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(codes) == 100
    assert peak < 2e6


def test_what_pasting_refuses():
    probs, boxes = torch.ones(2, 28, 28), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="centres, expand, resize, got 'center'"):
        roialign.paste_masks(probs, boxes, (5, 5), "center")
    with pytest.raises(ValueError, match=r"boxes must be \[2, 4\], one for each mask, got \[3, 4\]"):
        roialign.paste_masks(probs, torch.zeros(3, 4), (5, 5), "centres")
    with pytest.raises(ValueError, match=r"floating \[N, M, M\], got torch.bool"):
        roialign.paste_masks(probs > 0, boxes, (5, 5), "centres")
    with pytest.raises(ValueError, match=r"got torch.float32 \[28, 28\]"):
        roialign.paste_masks(probs[0], boxes, (5, 5), "centres")


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
        {"counts": b"d0"},
        "d0",
        None,
    ],
)
def test_damaged_codes_are_refused(code):
    for function in (utils.rle_area, utils.rle_to_bbox, lambda code: utils.rle_to_mask([code])):
        with pytest.raises(ValueError, match="RLE"):
            function(code)


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

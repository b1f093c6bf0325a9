"""Pasting and encoding of predicted masks: against the reference, four peers and pycocotools, and by hand.

Where no library is built, the reference runs, and is compared with the peers and pycocotools.
"""

import itertools
import re
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, GOLDEN
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import native
import roialign
import utils
from roialign import paste, reference

NAN, INF = float("nan"), float("inf")
SEEDS = st.integers(0, 2**32 - 1)
SIDES = (1, 14, 28, 56)
needs_native = pytest.mark.skipif(not native.is_native("roialign", "cpu"), reason="roialign's library is not built")
# In an image of 40 x 50.
SPECIAL_BOXES = [
    [0, 0, 40, 50],
    [-3.7, -9.2, 44.1, 61.0],  # reaches out of every side
    [0, 10.5, 40, 20.25],  # whole columns: runs go on in the next
    [12, 0, 13, 50],
    [39.5, 49.5, 39.9, 49.9],  # tiny, in the last pixel
    [5, 5, 5, 5],
    [5, 5, 5.0001, 30],
    [9, 9, 2, 2],  # upside down
    [100, 100, 120, 120],
    [-50, -50, -20, -20],
    [40, 0, 60, 50],  # begins where the image ends
    [-9, 0, 0, 50],
    [NAN, 0, 9, 5],
    [0, NAN, 9, 5],
    [0, 0, NAN, 5],
    [0, 0, 9, NAN],
    [0, 0, 9, INF],
    [-INF, 0, INF, 5],
    [1e37, 0, 3.4e38, 9],  # its expanded corners are not numbers, where a mask has one cell
    [0, 0, 1e9, 1e9],
    [-1e9, -1e9, 1e9, 1e9],
    [-1e6, -1e6, 1e6, 1e6],
    [-1e30, -1e30, 1e30, 1e30],
    [-3e38, 0, 3e38, 9],
    [3e38, 0, 3.2e38, 9],
    [0, 0, 1e-40, 9],
    [0, 0, 20, 20.5],
]


def random_probs(count: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Blobs, some of which reach the mask's edge, some noise; one in five masks is inside everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, count, 4, 4, generator=generator)
    probs = F.interpolate(coarse, (rows, columns), mode="bilinear")[0]
    noise = torch.rand(count, rows, columns, generator=generator)
    kind = torch.arange(count)[:, None, None] % 5
    return torch.where(kind == 1, noise, torch.where(kind == 2, 0.5 + 0.5 * noise, probs))


def random_boxes(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([height, width])
    low = torch.rand(count, 2, generator=generator) * size * 1.5 - 0.3 * size
    sides = size * torch.rand(count, 2, generator=generator) ** 2 * 1.5
    boxes = torch.cat([low, low + sides], dim=1)
    whole = torch.arange(count)[:, None] % 3 == 0  # where ties are frequent
    return torch.where(whole, boxes.round(), boxes)


def reference_masks(probs, boxes, shape, rule) -> np.ndarray:
    """bool [N, H, W]"""
    masks = np.zeros((len(probs), *shape), bool)
    for mask, (y, x, crop) in zip(masks, reference.paste_crops(probs, boxes, shape, rule), strict=True):
        mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop.numpy()
    return masks


def values_inside(prob, box, shape, rule) -> np.ndarray:
    """What the reference compares with 0.5, float64 [H, W], in another order of operations; 0 outside of the box."""
    values = np.zeros(shape)
    prob = prob.double().numpy()
    box = np.asarray(box, np.float32)
    (y, ys), (x, xs) = (
        reference._paste_positions(box[i], box[i + 2], prob.shape[i], shape[i], rule) for i in (0, 1)
    )  # fmt: skip
    rows, columns = reference._taps(ys, prob.shape[0]), reference._taps(xs, prob.shape[1])
    crop = rows.astype(np.float64) @ prob @ columns.astype(np.float64).T
    values[y : y + len(ys), x : x + len(xs)] = crop if rule != "resize" else crop.clip(min=prob.min())
    return values


def check(probs, boxes, shape, rule) -> None:
    """Both functions against the reference and pycocotools."""
    masks = roialign.paste_masks(probs, boxes, shape, rule).transpose(2, 0, 1)
    codes = roialign.paste_rles(probs, boxes, shape, rule)
    expected = reference_masks(probs, boxes, shape, rule)
    assert masks.shape == expected.shape
    assert masks.dtype == bool
    assert masks.view(np.uint8).max(initial=0) <= 1
    for i, mask in enumerate(masks):
        assert codes[i] == coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        if not np.array_equal(mask, expected[i]):
            differs = mask != expected[i]
            assert np.abs(values_inside(probs[i], boxes[i], shape, rule)[differs] - 0.5).max() < 1e-6


############################################################
#  Against the reference
############################################################


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("side", SIDES)
@given(SEEDS, st.integers(1, 70), st.integers(1, 70))
@example(0, 1, 1)
@example(1, 1, 64)
@example(2, 64, 1)
def test_matches_the_reference(side, rule, seed, height, width):
    check(random_probs(5, side, side, seed), random_boxes(5, height, width, seed), (height, width), rule)


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("side", SIDES)
def test_special_boxes(side, rule):
    boxes = torch.tensor(SPECIAL_BOXES)
    check(random_probs(len(boxes), side, side, 0), boxes, (40, 50), rule)
    check(torch.ones(len(boxes), side, side), boxes, (40, 50), rule)


numbers = st.one_of(st.floats(width=32), st.floats(-60, 120, width=32), st.integers(-20, 60).map(float))


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@given(st.tuples(numbers, numbers, numbers, numbers), SEEDS)
def test_any_box(rule, box, seed):
    check(random_probs(3, 14, 14, seed), torch.tensor([box] * 3), (40, 50), rule)


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_masks_need_not_be_square(rule):
    check(random_probs(5, 7, 12, 0), random_boxes(5, 40, 50, 0), (40, 50), rule)


@needs_native
@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_values_are_the_references(rule):
    """Masks whose every value lies within the last bits of the threshold: rounding decides each pixel."""
    shape, dtype = (300, 400), torch.float64 if rule == "resize" else torch.float32
    noise = torch.randint(-1, 4, (60, 28, 28), generator=torch.Generator().manual_seed(7)).to(dtype)
    probs, boxes = 0.5 + noise * torch.finfo(dtype).eps / 2, random_boxes(60, *shape, 7)
    masks = roialign.paste_masks(probs, boxes, shape, rule).transpose(2, 0, 1)
    expected = reference_masks(probs, boxes, shape, rule)
    assert expected.sum() > 200_000
    # Of 400,000 pixels, one at most with MKL, which adds some small matrices up in another way. Sums that are not
    # fused, or in the other order, differ in 6,000 and more.
    assert (masks != expected).sum() < 1000


############################################################
#  Against the peers
############################################################


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "utils.npz")


def smooth_probs(seed, count, side=28):
    coarse = torch.rand(1, count, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bilinear")[0]


@st.composite
def boxes_around(draw, height, width):
    number = st.floats(-30, 90, width=32)
    y1, x1 = draw(number), draw(number)
    sides = st.floats(0, 120, width=32)
    return torch.tensor([[y1, x1, y1 + draw(sides), x1 + draw(sides)]])


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
    probs = smooth_probs(seed, 1)
    pasted = roialign.paste_masks(probs, boxes, (60, 70), "centres")[..., 0]
    if (boxes[0, 2:] > boxes[0, :2]).all():
        sampled = centres_by_grid_sample(probs[0], boxes[0], 60, 70).numpy()
        certain = np.abs(sampled - 0.5) > 1e-5
        np.testing.assert_array_equal(pasted[certain], (sampled >= 0.5)[certain])
    else:
        assert not pasted.any()


@given(SEEDS, boxes_around(60, 70))
def test_expand_is_interpolate_of_the_padded_mask(seed, boxes):
    probs = smooth_probs(seed, 1)
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
    probs, boxes = (smooth_probs(seed, 1) + seed % 3 * 0.3).clamp(max=1), boxes.trunc()  # some are 0.5 at least
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


def test_pasting_ignores_autocast_and_gradients():
    probs = smooth_probs(4, 3).requires_grad_()
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


############################################################
#  By hand
############################################################


def test_a_code_by_hand():
    """A mask of one row in the second and third column of four, rows 1 and 2 of three."""
    probs, box = torch.ones(1, 28, 28), torch.tensor([[1.0, 1, 3, 3]])
    pasted = roialign.paste_masks(probs, box, (3, 4), "resize")[..., 0]
    assert pasted.astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    # Runs 4 2 1 2 3, the last two as differences from those two before: 2 - 2 and 3 - 1.
    assert roialign.paste_rles(probs, box, (3, 4), "resize") == [{"size": [3, 4], "counts": b"42102"}]


def test_values_by_hand():
    """A mask of 2 x 2 cells in a box of 4 x 4."""
    probs, box = torch.tensor([[[1.0, 0.5], [0.0, 0.2]]]), torch.tensor([[0.0, 0, 4, 4]])
    # Positions -0.25, 0.25, 0.75, 1.25: with zeros around, weights 0.75 0 | 0.75 0.25 | 0.25 0.75 | 0 0.75.
    # Rows of the mask sampled across: 0.75 0.875 0.625 0.375 and 0 0.05 0.15 0.15. Then down, in the first two rows:
    # 0.56 0.66 0.47 0.28 and 0.56 0.67 0.51 0.32; in the third, 0.26 at most.
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert roialign.paste_masks(probs, box, (4, 4), "centres")[..., 0].astype(int).tolist() == expected


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_a_full_image_is_one_run(rule):
    """Over the ends of all columns, after a run of no zeros."""
    probs, box = torch.ones(2, 28, 28), torch.tensor([[-40.0, -40, 70, 80]] * 2)
    codes = roialign.paste_rles(probs, box, (30, 40), rule)
    assert codes == [coco_mask.encode(np.ones((30, 40), np.uint8, order="F"))] * 2
    assert utils._counts(codes[1])[2].tolist() == [0, 1200]


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_of_one_pixel(rule, value):
    probs, box = torch.full((1, 28, 28), value), torch.tensor([[-8.0, -8, 9, 9]])
    assert roialign.paste_masks(probs, box, (1, 1), rule).tolist() == [[[bool(value)]]]
    assert roialign.paste_rles(probs, box, (1, 1), rule) == [{"size": [1, 1], "counts": b"01" if value else b"1"}]


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels(rule, shape):
    probs, box = torch.ones(1, 28, 28), torch.tensor([[0.0, 0, 5, 5]])
    assert roialign.paste_masks(probs, box, shape, rule).shape == (*shape, 1)
    assert roialign.paste_rles(probs, box, shape, rule) == [{"size": list(shape), "counts": b"0"}]


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_no_masks(rule):
    none, boxes = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert roialign.paste_rles(none, boxes, (5, 6), rule) == []
    assert roialign.paste_masks(none, boxes, (5, 6), rule).shape == (5, 6, 0)


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_masks_that_are_not_finite_are_empty(rule, value):
    probs, boxes = torch.ones(3, 28, 28), torch.tensor([[0.0, 0, 40, 50]] * 3)
    probs[1, 27, 3] = value
    masks = roialign.paste_masks(probs, boxes, (40, 50), rule)
    assert masks.any(axis=(0, 1)).tolist() == [True, False, True]
    codes = roialign.paste_rles(probs, boxes, (40, 50), rule)
    assert [utils.rle_area(code) for code in codes] == masks.sum(axis=(0, 1)).tolist()
    np.testing.assert_array_equal(reference_masks(probs, boxes, (40, 50), rule).transpose(1, 2, 0), masks)


def test_thresholds():
    half, box = torch.full((1, 32, 32), 0.5), torch.tensor([[0.0, 0, 32, 32]])  # numbers that round nothing
    areas = {rule: utils.rle_area(roialign.paste_rles(half, box, (32, 32), rule)[0]) for rule in roialign.PASTE_RULES}
    assert areas == {"centres": 32 * 32, "expand": 0, "resize": 32 * 32}
    half[0, 0, 0] = 0.0
    assert utils.rle_area(roialign.paste_rles(half, box, (32, 32), "resize")[0]) == 32 * 32 - 1
    # Where the smallest value is inside, the edge does not fade; where it lies below, it does.
    wide = torch.tensor([[0.0, 0, 56, 56]])
    (full,) = roialign.paste_rles(torch.full((1, 28, 28), 0.5), wide, (56, 56), "resize")
    assert utils.rle_area(full) == 56 * 56
    below = torch.full((1, 28, 28), 0.6)
    below[0, 14, 14] = 0.4
    corner = roialign.paste_masks(below, wide, (56, 56), "resize")[0, 0, 0]
    assert not corner


############################################################
#  Codes
############################################################


def test_codes_of_every_length():
    """Runs of 1 to 20,000 pixels, longer and shorter than those before: one to four characters, both signs."""
    shape = (20_000, 7)
    steps = torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]])
    boxes = [[low, x, high, x + w] for low, high in itertools.combinations([0, 3, 40, 700, 19_999, 20_000], 2)
             for x, w in ((0, 1), (2, 4), (0, 7))]  # fmt: skip
    for rule in roialign.PASTE_RULES:
        for prob in steps:
            check(prob[None].repeat(len(boxes), 1, 1), torch.tensor(boxes).float(), shape, rule)


def test_codes_longer_than_their_room():
    """A chessboard has the longest code of all: the room for it is found out."""
    board = (torch.arange(56)[:, None] + torch.arange(56)) % 2.0
    probs, boxes = board[None].repeat(3, 1, 1), torch.tensor([[0.0, 0, 168, 168], [0, 0, 56, 56], [5, 5, 9, 9]])
    codes = roialign.paste_rles(probs, boxes, (200, 200), "centres")
    assert len(codes[0]["counts"]) + len(codes[1]["counts"]) > 3 * paste._BYTES / 2
    check(probs, boxes, (200, 200), "centres")
    many = roialign.paste_rles(board[None].repeat(9, 1, 1), boxes[:1].repeat(9, 1), (200, 200), "centres")
    assert sum(len(code["counts"]) for code in many) > 9 * paste._BYTES
    assert many == codes[:1] * 9


def test_codes_have_what_others_have():
    """Types that json and pycocotools take, and a list of its own for each size."""
    codes = roialign.paste_rles(torch.ones(2, 28, 28), torch.tensor([[0.0, 0, 4, 4]] * 2), (5, 6), "centres")
    assert [(type(code["counts"]), code["size"]) for code in codes] == [(bytes, [5, 6])] * 2
    assert codes[0]["size"] is not codes[1]["size"]
    assert all(type(side) is int for side in codes[0]["size"])
    assert coco_mask.area(codes).tolist() == [16, 16]
    numpy_shape = roialign.paste_rles(
        torch.ones(1, 28, 28), torch.tensor([[0.0, 0, 4, 4]]), np.array([5, 6]), "centres"
    )
    assert numpy_shape == codes[:1]
    assert type(numpy_shape[0]["size"][0]) is int


def test_codes_in_images_of_gigapixels():
    """What lies outside the boxes is neither stored nor visited."""
    probs, boxes = torch.ones(100, 28, 28), torch.tensor([[39_000.0, 49_000, 39_100, 49_050]]).repeat(100, 1)
    tracemalloc.start()
    codes = roialign.paste_rles(probs, boxes, (40_000, 50_000), "centres")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    for code in codes:
        assert utils.rle_area(code) == 100 * 50 - 4  # in the corners, 0.64 x 0.78
        assert utils.rle_to_bbox(code) == (39_000, 49_000, 39_100, 49_050)


############################################################
#  Inputs
############################################################


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_devices(dtype, device, rule):
    probs, boxes = random_probs(6, 28, 28, 3).to(dtype), random_boxes(6, 40, 50, 3)
    expected = roialign.paste_masks(probs.double(), boxes, (40, 50), rule)
    assert expected.any()
    for given_boxes in (boxes, boxes.to(device), boxes.double()):
        np.testing.assert_array_equal(roialign.paste_masks(probs.to(device), given_boxes, (40, 50), rule), expected)
        codes = roialign.paste_rles(probs.to(device), given_boxes, (40, 50), rule)
        np.testing.assert_array_equal(utils.rle_to_mask(codes), expected)


def test_resize_computes_in_double():
    """A probability that is below 0.5 in float64 and 0.5 in float32."""
    probs, box = torch.full((2, 4, 4), 0.5, dtype=torch.float64), torch.tensor([[0.0, 0, 4, 4]] * 2)
    probs[1] -= 1e-12
    assert roialign.paste_masks(probs, box, (4, 4), "resize").all(axis=(0, 1)).tolist() == [True, False]
    assert roialign.paste_masks(probs, box, (4, 4), "centres").all(axis=(0, 1)).tolist() == [True, True]
    assert [utils.rle_area(code) for code in roialign.paste_rles(probs, box, (4, 4), "resize")] == [16, 0]


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_layouts_and_gradients(rule):
    probs, boxes = random_probs(4, 28, 28, 5), random_boxes(4, 40, 50, 5)
    expected = roialign.paste_rles(probs, boxes, (40, 50), rule)
    strided = probs.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    columns = boxes.t().contiguous().t()
    assert roialign.paste_rles(strided, columns, (40, 50), rule) == expected
    np.testing.assert_array_equal(roialign.paste_masks(strided, columns, (40, 50), rule), utils.rle_to_mask(expected))
    assert roialign.paste_rles(probs.requires_grad_(), boxes.requires_grad_(), (40, 50, 3), rule) == expected
    assert roialign.paste_rles(probs[1:], boxes[1:], (40, 50), rule) == expected[1:]


def test_probs_of_any_layout_stay_alive_while_the_kernel_reads_them():
    """A copy that only the kernel's pointer knew was freed before it was read. `make sanitize` finds such reads."""
    probs = torch.rand(64, 28, 28, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]]).repeat(64, 1)
    strided = torch.stack([probs, probs], -1)[..., 0]
    assert not strided.is_contiguous()
    for rule in roialign.PASTE_RULES:
        expected = roialign.paste_masks(probs, boxes, (32, 32), rule)
        assert (roialign.paste_masks(strided, boxes, (32, 32), rule) == expected).all()


def test_what_pasting_refuses():
    probs, boxes = torch.ones(2, 28, 28), torch.zeros(2, 4)
    for function in (roialign.paste_masks, roialign.paste_rles):
        with pytest.raises(ValueError, match="rule must be one of centres, expand, resize, got 'center'"):
            function(probs, boxes, (5, 5), "center")
        with pytest.raises(ValueError, match=r"boxes must be \[2, 4\], one for each mask, got \[3, 4\]"):
            function(probs, torch.zeros(3, 4), (5, 5), "centres")
        with pytest.raises(ValueError, match=r"probs must be floating \[N, M, M\], got torch.bool"):
            function(probs > 0, boxes, (5, 5), "centres")
        with pytest.raises(ValueError, match=r"got torch.float32 \[28, 28\]"):
            function(probs[0], boxes, (5, 5), "centres")
        with pytest.raises(ValueError, match=r"got torch.float32 \[2, 0, 0\]"):
            function(probs[:, :0, :0], boxes, (5, 5), "centres")
        with pytest.raises(ValueError, match=r"image_shape must be \(H, W\), got \(-1, 5\)"):
            function(probs, boxes, (-1, 5), "centres")
        with pytest.raises(ValueError, match=r"image_shape must be \(H, W\), got \(4294967296, 4294967296\)"):
            function(probs, boxes, (2**32, 2**32), "centres")
        with pytest.raises(ValueError, match=r"image_shape must be \(H, W\), got \(5, 2\.5\)"):
            function(probs, boxes, (5, 2.5), "centres")
        with pytest.raises(ValueError, match=r"boxes must be a torch\.Tensor, not list"):
            function(probs, [[0, 0, 1, 1]] * 2, (5, 5), "centres")
        with pytest.raises(ValueError, match="probs must have values, and tensors on the device meta have none"):
            function(probs.to("meta"), boxes, (5, 5), "centres")
    with pytest.raises(ValueError, match=r"\(65536, 65536\) has more pixels than the 2\*\*32 - 1 of an RLE"):
        roialign.paste_rles(probs, boxes, (65536, 65536), "centres")
    assert len(roialign.paste_rles(probs, boxes, (65535, 65537), "centres")) == 2


############################################################
#  Which one runs
############################################################


def test_the_rules_have_the_kernels_order():
    """The kernel gets a rule as its index in PASTE_RULES."""
    header = (native.ROOT / "roialign" / "src" / "paste.h").read_text()
    (names,) = re.findall(r"enum RuleCode : int64_t \{ (.+?) \};", header)
    assert [name.removeprefix("k").lower() for name in names.split(", ")] == list(roialign.PASTE_RULES)


def test_the_kernel_runs_where_it_is_built(monkeypatch):
    """And the reference, with the same result, where it is not."""
    assert paste.is_native() == native.is_native("roialign", "cpu")
    probs, boxes = random_probs(4, 28, 28, 6), random_boxes(4, 40, 50, 6)
    arguments = (probs, boxes, (40, 50), "centres")
    expected = roialign.paste_masks(*arguments), roialign.paste_rles(*arguments)
    called = []
    monkeypatch.setattr(
        reference, "paste_crops", lambda *args, real=reference.paste_crops: called.append(1) or real(*args)
    )
    roialign.paste_masks(*arguments)
    roialign.paste_rles(*arguments)
    assert len(called) == (0 if paste.is_native() else 2)
    monkeypatch.setattr(paste, "_library", None)
    np.testing.assert_array_equal(roialign.paste_masks(*arguments), expected[0])
    assert roialign.paste_rles(*arguments) == expected[1]
    assert len(called) == (2 if native.is_native("roialign", "cpu") else 4)


@pytest.mark.parametrize("rule", roialign.PASTE_RULES)
def test_the_reference_in_strips(rule, monkeypatch):
    probs, boxes = random_probs(3, 28, 28, 8), random_boxes(3, 40, 50, 8)
    whole = reference_masks(probs, boxes, (40, 50), rule)
    monkeypatch.setattr(reference, "_STRIP_PIXELS", 90)
    assert (reference_masks(probs, boxes, (40, 50), rule) != whole).sum() == 0

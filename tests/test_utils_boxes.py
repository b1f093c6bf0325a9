"""Boxes: by hand, against the 2018 port, and what does not come out even."""

import numpy as np
import pytest
import torch
from conftest import DEVICES, GOLDEN
from hypothesis import given
from hypothesis import strategies as st

import utils

NUMBERS = st.floats(-500, 500, width=32)
SIDES = st.floats(1, 300, width=32)


@st.composite
def boxes(draw, count=None):
    rows = count or draw(st.integers(0, 6))
    corner = np.array([[draw(NUMBERS), draw(NUMBERS)] for _ in range(rows)], np.float32).reshape(rows, 2)
    sides = np.array([[draw(SIDES), draw(SIDES)] for _ in range(rows)], np.float32).reshape(rows, 2)
    return np.concatenate([corner, corner + sides], axis=1)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "utils.npz")


def test_box_area_by_hand():
    assert utils.box_area(np.array([[1, 2, 4, 7], [4, 7, 1, 2], [4, 2, 1, 7]])).tolist() == [15, 0, 0]


def test_compute_iou_by_hand():
    box, others = np.array([0.0, 0, 10, 10]), np.array([[0.0, 5, 10, 15], [20, 20, 30, 30]])
    iou = utils.compute_iou(box, others, 100.0, np.array([100.0, 100.0]))
    assert iou == pytest.approx([50 / 150, 0])


def test_compute_overlaps_by_hand():
    ours = [[0, 0, 10, 10], [0, 0, 4, 4]]
    overlaps = utils.compute_overlaps(ours, np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]]))
    assert overlaps == pytest.approx(np.array([[1, 50 / 150, 0], [0.16, 0, 0]]))


@pytest.mark.parametrize("odd", [[5, 5, 5, 5], [8, 8, 2, 2], [np.nan, 0, 1, 1], [-np.inf, 0, np.inf, 1]])
def test_a_box_without_area_overlaps_nothing(odd):
    odd = np.array([odd], np.float32)
    assert utils.compute_overlaps(odd, np.concatenate([odd, [[0, 0, 10, 10]]])).tolist() == [[0, 0]]


@given(boxes(), boxes())
def test_overlaps_are_symmetric_and_1_with_itself(first, second):
    overlaps = utils.compute_overlaps(first, second)
    assert overlaps.shape == (len(first), len(second))
    assert overlaps == pytest.approx(utils.compute_overlaps(second, first).T, abs=1e-6)
    assert np.diag(utils.compute_overlaps(first, first)) == pytest.approx(1)


def test_apply_box_deltas_by_hand():
    # Centre (5, 10) moves by (0.5 * 10, 0.1 * 20) to (10, 12); the height doubles, the width halves.
    moved = utils.apply_box_deltas(np.array([[0.0, 0, 10, 20]]), np.array([[0.5, 0.1, np.log(2), -np.log(2)]]))
    assert moved == pytest.approx(np.array([[0, 7, 20, 17]]))


def test_deltas_are_clamped_on_the_sides_that_are_named():
    box, deltas = np.array([0.0, 0, 2, 2]), np.array([0, 0, 5.0, -5.0])
    high = utils.apply_box_deltas(box, deltas, clamp_high=1.0)
    both = utils.apply_box_deltas(box, deltas, clamp_low=-1.0, clamp_high=1.0)
    assert high[2] - high[0] == both[2] - both[0] == pytest.approx(2 * np.e)
    assert high[3] - high[1] == pytest.approx(2 * np.exp(-5))
    assert both[3] - both[1] == pytest.approx(2 / np.e)


def test_coding_is_the_ports(golden):
    box = golden["in/ref_boxes"][:, [1, 0, 3, 2]]  # x1 y1 x2 y2 to ours
    moved = utils.apply_box_deltas(box, golden["in/deltas"])
    assert moved == pytest.approx(golden["p1/apply_box_deltas_yx"], rel=1e-5, abs=1e-3)
    deltas = utils.box_refinement(box, box[::-1])
    assert deltas == pytest.approx(golden["p1/box_refinement_yx"], rel=1e-5, abs=1e-5)


@given(boxes(4), boxes(4))
def test_refinement_is_undone_by_applying(box, gt_box):
    deltas = utils.box_refinement(box, gt_box)
    assert utils.apply_box_deltas(box, deltas) == pytest.approx(gt_box, abs=0.01)


def test_box_refinement_by_hand():
    deltas = utils.box_refinement(np.array([0.0, 0, 10, 20]), np.array([0.0, 7, 20, 17]))
    assert deltas == pytest.approx([0.5, 0.1, np.log(2), -np.log(2)])


def test_box_functions_take_leading_dimensions():
    box = torch.rand(2, 3, 4).sort(dim=-1).values
    deltas = torch.zeros(2, 3, 4)
    torch.testing.assert_close(utils.apply_box_deltas(box, deltas), box)
    assert utils.box_area(box).shape == (2, 3)


def test_clip_boxes_by_hand():
    box = np.array([[-5.0, 3, 50, 70], [90, 90, 99, 99]])
    assert utils.clip_boxes(box, (0, 0, 40, 60)).tolist() == [[0, 3, 40, 60], [40, 60, 40, 60]]
    windows = np.array([[0, 0, 40, 60], [0, 0, 95, 95]])  # one for each
    assert utils.clip_boxes(box, windows).tolist() == [[0, 3, 40, 60], [90, 90, 95, 95]]


def test_extract_bboxes_by_hand():
    mask = np.zeros((8, 9, 3), bool)
    mask[2:5, 3:9, 0] = True
    mask[0, 0, 2] = mask[7, 4, 2] = True
    for version in (mask, mask.astype(np.float32), torch.from_numpy(mask)):
        found = utils.extract_bboxes(version)
        assert found.tolist() == [[2, 3, 5, 9], [0, 0, 0, 0], [0, 0, 8, 5]]
    assert utils.extract_bboxes(mask).dtype == np.int32
    assert utils.extract_bboxes(np.zeros((8, 9, 0), bool)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"mask\[\.\.\., None\]"):
        utils.extract_bboxes(mask[..., 0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.integers(0, 4))
def test_extract_bboxes_is_the_slow_way(seed, height, width, count):
    mask = np.random.default_rng(seed).random((height, width, count)) < 0.1
    for i, box in enumerate(utils.extract_bboxes(mask).tolist()):
        ys, xs = np.nonzero(mask[..., i])
        assert box == ([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1] if len(ys) else [0, 0, 0, 0])


def test_trim_zeros_by_hand():
    assert utils.trim_zeros(np.array([[0, 0], [0, 1], [0, 0], [-1, 0]])).tolist() == [[0, 1], [-1, 0]]
    assert utils.trim_zeros(np.zeros((3, 4))).shape == (0, 4)


def test_normalised_boxes_by_hand():
    box = np.array([[0, 0, 100, 200], [9.9, 0, 50.5, 100.5]])
    normalised = utils.norm_boxes(box, (100, 200, 3))
    assert normalised.dtype == np.float32
    assert normalised == pytest.approx(np.array([[0, 0, 1, 1], [0.1, 0, 0.5, 0.5]]))
    assert utils.denorm_boxes(np.array([[0.1, 0, 0.5, 0.5]]), (100, 200)).tolist() == [[10, 0, 50, 100]]
    assert utils.denorm_boxes(np.array([[0.5, 0.5, 0.5, 0.5]]), (4, 6)).tolist() == [[2, 2, 2, 4]]  # 1.5, 2.5: to even


@given(st.lists(st.integers(0, 400), min_size=4, max_size=4), st.integers(2, 1000), st.integers(2, 1000))
def test_normalising_is_undone(box, height, width):
    box = np.array([box])
    assert utils.denorm_boxes(utils.norm_boxes(box, (height, width)), (height, width)).tolist() == box.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_in_tensors_out(device):
    box = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 30]], device=device)
    mask = torch.ones(4, 5, 1, device=device)
    results = [
        utils.box_area(box), utils.compute_overlaps(box, box), utils.apply_box_deltas(box, torch.zeros_like(box)),
        utils.compute_iou(box[0], box, utils.box_area(box[0]), utils.box_area(box)), utils.box_refinement(box, box),
        utils.clip_boxes(box, (0, 0, 9, 9)), utils.norm_boxes(box, (9, 9)), utils.denorm_boxes(box, (9, 9)),
        utils.extract_bboxes(mask), utils.trim_zeros(box),
    ]  # fmt: skip
    assert all(isinstance(result, torch.Tensor) and result.device.type == device for result in results)
    assert utils.compute_overlaps(box.double(), box).dtype == torch.float64


def test_no_boxes_are_boxes():
    none, some = np.zeros((0, 4), np.float32), np.array([[0, 0, 1, 1]], np.float32)
    assert utils.compute_overlaps(none, some).shape == (0, 1)
    assert utils.compute_overlaps(some, none).shape == (1, 0)
    for function in (utils.apply_box_deltas, utils.box_refinement):
        assert function(none, none).shape == (0, 4)
    for function in (utils.clip_boxes, utils.norm_boxes, utils.denorm_boxes):
        assert function(none, (5, 6, 7, 8)).shape == (0, 4)


def test_arrays_that_torch_cannot_share():
    box = np.array([[0, 0, 10, 10], [0, 0, 5, 4]], ">f4")[::-1]
    box.flags.writeable = False
    assert utils.box_area(box).tolist() == [20, 100]


def test_whole_numbers_become_floating():
    assert utils.apply_box_deltas(np.array([[0, 0, 3, 3]]), np.zeros((1, 4))).dtype == np.float32
    with pytest.raises(ValueError, match=r"boxes must be \[\.\.\., \(y1, x1, y2, x2\)\], got \[2, 5\]"):
        utils.apply_box_deltas(np.zeros((2, 5)), np.zeros((2, 4)))

"""nms and batched_nms: every kernel against the reference, and the reference against cases done by hand."""

import numpy as np
import pytest
import torch
from conftest import DEVICES, host_waits, needs_cuda
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nms import batched_nms, nms, nms_of_images, reference

op = torch.ops.maskscoring.batched_nms.default
op_of_images = torch.ops.maskscoring.nms_of_images.default
NAN, INF = float("nan"), float("inf")


def random_boxes(n: int, seed: int, spread: float = 100.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * spread
    size = torch.rand(n, 2, generator=generator) * 40
    # Few distinct scores, so that ties are common.
    scores = torch.randint(0, max(n // 2, 1), (n,), generator=generator) / max(n, 1)
    return torch.cat([corner, corner + size], dim=1), scores


def assert_matches_reference(boxes, scores, groups, iou_threshold, max_keep, device, max_boxes=None) -> None:
    expected = reference.batched_nms(boxes, scores, groups, iou_threshold, max_keep, max_boxes)
    groups = None if groups is None else groups.to(device)
    actual = batched_nms(boxes.to(device), scores.to(device), groups, iou_threshold, max_keep, max_boxes)
    assert actual.device.type == device
    assert actual.dtype == torch.int64
    assert actual.tolist() == expected.tolist()


############################################################
#  By hand
############################################################


@pytest.mark.parametrize("device", DEVICES)
def test_by_hand(device):
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # IoU with the next: 90 / 110
            [0.0, 1.0, 10.0, 11.0],
            [20.0, 20.0, 30.0, 30.0],  # alone
            [0.0, 0.0, 10.0, 5.0],  # exactly half of box 0
        ],
        device=device,
    )
    scores = torch.tensor([0.8, 0.9, 0.1, 0.7], device=device)
    assert nms(boxes, scores, 0.8).tolist() == [1, 3, 2]  # 90 / 110 = 0.818 > 0.8
    assert nms(boxes, scores, 0.82).tolist() == [1, 0, 3, 2]
    # Box 3 and box 0 overlap by exactly 0.5, which is not strictly above it.
    assert nms(boxes[[0, 3]], scores[[0, 3]], 0.5).tolist() == [0, 1]
    assert nms(boxes[[0, 3]], scores[[0, 3]], 0.49).tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
def test_equal_scores_go_by_index(device):
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3 + [[9.0, 9.0, 12.0, 12.0]], device=device)
    assert nms(boxes, torch.full((4,), 0.5, device=device), 0.5).tolist() == [0, 3]
    assert nms(boxes, torch.tensor([-0.0, 0.0, 0.0, -0.0], device=device), 0.5).tolist() == [0, 3]
    assert nms(boxes, torch.tensor([-1.0, 2.0, 2.0, -3.0], device=device), 1.0).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("device", DEVICES)
def test_iou_of_three_tenths_is_not_above_three_tenths(device):
    """The threshold is rounded to float32 as the IoU is: 3/10 is not above 0.3, in whatever precision 0.3 came."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0]], device=device)
    assert nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.3).tolist() == [0, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_groups_do_not_see_each_other(device):
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 4, device=device)
    scores = torch.tensor([0.1, 0.4, 0.3, 0.2], device=device)
    groups = torch.tensor([7, -(2**62), 7, 2**62], device=device)
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes, scores, None, 0.5).tolist() == [1]


@pytest.mark.parametrize("device", DEVICES)
def test_max_keep_counts_within_a_group(device):
    boxes = torch.arange(12.0, device=device)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0], device=device)
    scores = torch.arange(12.0, device=device)
    groups = torch.arange(12, device=device) % 2
    assert batched_nms(boxes, scores, groups, 0.5, max_keep=2).tolist() == [11, 10, 9, 8]
    assert batched_nms(boxes, scores, groups, 0.5, max_keep=0).tolist() == []
    assert batched_nms(boxes, scores, None, 0.5, max_keep=np.int64(3)).tolist() == [11, 10, 9]
    assert len(batched_nms(boxes, scores, None, 0.5, max_keep=100)) == 12


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_best_boxes_of_a_group_take_part(device):
    """Of each group the best two: a box that overlaps the first does not make room for the third."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 29, 29], [20, 20, 29, 29]], device=device)
    scores, groups = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device), torch.tensor([0, 0, 0, 1], device=device)
    assert batched_nms(boxes, scores, groups, 0.5, max_boxes=2).tolist() == [0, 3]
    assert batched_nms(boxes, scores, groups, 0.5, max_boxes=3).tolist() == [0, 2, 3]
    scores[0] = NAN  # which takes no place
    assert batched_nms(boxes, scores, None, 0.5, max_boxes=2).tolist() == [1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_best_of_images_by_hand(device):
    """Two images with two groups each. Box 1 falls to box 0, of its group; box 6 is of no image, box 7 not finite."""
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 8, device=device)
    boxes[4] += 20
    scores = torch.tensor([0.5, 0.4, 0.6, 0.5, 0.5, 0.7, 0.9, -INF], device=device)
    groups = torch.tensor([0, 0, 1, 2, 2, 3, 4, 1], device=device)
    keep, counts = nms_of_images(boxes, scores, groups, 2, 2, 0.5, 3)
    assert keep.tolist() == [[2, 0, 0], [5, 3, 4]]  # of equal scores, the lower index first
    assert counts.tolist() == [2, 3]
    keep, counts = nms_of_images(boxes, scores, groups, 3, 2, 0.5, np.int64(1))
    assert (keep.tolist(), counts.tolist()) == ([[2], [5], [6]], [1, 1, 1])
    keep, counts = nms_of_images(boxes[:2], scores[:2], groups[:2] - 5, 1, 1, 0.5, 10**9)
    assert (keep.tolist(), counts.tolist()) == ([[0, 0]], [0])
    for images, limit in ((0, 3), (2, 0)):
        keep, counts = nms_of_images(boxes, scores, groups, images, 2, 0.5, limit)
        assert (keep.shape, counts.tolist()) == ((images, limit), [0] * images)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_never_kept_and_suppresses_nothing(bad, device):
    good = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]], device=device)
    for coordinate in range(4):
        boxes = good.clone()
        boxes[0, coordinate] = bad
        assert nms(boxes, torch.tensor([0.9, 0.1], device=device), 0.5).tolist() == [1]
    assert nms(good, torch.tensor([bad, 0.1], device=device), 0.5).tolist() == [1]
    assert nms(good, torch.tensor([bad, bad], device=device), 0.5).tolist() == []


@pytest.mark.parametrize("device", DEVICES)
def test_boxes_without_area_overlap_nothing(device):
    empty = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 2.0, 2.0]], device=device)
    assert nms(empty, torch.tensor([0.3, 0.2, 0.1], device=device), 0.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_no_boxes(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    assert nms(boxes, scores, 0.5).shape == (0,)
    groups = torch.zeros(0, dtype=torch.int32, device=device)
    assert batched_nms(boxes, scores, groups, 0.5).shape == (0,)
    keep, counts = nms_of_images(boxes, scores, groups, 2, 3, 0.5, 7)
    assert (keep.shape, counts.tolist()) == ((2, 0), [0, 0])


############################################################
#  Against the reference
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 500])  # 64 boxes fill one CUDA block
def test_matches_reference(n, iou_threshold, device):
    boxes, scores = random_boxes(n, seed=n)
    assert_matches_reference(boxes, scores, None, iou_threshold, None, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1023, 1024, 1025, 2600])  # 1024 boxes fill one CPU block
@pytest.mark.parametrize("max_keep", [None, 1030])
def test_matches_reference_over_many_blocks(n, max_keep, device):
    boxes, scores = random_boxes(n, seed=n, spread=800.0)
    assert_matches_reference(boxes, scores, None, 0.6, max_keep, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group_count", [1, 2, 7, 300])
@pytest.mark.parametrize("max_keep", [None, 5])
def test_groups_match_reference(group_count, max_keep, device):
    boxes, scores = random_boxes(700, seed=group_count)
    groups = torch.randint(-3, group_count - 3, (700,), generator=torch.Generator().manual_seed(0)) * 10**12
    assert_matches_reference(boxes, scores, groups, 0.4, max_keep, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1, 65, 700, 2600])
@pytest.mark.parametrize(("images", "groups_per_image", "limit", "max_boxes"), [(3, 5, 20, None), (2, 1, 5000, 1030)])
def test_best_of_images_match_reference(images, groups_per_image, limit, max_boxes, n, device):
    boxes, scores = random_boxes(n, seed=n, spread=400.0)
    groups = torch.randint(-2, images * groups_per_image + 2, (n,), generator=torch.Generator().manual_seed(0))
    rule = (images, groups_per_image, 0.4, min(limit, n), max_boxes)
    expected = reference.nms_of_images(boxes, scores, groups, *rule)
    actual = nms_of_images(boxes.to(device), scores.to(device), groups.to(device), *rule)
    for column, wanted in zip(actual, expected, strict=True):
        assert (column.device.type, column.dtype) == (device, torch.int64)
        assert column.tolist() == wanted.tolist()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_do_not_change_the_result(threads):
    boxes, scores = random_boxes(3000, seed=1, spread=300.0)
    groups = torch.arange(3000) % 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_matches_reference(boxes, scores, None, 0.5, None, "cpu")
        assert_matches_reference(boxes, scores, groups, 0.5, None, "cpu", 900)
    finally:
        torch.set_num_threads(before)


# Whole pixels make exact ties of IoU and threshold; the rest makes everything else.
coordinates = st.one_of(
    st.integers(-8, 8).map(float), st.floats(width=32), st.sampled_from([NAN, INF, -INF, 1e30, -1e30, 1e-30, -0.0])
)
box_arrays = st.integers(0, 70).flatmap(lambda n: hnp.arrays(np.float32, (n, 4), elements=coordinates))


@given(boxes=box_arrays, data=st.data())
def test_any_boxes_match_reference(boxes, data):
    n = len(boxes)
    scores = data.draw(hnp.arrays(np.float32, n, elements=st.one_of(st.sampled_from([0.5, 0.25]), st.floats(width=32))))
    groups = data.draw(st.one_of(st.none(), hnp.arrays(np.int64, n, elements=st.integers(-2, 2))))
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    max_keep = data.draw(st.one_of(st.none(), st.integers(0, 10)))
    max_boxes = data.draw(st.one_of(st.none(), st.integers(1, 30)))
    boxes, scores, groups = (None if x is None else torch.from_numpy(x) for x in (boxes, scores, groups))
    assert_matches_reference(boxes, scores, groups, threshold, max_keep, "cpu", max_boxes)
    if groups is not None:
        rule = (2, 2, threshold, min(n, 10 if max_keep is None else max_keep), max_boxes)
        actual, expected = (call(boxes, scores, groups, *rule) for call in (nms_of_images, reference.nms_of_images))
        assert [column.tolist() for column in actual] == [column.tolist() for column in expected]


def test_strided_and_integer_inputs():
    boxes, scores = random_boxes(60, seed=5)
    wide = torch.zeros(60, 8)
    wide[:, 4:] = boxes
    groups = torch.arange(120, dtype=torch.int32)[::2] % 6
    expected = reference.batched_nms(boxes, scores, groups, 0.3, None).tolist()
    assert batched_nms(wide[:, 4:], scores.repeat_interleave(2)[::2], groups, 0.3).tolist() == expected


def test_half_precision_is_widened_and_double_stays_double():
    boxes, scores = random_boxes(80, seed=6)
    for dtype in (torch.float16, torch.bfloat16):
        expected = reference.nms(boxes.to(dtype).float(), scores.to(dtype).float(), 0.4)
        assert nms(boxes.to(dtype), scores.to(dtype), 0.4).tolist() == expected.tolist()
    # One half plus a little: lost in float32, above the threshold in float64.
    double = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0 + 1e-12]], dtype=torch.float64)
    assert nms(double, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]
    assert nms(double.float(), torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]


############################################################
#  As a torch op
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grouped", [False, True])
def test_opcheck(grouped, device):
    boxes, scores = (tensor.to(device) for tensor in random_boxes(30, seed=7))
    groups = torch.arange(30, device=device) % 4 if grouped else None
    torch.library.opcheck(op, (boxes, scores, groups, 0.5, 3))
    torch.library.opcheck(op, (boxes, scores, groups, 0.5, 3, 9))
    if grouped:
        torch.library.opcheck(op_of_images, (boxes, scores, groups, 3, 2, 0.5, 5, 9))
        torch.library.opcheck(op_of_images, (boxes, scores, groups, 3, 2, 0.5, 0))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend):
    """For any number of boxes, and for thresholds that torch.compile makes symbols of after the first."""
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def keep(boxes, scores, groups, iou_threshold):
        kept = batched_nms(boxes, scores, groups, iou_threshold)
        return boxes[kept] * 2

    for n, iou_threshold in ((40, 0.5), (17, 0.6), (0, 0.7), (23, 0.3)):
        boxes, scores = random_boxes(n, seed=8)
        groups = torch.arange(n) % 3
        expected = boxes[reference.batched_nms(boxes, scores, groups, iou_threshold, None)] * 2
        torch.testing.assert_close(keep(boxes, scores, groups, iou_threshold), expected, rtol=0, atol=0)


def test_best_of_images_compile_as_one_graph():
    """For any number of boxes: the shape of the result is known."""
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def best(boxes, scores, groups):
        keep, counts = nms_of_images(boxes, scores, groups, 2, 3, 0.4, 20)
        return boxes[keep] * 2, counts

    for n in (40, 17, 23):
        boxes, scores = random_boxes(n, seed=8)
        keep, counts = reference.nms_of_images(boxes, scores, torch.arange(n) % 6, 2, 3, 0.4, min(n, 20))
        actual = best(boxes, scores, torch.arange(n) % 6)
        torch.testing.assert_close(actual, (boxes[keep] * 2, counts), rtol=0, atol=0)


def test_autocast_keeps_boxes_in_float32():
    boxes, scores = random_boxes(100, seed=9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nms(boxes, scores, 0.5).tolist() == reference.nms(boxes, scores, 0.5).tolist()
        half = op(boxes.bfloat16(), scores.bfloat16(), None, 0.5, None)
        (of_images,), _ = op_of_images(boxes.bfloat16(), scores.bfloat16(), torch.zeros(100).long(), 1, 1, 0.5, 3)
    assert half.tolist() == reference.nms(boxes.bfloat16().float(), scores.bfloat16().float(), 0.5).tolist()
    assert of_images.tolist() == half[:3].tolist()


def test_indices_carry_no_gradient():
    boxes, scores = random_boxes(10, seed=10)
    kept = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert not kept.requires_grad
    boxes[kept].sum().backward()
    assert boxes.grad is not None


############################################################
#  Errors
############################################################

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 5), SCORES, 0.5), r"boxes must be \[N, \(y1, x1, y2, x2\)\], not \[3, 5\]"),
        ((torch.zeros(2, 3, 4), SCORES, 0.5), "one image at a time"),
        ((BOXES, torch.zeros(4), 0.5), r"scores \[4\] must have one entry a box"),
        ((BOXES.long(), SCORES, 0.5), "boxes .torch.int64. and scores .* must be floating"),
        ((BOXES, SCORES.long(), 0.5), "must be floating"),
        ((BOXES, SCORES, NAN), "iou_threshold must be a number in .0, 1., not nan"),
        ((BOXES, SCORES, INF), "not inf"),
        ((BOXES, SCORES, 50), "not 50"),
        ((BOXES, SCORES, -0.1), "not -0.1"),
        ((BOXES, SCORES.numpy(), 0.5), "scores must be a torch.Tensor, not ndarray; torch.as_tensor makes one"),
        (([[0.0, 0, 1, 1]], SCORES, 0.5), "boxes must be a torch.Tensor, not list"),
    ],
)
def test_errors_of_nms(arguments, message):
    with pytest.raises(ValueError, match=message):
        nms(*arguments)


@pytest.mark.parametrize(
    ("groups", "max_keep", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), None, r"groups \[2\] must have one entry a box"),
        (torch.zeros(3), None, "groups must be integers, not torch.float32"),
        (torch.zeros(3, dtype=torch.bool), None, "groups must be integers, not torch.bool"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), None, "groups on meta and boxes on cpu"),
        (None, -1, "max_keep must be None or an integer of at least 0, not -1"),
        (None, 1.5, "max_keep must be None or an integer"),
        (None, 2**63, "max_keep must be None or an integer"),
    ],
)
def test_errors_of_batched_nms(groups, max_keep, message):
    with pytest.raises(ValueError, match=message):
        batched_nms(BOXES, SCORES, groups, 0.5, max_keep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": None}, "groups must be integers .N., .* not None"),
        ({"groups": torch.zeros(3)}, "groups must be integers, not torch.float32"),
        ({"images": -1}, "images must be an integer of at least 0, not -1"),
        ({"images": None}, "images must be an integer of at least 0, not None"),
        ({"groups_per_image": 0}, "groups_per_image must be an integer of at least 1, not 0"),
        ({"limit": 1.5}, "limit must be an integer of at least 0, not 1.5"),
        ({"limit": NAN}, "limit must be an integer of at least 0, not nan"),
        ({"max_boxes": 0}, "max_boxes must be None or an integer of at least 1, not 0"),
        ({"images": 2**16, "groups_per_image": 2**15}, "is 65536 x 32768, and must be at most 2147483647; number the"),
        ({"iou_threshold": 2}, "iou_threshold must be a number in .0, 1., not 2"),
    ],
)
def test_errors_of_nms_of_images(change, message):
    arguments = {"boxes": BOXES, "scores": SCORES, "groups": torch.zeros(3, dtype=torch.int64), "images": 2}
    arguments |= {"groups_per_image": 1, "iou_threshold": 0.5, "limit": 2} | change
    with pytest.raises(ValueError, match=message):
        nms_of_images(**arguments)


@needs_cuda
@pytest.mark.parametrize("grouped", [False, True])
def test_one_host_synchronisation_on_cuda(grouped):
    """To read the count; everything else stays on the device."""
    boxes, scores = (tensor.cuda() for tensor in random_boxes(300, seed=11))
    groups = torch.arange(300, device="cuda") % 3 if grouped else None
    batched_nms(boxes, scores, groups, 0.5)  # what the first call alone has to wait for
    with host_waits() as waits:
        batched_nms(boxes, scores, groups, 0.5)
    assert len(waits) == 1


@needs_cuda
def test_best_of_images_wait_for_nothing_on_cuda():
    boxes, scores = (tensor.cuda() for tensor in random_boxes(300, seed=11))
    groups = torch.arange(300, device="cuda") % 6
    nms_of_images(boxes, scores, groups, 2, 3, 0.5, 20, 50)  # what the first call alone has to wait for
    with host_waits() as waits:
        nms_of_images(boxes, scores, groups, 2, 3, 0.5, 20, 50)
    assert waits == []


@needs_cuda
def test_device_mix():
    with pytest.raises(ValueError, match="must be on one device"):
        nms(BOXES.cuda(), SCORES, 0.5)


def test_the_op_believes_nothing():
    boxes, scores, groups = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    suppress = torch.ops.maskscoring.batched_nms
    assert suppress(boxes, scores, groups, 0.5, None).tolist() == [0, 1, 2]
    for arguments, message in (
        ((boxes, scores.half(), groups, 0.5, None), "must both be float32 or float64"),
        ((boxes.half(), scores.half(), groups, 0.5, None), "must both be float32 or float64"),
        ((boxes, scores, groups.int(), 0.5, None), "groups of the op must be int64"),
        ((boxes, scores[:2], groups, 0.5, None), "scores .* must have one entry a box"),
        ((boxes, scores, groups[:2], 0.5, None), "groups .* must have one entry a box"),
        ((boxes[:, :2], scores, groups, 0.5, None), "boxes must be"),
        ((boxes, scores, groups, 0.5, -1), "max_keep must be"),
        ((boxes, scores, groups, 0.5, 1, 0), "max_boxes must be"),
        ((boxes[:1].expand(2**32, 4), scores[:1].expand(2**32), None, 0.5, None), "boxes are 4294967296"),
    ):
        with pytest.raises(ValueError, match=message):
            suppress(*arguments)
    assert op_of_images(boxes, scores, groups, 1, 1, 0.5, 2)[0].tolist() == [[0, 1]]
    for arguments, message in (
        ((boxes, scores.half(), groups, 1, 1, 0.5, 2), "must both be float32 or float64"),
        ((boxes, scores, groups.int(), 1, 1, 0.5, 2), "groups of the op must be int64"),
        ((boxes, scores, groups[:2], 1, 1, 0.5, 2), "groups .* must have one entry a box"),
        ((boxes, scores, groups, 1, 1, 0.5, 4), "limit of the op must be at most the number of boxes, 3, not 4"),
        ((boxes, scores, groups, 2**40, 2**40, 0.5, 2), "must be at most 2147483647"),
        ((boxes, scores, groups, 1, 1, 0.5, -1), "limit must be"),
    ):
        with pytest.raises(ValueError, match=message):
            op_of_images(*arguments)
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="max_keep must be None or an integer"):
            batched_nms(boxes, scores, None, 0.5, wrong)

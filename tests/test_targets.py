"""Training targets and losses: each by hand, at its edges, and against reference_training.py on random inputs."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import reference_training as reference
import torch
from conftest import DEVICES
from helpers import NO_CROWDS, TinyConfig, make_targets, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from waits import Waits

import model as modellib
from config import DIALECTS, REFERENCE_TRAINING, Config
from model import BACKGROUND, IGNORED, Images, LossSums, RoiSample, RpnSample
from roialign import MaskCrops

############################################################
#  Ground truth for tests
############################################################


def rectangle(shape: tuple[int, int], y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def one_image(boxes, crowds=NO_CROWDS, seed: int = 0, class_ids=None, shape: tuple[int, int] = (64, 64)) -> tuple:
    """An image for make_targets, with masks that fill their boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    masks = [rectangle(shape, *box) for box in boxes.round().astype(int).tolist()]
    return boxes, np.ones(len(boxes), int) if class_ids is None else class_ids, masks, np.asarray(crowds), seed


def random_boxes(count: int, side: float, seed: int, smallest: float = 2) -> np.ndarray:
    """float32 [count, 4] within side x side."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side - smallest, (count, 2))
    size = smallest + rng.uniform(0, 1, (count, 2)) * (side - smallest - corner)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


############################################################
#  Assignment
############################################################


def test_assign_by_hand():
    """Boxes that overlap the object by 1, 0.5, 0.25 and 0."""
    gt = torch.tensor([[0.0, 0, 8, 8]])
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 2], [20, 20, 28, 28]])
    assert modellib.assign(boxes, gt, 0.7, 0.3).tolist() == [0, IGNORED, BACKGROUND, BACKGROUND]
    assert modellib.assign(boxes, gt, 0.5, 0.5).tolist() == [0, 0, BACKGROUND, BACKGROUND], "0.5 is enough"
    assert modellib.assign(boxes, gt, 0.7, 0.25).tolist() == [0, IGNORED, IGNORED, BACKGROUND], "0.25 is not below"


def test_assign_takes_the_best_object_and_of_equals_the_first():
    gts = torch.tensor([[0.0, 0, 8, 6], [0, 0, 8, 7], [0, 1, 8, 8]])
    boxes = torch.tensor([[0.0, 0, 8, 7], [0, 0, 8, 8]])
    assert modellib.assign(boxes, gts, 0.7, 0.3).tolist() == [1, 1]


def test_low_quality_matches_take_all_ties():
    """Two boxes overlap the object by 0.25, more than all others: both are its own."""
    gt = torch.tensor([[0.0, 0, 8, 8]])
    boxes = torch.tensor([[0.0, 0, 8, 2], [0, 6, 8, 8], [0, 0, 7, 2], [9, 9, 10, 10]])
    assert modellib.assign(boxes, gt, 0.7, 0.3, 0.25).tolist() == [0, 0, BACKGROUND, BACKGROUND]
    assert modellib.assign(boxes, gt, 0.7, 0.3, 0.3).tolist() == [BACKGROUND] * 4, "0.25 is too little"
    assert modellib.assign(boxes, gt, 0.7, 0.125, 0.25).tolist() == [0, 0, IGNORED, BACKGROUND]


@pytest.mark.parametrize(("steals", "owner"), [(True, 2), (False, 1)])
def test_low_quality_match_of_several_objects(steals, owner):
    """The only box is the best of all three; mmdetection gives it to the last, maskrcnn-benchmark to the nearest."""
    gts = torch.tensor([[0.0, 0, 8, 4], [0, 0, 8, 8], [0, 0, 8, 5]])
    assert modellib.assign(torch.tensor([[0.0, 0, 8, 8]]), gts, 0.7, 0.3, 0.3, steals).tolist() == [owner]


def test_object_that_nothing_overlaps_takes_nothing():
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16]])
    assert modellib.assign(boxes, torch.tensor([[30.0, 30, 40, 40]]), 0.7, 0.3, 0.0).tolist() == [BACKGROUND] * 2


def test_assign_without_boxes_or_objects():
    none, boxes = torch.zeros(0, 4), torch.tensor([[0.0, 0, 8, 8], [1, 1, 1, 1]])
    assert modellib.assign(boxes, none, 0.7, 0.3, 0.3).tolist() == [BACKGROUND] * 2
    for low_quality in (None, 0.0):
        assert modellib.assign(none, boxes, 0.7, 0.3, low_quality).tolist() == []
        assert modellib.assign(none, none, 0.7, 0.3, low_quality).tolist() == []
    assert modellib.assign(none, boxes, 0.7, 0.3).dtype == torch.int64
    empty = modellib.assign(boxes, torch.tensor([[1.0, 1, 1, 1]]), 0.7, 0.3, 0.0)
    assert empty.tolist() == [BACKGROUND] * 2, "an object without area"


@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
@pytest.mark.parametrize("steals", [True, False])
@pytest.mark.parametrize(("boxes", "objects"), [(1, 1), (1000, 7), (500, 400)])
def test_assign_matches_reference(boxes, objects, steals, low_quality, monkeypatch):
    boxes, gts = random_boxes(boxes, 100, seed=1), random_boxes(objects, 100, seed=2)
    boxes[: len(gts) // 2] = gts[: min(len(gts) // 2, len(boxes))]
    expected = reference.assign(boxes, gts, 0.7, 0.3, low_quality, steals)
    for chunk in (modellib._CHUNK, 1000, 1):
        monkeypatch.setattr(modellib, "_CHUNK", chunk)
        found = modellib.assign(torch.from_numpy(boxes), torch.from_numpy(gts), 0.7, 0.3, low_quality, steals)
        assert found.tolist() == expected.tolist()


_BOX = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 5)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(_BOX, min_size=1, max_size=12), st.lists(_BOX, max_size=6), st.booleans())
def test_assign_with_many_ties_matches_reference(boxes, gts, steals):
    """Boxes with small whole numbers overlap equally all the time."""
    boxes, gts = (torch.tensor(rows).float().view(-1, 4) for rows in (boxes, gts))
    for low_quality in (None, 0.25):
        expected = reference.assign(boxes.numpy(), gts.numpy(), 0.5, 0.25, low_quality, steals)
        assert modellib.assign(boxes, gts, 0.5, 0.25, low_quality, steals).tolist() == expected.tolist()


@pytest.mark.parametrize("pairs", [1, 20, 1 << 23])
@given(
    boxes=st.lists(_BOX, max_size=12),
    gts=st.lists(_BOX, max_size=6),
    steals=st.booleans(),
    low_quality=st.sampled_from([None, 0.0, 0.25]),
)
def test_a_gpu_assigns_as_a_cpu_does(pairs, boxes, gts, steals, low_quality):
    """Its form compares all pairs, so many at a time, and never asks the device."""
    boxes, gts = (torch.tensor(rows).float().view(-1, 4) for rows in (boxes, gts))
    expected = modellib.assign(boxes, gts, 0.5, 0.25, low_quality, steals)
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr("runtime.avoids_waits", lambda device: True)
        patch.setattr(modellib, "_PAIRS", pairs)
        patch.setattr(modellib, "_compare_near", None)
        found = modellib.assign(boxes, gts, 0.5, 0.25, low_quality, steals)
    assert torch.equal(found, expected)
    assert found.dtype == torch.int64
    assert waits.found == []


def test_reference_overlaps():
    """The loop over objects and the plain formula agree, and give 1 / 7 by hand."""
    one, other = np.array([0, 0, 2, 2]), np.array([1, 1, 3, 3])
    assert reference.iou(one, other) == pytest.approx(1 / 7)
    boxes, gts = random_boxes(20, 30, seed=3), random_boxes(5, 30, seed=4)
    plain = [[reference.iou(box, gt) for gt in gts] for box in boxes]
    np.testing.assert_array_equal(reference.ious(boxes, gts), np.array(plain))


############################################################
#  Crowds
############################################################


def test_share_in_crowd_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [5, 5, 5, 9]])
    crowds = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [19, 19, 40, 40]])
    shares = modellib.share_in_crowd(boxes, crowds)
    assert shares.tolist() == pytest.approx([0.4, 0.8, 1, 0]), "crowds are not added up"
    assert modellib.share_in_crowd(boxes, crowds[:0]).tolist() == [0] * 4
    expected = [max(reference.crowd_share(box, crowd) for crowd in crowds.numpy()) for box in boxes.numpy()]
    assert shares.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [(0.5, [0, IGNORED, BACKGROUND, BACKGROUND]), (None, [0, BACKGROUND, BACKGROUND, BACKGROUND])],
)
def test_crowds_are_ignored_or_background(overlap, expected):
    """An object in the crowd is one; half of the third box is in the crowd, which is not more than half."""
    config = TinyConfig(CROWD_OVERLAP=overlap)
    boxes = torch.tensor([[0.0, 0, 16, 16], [16, 16, 32, 32], [28, 16, 36, 32], [48, 48, 60, 60]])
    targets = make_targets([one_image([[0, 0, 16, 16]], crowds=[[0, 0, 32, 32]])])
    windows = torch.tensor([[0.0, 0, 64, 64]])
    assert modellib.match_anchors(boxes, windows, targets, config)[0].tolist() == expected
    sample = modellib.sample_rois(boxes, torch.zeros(4, dtype=torch.long), targets, config)
    kept = [0, *(value for value in expected if value != IGNORED)]  # the object's own box is the first
    assert sample.matched.tolist() == kept


def test_crowd_of_another_image_is_of_no_matter():
    boxes = torch.tensor([[0.0, 0, 16, 16]])
    targets = make_targets([one_image([]), one_image([], crowds=[[0, 0, 32, 32]])])
    matched = modellib.match_anchors(boxes, torch.tensor([[0.0, 0, 64, 64]] * 2), targets, TinyConfig())
    assert matched.tolist() == [[BACKGROUND], [IGNORED]]


############################################################
#  Drawing
############################################################


def draw(rows: Sequence[Sequence[bool]], limits: Sequence[int], seeds: Sequence[int], device="cpu") -> list[list[int]]:
    """What model.random_sample takes of each image's candidates, as positions within the image."""
    lengths = torch.tensor([len(row) for row in rows])
    drawn = modellib.random_sample(
        torch.cat([torch.as_tensor(row, dtype=torch.bool) for row in rows]).to(device),
        torch.arange(len(rows)).repeat_interleave(lengths).to(device),
        torch.tensor(limits).to(device),
        torch.tensor(seeds).to(device),
    )
    return [part.nonzero()[:, 0].tolist() for part in drawn.cpu().split(lengths.tolist())]


@pytest.mark.parametrize("device", DEVICES)
def test_draw_keeps_to_candidates_and_limits(device):
    rows = [[True] * 10, [False, True] * 5, [True, False, False], [False] * 4, [], [True] * 3]
    found = draw(rows, [4, 4, 4, 4, 4, 0], [1, 2, 3, 4, 5, 6], device)
    assert [len(part) for part in found] == [4, 4, 1, 0, 0, 0]
    assert set(found[1]) <= {1, 3, 5, 7, 9}
    assert found == draw(rows, [4, 4, 4, 4, 4, 0], [1, 2, 3, 4, 5, 6]), "the same on every device"


def test_draw_of_nothing():
    assert draw([[]], [3], [0]) == [[]]
    assert draw([[False, False]], [3], [0]) == [[]]


@given(
    st.lists(st.tuples(st.lists(st.booleans(), max_size=12), st.integers(0, 6), st.integers(-9, 2**63 - 1)), min_size=1)
)
def test_a_gpu_draws_as_a_cpu_does(images):
    """Its form sorts all boxes, and never asks the device."""
    rows, limits, seeds = zip(*images, strict=True)
    lengths = torch.tensor([len(row) for row in rows])
    candidates = torch.tensor([flag for row in rows for flag in row], dtype=torch.bool)
    arguments = candidates, torch.arange(len(rows)).repeat_interleave(lengths), *map(torch.tensor, (limits, seeds))
    expected = modellib.random_sample(*arguments)
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr("runtime.avoids_waits", lambda device: True)
        patch.setattr(modellib, "_choose_of_each", None)
        found = modellib.random_sample(*arguments)
    assert torch.equal(found, expected)
    assert not (found & ~candidates).any()
    assert waits.found == []


def test_draw_is_a_function_of_the_seed():
    """Neither the other images of the batch nor chance have a part in it."""
    row = [True] * 50
    (alone,) = draw([row], [7], [123])
    torch.manual_seed(5)
    assert draw([[True] * 9, row, row, row], [3, 7, 7, 7], [9, 123, 124, 123])[1] == alone
    assert draw([row, row], [7, 7], [123, 123]) == [alone, alone]
    assert len({tuple(part) for part in draw([row] * 20, [7] * 20, range(20))}) == 20
    extremes = draw([row] * 4, [7] * 4, [0, -1, 2**63 - 1, -(2**63)])
    assert len({tuple(part) for part in extremes}) == 4


def test_draw_of_more_contains_the_draw_of_fewer():
    few, more = draw([[True] * 50] * 2, [7, 20], [5, 5])
    assert set(few) < set(more)


def test_draw_is_uniform():
    """Of 20 candidates 5, by 4000 consecutive seeds: chi-square of single candidates and of pairs."""
    draws, count, size = 4000, 20, 5
    chosen = np.zeros((draws, count))
    for row, part in zip(chosen, draw([[True] * count] * draws, [size] * draws, range(draws)), strict=True):
        row[part] = 1
    singles = chosen.sum(axis=0)
    expected = draws * size / count
    # Without replacement the sum is chi-square with count - 1 degrees of freedom times this factor.
    factor = (count - size) / (count - 1)
    assert ((singles - expected) ** 2 / expected).sum() / factor < 43.8  # 1 in 1000, 19 degrees of freedom
    pairs = (chosen.T @ chosen)[np.triu_indices(count, 1)]
    expected = draws * size * (size - 1) / (count * (count - 1))
    assert ((pairs - expected) ** 2 / expected).sum() < 258  # 1 in 1000, 190 degrees of freedom
    shared = (chosen[1:] * chosen[:-1]).sum(axis=1).mean()  # of neighbouring seeds: 5 * 5 / 20, and its deviation 0.015
    assert abs(shared - size * size / count) < 0.06


############################################################
#  Anchors
############################################################


def matched_rows(*rows: tuple[int, int, int]) -> Tensor:
    """Assignments [B, A] with so many positives, background and ignored ones."""
    return torch.tensor([[0] * p + [BACKGROUND] * n + [IGNORED] * i for p, n, i in rows])


@pytest.mark.parametrize(("dialect", "count"), [("mmdet", 22), ("benchmark", 20)])
def test_anchor_sample_by_hand(dialect, count):
    """8 an image, half of them positive at most; mmdetection counts what is missing as one."""
    matched = matched_rows((9, 30, 1), (3, 35, 2), (0, 40, 0), (0, 0, 40))
    config = Config(DIALECT=dialect, RPN_TRAIN_ANCHORS_PER_IMAGE=8)
    sample = modellib.sample_anchors(matched[:3], torch.arange(3), config)
    image, found = sample.anchors // 40, sample.matched
    assert [int(((image == i) & (found >= 0)).sum()) for i in range(3)] == [4, 3, 0]
    assert [int(((image == i) & (found == BACKGROUND)).sum()) for i in range(3)] == [4, 5, 8]
    assert (matched.flatten()[sample.anchors] == found).all()
    assert float(sample.count) == (25 if dialect == "mmdet" else 24)
    few = modellib.sample_anchors(matched[[0, 1, 3]], torch.arange(3), config)
    assert float(few.count) == (18 if dialect == "mmdet" else 16)
    assert (few.anchors < 80).all()


def test_anchor_sample_counts_what_it_has():
    """Of each level, and of objects; whoever knows the counts does not ask the device."""
    matched = matched_rows((9, 30, 1), (0, 40, 0))
    sample = modellib.sample_anchors(matched, torch.arange(2), Config(RPN_TRAIN_ANCHORS_PER_IMAGE=8), [5, 20, 15])
    index = sample.anchors % 40
    assert sample.levels == [
        int((low <= index).sum() - (high <= index).sum()) for low, high in ((0, 5), (5, 25), (25, 40))
    ]
    assert sum(sample.levels) == 16
    assert sample.positives == int((sample.matched >= 0).sum()) == 4
    assert modellib.sample_anchors(matched, torch.arange(2), Config()).levels is None


def test_anchor_samples_differ_by_seed_and_are_repeatable():
    matched = matched_rows((50, 50, 0))
    config = Config(RPN_TRAIN_ANCHORS_PER_IMAGE=20)
    samples = [modellib.sample_anchors(matched, torch.tensor([seed]), config).anchors.tolist() for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    positions = [(torch.tensor(sample) % 50).sort().values.tolist() for sample in samples]
    assert len(set(positions[0])) > 12, "background is not drawn at the positions of positives"


def test_anchors_belong_to_the_objects_of_their_image():
    """Indices count the objects of the whole batch."""
    anchors = torch.tensor([[0.0, 0, 16, 16], [30, 30, 46, 46]])
    targets = make_targets(
        [one_image([[30, 30, 46, 46]]), one_image([]), one_image([[0, 0, 16, 16], [30, 30, 46, 46]])]
    )
    matched = modellib.match_anchors(anchors, torch.tensor([[0.0, 0, 64, 64]] * 3), targets, TinyConfig())
    assert matched.tolist() == [[BACKGROUND, 0], [BACKGROUND] * 2, [1, 2]]


@pytest.mark.parametrize(("dialect", "owner"), [("mmdet", BACKGROUND), ("benchmark", 0), ("matterport", 0)])
def test_object_with_poor_anchors_only(dialect, owner):
    """The best one overlaps it by 0.25: mmdetection wants 0.3, the others anything."""
    config, targets = Config(DIALECT=dialect), make_targets([one_image([[0, 0, 9, 9]])])
    (gt,) = modellib.shrink(targets.boxes, config)
    anchors = torch.stack([gt + 30, gt * torch.tensor([1, 1, 1, 0.25])])
    (matched,) = modellib.match_anchors(anchors, torch.tensor([[0.0, 0, 64, 64]]), targets, config)
    assert matched.tolist() == [BACKGROUND, owner]


def test_anchors_of_padding_take_no_part():
    """An image of 40 x 70 is padded to 64 x 96 by itself; the batch is larger."""
    centres = torch.tensor([[0.0, 0], [63, 95], [64, 0], [0, 96], [64, 96]])
    anchors = torch.cat([centres - 8, centres + 8], dim=1)
    targets = make_targets([one_image([])])
    window = torch.tensor([[0.0, 0, 40, 70]])
    config = Config(IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128)
    matched = modellib.match_anchors(anchors, window, targets, config)
    assert matched.tolist() == [[BACKGROUND, BACKGROUND, IGNORED, IGNORED, IGNORED]]


def test_anchors_outside_take_no_part_in_benchmark():
    """Inclusive corners: an anchor may reach the last pixel, 39 and 69, which ends at 40 and 70."""
    anchors = torch.tensor([[0.0, 0, 40, 70], [-1, 0, 20, 20], [0, -1, 20, 20], [0, 0, 41, 20], [0, 0, 20, 71]])
    targets, window = make_targets([one_image([[0, 0, 40, 70]])]), torch.tensor([[0.0, 0, 40, 70]])
    matched = modellib.match_anchors(anchors, window, targets, Config(DIALECT="benchmark"))
    assert matched.tolist() == [[0, IGNORED, IGNORED, IGNORED, IGNORED]]


@pytest.fixture
def small_and_large() -> list[tuple[Tensor, Tensor]]:
    """Anchors and assignment of an image of 50 x 60, alone and beside one of 128 x 192."""
    config = TinyConfig()
    targets = make_targets([one_image(random_boxes(5, 50, seed=1)), one_image(random_boxes(3, 60, seed=2))])
    windows = torch.tensor([[0.0, 0, 50, 60], [0, 0, 128, 192]])
    cases = []
    for shape in ((64, 64), (128, 192)):
        shapes = [tuple(level) for level in modellib.compute_backbone_shapes(config, shape).tolist()]
        anchors = torch.cat(modellib.generate_pyramid_anchors(shapes, shape, config))
        cases.append((anchors, modellib.match_anchors(anchors, windows, targets, config)[0]))
    return cases


def test_a_larger_batch_changes_no_assignment(small_and_large):
    alone, beside = (
        sorted(zip(anchors[matched != IGNORED].tolist(), matched[matched != IGNORED].tolist(), strict=True))
        for anchors, matched in small_and_large
    )
    assert alone == beside
    assert len(alone) > 500


def test_a_larger_batch_changes_no_sample(small_and_large):
    """Nor what is drawn of it: samples follow from the seed and the image alone."""
    samples = []
    for anchors, matched in small_and_large:
        sample = modellib.sample_anchors(matched[None], torch.tensor([5]), TinyConfig(RPN_TRAIN_ANCHORS_PER_IMAGE=32))
        samples.append(sorted(anchors[sample.anchors].tolist()))
    assert len(samples[0]) == 32
    assert samples[0] == samples[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{}, {"RPN_ANCHOR_STRIDE": 2}, {"RPN_CONVS": 2}])
def test_rpn_at_sampled_anchors_is_the_rpn(settings, device):
    """Every anchor, those at the maps' edges included: outputs, and gradients of the weights and of the maps."""
    model = tiny_model(**settings).to(device)
    maps = [torch.randn(2, 16, *size, device=device, requires_grad=True) for size in ((9, 6), (5, 3), (1, 2))]
    maps = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    logits, deltas = model.rpn(maps)
    logits, deltas = torch.cat(logits, dim=1).flatten(), torch.cat(deltas, dim=1).flatten(0, 1)
    for anchors in (torch.randperm(len(logits)), torch.tensor([5, 5, 0]), torch.zeros(0, dtype=torch.long)):
        anchors = anchors.to(device)
        found = model.rpn.forward_at(maps, anchors)
        sources = [*maps, *model.rpn.parameters()]
        for output, expected in zip(found, (logits[anchors], deltas[anchors]), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            weights = torch.randn_like(output)
            gradients = [
                torch.autograd.grad((each * weights).sum(), sources, retain_graph=True, materialize_grads=True)
                for each in (output, expected)
            ]
            for gradient, wanted in zip(*gradients, strict=True):
                torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


############################################################
#  RoIs
############################################################


def proposals_of(*images: Sequence) -> tuple[Tensor, Tensor]:
    """Proposals [R, 4] and the image of each."""
    boxes = [torch.as_tensor(np.asarray(part, np.float32)).view(-1, 4) for part in images]
    return torch.cat(boxes), torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(part) for part in boxes]))


@pytest.mark.parametrize("dialect", ["mmdet", "benchmark"])
def test_roi_sample_by_hand(dialect):
    """The object's own box, a box that overlaps it by 0.5, one by 0.25."""
    targets = make_targets([one_image([[0, 0, 8, 8]])])
    boxes = [[0, 0, 8, 4], [0, 0, 8, 2]]
    sample = modellib.sample_rois(*proposals_of(boxes), targets, TinyConfig(DIALECT=dialect))
    own, matched = [[0, 0, 8, 8]], [0, BACKGROUND]
    first = dialect == "mmdet"
    assert sample.rois.tolist() == (own + boxes if first else boxes + own)
    assert sample.matched.tolist() == ([0, *matched] if first else [*matched, 0])
    assert sample.batch_index.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("dialect", "owner"), [("mmdet", 1), ("benchmark", 0)])
def test_an_objects_best_roi(dialect, owner):
    """The only proposal overlaps the first object by 0.875; the second, whose best it is as well, by 0.625."""
    targets = make_targets([one_image([[0, 0, 8, 7], [0, 0, 8, 5]])])
    sample = modellib.sample_rois(*proposals_of([[0, 0, 8, 8]]), targets, TinyConfig(DIALECT=dialect))
    proposal = (sample.rois == torch.tensor([0.0, 0, 8, 8])).all(dim=1)
    assert sample.matched[proposal].tolist() == [owner]
    assert sample.matched[~proposal].tolist() == [0, 1]


def test_roi_sample_keeps_to_its_limits():
    """16 an image of which 4 may be objects'; the second image has fewer, the third none, the fourth nothing at all."""
    gt = [[0.0, 0, 32, 32]]
    near, far = np.tile(gt, (30, 1)), random_boxes(40, 30, seed=5) + 33
    targets = make_targets([one_image(gt, seed=i, shape=(80, 80)) for i in range(2)] + [one_image([])] * 2)
    config = TinyConfig(TRAIN_ROIS_PER_IMAGE=16, ROI_POSITIVE_RATIO=0.25)
    sample = modellib.sample_rois(
        *proposals_of(np.concatenate([near, far]), np.concatenate([near[:2], far]), far[:7], []), targets, config
    )
    positive = sample.matched >= 0
    assert torch.bincount(sample.batch_index[positive], minlength=4).tolist() == [4, 3, 0, 0]
    assert torch.bincount(sample.batch_index[~positive], minlength=4).tolist() == [12, 13, 7, 0]
    assert sample.matched[positive].unique().tolist() == [0, 1]
    assert (sample.batch_index.diff() >= 0).all(), "those of an image lie together"
    again = modellib.sample_rois(*proposals_of([], near[:2].tolist() + far.tolist()), targets, config)
    assert torch.equal(again.rois[again.batch_index == 1], sample.rois[sample.batch_index == 1])


def test_rois_of_objects_without_proposals():
    targets = make_targets([one_image([[0, 0, 8, 8]]), one_image([]), one_image([[4, 4, 9, 9], [1, 1, 3, 3]])])
    sample = modellib.sample_rois(*proposals_of([], [], []), targets, TinyConfig())
    assert sample.matched.tolist() == [0, 1, 2]
    assert sample.batch_index.tolist() == [0, 2, 2]
    assert torch.equal(sample.rois, targets.boxes)
    nothing = modellib.sample_rois(*proposals_of([]), make_targets([one_image([])]), TinyConfig())
    assert [len(column) for column in nothing[:3]] == [0, 0, 0]
    assert nothing.rois.shape == (0, 4)


def test_400_objects_are_sampled():
    boxes = random_boxes(400, 500, seed=6)
    targets = make_targets([one_image(boxes, shape=(512, 512))])
    proposals = random_boxes(1000, 500, seed=7)
    config = Config(NUM_CLASSES=2)
    sample = modellib.sample_rois(*proposals_of(proposals), targets, config)
    positive = sample.matched >= 0
    assert (int(positive.sum()), int((~positive).sum())) == (128, 384)
    expected = reference.assign(proposals, boxes, 0.5, 0.5, 0.5, steals=True)
    known = {tuple(box): g for box, g in zip(proposals.tolist(), expected.tolist(), strict=True)}
    known |= {tuple(box): g for g, box in enumerate(boxes.tolist())}
    assert [known[tuple(roi)] for roi in sample.rois.tolist()] == sample.matched.tolist()


############################################################
#  Deltas, masks and mask IoUs
############################################################


def test_deltas_by_hand():
    """Centre (4, 4) to (5, 2), height 8 to 4, width 8 to 16; in units of std_dev."""
    boxes, gts = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[3.0, -6, 7, 10]])
    expected = [1 / 8, -2 / 8, math.log(0.5), math.log(2)]
    assert modellib.build_delta_targets(boxes, gts, (1, 1, 1, 1))[0].tolist() == pytest.approx(expected)
    scaled = [value / unit for value, unit in zip(expected, (0.1, 0.1, 0.2, 0.2), strict=True)]
    assert modellib.build_delta_targets(boxes, gts, (0.1, 0.1, 0.2, 0.2))[0].tolist() == pytest.approx(scaled)
    assert modellib.build_delta_targets(boxes[:0], gts[:0], (1, 1, 1, 1)).shape == (0, 4)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_deltas_lead_to_the_object(dialect):
    config = Config(DIALECT=dialect)
    boxes, gts = (torch.from_numpy(random_boxes(50, 90, seed)) for seed in (8, 9))
    deltas = modellib.build_delta_targets(boxes, gts, config.BBOX_STD_DEV)
    expected = reference.deltas(boxes.numpy(), gts.numpy(), config.BBOX_STD_DEV)
    np.testing.assert_allclose(deltas.numpy(), expected, rtol=1e-5, atol=1e-5)
    moderate = (deltas[:, 2:].abs() * torch.tensor(config.BBOX_STD_DEV[2:]) < 4).all(dim=1)
    decoded = modellib.decode_boxes(boxes, deltas, config.BBOX_STD_DEV, config)
    torch.testing.assert_close(decoded[moderate], gts[moderate], rtol=0, atol=1e-3)


def mask_targets(mask: np.ndarray, rois: Sequence, size: int = 28) -> Tensor:
    """build_mask_targets of several RoIs of one mask."""
    targets = make_targets([(np.zeros((1, 4)), [1], [mask], NO_CROWDS, 0)])
    rois = torch.tensor(rois).float()
    return modellib.build_mask_targets(rois, torch.zeros(len(rois), dtype=torch.long), targets, size)


def fractions(mask: np.ndarray, rois: Sequence, exact: bool = True) -> list[float]:
    """inside_fractions of several RoIs of one mask."""
    targets = make_targets([(np.zeros((1, 4)), [1], [mask], NO_CROWDS, 0)])
    rois, config = torch.tensor(rois).float(), Config(MASKIOU_EXACT_AREA=exact)
    return modellib.inside_fractions(rois, torch.zeros(len(rois), dtype=torch.long), targets, config).tolist()


def test_mask_target_of_an_roi_as_large_as_the_target_is_the_bitmap():
    mask = (np.random.default_rng(0).random((40, 50)) > 0.5).astype(np.uint8)
    found = mask_targets(mask, [[5, 7, 33, 35]])[0]
    assert found.dtype == torch.float32
    assert (found.numpy() == mask[5:33, 7:35]).all()


def test_mask_target_by_hand():
    """A rectangle of rows 2 to 6 and columns 4 to 8, in an RoI of which it is the middle, and in one that cuts it."""
    mask = rectangle((16, 16), 2, 4, 6, 8)
    middle, cut = mask_targets(mask, [[0, 2, 8, 10], [4, 4, 8, 8]], size=8)
    assert (middle.numpy() == rectangle((8, 8), 2, 2, 6, 6)).all()
    assert (cut.numpy() == rectangle((8, 8), 0, 0, 4, 8)).all()


def test_mask_targets_of_one_pixel():
    """In its own box it is what bilinear sampling leaves above a half; in a large RoI it is lost."""
    mask = rectangle((64, 64), 5, 7, 6, 8)
    own, large = mask_targets(mask, [[5, 7, 6, 8], [0, 0, 64, 64]])
    assert (own.numpy() == reference.mask_target(mask, np.array([5, 7, 6, 8.0]))).all()
    assert 400 < own.sum() < 784
    assert own[10:18, 10:18].all()
    assert large.sum() == 0
    assert fractions(mask, [[5, 7, 6, 8], [0, 0, 64, 64], [5.5, 7, 6, 8], [6, 8, 9, 9]]) == [1, 1, 0.5, 0]
    assert fractions(mask, [[5, 7, 6, 8], [5.2, 7.2, 5.9, 7.9]], exact=False) == pytest.approx([1, 1]), (
        "a pixel remains"
    )


def test_empty_masks_have_no_part():
    """An object may lose its last pixel when its image is made smaller."""
    mask = np.zeros((16, 16), np.uint8)
    assert mask_targets(mask, [[0, 0, 16, 16]]).sum() == 0
    for exact in (True, False):
        assert fractions(mask, [[0, 0, 16, 16]], exact) == pytest.approx([0], abs=1e-6)
    logits = torch.full((1, 28, 28), -9.0)
    assert modellib.build_maskiou_targets(logits, torch.zeros(1, 28, 28), torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("count", [0, 40])
def test_masks_match_reference(count):
    """Blobs in random RoIs, several objects of several sizes."""
    rng = np.random.default_rng(10)
    masks = [
        rectangle((60, 80), *(b := rng.integers(0, 30, 4)).tolist()[:2], 30 + b[2], 30 + b[3])
        * (rng.random((60, 80)) > 0.3)
        for _ in range(3)
    ]
    rois, objects = random_boxes(count, 60, seed=11, smallest=0.3), rng.integers(0, 3, count)
    targets = make_targets([(np.zeros((3, 4)), [1, 2, 3], masks, NO_CROWDS, 0)])
    given = torch.from_numpy(rois), torch.from_numpy(objects), targets
    found = modellib.build_mask_targets(*given, 14)
    assert found.shape == (count, 14, 14)
    pairs = list(zip(objects, rois, strict=True))
    expected = np.array([reference.mask_target(masks[g], roi, 14) for g, roi in pairs]).reshape(-1, 14, 14)
    assert (found.numpy() != expected).sum() <= 2, "a sample may lie at one half, but for rounding"
    exact = [reference.exact_area(masks[g], roi) / max(masks[g].sum(), 1) for g, roi in pairs]
    truncated = [reference.truncated_fraction(masks[g], roi) for g, roi in pairs]
    for is_exact, wanted in ((True, exact), (False, truncated)):
        inside = modellib.inside_fractions(*given, Config(MASKIOU_EXACT_AREA=is_exact))
        np.testing.assert_allclose(inside.numpy(), np.array(wanted, np.float32), rtol=1e-5, atol=1e-6)


def test_fraction_inside_by_hand():
    """An object of 4 x 4 pixels. Exactly, 2.5 of 4 rows; truncated, 2."""
    mask = rectangle((16, 16), 2, 2, 6, 6)
    rois = [[2, 2, 4.5, 6], [0, 0, 16, 16], [2, 4, 6, 6], [8, 8, 9, 9]]
    assert fractions(mask, rois) == pytest.approx([0.625, 1, 0.5, 0])
    assert fractions(mask, rois, exact=False) == pytest.approx([0.5, 1, 0.5, 0], abs=1e-6)


def test_mini_masks_cover_their_boxes():
    """Whatever the box's size: a full mini mask, of which an RoI sees a half."""
    crops = MaskCrops(torch.ones(56 * 56, dtype=torch.uint8), *(torch.tensor(rows) for rows in (
        [0], [[56, 56]], [[0, 0]], [[56, 56]])))  # fmt: skip
    targets = make_targets([one_image([[10, 20, 30, 28]])])._replace(masks=crops, mini_masks=True)
    rois = torch.tensor([[10.0, 20, 30, 28], [10, 24, 30, 28], [10, 20, 20, 28], [10, 20, 30, 36]])
    objects = torch.zeros(4, dtype=torch.long)
    assert modellib.inside_fractions(rois, objects, targets, Config()).tolist() == pytest.approx([1, 0.5, 0.5, 1])
    found = modellib.build_mask_targets(rois, objects, targets, 28)
    assert found[:3].all()
    assert found[3, :, :14].all()
    assert found[3, :, 15:].sum() == 0


def half_masks() -> tuple[Tensor, Tensor]:
    """Logits with 8 pixels above 0 and a target with 8, of which 4 are in both."""
    logits, target = torch.full((1, 8, 8), -1.0), torch.zeros(1, 8, 8)
    logits[0, 0] = 0.3
    target[0, :2, :4] = 1
    return logits, target


def test_maskiou_targets_of_a_cut_instance():
    """4 pixels are in both. The RoI sees 8 of the instance's 16: 4 / (8 + 16 - 4), not 4 / (8 + 8 - 4)."""
    logits, target = half_masks()
    assert modellib.build_maskiou_targets(logits, target, torch.tensor([0.5])).item() == pytest.approx(4 / 20)
    assert modellib.build_maskiou_targets(logits, target, torch.tensor([1.0])).item() == pytest.approx(4 / 12)


def test_maskiou_targets_at_their_limits():
    logits, target = half_masks()
    perfect = torch.where(target > 0, 1.0, -1.0)
    one = torch.ones(1)
    assert modellib.build_maskiou_targets(perfect, target, one).item() == 1
    assert modellib.build_maskiou_targets(-perfect, target, one).item() == 0
    assert modellib.build_maskiou_targets(perfect, target, one / 4).item() == pytest.approx(0.25), "a quarter of it"
    assert modellib.build_maskiou_targets(logits, target, one, 0.5).item() == 0, "0.3 is below the threshold"
    assert modellib.build_maskiou_targets(logits, target, one, 0.3).item() == pytest.approx(0, abs=1e-6), (
        "and not above"
    )
    assert modellib.build_maskiou_targets(logits[:0], target[:0], one[:0]).shape == (0,)


def test_maskiou_targets_carry_no_gradient():
    logits, target = half_masks()
    assert not modellib.build_maskiou_targets(logits.requires_grad_(), target, torch.ones(1)).requires_grad


def test_maskiou_targets_of_other_shapes():
    with pytest.raises(ValueError, match=r"mask_logits \[1, 3, 8, 8\].*indexed by class first"):
        modellib.build_maskiou_targets(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), torch.ones(1))


############################################################
#  Losses by hand
############################################################


def loss_of(part: LossSums, config=None) -> dict[str, float]:
    """What is minimised, as numbers."""
    losses = modellib.average_losses([part], config or Config())
    assert all(loss.dtype == torch.float32 and loss.ndim == 0 for loss in losses.values())
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(("dialect", "box_loss"), [("mmdet", 0.3 + 0.5), ("benchmark", 0.3 + 0.5 - 2 / 18)])
def test_rpn_losses_by_hand(dialect, box_loss):
    """Two images of 3 anchors. Sampled are an object's anchor and two of the background.

    Both deltas are above 1 / 9, where smooth L1 is |d| - 1 / 18; those of the background are of no matter.
    """
    anchors = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16], [0, 8, 8, 16]])
    targets = make_targets([one_image([]), one_image([[8, 8, 16, 16]])])
    sample = RpnSample(torch.tensor([0, 2, 4]), torch.tensor([BACKGROUND, BACKGROUND, 0]), torch.tensor(4.0))
    logits = torch.tensor([-math.log(3), 0.0, math.log(3)])
    deltas = torch.tensor([[9.0, 9, 9, 9], [9, 9, 9, 9], [0.3, 0, -0.5, 0]])
    part = modellib.rpn_losses(logits, deltas, anchors, sample, targets, Config(DIALECT=dialect))
    losses = loss_of(part)
    class_loss = -math.log(0.75) - math.log(0.75) - math.log(0.5)
    assert losses["rpn_class_loss"] == pytest.approx(class_loss / 4)
    assert losses["rpn_bbox_loss"] == pytest.approx(box_loss / 4)


@pytest.mark.parametrize(("dialect", "box_loss"), [("mmdet", 1 + 3), ("benchmark", 0.5 + 2.5)])
def test_box_losses_by_hand(dialect, box_loss):
    """Two RoIs, one an object of class 2. Only the deltas of that class count, divided by both RoIs."""
    box = [[0, 0, 8, 8]]
    targets = make_targets([one_image(box, class_ids=[2])])
    sample = RoiSample(torch.tensor(box * 2).float(), torch.zeros(2, dtype=torch.long), torch.tensor([0, BACKGROUND]))
    class_logits = torch.tensor([[0.0, 0, 0, 0], [math.log(3), 0, 0, 0]])
    deltas = torch.full((2, 4, 4), 100.0)
    deltas[0, 2] = torch.tensor([1.0, 0, -3, 0])
    losses = loss_of(modellib.box_losses(class_logits, deltas, sample, targets, Config(DIALECT=dialect)))
    assert losses["mrcnn_class_loss"] == pytest.approx((math.log(4) - math.log(0.5)) / 2)
    assert losses["mrcnn_bbox_loss"] == pytest.approx(box_loss / 2)


def test_mask_loss_by_hand():
    """Two masks of 2 x 2: seven right with probability 3/4, one wrong."""
    targets = torch.tensor([[[1.0, 0], [0, 1]], [[1, 1], [1, 1]]])
    logits = torch.where(targets > 0, 1.0, -1.0) * math.log(3)
    logits[1, 1, 1] *= -1
    expected = (7 * math.log(4 / 3) + math.log(4)) / 8
    assert loss_of(modellib.mask_loss(logits, targets))["mrcnn_mask_loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.5 * (0.1**2 + 0.2**2) / 2),
        ({"MASKIOU_KEEP_ZERO_TARGETS": False}, 0.5 * 0.1**2 / 1),
        ({"MASKIOU_LOSS_CLASSES": "all"}, 0.5 * (0.1**2 + 0.3**2 + 0.4**2 + 0.2**2 + 0.8**2 + 0.7**2) / 2),
    ],
)
def test_maskiou_loss_by_hand(settings, expected):
    """Three masks with IoUs 0.6, 0 and, without any area, none. What class 0 says is of no matter."""
    maskious = torch.tensor([[9.0, 0.3, 0.5, 0.4], [9.0, 0.2, 0.8, 0.7], [9.0, 1, 1, 1]])
    class_ids, wanted = torch.tensor([2, 1, 3]), torch.tensor([0.6, 0.0, 0.0])
    counts = torch.tensor([True, True, False])
    part = modellib.maskiou_loss(maskious, class_ids, wanted, counts, Config(**settings))
    assert loss_of(part)["mrcnn_maskiou_loss"] == pytest.approx(expected)


def test_losses_match_reference():
    """All six, on random outputs of two images."""
    rng, config = torch.Generator().manual_seed(12), Config(NUM_CLASSES=5, **REFERENCE_TRAINING)
    anchors = torch.from_numpy(random_boxes(60, 60, seed=13))
    boxes = anchors[[5, 20, 40]] + torch.tensor([0.3, 0.1, -0.2, 0.4])
    targets = make_targets([one_image(boxes.numpy(), class_ids=[1, 2, 4]), one_image([], seed=1)])
    matched = modellib.match_anchors(anchors, torch.tensor([[0.0, 0, 64, 64]] * 2), targets, config)
    learned = modellib.sample_anchors(matched, targets.seeds, config)
    logits, deltas = torch.randn(2, 60, generator=rng), torch.randn(2, 60, 4, generator=rng)
    sampled = logits.flatten()[learned.anchors], deltas.flatten(0, 1)[learned.anchors]
    losses = loss_of(modellib.rpn_losses(*sampled, anchors, learned, targets, config), config)
    images = []
    for i in range(2):
        own = learned.anchors // 60 == i
        positives, negatives = own & (learned.matched >= 0), own & (learned.matched < 0)
        chosen, gts = learned.anchors[positives] % 60, targets.boxes[learned.matched[positives]]
        images.append({
            "logits": logits[i], "deltas": deltas[i].numpy(),
            "positives": chosen.tolist(), "negatives": (learned.anchors[negatives] % 60).tolist(),
            "target_deltas": reference.deltas(anchors[chosen].numpy(), gts.numpy()),
        })  # fmt: skip
    assert len(images[0]["positives"]) >= 3
    expected = reference.rpn_losses(images, counts_missing=True, beta=0)
    assert [losses["rpn_class_loss"], losses["rpn_bbox_loss"]] == pytest.approx(expected, rel=1e-5)

    sample = modellib.sample_rois(
        *proposals_of(random_boxes(40, 60, seed=15), random_boxes(9, 60, 16)), targets, config
    )
    class_logits = torch.randn(len(sample.rois), 5, generator=rng)
    box_deltas = torch.randn(len(sample.rois), 5, 4, generator=rng)
    losses = loss_of(modellib.box_losses(class_logits, box_deltas, sample, targets, config), config)
    labels = torch.where(sample.matched >= 0, targets.class_ids[sample.matched], 0).numpy()
    gts = targets.boxes[sample.matched].numpy()
    wanted = reference.deltas(sample.rois.numpy(), gts, config.BBOX_STD_DEV)
    assert losses["mrcnn_class_loss"] == pytest.approx(reference.class_loss(class_logits.numpy(), labels), rel=1e-5)
    expected = reference.box_loss(box_deltas.numpy(), labels, wanted, beta=0)
    assert losses["mrcnn_bbox_loss"] == pytest.approx(expected, rel=1e-5)


def test_loss_weights_scale_their_losses():
    targets = torch.ones(1, 2, 2)
    part = modellib.mask_loss(torch.zeros(1, 2, 2), targets)
    weights = {**Config.LOSS_WEIGHTS, "mrcnn_mask_loss": 3.0}
    assert loss_of(part, Config(LOSS_WEIGHTS=weights))["mrcnn_mask_loss"] == pytest.approx(3 * math.log(2))


def test_losses_of_nothing_are_zero_and_have_a_graph():
    none, config = make_targets([one_image([])]), Config(NUM_CLASSES=4)
    index, boxes = torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)
    outputs = [torch.zeros(shape, requires_grad=True) for shape in ((0,), (0, 4), (0, 4), (0, 4, 4), (0, 28, 28))]
    logits, deltas, class_logits, box_deltas, masks = outputs
    maskious = torch.zeros(0, 4, requires_grad=True)
    wanted = modellib.build_maskiou_targets(masks, torch.zeros(0, 28, 28), torch.zeros(0))
    parts = [
        modellib.rpn_losses(logits, deltas, boxes, RpnSample(index, index, torch.tensor(0.0)), none, config),
        modellib.box_losses(class_logits, box_deltas, RoiSample(boxes, index, index), none, config),
        modellib.mask_loss(masks, torch.zeros(0, 28, 28)),
        modellib.maskiou_loss(maskious, index, wanted, index.bool(), config),
    ]
    losses = modellib.average_losses(parts, config)
    assert list(losses) == list(Config.LOSS_WEIGHTS)
    for name, loss in losses.items():
        assert loss.item() == 0, name
        assert loss.requires_grad, name
    sum(losses.values()).backward()
    assert all(output.grad is not None for output in (*outputs, maskious))


############################################################
#  Losses of a network
############################################################


def tiny_images(count: int, shape: tuple[int, int] = (64, 64), windows: Sequence | None = None) -> Images:
    """Noise, and black where a window does not reach."""
    pixels = torch.randn(count, 3, *shape, generator=torch.Generator().manual_seed(20))
    windows = torch.tensor(windows or [[0, 0, *shape]] * count).float()
    for image, (_, _, height, width) in zip(pixels, windows.int().tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return Images(pixels, windows)


def random_image_truth(objects: int, side: int, seed: int, shape=(64, 64)) -> tuple:
    classes = np.random.default_rng(seed).integers(1, 4, objects)
    return one_image(random_boxes(objects, side, seed, smallest=6), seed=seed, class_ids=classes, shape=shape)


CASES = {
    "usual": [random_image_truth(3, 60, 1), random_image_truth(2, 60, 2)],
    "one without objects": [random_image_truth(3, 60, 1), one_image([])],
    "no objects": [one_image([]), one_image([])],
    "only crowds": [one_image([], crowds=[[0, 0, 64, 64]]), one_image([], crowds=[[5, 5, 9, 50], [0, 0, 64, 30]])],
    "one pixel": [one_image([[5, 7, 6, 8], [63, 63, 64, 64]]), one_image([[0, 0, 1, 1]])],
    "empty masks": [(np.array([[4.0, 4, 30, 30]]), [1], np.zeros((1, 64, 64)), NO_CROWDS, 0), one_image([])],
    "400 objects": [random_image_truth(400, 60, 3), random_image_truth(1, 60, 4)],
}


@pytest.mark.parametrize("settings", [{}, REFERENCE_TRAINING, {"DIALECT": "benchmark", "IMAGE_MIN_DIM": 64}])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_finite(case, settings):
    model, targets = tiny_model(**settings), make_targets(CASES[case])
    out: dict = {}
    losses = model.train()(tiny_images(2), targets, out)
    assert list(losses) == list(Config.LOSS_WEIGHTS)
    positives = int((out["targets/rois"].matched >= 0).sum())
    assert (positives == 0) == (case in ("no objects", "only crowds"))
    if positives == 0:
        assert [losses[name].item() for name in ("mrcnn_bbox_loss", "mrcnn_mask_loss", "mrcnn_maskiou_loss")] == [0] * 3
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
        assert loss.requires_grad, name
        assert loss.dtype == torch.float32, name
    if case != "only crowds" or settings is REFERENCE_TRAINING:
        assert losses["rpn_class_loss"] > 0, "background is learned from every image"
        assert losses["mrcnn_class_loss"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no part in the losses: distributed training would wait"
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_batch_equals_its_images_one_at_a_time(dialect, device, monkeypatch):
    """Three images of different sizes and objects: sums and counts of the batch are those of the images."""
    monkeypatch.setattr(modellib, "average_losses", lambda parts, config: parts)
    model = tiny_model(DIALECT=dialect, IMAGE_RESIZE_MODE="shorter", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128)
    model = model.to(device)
    windows = [[0, 0, 64, 64], [0, 0, 40, 64], [0, 0, 64, 50]]
    images = tiny_images(3, windows=windows)
    truth = [random_image_truth(4, 60, 1), random_image_truth(5, 40, 2), one_image([], crowds=[[0, 0, 20, 20]], seed=7)]

    def losses(rows: slice) -> dict[str, tuple[float, float]]:
        targets = make_targets(truth[rows]).to(device)
        batch = Images(images.pixels[rows].to(device), images.windows[rows].to(device))
        with torch.no_grad():
            parts = model(batch, targets)
        return {name: (part.sums[name].item(), part.counts[name].item()) for part in parts for name in part.sums}

    whole, singles = losses(slice(0, 3)), [losses(slice(i, i + 1)) for i in range(3)]
    for name, (total, count) in whole.items():
        assert count == sum(single[name][1] for single in singles), name
        assert total == pytest.approx(sum(single[name][0] for single in singles), rel=1e-3), name


def test_heads_learn_from_proposals_and_the_objects_own_boxes(monkeypatch):
    model, targets = tiny_model(), make_targets([one_image([[8, 8, 40, 40]])])
    proposals, index = proposals_of([[8, 8, 40, 39], [50, 50, 60, 60]])
    monkeypatch.setattr(modellib, "propose", lambda *_: (proposals, torch.ones(len(proposals)), index))
    out: dict = {}
    model(tiny_images(1), targets, out)
    assert out["targets/rois"].rois.tolist() == [[8, 8, 40, 40], *proposals.tolist()]
    assert out["targets/rois"].matched.tolist() == [0, 0, BACKGROUND]


def test_training_has_its_own_limits_of_proposals():
    targets = make_targets([one_image([])])
    for settings, expected in (({"PRE_NMS_LIMIT_TRAINING": 1}, 5), ({"POST_NMS_ROIS_TRAINING": 7}, 7)):
        out: dict = {}
        tiny_model(RPN_NMS_THRESHOLD=1.0, **settings)(tiny_images(1), targets, out)
        assert len(out["proposals"]) == expected, "of five levels"


def test_proposals_carry_no_gradient():
    out: dict = {}
    tiny_model()(tiny_images(1), make_targets([one_image([[8, 8, 40, 40]])]), out)
    assert not out["proposals"].requires_grad
    assert not out["targets/rois"].rois.requires_grad
    assert not out["targets/maskious"].requires_grad


@pytest.mark.parametrize("detach", [False, True])
def test_maskiou_loss_reaches_mask_head_and_backbone_unless_detached(detach):
    model = tiny_model(MASKIOU_DETACH=detach)
    torch.nn.init.normal_(model.maskiou_head.maskious.weight)  # those of a new head are 0, and no gradient passes
    losses = model(tiny_images(2), make_targets(CASES["usual"]))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(losses["mrcnn_maskiou_loss"], parameters, allow_unused=True)
    reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None and gradient.any()}
    learns = {"maskiou_head"} if detach else {"maskiou_head", "mask_head", "fpn", "backbone"}
    assert {name.split(".")[0] for name in reached} == learns


def test_objects_are_refined_as_in_detection():
    """By the deltas of the object's class, into the image; a RoI of which nothing is left stays as it was."""
    config = Config(DIALECT="mmdet", BBOX_STD_DEV=(0.1, 0.1, 0.2, 0.2))
    targets = make_targets([one_image([[10, 10, 30, 50], [0, 0, 8, 8]], class_ids=[2, 1])])
    rois = torch.tensor([[10.0, 10, 30, 50], [40, 40, 60, 60], [0, 0, 10, 10]])
    objects = RoiSample(rois, torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, 1]))
    deltas = torch.full((3, 3, 4), 9.0)
    deltas[0, 2] = torch.tensor([1.0, -0.5, 0, 0])  # 2 down, 2 to the left
    deltas[1, 2] = torch.tensor([0, 0, 0, 5 * math.log(4)])  # 80 wide
    deltas[2, 1] = torch.tensor([-20.0, 0, 0, 0])  # out of the image
    moved = modellib.refine_objects(objects, deltas, targets, torch.tensor([[0.0, 0, 64, 64]]), config)
    torch.testing.assert_close(moved.rois, torch.tensor([[12.0, 8, 32, 48], [40, 10, 60, 64], [0, 0, 10, 10]]))
    assert moved[1:] == objects[1:]


def test_the_maskiou_head_learns_from_refined_boxes_if_asked():
    """What it is told to predict is the IoU of the masks that detection would make; all other losses stay."""
    images, targets, plain, refined = tiny_images(2), make_targets(CASES["usual"]), {}, {}
    with torch.no_grad():
        losses = tiny_model()(images, targets, plain)
        judge = tiny_model(MASKIOU_REFINED_ROIS=True)
        changed = judge(images, targets, refined)
        assert {name for name in losses if losses[name] != changed[name]} == {"mrcnn_maskiou_loss"}
        assert not torch.equal(plain["targets/maskious"], refined["targets/maskious"])
        judge.box_head.box_deltas.weight.zero_()
        judge.box_head.box_deltas.bias.zero_()
        unmoved = judge(images, targets, refined)
    torch.testing.assert_close(refined["targets/maskious"], plain["targets/maskious"])
    torch.testing.assert_close(unmoved["mrcnn_maskiou_loss"], losses["mrcnn_maskiou_loss"])


def detections_of(*rows: tuple[list[float], int, int, float]) -> modellib.Detections:
    """Detections: box, image, class, score."""
    boxes, image, class_ids, scores = zip(*rows, strict=True)
    return modellib.Detections(
        torch.tensor(boxes, dtype=torch.float32), torch.tensor(image), torch.tensor(class_ids), torch.tensor(scores)
    )


def test_detections_belong_to_the_object_of_their_class_that_they_overlap_most():
    """The best ones come first, and no more than a batch may have RoIs of objects."""
    images = [
        one_image([[0, 0, 20, 20], [0, 10, 20, 30]], class_ids=[1, 2]),
        one_image([[0, 0, 20, 20]], class_ids=[1]),
    ]
    targets = make_targets(images)
    found = detections_of(
        ([0, 2, 20, 22], 0, 2, 0.3),  # nearer to the object of class 1
        ([0, 0, 20, 20], 0, 1, 0.9),
        ([0, 0, 20, 20], 1, 2, 0.8),  # no object of its class in this image
        ([40, 40, 60, 60], 1, 1, 0.5),  # meets nothing
        ([0, 0, 10, 20], 1, 1, 0.4),
    )
    config = Config(TRAIN_ROIS_PER_IMAGE=16, ROI_POSITIVE_RATIO=0.25)
    sample, class_ids = modellib.match_detections(found, targets, config)
    assert sample.matched.tolist() == [0, BACKGROUND, BACKGROUND, 2, 1]
    assert sample.batch_index.tolist() == [0, 1, 1, 1, 0]
    assert class_ids.tolist() == [1, 2, 1, 1, 2]
    assert sample.rois.tolist() == found.boxes[[1, 2, 3, 4, 0]].tolist()
    fewer, class_ids = modellib.match_detections(
        found, targets, Config(TRAIN_ROIS_PER_IMAGE=4, ROI_POSITIVE_RATIO=0.25)
    )
    assert (fewer.matched.tolist(), class_ids.tolist()) == ([0, BACKGROUND], [1, 2])
    nothing, class_ids = modellib.match_detections(found, make_targets([one_image([]), one_image([])]), config)
    assert (nothing.matched.tolist(), len(class_ids)) == ([BACKGROUND] * 5, 5)


def test_detections_that_nobody_can_judge_are_left_out():
    """Those of a class that is not labelled in their image, and those in a crowd of their image."""
    images = [one_image([[0, 0, 20, 20]], class_ids=[1], crowds=[[40, 40, 60, 60]]), one_image([])]
    targets = make_targets(images)
    targets = targets._replace(labelled=torch.tensor([[True, True, False], [True, True, True]]))
    found = detections_of(
        ([0, 0, 20, 20], 0, 1, 0.9),
        ([0, 0, 20, 20], 0, 2, 0.8),  # not labelled
        ([40, 40, 60, 55], 0, 1, 0.7),  # in the crowd
        ([40, 40, 60, 55], 1, 2, 0.6),  # there is no crowd in this image
    )
    sample, class_ids = modellib.match_detections(found, targets, Config(TRAIN_ROIS_PER_IMAGE=64))
    assert sample.matched.tolist() == [0, BACKGROUND]
    assert class_ids.tolist() == [1, 2]
    all_count, _ = modellib.match_detections(found, targets, Config(TRAIN_ROIS_PER_IMAGE=64, CROWD_OVERLAP=None))
    assert len(all_count.rois) == 3


def test_the_maskiou_head_learns_from_detections_if_asked():
    """From the masks that detection makes, and their true IoU, wrong detections included; all other losses stay."""
    images, targets, out = tiny_images(2), make_targets(CASES["usual"]), {}
    settings = {"DETECTION_MIN_CONFIDENCE": 0.0, "TRAIN_ROIS_PER_IMAGE": 400, "BOX_HEAD_LOOKS": 2}
    names = ("PRE_NMS_LIMIT", "PRE_NMS_LIMIT_TRAINING", "POST_NMS_ROIS_INFERENCE", "POST_NMS_ROIS_TRAINING")
    settings |= dict.fromkeys(names, 100)
    with torch.no_grad():
        losses = tiny_model(**settings).eval()(images, targets)
        judge = tiny_model(**settings, MASKIOU_DETECTIONS=True).eval()
        changed = judge(images, targets, out)
        found = judge(images)
    assert {name for name in losses if losses[name] != changed[name]} == {"mrcnn_maskiou_loss"}
    sample, class_ids = modellib.match_detections(found, targets, judge.config)
    best = found.scores.argsort(descending=True, stable=True)[: len(class_ids)]
    predicted = out["maskiou/maskious"].gather(1, class_ids[:, None])[:, 0]
    torch.testing.assert_close(predicted, found.maskious[best])
    true = out["targets/maskious"]
    assert len(true) > 20
    assert (true[sample.matched == BACKGROUND] == 0).all()
    assert true[sample.matched != BACKGROUND].max() > 0
    by_hand = 0.5 * (predicted - true).square().mean()
    torch.testing.assert_close(changed["mrcnn_maskiou_loss"], by_hand)


def test_a_detection_beside_the_mask_of_its_object_is_wrong(monkeypatch):
    """It overlaps the object's box and shows nothing of the object. Of a RoI, nothing would be learned from that."""
    mask = rectangle((64, 64), 0, 0, 4, 4)
    targets = make_targets([(np.array([[0, 0, 40, 40]], np.float32), [1], [mask], NO_CROWDS, 0)])
    index = torch.zeros(1, dtype=torch.int64)
    sample = RoiSample(torch.tensor([[20.0, 20, 40, 40]]), index, index)
    monkeypatch.setattr(modellib, "match_detections", lambda *_: (sample, index + 1))
    out: dict = {}
    with torch.no_grad():
        loss = tiny_model(MASKIOU_DETECTIONS=True)(tiny_images(1), targets, out)["mrcnn_maskiou_loss"]
    assert out["targets/maskious"].tolist() == [0]
    assert loss == 0.5 * out["maskiou/maskious"][0, 1].square() > 0


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_detections_in_images_without_objects(confidence):
    """Each is wrong; and where nothing is found, there is nothing to learn."""
    model = tiny_model(MASKIOU_DETECTIONS=True, DETECTION_MIN_CONFIDENCE=confidence)
    out: dict = {}
    losses = model(tiny_images(2), make_targets([one_image([]), one_image([])]), out)
    assert (len(out["targets/maskious"]) > 0) == (confidence == 0)
    assert not out["targets/maskious"].any()
    assert bool(losses["mrcnn_maskiou_loss"] > 0) == (confidence == 0)
    sum(losses.values()).backward()
    assert all(weights.grad is None or weights.grad.isfinite().all() for weights in model.parameters())


def test_without_a_maskiou_head_there_is_no_such_loss():
    losses = tiny_model(USE_MASKIOU_HEAD=False)(tiny_images(1), make_targets([one_image([[8, 8, 40, 40]])]))
    assert list(losses) == [name for name in Config.LOSS_WEIGHTS if name != "mrcnn_maskiou_loss"]


def test_seeds_decide_the_samples():
    """And nothing else: the same seed again is the same loss to the bit, whatever torch's own generator does."""
    model = tiny_model(RPN_TRAIN_ANCHORS_PER_IMAGE=16, TRAIN_ROIS_PER_IMAGE=16)
    targets = make_targets([random_image_truth(3, 60, 1)])
    with torch.no_grad():
        one = model(tiny_images(1), targets)
        torch.manual_seed(99)
        same = model(tiny_images(1), targets)
        other = model(tiny_images(1), targets._replace(seeds=torch.tensor([2])))
    assert [loss.item() for loss in one.values()] == [loss.item() for loss in same.values()]
    assert one["rpn_class_loss"] != other["rpn_class_loss"]
    assert one["mrcnn_class_loss"] != other["mrcnn_class_loss"]


def test_training_in_bfloat16_has_float32_losses():
    model, images, targets = tiny_model(), tiny_images(2), make_targets(CASES["usual"])
    with torch.no_grad():
        full = model(images, targets)
    half = model(images._replace(pixels=images.pixels.bfloat16()), targets)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in half.values())
    for name in ("rpn_class_loss", "mrcnn_class_loss", "mrcnn_mask_loss"):  # the others hang on few RoIs
        assert half[name].item() == pytest.approx(full[name].item(), rel=0.1), name
    sum(half.values()).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_all_losses_can_be_learned(device):
    """Ten steps on one image bring the sum down by a third."""
    model, targets = tiny_model().to(device), make_targets([random_image_truth(3, 60, 1)]).to(device)
    images = Images(*(field.to(device) for field in tiny_images(1)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    totals = []
    for _ in range(11):
        total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.67 * totals[0]


def test_maskiou_of_a_single_cell():
    """The smallest union there is: one cell, predicted as it is."""
    target = torch.zeros(2, 28, 28)
    target[:, 3, 4] = 1
    logits = torch.where(target > 0, 5.0, -5.0)
    logits[1] = -5  # a miss
    wanted = modellib.build_maskiou_targets(logits, target, torch.ones(2))
    assert wanted.tolist() == [1, 0]

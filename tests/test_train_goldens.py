"""Training computes what mmdetection and the paper's code compute: assignment, samples, targets, losses, gradients.

reference_training.py and maskiou_oracle.py are written from the specification alone. They and model.py are held against
the same numbers; tests/golden/README.md says where these come from. In the goldens chance is replaced: a sample of n
takes candidates[i * len // n]. Boxes there are x1 y1 x2 y2, labels start at 0, and the background is 80.

The whole network runs on a photograph that is not ours to publish: those tests need the project's shared folder.
"""

import functools
import json
from pathlib import Path

import golden_weights
import maskiou_oracle as oracle
import numpy as np
import pytest
import reference_training as reference
import torch
from conftest import GOLDEN
from helpers import NO_CROWDS, make_targets
from torch import Tensor

import model as modellib
import utils
from config import REFERENCE_TRAINING, Config
from model import Images, MaskRCNN
from training.optimizer import make_optimizer, set_learning_rate
from weights.convert import _target
from weights.formats import _MMDET
from weights.load import load_checkpoint

PHOTO = Path(__file__).parent.parent.parent / "shared" / "golden" / "mmdet" / "img1.jpg"
needs_photo = pytest.mark.skipif(not PHOTO.is_file(), reason=f"{PHOTO} is not published with the project")
MMDET = Config(NUM_CLASSES=81, **REFERENCE_TRAINING)
BENCHMARK = Config(NUM_CLASSES=81, DIALECT="benchmark", **REFERENCE_TRAINING | {"MASKIOU_TARGET_LOGIT": 0.0})
SHAPE = (416, 544)  # of the padded input
LOSSES = {
    "rpn_class_loss": "loss_rpn_cls",
    "rpn_bbox_loss": "loss_rpn_bbox",
    "mrcnn_class_loss": "loss_cls",
    "mrcnn_bbox_loss": "loss_bbox",
    "mrcnn_mask_loss": "loss_mask",
    "mrcnn_maskiou_loss": "loss_mask_iou",
}


############################################################
#  Goldens in our conventions
############################################################


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def yxyx(xyxy: np.ndarray) -> np.ndarray:
    """x and y of boxes or deltas [N, 4] exchanged."""
    return np.asarray(xyxy)[:, [1, 0, 3, 2]]


def half_open(xyxy: np.ndarray) -> np.ndarray:
    """Our boxes of the paper's code's, whose last pixel is inside."""
    return yxyx(xyxy) + np.array([0, 0, 1, 1], np.float32)


def bitmaps(packed: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed)[: np.prod(shape)].reshape(shape)


def mirrored(index: np.ndarray) -> np.ndarray:
    """Index of an anchor in the sources' order of a cell's three ratios from ours, and back."""
    return index // 3 * 3 + 2 - index % 3


@functools.cache
def anchors_of(shape: tuple[int, int], dialect: str) -> Tensor:
    config = Config(DIALECT=dialect)
    shapes = [tuple(level) for level in modellib.compute_backbone_shapes(config, shape).tolist()]
    return torch.cat(modellib.generate_pyramid_anchors(shapes, shape, config))


@functools.cache
def photo_targets() -> modellib.Targets:
    run = golden("train_mmdet")
    masks = bitmaps(run["gt_masks_packed"], run["gt_masks_shape"])
    return make_targets([(yxyx(run["gt_boxes"]), run["gt_labels"] + 1, masks, yxyx(run["ignored_boxes"]), 0)])


def draw_evenly(candidates, batch_index, limits, seeds):
    """Instead of model.random_sample, for one image: what the goldens have instead of chance."""
    order = np.arange(len(candidates))
    if len(candidates) == len(anchors_of(SHAPE, "mmdet")):
        order = mirrored(order)
    drawn = torch.zeros_like(candidates)
    index = order[candidates.numpy()[order]]
    drawn[reference.evenly(index, min(int(limits[0]), len(index)))] = True
    return drawn


@pytest.fixture
def evenly(monkeypatch) -> None:
    monkeypatch.setattr(modellib, "random_sample", draw_evenly)


def is_close(actual, expected, relative: float = 1e-6, absolute: float | None = None) -> None:
    """Within a share of the largest expected number."""
    expected = torch.as_tensor(np.asarray(expected)).double()
    if absolute is None:
        absolute = relative * float(expected.abs().max())
    torch.testing.assert_close(torch.as_tensor(actual).detach().double(), expected, rtol=0, atol=absolute)


############################################################
#  mmdetection: anchors
############################################################


def test_reference_of_anchors():
    run, boxes = golden("train_mmdet"), yxyx(golden("train_mmdet")["gt_boxes"])
    anchors = anchors_of(SHAPE, "mmdet").numpy()
    anchors = anchors[mirrored(np.arange(len(anchors)))]
    matched = reference.assign(anchors, boxes, 0.7, 0.3, low_quality=0.3, steals=True)
    counts = [(matched >= 0).sum(), (matched == -1).sum(), (matched == -2).sum()]
    assert counts == run["A_rpn_counts_pos_neg_ignore"].tolist()
    assert np.flatnonzero(matched >= 0).tolist() == run["A_rpn_all_pos_idx"].tolist()
    assert matched[matched >= 0].tolist() == run["A_rpn_all_pos_gt"].tolist()
    positives, negatives = reference.sample(matched, 256, 0.5)
    assert positives.tolist() == run["A_rpn_pos_idx"].tolist()
    assert negatives.tolist() == run["A_rpn_neg_idx"].tolist()
    deltas = reference.deltas(anchors[positives], boxes[matched[positives]])
    is_close(yxyx(deltas), run["A_rpn_pos_delta_targets"], absolute=1e-6)


def test_anchors_are_matched_as_in_mmdetection():
    run, anchors = golden("train_mmdet"), anchors_of(SHAPE, "mmdet")
    windows = torch.tensor([[0, 0, *run["meta_img_shape"].tolist()]]).float()
    (matched,) = modellib.match_anchors(anchors, windows, photo_targets(), MMDET)
    counts = [int((matched >= 0).sum()), int((matched == -1).sum()), int((matched == -2).sum())]
    assert counts == run["A_rpn_counts_pos_neg_ignore"].tolist()
    in_their_order = matched[torch.from_numpy(mirrored(np.arange(len(anchors))))]
    assert (in_their_order >= 0).nonzero()[:, 0].tolist() == run["A_rpn_all_pos_idx"].tolist()
    assert in_their_order[in_their_order >= 0].tolist() == run["A_rpn_all_pos_gt"].tolist()


def test_anchors_are_sampled_as_in_mmdetection(evenly):
    run, anchors = golden("train_mmdet"), anchors_of(SHAPE, "mmdet")
    windows = torch.tensor([[0, 0, *run["meta_img_shape"].tolist()]]).float()
    targets = photo_targets()
    sample = modellib.sample_anchors(modellib.match_anchors(anchors, windows, targets, MMDET), targets.seeds, MMDET)
    is_object = sample.matched >= 0
    for chosen, name in ((is_object, "A_rpn_pos_idx"), (~is_object, "A_rpn_neg_idx")):
        assert sorted(mirrored(sample.anchors[chosen].numpy()).tolist()) == sorted(run[name].tolist())
    assert float(sample.count) == 256
    order = mirrored(sample.anchors[is_object].numpy()).argsort()
    positive, objects = sample.anchors[is_object][order], sample.matched[is_object][order]
    deltas = modellib.build_delta_targets(anchors[positive], targets.boxes[objects], MMDET.RPN_BBOX_STD_DEV)
    is_close(yxyx(deltas), run["A_rpn_pos_delta_targets"], absolute=1e-6)


############################################################
#  mmdetection: RoIs
############################################################


@pytest.mark.parametrize("run_name", ["A", "B"])
def test_reference_of_rois(run_name):
    run = {name.removeprefix(f"{run_name}_"): value for name, value in golden("train_mmdet").items()}
    boxes, masks = yxyx(run["gt_boxes"]), bitmaps(run["gt_masks_packed"], run["gt_masks_shape"])
    proposals = yxyx(run["proposals"])
    matched = reference.assign(proposals, boxes, 0.5, 0.5, low_quality=0.5, steals=True)
    matched = np.concatenate([np.arange(len(boxes)), matched])
    assert (matched + 1).tolist() == run["roi_gt_inds"].tolist()
    positives, negatives = reference.sample(matched, 512, 0.25)
    assert positives.tolist() == run["roi_pos_inds"].tolist()
    assert negatives.tolist() == run["roi_neg_inds"].tolist()
    rois, objects = np.concatenate([boxes, proposals])[positives], matched[positives]
    is_close(yxyx(reference.deltas(rois, boxes[objects], (0.1, 0.1, 0.2, 0.2))), run["bbox_targets_pos"], 1e-5)
    targets = np.stack([reference.mask_target(masks[g], roi) for g, roi in zip(objects, rois, strict=True)])
    assert (targets == bitmaps(run["mask_targets_packed"], run["mask_targets_shape"])).all()
    fractions = [reference.truncated_fraction(masks[g], roi) for g, roi in zip(objects, rois, strict=True)]
    is_close(fractions, run["area_ratios"])
    logits = run["mask_logits_pos"]
    maskious = [reference.maskiou_target(*row, 0.5) for row in zip(logits, targets, fractions, strict=True)]
    is_close(maskious, run["iou_targets"])
    is_close(reference.mask_loss(logits, targets), run["loss_mask"])
    is_close(reference.maskiou_loss(run["iou_pred_pos"], np.array(maskious)), run["loss_mask_iou"])


class RoiRun:
    """Run A or B of the golden, and what model.py samples from its proposals."""

    def __init__(self, name: str) -> None:
        self.golden = {key.removeprefix(f"{name}_"): value for key, value in golden("train_mmdet").items()}
        self.targets = photo_targets()
        self.proposals = torch.from_numpy(yxyx(self.golden["proposals"]))
        image = torch.zeros(len(self.proposals), dtype=torch.long)
        sample = modellib.sample_rois(self.proposals, image, self.targets, MMDET)
        # theirs are sorted: RoIs of objects first
        order = (sample.matched < 0).long().argsort(stable=True)
        self.rois, self.matched = sample.rois[order], sample.matched[order]
        self.positives = int((self.matched >= 0).sum())
        self.positive_rois, self.objects = self.rois[: self.positives], self.matched[: self.positives]

    @property
    def mask_targets(self) -> Tensor:
        return modellib.build_mask_targets(self.positive_rois, self.objects, self.targets, 28)


@pytest.fixture(params=["A", "B"])
def roi_run(request, evenly) -> RoiRun:
    return RoiRun(request.param)


def test_rois_are_sampled_as_in_mmdetection(roi_run):
    run = roi_run.golden
    assert roi_run.objects.tolist() == run["pos_gt"].tolist()
    is_close(yxyx(roi_run.rois), run["rois"], absolute=0.0)
    labels = np.full(len(roi_run.rois), 80)
    labels[: roi_run.positives] = roi_run.targets.class_ids[roi_run.objects] - 1
    assert labels.tolist() == run["labels"].tolist()
    gt_boxes = roi_run.targets.boxes[roi_run.objects]
    deltas = modellib.build_delta_targets(roi_run.positive_rois, gt_boxes, MMDET.BBOX_STD_DEV)
    is_close(yxyx(deltas), run["bbox_targets_pos"], 1e-5)


def test_masks_are_cropped_as_in_mmdetection(roi_run):
    run = roi_run.golden
    assert (roi_run.mask_targets.numpy() == bitmaps(run["mask_targets_packed"], run["mask_targets_shape"])).all()
    fractions = modellib.inside_fractions(roi_run.positive_rois, roi_run.objects, roi_run.targets, MMDET)
    is_close(fractions, run["area_ratios"])


def test_mask_losses_are_those_of_mmdetection(roi_run):
    run, masks = roi_run.golden, roi_run.mask_targets
    fractions = modellib.inside_fractions(roi_run.positive_rois, roi_run.objects, roi_run.targets, MMDET)
    logits = torch.from_numpy(run["mask_logits_pos"])
    maskious = modellib.build_maskiou_targets(logits, masks, fractions, MMDET.MASKIOU_TARGET_LOGIT)
    is_close(maskious, run["iou_targets"])
    parts = [modellib.mask_loss(logits, masks), maskiou_loss(run["iou_pred_pos"], maskious, MMDET)]
    losses = modellib.average_losses(parts, MMDET)
    is_close(losses["mrcnn_mask_loss"], run["loss_mask"])
    is_close(losses["mrcnn_maskiou_loss"], run["loss_mask_iou"])


def maskiou_loss(predicted: np.ndarray, wanted: Tensor, config) -> modellib.LossSums:
    """model.maskiou_loss for predictions of the objects' class, which is 3 here."""
    maskious = torch.zeros(len(predicted), config.NUM_CLASSES)
    maskious[:, 3] = torch.from_numpy(predicted)
    everyone = torch.ones(len(predicted), dtype=torch.bool)
    return modellib.maskiou_loss(maskious, torch.full((len(predicted),), 3), wanted, everyone, config)


############################################################
#  mmdetection: MaskIoU targets made by hand
############################################################


def hand_made() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Masks [G, H, W], the RoIs clipped to their canvas [14, 4], and the rest."""
    run = golden("maskiou_mmdet")
    height, width = run["image_size"].tolist()
    rois = yxyx(run["rois"]).clip(0, np.array([height, width, height, width], np.float32))
    return bitmaps(run["gt_masks"], run["gt_shape"]), rois, run


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_reference_of_hand_made_maskious(threshold):
    masks, _, run = hand_made()
    expected = run["iou_targets" if threshold else "iou_targets_if_prob_threshold"]
    maskious = []
    for i, (g, roi) in enumerate(zip(run["gt_index"], yxyx(run["rois"]), strict=True)):
        target = reference.mask_target(masks[g], roi)
        assert (target.ravel() == np.unpackbits(run["mask_targets"]).reshape(14, -1)[i]).all()
        fraction = reference.truncated_fraction(masks[g], roi)
        is_close(fraction, run["area_ratios"][i], absolute=1e-6)
        maskious.append(reference.maskiou_target(run["mask_logits"][i], target, fraction, threshold))
    np.testing.assert_allclose(maskious, expected, atol=1e-6)
    assert np.isnan(expected).sum() == 2
    if threshold:
        is_close(reference.maskiou_loss(run["iou_pred"], np.array(maskious)), run["loss_mask_iou"])


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_hand_made_maskious_of_mmdetection(threshold):
    masks, rois, run = hand_made()
    boxes = np.zeros((len(masks), 4), np.float32)
    targets = make_targets([(boxes, np.full(len(masks), 3), masks, NO_CROWDS, 0)])
    rois, objects = torch.from_numpy(rois), torch.from_numpy(run["gt_index"])
    cropped = modellib.build_mask_targets(rois, objects, targets, 28)
    assert (cropped.numpy().ravel() == np.unpackbits(run["mask_targets"])[: cropped.numel()]).all()
    assert cropped.sum(dim=(1, 2)).tolist() == run["mask_target_sums"].tolist()
    fractions = modellib.inside_fractions(rois, objects, targets, MMDET)
    is_close(fractions, run["area_ratios"])
    maskious = modellib.build_maskiou_targets(torch.from_numpy(run["mask_logits"]), cropped, fractions, threshold)
    expected = run["iou_targets" if threshold else "iou_targets_if_prob_threshold"]
    is_close(maskious, np.nan_to_num(expected))  # ours of two empty masks is 0, which takes no part either
    if threshold:
        losses = modellib.average_losses([maskiou_loss(run["iou_pred"], maskious, MMDET)], MMDET)
        is_close(losses["mrcnn_maskiou_loss"], run["loss_mask_iou"])


############################################################
#  The paper's code
############################################################


def triples() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list]:
    """Of its MaskIoU golden: what belongs to positive proposals, what comes out, and the polygons."""
    run = golden("maskiou_benchmark")
    positive = run["labels"] > 0
    inputs = {name: run[name][positive] for name in ("proposals", "gt_index", "labels", "logits_label", "pred_maskiou")}
    return inputs, run, [parts for _, parts in json.loads(str(run["polygons.json"]))]


def test_oracle_of_maskious():
    """16 triples of polygon, proposal and prediction: the oracle is what the paper's code computes."""
    given, expected, polygons = triples()
    size = tuple(expected["image_wh"].tolist())
    actual = oracle.maskiou_targets(polygons, given["proposals"], given["gt_index"], given["logits_label"], size)
    assert len(actual["maskiou_targets"]) == 16
    assert (actual["mask_targets"] == expected["mask_targets"]).all()
    for name in ("box_area", "full_area"):
        assert actual[name].tolist() == expected[name].tolist()
    is_close(actual["full_window"], expected["full_crop_xyxy"])
    is_close(actual["mask_ratio"], expected["mask_ratio"])
    is_close(actual["maskiou_targets"], expected["maskiou_targets"])
    is_close(oracle.mask_loss(given["logits_label"], actual["mask_targets"]), expected["loss_mask"][0])
    is_close(oracle.maskiou_loss(given["pred_maskiou"], actual["maskiou_targets"]), expected["loss_maskiou"][0])


def test_maskious_of_the_papers_code():
    """From its masks and its fractions; one of the fractions is above 1."""
    given, expected, _ = triples()
    masks = torch.from_numpy(expected["mask_targets"]).float()
    fractions = torch.from_numpy(expected["mask_ratio"])
    maskious = modellib.build_maskiou_targets(torch.from_numpy(given["logits_label"]), masks, fractions)
    is_close(maskious, expected["maskiou_targets"])
    predicted = torch.from_numpy(given["pred_maskiou"]).requires_grad_()
    spread = torch.zeros(16, 81).index_put((torch.arange(16), torch.from_numpy(given["labels"])), predicted)
    labels = torch.from_numpy(given["labels"])
    part = modellib.maskiou_loss(spread, labels, maskious, torch.ones(16, dtype=torch.bool), BENCHMARK)
    loss = modellib.average_losses([part], BENCHMARK)["mrcnn_maskiou_loss"]
    is_close(loss, expected["loss_maskiou"][0])
    loss.backward()
    is_close(predicted.grad, expected["grad_pred_maskiou"][golden("maskiou_benchmark")["labels"] > 0])


def test_bitmaps_agree_with_polygons():
    """Ours, from bitmaps with exact areas, differ from the paper's by the outlines' pixels only."""
    given, expected, polygons = triples()
    width, height = expected["image_wh"].tolist()
    masks = [merged(parts, height, width) for parts in polygons]
    targets = make_targets([(np.zeros((len(masks), 4)), [1] * len(masks), masks, NO_CROWDS, 0)])
    rois = utils.clip_boxes(torch.from_numpy(yxyx(given["proposals"])), (0, 0, height, width))
    objects = torch.from_numpy(given["gt_index"])
    fractions = modellib.inside_fractions(rois, objects, targets, Config())
    assert ((fractions >= 0) & (fractions <= 1 + 1e-6)).all()
    is_close(fractions, expected["mask_ratio"], absolute=0.05)  # one object is 18 x 14 pixels
    cropped = modellib.build_mask_targets(rois, objects, targets, 28)
    maskious = modellib.build_maskiou_targets(torch.from_numpy(given["logits_label"]), cropped, fractions)
    is_close(maskious, expected["maskiou_targets"], absolute=0.06)


def merged(parts: list, height: int, width: int) -> np.ndarray:
    """The union of polygons as a bitmap [H, W]."""
    rles = oracle.rasterised([np.array(part) for part in parts], height, width)
    return utils.rle_to_mask(rles).any(axis=2)


@functools.cache
def benchmark_anchors() -> tuple[Tensor, Tensor, Tensor]:
    """Its anchors in our order, objects and window."""
    run = golden("targets_benchmark")
    width, height = run["rpn_tgt/image_wh"].tolist()
    shapes = [tuple(shape) for shape in run["rpn_tgt/grid_hw"].tolist()]
    anchors = torch.cat(modellib.generate_pyramid_anchors(shapes, (height, width), BENCHMARK))
    return anchors, torch.from_numpy(half_open(run["rpn_tgt/gt"])), torch.tensor([[0.0, 0, height, width]])


def labels_of(matched: np.ndarray) -> np.ndarray:
    """1 for objects, 0 for background, -1 for what is ignored."""
    return np.where(matched >= 0, 1, np.where(matched == reference.BACKGROUND, 0, -1))


def test_reference_of_the_papers_targets():
    run = golden("targets_benchmark")
    anchors, boxes, window = (tensor.numpy() for tensor in benchmark_anchors())
    anchors = anchors[mirrored(np.arange(len(anchors)))]
    matched = reference.assign(anchors, boxes, 0.7, 0.3, low_quality=0.0, steals=False)
    inside = reference.is_inside(anchors, window[0])
    assert inside.sum() == run["rpn_tgt/visibility_count"][0]
    assert np.where(inside, labels_of(matched), -1).tolist() == run["rpn_tgt/labels"].tolist()
    positive = run["rpn_tgt/pos_idx"]
    is_close(yxyx(reference.deltas(anchors[positive], boxes[matched[positive]])), run["rpn_tgt/pos_reg"])
    proposals = half_open(run["box_tgt/proposals"])
    matched = reference.assign(proposals, boxes, 0.5, 0.5, low_quality=None, steals=False)
    positive = matched >= 0
    assert positive.tolist() == (run["box_tgt/labels"] > 0).tolist()
    deltas = reference.deltas(proposals[positive], boxes[matched[positive]], (0.1, 0.1, 0.2, 0.2))
    is_close(yxyx(deltas), run["box_tgt/reg"][positive])
    for name, beta in (("smooth_l1_beta1/9_sum", 1 / 9), ("smooth_l1_beta1_sum", 1.0)):
        differences = (run["in/deltas"] - run["in/deltas"][::-1]).ravel().tolist()
        is_close(sum(reference.smooth_l1(value, beta) for value in differences), run[name][0])
    is_close(reference.maskiou_loss(run["l2_in"], run["l2_target"]), run["l2_loss"][0])


def test_anchors_are_matched_as_in_the_papers_code():
    run = golden("targets_benchmark")
    anchors, boxes, window = benchmark_anchors()
    targets = make_targets([(boxes, [1] * 4, np.zeros((4, 1, 1)), NO_CROWDS, 0)])
    (matched,) = modellib.match_anchors(anchors, window, targets, BENCHMARK)
    in_their_order = torch.from_numpy(mirrored(np.arange(len(anchors))))
    assert labels_of(matched[in_their_order].numpy()).tolist() == run["rpn_tgt/labels"].tolist()
    positive = in_their_order[torch.from_numpy(run["rpn_tgt/pos_idx"])]
    deltas = modellib.build_delta_targets(anchors[positive], boxes[matched[positive]], BENCHMARK.RPN_BBOX_STD_DEV)
    is_close(yxyx(deltas), run["rpn_tgt/pos_reg"])


def test_rois_are_matched_as_in_the_papers_code():
    run, (_, boxes, _) = golden("targets_benchmark"), benchmark_anchors()
    targets = make_targets([(boxes, [3, 7, 9, 80], np.zeros((4, 1, 1)), NO_CROWDS, 0)])
    everything = Config(NUM_CLASSES=81, DIALECT="benchmark", TRAIN_ROIS_PER_IMAGE=1000, ROI_POSITIVE_RATIO=1.0)
    proposals = torch.from_numpy(half_open(run["box_tgt/proposals"]))
    sample = modellib.sample_rois(proposals, torch.zeros(88, dtype=torch.long), targets, everything)
    assert torch.equal(sample.rois, torch.cat([proposals, boxes])), "the objects' own boxes follow"
    assert sample.matched[88:].tolist() == [0, 1, 2, 3]
    matched = sample.matched[:88]
    labels = torch.where(matched >= 0, targets.class_ids[matched], 0)
    assert labels.tolist() == run["box_tgt/labels"].tolist()
    positive = matched >= 0
    deltas = modellib.build_delta_targets(proposals[positive], boxes[matched[positive]], BENCHMARK.BBOX_STD_DEV)
    is_close(yxyx(deltas), run["box_tgt/reg"][positive.numpy()])


def test_box_losses_of_the_papers_code():
    """Smooth L1 of the RPN with beta 1 / 9, of the box head with beta 1, by all that are sampled."""
    run = golden("targets_benchmark")
    predicted = torch.from_numpy(yxyx(run["in/deltas"]).copy())
    base = torch.tensor([[0.0, 0, 16, 16]]).repeat(30, 1)
    matched, wanted = torch.arange(30), predicted.flip(0)

    def truth(std_dev) -> modellib.Targets:  # objects that need exactly the wanted deltas
        boxes = utils.apply_box_deltas(base.double(), wanted.double() * torch.tensor(std_dev).double()).float()
        return make_targets([(boxes, [2] * 30, np.zeros((30, 1, 1)), NO_CROWDS, 0)])

    sample = modellib.RpnSample(matched, matched, torch.tensor(30.0))
    targets = truth(BENCHMARK.RPN_BBOX_STD_DEV)
    part = modellib.rpn_losses(torch.zeros(30), predicted, base, sample, targets, BENCHMARK)
    losses = modellib.average_losses([part], BENCHMARK)
    is_close(losses["rpn_bbox_loss"] * 30, run["smooth_l1_beta1/9_sum"][0], 1e-5)
    sample = modellib.RoiSample(base, torch.zeros(30, dtype=torch.long), matched)
    deltas = torch.full((30, 81, 4), 9.0)
    deltas[:, 2] = predicted
    part = modellib.box_losses(torch.zeros(30, 81), deltas, sample, truth(BENCHMARK.BBOX_STD_DEV), BENCHMARK)
    losses = modellib.average_losses([part], BENCHMARK)
    is_close(losses["mrcnn_bbox_loss"] * 30, run["smooth_l1_beta1_sum"][0], 1e-5)


def test_maskiou_loss_of_the_papers_code():
    run = golden("targets_benchmark")
    part = maskiou_loss(run["l2_in"], torch.from_numpy(run["l2_target"]), BENCHMARK)
    is_close(modellib.average_losses([part], BENCHMARK)["mrcnn_maskiou_loss"], run["l2_loss"][0])


############################################################
#  The whole network
############################################################


class Network:
    """The model with mmdetection's golden weights, and the photograph."""

    def __init__(self, folder: Path) -> None:
        path = golden_weights.write_checkpoint("r50-caffe", folder)
        settings = {**REFERENCE_TRAINING, "IMAGE_MIN_DIM": 400, "IMAGE_MAX_DIM": 667}
        self.model = MaskRCNN.from_checkpoint(load_checkpoint(path), device="cpu", **settings)
        path.unlink()
        self.model.set_trainable("all")
        image, config = utils.read_image(PHOTO), self.model.config
        plan = utils.plan_image(image.shape, config)
        pixels = modellib.mold_padded(image, plan, config).permute(2, 0, 1)[None]
        assert pixels.shape[2:] == SHAPE
        self.images = Images(pixels, torch.tensor([plan.window]).float())

    def losses(self, targets: modellib.Targets, out: dict | None = None) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modellib, "random_sample", draw_evenly)
            return self.model(self.images, targets, out)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    return Network(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run_a(network) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """With the network's own proposals: losses, gradients of their sum, and what lies between."""
    out: dict = {}
    losses = network.losses(photo_targets(), out)
    gradients = gradients_of(sum(losses.values()), dict(network.model.named_parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, gradients, out


@pytest.fixture(scope="module")
def run_b(network) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """With the golden's proposals: losses, and gradients of the MaskIoU loss alone."""
    proposals = torch.from_numpy(yxyx(golden("train_mmdet")["B_proposals"]))
    image = torch.zeros(len(proposals), dtype=torch.long)
    out: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modellib, "propose", lambda *_: (proposals, torch.ones(len(proposals)), image))
        losses = network.losses(photo_targets(), out)
    sources = {
        name: each for name, each in network.model.named_parameters() if not name.startswith(("backbone", "fpn"))
    }
    sources["P2"] = out["fpn/p2"]
    gradients = gradients_of(losses["mrcnn_maskiou_loss"], sources)
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def gradients_of(loss: Tensor, sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what learns and has a part in the loss."""
    learning = {name: source for name, source in sources.items() if source.requires_grad}
    gradients = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(learning, gradients, strict=True) if gradient is not None}


def our_name(name: str) -> str:
    return _target(_MMDET, name)


@needs_photo
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_network(name, run_a):
    """The class loss also has the proposals that a near-tie exchanges on some processors; run B has the golden ones."""
    losses, _, _ = run_a
    tolerance = 2e-3 if name == "mrcnn_class_loss" else 1e-4
    assert losses[name].item() == pytest.approx(golden("train_mmdet")[f"A_{LOSSES[name]}"].sum(), rel=tolerance)


@needs_photo
def test_total_loss_and_rois_of_the_network(run_a):
    losses, _, out = run_a
    run = golden("train_mmdet")
    assert float(sum(losses.values())) == pytest.approx(float(run["A_total"]), rel=1e-4)
    assert list(losses) == list(Config.LOSS_WEIGHTS)
    sample = out["targets/rois"]
    distance = (torch.from_numpy(yxyx(run["A_rois"])) - sample.rois[:, None]).abs().amax(dim=2).amin(dim=1)
    assert (distance < 0.02).sum() >= 509, "a near-tie may exchange a proposal or two for others"
    assert sample.matched[sample.matched >= 0].sort().values.tolist() == sorted(run["A_pos_gt"].tolist())


@needs_photo
@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("mrcnn")])
def test_losses_of_the_network_on_golden_proposals(name, run_b):
    assert run_b[0][name].item() == pytest.approx(float(golden("train_mmdet")[f"B_{LOSSES[name]}"]), rel=1e-4)


@needs_photo
def test_gradients_of_the_network(run_a):
    """Of the sum of all losses, tensor by tensor; converting reorders rows and channels, which no norm sees."""
    _, gradients, _ = run_a
    run = golden("train_mmdet")
    expected = {
        our_name(name): norm
        for name, norm in zip(run["A_grad_names"].tolist(), run["A_grad_norms"].tolist(), strict=True)
        if not np.isnan(norm)
    }
    assert len(expected) == 98
    errors = {name: abs(float(gradients[name].norm()) / norm - 1) for name, norm in expected.items()}
    assert max(errors.values()) < 5e-3, max(errors, key=errors.get)  # rounding turns signs of L1 and ReLU over
    assert sorted(errors.values())[49] < 5e-4


@needs_photo
def test_maskiou_loss_trains_what_is_before_it(run_b):
    _, gradients = run_b
    prefix = "B_iougrad_"
    expected = {
        name.removeprefix(prefix): float(norm)
        for name, norm in golden("train_mmdet").items()
        if name.startswith(prefix)
    }
    assert len(expected) == 5
    for name, norm in expected.items():
        ours = name if name == "P2" else our_name(name)
        # Threads sum in their own order, which makes 1.1e-3 of it on a single one.
        assert float(gradients[ours].norm()) == pytest.approx(norm, rel=2e-3), name
    assert not [name for name in gradients if name.startswith(("rpn.", "box_head."))]


@needs_photo
def test_step_of_the_optimiser(run_a, network):
    """SGD with learning rate 2e-5 and an L2 penalty of 1e-4 on everything: the first weights of the MaskIoU output."""
    weight = network.model.maskiou_head.maskious.weight
    optimizer = make_optimizer(network.model, network.model.config)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr_factor"]) == (0.9, 1e-4, 1.0)
    before = weight.detach().clone()
    set_learning_rate(optimizer, 2e-5)
    weight.grad = run_a[1]["maskiou_head.maskious.weight"]
    optimizer.step()
    delta = (weight.detach() - before)[1, :8]
    with torch.no_grad():
        weight.copy_(before)
        weight.grad = None
    is_close(delta, golden("train_mmdet")["A_step_delta_fc_mask_iou_first8"], 1e-2)


############################################################
#  What learns
############################################################


def on_meta(backbone: str, style: str) -> MaskRCNN:
    """A model as after loading published weights, without any memory."""
    with torch.device("meta"):
        model = MaskRCNN(Config(NUM_CLASSES=81, BACKBONE=backbone, BACKBONE_STYLE=style, **REFERENCE_TRAINING))
    model.source = "mmdet"
    model.set_trainable("all")
    return model


def test_the_same_parameters_learn_as_in_mmdetection():
    run = golden("train_mmdet")
    learns = {
        our_name(name): bool(flag) for name, flag in zip(run["A_grad_names"], run["A_requires_grad"], strict=True)
    }
    model = on_meta("resnet50", "caffe")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learns
    assert list(learns.values()).count(False) == 117
    assert len(learns) == 215


@pytest.mark.parametrize(
    ("backbone", "style", "trainable", "frozen"),
    [
        ("resnet50", "caffe", 60_461_120, 117),
        ("resnet50", "pytorch", 60_511_296, 33),
        ("resnet101", "caffe", 79_401_024, 219),
        ("resnext101_32x4d", "pytorch", 79_141_952, 33),
        ("resnext101_64x4d", "pytorch", 118_232_128, 33),
    ],
)
def test_as_many_numbers_learn_as_in_mmdetection(backbone, style, trainable, frozen):
    """But for our rows for the background, which mmdetection has in the classes alone."""
    parameters = list(on_meta(backbone, style).parameters())
    background = (256 + 1) + 4 * (1024 + 1) + (1024 + 1)
    assert sum(each.numel() for each in parameters if each.requires_grad) == trainable + background
    assert sum(not each.requires_grad for each in parameters) == frozen


def test_frozen_norms_learn_their_factors_in_pytorch_style():
    """As torch's own batch norm in evaluation mode; the statistics stay."""
    torch.manual_seed(0)
    conv = modellib.Conv(4, 6, 3, norm="batch", relu=True)
    torch.nn.init.normal_(conv.weight)
    for tensor in (conv.norm.weight, conv.norm.bias, conv.norm.running_mean):
        torch.nn.init.normal_(tensor)
    conv.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 9)
    norm = conv.norm
    plain = torch.nn.functional.conv2d(x, conv.weight, padding=1)
    variance = norm.running_var - 1e-5  # which torch adds
    plain = torch.nn.functional.batch_norm(plain, norm.running_mean, variance, norm.weight, norm.bias, eps=1e-5).relu()
    weights = torch.randn_like(plain)
    parameters = [conv.weight, norm.weight, norm.bias]
    expected = torch.autograd.grad((plain * weights).sum(), parameters)
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    found = torch.autograd.grad((conv.train()(x) * weights).sum(), parameters)
    for gradient, wanted in zip(found, expected, strict=True):
        is_close(gradient, wanted, 1e-5)
    assert torch.equal(norm.running_mean, statistics[0])
    assert torch.equal(norm.running_var, statistics[1])

"""The network computes what the other implementations compute: stage by stage, and from the image file to the result.

Weights are deterministic (golden_weights.py), the image is scikit-image's coffee; tests/golden/README.md says where the
numbers come from. Heads are fed the golden proposals and detections, so that a near-tie before them does not matter.
"""

import functools
import json

import golden_weights
import numpy as np
import pytest
import skimage.data
import torch
from conftest import GOLDEN

import model as modellib
import utils
from model import Images, MaskRCNN
from weights.load import load_checkpoint

PEERS = ["benchmark", "torchvision", "matterport"]
MMDET = ["r50-caffe", "x101-32x4d"]
ALL = [*MMDET, *PEERS]


############################################################
#  Models and goldens
############################################################


@functools.cache
def golden(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"detect_{case}.npz") as file:
        return {name.removeprefix("C/"): file[name] for name in file.files}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """case -> its model; the last one is kept, since the tests are sorted by case."""
    folder = tmp_path_factory.mktemp("weights")

    @functools.lru_cache(maxsize=1)
    def make(case: str) -> MaskRCNN:
        path = golden_weights.write_checkpoint(case, folder)
        checkpoint = load_checkpoint(path)
        path.unlink()
        overrides = {"DETECTION_MIN_CONFIDENCE": 0.0} if case == "matterport" else {}
        return MaskRCNN.from_checkpoint(checkpoint, device="cpu", **overrides)

    return make


@functools.cache
def coffee() -> np.ndarray:
    return np.asarray(skimage.data.coffee())


class Run:
    """One forward pass of a case, with its intermediates."""

    def __init__(self, model: MaskRCNN) -> None:
        self.model, self.config, self.out = model, model.config, {}
        molded, _, windows = model.mold_inputs([coffee()])
        pixels = torch.from_numpy(molded).permute(0, 3, 1, 2)
        with torch.no_grad():
            self.found = model(Images(pixels, torch.from_numpy(windows).float()), out=self.out)
        self.pixels, self.image_shape = pixels, pixels.shape[2:]
        self.pyramid = [self.out[f"fpn/p{level}"] for level in range(2, 7)]


@pytest.fixture(scope="module")
def run_of(model_of):
    return functools.lru_cache(maxsize=1)(lambda case: Run(model_of(case)))


def half_open(xyxy: np.ndarray, case: str) -> torch.Tensor:
    """The peer's x1, y1, x2, y2 as our boxes."""
    boxes = torch.as_tensor(xyxy)[:, [1, 0, 3, 2]]
    return boxes + torch.tensor([0, 0, 1, 1]) if case == "benchmark" else boxes


def is_close(actual, expected, tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual).float(), torch.as_tensor(expected).float(), rtol=0, atol=tolerance
    )


############################################################
#  mmdetection
############################################################


@pytest.mark.parametrize("case", MMDET)
def test_mmdet_input_and_features(case, run_of):
    run, expected = run_of(case), golden(case)
    pixels = run.pixels[0].flip(0) if "caffe" in case else run.pixels[0]
    assert list(run.pixels.shape) == expected["input_shape"].tolist()
    is_close(pixels[:, 100:108, 100:108], expected["input_patch"], 1e-5)
    for name, actual in {f"C{i}": run.out[f"backbone/c{i}"] for i in range(2, 6)}.items() | {
        f"P{i}": run.out[f"fpn/p{i}"] for i in range(2, 7)
    }.items():
        assert list(actual.shape) == expected[f"{name}_shape"].tolist()
        y, x = actual.shape[2] // 2, actual.shape[3] // 2
        scale = float(expected[f"{name}_stat"][3])
        is_close(actual[0, :16, y : y + 4, x : x + 4], expected[f"{name}_patch"], 2e-5 * scale)
        stats = [actual.double().mean(), actual.double().std(correction=0), actual.min(), actual.max()]
        is_close(torch.tensor([float(stat) for stat in stats]), expected[f"{name}_stat"], 2e-5 * scale)


@pytest.mark.parametrize("case", MMDET)
def test_mmdet_rpn(case, run_of):
    run, expected = run_of(case), golden(case)
    for level in range(5):
        index = torch.from_numpy(expected[f"rpn_top{level}_idx"])
        index = index // 3 * 3 + (2 - index % 3)  # ratios in the other order
        is_close(run.out["rpn/objectness_logits"][level][0, index], expected[f"rpn_top{level}_logit"], 2e-4)
        deltas = run.out["rpn/anchor_deltas"][level][0, index][:, [1, 0, 3, 2]]
        is_close(deltas, expected[f"rpn_top{level}_delta"], 2e-4)
        is_close(run.out["anchors"][level][index], half_open(expected[f"rpn_top{level}_anchor"], case), 1e-3)
    proposals = half_open(expected["proposals"], case)
    assert matched(run.out["proposals"], proposals, 0.1) >= 990
    levels = modellib.roi_levels(proposals, run.image_shape, run.config)
    assert levels.tolist() == expected["roi_level"].tolist()


@pytest.mark.parametrize("case", MMDET)
def test_mmdet_heads(case, run_of):
    run, expected = run_of(case), golden(case)
    proposals = half_open(expected["proposals"], case)
    image = torch.zeros(len(proposals), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, proposals, image, 7, run.image_shape, run.config)
        is_close(features[expected["bbox_feat_rows"], :8], expected["bbox_feat"], 1e-4)
        logits, deltas = run.model.box_head(features)
    is_close(logits[:, [*range(1, 81), 0]], expected["cls_score"], 1e-3)
    deltas = deltas[expected["bbox_pred_rows"], 1:][..., [1, 0, 3, 2]].flatten(1)
    is_close(deltas, expected["bbox_pred"], 1e-3)
    boxes, labels = half_open(expected["det_boxes_input"], case), torch.from_numpy(expected["det_labels"])
    image = torch.zeros(len(boxes), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, boxes, image, 14, run.image_shape, run.config)
        is_close(features[expected["mask_feat_rows"], :8], expected["mask_feat"], 1e-4)
        masks = run.model.mask_head(features, labels + 1)
        maskious = run.model.maskiou_head(features, masks)
    is_close(masks, expected["mask_logits"], 1e-3)
    is_close(maskious[:, 1:], expected["mask_iou_pred"], 2e-4)


############################################################
#  maskrcnn-benchmark, torchvision, Matterport
############################################################


def check_map(actual: torch.Tensor, expected: dict[str, np.ndarray], name: str, relative: float) -> None:
    """A map [C, H, W] against the golden patch, corner and statistics."""
    assert list(actual.shape) == expected[f"{name}/shape"].tolist()
    *channels, y, x = expected[f"{name}/patch_chan_y_x"].tolist()
    stats = expected[f"{name}/mean_std_min_max"]
    tolerance = relative * float(np.abs(stats[2:]).max())
    patch, corner = actual[channels, y : y + 6, x : x + 6], actual[channels, -3:, -3:]
    is_close(patch, expected[f"{name}/patch"], tolerance)
    is_close(corner, expected[f"{name}/corner"], tolerance)
    own = torch.tensor([actual.double().mean(), actual.double().std(correction=0), actual.min(), actual.max()])
    is_close(own, stats, tolerance)


@pytest.mark.parametrize("case", PEERS)
def test_peer_input_and_features(case, run_of):
    run, expected = run_of(case), golden(case)
    pixels = run.pixels[0].flip(0) if case == "benchmark" else run.pixels[0]
    # Matterport's resized image is truncated to bytes: a value a hair below a whole number falls by one.
    check_map(pixels, expected, "input", 1e-2 if case == "matterport" else 1e-6)
    for level in range(2, 6):
        check_map(run.out[f"backbone/c{level}"][0], expected, f"body/c{level}", 1e-4)
    for level in range(2, 7):
        check_map(run.out[f"fpn/p{level}"][0], expected, f"fpn/p{level}", 1e-4)


@pytest.mark.parametrize("case", PEERS)
def test_peer_rpn(case, run_of):
    run, expected = run_of(case), golden(case)
    for level in range(5):
        prefix = f"rpn/p{level + 2}"
        index = torch.from_numpy(expected[f"{prefix}/idx_hwa"])
        if case != "matterport":
            index = index // 3 * 3 + (2 - index % 3)
        logits = run.out["rpn/objectness_logits"][level][0, index]
        deltas = run.out["rpn/anchor_deltas"][level][0, index]
        anchors = run.out["anchors"][level][index]
        if case == "matterport":
            is_close(logits.sigmoid(), expected[f"{prefix}/prob_fg"], 1e-4)
            is_close(deltas, expected[f"{prefix}/delta_raw"], 2e-4)
            is_close(anchors / 1023, expected[f"{prefix}/anchor_norm_y1x1y2x2"], 1e-6)
        else:
            is_close(logits, expected[f"{prefix}/logit"], 2e-4)
            is_close(deltas[:, [1, 0, 3, 2]], expected[f"{prefix}/delta"], 2e-4)
            is_close(anchors, half_open(expected[f"{prefix}/anchor"], case), 1e-3)
    proposals = golden_proposals(case)
    # Matterport's padding is uniform: there, thousands of anchors tie, and rounding decides between them.
    middle = (proposals[:, 0] + proposals[:, 2]) / 2
    inside = proposals[(middle > 170) & (middle < 853)] if case == "matterport" else proposals
    assert len(inside) > 600
    assert matched(run.out["proposals"], inside, 0.1) >= 0.99 * len(inside)
    levels = modellib.roi_levels(proposals, run.image_shape, run.config)
    golden_levels = expected["proposals/level"].astype(int)
    assert levels.tolist() == (golden_levels - golden_levels.min() + levels.min().item()).tolist()
    assert sorted(set(levels.tolist())) == [0, 1, 2, 3]


def golden_proposals(case: str) -> torch.Tensor:
    expected = golden(case)
    if case == "matterport":
        return torch.from_numpy(expected["proposals/boxes_norm"]) * 1023
    return half_open(expected["proposals/boxes"], case)


@pytest.mark.parametrize("case", PEERS)
def test_peer_box_head(case, run_of):
    run, expected = run_of(case), golden(case)
    proposals = golden_proposals(case)
    image = torch.zeros(len(proposals), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, proposals, image, 7, run.image_shape, run.config)
        logits, deltas = run.model.box_head(features)
    is_close(features[expected["box/pooled_idx"], ::32], expected["box/pooled"], 1e-4)
    rows = expected["box/rows"]
    is_close(logits[rows], expected["box/class_logits"], 1e-3)
    if case == "matterport":
        is_close(deltas[rows], expected["box/deltas_raw"], 1e-3)
        is_close(features[expected["box/pooled_edge_idx"], ::32], expected["box/pooled_edge"], 1e-4)
    else:
        is_close(deltas[rows][..., [1, 0, 3, 2]].flatten(1), expected["box/box_regression"], 1e-3)
    best = logits.softmax(1).max(1)
    assert (best.indices == torch.from_numpy(expected["box/argmax_class_all"].astype(int))).float().mean() > 0.995
    is_close(best.values, expected["box/max_prob_all"], 1e-3)


@pytest.mark.parametrize("case", PEERS)
def test_peer_mask_heads(case, run_of):
    run, expected = run_of(case), golden(case)
    boxes, labels = golden_detections(case)
    image = torch.zeros(len(boxes), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, boxes, image, 14, run.image_shape, run.config)
        logits = run.model.mask_head(features, labels)
    is_close(features[:3, ::32], expected["mask/pooled_first3"], 2e-4)
    if case == "matterport":
        is_close(logits.sigmoid(), expected["mask/prob_label"], 1e-3)
    else:
        is_close(logits, expected["mask/logits_label"], 2e-3)
    if case == "benchmark":
        with torch.no_grad():
            maskious = run.model.maskiou_head(features, logits)
        is_close(maskious, expected["maskiou/pred_all_classes"], 2e-4)


def golden_detections(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in the network's input and class ids."""
    expected = golden(case)
    if case == "matterport":
        rows = torch.from_numpy(expected["det/norm_y1x1y2x2_class_score"])
        return rows[:, :4] * 1023, rows[:, 4].long()
    if case == "benchmark":
        return half_open(expected["det/boxes_network"], case), torch.from_numpy(expected["det/labels"])
    boxes = half_open(expected["final/boxes_xyxy"], case) * 2  # 400x600 became 800x1200
    return boxes, torch.from_numpy(expected["det/labels"])


############################################################
#  From the image to the result
############################################################


def matched(actual: torch.Tensor, expected: torch.Tensor, pixels: float) -> int:
    """How many expected boxes have an actual one within so many pixels."""
    distance = (torch.as_tensor(actual)[None] - torch.as_tensor(expected)[:, None]).abs().amax(-1)
    return int((distance.amin(1) <= pixels).sum())


def final_of(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, list[dict]]:
    """Golden boxes (ours), class ids, class scores, mask scores and masks, in pixels of the image."""
    expected = golden(case)
    if case in MMDET:
        boxes = half_open(expected["final_boxes"], case).numpy()
        segm = json.loads(str(expected["segm.json"]))
        rles = [entry["segmentation"] for entry in segm]
        return boxes, expected["final_labels"] + 1, expected["det_scores_cls"], expected["final_scores"], rles
    rles = json.loads(str(expected["final/rle.json"]))
    if case == "matterport":
        boxes = expected["final/rois_y1x1y2x2"].astype(np.float32)
        return boxes, expected["final/class_ids"], expected["final/scores"], None, rles
    if case == "torchvision":
        boxes = half_open(expected["final/boxes_xyxy"], case).numpy()
        return boxes, expected["det/labels"], expected["det/scores"], None, rles
    x, y, width, height = expected["final/bbox_xywh"].T
    boxes = np.stack([y, x, y + height, x + width], axis=1)
    return boxes, expected["det/labels"], expected["final/bbox_score"], expected["final/segm_score"], rles


@pytest.mark.parametrize("case", ALL)
def test_end_to_end(case, model_of):
    """At least 97 of 100 detections: class, box within 1 px, score within 3e-3, mask IoU of 0.98."""
    (result,) = model_of(case).detect([coffee()])
    boxes, class_ids, scores, mask_scores, rles = final_of(case)
    assert result["rois"].dtype == np.float32
    assert result["class_ids"].dtype == np.int32
    assert result["masks"].shape == (400, 600, len(result["rois"]))
    assert np.all(np.diff(result["scores"]) <= 0), "best first"
    good = 0
    free = set(range(len(result["rois"])))
    masks = utils.rle_to_mask(rles)
    for i, box in enumerate(boxes):
        for j in sorted(free):
            ok = result["class_ids"][j] == class_ids[i] and np.abs(result["rois"][j] - box).max() <= 1
            ok = ok and abs(result["scores"][j] - scores[i]) <= 3e-3
            ok = ok and (mask_scores is None or abs(result["mask_scores"][j] - mask_scores[i]) <= 3e-3)
            if ok and mask_iou(result["masks"][..., j], masks[..., i]) >= 0.98:
                free.remove(j)
                good += 1
                break
    print(f"{case}: {good} of {len(boxes)}")
    assert good >= 97
    assert len(result["rois"]) <= 100


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return 1.0 if union == 0 else (one & other).sum() / union

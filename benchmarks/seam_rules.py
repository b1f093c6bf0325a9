"""How others make objects of what tiles detect: rules for bench_tiles.py to compare with tiles.py.

Each takes all detections of all tiles at once, as large as the whole image needs them, and knows nothing of tiles.
SAHI's and supervision's own functions run, with their default thresholds, where these packages can be imported.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

import utils
from data.writers.outlines import outlines
from detections import ImageDetections
from nms import batched_nms
from tiles import TiledDetections

Shape = Sequence[int]
MOST_BYTES = 1e9  # of full-size masks: supervision takes one for each detection, and four times that to compare


def no_rule(detections: TiledDetections, shape: Shape) -> ImageDetections:
    """All detections of all tiles."""
    return detections.to_image_detections(shape)


def box_nms(detections: TiledDetections, shape: Shape) -> ImageDetections:
    """Of boxes of a class with an IoU of 0.5, the one with the highest score."""
    columns = detections.rois, detections.scores, detections.class_ids
    kept = batched_nms(*map(torch.from_numpy, columns), 0.5)
    return detections[kept.numpy()].to_image_detections(shape)


def supervision_nms(detections: TiledDetections, shape: Shape) -> ImageDetections:
    """InferenceSlicer's default: the same with masks."""
    return _of_supervision(_for_supervision(detections, shape).with_nms(threshold=0.5))


def supervision_nmm(detections: TiledDetections, shape: Shape) -> ImageDetections:
    """InferenceSlicer's other filter, which joins masks."""
    return _of_supervision(_for_supervision(detections, shape).with_nmm(threshold=0.5))


def sahi_greedy_nmm(detections: TiledDetections, shape: Shape) -> ImageDetections:
    """get_sliced_prediction's default: boxes that share half of the smaller one are joined, and so are their masks."""
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction

    predictions = [
        ObjectPrediction(
            bbox=[int(x1), int(y1), int(x2), int(y2)],
            category_id=int(class_id),
            category_name=str(class_id),
            score=float(score),
            segmentation=_polygons(*crop),
            shift_amount=[0, 0],
            full_shape=[*shape[:2]],
        )
        for (y1, x1, y2, x2), class_id, score, crop in zip(
            detections.rois, detections.class_ids, detections.scores, detections.masks, strict=True
        )
    ]
    rule = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    found = rule(predictions)
    codes = [utils.polygons_to_rle(item.mask.segmentation, *shape[:2]) for item in found]
    return _columns(
        [item.bbox.to_xyxy() for item in found],
        [item.category.id for item in found],
        [item.score.value for item in found],
        codes,
    )


RULES: dict[str, tuple[Callable[[TiledDetections, Shape], ImageDetections], str | None]] = {
    "no rule": (no_rule, None),
    "box NMS": (box_nms, None),
    "supervision, NMS": (supervision_nms, "supervision"),
    "supervision, NMM": (supervision_nmm, "supervision"),
    "SAHI, GREEDYNMM": (sahi_greedy_nmm, "sahi"),
}  # with the package that a rule needs


def usable_rules(detections: TiledDetections, shape: Shape) -> Iterable[tuple[str, Callable[..., ImageDetections]]]:
    """The rules that run here with these detections. Says of the others why they do not."""
    for name, (rule, package) in RULES.items():
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"{name} is left out: pip install {package}", file=sys.stderr)
        elif package == "supervision" and len(detections) * shape[0] * shape[1] > MOST_BYTES:
            print(
                f"{name} is left out: its masks of {len(detections)} detections would take more than 1 GB",
                file=sys.stderr,
            )
        else:
            yield name, rule


def _for_supervision(detections: TiledDetections, shape: Shape) -> Any:
    import supervision

    masks = np.zeros((len(detections), *shape[:2]), bool)
    for mask, (y, x, pixels) in zip(masks, detections.masks, strict=True):
        mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    boxes = detections.rois[:, [1, 0, 3, 2]]
    return supervision.Detections(
        xyxy=boxes, mask=masks, confidence=detections.scores, class_id=detections.class_ids.astype(int)
    )


def _of_supervision(found: Any) -> ImageDetections:
    codes = [utils.mask_to_rle(np.asarray(mask, bool)) for mask in found.mask]
    return _columns(found.xyxy, found.class_id, found.confidence, codes)


def _columns(boxes: Any, class_ids: Any, scores: Any, codes: list[dict]) -> ImageDetections:
    """Of boxes (x1, y1, x2, y2). These programs know one score."""
    rois = np.array(boxes, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    scores = np.array(scores, np.float32)
    return ImageDetections(rois, np.array(class_ids, np.int32), scores, None, scores, codes)


def _polygons(y: int, x: int, mask: np.ndarray) -> list[list[float]]:
    """COCO's polygons of a mask, which have no holes."""
    rings = (part.outer + np.array([x, y]) for part in outlines(mask))
    return [ring.astype(float).ravel().tolist() for ring in rings]

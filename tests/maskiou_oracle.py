"""The paper's MaskIoU targets, from polygons: an oracle for tests. Training uses bitmaps.

What zjhuang22/maskscoring_rcnn (maskrcnn_benchmark/modeling/roi_heads/mask_head/loss.py) computes for each positive
proposal, one at a time, in its own conventions: boxes are inclusive (x1, y1, x2, y2), without +1 in widths here; the
parts of an object are rasterised and counted one by one, so that overlapping parts count twice in the areas.

    parts: the polygons of one object, each [x0, y0, x1, y1, ...]   P positives   M mask side
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

import utils


def rasterised(parts: Sequence[np.ndarray], height: int, width: int) -> list[dict]:
    """A run-length code for each part on a canvas; what lies outside is cut off."""
    return coco_mask.frPyObjects([part.tolist() for part in parts], height, width)


def shifted(parts: Sequence[np.ndarray], x: float, y: float) -> list[np.ndarray]:
    """The parts seen from (x, y), float32."""
    origin = np.array([x, y], np.float32)
    return [(np.asarray(part, np.float32).reshape(-1, 2) - origin).ravel() for part in parts]


def mask_target(parts: Sequence[np.ndarray], box: np.ndarray, side: int = 28) -> np.ndarray:
    """The object in a proposal as side x side pixels: uint8 [M, M]."""
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    scale = np.array([side / max(float(x2 - x1), 1), side / max(float(y2 - y1), 1)], np.float32)
    scaled = [(part.reshape(-1, 2) * scale).ravel() for part in shifted(parts, x1, y1)]
    return utils.rle_to_mask(coco_mask.merge(rasterised(scaled, side, side))).astype(np.uint8)


def area_in(parts: Sequence[np.ndarray], x1: float, y1: float, x2: float, y2: float) -> float:
    """Pixels of the parts in a window whose sides are truncated to whole pixels; each part counts."""
    height, width = int(y2 - y1), int(x2 - x1)
    return float(sum(coco_mask.area(rle) for rle in rasterised(shifted(parts, x1, y1), height, width)))


def full_window(parts: Sequence[np.ndarray], box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The window that holds proposal and object, clamped to the image: float64 (x1, y1, x2, y2).

    image_size: (width, height).
    """
    points = np.concatenate([np.asarray(part, np.float32).reshape(-1, 2) for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    limit = np.array(image_size, np.float64) - 1
    start = np.minimum(box[:2].astype(int), low).clip(0, limit)
    end = np.maximum(box[2:].astype(int) + 1, high).clip(0, limit)
    return np.concatenate([start, end]).astype(np.float64)


def maskiou_target(logits: np.ndarray, target: np.ndarray, ratio: float) -> float:
    """IoU of a predicted mask [M, M] with the whole object, of which a share lies in the proposal."""
    predicted = logits > 0
    full = np.float32(target.sum()) / np.float32(max(ratio, 1e-10))
    inter = np.float32((predicted * target).sum())
    union = max(np.float32(predicted.sum()) + full - inter, np.float32(1))
    return float(max(inter, 0) / union)


def maskiou_targets(
    polygons: Sequence[Sequence[Sequence[float]]],
    boxes: np.ndarray,
    gt_index: np.ndarray,
    logits: np.ndarray,
    image_size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """All that goes into the MaskIoU targets of P positive proposals.

    polygons: for each object its parts. boxes: float32 [P, (x1, y1, x2, y2)]. gt_index: [P], the object of each.
    logits: [P, M, M], of the object's class. image_size: (width, height).

    Returns: mask_targets [P, M, M]; box_area, full_area, mask_ratio and maskiou_targets [P]; full_window [P, 4].
    """
    rows: dict[str, list] = {}
    for box, index, mask_logits in zip(boxes, gt_index, logits, strict=True):
        parts = [np.asarray(part, np.float32) for part in polygons[index]]
        target = mask_target(parts, box, mask_logits.shape[-1])
        window = full_window(parts, box, image_size)
        inside, full = area_in(parts, *box), area_in(parts, *window)
        row = {
            "mask_targets": target,
            "box_area": inside,
            "full_area": full,
            "full_window": window,
            "mask_ratio": inside / full,
            "maskiou_targets": maskiou_target(mask_logits, target, inside / full),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def mask_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean binary cross entropy of logits [P, M, M] with masks [P, M, M]; 0 of none."""
    logits = logits.astype(np.float64)
    losses = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return float(losses.mean()) if len(logits) else 0.0


def maskiou_loss(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of 0.5 (p - t)^2 over targets above 0; 0 of none."""
    learns = targets > 0
    return float((0.5 * (predicted - targets)[learns].astype(np.float64) ** 2).mean()) if learns.any() else 0.0

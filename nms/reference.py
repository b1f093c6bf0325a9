"""Non-maximum suppression in plain torch: the oracle of the tests, and the kernel where no library is built."""

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression; nms.nms has the contract."""
    order = scores.argsort(descending=True, stable=True)  # [N]
    usable = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    order = order[usable[order]]  # [M]
    boxes = boxes[order]  # [M, 4]
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~(iou(boxes[i], boxes[i + 1 :]) > iou_threshold)
    return order[alive]


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    max_keep: int | None,
    max_boxes: int | None = None,
) -> Tensor:
    """Runs nms in each group and merges the results in descending score; nms.batched_nms has the contract."""
    groups = scores.new_zeros(len(scores), dtype=torch.int64) if groups is None else groups
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    usable = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    for group in groups.unique():
        rows = ((groups == group) & usable).nonzero()[:, 0]
        rows = rows[scores[rows].argsort(descending=True, stable=True)[:max_boxes]]
        kept[rows[nms(boxes[rows], scores[rows], iou_threshold)[:max_keep]]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def nms_of_images(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    images: int,
    groups_per_image: int,
    iou_threshold: float,
    limit: int,
    max_boxes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The best boxes of each image after batched_nms; nms.nms_of_images has the contract."""
    keep = torch.zeros(images, limit, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(images, dtype=torch.int64, device=boxes.device)
    kept = batched_nms(boxes, scores, groups, iou_threshold, limit, max_boxes)
    image_of_kept = groups[kept].div(groups_per_image, rounding_mode="floor")
    for image in range(images):
        best = kept[image_of_kept == image][:limit]
        keep[image, : len(best)], counts[image] = best, len(best)
    return keep, counts


def iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box [4] with boxes [N, 4] -> [N]; NaN where both are empty."""
    size = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)  # [N, (h, w)]
    inter = size[:, 0] * size[:, 1]
    return inter / (area(box) + area(boxes) - inter)


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes [..., 4]; zero where y2 <= y1 or x2 <= x1."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]

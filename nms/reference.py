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
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, max_keep: int | None
) -> Tensor:
    """Runs nms in each group and merges the results in descending score; nms.batched_nms has the contract."""
    if groups is None:
        return nms(boxes, scores, iou_threshold)[:max_keep]
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        kept[rows[nms(boxes[rows], scores[rows], iou_threshold)[:max_keep]]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box [4] with boxes [N, 4] -> [N]; NaN where both are empty."""
    size = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)  # [N, (h, w)]
    inter = size[:, 0] * size[:, 1]
    return inter / (area(box) + area(boxes) - inter)


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes [..., 4]; zero where y2 <= y1 or x2 <= x1."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]

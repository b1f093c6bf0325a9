"""Detections that are worth a picture in the report."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

EXAMPLES, EXAMPLES_OF_AN_IMAGE = 12, 2  # the most of each kind, and of them from one image


class Example(NamedTuple):
    """A detection worth a picture."""

    image_id: int  # as in the results
    title: str  # of the image
    class_name: str
    class_score: float | None  # None of an object that was missed
    mask_iou: float | None  # predicted; None without a MaskIoU head
    mask_score: float | None
    true_iou: float | None  # largest IoU with an object of the class
    box: tuple[float, float, float, float]  # (y1, x1, y2, x2) around the mask
    mask: dict | None  # RLE; None of an object that was missed
    truth: dict | None  # RLE of the object of the class that the mask overlaps most; None if it overlaps none
    more_masks: tuple[dict, ...] = ()  # RLEs of further detections that take part
    more_truths: tuple[dict, ...] = ()  # RLEs of further objects that take part


def find_examples(truth: COCO, masks: list[dict[str, Any]], ious: np.ndarray) -> dict[str, list[Example]]:
    """Choose at most EXAMPLES detections of each kind, at most EXAMPLES_OF_AN_IMAGE of them from one image.

    truth: of metrics.as_coco. masks: results as to_results makes them. ious: [N], their true IoUs.

    Returns: three kinds, the clearest first.
        "overrated": the class score is high and the mask is bad, although an object of the class is near: the paper's
        Figure 1. "corrected": the mask score lies far below the class score, and rightly so. "best": the mask score is
        high, and rightly so.
    """
    class_scores = np.array([entry["class_score"] for entry in masks])
    mask_scores = np.array([entry["score"] for entry in masks])
    predicted = np.array([np.nan if entry["mask_iou"] is None else entry["mask_iou"] for entry in masks], np.float64)
    is_poor = (ious >= 0.1) & (ious < 0.75)  # below 0.1 it may be the class that is wrong
    is_right = np.abs(predicted - ious) <= 0.1
    worths = {
        "overrated": np.where(is_poor, class_scores - ious, 0),
        "corrected": np.where(is_poor & is_right, class_scores - mask_scores, 0),
        "best": mask_scores * ious,
    }
    return {
        kind: [_describe(truth, masks[i], float(ious[i])) for i in choose_largest(worth, masks)]
        for kind, worth in worths.items()
    }


def choose_largest(worth: np.ndarray, masks: list[dict[str, Any]]) -> list[int]:
    """The places of the largest values above 0, few of any image."""
    chosen: list[int] = []
    counts: dict[int, int] = defaultdict(int)
    for i in np.argsort(-worth, kind="stable").tolist():
        if len(chosen) == EXAMPLES or worth[i] <= 0:
            break
        image = masks[i]["image_id"]
        if counts[image] < EXAMPLES_OF_AN_IMAGE:
            counts[image] += 1
            chosen.append(i)
    return chosen


def _describe(truth: COCO, entry: dict[str, Any], iou: float) -> Example:
    """entry: one of the results. iou: its true IoU."""
    code, image, category = entry["segmentation"], entry["image_id"], entry["category_id"]
    objects = [
        each["segmentation"]
        for each in truth.imgToAnns.get(image, ())
        if each["category_id"] == category and not each["iscrowd"]
    ]
    overlaps = coco_mask.iou([code], objects, [0] * len(objects))[0] if objects else np.zeros(0)
    x, y, width, height = coco_mask.toBbox(code).tolist()
    return Example(
        image_id=image,
        title=truth.imgs[image].get("file_name", f"image {image}"),
        class_name=truth.cats[category]["name"],
        class_score=entry["class_score"],
        mask_iou=entry["mask_iou"],
        mask_score=entry["score"],
        true_iou=iou,
        box=(y, x, y + height, x + width),
        mask=code,
        truth=objects[int(overlaps.argmax())] if overlaps.any() else None,
    )

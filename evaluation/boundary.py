"""Boundary IoU: how well outlines agree. Mask IoU says little about the outline of a large object.

The boundary of a mask is the part of it within a distance of its outline, or of the image's edge. The distance is 2 %
of the image's diagonal, so that an object that is nowhere wider than twice this is boundary throughout.

Source: Boundary IoU (arXiv:2103.16562), and github.com/bowenc0221/boundary-iou-api.
"""

import math
from typing import Any

import numpy as np
import scipy
from pycocotools import mask as coco_mask

import utils
from roialign.paste import crop_to_rle

from .metrics import RankedEvaluation

DILATION = 0.02  # of the image's diagonal


def boundary_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """The compressed RLE of a mask's boundary."""
    height, width = rle["size"]
    distance = max(round(DILATION * math.hypot(height, width)), 1)
    y, x, crop = utils.rle_to_crop(rle)
    if not crop.any():
        return rle
    # A square of zeros at most `distance` away erodes, as `distance` rounds with a square of 3 x 3 pixels do
    inner = scipy.ndimage.minimum_filter(crop.astype(np.uint8), 2 * distance + 1, mode="constant", cval=0)
    return crop_to_rle(y, x, np.ascontiguousarray(crop & (inner == 0)), (height, width))


def boundary_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The boundary of a result or an annotation, which keeps it as "boundary"."""
    if "boundary" not in entry:
        entry["boundary"] = boundary_rle(entry["segmentation"])
    return entry["boundary"]


class BoundaryEvaluation(RankedEvaluation):
    """Average precision in which the overlap of two masks is the smaller one of their IoU and their boundary IoU.

    Crowds keep the share of a mask that lies in them.
    """

    def _overlaps(self, pair: tuple[int, int]) -> np.ndarray:
        overlaps = np.array(super()._overlaps(pair))  # [D, G]
        is_object = [not entry["iscrowd"] for entry in self._gts[pair]]
        if any(is_object):
            objects = [boundary_of(entry) for entry in self._gts[pair] if not entry["iscrowd"]]
            results = [boundary_of(entry) for entry in self._dts[pair]]
            overlaps[:, is_object] = np.minimum(
                overlaps[:, is_object], coco_mask.iou(results, objects, [0] * len(objects))
            )
        return overlaps

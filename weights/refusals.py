"""Files that cannot be converted, by the names of their tensors, and why.

A format is recognised by a few names (formats.py). Relatives of a format have these names too, so the relatives are
looked for first.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import utils


class _Refusal(NamedTuple):
    """A kind of file. pattern: of the beginning of a name. reason: what follows "is not converted: ".

    unless: the file is of this kind only if no name begins with this pattern.
    """

    pattern: str
    reason: str
    unless: str | None = None


_NO_MASKS = "it finds boxes only and has no mask head, and this project needs masks: take a Mask R-CNN"
_NOT_RESNET = (
    "its backbone is no ResNet with the names of torchvision, maskrcnn-benchmark or mmdetection, and this project has "
    "ResNet and ResNeXt only"
)
_CLASSIFIER = "it is an image classifier that is no ResNet; backbones of this project are ResNet and ResNeXt"
_CASCADE = "it is a cascade of several heads (Cascade R-CNN or HTC), and this project has one head of each kind"
_REFUSALS = (
    _Refusal(
        r"backbone\.stem\.weight$",
        "it is a bare state dict of this project, without config and class names. "
        "Give the file that MaskRCNN.save wrote",
    ),
    _Refusal(r"roi_heads\.keypoint", "it finds keypoints, and this project finds masks"),
    _Refusal(r"roi_head\.(bbox|mask)_head\.\d", _CASCADE),
    _Refusal(r"roi_head\.(semantic|point|keypoint)_", "its heads are not those of Mask R-CNN or Mask Scoring R-CNN"),
    _Refusal(
        r"head\.(classification|regression)_head\.",
        "it is a one-stage detector of torchvision (RetinaNet, FCOS or SSD), which has no masks",
    ),
    _Refusal(
        r"bbox_head\.",
        "it is of mmdetection 1.x, or of a one-stage detector. Version 1 has the background "
        "first, and other anchors and boxes: read as version 2 it would detect nonsense. Convert it with "
        "mmdetection's tools/model_converters/upgrade_model_version.py first, or take a file of version 2 or "
        "later",
    ),
    _Refusal(r"mask_head\.", "it is of mmdetection 1.x or of a one-stage detector, which this does not read"),
    _Refusal(r"(backbone|backbone\.body)\.(\d|features|blocks|patch_embed|stages|patch_embedding)", _NOT_RESNET),
    _Refusal(r"roi_heads\.box_predictor\.", _NO_MASKS, unless=r"roi_heads\.mask_"),
    _Refusal(r"roi_heads\.box\.predictor\.", _NO_MASKS, unless=r"roi_heads\.mask\."),
    _Refusal(r"roi_head\.bbox_head\.", _NO_MASKS, unless=r"roi_head\.mask_head\."),
    _Refusal(r"(features\.|class_token$|cls_token$|patch_embed\.|encoder\.layers\.)", _CLASSIFIER),
    _Refusal(r"(transformer\.|class_embed\.)", "it is a transformer such as DETR, and this project has none"),
)


def refuse(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError for the names of a file that is known not to be convertible. names: of its tensors."""
    names = list(names)
    for refusal in _REFUSALS:
        sign = _first(refusal.pattern, names)
        if sign and not (refusal.unless and _first(refusal.unless, names)):
            raise ValueError(f"{path} is not converted: {refusal.reason}. (It has {utils.printable(sign, 100)}.)")


def _first(pattern: str, names: Sequence[str]) -> str | None:
    return next((name for name in names if re.match(pattern, name)), None)

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
    "its backbone is no ResNet with the names of torchvision, maskrcnn-benchmark, mmdetection or Detectron2, and this "
    "project has ResNet and ResNeXt only"
)
_CLASSIFIER = "it is an image classifier that is no ResNet; backbones of this project are ResNet and ResNeXt"
_CASCADE = "it is a cascade of several heads (Cascade R-CNN or HTC), and this project has one head of each kind"
_DETECTRON2 = (  # and Detectron, whose names have no dots
    _Refusal(
        r"(conv_rpn|rpn_(cls_logits|bbox_pred)|fpn_(inner_)?res\d|retnet_|(cls_score|bbox_pred|mask_fcn_logits)_[wb]$)",
        "it is a detector of Detectron, the Caffe2 code before Detectron2, with other boxes and another RoIAlign; "
        "Detectron2's model zoo has a better model of the same network",
    ),
    _Refusal(
        r".*_gn_[sb]$",
        "it is an ImageNet classifier of Caffe2 with group norms, and trainings of this project start from batch norms",
    ),
    _Refusal(
        r"sem_seg_head\.",
        "it labels the pixels of a whole image (semantic segmentation, Panoptic-DeepLab or MaskFormer), and finds no "
        "boxes",
        unless=r"roi_heads\.",
    ),
    _Refusal(r"(backbone|roi_heads\.res5)\..*\.conv2_offset", "its backbone has deformable convolutions of Detectron2"),
    _Refusal(
        r"roi_heads\.res5\.",
        "it is a C4 model of Detectron2, whose heads have the last stage of the backbone; this project needs a feature "
        "pyramid (FPN)",
    ),
    _Refusal(
        r"roi_heads\.(box_head\.\d+\.(fc|conv)\d|box_predictor\.\d+\.(cls_score|bbox_pred))",
        "it is Detectron2's Cascade R-CNN, and this project has one head of each kind",
    ),
    _Refusal(
        r"roi_heads\.(mask_head\.|mask_)?(point|coarse)_head", "it is PointRend of Detectron2, with another mask head"
    ),
    _Refusal(r"roi_heads\.densepose", "it is DensePose, and this project finds masks"),
    _Refusal(
        r"(head\.(cls|bbox)_(subnet|score|pred)\.|proposal_generator\.(fcos|centernet)_head\.)",
        "it is a one-stage detector of Detectron2 or its relatives (RetinaNet, FCOS or CenterNet), with other heads",
    ),
    _Refusal(
        r"backbone\.(net|simfp_\d|bottom_up\.(blocks|patch_embed|layers|pos_embed))\b",
        "its backbone is a transformer (ViTDet, MViT or Swin), and this project has ResNet and ResNeXt only",
    ),
    _Refusal(
        r"backbone\.bottom_up\.(s\d\.b\d|stem\.conv\.)",
        "its backbone is a RegNet, and this project has ResNet and ResNeXt",
    ),
    _Refusal(
        r"backbone\.bottom_up\.(?!stem\.conv1\.|res\d+\.\d+\.(shortcut|conv\d)\.)",
        "its backbone is no ResNet with Detectron2's names, and this project has ResNet and ResNeXt only",
    ),
    _Refusal(
        r"backbone\.(stem\.conv1|res\d\.\d+)\.",
        "it is a model of Detectron2 without a feature pyramid (DC5, or C4 without its heads), and this project needs "
        "one (FPN)",
    ),
    _Refusal(
        r"proposal_generator\.",
        "it is a region proposal network alone, without heads for classes",
        unless=r"roi_heads\.",
    ),
)
_REFUSALS = (
    _Refusal(
        r"backbone\.stem\.weight$",
        "it is a bare state dict of this project, without config and class names. "
        "Give the file that MaskRCNN.save wrote",
    ),
    *_DETECTRON2,
    _Refusal(r"roi_heads\.keypoint", "it finds keypoints, and this project finds masks"),
    _Refusal(r"roi_head\.(bbox|mask)_head\.\d", _CASCADE),
    _Refusal(
        r"roi_head\.shared_head\.",
        "it is a C4 model of mmdetection, whose heads have the last stage of the backbone; this project needs a "
        "feature pyramid (FPN)",
    ),
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


def refuse_config(path: Path, text: str) -> None:
    """Raises ValueError if the configuration that a file of mmdetection stores has another RoIAlign than its weights'
    dialect. Its tensors do not show it.

    text: of the configuration; empty if the file has none.
    """
    sign = re.search(r"(\baligned['\"]?\s*[=:]\s*False|\bsampling_ratio['\"]?\s*[=:]\s*[1-9]\d*)", text)
    if sign:
        raise ValueError(
            f"{path} is not converted: the config in it says {utils.printable(sign[0], 60)}, as mmdetection's configs "
            "that end in _v1 do, and this project reads models with the aligned RoIAlign that all other configs have"
        )

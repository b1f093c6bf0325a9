"""Any published checkpoint of the family -> ours, and where the published ones are.

    python convert_weights.py SRC DST [--style caffe|pytorch] [--classes FILE] [--eps EPS] [--force]

A source is recognised by what is in it, never by its suffix:

    keras        Matterport's Mask R-CNN, HDF5        port2018     its PyTorch port of 2018
    benchmark    the paper's code, and its ancestor   mmdet        MS R-CNN and Mask R-CNN of mmdetection 2 and 3
    torchvision  Mask R-CNN v1 and v2                 imagenet     torchvision's and OpenMMLab's classifiers

The network has one canonical form (model.py). What a source does differently and can be made equal in the weights, is:
names (one table a format), class order, row order, colour order, batch norm. The rest is the dialect, which the
checkpoint names. Every tensor of a source is mapped or on its format's list of what is dropped, and every tensor of the
model comes from the source, in the right shape: otherwise a ValueError lists the names, and nothing is written.

Files are data: torch.load(weights_only=True), and objects other than tensors and plain containers are not even built.

    K classes, 0 is background   A anchors of a cell   rows of deltas are (dy, dx, dh, dw)
"""

import argparse
import difflib
import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

import runtime
import utils
from config import BACKBONES, DIALECTS, Config, parse_settings
from data.coco_files import COCO_CATEGORIES
from model import FORMAT, FORMAT_VERSION, MaskRCNN, is_backbone

CHECKPOINT_KEYS = ("format", "version", "config", "dialect", "class_names", "category_ids", "source", "model")
STYLES = ("caffe", "pytorch")


############################################################
#  Formats
############################################################

# In these tables "#" is a number and "@" a letter (a is 0) that are carried over in order, "#-1" one less. What follows
# the last dot (weight, bias, ...) is carried over too. A module's batch norm is called .norm. The first match counts.
Table = tuple[tuple[str, str], ...]

# fmt: off
_KERAS: Table = (
    ("conv1.",                  "backbone.stem."),
    ("bn_conv1.",               "backbone.stem.norm."),
    ("res#@_branch2@.",         "backbone.layer#-1.#.conv#+1."),
    ("bn#@_branch2@.",          "backbone.layer#-1.#.conv#+1.norm."),
    ("res#@_branch1.",          "backbone.layer#-1.#.shortcut."),
    ("bn#@_branch1.",           "backbone.layer#-1.#.shortcut.norm."),
    ("fpn_c#p#.",               "fpn.lateral.#-2."),
    ("fpn_p#.",                 "fpn.output.#-2."),
    ("rpn_conv_shared.",        "rpn.convs.0."),
    ("rpn_class_raw.",          "rpn.objectness."),
    ("rpn_bbox_pred.",          "rpn.deltas."),
    ("mrcnn_class_conv#.",      "box_head.fcs.#-1."),
    ("mrcnn_class_bn#.",        "box_head.fcs.#-1.norm."),
    ("mrcnn_class_logits.",     "box_head.class_logits."),
    ("mrcnn_bbox_fc.",          "box_head.box_deltas."),
    ("mrcnn_mask_conv#.",       "mask_head.convs.#-1."),
    ("mrcnn_mask_bn#.",         "mask_head.convs.#-1.norm."),
    ("mrcnn_mask_deconv.",      "mask_head.upsample."),
    ("mrcnn_mask.",             "mask_head.mask_logits."),
)
_PORT2018: Table = (
    ("fpn.C1.0.",               "backbone.stem."),
    ("fpn.C1.1.",               "backbone.stem.norm."),
    ("fpn.C#.#.conv#.",         "backbone.layer#-1.#.conv#."),
    ("fpn.C#.#.bn#.",           "backbone.layer#-1.#.conv#.norm."),
    ("fpn.C#.#.downsample.0.",  "backbone.layer#-1.#.shortcut."),
    ("fpn.C#.#.downsample.1.",  "backbone.layer#-1.#.shortcut.norm."),
    ("fpn.P#_conv1.",           "fpn.lateral.#-2."),
    ("fpn.P#_conv2.1.",         "fpn.output.#-2."),
    ("rpn.conv_shared.",        "rpn.convs.0."),
    ("rpn.conv_class.",         "rpn.objectness."),
    ("rpn.conv_bbox.",          "rpn.deltas."),
    ("classifier.conv#.",       "box_head.fcs.#-1."),
    ("classifier.bn#.",         "box_head.fcs.#-1.norm."),
    ("classifier.linear_class.", "box_head.class_logits."),
    ("classifier.linear_bbox.", "box_head.box_deltas."),
    ("mask.conv5.",             "mask_head.mask_logits."),
    ("mask.conv#.",             "mask_head.convs.#-1."),
    ("mask.bn#.",               "mask_head.convs.#-1.norm."),
    ("mask.deconv.",            "mask_head.upsample."),
)
_BENCHMARK: Table = (
    ("backbone.body.stem.conv1.",                 "backbone.stem."),
    ("backbone.body.stem.bn1.",                   "backbone.stem.norm."),
    ("backbone.body.layer#.#.conv#.",             "backbone.layer#.#.conv#."),
    ("backbone.body.layer#.#.bn#.",               "backbone.layer#.#.conv#.norm."),
    ("backbone.body.layer#.#.downsample.0.",      "backbone.layer#.#.shortcut."),
    ("backbone.body.layer#.#.downsample.1.",      "backbone.layer#.#.shortcut.norm."),
    ("backbone.fpn.fpn_inner#.",                  "fpn.lateral.#-1."),
    ("backbone.fpn.fpn_layer#.",                  "fpn.output.#-1."),
    ("rpn.head.conv.",                            "rpn.convs.0."),
    ("rpn.head.cls_logits.",                      "rpn.objectness."),
    ("rpn.head.bbox_pred.",                       "rpn.deltas."),
    ("roi_heads.box.feature_extractor.fc6.",      "box_head.fcs.0."),
    ("roi_heads.box.feature_extractor.fc7.",      "box_head.fcs.1."),
    ("roi_heads.box.predictor.cls_score.",        "box_head.class_logits."),
    ("roi_heads.box.predictor.bbox_pred.",        "box_head.box_deltas."),
    ("roi_heads.mask.feature_extractor.mask_fcn#.", "mask_head.convs.#-1."),
    ("roi_heads.mask.predictor.conv5_mask.",      "mask_head.upsample."),
    ("roi_heads.mask.predictor.mask_fcn_logits.", "mask_head.mask_logits."),
    ("roi_heads.maskiou.feature_extractor.maskiou_fcn#.", "maskiou_head.convs.#-1."),
    ("roi_heads.maskiou.feature_extractor.maskiou_fc#.",  "maskiou_head.fcs.#-1."),
    ("roi_heads.maskiou.predictor.maskiou.",      "maskiou_head.maskious."),
)
_MMDET: Table = (
    ("backbone.conv1.",                     "backbone.stem."),
    ("backbone.bn1.",                       "backbone.stem.norm."),
    ("backbone.layer#.#.conv#.",            "backbone.layer#.#.conv#."),
    ("backbone.layer#.#.bn#.",              "backbone.layer#.#.conv#.norm."),
    ("backbone.layer#.#.downsample.0.",     "backbone.layer#.#.shortcut."),
    ("backbone.layer#.#.downsample.1.",     "backbone.layer#.#.shortcut.norm."),
    ("neck.lateral_convs.#.conv.",          "fpn.lateral.#."),
    ("neck.fpn_convs.#.conv.",              "fpn.output.#."),
    ("rpn_head.rpn_conv.",                  "rpn.convs.0."),
    ("rpn_head.rpn_conv.#.conv.",           "rpn.convs.#."),
    ("rpn_head.rpn_cls.",                   "rpn.objectness."),
    ("rpn_head.rpn_reg.",                   "rpn.deltas."),
    ("roi_head.bbox_head.shared_convs.#.conv.", "box_head.convs.#."),
    ("roi_head.bbox_head.shared_fcs.#.",    "box_head.fcs.#."),
    ("roi_head.bbox_head.fc_cls.",          "box_head.class_logits."),
    ("roi_head.bbox_head.fc_reg.",          "box_head.box_deltas."),
    ("roi_head.mask_head.convs.#.conv.",    "mask_head.convs.#."),
    ("roi_head.mask_head.upsample.",        "mask_head.upsample."),
    ("roi_head.mask_head.conv_logits.",     "mask_head.mask_logits."),
    ("roi_head.mask_iou_head.convs.#.",     "maskiou_head.convs.#."),
    ("roi_head.mask_iou_head.fcs.#.",       "maskiou_head.fcs.#."),
    ("roi_head.mask_iou_head.fc_mask_iou.", "maskiou_head.maskious."),
)
_TORCHVISION: Table = (  # the published v1 file has the names of 2019; v2 and files of today have others
    ("backbone.body.conv1.",                "backbone.stem."),
    ("backbone.body.bn1.",                  "backbone.stem.norm."),
    ("backbone.body.layer#.#.conv#.",       "backbone.layer#.#.conv#."),
    ("backbone.body.layer#.#.bn#.",         "backbone.layer#.#.conv#.norm."),
    ("backbone.body.layer#.#.downsample.0.", "backbone.layer#.#.shortcut."),
    ("backbone.body.layer#.#.downsample.1.", "backbone.layer#.#.shortcut.norm."),
    ("backbone.fpn.inner_blocks.#.",        "fpn.lateral.#."),       # 2019
    ("backbone.fpn.inner_blocks.#.0.",      "fpn.lateral.#."),
    ("backbone.fpn.inner_blocks.#.1.",      "fpn.lateral.#.norm."),  # v2
    ("backbone.fpn.layer_blocks.#.",        "fpn.output.#."),        # 2019
    ("backbone.fpn.layer_blocks.#.0.",      "fpn.output.#."),
    ("backbone.fpn.layer_blocks.#.1.",      "fpn.output.#.norm."),   # v2
    ("rpn.head.conv.",                      "rpn.convs.0."),         # 2019
    ("rpn.head.conv.#.0.",                  "rpn.convs.#."),
    ("rpn.head.cls_logits.",                "rpn.objectness."),
    ("rpn.head.bbox_pred.",                 "rpn.deltas."),
    ("roi_heads.box_head.fc6.",             "box_head.fcs.0."),
    ("roi_heads.box_head.fc7.",             "box_head.fcs.1."),
    ("roi_heads.box_head.#.0.",             "box_head.convs.#."),      # v2
    ("roi_heads.box_head.#.1.",             "box_head.convs.#.norm."), # v2
    ("roi_heads.box_head.5.",               "box_head.fcs.0."),        # v2: after four convolutions and a flatten
    ("roi_heads.box_predictor.cls_score.",  "box_head.class_logits."),
    ("roi_heads.box_predictor.bbox_pred.",  "box_head.box_deltas."),
    ("roi_heads.mask_head.mask_fcn#.",      "mask_head.convs.#-1."),   # 2019
    ("roi_heads.mask_head.#.0.",            "mask_head.convs.#."),
    ("roi_heads.mask_head.#.1.",            "mask_head.convs.#.norm."), # v2
    ("roi_heads.mask_predictor.conv5_mask.", "mask_head.upsample."),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "mask_head.mask_logits."),
)
_IMAGENET: Table = (
    ("conv1.",                  "backbone.stem."),
    ("bn1.",                    "backbone.stem.norm."),
    ("layer#.#.conv#.",         "backbone.layer#.#.conv#."),
    ("layer#.#.bn#.",           "backbone.layer#.#.conv#.norm."),
    ("layer#.#.downsample.0.",  "backbone.layer#.#.shortcut."),
    ("layer#.#.downsample.1.",  "backbone.layer#.#.shortcut.norm."),
)
# fmt: on


@dataclass(frozen=True)
class Format:
    """How one family of files names, orders and normalises its weights."""

    name: str
    title: str
    dialect: str
    signs: tuple[str, ...]  # a name that begins with one of these tells the format
    table: Table
    eps: float  # of its batch norms
    dropped: tuple[str, ...] = ()  # what it holds that is no weight, written as in the tables
    style: str | None = None  # of its backbones, where all have the same
    normed: tuple[str, ...] = ()  # modules outside the backbone that must come with a batch norm
    pairs: bool = False  # objectness is a softmax over (background, foreground)
    xyxy: bool = False  # deltas are (dx, dy, dw, dh), and the first of a cell's anchors is the wide one
    background_last: bool = False  # and there is no row for it in deltas, masks and mask IoUs
    bgr: bool = False


_MATTERPORT = {
    "dialect": "matterport",
    "eps": 1e-3,
    "style": "caffe",
    "normed": ("box_head.fcs.", "mask_head.convs."),
    "pairs": True,
}
FORMATS = (
    Format(
        name="keras",
        title="Matterport's Mask R-CNN, Keras",
        signs=("mrcnn_", "rpn_conv_shared."),
        table=_KERAS,
        dropped=("anchors.",),
        **_MATTERPORT,
    ),
    Format(
        name="port2018",
        title="the 2018 PyTorch port of Matterport's Mask R-CNN",
        signs=("fpn.C1.", "classifier.linear_class."),
        table=_PORT2018,
        **_MATTERPORT,
    ),
    Format(
        name="benchmark",
        title="the paper's code, or maskrcnn-benchmark",
        dialect="benchmark",
        signs=("backbone.body.stem.", "roi_heads.box.feature_extractor.", "roi_heads.maskiou."),
        table=_BENCHMARK,
        eps=0.0,
        dropped=("rpn.anchor_generator.cell_anchors.",),
        xyxy=True,
        bgr=True,
    ),
    Format(
        name="mmdet",
        title="mmdetection 2 or 3",
        dialect="mmdet",
        signs=("roi_head.bbox_head.", "roi_head.mask_head."),
        table=_MMDET,
        eps=1e-5,
        dropped=("data_preprocessor.",),
        xyxy=True,
        background_last=True,
    ),
    Format(
        name="torchvision",
        title="torchvision's Mask R-CNN",
        dialect="torchvision",
        signs=("roi_heads.box_predictor.", "roi_heads.mask_predictor."),
        table=_TORCHVISION,
        eps=0.0,  # 1e-5 where batch norms count batches: _eps
        style="pytorch",
        xyxy=True,
    ),
    Format(
        name="imagenet",
        title="an ImageNet classifier",
        dialect="mmdet",
        signs=("layer1.0.",),
        table=_IMAGENET,
        eps=1e-5,
        dropped=("fc.", "conv1.bias"),  # the latter in Caffe's; mmdetection leaves it out, too
    ),
)

# Names that tell what cannot be converted, and why.
_REFUSED = {
    "bbox_head.": "it is of mmdetection 1.x, or of a one-stage detector. Version 1 has the background first, and other "
    "anchors and boxes: read as version 2 it would detect nonsense. Convert it with mmdetection's "
    "tools/model_converters/upgrade_model_version.py first, or take a file of version 2 or later",
    "mask_head.": "it is of mmdetection 1.x or of a one-stage detector, which this does not read",
    "backbone.bottom_up.": "it is of Detectron2, which this does not read",
    "backbone.stem.": "it is a bare state dict of this project, without config and class names. Give the file that "
    "MaskRCNN.save wrote",
}

_LEAVES = {
    **{leaf: leaf for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_NORM = ("weight", "bias", "running_mean", "running_var")


############################################################
#  Reading files
############################################################


def _read_keras(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a Keras HDF5 file as torch has them, and what else lies in the file.

    Returns: {"<layer>.<leaf>": tensor}; [out, in, y, x] of a convolution, [in, out, y, x] of a transposed one.
    Raises: ValueError for HDF5 that is damaged or not Keras weights.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            others = [f"{name} (of model.save)" for name in file if root is not file and name != "model_weights"]
            layers = _attribute(root, "layer_names")
            if not layers:
                shown = ", ".join(list(file)[:5])
                raise ValueError(
                    f"{path} is HDF5, but not Keras weights: no layer_names, but {shown}; is it of Keras 3?"
                )
            for layer in layers:
                for weight in _attribute(root[layer], "weight_names"):
                    name = _keras_name(layer, weight)
                    if name in tensors:
                        raise ValueError(f"{path} has two weights {name}, the second in group {layer}")
                    tensors[name] = _from_keras(path, root[layer][weight])
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is truncated or damaged; fetch it again: {error}") from None
    return tensors, others


def _attribute(group: h5py.Group, name: str) -> list[str]:
    """A list of names, bytes or str, split into name0, name1, ... where HDF5's limit of 64 KB made Keras do so."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    values = [value for part in parts for value in np.asarray(part).ravel().tolist()]
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def _keras_name(layer: str, weight: str) -> str:
    """conv1.kernel, from group conv1 and weight conv1_1/kernel:0. In rpn_model, only the weight knows its layer."""
    *scopes, leaf = weight.split(":")[0].split("/")
    if layer == "rpn_model" and scopes:
        layer = re.sub(r"_\d+$", "", scopes[-1])
    return f"{layer}.{leaf}"


def _from_keras(path: Path, dataset: h5py.Dataset) -> Tensor:
    if dataset.dtype.kind != "f":
        raise ValueError(f"{path}: {dataset.name} holds {dataset.dtype}, where weights are floating")
    tensor = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if tensor.dim() == 2 else tensor


def _state_dict(path: Path, contents: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights among a file's contents, and the names of what lies beside them.

    Raises: ValueError if there are none.
    """
    others: list[str] = []
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(contents.get(key), Mapping):
            others = [str(name) for name in contents if name != key]
            contents = contents[key]
            break
    tensors = {str(name): value for name, value in contents.items()}
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    wrong = [f"{name} is a {type(value).__name__}" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or wrong:
        raise ValueError(
            f"{path} has no state dict: a dict of tensors, alone or under state_dict, model or model_state_dict; "
            f"{utils.listed(wrong) or 'it is empty'}"
        )
    return tensors, others


############################################################
#  Names
############################################################


def _recognise(path: Path, names: Iterable[str], kind: str) -> Format:
    """The format whose signs are among the names.

    Raises: ValueError for none, and for formats that must not be misread.
    """
    names = list(names)
    for candidate in FORMATS:
        if (candidate.name == "keras") == (kind == "hdf5") and any(name.startswith(candidate.signs) for name in names):
            return candidate
    for sign, reason in _REFUSED.items():
        if any(name.startswith(sign) for name in names):
            raise ValueError(
                f"{path} is not converted: {reason}. (It has {next(n for n in names if n.startswith(sign))}.)"
            )
    looked_for = "; ".join(f"{candidate.name}: {' or '.join(candidate.signs)}..." for candidate in FORMATS)
    raise ValueError(
        f"{path} is of no known format. Looked for names as {looked_for}. It has {utils.listed(names, 10)}"
    )


def _rename(
    path: Path, source: Format, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str], list[str], list[str]]:
    """Give tensors our names.

    Returns: tensors by our name, {our name: the source's name}, names dropped on purpose, names of no use.
    Raises: ValueError for two tensors of one name.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    dropped, left = [], []
    for name, tensor in tensors.items():
        target = _target(source.table, name)
        if name.endswith(".num_batches_tracked") or any(
            name == rule or _pattern(rule).match(name) for rule in source.dropped
        ):
            dropped.append(name)
        elif target is None:
            left.append(name)
        elif target in renamed:
            raise ValueError(f"{path}: {name} and {origin[target]} are both {target}")
        else:
            renamed[target], origin[target] = tensor, name
    return renamed, origin, dropped, left


def _target(table: Table, name: str) -> str | None:
    """Our name of a source's tensor, or None."""
    for rule, template in table:
        found = _pattern(rule).fullmatch(name)
        if found and found["leaf"] in _LEAVES:
            numbers = iter([int(text) if text.isdigit() else ord(text) - ord("a") for text in found.groups()[:-1]])
            target = re.sub(r"#([+-]\d)?", functools.partial(_shifted, numbers), template)
            return target + _LEAVES[found["leaf"]]
    return None


def _shifted(numbers: Iterable[int], match: re.Match) -> str:
    return str(next(numbers) + int(match[1] or 0))


@functools.cache
def _pattern(rule: str) -> re.Pattern:
    text = re.escape(rule).replace(r"\#", r"(\d+)").replace("@", "([a-z])")
    return re.compile(text + r"(?P<leaf>\w+)")


def _check_names(path: Path, source: Format, got: set[str], expected: Iterable[str], left: list[str], origin) -> None:
    """Nothing is missing, nothing is left over.

    Raises: ValueError that lists the names.
    """
    expected = set(expected)
    must = {name.removesuffix(".weight") for name in expected if name.endswith(".weight") and source.normed}
    normed = {name.rsplit(".norm.", 1)[0] for name in got if ".norm." in name}
    normed |= {module for module in must if module.startswith(source.normed)}
    biases = {f"{module}.bias" for module in normed}  # may be there, and come from the batch norm in any case
    wanted = expected | {f"{module}.norm.{leaf}" for module in normed for leaf in _NORM}
    missing = sorted(wanted - got - biases)
    left = left + [origin[name] for name in sorted(got - wanted - biases)]
    problems = [f"missing {len(missing)} (our names): {utils.listed(missing)}"] if missing else []
    problems += [f"left over {len(left)}: {utils.listed(left)}"] if left else []
    if problems:
        raise ValueError(f"{path} is a {source.name} checkpoint, but its tensors are not those. " + "; ".join(problems))


def _check_values(path: Path, tensors: Mapping[str, Tensor], origin: Mapping[str, str]) -> None:
    """Every tensor is floating, of a sensible rank and finite.

    Raises: ValueError that names the tensor.
    """
    for name, tensor in tensors.items():
        shown = f"{path}: tensor {origin.get(name, name)}"
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ValueError(f"{shown} is {tensor.dtype}, {tensor.layout}, where weights are dense and floating")
        if tensor.numel() == 0:
            raise ValueError(f"{shown} has shape {list(tensor.shape)} and so no numbers")
        is_matrix = name.endswith(".weight") and not name.endswith(".norm.weight")
        if (tensor.dim() < 2) if is_matrix else (tensor.dim() != 1):
            expected = "two dimensions or more" if is_matrix else "one dimension"
            raise ValueError(f"{shown} has shape {list(tensor.shape)}, expected {expected}")
        bad = int((~torch.isfinite(tensor)).sum()) if not torch.isfinite(tensor.sum()) else 0
        if bad:
            raise ValueError(f"{shown} has {bad} of {tensor.numel()} values that are NaN or infinite")
        if name.endswith(".running_var") and float(tensor.min()) < 0:
            raise ValueError(f"{shown} is a variance and has negative values, down to {float(tensor.min()):g}")


def _check_shapes(path: Path, tensors, expected: Mapping[str, torch.Size], origin: Mapping[str, str], raw) -> None:
    wrong = []
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            source = origin.get(name, name)
            was = list(raw[source].shape) if source in raw else None
            before = f", in the file {was}" if was and was != list(tensors[name].shape) else ""
            wrong.append(f"{source} -> {name}: got {list(tensors[name].shape)}{before}, expected {list(shape)}")
    if wrong:
        raise ValueError(f"{path} has {len(wrong)} tensors of another shape. {utils.listed(wrong)}")


############################################################
#  Folds
############################################################


def _fold(tensors: dict[str, Tensor], source: Format, eps: float, bgr: bool) -> list[str]:
    """Bring renamed tensors into the canonical form, in place, and say what was done.

    Raises: ValueError for shapes that cannot be what their names say.
    """
    notes = _fold_norms(tensors, eps)
    for name in [name for name in tensors if name.startswith("box_head.fcs.") and tensors[name].dim() == 4]:
        tensors[name] = tensors[name].flatten(1)  # a convolution over the whole RoI: [out, (channel, y, x)]
    if bgr and "backbone.stem.weight" in tensors:
        tensors["backbone.stem.weight"] = tensors["backbone.stem.weight"].flip(1)
        notes.append("the first convolution from BGR to RGB")
    if source.pairs:
        notes.append("pairs of objectness logits into their difference")
        _change(tensors, "rpn.objectness", 2, foreground_minus_background)
    if source.xyxy:
        notes.append("anchors to tall first, rows of deltas from (dx, dy, dw, dh) to (dy, dx, dh, dw)")
        _change(tensors, "rpn.objectness", 1, lambda rows: rows.flip(0))
        _change(tensors, "rpn.deltas", 4, lambda rows: swap_xy(rows).flip(0))
        _change(tensors, "box_head.box_deltas", 4, swap_xy)
    if source.background_last:
        notes.append("background from last to first, with zeros where it had no row")
        _change(tensors, "box_head.class_logits", 1, lambda rows: rows.roll(1, 0))
        for module in ("box_head.box_deltas", "mask_head.mask_logits", "maskiou_head.maskious"):
            _change(tensors, module, 4 if module.endswith("deltas") else 1, prepend_zeros)
    return notes


def _change(tensors: dict[str, Tensor], module: str, group: int, change: Callable[[Tensor], Tensor]) -> None:
    """Apply a change to a layer's rows, weight and bias, seen as [rows / group, group, ...]."""
    for name in (f"{module}.weight", f"{module}.bias"):
        if name not in tensors:
            continue
        tensor = tensors[name]
        if len(tensor) % group:
            raise ValueError(f"{name}, in our names, has {len(tensor)} rows; expected a multiple of {group}")
        changed = change(tensor.reshape(-1, group, *tensor.shape[1:]))
        tensors[name] = changed.reshape(-1, *tensor.shape[1:])


def foreground_minus_background(pairs: Tensor) -> Tensor:
    """[A, (background, foreground), ...] -> [A, ...]: softmax over two logits is the sigmoid of their difference."""
    return (pairs[:, 1].double() - pairs[:, 0].double()).float()


def swap_xy(rows: Tensor) -> Tensor:
    """[N, (dx, dy, dw, dh), ...] -> [N, (dy, dx, dh, dw), ...]."""
    return rows[:, [1, 0, 3, 2]]


def prepend_zeros(rows: Tensor) -> Tensor:
    """[K - 1, ...] -> [K, ...], zeros for the background."""
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def _fold_norms(tensors: dict[str, Tensor], eps: float) -> list[str]:
    """Backbone: our frozen batch norm has eps 0 and no convolution bias in front. Elsewhere there is none at all."""
    counts: Counter = Counter()
    for module in [name.removesuffix(".norm.weight") for name in tensors if name.endswith(".norm.weight")]:
        weight, bias = tensors[f"{module}.weight"], tensors.get(f"{module}.bias")
        norm = [tensors[f"{module}.norm.{leaf}"] for leaf in _NORM]
        for leaf, vector in zip((*_NORM, "bias"), (*norm, norm[0] if bias is None else bias), strict=True):
            if len(vector) != len(weight):
                raise ValueError(
                    f"{module}.norm, in our names, has {len(vector)} numbers in {leaf} for {len(weight)} channels"
                )
        if not module.startswith("backbone."):
            tensors[f"{module}.weight"], tensors[f"{module}.bias"] = fold_norm(weight, bias, *norm, eps)
            for leaf in _NORM:
                del tensors[f"{module}.norm.{leaf}"]
            counts["{} batch norms into the convolutions and fully connected layers before them"] += 1
            continue
        if eps:
            tensors[f"{module}.norm.running_var"] = (norm[3].double() + eps).float()
            counts[f"eps {eps:g} of {{}} batch norms of the backbone into the variance"] += 1
        if bias is not None:
            tensors[f"{module}.norm.running_mean"] = (norm[2].double() - bias.double()).float()
            del tensors[f"{module}.bias"]
            counts["{} biases of the backbone into the mean of the batch norm that follows"] += 1
        if float(tensors[f"{module}.norm.running_var"].min()) <= 0:
            raise ValueError(f"{module}.norm.running_var, in our names, has zeros, by whose root it divides")
    return [what.format(count) for what, count in counts.items()]


def fold_norm(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that computes what a layer and the batch norm after it do.

    weight: [out, ...]. bias: [out] or None. scale, shift, mean, var: [out] of the batch norm.

    Returns: weight and bias, float32, computed in float64.
    """
    factor = scale.double() / (var.double() + eps).sqrt()  # [out]
    start = -mean.double() if bias is None else bias.double() - mean.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.float(), (shift.double() + start * factor).float()


############################################################
#  What the tensors tell
############################################################

_BLOCKS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


def _backbone(path: Path, shapes: Mapping[str, Sequence[int]]) -> str:
    """Name of the backbone, from its blocks and the groups of its 3x3 convolutions."""
    blocks = Counter(found[0] for name in shapes if (found := re.match(r"backbone\.layer(\d)\.\d+\.", name)))
    counts = tuple(
        sum(block.startswith(f"backbone.layer{stage}.") and n > 2 for block, n in blocks.items())
        for stage in (1, 2, 3, 4)
    )
    kind = "bottleneck" if any(re.match(r"backbone\.layer\d\.\d+\.conv3\.", name) for name in shapes) else "basic"
    name = _BLOCKS.get((kind, counts))
    width = _common(shapes, 64, (r"backbone\.layer1\.\d+\.conv2\.weight", 0))
    part = _common(shapes, width, (r"backbone\.layer1\.\d+\.conv2\.weight", 1))
    groups = width // max(part, 1)
    if groups > 1:
        name = f"resnext101_{groups}x{part}d" if name == "resnet101" else None
    if name not in BACKBONES:
        raise ValueError(
            f"{path} has a backbone of {counts} {kind} blocks with 3x3 convolutions of {width} channels in {groups} "
            f"groups, which is none of {', '.join(BACKBONES)}"
        )
    return name


def _common(shapes: Mapping[str, Sequence[int]], default: int, *where: tuple[str, int]) -> int:
    """The size that most of the named tensors have, each along its dimension: one wrong tensor does not decide."""
    sizes = [
        shape[dim]
        for pattern, dim in where
        for name, shape in shapes.items()
        if len(shape) > dim and re.fullmatch(pattern, name)
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else default


def _count(shapes: Mapping[str, Sequence[int]], module: str) -> int:
    """Layers of a module list: its largest index, plus 1."""
    found = [int(text[1]) for name in shapes if (text := re.match(rf"{re.escape(module)}\.(\d+)\.", name))]
    return max(found, default=-1) + 1


def _settings(path: Path, source: Format, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings of Config that the shapes of renamed, not yet folded tensors tell."""
    settings = {"DIALECT": source.dialect, "BACKBONE": _backbone(path, shapes), "MASKIOU_CLAMP": False}
    if source.name == "imagenet":
        return settings
    box, mask, iou = r"box_head\.", r"mask_head\.", r"maskiou_head\."
    iou_head = any(name.startswith("maskiou_head.") for name in shapes)
    maskiou = {
        "MASKIOU_HEAD_CHANNELS": _common(shapes, 256, (iou + r"convs\.\d\.weight", 0)),
        "MASKIOU_FC_LAYERS_SIZE": _common(shapes, 1024, (iou + r"fcs\.\d\.weight", 0), (iou + r"maskious\.weight", 1)),
    }
    return {
        **settings,
        "TOP_DOWN_PYRAMID_SIZE": _common(shapes, 256, (r"fpn\.\w+\.\d\.weight", 0)),
        "RPN_CONVS": _count(shapes, "rpn.convs") or 1,
        "RPN_CHANNELS": _common(shapes, 256, (r"rpn\.convs\.\d\.weight", 0), (r"rpn\.(objectness|deltas)\.weight", 1)),
        "BOX_HEAD_CONVS": _count(shapes, "box_head.convs"),
        "BOX_HEAD_FC_LAYERS": _count(shapes, "box_head.fcs") or 1,
        "FPN_CLASSIF_FC_LAYERS_SIZE": _common(
            shapes, 1024, (box + r"fcs\.\d\.weight", 0), (box + r"(class_logits|box_deltas)\.weight", 1)
        ),
        "MASK_HEAD_CONVS": _count(shapes, "mask_head.convs") or 1,
        "MASK_HEAD_CHANNELS": _common(
            shapes, 256, (mask + r"convs\.\d\.weight", 0), (mask + r"mask_logits\.weight", 1)
        ),
        "USE_MASKIOU_HEAD": iou_head,
        **(maskiou if iou_head else {}),
        "NUM_CLASSES": _num_classes(path, source, shapes),
    }


def _num_classes(path: Path, source: Format, shapes: Mapping[str, Sequence[int]]) -> int:
    rows = {
        name: shapes[f"{name}.weight"][0]
        for name in ("box_head.class_logits", "mask_head.mask_logits", "box_head.box_deltas", "maskiou_head.maskious")
        if shapes.get(f"{name}.weight")
    }
    rows["box_head.box_deltas"] = rows.get("box_head.box_deltas", 0) // 4
    classes, masks = rows.get("box_head.class_logits", 0), rows.get("mask_head.mask_logits")
    if source.background_last and classes == masks == rows["box_head.box_deltas"]:
        raise ValueError(
            f"{path} has {classes} rows for classes, boxes and masks alike, as mmdetection 1.x, which has the "
            "background first; version 2 has one row less for boxes and masks. Take a file of version 2 or later"
        )
    votes = Counter(
        [classes, *(n + source.background_last for name, n in rows.items() if name != "box_head.class_logits")]
    )
    return max(votes.most_common(1)[0][0], 1)


def _class_names(
    path: Path, source: Format, count: int, given: Sequence[str] | None, stored: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    """What each class index is called, background first, and its category id.

    Raises: ValueError for names that do not fit, or when nothing tells the names.
    """
    coco_ids = sorted(COCO_CATEGORIES)
    coco = [COCO_CATEGORIES[category] for category in coco_ids]
    if given is not None:
        if len(given) != count - 1:
            drop = "; leave the background out" if len(given) == count else ""
            raise ValueError(
                f"class_names has {len(given)} names, but {path} has {count - 1} classes and a background{drop}"
            )
        return ["BG", *given], list(range(count))
    if stored is not None and len(stored) == count - 1 and [*stored] != coco:
        return ["BG", *map(str, stored)], list(range(count))
    if count == len(coco) + 1:
        return ["BG", *coco], [0, *coco_ids]
    if source.name == "torchvision" and count == coco_ids[-1] + 1:
        return ["BG", *(COCO_CATEGORIES.get(index, "N/A") for index in range(1, count))], list(range(count))
    raise ValueError(
        f"{path} has {count - 1} classes and a background, which are not COCO's, and does not name them: give the "
        "names, --classes FILE with one a line and without the background, or class_names=[...]"
    )


def _meta(contents: Mapping[str, Any]) -> tuple[str, Sequence[str] | None]:
    """The config text and the class names that mmdetection stores beside the weights: ("", None) where it did not."""
    meta = contents.get("meta")
    if not isinstance(meta, Mapping):
        return "", None
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    dataset = meta.get("dataset_meta")
    names = [meta, dataset if isinstance(dataset, Mapping) else {}]
    lists = [place.get(key) for place in names for key in ("CLASSES", "classes")]
    return text, next((value for value in lists if isinstance(value, (list, tuple))), None)


def _style(path: Path, source: Format, backbone: str, text: str, style: str | None) -> str:
    """Where bottlenecks have their stride: as asked for, stored, known of the format, or in the file's name.

    Raises: ValueError where nothing tells, or where the argument contradicts what is known.
    """
    if style not in (None, *STYLES):
        raise ValueError(f"style must be caffe or pytorch, not {style!r}")
    known, reason = source.style, f"{source.title} knows no other"
    if source.name == "mmdet" and backbone.startswith("resnext"):
        known, reason = "pytorch", "mmdetection's ResNeXts know no other"
    stored = _last(r"\bstyle['\"]?\s*[=:]\s*['\"](caffe|pytorch)['\"]", text)
    if known is None and stored:
        known, reason = stored, "what is stored in it says so"
    if style and known and style != known:
        raise ValueError(f"style {style!r} contradicts {path}, which is {known}: {reason}")
    if style or known:
        return style or known
    if source.name == "benchmark":
        return "pytorch" if backbone.startswith("resnext") else "caffe"
    if "caffe" in path.name:
        return "caffe"
    if re.search(r"r(18|34|50|101)[_-]fpn", path.name):
        return "pytorch"
    raise ValueError(
        f"{path} does not tell whether its ResNet is caffe style (stride in the first 1x1 convolution, BGR images) or "
        "pytorch style (in the 3x3, RGB), and weights of one are wrong as the other: give --style caffe or --style "
        "pytorch. The names of mmdetection's configs have caffe in them, or not"
    )


def _pixels(text: str, style: str) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
    """mmdetection's input: whether it is BGR, then mean and std in RGB order."""
    flag = _last(r"to_rgb['\"]?\s*[=:]\s*(True|False)", text)
    bgr = flag == "False" if flag else style == "caffe"
    defaults = {"mean": (123.675, 116.28, 103.53), "std": (1.0,) * 3 if style == "caffe" else (58.395, 57.12, 57.375)}
    found = []
    for name, default in defaults.items():
        numbers = _last(rf"\b{name}['\"]?\s*[=:]\s*[\[(]([\d.,\s]+)[\])]", text) or ""
        value = tuple(float(number) for number in re.findall(r"\d+\.?\d*|\.\d+", numbers))
        found.append(default if len(value) != 3 else value[::-1] if bgr else value)
    return bgr, *found


def _last(pattern: str, text: str) -> str | None:
    """What a config says in the end: old ones are the texts of all their bases, one after another."""
    found = re.findall(pattern, text)
    return found[-1] if found else None


############################################################
#  Conversion
############################################################


@dataclass
class _Report:
    """What a conversion did."""

    title: str
    read: int = 0
    folded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def text(self, written: int) -> str:
        kinds = Counter(
            re.sub(r"\d+", "#", name.rsplit(".", 1)[-1] if "num_batches" in name else name) for name in self.dropped
        )
        dropped = utils.listed(f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.items())
        lines = [f"recognised  {self.title}", f"mapped      {self.read} tensors to {written}"]
        lines += [f"folded      {note}" for note in self.folded]
        return "\n".join([*lines, f"dropped     {dropped or 'nothing'}"])


def convert(
    path: str | Path,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    eps: float | None = None,
) -> dict[str, Any]:
    """Any checkpoint of the family as one of ours.

    path: a file of any format of the module's docstring, or one of ours, which is checked and returned.
    style: "caffe" or "pytorch", for mmdetection's ResNets where neither the file nor its name tells.
    class_names: of the foreground classes, where they are not COCO's 80 (or torchvision's 91).
    eps: of the batch norms of a torchvision ResNet-50 with frozen ones, which the file does not tell: 0 (the default)
        for the published one and what was trained from it, 1e-5 for what was trained from an ImageNet backbone.

    Returns: {"format", "version", "config", "dialect", "class_names", "category_ids", "source", "model"}: plain data,
        and float32 tensors on the CPU that own their memory. "model" has only the backbone for ImageNet weights.
    Raises: FileNotFoundError; ValueError for files that are damaged, unknown, incomplete, ambiguous, or hold code.
    """
    return _convert(Path(path), style, class_names, eps)[0]


def _convert(
    path: Path, style: str | None, class_names: Sequence[str] | None, eps: float | None = None
) -> tuple[dict[str, Any], _Report]:
    kind = utils.file_kind(path)
    contents: Mapping[str, Any] = {}
    if kind == "hdf5":
        raw, others = _read_keras(path)
    else:
        contents = utils.load_torch_file(path)
        if contents.get("format") == FORMAT:
            return _checked(path, contents, style, class_names)
        raw, others = _state_dict(path, contents)
    source = _recognise(path, raw, kind)
    tensors, origin, dropped, left = _rename(path, source, raw)
    config = Config(**_settings(path, source, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    expected = _expected(config, only_backbone=source.name == "imagenet")
    _check_names(path, source, set(tensors), expected, left, origin)
    _check_values(path, tensors, origin)
    text, stored_names = _meta(contents)
    if source.name == "imagenet":  # only Caffe's have that bias
        text = "style='caffe'" if "conv1.bias" in dropped else "style='pytorch'"
    config.BACKBONE_STYLE = _style(path, source, config.BACKBONE, text, style)
    bgr = source.bgr
    if source.dialect == "mmdet":
        bgr, config.MEAN_PIXEL, config.STD_PIXEL = _pixels(text, config.BACKBONE_STYLE)
    try:
        folded = _fold(tensors, source, _eps(source, dropped, config.BACKBONE, eps), bgr)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_shapes(path, tensors, expected, origin, raw)
    config.NAME = source.name
    if source.name != "imagenet":
        _name_classes(config, path, _class_names(path, source, config.NUM_CLASSES, class_names, stored_names))
    note = f"{source.name}, {path.name}, sha256 {utils.sha256_of(path)}"
    if source.name == "torchvision" and eps is None and _eps(source, dropped, config.BACKBONE, None) == 0:
        folded.append("eps 0: taken as the published detector, or trained from it; --eps 1e-5 if from ImageNet's")
    report = _Report(f"{source.name}: {source.title}", len(origin), folded, dropped + others)
    return _checkpoint(config, note, {name: tensors[name] for name in expected}), report


def _eps(source: Format, dropped: Iterable[str], backbone: str, wanted: float | None) -> float:
    """What a format's batch norms add to the variance.

    torchvision's frozen ones have 1e-5, but 0 in the published v1, a ResNet-50. Its usual ones, which count batches,
    have 1e-5 always.
    """
    counts = any(name.endswith(".num_batches_tracked") for name in dropped)
    if source.name != "torchvision":
        told = source.eps
    elif counts or backbone != "resnet50":
        told = 1e-5
    else:
        return source.eps if wanted is None else wanted
    if wanted not in (None, told):
        raise ValueError(f"eps {wanted:g} contradicts the checkpoint, whose batch norms have {told:g}")
    return told


def _name_classes(config: Config, path: Path, classes: tuple[list[str], list[int]]) -> None:
    config.CLASS_NAMES, config.CATEGORY_IDS = classes
    named = {category: name for name, category in zip(*classes, strict=True) if category in COCO_CATEGORIES}
    config.NAME = "coco" if named == COCO_CATEGORIES else re.sub(r"\W+", "_", path.stem).strip("_") or "custom"


def _expected(config: Config, only_backbone: bool) -> dict[str, torch.Size]:
    """Names and shapes of the model that a config describes, without its memory."""
    with torch.device("meta"):
        state = MaskRCNN(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if not only_backbone or name.startswith("backbone.")}


def _checkpoint(config: Config, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    plain = config.to_dict()
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": plain,
        "dialect": config.DIALECT,
        "class_names": plain["CLASS_NAMES"],
        "category_ids": plain["CATEGORY_IDS"],
        "source": source,
        "model": {name: _own(tensor) for name, tensor in tensors.items()},
    }


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, float32, in memory of its own: neither a view nor a mapped file."""
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)


def _checked(
    path: Path, contents: Mapping[str, Any], style: str | None, class_names: Sequence[str] | None
) -> tuple[dict[str, Any], _Report]:
    """One of our checkpoints, if it is whole; class_names replaces its names."""
    if contents.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} is a checkpoint of version {contents.get('version')}, this code reads {FORMAT_VERSION}; "
            "was it written by a newer one?"
        )
    missing = [key for key in CHECKPOINT_KEYS if key not in contents]
    if missing or not isinstance(contents["model"], Mapping) or not isinstance(contents["config"], Mapping):
        raise ValueError(
            f"{path} is a checkpoint of ours without {utils.listed(missing) or 'a dict as config and as model'}"
        )
    try:
        config = Config.from_dict(contents["config"])
    except ValueError as error:
        raise ValueError(f"{path} has a config that this code does not know: {error}") from None
    if contents["dialect"] not in DIALECTS or contents["dialect"] != config.DIALECT:
        raise ValueError(f"{path} says dialect {contents['dialect']!r}, its config {config.DIALECT!r}; was it edited?")
    if style not in (None, config.BACKBONE_STYLE):
        raise ValueError(f"style {style!r} contradicts {path}, whose config says {config.BACKBONE_STYLE!r}")
    tensors, _ = _state_dict(path, {"model": contents["model"]})
    expected = _expected(config, only_backbone=all(name.startswith("backbone.") for name in tensors))
    ours = Format("ours", "a checkpoint of this project", config.DIALECT, (), (), 0.0)
    _check_names(path, ours, set(tensors), expected, [], {name: name for name in tensors})
    _check_values(path, tensors, {})
    _check_shapes(path, tensors, expected, {}, {})
    if class_names is not None:
        _name_classes(config, path, _class_names(path, ours, config.NUM_CLASSES, class_names, None))
    others = [name for name in contents if name not in CHECKPOINT_KEYS]
    return _checkpoint(config, str(contents["source"]), tensors), _Report(ours.title, len(tensors), [], others)


def describe(checkpoint: Mapping[str, Any]) -> str:
    """A few lines for people: where a checkpoint comes from and what it is."""
    config, tensors = checkpoint["config"], checkpoint["model"]
    names = [name for name in (checkpoint["class_names"] or [])[1:] if name != "N/A"]
    heads = "MaskIoU head" if config["USE_MASKIOU_HEAD"] else "no MaskIoU head"
    if all(name.startswith("backbone.") for name in tensors):
        heads = "the backbone alone"
    numbers = ("MEAN_PIXEL", "STD_PIXEL")
    pixels = " / ".join("(" + ", ".join(f"{value:g}" for value in config[name]) + ")" for name in numbers)
    lines = {
        "source": checkpoint["source"],
        "dialect": checkpoint["dialect"],
        "backbone": f"{config['BACKBONE']}, {config['BACKBONE_STYLE']} style; {heads}",
        "pixels": f"{pixels}, mean / std in RGB",
        "classes": f"{len(names)}: {utils.listed(names, 8)}" if names else "none",
        "weights": f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers",
    }
    return "\n".join(f"{name:11} {text}" for name, text in lines.items())


def read_class_names(path: str | Path) -> list[str]:
    """Names of the foreground classes: one a line; blank lines and lines that begin with # do not count.

    Raises: FileNotFoundError; ValueError for an empty file, a name twice, or the background among them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}, the file of class names, does not exist")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; expected a class name a line") from None
    names = [line for line in lines if line and not line.startswith("#")]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"{path} must name each class once, a line each; {utils.listed(twice) or 'it names none'}")
    if names[0].lower() in ("bg", "background", "__background__"):
        raise ValueError(f"{path} begins with {names[0]!r}; the background is class 0 by itself, leave it out")
    return names


############################################################
#  Published weights
############################################################


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody offers for download."""

    name: str
    url: str
    sha256: str | None  # as much of it as is published
    style: str | None
    note: str


_MMDET_URL = "https://download.openmmlab.com/mmdetection/v2.0/ms_rcnn/"
_TORCH_URL = "https://download.pytorch.org/models/"
_MATTERPORT_URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"


def _ms_rcnn(name: str, suffix: str, style: str, box_ap: float, mask_ap: float) -> Published:
    note = f"mmdetection's {name}: COCO box AP {box_ap}, mask AP {mask_ap}"
    return Published(name, f"{_MMDET_URL}{name}/{name}_{suffix}.pth", suffix.rsplit("-", 1)[1], style, note)


def _torch_file(name: str, stem: str, note: str) -> Published:
    return Published(name, f"{_TORCH_URL}{stem}.pth", stem.rsplit("-", 1)[1], "pytorch", note)


_R50_2X = "bbox_mAP-0.388__segm_mAP-0.363_20200506_004738-ee87b137"
_R101_1X = "bbox_mAP-0.404__segm_mAP-0.376_20200506_004755-b9b12a37"
_R101_2X = "bbox_mAP-0.411__segm_mAP-0.381_20200506_011134-5f3cc74f"
_MS_RCNN = (
    _ms_rcnn("ms_rcnn_r50_caffe_fpn_1x_coco", "20200702_180848-61c9355e", "caffe", 38.2, 36.0),
    _ms_rcnn("ms_rcnn_r50_caffe_fpn_2x_coco", _R50_2X, "caffe", 38.8, 36.3),
    _ms_rcnn("ms_rcnn_r101_caffe_fpn_1x_coco", _R101_1X, "caffe", 40.4, 37.6),
    _ms_rcnn("ms_rcnn_r101_caffe_fpn_2x_coco", _R101_2X, "caffe", 41.1, 38.1),
    _ms_rcnn("ms_rcnn_x101_32x4d_fpn_1x_coco", "20200206-81fd1740", "pytorch", 41.8, 38.7),
    _ms_rcnn("ms_rcnn_x101_64x4d_fpn_1x_coco", "20200206-86ba88d2", "pytorch", 43.0, 39.5),
    _ms_rcnn("ms_rcnn_x101_64x4d_fpn_2x_coco", "20200308-02a445e2", "pytorch", 42.6, 39.5),
)
PUBLISHED: dict[str, Published] = {
    "coco": _MS_RCNN[3],
    **{published.name: published for published in _MS_RCNN},
    "matterport": Published("matterport", _MATTERPORT_URL, None, "caffe", "Matterport's Mask R-CNN, ResNet-101"),
    "torchvision": _torch_file(
        "torchvision", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", "torchvision's Mask R-CNN, ResNet-50, v1"
    ),
    "torchvision_v2": _torch_file(
        "torchvision_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", "torchvision's Mask R-CNN, ResNet-50, v2"
    ),
}


# Models that this project trained and brings along, each by the script of its name in samples/.
ROOT = Path(__file__).resolve().parent
EMBEDDED: dict[str, Path] = {name: ROOT / "assets" / f"{name}.pth" for name in ("shapes", "nuclei")}
MODEL_NAMES = (*PUBLISHED, *EMBEDDED)

# --model imagenet, by backbone and style. OpenMMLab's are what mmdetection's published models started from.
_PRETRAIN_URL = "https://download.openmmlab.com/pretrain/third_party/"


def _pretrained(backbone: str, hash_: str, style: str = "pytorch", file: str | None = None) -> Published:
    url = f"{_PRETRAIN_URL}{file}-{hash_}.pth" if file else f"{_TORCH_URL}{backbone}-{hash_}.pth"
    note = f"{'OpenMMLab' if file else 'torchvision'}'s {backbone}, {style} style, trained on ImageNet"
    return Published("imagenet", url, hash_, style, note)


IMAGENET: dict[tuple[str, str], Published] = {
    ("resnet18", "pytorch"): _pretrained("resnet18", "f37072fd"),
    ("resnet34", "pytorch"): _pretrained("resnet34", "b627a593"),
    ("resnet50", "pytorch"): _pretrained("resnet50", "0676ba61"),
    ("resnet101", "pytorch"): _pretrained("resnet101", "63fe2227"),
    ("resnet50", "caffe"): _pretrained("resnet50", "5891d200", "caffe", "resnet50_msra"),
    ("resnet101", "caffe"): _pretrained("resnet101", "6cc46731", "caffe", "resnet101_msra"),
    ("resnext101_32x4d", "pytorch"): _pretrained("resnext101_32x4d", "a5af3160", file="resnext101_32x4d"),
    ("resnext101_64x4d", "pytorch"): _pretrained("resnext101_64x4d", "ee2c6f71", file="resnext101_64x4d"),
    ("resnext101_32x8d", "pytorch"): _pretrained("resnext101_32x8d", "8ba56ff5"),
}
MODELS = ROOT / "models"


def cache_folder() -> Path:
    """Where downloads are kept: $MASKSCORING_CACHE, or mask-scoring-rcnn in the user's cache folder."""
    if os.environ.get("MASKSCORING_CACHE"):
        return Path(os.environ["MASKSCORING_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mask-scoring-rcnn"


def find_weights(name_or_path: str | Path, backbone: str | None = None, style: str | None = None) -> Path:
    """The file of a model: a path as it is, an embedded name, a published one from models/, the cache or the network.

    backbone, style: of the network that is to start from "imagenet".

    Raises: FileNotFoundError for a path that is not there, and for a download that failed, with the URL and the folders
        to put the file into. ValueError for unknown names, a wrong sha256, and "imagenet" where none is published.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    name = str(name_or_path)
    if name == "imagenet":
        return _fetch(_imagenet(backbone, style))
    if name in EMBEDDED:
        return _embedded(name)
    if name not in PUBLISHED:
        raise _unknown_model(name, path)
    return _fetch(PUBLISHED[name])


def _imagenet(backbone: str | None, style: str | None) -> Published:
    if backbone not in BACKBONES:
        raise ValueError(
            f"imagenet needs the backbone that starts from it, one of {', '.join(BACKBONES)}, not {backbone!r}"
        )
    if backbone in ("resnet18", "resnet34"):
        style = "pytorch"  # no 1x1 convolution that could have the stride
    published = IMAGENET.get((backbone, style or "pytorch"))
    if published is None:
        raise ValueError(
            f"No ImageNet weights are published for {backbone} of {style} style (BACKBONE_STYLE: where a bottleneck "
            "has its stride). Choose the other style, give a file (--model PATH), or start from a detector that has it"
        )
    return published


def _embedded(name: str) -> Path:
    path = EMBEDDED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"model {name} should be in {path}, which is missing; `git checkout {path}` restores it"
        )
    return path


def _unknown_model(name: str, path: Path) -> Exception:
    if path.is_dir():
        return ValueError(f"model {name} is a folder; give a checkpoint file in it")
    names = [*MODEL_NAMES, "imagenet"]
    if path.suffix or len(path.parts) > 1:
        return FileNotFoundError(f"model {name} does not exist; as a name, it is none of {', '.join(names)} either")
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ValueError(f"model {name!r} is neither a file nor one of {', '.join(names)}{hint}")


def _fetch(published: Published) -> Path:
    """The file of a published checkpoint, downloaded if it is nowhere; its sha256 is checked in every case."""
    file_name = published.url.rsplit("/", 1)[1]
    for folder in (MODELS, cache_folder()):
        path = folder / file_name
        if path.is_file():
            _check_sha256(path, published)
            return path
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        utils.download(published.url, path, sha256=published.sha256)
    except OSError as error:
        raise FileNotFoundError(
            f"{published.name} is not on this machine and could not be downloaded ({error.__cause__ or error}). Try "
            f"again, which resumes; or fetch {published.url} elsewhere and put the file into {MODELS} "
            f"or {cache_folder()}"
        ) from None
    return path


def _check_sha256(path: Path, published: Published) -> None:
    if published.sha256 is None:
        return
    found = utils.sha256_of(path)
    if not found.startswith(published.sha256):
        raise ValueError(
            f"{path} has sha256 {found}, expected {published.sha256}...: it is not the published file, or only "
            f"a part of it. Remove it, and it will be downloaded again from {published.url}"
        )


def load_checkpoint(
    name_or_path: str | Path, style: str | None = None, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The contents of a checkpoint of ours, of a path, ours or foreign, or a published name, whose style is known.

    style, class_names, raises: as find_weights and convert.
    """
    path, name = find_weights(name_or_path), str(name_or_path)
    if style is None and name in PUBLISHED:
        style = PUBLISHED[name].style
    return convert(path, style, class_names)


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    **config_overrides: Any,
) -> MaskRCNN:
    """The network of a checkpoint: a path, ours or foreign, or a published name. `--model` of every command line.

    device: where to put it; None leaves the choice to MaskRCNN.from_checkpoint.
    style, class_names: as for convert.
    config_overrides: settings of Config that replace the checkpoint's.

    Raises: as find_weights and convert; ValueError for weights of a backbone alone, which can only start a training.
    """
    name = str(name_or_path)
    if name == "imagenet" and not Path(name).is_file():
        raise ValueError("model imagenet is a backbone alone: training can start from it, detection cannot")
    checkpoint = load_checkpoint(name_or_path, style, class_names)
    if is_backbone(checkpoint):
        raise ValueError(f"{name} is a backbone alone: training can start from it, detection cannot")
    return MaskRCNN.from_checkpoint(checkpoint, device, **config_overrides)


############################################################
#  Command line
############################################################


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, wholly or not at all."""
    runtime.write_atomically(path, lambda stream: torch.save(dict(checkpoint), stream))


def with_settings(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with other settings of Config, such as those that detection is to have by default.

    Raises: ValueError for settings of a network that the weights do not fit.
    """
    config = Config.from_dict({**checkpoint["config"], **settings})
    tensors = {name: tensor.shape for name, tensor in checkpoint["model"].items()}
    expected = _expected(config, is_backbone(checkpoint))
    other = sorted(name for name in tensors.keys() | expected.keys() if tensors.get(name) != expected.get(name))
    if other:
        raise ValueError(f"--set {', '.join(settings)}: the weights are of another network; {utils.listed(other, 3)}")
    plain = config.to_dict()
    names = {"class_names": plain["CLASS_NAMES"], "category_ids": plain["CATEGORY_IDS"]}
    return {**checkpoint, "config": plain, "dialect": config.DIALECT, **names}


def halved(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint in half of the bytes: matrices and filters as float16, which is read as float32 again.

    Vectors stay as they are: they are few, and variances may be beyond float16.

    Raises: ValueError for weights that are beyond float16.
    """
    tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in checkpoint["model"].items()}
    beyond = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise ValueError(f"--half: {utils.listed(beyond)} has numbers beyond 65504, the most that float16 can hold")
    return {**checkpoint, "model": tensors}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Convert any published checkpoint of the Mask R-CNN family into one of this project.",
        epilog="Names: " + ", ".join(f"{name} ({published.note})" for name, published in PUBLISHED.items()),
    )
    parser.add_argument("source", metavar="SRC", help="the checkpoint: a file of any format, or a published name")
    parser.add_argument("target", metavar="DST", help="the file to write, usually .pth")
    parser.add_argument("--style", choices=STYLES, help="of a ResNet of mmdetection, where nothing else tells")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, without the background")
    parser.add_argument(
        "--eps",
        type=float,
        help="of a torchvision ResNet-50 with frozen batch norm: 0 (default) if it was trained from the published "
        "detector, 1e-5 if from an ImageNet backbone; the file does not tell",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of config.py to store")
    parser.add_argument("--half", action="store_true", help="store weights in half precision, half of the bytes")
    parser.add_argument("--force", action="store_true", help="replace DST where it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exits with status 1 and a message where convert raises."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    target = Path(arguments.target)
    try:
        if target.exists() and (target.is_dir() or not arguments.force):
            how = "is a folder; name a file in it" if target.is_dir() else "exists; --force replaces it"
            raise ValueError(f"DST {target} {how}")
        if not target.resolve().parent.is_dir():
            raise FileNotFoundError(f"DST {target}: the folder {target.resolve().parent} does not exist")
        names = read_class_names(arguments.classes) if arguments.classes else None
        path = find_weights(arguments.source)
        published = None if path == Path(arguments.source).expanduser() else PUBLISHED.get(arguments.source)
        settings = parse_settings(arguments.set)
        checkpoint, report = _convert(path, arguments.style or (published and published.style), names, arguments.eps)
        checkpoint = with_settings(checkpoint, settings) if settings else checkpoint
        save(halved(checkpoint) if arguments.half else checkpoint, target)
    except (ValueError, OSError) as error:
        parser.exit(1, f"convert_weights.py: {error}\n")
    print(report.text(len(checkpoint["model"])))
    print(describe(checkpoint))
    print(f"written     {target}")


if __name__ == "__main__":
    main(sys.argv[1:])

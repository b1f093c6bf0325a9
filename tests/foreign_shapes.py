"""Names and shapes of checkpoints of other code, by the rules of their configs, with weights that take no memory."""

import re
from collections.abc import Mapping
from typing import Any

import torch

# BACKBONE: depth, groups, base_width of configs/mask_rcnn. A ResNet has one group of width 64.
BACKBONES = {
    "resnet18": (18, 1, 64),
    "resnet50": (50, 1, 64),
    "resnet101": (101, 1, 64),
    "resnext101_32x4d": (101, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
}
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def backbone_shapes(depth: int, groups: int, base_width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of mmdetection's ResNet or ResNeXt."""
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm_shapes("backbone.bn1", 64)}
    expansion = 4 if depth >= 50 else 1
    channels_in = 64
    for stage, count in enumerate(BLOCKS[depth], start=1):
        planes = 64 << stage - 1
        width = planes * base_width * groups // 64
        for block in range(count):
            layer = f"backbone.layer{stage}.{block}"
            if expansion == 4:
                kernels = [(width, channels_in, 1, 1), (width, width // groups, 3, 3), (4 * planes, width, 1, 1)]
            else:
                kernels = [(planes, channels_in, 3, 3), (planes, planes, 3, 3)]
            for number, kernel in enumerate(kernels, start=1):
                shapes[f"{layer}.conv{number}.weight"] = kernel
                shapes |= norm_shapes(f"{layer}.bn{number}", kernel[0])
            if block == 0 and (channels_in != expansion * planes or stage > 1):
                shapes[f"{layer}.downsample.0.weight"] = (expansion * planes, channels_in, 1, 1)
                shapes |= norm_shapes(f"{layer}.downsample.1", expansion * planes)
            channels_in = expansion * planes
    return shapes


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    leaves = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    return {f"{name}.{leaf}": shape for leaf, shape in {**leaves, "num_batches_tracked": ()}.items()}


def mask_rcnn_shapes(backbone: str, classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Names and shapes of configs/mask_rcnn with this backbone."""
    depth, groups, base_width = BACKBONES[backbone]
    kernels = {}
    for level, channels in enumerate((256, 512, 1024, 2048) if depth >= 50 else (64, 128, 256, 512)):
        kernels[f"neck.lateral_convs.{level}.conv"] = (256, channels, 1, 1)
        kernels[f"neck.fpn_convs.{level}.conv"] = (256, 256, 3, 3)
    kernels |= {"rpn_head.rpn_conv": (256, 256, 3, 3), "rpn_head.rpn_cls": (3, 256, 1, 1)}
    kernels |= {"rpn_head.rpn_reg": (12, 256, 1, 1), "roi_head.bbox_head.fc_cls": (classes + 1, 1024)}
    kernels |= {"roi_head.bbox_head.fc_reg": (4 * classes, 1024)}
    kernels |= {f"roi_head.bbox_head.shared_fcs.{i}": (1024, size) for i, size in enumerate((12544, 1024))}
    kernels |= {f"roi_head.mask_head.convs.{i}.conv": (256, 256, 3, 3) for i in range(4)}
    kernels |= {"roi_head.mask_head.upsample": (256, 256, 2, 2)}
    kernels |= {"roi_head.mask_head.conv_logits": (classes, 256, 1, 1)}
    shapes = backbone_shapes(depth, groups, base_width)
    for name, kernel in kernels.items():
        rows = kernel[1] if name.endswith("upsample") else kernel[0]
        shapes |= {f"{name}.weight": kernel, f"{name}.bias": (rows,)}
    return shapes


# mmdetection's names and detectron2's. "N" stands for the number that follows the one of mmdetection.
_DETECTRON2 = (
    (r"backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.", r"backbone.bottom_up.resN.\2.conv\3."),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.", r"backbone.bottom_up.resN.\2.conv\3.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.", r"backbone.bottom_up.resN.\2.shortcut."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.", r"backbone.bottom_up.resN.\2.shortcut.norm."),
    (r"neck\.lateral_convs\.(\d)\.conv\.", "backbone.fpn_lateralN+1."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", "backbone.fpn_outputN+1."),
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d)\.", "roi_heads.box_head.fcN."),
    (r"roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.", "roi_heads.mask_head.mask_fcnN."),
    (r"roi_head\.mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
)


def detectron2_shapes(backbone: str, classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Names and shapes of detectron2's Mask R-CNN with FPN and frozen batch norms, as its trainer writes them."""
    shapes = {name: shape for name, shape in mask_rcnn_shapes(backbone, classes).items() if "num_batches" not in name}
    return {_detectron2_name(name): shape for name, shape in shapes.items()}


def _detectron2_name(name: str) -> str:
    for pattern, template in _DETECTRON2:
        match = re.match(pattern, name)
        if match:
            number = int(match[1]) + 1 if match.groups() else 0
            text = template.replace("N+1", str(number + 1)).replace("N", str(number))
            return match.expand(text) + name[match.end() :]
    raise ValueError(name)


def without_memory(shapes: Mapping[str, tuple[int, ...]], **numbers: Any) -> dict[str, torch.Tensor]:
    """Tensors of these shapes: each is one number, and the first convolution has another for each channel of an image.

    numbers: {the end of a name, "__" for ".": its number}; otherwise 0.5, and 1 for variances.
    """
    fill = {"num_batches_tracked": torch.tensor(0), "running_var": torch.tensor(1.0)}
    state = {name: fill.get(name.rpartition(".")[2], torch.tensor(0.5)).expand(shapes[name]) for name in shapes}
    for name, shape in shapes.items():
        for end, number in numbers.items():
            if name.endswith(end.replace("__", ".")):
                state[name] = torch.tensor(float(number)).expand(shape)
        if len(shape) == 4 and shape[2] == 7:
            state[name] = torch.arange(1.0, 1.0 + shape[1]).reshape(1, -1, 1, 1).expand(shape)
    return state

"""Mask Scoring R-CNN: the network, detection and the MaskRCNN class.

    images ─ Backbone ─ C2..C5 ─ FPN ─ P2..P6 ─ RPN ─ proposals ─┬─ Box Head ──── classes, boxes ─ NMS ─ detections
                                   └──────── RoI features ───────┴─ Mask Head ─── 28x28 masks of the detections
                                                                 └─ MaskIoU Head  IoU of each mask with the truth
    mask score = class score x predicted IoU

Papers: Mask R-CNN (arXiv:1703.06870), FPN (arXiv:1612.03144), Mask Scoring R-CNN (arXiv:1903.00241).

    B images   R RoIs   N detections   K classes, 0 is background   L levels   A anchors   M mask side   C channels
    Boxes are (y1, x1, y2, x2) in pixels of the network's input; (y2, x2) lies outside. Height is y2 - y1, with no +1.
    RoIs are flat: rois [R, 4] with batch_index [R], the image of each.
    *_logits are unbounded; *_probs and scores lie in [0, 1]; predicted maskious are unbounded.

The family computes this in four dialects (config.py); each difference is one branch, in the section where it belongs.
The sections follow the data, and use only what stands above them.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import native
import utils
from config import Config
from nms import batched_nms
from roialign import pyramid_crop_and_resize, pyramid_roi_align

############################################################
#  Images In
############################################################


class Images(NamedTuple):
    """A batch as the network takes it."""

    pixels: Tensor  # [B, C, H, W] normalised, channels_last
    windows: Tensor  # [B, (y1, x1, y2, x2)] the part of each that is image, not padding


def log(text: str, array: Any = None) -> None:
    """Print a text and, of an array or tensor, its shape, range and dtype."""
    if array is not None:
        array = np.asarray(array.detach().cpu()) if isinstance(array, Tensor) else np.asarray(array)
        limits = f"min: {array.min():10.5f}  max: {array.max():10.5f}" if array.size else f"min: {'':10}  max: {'':10}"
        text = f"{text:25}  shape: {array.shape!s:20}  {limits}  {array.dtype}"
    print(text)


def plan_image(image: np.ndarray, config) -> utils.ResizePlan:
    """How an image [H, W, C] is resized and padded before it enters the network."""
    return utils.plan_resize(
        *image.shape[:2],
        config.IMAGE_MIN_DIM,
        config.IMAGE_MAX_DIM,
        config.IMAGE_MIN_SCALE,
        config.IMAGE_RESIZE_MODE,
        config.dialect.size_rounding,
        config.IMAGE_SIZE_DIVISOR,
    )


def padded_shape(plan: utils.ResizePlan) -> tuple[int, int]:
    """(height, width) of what comes out of a plan."""
    sides = plan.size if plan.crop is None else plan.crop[2:]
    height, width = (side + sum(padding) for side, padding in zip(sides, plan.padding, strict=True))
    return height, width


def mold_image(image: np.ndarray | Tensor, config) -> Tensor:
    """Pixels [..., C] in 0..255 as the backbone's weights expect them: minus MEAN_PIXEL, by STD_PIXEL, float32."""
    if isinstance(image, np.ndarray):
        image = np.require(image, requirements="W")  # what torch demands, though it only reads
    pixels = torch.as_tensor(image).to(torch.float32)
    return (pixels - torch.tensor(config.MEAN_PIXEL)).div_(torch.tensor(config.STD_PIXEL))


def unmold_image(pixels: np.ndarray | Tensor, config) -> np.ndarray:
    """mold_image undone: uint8 [..., C]."""
    pixels = torch.as_tensor(pixels).to(torch.float32)
    image = pixels * torch.tensor(config.STD_PIXEL) + torch.tensor(config.MEAN_PIXEL)
    return image.round().clamp(0, 255).to(torch.uint8).numpy()


def mold_padded(image: np.ndarray, plan: utils.ResizePlan, config) -> Tensor:
    """An image [H, W, C] uint8 resized, normalised and padded after its plan: float32 [height, width, C]."""
    if plan.crop is not None:
        raise ValueError("IMAGE_RESIZE_MODE 'crop' takes random crops, for training; detect with 'square' or 'pad64'")
    pixels = mold_image(utils.resize_pixels(image, plan.size, config.dialect.resampling), config)  # [h, w, C]
    padded = torch.zeros(*padded_shape(plan), pixels.shape[2])
    if config.dialect.pads_before_mean:
        padded += mold_image(np.zeros(pixels.shape[2], np.uint8), config)
    y1, x1, y2, x2 = plan.window
    padded[y1:y2, x1:x2] = pixels
    return padded


def compose_image_meta(
    image_id: int,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[float],
    scale: float,
    active_class_ids: Sequence[int],
) -> np.ndarray:
    """What is known of an image as one vector, float64 [12 + K]: id, shape before and after resizing, window, scale,
    and a flag for each class that its data set has. Source: Matterport."""
    return np.array([image_id, *original_image_shape, *image_shape, *window, scale, *active_class_ids], np.float64)


def parse_image_meta(meta: np.ndarray) -> dict[str, np.ndarray]:
    """compose_image_meta undone, for a batch [B, 12 + K]."""
    meta = np.asarray(meta)
    return {
        "image_id": meta[:, 0].astype(np.int64),
        "original_image_shape": meta[:, 1:4].astype(np.int64),
        "image_shape": meta[:, 4:7].astype(np.int64),
        "window": meta[:, 7:11],
        "scale": meta[:, 11],
        "active_class_ids": meta[:, 12:].astype(np.int64),
    }


############################################################
#  Layers
############################################################


class _Layer(nn.Module):
    """A layer that prepares its weights once for inference: folded, in the dtype and the layout that are fast.

    What is prepared is kept until a parameter changes, weights are loaded, or train() or eval() is called: after an
    in-place change through .data, which torch does not count, call one of them. While gradients flow it is computed
    anew each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(weight, bias) as forward uses them."""
        sources = [*self.parameters(), *self.buffers()]
        learns = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if learns or any(source.is_inference() for source in sources):  # which do not count their changes
            return self._prepare(dtype)
        state = (dtype, *((source.data_ptr(), source._version) for source in sources))
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # usable under autograd later
                self._kept = state, self._prepare(dtype)
        return self._kept[1]

    def train(self, mode: bool = True) -> "_Layer":
        self._kept = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles leave it out


class FrozenBatchNorm(nn.Module):
    """The numbers of a batch norm with fixed statistics; Conv folds them into its weights.

    Its eps is 0: what the source adds to the variance is added by convert_weights.py.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[C], [C]: norm(x) = x * scale + shift."""
        scale = self.weight * self.running_var.rsqrt()
        return scale, self.bias - self.running_mean * scale


class Conv(_Layer):
    """Convolution with a bias or a frozen batch norm, padded to keep the size; then a residual is added; then ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        norm: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in // groups, kernel, kernel))
        self.norm = FrozenBatchNorm(channels_out) if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(channels_out))
        self.stride, self.padding, self.groups, self.relu = stride, kernel // 2, groups, relu

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight, bias = self.weight, self.bias
        if self.norm is not None:
            scale, bias = self.norm.scale_and_shift()
            weight = weight * scale[:, None, None, None]
        return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = F.conv2d(x, *self.weights(x.dtype), self.stride, self.padding, 1, self.groups)
        if residual is not None:
            x += residual
        return x.relu_() if self.relu else x


class Linear(_Layer):
    """Fully connected layer, then ReLU.

    On a CPU it is computed as a 1x1 convolution, which oneDNN does at twice the speed of MKL's product (AMD EPYC).

    cells: of inputs [R, C, P, P], the P x P cells; 1 for inputs [R, C]. The weight is in torch's order (C, P, P); it is
    reordered for channels_last inputs, so that these are not copied.
    """

    def __init__(self, channels_in: int, channels_out: int, cells: int = 1, relu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in * cells))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.cells, self.relu = cells, relu

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        by_channel = self.weight.view(len(self.weight), -1, self.cells)  # [out, C, cells]
        return by_channel.transpose(1, 2).flatten(1).to(dtype), self.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)  # [R, P * P * C]
        weight, bias = self.weights(x.dtype)
        if x.device.type == "cpu" and len(x):
            rows = x[None, None].permute(0, 3, 2, 1)  # [1, in, R, 1], channels_last
            x = F.conv2d(rows, weight[:, :, None, None], bias)[0, :, :, 0].t()  # [R, out]
        else:
            x = F.linear(x, weight, bias)
        return x.relu_() if self.relu else x


############################################################
#  Backbone
############################################################

# Blocks of each stage, bottleneck or not, groups, channels of a group in the first stage.
_ARCHITECTURES = {
    "resnet18": ((2, 2, 2, 2), False, 1, 64),
    "resnet34": ((3, 4, 6, 3), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnet101": ((3, 4, 23, 3), True, 1, 64),
    "resnext101_32x4d": ((3, 4, 23, 3), True, 32, 4),
    "resnext101_64x4d": ((3, 4, 23, 3), True, 64, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), True, 32, 8),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels_in, channels, 3, stride, norm=True, relu=True)
        self.conv2 = Conv(channels, channels, 3, norm=True, relu=True)
        changes = stride > 1 or channels_in != channels
        self.shortcut = Conv(channels_in, channels, 1, stride, norm=True) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x), residual)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut. Style "caffe" has the stride in the first, "pytorch" in the second."""

    def __init__(self, channels_in: int, width: int, channels: int, stride: int, groups: int, style: str) -> None:
        super().__init__()
        stride1, stride2 = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = Conv(channels_in, width, 1, stride1, norm=True, relu=True)
        self.conv2 = Conv(width, width, 3, stride2, groups, norm=True, relu=True)
        self.conv3 = Conv(width, channels, 1, norm=True, relu=True)
        changes = stride > 1 or channels_in != channels
        self.shortcut = Conv(channels_in, channels, 1, stride, norm=True) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x)), residual)


class ResNet(nn.Module):
    """ResNet or ResNeXt with frozen batch norm.

    channels: of C2 to C5.
    """

    def __init__(self, config) -> None:
        super().__init__()
        blocks, is_bottleneck, groups, group_width = _ARCHITECTURES[config.BACKBONE]
        self.pads_symmetrically = config.dialect.stem_pool == "symmetric"

        def scaled(channels: int) -> int:
            return max(8, round(channels * config.BACKBONE_WIDTH / 8) * 8)

        self.stem = Conv(config.IMAGE_CHANNEL_COUNT, scaled(64), 7, 2, norm=True, relu=True)
        self.channels = []
        channels_in = scaled(64)
        for stage, count in enumerate(blocks):
            planes = scaled(64 << stage)
            width = planes * group_width // 64 * groups
            channels = planes * 4 if is_bottleneck else planes
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                if is_bottleneck:
                    block = Bottleneck(channels_in, width, channels, stride, groups, config.BACKBONE_STYLE)
                else:
                    block = BasicBlock(channels_in, channels, stride)
                layer.append(block)
                channels_in = channels
            self.add_module(f"layer{stage + 1}", layer)
            self.channels.append(channels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps C2 to C5 of [B, C, H, W], with strides 4, 8, 16 and 32."""
        x = self._pool(self.stem(pixels))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def _pool(self, x: Tensor) -> Tensor:
        if self.pads_symmetrically:
            return F.max_pool2d(x, 3, 2, padding=1)
        # TensorFlow's "same": an even side is padded at its end only, an odd side at both.
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


############################################################
#  Feature Pyramid Network
############################################################


class FPN(nn.Module):
    """P2 to P5 from C2 to C5, top down, and P6, every second cell of P5."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Conv(count, channels, 1) for count in channels_in)
        self.output = nn.ModuleList(Conv(channels, channels, 3) for _ in channels_in)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[C2, ..., C5] to [P2, ..., P6], each [B, C, h, w]."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for upper, lower in zip(merged[:0:-1], merged[-2::-1], strict=True):
            lower += F.interpolate(upper, size=lower.shape[2:], mode="nearest")
        pyramid = [output(level) for output, level in zip(self.output, merged, strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]


############################################################
#  Anchors
############################################################


def cell_anchors(scale: float, ratios: Sequence[float], stride: float, rounding: str = "exact") -> Tensor:
    """The anchors of one cell, about (0, 0): float32 [len(ratios), (y1, x1, y2, x2)].

    scale: side of the square anchor, pixels.
    ratios: width / height. All anchors have about the same area.
    stride: pixels a cell.
    rounding: Dialect.anchor_rounding.
    """
    sides = []
    for ratio in ratios:
        height, width = scale / math.sqrt(ratio), scale * math.sqrt(ratio)
        if rounding == "stride":
            width = round(math.sqrt(stride * stride * ratio))
            height = round(width / ratio)
            height, width = height * scale / stride, width * scale / stride
        elif rounding == "corners":
            height, width = 2 * round(height / 2), 2 * round(width / 2)
        sides.append((height, width))
    half = torch.tensor(sides, dtype=torch.float64) / 2
    return torch.cat([-half, half], dim=1).float()


def generate_anchors(
    scale: float,
    ratios: Sequence[float],
    shape: tuple[int, int],
    feature_stride: float | tuple[float, float],
    anchor_stride: int = 1,
    rounding: str = "exact",
    centre: float = 0.0,
) -> Tensor:
    """The anchors of one level, float32 [h * w * ratios, 4], in the order y, x, ratio.

    shape: (height, width) of the feature map.
    feature_stride: pixels a cell, or (along y, along x).
    anchor_stride: 2 puts anchors on every second cell.
    rounding, centre: Dialect.anchor_rounding and anchor_centre.

    Source: Matterport's utils.generate_anchors, with its exact centres on the cells' corners.
    """
    stride_y, stride_x = feature_stride if isinstance(feature_stride, Sequence) else (feature_stride, feature_stride)
    y = (torch.arange(0, shape[0], anchor_stride) + centre) * stride_y
    x = (torch.arange(0, shape[1], anchor_stride) + centre) * stride_x
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).float().repeat(1, 1, 2)  # [h, w, 4]
    return (centres[:, :, None] + cell_anchors(scale, ratios, stride_y, rounding)).view(-1, 4)


def generate_pyramid_anchors(shapes: Sequence[tuple[int, int]], image_shape: Sequence[int], config) -> list[Tensor]:
    """The anchors of every level, finest first.

    shapes: (height, width) of the feature maps.
    image_shape: (height, width) of the padded image.
    """
    dialect = config.dialect
    levels = []
    for shape, scale, stride in zip(shapes, config.RPN_ANCHOR_SCALES, config.BACKBONE_STRIDES, strict=True):
        if dialect.anchor_stride == "map":
            stride = (image_shape[0] // shape[0], image_shape[1] // shape[1])
        levels.append(
            generate_anchors(
                scale,
                config.RPN_ANCHOR_RATIOS,
                shape,
                stride,
                config.RPN_ANCHOR_STRIDE,
                dialect.anchor_rounding,
                dialect.anchor_centre,
            )
        )
    return levels


def compute_backbone_shapes(config, image_shape: Sequence[int]) -> np.ndarray:
    """(height, width) of P2 to P6 for an image: int64 [5, 2]."""
    if callable(config.BACKBONE) and config.COMPUTE_BACKBONE_SHAPE is not None:
        return np.asarray(config.COMPUTE_BACKBONE_SHAPE(config, image_shape))
    return np.array(
        [[math.ceil(image_shape[0] / stride), math.ceil(image_shape[1] / stride)] for stride in config.BACKBONE_STRIDES]
    )


############################################################
#  Region Proposal Network
############################################################


class RPN(nn.Module):
    """At each cell of each level: is there an object at each anchor, and how does its box differ?"""

    def __init__(self, config) -> None:
        super().__init__()
        anchors, stride = len(config.RPN_ANCHOR_RATIOS), config.RPN_ANCHOR_STRIDE
        channels = [config.TOP_DOWN_PYRAMID_SIZE] + [config.RPN_CHANNELS] * config.RPN_CONVS
        strides = [stride] + [1] * (config.RPN_CONVS - 1)
        self.convs = nn.ModuleList(
            Conv(channels[i], channels[i + 1], 3, strides[i], relu=True) for i in range(config.RPN_CONVS)
        )
        self.objectness = Conv(channels[-1], anchors, 1)
        self.deltas = Conv(channels[-1], 4 * anchors, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level: objectness_logits [B, A], anchor_deltas [B, A, (dy, dx, dh, dw)], both float32."""
        logits, deltas = [], []
        for x in pyramid:
            for conv in self.convs:
                x = conv(x)
            # Anchors in the order y, x, ratio: views, since the maps are channels_last.
            logits.append(self.objectness(x).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).float().permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return logits, deltas


def decode_boxes(boxes: Tensor, deltas: Tensor, std_dev: Sequence[float], config) -> Tensor:
    """The boxes [..., 4] that deltas [..., 4], in units of std_dev, turn boxes into."""
    return utils.apply_box_deltas(boxes, deltas * deltas.new_tensor(std_dev), *config.dialect.delta_limits)


def clip_to_windows(boxes: Tensor, windows: Tensor, config) -> Tensor:
    """Boxes [..., 4] clipped to their images.

    windows: [..., 4], broadcastable.
    """
    low, high = windows[..., :2], windows[..., 2:]
    # "+1" boxes are clipped at the last pixel, so that a pixel remains.
    pixel = 1 if config.dialect.coordinates == "inclusive" else 0
    low, high = torch.cat([low, low + pixel], dim=-1), torch.cat([high - pixel, high], dim=-1)
    return boxes.minimum(high).maximum(low)


def shrink(boxes: Tensor, config) -> Tensor:
    """Boxes as the dialect's arithmetic takes them.

    Normalised coordinates are (box - (0, 0, 1, 1)) / (side - 1); what remains without the division is shrunk by a
    pixel, since nothing depends on the constant factor.
    """
    if config.dialect.coordinates != "normalised":
        return boxes
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def propose(
    objectness_logits: Sequence[Tensor],
    anchor_deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    windows: Tensor,
    config,
    pre_nms: int,
    post_nms: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The RPN's best boxes, after NMS.

    objectness_logits, anchor_deltas: of each level, [B, A] and [B, A, 4].
    anchors: of each level, [A, 4], shrunk; windows: [B, 4], shrunk.
    pre_nms, post_nms: most boxes before NMS (of a level or of an image, Dialect.proposals_of) and after it, an image.

    Returns: proposals [R, 4], scores [R], batch_index [R]; those of an image together, best first.
    """
    dialect = config.dialect
    if dialect.proposals_of == "image":
        objectness_logits, anchor_deltas = [torch.cat(objectness_logits, 1)], [torch.cat(anchor_deltas, 1)]
        anchors = [torch.cat(anchors)]
    boxes, scores, groups = [], [], []
    images = torch.arange(len(windows), device=windows.device)
    for level, (logits, deltas, base) in enumerate(zip(objectness_logits, anchor_deltas, anchors, strict=True)):
        ranked = logits if dialect.proposal_order == "logit" else logits.sigmoid()
        top_scores, top = ranked.topk(min(pre_nms, ranked.shape[1]), dim=1)  # [B, k]
        top_deltas = deltas.gather(1, top[:, :, None].expand(-1, -1, 4))
        decoded = decode_boxes(base[top], top_deltas, config.RPN_BBOX_STD_DEV, config)
        boxes.append(clip_to_windows(decoded, windows[:, None], config))
        scores.append(top_scores)
        groups.append((images * len(anchors) + level)[:, None].expand_as(top))
    boxes, scores, groups = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(groups, 1)
    large = _larger_than(boxes, dialect.min_proposal_side)  # [B, k]
    boxes, scores, groups = boxes[large], scores[large], groups[large]
    keep = batched_nms(boxes, scores, groups, config.RPN_NMS_THRESHOLD, post_nms)
    image = groups // len(anchors)
    keep = _best_of_each(keep, image, len(windows), post_nms)
    return boxes[keep], scores[keep], image[keep]


def _larger_than(boxes: Tensor, side: float) -> Tensor:
    """Which boxes [..., 4] are larger than a side along both axes: bool [...]."""
    return (boxes[..., 2:] - boxes[..., :2] > side).all(dim=-1)


def _best_of_each(keep: Tensor, image: Tensor, images: int, limit: int) -> Tensor:
    """Of indices sorted by descending score, the first of each image, image by image."""
    owner = image[keep]
    return torch.cat([keep[owner == index][:limit] for index in range(images)])


############################################################
#  RoI Features
############################################################


def roi_levels(rois: Tensor, image_shape: Sequence[int], config) -> Tensor:
    """The pyramid level that each RoI is pooled from, by its size: int64 [R], 0 for P2 to 3 for P5.

    image_shape: (height, width) of the padded image.
    """
    size = utils.box_area(rois).clamp(min=0).sqrt()
    rule = config.dialect.level_rule
    if rule == "inside_56":
        level = torch.floor(torch.log2(size / 56 + 1e-6))
    elif rule == "inside_224":
        level = torch.floor(4 + torch.log2(size / 224 + 1e-6)) - 2
    elif rule == "outside":
        level = torch.floor(4 + torch.log2(size / 224) + 1e-6) - 2
    else:
        # Normalised by (side - 1) but compared with the area of the image: the one place where the factor shows.
        height, width = image_shape
        size = size * math.sqrt(height * width / max((height - 1) * (width - 1), 1))
        level = torch.round(torch.log2(size / 224)) + 2
    return level.clamp(0, 3).nan_to_num(0).long()


def pool_rois(
    pyramid: Sequence[Tensor], rois: Tensor, batch_index: Tensor, size: int, image_shape: Sequence[int], config
) -> Tensor:
    """The features of each RoI, from the level that fits its size: [R, C, size, size].

    pyramid: P2 to P5, or to P6, which is not used. rois: [R, 4] shrunk. image_shape: (height, width), padded.
    """
    levels = roi_levels(rois, image_shape, config)
    maps, scales = list(pyramid[:4]), [1 / stride for stride in config.BACKBONE_STRIDES[:4]]
    pooling = config.dialect.pooling
    if pooling == "crop":
        height, width = image_shape
        sides = rois.new_tensor([height - 1, width - 1, height - 1, width - 1]).clamp(min=1)
        return pyramid_crop_and_resize(maps, rois / sides, batch_index, levels, size)
    if pooling == "adaptive":
        return pyramid_roi_align(maps, rois, batch_index, levels, size, scales, 0, aligned=True)
    if config.dialect.coordinates == "inclusive":
        rois = rois - rois.new_tensor([0, 0, 1, 1])
    return pyramid_roi_align(maps, rois, batch_index, levels, size, scales, 2, aligned=False)


############################################################
#  Box Head
############################################################


class BoxHead(nn.Module):
    """The class of each RoI, and for each class its better box."""

    def __init__(self, config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.FPN_CLASSIF_FC_LAYERS_SIZE
        self.convs = nn.ModuleList(Conv(channels, channels, 3, relu=True) for _ in range(config.BOX_HEAD_CONVS))
        self.fcs = nn.ModuleList([Linear(channels, width, config.POOL_SIZE**2, relu=True)])
        self.fcs.extend(Linear(width, width, relu=True) for _ in range(config.BOX_HEAD_FC_LAYERS - 1))
        self.class_logits = Linear(width, config.NUM_CLASSES)
        self.box_deltas = Linear(width, 4 * config.NUM_CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features [R, C, P, P] to class_logits [R, K] and box_deltas [R, K, (dy, dx, dh, dw)], both float32."""
        for conv in self.convs:
            x = conv(x)
        for fc in self.fcs:
            x = fc(x)
        x = x.float()  # scores and boxes do not lose digits, whatever the dtype of the rest
        logits = self.class_logits(x)
        return logits, self.box_deltas(x).view(*logits.shape, 4)


############################################################
#  Mask Head
############################################################


class Upsample(_Layer):
    """Transposed 2x2 convolution with stride 2, then ReLU, as a 1x1 convolution with four outputs a cell."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_in, channels_out, 2, 2))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [(dy, dx, out), in]
        return weight.to(dtype).contiguous()[:, :, None, None], self.bias.to(dtype).repeat(4)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, m, m] to [R, (dy, dx, C), m, m]."""
        return F.conv2d(x, *self.weights(x.dtype)).relu_()


class MaskHead(nn.Module):
    """The mask of each RoI for one class, at twice the resolution of its features.

    The last convolution is computed for that class only: the same numbers without the maps of all other classes.
    """

    def __init__(self, config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.MASK_HEAD_CHANNELS
        counts = [channels] + [width] * config.MASK_HEAD_CONVS
        self.convs = nn.ModuleList(Conv(counts[i], width, 3, relu=True) for i in range(config.MASK_HEAD_CONVS))
        self.upsample = Upsample(width, width)
        self.mask_logits = Conv(width, config.NUM_CLASSES, 1)

    def forward(self, x: Tensor, class_ids: Tensor) -> Tensor:
        """RoI features [R, C, m, m] and classes [R] to mask_logits [R, 2m, 2m] of these classes, float32."""
        side = x.shape[-1]
        for conv in self.convs:
            x = conv(x)
        x = self.upsample(x)  # [R, 4 * C, m, m]
        weight = self.mask_logits.weight[class_ids, :, 0].to(x.dtype)  # [R, C, 1]
        cells = x.permute(0, 2, 3, 1).reshape(len(x), 4 * side * side, weight.shape[1])  # [R, m * m * (dy, dx), C]
        logits = torch.bmm(cells, weight).float() + self.mask_logits.bias[class_ids, None, None]
        logits = logits.view(-1, side, side, 2, 2).permute(0, 1, 3, 2, 4)  # [R, m, dy, m, dx]
        return logits.reshape(-1, 2 * side, 2 * side)


############################################################
#  MaskIoU Head
############################################################


class MaskIoUHead(nn.Module):
    """The IoU of each predicted mask with the truth, for each class.

    Source: Mask Scoring R-CNN (arXiv:1903.00241), section 3.2.
    """

    def __init__(self, config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.MASKIOU_HEAD_CHANNELS
        counts = [channels + 1, width, width, width]
        self.convs = nn.ModuleList(Conv(counts[i], width, 3, 2 if i == 3 else 1, relu=True) for i in range(4))
        fc_width, cells = config.MASKIOU_FC_LAYERS_SIZE, math.ceil(config.MASK_POOL_SIZE / 2) ** 2
        self.fcs = nn.ModuleList([Linear(width, fc_width, cells, relu=True), Linear(fc_width, fc_width, relu=True)])
        self.maskious = Linear(fc_width, config.NUM_CLASSES)

    def forward(self, x: Tensor, mask_logits: Tensor) -> Tensor:
        """RoI features [R, C, m, m] and mask_logits [R, 2m, 2m] to maskious [R, K], unbounded, float32."""
        probs = F.max_pool2d(mask_logits[:, None].sigmoid(), 2)  # [R, 1, m, m]
        x = torch.cat([x, probs.to(x.dtype)], dim=1)
        for conv in self.convs:
            x = conv(x)
        for fc in self.fcs:
            x = fc(x)
        return self.maskious(x.float())


############################################################
#  Detection
############################################################


class Detections(NamedTuple):
    """What the network finds in a batch, in pixels of its input; of an image together, highest score first."""

    boxes: Tensor  # [N, 4], shrunk
    batch_index: Tensor  # [N]
    class_ids: Tensor  # [N], never 0
    scores: Tensor  # [N], of the class
    mask_logits: Tensor | None = None  # [N, M, M], of the class
    maskious: Tensor | None = None  # [N], of the class, unbounded; None without a MaskIoU head


def detect_boxes(
    class_logits: Tensor, box_deltas: Tensor, rois: Tensor, batch_index: Tensor, windows: Tensor, config
) -> Detections:
    """The RoIs' classes and boxes above the threshold, after NMS within each class.

    class_logits: [R, K]. box_deltas: [R, K, 4]. rois: [R, 4], shrunk. windows: [B, 4], shrunk.
    """
    roi, class_ids, scores = _candidates(class_logits.softmax(dim=1), config)
    boxes = decode_boxes(rois[roi], box_deltas[roi, class_ids], config.BBOX_STD_DEV, config)
    image = batch_index[roi]
    boxes = clip_to_windows(boxes, windows[image], config)
    large = _larger_than(boxes, config.dialect.min_detection_side)
    boxes, scores, class_ids, image = boxes[large], scores[large], class_ids[large], image[large]
    groups, limit = image * config.NUM_CLASSES + class_ids, config.DETECTION_MAX_INSTANCES
    keep = batched_nms(boxes, scores, groups, config.DETECTION_NMS_THRESHOLD, limit)
    keep = _best_of_each(keep, image, len(windows), limit)
    return Detections(boxes[keep], image[keep], class_ids[keep], scores[keep])


def _candidates(probs: Tensor, config) -> tuple[Tensor, Tensor, Tensor]:
    """RoI, class and score of all that may become a detection; probs: [R, K]."""
    threshold = config.DETECTION_MIN_CONFIDENCE
    if config.dialect.detections_of == "every class":
        roi, class_ids = (probs[:, 1:] > threshold).nonzero(as_tuple=True)
        class_ids = class_ids + 1
    else:
        best, class_of = probs.max(dim=1)
        roi = ((class_of > 0) & (best >= threshold)).nonzero()[:, 0]
        class_ids = class_of[roi]
    return roi, class_ids, probs[roi, class_ids]


def mask_scores(scores: Tensor, maskious: Tensor | None, config) -> Tensor:
    """How good class and mask together are: scores x maskious [N]; the scores where no IoU is predicted."""
    if maskious is None:
        return scores
    return scores * (maskious.clamp(0, 1) if config.MASKIOU_CLAMP else maskious)


def unmold_boxes(boxes: Tensor, window: Sequence[float], image_shape: Sequence[int], config) -> Tensor:
    """Detected boxes in pixels of the original image.

    boxes: [N, 4], shrunk. window: (y1, x1, y2, x2), where the image lies in the network's input.
    image_shape: (height, width) of the original.
    """
    y1, x1, y2, x2 = (float(side) for side in window)
    height, width = image_shape[:2]
    origin = boxes.new_tensor([y1, x1, y1, x1])
    scale = boxes.new_tensor([height / (y2 - y1), width / (x2 - x1)]).repeat(2)
    coordinates = config.dialect.coordinates
    if coordinates == "half_open":
        return (boxes - origin) * scale
    corner = boxes.new_tensor([0, 0, 1, 1])
    if coordinates == "inclusive":
        return (boxes - corner - origin) * scale + corner
    sides = [max(y2 - y1 - 1, 1), max(x2 - x1 - 1, 1)]  # Matterport divides a window of one pixel by 0, and loses all
    scale = boxes.new_tensor([(height - 1) / sides[0], (width - 1) / sides[1]]).repeat(2)
    return ((boxes - origin) * scale).add_(corner).round_()


############################################################
#  Mask Scoring R-CNN
############################################################

FORMAT, FORMAT_VERSION = "mask-scoring-rcnn", 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Settings that change what weights mean: a checkpoint and the model that it is loaded into must agree in them.
_MEANING = (
    *("DIALECT", "BACKBONE", "BACKBONE_STYLE", "MEAN_PIXEL", "STD_PIXEL"),
    *("RPN_BBOX_STD_DEV", "BBOX_STD_DEV", "RPN_ANCHOR_RATIOS", "RPN_ANCHOR_SCALES", "RPN_ANCHOR_STRIDE"),
    "BACKBONE_STRIDES",
)
_BACKBONE_MEANING = ("BACKBONE", "BACKBONE_STYLE", "MEAN_PIXEL", "STD_PIXEL")
# Layers with a row, or several, for each class.
_CLASS_LAYERS = ("box_head.class_logits", "box_head.box_deltas", "mask_head.mask_logits", "maskiou_head.maskious")
# Matterport's names for the layers that samples exclude.
_MATTERPORT_LAYERS = {
    "mrcnn_class_logits": "box_head.class_logits",
    "mrcnn_bbox_fc": "box_head.box_deltas",
    "mrcnn_bbox": "box_head.box_deltas",
    "mrcnn_mask": "mask_head.mask_logits",
    "mrcnn_maskiou": "maskiou_head.maskious",
}


class MaskRCNN(nn.Module):
    """Mask R-CNN with mask scoring: the network, detection, weights.

    config: a Config. model_dir: folder of logs and checkpoints, "logs" by default.
    mode: accepted, as Matterport's calls have it, and not needed.
    """

    def __init__(self, config, model_dir: str | Path | None = None, mode: str | None = None) -> None:
        super().__init__()
        if mode not in (None, "training", "inference"):
            raise ValueError(f"mode must be 'training' or 'inference', not {mode!r}; arguments are (config, model_dir)")
        config.validate()
        self.config = config
        self.model_dir = Path("logs" if model_dir is None else model_dir)
        self.class_names = list(config.CLASS_NAMES or ["BG", *(f"class {i}" for i in range(1, config.NUM_CLASSES))])
        self.category_ids = list(config.CATEGORY_IDS or range(config.NUM_CLASSES))
        self.source = "untrained"  # where the weights come from
        self.seconds: dict[str, float] = {}  # what the last detect() took, by stage
        self.backbone = config.BACKBONE(config) if callable(config.BACKBONE) else ResNet(config)
        self.fpn = FPN(self.backbone.channels, config.TOP_DOWN_PYRAMID_SIZE)
        self.rpn = RPN(config)
        self.box_head = BoxHead(config)
        self.mask_head = MaskHead(config)
        self.maskiou_head = MaskIoUHead(config) if config.USE_MASKIOU_HEAD else None
        self._anchors: tuple[Any, list[Tensor]] | None = None
        initialise(self)

    ### The network

    @property
    def device(self) -> torch.device:
        """Where the weights are; images follow them."""
        return self.rpn.objectness.weight.device

    def train(self, mode: bool = True) -> "MaskRCNN":
        """nn.Module's switch. Training is train_model(train_dataset, val_dataset, ...)."""
        if not isinstance(mode, bool):
            raise TypeError(
                "MaskRCNN.train(mode) is nn.Module's switch and takes a bool; to train, call "
                "model.train_model(train_dataset, val_dataset, learning_rate, epochs, layers)"
            )
        return super().train(mode)

    def forward(self, images: Images | Tensor, targets: Any = None, out: dict[str, Any] | None = None) -> Detections:
        """Find objects in a batch.

        images: Images, or pixels [B, C, H, W] without padding.
        out: a dict that is filled with what lies between: "backbone/c2" ..., "fpn/p2" ..., "anchors",
            "rpn/objectness_logits", "rpn/anchor_deltas", "proposals", "proposal_scores", "batch_index",
            "box/features", "box/class_logits", "box/box_deltas", "mask/features", "mask/logits", "maskiou/maskious".
            Boxes in it are shrunk by (0, 0, 1, 1) under the dialect matterport.

        Returns: Detections, in pixels of the input.
        """
        if targets is not None:
            raise ValueError("targets must be None: this version has no training yet")
        out = {} if out is None else out
        pixels, windows = self._check_images(images)
        image_shape = pixels.shape[2:]
        pyramid = self._features(pixels, out)
        rois, batch_index = self._proposals(pyramid, windows, image_shape, out)
        windows = shrink(windows, self.config)
        features = pool_rois(pyramid, rois, batch_index, self.config.POOL_SIZE, image_shape, self.config)
        class_logits, box_deltas = self.box_head(features)
        out.update({"box/features": features, "box/class_logits": class_logits, "box/box_deltas": box_deltas})
        found = detect_boxes(class_logits, box_deltas, rois, batch_index, windows, self.config)
        return self._masks(pyramid, found, image_shape, out)

    def _check_images(self, images: Images | Tensor) -> Images:
        if not isinstance(images, Images):
            height, width = images.shape[2:]
            window = torch.tensor([[0.0, 0, height, width]], device=images.device)
            images = Images(images, window.expand(len(images), 4))
        pixels, windows = images
        if pixels.ndim != 4 or pixels.shape[1] != self.config.IMAGE_CHANNEL_COUNT or windows.shape != (len(pixels), 4):
            raise ValueError(
                f"images must be pixels [B, {self.config.IMAGE_CHANNEL_COUNT}, H, W] with windows [B, 4], "
                f"not {list(pixels.shape)} with {list(windows.shape)}; channels last?"
            )
        return Images(pixels.contiguous(memory_format=torch.channels_last), windows)

    def _features(self, pixels: Tensor, out: dict[str, Any]) -> list[Tensor]:
        features = self.backbone(pixels)
        pyramid = self.fpn(features)
        out.update({f"backbone/c{level}": feature for level, feature in enumerate(features, start=2)})
        out.update({f"fpn/p{level}": feature for level, feature in enumerate(pyramid, start=2)})
        return pyramid

    def _proposals(self, pyramid, windows, image_shape, out) -> tuple[Tensor, Tensor]:
        config = self.config
        logits, deltas = self.rpn(pyramid)
        anchors = self.pyramid_anchors([tuple(level.shape[2:]) for level in pyramid], image_shape)
        assert [len(level) for level in anchors] == [level.shape[1] for level in logits]
        if config.dialect.coordinates == "normalised":  # clipped to the padded image, not to the window
            windows = windows.new_tensor([0, 0, *image_shape]).expand_as(windows)
        windows, anchors = shrink(windows, config), [shrink(level, config) for level in anchors]
        limits = (config.PRE_NMS_LIMIT, config.POST_NMS_ROIS_INFERENCE)
        rois, scores, batch_index = propose(logits, deltas, anchors, windows, config, *limits)
        out.update({"anchors": anchors, "rpn/objectness_logits": logits, "rpn/anchor_deltas": deltas})
        out.update({"proposals": rois, "proposal_scores": scores, "batch_index": batch_index})
        return rois, batch_index

    def _masks(self, pyramid, found: Detections, image_shape, out) -> Detections:
        """Detections with their masks, and the IoU that each mask is expected to have."""
        size, classes = self.config.MASK_POOL_SIZE, found.class_ids
        features = pool_rois(pyramid, found.boxes, found.batch_index, size, image_shape, self.config)
        logits = self.mask_head(features, classes)
        found = found._replace(mask_logits=logits)
        out.update({"mask/features": features, "mask/logits": logits})
        if self.maskiou_head is not None:
            maskious = self.maskiou_head(features, logits)  # [N, K]
            out["maskiou/maskious"] = maskious
            found = found._replace(maskious=maskious.gather(1, classes[:, None])[:, 0])
        return found

    def pyramid_anchors(self, shapes: Sequence[tuple[int, int]], image_shape: Sequence[int]) -> list[Tensor]:
        """generate_pyramid_anchors on the model's device; those of the last call are kept."""
        key = (tuple(shapes), tuple(image_shape), self.device)
        if self._anchors is None or self._anchors[0] != key:
            anchors = generate_pyramid_anchors(shapes, image_shape, self.config)
            self._anchors = key, [level.to(self.device) for level in anchors]
        return self._anchors[1]

    def get_anchors(self, image_shape: Sequence[int]) -> np.ndarray:
        """All anchors of an input of this (height, width), pixels: float32 [A, (y1, x1, y2, x2)], P2 first.

        Matterport's are normalised; these are not.
        """
        shapes = [tuple(shape) for shape in compute_backbone_shapes(self.config, image_shape).tolist()]
        return torch.cat(self.pyramid_anchors(shapes, image_shape[:2])).cpu().numpy()

    ### Detection

    @torch.no_grad()
    def detect(
        self, images: Sequence[np.ndarray], verbose: int = 0, dtype: str = "float32", masks: str = "array"
    ) -> list[dict[str, Any]]:
        """Find the objects of any number of images of any sizes.

        images: arrays [H, W, 3] RGB uint8; [H, W] gray, [H, W, 4] with alpha, 16-bit and 0..1 floats are converted.
        verbose: 1 prints what goes in and out.
        dtype: "float32", or "bfloat16" for the convolutions: faster where the processor has it, and less exact.
        masks: "array", or "rle" for a list of COCO run-length codes, which take far less memory.

        Returns: for each image a dict of NumPy arrays, highest class score first:
            rois float32 [N, (y1, x1, y2, x2)], pixels of the image; class_ids int32 [N]; scores float32 [N], of the
            class; mask_ious float32 [N], predicted, or None without a MaskIoU head; mask_scores float32 [N],
            scores x mask_ious; masks bool [H, W, N] or list of dicts.
        Raises: ValueError for what is not a list of images, an unknown dtype or an unknown kind of masks.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
        if masks not in ("array", "rle"):
            raise ValueError(f"masks must be 'array' or 'rle', not {masks!r}")
        if self.device.type == "cpu":
            native.keep_memory()
        images = self._checked(images)
        plans = [plan_image(image, self.config) for image in images]
        results: list[Any] = [None] * len(images)
        self.seconds = dict.fromkeys(("resize", "network", "masks"), 0.0)
        for chunk in _chunks([padded_shape(plan) for plan in plans], self.config.IMAGES_PER_GPU):
            start = time.perf_counter()
            molded = torch.stack([mold_padded(images[i], plans[i], self.config) for i in chunk])  # [B, H, W, C]
            windows = [plans[i].window for i in chunk]
            self._add_seconds("resize", start)
            if verbose:
                log(f"images {chunk}, molded", molded)
            shapes = [images[i].shape[:2] for i in chunk]
            for i, result in zip(chunk, self._detect_batch(molded, windows, shapes, dtype, masks), strict=True):
                results[i] = result
        if verbose:
            print(f"{sum(len(result['scores']) for result in results)} detections")
        return results

    def detect_molded(
        self, molded_images: np.ndarray, image_metas: np.ndarray, verbose: int = 0
    ) -> list[dict[str, Any]]:
        """detect() on what mold_inputs made: images [B, H, W, C] and metas [B, 12 + K], of one shape."""
        metas = parse_image_meta(image_metas)
        if len(molded_images) != len(metas["window"]):
            raise ValueError(f"molded_images and image_metas differ: {len(molded_images)} and {len(metas['window'])}")
        if verbose:
            log("molded_images", molded_images)
        self.seconds = dict.fromkeys(("network", "masks"), 0.0)
        shapes = [tuple(shape[:2]) for shape in metas["original_image_shape"].tolist()]
        with torch.no_grad():
            molded = torch.as_tensor(molded_images, dtype=torch.float32)
            return self._detect_batch(molded, metas["window"].tolist(), shapes, "float32", "array")

    def mold_inputs(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images resized, padded and normalised: molded_images [B, H, W, C], image_metas [B, 12 + K], windows [B, 4].

        Raises: ValueError for images that do not come out in one shape; detect() takes them.
        """
        images = self._checked(images)
        plans = [plan_image(image, self.config) for image in images]
        if len({padded_shape(plan) for plan in plans}) > 1:
            shapes = sorted({padded_shape(plan) for plan in plans})
            raise ValueError(f"images come out in the shapes {shapes}; a batch has one. detect() batches by itself")
        molded = [mold_padded(image, plan, self.config).numpy() for image, plan in zip(images, plans, strict=True)]
        flags = np.zeros(self.config.NUM_CLASSES, np.int64)
        metas = [
            compose_image_meta(0, image.shape, pixels.shape, plan.window, plan.scale, flags)
            for image, plan, pixels in zip(images, plans, molded, strict=True)
        ]
        return np.stack(molded), np.stack(metas), np.stack([plan.window for plan in plans])

    def _checked(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        if isinstance(images, np.ndarray | Tensor | str | Path):
            raise ValueError(f"images must be a list of images, not one {type(images).__name__}: detect([image])")
        channels = self.config.IMAGE_CHANNEL_COUNT
        if channels == 3:
            return [utils.to_rgb(image, f"images[{i}]") for i, image in enumerate(images)]
        for i, image in enumerate(images):
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != channels or not image.size:
                raise ValueError(
                    f"images[{i}] must be an array [H, W, {channels}], as IMAGE_CHANNEL_COUNT says, "
                    f"not {getattr(image, 'shape', type(image).__name__)}"
                )
        return list(images)

    def _detect_batch(self, molded: Tensor, windows, shapes, dtype: str, masks: str) -> list[dict[str, Any]]:
        """Results for molded images [B, H, W, C] of the given windows and original shapes."""
        start = time.perf_counter()
        pixels = molded.to(self.device, _DTYPES[dtype]).permute(0, 3, 1, 2)
        windows = torch.tensor([list(window) for window in windows], dtype=torch.float32)
        found = self(Images(pixels, windows.to(self.device)))
        boxes = found.boxes.cpu()  # waits for the device
        self._add_seconds("network", start)
        start = time.perf_counter()
        results = []
        for i, (window, shape) in enumerate(zip(windows.tolist(), shapes, strict=True)):
            own = (found.batch_index == i).nonzero()[:, 0]
            unmolded = unmold_boxes(boxes[own.cpu()], window, shape, self.config)
            results.append(self._result(found, own, unmolded, shape, masks))
        self._add_seconds("masks", start)
        return results

    def _result(self, found: Detections, own: Tensor, boxes: Tensor, shape, masks: str) -> dict[str, Any]:
        """detect()'s dict of one image. own: the indices of its detections. boxes: in its pixels."""
        if self.config.dialect.coordinates == "normalised":  # rounding may leave nothing of a box
            large = _larger_than(boxes, 0)
            own, boxes = own[large.to(own.device)], boxes[large]
        scores = found.scores[own]
        maskious = None if found.maskious is None else found.maskious[own]
        probs = found.mask_logits[own].sigmoid().cpu()
        paste = boxes
        if self.config.dialect.coordinates == "inclusive":
            paste = boxes - boxes.new_tensor([0, 0, 1, 1])
        rule = self.config.dialect.paste
        if masks == "array":
            pasted = utils.paste_masks(probs, paste, shape, rule)
        else:
            crops = utils.paste_mask_crops(probs, paste, shape, rule)
            pasted = [utils.crop_to_rle(y, x, crop, shape) for y, x, crop in crops]
        return {
            "rois": boxes.numpy(),
            "class_ids": found.class_ids[own].cpu().numpy().astype(np.int32),
            "scores": scores.cpu().numpy(),
            "mask_ious": None if maskious is None else maskious.cpu().numpy(),
            "mask_scores": mask_scores(scores, maskious, self.config).cpu().numpy(),
            "masks": pasted,
        }

    def _add_seconds(self, stage: str, start: float) -> None:
        self.seconds[stage] += time.perf_counter() - start

    ### Weights

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | Mapping[str, Any],
        device: str | torch.device | None = None,
        **config_overrides: Any,
    ) -> "MaskRCNN":
        """The model that a checkpoint of ours describes, with its weights, ready to detect.

        checkpoint: a file that save() or convert_weights.py wrote, or its contents.
        device: CUDA where there is one, by default.
        config_overrides: settings to change, such as DETECTION_MIN_CONFIDENCE=0.5.

        Raises: FileNotFoundError; ValueError for what is not such a checkpoint, or does not fit what it describes.
        """
        checkpoint = read_checkpoint(checkpoint)
        names = {"CLASS_NAMES": checkpoint["class_names"], "CATEGORY_IDS": checkpoint["category_ids"]}
        config = Config.from_dict({**checkpoint["config"], **names}, **config_overrides)
        with torch.device("meta"):  # random weights would be replaced at once
            model = cls(config).eval()
        _require_all(checkpoint["model"], model.state_dict())
        model.to_empty(device="cpu").load_state_dict(checkpoint["model"])
        model.source = checkpoint["source"]
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return model.to(device)

    def save(self, path: str | Path) -> None:
        """Write config, class names and weights, atomically. torch.load(path, weights_only=True) reads it."""
        checkpoint = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "dialect": self.config.DIALECT,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
            "source": self.source,
            "model": {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()},
        }
        utils.write_atomically(path, lambda file: torch.save(checkpoint, file))

    def load_weights(
        self,
        filepath: str | Path | Mapping[str, Any],
        by_name: bool = False,
        exclude: Sequence[str] | None = None,
        copy_classes: bool = False,
    ) -> None:
        """Load the weights of a checkpoint of ours into this model, all or none, and print what came of each.

        filepath: the checkpoint, or its contents.
        by_name: take what fits by name and shape and leave the rest as it is. Otherwise everything has to fit.
        exclude: layers to leave as they are ("box_head.class_logits", or Matterport's names such as
            "mrcnn_class_logits"); turns by_name on.
        copy_classes: in the layers that have rows for classes, copy the rows of classes of the same name; turns
            by_name on.

        Raises: FileNotFoundError; ValueError for what is not a checkpoint, weights that were made for other settings
            than this model's, layers that do not exist, and, without by_name, tensors that are missing, left over or
            of another shape.
        """
        checkpoint = read_checkpoint(filepath)
        source = checkpoint["model"]
        self._check_meaning(checkpoint)
        target = self.state_dict()
        excluded = {name for layer in exclude or () for name in self._tensors_of(layer)}
        fitting = {
            name: tensor
            for name, tensor in source.items()
            if name in target and tensor.shape == target[name].shape and name not in excluded
        }
        if copy_classes:
            fitting |= self._rows_of_same_classes(checkpoint, target, excluded)
        if not (by_name or excluded or copy_classes):
            _require_all(source, target)
        elif 2 * len(fitting) < len(source):
            raise ValueError(
                f"only {len(fitting)} of the checkpoint's {len(source)} tensors fit this model; is it another backbone?"
            )
        self.load_state_dict({**target, **fitting})
        self.source = checkpoint["source"]
        _report(fitting, target, source)

    def _check_meaning(self, checkpoint: Mapping[str, Any]) -> None:
        """Raises ValueError for weights that would compute something else in this model."""
        stored, own = checkpoint["config"], self.config.to_dict()
        heads = any(not name.startswith("backbone.") for name in checkpoint["model"])
        for name in _MEANING if heads else _BACKBONE_MEANING:
            if name in stored and not _same(stored[name], own[name]):
                raise ValueError(
                    f"these weights were made for {name} = {stored[name]}, but the model has {own[name]}; set {name} "
                    "in the config (or use MaskRCNN.from_checkpoint, which takes the settings from the checkpoint)"
                )

    def _tensors_of(self, layer: str) -> list[str]:
        name = _MATTERPORT_LAYERS.get(layer, layer)
        names = [key for key in self.state_dict() if key == name or key.startswith(name + ".")]
        if not names and not (name.startswith("maskiou_head") and self.maskiou_head is None):
            raise ValueError(f"exclude: there is no layer {layer!r}; layers are {', '.join(_layer_names(self))}")
        return names

    def _rows_of_same_classes(self, checkpoint, target, excluded) -> dict[str, Tensor]:
        theirs = {name: row for row, name in enumerate(checkpoint["class_names"])}
        pairs = [(row, theirs[name]) for row, name in enumerate(self.class_names) if name in theirs]
        copied = {}
        for layer in _CLASS_LAYERS:
            for name in (f"{layer}.weight", f"{layer}.bias"):
                if name in excluded or name not in target or name not in checkpoint["model"]:
                    continue
                rows, source_rows = (tensor.clone().unflatten(0, (classes, -1)) for tensor, classes in (
                    (target[name], len(self.class_names)), (checkpoint["model"][name], len(theirs))))  # fmt: skip
                for row, source_row in pairs:
                    rows[row] = source_rows[source_row]
                copied[name] = rows.flatten(0, 1)
        return copied

    def find_last(self) -> str:
        """Path of the newest checkpoint: the last epoch in the newest log folder that has one.

        Raises: FileNotFoundError when there is none.
        """
        name = (self.config.NAME or "").lower()
        folders = sorted(self.model_dir.glob(f"{name}*"), reverse=True) if self.model_dir.is_dir() else []
        pattern = re.compile(rf"mask_rcnn_{re.escape(name)}_(\d+)\.pth")
        for folder in folders:
            found = [(int(match[1]), path) for path in folder.glob("*.pth") if (match := pattern.fullmatch(path.name))]
            if found and re.fullmatch(rf"{re.escape(name)}\d*T?\d*", folder.name):
                return str(max(found)[1])
        raise FileNotFoundError(
            f"there is no checkpoint mask_rcnn_{name}_*.pth in any folder {self.model_dir / name}*; "
            "train first, or name a file"
        )


def _chunks(shapes: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Indices of equal shapes together, at most size of them, so that a batch needs no further padding."""
    groups: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _layer_names(model: nn.Module) -> list[str]:
    names = dict.fromkeys(".".join(name.split(".")[:2]) for name in model.state_dict())
    return list(names)


def _require_all(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the names and shapes are the same."""
    problems = [f"missing: {name} {list(target[name].shape)}" for name in target if name not in source]
    problems += [f"not of this model: {name} {list(source[name].shape)}" for name in source if name not in target]
    problems += [
        f"{name} is {list(source[name].shape)}, the model's {list(target[name].shape)}"
        for name in target
        if name in source and source[name].shape != target[name].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            "the checkpoint does not fit the model; nothing was loaded (another number of classes or another backbone? "
            "by_name=True takes what fits):\n  " + "\n  ".join(problems[:20]) + more
        )


def _report(fitting: Mapping[str, Tensor], target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    print(f"loaded: {len(fitting)} of the model's {len(target)} tensors")
    for title, names in (
        ("kept as they were", [name for name in target if name not in fitting]),
        ("not used", [name for name in source if name not in fitting]),
    ):
        if names:
            print(f"{title}: {', '.join(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}")


def read_checkpoint(checkpoint: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint of ours, checked: format, version, settings, class names and finite weights.

    Raises: FileNotFoundError; ValueError which says what is wrong.
    """
    name = "the checkpoint"
    if not isinstance(checkpoint, Mapping):
        name, checkpoint = str(checkpoint), utils.load_torch_file(checkpoint)
    if not isinstance(checkpoint, Mapping) or checkpoint.get("format") != FORMAT:
        raise ValueError(
            f"{name} is not a checkpoint of this project; `python convert_weights.py SRC DST` makes one of those of "
            "Matterport, the 2018 port, maskrcnn-benchmark, mmdetection and torchvision"
        )
    if checkpoint.get("version") != FORMAT_VERSION:
        raise ValueError(f"{name} has version {checkpoint.get('version')}; this code reads {FORMAT_VERSION}")
    for key in ("config", "class_names", "category_ids", "source", "model"):
        if key not in checkpoint:
            raise ValueError(f"{name} lacks {key!r}; it was not written whole")
    for key, tensor in checkpoint["model"].items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: {key} is {type(tensor).__name__}, not a tensor")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: {key} is not finite everywhere; the training diverged or the file is damaged")
    return checkpoint


def initialise(model: MaskRCNN) -> None:
    """Random weights to start a training from: mmdetection's, with residual branches that start at zero.

    Convolutions with a ReLU or a norm after them are Kaiming normal (fan out), lateral, output and fully connected ones
    Xavier uniform; predictors are normal with a small deviation. Biases are zero.
    """
    small = {"rpn": 0.01, "box_head.class_logits": 0.01, "box_head.box_deltas": 0.001, "maskiou_head.maskious": 0.01}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        deviation = next((value for prefix, value in small.items() if name.startswith(prefix)), None)
        if deviation is not None:
            nn.init.normal_(parameter, std=deviation)
        elif name.startswith("fpn.") or (parameter.ndim == 2 and name.startswith(("box_head.", "maskiou_head."))):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.conv3.norm.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.conv2.norm.weight)

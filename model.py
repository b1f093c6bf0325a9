"""Mask Scoring R-CNN: the network, its training targets and losses, detection and the MaskRCNN class.

    images ─ Backbone ─ C2..C5 ─ FPN ─ P2..P6 ─ RPN ─ proposals ─┬─ Box Head ──── classes, boxes ─ NMS ─ detections
                                   └──────── RoI features ───────┴─ Mask Head ─── 28x28 masks of the detections
                                                                 └─ MaskIoU Head  IoU of each mask with the truth
    mask score = class score x predicted IoU

Papers: Mask R-CNN (arXiv:1703.06870), FPN (arXiv:1612.03144), Mask Scoring R-CNN (arXiv:1903.00241).

    B images   R RoIs   N detections   K classes, 0 is background   L levels   A anchors   M mask side   C channels
    G objects of the ground truth   S sampled anchors or RoIs   P positive ones, those of objects
    Boxes are (y1, x1, y2, x2) in pixels of the network's input; (y2, x2) lies outside. Height is y2 - y1, with no +1.
    RoIs are flat: rois [R, 4] with batch_index [R], the image of each.
    *_logits are unbounded; *_probs and scores lie in [0, 1]; predicted maskious are unbounded.

The family computes this in five dialects (config.py); each difference is one branch, in the section where it belongs.

The dialect matterport computes with normalised boxes: (box - (0, 0, 1, 1)) / (side - 1). Nothing depends on the
constant factor, so it is left out, and a *shrunk* box is box - (0, 0, 1, 1). In all other dialects a shrunk box is the
box itself.

The sections follow the data, and use only what stands above them. The last one has Matterport's helpers.
"""

import copy
import functools
import itertools
import math
import numbers
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import runtime
import utils
from config import BACKBONE_WEIGHTS, BACKBONES, DIALECTS, SHAPE, WEIGHTS, Config, Dialect, settings_that
from data.classes import UNKNOWN, Classes, map_classes, map_to_model, match_rows, unnamed
from data.dataset import Dataset
from data.headers import check_headers
from data.images import reading_settings
from data.inputs import check_images, image_array
from data.loader import make_loader
from data.object_counts import describe_objects
from data.samples import Batch, Targets, TrainingData
from detections import Detections, ImageDetections
from fused import convolve, is_exporting, linear, multiply
from nms import batched_nms, nms_of_images
from roialign import (
    MaskCrops,
    crop_masks,
    mask_areas,
    paste_masks,
    paste_rles,
    pyramid_crop_and_resize,
    pyramid_roi_align,
)
from training import checkpoints, loop
from training.checkpoints import make_log_dir
from training.loop import Hooks, Progress, check_callbacks
from training.optimizer import SCHEDULES, Phase, schedule_learning_rate
from training.state_checks import check_state
from weights.checkpoint import (
    Checkpoint,
    config_of,
    is_backbone,
    make_checkpoint,
    match_to_network,
    read_checkpoint,
    write_checkpoint,
)
from weights.convert import convert
from weights.stem import fit_images

############################################################
#  Images In
############################################################


class Images(NamedTuple):
    """A batch as the network takes it."""

    pixels: Tensor  # [B, C, H, W] normalised, channels_last
    windows: Tensor  # [B, (y1, x1, y2, x2)] where the images lie; the rest is padding


def mold_image(image: np.ndarray | Tensor, config: Config) -> Tensor:
    """Pixels [..., C] in 0..255, minus MEAN_PIXEL and divided by STD_PIXEL: float32 [..., C]."""
    if isinstance(image, np.ndarray):
        image = np.require(image, requirements="CW")  # torch demands it, though it only reads
    pixels = torch.as_tensor(image)
    rows = pixels.flatten(-2) if pixels.dim() > 1 else pixels  # [..., W * C]: torch is slow where the last dim is short
    width, like = pixels.shape[-2] if pixels.dim() > 1 else 1, pixels.new_empty(0, dtype=torch.float32)
    mean, deviation = (runtime.constant(values, like).repeat(width) for values in (config.MEAN_PIXEL, config.STD_PIXEL))
    return (rows - mean).div_(deviation).reshape(pixels.shape)


def mold_padded(image: np.ndarray, plan: utils.ResizePlan, config: Config) -> Tensor:
    """An image [H, W, C] uint8, resized, normalised and padded by its plan: float32 [*plan.padded_shape, C]."""
    pixels = mold_image(_resized(image, plan, config), config)  # [h, w, C]
    return pad_molded(pixels, plan.window, pixels.new_empty(*plan.padded_shape, pixels.shape[2]), config)


def _resized(image: np.ndarray, plan: utils.ResizePlan, config: Config) -> np.ndarray:
    """An image [H, W, C] uint8 in the size of its plan, not normalised."""
    if plan.crop is not None:
        raise ValueError("IMAGE_RESIZE_MODE 'crop' takes random crops, for training; detect with 'square' or 'pad64'")
    return utils.resize_pixels(image, plan.size, config.dialect.resampling)


def pad_molded(pixels: Tensor, window: Sequence[int], out: Tensor, config: Config) -> Tensor:
    """Put normalised pixels [h, w, C] into their window (y1, x1, y2, x2) of out [H, W, C], and padding around it.

    Returns: out.
    """
    if config.dialect.pads_before_mean:
        out.copy_(mold_image(pixels.new_zeros(pixels.shape[2]), config).expand_as(out))
    else:
        out.zero_()
    y1, x1, y2, x2 = window
    out[y1:y2, x1:x2] = pixels
    return out


def mold_batch(batch: Batch, device: torch.device, config: Config) -> tuple[Images, Targets]:
    """A Batch of the loader as the network takes it, on its device: images normalised and padded, and their truth."""
    windows = batch.windows.tolist()
    batch = batch.to(device, non_blocking=True)  # the loader pins what goes to a GPU
    shape, dtype = (len(windows), *batch.shape, config.IMAGE_CHANNEL_COUNT), _DTYPES[config.TRAIN_DTYPE]
    pixels = torch.empty(shape, dtype=dtype, device=device)
    for place, image, window in zip(pixels, batch.images, windows, strict=True):
        pad_molded(mold_image(image, config), [int(side) for side in window], place, config)
    return Images(pixels.permute(0, 3, 1, 2), batch.windows), batch.targets


############################################################
#  Layers
############################################################


class _Layer(nn.Module):
    """A layer whose weights inference prepares: folded with the norm, in the dtype and the layout that are fast."""

    is_exact = False  # True: float32, whatever the dtype of the other layers

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        raise NotImplementedError

    def weights(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """(weight, bias) as forward uses them: the prepared ones in inference, else computed from the parameters."""
        if not torch.compiler.is_compiling():
            prepared = _weights_in_use.get().get(self)
            if prepared is not None and prepared[0].dtype == dtype:
                return prepared
        return self._prepare(dtype)

    def _learns(self) -> bool:
        """Whether gradients flow to the weights."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())


_Weights = Mapping[_Layer, tuple[Tensor | None, ...]]
_NO_WEIGHTS: _Weights = MappingProxyType({})
# The prepared weights of the inference that the current thread is in.
_weights_in_use: ContextVar[_Weights] = ContextVar("weights_in_use", default=_NO_WEIGHTS)


@contextmanager
def _inference(weights: _Weights, device: torch.device) -> Iterator[None]:
    """A block in which the current thread detects, with weights, whatever the caller is in: training mode, autocast."""
    token = _weights_in_use.set(weights)
    try:
        # Autocast would cast the weights of every layer again, and change results.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        _weights_in_use.reset(token)


def _prepare_weights(network: nn.Module, dtype: torch.dtype) -> _Weights:
    """The weights of all layers of a network for inference in a dtype."""
    layers = [module for module in network.modules() if isinstance(module, _Layer)]
    weights: dict[_Layer, tuple[Tensor | None, ...]] = {}
    # Other threads share them, who may not be in inference mode. NOTE: leaving that mode turns gradients on.
    with torch.inference_mode(False), _inference(weights, network.device):
        weights |= {layer: layer._prepare(torch.float32 if layer.is_exact else dtype) for layer in layers}
    return weights


class _Block:
    """The prepared weights that all MaskRCNN.prepared() of a network and a dtype share, while one of them is open."""

    # Here and not in the network, so that copies and pickles of it leave them behind.
    of_network: ClassVar[WeakKeyDictionary[nn.Module, dict[torch.dtype, "_Block"]]] = WeakKeyDictionary()
    # Reentrant: the garbage collector may close a generator that stands in a block at any moment.
    lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self) -> None:
        self.count, self.preparing, self._weights, self._shared = 0, threading.Lock(), None, None

    def weights(self, network: nn.Module, dtype: torch.dtype) -> _Weights:
        """The weights. The first thread that needs them prepares them, and the others wait."""
        with self.preparing:
            if self._weights is None:
                self._weights = _prepare_weights(network, dtype)
                tensors = [tensor for pair in self._weights.values() for tensor in pair if tensor is not None]
                self._shared = runtime.Shared(tensors)
        self._shared.use_here()
        return self._weights


@contextmanager
def _open_block(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    with _Block.lock:
        blocks = _Block.of_network.setdefault(network, {})
        block = blocks.setdefault(dtype, _Block())
        block.count += 1
    try:
        block.weights(network, dtype)
        yield
    finally:
        with _Block.lock:
            block.count -= 1
            if block.count == 0:
                del blocks[dtype]


def _ready_weights(network: nn.Module, dtype: torch.dtype) -> _Weights:
    """The weights of the open block, or, outside of any block, new ones."""
    with _Block.lock:
        block = _Block.of_network.get(network, {}).get(dtype)
    return _prepare_weights(network, dtype) if block is None else block.weights(network, dtype)


class BatchNorm(nn.Module):
    """A batch norm. Unless `learns` is set its statistics are frozen, and Conv folds it into its weights.

    running_var includes the eps: weights/convert.py adds the eps of a foreign file, and forward that of training.
    """

    EPS, MOMENTUM = 1e-5, 0.1
    recomputes = False  # True while activations are computed a second time for gradients: see _recomputing

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.learns = False  # statistics of the batch, while in training mode
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(channels, dtype=torch.float32))

    @property
    def folds(self) -> bool:
        """Whether the norm is no more than a factor and a shift of each channel. In detection it is, in any mode."""
        if not (self.learns and self.training):
            return True
        return not torch.compiler.is_compiling() and _weights_in_use.get() is not _NO_WEIGHTS

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[C], [C]: norm(x) = x * scale + shift."""
        scale = self.weight * self.running_var.rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] normalised by the statistics of this batch. The running statistics move towards these."""
        mean, variance = self.running_mean.clone(), self.running_var - self.EPS
        x = F.batch_norm(x, mean, variance, self.weight, self.bias, True, self.MOMENTUM, self.EPS)
        if not BatchNorm.recomputes:  # the second time, the running statistics have moved already
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance + self.EPS)
        return x


class GroupNorm(nn.GroupNorm):
    """A group norm of up to 32 groups. Other images of the batch have no influence on it."""

    folds = False

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        # On a CPU, torch takes 6 times as long for 16 bits with channels last as it takes for 32.
        dtype = torch.float32 if x.device.type == "cpu" and x.dtype.itemsize == 2 else x.dtype
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        # Not F.group_norm, whose check of the size torch.export cannot follow where there are as many rows as RoIs.
        return torch.group_norm(x.to(dtype), self.num_groups, weight, bias, self.eps).to(x.dtype)


_NORMS = {"batch": BatchNorm, "group": GroupNorm}


@contextmanager
def _recomputing() -> Iterator[None]:
    """A block in which activation checkpointing computes activations a second time."""
    BatchNorm.recomputes = True
    try:
        yield
    finally:
        BatchNorm.recomputes = False


class Conv(_Layer):
    """Convolution with a bias or a norm, padded to keep the size; then a residual is added; then ReLU.

    norm: "batch", "group" or None.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        norm: str | None = None,
        relu: bool = False,
    ) -> None:
        super().__init__()
        shape = (channels_out, channels_in // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.norm = _NORMS[norm](channels_out) if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(channels_out, dtype=torch.float32))
        self.stride, self.padding, self.groups, self.relu = stride, kernel // 2, groups, relu

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weight, self.bias
        if self.norm is not None and self.norm.folds:
            scale, bias = self.norm.scale_and_shift()
            weight = weight * scale[:, None, None, None]
        bias = None if bias is None else bias.to(dtype)
        return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] to [B, out, h, w]. residual, of the shape of the result, may be overwritten."""
        numbers = (*self.weights(x.dtype), self.stride, self.padding, self.groups)
        if self.norm is None or self.norm.folds:
            return convolve(x, *numbers, residual, self.relu)
        x = self.norm(convolve(x, *numbers))
        if residual is not None:
            x += residual
        return x.relu_() if self.relu else x


class ConvOfTwo(Conv):
    """A Conv of two maps, as if the channels of the second stood behind those of the first.

    They are not joined: that would copy the large one, and an odd number of channels is slow on matrix units.
    """

    def __init__(self, channels_in: tuple[int, int], channels_out: int, kernel: int, relu: bool = False) -> None:
        super().__init__(sum(channels_in), channels_out, kernel, relu=relu)
        self.channels_in = channels_in

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        weight, bias = super()._prepare(dtype)
        first, second = (
            part.contiguous(memory_format=torch.channels_last) for part in weight.split(self.channels_in, dim=1)
        )
        return first, second, bias

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        """x [B, C1, H, W] and second [B, C2, H, W] to [B, out, h, w]."""
        weight, weight_second, bias = self.weights(x.dtype)
        of_second = convolve(second, weight_second, None, self.stride, self.padding)
        return convolve(x, weight, bias, self.stride, self.padding, residual=of_second, relu=self.relu)


class Linear(_Layer):
    """Fully connected layer, then ReLU.

    cells: of inputs [R, C, P, P], the P x P cells; 1 for inputs [R, C]. The weight is in torch's order (C, P, P); to
        detect, it is reordered for channels_last inputs, so that these are not copied.
    is_exact: compute in float32, whatever the dtype of the inputs.
    """

    def __init__(
        self, channels_in: int, channels_out: int, cells: int = 1, relu: bool = False, is_exact: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in * cells, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels_out, dtype=torch.float32))
        self.cells, self.relu, self.is_exact = cells, relu, is_exact

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight = self.weight
        if not self._learns():
            weight = weight.view(len(weight), -1, self.cells).transpose(1, 2).flatten(1)  # [out, (cells, C)]
        return weight.to(dtype), self.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if self.is_exact else x
        if x.ndim == 4:  # a layer that learns copies its inputs into torch's order: gradients keep them in any case
            x = x.flatten(1) if self._learns() else x.permute(0, 2, 3, 1).flatten(1)
        return multiply(x, *self.weights(x.dtype), self.relu)


############################################################
#  Backbone
############################################################


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34).

    Without gradients, a block without a shortcut layer adds into its input: nobody else reads that.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv(channels_in, channels, 3, stride, norm=norm, relu=True)
        self.conv2 = Conv(channels, channels, 3, norm=norm, relu=True)
        changes = stride > 1 or channels_in != channels
        self.shortcut = Conv(channels_in, channels, 1, stride, norm=norm) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x), residual)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut. Style "caffe" has the stride in the first, "pytorch" in the second.

    Without gradients, a block without a shortcut layer adds into its input, as a BasicBlock does.
    """

    def __init__(
        self, channels_in: int, width: int, channels: int, stride: int, groups: int, style: str, norm: str
    ) -> None:
        super().__init__()
        stride1, stride2 = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = Conv(channels_in, width, 1, stride1, norm=norm, relu=True)
        self.conv2 = Conv(width, width, 3, stride2, groups, norm=norm, relu=True)
        self.conv3 = Conv(width, channels, 1, norm=norm, relu=True)
        changes = stride > 1 or channels_in != channels
        self.shortcut = Conv(channels_in, channels, 1, stride, norm=norm) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x)), residual)


class ResNet(nn.Module):
    """ResNet or ResNeXt.

    channels: of C2 to C5. recomputes: blocks keep only their input, and compute the rest again for gradients.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        blocks, is_bottleneck, groups, group_width = BACKBONES[config.BACKBONE]
        self.pads_symmetrically = config.dialect.stem_pool == "symmetric"
        self.recomputes = config.ACTIVATION_CHECKPOINTING
        norm = config.BACKBONE_NORM

        def scaled(channels: int) -> int:
            return max(8, round(channels * config.BACKBONE_WIDTH / 8) * 8)

        self.stem = Conv(config.IMAGE_CHANNEL_COUNT, scaled(64), 7, 2, norm=norm, relu=True)
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
                    block = Bottleneck(channels_in, width, channels, stride, groups, config.BACKBONE_STYLE, norm)
                else:
                    block = BasicBlock(channels_in, channels, stride, norm)
                layer.append(block)
                channels_in = channels
            self.add_module(f"layer{stage + 1}", layer)
            self.channels.append(channels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps C2 to C5 of [B, C, H, W], with strides 4, 8, 16 and 32."""
        x = self._pool(self.stem(pixels))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self._recomputed(block, x) if self.recomputes and self._has_gradient(block, x) else block(x)
            features.append(x)
        return features

    @staticmethod
    def _has_gradient(block: nn.Module, x: Tensor) -> bool:
        """Whether activations are kept for gradients at all: not those of frozen stages."""
        learns = x.requires_grad or any(parameter.requires_grad for parameter in block.parameters())
        return learns and torch.is_grad_enabled()

    @staticmethod
    def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
        contexts = (nullcontext(), _recomputing())
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pads_symmetrically:
            return F.max_pool2d(x, 3, 2, padding=1)
        # TensorFlow's padding "same": at the end of an even side, at both ends of an odd one.
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


############################################################
#  Feature Pyramid Network
############################################################


class FPN(nn.Module):
    """P2 to P5 from C2 to C5, top down, and P6, every second cell of P5."""

    def __init__(self, channels_in: Sequence[int], channels: int, norm: str | None = None) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Conv(count, channels, 1, norm=norm) for count in channels_in)
        self.output = nn.ModuleList(Conv(channels, channels, 3, norm=norm) for _ in channels_in)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[C2, ..., C5] to [P2, ..., P6], each [B, C, h, w]."""
        merged: list[Tensor] = []  # from the coarsest
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            upper = F.interpolate(merged[-1], size=feature.shape[2:], mode="nearest") if merged else None
            merged.append(lateral(feature, upper))
        pyramid = [output(level) for output, level in zip(self.output, reversed(merged), strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]


############################################################
#  Boxes of a Dialect
############################################################


def shrink(boxes: Tensor, config: Config) -> Tensor:
    """Shrunk boxes [..., 4], see above: those that the dialect computes with."""
    if config.dialect.coordinates != "normalised":
        return boxes
    return boxes - runtime.constant((0, 0, 1, 1), boxes)


def unshrink(boxes: Tensor, config: Config) -> Tensor:
    """Boxes [..., 4] in pixels of the input: the inverse of shrink."""
    if config.dialect.coordinates != "normalised":
        return boxes
    return boxes + runtime.constant((0, 0, 1, 1), boxes)


def _row(values: Sequence[float], like: Tensor) -> Tensor:
    """like.new_tensor(values). The CPU does not wait, as it would for runtime.constant of values that are new."""
    return torch.cat([like.new_full((1,), value) for value in values])


def decode_boxes(boxes: Tensor, deltas: Tensor, std_dev: Sequence[float], config: Config) -> Tensor:
    """The boxes [..., 4] that deltas [..., 4], in units of std_dev, turn boxes into."""
    return utils.apply_box_deltas(boxes, deltas * runtime.constant(std_dev, deltas), *config.dialect.delta_limits)


def clip_to_windows(boxes: Tensor, windows: Tensor, config: Config) -> Tensor:
    """Boxes [..., 4] clipped to their images.

    windows: [..., 4], broadcastable.
    """
    low, high = windows[..., :2], windows[..., 2:]
    # "+1" boxes are clipped at the last pixel, so that a pixel remains.
    pixel = 1 if config.dialect.coordinates == "inclusive" else 0
    low, high = torch.cat([low, low + pixel], dim=-1), torch.cat([high - pixel, high], dim=-1)
    return boxes.minimum(high).maximum(low)


def _larger_than(boxes: Tensor, side: float) -> Tensor:
    """bool [...]: which boxes [..., 4] are both higher and wider than a side."""
    return (boxes[..., 2:] - boxes[..., :2] > side).all(dim=-1)


def unmold_boxes(boxes: Tensor, window: Sequence[float], image_shape: Sequence[int], config: Config) -> Tensor:
    """Boxes in pixels of the original image.

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


def unmold_detections(
    boxes: Tensor, window: Sequence[float], image_shape: Sequence[int], config: Config
) -> tuple[Tensor, Tensor]:
    """unmold_boxes of detections [N, 4], and which of them are still boxes: bool [N].

    Dialects that round boxes, or clip them to the image once more, lose some.
    """
    boxes = unmold_boxes(boxes, window, image_shape, config)
    if config.dialect.clips_result:
        boxes = utils.clip_boxes(boxes, (0, 0, *image_shape[:2]))
    elif config.dialect.coordinates != "normalised":
        return boxes, torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    return boxes, _larger_than(boxes, 0)


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
    device: torch.device | None = None,
) -> Tensor:
    """The anchors of one level, float32 [h * w * ratios, 4], in the order y, x, ratio.

    shape: (height, width) of the feature map.
    feature_stride: pixels a cell, or (along y, along x).
    anchor_stride: 2 puts anchors on every second cell.
    rounding, centre: Dialect.anchor_rounding and anchor_centre.

    Source: Matterport's utils.generate_anchors, with its exact centres on the cells' corners.
    """
    stride_y, stride_x = feature_stride if isinstance(feature_stride, Sequence) else (feature_stride, feature_stride)
    y = (torch.arange(0, shape[0], anchor_stride, device=device) + centre) * stride_y
    x = (torch.arange(0, shape[1], anchor_stride, device=device) + centre) * stride_x
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).float().repeat(1, 1, 2)  # [h, w, 4]
    # An exported program has tensors without data, which must not be kept.
    make = _cell_anchors_on if is_exporting() else _kept_cell_anchors
    cell = make(scale, tuple(ratios), stride_y, rounding, centres.device)
    return (centres[:, :, None] + cell).view(-1, 4)


def _cell_anchors_on(scale: float, ratios: tuple[float, ...], stride: float, rounding: str, device: torch.device):
    return cell_anchors(scale, ratios, stride, rounding).to(device)


# A GPU waits for them once, and not for each new size of images. They are usable under autograd, whoever asks first.
_kept_cell_anchors = functools.lru_cache(maxsize=64)(torch.inference_mode(False)(_cell_anchors_on))


def generate_pyramid_anchors(
    shapes: Sequence[tuple[int, int]],
    image_shape: Sequence[int],
    config: "Config | _AnchorSettings",
    device: torch.device | None = None,
) -> list[Tensor]:
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
                device,
            )
        )
    return levels


class _AnchorSettings(NamedTuple):
    """The settings of a Config that anchors depend on, by their names there."""

    RPN_ANCHOR_SCALES: tuple[float, ...]
    RPN_ANCHOR_RATIOS: tuple[float, ...]
    RPN_ANCHOR_STRIDE: int
    BACKBONE_STRIDES: tuple[int, ...]
    DIALECT: str

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.DIALECT]


@functools.lru_cache(maxsize=4)  # 4 MB each for 800 x 1333 pixels
@torch.inference_mode(False)  # usable under autograd, whoever asks first
def _shared_anchors(
    shapes: tuple[tuple[int, int], ...], image_shape: tuple[int, ...], settings: _AnchorSettings, device: torch.device
) -> tuple[tuple[Tensor, ...], runtime.Shared]:
    """generate_pyramid_anchors; the last few are kept, for images of one size come one after another."""
    levels = tuple(generate_pyramid_anchors(shapes, image_shape, settings, device))
    return levels, runtime.Shared(levels)


############################################################
#  Region Proposal Network
############################################################


class RPN(_Layer):
    """For each anchor: is there an object, and how does its box differ from the anchor?"""

    def __init__(self, config: Config) -> None:
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
            both = convolve(x, *self.weights(x.dtype)).permute(0, 2, 3, 1)  # a view, since maps are channels_last
            of_level = both.split([len(self.objectness.weight), len(self.deltas.weight)], dim=3)
            logits.append(of_level[0].float().flatten(1))  # anchors are in the order y, x, ratio
            deltas.append(of_level[1].float().reshape(x.shape[0], -1, 4))
        return logits, deltas

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weights of both predictions, as those of one convolution: it reads the feature map once."""
        weights, biases = zip(self.objectness._prepare(dtype), self.deltas._prepare(dtype), strict=True)
        return torch.cat(weights), torch.cat(biases)

    def forward_at(
        self, pyramid: Sequence[Tensor], anchors: Tensor, level_counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """objectness_logits [S] and anchor_deltas [S, 4] of some anchors, computed from the cells around them alone.

        The RPN learns from a few hundred anchors. Gradients through their cells cost next to nothing; gradients
        through all cells would be an eighth of a training step.

        anchors: [S], indices into the batch's B x A anchors. level_counts: how many of them are of each level; None:
            they are counted.
        """
        if len(self.convs) > 1:  # then an anchor depends on more than 3 x 3 cells
            logits, deltas = self(pyramid)
            return torch.cat(logits, dim=1).flatten()[anchors], torch.cat(deltas, dim=1).flatten(0, 1)[anchors]
        stride, ratios = self.convs[0].stride, len(self.objectness.weight)
        sizes = [[(side - 1) // stride + 1 for side in level.shape[2:]] for level in pyramid]
        counts = [height * width * ratios for height, width in sizes]
        image, index = anchors // sum(counts), anchors % sum(counts)
        patches, orders = [], []
        level_counts = level_counts or [None] * len(pyramid)
        for level, (_, width), count, of_sample in zip(pyramid, sizes, counts, level_counts, strict=True):
            of_level = _indices((index >= 0) & (index < count), of_sample)
            cell = index[of_level] // ratios
            patches.append(_patches(level, image[of_level], cell // width * stride, cell % width * stride))
            orders.append(of_level)
            index = index - count  # so that it counts from the next level's first anchor
        order = torch.cat(orders).argsort()
        x = _as_linear(self.convs[0], torch.cat(patches)[order]).relu()  # [S, C]
        ratio = anchors % ratios
        logits = _as_linear(self.objectness, x).gather(1, ratio[:, None])[:, 0]
        deltas = _as_linear(self.deltas, x).view(len(x), ratios, 4)
        return logits.float(), deltas[torch.arange(len(x), device=x.device), ratio].float()


def _patches(x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The 3 x 3 cells around S cells of a map [B, C, H, W]: [S, (dy, dx, C)]. Cells beyond the edges are 0.

    image, row, column: [S], where each cell is.
    """
    _, channels, height, width = x.shape
    step = torch.arange(-1, 2, device=x.device)
    rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step  # [S, 3, 1], [S, 1, 3]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # [S, 3, 3]
    cells = (image[:, None, None] * height + rows.clamp(0, height - 1)) * width + columns.clamp(0, width - 1)
    patches = x.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, cells.flatten())
    return (patches * inside.flatten()[:, None]).view(len(row), 9 * channels)


def _as_linear(conv: Conv, x: Tensor) -> Tensor:
    """A convolution at single cells: patches [S, (dy, dx, C)] to [S, out]."""
    weight, bias = conv.weights(x.dtype)
    return linear(x, weight.permute(0, 2, 3, 1).flatten(1), bias)


def propose(
    objectness_logits: Sequence[Tensor],
    anchor_deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    windows: Tensor,
    config: Config,
    pre_nms: int,
    post_nms: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The RPN's best boxes, after NMS.

    objectness_logits, anchor_deltas: for each level, [B, A] and [B, A, 4].
    anchors: for each level, [A, 4], shrunk. windows: [B, 4], shrunk.
    pre_nms: at most as many boxes go into NMS, of each level or of each image (Dialect.proposals_of).
    post_nms: at most as many boxes of each image are returned.

    Returns: proposals [R, 4], scores [R], batch_index [R]; the proposals of an image together, best first.
    """
    dialect = config.dialect
    if dialect.proposals_of == "image":
        objectness_logits, anchor_deltas = [torch.cat(objectness_logits, 1)], [torch.cat(anchor_deltas, 1)]
        anchors = [torch.cat(anchors)]
    boxes, scores, groups = [], [], []
    images = torch.arange(windows.shape[0], device=windows.device)
    for level, (logits, deltas, base) in enumerate(zip(objectness_logits, anchor_deltas, anchors, strict=True)):
        ranked = logits if dialect.proposal_order == "logit" else logits.sigmoid()
        top_scores, top = ranked.topk(torch.sym_min(pre_nms, ranked.shape[1]), dim=1)  # [B, k]
        top_deltas = deltas.gather(1, top[:, :, None].expand(-1, -1, 4))
        decoded = decode_boxes(base[top], top_deltas, config.RPN_BBOX_STD_DEV, config)
        if dialect.drops_infinite:
            is_finite = decoded.isfinite().all(dim=2) & top_scores.isfinite()
            top_scores = top_scores.masked_fill(~is_finite, -math.inf)
        boxes.append(clip_to_windows(decoded, windows[:, None], config))
        scores.append(top_scores)
        groups.append((images * len(anchors) + level)[:, None].expand_as(top))
    most = None if is_exporting() else max(level.shape[1] for level in scores)
    boxes, scores, groups = (torch.cat(levels, 1).flatten(0, 1) for levels in (boxes, scores, groups))
    scores = scores.masked_fill(~_larger_than(boxes, dialect.min_proposal_side), -math.inf)  # which NMS ignores
    counts = windows.shape[0], len(anchors)
    keep = _best_of_images(boxes, scores, groups, *counts, config.RPN_NMS_THRESHOLD, post_nms, most)
    return boxes[keep], scores[keep], groups[keep] // len(anchors)


def _best_of_images(
    boxes: Tensor, scores: Tensor, groups: Tensor, images: int, groups_per_image: int, *limits: Any
) -> Tensor:
    """The indices that nms_of_images keeps, image by image, in one row. limits: its last arguments."""
    if not is_exporting():
        return _filled(*nms_of_images(boxes, scores, groups, images, groups_per_image, *limits))
    # An exported program has any number of images, so no shape is known in advance. Runtimes break ties in different
    # ways, so no two keys of a sort are equal.
    keep = batched_nms(boxes, scores, groups, *limits)
    image, place = groups[keep] // groups_per_image, torch.arange(keep.shape[0], device=keep.device)
    order = (image * keep.shape[0] + place).argsort()
    image = image[order]
    counts = (image[:, None] == torch.arange(images, device=keep.device)).sum(dim=0)
    rank = place - (counts.cumsum(0) - counts)[image]
    return keep[order[_indices(rank < limits[1])]]


def _filled(keep: Tensor, counts: Tensor) -> Tensor:
    """The indices of nms_of_images without those that fill the rows, image by image. Waits for the number of them."""
    return keep[torch.arange(keep.shape[1], device=keep.device) < counts[:, None]]


############################################################
#  RoI Features
############################################################


def roi_levels(rois: Tensor, image_shape: Sequence[int], config: Config) -> Tensor:
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
    elif rule == "inside_1e-8":
        level = torch.floor(4 + torch.log2(size / 224 + 1e-8)) - 2
    else:
        # Matterport divides by (side - 1), but compares with the area of the image: here the factor matters.
        height, width = image_shape
        size = size * math.sqrt(height * width / max((height - 1) * (width - 1), 1))
        level = torch.round(torch.log2(size / 224)) + 2
    return level.clamp(0, 3).nan_to_num(0).long()


def pool_rois(
    pyramid: Sequence[Tensor], rois: Tensor, batch_index: Tensor, size: int, image_shape: Sequence[int], config: Config
) -> Tensor:
    """The features of each RoI, from the level that fits its size: [R, C, size, size].

    pyramid: P2 to P5, or to P6, which is not used. rois: [R, 4] shrunk. image_shape: (height, width), padded.
    """
    levels = roi_levels(rois, image_shape, config)
    maps, scales = list(pyramid[:4]), [1 / stride for stride in config.BACKBONE_STRIDES[:4]]
    pooling = config.dialect.pooling
    if pooling == "crop":
        height, width = image_shape
        sides = _row([max(height - 1, 1), max(width - 1, 1)] * 2, rois)
        return pyramid_crop_and_resize(maps, rois / sides, batch_index, levels, size)
    if pooling == "adaptive":
        return pyramid_roi_align(maps, rois, batch_index, levels, size, scales, 0, aligned=True)
    if config.dialect.coordinates == "inclusive":
        rois = rois - runtime.constant((0, 0, 1, 1), rois)
    return pyramid_roi_align(maps, rois, batch_index, levels, size, scales, 2, aligned=False)


############################################################
#  Box Head
############################################################


class BoxHead(nn.Module):
    """The class of each RoI, and for each class its better box."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.FPN_CLASSIF_FC_LAYERS_SIZE
        counts = [channels] + [config.BOX_HEAD_CHANNELS or channels] * config.BOX_HEAD_CONVS
        self.convs = nn.ModuleList(
            Conv(*pair, 3, norm=config.BOX_HEAD_NORM, relu=True) for pair in itertools.pairwise(counts)
        )
        self.fcs = nn.ModuleList([Linear(counts[-1], width, config.POOL_SIZE**2, relu=True)])
        self.fcs.extend(Linear(width, width, relu=True) for _ in range(config.BOX_HEAD_FC_LAYERS - 1))
        # Scores and boxes do not lose digits, whatever the dtype of the rest.
        self.class_logits = Linear(width, config.NUM_CLASSES, is_exact=True)
        self.box_deltas = Linear(width, 4 * config.NUM_CLASSES, is_exact=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features [R, C, P, P] to class_logits [R, K] and box_deltas [R, K, (dy, dx, dh, dw)], both float32."""
        for conv in self.convs:
            x = conv(x)
        for fc in self.fcs:
            x = fc(x)
        logits = self.class_logits(x)
        return logits, self.box_deltas(x).view(*logits.shape, 4)


############################################################
#  Mask Head
############################################################


class Upsample(_Layer):
    """Transposed 2x2 convolution with stride 2, then ReLU, as a 1x1 convolution with four outputs a cell."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_in, channels_out, 2, 2, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels_out, dtype=torch.float32))

    def _prepare(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [(dy, dx, out), in]
        return weight.to(dtype).contiguous()[:, :, None, None], self.bias.to(dtype).repeat(4)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, m, m] to [R, (dy, dx, C), m, m]."""
        return convolve(x, *self.weights(x.dtype), relu=True)


class MaskHead(nn.Module):
    """The mask of each RoI for one class, at twice the resolution of its features.

    The last convolution is computed for that class only: the same numbers without the maps of all other classes.
    """

    RECOMPUTED = 64  # RoIs
    AT_ONCE = 256  # RoIs, in inference: what has four times as many channels takes 0.8 MB of float32 for each

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.MASK_HEAD_CHANNELS
        counts = [channels] + [width] * config.MASK_HEAD_CONVS
        self.convs = nn.ModuleList(
            Conv(*pair, 3, norm=config.MASK_HEAD_NORM, relu=True) for pair in itertools.pairwise(counts)
        )
        self.upsample = Upsample(width, width)
        self.mask_logits = Conv(width, config.NUM_CLASSES, 1)

    def forward(self, x: Tensor, class_ids: Tensor) -> Tensor:
        """RoI features [R, C, m, m] and classes [R] to mask_logits [R, 2m, 2m] of these classes, float32."""
        for conv in self.convs:
            x = conv(x)
        # What follows has four times as many channels. So it takes some RoIs at a time, and is computed again for
        # gradients.
        predict, count = self._predict, self.AT_ONCE
        if torch.is_grad_enabled() and x.requires_grad:
            predict = partial(checkpoint, self._predict, use_reentrant=False, preserve_rng_state=False)
            count = self.RECOMPUTED
        elif is_exporting():  # another program has any number of RoIs
            return self._predict(x, class_ids)
        return torch.cat([predict(*part) for part in zip(x.split(count), class_ids.split(count), strict=True)])

    def _predict(self, x: Tensor, class_ids: Tensor) -> Tensor:
        side = x.shape[-1]
        x = self.upsample(x)  # [R, 4 * C, m, m]
        weight = self.mask_logits.weight[class_ids, :, 0].to(x.dtype)  # [R, C, 1]
        cells = x.permute(0, 2, 3, 1).reshape(x.shape[0], 4 * side * side, weight.shape[1])  # [R, m * m * (dy, dx), C]
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

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, width = config.TOP_DOWN_PYRAMID_SIZE, config.MASKIOU_HEAD_CHANNELS
        self.convs = nn.ModuleList([ConvOfTwo((channels, 1), width, 3, relu=True)])
        self.convs.extend(Conv(width, width, 3, stride, relu=True) for stride in (1, 1, 2))
        fc_width, cells = config.MASKIOU_FC_LAYERS_SIZE, math.ceil(config.MASK_POOL_SIZE / 2) ** 2
        self.fcs = nn.ModuleList([Linear(width, fc_width, cells, relu=True), Linear(fc_width, fc_width, relu=True)])
        self.maskious = Linear(fc_width, config.NUM_CLASSES, is_exact=True)

    def forward(self, x: Tensor, mask_logits: Tensor) -> Tensor:
        """RoI features [R, C, m, m] and mask_logits [R, 2m, 2m] to maskious [R, K], unbounded, float32."""
        probs = F.max_pool2d(mask_logits[:, None].sigmoid(), 2)  # [R, 1, m, m]
        x = self.convs[0](x, probs.to(x.dtype))
        for conv in self.convs[1:]:
            x = conv(x)
        for fc in self.fcs:
            x = fc(x)
        return self.maskious(x)


############################################################
#  Training Targets
############################################################


class RpnSample(NamedTuple):
    """The anchors that the RPN learns from."""

    anchors: Tensor  # [S], indices into the batch's B x A anchors, ascending
    matched: Tensor  # [S], the object of each, or BACKGROUND
    count: Tensor  # scalar, the divisor of the RPN's losses
    positives: int | None = None  # how many of them belong to objects; None: whoever needs it counts
    levels: Sequence[int] | None = None  # how many are of each level; None likewise


class _Teaches(NamedTuple):
    """Whose losses a step computes."""

    detector: bool
    maskiou: bool


class RoiSample(NamedTuple):
    """The RoIs that the heads learn from."""

    rois: Tensor  # [S, 4], shrunk
    batch_index: Tensor  # [S]
    matched: Tensor  # [S], the object of each, or BACKGROUND
    positives: int | None = None  # how many of them belong to objects; None: whoever needs it counts


BACKGROUND, IGNORED = -1, -2
_CHUNK = 2048  # boxes whose overlaps are computed at a time on a CPU: they stay in its cache
_PAIRS = 1 << 23  # of boxes and objects whose overlaps a GPU computes at a time: 32 MB for each of a few temporaries


def assign(
    boxes: Tensor,
    gt_boxes: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality_iou: float | None = None,
    steals: bool = True,
) -> Tensor:
    """The object that each box belongs to.

    boxes: [N, 4]. gt_boxes: [G, 4].
    positive_iou, negative_iou: a box belongs to the object that it overlaps most if their IoU is at least
        positive_iou. It is BACKGROUND if that IoU is below negative_iou, and IGNORED between the two.
    low_quality_iou: no object shall be without a box. So the boxes that overlap an object most, ties included, are
        positive too if that IoU is at least low_quality_iou and above 0. None switches this off.
    steals: True: such a box goes to the object that needs it (if several do, to the last of them). False: it goes to
        the object that it overlaps most itself.

    Returns: int64 [N], an index into gt_boxes, BACKGROUND or IGNORED.
    Source: Faster R-CNN (arXiv:1506.01497), section 3.1.2; mmdetection's MaxIoUAssigner.
    """
    if len(gt_boxes) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    rule = _compare_all if runtime.avoids_waits(boxes.device) else _compare_near
    best, nearest, wanted = rule(boxes, gt_boxes, low_quality_iou, steals)
    matched = torch.where(best >= positive_iou, nearest, IGNORED).masked_fill_(best < negative_iou, BACKGROUND)
    return matched if wanted is None else torch.where(wanted >= 0, wanted, matched)


def _compare_all(
    boxes: Tensor, gt_boxes: Tensor, low_quality_iou: float | None, steals: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What assign() needs to know, from the overlaps of all pairs: more work than _compare_near, and no waiting.

    Returns: of each box, its largest IoU [N], the object [N] that it overlaps so, and the object [N] that needs it, or
        BACKGROUND. The last one is None without low_quality_iou.
    """
    chunks = boxes.split(max(1, _PAIRS // len(gt_boxes)))
    overlaps = (utils.compute_overlaps(chunk, gt_boxes) for chunk in chunks)  # [n, G] each, one at a time
    columns = [(*each.max(dim=1), each.amax(dim=0)) for each in overlaps]
    best, nearest, top = (list(column) for column in zip(*columns, strict=True))
    best, nearest, top = torch.cat(best), torch.cat(nearest), torch.stack(top).amax(dim=0)
    if low_quality_iou is None:
        return best, nearest, None
    top = torch.where((top >= low_quality_iou) & (top > 0), top, math.inf)  # [G]
    objects, wanted = torch.arange(len(gt_boxes), device=boxes.device), []
    for chunk in chunks:
        is_best = utils.compute_overlaps(chunk, gt_boxes) == top  # [n, G]
        wanted.append(torch.where(is_best, objects, BACKGROUND).amax(dim=1))  # the last of several objects
    wanted = torch.cat(wanted)
    return best, nearest, wanted if steals else torch.where(wanted >= 0, nearest, wanted)


def _compare_near(
    boxes: Tensor, gt_boxes: Tensor, low_quality_iou: float | None, steals: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """_compare_all on a CPU: the overlaps of some boxes at a time with the objects near them."""
    best, nearest = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    top_of_chunks = []
    for start in range(0, len(boxes), _CHUNK):
        chunk = boxes[start : start + _CHUNK]
        near = _touching(chunk, gt_boxes)  # neighbouring anchors touch few objects
        top = boxes.new_zeros(len(gt_boxes))
        if len(near):
            overlaps = utils.compute_overlaps(chunk, gt_boxes[near])  # [n, objects near]
            best[start : start + _CHUNK], index = overlaps.max(dim=1)
            nearest[start : start + _CHUNK] = near[index]
            top[near] = overlaps.amax(dim=0)
        top_of_chunks.append(top)
    if low_quality_iou is None:
        return best, nearest, None
    wanted = torch.full_like(nearest, BACKGROUND)
    for box, gt in _best_pairs(boxes, gt_boxes, torch.stack(top_of_chunks), low_quality_iou):
        wanted.scatter_reduce_(0, box, gt if steals else nearest[box], "amax")  # the last of several objects
    return best, nearest, wanted


def _touching(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Indices of the objects that touch the smallest box around all `boxes`."""
    low, high = boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)
    return ((gt_boxes[:, 2:] > low) & (gt_boxes[:, :2] < high)).all(dim=1).nonzero()[:, 0]


def _best_pairs(
    boxes: Tensor, gt_boxes: Tensor, best_of_object: Tensor, minimum_iou: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of box and object, [n] and [n], of all pairs in which no other box overlaps the object more.

    best_of_object: [chunks, G], the largest IoU of each object with the boxes of each chunk of _CHUNK boxes.
    minimum_iou: pairs with a smaller IoU are left out, and those with none.
    """
    top = best_of_object.amax(dim=0)
    has_best = (best_of_object == top) & (top >= minimum_iou) & (top > 0)  # [chunks, G]
    for chunk in has_best.any(dim=1).nonzero()[:, 0].tolist():
        objects = has_best[chunk].nonzero()[:, 0]
        start = chunk * _CHUNK
        overlaps = utils.compute_overlaps(boxes[start : start + _CHUNK], gt_boxes[objects])
        box, column = (overlaps == top[objects]).nonzero(as_tuple=True)
        yield box + start, objects[column]


def share_in_crowd(boxes: Tensor, crowd_boxes: Tensor) -> Tensor:
    """The largest share of each box [N, 4] that lies in one crowd [C, 4]: [N] in [0, 1]."""
    if len(crowd_boxes) == 0:
        return boxes.new_zeros(len(boxes))
    low = torch.maximum(boxes[:, None, :2], crowd_boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], crowd_boxes[:, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2).amax(dim=1)  # [N]
    return inside / utils.box_area(boxes).clamp(min=1e-6)


def _ignore_in_crowds(matched: Tensor, boxes: Tensor, crowd_boxes: Tensor, config: Config) -> Tensor:
    """matched [N], in which BACKGROUND boxes that lie in a crowd by more than CROWD_OVERLAP become IGNORED."""
    if config.CROWD_OVERLAP is None or len(crowd_boxes) == 0:
        return matched
    is_in_crowd = share_in_crowd(boxes, crowd_boxes) > config.CROWD_OVERLAP
    return torch.where((matched == BACKGROUND) & is_in_crowd, IGNORED, matched)


def random_sample(candidates: Tensor, batch_index: Tensor, limits: Tensor, seeds: Tensor) -> Tensor:
    """A random sample of each image's candidates, without replacement.

    The sample of an image depends on the image's seed and candidates only, and is the same on every device. The other
    images of the batch, the number of processes and a resumed training do not change it.

    candidates: bool [N]. batch_index: [N], the image of each, ascending. limits: [B], the largest size of each image's
        sample. seeds: int64 [B].

    Returns: bool [N].
    """
    choose = _choose_by_sorting if runtime.avoids_waits(candidates.device) else _choose_of_each
    return choose(candidates, batch_index, limits, seeds)


def _choose_by_sorting(candidates: Tensor, batch_index: Tensor, limits: Tensor, seeds: Tensor) -> Tensor:
    """random_sample() without waiting: all boxes are sorted, whether they are candidates or not."""
    starts, counts_before = _starts_and_counts(candidates, batch_index, len(limits))
    rank = counts_before[:-1] - counts_before[starts[:-1]][batch_index]  # of a candidate among those of its image
    order = _hash(_hash(seeds)[batch_index] + rank).argsort()
    group = 2 * batch_index + ~candidates
    order = order[group[order].argsort(stable=True)]  # image by image, each image's candidates first, shuffled
    place = torch.arange(len(order), device=order.device) - starts[batch_index]
    return torch.zeros_like(candidates).scatter(0, order, place < limits[batch_index]) & candidates


def _choose_of_each(candidates: Tensor, batch_index: Tensor, limits: Tensor, seeds: Tensor) -> Tensor:
    """random_sample() on a CPU: nothing is computed for boxes that are no candidates, and nothing is sorted."""
    index = candidates.nonzero()[:, 0]
    image = batch_index[index]
    counts = torch.bincount(image, minlength=len(limits))
    rank = torch.arange(len(index)) - (counts.cumsum(0) - counts)[image]
    keys = _hash(_hash(seeds)[image] + rank)
    is_sampled, counts = torch.zeros_like(candidates), counts.tolist()
    for of_image, of_keys, limit in zip(index.split(counts), keys.split(counts), limits.tolist(), strict=True):
        smallest = of_keys.topk(max(0, min(limit, len(of_keys))), largest=False, sorted=False).indices
        is_sampled.index_fill_(0, of_image[smallest], True)
    return is_sampled


def _starts_and_counts(flags: Tensor, batch_index: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Where the boxes of each image start [B + 1], and how many flags are set before each box [N + 1].

    flags: bool [N]. batch_index: [N], ascending.
    """
    starts = torch.searchsorted(batch_index.contiguous(), torch.arange(images + 1, device=flags.device))
    return starts, F.pad(flags.cumsum(0), (1, 0))


def _hash(numbers: Tensor) -> Tensor:
    """int64 to random-looking int64, the same on every device. Source: splitmix64's finaliser, by Steele et al."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        numbers = (numbers ^ ((numbers >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return numbers


def _sample_matched(
    matched: Tensor, batch_index: Tensor, count: int, positives: int, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Random samples of the boxes that belong to objects, and of the background: bool [N] and [N].

    matched: [N], the object of each box, BACKGROUND or IGNORED. positives: the largest number of objects' boxes in an
        image. count: the largest number of both together.
    """
    limits = torch.full_like(seeds, positives)
    positive = random_sample(matched >= 0, batch_index, limits, seeds)
    starts, counts_before = _starts_and_counts(positive, batch_index, len(seeds))
    limits = count - counts_before[starts].diff()
    negative = random_sample(matched == BACKGROUND, batch_index, limits, ~seeds)
    return positive, negative


def match_anchors(anchors: Tensor, windows: Tensor, targets: Targets, config: Config) -> Tensor:
    """The object of each anchor in each image: int64 [B, A], indices into targets.boxes, BACKGROUND or IGNORED.

    anchors: [A, 4]; windows: [B, 4]; both shrunk.
    """
    dialect, rows = config.dialect, []
    gt_boxes, crowd_boxes = shrink(targets.boxes, config), shrink(targets.crowd_boxes, config)
    low_quality = config.RPN_NEGATIVE_IOU if dialect.low_quality_steals else 0.0
    for window, objects, crowds in zip(windows, targets.objects_of_images(), targets.crowds_of_images(), strict=True):
        matched = assign(
            anchors,
            gt_boxes[objects],
            config.RPN_POSITIVE_IOU,
            config.RPN_NEGATIVE_IOU,
            low_quality,
            dialect.low_quality_steals,
        )
        matched = torch.where(matched >= 0, _rows_of(objects, matched), matched)
        matched = _ignore_in_crowds(matched, anchors, crowd_boxes[crowds], config)
        rows.append(matched.masked_fill(~_belongs_to_image(anchors, window, config), IGNORED))
    return torch.stack(rows)


def _rows_of(values: Tensor, index: Tensor) -> Tensor:
    """values[index] [N]. Where the index is negative, and if there are no values, the result means nothing."""
    return values[index.clamp(min=0)] if len(values) else index


def _belongs_to_image(anchors: Tensor, window: Tensor, config: Config) -> Tensor:
    """Whether an image may teach each anchor: bool [A].

    It may not if the anchor's cell lies in the padding that brings the image to the size of the largest one in the
    batch; nor, in dialects without anchors_outside, if the anchor reaches beyond the image.

    anchors: [A, 4]; window: [4]; both shrunk.
    """
    if not config.dialect.anchors_outside:
        pixel = 1 if config.dialect.coordinates == "inclusive" else 0
        return ((anchors[:, :2] >= window[:2]) & (anchors[:, 2:] - pixel < window[2:])).all(dim=1)
    divisor = {"shorter": config.IMAGE_SIZE_DIVISOR, "pad64": 64, "none": 1}.get(config.IMAGE_RESIZE_MODE)
    if divisor is None:  # all images of a batch have one size
        return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    anchors, window = unshrink(anchors, config), unshrink(window, config)
    padded = ((window[2:] - window[:2]) / divisor).ceil() * divisor
    return ((anchors[:, :2] + anchors[:, 2:]) / 2 < padded).all(dim=1)


def sample_anchors(
    matched: Tensor, seeds: Tensor, config: Config, level_sizes: Sequence[int] | None = None
) -> RpnSample:
    """The anchors of a batch that the RPN learns from. At most half of them belong to objects.

    matched: [B, A], of match_anchors. seeds: [B]. level_sizes: the anchors of each level, A together, if the sample's
        `levels` are wanted.
    """
    images, anchors = matched.shape
    count = config.RPN_TRAIN_ANCHORS_PER_IMAGE
    image = torch.arange(images, device=matched.device)[:, None].expand_as(matched).flatten()
    flat = matched.flatten()
    positive, negative = _sample_matched(flat, image, count, count // 2, seeds)
    drawn = torch.stack([positive, negative]).view(2, images, anchors)
    sums = torch.stack([level.sum(dim=2) for level in drawn.split(level_sizes or [anchors], dim=2)], dim=2)  # [2, B, L]
    divisor = sums.sum(dim=2)  # [2, B]
    if config.dialect.rpn_counts_missing:
        divisor = divisor.clamp(min=1)
    total = divisor.new_full((), images * count) if config.dialect.rpn_counts_quota else divisor.sum()
    positives, negatives = sums.sum(dim=1).tolist()  # waits for a GPU, for all counts together
    levels = [sum(pair) for pair in zip(positives, negatives, strict=True)]
    chosen = _indices(positive | negative, sum(levels))
    return RpnSample(chosen, flat[chosen], total.float(), sum(positives), levels if level_sizes else None)


def _indices(flags: Tensor, count: int | None = None) -> Tensor:
    """The indices of the flags [N] that are set, ascending: int64 [count].

    count: how many are set. None: they are counted, for which the program waits for a GPU.
    """
    return flags.nonzero()[:, 0] if count is None else torch.nonzero_static(flags, size=count)[:, 0]


def sample_rois(rois: Tensor, batch_index: Tensor, targets: Targets, config: Config) -> RoiSample:
    """The RoIs that the heads learn from: a sample of the proposals and of the objects' own boxes.

    At most ROI_POSITIVE_RATIO of an image's TRAIN_ROIS_PER_IMAGE belong to objects; the others are background.

    rois: [R, 4], shrunk; batch_index: [R].

    Returns: the RoIs of one image after another.
    """
    gt_boxes, crowd_boxes = shrink(targets.boxes, config), shrink(targets.crowd_boxes, config)
    limit = config.ROI_POSITIVE_IOU
    low_quality = limit if config.dialect.low_quality_rois else None
    images = torch.arange(len(targets.seeds), device=rois.device)
    counts = (batch_index == images[:, None]).sum(dim=1).tolist()  # [B]; waits for a GPU
    rois_of_images = rois[batch_index.argsort(stable=True)].split(counts)
    parts, batch_index = [], []  # parts: boxes and their objects, of one image after another
    rows = zip(images, rois_of_images, targets.objects_of_images(), targets.crowds_of_images(), strict=True)
    for image, boxes, objects, crowds in rows:
        matches = assign(boxes, gt_boxes[objects], limit, limit, low_quality)
        matches = torch.where(matches >= 0, _rows_of(objects, matches), matches)
        proposals = boxes, _ignore_in_crowds(matches, boxes, crowd_boxes[crowds], config)
        own_boxes = gt_boxes[objects], objects
        parts += (own_boxes, proposals) if config.dialect.gt_rois_first else (proposals, own_boxes)
        batch_index.append(image.expand(len(boxes) + len(objects)))
    rois, matched = (torch.cat(column) for column in zip(*parts, strict=True))
    batch_index = torch.cat(batch_index)
    count = config.TRAIN_ROIS_PER_IMAGE
    positives = int(count * config.ROI_POSITIVE_RATIO)
    positive, negative = _sample_matched(matched, batch_index, count, positives, targets.seeds + 1)
    positives, negatives = torch.stack([positive, negative]).sum(dim=1).tolist()  # waits for a GPU
    chosen = _indices(positive | negative, positives + negatives)
    return RoiSample(rois[chosen], batch_index[chosen], matched[chosen], positives)


def build_delta_targets(boxes: Tensor, gt_boxes: Tensor, std_dev: Sequence[float]) -> Tensor:
    """The deltas by which decode_boxes turns boxes [P, 4] into gt_boxes [P, 4]: [P, (dy, dx, dh, dw)]."""
    return utils.box_refinement(boxes, gt_boxes) / runtime.constant(std_dev, boxes)


def build_mask_targets(rois: Tensor, matched: Tensor, targets: Targets, size: int) -> Tensor:
    """The mask of each RoI's object, seen through the RoI: float32 [P, size, size], 0 or 1.

    rois: [P, 4], pixels of the input. matched: [P], the object of each.
    Source: mmdetection, whose RoIAlign of the full bitmap this equals.
    """
    if targets.mini_masks:
        rois = _in_mini_mask(rois, matched, targets)
    return (crop_masks(targets.masks, rois, matched, size) >= 0.5).float()


def _in_mini_mask(rois: Tensor, matched: Tensor, targets: Targets) -> Tensor:
    """RoIs in pixels of their objects' mini masks."""
    boxes, sides = targets.boxes[matched], targets.masks.sizes[matched].to(rois.dtype)  # [P, 4], [P, 2]
    scale = sides / (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    return (rois - boxes[:, :2].repeat(1, 2)) * scale.repeat(1, 2)


@torch.no_grad()
def refine_objects(
    objects: RoiSample, box_deltas: Tensor, targets: Targets, windows: Tensor, config: Config
) -> RoiSample:
    """RoIs of objects, refined by the box head's deltas for the object's class. Detection makes masks of such boxes.

    box_deltas: [P, K, 4]. windows: [B, 4], of the images in pixels of the input.

    Returns: the same objects with refined RoIs, clipped to their images. An RoI of which clipping leaves nothing stays
        as it was. Carries no gradient.
    """
    rois, image, matched = objects[:3]
    deltas = box_deltas[torch.arange(len(rois), device=rois.device), targets.class_ids[matched]].float()  # [P, 4]
    refined = decode_boxes(rois, deltas, config.BBOX_STD_DEV, config)
    refined = clip_to_windows(refined, shrink(windows, config)[image], config)
    return objects._replace(rois=torch.where(_larger_than(refined, 0)[:, None], refined, rois))


@torch.no_grad()
def match_detections(found: Detections, targets: Targets, config: Config) -> tuple[RoiSample, Tensor]:
    """The best detections of a batch as RoIs, each with the object of its class that it overlaps most, or BACKGROUND.

    Nobody knows whether those are wrong whose class is not labelled in the image, or that lie in a crowd: they are left
    out. found: boxes, shrunk, with classes and scores.

    Returns: P RoIs, as many at most as a batch may have RoIs of objects; their classes, [P].
    """
    order = found.scores.argsort(descending=True, stable=True)
    boxes, image, class_ids = found.boxes[order], found.batch_index[order], found.class_ids[order]
    matched = torch.full_like(image, BACKGROUND)
    if len(targets.boxes):
        overlaps = utils.compute_overlaps(boxes, shrink(targets.boxes, config))  # [N, G]
        is_same = (image[:, None] == targets.batch_index) & (class_ids[:, None] == targets.class_ids)
        overlap, closest = overlaps.masked_fill(~is_same, 0).max(dim=1)
        matched = torch.where(overlap > 0, closest, matched)
    crowd_boxes = shrink(targets.crowd_boxes, config)
    for number, crowds in enumerate(targets.crowds_of_images()):
        outside = _ignore_in_crowds(matched, boxes, crowd_boxes[crowds], config)
        matched = torch.where(image == number, outside, matched)
    if targets.labelled is not None:
        matched = torch.where(targets.labelled[image, class_ids], matched, IGNORED)
    most = len(targets.seeds) * int(config.TRAIN_ROIS_PER_IMAGE * config.ROI_POSITIVE_RATIO)
    best = _indices(matched != IGNORED)[:most]
    return RoiSample(boxes[best], image[best], matched[best], None), class_ids[best]


def inside_fractions(rois: Tensor, matched: Tensor, targets: Targets, config: Config) -> Tensor:
    """The fraction of each RoI's object that lies inside of the RoI: [P] in [0, 1].

    rois: [P, 4], pixels of the input. matched: [P], the object of each.
    """
    if targets.mini_masks:
        rois = _in_mini_mask(rois, matched, targets)
    canvas = targets.masks.canvases[matched].to(rois.dtype)  # [P, 2]
    whole = mask_areas(targets.masks, torch.cat([torch.zeros_like(canvas), canvas], dim=1), matched)
    if config.MASKIOU_EXACT_AREA:
        return mask_areas(targets.masks, rois, matched) / whole.clamp(min=1e-7)
    corners = torch.minimum(rois.trunc().clamp(min=0), canvas.repeat(1, 2))
    low, high = corners[:, :2], corners[:, 2:]
    inside = mask_areas(targets.masks, torch.cat([low, torch.maximum(high, low + 1)], dim=1), matched)
    return inside / (whole + 1e-7) + 1e-7


def build_maskiou_targets(
    mask_logits: Tensor, target_masks: Tensor, inside_fraction: Tensor, threshold: float = 0.0
) -> Tensor:
    """IoU of each predicted mask with its whole ground-truth instance.

    An RoI may cut an instance off, so the ground-truth area seen inside the RoI is divided by the fraction of the
    instance that lies inside it.

    mask_logits: [P, M, M] logits of the target class, one mask for each positive RoI.
    target_masks: [P, M, M] float, 0 or 1, ground truth cropped to the RoI.
    inside_fraction: [P] in (0, 1], instance area inside the RoI / whole area.
    threshold: MASKIOU_TARGET_LOGIT.

    Returns: [P] in [0, 1]. Carries no gradient.
    Raises: ValueError if the predicted and target masks differ in shape.
    Source: Mask Scoring R-CNN (arXiv:1903.00241), training of the MaskIoU head.
    """
    if mask_logits.shape != target_masks.shape:
        raise ValueError(
            f"mask_logits {list(mask_logits.shape)} and target_masks {list(target_masks.shape)} must have the same "
            "shape [P, M, M]; were the logits indexed by class first?"
        )
    pred_masks = (mask_logits.detach() > threshold).float()  # [P, M, M]
    inter = (pred_masks * target_masks).sum(dim=(1, 2))  # [P]
    gt_area = target_masks.sum(dim=(1, 2)) / inside_fraction.clamp(min=1e-10)  # [P], whole instance
    union = pred_masks.sum(dim=(1, 2)) + gt_area - inter  # [P]
    return inter / union.clamp(min=1)


############################################################
#  Losses
############################################################


class LossSums(NamedTuple):
    """Losses before they are averaged. Scalars of one dtype, by the names of the losses."""

    sums: dict[str, Tensor]  # over a batch
    counts: dict[str, Tensor]  # the divisor of each sum


def rpn_losses(
    logits: Tensor, deltas: Tensor, anchors: Tensor, sample: RpnSample, targets: Targets, config: Config
) -> LossSums:
    """rpn_class_loss: does the RPN tell objects from background? rpn_bbox_loss: does it move anchors onto objects?

    logits, deltas: of the sampled anchors, [S] and [S, 4]. anchors: all of them, [A, 4], shrunk.
    """
    is_object = sample.matched >= 0
    class_sum = F.binary_cross_entropy_with_logits(logits, is_object.float(), reduction="sum")
    positive = _indices(is_object, sample.positives)
    gt_boxes = shrink(targets.boxes, config)[sample.matched[positive]]
    boxes = anchors[sample.anchors[positive] % len(anchors)]
    target_deltas = build_delta_targets(boxes, gt_boxes, config.RPN_BBOX_STD_DEV)  # [P, 4]
    bbox_sum = F.smooth_l1_loss(deltas[positive], target_deltas, reduction="sum", beta=config.dialect.rpn_beta)
    return LossSums(
        {"rpn_class_loss": class_sum, "rpn_bbox_loss": bbox_sum},
        {"rpn_class_loss": sample.count, "rpn_bbox_loss": sample.count},
    )


def box_losses(
    class_logits: Tensor, box_deltas: Tensor, sample: RoiSample, targets: Targets, config: Config
) -> LossSums:
    """mrcnn_class_loss: does the box head tell the classes? mrcnn_bbox_loss: does it move RoIs onto their objects?

    class_logits: [S, K]. box_deltas: [S, K, 4].

    In an image of which only some classes are labelled, what looks like background may be an object of another class.
    There a background RoI is background among the labelled classes only: the logits of the others leave its softmax,
    and are pushed neither up nor down. An object is known to be of its class and of no other, in every image.
    """
    is_object = sample.matched >= 0
    class_ids = torch.where(is_object, _rows_of(targets.class_ids, sample.matched), 0)  # [S]
    if targets.labelled is not None:
        competes = targets.labelled[sample.batch_index] | is_object[:, None]  # [S, K]
        class_logits = class_logits.masked_fill(~competes, -torch.inf)
    class_sum = F.cross_entropy(class_logits, class_ids, reduction="sum")
    positive = _indices(is_object, sample.positives)
    gt_boxes = shrink(targets.boxes, config)[sample.matched[positive]]
    target_deltas = build_delta_targets(sample.rois[positive], gt_boxes, config.BBOX_STD_DEV)  # [P, 4]
    deltas = box_deltas[positive, class_ids[positive]]  # [P, 4]
    bbox_sum = F.smooth_l1_loss(deltas, target_deltas, reduction="sum", beta=config.dialect.box_beta)
    count = torch.full_like(class_sum, len(sample.rois))
    return LossSums(
        {"mrcnn_class_loss": class_sum, "mrcnn_bbox_loss": bbox_sum},
        {"mrcnn_class_loss": count, "mrcnn_bbox_loss": count},
    )


def mask_loss(mask_logits: Tensor, target_masks: Tensor) -> LossSums:
    """mrcnn_mask_loss: are the masks of the objects' classes right? mask_logits, target_masks: [P, M, M]."""
    total = F.binary_cross_entropy_with_logits(mask_logits, target_masks, reduction="sum")
    count = torch.full_like(total, target_masks.numel())
    return LossSums({"mrcnn_mask_loss": total}, {"mrcnn_mask_loss": count})


def maskiou_loss(
    maskious: Tensor, class_ids: Tensor, target_maskious: Tensor, counts: Tensor, config: Config
) -> LossSums:
    """mrcnn_maskiou_loss: are the predicted IoUs of the masks right? Half of the squared error.

    maskious: [P, K], predicted. class_ids: [P]. target_maskious: [P], the true IoUs. counts: bool [P], whether the
        mask has a true IoU and counts.
    """
    if not config.MASKIOU_KEEP_ZERO_TARGETS:
        counts = counts & (target_maskious > 0)
    if config.MASKIOU_LOSS_CLASSES == "all":
        expected = torch.zeros_like(maskious).scatter(1, class_ids[:, None], target_maskious[:, None])  # [P, K]
        errors = (maskious - expected)[:, 1:].square().sum(dim=1)
    else:
        errors = (maskious.gather(1, class_ids[:, None])[:, 0] - target_maskious).square()
    total = 0.5 * torch.where(counts, errors, 0).sum()
    return LossSums({"mrcnn_maskiou_loss": total}, {"mrcnn_maskiou_loss": counts.sum().to(total.dtype)})


def average_losses(parts: Sequence[LossSums], config: Config) -> dict[str, Tensor]:
    """The losses by name: sums divided by counts, times LOSS_WEIGHTS.

    In a distributed training, the counts are averaged over the processes first. Then the average of the processes'
    gradients is the gradient that one process with all images would compute.
    """
    sums = {name: value for part in parts for name, value in part.sums.items()}
    counts = {name: value for part in parts for name, value in part.counts.items()}
    shared = runtime.world_mean(torch.stack([counts[name] for name in sums]).detach())
    losses = {}
    for name, count in zip(sums, shared, strict=True):
        losses[name] = config.LOSS_WEIGHTS.get(name, 1.0) * sums[name] / torch.where(count > 0, count, 1)
    return losses


############################################################
#  Detection
############################################################


class _Discarded(dict):
    """A dict that keeps nothing. Where the caller gives no `out`, intermediates would only fill memory."""

    def update(self, *_: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass


def refine_rois(
    rois: Tensor, batch_index: Tensor, class_logits: Tensor, box_deltas: Tensor, windows: Tensor, config: Config
) -> Tensor:
    """RoIs [R, 4], shrunk, as the box head refines them for their most probable class, for its next look.

    The other arguments are those of detect_boxes. An RoI of which clipping leaves nothing stays as it was.
    """
    if class_logits.shape[1] < 2:  # background alone
        return rois
    best = class_logits[:, 1:].argmax(dim=1) + 1
    deltas = box_deltas.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
    refined = decode_boxes(rois, deltas, config.BBOX_STD_DEV, config)
    refined = clip_to_windows(refined, windows[batch_index], config)
    return torch.where(_larger_than(refined, 0)[:, None], refined, rois)


def mean_logits(before: Tensor, logits: Tensor, number: int) -> Tensor:
    """Logits [R, K] of the mean probability over looks: before is that of the first ones, logits of look `number`."""
    pair = before.log_softmax(dim=1) + math.log(1 - 1 / number), logits.log_softmax(dim=1) - math.log(number)
    return torch.logaddexp(*pair)


def detect_boxes(
    class_logits: Tensor,
    box_deltas: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    windows: Tensor,
    config: Config,
    most_rois: int | None = None,
) -> Detections:
    """The RoIs' classes and boxes above the threshold, after NMS within each class.

    class_logits: [R, K]. box_deltas: [R, K, 4]. rois: [R, 4], shrunk. windows: [B, 4], shrunk.
    most_rois: no image has more RoIs; None: it may have all. A GPU needs less memory where it is known.
    """
    probs = class_logits.softmax(dim=1)
    if config.dialect.drops_infinite:
        probs = probs.masked_fill(~box_deltas.isfinite().all(dim=2).all(dim=1)[:, None], 0)
    roi, class_ids, scores = _candidates(probs, config)
    boxes = decode_boxes(rois[roi], box_deltas[roi, class_ids], config.BBOX_STD_DEV, config)
    image = batch_index[roi]
    boxes = clip_to_windows(boxes, windows[image], config)
    scores = scores.masked_fill(~_larger_than(boxes, config.dialect.min_detection_side), -math.inf)  # ignored by NMS
    classes, threshold, limit = config.NUM_CLASSES, config.DETECTION_NMS_THRESHOLD, config.DETECTION_MAX_INSTANCES
    groups = image * classes + class_ids
    keep = _best_of_images(boxes, scores, groups, windows.shape[0], classes, threshold, limit, most_rois)
    return Detections(boxes[keep], image[keep], class_ids[keep], scores[keep])


def _candidates(probs: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """The RoI [N], class [N] and score [N] of each pair that may become a detection. probs: [R, K].

    Asking a GPU how many pairs these are would take a wait. There the result has as many rows as could pass the
    threshold, and the score -infinity where a row does not.
    """
    threshold, of_every_class = config.DETECTION_MIN_CONFIDENCE, config.dialect.detections_of == "every class"
    if of_every_class:
        best, class_of = probs[:, 1:], None
        passes = best > threshold  # [R, K - 1]
    else:
        best, class_of = probs.max(dim=1)
        passes = (class_of > 0) & (best >= threshold)  # [R]
    if not runtime.avoids_waits(probs.device):
        roi, *class_ids = passes.nonzero(as_tuple=True)
        class_ids = class_ids[0] + 1 if of_every_class else class_of[roi]
        return roi, class_ids, probs[roi, class_ids]
    best = best.masked_fill(~passes, -math.inf)
    if of_every_class:
        # Probabilities add up to 1, so no more classes of an RoI can pass. 1.001 is for rounding.
        most = min(best.shape[1], int(1.001 / threshold)) if threshold > 0 else best.shape[1]
        class_of = best.topk(most, dim=1).indices.sort(dim=1).values  # in the order of nonzero(), for equal scores
        best, class_of = best.gather(1, class_of), class_of + 1  # [R, most]
    else:
        best, class_of = best[:, None], class_of[:, None]
    roi = torch.arange(len(probs), device=probs.device)[:, None].expand_as(best)
    return roi.flatten(), class_of.flatten(), best.flatten()


def mask_scores(scores: Tensor, maskious: Tensor | None, config: Config) -> Tensor:
    """How good class and mask together are: [N], scores x maskious, or the scores if no IoU is predicted."""
    if maskious is None:
        return scores
    return scores * (maskious.clamp(0, 1) if config.MASKIOU_CLAMP else maskious)


############################################################
#  Mask Scoring R-CNN
############################################################


UNTRAINED = "untrained"  # the source of a model that no checkpoint was loaded into
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Layers with a row, or several, for each class.
_CLASS_LAYERS = ("box_head.class_logits", "box_head.box_deltas", "mask_head.mask_logits", "maskiou_head.maskious")
# What train_model's `layers` name: a pattern of modules or parameters. FROZEN_STAGES stay frozen in any case.
_HEADS = "fpn|rpn|box_head|mask_head|maskiou_head"
TRAINABLE = {
    "all": ".*",
    "heads": _HEADS,
    "3+": rf"backbone\.layer[234]|{_HEADS}",
    "4+": rf"backbone\.layer[34]|{_HEADS}",
    "5+": rf"backbone\.layer4|{_HEADS}",
    "detector": "(?!maskiou_head).*",
    "maskiou": "maskiou_head",
}
# Matterport's names for the layers that samples exclude.
_MATTERPORT_LAYERS = {
    "mrcnn_class_logits": "box_head.class_logits",
    "mrcnn_bbox_fc": "box_head.box_deltas",
    "mrcnn_bbox": "box_head.box_deltas",
    "mrcnn_mask": "mask_head.mask_logits",
    "mrcnn_maskiou": "maskiou_head.maskious",
}


_INITIALISING = threading.RLock()  # random weights are drawn from torch's shared generator, by one thread at a time


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights that are drawn inside follow from the seed alone. The shared generators go on afterwards."""
    device = torch.empty(0).device  # the default one
    if device.type == "meta":  # draws nothing
        yield
        return
    with _INITIALISING, runtime.seeded(seed, device):
        yield


class MaskRCNN(nn.Module):
    """Mask R-CNN with mask scoring: the network, detection, weights.

    Random weights follow from config.SEED: the same settings make the same weights. The shared random generators stay
    as they are.

    config: a Config. model_dir: folder of logs and checkpoints, "logs" by default.
    mode: Matterport's calls give it; it changes nothing.
    """

    def __init__(self, config: Config, model_dir: str | Path | None = None, mode: str | None = None) -> None:
        super().__init__()
        if mode not in (None, "training", "inference"):
            raise ValueError(f"mode must be 'training' or 'inference', not {mode!r}; arguments are (config, model_dir)")
        config.validate()
        self.config = config
        self._built_with = {name: getattr(config, name) for name in settings_that(SHAPE, WEIGHTS)}
        self.model_dir = Path("logs" if model_dir is None else model_dir)
        self.class_names = list(config.CLASS_NAMES or unnamed(config.NUM_CLASSES))
        self.category_ids = list(config.CATEGORY_IDS or range(config.NUM_CLASSES))
        self.source = UNTRAINED  # where the weights come from
        self.seconds: dict[str, float] = {}  # of each part of the last detect() that ended, which wrote it whole
        self.log_dir: Path | None = None  # where training writes
        self.to_continue = ""  # what an interrupted training says of how it goes on, if not the usual
        self._start: Mapping[str, Any] | None = None  # the state of the training that the model is in
        self._decided: dict[str, tuple] = {}  # what a training decided: (value before, value since) of each setting
        self._has_new_stem = False  # its first convolution was inflated for other channels, and has to learn
        # What the user's config leaves open comes from a checkpoint, or from the data set of a training.
        numbers = list(range(config.NUM_CLASSES))
        self._open_classes = {"CLASS_NAMES"} if self.class_names == unnamed(config.NUM_CLASSES) else set()
        if config.CATEGORY_IDS is None or (self._open_classes and self.category_ids == numbers):
            self._open_classes.add("CATEGORY_IDS")
        with _seeded(config.SEED):
            self.backbone = config.BACKBONE(config) if callable(config.BACKBONE) else ResNet(config)
            self.fpn = FPN(self.backbone.channels, config.TOP_DOWN_PYRAMID_SIZE, config.FPN_NORM)
            self.rpn = RPN(config)
            self.box_head = BoxHead(config)
            self.mask_head = MaskHead(config)
            self.maskiou_head = MaskIoUHead(config) if config.USE_MASKIOU_HEAD else None
            initialise(self)

    def _check_settings(self) -> None:
        """Raises ValueError if someone changed the config so that it is wrong, or does not describe the network."""
        self.config.validate()
        for name, value in self._built_with.items():
            current = getattr(self.config, name)
            if current != value and not (callable(current) and callable(value)):  # a copied callable is another one
                raise ValueError(
                    f"model.config has {name} = {current}, but the network was built with {value}, and its weights are "
                    f"right with this only; for another {name}, make a new MaskRCNN(config)"
                )

    ### The network

    @property
    def device(self) -> torch.device:
        """The device of the weights. detect() moves images to it."""
        return self.rpn.objectness.weight.device

    def train(self, mode: bool = True) -> "MaskRCNN":
        """nn.Module's switch. Training is train_model(train_dataset, val_dataset, ...)."""
        if not isinstance(mode, bool):
            raise TypeError(
                "MaskRCNN.train(mode) is nn.Module's switch and takes a bool; to train, call "
                "model.train_model(train_dataset, val_dataset, learning_rate, epochs, layers)"
            )
        super().train(mode)
        for part in self.children():  # what does not learn stays as it is, with the statistics of norms of a BACKBONE
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(
        self, images: Images | Tensor, targets: Targets | None = None, out: dict[str, Any] | None = None
    ) -> Detections | dict[str, Tensor]:
        """Find the objects of a batch of images. With targets, compute the losses instead.

        images: Images, or pixels [B, C, H, W] without padding.
        targets: the objects that are in the images.
        out: a dict to fill with the intermediates: "backbone/c2" ..., "fpn/p2" ..., "anchors",
            "rpn/objectness_logits", "rpn/anchor_deltas", "proposals", "proposal_scores", "batch_index", "box/rois",
            "box/features", "box/class_logits", "box/box_deltas", "mask/features", "mask/logits", "maskiou/maskious".
            With targets also "targets/anchors" (RpnSample), "targets/rois" (RoiSample), "targets/masks",
            "targets/inside_fractions", "targets/maskious". Its boxes are shrunk.

        Returns: Detections. With targets, a dict of scalars, each times its LOSS_WEIGHTS: rpn_class_loss,
            rpn_bbox_loss, mrcnn_class_loss, mrcnn_bbox_loss, mrcnn_mask_loss, mrcnn_maskiou_loss. Without `out`, those
            of what does not learn may be missing: see set_trainable.
        Raises: ValueError for images or targets of another type or shape.
        """
        if not isinstance(targets, Targets | None):
            raise ValueError(f"targets must be model.Targets or None, not {type(targets).__name__}; see mold_batch")
        out = _Discarded() if out is None else out
        pixels, windows = self._check_images(images)
        image_shape = pixels.shape[2:]
        pyramid = self._features(pixels, out)
        # The RPN's losses need gradients at few anchors only: forward_at() computes them.
        with torch.set_grad_enabled(torch.is_grad_enabled() and targets is None):
            rpn_outputs = self._predict_anchors(pyramid, image_shape, out)
        if targets is not None:
            return self._losses(pyramid, rpn_outputs, windows, image_shape, targets, out)
        limits = (self.config.PRE_NMS_LIMIT, self.config.POST_NMS_ROIS_INFERENCE)
        rois, batch_index = self._proposals(rpn_outputs, windows, image_shape, limits, out)
        most_rois = self.config.POST_NMS_ROIS_INFERENCE
        detections = self._find(pyramid, rois, batch_index, windows, image_shape, out, most_rois)
        return self._masks(pyramid, detections, image_shape, out)

    def _check_images(self, images: Images | Tensor) -> Images:
        if not isinstance(images, Images):
            height, width = images.shape[2:]
            window = _row([0, 0, height, width], images.new_empty(0, dtype=torch.float32))
            images = Images(images, window.expand(images.shape[0], 4))
        pixels, windows = images
        shapes = (pixels.shape[1:2], windows.shape)
        if pixels.ndim != 4 or shapes != ((self.config.IMAGE_CHANNEL_COUNT,), (pixels.shape[0], 4)):
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

    def _predict_anchors(self, pyramid, image_shape, out) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level: objectness_logits [B, A], anchor_deltas [B, A, 4] and the anchors [A, 4], shrunk."""
        logits, deltas = self.rpn(pyramid)
        anchors = self.pyramid_anchors([tuple(level.shape[2:]) for level in pyramid], image_shape)
        assert is_exporting() or [len(level) for level in anchors] == [level.shape[1] for level in logits]
        anchors = [shrink(level, self.config) for level in anchors]
        out.update({"anchors": anchors, "rpn/objectness_logits": logits, "rpn/anchor_deltas": deltas})
        return logits, deltas, anchors

    @torch.no_grad()
    def _proposals(self, rpn_outputs, windows, image_shape, limits, out) -> tuple[Tensor, Tensor]:
        """The RPN's RoIs [R, 4], shrunk, and the image of each [R]. They carry no gradient.

        rpn_outputs: of _predict_anchors. limits: pre_nms and post_nms of propose().
        """
        if self.config.dialect.coordinates == "normalised":  # clipped to the padded image, not to the window
            windows = _row([0, 0, *image_shape], windows).expand_as(windows)
        rois, scores, batch_index = propose(*rpn_outputs, shrink(windows, self.config), self.config, *limits)
        out.update({"proposals": rois, "proposal_scores": scores, "batch_index": batch_index})
        return rois, batch_index

    def _classify(self, pyramid, rois, batch_index, image_shape, out) -> tuple[Tensor, Tensor]:
        """class_logits [R, K] and box_deltas [R, K, 4]."""
        features = pool_rois(pyramid, rois, batch_index, self.config.POOL_SIZE, image_shape, self.config)
        class_logits, box_deltas = self.box_head(features)
        out.update({"box/rois": rois, "box/features": features})
        out.update({"box/class_logits": class_logits, "box/box_deltas": box_deltas})
        return class_logits, box_deltas

    def _find(self, pyramid, rois, batch_index, windows, image_shape, out, most_rois: int | None = None) -> Detections:
        """What the box head finds in RoIs, in as many looks as BOX_HEAD_LOOKS says. No masks yet."""
        class_logits, box_deltas = self._classify(pyramid, rois, batch_index, image_shape, out)
        windows = shrink(windows, self.config)
        for number in range(2, self.config.BOX_HEAD_LOOKS + 1):
            rois = refine_rois(rois, batch_index, class_logits, box_deltas, windows, self.config)
            logits, box_deltas = self._classify(pyramid, rois, batch_index, image_shape, out)
            class_logits = out["box/class_logits"] = mean_logits(class_logits, logits, number)
        return detect_boxes(class_logits, box_deltas, rois, batch_index, windows, self.config, most_rois)

    def _masks(self, pyramid, detections: Detections, image_shape, out) -> Detections:
        """Detections with their masks and the predicted IoUs of these."""
        boxes, batch_index, class_ids = detections.boxes, detections.batch_index, detections.class_ids
        features = pool_rois(pyramid, boxes, batch_index, self.config.MASK_POOL_SIZE, image_shape, self.config)
        logits, maskious = self.mask_head(features, class_ids), None
        out.update({"mask/features": features, "mask/logits": logits})
        if self.maskiou_head is not None:
            out["maskiou/maskious"] = maskious = self.maskiou_head(features, logits)  # [N, K]
            maskious = maskious.gather(1, class_ids[:, None])[:, 0]
        return replace(detections, mask_logits=logits, maskious=maskious)

    def _losses(self, pyramid, rpn_outputs, windows, image_shape, targets: Targets, out) -> dict[str, Tensor]:
        """The losses by name, in the order of the network. Empties the pyramid. rpn_outputs: of _predict_anchors."""
        config, teaches = self.config, self._teaches(out)
        losses, box_deltas = [], None
        if teaches.detector:
            losses.append(self._rpn_losses(pyramid, rpn_outputs, windows, targets, out))
        with torch.no_grad():
            limits = (config.PRE_NMS_LIMIT_TRAINING, config.POST_NMS_ROIS_TRAINING)
            proposals, batch_index = self._proposals(rpn_outputs, windows, image_shape, limits, out)
            sample = sample_rois(proposals, batch_index, targets, config)
            found = None
            if teaches.maskiou and config.MASKIOU_DETECTIONS:
                found = self._find(pyramid, proposals, batch_index, windows, image_shape, _Discarded())
        out["targets/rois"] = sample
        if teaches.detector or (found is None and config.MASKIOU_REFINED_ROIS):
            class_logits, box_deltas = self._classify(pyramid, sample.rois, sample.batch_index, image_shape, out)
        if teaches.detector:
            losses.append(box_losses(class_logits, box_deltas, sample, targets, config))
        losses += self._mask_losses(pyramid, sample, box_deltas, found, windows, image_shape, targets, out)
        return average_losses(losses, config)

    def _teaches(self, out) -> _Teaches:
        """Whose losses are computed: those of what learns; all of them if nothing does, or if `out` is asked for."""
        head = [] if self.maskiou_head is None else list(self.maskiou_head.parameters())
        if not isinstance(out, _Discarded):
            return _Teaches(True, bool(head))
        of_head = {id(each) for each in head}
        detector = any(each.requires_grad for each in self.parameters() if id(each) not in of_head)
        maskiou = any(each.requires_grad for each in head)
        return _Teaches(detector or not maskiou, maskiou or (bool(head) and not detector))

    def _rpn_losses(self, pyramid, rpn_outputs, windows, targets: Targets, out) -> LossSums:
        config, anchors = self.config, torch.cat(rpn_outputs[2])  # [A, 4]
        with torch.no_grad():
            matched = match_anchors(anchors, shrink(windows, config), targets, config)  # [B, A]
            sample = sample_anchors(matched, targets.seeds, config, [len(level) for level in rpn_outputs[2]])
        out["targets/anchors"] = sample
        logits, deltas = self.rpn.forward_at(pyramid, sample.anchors, sample.levels)
        return rpn_losses(logits, deltas, anchors, sample, targets, config)

    def _mask_losses(
        self, pyramid, sample: RoiSample, box_deltas: Tensor | None, found: Detections | None, windows, image_shape,
        targets: Targets, out,
    ) -> list[LossSums]:  # fmt: skip
        """The losses of the mask head and of the MaskIoU head. Both learn from the RoIs of objects.

        With MASKIOU_REFINED_ROIS, the MaskIoU head judges masks in the RoIs as the box head refines them, and with
        MASKIOU_DETECTIONS in the boxes that were found.
        """
        config, teaches, positive = self.config, self._teaches(out), _indices(sample.matched >= 0, sample.positives)
        objects = RoiSample(*(column[positive] for column in sample[:3]), len(positive))
        class_ids = targets.class_ids[objects.matched]
        judged, judged_ids = objects, class_ids  # by the MaskIoU head
        if found is not None:
            judged, judged_ids = match_detections(found, targets, config)
        elif teaches.maskiou and config.MASKIOU_REFINED_ROIS:
            judged = refine_objects(objects, box_deltas[positive], targets, windows, config)
        features = self._mask_features(pyramid, objects, image_shape) if teaches.detector or judged is objects else None
        judged_features = features if judged is objects else self._mask_features(pyramid, judged, image_shape)
        pyramid.clear()  # gradients do not need it: its memory is free for the heads
        mask_logits = None if features is None else self.mask_head(features, class_ids)
        losses = []
        if teaches.detector:
            size = mask_logits.shape[-1]
            target_masks = build_mask_targets(unshrink(objects.rois, config), objects.matched, targets, size)
            out.update({"mask/features": features, "mask/logits": mask_logits, "targets/masks": target_masks})
            losses.append(mask_loss(mask_logits, target_masks))
        if teaches.maskiou:
            judged_logits = mask_logits if judged is objects else self.mask_head(judged_features, judged_ids)
            losses.append(self._maskiou_loss(judged, judged_ids, judged_features, judged_logits, targets, out))
        return losses

    def _mask_features(self, pyramid, objects: RoiSample, image_shape) -> Tensor:
        """[P, C, MASK_POOL_SIZE, MASK_POOL_SIZE], the mask heads' features of RoIs."""
        size = self.config.MASK_POOL_SIZE
        return pool_rois(pyramid, objects.rois, objects.batch_index, size, image_shape, self.config)

    def _maskiou_loss(
        self, judged: RoiSample, class_ids: Tensor, features: Tensor, mask_logits: Tensor, targets: Targets, out
    ) -> LossSums:
        """The loss of the MaskIoU head for masks that the mask head predicted in RoIs.

        judged: P RoIs; those without an object have masks of a true IoU of 0. class_ids: [P], of the masks. features,
        mask_logits: of the RoIs, [P, ...].
        """
        config, with_object = self.config, _indices(judged.matched >= 0, judged.positives)
        rois, matched = unshrink(judged.rois[with_object], config), judged.matched[with_object]
        target_masks = build_mask_targets(rois, matched, targets, mask_logits.shape[-1])
        fractions = inside_fractions(rois, matched, targets, config)
        logits = mask_logits[with_object]
        known = build_maskiou_targets(logits, target_masks, fractions, config.MASKIOU_TARGET_LOGIT)
        target_maskious = known.new_zeros(len(class_ids)).index_put((with_object,), known)  # [P]
        counts = torch.ones_like(class_ids, dtype=torch.bool)  # [P]
        if not config.MASKIOU_DETECTIONS:  # an object of which the RoI shows nothing says nothing, unless it was found
            counts = counts.index_put((with_object,), target_masks.flatten(1).any(dim=1))
        if config.MASKIOU_DETACH:
            features, mask_logits = features.detach(), mask_logits.detach()
        maskious = self.maskiou_head(features, mask_logits)  # [P, K]
        out["maskiou/maskious"] = maskious
        out.update({"targets/inside_fractions": fractions, "targets/maskious": target_maskious})
        return maskiou_loss(maskious, class_ids, target_maskious, counts, config)

    def pyramid_anchors(self, shapes: Sequence[tuple[int, int]], image_shape: Sequence[int]) -> tuple[Tensor, ...]:
        """generate_pyramid_anchors on the model's device. Others share these tensors: leave them as they are."""
        config = self.config
        if is_exporting():  # for any sizes
            return tuple(generate_pyramid_anchors(shapes, image_shape, config, self.device))
        settings = _AnchorSettings(
            tuple(config.RPN_ANCHOR_SCALES),
            tuple(config.RPN_ANCHOR_RATIOS),
            config.RPN_ANCHOR_STRIDE,
            tuple(config.BACKBONE_STRIDES),
            config.DIALECT,
        )
        levels, shared = _shared_anchors(tuple(map(tuple, shapes)), tuple(image_shape), settings, self.device)
        shared.use_here()
        return levels

    ### Training

    def train_model(
        self,
        train_dataset: Dataset,
        val_dataset: Dataset | None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        layers: str = "all",
        augmentation: Any = None,
        custom_callbacks: Sequence[Any] | None = None,
        no_augmentation_sources: Sequence[str] | None = None,
        evaluate: Callable[["MaskRCNN"], Mapping[str, float]] | None = None,
    ) -> Progress:
        """Train on a data set, from where the model is: new, with weights loaded, or in the middle of a training.

        Checkpoints, metrics and curves are written to log_dir. After load_weights of a checkpoint in model_dir, the
        training that wrote it continues, to the bit.

        The caller's Config stays as it is. If its TRAIN_BN or FROZEN_STAGES is None, or BIT_DEPTH "auto", they are
        decided here, for the whole training: model.config becomes a copy that holds the decision, and checkpoints store
        it. To change settings between two calls, change them in model.config; those of the network need a new model.

        Classes of data sets and model are matched by name: the data set follows the model, whose rows keep their order.
        CLASS_NAMES and CATEGORY_IDS that the Config leaves open come from train_dataset. Classes of val_dataset that
        the model does not know are named, and their objects count as crowds. Image files whose header cannot be read
        are named before the first step.

        train_dataset, val_dataset: prepared Datasets. The latter, which may be None, gives the validation loss.
        learning_rate: 0 or more. None takes that of SCHEDULE, scaled by the batch; without a schedule, LEARNING_RATE.
        epochs: the total, 1 or more, with those of earlier calls and of a continued training. None: as SCHEDULE says.
        layers: what learns, see set_trainable. With SCHEDULE "matterport" and without epochs, the schedule decides.
        augmentation: a callable (image, masks) -> (image, masks), or albumentations' or imgaug's, applied before
            HORIZONTAL_FLIP, SCALE_JITTER, COLOR_JITTER. no_augmentation_sources: of the Dataset; their images are not
            augmented.
        custom_callbacks: functions of (event, progress), or objects with Keras' on_epoch_end(epoch, logs).
        evaluate: model -> metrics, every EVAL_EVERY epochs, such as coco.evaluation_callback(val_dataset). The best
            checkpoint is that of the highest "mask AP", or without it of the lowest validation loss. If it has a method
            check(model), that is called before the first step.

        Returns: Progress; its `interrupted` is the signal that ended training, if one did, after saving.
        Raises: ValueError for arguments that do not fit; what training.loop.train raises.
        """
        self._check_settings()
        for name, dataset in (("train_dataset", train_dataset), ("val_dataset", val_dataset)):
            if not isinstance(dataset, Dataset) and not (name == "val_dataset" and dataset is None):
                raise ValueError(f"{name} must be a utils.Dataset, not {type(dataset).__name__}")
        _check_length(learning_rate, epochs)
        layer_pattern(layers)
        if evaluate is not None and not callable(evaluate):
            raise ValueError(
                f"evaluate must be a function of the model that returns numbers, not {type(evaluate).__name__}"
            )
        check_callbacks([] if custom_callbacks is None else custom_callbacks)
        self._take_classes(train_dataset)
        classes = map_to_model(train_dataset, self, "the training data", needs_all=True)
        val_classes = None if val_dataset is None else map_to_model(val_dataset, self, "the validation data")
        self._begin_training()
        self._decide(BIT_DEPTH=train_dataset.inspect_for(self.config))
        train_data = TrainingData(train_dataset, self.config, augmentation, no_augmentation_sources, classes=classes)
        if (objects := describe_objects(train_dataset, self.config)) and runtime.rank() == 0:
            print(objects)
        val_data = None
        if val_dataset is not None:
            val_data = TrainingData(val_dataset, self.config, augment=False, classes=val_classes)
        self._check_before_training(train_data, val_data, evaluate)
        phases, learning_rate = self._phases(learning_rate, epochs, layers)
        hooks = Hooks(
            prepare=partial(mold_batch, device=self.device, config=self.config),
            describe=self.to_checkpoint,
            evaluate=None if evaluate is None else lambda epoch: evaluate(self),
            callbacks=custom_callbacks or (),
            **({"to_continue": self.to_continue} if self.to_continue else {}),
        )
        if self.epoch >= phases[-1].epochs and runtime.rank() == 0:
            print(
                f"nothing left to train: {self.epoch} of {phases[-1].epochs} epochs are done; a larger total goes on "
                "(--epochs; in Python, epochs)"
            )
        with runtime.rounding_of_products(self.config.TF32, self.device):
            for phase in phases:
                progress = self._train_phase(phase, learning_rate, train_data, val_data, hooks)
                if progress.interrupted or progress.stop:
                    break
        return progress

    def _take_classes(self, dataset: Dataset) -> None:
        """Take names and category ids from the data set of a training, where the config leaves them open.

        A new training from a checkpoint of other classes also takes the data set's: rows of classes of the same name
        stay, and the others start anew.
        """
        of_data, own = Classes.of(dataset), Classes.of(self)
        names = [own.names[0], *of_data.names[1:], *own.names[len(of_data.names) :]]
        fits = len(names) == len(own.names) and len(of_data.names) > 1
        if "CLASS_NAMES" in self._open_classes and self._start is None and fits:
            if own.names == unnamed(len(names)):
                self._set_classes(names, None)
            elif map_classes(of_data, own).unknown:
                self._rename_classes(names)
        if "CATEGORY_IDS" in self._open_classes and of_data.ids is not None:
            mapping = map_classes(of_data, Classes.of(self))
            self._set_classes(None, mapping.numbers_of_rows(of_data.ids, self.category_ids))

    def _rename_classes(self, names: list[str]) -> None:
        """Give the rows other classes. Rows of classes that there were before move; the others start anew."""
        tensors = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        before = {"class_names": self.class_names, "model": tensors}
        with _seeded(self.config.SEED + 1):  # not the numbers that the first weights have
            initialise(self, [name for name in tensors if name.rpartition(".")[0] in _CLASS_LAYERS])
        self._set_classes(names, None)
        self.load_state_dict({**tensors, **self._rows_of_same_classes(before, self.state_dict(), set())})
        print(f"classes are now the data set's: {utils.listed(names[1:], 5)}; rows of other names start anew")

    def _set_classes(self, names: Sequence[str] | None, ids: Sequence[int] | None) -> None:
        """Set names or category ids of the rows, also in a copy of the config. None changes nothing."""
        given = {"CLASS_NAMES": names, "CATEGORY_IDS": ids}
        given = {name: tuple(values) for name, values in given.items() if values is not None}
        self.class_names = list(given.get("CLASS_NAMES", self.class_names))
        self.category_ids = list(given.get("CATEGORY_IDS", self.category_ids))
        if any(getattr(self.config, name) != values for name, values in given.items()):
            self.config = copy.copy(self.config)
            for name, values in given.items():
                setattr(self.config, name, values)

    def _check_before_training(self, train_data: TrainingData, val_data: TrainingData | None, evaluate: Any) -> None:
        """Print how classes were matched, and find what would otherwise come up in the middle of a training."""
        if runtime.rank() > 0:
            return
        for sentence in [*train_data.class_notes, *(val_data.class_notes if val_data else ())]:
            print(sentence)
        with runtime.random_states_kept(self.device):  # data sets may draw
            check_headers(train_data.dataset, val_data and val_data.dataset, self.config.MAX_DATA_ERRORS)
            if hasattr(evaluate, "check"):
                evaluate.check(self)

    def _begin_training(self) -> None:
        """Decide what depends on the weights that training starts from, and make the model ready on its device."""
        self._decide(TRAIN_BN=self._trains_bn(), FROZEN_STAGES=self._frozen_stages())
        if self._from_nothing():
            self.source = "trained from nothing"
        elif not self.source.endswith(("trained from nothing", "trained further")):
            self.source += ", trained further"
        config = self.config
        self.to(runtime.setup_distributed("cpu" if config.GPU_COUNT == 0 else None))
        if config.GPU_COUNT > 1 and self.device.type != "cpu" and runtime.world_size() == 1:
            print(f"GPU_COUNT = {config.GPU_COUNT}, but one is used; torchrun --nproc_per_node=N uses more")
        if runtime.rank() == 0 and (rounding := runtime.describe_rounding(config.TF32, self.device)):
            print(rounding)
        if self.device.type == "cpu":
            runtime.keep_memory_if_told()  # a fifth faster, a fifth more memory
        if config.COMPILE:
            self.backbone.compile()
            self.fpn.compile()

    def _decide(self, **settings: Any) -> None:
        """Give settings that are None or "auto" a value, in a copy of the config: it may belong to the caller."""
        undecided = {name: value for name, value in settings.items() if getattr(self.config, name) in (None, "auto")}
        if any(getattr(self.config, name) != value for name, value in undecided.items()):
            self.config = copy.copy(self.config)
            for name, value in undecided.items():
                self._decided[name] = getattr(self.config, name), value
                setattr(self.config, name, value)

    def _leave_training(self) -> None:
        """Forget the training that the model is in, if it is in any: other weights begin a new one."""
        if self._start is not None:
            self._start, self.log_dir = None, None
        before = {
            name: before for name, (before, since) in self._decided.items() if getattr(self.config, name) == since
        }
        self._decided = {}
        if before:
            self.config = copy.copy(self.config)
            for name, value in before.items():
                setattr(self.config, name, value)

    def _phases(self, learning_rate: float | None, epochs: int | None, layers: str) -> tuple[Sequence[Phase], float]:
        """The phases that train_model's arguments ask for, and the learning rate that their factors multiply."""
        config = self.config
        if epochs is None and config.SCHEDULE is None:
            raise ValueError("train_model needs epochs, the total number of them, or a config with a SCHEDULE")
        if learning_rate is None:
            learning_rate, reason = schedule_learning_rate(config)
            if runtime.rank() == 0:
                print(reason)
        if config.SCHEDULE is None or (epochs is not None and config.SCHEDULE == "matterport"):
            return [Phase(layers, epochs)], learning_rate
        phases = SCHEDULES[config.SCHEDULE]
        if len(phases) == 1:
            phases = [phases[0]._replace(layers=layers, epochs=epochs or phases[0].epochs)]
        elif layers != "all":
            raise ValueError(
                f"SCHEDULE {config.SCHEDULE} chooses the layers that learn, which contradicts layers={layers!r}; say "
                "how many epochs these learn (epochs, --epochs), or take another SCHEDULE (--schedule)"
            )
        return phases, learning_rate

    def _train_phase(
        self,
        phase: Phase,
        learning_rate: float,
        train_data: TrainingData,
        val_data: TrainingData | None,
        hooks: Hooks,
    ) -> Progress:
        self.set_trainable(phase.layers)
        if self.log_dir is None:
            self.set_log_dir()
        processes = {"rank": runtime.rank(), "world": runtime.world_size()}
        progress = loop.train(
            self,
            make_loader(train_data, **processes),
            None if val_data is None else make_loader(val_data, shuffle=False, **processes),
            self.config,
            phase=phase,
            learning_rate=learning_rate,
            hooks=hooks,
            log_dir=self.log_dir,
            start=self._start,
        )
        self._start = progress.state or self._start
        self.eval()
        return progress

    @property
    def epoch(self) -> int:
        """Completed epochs of the training that the model is in."""
        return 0 if self._start is None else self._start["epoch"]

    def set_log_dir(self, model_path: str | Path | None = None) -> None:
        """Choose the folder of checkpoints and logs: that of a checkpoint, or a new one in model_dir."""
        if model_path is not None:
            self.log_dir = Path(model_path).parent
        elif runtime.rank() == 0:
            self.log_dir = make_log_dir(self.model_dir, self.config.NAME)
        else:
            self.log_dir = self.model_dir  # the first process writes

    def set_trainable(self, layers: str = "all") -> list[str]:
        """Choose what learns, whatever an earlier call chose.

        layers: "heads", "3+", "4+", "5+" (the heads and the backbone's stages from there on), "all", "maskiou" (that
            head alone), "detector" (all but that head), or a regular expression that the whole name of a module or
            parameter has to match, such as r"mask_head\\.convs". FROZEN_STAGES of the backbone stay frozen, and the
            factors and shifts of its frozen batch norms where the dialect says so. While only the MaskIoU head learns,
            its loss is the only one; while it does not learn and others do, it has none.

        Returns: the names of the parameters that learn.
        Raises: ValueError for layers that are no pattern or match nothing that may learn; then nothing changes.
        """
        pattern = layer_pattern(layers)
        frozen = [f"backbone.layer{stage}." for stage in range(1, self._frozen_stages() + 1)]
        frozen = ("backbone.stem", *frozen) if frozen else ()
        trains_bn = self._trains_bn()
        affine = trains_bn or (self.config.dialect.trains_affine and self.config.BACKBONE_STYLE == "pytorch")
        learns = {}  # whether each parameter learns, by its name
        for name, module in self.named_modules():
            is_fixed = f"{name}.".startswith(frozen) or (isinstance(module, BatchNorm) and not affine)
            for full_name, _ in module.named_parameters(prefix=name, recurse=False):
                learns[full_name] = not is_fixed and _names_match(pattern, full_name)
        if not any(learns.values()):
            raise ValueError(
                f"layers={layers!r} (--layers) matches nothing that may learn; take one of {', '.join(TRAINABLE)}, or "
                f"a regular expression of whole names, such as those of {', '.join(_layer_names(self))}"
            )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(learns[name])
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.learns = trains_bn and module.weight.requires_grad
        return [name for name, is_learning in learns.items() if is_learning]

    def _frozen_stages(self) -> int:
        count = self.config.FROZEN_STAGES
        return (0 if self._from_nothing() or self._has_new_stem else 1) if count is None else count

    def _trains_bn(self) -> bool:
        return self._from_nothing() if self.config.TRAIN_BN is None else self.config.TRAIN_BN

    def _from_nothing(self) -> bool:
        return self.source.startswith(UNTRAINED)

    ### Detection

    @contextmanager
    def prepared(self, dtype: str = "float32") -> Iterator[None]:
        """A block in which all calls of detect() share weights that were folded, cast and laid out once.

            with model.prepared("bfloat16"):
                for image in images:
                    model.detect([image], dtype="bfloat16")

        Calls in other threads use these weights, too, and blocks may be nested. Outside, each call prepares its own
        weights; so detect_batches() needs no block. Leave the model as it is inside: most layers would see changed
        weights only after the last block.

        dtype: of detect(); calls in the other dtype prepare their own.

        Raises: ValueError for an unknown dtype.
        """
        with _open_block(self, _dtype(dtype)):
            yield

    def predict(self, images: Images, out: dict[str, Any] | None = None, weights: _Weights | None = None) -> Detections:
        """forward() with prepared weights, and without gradients and autocast. images, out: as there.

        weights: of _ready_weights. None: those of the open block, or new ones.
        """
        weights = _ready_weights(self, images.pixels.dtype) if weights is None else weights
        with _inference(weights, self.device), runtime.rounding_of_products(self.config.TF32, self.device):
            return self(images, out=out)

    def detect(
        self, images: Sequence[Any], verbose: int = 0, dtype: str = "float32", masks: str = "array"
    ) -> list[dict[str, Any]]:
        """Find the objects of any number of images of any sizes.

        Any number of threads may detect with one model at once. Training mode and torch.autocast change nothing.

        images: arrays [H, W, 3] RGB uint8; [H, W] gray, [H, W, 4] with alpha, 16-bit and 0..1 floats are converted.
            Images of Pillow and paths work as well; what is found lies in the pixels of utils.read_image(path).
        verbose: 1 prints what goes in and out.
        dtype: "float32", or "bfloat16" for the convolutions: faster where the processor has it, and less exact.
        masks: "array", or "rle" for a list of COCO run-length codes, which take far less memory.

        Returns: for each image a dict of NumPy arrays, highest class score first:
            rois float32 [N, (y1, x1, y2, x2)], pixels of the image; class_ids int32 [N]; scores float32 [N], of the
            class; mask_ious float32 [N], predicted, or None without a MaskIoU head; mask_scores float32 [N],
            scores x mask_ious; masks bool [H, W, N] or list of dicts.
        Raises: ValueError for what is not a list of images, an unknown dtype, an unknown kind of masks, or settings
            that were changed and do not fit; FileNotFoundError for a path without a file.
        """
        (results,) = self._detect_batches([images], dtype, masks, verbose, None, _SameThread())
        if verbose:
            print(f"{sum(len(result['scores']) for result in results)} detections")
        return results

    def detect_batches(
        self, batches: Iterable[Sequence[Any]], dtype: str = "float32", masks: str = "rle"
    ) -> Iterator[list[dict[str, Any]]]:
        """detect() for one batch after another, while other threads read the next images and paste the last masks.

        One thread takes the batches from the iterator and resizes their images, up to two chunks of IMAGES_PER_GPU
        images ahead. Another pastes masks. If the network is the slowest of the three, reading files costs no time.
        The results are the same as detect()'s, to the bit.

        batches: lists of images. images, dtype, masks: as in detect().

        Returns: an iterator of detect()'s results, in order.
        Raises: as detect(), and what the iterator raises, once the results before it are taken.
        """
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "masks") as paster:
            yield from self._detect_batches(batches, dtype, masks, 0, reader, paster)

    @torch.no_grad()
    def _detect_batches(self, batches, dtype: str, masks: str, verbose: int, reader, paster) -> Iterator[list[dict]]:
        if masks not in ("array", "rle"):
            raise ValueError(f"masks must be 'array' or 'rle', not {masks!r}")
        self._check_settings()
        if self.device.type == "cpu":
            runtime.keep_memory()
        seconds = dict.fromkeys(("resize", "network", "masks"), 0.0)
        chunks, unfinished, failure = self._resized_chunks(batches, seconds), deque(), None
        weights = _ready_weights(self, _dtype(dtype))
        try:
            for chunk in chunks if reader is None else _ahead(chunks, reader):
                if verbose:
                    log(f"images {chunk.indices}, resized", chunk.resized[0] if chunk.resized else None)
                detections = self._infer(chunk, dtype, seconds, weights) if chunk.indices else None
                runtime.limit_kept_memory()
                unfinished.append(paster.submit(self._paste, chunk, detections, masks, seconds))
                while len(unfinished) > 2 or (unfinished and unfinished[0].done()):
                    yield from unfinished.popleft().result()
        except Exception as error:  # results that are finished come first
            failure = error
        for future in unfinished:
            yield from future.result()
        self.seconds = seconds
        if failure is not None:
            raise failure

    def _resized_chunks(self, batches: Iterable[Sequence[Any]], seconds: dict[str, float]) -> Iterator["_Chunk"]:
        """The images of each batch, resized, in chunks that will have one shape after padding."""
        for images in batches:
            start = time.perf_counter()
            images = self._checked(images)
            plans = [utils.plan_image(image.shape, self.config) for image in images]
            results: list[Any] = [None] * len(images)
            groups = list(_chunks([plan.padded_shape for plan in plans], self.config.IMAGES_PER_GPU)) or [[]]
            for number, indices in enumerate(groups, start=1):
                resized = [_resized(images[i], plans[i], self.config) for i in indices]
                windows, shapes = [plans[i].window for i in indices], [images[i].shape[:2] for i in indices]
                padded_shape = plans[indices[0]].padded_shape if indices else (0, 0)
                seconds["resize"] += time.perf_counter() - start
                yield _Chunk(results, indices, resized, padded_shape, windows, shapes, is_last=number == len(groups))
                start = time.perf_counter()

    def _checked(self, images: Sequence[Any]) -> list[np.ndarray]:
        bit_depth, pixel_range, channels = reading_settings(self.config)
        named = {f"images[{i}]": image for i, image in enumerate(check_images(images))}
        return [image_array(image, channels, name, bit_depth, pixel_range) for name, image in named.items()]

    def _infer(self, chunk: "_Chunk", dtype: str, seconds: dict[str, float], weights: _Weights) -> Detections:
        """The detections in the images of a chunk, on the CPU."""
        start = time.perf_counter()
        shape = (len(chunk.resized), *chunk.padded_shape, self.config.IMAGE_CHANNEL_COUNT)
        pixels = torch.empty(shape, dtype=_DTYPES[dtype], device=self.device)  # [B, H, W, C]
        for place, image, window in zip(pixels, chunk.resized, chunk.windows, strict=True):
            # The device normalises: a byte a pixel is copied to it, and not a float32.
            image = runtime.upload(torch.from_numpy(np.require(image, requirements="CW")), self.device)
            pad_molded(mold_image(image, self.config), window, place, self.config)
        detections = self._detections_on_cpu(pixels, chunk.windows, weights)
        seconds["network"] += time.perf_counter() - start
        return detections

    def _detections_on_cpu(self, pixels: Tensor, windows: Sequence[Any], weights: _Weights) -> Detections:
        """predict() on normalised pixels [B, H, W, C] and their windows."""
        windows = torch.tensor([list(window) for window in windows], dtype=torch.float32)
        images = Images(pixels.permute(0, 3, 1, 2), runtime.upload(windows, self.device))
        return self.predict(images, weights=weights).to("cpu")  # waits for the device

    @torch.no_grad()  # detect_batches calls this in a thread of its own
    def _paste(
        self, chunk: "_Chunk", detections: Detections | None, masks: str, seconds: dict[str, float]
    ) -> list[list[dict[str, Any]]]:
        """Put detect()'s dict of each image of a chunk into its batch's results.

        Returns: [the results], if they are complete now, else [].
        """
        start = time.perf_counter()
        for i, (index, window, shape) in enumerate(zip(chunk.indices, chunk.windows, chunk.shapes, strict=True)):
            of_image = detections[detections.batch_index == i]
            chunk.results[index] = self.to_result(of_image, window, shape, masks)
        seconds["masks"] += time.perf_counter() - start
        return [chunk.results] if chunk.is_last else []

    def to_result(
        self, detections: Detections, window: Sequence[float], shape: tuple[int, int], masks: str = "array"
    ) -> dict[str, Any]:
        """detect()'s dict of one image.

        detections: of the image, on the CPU. window: (y1, x1, y2, x2), where the image lies in the network's input.
        shape: (height, width) of the image. masks: "array" or "rle".
        """
        config = self.config
        boxes, keep = unmold_detections(detections.boxes, window, shape, config)
        detections, boxes = detections[keep], boxes[keep]
        scores, maskious = detections.scores, detections.maskious
        pasted_boxes = boxes
        if config.dialect.coordinates == "inclusive":
            pasted_boxes = boxes - boxes.new_tensor([0, 0, 1, 1])
        paste = paste_masks if masks == "array" else paste_rles
        pasted = paste(detections.mask_logits.sigmoid(), pasted_boxes, shape, config.dialect.paste)
        return ImageDetections(
            rois=utils.boxes_of_masks(pasted, boxes.numpy()) if config.BOXES_OF_MASKS else boxes.numpy(),
            class_ids=detections.class_ids.numpy().astype(np.int32),
            scores=scores.numpy(),
            mask_ious=None if maskious is None else maskious.numpy(),
            mask_scores=mask_scores(scores, maskious, config).numpy(),
            masks=pasted,
        ).to_result()

    ### Weights

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | Mapping[str, Any],
        device: str | torch.device | None = None,
        **config_overrides: Any,
    ) -> "MaskRCNN":
        """The model that a checkpoint of this project describes, with its weights, ready to detect.

        checkpoint: a file that save() or convert_weights.py wrote, or its contents. weights.load.load_model takes
            files of every other format too.
        device: default: CUDA if there is a GPU.
        config_overrides: settings to change, such as DETECTION_MIN_CONFIDENCE=0.5.

        Raises: FileNotFoundError; ValueError for what is not such a checkpoint, or does not fit what it describes.
        """
        checkpoint = read_checkpoint(checkpoint)
        config = config_of(checkpoint, **config_overrides)
        with torch.device("meta"):  # random weights would be replaced at once
            model = cls(config).eval()
        network, stored = model.state_dict(), checkpoint["model"]
        shapes = {name: tensor.shape for name, tensor in network.items()}
        match_to_network(stored, shapes, f"{checkpoint.name} does not fit the model that its settings describe")
        # The model gets memory of its own, and no view of a file that somebody may write into. Not by to_empty(), which
        # imports sympy.
        own = {name: torch.empty(like.shape, dtype=like.dtype).copy_(stored[name]) for name, like in network.items()}
        model.load_state_dict(own, assign=True)
        model.source = checkpoint["source"]
        return model.to(runtime.find_device(device))

    def to_checkpoint(self) -> dict[str, Any]:
        """Config, class names and weights, as a checkpoint holds them. On a CPU, tensors are the model's own."""
        checkpoint = make_checkpoint(self.config, self.source, self.state_dict())
        return {**checkpoint, "class_names": self.class_names, "category_ids": self.category_ids}

    def save(self, path: str | Path) -> None:
        """Write config, class names and weights, complete or not at all. torch.load(path, weights_only=True) reads the
        file.

        Raises: OSError, as write_checkpoint.
        """
        write_checkpoint(path, self.to_checkpoint())

    def load_weights(
        self,
        filepath: str | Path | Mapping[str, Any],
        by_name: bool = False,
        exclude: Sequence[str] | None = None,
        copy_classes: bool = False,
        eps: float | None = None,
    ) -> None:
        """Load the weights of a checkpoint into this model, all or none, and print what became of each tensor.

        filepath: a file of this project or of any format that convert_weights.py reads, such as Matterport's .h5; or
            the contents of a checkpoint of this project. Foreign weights are converted in memory, and what the
            conversion assumed is printed.
        by_name: take the tensors that fit by name and shape. Tensors of another shape, such as heads for other
            classes, start from random weights; tensors that the file lacks stay as they are. The first convolution is
            inflated if images have another number of channels (weights/stem.py). Without by_name, everything must fit.
        exclude: layers to leave as they are ("box_head.class_logits", or Matterport's names such as
            "mrcnn_class_logits"); turns by_name on.
        copy_classes: in the layers that have rows for classes, copy the rows of classes of the same name; turns
            by_name on.
        eps: of a torchvision ResNet-50's batch norms, as weights.convert.convert takes it.

        A checkpoint of a training in model_dir, loaded as a whole, also sets log_dir, and train_model continues it. Any
        other weights end the training that the model is in: train_model begins a new one.
        Rows follow the names of classes: if the checkpoint has the model's classes in another order, they change
        places. A training that continues keeps its order, which the model takes then. CLASS_NAMES and CATEGORY_IDS that
        the config leaves open come from the checkpoint, if all rows do.

        Raises: FileNotFoundError; ValueError for what is not a checkpoint, weights that were made for other settings
            than this model's, layers that do not exist, and, without by_name, tensors that are missing, left over, of
            another shape or of other classes.
        """
        excluded = self._tensors_of(exclude or ())
        takes_part = bool(by_name or excluded or copy_classes)
        checkpoint, has_new_stem = self._read(filepath, eps, takes_part)
        source, target = checkpoint["model"], self.state_dict()
        has_all = all(name in source and source[name].shape == target[name].shape for name in target)
        continues = self._continues(checkpoint, filepath) and (not takes_part or (has_all and not excluded))
        if continues:
            check_state(checkpoint["training"], Path(filepath).resolve())
        takes = set() if copy_classes else self._open_classes
        match = match_rows(Classes.of(self), checkpoint, takes, continues and not copy_classes, takes_part)
        fitting = {
            name: tensor
            for name, tensor in source.items()
            if name in target and tensor.shape == target[name].shape and name not in excluded
            if match.fits or name.rpartition(".")[0] not in _CLASS_LAYERS
        }
        others = [name for name in source if name in target and name not in fitting and name not in excluded]
        if copy_classes or match.moves:
            fitting |= self._rows_of_same_classes(checkpoint, target, excluded)
        if not takes_part:
            title = (
                f"{checkpoint.name} does not fit the model; nothing was loaded (another number of classes or another "
                "backbone? by_name=True takes what fits)"
            )
            match_to_network(source, {name: tensor.shape for name, tensor in target.items()}, title)
        elif 2 * len(fitting) < len(source):
            raise ValueError(
                f"only {len(fitting)} of the {len(source)} tensors of {checkpoint.name} fit this model; is it another "
                "backbone?"
            )
        self.load_state_dict({**target, **fitting})
        self._has_new_stem = has_new_stem
        before, epoch = self.log_dir, self.epoch
        self._leave_training()
        if len(fitting) == len(target) and match.fits and not match.moves:
            self._set_classes(match.names, match.ids)
            if self._continues(checkpoint, filepath):
                self._continue(checkpoint, Path(filepath).resolve())
        if epoch and self._start is None:
            print(f"these weights begin a new training; the one in {before} ends after epoch {epoch}")
        initialised = [name for name in others if name not in fitting]
        with _seeded(self.config.SEED + 1):  # not the numbers that the first weights have
            initialise(self, initialised)
        is_new = self._from_nothing()
        self.source = checkpoint["source"]
        _print_loaded(fitting, initialised, target, source, is_new)

    def _read(
        self, filepath: str | Path | Mapping[str, Any], eps: float | None, takes_part: bool
    ) -> tuple[Checkpoint, bool]:
        """A checkpoint whose weights mean in this model what they meant where they were trained; as load_weights.

        takes_part: also take weights that learned from images of other channels or another PIXEL_RANGE.

        Returns: the checkpoint, and whether its first convolution was inflated for other channels.
        """
        if isinstance(filepath, Mapping):
            checkpoint = read_checkpoint(filepath)
        elif not isinstance(filepath, str | os.PathLike):
            raise ValueError(
                f"filepath must be the path of a file, or the contents of a checkpoint, not {type(filepath).__name__}"
            )
        else:
            checkpoint, conversion = convert(filepath, network_shapes, eps=eps, model_config=self.config)
            checkpoint.name = str(filepath)
            if conversion.folded:
                print(conversion.text(len(checkpoint["model"])))
        channels = checkpoint["config"].get("IMAGE_CHANNEL_COUNT")
        if takes_part:
            checkpoint, sentences = fit_images(checkpoint, self.config)
            print(*sentences, sep="\n", end="\n" if sentences else "")
        self._check_meaning(checkpoint)
        return checkpoint, channels != checkpoint["config"].get("IMAGE_CHANNEL_COUNT")

    def _continues(self, checkpoint: Mapping[str, Any], filepath: Any) -> bool:
        """Whether a checkpoint is of a training in a log folder of this model."""
        is_training = not isinstance(filepath, Mapping) and "training" in checkpoint
        return is_training and Path(filepath).resolve().parent.parent == self.model_dir.resolve()

    def _continue(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Continue the training of a checkpoint, whose state was checked."""
        self._start = {**checkpoint["training"], "file": str(path)}
        self.set_log_dir(path)
        decided = ("TRAIN_BN", "FROZEN_STAGES", "BIT_DEPTH")
        self._decide(**{name: checkpoint["config"][name] for name in decided if name in checkpoint["config"]})
        print(f"training continues after epoch {self.epoch}, step {self._start['step']}, in {self.log_dir}")

    def _check_meaning(self, checkpoint: Mapping[str, Any]) -> None:
        """Raises ValueError for weights that would compute something else in this model."""
        stored, own = checkpoint["config"], self.config.to_dict()
        counts = [settings.get("IMAGE_CHANNEL_COUNT", 3) for settings in (stored, own)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"these weights were made for images of {counts[0]} channels, but the model takes {counts[1]} "
                "(IMAGE_CHANNEL_COUNT); load_weights(by_name=True) inflates the first convolution"
            )
        for name in settings_that(BACKBONE_WEIGHTS if is_backbone(checkpoint) else WEIGHTS):
            if name in stored and not _same(stored[name], own[name]):
                raise ValueError(
                    f"these weights were made for {name} = {stored[name]}, but the model has {own[name]}; set {name} "
                    "in the config (or use MaskRCNN.from_checkpoint, which takes the settings from the checkpoint)"
                )

    def _tensors_of(self, exclude: Sequence[str]) -> set[str]:
        """Names of the tensors of layers, given by our names or Matterport's. Raises: ValueError for no layers."""
        if isinstance(exclude, str):
            raise ValueError(f"exclude must be a list of layers, not a text: [{exclude!r}]")
        excluded = set()
        for layer in exclude:
            layer_name = _MATTERPORT_LAYERS.get(layer, layer)
            names = [name for name in self.state_dict() if name == layer_name or name.startswith(layer_name + ".")]
            if not names and not (layer_name.startswith("maskiou_head") and self.maskiou_head is None):
                raise ValueError(f"exclude: there is no layer {layer!r}; layers are {', '.join(_layer_names(self))}")
            excluded |= set(names)
        return excluded

    def _rows_of_same_classes(
        self, checkpoint: Mapping[str, Any], target: Mapping[str, Tensor], excluded: set[str]
    ) -> dict[str, Tensor]:
        """The model's tensors with rows for classes, with the checkpoint's rows for classes of the same name."""
        stored_names = list(checkpoint["class_names"] or unnamed(checkpoint["config"]["NUM_CLASSES"]))
        rows = [0] + [UNKNOWN] * (len(self.class_names) - 1)
        if stored_names[1:] != unnamed(len(stored_names))[1:]:
            rows = map_classes(Classes(self.class_names), Classes(stored_names)).rows.tolist()
        pairs = [(row, source_row) for row, source_row in enumerate(rows) if source_row != UNKNOWN]
        copied = {}
        for name in (f"{layer}.{leaf}" for layer in _CLASS_LAYERS for leaf in ("weight", "bias")):
            if name in excluded or name not in target or name not in checkpoint["model"]:
                continue
            tensor = target[name].clone().unflatten(0, (len(self.class_names), -1))  # [K, rows of a class, ...]
            source = checkpoint["model"][name].unflatten(0, (len(stored_names), -1))
            if tensor[0].shape != source[0].shape:
                continue  # of another width: it starts anew
            for row, source_row in pairs:
                tensor[row] = source[source_row]
            copied[name] = tensor.flatten(0, 1)
        anew = [repr(name) for name, row in zip(self.class_names, rows, strict=True) if row == UNKNOWN]
        if copied and anew:
            names = utils.listed(map(utils.printable, anew), 8)
            print(f"classes that the checkpoint does not have, whose rows start anew: {names}")
        return copied

    def find_last(self) -> str:
        """Path of the newest checkpoint: the last epoch in the newest log folder that has one.

        Raises: FileNotFoundError when there is none.
        """
        return str(checkpoints.find_last(self.model_dir, self.config.NAME))

    ### Matterport's methods, for code that is ported and for notebooks

    def mold_inputs(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images resized, padded and normalised: molded_images [B, H, W, C], image_metas [B, 12 + K], windows [B, 4].

        Raises: ValueError for images that have different shapes after padding; detect() takes them.
        """
        images = self._checked(images)
        plans = [utils.plan_image(image.shape, self.config) for image in images]
        shapes = sorted({plan.padded_shape for plan in plans})
        if len(shapes) > 1:
            raise ValueError(f"images come out in the shapes {shapes}; a batch has one. detect() batches by itself")
        molded = [mold_padded(image, plan, self.config).numpy() for image, plan in zip(images, plans, strict=True)]
        flags = np.zeros(self.config.NUM_CLASSES, np.int64)
        metas = [
            compose_image_meta(0, image.shape, pixels.shape, plan.window, plan.scale, flags)
            for image, plan, pixels in zip(images, plans, molded, strict=True)
        ]
        return np.stack(molded), np.stack(metas), np.stack([plan.window for plan in plans])

    def detect_molded(
        self, molded_images: np.ndarray, image_metas: np.ndarray, verbose: int = 0
    ) -> list[dict[str, Any]]:
        """detect() for the images [B, H, W, C] and metas [B, 12 + K] that mold_inputs returns."""
        self._check_settings()
        metas = parse_image_meta(image_metas)
        if len(molded_images) != len(metas["window"]):
            raise ValueError(f"molded_images and image_metas differ: {len(molded_images)} and {len(metas['window'])}")
        if verbose:
            log("molded_images", molded_images)
        shapes = [tuple(shape[:2]) for shape in metas["original_image_shape"].tolist()]
        pixels = torch.as_tensor(molded_images, dtype=torch.float32).to(self.device)
        count, padded_shape, windows = len(pixels), tuple(pixels.shape[1:3]), metas["window"].tolist()
        start = time.perf_counter()
        detections = self._detections_on_cpu(pixels, windows, _ready_weights(self, torch.float32)) if count else None
        seconds = {"network": time.perf_counter() - start, "masks": 0.0}
        chunk = _Chunk([None] * count, range(count), [], padded_shape, windows, shapes, True)
        (results,) = self._paste(chunk, detections, "array", seconds)
        self.seconds = seconds
        return results

    def get_anchors(self, image_shape: Sequence[int]) -> np.ndarray:
        """All anchors of an input of a (height, width): float32 [A, (y1, x1, y2, x2)], P2 first.

        They are in pixels. Matterport's are normalised.
        """
        shapes = [tuple(shape) for shape in compute_backbone_shapes(self.config, image_shape).tolist()]
        return torch.cat(self.pyramid_anchors(shapes, image_shape[:2])).cpu().numpy()


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]


class _Chunk(NamedTuple):
    """Images of a batch that have one shape after padding."""

    results: list[Any]  # one for each image of the batch, to be filled
    indices: Sequence[int]  # of the images in the batch; empty for an empty batch
    resized: list[np.ndarray]  # [h, w, C] each, not normalised
    padded_shape: tuple[int, int]  # (height, width) that all get
    windows: Sequence[Any]  # (y1, x1, y2, x2) of each, where it lies in the network's input
    shapes: Sequence[Any]  # (height, width) of each original
    is_last: bool  # of its batch


class _SameThread:
    """A pool of no threads: submit() calls the function at once."""

    @staticmethod
    def submit(function: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


def _ahead(items: Iterator, pool: ThreadPoolExecutor, count: int = 2) -> Iterator:
    """The items of an iterator. A pool of one thread takes them from it, `count` items ahead."""
    end = object()
    futures = deque(pool.submit(next, items, end) for _ in range(count))
    while (item := futures.popleft().result()) is not end:
        futures.append(pool.submit(next, items, end))
        yield item


def _chunks(shapes: Sequence[Any], size: int) -> Iterator[list[int]]:
    """The indices of equal shapes in lists of at most `size`."""
    groups: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a setting are equal, numbers up to the rounding of float32."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(_same(*pair) for pair in zip(value, other, strict=True))
    if isinstance(value, float | int) and isinstance(other, float | int):
        return math.isclose(value, other, rel_tol=1e-6)
    return value == other


def _check_length(learning_rate: Any, epochs: Any) -> None:
    """Raises ValueError for arguments of train_model that make no training, unless they are None."""
    is_rate = isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool)
    if learning_rate is not None and not (is_rate and 0 <= learning_rate < math.inf):
        raise ValueError(
            f"learning_rate must be a finite number from 0 up, or None for that of the config, not {learning_rate!r}"
        )
    is_count = isinstance(epochs, numbers.Integral) and not isinstance(epochs, bool)
    if epochs is not None and not (is_count and epochs >= 1):
        raise ValueError(f"epochs must be a whole number from 1 up, the total of all calls, not {epochs!r}")


def layer_pattern(layers: str) -> re.Pattern:
    """The pattern of names that `layers` of set_trainable stands for. Raises: ValueError for what is none."""
    if not isinstance(layers, str):
        kind = type(layers).__name__
        raise ValueError(
            f"layers must be one of {', '.join(TRAINABLE)}, or a regular expression as a text, not {kind}: {layers!r}"
        )
    try:
        return re.compile(TRAINABLE.get(layers, layers))
    except re.error as error:
        raise ValueError(
            f"layers must be one of {', '.join(TRAINABLE)}, or a regular expression, not {layers!r}: {error}"
        ) from None


def _names_match(pattern: re.Pattern, name: str) -> bool:
    """Whether a parameter's name, or that of a module it is in, matches the pattern wholly."""
    parts = name.split(".")
    return any(pattern.fullmatch(".".join(parts[:count])) for count in range(1, len(parts) + 1))


def _layer_names(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in model.state_dict()))


def _print_loaded(fitting: Mapping, initialised: Sequence[str], target: Mapping, source: Mapping, is_new: bool) -> None:
    """Print what load_weights did with each tensor, by name. is_new: the model had random weights before."""
    print(f"loaded: {len(fitting)} of the model's {len(target)} tensors")
    same_shape = [name for name in initialised if source[name].shape == target[name].shape]
    without_source = [name for name in target if name not in fitting and name not in initialised]
    for title, names in (
        ("of another shape, initialised anew", [name for name in initialised if name not in same_shape]),
        ("of other classes, initialised anew", same_shape),
        ("left at random weights" if is_new else "kept as they were", without_source),
        ("not used", [name for name in source if name not in fitting]),
    ):
        if names:
            print(f"{title}: {utils.listed(map(utils.printable, names), 12)}")


def network_shapes(config: Config, only_backbone: bool = False) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a network with these settings, or of its backbone. Takes no memory."""
    with torch.device("meta"):
        state = MaskRCNN(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if not only_backbone or name.startswith("backbone.")}


def initialise(model: MaskRCNN, names: Sequence[str] | None = None) -> None:
    """Random weights to start a training from: mmdetection's, with residual branches that start at zero.

    Convolutions with a ReLU or a norm after them are Kaiming normal (fan out), lateral, output and fully connected ones
    Xavier uniform; predictors are normal with a small deviation. Biases are zero. Only predicted IoUs begin at one,
    by a bias of one and weights of zero, where mmdetection's begin at about zero.

    names: the parameters to set. None: all of a new model.
    """
    small = {"rpn": 0.01, "box_head.class_logits": 0.01, "box_head.box_deltas": 0.001, "maskiou_head.maskious": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.is_meta or (names is not None and name not in names):
            continue  # nothing to draw; torch would import its compiler and sympy to draw it
        deviation = next((value for prefix, value in small.items() if name.startswith(prefix)), None)
        if parameter.ndim < 2:
            if name.endswith("bias"):  # until the MaskIoU head learns, it predicts 1: mask scores are class scores
                nn.init.constant_(parameter, float(name == "maskiou_head.maskious.bias"))
        elif deviation is not None:
            nn.init.normal_(parameter, std=deviation)
        elif name.startswith("fpn.") or (parameter.ndim == 2 and name.startswith(("box_head.", "maskiou_head."))):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    for module in model.modules() if names is None else ():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.conv3.norm.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.conv2.norm.weight)


############################################################
#  Matterport's Helpers
############################################################

# Functions for notebooks and for code that was written for Matterport's Mask R-CNN. They take one image as arrays.


def log(text: str, array: Any = None) -> None:
    """Print a text and, of an array or tensor, its shape, range and dtype."""
    if array is not None:
        array = np.asarray(array.detach().cpu()) if isinstance(array, Tensor) else np.asarray(array)
        limits = f"min: {array.min():10.5f}  max: {array.max():10.5f}" if array.size else f"min: {'':10}  max: {'':10}"
        text = f"{text:25}  shape: {array.shape!s:20}  {limits}  {array.dtype}"
    print(text)


def unmold_image(pixels: np.ndarray | Tensor, config: Config) -> np.ndarray:
    """mold_image undone: uint8 [..., C]."""
    pixels = torch.as_tensor(pixels).to(torch.float32)
    image = pixels * torch.tensor(config.STD_PIXEL) + torch.tensor(config.MEAN_PIXEL)
    return image.round().clamp(0, 255).to(torch.uint8).numpy()


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


def load_image_gt(
    dataset: Dataset,
    config: Config,
    image_id: int,
    augment: bool = False,
    augmentation: Any = None,
    use_mini_mask: bool = False,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An image with its objects as training takes it: resized and padded, not normalised. Crowds are left out.

    dataset: prepared. image_id: one of dataset.image_ids.
    augment: do what the config says of HORIZONTAL_FLIP, SCALE_JITTER ...; augmentation: and this before, see
        train_model. Both follow from the seed.
    use_mini_mask: masks shrunk to MINI_MASK_SHAPE, each filling its object's box.

    Returns: image uint8 [H, W, C]; image_meta [12 + K], see compose_image_meta; class_ids int32 [G]; bbox float32
        [G, (y1, x1, y2, x2)]; mask bool [H, W, G], or [*MINI_MASK_SHAPE, G].
    Raises: as training.TrainingData.
    Source: Matterport, whose masks are mini masks or not as here, and whose crowds have negative class_ids.
    """
    config = copy.copy(config)
    config.USE_MINI_MASK = use_mini_mask
    augment = augment or augmentation is not None
    sample = TrainingData(dataset, config, augmentation, augment=augment).sample(image_id, seed)
    pixels = sample.image.float().round().clamp(0, 255).to(torch.uint8)
    y1, x1, y2, x2 = sample.window
    image = np.zeros((*sample.shape, pixels.shape[2]), np.uint8)
    image[y1:y2, x1:x2] = pixels.numpy()
    ids_of_source = dataset.source_class_ids[dataset.image_info[image_id]["source"]]
    active = np.isin(np.arange(dataset.num_classes), ids_of_source)
    shapes = (*sample.original, image.shape[2]), image.shape
    meta = compose_image_meta(image_id, *shapes, sample.window, utils.plan_image(sample.original, config).scale, active)
    size = tuple(config.MINI_MASK_SHAPE) if use_mini_mask else sample.shape
    masks = _whole_masks(sample.targets.masks, size).permute(1, 2, 0).numpy()
    return image, meta, sample.targets.class_ids.numpy().astype(np.int32), sample.targets.boxes.numpy(), masks


def _whole_masks(masks: MaskCrops, size: tuple[int, int]) -> Tensor:
    """G masks on their canvases, which all have this size: bool [G, *size]."""
    count = len(masks.sizes)
    canvas = torch.tensor([[0.0, 0.0, *size]]).expand(count, 4).contiguous()
    return crop_masks(masks, canvas, torch.arange(count), size) >= 0.5


def compute_backbone_shapes(config: Config, image_shape: Sequence[int]) -> np.ndarray:
    """(height, width) of P2 to P6 for an image: int64 [5, 2]. Matterport's name of config.backbone_shapes."""
    return np.array(config.backbone_shapes(image_shape))


def build_rpn_targets(
    image_shape: Sequence[int],
    anchors: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    config: Config,
    seed=0,
) -> tuple[np.ndarray, np.ndarray]:
    """The anchors of an image that the RPN learns from, and the deltas from those of objects to the objects.

    image_shape: (height, width, ...) of the network's input. anchors: [A, 4]. gt_class_ids: [G], negative for crowds.
    gt_boxes: [G, 4]. seed: decides the random sample.

    Returns: rpn_match int32 [A], 1 for an object, -1 for background, 0 for anchors that are not in the sample;
        rpn_bbox float32 [RPN_TRAIN_ANCHORS_PER_IMAGE, (dy, dx, dh, dw)], a row for each 1 in rpn_match, in order, then
        zeros.
    """
    targets = _targets_of_image(gt_class_ids, gt_boxes, None, seed)
    anchors = shrink(torch.as_tensor(anchors, dtype=torch.float32), config)
    window = shrink(anchors.new_tensor([[0, 0, *image_shape[:2]]]), config)
    sample = sample_anchors(match_anchors(anchors, window, targets, config), targets.seeds, config)
    is_object = sample.matched >= 0
    rpn_match = torch.zeros(len(anchors), dtype=torch.int32)
    rpn_match[sample.anchors] = torch.where(is_object, 1, -1).to(torch.int32)
    gt = shrink(targets.boxes, config)[sample.matched[is_object]]
    deltas = build_delta_targets(anchors[sample.anchors[is_object]], gt, config.RPN_BBOX_STD_DEV)
    rpn_bbox = torch.zeros(config.RPN_TRAIN_ANCHORS_PER_IMAGE, 4)
    rpn_bbox[: len(deltas)] = deltas
    return rpn_match.numpy(), rpn_bbox.numpy()


def build_detection_targets(
    rpn_rois: np.ndarray, gt_class_ids: np.ndarray, gt_boxes: np.ndarray, gt_masks: np.ndarray, config: Config, seed=0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The RoIs of an image that the heads learn from, and the class, deltas and mask that they should predict for each.

    rpn_rois: [R, 4]; the objects' own boxes are added to them. gt_class_ids: [G], negative for crowds.
    gt_boxes: [G, 4]. gt_masks: [H, W, G], not mini masks. seed: decides the random sample.

    Returns: rois float32 [S, 4]; roi_gt_class_ids int32 [S], 0 for background; bboxes float32 [S, (dy, dx, dh, dw)] and
        masks float32 [S, *MASK_SHAPE] of the RoI's class, zeros for background. Matterport's have a row or a mask for
        each class.
    """
    targets = _targets_of_image(gt_class_ids, gt_boxes, gt_masks, seed)
    rois = shrink(torch.as_tensor(rpn_rois, dtype=torch.float32), config)
    rois, _, matched = sample_rois(rois, torch.zeros(len(rois), dtype=torch.int64), targets, config)[:3]
    is_object = matched >= 0
    positive_rois, positive_matched = rois[is_object], matched[is_object]
    class_ids = torch.where(is_object, _rows_of(targets.class_ids, matched), 0)
    bboxes, masks = torch.zeros(len(rois), 4), torch.zeros(len(rois), *config.MASK_SHAPE)
    gt = shrink(targets.boxes, config)[positive_matched]
    bboxes[is_object] = build_delta_targets(positive_rois, gt, config.BBOX_STD_DEV)
    size = 2 * config.MASK_POOL_SIZE
    masks[is_object] = build_mask_targets(unshrink(positive_rois, config), positive_matched, targets, size)
    return unshrink(rois, config).numpy(), class_ids.numpy().astype(np.int32), bboxes.numpy(), masks.numpy()


def generate_random_rois(
    image_shape: Sequence[int], count: int, gt_class_ids: np.ndarray, gt_boxes: np.ndarray, seed=0
) -> np.ndarray:
    """Random RoIs, to look at the heads' targets without an RPN: nine of ten around objects, the others anywhere.

    Returns: float32 [count, 4], inside the image, at least a pixel high and wide.
    Source: Matterport. An RoI around an object reaches at most the object's height and width beyond it.
    """
    rng, limit = np.random.default_rng(seed), np.array(image_shape[:2], np.float64)
    boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2) * [-1, -1, 1, 1]
    around = int(0.9 * count) // max(1, len(boxes)) * len(boxes)
    regions = np.concatenate(
        [
            np.resize((boxes + sides).clip(0, np.tile(limit, 2)), (around, 4)),
            np.tile([0, 0, *limit], (count - around, 1)),
        ]
    )
    low, high = regions[:, None, :2], regions[:, None, 2:]
    corners = np.sort(low + rng.random((count, 2, 2)) * (high - low), axis=1)  # [count, (first, second), (y, x)]
    first = np.minimum(corners[:, 0], limit - 1)
    return np.concatenate([first, np.maximum(corners[:, 1], first + 1)], axis=1).astype(np.float32)


def _targets_of_image(gt_class_ids: Any, gt_boxes: Any, gt_masks: np.ndarray | None, seed: int) -> Targets:
    """One image's objects and crowds as Targets. Crowds have negative class ids. gt_masks: [H, W, G], or None."""
    class_ids = torch.as_tensor(gt_class_ids).long().reshape(-1)
    boxes = torch.as_tensor(gt_boxes, dtype=torch.float32).reshape(-1, 4)
    if len(boxes) != len(class_ids) or (gt_masks is not None and gt_masks.shape[2] != len(class_ids)):
        raise ValueError(
            f"gt_class_ids, gt_boxes and gt_masks must be of the same objects, not of {len(class_ids)}, {len(boxes)} "
            f"and {'any' if gt_masks is None else gt_masks.shape[2]}; are the masks [H, W, G]?"
        )
    is_object = class_ids > 0
    count, crowds = int(is_object.sum()), int((~is_object).sum())
    masks = torch.zeros(1, 1, count) if gt_masks is None else torch.as_tensor(gt_masks)[..., is_object]
    size = torch.tensor(masks.shape[:2]).expand(count, 2)
    pixels = masks.permute(2, 0, 1).to(torch.uint8).flatten()
    offsets = torch.arange(count) * masks.shape[0] * masks.shape[1]
    crops = MaskCrops(pixels, offsets, size.contiguous(), torch.zeros_like(size).contiguous(), size.contiguous())
    return Targets(
        boxes=boxes[is_object],
        class_ids=class_ids[is_object],
        batch_index=torch.zeros(count, dtype=torch.int64),
        masks=crops,
        crowd_boxes=boxes[~is_object],
        crowd_index=torch.zeros(crowds, dtype=torch.int64),
        seeds=torch.tensor([seed]),
    )

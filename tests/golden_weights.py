"""Deterministic weights in the layouts of the published checkpoints, for tests and benchmarks that compare.

Each number depends only on its tensor's name and shape, by the recipes that the other implementations ran with when
the numbers under test were made. tests/golden/keys.json.gz has the names and shapes of every checkpoint:

    mmdet    r50-caffe r50 r101-caffe x101-32x4d x101-64x4d
    peers    p1 (2018 port), p2_ms_r50 p2_ms_r101 p2_mask_r50 p2_mask_x101 (benchmark), p3_v1 p3_v1_current p3_v2
             (torchvision; the published names, and today's), p4 (Keras: [layer, [[weight, shape, name in p1]]])

Weights of a checkpoint are made once a process, on all cores: 0.5 to 2 s. Do not change the tensors in place.
"""

import functools
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

KEYS_FILE = Path(__file__).parent / "golden" / "keys.json.gz"
MMDET = ("r50-caffe", "r50", "r101-caffe", "x101-32x4d", "x101-64x4d")
PEERS = ("p1", "p2_ms_r50", "p2_ms_r101", "p2_mask_r50", "p2_mask_x101", "p3_v1", "p3_v1_current", "p3_v2")
ALIASES = {"benchmark": "p2_ms_r50", "torchvision": "p3_v1", "matterport": "p4", "port2018": "p1"}


############################################################
#  Names and shapes
############################################################


@functools.cache
def _all_keys() -> dict[str, list]:
    return json.loads(gzip.decompress(KEYS_FILE.read_bytes()))


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of a checkpoint of MMDET or PEERS, in the file's order."""
    return {tensor: tuple(shape) for tensor, shape in _all_keys()[name]}


def keras_layers() -> list[tuple[str, list[tuple[str, tuple[int, ...], str]]]]:
    """Layers of Matterport's .h5: name, and for each weight its name, shape and the name that it has in p1."""
    layers = _all_keys()["p4"]
    return [(layer, [(weight, tuple(shape), peer) for weight, shape, peer in weights]) for layer, weights in layers]


def empty_state_dict(name: str) -> dict[str, Tensor]:
    """Zeros of the right shapes that take no memory, ones for variances: for tests of names alone."""
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    return {tensor: (one if tensor.endswith("var") else zero).expand(shape) for tensor, shape in keys(name).items()}


############################################################
#  mmdetection's recipe: splitmix64
############################################################

_SQRT2 = math.sqrt(2.0)
# Prefix: gain of the weight, and the range of the bias.
_HEADS = {
    "neck.lateral_convs.": (1.0, -0.05, 0.05),
    "neck.fpn_convs.0.": (0.5, -0.05, 0.05),
    "neck.fpn_convs.1.": (0.7, -0.05, 0.05),
    "neck.fpn_convs.2.": (0.9, -0.05, 0.05),
    "neck.fpn_convs.3.": (1.2, -0.05, 0.05),
    "rpn_head.rpn_conv.": (_SQRT2, -0.1, 0.1),
    "rpn_head.rpn_cls.": (0.75, -2.5, -1.5),
    "rpn_head.rpn_reg.": (0.5, -0.1, 0.1),
    "roi_head.bbox_head.shared_fcs.": (_SQRT2, -0.1, 0.1),
    "roi_head.bbox_head.fc_cls.": (3.0, -0.5, 0.5),
    "roi_head.bbox_head.fc_reg.": (1.0, -0.2, 0.2),
    "roi_head.mask_head.convs.": (_SQRT2, -0.1, 0.1),
    "roi_head.mask_head.upsample.": (_SQRT2, -0.1, 0.1),
    "roi_head.mask_head.conv_logits.": (2.0, -0.5, 0.5),
    "roi_head.mask_iou_head.convs.": (_SQRT2, -0.1, 0.1),
    "roi_head.mask_iou_head.fcs.": (_SQRT2, -0.1, 0.1),
    "roi_head.mask_iou_head.fc_mask_iou.": (0.4, 0.2, 0.8),
}
_BLOCK = 9 * 1 << 12  # numbers at a time: they stay in the cache, and 3x3 kernels stay whole
_STEPS = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _uniform(name: str, count: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """change(numbers in [0, 1), float64) of a name's stream, as float32, a block at a time."""
    seed = np.uint64(zlib.crc32(name.encode()))
    result = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        offset = (start * 0x9E3779B97F4A7C15 + int(seed)) % (1 << 64)
        z = _STEPS[: count - start] + np.uint64(offset)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        z >>= np.uint64(40)
        result[start : start + _BLOCK] = change(z.astype(np.float64) * 2.0**-24)
    return result


def fill_mmdet(name: str, shape: Sequence[int], caffe: bool = False) -> np.ndarray:
    """A tensor of mmdetection's checkpoints; caffe: the images are not divided by a standard deviation."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = _uniform(name, math.prod(shape), _mmdet_rule(name, shape, caffe)).reshape(shape)
    if name == "roi_head.bbox_head.fc_cls.bias":
        values[-1] = 9.0  # background, the last class
    return values


def _mmdet_rule(name: str, shape: Sequence[int], caffe: bool) -> Callable[[np.ndarray], np.ndarray]:
    if name.startswith("backbone.") and len(shape) == 1:
        if name.endswith((".running_mean", ".bias")):
            return lambda u: -0.1 + 0.2 * u
        factor = 0.4 / (int(name.split(".")[2]) + 1) ** 0.5 if name.endswith(".bn3.weight") else 1.0
        return lambda u: (0.5 + u) * factor
    if name.startswith("backbone."):
        scale = _SQRT2 * (3.0 / math.prod(shape[1:])) ** 0.5
        divisor = 64.0 if caffe and name == "backbone.conv1.weight" else 1.0
        return lambda u: (2 * u - 1) * scale / divisor
    gain, low, high = next(values for prefix, values in _HEADS.items() if name.startswith(prefix))
    if name.endswith(".bias"):
        return lambda u: low + (high - low) * u
    scale = gain * (3.0 / (shape[0] if ".upsample." in name else math.prod(shape[1:]))) ** 0.5
    if name.startswith("neck.fpn_convs."):
        return lambda u: _without_mean(2 * u - 1) * scale
    return lambda u: (2 * u - 1) * scale


def _without_mean(values: np.ndarray) -> np.ndarray:
    kernels = values.reshape(-1, 1, 3, 3)
    return (kernels - kernels.mean(axis=(2, 3), keepdims=True)).ravel()


############################################################
#  The peers' recipe: NumPy's PCG64
############################################################

_LAST_NORM = re.compile(r"(^|\.)(fpn\.C\d|layer\d)\.\d+\.bn3\.weight$")
_TRANSPOSED = re.compile(r"(mask\.deconv|conv5_mask)\.weight$")
_FIRST_FC = re.compile(
    r"(box_head\.fc6|box_head\.5|box\.feature_extractor\.fc6|classifier\.conv1|maskiou_fc1)\.weight$"
)
_GAINS = {  # of He's scale, the first that is found
    r"^fpn\.C1\.0\.weight$": 0.03,
    r"^backbone\.body\.stem\.conv1\.weight$": 0.03,
    r"^backbone\.body\.conv1\.weight$": 2.0,
    r"(fpn\.P2_conv2|backbone\.fpn\.fpn_layer1|backbone\.fpn\.layer_blocks\.0)\.": 0.35,
    r"(fpn\.P3_conv2|backbone\.fpn\.fpn_layer2|backbone\.fpn\.layer_blocks\.1)\.": 0.55,
    r"(fpn\.P4_conv2|backbone\.fpn\.fpn_layer3|backbone\.fpn\.layer_blocks\.2)\.": 0.85,
    r"(fpn\.P5_conv2|backbone\.fpn\.fpn_layer4|backbone\.fpn\.layer_blocks\.3)\.": 1.6,
    r"(^fpn\.P\d_conv1|backbone\.fpn\.(fpn_inner|inner_blocks))": 0.70710678,
    r"(rpn\.conv_class|cls_logits)": 1.5,
    r"^rpn\.conv_bbox\.": 0.7,
    r"rpn\.head\.bbox_pred\.": 0.15,
    r"(\.fc6|box_head\.5|classifier\.conv1|maskiou_fc1)\.": 1.5,
    r"(linear_class|cls_score)\.": 3.0,
    r"(linear_bbox|box_predictor\.bbox_pred|box\.predictor\.bbox_pred)\.": 0.5,
    r"(mask\.conv5|mask_fcn_logits)\.": 4.0,
    r"maskiou\.predictor\.maskiou\.": 0.4,
}


_STATISTICS = ("num_batches_tracked", "running_var", "running_mean")


def _stream_of(name: str) -> np.random.Generator:
    """The random numbers of a tensor: the same wherever its name is the same."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _fill_statistics(name: str, shape: Sequence[int]) -> np.ndarray:
    """What a batch norm has counted. name: ends with one of _STATISTICS."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    stream = _stream_of(name)
    is_variance = name.endswith("running_var")
    return (0.5 + stream.random(shape) if is_variance else 0.1 * stream.standard_normal(shape)).astype(np.float32)


def fill_peer(name: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor of the 2018 port's, the paper's or torchvision's checkpoint, in their own naming."""
    if name.endswith(_STATISTICS):
        return _fill_statistics(name, shape)
    z = _stream_of(name).standard_normal(shape)
    if name.endswith("bias"):
        return _peer_bias(name, 0.05 * z)
    if len(shape) == 1:
        scale = 1.0 + 0.1 * z
        return (0.2 * scale if _LAST_NORM.search(name) else scale).astype(np.float32)
    return _peer_weight(name, z)


def _peer_bias(name: str, bias: np.ndarray) -> np.ndarray:
    if name.endswith("maskiou.predictor.maskiou.bias"):
        bias = bias + 0.6
    if name.endswith(("linear_class.bias", "cls_score.bias")):
        bias[0] += 2.0  # background
    return bias.astype(np.float32)


def _peer_weight(name: str, z: np.ndarray) -> np.ndarray:
    """He's scale, without the mean of each filter, or of each channel's 49 cells in the layer after RoI pooling."""
    shape, transposed = z.shape, _TRANSPOSED.search(name)
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    if _FIRST_FC.search(name):
        z = z.reshape(shape[0], -1, 49)
        axes: tuple[int, ...] = (2,)
    else:
        axes = (0,) if transposed else tuple(range(1, z.ndim))
    z -= z.mean(axis=axes, keepdims=True)
    z *= np.sqrt(2.0 / fan_in)
    z *= next((gain for pattern, gain in _GAINS.items() if re.search(pattern, name)), 1.0)
    return z.reshape(shape).astype(np.float32)


############################################################
#  Detectron2: the peers' recipe under its names
############################################################

_DETECTRON2_LAST_NORM = re.compile(r"res\d\.\d+\.conv3\.norm\.weight$")
_DETECTRON2_GAINS = {  # of He's scale, the first that is found
    r"fpn_output2\.": 0.35,
    r"fpn_output3\.": 0.55,
    r"fpn_output4\.": 0.85,
    r"fpn_output5\.": 1.6,
    r"fpn_lateral\d\.": 0.70710678,
    r"rpn_head\.objectness_logits\.": 1.5,
    r"rpn_head\.anchor_deltas\.": 0.15,
    r"box_head\.fc1\.": 1.5,
    r"box_predictor\.cls_score\.": 3.0,
    r"box_predictor\.bbox_pred\.": 0.5,
    r"mask_head\.predictor\.": 4.0,
}


def fill_detectron2(name: str, shape: Sequence[int], divides: bool = False) -> np.ndarray:
    """A tensor of Detectron2's checkpoints. divides: its images are divided by a standard deviation."""
    if name.endswith(_STATISTICS):
        return _fill_statistics(name, shape)
    z = _stream_of(name).standard_normal(shape)
    if name.endswith("bias"):
        bias = 0.05 * z
        if name.endswith("cls_score.bias"):
            bias[-1] += 2.0  # background, the last class
        return bias.astype(np.float32)
    if len(shape) == 1:
        scale = 1.0 + 0.1 * z
        return (0.2 * scale if _DETECTRON2_LAST_NORM.search(name) else scale).astype(np.float32)
    transposed = name.endswith("mask_head.deconv.weight")
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    if name.endswith("box_head.fc1.weight") and shape[1] % 49 == 0:
        z = z.reshape(shape[0], -1, 49)
        z = (z - z.mean(axis=2, keepdims=True)).reshape(shape)
    else:
        z -= z.mean(axis=(0,) if transposed else tuple(range(1, len(shape))), keepdims=True)
    gain = next((gain for pattern, gain in _DETECTRON2_GAINS.items() if re.search(pattern, name)), 1.0)
    if name.endswith("bottom_up.stem.conv1.weight"):
        gain = 2.0 if divides else 0.03
    return (z * np.sqrt(2.0 / fan_in) * gain).astype(np.float32)


############################################################
#  Checkpoints
############################################################


@functools.lru_cache(maxsize=2)
def _weights(name: str) -> dict[str, Tensor]:
    shapes = keys(name)
    fill = functools.partial(fill_mmdet, caffe="caffe" in name) if name in MMDET else fill_peer
    largest_first = sorted(shapes, key=lambda tensor: -math.prod(shapes[tensor]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(
            zip(largest_first, pool.map(lambda tensor: fill(tensor, shapes[tensor]), largest_first), strict=True)
        )
    return {tensor: torch.from_numpy(made[tensor]) for tensor in shapes}


def mmdet_checkpoint(name: str) -> dict[str, Any]:
    """{"meta", "state_dict"} of a name of MMDET, as mmdetection 2 saves it; nothing in it tells the style."""
    return {"meta": {"mmdet_version": "2.3.0", "epoch": 12}, "state_dict": dict(_weights(name))}


def peer_state_dict(name: str) -> dict[str, Tensor]:
    """The state dict of a name of PEERS. The benchmark's cell anchors, which are no weights, have no meaning here."""
    return dict(_weights(name))


def write_checkpoint(name: str, folder: str | Path) -> Path:
    """A checkpoint of MMDET, PEERS, p4 or ALIASES as its own code would save it, named like a published one."""
    folder, name = Path(folder), ALIASES.get(name, name)
    if name in MMDET:
        path = folder / f"ms_rcnn_{name.replace('-caffe', '_caffe').replace('x101-', 'x101_')}_fpn_1x_coco.pth"
        torch.save(mmdet_checkpoint(name), path)
        return path
    if name == "p4":
        return write_keras(folder / "mask_rcnn_coco.h5")
    path = folder / f"{name}.pth"
    state = peer_state_dict(name)
    torch.save({"model": state, "optimizer": {}, "iteration": 0} if name.startswith("p2") else state, path)
    return path


def to_keras(tensor: np.ndarray) -> np.ndarray:
    """A tensor of torch in Keras' order: [y, x, in, out], [y, x, out, in] of a transposed convolution, [in, out]."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def write_keras(path: str | Path, weights: dict[str, Tensor] | None = None) -> Path:
    """Matterport's .h5, as Keras' save_weights writes it, with p1's weights or those given under p1's names."""
    weights = _weights("p1") if weights is None else weights
    with h5py.File(path, "w") as file:
        layers = keras_layers()
        file.attrs["layer_names"] = np.array([layer.encode() for layer, _ in layers])
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.8"
        for layer, members in layers:
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array(
                [weight.encode() for weight, _, _ in members] or [], "S" if members else "f8"
            )
            for weight, _, peer in members:
                group.create_dataset(weight, data=to_keras(weights[peer].numpy()))
    return Path(path)

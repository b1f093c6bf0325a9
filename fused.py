"""Convolutions and products for inference that add bias, residual and ReLU while they write their result.

A convolution of a feature map takes little longer than reading and writing the map, on a processor with matrix units.
A pass over the map for the residual and one for the ReLU then cost more than the convolution itself. oneDNN on a CPU,
and cuDNN on a GPU, compute all of it in one pass. Each of them is tried once in a process, on a small input. Where the
result differs from torch's plain operations, or where the operation is missing, the plain ones are used.

Only where no gradient flows, no program is being exported, and autocast is off: elsewhere the plain operations run.

Where a CPU has no instructions for bfloat16, such as one with AVX2 or AVX-512 alone, the plain operations compute it in
float32, and round their results: what torch and oneDNN do there is far slower (benchmarks/NOTES.md).
"""

import functools
import logging
import platform

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

############################################################
#  Convolution
############################################################


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(convolution + bias + residual).

    x: [B, C, H, W], channels_last to be fast. weight: [out, C / groups, k, k]. bias: [out].
    residual: of the shape and dtype of the result. It may be overwritten.

    Returns: [B, out, h, w].
    """
    if x.is_contiguous(memory_format=torch.channels_last) and _may_fuse(x):
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and (relu or residual is not None):
            return _onednn(x, weight, bias, stride, padding, groups, residual, relu)
        if x.device.type == "cuda" and relu and bias is not None:
            return _cudnn(x, weight, bias, stride, padding, groups, residual, relu)
    return _plain(x, weight, bias, stride, padding, groups, residual, relu)


def _plain(x, weight, bias, stride, padding, groups, residual, relu) -> Tensor:
    wide = _widened(x, weight, bias)
    x = F.conv2d(*wide, stride, padding, 1, groups).to(x.dtype)
    if residual is not None:
        x += residual
    return x.relu_() if relu else x


def _onednn(x, weight, bias, stride, padding, groups, residual, relu) -> Tensor:
    numbers = (weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, *numbers, "relu", [], "")
    unary = "relu" if relu else None
    return torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, *numbers, "add", 1.0, unary, [], None)


def _cudnn(x, weight, bias, stride, padding, groups, residual, relu) -> Tensor:
    assert relu, "cuDNN has no fused operation without ReLU"
    numbers = ([stride] * 2, [padding] * 2, [1, 1], groups)
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *numbers)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *numbers)


def _may_fuse(x: Tensor) -> bool:
    """Whether a fused operation gives what the plain ones would."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or is_exporting():
        return False
    return x.numel() > 0 and fuses(x.device.type, x.dtype)


def is_exporting() -> bool:
    """Whether the operations are recorded for another program, which may lack oneDNN's and cuDNN's."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@functools.cache
def fuses(device: str, dtype: torch.dtype) -> bool:
    """Whether this process uses fused operations on a kind of device ("cpu" or "cuda") in a dtype.

    It does where small convolutions, with a residual and without, and on a CPU a small product too, come out as the
    plain operations compute them.
    """
    convolution = {"cpu": _onednn, "cuda": _cudnn}.get(device)
    if convolution is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    if device == "cpu" and not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if widens(device, dtype):
        return False
    options = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    x = torch.arange(2 * 16 * 36).view(2, 16, 6, 6).sin().to(**options)
    weight = torch.arange(16 * 16 * 9).view(16, 16, 3, 3).cos().to(**options)
    bias, limit = x[0, :, 0, 0].clone(), 1e-4 if dtype == torch.float32 else 0.02
    rows, matrix = x.flatten(2)  # [16, 36] each
    numbers = (x, weight, bias, 1, 1, 1)
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            pairs = [
                (convolution(*numbers, None, True), _plain(*numbers, None, True)),
                (convolution(*numbers, x.clone(), True), _plain(*numbers, x, True)),
            ]
            if device == "cpu":
                pairs.append((_product(rows, matrix, bias, True), F.linear(rows, matrix, bias).relu_()))
    except (RuntimeError, AttributeError, NotImplementedError):  # this torch, or this processor, has no such operation
        return False
    return all(
        result.shape == expected.shape and (result - expected).abs().max() <= limit * expected.abs().max()
        for result, expected in pairs
    )


@functools.cache
def widens(device: str, dtype: torch.dtype) -> bool:
    """Whether plain convolutions and products in a dtype are computed in float32 on a kind of device.

    That is so for bfloat16 on a CPU without instructions for it; a warning says it once. With AVX-512 alone, oneDNN
    imitates them, and takes more than four times as long as for float32.
    """
    if device != "cpu" or dtype != torch.bfloat16:
        return False
    is_on = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if is_on and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bfloat16():
        return False
    logger.warning("this processor cannot compute in bfloat16: products take float32, and float32 throughout is faster")
    return True


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16. Of those that are not x86, oneDNN knows it."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _widened(*operands: Tensor | None) -> list[Tensor | None]:
    """The operands as they are multiplied. The first one decides."""
    x = operands[0]
    if is_exporting() or not widens(x.device.type, x.dtype):
        return list(operands)
    return [None if operand is None else operand.float() for operand in operands]


############################################################
#  Product
############################################################


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear: x weight^T + bias. x: [R, in]. weight: [out, in]. Returns: [R, out]."""
    return F.linear(*_widened(x, weight, bias)).to(x.dtype)


def multiply(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """relu(x weight^T + bias), with gradients or without. x: [R, in]. weight: [out, in]. Returns: [R, out]."""
    if x.device.type == "cpu" and _may_fuse(x):
        return _product(x, weight, bias, relu)
    x = linear(x, weight, bias)
    return x.relu_() if relu else x


def _product(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """multiply() by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")

"""RoI pooling: crops of feature maps and masks, resampled to one size; and pasting, the way back.

roi_align and pyramid_roi_align are the operator of torchvision and mmdetection. crop_and_resize is TensorFlow's, which
Matterport uses. crop_masks is roi_align of masks that are stored as crops of 0 and 1; mask_areas gives their areas
inside boxes. paste_masks and paste_rles put predicted masks into an image (paste.py).

Native kernels run where `make kernels` built them: for float32 and bfloat16 on the CPU; for float32, float16 and
bfloat16 on CUDA. Elsewhere, and for float64, the reference in torch runs. Sums are float32.

    B images   C channels   R RoIs   L levels   G masks   P RoIs of masks
    Boxes are (y1, x1, y2, x2); (y2, x2) lies outside. Height is y2 - y1, with no +1.

Features may have any strides. Channels_last is the fast layout; the result is then channels_last too.
Gradients flow to the features, not to the boxes. An RoI that is not finite pools to zeros.
"""

import ctypes
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

import native
from roialign import paste, reference, resize
from roialign.paste import PASTE_RULES, paste_masks, paste_rles

__all__ = [
    "PASTE_RULES",
    "MaskCrops",
    "crop_and_resize",
    "crop_masks",
    "mask_areas",
    "paste_masks",
    "paste_rles",
    "pyramid_crop_and_resize",
    "pyramid_roi_align",
    "roi_align",
]

MAX_LEVELS = 8  # kMaxLevels in src/roi_align.h
MAX_SAMPLING_RATIO = 4096  # more than any feature map has cells; tables of samples must fit into memory
MAX_SIDE = 2**24  # of masks and results; kMaxSide in src/mask_crop.h
MAX_MAP_SIDE = 2**26  # of feature maps; the samples of an RoI may need a table of 24 bytes for each row and column


############################################################
#  Public functions
############################################################


def roi_align(
    features: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign: the average of bilinear samples in each bin of each RoI.

    features: [B, C, H, W] floating.
    rois: [R, (y1, x1, y2, x2)] in pixels.
    batch_index: integers [R] in [0, B), the image of each RoI. Other numbers raise a ValueError on the CPU and pool to
        zeros on CUDA, where a check would stop the stream.
    output_size: (height, width) of the result, or one number for both.
    spatial_scale: feature cells a pixel, such as 1/16.
    sampling_ratio: samples of a bin along each axis; 0 or less takes ceil(bin size in cells).
    aligned: True puts pixel centres at half-integers (mmdetection). False is the legacy rule of torchvision's models
        and maskrcnn-benchmark, which also makes an RoI at least one cell large.

    Returns: [R, C, *output_size], dtype of features.
    Raises: ValueError for wrong shapes, dtypes, devices or numbers.
    Source: Mask R-CNN (arXiv:1703.06870); equal to the bit to torchvision.ops.roi_align on a CPU.
    """
    return _pyramid([features], rois, batch_index, None, output_size, [spatial_scale], sampling_ratio, aligned)


def pyramid_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    batch_index: Tensor,
    levels: Tensor,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """roi_align of each RoI from its own pyramid level, all levels in one call, in the order of the RoIs.

    features: L maps [B, C, H, W], for example P2 to P5, at most 8. H and W may differ between maps.
    levels: integers [R] in [0, L), the map that each RoI is pooled from. Other numbers: as in batch_index.
    spatial_scales: L numbers, cells a pixel of each map, such as (1/4, 1/8, 1/16, 1/32).
    rois, batch_index, output_size, sampling_ratio, aligned: as for roi_align.

    Returns: [R, C, *output_size], dtype of features.
    Raises: ValueError as roi_align, and for maps that differ in B, C, dtype or device.
    Source: FPN (arXiv:1612.03144), section 4.2.
    """
    return _pyramid(list(features), rois, batch_index, levels, output_size, spatial_scales, sampling_ratio, aligned)


def crop_and_resize(
    image: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    crop_size: int | tuple[int, int],
    extrapolation_value: float = 0.0,
) -> Tensor:
    """tf.image.crop_and_resize with method="bilinear": one sample a bin, box corners on samples.

    image: [B, C, H, W] floating (TensorFlow's is [B, H, W, C]).
    boxes: [R, (y1, x1, y2, x2)], normalised: 0 is the centre of the first row or column, 1 the centre of the last.
    batch_index: integers [R] in [0, B), the image of each box. Other numbers: as for roi_align.
    crop_size: (height, width) of the result, or one number for both. One row or column samples the box's centre.
    extrapolation_value: the result where a sample lies outside of the image or the box is not finite.

    Returns: [R, C, *crop_size], dtype of image.
    Raises: ValueError for wrong shapes, dtypes, devices or numbers.
    Source: TensorFlow's crop_and_resize_op.cc, its float32 order of operations included.
    """
    size = _pair("crop_size", crop_size)
    rois, batch_index = _check_inputs("image", [image], "boxes", boxes, batch_index, None)
    if not -math.inf < extrapolation_value < math.inf:
        raise ValueError(f"extrapolation_value must be finite, not {extrapolation_value}")
    return _roi_pool([image], rois, batch_index, None, size, [1.0], 1, False, True, float(extrapolation_value))


def pyramid_crop_and_resize(
    features: Sequence[Tensor], boxes: Tensor, batch_index: Tensor, levels: Tensor, crop_size: int | tuple[int, int]
) -> Tensor:
    """crop_and_resize of each box from its own pyramid level, all levels in one call, in the order of the boxes.

    features: L maps [B, C, H, W], at most 8. H and W may differ between maps. Samples outside of a map are 0.
    boxes: [R, (y1, x1, y2, x2)], normalised as for crop_and_resize, alike for every level.
    levels: integers [R] in [0, L). batch_index, crop_size: as for crop_and_resize.

    Returns: [R, C, *crop_size], dtype of features.
    Raises: ValueError as crop_and_resize, and for maps that differ in B, C, dtype or device.
    Source: Matterport's PyramidROIAlign.
    """
    features, size = list(features), _pair("crop_size", crop_size)
    rois, batch_index = _check_inputs("features", features, "boxes", boxes, batch_index, levels)
    return _roi_pool(features, rois, batch_index, levels.long(), size, [1.0] * len(features), 1, False, True, 0.0)


class MaskCrops(NamedTuple):
    """G masks of 0 and 1. Each is stored as a crop of its canvas, which is 0 everywhere else.

    One flat tensor holds the pixels of all crops, whatever their sizes. Pixels outside of the canvas do not count.
    """

    pixels: Tensor  # uint8 [sum of height * width], row by row, one crop after another
    offsets: Tensor  # int64 [G], where each crop starts in pixels
    sizes: Tensor  # int64 [G, (height, width)] of each crop; 0 x 0 is an empty mask
    origins: Tensor  # int64 [G, (y, x)], the crop's first pixel in its canvas
    canvases: Tensor  # int64 [G, (height, width)]


def crop_masks(masks: MaskCrops, rois: Tensor, mask_index: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """RoIAlign of masks: the share of each bin of each RoI that its mask covers.

    Equal to the bit to roi_align(canvas, ..., spatial_scale=1.0, sampling_ratio=0, aligned=True) of the mask's whole
    canvas in float32, but made without the canvas.

    masks: G masks, on one device.
    rois: floating [P, (y1, x1, y2, x2)] in pixels of the canvas; they may reach out of it.
    mask_index: integers [P] in [0, G), the mask of each RoI. Other numbers, and a crop that reaches out of
        masks.pixels, raise a ValueError on the CPU and give zeros on CUDA, where a check would stop the stream.
    output_size: (height, width) of the result, or one number for both.

    Returns: float32 [P, *output_size] in [0, 1] up to rounding. Carries no gradient.
    Raises: ValueError for wrong shapes, dtypes, devices or numbers.
    Source: mmdetection's BitmapMasks.crop_and_resize, before it compares with 0.5.
    """
    size = _pair("output_size", output_size)
    return _crop_masks(*masks, *_check_masks(masks, "rois", rois, mask_index), size)


def mask_areas(masks: MaskCrops, boxes: Tensor, mask_index: Tensor) -> Tensor:
    """Area of masks inside boxes. A pixel counts by the part of its square that lies in the box.

    So a box of whole numbers counts pixels, and a box of the whole canvas, or (-inf, -inf, inf, inf), gives the mask's
    area.

    masks: G masks, on one device.
    boxes: floating [P, (y1, x1, y2, x2)] in pixels of the canvas, rounded to float32; they may reach out of it. The
        area is 0 in a box that is empty, upside down or NaN.
    mask_index: integers [P] in [0, G), the mask of each box. Other numbers: as for crop_masks.

    Returns: float32 [P], in pixels, summed in float64. Carries no gradient.
    Raises: ValueError for wrong shapes, dtypes, devices or numbers.
    """
    return _mask_areas(*masks, *_check_masks(masks, "boxes", boxes, mask_index))


############################################################
#  Checks
############################################################


def _pyramid(features, rois, batch_index, levels, output_size, spatial_scales, sampling_ratio, aligned) -> Tensor:
    size = _pair("output_size", output_size)
    rois, batch_index = _check_inputs("features", features, "rois", rois, batch_index, levels)
    scales = [float(scale) for scale in spatial_scales]
    levels = None if levels is None else levels.long()
    _check_rule(len(features), scales, sampling_ratio)
    sampling_ratio = max(int(sampling_ratio), 0)
    return _roi_pool(features, rois, batch_index, levels, size, scales, sampling_ratio, bool(aligned), False, 0.0)


def _check_rule(maps: int, scales: Sequence[float], sampling_ratio: int) -> None:
    """Raises ValueError for numbers that RoIAlign cannot sample so many maps with."""
    if len(scales) != maps:
        raise ValueError(f"spatial_scales has {len(scales)} numbers for {maps} feature maps")
    if not all(0 < scale < math.inf for scale in scales):  # comparisons, which torch.compile can trace
        raise ValueError(f"spatial scales must be positive numbers such as 1/16, not {scales}")
    # The comparison comes before int(), which fails for infinities and NaN.
    if not (-math.inf < sampling_ratio <= MAX_SAMPLING_RATIO and sampling_ratio == int(sampling_ratio)):
        raise ValueError(f"sampling_ratio must be an integer of at most {MAX_SAMPLING_RATIO}, not {sampling_ratio}")


def _pair(name: str, size: int | Sequence[int]) -> list[int]:
    """(height, width) from one number or two, of any integer type."""
    try:
        sides = list(size) if isinstance(size, (tuple, list)) else [size, size]
        pair = [side if isinstance(side, (int, torch.SymInt)) else operator.index(side) for side in sides]
    except TypeError:
        pair = []
    if len(pair) != 2 or not all(0 < side <= MAX_SIDE for side in pair):
        raise ValueError(f"{name} must be a positive integer or (height, width), not {size!r}; at most {MAX_SIDE}")
    return pair


def _check_inputs(
    name: str, features: list[Tensor], rois_name: str, rois: Tensor, batch_index: Tensor, levels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Raises ValueError unless the RoIs can be pooled. Returns rois and batch_index in the dtypes that the op takes."""
    named = [(name, feature) for feature in features] + [(rois_name, rois), ("batch_index", batch_index)]
    for tensor_name, tensor in [*named, *([] if levels is None else [("levels", levels)])]:
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{tensor_name} must be a torch.Tensor, not {kind}; torch.as_tensor makes one")
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ValueError(f"{name} must be 1 to {MAX_LEVELS} feature maps, not {len(features)}")
    for feature in features:
        if feature.ndim != 4 or feature.dtype not in _FLOAT_DTYPES:
            raise ValueError(f"{name} must be floating [B, C, H, W], not {feature.dtype} {list(feature.shape)}")
        if feature.shape[2] > MAX_MAP_SIDE or feature.shape[3] > MAX_MAP_SIDE:
            raise ValueError(f"{name} {list(feature.shape)} may have at most {MAX_MAP_SIDE} rows and columns")
        if (feature.shape[:2], feature.dtype) != (features[0].shape[:2], features[0].dtype):
            kinds = [f"{feature.dtype} {list(feature.shape)}" for feature in features]
            raise ValueError(f"{name} must agree in B, C and dtype; they are {', '.join(kinds)}")
    if rois.ndim != 2 or rois.shape[1] != 4 or not rois.is_floating_point():
        hint = "; the image of each goes into batch_index" if rois.ndim == 2 and rois.shape[1] == 5 else ""
        raise ValueError(
            f"{rois_name} must be floating [R, (y1, x1, y2, x2)], not {rois.dtype} {list(rois.shape)}{hint}"
        )
    for index_name, index in {"batch_index": batch_index, "levels": levels}.items():
        if index is not None and (index.shape != rois.shape[:1] or index.dtype not in _INDEX_DTYPES):
            raise ValueError(
                f"{index_name} must be integers [R], one for each of {rois.shape[0]} {rois_name}, "
                f"not {index.dtype} {list(index.shape)}")  # fmt: skip
    devices = {str(t.device) for t in (*features, rois, batch_index, levels) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"{name}, {rois_name}, batch_index and levels must be on one device, not {sorted(devices)}")
    wide = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    return rois.detach().to(wide), batch_index.long()


def _check_masks(masks: MaskCrops, boxes_name: str, boxes: Tensor, mask_index: Tensor) -> tuple[Tensor, Tensor]:
    """Raises ValueError unless these are masks and boxes. Returns boxes and mask_index in the dtypes of the ops."""
    if not isinstance(masks, MaskCrops):
        raise ValueError(f"masks must be MaskCrops, not {type(masks).__name__}")
    named = {f"masks.{field}": tensor for field, tensor in masks._asdict().items()}
    named |= {boxes_name: boxes, "mask_index": mask_index}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}; torch.as_tensor makes one")
    if masks.pixels.ndim != 1 or masks.pixels.dtype != torch.uint8:
        kind = f"{masks.pixels.dtype} {list(masks.pixels.shape)}"
        raise ValueError(f"masks.pixels must be uint8 [pixels of all masks], 0 or 1 each, not {kind}")
    count = masks.offsets.shape[0] if masks.offsets.ndim else 0
    for field in ("offsets", "sizes", "origins", "canvases"):
        tensor, shape = getattr(masks, field), (count,) if field == "offsets" else (count, 2)
        if tensor.shape != shape or tensor.dtype != torch.int64:
            kind = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"masks.{field} must be int64 {list(shape)}, one for each mask, not {kind}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        kind = f"{boxes.dtype} {list(boxes.shape)}"
        raise ValueError(f"{boxes_name} must be floating [P, (y1, x1, y2, x2)], not {kind}")
    if mask_index.shape != boxes.shape[:1] or mask_index.dtype not in _INDEX_DTYPES:
        raise ValueError(
            f"mask_index must be integers [P], one for each of {boxes.shape[0]} {boxes_name}, "
            f"not {mask_index.dtype} {list(mask_index.shape)}")  # fmt: skip
    devices = sorted({str(tensor.device) for tensor in named.values()})
    if len(devices) > 1:
        raise ValueError(f"masks, {boxes_name} and mask_index must be on one device, not {devices}")
    return boxes.detach().float(), mask_index.long()


def _check_pooling(
    features: Sequence[Tensor],
    rois: Tensor,
    batch_index: Tensor,
    levels: Tensor | None,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    crop: bool,
    outside: float,
) -> None:
    """Raises ValueError unless a kernel can pool this. Kernels believe shapes and dtypes; anyone may call the op."""
    height, width = _pair("output_size", list(output_size))
    _check_inputs("features", list(features), "rois", rois, batch_index, levels)
    _check_rule(len(features), scales, sampling_ratio)
    _check_size("output_size", (rois.shape[0], features[0].shape[1], height, width))
    if not crop and outside != 0:
        raise ValueError(f"outside of the op must be 0 for RoIAlign, not {outside}")
    _check_op_dtypes(features[0], rois, {"batch_index": batch_index, "levels": levels})
    if rois.device.type == "cpu":
        _check_indices(batch_index, features[0].shape[0], levels, len(features))


def _check_spreading(
    grad: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    levels: Tensor | None,
    images: int,
    sizes: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> None:
    """_check_pooling of the gradient's op."""
    _check_inputs("grad", [grad], "rois", rois, batch_index, levels)
    maps = len(sizes) // 2
    if len(sizes) % 2 or not 1 <= maps <= MAX_LEVELS or not all(0 <= side <= MAX_MAP_SIDE for side in sizes):
        raise ValueError(f"sizes must be the heights and widths of 1 to {MAX_LEVELS} maps in turn, not {list(sizes)}")
    if images < 0:
        raise ValueError(f"images must be a number of at least 0, not {images}")
    if grad.ndim != 4 or grad.shape[0] != rois.shape[0] or 0 in grad.shape[2:]:
        raise ValueError(f"grad {list(grad.shape)} must be [R, C, height, width] of {rois.shape[0]} rois")
    _check_rule(maps, scales, sampling_ratio)
    for i in range(0, len(sizes), 2):
        _check_size("sizes", (images, grad.shape[1], *sizes[i : i + 2]))
    _check_op_dtypes(grad, rois, {"batch_index": batch_index, "levels": levels})
    if rois.device.type == "cpu":
        _check_indices(batch_index, images, levels, maps)


def _check_size(name: str, shape: Sequence[int]) -> None:
    """Raises ValueError for a tensor that no machine has memory for. math.prod does not wrap."""
    if math.prod(shape) > 2**44:
        raise ValueError(f"{name} would make a tensor {list(shape)}, which is too large for any memory")


def _check_op_dtypes(features: Tensor, rois: Tensor, indices: dict[str, Tensor | None]) -> None:
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    if rois.dtype != wide:
        raise ValueError(f"rois of the op must be {wide} for features of {features.dtype}, not {rois.dtype}")
    for name, index in indices.items():
        if index is not None and index.dtype != torch.int64:
            raise ValueError(f"{name} of the op must be int64, not {index.dtype}")


def _check_mask_op(masks: MaskCrops, boxes: Tensor, mask_index: Tensor, output_size: Sequence[int] = (1, 1)) -> None:
    """_check_pooling of the ops of masks."""
    _check_masks(masks, "boxes", boxes, mask_index)
    _check_size("output_size", (boxes.shape[0], *_pair("output_size", list(output_size))))
    if boxes.dtype != torch.float32:
        raise ValueError(f"boxes of the op must be float32, not {boxes.dtype}")
    if mask_index.dtype != torch.int64:
        raise ValueError(f"mask_index of the op must be int64, not {mask_index.dtype}")
    if boxes.device.type == "cpu":
        _check_crops(masks, mask_index)


def _check_crops(masks: MaskCrops, mask_index: Tensor) -> None:
    """Raises ValueError for a mask that does not exist. Reads values, so call it only where that is cheap."""
    count = len(masks.offsets)
    if len(mask_index) and not (int(mask_index.min()) >= 0 and int(mask_index.max()) < count):
        raise ValueError(
            f"mask_index must lie in [0, {count}), but goes from {int(mask_index.min())} to {int(mask_index.max())}; "
            f"there {'is 1 mask' if count == 1 else f'are {count} masks'}")  # fmt: skip
    if count == 0:
        return
    sides = torch.cat([masks.sizes, masks.origins.abs(), masks.canvases])  # the absolute of -2^63 is negative
    if sides.max() > MAX_SIDE or masks.origins.min() < -MAX_SIDE or masks.canvases.min() < 0:
        raise ValueError(
            f"masks.sizes, masks.origins and masks.canvases must be at most {MAX_SIDE}, and canvases at least 0, but "
            f"they go from {int(sides.min())} to {int(sides.max())}; are they pixels, and (height, width)?"
        )
    height, width = masks.sizes.T
    room = len(masks.pixels) - masks.offsets
    # Not height * width > room: the product of two huge sides is a small number.
    too_long = torch.where(width > 0, height > room.div(width.clamp(min=1), rounding_mode="floor"), room < 0)
    wrong = (masks.sizes < 0).any(dim=1) | (masks.offsets < 0) | too_long
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"masks.offsets and masks.sizes must lie in the {len(masks.pixels)} pixels of masks, but mask {first} has "
            f"offset {int(masks.offsets[first])} and size {masks.sizes[first].tolist()}; were pixels of some masks "
            "dropped, or offsets not moved when masks were joined?")  # fmt: skip


_FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _check_indices(batch_index: Tensor, images: int, levels: Tensor | None, level_count: int) -> None:
    """Raises ValueError for an image or level that does not exist. Reads values: call it only where that is cheap."""
    for name, index, limit in (("batch_index", batch_index, images), ("levels", levels, level_count)):
        if index is not None and len(index) and not (int(index.min()) >= 0 and int(index.max()) < limit):
            raise ValueError(
                f"{name} must lie in [0, {limit}), but goes from {int(index.min())} to {int(index.max())}; "
                f"there {'is' if limit == 1 else 'are'} {limit} {'image' if name == 'batch_index' else 'level'}"
                f"{'' if limit == 1 else 's'}")  # fmt: skip


############################################################
#  The op
############################################################

# One op has both rules. crop chooses crop_and_resize, which ignores spatial_scales, sampling_ratio and aligned.
# Autocast does not change it: features are pooled in their own dtype, and boxes stay float32.


def _pool_in_torch(
    features: Sequence[Tensor],
    rois: Tensor,
    batch_index: Tensor,
    levels: Optional[Tensor],
    output_size: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    crop: bool,
    outside: float,
) -> Tensor:
    rule = (output_size, spatial_scales, sampling_ratio, aligned, crop, outside)
    _check_pooling(features, rois, batch_index, levels, *rule)
    if crop:
        pooled = reference.pyramid_crop_and_resize(features, rois, batch_index, levels, output_size, outside)
    else:
        pooled = reference.pyramid_roi_align(
            features, rois, batch_index, levels, output_size, spatial_scales, sampling_ratio, aligned
        )
    return pooled.contiguous(memory_format=_layout(features[0]))


_roi_pool = torch.library.custom_op("maskscoring::roi_pool", _pool_in_torch, mutates_args=())


@_roi_pool.register_fake
def _(features, rois, batch_index, levels, output_size, spatial_scales, sampling_ratio, aligned, crop, outside):
    shape = (rois.shape[0], features[0].shape[1], *output_size)
    return torch.empty(shape, dtype=features[0].dtype, device=features[0].device, memory_format=_layout(features[0]))


def _layout(features: Tensor) -> torch.memory_format:
    """The memory format of the result: channels_last if the channels of features lie side by side."""
    interleaved = features.shape[1] > 1 and features.stride(1) == 1
    return torch.channels_last if interleaved else torch.contiguous_format


def _backward_in_torch(
    grad: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    levels: Optional[Tensor],
    images: int,
    sizes: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    crop: bool,
    channels_last: bool,
) -> list[Tensor]:
    """Gradients of feature maps of the given sizes. Pooling is linear, so the features themselves are not needed."""
    _check_spreading(grad, rois, batch_index, levels, images, sizes, spatial_scales, sampling_ratio)
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    maps = [fmap.zero_() for fmap in _new_maps(wide, images, grad.shape[1], sizes, channels_last)]
    if crop:
        reference.pyramid_crop_and_resize_backward(wide, maps, rois, batch_index, levels)
    else:
        reference.pyramid_roi_align_backward(
            wide, maps, rois, batch_index, levels, spatial_scales, sampling_ratio, aligned
        )
    return [fmap.to(grad.dtype) for fmap in maps]


_roi_pool_backward = torch.library.custom_op("maskscoring::roi_pool_backward", _backward_in_torch, mutates_args=())


@_roi_pool_backward.register_fake
def _(
    grad, rois, batch_index, levels, images, sizes, spatial_scales, sampling_ratio, aligned, crop, channels_last
):  # fmt: skip
    return _new_maps(grad, images, grad.shape[1], sizes, channels_last)


def _new_maps(like: Tensor, images: int, channels: int, sizes: Sequence[int], channels_last: bool, **options) -> list:
    """Uninitialised feature maps [images, channels, height, width], one for each pair of numbers in sizes."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shapes = ((images, channels, *sizes[i : i + 2]) for i in range(0, len(sizes), 2))
    options = {"dtype": like.dtype, "device": like.device, **options}
    return [torch.empty(shape, memory_format=layout, **options) for shape in shapes]


def _setup_context(ctx, inputs, output) -> None:
    features, rois, batch_index, levels, _, spatial_scales, sampling_ratio, aligned, crop, _ = inputs
    ctx.save_for_backward(rois, batch_index, *([] if levels is None else [levels]))
    ctx.sizes = [side for feature in features for side in feature.shape[2:]]
    ctx.images = features[0].shape[0]
    ctx.rule = (spatial_scales, sampling_ratio, aligned, crop, _layout(features[0]) == torch.channels_last)


def _autograd(ctx, grad):
    rois, batch_index, *levels = ctx.saved_tensors
    grads = _roi_pool_backward(grad, rois, batch_index, levels[0] if levels else None, ctx.images, ctx.sizes, *ctx.rule)
    return grads, *[None] * 9


_roi_pool.register_autograd(_autograd, setup_context=_setup_context)


############################################################
#  The ops of masks
############################################################


def _crop_masks_in_torch(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    origins: Tensor,
    canvases: Tensor,
    rois: Tensor,
    mask_index: Tensor,
    output_size: Sequence[int],
) -> Tensor:
    masks = MaskCrops(pixels, offsets, sizes, origins, canvases)
    _check_mask_op(masks, rois, mask_index, output_size)
    return reference.crop_masks(*masks, rois, mask_index, output_size)


_crop_masks = torch.library.custom_op("maskscoring::crop_masks", _crop_masks_in_torch, mutates_args=())


@_crop_masks.register_fake
def _(pixels, offsets, sizes, origins, canvases, rois, mask_index, output_size):
    return rois.new_empty(rois.shape[0], *output_size)


def _mask_areas_in_torch(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    origins: Tensor,
    canvases: Tensor,
    boxes: Tensor,
    mask_index: Tensor,
) -> Tensor:
    masks = MaskCrops(pixels, offsets, sizes, origins, canvases)
    _check_mask_op(masks, boxes, mask_index)
    return reference.mask_areas(*masks, boxes, mask_index)


_mask_areas = torch.library.custom_op("maskscoring::mask_areas", _mask_areas_in_torch, mutates_args=())


@_mask_areas.register_fake
def _(pixels, offsets, sizes, origins, canvases, boxes, mask_index):
    return boxes.new_empty(boxes.shape[0])


############################################################
#  Native kernels
############################################################

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # their codes in src/


class _Level(ctypes.Structure):  # Level in src/roi_align.h, and so on
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_int64 * 2),
        ("strides", ctypes.c_int64 * 4),
        ("scale", ctypes.c_float),
    ]


class _Pooling(ctypes.Structure):
    _fields_ = [
        ("levels", _Level * MAX_LEVELS),
        ("level_count", ctypes.c_int64),
        ("images", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("bins", ctypes.c_int64 * 2),
        ("sampling_ratio", ctypes.c_int64),
        ("aligned", ctypes.c_bool),
        ("outside", ctypes.c_float),
    ]


class _Rois(ctypes.Structure):
    _fields_ = [
        ("boxes", ctypes.c_void_p),
        ("image", ctypes.c_void_p),
        ("level", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    ]


class _Pooled(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]


class _MaskCrops(ctypes.Structure):  # MaskCrops in src/mask_crop.h
    _fields_ = [
        ("pixel_count", ctypes.c_int64),
        ("pixels", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("origins", ctypes.c_void_p),
        ("canvases", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    ]


_STRUCTS = [ctypes.POINTER(struct) for struct in (_Pooling, _Rois, _Pooled)]
_MASK_STRUCTS = [ctypes.POINTER(struct) for struct in (_MaskCrops, _Rois)]


def _describe(maps, spatial_scales, bins, sampling_ratio, aligned, outside) -> _Pooling:
    pooling = _Pooling(
        level_count=len(maps), images=maps[0].shape[0], channels=maps[0].shape[1], bins=tuple(bins),
        sampling_ratio=sampling_ratio, aligned=aligned, outside=outside,
    )  # fmt: skip
    for i, (fmap, scale) in enumerate(zip(maps, spatial_scales, strict=True)):
        pooling.levels[i] = _Level(fmap.data_ptr(), tuple(fmap.shape[2:]), fmap.stride(), scale)
    return pooling


def _run(
    pool, maps, rois, batch_index, levels, pooled, scales, sampling_ratio, aligned, crop, outside, backward
) -> None:
    """Runs a native kernel: pool(pooling, rois, pooled, crop, backward, dtype code)."""
    pooling = _describe(maps, scales, pooled.shape[2:], sampling_ratio, aligned, outside)
    rois, batch_index = rois.contiguous(), batch_index.contiguous()
    levels = None if levels is None else levels.contiguous()
    level_pointer = None if levels is None else levels.data_ptr()
    described = _Rois(rois.data_ptr(), batch_index.data_ptr(), level_pointer, len(rois))
    pool(pooling, described, _Pooled(pooled.data_ptr(), pooled.stride()), crop, backward, _DTYPES[pooled.dtype])


def _forward(
    pool, features, rois, batch_index, levels, output_size, scales, sampling_ratio, aligned, crop, outside
) -> Tensor:
    like, shape = features[0], (len(rois), features[0].shape[1], *output_size)
    pooled = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_layout(like))
    if pooled.numel() == 0:
        return pooled
    _run(pool, features, rois, batch_index, levels, pooled, scales, sampling_ratio, aligned, crop, outside, False)
    return pooled


def _backward(
    pool, grad, rois, batch_index, levels, images, sizes, scales, sampling_ratio, aligned, crop, channels_last
) -> list[Tensor]:
    maps = _new_maps(grad, images, grad.shape[1], sizes, channels_last)
    if grad.numel() == 0:
        return [fmap.zero_() for fmap in maps]
    if grad.dtype == torch.float32:
        _run(pool, maps, rois, batch_index, levels, grad, scales, sampling_ratio, aligned, crop, 0.0, True)
        return maps
    # Half precision is summed in float32, half of the channels at a time, so that the sums take no more memory than the
    # gradients.
    middle = (grad.shape[1] + 1) // 2
    for half in (slice(0, middle), slice(middle, grad.shape[1])):
        part = grad[:, half]
        sums = _new_maps(grad, images, part.shape[1], sizes, channels_last, dtype=torch.float32)
        _run(pool, sums, rois, batch_index, levels, part, scales, sampling_ratio, aligned, crop, 0.0, True)
        for fmap, total in zip(maps, sums, strict=True):
            fmap[:, half] = total
        del sums, total  # frees them before the next half is allocated
    return maps


def _mask_kernels(library: ctypes.CDLL, backend: str, last: Callable[[], int | None]) -> list[tuple]:
    """The ops of masks: names and kernels. last: returns the last argument of the library's functions."""
    # The last argument is the number of threads, or the stream. On CUDA, the result is the text of an error.
    last_type, result_type = (ctypes.c_int, _out_of_memory) if backend == "cpu" else (ctypes.c_void_p, ctypes.c_char_p)

    def kernel(name: str, sides: int) -> Callable:
        function = getattr(library, f"{name}_{backend}")
        function.argtypes = [*_MASK_STRUCTS, *[ctypes.c_int64] * sides, ctypes.c_void_p, last_type]
        function.restype = result_type

        def run(pixels, offsets, sizes, origins, canvases, boxes, mask_index, output_size=()) -> Tensor:
            masks = [field.contiguous() for field in (pixels, offsets, sizes, origins, canvases)]
            boxes, mask_index = boxes.contiguous(), mask_index.contiguous()
            described = _MaskCrops(len(pixels), *[field.data_ptr() for field in masks], len(offsets))
            rois = _Rois(boxes.data_ptr(), mask_index.data_ptr(), None, len(boxes))
            result = boxes.new_empty(len(boxes), *output_size)
            if result.numel() == 0:
                return result
            error = function(described, rois, *output_size, result.data_ptr(), last())
            if error is not None:
                raise RuntimeError(f"{name} on CUDA: {error.decode()}")
            return result

        return run

    return [("crop_masks", kernel("crop_masks", 2)), ("mask_areas", kernel("mask_areas", 0))]


def _out_of_memory(result: int) -> None:
    """What ctypes does with the result of the library's functions for CPUs."""
    if result != 0:
        raise MemoryError("RoI pooling ran out of memory; pool fewer RoIs at a time, or to a smaller size")


def _register_cpu(library: ctypes.CDLL) -> None:
    library.roi_pool_cpu.argtypes = [*_STRUCTS, *[ctypes.c_int] * 4]
    library.roi_pool_cpu.restype = _out_of_memory

    def pool(*arguments) -> None:
        library.roi_pool_cpu(*arguments, torch.get_num_threads())

    @native.kernel("roi_pool", "cpu")
    def _(features, rois, batch_index, levels, *rule):
        _check_pooling(features, rois, batch_index, levels, *rule)
        if features[0].dtype not in (torch.float32, torch.bfloat16):
            return _pool_in_torch(features, rois, batch_index, levels, *rule)
        return _forward(pool, features, rois, batch_index, levels, *rule)

    @native.kernel("roi_pool_backward", "cpu")
    def _(grad, *rest):
        _check_spreading(grad, *rest[:7])
        if grad.dtype not in (torch.float32, torch.bfloat16):
            return _backward_in_torch(grad, *rest)
        return _backward(pool, grad, *rest)

    for name, kernel in _mask_kernels(library, "cpu", torch.get_num_threads):

        def run(*arguments, kernel=kernel):
            _check_mask_op(MaskCrops(*arguments[:5]), *arguments[5:])
            return kernel(*arguments)

        native.kernel(name, "cpu")(run)
    paste.register_cpu(library)
    resize.register_cpu(library)


def _register_cuda(library: ctypes.CDLL) -> None:
    pool = _cuda_pool(library)

    @native.kernel("roi_pool", "cuda")
    def _(features, *rest):
        _check_pooling(features, *rest)
        if features[0].dtype not in _DTYPES:
            return _pool_in_torch(features, *rest)
        with torch.cuda.device(features[0].device):
            return _forward(pool, features, *rest)

    @native.kernel("roi_pool_backward", "cuda")
    def _(grad, *rest):
        _check_spreading(grad, *rest[:7])
        if grad.dtype not in _DTYPES:
            return _backward_in_torch(grad, *rest)
        _alert_not_deterministic()
        with torch.cuda.device(grad.device):
            return _backward(pool, grad, *rest)

    for name, kernel in _mask_kernels(library, "cuda", _current_stream):

        def run(pixels, *rest, kernel=kernel):
            _check_mask_op(MaskCrops(pixels, *rest[:4]), *rest[4:])
            with torch.cuda.device(pixels.device):
                return kernel(pixels, *rest)

        native.kernel(name, "cuda")(run)


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _alert_not_deterministic() -> None:
    """Raises or warns under torch.use_deterministic_algorithms, as torch's own ops do."""
    if torch.are_deterministic_algorithms_enabled():
        message = "the gradient of RoI pooling is deterministic on the CPU, but not on CUDA, where it adds atomically"
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _cuda_pool(library: ctypes.CDLL, current_stream: Callable[[], int | None] | None = None) -> Callable:
    """The kernel of a CUDA library, on the current stream. Tests that run it elsewhere give current_stream."""
    library.roi_pool_cuda.argtypes = [*_STRUCTS, *[ctypes.c_int] * 3, ctypes.c_void_p]
    library.roi_pool_cuda.restype = ctypes.c_char_p
    current_stream = current_stream or _current_stream

    def pool(*arguments) -> None:
        error = library.roi_pool_cuda(*arguments, current_stream())
        if error is not None:
            raise RuntimeError(f"RoI pooling on CUDA: {error.decode()}")

    return pool


native.register("roialign", cpu=_register_cpu, cuda=_register_cuda if torch.version.cuda else None)

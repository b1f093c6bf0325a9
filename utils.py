"""Pure functions of boxes, images, masks and run-length codes, and Matterport's metrics. They know no models.

Names and results are Matterport's, where these are right. Where the five numeric dialects differ, a function takes the
name of a rule (ROUNDINGS, RESAMPLINGS), so that each function exists once.

    N boxes or masks   H, W an image's height and width   M mask side   C channels
    Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside. Height is y2 - y1, with no +1.
    Images are uint8 RGB [H, W, 3]. Stacks of masks are bool [H, W, N]. Sizes are (height, width).
    A run-length code (RLE) is COCO's: {"size": [H, W], "counts": bytes}, down the columns.

Functions of boxes take tensors, on any device, and return tensors, or take arrays and return arrays.
"""

import functools
import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.transform
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

import polygons as polygon_filling
import roialign
from config import Config
from polygons import mask_to_polygons as mask_to_polygons
from roialign import resize as native_resize
from roialign.paste import compress_counts, crop_to_rle

############################################################
#  Boxes
############################################################


def _tensor(array: Any) -> Tensor:
    """A tensor that shares an array's memory where torch can read it."""
    array = np.asarray(array)
    readable = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if readable else array.astype(array.dtype.newbyteorder("=")))


def _for_arrays(function: Callable) -> Callable:
    """Lets a function of tensors also take arrays or lists, and return an array. The first argument decides."""

    @functools.wraps(function)
    def wrapper(first, *rest, **named):
        if isinstance(first, Tensor):
            return function(first, *rest, **named)
        rest = [_tensor(value) if isinstance(value, np.ndarray) else value for value in rest]
        named = {name: _tensor(value) if isinstance(value, np.ndarray) else value for name, value in named.items()}
        return function(_tensor(first), *rest, **named).numpy()

    return wrapper


def _as_boxes(boxes: Any, name: str, like: Tensor | None = None) -> Tensor:
    """Checks boxes [..., 4], and makes them floating, with the dtype and device of like."""
    boxes = torch.as_tensor(boxes, device=None if like is None else like.device)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must be [..., (y1, x1, y2, x2)], got {list(boxes.shape)}")
    if like is not None:
        return boxes.to(like.dtype)
    return boxes if boxes.is_floating_point() else boxes.float()


def _sizes(boxes: Tensor) -> Tensor:
    """[..., (height, width)] of boxes [..., 4]; 0 for inverted sides."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)


@_for_arrays
def box_area(boxes: Tensor) -> Tensor:
    """Area of each box in square pixels; 0 for an inverted one.

    boxes: [..., (y1, x1, y2, x2)].

    Returns: [...].
    """
    return _sizes(_as_boxes(boxes, "boxes")).prod(dim=-1)


@_for_arrays
def compute_iou(box: Tensor, boxes: Tensor, box_area: Tensor, boxes_area: Tensor) -> Tensor:
    """IoU of one box with several boxes. The caller gives the areas.

    box: [4]. boxes: [N, 4]. box_area: a number. boxes_area: [N].

    Returns: [N] in [0, 1]; 0 where a box has no area.
    """
    box = _as_boxes(box, "box")
    boxes = _as_boxes(boxes, "boxes", like=box)
    inter = _shared_side(box, boxes, 0).mul_(_shared_side(box, boxes, 1))
    areas = torch.as_tensor(box_area, dtype=box.dtype, device=box.device) + torch.as_tensor(
        boxes_area, device=box.device
    )
    return inter.div_(areas - inter).nan_to_num_(nan=0.0)  # 0 / 0


def _shared_side(boxes1: Tensor, boxes2: Tensor, axis: int) -> Tensor:
    upper = torch.minimum(boxes1[..., axis + 2], boxes2[..., axis + 2])
    return upper.sub_(torch.maximum(boxes1[..., axis], boxes2[..., axis])).clamp_(min=0)


@_for_arrays
def compute_overlaps(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box of one set with every box of another.

    boxes1: [N1, 4]. boxes2: [N2, 4].

    Returns: [N1, N2] in [0, 1]; 0 where a box has no area or is not a number.
    """
    boxes1 = _as_boxes(boxes1, "boxes1")
    boxes2 = _as_boxes(boxes2, "boxes2", like=boxes1)
    boxes2 = boxes2.t().contiguous().t()  # stores each coordinate in one piece: the loops below run along boxes2
    return compute_iou(boxes1[:, None], boxes2, box_area(boxes1)[:, None], box_area(boxes2))


@_for_arrays
def apply_box_deltas(
    boxes: Tensor, deltas: Tensor, clamp_low: float | None = None, clamp_high: float | None = None
) -> Tensor:
    """Moves and scales boxes: the decoder of the box coder.

    boxes: [..., (y1, x1, y2, x2)].
    deltas: [..., (dy, dx, log dh, log dw)]; dy and dx in heights and widths of the box.
    clamp_low, clamp_high: limits of log dh and log dw, such as log(1000 / 16) above.

    Returns: [..., (y1, x1, y2, x2)], not clipped.
    Raises: ValueError if the last dimension of either is not 4.
    Source: R-CNN (arXiv:1311.2524), appendix C.
    """
    boxes = _as_boxes(boxes, "boxes")
    deltas = _as_boxes(deltas, "deltas", like=boxes)
    sizes = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sizes + deltas[..., :2] * sizes
    logs = deltas[..., 2:]
    if clamp_low is not None or clamp_high is not None:
        logs = logs.clamp(clamp_low, clamp_high)
    half = 0.5 * (sizes * logs.exp())
    return torch.cat([centres - half, centres + half], dim=-1)


@_for_arrays
def box_refinement(box: Tensor, gt_box: Tensor) -> Tensor:
    """The deltas that turn a box into the ground truth's: the inverse of apply_box_deltas.

    box, gt_box: [..., (y1, x1, y2, x2)] of positive height and width.

    Returns: [..., (dy, dx, log dh, log dw)].
    Raises: ValueError if the last dimension of either is not 4.
    """
    box = _as_boxes(box, "box")
    gt_box = _as_boxes(gt_box, "gt_box", like=box)
    sizes, gt_sizes = box[..., 2:] - box[..., :2], gt_box[..., 2:] - gt_box[..., :2]
    shift = (gt_box[..., :2] + 0.5 * gt_sizes) - (box[..., :2] + 0.5 * sizes)
    return torch.cat([shift / sizes, (gt_sizes / sizes).log()], dim=-1)


@_for_arrays
def clip_boxes(boxes: Tensor, window: Tensor | Sequence[float]) -> Tensor:
    """Boxes cut off at a window. One that lies outside keeps no area.

    boxes: [..., (y1, x1, y2, x2)].
    window: (y1, x1, y2, x2), or one for each box.

    Returns: as boxes.
    """
    boxes = _as_boxes(boxes, "boxes")
    window = _as_boxes(window, "window", like=boxes)
    low, high = window[..., [0, 1, 0, 1]], window[..., [2, 3, 2, 3]]
    return torch.minimum(torch.maximum(boxes, low), high)


@_for_arrays
def extract_bboxes(mask: Tensor) -> Tensor:
    """The smallest box around each mask.

    mask: [H, W, N], true or not 0 where the object is.

    Returns: int32 [N, (y1, x1, y2, x2)]; zeros for an empty mask.
    Raises: ValueError for another number of dimensions.
    """
    if mask.ndim != 3:
        raise ValueError(f"mask must be [H, W, N], got {list(mask.shape)}; for a single mask, give mask[..., None]")
    mask = mask if mask.dtype == torch.bool else mask != 0
    boxes = torch.zeros(mask.shape[2], 4, dtype=torch.int32, device=mask.device)
    if mask.numel() == 0:
        return boxes
    for axis in (0, 1):
        filled = mask.any(dim=1 - axis).to(torch.uint8)  # [H or W, N]
        boxes[:, axis] = filled.argmax(dim=0)
        boxes[:, axis + 2] = (len(filled) - filled.flip(0).argmax(dim=0)) * filled.amax(dim=0)
    return boxes


@_for_arrays
def trim_zeros(x: Tensor) -> Tensor:
    """The rows that are not all zero, without those that pad.

    x: [rows, columns].
    """
    return x[(x != 0).any(dim=1)]


def _norm_scale(boxes: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Matterport's scale (h-1, w-1, h-1, w-1) and shift (0, 0, 1, 1)."""
    height, width = shape[:2]
    return boxes.new_tensor([height - 1, width - 1] * 2), boxes.new_tensor([0, 0, 1, 1])


@_for_arrays
def norm_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Pixels to Matterport's normalised coordinates, in which (y2, x2) lies inside the box.

    boxes: [..., (y1, x1, y2, x2)] in pixels.
    shape: (height, width) of the image.

    Returns: float32, as boxes; (0, 0, height, width) becomes (0, 0, 1, 1).
    """
    boxes = _as_boxes(boxes, "boxes")
    scale, shift = _norm_scale(boxes, shape)
    return ((boxes - shift) / scale).float()


@_for_arrays
def denorm_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Matterport's normalised coordinates to whole pixels, in which (y2, x2) lies outside the box.

    boxes: [..., (y1, x1, y2, x2)], normalised.
    shape: (height, width) of the image.

    Returns: int32, as boxes; halves are rounded to even.
    """
    boxes = _as_boxes(boxes, "boxes")
    scale, shift = _norm_scale(boxes, shape)
    return (boxes * scale + shift).round().to(torch.int32)


############################################################
#  Images
############################################################

# Larger images are refused before they are decoded. As RGB, this many pixels take 0.5 GB. Pillow has the same limit.
MAX_IMAGE_PIXELS = 178_956_970
# No photograph has a longer side (JPEG ends at 65,535). Squares and tables of a longer side would fill the memory.
MAX_IMAGE_SIDE = 100_000
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # of the images in a folder


def image_files(folder: str | os.PathLike, hint: str = "") -> list[Path]:
    """The images of a folder, sorted: files whose suffix is in IMAGE_SUFFIXES. Folders inside are not searched.

    Raises: FileNotFoundError if there are none; hint ends its message.
    """
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"folder {folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}){hint}")
    return paths


def to_rgb(image: np.ndarray, name: str = "image", pixel_range: str = "depth") -> np.ndarray:
    """Converts an array to an image, uint8 RGB.

    image: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], whose alpha is dropped. uint8; bool; uint16, scaled by 1/257;
        or floating in [0, 1], scaled by 255.
    name: what errors call it. pixel_range: as Config.PIXEL_RANGE; "percentiles" takes numbers of every kind.

    Returns: uint8 [H, W, 3]; the image itself if it is that already.
    Raises: ValueError for other types, shapes and values.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, got {type(image).__name__}; np.asarray reads most of them")
    shape = list(image.shape)
    if image.ndim not in (2, 3) or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        channels_first = image.ndim == 3 and shape[0] in (1, 3, 4)
        hint = "channels come last: image.transpose(1, 2, 0)" if channels_first else "is it one image?"
        raise ValueError(f"{name} must be [H, W] or [H, W, 1, 3 or 4], got {shape}; {hint}")
    if image.size == 0:
        raise ValueError(f"{name} has no pixels: {shape}")
    image = image[..., None] if image.ndim == 2 else image[..., :3]
    image = _eight_bits(image, name, pixel_range)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def check_channels(image: Any, channels: int, name: str = "image", pixel_range: str = "depth") -> np.ndarray:
    """An image with the channels that a network takes, in 8 bits. With 3 channels, to_rgb() makes it RGB.

    pixel_range: as Config.PIXEL_RANGE.

    Returns: uint8 [H, W, channels]; the image itself if it is that already.
    Raises: ValueError, which calls the image by its name, for other types, shapes and values.
    """
    if channels == 3:
        return to_rgb(image, name, pixel_range)
    if isinstance(image, np.ndarray) and image.ndim == 2 and channels == 1:
        image = image[..., None]
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != channels or image.size == 0:
        first = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[0] == channels
        hint = "; channels come last: image.transpose(1, 2, 0)" if first else ""
        raise ValueError(
            f"{name} must be an array [H, W, {channels}], as IMAGE_CHANNEL_COUNT says, "
            f"not {getattr(image, 'shape', type(image).__name__)}{hint}"
        )
    return _eight_bits(image, name, pixel_range)


def viewable(image: np.ndarray, name: str = "image") -> np.ndarray:
    """An image of any number of channels as people look at it: uint8 RGB [H, W, 3].

    Two channels are red and green. Of more than four, the first three are red, green and blue. Values that are not
    of 8 bits are then scaled by stretch_percentiles. Everything else: as to_rgb.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] in (1, 3, 4) or image.size == 0:
        return to_rgb(image, name)
    if image.shape[2] > 4 and image.shape[0] in (1, 3, 4):
        return to_rgb(image, name)  # says that channels come last
    colors = stretch_percentiles(image[..., :3], name) if image.dtype != np.uint8 else image[..., :3]
    blue = np.zeros((*colors.shape[:2], 3 - colors.shape[2]), np.uint8)
    return np.concatenate([colors, blue], axis=2)


PERCENTILES = (0.1, 99.9)  # of the values of a channel; they become 0 and 255


def stretch_percentiles(image: np.ndarray, name: str = "image") -> np.ndarray:
    """An image whose channels are scaled, each by itself, so that its PERCENTILES become 0 and 255: uint8.

    A percentile that falls between two values of the channel is the outer one. So an image that was scaled before stays
    as it is, to the bit. A channel in which both are equal is scaled by its smallest and largest value. A constant one
    becomes 0.

    image: [H, W] or [H, W, C], of numbers of any kind. name: what errors call it.

    Returns: uint8, of the same shape.
    Raises: ValueError for NaN, infinite values and values that are too far apart, and for what are no numbers.
    """
    return stretch_to_ranges(image, percentile_ranges(image, name), name)


def percentile_ranges(image: np.ndarray, name: str = "image") -> list[tuple[float, float]]:
    """For each channel the values that stretch_percentiles turns into 0 and 255. image, name, raises: as there."""
    if image.dtype.kind not in "buif" or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        wrong = f"values of type {image.dtype}" if image.dtype.kind not in "buif" else "infinite values or NaN"
        raise ValueError(f"{name} must have finite numbers, not {wrong}")
    channels = [image] if image.ndim == 2 else [image[..., channel] for channel in range(image.shape[2])]
    return [_percentile_range(channel) for channel in channels]


def stretch_to_ranges(image: np.ndarray, ranges: Sequence[tuple[float, float]], name: str = "image") -> np.ndarray:
    """stretch_percentiles with the percentile_ranges of another image, of which this one is a part."""
    if image.ndim == 2:
        return _stretched(image, ranges[0], name)
    channels = [_stretched(image[..., channel], values, name) for channel, values in enumerate(ranges)]
    return np.stack(channels, axis=2)


def _percentile_range(channel: np.ndarray) -> tuple[float, float]:
    """percentile_ranges of a channel [H, W]."""
    places = math.floor(PERCENTILES[0] / 100 * (channel.size - 1)), math.ceil(PERCENTILES[1] / 100 * (channel.size - 1))
    channel = channel.astype(np.uint8) if channel.dtype == bool else channel
    if channel.dtype == np.uint8:
        black, white = (np.count_nonzero(channel == value) for value in (0, 255))
        if black > places[0] and white >= channel.size - places[1]:
            return 0, 255  # it was scaled before
    if channel.dtype in (np.uint8, np.uint16):
        counts = np.bincount(channel.ravel(), minlength=1 << 8 * channel.dtype.itemsize).cumsum()
        low, high = np.searchsorted(counts, places, side="right").tolist()
    else:
        low, high = np.partition(channel.ravel(), places)[list(places)].tolist()
    return (low, high) if low != high else (channel.min().item(), channel.max().item())


def _stretched(channel: np.ndarray, values: tuple[float, float], name: str) -> np.ndarray:
    """A channel [H, W] scaled so that a range of values becomes 0 and 255."""
    low, high = values
    channel = channel.astype(np.uint8) if channel.dtype == bool else channel
    if channel.dtype == np.uint8 and values == (0, 255):
        return channel
    span = float(high) - float(low)
    if not math.isfinite(span):
        raise ValueError(f"{name} has values from {low:g} to {high:g}, which are too far apart for a picture")
    has_table = channel.dtype in (np.uint8, np.uint16)
    table = np.arange(1 << 8 * channel.dtype.itemsize) if has_table else channel
    scaled = (table.astype(np.float64) - low) * (255 / span if span else 0.0)
    scaled = np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)
    return scaled[channel] if has_table else scaled


def _eight_bits(image: np.ndarray, name: str, pixel_range: str) -> np.ndarray:
    if pixel_range == "percentiles":
        return stretch_percentiles(image, name)
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 257 * 255
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"{name} must be uint8, uint16, bool or floating, got {image.dtype}; image.astype(np.uint8)?")
    if not (image.min() >= 0 and image.max() <= 1):  # in this form, NaN fails too
        values = "NaN, no number" if np.isnan(image).any() else f"{image.min()}..{image.max()}; divide by 255?"
        raise ValueError(f"{name} is floating and must lie in [0, 1], got {values}")
    return np.rint(image * 255.0).astype(np.uint8)


############################################################
#  Resizing
############################################################

# How a scaled size becomes whole pixels.
ROUNDINGS: dict[str, Callable[[float], int]] = {
    "half_up": lambda size: math.floor(size + 0.5),  # mmdetection
    "truncate": int,  # maskrcnn-benchmark, which in mode shorter also scales differently: _truncated_size
    "floor": math.floor,  # torchvision
    "half_even": round,  # Matterport
    "scale_twice": lambda size: int(size + 0.5),  # detectron2, which in mode shorter also scales differently
}
RESIZE_MODES = ("square", "pad64", "crop", "shorter", "none")


class ResizePlan(NamedTuple):
    """How an image becomes the network's input: scaled, then cropped, then padded.

    Boxes are (y1, x1, y2, x2) with y2 and x2 outside, arrays or tensors [..., 4].
    """

    image_shape: tuple[int, int]  # (height, width) of the image
    size: tuple[int, int]  # (height, width) after scaling
    padding: tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
    crop: tuple[int, int, int, int] | None  # (y, x, height, width) of the scaled image
    window: tuple[int, int, int, int]  # (y1, x1, y2, x2) of the image in the input
    scale: float  # before the size was rounded; exact factors are size / image_shape

    @property
    def region(self) -> tuple[int, int, int, int]:
        """(y, x, height, width) of the scaled image that the crop leaves: all of it without a crop."""
        return self.crop or (0, 0, *self.size)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """(height, width) of the input."""
        height, width = (side + sum(ends) for side, ends in zip(self.region[2:], self.padding, strict=True))
        return height, width

    def boxes_in_region(self, boxes: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Boxes of the image in pixels of the region."""
        y, x, *_ = self.region
        return boxes * _like(boxes, self._factors) - _like(boxes, [y, x] * 2)

    def boxes(self, boxes: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Boxes of the image in pixels of the input. They are not clipped."""
        return self.boxes_in_region(boxes) + _like(boxes, self.window[:2] * 2)

    def boxes_in_image(self, boxes: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """The inverse of boxes()."""
        y, x, *_ = self.region
        return (boxes - _like(boxes, [self.window[0] - y, self.window[1] - x] * 2)) / _like(boxes, self._factors)

    @property
    def _factors(self) -> list[float]:
        """How much longer things become along y, x, y, x."""
        return np.divide(self.size, self.image_shape).tolist() * 2

    def rows(self, nearest: str = "corners") -> np.ndarray:
        """int64 [height of the region], ascending: the row of a mask that each row copies, as resize_mask does it."""
        return self._sources(0, nearest)

    def columns(self, nearest: str = "corners") -> np.ndarray:
        """As rows, int64 [width of the region]."""
        return self._sources(1, nearest)

    def _sources(self, axis: int, nearest: str) -> np.ndarray:
        old, new, start, count = self.image_shape[axis], self.size[axis], self.region[axis], self.region[axis + 2]
        sources = np.arange(new) if old == new else _NEAREST[nearest](old, new).clip(0, old - 1)
        return sources[start : start + count]


def _like(boxes: np.ndarray | Tensor, numbers: Sequence[float]) -> np.ndarray | Tensor:
    """Numbers as an array or tensor of the kind that boxes are; floating, whatever the boxes."""
    if isinstance(boxes, Tensor):
        dtype = boxes.dtype if boxes.is_floating_point() else torch.float32
        return torch.tensor(numbers, dtype=dtype, device=boxes.device)
    return np.array(numbers, boxes.dtype if np.issubdtype(boxes.dtype, np.floating) else np.float32)


def plan_resize(
    height: int,
    width: int,
    min_dim: float | None,
    max_dim: float | None,
    min_scale: float | None = 0,
    mode: str = "shorter",
    rounding: str | None = None,
    divisor: int = 32,
    rng: np.random.Generator | None = None,
) -> ResizePlan:
    """Says how an image of a certain size is brought to the network's.

    min_dim: what the shorter side becomes. Mode shorter scales up and down to it, the others only up, and pad64 until
        the longer side is 16 times as long.
    max_dim: what the longer side may not exceed, in modes shorter and square. None: no limit in mode shorter.
    min_scale: scale up by this at least (but not above max_dim).
    mode: "shorter" pads at the bottom and right to multiples of divisor. Matterport's: "square" pads on all sides to
        max_dim x max_dim, "pad64" to multiples of 64, "crop" cuts a random min_dim x min_dim out, "none" does nothing.
    rounding: one of ROUNDINGS. Default: half_up for mode shorter, half_even for the others.
    rng: where mode crop gets its randomness from.

    Returns: a ResizePlan. No side becomes shorter than 1 pixel.
    Raises: ValueError for numbers and names that do not fit.
    Source: mmdetection, maskrcnn-benchmark, torchvision, Matterport and detectron2, by mode and rounding.
    """
    rounding = rounding or ("half_up" if mode == "shorter" else "half_even")
    _check_plan(height, width, min_dim, max_dim, mode, rounding, divisor)
    shape = (height, width)
    if mode == "none":
        return ResizePlan(shape, shape, ((0, 0), (0, 0)), None, (0, 0, height, width), 1.0)
    scale, size = _scaled_size(height, width, min_dim, max_dim, min_scale or 0, mode, rounding)
    if mode == "crop":
        crop = _random_crop(size, int(min_dim), rng)
        return ResizePlan(shape, size, ((0, 0), (0, 0)), crop, (0, 0, *crop[2:]), scale)
    if mode == "square":
        padding = tuple(_centred(side, max_dim - side) for side in size)
    elif mode == "pad64":
        padding = tuple(_centred(side, -side % 64) for side in size)
    else:
        padding = tuple((0, -side % divisor) for side in size)
    (top, _), (left, _) = padding
    return ResizePlan(shape, size, padding, None, (top, left, top + size[0], left + size[1]), scale)


def plan_image(
    shape: Sequence[int], config: Config, min_dim: float | None = None, rng: np.random.Generator | None = None
) -> ResizePlan:
    """How an image of a shape (height, width, ...) becomes the network's input by the settings of a config.

    min_dim: instead of IMAGE_MIN_DIM. rng: for IMAGE_RESIZE_MODE "crop".
    """
    return plan_resize(
        *shape[:2],
        config.IMAGE_MIN_DIM if min_dim is None else min_dim,
        config.IMAGE_MAX_DIM,
        config.IMAGE_MIN_SCALE,
        config.IMAGE_RESIZE_MODE,
        config.dialect.size_rounding,
        config.IMAGE_SIZE_DIVISOR,
        rng,
    )


def _check_plan(height, width, min_dim, max_dim, mode, rounding, divisor) -> None:
    if mode not in RESIZE_MODES:
        raise ValueError(f"mode must be one of {', '.join(RESIZE_MODES)}, got {mode!r}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels cannot be resized")
    if mode in ("shorter", "crop") and not min_dim:
        raise ValueError(f"mode {mode} needs min_dim, got {min_dim}")
    if mode == "square" and not max_dim:
        raise ValueError(f"mode square needs max_dim, the side of the square, got {max_dim}")
    if mode == "pad64" and (min_dim or 0) % 64:
        raise ValueError(f"mode pad64 needs a min_dim that 64 divides, got {min_dim}")
    if divisor < 1:
        raise ValueError(f"divisor must be at least 1, got {divisor}")


def _scaled_size(height, width, min_dim, max_dim, min_scale, mode, rounding) -> tuple[float, tuple[int, int]]:
    """The scale and the (height, width) that it makes, by the rules of a mode."""
    short, long = min(height, width), max(height, width)
    to_int = ROUNDINGS[rounding]
    if mode == "shorter":
        side = max(min_dim, min_scale * short)
        limit = max_dim or math.inf
        scale = min(side / short, limit / long)
        if rounding == "truncate":
            return scale, _truncated_size(height, width, side, limit)
        if rounding == "scale_twice":
            return scale, _twice_scaled_size(height, width, side, limit)
    else:
        thinnest = long / 16 if mode == "pad64" else 0  # 400 x 2 pixels would need gigabytes to reach min_dim
        scale = max(1.0, (min_dim or 0) / max(short, thinnest), min_scale)
        if mode == "square" and to_int(long * scale) > max_dim:
            scale = max_dim / long
    return scale, (max(1, to_int(height * scale)), max(1, to_int(width * scale)))


def _truncated_size(height: int, width: int, side: float, limit: float) -> tuple[int, int]:
    """maskrcnn-benchmark's size: it rounds the shorter side before it computes the longer one."""
    short, long = min(height, width), max(height, width)
    if long / short * side > limit:
        side = round(limit * short / long)
    if short == side:
        return height, width
    side = max(1, int(side))
    longer = int(side * long / short)
    return (longer, side) if width < height else (side, longer)


def _twice_scaled_size(height: int, width: int, side: float, limit: float) -> tuple[int, int]:
    """detectron2's size: both sides as floats by the short side, and, if the long one is above the limit, once more."""
    scale = side / min(height, width)
    sides = (side, scale * width) if height < width else (scale * height, side)
    if max(sides) > limit:
        again = limit / max(sides)
        sides = sides[0] * again, sides[1] * again
    rows, columns = (max(1, int(length + 0.5)) for length in sides)
    return rows, columns


def _centred(side: int, missing: int) -> tuple[int, int]:
    """Padding before and after."""
    return int(missing) // 2, int(missing) - int(missing) // 2


def _random_crop(size: tuple[int, int], side: int, rng: np.random.Generator | None) -> tuple[int, int, int, int]:
    rng = rng or np.random.default_rng()
    height, width = min(side, size[0]), min(side, size[1])  # smaller only if a rounding made it so
    y, x = rng.integers(size[0] - height, endpoint=True), rng.integers(size[1] - width, endpoint=True)
    return int(y), int(x), height, width


def resize_image(
    image: np.ndarray,
    min_dim: float | None = None,
    max_dim: float | None = None,
    min_scale: float | None = None,
    mode: str = "square",
    rounding: str | None = None,
    resampling: str = "skimage",
    divisor: int = 32,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, tuple, float, list, tuple | None]:
    """Resizes an image to what the network wants. By default, Matterport's function and results.

    image: [H, W, C]; uint8, unless resampling is "skimage".
    resampling: one of RESAMPLINGS. The rest: see plan_resize.

    Returns: image, of the same dtype (float32 for resampling "torch"), padded with zeros;
        window, the (y1, x1, y2, x2) of the picture in it; scale; padding [(top, bottom), (left, right), (0, 0)];
        crop (y, x, height, width) or None.
    Raises: ValueError for numbers and names that do not fit.
    """
    if image.ndim != 3:
        raise ValueError(f"image must be [H, W, C], got {list(image.shape)}; to_rgb makes one")
    plan = plan_resize(*image.shape[:2], min_dim, max_dim, min_scale, mode, rounding, divisor, rng)
    image = _crop(resize_pixels(image, plan.size, resampling), plan.crop)
    padding = [*plan.padding, (0, 0)]
    if any(map(any, padding)):
        image = np.pad(image, padding)
    return image, plan.window, plan.scale, padding, plan.crop


def _crop(image: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    if crop is None:
        return image
    y, x, height, width = crop
    return image[y : y + height, x : x + width]


def resize_pixels(image: np.ndarray, size: tuple[int, int], resampling: str = "opencv") -> np.ndarray:
    """Bilinear resampling of an image to a size, by one of four rules. They differ by more than a rounding where an
    image shrinks: only Pillow looks at all of its pixels.

    image: [H, W, C]; uint8, unless resampling is "skimage".
    size: (height, width) of the result.
    resampling: "opencv", cv2.resize's fixed-point rule, to the byte; "pillow"; "torch", F.interpolate's without
        antialiasing, not rounded; "skimage", Matterport's: truncated, and its outermost pixels mixed with black.

    Returns: [height, width, C], dtype of the image, but float32 of 0..255 for "torch".
    Raises: ValueError for another dtype, shape or name, or a size below 1.
    """
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling must be one of {', '.join(RESAMPLINGS)}, got {resampling!r}")
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"image must be [H, W, C] with at least one pixel, got {list(image.shape)}")
    if resampling != "skimage" and image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 for resampling {resampling!r}, got {image.dtype}; to_rgb makes one")
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 x 1, got {tuple(size)}")
    if image.shape[:2] == tuple(size):
        return image.astype(np.float32) if resampling == "torch" else image
    return RESAMPLINGS[resampling](image, *size)


def _resize_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (native_resize.fixed_point(*pair) for pair in zip(image.shape, (height, width), strict=False))
    return native_resize.mix(image, *rows, *columns)


def _blocks(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    size = (width, height)
    if image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    channels = (np.ascontiguousarray(image[..., channel]) for channel in range(image.shape[2]))
    return np.stack([Image.fromarray(c).resize(size, Image.Resampling.BILINEAR) for c in channels], axis=-1)


def _resize_torch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = _tensor(image).permute(2, 0, 1)[None].float()
    return F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def _resize_skimage(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return resize(image, (height, width), preserve_range=True).astype(image.dtype)


RESAMPLINGS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "opencv": _resize_opencv,  # mmdetection
    "pillow": _resize_pillow,  # maskrcnn-benchmark, detectron2
    "torch": _resize_torch,  # torchvision
    "skimage": _resize_skimage,  # Matterport
}


def resize(
    image: np.ndarray,
    output_shape: tuple[int, ...],
    order: int = 1,
    mode: str = "constant",
    cval: float = 0,
    clip: bool = True,
    preserve_range: bool = False,
    anti_aliasing: bool = False,
    anti_aliasing_sigma: float | None = None,
) -> np.ndarray:
    """skimage.transform.resize with Matterport's defaults: no antialiasing, and cval around the image.

    Returns: floating, as skimage does.
    """
    return skimage.transform.resize(
        image, output_shape, order=order, mode=mode, cval=cval, clip=clip, preserve_range=preserve_range,
        anti_aliasing=anti_aliasing, anti_aliasing_sigma=anti_aliasing_sigma,
    )  # fmt: skip


def resize_mask(
    mask: np.ndarray,
    scale: float,
    padding: Sequence[tuple[int, int]],
    crop: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] | None = None,
    nearest: str = "corners",
) -> np.ndarray:
    """Resizes masks as resize_image resized their image: takes the nearest pixel, crops, pads with zeros.

    mask: [H, W, N].
    scale, padding, crop: as resize_image or plan_resize returned them.
    size: (height, width) before cropping and padding, such as plan_resize's. Default: H and W times scale, halves
        rounded to even, which is the image's size unless another rounding was asked for.
    nearest: "corners", as Matterport (scipy.ndimage.zoom), puts corner pixels on corner pixels. "floor", as OpenCV and
        mmdetection, takes the pixel in which the left upper corner of the new one lies: masks move by half a new pixel.
        "centre" takes the one in which its centre lies, as images and boxes are resized.

    Returns: as mask, of exactly the image's new size.
    Raises: ValueError for another shape or name.
    """
    if mask.ndim != 3 or 0 in mask.shape[:2]:
        raise ValueError(f"mask must be [H, W, N] with at least one pixel, got {list(mask.shape)}")
    if nearest not in _NEAREST:
        raise ValueError(f"nearest must be one of {', '.join(_NEAREST)}, got {nearest!r}")
    size = size or [max(1, round(side * scale)) for side in mask.shape[:2]]
    for axis, (old, new) in enumerate(zip(mask.shape[:2], size, strict=True)):
        if old != new:
            mask = mask.take(_NEAREST[nearest](old, new), axis=axis, mode="clip")
    return np.pad(_crop(mask, crop), [*padding[:2], (0, 0)])


def _nearest_corners(old: int, new: int) -> np.ndarray:
    step = (old - 1) / (new - 1) if new > 1 else 1.0
    return np.floor(np.arange(new) * step + 0.5).astype(np.int64)


def _nearest_floor(old: int, new: int) -> np.ndarray:
    return np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64)


def _nearest_centre(old: int, new: int) -> np.ndarray:
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


_NEAREST = {"corners": _nearest_corners, "floor": _nearest_floor, "centre": _nearest_centre}


############################################################
#  Masks
############################################################

_STRIP_PIXELS = 1 << 22  # Stacks of masks are converted to floating point in strips of this many pixels.


def _whole_boxes(bbox: Any, count: int) -> list[list[int]]:
    """The boxes of count masks, in whole pixels."""
    boxes = np.asarray(bbox)
    if boxes.shape != (count, 4):
        raise ValueError(f"bbox must be [N, (y1, x1, y2, x2)] for {count} masks, got {list(boxes.shape)}")
    return boxes.astype(np.int64).tolist()


def minimize_mask(bbox: np.ndarray, mask: np.ndarray, mini_shape: tuple[int, int]) -> np.ndarray:
    """Cuts masks out at their boxes and shrinks them, to save memory. expand_mask is the way back, and less sharp.

    bbox: [N, (y1, x1, y2, x2)] in whole pixels, such as extract_bboxes gives.
    mask: [H, W, N].
    mini_shape: (height, width) of the result.

    Returns: bool [*mini_shape, N], true where the bilinear value is above 0.5.
    Raises: ValueError if a box holds no pixel of the image.
    """
    mini = np.zeros((*mini_shape, mask.shape[-1]), bool)
    for i, (y1, x1, y2, x2) in enumerate(_whole_boxes(bbox, mask.shape[-1])):
        crop = mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0), i]
        if crop.size == 0:
            raise ValueError(
                f"bbox {i} is {[y1, x1, y2, x2]} and holds no pixel of a {mask.shape[0]} x {mask.shape[1]} mask; "
                "leave out objects without pixels"
            )
        mini[:, :, i] = roialign.reference.resize_plane((crop != 0).astype(np.float64), mini_shape) > 0.5
    return mini


def expand_mask(bbox: np.ndarray, mini_mask: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Resizes mini masks to their boxes in the image: the way back from minimize_mask.

    bbox: [N, (y1, x1, y2, x2)] in whole pixels, inside the image.
    mini_mask: [height, width, N].
    image_shape: (H, W) of the result.

    Returns: bool [H, W, N].
    Raises: ValueError if a box is empty or reaches out of the image.
    """
    height, width = image_shape[:2]
    mask = np.zeros((height, width, mini_mask.shape[-1]), bool)
    for i, (y1, x1, y2, x2) in enumerate(_whole_boxes(bbox, mini_mask.shape[-1])):
        if not (0 <= y1 < y2 <= height and 0 <= x1 < x2 <= width):
            raise ValueError(f"bbox {i} is {[y1, x1, y2, x2]}: empty, or not inside the {height} x {width} image")
        plane = (mini_mask[:, :, i] != 0).astype(np.float64)
        mask[y1:y2, x1:x2, i] = roialign.reference.resize_plane(plane, (y2 - y1, x2 - x1)) > 0.5
    return mask


def compute_overlaps_masks(masks1: np.ndarray, masks2: np.ndarray) -> np.ndarray:
    """IoU of every mask of one stack with every mask of another.

    masks1: [H, W, N1]. masks2: [H, W, N2]. Bool, or numbers above 0.5 where the object is.

    Returns: float32 [N1, N2]; 0 for two empty masks.
    Raises: ValueError if the masks are of different sizes.
    """
    if masks1.ndim != 3 or masks2.ndim != 3 or masks1.shape[:2] != masks2.shape[:2]:
        raise ValueError(
            f"masks1 {list(masks1.shape)} and masks2 {list(masks2.shape)} must be [H, W, N] of one size; "
            "is one of them a stack of mini masks?"
        )
    inter = np.zeros((masks1.shape[2], masks2.shape[2]))
    areas = [np.zeros(masks.shape[2]) for masks in (masks1, masks2)]
    strip = max(1, _STRIP_PIXELS // max(1, masks1.shape[1] * (masks1.shape[2] + masks2.shape[2])))
    for rows in _blocks(masks1.shape[0], strip):  # whole stacks in floating point may not fit into memory
        strips = [(masks[rows] > 0.5).astype(np.float32) for masks in (masks1, masks2)]  # [h, W, N]
        flat1, flat2 = (masks.reshape(masks.shape[0] * masks.shape[1], masks.shape[2]) for masks in strips)
        inter += flat1.T @ flat2
        for area, flat in zip(areas, (flat1, flat2), strict=True):
            area += flat.sum(axis=0)
    union = areas[0][:, None] + areas[1] - inter
    return (inter / np.maximum(union, 1)).astype(np.float32)


def unmold_mask(mask: np.ndarray, bbox: Sequence[int], image_shape: Sequence[int]) -> np.ndarray:
    """Pastes one predicted mask at its place in the image, by Matterport's rule; roialign.paste_masks pastes many.

    mask: floating [M, M] in [0, 1].
    bbox: (y1, x1, y2, x2) in whole pixels.
    image_shape: (H, W) of the result.

    Returns: bool [H, W].
    """
    return roialign.paste_masks(_tensor(mask)[None], torch.tensor([list(map(float, bbox))]), image_shape, "resize")[
        ..., 0
    ]


############################################################
#  Run-length codes and polygons
############################################################

MAX_COORDINATE = 1e6  # of a polygon, in pixels
MAX_MASK_PIXELS = 1 << 30  # of a mask that a code is decoded to; codes themselves may have up to 2**32 - 1


def mask_to_rle(mask: np.ndarray) -> dict | list[dict]:
    """Compressed RLE of a mask, or of each mask of a stack.

    mask: [H, W] or [H, W, N] in any memory order, true or not 0 where the object is.

    Returns: an RLE for [H, W], a list of N for [H, W, N].
    Raises: ValueError for another number of dimensions, and for 2**32 pixels or more.
    """
    mask = np.asarray(mask)
    if mask.ndim == 3:
        return [mask_to_rle(mask[..., i]) for i in range(mask.shape[2])]
    if mask.ndim != 2:
        raise ValueError(f"mask must be [H, W] or [H, W, N], got {list(mask.shape)}")
    return crop_to_rle(0, 0, mask != 0, mask.shape)


def _counts(rle: Any) -> tuple[int, int, np.ndarray]:
    """Checks an RLE of any kind. Returns: height, width, and the lengths of the runs, int64 [runs]."""
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"an RLE must be a dict with size and counts, got {type(rle).__name__} {printable(rle, 60)}")
    code, size = rle["counts"], _whole_numbers(rle["size"])
    code = code.encode(errors="replace") if isinstance(code, str) else code
    counts = _decompress(code) if isinstance(code, bytes) else _whole_numbers(code)
    if size is None or counts is None or len(size) != 2:
        shown = f"{printable(rle['size'], 60)} and {printable(code, 60)}"
        raise ValueError(f"an RLE has a size [H, W] and counts, whole numbers, got {shown}")
    height, width = size.tolist()  # Python's numbers: their product does not wrap
    pixels = height * width
    if height < 0 or width < 0 or pixels >= 2**32:
        raise ValueError(f"an RLE has a size [H, W] of less than 2**32 pixels, got {printable(rle['size'], 60)}")
    # Each run before their sum, which would wrap: four runs of 2**62 sum to 0.
    if (counts < 0).any() or (counts > pixels).any() or counts.sum(dtype=np.int64) != pixels:
        raise ValueError(
            f"the runs of an RLE must be positive and fill {height} x {width} = {pixels} pixels, but these fill "
            f"{sum(counts.tolist())}; is size (height, width), and are the counts complete?"
        )
    return height, width, counts.astype(np.int64) if len(counts) else np.zeros(1, np.int64)


def _whole_numbers(values: Any) -> np.ndarray | None:
    """Numbers as a signed or unsigned array [N], floats without a fraction included; None for anything else."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError):  # nested lists of several lengths
        return None
    if array.dtype.kind == "f":
        # Beyond 2**53, floats are no exact numbers any more. NaN fails the comparison.
        array = array.astype(np.int64) if (np.abs(array) < 2**53).all() and (array == np.rint(array)).all() else None
    return array if array is not None and array.ndim == 1 and array.dtype.kind in "iu" else None


def _decompress(code: bytes) -> np.ndarray:
    """The lengths of the runs [runs] of COCO's compressed counts.

    A character holds five bits, the lowest ones first, and a sixth bit that says whether another character follows.
    The highest bit of a number is its sign. From the fourth number on, a number is the difference from the length two
    runs before.
    """
    digits = np.frombuffer(bytes(code), np.uint8).astype(np.int64) - 48
    if len(digits) == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError(f"the counts of an RLE are damaged or cut off: {code[:60]!r}")
    lasts = np.flatnonzero(~digits & 32)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    if lengths.max() > 7:  # more than 32 bits, and shifts beyond 64 bits would be undefined
        raise ValueError(f"the counts of an RLE are damaged: {code[:60]!r}")
    place = np.arange(len(digits)) - np.repeat(firsts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), firsts)
    numbers -= np.where(digits[lasts] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def rle_to_mask(rle: dict | Sequence[dict]) -> np.ndarray:
    """The mask of an RLE, or the stack of several.

    rle: compressed (bytes or str) or not (a list of numbers); or a list of RLEs of one size.

    Returns: bool [H, W], or [H, W, N] for a list of N.
    Raises: ValueError if a code is damaged, does not fit its size or has more than MAX_MASK_PIXELS, or if the list is
        empty or has several sizes.
    """
    if not isinstance(rle, list | tuple):
        height, width, counts = _counts(rle)
        _check_pixels(height, width)
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    masks = [rle_to_mask(code) for code in rle]
    if not masks:
        raise ValueError("an empty list of RLEs has no size; make np.zeros((H, W, 0), bool) yourself")
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"RLEs of several sizes have no stack: {sorted({mask.shape for mask in masks})}")
    return np.stack([mask.T for mask in masks]).T  # in the memory order of codes: ten times as fast as in C order


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_MASK_PIXELS:
        raise ValueError(
            f"the mask of this RLE has {height} x {width} pixels, more than {MAX_MASK_PIXELS}; is its size right? "
            "rle_area and rle_to_bbox need no mask"
        )


def rle_area(rle: dict) -> int:
    """The object's area in pixels. Raises: ValueError if the code is damaged."""
    return int(_counts(rle)[2][1::2].sum())


def rle_to_bbox(rle: dict) -> tuple[int, int, int, int]:
    """The smallest box (y1, x1, y2, x2) around the object; zeros if it is empty.

    Raises: ValueError if the code is damaged.
    """
    height, _, counts = _counts(rle)
    return _bounds(height, counts)


def _bounds(height: int, counts: np.ndarray) -> tuple[int, int, int, int]:
    """rle_to_bbox of runs that are decoded."""
    ends = counts.cumsum()
    starts, ends = ends[:-1:2][: len(ends) // 2], ends[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]
    if len(starts) == 0:
        return 0, 0, 0, 0
    (x1, y1), (x2, y2) = np.divmod(starts, height), np.divmod(ends - 1, height)
    if (x2 > x1).any():  # a run over a column's end touches the first and the last row
        return 0, int(x1.min()), height, int(x2.max()) + 1
    return int(y1.min()), int(x1.min()), int(y2.max()) + 1, int(x2.max()) + 1


def boxes_of_masks(masks: np.ndarray | Sequence[dict], boxes: np.ndarray) -> np.ndarray:
    """The smallest box round each mask. An empty mask keeps the box that it has.

    masks: bool [H, W, N], or N run-length codes. boxes: float [N, (y1, x1, y2, x2)].

    Returns: [N, 4], of the dtype of boxes.
    """
    around = mask_bounds(masks) if isinstance(masks, np.ndarray) else [rle_to_bbox(code) for code in masks]
    around = np.asarray(around, boxes.dtype).reshape(-1, 4)
    return np.where(around[:, 2:].any(axis=1, keepdims=True), around, boxes)


def mask_bounds(masks: np.ndarray) -> np.ndarray:
    """extract_bboxes of arrays bool [H, W, N], many times as fast in the memory order of detect()'s masks: [N, 4]."""
    filled = [masks.any(axis=1), masks.any(axis=0)]  # [H, N], [W, N]
    low = [side.argmax(axis=0) for side in filled]
    high = [(len(side) - side[::-1].argmax(axis=0)) * side.any(axis=0) for side in filled]
    return np.stack([*low, *high], axis=1)


def rle_to_crop(rle: dict, box: Sequence[int] | None = None) -> tuple[int, int, np.ndarray]:
    """The mask of an RLE inside the smallest box around it, made without the whole mask: undoes crop_to_rle.

    box: (y1, x1, y2, x2) in whole pixels; what lies outside of it is cut off. Then rows and columns may be empty.

    Returns: (y1, x1, crop), crop bool [h, w]; (0, 0) and a crop of 0 x 0 if nothing is left.
    Raises: ValueError if the code is damaged, or the crop has more than MAX_MASK_PIXELS.
    """
    height, _, counts = _counts(rle)
    y1, x1, y2, x2 = _bounds(height, counts)
    if box is not None:
        y1, x1, y2, x2 = max(y1, box[0]), max(x1, box[1]), min(y2, box[2]), min(x2, box[3])
    if y1 >= y2 or x1 >= x2:
        return 0, 0, np.zeros((0, 0), bool)
    _check_pixels(height, x2 - x1)
    ends = counts.cumsum().clip(x1 * height, x2 * height)  # of the runs, in the box's columns
    columns = np.repeat(np.arange(len(counts)) % 2 == 1, np.diff(ends, prepend=x1 * height))
    return y1, x1, columns.reshape(x2 - x1, height)[:, y1:y2].T.copy()


def rle_to_json(rle: dict) -> dict:
    """The same RLE for json.dump: counts as str, or as a list if they are not compressed."""
    counts = rle["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    counts = counts if isinstance(counts, str) else [int(count) for count in counts]
    return {"size": [int(side) for side in rle["size"]], "counts": counts}


def polygons_to_rle(polygons: Iterable[Sequence[float]], height: int, width: int) -> dict:
    """Compressed RLE of the union of polygons, by COCO's rasterisation.

    polygons: each [x1, y1, x2, y2, ...] in pixels; (0, 0) is the outer corner of the first pixel. A polygon of fewer
        than three points encloses nothing and is left out. Parts outside of the image are cut off.
    height, width: of the mask.

    Raises: ValueError for an odd number of numbers, nested points, or coordinates that are not finite or absurd; and
        for a mask of 2**32 pixels or more.
    """
    if height < 0 or width < 0 or height * width >= 2**32:
        raise ValueError(f"a mask of {height} x {width} (height x width) has no RLE: such codes have 32 bits")
    rings = [ring for i, polygon in enumerate(polygons) if len(ring := _ring(polygon, i)) >= 6]
    codes = []
    for ring in rings:
        if polygon_filling.is_small(ring, height, width):
            codes += coco_mask.frPyObjects([ring.tolist()], height, width)
        else:
            codes.append(compress_counts(polygon_filling.fill(ring, height, width), height, width))
    if not codes or height * width == 0:
        return compress_counts(np.array([height * width]), height, width)
    return coco_mask.merge(codes)


def _ring(polygon: Any, number: int) -> np.ndarray:
    """A polygon's numbers, float64 [2 * points]. Raises: ValueError, which calls it by its number."""
    try:
        ring = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.empty((0, 0))
    if ring.ndim != 1 or len(ring) % 2:
        raise ValueError(f"polygon {number} must be a flat list [x1, y1, x2, y2, ...], got {printable(polygon, 80)}")
    if not (np.abs(ring) <= MAX_COORDINATE).all():  # in this form, NaN fails too
        raise ValueError(f"polygon {number} has a coordinate beyond {MAX_COORDINATE:g}; is it in pixels?")
    return ring


def annotation_to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Compressed RLE of a COCO annotation's segmentation, of any kind.

    segmentation: a list of polygons, or an RLE, compressed or not.
    height, width: of the image.

    Raises: ValueError if it is neither, is damaged, or has another size than the image.
    """
    if isinstance(segmentation, dict):
        rle_height, rle_width, counts = _counts(segmentation)
        if (rle_height, rle_width) != (height, width):
            raise ValueError(
                f"the segmentation is {rle_height} x {rle_width}, the image {height} x {width} (height x width); "
                "does it belong to another image?"
            )
        return compress_counts(counts, height, width)
    if not isinstance(segmentation, list | tuple):
        raise ValueError(f"segmentation must be a list of polygons or an RLE, got {type(segmentation).__name__}")
    return polygons_to_rle(segmentation, height, width)


############################################################
#  Metrics
############################################################

# Matterport's metrics of single images: VOC-style, with all classes in one curve, and without COCO's rule for crowds.
# They are NOT COCO AP: do not compare them with published numbers. evaluation/run.py computes COCO AP.


def compute_matches(
    gt_boxes: ArrayLike,
    gt_class_ids: ArrayLike,
    gt_masks: ArrayLike,
    pred_boxes: ArrayLike,
    pred_class_ids: ArrayLike,
    pred_scores: ArrayLike,
    pred_masks: ArrayLike,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches predictions with the objects of one image. The best score chooses first, each its best free object.

    NOTE: the results are in the order of scores, not in that of the arguments. Predictions are sorted by
    np.argsort(-pred_scores, kind="stable"), so pred_match[0] belongs to the best score. Rows of pred_boxes and gt_boxes
    that are all zeros are padding. They are dropped, with their class ids, scores and masks, before rows are numbered.

    gt_boxes: [G, (y1, x1, y2, x2)], used to find the padding only. gt_class_ids: [G]; negative for a crowd, which
        matches nothing. gt_masks: [H, W, G], bool or 0 and 1.
    pred_boxes: [P, (y1, x1, y2, x2)]. pred_class_ids, pred_scores: [P]. pred_masks: [H, W, P].
    iou_threshold: the least IoU of the two masks.
    score_threshold: predictions with a lower score match nothing. (Matterport compared it with the IoU.)

    Returns: gt_match [G] int32, the prediction of each object, or -1; pred_match [P] int32, the object of each
        prediction, or -1; overlaps [P, G], IoU of the masks.
    Raises: ValueError if the arrays of one side differ in count, or the masks of the two sides in size.
    """
    gt_ids, pred_ids, scores, overlaps = _overlap_instances(
        gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks
    )
    return *_match(overlaps, gt_ids, np.where(scores < score_threshold, 0, pred_ids), iou_threshold), overlaps


def compute_ap(
    gt_boxes: ArrayLike,
    gt_class_ids: ArrayLike,
    gt_masks: ArrayLike,
    pred_boxes: ArrayLike,
    pred_class_ids: ArrayLike,
    pred_scores: ArrayLike,
    pred_masks: ArrayLike,
    iou_threshold: float = 0.5,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Average precision in one image, VOC-style: the area under its precision-recall curve. NOT COCO AP.

    All classes share one curve, and crowds do not count as objects. Without objects the result is 1 if nothing was
    predicted, else 0. With objects and without predictions it is 0. It is never NaN.

    The arrays: as for compute_matches.

    Returns: mAP in [0, 1]; precisions [P + 2], which never rise from left to right, and recalls [P + 2], the points of
        the curve from recall 0 to 1; overlaps [P, G], IoU of the masks, predictions sorted by score.
    Raises: ValueError as compute_matches.
    Source: The PASCAL Visual Object Classes Challenge 2012, development kit, section 3.4.1.
    """
    gt_ids, pred_ids, _, overlaps = _overlap_instances(
        gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks
    )
    return *_average_precision(overlaps, gt_ids, pred_ids, iou_threshold), overlaps


def compute_ap_range(
    gt_boxes: ArrayLike,
    gt_class_ids: ArrayLike,
    gt_masks: ArrayLike,
    pred_boxes: ArrayLike,
    pred_class_ids: ArrayLike,
    pred_scores: ArrayLike,
    pred_masks: ArrayLike,
    iou_thresholds: ArrayLike | None = None,
    verbose: int = 1,
) -> float:
    """The mean of compute_ap over several IoU thresholds, in one image. NOT COCO AP.

    The arrays: as for compute_matches.
    iou_thresholds: numbers; None is 0.5, 0.55 ... 0.95.
    verbose: 1 prints the AP of each threshold and the mean.

    Returns: the mean, in [0, 1].
    Raises: ValueError as compute_matches, and for no thresholds.
    """
    thresholds = np.linspace(0.5, 0.95, 10) if iou_thresholds is None else np.ravel(iou_thresholds)
    if len(thresholds) == 0:
        raise ValueError("iou_thresholds is empty; None stands for 0.5, 0.55 ... 0.95")
    gt_ids, pred_ids, _, overlaps = _overlap_instances(
        gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks
    )
    aps = [_average_precision(overlaps, gt_ids, pred_ids, threshold)[0] for threshold in thresholds]
    mean = float(np.mean(aps))
    if verbose:
        for threshold, ap in zip(thresholds, aps, strict=True):
            print(f"AP @{threshold:.2f}:\t {ap:.3f}")
        print(f"AP @{thresholds[0]:.2f}-{thresholds[-1]:.2f}:\t {mean:.3f}")
    return mean


def compute_recall(pred_boxes: ArrayLike, gt_boxes: ArrayLike, iou: float) -> tuple[float, np.ndarray]:
    """The share of the objects' boxes that predictions found.

    As in Matterport, a prediction finds at most one object: the one with which its overlap is largest.

    pred_boxes: [P, (y1, x1, y2, x2)]. gt_boxes: [G, (y1, x1, y2, x2)].
    iou: the least IoU of the two boxes.

    Returns: recall in [0, 1], 1 if there are no objects; positive_ids [<= P], the predictions that found an object.
    Raises: ValueError for other shapes.
    """
    pred_boxes, gt_boxes = _box_array("pred_boxes", pred_boxes), _box_array("gt_boxes", gt_boxes)
    if len(gt_boxes) == 0 or len(pred_boxes) == 0:
        return float(len(gt_boxes) == 0), np.zeros(0, np.int64)
    overlaps = compute_overlaps(pred_boxes, gt_boxes)  # [P, G]
    positive_ids = np.flatnonzero(overlaps.max(axis=1) >= iou)
    objects = np.unique(overlaps[positive_ids].argmax(axis=1))
    return len(objects) / len(gt_boxes), positive_ids


def compute_true_ious(
    gt_class_ids: ArrayLike, gt_masks: ArrayLike, pred_class_ids: ArrayLike, pred_masks: ArrayLike
) -> np.ndarray:
    """The best IoU of each predicted mask with an object of its class: the value that a MaskIoU head should predict.

    gt_class_ids: [G]. gt_masks: [H, W, G]. pred_class_ids: [P]. pred_masks: [H, W, P].

    Returns: float32 [P] in [0, 1], 0 without an object of the class. Several predictions may share an object.
    Raises: ValueError if masks and class ids differ in count, or the masks in size.
    """
    gt_ids, pred_ids = np.asarray(gt_class_ids), np.asarray(pred_class_ids)
    overlaps = compute_overlaps_masks(pred_masks, gt_masks)  # [P, G]
    if overlaps.shape != (len(pred_ids), len(gt_ids)):
        raise ValueError(
            f"there are {len(pred_ids)} pred_class_ids and {len(gt_ids)} gt_class_ids, but {overlaps.shape[0]} and "
            f"{overlaps.shape[1]} masks; are the masks [H, W, N]?"
        )
    return np.where(pred_ids[:, None] == gt_ids, overlaps, 0).max(axis=1, initial=0).astype(np.float32)


def _overlap_instances(
    gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Drops the padding and sorts predictions by score.

    Returns: gt_class_ids [G], pred_class_ids [P], scores [P], overlaps [P, G].
    """
    gt_ids, gt_masks = _instances("gt", gt_boxes, gt_masks, {"class_ids": gt_class_ids})
    pred_ids, scores, pred_masks = _instances(
        "pred", pred_boxes, pred_masks, {"class_ids": pred_class_ids, "scores": pred_scores}
    )
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    overlaps = np.zeros((len(pred_ids), len(gt_ids)), np.float32)
    if overlaps.size:  # the masks of no instances may have any shape
        if gt_masks.shape[:2] != pred_masks.shape[:2]:
            raise ValueError(
                f"gt_masks {list(gt_masks.shape)} and pred_masks {list(pred_masks.shape)} must have the same height "
                "and width; was one of them resized, or is it the mini mask?"
            )
        overlaps = compute_overlaps_masks(pred_masks, gt_masks)[order]
    return gt_ids, pred_ids[order], scores[order], overlaps


def _instances(kind: str, boxes: ArrayLike, masks: ArrayLike, columns: Mapping[str, ArrayLike]) -> list[np.ndarray]:
    """Checks that boxes, masks and columns have one row for each instance, and drops the rows whose box is all zeros.

    Returns: the columns, then the masks.
    """
    boxes, masks = _box_array(f"{kind}_boxes", boxes), np.asarray(masks)
    keep = (boxes != 0).any(axis=1)  # [N]
    arrays = []
    for name, column in columns.items():
        column = np.asarray(column)
        if column.size != len(boxes) or column.ndim > 1:
            raise ValueError(f"{kind}_{name} must be [{len(boxes)}], as many as {kind}_boxes, not {list(column.shape)}")
        arrays.append(column.reshape(-1)[keep])
    if len(boxes) and (masks.ndim != 3 or masks.shape[2] != len(boxes)):
        first = masks.ndim == 3 and masks.shape[0] == len(boxes)
        raise ValueError(
            f"{kind}_masks must be [H, W, {len(boxes)}], as many as {kind}_boxes, not {list(masks.shape)}"
            + ("; np.moveaxis(masks, 0, -1) puts the instances last" if first else "")
        )
    return [*arrays, masks if keep.all() else masks[..., keep]]


def _box_array(name: str, boxes: ArrayLike) -> np.ndarray:
    boxes = np.asarray(boxes)
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be [N, (y1, x1, y2, x2)], not {list(boxes.shape)}")
    return boxes


def _match(overlaps: np.ndarray, gt_ids, pred_ids, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """gt_match [G] and pred_match [P], for overlaps [P, G] whose rows are sorted by score."""
    gt_match = np.full(len(gt_ids), -1, np.int32)
    pred_match = np.full(len(pred_ids), -1, np.int32)
    for i, class_id in enumerate(pred_ids):
        free = np.flatnonzero((gt_match < 0) & (gt_ids == class_id) & (gt_ids > 0))
        if len(free) == 0:
            continue
        best = free[overlaps[i, free].argmax()]
        if overlaps[i, best] >= iou_threshold:
            gt_match[best], pred_match[i] = i, best
    return gt_match, pred_match


def _average_precision(
    overlaps: np.ndarray, gt_ids, pred_ids, iou_threshold: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """mAP, precisions [P + 2], recalls [P + 2]."""
    objects = np.count_nonzero(gt_ids > 0)
    _, pred_match = _match(overlaps, gt_ids, pred_ids, iou_threshold)
    hits = np.cumsum(pred_match >= 0)
    precisions = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    recalls = np.concatenate([[0.0], hits / max(objects, 1), [1.0]])
    if objects == 0 and len(hits) == 0:
        precisions[:] = 1  # nothing to find, nothing found
    precisions = np.maximum.accumulate(precisions[::-1])[::-1]
    return float((np.diff(recalls) * precisions[1:]).sum()), precisions, recalls


############################################################
#  Text
############################################################


def listed(names: Iterable[str], limit: int = 20) -> str:
    """A line for messages: the first names, and how many more there are. "a, b, and 3 more"."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def printable(text: Any, limit: int = 200) -> str:
    """A text that comes from a file, as a message may show it: str(text), with control characters as escape codes.

    Otherwise a file could move the cursor of a terminal, change its colours, or write lines that look like ours.
    Letters of all scripts stay. limit: longer texts are cut, and end in "...".
    """
    text = str(text)[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown + "..." if len(text) > limit else shown


############################################################
#  Names that live elsewhere
############################################################


def __getattr__(name: str) -> Any:
    """utils.Dataset, Matterport's name, and utils.read_image. Both are in data/, which imports this file."""
    if name == "Dataset":
        return importlib.import_module("data.dataset").Dataset
    if name == "read_image":
        return importlib.import_module("data.images").read_image
    raise AttributeError(f"module 'utils' has no attribute {name!r}")

"""Detect objects with a model that export.py wrote. Copy this one file beside model.onnx: it needs no other of ours.

    pip install numpy Pillow onnxruntime
    python onnx_detect.py model.onnx photo.jpg [MORE ...] [--output DIR] [--threshold SCORE]

The command writes a picture OUTPUT/NAME_detections.png for each image, OUTPUT/detections.json (COCO: images,
categories, annotations with run-length codes) and OUTPUT/detections.csv, a row for each object. In Python:

    detector = Detector("model.onnx")
    result = detector.detect("photo.jpg")  # or an array [H, W, 3] RGB uint8, or an image of Pillow
    result["masks"]                        # bool [H, W, N]

The result is what MaskRCNN.detect returns in PyTorch. How images are resized and masks are pasted depends on the model;
the file says it in its metadata. docs/export.md has the rules in words and in numbers, for other languages.

    N objects   H, W the image's height and width   M mask side   B images of a batch   C channels
    Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError

METADATA = "maskscoring"  # the entry of metadata_props that holds the settings as JSON
FORMAT = 1  # of the settings; a file with another number was written for another onnx_detect.py
INPUTS = ("pixels", "windows")
OUTPUTS = ("boxes", "batch_index", "class_ids", "scores", "mask_probs")  # and mask_ious, with a MaskIoU head
MAX_IMAGE_PIXELS = 178_956_970  # larger images are refused before they are decoded
MAX_IMAGE_SIDE = 100_000

############################################################
#  Settings
############################################################

_SIDE = (1, 20_000)
# Numbers: the smallest and the largest value. A file may be damaged, or be made to harm: what it says is checked.
_NUMBERS = {
    "min_dim": _SIDE, "max_dim": _SIDE, "divisor": (1, 4096), "channels": (1, 64), "max_detections": (1, 10**6),
    "min_scale": (0, 100), "min_score": (0, 1), "score_threshold": (0, 1),
}  # fmt: skip
_INTEGERS = ("min_dim", "max_dim", "divisor", "channels", "max_detections")
_CHOICES = {
    "resize_mode": ("shorter", "square", "pad64", "none"),
    "size_rounding": ("half_up", "truncate", "floor", "half_even", "scale_twice"),
    "resampling": ("opencv", "pillow", "torch", "skimage"),
    "coordinates": ("half_open", "inclusive", "normalised"),
    "paste": ("centres", "expand", "resize"),
    "pixel_range": ("depth", "percentiles"),
}
_FLAGS = ("pads_before_mean", "clips_result", "clamps_mask_iou", "boxes_of_masks")


@dataclass(frozen=True)
class Settings:
    """What the model file says of itself: how images become its input, and its outputs become detections."""

    dialect: str  # the family whose rules these are; only for people
    resize_mode: str  # shorter, square, pad64 or none: see plan_resize
    size_rounding: str
    resampling: str  # how pixels are mixed: see resize_pixels
    min_dim: int
    max_dim: int
    min_scale: float
    divisor: int  # padded sides are multiples of it, in mode shorter
    channels: int  # C
    mean: tuple[float, ...]  # of each channel; pixels are 0 to 255, in the order R, G, B
    std: tuple[float, ...]
    pads_before_mean: bool  # True: padding is black pixels; False: it is 0 after the mean is subtracted
    bit_depth: int | str  # of files with 16 bits: 8 to 16, or "auto"
    pixel_range: str  # "percentiles": each image is stretched by its own percentiles
    coordinates: str  # of the output boxes: see boxes_in_image
    clips_result: bool
    paste: str  # how masks are put into the image: see paste_mask
    clamps_mask_iou: bool  # mask score = class score x predicted IoU, which is limited to [0, 1] before
    boxes_of_masks: bool  # an object's box is the smallest one round its mask
    min_score: float  # the network reports no class score below
    max_detections: int  # of an image
    score_threshold: float  # the mask score from which detections are shown, unless told otherwise
    class_names: tuple[str, ...]  # of each class index; 0 is the background
    category_ids: tuple[int, ...]  # of each class index, in COCO's files

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The settings of their JSON. Raises: ValueError for what is missing, of another type or out of its range."""
        try:
            values = json.loads(text) if len(text) < 1 << 22 else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ValueError("its settings are no JSON object of less than 4 MB; is the file damaged?")
        if values.get("format") != FORMAT:
            raise ValueError(
                f"its settings have format {_shown(values.get('format'))}, and this onnx_detect.py reads {FORMAT}; "
                "take the onnx_detect.py of the project that exported it"
            )
        for name, (low, high) in _NUMBERS.items():
            value = values.get(name)
            is_number = isinstance(value, int if name in _INTEGERS else (int, float)) and not isinstance(value, bool)
            if not (is_number and low <= value <= high):
                raise ValueError(f"its setting {name} must be a number from {low} to {high}, not {_shown(value)}")
        for name, choices in _CHOICES.items():
            if values.get(name) not in choices:
                raise ValueError(
                    f"its setting {name} must be one of {', '.join(choices)}, not {_shown(values.get(name))}"
                )
        values.setdefault("boxes_of_masks", False)  # of files from before there was this setting
        for name in _FLAGS:
            if not isinstance(values.get(name), bool):
                raise ValueError(f"its setting {name} must be true or false, not {_shown(values.get(name))}")
        depth = values.get("bit_depth")
        if depth != "auto" and not (type(depth) is int and 8 <= depth <= 16):
            raise ValueError(f"its setting bit_depth must be auto or a number from 8 to 16, not {_shown(depth)}")
        count = values["channels"]
        mean = _numbers(values, "mean", count, -1e6, 1e6)
        std = _numbers(values, "std", count, 1e-6, 1e6)
        names = values.get("class_names")
        if not (isinstance(names, list) and 2 <= len(names) <= 100_000 and all(isinstance(n, str) for n in names)):
            raise ValueError("its setting class_names must be 2 names or more, of the background first")
        ids = tuple(map(int, _numbers(values, "category_ids", len(names), -(2**53), 2**53)))
        of_name = {name: values[name] for name in (*_NUMBERS, *_CHOICES, *_FLAGS)}
        dialect = str(values.get("dialect"))[:50]
        return cls(
            dialect=dialect, bit_depth=depth, mean=mean, std=std, class_names=tuple(names), category_ids=ids, **of_name
        )


def _numbers(values: dict, name: str, count: int, low: float, high: float) -> tuple[float, ...]:
    numbers = values.get(name)
    is_list = isinstance(numbers, list) and len(numbers) == count
    if not is_list or not all(type(n) in (int, float) and low <= n <= high for n in numbers):
        raise ValueError(f"its setting {name} must be {count} numbers from {low} to {high}, not {_shown(numbers)}")
    return tuple(numbers)


def _shown(value: Any, length: int = 100) -> str:
    """A value of a file, as a message may show it: short, and without characters that control a terminal."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


############################################################
#  Reading images
############################################################

# What Pillow may read: formats of pictures that no other program has to decode.
_FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "PSD", "QOI", "SGI",
    "TGA",
)  # fmt: skip
# From the stored pixels to the upright ones, by EXIF's orientation.
_TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and microscopes have


def read_image(path: str | os.PathLike, settings: Settings) -> np.ndarray:
    """An image file upright, in 8 bits, with the model's channels: uint8 [H, W, C].

    Transparency is dropped. Values of 16 bits are divided by the largest number of bit_depth bits; "auto" takes the
    fewest of 8, 10, 12, 14 and 16 bits that hold the image's values. Of a TIFF, Pillow decides what can be read.

    Raises: FileNotFoundError; ValueError, which names the file, for what is no image, damaged or too large.
    """
    name = _shown(os.fspath(path), 500)
    if not os.path.exists(path):
        raise FileNotFoundError(f"image {name}: there is no such file")
    if not os.path.isfile(path):
        raise ValueError(f"image {name} is a folder or a device; name an image file")
    return _decode(path, name, settings, MAX_IMAGE_PIXELS)


def read_image_bytes(data: bytes, name: str, settings: Settings, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """read_image of the contents of a file. name: for messages. max_pixels: of the image, at most."""
    return _decode(io.BytesIO(data), _shown(name, 500), settings, max_pixels)


def _decode(file: str | os.PathLike | BinaryIO, name: str, settings: Settings, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _check_size(image.size, max_pixels)
            turn = 1 if image.format == "TIFF" else _orientation(image)  # Pillow itself turns a TIFF
            image.load()
            values = _values(image)
        pixels = _eight_bits(values, settings)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise ValueError(f"image {name}: cannot identify image file: is it one of {kinds}, and whole?") from error
    except Exception as error:  # Pillow raises errors of many kinds for a damaged file
        raise ValueError(f"image {name}: {_shown(str(error), 300) or 'cannot be decoded; is it damaged?'}") from error
    pixels = _TURNS[turn](pixels) if turn > 1 else pixels
    return np.ascontiguousarray(_fit_channels(pixels, settings.channels))


def image_array(image: Any, settings: Settings) -> np.ndarray:
    """An image as users give it, in 8 bits, with the model's channels: uint8 [H, W, C].

    image: the path of a file; an image of Pillow, which is not turned; or an array [H, W], [H, W, 1, 3 or 4], uint8,
        bool, uint16 (scaled by 1/257) or floating in [0, 1]. A model of other channels takes [H, W, C].

    Raises: ValueError for everything else, and as read_image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, settings)
    if isinstance(image, Image.Image):
        _check_size(image.size)
        image = _values(image)
        image = (
            image.astype(np.uint16) if image.dtype.kind == "i" and image.min() >= 0 <= image.max() < 65536 else image
        )
    channels = settings.channels
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.size == 0:
        kind = list(image.shape) if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a path, an image of Pillow or an array [H, W, {channels}], not {kind}")
    _check_size(image.shape[1::-1])
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] != channels and not (channels == 3 and image.shape[2] in (1, 4)):
        hint = "; channels come last: image.transpose(1, 2, 0)" if image.shape[0] in (1, 3, 4) else ""
        raise ValueError(f"image must be an array [H, W, {channels}], not {list(image.shape)}{hint}")
    image = image[..., :channels]
    if settings.pixel_range == "percentiles":
        image = _stretch(image)
    elif image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype == bool:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype.kind == "f":
        if np.isnan(image.min()):
            raise ValueError("image is floating and must lie in [0, 1], but some of its values are not numbers (NaN)")
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"image is floating and must lie in [0, 1], not {image.min()}..{image.max()}")
        image = np.rint(image * 255.0).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"image must be uint8, uint16, bool or floating, not {image.dtype}")
    return np.repeat(image, 3, axis=2) if image.shape[2] < channels else image


def _check_size(size: Sequence[int], max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > max_pixels or max(size) > MAX_IMAGE_SIDE:
        raise ValueError(
            f"{width} x {height} pixels: an image has at least 1 pixel, at most {max_pixels}, and no side above "
            f"{MAX_IMAGE_SIDE}"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. Damaged EXIF data do not make the image unusable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _values(image: Image.Image) -> np.ndarray:
    """The values of an image of Pillow: [H, W] if it has more than 8 bits, else uint8 [H, W, 3]."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode in ("P", "PA", "LA", "RGBa"):  # Pillow misreads a palette with transparency on the way to RGB
        image = image.convert("RGBA")
    return np.array(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"))[..., :3]


def _eight_bits(values: np.ndarray, settings: Settings) -> np.ndarray:
    """The values of a file as uint8, in the same shape."""
    if settings.pixel_range == "percentiles":
        return _stretch(values)
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("some of its values are infinite or not numbers (NaN)")
    if low < 0 or high > 65535:  # the image's own range becomes 0..255
        return np.rint((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)
    if values.dtype.kind == "f" and high <= 255:
        values = values.astype(np.float32)
        return np.rint((values if high <= 1 else values / 255) * 255.0).astype(np.uint8)
    depth = settings.bit_depth
    if depth == "auto":
        depth = next(bits for bits in _DEPTHS if high < 2**bits)
    top = 2**depth - 1
    if high > top and (share := float(np.mean(values > top))) > 0.01:
        raise ValueError(f"the model takes values up to {top} (bit_depth), and {share:.0%} of its values are larger")
    if values.dtype.kind == "f":
        return np.rint(values.clip(max=top) * (255.0 / top)).astype(np.uint8)
    table = (np.arange(65536, dtype=np.uint32).clip(max=top) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]


def _stretch(image: np.ndarray) -> np.ndarray:
    """Scales each channel so that its percentiles 0.1 and 99.9 become 0 and 255."""
    if image.dtype.kind not in "buif" or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        raise ValueError("an image whose percentiles are taken must have finite numbers")
    image = image.astype(np.uint8) if image.dtype == bool else image
    planes = image[..., None] if image.ndim == 2 else image
    result = np.empty(planes.shape, np.uint8)
    for channel in range(planes.shape[2]):
        plane = planes[..., channel]
        first, last = math.floor(0.001 * (plane.size - 1)), math.ceil(0.999 * (plane.size - 1))
        if plane.dtype == np.uint8 and (plane == 0).sum() > first and (plane == 255).sum() >= plane.size - last:
            result[..., channel] = plane  # it was stretched before
            continue
        low, high = np.partition(plane.ravel(), (first, last))[[first, last]].tolist()
        low, high = (low, high) if low != high else (plane.min().item(), plane.max().item())
        span = float(high) - float(low)
        scaled = (plane.astype(np.float64) - low) * (255 / span if span else 0.0)
        result[..., channel] = np.rint(scaled.clip(0, 255))
    return result.reshape(image.shape)


def _fit_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] with as many channels as the model takes: gray is repeated, colours are mixed."""
    if channels == 3:
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    if channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.pad(pixels, ((0, 0), (0, 0), (0, max(channels - pixels.shape[2], 0))))[..., :channels]


############################################################
#  Resizing
############################################################

_ROUNDINGS: dict[str, Callable[[float], int]] = {
    "half_up": lambda size: math.floor(size + 0.5),
    "truncate": int,
    "floor": math.floor,
    "half_even": round,
    "scale_twice": lambda size: int(size + 0.5),
}


class Plan(NamedTuple):
    """How an image becomes the network's input: scaled to a size, then put into a window of a padded one."""

    size: tuple[int, int]  # (height, width) after scaling
    window: tuple[int, int, int, int]  # (y1, x1, y2, x2) of the image in the input
    padded_shape: tuple[int, int]  # (height, width) of the input


def plan_resize(height: int, width: int, settings: Settings) -> Plan:
    """The plan of an image of a height and width.

    shorter    the shorter side becomes min_dim, but the longer one at most max_dim; padded at the bottom and right to
               multiples of divisor
    square     as it is, but the shorter side at least min_dim and the longer one at most max_dim; padded on all sides
               to max_dim x max_dim
    pad64      as square without max_dim, but to reach min_dim the longer side becomes at most 16 x min_dim; padded on
               all sides to multiples of 64
    none       as it is

    size_rounding says how scaled sides become whole pixels.
    """
    mode = settings.resize_mode
    size = (height, width) if mode == "none" else _scaled_size(height, width, settings)
    if mode == "shorter":
        padding = [(0, -side % settings.divisor) for side in size]
    elif mode == "none":
        padding = [(0, 0), (0, 0)]
    else:
        missing = [settings.max_dim - side if mode == "square" else -side % 64 for side in size]
        padding = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
    (top, bottom), (left, right) = padding
    shape = (size[0] + top + bottom, size[1] + left + right)
    if shape[0] * shape[1] > MAX_IMAGE_PIXELS:
        raise ValueError(f"an image of {height} x {width} pixels would become {shape[0]} x {shape[1]} pixels")
    return Plan(size, (top, left, top + size[0], left + size[1]), shape)


def _scaled_size(height: int, width: int, settings: Settings) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    to_int, limit = _ROUNDINGS[settings.size_rounding], settings.max_dim
    if settings.resize_mode != "shorter":
        thinnest = long / 16 if settings.resize_mode == "pad64" else 0
        scale = max(1.0, settings.min_dim / max(short, thinnest), settings.min_scale)
        if settings.resize_mode == "square" and to_int(long * scale) > limit:
            scale = limit / long
        return max(1, to_int(height * scale)), max(1, to_int(width * scale))
    side = max(settings.min_dim, settings.min_scale * short)
    if settings.size_rounding == "truncate":  # the shorter side is rounded before the longer one is computed
        if long / short * side > limit:
            side = round(limit * short / long)
        if short == side:
            return height, width
        side = max(1, int(side))
        longer = int(side * long / short)
        return (longer, side) if width < height else (side, longer)
    if settings.size_rounding == "scale_twice":  # both sides by the short one; if the long one is too long, once more
        scale = side / short
        sides = (side, scale * width) if height < width else (scale * height, side)
        if max(sides) > limit:
            again = limit / max(sides)
            sides = sides[0] * again, sides[1] * again
        return max(1, to_int(sides[0])), max(1, to_int(sides[1]))
    scale = min(side / short, limit / long)
    return max(1, to_int(height * scale)), max(1, to_int(width * scale))


def resize_pixels(image: np.ndarray, size: tuple[int, int], resampling: str) -> np.ndarray:
    """Bilinear resampling of an image uint8 [H, W, C] to a size (height, width), by one of four rules.

    opencv     weights of 11 bits, as cv2.resize: to the byte
    pillow     as Pillow: where an image shrinks, all of its pixels count
    torch      as torch's interpolate without antialiasing: float32, not rounded
    skimage    as skimage.transform.resize: zeros around the image, truncated to whole numbers

    Returns: uint8 [height, width, C]; float32 for torch.
    """
    if image.shape[:2] == tuple(size):
        return image.astype(np.float32) if resampling == "torch" else image
    return _RESAMPLINGS[resampling](image, *size)


def _resize_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    def taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
        positions = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
        first = np.floor(positions).astype(np.int64)
        part = positions - first.astype(np.float32)
        weights = np.rint(np.float32(2048) * np.stack([1 - part, part])).astype(np.int32)
        return np.stack([first, first + 1]).clip(0, old - 1), weights

    (rows, row_weights), (columns, column_weights) = taps(image.shape[0], height), taps(image.shape[1], width)
    result = np.empty((height, width, image.shape[2]), np.uint8)
    for start in range(0, height, 64):  # a few rows at a time, to save memory
        block = slice(start, start + 64)
        total = 0
        for row, row_weight in zip(rows[:, block], row_weights[:, block], strict=True):
            pixels = image[row]
            mixed = sum(pixels[:, c] * w[:, None] for c, w in zip(columns, column_weights, strict=True)) >> 4
            total = total + ((mixed * row_weight[:, None, None]) >> 16)
        result[block] = (total + 2) >> 2
    return result


def _resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    planes = (Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2]))
    return np.stack([plane.resize((width, height), Image.Resampling.BILINEAR) for plane in planes], axis=-1)


def _resize_torch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    def taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.float32(old / new) * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
        position = position.clip(0)
        first = np.minimum(position.astype(np.int64), old - 1)
        return first, np.minimum(first + 1, old - 1), position - first.astype(np.float32)

    (top, bottom, down), (left, right, across) = taps(image.shape[0], height), taps(image.shape[1], width)
    image, down, across = image.astype(np.float32), down[:, None, None], across[:, None]
    rows = image[:, left] * (1 - across) + image[:, right] * across
    return rows[top] * (1 - down) + rows[bottom] * down


def _resize_skimage(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """In double, and in the order of SciPy's sums: the result is truncated, so the last digit counts."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0))).astype(np.float64)  # a ring of zeros

    def taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = (np.arange(new) + 0.5) * (old / new) - 0.5
        first = np.floor(position)
        low = 1.0 - (position - first)
        return first.astype(np.int64) + 1, low, 1.0 - low

    (rows, up, down), (columns, left, right) = taps(image.shape[0], height), taps(image.shape[1], width)
    up, down, left, right = up[:, None, None], down[:, None, None], left[:, None], right[:, None]
    total = padded[rows][:, columns] * up * left
    total += padded[rows][:, columns + 1] * up * right
    total += padded[rows + 1][:, columns] * down * left
    total += padded[rows + 1][:, columns + 1] * down * right
    low, high = image.min(), image.max()
    is_outside = total == 0 if low > 0 else None
    total = total.clip(low, high)
    if is_outside is not None:
        total[is_outside] = 0
    return total.astype(np.uint8)


_RESAMPLINGS = {
    "opencv": _resize_opencv, "pillow": _resize_pillow, "torch": _resize_torch, "skimage": _resize_skimage
}  # fmt: skip


def network_input(image: np.ndarray, plan: Plan, settings: Settings) -> np.ndarray:
    """An image uint8 [H, W, C] resized, normalised and padded: float32 [C, *plan.padded_shape]."""
    mean, std = np.float32(settings.mean), np.float32(settings.std)
    pixels = (resize_pixels(image, plan.size, settings.resampling).astype(np.float32) - mean) / std
    padding = (np.zeros_like(mean) - mean) / std if settings.pads_before_mean else np.zeros_like(mean)
    y1, x1, y2, x2 = plan.window
    result = np.empty((settings.channels, *plan.padded_shape), np.float32)
    result[:] = padding[:, None, None]
    result[:, y1:y2, x1:x2] = pixels.transpose(2, 0, 1)
    return result


############################################################
#  Boxes and masks
############################################################


def boxes_in_image(
    boxes: np.ndarray, window: Sequence[int], shape: tuple[int, int], settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """The network's boxes in pixels of the image, and which of them are still boxes: float32 [N, 4], bool [N].

    boxes: float32 [N, 4]. window: of the Plan. shape: (H, W).
    """
    (y1, x1, y2, x2), (height, width) = window, shape
    origin, corner = np.float32([y1, x1, y1, x1]), np.float32([0, 0, 1, 1])
    if settings.coordinates == "normalised":  # the distance between the centres of the first and last pixels counts
        sides = max(y2 - y1 - 1, 1), max(x2 - x1 - 1, 1)
        scale = np.float32([(height - 1) / sides[0], (width - 1) / sides[1]] * 2)
        boxes = np.rint((boxes - origin) * scale + corner)
    else:
        scale = np.float32([height / (y2 - y1), width / (x2 - x1)] * 2)
        last = corner if settings.coordinates == "inclusive" else np.float32(0)  # boxes that hold their last pixel
        boxes = (boxes - last - origin) * scale + last
    if settings.clips_result:
        boxes = np.clip(boxes, 0, np.float32([height, width] * 2))
    elif settings.coordinates != "normalised":
        return boxes, np.ones(len(boxes), bool)
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def paste_mask(probs: np.ndarray, box: np.ndarray, shape: tuple[int, int], rule: str) -> tuple[int, int, np.ndarray]:
    """A predicted mask at its place in the image.

    probs: float32 [M, M]. box: float32 [4], in pixels of the image; of inclusive boxes, (y2, x2) is the last pixel.
    shape: (H, W). rule: where pixels sample the mask, bilinearly and with zeros around it.

        centres    at the centres of the pixels that the box touches; objects begin at 0.5
        expand     a ring of zeros is put around the mask, the box grows with it and is truncated to whole pixels, the
                   last one included; objects are above 0.5
        resize     the mask is resized to the truncated box, to no value below its smallest; objects begin at 0.5

    Returns: (y, x, crop), the part of the image that the box covers: bool [h, w] from row y and column x on.
    """
    empty = (0, 0, np.zeros((0, 0), bool))
    probs = probs.astype(np.float64 if rule == "resize" else np.float32)
    if not (np.isfinite(box).all() and np.isfinite(probs).all()):
        return empty
    (y, ys), (x, xs) = (_positions(box[axis], box[axis + 2], probs.shape[axis], shape[axis], rule) for axis in (0, 1))
    if len(ys) == 0 or len(xs) == 0:
        return empty
    values = _weights(ys, probs.shape[0]) @ (probs @ _weights(xs, probs.shape[1]).T)
    if rule == "resize":
        values = np.maximum(values, probs.min())
    return y, x, values > 0.5 if rule == "expand" else values >= 0.5


def _positions(low: np.float32, high: np.float32, cells: int, limit: int, rule: str) -> tuple[int, np.ndarray]:
    """The first pixel of a box inside the image along one axis, and where it and the next ones sample the mask.

    low, high: the box's sides. cells: of the mask; cell i has its centre at i. limit: the image's height or width.
    """
    half = np.float32(0.5)
    if rule == "centres":
        start, stop = _truncate(np.floor(low)) - 1, _truncate(np.ceil(high)) + 1 if high > low else -math.inf
    elif rule == "expand":
        middle, reach = (high + low) * half, (high - low) * half * np.float32((cells + 2) / cells)
        first = _truncate(middle - reach)
        start, stop = first, max(_truncate(middle + reach), first) + 1
    else:
        start, stop = first, last = _truncate(low), _truncate(high)
    inside = max(start, 0)
    pixels = np.arange(inside, max(min(stop, limit), inside))
    if rule == "centres":
        grid = (pixels.astype(np.float32) + half - low) / (high - low) * np.float32(2) - np.float32(1)
        return inside, ((grid + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
    if rule == "expand":  # the ring of zeros is cell -1 and cell M
        scale = np.float32(cells + 2) / np.float32(stop - start)
        return inside, ((pixels - first).astype(np.float32) + half) * scale - np.float32(1.5)
    return inside, (pixels - first + 0.5) * (cells / max(last - first, 1)) - 0.5


def _truncate(number: np.float32) -> int:
    """The number without its fraction, clamped to +-1e9."""
    return int(max(-1e9, min(1e9, float(number))))


def _weights(positions: np.ndarray, cells: int) -> np.ndarray:
    """The weights [n, cells] of bilinear samples at positions [n]; zeros lie around the cells."""
    positions = positions.clip(-2, cells)
    first = np.floor(positions)
    part = positions - first
    rows, column = np.arange(len(positions)), first.astype(np.int64) + 2
    weights = np.zeros((len(positions), cells + 4), positions.dtype)
    weights[rows, column], weights[rows, column + 1] = 1 - part, part
    return weights[:, 2:-2]


def encode_mask(y: int, x: int, crop: np.ndarray, shape: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length code of a mask that is 0 outside of a crop, as pycocotools writes it.

    y, x, crop: of paste_mask. shape: (H, W). Returns: {"size": [H, W], "counts": bytes}.
    """
    height, width = shape
    rows, columns = crop.shape
    padded = np.zeros((columns, rows + 2), bool)  # columns become rows, each between two zeros
    padded[:, 1:-1] = crop.T
    flips = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, row = np.divmod(flips, rows + 1)
    flips = (column + x) * height + row + y  # starts and ends of runs, in turn
    if rows == height:  # a run that reaches the last row may continue in the next column
        joints = np.flatnonzero(flips[1:] == flips[:-1])
        flips = np.delete(flips, [joints, joints + 1])
    counts = np.diff(flips, prepend=0, append=height * width).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    text = bytearray()
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        more = True
        while more:  # 5 bits at a time, and one that says whether more follow
            bits, number = number & 0x1F, number >> 5
            more = number != (-1 if bits & 0x10 else 0)
            text.append((bits | 0x20 if more else bits) + 48)
    return {"size": [height, width], "counts": bytes(text)}


############################################################
#  Detector
############################################################


class Detector:
    """A model that export.py wrote, ready to detect. Any number of threads may detect with one detector at once.

    model: the path of a .onnx file, or its bytes. threads: of onnxruntime; None: as many as there are cores.
    providers: of onnxruntime, such as ("CUDAExecutionProvider", "CPUExecutionProvider").
    """

    def __init__(
        self,
        model: str | os.PathLike | bytes,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Raises: FileNotFoundError; ValueError for a file that export.py did not write; ImportError."""
        self.name = "the model" if isinstance(model, bytes) else f"model {_shown(os.fspath(model), 500)}"
        if not isinstance(model, bytes) and not os.path.isfile(model):
            raise FileNotFoundError(f"{self.name}: there is no such file; python export.py MODEL OUT.onnx makes one")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "onnx_detect.py needs onnxruntime, which is not installed: pip install onnxruntime"
            ) from (error)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings are of nodes, and not for users
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            source = model if isinstance(model, bytes) else os.fspath(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=list(providers))
        except MemoryError:
            raise
        except Exception as error:  # of classes of its own
            raise ValueError(f"{self.name} cannot be read: {_shown(str(error), 300)}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA not in metadata:
            raise ValueError(
                f"{self.name} has no settings ({METADATA}): export.py of Mask Scoring R-CNN did not write it"
            )
        inputs = {node.name: node.shape for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        self._set_up(metadata[METADATA], inputs, outputs)

    def _set_up(self, settings: str, inputs: dict[str, Sequence], outputs: dict[str, Sequence]) -> None:
        """Check settings, inputs and outputs against each other. inputs, outputs: their shapes by name."""
        try:
            self.settings = Settings.parse(settings)
            if set(inputs) != set(INPUTS) or set(outputs) - {"mask_ious"} != set(OUTPUTS):
                raise ValueError(f"it has inputs {_shown(list(inputs))} and outputs {_shown(list(outputs))}")
            pixels = inputs["pixels"]
            if len(pixels) != 4 or pixels[1] != self.settings.channels:
                raise ValueError(f"its input is {_shown(pixels)}, and not [B, {self.settings.channels}, H, W]")
            side = self.settings.max_dim
            if isinstance(pixels[2], int) and (self.settings.resize_mode != "square" or pixels[2:] != [side, side]):
                raise ValueError(f"its input is {_shown(pixels)}, and its settings make other sizes")
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.outputs = list(outputs)
        self.class_names, self.category_ids = list(self.settings.class_names), list(self.settings.category_ids)

    def run(self, pixels: np.ndarray, windows: np.ndarray) -> list[np.ndarray]:
        """The network alone. Another runtime than onnxruntime replaces this method in a subclass.

        pixels: float32 [B, C, height, width], of network_input. windows: float32 [B, 4].

        Returns: the outputs in the order of `outputs`.
        """
        return self._session.run(self.outputs, {"pixels": pixels, "windows": windows})

    def detect(self, image: Any, masks: str = "array") -> dict[str, Any]:
        """Find the objects of one image.

        image: a path; an image of Pillow; or an array [H, W, 3] RGB uint8, see image_array.
        masks: "array", or "rle" for a list of COCO run-length codes, which take far less memory.

        Returns: a dict of NumPy arrays, highest class score first: rois float32 [N, (y1, x1, y2, x2)], pixels of the
            image; class_ids int32 [N]; scores float32 [N], of the class; mask_ious float32 [N], predicted, or None
            without a MaskIoU head; mask_scores float32 [N], scores x mask_ious; masks bool [H, W, N] or list of dicts.
        Raises: ValueError for what is no image, and an unknown kind of masks; FileNotFoundError.
        """
        return self.detect_batch([image], masks)[0]

    def detect_batch(self, images: Sequence[Any], masks: str = "array") -> list[dict[str, Any]]:
        """detect() for several images. Those that have one shape after padding go through the network together."""
        if masks not in ("array", "rle"):
            raise ValueError(f"masks must be 'array' or 'rle', not {_shown(masks)}")
        arrays = [image_array(image, self.settings) for image in images]
        plans = [plan_resize(*array.shape[:2], self.settings) for array in arrays]
        results: list[Any] = [None] * len(arrays)
        for shape in dict.fromkeys(plan.padded_shape for plan in plans):
            indices = [i for i, plan in enumerate(plans) if plan.padded_shape == shape]
            pixels = np.stack([network_input(arrays[i], plans[i], self.settings) for i in indices])
            windows = np.float32([plans[i].window for i in indices])
            columns = dict(zip(self.outputs, self.run(pixels, windows), strict=True))
            self._check_outputs(columns)
            for place, i in enumerate(indices):
                rows = columns["batch_index"] == place
                of_image = {name: column[rows] for name, column in columns.items()}
                results[i] = self._to_result(of_image, plans[i].window, arrays[i].shape[:2], masks)
        return results

    def _check_outputs(self, columns: dict[str, np.ndarray]) -> None:
        shapes = {name: list(column.shape) for name, column in columns.items()}
        count = shapes["scores"][0] if len(shapes["scores"]) == 1 else -1
        side = shapes["mask_probs"][-1] if len(shapes["mask_probs"]) == 3 else 0
        expected = {name: [count] for name in columns} | {"boxes": [count, 4], "mask_probs": [count, side, side]}
        class_ids = columns["class_ids"]
        if shapes != expected or (count and not 0 < class_ids.min() <= class_ids.max() < len(self.class_names)):
            raise ValueError(f"{self.name}: its outputs have shapes or classes that do not fit together: {shapes}")

    def _to_result(
        self, columns: dict[str, np.ndarray], window: Sequence[int], shape: tuple[int, int], masks: str
    ) -> dict[str, Any]:
        """detect()'s dict of one image."""
        settings = self.settings
        boxes, keep = boxes_in_image(columns["boxes"], window, shape, settings)
        boxes, columns = boxes[keep], {name: column[keep] for name, column in columns.items()}
        scores, mask_ious = columns["scores"], columns.get("mask_ious")
        mask_scores = scores
        if mask_ious is not None:
            mask_scores = scores * (mask_ious.clip(0, 1) if settings.clamps_mask_iou else mask_ious)
        pasted = boxes - np.float32([0, 0, 1, 1]) if settings.coordinates == "inclusive" else boxes
        pairs = zip(columns["mask_probs"], pasted, strict=True)
        crops = (paste_mask(probs, box, shape, settings.paste) for probs, box in pairs)
        if settings.boxes_of_masks:
            crops = list(crops)
            boxes = np.array([_box_of_mask(*crop, box) for crop, box in zip(crops, boxes, strict=True)], np.float32)
            boxes = boxes.reshape(-1, 4)
        return {
            "rois": boxes,
            "class_ids": columns["class_ids"].astype(np.int32),
            "scores": scores,
            "mask_ious": mask_ious,
            "mask_scores": mask_scores,
            "masks": _whole_masks(crops, len(boxes), shape)
            if masks == "array"
            else [encode_mask(*crop, shape) for crop in crops],
        }


def _box_of_mask(y: int, x: int, crop: np.ndarray, box: np.ndarray) -> Sequence[float]:
    """The smallest box round the pixels of a crop at (y, x) of the image; box if there are none."""
    rows, columns = crop.any(axis=1).nonzero()[0], crop.any(axis=0).nonzero()[0]
    return (y + rows[0], x + columns[0], y + rows[-1] + 1, x + columns[-1] + 1) if len(rows) else box


def _whole_masks(crops: Iterator[tuple[int, int, np.ndarray]], count: int, shape: tuple[int, int]) -> np.ndarray:
    """bool [H, W, N], stored as [N, H, W]: the system provides memory only where masks lie."""
    masks = np.zeros((count, *shape), bool)
    for mask, (y, x, crop) in zip(masks, crops, strict=True):
        mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return masks.transpose(1, 2, 0)


############################################################
#  Files
############################################################

_COLORS = (
    (230, 60, 60), (60, 130, 230), (60, 180, 75), (240, 160, 30), (150, 70, 200), (30, 190, 190), (220, 80, 170),
    (140, 150, 40),
)  # fmt: skip


def draw(image: np.ndarray, result: dict[str, Any], class_names: Sequence[str]) -> np.ndarray:
    """An image uint8 [H, W, 3] with the masks, boxes, names and mask scores of a result of detect()."""
    drawn = image.copy()
    for i in range(len(result["scores"])):
        mask = result["masks"][..., i]
        drawn[mask] = (drawn[mask].astype(np.uint16) + np.array(_COLORS[i % len(_COLORS)], np.uint16)) // 2
    picture = Image.fromarray(drawn)
    pen = ImageDraw.Draw(picture)
    for i, (y1, x1, y2, x2) in enumerate(result["rois"].tolist()):
        color, name = _COLORS[i % len(_COLORS)], _shown(class_names[result["class_ids"][i]], 40)
        pen.rectangle([x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)], outline=color)
        caption = f"{name} {result['mask_scores'][i]:.2f}"
        where = pen.textbbox((x1 + 2, max(y1 - 12, 0)), caption)
        pen.rectangle(where, fill=color)
        pen.text((x1 + 2, max(y1 - 12, 0)), caption, fill="white")
    return np.asarray(picture)


def _select(result: dict[str, Any], threshold: float) -> dict[str, Any]:
    """The detections whose mask score reaches the threshold, highest first."""
    order = np.argsort(-result["mask_scores"], kind="stable")
    order = order[result["mask_scores"][order] >= threshold]
    columns = {name: None if column is None else column[order] for name, column in result.items() if name != "masks"}
    return {**columns, "masks": result["masks"][..., order]}


def coco_results(result: dict[str, Any], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of an image in COCO's format of results, as json.dump takes it.

    result: of detect(). image_id: the number of the image. category_ids: of each class index.

    Returns: dicts of image_id, category_id, segmentation, score (that of the mask), class_score, mask_iou (None without
        a MaskIoU head) and bbox (x, y, width, height).
    """
    masks, entries = result["masks"], []
    for i, (y1, x1, y2, x2) in enumerate(result["rois"].tolist()):
        code = masks[i] if isinstance(masks, list) else encode_mask(0, 0, masks[..., i], masks.shape[:2])
        entries.append({
            "image_id": image_id,
            "category_id": category_ids[result["class_ids"][i]],
            "segmentation": {**code, "counts": code["counts"].decode("ascii")},
            "score": float(result["mask_scores"][i]),
            "class_score": float(result["scores"][i]),
            "mask_iou": None if result["mask_ious"] is None else float(result["mask_ious"][i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        })  # fmt: skip
    return entries


def _entries(result: dict[str, Any], image_id: int, first_id: int, detector: Detector) -> Iterator[dict[str, Any]]:
    """The annotations of an image in COCO's format, with scores."""
    for i, entry in enumerate(coco_results(result, image_id, detector.category_ids)):
        yield {**entry, "id": first_id + i, "area": int(result["masks"][..., i].sum()), "iscrowd": 0}


def _write(path: Path, data: bytes) -> None:
    """Write a file wholly or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


############################################################
#  Command line
############################################################


class _Parser(argparse.ArgumentParser):
    """Prints a mistake in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {_shown(message, 2000)}; {self.prog} --help explains every argument\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = _Parser("onnx_detect.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .onnx file that export.py wrote")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="folder; default: output")
    parser.add_argument(
        "--threshold", type=_share, metavar="SCORE", help="the lowest mask score that counts; default: the model's own"
    )
    parser.add_argument(
        "--threads", type=_count, metavar="N", help="threads of onnxruntime; default: one for each core"
    )
    return parser


def _share(text: str) -> float:
    number = float(text) if re.fullmatch(r"\d*\.?\d+", text) else -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {_shown(text)}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, not {_shown(text)}")
    return int(text)


def detect_files(arguments: argparse.Namespace) -> int:
    """Detect in files, and write what is found. Returns the exit code: 1 if an image could not be read."""
    output = arguments.output
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--output {output}: {existing} is no folder")
    detector = Detector(arguments.model, arguments.threads)
    settings = detector.settings
    threshold = settings.score_threshold if arguments.threshold is None else arguments.threshold
    output.mkdir(parents=True, exist_ok=True)
    pairs = zip(detector.category_ids[1:], detector.class_names[1:], strict=True)
    coco = {"images": [], "categories": [{"id": number, "name": name} for number, name in pairs], "annotations": []}
    failures, taken = [], set()
    for number, path in enumerate(arguments.images, start=1):
        try:
            image = read_image(path, settings)
        except (ValueError, OSError) as error:
            failures.append(str(error))
            continue
        result = _select(detector.detect(image), threshold)
        height, width = image.shape[:2]
        coco["images"].append({"id": number, "file_name": os.fspath(path), "width": width, "height": height})
        coco["annotations"] += _entries(result, number, len(coco["annotations"]) + 1, detector)
        stem = Path(path).stem
        name = stem if stem not in taken else f"{stem}_{number}"
        taken.add(stem)
        data = io.BytesIO()
        shown = image if settings.channels == 3 else np.repeat(image[..., :1], 3, axis=2)
        Image.fromarray(draw(shown, result, detector.class_names)).save(data, "PNG")
        _write(output / f"{name}_detections.png", data.getvalue())
        count = len(result["scores"])
        print(f"{_shown(os.fspath(path), 500)}: {count} object{'s' * (count != 1)}")
    if coco["images"]:  # else there is nothing that may replace earlier results
        _write(output / "detections.json", json.dumps(coco).encode())
        _write(output / "detections.csv", _table(coco).encode())
        print(f"see {_shown(str(output), 500)}")
    for failure in failures:
        print(f"not read: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _table(coco: dict[str, list]) -> str:
    """The annotations as CSV, one a row."""
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    names = {category["id"]: category["name"] for category in coco["categories"]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("file", "object", "class", "mask_score", "class_score", "mask_iou", "y1", "x1", "y2", "x2", "area")
    )
    for entry in coco["annotations"]:
        x, y, width, height = entry["bbox"]
        row = [files[entry["image_id"]], entry["id"], names[entry["category_id"]]]
        row += [entry["score"], entry["class_score"], entry["mask_iou"], y, x, y + height, x + width, entry["area"]]
        writer.writerow(row)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 for images that failed, 2 for a mistake, 130 for Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    try:
        return detect_files(arguments)
    except KeyboardInterrupt:
        print("onnx_detect.py: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, MemoryError) as error:
        message = str(error) or "there is not enough memory"
        print(f"onnx_detect.py: {_shown(message, 2000)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

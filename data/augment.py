"""Augmentation: what a training changes in a picture and its objects, at random.

Users' own code gets a picture at its own size with whole masks. What the settings of Config say happens on pixels,
boxes and crops of masks (crops.py).
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import utils

from .crops import Crop, bounds, clip_boxes, shift_crop, trim

############################################################
#  Users' code
############################################################

# Augmenters of imgaug that move pixels. All others change colours only, and must not be applied to masks.
_MOVING_AUGMENTERS = {
    *("Sequential", "SomeOf", "OneOf", "Sometimes", "Fliplr", "Flipud", "CropAndPad", "Affine"),
    *("PiecewiseAffine", "PerspectiveTransform", "ElasticTransformation", "Rot90", "Resize", "CropToFixedSize"),
    *("PadToFixedSize", "KeepSizeByResize", "WithPolarWarping", "Jigsaw"),
}


def call_augmentation(augmentation: Callable, image: np.ndarray, masks: np.ndarray, seed: int) -> tuple[Any, Any]:
    """(image, masks) as the augmentation returns them. masks: bool [H, W, N].

    It may be of any style that TrainingData describes. It gets copies: the data set may keep its own arrays.

    Raises: ValueError if it returns something else.
    """
    for method in ("set_random_seed", "seed_"):  # albumentations' and imgaug's own generators
        if hasattr(augmentation, method):
            getattr(augmentation, method)(seed % 2**32)
    if hasattr(augmentation, "to_deterministic"):
        fixed = augmentation.to_deterministic()
        image = fixed.augment_image(image.copy())
        if masks.shape[2]:
            masks = fixed.augment_image(masks.astype(np.uint8), **_mask_hooks(augmentation))
        return image, masks
    if not _takes_keywords(augmentation):
        result = augmentation(image.copy(), masks.copy("K"))
        if not isinstance(result, Sequence) or len(result) != 2:
            raise ValueError(
                f"augmentation must return (image, masks), not {type(result).__name__}; does it end without a return?"
            )
        return tuple(result)
    planes = list(np.ascontiguousarray(np.moveaxis(masks, 2, 0), np.uint8))
    result = augmentation(image=image.copy(), **({"masks": planes} if planes else {}))
    if not isinstance(result, Mapping) or "image" not in result or (planes and "masks" not in result):
        raise ValueError(
            f"augmentation must return a dict with image and masks, as albumentations does, not {type(result).__name__}"
        )
    if not planes:
        return result["image"], None
    return result["image"], np.stack(list(result["masks"]), axis=-1)


def _takes_keywords(augmentation: Callable) -> bool:
    """Whether it takes image= and masks=, as albumentations does, instead of (image, masks)."""
    try:
        parameters = inspect.signature(augmentation).parameters.values()
    except (TypeError, ValueError):  # a built-in function has no signature
        return False
    positional = sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )
    return positional < 2 and any(
        parameter.kind in (parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY) for parameter in parameters
    )


def _mask_hooks(augmentation: Any) -> dict[str, Any]:
    """Arguments of imgaug's augment_image that keep it from changing the values of masks."""
    package = sys.modules.get(type(augmentation).__module__.partition(".")[0])
    return {"hooks": package.HooksImages(activator=_moves_pixels)} if hasattr(package, "HooksImages") else {}


def _moves_pixels(images: Any, augmenter: Any, parents: Any, default: Any) -> bool:
    return any(base.__name__ in _MOVING_AUGMENTERS for base in type(augmenter).__mro__)


def checked_masks(masks: Any, image: np.ndarray, count: int, name: str) -> np.ndarray:
    """The masks that an augmentation returned, as bool [H, W, N]. image: as it returned it. count: N."""
    masks = np.zeros((*image.shape[:2], 0), bool) if masks is None or count == 0 else np.asarray(masks)
    if masks.shape != (*image.shape[:2], count):
        raise ValueError(
            f"{name}: augmentation must return masks [{image.shape[0]}, {image.shape[1]}, {count}], of its image's "
            f"size, not {list(masks.shape)}; were only the image or only the masks moved?"
        )
    return masks if masks.dtype == bool else masks > 0.5


def check_augmentation(augmentation: Any) -> None:
    if not callable(augmentation) and not hasattr(augmentation, "to_deterministic"):
        raise ValueError(
            "augmentation must be a callable (image, masks) -> (image, masks), or albumentations' or imgaug's, "
            f"not {type(augmentation).__name__}"
        )
    if "bboxes" in getattr(augmentation, "processors", {}):
        raise ValueError(
            "augmentation has bbox_params, but it gets no boxes: these are computed from the masks it returns. "
            "Leave bbox_params out"
        )


############################################################
#  Colours and sizes
############################################################


def jitter_color(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, saturation (of RGB) and contrast changed, each by a factor in 1 - amount .. 1 + amount."""
    brightness, saturation, contrast = rng.uniform(1 - amount, 1 + amount, 3)
    mixture = np.eye(image.shape[2])  # [C, C]; with less saturation, each channel comes closer to the gray value
    if image.shape[2] == 3:
        mixture = saturation * mixture + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    pixels = image.astype(np.float32) @ (brightness * mixture.T).astype(np.float32)  # [h, w, C]
    mean = pixels.mean()
    pixels -= mean
    pixels *= np.float32(contrast)
    pixels += mean
    pixels.clip(0, 255, out=pixels)
    return np.rint(pixels, out=pixels).astype(np.uint8) if image.dtype == np.uint8 else pixels


def jitter_light(image: np.ndarray, brightness: float, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast changed, each by one factor for all channels: in 1 - brightness .. 1 + brightness, and
    in 1 - contrast .. 1 + contrast. Contrast is the distance of a channel's values from their mean.

    image: [h, w, C], uint8 or float32.
    """
    brighter, steeper = (rng.uniform(1 - amount, 1 + amount) for amount in (brightness, contrast))
    pixels = image.astype(np.float32)
    means = pixels.mean(axis=(0, 1))  # [C]
    pixels = (pixels - means) * np.float32(steeper * brighter) + means * np.float32(brighter)
    pixels.clip(0, 255, out=pixels)
    return np.rint(pixels, out=pixels).astype(np.uint8) if image.dtype == np.uint8 else pixels


def jitter_scale(
    plan: utils.ResizePlan, factor: float, mode: str, divisor: int, rng: np.random.Generator
) -> utils.ResizePlan:
    """The plan with the image scaled by one more factor.

    An image that is then larger than the plan's padded input is cropped to it, at random. A smaller one is padded by
    the rule of its resize mode; modes "crop" and "none" pad at the bottom and right, to the plan's padded input.
    """
    canvas = plan.padded_shape
    size = tuple(max(1, round(side * factor)) for side in plan.size)
    height, width = (min(side, limit) for side, limit in zip(size, canvas, strict=True))
    y, x = (int(rng.integers(side - kept, endpoint=True)) for side, kept in zip(size, (height, width), strict=True))
    multiple = {"shorter": divisor, "pad64": 64}.get(mode)  # of which the padded sides are multiples
    missing = [
        -kept % multiple if multiple else side - kept for side, kept in zip(canvas, (height, width), strict=True)
    ]
    top, left = (count // 2 if mode in ("square", "pad64") else 0 for count in missing)
    padding = (top, missing[0] - top), (left, missing[1] - left)
    window = (top, left, top + height, left + width)
    return utils.ResizePlan(plan.image_shape, size, padding, (y, x, height, width), window, plan.scale * factor)


############################################################
#  Copy and paste
############################################################

LEAST_LEFT = 0.1  # of the pixels of an object; with less of them in sight it is no object any more


class View(NamedTuple):
    """A picture as training sees it: loaded, scaled, cropped, flipped and jittered, but not padded."""

    pixels: np.ndarray  # [h, w, C]
    boxes: np.ndarray  # float32 [N, 4], in pixels of `pixels`
    crops: list[Crop]  # N, likewise
    class_ids: np.ndarray  # [N], negative for a crowd
    plan: utils.ResizePlan  # how it became so
    original: tuple[int, int]  # (height, width) as the data set has it


def paste_objects(view: View, donor: View, chosen: Sequence[int], offset: tuple[int, int]) -> View:
    """A view with some objects of another one.

    The pixels of pasted objects cover what is below them, without a smooth edge. Objects and crowds of the view lose
    the pixels that are covered. Those that are left with less than LEAST_LEFT of their pixels vanish, and of the
    donor's objects those of which less lies inside of the view.

    chosen: indices of the donor's objects. offset: (y, x) of the donor's corner in the view; may be negative.

    Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation
        (arXiv:2012.07177), section 3.
    """
    size = view.pixels.shape[:2]
    moved = [shift_crop(donor.crops[i], *offset, size) for i in chosen]
    is_seen = [_is_seen(crop.mask, donor.crops[i].mask) for crop, i in zip(moved, chosen, strict=True)]
    moved = [crop for crop, seen in zip(moved, is_seen, strict=True) if seen]
    chosen = [i for i, seen in zip(chosen, is_seen, strict=True) if seen]
    if not moved:
        return view
    covers = np.zeros(size, bool)
    for crop in moved:
        _part(covers, crop)[...] |= crop.mask
    boxes = donor.boxes[chosen] + np.array(offset * 2, np.float32)
    boxes = clip_boxes(boxes, bounds(moved), size, is_cropped=True)
    kept, crops, rest = _uncovered(view, covers)
    return View(
        pixels=_overlay(view.pixels, donor.pixels, covers, offset),
        boxes=np.concatenate([rest, boxes]),
        crops=crops + moved,
        class_ids=np.concatenate([view.class_ids[kept], donor.class_ids[chosen]]),
        plan=view.plan,
        original=view.original,
    )


def _is_seen(left: np.ndarray, whole: np.ndarray) -> bool:
    """Whether enough of an object is left. left, whole: masks of any shapes."""
    count = np.count_nonzero(left)
    return count > 0 and count >= LEAST_LEFT * np.count_nonzero(whole)


def _part(image: np.ndarray, crop: Crop) -> np.ndarray:
    """The part of an image [H, W, ...] in which a crop lies; not copied."""
    height, width = crop.mask.shape
    return image[crop.y : crop.y + height, crop.x : crop.x + width]


def _uncovered(view: View, covers: np.ndarray) -> tuple[list[int], list[Crop], np.ndarray]:
    """What is left of the objects of a view under others. covers: bool [h, w].

    Returns: the indices of the objects that stay; their crops; their boxes float32 [N, 4], which are those around the
        crops where an object has lost pixels.
    """
    kept, crops, boxes = [], [], []
    for i, crop in enumerate(view.crops):
        hides = _part(covers, crop) & crop.mask
        if hides.any():
            left = crop.mask & ~hides
            if not _is_seen(left, crop.mask):
                continue
            crop = trim(crop.y, crop.x, left)
        kept.append(i)
        crops.append(crop)
        boxes.append(bounds([crop])[0] if hides.any() else view.boxes[i])
    return kept, crops, np.array(boxes, np.float32).reshape(-1, 4)


def _overlay(pixels: np.ndarray, others: np.ndarray, covers: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """A copy of pixels [h, w, C] with those of another image where covers, bool [h, w], is True.

    others: [h2, w2, C]. offset: (y, x) of its corner in the first one.
    """
    (y, x), (height, width) = offset, covers.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + others.shape[0], height), min(x + others.shape[1], width)
    result = pixels.copy()
    where = covers[top:bottom, left:right]
    result[top:bottom, left:right][where] = others[top - y : bottom - y, left - x : right - x][where]
    return result

"""Augmentation: what a training changes in a picture and its objects, at random.

Users' own code gets a picture at its own size with whole masks. What the settings of Config say happens on pixels,
boxes and crops of masks (crops.py).
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import utils

from .crops import Crop

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
        return augmentation(image.copy(), masks.copy("K"))
    planes = list(np.ascontiguousarray(np.moveaxis(masks, 2, 0), np.uint8))
    if not planes:
        return augmentation(image=image.copy())["image"], None
    result = augmentation(image=image.copy(), masks=planes)
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


class View(NamedTuple):
    """A picture as training sees it: loaded, scaled, cropped, flipped and jittered, but not padded."""

    pixels: np.ndarray  # [h, w, C]
    boxes: np.ndarray  # float32 [N, 4], in pixels of `pixels`
    crops: list[Crop]  # N, likewise
    class_ids: np.ndarray  # [N], negative for a crowd
    plan: utils.ResizePlan  # how it became so

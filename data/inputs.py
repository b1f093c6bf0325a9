"""Images as users give them to detect(): arrays, images of Pillow, paths."""

import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

import utils
from data.images import read_image


def check_images(images: Any) -> list[Any]:
    """The images of one call, as a list. Raises: ValueError for what is one image, or none."""
    if isinstance(images, np.ndarray | Tensor | str | bytes | os.PathLike | Image.Image):
        raise ValueError(f"images must be a list of images, not one {type(images).__name__}: detect([image])")
    try:
        return list(images)
    except TypeError:
        raise ValueError(f"images must be a list of images, not {type(images).__name__}: detect([image])") from None


def image_array(
    image: Any, channels: int, name: str, bit_depth: int | str = "auto", pixel_range: str = "depth"
) -> np.ndarray:
    """An image as an array uint8 [H, W, channels]; with 3 channels, RGB.

    image: an array, as utils.check_channels takes it; an image of Pillow, if channels is 1 or 3, which is not turned,
        whatever its EXIF data say, so that what is found lies in its own pixels; or the path of a file, for read_image.
    name: what errors call it. bit_depth: of read_image, for a path. pixel_range: as Config.PIXEL_RANGE.

    Raises: ValueError for everything else, and for a file that is no image; FileNotFoundError.
    """
    if isinstance(image, Tensor):
        call = "image.permute(1, 2, 0).cpu().numpy()" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else ""
        raise ValueError(
            f"{name} must be a NumPy array [H, W, {channels}], a PIL image or a path, got a Tensor "
            f"{list(image.shape)}; {call or 'image.cpu().numpy()'} makes an array"
        )
    if isinstance(image, str | os.PathLike):
        return read_image(image, bit_depth=bit_depth, pixel_range=pixel_range, channels=channels)
    if channels in (1, 3) and isinstance(image, Image.Image):
        image = _pixels(image if channels == 3 or image.mode[0] in "1IF" else image.convert("L"))
    elif not isinstance(image, np.ndarray):
        kinds = ", a PIL image or a path" if channels in (1, 3) else " or a path"
        raise ValueError(
            f"{name} must be a NumPy array [H, W, {channels}]{kinds}, got {type(image).__name__}; one list of images a "
            "call"
        )
    return utils.check_channels(image, channels, name, pixel_range)


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an image of Pillow, in a mode that utils.to_rgb takes."""
    if image.mode in ("P", "PA", "LA", "RGBa"):  # Pillow misreads a palette with transparency on the direct way to RGB
        image = image.convert("RGBA")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    is_deep = image.mode.startswith("I") and pixels.size and pixels.min() >= 0 and pixels.max() <= 65535
    return pixels.astype(np.uint16) if is_deep else pixels

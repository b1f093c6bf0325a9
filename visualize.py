"""Pictures of detections. Knows arrays, not models.

H, W image height and width   N instances
Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside.
"""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import utils

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def random_colors(N: int, bright: bool = True) -> list[tuple[float, float, float]]:
    """N colours that differ as much as possible, RGB in [0, 1]: the same ones in the same order each time.

    Hues advance by the golden ratio, so that neighbours in the list are far apart and a longer list starts alike.
    """
    value = 1.0 if bright else 0.7
    return [colorsys.hsv_to_rgb((i * _GOLDEN_RATIO) % 1, 0.85 if i % 2 else 0.65, value) for i in range(N)]


def apply_mask(image: np.ndarray, mask: np.ndarray, color: Sequence[float], alpha: float = 0.5) -> np.ndarray:
    """Tint the pixels of a mask, in place.

    image: uint8 [H, W, 3]. mask: bool [H, W]. color: RGB in [0, 1]. alpha: 0 leaves the image, 1 covers it.

    Returns: the image.
    """
    tint = np.asarray(color, np.float32) * (255 * alpha)
    image[mask] = (image[mask] * (1 - alpha) + tint).astype(np.uint8)
    return image


def captions_of(result: dict[str, Any], class_names: Sequence[str]) -> list[str]:
    """What to write at each instance: class, class score and, where it is known, mask score."""
    captions = []
    for i, class_id in enumerate(result["class_ids"]):
        caption = f"{class_names[class_id]} {result['scores'][i]:.2f}"
        if result["mask_ious"] is not None:
            caption += f" mask {result['mask_scores'][i]:.2f}"
        captions.append(caption)
    return captions


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | Sequence[dict] | None,
    captions: Sequence[str] | None = None,
    colors: Sequence[Sequence[float]] | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """The image with masks, boxes and captions, at its own resolution.

    image: uint8 [H, W, 3]. boxes: [N, 4]. masks: bool [H, W, N], N COCO run-length codes, or None for none.
    captions: N texts. colors: N of RGB in [0, 1]; random_colors by default.

    Returns: a new image. The first instance lies on top: detections come best first.
    Raises: ValueError if boxes, masks, captions and colors differ in number.
    """
    count = len(boxes)
    colors = random_colors(count) if colors is None else colors
    counts = {"captions": captions, "colors": colors, "masks": masks if not isinstance(masks, np.ndarray) else None}
    for name, values in counts.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{name} must have one entry a box, {count}, not {len(values)}")
    if isinstance(masks, np.ndarray) and masks.shape != (*image.shape[:2], count):
        raise ValueError(f"masks must be [H, W, N] = {[*image.shape[:2], count]}, not {list(masks.shape)}")
    drawn = image.copy()
    if masks is not None:
        for i in reversed(range(count)):
            mask = masks[..., i] if isinstance(masks, np.ndarray) else utils.rle_to_mask(masks[i])
            _tint(drawn, mask, boxes[i], colors[i], alpha)
    picture = Image.fromarray(drawn)
    pen = ImageDraw.Draw(picture)
    width = max(1, round(max(image.shape[:2]) / 500))
    font = ImageFont.load_default(size=max(10, min(image.shape[:2]) // 40))
    for i in reversed(range(count)):
        _draw_box(pen, boxes[i], captions[i] if captions else "", colors[i], width, font, picture.size)
    return np.asarray(picture)


def _tint(image: np.ndarray, mask: np.ndarray, box: np.ndarray, color: Sequence[float], alpha: float) -> None:
    """apply_mask and a line around the mask, near the box only: masks may reach a pixel or two out of their boxes."""
    height, width = mask.shape
    margin = 4 + 0.05 * float(max(box[2] - box[0], box[3] - box[1]))
    y1, x1 = (int(max(side - margin, 0)) for side in box[:2])
    y2, x2 = int(min(box[2] + margin, height)), int(min(box[3] + margin, width))
    part, inside = image[y1:y2, x1:x2], mask[y1:y2, x1:x2]
    apply_mask(part, inside, color, alpha)
    framed = np.pad(inside, 1)
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    part[inside & ~inner] = np.asarray(color) * 255


def _draw_box(pen, box, caption: str, color: Sequence[float], width: int, font, size: tuple[int, int]) -> None:
    fill = tuple(round(255 * channel) for channel in color)
    y1, x1, y2, x2 = (float(side) for side in box)
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=fill, width=width)
    if not caption:
        return
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    text_width, text_height = right - left + 4, bottom - top + 4
    x = min(max(x1, 0), max(size[0] - text_width, 0))
    y = y1 - text_height if y1 >= text_height else min(y1, max(size[1] - text_height, 0))
    pen.rectangle((x, y, x + text_width, y + text_height), fill=fill)
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 0.5
    pen.text((x + 2 - left, y + 2 - top), caption, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)

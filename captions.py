"""Captions at objects: in which form and where each is written, so that it hides no object. Knows no fonts.

N objects   S places for a caption
Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

LABELS = ("auto", "all", "none")  # captions where they fit, all of them, none
COVERED = 0.2  # the largest share of a box that captions may cover
SMALLEST_TYPE = 7  # pixels or points
DIGITS_TO_ZERO = str.maketrans("123456789", "000000000")


class Caption(str):
    """A text to write at an instance, and its short form for where the text has no room; no short form by default."""

    def __new__(cls, text: str, short: str = "") -> "Caption":
        caption = super().__new__(cls, text)
        caption.short = short
        return caption


def place_captions(
    boxes: np.ndarray, sizes: np.ndarray, image_shape: Sequence[int], labels: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a form and a place for each caption. The first captions choose first.

    With "auto", a caption takes its first form that has a place: in the image, at its box, and off all other captions.
    There, the shares that it covers of all boxes must add up to COVERED at most, and all captions together may cover no
    more than COVERED of any box. A caption is at most half as wide as the image. One without a place is left out.
    With "all", each caption is placed in its first form, where it covers least of other captions, then of boxes.

    boxes: [N, 4]. sizes: [forms, N, (height, width)] in pixels of the image, the preferred form first; a form of width
        0 does not exist.

    Returns: forms int [N], -1 for captions that are left out, and corners [N, (y, x)], the upper left ones.
    """
    limit = np.array(image_shape[:2], float)
    boxes = boxes.clip(0, np.tile(limit, 2))
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    forms, placed = np.full(len(boxes), -1), np.zeros((len(boxes), 4))
    covered = np.zeros(len(boxes))
    for i, box in enumerate(boxes):
        for form, (height, width) in enumerate(sizes[:, i]):
            if width == 0 or (labels == "auto" and (height > limit[0] or width > limit[1] / 2)):
                continue
            spots = _spots(box, height, width, limit, far=labels == "all")  # [S, 4]
            near = _touching(boxes, spots)
            shares = _shared_areas(spots, boxes[near]) / areas[near]  # [S, near boxes]
            cover = shares.sum(axis=1)
            others = placed[:i][_touching(placed[:i], spots)]
            overlap = _shared_areas(spots, others).sum(axis=1)
            if labels == "all":
                best = np.lexsort([cover, overlap])[0]
            else:
                allowed = (overlap == 0) & (cover <= COVERED) & (covered[near] + shares <= COVERED).all(axis=1)
                if not allowed.any():
                    continue
                harm = 2 * cover - shares[:, near == i].sum(axis=1)  # its own box may be covered rather than another
                best = np.where(allowed, harm, np.inf).argmin()
            forms[i], placed[i] = form, spots[best]
            covered[near] += shares[best]
            break
    return forms, placed[:, :2]


def _spots(box: np.ndarray, height: float, width: float, limit: np.ndarray, far: bool) -> np.ndarray:
    """Places for a caption at a box, moved into the image, the preferred ones first: [S, 4]. far: also a line away."""
    y1, x1, y2, x2 = box.tolist()
    rows = [y1 - height, y2, y1, y2 - height, (y1 + y2 - height) // 2]
    rows += [y1 - 2 * height, y2 + height, y1 - 3 * height, y2 + 2 * height] if far else []
    columns = (x1, x2 - width, (x1 + x2 - width) // 2, x2, x1 - width)
    corners = np.array([(y, x) for y in rows for x in columns]).clip(0, np.maximum(limit - (height, width), 0))
    return np.concatenate([corners, corners + np.array([height, width])], axis=1)


def _touching(rects: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """Which of the rectangles [R, 4] may overlap any of the spots [S, 4]: indices."""
    low, high = spots[:, :2].min(axis=0), spots[:, 2:].max(axis=0)
    return np.flatnonzero((rects[:, 2:] > low).all(axis=1) & (rects[:, :2] < high).all(axis=1))


def _shared_areas(spots: np.ndarray, rects: np.ndarray) -> np.ndarray:
    """[S, R] of spots [S, 4] and rectangles [R, 4]."""
    low, high = np.maximum(spots[:, None, :2], rects[:, :2]), np.minimum(spots[:, None, 2:], rects[:, 2:])
    return (high - low).clip(0).prod(axis=2)


def fit_captions(
    boxes: np.ndarray,
    captions: Sequence[str],
    font_size: float,
    measure: Callable[[str, float], tuple[float, float]],
    image_shape: Sequence[int],
    labels: str,
) -> list[tuple[int, str, float, float, float]]:
    """The captions that are drawn, by place_captions: index, text, size of type, y and x of each, in order.

    A caption is tried in full, then in smaller type, then in its short form. measure: (height, width) of a text in a
    size of type, in pixels of the image.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}")
    if labels == "none" or not any(captions):
        return []
    small = max(SMALLEST_TYPE, round(0.75 * font_size))
    styles = [(False, font_size), (False, small), (True, small)]  # short or not, size of type
    texts = [[getattr(caption, "short", "") if short else caption for caption in captions] for short, _ in styles]
    measure = functools.cache(measure)
    sizes = [
        # All digits are equally wide in both fonts, so that texts that differ in digits only are measured once
        [measure(text.translate(DIGITS_TO_ZERO), size) if text else (0, 0) for text in row]
        for row, (_, size) in zip(texts, styles, strict=True)
    ]
    forms, corners = place_captions(boxes, np.array(sizes, float), image_shape, labels)
    return [
        (i, texts[form][i], styles[form][1], *corner)
        for i, (form, corner) in enumerate(zip(forms.tolist(), corners.tolist(), strict=True))
        if form >= 0
    ]

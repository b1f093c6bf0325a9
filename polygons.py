"""Polygons of masks: filling them as COCO does, in bounded memory, and the outlines of a mask. utils.py has the rest.

COCO's rule is that of rleFrPoly in pycocotools. It walks along every edge in steps of a fifth of a pixel and keeps all
of them, so an edge that leads a million pixels out of the image takes 80 MB. Of these steps only those count that cross
the centre of a column of the image. Here they are computed alone, each with pycocotools' own arithmetic. So the masks
are the same to the bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import skimage.measure

_SCALE = 5  # steps a pixel
_CHUNK = 1 << 18  # crossings that are computed together


def is_small(ring: np.ndarray, height: int, width: int) -> bool:
    """Whether pycocotools fills a polygon in less than 100 MB, and without an overflow of its 32-bit numbers.

    ring: float64 [2 * points], x and y in turn.
    """
    points = ring.reshape(-1, 2)
    steps = np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum() * _SCALE
    return steps + len(points) < 1 << 22 and height * width < 1 << 31


def fill(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """The runs of a polygon's mask in an image: their lengths down the columns, the first of zeros.

    ring: float64 [2 * points], x and y in turn, in pixels, beyond +-4e8 nowhere.

    Returns: int64 [runs], which sum to height * width.
    """
    changes = np.zeros(0, np.int64)  # where the mask changes between 0 and 1
    if height * width > 0:
        for column, y in _crossings(_edges(ring), width):
            row = np.ceil(((y + 0.5) / _SCALE - 0.5).clip(0, height)).astype(np.int64)
            places, counts = np.unique(column * height + row, return_counts=True)
            changes = np.setxor1d(
                changes, places[counts % 2 == 1], assume_unique=True
            )  # two at a place undo each other
    return np.diff(changes[changes < height * width], prepend=0, append=height * width)


class _Edges(NamedTuple):
    """The edges of a polygon, in steps: each starts at its left end if it is flat, at its upper end if it is steep."""

    x1: np.ndarray
    y1: np.ndarray
    x2: np.ndarray
    y2: np.ndarray


def _edges(ring: np.ndarray) -> _Edges:
    corners = np.trunc(ring.reshape(-1, 2) * _SCALE + 0.5).astype(np.int64)  # towards 0, as C casts
    starts, ends = corners, np.roll(corners, -1, axis=0)
    dx, dy = np.abs(ends - starts).T
    turned = np.where(dx >= dy, starts[:, 0] > ends[:, 0], starts[:, 1] > ends[:, 1])[:, None]
    return _Edges(*np.where(turned, ends, starts).T, *np.where(turned, starts, ends).T)


def _crossings(edges: _Edges, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where edges cross the centres of columns, some at a time.

    Returns: an iterator of column [N], 0 to width - 1, and y [N], the upper one of the two steps around the crossing.
    """
    left, right = np.minimum(edges.x1, edges.x2), np.maximum(edges.x1, edges.x2)
    # The centre of column k lies between steps 5 k + 2 and 5 k + 3.
    first = np.maximum(-((2 - left) // _SCALE), 0)
    last = np.minimum((right - 3) // _SCALE, width - 1)
    ends = np.maximum(last - first + 1, 0).cumsum()  # of each edge's crossings, all edges in a row
    for begin in range(0, int(ends[-1]), _CHUNK):
        number = np.arange(begin, min(begin + _CHUNK, int(ends[-1])))
        edge = ends.searchsorted(number, side="right")
        column = last[edge] - (ends[edge] - 1 - number)
        of_crossing = _Edges(*(field[edge] for field in edges))
        is_flat = np.abs(of_crossing.x2 - of_crossing.x1) >= np.abs(of_crossing.y2 - of_crossing.y1)
        y = np.empty(len(number), np.int64)
        for rows, rule in ((is_flat, _cross_flat), (~is_flat, _cross_steep)):
            y[rows] = rule(_Edges(*(field[rows] for field in of_crossing)), column[rows] * _SCALE + 2)
        yield column, y


def _cross_flat(edges: _Edges, x: np.ndarray) -> np.ndarray:
    """The upper one of an edge's y at the steps x and x + 1. There is one y for each x."""
    slope = (edges.y2 - edges.y1) / (edges.x2 - edges.x1)
    step = x - edges.x1
    y, next_y = (np.trunc(edges.y1 + slope * t + 0.5).astype(np.int64) for t in (step, step + 1))
    return np.minimum(y, next_y)


def _cross_steep(edges: _Edges, x: np.ndarray) -> np.ndarray:
    """The last y before an edge goes from x to x + 1, or back. There is one x for each y."""
    slope = (edges.x2 - edges.x1) / (edges.y2 - edges.y1)
    step = np.floor((x + 0.5 - edges.x1) / slope) - 1  # at least one too early, for that division is rounded
    for _ in range(4):
        reached = np.trunc(edges.x1 + slope * step + 0.5)
        step += np.where(slope > 0, reached <= x, reached > x)
    return edges.y1 + step.astype(np.int64) - 1


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of the parts of a mask; polygons_to_rle fills them again.

    Corners lose half a pixel. Holes are filled, because COCO's polygons have no holes.

    mask: [H, W], true or not 0 where the object is.

    Returns: a list of [x1, y1, x2, y2, ...] in pixels; (0, 0) is the outer corner of the first pixel.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be [H, W], got {list(mask.shape)}")
    polygons = []
    for contour in skimage.measure.find_contours(np.pad(mask != 0, 1).astype(np.float64), 0.5):
        points = contour[:, ::-1] - 0.5  # (x, y); the padding is -1, the centre of a pixel +0.5
        x, y = points.T
        if (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0:  # an outer outline; holes run the other way
            polygons.append(points[:-1].ravel().tolist())
    return polygons

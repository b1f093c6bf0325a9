"""Polygons of masks: filling them as COCO does, in bounded memory, and the outlines of masks. utils.py has the rest.

COCO's rule is that of rleFrPoly in pycocotools. It walks along every edge in steps of a fifth of a pixel and keeps all
of them, so an edge that leads a million pixels out of the image takes 80 MB. Of these steps only those count that cross
the centre of a column of the image. Here they are computed alone, each with pycocotools' own arithmetic. So the masks
are the same to the bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import skimage.measure
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import Delaunay

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


############################################################
#  Exact outlines
############################################################


class Outline(NamedTuple):
    """A part of a mask, whose pixels hang together by their sides, as polygons along the edges of pixels.

    Rings are int64 [N, (x, y)], the corners of pixels; (0, 0) is the outer corner of the first pixel. Whoever walks
    along a ring has the mask at the right hand, so the outer ring and the holes run in opposite directions. No ring
    touches itself; two rings may touch at a corner.
    """

    outer: np.ndarray
    holes: list[np.ndarray]


def outlines(mask: np.ndarray) -> list[Outline]:
    """The parts of a mask, as polygons that give it back to the bit when they are filled by the centres of pixels.

    mask: [H, W], true or not 0 where the object is.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be [H, W], got {list(mask.shape)}")
    padded = np.pad(mask != 0, 1).astype(np.int8)
    labels, count = ndimage.label(padded)  # pixels that touch at a corner only are of two parts
    outer: list = [None] * count
    holes: list[list[np.ndarray]] = [[] for _ in range(count)]
    for ring in _trace(padded):
        x, y = ring.T
        # The mask lies at the right hand of an edge: below it if the edge leads to the right.
        start = 0 if y[0] == y[1] else 1
        end = (start + 1) % len(ring)
        row, column = (y[start], x[start]) if x[end] > x[start] else (y[start] - 1, x[start] - 1)
        part = labels[row + 1, column + 1] - 1
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:
            outer[part] = ring
        else:
            holes[part].append(ring)
    return [Outline(*rings) for rings in zip(outer, holes, strict=True)]


def _trace(padded: np.ndarray) -> Iterator[np.ndarray]:
    """The rings around the parts and holes of a mask, int64 [N, (x, y)]. padded: int8 [H + 2, W + 2], framed by 0."""
    stride = padded.shape[1]
    y, x1, x2, is_right = _runs(np.diff(padded, axis=0))  # the mask is below edges that lead to the right
    x, y1, y2, is_up = _runs(np.diff(padded, axis=1).T)  # and to the right of those that lead up
    flat_starts, flat_ends = y * stride + np.where(is_right, x1, x2), y * stride + np.where(is_right, x2, x1)
    steep_starts, steep_ends = np.where(is_up, y2, y1) * stride + x, np.where(is_up, y1, y2) * stride + x
    # Where two pixels touch at a corner, two edges begin there: the one to the right hand stays with its pixel.
    after_flat = _following(flat_ends * 2 + is_right, steep_starts * 2 + ~is_up)
    after_steep = _following(steep_ends * 2 + is_up, flat_starts * 2 + is_right)
    following = after_steep[after_flat].tolist()
    is_done = [False] * len(following)
    for first in range(len(following)):
        edges, edge = [], first
        while not is_done[edge]:
            is_done[edge] = True
            edges.append(edge)
            edge = following[edge]
        if edges:
            corners = np.stack([flat_starts[edges], flat_ends[edges]], axis=1).ravel()
            for ring in _untouching(corners):
                yield np.stack(np.divmod(ring, stride)[::-1], axis=1)


def _runs(steps: np.ndarray) -> tuple[np.ndarray, ...]:
    """The longest edges along lines of steps [lines, positions + 1]: line, first and last position, and step > 0."""
    is_change = steps[:, 1:] != steps[:, :-1]
    lines, first = np.nonzero(is_change & (steps[:, 1:] != 0))
    _, last = np.nonzero(is_change & (steps[:, :-1] != 0))
    return lines, first, last, steps[lines, first + 1] > 0


def _following(wanted: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The place in keys of each wanted key or, where it is not there, of that with another last bit."""
    order = np.argsort(keys)
    places = np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)
    is_there = keys[order[places]] == wanted
    others = np.searchsorted(keys, wanted ^ 1, sorter=order).clip(max=len(keys) - 1)
    return order[np.where(is_there, places, others)]


def _untouching(corners: np.ndarray) -> list[np.ndarray]:
    """A ring of corners, divided where it comes to a corner for the second time."""
    if len(np.unique(corners)) == len(corners):
        return [corners]
    rings, path, place_of = [], [], {}
    for corner in corners.tolist():
        if corner in place_of:
            start = place_of[corner]
            rings.append(np.array(path[start:], np.int64))
            for passed in path[start + 1 :]:
                del place_of[passed]
            del path[start + 1 :]
        else:
            place_of[corner] = len(path)
            path.append(corner)
    return [*rings, np.array(path, np.int64)]


def inset(ring: np.ndarray, distance: float = 0.1) -> np.ndarray:
    """A ring of an Outline, moved into the mask by less than half a pixel: float64 [N, (x, y)].

    Filled by the centres of pixels, it is still the same mask. It also is where a program cuts coordinates off to whole
    numbers and fills the outline's pixels too, as labelme (Pillow) and ultralytics (cv2.fillPoly) do.
    """
    into = np.sign(np.roll(ring, -1, axis=0) - ring)  # the direction of the edge after each corner
    right = np.stack([-into[:, 1], into[:, 0]], axis=1)
    return ring + distance * (right + np.roll(right, 1, axis=0))


def join_rings(rings: list[np.ndarray]) -> np.ndarray:
    """One ring that encloses what several do: it goes from each to the next by a bridge of no width, and back.

    Filled by the rule even-odd, it is the same as all rings together. A program that fills the outline's pixels too
    also fills the line of the bridge. Each bridge joins the two nearest corners.

    rings: float64 [N, (x, y)] each; they do not cross.
    """
    points = np.concatenate(rings)
    starts = np.cumsum([0, *map(len, rings)])
    if len(rings) == 1:
        return points
    owner = np.repeat(np.arange(len(rings)), np.diff(starts))
    pairs = _shortest_bridges(points, owner)
    neighbours: dict[int, list[tuple[int, int]]] = {}  # {ring: (point of it, point of another ring)}
    for first, second in (*pairs, *np.flip(pairs, axis=1)):
        neighbours.setdefault(int(owner[first]), []).append((int(first), int(second)))
    entries, bridges = {0: 0}, {}  # {ring: the point at which it is entered}, {point: rings that a bridge leads to}
    waiting = [0]
    while waiting:
        for point, entry in neighbours[waiting.pop()]:
            ring = int(owner[entry])
            if ring not in entries:
                entries[ring] = entry
                bridges.setdefault(point, []).append(ring)
                waiting.append(ring)
    return points[_walk(starts, entries, bridges)]


def _shortest_bridges(points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Pairs of points, int64 [rings - 1, 2], that join all rings with the least length.

    The shortest way between two groups of points is a side of Delaunay's triangles, so only these are compared.
    points: float64 [N, (x, y)]. owner: int64 [N], the ring of each.
    """
    triangles = Delaunay(points).simplices
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).astype(np.int64)
    sides = sides[owner[sides[:, 0]] != owner[sides[:, 1]]]
    lengths = np.hypot(*(points[sides[:, 0]] - points[sides[:, 1]]).T).clip(1e-9)  # csgraph takes 0 for no way
    rings = np.sort(owner[sides], axis=1)
    order = np.lexsort([lengths, rings[:, 1], rings[:, 0]])
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(rings[order], axis=0) != 0).any(axis=1)
    best = order[is_first]  # the shortest side between each two rings
    count = int(owner[-1]) + 1
    tree = minimum_spanning_tree(csr_array((lengths[best], rings[best].T), (count, count))).tocoo()
    place = {(int(row), int(column)): number for number, (row, column) in zip(best, rings[best], strict=True)}
    return sides[[place[int(row), int(column)] for row, column in zip(*tree.coords, strict=True)]]


def _walk(starts: np.ndarray, entries: dict[int, int], bridges: dict[int, list[int]]) -> list[int]:
    """The places of points on the way around all rings. Rings and bridges are a tree; the way begins at ring 0."""
    way: list[int] = []
    waiting: list = [("around", 0)]
    while waiting:
        kind, number = waiting.pop()
        if kind == "point":
            way.append(number)
            continue
        first, last, entry = int(starts[number]), int(starts[number + 1]), entries[number]
        steps: list = []
        for point in [*range(entry, last), *range(first, entry)]:
            steps.append(("point", point))
            for ring in bridges.get(point, ()):
                steps += [("around", ring), ("point", point)]
        if number:
            steps.append(("point", entry))
        waiting += reversed(steps)
    return way

"""Outlines of masks for formats that have polygons: along the edges of pixels, so that they give the mask back.

outlines(mask) -> parts with holes. inset() moves a ring so that every program fills the same pixels; join_rings() makes
one ring of several, for formats with one polygon an object.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy


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
    labels, count = scipy.ndimage.label(padded)  # pixels that touch at a corner only are of two parts
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
    triangles = scipy.spatial.Delaunay(points).simplices
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).astype(np.int64)
    sides = sides[owner[sides[:, 0]] != owner[sides[:, 1]]]
    lengths = np.hypot(*(points[sides[:, 0]] - points[sides[:, 1]]).T).clip(1e-9)  # csgraph takes 0 for no way
    rings = np.sort(owner[sides], axis=1)
    order = np.lexsort([lengths, rings[:, 1], rings[:, 0]])
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(rings[order], axis=0) != 0).any(axis=1)
    best = order[is_first]  # the shortest side between each two rings
    count = int(owner[-1]) + 1
    ways = scipy.sparse.csr_array((lengths[best], rings[best].T), (count, count))
    tree = scipy.sparse.csgraph.minimum_spanning_tree(ways).tocoo()
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

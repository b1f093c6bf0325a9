"""Finds pictures that show the same: copies that are smaller, brighter, compressed anew, turned or mirrored.

A picture is compared by its thumbnail, SIDE x SIDE pixels of gray. A difference hash has 64 bits: whether each of 8 x 8
cells is darker than its right neighbour. Hashes that share one of their eight bytes are compared, and of those that are
near, the thumbnails. So 10,000 pictures take a second, not the minutes of all pairs.
"""

from collections.abc import Iterator

import numpy as np

SIDE = 32
MOST_BITS = 12  # by which the hashes of two pictures may differ
LEAST_CORRELATION = 0.9  # of their thumbnails
LEAST_DETAIL = 0.5  # correlation of what is left of the thumbnails without the means of 4 x 4 pixels
_LEAST_CONTRAST = 1.0  # standard deviation of gray; below it, a thumbnail shows nothing to compare
_LAYINGS = 8  # four quarter turns, each mirrored or not
_BLOCK = 1 << 20  # pairs of hashes that are compared at a time


def _lay(thumbnails: np.ndarray, number: int) -> np.ndarray:
    """Thumbnails [N, SIDE, SIDE] laid in one of eight ways; number 0 leaves them as they are."""
    turned = np.rot90(thumbnails, number % 4, axes=(1, 2))
    return turned[:, :, ::-1] if number >= 4 else turned


def _means(parts: int) -> np.ndarray:
    """A matrix [parts, SIDE]: the mean of each part of a row of SIDE pixels."""
    edges = np.linspace(0, SIDE, parts + 1)
    pixels = np.arange(SIDE)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (shared.clip(0) * parts / SIDE).astype(np.float32)


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """The hashes of thumbnails in the eight ways of laying them.

    thumbnails: uint8 [N, SIDE, SIDE].

    Returns: uint64 [N, 8]; column 0 is that of the thumbnail as it is.
    """
    rows, columns = _means(8), _means(9).T
    hashes = np.zeros((len(thumbnails), _LAYINGS), np.uint64)
    for number in range(_LAYINGS):
        cells = rows @ _lay(thumbnails, number).astype(np.float32) @ columns  # [N, 8, 9]
        bits = cells[:, :, :-1] < cells[:, :, 1:] - 1e-3
        hashes[:, number] = np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64)[:, 0]
    return hashes


def find_alike(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that show the same.

    thumbnails: uint8 [N, SIDE, SIDE]. Those without contrast are like nothing.
    """
    seen = np.flatnonzero(thumbnails.reshape(len(thumbnails), SIDE * SIDE).std(axis=1) >= _LEAST_CONTRAST)
    hashes = difference_hashes(thumbnails[seen])
    found = set()
    for first, layings, second in _near_hashes(hashes):
        pairs = {
            (i, k, j)
            for i, k, j in zip(seen[first].tolist(), layings.tolist(), seen[second].tolist(), strict=True)
            if (i, j) not in found
        }
        for i, number, j in sorted(pairs):
            if (i, j) not in found and _are_alike(_lay(thumbnails[i : i + 1], number)[0], thumbnails[j]):
                found.add((i, j))
    return sorted(found)


def _near_hashes(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Arrays of i, laying and j, i < j: hash i in this laying shares a byte with hash j as it is, and is near it."""
    if not len(hashes):
        return
    parts = hashes.view(np.uint8).reshape(len(hashes), _LAYINGS, 8)
    for place in range(8):
        order = np.argsort(parts[:, 0, place], kind="stable")
        edges = np.searchsorted(parts[order, 0, place], np.arange(257))
        for value in range(256):
            second = order[edges[value] : edges[value + 1]]
            first, layings = np.nonzero(parts[:, :, place] == value)
            step = max(1, _BLOCK // max(1, len(second)))
            for start in range(0, len(first) if len(second) else 0, step):
                rows, ways = first[start : start + step], layings[start : start + step]
                bits = np.bitwise_count(hashes[rows, ways][:, None] ^ hashes[second, 0][None])
                a, b = np.nonzero((bits <= MOST_BITS) & (rows[:, None] < second[None]))
                yield rows[a], ways[a], second[b]


def _are_alike(first: np.ndarray, second: np.ndarray) -> bool:
    if _correlation(first, second) < LEAST_CORRELATION:
        return False
    return _correlation(_detail(first), _detail(second)) >= LEAST_DETAIL


def _detail(thumbnail: np.ndarray) -> np.ndarray:
    means = thumbnail.reshape(SIDE // 4, 4, SIDE // 4, 4).mean(axis=(1, 3))
    return thumbnail - means.repeat(4, axis=0).repeat(4, axis=1)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    lengths = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / lengths) if lengths else 0.0

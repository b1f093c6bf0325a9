"""LabelTable: the objects that an annotation file lists, as arrays. No object is a Python object of its own.

A reader of annotations fills one, and data/label_checks.py compares what it says with the masks.

    A annotations, R polygons of C numbers in all
    Boxes are (x, y, width, height) in pixels of the image, as in COCO's format. Sizes are (height, width).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

import utils

NO_NUMBER = -(2**63)  # the id of an annotation that has none
POLYGONS, RLE, DAMAGED, MISSING, RLE_WITHOUT_SIZE = range(5)  # kinds of segmentation
_CHUNK_POINTS = 1 << 20  # of polygons, computed at a time, so that memory stays small
_CHUNK_CODES = 255  # RLEs for one call of pycocotools, whose area() refuses more


@dataclass
class LabelTable:
    """A annotations with R polygons of C numbers, as arrays."""

    ids: np.ndarray  # int64 [A], as the next two
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowds: np.ndarray  # int8 [A], 0 or 1; -1 for any other iscrowd
    kinds: np.ndarray  # int8 [A], POLYGONS or RLE after all checks
    boxes: np.ndarray  # float64 [A, (x, y, width, height)]
    areas: np.ndarray  # float64 [A]
    sizes: np.ndarray  # int64 [A, (height, width)] of RLEs
    ring_spans: np.ndarray  # int64 [A, (first, end)], the rows of rings
    code_spans: np.ndarray  # int64 [A, (first, end)], the bytes of codes
    rings: np.ndarray  # int64 [R, (first, end)], the coordinates of each polygon
    coordinates: np.ndarray  # float64 [C], x and y in turn, exactly as in the file
    codes: bytes  # the counts of all compressed RLEs, one after another

    ROWS = (
        "ids", "image_ids", "category_ids", "crowds", "kinds", "boxes", "areas", "sizes", "code_spans", "ring_spans",
    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, selection: np.ndarray) -> list[int | str]:
        """Names of annotations for messages: the id of each, or its place in the file. selection: bool [A], or rows."""
        rows = np.arange(len(self))[selection].tolist()
        ids = self.ids[rows].tolist()
        return [f"#{row}" if number == NO_NUMBER else number for row, number in zip(rows, ids, strict=True)]

    def polygons(self, row: int) -> list[list[float]]:
        """A row's polygons, [x1, y1, x2, y2, ...] each."""
        start, end = self.ring_spans[row].tolist()
        return [self.coordinates[first:last].tolist() for first, last in self.rings[start:end].tolist()]

    def code(self, row: int) -> bytes:
        """The counts of a row's compressed RLE; empty for polygons."""
        start, end = self.code_spans[row].tolist()
        return self.codes[start:end]

    def rle(self, row: int, height: int, width: int) -> dict:
        """The compressed RLE of a row's mask, in an image of this size."""
        if self.kinds[row] == RLE:
            return {"size": [height, width], "counts": self.code(row)}
        return utils.polygons_to_rle(self.polygons(row), height, width)

    def content(self, row: int) -> tuple:
        """All that the file says of a row. Equal contents are the same annotation."""
        fields = [getattr(self, name)[row].tobytes() for name in self.ROWS[:-2]]
        return (*fields, self.code(row), repr(self.polygons(row)))

    def ring_owners(self) -> np.ndarray:
        """int64 [R]: the row that each polygon belongs to."""
        return np.repeat(np.arange(len(self)), self.ring_spans[:, 1] - self.ring_spans[:, 0])

    def points_of(self, rows: np.ndarray) -> np.ndarray:
        """bool [C / 2]: which points belong to polygons of these rows. rows: bool [A]."""
        lengths = self.rings[:, 1] - self.rings[:, 0]
        return np.repeat(rows[self.ring_owners()], lengths // 2)

    def keep_rings(self, good: np.ndarray) -> None:
        """Keeps only these polygons. good: bool [R]."""
        before = np.concatenate([[0], good.cumsum()])
        self.ring_spans = before[self.ring_spans]
        lengths = self.rings[:, 1] - self.rings[:, 0]
        self.coordinates = self.coordinates[np.repeat(good, lengths)]
        self.rings = spans(lengths[good])

    def keep_rows(self, rows: np.ndarray) -> None:
        """Keeps only these rows, in this order, with their polygons and codes."""
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[rows])
        self.rings, self.ring_spans = _gather(self.rings, self.ring_spans)
        if (self.rings[:, 1] - self.rings[:, 0]).sum() < len(self.coordinates):
            self.coordinates, self.rings = _gather(self.coordinates, self.rings)
        if (self.code_spans[:, 1] - self.code_spans[:, 0]).sum() < len(self.codes):
            codes, self.code_spans = _gather(np.frombuffer(self.codes, np.uint8), self.code_spans)
            self.codes = codes.tobytes()

    def replace_codes(self, codes: dict[int, bytes]) -> None:
        """Gives rows other compressed RLEs. codes: {row: counts}."""
        first = len(self.codes)
        self.codes += b"".join(codes.values())
        self.code_spans = self.code_spans.copy()
        self.code_spans[list(codes)] = first + spans(np.array([len(code) for code in codes.values()], np.int64))

    def outline_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box and area of each mask, from the corners of polygons and the runs of RLEs. Nothing is drawn.

        They differ from those of the pixels where polygons reach out of the image, overlap or cross themselves. All
        polygons must have an even number of coordinates, and lie one after another (keep_rings). RLEs have the sizes of
        the table.

        Returns: boxes float64 [A, 4], areas float64 [A]; zeros where there is no mask.
        """
        boxes, areas = np.zeros((len(self), 4)), np.zeros(len(self))
        ring_boxes, ring_areas = self._ring_bounds()  # [R, (x1, y1, x2, y2)], [R]
        has_rings = self.ring_spans[:, 0] < self.ring_spans[:, 1]
        if has_rings.any():
            starts = self.ring_spans[has_rings, 0]  # rings of one row lie together, in the order of rows
            low = np.minimum.reduceat(ring_boxes[:, :2], starts)
            high = np.maximum.reduceat(ring_boxes[:, 2:], starts)
            boxes[has_rings] = np.concatenate([low, high - low], axis=1)
            areas[has_rings] = np.add.reduceat(ring_areas, starts)
        for rows in _chunks(np.flatnonzero((self.kinds == RLE) & (self.sizes > 0).all(axis=1))):
            rles = [{"size": self.sizes[row].tolist(), "counts": self.code(row)} for row in rows]
            boxes[rows], areas[rows] = coco_mask.toBbox(rles), coco_mask.area(rles)
        return boxes, areas

    def _ring_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(x1, y1, x2, y2) and area of each polygon, without those of drawing: float64 [R, 4], [R]."""
        boxes, areas = np.zeros((len(self.rings), 4)), np.zeros(len(self.rings))
        ends = self.rings[:, 1] // 2  # of the points of each polygon
        first = 0
        while first < len(ends):
            start = self.rings[first, 0] // 2
            last = max(int(np.searchsorted(ends, start + _CHUNK_POINTS, side="right")), first + 1)
            points = self.coordinates[2 * start : 2 * ends[last - 1]].reshape(-1, 2)
            x, y = np.ascontiguousarray(points.T)
            starts, stops = self.rings[first:last, 0] // 2 - start, ends[first:last] - start
            following = np.arange(1, len(x) + 1)
            following[stops - 1] = starts
            cross = x * y[following] - x[following] * y
            boxes[first:last, 0], boxes[first:last, 2] = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
            boxes[first:last, 1], boxes[first:last, 3] = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
            areas[first:last] = np.abs(np.add.reduceat(cross, starts)) / 2
            first = last
        return boxes, areas

    def pixel_bounds(self, rows: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The box and area of the pixels of masks. Draws polygons, which takes about 30 microseconds each.

        rows: int64 [N]. sizes: int64 [A, (height, width)] of the images.

        Returns: boxes float64 [N, 4], areas float64 [N]; zeros for a mask without a pixel.
        """
        boxes, areas = np.zeros((len(rows), 4)), np.zeros(len(rows))
        for i, row in enumerate(rows.tolist()):
            rle = self.rle(row, *sizes[row].tolist())
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            boxes[i], areas[i] = (x1, y1, x2 - x1, y2 - y1), coco_mask.area(rle)
        return boxes, areas


def spans(lengths: np.ndarray) -> np.ndarray:
    """int64 [N, (first, end)] of pieces that lie one after another. lengths: [N]."""
    ends = lengths.cumsum(dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)


def _gather(values: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of values at these spans, one after another, and their new spans."""
    lengths = pieces[:, 1] - pieces[:, 0]
    new_spans = spans(lengths)
    index = np.arange(lengths.sum()) + np.repeat(pieces[:, 0] - new_spans[:, 0], lengths)
    return values[index], new_spans


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _CHUNK_CODES):
        yield rows[first : first + _CHUNK_CODES]

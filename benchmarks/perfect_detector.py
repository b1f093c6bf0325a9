"""A detector that makes no mistake, to measure how tiles.py joins what tiles see, and nothing else."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

import tiles
from data.crops import Crop, trim


class Kind(NamedTuple):
    """Ellipses of about one size."""

    count: int
    least: float  # of the longer radius, pixels
    most: float


USUAL = Kind(2980, 8, 60), Kind(20, 200, 900)  # of 10,000 x 10,000 pixels with 3,000 objects


class Ellipses:
    """Ellipses of one class in a square image, anywhere, so that some overlap and the image's sides cut some."""

    def __init__(self, side: int, kinds: Iterable[Kind], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.image_shape = (side, side)
        self.long = np.concatenate([rng.uniform(kind.least, kind.most, kind.count) for kind in kinds])
        self.short = self.long * rng.uniform(0.5, 1, len(self.long))
        self.angles = rng.uniform(0, np.pi, len(self.long))
        self.centres = rng.uniform(0, side, (len(self.long), 2))
        reach = self.long[:, None] + 1
        self.boxes = np.concatenate([self.centres - reach, self.centres + reach], axis=1)  # with some space around

    def __len__(self) -> int:
        return len(self.long)

    def crop(self, i: int, region: Sequence[int]) -> Crop:
        """The part of an ellipse in a region; 0 x 0 if there is none."""
        low = np.maximum(np.floor(self.boxes[i, :2]), region[:2]).astype(int)
        high = np.minimum(np.ceil(self.boxes[i, 2:]), region[2:]).astype(int)
        if (low >= high).any():
            return Crop(0, 0, np.zeros((0, 0), bool))
        dy, dx = (np.arange(*ends) - centre for *ends, centre in zip(low, high, self.centres[i], strict=True))
        cos, sin = np.cos(self.angles[i]), np.sin(self.angles[i])
        along, across = dy[:, None] * cos + dx * sin, dx * cos - dy[:, None] * sin
        return trim(*low.tolist(), (along / self.long[i]) ** 2 + (across / self.short[i]) ** 2 <= 1)

    def views(self, tile: tiles.Tile) -> list[tiles.View]:
        """What a tile sees of each ellipse, exactly."""
        y1, x1, y2, x2 = tile.region
        top, left, bottom, right = self.boxes.T
        views = []
        for i in np.flatnonzero((top < y2) & (bottom > y1) & (left < x2) & (right > x1)).tolist():
            y, x, mask = self.crop(i, tile.region)
            box = y, x, y + mask.shape[0], x + mask.shape[1]
            scores = {"class_id": 1, "score": 0.9, "mask_iou": 0.9, "mask_score": 0.81}
            view = tiles.make_view(tile, len(views), self.image_shape, box, Crop(y, x, mask), **scores)
            views += [] if view is None else [view]
        return views

    def look(self, further: Iterable[tiles.Tile]) -> list[tuple[tiles.Tile, list[tiles.View], int]]:
        """What further tiles see, as tiles.Seams wants it."""
        seen = [(tile, self.views(tile)) for tile in further]
        return [(tile, views, len(views)) for tile, views in seen]


class Check:
    """Counts which ellipses come out, exactly as they are."""

    def __init__(self, ellipses: Ellipses) -> None:
        self.times = np.zeros(len(ellipses), int)  # that each ellipse came out
        self.wrong = 0  # what is no ellipse
        self._ellipses = ellipses
        self._at: dict[tuple, list[int]] = {}  # the ellipses that begin at (y, x)
        for i in range(len(ellipses)):
            y, x, mask = ellipses.crop(i, (0, 0, *ellipses.image_shape))
            self._at.setdefault((y, x, *mask.shape), []).append(i)
            self.times[i] = -1 if mask.size == 0 else 0  # outside of the image

    def add(self, found: tiles.TiledDetections) -> None:
        whole = (0, 0, *self._ellipses.image_shape)
        for y, x, mask in found.masks:
            same = [
                i for i in self._at.get((y, x, *mask.shape), []) if (self._ellipses.crop(i, whole).mask == mask).all()
            ]
            self.wrong += not same
            self.times[same[:1]] += 1

    @property
    def once(self) -> int:
        """How many came out once."""
        return int((self.times == 1).sum())

    @property
    def count(self) -> int:
        """How many lie in the image."""
        return int((self.times >= 0).sum())

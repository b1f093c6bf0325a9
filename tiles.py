"""Large images: detection in tiles that overlap, and whole objects out of what the tiles see.

    for found in detect_tiled(model, source):      one TiledDetections a row of tiles, from the top
        ...
    TiledDetections.cat(list(detect_tiled(model, source))).to_image_detections(source.shape)

1. plan_tiles() says where tiles lie. They start at multiples of the network's coarsest stride, and their pixels are
   those of the whole image, resized. So two tiles compute the same numbers where they overlap, but near their sides.
2. detect_views() detects in each tile. A view is what one tile sees of an object.
3. Seams chooses one of several views of an object. Round an object that no tile sees whole it lays a further tile.
   Only what is larger than a tile is joined from pieces. What one tile tells apart is never compared.

A view's depth is the distance of its box from the nearest side of its tile. The sides of the image do not count: no
tile sees more there.

H, W the image's height and width   Boxes are (y1, x1, y2, x2) in pixels of the image; (y2, x2) lies outside.
Tried and compared with others' rules by benchmarks/bench_tiles.py.
"""

import contextlib
import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

import runtime
import utils
from config import Config
from data.crops import Crop
from data.regions import Pixels, Source, as_source, open_source
from detections import ImageDetections
from model import Images, MaskRCNN, mold_image, pad_molded
from roialign.paste import crop_to_rle

Box = tuple[float, float, float, float]

############################################################
#  Where tiles lie
############################################################


class Tile(NamedTuple):
    """A part of the network's input of the whole image."""

    row: int  # number of the row of tiles
    column: int
    window: tuple[int, int, int, int]  # (y1, x1, y2, x2) in the input of the whole image
    region: tuple[int, int, int, int]  # the pixels of the image that the tile sees, at least in part

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in the input."""
        y1, x1, y2, x2 = self.window
        return y2 - y1, x2 - x1


@dataclass(frozen=True)
class Plan:
    """Where the tiles of an image lie. The input is what the network would see of the whole image: resized, padded."""

    image_shape: tuple[int, int]  # (H, W)
    scale: float  # pixels of the input a pixel of the image
    cell: tuple[int, int]  # so many pixels of the image are exactly so many of the input
    input_shape: tuple[int, int]  # (height, width), with padding
    image_window: tuple[int, int, int, int]  # where the image lies in the input
    side: int  # of a tile, pixels of the input
    step: int  # from one tile to the next, pixels of the input: a multiple of the coarsest stride

    @property
    def overlap(self) -> float:
        """What two neighbours share, in pixels of the image."""
        return (self.side - self.step) / self.scale

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        rows, columns = (max(1, math.ceil((end - self.side) / self.step) + 1) for end in self.image_window[2:])
        return rows, columns

    def row(self, number: int) -> list[Tile]:
        """The tiles of a row, from the left."""
        return [self.tile(number, column) for column in range(self.shape[1])]

    def rows(self) -> Iterator[list[Tile]]:
        """All rows, from the top."""
        return map(self.row, range(self.shape[0]))

    def tile(self, row: int, column: int) -> Tile:
        """One of the tiles. The last ones of a row and of a column are shorter where the input ends."""
        return self._tile_at(row, column, (row * self.step, column * self.step))

    def further_tile(self, start: Sequence[int]) -> Tile:
        """A tile that starts anywhere. Its column is a number that no other tile has. start: (y, x) in the input."""
        y, x = start
        return self._tile_at(min(y // self.step, self.shape[0] - 1), self.shape[1] + y * self.input_shape[1] + x, start)

    def tile_around(self, box: Sequence[float]) -> Tile | None:
        """A further tile with a box in its middle, about.

        None if the box is too large to be seen whole, or if one of the plan's own tiles lies there.
        """
        start = [self._start_around(axis, box[axis], box[axis + 2]) for axis in (0, 1)]
        tile = self.further_tile(start)
        is_known = all(place % self.step == 0 for place in start)
        return None if is_known or is_cut(box, tile.region, self.image_shape) else tile

    def _start_around(self, axis: int, low: float, high: float) -> int:
        """Where a tile starts along an axis so that it shows an object with room around it. low, high: in the image.

        That is at a multiple of the coarsest stride, so that all levels of the pyramid compute the numbers of the other
        tiles. If the object would have less than half of the room then that it has in the middle, it is a multiple of
        half of the stride, and so on.
        """
        origin, end = self.image_window[axis], self.image_window[axis + 2]
        low, high = origin + low * self.scale, origin + high * self.scale
        needed = max((self.side - high + low) / 4, CUT * self.scale + 1, CUT_SHARE * (high - low) + 1)

        def room(start: int) -> float:
            stop = min(start + self.side, self.input_shape[axis])
            return min(low - start if start > origin else math.inf, stop - high if stop < end else math.inf)

        stride = self.cell[1]
        while True:
            first = math.ceil(max(0, high - self.side) / stride) * stride
            best = max(range(first, max(first, int(low)) + 1, stride), key=room)
            if stride == 1 or room(best) >= needed:
                return best
            stride //= 2

    def _tile_at(self, row: int, column: int, starts: Sequence[int]) -> Tile:
        ends = [min(start + self.side, end) for start, end in zip(starts, self.input_shape, strict=True)]
        lows, highs = [], []
        for axis in (0, 1):
            origin, limit = self.image_window[axis], self.image_shape[axis]
            lows.append(max(0, math.floor((starts[axis] - origin) / self.scale)))
            highs.append(min(limit, math.ceil((ends[axis] - origin) / self.scale)))
        return Tile(row, column, (*starts, *ends), (*lows, *highs))

    def around(self, tile: Tile) -> list[Tile]:
        """The other tiles that overlap with a tile; further tiles are none of them."""
        ranges = []
        for axis in (0, 1):
            first = max(0, (tile.window[axis] - self.side) // self.step + 1)
            ranges.append(range(first, min(self.shape[axis], -(-tile.window[axis + 2] // self.step))))
        places = itertools.product(*ranges)
        return [self.tile(*place) for place in places if place != (tile.row, tile.column)]


def plan_tiles(
    image_shape: Sequence[int], config: Config, tile: int = 1024, overlap: int = 128, scale: float | None = None
) -> Plan:
    """Where the tiles of an image lie, whatever its size; a small image gets one tile.

    image_shape: (H, W, ...). config: of the model.
    tile: side of a tile in pixels of the image, about what the model was trained on. overlap: what neighbours share, at
        least: the size of an ordinary object and twice what the network wants to see around it. Both grow to whole
        multiples of the network's coarsest stride.
    scale: pixels of the network's input a pixel of the image. It is the same for all tiles. None: 1, or
        config.IMAGE_MIN_SCALE if that is larger. This is how detect() sees large images if IMAGE_RESIZE_MODE is pad64;
        the other modes would shrink them to IMAGE_MAX_DIM, and lose small objects. A scale changes a little if a
        stride would be no whole number of the image's pixels.

    Raises: ValueError for an image without pixels, and for a tile, an overlap or a scale that does not fit.
    """
    height, width = image_shape[:2]
    scale = max(1.0, config.IMAGE_MIN_SCALE) if scale is None else scale
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} pixels cannot be cut into tiles")
    if overlap < 0 or tile < 1 or 2 * overlap > tile:
        raise ValueError(f"overlap must be 0 or more, and at most half of tile, got overlap={overlap} and tile={tile}")
    if not 0 < scale <= 16:
        raise ValueError(f"scale must be above 0 and at most 16, got {scale}; it enlarges the image for the network")
    cell = _cell(max(config.BACKBONE_STRIDES), scale)
    scale = cell[1] / cell[0]
    side, shared = (math.ceil(length / cell[0]) * cell[1] for length in (tile, overlap))
    if side <= shared:  # a cell is larger than the tile
        raise ValueError(
            f"tile must be at least {2 * cell[0]} pixels with overlap={overlap} at scale {scale:g}, got {tile}: "
            f"tiles start at multiples of {cell[0]}"
        )
    size = [max(1, math.floor(length * scale + 0.5)) for length in (height, width)]
    (top, bottom), (left, right) = _padding(size, config)
    window = (top, left, top + size[0], left + size[1])
    return Plan((height, width), scale, cell, (window[2] + bottom, window[3] + right), window, side, side - shared)


def _cell(stride: int, scale: float) -> tuple[int, int]:
    """Pixels of the image and of the input that are a few strides: exactly by the scale if four strides or fewer do."""
    for strides in range(1, 5):
        pixels = strides * stride / scale
        if round(pixels) >= 1 and abs(pixels - round(pixels)) < 1e-6:
            return round(pixels), strides * stride
    return max(1, round(stride / scale)), stride


def _padding(size: Sequence[int], config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding that one-piece detection has around an image that was resized to this size."""
    mode = config.IMAGE_RESIZE_MODE
    mode = "pad64" if mode in ("square", "crop") else mode
    if mode == "shorter":
        return (0, -size[0] % config.IMAGE_SIZE_DIVISOR), (0, -size[1] % config.IMAGE_SIZE_DIVISOR)
    return utils.plan_resize(*size, 0, None, mode=mode).padding


############################################################
#  Pixels
############################################################


class TileInput(NamedTuple):
    """What the network sees of a tile."""

    image: np.ndarray  # uint8 [h, w, C], resized: the image's part of the tile
    window: tuple[int, int, int, int]  # where this part lies in the tile
    shape: tuple[int, int]  # (height, width) of the tile
    origin: tuple[int, int]  # (y, x) in the image where the canvas begins that masks are pasted on
    canvas: tuple[int, int]  # (height, width) of that
    canvas_window: Box  # where the canvas lies in the tile


def read_tile(pixels: Pixels, plan: Plan, tile: Tile, config: Config) -> TileInput:
    """The part of the resized image that a tile sees, with the same numbers as the whole image resized.

    So that a resized pixel knows its neighbours, more is read, from a place that is a whole number of the input's
    pixels. Beyond the image its last pixels are repeated.
    """
    image, factor = plan.cell[0] // math.gcd(*plan.cell), plan.cell[1] // math.gcd(*plan.cell)
    margin = 0 if image == factor == 1 else math.ceil(4 * max(1, image / factor) / image)  # in whole steps
    starts, counts, parts = [], [], []
    for axis in (0, 1):
        origin, end = plan.image_window[axis], plan.image_window[axis + 2]
        first, last = (min(max(tile.window[i], origin), end) - origin for i in (axis, axis + 2))
        start = max(0, first // factor - margin)
        starts.append(start)
        counts.append(min(math.ceil(last / factor) + margin, math.ceil((end - origin) / factor)) - start)
        parts.append(slice(first - start * factor, last - start * factor))
    y, x = (start * image for start in starts)
    height, width = (min((n + m) * image, side) for n, m, side in zip(starts, counts, plan.image_shape, strict=True))
    read = pixels.read(y, x, height, width)
    missing = [(0, count * image - side) for count, side in zip(counts, read.shape[:2], strict=True)]
    whole = np.pad(read, [*missing, (0, 0)], mode="edge") if any(map(any, missing)) else read
    size = counts[0] * factor, counts[1] * factor
    resized = whole if size == whole.shape[:2] else utils.resize_pixels(whole, size, config.dialect.resampling)
    part = np.ascontiguousarray(resized[parts[0], parts[1]])
    top, left = (max(plan.image_window[axis] - tile.window[axis], 0) for axis in (0, 1))
    corner = [top - parts[0].start, left - parts[1].start]
    ends = [corner[axis] + read.shape[axis] * plan.scale for axis in (0, 1)]
    return TileInput(
        image=part,
        window=(top, left, top + part.shape[0], left + part.shape[1]),
        shape=tile.shape,
        origin=(y, x),
        canvas=read.shape[:2],
        canvas_window=(*corner, *ends),
    )


############################################################
#  Views
############################################################


@dataclass(frozen=True, eq=False)
class View:
    """What one tile sees of an object."""

    tile: Tile
    number: int  # among the views of the tile
    box: Box
    mask: Crop  # in the image
    class_id: int
    score: float  # of the class
    mask_iou: float | None  # predicted; None without a MaskIoU head
    mask_score: float  # score x mask_iou
    depth: float  # pixels from the box to the nearest side of the tile; infinite if only sides of the image are near
    is_cut: bool  # the tile cuts the object

    @property
    def key(self) -> tuple[int, int, int]:
        return self.tile.row, self.tile.column, self.number

    @cached_property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask.mask))

    @cached_property
    def extent(self) -> tuple[int, int, int, int]:
        """The box around the mask's pixels."""
        y, x, mask = self.mask
        return y, x, y + mask.shape[0], x + mask.shape[1]

    @property
    def is_sure(self) -> bool:
        """Whether the tile shows the object with some room around it."""
        return not self.is_cut and self.depth >= room_around(self.box)

    @property
    def bottom(self) -> float:
        """The object cannot meet anything from this row on."""
        return max(self.box[2], self.extent[2])


CUT = 2  # pixels between an object and the side of a tile that cuts it, or CUT_SHARE of the object's size if more:
CUT_SHARE = 0.05  # boxes and masks of large objects are predicted less exactly


def depth_in(box: Box, region: Sequence[int], image_shape: Sequence[int]) -> float:
    """Pixels from a box to the nearest side of a region that is no side of the image; infinite without such a side.

    Negative if the box reaches out of the region.
    """
    return min((distance for distance, _ in _distances(box, region, image_shape)), default=math.inf)


def room_around(box: Box) -> float:
    """How deep a tile has to see an object so that it is believed to see it whole."""
    return BARELY * max(box[2] - box[0], box[3] - box[1])


def is_cut(box: Box, region: Sequence[int], image_shape: Sequence[int]) -> bool:
    """Whether a side of a region, which is no side of the image, is so near that it probably cuts the object."""
    return any(distance < max(CUT, CUT_SHARE * side) for distance, side in _distances(box, region, image_shape))


def _distances(box: Box, region: Sequence[int], image_shape: Sequence[int]) -> Iterator[tuple[float, float]]:
    """For each side of a region that is no side of the image: its distance from a box, and the box's size across."""
    for axis in (0, 1):
        size = box[axis + 2] - box[axis]
        if region[axis] > 0:
            yield box[axis] - region[axis], size
        if region[axis + 2] < image_shape[axis]:
            yield region[axis + 2] - box[axis + 2], size


def make_view(
    tile: Tile,
    number: int,
    image_shape: Sequence[int],
    box: Sequence[float],
    mask: Crop,
    class_id: int,
    score: float,
    mask_iou: float | None,
    mask_score: float,
) -> View | None:
    """A view of a detection in a tile, or None if its mask has no pixels in the tile's region.

    number: of the detection in the tile. image_shape: (H, W). box, mask: in the image; they are clipped to the region.
    The rest: as in View.
    """
    y1, x1, y2, x2 = tile.region
    top, left = max(y1, mask.y), max(x1, mask.x)
    pixels = mask.mask[top - mask.y : max(y2 - mask.y, 0), left - mask.x : max(x2 - mask.x, 0)]
    if not pixels.any():
        return None
    box = tuple(np.clip(box, (y1, x1) * 2, (y2, x2) * 2).tolist())
    depth, cut = depth_in(box, tile.region, image_shape), is_cut(box, tile.region, image_shape)
    mask = Crop(top, left, pixels)
    return View(tile, number, box, mask, class_id, score, mask_iou, mask_score, depth, cut)


def views_of_result(
    tile: Tile, result: dict[str, Any], origin: Sequence[int], image_shape: Sequence[int]
) -> list[View]:
    """The views of a tile. Detections whose masks have no pixels are left out.

    result: a dict as detect() returns it, with masks as run-length codes. origin: (y, x) in the image of its pixel
        (0, 0). image_shape: (H, W).
    """
    views = []
    y, x = origin
    for number, (box, code) in enumerate(zip(result["rois"].tolist(), result["masks"], strict=True)):
        top, left, mask = utils.rle_to_crop(code)
        view = make_view(
            tile,
            number,
            image_shape,
            (box[0] + y, box[1] + x, box[2] + y, box[3] + x),
            Crop(top + y, left + x, mask),
            int(result["class_ids"][number]),
            float(result["scores"][number]),
            mask_iou=None if result["mask_ious"] is None else float(result["mask_ious"][number]),
            mask_score=float(result["mask_scores"][number]),
        )
        views += [] if view is None else [view]
    return views


############################################################
#  Seams
############################################################

SAME_IOU = 0.5  # two tiles see the same object if their masks have this IoU, where both tiles see
COVERED = 0.7  # a cut view is explained by a view of another object if that covers this share of it
OUTSIDE = 0.1  # a view is not whole if another tile sees this share of its object, or more, outside of the view's tile
SLACK = 4  # pixels that a tile has to be deeper than another to know better
BARELY = 0.15  # an object whose best view has less room to the side than this share of its size is looked at again


@dataclass(frozen=True, eq=False)
class TiledDetections(ImageDetections):
    """What is found in a large image. The masks are crops: y, x and the pixels bool [h, w] of each."""

    pieces: np.ndarray  # int32 [N], of how many tiles' views each is joined; 1: one tile sees it whole
    is_cut: np.ndarray  # bool [N], a tile cuts it, and no other tile sees the rest or agrees about it

    def to_image_detections(self, image_shape: Sequence[int]) -> ImageDetections:
        """With run-length codes of the whole image as masks. image_shape: (H, W, ...).

        Raises: ValueError for an image of 2**32 pixels or more, which such codes cannot hold.
        """
        codes = [crop_to_rle(*crop, image_shape[:2]) for crop in self.masks]
        columns = {field.name: getattr(self, field.name) for field in fields(ImageDetections)}
        return ImageDetections(**{**columns, "masks": codes})


Look = Callable[[list[Tile]], Iterable[tuple[Tile, list[View], int]]]  # of further tiles, as detect_views gives it


class Seams:
    """Whole objects out of views of tiles.

        seams = Seams(plan)
        for row in plan.rows():
            for tile in row:
                seams.add(tile, views)
            seams.finish(row[0].row)         the objects that no later row can change

    Twins are views in two tiles whose masks agree where both tiles see; a view has one twin in a tile at most. They are
    of one class, or both are cut and have no such twin of their class: a tile may take a part for something else.
    Twins of twins show the same object. If one of them is whole, the one with the most context around it is kept, up to
    `context` pixels of it; then the one with the higher score of class x mask IoU. If all are cut, they are pieces, and
    are joined. A piece without twins is dropped if a whole view of another tile covers it.

    A tile that sees a place deeper than another tile, and has no twin of the other's view, was right to see nothing:
    the other view is dropped. A tile is not believed to see nothing if it has as many detections as it may have
    (`limit`), and all of them have higher scores.

    Before pieces are joined, a further tile is laid round them, if they fit into one, and so it is round an object that
    its best tile sees barely whole. What the further tile sees whole and is a twin of such a view, of any class, takes
    part like the view of any tile. A view without a twin there is dropped.

    Views decide about each other only if they are linked in these ways, so a group of them is finished once no later
    tile can reach it. Results do not depend on the order in which the tiles of a row are added.
    """

    def __init__(
        self, plan: Plan, context: float | None = None, limit: int | None = None, has_ious: bool = True,
        look: Look | None = None,
    ) -> None:  # fmt: skip
        """plan: of the tiles. context: pixels; None for half of the overlap. limit: DETECTION_MAX_INSTANCES; None for
        none. has_ious: the views have a mask_iou. look: detects in further tiles; None: there are none.
        """
        self.plan = plan
        self.context = plan.overlap / 2 if context is None else context
        self.limit = limit
        self.has_ious = has_ious
        self.look = look
        self._views: dict[tuple[int, int], list[View]] = {}  # that are not finished, by the tile's row and column
        self._twins: dict[tuple, dict[tuple, float]] = {}  # of a view's key: the keys of its twins, with their IoU
        self._covers: dict[tuple, set[tuple]] = {}  # of a view's key: what covers it, or is covered by it
        self._least_scores: dict[tuple[int, int], float] = {}  # of tiles that were added; 0 below the limit
        self._around: dict[tuple[int, int], list[Tile]] = {}  # of tiles that were added: those that overlap with them
        self._further: dict[tuple[int, int], Tile] = {}  # further tiles with views that are not finished
        self._asked: set[tuple] = set()  # keys of pieces that a further tile was laid round
        self._denied: set[tuple] = set()  # and of those that it does not see

    def __len__(self) -> int:
        """How many views are kept."""
        return sum(map(len, self._views.values()))

    def add(self, tile: Tile, views: Sequence[View], count: int | None = None) -> None:
        """The views of a tile. count: the tile's detections, those without pixels included; None: as many as views."""
        place = (tile.row, tile.column)
        if place in self._least_scores:
            raise ValueError(f"the tile of row {tile.row} and column {tile.column} was added before")
        self._least_scores[place] = self._least_score(views, len(views) if count is None else count)
        self._views[place] = list(views)
        self._around[place] = self.plan.around(tile)
        for other in (*self._around[place], *self._further.values()):
            near, other_place = _views_in(other.region, views), (other.row, other.column)
            if near:
                others = _views_in(tile.region, self._views.get(other_place, []))
                self._link(near, others, is_look=other_place in self._further)

    def _least_score(self, views: Sequence[View], count: int) -> float:
        """What a tile does not see may have a score below this one. count: the tile's detections."""
        is_full = self.limit is not None and count >= self.limit
        return min((view.score for view in views), default=0.0) if is_full else 0.0

    def finish(self, row: int) -> TiledDetections:
        """The objects that end above the row after this one, once all tiles of this row and of those above are added.

        Highest score first. Their views are forgotten.
        """
        is_last = row + 1 >= self.plan.shape[0]
        reach = math.inf if is_last else self.plan.tile(row + 1, 0).region[0]
        is_new = True
        while is_new:  # what a further tile shows may reach further down, or belong to another group
            views = {view.key: view for views in self._views.values() for view in views}
            ended = [group for group in self._groups(views) if all(view.bottom <= reach for view in group)]
            objects = [pieces for group in ended for pieces in self._decide(group)]
            is_new = self._look_again(objects)
        self._forget({view.key for group in ended for view in group})
        objects.sort(key=lambda pieces: pieces[0].key)
        return detections_of(objects, self.has_ious).sorted_by("scores")

    ### Further tiles

    def _look_again(self, objects: Sequence[Sequence[View]]) -> bool:
        """Look at all objects that no tile sees whole with some room, each once. Returns: whether there were such."""
        pieces_of: dict[Tile, list[View]] = {}
        for pieces in sorted(objects, key=lambda pieces: pieces[0].key) if self.look else ():
            if (len(pieces) == 1 and pieces[0].is_sure) or {piece.key for piece in pieces} <= self._asked:
                continue
            self._asked.update(piece.key for piece in pieces)
            box = _box_around([corners for piece in pieces for corners in (piece.box, piece.extent)])
            needed = max(self.context, room_around(box))
            deep = (t for t in pieces_of if depth_in(box, t.region, self.plan.image_shape) >= needed)
            if tile := next(deep, None) or self.plan.tile_around(box):
                pieces_of.setdefault(tile, []).extend(pieces)
        for tile, views, count in self.look(list(pieces_of)) if pieces_of else ():
            self._add_look(tile, views, count, pieces_of[tile])
        return bool(pieces_of)

    def _add_look(self, tile: Tile, views: Sequence[View], count: int, pieces: Sequence[View]) -> None:
        """The views of a further tile that was laid round some pieces."""
        seen: set[tuple] = set()
        for _, of_a_tile in itertools.groupby(sorted(pieces, key=attrgetter("key")), key=attrgetter("tile")):
            twins, _ = _compare(views, list(of_a_tile), is_look=True)
            seen.update(key for pair in twins for key in (pair.first.key, pair.second.key))
        least, place = self._least_score(views, count), (tile.row, tile.column)
        self._denied.update(piece.key for piece in pieces if piece.key not in seen and piece.score >= least)
        known = {view.key for view in self._views.get(place, [])}
        whole = [view for view in views if view.key in seen - known and not view.is_cut]
        for others in [others for other, others in self._views.items() if other != place]:
            self._link(whole, _views_in(tile.region, others), is_look=True)
        self._further[place] = tile
        self._views.setdefault(place, []).extend(whole)

    ### Links

    def _link(self, views: Sequence[View], others: Sequence[View], is_look: bool = False) -> None:
        """Note the twins among the views of two tiles, and what covers cut views. is_look: as of _compare."""
        twins, covered = _compare(views, others, is_look)
        for pair in twins:
            self._twins.setdefault(pair.first.key, {})[pair.second.key] = pair.agreement
            self._twins.setdefault(pair.second.key, {})[pair.first.key] = pair.agreement
        for pair in covered:
            self._covers.setdefault(pair.first.key, set()).add(pair.second.key)
            self._covers.setdefault(pair.second.key, set()).add(pair.first.key)

    def _links(self, key: tuple) -> set[tuple]:
        """The keys of all views that decide about a view."""
        return self._twins.get(key, {}).keys() | self._covers.get(key, set())

    def _groups(self, views: dict[tuple, View]) -> Iterator[list[View]]:
        """Views that are linked, directly or by others."""
        seen: set[tuple] = set()
        for start in views:
            group, waiting = [], [] if start in seen else [start]
            seen.add(start)
            while waiting:
                key = waiting.pop()
                group.append(views[key])
                linked = self._links(key) - seen
                seen.update(linked)
                waiting += sorted(linked)
            if group:
                yield group

    def _forget(self, finished: set[tuple]) -> None:
        for place, views in list(self._views.items()):
            self._views[place] = [view for view in views if view.key not in finished]
        self._asked -= finished
        self._denied -= finished
        for key in finished:
            self._twins.pop(key, None)
            self._covers.pop(key, None)
        for place in [place for place in self._further if not self._views[place]]:
            del self._further[place], self._views[place]
        rows = [view.tile.row for views in self._views.values() for view in views]
        first = min(rows, default=math.inf) - 1  # the first row whose tiles can still decide about a view
        last = max((row for row, _ in self._least_scores), default=0)
        for place in [place for place in self._least_scores if place[0] < min(first, last)]:
            del self._least_scores[place], self._around[place]
            self._views.pop(place, None)

    ### Decisions

    def _decide(self, group: Sequence[View]) -> list[list[View]]:
        """The objects of a group of linked views: for each the views that it is joined of. The first has its class."""
        believed = [view for view in group if not self._is_contradicted(view)]
        whole = {view.key for view in believed if not view.is_cut}
        explained = {view.key for view in believed if view.is_cut and self._covers.get(view.key, set()) & whole}
        return [self._choose(views) for views in self._objects([v for v in believed if v.key not in explained])]

    def _choose(self, views: Sequence[View]) -> list[View]:
        """Of the views of an object, the best whole one; if there is none, all of them, which are pieces of it.

        The pieces decide about the class by their area x score.
        """
        whole = [view for view in views if not view.is_cut and not _reach_outside(views, view.tile.region)]
        if whole:
            return [min(whole, key=lambda view: (-min(view.depth, self.context), -view.mask_score, view.key))]
        votes = Counter()
        for view in sorted(views, key=attrgetter("class_id")):
            votes[view.class_id] += view.area * view.mask_score
        ((class_id, _),) = votes.most_common(1)
        return sorted(views, key=lambda view: (view.class_id != class_id, -view.mask_score, view.key))

    def _is_contradicted(self, view: View) -> bool:
        """Whether a tile that sees the place of a view deeper than the view's own sees nothing like it."""
        if view.key in self._denied:
            return True
        linked_tiles = {key[:2] for key in self._links(view.key)}
        needed = min(view.depth, self.context) + SLACK
        for tile in self._around.get((view.tile.row, view.tile.column), ()):  # a further tile is laid to see deepest
            place = (tile.row, tile.column)
            if place in linked_tiles or view.score < self._least_scores.get(place, math.inf):
                continue
            if min(depth_in(view.box, tile.region, self.plan.image_shape), self.context) >= needed:
                return True
        return False

    def _objects(self, views: Sequence[View]) -> list[list[View]]:
        """The views of each object: twins, and twins of twins, the most similar ones first, never two of one tile."""
        object_of = {view.key: [view] for view in views}
        pairs = {
            (-iou, *sorted((key, other)))
            for key in object_of
            for other, iou in self._twins.get(key, {}).items()
            if other in object_of
        }
        for _, key, other in sorted(pairs):
            first, second = object_of[key], object_of[other]
            places = [(view.tile.row, view.tile.column) for view in first + second]
            if first is not second and len(places) == len(set(places)):
                first += second
                object_of.update((view.key, first) for view in second)
        return list({id(found): found for found in object_of.values()}.values())


def _views_in(region: Sequence[int], views: Sequence[View]) -> list[View]:
    """The views whose masks' boxes reach into a region."""
    y1, x1, y2, x2 = region
    extents = ((view, *view.extent) for view in views)
    return [view for view, top, left, bottom, right in extents if top < y2 and bottom > y1 and left < x2 and right > x1]


def _compare(
    views: Sequence[View], others: Sequence[View], is_look: bool = False
) -> tuple[list["_Pair"], list["_Pair"]]:
    """The twins among the views of two tiles, the most similar ones first, and the pairs of which one covers the other.

    is_look: one of the tiles was laid round objects, so it knows their class better.
    """
    area = cache(lambda view, region: int(np.count_nonzero(_part(view, region))))  # once for each view, not each pair
    pairs = [_Pair.of(*sorted(pair, key=attrgetter("key")), area) for pair in _meetings(views, others, is_look)]
    twins: list[_Pair] = []
    keys: set[tuple] = set()
    for pair in sorted(pairs, key=attrgetter("order")):
        if pair.iou >= SAME_IOU and pair.first.key not in keys and pair.second.key not in keys:
            keys |= {pair.first.key, pair.second.key}
            twins.append(pair)
    return twins, [pair for pair in pairs if pair.covers(keys)]


def _meetings(views: Sequence[View], others: Sequence[View], is_look: bool) -> Iterator[tuple[View, View]]:
    """The pairs of views of two tiles whose masks' boxes share pixels, of one class or both cut. is_look: all pairs."""
    if not views or not others:
        return
    boxes, other_boxes = (np.array([view.extent for view in side]) for side in (views, others))
    classes, other_classes = (np.array([view.class_id for view in side]) for side in (views, others))
    low = np.maximum(boxes[:, None, :2], other_boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], other_boxes[:, 2:])
    cut, other_cut = (np.array([view.is_cut for view in side]) for side in (views, others))
    are_comparable = (classes[:, None] == other_classes) | (cut[:, None] & other_cut) | is_look
    pairs = (low < high).all(axis=2) & are_comparable
    for i, j in np.argwhere(pairs).tolist():
        yield views[i], others[j]


class _Pair(NamedTuple):
    """Two views of different tiles."""

    first: View
    second: View
    shared: int  # pixels of both masks
    iou: float  # of the masks where both tiles see

    @classmethod
    def of(cls, first: View, second: View, area: Callable[[View, Sequence[int]], int]) -> "_Pair":
        """area(view, region): the pixels of a view's mask in a region."""
        low = np.maximum(first.extent[:2], second.extent[:2])
        high = np.minimum(first.extent[2:], second.extent[2:])
        both = (*low.tolist(), *high.tolist())
        shared = int(np.count_nonzero(_part(first, both) & _part(second, both)))
        both_areas = area(first, second.tile.region) + area(second, first.tile.region)
        return cls(first, second, shared, shared / max(both_areas - shared, 1))

    @property
    def is_of_one_class(self) -> bool:
        return self.first.class_id == self.second.class_id

    @property
    def agreement(self) -> float:
        """Higher is better: of one class from 0 to 1, of two classes from -1 to 0."""
        return self.iou - (not self.is_of_one_class)

    def covers(self, twins: Container[tuple]) -> bool:
        """Whether a whole view explains a cut one that has no twin. twins: the keys of the views that have one."""
        for cut, whole in ((self.first, self.second), (self.second, self.first)):
            is_covered = cut.is_cut and not whole.is_cut and self.shared >= COVERED * cut.area
            if is_covered and cut.key not in twins and self.is_of_one_class:
                return True
        return False

    @property
    def order(self) -> tuple:
        return -self.agreement, self.first.key, self.second.key


def _part(view: View, box: Sequence[int]) -> np.ndarray:
    """The pixels of a view's mask inside a box."""
    y, x, mask = view.mask
    return mask[max(box[0] - y, 0) : max(box[2] - y, 0), max(box[1] - x, 0) : max(box[3] - x, 0)]


def _reach_outside(views: Sequence[View], region: Sequence[int]) -> bool:
    """Whether a view has more than a few of its pixels outside of a region."""
    return any(view.area - np.count_nonzero(_part(view, region)) > OUTSIDE * view.area for view in views)


def detections_of(objects: Sequence[Sequence[View]], has_ious: bool = True) -> TiledDetections:
    """Objects as columns. The class is that of the first piece; scores and IoUs are means of the pieces by area.

    A piece that only one tile is sure of, by the little that it sees, is so no sure object.

    objects: for each the views that it is joined of. has_ious: the views have a mask_iou.
    """
    columns = []
    for pieces in objects:
        shares = np.array([piece.area for piece in pieces]) / sum(piece.area for piece in pieces)
        score, mask_iou, ratio = shares @ [
            (piece.score, piece.mask_iou or 0.0, piece.mask_score / piece.score if piece.score else 0.0)
            for piece in pieces
        ]
        columns.append((score, mask_iou, score * ratio if len(pieces) > 1 else pieces[0].mask_score))
    scores, mask_ious, mask_scores = np.array(columns, np.float32).reshape(-1, 3).T
    boxes = np.array([_box_around([piece.box for piece in pieces]) for pieces in objects], np.float32)
    return TiledDetections(
        rois=boxes.reshape(-1, 4),
        class_ids=np.array([pieces[0].class_id for pieces in objects], np.int32),
        scores=scores,
        mask_ious=mask_ious if has_ious else None,
        mask_scores=mask_scores,
        masks=[_union(pieces) for pieces in objects],
        pieces=np.array([len(pieces) for pieces in objects], np.int32),
        is_cut=np.array([len(pieces) == 1 and pieces[0].is_cut for pieces in objects], bool),
    )


def _box_around(boxes: Sequence[Sequence[float]]) -> list[float]:
    corners = np.array(boxes)
    return [*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist()]


def _union(pieces: Sequence[View]) -> Crop:
    """The pixels of all pieces."""
    if len(pieces) == 1:
        return pieces[0].mask
    y1, x1, y2, x2 = map(int, _box_around([piece.extent for piece in pieces]))
    mask = np.zeros((y2 - y1, x2 - x1), bool)
    for piece in pieces:
        top, left, bottom, right = piece.extent
        mask[top - y1 : bottom - y1, left - x1 : right - x1] |= piece.mask.mask
    return Crop(y1, x1, mask)


############################################################
#  Detection
############################################################


def detect_tiled(
    model: MaskRCNN,
    source: Any,
    tile: int = 1024,
    overlap: int = 128,
    scale: float | None = None,
    dtype: str = "float32",
) -> Iterator[TiledDetections]:
    """Find the objects of an image of any size, tile by tile.

    Memory holds one batch of tiles, the views that reach into the next row of tiles, and what the source needs.
    DETECTION_MAX_INSTANCES and the RPN's limits hold for each tile.

    source: an array [H, W] or [H, W, C] as detect() takes it, a Source, which reads regions, or the path of a file.
    tile, overlap, scale: as for plan_tiles. dtype: as for detect().

    Returns: an iterator. For each row of tiles it gives the objects that no later row can change, highest score first.
        An object may be larger than the overlap, or than a tile: then it is joined from pieces. Pieces that do not
        agree stay apart, with is_cut.
    Raises: as plan_tiles, detect() and open_source; ValueError for what is no source.
    """
    is_path = isinstance(source, str | os.PathLike)
    source = open_source(source, model.config.IMAGE_CHANNEL_COUNT) if is_path else as_source(source)
    plan = plan_tiles(source.shape, model.config, tile, overlap, scale)
    return _merged(model, source, plan, dtype, closes=is_path)


def _merged(model: MaskRCNN, source: Source, plan: Plan, dtype: str, closes: bool) -> Iterator[TiledDetections]:
    """closes: close the source at the end."""
    with source if closes else contextlib.nullcontext():
        pixels = Pixels(source, model.config)
        look = functools.partial(detect_views, model, pixels, plan, dtype=dtype)
        yield from merge_views(plan, map(look, plan.rows()), model.config, look)


def merge_views(
    plan: Plan, rows: Iterable[Iterable[tuple[Tile, list[View], int]]], config: Config, look: Look | None
) -> Iterator[TiledDetections]:
    """Whole objects out of what all tiles of an image see: for each row those that no later row can change.

    rows: for each row, from the top, what detect_views gives of its tiles. config: of the model. look: as of Seams.
    """
    limit, has_ious = config.DETECTION_MAX_INSTANCES, config.USE_MASKIOU_HEAD
    seams = Seams(plan, limit=limit, has_ious=has_ious, look=look)
    for number, row in enumerate(rows):
        for tile, views, count in row:
            seams.add(tile, views, count)
        yield seams.finish(number)


def detect_views(
    model: MaskRCNN, pixels: Pixels, plan: Plan, tiles: Iterable[Tile], dtype: str = "float32"
) -> Iterator[tuple[Tile, list[View], int]]:
    """What each of some tiles sees: the tile, its views, and how many detections it has.

    Blank tiles of the source have no views, and the network does not see them; they come first. On a CPU, freed memory
    goes back to the system after each batch: objects that stay would otherwise spread it, and it would grow by the
    image. MASKSCORING_KEEP_MEMORY=1 keeps up to 2 GB of it, which is faster.

    pixels: of the image. plan: of its tiles.
    """
    if model.device.type == "cpu":
        runtime.keep_memory_if_told()
    shown = []
    for tile in tiles:
        if pixels.source.is_blank(*tile.region):
            yield tile, [], 0
        else:
            shown.append(tile)
    with model.prepared(dtype):
        for batch in _batches(shown, model.config.IMAGES_PER_GPU):
            inputs = [read_tile(pixels, plan, tile, model.config) for tile in batch]
            for tile, tile_input, result in zip(batch, inputs, _detect(model, inputs, dtype), strict=True):
                views = views_of_result(tile, result, tile_input.origin, plan.image_shape)
                yield tile, views, len(result["scores"])
            if model.device.type == "cpu":
                runtime.return_memory()


def _batches(tiles: Iterable[Tile], size: int) -> Iterator[list[Tile]]:
    """Consecutive tiles of one shape in lists of at most `size`."""
    for _, group in itertools.groupby(tiles, key=attrgetter("shape")):
        while batch := list(itertools.islice(group, size)):
            yield batch


@torch.no_grad()
def _detect(model: MaskRCNN, inputs: Sequence[TileInput], dtype: str) -> list[dict[str, Any]]:
    """detect()'s dict of each tile, with run-length codes, in pixels of its canvas."""
    config = model.config
    numbers = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]  # prepared() has checked it
    pixels = torch.empty(
        (len(inputs), *inputs[0].shape, config.IMAGE_CHANNEL_COUNT), dtype=numbers, device=model.device
    )  # [B, H, W, C]
    for place, part in zip(pixels, inputs, strict=True):
        image = torch.from_numpy(np.require(part.image, requirements="W")).to(model.device)
        pad_molded(mold_image(image, config), part.window, place, config)
    windows = torch.tensor([part.window for part in inputs], dtype=torch.float32, device=model.device)
    detections = model.predict(Images(pixels.permute(0, 3, 1, 2), windows)).to("cpu")
    return [
        model.to_result(detections[detections.batch_index == i], part.canvas_window, part.canvas, "rle")
        for i, part in enumerate(inputs)
    ]

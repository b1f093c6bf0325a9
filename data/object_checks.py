"""Looks at the masks of all objects of a data set, and takes out those that cannot be used.

It finds what needs pixels or geometry: objects outside of their picture, without a pixel, there twice, and polygons
that cross themselves.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

import utils
from data.reading import Options
from data.recognise import Records
from data.records import ERROR, REMARK, WARNING, Fault, Object, Picture

NO_NAME = "object"  # the class of objects whose label file has none

_OUTSIDE = Fault(
    ERROR, "objects lie wholly outside of their picture", "left out", "are the labels those of another picture or size?"
)
_BEYOND = Fault(
    WARNING, "objects reach beyond the edge of their picture, partly outside", "cut off at the edge",
    "are the labels those of another picture or size?",
)  # fmt: skip
_NO_PIXEL = Fault(ERROR, "objects have zero pixels", "left out", "draw them again, or delete them")
_CROSSING = Fault(
    WARNING, "polygons cross themselves, so that parts of them are lost or doubled", "filled by the rule even-odd",
    "draw them again",
)  # fmt: skip
_KINK = Fault(REMARK, "polygons cross themselves at a small kink", "filled as they are")
_TWICE = Fault(
    WARNING, "objects are there twice, with the same class", "the second left out", "delete one of each pair"
)
_SPELLING = Fault(
    WARNING, "pairs of class names differ by case or spaces only", "kept as different classes",
    'give them one name in the labels, or here with --rename "OLD=NEW"',
)  # fmt: skip

_SWAPPED = Fault(
    WARNING, "objects leave their pictures, and all would lie inside with x and y exchanged", "kept as they are",
    "exchange x and y in the labels, if objects are in the wrong places in check.html",
)  # fmt: skip

_OTHER_BOX = Fault(
    WARNING, "outlines are elsewhere than the boxes beside them in the label file", "the outlines taken",
    "look at them in check.html",
)  # fmt: skip

_BACKGROUND = Fault(
    WARNING, "objects reach all four edges and cover more than half of their picture, as a background does",
    "kept as objects",
    "if masks show objects in black, exchange black and white; if a number means background, let it be 0",
)  # fmt: skip
_SPECKS = Fault(
    WARNING, "objects have one or two pixels, more than half of all", "kept as objects",
    "are these label images smoothed, or saved as JPEG? Export them anew",
)  # fmt: skip

TWICE_IOU = 0.9
_SAME_BOX = 0.5  # IoU of an outline's box with the one beside it
_SWAPPED_SHARE = 0.1  # of the objects, that leave their pictures
_MANY = 10  # objects; fewer may all be rectangles by chance
_BEYOND_SHARE = 0.01  # of a side of the picture, by which outlines may leave it; tools that clip round
_BEYOND_PIXELS = 2
_KINK_SHARE = 0.05  # of the area
_BACKGROUND_SHARE = 0.1  # of the pictures with objects, that have one like a background; single ones may be close-ups
_SPECK = 2  # pixels


class ObjectTable(NamedTuple):
    """What is known of all objects of a data set, as columns."""

    pictures: np.ndarray  # int32 [N], places in Records.pictures, ascending
    numbers: np.ndarray  # int32 [N], places in Picture.objects
    class_names: list[str]  # in the order of sorted_names
    classes: np.ndarray  # int32 [N], places in class_names
    crowds: np.ndarray  # bool [N]
    areas: np.ndarray  # int64 [N], in pixels
    boxes: np.ndarray  # float32 [N, (y1, x1, y2, x2)], around the masks


def class_name(parsed: Object) -> str:
    """The name of an object's class."""
    return parsed.name or NO_NAME


def sorted_names(pictures: list[Picture]) -> list[str]:
    """The class names of all objects, in alphabetical order: first without regard to case, then capitals first."""
    names = {class_name(parsed) for picture in pictures for parsed in picture.objects}
    return sorted(names, key=lambda name: (name.casefold(), name))


def picture_name(records: Records, picture: Picture) -> str:
    """The name of a picture below the data set, for messages; of one that its label file holds, that file's."""
    return picture.label if picture.path is None else picture.path.relative_to(records.root).as_posix()


def check_objects(records: Records, options: Options | None = None) -> ObjectTable:
    """Checks the masks of all objects. What cannot be used is taken out of records, and is in its findings.

    options: with crowds "ignore" or "auto", crowds stay crowds; "objects" makes objects of them, for every format.
    """
    if options is not None and options.crowds == "objects":
        for picture in records.pictures:
            for parsed in picture.objects:
                parsed.is_crowd = False
    _check_axes(records)
    _check_rectangles(records)
    _check_boxes(records)
    rows = []
    for number, picture in enumerate(records.pictures):
        if not picture.objects:
            continue
        masks = [parsed.mask(picture.height, picture.width) for parsed in picture.objects]
        areas = np.array([utils.rle_area(mask) for mask in masks], np.int64)  # pycocotools refuses more than 255
        boxes = coco_mask.toBbox(masks)
        name = picture_name(records, picture)
        kept = _check_areas(records, picture, name, areas)
        _check_outlines(records, picture, name, kept)
        kept &= ~_find_twice(records, picture, name, masks, areas, boxes, kept)
        picture.objects = [parsed for parsed, is_kept in zip(picture.objects, kept, strict=True) if is_kept]
        corners = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1)
        rows.append((np.full(kept.sum(), number, np.int32), areas[kept], corners[kept].astype(np.float32)))
    _check_names(records)
    table = _table(records, rows)
    _check_sizes(records, table)
    return table


def _table(records: Records, rows: list) -> ObjectTable:
    names = sorted_names(records.pictures)
    number_of = {name: number for number, name in enumerate(names)}
    objects = [parsed for picture in records.pictures for parsed in picture.objects]
    counts = [len(picture.objects) for picture in records.pictures]
    none = np.zeros(0, np.int32)
    return ObjectTable(
        np.concatenate([none, *(row[0] for row in rows)]),
        np.concatenate([none, *(np.arange(count, dtype=np.int32) for count in counts)]),
        names,
        np.array([number_of[class_name(parsed)] for parsed in objects], np.int32),
        np.array([parsed.is_crowd for parsed in objects], bool),
        np.concatenate([np.zeros(0, np.int64), *(row[1] for row in rows)]),
        np.concatenate([np.zeros((0, 4), np.float32), *(row[2] for row in rows)]),
    )


def _check_areas(records: Records, picture: Picture, name: str, areas: np.ndarray) -> np.ndarray:
    """bool [N]: the objects with pixels."""
    for parsed, area in zip(picture.objects, areas.tolist(), strict=True):
        if not area:
            low, high = _bounds(parsed)
            size = np.array([picture.width, picture.height])
            is_outside = bool(len(parsed.rings) and ((low >= size).any() or (high <= 0).any()))
            records.findings.add(_OUTSIDE if is_outside else _NO_PIXEL, f"{name}: {parsed.place}")
    return areas > 0


def _bounds(parsed: Object) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest (x, y) of an object's outline; those of nothing if it has none."""
    points = np.concatenate([np.zeros((0, 2)), *parsed.rings])
    return points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)


def _check_outlines(records: Records, picture: Picture, name: str, kept: np.ndarray) -> None:
    """Finds outlines that leave the picture, or cross themselves."""
    size = np.array([picture.width, picture.height])
    room = np.maximum(_BEYOND_PIXELS, _BEYOND_SHARE * size)
    for parsed, is_kept in zip(picture.objects, kept.tolist(), strict=True):
        if not is_kept or not len(parsed.rings):
            continue
        low, high = _bounds(parsed)
        place = f"{name}: {parsed.place}"
        if (low < -room).any() or (high > size + room).any():
            records.findings.add(_BEYOND, place)
        crossed = [ring for ring in parsed.rings if crosses_itself(ring)]
        if crossed:
            records.findings.add(_CROSSING if any(map(_loses_area, crossed)) else _KINK, place)


def _check_axes(records: Records) -> None:
    """Finds a set whose outlines leave their pictures, and would all lie inside of them with x and y exchanged."""
    count, outside, are_inside = 0, [], True
    for picture in records.pictures:
        size = np.array([picture.width, picture.height])
        room = np.maximum(_BEYOND_PIXELS, _BEYOND_SHARE * size)
        for parsed in picture.objects if picture.width != picture.height else ():
            if len(parsed.rings):
                low, high = _bounds(parsed)
                count += 1
                are_inside &= bool((low >= -room[::-1]).all() and (high <= size[::-1] + room[::-1]).all())
                if (low < -room).any() or (high > size + room).any():
                    outside.append(f"{picture_name(records, picture)}: {parsed.place}")
    if are_inside and len(outside) >= max(2, _SWAPPED_SHARE * count):
        records.findings.add(_SWAPPED, *outside)


def _check_boxes(records: Records) -> None:
    """Finds outlines that are elsewhere than the boxes that their label files have beside them."""
    for picture in records.pictures:
        for parsed in picture.objects:
            if parsed.box is None or not len(parsed.rings) or not np.isfinite(parsed.box).all():
                continue
            low, high = _bounds(parsed)
            x, y, width, height = parsed.box
            boxes = np.array([[x, y, width, height], [y, x, height, width]], np.float64)
            straight, swapped = _box_ious(np.tile(np.concatenate([low, high - low]), (2, 1)), boxes)
            if straight < _SAME_BOX and width > 0 < height:
                note = " (with x and y exchanged it fits)" if swapped >= _SAME_BOX else ""
                records.findings.add(_OTHER_BOX, f"{picture_name(records, picture)}: {parsed.place}{note}")


def _check_rectangles(records: Records) -> None:
    """Finds a set in which every outline is a rectangle, upright or turned."""
    objects = [parsed for picture in records.pictures for parsed in picture.objects]
    if len(objects) < _MANY or not all(len(parsed.rings) == 1 and _is_rectangle(parsed.rings[0]) for parsed in objects):
        return
    what = f"all {len(objects):,} outlines are rectangles, as boxes of detection are"
    records.findings.add(Fault(WARNING, what, "taken as masks", "label outlines, if objects are no rectangles"), "")


def _check_sizes(records: Records, table: ObjectTable) -> None:
    """Finds a set in which backgrounds are objects, or in which most objects are specks."""
    sizes = np.array([(picture.height, picture.width) for picture in records.pictures if picture.objects])
    sizes = sizes.reshape(-1, 2)[np.unique(table.pictures, return_inverse=True)[1]]  # of the picture of each object
    edges = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    is_background = (table.boxes == edges).all(axis=1) & (2 * table.areas > sizes.prod(axis=1)) & ~table.crowds
    count = len(np.unique(table.pictures))
    if len(np.unique(table.pictures[is_background])) >= max(1, _BACKGROUND_SHARE * count):
        records.findings.add(_BACKGROUND, *_places(records, table, is_background))
    is_speck = (table.areas <= _SPECK) & ~table.crowds
    if len(is_speck) >= _MANY and 2 * is_speck.sum() > len(is_speck):
        records.findings.add(_SPECKS, *_places(records, table, is_speck))


def _places(records: Records, table: ObjectTable, chosen: np.ndarray) -> list[str]:
    rows = zip(table.pictures[chosen].tolist(), table.numbers[chosen].tolist(), strict=True)
    pictures = records.pictures
    return [f"{picture_name(records, pictures[i])}: {pictures[i].objects[number].place}" for i, number in rows]


def _is_rectangle(ring: np.ndarray) -> bool:
    """Whether four points are the corners of a rectangle: its diagonals are of one length and middle."""
    if len(ring) == 5 and (ring[0] == ring[4]).all():
        ring = ring[:4]
    if len(ring) != 4:
        return False
    first, second = ring[2] - ring[0], ring[3] - ring[1]
    lengths = np.hypot(*first), np.hypot(*second)
    middle = np.abs(ring[0] + ring[2] - ring[1] - ring[3]).max() / 2
    return bool(max(middle, abs(lengths[0] - lengths[1])) <= 0.01 * max(lengths) + 0.02)


############################################################
#  Polygons that cross themselves
############################################################


def overlapping_pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes that touch or overlap, without all pairs being compared.

    low, high: float [N, 2], the least and the greatest corner of each box.

    Returns: two arrays of places; each pair is there once.
    """
    order = np.argsort(low[:, 0], kind="stable")
    ends = np.searchsorted(low[order, 0], high[order, 0], side="right")
    counts = (ends - np.arange(len(order)) - 1).clip(0)
    first = np.repeat(np.arange(len(order)), counts)
    second = first + 1 + np.arange(len(first)) - np.repeat(counts.cumsum() - counts, counts)
    first, second = order[first], order[second]
    is_near = (low[first, 1] <= high[second, 1]) & (low[second, 1] <= high[first, 1])
    return first[is_near], second[is_near]


def crosses_itself(ring: np.ndarray) -> bool:
    """Whether two sides of a polygon cross. Sides that only touch, or run along each other, do not.

    ring: float64 [N, (x, y)].
    """
    if len(ring) < 4:
        return False
    following = np.roll(ring, -1, axis=0)
    first, second = overlapping_pairs(np.minimum(ring, following), np.maximum(ring, following))
    a, b, c, d = ring[first], following[first], ring[second], following[second]
    return bool(((_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)).any())


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """-1, 0 or 1: on which side of the line from start to end a point lies. All [N, 2]."""
    (dx, dy), (px, py) = (end - start).T, (point - start).T
    return np.sign(dx * py - dy * px)


def _loses_area(ring: np.ndarray) -> bool:
    """Whether the area that a ring encloses with a sign differs from its pixels, by more than rounding explains."""
    x, y = (ring - ring.min(axis=0)).T
    signed = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    length = np.hypot(*(ring - np.roll(ring, 1, axis=0)).T).sum()
    height, width = int(y.max()) + 2, int(x.max()) + 2
    filled = utils.rle_area(utils.polygons_to_rle([np.stack([x, y], axis=1).ravel()], height, width))
    return abs(signed - filled) > max(_KINK_SHARE * max(signed, filled), length / 8)


############################################################
#  Objects that are there twice
############################################################


def _find_twice(
    records: Records, picture: Picture, name: str, masks: list[dict], areas: np.ndarray, boxes: np.ndarray,
    kept: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """bool [N]: the objects that an earlier one of the same class covers, with an IoU above TWICE_IOU."""
    is_twice = np.zeros(len(masks), bool)
    groups = defaultdict(list)
    for number in np.flatnonzero(kept).tolist():
        if not picture.objects[number].is_crowd:
            groups[class_name(picture.objects[number])].append(number)
    for numbers in map(np.array, groups.values()):
        low = boxes[numbers, :2]
        first, second = (numbers[part] for part in overlapping_pairs(low, low + boxes[numbers, 2:]))
        first, second = np.minimum(first, second), np.maximum(first, second)
        smaller, larger = np.minimum(areas[first], areas[second]), np.maximum(areas[first], areas[second])
        near = smaller > TWICE_IOU * larger
        near &= _box_ious(boxes[first], boxes[second]) > TWICE_IOU / 2
        for i, j in sorted(zip(first[near].tolist(), second[near].tolist(), strict=True)):
            if not is_twice[i] and not is_twice[j] and coco_mask.iou([masks[i]], [masks[j]], [0])[0, 0] > TWICE_IOU:
                is_twice[j] = True
                records.findings.add(_TWICE, f"{name}: {picture.objects[i].place} and {picture.objects[j].place}")
    return is_twice


def _box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU [N] of boxes float [N, (x, y, width, height)]."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    return shared / (first[:, 2:].prod(axis=1) + second[:, 2:].prod(axis=1) - shared)


############################################################
#  Class names
############################################################


def _check_names(records: Records) -> None:
    """Finds class names that differ by case or spaces only."""
    counts = Counter(class_name(parsed) for picture in records.pictures for parsed in picture.objects)
    alike = defaultdict(list)
    for name in sorted(counts):
        alike["".join(name.casefold().split())].append(name)
    for names in alike.values():
        for other in names[1:]:
            place = f'"{names[0]}" and "{other}", {counts[names[0]]:,} and {counts[other]:,} objects'
            records.findings.add(_SPELLING, place)

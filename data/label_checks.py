"""Compares what an annotation file says of its objects with their masks. Any format's reader can call it.

Nothing is believed: boxes and areas that do not fit the masks are replaced, and masks that are written in another way
are read in that way where it is clear. Everything that is changed or left out is counted and named.

    A annotations. Boxes are (x, y, width, height) in pixels. Sizes are (height, width) of the images, int64 [A, 2].
"""

from collections.abc import Callable, Iterable

import numpy as np

import utils
from data.label_table import DAMAGED, MISSING, POLYGONS, RLE, RLE_WITHOUT_SIZE, LabelTable

Skipped = dict[str, list]  # {problem: labels of the images, categories or annotations that have it}

# A box fits if its IoU with that of the mask is at least this. Of 31,742 real annotations, one falls below.
MIN_BOX_IOU = 0.5
# Areas fit up to this factor. Some of COCO's own crowds are off by a factor of 2.
MAX_AREA_FACTOR = 3.0
# A way to read the file is taken for the whole file if it fits this share of the annotations in question.
CLEAR_SHARE = 0.9


def note(skipped: Skipped, problem: str, labels: Iterable) -> None:
    """Adds a problem to those that a load reports."""
    labels = list(labels)
    if labels:
        skipped.setdefault(problem, []).extend(labels)


def summary(skipped: Skipped) -> str:
    """A line for each problem."""
    lines = []
    for problem, labels in skipped.items():
        names = ", ".join(utils.printable(repr(label), 100) for label in labels[:3])
        more = f", and {len(labels) - 3} more" if len(labels) > 3 else ""
        lines.append(f"    {len(labels):,} {problem}: {names}{more}")
    return "\n".join(lines)


class LabelChecks:
    """The annotations of a file, and which of them have passed all checks so far."""

    def __init__(self, table: LabelTable, skipped: Skipped, names: dict[int, str] | None = None) -> None:
        """names: {annotation id: what messages say instead}."""
        self.table, self.skipped, self.names = table, skipped, names or {}
        self.good = np.ones(len(table), bool)

    def drop(self, problem: str, wrong: np.ndarray) -> None:
        """Reports a problem and leaves out the annotations that have it. wrong: bool [A]."""
        self.note(problem, wrong)
        self.good &= ~wrong

    def note(self, problem: str, wrong: np.ndarray) -> None:
        """Reports a problem of annotations that are kept. wrong: bool [A]."""
        if wrong.any():
            note(self.skipped, problem, self.labels(wrong & self.good))

    def labels(self, selection: np.ndarray) -> list[int | str]:
        """Names of annotations for messages. selection: bool [A], or rows."""
        return [self.names.get(label, label) for label in self.table.labels(selection)]


def check_labels(rows: LabelChecks, sizes: np.ndarray, keep_empty: bool = False) -> None:
    """Corrects the masks, boxes and areas of annotations where that is possible, and leaves out the others.

    sizes: of the images, zeros for annotations that are out already.
    keep_empty: keep masks without a pixel, if they are one in a hundred at most, as the official evaluation of COCO
        does. Training cannot use them anyway.
    """
    check_segmentations(rows, sizes)
    boxes, areas = rows.table.outline_bounds()
    if _scale_fractions(rows, sizes, boxes):
        boxes, areas = rows.table.outline_bounds()
    if _swap_axes(rows, sizes, boxes) | _read_rows_first(rows, sizes, boxes):
        boxes, areas = rows.table.outline_bounds()
    check_boxes(rows, sizes, boxes, areas, keep_empty)


############################################################
#  Masks
############################################################


def check_segmentations(rows: LabelChecks, sizes: np.ndarray) -> None:
    """Drops annotations without a mask of the image's size, and leaves out polygons that cannot be drawn."""
    table = rows.table
    rows.drop("annotations without a segmentation (skipped)", table.kinds == MISSING)
    _complete_sizes(rows, sizes)
    rows.drop("annotations with a damaged RLE (skipped)", table.kinds == DAMAGED)
    is_other = (table.kinds == RLE) & (table.sizes != sizes).any(axis=1)
    is_turned = is_other & (table.sizes == sizes[:, ::-1]).all(axis=1)  # _read_rows_first looks at them
    rows.drop("annotations with an RLE of another size than the image (skipped)", is_other & ~is_turned)
    _check_polygons(rows)
    is_empty = (table.kinds == POLYGONS) & (table.ring_spans[:, 0] == table.ring_spans[:, 1])
    rows.drop("annotations without any good polygon (skipped)", is_empty)


def _complete_sizes(rows: LabelChecks, sizes: np.ndarray) -> None:
    """Takes the size of RLEs that say none from their images."""
    table, codes = rows.table, {}
    for row in np.flatnonzero((table.kinds == RLE_WITHOUT_SIZE) & rows.good).tolist():
        height, width = sizes[row].tolist()
        rle = {"size": [height, width], "counts": table.code(row)}
        try:
            codes[row] = utils.annotation_to_rle(rle, height, width)["counts"]
        except ValueError:
            continue
        table.sizes[row] = height, width
    table.kinds = table.kinds.copy()
    table.kinds[table.kinds == RLE_WITHOUT_SIZE] = DAMAGED
    if codes:
        table.kinds[list(codes)] = RLE
        table.replace_codes(codes)


def _check_polygons(rows: LabelChecks) -> None:
    """Leaves out polygons that enclose nothing or cannot be drawn."""
    table = rows.table
    lengths = table.rings[:, 1] - table.rings[:, 0]  # [R]
    wrong_places = np.flatnonzero(~(np.abs(table.coordinates) <= utils.MAX_COORDINATE))  # in this form, of NaN too
    is_broken = np.zeros(len(lengths), bool)
    is_broken[np.searchsorted(table.rings[:, 1], wrong_places, side="right")] = True
    problems = {
        "polygons that are no flat list of numbers (left out)": lengths == 0,
        "polygons with fewer than 3 points (left out)": (lengths > 0) & (lengths < 6),
        "polygons with an odd number of coordinates (left out)": (lengths >= 6) & (lengths % 2 == 1),
        "polygons with coordinates that are not finite, or absurd (left out)": is_broken,
    }
    owners = table.ring_owners()
    for problem, wrong in problems.items():
        note(rows.skipped, problem, rows.labels(owners[wrong & rows.good[owners]]))
    wrong = np.logical_or.reduce(list(problems.values()))
    if wrong.any():
        table.keep_rings(~wrong)


def _scale_fractions(rows: LabelChecks, sizes: np.ndarray, bounds: np.ndarray) -> bool:
    """Scales polygons whose coordinates are fractions of the image's size. Returns whether there were any.

    All of them lie in the first pixel. A real object can lie there, too: then its box does. So a polygon is scaled if
    its box fits the scaled one, or if most polygons of the file lie in the first pixel.

    bounds: [A, 4], the boxes of the masks as the file has them.
    """
    table, is_polygon = rows.table, rows.good & (rows.table.kinds == POLYGONS)
    far = bounds[:, :2] + bounds[:, 2:]
    inside = (bounds[:, :2] >= -0.01).all(axis=1) & (far <= 1.01).all(axis=1) & (sizes >= 8).all(axis=1)
    inside &= is_polygon
    if not inside.any():
        return False
    scale = sizes[:, ::-1].astype(np.float64)  # [A, (width, height)]
    fits_scaled = _ious(table.boxes, bounds * np.tile(scale, 2), sizes) >= MIN_BOX_IOU
    fits = _ious(table.boxes, bounds, sizes) >= MIN_BOX_IOU
    points = table.points_of(inside)
    has_fractions = (table.coordinates.reshape(-1, 2)[points] % 1 != 0).any()
    is_rule = has_fractions and inside.sum() >= CLEAR_SHARE * is_polygon.sum()
    scaled = inside & (fits_scaled | is_rule)
    rows.note("annotations with polygons in fractions of the image size (scaled to pixels)", scaled)
    rows.drop(
        "annotations with polygons inside of the first pixel; are they fractions of the image size? (skipped)",
        inside & ~scaled & ~fits,
    )
    if scaled.any():
        _map_points(table, scaled, lambda points, owners: points * scale[owners])
    return bool(scaled.any())


def _map_points(table: LabelTable, rows: np.ndarray, function: Callable) -> None:
    """Replaces the points of polygons. rows: bool [A]. function: (points [N, (x, y)], rows [N]) -> points."""
    points = table.coordinates.copy().reshape(-1, 2)
    is_chosen = table.points_of(rows)
    lengths = (table.rings[:, 1] - table.rings[:, 0]) // 2
    owners = np.repeat(table.ring_owners(), lengths)[is_chosen]
    points[is_chosen] = function(points[is_chosen], owners)
    table.coordinates = points.ravel()


def _swap_axes(rows: LabelChecks, sizes: np.ndarray, bounds: np.ndarray) -> bool:
    """Corrects polygons that are written as y, x. Returns whether there were any.

    The sign of it is an annotation that is inside of its image only when swapped, if most of its points are outside, or
    if its box fits the swapped polygon alone. If no annotation says the opposite, the file's polygons are all read as
    y, x, but for those whose boxes fit as they are only. Otherwise those with the sign are corrected if their box
    agrees, and left out if not.

    bounds: as for _scale_fractions.
    """
    table, limit = rows.table, sizes[:, ::-1]  # (width, height)
    is_polygon = rows.good & (table.kinds == POLYGONS)
    leaves = is_polygon & _leaves(bounds, limit)
    leaves_swapped = _leaves(bounds[:, [1, 0, 3, 2]], limit)
    as_is = _ious(table.boxes, bounds, sizes)
    swapped = _ious(table.boxes[:, [1, 0, 3, 2]], bounds, sizes[:, ::-1])  # of the box with the swapped polygon
    signs = leaves & ~leaves_swapped & (swapped >= MIN_BOX_IOU) & (as_is < MIN_BOX_IOU)
    for row in np.flatnonzero(leaves & ~leaves_swapped & ~signs).tolist():
        points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in table.polygons(row)])
        signs[row] = ((points < -1) | (points > limit[row] + 1)).any(axis=1).mean() > 0.5
    if not signs.any():
        return False
    against = is_polygon & ~leaves & leaves_swapped
    if against.sum() <= (1 - CLEAR_SHARE) * signs.sum():
        boxes_are_right = (swapped[signs] >= MIN_BOX_IOU).mean() >= CLEAR_SHARE
        wrong = is_polygon & ~against & ((swapped >= as_is) | (not boxes_are_right))
    else:
        wrong = signs & (swapped >= MIN_BOX_IOU)
    rows.note("annotations with polygons whose x and y are swapped (read as y, x)", wrong)
    problem = "annotations with polygons outside of the image, but inside if x and y are swapped (skipped)"
    rows.drop(problem, signs & ~wrong)
    _map_points(table, wrong, lambda points, owners: points[:, ::-1])
    return True


def _leaves(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """bool [A]: whether boxes reach out of the image by more than a pixel. limit: [A, (width, height)]."""
    return ((boxes[:, :2] < -1) | (boxes[:, :2] + boxes[:, 2:] > limit + 1)).any(axis=1)


def _read_rows_first(rows: LabelChecks, sizes: np.ndarray, bounds: np.ndarray) -> bool:
    """Corrects RLEs that count along rows, instead of columns as COCO's do. Returns whether masks changed.

    Only boxes can tell. Along rows, nearly all masks that do not fit their boxes must fit. If they are many, then all
    RLEs of the file are read so but for those that fit better as they are. RLEs of a size (width, height) need a box
    that fits one reading alone.

    bounds: as for _scale_fractions.
    """
    table, is_rle = rows.table, rows.good & (rows.table.kinds == RLE)
    if not is_rle.any():
        return False
    is_turned = is_rle & (table.sizes != sizes).any(axis=1)
    as_is = _ious(table.boxes, bounds, sizes)
    doubtful = is_rle & ((as_is < MIN_BOX_IOU) | is_turned)
    if not doubtful.any() or not _has_boxes(table)[doubtful].any():
        rows.drop("annotations with an RLE of another size than the image (skipped)", is_turned)
        return False
    columns, along_rows = np.zeros(len(table)), np.zeros(len(table))
    sizes_of_file, table.sizes = table.sizes, sizes[:, ::-1].copy()
    along_rows[is_rle] = _ious(table.boxes, table.outline_bounds()[0][:, [1, 0, 3, 2]], sizes)[is_rle]
    table.sizes = sizes.copy()
    columns[is_rle] = _ious(table.boxes, table.outline_bounds()[0], sizes)[is_rle]
    table.sizes = np.where(is_turned[:, None], sizes, sizes_of_file)
    fits_rows = doubtful & (along_rows >= MIN_BOX_IOU) & (columns < MIN_BOX_IOU)
    misfits = doubtful & ((columns < MIN_BOX_IOU) | is_turned) & _has_boxes(table)
    is_clear = fits_rows.sum() >= CLEAR_SHARE * misfits.sum()  # else the boxes are wrong, and some fit by chance
    is_rule = is_clear and fits_rows.sum() >= 0.1 * is_rle.sum()
    wrong = fits_rows & (is_turned | is_rule | (is_clear & (along_rows >= 0.8)))
    if is_rule:
        wrong |= is_rle & (along_rows >= MIN_BOX_IOU) & (along_rows >= columns)
    rows.note("annotations with an RLE that counts along rows (read along rows)", wrong)
    unclear = is_turned & ~wrong & ~((columns >= MIN_BOX_IOU) & (along_rows < MIN_BOX_IOU))
    rows.drop("annotations with an RLE of another size than the image (skipped)", unclear)
    codes = {}
    for row in np.flatnonzero(wrong).tolist():
        height, width = sizes[row].tolist()
        mask = utils.rle_to_mask({"size": [width, height], "counts": table.code(row)}).T
        codes[row] = utils.mask_to_rle(mask)["counts"]
    if codes:
        table.replace_codes(codes)
    return bool(codes) or bool(is_turned.any())


############################################################
#  Boxes and areas
############################################################

# What the four numbers of a box may mean instead of x, y, width, height: (how to say it, how to read them). Functions
# of boxes float64 [N, 4] and sizes [N, (height, width)].
_READINGS: list[tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [
    ("x1 y1 x2 y2", lambda b, sizes: _corners(b)),
    ("y x height width", lambda b, sizes: b[:, [1, 0, 3, 2]]),
    ("x y height width", lambda b, sizes: b[:, [0, 1, 3, 2]]),
    ("y1 x1 y2 x2", lambda b, sizes: _corners(b)[:, [1, 0, 3, 2]]),
    ("fractions of the image size", lambda b, sizes: b * _scales(sizes)),
    ("x1 y1 x2 y2 as fractions of the image size", lambda b, sizes: _corners(b * _scales(sizes))),
    ("the centre, width and height", lambda b, sizes: _centred(b)),
    ("the centre, width and height as fractions of the image size", lambda b, sizes: _centred(b * _scales(sizes))),
]


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def _scales(sizes: np.ndarray) -> np.ndarray:
    return np.tile(sizes[:, ::-1], 2).astype(np.float64)


def _has_boxes(table: LabelTable) -> np.ndarray:
    """bool [A]: whether the four numbers of a box are numbers that an image may have, and enclose something."""
    return (np.abs(table.boxes) <= utils.MAX_COORDINATE).all(axis=1) & (table.boxes[:, 2:] > 0).all(axis=1)


def _ious(boxes: np.ndarray, others: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """float64 [N]: IoU of boxes with others, inside of their images. 0 for a box that is none, or empty."""
    limit = np.tile(sizes[:, ::-1], 2)
    with np.errstate(invalid="ignore", over="ignore"):
        first, second = (
            np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]], axis=1).clip(0, limit) for part in (boxes, others)
        )
        shared = (np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])).clip(0)
        shared = shared.prod(axis=1)
        union = sum((part[:, 2:] - part[:, :2]).clip(0).prod(axis=1) for part in (first, second)) - shared
        return np.nan_to_num(shared / np.where(union > 0, union, 1), nan=0.0)


def _factors(areas: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [N]: by which factor areas differ, at least 1; infinite for a 0, NaN or negative one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.maximum(areas / others, others / areas)
    return np.where((areas > 0) & (others > 0), factors, np.inf)


def check_boxes(
    rows: LabelChecks, sizes: np.ndarray, bounds: np.ndarray, outline_areas: np.ndarray, keep_empty: bool
) -> None:
    """Replaces boxes and areas that do not fit the masks, and drops masks without a pixel of the image.

    The outlines of masks, which are known without drawing them, are compared first. Only masks that do not agree with
    them are drawn. bounds, outline_areas: [A, 4] and [A], from LabelTable.outline_bounds.
    """
    table, limit = rows.table, sizes[:, ::-1]
    low, high = bounds[:, :2], bounds[:, :2] + bounds[:, 2:]  # [A, (x, y)]
    rows.drop("annotations with a mask outside of the image (skipped)",
              ((low >= limit) | ((high <= 0) & (low < 0))).any(axis=1))  # fmt: skip
    usable = (np.abs(table.boxes) <= utils.MAX_COORDINATE).all(axis=1) & (table.boxes[:, 2:] >= 0).all(axis=1)
    ious, factors = _ious(table.boxes, bounds, sizes), _factors(table.areas, outline_areas)
    tiny = (outline_areas < 4) | (bounds[:, 2:] < 2).any(axis=1)
    drawn = rows.good & (tiny | (ious < MIN_BOX_IOU) | ~(factors <= MAX_AREA_FACTOR))
    pixel_boxes, pixel_areas = bounds.copy(), outline_areas.copy()
    pixel_boxes[drawn], pixel_areas[drawn] = table.pixel_bounds(np.flatnonzero(drawn), sizes)
    ious[drawn] = np.maximum(ious[drawn], _ious(table.boxes[drawn], pixel_boxes[drawn], sizes[drawn]))
    factors[drawn] = np.minimum(factors[drawn], _factors(table.areas[drawn], pixel_areas[drawn]))
    is_empty = drawn & (pixel_areas == 0)
    if keep_empty and is_empty.sum() <= 0.01 * len(table):
        rows.note("annotations with a mask without a pixel (kept for evaluation; training leaves them out)", is_empty)
    else:
        rows.drop("annotations with a mask without a pixel (skipped)", is_empty)
    checked = rows.good & ~is_empty
    wrong = checked & ((ious < MIN_BOX_IOU) | ~usable)
    wrong |= _note_boxes(rows, sizes, wrong, usable, bounds, checked)
    late = wrong & ~drawn
    pixel_boxes[late], pixel_areas[late] = table.pixel_bounds(np.flatnonzero(late), sizes)
    table.boxes[wrong] = pixel_boxes[wrong]
    _replace_areas(rows, checked, wrong, factors, pixel_areas)
    rows.note("boxes that reach out of the image by more than a pixel (kept, and cut off for training)",
              _leaves(table.boxes, limit))  # fmt: skip


def _note_boxes(rows: LabelChecks, sizes, wrong, usable, bounds, checked) -> np.ndarray:
    """Reports boxes that do not fit. Returns: bool [A], further boxes to replace, of a file that means another thing.

    wrong, usable, checked: bool [A], boxes that do not fit their mask; that are boxes; of masks with pixels.
    """
    table = rows.table
    rows.note("annotations without a usable bbox (made from the mask)", wrong & ~usable)
    wrong = wrong & usable
    if not wrong.any():
        return np.zeros(len(table), bool)
    is_empty = wrong & (table.boxes[:, 2:] == 0).any(axis=1)
    rows.note("annotations with a bbox of no width or height (made from the mask)", is_empty)
    wrong &= ~is_empty
    name, fits = "", np.zeros(len(table))
    for reading, function in _READINGS:
        with np.errstate(invalid="ignore", over="ignore"):
            ious = _ious(function(table.boxes, sizes), bounds, sizes)
        if (ious[wrong] >= MIN_BOX_IOU).sum() > (fits[wrong] >= MIN_BOX_IOU).sum():
            name, fits = reading, ious
    count = int((fits[wrong] >= MIN_BOX_IOU).sum())
    more = np.zeros(len(table), bool)
    if name and count >= CLEAR_SHARE * wrong.sum() and wrong.sum() >= 0.1 * checked.sum():
        more = checked & usable & ~wrong & (fits > _ious(table.boxes, bounds, sizes))
        count += int(more.sum())
    is_telling = count >= (wrong.sum() + more.sum()) / 2
    reading = f"; read as {name} instead of x y width height, {count:,} would fit" if name and is_telling else ""
    rows.note(f"annotations with a bbox that does not fit the mask (made from the mask{reading})", wrong | more)
    return more


def _replace_areas(rows: LabelChecks, checked, wrong_boxes, factors, pixel_areas) -> None:
    """Replaces areas that do not fit. Those that belong to wrong boxes must fit better than others.

    checked, wrong_boxes: bool [A]. factors: [A], by which the areas differ from those of the masks.
    """
    table = rows.table
    is_area = np.isfinite(table.areas) & (table.areas >= 0)
    rows.note("annotations without a usable area (made from the mask)", checked & ~is_area)
    is_wrong = checked & is_area & ~(factors <= MAX_AREA_FACTOR)
    rows.note("annotations with an area that does not fit the mask (made from the mask)", is_wrong)
    replaced = is_wrong | (checked & ~is_area) | (checked & wrong_boxes & ~(factors <= 1.1))
    table.areas = np.where(replaced, pixel_areas, table.areas)  # a copy: the file's may be of a buffer

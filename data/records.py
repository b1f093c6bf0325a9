"""What every annotation format yields: pictures with their objects, and what is wrong with them.

A reader in data/formats/ turns label files into Pictures. It decides nothing that other formats share: how a polygon is
filled, what a crowd is, which faults lose an object, all this is decided once, for every format, by data/reading.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import utils
from data.georeference import Georeference
from roialign.paste import crop_to_rle

############################################################
#  Objects
############################################################

# How the rings of an object become pixels.
CENTRES = "centres"  # pixels whose centre lies inside: pycocotools' rule, for outlines that somebody drew
CONTOUR = "contour"  # the outline's pixels too: for contours through pixel centres, as OpenCV's findContours gives them


class Bitmap(NamedTuple):
    """A mask that a file stores for a part of the image."""

    y: int  # of its top row in the image; may be negative
    x: int
    mask: np.ndarray  # bool [height, width]


@dataclasses.dataclass(slots=True)
class Object:
    """One object as a label file describes it. Its mask is the bitmap, the RLE, or the rings without the holes."""

    name: str  # its class; empty if the file does not say it
    place: str  # where it is in the label file, for messages: "line 3", "shape 2", "id 17"
    rings: Sequence[np.ndarray] = ()  # float64 [N, (x, y)] pixels each; together they are the object
    holes: Sequence[np.ndarray] = ()
    rle: dict | None = None  # of the whole image
    is_crowd: bool = False  # a group that nobody separated: ignored in training and evaluation
    box: tuple[float, float, float, float] | None = None  # x, y, width, height, if the file says it
    filling: str = CENTRES  # of the rings
    attributes: dict[str, float | str] = dataclasses.field(default_factory=dict)  # what a writer adds: scores, notes

    def mask(self, height: int, width: int) -> dict:
        """The compressed RLE of the mask in an image of this size. What lies outside of the image is cut off."""
        if self.rle is not None:
            return self.rle
        fill = _fill_contours if self.filling == CONTOUR else _fill_centres
        rle = fill(self.rings, height, width)
        if not self.holes:
            return rle
        return combine([rle, fill(self.holes, height, width)], np.greater, height, width)

    @property
    def content(self) -> tuple:
        """Equal for two objects that a file, or two files, have twice: the class and the shape."""
        shapes = tuple(ring.tobytes() for rings in (self.rings, self.holes) for ring in rings)
        return self.name, shapes, len(self.rings), self.rle and (tuple(self.rle["size"]), self.rle["counts"])

    def join(self, other: "Object", size: tuple[int, int]) -> None:
        """Adds another object's mask, as a further part of this one. size: (height, width) of the image."""
        self.box = None  # of the part
        if self.rle is None and other.rle is None and not (self.holes or other.holes) and self.filling == other.filling:
            self.rings = [*self.rings, *other.rings]
            return
        masks = [self.mask(*size), other.mask(*size)]
        self.rle, self.rings, self.holes = combine(masks, np.logical_or, *size), (), ()


def _fill_centres(rings: Sequence[np.ndarray], height: int, width: int) -> dict:
    return utils.polygons_to_rle([ring.ravel().tolist() for ring in rings], height, width)


def _fill_contours(rings: Sequence[np.ndarray], height: int, width: int) -> dict:
    """The rings filled by Pillow, in a canvas no larger than the part of the image that they cover."""
    points = np.concatenate([*rings, np.zeros((0, 2))])
    low = np.clip(np.floor(points.min(axis=0, initial=np.inf)), 0, [width, height])
    high = np.clip(np.ceil(points.max(axis=0, initial=-np.inf)) + 1, 0, [width, height])
    if (high <= low).any():
        return utils.polygons_to_rle([], height, width)
    x, y, right, bottom = int(low[0]), int(low[1]), int(high[0]), int(high[1])
    canvas = Image.new("1", (right - x, bottom - y))
    for ring in rings:
        ImageDraw.Draw(canvas).polygon((ring - [x, y]).ravel().tolist(), fill=1, outline=1)
    return crop_to_rle(y, x, np.asarray(canvas), (height, width))


def has_shape_of(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the sides of two sizes (height, width) differ by one factor, within 1 %."""
    y, x = other[0] / size[0], other[1] / size[1]
    return abs(y / x - 1) <= 0.01


def nearest_pixels(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] in another size (height, width): for each pixel, the value at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def bitmap_to_rle(bitmap: Bitmap, height: int, width: int) -> dict:
    """The compressed RLE of a bitmap in an image of this size. What lies outside of the image is cut off."""
    top, left = max(bitmap.y, 0), max(bitmap.x, 0)
    inside = bitmap.mask[top - bitmap.y : max(height - bitmap.y, 0), left - bitmap.x : max(width - bitmap.x, 0)]
    if not inside.size:
        return utils.polygons_to_rle([], height, width)
    return crop_to_rle(top, left, np.ascontiguousarray(inside), (height, width))


def even_odd(rings: Sequence[np.ndarray], height: int, width: int) -> dict:
    """The compressed RLE of the pixels that lie inside of an odd number of rings, so that islands in holes count."""
    return combine([_fill_centres([ring], height, width) for ring in rings], np.logical_xor, height, width)


def combine(codes: Sequence[dict], operation: np.ufunc, height: int, width: int) -> dict:
    """The compressed RLE of masks of an image of this size, in a canvas no larger than the part that they cover.

    codes: RLEs. operation: what joins the first with the second, the result with the third ...: np.logical_or,
        np.logical_xor, or np.greater for "and not".
    """
    crops = [Bitmap(*utils.rle_to_crop(code)) for code in codes]
    covers = [crop for crop in crops if crop.mask.size]
    if not covers:
        return utils.polygons_to_rle([], height, width)
    top, left = min(crop.y for crop in covers), min(crop.x for crop in covers)
    bottom, right = (max(crop[axis] + crop.mask.shape[axis] for crop in covers) for axis in (0, 1))
    canvas = np.zeros((bottom - top, right - left), bool)
    for number, (y, x, mask) in enumerate(crops):
        if mask.size:
            part = canvas[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]]
            (operation if number else np.logical_or)(part, mask, out=part)
    return crop_to_rle(top, left, canvas, (height, width))


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """A ring of 128 points. x, y: centre. rx, ry: half axes. angle: radians, from x towards y (clockwise as seen)."""
    turns = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    points = np.stack([rx * np.cos(turns), ry * np.sin(turns)], axis=1)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """A ring of the four corners."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


############################################################
#  Pictures
############################################################

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(slots=True)
class Picture:
    """An image file and its objects.

    A reader fills in the first five fields; data/reading.py the others, from the header of the image file.
    """

    path: Path | None  # None: the label file holds the pixels, see embedded
    label: str  # its label file, relative to the data set, for messages; empty if there is none
    label_size: tuple[int, int] | None = None  # (height, width) as the label file says it
    split: str | None = None  # one of SPLITS; None: the set has no splits
    objects: list[Object] = dataclasses.field(default_factory=list)
    is_labelled: bool = True  # False: no label file says anything of it, not even that it has no objects
    embedded: Callable[[], np.ndarray] | None = None  # reads the pixels if there is no file; picklable
    height: int = 0  # of the picture as it is loaded; coordinates of objects are in its pixels
    width: int = 0
    is_stored: bool = False  # loaded without turning it as EXIF says, because its labels are of the stored pixels
    labelled_classes: tuple[str, ...] | None = None  # names of the classes that are labelled in it; None: all
    georeference: Georeference | None = None  # where it lies on a map, for writers

    @property
    def name(self) -> str:
        """A name for messages."""
        return self.path.name if self.path is not None else self.label


############################################################
#  Findings
############################################################

ERROR, WARNING, REMARK = "error", "warning", "remark"
SEVERITIES = (ERROR, WARNING, REMARK)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault or remark, in the words that check prints: "{count} {what}: {places}: {done}   {fix}"."""

    severity: str
    what: str  # a noun and a verb in the plural: "polygons have fewer than 3 points"
    done: str  # what was done about it: "left out", "taken as objects"
    fix: str = ""  # an option that changes it, or how to mend the data


class Findings:
    """All faults of a data set, each with the places that have it, in the order in which they were found."""

    def __init__(self) -> None:
        self.places: dict[Fault, list[str]] = {}

    def add(self, fault: Fault, *places: str) -> None:
        """Adds places, such as "train/a.json: shape 3", to those of a fault. No places: nothing happens."""
        if places:
            self.places.setdefault(fault, []).extend(places)

    def of(self, severity: str) -> dict[Fault, list[str]]:
        """The faults of a severity and their places."""
        return {fault: places for fault, places in self.places.items() if fault.severity == severity}

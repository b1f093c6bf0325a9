"""Measurements of objects: sizes, places and brightness, in pixels and in micrometres.

(0, 0) is the outer corner of the first pixel, so the centre of this pixel is (0.5, 0.5).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import skimage

import utils
from data.tiff import is_tiff, open_tiff

############################################################
#  Objects
############################################################


class Measurements(NamedTuple):
    """Of an object, in pixels and in the picture's own values."""

    x: int  # the box around the mask
    y: int
    width_of_box: int
    height_of_box: int
    area: int
    perimeter: float  # along the centres of the pixels at the border, as scikit-image's regionprops has it
    length: float  # of the smallest rectangle around the object, turned in any way
    width: float
    diameter: float  # of a circle of the same area
    centroid_x: float
    centroid_y: float
    touches_edge: bool  # the object may go on outside of the picture
    means: tuple[float, ...]  # of each channel
    deviations: tuple[float, ...]  # standard deviations, of the pixels as they are (divided by their number)


def measure(rle: dict, values: np.ndarray | None) -> Measurements:
    """Measures an object.

    rle: of its mask, which is not empty. values: [H, W, C], the picture; None: means and deviations are left empty.

    Raises: ValueError for an empty mask, and for a picture of another size.
    """
    y, x, crop = utils.rle_to_crop(rle)
    height, width = rle["size"]
    if not crop.size:
        raise ValueError("an object without a pixel has no measurements")
    if values is not None and values.shape[:2] != (height, width):
        raise ValueError(f"the picture is {list(values.shape[:2])}, and the mask {[height, width]} (height, width)")
    rows, columns = np.nonzero(crop)
    area = len(rows)
    length, short = turned_sides(crop)
    means = deviations = ()
    if values is not None:
        pixels = values[y : y + crop.shape[0], x : x + crop.shape[1]][crop].astype(np.float64)  # [area, C]
        means, deviations = tuple(pixels.mean(axis=0).tolist()), tuple(pixels.std(axis=0).tolist())
    touches = y == 0 or x == 0 or y + crop.shape[0] == height or x + crop.shape[1] == width
    return Measurements(
        x, y, crop.shape[1], crop.shape[0], area, float(skimage.measure.perimeter(np.pad(crop, 1))), length, short,
        float(np.sqrt(4 * area / np.pi)), float(columns.mean()) + x + 0.5, float(rows.mean()) + y + 0.5, touches,
        means, deviations,
    )  # fmt: skip


def turned_sides(mask: np.ndarray) -> tuple[float, float]:
    """The long and the short side of the smallest rectangle around a mask's pixels. One of its sides is on the hull.

    mask: bool [H, W], with a pixel at least.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([x, rows + below], axis=1) for x in (first, last) for below in (0, 1)])
    hull = points[scipy.spatial.ConvexHull(points).vertices].astype(np.float64)
    sides = np.roll(hull, -1, axis=0) - hull
    along = sides / np.hypot(*sides.T)[:, None]  # [E, 2], the direction of each side of the hull
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    extents = np.stack([np.ptp(hull @ along.T, axis=0), np.ptp(hull @ across.T, axis=0)])  # [2, E]
    smallest = extents[:, extents.prod(axis=0).argmin()]
    return float(smallest.max()), float(smallest.min())


############################################################
#  Size of a pixel
############################################################

_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4,
    "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "meter": 1e6, "inch": 25400.0, "in": 25400.0,
    "metre": 1e6, "decimeter": 1e5, "centimeter": 1e4, "millimeter": 1e3, "nanometer": 1e-3, "picometer": 1e-6,
    "angstrom": 1e-4,
}  # fmt: skip
_CENTIMETRES = 3  # TIFF's ResolutionUnit
MOST_MICROMETRES = 20.0  # of a plain TIFF's pixel: more is the resolution of a print, which programs write unasked
SQUARE = 0.01  # sides of a pixel may differ by this share


def pixel_size(path: Path) -> float | None:
    """The side of a picture's pixels in micrometres, by the metadata of a TIFF; None if they do not say it.

    As tiff_pixel_size.
    """
    try:
        with path.open("rb") as file:
            if not is_tiff(file):
                return None
            with open_tiff(file) as tiff:
                return tiff_pixel_size(tiff)
    except Exception:  # tifffile raises errors of many kinds, and a picture without a scale is a picture all the same
        return None


def tiff_pixel_size(tiff: Any) -> float | None:
    """The side of the pixels of a TiffFile in micrometres, or None.

    Read are OME (PhysicalSizeX and Y), Aperio's slides (MPP), ImageJ (the unit and the resolution), and of other TIFFs
    a resolution in centimetres that is finer than MOST_MICROMETRES. Pixels that are not square have none.
    """
    try:
        return square_side(_of_ome(tiff) if tiff.is_ome else _of_slide(tiff) if tiff.is_svs else _of_tags(tiff))
    except Exception:  # as in pixel_size
        return None


def square_side(sides: tuple[float, float] | None) -> float | None:
    """The side of pixels whose two sides are about equal; None for others, and for what is no size."""
    if sides is None or not all(np.isfinite(side) and side > 0 for side in sides):
        return None
    return sides[0] if abs(sides[0] / sides[1] - 1) <= SQUARE else None


def in_micrometres(number: float, unit: str) -> float | None:
    """A length in a unit such as "µm", "nm" or "inch" in micrometres; None for an unknown unit."""
    factor = _MICROMETRES.get(_unit(unit))
    return None if factor is None else number * factor


def _of_slide(tiff: Any) -> tuple[float, float] | None:
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", tiff.pages[0].description)
    return (float(found[1]),) * 2 if found else None


def _of_ome(tiff: Any) -> tuple[float, float] | None:
    sides = []
    for axis in "XY":
        number = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', tiff.ome_metadata)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', tiff.ome_metadata)
        factor = _MICROMETRES.get(_unit(unit[1]) if unit else "µm")
        if number is None or factor is None:
            return None
        sides.append(float(number[1]) * factor)
    return sides[0], sides[1]


def _of_tags(tiff: Any) -> tuple[float, float] | None:
    """By the resolution: pixels a unit, of ImageJ's own unit, or of centimetres."""
    tags = tiff.pages[0].tags
    resolutions = [tags.valueof(number) for number in (282, 283)]  # (numerator, denominator)
    if not all(isinstance(value, tuple) and len(value) == 2 and min(value) > 0 for value in resolutions):
        return None
    sides = [denominator / numerator for numerator, denominator in resolutions]
    if tiff.is_imagej:
        factor = _MICROMETRES.get(_unit(str((tiff.imagej_metadata or {}).get("unit", ""))))
        return None if factor is None else (sides[0] * factor, sides[1] * factor)
    if tags.valueof(296) != _CENTIMETRES:
        return None
    sides = [side * _MICROMETRES["cm"] for side in sides]
    return (sides[0], sides[1]) if max(sides) <= MOST_MICROMETRES else None


def _unit(text: str) -> str:
    """A unit as _MICROMETRES has it: the Greek letter and the sign micro are one, also where they are escaped."""
    text = text.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("&#181;", "µ").replace("\u03bc", "µ")
    return text if text in _MICROMETRES else text.lower()

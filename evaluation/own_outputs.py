"""What custom.py detect writes about a picture: the drawn one, rows of the table of objects, objects for labels.

own_results.py writes the files of all pictures. The number of an object is the same everywhere: its place among those
of its picture, best mask first.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

import fonts
import visualize
from captions import Caption
from data.georeference import Georeference
from data.measurements import Measurements, measure
from data.records import Object
from data.writers.common import number_names
from data.writers.streams import stream_csv

from .own_detect import PictureResults

############################################################
#  Pictures
############################################################


def drawn_names(names: Iterable[str]) -> list[str]:
    """The name of each drawn picture: that of the picture, with the suffix .jpg. Equal ones get numbers."""
    return [f"{name}.jpg" for name in number_names(str(PurePosixPath(name).with_suffix("")) for name in names)]


def draw(image: np.ndarray, results: PictureResults, class_names: Sequence[str]) -> np.ndarray:
    """The picture with its masks and captions: the number of the object, its class and scores.

    Boxes are left out: they would hide small objects that lie side by side.
    """
    found = results.found
    captions = visualize.captions_of(found.to_result(), class_names)
    numbered = [Caption(f"{number} {fonts.one_line(text)}", str(number)) for number, text in enumerate(captions, 1)]
    return visualize.draw_instances(image, found.rois, found.masks, numbered, alpha=0.3, show_bbox=False)


############################################################
#  The table of objects
############################################################

_SCORES = ("class_score", "predicted_iou", "mask_score", "accept")


def rows_of(
    results: PictureResults, values: np.ndarray | None, class_names: Sequence[str], scale: float | None = None,
    georeference: Georeference | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each object, by column. Columns of micrometres are there if the size of pixels is known.

    values: [H, W, C], the picture's own. scale: micrometres a pixel. georeference: of the picture, for MAP_COLUMNS.
    """
    places = class_names, scale, georeference
    return [row_of(results, i, i + 1, measure(rle, values), *places) for i, rle in enumerate(results.found.masks)]


def row_of(
    results: PictureResults, i: int, number: int, taken: Measurements, class_names: Sequence[str], scale: float | None,
    georeference: Georeference | None,
) -> dict[str, Any]:  # fmt: skip
    """The row of an object, by column. i: its place among the results. number: in all files. The rest: as rows_of."""
    found = results.found
    scores = (
        found.scores[i],
        None if found.mask_ious is None else found.mask_ious[i],
        found.mask_scores[i],
        None if results.accept is None else results.accept[i],
    )
    row = {"file": results.picture.name, "number": number, "class": class_names[int(found.class_ids[i])]}
    row |= {name: None if score is None else float(score) for name, score in zip(_SCORES, scores, strict=True)}
    if georeference is not None:
        row |= zip(MAP_COLUMNS, georeference.place(taken.centroid_x, taken.centroid_y), strict=True)
    return row | _in_pixels(taken) | _in_micrometres(taken, scale) | _brightness(taken)


def _in_pixels(taken: Measurements) -> dict[str, Any]:
    return {
        "box_x_px": taken.x, "box_y_px": taken.y, "box_width_px": taken.width_of_box,
        "box_height_px": taken.height_of_box, "area_px": taken.area, "perimeter_px": taken.perimeter,
        "length_px": taken.length, "width_px": taken.width, "equivalent_diameter_px": taken.diameter,
        "centroid_x_px": taken.centroid_x, "centroid_y_px": taken.centroid_y,
        "touches_edge": "yes" if taken.touches_edge else "no",
    }  # fmt: skip


def _in_micrometres(taken: Measurements, scale: float | None) -> dict[str, Any]:
    if scale is None:
        return {}
    sides = {
        "perimeter_um": taken.perimeter, "length_um": taken.length, "width_um": taken.width,
        "equivalent_diameter_um": taken.diameter, "centroid_x_um": taken.centroid_x, "centroid_y_um": taken.centroid_y,
    }  # fmt: skip
    scaled = {name: value * scale for name, value in sides.items()}
    return {"pixel_size_um": scale, "area_um2": taken.area * scale**2, **scaled}


def _brightness(taken: Measurements) -> dict[str, float]:
    row = {}
    for channel, (mean, deviation) in enumerate(zip(taken.means, taken.deviations, strict=True), 1):
        row |= {f"mean_{channel}": mean, f"deviation_{channel}": deviation}
    return row


_COLUMNS = (
    "file", "number", "class", *_SCORES, "box_x_px", "box_y_px", "box_width_px", "box_height_px", "area_px",
    "perimeter_px", "length_px", "width_px", "equivalent_diameter_px", "centroid_x_px", "centroid_y_px", "touches_edge",
)  # fmt: skip
_SIZED_COLUMNS = (
    "pixel_size_um", "area_um2", "perimeter_um", "length_um", "width_um", "equivalent_diameter_um", "centroid_x_um",
    "centroid_y_um",
)  # fmt: skip


MAP_COLUMNS = ("centroid_map_x", "centroid_map_y")  # of pictures that lie on a map
TILE_COLUMNS = ("pieces", "is_cut")  # of large pictures: of how many tiles' views an object is joined, and if it is cut


class Table(NamedTuple):
    """Which columns a table of objects has."""

    is_sized: bool = False  # columns of micrometres
    channels: int = 0  # that have a mean and a deviation
    is_mapped: bool = False  # MAP_COLUMNS
    is_tiled: bool = False  # TILE_COLUMNS

    @property
    def columns(self) -> list[str]:
        brightness = [f"{kind}_{channel}" for channel in range(1, self.channels + 1) for kind in ("mean", "deviation")]
        sized, mapped = _SIZED_COLUMNS if self.is_sized else (), MAP_COLUMNS if self.is_mapped else ()
        return [*_COLUMNS, *sized, *mapped, *brightness, *(TILE_COLUMNS if self.is_tiled else ())]

    @classmethod
    def joined(cls, tables: Iterable["Table"]) -> "Table":
        """All columns that one of several tables has."""
        return cls(*map(max, zip(cls(), *tables, strict=True)))

    def write(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Writes rows as CSV, one after the other, completely or not at all. What a row does not have stays empty."""
        stream_csv(path, itertools.chain([self.columns], map(self._cells, rows)))

    def _cells(self, row: dict[str, Any]) -> list[Any]:
        return [_cell(row.get(name), 12 if name in MAP_COLUMNS else 6) for name in self.columns]


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """The columns that some rows need: of micrometres, of channels and of a map those that a row has."""
    channels = max((sum(name.startswith("mean_") for name in row) for row in rows), default=0)
    return Table(
        any("pixel_size_um" in row for row in rows), channels, any(row.keys() & set(MAP_COLUMNS) for row in rows)
    )


def _cell(value: Any, digits: int) -> Any:
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else value


############################################################
#  Objects
############################################################


def objects_of(entry: PictureResults, class_names: Sequence[str]) -> list[Object]:
    """The detections in a picture as objects."""
    codes = enumerate(entry.found.masks)
    return [object_of(entry, i, i + 1, class_names, rle) for i, rle in codes]


def object_of(
    entry: PictureResults, i: int, number: int, class_names: Sequence[str], rle: dict | None = None
) -> Object:
    """The detection at place i of the results as an object, its number and scores as attributes.

    number: in all files. rle: of its mask in the picture.
    """
    found = entry.found
    attributes: dict[str, float | str] = {"number": number, "score": _rounded(found.scores[i])}
    if found.mask_ious is not None:
        attributes["mask_iou"] = _rounded(found.mask_ious[i])
    attributes["mask_score"] = _rounded(found.mask_scores[i])
    if entry.accept is not None:
        attributes["accept"] = _rounded(entry.accept[i])
    return Object(class_names[int(found.class_ids[i])], f"object {number}", rle=rle, attributes=attributes)


def _rounded(score: float) -> float:
    return round(float(score), 6)

"""What custom.py detect writes: pictures with masks, a table of objects, labels for tools.

    OUTPUT/pictures/NAME.jpg     each picture with its masks; captions begin with the number of the object
    OUTPUT/objects.csv           a row for each object
    OUTPUT/annotations.json      all objects as annotations in COCO's format, and results.json as COCO's results
    OUTPUT/FORMAT/               labels in a format of data/writers/, to be corrected in its tool

The number of an object is the same everywhere: its place among those of its picture, best mask first.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

import fonts
import runtime
import utils
import visualize
from captions import Caption
from config import Config
from data.images import image_size, read_values
from data.measurements import Measurements, measure, pixel_size
from data.recognise import Records
from data.records import Findings, Object, Picture
from data.sources import is_address, local_copy
from data.writers.all import WRITERS
from data.writers.common import counted, number_names, write_json
from data.writers.pictures import LONGEST_JPEG, comment_of, save_picture
from data.writers.streams import stream_csv

from .own_detect import PictureResults, PictureSet, find_results, gathered, results_of
from .stream import read_span

PICTURES, TABLE = "pictures", "csv"
KINDS = (PICTURES, TABLE, *WRITERS)  # what --to takes
DEFAULT_KINDS = (PICTURES, "coco", TABLE)
DOUBTFUL = 0.5  # an object is doubtful if its chance to be good is below it,
DOUBTFUL_IOU = 0.7  # or where the model is not calibrated, its predicted IoU is below this


class Request(NamedTuple):
    """What is to be written."""

    kinds: Sequence[str]  # of KINDS
    threshold: float  # the least mask score; without a MaskIoU head, class score
    pixel_size: float | None  # micrometres; None: by the metadata of each picture
    class_names: Sequence[str]  # [K], background first
    config: Config  # of the model


class Outcome(NamedTuple):
    """What was written."""

    results: list[PictureResults]  # in the order of the pictures
    failures: dict[str, str]  # {address: why the picture could not be read}
    sized: int  # pictures whose pixels have a known size


############################################################
#  All outputs
############################################################


def write_outputs(dataset: PictureSet, folder: Path, evaluation: str, request: Request, root: str) -> Outcome:
    """Writes all that was asked for, of the pictures that have results. All processes of a group call it together.

    Each process draws and measures its share of the pictures; the first one writes the files about all of them.
    root: the folder of the pictures.

    Returns: the same in all processes.
    """
    spans = find_results(folder, evaluation)
    chosen = [i for i in dataset.image_ids.tolist() if dataset.number(i) in spans]
    names = drawn_names([dataset.pictures[i].name for i in chosen])
    parts = []
    for image_id, name in list(zip(chosen, names, strict=True))[runtime.rank() :: runtime.world_size()]:
        line = read_span(spans[dataset.number(image_id)])
        try:
            parts.append((image_id, *_write_picture(dataset, image_id, line, folder / PICTURES / name, request)))
        except (OSError, ValueError) as error:
            parts.append((image_id, None, [], str(error) or type(error).__name__))
    rows = sorted((entry for part in gathered(parts) for entry in part), key=lambda entry: entry[0])
    results = [entry[1] for entry in rows if entry[1] is not None]
    failures = {dataset.pictures[entry[0]].address: entry[3] for entry in rows if entry[1] is None}
    if runtime.rank() == 0:
        if TABLE in request.kinds:
            table_rows = [row for entry in rows for row in entry[2]]
            table_of(table_rows).write(folder / "objects.csv", table_rows)
        write_labels(results, folder, request, root)
    return Outcome(results, failures, sum(entry[3] is not None for entry in rows if entry[1] is not None))


def _write_picture(dataset: PictureSet, image_id: int, line: Any, path: Path, request: Request) -> tuple:
    """Draws and measures a picture, as far as it was asked for.

    Returns: its results, its rows of the table, and the size of its pixels or None.
    Raises: ValueError or OSError if the picture cannot be read.
    """
    picture = dataset.pictures[image_id]
    scale, rows = request.pixel_size, []
    if line.masks and not {TABLE, PICTURES} & set(request.kinds):  # nothing but the line is needed
        size = tuple(line.masks[0]["segmentation"]["size"])
        return results_of(picture, size, line, request.config, request.threshold), rows, scale
    with local_copy(picture.address) as file:
        results = results_of(picture, image_size(file).shown, line, request.config, request.threshold)
        if TABLE in request.kinds:
            scale = scale or pixel_size(file)
            rows = rows_of(results, read_values(file), scale, request.class_names)
        if PICTURES in request.kinds:
            _draw_once(dataset, file, line, results, path, request)
    return results, rows, scale


############################################################
#  Pictures
############################################################


def drawn_names(names: Iterable[str]) -> list[str]:
    """The name of each drawn picture: that of the picture, with the suffix .jpg. Equal ones get numbers."""
    return [f"{name}.jpg" for name in number_names(str(PurePosixPath(name).with_suffix("")) for name in names)]


def _draw_once(
    dataset: PictureSet, file: Path, line: Any, results: PictureResults, path: Path, request: Request
) -> None:
    """Draws a picture, unless the one that is there shows the same: it has a digest of what it shows as a comment."""
    if max(results.height, results.width) > LONGEST_JPEG:
        path = path.with_suffix(".png")
    shown = [line.file, line.masks, request.threshold, list(request.class_names), None if results.accept is None else 1]
    digest = hashlib.sha256(repr(shown).encode(errors="surrogateescape")).hexdigest()[:32]
    if comment_of(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(draw(dataset.reader.read(file), results, request.class_names), path, digest)


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
    results: PictureResults, values: np.ndarray | None, scale: float | None, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each object, by column. Columns of micrometres are there if the size of pixels is known.

    values: [H, W, C], the picture's own. scale: micrometres a pixel.
    """
    taken = [measure(rle, values) for rle in results.found.masks]
    return [row_of(results, i, i + 1, measurements, scale, class_names) for i, measurements in enumerate(taken)]


def row_of(
    results: PictureResults, i: int, number: int, taken: Measurements, scale: float | None, class_names: Sequence[str]
) -> dict[str, Any]:
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


# Of large pictures: where the centroid lies on the map, of how many tiles' views an object is joined, and if it is cut.
MAP_COLUMNS = ("centroid_map_x", "centroid_map_y")
TILE_COLUMNS = ("pieces", "is_cut")


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
    """The columns that some rows need: of micrometres and of channels those that a row has."""
    channels = max((sum(name.startswith("mean_") for name in row) for row in rows), default=0)
    return Table(any("pixel_size_um" in row for row in rows), channels)


def _cell(value: Any, digits: int) -> Any:
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else value


############################################################
#  Labels
############################################################


def write_labels(results: Sequence[PictureResults], folder: Path, request: Request, root: str) -> list[str]:
    """Writes the labels of all formats that were asked for, and prints what they cannot hold."""
    records = records_of(results, request.class_names, root)
    printed = []
    for kind in request.kinds:
        if kind in (PICTURES, TABLE):
            continue
        notes: list[str] = []
        target = folder if kind == "coco" else folder / kind
        if kind in ("yolo", "voc") and is_address(root):
            raise ValueError(f"--to {kind} needs the pictures beside its labels, and these are in an object store")
        WRITERS[kind](records, target, False, notes)
        printed += [utils.printable(f"{kind}: {text}", 500) for text in notes]
        if kind == "coco":
            write_json(folder / "results.json", coco_results(results))
    if printed:
        print("\n".join(printed))
    return printed


def records_of(results: Sequence[PictureResults], class_names: Sequence[str], root: str) -> Records:
    """The results as records, which every writer takes: an object for each detection, with its scores as attributes."""
    pictures = []
    for entry in results:
        path = Path(root, entry.picture.name)
        picture = Picture(path, "", objects=objects_of(entry, class_names), height=entry.height, width=entry.width)
        if is_address(root):
            picture.embedded = lambda entry=entry: _read_remote(entry.picture.address)
        pictures.append(picture)
    return Records(Path(root), "detections", "", pictures, Findings(), list(class_names)[1:])


def _read_remote(address: str) -> np.ndarray:
    with local_copy(address) as path:
        return utils.read_image(path)


def objects_of(entry: PictureResults, class_names: Sequence[str]) -> list[Object]:
    """The detections in a picture as objects."""
    codes = enumerate(entry.found.masks)
    return [object_of(entry, i, i + 1, class_names, rle) for i, rle in codes]


def object_of(
    entry: PictureResults, i: int, number: int, class_names: Sequence[str], rle: dict | None = None
) -> Object:
    """The detection at place i of the results as an object. rle: of its mask in the picture."""
    found = entry.found
    attributes: dict[str, float | str] = {"score": _rounded(found.scores[i])}
    if found.mask_ious is not None:
        attributes["mask_iou"] = _rounded(found.mask_ious[i])
    attributes["mask_score"] = _rounded(found.mask_scores[i])
    if entry.accept is not None:
        attributes["accept"] = _rounded(entry.accept[i])
    return Object(class_names[int(found.class_ids[i])], f"object {number}", rle=rle, attributes=attributes)


def _rounded(score: float) -> float:
    return round(float(score), 6)


def coco_results(results: Sequence[PictureResults]) -> list[dict[str, Any]]:
    """The detections in COCO's format of results; ids as in annotations.json: from 1, in the same order."""
    entries = []
    for number, entry in enumerate(results, 1):
        entries += entry.found.to_coco(number, range(int(entry.found.class_ids.max(initial=0)) + 1))
    return entries


############################################################
#  Summary
############################################################


def doubtful(entry: PictureResults) -> int:
    """How many objects of a picture the model doubts, see DOUBTFUL."""
    if entry.accept is not None:
        return int((entry.accept < DOUBTFUL).sum())
    return 0 if entry.found.mask_ious is None else int((entry.found.mask_ious < DOUBTFUL_IOU).sum())


def summary(outcome: Outcome, request: Request, folder: Path) -> str:
    """The last line: pictures, objects of each class, how many the model doubts, and where the results are."""
    counts = Counter(request.class_names[i] for entry in outcome.results for i in entry.found.class_ids.tolist())
    total = counts.total()
    classes = utils.listed((f"{utils.printable(name)} {count:,}" for name, count in counts.most_common()), 10)
    words = f"{counted(len(outcome.results), 'pictures')}, {counted(total, 'objects')}"
    words += f" ({classes})" if total else ""
    has_ious = any(entry.found.mask_ious is not None for entry in outcome.results)
    is_calibrated = request.config.ACCEPT_CALIBRATION is not None
    if total and (has_ious or is_calibrated):
        reason = f"accept below {DOUBTFUL:g}" if is_calibrated else f"predicted IoU below {DOUBTFUL_IOU:g}"
        words += f", of which the model doubts {sum(map(doubtful, outcome.results)):,} ({reason})"
    places = {PICTURES: "pictures/", TABLE: "objects.csv", "coco": "annotations.json and results.json"}
    written = ", ".join(places.get(kind, f"{kind}/") for kind in request.kinds)
    return f"{words}: see {written} in {utils.printable(folder, 500)}" if outcome.results else words

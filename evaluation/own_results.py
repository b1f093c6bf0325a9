"""All results of custom.py detect: pictures with masks, a table of objects, labels for tools.

    OUTPUT/pictures/NAME.jpg     each picture with its masks; captions begin with the number of the object
    OUTPUT/objects.csv           a row for each object
    OUTPUT/annotations.json      all objects as annotations in COCO's format, and results.json as COCO's results
    OUTPUT/FORMAT/               labels in a format of data/writers/, to be corrected in its tool

Of a picture that was detected in tiles, large_outputs.py writes the same row by row: pictures/NAME.jpg is a small copy,
and neither its pixels nor its masks are in memory together. Only formats with a file of labels for each picture, other
than LARGE_KINDS, need the codes of all of its masks.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import runtime
import utils
from config import Config
from data.georeference import Georeference
from data.images import image_size, read_values
from data.measurements import pixel_size
from data.recognise import Records
from data.records import Findings, Picture
from data.regions import Source, georeference_of, open_source
from data.sources import PictureFile, is_address, local_copy
from data.writers.all import WRITERS
from data.writers.common import Overlaps, counted, plan_names
from data.writers.pictures import LONGEST_JPEG, comment_of, save_picture
from data.writers.streams import stream_json
from tiles import TiledDetections

from .accept import chances
from .large import LargeImage, TiledResults
from .large_outputs import (
    LARGE_KINDS,
    CocoObjects,
    LargePicture,
    NumberedRows,
    coco_problem,
    coco_results_of,
    table_of_large,
    table_rows,
    write_labels_of_large,
    write_preview,
)
from .own_detect import PictureResults, PictureSet, Run, as_read, find_results, gathered, results_of
from .own_outputs import Table, draw, drawn_names, objects_of, rows_of, table_of
from .stream import Line, read_span

PICTURES, TABLE, COCO = "pictures", "csv", "coco"
KINDS = (PICTURES, TABLE, *WRITERS)  # what --to takes
DEFAULT_KINDS = (PICTURES, COCO, TABLE)
DOUBTFUL = 0.5  # an object is doubtful if its chance to be good is below it,
DOUBTFUL_IOU = 0.7  # or where the model is not calibrated, its predicted IoU is below this


class Request(NamedTuple):
    """What is to be written."""

    kinds: Sequence[str]  # of KINDS
    threshold: float  # the least mask score; without a MaskIoU head, class score
    pixel_size: float | None  # micrometres; None: by the metadata of each picture
    class_names: Sequence[str]  # [K], background first
    config: Config  # of the model


class Facts(NamedTuple):
    """What outputs that read no pixels need of a source."""

    shape: tuple[int, ...]
    pixel_size: float | None
    georeference: Georeference | None


class Entry(NamedTuple):
    """What was written of a picture alone, and what the files of all pictures need of it."""

    image_id: int
    results: PictureResults | None  # without masks if it is large; None if it could not be read
    rows: list[dict[str, Any]]  # of the table; of a large picture none, which are made as they are written
    pixel_size: float | None  # micrometres
    reason: str = ""  # why it could not be read
    large: LargeImage | None = None
    facts: Facts | None = None  # of a large picture
    label: str = ""  # the name of its labels, below the folder of a format
    georeference: Georeference | None = None  # of a picture that is not large


class Outcome(NamedTuple):
    """What was written."""

    results: list[PictureResults]  # in the order of the pictures
    failures: dict[str, str]  # {address: why the picture could not be read}
    sized: int  # pictures whose pixels have a known size


############################################################
#  All outputs
############################################################


def write_outputs(dataset: PictureSet, folder: Path, run: Run, request: Request, root: str) -> Outcome:
    """Writes all that was asked for, of the pictures that have results. All processes of a group call it together.

    Each process draws and measures its share of the pictures; the first one writes the files about all of them.
    run: of detect_pictures. root: the folder of the pictures.

    Returns: the same in all processes.
    """
    spans = find_results(folder, run.evaluation)
    request = request._replace(config=as_read(request.config, run.bits))
    large = {i: image for i, image in run.large.items() if image.path not in run.failures}
    is_there = {i: i in large if i in run.large else dataset.number(i) in spans for i in dataset.image_ids.tolist()}
    chosen = [i for i, has_results in is_there.items() if has_results]
    names = drawn_names([dataset.pictures[i].name for i in chosen])
    labels = label_names([dataset.pictures[i].name for i in sorted(chosen, key=large.__contains__)], root)
    parts = []
    for image_id, name in list(zip(chosen, names, strict=True))[runtime.rank() :: runtime.world_size()]:
        picture, path = dataset.pictures[image_id], folder / PICTURES / name
        try:
            if image_id in large:
                place = (path, labels[picture.name], folder)
                parts.append(_write_large(picture, image_id, large[image_id], *place, request))
            else:
                line = read_span(spans[dataset.number(image_id)])
                parts.append(_write_picture(dataset, image_id, line, path, request))
        except (OSError, ValueError) as error:
            parts.append(Entry(image_id, None, [], None, str(error) or type(error).__name__))
    entries = sorted((entry for part in gathered(parts) for entry in part), key=lambda entry: entry.image_id)
    failures = {dataset.pictures[entry.image_id].address: entry.reason for entry in entries if entry.results is None}
    good = [entry for entry in entries if entry.results is not None]
    if runtime.rank() == 0:
        larges = {
            entry.image_id: as_large(entry.results.picture, entry.large, request, entry.facts)
            for entry in good if entry.large is not None and set(request.kinds) - {PICTURES, "geojson"}
        }  # fmt: skip
        if TABLE in request.kinds:
            write_table(good, larges, folder / "objects.csv")
        write_labels(good, larges, folder, request, root)
    return Outcome([entry.results for entry in good], failures, sum(entry.pixel_size is not None for entry in good))


def label_names(names: Sequence[str], root: str) -> dict[str, str]:
    """The name below a format's folder that the labels of each picture have, by the picture's name.

    names: of large pictures last, as their labels are not written together with the others.
    """
    pictures = [Picture(Path(root, name), "") for name in names]
    records = Records(Path(root), "", "", pictures, Findings())
    return dict(zip(names, plan_names(records, False, None), strict=True))


def _write_picture(dataset: PictureSet, image_id: int, line: Line, path: Path, request: Request) -> Entry:
    """Draws and measures a picture, as far as it was asked for. path: of the drawn one.

    Raises: ValueError or OSError if the picture cannot be read.
    """
    picture = dataset.pictures[image_id]
    scale, rows = request.pixel_size, []
    if line.masks and not {TABLE, PICTURES, "geojson"} & set(request.kinds):  # nothing but the line is needed
        size = tuple(line.masks[0]["segmentation"]["size"])
        results = results_of(picture, size, line, request.config, request.threshold)
        return Entry(image_id, results, rows, scale)
    with local_copy(picture.address) as file:
        results = results_of(picture, image_size(file).shown, line, request.config, request.threshold)
        place = georeference_of(file)
        if TABLE in request.kinds:
            scale = scale or pixel_size(file)
            rows = rows_of(results, read_values(file), request.class_names, scale, place)
        if PICTURES in request.kinds:
            _draw_once(dataset, file, line, results, path, request)
    return Entry(image_id, results, rows, scale, georeference=place)


def _draw_once(
    dataset: PictureSet, file: Path, line: Line, results: PictureResults, path: Path, request: Request
) -> None:
    """Draws a picture, unless the one that is there shows the same: it has a digest of what it shows as a comment."""
    if max(results.height, results.width) > LONGEST_JPEG:
        path = path.with_suffix(".png")
    shown = [line.file, line.masks, request.threshold, list(request.class_names), None if results.accept is None else 1]
    digest = digest_of_shown(shown)
    if comment_of(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(draw(dataset.reader.read(file), results, request.class_names), path, digest)


def digest_of_shown(shown: Sequence[Any]) -> str:
    """32 hexadecimal digits of all that a drawn picture depends on."""
    return hashlib.sha256(repr(shown).encode(errors="surrogateescape")).hexdigest()[:32]


############################################################
#  Large pictures
############################################################


def as_large(picture: PictureFile, image: LargeImage, request: Request, source: Source | Facts) -> LargePicture:
    """A large picture and its objects, as large_outputs.py takes them.

    source: of its pixels; for outputs without pixels, their Facts.
    """
    results = TiledResults(image, request.config)
    objects = NumberedRows(lambda: results, request.threshold)
    scale, names = request.pixel_size or source.pixel_size, request.class_names
    return LargePicture(
        picture, source, objects, request.config, names, scale, source.georeference, verbose=runtime.rank() == 0
    )


def _write_large(
    picture: PictureFile, image_id: int, image: LargeImage, path: Path, label: str, folder: Path, request: Request
) -> Entry:
    """Draws a large picture, and writes its polygons, as far as they were asked for.

    path: of the drawn one. label: its name below the folder of a format. folder: of all outputs.

    Raises: ValueError or OSError if the picture cannot be read.
    """
    with open_source(image.path, request.config.IMAGE_CHANNEL_COUNT) as source:
        large = as_large(picture, image, request, source)
        calibrated = request.config.ACCEPT_CALIBRATION is not None
        shown = [image.evaluation, request.threshold, list(request.class_names), calibrated]
        if PICTURES in request.kinds and comment_of(path) != digest_of_shown(shown):
            write_preview(large, path, digest_of_shown(shown))
        if "geojson" in request.kinds:
            write_labels_of_large(large, "geojson", folder / "geojson", label)
        parts = [dataclasses.replace(found, masks=[]) for found, _ in large.objects]
        found = TiledDetections.cat(parts)
        accept = chances(request.config, found.class_ids, found.scores, found.mask_ious)
        results = PictureResults(picture, *large.size, found, None if accept is None else accept[:, 0])
        facts = Facts(tuple(source.shape), source.pixel_size, source.georeference)
        return Entry(image_id, results, [], large.pixel_size, large=image, facts=facts, label=label)


############################################################
#  The table of objects
############################################################


def write_table(entries: Sequence[Entry], larges: Mapping[int, LargePicture], path: Path) -> None:
    """Writes the rows of all pictures. Those of large ones, by image_id, are made as they are written."""

    def rows() -> Iterator[dict[str, Any]]:
        for entry in entries:
            yield from entry.rows
            if entry.image_id in larges:
                large = larges[entry.image_id]
                with open_source(entry.large.path, large.config.IMAGE_CHANNEL_COUNT) as source:
                    yield from table_rows(large._replace(source=source))

    ordinary = table_of([row for entry in entries for row in entry.rows])
    Table.joined([ordinary, *map(table_of_large, larges.values())]).write(path, rows())


############################################################
#  Labels
############################################################


def write_labels(
    entries: Sequence[Entry], larges: Mapping[int, LargePicture], folder: Path, request: Request, root: str
) -> list[str]:
    """Writes the labels of all formats that were asked for, and prints what they cannot hold.

    larges: the large pictures, by image_id.
    """
    kinds = [kind for kind in request.kinds if kind not in (PICTURES, TABLE)]
    labels = {entry.image_id: entry.label for entry in entries}
    printed: list[str] = []
    for kind in kinds:
        if kind in ("yolo", "voc") and is_address(root):
            raise ValueError(f"--to {kind} needs the pictures beside its labels, and these are in an object store")
        notes: list[str] = []
        problems = {entry.image_id: problem for entry in entries if (problem := _problem(kind, entry, larges))}
        chosen = [entry for entry in entries if entry.image_id not in problems]
        if kind in LARGE_KINDS:
            chosen = [entry for entry in entries if entry.large is None]
        if chosen or not entries:
            WRITERS[kind](records_of(kind, chosen, larges, request, root), _target(kind, folder), False, notes)
        if kind == "label_images":  # polygons are there already
            overlaps = Overlaps()
            for image_id, large in larges.items():
                write_labels_of_large(large, kind, folder / kind, labels[image_id], overlaps)
            overlaps.note(notes)
        if kind == COCO:
            stream_json(folder / "results.json", coco_results(chosen, larges))
        printed += [utils.printable(f"{kind}: {text}", 500) for text in [*notes, *problems.values()]]
    if printed:
        print("\n".join(printed))
    return printed


def _target(kind: str, folder: Path) -> Path:
    return folder if kind == COCO else folder / kind


def _problem(kind: str, entry: Entry, larges: Mapping[int, LargePicture]) -> str | None:
    """Why a large picture is left out in a format other than LARGE_KINDS, as a sentence; None if it is not."""
    if entry.large is None or kind in LARGE_KINDS:
        return None
    if kind in ("yolo", "voc") and Path(entry.large.path).is_dir():
        name = entry.results.picture.name
        return f"left out: {name} is a folder, and labels for {kind} lie beside copies of files"
    problem = coco_problem(larges[entry.image_id])
    return problem and f"left out: {problem}"


def records_of(
    kind: str, entries: Sequence[Entry], larges: Mapping[int, LargePicture], request: Request, root: str
) -> Records:
    """The results as records, which every writer takes: an object for each detection, with its scores as attributes.

    larges: the large pictures, by image_id. COCO's writer gets each of their objects as it writes it.
    """
    pictures = []
    for entry in entries:
        image_id, results = entry.image_id, entry.results
        path = Path(root, results.picture.name)
        if image_id in larges:
            objects = CocoObjects(larges[image_id])
            objects = objects if kind == COCO else sorted(objects, key=lambda each: each.attributes["number"])
        else:
            objects = objects_of(results, request.class_names)
        picture = Picture(path, "", objects=objects, height=results.height, width=results.width)
        picture.georeference = entry.georeference
        if is_address(root):
            picture.embedded = lambda results=results: _read_remote(results.picture.address)
        pictures.append(picture)
    return Records(Path(root), "detections", "", pictures, Findings(), list(request.class_names)[1:])


def _read_remote(address: str) -> np.ndarray:
    with local_copy(address) as path:
        return utils.read_image(path)


def coco_results(entries: Sequence[Entry], larges: Mapping[int, LargePicture]) -> Iterator[dict[str, Any]]:
    """The detections in COCO's format of results; ids as in annotations.json: from 1, in the same order."""
    for number, (image_id, results, *_) in enumerate(entries, 1):
        if image_id in larges:
            yield from coco_results_of(larges[image_id], number)
        else:
            yield from results.found.to_coco(number, range(int(results.found.class_ids.max(initial=0)) + 1))


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

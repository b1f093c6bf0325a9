"""CocoDataset, which reads any file of instances in COCO's format, and checks all that it reads.

The file may be of any data set (load_annotations). load_coco reads COCO itself, from the places that data/coco_files.py
knows.
"""

import contextlib
import io
import json
import logging
import math
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO

import utils
from data.coco_files import (
    ARCHIVES,
    annotation_files,
    choose_year,
    download_coco,
    image_folder,
    is_coco_name,
    missing_annotations,
    missing_images,
)
from data.dataset import Dataset, Instances
from data.file_names import find_files, name_in_entry

logger = logging.getLogger(__name__)


############################################################
#  Annotations as arrays
############################################################

_NO_NUMBER = -(2**63)
_POLYGONS, _RLE, _DAMAGED, _MISSING = range(4)  # kinds of segmentation
_COLLECTED = object()  # stands in the parsed file for an annotation that a _Collector took


def _whole_number(value: Any) -> int:
    """The value, if it is a whole number that every JSON reader represents exactly; else _NO_NUMBER."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**53 else _NO_NUMBER


class _Collector:
    """Takes the annotations out of a file while json.loads parses it, and stores them as numbers.

    json.loads calls it with each object as soon as it has read the object. So only one annotation at a time exists as
    Python lists, which take ten times the memory.
    """

    def __init__(self, image_facts: Sequence[str] = ()) -> None:
        """image_facts: further keys of an image's entry to keep."""
        self.image_keys = ("id", "file_name", "height", "width", *image_facts)
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.crowds, self.kinds = array("b"), array("b")
        self.boxes, self.areas = array("d"), array("d")
        self.ring_counts, self.ring_lengths, self.coordinates = array("q"), array("q"), array("d")
        self.sizes, self.code_lengths, self.codes = array("q"), array("q"), bytearray()
        self.keys = set()  # keys of the first annotation

    def __call__(self, entry: dict) -> Any:
        if "file_name" in entry and "width" in entry:  # an image, without its URLs and dates, which take 100 MB
            return {key: entry[key] for key in self.image_keys if key in entry}
        if "image_id" in entry:
            self._add(entry)
            return _COLLECTED
        return entry

    def _add(self, entry: dict) -> None:
        self.keys = self.keys or set(entry)
        self.ids.append(_whole_number(entry.get("id")))
        self.image_ids.append(_whole_number(entry["image_id"]))
        self.category_ids.append(_whole_number(entry.get("category_id")))
        crowd = entry.get("iscrowd")
        self.crowds.append(0 if crowd is None else int(crowd) if crowd in (0, 1) else -1)
        area = entry.get("area")
        self.areas.append(float(area) if type(area) is float or _whole_number(area) != _NO_NUMBER else math.nan)
        self._add_box(entry.get("bbox"))
        self._add_segmentation(entry.get("segmentation"))

    def _add_box(self, box: Any) -> None:
        start = len(self.boxes)
        with contextlib.suppress(TypeError, OverflowError):
            self.boxes.fromlist(box)
        if len(self.boxes) != start + 4:
            del self.boxes[start:]
            self.boxes.extend((math.nan,) * 4)

    def _add_segmentation(self, segmentation: Any) -> None:
        kind, rings, size, code = _MISSING, [], (0, 0), b""
        if isinstance(segmentation, list):
            kind, rings = _POLYGONS, segmentation
        elif isinstance(segmentation, dict):
            kind = _DAMAGED
            with contextlib.suppress(ValueError, TypeError, OverflowError, KeyError):
                rle = utils.annotation_to_rle(segmentation, *segmentation["size"])
                kind, size, code = _RLE, rle["size"], rle["counts"]
        for ring in rings:
            try:
                self.coordinates.fromlist(ring)
                self.ring_lengths.append(len(ring))
            except (TypeError, OverflowError):
                self.ring_lengths.append(0)
        self.kinds.append(kind)
        self.ring_counts.append(len(rings))
        self.sizes.extend(size)
        self.code_lengths.append(len(code))
        self.codes += code


@dataclass
class _Annotations:
    """A annotations with R polygons of C numbers, as arrays: no annotation is a Python object of its own."""

    ids: np.ndarray  # int64 [A], as the next two
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowds: np.ndarray  # int8 [A], 0 or 1; -1 for any other iscrowd
    kinds: np.ndarray  # int8 [A], _POLYGONS or _RLE
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

    @classmethod
    def from_collector(cls, collector: _Collector) -> "_Annotations":
        """The annotations of a collector, without a copy of the coordinates."""
        fields = ("ids", "image_ids", "category_ids", "crowds", "kinds", "areas", "coordinates")
        return cls(
            **{name: np.asarray(getattr(collector, name)) for name in fields},
            boxes=np.array(collector.boxes).reshape(-1, 4),
            sizes=np.array(collector.sizes).reshape(-1, 2),
            ring_spans=_spans(np.asarray(collector.ring_counts)),
            code_spans=_spans(np.asarray(collector.code_lengths)),
            rings=_spans(np.asarray(collector.ring_lengths)),
            codes=bytes(collector.codes),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, selection: np.ndarray) -> list[int | str]:
        """Names of annotations for messages: the id of each, or its place in the file. selection: bool [A], or rows."""
        rows = np.arange(len(self))[selection].tolist()
        ids = self.ids[rows].tolist()
        return [f"#{row}" if number == _NO_NUMBER else number for row, number in zip(rows, ids, strict=True)]

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
        if self.kinds[row] == _RLE:
            return {"size": [height, width], "counts": self.code(row)}
        return utils.polygons_to_rle(self.polygons(row), height, width)

    def content(self, row: int) -> tuple:
        """All that the file says of a row. Equal contents are the same annotation."""
        fields = [getattr(self, name)[row].tobytes() for name in self.ROWS[:-2]]
        return (*fields, self.code(row), repr(self.polygons(row)))

    def keep_rings(self, good: np.ndarray) -> None:
        """Keeps only these polygons. good: bool [R]."""
        before = np.concatenate([[0], good.cumsum()])
        self.ring_spans = before[self.ring_spans]
        self.rings = self.rings[good]

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


def _spans(lengths: np.ndarray) -> np.ndarray:
    """int64 [N, (first, end)] of pieces that lie one after another. lengths: [N]."""
    ends = lengths.cumsum(dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)


def _gather(values: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of values at these spans, one after another, and their new spans."""
    lengths = spans[:, 1] - spans[:, 0]
    new_spans = _spans(lengths)
    index = np.arange(lengths.sum()) + np.repeat(spans[:, 0] - new_spans[:, 0], lengths)
    return values[index], new_spans


############################################################
#  Annotation files
############################################################


def _read_file(path: Path, image_facts: Sequence[str] = ()) -> tuple[dict[str, Any], _Annotations]:
    """The contents of a file of COCO instances, and its annotations. image_facts: as of CocoDataset.

    Raises: ValueError that names the kind of file, if it is another one.
    """
    collector = _Collector(image_facts)
    contents = _parse(path, collector)
    expected = "It must be a file of COCO instances: images, categories, and annotations with segmentation"
    other_kind = _recognise_other_kinds(contents, collector)
    if other_kind:
        raise ValueError(f"{path} {other_kind}. {expected}")
    for key in ("images", "categories", "annotations"):
        if not isinstance(contents.get(key), list):
            keys = utils.listed(map(repr, contents), 8) or "none"
            raise ValueError(f"{path} has no list {key!r}; its keys are {keys}. {expected}")
    if sum(entry is _COLLECTED for entry in contents["annotations"]) != len(collector.ids):
        raise ValueError(f"{path} has objects with an image_id outside of its annotations. {expected}")
    return contents, _Annotations.from_collector(collector)


def _parse(path: Path, hook: Callable[[dict], Any]) -> Any:
    """json.loads of a file. Raises: ValueError that says what to do."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download it again")
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
    except json.JSONDecodeError as error:
        end = len(error.doc.rstrip())
        cut = error.doc.lstrip()[:1] in ("{", "[") and (error.pos >= end - 10 or error.msg.startswith("Unterminated"))
        problem = "is cut off" if cut else "is not JSON, or damaged"
        place = f"line {error.lineno}, column {error.colno} ({error.msg})"
        message = f"{path} {problem}, at {place}; was its download or copy interrupted? Download it again"
    except UnicodeDecodeError as error:
        cut = error.end == len(error.object)
        problem = "is cut off" if cut else "is no text; is it packed, or another kind of file?"
        message = f"{path} {problem} (at byte {error.start}); if it is the right one, download it again"
    except (ValueError, RecursionError) as error:
        message = f"{path} cannot be read as JSON: {error}"
    raise ValueError(message)  # Outside of the except blocks, because the errors above keep the whole text in memory.


def _recognise_other_kinds(contents: Any, collector: _Collector) -> str:
    """Says what a file is if it is no file of instances; empty if it may be one."""
    keys = collector.keys
    if isinstance(contents, list):
        return "is a list of results, as detection writes them" if "score" in keys else "is a list"
    if not isinstance(contents, dict):
        return f"holds one {type(contents).__name__}"
    if "segments_info" in keys:
        return "has panoptic annotations; their masks are in PNG files"
    if "caption" in keys:
        return "has captions; download has the instances beside it"
    if len(collector.kinds) and all(kind == _MISSING for kind in collector.kinds):
        kind = "keypoints" if "keypoints" in keys else "boxes" if "bbox" in keys else "annotations"
        return f"has {kind} without any segmentation, and masks cannot be learned without"
    if "shapes" in contents and "imagePath" in contents:
        return "is of labelme, one file an image; labelme2coco converts it"
    if any(isinstance(value, dict) and "regions" in value for value in contents.values()):
        return "is of the VGG Image Annotator, which can export COCO"
    if "images" in contents and "annotations" not in contents:
        return "has images without annotations, as COCO's image_info of test has: those labels are not published"
    return ""


def _minival_filter(val2014: Path, val2017: Path, subset: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from image ids [N] of 2014's val to bool [N]: whether each belongs to minival or valminusminival."""
    entries = _read_file(val2017)[0]["images"]
    minival = [_whole_number(entry.get("id")) for entry in entries if isinstance(entry, dict)]
    if len(minival) != ARCHIVES["val2017"].images:
        logger.warning(
            "%s of %s differs from the published one: %s has %d images instead of %d",
            subset, val2014, val2017, len(minival), ARCHIVES["val2017"].images,
        )  # fmt: skip
    return lambda ids: np.isin(ids, minival) == (subset == "minival")


############################################################
#  Checks
############################################################

Skipped = dict[str, list]  # {problem: labels of the images, categories or annotations that have it}


def _note(skipped: Skipped, problem: str, labels: Iterable) -> None:
    labels = list(labels)
    if labels:
        skipped.setdefault(problem, []).extend(labels)


def _summary(skipped: Skipped) -> str:
    """A line for each problem."""
    problems = skipped.items()
    return "\n".join(f"    {len(labels):,} {name}: {utils.listed(map(repr, labels), 3)}" for name, labels in problems)


def _check_categories(path: Path, entries: list, skipped: Skipped) -> dict[int, str]:
    """{category id: name}, ascending."""
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        category = _whole_number(entry.get("id")) if isinstance(entry, dict) else _NO_NUMBER
        name = entry.get("name") if isinstance(entry, dict) else None
        if category < 0 or not isinstance(name, str) or not name:
            raise ValueError(
                f"{path}: category number {i} must have an id, a whole number, and a name, got {entry!r:.200}"
            )
        if names.get(category, name) != name:
            raise ValueError(
                f"{path}: category id {category} is {names[category]!r} and {name!r}; which of them do its annotations "
                "mean? Were two files joined without new ids?"
            )
        _note(skipped, "categories that are listed twice (kept once)", [category] if category in names else [])
        names[category] = name
    first_ids: dict[str, int] = {}
    for category in sorted(names):
        is_repeated = first_ids.setdefault(names[category], category) != category
        problem = "categories with the name of another (kept apart; class_map joins them)"
        _note(skipped, problem, [category] if is_repeated else [])
    return {category: names[category] for category in sorted(names)}


def _choose_classes(path: Path, categories: dict[int, str], class_ids: Sequence[int] | None) -> dict[int, str]:
    """The categories that class_ids names, ascending; all of them for None."""
    if class_ids is None:
        return categories
    chosen = set(class_ids)
    if not chosen or not chosen <= categories.keys():
        choices = utils.listed([f"{category} {name}" for category, name in categories.items()])
        raise ValueError(f"class_ids must be some of the category ids of {path}: {choices}; not {list(class_ids)}")
    return {category: name for category, name in categories.items() if category in chosen}


def _check_class_map(class_map: Mapping[str, str] | None, source: str, categories: dict[int, str]) -> dict[str, str]:
    unknown = (class_map or {}).keys() - {f"{source}.{category}" for category in categories}
    if unknown:
        raise ValueError(
            f"class_map must name classes that are loaded, as '{source}.{next(iter(categories), 1)}', not "
            f"{utils.listed(sorted(map(repr, unknown)))}; is that no category id, or is it missing in class_ids?"
        )
    return dict(class_map or {})


class _Images(NamedTuple):
    """The images of a file, ascending by id."""

    ids: np.ndarray  # int64 [I]
    names: list[str]  # paths below the image folder
    sizes: np.ndarray  # int64 [I, (height, width)]; zeros for an image that is not usable
    usable: np.ndarray  # bool [I]
    facts: list[dict[str, Any]]  # those of CocoDataset.IMAGE_FACTS that the file has


# An image with one of these problems is left out.
_LOST = {
    "id": "images without an id that is a whole number (skipped)",
    "name": "images without a file_name (skipped)",
    "outside": "images whose file_name leads out of the data folder (skipped)",
    "ambiguous": "images whose file_name fits several files, or whose file fits several names (skipped)",
    "size": "images without a usable height and width (skipped)",
    "file": "images without a file (skipped)",
}


def _check_images(
    dataset: "CocoDataset", path: Path, entries: list, folder: Path, is_coco: bool, skipped: Skipped
) -> _Images:
    """Finds the usable images: their size is known, and their file lies in the folder.

    dataset: its class says how to read an entry, by file_name and IMAGE_FACTS.
    """
    by_id = _unique_images(dataset, path, entries, skipped)
    ids = np.array(sorted(by_id), np.int64)
    names, sizes, usable = [], np.zeros((len(ids), 2), np.int64), np.zeros(len(ids), bool)
    found, missing = find_files(folder, [dataset.file_name(by_id[image_id]) for image_id in ids.tolist()]), []
    for i, image_id in enumerate(ids.tolist()):
        entry = by_id[image_id]
        name = dataset.file_name(entry)
        size = [_whole_number(entry.get("height")), _whole_number(entry.get("width"))]
        names.append(found[i].path or name)
        if not isinstance(name, str) or not name:
            _note(skipped, _LOST["name"], [image_id])
        elif found[i].leads_out:
            _note(skipped, _LOST["outside"], [name])
        elif found[i].candidates:
            _note(skipped, _LOST["ambiguous"], [f"{name} ({utils.listed(found[i].candidates, 2)})"])
        elif min(size) < 1 or size[0] * size[1] > utils.MAX_IMAGE_PIXELS:
            _note(skipped, _LOST["size"], [name])
        elif found[i].path is None:
            missing.append(name)
        else:
            usable[i], sizes[i] = True, size
    texts = [name for name in names if isinstance(name, str) and name]
    if texts and not any(match.path or match.candidates for match in found):
        raise missing_images(folder, texts[0], is_coco)
    _note(skipped, _LOST["file"], missing)
    facts = [{key: entry[key] for key in dataset.IMAGE_FACTS if key in entry} for _, entry in sorted(by_id.items())]
    return _Images(ids, names, sizes, usable, facts)


def _unique_images(dataset: "CocoDataset", path: Path, entries: list, skipped: Skipped) -> dict[int, dict]:
    """{image id: entry}. Raises: ValueError if two different images have one id."""
    by_id: dict[int, dict] = {}
    for i, entry in enumerate(entries):
        image_id = _whole_number(entry.get("id")) if isinstance(entry, dict) else _NO_NUMBER
        if image_id == _NO_NUMBER:
            name = dataset.file_name(entry) if isinstance(entry, dict) else None
            _note(skipped, _LOST["id"], [name or f"#{i}"])
            continue
        if by_id.setdefault(image_id, entry) != entry:
            raise ValueError(
                f"{path}: image id {image_id} is {by_id[image_id]!r:.200} and {entry!r:.200}; which of them do its "
                "annotations mean? Were two files joined without new ids?"
            )
        if by_id[image_id] is not entry:
            _note(skipped, "images that are listed twice (kept once)", [image_id])
    return by_id


class _AnnotationChecks:
    """The annotations of a file, and which of them have passed all checks so far."""

    def __init__(self, table: _Annotations, skipped: Skipped) -> None:
        self.table, self.skipped = table, skipped
        self.good = np.ones(len(table), bool)

    def drop(self, problem: str, wrong: np.ndarray) -> None:
        """Reports a problem and leaves out the annotations that have it. wrong: bool [A]."""
        self.note(problem, wrong)
        self.good &= ~wrong

    def note(self, problem: str, wrong: np.ndarray) -> None:
        """Reports a problem of annotations that are kept. wrong: bool [A]."""
        if wrong.any():
            _note(self.skipped, problem, self.table.labels(wrong & self.good))


def _check_annotations(
    table: _Annotations, images: _Images, categories: Mapping[int, str], skipped: Skipped
) -> np.ndarray:
    """Corrects annotations where that is possible. Returns: bool [A], the annotations that can be used."""
    rows = _AnnotationChecks(table, skipped)
    renamed = _check_ids(rows)
    image = np.searchsorted(images.ids, table.image_ids).clip(max=max(len(images.ids) - 1, 0))  # [A]
    has_image = images.ids[image] == table.image_ids if len(images.ids) else np.zeros(len(table), bool)
    rows.drop("annotations of images that are not in the file (skipped)", ~has_image)
    if not rows.good.any():
        return rows.good
    rows.good &= images.usable[image]  # _check_images has reported the others
    rows.drop("annotations of unknown categories (skipped)", ~np.isin(table.category_ids, list(categories)))
    rows.drop("annotations with an iscrowd other than 0 and 1 (skipped)", table.crowds < 0)
    _check_segmentations(rows, images.sizes[image])
    _check_boxes(rows, images.sizes[image])
    first_id = max(int(table.ids.max(initial=0)), 0) + 1
    table.ids = table.ids.copy()
    table.ids[renamed & rows.good] = np.arange(first_id, first_id + (renamed & rows.good).sum())
    return rows.good


def _check_ids(rows: _AnnotationChecks) -> np.ndarray:
    """Drops exact repeats. Returns: bool [A], the annotations that need new ids."""
    ids, table = rows.table.ids, rows.table
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    repeated, shared, contents = np.zeros(len(ids), bool), np.zeros(len(ids), bool), {}
    for row in np.flatnonzero((counts[inverse] > 1) & (ids != _NO_NUMBER)).tolist():
        earlier = contents.setdefault(int(ids[row]), set())
        content = table.content(row)
        repeated[row], shared[row] = content in earlier, bool(earlier)
        earlier.add(content)
    rows.drop("annotations that are listed twice (kept once)", repeated)
    problem = "annotation ids that several annotations have (kept, with new ids; were files joined?)"
    rows.note(problem, shared & ~repeated)
    rows.note("annotations without an id (kept, with new ids)", ids == _NO_NUMBER)
    rows.note("annotations of id 0, which pycocotools takes for none (kept, with new ids)", ids == 0)
    return shared | (ids == _NO_NUMBER) | (ids == 0)


def _check_segmentations(rows: _AnnotationChecks, sizes: np.ndarray) -> None:
    """Drops annotations without a usable mask. sizes: [A, (height, width)] of the images."""
    table = rows.table
    rows.drop("annotations without a segmentation (skipped)", table.kinds == _MISSING)
    rows.drop("annotations with a damaged RLE (skipped)", table.kinds == _DAMAGED)
    differs = (table.kinds == _RLE) & (table.sizes != sizes).any(axis=1)
    rows.drop("annotations with an RLE of another size than the image (skipped)", differs)
    _check_polygons(rows)
    is_empty = (table.kinds == _POLYGONS) & (table.ring_spans[:, 0] == table.ring_spans[:, 1])
    rows.drop("annotations without any good polygon (skipped)", is_empty)


def _check_polygons(rows: _AnnotationChecks) -> None:
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
    owners = np.repeat(np.arange(len(table)), table.ring_spans[:, 1] - table.ring_spans[:, 0])  # [R]
    for problem, wrong in problems.items():
        _note(rows.skipped, problem, table.labels(owners[wrong & rows.good[owners]]))
    wrong = np.logical_or.reduce(list(problems.values()))
    if wrong.any():
        table.keep_rings(~wrong)


def _check_boxes(rows: _AnnotationChecks, sizes: np.ndarray) -> None:
    """Replaces unusable boxes and areas by those of the masks, and drops objects outside of the image.

    sizes: [A, (height, width)] of the images.
    """
    table = rows.table
    is_box = (np.abs(table.boxes) <= utils.MAX_COORDINATE).all(axis=1) & (table.boxes[:, 2:] >= 0).all(axis=1)
    no_box = ~is_box & rows.good
    no_area = ~(np.isfinite(table.areas) & (table.areas >= 0)) & rows.good
    rows.note("annotations without a usable bbox (made from the mask)", no_box)
    rows.note("annotations without a usable area (made from the mask)", no_area)
    table.areas = table.areas.copy()
    for row in np.flatnonzero(no_box | no_area).tolist():
        rle = table.rle(row, *sizes[row].tolist())
        if no_area[row]:
            table.areas[row] = utils.rle_area(rle)
        if no_box[row]:
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            table.boxes[row] = x1, y1, x2 - x1, y2 - y1
    low, high = table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]  # [A, (x, y)]
    limit = sizes[:, ::-1]
    outside = ((low >= limit) | ((high <= 0) & (low < 0))).any(axis=1) | (no_box & (high <= low).any(axis=1))
    rows.drop("annotations with a bbox outside of the image (skipped)", outside)
    rows.note("boxes that reach out of the image by more than a pixel (kept, and cut off for training)",
              ((low < -1) | (high > limit + 1)).any(axis=1))  # fmt: skip


############################################################
#  Data set
############################################################


class _LoadedFile(NamedTuple):
    """The images of one load and their annotations."""

    source: str
    image_ids: np.ndarray  # int64 [I], ascending
    first_rows: np.ndarray  # int64 [I + 1], the first annotation of each image, and the end
    annotations: _Annotations  # sorted by image


class CocoDataset(Dataset):
    """A data set in COCO's format: COCO itself (load_coco), or any other one (load_annotations).

    Images and categories have the ids of the file, and are in ascending order.

    skipped: {problem: the ids of annotations or the names of images that have it}. Each load also logs them.

    Annotations are stored as arrays. 118,287 images with 860,001 objects take about half a gigabyte, which the worker
    processes of a training share.

    A file that says more of its images, or says it differently, needs a subclass with IMAGE_FACTS and file_name:

        class Lvis(CocoDataset):
            IMAGE_FACTS = ("coco_url", "neg_category_ids", "not_exhaustive_category_ids")

            def file_name(self, entry):
                return "/".join(entry["coco_url"].split("/")[-2:])  # train2017/000000391895.jpg
    """

    # Further keys of an image's entry in the file. file_name can read them, and evaluation gets them: image_facts.
    IMAGE_FACTS: tuple[str, ...] = ()

    _MIN_CLASS_ID = 0  # Some tools number categories from 0. Category 0 is not the background here.

    def __init__(self, class_map: Mapping[str, str] | None = None) -> None:
        """class_map: as for prepare()."""
        super().__init__(class_map)
        self.skipped: Skipped = {}
        self._files: list[_LoadedFile] = []

    def file_name(self, entry: Mapping[str, Any]) -> str | None:
        """The path of an image below the folder of images; None if the file does not say it. Override it.

        entry: the image's entry in the file: id, file_name, height, width, IMAGE_FACTS, as far as the file has them;
            without file_name and width, all of the entry.
        """
        return name_in_entry(entry)

    def image_facts(self, image_id: int) -> dict[str, Any]:
        """IMAGE_FACTS of an image, as far as the file has them."""
        return self.image_info[image_id].get("facts", {})

    @property
    def lost_images(self) -> dict[str, list]:
        """The problems in skipped for which an image was left out."""
        return {problem: labels for problem, labels in self.skipped.items() if problem in _LOST.values()}

    def load_coco(
        self,
        dataset_dir: str | os.PathLike,
        subset: str,
        year: int | str | None = None,
        class_ids: Sequence[int] | None = None,
        class_map: Mapping[str, str] | None = None,
        return_coco: bool = False,
        auto_download: bool = False,
        empty_images: bool = True,
    ) -> COCO | None:
        """Loads a subset of COCO itself, with the source "coco". Call it again for more subsets, then call prepare().

        dataset_dir: the folder that has annotations/, train2017/ ... in it.
        subset: train or val. Of 2014 also minival (the images of 2017's val) or valminusminival; without files of their
            own, these are made from the files of val2014 and val2017.
        year: 2014 or 2017. None: the first of 2017 and 2014 whose annotations of this subset exist, or else 2017.
        auto_download: first download the missing files, as download_coco does.
        class_ids, class_map, return_coco, empty_images: as for load_annotations.

        Returns: as load_annotations.
        Raises: as load_annotations. A FileNotFoundError explains where the files must be.
        """
        root = Path(dataset_dir)
        year = choose_year(root, subset, year)
        if auto_download:
            self.auto_download(root, subset, year)
        files, folder = annotation_files(root, subset, year), image_folder(root, subset, year)
        for path in files:
            if not path.is_file():
                raise missing_annotations(root, path, subset)
        is_in_subset = _minival_filter(*files, subset) if len(files) > 1 else None
        return self._load(files[0], folder, "coco", class_ids, class_map, return_coco, empty_images, is_in_subset)

    def auto_download(self, dataDir: str | os.PathLike, dataType: str, dataYear: int | str) -> None:
        """Matterport's name for download_coco."""
        download_coco(dataDir, dataType, dataYear)

    def load_annotations(
        self,
        json_path: str | os.PathLike,
        image_dir: str | os.PathLike,
        source: str = "own",
        class_ids: Sequence[int] | None = None,
        class_map: Mapping[str, str] | None = None,
        return_coco: bool = False,
        empty_images: bool = True,
    ) -> COCO | None:
        """Loads a file of instances in COCO's format, of any data set. Its categories become classes, ascending by id.

        Images and annotations that cannot be used are left out, logged, and listed in `skipped`.

        json_path: the file. image_dir: the folder that its file names start from.
        source: a name for the file, without a ".".
        class_ids: the ids of the categories to load; images without any of them are left out. None: all categories,
            and all images.
        class_map: {"<source>.<category id>": name}; prepare() joins classes of one name.
        return_coco: also return pycocotools' index of the annotations that are kept, with all categories of the file.
        empty_images: False leaves out images without an object (crowds do not count), which is usual for training.
            Evaluation needs these images, because every detection in them is wrong.

        Returns: pycocotools' COCO, or None.
        Raises: FileNotFoundError if the file, the folder or all of the images are missing; ValueError if the file is
            damaged or of another kind, contradicts itself, or has nothing usable.
        """
        path = Path(json_path)
        if not path.is_file():
            raise FileNotFoundError(f"json_path {path}: there is no such file")
        return self._load(path, Path(image_dir), source, class_ids, class_map, return_coco, empty_images)

    def _load(
        self, path: Path, folder: Path, source: str, class_ids: Sequence[int] | None,
        class_map: Mapping[str, str] | None, return_coco: bool, empty_images: bool,
        is_in_subset: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> COCO | None:  # fmt: skip
        """load_annotations of a subset. is_in_subset: a function from image ids [N] to bool [N]; None: all images."""
        skipped: Skipped = {}
        contents, table = _read_file(path, self.IMAGE_FACTS)
        without_image = [f"#{i}" for i, entry in enumerate(contents["annotations"]) if entry is not _COLLECTED]
        _note(skipped, "annotations without an image_id (skipped)", without_image)
        categories = _check_categories(path, contents["categories"], skipped)
        chosen = _choose_classes(path, categories, class_ids)
        class_map = _check_class_map(class_map, source, chosen)
        images = _check_images(self, path, contents.pop("images"), folder, source == "coco", skipped)
        good = _check_annotations(table, images, categories, skipped) & np.isin(table.category_ids, list(chosen))
        kept = images.usable if is_in_subset is None else images.usable & is_in_subset(images.ids)
        if class_ids is not None or not empty_images:
            kept = kept & np.isin(images.ids, table.image_ids[good & ((table.crowds == 0) | empty_images)])
        if not kept.any() or (contents["annotations"] and not good.any()):
            reasons = _summary(skipped) or "    No image has an object of the categories in class_ids."
            counts = f"{len(images.ids):,} images and {len(contents['annotations']):,} annotations"
            raise ValueError(f"{path}: none of {counts} can be used.\n{reasons}")
        self._register(source, folder, chosen, class_map, images, np.flatnonzero(kept).tolist())
        self._store_annotations(source, images.ids[kept], table, good)
        if skipped:
            logger.warning("%s: these images and annotations are not used as they are\n%s", path, _summary(skipped))
        for problem, labels in skipped.items():
            _note(self.skipped, problem, labels)
        return self._index(source, folder, int(kept.sum())) if return_coco else None

    def _register(self, source: str, folder: Path, categories, class_map, images: _Images, kept: list[int]) -> None:
        """Adds classes and images. kept: the rows of images to add."""
        for category, name in categories.items():
            self.add_class(source, category, name)
        self._class_map = {**(self._class_map or {}), **class_map}
        for i in kept:
            height, width = images.sizes[i].tolist()
            path = os.path.join(folder, images.names[i])
            facts = {"facts": images.facts[i]} if images.facts[i] else {}
            self.add_image(source, int(images.ids[i]), path, width=width, height=height, **facts)

    def _store_annotations(self, source: str, image_ids: np.ndarray, table: _Annotations, good: np.ndarray) -> None:
        """Stores the good annotations of these images, sorted by image, and for each image in the order of the file."""
        rows = np.flatnonzero(good & np.isin(table.image_ids, image_ids))
        table.keep_rows(rows[np.argsort(table.image_ids[rows], kind="stable")])
        first_rows = np.searchsorted(table.image_ids, np.append(image_ids, image_ids[-1] + 1))
        self._files.append(_LoadedFile(source, image_ids, first_rows, table))

    def _find_annotations(self, image_id: int) -> tuple[_Annotations, range] | None:
        """The annotations of a file, and the rows of an image among them. None if the image came from no file."""
        info = self.image_info[image_id]
        for file in self._files:
            if file.source == info["source"]:
                i = int(np.searchsorted(file.image_ids, info["id"]))
                if i < len(file.image_ids) and file.image_ids[i] == info["id"]:
                    return file.annotations, range(int(file.first_rows[i]), int(file.first_rows[i + 1]))
        return None

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, 3], in the size that the file of annotations says.

        Some tools annotate images as they are stored, others after EXIF has turned them. The size tells which it was.

        Raises: ValueError if neither has this size; else as data.images.read_image.
        """
        image = super().load_image(image_id)
        info = self.image_info[image_id]
        size = (info.get("height", image.shape[0]), info.get("width", image.shape[1]))
        if image.shape[:2] == size:
            return image
        stored = self.reader.read(info["path"], upright=False)
        if stored.shape[:2] != size:
            raise ValueError(
                f"image {info['path']} has {image.shape[0]} x {image.shape[1]} pixels, but its annotations are for "
                f"{size[0]} x {size[1]} (height x width); was it resized, or replaced by another of its name?"
            )
        return stored

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [H, W, N], and class ids int32 [N], negative for crowds."""
        if self._find_annotations(image_id) is None:
            return super().load_mask(image_id)
        class_ids, rles, _ = self.load_instances(image_id)
        info = self.image_info[image_id]
        masks = utils.rle_to_mask(rles) if rles else np.zeros((info["height"], info["width"], 0), bool)
        return masks, class_ids

    def load_instances(self, image_id: int) -> Instances:
        """The instances, with masks as RLEs. Boxes are those of the file, cut off at the edges of the image."""
        location = self._find_annotations(image_id)
        if location is None:
            return super().load_instances(image_id)
        table, rows = location
        info = self.image_info[image_id]
        height, width = info["height"], info["width"]
        signs = 1 - 2 * table.crowds[rows.start : rows.stop].astype(np.int32)
        categories = table.category_ids[rows.start : rows.stop].tolist()
        class_ids = [self.map_source_class_id(f"{info['source']}.{category}") for category in categories]
        x, y, w, h = table.boxes[rows.start : rows.stop].T
        boxes = np.stack([y, x, y + h, x + w], axis=1).clip(0, [height, width, height, width])  # [N, 4]
        rles = [table.rle(row, height, width) for row in rows]
        return Instances(np.array(class_ids, np.int32) * signs, rles, boxes.astype(np.float32))

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """The image's annotations in COCO's format, in the order of the file, for evaluation.

        Returns: dicts with id, image_id, category_id, iscrowd; bbox [x, y, width, height] and area as in the file; and
            segmentation, a compressed RLE for json.dump. Joined classes have the category_id of the first of them.
        Raises: ValueError for an image that was not loaded from a file of annotations.
        """
        location = self._find_annotations(image_id)
        if location is None:
            raise ValueError(f"image_id {image_id} has no annotations of COCO: add_image added it, and no file")
        info, (table, rows) = self.image_info[image_id], location
        size = info["height"], info["width"]
        category_ids = self.category_ids
        categories = {
            category: category_ids[self.map_source_class_id(f"{info['source']}.{category}")]
            for category in set(table.category_ids[rows.start : rows.stop].tolist())
        }
        return [
            {**_annotation(table, row, categories), "segmentation": utils.rle_to_json(table.rle(row, *size))}
            for row in rows
        ]

    @property
    def num_annotations(self) -> int:
        """The number of annotations, with crowds."""
        return sum(len(file.annotations) for file in self._files)

    @property
    def category_ids(self) -> list[int]:
        """The category id of each class id, after prepare(): 0 for the background; of joined classes, the first one's.

        Raises: ValueError if categories of two sources have one id, because results would then be ambiguous.
        """
        ids: dict[int, int] = {}
        for info in self.class_info:
            ids.setdefault(self.class_from_source_map[f"{info['source']}.{info['id']}"], info["id"])
        categories = [ids[class_id] for class_id in range(1, self.num_classes)]
        if len(set(categories)) < len(categories):
            raise ValueError(
                f"category ids of the sources {self.sources[1:]} overlap; load and evaluate them one by one"
            )
        return [0, *categories]

    def image_reference(self, image_id: int) -> str:
        """The address at which cocodataset.org shows the image; empty for images of other data sets."""
        info = self.image_info[image_id]
        is_coco = info["source"] == "coco" and is_coco_name(str(info["path"]))
        return f"https://cocodataset.org/#explore?id={info['id']}" if is_coco else ""

    def annToRLE(self, ann: Mapping[str, Any], height: int, width: int) -> dict:
        """Compressed RLE of an annotation of COCO, with polygons or an RLE of any kind."""
        return utils.annotation_to_rle(ann["segmentation"], height, width)

    def annToMask(self, ann: Mapping[str, Any], height: int, width: int) -> np.ndarray:
        """Mask of an annotation of COCO: uint8 [H, W], 0 and 1, as Matterport has it."""
        return utils.rle_to_mask(self.annToRLE(ann, height, width)).astype(np.uint8)

    def _index(self, source: str, folder: Path, count: int) -> COCO:
        """pycocotools' index of the file that was loaded last. count: the number of its images."""
        table, infos = self._files[-1].annotations, self.image_info[-count:]
        sizes = {info["id"]: (info["height"], info["width"]) for info in infos}
        images = [
            {**info.get("facts", {}), "id": info["id"], "file_name": Path(info["path"]).relative_to(folder).as_posix(),
             "height": info["height"], "width": info["width"]}
            for info in infos
        ]  # fmt: skip
        annotations = []
        for row in range(len(table)):
            entry = _annotation(table, row)
            if table.kinds[row] == _POLYGONS:
                entry["segmentation"] = table.polygons(row)
            else:
                entry["segmentation"] = utils.rle_to_json(table.rle(row, *sizes[entry["image_id"]]))
            annotations.append(entry)
        categories = [{"id": info["id"], "name": info["name"]} for info in self.class_info if info["source"] == source]
        index = COCO()
        index.dataset = {"images": images, "categories": categories, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index


def open_coco(dataset_dir: str | os.PathLike, subset: str, year: int | str | None = None) -> CocoDataset:
    """A subset of COCO, ready to use: CocoDataset.load_coco and prepare()."""
    dataset = CocoDataset()
    dataset.load_coco(dataset_dir, subset, year)
    dataset.prepare()
    return dataset


def _annotation(table: _Annotations, row: int, categories: Mapping[int, int] | None = None) -> dict[str, Any]:
    """An annotation in COCO's format without its segmentation. categories: replaces its category id."""
    category = int(table.category_ids[row])
    return {
        "id": int(table.ids[row]),
        "image_id": int(table.image_ids[row]),
        "category_id": category if categories is None else categories[category],
        "iscrowd": int(table.crowds[row]),
        "bbox": table.boxes[row].tolist(),
        "area": float(table.areas[row]),
    }

"""Any file of instances in COCO's format: reading, checking, and the data set that it makes."""

import contextlib
import io
import json
import logging
import math
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
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
    missing_annotations,
    missing_images,
)
from data.dataset import Dataset, Instances

logger = logging.getLogger(__name__)


############################################################
#  Annotations as arrays
############################################################

_NO_NUMBER = -(2**63)
_POLYGONS, _RLE, _DAMAGED, _MISSING = range(4)
_TAKEN = object()  # stands where an annotation was


def _whole(value: Any) -> int:
    """A whole number that is exact in any JSON reader, or _NO_NUMBER."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**53 else _NO_NUMBER


class _Collector:
    """Takes the annotations out of a file while it is parsed, and keeps them as numbers.

    json.loads calls it with every object as soon as that is read. So never more than one annotation is there as Python
    lists, which take ten times the memory.
    """

    def __init__(self) -> None:
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.crowds, self.kinds = array("b"), array("b")
        self.boxes, self.areas = array("d"), array("d")
        self.ring_counts, self.ring_lengths, self.coordinates = array("q"), array("q"), array("d")
        self.sizes, self.code_lengths, self.codes = array("q"), array("q"), bytearray()
        self.keys = set()  # of the first annotation

    def __call__(self, entry: dict) -> Any:
        if "file_name" in entry and "width" in entry:  # an image; its URLs and dates would take 100 MB
            return {key: entry.get(key) for key in ("id", "file_name", "height", "width")}
        if "image_id" in entry:
            self._add(entry)
            return _TAKEN
        return entry

    def _add(self, entry: dict) -> None:
        self.keys = self.keys or set(entry)
        self.ids.append(_whole(entry.get("id")))
        self.image_ids.append(_whole(entry["image_id"]))
        self.category_ids.append(_whole(entry.get("category_id")))
        crowd = entry.get("iscrowd")
        self.crowds.append(0 if crowd is None else int(crowd) if crowd in (0, 1) else -1)
        area = entry.get("area")
        self.areas.append(float(area) if type(area) is float or _whole(area) != _NO_NUMBER else math.nan)
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
class _Table:
    """Annotations: A of them, with R polygons of C numbers together. Nothing in it is a Python object each."""

    ids: np.ndarray  # int64 [A], as the next two
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowds: np.ndarray  # int8 [A], 0 or 1; -1 is neither
    kinds: np.ndarray  # int8 [A], _POLYGONS or _RLE
    boxes: np.ndarray  # float64 [A, (x, y, width, height)]
    areas: np.ndarray  # float64 [A]
    sizes: np.ndarray  # int64 [A, (height, width)] of RLEs
    ring_spans: np.ndarray  # int64 [A, 2]: from, to, in rings
    code_spans: np.ndarray  # int64 [A, 2], in codes
    rings: np.ndarray  # int64 [R, 2], in coordinates
    coordinates: np.ndarray  # float64 [C], x and y in turn: COCO's pixels follow from them exactly
    codes: bytes  # of compressed RLEs

    ROWS = (
        "ids", "image_ids", "category_ids", "crowds", "kinds", "boxes", "areas", "sizes", "code_spans", "ring_spans",
    )  # fmt: skip

    @classmethod
    def of(cls, found: _Collector) -> "_Table":
        """What a collector has, without a copy of the coordinates."""
        fields = ("ids", "image_ids", "category_ids", "crowds", "kinds", "areas", "coordinates")
        return cls(
            **{name: np.asarray(getattr(found, name)) for name in fields},
            boxes=np.array(found.boxes).reshape(-1, 4),
            sizes=np.array(found.sizes).reshape(-1, 2),
            ring_spans=_spans(np.asarray(found.ring_counts)),
            code_spans=_spans(np.asarray(found.code_lengths)),
            rings=_spans(np.asarray(found.ring_lengths)),
            codes=bytes(found.codes),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def names(self, which: np.ndarray) -> list[int | str]:
        """What to call annotations, by a mask [A] or row numbers: their ids, or where they stand in the file."""
        rows = np.arange(len(self))[which].tolist()
        ids = self.ids[rows].tolist()
        return [f"#{row}" if one == _NO_NUMBER else one for row, one in zip(rows, ids, strict=True)]

    def polygons(self, row: int) -> list[list[float]]:
        start, end = self.ring_spans[row].tolist()
        return [self.coordinates[first:last].tolist() for first, last in self.rings[start:end].tolist()]

    def code(self, row: int) -> bytes:
        start, end = self.code_spans[row].tolist()
        return self.codes[start:end]

    def rle(self, row: int, height: int, width: int) -> dict:
        """Compressed RLE of a row's mask, in an image of this size."""
        if self.kinds[row] == _RLE:
            return {"size": [height, width], "counts": self.code(row)}
        return utils.polygons_to_rle(self.polygons(row), height, width)

    def content(self, row: int) -> tuple:
        """All that the file says of a row, to be compared."""
        fields = [getattr(self, name)[row].tobytes() for name in self.ROWS[:-2]]
        return (*fields, self.code(row), repr(self.polygons(row)))

    def keep_rings(self, good: np.ndarray) -> None:
        """Leaves out polygons. good: bool [R]."""
        before = np.concatenate([[0], good.cumsum()])
        self.ring_spans = before[self.ring_spans]
        self.rings = self.rings[good]

    def take(self, rows: np.ndarray) -> None:
        """Keeps these rows, in this order, and of the polygons and codes only theirs."""
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[rows])
        self.rings, self.ring_spans = _gather(self.rings, self.ring_spans)
        if (self.rings[:, 1] - self.rings[:, 0]).sum() < len(self.coordinates):
            self.coordinates, self.rings = _gather(self.coordinates, self.rings)
        if (self.code_spans[:, 1] - self.code_spans[:, 0]).sum() < len(self.codes):
            codes, self.code_spans = _gather(np.frombuffer(self.codes, np.uint8), self.code_spans)
            self.codes = codes.tobytes()


def _spans(lengths: np.ndarray) -> np.ndarray:
    """From and to of pieces of these lengths that lie one after the other: int64 [N, 2]."""
    ends = lengths.cumsum(dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)


def _gather(values: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of values that spans name, one after the other, and where they are then."""
    lengths = spans[:, 1] - spans[:, 0]
    new = _spans(lengths)
    index = np.arange(lengths.sum()) + np.repeat(spans[:, 0] - new[:, 0], lengths)
    return values[index], new


############################################################
#  Annotation files
############################################################


def _read_file(path: Path) -> tuple[dict[str, Any], _Table]:
    """A file of COCO instances: its contents, and its annotations.

    Raises: ValueError, saying what the file is, if it is something else.
    """
    found = _Collector()
    contents = _parse(path, found)
    expected = "It must be a file of COCO instances: images, categories, and annotations with segmentation"
    looks = _look(contents, found)
    if looks:
        raise ValueError(f"{path} {looks}. {expected}")
    for key in ("images", "categories", "annotations"):
        if not isinstance(contents.get(key), list):
            known = utils.listed(map(repr, contents), 8) or "none"
            raise ValueError(f"{path} has no list {key!r}; its keys are {known}. {expected}")
    if sum(entry is _TAKEN for entry in contents["annotations"]) != len(found.ids):
        raise ValueError(f"{path} has objects with an image_id outside of its annotations. {expected}")
    return contents, _Table.of(found)


def _parse(path: Path, hook: Callable[[dict], Any]) -> Any:
    """json.loads of a file, with errors that say what to do."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download it again")
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
    except json.JSONDecodeError as error:
        end = len(error.doc.rstrip())
        cut = error.doc.lstrip()[:1] in ("{", "[") and (error.pos >= end - 10 or error.msg.startswith("Unterminated"))
        what = "is cut off" if cut else "is not JSON, or damaged"
        where = f"line {error.lineno}, column {error.colno} ({error.msg})"
        message = f"{path} {what}, at {where}; was its download or copy interrupted? Download it again"
    except UnicodeDecodeError as error:
        what = "is cut off" if error.end == len(error.object) else "is no text; is it packed, or another kind of file?"
        message = f"{path} {what} (at byte {error.start}); if it is the right one, download it again"
    except (ValueError, RecursionError) as error:
        message = f"{path} cannot be read as JSON: {error}"
    raise ValueError(message)  # out here, where the text that the errors hold is free


def _look(contents: Any, found: _Collector) -> str:
    """What a file is, if it is no file of instances; empty if it may be one."""
    keys = found.keys
    if isinstance(contents, list):
        return "is a list of results, as detection writes them" if "score" in keys else "is a list"
    if not isinstance(contents, dict):
        return f"holds one {type(contents).__name__}"
    if "segments_info" in keys:
        return "has panoptic annotations; their masks are in PNG files"
    if "caption" in keys:
        return "has captions; download has the instances beside it"
    if len(found.kinds) and all(kind == _MISSING for kind in found.kinds):
        kind = "keypoints" if "keypoints" in keys else "boxes" if "bbox" in keys else "annotations"
        return f"has {kind} without any segmentation, and masks cannot be learned without"
    if "shapes" in contents and "imagePath" in contents:
        return "is of labelme, one file an image; labelme2coco converts it"
    if any(isinstance(value, dict) and "regions" in value for value in contents.values()):
        return "is of the VGG Image Annotator, which can export COCO"
    if "images" in contents and "annotations" not in contents:
        return "has images without annotations, as COCO's image_info of test has: those labels are not published"
    return ""


def _split(val2014: Path, val2017: Path, subset: str) -> Callable[[np.ndarray], np.ndarray]:
    """Which image ids [N] of 2014's val are in minival or valminusminival: bool [N]."""
    entries = _read_file(val2017)[0]["images"]
    minival = [_whole(entry.get("id")) for entry in entries if isinstance(entry, dict)]
    if len(minival) != ARCHIVES["val2017"].images:
        logger.warning(
            "%s of %s is not the one that was published: %s has %d images instead of %d",
            subset, val2014, val2017, len(minival), ARCHIVES["val2017"].images,
        )  # fmt: skip
    return lambda ids: np.isin(ids, minival) == (subset == "minival")


############################################################
#  Checks
############################################################

Skipped = dict[str, list]


def _note(skipped: Skipped, problem: str, what: Iterable) -> None:
    what = list(what)
    if what:
        skipped.setdefault(problem, []).extend(what)


def _summary(skipped: Skipped) -> str:
    lines = [f"    {len(what):,} {problem}: {utils.listed(map(repr, what), 3)}" for problem, what in skipped.items()]
    return "\n".join(lines)


def _check_categories(path: Path, entries: list, skipped: Skipped) -> dict[int, str]:
    """Name of each category id, ascending."""
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        category = _whole(entry.get("id")) if isinstance(entry, dict) else _NO_NUMBER
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
    first: dict[str, int] = {}
    for category in sorted(names):
        again = first.setdefault(names[category], category) != category
        _note(skipped, "categories with the name of another (kept apart; class_map joins them)", [category] * again)
    return {category: names[category] for category in sorted(names)}


def _choose_classes(path: Path, categories: dict[int, str], class_ids: Sequence[int] | None) -> dict[int, str]:
    """The categories that class_ids names, ascending; all of them for None."""
    if class_ids is None:
        return categories
    wanted = set(class_ids)
    if not wanted or not wanted <= categories.keys():
        known = utils.listed([f"{category} {name}" for category, name in categories.items()])
        raise ValueError(f"class_ids must be some of the category ids of {path}: {known}; not {list(class_ids)}")
    return {category: name for category, name in categories.items() if category in wanted}


def _check_class_map(class_map: Mapping[str, str] | None, source: str, categories: dict[int, str]) -> dict[str, str]:
    unknown = (class_map or {}).keys() - {f"{source}.{category}" for category in categories}
    if unknown:
        raise ValueError(
            f"class_map must name classes that are loaded, as '{source}.{next(iter(categories), 1)}', not "
            f"{utils.listed(sorted(map(repr, unknown)))}; is that no category id, or is it missing in class_ids?"
        )
    return dict(class_map or {})


class _Images(NamedTuple):
    """The images of a file, by id, ascending. Of those with a problem only the id is known."""

    ids: np.ndarray  # int64 [I]
    names: list[str]  # below the image folder
    sizes: np.ndarray  # int64 [I, (height, width)]
    usable: np.ndarray  # bool [I]


# Problems of which an image is lost.
_LOST = {
    "id": "images without an id that is a whole number (skipped)",
    "name": "images without a file_name (skipped)",
    "outside": "images whose file_name leads out of the data folder (skipped)",
    "size": "images without a usable height and width (skipped)",
    "file": "images without a file (skipped)",
}


def _check_images(path: Path, entries: list, folder: Path, coco: bool, skipped: Skipped) -> _Images:
    """The images that are usable: of a known size, with a file inside the folder."""
    by_id = _unique_images(path, entries, skipped)
    ids = np.array(sorted(by_id), np.int64)
    names, sizes, usable = [], np.zeros((len(ids), 2), np.int64), np.zeros(len(ids), bool)
    files, missing = _Files(folder), []
    for i, image_id in enumerate(ids.tolist()):
        entry = by_id[image_id]
        name, size = entry.get("file_name"), [_whole(entry.get("height")), _whole(entry.get("width"))]
        inside = _inside(name)
        names.append("/".join(inside or ()))
        if not isinstance(name, str) or not name:
            _note(skipped, _LOST["name"], [image_id])
        elif not inside:
            _note(skipped, _LOST["outside"], [name])
        elif min(size) < 1 or size[0] * size[1] > utils.MAX_IMAGE_PIXELS:
            _note(skipped, _LOST["size"], [name])
        elif inside not in files:
            missing.append(names[i])
        else:
            usable[i], sizes[i] = True, size
    if missing and not usable.any():
        raise missing_images(folder, missing[0], coco)
    _note(skipped, _LOST["file"], missing)
    return _Images(ids, names, sizes, usable)


def _unique_images(path: Path, entries: list, skipped: Skipped) -> dict[int, dict]:
    by_id: dict[int, dict] = {}
    for i, entry in enumerate(entries):
        image_id = _whole(entry.get("id")) if isinstance(entry, dict) else _NO_NUMBER
        if image_id == _NO_NUMBER:
            name = entry.get("file_name") if isinstance(entry, dict) else None
            _note(skipped, _LOST["id"], [name or f"#{i}"])
            continue
        if by_id.setdefault(image_id, entry) != entry:
            raise ValueError(
                f"{path}: image id {image_id} is {by_id[image_id]!r:.200} and {entry!r:.200}; which of them do its "
                "annotations mean? Were two files joined without new ids?"
            )
        _note(skipped, "images that are listed twice (kept once)", [image_id] * (by_id[image_id] is not entry))
    return by_id


def _inside(name: Any) -> tuple[str, ...]:
    """The parts of a relative file name; none if it is no name, or may lead out of its folder on any system."""
    path = PureWindowsPath(name) if isinstance(name, str) else PureWindowsPath()  # sees drives, and both / and \
    return () if path.drive or path.root or ".." in path.parts else path.parts


class _Files:
    """The files of a folder and of those below it, each of them listed once, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listings: dict[tuple[str, ...], set[str]] = {}

    def __contains__(self, parts: tuple[str, ...]) -> bool:
        below = parts[:-1]
        if below not in self.listings:
            self.listings[below] = self._list(self.folder.joinpath(*below))
        return parts[-1] in self.listings[below]

    @staticmethod
    def _list(folder: Path) -> set[str]:
        try:
            with os.scandir(folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):  # there is none, or none can have such a name
            return set()


class _Rows:
    """The annotations of a file that are still good, while they are checked one after the other."""

    def __init__(self, table: _Table, skipped: Skipped) -> None:
        self.table, self.skipped = table, skipped
        self.good = np.ones(len(table), bool)

    def drop(self, problem: str, wrong: np.ndarray) -> None:
        self.note(problem, wrong)
        self.good &= ~wrong

    def note(self, problem: str, wrong: np.ndarray) -> None:
        if wrong.any():
            _note(self.skipped, problem, self.table.names(wrong & self.good))


def _check_annotations(table: _Table, images: _Images, categories: Mapping[int, str], skipped: Skipped) -> np.ndarray:
    """Sets right what can be, and says which annotations are good: bool [A]."""
    rows = _Rows(table, skipped)
    renamed = _check_ids(rows)
    image = np.searchsorted(images.ids, table.image_ids).clip(max=max(len(images.ids) - 1, 0))  # [A]
    known = images.ids[image] == table.image_ids if len(images.ids) else np.zeros(len(table), bool)
    rows.drop("annotations of images that are not in the file (skipped)", ~known)
    if not rows.good.any():
        return rows.good
    rows.good &= images.usable[image]  # the image has been reported
    rows.drop("annotations of unknown categories (skipped)", ~np.isin(table.category_ids, list(categories)))
    rows.drop("annotations with an iscrowd other than 0 and 1 (skipped)", table.crowds < 0)
    _check_segmentations(rows, images.sizes[image])
    _check_boxes(rows, images.sizes[image])
    _number(table, renamed & rows.good)
    return rows.good


def _check_ids(rows: _Rows) -> np.ndarray:
    """Drops exact repeats. Returns: bool [A], the annotations that need another id."""
    ids, table = rows.table.ids, rows.table
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    exact, renamed, seen = np.zeros(len(ids), bool), np.zeros(len(ids), bool), {}
    for row in np.flatnonzero((counts[inverse] > 1) & (ids != _NO_NUMBER)).tolist():
        before = seen.setdefault(int(ids[row]), set())
        content = table.content(row)
        exact[row], renamed[row] = content in before, bool(before)
        before.add(content)
    rows.drop("annotations that are listed twice (kept once)", exact)
    rows.note("annotation ids that several annotations have (kept, with new ids; were files joined?)", renamed & ~exact)
    rows.note("annotations without an id (kept, with new ids)", ids == _NO_NUMBER)
    rows.note("annotations of id 0, which pycocotools takes for none (kept, with new ids)", ids == 0)
    return renamed | (ids == _NO_NUMBER) | (ids == 0)


def _number(table: _Table, which: np.ndarray) -> None:
    """Gives annotations new ids, above all others."""
    first = max(int(table.ids.max(initial=0)), 0) + 1
    table.ids = table.ids.copy()
    table.ids[which] = np.arange(first, first + which.sum())


def _check_segmentations(rows: _Rows, sizes: np.ndarray) -> None:
    """sizes: [A, (height, width)] of the images."""
    table = rows.table
    rows.drop("annotations without a segmentation (skipped)", table.kinds == _MISSING)
    rows.drop("annotations with a damaged RLE (skipped)", table.kinds == _DAMAGED)
    differs = (table.kinds == _RLE) & (table.sizes != sizes).any(axis=1)
    rows.drop("annotations with an RLE of another size than the image (skipped)", differs)
    _check_polygons(rows)
    none = (table.kinds == _POLYGONS) & (table.ring_spans[:, 0] == table.ring_spans[:, 1])
    rows.drop("annotations without any good polygon (skipped)", none)


def _check_polygons(rows: _Rows) -> None:
    """Leaves out those that enclose nothing or cannot be drawn."""
    table = rows.table
    lengths = table.rings[:, 1] - table.rings[:, 0]  # [R]
    wild = np.flatnonzero(~(np.abs(table.coordinates) <= utils.MAX_COORDINATE))  # so written, NaN is in it, too
    broken = np.zeros(len(lengths), bool)
    broken[np.searchsorted(table.rings[:, 1], wild, side="right")] = True
    problems = {
        "polygons that are no flat list of numbers (left out)": lengths == 0,
        "polygons with fewer than 3 points (left out)": (lengths > 0) & (lengths < 6),
        "polygons with an odd number of coordinates (left out)": (lengths >= 6) & (lengths % 2 == 1),
        "polygons with coordinates that are not finite, or absurd (left out)": broken,
    }
    owners = np.repeat(np.arange(len(table)), table.ring_spans[:, 1] - table.ring_spans[:, 0])  # [R]
    for problem, wrong in problems.items():
        _note(rows.skipped, problem, table.names(owners[wrong & rows.good[owners]]))
    wrong = np.logical_or.reduce(list(problems.values()))
    if wrong.any():
        table.keep_rings(~wrong)


def _check_boxes(rows: _Rows, sizes: np.ndarray) -> None:
    """Makes boxes and areas that are no such, and drops what is outside. sizes: [A, (height, width)] of the images."""
    table = rows.table
    sane = (np.abs(table.boxes) <= utils.MAX_COORDINATE).all(axis=1) & (table.boxes[:, 2:] >= 0).all(axis=1)
    no_box = ~sane & rows.good
    no_area = ~(np.isfinite(table.areas) & (table.areas >= 0)) & rows.good
    rows.note("annotations without a bbox that is one (made from the mask)", no_box)
    rows.note("annotations without an area that is one (made from the mask)", no_area)
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


class CocoDataset(Dataset):
    """COCO, and any data set in its format. Ids of images and categories are the file's; order is ascending.

    skipped: {problem: what has it}, of all that was loaded: ids of annotations, names of files. Each load also logs it.

    Annotations are kept as arrays: 118,287 images with 860,001 objects take about half a gigabyte, which the worker
    processes of a training share.
    """

    _MIN_CLASS_ID = 0  # tools other than COCO's count categories from 0; in here that is no background

    def __init__(self, class_map: Mapping[str, str] | None = None) -> None:
        """class_map: as of prepare()."""
        super().__init__(class_map)
        self.skipped: Skipped = {}
        # Of each load: source, image ids [I], the first row of each and the end [I + 1], annotations by image
        self._tables: list[tuple[str, np.ndarray, np.ndarray, _Table]] = []

    @property
    def lost_images(self) -> dict[str, list]:
        """The part of skipped that is of images which could not be used."""
        return {problem: what for problem, what in self.skipped.items() if problem in _LOST.values()}

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
        """Loads a subset of COCO, under the source "coco". Call it again for further subsets, then prepare().

        dataset_dir: the folder that has annotations/ and train2017/ ... in it.
        subset: train or val; or, of 2014, minival (the images of 2017's val) or valminusminival, whose files are made
            up from those of val2014 and val2017 if they are not there.
        year: 2014 or 2017. None: 2017 if its annotations of this subset are there, else 2014; 2017 if neither.
        auto_download: first fetch what is missing, see download_coco.
        class_ids, class_map, return_coco, empty_images: as of load_annotations.

        Returns, raises: as load_annotations; FileNotFoundError explains how the files must lie.
        """
        root = Path(dataset_dir)
        year = choose_year(root, subset, year)
        if auto_download:
            self.auto_download(root, subset, year)
        files, folder = annotation_files(root, subset, year), image_folder(root, subset, year)
        for path in files:
            if not path.is_file():
                raise missing_annotations(root, path, subset)
        wanted = _split(*files, subset) if len(files) > 1 else None
        return self._load(files[0], folder, "coco", class_ids, class_map, return_coco, empty_images, wanted)

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
        """Loads a file of instances in COCO's format. Its categories become classes, ascending by id.

        What cannot be used is left out, logged, and kept in `skipped`.

        json_path: the file. image_dir: the folder that its file names start from. source: what to call it; no ".".
        class_ids: the categories wanted, by id; then only images that have one of them are kept. None: all.
        class_map: {"<source>.<category id>": name}: classes of one name become one, in prepare().
        return_coco: return pycocotools' index of what was kept, with the categories of the file.
        empty_images: False leaves out images without an object, not counting crowds, as one does for training;
            evaluation needs them, because whatever is found in them is wrong.

        Returns: pycocotools' COCO, or None.
        Raises: FileNotFoundError if the file, the folder or all of the images are not there; ValueError if the file is
            damaged or something else, contradicts itself, or has nothing that is usable.
        """
        path = Path(json_path)
        if not path.is_file():
            raise FileNotFoundError(f"json_path {path}: there is no such file")
        return self._load(path, Path(image_dir), source, class_ids, class_map, return_coco, empty_images)

    def _load(
        self, path: Path, folder: Path, source: str, class_ids: Sequence[int] | None,
        class_map: Mapping[str, str] | None, return_coco: bool, empty_images: bool,
        wanted: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> COCO | None:  # fmt: skip
        """As load_annotations. wanted: tells of image ids [N] which are of the subset, bool [N]; None: all are."""
        skipped: Skipped = {}
        contents, table = _read_file(path)
        strays = [f"#{i}" for i, entry in enumerate(contents["annotations"]) if entry is not _TAKEN]
        _note(skipped, "annotations without an image_id (skipped)", strays)
        categories = _check_categories(path, contents["categories"], skipped)
        chosen = _choose_classes(path, categories, class_ids)
        class_map = _check_class_map(class_map, source, chosen)
        images = _check_images(path, contents.pop("images"), folder, source == "coco", skipped)
        good = _check_annotations(table, images, categories, skipped) & np.isin(table.category_ids, list(chosen))
        kept = images.usable if wanted is None else images.usable & wanted(images.ids)
        if class_ids is not None or not empty_images:
            kept = kept & np.isin(images.ids, table.image_ids[good & ((table.crowds == 0) | empty_images)])
        if not kept.any() or (contents["annotations"] and not good.any()):
            reasons = _summary(skipped) or "    None has an object of what was asked for."
            counts = f"{len(images.ids):,} images and {len(contents['annotations']):,} annotations"
            raise ValueError(f"{path}: of {counts} nothing is left that can be used.\n{reasons}")
        self._register(source, folder, chosen, class_map, images, np.flatnonzero(kept).tolist())
        self._keep(source, images.ids[kept], table, good)
        if skipped:
            logger.warning("%s: not everything could be used as it is\n%s", path, _summary(skipped))
        for problem, what in skipped.items():
            _note(self.skipped, problem, what)
        return self._index(source, folder, int(kept.sum())) if return_coco else None

    def _register(self, source: str, folder: Path, categories, class_map, images: _Images, kept: list[int]) -> None:
        for category, name in categories.items():
            self.add_class(source, category, name)
        self._class_map = {**(self._class_map or {}), **class_map}
        for i in kept:
            height, width = images.sizes[i].tolist()
            path = os.path.join(folder, images.names[i])
            self.add_image(source, int(images.ids[i]), path, width=width, height=height)

    def _keep(self, source: str, image_ids: np.ndarray, table: _Table, good: np.ndarray) -> None:
        """Keeps the good annotations of these images, image by image, within each in the order of the file."""
        rows = np.flatnonzero(good & np.isin(table.image_ids, image_ids))
        table.take(rows[np.argsort(table.image_ids[rows], kind="stable")])
        firsts = np.searchsorted(table.image_ids, np.append(image_ids, image_ids[-1] + 1))
        self._tables.append((source, image_ids, firsts, table))

    def _rows(self, image_id: int) -> tuple[_Table, range] | None:
        """Where the annotations of an image are; None if it came from elsewhere."""
        info = self.image_info[image_id]
        for source, image_ids, firsts, table in self._tables:
            if source == info["source"]:
                i = int(np.searchsorted(image_ids, info["id"]))
                if i < len(image_ids) and image_ids[i] == info["id"]:
                    return table, range(int(firsts[i]), int(firsts[i + 1]))
        return None

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, 3], of the size that the file of annotations says.

        Some tools annotate images as they are stored, others as EXIF turns them: what has the right size is returned.

        Raises: ValueError if neither has it; else as read_image.
        """
        image = super().load_image(image_id)
        info = self.image_info[image_id]
        size = (info.get("height", image.shape[0]), info.get("width", image.shape[1]))
        if image.shape[:2] == size:
            return image
        stored = utils.read_image(info["path"], upright=False)
        if stored.shape[:2] != size:
            raise ValueError(
                f"image {info['path']} has {image.shape[0]} x {image.shape[1]} pixels, but its annotations are for "
                f"{size[0]} x {size[1]} (height x width); was it resized, or replaced by another of its name?"
            )
        return stored

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [H, W, N], and class ids int32 [N], negative for crowds."""
        if self._rows(image_id) is None:
            return super().load_mask(image_id)
        class_ids, rles, _ = self.load_instances(image_id)
        info = self.image_info[image_id]
        masks = utils.rle_to_mask(rles) if rles else np.zeros((info["height"], info["width"], 0), bool)
        return masks, class_ids

    def load_instances(self, image_id: int) -> Instances:
        """The instances as RLEs, with their boxes as annotated, cut off at the edges of the image."""
        found = self._rows(image_id)
        if found is None:
            return super().load_instances(image_id)
        table, rows = found
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
        """The image's annotations as COCO has them, in the order of the file, for evaluation.

        Returns: dicts with id, image_id, category_id, iscrowd; bbox [x, y, width, height] and area as in the file; and
            segmentation, a compressed RLE that json.dump takes. The category_id of joined classes is the first's.
        Raises: ValueError for an image that was not loaded from a file of annotations.
        """
        found = self._rows(image_id)
        if found is None:
            raise ValueError(f"image_id {image_id} has no annotations of COCO: it was added by other means")
        info, (table, rows) = self.image_info[image_id], found
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
        """How many annotations there are, crowds included."""
        return sum(len(table) for *_, table in self._tables)

    @property
    def category_ids(self) -> list[int]:
        """The category id of each class id, 0 for the background; of joined classes the first's. After prepare().

        Raises: ValueError if categories of two sources have one id: results could not be told apart.
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
        """Where cocodataset.org shows the image; empty for other sources."""
        info = self.image_info[image_id]
        return f"https://cocodataset.org/#explore?id={info['id']}" if info["source"] == "coco" else ""

    def annToRLE(self, ann: Mapping[str, Any], height: int, width: int) -> dict:
        """Compressed RLE of an annotation of COCO, with polygons or an RLE of any kind."""
        return utils.annotation_to_rle(ann["segmentation"], height, width)

    def annToMask(self, ann: Mapping[str, Any], height: int, width: int) -> np.ndarray:
        """Mask of an annotation of COCO: uint8 [H, W], 0 and 1, as Matterport has it."""
        return utils.rle_to_mask(self.annToRLE(ann, height, width)).astype(np.uint8)

    def _index(self, source: str, folder: Path, count: int) -> COCO:
        """pycocotools' index of the table and the images that were added last, with the categories of the file."""
        table, infos = self._tables[-1][-1], self.image_info[-count:]
        sizes = {info["id"]: (info["height"], info["width"]) for info in infos}
        images = [
            {"id": info["id"], "file_name": Path(info["path"]).relative_to(folder).as_posix(),
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


def _annotation(table: _Table, row: int, categories: Mapping[int, int] | None = None) -> dict[str, Any]:
    """An annotation of COCO without its segmentation. categories: what to call its category id instead."""
    category = int(table.category_ids[row])
    return {
        "id": int(table.ids[row]),
        "image_id": int(table.image_ids[row]),
        "category_id": category if categories is None else categories[category],
        "iscrowd": int(table.crowds[row]),
        "bbox": table.boxes[row].tolist(),
        "area": float(table.areas[row]),
    }

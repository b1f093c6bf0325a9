"""Reads a file of instances in COCO's format: its lists, and its annotations as a LabelTable.

It accepts what is clear however a tool wrote it: numbers as text, ids that are texts, one flat polygon instead of a
list of them. data/formats/coco.py checks what the file says.
"""

import contextlib
import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

import utils
from data.label_table import DAMAGED, MISSING, NO_NUMBER, POLYGONS, RLE, RLE_WITHOUT_SIZE, LabelTable, spans

############################################################
#  Values
############################################################

LABELLED = "labelled_classes"  # of an image: the classes that are labelled there, if not all are
_LARGEST_ID = 2**62  # ids are int64, and some of these must be free for texts
_FIRST_TEXT = NO_NUMBER + 1
_WHOLE = re.compile(r"\s*([+-]?\d{1,19})(\.0*)?\s*", re.ASCII)


def whole_number(value: Any) -> int:
    """The whole number that a value of JSON stands for, such as 12, 12.0 or "12"; NO_NUMBER if it is none.

    A float is one only below 2**53, up to where each whole number has a float of its own.
    """
    if type(value) is str:
        match = _WHOLE.fullmatch(value)
        value = int(match[1]) if match else None
    elif type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if type(value) is int and abs(value) < _LARGEST_ID else NO_NUMBER


def _number(value: Any) -> float:
    """The number that a value of JSON stands for, such as 1.5 or "1.5"; NaN if it is none."""
    if type(value) is bool:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


class IdNumbers:
    """Numbers for the ids of a file. Ids that are texts, or too large for int64, get numbers of their own."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}  # provisional numbers, below those of all other ids

    def number(self, value: Any) -> int:
        """The number of an id, a provisional one for a text; NO_NUMBER for a value that is no id."""
        if type(value) is int and abs(value) < _LARGEST_ID:
            return value
        number = whole_number(value)
        if number == NO_NUMBER and type(value) in (int, str) and value != "":
            number = self.texts.setdefault(str(value), _FIRST_TEXT + len(self.texts))
        return number

    def names(self) -> dict[int, str]:
        """{provisional number: what the file says}."""
        return {number: text for text, number in self.texts.items()}

    def settle(self, numbers: Iterable[int]) -> dict[int, int]:
        """{provisional number: the final one} of the texts among the ids of a list, in the order of the texts.

        The first final number is 1, or the one after the largest id that is a number.
        """
        numbers, names = list(numbers), self.names()
        first = max([0, *numbers]) + 1
        texts = sorted(names[number] for number in numbers if number in names)
        return {self.texts[text]: first + i for i, text in enumerate(texts)}


############################################################
#  Annotations
############################################################


class _Taken(NamedTuple):
    """Stands in the parsed file for an annotation that a _Collector took."""

    row: int


class _Collector:
    """Takes the annotations out of a file while json.loads parses it, and stores them as numbers.

    json.loads calls it with each object as soon as it has read the object, inner ones first. So only one annotation at
    a time exists as Python lists, which take ten times the memory.
    """

    def __init__(self, image_facts: Sequence[str] = (), exact: bool = False) -> None:
        """image_facts: further keys of an image's entry to keep. exact: stand-ins say which row they stand for."""
        self.image_keys = ("id", "file_name", "height", "width", LABELLED, *image_facts)
        self.exact, self.stand_in = exact, _Taken(-1)
        self.images, self.categories, self.annotations = IdNumbers(), IdNumbers(), IdNumbers()
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.crowds, self.kinds, self.ignored = array("b"), array("b"), array("b")
        self.boxes, self.areas = array("d"), array("d")
        self.ring_counts, self.ring_lengths, self.coordinates = array("q"), array("q"), array("d")
        self.sizes, self.code_lengths, self.codes = array("q"), array("q"), bytearray()
        self.keys: set[str] = set()  # of the first annotations

    def __call__(self, entry: dict) -> Any:
        name = entry.get("file_name")
        if type(name) is str and name and "segmentation" not in entry and "segments_info" not in entry:
            # An image, without its URLs and dates, which take 100 MB.
            return {key: entry[key] for key in self.image_keys if key in entry}
        if "image_id" in entry:
            self._add(entry)
            return _Taken(len(self.ids) - 1) if self.exact else self.stand_in
        return entry

    def _add(self, entry: dict) -> None:
        if len(self.ids) < 8:
            self.keys |= set(entry)
        self.ids.append(self.annotations.number(entry.get("id")))
        self.image_ids.append(self.images.number(entry["image_id"]))
        self.category_ids.append(self.categories.number(entry.get("category_id")))
        crowd, ignore = entry.get("iscrowd"), entry.get("ignore")
        crowd = crowd if type(crowd) is int and crowd in (0, 1) else _flag(crowd)
        self.ignored.append(ignore is not None and crowd == 0 and _flag(ignore) == 1)
        self.crowds.append(1 if self.ignored[-1] else crowd)
        area = entry.get("area")
        self.areas.append(area if type(area) is float else _number(area))
        self._add_box(entry.get("bbox"))
        self._add_segmentation(entry.get("segmentation"))

    def _add_box(self, box: Any) -> None:
        start = len(self.boxes)
        box = _unpacked(box) if type(box) is str else box
        with contextlib.suppress(TypeError, OverflowError):
            self.boxes.fromlist(box)
        if len(self.boxes) != start + 4:
            del self.boxes[start:]
            is_box = isinstance(box, list) and len(box) == 4
            self.boxes.extend(map(_number, box) if is_box else (math.nan,) * 4)

    def _add_segmentation(self, segmentation: Any) -> None:
        kind, rings, size, code = MISSING, [], (0, 0), b""
        segmentation = _unpacked(segmentation) if type(segmentation) is str else segmentation
        if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], dict):
            kind, size, code = _join_rles(segmentation)
        elif isinstance(segmentation, list):
            kind, rings = POLYGONS, _rings(segmentation)
        elif isinstance(segmentation, dict):
            kind, size, code = _read_rle(segmentation)
        for ring in rings:
            try:
                self.coordinates.fromlist(ring)
                self.ring_lengths.append(len(ring))
            except (TypeError, OverflowError):
                numbers = _ring_numbers(ring)
                self.coordinates.extend(numbers)
                self.ring_lengths.append(len(numbers))
        self.kinds.append(kind)
        self.ring_counts.append(len(rings))
        self.sizes.extend(size)
        self.code_lengths.append(len(code))
        self.codes += code

    def table(self) -> LabelTable:
        """The annotations, without a copy of the coordinates."""
        fields = ("ids", "image_ids", "category_ids", "crowds", "kinds", "areas", "coordinates")
        return LabelTable(
            **{name: np.asarray(getattr(self, name)) for name in fields},
            boxes=np.array(self.boxes).reshape(-1, 4),
            sizes=np.array(self.sizes).reshape(-1, 2),
            ring_spans=spans(np.asarray(self.ring_counts)),
            code_spans=spans(np.asarray(self.code_lengths)),
            rings=spans(np.asarray(self.ring_lengths)),
            codes=bytes(self.codes),
        )


def _unpacked(text: str) -> Any:
    """The value of a text that is JSON itself, as tables of annotations have it; else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_FLAGS = {"": 0, "0": 0, "false": 0, "no": 0, "null": 0, "none": 0, "1": 1, "true": 1, "yes": 1}


def _flag(value: Any) -> int:
    """0 or 1 of an iscrowd or ignore, however it is written; -1 for anything else."""
    if value is None:
        return 0
    if type(value) is str:
        return _FLAGS.get(value.strip().lower(), {0: 0, 1: 1}.get(whole_number(value), -1))
    return int(value) if isinstance(value, int | float) and value in (0, 1) else -1


def _rings(segmentation: list) -> list:
    """The polygons of a list: of polygons, of the numbers of one, or of the points [x, y] of one."""
    first = segmentation[0] if segmentation else None
    if isinstance(first, int | float | str):
        return [segmentation]
    if isinstance(first, list) and len(first) == 2 and _is_list_of_points(segmentation):
        return [[number for point in segmentation for number in point]]
    return segmentation


def _is_list_of_points(values: list) -> bool:
    return len(values) > 2 and all(isinstance(value, list) and len(value) == 2 for value in values)


def _ring_numbers(ring: Any) -> list[float]:
    """The coordinates of a polygon that is no list of numbers; empty if it has none, or another value among them."""
    if not isinstance(ring, list):
        return []
    if _is_list_of_points(ring):
        ring = [number for point in ring for number in point]
    if not all(isinstance(value, int | float | str) for value in ring):
        return []
    numbers = [_number(value) for value in ring]
    is_text = (isinstance(value, str) for value in ring)
    return numbers if not any(map(math.isnan, numbers)) or not any(is_text) else []


def _read_rle(segmentation: dict) -> tuple[int, tuple[int, int], bytes]:
    """The kind of an RLE, its size (height, width), and its compressed counts.

    Sizes are compared with the largest image before anything is computed with them.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    kind = RLE_WITHOUT_SIZE if size is None else RLE
    with contextlib.suppress(ValueError, TypeError, OverflowError, KeyError):
        if isinstance(counts, list):
            counts = _whole_counts(counts)
        if kind == RLE:
            height, width = (whole_number(side) for side in size)
        else:  # counts as text stay as they are until the size is known
            height, width = 1, sum(counts) if isinstance(counts, list) else 1
        if min(height, width) < 1 or height * width > utils.MAX_IMAGE_PIXELS:
            raise ValueError("no size of an image")
        if kind == RLE_WITHOUT_SIZE and isinstance(counts, str):
            return kind, (-1, -1), counts.encode("ascii")
        rle = utils.annotation_to_rle({"size": [height, width], "counts": counts}, height, width)
        return kind, (height, width) if kind == RLE else (-1, -1), rle["counts"]
    return DAMAGED, (0, 0), b""


def _join_rles(parts: list) -> tuple[int, tuple[int, int], bytes]:
    """The union of the RLEs of an object's parts, as _read_rle returns it."""
    rles = [_read_rle(part) for part in parts if isinstance(part, dict)]
    if len(rles) == 1 and len(parts) == 1:
        return rles[0]
    kinds, sizes, codes = zip(*rles, strict=True)
    if len(rles) < len(parts) or {*kinds} != {RLE} or len({*sizes}) > 1:
        return DAMAGED, (0, 0), b""
    joined = coco_mask.merge([{"size": list(sizes[0]), "counts": code} for code in codes])
    return RLE, sizes[0], joined["counts"]


def _whole_counts(counts: list) -> list[int]:
    """Counts as whole numbers. Raises: ValueError or TypeError if one is none, or longer than any image."""
    if not set(map(type, counts)) <= {int}:
        counts = [whole_number(count) for count in counts]
    if counts and not 0 <= min(counts) <= max(counts) <= utils.MAX_IMAGE_PIXELS:
        raise ValueError("counts that no image has")
    return counts


############################################################
#  Files
############################################################


class CocoFile(NamedTuple):
    """The contents of a file of COCO instances."""

    images: list  # the entries, as the file has them
    categories: list
    table: LabelTable
    listed: int  # the length of the list of annotations
    without_image: list[str]  # places of the annotations that have no image_id, "#12"
    ignored: np.ndarray  # bool [A]: the annotations that are crowds because of their "ignore"
    elsewhere: list[str]  # keys of other lists than annotations that have objects with an image_id
    image_numbers: IdNumbers
    category_numbers: IdNumbers
    annotation_numbers: IdNumbers


def read_file(
    path: Path, image_facts: Sequence[str] = (), is_coco: bool = False, fallback_encoding: str = ""
) -> CocoFile:
    """Reads a file of COCO instances.

    image_facts: as of CocoDataset. is_coco: it is one of COCO's own files, which can be downloaded again.
    fallback_encoding: of a file that is not in UTF-8; empty: such a file is an error.

    Raises: ValueError that names the kind of file, if it is another one; that says what to do, if it is damaged.
    """
    collector = _Collector(image_facts)
    contents = _parse(path, collector, is_coco, fallback_encoding)
    entries = contents.get("annotations") if isinstance(contents, dict) else None
    if isinstance(entries, list) and sum(type(entry) is _Taken for entry in entries) != len(collector.ids):
        # Something inside of an annotation, or outside of the list, has an image_id, too.
        collector = _Collector(image_facts, exact=True)
        contents = _parse(path, collector, is_coco, fallback_encoding)
    expected = "It must be a file of COCO instances: images, categories, and annotations with segmentation"
    other_kind = _recognise_other_kinds(contents, collector)
    if other_kind:
        raise ValueError(f"{path} {other_kind}. {expected}")
    for key in ("images", "categories", "annotations"):
        if not isinstance(contents.get(key), list):
            keys = utils.listed([utils.printable(repr(name), 40) for name in contents], 8) or "none"
            raise ValueError(f"{path} has no list {key!r}; its keys are {keys}. {expected}")
    return _make_file(contents, collector)


def _make_file(contents: dict[str, Any], collector: _Collector) -> CocoFile:
    entries, table, ignored = contents["annotations"], collector.table(), np.asarray(collector.ignored, bool)
    elsewhere = []
    if collector.exact:
        rows = np.array([entry.row for entry in entries if type(entry) is _Taken], np.int64)
        table.keep_rows(rows)
        ignored = ignored[rows]
        lists = {key: value for key, value in contents.items() if key != "annotations" and isinstance(value, list)}
        elsewhere = [key for key, value in lists.items() if any(type(entry) is _Taken for entry in value)]
    return CocoFile(
        images=contents["images"],
        categories=contents["categories"],
        table=table,
        listed=len(entries),
        without_image=[f"#{i}" for i, entry in enumerate(entries) if type(entry) is not _Taken],
        ignored=ignored,
        elsewhere=elsewhere,
        image_numbers=collector.images,
        category_numbers=collector.categories,
        annotation_numbers=collector.annotations,
    )


def _parse(path: Path, hook: Callable[[dict], Any], is_coco: bool, fallback_encoding: str = "") -> Any:
    """json.loads of a file. Raises: ValueError that says what to do."""
    again = "download it again" if is_coco else "export or copy it again"
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; {again}")
    try:
        return json.loads(_text(path, fallback_encoding), object_hook=hook)
    except json.JSONDecodeError as error:
        end = len(error.doc.rstrip())
        cut = error.doc.lstrip()[:1] in ("{", "[") and (error.pos >= end - 10 or error.msg.startswith("Unterminated"))
        problem = "is cut off" if cut else "is not JSON, or damaged"
        place = f"line {error.lineno}, column {error.colno} ({error.msg})"
        interrupted = "was its download or copy interrupted?" if is_coco else "was its export or copy interrupted?"
        message = f"{path} {problem}, at {place}; {interrupted} {again.capitalize()}"
        if error.doc.lstrip()[:1] == "<":
            message = (
                f"{path} is HTML or XML, and not JSON: is it a web page instead of the file, or an export "
                f"in another format? {again.capitalize()}, as JSON in COCO's format"
            )
    except UnicodeDecodeError as error:
        problem = "is no text; is it packed, or another kind of file?"
        if error.object.lstrip()[:1] in (b"{", b"["):
            problem = "is not in UTF-8; if a tool wrote it in another encoding, save it as UTF-8"
        problem = "is cut off" if error.end == len(error.object) else problem
        message = f"{path} {problem} (at byte {error.start}); if it is the right one, {again}"
    except RecursionError:
        message = f"{path} cannot be read as JSON: its brackets are nested too deeply for a file of annotations"
    except ValueError:  # Python refuses them, because they take long
        message = f"{path} cannot be read as JSON: it has a number of thousands of digits; {again}"
    raise ValueError(message)  # Outside of the except blocks, because the errors above keep the whole text in memory.


def _text(path: Path, fallback_encoding: str) -> str:
    """The text of a file, as json.loads decodes it. Its bytes are not in memory while it is parsed."""
    data = path.read_bytes()
    try:
        return data.decode(json.detect_encoding(data), "surrogatepass")
    except UnicodeDecodeError:
        if not fallback_encoding or b"\0" in data:
            raise
        return data.decode(fallback_encoding, "replace")


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
        return "has captions; COCO's download has the instances beside it"
    if len(collector.kinds) and all(kind == MISSING for kind in collector.kinds):
        kind = "keypoints" if "keypoints" in keys else "boxes" if "bbox" in keys else "annotations"
        return f"has {kind} without any segmentation, and masks cannot be learned without"
    if "shapes" in contents and "imagePath" in contents:
        return "is of labelme, one file an image; labelme2coco converts it"
    if any(isinstance(value, dict) and "regions" in value for value in contents.values()):
        return "is of the VGG Image Annotator, which can export COCO"
    if "images" in contents and "annotations" not in contents:
        return "has images without annotations, as COCO's image_info of test has: those labels are not published"
    return ""

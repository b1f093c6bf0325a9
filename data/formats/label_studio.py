"""Label Studio's json: a list of tasks, or JSON_MIN, which is flat.

    [{"data": {"image"}, "annotations": [{"was_cancelled", "result": [{"type": "polygonlabels", "original_width",
       "original_height", "value": {"points": [[x, y]], "polygonlabels": ["horse"]}}]}]}]

Coordinates are percentages of the picture as it is shown. brushlabels have an RLE of RGBA bytes, whose alpha is the
mask.
The first annotation of a task that nobody cancelled counts. Source: label-studio-sdk, converter/brush.py.
"""

import functools
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import utils
from data.listing import PICTURE_SUFFIXES, folder_of
from data.reading import (
    OTHER_FILES,
    UPLOAD,
    Claim,
    NoMasks,
    Reading,
    closed_ring,
    point_array,
    split_of,
    whole_size,
)
from data.records import REMARK, WARNING, Fault, Object, Picture, ellipse

NAME = "label_studio"
TITLE = "Label Studio json"

_SEVERAL = Fault(WARNING, "tasks have annotations by several people", "the first that is not cancelled counts")
_NO_AREA = Fault(REMARK, "regions are boxes, points or other kinds without a mask", "left out")
_KINDS = {"polygonlabels": "polygonlabels", "brushlabels": "brushlabels", "ellipselabels": "ellipselabels",
          "polygon": "labels", "brush": "labels", "ellipse": "labels"}  # fmt: skip
_NO_REGIONS = (None, "labels", "choices", "textarea", "relation", "number", "rating", "taxonomy")


def _is_task(entry: Any) -> bool:
    return isinstance(entry, dict) and (
        (isinstance(entry.get("data"), dict) and ("annotations" in entry or "completions" in entry))
        or ("annotator" in entry and "annotation_id" in entry)
    )


def is_label_studio(value: Any) -> bool:
    """Whether a JSON value is a list of tasks, or one task."""
    entries = value[:5] if isinstance(value, list) else [value]
    return bool(entries) and all(map(_is_task, entries))


def claim(reading: Reading) -> Claim | None:
    """The json files that are lists of tasks."""
    found = reading.looked_into(is_label_studio)
    if not found:
        return None
    count = sum(len(value) if isinstance(value, list) else 1 for value in found.values())
    labels = list(found)
    return Claim(labels, count, f"{labels[0]}: tasks with data and annotations")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each task. Tasks without annotations are not labelled."""
    pictures, boxes, taken = [], 0, set()
    for label in labels:
        value = reading.json(label)
        tasks = value if isinstance(value, list) else [value] if value is not None else []
        for number, task in enumerate(tasks, 1):
            place = f"{label}: task {number}"
            if not _is_task(task):
                reading.findings.add(OTHER_FILES, place)
                continue
            name, results = _image_name(task), _results(reading, place, task)
            path = _find(reading, name, folder_of(label)) if name else None
            if path is None:
                reading.no_picture(f"{place}: {utils.printable(name)}", name)
                continue
            if _is_minimal(task) and path in taken:  # by another person
                reading.findings.add(_SEVERAL, place)
                continue
            taken.add(path)
            split = split_of(reading.listing.relative(path))
            picture = Picture(path, label, _said_size(reading, path, results), split, is_labelled=results is not None)
            boxes += sum(isinstance(r, dict) and "rectangle" in str(r.get("type")) for r in results or ())
            size = picture.label_size or reading.size_of(picture)
            if size is not None:
                picture.objects = list(_objects(reading, f"{label}: {path.name}", results or [], size))
            pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _image_name(task: dict) -> str:
    """The address of a task's image: the first text of its data that looks like one."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = [data.get("image"), data.get("img"), *data.values()]
    suffixes = tuple(PICTURE_SUFFIXES)
    return next(
        (t for t in texts if (isinstance(t, str) and t.lower().split("?")[0].endswith(suffixes)) or _local(t)), ""
    )


def _local(text: Any) -> bool:
    return isinstance(text, str) and "local-files/?d=" in text


def _is_minimal(task: dict) -> bool:
    """Whether a task is of JSON_MIN, which has one for each annotation of a picture."""
    return "annotation_id" in task and "data" not in task


def _find(reading: Reading, address: str, folder: str) -> Path | None:
    """The file of an address. Uploads have eight digits and a - before their name."""
    text = address.partition("?d=")[2] if _local(address) else re.sub(r"^\w+://[^/]*/", "", address.partition("?")[0])
    name = urllib.parse.unquote(text).replace("\\", "/").lstrip("/")
    base = PurePosixPath(name).name
    names = dict.fromkeys((name, f"images/{base}", base, UPLOAD.sub("", base), PurePosixPath(text).name))
    return reading.find(*list(names)[:1], folder, *list(names)[1:])


def _results(reading: Reading, place: str, task: dict) -> list | None:
    """The regions of a task; None if it is not labelled."""
    if _is_minimal(task):
        lists = [value for key, value in task.items() if isinstance(value, list) and key not in ("image",)]
        return [_from_minimal(entry) for entries in lists for entry in entries if isinstance(entry, dict)]
    annotations = task.get("annotations") or task.get("completions") or []
    annotations = annotations if isinstance(annotations, list) else []
    annotations = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if len(annotations) > 1:
        reading.findings.add(_SEVERAL, place)
    if not annotations:
        return None
    result = annotations[0].get("result")
    return result if isinstance(result, list) else []


def _said_size(reading: Reading, path: Path, results: list | None) -> tuple[int, int] | None:
    """(height, width) of the picture that was labelled; None if nothing says it, or says that of the stored pixels.

    Coordinates are percentages of the picture as it is shown, whatever these numbers are.
    """
    sizes = {whole_size(result.get("original_height"), result.get("original_width"))
             for result in results or () if isinstance(result, dict)} - {None}  # fmt: skip
    found = reading.image_size(path)
    is_turned = found is not None and found.shown != found.stored and sizes == {found.stored}
    return sizes.pop() if len(sizes) == 1 and not is_turned else None


def _from_minimal(entry: dict) -> dict:
    kind = next((kind for kind in _KINDS if kind in entry), "polygonlabels" if "points" in entry else "rectanglelabels")
    return {**{key: entry.get(key) for key in ("original_width", "original_height")}, "type": kind, "value": entry}


def _objects(reading: Reading, place: str, results: list, size: tuple[int, int]) -> Iterator[Object]:
    results = [result for result in results if isinstance(result, dict) and result.get("type") not in _NO_REGIONS]
    for parsed, _ in reading.parsed(place, "region", results, functools.partial(_object, size=size), _NO_AREA):
        yield parsed


def _object(result: dict, place: str, size: tuple[int, int]) -> Object | None:
    """The object of a region; None for one without a mask."""
    kind = result["type"]
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    value, (height, width) = result["value"], size
    names = value.get(_KINDS[kind]) or value.get("labels") or [""]
    parsed = Object(str(names[0]) if isinstance(names, list) and names else str(names), place)
    scale = np.array([width, height]) / 100
    if kind.startswith("polygon"):
        parsed.rings = [closed_ring(point_array(value["points"]) * scale)]
    elif kind.startswith("ellipse"):
        x, y, rx, ry = (float(value[name]) for name in ("x", "y", "radiusX", "radiusY"))
        point_array([[x, y], [rx, ry]])
        radii, angle = (rx * scale[0], ry * scale[1]), np.radians(float(value.get("rotation") or 0))
        parsed.rings = [closed_ring(ellipse(x * scale[0], y * scale[1], *radii, angle))]
    else:
        drawn = whole_size(result.get("original_height") or height, result.get("original_width") or width)
        if drawn is None:
            raise ValueError("has a brush on a picture of no size")
        parsed.rle = utils.mask_to_rle(_fitted(brush_mask(value["rle"], *drawn), size))
    return parsed


def _fitted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask in the size of its picture, if it was drawn on one of the same proportions."""
    (height, width), (rows, columns) = size, mask.shape
    if mask.shape == size:
        return mask
    if abs(height * columns / (width * rows) - 1) > 0.01:
        raise ValueError(f"has a brush of {columns} x {rows} pixels, its picture has {width} x {height}")
    return mask[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]


def brush_mask(code: list[int], height: int, width: int) -> np.ndarray:
    """The mask of a brush: bool [height, width].

    code: bytes. In their bits: 32 of the number of values, 5 of the size of a value less 1, four times 4 of the size of
        a length less 1; then runs: 1 bit, whether one value follows or as many as the length says; 2 bits, which of the
        four sizes the length has; the length less 1; the value or values. Values are RGBA.

    Raises: ValueError for damaged bytes.
    """
    bits = np.unpackbits(np.asarray(code, np.uint8).ravel())
    place = 0

    def number(size: int) -> int:
        nonlocal place
        if place + size > len(bits):
            raise ValueError("has a brush that is cut off")
        value = int("".join(map(str, bits[place : place + size])), 2)
        place += size
        return value

    count, word = number(32), number(5) + 1
    if count != 4 * height * width or word != 8:
        raise ValueError(f"has a brush of {count:,} values, not of 4 x {width} x {height}")
    sizes = [number(4) + 1 for _ in range(4)]
    values, filled = np.zeros(count, np.uint8), 0
    while filled < count:
        is_repeated, length = number(1), number(sizes[number(2)]) + 1
        if filled + length > count:
            raise ValueError("has a brush with more values than pixels")
        if is_repeated:
            values[filled : filled + length] = number(word)
        else:
            end = place + word * length
            if end > len(bits):
                raise ValueError("has a brush that is cut off")
            values[filled : filled + length] = np.packbits(bits[place:end])
            place = end
        filled += length
    return values.reshape(height, width, 4)[:, :, 3] > 0

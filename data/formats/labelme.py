"""labelme's json, one file for each picture; AnyLabeling and X-AnyLabeling write the same keys and more.

    {"version", "flags", "shapes": [{"label", "points": [[x, y]], "group_id", "shape_type", "flags", "mask"}],
     "imagePath", "imageData", "imageHeight", "imageWidth"}

Points are pixels of the picture as EXIF turns it. Version 3 has neither shape_type (all are polygons) nor sizes. Shapes
of the same label and group_id are one object. Source: wkentaro/labelme 7.1, _label_file.py and _utils/shape.py.
"""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

import utils
from data.images import decode_png, read_image_bytes
from data.listing import decode_base64, decode_text, folder_of, stem_of
from data.reading import Claim, ObjectGroups, Reading, closed_ring, point_array, split_of, whole_size
from data.records import REMARK, Bitmap, Fault, Object, Picture, bitmap_to_rle, ellipse, rectangle

NAME = "labelme"
TITLE = "labelme json"

_WITHOUT_AREA = ("line", "linestrip", "point", "points")
_NO_AREA = Fault(REMARK, "shapes are lines or points", "left out")


def is_labelme(value: Any) -> bool:
    """Whether a JSON value is a labelme file."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def claim(reading: Reading) -> Claim | None:
    """The json files, if those looked into are of labelme."""
    return reading.claim_json(is_labelme, "shapes and imagePath")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each label file."""
    for label, value in reading.values(labels, is_labelme):
        path, embedded = _find_picture(reading, label, value)
        if path is None and embedded is None:
            reading.no_picture(f"{label}: {utils.printable(value['imagePath'])}", value["imagePath"], label)
            continue
        picture = Picture(path, label, whole_size(value.get("imageHeight"), value.get("imageWidth")), embedded=embedded)
        picture.split = split_of(label if path is None else reading.listing.relative(path))
        size = picture.label_size or reading.size_of(picture)
        if size is not None:
            groups = ObjectGroups(size)
            parse = functools.partial(_object, size=size)
            for parsed, shape in reading.parsed(label, "shape", value["shapes"], parse, _NO_AREA):
                groups.add(parsed, shape.get("group_id"))
            picture.objects = groups.objects
            yield picture


def _find_picture(reading: Reading, label: str, value: dict) -> tuple[Path | None, Any]:
    """The picture's file; without one, a function that reads imageData."""
    name = value["imagePath"]
    parts = PureWindowsPath(name).parts if isinstance(name, str) else ()
    path = reading.find("/".join(parts), folder_of(label))
    if path is None and (path := reading.find_stem(stem_of(label), folder_of(label))) and parts:
        reading.note_name(name, reading.listing.relative(path), ("by that of the label file",))
    if path is None and isinstance(value.get("imageData"), str):
        return None, functools.partial(embedded_picture, reading.listing.path(label))
    return path, None


def embedded_picture(path: Path) -> np.ndarray:
    """The picture in the imageData of a label file, uint8 [H, W, 3]. Raises: ValueError if it is damaged."""
    text, _ = decode_text(path.read_bytes(), path.name)
    try:
        data = decode_base64(json.loads(text)["imageData"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{utils.printable(path, 500)}: imageData is no base64") from None
    return read_image_bytes(data, f"imageData of {path}")


def _object(shape: Any, place: str, size: tuple[int, int]) -> Object | None:
    """The object of a shape; None for one without an area."""
    if not isinstance(shape, dict):
        raise ValueError("is no object")
    label = str(shape["label"]) if type(shape.get("label")) is int else shape.get("label")
    kind = shape.get("shape_type") or "polygon"
    if kind in _WITHOUT_AREA:
        return None
    points = point_array(shape["points"])
    found = Object(label if isinstance(label, str) else "", place)
    if kind == "mask":
        found.rle = _mask(shape.get("mask"), points, size)
    elif kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        found.rings = [closed_ring(ellipse(*points[0], radius, radius))]
    elif kind == "rectangle" and len(points) == 2:
        found.rings = [closed_ring(rectangle(*points.min(axis=0), *points.max(axis=0)))]
    elif kind in ("polygon", "oriented_rectangle", "rectangle", "rotation"):
        found.rings = [closed_ring(points)]
    else:
        raise ValueError(f"has the shape_type {str(kind)[:40]!r} with {len(points)} points")
    return found


def _mask(text: Any, points: np.ndarray, size: tuple[int, int]) -> dict:
    """The RLE of a mask: a PNG of the box whose corners are the points, both inside."""
    mask = decode_png(decode_base64(text), size, "L") > 0
    x, y = np.round(points.min(axis=0)).astype(int).tolist()
    return bitmap_to_rle(Bitmap(y, x, mask), *size)

"""Datumaro's own json: a file for each subset, and the pictures of each subset in a folder.

    annotations/SUBSET.json, images/SUBSET/NAME
    {"dm_format_version", "categories": {"label": {"labels": [{"name"}]}},
     "items": [{"id", "image": {"path", "size": [height, width]},
                "annotations": [{"type": "polygon" | "mask" ..., "label_id", "group", "points": [x1, y1, ...],
                                 "rle": {"counts", "size"}, "attributes": {"is_crowd"}}]}]}

Polygons and masks of one group and label are one object. Source: datumaro 1.13, plugins/data_formats/datumaro.
"""

import functools
from collections.abc import Iterator
from typing import Any

import utils
from data.listing import PICTURE_SUFFIXES, folder_of, stem_of, suffix_of
from data.reading import Claim, NoMasks, ObjectGroups, Reading, closed_ring, point_array, split_of, whole_size
from data.records import REMARK, Fault, Object, Picture, ellipse

NAME = "datumaro"
TITLE = "Datumaro json"

_NO_AREA = Fault(REMARK, "annotations are boxes, points, lines or other kinds without a mask", "left out")


def is_datumaro(value: Any) -> bool:
    """Whether a JSON value is a subset of a data set."""
    return isinstance(value, dict) and isinstance(value.get("items"), list) and "categories" in value


def claim(reading: Reading) -> Claim | None:
    """The json files with items and categories."""
    values = reading.looked_into(is_datumaro)
    pictures = sum(len(value["items"]) or 1 for value in values.values())
    return Claim(list(values), pictures, f"{utils.listed(list(values), 3)}: items and categories") if values else None


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each item."""
    pictures, boxes = [], 0
    for label, value in reading.values(labels, is_datumaro):
        names = _class_names(value)
        for number, item in enumerate(value["items"], 1):
            path = _find_picture(reading, label, item) if isinstance(item, dict) else None
            if path is None:
                name = item.get("id") if isinstance(item, dict) else None
                reading.no_picture(f"{label}: item {number}: {utils.printable(name)}", name)
                continue
            size = _said_size(item)
            picture = Picture(path, label, size, split_of(f"{stem_of(label)}/x"))
            size = size or reading.size_of(picture)
            entries = item.get("annotations") if size and isinstance(item.get("annotations"), list) else []
            place, groups = f"{label}: item {number} ({path.name})", ObjectGroups(size)
            parse = functools.partial(_object, names=names, size=size)
            for parsed, entry in reading.parsed(place, "annotation", entries, parse, _NO_AREA):
                groups.add(parsed, entry.get("group") or None)
            picture.objects = groups.objects
            boxes += sum(isinstance(entry, dict) and entry.get("type") == "bbox" for entry in entries)
            pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _class_names(value: dict) -> list[str]:
    """The names of the labels, by their numbers; none for damaged categories."""
    label = value["categories"].get("label") if isinstance(value["categories"], dict) else None
    labels = label.get("labels") if isinstance(label, dict) else None
    labels = labels if isinstance(labels, list) else []
    return [str(entry.get("name") or "") if isinstance(entry, dict) else "" for entry in labels]


def _find_picture(reading: Reading, label: str, item: dict):
    """The picture of an item: images/SUBSET/PATH, above the folder of the label file; else of the id's name."""
    image = item.get("image") if isinstance(item.get("image"), dict) else {}
    names = [name for name in (image.get("path"), item.get("id")) if isinstance(name, str) and name]
    above, subset = folder_of(folder_of(label)), stem_of(label)
    folder = f"{above}/images/{subset}".strip("/")
    for name in names:
        path = reading.find(name, folder) if suffix_of(name) in PICTURE_SUFFIXES else None
        path = path or reading.find_stem(name.rpartition("/")[2], folder_of(f"{folder}/{name}"))
        if path is not None:
            return path
    return None


def _said_size(item: dict) -> tuple[int, int] | None:
    size = item["image"].get("size") if isinstance(item.get("image"), dict) else None
    return whole_size(*size) if isinstance(size, list) and len(size) == 2 else None


def _object(entry: dict, place: str, names: list[str], size: tuple[int, int]) -> Object | None:
    """The object of an annotation; None for one without a mask."""
    kind, number = entry["type"], entry.get("label_id")
    if kind not in ("polygon", "mask", "ellipse"):
        return None
    if type(number) is not int or not 0 <= number < len(names):
        raise ValueError(f"has the label_id {utils.printable(number, 40)}, of {len(names)} labels")
    attributes = entry.get("attributes")
    is_crowd = isinstance(attributes, dict) and attributes.get("is_crowd") is True
    parsed = Object(names[number], place, is_crowd=is_crowd)
    if kind == "mask":
        parsed.rle = utils.annotation_to_rle(entry["rle"], *size)
        return parsed
    points = entry["points"]
    points = point_array([points[i : i + 2] for i in range(0, len(points), 2)])
    if kind == "ellipse":  # its box
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        points = ellipse((x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2)
    parsed.rings = [closed_ring(points)]
    return parsed

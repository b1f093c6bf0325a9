"""ISAT's json, one file for each picture: polygons that Segment Anything proposed.

    {"info": {"description": "ISAT", "name", "width", "height"},
     "objects": [{"category", "group", "segmentation": [[x, y]], "layer", "iscrowd"}]}

Polygons of one group and category are one object. Objects of the category __background__ are none: they only hide what
lies below them in ISAT's own masks. Source: ISAT_with_segment_anything 1.4, formats/isat.py and formats/coco.py.
"""

from collections.abc import Iterator
from typing import Any

import utils
from data.listing import folder_of, stem_of
from data.reading import Claim, ObjectGroups, Reading, closed_ring, point_array, split_of, whole_size
from data.records import REMARK, Fault, Object, Picture

NAME = "isat"
TITLE = "ISAT json"

_BACKGROUND = Fault(REMARK, "polygons are of the category __background__", "left out: they are no objects")


def is_isat(value: Any) -> bool:
    """Whether a JSON value is the annotation of a picture."""
    if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
        return False
    info = value.get("info")
    return isinstance(info, dict) and str(info.get("description")).startswith("ISAT")


def claim(reading: Reading) -> Claim | None:
    """The json files whose info says ISAT."""
    return reading.claim_json(is_isat, "objects, and ISAT in info")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file."""
    for label, value in reading.values(labels, is_isat):
        name, folder = value["info"].get("name"), folder_of(label)
        path = reading.find(name, folder) if isinstance(name, str) else None
        path = path or reading.find_stem(stem_of(label), folder)
        if path is None:
            reading.no_picture(f"{label}: {utils.printable(name)}", name, label)
            continue
        size = whole_size(value["info"].get("height"), value["info"].get("width"))
        picture = Picture(path, label, size, split_of(reading.listing.relative(path)))
        size = size or reading.size_of(picture)
        if size is not None:
            groups = ObjectGroups(size)
            for parsed, entry in reading.parsed(label, "object", value["objects"], _object, _BACKGROUND):
                groups.add(parsed, entry.get("group") or None)
            picture.objects = groups.objects
            yield picture


def _object(entry: dict, place: str) -> Object | None:
    """The object of a polygon; None for one of the background."""
    if entry["category"] == "__background__":
        return None
    ring = closed_ring(point_array(entry["segmentation"]))
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box):
        box = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    else:
        box = None
    return Object(str(entry["category"]), place, [ring], is_crowd=entry.get("iscrowd") in (True, 1), box=box)

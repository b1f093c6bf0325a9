"""Writes records as a file of instances in COCO's format."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import utils
from data.formats.coco_file import LABELLED
from data.object_checks import class_name
from data.recognise import Records

from .common import check_embedded, class_names, copy_all, file_names
from .streams import stream_json

NAME = "annotations.json"


def write_coco(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/annotations.json, completely or not at all.

    File names are relative to the data set, or, with copy_pictures, to the folder, where the pictures then lie at the
    same places. Masks are compressed RLEs in the frame of width and height; crowds have iscrowd 1. Each image has its
    split as the key "split", if the set has splits, and the classes that are labelled in it as "labelled_classes", if
    not all are. Categories are numbered from 1. Attributes of objects are in the
    key "attributes", as CVAT writes them, and their score is in the key "score", too.

    notes: as data/writers/common.py says; COCO's format holds everything.

    Returns: the file.
    Raises: ValueError if pictures lie inside label files and copy_pictures is False; OSError if the disk is full.
    """
    check_embedded(records, copy_pictures)
    if copy_pictures and folder.resolve() == records.root.resolve():
        raise ValueError(f"OUT is {folder}, where the pictures are already; leave out --copy-pictures, or name another")
    names = file_names(records, copy_pictures)
    if copy_pictures:
        copy_all(records, folder, names)
    return stream_json(folder / NAME, _contents(records, names))


def _contents(records: Records, names: list[str]) -> dict[str, Any]:
    number_of = {name: number for number, name in enumerate(class_names(records), start=1)}
    images = []
    for number, (picture, name) in enumerate(zip(records.pictures, names, strict=True), start=1):
        facts = {"split": picture.split} if picture.split else {}
        if picture.labelled_classes is not None:  # a class without an object is no category
            facts[LABELLED] = [name for name in picture.labelled_classes if name in number_of]
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height, **facts})
    return {
        "info": {"description": f"converted from {records.title} by custom.py convert"},
        "images": images,
        "annotations": _annotations(records, number_of),
        "categories": [{"id": number, "name": name} for name, number in number_of.items()],
    }


def _annotations(records: Records, number_of: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The entries of all objects. They are never in memory together, and no more are those of a large image."""
    ids = itertools.count(1)
    for number, picture in enumerate(records.pictures, start=1):
        for parsed in picture.objects:
            rle = parsed.mask(picture.height, picture.width)
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            entry = {
                "id": next(ids),
                "image_id": number,
                "category_id": number_of[class_name(parsed)],
                "segmentation": utils.rle_to_json(rle),
                "area": utils.rle_area(rle),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": int(parsed.is_crowd),
            }
            if parsed.attributes:
                score = {"score": parsed.attributes["score"]} if "score" in parsed.attributes else {}
                entry |= {**score, "attributes": parsed.attributes}
            yield entry

"""SA-1B's json: a file for each picture, with masks and without classes.

    {"image": {"file_name", "height", "width"}, "annotations": [{"segmentation": {"size", "counts"}, "bbox", "id"}]}

Segment Anything and datumaro write it. Source: the description of SA-1B's download.
"""

import functools
from collections.abc import Iterator
from typing import Any

import utils
from data.listing import folder_of, stem_of
from data.reading import Claim, NoMasks, Reading, split_of, whole_size
from data.records import ERROR, Fault, Object, Picture

NAME = "sa1b"
TITLE = "SA-1B json"

_BOXES = Fault(ERROR, "annotations are boxes among masks", "left out: a box is no mask")


def is_sa1b(value: Any) -> bool:
    """Whether a JSON value is a file of one picture."""
    is_dict = isinstance(value, dict) and isinstance(value.get("image"), dict)
    return is_dict and isinstance(value.get("annotations"), list)


def claim(reading: Reading) -> Claim | None:
    """The json files with one image and annotations."""
    return reading.claim_json(is_sa1b, "an image and annotations")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file."""
    pictures, boxes = [], 0
    for label, value in reading.values(labels, is_sa1b):
        name = value["image"].get("file_name")
        path = reading.find(name, folder_of(label)) if isinstance(name, str) else None
        path = path or reading.find_stem(stem_of(label), folder_of(label))
        if path is None:
            reading.no_picture(f"{label}: {utils.printable(name)}", name, label)
            continue
        said = whole_size(value["image"].get("height"), value["image"].get("width"))
        picture = Picture(path, label, said, split_of(reading.listing.relative(path)))
        size = said or reading.size_of(picture)
        entries = value["annotations"] if size else []
        parse = functools.partial(_object, size=size)
        picture.objects = [parsed for parsed, _ in reading.parsed(label, "annotation", entries, parse, _BOXES)]
        boxes += sum(_is_box(entry) for entry in entries)
        pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _is_box(entry: Any) -> bool:
    return isinstance(entry, dict) and "segmentation" not in entry and "bbox" in entry


def _object(entry: dict, place: str, size: tuple[int, int]) -> Object | None:
    """The object of an annotation; None for a box alone."""
    return None if _is_box(entry) else Object("", place, rle=utils.annotation_to_rle(entry["segmentation"], *size))

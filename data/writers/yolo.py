"""Writes records as YOLO's segmentation labels: data.yaml, images/, and labels/ with a line for each object.

A line is one polygon. Several parts are joined into one by bridges of no width, as ultralytics does it
(data/converter.py, merge_multi_segment), and so are holes. Filled by the centres of pixels, the polygon is the mask to
the bit. ultralytics fills outlines, too, and so also the line of the bridge between two parts.
"""

from pathlib import Path, PurePosixPath

import numpy as np

import utils
from data.object_checks import class_name
from data.reading import split_of
from data.recognise import Records
from data.records import SPLITS

from .common import (
    Labelled,
    class_names,
    copy_all,
    file_names,
    labelled,
    note,
    note_attributes,
    unique_stems,
    without_crowds,
    write_text,
)
from .outlines import inset, join_rings, outlines


def write_yolo(records: Records, folder: Path, copy_pictures: bool = True, notes: list[str] | None = None) -> Path:
    """Writes folder/data.yaml, images/SPLIT/ and labels/SPLIT/. Without splits, both are without such a folder.

    The pictures are always copied: ultralytics finds the labels of a picture by its path alone, in the folder labels/
    beside images/. copy_pictures changes nothing. notes: as data/writers/common.py says.

    Returns: data.yaml.
    """
    records = without_crowds(records, notes)
    note_attributes(records, notes)
    names = _plan(records, notes)
    number_of = {name: number for number, name in enumerate(class_names(records))}
    copy_all(records, folder / "images", names)
    for found in labelled(records, names):
        lines = [_line(number_of[class_name(parsed)], rle, found) for parsed, rle in found.objects]
        path = folder / "labels" / PurePosixPath(found.name).with_suffix(".txt")
        write_text(path, "".join(f"{line}\n" for line in lines))
    note(notes, len(names), "pictures are copied: ultralytics finds labels only beside them")
    return write_text(folder / "data.yaml", _data_yaml(records, number_of, notes))


def _plan(records: Records, notes: list[str] | None) -> list[str]:
    """The name of each picture below images/: its split, then its folders but those that say images, labels or a split.

    ultralytics replaces the last folder images of a path by labels.
    """
    names = []
    for picture, name in zip(records.pictures, map(PurePosixPath, file_names(records, True)), strict=True):
        folders = [
            part for part in name.parts[:-1] if part.lower() not in ("images", "labels") and not split_of(f"{part}/x")
        ]
        names.append(PurePosixPath(picture.split or "", *folders, name.name))
    return unique_stems(names, notes)


def _line(number: int, rle: dict, found: Labelled) -> str:
    """An object's line: the number of its class, and fractions of the width and height."""
    y1, x1, crop = utils.rle_to_crop(rle)
    parts = outlines(crop)
    rings = [inset(ring) for part in parts for ring in (part.outer, *part.holes)]
    points = np.add(join_rings(rings), [x1, y1]) / [found.width, found.height]
    return " ".join([str(number), *(f"{value:.9g}" for value in np.clip(points, 0, 1).ravel().tolist())])


def _data_yaml(records: Records, number_of: dict[str, int], notes: list[str] | None) -> str:
    import yaml  # here: few commands write such files

    splits = [split for split in SPLITS if any(picture.split == split for picture in records.pictures)]
    places = {split: f"images/{split}" for split in splits}
    if not splits:
        places = {"train": "images", "val": "images"}
        note(notes, len(records.pictures), "pictures have no split: data.yaml has all for train and for val")
    elif any(picture.split is None for picture in records.pictures):
        count = sum(picture.split is None for picture in records.pictures)
        note(notes, count, "pictures have no split, and data.yaml does not lead to them")
    value = {**places, "names": {number: name for name, number in number_of.items()}}
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10_000)

"""Writes records as a file of instances in COCO's format."""

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

import runtime
import utils
from data.object_checks import class_name, picture_name, sorted_names
from data.recognise import Records
from data.records import Picture

NAME = "annotations.json"


def write_coco(records: Records, folder: Path, copy_pictures: bool = False) -> Path:
    """Writes folder/annotations.json, completely or not at all.

    File names are relative to the data set, or, with copy_pictures, to the folder, where the pictures then lie at the
    same places. Masks are compressed RLEs in the frame of width and height; crowds have iscrowd 1. Each image has its
    split as the key "split", if the set has splits. Categories are numbered from 1 in the order of sorted_names.

    Returns: the file.
    Raises: ValueError if pictures lie inside label files and copy_pictures is False; OSError if the disk is full.
    """
    embedded = [picture for picture in records.pictures if picture.path is None]
    if embedded and not copy_pictures:
        names = utils.listed([utils.printable(picture.label) for picture in embedded], 3)
        raise ValueError(
            f"{len(embedded)} pictures are inside their label files ({names}), so no file name can lead to them; "
            "--copy-pictures writes them beside the annotations"
        )
    if copy_pictures and folder.resolve() == records.root.resolve():
        raise ValueError(f"OUT is {folder}, where the pictures are already; leave out --copy-pictures, or name another")
    folder.mkdir(parents=True, exist_ok=True)
    names = [_file_name(records, picture) for picture in records.pictures]
    if copy_pictures:
        for picture, name in zip(records.pictures, names, strict=True):
            _copy(picture, folder / name)
    text = json.dumps(_contents(records, names), ensure_ascii=False)
    path = folder / NAME
    runtime.write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    return path


def _file_name(records: Records, picture: Picture) -> str:
    name = picture_name(records, picture)
    return name if picture.path is not None else str(PurePosixPath(name).with_suffix(".png"))


def _copy(picture: Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.path is not None:
        with picture.path.open("rb") as source:
            runtime.write_atomically(path, lambda file: shutil.copyfileobj(source, file))
    else:
        pixels = Image.fromarray(picture.embedded())
        runtime.write_atomically(path, lambda file: pixels.save(file, "PNG"))


def _contents(records: Records, file_names: list[str]) -> dict[str, Any]:
    classes = sorted_names(records.pictures)
    number_of = {name: number for number, name in enumerate(classes, start=1)}
    images, annotations = [], []
    for number, (picture, name) in enumerate(zip(records.pictures, file_names, strict=True), start=1):
        split = {"split": picture.split} if picture.split else {}
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height, **split})
        for parsed in picture.objects:
            rle = parsed.mask(picture.height, picture.width)
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": number_of[class_name(parsed)],
                    "segmentation": utils.rle_to_json(rle),
                    "area": utils.rle_area(rle),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(parsed.is_crowd),
                    **({"attributes": parsed.attributes} if parsed.attributes else {}),
                }
            )
    return {
        "info": {"description": f"converted from {records.title} by custom.py convert"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in number_of.items()],
    }

"""Writes records as labelme's json, one file for each picture.

A part of an object is a polygon along the edges of its pixels, and parts of one object have one group_id. An object
with holes is a shape of the type mask, because labelme's polygons have none. Either gives the mask back to the bit,
filled by the centres of pixels or by labelme itself, with the outline.
"""

import base64
import io
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

import utils
from data.object_checks import class_name
from data.recognise import Records
from data.records import Object

from .common import Labelled, attribute_text, each_picture, write_json
from .outlines import inset, outlines

VERSION = "6.3.1"  # of labelme, whose files these are like


def write_labelme(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/NAME.json for each picture. With copy_pictures the picture lies beside it; without, imagePath leads
    to it from there.

    notes: as data/writers/common.py says. Attributes are in the description of a shape, and in its key attributes.

    Returns: the folder.
    """
    for found in each_picture(records, folder, copy_pictures, notes):
        path = folder / PurePosixPath(found.name).with_suffix(".json")
        image_path = PurePosixPath(found.name).name if copy_pictures else _path_from(path.parent, found)
        write_json(path, _contents(found, image_path), indent=1)
    return folder


def _path_from(folder: Path, found: Labelled) -> str:
    """The path of a picture from the folder of its label file; a full one if there is no other."""
    picture = found.picture
    if picture.embedded is not None:  # in an object store
        return PurePosixPath(found.name).name
    try:
        return Path(os.path.relpath(picture.path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return picture.path.resolve().as_posix()


def _contents(found: Labelled, image_path: str) -> dict[str, Any]:
    shapes: list[dict] = []
    groups = 0
    for parsed, rle in found.objects:
        y1, x1, crop = utils.rle_to_crop(rle)
        parts = outlines(crop)
        if any(part.holes for part in parts):
            y2, x2 = y1 + crop.shape[0] - 1, x1 + crop.shape[1] - 1  # both corners lie inside
            shapes.append(_shape(parsed, [[x1, y1], [x2, y2]], "mask", mask=_png(crop)))
            continue
        groups += len(parts) > 1
        for part in parts:
            points = np.add(inset(part.outer), [x1, y1]).tolist()
            shapes.append(_shape(parsed, points, "polygon", groups if len(parts) > 1 else None))
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": found.height,
        "imageWidth": found.width,
    }


def _shape(parsed: Object, points: list, kind: str, group: int | None = None, mask: str | None = None) -> dict:
    shape = {
        "label": class_name(parsed),
        "points": points,
        "group_id": group,
        "description": ", ".join(f"{name} {value}" for name, value in attribute_text(parsed).items()),
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }
    return {**shape, "attributes": parsed.attributes} if parsed.attributes else shape


def _png(crop: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(crop).convert("1").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

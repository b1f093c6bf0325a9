"""Supervisely's projects: meta.json, DATASET/img/NAME, DATASET/ann/NAME.json.

    {"size": {"height", "width"}, "objects": [{"classTitle", "geometryType": "polygon" | "bitmap" | "rectangle" ...,
       "points": {"exterior": [[x, y]], "interior": [[[x, y]]]}, "bitmap": {"origin": [x, y], "data"}}]}

data is base64 of zlib of a PNG, whose alpha, or whose only channel, is the mask.
Source: supervisely 6.74, geometry/bitmap.py.
"""

import functools
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from data.images import decode_png
from data.listing import decode_base64, folder_of, stem_of
from data.reading import (
    Claim,
    NoMasks,
    Reading,
    closed_ring,
    point_array,
    split_of,
    whole_size,
)
from data.records import REMARK, Bitmap, Fault, Object, Picture, bitmap_to_rle

NAME = "supervisely"
TITLE = "Supervisely json"

_NO_AREA = Fault(REMARK, "figures are boxes, points or lines", "left out")
_MAX_BYTES = 1 << 26  # of an unpacked PNG


def is_supervisely(value: Any) -> bool:
    """Whether a JSON value is the annotation of a picture."""
    return isinstance(value, dict) and isinstance(value.get("objects"), list) and isinstance(value.get("size"), dict)


def claim(reading: Reading) -> Claim | None:
    """The json files with objects and a size."""
    return reading.claim_json(is_supervisely, "objects and size")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each annotation."""
    pictures, boxes = [], 0
    for label, value in reading.values(labels, is_supervisely):
        folder = PurePosixPath(folder_of(label))
        name, images = stem_of(label), (folder.parent / "img").as_posix()
        path = reading.find_stem(name, images, anywhere=False) or reading.find(name, images)
        if path is None:
            reading.no_picture(label, name)
            continue
        size = whole_size(value["size"].get("height"), value["size"].get("width"))
        picture = Picture(path, label, size, split_of(reading.listing.relative(path)) or _split_of_tags(value))
        size = size or reading.size_of(picture)
        entries = value["objects"] if size else []
        parse = functools.partial(_object, size=size)
        picture.objects = [parsed for parsed, _ in reading.parsed(label, "object", entries, parse, _NO_AREA)]
        boxes += sum(isinstance(entry, dict) and entry.get("geometryType") == "rectangle" for entry in entries)
        pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _split_of_tags(value: dict) -> str | None:
    """The split that a picture's tags name."""
    tags = value.get("tags") if isinstance(value.get("tags"), list) else []
    splits = (split_of(f"{tag.get('name')}/x") for tag in tags if isinstance(tag, dict))
    return next(filter(None, splits), None)


def _object(entry: dict, place: str, size: tuple[int, int]) -> Object | None:
    kind = entry.get("geometryType")
    parsed = Object(str(entry.get("classTitle") or ""), place)
    if kind == "polygon":
        parsed.rings = [closed_ring(point_array(entry["points"]["exterior"]))]
        parsed.holes = [point_array(ring) for ring in entry["points"].get("interior") or []]
    elif kind == "bitmap":
        x, y = entry["bitmap"]["origin"]
        parsed.rle = bitmap_to_rle(Bitmap(int(y), int(x), bitmap_mask(entry["bitmap"]["data"], size)), *size)
    else:
        return None
    return parsed


def bitmap_mask(text: str, size: tuple[int, int]) -> np.ndarray:
    """The mask in a bitmap's data: bool [height, width]. size: of the picture, which no mask may exceed."""
    try:
        png = zlib.decompressobj().decompress(decode_base64(text), _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"has a bitmap that cannot be unpacked: {error}") from None
    values = decode_png(png, size)
    if values.ndim == 3:
        return values[:, :, -1] > 0
    return values > 0

"""Writes records as QuPath's GeoJSON, one file for each picture.

Polygons go along the edges of pixels, with their holes, and give the mask back to the bit. Objects are annotations,
which QuPath lets its user edit. Numbers among the attributes are measurements, and texts are metadata.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import utils
from data.object_checks import class_name
from data.recognise import Records
from data.records import Object

from .common import each_picture, write_json
from .outlines import outlines


def write_geojson(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/NAME.geojson for each picture; with copy_pictures, the pictures beside them.

    notes: as data/writers/common.py says.

    Returns: the folder.
    """
    for found in each_picture(records, folder, copy_pictures, notes):
        features = [_feature(parsed, rle) for parsed, rle in found.objects]
        path = folder / PurePosixPath(found.name).with_suffix(".geojson")
        write_json(path, {"type": "FeatureCollection", "features": features})
    return folder


def _feature(parsed: Object, rle: dict) -> dict[str, Any]:
    y1, x1, crop = utils.rle_to_crop(rle)
    parts = [[_closed(np.add(ring, [x1, y1])) for ring in (part.outer, *part.holes)] for part in outlines(crop)]
    is_one = len(parts) == 1
    properties: dict[str, Any] = {"objectType": "annotation", "classification": {"name": class_name(parsed)}}
    texts = {name: value for name, value in parsed.attributes.items() if isinstance(value, str)}
    numbers = {name: value for name, value in parsed.attributes.items() if name not in texts}
    properties |= {"measurements": numbers} if numbers else {}
    properties |= {"metadata": texts} if texts else {}
    geometry = {"type": "Polygon" if is_one else "MultiPolygon", "coordinates": parts[0] if is_one else parts}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _closed(ring: np.ndarray) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]

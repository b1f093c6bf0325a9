"""Writes records as QuPath's GeoJSON, one file for each picture.

Polygons go along the edges of pixels, with their holes, and give the mask back to the bit. Of a picture with a
georeference they have the map's coordinates. Objects are annotations,
which QuPath lets its user edit. Numbers among the attributes are measurements, and texts are metadata.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import utils
from data.crops import Crop
from data.object_checks import class_name
from data.recognise import Records
from data.records import Object

from .common import each_picture
from .outlines import outlines
from .streams import stream_json

_DEFAULT_CRS = ("EPSG:4326", "OGC:CRS84")  # RFC 7946's own; a file in it names none


def write_geojson(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/NAME.geojson for each picture; with copy_pictures, the pictures beside them.

    notes: as data/writers/common.py says.

    Returns: the folder.
    """
    for found in each_picture(records, folder, copy_pictures, notes):
        crs, transform = found.picture.georeference or (None, None)
        features = (feature(parsed, Crop(*utils.rle_to_crop(rle)), transform) for parsed, rle in found.objects)
        write_features(folder / PurePosixPath(found.name).with_suffix(".geojson"), features, crs)
    return folder


def write_features(path: Path, features: Iterator[dict[str, Any]], crs: str | None = None) -> Path:
    """Writes a FeatureCollection, feature by feature, completely or not at all.

    crs: the coordinate reference of the features, as "EPSG:32633" or in another way that GDAL knows. It becomes the
        member crs of the older GeoJSON 2008, which GDAL, QGIS and geopandas read. RFC 7946 has only longitude and
        latitude in WGS84, for which a file names no reference. None or empty: pixels, or a map without a name.
    """
    named = {} if not crs or crs.upper() in _DEFAULT_CRS else {"crs": _crs_member(crs)}
    return stream_json(path, {"type": "FeatureCollection", **named, "features": features})


def _crs_member(crs: str) -> dict[str, Any]:
    code = re.fullmatch(r"(\w+):(\w+)", crs)
    return {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{code[1].upper()}::{code[2]}" if code else crs}}


def feature(parsed: Object, crop: Crop, transform: Sequence[float] | None = None) -> dict[str, Any]:
    """An object as a feature, as json.dump takes it.

    crop: its mask, not empty. transform: (a, b, c, d, e, f) of a map: a corner (x, y) of a pixel lies at
        (a x + b y + c, d x + e y + f); None: coordinates are pixels. Programs for maps show what lies directly in the
        properties, and QuPath shows measurements, so on a map the attributes are in both places.
    """
    parts = [
        [_closed(np.add(ring, [crop.x, crop.y]), transform) for ring in (part.outer, *part.holes)]
        for part in outlines(crop.mask)
    ]
    is_one = len(parts) == 1
    properties: dict[str, Any] = {"objectType": "annotation", "classification": {"name": class_name(parsed)}}
    texts = {name: value for name, value in parsed.attributes.items() if isinstance(value, str)}
    numbers = {name: value for name, value in parsed.attributes.items() if name not in texts}
    properties |= {"measurements": numbers} if numbers else {}
    properties |= {"metadata": texts} if texts else {}
    properties |= {} if transform is None else {"class": parsed.name, **parsed.attributes}
    geometry = {"type": "Polygon" if is_one else "MultiPolygon", "coordinates": parts[0] if is_one else parts}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _closed(ring: np.ndarray, transform: Sequence[float] | None) -> list[list[float]]:
    """A ring whose first point comes again at the end. Outer rings run counterclockwise, as RFC 7946 has them."""
    if transform is not None:
        a, b, c, d, e, f = transform
        x, y = ring.T
        ring = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        ring = ring[::-1] if a * e - b * d < 0 else ring  # a map's y leads up, a picture's down
    return [*ring.tolist(), ring[0].tolist()]

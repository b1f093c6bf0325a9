"""QuPath's GeoJSON, one file for each picture: a FeatureCollection, or a bare list of features; also packed, .gz.

    {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[x, y]]]},
     "properties": {"objectType": "annotation" | "detection" | "cell", "classification": {"name"}}}

Coordinates are pixels of the full picture, whole numbers at the corners of pixels. Later rings of a polygon are holes.
An annotation that has detections or cells in it marks a region and is no object.
Source: qupath-docs, exporting annotations.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage

from data.listing import folder_of, stem_of, suffix_of
from data.reading import (
    Claim,
    Reading,
    closed_ring,
    point_array,
    split_of,
)
from data.records import REMARK, Fault, Object, Picture, even_odd

NAME = "geojson"
TITLE = "QuPath GeoJSON"

_REGIONS = Fault(REMARK, "annotations mark regions with detections or cells in them", "left out: they are no objects")
_NO_AREA = Fault(REMARK, "features are points or lines", "left out")


def features_of(value: Any) -> list | None:
    """The features of a JSON value; None if it is no GeoJSON."""
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        value = value.get("features")
    elif isinstance(value, dict) and value.get("type") == "Feature":
        value = [value]
    is_list = isinstance(value, list) and all(isinstance(f, dict) and f.get("type") == "Feature" for f in value)
    return value if is_list and (value or value == []) else None


def _is_geojson(value: Any) -> bool:
    return bool(features_of(value)) or (isinstance(value, dict) and value.get("type") in ("FeatureCollection", []))


def claim(reading: Reading) -> Claim | None:
    """The geojson files, and json files with features."""
    return reading.claim_json(_is_geojson, "features with a geometry", ".geojson", ".json", ".gz")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file, of the same stem."""
    for label, value in reading.values(labels, lambda value: features_of(value) is not None):
        path = _find_picture(reading, label)
        if path is None:
            reading.no_picture(label, label)
            continue
        picture = Picture(path, label, split=split_of(reading.listing.relative(path)))
        size = reading.size_of(picture)
        if size is not None:
            picture.objects = list(_objects(reading, label, features_of(value), size))
            yield picture


def _find_picture(reading: Reading, label: str) -> Path | None:
    """The picture of the same stem: of slide.geojson, slide.geojson.gz, slide.ome.geojson or slide.tif.geojson."""
    stem, folder = stem_of(label), folder_of(label)
    stem = stem_of(stem) if suffix_of(label) == ".gz" else stem
    exact = reading.find_stem(stem, folder)
    if exact is not None or "." not in stem:
        return exact
    return reading.find(stem, folder) or reading.find_stem(stem_of(stem), folder)


def _objects(reading: Reading, label: str, features: list[dict], size: tuple[int, int]) -> Iterator[Object]:
    pairs = reading.parsed(label, "feature", features, functools.partial(_object, size=size), _NO_AREA)
    parsed = [(found, _first_ring(feature), _type_of(feature)) for found, feature in pairs]
    centres = [ring.mean(axis=0) for _, ring, kind in parsed if kind in ("detection", "cell")]
    for found, ring, kind in parsed:
        if kind not in ("detection", "cell") and centres and skimage.measure.points_in_poly(centres, ring).any():
            reading.findings.add(_REGIONS, f"{label}: {found.place}")
        else:
            yield found


def _type_of(feature: dict) -> str:
    """annotation, detection, cell or another word, as QuPath 0.4, 0.3 and 0.2 write it."""
    properties = _properties(feature)
    kind = properties.get("objectType") or properties.get("object_type") or feature.get("id") or ""
    return re.sub(r"^Path|Object$", "", str(kind)).lower()


def _polygons(geometry: dict) -> list[list[np.ndarray]]:
    """The rings of each polygon, the outer one first. A third coordinate, the slice, is left out."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [[point_array([point[:2] for point in ring]) for ring in polygon] for polygon in polygons]


def _first_ring(feature: dict) -> np.ndarray:
    return _polygons(feature["geometry"])[0][0]


def _properties(feature: dict) -> dict:
    return feature["properties"] if isinstance(feature.get("properties"), dict) else {}


def _object(feature: dict, place: str, size: tuple[int, int]) -> Object | None:
    """The object of a feature; None for one without an area."""
    geometry = feature["geometry"]
    kind = geometry["type"]
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return None
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"has the geometry {kind!r}")
    classification = _properties(feature).get("classification")
    name = classification
    if isinstance(classification, dict):
        names = classification.get("names")
        name = classification.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    polygons = _polygons(geometry)
    outer = [closed_ring(polygon[0]) for polygon in polygons]
    if not outer:
        raise ValueError("has no ring")
    holes = [hole for polygon in polygons for hole in polygon[1:]]
    found = Object(name if isinstance(name, str) else "", place, outer, holes)
    if holes and len(outer) > 1:  # a part may lie in the hole of another one
        found.rle, found.rings, found.holes = even_odd([*outer, *holes], *size), (), ()
    return found

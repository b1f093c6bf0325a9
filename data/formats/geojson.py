"""QuPath's GeoJSON, one file for each picture: a FeatureCollection, or a bare list of features; also packed, .gz.

    {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[x, y]]]},
     "properties": {"objectType": "annotation" | "detection" | "cell", "classification": {"name"}}}

Coordinates are pixels of the full picture, whole numbers at the corners of pixels. Later rings of a polygon are holes.
An annotation that has detections or cells in it marks a region and is no object.
Source: qupath-docs, exporting annotations.

On a map, as data/writers/geojson.py writes it of pictures with a georeference, coordinates are the map's. The member
crs says so; without it, longitudes and latitudes are meant where all of them lie in a picture in EPSG:4326.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage

import utils
from data.images import other_planes
from data.listing import folder_of, stem_of, suffix_of
from data.reading import (
    FLAWS,
    OTHER_SLICES,
    SHORTENED,
    Claim,
    Reading,
    closed_ring,
    point_array,
    split_of,
)
from data.records import ERROR, REMARK, Fault, Object, Picture, even_odd
from data.regions import open_source

NAME = "geojson"
TITLE = "QuPath GeoJSON"

_REGIONS = Fault(REMARK, "annotations mark regions with detections or cells in them", "left out: they are no objects")
_NO_AREA = Fault(REMARK, "features are points or lines", "left out")
_OTHER_MAP = Fault(ERROR, "label files have places on a map that their picture does not have", "left out",
                   "export them in pixels, or in the map coordinates of the picture")  # fmt: skip
_DEGREES = ("EPSG:4326", "OGC:CRS84")
_GLOBE = np.array([[-180.0, -90.0], [180.0, 90.0]])


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
        if size is None:
            continue
        try:
            features = _in_pixels(value, path, size)
        except ValueError as error:
            reading.findings.add(_OTHER_MAP, f"{label}: {error}")
            continue
        picture.objects = list(_objects(reading, label, features, path, size))
        yield picture


def _find_picture(reading: Reading, label: str) -> Path | None:
    """The picture of the same stem: of slide.geojson, slide.geojson.gz, slide.ome.geojson or slide.tif.geojson."""
    stem, folder = stem_of(label), folder_of(label)
    stem = stem_of(stem) if suffix_of(label) == ".gz" else stem
    exact = reading.find_stem(stem, folder)
    if exact is not None or "." not in stem:
        return exact
    found = reading.find(stem, folder)
    if found is None and (found := reading.find_stem(stem_of(stem), folder)) and not stem.lower().endswith(".ome"):
        reading.note_name(label, reading.listing.relative(found), (SHORTENED,))
    return found


def _in_pixels(value: Any, path: Path, size: tuple[int, int]) -> list[dict]:
    """The features of a file with coordinates in pixels of its picture, of which path is the file.

    Raises: ValueError if they are on a map on which the picture has no place.
    """
    features, crs = features_of(value), _crs_of(value)
    corners = _extent(features)
    height, width = size
    in_picture = _is_within(corners, np.array([[0, 0], [width, height]]))
    if not crs and in_picture and not _is_within(corners, _GLOBE):
        return features
    try:
        with open_source(path) as source:
            place = source.georeference
    except (OSError, ValueError):  # a picture, as its size is known, but not one with a place
        place = None
    if crs and place is None:
        raise ValueError(f"{utils.printable(crs)}, and {utils.printable(path.name)} has no place on a map")
    if crs and len({_code(crs), _code(place.crs)} - {""}) > 1:
        raise ValueError(f"{utils.printable(crs)}, and {utils.printable(path.name)} has {utils.printable(place.crs)}")
    if not crs:
        ends = [] if place is None else [place.place(x, y) for x in (0, width) for y in (0, height)]
        if not ends or not _is_within(corners, np.array(ends)) or (in_picture and _code(place.crs) != _DEGREES[0]):
            return features
    return [_moved(feature, place.points) for feature in features]


def _crs_of(value: Any) -> str:
    """The name of the coordinate reference of a file, of GeoJSON 2008; empty if it names none."""
    try:
        name = value["crs"]["properties"]["name"]
    except (TypeError, KeyError, IndexError):
        return ""
    return name if isinstance(name, str) else ""


def _code(crs: str) -> str:
    """ "EPSG:32632" of urn:ogc:def:crs:EPSG::32632; empty for a reference without such a code, as WKT is."""
    found = re.fullmatch(r"(?:urn:ogc:def:crs:)?(\w+):(?:[\w.]*:)?(\w+)", crs, re.IGNORECASE)
    code = f"{found[1]}:{found[2]}".upper() if found else ""
    return _DEGREES[0] if code in _DEGREES else code


def _extent(features: list[dict]) -> np.ndarray:
    """float64 [2, (x, y)], the least and the largest coordinates of all areas; of none, what lies nowhere."""
    points = [np.full((1, 2), np.nan)]
    for feature in features:
        with contextlib.suppress(*FLAWS):
            points += [ring for part in _parts(feature["geometry"]) for ring in part]
    points = np.concatenate(points[1:] or points)
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _is_within(extent: np.ndarray, places: np.ndarray) -> bool:
    """Whether an extent lies in that of some places, to a millionth of its sides."""
    low, high = places.min(axis=0), places.max(axis=0)
    slack = (high - low) * 1e-6
    return bool((extent >= low - slack).all() and (extent <= high + slack).all())


def _moved(feature: dict, points_of: Callable[[np.ndarray], np.ndarray]) -> dict:
    """A feature with other coordinates; one that has a flaw stays as it is, and is named where objects are made."""
    try:
        geometry = feature["geometry"]
        parts = [[points_of(ring).tolist() for ring in part] for part in _parts(geometry)]
    except FLAWS:
        return feature
    return {**feature, "geometry": {**geometry, "type": "MultiPolygon", "coordinates": parts}}


def _is_on_another_slice(feature: dict) -> bool:
    """By what QuPath says, which counts slices and times from 0."""
    plane = feature["geometry"].get("plane")
    places = [plane.get(axis) for axis in "zt"] if isinstance(plane, dict) else []
    return any(isinstance(place, int) and place > 0 for place in places)


def _objects(reading: Reading, label: str, features: list[dict], path: Path, size: tuple[int, int]) -> Iterator[Object]:
    pairs = list(reading.parsed(label, "feature", features, functools.partial(_object, size=size), _NO_AREA))
    has_others = any(_is_on_another_slice(feature) for _, feature in pairs) and other_planes(path)[0] > 0
    parsed = []
    for found, feature in pairs:
        if has_others and _is_on_another_slice(feature):
            reading.findings.add(OTHER_SLICES, f"{label}: {found.place}")
        else:
            parsed.append((found, _first_ring(feature), _type_of(feature)))
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


def _parts(geometry: dict) -> list[list[np.ndarray]]:
    """The rings of each polygon, float64 [N, (x, y)], the outer one first. A third coordinate, the slice, is left out.

    Raises: one of FLAWS for anything else than a Polygon or MultiPolygon of numbers.
    """
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"has the geometry {geometry['type']!r}")
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    rings = [[np.array([point[:2] for point in ring], np.float64) for ring in part] for part in parts]
    if any(ring.ndim != 2 or ring.shape[1] != 2 for part in rings for ring in part):
        raise ValueError("has points that are no list of [x, y]")
    return rings


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

"""The VGG Image Annotator's files: json of versions 1 and 2, projects of 2 and 3, and csv.

1, 2    {NAME + SIZE: {"filename", "size", "regions", "file_attributes"}}; a project has it below _via_img_metadata.
        A region is {"shape_attributes": {"name": "polygon", "all_points_x", "all_points_y"}, "region_attributes"}.
csv     filename, file_size, file_attributes, region_count, region_id, region_shape_attributes, region_attributes
3       {"project", "attribute", "file", "metadata": {id: {"vid", "xy": [shape, x1, y1, ...], "av", "z"}}, "view"}

No file says the size of a picture. Source: the documentation of VIA 1.0, 2.0 and 3.0 (CodeDoc).
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import utils
from data.listing import folder_of
from data.reading import FLAWS, UNUSABLE, Claim, Reading, closed_ring, point_array, split_of
from data.records import REMARK, Fault, Object, Picture, ellipse, rectangle

NAME = "via"
TITLE = "VGG Image Annotator"

_NO_AREA = Fault(REMARK, "regions are points or lines", "left out")
_SEVERAL = Fault(REMARK, "pictures are in several files of one folder", "the first file counts")
_VIDEO = Fault(REMARK, "regions are of a span of time in a video", "left out")
_SHAPES = ("", "point", "rect", "circle", "ellipse", "line", "polyline", "polygon", "extreme_rect", "extreme_circle")
_CLASS_NAMES = ("class", "name", "label", "type", "category", "class_name", "object", "kind", "species")
_FLAGS = {"yes", "no", "true", "false", "1", "0", "y", "n", "on", "off"}  # say something of an object, not its class


class Region:
    """A region of a picture: its shape by name, with numbers, and its attributes {name: text}."""

    def __init__(self, place: str, shape: dict[str, Any], attributes: dict[str, str]) -> None:
        self.place, self.shape, self.attributes = place, shape, attributes


def is_via(value: Any) -> bool:
    """Whether a JSON value is a file or project of VIA."""
    if not isinstance(value, dict):
        return False
    if "_via_img_metadata" in value or ({"project", "metadata", "view"} <= value.keys()):
        return True
    entries = list(value.values())[:20]
    return bool(entries) and all(
        isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries
    )


def claim(reading: Reading) -> Claim | None:
    """The json and csv files of VIA."""
    names = list(reading.looked_into(is_via))
    tables = reading.listing.of(".csv")
    names += [name for name in tables if {"filename", "region_shape_attributes"} <= set(reading.columns(name))]
    names.sort(key=lambda name: (name.lower().endswith(".csv"), "project" not in name.lower(), name))
    quiet = Reading(reading.listing.root)  # what is wrong with the files is said when they are read
    pictures = {(folder_of(name), picture) for name in names for picture, _ in _files(quiet, name)}
    if not pictures:
        return None
    return Claim(names, len(pictures), f"{utils.listed(names, 3)}: regions with shape attributes")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each entry of the files."""
    files, taken = [], {}
    for label in labels:  # a set is often exported as csv, json and project beside each other: the first one counts
        for name, regions in _files(reading, label):
            if taken.setdefault((folder_of(label), name), label) == label:
                files.append((label, name, regions))
            else:
                reading.findings.add(_SEVERAL, f"{label}: {utils.printable(name)}")
    attribute = class_attribute_of((region for _, _, regions in files for region in regions), reading)
    for label, name, regions in files:
        path = reading.find(name, folder_of(label))
        if path is None:
            reading.no_picture(f"{label}: {utils.printable(name)}", name)
            continue
        picture = Picture(path, label, split=split_of(reading.listing.relative(path)))
        for region in regions:
            place = f"{label}: {utils.printable(name)}: {region.place}"
            try:
                ring = ring_of(region.shape)
            except FLAWS as error:
                reading.findings.add(UNUSABLE, f"{place}: {utils.printable(error)}")
                continue
            if ring is None:
                reading.findings.add(_NO_AREA, place)
            else:
                picture.objects.append(Object(region.attributes.get(attribute, "").strip(), region.place, [ring]))
        yield picture


def ring_of(shape: dict[str, Any]) -> np.ndarray | None:
    """The outline of a shape; None for one without an area. Raises: one of FLAWS for a damaged shape."""
    kind = shape.get("name")
    if kind in ("point", "line", "polyline"):
        return None
    if kind == "polygon":
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        if len(xs) != len(ys):
            raise ValueError(f"has {len(xs)} x and {len(ys)} y")
        return closed_ring(point_array(np.stack([np.asarray(xs, float), np.asarray(ys, float)], axis=1)))
    names = {
        "rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry"),
    }.get(kind)  # fmt: skip
    if kind == "extreme_circle":
        return circle_through(point_array(np.reshape(shape["values"], (-1, 2))))
    if names is None:
        raise ValueError(f"has the shape {utils.printable(repr(kind), 40)}")
    values = [float(shape[name]) for name in names]
    point_array([[value, 0] for value in values])
    if kind == "rect":
        return closed_ring(rectangle(values[0], values[1], values[0] + values[2], values[1] + values[3]))
    radii = values[2:] if kind == "ellipse" else [values[2], values[2]]
    return closed_ring(ellipse(values[0], values[1], *radii, float(shape.get("theta") or 0)))


def circle_through(points: np.ndarray) -> np.ndarray:
    """The circle through three points [3, (x, y)], as a ring. Raises: ValueError if they lie on a line."""
    if len(points) != 3:
        raise ValueError(f"has a circle through {len(points)} points instead of 3")
    sides = 2 * (points[1:] - points[0])
    if abs(np.linalg.det(sides)) < 1e-9:
        raise ValueError("has a circle through three points on a line")
    centre = np.linalg.solve(sides, (points[1:] ** 2).sum(axis=1) - (points[0] ** 2).sum())
    radius = math.dist(centre, points[0])
    return ellipse(*centre, radius, radius)


def class_attribute_of(regions: Iterable[Region], reading: Reading) -> str:
    """The attribute that is the class: --class-attribute, one that is called so, or the one with the fewest values.

    The last only counts attributes that are filled in at half of the regions, and with more than yes and no. What was
    taken is printed.
    """
    values: dict[str, Counter] = {}
    count = 0
    for region in regions:
        count += 1
        for name, text in region.attributes.items():
            if text.strip():
                values.setdefault(name, Counter())[text.strip()] += 1
    if reading.options.class_attribute:
        if reading.options.class_attribute not in values:
            raise ValueError(
                f"--class-attribute {reading.options.class_attribute}: no region has it; the attributes are "
                f"{utils.listed(map(utils.printable, values)) or 'none'}"
            )
        return reading.options.class_attribute
    filled = {name: len(texts) for name, texts in values.items() if 2 * texts.total() >= count}
    flags = {name for name in filled if {text.lower() for text in values[name]} <= _FLAGS}
    filled = {name: number for name, number in filled.items() if name not in flags} or filled
    named = [name for wish in _CLASS_NAMES for name in filled if name.lower() == wish]
    chosen = named[0] if named else min(filled, key=filled.get, default="")
    if chosen and len(values) > 1:
        what = f"{utils.printable(repr(chosen))} is taken"
        reading.findings.add(
            Fault(REMARK, "attributes of regions could be the class", what, "--class-attribute NAME"), *sorted(values)
        )
    return chosen


############################################################
#  The kinds of files
############################################################


def _files(reading: Reading, label: str) -> Iterator[tuple[str, list[Region]]]:
    """(file name, regions) of each picture in a label file."""
    if label.lower().endswith(".csv"):
        yield from _csv_files(reading, label)
        return
    value = reading.json(label)
    if not is_via(value):
        return
    if "view" in value and "metadata" in value:
        yield from _version_3(value, reading, label)
        return
    entries = value.get("_via_img_metadata", value)
    for entry in entries.values() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
            regions = entry.get("regions") or []
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            regions = regions if isinstance(regions, list) else []
            yield entry["filename"], [_region(i, region) for i, region in enumerate(regions, 1)]


def _region(number: int, region: Any) -> Region:
    region = region if isinstance(region, dict) else {}
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes")
    return Region(f"region {number}", shape if isinstance(shape, dict) else {}, _attributes(attributes))


def _attributes(value: Any) -> dict[str, str]:
    """{name: text}; of checkboxes, which are {option: true}, the first that is true."""
    texts = {}
    for name, option in value.items() if isinstance(value, dict) else ():
        if isinstance(option, dict):
            option = next((key for key, is_on in option.items() if is_on), "")
        texts[name] = str(option) if isinstance(option, (str, int, float)) else ""
    return texts


def _csv_files(reading: Reading, label: str) -> Iterator[tuple[str, list[Region]]]:
    pictures: dict[str, list[Region]] = {}
    for row in reading.table(label):
        name = row.get("filename")
        if not name:
            continue
        regions = pictures.setdefault(name, [])
        try:
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError):
            shape, attributes = {"name": "damaged"}, {}
        if shape:
            shape = shape if isinstance(shape, dict) else {}
            regions.append(Region(f"region {len(regions) + 1}", shape, _attributes(attributes)))
    yield from pictures.items()


def _version_3(value: dict[str, Any], reading: Reading, label: str) -> Iterator[tuple[str, list[Region]]]:
    """The regions of a project of VIA 3. Those with a span of time belong to a video and are left out."""
    files = {str(key): entry for key, entry in _dict(value.get("file")).items() if isinstance(entry, dict)}
    views = {
        str(key): [str(file) for file in view["fid_list"]]
        for key, view in _dict(value.get("view")).items() if isinstance(_dict(view).get("fid_list"), list)
    }  # fmt: skip
    attributes = {str(key): entry for key, entry in _dict(value.get("attribute")).items() if isinstance(entry, dict)}
    regions: dict[str, list[Region]] = {fid: [] for fids in views.values() for fid in fids[:1]}
    for key, entry in _dict(value.get("metadata")).items():
        if not isinstance(entry, dict) or not entry.get("xy"):
            continue
        if entry.get("z"):
            reading.findings.add(_VIDEO, f"{label}: region {key}")
            continue
        for fid in views.get(str(entry.get("vid")), [])[:1]:
            texts = {
                str(attributes.get(str(a), {}).get("aname", a)): _option(attributes.get(str(a), {}), option)
                for a, option in _dict(entry.get("av")).items()
            }
            regions[fid].append(Region(f"region {key}", _shape(entry["xy"]), texts))
    for fid, found in regions.items():
        if isinstance(files.get(fid, {}).get("fname"), str):
            yield files[fid]["fname"], found


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _option(attribute: dict, option: Any) -> str:
    """The text of an option. Of checkboxes, "1,3" names several: the first counts."""
    options = _dict(attribute.get("options"))
    text = str(option)
    return str(options.get(text, options.get(text.split(",")[0], text)))


def _shape(numbers: Any) -> dict[str, Any]:
    """The shape of VIA 3, [kind, x1, y1, ...], in the words of version 2."""
    if not isinstance(numbers, list) or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
        return {"name": "damaged"}
    kind, values = int(numbers[0]), numbers[1:]
    name = _SHAPES[kind] if 0 < kind < len(_SHAPES) else "unknown"
    if name in ("polygon", "polyline"):
        return {"name": name, "all_points_x": values[0::2], "all_points_y": values[1::2]}
    if name == "extreme_rect" and len(values) >= 8:
        xs, ys = values[0::2], values[1::2]
        values, name = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], "rect"
    if name == "extreme_circle":
        return {"name": name, "values": values}
    names = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    return {"name": name, **dict(zip(names.get(name, ()), values, strict=False))}

"""CVAT's XML, version 1.1: exports of tasks, jobs and projects, of images and of videos.

    <annotations> <version>1.1</version> <meta> ...
    <image id name width height subset> <polygon label points="x,y;x,y" group_id> <ellipse cx cy rx ry rotation>
                                        <mask rle left top width height> <box> ... </image>
    <track id label> <polygon frame keyframe outside points> ... </track>

The RLE of a mask counts along the rows of its box, zeros first. Shapes of one group_id and label in an image are one
object. A shape of a track lies in all frames until its next keyframe; outside="1" ends it.
Source: cvat, format-xml.md; cvat/apps/dataset_manager/formats/cvat.py.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

import utils
from data.listing import folder_of, parse_xml
from data.reading import (
    FLAWS,
    NO_PICTURE,
    UNREADABLE,
    UNUSABLE,
    Claim,
    NoMasks,
    Reading,
    closed_ring,
    point_array,
    split_of,
    whole_size,
)
from data.records import REMARK, Bitmap, Fault, Object, Picture, bitmap_to_rle, ellipse

NAME = "cvat"
TITLE = "CVAT XML"

_NO_AREA = Fault(REMARK, "shapes are boxes, points, lines, cuboids or skeletons", "left out: they are no masks")
_KINDS = ("polygon", "ellipse", "mask")
_OTHER_KINDS = ("box", "polyline", "points", "cuboid", "skeleton")
_MAX_FRAMES = 1_000_000


def claim(reading: Reading) -> Claim | None:
    """The xml files whose root is <annotations> with images or tracks."""
    labels = []
    for name in reading.listing.of(".xml"):
        with reading.listing.path(name).open("rb") as file:
            head = file.read(1 << 16).decode("utf-8", "replace")
        if "<annotations" in head and ("<version>1" in head or "<image " in head or "<track " in head):
            labels.append(name)
    if not labels:
        return None
    quiet = Reading(reading.listing.root)  # what is wrong with the files is said when they are read
    roots = [_root(quiet, name) for name in labels]
    pictures = sum(len(root.findall("image")) or 1 for root in roots if root is not None)
    return Claim(labels, pictures, f"{labels[0]}: <annotations> with <image> or <track>")


def _root(reading: Reading, label: str) -> Element | None:
    try:
        return parse_xml(reading.text(label), label)
    except ValueError as error:
        reading.findings.add(UNREADABLE, str(error))
        return None


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each <image>, or for each frame of a video whose pictures are there."""
    counts: dict[str, int] = defaultdict(int)
    pictures = []
    for label in labels:
        root = _root(reading, label)
        if root is None:
            continue
        pictures += [picture for image in root.iter("image") if (picture := _picture(reading, label, image, counts))]
        pictures += _frames(reading, label, root, counts)
    if counts["box"] and not any(counts[kind] for kind in _KINDS):
        raise NoMasks(TITLE, counts["box"], labels[0])
    yield from pictures


def _picture(reading: Reading, label: str, image: Element, counts: dict[str, int]) -> Picture | None:
    name, subset = image.get("name") or "", image.get("subset") or ""
    folder = folder_of(label)
    choices = [f"images/{subset}/{name}", f"{subset}/{name}"] if subset else []
    path = reading.find(name, folder, *choices, f"images/{name}") if name else None
    if path is None:
        reading.findings.add(NO_PICTURE, f"{label}: {utils.printable(name)}")
        return None
    size = whole_size(image.get("height"), image.get("width"))
    picture = Picture(path, label, size, split_of(f"{subset}/x") or split_of(reading.listing.relative(path)))
    size = size or reading.size_of(picture)
    if size is not None:
        place = f"{label}: image {utils.printable(name)}"
        picture.objects = _objects(reading, place, [(shape, shape) for shape in image], size, counts)
    return picture


def _objects(
    reading: Reading,
    place: str,
    shapes: list[tuple[Element, Element]],
    size: tuple[int, int],
    counts: dict[str, int],
) -> list[Object]:
    """The objects of an image: shapes of one group and label together, others one by one.

    shapes: with the element that has their label and group, which for a shape of a video is its track.
    """
    groups: dict[Any, Object] = {}
    for number, (shape, owner) in enumerate(shapes, 1):
        label, group = owner.get("label") or "", owner.get("group_id")
        counts[shape.tag] += 1
        if shape.tag not in _KINDS:
            if shape.tag in _OTHER_KINDS:
                reading.findings.add(_NO_AREA, f"{place}: {shape.tag} {number}")
            continue
        try:
            parsed = _object(shape, label, f"{shape.tag} {number}", size)
            key = (label, group) if group not in (None, "", "0") else number
            if key in groups:
                groups[key].join(parsed, size)
            else:
                groups[key] = parsed
        except FLAWS as error:
            reading.findings.add(UNUSABLE, f"{place}: {shape.tag} {number}: {utils.printable(error)}")
    return list(groups.values())


def _object(shape: Element, label: str, place: str, size: tuple[int, int]) -> Object:
    parsed = Object(label, place)
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
        parsed.rings = [closed_ring(point_array(pairs))]
    elif shape.tag == "ellipse":
        cx, cy, rx, ry = (float(shape.get(name, "nan")) for name in ("cx", "cy", "rx", "ry"))
        point_array([[cx, cy], [rx, ry]])
        parsed.rings = [closed_ring(ellipse(cx, cy, rx, ry, np.radians(float(shape.get("rotation") or 0))))]
    else:
        parsed.rle = bitmap_to_rle(_bitmap(shape, size), *size)
    return parsed


def _bitmap(shape: Element, size: tuple[int, int]) -> Bitmap:
    """The mask of a <mask>: runs along the rows of its box."""
    left, top, width, height = (int(float(shape.get(name, "nan"))) for name in ("left", "top", "width", "height"))
    if not (0 < width <= 2 * size[1] and 0 < height <= 2 * size[0]):
        raise ValueError(f"has a mask of {width} x {height} in an image of {size[1]} x {size[0]} pixels")
    runs = np.array([int(run) for run in (shape.get("rle") or "").split(",") if run.strip()], np.int64)
    if len(runs) == 0 or runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise ValueError(f"has runs that do not add up to its {width * height} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return Bitmap(top, left, np.repeat(values, runs).reshape(height, width))


############################################################
#  Videos
############################################################


def _frames(reading: Reading, label: str, root: Element, counts: dict[str, int]) -> Iterator[Picture]:
    """The pictures of a video's frames that are there, named frame_000000.PNG or by the number alone."""
    tracks = root.findall("track")
    if not tracks:
        return
    size = whole_size(root.findtext(".//original_size/height"), root.findtext(".//original_size/width"))
    last = _last_frame(root)
    shapes: dict[int, list[tuple[Element, Element]]] = defaultdict(list)
    for track in tracks:
        for frame, shape in _visible(track, last):
            shapes[frame].append((shape, track))
    missing = []
    for frame in range(max([last, *shapes], default=-1) + 1):
        path = _frame_file(reading, label, frame)
        if path is None:
            missing += [frame] if frame in shapes else []
            continue
        picture = Picture(path, label, size, split_of(reading.listing.relative(path)))
        frame_size = size or reading.size_of(picture)
        if frame_size is not None:
            picture.objects = _objects(reading, f"{label}: frame {frame}", shapes[frame], frame_size, counts)
        yield picture
    reading.findings.add(NO_PICTURE, *(f"{label}: frame {frame}" for frame in missing))


def _last_frame(root: Element) -> int:
    """The number of a video's last frame; -1 if the file does not say it."""
    for kind in ("task", "job"):
        for name, less in (("stop_frame", 0), ("size", 1)):
            text = root.findtext(f".//{kind}/{name}") or ""
            if text.isdecimal() and len(text) < 10:
                return min(int(text), _MAX_FRAMES) - less
    return -1


def _visible(track: Element, last: int) -> Iterator[tuple[int, Element]]:
    """(frame, shape) of all frames in which a track is to be seen. A shape stays until the next one."""
    texts = [(shape.get("frame") or "", shape) for shape in track]
    keys = sorted(
        ((int(text), shape) for text, shape in texts if text.isdecimal() and len(text) < 7), key=lambda pair: pair[0]
    )
    for i, (frame, shape) in enumerate(keys):
        end = keys[i + 1][0] if i + 1 < len(keys) else max(last, frame) + 1
        if shape.get("outside") != "1":
            for number in range(frame, end):
                yield number, shape


def _frame_file(reading: Reading, label: str, frame: int) -> Path | None:
    folder = folder_of(label)
    below = f"{folder}/images" if folder else "images"
    for stem in (f"frame_{frame:06d}", f"{frame:06d}", str(frame)):
        path = reading.find_stem(stem, below) or reading.find_stem(stem, folder)
        if path is not None:
            return path
    return None

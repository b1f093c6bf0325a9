"""CVAT's XML, version 1.1: exports of tasks, jobs and projects, of images and of videos.

    <annotations> <version>1.1</version> <meta> ...
    <image id name width height subset> <polygon label points="x,y;x,y" group_id> <ellipse cx cy rx ry rotation>
                                        <mask rle left top width height> <box> ... </image>
    <track id label> <polygon frame keyframe outside points> ... </track>

The RLE of a mask counts along the rows of its box, zeros first. Shapes of one group_id and label in an image are one
object. A shape of a track lies in all frames until its next keyframe; outside="1" ends it. Frames are
images/frame_000000.PNG; those of a project images/SUBSET/frame_000000.PNG, and count from 0 in each task.
Source: cvat, format-xml.md; cvat/apps/dataset_manager/formats/cvat.py.
"""

import bisect
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

import utils
from data.listing import PICTURE_SUFFIXES, folder_of, stem_of, suffix_of
from data.reading import (
    NO_PICTURE,
    Claim,
    NoMasks,
    ObjectGroups,
    Reading,
    closed_ring,
    point_array,
    split_of,
    whole_size,
)
from data.records import ERROR, REMARK, Bitmap, Fault, Object, Picture, bitmap_to_rle, ellipse

NAME = "cvat"
TITLE = "CVAT XML"

_NO_AREA = Fault(REMARK, "shapes are boxes, points, lines, cuboids or skeletons", "left out: they are no masks")
_KINDS = ("polygon", "ellipse", "mask")
_OTHER_KINDS = ("box", "polyline", "points", "cuboid", "skeleton")
_MAX_FRAMES = 1_000_000
_FRAME = re.compile(r"(?:frame_)?(\d{1,6})", re.IGNORECASE)  # the stem of a frame's picture
_SAME_FRAMES = Fault(
    ERROR, "pictures are of several videos, because a project's videos of one subset have frames of equal names",
    "left out", "export the tasks one by one, or give each a subset of its own",
)  # fmt: skip


def claim(reading: Reading) -> Claim | None:
    """The xml files whose root is <annotations> with images or tracks."""
    labels = []
    for name in reading.listing.of(".xml"):
        head = reading.head(name, 1 << 16)
        if "<annotations" in head and ("<version>1" in head or "<image " in head or "<track " in head):
            labels.append(name)
    if not labels:
        return None
    quiet = Reading(reading.listing.root)  # what is wrong with the files is said when they are read
    roots = [quiet.xml(name) for name in labels]
    pictures = sum(len(root.findall("image")) or 1 for root in roots if root is not None)
    return Claim(labels, pictures, f"{labels[0]}: <annotations> with <image> or <track>")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each <image>, or for each frame of a video whose pictures are there."""
    counts: dict[str, int] = defaultdict(int)
    pictures = []
    for label in labels:
        root = reading.xml(label)
        if root is None:
            continue
        pictures += [picture for image in root.iter("image") if (picture := _picture(reading, label, image, counts))]
        pictures += _frames(reading, label, root, counts, len(labels) > 1)
    if counts["box"] and not any(counts[kind] for kind in _KINDS):
        raise NoMasks(TITLE, counts["box"], labels[0])
    yield from pictures


def _picture(reading: Reading, label: str, image: Element, counts: dict[str, int]) -> Picture | None:
    name, subset = image.get("name") or "", image.get("subset") or ""
    folder = folder_of(label)
    choices = [f"images/{subset}/{name}", f"{subset}/{name}"] if subset else []
    path = reading.find(name, folder, *choices, f"images/{name}") if suffix_of(name) in PICTURE_SUFFIXES else None
    for choice in () if path else (*choices, f"images/{name}", name):  # a frame of a video has a name without suffix
        path = path or reading.find_stem(PurePosixPath(choice).name, folder_of(f"{folder}/{choice}".strip("/")))
    if path is None:
        reading.no_picture(f"{label}: {utils.printable(name)}", name)
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
    shapes = [pair for pair in shapes if pair[0].tag in (*_KINDS, *_OTHER_KINDS)]
    groups = ObjectGroups(size)
    for shape, _ in shapes:
        counts[shape.tag] += 1
    for parsed, (_, owner) in reading.parsed(place, "shape", shapes, functools.partial(_object, size=size), _NO_AREA):
        group = owner.get("group_id")
        groups.add(parsed, None if group == "0" else group)
    return groups.objects


def _object(pair: tuple[Element, Element], place: str, size: tuple[int, int]) -> Object | None:
    """The object of a shape; None for one that is no mask."""
    shape, owner = pair
    if shape.tag not in _KINDS:
        return None
    parsed = Object(owner.get("label") or "", place)
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


@dataclasses.dataclass
class _Video:
    """A video of a file. meta: what the file says of its task or job."""

    task: str  # the number of its task; empty if the file has one video
    subset: str
    meta: Element
    tracks: list[Element] = dataclasses.field(default_factory=list)

    @property
    def last(self) -> int:
        """The number of the last frame; -1 if the file does not say it."""
        for name, less in (("stop_frame", 0), ("size", 1)):
            text = self.meta.findtext(f".//{name}") or ""
            if text.isdecimal() and len(text) < 10:
                return min(int(text), _MAX_FRAMES) - less
        return -1

    @property
    def step(self) -> int:
        """Every which frame was labelled, by the filter "step=5"."""
        found = re.search(r"step\s*=\s*(\d{1,6})", self.meta.findtext(".//frame_filter") or "")
        return max(1, int(found[1])) if found else 1


def _videos(root: Element) -> list[_Video]:
    """The videos of a file: one of a task or job; of a project those of its tasks, whose frames count from 0 each."""
    tasks = [task for task in root.findall("meta/project/tasks/task") if task.findtext("mode") == "interpolation"]
    videos = {
        task.findtext("id") or "": _Video(task.findtext("id") or "", task.findtext("subset") or "", task)
        for task in tasks
    }  # fmt: skip
    for track in root.findall("track"):
        task, subset = track.get("task_id") or "", track.get("subset") or ""
        video = videos.setdefault(task, _Video(task, subset, root if not task else Element("task")))
        video.subset = subset or video.subset
        video.tracks.append(track)
    return list(videos.values())


def _frames(
    reading: Reading, label: str, root: Element, counts: dict[str, int], are_several: bool
) -> Iterator[Picture]:  # fmt: skip
    """The pictures of the frames of a file's videos that are there, named frame_000000.PNG or by the number alone.

    are_several: whether other files have videos too, whose frames have the same names.
    """
    videos = _videos(root)
    used: dict[Path, list[tuple[_Video, Picture]]] = defaultdict(list)
    for video in videos:
        for picture in _frames_of(reading, label, video, counts, are_several or len(videos) > 1):
            used[picture.path].append((video, picture))
    for path, found in used.items():
        if len(found) == 1:
            yield found[0][1]
        else:
            tasks = " and ".join(utils.printable(video.task) for video, _ in found)
            place = f"{label}: {reading.listing.relative(path)} of the tasks {tasks}"
            reading.findings.add(_SAME_FRAMES, place)


def _frames_of(
    reading: Reading, label: str, video: _Video, counts: dict[str, int], are_several: bool
) -> Iterator[Picture]:  # fmt: skip
    size = whole_size(video.meta.findtext(".//original_size/height"), video.meta.findtext(".//original_size/width"))
    last = video.last
    numbers = (_FRAME.fullmatch(stem_of(name)) for name in reading.listing.pictures)
    there = sorted({int(found[1]) for found in numbers if found})  # a file may say that a video has any length
    shapes: dict[int, list[tuple[Element, Element]]] = defaultdict(list)
    for track in video.tracks:
        for frame, shape in _visible(track, last, there):
            shapes[frame].append((shape, track))
    end = max([last, *shapes], default=-1)
    missing = []
    for frame in sorted({*shapes, *there[: bisect.bisect_right(there, end)]}):
        if frame % video.step:
            continue
        path = _frame_file(reading, label, video.subset, frame, not are_several)
        if path is None:
            missing += [frame] if frame in shapes else []
            continue
        split = split_of(f"{video.subset}/x") or split_of(reading.listing.relative(path))
        picture = Picture(path, label, size, split)
        frame_size = size or reading.size_of(picture)
        if frame_size is not None:
            picture.objects = _objects(reading, f"{label}: frame {frame}", shapes[frame], frame_size, counts)
        yield picture
    reading.findings.add(NO_PICTURE, *(f"{label}: frame {frame}" for frame in missing))


def _visible(track: Element, last: int, there: list[int]) -> Iterator[tuple[int, Element]]:
    """(frame, shape) of the frames in which a track is to be seen: those there, and those that the track names.

    A shape stays until the next one. there: sorted.
    """
    texts = [(shape.get("frame") or "", shape) for shape in track]
    keys = sorted(
        ((int(text), shape) for text, shape in texts if text.isdecimal() and len(text) < 7), key=lambda pair: pair[0]
    )
    for i, (frame, shape) in enumerate(keys):
        end = keys[i + 1][0] if i + 1 < len(keys) else max(last, frame) + 1
        if shape.get("outside") != "1" and frame < end:
            yield frame, shape
            for number in there[bisect.bisect_right(there, frame) : bisect.bisect_left(there, end)]:
                yield number, shape


def _frame_file(reading: Reading, label: str, subset: str, frame: int, anywhere: bool) -> Path | None:
    """The picture of a frame. anywhere: also in another folder, if it is the only one of its name."""
    folder = folder_of(label)
    folders = [f"images/{subset}", subset] if subset else []
    folders = [f"{folder}/{name}".strip("/") for name in (*folders, "images", "")]
    for stem in (f"frame_{frame:06d}", f"{frame:06d}", str(frame)):
        paths = (reading.find_stem(stem, choice, anywhere=False) for choice in folders)
        path = next(filter(None, paths), None) or (reading.find_stem(stem, folder) if anywhere else None)
        if path is not None:
            return path
    return None

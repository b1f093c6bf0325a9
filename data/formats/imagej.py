"""ImageJ's regions of interest: NAME.zip, NAME_RoiSet.zip, or NAME.roi beside the picture NAME.

Polygons, freehand and traced regions, ovals, rectangles and composites are objects; points and lines are not. Whole
coordinates are corners of pixels. A name such as nucleus-0012 has the class before its number; names of digits and
UUIDs have none. A property "class" of a ROI, which our own writer adds, counts before its name. Source: the package
roifile, and ij/io/RoiDecoder.java.
"""

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import utils
from data.images import other_planes
from data.listing import folder_of, stem_of
from data.numbered_names import settle_classes
from data.reading import (
    OTHER_SLICES,
    SHORTENED,
    UNREADABLE,
    UNUSABLE,
    Claim,
    Reading,
    closed_ring,
    point_array,
    split_of,
)
from data.records import REMARK, Fault, Object, Picture, ellipse, even_odd, rectangle

NAME = "imagej"
TITLE = "ImageJ ROIs"

_NO_AREA = Fault(REMARK, "ROIs are points or lines", "left out")
_MAX_BYTES = 1 << 28  # of all ROIs of a file, unpacked
_ENDING = re.compile(r"[_ .-]?(roiset|rois?)$", re.IGNORECASE)
_BEGINNING = re.compile(r"^(roiset|rois?)[_ .-]", re.IGNORECASE)
_NUMBERS = re.compile(r"([_ .-]+(roi)?\d+)+$", re.IGNORECASE)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError, EOFError)


def claim(reading: Reading) -> Claim | None:
    """The .roi files, and the .zip files that hold only these. NAME_RoiSet.zip may be empty."""
    labels = reading.listing.of(".roi")
    labels += [name for name in reading.listing.of(".zip") if _has_rois(reading.listing.path(name))]
    labels = [label for label in labels if _find_picture(reading, label) is not None] or labels
    if labels:  # a damaged one is named when it is read
        damaged = (name for name in reading.listing.of(".zip") if not zipfile.is_zipfile(reading.listing.path(name)))
        labels += [name for name in damaged if _find_picture(reading, name) is not None]
    if not labels:
        return None
    return Claim(labels, len(labels), f"{len(labels)} files of ROIs, such as {labels[0]}")


def _has_rois(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if not name.endswith("/")]
    except _ZIP_ERRORS:
        return False
    if not names:
        return _ENDING.search(path.stem) is not None  # the picture has no objects
    return any(map(_is_roi, names)) and all(_is_roi(name) or "__MACOSX" in name for name in names)


def _is_roi(name: str) -> bool:
    """Whether a member of a zip file is a ROI, and not what macOS adds."""
    return name.lower().endswith(".roi") and not name.startswith("__MACOSX")


def _find_picture(reading: Reading, label: str) -> Path | None:
    """The picture of a file: of its name without RoiSet and number, of its folder's name, or the only one there.

    The only one there is not meant if another file has its name.
    """
    folder, names = folder_of(label), _names(stem_of(label))
    folders = [name for name in folder.split("/") if name]
    for choice in [*filter(None, names), *reversed(folders)]:
        path = reading.find_stem(choice, folder) or reading.find_stem(stem_of(choice), folder)
        if path is not None:
            if choice == _NUMBERS.sub("", stem_of(label)) != stem_of(label) and label.lower().endswith(".zip"):
                reading.note_name(label, reading.listing.relative(path), (SHORTENED,))
            return path
    pictures = [name for name in reading.listing.pictures if folder_of(name) == folder]
    others = (name for name in reading.listing.of(".roi", ".zip") if folder_of(name) == folder and name != label)
    if len(pictures) != 1 or any(stem_of(pictures[0]) in _names(stem_of(other)) for other in others):
        return None
    return reading.listing.path(pictures[0])


def _names(stem: str) -> dict[str, None]:
    """The stems of pictures that a file may mean: NAME of NAME_RoiSet, RoiSet_NAME and NAME_001."""
    return dict.fromkeys((stem, _ENDING.sub("", stem), _BEGINNING.sub("", stem), _NUMBERS.sub("", stem)))


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file of ROIs, or for all .roi files of a picture."""
    groups: dict[Path, list[str]] = {}
    for label in labels:
        path = _find_picture(reading, label)
        if path is None:
            reading.no_picture(label, label)
        else:
            groups.setdefault(path, []).append(label)
    pictures, unsettled = [], []
    for path, names in groups.items():
        picture = Picture(path, names[0], split=split_of(reading.listing.relative(path)))
        size = reading.size_of(picture)
        if size is None:
            continue
        others, channels = other_planes(path)
        found = [item for label in names for item in _objects(reading, label, path, size, channels if others else None)]
        picture.objects = [parsed for parsed, _ in found]
        unsettled.append([parsed for parsed, is_class in found if not is_class])
        pictures.append(picture)
    settle_classes(unsettled, reading.findings)
    yield from pictures


def _objects(
    reading: Reading, label: str, picture: Path, size: tuple[int, int], channels: int | None
) -> Iterator[tuple[Object, bool]]:
    """(object, whether its name is its class as it is) of each ROI of a file.

    channels: of a picture of which the first slice is read, and others are not.
    """
    import roifile  # here: few data sets have ROIs

    for name, data in _contents(reading, label):
        place = f"{label}: {utils.printable(name)}"
        try:
            roi = roifile.ImagejRoi.frombytes(data)
            if channels is not None and _is_on_another_slice(roi, channels):
                reading.findings.add(OTHER_SLICES, place)
                continue
            class_name = _class_property(roi.props)
            text = class_name or roi.name or utils.printable(name)
            if not class_name and label.lower().endswith(".roi"):  # NAME_001.roi has the name of its picture
                text = re.sub(rf"^{re.escape(picture.stem)}(?=[\s._-]|$)", "", text, flags=re.IGNORECASE)
            parsed = _object(roi, text, utils.printable(name), size)
        except Exception as error:  # roifile raises errors of many kinds for damaged bytes
            reading.findings.add(UNUSABLE, f"{place}: {utils.printable(error)}")
            continue
        if parsed is None:
            reading.findings.add(_NO_AREA, place)
        else:
            yield parsed, bool(class_name)


def _contents(reading: Reading, label: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each ROI of a file."""
    path = reading.listing.path(label)
    if label.lower().endswith(".roi"):
        if path.stat().st_size <= _MAX_BYTES:
            yield stem_of(label), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as file:
            members = [member for member in file.infolist() if _is_roi(member.filename)]
            if sum(member.file_size for member in members) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES >> 20} MB of ROIs")
            for member in members:
                try:
                    yield Path(member.filename).stem, file.read(member)
                except _ZIP_ERRORS as error:
                    place = f"{label}: {utils.printable(member.filename)}"
                    reading.findings.add(UNUSABLE, f"{place}: {utils.printable(error)}")
    except _ZIP_ERRORS as error:
        reading.findings.add(UNREADABLE, f"{label}: {utils.printable(error)}")


def _is_on_another_slice(roi: Any, channels: int) -> bool:
    """Positions count from 1, and 0 is none. That in a stack counts the channels of the first slice before the next."""
    return roi.z_position > 1 or roi.t_position > 1 or roi.position > channels


def _object(roi: Any, name: str, place: str, size: tuple[int, int]) -> Object | None:
    """The object of a ROI of roifile; None for one without an area."""
    kinds = type(roi.roitype)  # roifile.ROI_TYPE
    if roi.composite:
        rings = [point_array(ring) for ring in roi.coordinates(multi=True)]
        rings = [ring for ring in rings if len(ring) >= 3]
        if not rings:
            raise ValueError("has no ring of 3 points")
        return Object(name, place, rle=even_odd(rings, *size))
    if roi.roitype in (kinds.POLYGON, kinds.FREEHAND, kinds.TRACED):
        return Object(name, place, [closed_ring(point_array(roi.coordinates()))])
    if roi.roitype in (kinds.OVAL, kinds.RECT):
        if roi.subpixelrect:
            x, y, width, height = (float(v) for v in (roi.xd, roi.yd, roi.widthd, roi.heightd))
        else:
            x, y, width, height = (float(v) for v in (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top))
        if not min(width, height) > 0:
            raise ValueError(f"is {width:g} x {height:g} pixels large")
        is_oval = roi.roitype == kinds.OVAL
        oval = ellipse(x + width / 2, y + height / 2, width / 2, height / 2)
        return Object(name, place, [oval if is_oval else rectangle(x, y, x + width, y + height)])
    return None


def _class_property(properties: str) -> str:
    """The class among the properties of a ROI, "KEY: VALUE" in each line; empty if there is none."""
    for line in properties.split("\n"):
        key, _, value = line.partition(": ")
        if key == "class":
            with contextlib.suppress(ValueError):
                value = json.loads(value) if value.startswith('"') else value
            return value
    return ""

"""YOLO's segmentation labels: a text file for each picture, a line for each object.

    CLASS x1 y1 x2 y2 ...           fractions of the width and height of the picture as it is shown

Five numbers are a box. An empty or absent file is a picture without objects. The last folder images/ of a picture's
path is labels/ in its label's; or both lie in one folder. data.yaml has the names; without one, classes.txt or
obj.names; of several, the nearest above a label. Source: docs.ultralytics.com/datasets/segment; ultralytics 8.4,
data/utils.py.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import utils
from data.listing import PICTURE_SUFFIXES, folded, folder_of, stem_of
from data.reading import (
    CLASS_LISTS,
    UNREADABLE,
    UNUSABLE,
    Claim,
    NoMasks,
    Reading,
    closed_ring,
    own_list,
    split_of,
    split_of_file,
)
from data.records import ERROR, REMARK, SPLITS, WARNING, Fault, Object, Picture

NAME = "yolo"
TITLE = "YOLO segmentation"
WHOLE_NUMBERS_ARE_CONTOURS = True

_LINE = re.compile(r"\S+(\s+-?[\d.]+(e[-+]?\d+)?){4,}", re.IGNORECASE)
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "names.txt")
_MAX_YAML_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16

_BOXES = Fault(ERROR, "lines are boxes among polygons", "left out: a box is no mask")
_PIXELS = Fault(
    WARNING, "label files have pixels instead of fractions", "read as pixels", "divide x by the width, y by the height"
)
_RANGE = Fault(
    ERROR, "lines have coordinates beyond the picture that are neither fractions nor pixels of it", "left out"
)
_NO_CLASS = Fault(
    ERROR, "lines have a class number out of range, which has no name", "left out", "add its name to data.yaml"
)
_NAME = Fault(WARNING, "lines have a class number out of range, which is the name of a class", "taken as the name")
_OTHER_LISTS = Fault(REMARK, "class lists are others than those that count", "not used", "delete them if they are old")
_NO_NAMES = Fault(REMARK, "there is neither data.yaml nor classes.txt", "classes are called class 0, class 1 ...")


def is_label(text: str) -> bool:
    """Whether most lines of a text, and at least one, are objects: a class, and an even count of numbers."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    good = [line for line in lines if _LINE.fullmatch(line) and len(line.split()) % 2]
    return bool(good) and 2 * len(good) > len(lines)


def claim(reading: Reading) -> Claim | None:
    """The text files in folders where some have lines of objects, and pictures have their stems."""
    names = [name for name in reading.listing.of(".txt") if PurePosixPath(name).name not in _NAME_FILES]
    stems = {folded(stem_of(picture)) for picture in reading.listing.pictures}
    matched = [name for name in names if folded(reading.without_upload(stem_of(name))) in stems]
    samples = reading.listing.samples(matched)
    good = [name for name in samples if is_label(_head(reading, name))]
    if not good and _yaml_files(Reading(reading.listing.root)):  # all may be empty
        good = [name for name in samples if not _head(reading, name).strip()]
    folders = {folder_of(name) for name in good}
    labels = [name for name in names if folder_of(name) in folders and not _is_list(reading, name)]
    if not labels:
        return None
    pictures = sum(folder_of(name) in folders for name in matched)
    return Claim(labels, pictures, f"{len(good)} of {len(samples)} text files looked into have a class and fractions")


def _is_list(reading: Reading, name: str) -> bool:
    """Whether a text file beside labels is no label: a list of pictures, or notes."""
    head = _head(reading, name).strip()
    is_exact = reading.find_stem(stem_of(name), folder_of(name)) is not None
    return bool(head) and not is_exact and not is_label(head)


def _head(reading: Reading, name: str) -> str:
    """The first lines of a file, without a last one that is cut."""
    text = reading.head(name, _HEAD_BYTES)
    return text if reading.listing.path(name).stat().st_size <= _HEAD_BYTES else text[: text.rfind("\n")]


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each label file, and for each picture beside those that has none."""
    yamls = _yaml_files(reading)
    if any("kpt_shape" in value for _, value in yamls):
        raise ValueError(f"the labels of {labels[0]} and others are keypoints (kpt_shape): there are no masks to learn")
    lists = read_names(reading, yamls)
    if not lists:
        reading.findings.add(_NO_NAMES, reading.listing.root.name)
    examples = {folder_of(label): label for label in labels}
    owners = {folder: names_of(label, lists) for folder, label in examples.items()}
    if any(names != owners[folder_of(labels[0])] for names in owners.values()):
        reading.findings.add(CLASS_LISTS, *lists)
    reading.findings.add(_OTHER_LISTS, *(file for file, names in lists.items() if names not in owners.values()))
    splits = _read_splits(reading, yamls)
    parsed, kinds = [], {"polygon": 0, "box": 0}
    paths = _find_pictures(reading, labels)
    for label, path in paths.items():
        picture = Picture(path, label, split=splits.get(path) or split_of(reading.listing.relative(path)))
        picture.split = picture.split or split_of(label)
        size = reading.size_of(picture)
        if size is not None:
            picture.objects = list(_objects(reading, label, owners[folder_of(label)], size, kinds))
            parsed.append(picture)
    if kinds["box"] and not kinds["polygon"]:
        raise NoMasks("YOLO", kinds["box"], labels[0])
    yield from parsed
    used = set(paths.values())
    folders = {path.parent for path in used}
    for name in reading.listing.pictures:  # those without a label file show no object
        path = reading.listing.path(name)
        if path not in used and (path.parent in folders or path in splits):
            yield Picture(path, "", split=splits.get(path) or split_of(name))


def _find_pictures(reading: Reading, labels: list[str]) -> dict[str, Path]:
    """{label: its picture}: beside it, or in images/ where it is in labels/; else the only one of its stem elsewhere.

    The last is only tried with pictures that have no label of their own.
    """
    paths = {}
    for label in labels:
        folders, stem = folder_of(label).split("/"), stem_of(label)
        places = [i for i, folder in enumerate(folders) if folder.lower() == "labels"]
        swapped = ["/".join([*folders[:i], "images", *folders[i + 1 :]]) for i in reversed(places)]
        swapped += ["/".join([*folders[:i], *folders[i + 1 :]]) for i in reversed(places)]
        choices = (reading.find_stem(stem, folder, anywhere=False) for folder in [*swapped, folder_of(label)])
        path = next(filter(None, choices), None)
        if path is not None:
            paths[label] = path
    used = set(paths.values())
    for label in labels:
        if label not in paths:
            path = reading.find_stem(stem_of(label), folder_of(label))
            if path is None or path in used:
                reading.no_picture(label, label, taken=used)
            else:
                paths[label] = path
    return paths


def _objects(
    reading: Reading, label: str, names: dict[int, str], size: tuple[int, int], kinds: dict
) -> Iterator[Object]:
    """The objects of a label file. size: (height, width) of the picture. kinds: counts polygons and boxes."""
    height, width = size
    lines = [(row, line.split()) for row, line in enumerate(reading.text(label).splitlines(), 1) if line.strip()]
    rows = []
    numbers = {name: number for number, name in names.items()}
    for row, fields in lines:
        place = f"{label}: line {row}"
        number = _class_number(fields[0])
        is_name = number not in names and fields[0] in numbers
        class_id = numbers[fields[0]] if is_name else number
        try:
            values = np.array(fields[1:], np.float64)
        except ValueError:
            class_id = None
        if class_id is None:
            reading.findings.add(UNUSABLE, f"{place}: {utils.printable(' '.join(fields), 60)} is no class and numbers")
            continue
        if len(values) == 4:
            kinds["box"] += 1
            reading.findings.add(_BOXES, place)
        elif len(values) < 6 or len(values) % 2:
            reading.findings.add(UNUSABLE, f"{place}: has {len(values)} numbers instead of x and y of 3 points or more")
        elif names and class_id not in names:
            reading.findings.add(_NO_CLASS, f"{place}: class {class_id} of {len(names)}")
        else:
            kinds["polygon"] += 1
            if is_name and number is not None:
                reading.findings.add(_NAME, f"{place}: {fields[0]}")
            rows.append((place, names.get(class_id, f"class {class_id}"), values.reshape(-1, 2)))
    yield from _outlines(reading, label, rows, np.array([width, height], np.float64))


def _class_number(text: str) -> int | None:
    """The number of a class, also as 3.0; None for other text."""
    with contextlib.suppress(ValueError, OverflowError):
        return int(float(text)) if float(text) == int(float(text)) else None
    return None


def _outlines(reading: Reading, label: str, rows: list[tuple[str, str, np.ndarray]], scale: np.ndarray):
    """The objects of (place, class, points). scale: (width, height), which fractions are multiplied with."""
    pixels = [points for _, _, points in rows if np.abs(points).max() > 2]
    are_pixels = pixels and all((points <= scale + 1).all() for points in pixels) and len(pixels) * 2 > len(rows)
    if are_pixels:
        reading.findings.add(_PIXELS, label)
    for place, name, points in rows:
        ring = points if are_pixels else points * scale
        if not (np.isfinite(points).all() and (are_pixels or np.abs(points).max() <= 2)):
            reading.findings.add(_RANGE, f"{place}: {points.flat[int(np.abs(points).argmax())]:g}")
            continue
        try:
            yield Object(name, place.rpartition(": ")[2], [closed_ring(ring)])
        except ValueError as error:
            reading.findings.add(UNUSABLE, f"{place}: {error}")


############################################################
#  Names of classes
############################################################


def read_names(reading: Reading, yamls: list[tuple[str, dict]]) -> dict[str, dict[int, str]]:
    """{file: {class number: name}} of data.yaml, and of files with a name in each line.

    yamls: as _yaml_files gives them.
    """
    lists = {}
    for file, value in yamls:
        names = value.get("names")
        if isinstance(names, list):
            names = dict(enumerate(names))
        if isinstance(names, dict) and names and all(_is_name(*item) for item in names.items()):
            lists[file] = {int(key): text.strip() for key, text in names.items()}
    for file in reading.listing.files:
        if PurePosixPath(file).name in _NAME_FILES:
            lines = [line.strip() for line in reading.text(file).splitlines()]
            lists |= {file: {number: line for number, line in enumerate(lines) if line}} if any(lines) else {}
    return lists


def names_of(label: str, lists: dict[str, dict[int, str]]) -> dict[int, str]:
    """The class names of a label file: of the nearest yaml file above it, else of another file; empty without lists."""

    def rank(file: str, is_above: bool, shared: int) -> tuple:
        name = PurePosixPath(file).name
        is_yaml = name not in _NAME_FILES
        return is_above, is_yaml, shared, name.startswith("data") if is_yaml else -_NAME_FILES.index(name)

    return own_list(lists, label, rank) if lists else {}


def _is_name(key: Any, text: Any) -> bool:
    return str(key).isdecimal() and len(str(key)) < 10 and isinstance(text, str)


def _yaml_files(reading: Reading) -> list[tuple[str, dict]]:
    """(name, value) of the yaml files that hold a dict, data.yaml and those near the root first.

    Every scalar is text, as it is written: a class called no is not False. No loader of objects is used.
    """
    values = []
    names = reading.listing.of(".yaml", ".yml")
    if names:
        import yaml  # here: few data sets have such files
    for name in sorted(names, key=lambda name: (name.count("/"), not stem_of(name).startswith("data"), name)):
        if reading.listing.path(name).stat().st_size > _MAX_YAML_BYTES:
            continue
        try:
            value = yaml.load(reading.text(name), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            reading.findings.add(UNREADABLE, f"{name}: {utils.printable(error)}")
            continue
        if isinstance(value, dict):
            values.append((name, value))
    return values


############################################################
#  Splits
############################################################


def _read_splits(reading: Reading, yamls: list[tuple[str, dict]]) -> dict[Path, str]:
    """{picture: split} as data.yaml says: train, val and test are folders, lists of folders, or text files of pictures.

    Text files named train.txt or autosplit_val.txt are read too. What is not there is left to the folders' names. The
    same pictures for train and val, which ultralytics wants where there is no split, are no split.
    """
    splits: dict[Path, str] = {}
    for name, value in yamls:
        for split in SPLITS if value.get("train") != value.get("val") else ():
            entries = value.get(split) or (value.get("valid") if split == "val" else None)
            for entry in entries if isinstance(entries, list) else [entries]:
                if isinstance(entry, str) and len(entry) < 1000:
                    for path in _pictures_of(reading, folder_of(name), str(value.get("path") or ""), entry):
                        splits.setdefault(path, split)
    for name in reading.listing.of(".txt"):
        split = split_of_file(stem_of(name))
        if split is not None and "labels" not in name.lower().split("/"):
            for path in _listed_pictures(reading, name):
                splits.setdefault(path, split)
    return splits


def _pictures_of(reading: Reading, folder: str, base: str, entry: str) -> list[Path]:
    """The pictures that an entry of data.yaml means.

    Paths of another machine, and those that begin with ../ by mistake, count from the first folder that is there.
    folder: of data.yaml. base: its path.
    """
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    bases = [part for part in base.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    above = folder.split("/") if folder else []
    for start in range(len(parts)):
        for front in ([*above, *bases], above, bases[-1:], []):
            path = "/".join([*front, *parts[start:]])
            if path.endswith(".txt") and path in reading.text_files:
                return _listed_pictures(reading, path)
            below = [name for name in reading.listing.pictures if name.startswith(path + "/")]
            if below:
                return [reading.listing.path(name) for name in below]
    return []


def _listed_pictures(reading: Reading, name: str) -> list[Path]:
    """The pictures that the lines of a text file name; none if it is no such list."""
    lines = [line.strip() for line in reading.text(name).splitlines() if line.strip()]
    if not lines or not lines[0].lower().endswith(tuple(PICTURE_SUFFIXES)):
        return []
    return [path for line in lines if (path := reading.find(line, folder_of(name))) is not None]

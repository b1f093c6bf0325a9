"""What the writers share: names of files, masks in the frame that tools show, copies of pictures, notes on losses.

A writer is write_NAME(records, folder, copy_pictures=False, notes=None) -> Path. It writes each file completely or not
at all, and returns the file or folder that a user opens. notes gets a sentence, with counts, for each thing that the
format cannot hold. What is in the folder already stays, and files of the same name are replaced.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import runtime
import utils
from data.check import singular
from data.images import image_size, turned
from data.listing import folded
from data.object_checks import picture_name, sorted_names
from data.reading import split_of
from data.recognise import Records
from data.records import Object, Picture

from .streams import json_bytes

############################################################
#  Classes
############################################################


def class_names(records: Records) -> list[str]:
    """The names of all classes: those that the records list, or else those of the objects, as sorted_names has them."""
    return list(records.class_names) or sorted_names(records.pictures)


def renamed_classes(records: Records, is_bad: Any, reason: str, notes: list[str] | None) -> dict[str, str]:
    """{class: its name in a format that does not take all characters}. They stay different.

    is_bad: whether a character cannot be there; it becomes "_". reason: the end of the note.
    """
    names = class_names(records)
    changed = number_names("".join("_" if is_bad(c) else c for c in name) or "_" for name in names)
    count = sum(new != name for new, name in zip(changed, names, strict=True))
    note(notes, count, f"class names are changed: {reason}")
    return dict(zip(names, changed, strict=True))


############################################################
#  Names of files
############################################################


def number_names(names: Iterable[str]) -> list[str]:
    """The names, of which those that were there before, in any case of letters, get a number: a, b, a_2."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # the last one of each name
    result = []
    for name in names:
        key, choice = folded(name), name
        number = numbers.get(key, 1)
        while folded(choice) in taken:
            number += 1
            choice = f"{name}_{number}"
        numbers[key] = number
        taken.add(folded(choice))
        result.append(choice)
    return result


def file_names(records: Records, are_copied: bool) -> list[str]:
    """The name of each picture below the data set. One that copy_picture writes as PNG gets this suffix."""
    names = []
    for picture in records.pictures:
        name = picture_name(records, picture)
        is_png = picture.path is None or (are_copied and picture.embedded is not None)
        names.append(str(PurePosixPath(name).with_suffix(".png")) if is_png else name)
    return names


def as_unicode(names: Iterable[str], notes: list[str] | None) -> list[str]:
    """The names of copies for formats whose texts are Unicode, which the names of files on Linux need not be."""
    names = list(names)
    changed = ["".join("_" if "\ud800" <= c <= "\udfff" else c for c in name) for name in names]
    note(notes, sum(map(str.__ne__, names, changed)), "pictures have another name, because theirs is no Unicode")
    return changed


def plan_names(records: Records, are_copied: bool, notes: list[str] | None) -> list[str]:
    """A name for each picture, as file_names, in a folder that says its split, and with a stem of its own there."""
    names = []
    for picture, name in zip(records.pictures, file_names(records, are_copied), strict=True):
        is_said = picture.split is None or split_of(name) == picture.split
        names.append(PurePosixPath(name) if is_said else PurePosixPath(picture.split, name))
    return unique_stems(names, notes)


def unique_stems(names: Iterable[PurePosixPath], notes: list[str] | None) -> list[str]:
    """The names, with numbers where two pictures of a folder differ by their suffixes only."""
    names = list(names)
    stems = number_names(str(name.with_suffix("")) for name in names)
    result = [stem + name.suffix for stem, name in zip(stems, names, strict=True)]
    count = sum(new != str(name) for new, name in zip(result, names, strict=True))
    note(notes, count, "pictures have the name of another one but for the suffix, so theirs ends in a number")
    return result


def note(notes: list[str] | None, count: int, words: str) -> None:
    """Adds "COUNT words" to notes, if there are any. words: in the plural, as those of a Fault."""
    if notes is not None and count:
        notes.append(counted(count, words))


def counted(count: int, words: str) -> str:
    """ "3 pictures have no label", or "1 picture has no label". words: in the plural."""
    return f"{count:,} {singular(words) if count == 1 else words}"


############################################################
#  Pictures and objects
############################################################


class Labelled(NamedTuple):
    """A picture as it is shown, and its objects with their masks."""

    picture: Picture
    name: str  # below the output
    height: int
    width: int
    objects: list[tuple[Object, dict]]  # with the RLE of the mask


def labelled(records: Records, names: list[str]) -> Iterator[Labelled]:
    """Each picture in the frame that tools show, turned as EXIF says. Objects without a pixel are left out.

    names: of each picture.
    """
    for picture, name in zip(records.pictures, names, strict=True):
        orientation = image_size(picture.path).orientation if picture.is_stored else 1
        objects = []
        for parsed in picture.objects:
            rle = parsed.mask(picture.height, picture.width)
            if not utils.rle_area(rle):
                continue
            if orientation > 1:
                rle = utils.mask_to_rle(turned(utils.rle_to_mask(rle), orientation))
            objects.append((parsed, rle))
        size = (picture.height, picture.width)
        yield Labelled(picture, name, *(size[::-1] if orientation >= 5 else size), objects)


def each_picture(records: Records, folder: Path, copy_pictures: bool, notes: list[str] | None) -> Iterator[Labelled]:
    """What a format with a file for each picture, and no mark for crowds, writes. With copy_pictures, the pictures are
    copied first, to where each file will lie. Raises: as check_embedded.
    """
    check_embedded(records, copy_pictures)
    records = without_crowds(records, notes)
    names = plan_names(records, copy_pictures, notes)
    if copy_pictures:
        copy_all(records, folder, names)
    yield from labelled(records, names)


def without_crowds(records: Records, notes: list[str] | None) -> Records:
    """The records without the objects that are crowds, for formats that have no mark for them."""
    crowds = sum(parsed.is_crowd for picture in records.pictures for parsed in picture.objects)
    if not crowds:
        return records
    note(notes, crowds, "crowds are left out: the format has no mark for regions of several objects")
    pictures = []
    for picture in records.pictures:
        kept = Picture(**{name: getattr(picture, name) for name in Picture.__slots__})
        kept.objects = [parsed for parsed in picture.objects if not parsed.is_crowd]
        pictures.append(kept)
    return Records(records.root, records.title, records.evidence, pictures, records.findings, class_names(records))


def note_attributes(records: Records, notes: list[str] | None) -> None:
    """A note, if objects have scores or other attributes, for formats without a place for them."""
    count = sum(bool(parsed.attributes) for picture in records.pictures for parsed in picture.objects)
    note(notes, count, "objects have scores or other attributes, which the format has no place for")


def attribute_text(parsed: Object) -> dict[str, str]:
    """The attributes of an object as texts; numbers with 4 decimals."""
    return {
        name: value if isinstance(value, str) else f"{value:.4f}".rstrip("0").rstrip(".")
        for name, value in parsed.attributes.items()
    }


def number_pixels(found: Labelled, notes: "Overlaps") -> np.ndarray:
    """A picture's objects as one array of numbers, int64 [H, W]: 1 for the first object, 0 for none.

    Where objects overlap, the pixel is of the one with the better mask_score or score; of the smaller one, where there
    are no scores. notes: counts what is lost.
    """

    def rank(item: tuple[int, tuple[Object, dict]]) -> tuple[float, float]:
        attributes, rle = item[1][0].attributes, item[1][1]
        score = attributes.get("mask_score", attributes.get("score", 0.0))
        return (score if isinstance(score, int | float) else 0.0), -utils.rle_area(rle)

    values = np.zeros((found.height, found.width), np.int64)
    shared = 0
    for number, (_, rle) in sorted(enumerate(found.objects, 1), key=rank):
        y1, x1, crop = utils.rle_to_crop(rle)
        part = values[y1 : y1 + crop.shape[0], x1 : x1 + crop.shape[1]]
        shared += int((part[crop] > 0).sum())
        part[crop] = number
    notes.pixels += shared
    notes.objects += len(found.objects) - len(np.unique(values[values > 0]))
    return values


class Overlaps:
    """Counts what a format loses that has one object a pixel."""

    def __init__(self) -> None:
        self.pixels = self.objects = 0

    def note(self, notes: list[str] | None) -> None:
        """Adds what was lost to the notes."""
        note(notes, self.pixels, "pixels are of several objects: the better score got them, or the smaller object")
        note(notes, self.objects, "objects have no pixel left, because others cover them")


############################################################
#  Files
############################################################


def check_embedded(records: Records, copy_pictures: bool) -> None:
    """Raises ValueError if pictures lie inside label files and are not to be copied: no name could lead to them."""
    inside = [picture for picture in records.pictures if picture.path is None]
    if inside and not copy_pictures:
        names = utils.listed([utils.printable(picture.label) for picture in inside], 3)
        raise ValueError(
            f"{len(inside)} pictures are inside their label files ({names}), so no file name can lead to them; "
            "--copy-pictures writes them beside the annotations"
        )


def copy_picture(picture: Picture, path: Path) -> None:
    """Copies a picture's file, byte by byte; one that is no file of its own is written as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.embedded is None:
        with picture.path.open("rb") as source:
            runtime.write_atomically(path, lambda file: shutil.copyfileobj(source, file))
    else:
        pixels = Image.fromarray(picture.embedded())
        runtime.write_atomically(path, lambda file: pixels.save(file, "PNG"))


def copy_all(records: Records, folder: Path, names: Iterable[str]) -> None:
    """copy_picture for all. names: below the folder."""
    for picture, name in zip(records.pictures, names, strict=True):
        copy_picture(picture, folder / name)


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes a file and its folder, the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomically(path, lambda file: file.write(data))
    return path


def write_text(path: Path, text: str) -> Path:
    """write_bytes of a text in UTF-8. Names of files that are no UTF-8 keep their bytes."""
    return write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    """write_text of JSON. Its letters are unescaped, unless a file's name is no Unicode, which JSON must escape."""
    return write_bytes(path, json_bytes(value, indent))

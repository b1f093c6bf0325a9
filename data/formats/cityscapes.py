"""Cityscapes' instance numbers, for leftImg8bit/SPLIT/CITY/X_leftImg8bit.png.

    gtFine/SPLIT/CITY/X_gtFine_instanceIds.png

A pixel of 16 bits is class * 1000 + number for the classes that have instances. A number below 1000 is a class alone:
of a thing, a group that nobody separated, which is ignored; of stuff such as road or sky, nothing. CVAT writes the
classes of its own projects to label_colors.txt. Source: cityscapesScripts, helpers/labels.py.
"""

import re
from collections.abc import Iterator

import utils
from data.formats.label_images import numbers_of, objects_of
from data.images import read_numbers
from data.listing import folder_of, stem_of
from data.reading import UNREADABLE, Claim, Reading, split_of
from data.records import ERROR, Fault, Picture

NAME = "cityscapes"
TITLE = "Cityscapes instanceIds"

THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train",
          32: "motorcycle", 33: "bicycle"}  # fmt: skip
_ENDING = "_instanceIds"
_COLOURS = re.compile(r"\s*(?:\d+\s+\d+\s+\d+\s+)?(\S.*?)\s*")
_NO_CLASS = Fault(
    ERROR, "objects have a class number out of range, which has no name", "left out", "add it to label_colors.txt"
)


def claim(reading: Reading) -> Claim | None:
    """The files whose names end in _instanceIds.png."""
    labels = [name for name in reading.listing.of(".png") if stem_of(name).endswith(_ENDING)]
    return Claim(labels, len(labels), f"{len(labels)} files named *{_ENDING}.png") if labels else None


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file."""
    things = _class_names(reading) or THINGS
    for label in labels:
        stem = stem_of(label).removesuffix(_ENDING).rpartition("_gt")[0]
        folder = folder_of(label).replace("gtFine", "leftImg8bit").replace("gtCoarse", "leftImg8bit")
        path = reading.find_stem(f"{stem}_leftImg8bit", folder) or reading.find_stem(stem, folder_of(label))
        if path is None:
            reading.no_picture(label, f"{stem}_leftImg8bit")
            continue
        try:
            numbers = numbers_of(read_numbers(reading.listing.path(label)))
        except (ValueError, OSError) as error:
            reading.findings.add(UNREADABLE, f"{label}: {utils.printable(error)}")
            continue
        picture = Picture(path, label, numbers.shape, split_of(label))
        for parsed in objects_of(numbers):
            number = int(parsed.place.removeprefix("number "))
            parsed.is_crowd = number < 1000
            parsed.name = things.get(number if parsed.is_crowd else number // 1000, "")
            if parsed.name:
                picture.objects.append(parsed)
            elif not parsed.is_crowd and things is not THINGS:
                reading.findings.add(_NO_CLASS, f"{label}: {parsed.place}")
        yield picture


def _class_names(reading: Reading) -> dict[int, str]:
    """{number: name} of label_colors.txt, which has "red green blue name" in each line, or the name alone.

    The background is 0, whether the file has it or not. Empty without the file.
    """
    for name in reading.listing.of(".txt"):
        if stem_of(name) == "label_colors":
            found = (_COLOURS.fullmatch(line) for line in reading.text(name).splitlines() if line.strip())
            names = [match[1] for match in found if match]
            first = 0 if names and names[0].lower() in ("background", "unlabeled", "void") else 1
            return {number: name for number, name in enumerate(names, first) if number}
    return {}

"""Cityscapes' instance numbers, for leftImg8bit/SPLIT/CITY/X_leftImg8bit.png.

    gtFine/SPLIT/CITY/X_gtFine_instanceIds.png

A pixel of 16 bits is class * 1000 + number for the classes that have instances. A number below 1000 is a class alone:
of a thing, a group that nobody separated, which is ignored; of stuff such as road or sky, nothing. CVAT writes the
classes of its own projects to label_colors.txt. Source: cityscapesScripts, helpers/labels.py.
"""

from collections.abc import Iterator

import utils
from data.formats.label_images import numbers_of, objects_of
from data.images import read_numbers
from data.listing import folder_of, stem_of
from data.reading import NO_PICTURE, UNREADABLE, Claim, Reading, split_of
from data.records import Picture

NAME = "cityscapes"
TITLE = "Cityscapes instanceIds"

THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train",
          32: "motorcycle", 33: "bicycle"}  # fmt: skip
_ENDING = "_instanceIds"


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
            reading.findings.add(NO_PICTURE, label)
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
        yield picture


def _class_names(reading: Reading) -> dict[int, str]:
    """{number: name} of label_colors.txt, which has "red green blue name" in each line; empty without it."""
    for name in reading.listing.of(".txt"):
        if stem_of(name) == "label_colors":
            rows = [line.split(maxsplit=3) for line in reading.text(name).splitlines() if line.strip()]
            return {number: row[3].strip() for number, row in enumerate(rows) if len(row) == 4 and number}
    return {}

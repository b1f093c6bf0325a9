"""SA-1B's json: a file for each picture, with masks and without classes.

    {"image": {"file_name", "height", "width"}, "annotations": [{"segmentation": {"size", "counts"}, "bbox", "id"}]}

Segment Anything and datumaro write it. Source: the description of SA-1B's download.
"""

from collections.abc import Iterator
from typing import Any

import utils
from data.listing import folder_of, stem_of
from data.reading import FLAWS, NO_PICTURE, OTHER_FILES, UNUSABLE, Claim, Reading, split_of, whole_size
from data.records import Object, Picture

NAME = "sa1b"
TITLE = "SA-1B json"


def is_sa1b(value: Any) -> bool:
    """Whether a JSON value is a file of one picture."""
    is_dict = isinstance(value, dict) and isinstance(value.get("image"), dict)
    return is_dict and isinstance(value.get("annotations"), list)


def claim(reading: Reading) -> Claim | None:
    """The json files with one image and annotations."""
    return reading.claim_json(is_sa1b, "an image and annotations")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file."""
    for label in labels:
        value = reading.json(label)
        if not is_sa1b(value):
            reading.findings.add(OTHER_FILES, *([label] if value is not None else []))
            continue
        name = value["image"].get("file_name")
        path = reading.find(name, folder_of(label)) if isinstance(name, str) else None
        path = path or reading.find_stem(stem_of(label), folder_of(label))
        if path is None:
            reading.findings.add(NO_PICTURE, f"{label}: {utils.printable(name)}")
            continue
        said = whole_size(value["image"].get("height"), value["image"].get("width"))
        picture = Picture(path, label, said, split_of(reading.listing.relative(path)))
        size = said or reading.size_of(picture)
        for number, entry in enumerate(value["annotations"] if size else (), 1):
            try:
                rle = utils.annotation_to_rle(entry["segmentation"], *size)
                picture.objects.append(Object("", f"annotation {number}", rle=rle))
            except FLAWS as error:
                reading.findings.add(UNUSABLE, f"{label}: annotation {number}: {utils.printable(error)}")
        yield picture

"""Open Images' segmentation: a csv with a row for each mask file, and class-descriptions csv.

    MaskPath, ImageID, LabelName, BoxID, BoxXMin, BoxXMax, BoxYMin, BoxYMax, PredictedIoU, Clicks

Mask files are smaller or larger than their pictures. LabelName is /m/..., whose words the class descriptions have.
Source: storage.googleapis.com/openimages, the description of V7.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

import utils
from data.formats.label_images import one_channel
from data.images import read_numbers
from data.listing import folder_of, stem_of
from data.reading import UNREADABLE, UNUSABLE, Claim, Reading, nearest, split_of, split_of_file
from data.records import Object, Picture, nearest_pixels

NAME = "open_images"
TITLE = "Open Images csv"


def claim(reading: Reading) -> Claim | None:
    """The csv files whose header has MaskPath and ImageID."""
    labels = [name for name in reading.listing.of(".csv") if {"MaskPath", "ImageID"} <= set(reading.columns(name))]
    if not labels:
        return None
    quiet = Reading(reading.listing.root)  # what is wrong with the files is said when they are read
    pictures = {row["ImageID"] for label in labels for row in _rows(quiet, label)}
    return Claim(labels, len(pictures), f"{labels[0]}: MaskPath and ImageID")


def _rows(reading: Reading, label: str) -> list[dict[str, str]]:
    return [row for row in reading.table(label) if row.get("MaskPath") and row.get("ImageID")]


def _class_names(reading: Reading) -> dict[str, str]:
    """{"/m/01yrx": "Cat"} of the files of class descriptions."""
    names = {}
    for name in reading.listing.of(".csv"):
        if "class-descriptions" in stem_of(name):
            names |= {row[0]: row[1] for row in csv.reader(io.StringIO(reading.text(name))) if len(row) == 2}
    return names


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each ImageID."""
    names = _class_names(reading)
    masks = defaultdict(list)
    for name in reading.listing.of(".png"):
        masks[PurePosixPath(name).name].append(name)
    for label in labels:
        groups = defaultdict(list)
        for row in _rows(reading, label):
            groups[row["ImageID"]].append(row)
        for image, rows in groups.items():
            path = reading.find_stem(image, folder_of(label))
            if path is None:
                reading.no_picture(f"{label}: {utils.printable(image)}", image)
                continue
            picture = Picture(path, label, split=split_of_file(label) or split_of(reading.listing.relative(path)))
            size = reading.size_of(picture)
            for row in rows if size else ():
                name = next(iter(nearest(masks[PurePosixPath(row["MaskPath"]).name], folder_of(label))), None)
                if name is None:
                    reading.findings.add(UNUSABLE, f"{label}: {utils.printable(row['MaskPath'])} is not there")
                    continue
                try:
                    mask = _mask(read_numbers(reading.listing.path(name)), size)
                except (ValueError, OSError) as error:
                    reading.findings.add(UNREADABLE, str(error))
                    continue
                reading.exclude([name])
                code = row.get("LabelName") or ""
                name = names.get(code, code)
                picture.objects.append(Object(name, row["MaskPath"], rle=utils.mask_to_rle(mask)))
            yield picture


def _mask(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of a mask file, in the size of its picture: the nearest pixels."""
    values = one_channel(values)
    mask = values.any(axis=2) if values.ndim == 3 else values != 0
    return nearest_pixels(mask, size)

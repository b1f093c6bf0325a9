"""Writes records as label images: masks/NAME.tif, whose pixels are the numbers of objects, 0 for the background.

Cellpose, StarDist, napari and Fiji read them. They have 16 bits, or 32 where a picture has more than 65,535 objects. A
pixel is of one object, and label images know no classes. So classes.csv has the class of each number, and where there
are several classes, each also has label images of its own, in classes/CLASS/, with the same numbers. Where the picture
has a georeference, a world file .tfw beside each label image places it on the map.
"""

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from data.formats.label_images import CLASS_TABLE, label_stem
from data.georeference import Georeference
from data.object_checks import class_name
from data.recognise import Records
from data.records import Object

from .common import (
    Overlaps,
    as_unicode,
    attribute_text,
    check_embedded,
    class_names,
    copy_all,
    labelled,
    note,
    number_names,
    number_pixels,
    plan_names,
    without_crowds,
    write_bytes,
    write_text,
)
from .streams import stream_csv

_COLUMNS = ("file", "number", "class")  # of classes.csv


def write_label_images(
    records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None
) -> Path:
    """Writes folder/masks/NAME.tif for each picture, and classes.csv; with copy_pictures, the pictures below images/.

    notes: as data/writers/common.py says.

    Returns: the folder.
    """
    check_embedded(records, copy_pictures)
    records = without_crowds(records, notes)
    names = [_findable(PurePosixPath(name)) for name in plan_names(records, copy_pictures, notes)]
    if copy_pictures:
        names = as_unicode(names, notes)
        copy_all(records, folder / "images", names)
    classes = class_names(records)
    present = {class_name(parsed) for picture in records.pictures for parsed in picture.objects}
    divided = [name for name in classes if name in present] if len(present) > 1 else []
    folders = dict(zip(classes, number_names(map(_folder_name, classes)), strict=True))
    attributes = {name: None for p in records.pictures for parsed in p.objects for name in parsed.attributes}
    attributes = [name for name in attributes if name not in _COLUMNS]  # the number of a detection is there already
    rows, overlaps, others = [[*_COLUMNS, *attributes]], Overlaps(), Overlaps()
    for found in labelled(records, names):
        name = PurePosixPath(found.name).with_suffix(".tif")
        georeference = found.picture.georeference
        _write(folder / "masks" / name, number_pixels(found, overlaps), georeference)
        of_objects = [class_name(parsed) for parsed, _ in found.objects]
        for number, (parsed, _) in enumerate(found.objects, 1):
            texts = attribute_text(parsed)
            rows.append([f"masks/{name}", number, of_objects[number - 1], *(texts.get(key, "") for key in attributes)])
        for chosen in divided:
            mine = [number for number, of_object in enumerate(of_objects, 1) if of_object == chosen]
            part = number_pixels(found._replace(objects=[found.objects[number - 1] for number in mine]), others)
            _write(folder / "classes" / folders[chosen] / name, np.array([0, *mine])[part], georeference)
    overlaps.note(notes)
    if divided:
        note(notes, len(divided), f"classes: label images know none, so {CLASS_TABLE} and classes/ tell them apart")
    stream_csv(folder / CLASS_TABLE, rows)
    return folder


def add_classes(folder: Path, name: str, objects: Iterator[tuple[int, Object]]) -> None:
    """Adds the objects of a label image to classes.csv, in place of those that the table has of it already.

    name: of the label image, below the folder. objects: the number of each, and what is known of it; all have the same
    attributes. The table is copied row by row.
    """
    path = folder / CLASS_TABLE
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") if path.exists() else io.StringIO() as old:
        former = csv.reader(old)
        header = next(former, list(_COLUMNS))
        first = list(itertools.islice(objects, 1))
        columns = [*header, *(key for _, parsed in first for key in parsed.attributes if key not in header)]
        kept = ([*row, *[""] * (len(columns) - len(row))] for row in former if row and row[0] != name)
        added = (
            [name, number, class_name(parsed), *map(attribute_text(parsed).get, columns[len(_COLUMNS) :])]
            for number, parsed in itertools.chain(first, objects)
        )
        stream_csv(path, itertools.chain([columns], kept, added))


def mask_name(name: str) -> str:
    """The place of a picture's label image, below the folder. name: of the picture."""
    return f"masks/{PurePosixPath(_findable(PurePosixPath(name))).with_suffix('.tif')}"


def _findable(name: PurePosixPath) -> str:
    """A name whose label image is found again: what ends in _masks or _label is taken for a label image itself."""
    return str(name if label_stem(name.name) in (name.stem, name.stem[:-4]) else name.with_stem(f"{name.stem}_picture"))


def _folder_name(name: str) -> str:
    text = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name)
    return text.strip(". ")[:100] or "_"


def _write(path: Path, numbers: np.ndarray, georeference: Georeference | None = None) -> None:
    import tifffile  # here: few commands write TIFFs

    data = io.BytesIO()
    kind = np.uint16 if numbers.max(initial=0) < 1 << 16 else np.uint32
    tifffile.imwrite(data, numbers.astype(kind), photometric="minisblack", compression="zlib", metadata=None)
    write_bytes(path, data.getvalue())
    if georeference is not None:
        write_text(path.with_suffix(".tfw"), georeference.world_file())

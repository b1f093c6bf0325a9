"""Writes records as label images: masks/NAME.tif, whose pixels are the numbers of objects, 0 for the background.

Cellpose, StarDist, napari and Fiji read them. They have 16 bits, or 32 where a picture has more than 65,535 objects. A
pixel is of one object, and label images know no classes. So classes.csv has the class of each number, and where there
are several classes, each also has label images of its own, in classes/CLASS/, with the same numbers.
"""

import csv
import io
from pathlib import Path, PurePosixPath

import numpy as np

from data.formats.label_images import CLASS_TABLE, label_stem
from data.object_checks import class_name
from data.recognise import Records

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
    attributes = list({name: None for p in records.pictures for parsed in p.objects for name in parsed.attributes})
    rows, overlaps, others = [["file", "number", "class", *attributes]], Overlaps(), Overlaps()
    for found in labelled(records, names):
        name = PurePosixPath(found.name).with_suffix(".tif")
        _write(folder / "masks" / name, number_pixels(found, overlaps))
        of_objects = [class_name(parsed) for parsed, _ in found.objects]
        for number, (parsed, _) in enumerate(found.objects, 1):
            texts = attribute_text(parsed)
            rows.append([f"masks/{name}", number, of_objects[number - 1], *(texts.get(key, "") for key in attributes)])
        for chosen in divided:
            mine = [number for number, of_object in enumerate(of_objects, 1) if of_object == chosen]
            part = number_pixels(found._replace(objects=[found.objects[number - 1] for number in mine]), others)
            _write(folder / "classes" / folders[chosen] / name, np.array([0, *mine])[part])
    overlaps.note(notes)
    if divided:
        note(notes, len(divided), f"classes: label images know none, so {CLASS_TABLE} and classes/ tell them apart")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(folder / CLASS_TABLE, text.getvalue())
    return folder


def _findable(name: PurePosixPath) -> str:
    """A name whose label image is found again: what ends in _masks or _label is taken for a label image itself."""
    return str(name if label_stem(name.name) in (name.stem, name.stem[:-4]) else name.with_stem(f"{name.stem}_picture"))


def _folder_name(name: str) -> str:
    text = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name)
    return text.strip(". ")[:100] or "_"


def _write(path: Path, numbers: np.ndarray) -> None:
    import tifffile  # here: few commands write TIFFs

    data = io.BytesIO()
    kind = np.uint16 if numbers.max(initial=0) < 1 << 16 else np.uint32
    tifffile.imwrite(data, numbers.astype(kind), photometric="minisblack", compression="zlib", metadata=None)
    write_bytes(path, data.getvalue())

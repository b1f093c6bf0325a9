"""Writes records as Pascal VOC's segmentation, in the layout of datumaro and CVAT.

    JPEGImages/ID.*, SegmentationObject/ID.png, SegmentationClass/ID.png, ImageSets/Segmentation/SPLIT.txt, labelmap.txt

The PNGs have VOC's palette, so that numbers and colours both say the object or class. Crowds are void, 255. A pixel is
of one object. Pictures with more than 254 objects have a 16-bit PNG of numbers, which VOC's own tools may not read.
"""

import io
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

import utils
from data.formats.voc import VOID, palette
from data.object_checks import class_name
from data.recognise import Records

from .common import (
    Overlaps,
    class_names,
    copy_picture,
    file_names,
    labelled,
    note,
    note_attributes,
    number_names,
    number_pixels,
    renamed_classes,
    write_bytes,
    write_text,
)


def write_voc(records: Records, folder: Path, copy_pictures: bool = True, notes: list[str] | None = None) -> Path:
    """Writes a folder in VOC's layout.

    The pictures are always copied: tools look for them in JPEGImages. Their names lose their folders, and characters
    that lists of names cannot hold. copy_pictures changes nothing. notes: as data/writers/common.py says.

    Returns: the folder.
    """
    note_attributes(records, notes)
    renamed = renamed_classes(records, _is_no_label, "labelmap.txt cannot hold : and #", notes)
    number_of = {name: number + (number >= VOID) for number, name in enumerate(class_names(records), 1)}
    names = [PurePosixPath(name) for name in file_names(records, True)]
    ids = _ids(names, notes)
    lists, overlaps, deep, crowds = defaultdict(list), Overlaps(), 0, 0
    for found, stem in zip(labelled(records, ids), ids, strict=True):
        crowd_masks = [rle for parsed, rle in found.objects if parsed.is_crowd]
        objects = [item for item in found.objects if not item[0].is_crowd]
        numbers = number_pixels(found._replace(objects=objects), overlaps)
        classes = np.array([0, *(number_of[class_name(parsed)] for parsed, _ in objects)])[numbers]
        numbers += numbers >= VOID  # 255 is void
        for rle in crowd_masks:
            is_void = utils.rle_to_mask(rle) & (numbers == 0)
            numbers[is_void] = classes[is_void] = VOID
        deep += len(objects) >= VOID
        crowds += len(crowd_masks)
        write_bytes(folder / "SegmentationObject" / f"{stem}.png", _png(numbers))
        write_bytes(folder / "SegmentationClass" / f"{stem}.png", _png(classes))
        lists[found.picture.split or "default"].append(stem)
    _copy(records, folder, names, ids)
    for split, stems in lists.items():
        write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
    overlaps.note(notes)
    note(notes, crowds, "crowds are void, 255, which is neither object nor background")
    note(notes, deep, f"pictures have more than {VOID - 1} objects: their PNG has 16 bits, and VOC's tools have 8")
    note(notes, len(ids), "pictures are copied: tools look for them in JPEGImages")
    write_text(folder / "labelmap.txt", _label_map(renamed, number_of))
    return folder


def _is_no_label(character: str) -> bool:
    return character in ":#" or not character.isprintable()


def _copy(records: Records, folder: Path, names: list[PurePosixPath], ids: list[str]) -> None:
    for picture, name, stem in zip(records.pictures, names, ids, strict=True):
        copy_picture(picture, folder / "JPEGImages" / f"{stem}{name.suffix}")


def _ids(names: list[PurePosixPath], notes: list[str] | None) -> list[str]:
    """A name without suffix for each picture, which a line of a list can hold."""
    stems = []
    for name in names:
        stem = "".join("_" if c.isspace() or c in "\"'\\/" or not c.isprintable() else c for c in name.stem)
        is_image = any(stem.lower().endswith(suffix) for suffix in utils.IMAGE_SUFFIXES)  # "slide.tif" of slide.tif.png
        stems.append(stem.replace(".", "_") if is_image else stem)
    stems = number_names(stems)
    changed = sum(stem != name.stem for stem, name in zip(stems, names, strict=True))
    note(notes, changed, "pictures have another name: folders are left out, spaces and quotes are _, equal names count")
    return stems


def _png(numbers: np.ndarray) -> bytes:
    """A PNG of numbers with VOC's palette; of 16 bits and gray where they are above 255."""
    file = io.BytesIO()
    if numbers.max(initial=0) > VOID:
        Image.fromarray(numbers.astype(np.uint16)).save(file, "PNG")
    else:
        picture = Image.fromarray(numbers.astype(np.uint8))
        picture.putpalette(palette().tobytes())
        picture.save(file, "PNG")
    return file.getvalue()


def _label_map(renamed: dict[str, str], number_of: dict[str, int]) -> str:
    """labelmap.txt. Its lines count from the background, 0; the line of void's number is left free."""
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for name, number in number_of.items():
        if number == VOID + 1:
            lines.append("void:224,224,192::")
        colour = palette()[number % 256].tolist() if number <= VOID else [number // 256, number % 256, 1]
        lines.append(f"{renamed[name]}:{','.join(map(str, colour))}::")
    return "\n".join([*lines, ""])

"""Turns a data set into another format: what is left out, where the output may lie, and which writer does it."""

from pathlib import Path

import utils
from data.formats.coco_records import CROWD_SHARE
from data.listing import IGNORED_FOLDERS
from data.recognise import Records
from data.writers.all import WRITERS
from data.writers.common import counted


def check_place(folder: Path, root: Path, force: bool = False) -> None:
    """Raises ValueError if labels in a folder would mix with others.

    These are those of the data set, if the one lies in the other, and what the folder holds already. Folders that no
    reader looks into, such as output/, are no part of the data set that they lie in. force: files may be there.
    """
    output, data = folder.resolve(), root.resolve()
    if output.is_relative_to(data):
        parts = output.relative_to(data).parts
        is_mixed = not any(part in IGNORED_FOLDERS or part.startswith(".") for part in parts)
        where = "is that folder" if output == data else "lies in it"
    else:
        is_mixed, where = data.is_relative_to(output), "holds it"
    if is_mixed:
        raise ValueError(
            f"OUT {utils.printable(folder)} and --dataset {utils.printable(root)}: the one {where}, so that the "
            f"labels of both would mix; name a folder outside of it, such as {utils.printable(data)}_converted"
        )
    there = [] if force or not folder.is_dir() else sorted(p.name for p in folder.iterdir() if p.name[0] != ".")
    if there:
        raise ValueError(
            f"OUT {utils.printable(folder)} holds files already ({utils.listed(map(utils.printable, there), 3)}), with "
            "which these labels would mix; name a new folder, or --force to write into this one: then files of the "
            "same names are replaced, and others stay"
        )


def convert(records: Records, name: str, folder: Path, copy_pictures: bool, force: bool = False) -> list[str]:
    """Writes records in the format of a name in WRITERS. Pictures that nobody labelled are taken out.

    force: as for check_place.

    Returns: what to print, a line each: where the result is, and what was lost with counts.
    Raises: as check_place and the writers.
    """
    check_place(folder, records.root, force)
    records.pictures = [picture for picture in records.pictures if picture.is_labelled]
    objects = [parsed for picture in records.pictures for parsed in picture.objects]
    notes: list[str] = []
    path = WRITERS[name](records, folder, copy_pictures, notes)
    counts = f"{counted(len(records.pictures), 'pictures')}, {counted(len(objects), 'objects')}"
    lines = [f"{utils.printable(path, 500)}: {counts}"]
    lines += [utils.printable(text, 500) for text in notes]
    if name == "coco":
        lines += _notes_of_coco(records, copy_pictures)
    elif partly := sum(picture.labelled_classes is not None for picture in records.pictures):
        lines.append(counted(partly, "pictures are labelled for some classes only, which the format has no place for"))
    return lines


def _notes_of_coco(records: Records, copy_pictures: bool) -> list[str]:
    flags = [parsed.is_crowd for picture in records.pictures for parsed in picture.objects]
    lines = [] if copy_pictures else [f"file names are relative to {utils.printable(records.root, 500)}"]
    if sum(flags) > CROWD_SHARE * len(flags):
        words = "of them are crowds, so many that --crowds ignore must say so when the file is read here"
        lines.append(f"{sum(flags):,} {words}")
    return lines

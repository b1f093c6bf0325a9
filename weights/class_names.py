"""Names of classes that a checkpoint does not say: a list of text, the categories of an annotation file, or a name."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import utils

# Classes of other projects' models, in the order of their weights (docs/other_projects.md).
KNOWN_CLASSES: dict[str, tuple[str, ...]] = {
    "cityscapes": ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "publaynet": ("Text", "Title", "List", "Table", "Figure"),
    "prima": (
        *("(background)", "TextRegion", "ImageRegion", "TableRegion", "MathsRegion", "SeparatorRegion"),
        "OtherRegion",
    ),
    "restor": ("canopy", "tree"),
    "tree": ("tree",),
}
_MOST_BYTES = 2 << 30  # of an annotation file; LVIS's have up to 1.1 GB


def read_class_names(path: str | Path) -> list[str]:
    """Names of the foreground classes.

    path: a text file, one name a line, in which blank lines and lines that begin with # do not count; a .json file of
        annotations, whose categories count in the order of their ids, as Detectron2 numbers them; or, if there is no
        such file, a name of KNOWN_CLASSES.

    Raises: FileNotFoundError; ValueError for an empty file, a name twice, or the background among them.
    """
    path = Path(path)
    if not path.is_file() and str(path) in KNOWN_CLASSES:
        return list(KNOWN_CLASSES[str(path)])
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}, the file of class names, does not exist; as a name, it is none of {', '.join(KNOWN_CLASSES)}"
        )
    names = _names_of_categories(path) if path.suffix.lower() == ".json" else _names_of_lines(path)
    twice = [utils.printable(name, 100) for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"{path} must name each class once, a line each; {utils.listed(twice) or 'it names none'}")
    if names[0].lower() in ("bg", "background", "__background__"):
        raise ValueError(
            f"{path} begins with {utils.printable(names[0], 100)!r}; the background is class 0 by itself, leave it "
            "out. Where weights have a class of that name, call it otherwise"
        )
    return names


def _names_of_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; expected a class name a line") from None
    return [line for line in lines if line and not line.startswith("#")]


def _names_of_categories(path: Path) -> list[str]:
    """The names of the categories of a file in COCO's or LVIS's format, in the order of their ids."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        contents: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no annotation file of JSON ({utils.printable(error, 200)})") from None
    categories = contents.get("categories") if isinstance(contents, dict) else None
    if not _are_categories(categories):
        raise ValueError(
            f"{path} has no categories, a list of {{id, name}} as annotation files of COCO and LVIS have; give such a "
            "file, or a text file with a class name a line"
        )
    return [category["name"].strip() for category in sorted(categories, key=lambda category: category["id"])]


def _are_categories(categories: Any) -> bool:
    return isinstance(categories, Sequence) and all(
        isinstance(category, dict) and type(category.get("id")) is int and isinstance(category.get("name"), str)
        for category in categories
    )

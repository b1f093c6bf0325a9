"""Writes records as CVAT's XML, version 1.1 for images: annotations.xml, to be uploaded into a task of the pictures.

Each object is a mask, whose code counts along the rows of its box: it keeps holes, parts and overlaps to the bit.
labels.json has the labels with their attributes, for the field Raw of CVAT's form for a new task.
"""

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

import utils
from data.object_checks import class_name
from data.recognise import Records

from .common import (
    Labelled,
    as_unicode,
    attribute_text,
    check_embedded,
    class_names,
    copy_all,
    file_names,
    labelled,
    renamed_classes,
    without_crowds,
    write_bytes,
    write_json,
)


def write_cvat(records: Records, folder: Path, copy_pictures: bool = False, notes: list[str] | None = None) -> Path:
    """Writes folder/annotations.xml and labels.json; with copy_pictures, the pictures below images/.

    notes: as data/writers/common.py says.

    Returns: annotations.xml.
    """
    check_embedded(records, copy_pictures)
    records = without_crowds(records, notes)
    renamed = renamed_classes(records, _is_no_xml, "XML cannot hold some of its characters", notes)
    names = file_names(records, copy_pictures)
    if copy_pictures:
        names = as_unicode(names, notes)
        copy_all(records, folder / "images", names)
    attributes = {name: None for p in records.pictures for parsed in p.objects for name in parsed.attributes}
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    _add_labels(root, [renamed[name] for name in class_names(records)], list(attributes), len(names))
    for number, found in enumerate(labelled(records, names)):
        subset = {"subset": found.picture.split} if found.picture.split else {}
        size = {"width": str(found.width), "height": str(found.height)}
        image = SubElement(root, "image", {"id": str(number), "name": _xml(found.name), **subset, **size})
        _add_masks(image, found, renamed)
    indent(root)
    values = [{"name": _xml(name), "mutable": False, "input_type": "text", "values": [""]} for name in attributes]
    labels = [{"name": name, "type": "any", "attributes": values} for name in renamed.values()]
    write_json(folder / "labels.json", labels, indent=1)
    return write_bytes(folder / "annotations.xml", tostring(root, "utf-8", xml_declaration=True))


def _is_no_xml(character: str) -> bool:
    """Whether XML 1.0 cannot hold a character. Attributes lose new lines and tabs, too."""
    return not (" " <= character < "\ud800" or "\ue000" <= character < "\ufffe" or character >= "\U00010000")


def _xml(text: str) -> str:
    return "".join("\ufffd" if _is_no_xml(c) else c for c in text)


def _add_labels(root: Element, names: list[str], attributes: list[str], count: int) -> None:
    """The section <meta>: the labels with their attributes."""
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "size").text = str(count)
    SubElement(task, "mode").text = "annotation"
    labels = SubElement(task, "labels")
    for name in names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "type").text = "any"
        section = SubElement(label, "attributes")
        for attribute in attributes:
            entry = SubElement(section, "attribute")
            for key, text in (("name", _xml(attribute)), ("mutable", "False"), ("input_type", "text")):
                SubElement(entry, key).text = text
            SubElement(entry, "default_value")
            SubElement(entry, "values")


def _add_masks(image: Element, found: Labelled, renamed: dict[str, str]) -> None:
    for parsed, rle in found.objects:
        y1, x1, crop = utils.rle_to_crop(rle)
        box = {"left": x1, "top": y1, "width": crop.shape[1], "height": crop.shape[0]}
        source = "auto" if parsed.attributes else "manual"
        mask = SubElement(
            image, "mask",
            {"label": renamed[class_name(parsed)], "source": source, "occluded": "0", "rle": _rows(crop)}
            | {key: str(value) for key, value in box.items()} | {"z_order": "0"},
        )  # fmt: skip
        for name, value in attribute_text(parsed).items():
            SubElement(mask, "attribute", {"name": _xml(name)}).text = _xml(value)


def _rows(crop: np.ndarray) -> str:
    """The lengths of the runs along the rows, the first of zeros."""
    values = crop.ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(values)]])).tolist()
    return ", ".join(map(str, [0, *runs] if values[0] else runs))

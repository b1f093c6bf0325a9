"""The XML of LabelMe, the web tool of 2008, which CVAT and Datumaro export as LabelMe 3.0. labelme's json is another.

    Annotations/FOLDER/NAME.xml, Images/FOLDER/NAME.jpg, Masks/FOLDER/NAME_mask_0.png
    <annotation><filename><imagesize><nrows><ncols>
      <object><name><deleted>0|1<id><parts><ispartof>
        <polygon><pt><x><y></pt></polygon> or <segm><mask>NAME_mask_0.png</mask><box>

An object that is part of another one of its name belongs to it. Source: the description of LabelMe's annotation files;
datumaro 1.13, plugins/data_formats/labelme.py.
"""

import functools
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import utils
from data.formats.label_images import one_channel
from data.images import read_numbers
from data.listing import folder_of, stem_of
from data.reading import (
    Claim,
    NoMasks,
    ObjectGroups,
    Reading,
    closed_ring,
    point_array,
    split_of,
    whole_size,
)
from data.records import REMARK, Fault, Object, Picture

NAME = "labelme_xml"
TITLE = "LabelMe XML"

_LEFT_OUT = Fault(REMARK, "objects are deleted, or have no outline", "left out")


def claim(reading: Reading) -> Claim | None:
    """The xml files of an annotation with the size of an image in rows and columns."""
    xmls = reading.listing.of(".xml")
    samples = reading.listing.samples(xmls)
    good = [name for name in samples if "<annotation>" in (head := reading.head(name)) and "<imagesize" in head]
    folders = {folder_of(name) for name in good}
    labels = [name for name in xmls if folder_of(name) in folders]
    evidence = f"{len(good)} of {len(samples)} xml files looked into are <annotation> with <imagesize>"
    return Claim(labels, len(labels), evidence) if labels else None


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each file."""
    pictures, boxes = [], 0
    for label in labels:
        root = reading.xml(label)
        if root is None:
            continue
        name = root.findtext("filename") or stem_of(label)
        path = reading.find_stem(stem_of(name), folder_of(label)) or reading.find(name, folder_of(label))
        if path is None:
            reading.no_picture(f"{label}: {utils.printable(name)}", name, label)
            continue
        size = whole_size(root.findtext("imagesize/nrows"), root.findtext("imagesize/ncols"))
        picture = Picture(path, label, size, split_of(reading.listing.relative(path)))
        size = size or reading.size_of(picture)
        entries = root.findall("object") if size else []
        groups = ObjectGroups(size or (1, 1))
        parse = functools.partial(_object, reading=reading, label=label)
        names = {entry.findtext("id"): (entry.findtext("name") or "").strip() for entry in entries}
        for parsed, entry in reading.parsed(label, "object", entries, parse, _LEFT_OUT):
            whole = (entry.findtext("parts/ispartof") or "").strip()
            groups.add(parsed, whole if names.get(whole) == parsed.name else entry.findtext("id"))
        picture.objects = groups.objects
        boxes += sum(entry.find("segm/box") is not None and entry.find("segm/mask") is None for entry in entries)
        boxes += sum((entry.findtext("type") or "") == "bounding_box" for entry in entries)
        pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _object(entry: Element, place: str, reading: Reading, label: str) -> Object | None:
    """The object of an entry; None for one that is deleted, a box or a line."""
    polygon, mask = entry.find("polygon"), (entry.findtext("segm/mask") or "").strip()
    is_box = (entry.findtext("type") or "") == "bounding_box"
    if (entry.findtext("deleted") or "").strip() == "1" or is_box or (polygon is None and not mask):
        return None
    parsed = Object((entry.findtext("name") or "").strip(), place)
    if polygon is not None:
        points = [(point.findtext("x"), point.findtext("y")) for point in polygon.findall("pt")]
        parsed.rings = [closed_ring(point_array(points))]
        return parsed
    path = reading.find_stem(stem_of(mask), folder_of(label))
    if path is None:
        raise ValueError(f"has the mask {utils.printable(mask, 100)}, which is not there")
    reading.exclude([reading.listing.relative(path)])
    values = one_channel(read_numbers(path))
    parsed.rle = utils.mask_to_rle(values.any(axis=2) if values.ndim == 3 else values != 0)
    return parsed

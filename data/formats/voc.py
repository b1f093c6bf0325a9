"""Pascal VOC's segmentation: numbers of objects in SegmentationObject/ID.png, of classes in SegmentationClass/ID.png.

    JPEGImages/ID.jpg, ImageSets/Segmentation/{train,val}.txt, labelmap.txt

The PNGs have a palette, whose numbers count, or are RGB in VOC's colours, as datumaro and CVAT write them. 0 is the
background, 255 void: the border of about 5 pixels around objects, which is neither object nor background. The class of
an object is the commonest number of SegmentationClass below it. supervision writes XML with polygons instead, 1-based.
Source: the development kit of VOC2012; datumaro, plugins/data_formats/voc.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

import utils
from data.formats.label_images import objects_of
from data.images import check_size, opened
from data.listing import PICTURE_SUFFIXES, folder_of, stem_of
from data.reading import (
    CLASS_LISTS,
    FLAWS,
    UNREADABLE,
    UNUSABLE,
    Claim,
    NoMasks,
    Reading,
    closed_ring,
    own_list,
    point_array,
    split_of,
    whole_size,
)
from data.records import ERROR, REMARK, WARNING, Fault, Object, Picture

NAME = "voc"
TITLE = "Pascal VOC"
WHOLE_NUMBERS_ARE_CONTOURS = True

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
_OBJECTS, _CLASSES = "SegmentationObject", "SegmentationClass"
_VOID = Fault(REMARK, "pictures have pixels of void, 255", "taken as background")
_NO_CLASS = Fault(WARNING, "objects lie on no class of SegmentationClass", "called object")
_BOXES = Fault(ERROR, "objects of XML files are boxes among polygons", "left out: a box is no mask")
_UNLISTED = Fault(REMARK, "pictures are not in ImageSets/Segmentation, and so not labelled", "left out")
_NO_MASKS = Fault(REMARK, "pictures of ImageSets/Segmentation have no SegmentationObject", "taken to show no objects")


def palette() -> np.ndarray:
    """VOC's colours of the numbers 0 to 255: uint8 [256, 3]. Bits of the number go to the channels in turn."""
    numbers, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def claim(reading: Reading) -> Claim | None:
    """The PNGs of SegmentationObject, or the XML files with polygons.

    Supervisely's export to VOC has other names, and numbers that mean nothing: it is not claimed.
    """
    labels = [name for name in reading.listing.of(".png") if _OBJECTS in folder_of(name).split("/")]
    labels = [name for name in labels if not name.endswith("_instance.png")]
    if labels:
        return Claim(labels, len(labels), f"{len(labels)} files in {_OBJECTS}")
    xmls = reading.listing.of(".xml")
    samples = reading.listing.samples(xmls)
    good = [name for name in samples if _is_annotation(reading, name)]
    if not good:
        return None
    folders = {folder_of(name) for name in good}
    labels = [name for name in xmls if folder_of(name) in folders]
    evidence = f"{len(good)} of {len(samples)} xml files looked into are <annotation> with <object>"
    return Claim(labels, len(labels), evidence)


def _is_annotation(reading: Reading, name: str) -> bool:
    head = reading.head(name)
    is_voc = "<annotation" in head and "<annotations" not in head and ("<size" in head or "<filename" in head)
    return is_voc and "<imagesize" not in head  # which LabelMe of 2008 writes


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each label, and for each of ImageSets/Segmentation that has none."""
    if labels[0].lower().endswith(".xml"):
        yield from _read_xml(reading, labels)
        return
    reading.exclude(name for name in reading.listing.pictures if {_OBJECTS, _CLASSES} & set(folder_of(name).split("/")))
    splits = _splits(reading)
    label_maps = read_label_maps(reading)
    examples = {folder_of(label): label for label in labels}
    own_maps = {folder: _own_map(label, label_maps) for folder, label in examples.items()}
    if any(own != own_maps[folder_of(labels[0])] for own in own_maps.values()):
        reading.findings.add(CLASS_LISTS, *label_maps)
    _note_unlisted(reading, labels, splits)
    done = set()
    for label in labels:
        path = _find_picture(reading, label)
        if path is None:
            reading.no_picture(label, label)
            continue
        done.add(path)
        try:
            numbers = _numbers(reading.listing.path(label), palette())
        except (ValueError, OSError) as error:
            reading.findings.add(UNREADABLE, f"{label}: {utils.printable(error)}")
            continue
        names, colours = own_maps[folder_of(label)]
        classes = _read_classes(reading, label, np.array(colours, np.uint8).reshape(-1, 3))
        split = splits.get((_root(label), path.stem)) or split_of(reading.listing.relative(path))
        picture = Picture(path, label, numbers.shape, split)
        if (numbers == VOID).any():
            reading.findings.add(_VOID, label)
        for parsed in objects_of(np.where(numbers == VOID, 0, numbers)):
            parsed.name = _class_of(parsed, classes, names)
            if parsed.name == "object":
                reading.findings.add(_NO_CLASS, f"{label}: {parsed.place}")
            picture.objects.append(parsed)
        yield picture
    for (root, stem), split in splits.items():
        path = reading.find_stem(stem, f"{root}/JPEGImages".strip("/"))
        if path is not None and path not in done:
            reading.findings.add(_NO_MASKS, stem)
            yield Picture(path, "", split=split)


def _beside(label: str, folder: str) -> str:
    """The folder of a label in another folder than SegmentationObject: images, JPEGImages."""
    parts = folder_of(label).split("/")
    parts[parts.index(_OBJECTS)] = folder
    return "/".join(parts)


def _find_picture(reading: Reading, label: str) -> Path | None:
    stem = stem_of(label)
    choices = (_beside(label, folder) for folder in ("JPEGImages", "images"))
    paths = (reading.find_stem(stem, choice, anywhere=False) for choice in choices)
    return next(filter(None, paths), None) or reading.find_stem(stem, "", anywhere=True)


def _read_classes(reading: Reading, label: str, colours: np.ndarray) -> np.ndarray | None:
    """The class numbers beside a file of object numbers; None, with a finding, if they are not there."""
    name = f"{_beside(label, _CLASSES)}/{label.rpartition('/')[2]}"
    try:
        return _numbers(reading.listing.path(name), colours)
    except (ValueError, OSError) as error:
        reading.findings.add(UNREADABLE, f"{name}: {utils.printable(error)}")
        return None


def _splits(reading: Reading) -> dict[tuple[str, str], str | None]:
    """{(folder of a data set, stem): split} of ImageSets/Segmentation; lists such as default.txt say no split."""
    splits: dict[tuple[str, str], str | None] = {}
    for name in reading.listing.of(".txt"):
        path = PurePosixPath(name)
        if path.parent.name == "Segmentation":
            for line in reading.text(name).splitlines():
                text = PurePosixPath(line.strip().strip('"')).name
                if text:
                    stem = stem_of(text) if text.lower().endswith(tuple(PICTURE_SUFFIXES)) else text
                    key = folder_of(folder_of(path.parent.as_posix())), stem
                    splits[key] = split_of(f"{path.stem}/x") or splits.get(key)
    return splits


def _root(name: str) -> str:
    """The folder of the data set of a picture or label: that of JPEGImages, SegmentationObject and ImageSets."""
    parts = folder_of(name).split("/")
    places = [i for i, part in enumerate(parts) if part in (_OBJECTS, "JPEGImages")]
    return "/".join(parts[: places[-1]]) if places else folder_of(name)


def _note_unlisted(reading: Reading, labels: list[str], splits: dict) -> None:
    """Leaves pictures out that no list has, and no label: VOC has six times as many pictures with boxes alone."""
    known = splits.keys() | {(_root(label), stem_of(label)) for label in labels}
    pictures = [name for name in reading.listing.pictures if "JPEGImages" in folder_of(name).split("/")]
    unlisted = [name for name in pictures if splits and (_root(name), stem_of(name)) not in known]
    reading.exclude(unlisted)
    reading.findings.add(_UNLISTED, *unlisted)


def read_label_maps(reading: Reading) -> dict[str, tuple[list[str], list[list[int]]]]:
    """{file: (names of the class numbers, their colours)} of each labelmap.txt."""
    label_maps = {}
    for name in reading.listing.of(".txt"):
        if PurePosixPath(name).name == "labelmap.txt":
            rows = [line.split(":") for line in reading.text(name).splitlines() if line.strip() and line[:1] != "#"]
            names = [row[0].strip() for row in rows]
            colours = [row[1].split(",") if len(row) > 1 and row[1].count(",") == 2 else None for row in rows]
            default = palette()
            try:
                values = [default[i % 256] if c is None else np.array(c, np.int64) for i, c in enumerate(colours)]
                label_maps[name] = names, np.array(values).reshape(-1, 3).clip(0, 255).tolist()
            except ValueError:
                label_maps[name] = names, default[: len(names)].tolist()
    return label_maps


def _own_map(label: str, label_maps: dict[str, tuple]) -> tuple[list[str], list[list[int]]]:
    """(names, colours) of a label's class numbers, of the nearest labelmap.txt above it; without any, VOC's own."""
    if not label_maps:
        return list(CLASSES), palette()[: len(CLASSES)].tolist()
    return own_list(label_maps, label, lambda file, is_above, shared: (is_above, shared))


def _numbers(path: Path, colours: np.ndarray) -> np.ndarray:
    """int64 [H, W] of a PNG: its palette's numbers, or the numbers of its colours. VOID for any other colour.

    Raises: ValueError or OSError if it cannot be read.
    """
    with opened(path) as file, Image.open(file, formats=["PNG"]) as image:
        check_size(image.size)
        if image.mode in ("P", "L", "1", "I;16", "I"):
            return np.asarray(image).astype(np.int64)
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    keys = (pixels << [16, 8, 0]).sum(axis=2)
    of_colour = {
        int(key): number
        for number, key in reversed(list(enumerate((colours.astype(np.int64) << [16, 8, 0]).sum(axis=1))))
    }
    present, inverse = np.unique(keys, return_inverse=True)
    return np.array([of_colour.get(int(key), VOID) for key in present])[inverse].reshape(keys.shape)


def _class_of(parsed: Object, classes: np.ndarray | None, names: list[str]) -> str:
    """The name of the commonest class below an object."""
    mask = utils.rle_to_mask(parsed.rle)
    if classes is None or mask.shape != classes.shape:
        return "object"
    values, counts = np.unique(classes[mask & (classes != VOID) & (classes != 0)], return_counts=True)
    number = int(values[counts.argmax()]) if len(values) else 0
    return names[number] if 0 < number < len(names) else "object"


############################################################
#  XML with polygons
############################################################


def _read_xml(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    pictures, boxes = [], 0
    for label in labels:
        root = reading.xml(label)
        if root is None:
            continue
        name = root.findtext("filename") or stem_of(label)
        path = reading.find(name, folder_of(label)) or reading.find_stem(stem_of(label), folder_of(label))
        if path is None:
            reading.no_picture(f"{label}: {utils.printable(name)}", name, label)
            continue
        picture = Picture(path, label, whole_size(root.findtext("size/height"), root.findtext("size/width")))
        picture.split = split_of(reading.listing.relative(path))
        for number, entry in enumerate(root.iter("object"), 1):
            polygons = entry.findall("polygon")  # the parts of one object
            if not polygons:
                boxes += 1
                reading.findings.add(_BOXES, f"{label}: object {number}")
            try:
                if polygons:
                    name, rings = entry.findtext("name") or "", [_xml_ring(polygon) for polygon in polygons]
                    picture.objects.append(Object(name, f"object {number}", rings, box=_xml_box(entry)))
            except FLAWS as error:
                reading.findings.add(UNUSABLE, f"{label}: object {number}: {utils.printable(error)}")
        pictures.append(picture)
    if boxes and not any(picture.objects for picture in pictures):
        raise NoMasks(TITLE, boxes, labels[0])
    yield from pictures


def _xml_box(entry: Element) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) of an object's <bndbox>; None without one."""
    texts = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text) for text in texts)
    except (TypeError, ValueError):
        return None
    return x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1


def _xml_ring(polygon: Element) -> np.ndarray:
    """The ring of <x1><y1><x2><y2> ..., which count from 1."""
    xs = [element.text for element in polygon if element.tag.startswith("x")]
    ys = [element.text for element in polygon if element.tag.startswith("y")]
    if len(xs) != len(ys):
        raise ValueError(f"has {len(xs)} x and {len(ys)} y")
    return closed_ring(point_array(list(zip(xs, ys, strict=True)))) - 1

"""COCO's json in the dialects of the tools that write it, as records. data/formats/coco.py reads and checks the files.

COCO's own layout, Roboflow, CVAT and datumaro, Label Studio, labelme2coco, supervision, LVIS. A file is known by its
lists images, annotations and categories, not by its name.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import utils
from data.file_names import find_files, name_in_entry
from data.formats.coco import CocoDataset
from data.formats.coco_file import CocoFile, read_file
from data.images import image_size
from data.label_table import POLYGONS
from data.listing import ENCODING, folder_of, stem_of
from data.reading import NO_PICTURE, UNREADABLE, Claim, NoMasks, Reading, split_of, split_of_file, without_log
from data.records import ERROR, REMARK, SPLITS, WARNING, Fault, Object, Picture

NAME = "coco"
TITLE = "COCO json"
WHOLE_NUMBERS_ARE_CONTOURS = True

CROWD_SHARE = 0.05  # of the objects; above it, crowds are taken as objects
_FALLBACK = "cp1252"
_NO_INSTANCES = ("person_keypoints_", "captions_", "panoptic_", "stuff_", "image_info_", "labels_")
_CROWDS = Fault(
    WARNING,
    "objects carry iscrowd 1, too many of them for crowds",
    "taken as objects",
    "--crowds ignore",
)
_MASKS = Fault(
    REMARK,
    "objects carry iscrowd 1, as CVAT and supervision write it for masks",
    "taken as objects",
    "--crowds ignore",
)
_FAULTS = {  # in the words that all formats have
    "categories with the name of another": Fault(
        WARNING, "categories have the name of another", "taken as one class", "give them names of their own, if need be"
    ),
    "images without a file": NO_PICTURE,
    "annotations of unknown categories": Fault(
        ERROR, "objects have a class number out of range: no category has their category_id", "left out",
        "add the category to the file, or mend the id",
    ),
    "annotations of images that are not in the file": Fault(
        ERROR, "objects have an image_id out of range: no image has it", "left out", "mend the id",
    ),
}  # fmt: skip
_STRETCHED = Fault(REMARK, "pictures are turned by EXIF, and Label Studio stretched their labels", "labels rescaled")


def is_coco(value: Any) -> bool:
    """Whether a JSON value is a file of instances."""
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def claim(reading: Reading) -> Claim | None:
    """The json files with images, annotations and categories."""
    values = reading.looked_into(is_coco)
    folders = {folder_of(name) for name in values if stem_of(name).startswith("instances_")}
    for name in list(values):  # COCO's own download has keypoints and captions of the same pictures
        if folder_of(name) in folders and stem_of(name).startswith(_NO_INSTANCES):
            del values[name]
    if not values:
        return None
    pictures = sum(len(value["images"]) or 1 for value in values.values() if isinstance(value["images"], list))
    return Claim(list(values), pictures, f"{utils.listed(list(values), 3)}: images, annotations and categories")


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each image of the files."""
    problems = []
    for label in labels:
        try:
            yield from _read_file(reading, label)
        except FileNotFoundError:  # none of the images is there
            names = _names_of(reading, label)
            reading.findings.add(NO_PICTURE, *(f"{label}: {utils.printable(name)}" for name in names))
            text = f"{label}: none of its {len(names):,} pictures is there, such as {names[:1]}"
            if any(name.rstrip("/").endswith(".zarr") for name in names):
                text += "; a folder of Zarr is no picture with labels yet, so write it as a TIFF in tiles first"
            problems.append(ValueError(text))
        except (ValueError, OSError) as error:
            if "boxes without any segmentation" in str(error):
                raise NoMasks(TITLE, 1, label) from None
            reading.findings.add(UNREADABLE, utils.printable(error, 1000))
            problems.append(error)
    if len(problems) == len(labels):
        raise problems[0]


def _read_file(reading: Reading, label: str) -> Iterator[Picture]:
    path = reading.listing.path(label)
    with without_log("data.formats.coco", "data.file_names", "data.label_checks"):
        file = read_file(path, fallback_encoding=_FALLBACK)
        folder = _image_folder(reading, label, file)
        dataset = _Dialect(reading, file, path)
        dataset.load_annotations(path, folder)
        dataset.prepare()
        names = [dataset.file_name(entry) for entry in file.images if isinstance(entry, dict)]
        for name, match in zip(names, find_files(folder, names), strict=True):
            if match.path is not None:
                reading.note_name(name, match.path, match.rules)
    if not _is_utf8(path):
        reading.findings.add(ENCODING, label)
    for problem, places in dataset.skipped.items():
        what, _, done = problem.rpartition(" (")
        severity = ERROR if done.startswith(("skipped", "left out")) else WARNING
        if "with new ids" in done or "an id that is a text" in what or "without a usable height" in what:
            severity = REMARK  # nothing here asks for an image or an annotation by its id
        is_annotation = not problem.startswith(("images", "categories")) and all(type(p) is int for p in places)
        named = _with_pictures(file, places) if is_annotation else places
        fault = _FAULTS.get(what) or Fault(severity, what or problem, done.rstrip(")"))
        reading.findings.add(fault, *(f"{label}: {place}" for place in named))
    is_stretched = re.search(rb'"contributor"\s*:\s*"Label Studio', _ends_of(path)) is not None
    for image_id in dataset.image_ids.tolist():
        picture = _picture(reading, label, dataset, image_id)
        if is_stretched and _unstretch(picture):
            reading.findings.add(_STRETCHED, reading.listing.relative(picture.path))
        yield picture


def _names_of(reading: Reading, label: str) -> list[str]:
    """The file names of a file's images."""
    file = read_file(reading.listing.path(label), fallback_encoding=_FALLBACK)
    names = (name_in_entry(entry) for entry in file.images if isinstance(entry, dict))
    return [name for name in names if isinstance(name, str) and name]


def _with_pictures(file: CocoFile, ids: list) -> list[str]:
    """The ids of annotations, each with the name of its picture where the file says it."""
    names = {entry.get("id"): name_in_entry(entry) for entry in file.images if isinstance(entry, dict)}
    images = dict(zip(file.table.ids.tolist(), file.table.image_ids.tolist(), strict=True))
    pictures = [names.get(images.get(number)) for number in ids]
    return [f"id {number}" + (f" of {name}" if name else "") for number, name in zip(ids, pictures, strict=True)]


def _image_folder(reading: Reading, label: str, file: CocoFile) -> Path:
    """The folder that the file names start from: the one below which most of some names lie."""
    root, folder = reading.listing.root, folder_of(label)
    splits = dict.fromkeys([stem_of(label).rpartition("_")[2], stem_of(label).removeprefix("instances_")])
    of_splits = [choice for split in splits for choice in (split, f"images/{split}", f"{split}/images")]
    choices, above = [folder, f"{folder}/images", *of_splits, "images", ""], folder_of(folder)
    choices += [f"{above}/{choice}" for choice in (*of_splits, "images", "") if above]
    names = [name_in_entry(entry) for entry in file.images[:50] if isinstance(entry, dict)]
    names = [name for name in names if isinstance(name, str)]
    known = set(reading.listing.files)

    def count(choice: str) -> int:
        return sum(f"{choice}/{name}".strip("/") in known for name in names)

    best = max(dict.fromkeys(choice.strip("/") for choice in choices), key=count)
    return root / best if count(best) else root


class _Dialect(CocoDataset):
    """CocoDataset with what each tool does otherwise."""

    FALLBACK_ENCODING = _FALLBACK
    IMAGE_FACTS = ("split",)  # custom.py convert writes it

    def __init__(self, reading: Reading, file: CocoFile, path: Path) -> None:
        super().__init__()
        self._own_name = reading.without_upload
        self.crowd_fault = _MASKS if _marks_masks(_ends_of(path)) else _CROWDS
        self.crowds_are_objects = reading.options.crowds == "objects" or (
            reading.options.crowds == "auto" and _crowds_are_objects(file, path)
        )

    def file_name(self, entry: Mapping[str, Any]) -> str | None:
        """The name of an image, without the digits of Label Studio's uploads if no file has them."""
        return self._own_name(super().file_name(entry))


def _crowds_are_objects(file: CocoFile, path: Path) -> bool:
    """Whether iscrowd marks masks instead of crowds: in files of CVAT, and where more than 5 % have it.

    Never in COCO's own files.
    """
    text = _ends_of(path)
    if b"cocodataset" in text or b"mscoco" in text:
        return False
    marked = (file.table.crowds == 1) & ~file.ignored
    return bool(len(marked) and (_marks_masks(text) or marked.mean() > CROWD_SHARE))


def _marks_masks(text: bytes) -> bool:
    """Whether a file is of a tool that is known to mark masks by iscrowd: CVAT, datumaro, supervision."""
    return re.search(rb'"attributes"\s*:\s*\{[^{}]*"occluded"|"supercategory"\s*:\s*"common-objects"', text) is not None


def _ends_of(path: Path) -> bytes:
    """The first and last 64 KB of a file, where a tool says its name."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(max(len(head), path.stat().st_size - (1 << 16)))
        return head + file.read()


def _is_utf8(path: Path) -> bool:
    """Whether a JSON file is in one of the encodings of JSON."""
    data = path.read_bytes()
    return data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4] or _decodes(data)


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unstretch(picture: Picture) -> bool:
    """Rescales the labels of a picture that EXIF turns from its stored size to its shown one. Returns whether it is."""
    size = image_size(picture.path)
    if size.orientation < 5 or picture.label_size != size.stored:
        return False
    scale = np.array([size.shown[1] / size.stored[1], size.shown[0] / size.stored[0]])
    for parsed in picture.objects:
        if parsed.rle is not None:
            mask = utils.resize_pixels(utils.rle_to_mask(parsed.rle).astype(np.uint8)[:, :, None] * 255, size.shown)
            parsed.rle = utils.mask_to_rle(mask.reshape(size.shown) > 127)
        parsed.rings = [ring * scale for ring in parsed.rings]
        parsed.box = None
    picture.label_size = size.shown
    return True


def _picture(reading: Reading, label: str, dataset: _Dialect, image_id: int) -> Picture:
    info = dataset.image_info[image_id]
    path = Path(info["path"])
    split = dataset.image_facts(image_id).get("split")
    if split not in SPLITS:
        split = split_of_file(label) or split_of(reading.listing.relative(path))
    picture = Picture(path, label, (info["height"], info["width"]), split)
    labelled = dataset.labelled_class_ids(image_id)
    if labelled is not None:
        picture.labelled_classes = tuple(dataset.class_info[class_id]["name"] for class_id in labelled)
    table, rows = dataset._find_annotations(image_id)
    for row in rows:
        class_id = dataset.map_source_class_id(f"own.{int(table.category_ids[row])}")
        name = dataset.class_info[class_id]["name"]  # class_names ends a name at its first comma
        parsed = Object(
            name, f"id {int(table.ids[row])}", is_crowd=bool(table.crowds[row]), box=tuple(table.boxes[row].tolist())
        )
        if table.kinds[row] == POLYGONS:
            parsed.rings = [np.reshape(ring, (-1, 2)) for ring in table.polygons(row)]
        else:
            parsed.rle = table.rle(row, info["height"], info["width"])
        if parsed.is_crowd and dataset.crowds_are_objects:
            parsed.is_crowd = False
            reading.findings.add(dataset.crowd_fault, f"{label}: {parsed.place}")
        picture.objects.append(parsed)
    return picture

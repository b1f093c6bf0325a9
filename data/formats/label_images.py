"""Label images: a picture of numbers beside each picture, 0 for the background and another number for each object.

    Cellpose, StarDist, napari, QuPath    NAME_masks.tif, NAME_masks.png, NAME_labels.tif, NAME_cp_masks.png
                                          or images/NAME.tif and masks/NAME.tif (labels/, label/, mask/)

Numbers may have gaps. 8, 16 and 32 bits, whole or float. There are no classes, unless classes.csv, which our own writer
makes, has those of the numbers (file from its folder, number, class). NAME_seg.npy of Cellpose is a pickle and is never
loaded. Source: cellpose, docs/train.rst and io.py; stardist, README.
"""

import math
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import scipy
import skimage

import utils
from data.images import image_size, read_numbers, reads_by_regions
from data.listing import folder_of, stem_of, suffix_of
from data.reading import DERIVED, UNREADABLE, Claim, Reading, split_of
from data.records import ERROR, REMARK, WARNING, Bitmap, Fault, Object, Picture, bitmap_to_rle, combine
from data.regions import open_source
from data.tiff import TiffImage, is_tiff

NAME = "label_images"
TITLE = "label images"
CLASS_TABLE = "classes.csv"

# The end of a label image's name. Of several for one picture the first counts: hand-made ones before Cellpose's output.
_ENDINGS = re.compile(
    r"[_ .-](masks?|labels?|lbl|label_?image|instances?|instance_?masks?|seg|gt|cp_masks)$", re.IGNORECASE
)
_FOLDERS = (
    "masks", "labels", "label", "mask", "gt", "annotations", "groundtruth", "ground_truth", "instances",
    "instance_masks", "label_images", "labelimages", "labels_instance",
)  # fmt: skip
_PICTURE_FOLDERS = ("images", "image", "imgs", "img", "raw", "pictures")
STRIP = 1 << 22  # pixels of a large label image that are looked at together
_MOST_COLOURS = 1000
_LARGE_NUMBER = 1 << 16
_FOREGROUND_PARTS = 1.5  # connected parts of a mask in the mean; of single objects few are in two parts
_JPEG = Fault(ERROR, "label images are JPEG, which changes their numbers", "left out", "export them as PNG or TIFF")
_STACK = Fault(
    ERROR, "label images are stacks of several planes", "left out",
    "save each plane as a file of its own, and that of its picture too",
)  # fmt: skip
_SPLIT = Fault(REMARK, "objects are of several parts that do not touch", "kept as single objects")
_PICKLE = Fault(REMARK, "_seg.npy files are pickles, which can run programs", "not read: the masks beside them are")
_OTHER_TABLE = Fault(REMARK, "files classes.csv have no columns file, number and class", "not used")
_NO_ROW = Fault(WARNING, "objects have no row in classes.csv", "called object", "add rows of file, number and class")
_SECOND = Fault(REMARK, "pictures have another label image", "left out")
_PARTS = Fault(
    WARNING, "masks have one number for all objects", "each connected part taken as an object, by --split-parts"
)


class ForegroundMasks(ValueError):
    """Every mask has a single number: foreground, in which objects that touch are one."""


def label_stem(name: str) -> str:
    """The stem of the picture that a label image belongs to, without _masks and the like, and without .ome."""
    stem = stem_of(name)
    stem = stem[:-4] if stem.lower().endswith(".ome") else stem
    stem = _ENDINGS.sub("", stem)
    return stem[:-3] if stem.lower().endswith("_cp") else stem


def claim(reading: Reading) -> Claim | None:
    """The pictures of numbers that have a picture each."""
    pairs = find_pairs(Reading(reading.listing.root))
    if not pairs:
        return None
    samples = list(pairs)[:: max(1, len(pairs) // 5)][:5]
    looks = [_are_numbers(reading.listing.path(name)) for name in samples]
    if not any(looks) or False in looks:
        return None
    return Claim(list(pairs), len(pairs), f"{len(pairs)} pictures of numbers, such as {samples[0]}")


def find_pairs(reading: Reading) -> dict[str, Path]:
    """{name of a label image: path of its picture}. Each picture has one."""
    chosen: dict[Path, str] = {}
    for name in sorted(reading.listing.pictures, key=lambda name: ("_cp_" in name.lower(), name)):
        path = _picture_of(reading, name)
        if path is None or path == reading.listing.path(name):
            continue
        if chosen.setdefault(path, name) != name:
            reading.findings.add(_SECOND, name)
    return {name: path for path, name in sorted(chosen.items(), key=lambda item: item[1])}


def _picture_of(reading: Reading, name: str) -> Path | None:
    """The picture of a label image: NAME of NAME_masks beside it, or the same name in images/ or above masks/."""
    folder, stem = folder_of(name), label_stem(name)
    if DERIVED.search(stem_of(name)):
        return None
    parts, folders = folder.split("/"), []
    if _ENDINGS.search(stem_of(name).removesuffix(".ome")):
        folders.append(folder)
    place = next((i for i in reversed(range(len(parts))) if parts[i].lower() in _FOLDERS), None)
    if place is not None:
        above, below = parts[:place], parts[place + 1 :]
        folders += ["/".join([*above, images, *below]) for images in _PICTURE_FOLDERS]
        folders.append("/".join([*above, *below]))
    for choice in folders:
        for ending in ("", ".ome", "_img", "_image", "_raw"):
            path = reading.find_stem(stem + ending, choice, anywhere=False)
            if path is not None:
                return path
    return None


def _are_numbers(path: Path) -> bool | None:
    """Whether a picture looks like one of numbers: one channel, or a few flat colours. None: it cannot be read."""
    try:
        if is_large(path):
            return True  # of one channel, which is all that is asked
        values = one_channel(read_numbers(path))
    except (ValueError, OSError):
        return None
    return values.ndim == 2 or len(np.unique(_packed(values))) <= _MOST_COLOURS or is_stack(path)


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each label image. Raises: ForegroundMasks if no label image tells objects apart."""
    pairs = find_pairs(reading)
    reading.findings.add(_PICKLE, *(name for name in reading.listing.of(".npy") if name.endswith("_seg.npy")))
    parsed = []
    classes = _read_classes(reading)
    for label in labels:
        if suffix_of(label) in (".jpg", ".jpeg"):
            reading.findings.add(_JPEG, label)
            continue
        if is_stack(reading.listing.path(label)):
            reading.findings.add(_STACK, label)
            continue
        try:
            size, objects, count = read_objects(reading.listing.path(label))
        except (ValueError, OSError) as error:
            text = utils.printable(error, 500)
            reading.findings.add(UNREADABLE, text if label in text else f"{label} {text}")
            continue
        path = pairs[label]
        picture = Picture(path, label, size, split_of(reading.listing.relative(path)), objects)
        for found in picture.objects:
            key = label, found.place.removeprefix("number ")
            found.name = classes.get(key, "")
            if classes and key not in classes:
                reading.findings.add(_NO_ROW, f"{label}: {found.place}")
        if count > len(picture.objects):
            reading.findings.add(_SPLIT, f"{label}: {count - len(picture.objects)} parts more than objects")
        parsed.append(picture)
    if not classes and split_foreground(reading, parsed):
        reading.findings.places.pop(_SPLIT, None)
    yield from parsed


def _read_classes(reading: Reading) -> dict[tuple[str, str], str]:
    """{(label image, number): class} of each classes.csv; empty without any. File names in it count from its folder."""
    classes = {}
    for table in reading.listing.of(".csv"):
        if PurePosixPath(table).name != CLASS_TABLE:
            continue
        if not {"file", "number", "class"} <= set(reading.columns(table)):
            reading.findings.add(_OTHER_TABLE, table)
            continue
        for row in reading.table(table):
            name = posixpath.join(folder_of(table), row.get("file") or "")
            number = re.sub(r"[.,]0+$", "", (row.get("number") or "").strip())  # spreadsheets make 1.0 of 1
            classes[name, number] = row.get("class") or ""
            classes.setdefault((name.replace("\\", "/"), number), classes[name, number])
    return classes


def is_stack(path: Path) -> bool:
    """Whether a file is a TIFF of several slices, times or other planes. The three colours of one plane are none."""
    try:
        with path.open("rb") as file:
            if not is_tiff(file):
                return False
            tiff = TiffImage(file)
            return tiff.layout.other > 0 or (tiff.layout.channels > 1 and not tiff.is_colour)
    except Exception:  # tifffile raises errors of many kinds; whoever reads the file names it
        return False


def split_foreground(reading: Reading, pictures: list[Picture]) -> bool:
    """Makes an object of each connected part, if the masks of a set are foreground, and the user says so.

    They are if no picture has more than one object, and these have many parts. Returns: whether they are.
    Raises: ForegroundMasks if they are, and the user does not say what to do.
    """
    if any(len(picture.objects) > 1 for picture in pictures):
        return False
    objects = [parsed for picture in pictures for parsed in picture.objects]
    parts = sum(_count_parts(utils.rle_to_crop(parsed.rle)[2]) for parsed in objects)
    if not objects or parts < _FOREGROUND_PARTS * len(objects):
        return False
    if not reading.options.split_parts:
        numbers = sorted({parsed.place.removeprefix("number ") for picture in pictures for parsed in picture.objects})
        raise ForegroundMasks(
            f"every mask has a single number beside 0 ({utils.listed(numbers, 3)}), as in {pictures[0].label}: "
            f"they are foreground masks, in which objects that touch are one. They have {parts:,} connected parts; "
            "--split-parts takes each as an object"
        )
    for picture in pictures:
        picture.objects = list(_parts_of(picture))
        reading.findings.add(_PARTS, *([picture.label] if picture.objects else []))
    return True


def _count_parts(numbers: np.ndarray) -> int:
    """How many connected regions of one number a label image has; pixels that touch at a corner are connected."""
    return int(skimage.measure.label(numbers, background=0, connectivity=2, return_num=True)[1])


def one_channel(values: np.ndarray) -> np.ndarray:
    """The values without the channels that say the same again, as of a gray picture: [H, W], else [H, W, 1 or 3].

    Transparent pixels are 0. If nothing else is, the transparency is what the picture shows.
    """
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, alpha = values[:, :, :-1], values[:, :, -1]
        if alpha.size and alpha.min() == 0 < alpha.max():
            values = np.where(alpha[:, :, None] > 0, values, 0)
            values = values if values.any() else alpha
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        return values[:, :, 0]
    return values


def _packed(values: np.ndarray) -> np.ndarray:
    """int64 [H, W] of colours [H, W, C], equal for equal colours of the first three channels."""
    packed = np.zeros(values.shape[:2], np.int64)
    for channel in range(min(values.shape[2], 3)):
        packed = (packed << 16) | values[:, :, channel].astype(np.int64)
    return packed


def numbers_of(values: np.ndarray) -> np.ndarray:
    """int64 [H, W] of a label image. Colours [H, W, C] become a number each, black is 0.

    Raises: ValueError for values that are not whole, negative ones, and for more than 1,000 colours.
    """
    values = one_channel(values)
    if values.ndim == 3:
        colours, numbers = np.unique(_packed(values), return_inverse=True)
        if len(colours) > _MOST_COLOURS:
            raise ValueError(f"has {len(colours):,} colours, so it is no label image")
        return (numbers + (colours[0] != 0)).reshape(values.shape[:2])
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise ValueError("has numbers that are not whole, so it is no label image")
    if values.dtype.kind not in "uifb" or (values.size and values.min() < 0):
        raise ValueError("has negative numbers, so it is no label image")
    return values.astype(np.int64)


def is_large(path: Path) -> bool:
    """Whether a label image is read strip by strip: a large one of one channel, in a file that allows it."""
    return math.prod(image_size(path).stored) > STRIP and reads_by_regions(path) and _channels(path) == 1


def _channels(path: Path) -> int:
    with open_source(path) as source:
        return 1 if len(source.shape) == 2 else source.shape[2]


def read_objects(path: Path) -> tuple[tuple[int, int], list[Object], int]:
    """The objects of a label image's file, by number. A large file is never in memory as a whole.

    Returns: (height, width); the objects; how many connected parts they have.
    Raises: ValueError as read_numbers and numbers_of.
    """
    if not is_large(path):
        numbers = numbers_of(read_numbers(path))
        return numbers.shape, *_joined(numbers.shape, [(0, numbers)])
    with open_source(path) as source:
        height, width = source.shape[:2]
        rows = max(1, STRIP // width)
        strips = (
            (y, numbers_of(source.read(y, 0, min(y + rows, height), width).reshape(-1, width)))
            for y in range(0, height, rows)
        )
        return (height, width), *_joined((height, width), strips)


def _joined(size: tuple[int, int], strips: Iterable[tuple[int, np.ndarray]]) -> tuple[list[Object], int]:
    """The objects of strips (y, int64 [h, width]) of a label image from the top, and how many parts they have."""
    pieces: dict[int, list[Bitmap]] = {}
    for y, numbers in strips:
        for value, (top, left, mask) in _crops_of(numbers):
            pieces.setdefault(value, []).append(Bitmap(y + top, left, mask))
    objects, parts = [], 0
    for value, bitmaps in sorted(pieces.items()):
        codes = [bitmap_to_rle(bitmap, *size) for bitmap in bitmaps]
        code = codes[0] if len(codes) == 1 else combine(codes, np.logical_or, *size)
        objects.append(Object("", f"number {value}", rle=code))
        parts += _count_parts(bitmaps[0].mask if len(bitmaps) == 1 else utils.rle_to_crop(code)[2])
    return objects, parts


def objects_of(numbers: np.ndarray) -> Iterator[Object]:
    """The objects of a label image: int64 [H, W]."""
    for value, crop in _crops_of(numbers):
        yield Object("", f"number {value}", rle=bitmap_to_rle(crop, *numbers.shape))


def _crops_of(numbers: np.ndarray) -> Iterator[tuple[int, Bitmap]]:
    """Each number of int64 [H, W] but 0, ascending, with its pixels."""
    if not numbers.size:
        return
    values = None
    if numbers.max() > _LARGE_NUMBER:  # ndimage.find_objects takes memory by the largest number
        values = np.unique(numbers)
        values = values[values != 0]
        numbers = np.searchsorted(values, numbers) + (numbers != 0)
    for number, box in enumerate(scipy.ndimage.find_objects(numbers), 1):
        if box is not None:
            value = number if values is None else int(values[number - 1])
            yield value, Bitmap(box[0].start, box[1].start, numbers[box] == number)


def _parts_of(picture: Picture) -> Iterator[Object]:
    """Each connected part of a picture's objects, as an object."""
    for parent in picture.objects:
        y, x, mask = utils.rle_to_crop(parent.rle)
        labels, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
        for part, (top, left, pixels) in _crops_of(labels.astype(np.int64)):
            rle = bitmap_to_rle(Bitmap(y + top, x + left, pixels), *parent.rle["size"])
            yield Object("", f"{parent.place}, part {part}", rle=rle)

"""Folders of binary masks: a picture of 0 and 255 (or 1, or a colour) for each object.

    stage1_train/ID/images/ID.png, stage1_train/ID/masks/*.png     Data Science Bowl 2018
    images/NAME.jpg, masks/NAME/CLASS_001.png                      by hand
    images/NAME.jpg, masks/NAME_CLASS_001.png                      by hand, flat
    NAME/image.png, NAME/masks/*.png                               by hand, a folder for each picture
    stage1_train_labels.csv: ImageId, EncodedPixels                the same as RLE, where there are no mask files

The class is in the file's name, before its number, or in the name of a folder between masks/NAME and the file.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

import utils
from data.formats.label_images import one_channel, split_foreground
from data.images import read_numbers
from data.listing import folded, folder_of, stem_of
from data.numbered_names import is_hash, settle_classes
from data.reading import DERIVED, FLAWS, UNREADABLE, UNUSABLE, Claim, Reading, split_of
from data.records import ERROR, REMARK, WARNING, Fault, Object, Picture, has_shape_of, nearest_pixels

NAME = "binary_masks"
TITLE = "folders of binary masks"

_FOLDERS = ("masks", "mask", "labels", "instances")
_IMAGES = ("images", "image", "imgs", "img", "")
_OWN_NAMES = ("image", "img", "raw", "picture", "original")  # of a picture in a folder of its own
_EMPTY = Fault(ERROR, "mask files are all black", "left out")
_SIZE = Fault(ERROR, "mask files are of another size than their picture", "left out")
_SCALED = Fault(WARNING, "mask files have another size than their picture, by one factor", "scaled")
_NO_MASKS = Fault(REMARK, "pictures have no mask files", "taken to show no objects")
_GRAY = Fault(WARNING, "mask files have gray between black and white", "the brighter half taken as the object",
              "save masks as PNG")  # fmt: skip
_NEAR = 32  # of 255: JPEG changes black and white by less


def claim(reading: Reading) -> Claim | None:
    """The mask files, if several belong to some picture and those looked into have two values; else csv with RLE."""
    groups = find_groups(reading)
    labels = [name for names in groups.values() for name in names]
    samples = labels[:: max(1, len(labels) // 5)][:5]
    looks = [_has_two_values(reading.listing.path(name)) for name in samples]
    are_folders = any(_has_own_folder(name, path) for path, names in groups.items() for name in names)
    if (are_folders or max(map(len, groups.values()), default=0) > 1) and any(looks) and False not in looks:
        return Claim(labels, len(groups), f"{len(labels)} masks of two values for {len(groups)} pictures")
    tables = reading.listing.of(".csv")
    tables = [name for name in tables if {"ImageId", "EncodedPixels"} <= set(reading.columns(name))]
    if not tables:
        return None
    pictures = {row["ImageId"] for name in tables for row in _rows(reading, name)}
    return Claim(tables, len(pictures), f"{tables[0]}: ImageId and EncodedPixels")


def _has_own_folder(name: str, picture: Path) -> bool:
    """Whether a mask lies in a folder of its picture alone: masks/NAME/*.png, NAME/masks/*.png beside image.png."""
    return picture.stem in PurePosixPath(name).parts[:-1] or picture.stem.lower() in _OWN_NAMES


def _has_two_values(path: Path) -> bool | None:
    """Whether a picture has two values, or nearly only black and white as a JPEG. None: it cannot be read."""
    try:
        values = one_channel(read_numbers(path))
    except (ValueError, OSError):
        return None
    if values.ndim == 3:
        return len(np.unique(values.reshape(-1, values.shape[2]), axis=0)) <= 2
    return len(np.unique(values)) <= 2 or _is_nearly_binary(values)


def _is_nearly_binary(values: np.ndarray) -> bool:
    """Whether there is gray beside black and white, but most pixels that are not black are white: uint8 [H, W]."""
    if values.dtype != np.uint8 or np.count_nonzero(np.bincount(values.ravel(), minlength=256)) <= 2:
        return False
    white = (values >= 255 - _NEAR).sum()
    return bool(white and white >= 0.8 * (values > _NEAR).sum())


def find_groups(reading: Reading) -> dict[Path, list[str]]:
    """{picture: names of its mask files}."""
    groups: dict[Path, list[str]] = defaultdict(list)
    for name in reading.listing.pictures:
        place = _place(name)
        path = None if place is None else _picture_of(reading, PurePosixPath(name).parts, place)
        if path is not None:
            groups[path].append(name)
    return groups


def _place(name: str) -> int | None:
    """The place of the folder of masks in the path of a file; None if it lies in none."""
    parts = PurePosixPath(name).parts
    return next((i for i in reversed(range(len(parts) - 1)) if parts[i].lower() in _FOLDERS), None)


def _picture_of(reading: Reading, parts: tuple[str, ...], place: int) -> Path | None:
    """The picture of a mask file. place: of the folder of masks in its path."""
    above = parts[:place]
    images = ["/".join([*above, folder]).strip("/") for folder in _IMAGES]
    if place and parts[place - 1]:  # ID/masks/*.png beside ID/images/ID.png
        path = reading.find_stem(parts[place - 1], "/".join([*above, "images"]), anywhere=False)
        own = (reading.find_stem(stem, "/".join(above), anywhere=False) for stem in (parts[place - 1], *_OWN_NAMES))
        path = path or next(filter(None, own), None)  # NAME/masks/*.png beside NAME/image.png
        if path is not None:
            return path
    if len(parts) - place > 2:  # masks/NAME/*.png, or masks/SPLIT/NAME/*.png
        for end in range(place + 1, len(parts) - 1):
            middle = parts[place + 1 : end]
            for folder in images:
                path = reading.find_stem(parts[end], "/".join([folder, *middle]).strip("/"), anywhere=False)
                if path is not None:
                    return path
    stem = stem_of(parts[-1])  # masks/NAME_CLASS_001.png: the longest beginning that is a picture's name
    middle = parts[place + 1 : -1]
    ends = [*(match.start() for match in re.finditer(r"[_\-. ]", stem)), len(stem)]
    folders = ["/".join([folder, *inner]).strip("/") for inner in dict.fromkeys((middle, ())) for folder in images]
    for end in reversed(ends):
        for folder in folders:
            path = reading.find_stem(stem[:end], folder, anywhere=False)
            if path is not None:
                return path
    return None


def read(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each group of masks, and for pictures beside them that have none."""
    if labels[0].lower().endswith(".csv"):
        yield from _read_rle(reading, labels)
        return
    groups = find_groups(reading)
    _note_lost(reading, {name for names in groups.values() for name in names})
    parsed = list(_pictures(reading, groups))
    split_foreground(reading, parsed)
    settle_classes([picture.objects for picture in parsed], reading.findings)
    yield from parsed


def _note_lost(reading: Reading, used: set[str]) -> None:
    """Adds a finding for masks whose picture is not there: for a folder of one picture's masks, or for a file."""
    folders = {folder_of(name) for name in used}
    names = (name for name in reading.listing.pictures if name not in used and not DERIVED.search(stem_of(name)))
    lost = [name for name in names if _place(name) is not None]
    for place in dict.fromkeys(name if folder_of(name) in folders else folder_of(name) for name in lost):
        reading.no_picture(place)


def _pictures(reading: Reading, groups: dict[Path, list[str]]) -> Iterator[Picture]:
    for path, names in groups.items():
        picture = Picture(path, folder_of(names[0]), split=split_of(reading.listing.relative(path)))
        size = reading.size_of(picture)
        if size is None:
            continue
        for name in names:
            parsed = _object(reading, name, path, size)
            if parsed is not None:
                picture.objects.append(parsed)
        yield picture
    folders = {_set_of(path) for path in groups}
    masks = {name for names in groups.values() for name in names}
    for name in reading.listing.pictures:
        path = reading.listing.path(name)
        if _set_of(path) in folders and path not in groups and name not in masks:
            reading.findings.add(_NO_MASKS, name)
            yield Picture(path, "", split=split_of(name))


def _set_of(path: Path) -> Path:
    """The folder of a picture; of SET/ID/images/ID.png and of SET/ID/image.png that of all its neighbours."""
    if path.stem.lower() in _OWN_NAMES or path.parent.name == path.stem:
        return path.parent.parent
    is_own = path.parent.name.lower() in _IMAGES and path.parent.parent.name == path.stem
    return path.parent.parent.parent if is_own else path.parent


def _object(reading: Reading, name: str, picture: Path, size: tuple[int, int]) -> Object | None:
    """The object of a mask file; None, with a finding, if it cannot be used."""
    try:
        values = one_channel(read_numbers(reading.listing.path(name)))
    except (ValueError, OSError) as error:
        reading.findings.add(UNREADABLE, str(error))
        return None
    mask = values.any(axis=2) if values.ndim == 3 else values != 0
    if values.ndim == 2 and _is_nearly_binary(values):
        reading.findings.add(_GRAY, name)
        mask = values > 127
    sizes = f"{name}: {mask.shape[1]} x {mask.shape[0]} instead of {size[1]} x {size[0]}"
    if not mask.any():
        reading.findings.add(_EMPTY, name)
    elif not has_shape_of(mask.shape, size):
        reading.findings.add(_SIZE, sizes)
    else:
        if mask.shape != size:
            reading.findings.add(_SCALED, sizes)
            mask = nearest_pixels(mask, size)
        return Object(name_of(name, picture), PurePosixPath(name).name, rle=utils.mask_to_rle(mask))
    return None


def name_of(name: str, picture: Path) -> str:
    """The name of a mask with its number, for settle_classes: of the file without the picture's name, else the folder.

    Empty for words such as mask.
    """
    parts = PurePosixPath(name).parts
    stem = stem_of(name)
    if folded(stem).startswith(folded(picture.stem)):
        stem = stem[len(picture.stem) :]
    text = _word(stem)
    folder = parts[-2] if len(parts) > 1 else ""
    if not text and folder.lower() not in _FOLDERS and folder != picture.stem and split_of(f"{folder}/x") is None:
        number = re.search(r"\d+$", stem)  # CD4/001.png is CD4_001
        text = f"{_word(folder)}_{number[0]}" if number and _word(folder) else _word(folder)
    return text


def _word(text: str) -> str:
    """A name without what precedes its class, and without the word mask; empty for a name that says no class."""
    if is_hash(text):
        return ""
    text = re.sub(r"^[\d\s._-]+", "", text)
    text = re.sub(r"[\s._-]+masks?[\s._-]*(\d*)$", r"_\1", text, flags=re.IGNORECASE)
    no_class = r"^(masks?|objects?|obj|instances?)([\d\s._-]+|$)|^label[\d\s._-]*$"
    return re.sub(no_class, "", text, flags=re.IGNORECASE)


############################################################
#  Tables of RLE
############################################################


def _rows(reading: Reading, name: str) -> list[dict[str, str]]:
    return [row for row in reading.table(name) if row.get("ImageId")]


def _read_rle(reading: Reading, labels: list[str]) -> Iterator[Picture]:
    """A picture for each ImageId of tables such as stage1_train_labels.csv. A row is an object."""
    for label in labels:
        pictures: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for number, row in enumerate(_rows(reading, label), 2):
            pictures[row["ImageId"]].append((number, row.get("EncodedPixels") or ""))
        for image, rows in pictures.items():
            path = reading.find_stem(image, folder_of(label)) or reading.find(image, folder_of(label))
            if path is None:
                reading.no_picture(f"{label}: {utils.printable(image)}", image)
                continue
            picture = Picture(path, label, split=split_of(reading.listing.relative(path)))
            size = reading.size_of(picture)
            for number, code in rows if size else ():
                try:
                    if code.strip() or len(rows) > 1:  # a single empty row is a picture without objects
                        rle = utils.mask_to_rle(rle_of_columns(code, *size))
                        picture.objects.append(Object("", f"line {number}", rle=rle))
                except FLAWS as error:
                    reading.findings.add(UNUSABLE, f"{label}: line {number}: {utils.printable(error)}")
            yield picture


def rle_of_columns(code: str, height: int, width: int) -> np.ndarray:
    """bool [height, width] of "start length start length ...", along the columns, the first pixel is 1.

    Raises: ValueError for runs beyond the picture, and for other text.
    """
    numbers = np.array(code.split(), np.int64)
    if len(numbers) % 2:
        raise ValueError("has an odd count of numbers instead of starts and lengths")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    if (starts < 0).any() or (lengths < 0).any() or (starts > height * width - lengths).any():
        raise ValueError(f"has runs beyond the {width} x {height} pixels of its picture")
    mask = np.zeros(height * width, bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        mask[start : start + length] = True
    return mask.reshape(width, height).T

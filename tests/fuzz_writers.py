"""Writes random records in every format of data/writers/, and reads them back: the same masks, classes and splits.

Masks are noise and blobs, and do not overlap. Names have what file systems and formats are bad at.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz
from PIL import Image
from scipy import ndimage

import utils
from data.reading import without_log
from data.recognise import Records, open_records
from data.records import Findings, Object, Picture
from data.writers.all import WRITERS

CHARACTERS = [*"ab 12-_.,;'\"()&<>%#@+=[]{}~$!^", "é", "e\u0301", "日", "ß", "😀", "İ"]
CLASS_CHARACTERS = [*CHARACTERS, "/", "\\", ":", "|"]
SUFFIXES = (".png", ".tif", ".jpg", ".bmp")


def word(rng: np.random.Generator, characters: list[str]) -> str:
    return "".join(rng.choice(characters, rng.integers(1, 8))).strip(" .") or "x"


def random_records(rng: np.random.Generator, root: Path) -> Records:
    """One to four pictures in folders, with objects of up to three classes."""
    classes = list({word(rng, CLASS_CHARACTERS) for _ in range(rng.integers(1, 4))})
    splits = [None] if rng.random() < 0.5 else ["train", "val", "test"]
    pictures, taken = [], set()
    for number in range(rng.integers(1, 5)):
        folder = "/".join(word(rng, CHARACTERS).lstrip(".") or "f" for _ in range(rng.integers(0, 3)))
        name = f"{folder}/{word(rng, CHARACTERS).lstrip('.') or 'n'}{rng.choice(SUFFIXES)}".lstrip("/")
        if utils.printable(name).casefold() in taken:
            continue
        taken.add(utils.printable(name).casefold())
        height, width = (int(side) for side in rng.integers(6, 40, 2))
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(path, quality=95)
        objects = random_objects(rng, classes, height, width, at_least=number == 0)
        split = str(rng.choice(splits)) if splits[0] else None
        pictures.append(Picture(path, "x", split=split, objects=objects, height=height, width=width))
    return Records(root, "made", "", pictures, Findings())


def random_objects(rng: np.random.Generator, classes: list[str], height: int, width: int, at_least: bool) -> list:
    """Objects that share no pixel. at_least: one or more."""
    labels = np.zeros((height, width), int)
    noise = rng.normal(size=(height, width))
    numbers, count = ndimage.label(ndimage.gaussian_filter(noise, rng.uniform(0, 2)) > 0)
    labels[numbers > 0] = rng.integers(0 if not at_least else 1, 6, count + 1)[numbers[numbers > 0]]
    masks = [labels == number for number in range(1, 6) if (labels == number).any()]
    if not masks and at_least:
        masks = [np.ones((height, width), bool)]
    return [Object(str(rng.choice(classes)), "x", rle=utils.mask_to_rle(mask)) for mask in masks]


def content(records: Records, with_classes: bool) -> list:
    """What must come back: for each picture its bytes, split, and objects, in any order."""
    return sorted(
        (
            picture.path.read_bytes(), picture.split or "",
            sorted(
                (parsed.name if with_classes else "", parsed.mask(picture.height, picture.width)["counts"])
                for parsed in picture.objects
            ),
        )
        for picture in records.pictures
    )  # fmt: skip


def write_and_read(rng: np.random.Generator, name: str) -> None:
    """Fails for every error: these records are good."""
    with tempfile.TemporaryDirectory() as folder, without_log("data.formats.coco", "data.images"):
        records = random_records(rng, Path(folder) / "in")
        notes: list[str] = []
        try:
            WRITERS[name](records, Path(folder) / "out", True, notes)
            read = open_records(Path(folder) / "out", name)
        except (ValueError, OSError) as error:
            raise AssertionError(f"{name}: {error}") from error
        with_classes = not any("class name" in note for note in notes)
        assert content(read, with_classes) == content(records, with_classes), (name, notes)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read_back(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(lambda rng: write_and_read(rng, name), 5, name)

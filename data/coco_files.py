"""The data set COCO itself: its categories, its archives, and the places of its files.

data/formats/coco.py reads files in COCO's format, of COCO or of any other data set.
"""

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import utils
from data.file_names import parts_of
from weights.download import download, safe_extract

############################################################
#  Places of the files
############################################################

# COCO's files lie in one folder:
#
#     DIR/annotations/instances_train2017.json, instances_val2017.json, ...
#     DIR/train2017/000000000009.jpg ..., DIR/val2017/...
#
# minival of 2014 is exactly 2017's val; valminusminival is the rest of 2014's val (Detectron, INSTALL.md).

SUBSETS = ("train", "val", "minival", "valminusminival")
YEARS = (2014, 2017)
BASE_URL = "http://images.cocodataset.org/"  # not https: its certificate has another name. Hashes check the files.


class Archive(NamedTuple):
    """A file on COCO's server."""

    path: str  # below BASE_URL
    size: int  # bytes
    unpacked: int  # bytes of the files inside, about
    sha256: str
    images: int = 0  # JPEGs inside


ARCHIVES = {
    "annotations2014": Archive(
        "annotations/annotations_trainval2014.zip", 252_872_794, 1_000_000_000,
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "annotations2017": Archive(
        "annotations/annotations_trainval2017.zip", 252_907_541, 1_000_000_000,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "train2014": Archive(
        "zips/train2014.zip", 13_510_573_713, 13_510_573_713,
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775", 82_783,
    ),
    "val2014": Archive(
        "zips/val2014.zip", 6_645_013_297, 6_645_013_297,
        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0", 40_504,
    ),
    "train2017": Archive(
        "zips/train2017.zip", 19_336_861_798, 19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 118_287,
    ),
    "val2017": Archive(
        "zips/val2017.zip", 815_585_330, 815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 5_000,
    ),
}  # fmt: skip


def choose_year(root: Path, subset: str, year: int | str | None) -> int:
    """The year to load. None takes the first of 2017 and 2014 whose annotations of the subset exist, or else 2017."""
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}")
    years = YEARS[:1] if "minival" in subset else YEARS
    if year is None:
        complete = [y for y in reversed(years) if all(path.is_file() for path in annotation_files(root, subset, y))]
        return complete[0] if complete else years[-1]
    if str(year) not in map(str, years):
        hint = "minival is 2017's val: use subset='val'" if str(year) == "2017" else "COCO has no others"
        raise ValueError(f"year of the subset {subset!r} must be {' or '.join(map(str, years))}, not {year!r}; {hint}")
    return int(year)


def annotation_files(root: Path, subset: str, year: int) -> list[Path]:
    """The annotation files of a subset, which need not exist.

    A split of minival without a file of its own is made from those of val2014 and val2017, in this order.
    """
    folder = root / "annotations"
    path = folder / f"instances_{subset}{year}.json"
    if "minival" in subset and not path.is_file():
        return [folder / "instances_val2014.json", folder / "instances_val2017.json"]
    return [path]


def image_folder(root: Path, subset: str, year: int) -> Path:
    """The folder of a subset's images, which need not exist."""
    return root / f"{'val' if 'minival' in subset else subset}{year}"


############################################################
#  Download
############################################################


def download_coco(
    dataset_dir: str | os.PathLike,
    subset: str,
    year: int | str | None = None,
    keep_zip: bool = False,
    progress: bool = True,
) -> Path:
    """Downloads and unpacks the missing files of a subset: annotations and images.

    After an interruption, call it again: a download continues where it stopped, and an archive is unpacked again. An
    archive that already lies in the folder is used. Proxies are taken from the environment.

    dataset_dir: the folder, which is made if needed.
    subset: train or val; of 2014 also minival or valminusminival, which need the annotations of 2017 too.
    year: 2014 or 2017; None as for load_coco.
    keep_zip: keep archives after they were unpacked. progress: print names, and show bars.

    Returns: dataset_dir.
    Raises: ValueError for another subset or year, or if an archive is damaged; OSError if the disk has too little room;
        ConnectionError if the server cannot be reached.
    """
    root = Path(dataset_dir)
    year = choose_year(root, subset, year)
    missing = _missing_archives(root, subset, year)
    _check_room(root, missing, keep_zip)
    for name in missing:
        archive = ARCHIVES[name]
        path = root / Path(archive.path).name
        if progress:
            print(f"{BASE_URL}{archive.path} ({archive.size / 1e9:.1f} GB) -> {root}")
        download(BASE_URL + archive.path, path, archive.sha256, progress)
        safe_extract(path, root, progress)
        if not keep_zip:
            path.unlink()
            if progress:
                print(f"{path} is unpacked and deleted")
    if incomplete := _missing_archives(root, subset, year):
        names = utils.listed(incomplete)
        raise ValueError(f"{names} of COCO lacks files that it should have; was {BASE_URL} replaced?")
    return root


def _missing_archives(root: Path, subset: str, year: int) -> list[str]:
    """The names of the archives whose files are missing, annotations first."""
    files = [path for path in annotation_files(root, subset, year) if not path.is_file()]
    missing = [f"annotations{path.stem[-4:]}" for path in files]
    images = image_folder(root, subset, year)
    count = sum(name.endswith(".jpg") for name in os.listdir(images)) if images.is_dir() else 0
    if count < ARCHIVES[images.name].images:
        missing.append(images.name)
    return missing


def _check_room(root: Path, names: Sequence[str], keep_zip: bool) -> None:
    """Raises OSError unless the disk has room for each archive and its files beside the files of those before it."""
    used = peak = 0
    for name in names:
        archive = ARCHIVES[name]
        path = root / Path(archive.path).name
        parts = (path, path.with_name(path.name + ".part"))
        downloaded = sum(part.stat().st_size for part in parts if part.is_file())
        peak = max(peak, used + archive.size - downloaded + archive.unpacked)
        used += archive.unpacked + (archive.size if keep_zip else 0) - downloaded
    existing = next(folder for folder in (root, *root.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if peak > free:
        raise OSError(
            f"COCO's {' and '.join(names)} need up to {peak / 1e9:.1f} GB in {root}, archives and unpacked files "
            f"together, but its disk has {free / 1e9:.1f} GB left; make room, or give another folder"
        )


############################################################
#  Files in another place
############################################################


def missing_annotations(root: Path, path: Path, subset: str) -> FileNotFoundError:
    """The error for an annotation file of COCO that is missing, with the likely causes."""
    if not root.is_dir():
        problem = "it is a file; give the folder that has annotations/" if root.exists() else "there is no such folder"
        return FileNotFoundError(f"dataset_dir {root}: {problem}.\n{_how_to_get(root)}")
    lines = [f"There is no {path}."]
    roots = [root.resolve().parent, *_subfolders(root)]
    roots = [place for place in roots if place != path.parent and (place / "annotations" / path.name).is_file()]
    lines += [f"{folder} has annotations/{path.name}: give this folder as dataset_dir." for folder in roots]
    for file in (root / path.name, path.parent / "annotations" / path.name):
        if file.is_file() and not roots:
            place = "high" if file.parent == root else "deep"
            link = f"ln -s {shlex.quote(str(file.resolve()))} {shlex.quote(str(path))}"
            link = link if path.parent.is_dir() else f"mkdir {shlex.quote(str(path.parent))} && {link}"
            lines.append(f"{file} is one folder too {place}. A link makes it known: {link}")
    lines += _zips_to_unpack(root, [archive for archive in ARCHIVES.values() if not archive.images])
    if "minival" in subset:
        name = f"instances_{subset}2014.json"
        lines.append(f"{subset} needs {name}, or else both of instances_val2014.json and instances_val2017.json.")
    names = sorted(file.name for file in path.parent.glob("*.json"))
    lines += [f"{path.parent} has {utils.listed(names)}."] if names else []
    loadable = [(subset, year) for subset in SUBSETS for year in YEARS if f"instances_{subset}{year}.json" in names]
    if loadable:
        lines.append(" or ".join(f"subset={subset!r}, year={year}" for subset, year in loadable) + " can be loaded.")
    if _is_of_others(root, names):
        images = path.stem.partition("_")[2]
        lines.append(f"Your own data need COCO's layout: {path.relative_to(root)}, and its images in {images}/.")
        return FileNotFoundError("\n".join(lines))
    return FileNotFoundError("\n".join([*lines, _how_to_get(root)]))


def _is_of_others(root: Path, names: Sequence[str]) -> bool:
    """Whether a folder holds another data set than COCO. names: of its annotation files."""
    images = (file.name for folder in _subfolders(root) for file in folder.iterdir())
    first = next((name for name in images if Path(name).suffix.lower() in utils.IMAGE_SUFFIXES), None)
    return bool(names) and first is not None and not is_coco_name(first)


def missing_images(folder: Path, name: str, is_coco: bool) -> FileNotFoundError:
    """The error for a folder that has none of the images of a file of annotations, with the likely causes.

    name: the file name of one of the images. is_coco: the folders are those of COCO's layout.
    """
    root, tail = folder.parent, Path(*parts_of(name)[0])
    places = [root, root / "images", *_subfolders(folder), *_subfolders(root), *_subfolders(root / "images")]
    places = [place for place in dict.fromkeys(places) if place != folder]
    lines = [
        f"{folder} has none of the images, such as {utils.printable(name)!r}.{_contents(folder)}"
        if folder.is_dir()
        else f"{folder} is a file, and should be the folder of the images, such as {utils.printable(name)!r}."
        if folder.exists()
        else f"There is no {folder}; it should have the images, such as {utils.printable(name)!r}."
    ]
    found = [place for place in places if _has(place, tail)]
    # Images of train and val may have the same names. A folder that is called for one of them is not the other's.
    alike = [place for place in found if place.name[:3].lower() == folder.name[:3].lower()]
    lines += [_use_folder(place, folder, is_coco) for place in alike or found]
    for file in (place / f"COCO_{part}2014_{tail.name}" for place in (folder, *places) for part in ("train", "val")):
        if file.is_file():
            lines.append(f"{file} has a name of 2014; is year=2014 meant?")
    if folder.name in ARCHIVES:
        lines += _zips_to_unpack(root, [ARCHIVES[folder.name]])
    subsets = [place.name for place in places if place.name in ARCHIVES and place.parent == root and place.is_dir()]
    lines += [f"{root} has images of {utils.listed(subsets)}."] if subsets else []
    if is_coco and is_coco_name(name):
        lines.append(_how_to_get(root))
    elif is_coco:
        lines.append(f"The file names of the annotations must start from {folder}.")
    else:
        lines.append("image_dir must be the folder that the file names start from.")
    return FileNotFoundError("\n".join(lines))


def is_coco_name(name: str) -> bool:
    """Whether an image is called as COCO's are. Other data sets, too, are stored in COCO's folders."""
    return re.fullmatch(r"(.*[/\\])?(COCO_(train|val|test)2014_)?\d{12}\.jpg", name) is not None


def _has(place: Path, tail: Path) -> bool:
    """Whether a folder has a file, with or without the folders before its name."""
    return tail.name != "" and any((place / name).is_file() for name in (tail, tail.name))


def _contents(folder: Path) -> str:
    """A sentence about what a folder has."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, 1000))
    if not names:
        return " It is empty."
    return f" It has {utils.listed([repr(utils.printable(name)) for name in names], 3)}."


def _use_folder(place: Path, folder: Path, is_coco: bool) -> str:
    """Says how to use the images of another folder, which no file leaves."""
    if not is_coco:
        return f"{place} has it: give this folder as image_dir."
    link = f"ln -s {shlex.quote(str(place.resolve()))} {shlex.quote(str(folder))}"
    if not folder.exists():
        return f"{place} has it. A link makes it known: {link}"
    return f"{place} has it. CocoDataset.load_annotations takes this folder as image_dir."


def _how_to_get(root: Path) -> str:
    archives = [ARCHIVES[name] for name in ("annotations2017", "val2017", "train2017")]
    urls = [f"{BASE_URL}{archive.path} ({archive.size / 1e9:.1f} GB)" for archive in archives]
    return (
        f"To get COCO: python coco.py train --dataset {root} --download\n"
        f"Or download these files and unzip them into {root}: {', '.join(urls)}; for 2014 likewise.\n"
        "Pictures and labels of your own, in any format: python custom.py"
    )


def _zips_to_unpack(root: Path, archives: Iterable[Archive]) -> list[str]:
    """A line for each archive that lies in the folder or in a usual place below it."""
    places = [root, root / "annotations", root / "zips", root / "images"]
    paths = [place / Path(archive.path).name for place in places for archive in archives]
    return [f"{path} is not unpacked: unzip -n {path} -d {root}." for path in paths if path.is_file()]


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; the first hundred of them."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())[:100]


############################################################
#  COCO's categories
############################################################

# The categories of published checkpoints, by COCO's ids, which have gaps.
COCO_CATEGORIES: dict[int, str] = {}
_COCO = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
88 teddy bear, 89 hair drier, 90 toothbrush
"""
for _entry in _COCO.split(","):
    _id, _name = _entry.split(maxsplit=1)
    COCO_CATEGORIES[int(_id)] = " ".join(_name.split())

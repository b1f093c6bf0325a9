"""COCO itself: its categories, its archives, where its files lie, and what to say when they lie elsewhere."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import utils
from weights.download import download, safe_extract

############################################################
#  Files of COCO
############################################################

# A data set of COCO lies in one folder:
#
#     DIR/annotations/instances_train2017.json, instances_val2017.json, ...
#     DIR/train2017/000000000009.jpg ..., DIR/val2017/...
#
# minival of 2014 is exactly 2017's val, and valminusminival the rest of 2014's val (Detectron, INSTALL.md).

SUBSETS = ("train", "val", "minival", "valminusminival")
YEARS = (2014, 2017)
BASE_URL = "http://images.cocodataset.org/"  # its certificate is for another name; the hashes below are the check


class Archive(NamedTuple):
    """A file on COCO's server."""

    path: str  # below BASE_URL
    size: int  # bytes
    unpacked: int  # bytes, about
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
    """The year meant. None: 2017 if its annotations of this subset are there, else 2014 if those are, else 2017."""
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}")
    years = YEARS[:1] if "minival" in subset else YEARS
    if year is None:
        there = [one for one in reversed(years) if all(path.is_file() for path in annotation_files(root, subset, one))]
        return (there or years[-1:])[0]
    if str(year) not in map(str, years):
        hint = "minival is 2017's val: use subset='val'" if str(year) == "2017" else "COCO has no others"
        raise ValueError(f"year of the subset {subset!r} must be {' or '.join(map(str, years))}, not {year!r}; {hint}")
    return int(year)


def annotation_files(root: Path, subset: str, year: int) -> list[Path]:
    """What is read for a subset: its file; or, where minival has none, those that the split is made of."""
    folder = root / "annotations"
    own = folder / f"instances_{subset}{year}.json"
    if "minival" in subset and not own.is_file():
        return [folder / "instances_val2014.json", folder / "instances_val2017.json"]
    return [own]


def image_folder(root: Path, subset: str, year: int) -> Path:
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
    """Downloads and unpacks what is missing of a subset: its annotations and its images.

    Nothing is fetched that is there. A call that was interrupted is completed by the next: a download goes on where it
    stopped, an archive is unpacked again. An archive that lies in the folder already is used. Proxies are taken from
    the environment.

    dataset_dir: the folder; it is made. subset: train or val, or of 2014 minival or valminusminival, which need the
        annotations of 2017 too. year: 2014 or 2017; None as load_coco.
    keep_zip: keep each archive after it was unpacked; otherwise it is deleted. progress: print, and show bars.

    Returns: dataset_dir.
    Raises: ValueError for another subset or year, or if an archive is not what it should be; OSError if the disk has
        not enough room; ConnectionError if the server cannot be reached.
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
    if still := _missing_archives(root, subset, year):
        raise ValueError(f"{utils.listed(still)} of COCO did not hold what it should; was {BASE_URL} replaced?")
    return root


def _missing_archives(root: Path, subset: str, year: int) -> list[str]:
    """The names of the archives that are still to be unpacked, annotations first."""
    files = [path for path in annotation_files(root, subset, year) if not path.is_file()]
    missing = [f"annotations{path.stem[-4:]}" for path in files]
    images = image_folder(root, subset, year)
    if _count_images(images) < ARCHIVES[images.name].images:
        missing.append(images.name)
    return missing


def _count_images(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def _check_room(root: Path, names: Sequence[str], keep_zip: bool) -> None:
    """Raises OSError unless the disk has room for every archive beside what was unpacked before it."""
    used = most = 0
    for name in names:
        archive = ARCHIVES[name]
        path = root / Path(archive.path).name
        have = sum(part.stat().st_size for part in (path, path.with_name(path.name + ".part")) if part.is_file())
        most = max(most, used + archive.size - have + archive.unpacked)
        used += archive.unpacked + (archive.size if keep_zip else 0) - have
    existing = next(folder for folder in (root, *root.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if most > free:
        raise OSError(
            f"COCO's {' and '.join(names)} need up to {most / 1e9:.1f} GB in {root}, archive and unpacked files "
            f"together, but its disk has {free / 1e9:.1f} GB left; make room, or give another folder"
        )


############################################################
#  Wrong layouts, explained
############################################################


def _how_to_get(root: Path) -> str:
    archives = [ARCHIVES[name] for name in ("annotations2017", "val2017", "train2017")]
    urls = [f"{BASE_URL}{archive.path} ({archive.size / 1e9:.1f} GB)" for archive in archives]
    return (
        f"To get COCO: python coco.py train --dataset {root} --download\n"
        f"Or by hand, unzipped into {root}: {', '.join(urls)}; of 2014 likewise."
    )


def missing_annotations(root: Path, path: Path, subset: str) -> FileNotFoundError:
    """Why an annotation file of COCO is not where it should be, and what to do."""
    if not root.exists():
        return FileNotFoundError(f"dataset_dir {root}: there is no such folder.\n{_how_to_get(root)}")
    if not root.is_dir():
        return FileNotFoundError(f"dataset_dir {root} is a file; give the folder that has annotations/ in it.")
    hints = [*_misplaced(root, path), *_zip_hints(root, [one for one in ARCHIVES.values() if not one.images])]
    if "minival" in subset:
        own = f"instances_{subset}2014.json"
        hints.append(f"{subset} needs {own}, or else both of instances_val2014.json and instances_val2017.json.")
    there = sorted(file.name for file in path.parent.glob("*.json"))
    hints += [f"{path.parent} has {utils.listed(there)}.", *_other_subsets(there)] if there else []
    return FileNotFoundError("\n".join([f"There is no {path}.", *hints, _how_to_get(root)]))


def _misplaced(root: Path, path: Path) -> list[str]:
    """Where an annotation file is instead."""
    name, real, hints = path.name, root.resolve(), []
    if (root / name).is_file() and real.name == "annotations":
        hints.append(f"dataset_dir is the folder of annotations: give {real.parent}.")
    elif (root / name).is_file():
        hints.append(f"{root / name} is one folder too high: move it into {path.parent}.")
    if (path.parent / "annotations" / name).is_file():
        hints.append(f"{path.parent / 'annotations'} is one folder too deep: move its files up into {path.parent}.")
    if real.name in ARCHIVES and (real.parent / "annotations").is_dir():
        hints.append(f"dataset_dir is the folder of images: give {real.parent}.")
    inner = [folder for folder in _folders(root) if (folder / "annotations" / name).is_file()]
    return hints + [f"{folder} has annotations/{name}: give that folder." for folder in inner]


def _other_subsets(names: Iterable[str]) -> list[str]:
    """What the annotation files that are there could be loaded as."""
    keys = {f"instances_{subset}{year}.json": (subset, year) for subset in SUBSETS for year in YEARS}
    known = [f"subset={keys[name][0]!r}, year={keys[name][1]}" for name in names if name in keys]
    return [f"So {' or '.join(known)} can be loaded."] if known else []


def _zip_hints(root: Path, archives: Iterable[Archive]) -> list[str]:
    """How to unpack archives that lie in the folder, or in a usual place below it."""
    names = [Path(archive.path).name for archive in archives]
    places = [root, root / "annotations", root / "zips", root / "images"]
    found = [place / name for place in places for name in names if (place / name).is_file()]
    return [f"{path} is not unpacked: unzip -n {path} -d {root}." for path in found]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())[:100]


def missing_images(folder: Path, name: str, coco: bool) -> FileNotFoundError:
    """Why no image is where it should be, and what to do. name: of one that is looked for. coco: it is COCO itself."""
    root, hints = folder.parent, []
    near = [root, root / "images", *_folders(folder), *_folders(root), *_folders(root / "images")]
    near = [place for place in dict.fromkeys(near) if place.is_dir() and place != folder]
    hints += [f"{place} has it: move the files of there into {folder}." for place in near if (place / name).is_file()]
    for place in (folder, *near):
        if longer := _ending(place, f"_{name}"):
            hints.append(f"{place} has {longer}: so are the images of 2014 named; is year=2014 meant?")
    if folder.name in ARCHIVES:
        hints += _zip_hints(root, [ARCHIVES[folder.name]])
    there = [place.name for place in near if place.name in ARCHIVES and place.parent == root]
    hints += [f"There are images of {utils.listed(there)}."] if there else []
    hints.append(_how_to_get(root) if coco else "image_dir must be the folder that the file names start from.")
    message = f"{folder} has none of the images, such as {name!r}." if folder.is_dir() else f"There is no {folder}."
    return FileNotFoundError("\n".join([message, *hints]))


def _ending(folder: Path, suffix: str) -> str | None:
    """A file of the folder whose name ends so."""
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.endswith(suffix)), None)


############################################################
#  COCO's categories
############################################################

# Published checkpoints know these. COCO's own ids, with its gaps.
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

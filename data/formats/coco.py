"""CocoDataset, which reads any file of instances in COCO's format, and checks all that it reads.

The file may be of any data set (load_annotations). load_coco reads COCO itself, from the places that data/coco_files.py
knows. coco_file.py, beside this, parses a file. data/label_checks.py compares boxes and areas with masks.
"""

import contextlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO

import utils
from data.coco_files import (
    ARCHIVES,
    annotation_files,
    choose_year,
    download_coco,
    image_folder,
    is_coco_name,
    missing_annotations,
    missing_images,
)
from data.dataset import Dataset, Instances, ObjectBoxes
from data.file_names import find_files, name_in_entry
from data.formats.coco_file import LABELLED, CocoFile, IdNumbers, read_file, whole_number
from data.images import image_size
from data.label_checks import LabelChecks, Skipped, check_labels, note, summary
from data.label_table import NO_NUMBER, POLYGONS, RLE, LabelTable
from data.large import RegionImage

logger = logging.getLogger(__name__)


############################################################
#  Checks
############################################################


def _minival_filter(val2014: Path, val2017: Path, subset: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from image ids [N] of 2014's val to bool [N]: whether each belongs to minival or valminusminival."""
    entries = read_file(val2017, is_coco=True).images
    minival = [whole_number(entry.get("id")) for entry in entries if isinstance(entry, dict)]
    if len(minival) != ARCHIVES["val2017"].images:
        logger.warning(
            "%s of %s differs from the published one: %s has %d images instead of %d",
            subset, val2014, val2017, len(minival), ARCHIVES["val2017"].images,
        )  # fmt: skip
    return lambda ids: np.isin(ids, minival) == (subset == "minival")


class _Categories(NamedTuple):
    names: dict[int, str]  # {category id: name}, ascending
    numbers: dict[int, int]  # {provisional number of a text: category id}


def _check_categories(path: Path, file: CocoFile, skipped: Skipped) -> _Categories:
    """The categories of a file. Raises: ValueError if one of them is damaged, or says two things."""
    names: dict[int, str] = {}
    texts = file.category_numbers.names()
    entries = [entry if isinstance(entry, dict) else {} for entry in file.categories]
    ids = [file.category_numbers.number(entry.get("id")) for entry in entries]
    texts |= file.category_numbers.names()
    numbers = file.category_numbers.settle(ids)
    for i, (number, entry) in enumerate(zip(ids, entries, strict=True)):
        category, name = numbers.get(number, number), entry.get("name")
        name = str(name) if type(name) is int else name
        if category < 0 or not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{path}: category number {i} must have an id, a whole number or a text, and a name, "
                f"got {file.categories[i]!r:.200}"
            )
        if names.get(category, name) != name:
            raise ValueError(
                f"{path}: category id {texts.get(number, category)!r:.100} is {names[category]!r:.100} and "
                f"{name!r:.100}; which of them do its annotations mean? Were two files joined without new ids?"
            )
        note(skipped, "categories that are listed twice (kept once)", [category] if category in names else [])
        names[category] = name
    first_ids: dict[str, int] = {}
    for category in sorted(names):
        is_repeated = first_ids.setdefault(names[category], category) != category
        problem = "categories with the name of another (kept apart; class_map joins them)"
        note(skipped, problem, [category] if is_repeated else [])
    _note_numbers(skipped, "categories", numbers, texts)
    return _Categories({category: names[category] for category in sorted(names)}, numbers)


def _note_numbers(skipped: Skipped, kind: str, numbers: Mapping[int, int], texts: Mapping[int, str]) -> None:
    """Reports ids that are texts. numbers: {provisional: final}. texts: {provisional: text}."""
    if numbers:
        first, last = min(numbers.values()), max(numbers.values())
        problem = f"{kind} with an id that is a text (numbers {first} to {last}, in the order of the texts)"
        note(skipped, problem, [texts[number] for number in sorted(numbers, key=numbers.__getitem__)])


def _choose_classes(path: Path, categories: dict[int, str], class_ids: Sequence[int] | None) -> dict[int, str]:
    """The categories that class_ids names, ascending; all of them for None."""
    if class_ids is None:
        return categories
    chosen = set(class_ids)
    if not chosen or not chosen <= categories.keys():
        choices = utils.listed([f"{category} {utils.printable(name, 40)}" for category, name in categories.items()])
        raise ValueError(f"class_ids must be some of the category ids of {path}: {choices}; not {list(class_ids)}")
    return {category: name for category, name in categories.items() if category in chosen}


def _check_class_map(class_map: Mapping[str, str] | None, source: str, categories: dict[int, str]) -> dict[str, str]:
    unknown = (class_map or {}).keys() - {f"{source}.{category}" for category in categories}
    if unknown:
        raise ValueError(
            f"class_map must name classes that are loaded, as '{source}.{next(iter(categories), 1)}', not "
            f"{utils.listed(sorted(map(repr, unknown)))}; is that no category id, or is it missing in class_ids?"
        )
    return dict(class_map or {})


class _Images(NamedTuple):
    """The images of a file, ascending by id."""

    ids: np.ndarray  # int64 [I]
    names: list[str]  # paths below the image folder
    sizes: np.ndarray  # int64 [I, (height, width)]; zeros for an image that is not usable
    usable: np.ndarray  # bool [I]
    facts: list[dict[str, Any]]  # those of CocoDataset.IMAGE_FACTS that the file has
    numbers: dict[int, int]  # {provisional number of an id that is a text: image id}
    texts: dict[int, str]  # {image id: the text}
    labelled: list[list[int] | None]  # [I], the categories that are labelled in each image; None: all


# An image with one of these problems is left out.
_LOST = {
    "id": "images without an id (skipped)",
    "name": "images without a file_name (skipped)",
    "outside": "images whose file_name leads out of the data folder (skipped)",
    "ambiguous": "images whose file_name fits several files, or whose file fits several names (skipped)",
    "size": "images without a usable height and width (skipped)",
    "file": "images without a file (skipped)",
}


def _check_images(
    dataset: "CocoDataset", path: Path, file: CocoFile, categories: _Categories, folder: Path, is_coco: bool,
    skipped: Skipped,
) -> _Images:  # fmt: skip
    """Finds the usable images: their size is known, and their file lies in the folder.

    dataset: its class says how to read an entry, by file_name and IMAGE_FACTS.
    """
    by_id, numbers = _unique_images(dataset, path, file, skipped)
    ids = np.array(sorted(by_id), np.int64)
    names, sizes, usable = [], np.zeros((len(ids), 2), np.int64), np.zeros(len(ids), bool)
    found, missing = find_files(folder, [dataset.file_name(by_id[image_id]) for image_id in ids.tolist()]), []
    for i, image_id in enumerate(ids.tolist()):
        entry = by_id[image_id]
        name = dataset.file_name(entry)
        names.append(found[i].path or name)
        if not isinstance(name, str) or not name:
            note(skipped, _LOST["name"], [image_id])
        elif found[i].leads_out:
            note(skipped, _LOST["outside"], [name])
        elif found[i].candidates:
            note(skipped, _LOST["ambiguous"], [f"{name} ({utils.listed(found[i].candidates, 2)})"])
        elif found[i].path is None:
            missing.append(name)
        elif (size := _image_size(entry, folder / found[i].path, skipped)) is None:
            note(skipped, _LOST["size"], [name])
        else:
            usable[i], sizes[i] = True, size
    texts = [name for name in names if isinstance(name, str) and name]
    if texts and not any(match.path or match.candidates for match in found):
        raise missing_images(folder, texts[0], is_coco)
    note(skipped, _LOST["file"], missing)
    facts = [{key: entry[key] for key in dataset.IMAGE_FACTS if key in entry} for _, entry in sorted(by_id.items())]
    texts = file.image_numbers.names()
    _note_numbers(skipped, "images", numbers, texts)
    by_text = {numbers[number]: texts[number] for number in numbers}
    by_name = _categories_by_name(file, categories)
    labelled = [_labelled_categories(by_id[image_id], by_name, skipped) for image_id in ids.tolist()]
    return _Images(ids, names, sizes, usable, facts, numbers, by_text, labelled)


def _categories_by_name(file: CocoFile, categories: _Categories) -> dict[int | str, list[int]]:
    """The category ids that each category id, each id that is a text, and each name stand for."""
    found: dict[int | str, list[int]] = {category: [category] for category in categories.names}
    for text, number in file.category_numbers.texts.items():
        if number in categories.numbers:
            found[text] = [categories.numbers[number]]
    names = [(name, category) for category, name in categories.names.items()]
    return found | {name: [category for other, category in names if other == name] for name in dict(names)}


def _labelled_categories(
    entry: Mapping[str, Any], by_name: Mapping[int | str, list[int]], skipped: Skipped
) -> list[int] | None:
    """The category ids of an image's labelled_classes, ascending; None if it has none: all classes are labelled."""
    values, name = entry.get(LABELLED), name_in_entry(entry) or entry.get("id")
    if values is None:
        return None
    if not isinstance(values, list):
        note(skipped, "images whose labelled_classes are no list (taken as labelled for all classes)", [name])
        return None
    found, unknown = set(), []
    for value in values:
        key = value if isinstance(value, str) and value in by_name else whole_number(value)
        found.update(by_name.get(key, ()))
        unknown += [] if key in by_name else [utils.printable(value, 40)]
    if unknown:
        problem = "images whose labelled_classes have what is neither a category's name nor its id (not counted)"
        note(skipped, problem, [f"{name}: {utils.listed(unknown, 3)}"])
    return sorted(found)


def _image_size(entry: Mapping[str, Any], path: Path, skipped: Skipped) -> tuple[int, int] | None:
    """(height, width) that an image's entry says, or else the file's header: those of the image when it is upright."""
    height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
    if min(height, width) >= 1 and height * width <= utils.MAX_IMAGE_PIXELS:
        return height, width
    try:
        height, width = image_size(path).shown
    except (ValueError, OSError):
        return None
    note(skipped, "images without a usable height and width (taken from the image)", [path.name])
    return height, width


def _unique_images(
    dataset: "CocoDataset", path: Path, file: CocoFile, skipped: Skipped
) -> tuple[dict[int, dict], dict[int, int]]:
    """{image id: entry}, and {provisional number of a text: image id}.

    Raises: ValueError if two different images have one id.
    """
    by_id: dict[int, dict] = {}
    for i, entry in enumerate(file.images):
        image_id = file.image_numbers.number(entry.get("id")) if isinstance(entry, dict) else NO_NUMBER
        if image_id == NO_NUMBER:
            name = dataset.file_name(entry) if isinstance(entry, dict) else None
            note(skipped, _LOST["id"], [name or f"#{i}"])
            continue
        if by_id.setdefault(image_id, entry) != entry:
            raise ValueError(
                f"{path}: image id {entry['id']!r:.100} is {by_id[image_id]!r:.200} and {entry!r:.200}; which of them "
                "do its annotations mean? Were two files joined without new ids?"
            )
        if by_id[image_id] is not entry:
            note(skipped, "images that are listed twice (kept once)", [image_id])
    numbers = file.image_numbers.settle(by_id)
    return {numbers.get(number, number): entry for number, entry in by_id.items()}, numbers


def _check_annotations(
    file: CocoFile, images: _Images, categories: _Categories, folder: Path, skipped: Skipped, is_coco: bool
) -> np.ndarray:
    """Corrects annotations where that is possible. Returns: bool [A], the annotations that can be used."""
    table, texts = file.table, file.annotation_numbers.names()
    rows = LabelChecks(table, skipped, texts)
    renamed = _check_ids(rows, texts)
    if file.image_numbers.texts:
        names = _ids_by_name(images)
        _resolve_texts(rows, "image_id", table.image_ids, file.image_numbers, images.numbers, names)
    if file.category_numbers.texts:
        names = {name: category for category, name in categories.names.items()}
        _resolve_texts(rows, "category_id", table.category_ids, file.category_numbers, categories.numbers, names)
    image = np.searchsorted(images.ids, table.image_ids).clip(max=max(len(images.ids) - 1, 0))  # [A]
    has_image = images.ids[image] == table.image_ids if len(images.ids) else np.zeros(len(table), bool)
    _drop_unknown(rows, "images that are not in the file", "image_id", table.image_ids, ~has_image, file.image_numbers)
    if not rows.good.any():
        return rows.good
    rows.good &= images.usable[image]  # _check_images has reported the others
    _turn_sizes(images, table, np.where(rows.good, image, -1), folder, skipped)
    is_unknown = ~np.isin(table.category_ids, list(categories.names))
    _drop_unknown(rows, "unknown categories", "category_id", table.category_ids, is_unknown, file.category_numbers)
    rows.drop("annotations with an iscrowd other than 0 and 1 (skipped)", table.crowds < 0)
    rows.note("annotations with ignore 1 (taken as crowds)", file.ignored)
    check_labels(rows, images.sizes[image], keep_empty=is_coco)
    first_id = max(int(table.ids.max(initial=0)), 0) + 1
    table.ids = table.ids.copy()
    table.ids[renamed & rows.good] = np.arange(first_id, first_id + (renamed & rows.good).sum())
    return rows.good


def _turn_sizes(images: _Images, table: LabelTable, image: np.ndarray, folder: Path, skipped: Skipped) -> None:
    """Corrects sizes of images whose height and width are exchanged in the file, in place.

    The sign of it is a box that is inside of the image only if they are exchanged, or an RLE of that size. The image's
    file must confirm it. If one does, the files of all other images are asked, too.

    image: [A], the row of each annotation's image; -1 for annotations that are out.
    """
    sizes = images.sizes[image]  # (height, width)
    with np.errstate(invalid="ignore", over="ignore"):
        far = table.boxes[:, :2] + table.boxes[:, 2:]  # (x, y)
        is_turned = (far > sizes[:, ::-1] + 1).any(axis=1) & (far <= sizes + 1).all(axis=1)
    is_turned |= (table.kinds == RLE) & (table.sizes == sizes[:, ::-1]).all(axis=1) & (sizes[:, 0] != sizes[:, 1])
    signs = np.unique(image[is_turned & (image >= 0)]).tolist()
    rows = [row for row in signs if _is_turned(folder / images.names[row], images.sizes[row])]
    if not rows:
        return
    others = np.setdiff1d(np.flatnonzero(images.usable), rows).tolist()
    rows += [row for row in others if _is_turned(folder / images.names[row], images.sizes[row], as_stored=True)]
    images.sizes[rows] = images.sizes[rows][:, ::-1]
    problem = "images whose height and width are exchanged in the file (taken from the image)"
    note(skipped, problem, [images.names[row] for row in sorted(rows)])


def _is_turned(path: Path, size: np.ndarray, as_stored: bool = False) -> bool:
    """Whether an image has this size (height, width) exchanged. as_stored: also without its EXIF orientation."""
    try:
        found = image_size(path)
    except (ValueError, OSError):
        return False
    sizes = [found.shown, found.stored] if as_stored else [found.shown]
    return size[0] != size[1] and all(height == size[1] and width == size[0] for height, width in sizes)


def _check_ids(rows: LabelChecks, texts: Mapping[int, str]) -> np.ndarray:
    """Drops exact repeats. texts: those of annotation ids. Returns: bool [A], the annotations that need new ids."""
    ids, table = rows.table.ids, rows.table
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    repeated, shared, contents = np.zeros(len(ids), bool), np.zeros(len(ids), bool), {}
    for row in np.flatnonzero((counts[inverse] > 1) & (ids != NO_NUMBER)).tolist():
        earlier = contents.setdefault(int(ids[row]), set())
        content = table.content(row)
        repeated[row], shared[row] = content in earlier, bool(earlier)
        earlier.add(content)
    rows.drop("annotations that are listed twice (kept once)", repeated)
    problem = "annotation ids that several annotations have (kept, with new ids; were files joined?)"
    rows.note(problem, shared & ~repeated)
    is_text = np.isin(ids, list(texts)) if texts else np.zeros(len(ids), bool)
    rows.note("annotations without an id (kept, with new ids)", ids == NO_NUMBER)
    rows.note("annotations with an id that is a text (kept, with new ids)", is_text & ~shared)
    rows.note("annotations of id 0, which pycocotools takes for none (kept, with new ids)", ids == 0)
    return shared | is_text | (ids == NO_NUMBER) | (ids == 0)


def _ids_by_name(images: _Images) -> dict[str, int]:
    """{file name: image id}, also of names without folders and without suffix, as far as one image alone has them."""
    ids = images.ids.tolist()
    names = dict(zip(images.names, ids, strict=True))
    for short in (lambda name: PurePath(name).name, lambda name: PurePath(name).stem):
        shorts = [short(name) for name in images.names]
        counts = Counter(shorts)
        names |= {name: i for name, i in zip(shorts, ids, strict=True) if counts[name] == 1 and name not in names}
    return names


def _resolve_texts(
    rows: LabelChecks, key: str, ids: np.ndarray, file_numbers: IdNumbers, numbers: Mapping[int, int],
    names: Mapping[str, int],
) -> None:  # fmt: skip
    """Replaces the provisional numbers of texts among ids, in place. A text may also be a name: see names.

    numbers: {provisional number: id}. names: {name of an image or a category: id}.
    """
    by_name = np.zeros(len(ids), bool)
    texts = file_numbers.names()
    for number in np.unique(ids).tolist():
        if number in numbers:
            ids[ids == number] = numbers[number]
        elif texts.get(number) in names:
            by_name |= ids == number
            ids[ids == number] = names[texts[number]]
    rows.note(f"annotations whose {key} is a name (taken as the one of this name)", by_name)


def _drop_unknown(
    rows: LabelChecks, what: str, key: str, ids: np.ndarray, is_unknown: np.ndarray, numbers: IdNumbers
) -> None:
    """Drops annotations whose image_id or category_id does not exist, and says if that is because it is a text."""
    texts, kind = numbers.names(), key.removesuffix("_id")
    is_text = is_unknown & rows.good & np.isin(ids, list(texts)) if texts else np.zeros(len(ids), bool)
    if is_text.any():
        example = utils.printable(repr(texts[int(ids[is_text][0])]), 60)
        problem = f"annotations of {what}: {key} is a text, such as {example}, and no {kind} has this id (skipped)"
        rows.drop(problem, is_text)
    rows.drop(f"annotations of {what} (skipped)", is_unknown)


############################################################
#  Data set
############################################################


class _LoadedFile(NamedTuple):
    """The images of one load and their annotations."""

    source: str
    image_ids: np.ndarray  # int64 [I], ascending
    first_rows: np.ndarray  # int64 [I + 1], the first annotation of each image, and the end
    annotations: LabelTable  # sorted by image
    listed: int  # how many annotations the file lists
    unusable: int  # how many of them are left out because of what they say


class CocoDataset(Dataset):
    """A data set in COCO's format: COCO itself (load_coco), or any other one (load_annotations).

    Images and categories have the ids of the file, and are in ascending order. Ids that are texts get numbers;
    image_info has an image's text as file_id.

    skipped: {problem: the ids of annotations or the names of images that have it}. Each load also logs them.

    Annotations are stored as arrays. 118,287 images with 860,001 objects take about half a gigabyte, which the worker
    processes of a training share.

    A file that says more of its images, or says it differently, needs a subclass with IMAGE_FACTS and file_name:

        class Lvis(CocoDataset):
            IMAGE_FACTS = ("coco_url", "neg_category_ids", "not_exhaustive_category_ids")

            def file_name(self, entry):
                return "/".join(entry["coco_url"].split("/")[-2:])  # train2017/000000391895.jpg
    """

    # Further keys of an image's entry in the file. file_name can read them, and evaluation gets them: image_facts.
    IMAGE_FACTS: tuple[str, ...] = ()
    # Of files that are not in UTF-8, such as "cp1252"; empty: they are an error, because a guess may spoil names.
    FALLBACK_ENCODING = ""

    boxes_are_checked = True

    _MIN_CLASS_ID = 0  # Some tools number categories from 0. Category 0 is not the background here.

    def __init__(self, class_map: Mapping[str, str] | None = None) -> None:
        """class_map: as for prepare()."""
        super().__init__(class_map)
        self.skipped: Skipped = {}
        self._files: list[_LoadedFile] = []

    def file_name(self, entry: Mapping[str, Any]) -> str | None:
        """The path of an image below the folder of images; None if the file does not say it. Override it.

        entry: the image's entry in the file: id, file_name, height, width, IMAGE_FACTS, as far as the file has them;
            without file_name and width, all of the entry.
        """
        return name_in_entry(entry)

    def image_facts(self, image_id: int) -> dict[str, Any]:
        """IMAGE_FACTS of an image, as far as the file has them."""
        return self.image_info[image_id].get("facts", {})

    def labelled_class_ids(self, image_id: int) -> list[int] | None:
        """The classes that `labelled_classes` of an image names, by names or category ids; None: all.

        A class that class_map joins is labelled where all of its categories are.
        """
        info = self.image_info[image_id]
        if info.get(LABELLED) is None:
            return None
        labelled, unlabelled = set(info[LABELLED]), set()
        for other in self.class_info:
            if other["source"] == info["source"] and other["id"] not in labelled:
                unlabelled.add(self.class_from_source_map[f"{other['source']}.{other['id']}"])
        return [class_id for class_id in range(1, self.num_classes) if class_id not in unlabelled]

    @property
    def lost_images(self) -> dict[str, list]:
        """The problems in skipped for which an image was left out."""
        return {problem: labels for problem, labels in self.skipped.items() if problem in _LOST.values()}

    def load_coco(
        self,
        dataset_dir: str | os.PathLike,
        subset: str,
        year: int | str | None = None,
        class_ids: Sequence[int] | None = None,
        class_map: Mapping[str, str] | None = None,
        return_coco: bool = False,
        auto_download: bool = False,
        empty_images: bool = True,
    ) -> COCO | None:
        """Loads a subset of COCO itself, with the source "coco". Call it again for more subsets, then call prepare().

        dataset_dir: the folder that has annotations/, train2017/ ... in it.
        subset: train or val. Of 2014 also minival (the images of 2017's val) or valminusminival; without files of their
            own, these are made from the files of val2014 and val2017.
        year: 2014 or 2017. None: the first of 2017 and 2014 whose annotations of this subset exist, or else 2017.
        auto_download: first download the missing files, as download_coco does.
        class_ids, class_map, return_coco, empty_images: as for load_annotations.

        Returns: as load_annotations.
        Raises: as load_annotations. A FileNotFoundError explains where the files must be.
        """
        root = Path(dataset_dir)
        year = choose_year(root, subset, year)
        if auto_download:
            self.auto_download(root, subset, year)
        files, folder = annotation_files(root, subset, year), image_folder(root, subset, year)
        for path in files:
            if not path.is_file():
                raise missing_annotations(root, path, subset)
        is_in_subset = _minival_filter(*files, subset) if len(files) > 1 else None
        return self._load(files[0], folder, "coco", class_ids, class_map, return_coco, empty_images, is_in_subset)

    def auto_download(self, dataDir: str | os.PathLike, dataType: str, dataYear: int | str) -> None:
        """Matterport's name for download_coco."""
        download_coco(dataDir, dataType, dataYear)

    def load_annotations(
        self,
        json_path: str | os.PathLike,
        image_dir: str | os.PathLike,
        source: str = "own",
        class_ids: Sequence[int] | None = None,
        class_map: Mapping[str, str] | None = None,
        return_coco: bool = False,
        empty_images: bool = True,
    ) -> COCO | None:
        """Loads a file of instances in COCO's format, of any data set. Its categories become classes, ascending by id.

        Images and annotations that cannot be used are left out, logged, and listed in `skipped`.

        json_path: the file. image_dir: the folder that its file names start from.
        source: a name for the file, without a ".".
        class_ids: the ids of the categories to load; images without any of them are left out. None: all categories,
            and all images.
        class_map: {"<source>.<category id>": name}; prepare() joins classes of one name.
        return_coco: also return pycocotools' index of the annotations that are kept, with all categories of the file.
        empty_images: False leaves out images without an object (crowds do not count), which is usual for training.
            Evaluation needs these images, because every detection in them is wrong.

        Returns: pycocotools' COCO, or None.
        Raises: FileNotFoundError if the file, the folder or all of the images are missing; ValueError if the file is
            damaged or of another kind, contradicts itself, or has nothing usable.
        """
        path = Path(json_path)
        if not path.is_file():
            raise FileNotFoundError(f"json_path {path}: there is no such file")
        return self._load(path, Path(image_dir), source, class_ids, class_map, return_coco, empty_images)

    def _load(
        self, path: Path, folder: Path, source: str, class_ids: Sequence[int] | None,
        class_map: Mapping[str, str] | None, return_coco: bool, empty_images: bool,
        is_in_subset: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> COCO | None:  # fmt: skip
        """load_annotations of a subset. is_in_subset: a function from image ids [N] to bool [N]; None: all images."""
        skipped: Skipped = {}
        is_coco = source == "coco"
        file = read_file(path, self.IMAGE_FACTS, is_coco, self.FALLBACK_ENCODING)
        note(skipped, "annotations without an image_id (skipped)", file.without_image)
        note(skipped, "other lists than annotations that have objects (not read)", file.elsewhere)
        categories = _check_categories(path, file, skipped)
        chosen = _choose_classes(path, categories.names, class_ids)
        class_map = _check_class_map(class_map, source, chosen)
        images = _check_images(self, path, file, categories, folder, is_coco, skipped)
        file.images.clear()  # to save their memory
        table = file.table
        good = _check_annotations(file, images, categories, folder, skipped, is_coco)
        chosen_rows = good & np.isin(table.category_ids, list(chosen))
        kept = images.usable if is_in_subset is None else images.usable & is_in_subset(images.ids)
        if class_ids is not None or not empty_images:
            kept = kept & np.isin(images.ids, table.image_ids[chosen_rows & ((table.crowds == 0) | empty_images)])
        if not kept.any() or (file.listed and not chosen_rows.any()):
            reasons = summary(skipped) or "    No image has an object"
            if not skipped and class_ids is not None:
                reasons += " of the categories in class_ids."
            elif not skipped:
                reasons += " to learn from: " + ("all are crowds." if file.listed else "the file lists none.")
            counts = f"{len(images.ids):,} images and {file.listed:,} annotations"
            raise ValueError(f"{path}: none of {counts} can be used.\n{reasons}")
        self._register(source, folder, chosen, class_map, images, np.flatnonzero(kept).tolist())
        counts = file.listed, file.listed - int(good.sum())
        self._store_annotations(source, images.ids[kept], table, chosen_rows, counts)
        if skipped:
            logger.warning("%s: these images and annotations are not used as they are\n%s", path, summary(skipped))
        for problem, labels in skipped.items():
            note(self.skipped, problem, labels)
        return self._index(source, folder, int(kept.sum())) if return_coco else None

    def _register(self, source: str, folder: Path, categories, class_map, images: _Images, kept: list[int]) -> None:
        """Adds classes and images. kept: the rows of images to add."""
        for category, name in categories.items():
            self.add_class(source, category, name)
        self._class_map = {**(self._class_map or {}), **class_map}
        for i in kept:
            height, width = images.sizes[i].tolist()
            path = os.path.join(folder, images.names[i])
            facts = {"facts": images.facts[i]} if images.facts[i] else {}
            if int(images.ids[i]) in images.texts:
                facts["file_id"] = images.texts[int(images.ids[i])]
            if images.labelled[i] is not None:
                facts[LABELLED] = images.labelled[i]
            self.add_image(source, int(images.ids[i]), path, width=width, height=height, **facts)

    def _store_annotations(
        self, source: str, image_ids: np.ndarray, table: LabelTable, good: np.ndarray, counts: tuple[int, int]
    ) -> None:
        """Stores the good annotations of these images, sorted by image, and for each image in the order of the file.

        counts: how many the file lists, and how many of them nobody can use.
        """
        rows = np.flatnonzero(good & np.isin(table.image_ids, image_ids))
        table.keep_rows(rows[np.argsort(table.image_ids[rows], kind="stable")])
        first_rows = np.searchsorted(table.image_ids, np.append(image_ids, image_ids[-1] + 1))
        self._files.append(_LoadedFile(source, image_ids, first_rows, table, *counts))

    def _find_annotations(self, image_id: int) -> tuple[LabelTable, range] | None:
        """The annotations of a file, and the rows of an image among them. None if the image came from no file."""
        info = self.image_info[image_id]
        for file in self._files:
            if file.source == info["source"]:
                i = int(np.searchsorted(file.image_ids, info["id"]))
                if i < len(file.image_ids) and file.image_ids[i] == info["id"]:
                    return file.annotations, range(int(file.first_rows[i]), int(file.first_rows[i + 1]))
        return None

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, 3], in the size that the file of annotations says.

        Some tools annotate images as they are stored, others after EXIF has turned them. The size tells which it was.

        Raises: ValueError if neither has this size; else as data.images.read_image.
        """
        image = super().load_image(image_id)
        info = self.image_info[image_id]
        size = (info.get("height", image.shape[0]), info.get("width", image.shape[1]))
        if image.shape[:2] == size:
            return image
        stored = self.reader.read(info["path"], upright=False)
        if stored.shape[:2] != size:
            raise ValueError(
                f"image {info['path']} has {image.shape[0]} x {image.shape[1]} pixels, but its annotations are for "
                f"{size[0]} x {size[1]} (height x width); was it resized, or replaced by another of its name?"
            )
        return stored

    def load_regions(self, image_id: int) -> RegionImage | None:
        """As Dataset.load_regions; None if the image has another size than the file of annotations says."""
        if type(self).load_image is not CocoDataset.load_image:
            return None
        image, info = self._regions_of(image_id), self.image_info[image_id]
        if image is None or image.shape[:2] == (info.get("height", image.shape[0]), info.get("width", image.shape[1])):
            return image
        return None

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [H, W, N], and class ids int32 [N], negative for crowds."""
        if self._find_annotations(image_id) is None:
            return super().load_mask(image_id)
        class_ids, rles, _ = self.load_instances(image_id)
        info = self.image_info[image_id]
        masks = utils.rle_to_mask(rles) if rles else np.zeros((info["height"], info["width"], 0), bool)
        return masks, class_ids

    def load_instances(self, image_id: int) -> Instances:
        """The instances, with masks as RLEs. Boxes are those of the file, cut off at the edges of the image."""
        location = self._find_annotations(image_id)
        if location is None:
            return super().load_instances(image_id)
        table, rows = location
        info = self.image_info[image_id]
        height, width = info["height"], info["width"]
        signs = 1 - 2 * table.crowds[rows.start : rows.stop].astype(np.int32)
        categories = table.category_ids[rows.start : rows.stop].tolist()
        class_ids = [self.map_source_class_id(f"{info['source']}.{category}") for category in categories]
        boxes = _corner_boxes(table.boxes[rows.start : rows.stop]).clip(0, [height, width, height, width])  # [N, 4]
        rles = [table.rle(row, height, width) for row in rows]
        return Instances(np.array(class_ids, np.int32) * signs, rles, boxes.astype(np.float32))

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """The image's annotations in COCO's format, in the order of the file, for evaluation.

        Returns: dicts with id, image_id, category_id, iscrowd; bbox [x, y, width, height] and area as in the file; and
            segmentation, a compressed RLE for json.dump. Joined classes have the category_id of the first of them.
        Raises: ValueError for an image that was not loaded from a file of annotations.
        """
        location = self._find_annotations(image_id)
        if location is None:
            raise ValueError(f"image_id {image_id} has no annotations of COCO: add_image added it, and no file")
        info, (table, rows) = self.image_info[image_id], location
        size = info["height"], info["width"]
        category_ids = self.category_ids
        categories = {
            category: category_ids[self.map_source_class_id(f"{info['source']}.{category}")]
            for category in set(table.category_ids[rows.start : rows.stop].tolist())
        }
        return [
            {**_annotation(table, row, categories), "segmentation": utils.rle_to_json(table.rle(row, *size))}
            for row in rows
        ]

    def object_boxes(self) -> ObjectBoxes | None:
        """The boxes of all objects, or None if some images came from no file.

        A subclass whose load_instances returns other objects must override this as well.
        """
        ids = np.array([info["id"] if isinstance(info["id"], int) else NO_NUMBER for info in self.image_info], np.int64)
        sources = np.array([info["source"] for info in self.image_info])
        is_found, image_ids, class_ids, boxes = np.zeros(len(ids), bool), [], [], []
        for file in self._files:
            table = file.annotations
            place = np.searchsorted(file.image_ids, ids).clip(max=len(file.image_ids) - 1)
            images = np.flatnonzero((file.image_ids[place] == ids) & (sources == file.source))
            is_found[images] = True
            first, end = file.first_rows[place[images]], file.first_rows[place[images] + 1]
            image_ids.append(np.repeat(images, end - first))
            rows = np.concatenate([np.zeros(0, np.int64), *map(np.arange, first, end)])
            categories, inverse = np.unique(table.category_ids[rows], return_inverse=True)
            numbers = [self.map_source_class_id(f"{file.source}.{category}") for category in categories.tolist()]
            class_ids.append(np.array(numbers, np.int32)[inverse] * (1 - 2 * table.crowds[rows].astype(np.int32)))
            boxes.append(_corner_boxes(table.boxes[rows]))
        if not is_found.all() or not self._files:
            return None
        image_ids = np.concatenate(image_ids)
        sizes = np.array([(info["height"], info["width"]) for info in self.image_info], np.int64).reshape(-1, 2)
        return ObjectBoxes(
            image_ids,
            np.concatenate(class_ids),
            np.concatenate(boxes).clip(0, np.tile(sizes, 2)[image_ids]).astype(np.float32),
            sizes,
            sum(file.listed for file in self._files),
            sum(file.unusable for file in self._files),
        )

    @property
    def num_annotations(self) -> int:
        """The number of annotations, with crowds."""
        return sum(len(file.annotations) for file in self._files)

    @property
    def category_ids(self) -> list[int]:
        """The category id of each class id, after prepare(): 0 for the background; of joined classes, the first one's.

        Raises: ValueError if categories of two sources have one id, because results would then be ambiguous.
        """
        ids: dict[int, int] = {}
        for info in self.class_info:
            ids.setdefault(self.class_from_source_map[f"{info['source']}.{info['id']}"], info["id"])
        categories = [ids[class_id] for class_id in range(1, self.num_classes)]
        if len(set(categories)) < len(categories):
            raise ValueError(
                f"category ids of the sources {self.sources[1:]} overlap; load and evaluate them one by one"
            )
        return [0, *categories]

    def image_reference(self, image_id: int) -> str:
        """The address at which cocodataset.org shows the image; empty for images of other data sets."""
        info = self.image_info[image_id]
        is_coco = info["source"] == "coco" and is_coco_name(str(info["path"]))
        return f"https://cocodataset.org/#explore?id={info['id']}" if is_coco else ""

    def annToRLE(self, ann: Mapping[str, Any], height: int, width: int) -> dict:
        """Compressed RLE of an annotation of COCO, with polygons or an RLE of any kind."""
        return utils.annotation_to_rle(ann["segmentation"], height, width)

    def annToMask(self, ann: Mapping[str, Any], height: int, width: int) -> np.ndarray:
        """Mask of an annotation of COCO: uint8 [H, W], 0 and 1, as Matterport has it."""
        return utils.rle_to_mask(self.annToRLE(ann, height, width)).astype(np.uint8)

    def _index(self, source: str, folder: Path, count: int) -> COCO:
        """pycocotools' index of the file that was loaded last. count: the number of its images."""
        table, infos = self._files[-1].annotations, self.image_info[-count:]
        sizes = {info["id"]: (info["height"], info["width"]) for info in infos}
        images = [
            {**info.get("facts", {}), "id": info["id"], "file_name": Path(info["path"]).relative_to(folder).as_posix(),
             "height": info["height"], "width": info["width"]}
            for info in infos
        ]  # fmt: skip
        annotations = []
        for row in range(len(table)):
            entry = _annotation(table, row)
            if table.kinds[row] == POLYGONS:
                entry["segmentation"] = table.polygons(row)
            else:
                entry["segmentation"] = utils.rle_to_json(table.rle(row, *sizes[entry["image_id"]]))
            annotations.append(entry)
        categories = [{"id": info["id"], "name": info["name"]} for info in self.class_info if info["source"] == source]
        index = COCO()
        index.dataset = {"images": images, "categories": categories, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index


def open_coco(dataset_dir: str | os.PathLike, subset: str, year: int | str | None = None) -> CocoDataset:
    """A subset of COCO, ready to use: CocoDataset.load_coco and prepare()."""
    dataset = CocoDataset()
    dataset.load_coco(dataset_dir, subset, year)
    dataset.prepare()
    return dataset


def _corner_boxes(boxes: np.ndarray) -> np.ndarray:
    """(y1, x1, y2, x2) of boxes (x, y, width, height), [N, 4]."""
    x, y, w, h = boxes.T
    return np.stack([y, x, y + h, x + w], axis=1)


def _annotation(table: LabelTable, row: int, categories: Mapping[int, int] | None = None) -> dict[str, Any]:
    """An annotation in COCO's format without its segmentation. categories: replaces its category id."""
    category = int(table.category_ids[row])
    return {
        "id": int(table.ids[row]),
        "image_id": int(table.image_ids[row]),
        "category_id": category if categories is None else categories[category],
        "iscrowd": int(table.crowds[row]),
        "bbox": table.boxes[row].tolist(),
        "area": float(table.areas[row]),
    }

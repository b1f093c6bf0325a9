"""What the readers of all formats share while they look at a data set: its files, options, pictures and faults.

A format is a module of data/formats/ with

    NAME, TITLE                     what --format takes, and what messages say
    claim(reading) -> Claim | None  the label files that it explains, by looking into some of them
    read(reading, labels)           yields a Picture for each image of these label files

A reader raises nothing for a fault in the data. It adds the fault to reading.findings, and loses the label alone.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
import mmap
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

import utils
from data.file_names import CASE, FOLDERS, SUFFIX, FileIndex
from data.images import ImageSize, image_size
from data.listing import Listing, decode_head, folded, folder_of, parse_xml, stem_of
from data.records import ERROR, REMARK, WARNING, Fault, Findings, Object, Picture

UNUSABLE = Fault(ERROR, "objects cannot be used", "left out")
UNREADABLE = Fault(ERROR, "label files cannot be read", "left out", "mend or delete them")
OTHER_FILES = Fault(REMARK, "files beside the labels are of another kind", "left out")
NO_PICTURE = Fault(ERROR, "labels name a picture that is not there", "left out", "put it back, or remove its entry")
CLASS_LISTS = Fault(REMARK, "class lists differ", "each label file takes the nearest one")
AMBIGUOUS = Fault(
    ERROR, "labels name a picture that several files could be", "left out", "give each picture a name of its own"
)
OTHER_SLICES = Fault(
    ERROR, "objects lie on other slices or times than the first one, which is read", "left out",
    "save each slice as a picture of its own, with its labels",
)  # fmt: skip
SHORTENED = "without the end of their name"  # a rule of note_name

# What tools write beside pictures that is no picture: Cellpose's flows and outlines, Cityscapes' colours.
DERIVED = re.compile(r"_(flows|cellprob|cp_output|cp_outlines|outlines|labelIds|instanceIds|color)$")
# What a reader may meet in a label that is not as it should be: it loses this label alone.
FLAWS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, SyntaxError)

_DAMAGED = Fault(ERROR, "pictures cannot be read", "left out", "replace what is damaged")

UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of a picture
_LONGEST_NAME = 2000  # characters; a longer text is no name of a file
_LARGE = 64 << 20  # bytes; a larger JSON object is not parsed to recognise it
_LOOKED_INTO = 8  # JSON files of a folder; if one of them has a format, all of the folder are looked into
_KEYS = (
    "images", "annotations", "categories", "_via_img_metadata", "metadata", "project", "view", "features", "type",
    "shapes", "imagePath",
)  # fmt: skip


class NoMasks(ValueError):
    """The labels are boxes, and masks cannot be learned from boxes."""

    def __init__(self, title: str, count: int, example: str) -> None:
        super().__init__(
            f"these {title} labels are boxes, {count:,} of them (the first in {utils.printable(example)}): there are "
            "no masks to learn. Label outlines, or let a tool such as Segment Anything turn boxes into masks first"
        )


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may decide where a format leaves it open."""

    class_attribute: str = ""  # VIA: the attribute that is the class; empty: as class_attribute_of says
    empty: str = "skip"  # pictures without a label file: skip, or label: they have no objects
    crowds: str = "auto"  # objects that are marked as crowds: auto, ignore, objects
    split_parts: bool = False  # foreground masks: each connected part is an object
    filling: str = "auto"  # of polygons: auto, or centres or contour of data/records.py for all
    rename: tuple[tuple[str, str], ...] = ()  # (old, new) names of classes


class Claim(NamedTuple):
    """What a format explains of a data set."""

    labels: list[str]  # names of label files
    pictures: int  # that these label, as far as names tell
    evidence: str  # what was seen: "31 of 31 json files have shapes and imagePath"


class Reading:
    """A data set while it is read."""

    def __init__(self, root: str | Path, options: Options | None = None) -> None:
        """Raises: as Listing."""
        self.listing = Listing(root)
        self.options = options or Options()
        self.findings = Findings()
        self._pictures = set(self.listing.pictures)
        self._stems: dict[tuple[str, str], list[str]] = defaultdict(list)  # (folder, stem), folded: names
        self._anywhere: dict[str, list[str]] = defaultdict(list)  # stem, folded: names
        for name in self.listing.pictures:
            self._stems[folded(folder_of(name)), folded(stem_of(name))].append(name)
            self._anywhere[folded(stem_of(name))].append(name)
        self._sizes: dict[Path, ImageSize | None] = {}
        self.excluded: set[str] = set()  # names of image files that are no pictures
        self._noted: set[tuple[str, str]] = set()  # names that note_name has told of

    ############################################################
    #  Label files
    ############################################################

    def json(self, label: str) -> Any:
        """The value of a JSON file; None, with a finding, if it cannot be read."""
        try:
            return self.listing.json(label, self.findings)
        except (ValueError, OSError) as error:
            self.findings.add(UNREADABLE, str(error))
            return None

    def xml(self, label: str) -> ElementTree.Element | None:
        """The root of an XML file; None, with a finding, if it cannot be read."""
        try:
            return parse_xml(self.text(label), label)
        except ValueError as error:
            self.findings.add(UNREADABLE, str(error))
            return None

    def text(self, label: str) -> str:
        """The text of a file; empty, with a finding, if it cannot be read."""
        try:
            return self.listing.text(label, self.findings)
        except (ValueError, OSError) as error:
            self.findings.add(UNREADABLE, str(error))
            return ""

    def look(self, name: str) -> Any:
        """What recognising a JSON file needs: its value; of a large one a dict of the keys that it holds; else None."""
        with contextlib.suppress(ValueError, OSError):
            path = self.listing.path(name)
            if path.stat().st_size <= _LARGE:
                return self.listing.json(name)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                found = {key: [] for key in _KEYS if text.find(json.dumps(key).encode()) >= 0}
            return found or self.listing.json(name)
        return None

    def head(self, name: str, size: int = 1 << 14) -> str:
        """The first characters of a file, to recognise it; empty if it cannot be read."""
        with contextlib.suppress(OSError), self.listing.path(name).open("rb") as file:
            return decode_head(file.read(size))
        return ""

    def columns(self, name: str) -> list[str]:
        """The names of the columns of a csv file, from its first line; empty if it cannot be read."""
        line = next(iter(self.head(name).removeprefix("#").splitlines()), "")
        with contextlib.suppress(csv.Error):
            return next(csv.reader([line], delimiter=_delimiter(line)), [])
        return []

    def table(self, label: str) -> list[dict[str, str]]:
        """The rows of a csv file with commas, semicolons or tabs; none, with a finding, if it is damaged."""
        text = self.text(label).removeprefix("#")
        try:
            return list(csv.DictReader(io.StringIO(text), delimiter=_delimiter(text.partition("\n")[0])))
        except csv.Error as error:
            self.findings.add(UNREADABLE, f"{label}: {error}")
            return []

    def looked_into(self, is_format: Callable[[Any], bool], *suffixes: str) -> dict[str, Any]:
        """{name: value as look() gives it} of the JSON files of a format, in the folders whose samples have some."""
        names = self.listing.of(*(suffixes or (".json",)))
        samples = set(self.listing.samples(names, _LOOKED_INTO))
        found = {name: value for name in sorted(samples) if is_format(value := self.look(name))}
        folders = {folder_of(name) for name in found}
        others = [name for name in names if folder_of(name) in folders and name not in samples]
        found |= {name: value for name in others if is_format(value := self.look(name))}
        return dict(sorted(found.items()))

    def claim_json(self, is_format: Callable[[Any], bool], words: str, *suffixes: str) -> Claim | None:
        """A claim of the JSON files in all folders in which some that were looked into are of a format.

        is_format: says whether a value is of the format. words: what it looks for.
        """
        names = self.listing.of(*(suffixes or (".json",)))
        samples = self.listing.samples(names, _LOOKED_INTO)
        good = [name for name in samples if is_format(self.look(name))]
        folders = {folder_of(name) for name in good}
        labels = [name for name in names if folder_of(name) in folders]
        if not labels:
            return None
        return Claim(labels, len(labels), f"{len(good)} of {len(samples)} files looked into have {words}")

    def values(self, labels: Iterable[str], is_format: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
        """(name, value) of the JSON files of a format. Files that are of another kind, or damaged, get a finding."""
        for label in labels:
            value = self.json(label)
            if is_format(value):
                yield label, value
            elif value is not None:
                self.findings.add(OTHER_FILES, label)

    def parsed(
        self, place: str, noun: str, entries: Iterable[Any], parse: Callable[[Any, str], Object | None], no_area: Fault
    ) -> Iterator[tuple[Object, Any]]:
        """(object, entry) of the entries of a picture. One bad entry costs one object, and gets a finding.

        place, noun: for messages, "a.json" and "shape": what is wrong is in "a.json: shape 3".
        parse: makes an Object of an entry and "shape 3"; None for one without an area, which gets no_area as a finding;
            raises one of FLAWS for one that cannot be used.
        """
        for number, entry in enumerate(entries, start=1):
            name = f"{noun} {number}"
            try:
                parsed = parse(entry, name)
            except FLAWS as error:
                self.findings.add(UNUSABLE, f"{place}: {name}: {_reason(error)}")
                continue
            if parsed is None:
                self.findings.add(no_area, f"{place}: {name}")
            else:
                yield parsed, entry

    ############################################################
    #  Pictures
    ############################################################

    def exclude(self, names: Iterable[str]) -> None:
        """Leaves image files out when pictures are searched for: masks and label images are none."""
        self.excluded |= set(names)

    def no_picture(self, place: str, *names: Any, taken: Collection[Path] = ()) -> None:
        """Adds the finding that a label's picture was not found; that it could be several files, if there are some.

        place: of the label. names: that were searched for; what is no text is passed over. taken: pictures that have
        labels of their own.
        """
        for name in names:
            stem = stem_of(name.replace("\\", "/")) if isinstance(name, str) and len(name) < _LONGEST_NAME else ""
            for choice in (stem, stem_of(stem)):
                candidates = self._not_excluded(self._anywhere.get(folded(choice), []))
                candidates = [name for name in candidates if self.listing.path(name) not in taken]
                if len(candidates) > 1:
                    self.findings.add(AMBIGUOUS, f"{place}: {utils.listed(candidates, 3)}")
                    return
        self.findings.add(NO_PICTURE, place)

    def _not_excluded(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in self.excluded]

    @functools.cached_property
    def _index(self) -> FileIndex:
        return FileIndex(self.listing.root)

    @functools.cached_property
    def text_files(self) -> set[str]:
        """The names of the .txt files."""
        return set(self.listing.of(".txt"))

    def find(self, name: str, folder: str = "", *others: str) -> Path | None:
        """The image file that a label file means by a name, by the rules of data/file_names.py.

        folder: of the label file, relative to the data set; names are tried from there first.
        others: further names for the same file, tried in this order. Those that are exact come before all guesses.
        """
        names = [choice for choice in (name, *others) if choice and len(choice) < _LONGEST_NAME]
        names += [short for choice in names if (short := self.without_upload(choice)) != choice]
        for choice in names:
            for path in (posixpath.normpath(f"{folder}/{choice}") if folder else choice, choice):
                if path in self._pictures:
                    return self.listing.path(path)
        for choice in names:
            found = self._index.find(f"{folder}/{choice}" if folder else choice)
            candidates = [path for path in found.candidates or [found.path] if path in self._pictures]
            near = nearest(self._allowed(candidates, folder, choice), folder)
            if len(near) == 1:
                rules = [rule for rule in found.rules if rule != FOLDERS]  # the folder of the label may be one too many
                self.note_name(choice, near[0], rules)
                return self.listing.path(near[0])
            if near:
                return None
        return None

    def without_upload(self, name: Any) -> Any:
        """A name without the eight digits and - that Label Studio puts before it, if only that is a picture's name."""
        if not isinstance(name, str):
            return name
        folders, base = re.fullmatch(r"(.*[/\\])?(.*)", name, re.DOTALL).groups(default="")
        short = UPLOAD.sub("", base)
        if short == base or folded(stem_of(base)) in self._anywhere or folded(stem_of(short)) not in self._anywhere:
            return name
        return folders + short

    def note_name(self, name: str, path: str, rules: Sequence[str]) -> None:
        """Adds a finding if a picture was found under another name than its label says.

        name: in the label file. path: of the picture. rules: of data/file_names.py, by which it was found.
        """
        if rules and (name, path) not in self._noted:
            self._noted.add((name, path))
            severity = WARNING if CASE in rules or SUFFIX in rules else REMARK
            what = f"pictures were found under another name than their labels say, {', '.join(rules)}"
            self.findings.add(Fault(severity, what, "used"), f"{utils.printable(name)} is {utils.printable(path)}")

    def find_stem(self, stem: str, folder: str = "", anywhere: bool = True) -> Path | None:
        """The image file with this name without suffix, in a folder; else the only one anywhere, or the nearest."""
        stem = self.without_upload(stem)
        names = self._not_excluded(self._stems.get((folded(folder), folded(stem)), []))
        if not names and anywhere:
            names = nearest(self._allowed(self._anywhere.get(folded(stem), []), folder), folder)
        if len(names) > 1:
            names = [name for name in names if stem_of(name) == stem]
        if len(names) != 1:
            return None
        if _composed(stem_of(names[0])) != _composed(stem):
            self.note_name(stem, names[0], (CASE,))
        return self.listing.path(names[0])

    def _allowed(self, names: list[str], folder: str, asked: str = "") -> list[str]:
        """The pictures that a label in a folder may mean: not those of another split, unless the name says it."""
        split = split_of(f"{folder}/x")
        names = self._not_excluded(names)
        if split is None or split_of(asked) is not None:
            return names
        return [name for name in names if split_of(name) in (None, split)]

    def size_of(self, picture: Picture) -> tuple[int, int] | None:
        """(height, width) of a picture as it is shown, from its file's header; None, with a finding, if it has none."""
        if picture.path is None:
            try:
                return picture.embedded().shape[:2]
            except (ValueError, OSError) as error:
                self.findings.add(_DAMAGED, str(error))
            return None
        size = self.image_size(picture.path)
        return None if size is None else size.shown

    def image_size(self, path: Path) -> ImageSize | None:
        """What the header of an image file says; None, with a finding, if it cannot be read."""
        if path not in self._sizes:
            try:
                self._sizes[path] = image_size(path)
            except (ValueError, OSError) as error:
                self._sizes[path] = None
                self.findings.add(_DAMAGED, str(error))
        return self._sizes[path]


def _delimiter(line: str) -> str:
    """What separates the columns of a csv file, by its first line: Excel writes semicolons in many countries."""
    return max(",;\t", key=line.count)


def nearest(names: list[str], folder: str) -> list[str]:
    """Of pictures of one name, those whose folders have most of the folders of a label: train of labels/train."""
    parts = set(folded(folder).split("/"))
    shared = [len(parts & set(folded(folder_of(name)).split("/"))) for name in names]
    nearest = [name for name, count in zip(names, shared, strict=True) if count == max(shared)]
    return [name for name in nearest if folder_of(name) == folder] or nearest


def own_list(lists: Mapping[str, Any], label: str, rank: Callable[[str, bool, int], Any]) -> Any:
    """The class list of a label file, in a folder that may hold several exports.

    lists: {file: its classes}. rank: of a file, by whether its folder is above the label, and how many folders they
    share; the highest counts. Raises: ValueError if several that differ have it.
    """
    ranks = {}
    for file in lists:
        folders, others = folder_of(file).split("/"), label.split("/")[:-1]
        is_above = folders == [""] or folders == others[: len(folders)]
        ranks[file] = rank(file, is_above, len(posixpath.commonprefix([folders, others])))
    highest = max(ranks.values())
    near = [file for file in lists if ranks[file] == highest]
    for other in near:
        if lists[other] != lists[near[0]]:
            raise ValueError(
                f"the class lists {utils.printable(near[0])} and {utils.printable(other)} differ, and neither is "
                f"nearer to {utils.printable(label)}: keep the one that is meant, or put each above its own labels"
            )
    return lists[near[0]]


def _reason(error: Exception) -> str:
    """What is wrong with an entry, for people."""
    if isinstance(error, KeyError):
        return f"has no {utils.printable(error.args[0] if error.args else '', 40)}"
    return utils.printable(error)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@contextlib.contextmanager
def without_log(*names: str) -> Iterator[None]:
    """A context without the warnings of these loggers, because the same goes to the findings."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


############################################################
#  Splits
############################################################

_SPLITS = {
    "train": ("train", "training", "train2017", "train2014", "stage1_train"),
    "val": ("val", "valid", "validation", "val2017", "val2014", "dev"),
    "test": ("test", "testing", "test2017", "test2014"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}


def split_of(name: str) -> str | None:
    """train, val or test, if a folder of a path says so. The file's name does not: it may show a train."""
    for part in reversed(PurePosixPath(name.lower()).parts[:-1]):
        if part in _SPLIT_OF:
            return _SPLIT_OF[part]
    return None


def split_of_file(name: str) -> str | None:
    """train, val or test, if the first or last word of a label file's stem says so, or else a folder of its path.

    COCO's files are called instances_train, and some instances_test_easy: there the word after it counts as the first.
    """
    words = re.split(r"[-_. ]+", stem_of(name).lower().removeprefix("instances_"))
    return _SPLIT_OF.get(words[-1]) or _SPLIT_OF.get(words[0]) or split_of(name)


############################################################
#  Shapes
############################################################


class ObjectGroups:
    """The objects of a picture. Those of one class and group are parts of one object."""

    def __init__(self, size: tuple[int, int]) -> None:
        """size: (height, width) of the picture."""
        self.size = size
        self._objects: dict[Any, Object] = {}

    def add(self, parsed: Object, group: Any) -> None:
        """Adds an object. group: a number or text; anything else is none, and so is an empty text."""
        is_group = type(group) in (int, str) and group != ""
        key = (parsed.name, parsed.is_crowd, group) if is_group else len(self._objects)
        if key in self._objects:
            self._objects[key].join(parsed, self.size)
        else:
            self._objects[key] = parsed

    @property
    def objects(self) -> list[Object]:
        """The objects, in the order of their first parts."""
        return list(self._objects.values())


def point_array(points: Any) -> np.ndarray:
    """Points of a file as float64 [N, (x, y)]. Raises: ValueError for anything else, and for absurd numbers."""
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        raise ValueError("has points that are no numbers") from None
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError("has points that are no list of [x, y]")
    if not (np.abs(array) <= utils.MAX_COORDINATE).all():
        raise ValueError("has points that are not finite, or absurd")
    return array


def whole_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as a label file says it, as numbers or text; None if that is no size of a picture."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and size[0] * size[1] <= utils.MAX_IMAGE_PIXELS else None


def closed_ring(points: np.ndarray) -> np.ndarray:
    """The points, checked to enclose something. Raises: ValueError for fewer than 3 different ones."""
    if len(np.unique(points, axis=0)) < 3:
        raise ValueError(f"has a polygon of {len(points)} points, which encloses nothing")
    return points

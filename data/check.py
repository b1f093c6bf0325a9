"""Checks a data set: what is in it, and what is wrong with it.

    report = check(open_records("my_data"))
    print(report.text())

open_records finds the faults of label files; object_checks.py those of masks. This file adds what needs the pixels of
pictures, and files that belong to nothing.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import runtime
import utils
from data.images import ImageReader, Thumbnail, image_size, read_thumbnail, thumbnail_of
from data.large import open_large
from data.likeness import SIDE, find_alike
from data.listing import PICTURE_SUFFIXES, Listing, folder_of, stem_of, suffix_of
from data.object_checks import ObjectTable, check_objects, picture_name
from data.reading import DERIVED, UNREADABLE, Options, split_of
from data.recognise import EMPTY, UNLABELLED, Records
from data.records import ERROR, REMARK, SEVERITIES, SPLITS, WARNING, Fault, Picture

_CUT = Fault(ERROR, "pictures cannot be read, though their beginning can", "left out", "replace what is damaged")
_LABEL_ALONE = Fault(
    ERROR, "label files belong to no picture that is there", "left out", "put the pictures back, or delete the labels"
)
_NOT_LABELLED = Fault(
    WARNING, "pictures have no label", "left out, because nobody says whether there are objects",
    "--empty label takes them as pictures without objects",
)  # fmt: skip
_FOLDER_WITHOUT = Fault(REMARK, "pictures lie in folders that no label leads to", "left out")
_TAKEN_AS_EMPTY = Fault(REMARK, "pictures have no label", "taken to show no objects")
_NO_FILE = Fault(REMARK, "pictures have no label file", "taken to show no objects, as this format means it")
_SAME_FILE = Fault(WARNING, "pictures are there twice, as equal files", "both kept", "delete one of each pair")
_ALIKE = Fault(REMARK, "pairs of pictures in one split show the same", "both kept")
_LEAK = Fault(
    WARNING, "pictures of one split show the same as pictures of another (leakage), so the score will be too good",
    "both kept",
    "take them out of one of the splits",
)  # fmt: skip
_FEW = Fault(REMARK, "", "expect the result to vary with --seed by some points")
_NO_OBJECTS = Fault(ERROR, "there is no object that can be used", "")

OTHERS_OF_PARTLY = "what else they show is neither object nor background"

_FEW_PICTURES = 50
_NAME_FILES = {"classes.txt", "obj.names", "labels.txt", "names.txt", "train.txt", "val.txt", "test.txt"}
_MOST_NAMES = 3  # of places that a line of text shows
_MOST_CLASSES = 12  # that the text lists
WHOLE = "all"  # what the one part of a data set without splits is called


############################################################
#  The report
############################################################


@dataclasses.dataclass
class SplitFacts:
    """What a split holds."""

    pictures: int
    empty: int  # pictures without objects
    objects: dict[str, int]  # by class, without crowds
    crowds: int


@dataclasses.dataclass
class Report:
    """What check found. Sizes are in pixels; percentiles are those of 5, 50 and 95 %."""

    root: Path
    title: str  # of the format
    evidence: str
    splits: dict[str, SplitFacts]
    sizes: dict[str, int]  # "256 x 256" (width x height): pictures
    kinds: dict[str, int]  # "gray 8 bit, PNG": pictures
    sides: tuple[float, float, float] | None  # percentiles of the side of a box, the root of its area; None: no objects
    objects_a_picture: tuple[int, int]  # the middle and the most
    faults: dict[str, list[tuple[Fault, list[str]]]]  # {severity: [(fault, places)]}
    leaks: list[tuple[str, str]]  # pictures of two splits that show the same
    seconds: float
    table: ObjectTable  # of the objects that are left in the records
    alike: list[tuple[int, int]]  # places in Records.pictures of all pairs that show the same, leaks included
    thumbnails: list[Thumbnail]  # of Records.pictures

    @property
    def has_errors(self) -> bool:
        """Whether something is wrong that loses objects or pictures."""
        return bool(self.faults[ERROR])

    def to_json(self) -> dict[str, Any]:
        """Everything but the table and the thumbnails, in types that json.dump takes."""
        return {
            "format": self.title,
            "evidence": self.evidence,
            "dataset": str(self.root),
            "splits": {name: dataclasses.asdict(facts) for name, facts in self.splits.items()},
            "picture_sizes": self.sizes,
            "picture_kinds": self.kinds,
            "box_sides_5_50_95": self.sides,
            "objects_a_picture": dict(zip(("middle", "most"), self.objects_a_picture, strict=True)),
            **{
                f"{severity}s": [
                    {"what": fault.what, "done": fault.done, "fix": fault.fix, "count": len(places), "places": places}
                    for fault, places in faults
                ]
                for severity, faults in self.faults.items()
            },
            "leaks": self.leaks,
        }

    def text(self) -> str:
        """The report as check prints it."""
        return "\n".join([*_head_lines(self), "", *_count_lines(self), "", *fault_lines(self.faults)])


def _head_lines(report: Report) -> list[str]:
    names = [name for name in report.splits if name != WHOLE]
    splits = f", splits {' and '.join(names)}" if len(names) > 1 else f", only {names[0]}" if names else ", no splits"
    pictures = sum(facts.pictures for facts in report.splits.values())
    return [
        f"Format: {report.title} ({utils.printable(report.evidence, 300)}){splits}",
        f"Looked at {_count(pictures, 'picture')} and {_count(len(report.table.classes), 'object')} "
        f"in {report.seconds:.1f} s",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _few(pictures: int) -> str:
    return f"{_count(pictures, 'picture')} {'is' if pictures == 1 else 'are'} few"


def _count_lines(report: Report) -> list[str]:
    """The table of counts: a column for each split, and a note on the right."""
    splits = list(report.splits.values())
    totals = Counter()
    for facts in splits:
        totals.update(facts.objects)
    middle, most = report.objects_a_picture
    load = f"{middle} a picture in the middle, {most} at most"
    rows = [("", list(report.splits), "")]
    rows += [("pictures", [facts.pictures for facts in splits], _picture_words(report))]
    rows += [("without objects", [facts.empty for facts in splits], "")]
    if len(totals) != 1:
        rows += [("objects", [sum(facts.objects.values()) for facts in splits], load)]
    names = [name for name, _ in totals.most_common(_MOST_CLASSES)]
    for name in names:
        rows += [(_shown(name), [facts.objects.get(name, 0) for facts in splits], load if len(totals) == 1 else "")]
    if any(facts.crowds for facts in splits):
        rows += [("crowds, ignored", [facts.crowds for facts in splits], "")]
    first = max(len("side of a box, px"), *(len(row[0]) for row in rows))
    lines = []
    for title, cells, note in rows:
        shown = "".join(f"{cell:>9}" if isinstance(cell, str) else f"{cell:>9,}" for cell in cells)
        lines.append(f"{title:<{first}}{shown}     {note}".rstrip())
    if len(totals) > len(names):
        lines.append(f"and {len(totals) - len(names)} more classes, which check.json lists")
    if report.sides:
        lines.append(f"{'side of a box, px':<{first}}   {' .. '.join(map(_number, report.sides))} (5 %, middle, 95 %)")
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _shown(name: str) -> str:
    """A class name in the table, with quotes where spaces at its ends would not be seen."""
    name = utils.printable(name, 40)
    return f'"{name}"' if name != name.strip() else name


def _picture_words(report: Report) -> str:
    sizes, kinds = list(report.sizes), list(report.kinds)
    if not sizes:
        return ""
    if len(sizes) > 1:
        sides = np.array([size.split(" x ") for size in sizes], int)
        low, high = sides.min(axis=0), sides.max(axis=0)
        size = f"{low[0]} to {high[0]} x {low[1]} to {high[1]}"
    else:
        size = sizes[0]
    return f"{size}, {utils.listed(kinds, 2)}"


_TITLES = {ERROR: "Errors", WARNING: "Warnings", REMARK: "Remarks"}


def fault_lines(faults: dict[str, list[tuple[Fault, list[str]]]]) -> list[str]:
    """The faults by severity: counted, with at most three places each, what was done, and how to mend it."""
    lines = []
    for severity in SEVERITIES:
        title = _TITLES[severity]
        if not faults[severity]:
            lines += [f"{title:<9} none"] if severity != REMARK else []
            continue
        lines += [title]
        for fault, places in faults[severity]:
            lines += [f"  {sentence(fault, places)}"]
            lines += [f"    -> {fault.fix}"] if fault.fix else []
    return lines


def sentence(fault: Fault, places: list[str]) -> str:
    """A fault in one line: "2 polygons cross themselves: a.jpg: id 3, b.jpg: id 9: filled as they are"."""
    named = [utils.printable(place, 300) for place in places if place]
    count = f"{len(places):,} " if named and fault.what else ""
    what = singular(fault.what) if len(named) == 1 else fault.what
    parts = [count + what, utils.listed(named, _MOST_NAMES), f"-- {fault.done}" if fault.done else ""]
    text = ": ".join(part for part in parts[:2] if part)
    return f"{text} {parts[2]}".rstrip()


_VERBS = {
    "are": "is", "have": "has", "carry": "carries", "lie": "lies", "reach": "reaches", "cross": "crosses",
    "name": "names", "belong": "belongs", "differ": "differs", "show": "shows", "look": "looks", "mark": "marks",
    "cannot": "cannot",
}  # fmt: skip


_SINGULAR = {"their": "its", "themselves": "itself", "themselves,": "itself,"}


def singular(what: str) -> str:
    """The words of a Fault for a single place: "pictures have no label" becomes "picture has no label"."""
    words = what.split(" ")
    verb = next((i for i, word in enumerate(words) if word in _VERBS and i), None)
    noun = 0 if verb is None or words[0] == "pairs" or "of" in words[:verb] else verb - 1
    if verb is not None:
        words[verb:] = [_VERBS[words[verb]], *(_SINGULAR.get(word, word) for word in words[verb + 1 :])]
    if words[noun].endswith("ies"):
        words[noun] = words[noun][:-3] + "y"
    elif words[noun].rstrip(",").endswith("s"):
        words[noun] = words[noun].replace("s,", ",") if words[noun].endswith(",") else words[noun][:-1]
    return " ".join(words)


############################################################
#  The check
############################################################


def check(records: Records, options: Options | None = None) -> Report:
    """Checks a data set. Objects and pictures that cannot be used are taken out of records; the report names them.

    options: those that the records were opened with.
    """
    start = time.perf_counter()
    options = options or Options()
    check_orphans(records, options)
    thumbnails = check_files(records)
    table = check_objects(records, options)
    if not len(table.classes):
        records.findings.add(_NO_OBJECTS, "")
    if partly := partly_labelled(records.pictures):
        records.findings.add(Fault(REMARK, partly, OTHERS_OF_PARTLY), "")
    alike, leaks = _check_likeness(records, thumbnails)
    if len(records.pictures) < _FEW_PICTURES:
        few = dataclasses.replace(_FEW, what=_few(len(records.pictures)))
        records.findings.add(few, "")
    return _report(records, thumbnails, table, alike, leaks, time.perf_counter() - start)


def partly_labelled(pictures: Iterable[Picture]) -> str:
    """How many pictures are labelled for some classes only, and for which; "" if all are labelled for all."""
    counts = Counter(picture.labelled_classes for picture in pictures if picture.labelled_classes is not None)
    if not counts:
        return ""
    parts = [
        f"{count:,} for {' and '.join(utils.printable(name, 40) for name in names) or 'none'}"
        for names, count in counts.most_common()
    ]
    are = "picture is" if counts.total() == 1 else "pictures are"
    return f"{counts.total():,} {are} labelled for some classes only: {utils.listed(parts, 6)}"


def _report(
    records: Records,
    thumbnails: list[Thumbnail],
    table: ObjectTable,
    alike: list[tuple[int, int]],
    leaks: list[tuple[str, str]],
    seconds: float,
) -> Report:
    pictures = records.pictures
    sides = np.sqrt((table.boxes[:, 2:] - table.boxes[:, :2]).prod(axis=1))[~table.crowds]
    counts = np.bincount(table.pictures[~table.crowds], minlength=len(pictures))
    sizes = Counter(f"{picture.width} x {picture.height}" for picture in pictures)
    kinds = Counter(f"{thumbnail.kind}, {thumbnail.format}".rstrip(", ") for thumbnail in thumbnails)
    return Report(
        records.root,
        records.title,
        records.evidence,
        _split_facts(pictures, table, counts),
        dict(sizes.most_common()),
        dict(kinds.most_common()),
        tuple(np.percentile(sides, [5, 50, 95]).tolist()) if len(sides) else None,
        (int(np.median(counts)), int(counts.max())) if len(counts) else (0, 0),
        {severity: list(records.findings.of(severity).items()) for severity in SEVERITIES},
        leaks,
        seconds,
        table,
        alike,
        thumbnails,
    )


def _split_facts(pictures: list[Picture], table: ObjectTable, counts: np.ndarray) -> dict[str, SplitFacts]:
    splits = np.array([picture.split or WHOLE for picture in pictures])
    facts = {}
    for split in [name for name in (*SPLITS, WHOLE) if (splits == name).any()]:
        is_inside = (splits == split)[table.pictures]
        classes = np.bincount(table.classes[is_inside & ~table.crowds], minlength=len(table.class_names))
        facts[split] = SplitFacts(
            int((splits == split).sum()),
            int((counts[splits == split] == 0).sum()),
            {name: count for name, count in zip(table.class_names, classes.tolist(), strict=True) if count},
            int((is_inside & table.crowds).sum()),
        )
    return facts


############################################################
#  Files that belong to nothing
############################################################


def check_orphans(records: Records, options: Options) -> None:
    """Finds label files that nobody can read, labels without pictures, and pictures without labels.

    Pictures without labels are taken out of records, or added to them, as options.empty says.
    """
    listing = Listing(records.root)
    used = {picture_name(records, picture) for picture in records.pictures}
    labels = {picture.label for picture in records.pictures if picture.label} | set(records.labels)
    _check_unread(records, listing, labels)
    named = _named_files(records)
    counts = Counter(picture.label for picture in records.pictures if picture.label)
    lonely = _lonely_labels(listing, labels, used, max(counts.values(), default=1) == 1) - named
    records.findings.add(_LABEL_ALONE, *sorted(lonely))
    without_file = [name for picture in records.pictures if not picture.label and picture.is_labelled
                    and not named & {name := picture_name(records, picture), stem_of(name)}]  # fmt: skip
    records.findings.add(_NO_FILE, *without_file)
    beside, elsewhere = _other_pictures(listing, used | named | labels, used, labels)
    unlabelled = [picture for picture in records.pictures if not picture.is_labelled]
    for said in (UNLABELLED, EMPTY):  # by open_records, of fewer pictures
        records.findings.places.pop(said, None)
    fault = _TAKEN_AS_EMPTY if options.empty == "label" else _NOT_LABELLED
    records.findings.add(fault, *(picture_name(records, picture) for picture in unlabelled), *beside)
    records.findings.add(_FOLDER_WITHOUT, *elsewhere)
    if options.empty == "label":
        for picture in unlabelled:
            picture.is_labelled = True
        records.pictures += _empty_pictures(records, beside)
    else:
        records.pictures[:] = [picture for picture in records.pictures if picture.is_labelled]


def _check_unread(records: Records, listing: Listing, labels: set[str]) -> None:
    """Finds JSON files that are damaged, and that no format took for its own because of that."""
    named = _named_files(records)
    for name in listing.of(".json", ".geojson"):
        if name not in labels | named:
            try:
                listing.json(name)
            except (ValueError, OSError) as error:
                records.findings.add(UNREADABLE, str(error))


def _named_files(records: Records) -> set[str]:
    """The files that some finding names at the beginning of a place, or as all of it."""
    places = [place for places in records.findings.places.values() for place in places]
    prefix = f"{records.root}{os.sep}"
    starts = set()
    for place in places:
        text = place.removeprefix("image ").removeprefix(prefix)
        ends = [len(text), *(match.start() for match in re.finditer(r"[: ]", text))]
        starts |= {text[:end] for end in ends[:12]}
    return starts


def _other_pictures(
    listing: Listing, known: set[str], used: set[str], labels: set[str]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Pictures that are not known: those beside used ones, and those in folders that no label leads to.

    Where labels are pictures themselves, the others may be labels of another kind: only those beside used ones count.
    """
    folders = {folder_of(name) for name in used}
    label_folders = {folder_of(label) for label in labels if suffix_of(label) in PICTURE_SUFFIXES}
    label_folders |= {label for label in labels if not suffix_of(label)}  # a folder of masks
    others = [name for name in listing.pictures if name not in known]
    beside = [name for name in others if folder_of(name) in folders - label_folders]
    return beside, [] if label_folders else [name for name in others if folder_of(name) not in folders]


def _lonely_labels(listing: Listing, labels: set[str], used: set[str], are_single: bool) -> set[str]:
    """Files that look like labels of pictures, and that no picture has.

    are_single: whether each picture has a label file of its own. Otherwise other files are of another kind.
    """
    if not are_single or len(labels) < 2:
        return set()
    kinds = {(folder_of(label), suffix_of(label)) for label in labels}
    known, folders = labels | used, {folder_of(name) for name in used}
    names = (name for name in listing.files if (folder_of(name), suffix_of(name)) in kinds and name not in known)
    return {
        name
        for name in names
        if not DERIVED.search(stem_of(name))
        and name.rpartition("/")[2].lower() not in _NAME_FILES
        and not (suffix_of(name) in PICTURE_SUFFIXES and folder_of(name) in folders)
    }


def _empty_pictures(records: Records, names: list[str]) -> list[Picture]:
    """Pictures without objects, of files that no label names."""
    pictures = []
    for name in names:
        path = records.root / name
        height, width = image_size(path).shown
        pictures.append(Picture(path, "", split=split_of(name), height=height, width=width))
    return pictures


############################################################
#  Pixels
############################################################


def check_files(records: Records) -> list[Thumbnail]:
    """Reads every picture, and of large ones parts. Those that cannot be read are taken out of records.

    Returns: a thumbnail of each other.
    """
    with concurrent.futures.ThreadPoolExecutor(min(4, runtime.usable_cores())) as threads:
        results = list(threads.map(_thumbnail, records.pictures, chunksize=16))
    kept = [not isinstance(result, str) for result in results]
    for picture, result in zip(records.pictures, results, strict=True):
        if isinstance(result, str):
            message = result.replace(f"{records.root}{os.sep}", "").removeprefix("image ")
            records.findings.add(_CUT, message if picture.path else f"{picture.label}: {message}")
    records.pictures[:] = [picture for picture, is_kept in zip(records.pictures, kept, strict=True) if is_kept]
    return [result for result in results if not isinstance(result, str)]


def _thumbnail(picture: Picture) -> Thumbnail | str:
    """A thumbnail, or what is wrong with the picture."""
    try:
        if picture.path is not None:
            large = open_large(picture.path, ImageReader(), not picture.is_stored)
            if large is not None:  # all of it would take long, and memory
                return thumbnail_of(large.sample(), SIDE, large.bits, "TIFF")
            return read_thumbnail(picture.path, SIDE)
        return thumbnail_of(picture.embedded(), SIDE)
    except (ValueError, OSError) as error:
        return str(error)


def _check_likeness(
    records: Records, thumbnails: list[Thumbnail]
) -> tuple[list[tuple[int, int]], list[tuple[str, str]]]:
    """Finds pictures that show the same. Returns: the places of all pairs, and the names of those of two splits."""
    pictures = records.pictures
    if not pictures:
        return [], []
    pairs = find_alike(np.stack([thumbnail.pixels for thumbnail in thumbnails]))
    names = functools.partial(picture_name, records)
    leaks = []
    for i, j in pairs:
        first, second = pictures[i], pictures[j]
        place = f"{names(first)} and {names(second)}"
        if first.split != second.split:
            leaks.append((names(first), names(second)))
            records.findings.add(_LEAK, place)
        else:
            records.findings.add(_SAME_FILE if _are_equal(first, second) else _ALIKE, place)
    return pairs, leaks


def _are_equal(first: Picture, second: Picture) -> bool:
    """Whether two files have the same bytes."""
    if first.path is None or second.path is None or first.path.stat().st_size != second.path.stat().st_size:
        return False
    return len({hashlib.sha256(picture.path.read_bytes()).digest() for picture in (first, second)}) == 1

"""Recognises the format of a data set by looking at its files, and reads it.

open_records("my_data") finds the format, and yields pictures with objects whose masks are in the pixels of the picture
as it is loaded. All that was decided and all that is wrong with the data is in its findings.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

import utils
from data.formats import (
    binary_masks,
    cityscapes,
    coco_records,
    cvat,
    datumaro,
    geojson,
    imagej,
    isat,
    label_images,
    label_studio,
    labelme,
    labelme_xml,
    open_images,
    sa1b,
    supervisely,
    via,
    voc,
    yolo,
)
from data.listing import parse_xml, stem_of, suffix_of
from data.reading import DERIVED, NO_PICTURE, Claim, Options, Reading, split_of, split_of_file
from data.records import (
    CENTRES,
    CONTOUR,
    ERROR,
    REMARK,
    WARNING,
    Fault,
    Findings,
    Object,
    Picture,
    has_shape_of,
    nearest_pixels,
)

# The order in which formats look. Label images and masks are pictures, which other formats have too: they look last.
FORMATS: tuple[ModuleType, ...] = (
    coco_records, datumaro, sa1b, labelme, isat, via, cvat, label_studio, supervisely, geojson, yolo, open_images,
    cityscapes, voc, labelme_xml, imagej, binary_masks, label_images,
)  # fmt: skip
FORMAT_NAMES = tuple(module.NAME for module in FORMATS)
_PICTURES_ONLY = (binary_masks, label_images)
WINNING_SHARE = 0.9

_RENAMED = Fault(REMARK, "", "by --rename")
_LINKS = Fault(WARNING, "links lead out of the data set or to nothing", "not followed", "copy the files into it")
_RESULTS = Fault(
    REMARK, "folders have names of folders of results", "not looked into", "rename them, if they hold labels"
)
_NO_LABELS = "--dataset {}: {:,} pictures and no labels of any format that is known here ({})"

_PICKLES = (
    "Cellpose's _seg.npy files are pickles, which can run programs: they are never read. Its menu File, Save masks "
    "as PNG/tif writes label images, which are"
)
_PACKED = "There are archives ({}): unpack them, and name the folder that has pictures and labels"


def _packed(reading: Reading) -> list[str]:
    return reading.listing.of(".zip", ".tar", ".tgz", ".rar", ".7z")


def _hints(reading: Reading) -> Iterator[str]:
    """What files are, that are no labels of a known format."""
    if any(name.endswith("_seg.npy") for name in reading.listing.of(".npy")):
        yield _PICKLES
    if packed := _packed(reading):
        yield _PACKED.format(utils.listed(map(utils.printable, packed), 3))


@dataclasses.dataclass
class Records:
    """A data set as its label files have it."""

    root: Path
    title: str  # of the format
    evidence: str  # by which it was recognised
    pictures: list[Picture]
    findings: Findings
    class_names: Sequence[str] = ()  # of all classes, if others than those of the objects are known
    labels: Sequence[str] = ()  # names of the label files that were read, relative to root


def open_records(root: str | Path, format_name: str | None = None, options: Options | None = None) -> Records:
    """Reads a data set of any format. Raises: ValueError or FileNotFoundError if there is nothing that can be used.

    format_name: one of FORMAT_NAMES; None: recognise it.
    """
    reading = Reading(root, options)
    links, results = reading.listing.links, reading.listing.passed_over
    reading.findings.add(_LINKS, *links)
    reading.findings.add(_RESULTS, *results)
    try:
        return _read(reading, root, format_name)
    except ValueError as error:  # they may be why nothing can be used
        said = [f"links are not followed that lead out of the folder: {utils.listed(links, 3)}"] if links else []
        said += (
            [f"nothing is read in {utils.listed(results, 3)}, which have names of folders of results"]
            if results
            else []
        )
        if said:
            error.args = (f"{error}; {utils.printable('; '.join(said), 2000)}",)
        raise


def _read(reading: Reading, root: str | Path, format_name: str | None) -> Records:
    module, claim = recognise(reading, format_name)
    pictures = list(module.read(reading, claim.labels))
    if not pictures:
        raise ValueError(f"--dataset {root}: no picture of the {module.TITLE} labels can be used{_first(reading)}")
    pictures = _join_same_files(_drop_wrong_guesses(pictures, reading), reading)
    pictures += _without_labels(pictures, claim.labels, reading)
    if getattr(module, "WHOLE_NUMBERS_ARE_CONTOURS", False) or reading.options.filling != "auto":
        settle_filling(pictures, reading.findings, reading.options.filling)
    settle_sizes(pictures, reading)
    _settle_splits(pictures)
    _rename_classes(pictures, reading)
    labels = [*claim.labels, *sorted(reading.excluded)]
    if not pictures:
        raise ValueError(f"--dataset {root}: no picture of the {module.TITLE} labels can be used{_first(reading)}")
    return Records(reading.listing.root, module.TITLE, claim.evidence, pictures, reading.findings, labels=labels)


def _rename_classes(pictures: list[Picture], reading: Reading) -> None:
    """Gives classes the names that options.rename says. Raises: ValueError for a class that no object has."""
    new_names = dict(reading.options.rename)
    if not new_names:
        return
    objects = [parsed for picture in pictures for parsed in picture.objects]
    counts = Counter(parsed.name for parsed in objects)
    for old, new in new_names.items():
        if not counts[old]:
            names = utils.listed([f'"{utils.printable(name)}"' for name in sorted(counts)], 8)
            raise ValueError(
                f'--rename "{utils.printable(old)}={utils.printable(new)}": no object is called so, but {names}'
            )
        reading.findings.add(_RENAMED, f'{counts[old]:,} objects, "{old}", are called "{new}"')
    for parsed in objects:
        parsed.name = new_names.get(parsed.name, parsed.name)
    for picture in pictures:
        if picture.labelled_classes is not None:  # a class that several names become is labelled where all of them are
            others = counts.keys() - set(picture.labelled_classes)
            without = {new_names.get(name, name) for name in others}
            names = [new_names.get(name, name) for name in picture.labelled_classes]
            picture.labelled_classes = tuple(name for name in dict.fromkeys(names) if name not in without)


def recognise(reading: Reading, format_name: str | None = None) -> tuple[ModuleType, Claim]:
    """The format that explains the labels, and what it explains.

    Raises: ValueError if no format does, or if two do.
    """
    claims = {}
    for module in FORMATS:
        if format_name is not None and format_name != module.NAME:
            continue
        if module in _PICTURES_ONLY and format_name is None:
            most = max((claim.pictures for claim in claims.values()), default=0)
            if most * 10 > len(reading.listing.pictures):
                continue  # the masks of another format, such as those of VOC
        claim = module.claim(reading)
        if claim is not None and claim.pictures:
            claims[module] = claim
    if not claims:
        if format_name is not None:
            raise ValueError(
                f"--format {format_name}: --dataset {reading.listing.root} has no such labels{_others(reading)}"
            )
        if not reading.listing.files:
            raise ValueError(f"--dataset {reading.listing.root}: the folder is empty")
        names = ", ".join(module.TITLE for module in FORMATS)
        message = _NO_LABELS.format(reading.listing.root, len(reading.listing.pictures), names)
        causes = "".join(f"; {hint}" for hint in _hints(reading)) + (_first(reading) or _damaged(reading))
        raise ValueError(message + (causes or "; are the labels in another folder?"))
    most = max(claim.pictures for claim in claims.values())
    winners = {module: claim for module, claim in claims.items() if claim.pictures >= WINNING_SHARE * most}
    if len(winners) > 1:
        choices = " and ".join(f"{module.TITLE} ({claim.pictures:,} pictures)" for module, claim in winners.items())
        flags = " or ".join(f"--format {module.NAME}" for module in winners)
        raise ValueError(f"--dataset {reading.listing.root} has labels of two formats: {choices}; choose by {flags}")
    module, claim = next(iter(winners.items()))
    for other, ignored in claims.items():
        if other is not module:
            what = f"label files look like {other.TITLE}"
            reading.findings.add(Fault(WARNING, what, "not used", f"--format {other.NAME}"), *ignored.labels)
    return module, claim


def _damaged(reading: Reading) -> str:
    """Label files that cannot be read at all, for a message."""
    problems = []
    for name in reading.listing.samples(reading.listing.of(".json", ".geojson", ".xml")):
        try:
            if suffix_of(name) == ".xml":
                parse_xml(reading.listing.text(name), name)
            else:
                reading.listing.json(name)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return f"; files are damaged: {utils.listed(problems, 3)}" if problems else ""


def _others(reading: Reading) -> str:
    """What the labels are instead of the format that was asked for, for a message."""
    found = [(module, module.claim(reading)) for module in FORMATS if module not in _PICTURES_ONLY]
    names = [f"{module.TITLE} (--format {module.NAME})" for module, claim in found if claim and claim.pictures]
    return f"; it has {utils.listed(names)}" if names else ""


def _first(reading: Reading) -> str:
    """The first error, for a message."""
    for fault, places in reading.findings.of(ERROR).items():
        return f": {len(places)} {fault.what}: {utils.listed(places, 3)}"
    return ""


############################################################
#  Decisions about the whole data set
############################################################


def _settle_splits(pictures: Sequence[Picture]) -> None:
    """Takes the splits from the names of label files of many pictures, train.xml and val.xml, if folders say none.

    Names of label files of single pictures say nothing: train_01.json may show a train.
    """
    splits = {picture.label: split_of_file(picture.label) for picture in pictures if picture.label}
    are_shared = len(splits) < sum(bool(picture.label) for picture in pictures)
    if not are_shared or len(set(splits.values()) - {None}) < 2 or any(picture.split for picture in pictures):
        return
    for picture in pictures:
        picture.split = splits.get(picture.label)


_TWICE = Fault(
    WARNING, "pictures have two entries or label files", "their objects joined, equal ones once", "remove one of them"
)
UNLABELLED = Fault(REMARK, "pictures have no label", "not used", "--empty label takes them as pictures without objects")
EMPTY = Fault(REMARK, "pictures have no label", "taken to show no objects, by --empty label")


def _drop_wrong_guesses(pictures: Sequence[Picture], reading: Reading) -> list[Picture]:
    """The pictures without those that belong to a nearer label.

    A label whose picture is missing finds another one of its name. That is wrong if this has a label that is nearer to
    it, and if the label lies among pictures of its own, as b/labels/1.xml beside b/images/ does for a/images/1.png.
    """
    labels = defaultdict(set)
    for picture in pictures:
        if picture.path is not None:
            labels[picture.path].add(picture.label)
    folders = {part for name in reading.listing.pictures for part in _folders_of(name)}
    wrong = set()
    for path, names in labels.items():
        above = _folders_of(reading.listing.relative(path))
        shared = {name: len(set(_folders_of(name)) & set(above)) for name in names}
        for name in names:
            own = [folder for folder in _folders_of(name) if folder not in above]
            if shared[name] < max(shared.values()) and own and own[0] in folders:
                wrong.add((name, path))
    reading.findings.add(NO_PICTURE, *sorted({f"{name}: {path.name}" for name, path in wrong}))
    return [picture for picture in pictures if (picture.label, picture.path) not in wrong]


def _folders_of(name: str) -> list[str]:
    """The folders of a path, from the outermost: a, a/b for a/b/c.png."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _join_same_files(pictures: Iterable[Picture], reading: Reading) -> list[Picture]:
    """One Picture for each file."""
    joined: dict = {}
    for number, picture in enumerate(pictures):
        key = picture.path or number
        if key not in joined:
            joined[key] = picture
            continue
        first = joined[key]
        name = reading.listing.relative(first.path)
        reading.findings.add(_TWICE, f"{name} ({first.label or 'no label'}, {picture.label or 'no label'})")
        known = {parsed.content for parsed in first.objects}
        first.objects += [parsed for parsed in picture.objects if parsed.content not in known]
        first.split = first.split or picture.split
        first.is_labelled |= picture.is_labelled
        both = first.labelled_classes, picture.labelled_classes
        first.labelled_classes = None if None in both else tuple(dict.fromkeys(both[0] + both[1]))
    return list(joined.values())


def _without_labels(pictures: list[Picture], labels: Sequence[str], reading: Reading) -> list[Picture]:
    """The pictures that lie beside labelled ones, and of which no label says anything. Nobody knows what they show."""
    folders = {picture.path.parent for picture in pictures if picture.path is not None}
    known = {picture.path for picture in pictures} | {reading.listing.path(label) for label in labels}
    names = [
        name for name in reading.listing.pictures
        if not DERIVED.search(stem_of(name)) and (path := reading.listing.path(name)).parent in folders
        and path not in known and name not in reading.excluded
    ]  # fmt: skip
    is_empty = reading.options.empty == "label"
    unlabelled = [picture for picture in pictures if not picture.is_labelled]
    for picture in unlabelled:
        picture.is_labelled = is_empty
        names.append(reading.listing.relative(picture.path) if picture.path is not None else picture.label)
    reading.findings.add(EMPTY if is_empty else UNLABELLED, *names)
    names = names[: len(names) - len(unlabelled)]
    return [Picture(reading.listing.path(name), "", split=split_of(name), is_labelled=is_empty) for name in names]


_CONTOURS = "{:,} polygons have whole numbers throughout, as contours through pixel centres have"


def settle_filling(pictures: Sequence[Picture], findings: Findings, filling: str = "auto") -> None:
    """Fills the polygons of a set with their outline, if all their coordinates are whole numbers, within 0.02 px.

    OpenCV's contours go through the centres of pixels. Without the outline they lose half a pixel on each side.

    filling: CENTRES or CONTOUR of data/records.py for all polygons, or auto.
    """
    objects = [parsed for picture in pictures for parsed in picture.objects]
    rings = [ring for parsed in objects for ring in parsed.rings]
    if filling == "auto":
        if not rings or any((np.abs(ring - np.round(ring)) > 0.02).any() for ring in rings):
            return
        filling = CONTOUR
        advice = "--filling centres, if they go along the edges of pixels"
        findings.add(Fault(REMARK, _CONTOURS.format(len(rings)), "filled with their outline", advice), "")
        for parsed in objects:
            parsed.rings = [np.round(ring) for ring in parsed.rings]
    for parsed in objects:
        parsed.filling = filling


_SCALED = Fault(WARNING, "pictures have another size than their labels say, by one factor", "labels scaled")
_MISFIT = Fault(
    ERROR, "pictures have another size than their labels say", "left out", "use the pictures that were labelled"
)
_TURNED = Fault(REMARK, "pictures are turned by EXIF, and their labels are of the stored pixels", "loaded as stored")
_UNKNOWN = Fault(
    REMARK, "pictures are turned by EXIF, which their labels do not show", "labels taken as drawn on the turned picture"
)


def settle_sizes(pictures: list[Picture], reading: Reading) -> None:
    """Gives each picture its size and frame, from its header and what the labels say. Drops those that misfit."""
    kept = []
    for picture in pictures:
        if picture.path is None:
            size = reading.size_of(picture)
            picture.height, picture.width = size or (0, 0)
            kept += [picture] if size else []
            continue
        size = reading.image_size(picture.path)
        if size is None:
            continue
        picture.height, picture.width = size.shown
        name = reading.listing.relative(picture.path)
        said = picture.label_size
        if said is None or said == size.shown:
            if size.orientation > 1 and picture.objects and (said is None or size.is_ambiguous):
                reading.findings.add(_UNKNOWN, name)
        elif said == size.stored:
            picture.is_stored, (picture.height, picture.width) = True, size.stored
            reading.findings.add(_TURNED, name)
        elif not _rescale(picture, said):
            reading.findings.add(_MISFIT, f"{name}: {size.shown[1]} x {size.shown[0]} instead of {said[1]} x {said[0]}")
            continue
        else:
            place = f"{name}: {size.shown[1]} x {size.shown[0]} instead of {said[1]} x {said[0]}"
            reading.findings.add(_SCALED, place)
        kept.append(picture)
    pictures[:] = kept


def _rescale(picture: Picture, said: tuple[int, int]) -> bool:
    """Scales the objects to the picture's size, if both sides differ by one factor, within 1 %. Returns whether so."""
    if not has_shape_of(said, (picture.height, picture.width)):
        return False
    for parsed in picture.objects:
        _rescale_object(parsed, said, (picture.height, picture.width))
    return True


def _rescale_object(parsed: Object, said: tuple[int, int], size: tuple[int, int]) -> None:
    scale = np.array([size[1] / said[1], size[0] / said[0]])
    if parsed.rle is not None:
        parsed.rle = utils.mask_to_rle(nearest_pixels(utils.rle_to_mask(parsed.rle), size))
    parsed.rings, parsed.holes = [ring * scale for ring in parsed.rings], [hole * scale for hole in parsed.holes]
    parsed.filling = CENTRES
    if parsed.box is not None:
        parsed.box = tuple(value * factor for value, factor in zip(parsed.box, np.tile(scale, 2), strict=True))

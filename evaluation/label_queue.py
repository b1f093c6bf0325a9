"""The labels of a data set beside what a model finds in its pictures: what `custom.py review` and `suggest` do.

    records ─ detect_pictures ─ Seen ─┬─ review ─ queue ─ review.json, page, labels with numbers
                                      └─ evaluation/suggest.py

Detections are kept in the output folder, as those of an evaluation: an interrupted run continues, and after labels were
corrected nothing is detected again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils
from config import Config
from data.classes import UNKNOWN, Classes, map_classes
from data.listing import IGNORED_FOLDERS
from data.object_checks import class_name, picture_name, sorted_names
from data.recognise import Records
from data.record_dataset import RecordDataset
from data.records import Object, Picture
from model import MaskRCNN

from .accept import chances
from .detect import detect_to_folder, evaluation_of
from .results import image_numbers
from .review import KINDS, LEAST_SCORE, MATCH_IOU, MISSING, WRONG_CLASS, Found, Labels, Suspect, reason, review_picture
from .stream import read_lines
from .words import count_of

LEAST_INSTANCES = 300  # detections of a picture, of which many have low scores


def detection_settings(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to change so that a model sees whole pictures and keeps what it is not sure of.

    config: of the model. given: settings that the user chose, which stay.
    """
    most = max(config.DETECTION_MAX_INSTANCES, min(LEAST_INSTANCES, config.POST_NMS_ROIS_INFERENCE))
    least = min(config.DETECTION_MIN_CONFIDENCE, LEAST_SCORE)
    wanted = config.detection_settings(DETECTION_MIN_CONFIDENCE=least, DETECTION_MAX_INSTANCES=most)
    return {name: value for name, value in wanted.items() if name not in given}


def check_output(output: Path, root: Path, flag: str) -> None:
    """Raises ValueError for an output folder inside of the data, which would change them. flag: that names the data."""
    inside, folder = output.resolve(), root.resolve()
    if inside.is_relative_to(folder) and not IGNORED_FOLDERS & {*inside.relative_to(folder).parts}:
        raise ValueError(
            f"--output {utils.printable(output)} lies inside of {flag} {utils.printable(root)}, in which nothing is "
            "changed; choose a folder outside of it"
        )


############################################################
#  Detection
############################################################


class Seen(NamedTuple):
    """A picture and what the model finds in it."""

    picture: Picture
    name: str  # below the folder of the data
    found: Found


def detect_pictures(model: MaskRCNN, records: Records, folder: Path, split: str | None = None) -> list[Seen]:
    """What a model finds in the pictures of records, of one split or of all. Labels play no part.

    folder: gets evaluation.json and detections/; what is there already is taken over.

    Raises: ValueError if there are no pictures, the folder has detections of something else, or a picture cannot be
        read; then all others are detected and kept.
    """
    pictures = [picture for picture in records.pictures if split in (None, picture.split)]
    if not pictures:
        splits = sorted({picture.split or "no split" for picture in records.pictures})
        raise ValueError(f"{utils.printable(records.root)} has no pictures in {split}; it has {', '.join(splits)}")
    bare = [dataclasses.replace(picture, objects=[], is_labelled=True) for picture in pictures]
    dataset = RecordDataset(dataclasses.replace(records, pictures=bare), None, model.class_names[1:])
    with model.prepared():
        detect_to_folder(model, dataset, dataset.image_ids, folder)
    numbers = image_numbers(dataset)
    found = _stored(model.config, folder)
    return [
        Seen(picture, picture_name(records, picture), found[number])
        for picture, number in zip(pictures, numbers, strict=True)
    ]


def _stored(config: Config, folder: Path) -> dict[int, Found]:
    """The detections that detect_to_folder has written, by the numbers of their images; a picture at a time, because
    entries in COCO's format take ten times the memory. Raises: ValueError for a damaged line.
    """
    found = {}
    for span, line in read_lines(folder, evaluation_of(folder)):
        if isinstance(line, str):
            raise ValueError(f"{span.path}, line {span.number}, is damaged: {line}. Run again: it is detected again")
        found[line.image_id] = _found(config, line.masks)
    return found


def _found(config: Config, entries: Sequence[Mapping[str, Any]]) -> Found:
    """The detections of a picture, from its results in COCO's format, whose categories are rows of the model."""
    masks = []
    for entry in entries:
        counts = entry["segmentation"]["counts"]
        masks.append({**entry["segmentation"], "counts": counts.encode() if isinstance(counts, str) else counts})
    ious = [entry["mask_iou"] for entry in entries]
    return Found.of(
        config, [entry["category_id"] for entry in entries], [entry["class_score"] for entry in entries],
        None if None in ious else ious, masks,
    )  # fmt: skip


def attributes_of(config: Config, found: Found, detection: int) -> dict[str, float]:
    """The numbers of a detection, by the names that all commands write: score, mask_iou, mask_score, accept."""
    score, iou = float(found.scores[detection]), float(found.mask_ious[detection])
    numbers = {"score": score, "mask_iou": iou, "mask_score": score * iou}
    if not config.USE_MASKIOU_HEAD:
        del numbers["mask_iou"]
    calibrated = chances(
        config, [int(found.rows[detection])], [score], [iou] if config.USE_MASKIOU_HEAD else None
    )  # fmt: skip
    if calibrated is not None:
        numbers["accept"] = float(calibrated[0, 0])
    return {name: round(value, 4) for name, value in numbers.items()}


############################################################
#  Review
############################################################


class Reviewed(NamedTuple):
    """A picture whose labels were looked at."""

    seen: Seen
    labels: Labels
    suspects: list[Suspect]


class Entry(NamedTuple):
    """A place in the queue."""

    reviewed: Reviewed
    suspect: Suspect
    place: str  # of the label: "annotations.json: id 17"; of a missing object, its picture's label file and its box
    why: str


@dataclasses.dataclass
class Review:
    """The labels of a data set, the most suspicious first."""

    pictures: list[Reviewed]
    queue: list[Entry]  # every label that was looked at, and every missing object
    looked_at: int  # labels
    crowds: int
    unknown: list[str]  # classes that the model does not have: their labels were not looked at
    notes: list[str]  # how classes were matched

    def counts(self, entries: Sequence[Entry]) -> dict[str, int]:
        """How many of some entries are of each kind."""
        kinds = [entry.suspect.kind for entry in entries]
        return {kind: kinds.count(kind) for kind in KINDS}

    def agreement(self) -> dict[str, float]:
        """The IoU of labels with the detections matched to them, in the middle, by the split of their pictures."""
        ious: dict[str, list[float]] = {}
        for reviewed in self.pictures:
            values = ious.setdefault(reviewed.seen.picture.split or "all", [])
            values += [
                suspect.iou
                for suspect in reviewed.suspects
                if suspect.kind not in (MISSING, WRONG_CLASS) and suspect.iou >= MATCH_IOU
            ]
        return {split: float(np.median(values)) for split, values in ious.items() if values}


def review(model: MaskRCNN, seen: Sequence[Seen]) -> Review:
    """Ranks all labels of pictures. Raises: ValueError if the model has none of their classes."""
    names = sorted_names([one.picture for one in seen])
    own = Classes.of(model)
    mapping = map_classes(Classes(["BG", *names]), Classes(own.names))
    row_of = dict(zip(names, mapping.rows[1:].tolist(), strict=True))
    if names and not any(row != UNKNOWN for row in row_of.values()):
        raise ValueError(
            f"the model knows {utils.listed(map(utils.printable, own.names[1:]), 5)}, and none of the classes of the "
            f"labels: {utils.listed(map(utils.printable, names), 5)}; was it trained on other data?"
        )
    pictures = []
    for one in seen:
        objects, size = one.picture.objects, (one.picture.height, one.picture.width)
        labelled = one.picture.labelled_classes
        of_labels = {row_of.get(name) for name in labelled or ()}
        unlabelled = [row for row in range(1, len(own.names)) if labelled is not None and row not in of_labels]
        labels = Labels(
            np.array([row_of[class_name(parsed)] for parsed in objects], np.int64),
            np.array([parsed.is_crowd for parsed in objects], bool),
            [parsed.mask(*size) for parsed in objects],
            unlabelled,
        )
        pictures.append(Reviewed(one, labels, review_picture(labels, one.found)))
    queue = [_entry(reviewed, suspect, own.names) for reviewed in pictures for suspect in reviewed.suspects]
    queue.sort(key=lambda entry: -entry.suspect.suspicion)
    return Review(
        pictures,
        queue,
        sum(entry.suspect.label is not None for entry in queue),
        sum(int(reviewed.labels.crowds.sum()) for reviewed in pictures),
        [name for name, row in row_of.items() if row == UNKNOWN],
        [utils.printable(note) for note in mapping.notes],
    )


def _entry(reviewed: Reviewed, suspect: Suspect, class_names: Sequence[str]) -> Entry:
    picture = reviewed.seen.picture
    places = [parsed.place for parsed in picture.objects]
    label = utils.printable(picture.label)
    if suspect.label is None:
        y1, x1, y2, x2 = utils.rle_to_bbox(reviewed.seen.found.masks[suspect.detection])
        place = f"{label}: not there, x {x1} to {x2}, y {y1} to {y2}"
    else:
        place = f"{label}: {utils.printable(places[suspect.label])}"
    return Entry(reviewed, suspect, place, reason(suspect, reviewed.labels, reviewed.seen.found, class_names, places))


def numbers_of(model: MaskRCNN, entry: Entry) -> dict[str, float | str]:
    """The numbers of an entry, as attributes of its object: those of the detection, and suspicion, kind, iou."""
    suspect = entry.suspect
    numbers: dict[str, float | str] = {"suspicion": round(suspect.suspicion, 4), "kind": suspect.kind}
    if suspect.detection is not None:
        numbers |= {
            "iou": round(suspect.iou, 4),
            **attributes_of(model.config, entry.reviewed.seen.found, suspect.detection),
        }
    return numbers


def to_json(model: MaskRCNN, done: Review) -> dict[str, Any]:
    """Everything that a review found, as json.dump takes it."""
    queue = []
    for entry in done.queue:
        suspect, picture = entry.suspect, entry.reviewed.seen.picture
        is_missing = suspect.kind == MISSING
        masks = entry.reviewed.seen.found.masks if is_missing else entry.reviewed.labels.masks
        name = class_name_of(model, entry)
        box = utils.rle_to_bbox(masks[suspect.detection if is_missing else suspect.label])
        place = {
            "file": entry.reviewed.seen.name,
            "place": entry.place,
            "class": name,
            "box": [int(side) for side in box],
        }
        queue.append({**place, "split": picture.split, **numbers_of(model, entry), "why": entry.why})
    return {
        "model": str(model.source),
        "pictures": len(done.pictures),
        "labels": done.looked_at,
        "crowds": done.crowds,
        "classes that the model does not know": done.unknown,
        "agreement": done.agreement(),
        "queue": queue,
    }


def class_name_of(model: MaskRCNN, entry: Entry) -> str:
    """The class of a label, or that of a missing object by the model."""
    suspect = entry.suspect
    if suspect.label is None:
        return model.class_names[int(entry.reviewed.seen.found.rows[suspect.detection])]
    return class_name(entry.reviewed.seen.picture.objects[suspect.label])


def labels_with_numbers(model: MaskRCNN, records: Records, done: Review, head: Sequence[Entry]) -> Records:
    """The labels, each with its numbers as attributes, to open in a tool. Missing objects of the head are added.

    records stays as it is.
    """
    numbers = {(id(entry.reviewed.seen.picture), entry.suspect.label): numbers_of(model, entry) for entry in done.queue}
    pictures = []
    for reviewed in done.pictures:
        picture = reviewed.seen.picture
        objects = [
            dataclasses.replace(parsed, attributes={**parsed.attributes, **numbers.get((id(picture), label), {})})
            for label, parsed in enumerate(picture.objects)
        ]
        for entry in head:
            if entry.reviewed is reviewed and entry.suspect.kind == MISSING:
                mask = reviewed.seen.found.masks[entry.suspect.detection]
                name = class_name_of(model, entry)
                objects.append(Object(name, "proposal", rle=mask, attributes=numbers_of(model, entry)))
        pictures.append(dataclasses.replace(picture, objects=objects))
    return dataclasses.replace(records, pictures=pictures)


############################################################
#  Text
############################################################


def review_lines(done: Review, top: int) -> list[str]:
    """What custom.py review prints: how much was looked at, and the head of the queue."""
    head = done.queue[:top]
    lines = [*done.notes]
    if done.unknown:
        names = utils.listed([utils.printable(name) for name in done.unknown], 5)
        lines.append(f"not looked at: labels of classes that the model does not know: {names}")
    crowds = f", beside {count_of(done.crowds, 'crowd')}" if done.crowds else ""
    lines.append(f"Looked at {count_of(done.looked_at, 'label')} in {count_of(len(done.pictures), 'picture')}{crowds}")
    agreement = done.agreement()
    if agreement:
        parts = ", ".join(f"{split} {iou:.2f}" for split, iou in agreement.items())
        lines.append(f"IoU of a label with the model's outline, in the middle: {parts}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.counts(head).items() if count)
    lines.append(f"The {len(head):,} most suspicious: {kinds}" if head else "There is nothing to look at")
    for entry in head:
        suspect = entry.suspect
        where = f"{utils.printable(entry.reviewed.seen.name)}  {entry.place}"
        lines.append(f"  {suspect.suspicion:.2f}  {suspect.kind:<11}  {where}  {entry.why}")
    return lines

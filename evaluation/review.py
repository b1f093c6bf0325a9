"""Ranks labels by how likely they are wrong, given what a model finds in the same pictures.

    labels ─┬─ matched one to one by IoU x class score ─┬─ a label with a detection      shifted, sloppy
    detections                                          ├─ a label without one           surplus, wrong class
                                                        └─ a detection without a label   missing

Each label gets one suspicion in [0, 1] and the kind of fault that it is suspected of. A suspicion orders a queue; it is
no probability. benchmarks/label_review.py measures how well it does so, and what else was tried.

N labels   D detections
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

import utils
from config import Config
from data.classes import UNKNOWN

from .accept import chances

SHIFTED, SLOPPY, WRONG_CLASS, SURPLUS, MISSING = KINDS = ("shifted", "sloppy", "wrong class", "surplus", "missing")

LEAST_SCORE = 0.05  # class score of the detections to compare labels with
MATCH_IOU = 0.1  # a label and a detection with less have nothing to do with each other
SAME_IOU = 0.5  # two outlines with as much are of one object
SURPLUS_WEIGHT = 0.2  # of a label that nothing supports: mostly the label is right, and the model misses the object
MISSING_WEIGHT = 0.4  # of a detection that nothing covers; a wrong shape is judged by a number that rarely exceeds 0.5
MOVED_SHARE = 0.5  # of what IoU lacks to 1: a label that gains as much when it is moved is shifted, not sloppy


class Labels(NamedTuple):
    """The labels of a picture."""

    rows: np.ndarray  # int64 [N], classes as rows of the model; UNKNOWN for a class that it does not have
    crowds: np.ndarray  # bool [N]
    masks: Sequence[dict]  # run-length codes
    unlabelled: Sequence[int] = ()  # rows of the classes that are not labelled in the picture


class Found(NamedTuple):
    """The detections of a picture, with class scores of LEAST_SCORE and more."""

    rows: np.ndarray  # int64 [D], classes
    scores: np.ndarray  # float64 [D], of the classes
    mask_ious: np.ndarray  # float64 [D] in [0, 1], predicted; 1 without a MaskIoU head
    qualities: np.ndarray  # float64 [D], how sure it is that class and mask are right
    masks: Sequence[dict]  # run-length codes

    @classmethod
    def of(cls, config: Config, rows: Sequence[int], scores, mask_ious, masks: Sequence[dict]) -> "Found":
        """Detections of a model with these settings. mask_ious: None for a model without a MaskIoU head.

        The quality is the calibrated chance that the true IoU is 0.7 and more, or class score x predicted IoU for a
        model that nobody calibrated.
        """
        rows, scores = np.asarray(rows, np.int64), np.asarray(scores, np.float64)
        ious = np.ones(len(rows)) if mask_ious is None else np.clip(np.asarray(mask_ious, np.float64), 0, 1)
        calibrated = chances(config, rows, scores, None if mask_ious is None else ious)
        return cls(rows, scores, ious, scores * ious if calibrated is None else calibrated[:, 0], masks)


class Suspect(NamedTuple):
    """A label that may be wrong, or a detection that may be an object without a label."""

    kind: str  # one of KINDS
    suspicion: float  # in [0, 1]
    label: int | None  # None: missing
    detection: int | None  # the one that speaks against the label; None: nothing was found there
    iou: float  # of the two; of a missing object, with the label that it overlaps most
    twin: int | None = None  # another label of the same object


############################################################
#  Ranking
############################################################


def review_picture(labels: Labels, found: Found) -> list[Suspect]:
    """A Suspect for each label, in their order, and then one for each detection without a label.

    Crowds are never suspicious, nor are labels of classes that the model does not know. Detections in a crowd are not
    missing.
    """
    ious, inside = overlaps(labels.masks, found.masks)
    is_same = labels.rows[:, None] == found.rows[None]  # [N, D]
    can_match = is_same & ~labels.crowds[:, None] & (ious >= MATCH_IOU)
    matches = match_greedily(np.where(can_match, ious * found.scores, 0.0))
    support = (ious * found.scores * is_same).max(axis=1, initial=0.0)  # [N]
    twins = find_twins(labels, matches)
    suspects = []
    for label in np.flatnonzero(~labels.crowds & (labels.rows != UNKNOWN)).tolist():
        shape = _suspect_shape(label, int(matches[label]), ious, labels, found)
        rival = _suspect_class(label, ious[label], support[label], is_same[label], found)
        choices = [shape, rival, _suspect_surplus(label, ious[label], is_same[label], support[label], found)]
        twin = twins.get(label)
        if twin is not None:
            detection = int(matches[twin.label])
            suspicion = twin.iou * float(found.scores[detection])
            choices.append(Suspect(SURPLUS, suspicion, label, detection, float(ious[label, detection]), twin.label))
        suspects.append(max((choice for choice in choices if choice is not None), key=lambda choice: choice.suspicion))
    return suspects + find_missing(labels, found, ious, inside, matches)


def overlaps(masks: Sequence[dict], found_masks: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The IoU of each label and detection, and the share of the detection inside of the label: float64 [N, D] each."""
    if not masks or not found_masks:
        nothing = np.zeros((len(masks), len(found_masks)))
        return nothing, nothing
    ious, shares = (coco_mask.iou(found_masks, masks, [crowd] * len(masks)).T for crowd in (0, 1))
    return np.nan_to_num(ious), np.nan_to_num(shares)


def match_greedily(gains: np.ndarray) -> np.ndarray:
    """The column of each row, int64 [N], -1 for none: pairs of the greatest gain first, each row and column once.

    gains: float64 [N, D]; pairs of 0 are none.
    """
    columns, is_taken = np.full(len(gains), -1), np.zeros(gains.shape[1], bool)
    rows_of_pairs, columns_of_pairs = np.nonzero(gains > 0)
    order = np.argsort(-gains[rows_of_pairs, columns_of_pairs], kind="stable")
    for row, column in zip(rows_of_pairs[order].tolist(), columns_of_pairs[order].tolist(), strict=True):
        if columns[row] < 0 and not is_taken[column]:
            columns[row], is_taken[column] = column, True
    return columns


class Twin(NamedTuple):
    """The label that lies on the same object as another one."""

    label: int
    iou: float  # of the two labels


def find_twins(labels: Labels, matches: np.ndarray) -> dict[int, Twin]:
    """Labels without a detection that lie on a label of their class that has one: the object is labelled twice.

    matches: int64 [N], of match_greedily().
    """
    twins = {}
    others = np.flatnonzero(matches >= 0)
    for label in np.flatnonzero((matches < 0) & ~labels.crowds).tolist():
        near = [int(other) for other in others if labels.rows[other] == labels.rows[label]]
        ious, _ = overlaps([labels.masks[label]], [labels.masks[other] for other in near])
        if near and ious.max() >= SAME_IOU:
            twins[label] = Twin(near[int(ious[0].argmax())], float(ious.max()))
    return twins


def _suspect_shape(label: int, detection: int, ious: np.ndarray, labels: Labels, found: Found) -> Suspect | None:
    """How much worse the label fits than a right one would.

    A right label has about the IoU with a detection that the model predicts for it. So the predicted IoU stands where
    one would expect a 1: a poor mask says little about the label.
    """
    if detection < 0:
        return None
    iou = float(ious[label, detection])
    lacking = max(0.0, float(found.mask_ious[detection]) - iou)
    suspicion = lacking * float(found.qualities[detection])
    kind = SLOPPY
    if suspicion > 0 and is_shifted(labels.masks[label], found.masks[detection], iou):
        kind = SHIFTED
    return Suspect(kind, suspicion, label, detection, iou)


def _suspect_class(label: int, ious: np.ndarray, support: float, is_same: np.ndarray, found: Found) -> Suspect | None:
    """A detection of another class on the label, as far as none of its own class supports it."""
    rivals = np.where(is_same | (ious < SAME_IOU), 0.0, ious * found.qualities)
    if not rivals.any():
        return None
    detection = int(rivals.argmax())
    return Suspect(WRONG_CLASS, float(rivals[detection] * (1 - support)), label, detection, float(ious[detection]))


def _suspect_surplus(label: int, ious: np.ndarray, is_same: np.ndarray, support: float, found: Found) -> Suspect:
    """A label that no detection supports."""
    gains = ious * found.scores * is_same
    detection = int(gains.argmax()) if gains.any() else None
    iou = 0.0 if detection is None else float(ious[detection])
    return Suspect(SURPLUS, SURPLUS_WEIGHT * (1 - float(support)), label, detection, iou)


def find_missing(
    labels: Labels, found: Found, ious: np.ndarray, inside: np.ndarray, matches: np.ndarray
) -> list[Suspect]:
    """The detections as far as no label covers them, the most suspicious of those that lie on each other only.

    The class score says whether there is an object. Labels and crowds of the same class hide the part of a detection
    that lies in them; a label of another class hides one with the same outline. What is matched has its label.
    No label is missing of a class that is not labelled in the picture.

    ious, inside: of overlaps(). matches: of match_greedily().
    """
    is_same = (labels.rows[:, None] == found.rows[None]) | (labels.crowds & (labels.rows == UNKNOWN))[:, None]
    covered = np.minimum((inside * is_same).sum(axis=0), 1)
    covered = np.maximum(covered, (ious * ~labels.crowds[:, None]).max(axis=0, initial=0.0))  # [D]
    doubts = found.scores * (1 - covered)
    doubts[matches[matches >= 0]] = 0
    doubts[np.isin(found.rows, labels.unlabelled)] = 0
    order = [int(place) for place in np.argsort(-doubts, kind="stable") if doubts[place] >= LEAST_SCORE]
    chosen = [found.masks[place] for place in order]
    among, _ = overlaps(chosen, chosen)
    kept: list[int] = []
    for place in range(len(order)):
        if not kept or among[place, kept].max() < SAME_IOU:
            kept.append(place)
    best = ious.max(axis=0, initial=0.0)
    return [
        Suspect(MISSING, MISSING_WEIGHT * float(doubts[detection]), None, detection, float(best[detection]))
        for detection in (order[place] for place in kept)
    ]


def is_shifted(mask: dict, other: dict, iou: float) -> bool:
    """Whether a mask would fit another one, if its middle were moved to that of the other.

    iou: of the two.
    """
    y, x, inside = utils.rle_to_crop(mask)
    other_y, other_x, other_inside = utils.rle_to_crop(other)
    middle, other_middle = np.argwhere(inside).mean(axis=0), np.argwhere(other_inside).mean(axis=0)
    y, x = np.round(np.add(other_middle, [other_y, other_x]) - middle).astype(int).tolist()  # of the moved mask
    top, left = max(y, other_y), max(x, other_x)
    bottom = min(y + inside.shape[0], other_y + other_inside.shape[0])
    right = min(x + inside.shape[1], other_x + other_inside.shape[1])
    if bottom <= top or right <= left:
        return False
    moved, there = (
        inside[top - y : bottom - y, left - x : right - x],
        other_inside[top - other_y : bottom - other_y, left - other_x : right - other_x],
    )
    shared = int((moved & there).sum())
    moved_iou = shared / (int(inside.sum()) + int(other_inside.sum()) - shared)
    return moved_iou - iou >= MOVED_SHARE * (1 - iou)


############################################################
#  Words
############################################################


def middle_of(mask: dict) -> tuple[float, float]:
    """(y, x) of the middle of a mask's pixels."""
    y, x, inside = utils.rle_to_crop(mask)
    middle = np.argwhere(inside).mean(axis=0) if inside.any() else np.zeros(2)
    return float(middle[0] + y), float(middle[1] + x)


def reason(suspect: Suspect, labels: Labels, found: Found, class_names: Sequence[str], places: Sequence[str]) -> str:
    """Why a label is suspicious, in one line.

    class_names: of the model, background first. places: of the labels in their file.
    """
    if suspect.kind == MISSING:
        name = utils.printable(class_names[int(found.rows[suspect.detection])], 40)
        score = found.scores[suspect.detection]
        share = suspect.suspicion / (MISSING_WEIGHT * score)
        return f"the model finds a {name} with a class score of {score:.2f}; labels cover {1 - share:.0%} of it"
    if suspect.twin is not None:
        return f"{utils.printable(places[suspect.twin], 80)} lies on the same object"
    if suspect.kind == SURPLUS:
        if suspect.detection is None or suspect.iou < MATCH_IOU:
            return "the model finds nothing there"
        score = found.scores[suspect.detection]
        return f"the model's best outline has a class score of {score:.2f} and an IoU of {suspect.iou:.2f}"
    if suspect.kind == WRONG_CLASS:
        name = utils.printable(class_names[int(found.rows[suspect.detection])], 40)
        return f"the model takes it for a {name}, with a class score of {found.scores[suspect.detection]:.2f}"
    mask, other = labels.masks[suspect.label], found.masks[suspect.detection]
    expected = f"IoU {suspect.iou:.2f}, {found.mask_ious[suspect.detection]:.2f} predicted"
    if suspect.kind == SHIFTED:
        (y, x), (other_y, other_x) = middle_of(mask), middle_of(other)
        sides = [
            f"{abs(number):.0f} px {ways[number > 0]}"
            for number, ways in ((x - other_x, ("left", "right")), (y - other_y, ("above", "below")))
            if abs(number) >= 0.5
        ]
        return f"it lies {' and '.join(sides) or 'less than a pixel'} of the model's outline ({expected})"
    share = utils.rle_area(mask) / max(1, utils.rle_area(other))
    return f"its area is {share:.2f} times that of the model's outline ({expected})"

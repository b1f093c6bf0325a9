"""The result of an evaluation of somebody's own data, as sentences that a person understands and as tables of text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .accept import AcceptRow
from .matching import IOUS, SIZES
from .names import Metric, known_value
from .own_numbers import CHOSEN_HERE, NOT_CALIBRATED, STORED, VALIDATED, OwnNumbers
from .threshold import THRESHOLD_IOU
from .words import count_of

ACCEPT_SHOWN = 0.9  # the chance that sentences speak of
GOOD_SHOWN = 0.7  # and the true IoU
SIDES = (4, 8, 16, 32, 64, 96)  # pixels: the side of an object is the root of its area


@dataclasses.dataclass
class OwnReport:
    """What the report shows of an evaluation of own data, besides COCO's numbers."""

    numbers: OwnNumbers
    sentences: list[str]
    leaks: Sequence[tuple[str, str]] | None  # as of evaluate_own
    model_name: str | None  # how --model names the model

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"sentences": self.sentences, "leaks": self.leaks, **self.numbers.to_json()}


############################################################
#  Sentences
############################################################


def sentences(
    numbers: OwnNumbers, metrics: Mapping[str, float], split: str | None, leaks: Sequence[tuple[str, str]] | None
) -> list[str]:
    """The result in plain sentences, the most important one first.

    metrics: of Evaluation. split: "train", "val", "test", or None for a whole data set.
    leaks: pairs of pictures, one evaluated and one of another split, that show the same; None: nobody looked.
    """
    parts = [_precision(metrics, split)]
    if metrics["objects"]:
        parts += [_found(numbers), *_errors(numbers)]
    elif numbers.quality.false_positives:
        parts.append(
            f"At the threshold {numbers.threshold:.2f} it finds {count_of(numbers.quality.false_positives, 'object')} "
            "where there is none."
        )
    parts += [_accept(numbers), _threshold(numbers, split), _boxes(numbers)]
    if leaks is not None:
        parts.append(leak_sentence(leaks, split))
    return [part for part in parts if part]


def _precision(metrics: Mapping[str, float], split: str | None) -> str:
    learned = {"train": " that it has learned from", None: ""}.get(split, " that it has not learned from")
    of = f" of {split}" if split else ""
    where = f"{count_of(metrics['images'], 'picture')}{of}{learned} ({count_of(metrics['objects'], 'object')})"
    ap, ap50 = (known_value(metrics, Metric("mask", measure, "mask score")) for measure in ("AP", "AP50"))
    if ap is None or ap50 is None:
        return f"On {where} there is no AP, because there is no object."
    return f"On {where}: mask AP {ap:.2f}, AP50 {ap50:.2f}."


def _found(numbers: OwnNumbers) -> str:
    quality = numbers.quality
    if not quality.true_positives + quality.false_positives:
        return f"It finds nothing at the threshold {numbers.threshold:.2f}."
    return (
        f"Finds {of_ten(quality.recall)} objects at the threshold {numbers.threshold:.2f}, where "
        f"{of_ten(quality.precision)} finds are right."
    )


def of_ten(share: float) -> str:
    """ "8 of 10", or "97 of 100" near the ends, where a tenth says too little."""
    if share in (0, 1):
        return "none of the" if share == 0 else "all"
    if 0.05 <= share < 0.95:
        return f"{np.floor(10 * share + 0.5):.0f} of 10"
    return f"{min(max(round(100 * share), 1), 99)} of 100"


# What an error of a kind is called behind a number: of objects that are missed, and of finds that are wrong
_MISSED = {
    "miss": "not found at all",
    "merge": "taken as one with a neighbour",
    "split": "found in parts",
    "sloppy": "outlined badly",
    "wrong class": "taken for another class",
}
_WRONG = {
    "invention": "nothing there",
    "merge": "several objects taken as one",
    "split": "parts or repeats of one object",
    "sloppy": "outlined badly",
    "wrong class": "of another class",
}


def _errors(numbers: OwnNumbers) -> list[str]:
    quality, counts = numbers.quality, numbers.error_counts
    missed = {text: counts[kind].false_negatives for kind, text in _MISSED.items()}
    wrong = {text: counts[kind].false_positives for kind, text in _WRONG.items()}
    parts = []
    if quality.false_negatives:
        small = small_misses(numbers)
        sizes = f", {small[0]:,} of them under {small[1]} px" if small else ""
        parts.append(f"Misses {count_of(quality.false_negatives, 'object')}{sizes}: {_listed(missed)}.")
    if quality.false_positives:
        verb = "is" if quality.false_positives == 1 else "are"
        parts.append(f"{count_of(quality.false_positives, 'find')} {verb} wrong: {_listed(wrong)}.")
    return parts


def _listed(counts: Mapping[str, int]) -> str:
    """The counts that are not 0, the largest first: "not found at all (15), outlined badly (3)"."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{text} ({count:,})" for text, count in ranked if count)


def small_misses(numbers: OwnNumbers) -> tuple[int, int] | None:
    """How many of the missed objects are smaller than one of SIDES, and that side; None if size explains little.

    It does if at least half of the missed objects are below a side, and these are missed 1.5 times as often as all are.
    The side with the largest difference is chosen.
    """
    missed = np.sqrt([entry["area"] for error in numbers.errors for entry in error.missed])
    sides = np.sqrt(numbers.object_areas)
    best, widest = None, 0.0
    for limit in SIDES:
        below, all_below = int((missed < limit).sum()), int((sides < limit).sum())
        if not all_below or all_below == len(sides) or 2 * below < len(missed):
            continue
        rate, others = below / all_below, (len(missed) - below) / (len(sides) - all_below)
        if rate >= 1.5 * len(missed) / len(sides) and rate - others > widest:
            best, widest = (below, limit), rate - others
    return best


def _accept(numbers: OwnNumbers) -> str:
    accept = numbers.accept
    if accept.source == NOT_CALIBRATED:
        if accept.fit is None:
            return ""
        if accept.fit.calibration is None:
            return f"The chance that a mask is good was not calibrated: {accept.fit.problem}."
        return "The chance that a mask is good was calibrated on too few pictures to say what it is worth."
    row = next(row for row in accept.tables[GOOD_SHOWN] if abs(row.least - ACCEPT_SHOWN) < 1e-6)
    if row.right is None:
        return f"No find has a stated chance of {ACCEPT_SHOWN} or more to have a true IoU of {GOOD_SHOWN} or more."
    how = " (cross-validated)" if accept.source == VALIDATED else ""
    return (
        f"{row.share:.0%} of the finds have a stated chance of {ACCEPT_SHOWN} or more to have a true IoU of "
        f"{GOOD_SHOWN} or more; {row.right:.0%} of these have it{how}."
    )


def _threshold(numbers: OwnNumbers, split: str | None) -> str:
    if numbers.threshold_source == CHOSEN_HERE:
        of = "these pictures" if split is None else f"the pictures of {split}"
        return f"The threshold has the best F1 on {of} themselves, so that figures on others may be slightly lower."
    if numbers.threshold_source == STORED:
        return "The threshold is the one that is stored in the model."
    return "Nobody has chosen a threshold for this model: it is the usual one."


def _boxes(numbers: OwnNumbers) -> str:
    if not numbers.boxes_of_masks:
        return ""
    return (
        f"The smallest boxes round its masks are better here than those of its box head: box AP "
        f"{numbers.box_ap_of_masks:.2f} instead of {numbers.box_ap:.2f}. So they are chosen, too (BOXES_OF_MASKS)."
    )


def leak_sentence(leaks: Sequence[tuple[str, str]], split: str | None) -> str:
    """Whether evaluated pictures show the same as pictures of another split."""
    if leaks:
        is_one = len(leaks) == 1
        pairs = (
            "a pair of pictures in two splits shows"
            if is_one
            else f"{len(leaks):,} pairs of pictures in two splits show"
        )
        return f"These figures are too good: {pairs} the same, such as {leaks[0][0]} and {leaks[0][1]}."
    return f"No picture of {split} looks like one of another split." if split else ""


############################################################
#  Tables
############################################################


def number(value: float | None, digits: int = 3) -> str:
    """A share as a text; "-" for None and for -1, which say that there is nothing to count."""
    return "-" if value is None or value < 0 else f"{value:.{digits}f}"


def quality_rows(numbers: OwnNumbers) -> list[tuple[str, list[str]]]:
    """A title and the texts for each of IOUS."""
    rows = []
    for title, field in {
        "F1": "f1", "precision": "precision", "recall": "recall", "accuracy": "accuracy",
        "mean IoU of the pairs": "mean_iou", "boundary IoU of the pairs": "mean_boundary_iou",
    }.items():  # fmt: skip
        rows.append((title, [number(getattr(numbers.counts.quality(iou), field)) for iou in IOUS]))
    for title, name in {"panoptic quality PQ": "PQ", "SQ": "SQ", "RQ": "RQ"}.items():
        rows.append((title, [number(numbers.panoptic(name, iou)) for iou in IOUS]))
    for title, field in {
        "right": "true_positives", "wrong": "false_positives", "missed": "false_negatives",
    }.items():  # fmt: skip
        rows.append((title, [f"{getattr(numbers.counts.quality(iou), field):,}" for iou in IOUS]))
    return rows


PART_HEAD = ("objects", "right", "wrong", "missed", "F1", "precision", "recall", "PQ")


def part_rows(numbers: OwnNumbers) -> dict[str, list[tuple[str, list[str]]]]:
    """The rows of each size, and those of each class if there are several: texts in the columns of PART_HEAD."""
    sizes = [
        (f"{size} objects", numbers.counts.quality(THRESHOLD_IOU, size=size),
         numbers.disjoint.quality(THRESHOLD_IOU, size=size).panoptic_quality)
        for size in SIZES
    ]  # fmt: skip
    classes = [
        (name, numbers.counts.quality(THRESHOLD_IOU, category), numbers.panoptic("PQ", THRESHOLD_IOU, category))
        for category, name in numbers.class_names.items()
    ]
    parts = {"sizes": sizes, "classes": classes if len(classes) > 1 else []}
    rows = {}
    for part, entries in parts.items():
        rows[part] = []
        for title, quality, panoptic in entries:
            right, wrong, missed = quality[:3]
            counts = [f"{count:,}" for count in (right + missed, right, wrong, missed)]
            shares = (quality.f1, quality.precision, quality.recall, panoptic)
            rows[part].append((title, [*counts, *map(number, shares)]))
    return rows


def accept_rows(rows: Sequence[AcceptRow]) -> list[tuple[str, list[str]]]:
    """A title and the texts of a table of accepting."""
    return [
        (f"{row.least:.2f}", [f"{row.share:.0%}", "-" if row.right is None else f"{row.right:.0%}"]) for row in rows
    ]


MOST_CLASSES = 30  # that the terminal lists


def tables(numbers: OwnNumbers) -> str:
    """The tables for the terminal."""
    lines = _table(f"at the threshold {numbers.threshold:.3f}, IoU", [f"{iou}" for iou in IOUS], quality_rows(numbers))
    boundary = {name: numbers.boundary[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    points = [(f"boundary {name}", ["-" if value < 0 else f"{100 * value:.1f}"]) for name, value in boundary.items()]
    lines += ["", "  ".join(f"{title} {value[0]}" for title, value in points)]
    for part, rows in part_rows(numbers).items():
        if rows:
            lines += ["", *_table(f"{part}, at IoU {THRESHOLD_IOU}", PART_HEAD, rows[:MOST_CLASSES])]
        if len(rows) > MOST_CLASSES:
            lines.append(f"and {len(rows) - MOST_CLASSES} more classes, which classes.csv lists")
    for iou, rows in numbers.accept.tables.items():
        head = ("accepted", "right")
        lines += ["", *_table(f"accept above, IoU {iou}", head, accept_rows(rows))]
        lines.append(f"calibration error {number(numbers.accept.errors[iou])}, {numbers.accept.source}")
    return "\n".join(lines)


def _table(title: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(26, len(title), *(len(row[0]) for row in rows)) if rows else len(title)
    widths = [max(8, len(name) + 2) for name in head]
    lines = [f"{title:<{first}}" + "".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True))]
    for name, cells in rows:
        lines.append(
            f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    return lines

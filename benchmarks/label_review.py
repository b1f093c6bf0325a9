"""Do review and suggest find what they look for? Faults planted in labels, and the true error of pictures.

    python benchmarks/label_review.py nuclei --dataset ../shared/data/nuclei              the embedded model, on val
    python benchmarks/label_review.py person --dataset ../shared/data/coco_person_small   a model that it trains first

Review: of all labels, --share each are shifted by 0.2 to 0.4 of their size, dilated or eroded by an eighth of it, cut
in half, and deleted, and as many are added where there is no object. A size is the root of an area. Each ranking orders
the same labels. Its precision is that of its first places: as many as were planted, and 50.

    shape      shifted, dilated, eroded and halved labels, among all but the added ones
    surplus    added labels, among all but the spoiled ones
    labels     both, among all labels
    missing    detections that lie on a deleted label by an IoU of 0.5, among all without a label
    queue      everything, as custom.py review orders it

Suggest: the rank correlation of a picture's doubt with its true error, which is 1 - F1 at IoU 0.7 or the number of
missed and wrong objects, over pictures with labels. The objects are those with a mask score of 0.5 and more.

A number is the mean over the seeds of planting, with the 95 % interval of a bootstrap over pictures, which are drawn
alike for all rankings. Detections are made once and kept in --found. Prints tables and one line of JSON.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from scipy import ndimage, stats

import cli
import utils
from benchmarks import machine
from config import SmallConfig
from data.object_checks import check_objects
from data.recognise import open_records
from data.record_dataset import RecordDataset
from evaluation.accept import Sample, cross_validated
from evaluation.label_queue import Seen, detect_pictures, detection_settings
from evaluation.matching import match
from evaluation.review import (
    KINDS,
    MATCH_IOU,
    MISSING,
    MISSING_WEIGHT,
    SAME_IOU,
    Found,
    Labels,
    match_greedily,
    overlaps,
    review_picture,
)
from evaluation.suggest import doubts
from model import MaskRCNN

SHARE = 0.04
KEPT_SCORE, GOOD_IOU = 0.5, 0.7
FIRST = 50


############################################################
#  Faults
############################################################


class Planted(NamedTuple):
    """The labels of a picture after faults were planted."""

    masks: list[dict]
    faults: np.ndarray  # text [N]: shifted, resized, halved, added; empty for a label that is as it was
    deleted: list[dict]


def _placed(y: int, x: int, inside: np.ndarray, size: Sequence[int]) -> dict:
    """A mask in a picture of (height, width); what lies outside is cut off."""
    mask = np.zeros(size, bool)
    top, left = max(y, 0), max(x, 0)
    part = inside[top - y : max(size[0] - y, 0), left - x : max(size[1] - x, 0)]
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return utils.mask_to_rle(mask)


def shift(mask: dict, rng: np.random.Generator) -> dict | None:
    """A mask moved by 0.2 to 0.4 of its size, of which at least half stays in the picture; None if that fails."""
    y, x, inside = utils.rle_to_crop(mask)
    for _ in range(20):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4) * np.sqrt(inside.sum())
        step = round(distance * np.sin(angle)), round(distance * np.cos(angle))
        moved = _placed(y + step[0], x + step[1], inside, mask["size"])
        if any(step) and 2 * utils.rle_area(moved) >= inside.sum():
            return moved
    return None


def resize(mask: dict, rng: np.random.Generator) -> dict | None:
    """A mask dilated or eroded by an eighth of its size, at least a pixel."""
    y, x, inside = utils.rle_to_crop(mask)
    steps = max(1, round(np.sqrt(inside.sum()) / 8))
    framed = np.pad(inside, steps)
    smaller = ndimage.binary_erosion(framed, iterations=steps)
    if rng.random() < 0.5 or 5 * smaller.sum() < inside.sum():
        smaller = ndimage.binary_dilation(framed, iterations=steps)
    return _placed(y - steps, x - steps, smaller, mask["size"])


def halve(mask: dict, rng: np.random.Generator) -> dict | None:
    """One side of a mask that is cut through its middle; None for a mask of a pixel."""
    y, x, inside = utils.rle_to_crop(mask)
    rows, columns = np.nonzero(inside)
    angle = rng.uniform(0, 2 * np.pi)
    sides = rows * np.sin(angle) + columns * np.cos(angle)
    kept = sides > np.median(sides)
    half = np.zeros_like(inside)
    half[rows[kept], columns[kept]] = True
    return _placed(y, x, half, mask["size"]) if kept.any() else None


def add(masks: Sequence[dict], taken: np.ndarray, rng: np.random.Generator) -> dict | None:
    """A copy of one of the masks where nothing is taken, bool [H, W]; None if no place is found."""
    for _ in range(100):
        _, _, inside = utils.rle_to_crop(masks[rng.integers(len(masks))])
        room = taken.shape[0] - inside.shape[0], taken.shape[1] - inside.shape[1]
        if min(room) > 0:
            y, x = rng.integers(room[0]), rng.integers(room[1])
            if not (taken[y : y + inside.shape[0], x : x + inside.shape[1]] & inside).any():
                return _placed(y, x, inside, taken.shape)
    return None


SPOIL: dict[str, Callable] = {"shifted": shift, "resized": resize, "halved": halve}


def plant(masks: Sequence[dict], rng: np.random.Generator, share: float = SHARE) -> Planted:
    """Spoils a share of the labels of a picture by each fault, at random. masks: at least one."""
    names = [*SPOIL, "deleted"]
    chosen = (rng.random(len(masks)) / share).astype(int)
    result, faults, deleted = [], [], []
    for mask, place in zip(masks, chosen.tolist(), strict=True):
        name = names[place] if place < len(names) else ""
        if name == "deleted":
            deleted.append(mask)
            continue
        spoiled = SPOIL[name](mask, rng) if name else None
        result.append(mask if spoiled is None else spoiled)
        faults.append("" if spoiled is None else name)
    taken = utils.rle_to_mask(list(masks)).any(axis=2)
    for _ in range(rng.binomial(len(masks), share)):
        added = add(masks, taken, rng)
        if added is not None:
            result.append(added)
            faults.append("added")
            taken |= utils.rle_to_mask(added)
    return Planted(result, np.array(faults, object), deleted)


############################################################
#  Rankings
############################################################


class Task(NamedTuple):
    """What rankings order: of each candidate its picture, whether it is a fault, and its value in each ranking."""

    pictures: np.ndarray  # int64 [C]
    faults: np.ndarray  # bool [C]
    values: dict[str, np.ndarray]  # float64 [C] each


def _masks(one: Seen) -> list[dict]:
    """The labels of a picture, without crowds."""
    size = (one.picture.height, one.picture.width)
    return [parsed.mask(*size) for parsed in one.picture.objects if not parsed.is_crowd]


def _columns(labels: Labels, found: Found) -> dict[str, np.ndarray]:
    """Of each label: values of rankings that know less than review does, and the suspicions of review's kinds."""
    ious, _ = overlaps(labels.masks, found.masks)
    matches = match_greedily(np.where(ious >= MATCH_IOU, ious * found.scores, 0.0))
    has = matches >= 0
    score, quality, iou, predicted = (np.zeros(len(matches)) for _ in range(4))
    score[has], predicted[has] = found.scores[matches[has]], found.mask_ious[matches[has]]
    quality[has], iou[has] = found.qualities[matches[has]], ious[np.flatnonzero(has), matches[has]]
    return {
        "1 - class score": 1 - score,
        "1 - predicted IoU": 1 - predicted,
        "1 - IoU": 1 - iou,
        "(1 - IoU) x class score": (1 - iou) * score,
        "(1 - IoU) x predicted IoU": (1 - iou) * predicted,
        "(1 - IoU) x class score x predicted IoU": (1 - iou) * score * predicted,
        "shape alone: (predicted IoU - IoU) x mask score": np.maximum(predicted - iou, 0) * quality,
        "surplus alone: 1 - IoU x class score": 1 - (ious * found.scores).max(axis=1, initial=0.0),
    }


def tasks_of(
    seen: Sequence[Seen], seed: int, chances: Sequence[np.ndarray] | None = None, share: float = SHARE
) -> dict[str, Task]:
    """Plants faults in all pictures and ranks what is there.

    chances: float64 [D] of each picture, calibrated on other pictures, for a second ranking by review.
    """
    rows: dict[str, list] = {name: [] for name in ("labels", "missing", "queue")}
    for number, one in enumerate(seen):
        rng = np.random.default_rng([seed, number])
        masks = _masks(one)
        if not masks:
            continue
        planted = plant(masks, rng, share)
        labels = Labels(np.ones(len(planted.masks), np.int64), np.zeros(len(planted.masks), bool), planted.masks)
        on_deleted = overlaps(planted.deleted, one.found.masks)[0].max(axis=0, initial=0.0) >= SAME_IOU
        suspects = {"review": review_picture(labels, one.found)}
        if chances is not None:
            better = one.found._replace(qualities=chances[number])
            suspects["review, calibrated"] = review_picture(labels, better)
        _add_rows(rows, number, planted, labels, one.found, on_deleted, suspects, rng)
    return _tasks(rows)


def _add_rows(rows, number: int, planted: Planted, labels: Labels, found: Found, on_deleted, suspects, rng) -> None:
    """Adds the candidates of a picture, as (picture, fault, values), to each list of rows."""
    count = len(planted.masks)
    columns = {"random": rng.random(count), **_columns(labels, found)}
    for name, of_picture in suspects.items():
        columns[name] = np.array([each.suspicion for each in of_picture if each.kind != MISSING])
    for label in range(count):
        rows["labels"].append(
            (number, planted.faults[label], {name: column[label] for name, column in columns.items()})
        )
    missing = [each for each in suspects["review"] if each.kind == MISSING]
    for each in missing:
        score, predicted = float(found.scores[each.detection]), float(found.mask_ious[each.detection])
        values = {
            "random": rng.random(), "class score": score, "predicted IoU": predicted, "mask score": score * predicted,
            "share outside of labels": each.suspicion / score / MISSING_WEIGHT, "review": each.suspicion,
            "review x predicted IoU": each.suspicion * predicted,
        }  # fmt: skip
        rows["missing"].append((number, "deleted" if on_deleted[each.detection] else "", values))
    for each in suspects["review"]:
        is_fault = on_deleted[each.detection] if each.kind == MISSING else planted.faults[each.label] != ""
        values = {"random": rng.random(), "review": each.suspicion}
        rows["queue"].append((number, "fault" if is_fault else "", values))


def _tasks(rows: Mapping[str, Sequence]) -> dict[str, Task]:
    def task(chosen: Sequence) -> Task:
        names = list(chosen[0][2])
        values = {name: np.array([row[2][name] for row in chosen], np.float64) for name in names}
        return Task(np.array([row[0] for row in chosen]), np.array([row[1] != "" for row in chosen]), values)

    labels = rows["labels"]
    chosen = {
        "shape": [row for row in labels if row[1] != "added"],
        "surplus": [row for row in labels if row[1] in ("", "added")],
        "labels": labels,
        "missing": rows["missing"],
        "queue": rows["queue"],
    }
    return {name: task(each) for name, each in chosen.items() if each}


############################################################
#  Measures
############################################################


class Ranking:
    """Candidates in the order of a ranking, to be measured for many samples of pictures at once.

    S samples   C candidates
    """

    def __init__(self, values: np.ndarray, faults: np.ndarray) -> None:
        """values: float64 [C], the most suspicious is the highest. faults: bool [C]."""
        self.order = np.argsort(-values, kind="stable")
        self.faults = faults[self.order]
        self.starts = np.flatnonzero(np.diff(values[self.order], prepend=np.inf))  # of candidates of equal value

    def measure(self, counts: np.ndarray) -> np.ndarray:
        """The MEASURES of each sample: float64 [S, 3]. NaN for a sample without faults, or with faults only.

        counts: int64 [S, C], how often a sample has each candidate.
        """
        counts = counts[:, self.order]
        hits = counts * self.faults
        seen, hits_so_far = counts.cumsum(axis=1), hits.cumsum(axis=1)
        as_planted = self._precision(seen, hits_so_far, hits_so_far[:, -1])
        first = self._precision(seen, hits_so_far, np.minimum(FIRST, seen[:, -1]))
        return np.stack([as_planted, first, self._auroc(hits, counts - hits)], axis=1)

    def _precision(self, seen: np.ndarray, hits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """float64 [S]: the share of faults among the first places, as many as wanted [S]; NaN for none.

        seen, hits: int64 [S, C], how many candidates and faults there are up to each candidate.
        """
        shares = []
        for of_sample, of_hits, want in zip(seen, hits, wanted.tolist(), strict=True):
            last = int(np.searchsorted(of_sample, want))  # the candidate that fills the last place
            beyond = of_sample[last] - want
            shares.append((of_hits[last] - beyond * self.faults[last]) / want if want and of_hits[-1] else np.nan)
        return np.array(shares)

    def _auroc(self, hits: np.ndarray, others: np.ndarray) -> np.ndarray:
        """float64 [S]: the chance that a fault comes before what is none; half of it where their values are equal."""
        positives, negatives = (np.add.reduceat(counts, self.starts, axis=1) for counts in (hits, others))
        behind = negatives.sum(axis=1, keepdims=True) - negatives.cumsum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return (positives * (behind + negatives / 2)).sum(axis=1) / np.where(pairs, pairs, np.nan)


MEASURES = ("first as planted", f"first {FIRST}", "AUROC")
_SAMPLES_AT_ONCE = 100


def measure(tasks: Sequence[Task], pictures: int, samples: int, baseline: str) -> dict[str, dict[str, Any]]:
    """Each measure of each ranking, and its difference to the baseline, as [value, low, high].

    tasks: the same task, planted with several seeds. pictures: how many there are. baseline: a ranking.
    """
    share = np.full(pictures, 1 / pictures)
    draws = np.concatenate(
        [np.ones((1, pictures), int), np.random.default_rng(0).multinomial(pictures, share, samples)]
    )
    names = list(tasks[0].values)
    parts = np.zeros((len(tasks), len(draws), len(names), len(MEASURES)))
    for place, task in enumerate(tasks):
        for i, name in enumerate(names):
            ranking = Ranking(task.values[name], task.faults)
            for first in range(0, len(draws), _SAMPLES_AT_ONCE):
                counts = draws[first : first + _SAMPLES_AT_ONCE][:, task.pictures]
                parts[place, first : first + _SAMPLES_AT_ONCE, i] = ranking.measure(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a sample in which no seed has planted anything
        table = np.nanmean(parts, axis=0)
    gains = table - table[:, [names.index(baseline)]]
    return {
        name: {
            kind: {"interval": _interval(table[:, i, j]), "gain": _interval(gains[:, i, j])}
            for j, kind in enumerate(MEASURES)
        }
        for i, name in enumerate(names)
    }


def _interval(values: np.ndarray) -> list[float]:
    """The first number, and the 95 % interval of the others."""
    value, *drawn = values.tolist()
    return [value, *np.nanpercentile(drawn, (2.5, 97.5)).tolist()]


############################################################
#  Suggest
############################################################


def true_errors(one: Seen) -> tuple[float, float]:
    """1 - F1 at an IoU of GOOD_IOU, and the number of missed and wrong objects."""
    masks = _masks(one)
    kept = np.flatnonzero(one.found.scores * one.found.mask_ious >= KEPT_SCORE)
    ious, _ = overlaps(masks, [one.found.masks[place] for place in kept])
    hits = len(match(ious, GOOD_IOU)[0])
    errors = len(masks) + len(kept) - 2 * hits
    return errors / max(1, len(masks) + len(kept)), float(errors)


def doubts_of(found: Found) -> dict[str, float]:
    """Rankings of pictures: those of evaluation/suggest.py, and what they are compared with."""
    scores, ious = found.scores, found.mask_ious
    rights = scores * ious
    confident = scores > KEPT_SCORE
    expected = 1 - 2 * scores[confident].sum() / max(confident.sum() + scores.sum(), 1e-9) if len(scores) else 0.0
    return {
        "objects": float((rights >= KEPT_SCORE).sum()),
        "1 - mean class score": 1 - float(scores.mean()) if len(scores) else 1.0,
        "1 - mean class score of those above 0.5": 1 - float(scores[confident].mean()) if confident.any() else 1.0,
        "1 - mean predicted IoU of those above 0.5": 1 - float(ious[confident].mean()) if confident.any() else 1.0,
        "1 - mean mask score of those above 0.5": 1 - float(rights[confident].mean()) if confident.any() else 1.0,
        "sum of class score x (1 - class score)": float((scores * (1 - scores)).sum()),
        "expected error by class score": float(expected),
        **doubts(found, KEPT_SCORE),
    }


def measure_doubts(seen: Sequence[Seen], samples: int) -> dict[str, dict[str, list[float]]]:
    """The rank correlation of each doubt with each true error, as [value, low, high] over pictures."""
    errors = np.array([true_errors(one) for one in seen])
    columns = [doubts_of(one.found) for one in seen]
    values = {name: np.array([column[name] for column in columns]) for name in columns[0]}
    values["random"] = np.random.default_rng(0).random(len(seen))
    draws = [np.arange(len(seen)), *np.random.default_rng(0).integers(0, len(seen), (samples, len(seen)))]
    table: dict[str, dict[str, list[float]]] = {}
    for name, doubt in values.items():
        table[name] = {}
        for j, kind in enumerate(("1 - F1", "errors")):
            with np.errstate(invalid="ignore"):
                drawn = np.array([_rank_correlation(doubt[draw], errors[draw, j]) for draw in draws])
            table[name][kind] = _interval(drawn)
    return table


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


############################################################
#  Models
############################################################


class PersonConfig(SmallConfig):
    """For persons in pictures of 320 pixels; so small a network learns them badly, which a review has to bear."""

    NAME = "person"
    NUM_CLASSES = 2
    CLASS_NAMES = ("BG", "person")
    GPU_COUNT = 0
    WORKERS = 0
    IMAGES_PER_GPU = 4
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 256
    RPN_ANCHOR_SCALES = (16, 32, 64, 128, 256)
    ROI_POSITIVE_RATIO = 0.33
    PRE_NMS_LIMIT_TRAINING = 1000
    POST_NMS_ROIS_TRAINING = 300
    TRAIN_ROIS_PER_IMAGE = 64
    SCALE_JITTER = (0.8, 1.25)
    COLOR_JITTER = 0.2
    WARMUP_STEPS = 100
    CHECKPOINTS_KEPT = 1
    STEPS_PER_EPOCH = 100
    SEED = 0


def train_person(dataset: Path, logs: Path, epochs: int) -> Path:
    """Trains on the split train, from the embedded model `shapes`. 18 epochs take about 20 minutes of a core."""
    start = cli.find_start("shapes", PersonConfig, logs, {})
    model = cli.starting_model(start, PersonConfig, logs, {}, network_only=True)
    model.train_model(RecordDataset(open_records(dataset), "train"), None, epochs=epochs, layers="all")
    return Path(model.find_last())


def calibrated_chances(seen: Sequence[Seen]) -> list[np.ndarray] | None:
    """The chance that the true IoU of each detection is 0.7 and more, fitted to the other pictures; None if too few."""
    true_ious = [overlaps(_masks(one), one.found.masks)[0].max(axis=0, initial=0.0) for one in seen]
    counts = [len(one.found.scores) for one in seen]
    sample = Sample(
        np.concatenate([one.found.rows for one in seen]),
        np.concatenate([one.found.scores for one in seen]),
        np.concatenate([one.found.mask_ious for one in seen]),
        np.concatenate(true_ious),
        np.repeat(np.arange(len(seen)), counts),
    )
    chances = cross_validated(sample, 2)
    return None if chances is None else np.split(chances[:, 0], np.cumsum(counts)[:-1])


############################################################
#  Command line
############################################################


def run(arguments: argparse.Namespace) -> None:
    """Detects, measures, and prints."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.model or ("nuclei" if arguments.data == "nuclei" else None)
    if name is None:
        name = str(train_person(arguments.dataset, arguments.found / "logs", arguments.epochs))
    choice = argparse.Namespace(model=name, device=arguments.device, set=[])
    model = cli.open_model(choice, name, adapt=lambda config: detection_settings(config, {}))
    records = open_records(arguments.dataset)
    check_objects(records)
    seen = detect_pictures(model, records, arguments.found, "val")[: arguments.images]
    start = time.perf_counter()
    facts = {**machine.describe(arguments.device), "data": arguments.data, "model": Path(name).name}
    facts |= {"pictures": len(seen), "labels": sum(len(one.picture.objects) for one in seen)}
    facts |= {
        "detections": sum(len(one.found.scores) for one in seen),
        "seeds": arguments.seeds,
        "share": arguments.share,
    }
    facts |= evaluate(model, seen, arguments)
    print("\n\n".join(tables(facts)))
    machine.finish({**facts, "measuring_s": time.perf_counter() - start}, arguments.output)


BASELINES = {
    "shape": "(1 - IoU) x class score", "surplus": "1 - class score", "labels": "(1 - IoU) x class score",
    "missing": "class score", "queue": "random",
}  # fmt: skip


def evaluate(model: MaskRCNN, seen: Sequence[Seen], arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of both commands, and the mean error of the pictures."""
    chances = calibrated_chances(seen) if model.config.USE_MASKIOU_HEAD else None
    planted = [tasks_of(seen, seed, chances, arguments.share) for seed in range(arguments.seeds)]
    review = {}
    for name, baseline in BASELINES.items():
        tasks = [each[name] for each in planted if name in each]
        if tasks:
            faults = float(np.mean([task.faults.sum() for task in tasks]))
            candidates = float(np.mean([len(task.faults) for task in tasks]))
            review[name] = {"faults": faults, "candidates": candidates, "baseline": baseline}
            review[name]["rankings"] = measure(tasks, len(seen), arguments.samples, baseline)
    errors = np.array([true_errors(one) for one in seen])
    means = {"mean 1 - F1": float(errors[:, 0].mean()), "mean errors": float(errors[:, 1].mean())}
    return {"kinds": list(KINDS), "review": review, "suggest": measure_doubts(seen, arguments.samples), **means}


def tables(facts: Mapping[str, Any]) -> list[str]:
    """The numbers for people."""
    parts = []
    for name, task in facts["review"].items():
        head = f"{name}: {task['faults']:.0f} faults among {task['candidates']:.0f}"
        lines = [f"| {head} | " + " | ".join(MEASURES) + " |", "| --- |" + " --- |" * len(MEASURES)]
        for ranking, row in task["rankings"].items():
            lines.append(f"| {ranking} | " + " | ".join(_cell(row[each]["interval"]) for each in MEASURES) + " |")
        parts.append("\n".join(lines))
    lines = ["| doubt | correlation with 1 - F1 | with missed and wrong objects |", "| --- | --- | --- |"]
    for doubt, row in facts["suggest"].items():
        lines.append(f"| {doubt} | {_cell(row['1 - F1'])} | {_cell(row['errors'])} |")
    return [*parts, "\n".join(lines)]


# The rows of the table in docs/own_data.md: the task or "suggest", the ranking, what the row is called.
SUMMARY = (
    ("labels", "random", "wrong labels: at random"),
    ("labels", "1 - class score", "by class score alone"),
    ("labels", "1 - predicted IoU", "by predicted IoU alone"),
    ("labels", "1 - IoU", "by 1 - IoU"),
    ("labels", "(1 - IoU) x class score", "by (1 - IoU) x class score"),
    ("labels", "(1 - IoU) x class score x predicted IoU", "by (1 - IoU) x class score x predicted IoU"),
    ("labels", "review", "**review**"),
    ("labels", "review, calibrated", "review with calibrated chances"),
    ("missing", "random", "missing labels: at random"),
    ("missing", "class score", "by class score alone"),
    ("missing", "predicted IoU", "by predicted IoU alone"),
    ("missing", "review", "**review**"),
    ("queue", "random", "the whole queue: at random"),
    ("queue", "review", "**review**"),
)
DOUBTS = (
    ("random", "at random"),
    ("1 - mean class score of those above 0.5", "by the mean class score"),
    ("1 - mean predicted IoU of those above 0.5", "by the mean predicted IoU"),
    ("expected error by class score", "by the error that class scores lead to expect"),
    ("mean", "by class score x (1 - predicted IoU), mean"),
    ("sum", "by class score x (1 - predicted IoU), sum"),
    ("expected error", "**suggest**"),
)


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of docs/own_data.md. results: the line of JSON of each data set, by its title."""
    columns = [f"{title}: {words}" for title in results for words in ("as many as were planted", f"first {FIRST}")]
    lines = ["| precision of the first | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for task, ranking, words in SUMMARY:
        rows = [facts["review"][task]["rankings"][ranking] for facts in results.values()]
        cells = [_cell(row[kind]["interval"], 2) for row in rows for kind in ("first as planted", f"first {FIRST}")]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    columns = [f"{title}: {words}" for title in results for words in ("1 - F1", "missed and wrong objects")]
    lines += ["", "| rank correlation with | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for doubt, words in DOUBTS:
        rows = [facts["suggest"][doubt] for facts in results.values()]
        lines.append(f"| {words} | " + " | ".join(_cell(row[kind], 2) for row in rows for kind in row) + " |")
    return "\n".join(lines)


def _cell(interval: Sequence[float], digits: int = 3) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} ({low} to {high})"


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = machine.make_parser("label_review.py", __doc__, device=True, threads=True)
    parser.add_argument("data", choices=["nuclei", "person"])
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--model", metavar="FILE", help="default: the embedded model for nuclei; for person, train one")
    parser.add_argument("--epochs", type=int, default=18, help="epochs of that training; default: 18")
    parser.add_argument("--found", type=Path, required=True, metavar="DIR", help="folder that keeps the detections")
    parser.add_argument("--images", type=int, metavar="N", help="measure on the first N pictures only; default: all")
    parser.add_argument("--seeds", type=int, default=5, help="how often faults are planted; default: 5")
    parser.add_argument(
        "--share", type=cli.share, default=SHARE, help=f"of the labels that each fault spoils; default: {SHARE:g}"
    )
    parser.add_argument("--samples", type=int, default=1000, help="samples of the bootstrap; default: 1000")
    arguments = parser.parse_args(argv)
    return cli.run("label_review.py", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

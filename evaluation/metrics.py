"""From ground truth and results to numbers: COCO's average precision, and what mask scoring changes in it.

Boxes are ranked by class score. The same masks are ranked three times: by class score (A), by mask score (B), and by
class score x true IoU, which is what a MaskIoU head that is never wrong would give.

Overlaps and matching are pycocotools'. Around them, overlaps are computed once for all rankings, only results that can
match anything are matched, and sums are numpy's: the numbers are COCOeval's, to the bit.

    T IoU thresholds   K categories   A areas   M max_dets   D results and G objects of a category   N results
"""

import contextlib
import dataclasses
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import utils

############################################################
#  Average precision
############################################################

AREAS = ("all", "small", "medium", "large")
# What is reported: name: (IoU threshold or None for the mean of .50 to .95, area)
MEASURES = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}
CLASS_MEASURES = ("AP", "AP50", "AP75")  # of a category, and drawn as curves


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pycocotools prints each of its steps."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def as_coco(contents: dict[str, Any], results: list[dict[str, Any]] | None = None) -> COCO:
    """pycocotools' index of a ground truth, or, with results, what its loadRes(results) makes of them.

    The index has copies, in which pycocotools may write. Annotations are numbered from 1 (for pycocotools 0 is "none",
    and one of two with the same id is both), those of images or categories that are not there are left out, and their
    segmentations are compressed RLEs. Unlike loadRes it takes an empty list of results.

    Raises: ValueError for images or categories of the same id, and for results of images that are not there.
    """
    index = COCO()
    images, categories = (_unique_ids(contents, name) for name in ("images", "categories"))
    if results is None:
        entries = [
            {**entry, "iscrowd": int(entry.get("iscrowd", 0))}
            for entry in contents["annotations"]
            if entry["image_id"] in images and entry["category_id"] in categories
        ]
    else:
        _check_images(results, images)
        entries = [{**entry, "area": _area(entry), "iscrowd": 0} for entry in results]
    for number, entry in enumerate(entries, start=1):
        entry["id"] = number
    index.dataset = {**contents, "annotations": entries}
    with _quiet():
        index.createIndex()
    for entry in entries if results is None else ():
        if "segmentation" in entry:
            entry["segmentation"] = index.annToRLE(entry)
    return index


def _unique_ids(contents: dict[str, Any], name: str) -> set[int]:
    counts = Counter(entry["id"] for entry in contents[name])
    repeated = [str(number) for number, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"several {name} of the ground truth have the same id: {utils.listed(repeated, 5)}")
    return set(counts)


def _check_images(results: list[dict[str, Any]], images: set[int]) -> None:
    unknown = sorted({entry["image_id"] for entry in results} - images)
    if unknown:
        raise ValueError(
            f"there are results of {len(unknown)} images that the ground truth does not have: "
            f"{utils.listed(map(str, unknown), 5)}; are they of another data set, or of more of its images?"
        )


def _area(entry: dict[str, Any]) -> float:
    return float(entry["bbox"][2] * entry["bbox"][3] if "bbox" in entry else coco_mask.area(entry["segmentation"]))


class _Category(NamedTuple):
    """Results and objects of a category, image by image, in ascending order of image ids."""

    results: np.ndarray  # int64 [D], their places in the list
    images: np.ndarray  # [D], the ids of their images
    outside: np.ndarray  # bool [A, D], whether their area is another than A
    ignored: dict[int, np.ndarray]  # image id: bool [A, G], whether A passes its objects over


class Matches(NamedTuple):
    """The results of a category, best score first."""

    images: np.ndarray  # [D], the ids of their images
    place: np.ndarray  # int64 [D], 0 for the best of its image
    matched: np.ndarray  # bool [A, T, D], whether it has an object
    counted: np.ndarray  # bool [A, T, D], whether it is right or wrong, and not passed over
    objects: dict[int, np.ndarray]  # image id: int64 [A], how many of its objects are to be found


class RankedEvaluation(COCOeval):
    """COCOeval of results that can be ranked by several scores, one after the other.

    truth: of as_coco; pycocotools writes into its annotations. results: in COCO's format. kind: "bbox" or "segm".
    max_dets: how many of an image's best results of a category count.
    """

    def __init__(self, truth: COCO, results: list[dict[str, Any]], kind: str, max_dets: int) -> None:
        super().__init__(truth, as_coco(truth.dataset, results), kind)
        self.params.maxDets = sorted({count for count in (1, 10) if count < max_dets} | {max_dets})
        self._prepare()
        self.entries = self.cocoDt.dataset["annotations"]
        self.places = {pair: np.array([entry["id"] - 1 for entry in self._dts[pair]]) for pair in self._dts}
        self.overlaps = {pair: self._overlaps(pair) for pair in self._gts.keys() & self._dts.keys()}
        self.categories = self._categories()

    def _overlaps(self, pair: tuple[int, int]) -> np.ndarray:
        """float64 [D, G]: IoU; with a crowd, the share of the result that lies in it."""
        name = "segmentation" if self.params.iouType == "segm" else "bbox"
        results, objects = ([entry[name] for entry in entries[pair]] for entries in (self._dts, self._gts))
        return coco_mask.iou(results, objects, [int(entry["iscrowd"]) for entry in self._gts[pair]])

    def _categories(self) -> dict[int, _Category]:
        outside = self._outside(self.entries)
        pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for pair in sorted(self._gts.keys() | self._dts.keys()):
            pairs[pair[1]].append(pair)
        categories = {}
        for category, some in pairs.items():
            places = [self.places[pair] for pair in some if pair in self.places]
            results = np.concatenate(places) if places else np.zeros(0, np.int64)
            images = np.array([self.entries[place]["image_id"] for place in results.tolist()])
            ignored = {pair[0]: self._ignored(self._gts[pair]) for pair in some if pair in self._gts}
            categories[category] = _Category(results, images, outside[:, results], ignored)
        return categories

    def _outside(self, entries: list[dict[str, Any]]) -> np.ndarray:
        low, high = np.array(self.params.areaRng, np.float64).T[:, :, None]  # [A, 1]
        areas = np.array([entry["area"] for entry in entries], np.float64)
        return (areas < low) | (areas > high)  # [A, len(entries)]

    def _ignored(self, objects: list[dict[str, Any]]) -> np.ndarray:
        return self._outside(objects) | np.array([bool(entry["ignore"]) for entry in objects])

    def rank(self, scores: Sequence[float] | None = None) -> "RankedEvaluation":
        """Evaluate and accumulate, after giving the results these scores [N]; by default, those that they have.

        Makes "precision" [T, 101, K, A, M] and "recall" [T, K, A, M] in `eval`, M one for each of max_dets, as COCOeval
        does, to the bit. Its summarize() is no good: it prints, and wants the 100 of COCO among several max_dets.
        average_precision and average_recall read the result.
        """
        self.set_scores(scores)
        params = self.params
        areas, counts = len(params.areaRng), len(params.maxDets)
        shape = len(params.iouThrs), len(params.catIds), areas, counts
        self.eval = {
            "recall": np.full(shape, -1.0),
            "precision": np.full((shape[0], len(params.recThrs), *shape[1:]), -1.0),
        }
        for k, category in enumerate(params.catIds):
            if category in self.categories:
                self._rank_category(k, category)
        return self

    def set_scores(self, scores: Sequence[float] | None = None) -> None:
        """Give the results these scores [N]; by default, those that they have. matches() is by them."""
        if scores is not None:
            for entry, score in zip(self.entries, scores, strict=True):
                entry["score"] = float(score)
        self.scores = np.array([entry["score"] for entry in self.entries], np.float64)

    def _rank_category(self, k: int, category: int) -> None:
        params, matches = self.params, self.matches(category)
        for a in range(len(params.areaRng)):
            objects = sum(counts[a] for counts in matches.objects.values())
            for m, max_dets in enumerate(params.maxDets if objects else ()):
                which = matches.place < max_dets
                results = matches.matched[a][:, which], matches.counted[a][:, which]
                precision, recall = precision_at(*results, objects, params.recThrs)
                self.eval["precision"][:, :, k, a, m], self.eval["recall"][:, k, a, m] = precision, recall

    def matches(self, category: int) -> Matches:
        """The results of a category by the scores of set_scores() or rank(), best first, and what they match."""
        found = self.categories[category]
        order = np.lexsort((-self.scores[found.results], found.images))  # by image, then score; equal ones as they were
        place = np.arange(len(order)) - np.searchsorted(found.images, found.images)
        matched, counted = self._match(category, order)
        best = np.argsort(-self.scores[found.results[order]], kind="mergesort")
        objects = {image: np.count_nonzero(~ignored, axis=1) for image, ignored in found.ignored.items()}
        return Matches(found.images[best], place[best], matched[..., best], counted[..., best], objects)

    def _match(self, category: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool [A, T, D] each: whether a result has an object, and whether it is right or wrong, and not passed over.

        order: int64 [D], results of a category, by image and score.
        """
        found = self.categories[category]
        matched = np.zeros((len(self.params.areaRng), len(self.params.iouThrs), len(order)), bool)
        counted = np.repeat(~found.outside[:, None, order], matched.shape[1], axis=1)
        for image, ignored in found.ignored.items():
            first, last = (np.searchsorted(found.images, image, side) for side in ("left", "right"))
            if first == last:
                continue
            rows = order[first:last] - first  # of its overlaps, best score first
            near = self.overlaps[image, category][rows].max(axis=1) >= self.params.iouThrs.min()  # others match nothing
            if near.any():
                columns = first + np.flatnonzero(near)
                self._match_image((image, category), rows[near], ignored, columns, matched, counted)
        return matched, counted

    def _match_image(self, pair, rows: np.ndarray, ignored: np.ndarray, columns, matched, counted) -> None:
        """Fills columns of matched and counted. Areas that ignore the same objects have the same matches, and so have
        those that ignore none or all: there, what is matched to an ignored object is all or nothing.
        """
        self._dts[pair] = [self.entries[place] for place in self.places[pair][rows]]  # what evaluateImg reads
        self.ious[pair] = self.overlaps[pair][rows]
        known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for a, skipped in enumerate(ignored):
            is_uniform = skipped.all() or not skipped.any()
            key = b"" if is_uniform else skipped.tobytes()
            if key not in known:
                matches = self.evaluateImg(*pair, self.params.areaRng[a], len(rows))
                known[key] = matches["dtMatches"] != 0, matches["dtIgnore"]  # [T, len(rows)]
            has_object, passed = known[key]
            passed = skipped.all() if is_uniform else passed
            matched[a][:, columns] = has_object
            counted[a][:, columns] = np.where(has_object, np.logical_not(passed), counted[a][:, columns])

    def true_ious(self) -> np.ndarray:
        """The largest IoU of each result with an object of its category that is no crowd; 0 where there is none.

        Returns: float64 [N].
        """
        ious = np.zeros(len(self.entries))
        for pair, overlaps in self.overlaps.items():
            is_object = [not entry["iscrowd"] for entry in self._gts[pair]]
            if any(is_object):
                ious[self.places[pair]] = overlaps[:, is_object].max(axis=1)
        return ious


def precision_at(
    matched: np.ndarray, counted: np.ndarray, objects: float, recalls: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, len(recalls)] and recall [T] of results by score: what COCOeval.accumulate computes.

    matched, counted: bool [T, D], see Matches. objects: how many there are to be found. weights: [D], how often each
        result is there; once, by default.
    """
    true, false = matched & counted, ~matched & counted
    if weights is not None:
        true, false = true * weights, false * weights
    true, false = (np.cumsum(each, axis=1, dtype=np.float64) for each in (true, false))  # [T, D]
    recall, precision = true / objects, true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 at recalls that are not reached
    places = [np.searchsorted(row, recalls, side="left") for row in recall]
    return np.take_along_axis(precision, np.array(places), axis=1), recall[:, -1] if recall.size else np.zeros(
        len(recall)
    )


def run_cocoeval(truth: COCO, results: list[dict[str, Any]], kind: str, max_dets: int) -> RankedEvaluation:
    """Match results to a ground truth, over all of its images, ranked by their "score".

    kind: "bbox" or "segm". max_dets: how many of an image's best results of a class count.
    """
    return RankedEvaluation(truth, results, kind, max_dets).rank()


def _mean(values: np.ndarray) -> float:
    """Over what is known; -1, as pycocotools has it, if that is nothing."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def average_precision(
    evaluation: COCOeval, iou: float | None = None, area: str = "all", category: int | None = None
) -> float:
    """COCO's AP: precision at 101 recalls, then the mean over recalls, IoU thresholds and categories.

    iou: one of the ten thresholds; all by default. area: one of AREAS. category: a category id; all by default.

    Returns: AP in [0, 1]; -1, as pycocotools has it, if there is no such object.
    Raises: ValueError for another threshold, area or category.
    """
    return _mean(_precision(evaluation, iou, area, category))


def _precision(evaluation: COCOeval, iou: float | None, area: str, category: int | None = None) -> np.ndarray:
    """[T, 101, K], at the largest max_dets."""
    params = evaluation.params
    precision = evaluation.eval["precision"][:, :, :, _place("area", AREAS, area), -1]
    if iou is not None:
        precision = precision[[_place("iou", params.iouThrs.round(12).tolist(), round(iou, 12))]]
    if category is not None:
        precision = precision[:, :, [_place("category", params.catIds, category)]]
    return precision


def _place(name: str, values: Sequence, value: Any) -> int:
    if value not in values:
        raise ValueError(f"{name} must be one of {utils.listed(map(str, values))}, not {value!r}")
    return list(values).index(value)


def average_recall(evaluation: COCOeval, max_dets: int | None = None, area: str = "all") -> float:
    """COCO's AR: the largest recall, the mean over IoU thresholds and categories.

    max_dets: one of the evaluation's; the largest by default. area: one of AREAS.

    Returns: AR in [0, 1], or -1 as average_precision.
    Raises: ValueError for another max_dets or area.
    """
    which = -1 if max_dets is None else _place("max_dets", evaluation.params.maxDets, max_dets)
    return _mean(evaluation.eval["recall"][:, :, _place("area", AREAS, area), which])


def summary(evaluation: COCOeval) -> dict[str, float]:
    """COCO's twelve numbers: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

    The number of AR100 is the evaluation's largest max_dets; AR1 and AR10 are there if that is larger.
    """
    numbers = {name: average_precision(evaluation, *what) for name, what in MEASURES.items()}
    numbers |= {f"AR{count}": average_recall(evaluation, count) for count in evaluation.params.maxDets}
    return numbers | {f"AR{area[0]}": average_recall(evaluation, area=area) for area in AREAS[1:]}


def precision_curve(evaluation: COCOeval, iou: float | None = None) -> np.ndarray:
    """Mean precision at recalls 0, 0.01 ... 1 over categories (and thresholds): float64 [101]; -1 without objects."""
    precision = _precision(evaluation, iou, "all")
    known = (precision > -1).all(axis=(0, 1))  # [K]; a category has objects or not
    return precision[:, :, known].mean(axis=(0, 2)) if known.any() else np.full(precision.shape[1], -1.0)


############################################################
#  What mask scoring changes
############################################################

# How masks are ranked: what it adds to the name of a measure, the scores [N] from class scores, mask scores, true IoUs.
RANKINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    " (class score)": lambda class_scores, mask_scores, ious: class_scores,
    "": lambda class_scores, mask_scores, ious: mask_scores,
    " (true IoU)": lambda class_scores, mask_scores, ious: class_scores * ious,
}


def gain_name(measure: str) -> str:
    """What re-scoring adds to a measure is called."""
    return "re-scoring gain" if measure == "AP" else f"re-scoring gain {measure}"


def correlation(one: np.ndarray | None, other: np.ndarray) -> float:
    """Pearson's; 0 where it has no meaning: no values (no MaskIoU head), or all the same."""
    if one is None or not len(one) or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


class Example(NamedTuple):
    """A detection worth a picture."""

    image_id: int  # as in the results
    title: str  # of the image
    class_name: str
    class_score: float
    mask_iou: float | None  # predicted; None without a MaskIoU head
    mask_score: float
    true_iou: float  # largest IoU with an object of the class
    box: tuple[float, float, float, float]  # (y1, x1, y2, x2) around the mask
    mask: dict  # RLE
    truth: dict | None  # RLE of the object of the class that it overlaps most


@dataclasses.dataclass
class Evaluation:
    """Every number of an evaluation."""

    metrics: dict[str, float]  # by name, see evaluate_results
    classes: list[dict[str, Any]]  # of each category: "name", "category_id", "objects", and numbers by name
    curves: dict[str, np.ndarray]  # precision [101], by "mask AP50", "mask AP50 (class score)", "box AP50" ...
    confusion: np.ndarray  # int64 [K + 1, K + 1], see confusion_matrix
    confusion_rule: str  # how it was counted, in a sentence
    class_names: list[str]  # K + 1, background first
    class_scores: np.ndarray  # float64 [N], of all detections
    mask_ious: np.ndarray | None  # float64 [N], predicted; None without a MaskIoU head
    mask_scores: np.ndarray  # float64 [N]
    true_ious: np.ndarray  # float64 [N]
    examples: dict[str, list[Example]]  # "overrated", "corrected", "best"
    facts: dict[str, str] = dataclasses.field(default_factory=dict)  # what was evaluated, by whom and when
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by stage


def evaluate_results(
    contents: dict[str, Any], boxes: list[dict[str, Any]], masks: list[dict[str, Any]], max_dets: int = 100
) -> Evaluation:
    """Every number of an evaluation.

    contents: a ground truth in COCO's format. boxes, masks: results as to_results makes them; those of categories that
        the ground truth does not have are left out. Nothing is changed in them.
    max_dets: how many of an image's best results of a category count.

    Returns: an Evaluation without facts and seconds, whose metrics are in [0, 1], -1 if there is no such object, for X
        of summary() (AP, AP50 ... AR100 ...):
            "box X", by class score; "mask X", by mask score; "mask X (class score)"; "mask X (true IoU)", by class
            score x true IoU, the upper bound of re-scoring;
            "re-scoring gain", "re-scoring gain AP50" ...: by mask score minus by class score, 0 without such objects;
            "IoU correlation" of predicted and true IoU over all detections; "class score correlation", of it and true
            IoU; "images", "detections", "objects", "max_dets".
    Raises: ValueError if max_dets is below 1, and as as_coco.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    truth = as_coco(contents)
    contents = truth.dataset
    boxes, masks = (_of_known_categories(entries, truth.cats) for entries in (boxes, masks))
    report = _Numbers(truth)
    report.add(RankedEvaluation(truth, boxes, "bbox", max_dets).rank(), "box", "")
    evaluation = RankedEvaluation(truth, masks, "segm", max_dets)
    ious = evaluation.true_ious()
    class_scores = np.array([entry["class_score"] for entry in masks], np.float64)
    mask_scores = np.array([entry["score"] for entry in masks], np.float64)
    for ranking, score in RANKINGS.items():
        report.add(evaluation.rank(score(class_scores, mask_scores, ious)), "mask", ranking)
    has_head = bool(masks) and masks[0]["mask_iou"] is not None
    mask_ious = np.array([entry["mask_iou"] for entry in masks], np.float64) if has_head else None
    report.finish(len(masks), max_dets, correlation(mask_ious, ious), correlation(class_scores, ious))
    return Evaluation(
        report.metrics,
        report.classes,
        report.curves,
        confusion_matrix(contents, masks),
        CONFUSION_RULE,
        ["BG", *(entry["name"] for entry in report.categories)],
        class_scores,
        mask_ious,
        mask_scores,
        ious,
        find_examples(contents, masks, ious),
    )


def _of_known_categories(results: list[dict[str, Any]], categories: Container[int]) -> list[dict[str, Any]]:
    return [entry for entry in results if entry["category_id"] in categories]


class _Numbers:
    """Collects what evaluations say. A category each has a row, in ascending order of their ids."""

    def __init__(self, truth: COCO) -> None:
        self.contents = truth.dataset
        self.categories = sorted(truth.dataset["categories"], key=lambda entry: entry["id"])
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, np.ndarray] = {}
        counts = Counter(entry["category_id"] for entry in self.contents["annotations"] if not entry["iscrowd"])
        self.classes = [
            {"name": entry["name"], "category_id": entry["id"], "objects": counts[entry["id"]]}
            for entry in self.categories
        ]

    def add(self, evaluation: COCOeval, kind: str, ranking: str) -> None:
        for name, value in summary(evaluation).items():
            self.metrics[f"{kind} {name}{ranking}"] = value
        for name in CLASS_MEASURES:
            self.curves[f"{kind} {name}{ranking}"] = precision_curve(evaluation, MEASURES[name][0])
            for row in self.classes:
                value = average_precision(evaluation, MEASURES[name][0], category=row["category_id"])
                row[f"{kind} {name}{ranking}"] = value

    def finish(self, detections: int, max_dets: int, of_ious: float, of_scores: float) -> None:
        for name in MEASURES:
            self.metrics[gain_name(name)] = self.metrics[f"mask {name}"] - self.metrics[f"mask {name} (class score)"]
        for name in CLASS_MEASURES:
            for row in self.classes:
                row[gain_name(name)] = row[f"mask {name}"] - row[f"mask {name} (class score)"]
        objects = sum(row["objects"] for row in self.classes)
        counts = {"images": len(self.contents["images"]), "detections": detections, "objects": objects}
        self.metrics |= {"IoU correlation": of_ious, "class score correlation": of_scores}
        self.metrics |= {**counts, "max_dets": max_dets}


############################################################
#  Confusion
############################################################

CONFUSION_SCORE = CONFUSION_IOU = 0.5
CONFUSION_RULE = (
    f"Detections with a class score of at least {CONFUSION_SCORE}, best first, each take the object that their mask "
    f"overlaps most, of whatever class, among those that are free and that it overlaps with an IoU of at least "
    f"{CONFUSION_IOU}; crowds are left out, and what lies in one to at least {CONFUSION_IOU} and takes no object."
)


def confusion_matrix(contents: dict[str, Any], masks: list[dict[str, Any]]) -> np.ndarray:
    """What objects are taken for.

    contents: a ground truth in COCO's format. masks: results as to_results makes them; those of categories that the
        ground truth does not have are left out.

    Returns: int64 [K + 1, K + 1], row the true category, column the predicted one, in ascending order of their ids.
        Row 0 counts detections of what is no object, column 0 objects that were missed; see CONFUSION_RULE. What was
        detected in a crowd counts nowhere.
    Raises: as as_coco.
    """
    truth = as_coco(contents)
    place = {None: 0, **{category: i for i, category in enumerate(sorted(truth.cats), start=1)}}
    chosen = [entry for entry in masks if entry["class_score"] >= CONFUSION_SCORE]
    chosen = sorted(_of_known_categories(chosen, truth.cats), key=lambda entry: -entry["class_score"])
    _check_images(chosen, set(truth.imgs))
    matrix = np.zeros((len(place),) * 2, np.int64)
    objects, found = _by_image(truth.dataset["annotations"]), _by_image(chosen)
    for image in objects.keys() | found.keys():
        for true, predicted in _confused(objects.get(image, []), found.get(image, [])):
            matrix[place[true], place[predicted]] += 1
    return matrix


def _by_image(entries: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"]].append(entry)
    return groups


def _confused(objects: list[dict], found: list[dict]) -> Iterator[tuple[int | None, int | None]]:
    """(true, predicted) category of each match, None where there is none."""
    crowds = [int(entry["iscrowd"]) for entry in objects]
    free = [not crowd for crowd in crowds]
    overlaps = np.zeros((len(found), len(objects)))
    if objects and found:
        codes = ([entry["segmentation"] for entry in entries] for entries in (found, objects))
        overlaps = coco_mask.iou(*codes, crowds)
    for entry, row in zip(found, overlaps, strict=True):
        candidates = np.where(free, row, 0.0)
        if candidates.size and candidates.max() >= CONFUSION_IOU:
            best = int(candidates.argmax())
            free[best] = False
            yield objects[best]["category_id"], entry["category_id"]
        elif not any(crowd and share >= CONFUSION_IOU for crowd, share in zip(crowds, row, strict=True)):
            yield None, entry["category_id"]
    for entry, is_free in zip(objects, free, strict=True):
        if is_free:
            yield entry["category_id"], None


############################################################
#  Examples
############################################################

EXAMPLES, EXAMPLES_OF_AN_IMAGE = 12, 2


def find_examples(contents: dict[str, Any], masks: list[dict[str, Any]], ious: np.ndarray) -> dict[str, list[Example]]:
    """Detections worth a picture, at most EXAMPLES of each kind and EXAMPLES_OF_AN_IMAGE of them from one image.

    contents: a ground truth in COCO's format. masks: results as to_results makes them. ious: [N], true.

    Returns: "overrated": of a high class score though the mask is bad (something of the class is there, so it is not
        the class that is wrong): the paper's Figure 1. "corrected": those whose mask score is far below the class
        score, and rightly so. "best": of a high mask score, and rightly so.
    Raises: as as_coco.
    """
    contents = as_coco(contents).dataset
    class_scores = np.array([entry["class_score"] for entry in masks])
    mask_scores = np.array([entry["score"] for entry in masks])
    predicted = np.array([np.nan if entry["mask_iou"] is None else entry["mask_iou"] for entry in masks], np.float64)
    is_there, is_right = ious >= 0.1, np.abs(predicted - ious) <= 0.1
    kinds = {
        "overrated": np.where(is_there & (ious < 0.75), class_scores - ious, 0),
        "corrected": np.where(is_there & is_right & (ious < 0.75), class_scores - mask_scores, 0),
        "best": mask_scores * ious,
    }
    objects = _by_image(contents["annotations"])
    describe = _Describe(contents, objects)
    return {kind: [describe(masks[i], float(ious[i])) for i in _largest(worth, masks)] for kind, worth in kinds.items()}


def _largest(worth: np.ndarray, masks: list[dict[str, Any]]) -> list[int]:
    """The places of the largest values above 0, few of any image."""
    chosen, taken = [], defaultdict(int)
    for i in np.argsort(-worth, kind="stable").tolist():
        if len(chosen) == EXAMPLES or worth[i] <= 0:
            break
        image = masks[i]["image_id"]
        if taken[image] < EXAMPLES_OF_AN_IMAGE:
            taken[image] += 1
            chosen.append(i)
    return chosen


class _Describe:
    def __init__(self, contents: dict[str, Any], objects: dict[int, list[dict]]) -> None:
        self.objects = objects
        self.names = {entry["id"]: entry["name"] for entry in contents["categories"]}
        self.titles = {entry["id"]: entry.get("file_name", f"image {entry['id']}") for entry in contents["images"]}

    def __call__(self, entry: dict[str, Any], iou: float) -> Example:
        code, image, category = entry["segmentation"], entry["image_id"], entry["category_id"]
        same = [each for each in self.objects.get(image, ()) if each["category_id"] == category and not each["iscrowd"]]
        overlaps = coco_mask.iou([code], [each["segmentation"] for each in same], [0] * len(same)) if same else None
        truth = same[int(overlaps[0].argmax())]["segmentation"] if same and overlaps.max() > 0 else None
        x, y, width, height = coco_mask.toBbox(code).tolist()
        scores = entry["class_score"], entry["mask_iou"], entry["score"]
        box = (y, x, y + height, x + width)
        return Example(image, self.titles[image], self.names[category], *scores, iou, box, code, truth)


############################################################
#  In words
############################################################


def metrics_table(metrics: dict[str, float]) -> str:
    """The numbers of evaluate_results for people: AP in points (0 to 100), a ranking a line."""
    rows = {
        "boxes by class score": [f"box {name}" for name in MEASURES],
        "masks by class score (A)": [f"mask {name} (class score)" for name in MEASURES],
        "masks by mask score (B)": [f"mask {name}" for name in MEASURES],
        "re-scoring gain (B - A)": [gain_name(name) for name in MEASURES],
        "masks by true IoU (limit)": [f"mask {name} (true IoU)" for name in MEASURES],
    }
    known = [metrics[f"box {name}"] >= 0 for name in MEASURES]  # -1: there is no object of this size
    lines = [f"{'':26}" + "".join(f"{name:>8}" for name in MEASURES)]
    for title, names in rows.items():
        sign = "+" if "gain" in title else ""
        values = [f"{100 * metrics[name]:{sign}.1f}" for name in names]
        cells = [f"{value if shown else '-':>8}" for value, shown in zip(values, known, strict=True)]
        lines.append(f"{title:26}" + "".join(cells))
    lines.append(
        f"{metrics['images']:.0f} images, {metrics['detections']:.0f} detections, at most {metrics['max_dets']:.0f} of "
        f"a class in an image; correlation of predicted and true IoU: {metrics['IoU correlation']:.2f}"
    )
    return "\n".join(lines)

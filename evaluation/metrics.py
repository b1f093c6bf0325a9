"""From ground truth and results to numbers: COCO's average precision, and what mask scoring changes in it.

Boxes are ranked by class score. The same masks are ranked three times: by class score (A), by mask score (B), and by
class score x true IoU, the ranking of a MaskIoU head that is never wrong.

pycocotools computes overlaps and matches. The code around it computes each overlap once for all rankings, matches only
those results that can match anything, and sums with numpy. The numbers are COCOeval's, to the bit.

    T IoU thresholds   K categories   A areas   M max_dets   D results and G objects of a category   N results
"""

import contextlib
import dataclasses
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import utils
from data.formats.coco_file import LABELLED

from .calibration import correlation
from .examples import Example, find_examples
from .names import AREAS, CLASS_MEASURES, CORRELATIONS, MEASURES, Metric

############################################################
#  Average precision
############################################################


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pycocotools prints each of its steps."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def as_coco(contents: dict[str, Any], results: list[dict[str, Any]] | None = None) -> COCO:
    """pycocotools' index of a ground truth; with results, the index that loadRes would make of the results.

    pycocotools may write into the index: it holds copies. Annotations are numbered from 1, because pycocotools takes an
    id 0 for "none" and confuses two annotations of one id. Annotations of unknown images or categories are left out,
    and those of classes that are not labelled in their image: see counted_results. Segmentations become compressed
    RLEs. Unlike loadRes, an empty list of results is taken.

    Raises: ValueError for images or categories of the same id, and for results of images that the ground truth lacks.
    """
    index = COCO()
    images, categories = (_unique_ids(contents, name) for name in ("images", "categories"))
    if results is None:
        labelled = _labelled_categories(contents["images"], contents["categories"])
        entries = [
            {**entry, "iscrowd": int(entry.get("iscrowd", 0))}
            for entry in contents["annotations"]
            if entry["image_id"] in images and entry["category_id"] in labelled.get(entry["image_id"], categories)
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


def counted_results(results: list[dict[str, Any]], truth: COCO) -> list[dict[str, Any]]:
    """The results that can be right or wrong. Whatever makes numbers of results leaves the others out first.

    Those are of categories that the ground truth does not have, and of categories that are not labelled in their image:
    "labelled_classes" of an image names its labelled categories, by id or name; without it, all are labelled. There may
    be an object where such a result is, which nobody has marked.

    truth: of as_coco.
    """
    labelled = _labelled_categories(truth.dataset["images"], truth.dataset["categories"])
    return [entry for entry in results if entry["category_id"] in labelled.get(entry["image_id"], truth.cats)]


def _labelled_categories(images: list[dict[str, Any]], categories: list[dict[str, Any]]) -> dict[int, set[int]]:
    """{image id: the category ids that are labelled in it}, for the images in which not all are."""
    found = {}
    for image in images:
        if image.get(LABELLED) is not None:
            found[image["id"]] = {each["id"] for each in categories if {each["id"], each["name"]} & {*image[LABELLED]}}
    return found


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
    outside: np.ndarray  # bool [A, D], whether their area lies outside of the range A
    ignored: dict[int, np.ndarray]  # image id: bool [A, G], whether the range A ignores its objects


class Matches(NamedTuple):
    """The results of a category, best score first."""

    images: np.ndarray  # [D], the ids of their images
    place: np.ndarray  # int64 [D], 0 for the best of its image
    matched: np.ndarray  # bool [A, T, D], whether it has an object
    counted: np.ndarray  # bool [A, T, D], whether it counts, as right or wrong, and is not ignored
    objects: dict[int, np.ndarray]  # image id: int64 [A], how many of its objects count


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
        for category, group in pairs.items():
            places = [self.places[pair] for pair in group if pair in self.places]
            results = np.concatenate(places) if places else np.zeros(0, np.int64)
            images = np.array([self.entries[place]["image_id"] for place in results.tolist()])
            ignored = {pair[0]: self._ignored(self._gts[pair]) for pair in group if pair in self._gts}
            categories[category] = _Category(results, images, outside[:, results], ignored)
        return categories

    def _outside(self, entries: list[dict[str, Any]]) -> np.ndarray:
        low, high = np.array(self.params.areaRng, np.float64).T[:, :, None]  # [A, 1]
        areas = np.array([entry["area"] for entry in entries], np.float64)
        return (areas < low) | (areas > high)  # [A, len(entries)]

    def _ignored(self, objects: list[dict[str, Any]]) -> np.ndarray:
        return self._outside(objects) | np.array([bool(entry["ignore"]) for entry in objects])

    def rank(self, scores: Sequence[float] | None = None) -> "RankedEvaluation":
        """Evaluate and accumulate by these scores [N]; by default, by the scores that the results have.

        Fills `eval` with "precision" [T, 101, K, A, M] and "recall" [T, K, A, M], as COCOeval does, to the bit. Read it
        with average_precision and average_recall. COCOeval's summarize() does not work here: it prints, and it expects
        COCO's 100 among several max_dets.
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
        """Give the results these scores [N]; by default, keep the scores that they have. matches() sorts by them."""
        if scores is not None:
            for entry, score in zip(self.entries, scores, strict=True):
                entry["score"] = float(score)
        self.scores = np.array([entry["score"] for entry in self.entries], np.float64)

    def _rank_category(self, k: int, category: int) -> None:
        params, matches = self.params, self.matches(category)
        for a in range(len(params.areaRng)):
            objects = sum(counts[a] for counts in matches.objects.values())
            for m, max_dets in enumerate(params.maxDets if objects else ()):
                best = matches.place < max_dets
                results = matches.matched[a][:, best], matches.counted[a][:, best]
                precision, recall = precision_at(*results, objects, params.recThrs)
                self.eval["precision"][:, :, k, a, m], self.eval["recall"][:, k, a, m] = precision, recall

    def matches(self, category: int) -> Matches:
        """The results of a category, best first by the scores of set_scores() or rank(), and their matches."""
        entries = self.categories[category]
        order = np.lexsort((-self.scores[entries.results], entries.images))  # by image, then by score; stable
        place = np.arange(len(order)) - np.searchsorted(entries.images, entries.images)
        matched, counted = self._match(category, order)
        best = np.argsort(-self.scores[entries.results[order]], kind="mergesort")
        objects = {image: np.count_nonzero(~ignored, axis=1) for image, ignored in entries.ignored.items()}
        return Matches(entries.images[best], place[best], matched[..., best], counted[..., best], objects)

    def _match(self, category: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """matched and counted of Matches, in this order of the category's results.

        order: int64 [D], by image and score.
        """
        entries = self.categories[category]
        matched = np.zeros((len(self.params.areaRng), len(self.params.iouThrs), len(order)), bool)
        counted = np.repeat(~entries.outside[:, None, order], matched.shape[1], axis=1)
        for image, ignored in entries.ignored.items():
            first, last = (np.searchsorted(entries.images, image, side) for side in ("left", "right"))
            if first == last:
                continue
            rows = order[first:last] - first  # of its overlaps, best score first
            near = self.overlaps[image, category][rows].max(axis=1) >= self.params.iouThrs.min()  # others match nothing
            if near.any():
                columns = first + np.flatnonzero(near)
                self._match_image((image, category), rows[near], ignored, columns, matched, counted)
        return matched, counted

    def _match_image(self, pair, rows: np.ndarray, ignored: np.ndarray, columns, matched, counted) -> None:
        """Fill columns of matched and counted.

        Ranges of areas that ignore the same objects have the same matches, which are computed once. A range that
        ignores no object and a range that ignores all have the same matches, too; in the second none of them counts.
        """
        self._dts[pair] = [self.entries[place] for place in self.places[pair][rows]]  # what evaluateImg reads
        self.ious[pair] = self.overlaps[pair][rows]
        computed: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for a, skipped in enumerate(ignored):
            is_uniform = skipped.all() or not skipped.any()
            key = b"" if is_uniform else skipped.tobytes()
            if key not in computed:
                matches = self.evaluateImg(*pair, self.params.areaRng[a], len(rows))
                computed[key] = matches["dtMatches"] != 0, matches["dtIgnore"]  # [T, len(rows)]
            has_object, is_ignored = computed[key]
            is_ignored = skipped.all() if is_uniform else is_ignored
            matched[a][:, columns] = has_object
            counted[a][:, columns] = np.where(has_object, np.logical_not(is_ignored), counted[a][:, columns])

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
    """Precision [T, len(recalls)] and recall [T] of sorted results, as COCOeval.accumulate computes them.

    matched, counted: bool [T, D], see Matches. objects: how many objects count. weights: [D], how often each result
        counts; once, by default.
    """
    true, false = matched & counted, ~matched & counted
    if weights is not None:
        true, false = true * weights, false * weights
    true, false = (np.cumsum(each, axis=1, dtype=np.float64) for each in (true, false))  # [T, D]
    recall, precision = true / objects, true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 at recalls that are not reached
    places = [np.searchsorted(row, recalls, side="left") for row in recall]
    last_recall = recall[:, -1] if recall.size else np.zeros(len(recall))
    return np.take_along_axis(precision, np.array(places), axis=1), last_recall


def run_cocoeval(truth: COCO, results: list[dict[str, Any]], kind: str, max_dets: int) -> RankedEvaluation:
    """Match results to a ground truth, over all of its images, ranked by their "score".

    kind: "bbox" or "segm". max_dets: how many of an image's best results of a class count.
    """
    return RankedEvaluation(truth, results, kind, max_dets).rank()


def boxes_round(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of boxes, scored by class score: the smallest one round each mask, as BOXES_OF_MASKS makes them.

    masks: results as to_results makes them. Of an empty mask it is empty; BOXES_OF_MASKS keeps the box head's.
    """
    corners = utils.boxes_of_masks([entry["segmentation"] for entry in masks], np.zeros((len(masks), 4)))
    return [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        | {"score": entry["class_score"]}
        for entry, (y1, x1, y2, x2) in zip(masks, corners.tolist(), strict=True)
    ]


def box_ap_of_masks(truth: COCO, masks: list[dict[str, Any]], max_dets: int) -> float:
    """The box AP if each box were the smallest one round its mask; -1 without objects.

    truth: of as_coco. masks: results as to_results makes them; counted_results says which of them count.
    """
    return average_precision(RankedEvaluation(truth, boxes_round(masks), "bbox", max_dets).rank())


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are not -1. pycocotools writes -1 where there is no object; so does this."""
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0


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
    place = -1 if max_dets is None else _place("max_dets", evaluation.params.maxDets, max_dets)
    return _mean(evaluation.eval["recall"][:, :, _place("area", AREAS, area), place])


def summary(evaluation: COCOeval) -> dict[str, float]:
    """COCO's twelve numbers: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

    The number of AR100 is the evaluation's largest max_dets; AR1 and AR10 are there if that is larger.
    """
    numbers = {name: average_precision(evaluation, *measure) for name, measure in MEASURES.items()}
    numbers |= {f"AR{count}": average_recall(evaluation, count) for count in evaluation.params.maxDets}
    return numbers | {f"AR{area[0]}": average_recall(evaluation, area=area) for area in AREAS[1:]}


def precision_curve(evaluation: COCOeval, iou: float | None = None) -> np.ndarray:
    """Mean precision at recalls 0, 0.01 ... 1 over categories (and thresholds): float64 [101]; -1 without objects."""
    precision = _precision(evaluation, iou, "all")
    has_objects = (precision > -1).all(axis=(0, 1))  # [K]
    return precision[:, :, has_objects].mean(axis=(0, 2)) if has_objects.any() else np.full(precision.shape[1], -1.0)


############################################################
#  Every number of an evaluation
############################################################

# How masks are ranked: their scores [N], from class scores, mask scores and true IoUs
RANKINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "class score": lambda class_scores, mask_scores, ious: class_scores,
    "mask score": lambda class_scores, mask_scores, ious: mask_scores,
    "true IoU": lambda class_scores, mask_scores, ious: class_scores * ious,
}


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
    examples: dict[str, list[Example]]  # by kind, see find_examples
    dataset_images: int | None = None  # images of the whole data set; None: not known
    facts: dict[str, str] = dataclasses.field(default_factory=dict)  # what was evaluated, by whom and when
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of each part of the work

    @property
    def is_subset(self) -> bool:
        """Whether only some of the data set's images were evaluated."""
        return self.dataset_images is not None and self.metrics["images"] < self.dataset_images

    @property
    def iou_scores(self) -> dict[str, np.ndarray]:
        """The scores [N] that may say the true IoU of a mask, by the names of CORRELATIONS."""
        scores = {"predicted IoU": self.mask_ious, "class score": self.class_scores}
        return {name: values for name, values in scores.items() if values is not None}


def evaluate_results(
    contents: dict[str, Any], boxes: list[dict[str, Any]], masks: list[dict[str, Any]], max_dets: int = 100
) -> Evaluation:
    """Compute every number of an evaluation.

    contents: a ground truth in COCO's format. boxes, masks: results as to_results makes them; counted_results says
        which of them count. None of them is changed.
    max_dets: how many of an image's best results of a category count.

    Returns: an Evaluation without facts and seconds. Its metrics lie in [0, 1], and are -1 if there is no such object.
        With X for each number of summary() (AP, AP50 ... AR100 ...), they are
            "box X", ranked by class score; "mask X", by mask score; "mask X (class score)"; "mask X (true IoU)", by
            class score x true IoU, the upper bound of re-scoring;
            "re-scoring gain", "re-scoring gain AP50" ...: by mask score minus by class score, 0 without such objects;
            "IoU correlation" of predicted and true IoU over all detections; "class score correlation", of class score
            and true IoU; "images", "detections", "objects", "max_dets"; and if there are images in which only some
            classes are labelled, "unlabelled_detections": how many of other classes were left out there.
    Raises: ValueError if max_dets is below 1, and as as_coco.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    truth = as_coco(contents)
    known = sum(entry["category_id"] in truth.cats for entry in masks)
    boxes, masks = (counted_results(entries, truth) for entries in (boxes, masks))
    numbers = _Numbers(truth)
    numbers.add(RankedEvaluation(truth, boxes, "bbox", max_dets).rank(), "box", "class score")
    ranked = RankedEvaluation(truth, masks, "segm", max_dets)
    true_ious = ranked.true_ious()
    class_scores = np.array([entry["class_score"] for entry in masks], np.float64)
    mask_scores = np.array([entry["score"] for entry in masks], np.float64)
    for ranking, score in RANKINGS.items():
        numbers.add(ranked.rank(score(class_scores, mask_scores, true_ious)), "mask", ranking)
    numbers.add_gains()
    has_head = bool(masks) and masks[0]["mask_iou"] is not None
    evaluation = Evaluation(
        metrics=numbers.metrics,
        classes=numbers.classes,
        curves=numbers.curves,
        confusion=confusion_matrix(truth, masks),
        confusion_rule=CONFUSION_RULE,
        class_names=["BG", *(row["name"] for row in numbers.classes)],
        class_scores=class_scores,
        mask_ious=np.array([entry["mask_iou"] for entry in masks], np.float64) if has_head else None,
        mask_scores=mask_scores,
        true_ious=true_ious,
        examples=find_examples(truth, masks, true_ious),
    )
    scores, objects = evaluation.iou_scores, sum(row["objects"] for row in numbers.classes)
    evaluation.metrics |= {name: correlation(scores.get(score), true_ious) for score, name in CORRELATIONS.items()}
    evaluation.metrics |= {"images": len(truth.imgs), "detections": len(masks), "objects": objects}
    evaluation.metrics["max_dets"] = max_dets
    if any(LABELLED in image for image in contents["images"]):
        evaluation.metrics["unlabelled_detections"] = known - len(masks)
    return evaluation


class _Numbers:
    """Collects the numbers of several rankings by name: of all categories, and of each, in ascending order of ids."""

    def __init__(self, truth: COCO) -> None:
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, np.ndarray] = {}
        counts = Counter(entry["category_id"] for entry in truth.dataset["annotations"] if not entry["iscrowd"])
        self.classes: list[dict[str, Any]] = [
            {"name": truth.cats[number]["name"], "category_id": number, "objects": counts[number]}
            for number in sorted(truth.cats)
        ]

    def add(self, evaluation: COCOeval, kind: str, ranking: str) -> None:
        for measure, value in summary(evaluation).items():
            self.metrics[str(Metric(kind, measure, ranking))] = value
        for measure in CLASS_MEASURES:
            name, iou = str(Metric(kind, measure, ranking)), MEASURES[measure].iou
            self.curves[name] = precision_curve(evaluation, iou)
            for row in self.classes:
                row[name] = average_precision(evaluation, iou, category=row["category_id"])

    def add_gains(self) -> None:
        """Masks by mask score minus masks by class score."""
        tables = [(self.metrics, tuple(MEASURES)), *((row, CLASS_MEASURES) for row in self.classes)]
        for numbers, measures in tables:
            for measure in measures:
                after, before = (str(Metric("mask", measure, ranking)) for ranking in ("mask score", "class score"))
                numbers[str(Metric("gain", measure, "mask score"))] = numbers[after] - numbers[before]


############################################################
#  Confusion
############################################################

CONFUSION_SCORE = CONFUSION_IOU = 0.5
CONFUSION_RULE = (
    f"Detections with a class score of at least {CONFUSION_SCORE}, best first, each take the object that their mask "
    f"overlaps most, of whatever class, among those that are free and that it overlaps with an IoU of at least "
    f"{CONFUSION_IOU}; crowds are left out, and what lies in one to at least {CONFUSION_IOU} and takes no object."
)


def confusion_matrix(truth: COCO, masks: list[dict[str, Any]]) -> np.ndarray:
    """Count for which class each object was taken, by CONFUSION_RULE.

    truth: of as_coco. masks: results as to_results makes them; counted_results says which of them count.

    Returns: int64 [K + 1, K + 1], row the true category, column the predicted one, in ascending order of their ids.
        Row 0 counts detections where there is no object, column 0 objects that were missed. Detections in a crowd count
        nowhere.
    Raises: ValueError for results of images that the ground truth lacks.
    """
    place = {None: 0, **{category: i for i, category in enumerate(sorted(truth.cats), start=1)}}
    chosen = [entry for entry in masks if entry["class_score"] >= CONFUSION_SCORE]
    chosen = sorted(counted_results(chosen, truth), key=lambda entry: -entry["class_score"])
    _check_images(chosen, set(truth.imgs))
    detections: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in chosen:
        detections[entry["image_id"]].append(entry)
    matrix = np.zeros((len(place),) * 2, np.int64)
    for image in truth.imgs:
        for true, predicted in _confused(truth.imgToAnns.get(image, []), detections.get(image, [])):
            matrix[place[true], place[predicted]] += 1
    return matrix


def _confused(objects: list[dict], detections: list[dict]) -> Iterator[tuple[int | None, int | None]]:
    """The (true, predicted) category of each match in an image. None stands for "no object" and for "missed".

    detections: best class score first.
    """
    crowds = [int(entry["iscrowd"]) for entry in objects]
    free = [not crowd for crowd in crowds]
    overlaps = np.zeros((len(detections), len(objects)))
    if objects and detections:
        codes = ([entry["segmentation"] for entry in entries] for entries in (detections, objects))
        overlaps = coco_mask.iou(*codes, crowds)
    for entry, row in zip(detections, overlaps, strict=True):
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

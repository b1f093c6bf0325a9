"""The numbers of an evaluation of somebody's own data, which come on top of COCO's: at one threshold of the score.

N detections from half the threshold on   G of GOOD_IOUS   K classes of the model, 0 is background
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from config import Config

from .accept import (
    GOOD_IOUS,
    AcceptFit,
    AcceptRow,
    Sample,
    accept_table,
    calibration_error,
    chances,
    cross_validated,
    fit_accept,
    score_threshold,
)
from .boundary import BoundaryEvaluation
from .errors import Error, KindCount, count_errors, find_errors
from .matching import IOUS, SIZES, Counts, Quality, Scene, count, make_disjoint, make_scenes, match
from .metrics import RankedEvaluation, as_coco, average_precision, box_ap_of_masks, counted_results, summary
from .names import OWN_CLASS_COLUMNS
from .threshold import THRESHOLD_IOU, ThresholdCurve, best_threshold, threshold_curve

CHOSEN_HERE, STORED, USUAL = "chosen on these pictures", "stored in the model", "the usual one"
VALIDATED, STORED_FIT, NOT_CALIBRATED = "cross-validated", "stored in the model", "none"
BOX_GAIN = 0.01  # of box AP, from which on boxes round the masks are chosen: less may be luck

# Numbers of Quality by the names that people know. Panoptic quality is computed from disjoint detections.
QUALITIES = {
    "F1": "f1", "precision": "precision", "recall": "recall", "accuracy": "accuracy", "mean IoU": "mean_iou",
    "mean boundary IoU": "mean_boundary_iou", "true positives": "true_positives", "false positives": "false_positives",
    "false negatives": "false_negatives",
}  # fmt: skip
PANOPTIC = {"PQ": "panoptic_quality", "SQ": "mean_iou", "RQ": "f1"}


@dataclasses.dataclass
class AcceptNumbers:
    """What the chance of a good mask is worth, for the detections from the threshold on."""

    fit: AcceptFit | None  # None: nothing was fitted on these pictures
    source: str  # of the chances: VALIDATED, STORED_FIT or NOT_CALIBRATED
    predicted: np.ndarray  # float64 [detections, G]; nothing if there are no chances
    good: np.ndarray  # bool [detections, G]

    @property
    def tables(self) -> dict[float, list[AcceptRow]]:
        """The table of accepting, for each of GOOD_IOUS; nothing if there are no chances."""
        if self.source == NOT_CALIBRATED:
            return {}
        return {iou: accept_table(self.predicted[:, g], self.good[:, g]) for g, iou in enumerate(GOOD_IOUS)}

    @property
    def errors(self) -> dict[float, float | None]:
        """The calibration error for each of GOOD_IOUS; nothing if there are no chances."""
        if self.source == NOT_CALIBRATED:
            return {}
        return {iou: calibration_error(self.predicted[:, g], self.good[:, g]) for g, iou in enumerate(GOOD_IOUS)}


@dataclasses.dataclass
class OwnNumbers:
    """Every number at the threshold."""

    threshold: float
    threshold_source: str  # CHOSEN_HERE, STORED or USUAL
    curve: ThresholdCurve
    counts: Counts
    disjoint: Counts  # of detections that share no pixel, for panoptic quality
    box_ap: float  # -1 without objects
    box_ap_of_masks: float  # the same of the boxes round the masks
    boxes_of_masks: bool | None  # whether these were chosen here; None: no choice was made
    boundary: dict[str, float]  # AP, AP50 ... of boundaries, -1 without such objects
    class_boundary: dict[int, float]  # boundary AP by category id
    class_names: dict[int, str]  # by category id
    errors: list[Error]
    object_areas: np.ndarray  # float64 [objects], pixels
    accept: AcceptNumbers
    is_fit: bool  # whether threshold and chances were chosen on these pictures just now
    titles: dict[int, str]  # file names by image id

    @property
    def error_counts(self) -> dict[str, KindCount]:
        """How often each kind of error happened."""
        return count_errors(self.errors)

    @property
    def quality(self) -> Quality:
        """The counts at an IoU of 0.5."""
        return self.counts.quality(THRESHOLD_IOU)

    def panoptic(self, name: str, iou: float, category: int | None = None) -> float | None:
        """PQ, SQ or RQ at an IoU: of a category, or the mean over the categories."""
        if category is None:
            return self.disjoint.mean_over_classes(PANOPTIC[name], iou)
        return getattr(self.disjoint.quality(iou, category), PANOPTIC[name])

    def metrics(self) -> dict[str, float]:
        """The numbers over all classes by name, as Evaluation.metrics has them: -1 if there is nothing to count."""
        values: dict[str, float | None] = {"threshold": self.threshold}
        for iou in IOUS:
            quality = self.counts.quality(iou)
            values |= {f"{name} at IoU {iou}": getattr(quality, field) for name, field in QUALITIES.items()}
            values |= {f"{name} at IoU {iou}": self.panoptic(name, iou) for name in PANOPTIC}
        values |= {"box AP of masks": self.box_ap_of_masks}
        values |= {f"boundary {name}": value for name, value in self.boundary.items()}
        return {name: -1.0 if value is None else float(value) for name, value in values.items()}

    def class_metrics(self, category: int) -> dict[str, float]:
        """The numbers of OWN_CLASS_COLUMNS of a category: -1 if there is nothing to count."""
        quality = self.counts.quality(THRESHOLD_IOU, category)
        values = {
            "F1": quality.f1,
            "precision": quality.precision,
            "recall": quality.recall,
            "PQ": self.panoptic("PQ", THRESHOLD_IOU, category),
            "boundary AP": self.class_boundary[category],
        }
        return {OWN_CLASS_COLUMNS[name]: -1.0 if value is None else value for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything but the detections, as json.dump takes it; null where there is nothing to count."""
        fit = self.accept.fit
        return {
            "threshold": self.threshold,
            "threshold_source": self.threshold_source,
            "all": self._rows(),
            "sizes": {size: self._rows(size=size) for size in SIZES},
            "classes": {name: self._rows(category) for category, name in self.class_names.items()},
            "panoptic": {str(iou): {name: self.panoptic(name, iou) for name in PANOPTIC} for iou in IOUS},
            "boxes": {"AP": self.box_ap, "AP of masks": self.box_ap_of_masks, "of masks": self.boxes_of_masks},
            "boundary": self.boundary,
            "errors": {kind: counts._asdict() for kind, counts in self.error_counts.items()},
            "curve": {name: values.tolist() for name, values in self.curve._asdict().items()},
            "accept": {
                "source": self.accept.source,
                "problem": fit.problem if fit else "",
                "calibration": list(fit.calibration) if fit and fit.calibration else None,
                "tables": {str(iou): [row._asdict() for row in rows] for iou, rows in self.accept.tables.items()},
                "calibration_errors": {str(iou): error for iou, error in self.accept.errors.items()},
            },
        }

    def _rows(self, category: int | None = None, size: str | None = None) -> dict[str, dict[str, float | None]]:
        rows = {}
        for iou in IOUS:
            quality, disjoint = self.counts.quality(iou, category, size), self.disjoint.quality(iou, category, size)
            rows[str(iou)] = {name: getattr(quality, field) for name, field in QUALITIES.items()}
            rows[str(iou)] |= {name: getattr(disjoint, field) for name, field in PANOPTIC.items()}
        return rows


def own_numbers(
    contents: dict[str, Any],
    masks: list[dict[str, Any]],
    max_dets: int,
    box_ap: float,
    config: Config,
    class_ids: Mapping[int, int],
    fit: bool,
) -> OwnNumbers:
    """Every number at the threshold.

    contents, masks, max_dets: as for evaluate_results; max_dets counts for average precision alone. box_ap: its "box
        AP".
    config: of the model. class_ids: the model's class by category id.
    fit: choose the threshold, whose boxes are better, and fit the chances on these pictures; else take those that the
        model has. Where BOXES_OF_MASKS says whose boxes, there is no choice.
    """
    truth = as_coco(contents)
    masks = counted_results(masks, truth)
    ranked = RankedEvaluation(truth, masks, "segm", max_dets)
    ranked.set_scores()
    curve = threshold_curve(ranked)
    threshold, source = _choose_threshold(curve, config, fit)
    of_masks, has_choice = box_ap_of_masks(truth, masks, max_dets), fit and config.BOXES_OF_MASKS is None
    boundary = BoundaryEvaluation(truth, masks, "segm", max_dets).rank()
    scenes = make_scenes(truth, boundary.entries, threshold)
    categories = sorted(truth.cats)
    return OwnNumbers(
        threshold=threshold,
        threshold_source=source,
        curve=curve,
        counts=count(scenes, categories, boundaries=True),
        disjoint=count((_disjoint(truth, scene) for scene in scenes), categories),
        box_ap=box_ap,
        box_ap_of_masks=of_masks,
        boxes_of_masks=of_masks - box_ap >= BOX_GAIN if has_choice else None,
        boundary=summary(boundary),
        class_boundary={category: average_precision(boundary, category=category) for category in categories},
        class_names={category: truth.cats[category]["name"] for category in categories},
        errors=find_errors(scenes),
        object_areas=np.array([entry["area"] for scene in scenes for entry in scene.objects], np.float64),
        accept=_accept_numbers(make_scenes(truth, boundary.entries, threshold / 2), threshold, config, class_ids, fit),
        is_fit=fit,
        titles={number: image.get("file_name", f"image {number}") for number, image in truth.imgs.items()},
    )


def _choose_threshold(curve: ThresholdCurve, config: Config, fit: bool) -> tuple[float, str]:
    """A stored threshold that is the best one here was chosen on these pictures, by an earlier evaluation."""
    best, stored = best_threshold(curve), config.SCORE_THRESHOLD
    if best is not None and (fit or (stored is not None and abs(best - stored) < 1e-9)):
        return best, CHOSEN_HERE
    return score_threshold(config), USUAL if config.SCORE_THRESHOLD is None else STORED


def _disjoint(truth: COCO, scene: Scene) -> Scene:
    image = truth.imgs[scene.image]
    return make_disjoint(scene, (image["height"], image["width"]), truth.imgToAnns.get(scene.image, []))


def _accept_numbers(
    scenes: list[Scene], threshold: float, config: Config, class_ids: Mapping[int, int], fit: bool
) -> AcceptNumbers:
    """Fits to the detections from half the threshold on, because those far below it are never shown.

    The true IoU of a detection is that with the best object of its class. Detections that lie in a crowd and have no
    object are left out.
    """
    entries, true_ious = [], []
    for scene in scenes:
        overlaps = scene.class_overlaps
        ignored = scene.ignored(match(overlaps, THRESHOLD_IOU)[0])
        entries += [entry for entry, is_ignored in zip(scene.detections, ignored, strict=True) if not is_ignored]
        true_ious += overlaps.max(axis=1, initial=0.0)[~ignored].tolist()
    has_head = bool(entries) and entries[0]["mask_iou"] is not None
    columns = [np.array([entry[name] for entry in entries], np.float64) for name in ("class_score", "score")]
    sample = Sample(
        np.array([class_ids[entry["category_id"]] for entry in entries], np.int64),
        columns[0],
        np.array([entry["mask_iou"] for entry in entries], np.float64) if has_head else None,
        np.array(true_ious, np.float64),
        np.array([entry["image_id"] for entry in entries], np.int64),
    )
    kept = columns[1] >= threshold
    result, source = None, VALIDATED
    fitted, stored = fit_accept(sample, config.NUM_CLASSES), config.ACCEPT_CALIBRATION
    # A stored calibration that these pictures give was fitted to them, by an earlier evaluation
    is_from_here = bool(stored and fitted.calibration) and np.allclose(stored, fitted.calibration, rtol=0, atol=1e-6)
    if fit or is_from_here:
        result, predicted = fitted if fit else None, cross_validated(sample, config.NUM_CLASSES)
    else:
        predicted, source = chances(config, sample.class_ids, sample.scores, sample.mask_ious), STORED_FIT
    if predicted is None:
        predicted, source = np.zeros((len(kept), len(GOOD_IOUS))), NOT_CALIBRATED
    return AcceptNumbers(result, source, predicted[kept], sample.good[kept])

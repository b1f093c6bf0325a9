"""COCO: its configuration, and COCO-style evaluation of any data set.

81 classes, 0 is background; index i is COCO's i-th smallest category id.

Evaluation goes from detections to results (lists in COCO's submission format) to COCOeval to numbers. Boxes are ranked
by class score. The same masks are ranked three times: by class score, by mask score, and by class score x true IoU,
which is what a MaskIoU head that is never wrong would give.

COCO's boxes are (x, y, width, height); everywhere else boxes are (y1, x1, y2, x2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import evaluation
import utils
from config import COCO_CATEGORIES, Config

############################################################
#  Configuration
############################################################


class CocoConfig(Config):
    """Mask Scoring R-CNN on COCO's 80 categories."""

    NAME = "coco"
    NUM_CLASSES = 1 + len(COCO_CATEGORIES)
    CLASS_NAMES = ("BG", *(COCO_CATEGORIES[category] for category in sorted(COCO_CATEGORIES)))
    CATEGORY_IDS = (0, *sorted(COCO_CATEGORIES))


############################################################
#  Evaluation
############################################################


def evaluate_dataset(
    model: Any,
    dataset: utils.Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = True,
) -> dict[str, float]:
    """COCO-style evaluation: one pass of detection, with and without re-scoring.

    model: MaskRCNN, or what has its detect() and config; its classes are those of the data set.
    dataset: prepared; objects of negative class id are crowds. image_ids: the images wanted; all by default.
    max_dets: how many of an image's best results of a class count; by default DETECTION_MAX_INSTANCES, or COCO's 100
        if that is more. verbose: show progress, and print a table.

    Returns: numbers by name, see evaluation.evaluate_results.
    Raises: ValueError if model and data set differ in classes, or max_dets is below 1.
    """
    max_dets = _max_dets(model, max_dets)
    results = evaluation.detect_dataset(model, dataset, image_ids, verbose=verbose)
    metrics = evaluation.evaluate_results(evaluation.ground_truth(dataset, image_ids), *results, max_dets).metrics
    if verbose:
        print(evaluation.metrics_table(metrics))
    return metrics


def _max_dets(model: Any, max_dets: int | None) -> int:
    max_dets = max(100, model.config.DETECTION_MAX_INSTANCES) if max_dets is None else max_dets
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    return max_dets


def evaluation_callback(
    dataset: utils.Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = False,
) -> Callable[[Any], dict[str, float]]:
    """What train_model takes as `evaluate`: a function of the model that evaluates it as evaluate_dataset does."""
    return lambda model: evaluate_dataset(model, dataset, image_ids, max_dets, verbose)

"""How sure a gain is: average precision over images drawn again and again from the images of the data set.

S samples   I images   K categories   T IoU thresholds   D results of a category
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .metrics import RANKINGS, Matches, RankedEvaluation, as_coco, counted_results, precision_at
from .names import CLASS_MEASURES, MEASURES


class Interval(NamedTuple):
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_gains(
    contents: dict[str, Any], masks: list[dict[str, Any]], max_dets: int = 100, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """What re-scoring adds to mask AP, AP50 and AP75, and what the true IoU in place of the predicted one would add.

    Each sample draws as many images as the data set has, with replacement. Both rankings see the same sample, so that
    the difficulty of its images cancels in the difference.

    contents: a ground truth in COCO's format. masks: results as to_results makes them. max_dets: how many of an image's
        best results of a category count. samples: S. seed: of the draws.

    Returns: the gain by measure ("AP", "AP50", "AP75"), and its upper bound by "AP (true IoU)", "AP50 (true IoU)" ...
    Raises: ValueError without objects, and as as_coco.
    """
    truth = as_coco(contents)
    if not any(not entry["iscrowd"] for entry in truth.dataset["annotations"]):
        raise ValueError("the ground truth has no objects, so there is no average precision to be sure of")
    masks = counted_results(masks, truth)
    evaluation = RankedEvaluation(truth, masks, "segm", max_dets)
    columns = ([entry[name] for entry in masks] for name in ("class_score", "score"))
    scores = [*(np.array(column, np.float64) for column in columns), evaluation.true_ious()]
    images = sorted(truth.imgs)
    draws = np.random.default_rng(seed).multinomial(len(images), np.full(len(images), 1 / len(images)), samples)
    counts = [dict.fromkeys(images, 1), *(dict(zip(images, draw.tolist(), strict=True)) for draw in draws)]
    values = {}
    for ranking, score in RANKINGS.items():
        evaluation.set_scores(score(*scores))
        matches = [evaluation.matches(category) for category in evaluation.categories]
        values[ranking] = np.array([_precisions(matches, each, evaluation.params) for each in counts])  # [1 + S, 3]
    gains = {}
    for ranking, ending in {"mask score": "", "true IoU": " (true IoU)"}.items():
        differences = values[ranking] - values["class score"]
        for measure, (value, *drawn) in zip(CLASS_MEASURES, differences.T.tolist(), strict=True):
            gains[measure + ending] = Interval(value, *np.percentile(drawn, (2.5, 97.5)).tolist())
    return gains


def _precisions(matches: Sequence[Matches], counts: Mapping[int, int], params: Any) -> list[float]:
    """CLASS_MEASURES of a sample. matches: of each category. counts: how often the sample has each image."""
    thresholds, precisions = params.iouThrs.round(12).tolist(), []
    for of_category in matches:
        objects = sum(counts[image] * number[0] for image, number in of_category.objects.items())
        if objects:
            few = of_category.place < params.maxDets[-1]
            weights = np.array([counts[image] for image in of_category.images[few].tolist()], np.float64)
            results = of_category.matched[0][:, few], of_category.counted[0][:, few]
            precisions.append(precision_at(*results, objects, params.recThrs, weights)[0].mean(axis=1))  # [T]
    means = np.mean(precisions, axis=0) if precisions else np.zeros(len(thresholds))
    ious = [MEASURES[name].iou for name in CLASS_MEASURES]
    return [float(means.mean() if iou is None else means[thresholds.index(iou)]) for iou in ious]

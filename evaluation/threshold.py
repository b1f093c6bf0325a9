"""The score from which on detections shall count: the one with the best F1.

C cuts of the ranked list of detections
"""

from typing import NamedTuple

import numpy as np

from .metrics import RankedEvaluation

THRESHOLD_IOU = 0.5


class ThresholdCurve(NamedTuple):
    """What each threshold of the score keeps, at an IoU of THRESHOLD_IOU, over all classes together."""

    thresholds: np.ndarray  # float64 [C], descending: half-way between the last score that is kept and the next one
    precision: np.ndarray  # float64 [C]
    recall: np.ndarray  # float64 [C]
    f1: np.ndarray  # float64 [C]


def threshold_curve(ranked: RankedEvaluation) -> ThresholdCurve:
    """Precision, recall and F1 at each threshold that tells two detections apart. C is 0 without objects or detections.

    COCO's matching gives each detection, best first, the object that it overlaps most. So the matches of the first n
    detections are those that these n have alone, and one pass serves all thresholds.

    ranked: of masks, by the scores that it has.
    """
    t = int(np.argmin(np.abs(ranked.params.iouThrs - THRESHOLD_IOU)))
    scores, true, false, objects = [np.zeros(0)], [np.zeros(0, bool)], [np.zeros(0, bool)], 0
    for category, entries in ranked.categories.items():
        matches = ranked.matches(category)
        matched, counted = matches.matched[0, t], matches.counted[0, t]
        scores.append(-np.sort(-ranked.scores[entries.results]))  # in the order of matches
        true.append(matched & counted)
        false.append(~matched & counted)
        objects += sum(int(counts[0]) for counts in matches.objects.values())
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    score, right, wrong = score[order], np.cumsum(np.concatenate(true)[order]), np.cumsum(np.concatenate(false)[order])
    following = np.append(score[1:], 0.0)
    cuts = np.flatnonzero((score > following) & (right + wrong > 0)) if objects else np.zeros(0, np.int64)
    right, wrong = right[cuts], wrong[cuts]
    return ThresholdCurve(
        (score[cuts] + following[cuts]) / 2,
        right / np.maximum(right + wrong, 1),
        right / max(objects, 1),
        2 * right / np.maximum(right + wrong + objects, 1),
    )


def best_threshold(curve: ThresholdCurve) -> float | None:
    """The threshold with the best F1, the highest of several; None if no detection is right."""
    if not len(curve.f1) or curve.f1.max() == 0:
        return None
    return float(curve.thresholds[np.argmax(curve.f1)])

"""The chance that a detected mask is good, from its class score and its predicted IoU.

Neither number alone says it: a classifier's score knows little of the mask, and a predicted IoU is too high where masks
are middling. A logistic regression of both logits on validation data does; its factors are stored in the model, in the
setting ACCEPT_CALIBRATION.

N detections   K classes   G of GOOD_IOUS
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config import Config

from .calibration import calibrate

GOOD_IOUS = (0.7, 0.8)  # true IoUs from which on a mask counts as good
NUMBERS = 3 * len(GOOD_IOUS)  # of ACCEPT_CALIBRATION for a class
USUAL_THRESHOLD = 0.5
_EDGE = 1e-4  # scores are kept this far from 0 and 1, where logits are infinite


def logit(values: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), float64, of values that are first limited to the open interval of 0 and 1."""
    values = np.clip(np.asarray(values, np.float64), _EDGE, 1 - _EDGE)
    return np.log(values / (1 - values))


def chances(
    config: Config, class_ids: Sequence[int], scores: Sequence[float], mask_ious: Sequence[float] | None
) -> np.ndarray | None:
    """The chance that the true IoU of each mask is at least each of GOOD_IOUS, float64 [N, 2].

    class_ids: [N], 1 to K - 1. scores: [N], of the classes. mask_ious: [N], predicted; None: the model has no MaskIoU
        head, and the class score alone decides.

    Returns: None if the model was not calibrated.
    """
    if config.ACCEPT_CALIBRATION is None:
        return None
    ids, of_masks = np.asarray(class_ids, np.int64), None if mask_ious is None else np.asarray(mask_ious)
    unknown = np.zeros(len(ids))
    return _chances(config.ACCEPT_CALIBRATION, Sample(ids, np.asarray(scores), of_masks, unknown, unknown))


def _chances(calibration: Sequence[float], sample: "Sample") -> np.ndarray:
    """The chances by a value of ACCEPT_CALIBRATION: float64 [N, G]. A better mask is never the likelier one."""
    factors = np.array(calibration).reshape(-1, len(GOOD_IOUS), 3)[sample.class_ids]
    values = np.einsum("ngi,ni->ng", factors, sample.inputs)
    return np.minimum.accumulate(1 / (1 + np.exp(-values)), axis=1)


def score_threshold(config: Config) -> float:
    """The least score of an object that is kept: SCORE_THRESHOLD, else the usual one."""
    return USUAL_THRESHOLD if config.SCORE_THRESHOLD is None else config.SCORE_THRESHOLD


############################################################
#  Fitting
############################################################

LEAST_DETECTIONS = 50  # that a calibration is fitted to
LEAST_OF_EACH = 5  # of these, good ones and bad ones
LEAST_OF_A_CLASS = 200  # from which on a class has factors of its own
FOLDS = 5
RIDGE = 0.1  # the weight of the squared factors: keeps them finite where scores tell good from bad without a mistake


class Sample(NamedTuple):
    """Detections whose true IoU is known."""

    class_ids: np.ndarray  # int64 [N], of the model
    scores: np.ndarray  # float64 [N], of the classes
    mask_ious: np.ndarray | None  # float64 [N], predicted; None without a MaskIoU head
    true_ious: np.ndarray  # float64 [N]
    images: np.ndarray  # int64 [N], the ids of their images

    def of(self, rows: np.ndarray) -> "Sample":
        """Some of the detections. rows: bool [N] or their places."""
        return Sample(*(None if column is None else column[rows] for column in self))

    @property
    def good(self) -> np.ndarray:
        """Whether the true IoU is at least each of GOOD_IOUS: bool [N, G]."""
        return self.true_ious[:, None] >= np.array(GOOD_IOUS)

    @property
    def inputs(self) -> np.ndarray:
        """What chances() multiplies the factors with: float64 [N, 3]."""
        of_masks = np.zeros(len(self.scores)) if self.mask_ious is None else logit(self.mask_ious)
        return np.stack([logit(self.scores), of_masks, np.ones(len(self.scores))], axis=-1)


class AcceptFit(NamedTuple):
    """A calibration, or why there is none."""

    calibration: tuple[float, ...] | None  # for ACCEPT_CALIBRATION
    problem: str = ""  # why none was fitted, in words that go on after "not calibrated: "
    own_classes: tuple[int, ...] = ()  # class ids that have factors of their own


def fit_accept(sample: Sample, classes: int) -> AcceptFit:
    """Fits the chance that a mask is good: logistic regressions of the logits of class score and predicted IoU.

    A class with LEAST_OF_A_CLASS detections has factors of its own; all others share those of all detections together.
    Without a MaskIoU head, the factor of the predicted IoU is 0.

    classes: K.
    """
    if problem := _problem(sample):
        return AcceptFit(None, problem)
    factors = np.tile(_fit_each(sample), (classes, 1, 1))  # [K, G, 3]
    own = []
    for class_id in range(1, classes):
        of_class = sample.of(sample.class_ids == class_id)
        if len(of_class.scores) >= LEAST_OF_A_CLASS and not _problem(of_class):
            factors[class_id] = _fit_each(of_class)
            own.append(class_id)
    return AcceptFit(tuple(factors.ravel().tolist()), "", tuple(own))


def _problem(sample: Sample) -> str:
    """Why nothing can be fitted to these detections; nothing if it can."""
    count = len(sample.scores)
    if count < LEAST_DETECTIONS:
        return f"{count} detections are too few, {LEAST_DETECTIONS} are needed"
    for iou, good in zip(GOOD_IOUS, sample.good.sum(axis=0).tolist(), strict=True):
        if min(good, count - good) < LEAST_OF_EACH:
            return (
                f"{good} of {count} masks have a true IoU of {iou} or more, and a regression needs at least "
                f"{LEAST_OF_EACH} masks that have it and {LEAST_OF_EACH} that have not"
            )
    return ""


def _fit_each(sample: Sample) -> np.ndarray:
    """The factors for each of GOOD_IOUS: float64 [G, 3]."""
    inputs, columns = sample.inputs, [0, 2] if sample.mask_ious is None else [0, 1, 2]
    factors = np.zeros((len(GOOD_IOUS), 3))
    for row, good in zip(factors, sample.good.T, strict=True):
        row[columns] = fit_logistic(inputs[:, columns], good)
    return factors


def fit_logistic(inputs: np.ndarray, good: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """The factors that make good masks most likely, by Newton's method. The last input is the constant.

    inputs: float64 [N, I]. good: bool [N], with both values. ridge: weight of the squared factors but the last one.

    Returns: float64 [I].
    """
    penalty = np.full(inputs.shape[1], ridge)
    penalty[-1] = 0.0

    def loss(factors: np.ndarray) -> float:
        values = inputs @ factors
        return float(np.logaddexp(0, np.where(good, -values, values)).sum() + 0.5 * penalty @ factors**2)

    factors = np.zeros(inputs.shape[1])
    for _ in range(100):
        predicted = 1 / (1 + np.exp(-inputs @ factors))
        gradient = inputs.T @ (predicted - good) + penalty * factors
        curvature = (inputs.T * (predicted * (1 - predicted))) @ inputs + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-6 and loss(factors - size * step) > loss(factors):
            size /= 2
        factors = factors - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return factors


def cross_validated(sample: Sample, classes: int, folds: int = FOLDS) -> np.ndarray | None:
    """The chances of each detection by a calibration that was fitted without its image: float64 [N, G].

    Chances on the data that they were fitted to look better than they are. Images are dealt out to the folds at random,
    the same in each call.

    Returns: None if there are fewer images than two, or a fold leaves nothing to fit to.
    """
    images = np.unique(sample.images)
    folds = min(folds, len(images))
    if folds < 2:
        return None
    order = np.random.default_rng(0).permutation(len(images))
    fold_of = (order % folds)[np.searchsorted(images, sample.images)]
    result = np.zeros((len(sample.scores), len(GOOD_IOUS)))
    for fold in range(folds):
        fit = fit_accept(sample.of(fold_of != fold), classes)
        if fit.calibration is None:
            return None
        result[fold_of == fold] = _chances(fit.calibration, sample.of(fold_of == fold))
    return result


############################################################
#  What the chances are worth
############################################################


class AcceptRow(NamedTuple):
    """What accepting all detections from a chance on would mean."""

    least: float  # the chance
    accepted: int  # detections
    share: float  # of all detections
    right: float | None  # the share of the accepted ones whose true IoU is good; None if none is accepted


def accept_table(predicted: np.ndarray, good: np.ndarray) -> list[AcceptRow]:
    """A row for 0.5, 0.55 ... 0.95. predicted: float64 [N], chances. good: bool [N]."""
    rows = []
    for percent in range(50, 100, 5):
        chosen = predicted >= percent / 100
        right = float(good[chosen].mean()) if chosen.any() else None
        rows.append(AcceptRow(percent / 100, int(chosen.sum()), float(chosen.mean()) if len(chosen) else 0.0, right))
    return rows


def calibration_error(predicted: np.ndarray, good: np.ndarray) -> float | None:
    """The distance of stated chance and share of good masks in ten bins, a mean over detections; None without any."""
    return calibrate(predicted, good.astype(np.float64)).expected_error

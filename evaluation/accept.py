"""The chance that a detected mask is good, from its class score and its predicted IoU.

Neither number alone says it: a classifier's score knows little of the mask, and a predicted IoU is too high where masks
are middling. A logistic regression of both logits on validation data does; its factors are stored in the model, in the
setting ACCEPT_CALIBRATION.

N detections   K classes
"""

from collections.abc import Sequence

import numpy as np

from config import Config

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
    factors = np.array(config.ACCEPT_CALIBRATION).reshape(-1, len(GOOD_IOUS), 3)[np.asarray(class_ids, np.int64)]
    of_masks = np.zeros(len(factors)) if mask_ious is None else logit(np.asarray(mask_ious))
    inputs = np.stack([logit(np.asarray(scores)), of_masks, np.ones(len(factors))], axis=-1)  # [N, 3]
    return 1 / (1 + np.exp(-np.einsum("ngi,ni->ng", factors, inputs)))


def score_threshold(config: Config) -> float:
    """The least score of an object that is kept: SCORE_THRESHOLD, else the usual one."""
    return USUAL_THRESHOLD if config.SCORE_THRESHOLD is None else config.SCORE_THRESHOLD

"""How well a score says the true IoU of masks: their correlation, and the mean IoU in bins of the score.

N detections   T bins
"""

from typing import NamedTuple

import numpy as np


def correlation(first: np.ndarray | None, second: np.ndarray) -> float:
    """Pearson's correlation; 0 where it has no meaning: without values (no MaskIoU head), or if all are the same."""
    if first is None or not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


class Calibration(NamedTuple):
    """Detections in bins of a score. A mean is None if its bin is empty."""

    edges: list[float]  # [T + 1]
    counts: list[int]  # [T]
    mean_predicted: list[float | None]  # [T]
    mean_true: list[float | None]  # [T]
    expected_error: float | None  # distance of the two means, averaged over detections; None without detections


def calibrate(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> Calibration:
    """Whether predictions are right on average, in bins of equal width.

    predicted: float [N]; values outside [0, 1] count in the first or the last bin. true: float [N]. bins: T.
    """
    index = np.clip((np.asarray(predicted) * bins).astype(int), 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values, minlength=bins) for values in (predicted, true)]
    mean_predicted, mean_true = (
        [float(total / count) if count else None for total, count in zip(of_bins, counts, strict=True)]
        for of_bins in sums
    )
    error = float(np.abs(sums[0] - sums[1]).sum() / counts.sum()) if counts.any() else None
    return Calibration([i / bins for i in range(bins + 1)], counts.tolist(), mean_predicted, mean_true, error)

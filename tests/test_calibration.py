"""How well a score says the true IoU: correlation and bins, by hand and as they must be for any values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evaluation.calibration import calibrate, correlation


def test_correlation():
    one, other = np.array([1.0, 2, 3, 5]), np.array([2.0, 1, 4, 6])
    assert correlation(one, one) == pytest.approx(1)
    assert correlation(one, -2 * one + 7) == pytest.approx(-1)
    # deviations (-1.75 -.75 .25 2.25) and (-1.25 -2.25 .75 2.75): 10.25 / sqrt(8.75 * 14.75)
    assert correlation(one, other) == pytest.approx(10.25 / (8.75 * 14.75) ** 0.5)
    assert correlation(None, other) == 0
    assert correlation(one[:1], other[:1]) == 0
    assert correlation(np.zeros(0), np.zeros(0)) == 0
    assert correlation(np.full(4, 0.1), other) == 0
    assert correlation(other, np.full(4, 0.1)) == 0


def test_calibration_by_hand():
    calibration = calibrate(np.array([0.1, 0.3, 0.6, 1.2, -0.3]), np.array([0.2, 0.2, 0.9, 0.5, 0.0]), bins=2)
    assert calibration.edges == [0, 0.5, 1]
    assert calibration.counts == [3, 2], "what lies outside counts in the outer bins"
    assert calibration.mean_predicted == pytest.approx([0.1 / 3, 0.9])
    assert calibration.mean_true == pytest.approx([0.4 / 3, 0.7])
    assert calibration.expected_error == pytest.approx((0.3 + 0.4) / 5)


def test_calibration_of_nothing_and_of_bin_edges():
    nothing = calibrate(np.zeros(0), np.zeros(0))
    assert nothing.counts == [0] * 10
    assert nothing.mean_true == nothing.mean_predicted == [None] * 10
    assert nothing.expected_error is None
    edges = calibrate(np.array([0.0, 0.1, 0.9, 1.0]), np.zeros(4))
    assert edges.counts == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


@given(
    arrays.arrays(float, st.integers(0, 30), elements=st.floats(-0.5, 1.5)), st.integers(1, 20), st.floats(-0.25, 0.25)
)
def test_calibration_of_a_constant_error(predicted, bins, error):
    """A prediction that is off by the same everywhere has that as its expected error."""
    calibration = calibrate(predicted, predicted - error, bins)
    assert sum(calibration.counts) == len(predicted)
    assert len(calibration.edges) == bins + 1
    if len(predicted):
        assert calibration.expected_error == pytest.approx(abs(error), abs=1e-12)
    for predicted_mean, true_mean in zip(calibration.mean_predicted, calibration.mean_true, strict=True):
        assert predicted_mean is true_mean is None or predicted_mean - true_mean == pytest.approx(error, abs=1e-12)

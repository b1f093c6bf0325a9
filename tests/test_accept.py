"""The chance that a mask is good."""

import numpy as np
import pytest

from config import Config
from evaluation.accept import chances, logit, score_threshold


def test_chances_are_those_of_the_stored_regression():
    config = Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=[0] * 6 + [1, 0, 0, 0, 2, -1])
    result = chances(config, [1, 1], [0.8, 0.1], [0.5, 0.9])
    assert result.shape == (2, 2)
    assert result[:, 0] == pytest.approx([0.8, 0.1]), "factor 1 of the class score's logit is the score itself"
    assert result[0, 1] == pytest.approx(1 / (1 + np.e)), "the logit of 0.5 is 0, so the constant decides"
    assert chances(config, [1], [0.8], None)[0] == pytest.approx([0.8, 1 / (1 + np.e)])
    assert chances(config, [], [], []).shape == (0, 2)
    assert chances(Config(NUM_CLASSES=2), [1], [0.8], [0.5]) is None


def test_logits_of_certain_scores_are_finite():
    assert np.isfinite(logit(np.array([0.0, 1.0, -3.0, 1.2]))).all()


def test_the_threshold_is_the_models_own():
    assert score_threshold(Config(SCORE_THRESHOLD=0.3)) == 0.3
    assert score_threshold(Config()) == 0.5


def test_a_calibration_has_numbers_for_each_class():
    with pytest.raises(ValueError, match="ACCEPT_CALIBRATION must have 12 numbers, 6 for each class, not 6"):
        Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=[0] * 6)

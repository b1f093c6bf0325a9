"""The chance that a mask is good."""

import numpy as np
import pytest
from scipy import optimize

from config import Config
from evaluation.accept import (
    AcceptRow,
    Sample,
    accept_table,
    calibration_error,
    chances,
    cross_validated,
    fit_accept,
    fit_logistic,
    logit,
    score_threshold,
)


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


def test_a_mask_is_never_likelier_to_be_better():
    config = Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=[0] * 6 + [0, 0, -1, 0, 0, 1])
    assert np.ptp(chances(config, [1], [0.5], [0.5])) == 0, "a mask with an IoU of 0.8 has one of 0.7, too"


############################################################
#  Fitting
############################################################


def made_sample(count: int, seed: int = 0, head: bool = True, classes: int = 2, images: int = 20) -> Sample:
    """Detections whose masks are good with the chance 1 / (1 + exp(-x)), x = logit(score) + 2 logit(mask_iou) - 1."""
    rng = np.random.default_rng(seed)
    scores, mask_ious = rng.uniform(0.05, 0.99, (2, count))
    values = logit(scores) + 2 * logit(mask_ious) - 1
    good = rng.random(count) < 1 / (1 + np.exp(-values))
    true_ious = np.where(good, rng.choice([0.75, 0.9], count), 0.3)
    class_ids = rng.integers(1, classes, count)
    return Sample(class_ids, scores, mask_ious if head else None, true_ious, rng.integers(0, images, count))


def test_the_factors_that_made_the_data_are_found():
    fit = fit_accept(made_sample(20000), 2)
    factors = np.reshape(fit.calibration, (2, 2, 3))
    assert factors[1, 0] == pytest.approx([1, 2, -1], abs=0.15)
    assert factors[1, 1, 2] < factors[1, 0, 2], "fewer masks have an IoU of 0.8"
    assert (fit.problem, fit.own_classes) == ("", (1,))
    Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=fit.calibration)


@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_newton_finds_what_scipy_finds(ridge):
    sample = made_sample(300)
    inputs, good = sample.inputs, sample.good[:, 0]

    def loss(factors):
        values = inputs @ factors
        return np.logaddexp(0, np.where(good, -values, values)).sum() + ridge / 2 * (factors[:2] ** 2).sum()

    expected = optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-6}).x
    assert fit_logistic(inputs, good, ridge) == pytest.approx(expected, abs=1e-4)


def test_separable_data_stay_finite():
    scores = np.concatenate([np.full(50, 1.0), np.full(50, 0.0)])
    sample = Sample(np.ones(100, int), scores, scores, scores, np.arange(100))
    fit = fit_accept(sample, 2)
    assert np.isfinite(fit.calibration).all()
    assert np.abs(fit.calibration).max() < 10
    config = Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=fit.calibration)
    assert chances(config, [1, 1], [1.0, 0.0], [1.0, 0.0])[:, 0] == pytest.approx([1, 0], abs=1e-3)


def test_without_a_head_the_factor_of_the_predicted_iou_is_zero():
    fit = fit_accept(made_sample(2000, head=False), 2)
    assert np.reshape(fit.calibration, (-1, 3))[:, 1].tolist() == [0] * 4
    assert np.reshape(fit.calibration, (-1, 3))[2, 0] > 0.3


def test_a_class_with_few_detections_shares_the_factors_of_all():
    sample = made_sample(399, classes=2)
    rare = made_sample(120, seed=1)._replace(class_ids=np.full(120, 2))
    both = Sample(*(np.concatenate(columns) for columns in zip(sample, rare, strict=True)))
    fit = fit_accept(both, 4)
    background, first, second, absent = np.reshape(fit.calibration, (4, 6))
    assert fit.own_classes == (1,)
    assert second.tolist() == absent.tolist() == background.tolist() != first.tolist()
    assert first.tolist() == np.reshape(fit_accept(sample, 2).calibration, (2, 6))[1].tolist()
    assert fit_accept(made_sample(199), 2).own_classes == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda sample: sample.of(np.arange(49)), "49 detections are too few, 50 are needed"),
        (lambda sample: sample.of(np.zeros(0, int)), "0 detections are too few"),
        (
            lambda sample: sample._replace(true_ious=np.full(100, 0.9)),
            "100 of 100 masks have a true IoU of 0.7 or more",
        ),
        (lambda sample: sample._replace(true_ious=np.zeros(100)), "0 of 100 masks have a true IoU of 0.7 or more"),
        (lambda sample: sample._replace(true_ious=np.tile([0.75, 0.2], 50)), "0 of 100 masks have a true IoU of 0.8"),
    ],
    ids=["few", "none", "all good", "all bad", "none very good"],
)
def test_what_cannot_be_fitted_is_not_and_says_why(change, problem):
    sample = change(made_sample(100))
    fit = fit_accept(sample, 2)
    assert fit.calibration is None
    assert problem in fit.problem
    assert cross_validated(sample, 2) is None


############################################################
#  What the chances are worth
############################################################


def test_chances_of_a_fold_come_from_the_other_images():
    sample = made_sample(500, images=10)
    result = cross_validated(sample, 2)
    for image in range(10):
        alone = sample.images == image
        flipped = sample._replace(true_ious=np.where(alone, 1 - sample.true_ious, sample.true_ious))
        changed = (cross_validated(flipped, 2) != result).any(axis=1)
        assert not changed[alone].any(), "what an image shows says nothing of its own chances"
        assert changed[~alone].any()
    assert (cross_validated(sample, 2) == result).all()


def test_one_image_has_no_other_images():
    assert cross_validated(made_sample(200, images=1), 2) is None
    assert cross_validated(made_sample(200, images=2), 2).shape == (200, 2)


def test_noise_is_seen_only_by_cross_validation():
    """Scores that say nothing: fitted chances look better than the constant 0.5, the others worse."""
    losses = []
    for seed in range(10):
        sample = made_sample(120, seed)
        sample = sample._replace(true_ious=np.random.default_rng(seed).permutation(np.tile([0.9, 0.2], 60)))
        config = Config(NUM_CLASSES=2, ACCEPT_CALIBRATION=fit_accept(sample, 2).calibration)
        fitted = chances(config, sample.class_ids, sample.scores, sample.mask_ious)
        losses.append([np.mean((each[:, 0] - sample.good[:, 0]) ** 2) for each in (fitted, cross_validated(sample, 2))])
    fitted, validated = np.mean(losses, axis=0)
    assert fitted < 0.25 < validated


def test_table_by_hand():
    predicted, good = np.array([0.5, 0.72, 0.8, 0.95, 0.2]), np.array([False, True, False, True, True])
    table = accept_table(predicted, good)
    assert [row.least for row in table] == pytest.approx(np.arange(0.5, 1, 0.05))
    assert table[0] == AcceptRow(0.5, 4, 0.8, 0.5)
    assert table[4] == AcceptRow(0.7, 3, 0.6, 2 / 3)
    assert table[9] == AcceptRow(0.95, 1, 0.2, 1.0)
    assert accept_table(np.zeros(0), np.zeros(0, bool))[0] == AcceptRow(0.5, 0, 0.0, None)
    assert accept_table(np.array([0.6]), np.array([True]))[9] == AcceptRow(0.95, 0, 0.0, None)


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.95, 0.95, 0.05]), np.array([True, False, False])) == pytest.approx(
        (abs(1.9 - 1) + 0.05) / 3
    )
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) is None

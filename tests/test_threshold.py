"""The threshold with the best F1: every threshold tried, and cases by hand."""

import numpy as np
import pytest
from helpers import random_case, rectangle, segm_result, truth_of
from hypothesis import given
from hypothesis import strategies as st

from evaluation.matching import count, make_scenes
from evaluation.metrics import RankedEvaluation, as_coco
from evaluation.threshold import best_threshold, threshold_curve

SQUARES = [rectangle(10 * i, 0, 10 * i + 8, 8) for i in range(8)]
ELSEWHERE = rectangle(100, 100, 110, 110)


def ranked_by_score(contents, results) -> RankedEvaluation:
    ranked = RankedEvaluation(as_coco(contents), results, "segm", 100)
    ranked.set_scores()
    return ranked


def curve_of(contents, results):
    return threshold_curve(ranked_by_score(contents, results))


def test_the_best_threshold_lies_between_two_scores():
    contents = truth_of(*((1, 1, mask) for mask in SQUARES[:4]))
    results = [segm_result(1, 1, mask, score, None) for mask, score in zip(SQUARES[:3], (0.9, 0.8, 0.6), strict=True)]
    results += [segm_result(1, 1, ELSEWHERE, score, None) for score in (0.7, 0.4, 0.3)]
    curve = curve_of(contents, results)
    assert curve.thresholds == pytest.approx([0.85, 0.75, 0.65, 0.5, 0.35, 0.15])
    assert curve.precision == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5, 3 / 6])
    assert curve.recall == pytest.approx([1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4, 3 / 4])
    assert curve.f1 == pytest.approx([2 / 5, 4 / 6, 4 / 7, 6 / 8, 6 / 9, 6 / 10])
    assert best_threshold(curve) == pytest.approx(0.5)


def test_equal_scores_are_not_told_apart():
    contents = truth_of((1, 1, SQUARES[0]), (1, 2, SQUARES[1]))
    results = [
        segm_result(1, 1, SQUARES[0], 0.8),
        segm_result(1, 2, ELSEWHERE, 0.8),
        segm_result(1, 2, SQUARES[1], 0.6),
    ]
    curve = curve_of(contents, results)
    assert curve.thresholds == pytest.approx([0.7, 0.3])
    assert curve.f1 == pytest.approx([2 / 4, 4 / 5])


def test_what_lies_in_a_crowd_does_not_count():
    contents = truth_of((1, 1, SQUARES[0]), (1, 1, rectangle(60, 60, 110, 120), True))
    results = [segm_result(1, 1, rectangle(70, 70, 80, 80), 0.9), segm_result(1, 1, SQUARES[0], 0.5)]
    curve = curve_of(contents, results)
    assert curve.thresholds == pytest.approx([0.25]), "a threshold above it would keep nothing"
    assert curve.f1 == pytest.approx([1])


@pytest.mark.parametrize(
    ("contents", "results"),
    [
        (truth_of(), []),
        (truth_of((1, 1, SQUARES[0])), []),
        (truth_of(), [segm_result(1, 1, ELSEWHERE, 0.5)]),
        (truth_of((1, 1, SQUARES[0])), [segm_result(1, 1, ELSEWHERE, 0.5)]),
        (truth_of((1, 1, SQUARES[0], True)), [segm_result(1, 1, SQUARES[0], 0.5)]),
    ],
    ids=["nothing", "no detections", "no objects", "none right", "a crowd alone"],
)
def test_there_may_be_no_best_threshold(contents, results):
    assert best_threshold(curve_of(contents, results)) is None


@given(st.integers(0, 2**32))
def test_no_threshold_is_better_than_the_best(seed):
    """Objects of random_case overlap, where COCO's matching may find a pair less than the best matching."""
    contents, results = random_case(seed, images=4)
    ranked = ranked_by_score(contents, results)
    curve = threshold_curve(ranked)
    scenes = [make_scenes(ranked.cocoGt, ranked.entries, threshold) for threshold in curve.thresholds]
    values = [count(each, ranked.params.catIds).quality(0.5).f1 for each in scenes]
    assert np.all(curve.f1 <= np.array(values) + 1e-12)
    assert np.all(np.diff(curve.thresholds) < 0)
    assert np.all((curve.thresholds >= 0) & (curve.thresholds <= 1))

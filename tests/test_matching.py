"""Matching at a score threshold: a plain reference over whole masks, cases by hand, and everything empty."""

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, random_case, rectangle, segm_result, truth_of
from hypothesis import given
from hypothesis import strategies as st

import utils
from evaluation.boundary import boundary_rle
from evaluation.matching import IOUS, SIZES, Counts, Quality, count, make_disjoint, make_scenes, match
from evaluation.metrics import RankedEvaluation, as_coco

cases = st.builds(random_case, st.integers(0, 2**32), images=st.integers(1, 3), objects=st.integers(0, 5))


def prepared(contents, results):
    """The ground truth, and the results with the areas of their masks."""
    truth = as_coco(contents)
    return truth, RankedEvaluation(truth, results, "segm", 100).entries


def counts_of(contents, results, threshold=0.0, disjoint=False, boundaries=False) -> Counts:
    truth, entries = prepared(contents, results)
    scenes = make_scenes(truth, entries, threshold)
    if disjoint:
        scenes = [make_disjoint(scene, (HEIGHT, WIDTH), truth.imgToAnns.get(scene.image, [])) for scene in scenes]
    return count(scenes, list(truth.cats), boundaries)


############################################################
#  A plain reference
############################################################


def iou_of(first: np.ndarray, second: np.ndarray) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


def best_pairs(table: np.ndarray, iou: float) -> tuple[int, float, list]:
    """The most pairs of at least this IoU, and of these matchings the one with the largest sum, by trying all."""
    if not len(table):
        return 0, 0.0, []
    without = best_pairs(table[1:], iou)
    best = (without[0], without[1], [(i + 1, j) for i, j in without[2]])
    for j in np.flatnonzero(table[0] >= iou):
        number, total, pairs = best_pairs(np.where(np.arange(table.shape[1]) == j, 0, table[1:]), iou)
        pairs = [(0, int(j)), *((i + 1, other) for i, other in pairs)]
        best = max(best, (number + 1, total + table[0, j], pairs), key=lambda each: (each[0], round(each[1], 12)))
    return best


def plain_quality(contents, results, threshold, iou, category) -> Quality:
    """The counts of a category from whole masks, image by image."""
    total = np.zeros(5)
    for image in contents["images"]:
        entries = [e for e in contents["annotations"] if e["image_id"] == image["id"] and e["category_id"] == category]
        masks = {
            kind: [utils.rle_to_mask(e["segmentation"]) for e in entries if e["iscrowd"] == kind] for kind in (0, 1)
        }
        found = [e for e in results if e["image_id"] == image["id"] and e["category_id"] == category]
        found = [utils.rle_to_mask(e["segmentation"]) for e in found if e["score"] >= threshold]
        table = np.array([[iou_of(mask, other) for other in masks[0]] for mask in found]).reshape(
            len(found), len(masks[0])
        )
        number, iou_sum, pairs = best_pairs(table, iou)
        matched = {i for i, _ in pairs}
        false = 0
        for i, mask in enumerate(found):
            shares = [np.count_nonzero(mask & crowd) / np.count_nonzero(mask) for crowd in masks[1]]
            false += i not in matched and max(shares, default=0) < 0.5
        boundaries = 0.0
        for i, j in pairs:
            codes = [boundary_rle(utils.mask_to_rle(each)) for each in (found[i], masks[0][j])]
            boundaries += iou_of(*map(utils.rle_to_mask, codes))
        total += [number, false, len(masks[0]) - number, iou_sum, boundaries]
    return Quality(*total.tolist())


@given(cases, st.sampled_from([0.0, 0.3, 0.6]), st.sampled_from(IOUS))
def test_counts_are_those_of_a_plain_reference(case, threshold, iou):
    contents, results = case
    counts = counts_of(contents, results, threshold, boundaries=True)
    for category in contents["categories"]:
        actual = counts.quality(iou, category["id"])
        expected = plain_quality(contents, results, threshold, iou, category["id"])
        assert actual[:4] == pytest.approx(expected[:4]), category
        if actual.true_positives < 2:  # of several best matchings, the boundaries may be those of another one
            assert actual.boundary_sum == pytest.approx(expected.boundary_sum, abs=0.2)


@given(cases)
def test_sizes_and_categories_add_up(case):
    counts = counts_of(*case, boundaries=True)
    for iou in IOUS:
        whole = counts.quality(iou)
        assert np.sum([counts.quality(iou, size=size) for size in SIZES], axis=0) == pytest.approx(whole)
        parts = [counts.quality(iou, category["id"]) for category in case[0]["categories"]]
        assert np.sum(parts, axis=0) == pytest.approx(whole)
        assert whole.true_positives + whole.false_negatives == sum(not e["iscrowd"] for e in case[0]["annotations"])


@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(0, 4), st.sampled_from(IOUS))
def test_match_finds_most_pairs_then_the_largest_sum(seed, rows, columns, iou):
    table = np.random.default_rng(seed).choice([0, 0.3, 0.55, 0.65, 0.8, 0.95], (rows, columns))
    first, second = match(table, iou)
    number, total, _ = best_pairs(table, iou)
    assert len(first) == len(second) == len(set(second.tolist())) == number
    assert table[first, second].sum() == pytest.approx(total)
    assert (table[first, second] >= iou).all()


############################################################
#  By hand
############################################################

SQUARE = rectangle(10, 10, 30, 30)  # 400 pixels


def test_two_of_three_objects_and_one_invention():
    objects = [SQUARE, rectangle(50, 10, 70, 30), rectangle(10, 60, 30, 80)]
    found = [SQUARE, rectangle(50, 10, 70, 25), rectangle(80, 80, 100, 100)]  # IoU 1, 0.75, 0
    contents = truth_of(*((1, 1, mask) for mask in objects))
    counts = counts_of(contents, [segm_result(1, 1, mask, 0.9) for mask in found])
    quality = counts.quality(0.5)
    assert quality[:4] == (2, 1, 1, 1.75)
    assert (quality.precision, quality.recall, quality.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert quality.accuracy == 0.5
    assert quality.mean_iou == 0.875
    assert quality.panoptic_quality == pytest.approx(0.875 * 2 / 3), "PQ = SQ x RQ"
    assert counts.quality(0.8)[:4] == (1, 2, 2, 1.0)
    assert counts.quality(0.5, size="small") == quality
    assert counts.quality(0.5, size="large")[:3] == (0, 0, 0)


def test_the_threshold_keeps_scores_that_equal_it():
    contents = truth_of((1, 1, SQUARE))
    results = [segm_result(1, 1, SQUARE, 0.5, None), segm_result(1, 1, rectangle(60, 60, 80, 80), 0.4, None)]
    assert counts_of(contents, results, 0.5).quality(0.5)[:3] == (1, 0, 0)
    assert counts_of(contents, results, 0.4).quality(0.5)[:3] == (1, 1, 0)
    assert counts_of(contents, results, 0.6).quality(0.5)[:3] == (0, 0, 1)
    with_head = [segm_result(1, 1, SQUARE, 0.9, 0.5)]
    assert counts_of(contents, with_head, 0.5).quality(0.5)[:3] == (0, 0, 1), "the mask score decides, 0.45"


def test_a_detection_in_a_crowd_is_no_mistake():
    crowd = rectangle(0, 0, 60, 60)
    results = [
        segm_result(1, 1, rectangle(0, 0, 10, 10), 0.9),  # inside
        segm_result(1, 1, rectangle(50, 0, 70, 10), 0.9),  # half inside
        segm_result(1, 1, rectangle(50, 20, 71, 30), 0.9),  # less than half
        segm_result(1, 2, rectangle(0, 0, 10, 10), 0.9),  # of another class
    ]
    counts = counts_of(truth_of((1, 1, crowd, True)), results)
    assert counts.quality(0.5, 1)[:3] == (0, 1, 0)
    assert counts.quality(0.5, 2)[:3] == (0, 1, 0)
    beside = truth_of((1, 1, crowd, True), (1, 1, rectangle(0, 0, 10, 10)))
    assert counts_of(beside, results[:1]).quality(0.5)[:3] == (1, 0, 0), "an object comes before a crowd"


def test_nothing_is_no_number_and_not_zero():
    empty = truth_of(images=(1, 2))
    for counts in (counts_of(empty, []), counts_of(truth_of((1, 1, SQUARE, True)), [])):
        quality = counts.quality(0.5)
        assert quality[:3] == (0, 0, 0)
        names = ("precision", "recall", "f1", "accuracy", "mean_iou", "mean_boundary_iou", "panoptic_quality")
        assert {name: getattr(quality, name) for name in names} == dict.fromkeys(names)
        assert counts.mean_over_classes("panoptic_quality", 0.5) is None
    no_detections = counts_of(truth_of((1, 1, SQUARE)), []).quality(0.5)
    assert (no_detections.precision, no_detections.f1, no_detections.panoptic_quality) == (0, 0, 0)
    no_objects = counts_of(empty, [segm_result(1, 1, SQUARE, 0.9)]).quality(0.5)
    assert no_objects[:3] == (0, 1, 0)
    assert no_objects.f1 == 0


def test_classes_are_matched_apart_and_averaged_for_panoptic_quality():
    contents = truth_of((1, 1, SQUARE), (1, 2, rectangle(50, 50, 70, 70)))
    counts = counts_of(contents, [segm_result(1, 1, SQUARE, 0.9), segm_result(1, 1, rectangle(50, 50, 70, 70), 0.9)])
    assert counts.quality(0.5, 1)[:3] == (1, 1, 0)
    assert counts.quality(0.5, 2)[:3] == (0, 0, 1)
    assert counts.mean_over_classes("panoptic_quality", 0.5) == pytest.approx((1 / 1.5 + 0) / 2)
    three = truth_of((1, 1, SQUARE), categories=(1, 2, 3))
    assert counts_of(three, [segm_result(1, 1, SQUARE, 0.9)]).mean_over_classes("f1", 0.5) == 1, "of classes that occur"


############################################################
#  Disjoint detections
############################################################


def test_the_better_detection_keeps_a_shared_pixel():
    objects = [rectangle(0, 0, 20, 20), rectangle(0, 20, 20, 40)]
    results = [
        segm_result(1, 1, rectangle(0, 0, 20, 25), 0.9),  # 5 columns of the second object
        segm_result(1, 2, rectangle(0, 20, 20, 40), 0.8),  # of another class: loses them all the same
        segm_result(1, 1, rectangle(0, 10, 20, 24), 0.7),  # nothing of it is left
    ]
    contents = truth_of((1, 1, objects[0]), (1, 2, objects[1]))
    counts = counts_of(contents, results, disjoint=True)
    assert counts.quality(0.5, 1)[:4] == pytest.approx((1, 0, 0, 400 / 500))
    assert counts.quality(0.5, 2)[:4] == pytest.approx((1, 0, 0, 300 / 400))
    assert counts_of(contents, results).quality(0.5, 2).iou_sum == 1, "only panoptic quality takes pixels away"


def test_a_detection_of_which_less_than_half_is_left_is_none():
    contents = truth_of((1, 1, rectangle(0, 0, 20, 20)))
    results = [segm_result(1, 1, rectangle(0, 0, 20, 20), 0.9), segm_result(1, 1, rectangle(0, 0, 20, 39), 0.8)]
    assert counts_of(contents, results, disjoint=True).quality(0.5)[:3] == (1, 0, 0)
    results[1] = segm_result(1, 1, rectangle(0, 0, 20, 40), 0.8)
    assert counts_of(contents, results, disjoint=True).quality(0.5)[:3] == (1, 1, 0)


@given(cases)
def test_disjoint_detections_share_no_pixel(case):
    contents, results = case
    truth, entries = prepared(contents, results)
    for scene in make_scenes(truth, entries, 0.0):
        disjoint = make_disjoint(scene, (HEIGHT, WIDTH), truth.imgToAnns.get(scene.image, []))
        masks = [utils.rle_to_mask(entry["segmentation"]) for entry in disjoint.detections]
        assert sum(map(np.int64, masks), np.zeros((HEIGHT, WIDTH), np.int64)).max() <= 1
        assert [mask.sum() for mask in masks] == [entry["area"] for entry in disjoint.detections]
        before = [utils.rle_to_mask(entry["segmentation"]) for entry in scene.detections]
        union = np.any([np.zeros((HEIGHT, WIDTH), bool), *before], axis=0)
        assert all((union >= mask).all() for mask in masks)

"""Intervals of what re-scoring gains: against pycocotools on data sets whose images are there more than once."""

import copy

import numpy as np
import pytest
from helpers import boxes_of, random_case, run_pycocotools, two_rankings
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation import bootstrap
from evaluation.bootstrap import bootstrap_gains
from evaluation.metrics import RankedEvaluation, as_coco, evaluate_results

MEASURES = ("AP", "AP50", "AP75")


def repeated(contents, masks, counts) -> tuple[dict, list[dict]]:
    """The same with each image, its objects and its results as often as counts says."""
    images, objects, results = [], [], []
    for image in contents["images"]:
        for copy_ in range(counts[image["id"]]):
            number = image["id"] * 10 + copy_
            images.append({**image, "id": number})
            objects += [
                {**each, "image_id": number} for each in contents["annotations"] if each["image_id"] == image["id"]
            ]
            results += [{**each, "image_id": number} for each in masks if each["image_id"] == image["id"]]
    objects = [{**each, "id": number} for number, each in enumerate(objects, start=1)]
    return {**contents, "images": images, "annotations": objects}, results


def with_distinct_scores(masks) -> list[dict]:
    """Of equal scores the first one counts first, and copies of images change which that is."""
    return [{**each, "score": each["score"] + 1e-4 * i, "class_score": each["class_score"] + 1e-4 * i}
            for i, each in enumerate(copy.deepcopy(masks))]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), draw=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_sample_is_a_data_set_whose_images_are_there_so_often(seed, draw):
    contents, masks = random_case(seed, images=4)
    masks = with_distinct_scores(masks)
    counts = dict(zip(sorted(image["id"] for image in contents["images"]), draw, strict=True))
    larger, results = repeated(contents, masks, counts)
    assume(any(not each["iscrowd"] for each in larger["annotations"]) and results)
    ours = RankedEvaluation(as_coco(contents), masks, "segm", 100).rank()
    found = bootstrap._precisions([ours.matches(category) for category in ours.categories], counts, ours.params)
    np.testing.assert_allclose(found, run_pycocotools(larger, results, "segm").stats[:3], rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), max_dets=st.sampled_from([1, 3, 100]))
def test_values_are_those_of_the_evaluation(seed, max_dets):
    contents, masks = random_case(seed)
    assume(any(not each["iscrowd"] for each in contents["annotations"]))
    gains = bootstrap_gains(contents, masks, max_dets, samples=20)
    metrics = evaluate_results(contents, boxes_of(masks), masks, max_dets).metrics
    for name in MEASURES:
        base = metrics[f"mask {name} (class score)"]
        assert gains[name].value == pytest.approx(metrics[f"mask {name}"] - base, abs=1e-12)
        assert gains[f"{name} (true IoU)"].value == pytest.approx(metrics[f"mask {name} (true IoU)"] - base, abs=1e-12)
        assert all(interval.low <= interval.high for interval in gains.values())


def test_intervals_hold_the_value_and_narrow_with_more_images():
    few, many = (bootstrap_gains(*two_rankings(n, n // 2), samples=300)["AP75"] for n in (8, 128))
    assert few.low < few.value < few.high
    assert many.low < many.value < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low), "a quarter, for 16 times as many"


def test_no_doubt_where_all_images_are_the_same():
    gains = bootstrap_gains(*two_rankings(6, 6), samples=50)
    assert gains["AP75"].low == pytest.approx(gains["AP75"].high, abs=1e-6)
    assert gains["AP75"].value == pytest.approx(0.5, abs=0.01), "precision 1 instead of 1/2"
    assert gains["AP50"].value == pytest.approx(0, abs=1e-6), "at IoU 0.5 the bad mask will do"


def test_the_same_seed_draws_the_same_images():
    case = two_rankings(12, 5)
    one, again, other = (bootstrap_gains(*case, samples=40, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one["AP75"].value == other["AP75"].value
    assert one["AP75"] != other["AP75"]


def test_without_objects_or_results():
    contents, masks = two_rankings(3, 1)
    assert bootstrap_gains(contents, [], samples=5)["AP"] == (0, 0, 0)
    with pytest.raises(ValueError, match="no objects"):
        bootstrap_gains({**contents, "annotations": []}, masks)

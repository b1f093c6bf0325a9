"""From ground truth and results to numbers: pycocotools called directly, slow versions of everything, cases by hand."""

import contextlib
import copy
import io
import itertools
import json

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, boxes_of, random_case, rectangle, run_pycocotools, segm_result, to_rle, truth_of
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import native
import utils
from evaluation import metrics
from evaluation.calibration import correlation
from evaluation.examples import Example, find_examples
from evaluation.metrics import (
    RankedEvaluation,
    as_coco,
    average_precision,
    average_recall,
    confusion_matrix,
    evaluate_results,
    precision_curve,
    run_cocoeval,
    summary,
)
from evaluation.names import MEASURES
from evaluation.words import metrics_table

DATA = native.ROOT.parent / "shared" / "data"


KINDS = ("bbox", "segm")


############################################################
#  Data
############################################################


cases = st.builds(
    random_case,
    st.integers(0, 2**32),
    images=st.integers(1, 4),
    categories=st.integers(1, 4),
    objects=st.integers(0, 6),
    results=st.integers(0, 12),
)


def evaluate(contents, results, kind, max_dets=100):
    return run_cocoeval(as_coco(contents), results, kind, max_dets)


def assert_pycocotools(contents, results, kind):
    ours, theirs = evaluate(contents, results, kind), run_pycocotools(contents, results, kind)
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(summary(ours)) == names
    np.testing.assert_allclose(list(summary(ours).values()), theirs.stats[:12], rtol=0, atol=1e-12)


############################################################
#  pycocotools itself
############################################################


@given(cases)
def test_the_twelve_numbers_are_pycocotools(case):
    contents, masks = case
    assume(masks)  # loadRes takes no empty list
    assert_pycocotools(contents, boxes_of(masks), "bbox")
    assert_pycocotools(contents, masks, "segm")


@given(cases, st.sampled_from([1, 2, 3, 9, 10, 11, 400]))
def test_other_max_dets(case, max_dets):
    contents, masks = case
    assume(masks)
    counts = [count for count in (1, 10) if count < max_dets] + [max_dets]
    for kind, results in zip(KINDS, (boxes_of(masks), masks), strict=True):
        ours, theirs = evaluate(contents, results, kind, max_dets), run_pycocotools(contents, results, kind, counts)
        np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
        np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
        for m, count in enumerate(counts):
            recall = theirs.eval["recall"][:, :, 0, m]
            expected = recall[recall > -1].mean() if (recall > -1).any() else -1
            assert summary(ours)[f"AR{count}"] == pytest.approx(expected, abs=1e-12)


@given(cases)
def test_each_ranking_is_an_evaluation_of_its_own(case):
    """One after the other, in any order: nothing of the first ranking stays."""
    contents, masks = case
    assume(masks)
    ranked = RankedEvaluation(as_coco(contents), masks, "segm", 3)
    for name in ("class_score", "mask_iou", "class_score"):
        scores = [entry[name] for entry in masks]
        theirs = run_pycocotools(contents, [{**entry, "score": entry[name]} for entry in masks], "segm", (1, 3))
        np.testing.assert_array_equal(ranked.rank(scores).eval["precision"], theirs.eval["precision"])
        np.testing.assert_array_equal(ranked.eval["recall"], theirs.eval["recall"])
    np.testing.assert_array_equal(ranked.rank().eval["precision"], theirs.eval["precision"])


def test_objects_are_matched_once_for_all_areas(monkeypatch):
    """Of one size, and for all that: of two sizes each area ignores others."""
    small, large = rectangle(0, 0, 20, 20), rectangle(20, 20, 120, 130)
    calls = []
    match = COCOeval.evaluateImg
    monkeypatch.setattr(COCOeval, "evaluateImg", lambda *arguments: calls.append(1) or match(*arguments))
    for objects, expected in (([small], 1), ([small, small], 1), ([small, large], 3)):
        contents = truth_of(*((1, 1, mask) for mask in objects))
        masks = [segm_result(1, 1, mask, 0.9) for mask in (small, large)]
        ranked = evaluate(contents, [*masks, segm_result(1, 2, small, 0.9)], "segm")
        assert len(calls) == expected
        calls.clear()
        assert ranked.eval["precision"].shape == (10, 101, 2, 4, 3)
    evaluate(truth_of((1, 1, large)), [segm_result(1, 1, small, 0.9)], "segm")
    assert calls == [], "there is nothing near"


def test_polygons_and_uncompressed_codes_are_ground_truth_too():
    contents, masks = random_case(3, images=4, objects=6, results=12)
    for i, entry in enumerate(contents["annotations"]):
        mask = utils.rle_to_mask(entry["segmentation"])
        counts = [len(list(group)) for _, group in itertools.groupby(mask.ravel(order="F"))]
        x, y, width, height = entry["bbox"]
        polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        code = {"size": [HEIGHT, WIDTH], "counts": [0] * int(mask[0, 0]) + counts}
        entry["segmentation"] = (polygon, code, entry["segmentation"])[0 if entry["iscrowd"] else i % 3]
    assert_pycocotools(contents, masks, "segm")
    encoded = copy.deepcopy(contents)
    for entry in encoded["annotations"]:
        entry["segmentation"] = as_coco(contents).anns[entry["id"]]["segmentation"]
    np.testing.assert_array_equal(confusion_matrix(as_coco(contents), masks), confusion_matrix(as_coco(encoded), masks))
    ious = evaluate_results(contents, boxes_of(masks), masks).true_ious
    assert find_examples(as_coco(contents), masks, ious) == find_examples(as_coco(encoded), masks, ious)


@given(cases)
def test_results_are_those_of_load_res(case):
    contents, masks = case
    assume(masks)
    for results in (masks, boxes_of(masks), [{**m, **b} for m, b in zip(masks, boxes_of(masks), strict=True)]):
        index = COCO()
        index.dataset = copy.deepcopy(contents)
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
            theirs = index.loadRes(copy.deepcopy(results)).anns
        ours = as_coco(contents, results).anns
        assert ours.keys() == theirs.keys()
        for number, entry in ours.items():
            assert entry == {name: theirs[number][name] for name in entry}


############################################################
#  Real annotations
############################################################


def real_annotations(name: str, split: str, images: int | None = None) -> dict:
    path = DATA / name / "annotations" / f"{split}.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    contents = json.loads(path.read_text())
    contents["images"] = contents["images"][:images]
    wanted = {image["id"] for image in contents["images"]}
    contents["annotations"] = [entry for entry in contents["annotations"] if entry["image_id"] in wanted]
    for entry in contents["annotations"]:
        entry["iscrowd"] = entry.get("iscrowd", 0)
    return contents


def fed_back(contents) -> tuple[list[dict], list[dict]]:
    """The ground truth as results: its boxes and its masks."""
    entries = [entry for entry in as_coco(contents).dataset["annotations"] if not entry["iscrowd"]]
    common = [{"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 1.0} for entry in entries]
    boxes = [{**some, "bbox": entry["bbox"]} for some, entry in zip(common, entries, strict=True)]
    masks = [
        {**some, "segmentation": entry["segmentation"], "class_score": 1.0, "mask_iou": 1.0}
        for some, entry in zip(common, entries, strict=True)
    ]
    return boxes, masks


def made_by_hand(contents, copies=4) -> list[dict]:
    """Detections of real objects, crowds too: shifted, eroded, rescored, and some of another class."""
    rng = np.random.default_rng(0)
    categories = [entry["id"] for entry in contents["categories"]]
    masks = []
    for entry in as_coco(contents).dataset["annotations"]:
        original = utils.rle_to_mask(entry["segmentation"])
        for _ in range(copies):
            mask = np.roll(original, rng.integers(-6, 7, 2), axis=(0, 1))
            if rng.random() < 0.5:
                mask = mask & np.roll(mask, rng.integers(1, 5), axis=rng.integers(2))
            category = entry["category_id"] if rng.random() < 0.9 else int(rng.choice(categories))
            scores = float(rng.choice([0.1, 0.3, 0.5, 0.8, rng.random()])), float(rng.random())
            masks.append(segm_result(entry["image_id"], category, mask, *scores))
    return [masks[i] for i in rng.permutation(len(masks))]


def test_real_annotations_give_the_numbers_of_pycocotools():
    contents = real_annotations("coco_real", "instances_val2017", images=90)
    masks = made_by_hand(contents)
    counts = np.unique([entry["image_id"] for entry in masks], return_counts=True)[1]
    assert counts.max() > 100
    assert any(entry["iscrowd"] for entry in contents["annotations"])
    assert_pycocotools(contents, boxes_of(masks), "bbox")
    assert_pycocotools(contents, masks, "segm")
    assert 0.05 < summary(evaluate(contents, masks, "segm"))["AP"] < 0.95


def test_many_nuclei_give_the_numbers_of_pycocotools():
    contents = real_annotations("nuclei", "instances_val", images=20)
    masks = made_by_hand(contents, copies=1)
    for kind, results in zip(KINDS, (boxes_of(masks), masks), strict=True):
        ours, theirs = evaluate(contents, results, kind, 400), run_pycocotools(contents, results, kind, (1, 10, 400))
        np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
        np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
        numbers = summary(ours)
        assert numbers["AP"] == pytest.approx(theirs.eval["precision"][:, :, 0, 0, 2].mean(), abs=1e-12)
        assert numbers["AR400"] == pytest.approx(theirs.eval["recall"][:, 0, 0, 2].mean(), abs=1e-12)


@pytest.mark.parametrize(("name", "split", "images", "max_dets"), [
    ("coco_real", "instances_val2017", None, 100),
    ("nuclei", "instances_val", 30, 400),
])  # fmt: skip
def test_ground_truth_fed_back_has_ap_1(name, split, images, max_dets):
    contents = real_annotations(name, split, images)
    boxes, masks = fed_back(contents)
    numbers = evaluate_results(contents, boxes, masks, max_dets).metrics
    assert numbers["box AP"] == numbers["mask AP"] == numbers["mask AP (true IoU)"] == pytest.approx(1, abs=1e-12)
    assert numbers["objects"] == numbers["detections"] == len(masks)


############################################################
#  Inputs
############################################################


def test_nothing_is_changed_in_the_inputs():
    contents, masks = random_case(0)
    contents["annotations"][0]["segmentation"] = [[1, 1, 90, 1, 90, 90]]
    boxes = boxes_of(masks)
    inputs = contents, boxes, masks
    before = copy.deepcopy(inputs)
    found = evaluate_results(*inputs)
    find_examples(as_coco(contents), masks, found.true_ious)
    confusion_matrix(as_coco(contents), masks)
    RankedEvaluation(as_coco(contents), masks, "segm", 5).rank(np.arange(len(masks)))
    as_coco(contents, boxes)
    assert inputs == before
    assert json.loads(json.dumps(inputs)) == json.loads(json.dumps(before))


@given(cases)
def test_numbers_of_annotations_do_not_matter(case):
    """0 and repeated ones, in which pycocotools would see no object, and one object twice."""
    contents, masks = case
    expected = evaluate_results(contents, boxes_of(masks), masks)
    contents = copy.deepcopy(contents)
    for i, entry in enumerate(contents["annotations"]):
        entry["id"] = i // 2
    found = evaluate_results(contents, boxes_of(masks), masks)
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    np.testing.assert_array_equal(found.true_ious, expected.true_ious)


@given(cases)
def test_what_belongs_to_no_category_or_image_is_left_out(case):
    contents, masks = case
    expected = evaluate_results(contents, boxes_of(masks), masks)
    more = copy.deepcopy(contents)
    for entry in contents["annotations"]:
        more["annotations"] += [{**entry, "category_id": 5000}, {**entry, "image_id": 5000}]
    others = [{**entry, "category_id": 5000, "class_score": 1.0, "score": 1.0} for entry in masks]
    found = evaluate_results(more, boxes_of(others + masks), others + masks)
    assert found.metrics == expected.metrics
    assert found.classes == expected.classes
    assert found.examples == expected.examples
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    np.testing.assert_array_equal(confusion_matrix(as_coco(more), others + masks), expected.confusion)
    np.testing.assert_array_equal(found.mask_scores, expected.mask_scores)


def test_results_of_unknown_images_are_an_error():
    mask = rectangle(0, 0, 9, 9)
    contents, masks = truth_of((1, 1, mask)), [segm_result(image, 1, mask, 0.9) for image in (7, 1, 8, 7)]
    message = r"results of 2 images that the ground truth does not have: 7, 8; are they of another data set"
    with pytest.raises(ValueError, match=message):
        as_coco(contents, masks)
    with pytest.raises(ValueError, match=message):
        evaluate_results(contents, [], masks)
    with pytest.raises(ValueError, match=message):
        evaluate_results(contents, boxes_of(masks), [])
    with pytest.raises(ValueError, match=message):
        confusion_matrix(as_coco(contents), masks)


@pytest.mark.parametrize("name", ["images", "categories"])
def test_images_and_categories_of_the_same_id_are_an_error(name):
    contents = truth_of((1, 1, rectangle(0, 0, 9, 9)))
    contents[name].append(contents[name][0])
    with pytest.raises(ValueError, match=rf"several {name} of the ground truth have the same id: 1"):
        evaluate_results(contents, [], [])


def test_category_and_image_0_are_as_good_as_others():
    mask, far = rectangle(0, 0, 40, 40), rectangle(50, 0, 90, 40)
    contents = truth_of((0, 0, mask), (0, 5, far), images=(0,), categories=(0, 5))
    masks = [segm_result(0, 0, mask, 0.9), segm_result(0, 0, far, 0.8)]
    found = evaluate_results(contents, boxes_of(masks), masks)
    assert [row["mask AP"] for row in found.classes] == [pytest.approx(1), 0]
    assert found.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert found.true_ious.tolist() == [1, 0]


@pytest.mark.parametrize(("contents", "classes", "expected"), [
    (truth_of(images=(), categories=()), 0, -1),
    (truth_of(categories=()), 0, -1),
    (truth_of(images=()), 2, -1),
    (truth_of(), 2, -1),
    (truth_of((1, 1, rectangle(0, 0, 40, 40), True)), 2, -1),
    (truth_of((1, 1, rectangle(0, 0, 40, 40))), 2, 0),
])  # fmt: skip
def test_without_results(contents, classes, expected):
    found = evaluate_results(contents, [], [])
    assert {found.metrics[f"{kind} AP"] for kind in ("box", "mask")} == {expected}
    assert found.metrics["re-scoring gain"] == found.metrics["IoU correlation"] == found.metrics["detections"] == 0
    assert len(found.classes) == classes
    assert found.confusion.shape == (classes + 1, classes + 1)
    assert found.class_names == ["BG", *(f"class {i}" for i in range(1, classes + 1))]
    assert found.examples == {"overrated": [], "corrected": [], "best": []}
    assert len(found.true_ious) == len(found.class_scores) == len(found.mask_scores) == 0
    assert found.mask_ious is None
    assert all(curve.shape == (101,) for curve in found.curves.values())
    assert "-" in metrics_table(found.metrics)


def test_a_truth_of_no_categories_has_no_results_either():
    masks = [segm_result(1, 1, rectangle(0, 0, 9, 9), 0.9)]
    found = evaluate_results(truth_of(categories=()), boxes_of(masks), masks)
    assert found.metrics["mask AP"] == -1
    assert found.metrics["detections"] == 0


def test_boxes_need_no_masks():
    contents = truth_of((1, 1, rectangle(0, 0, 40, 40)))
    del contents["annotations"][0]["segmentation"], contents["annotations"][0]["iscrowd"]
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "score": 0.5}]
    assert average_precision(evaluate(contents, results, "bbox")) == pytest.approx(1)


def test_scores_are_one_for_each_result():
    contents, masks = truth_of((1, 1, rectangle(0, 0, 9, 9))), [segm_result(1, 1, rectangle(0, 0, 9, 9), 0.9)]
    ranked = RankedEvaluation(as_coco(contents), masks, "segm", 100)
    with pytest.raises(ValueError, match="zip"):
        ranked.rank([0.5, 0.6])


############################################################
#  What mask scoring changes
############################################################


@given(st.integers(0, 2**32))
def test_the_true_iou_never_lowers_ap75(seed):
    """At most one detection an object, no two objects overlap: what has IoU .75 then only rises."""
    rng = np.random.default_rng(seed)
    objects, masks = [], []
    for image in (1, 2, 3):
        for row in range(rng.integers(0, 4)):
            y, category = 30 * row, int(rng.integers(1, 3))
            objects.append((image, category, rectangle(y, 0, y + 30, 100)))
            if rng.random() < 0.9:
                height, score = rng.integers(10, 31), float(rng.choice([0.3, 0.6, rng.uniform(0.05, 1)]))
                masks.append(segm_result(image, category, rectangle(y, 0, y + height, 100), score, float(rng.random())))
    contents = truth_of(*objects, images=(1, 2, 3))
    numbers = evaluate_results(contents, boxes_of(masks), masks).metrics
    assert numbers["mask AP75 (true IoU)"] >= numbers["mask AP75 (class score)"]
    ranked = RankedEvaluation(as_coco(contents), masks, "segm", 100)
    best = average_precision(ranked.rank(ranked.true_ious()), 0.75)
    assert best >= numbers["mask AP75 (class score)"]
    assert best >= numbers["mask AP75"]


@given(cases)
def test_every_number_of_an_evaluation(case):
    """Each from an evaluation of its own, and of the category alone."""
    contents, masks = case
    found = evaluate_results(contents, boxes_of(masks), masks)
    ious = slow_true_ious(contents, masks)
    np.testing.assert_allclose(found.true_ious, ious, rtol=0, atol=1e-12)
    assert found.class_scores.tolist() == [entry["class_score"] for entry in masks]
    assert found.mask_scores.tolist() == [entry["score"] for entry in masks]
    assert masks == [] or found.mask_ious.tolist() == [entry["mask_iou"] for entry in masks]
    rankings = {
        " (class score)": [entry["class_score"] for entry in masks],
        "": [entry["score"] for entry in masks],
        " (true IoU)": [entry["class_score"] * iou for entry, iou in zip(masks, ious, strict=True)],
    }
    evaluations = {"box {}": evaluate(contents, boxes_of(masks), "bbox")}
    for ranking, scores in rankings.items():
        ranked = [{**entry, "score": score} for entry, score in zip(masks, scores, strict=True)]
        evaluations[f"mask {{}}{ranking}"] = evaluate(contents, ranked, "segm")
    assert [row["category_id"] for row in found.classes] == sorted(entry["id"] for entry in contents["categories"])
    for pattern, one in evaluations.items():
        for name, value in summary(one).items():
            assert found.metrics[pattern.format(name)] == pytest.approx(value, abs=1e-12)
        for name, iou in {"AP": None, "AP50": 0.5, "AP75": 0.75}.items():
            np.testing.assert_array_equal(found.curves[pattern.format(name)], precision_curve(one, iou))
            for row in found.classes:
                value = average_precision(one, iou, category=row["category_id"])
                assert row[pattern.format(name)] == value
    gains = {"AP": "re-scoring gain", **{name: f"re-scoring gain {name}" for name in list(MEASURES)[1:]}}
    for name in MEASURES:
        gain = found.metrics[f"mask {name}"] - found.metrics[f"mask {name} (class score)"]
        assert found.metrics[gains[name]] == gain
    for row in found.classes:
        assert row["name"] == f"class {row['category_id']}"
        mine = [entry for entry in contents["annotations"] if entry["category_id"] == row["category_id"]]
        assert row["objects"] == sum(not entry["iscrowd"] for entry in mine)
        for name in ("AP", "AP50", "AP75"):
            assert row[gains[name]] == row[f"mask {name}"] - row[f"mask {name} (class score)"]
    counts = [found.metrics[name] for name in ("images", "detections", "objects", "max_dets")]
    objects = sum(row["objects"] for row in found.classes)
    assert counts == [len(contents["images"]), len(masks), objects, 100]
    expected = correlation(found.mask_ious, found.true_ious)
    assert found.metrics["IoU correlation"] == expected
    expected = correlation(found.class_scores, found.true_ious)
    assert found.metrics["class score correlation"] == expected
    np.testing.assert_array_equal(found.confusion, confusion_matrix(as_coco(contents), masks))
    assert found.examples == find_examples(as_coco(contents), masks, found.true_ious)
    names = {entry["id"]: entry["name"] for entry in contents["categories"]}
    assert found.class_names == ["BG", *(names[number] for number in sorted(names))]
    assert found.confusion_rule == metrics.CONFUSION_RULE
    assert found.facts == found.seconds == {}


def slow_true_ious(contents, masks) -> list[float]:
    ious = []
    for entry in masks:
        mine = utils.rle_to_mask(entry["segmentation"])
        best = 0.0
        for each in contents["annotations"]:
            same = (each["image_id"], each["category_id"]) == (entry["image_id"], entry["category_id"])
            if same and not each["iscrowd"]:
                other = utils.rle_to_mask(each["segmentation"])
                best = max(best, (mine & other).sum() / max(1, (mine | other).sum()))
        ious.append(best)
    return ious


def test_without_a_head_masks_are_ranked_by_class_score():
    contents, masks = random_case(5, images=4, objects=6, results=12)
    masks = [{**entry, "score": entry["class_score"], "mask_iou": None} for entry in masks]
    found = evaluate_results(contents, boxes_of(masks), masks)
    assert found.mask_ious is None
    assert found.metrics["mask AP"] == found.metrics["mask AP (class score)"] > 0
    assert found.metrics["IoU correlation"] == 0 != found.metrics["class score correlation"]
    assert found.examples["corrected"] == []
    assert {example.mask_iou for example in found.examples["best"]} == {None}


############################################################
#  Reading an evaluation
############################################################


def test_precision_curve_by_hand():
    """Right, wrong, right, of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.

    The second category has one object that is found; of the third there is none. 0.8 of an object counts up to 0.80.
    """
    objects = [rectangle(0, 40 * i, 30, 40 * i + 30) for i in range(3)]
    wrong, part = rectangle(60, 0, 90, 30), rectangle(60, 60, 84, 90)
    contents = truth_of(*((1, 1, mask) for mask in objects), (1, 2, rectangle(60, 60, 90, 90)), categories=(1, 2, 3))
    masks = [
        segm_result(1, 1, objects[0], 0.9), segm_result(1, 1, wrong, 0.8), segm_result(1, 1, objects[1], 0.7),
        segm_result(1, 2, part, 0.6), segm_result(1, 3, wrong, 0.9),
    ]  # fmt: skip
    ranked = evaluate(contents, masks, "segm")
    first = np.array([1.0] * 34 + [2 / 3] * 33 + [0] * 34)
    np.testing.assert_allclose(precision_curve(ranked, 0.5), (first + 1) / 2, atol=1e-12)
    np.testing.assert_allclose(precision_curve(ranked, 0.85), first / 2, atol=1e-12)
    np.testing.assert_allclose(precision_curve(ranked), (first + 0.7) / 2, atol=1e-12)
    assert average_precision(ranked, 0.5, category=1) == pytest.approx((34 + 22) / 101)
    assert average_precision(ranked, category=3) == -1
    assert average_recall(ranked) == pytest.approx((2 / 3 + 0.7) / 2)
    assert average_recall(ranked, 1) == pytest.approx((1 / 3 + 0.7) / 2)
    assert average_recall(ranked, area="small") == average_recall(ranked)
    assert average_recall(ranked, area="large") == -1


@given(cases, st.sampled_from([None, *np.linspace(0.5, 0.95, 10).tolist(), 0.55, 0.6, 0.95]))
def test_the_mean_of_the_curve_is_ap(case, iou):
    contents, masks = case
    ranked = evaluate(contents, masks, "segm")
    curve = precision_curve(ranked, iou)
    assert curve.mean() == pytest.approx(average_precision(ranked, iou))
    assert (np.diff(curve) <= 1e-12).all()


def test_wrong_questions():
    ranked = evaluate(truth_of((1, 1, rectangle(0, 0, 9, 9))), [], "segm")
    with pytest.raises(ValueError, match=r"iou must be one of 0.5, 0.55, .*, 0.95, not 0.72"):
        average_precision(ranked, 0.72)
    with pytest.raises(ValueError, match=r"iou must be one of .*, not 0"):
        precision_curve(ranked, 0)
    with pytest.raises(ValueError, match=r"area must be one of all, small, medium, large, not 'tiny'"):
        average_precision(ranked, area="tiny")
    with pytest.raises(ValueError, match=r"area must be one of all, small, medium, large, not 'tiny'"):
        average_recall(ranked, area="tiny")
    with pytest.raises(ValueError, match=r"category must be one of 1, 2, not 3"):
        average_precision(ranked, category=3)
    with pytest.raises(ValueError, match=r"max_dets must be one of 1, 10, 100, not 50"):
        average_recall(ranked, 50)
    with pytest.raises(ValueError, match=r"max_dets must be at least 1, not -3"):
        evaluate_results(truth_of(), [], [], -3)


def test_the_table_in_words():
    contents = truth_of((1, 1, rectangle(0, 0, 40, 40)))  # medium
    masks = [segm_result(1, 1, rectangle(0, 0, 25, 40), 0.9, 0.6), segm_result(1, 1, rectangle(0, 0, 40, 40), 0.8, 1.0)]
    lines = metrics_table(evaluate_results(contents, boxes_of(masks), masks).metrics).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[1].split() == ["boxes", "by", "class", "score", "65.0", "100.0", "50.0", "-", "100.0", "-"]
    assert lines[2].split()[-6:] == ["65.0", "100.0", "50.0", "-", "100.0", "-"]  # the part is a small one
    assert lines[3].split()[-6:] == ["100.0", "100.0", "100.0", "-", "100.0", "-"]
    assert lines[4].split()[-6:] == ["+35.0", "+0.0", "+50.0", "-", "+0.0", "-"]
    assert lines[5].split()[:4] == ["upper", "bound", "(true", "IoU)"]
    assert lines[6] == (
        "1 images, 2 detections, at most 100 of a class in an image; correlation of predicted and true IoU: 1.00"
    )
    assert len({len(line) for line in lines[:6]}) == 1, "columns"
    nothing = metrics_table(evaluate_results(contents, [], []).metrics).splitlines()
    assert nothing[3].split()[-6:] == ["0.0", "0.0", "0.0", "-", "0.0", "-"]


############################################################
#  Confusion
############################################################


def test_confusion_by_hand():
    left, right, low = rectangle(0, 0, 40, 40), rectangle(0, 60, 40, 100), rectangle(60, 0, 100, 40)
    crowd = rectangle(60, 60, 120, 130)
    contents = truth_of((1, 1, left), (1, 2, right), (1, 2, low), (1, 1, crowd, True), (2, 2, left), images=(1, 2, 3))
    masks = [
        segm_result(1, 1, left, 0.6),  # comes second
        segm_result(1, 2, left, 0.8),  # takes the first object for another class
        segm_result(1, 2, rectangle(0, 60, 40, 80), 0.7),  # IoU of 0.5 with the second
        segm_result(1, 2, low, 0.49),  # a score below 0.5
        segm_result(1, 2, rectangle(60, 60, 80, 80), 0.9),  # in the crowd
        segm_result(1, 1, rectangle(50, 60, 70, 80), 0.9),  # half in it
        segm_result(1, 1, rectangle(48, 60, 70, 80), 0.9),  # less than half
        segm_result(2, 2, left, 0.5, 0.1),  # it is the class score that counts
        segm_result(3, 2, left, 0.9),  # an image without objects
    ]
    matrix = confusion_matrix(as_coco(contents), masks)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[0, 2, 1], [0, 0, 1], [1, 0, 2]]


def test_of_two_free_objects_the_nearer_is_taken():
    contents = truth_of((1, 1, rectangle(0, 0, 30, 40)), (1, 2, rectangle(0, 0, 40, 40)))
    whole, part = rectangle(0, 0, 40, 40), rectangle(0, 0, 36, 40)
    assert confusion_matrix(as_coco(contents), [segm_result(1, 1, whole, 0.9)]).tolist() == [
        [0] * 3,
        [1, 0, 0],
        [0, 1, 0],
    ]
    masks = [segm_result(1, 1, part, 0.8), segm_result(1, 1, whole, 0.9)]  # the second best object is left
    assert confusion_matrix(as_coco(contents), masks).tolist() == [[0] * 3, [0, 1, 0], [0, 1, 0]]


def slow_confusion(contents, masks) -> np.ndarray:
    ids = sorted(entry["id"] for entry in contents["categories"])
    matrix = np.zeros((len(ids) + 1,) * 2, int)
    rows = [(entry, utils.rle_to_mask(entry["segmentation"]).astype(bool)) for entry in contents["annotations"]]
    taken = [False] * len(rows)
    for entry in sorted(masks, key=lambda entry: -entry["class_score"]):
        if entry["class_score"] < 0.5:
            continue
        mine = utils.rle_to_mask(entry["segmentation"])
        best, where, aside = 0.5, None, False
        for i, (each, other) in enumerate(rows):
            if each["image_id"] != entry["image_id"]:
                continue
            shared = (mine & other).sum()
            if each["iscrowd"]:
                aside |= bool(shared / max(1, mine.sum()) >= 0.5)
            elif not taken[i]:
                iou = shared / max(1, (mine | other).sum())
                if iou > best or (iou == best and where is None):
                    best, where = iou, i
        column = 1 + ids.index(entry["category_id"])
        if where is not None:
            taken[where] = True
            matrix[1 + ids.index(rows[where][0]["category_id"]), column] += 1
        elif not aside:
            matrix[0, column] += 1
    for (each, _), is_taken in zip(rows, taken, strict=True):
        if not is_taken and not each["iscrowd"]:
            matrix[1 + ids.index(each["category_id"]), 0] += 1
    return matrix


@given(cases)
def test_confusion_is_that_of_the_slow_version(case):
    matrix = confusion_matrix(as_coco(case[0]), case[1])
    np.testing.assert_array_equal(matrix, slow_confusion(*case))
    assert matrix[0, 0] == 0
    assert matrix[1:].sum() == sum(not entry["iscrowd"] for entry in case[0]["annotations"])


############################################################
#  Examples
############################################################


def test_examples_by_hand():
    whole, half, other = rectangle(10, 20, 50, 60), rectangle(10, 20, 30, 60), rectangle(60, 0, 100, 50)
    contents = truth_of((1, 1, half, True), (1, 1, whole), (1, 2, whole), (1, 1, other), images=(1, 2))
    contents["images"][1].pop("file_name")
    masks = [
        segm_result(1, 1, half, 0.9, 0.55),  # bad, and said to be
        segm_result(1, 1, other, 0.8, 0.9),  # good
        segm_result(1, 2, half, 0.7, 0.95),  # bad, and said to be good
        segm_result(2, 2, half, 0.99, 0.0),  # there is nothing
    ]
    ious = np.array([0.5, 1, 0.5, 0])
    found = find_examples(as_coco(contents), masks, ious)
    assert [example.class_score for example in found["overrated"]] == [0.9, 0.7]
    assert [example.class_score for example in found["corrected"]] == [0.9]
    assert [example.class_score for example in found["best"]] == [0.8, 0.7]  # two of an image
    example = found["corrected"][0]
    assert example == Example(
        1, "1.jpg", "class 1", 0.9, 0.55, 0.9 * 0.55, 0.5, (10, 20, 30, 60), to_rle(half), example.truth
    )
    np.testing.assert_array_equal(utils.rle_to_mask(example.truth), whole)
    np.testing.assert_array_equal(utils.rle_to_mask(found["best"][0].truth), other)
    nowhere = find_examples(as_coco(contents), masks[3:], np.array([0.6]))["overrated"][0]
    assert nowhere.title == "image 2"
    assert nowhere.truth is None
    apart = find_examples(as_coco(contents), [segm_result(1, 2, other, 0.9)], np.array([0.6]))["overrated"][0]
    assert apart.truth is None


@given(cases)
def test_examples_are_those_of_the_slow_version(case):
    contents, masks = case
    ious = np.array(slow_true_ious(contents, masks))
    found = find_examples(as_coco(contents), masks, ious)
    for kind, examples in found.items():
        worths = []
        for i, (entry, iou) in enumerate(zip(masks, ious.tolist(), strict=True)):
            bad = 0.1 <= iou < 0.75
            right = abs(entry["mask_iou"] - iou) <= 0.1
            worth = {
                "overrated": bad * (entry["class_score"] - iou),
                "corrected": bad * right * (entry["class_score"] - entry["score"]),
                "best": entry["score"] * iou,
            }[kind]
            worths.append((-worth, i))
        expected = []
        for worth, i in sorted(worths):
            mine = [j for j in expected if masks[j]["image_id"] == masks[i]["image_id"]]
            if worth < 0 and len(mine) < 2 and len(expected) < 12:
                expected.append(i)
        assert [(e.image_id, e.class_score, e.mask_score, e.mask) for e in examples] == [
            (masks[i]["image_id"], masks[i]["class_score"], masks[i]["score"], masks[i]["segmentation"])
            for i in expected
        ]
        assert [example.true_iou for example in examples] == ious[expected].tolist()
        for example in examples:
            overlap = coco_mask.iou([example.mask], [example.truth], [0])[0, 0]
            assert overlap == pytest.approx(example.true_iou), "the object that it overlaps most"


def test_examples_are_few():
    mask = rectangle(0, 0, 40, 40)
    contents = truth_of(*((image, 1, mask) for image in range(1, 21)), images=range(1, 21))
    masks = [segm_result(image, 1, mask, 0.9) for image in range(1, 21) for _ in range(3)]
    best = find_examples(as_coco(contents), masks, np.ones(60))["best"]
    assert [example.image_id for example in best] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    ious = np.where(np.arange(60) % 7 == 3, 1, 0.9)  # the 4th, 11th, 18th ...
    best = find_examples(as_coco(contents), masks, ious)["best"]
    assert [example.image_id for example in best] == [2, 4, 6, 9, 11, 13, 16, 18, 20, 1, 1, 2]

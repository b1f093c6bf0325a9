"""Review: each kind of a wrong label comes out on top, and what is right, or a crowd, does not."""

import numpy as np
import pytest

import utils
from config import Config
from data.classes import UNKNOWN
from evaluation.review import (
    KINDS,
    MISSING,
    MISSING_WEIGHT,
    SHIFTED,
    SLOPPY,
    SURPLUS,
    WRONG_CLASS,
    Found,
    Labels,
    find_twins,
    is_shifted,
    match_greedily,
    reason,
    review_picture,
)

SIZE = (80, 100)
NAMES = ["BG", "cat", "dog"]


def box(y1: int, x1: int, y2: int, x2: int) -> dict:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return utils.mask_to_rle(mask)


# Objects of 20 x 20 pixels that do not touch
BOXES = [(5, 5, 25, 25), (5, 35, 25, 55), (5, 65, 25, 85), (40, 5, 60, 25), (40, 35, 60, 55)]


def labels(boxes, rows=None, crowds=()) -> Labels:
    is_crowd = np.zeros(len(boxes), bool)
    is_crowd[list(crowds)] = True
    return Labels(np.array(rows or [1] * len(boxes), np.int64), is_crowd, [box(*each) for each in boxes])


def found(boxes, scores=None, ious=None, rows=None) -> Found:
    scores = np.array([0.9] * len(boxes) if scores is None else scores)
    ious = np.array([0.85] * len(boxes) if ious is None else ious)
    return Found(
        np.array(rows or [1] * len(boxes), np.int64), scores, ious, scores * ious, [box(*each) for each in boxes]
    )


def worst(suspects):
    return max(suspects, key=lambda suspect: suspect.suspicion)


@pytest.mark.parametrize(
    ("kind", "boxes", "rows"),
    [
        (SHIFTED, [(5, 5, 25, 25), (13, 41, 33, 61), *BOXES[2:]], None),
        (SLOPPY, [(5, 5, 25, 25), (5, 35, 25, 45), *BOXES[2:]], None),  # half of it
        (SLOPPY, [(5, 5, 25, 25), (0, 29, 31, 61), *BOXES[2:]], None),  # too large
        (WRONG_CLASS, BOXES, [1, 2, 1, 1, 1]),
    ],
)
def test_a_wrong_label_comes_out_on_top(kind, boxes, rows):
    suspects = review_picture(labels(boxes, rows), found(BOXES))
    top = worst(suspects)
    assert (top.kind, top.label, top.detection) == (kind, 1, 1)
    others = [suspect.suspicion for suspect in suspects if suspect is not top]
    assert top.suspicion > 0.2 > max(others) + 0.1


def test_a_label_without_a_detection_is_surplus():
    there = labels([*BOXES, (65, 70, 78, 95)])
    suspects = review_picture(there, found(BOXES))
    assert len(suspects) == 6, "one for each label, and nothing is missing"
    top = worst(suspects)
    assert (top.kind, top.label, top.detection, top.iou) == (SURPLUS, 5, None, 0)
    assert reason(top, there, found(BOXES), NAMES, ["id 1"] * 6) == "the model finds nothing there"
    assert all(suspect.suspicion < 0.05 for suspect in suspects if suspect is not top)


def test_a_detection_without_a_label_is_missing():
    seen = found(BOXES, scores=[0.9, 0.9, 0.9, 0.9, 0.8])
    suspects = review_picture(labels(BOXES[:4]), seen)
    top = worst(suspects)
    assert (top.kind, top.label, top.detection) == (MISSING, None, 4)
    assert top.suspicion == pytest.approx(MISSING_WEIGHT * 0.8)
    assert "finds a cat with a class score of 0.80; labels cover 0% of it" in reason(top, labels([]), seen, NAMES, [])
    assert [suspect.kind for suspect in suspects].count(MISSING) == 1


def test_one_missing_object_is_one_suspect():
    """Detections of other classes, or with a poorer outline, are no objects of their own."""
    seen = found([*BOXES, (5, 6, 25, 25)], scores=[0.9, 0.9, 0.9, 0.9, 0.8, 0.4], rows=[1, 1, 1, 1, 1, 2])
    missing = [suspect for suspect in review_picture(labels([]), seen) if suspect.kind == MISSING]
    assert [suspect.detection for suspect in missing] == [0, 1, 2, 3, 4]


def test_a_poor_mask_says_little_about_the_label():
    """With the same IoU, the detection whose mask should be good speaks against its label."""
    halves = [(5, 5, 25, 16), (5, 35, 25, 46), *BOXES[2:]]
    suspects = review_picture(labels(halves), found(BOXES, ious=[0.55, 0.95, 0.85, 0.85, 0.85]))
    assert suspects[0].iou == pytest.approx(0.55)
    assert suspects[0].suspicion < 0.15 < suspects[1].suspicion
    assert worst(suspects).label == 1
    assert worst(suspects).suspicion == pytest.approx((0.95 - 0.55) * 0.9 * 0.95)


def test_crowds_are_not_suspicious_and_hide_detections():
    there = labels([(0, 0, 80, 100)], crowds=[0])
    assert review_picture(there, found(BOXES)) == []
    of_others = Labels(np.array([2]), np.array([True]), there.masks)
    assert len(review_picture(of_others, found(BOXES))) == 5, "a crowd of dogs hides no cats"
    nobody_knows = Labels(np.array([UNKNOWN]), np.array([True]), there.masks)
    assert review_picture(nobody_knows, found(BOXES)) == []


def test_labels_of_unknown_classes_are_not_looked_at():
    suspects = review_picture(labels(BOXES, [1, UNKNOWN, 1, 1, 1]), found(BOXES))
    assert [suspect.label for suspect in suspects if suspect.label is not None] == [0, 2, 3, 4]
    assert not any(suspect.kind == MISSING for suspect in suspects), "the object has a label, of whatever class"


def test_the_second_label_of_an_object_is_surplus():
    there = labels([*BOXES, (5, 37, 25, 56)])
    top = worst(review_picture(there, found(BOXES)))
    assert (top.kind, top.label, top.twin) == (SURPLUS, 5, 1), "the one that fits worse"
    assert top.suspicion > 0.7
    places = [f"id {number}" for number in range(6)]
    assert reason(top, there, found(BOXES), NAMES, places) == "id 1 lies on the same object"
    assert find_twins(labels(BOXES), np.arange(5)) == {}


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_is_normal_input(count):
    suspects = review_picture(labels(BOXES[:count]), found([]))
    assert [suspect.kind for suspect in suspects] == [SURPLUS] * count
    assert [suspect.kind for suspect in review_picture(labels([]), found(BOXES[:count]))] == [MISSING] * count


def test_pairs_of_the_greatest_gain_come_first():
    gains = np.array([[0.5, 0.9, 0.0], [0.4, 0.8, 0.0], [0.0, 0.0, 0.0]])
    assert match_greedily(gains).tolist() == [1, 0, -1]
    assert match_greedily(np.zeros((2, 0))).tolist() == [-1, -1]


def test_a_shift_is_told_from_another_outline():
    whole = box(10, 10, 30, 40)
    assert is_shifted(box(14, 16, 34, 46), whole, 0.47)
    assert not is_shifted(box(10, 10, 20, 40), whole, 0.5), "half of it would gain little"
    assert not is_shifted(box(10, 10, 30, 40), box(60, 60, 61, 61), 0.0)


def test_reasons_say_where_and_how_much():
    there = labels([(13, 41, 33, 61), (5, 5, 25, 15)])
    seen = found([BOXES[1], BOXES[0]])
    suspects = {suspect.label: suspect for suspect in review_picture(there, seen)}
    words = [reason(suspects[label], there, seen, NAMES, ["id 1", "id 2"]) for label in (0, 1)]
    assert words[0] == "it lies 6 px right and 8 px below of the model's outline (IoU 0.27, 0.85 predicted)"
    assert words[1] == "its area is 0.50 times that of the model's outline (IoU 0.50, 0.85 predicted)"
    other = labels([BOXES[0]], [2])
    (wrong,) = review_picture(other, found([BOXES[0]]))
    assert reason(wrong, other, seen, NAMES, ["id 1"]) == "the model takes it for a cat, with a class score of 0.90"
    assert reason(wrong, other, seen, ["BG", "\x1b[2Jcat"], ["id 1"]).isprintable()


def test_the_calibrated_chance_stands_for_the_product():
    config = Config(NAME="x", NUM_CLASSES=2, ACCEPT_CALIBRATION=(0.0,) * 6 + (1.0, 1.0, 0.0, 1.0, 1.0, -1.0))
    calibrated = Found.of(config, [1], [0.8], [0.7], [box(*BOXES[0])])
    odds = (0.8 / 0.2) * (0.7 / 0.3)
    assert calibrated.qualities.tolist() == pytest.approx([odds / (1 + odds)])
    plain = Found.of(Config(NAME="x", NUM_CLASSES=2), [1], [0.8], [1.2], [box(*BOXES[0])])
    assert plain.qualities.tolist() == pytest.approx([0.8])
    without = Found.of(Config(NAME="x", NUM_CLASSES=2), [1], [0.8], None, [box(*BOXES[0])])
    assert without.mask_ious.tolist() == [1]
    assert set(KINDS) == {SHIFTED, SLOPPY, WRONG_CLASS, SURPLUS, MISSING}


@pytest.mark.parametrize("seed", range(20))
def test_each_label_is_looked_at_once_whatever_comes(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corners = rng.integers(0, 60, (count, 2))
        return np.concatenate([corners, corners + rng.integers(1, 20, (count, 2))], axis=1).tolist()

    count, detections = rng.integers(0, 12, 2).tolist()
    there = labels(boxes(count), rng.choice([1, 2, UNKNOWN], count).tolist())._replace(crowds=rng.random(count) < 0.2)
    scores, ious = rng.random((2, detections))
    seen = found(boxes(detections), scores, ious, rng.choice([1, 2], detections).tolist())
    suspects = review_picture(there, seen)
    looked_at = [suspect.label for suspect in suspects if suspect.kind != MISSING]
    assert looked_at == np.flatnonzero(~there.crowds & (there.rows != UNKNOWN)).tolist()
    missing = [suspect.detection for suspect in suspects if suspect.kind == MISSING]
    assert len(set(missing)) == len(missing)
    for suspect in suspects:
        assert 0 <= suspect.suspicion <= 1
        assert 0 <= suspect.iou <= 1
        assert reason(suspect, there, seen, NAMES, [f"id {number}" for number in range(count)])

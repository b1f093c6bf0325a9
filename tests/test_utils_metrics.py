"""Metrics of single images, against numbers worked out by hand."""

import numpy as np
import pytest

import utils


def scene(boxes, class_ids, size=(20, 20)):
    """(boxes, class ids, masks): each mask fills its box."""
    boxes = np.array(boxes, np.int32).reshape(-1, 4)
    masks = np.zeros((*size, len(boxes)), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, i] = True
    return boxes, np.array(class_ids, np.int32), masks


def predict(boxes, class_ids, scores, size=(20, 20)):
    boxes, class_ids, masks = scene(boxes, class_ids, size)
    return boxes, class_ids, np.array(scores, np.float32), masks


NOTHING = scene([], [])
NO_PREDICTIONS = predict([], [], [])
# Two objects of class 1, one of class 2; each 4 x 4.
TRUTH = scene([[0, 0, 4, 4], [0, 10, 4, 14], [10, 0, 14, 4]], [1, 1, 2])
# Not sorted. By score: 0.9 half of the second object (IoU 8/16), 0.8 the first (IoU 1), 0.7 the first again (12/16),
# 0.6 the third, as the wrong class.
PREDICTIONS = predict([[0, 0, 3, 4], [10, 0, 14, 4], [0, 10, 2, 14], [0, 0, 4, 4]], [1, 1, 1, 1], [0.7, 0.6, 0.9, 0.8])


############################################################
#  compute_matches
############################################################


def test_matches_by_hand():
    gt_match, pred_match, overlaps = utils.compute_matches(*TRUTH, *PREDICTIONS)
    np.testing.assert_allclose(overlaps, [[0, 0.5, 0], [1, 0, 0], [0.75, 0, 0], [0, 0, 1]])  # rows by score
    assert pred_match.tolist() == [1, 0, -1, -1]
    assert gt_match.tolist() == [1, 0, -1]
    assert np.array([10, 20, 30])[gt_match].tolist() == [20, 10, 30]  # integers, which index


def test_matches_need_the_iou():
    gt_match, pred_match, _ = utils.compute_matches(*TRUTH, *PREDICTIONS, iou_threshold=0.51)
    assert pred_match.tolist() == [-1, 0, -1, -1]
    assert gt_match.tolist() == [1, -1, -1]


def test_matches_need_the_score():
    gt_match, pred_match, overlaps = utils.compute_matches(*TRUTH, *PREDICTIONS, score_threshold=0.85)
    assert pred_match.tolist() == [1, -1, -1, -1]
    assert gt_match.tolist() == [-1, 0, -1]
    assert overlaps.shape == (4, 3)


def test_a_prediction_takes_the_next_object_if_the_best_is_taken():
    truth = scene([[0, 0, 4, 4], [0, 0, 4, 5]], [1, 1])
    _, pred_match, _ = utils.compute_matches(*truth, *predict([[0, 0, 4, 4]] * 3, [1, 1, 1], [0.9, 0.8, 0.7]))
    assert pred_match.tolist() == [0, 1, -1]  # IoU 1, then 16/20, then nothing is left


def test_a_better_object_of_another_class_does_not_hide_one():
    truth = scene([[0, 0, 4, 4], [0, 0, 4, 5]], [2, 1])
    _, pred_match, _ = utils.compute_matches(*truth, *predict([[0, 0, 4, 4]], [1], [0.9]))
    assert pred_match.tolist() == [1]


def test_equal_scores_stay_in_order():
    boxes = [[0, 0, 4, x] for x in range(1, 20)] * 3
    _, _, overlaps = utils.compute_matches(*TRUTH, *predict(boxes, [1] * 57, [0.5, 0.6, 0.7] * 19))
    _, _, unsorted = utils.compute_matches(*TRUTH, *predict(boxes, [1] * 57, -np.arange(57)))
    assert np.array_equal(overlaps, np.concatenate([unsorted[2::3], unsorted[1::3], unsorted[::3]]))


def test_padding_is_dropped_wherever_it_is():
    padded = scene([[0, 0, 0, 0], *TRUTH[0].tolist(), [0, 0, 0, 0]], [9, *TRUTH[1], 9])
    predictions = predict([[0, 0, 0, 0], [10, 0, 14, 4]], [9, 2], [1.0, 0.9])
    gt_match, pred_match, overlaps = utils.compute_matches(*padded, *predictions)
    assert gt_match.tolist() == [-1, -1, 0]
    assert pred_match.tolist() == [2]
    assert overlaps.tolist() == [[0, 0, 1]]


def test_crowds_match_nothing_and_do_not_count():
    truth = scene([[0, 0, 4, 4], [0, 10, 4, 14]], [-1, 1])
    predictions = predict([[0, 10, 4, 14], [0, 0, 4, 4]], [1, -1], [0.9, 0.8])
    gt_match, pred_match, _ = utils.compute_matches(*truth, *predictions)
    assert gt_match.tolist() == [-1, 0]
    assert pred_match.tolist() == [1, -1]
    assert utils.compute_ap(*truth, *predictions)[0] == 1


def test_matches_of_nothing():
    for truth, predictions, shape in [
        (NOTHING, PREDICTIONS, (4, 0)),
        (TRUTH, NO_PREDICTIONS, (0, 3)),
        (NOTHING, NO_PREDICTIONS, (0, 0)),
        (TRUTH, (np.zeros((0, 4)), [], [], np.zeros((0, 28, 28))), (0, 3)),  # as the 2018 port returns them
        (TRUTH, ([], [], [], []), (0, 3)),
    ]:
        gt_match, pred_match, overlaps = utils.compute_matches(*truth, *predictions)
        assert overlaps.shape == shape
        assert pred_match.tolist() == [-1] * shape[0]
        assert gt_match.tolist() == [-1] * shape[1]


def test_empty_masks_have_no_overlap():
    truth = (TRUTH[0], TRUTH[1], np.zeros_like(TRUTH[2]))
    predictions = (*PREDICTIONS[:3], np.zeros_like(PREDICTIONS[3]))
    _, pred_match, overlaps = utils.compute_matches(*truth, *predictions)
    assert not overlaps.any()
    assert (pred_match == -1).all()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((3, 5)), r"gt_boxes must be \[N, \(y1, x1, y2, x2\)\], not \[3, 5\]"),
        (1, [1, 2], r"gt_class_ids must be \[3\], as many as gt_boxes, not \[2\]"),
        (2, np.zeros((3, 20, 20)), r"gt_masks must be \[H, W, 3\].*not \[3, 20, 20\]; np.moveaxis"),
        (4, [1], r"pred_class_ids must be \[4\]"),
        (5, np.zeros((4, 81)), r"pred_scores must be \[4\]"),
        (6, np.zeros((20, 20, 3)), r"pred_masks must be \[H, W, 4\].*not \[20, 20, 3\]$"),
        (6, np.zeros((56, 56, 4)), r"gt_masks \[20, 20, 3\] and pred_masks \[56, 56, 4\].*mini mask"),
    ],
)
def test_wrong_shapes_are_named(position, value, message):
    arguments = [*TRUTH, *PREDICTIONS]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        utils.compute_matches(*arguments)


############################################################
#  compute_ap, compute_ap_range, compute_recall
############################################################


def test_ap_by_hand():
    """Hits by score: yes, yes, no, no; of three objects. Recall 1/3 and 2/3 at precision 1, then nothing: 2/3."""
    ap, precisions, recalls, overlaps = utils.compute_ap(*TRUTH, *PREDICTIONS)
    assert ap == pytest.approx(2 / 3)
    np.testing.assert_allclose(precisions, [1, 1, 1, 2 / 3, 0.5, 0])
    np.testing.assert_allclose(recalls, [0, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert overlaps.shape == (4, 3)
    # At 0.6, the best prediction is wrong: no, yes, no, no. Recall 1/3 at precision 1/2.
    ap, precisions, recalls, _ = utils.compute_ap(*TRUTH, *PREDICTIONS, iou_threshold=0.6)
    assert ap == pytest.approx(1 / 6)
    np.testing.assert_allclose(precisions, [0.5, 0.5, 0.5, 1 / 3, 0.25, 0])
    np.testing.assert_allclose(recalls, [0, 0, 1 / 3, 1 / 3, 1 / 3, 1])


def test_precision_is_made_to_fall():
    """Hits: no, yes, yes. Precisions 0, 1/2, 2/3, each raised to the best to its right."""
    predictions = predict([[15, 15, 19, 19], [0, 0, 4, 4], [0, 10, 4, 14]], [1, 1, 1], [0.9, 0.8, 0.7])
    ap, precisions, _, _ = utils.compute_ap(*TRUTH, *predictions)
    np.testing.assert_allclose(precisions, [2 / 3, 2 / 3, 2 / 3, 2 / 3, 0])
    assert ap == pytest.approx(2 / 3 * 2 / 3)


def test_ap_of_nothing():
    assert utils.compute_ap(*TRUTH, *NO_PREDICTIONS)[0] == 0
    assert utils.compute_ap(*NOTHING, *PREDICTIONS)[0] == 0
    ap, precisions, recalls, overlaps = utils.compute_ap(*NOTHING, *NO_PREDICTIONS)
    assert ap == 1
    assert precisions.tolist() == [1, 1]
    assert recalls.tolist() == [0, 1]
    assert overlaps.shape == (0, 0)
    assert np.isfinite(utils.compute_ap(*NOTHING, *PREDICTIONS)[1]).all()


def test_ap_range(capsys):
    """AP is 2/3 at 0.5 (by hand, above), and 1/6 at 0.55 to 0.95."""
    assert utils.compute_ap_range(*TRUTH, *PREDICTIONS) == pytest.approx((2 / 3 + 9 / 6) / 10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "AP @0.50:\t 0.667"
    assert lines[1] == "AP @0.55:\t 0.167"
    assert lines[-1] == "AP @0.50-0.95:\t 0.217"
    assert len(lines) == 11


def test_ap_range_of_given_thresholds(capsys):
    for thresholds in ([0.5, 0.6], np.array([0.5, 0.6])):
        mean = utils.compute_ap_range(*TRUTH, *PREDICTIONS, iou_thresholds=thresholds, verbose=0)
        assert mean == pytest.approx((2 / 3 + 1 / 6) / 2)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="iou_thresholds is empty"):
        utils.compute_ap_range(*TRUTH, *PREDICTIONS, iou_thresholds=[])


def test_recall_by_hand():
    predictions = [[0, 0, 4, 3], [0, 10, 4, 12], [0, 0, 4, 4], [15, 15, 19, 19]]  # IoU 12/16, 8/16, 1, 0
    recall, positive_ids = utils.compute_recall(predictions, TRUTH[0], 0.7)
    assert recall == pytest.approx(1 / 3)
    assert positive_ids.tolist() == [0, 2]  # both of the first object
    recall, positive_ids = utils.compute_recall(np.array(predictions, np.float32), TRUTH[0], 0.5)
    assert recall == pytest.approx(2 / 3)
    assert positive_ids.tolist() == [0, 1, 2]


def test_recall_of_nothing():
    for pred_boxes, gt_boxes, expected in [([], TRUTH[0], 0), (TRUTH[0], np.zeros((0, 4)), 1), ([], [], 1)]:
        recall, positive_ids = utils.compute_recall(pred_boxes, gt_boxes, 0.5)
        assert recall == expected
        assert positive_ids.tolist() == []
    with pytest.raises(ValueError, match="gt_boxes must be"):
        utils.compute_recall([], [1, 2, 3, 4], 0.5)

"""What goes wrong, by kind: a case by hand for each, and kinds that add up."""

import pytest
from helpers import random_case, rectangle, segm_result, truth_of
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import KINDS, KindCount, count_errors, find_errors
from evaluation.matching import count, make_scenes
from evaluation.metrics import RankedEvaluation, as_coco

LEFT, RIGHT = rectangle(10, 10, 30, 30), rectangle(10, 30, 30, 50)
BOTH = rectangle(10, 10, 30, 50)


def errors_of(objects, found, threshold=0.0):
    """objects: (category, mask[, iscrowd]). found: (category, mask[, score])."""
    truth = as_coco(truth_of(*((1, *each) for each in objects)))
    results = [segm_result(1, category, mask, *(score or (0.9,))) for category, mask, *score in found]
    entries = RankedEvaluation(truth, results, "segm", 100).entries
    return find_errors(make_scenes(truth, entries, threshold))


def shape_of(errors):
    """What took part in each error: kind, detections, objects, false positives, missed objects."""
    return [(e.kind, len(e.detections), len(e.objects), e.false_positives, len(e.missed)) for e in errors]


CASES = {
    "right": ([(1, LEFT)], [(1, LEFT)], []),
    "miss": ([(1, LEFT)], [], [("miss", 0, 1, 0, 1)]),
    "invention": ([], [(1, LEFT)], [("invention", 1, 0, 1, 0)]),
    "two as one": ([(1, LEFT), (1, RIGHT)], [(1, rectangle(8, 8, 32, 52))], [("merge", 1, 2, 1, 2)]),
    "a merge that has a pair": ([(1, LEFT), (1, RIGHT)], [(1, rectangle(10, 10, 30, 40))], [("merge", 1, 2, 0, 1)]),
    "a merge over two that are found": (
        [(1, LEFT), (1, RIGHT)], [(1, LEFT), (1, RIGHT), (1, BOTH, 0.5)], [("merge", 1, 2, 1, 0)],
    ),
    "not a half of the second": ([(1, LEFT), (1, RIGHT)], [(1, rectangle(10, 10, 30, 39))], [("miss", 0, 1, 0, 1)]),
    "one as two": ([(1, BOTH)], [(1, LEFT), (1, RIGHT)], [("split", 2, 1, 1, 0)]),
    "one as three": (
        [(1, rectangle(10, 10, 40, 100))],
        [(1, rectangle(10, 10, 40, 40)), (1, rectangle(10, 40, 40, 70)), (1, rectangle(10, 70, 40, 100))],
        [("split", 3, 1, 3, 1)],
    ),
    "one twice": ([(1, LEFT)], [(1, LEFT), (1, LEFT, 0.5)], [("split", 2, 1, 1, 0)]),
    "another class": ([(1, LEFT)], [(2, LEFT)], [("wrong class", 1, 1, 1, 1)]),
    "another class, though found": ([(1, LEFT)], [(1, LEFT), (2, LEFT)], [("invention", 1, 0, 1, 0)]),
    "sloppy": ([(1, BOTH)], [(1, rectangle(10, 10, 30, 28))], [("sloppy", 1, 1, 1, 1)]),
    "hardly touched": (
        [(1, BOTH)], [(1, rectangle(10, 10, 30, 13))], [("invention", 1, 0, 1, 0), ("miss", 0, 1, 0, 1)],
    ),
    "in a crowd": ([(1, BOTH, True)], [(1, LEFT)], []),
    "two of a crowd": ([(1, BOTH, True), (1, rectangle(60, 60, 80, 80))], [(1, LEFT)], [("miss", 0, 1, 0, 1)]),
    "found in a crowd": ([(1, rectangle(0, 0, 60, 60), True), (1, LEFT), (1, RIGHT)], [(1, rectangle(10, 10, 30, 40))],
                         [("merge", 1, 2, 0, 1)]),
    "classes do not merge": ([(1, LEFT), (2, RIGHT)], [(1, rectangle(8, 8, 32, 52))],
                             [("sloppy", 1, 1, 1, 1), ("miss", 0, 1, 0, 1)]),
    "nothing": ([], [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    objects, found, expected = CASES[name]
    assert shape_of(errors_of(objects, found)) == expected


def test_only_detections_from_the_threshold_on_are_wrong():
    assert shape_of(errors_of([], [(1, LEFT, 0.4)], 0.5)) == []
    assert shape_of(errors_of([(1, LEFT)], [(1, LEFT, 0.4)], 0.5)) == [("miss", 0, 1, 0, 1)]


def test_counts_have_every_kind():
    counts = count_errors(errors_of([(1, LEFT), (1, RIGHT)], [(1, rectangle(5, 5, 37, 57)), (2, LEFT)]))
    assert list(counts) == list(KINDS)
    assert counts["merge"] == KindCount(1, 1, 2)
    assert counts["invention"] == KindCount(1, 1, 0)
    assert counts["miss"] == KindCount(0, 0, 0)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.6]))
def test_kinds_add_up_to_what_is_wrong_at_half_overlap(seed, threshold):
    contents, results = random_case(seed)
    truth = as_coco(contents)
    entries = RankedEvaluation(truth, results, "segm", 100).entries
    scenes = make_scenes(truth, entries, threshold)
    quality = count(scenes, list(truth.cats)).quality(0.5)
    errors = find_errors(scenes)
    counts = count_errors(errors).values()
    assert sum(each.false_positives for each in counts) == quality.false_positives
    assert sum(each.false_negatives for each in counts) == quality.false_negatives
    assert all(error.false_positives or error.missed for error in errors), "an error explains something"

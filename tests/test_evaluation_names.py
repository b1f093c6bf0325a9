"""Keys of numbers and their names: users, logs and files read the names."""

import itertools

import pytest

from evaluation.names import CLASS_COLUMNS, MEASURES, ROWS, Metric, known_value, recall_measures


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("box", "AP", "class score"), "box AP"),
        (("mask", "AP50", "mask score"), "mask AP50"),
        (("mask", "AP50", "class score"), "mask AP50 (class score)"),
        (("mask", "AR100", "true IoU"), "mask AR100 (true IoU)"),
        (("gain", "AP", "mask score"), "re-scoring gain"),
        (("gain", "APs", "mask score"), "re-scoring gain APs"),
        (("gain", "AP75", "true IoU"), "re-scoring gain AP75 (true IoU)"),
    ],
)
def test_name_of_a_key(key, name):
    assert str(Metric(*key)) == name


def test_no_two_keys_have_one_name():
    rankings = ("class score", "mask score", "true IoU")
    keys = [Metric(*key) for key in itertools.product(("box", "mask", "gain"), [*MEASURES, "AR1", "ARs"], rankings)]
    assert len({str(key) for key in keys}) == len(keys)


def test_rows_and_columns_have_names_of_their_own():
    names = [str(row.metric("AP")) for row in ROWS]
    assert names == ["box AP", "mask AP (class score)", "mask AP", "re-scoring gain", "mask AP (true IoU)"]
    assert len({row.title for row in ROWS}) == len(ROWS)
    assert len(set(CLASS_COLUMNS.values())) == len(CLASS_COLUMNS)


def test_a_number_is_known_if_there_are_objects():
    gain = Metric("gain", "AP50", "mask score")
    numbers = {"mask AP50": 0.0, "re-scoring gain AP50": -1.0, "box AP": -1.0, "mask APs": -1, "re-scoring gain APs": 0}
    assert known_value(numbers, Metric("mask", "AP50", "mask score")) == 0
    assert known_value(numbers, Metric("box", "AP", "class score")) is None
    assert known_value(numbers, gain) == -1, "a gain of -1 is a gain"
    assert known_value(numbers, Metric("gain", "APs", "mask score")) is None


def test_recalls_are_in_the_order_of_their_numbers():
    metrics = {f"mask {name}": 0.5 for name in ("ARl", "AR400", "AR5", "AR10", "ARs", "AR1", "ARm", "AP")}
    assert recall_measures(metrics) == ["AR1", "AR5", "AR10", "AR400", "ARs", "ARm", "ARl"]
    assert recall_measures({"mask AP": 0.5}) == []

"""converters.py, with stubs of the packages, and with supervision itself where it is installed."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from helpers import detection_result, rectangles

import converters
import utils

NAMES = ("BG", "cat", "dog")
BOXES = [(2, 3, 20, 30), (50, 60, 90, 110)]


def result_of(masks: str = "rle", ious=(0.9, 0.25)) -> dict:
    arrays = rectangles(*BOXES)
    result = detection_result(arrays, [2, 1], [0.75, 0.5], ious)
    return result if masks == "rle" else {**result, "masks": arrays}


def nothing(masks: str) -> dict:
    arrays = rectangles()
    result = detection_result(arrays, [], [], [])
    return {**result, "masks": [] if masks == "rle" else arrays}


class Stub:
    """Keeps what a class of the package is made of."""

    def __init__(self, **fields) -> None:
        self.__dict__ |= fields


@pytest.fixture
def stub(monkeypatch):
    """Stands in for both packages."""
    module = types.SimpleNamespace(Detections=Stub, Detection=Stub)
    for name in ("supervision", "fiftyone"):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("masks", ["rle", "array"])
def test_to_supervision(masks, stub):
    found = converters.to_supervision(result_of(masks), NAMES)
    assert found.xyxy.tolist() == [[3, 2, 30, 20], [60, 50, 110, 90]]
    assert found.mask.shape == (2, 100, 120)
    assert (np.moveaxis(found.mask, 0, -1) == rectangles(*BOXES)).all()
    assert found.class_id.tolist() == [2, 1]
    assert found.confidence.tolist() == pytest.approx([0.675, 0.125])
    assert found.data["class_score"].tolist() == [0.75, 0.5]
    assert found.data["mask_iou"].tolist() == pytest.approx([0.9, 0.25])
    assert found.data["class_name"].tolist() == ["dog", "cat"]


def test_to_supervision_without_a_head_and_names(stub):
    found = converters.to_supervision(result_of(ious=None))
    assert found.data.keys() == {"class_score"}
    assert found.confidence.tolist() == [0.75, 0.5]


def test_nothing_to_supervision(stub):
    assert converters.to_supervision(nothing("array"), NAMES).mask.shape == (0, 100, 120)
    found = converters.to_supervision(nothing("rle"), NAMES)
    assert found.mask is None
    assert found.xyxy.shape == (0, 4)


@pytest.mark.parametrize("masks", ["rle", "array"])
def test_to_fiftyone(masks, stub):
    detections = converters.to_fiftyone(result_of(masks), NAMES).detections
    assert [found.label for found in detections] == ["dog", "cat"]
    assert detections[0].bounding_box == pytest.approx([3 / 120, 2 / 100, 27 / 120, 18 / 100])
    assert [found.mask.shape for found in detections] == [(18, 27), (40, 50)]
    assert all(found.mask.all() for found in detections)
    assert [found.confidence for found in detections] == pytest.approx([0.675, 0.125])
    assert [found.mask_iou for found in detections] == pytest.approx([0.9, 0.25])
    assert detections[0].class_score == 0.75
    assert not hasattr(converters.to_fiftyone(result_of(masks, ious=None), NAMES).detections[0], "mask_iou")


@pytest.mark.parametrize("masks", ["rle", "array"])
def test_to_fiftyone_leaves_out_what_has_no_pixel(masks, stub):
    arrays = np.stack([np.zeros((9, 8), bool), np.eye(9, 8, dtype=bool)], axis=-1)
    result = detection_result(arrays, [1, 2], [0.5, 0.5])
    result["masks"] = arrays if masks == "array" else utils.mask_to_rle(arrays)
    (found,) = converters.to_fiftyone(result, NAMES).detections
    assert found.label == "dog"
    assert (found.mask == np.eye(8, dtype=bool)).all()
    assert converters.to_fiftyone(nothing(masks), NAMES).detections == []


@pytest.mark.parametrize("name", ["supervision", "fiftyone"])
def test_without_the_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"to_{name} needs the package {name}: pip install {name}"):
        getattr(converters, f"to_{name}")(result_of(), NAMES)


@pytest.mark.skipif(importlib.util.find_spec("supervision") is None, reason="supervision is not installed")
@pytest.mark.parametrize("result", [result_of("rle"), result_of("array"), nothing("rle"), nothing("array")])
def test_supervision_itself(result):
    import supervision

    found = converters.to_supervision(result, NAMES)
    assert isinstance(found, supervision.Detections)
    assert len(found) == len(result["scores"])
    picture = np.zeros((100, 120, 3), np.uint8)
    drawn = supervision.LabelAnnotator().annotate(supervision.MaskAnnotator().annotate(picture.copy(), found), found)
    assert bool(drawn.any()) == (len(found) > 0)
    assert len(found[found.confidence > 0.5]) == int((result["mask_scores"] > 0.5).sum())

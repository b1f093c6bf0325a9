"""detections.py: rows and columns of what is found in a batch and in an image."""

import json

import numpy as np
import pytest
import torch
from helpers import random_image, rectangles, tiny_model

import utils
from detections import Detections, ImageDetections


def detections(count: int = 3, with_masks: bool = True) -> Detections:
    """Scores .1, .3, .2, .1, .3 ..., so that there are ties; boxes, classes and masks are numbered."""
    numbers = torch.arange(count)
    return Detections(
        boxes=numbers[:, None].float().expand(count, 4),
        batch_index=numbers // 2,
        class_ids=numbers + 1,
        scores=torch.tensor([0.1, 0.3, 0.2])[numbers % 3],
        mask_logits=numbers[:, None, None].float().expand(count, 28, 28) if with_masks else None,
        maskious=None,
    )


def of_image(count: int = 3, as_codes: bool = True, has_head: bool = True) -> ImageDetections:
    numbers = np.arange(count)
    masks = rectangles(*((i, i, i + 2, i + 3) for i in range(count)), shape=(20, 30))
    return ImageDetections(
        rois=np.stack([numbers, numbers, numbers + 2, numbers + 3], axis=1).astype(np.float32),
        class_ids=(numbers % 2 + 1).astype(np.int32),
        scores=np.array([0.5, 0.25, 1], np.float32)[numbers % 3],
        mask_ious=np.array([0.5, 1, 0.25], np.float32)[numbers % 3] if has_head else None,
        mask_scores=np.full(count, 0.25, np.float32),
        masks=utils.mask_to_rle(masks) if as_codes else masks,
    )


############################################################
#  Detections
############################################################


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.tensor([True, False, True]), [1, 3]),
        (torch.tensor([2, 0, 0]), [3, 1, 1]),
        (slice(1, None), [2, 3]),
        ([], []),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_rows_of_a_batch(rows, expected):
    picked = detections()[rows]
    assert picked.class_ids.tolist() == expected
    assert len(picked) == len(expected)
    assert picked.boxes[:, 0].tolist() == [i - 1 for i in expected]
    assert picked.mask_logits.shape == (len(expected), 28, 28)
    assert picked.maskious is None


def test_a_row_alone_is_refused():
    for columns in (detections(), of_image()):
        with pytest.raises(TypeError, match=r"detections\[1\] is not one row"):
            columns[1]


def test_batches_are_joined_and_sorted_with_ties_in_order():
    joined = Detections.cat([detections(), detections(0), detections(2)])
    assert joined.class_ids.tolist() == [1, 2, 3, 1, 2]
    ordered = joined.sorted_by("scores")
    assert ordered.class_ids.tolist() == [2, 2, 3, 1, 1]
    assert ordered.batch_index.tolist() == [0, 0, 1, 0, 0]
    assert ordered.mask_logits[:, 0, 0].tolist() == [1, 1, 2, 0, 0]
    assert len(detections(0).sorted_by("scores")) == 0
    with pytest.raises(ValueError, match="mask_logits is None in some of the parts only"):
        Detections.cat([detections(), detections(with_masks=False)])


def test_a_batch_moves_as_a_whole():
    moved = detections().to("meta")
    assert {column.device.type for column in (moved.boxes, moved.batch_index, moved.mask_logits)} == {"meta"}
    assert moved.maskious is None


def test_what_the_network_finds_is_rows():
    with torch.no_grad():
        found = tiny_model()(torch.randn(2, 3, 64, 96))
    parts = [found[found.batch_index == i] for i in range(2)]
    again = Detections.cat(parts)
    assert len(found) == len(again) > 10
    assert torch.equal(again.maskious, found.maskious)
    assert torch.equal(parts[0].sorted_by("scores").boxes, parts[0].boxes), "best first already"


############################################################
#  ImageDetections
############################################################


@pytest.mark.parametrize("as_codes", [True, False])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        ([2, 0, 0], [2, 0, 0]),
        (slice(None, None, -1), [2, 1, 0]),
        ([], []),
    ],
)
def test_rows_of_an_image(rows, expected, as_codes):
    whole = of_image(as_codes=as_codes)
    picked = whole[rows]
    assert len(picked) == len(expected)
    assert picked.rois[:, 0].tolist() == expected
    if as_codes:
        assert picked.masks == [whole.masks[i] for i in expected]
    else:
        assert picked.masks.shape == (20, 30, len(expected))
        assert all((picked.masks[..., k] == whole.masks[..., i]).all() for k, i in enumerate(expected))
    assert of_image(has_head=False)[rows].mask_ious is None


@pytest.mark.parametrize("as_codes", [True, False])
def test_images_parts_are_joined_and_sorted(as_codes):
    joined = ImageDetections.cat([of_image(2, as_codes), of_image(0, as_codes), of_image(3, as_codes)])
    assert joined.rois[:, 0].tolist() == [0, 1, 0, 1, 2]
    ordered = joined.sorted_by("scores")
    assert ordered.rois[:, 0].tolist() == [2, 0, 0, 1, 1]
    masks = utils.rle_to_mask(ordered.masks) if as_codes else ordered.masks
    assert utils.extract_bboxes(masks)[:, 0].tolist() == [2, 0, 0, 1, 1]
    assert joined.sorted_by("mask_scores").rois.tolist() == joined.rois.tolist(), "all are equal"
    with pytest.raises(ValueError, match="mask_ious is None in some of the parts only"):
        ImageDetections.cat([of_image(), of_image(has_head=False)])


@pytest.mark.parametrize("masks", ["array", "rle"])
def test_detects_dict_there_and_back(masks):
    (result,) = tiny_model().detect([random_image(64, 96)], masks=masks)
    columns = ImageDetections.of({**result, "file_name": "one.jpg"})
    assert list(columns.to_result()) == list(result)
    assert all(value is result[name] for name, value in columns.to_result().items())
    assert len(columns) == len(result["scores"])
    with pytest.raises(KeyError, match="mask_scores"):
        ImageDetections.of({name: value for name, value in result.items() if name != "mask_scores"})


def test_coco_entries_by_hand():
    entry, other = of_image(2).to_coco(7, [0, 17, 18])
    assert entry == {
        "image_id": 7,
        "category_id": 17,
        "segmentation": utils.rle_to_json(of_image().masks[0]),
        "score": 0.25,
        "class_score": 0.5,
        "mask_iou": 0.5,
        "bbox": [0, 0, 3, 2],
    }
    assert (other["category_id"], other["bbox"]) == (18, [1, 1, 3, 2])
    assert json.loads(json.dumps(other)) == other
    assert of_image(1, has_head=False).to_coco(7, [0, 17, 18])[0]["mask_iou"] is None
    assert of_image(0).to_coco(7, [0]) == []

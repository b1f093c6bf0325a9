"""Pictures: the mask's pixels are tinted and others are not, boxes and captions are where they belong."""

import itertools

import numpy as np
import pytest

import utils
import visualize


def test_random_colors_are_stable_and_differ():
    colors = visualize.random_colors(20)
    assert visualize.random_colors(5) == colors[:5]
    assert len(set(colors)) == 20
    assert all(0 <= channel <= 1 for color in colors for channel in color)
    assert max(max(color) for color in visualize.random_colors(20, bright=False)) <= 0.7
    assert visualize.random_colors(0) == []
    neighbours = [np.abs(np.subtract(a, b)).max() for a, b in itertools.pairwise(colors)]
    assert min(neighbours) > 0.2


def test_apply_mask_tints_in_place():
    image = np.full((4, 5, 3), 100, np.uint8)
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    assert visualize.apply_mask(image, mask, (1, 0, 0), alpha=0.5) is image
    assert image[1, 2].tolist() == [177, 50, 50]
    assert (image[~mask] == 100).all()


def scene():
    image = np.full((120, 160, 3), 128, np.uint8)
    boxes = np.array([[40, 50, 100, 120], [60, 20, 110, 90]], np.float32)
    masks = np.zeros((120, 160, 2), bool)
    masks[50:90, 60:110, 0] = True
    masks[70:100, 30:80, 1] = True
    return image, boxes, masks


def test_draw_instances_tints_masks_and_nothing_else():
    image, boxes, masks = scene()
    before = image.copy()
    drawn = visualize.draw_instances(image, boxes, masks, colors=[(1, 0, 0), (0, 0, 1)])
    assert (image == before).all(), "the image is not drawn upon"
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert drawn[75, 100].tolist() == [191, 64, 64], "first mask, half way to its colour"
    assert drawn[95, 35].tolist() == [64, 64, 191], "second mask"
    assert drawn[80, 70, 0] > drawn[80, 70, 2], "the first lies on top"
    assert drawn[50, 80].tolist() == [255, 0, 0], "the outline has the full colour"
    assert drawn[40, 80].tolist() == [255, 0, 0], "upper side of the box"
    assert drawn[99, 80].tolist() == [255, 0, 0], "lower side lies inside y2"
    assert drawn[45, 55].tolist() == [128, 128, 128], "in the box, outside the mask"
    outside = np.ones((120, 160), bool)
    outside[39:111, 19:121] = False
    assert (drawn[outside] == 128).all(), "without captions nothing is drawn outside the boxes"


def test_run_length_codes_draw_the_same():
    image, boxes, masks = scene()
    rles = utils.mask_to_rle(masks)
    assert (visualize.draw_instances(image, boxes, rles) == visualize.draw_instances(image, boxes, masks)).all()


def test_captions_stand_above_their_boxes():
    image, boxes, _ = scene()
    plain = visualize.draw_instances(image, boxes, None)
    named = visualize.draw_instances(image, boxes, None, ["cat 0.91", "dog 0.55"])
    rows, columns = np.nonzero((plain != named).any(axis=2))
    first = rows < 45
    assert rows.min() >= 22
    assert rows[first].max() <= 41, "above the first box"
    assert columns[first].min() >= 49, "from its left side on"
    at_top = visualize.draw_instances(image, np.array([[0, 0, 30, 30]]), None, ["cat"])
    assert (at_top[:12, :10] != image[:12, :10]).any(), "inside, where there is no room above"


def test_nothing_to_draw():
    image, _, _ = scene()
    assert (visualize.draw_instances(image, np.zeros((0, 4)), np.zeros((120, 160, 0), bool)) == image).all()
    assert (visualize.draw_instances(image, np.zeros((0, 4)), []) == image).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_small_images(shape):
    image = np.zeros((*shape, 3), np.uint8)
    boxes = np.array([[0, 0, shape[0], shape[1]], [-3, -3, shape[0] + 3, shape[1] + 3]], np.float32)
    drawn = visualize.draw_instances(image, boxes, np.ones((*shape, 2), bool), ["a", "b"])
    assert drawn.shape == image.shape
    assert drawn.max() > 0


def test_wrong_numbers():
    image, boxes, masks = scene()
    with pytest.raises(ValueError, match="captions must have one entry a box, 2, not 1"):
        visualize.draw_instances(image, boxes, masks, ["one"])
    with pytest.raises(ValueError, match=r"masks must be \[H, W, N\] = \[120, 160, 2\]"):
        visualize.draw_instances(image, boxes, masks[:-1])


def test_captions_say_all_scores():
    result = {
        "class_ids": np.array([1, 2]),
        "scores": np.array([0.912, 0.5]),
        "mask_ious": np.array([0.5, 0.9]),
        "mask_scores": np.array([0.456, 0.45]),
    }
    names = ["BG", "cat", "dog"]
    assert visualize.captions_of(result, names) == ["cat 0.91 IoU 0.50 mask 0.46", "dog 0.50 IoU 0.90 mask 0.45"]
    assert visualize.captions_of({**result, "mask_ious": None}, names) == ["cat 0.91", "dog 0.50"]

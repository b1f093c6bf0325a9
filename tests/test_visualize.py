"""Pictures: the mask's pixels are tinted and others are not, boxes and captions are where they belong.

tests/golden/visualize_*.png are the composed figures, shrunk to a quarter: PYTHONPATH=. python tests/test_visualize.py
writes them.
"""

import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import torch
from PIL import Image
from torch import nn

import utils
import visualize
from captions import LABELS, Caption
from config import Config

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["BG", "cat", "dog", "bird"]
RED, BLUE = (1, 0, 0), (0, 0, 1)

############################################################
#  Colours
############################################################


def test_random_colors_are_stable_and_differ():
    colors = visualize.random_colors(300)
    assert visualize.random_colors(5) == colors[:5]
    assert len(set(colors)) == 300
    assert all(0 <= channel <= 1 for color in colors for channel in color)
    assert max(max(color) for color in visualize.random_colors(300, bright=False)) <= 0.7
    assert visualize.random_colors(0) == []
    first, lighter, darker = np.array(colors[:30]).reshape(3, 10, 3)
    assert (lighter >= first).all()
    assert (darker <= first).all()
    neighbours = [np.abs(np.subtract(a, b)).max() for a, b in itertools.pairwise(colors)]
    assert min(neighbours) > 0.2


# What remains of linear RGB for eyes without one kind of cone: Machado, Oliveira, Fernandes 2009, severity 1.
EYES = {
    "normal": np.eye(3),
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def seen(colors, eyes):
    """CIELAB of colours as the eyes see them: [N, 3]."""
    colors = np.array(colors)
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.transpose(EYES[eyes])).clip(0, 1)
    return skimage.color.rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("eyes", EYES)
def test_ten_colors_can_be_told_apart(eyes):
    lab = seen(visualize.random_colors(10), eyes)
    distances = np.linalg.norm(lab[:, None] - lab, axis=2)
    assert distances[np.triu_indices(10, 1)].min() > 25, "about 2.3 is a just noticeable difference"
    more = seen(visualize.random_colors(100), eyes)
    assert np.linalg.norm(np.diff(more, axis=0), axis=1).min() > 17, "neighbours, also where the ten come again"


def luminance(color):
    color = np.array(color)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_captions_are_legible_on_their_patches():
    for color in visualize.random_colors(60) + visualize.random_colors(60, bright=False):
        dark, bright = sorted([float(luminance(color)), float(luminance(visualize._ink(color)))])
        assert (bright + 0.05) / (dark + 0.05) > 4.5, "WCAG 2, level AA"


def test_color_of_a_class_is_the_same_in_every_picture():
    few = visualize._colors_of(2, np.array([3, 1]), None, "class")
    many = visualize._colors_of(5, np.array([1, 2, 3, 3, 0]), None, "class")
    assert few == [many[2], many[0]]
    assert many[2] == many[3]
    assert len(set(many[:3])) == 3
    assert visualize._colors_of(2, np.array([1, 1]), None, "instance") == visualize.random_colors(2)
    assert visualize._colors_of(1, np.array([1]), [RED], "class") == [RED]
    with pytest.raises(ValueError, match="color_by must be 'instance' or 'class', not 'score'"):
        visualize._colors_of(1, np.array([1]), None, "score")


############################################################
#  Images as arrays
############################################################


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


def test_masks_of_any_kind_draw_the_same():
    image, boxes, masks = scene()
    masks[5, 150, 0] = True  # far outside of its box: to be seen all the same
    expected = visualize.draw_instances(image, boxes, masks)
    assert (expected[5, 150] != 128).any()
    rles = utils.mask_to_rle(masks)
    crops = [utils.rle_to_crop(rle) for rle in rles]
    planes = np.ascontiguousarray(masks.transpose(2, 0, 1)).transpose(1, 2, 0)  # as detect() gives them
    for same in (rles, crops, planes, masks.astype(np.uint8), torch.from_numpy(masks), [rles[0], crops[1]]):
        assert (visualize.draw_instances(image, boxes, same) == expected).all()


def test_captions_stand_above_their_boxes():
    image, boxes, _ = scene()
    plain = visualize.draw_instances(image, boxes, None)
    assert (visualize.draw_instances(image, boxes, None, show_bbox=False) == image).all()
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
    with pytest.raises(ValueError, match="captions must have one entry for each box, 2, not 1"):
        visualize.draw_instances(image, boxes, masks, ["one"])
    with pytest.raises(ValueError, match="colors must have one entry for each box, 2, not 1"):
        visualize.draw_instances(image, boxes, masks, colors=[RED])
    with pytest.raises(ValueError, match=r"boxes must be \[N, \(y1, x1, y2, x2\)\], got \[4\]"):
        visualize.draw_instances(image, boxes[0], None)
    with pytest.raises(ValueError, match="boxes has coordinates that are not finite"):
        visualize.draw_instances(image, boxes * np.nan, None)
    with pytest.raises(ValueError, match="channels come last"):
        visualize.draw_instances(image.transpose(2, 0, 1), boxes, None)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((119, 160, 2), bool), r"masks must be \[H, W, N\] = \[120, 160, 2\], not \[119, 160, 2\]"),
        (np.ones((2, 120, 160), bool), r"are they \[N, H, W\]\?"),
        ([utils.mask_to_rle(np.ones((120, 160), bool))], "masks must have one entry for each box, 2, not 1"),
        (
            [utils.mask_to_rle(np.ones((160, 120), bool))] * 2,
            r"masks\[0\] is of \[160, 120\], the image of \[120, 160\]",
        ),
        (
            [(0, 0, np.ones((5, 5))), (116, 0, np.ones((5, 5)))],
            r"masks\[1\], \[5, 5\] at \(116, 0\), does not lie in",
        ),
        ([(0, 156, np.ones((5, 5)))] * 2, r"masks\[0\], \[5, 5\] at \(0, 156\), does not lie in"),
        ([(-1, 0, np.ones((5, 5)))] * 2, "does not lie in"),
        ([(0, -1, np.ones((5, 5)))] * 2, "does not lie in"),
        ([(0, 0, np.ones(5))] * 2, "does not lie in"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    image, boxes, _ = scene()
    with pytest.raises(ValueError, match=message):
        visualize.draw_instances(image, boxes, masks)


def test_draw_box():
    image = np.zeros((12, 12, 3), np.uint8)
    assert visualize.draw_box(image, (2, 3, 9, 10), [10, 20, 30]) is image
    assert image[2, 3].tolist() == [10, 20, 30]
    frame = np.zeros((12, 12), bool)
    frame[2:9, 3:10] = True
    frame[4:7, 5:8] = False
    assert ((image == [10, 20, 30]).all(axis=2) == frame).all()
    assert (image[~frame] == 0).all()


@pytest.mark.parametrize("box", [(-5, -5, 3, 3), (5, 5, 5, 9), (30, 30, 40, 40), (4, 4, 5, 5)])
def test_draw_box_stays_in_the_box_and_the_image(box):
    image = visualize.draw_box(np.zeros((12, 12, 3), np.uint8), box, [255, 255, 255])
    expected = np.zeros((12, 12), bool)
    y1, x1, y2, x2 = np.clip(box, 0, 12)
    expected[y1:y2, x1:x2] = True
    assert not image.any(axis=2)[~expected].any()
    assert image.any() == expected.any()


def test_apply_mask_explains_itself():
    image = np.zeros((4, 5, 3), np.uint8)
    for wrong in (np.ones((5, 4), bool), np.ones((4, 5, 1), bool)):
        with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\] and mask \[H, W\]"):
            visualize.apply_mask(image, wrong, RED)
    with pytest.raises(ValueError, match="got float64"):
        visualize.apply_mask(image / 255, np.ones((4, 5), bool), RED)
    assert visualize.apply_mask(image, np.eye(4, 5, dtype=np.uint8), RED, 1)[1, 1].tolist() == [255, 0, 0]
    part = np.zeros((8, 9, 3), np.uint8)
    visualize.apply_mask(part[2:6, 3:8], np.ones((4, 5), bool), RED)
    assert part.any(axis=2).sum() == 20, "a part of an image is drawn upon, too"


############################################################
#  Captions
############################################################


def test_captions_say_all_scores():
    result = {
        "class_ids": np.array([1, 2]),
        "scores": np.array([0.912, 0.5]),
        "mask_ious": np.array([0.5, 0.9]),
        "mask_scores": np.array([0.456, 0.45]),
    }
    captions = visualize.captions_of(result, NAMES)
    assert captions == ["cat 0.91 · IoU 0.50 · mask 0.46", "dog 0.50 · IoU 0.90 · mask 0.45"]
    assert [caption.short for caption in captions] == ["0.46", "0.45"], "the mask score"
    beyond = visualize.captions_of({**result, "mask_ious": np.array([1.09, -0.2])}, NAMES)
    assert beyond == ["cat 0.91 · IoU 1.00 · mask 0.46", "dog 0.50 · IoU 0.00 · mask 0.45"], "an IoU is in [0, 1]"
    unscored = visualize.captions_of({**result, "mask_ious": None}, NAMES)
    assert [caption.short for caption in unscored] == ["0.91", "0.50"], "which then is the class score"
    assert visualize.captions_of({**result, "mask_ious": None}, NAMES) == ["cat 0.91", "dog 0.50"]
    plain = {name: result[name] for name in ("class_ids", "scores")}  # Matterport's
    assert visualize.captions_of(plain, NAMES) == ["cat 0.91", "dog 0.50"]
    with pytest.raises(ValueError, match=r"class_ids lie in 1\.\.2, but class_names has 2 names"):
        visualize.captions_of(result, NAMES[:2])
    with pytest.raises(ValueError, match=r"class_ids lie in -1\.\.2"):
        visualize.captions_of({**result, "class_ids": np.array([-1, 2])}, NAMES)


def test_labels_choose_which_captions_are_drawn():
    """In an array and in a figure: masks and boxes stay, whatever becomes of the captions."""
    image, boxes, masks = scene()
    crowded = np.concatenate([boxes, boxes + 1, boxes + 2])
    stack = np.concatenate([masks] * 3, axis=-1)
    captions = [Caption(f"a rather long name {i} · mask 0.{i}7", f"0.{i}7") for i in range(6)]
    drawn = {labels: visualize.draw_instances(image, crowded, stack, captions, labels=labels) for labels in LABELS}
    assert (drawn["none"] == visualize.draw_instances(image, crowded, stack)).all()
    changed = {labels: (drawn[labels] != drawn["none"]).any(axis=2).sum() for labels in ("auto", "all")}
    assert 0 < changed["auto"] < changed["all"]
    with pytest.raises(ValueError, match="labels must be one of auto, all, none, not 'some'"):
        visualize.draw_instances(image, crowded, stack, captions, labels="some")
    named = {
        labels: visualize.display_instances(
            image, crowded, stack, [1] * 6, NAMES, captions=captions, labels=labels, figsize=2
        )
        for labels in LABELS
    }
    assert texts(named["none"]) == []
    assert sorted(texts(named["all"])) == sorted(captions)
    allowed = {*captions, *(caption.short for caption in captions)}
    assert 0 < len(texts(named["auto"])) <= 6
    assert allowed.issuperset(texts(named["auto"]))
    assert len({len(figure.axes[0].lines) for figure in named.values()}) == 1, "outlines and boxes"


def test_lines_are_thin_around_small_objects():
    image = photo(height=600, width=800)
    small, large = [10, 10, 22, 22], [100, 100, 500, 700]
    figure = visualize.display_instances(image, np.array([small, large]), None, [1, 1], NAMES, figsize=8)
    widths = [line.get_linewidth() for line in reversed(figure.axes[0].lines)]
    assert widths == [pytest.approx(12 * 0.72 / 15), 2]
    black = np.zeros((2000, 2000, 3), np.uint8)
    framed = visualize.draw_instances(black, np.array([small, large]), None, colors=[RED, RED])
    assert framed[16, 10:22, 0].tolist() == [255] + [0] * 10 + [255], "one pixel"
    assert framed[300, 100:105, 0].tolist() == [255] * 4 + [0], "four"


############################################################
#  Figures
############################################################


def opened(path):
    """Kind and pixels of a file."""
    with Image.open(path) as image:
        return image.format, np.array(image.convert("RGB"))


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def photo(seed=0, height=120, width=160):
    """Smooth colours, nothing like those of palettes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([60 + x // 4, 90 + y // 3, 150 - x // 4], axis=-1).astype(np.uint8)


def shapes():
    """Three instances on a photo: image, boxes, masks, class_ids."""
    y, x = np.mgrid[:120, :160]
    disc = (y - 45) ** 2 + (x - 45) ** 2 < 30**2
    ring = ((y - 75) ** 2 + (x - 110) ** 2 < 35**2) & ((y - 75) ** 2 + (x - 110) ** 2 > 18**2)
    bar = (y > 95) & (y < 112) & (x > 10) & (x < 90)
    masks = np.stack([disc, ring, bar], axis=-1)
    return photo(), utils.extract_bboxes(masks).astype(np.float32), masks, np.array([1, 2, 1], np.int32)


def found(**changes):
    image, boxes, masks, class_ids = shapes()
    result = {
        "rois": boxes,
        "class_ids": class_ids,
        "scores": np.array([0.95, 0.9, 0.5], np.float32),
        "mask_ious": np.array([0.5, 0.9, 0.8], np.float32),
        "mask_scores": np.array([0.475, 0.81, 0.4], np.float32),
        "masks": masks,
    }
    return image, {**result, **changes}


def nothing():
    """As detect() returns it where nothing was found."""
    _, result = found()
    return {name: values[..., :0] if name == "masks" else values[:0] for name, values in result.items()}


def targets():
    """A mask target [28, 28] of each shape."""
    _, boxes, masks, _ = shapes()
    return utils.minimize_mask(boxes.astype(int), masks, (28, 28)).transpose(2, 0, 1)


def levels():
    """Anchors of two levels, three a cell: strides 40 and 80, about 24 and 48 pixels."""
    shape = [(3, 4), (2, 2)]
    anchors = utils_anchors(shape[0], 40, 24), utils_anchors(shape[1], 80, 48)
    return list(anchors)


def utils_anchors(shape, stride, side):
    sides = np.array([[side * 2, side / 2], [side, side], [side / 2, side * 2]]) / 2
    centres = np.stack(np.mgrid[: shape[0], : shape[1]], axis=-1).reshape(-1, 1, 2) * stride
    return np.concatenate([centres - sides, centres + sides], axis=2).reshape(-1, 4)


NONE = (np.zeros((0, 4)), np.zeros((120, 160, 0), bool), np.zeros(0, int))
LOSSES = np.linspace(2, 1, 6).reshape(3, 2)
# Every function that makes a figure, called with three instances and with none.
CURVE = (np.arange(1.0, 4.0), np.array([1.0, 0.5, 0.4]))
FIGURES = {
    "display_images": lambda **to: visualize.display_images([photo(), photo()[:60]], ["one", "two"], **to),
    "display_images, none": lambda **to: visualize.display_images([], **to),
    "display_top_masks": lambda **to: visualize.display_top_masks(photo(), shapes()[2], shapes()[3], NAMES, **to),
    "display_top_masks, none": lambda **to: visualize.display_top_masks(photo(), NONE[1], NONE[2], NAMES, **to),
    "display_instances": lambda **to: visualize.display_instances(*shapes(), NAMES, **to),
    "display_instances, none": lambda **to: visualize.display_instances(photo(), *NONE, NAMES, **to),
    "display_result": lambda **to: visualize.display_result(*found(), NAMES, **to),
    "display_result, none": lambda **to: visualize.display_result(photo(), nothing(), NAMES, **to),
    "display_differences": lambda **to: differences(**to),
    "display_differences, none": lambda **to: visualize.display_differences(
        photo(), NONE[0], NONE[2], NONE[1], NONE[0], NONE[2], NONE[2], NONE[1], NAMES, **to
    ),
    "draw_boxes": lambda **to: visualize.draw_boxes(photo(), shapes()[1], shapes()[1] + 5, shapes()[2], **to),
    "draw_boxes, none": lambda **to: visualize.draw_boxes(photo(), NONE[0], NONE[0], NONE[1], [], [], **to),
    "display_refinement": lambda **to: visualize.display_refinement(photo(), shapes()[1], shapes()[1] + 5, **to),
    "display_refinement, none": lambda **to: visualize.display_refinement(photo(), NONE[0], NONE[0], **to),
    "draw_rois": lambda **to: visualize.draw_rois(
        photo(), shapes()[1], shapes()[1] + 5, targets(), shapes()[3], NAMES, **to
    ),
    "draw_rois, none": lambda **to: visualize.draw_rois(
        photo(), NONE[0], NONE[0], np.zeros((0, 28, 28)), NONE[2], NAMES, **to
    ),
    "display_boxes": lambda **to: visualize.display_boxes(photo(), {"a": BOXES_OF_TWO, "b": BOXES_OF_TWO[:1]}, **to),
    "display_boxes, none": lambda **to: visualize.display_boxes(photo(), {"none": NONE[0]}, **to),
    "plot_histograms": lambda **to: visualize.plot_histograms({"w": np.arange(9.0), "b": [1.0, 2]}, **to),
    "plot_histograms, none": lambda **to: visualize.plot_histograms({"none": []}, **to),
    "display_anchors": lambda **to: visualize.display_anchors(photo(), levels(), **to),
    "display_anchors, none": lambda **to: visualize.display_anchors(photo(), [NONE[0]], **to),
    "display_activations": lambda **to: visualize.display_activations(np.arange(24.0).reshape(2, 3, 4), **to),
    "display_activations, none": lambda **to: visualize.display_activations(np.zeros((0, 3, 4)), **to),
    "display_mask_scoring": lambda **to: visualize.display_mask_scoring(*found(), NAMES, [0.4, 0.9, 0.7], **to),
    "display_mask_scoring, none": lambda **to: visualize.display_mask_scoring(photo(), nothing(), NAMES, [], **to),
    "plot_calibration": lambda **to: visualize.plot_calibration([0.5, 0.9], [0.4, 0.8], [0.9, 0.8], **to),
    "plot_calibration, none": lambda **to: visualize.plot_calibration([], [], [], **to),
    "plot_precision_recall": lambda **to: visualize.plot_precision_recall(0.5, [1, 1, 0], [0, 0.5, 1], **to),
    "plot_precision_recall, none": lambda **to: visualize.plot_precision_recall(0, [], [], **to),
    "plot_overlaps": lambda **to: visualize.plot_overlaps([1, 2], [1], [0.9], [[0.8, 0.1]], NAMES, **to),
    "plot_overlaps, none": lambda **to: visualize.plot_overlaps([], [], [], np.zeros((0, 0)), NAMES, **to),
    "plot_loss": lambda **to: visualize.plot_loss(LOSSES, LOSSES, save=False, **to),
    "plot_training": lambda **to: visualize.plot_training(
        {"loss": CURVE, "a_loss": CURVE}, {"loss": CURVE}, CURVE, **to
    ),
    "plot_training, none": lambda **to: visualize.plot_training({}, {}, **to),
    "plot_loss, none": lambda **to: visualize.plot_loss(LOSSES[:0], LOSSES[:0], save=False, **to),
}


BOXES_OF_TWO = np.array([[10.0, 20, 50, 60], [30, 80, 110, 150]])


def differences(**options):
    image, boxes, masks, class_ids = shapes()
    found = np.roll(masks, 6, axis=1)[..., [2, 0]]
    arguments = (boxes, class_ids, masks, boxes[[2, 0]] + [0, 6, 0, 6], class_ids[[2, 0]], [0.6, 0.95], found)
    return visualize.display_differences(image, *arguments, NAMES, **options)


def test_every_function_is_in_the_list():
    drawers = {name for name in vars(visualize) if name.startswith(("display_", "plot_", "draw_"))}
    tables_and_arrays = {"display_table", "display_weight_stats", "draw_box", "draw_instances", "plot_agreement"}
    assert drawers - tables_and_arrays == {name.removesuffix(", none") for name in FIGURES}
    assert len(FIGURES) == 2 * len(drawers - tables_and_arrays)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_need_no_display_and_save_themselves(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    monkeypatch.setattr(visualize, "_DPI", 40)  # for speed
    figure = FIGURES[name](save_path=tmp_path / "picture.png")
    drawn = visualize.figure_to_image(figure)
    saved = opened(tmp_path / "picture.png")[1]
    assert saved.shape == drawn.shape
    moved = np.abs(saved.astype(int) - drawn).mean()  # drawn again, axes with labels may move a little
    assert moved < 6 if name.startswith("plot") else moved == 0
    assert drawn.dtype == np.uint8
    assert drawn.shape == (round(figure.bbox.height), round(figure.bbox.width), 3)
    assert drawn.max() > 100
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", [name for name in FIGURES if not name.endswith("none")])
def test_windows_open_only_if_asked(name, monkeypatch):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    FIGURES[name]()
    assert shown == []
    assert plt.get_fignums() == []
    figure = FIGURES[name](show=True)
    assert shown == [[figure.number]], "the figure is one of pyplot's then"
    plt.close(figure)


def test_notebooks_show_figures_and_tables():
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed here")
    figure = FIGURES["plot_overlaps"]()
    shown = formatters.PNGFormatter()(figure)
    assert (opened(io.BytesIO(shown))[1] == visualize.figure_to_image(figure)).all()
    assert formatters.HTMLFormatter()(visualize.display_table([["a"]])) == "<table><tr><td>a</td></tr></table>"


def test_what_a_notebook_asks_for():
    figure = FIGURES["display_activations"]()
    assert (opened(io.BytesIO(figure._repr_png_()))[1] == visualize.figure_to_image(figure)).all()


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG"), ("", "PNG")])
def test_the_suffix_is_the_kind(suffix, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(visualize, "_DPI", 40)
    path = tmp_path / (f"picture.{suffix}" if suffix else "picture")
    FIGURES["display_instances"](save_path=str(path))
    assert opened(path)[0] == kind


def test_vectors_are_saved_too(tmp_path):
    FIGURES["plot_precision_recall"](save_path=tmp_path / "picture.svg")
    assert b"<svg" in (tmp_path / "picture.svg").read_bytes()


def test_a_kind_that_is_none_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        FIGURES["display_instances"](save_path=tmp_path / "picture.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_figures_are_of_the_size_that_was_asked_for(monkeypatch):
    """In whole pixels, in a file with as many as a dense screen has; the same bytes each time."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    figure = visualize.new_figure(2.004, 1, layout="constrained")
    figure.subplots().plot([1, 2])
    assert visualize.figure_to_image(figure).shape == (100, 200, 3)
    _, large = opened(io.BytesIO(visualize.figure_to_png(figure, scale=2)))
    assert large.shape[:2] == (200, 400)
    assert visualize.figure_to_png(figure) == visualize.figure_to_png(figure)
    for_a_page = visualize.new_figure(36 / 96, 32 / 96, dpi=96)
    assert visualize.figure_to_image(for_a_page).shape == (32, 36, 3)
    assert (visualize.figure_to_image(for_a_page) == 255).all()
    assert b"Software" not in visualize.figure_to_png(for_a_page), "a new release of matplotlib changes no bytes"


def four_times(function, *arguments, **options):
    """The picture of an image of 160 x 120 at four pixels a pixel: uint8 [480, 640, 3]."""
    figure = function(*arguments, figsize=(6.4, 4.8), **options)
    drawn = visualize.figure_to_image(figure)
    assert drawn.shape == (480, 640, 3), "the image's aspect, and no margin"
    return drawn


def show_at_four(function, *arguments, **options):
    """A pixel in the middle of each of the image's: uint8 [120, 160, 3]."""
    return four_times(function, *arguments, **options)[2::4, 2::4]


PLAIN = {"show_bbox": False, "captions": ["", "", ""], "colors": [RED, BLUE, RED]}


def test_display_instances_tints_masks_and_nothing_else():
    image, boxes, masks, class_ids = shapes()
    before = image.copy()
    drawn = show_at_four(visualize.display_instances, image, boxes, masks, class_ids, NAMES, **PLAIN)
    assert (image == before).all(), "the image is not drawn upon"
    inside = masks.any(axis=2)
    inner = inside & ~near_edges(masks)
    outer = ~inside & ~near_edges(masks)
    red = (image * 0.5 + np.array([127.5, 0, 0])).astype(int)
    blue = (image * 0.5 + np.array([0, 0, 127.5])).astype(int)
    assert np.abs(drawn[outer].astype(int) - image[outer]).max() <= 1, "to the very edge"
    assert np.abs(drawn[inner & masks[..., 0]] - red[inner & masks[..., 0]]).max() <= 1
    assert np.abs(drawn[inner & masks[..., 1]] - blue[inner & masks[..., 1]]).max() <= 1


def near_edges(masks):
    """Pixels within two of a mask's edge."""
    edges = np.zeros(masks.shape[:2], bool)
    for mask in masks.transpose(2, 0, 1):
        shifted = [np.roll(mask, step, (0, 1)) for step in itertools.product(range(-2, 3), repeat=2)]
        edges |= np.any(shifted, axis=0) & ~np.all(shifted, axis=0)
    return edges


def test_the_first_instance_lies_on_top():
    image, boxes, _, class_ids = shapes()
    masks = np.zeros((120, 160, 3), bool)
    masks[20:100, 20:100] = True
    drawn = four_times(visualize.display_instances, image, boxes, masks, class_ids, NAMES, **PLAIN)
    assert drawn[240, 240, 0] > drawn[240, 240, 2] + 50
    assert drawn[79:81, 240, 0].max() > 210, "the outline, too"
    assert drawn[79:81, 240, 2].min() < 60


def test_without_masks_there_is_no_outline():
    """Matterport's issue 1292."""
    image, boxes, masks, class_ids = shapes()
    arguments = (visualize.display_instances, image, boxes, masks, class_ids, NAMES)
    drawn = show_at_four(*arguments, **{**PLAIN, "show_mask": False})
    assert np.abs(drawn.astype(int) - image).max() <= 1
    figure = visualize.display_instances(image, boxes, masks, class_ids, NAMES, show_mask=False)
    assert len(figure.axes[0].lines) == 3, "the boxes"
    assert len(visualize.display_instances(image, boxes, None, class_ids, NAMES).axes[0].lines) == 3


def test_boxes_lie_at_their_pixels():
    image, boxes, masks, class_ids = shapes()
    options = {**PLAIN, "show_bbox": True, "show_mask": False}
    drawn = four_times(visualize.display_instances, image, boxes, masks, class_ids, NAMES, **options).astype(int)
    changed = np.abs(drawn - image.repeat(4, 0).repeat(4, 1)).max(axis=2) > 40
    near = np.zeros((480, 640), bool)
    for y1, x1, y2, x2 in 4 * boxes.astype(int):
        sides = np.zeros_like(near)
        sides[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = True
        sides[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] = False
        near |= sides
    assert 0.4 < changed[near].mean() < 0.9, "dashed"
    assert not (changed & ~near).any()


def test_display_instances_says_all_scores():
    image, result = found()
    expected = ["cat 0.95 · IoU 0.50 · mask 0.47", "dog 0.90 · IoU 0.90 · mask 0.81", "cat 0.50 · IoU 0.80 · mask 0.40"]
    assert sorted(texts(visualize.display_result(image, result, NAMES))) == sorted(expected)
    unscored = {**result, "mask_ious": None}
    assert sorted(texts(visualize.display_result(image, unscored, NAMES))) == ["cat 0.50", "cat 0.95", "dog 0.90"]
    instances = (result["rois"], result["masks"], result["class_ids"])
    assert sorted(texts(visualize.display_instances(image, *instances, NAMES))) == ["cat", "cat", "dog"]
    own = visualize.display_instances(image, *instances, NAMES, result["scores"], captions=["one", None, 3])
    assert sorted(texts(own)) == ["3", "one"]
    assert visualize.display_result(image, result, NAMES, title="A title").axes[0].get_title() == "A title"


def test_captions_in_figures_stay_in_the_image_and_apart():
    image, result = found()
    figure = visualize.display_result(image, result, NAMES, figsize=8)
    visualize.figure_to_image(figure)
    ax = figure.axes[0]
    places = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    assert len(places) == 3
    for place in places:
        assert ax.bbox.x0 - 1 <= place.x0 < place.x1 <= ax.bbox.x1 + 1
        assert ax.bbox.y0 - 1 <= place.y0 < place.y1 <= ax.bbox.y1 + 1
    for one, other in itertools.combinations(places, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 1 or height < 1
    assert ax.texts[0].zorder > ax.texts[1].zorder > ax.texts[2].zorder > 5, "the first on top, all above the lines"
    colors = visualize.random_colors(3)
    for text, color in zip(ax.texts, colors, strict=True):
        assert text.get_bbox_patch().get_facecolor()[:3] == pytest.approx(color)
        assert text.get_color() == visualize._ink(color)
    first = ax.texts[0].get_position()
    y1, x1 = result["rois"][0, :2]
    assert first[0] == pytest.approx(x1, abs=3)
    assert first[1] < y1, "above its box"


def test_nothing_is_drawn_outside_of_the_image():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=100)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.25, 0.25, 0.5, 0.5))
    image, boxes, masks, class_ids = shapes()
    boxes[0] = (-40, -40, 60, 400)
    arguments = (image, boxes, masks, class_ids, NAMES)
    assert (
        visualize.display_instances(*arguments, captions=["A caption that is far too long " * 3] * 3, ax=ax) is figure
    )
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 160), (120, 0)), "the box has not moved the limits"
    drawn = visualize.figure_to_image(figure)
    outside = np.ones((400, 400), bool)
    outside[124:276, 99:301] = False  # 200 x 150 in the middle
    assert (drawn[outside] == 255).all()
    assert (drawn[~outside] < 255).any()


def test_titles_take_room_above_the_image():
    plain = visualize.figure_to_image(visualize.display_instances(*shapes(), NAMES, figsize=(4, 9)))
    assert plain.shape == (300, 400, 3)
    flat = visualize.display_instances(*shapes(), NAMES, figsize=(9, 3))
    assert visualize.figure_to_image(flat).shape == plain.shape, "as large as fits into width and height"
    titled = visualize.figure_to_image(visualize.display_instances(*shapes(), NAMES, title="One line", figsize=(4, 9)))
    long = visualize.display_instances(*shapes(), NAMES, title="A long title that needs more than one line", figsize=4)
    assert titled.shape[1] == 400
    assert 320 < titled.shape[0] < 345
    assert np.abs(titled[-300:].astype(int) - plain).mean() < 1
    assert (titled[: titled.shape[0] - 301] == 255).all(axis=2).mean() > 0.8
    assert (titled[:3] == 255).all(), "the title is not cut off"
    assert "\n" in long.axes[0].get_title()
    assert (visualize.figure_to_image(long)[:3] == 255).all()


def test_padding_is_left_out():
    image, boxes, masks, class_ids = shapes()
    boxes[1] = 0
    figure = visualize.display_instances(image, boxes, masks, class_ids, NAMES)
    assert texts(figure) == ["cat", "cat"]
    drawn = show_at_four(visualize.display_instances, image, boxes, masks, class_ids, NAMES, **PLAIN)
    others = masks[..., [0, 2]]
    left_out = masks[..., 1] & ~others.any(axis=2) & ~near_edges(others)
    assert np.abs(drawn[left_out].astype(int) - image[left_out]).max() <= 1
    figure = visualize.draw_boxes(image, boxes, captions=["a", "b", "c"])
    assert texts(figure) == ["a", "c"]


def test_colors_by_class():
    options = {"captions": [""] * 3, "show_bbox": False, "color_by": "class"}
    drawn = show_at_four(visualize.display_instances, *shapes(), NAMES, **options).astype(int)
    image = photo()
    tint = [drawn[y, x] - image[y, x] // 2 for y, x in ((45, 45), (103, 50), (75, 83))]
    assert np.abs(tint[0] - tint[1]).max() <= 1, "both cats"
    assert np.abs(tint[0] - tint[2]).max() > 30
    assert tint[0] == pytest.approx(np.array(visualize.random_colors(1)[0]) * 127.5, abs=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_ids": [1]}, "class_ids must have one entry for each box, 3, not 1"),
        ({"class_ids": [1, 2, 4]}, r"class_ids lie in 1\.\.4, but class_names has 4 names"),
        ({"scores": [1, 2]}, "scores must have one entry for each box, 3, not 2"),
        ({"scores": [[1], [2], [3]]}, r"scores must be \[N\], got \[3, 1\]"),
        ({"mask_ious": [0.5, np.nan, 0.5]}, "mask_ious has values that are not finite"),
        ({"mask_scores": [1]}, "mask_scores must have one entry for each box"),
        ({"colors": [RED]}, "colors must have one entry for each box"),
        ({"captions": ["a"]}, "captions must have one entry for each box"),
        (
            {"masks": np.ones((3, 120, 160))},
            r"masks must be \[H, W, N\] = \[120, 160, 3\], not \[3, 120, 160\]; are they",
        ),
        ({"color_by": "score"}, "color_by must be"),
        ({"image": "photo.jpg"}, "image"),
        ({"boxes": [[1, 2, 3]]}, r"boxes must be \[N, \(y1, x1, y2, x2\)\], got \[1, 3\]"),
    ],
)
def test_display_instances_explains_what_is_wrong(changes, message):
    arguments = dict(zip(("image", "boxes", "masks", "class_ids"), shapes(), strict=True))
    with pytest.raises(ValueError, match=message):
        visualize.display_instances(**{**arguments, "class_names": NAMES, **changes})


def test_tensors_are_arrays():
    image, boxes, masks, class_ids = (torch.from_numpy(part) for part in shapes())
    boxes = boxes.bfloat16().requires_grad_()
    figure = visualize.display_instances(image, boxes, masks, class_ids, NAMES, torch.tensor([0.5, 0.25, 1]).bfloat16())
    assert texts(figure) == ["cat 0.50", "dog 0.25", "cat 1.00"]


############################################################
#  Grids of images
############################################################


def test_display_images_in_a_grid():
    gray = np.zeros((120, 160))
    gray[:60] = 0.5
    images = [photo(), gray, photo() / 255, photo() * 1.0, photo()[..., :1], np.eye(120, 160, dtype=bool)]
    figure = visualize.display_images(images, list("abcdef"), cols=4)
    assert [ax.get_title() for ax in figure.axes] == list("abcdef")
    places = [ax.get_position() for ax in figure.axes]
    assert places[0].y0 == pytest.approx(places[3].y0)
    assert places[4].y1 < places[0].y0, "the fifth is in the second row"
    assert places[0].x0 == 0
    assert places[3].x1 == pytest.approx(1), "no margin"
    drawn = visualize.figure_to_image(figure)
    parts = []
    for ax in figure.axes:
        place = ax.get_window_extent()
        top, left = round(drawn.shape[0] - place.y1) + 3, round(place.x0) + 3
        parts.append(drawn[top:, left:][:250, :330].astype(int))
    assert np.abs(parts[2] - parts[0]).mean() < 1, "0..1 or 0..255"
    assert np.abs(parts[3] - parts[0]).mean() < 1, "floats of 0..255 or bytes"
    assert parts[1][20, 20].tolist() == [255] * 3, "gray from the least to the greatest"
    assert parts[1][-20, 20].tolist() == [0] * 3
    colored = visualize.figure_to_image(visualize.display_images([gray], cols=1, cmap="Reds_r"))
    one, four = (visualize.figure_to_image(visualize.display_images([gray] * count)) for count in (1, 4))
    assert four.shape[1] == 1400
    assert one.shape[0] == four.shape[0], "fewer images are not larger"
    assert one.shape[1] == 344
    assert colored.shape == (1050, 1400, 3), "one image has its own aspect"
    assert colored[-20, 20, 0] > colored[-20, 20, 1] + 50
    assert visualize.display_images([photo()] * 3, cols=2).axes[2].get_position().x0 == 0


@pytest.mark.parametrize("image", [np.zeros((3, 10, 10)), np.zeros(10), np.zeros((0, 10)), np.zeros((2, 3, 4, 5))])
def test_display_images_explains_what_is_wrong(image):
    with pytest.raises(ValueError, match=r"images\[1\] must be \[H, W\] or \[H, W, 1, 3 or 4\]"):
        visualize.display_images([photo(), image])
    with pytest.raises(ValueError, match="titles must have one entry for each image, 1, not 2"):
        visualize.display_images([photo()], ["a", "b"])


def test_crowds_are_named():
    """Data sets have them as negative class ids, COCO among them. Results have none."""
    image, boxes, masks, _ = shapes()
    ids = np.array([-1, 2, 1])
    figure = visualize.display_top_masks(image, masks, ids, NAMES)
    assert sorted(ax.get_title() for ax in figure.axes[1:]) == ["cat (crowd): 1", "cat: 1", "dog: 1"]
    figure = visualize.display_instances(image, boxes, masks, ids, NAMES, color_by="class")
    assert texts(figure) == ["cat (crowd)", "dog", "cat"]
    options = {"captions": [""] * 3, "show_bbox": False, "color_by": "class"}
    drawn = show_at_four(visualize.display_instances, image, boxes, masks, ids, NAMES, **options)
    same = show_at_four(visualize.display_instances, image, boxes, masks, np.abs(ids), NAMES, **options)
    assert (drawn == same).all(), "in the colour of their class"
    with pytest.raises(ValueError, match=r"class_ids lie in 1\.\.9, but class_names has 4 names"):
        visualize.display_instances(image, boxes, masks, np.array([-1, 2, -9]), NAMES)
    with pytest.raises(ValueError, match=r"class_ids lie in -1\.\.2"):
        visualize.captions_of({"class_ids": ids, "scores": np.ones(3)}, NAMES)


def test_display_top_masks_sorts_by_area():
    image, _, masks, class_ids = shapes()
    figure = visualize.display_top_masks(image, masks, class_ids, NAMES)
    areas = [masks[..., class_ids == class_id].sum() for class_id in (1, 2)]
    assert areas[0] > areas[1]
    assert [ax.get_title() for ax in figure.axes] == ["120 x 160", "cat: 2", "dog: 1"]
    cats = figure.axes[1].images[0].get_array()
    assert cats[45, 45].tolist() == [round(255 * channel) for channel in visualize.random_colors(2)[0]]
    assert cats[103, 50].tolist() == pytest.approx([255 * channel for channel in visualize.random_colors(2)[1]], abs=1)
    assert not cats[~masks[..., [0, 2]].any(axis=2)].any()
    assert len(visualize.display_top_masks(image, masks, class_ids, NAMES, limit=1).axes) == 2
    with pytest.raises(ValueError, match=r"class_ids lie in 1\.\.2"):
        visualize.display_top_masks(image, masks, class_ids, NAMES[:2])


def test_display_activations():
    features = torch.zeros(40, 3, 4, dtype=torch.bfloat16)
    features[1, 2, 3] = 1.5
    figure = visualize.display_activations(features.requires_grad_())
    assert len(figure.axes) == 32
    assert figure.texts[0].get_text() == "32 of 40 channels, 3 x 4"
    assert [ax.get_title() for ax in figure.axes[:2]] == ["0:  0 to 0", "1:  0 to 1.5"]
    shown = figure.axes[1].images[0]
    assert shown.get_array()[2, 3] == 1.5
    assert shown.get_clim() == (0, 1.5)
    few = visualize.display_activations(features, channels=[39, 1], title="Two", limit=1)
    assert [ax.get_title() for ax in few.axes] == ["39:  0 to 0", "1:  0 to 1.5"]
    assert few.texts[0].get_text() == "Two"
    with pytest.raises(ValueError, match=r"take one image: features\[0\]"):
        visualize.display_activations(features[None])
    with pytest.raises(ValueError, match=r"features must be \[C, H, W\], got \[3, 4\]"):
        visualize.display_activations(features[0])
    with pytest.raises(ValueError, match=r"channels must lie in 0\.\.39, got 1, 40"):
        visualize.display_activations(features, [1, 40])


############################################################
#  Ground truth and predictions
############################################################


def test_display_differences_says_what_was_found_and_missed():
    figure = differences()
    masks = shapes()[2]
    (cat, bar) = (
        utils.compute_overlaps_masks(masks[..., [i]], np.roll(masks[..., [i]], 6, axis=1))[0, 0] for i in (0, 2)
    )
    assert texts(figure) == [f"cat 0.95 / {cat:.2f}", f"cat 0.60 / {bar:.2f}", "missed dog"]
    patches = [text.get_bbox_patch().get_facecolor()[:3] for text in figure.axes[0].texts]
    assert patches == [pytest.approx(color) for color in (visualize.PREDICTION, visualize.PREDICTION, visualize.TRUTH)]
    assert "score / IoU" in figure.axes[0].get_title()
    strict = differences(iou_threshold=0.99, title="Strict")
    assert texts(strict)[2:] == ["missed cat", "missed dog", "missed cat"]
    assert texts(strict)[0] == f"cat 0.95 / {cat:.2f}", "the best IoU, where nothing matches"
    assert strict.axes[0].get_title() == "Strict"
    assert texts(differences(score_threshold=0.7))[2:] == ["missed dog", "missed cat"]
    assert len(differences(show_box=False, show_mask=False).axes[0].lines) == 0


def test_the_two_colors_of_differences_can_be_told_apart():
    for eyes in EYES:
        truth, found = seen([visualize.TRUTH, visualize.PREDICTION], eyes)
        assert np.linalg.norm(truth - found) > 60


def test_display_differences_with_crowds_and_without_objects():
    image, boxes, masks, class_ids = shapes()
    figure = visualize.display_differences(image, boxes, [1, -2, 1], masks, *NONE[:1], NONE[2], NONE[2], NONE[1], NAMES)
    assert texts(figure) == ["missed cat", "missed dog", "missed cat"]
    rles = utils.mask_to_rle(masks)
    nothing_there = (NONE[0], NONE[2], NONE[1])
    figure = visualize.display_differences(image, *nothing_there, boxes, class_ids, [0.9, 0.8, 0.7], rles, NAMES)
    assert texts(figure) == ["cat 0.90 / 0.00", "dog 0.80 / 0.00", "cat 0.70 / 0.00"]


############################################################
#  Boxes on their way
############################################################


def styles(figure):
    """(style, alpha, color) of each line."""
    return [(line.get_linestyle(), line.get_alpha(), line.get_color()) for line in figure.axes[0].lines]


def test_draw_boxes_shows_how_visible_each_is():
    boxes = shapes()[1]
    gray, color = visualize.LIGHT_GRAY, visualize.random_colors(3)
    figure = visualize.draw_boxes(photo(), boxes, visibilities=[0, 1, 2], captions=["a", None, "c"], title="Title")
    assert styles(figure) == [("-", 1, color[2]), (":", 1, color[1]), (":", 0.8, gray)]
    assert texts(figure) == ["a", "c"]
    assert figure.axes[0].get_title() == "Title"
    assert [style for style, _, _ in styles(visualize.draw_boxes(photo(), boxes))] == [":"] * 3
    assert [style for style, _, _ in styles(visualize.draw_boxes(photo(), refined_boxes=boxes))] == ["-"] * 3
    one = visualize.draw_boxes(photo(), boxes[:1], boxes[:1] + 5, colors=[RED])
    assert [line.get_xydata().tolist() for line in one.axes[0].lines[2:]] == corners_joined(boxes[0], boxes[0] + 5)
    drawn = show_at_four(visualize.draw_boxes, photo(), boxes, masks=shapes()[2], colors=[RED] * 3).astype(int)
    assert drawn[45, 45, 0] > photo()[45, 45, 0] + 60, "the mask"
    assert np.abs(drawn[5, 140] - photo()[5, 140]).max() <= 1


def corners_joined(before, after):
    return [[[before[x], before[y]], [after[x], after[y]]] for y, x in ((0, 1), (2, 3), (0, 3), (2, 1))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "draw_boxes needs boxes or refined_boxes"),
        (
            {"boxes": np.zeros((2, 4)), "refined_boxes": np.zeros((3, 4))},
            "boxes must have one entry for each box, 3, not 2",
        ),
        ({"boxes": np.zeros((2, 4)), "visibilities": [1]}, "visibilities must have one entry for each box"),
        ({"boxes": np.zeros((2, 4)), "captions": ["a"]}, "captions must have one entry for each box"),
        ({"boxes": np.zeros((2, 4)), "colors": [RED]}, "colors must have one entry for each box"),
        ({"boxes": np.zeros((2, 4)), "visibilities": [1, 3]}, "visibilities must be 0, 1 or 2, got 1, 3"),
        ({"boxes": np.zeros((2, 4)), "masks": np.zeros((120, 160, 1))}, "masks must be"),
    ],
)
def test_draw_boxes_explains_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        visualize.draw_boxes(photo(), **options)


def test_display_refinement():
    boxes = shapes()[1][:2]
    figure = visualize.display_refinement(photo(), boxes, boxes + 5, ["a", ""])
    lines = figure.axes[0].lines[6:]  # those of the first box lie on top
    assert [line.get_linestyle() for line in lines] == ["--", "-", "-", "-", "-", "-"]
    y1, x1, y2, x2 = boxes[0].tolist()
    assert lines[0].get_xydata().tolist() == [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    assert lines[1].get_xydata()[0].tolist() == [x1 + 5, y1 + 5]
    assert [line.get_xydata().tolist() for line in lines[2:]] == corners_joined(boxes[0], boxes[0] + 5)
    assert {line.get_color() for line in lines} == {visualize.random_colors(1)[0]}
    assert texts(figure) == ["a"]
    assert "dashed: before" in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="refined_boxes must have one entry for each box, 2, not 1"):
        visualize.display_refinement(photo(), boxes, boxes[:1])
    with pytest.raises(ValueError, match="captions must have one entry for each box"):
        visualize.display_refinement(photo(), boxes, boxes, ["a"])


def test_draw_rois():
    image, boxes, masks, _ = shapes()
    class_ids = np.array([1, 0, 2])
    figure = visualize.draw_rois(image, boxes, boxes + 3, targets(), class_ids, NAMES)
    assert texts(figure) == ["cat", "dog"]
    assert figure.axes[0].get_title() == "3 of 3 RoIs. Of all, 2 are of objects, 67 %. Gray: background"
    lines = styles(figure)
    assert [style for style, _, _ in lines] == ["--", *["-"] * 5, "--", "--", *["-"] * 5]
    assert lines[6][2] == visualize.LIGHT_GRAY
    shown = np.asarray(figure.axes[0].images[0].get_array()).astype(int)
    changed = (shown != image).any(axis=2)
    assert changed[45, 45]
    assert changed[103, 50]
    assert changed[masks[..., 1]].mean() < 0.02, "background has no mask"
    assert (changed != masks[..., [0, 2]].any(axis=2)).mean() < 0.02, "as exact as 28 x 28 cells are"
    positive = visualize.draw_rois(image, boxes, boxes + 3, targets()[[0, 2]], class_ids, NAMES)
    assert (np.asarray(positive.axes[0].images[0].get_array()) == shown).all(), "masks of positive RoIs alone"
    bare = visualize.draw_rois(image, boxes, boxes + 3, None, class_ids, NAMES)
    assert (np.asarray(bare.axes[0].images[0].get_array()) == image).all()


def test_draw_rois_draws_no_more_than_the_limit():
    boxes = np.tile(shapes()[1], (20, 1))
    arguments = (photo(), boxes, boxes, None, np.zeros(60, int), NAMES)
    figure = visualize.draw_rois(*arguments)
    assert len(figure.axes[0].lines) == 10
    assert figure.axes[0].get_title().startswith("10 of 60 RoIs")
    assert len(visualize.draw_rois(*arguments, limit=2).axes[0].lines) == 2
    with pytest.raises(ValueError, match=r"mask must be \[R, M, M\] with R = 60, or 0"):
        visualize.draw_rois(photo(), boxes, boxes, targets(), np.zeros(60, int), NAMES)
    with pytest.raises(ValueError, match="refined_rois must have one entry for each RoI, 60, not 59"):
        visualize.draw_rois(photo(), boxes, boxes[1:], None, np.zeros(60, int), NAMES)


def test_display_boxes():
    many = np.tile(BOXES_OF_TWO, (600, 1)) + np.arange(1200)[:, None] / 100
    sets = {"before": torch.from_numpy(many), "after": BOXES_OF_TWO, "none": np.zeros((0, 4))}
    figure = visualize.display_boxes(photo(), sets, cols=2, limit=30)
    assert [ax.get_title() for ax in figure.axes] == ["before: 1,200, 30 shown", "after: 2", "none: 0"]
    assert [len(ax.lines) for ax in figure.axes] == [30, 2, 0]
    assert {tuple(line.get_xydata()[0]) for line in figure.axes[1].lines} == {(20, 10), (80, 30)}
    drawn = sorted(line.get_ydata().min() for line in figure.axes[0].lines)
    np.testing.assert_allclose(drawn, sorted(many[:30, 0]), rtol=1e-6)  # the first ones
    assert len({line.get_color() for line in figure.axes[1].lines}) == 2
    for ax in figure.axes:
        assert (ax.get_xlim(), ax.get_ylim()) == ((0, 160), (120, 0))
    first, second, third = (ax.get_position() for ax in figure.axes)
    assert first.x1 < second.x0
    assert third.y1 < first.y0
    exactly = visualize.display_boxes(photo(), {"two": BOXES_OF_TWO}, limit=2)
    assert exactly.axes[0].get_title() == "two: 2"
    with pytest.raises(ValueError, match=r"boxes\['a'\] must be \[N, \(y1, x1, y2, x2\)\]"):
        visualize.display_boxes(photo(), {"a": np.zeros((2, 3))})


def test_plot_histograms():
    values = {"layer": torch.tensor([[0.0, 1.0], [1.0, 4.0]]), "one value": np.full(7, 3.0), "none": [], "d": [1, 2]}
    values["e"] = np.array([1, 1 + 2e-7], np.float32)
    figure = visualize.plot_histograms(values, bins=4, cols=2, title="T")
    axes = figure.axes
    assert len(axes) == 6
    assert axes[0].get_title() == "layer\nmean 1.5, std 1.5"
    assert [patch.get_height() for patch in axes[0].patches] == [1, 2, 0, 1]
    assert (axes[0].patches[0].get_x(), axes[0].patches[-1].get_x()) == (0, 3)
    assert sum(patch.get_height() for patch in axes[1].patches) == 7
    assert [ax.axison for ax in axes] == [True, True, False, True, True, False]
    assert axes[2].get_title() == "none"
    assert sum(patch.get_height() for patch in axes[4].patches) == 2
    with pytest.raises(ValueError, match=r"values\['w'\] has values that are not finite"):
        visualize.plot_histograms({"w": [np.nan]})


def test_dark_colors_follow_the_palette(monkeypatch):
    palette = visualize.random_colors(10)
    assert visualize._dark_colors() == [palette[i] for i in (6, 8, 2, 5)]
    monkeypatch.setattr(visualize, "_PALETTE", ("ffffff", "000080", "ffff00", "400000", "000070"))
    darkest = [tuple(byte / 255 for byte in bytes.fromhex(code)) for code in ("000080", "400000", "000070")]
    assert visualize._dark_colors(3) == darkest


def test_display_anchors():
    figure = visualize.display_anchors(photo(), [torch.from_numpy(level) for level in levels()])
    assert [ax.get_title() for ax in figure.axes] == [
        "P2: 36 anchors of about 24 pixels",
        "P3: 12 anchors of about 48 pixels",
    ]
    first, second = figure.axes
    dots = first.collections[0].get_offsets()
    assert dots.tolist() == [[x, y] for y in (0, 40, 80) for x in (0, 40, 80, 120)]
    boxes = [
        [line.get_ydata().min(), line.get_xdata().min(), line.get_ydata().max(), line.get_xdata().max()]
        for line in first.lines
    ]
    assert boxes == [[40 - 24, 80 - 6, 40 + 24, 80 + 6], [28, 68, 52, 92], [40 - 6, 80 - 24, 40 + 6, 80 + 24]]
    assert len({line.get_color() for line in first.lines}) == 3
    assert len(second.collections[0].get_offsets()) == 4
    corner = visualize.display_anchors(photo(), levels()[0], cell=(1, 1), names=["only"], title="T")
    assert corner.axes[0].get_title().startswith("only: 36")
    assert corner.axes[0].lines[1].get_xydata()[0].tolist() == [120 - 12, 80 - 12]
    assert corner.axes[0].get_xlim() == (0, 160)
    assert corner.axes[0].get_ylim() == (120, 0), "what reaches out of the image is cut off"
    with pytest.raises(ValueError, match=r"anchors\[0\] has 36, not 5 a cell"):
        visualize.display_anchors(photo(), levels(), anchors_per_cell=5)
    with pytest.raises(ValueError, match="names must have one entry for each level, 2, not 1"):
        visualize.display_anchors(photo(), levels(), names=["P2"])


############################################################
#  Mask scoring
############################################################


def test_display_mask_scoring_shows_who_moved():
    figure = visualize.display_mask_scoring(*found(), NAMES, true_ious=[0.4, 0.9, 0.7])
    assert texts(figure) == [
        "1. cat\nclass score 0.95",
        "2. dog\nclass score 0.90",
        "3. cat\nclass score 0.50",
        "1. dog \N{BLACK UP-POINTING TRIANGLE}1\nmask score 0.81\nIoU 0.90, true 0.90",
        "2. cat \N{BLACK DOWN-POINTING TRIANGLE}1\nmask score 0.47\nIoU 0.50, true 0.40",
        "3. cat\nmask score 0.40\nIoU 0.80, true 0.70",
    ]
    title = figure.texts[0].get_text()
    assert "3 of 3 detections" in title
    assert "33 % by class score, 67 % by mask score" in title.replace("\n", " ")
    colors = visualize.random_colors(3)
    frames = [ax.spines["top"].get_edgecolor()[:3] for ax in figure.axes]
    assert frames == [pytest.approx(colors[i]) for i in (0, 1, 2, 1, 0, 2)]
    lines = [artist for artist in figure.artists if hasattr(artist, "get_xdata")]
    assert [line.get_color() for line in lines] == colors
    places = [ax.get_position() for ax in figure.axes]
    for line, above, below in zip(lines, (0, 1, 2), (4, 3, 5), strict=True):
        middles = [(places[i].x0 + places[i].x1) / 2 for i in (above, below)]
        assert list(line.get_xdata()) == pytest.approx(middles)
        assert list(line.get_ydata()) == pytest.approx([places[above].y0, places[below].y1])
    assert [line.get_linewidth() for line in lines] == [3, 3, 1.5], "thick are those that moved"
    y1, x1, y2, x2 = shapes()[1][0]
    left, right = figure.axes[0].get_xlim()
    assert left < x1 < x2 < right
    assert (left + right) / 2 == pytest.approx((x1 + x2) / 2)
    assert right - left == pytest.approx(1.2 * (y2 - y1))


def test_display_mask_scoring_of_some_and_without_the_truth():
    figure = visualize.display_mask_scoring(*found(), NAMES, limit=2, title="Mine")
    assert texts(figure)[2:] == [
        "1. dog \N{BLACK UP-POINTING TRIANGLE}1\nmask score 0.81\nIoU 0.90",
        "2. cat \N{BLACK DOWN-POINTING TRIANGLE}1\nmask score 0.47\nIoU 0.50",
    ]
    assert figure.texts[0].get_text() == "Mine"
    image, result = found(mask_ious=np.full(3, 1.09), mask_scores=np.array([0.95, 0.9, 0.6]))
    still = visualize.display_mask_scoring(image, {**result, "masks": utils.mask_to_rle(result["masks"])}, NAMES)
    assert texts(still)[3] == "1. cat\nmask score 0.95\nIoU 1.00"
    assert {artist.get_linewidth() for artist in still.artists} == {1.5}
    with pytest.raises(ValueError, match="result has no mask_ious: the model has no MaskIoU head"):
        visualize.display_mask_scoring(*found(mask_ious=None), NAMES)
    with pytest.raises(ValueError, match="true_ious must have one entry for each box, 3, not 2"):
        visualize.display_mask_scoring(*found(), NAMES, [0.5, 0.5])


def test_pairs_in_order():
    assert visualize._pairs_in_order(np.array([3, 2, 1]), np.array([0.9, 0.5, 0.1])) == 1
    assert visualize._pairs_in_order(np.array([1, 2, 3]), np.array([0.9, 0.5, 0.1])) == 0
    assert visualize._pairs_in_order(np.array([1, 3, 2]), np.array([0.9, 0.5, 0.1])) == pytest.approx(1 / 3)
    assert visualize._pairs_in_order(np.array([1, 1]), np.array([0.9, 0.5])) == 0, "a tie is no order"
    assert visualize._pairs_in_order(np.array([1, 2]), np.array([0.5, 0.5])) is None


def test_plot_calibration():
    predicted, truth = np.array([0.05, 0.15, 0.12, 0.95, 1.0]), np.array([0.1, 0.2, 0.4, 0.8, 0.9])
    figure = visualize.plot_calibration(predicted, truth, class_scores=truth[::-1], title="Mine")
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("predicted IoU", "class score")
    assert left.get_ylabel() == "true IoU of the mask"
    assert left.collections[0].get_offsets().tolist() == np.stack([predicted, truth], axis=1).tolist()
    exact, mean = left.lines
    assert left.get_xlim() == left.get_ylim() == (0, 1)
    assert exact.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert mean.get_xydata() == pytest.approx(np.array([[0.05, 0.1], [0.135, 0.3], [0.975, 0.85]]))
    assert left.get_title() == f"correlation {np.corrcoef(predicted, truth)[0, 1]:.2f}, mean error 0.13, N = 5"
    assert figure.get_suptitle() == "Mine"
    assert len(visualize.plot_calibration(predicted, truth).axes) == 1
    halves = visualize.plot_calibration(predicted, truth, bins=2).axes[0].lines[1].get_xydata()
    edge = visualize.plot_calibration([0.19, 0.21], [0.0, 1.0]).axes[0].lines[1].get_xydata()
    assert edge == pytest.approx(np.array([[0.19, 0], [0.21, 1]])), "ten bins end at tenths"
    assert halves == pytest.approx(np.array([[0.32 / 3, 0.7 / 3], [0.975, 0.85]]))


def test_plot_calibration_of_many_and_of_no_variation():
    rng = np.random.default_rng(0)
    figure = visualize.plot_calibration(rng.uniform(-0.1, 1.2, 3000), rng.random(3000))
    counts = figure.axes[0].collections[0].get_array()
    assert counts.size == 40 * 40
    assert counts.sum() == 3000, "also those beyond 0 and 1, which raw predictions reach"
    assert counts.min() == 1, "empty cells stay white"
    visualize.figure_to_image(figure)
    same = visualize.plot_calibration([0.5, 0.5], [0.4, 0.6])
    assert same.axes[0].get_title() == "no correlation, mean error 0.10, N = 2"
    with pytest.raises(ValueError, match="mask_ious must have one entry for each box, 2, not 1"):
        visualize.plot_calibration([0.5], [0.4, 0.6])
    with pytest.raises(ValueError, match="true_ious has values that are not finite"):
        visualize.plot_calibration([0.5], [np.nan])


############################################################
#  Curves, matrices, tables
############################################################


def test_plot_precision_recall():
    figure = visualize.plot_precision_recall(0.75, np.array([1, 1, 0.5, 0]), torch.tensor([0, 0.5, 0.5, 1]))
    ax = figure.axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[0, 1], [0.5, 1], [0.5, 0.5], [1, 0]]
    assert "AP 0.750" in ax.get_title()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("recall", "precision")
    again = visualize.plot_precision_recall(0.5, [1, 0], [0, 1], ax=ax)
    assert again is figure
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="recalls must have one entry"):
        visualize.plot_precision_recall(0.5, [1, 0], [0])


def test_plot_overlaps():
    overlaps = np.array([[0.8, 0.0], [0.3, 0.5]])
    figure = visualize.plot_overlaps([1, -2], [1, 3], [0.9, 0.75], overlaps, NAMES, threshold=0.5)
    ax = figure.axes[0]
    assert texts(figure) == ["0.80", "0.30", "0.50\nclass?"]
    assert [text.get_weight() for text in ax.texts] == ["bold", "normal", "bold"]
    assert [text.get_position() for text in ax.texts] == [(0, 0), (0, 1), (1, 1)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat (0.90)", "bird (0.75)"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
    assert ax.images[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match=r"overlaps must be \[predictions, objects\] = \[1, 2\], got \[2, 1\]"):
        visualize.plot_overlaps([1, 2], [1], [0.9], [[0.1], [0.2]], NAMES)


@pytest.mark.parametrize("columns", [1, 6, 8])
def test_plot_loss_writes_a_picture_of_each(columns, tmp_path):
    loss = np.linspace(2, 1, 3 * columns).reshape(3, columns)
    figure = visualize.plot_loss(loss.tolist(), loss * 2, log_dir=tmp_path, save_path=tmp_path / "all.png")
    names = ["loss", "rpn_class_loss", "rpn_bbox_loss", "mrcnn_class_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss"]
    names = [*names, "mrcnn_maskiou_loss", "loss_7"][:columns]
    assert names[1:7] == list(Config.LOSS_WEIGHTS)[: columns - 1], "a new loss is named in one place"
    assert {path.name for path in tmp_path.iterdir()} == {"all.png", *(f"{name}.png" for name in names)}
    assert opened(tmp_path / "loss.png")[1].shape == (480, 640, 3)
    total, each = figure.axes
    assert [line.get_label() for line in total.lines] == ["training", "validation"]
    assert total.lines[0].get_xydata().tolist() == [[epoch + 1, loss[epoch, 0]] for epoch in range(3)]
    assert total.lines[1].get_ydata().tolist() == (2 * loss[:, 0]).tolist()
    assert [line.get_label() for line in each.lines[::2]] == names[1:]
    assert [line.get_linestyle() for line in each.lines] == ["-", "--"] * (columns - 1), "dashed: validation"
    for i, (train, val) in enumerate(zip(each.lines[::2], each.lines[1::2], strict=True), 1):
        assert train.get_ydata().tolist() == loss[:, i].tolist()
        assert val.get_ydata().tolist() == (2 * loss[:, i]).tolist()
        assert train.get_color() == val.get_color()
    assert total.get_ylim()[0] == 0


def test_plot_loss_explains_itself(tmp_path):
    with pytest.raises(ValueError, match="log_dir must be the folder to write into; or save=False only draws"):
        visualize.plot_loss(LOSSES, LOSSES)
    with pytest.raises(ValueError, match=r"must be \[epochs, losses\], got \[3, 2\] and \[3, 1\]"):
        visualize.plot_loss(LOSSES, LOSSES[:, :1], save=False)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        visualize.plot_loss(LOSSES, LOSSES, log_dir=tmp_path / "missing")
    total = visualize.plot_loss([1, np.nan, 0.5], [1, 1, 1], save=False)
    assert total.axes[0].get_title().startswith("total loss")
    assert total.axes[0].get_ylim()[0] == 0
    assert total.axes[0].lines[0].get_xydata().tolist() == [[1, 1], [3, 0.5]], "what is not finite is left out"


def test_plot_training_has_axes_for_what_is_given():
    curve = (np.array([1.0, 2.0]), np.array([0.5, 0.25]))
    figure = visualize.plot_training({"loss": curve}, {}, ap={"masks": curve, "boxes": (curve[0], np.array([-1, 0.3]))})
    assert len(figure.axes) == 3
    assert [line.get_xydata().tolist() for line in figure.axes[2].lines] == [[[1, 50], [2, 25]], [[2, 30]]]
    assert len({line.get_color() for line in figure.axes[2].lines}) == 2
    assert len(visualize.plot_training({"loss": curve}, {}, learning_rate=curve).axes) == 3
    assert len(visualize.plot_training({"loss": curve}, {}, curve, {"masks": curve}).axes) == 4


def test_display_table(tmp_path, capsys):
    rows = [["name", "value"], ["a<b", 1.5], ["only"]]
    table = visualize.display_table(iter(rows), save_path=tmp_path / "table.txt")
    assert capsys.readouterr().out == ""
    assert str(table) == "name  value\na<b   1.5\nonly"
    assert (tmp_path / "table.txt").read_text() == f"{table}\n"
    html = table._repr_html_()
    assert html == (
        "<table><tr><td>name</td><td>value</td></tr><tr><td>a&lt;b</td><td>1.5</td></tr><tr><td>only</td></tr></table>"
    )
    visualize.display_table(rows, tmp_path / "table.html", show=True)
    assert (tmp_path / "table.html").read_text() == html
    assert capsys.readouterr().out == f"{table}\n"
    assert str(visualize.display_table([])) == ""


def test_display_weight_stats():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -3]).reshape(2, 1, 1, 1))
        model[0].bias.fill_(7)
        model[1].running_var.fill_(5000)
        model[1].weight[0] = -2000
        model[2].weight[0, 0] = torch.nan
        model[3].weight.fill_(0.25)
        model[3].bias.fill_(1)
    rows = {name: rest for name, *rest in visualize.display_weight_stats(model.bfloat16()).rows}
    assert list(rows)[:3] == ["weight", "0.weight", "0.bias"]
    assert rows["weight"] == ["shape", "min", "max", "std", ""]
    assert rows["0.weight"] == ["[2, 1, 1, 1]", "  -3.0000", "  +1.0000", "  +2.0000", ""]
    assert rows["0.bias"][-1] == ""
    assert rows["1.weight"][-1] == "overflow?"
    assert rows["1.running_mean"][-1] == "dead?"
    assert rows["1.running_var"][-1] == "dead?", "a variance may be large"
    assert rows["2.weight"][-1] == "not finite"
    assert rows["3.weight"][-1] == "dead?"
    assert rows["4.weight"][-1] == "", "one value alone is not dead"
    assert "1.num_batches_tracked" not in rows


############################################################
#  Golden pictures
############################################################

COMPOSED = {
    "display_instances": lambda: visualize.display_result(*found(), NAMES, title="Three instances", figsize=8),
    "display_mask_scoring": lambda: visualize.display_mask_scoring(*found(), NAMES, [0.4, 0.9, 0.7]),
    "draw_rois": lambda: visualize.draw_rois(
        photo(), shapes()[1] + 4, shapes()[1], targets()[[0, 2]], np.array([1, 0, 2]), NAMES
    ),
    "display_differences": lambda: differences(),
}


def shrunk(image):
    return Image.fromarray(image).reduce(4)


@pytest.mark.parametrize("name", COMPOSED)
def test_golden_pictures(name):
    _, golden = opened(GOLDEN / f"visualize_{name}.png")
    actual = np.array(shrunk(visualize.figure_to_image(COMPOSED[name]())))
    assert actual.shape == golden.shape
    difference = np.abs(actual.astype(int) - golden).mean(axis=2)
    assert difference.mean() < 1.5, "fonts may differ, colours and places not"
    coarse = np.asarray(Image.fromarray(difference.astype(np.float32)).reduce(8))
    assert coarse.max() < 40


if __name__ == "__main__":
    for name, draw in COMPOSED.items():
        shrunk(visualize.figure_to_image(draw())).save(GOLDEN / f"visualize_{name}.png", optimize=True)

"""stages.py: what it finds between an image and its detections, in every dialect; and assets/make_pictures.py."""

import numpy as np
import pytest
import torch
from helpers import random_image, tiny_model, tiny_weights
from PIL import Image

import demo
import stages
import utils
import visualize
from assets import make_pictures
from config import DIALECTS
from data.dataset import Instances
from samples import shapes

HEIGHT, WIDTH = 44, 60


def model_of(dialect, bias=None, **settings):
    """A tiny model, whose second stage moves all boxes in the same way where there is a bias."""
    model = tiny_model(DIALECT=dialect, **settings)
    if bias is not None:
        with torch.no_grad():
            model.box_head.box_deltas.weight.zero_()
            model.box_head.box_deltas.bias.copy_(torch.tensor(bias).repeat(model.config.NUM_CLASSES))
    return model


############################################################
#  Looking inside
############################################################


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_result_is_detects(dialect):
    model, image = model_of(dialect), random_image(HEIGHT, WIDTH)
    inside = stages.look_inside(model, image)
    (result,) = model.detect([image], masks="rle")
    assert result["rois"].tolist() == inside.result["rois"].tolist()
    assert result["masks"] == inside.result["masks"]
    assert len(inside.origins) == len(inside.mask_probs) == len(result["rois"]) > 5
    assert inside.mask_probs.shape[1:] == (28, 28)
    assert (inside.masks == utils.rle_to_mask(result["masks"])).all()
    for probs, rle, (y1, x1, y2, x2) in zip(inside.mask_probs, result["masks"], result["rois"], strict=True):
        area = (y2 - y1) * (x2 - x1)
        if area > 150:
            assert utils.rle_area(rle) / area == pytest.approx((probs >= 0.5).mean(), abs=0.2), "its own mask"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_detections_come_from(dialect):
    """Without deltas a detection is its proposal; with the same for all, the proposal moved by that."""
    still = stages.look_inside(model_of(dialect, [0.0] * 4), random_image(HEIGHT, WIDTH))
    assert len(still.origins) > 5
    inside_image = still.proposals[still.origins].clip(0, [HEIGHT, WIDTH] * 2)
    np.testing.assert_allclose(
        inside_image, still.result["rois"], atol=1e-3 if dialect in ("mmdet", "torchvision", "detectron2") else 1.01
    )
    moved = stages.look_inside(model_of(dialect, [1.0, 0, 0, 0]), random_image(HEIGHT, WIDTH))
    rois = moved.proposals[moved.origins]
    heights = rois[:, 2] - rois[:, 0]
    expected = rois + 0.1 * heights[:, None] * [1, 0, 1, 0]
    sides = [HEIGHT, WIDTH] * 2  # clipped twice: matterport's proposals may reach into the padding
    np.testing.assert_allclose(moved.result["rois"], expected.clip(0, sides), atol=1.01)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_best_anchors(dialect):
    """An NMS that suppresses nothing leaves them all: refined anchors are the proposals then."""
    model = model_of(dialect, RPN_NMS_THRESHOLD=1.0, POST_NMS_ROIS_INFERENCE=2000, PRE_NMS_LIMIT=6000)
    model.rpn.objectness.weight.data *= 0.01  # large logits are all the same to a sigmoid
    inside = stages.look_inside(model, random_image(HEIGHT, WIDTH))
    best = inside.best_anchors(25)
    assert best.shape == (25,)
    assert (np.diff(inside.objectness[best]) <= 0).all()
    assert inside.objectness[best[-1]] >= np.delete(inside.objectness, best).max()
    boxes = inside.refined_anchors[best], inside.proposals[:30]
    refined, proposals = (part.clip(0, [HEIGHT, WIDTH] * 2) for part in boxes)
    there = np.flatnonzero((refined[:, 2:] - refined[:, :2]).min(axis=1) > 2)  # clipping left something of these
    assert len(there) > 10
    for i in there:
        assert np.abs(proposals[: i + 1] - refined[i]).max(axis=1).min() < 1.01, "best first, and none missing"
    assert len(inside.anchors) == len(inside.objectness) == len(inside.refined_anchors) > 100
    assert sorted(inside.best_anchors(10**6)) == list(range(len(inside.anchors)))


############################################################
#  Looking inside, with the objects
############################################################


def blocks(class_ids=(1, 2, -1)) -> tuple[np.ndarray, Instances]:
    """An image of 44 x 60 with two blocks and a crowd."""
    image, masks = np.full((HEIGHT, WIDTH, 3), 50, np.uint8), np.zeros((HEIGHT, WIDTH, len(class_ids)), bool)
    image[4:20, 6:30] = 200
    for i, (y1, x1, y2, x2) in enumerate(((4, 6, 20, 30), (10, 40, 34, 56), (0, 0, 4, 60))[: len(class_ids)]):
        masks[y1:y2, x1:x2, i] = True
    return image, Instances(np.array(class_ids, np.int32), masks)


@pytest.mark.parametrize("as_codes", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_truth_is_what_training_makes_of_it(dialect, as_codes):
    model, (image, instances) = model_of(dialect), blocks()
    if as_codes:
        instances = instances._replace(masks=utils.mask_to_rle(instances.masks))
    inside = stages.look_inside(model, image, instances)
    truth = inside.truth
    assert truth.class_ids.tolist() == [1, 2], "the crowd is left out"
    assert truth.boxes.tolist() == [[4, 6, 20, 30], [10, 40, 34, 56]]
    assert (truth.masks == blocks()[1].masks[..., :2]).all()
    overlaps = utils.compute_overlaps(inside.anchors.astype(np.float32), truth.boxes)
    assert (overlaps[truth.negative].max(axis=1) < 0.4).all()
    assert (overlaps[truth.positive].max(axis=1) > 0.2).all()
    assert 0 < len(truth.positive) + len(truth.negative) <= model.config.RPN_TRAIN_ANCHORS_PER_IMAGE
    assert truth.target_masks.shape == (len(truth.target_class_ids), 28, 28)
    assert set(truth.target_class_ids.tolist()) == {1, 2}, "at least the objects' own boxes"
    assert truth.target_masks[0].mean() > 0.5
    expected = utils.compute_true_ious(
        truth.class_ids, truth.masks, inside.result["class_ids"], utils.rle_to_mask(inside.result["masks"])
    )
    np.testing.assert_array_equal(inside.true_ious, expected)
    average, *_ = utils.compute_ap(*inside.objects, *inside.detections, iou_threshold=0.05)
    assert 0 <= average <= 1
    assert [len(column) for column in inside.detections[:3]] == [len(expected)] * 3
    alone = stages.look_inside(model, image)
    assert alone.truth is None
    assert alone.result["masks"] == inside.result["masks"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rois_get_the_class_and_the_box_of_their_best_score(dialect):
    model = model_of(dialect)
    inside = stages.look_inside(model, random_image(HEIGHT, WIDTH))
    assert len(inside.proposals) == len(inside.roi_class_ids) == len(inside.refined_rois) > 10
    probs = inside.out["box/class_logits"].softmax(dim=1)
    np.testing.assert_array_equal(inside.roi_class_ids, probs.argmax(dim=1))
    np.testing.assert_array_equal(inside.roi_scores, probs.max(dim=1).values)
    assert (inside.refined_rois >= -1).all(), "clipped to the image"
    assert (inside.refined_rois[:, 2:] <= np.array([HEIGHT, WIDTH]) + 1).all()
    matched = inside.roi_class_ids[inside.origins] == inside.result["class_ids"]
    assert matched.any()
    distances = np.abs(inside.refined_rois[inside.origins] - inside.result["rois"])[matched]
    assert distances.max() < 1e-3


def test_looking_inside_leaves_the_model_as_it_was():
    model, (image, instances) = model_of("mmdet"), blocks()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inside = stages.look_inside(model, image, instances)
    assert not model.training
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    assert not any(value.requires_grad for value in inside.out.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("layers", ["detector", "maskiou"])
def test_looking_inside_after_a_training_of_a_part(layers):
    """Whatever a step of training leaves out."""
    model, (image, instances) = model_of("mmdet"), blocks()
    whole = stages.look_inside(model, image, instances).truth
    model.set_trainable(layers)
    part = stages.look_inside(model, image, instances).truth
    for before, after in zip(whole, part, strict=True):
        np.testing.assert_array_equal(before, after)


def test_looking_inside_without_objects_or_detections():
    model, (image, instances) = model_of("mmdet", DETECTION_MIN_CONFIDENCE=1.0), blocks(class_ids=())
    inside = stages.look_inside(model, image, instances)
    truth = inside.truth
    assert len(truth.positive) == len(truth.target_masks) == len(truth.boxes) == 0
    assert len(truth.negative) > 0
    assert inside.masks.shape == (HEIGHT, WIDTH, 0)
    assert len(inside.origins) == len(inside.mask_probs) == len(inside.true_ious) == 0


############################################################
#  Pictures
############################################################


def test_pictures_of_all_stages(monkeypatch):
    model, image = model_of("mmdet"), random_image(HEIGHT, WIDTH)
    captions, display = [], visualize.display_refinement
    monkeypatch.setattr(visualize, "display_refinement", lambda *a, **k: captions.append(a) or display(*a, **k))
    pictures = stages.draw_stages(model, image, limit=3)
    assert list(pictures) == ["1_anchors", "2_refinement", "3_masks", "4_composition", "5_mask_scoring"]
    for name, picture in pictures.items():
        assert (picture.dtype, picture.ndim) == (np.uint8, 3), name
        assert picture.std() > 20, name
    (_, rois, boxes, names), inside = captions[0], stages.look_inside(model, image)
    assert boxes.tolist() == inside.result["rois"][:3].tolist()
    assert rois.tolist() == inside.proposals[inside.origins[:3]].tolist()
    assert names == [model.class_names[class_id] for class_id in inside.result["class_ids"][:3]]


def test_without_detections_or_without_mask_scoring():
    nothing = model_of("mmdet", DETECTION_MIN_CONFIDENCE=1.0)
    pictures = stages.draw_stages(nothing, random_image(HEIGHT, WIDTH))
    assert list(pictures) == ["1_anchors", "2_refinement", "3_masks", "4_composition"]
    pictures = stages.draw_stages(model_of("mmdet", USE_MASKIOU_HEAD=False), random_image(HEIGHT, WIDTH))
    assert list(pictures) == ["1_anchors", "2_refinement", "3_masks", "4_composition"]


def inside_of(image, probs, boxes, masks) -> stages.Stages:
    boxes = np.array(boxes, np.float32)
    result = {
        "rois": boxes,
        "class_ids": np.ones(len(boxes), int),
        "masks": [utils.mask_to_rle(m[..., None])[0] for m in masks],
    }
    numbers = np.arange(len(boxes))
    values = {"anchors": boxes, "objectness": numbers, "refined_anchors": boxes, "proposals": boxes, "origins": numbers}
    rois = {"roi_class_ids": numbers, "roi_scores": numbers, "refined_rois": boxes}
    return stages.Stages(image, **values, **rois, mask_probs=np.array(probs, np.float32), result=result, out={})


def test_masks_above_and_pasted_below():
    """One mask whose left half is sure: white above on the left, the image tinted below on the left."""
    image, mask, probs = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), bool), np.zeros((28, 28))
    mask[10:30, 20:30], probs[:, :14] = True, 1
    inside = inside_of(image, [probs], [(10, 20, 30, 40)], [mask])
    crop = stages.pasted(image, inside.result, 0)
    assert crop.shape == (20, 20, 3)
    assert (crop[:, 10:] == 100).all()
    assert (crop[:, :10] != 100).any(axis=2).all()
    picture = stages.draw_masks(model_of("mmdet"), inside, 8)
    height, width = picture.shape[:2]
    assert width == pytest.approx(1400, abs=1)
    cell = width // 4
    assert (picture[height // 4, [cell // 4, 3 * cell // 4]] == [[255] * 3, [0] * 3]).all()
    assert (picture[3 * height // 4, 3 * cell // 4] == 100).all()
    assert (picture[3 * height // 4, cell // 4] != 100).any()
    assert (picture[height // 2 + 60 :, cell + 20 :] == 255).all(), "few masks are not drawn huge"


def test_pasted_masks_stand_in_squares():
    """A low box: white above and below it, and the titles in one line."""
    image = np.full((40, 60, 3), 100, np.uint8)
    inside = inside_of(image, [np.zeros((28, 28))], [(10, 20, 20, 60)], [np.zeros((40, 60), bool)])
    picture = stages.draw_masks(model_of("mmdet"), inside, 8)
    column = picture[len(picture) - 344 :, 172]  # the middle of a square of 344 pixels
    assert (column[140:200] == 100).all()
    assert (column[:100] == 255).all()
    assert (column[-100:] == 255).all()


@pytest.mark.parametrize("box", [(-3, -2, 5, 4), (35, 55, 50, 70), (39.9, 59.9, 40, 60), (7.2, 3.9, 7.4, 4.1)])
def test_a_crop_lies_in_the_image_and_is_never_empty(box):
    image = random_image(40, 60)
    crop = stages.pasted(image, inside_of(image, [np.zeros((28, 28))], [box], [np.zeros((40, 60), bool)]).result, 0)
    assert min(crop.shape) >= 1
    y1, x1 = (max(0, int(np.floor(side))) for side in box[:2])
    assert (crop == image[y1 : y1 + crop.shape[0], x1 : x1 + crop.shape[1]]).all()


def test_side_by_side():
    one, other = np.zeros((3, 4, 3), np.uint8), np.full((5, 2, 3), 7, np.uint8)
    row = stages.side_by_side([one, other], gap=6)
    assert row.shape == (5, 12, 3)
    assert (row[2:, :4] == 0).all()
    assert (row[:, 10:] == 7).all()
    assert (row[:, 4:10] == 255).all()
    assert (row[:2, :4] == 255).all(), "aligned below"


############################################################
#  README's pictures
############################################################


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights"))


def test_make_pictures(weights, tmp_path, capsys):
    """Every picture, twice the same, small enough."""
    for folder in ("one", "two"):
        arguments = ["--model", str(weights), "--output", str(tmp_path / folder), "--images", "5", "--threshold", "0"]
        assert make_pictures.main(arguments) == 0
    names = ["1_anchors", "2_refinement", "3_masks", "4_composition", "5_mask_scoring", "calibration", "detections"]
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    pictures = ["nuclei_detections.png", "shapes.jpg", *(f"shapes_{name}.png" for name in names)]
    assert [path.name for path in one] == pictures
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert sum(path.stat().st_size for path in one) < 6e6
    printed = capsys.readouterr().out
    assert "shapes_detections.png: 1048 x 520" in printed
    assert "nuclei_detections.png: 1800 x 726" in printed
    nuclei = np.asarray(Image.open(one[0]))[60:].astype(int)
    assert np.ptp(nuclei[:, :892], axis=2).max() == 0, "the image is gray"
    assert (np.ptp(nuclei[:, 908:], axis=2) > 60).mean() > 0.1, "what is found is in colour"
    sheet = np.asarray(Image.open(one[-1]))
    dataset = shapes.make_dataset(shapes.ShapesConfig(), "test", 4)
    for i in range(4):
        above = sheet[:256, 264 * i : 264 * i + 256]
        assert (above == shapes.enlarged(dataset.load_image(i))).all()
        assert (sheet[264:, 264 * i : 264 * i + 256] != above).any(), "what is found is drawn below"


def test_the_sample_is_of_the_subset_test():
    """And what demo.py looks at is the committed picture of it."""
    sample, (masks, class_ids) = make_pictures.draw_sample()
    assert sample.shape == (512, 512, 3)
    dataset = shapes.ShapesDataset()
    dataset.load_shapes(12, 512, 512, 0, "test")
    assert (sample == dataset.load_image(make_pictures.SAMPLE)).all()
    expected, expected_ids = dataset.load_mask(make_pictures.SAMPLE)
    assert (masks == expected).all()
    assert class_ids.tolist() == expected_ids.tolist()
    stored = np.asarray(Image.open(demo.EXAMPLES["shapes"][0])).astype(int)
    assert np.abs(stored - sample).mean() < 6, "but for JPEG's losses"


def test_pictures_of_another_model_are_refused(tmp_path, capsys):
    tiny_model().save(tmp_path / "other.pth")
    for name, message in (("other.pth", "is not a model of samples/shapes.py"), ("none.pth", "none.pth")):
        assert make_pictures.main(["--model", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("make_pictures.py: ")
        assert message in error
    assert not (tmp_path / "out").exists()


def test_detections_are_drawn_where_they_are():
    """Twice as large: a box at 2 x its place, its mask tinted, and nothing else."""
    image, mask = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), bool)
    mask[12:18, 32:40] = True
    result = inside_of(image, [np.zeros((28, 28))], [(10, 30, 20, 50)], [mask]).result
    result["mask_scores"] = np.array([0.5])
    sheet = make_pictures.draw_detections(tiny_model(), [image, image], [result, result])
    assert sheet.shape == (80 + 8 + 80, 120 + 8 + 120, 3)
    for drawn in (sheet[88:, :120], sheet[88:, 128:]):
        changed = (drawn != 100).any(axis=2)
        assert changed[24:36, 64:80].all(), "the mask"
        assert changed[20, 60:100].all()
        assert changed[20:40, [60, 99]].all(), "the box"
        assert not changed[41:].any()
        assert not changed[:, 101:].any()
        assert changed[:19].any(), "the caption"


def test_true_ious():
    truth = np.zeros((10, 10, 2), bool)
    truth[:4, :4, 0] = truth[6:, 6:, 1] = True
    found = np.zeros((10, 10, 3), bool)
    found[:4, :2, 0] = found[6:, 6:, 1] = found[5, 0, 2] = True
    result, none = {"masks": utils.mask_to_rle(found), "class_ids": np.array([3, 3, 3])}, np.zeros(0, np.int32)
    assert make_pictures.true_ious(result, truth, np.array([3, 3])).tolist() == [0.5, 1, 0]
    assert make_pictures.true_ious(result, truth, np.array([3, 2])).tolist() == [0.5, 0, 0], "of another class"
    assert make_pictures.true_ious({"masks": [], "class_ids": none}, truth, np.array([3, 3])).tolist() == []
    assert make_pictures.true_ious(result, truth[..., :0], none).tolist() == [0, 0, 0]

"""Looks at single images: Matterport's load_image_gt and target functions, and true IoUs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import model as modellib
import utils
from config import Config
from data.dataset import Dataset
from data.formats.coco import CocoDataset, open_coco


class Blocks(Dataset):
    """One image of 40 x 60 with two blocks; the third object is a crowd."""

    BOXES = ((4, 6, 20, 30), (10, 40, 34, 56), (0, 0, 4, 60))

    def __init__(self, class_ids=(1, 2, -1)):
        super().__init__()
        self.of = np.array(class_ids, np.int32)
        self.add_class("blocks", 1, "low")
        self.add_class("blocks", 2, "high")
        self.add_class("other", 1, "foreign")
        self.add_image("blocks", "one", None)
        self.prepare()

    def load_image(self, image_id):
        image = np.full((40, 60, 3), 50, np.uint8)
        image[4:20, 6:30] = 200
        return image

    def load_mask(self, image_id):
        masks = np.zeros((40, 60, len(self.of)), bool)
        for i, (y1, x1, y2, x2) in enumerate(self.BOXES[: len(self.of)]):
            masks[y1:y2, x1:x2, i] = True
        return masks, self.of


class SmallConfig(Config):
    NAME = "small"
    NUM_CLASSES = 4
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 128
    BACKBONE, BACKBONE_WIDTH, TOP_DOWN_PYRAMID_SIZE, RPN_CHANNELS = "resnet18", 0.0625, 8, 8
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    FPN_CLASSIF_FC_LAYERS_SIZE = MASK_HEAD_CHANNELS = MASKIOU_HEAD_CHANNELS = MASKIOU_FC_LAYERS_SIZE = 8
    DETECTION_MIN_CONFIDENCE = 0.0
    DETECTION_MAX_INSTANCES = 6
    TRAIN_ROIS_PER_IMAGE = 40
    POST_NMS_ROIS_INFERENCE = 30


############################################################
#  load_image_gt
############################################################


def test_image_and_objects_are_resized_and_padded_alike():
    image, meta, class_ids, boxes, masks = modellib.load_image_gt(Blocks(), SmallConfig(), 0)
    # 60 pixels become 128, 40 become 85: 21 rows of padding above, 22 below.
    assert (image.shape, image.dtype, masks.shape, masks.dtype) == ((128, 128, 3), np.uint8, (128, 128, 2), bool)
    assert not image[:21].any()
    assert not image[106:].any()
    assert image[21:106].min() >= 50
    assert class_ids.tolist() == [1, 2]  # the crowd is left out
    assert (class_ids.dtype, boxes.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(boxes, utils.extract_bboxes(masks))
    scale = 128 / 60
    expected = np.array(Blocks.BOXES[:2]) * scale + [21, 0, 21, 0]
    assert np.abs(boxes - expected).max() <= 1
    inside = image[masks[..., 0]]
    assert inside.mean() > 185
    parsed = modellib.parse_image_meta(meta[None])
    assert parsed["original_image_shape"].tolist() == [[40, 60, 3]]
    assert parsed["image_shape"].tolist() == [[128, 128, 3]]
    assert parsed["window"].tolist() == [[21, 0, 106, 128]]
    assert parsed["scale"] == pytest.approx(scale)
    assert parsed["active_class_ids"].tolist() == [[1, 1, 1, 0]]  # "foreign" is of another source


def test_an_image_is_read_once():
    class Counted(Blocks):
        reads = 0

        def load_image(self, image_id):
            self.reads += 1
            return super().load_image(image_id)

    def taller(image, masks):
        return np.repeat(image, 2, axis=0), np.repeat(masks, 2, axis=0)

    dataset = Counted()
    meta = modellib.load_image_gt(dataset, SmallConfig(), 0, augmentation=taller)[1]
    assert dataset.reads == 1
    assert modellib.parse_image_meta(meta[None])["original_image_shape"].tolist() == [[40, 60, 3]]


def test_mini_masks_expand_to_the_masks():
    config = SmallConfig(MINI_MASK_SHAPE=(28, 20))
    *_, boxes, masks = modellib.load_image_gt(Blocks(), config, 0)
    mini = modellib.load_image_gt(Blocks(), config, 0, use_mini_mask=True)[4]
    assert mini.shape == (28, 20, 2)
    assert mini.all()  # blocks fill their boxes
    np.testing.assert_array_equal(utils.expand_mask(boxes, mini, masks.shape), masks)
    assert not config.USE_MINI_MASK, "the caller's config is left alone"


def test_a_config_with_mini_masks_does_not_decide():
    masks = modellib.load_image_gt(Blocks(), SmallConfig(USE_MINI_MASK=True), 0)[4]
    assert masks.shape == (128, 128, 2)


def test_augmentation_is_repeatable_and_asked_for():
    config, dataset = SmallConfig(HORIZONTAL_FLIP=0.5), Blocks()
    plain = modellib.load_image_gt(dataset, config, 0)
    seen = [modellib.load_image_gt(dataset, config, 0, augment=True, seed=seed) for seed in range(8)]
    flipped = [np.array_equal(one[4], plain[4][:, ::-1]) for one in seen]
    assert 0 < sum(flipped) < 8
    assert all(np.array_equal(one[4], plain[4]) for one, flip in zip(seen, flipped, strict=True) if not flip)
    again = modellib.load_image_gt(dataset, config, 0, augment=True, seed=3)
    np.testing.assert_array_equal(again[0], seen[3][0])

    def darker(image, masks):
        return image // 2, masks

    image = modellib.load_image_gt(dataset, SmallConfig(HORIZONTAL_FLIP=0), 0, augmentation=darker)[0]
    assert abs(int(image.max()) - 100) <= 1


def test_an_image_without_objects():
    _, _, class_ids, boxes, masks = modellib.load_image_gt(Blocks(class_ids=()), SmallConfig(), 0)
    assert (class_ids.shape, boxes.shape, masks.shape) == ((0,), (0, 4), (128, 128, 0))
    mini = modellib.load_image_gt(Blocks(class_ids=()), SmallConfig(), 0, use_mini_mask=True)[4]
    assert mini.shape == (56, 56, 0)


############################################################
#  Targets
############################################################

GT_BOXES = np.array([[10, 10, 30, 30], [50, 60, 90, 120], [100, 0, 128, 128]], np.float32)
GT_IDS = np.array([2, 1, -3])


def test_rpn_targets_by_hand():
    anchors = np.array(
        [
            [10, 10, 30, 30],  # the first object itself
            [50, 60, 90, 112],  # IoU 52 / 60 with the second
            [50, 60, 90, 90],  # IoU 0.5: neither
            [0, 90, 30, 120],  # background
            [100, 0, 128, 40],  # in the crowd
        ]
    )
    match, deltas = modellib.build_rpn_targets((128, 128, 3), anchors, GT_IDS, GT_BOXES, SmallConfig())
    assert match.tolist() == [1, 1, 0, -1, 0]
    assert (match.dtype, deltas.dtype, deltas.shape) == (np.int32, np.float32, (256, 4))
    expected = [[0, 0, 0, 0], [0, 4 / 52, 0, np.log(60 / 52)]]
    np.testing.assert_allclose(deltas[:2], expected, atol=1e-6)
    assert not deltas[2:].any()


def test_rpn_targets_are_a_sample():
    config = SmallConfig(RPN_TRAIN_ANCHORS_PER_IMAGE=20)
    shapes_ = modellib.compute_backbone_shapes(config, (128, 128)).tolist()
    anchors = torch.cat(modellib.generate_pyramid_anchors(shapes_, (128, 128), config))
    first, again, other = (
        modellib.build_rpn_targets((128, 128), anchors, GT_IDS, GT_BOXES, config, seed)[0] for seed in (1, 1, 2)
    )
    assert (first != 0).sum() == 20
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_rpn_targets_of_the_dialect_matterport_are_of_its_shrunk_boxes():
    config = SmallConfig(DIALECT="matterport", RPN_BBOX_STD_DEV=(0.1, 0.1, 0.2, 0.2))
    anchors = np.array([[50.0, 60, 90, 112]])
    _, deltas = modellib.build_rpn_targets((128, 128), anchors, GT_IDS[1:2], GT_BOXES[1:2], config)
    np.testing.assert_allclose(deltas[0], [0, (4 / 51) / 0.1, 0, np.log(59 / 51) / 0.2], rtol=1e-4, atol=1e-5)


def gt_masks():
    masks = np.zeros((128, 128, 3), bool)
    masks[10:30, 10:20, 0] = True  # the left half of its box
    masks[50:90, 60:120, 1] = True
    masks[100:, :, 2] = True
    return masks


def test_detection_targets_by_hand():
    rois = np.array([[50, 60, 90, 112], [10, 10, 30, 30], [0, 90, 30, 120], [104, 4, 124, 60]], np.float32)
    targets = modellib.build_detection_targets(rois, GT_IDS, GT_BOXES, gt_masks(), SmallConfig())
    rows = {tuple(roi): (class_id, deltas, mask) for roi, class_id, deltas, mask in zip(*targets, strict=True)}
    # The objects' own boxes have joined; what lies in the crowd is no background.
    assert set(rows) == {*map(tuple, rois[:3]), tuple(GT_BOXES[0]), tuple(GT_BOXES[1])}
    class_id, deltas, mask = rows[50, 60, 90, 112]
    assert class_id == 1
    np.testing.assert_allclose(deltas, [0, (4 / 52) / 0.1, 0, np.log(60 / 52) / 0.2], atol=1e-5)
    assert mask.shape == (28, 28)
    assert mask.all()
    class_id, deltas, mask = rows[10, 10, 30, 30]
    assert class_id == 2
    assert not deltas.any()
    assert mask[:, :14].all()
    assert not mask[:, 14:].any()
    class_id, deltas, mask = rows[0, 90, 30, 120]
    assert (class_id, deltas.any(), mask.any()) == (0, False, False)


def test_detection_targets_keep_the_ratio():
    rois = modellib.generate_random_rois((128, 128), 2000, GT_IDS[:2], GT_BOXES[:2])
    _, class_ids, _, masks = modellib.build_detection_targets(
        rois, GT_IDS[:2], GT_BOXES[:2], gt_masks()[..., :2], SmallConfig()
    )
    assert len(class_ids) == len(masks) == 40
    assert (class_ids > 0).sum() == 10  # ROI_POSITIVE_RATIO


def test_targets_without_objects():
    config, none = SmallConfig(), np.zeros((0, 4))
    match, deltas = modellib.build_rpn_targets((64, 64), [[0, 0, 8, 8]], [], none, config)
    assert match.tolist() == [-1]
    assert not deltas.any()
    rois = modellib.generate_random_rois((64, 64), 5, [], none)
    _, class_ids, _, masks = modellib.build_detection_targets(rois, [], none, np.zeros((64, 64, 0), bool), config)
    assert class_ids.tolist() == [0] * 5
    assert masks.shape == (5, 28, 28)


def test_targets_say_what_does_not_fit():
    with pytest.raises(ValueError, match="not of 3, 2 and any"):
        modellib.build_rpn_targets((128, 128), GT_BOXES, GT_IDS, GT_BOXES[:2], SmallConfig())
    masks = gt_masks().transpose(2, 0, 1)
    with pytest.raises(ValueError, match=r"not of 3, 3 and 128; are the masks \[H, W, G\]"):
        modellib.build_detection_targets(GT_BOXES, GT_IDS, GT_BOXES, masks, SmallConfig())


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 1000))
def test_random_rois_lie_inside_and_mostly_around_objects(count, objects, seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 90, (objects, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4) + np.array([0, 0, 2, 2])
    rois = modellib.generate_random_rois((92, 95, 3), count, np.ones(objects), boxes, seed)
    assert (rois.shape, rois.dtype) == ((count, 4), np.float32)
    assert rois.min() >= 0
    assert (rois[:, 2:] <= [92, 95]).all()
    assert (rois[:, 2:] - rois[:, :2] >= 1 - 1e-4).all()
    around = int(0.9 * count) // max(1, objects) * objects
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2) * [-1, -1, 1, 1]
    for i, roi in enumerate(rois[:around]):
        y1, x1, y2, x2 = (boxes + sides)[i % objects]
        assert roi[0] >= min(y1, 91) - 1e-3
        assert roi[1] >= min(x1, 94) - 1e-3
        assert roi[2] <= max(y2, roi[0] + 1) + 1e-3
        assert roi[3] <= max(x2, roi[1] + 1) + 1e-3


def test_random_rois_find_the_objects():
    rois = modellib.generate_random_rois((128, 128), 1000, GT_IDS[:2], GT_BOXES[:2])
    assert utils.compute_recall(rois, GT_BOXES[:2], 0.5)[0] == 1
    np.testing.assert_array_equal(rois, modellib.generate_random_rois((128, 128), 1000, GT_IDS[:2], GT_BOXES[:2]))
    around, box = rois[:900:2], GT_BOXES[0]  # of the first object: from 10 to 30, so within -10 to 50
    assert around[:, :2].min() < 3
    assert around[:, 2:].max() > 45
    assert utils.compute_overlaps(around, box[None]).max() > 0.5
    anywhere = rois[900:]
    assert anywhere[:, 2].max() > 120
    assert anywhere[:, 0].min() < 8


############################################################
#  True IoUs
############################################################


def test_true_ious_by_hand():
    truth = np.zeros((10, 10, 3), bool)
    truth[:4, :4, 0] = truth[6:, 6:, 1] = truth[:4, :4, 2] = True
    found = np.zeros((10, 10, 4), bool)
    found[:4, :2, 0] = found[:4, :4, 1] = found[6:, 6:, 2] = True
    ious = utils.compute_true_ious([1, 1, 2], truth, [1, 2, 2, 1], found)
    assert ious.dtype == np.float32
    assert ious.tolist() == [0.5, 1, 0, 0]  # the third is of another class than its object
    assert utils.compute_true_ious([], truth[..., :0], [1], found[..., :1]).tolist() == [0]
    assert utils.compute_true_ious([1], truth[..., :1], [], found[..., :0]).shape == (0,)
    with pytest.raises(ValueError, match="3 pred_class_ids and 3 gt_class_ids, but 4 and 3 masks"):
        utils.compute_true_ious([1, 1, 2], truth, [1, 2, 2], found)


############################################################
#  COCO
############################################################


def test_open_coco_is_load_and_prepare(monkeypatch):
    calls = []
    monkeypatch.setattr(CocoDataset, "load_coco", lambda self, *arguments: calls.append(arguments))
    dataset = open_coco("folder", "val", 2017)
    assert calls == [("folder", "val", 2017)]
    assert dataset.num_classes == 1  # prepared

"""The network's parts against plain torch or hand-made numbers, and what MaskRCNN promises to its callers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, GOLDEN
from helpers import TinyConfig, tiny_model
from torch import nn

import model as modellib
import utils
from config import DIALECTS, Config
from model import BatchNorm, Conv, Linear, MaskHead, MaskIoUHead, MaskRCNN


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return tiny_model()


############################################################
#  Images In
############################################################


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_normalised_and_padded_as_by_hand(dialect, channels):
    """Each pixel minus the mean, divided by the deviation, in float32, and rounded last. Padding is black or zero."""
    rng = np.random.default_rng(channels)
    mean, deviation = rng.uniform(90, 130, channels).tolist(), rng.uniform(1, 60, channels).tolist()
    config = Config(DIALECT=dialect, IMAGE_CHANNEL_COUNT=channels, MEAN_PIXEL=tuple(mean), STD_PIXEL=tuple(deviation))
    normalise = lambda pixels: (  # noqa: E731
        (pixels.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
    )
    image = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    molded = modellib.mold_image(image, config)
    assert molded.shape == image.shape
    assert molded.dtype == torch.float32
    assert np.array_equal(molded.numpy(), normalise(image))
    assert np.array_equal(modellib.mold_image(image[0, 0], config).numpy(), normalise(image)[0, 0])
    assert np.array_equal(modellib.mold_image(image[:, ::2], config).numpy(), normalise(image)[:, ::2])
    assert modellib.mold_image(image[:0], config).shape == (0, 7, channels)
    black = normalise(np.zeros((8, 9, channels))) if config.dialect.pads_before_mean else np.zeros((8, 9, channels))
    expected = black.astype(np.float32)
    expected[2:7, 1:8] = normalise(image)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full((8, 9, channels), torch.nan, dtype=dtype)
        padded = modellib.pad_molded(molded, (2, 1, 7, 8), out, config)
        assert padded is out
        assert torch.equal(padded, torch.from_numpy(expected).to(dtype))


############################################################
#  Layers
############################################################


def normed_conv(seed: int = 0, **options) -> Conv:
    torch.manual_seed(seed)
    conv = Conv(6, 8, 3, norm="batch", **options)
    nn.init.normal_(conv.weight)
    for tensor in (conv.norm.weight, conv.norm.bias, conv.norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(conv.norm.running_var, 0.5, 2)
    return conv


def frozen_norm(x: torch.Tensor, norm: BatchNorm) -> torch.Tensor:
    """Batch norm with eps 0, which not every release of torch accepts."""
    mean, var, weight, bias = (
        vector[:, None, None] for vector in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / var.sqrt() * weight + bias


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_is_convolution_then_norm_then_sum_then_relu(stride, relu, groups):
    conv = normed_conv(stride=stride, relu=relu, groups=groups)
    x = torch.randn(2, 6, 9, 7)
    expected = F.conv2d(x, conv.weight, None, stride, 1, 1, groups)
    residual = torch.randn_like(expected)
    expected = frozen_norm(expected, conv.norm) + residual
    torch.testing.assert_close(conv(x, residual), expected.relu() if relu else expected)
    torch.testing.assert_close(conv(x.detach()), conv(x, torch.zeros_like(residual)))


def test_gradients_flow_through_the_folded_norm():
    conv = normed_conv()
    x = torch.randn(2, 6, 9, 7, requires_grad=True)
    conv(x).square().sum().backward()
    mine = [parameter.grad.clone() for parameter in (*conv.parameters(), x)]
    for parameter in (*conv.parameters(), x):
        parameter.grad = None
    frozen_norm(F.conv2d(x, conv.weight, None, 1, 1), conv.norm).square().sum().backward()
    for actual, parameter in zip(mine, (*conv.parameters(), x), strict=True):
        torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layers_keep_nothing_of_their_weights():
    conv, x = normed_conv(), torch.randn(1, 6, 5, 5)
    before = conv(x)
    conv.norm.running_var.mul_(4)
    halved = conv(x)
    assert not torch.allclose(halved, before)
    conv.weight.data.mul_(2)
    assert not torch.allclose(conv(x), halved)
    with torch.inference_mode():
        conv.load_state_dict(normed_conv(seed=1).state_dict())
    torch.testing.assert_close(conv(x), normed_conv(seed=1)(x))
    assert conv(x.bfloat16()).dtype == torch.bfloat16


def test_frozen_layers_work_while_others_learn():
    conv = normed_conv().requires_grad_(False)
    with torch.inference_mode():
        conv.train()(torch.randn(1, 6, 5, 5))
    x = torch.randn(1, 6, 5, 5, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("device", DEVICES)
def test_linear_keeps_torchs_order_of_cells(rows, layout, device):
    torch.manual_seed(0)
    linear = Linear(6, 10, cells=9, relu=True).to(device)
    nn.init.normal_(linear.weight)
    nn.init.normal_(linear.bias)
    x = torch.randn(rows, 6, 3, 3, device=device).contiguous(memory_format=layout)
    expected = F.linear(x.flatten(1), linear.weight, linear.bias).relu()
    torch.testing.assert_close(linear(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_mask_head_is_convolutions_upsampling_and_the_class(rows, device):
    torch.manual_seed(0)
    head = MaskHead(TinyConfig(MASK_HEAD_CONVS=2)).to(device)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, classes = torch.randn(rows, 16, 14, 14, device=device), torch.tensor([2, 1, 3], device=device)[:rows]
    y = x
    for conv in head.convs:
        y = F.conv2d(y, conv.weight, conv.bias, padding=1).relu()
    y = F.conv_transpose2d(y, head.upsample.weight, head.upsample.bias, stride=2).relu()
    y = F.conv2d(y, head.mask_logits.weight, head.mask_logits.bias)
    expected = y[torch.arange(rows, device=device), classes]
    actual = head(x, classes)
    assert actual.shape == (rows, 28, 28)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_mask_head_upsamples_some_masks_at_a_time(monkeypatch):
    """In inference too, as many as AT_ONCE; nothing is left out, and an exported program has no such loop."""
    torch.manual_seed(0)
    head = MaskHead(TinyConfig())
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, classes = torch.randn(7, 16, 14, 14), torch.tensor([1, 2, 3, 1, 2, 3, 1])
    counts = []
    monkeypatch.setattr(head, "_predict", lambda *part: counts.append(len(part[0])) or MaskHead._predict(head, *part))
    with torch.no_grad():
        whole = head(x, classes)
        monkeypatch.setattr(MaskHead, "AT_ONCE", 3)
        parts = head(x, classes)
        monkeypatch.setattr(modellib, "is_exporting", lambda: True)
        exported = head(x, classes)
    assert counts == [7, 3, 3, 1, 7]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(exported, whole)


@pytest.mark.parametrize("rows", [0, 2])
def test_maskiou_head_sees_features_and_the_pooled_mask(rows):
    torch.manual_seed(0)
    head = MaskIoUHead(TinyConfig())
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, logits = torch.randn(rows, 16, 14, 14), torch.randn(rows, 28, 28)
    pooled = logits.sigmoid().view(rows, 14, 2, 14, 2).amax(dim=(2, 4))
    y = torch.cat([x, pooled[:, None]], 1)
    for i, conv in enumerate(head.convs):
        y = F.conv2d(y, conv.weight, conv.bias, stride=2 if i == 3 else 1, padding=1).relu()
    assert y.shape[2:] == (7, 7)
    y = F.linear(y.flatten(1), head.fcs[0].weight, head.fcs[0].bias).relu()
    y = F.linear(y, head.fcs[1].weight, head.fcs[1].bias).relu()
    torch.testing.assert_close(
        head(x, logits), F.linear(y, head.maskious.weight, head.maskious.bias), rtol=1e-4, atol=1e-4
    )


############################################################
#  Backbone and pyramid
############################################################


@pytest.mark.parametrize(
    ("backbone", "parameters", "channels", "width_of_layer2"),
    [
        ("resnet18", 11_176_512, (64, 128, 256, 512), (128, 64)),
        ("resnet34", 21_284_672, (64, 128, 256, 512), (128, 64)),
        ("resnet50", 23_508_032, (256, 512, 1024, 2048), (128, 256)),
        ("resnet101", 42_500_160, (256, 512, 1024, 2048), (128, 256)),
        ("resnext101_32x4d", 42_128_704, (256, 512, 1024, 2048), (256, 256)),
        ("resnext101_64x4d", 81_406_272, (256, 512, 1024, 2048), (512, 256)),
        ("resnext101_32x8d", 86_742_336, (256, 512, 1024, 2048), (512, 256)),
    ],
)
def test_backbones_have_their_published_parameters(backbone, parameters, channels, width_of_layer2):
    """Counts of torchvision's classifiers without the last layer; 32x4d and 64x4d with mmdetection's."""
    with torch.device("meta"):
        resnet = modellib.ResNet(Config(BACKBONE=backbone))
        features = resnet(torch.empty(2, 3, 64, 96))
    assert sum(parameter.numel() for parameter in resnet.parameters()) == parameters
    assert tuple(resnet.channels) == channels
    assert tuple(resnet.layer2[0].conv1.weight.shape[:2]) == width_of_layer2
    shapes = [(2, count, 64 // stride, 96 // stride) for count, stride in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(feature.shape) for feature in features] == shapes


@pytest.mark.parametrize(("style", "strides"), [("caffe", (2, 1)), ("pytorch", (1, 2))])
def test_style_places_the_stride(style, strides):
    with torch.device("meta"):
        resnet = modellib.ResNet(Config(BACKBONE="resnet50", BACKBONE_STYLE=style))
    for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
        assert (layer[0].conv1.stride, layer[0].conv2.stride) == strides
        assert (layer[1].conv1.stride, layer[1].conv2.stride) == (1, 1)
        assert layer[0].shortcut.stride == 2
    assert resnet.layer1[0].conv1.stride == resnet.layer1[0].conv2.stride == 1


@pytest.mark.parametrize("height", [1, 2, 7, 8])
@pytest.mark.parametrize("width", [1, 6, 9])
@pytest.mark.parametrize("kind", ["symmetric", "same"])
def test_stem_pool(height, width, kind):
    """The same as padding after TensorFlow's rule (or by one on each side), then pooling without padding."""
    resnet = modellib.ResNet(Config(DIALECT="matterport" if kind == "same" else "mmdet", BACKBONE="resnet18"))
    x = torch.rand(1, 2, height, width)
    pads = []
    for side in (width, height):
        total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
        pads += [total // 2, total - total // 2] if kind == "same" else [1, 1]
    expected = F.max_pool2d(F.pad(x, pads), 3, 2)
    assert torch.equal(resnet._pool(x), expected)


def test_fpn_adds_from_the_top():
    torch.manual_seed(0)
    fpn = modellib.FPN((3, 4, 5, 6), 8)
    for parameter in fpn.parameters():
        nn.init.normal_(parameter, std=0.3)
    sides = [(13, 18), (7, 9), (4, 5), (2, 3)]
    features = [torch.randn(2, count, *side) for count, side in zip((3, 4, 5, 6), sides, strict=True)]
    laterals = [
        F.conv2d(feature, layer.weight, layer.bias) for feature, layer in zip(features, fpn.lateral, strict=True)
    ]
    for i in (2, 1, 0):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=sides[i], mode="nearest")
    expected = [
        F.conv2d(lateral, layer.weight, layer.bias, padding=1)
        for lateral, layer in zip(laterals, fpn.output, strict=True)
    ]
    expected.append(F.max_pool2d(expected[-1], 1, 2))
    for actual, map_ in zip(fpn(features), expected, strict=True):
        torch.testing.assert_close(actual, map_, rtol=1e-4, atol=1e-4)


############################################################
#  Anchors, levels, boxes
############################################################


@pytest.mark.parametrize(("dialect", "side"), [("benchmark", 1), ("torchvision", 0)])
def test_cell_anchors_are_the_peers(dialect, side):
    """side: what is added to x2 and y2 of an inclusive box."""
    with np.load(GOLDEN / "detect_units.npz") as file:
        expected = torch.from_numpy(file[f"{dialect}/cell_anchors"])
    config = Config(DIALECT=dialect)
    for level, (scale, stride) in enumerate(zip(config.RPN_ANCHOR_SCALES, config.BACKBONE_STRIDES, strict=True)):
        anchors = modellib.generate_anchors(
            scale, (0.5, 1, 2), (1, 1), stride, 1, config.dialect.anchor_rounding, config.dialect.anchor_centre
        )
        assert torch.equal(anchors.flip(0)[:, [1, 0, 3, 2]], expected[level].float() + torch.tensor([0, 0, side, side]))


def test_anchors_are_made_once_for_each_shape_and_settings():
    """Two models share them; another shape, device or setting that they depend on gets others."""
    shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    one, other = tiny_model(), tiny_model(seed=1)
    anchors = one.pyramid_anchors(shapes, (64, 96))
    assert other.pyramid_anchors([list(shape) for shape in shapes], torch.Size((64, 96))) is anchors
    expected = modellib.generate_pyramid_anchors(shapes, (64, 96), one.config)
    assert all(torch.equal(level, fresh) for level, fresh in zip(anchors, expected, strict=True))
    assert len(one.pyramid_anchors([(2 * h, w) for h, w in shapes], (128, 96))[0]) == 2 * len(anchors[0])
    one.config.RPN_ANCHOR_SCALES = (16, 32, 64, 128, 256)
    assert torch.equal(one.pyramid_anchors(shapes, (64, 96))[0][1], torch.tensor([-8.0, -8, 8, 8]))
    assert one.to("meta").pyramid_anchors(shapes, (64, 96))[0].device.type == "meta"


def test_anchors_that_inference_asks_for_first_serve_training():
    with torch.inference_mode():
        (level, *_) = tiny_model(RPN_ANCHOR_SCALES=(31, 61, 121, 251, 501)).pyramid_anchors([(1, 1)] * 5, (4, 4))
    assert not level.is_inference()


def test_anchors_by_hand():
    anchors = modellib.generate_anchors(32, (0.5, 1, 2), (2, 3), 4)
    assert anchors.shape == (18, 4)
    root = math.sqrt(2)
    tall = torch.tensor([-16 * root, -8 * root, 16 * root, 8 * root])  # height is twice the width
    torch.testing.assert_close(anchors[0], tall)
    torch.testing.assert_close(anchors[1], torch.tensor([-16.0, -16, 16, 16]))
    torch.testing.assert_close(anchors[2], tall[[1, 0, 3, 2]])
    torch.testing.assert_close(anchors[4], torch.tensor([-16.0, -12, 16, 20]), msg="x advances first")
    torch.testing.assert_close(anchors[3 * 3 + 1], torch.tensor([-12.0, -16, 20, 16]), msg="then y")
    sparse = modellib.generate_anchors(32, (1,), (3, 3), 4, anchor_stride=2)
    assert [(row[0] + row[2]).item() / 2 for row in sparse] == [0, 0, 8, 8]


def test_torchvisions_anchor_stride_follows_the_map():
    config = Config(DIALECT="torchvision")
    shapes = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
    levels = modellib.generate_pyramid_anchors(shapes, (800, 1216), config)
    assert levels[4][3 * 19 + 1].tolist() == [61 - 256, -256, 61 + 256, 256], "800 // 13, not 64"
    assert Config().dialect.anchor_stride == "fixed"
    fixed = modellib.generate_pyramid_anchors(shapes, (800, 1216), Config())
    assert fixed[4][3 * 19 + 1].tolist() == [64 - 256, -256, 64 + 256, 256]


@pytest.mark.parametrize("dialect", ["benchmark", "torchvision", "matterport"])
def test_levels_are_the_peers(dialect):
    with np.load(GOLDEN / "detect_units.npz") as file:
        boxes, expected = torch.from_numpy(file["level_boxes"])[:, [1, 0, 3, 2]], file[f"{dialect}/level"]
    if dialect == "benchmark":
        boxes = boxes + torch.tensor([0, 0, 1, 1])
    elif dialect == "matterport":  # the golden's boxes are normalised by 1024, not by 1023
        boxes = boxes * (1023 / 1024)
    levels = modellib.roi_levels(boxes, (1024, 1024), Config(DIALECT=dialect))
    assert (levels + 2).tolist() == expected.astype(int).tolist()


@pytest.mark.parametrize(
    ("side", "expected"),
    [(0, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (1e5, 3), (math.nan, 0)],
)
@pytest.mark.parametrize("dialect", ["mmdet", "benchmark", "torchvision"])
def test_levels_by_hand(side, expected, dialect):
    boxes = torch.tensor([[0.0, 0.0, side, side]])
    assert modellib.roi_levels(boxes, (800, 1216), Config(DIALECT=dialect)).tolist() == [expected]


def test_matterports_levels_round():
    """Half way between 112 and 224 is 158.4; its boxes are 1024 / 1023 larger than ours."""
    edge = 224 / math.sqrt(2) * 1023 / 1024
    boxes = torch.tensor([[0, 0, side, side] for side in (edge - 0.1, edge + 0.1)])
    assert modellib.roi_levels(boxes, (1024, 1024), Config(DIALECT="matterport")).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("mmdet", [[0, 0, 50, 20], [50, 100, 50, 100]]),
        ("benchmark", [[0, 0, 50, 20], [49, 99, 50, 100]]),  # a pixel remains
    ],
)
def test_clipping(dialect, expected):
    boxes = torch.tensor([[-5.0, -7, 60, 20], [60, 150, 70, 160]])
    windows = torch.tensor([[0.0, 0, 50, 100]]).expand(2, 4)
    assert modellib.clip_to_windows(boxes, windows, Config(DIALECT=dialect)).tolist() == expected


@pytest.mark.parametrize(
    ("dialect", "box", "expected"),
    [
        ("mmdet", [10.0, 20, 30, 40], [5, 10, 15, 20]),
        (
            "benchmark",
            [10.0, 20, 30, 40],
            [5, 10, 15.5, 20.5],
        ),  # (10, 20, 29, 39) inclusive, halved
        ("matterport", [14.0, 20, 34, 40], [5, 10, 16, 21]),  # x1 = 20 * 99 / 199, rounded
    ],
)
def test_boxes_return_to_the_image(dialect, box, expected):
    """The window has twice the image's size; Matterport's is moved down by four pixels."""
    config, top = Config(DIALECT=dialect), 4 if dialect == "matterport" else 0
    window = (top, 0, top + 100, 200)
    boxes = modellib.unmold_boxes(torch.tensor([box]), window, (50, 100), config)
    assert boxes.tolist() == [expected]
    if dialect == "matterport":  # by its own formulas, on normalised boxes of a 256 x 256 input
        normalised = torch.tensor(box) / 255
        edges = (torch.tensor(window) - torch.tensor([0, 0, 1, 1])) / 255
        scaled = (normalised - edges[[0, 1, 0, 1]]) / (edges[2:] - edges[:2]).repeat(2)
        scale = torch.tensor([49, 99, 49, 99])
        assert (scaled * scale + torch.tensor([0, 0, 1, 1])).round().tolist() == expected


############################################################
#  Proposals and detections against loops
############################################################


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    order, keep = scores.sort(descending=True, stable=True).indices.tolist(), []
    for i in order:
        if all(utils.compute_overlaps(boxes[i : i + 1], boxes[j : j + 1]).item() <= threshold for j in keep):
            keep.append(i)
    return keep


@pytest.mark.parametrize("dialect", DIALECTS)
def test_proposals_are_what_loops_find(dialect):
    config = Config(DIALECT=dialect, RPN_NMS_THRESHOLD=0.4)
    torch.manual_seed(0)
    counts, pre, post = (40, 12), 15, 8
    centres = [torch.rand(count, 2).mul(60) for count in counts]
    anchors = [torch.cat([centre - 12, centre + 12], 1) for centre in centres]
    logits = [torch.randn(2, count) for count in counts]
    deltas = [torch.randn(2, count, 4).mul(0.2) for count in counts]
    windows = torch.tensor([[0.0, 0, 60, 60], [0, 0, 40, 50]])
    boxes, scores, batch = modellib.propose(logits, deltas, anchors, windows, config, pre, post)
    for image in range(2):
        levels = list(zip([x[image] for x in logits], [x[image] for x in deltas], anchors, strict=True))
        if config.dialect.proposals_of == "image":
            levels = [tuple(torch.cat(parts) for parts in zip(*levels, strict=True))]
        found = []
        for level_logits, level_deltas, base in levels:
            top = level_logits.sort(descending=True).indices[:pre]
            decoded = utils.apply_box_deltas(base[top], level_deltas[top] * torch.tensor(config.RPN_BBOX_STD_DEV))
            decoded = modellib.clip_to_windows(decoded, windows[image], config)
            large = (decoded[:, 2:] - decoded[:, :2] > config.dialect.min_proposal_side).all(1)
            decoded, top = decoded[large], top[large]
            keep = plain_nms(decoded, level_logits[top], 0.4)[:post]
            found += [(level_logits[top][i].item(), decoded[i]) for i in keep]
        found.sort(key=lambda pair: -pair[0])
        expected = torch.stack([box for _, box in found[:post]])
        torch.testing.assert_close(boxes[batch == image], expected)
        own = torch.tensor([logit for logit, _ in found[:post]])
        if config.dialect.proposal_order == "probability":
            own = own.sigmoid()
        torch.testing.assert_close(scores[batch == image], own)
    assert batch.tolist() == sorted(batch.tolist())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_detections_are_what_loops_find(dialect):
    config = TinyConfig(
        DIALECT=dialect, DETECTION_MIN_CONFIDENCE=0.3, DETECTION_NMS_THRESHOLD=0.2, DETECTION_MAX_INSTANCES=4
    )
    torch.manual_seed(1)
    logits, deltas = torch.randn(30, 4).mul(2), torch.randn(30, 4, 4)
    corners = torch.rand(30, 2).mul(50)
    rois, batch = torch.cat([corners, corners + 5 + torch.rand(30, 2).mul(20)], 1), torch.arange(30) % 2
    windows = torch.tensor([[0.0, 0, 60, 60], [0, 0, 40, 50]])
    found = modellib.detect_boxes(logits, deltas, rois, batch, windows, config)
    probs = logits.softmax(1)
    for image in range(2):
        expected = []
        for class_id in (1, 2, 3):
            rows = [i for i in range(30) if batch[i] == image and probs[i, class_id] > 0.3]
            if config.dialect.detections_of == "best class":
                rows = [i for i in rows if probs[i].argmax() == class_id]
            scaled = deltas[rows, class_id] * torch.tensor(config.BBOX_STD_DEV)
            boxes = modellib.clip_to_windows(utils.apply_box_deltas(rois[rows], scaled), windows[image], config)
            large = (boxes[:, 2:] - boxes[:, :2] > config.dialect.min_detection_side).all(1)
            boxes, rows = boxes[large], [row for row, kept in zip(rows, large.tolist(), strict=True) if kept]
            for i in plain_nms(boxes, probs[rows, class_id], 0.2):
                expected.append((probs[rows[i], class_id].item(), class_id, boxes[i]))
        expected.sort(key=lambda entry: -entry[0])
        assert len(expected) > 4, "the limit is tested"
        own = found.batch_index == image
        assert found.class_ids[own].tolist() == [entry[1] for entry in expected[:4]]
        torch.testing.assert_close(found.scores[own], torch.tensor([entry[0] for entry in expected[:4]]))
        torch.testing.assert_close(found.boxes[own], torch.stack([entry[2] for entry in expected[:4]]))


@pytest.mark.parametrize(("dialect", "kept"), [("mmdet", 2), ("torchvision", 1), ("matterport", 2)])
def test_tiny_detections_are_dropped_by_torchvision_only(dialect, kept):
    config = TinyConfig(DIALECT=dialect, DETECTION_MIN_CONFIDENCE=0.3)
    rois = torch.tensor([[0.0, 0, 20, 20], [30, 30, 30.005, 40]])
    logits = torch.tensor([[0.0, 5, 0, 0], [0, 5, 0, 0]])
    windows = torch.tensor([[0.0, 0, 60, 60]])
    found = modellib.detect_boxes(logits, torch.zeros(2, 4, 4), rois, torch.zeros(2).long(), windows, config)
    assert len(found.boxes) == kept


def test_confidence_is_compared_as_the_dialects_do():
    """Matterport keeps a score that equals the threshold; the others do not."""
    for dialect, count in (("mmdet", 0), ("matterport", 1)):
        config = Config(DIALECT=dialect, NUM_CLASSES=2, DETECTION_MIN_CONFIDENCE=0.5)
        roi, classes, scores = modellib._candidates(torch.tensor([[0.3, 0.5], [0.6, 0.4]]), config)
        assert (roi.tolist(), classes.tolist(), scores.tolist()) == ([0] * count, [1] * count, [0.5] * count)


def test_mask_scores():
    scores, ious = torch.tensor([0.5, 0.8, 0.9]), torch.tensor([1.2, -0.1, 0.5])
    torch.testing.assert_close(modellib.mask_scores(scores, ious, Config()), torch.tensor([0.5, 0.0, 0.45]))
    raw = modellib.mask_scores(scores, ious, Config(MASKIOU_CLAMP=False))
    torch.testing.assert_close(raw, torch.tensor([0.6, -0.08, 0.45]))
    assert modellib.mask_scores(scores, None, Config()) is scores

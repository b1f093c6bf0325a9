"""Every format in full, every fold by hand, and every way in which a file can be wrong."""

import dataclasses
import functools
import hashlib
import http.server
import io
import pickle
import re
import sys
import tarfile
import threading
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import golden_weights
import h5py
import numpy as np
import pytest
import torch
from helpers import imagenet_state, tiny_model
from torch.nn import functional as F

import model
from config import Config
from convert_weights import main
from data.coco_files import COCO_CATEGORIES
from weights.checkpoint import (
    CHECKPOINT_KEYS,
    check_values,
    describe,
    make_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from weights.class_names import read_class_names
from weights.convert import _eps, _pixels
from weights.formats import FORMATS
from weights.load import load_checkpoint, load_model, load_with_report
from weights.published import (
    EMBEDDED,
    IMAGENET,
    PUBLISHED,
    cache_folder,
    find_published,
    find_weights,
    imagenet_weights,
)
from weights.torch_files import load_torch_file

COCO_IDS = sorted(COCO_CATEGORIES)
SWAP = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def light(monkeypatch):
    """Conversions leave tensors without memory as they are, for tests of names."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)


def save(path, contents, **kwargs):
    torch.save(contents, path, **kwargs)
    return path


def stand_in(name, **changes):
    """A state dict of the right names and shapes that takes no memory; changes by name, None to delete."""
    state = golden_weights.empty_state_dict(name)
    state.update({tensor.replace("__", "."): value for tensor, value in changes.items()})
    return {tensor: value for tensor, value in state.items() if value is not None}


def same(one, other):
    """Whether two checkpoints have the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


############################################################
#  Whole checkpoints
############################################################


@functools.lru_cache(maxsize=2)  # tests that share one stand together
def converted(folder, name):
    """(state dict of the source, checkpoint), with real values."""
    path = golden_weights.write_checkpoint(name, folder)
    checkpoint = load_checkpoint(path)
    path.unlink()
    assert list(checkpoint) == list(CHECKPOINT_KEYS)
    assert re.search(rf", {path.name}, sha256 [0-9a-f]{{64}}$", checkpoint["source"])
    for tensor in checkpoint["model"].values():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    return golden_weights._weights("p1" if name == "p4" else name), checkpoint


def numbered(name):
    """A state dict without memory in which every tensor has a value of its own."""
    names = golden_weights.keys(name).items()
    return {tensor: torch.tensor(1.0 + index).expand(shape) for index, (tensor, shape) in enumerate(names)}


# name: dialect, backbone, style, classes with background, MaskIoU head
EXPECTED = {
    "r50-caffe": ("mmdet", "resnet50", "caffe", 81, True),
    "r50": ("mmdet", "resnet50", "pytorch", 81, True),
    "r101-caffe": ("mmdet", "resnet101", "caffe", 81, True),
    "x101-32x4d": ("mmdet", "resnext101_32x4d", "pytorch", 81, True),
    "x101-64x4d": ("mmdet", "resnext101_64x4d", "pytorch", 81, True),
    "p1": ("matterport", "resnet101", "caffe", 81, False),
    "p2_ms_r50": ("benchmark", "resnet50", "caffe", 81, True),
    "p2_ms_r101": ("benchmark", "resnet101", "caffe", 81, True),
    "p2_mask_r50": ("benchmark", "resnet50", "caffe", 81, False),
    "p2_mask_x101": ("benchmark", "resnext101_32x8d", "pytorch", 81, False),
    "p3_v1": ("torchvision", "resnet50", "pytorch", 91, False),
    "p3_v1_current": ("torchvision", "resnet50", "pytorch", 91, False),
    "p3_v2": ("torchvision", "resnet50", "pytorch", 91, False),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_tensors_tell(light, name, tmp_path):
    state = stand_in(name)
    path = save(tmp_path / ("x_caffe.pth" if "caffe" in name else "x_r50_fpn.pth"), {"state_dict": state})
    checkpoint = load_checkpoint(path)
    config = Config.from_dict(checkpoint["config"])
    found = config.DIALECT, config.BACKBONE, config.BACKBONE_STYLE, config.NUM_CLASSES, config.USE_MASKIOU_HEAD
    assert found == EXPECTED[name]
    assert config.NAME == "coco"
    assert not config.MASKIOU_CLAMP
    assert checkpoint["dialect"] == config.DIALECT
    expected = model.network_shapes(config, only_backbone=False)
    assert {tensor: value.shape for tensor, value in checkpoint["model"].items()} == expected
    assert ((2, 4, 1) if name == "p3_v2" else (1, 0, 2)) == (
        config.RPN_CONVS,
        config.BOX_HEAD_CONVS,
        config.BOX_HEAD_FC_LAYERS,
    )
    assert (512 if name == "p1" else 256) == config.RPN_CHANNELS


def test_recipe_of_the_golden_numbers():
    """RECIPE.md's and mmdet's own sums of some tensors."""
    weight = golden_weights.fill_peer("roi_heads.maskiou.predictor.maskiou.weight", (81, 1024))
    assert np.allclose(weight.ravel()[:3], [0.009832748, 0.0400253, -0.005949975], atol=1e-9)
    bias = golden_weights.fill_peer("roi_heads.box.predictor.cls_score.bias", (81,))
    assert abs(float(bias.astype(np.float64).sum()) - 2.936815) < 1e-6
    stream = golden_weights._uniform("a", 100_000, lambda u: u)
    assert abs(float(stream.mean()) - 0.5) < 0.005
    assert np.array_equal(stream[50_000:50_010], splitmix("a", 50_000, 50_010))


def splitmix(name, start, stop):
    """Numbers of a name's stream one at a time, in Python's integers."""
    mask, numbers = (1 << 64) - 1, []
    for index in range(start, stop):
        z = (golden_weights.zlib.crc32(name.encode()) + (index + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(((z ^ (z >> 31)) >> 40) / 2**24)
    return np.float32(numbers)


############################################################
#  Folds
############################################################


def test_mmdet_by_hand(folder):
    source, checkpoint = converted(folder, "r50-caffe")
    ours = checkpoint["model"]
    head, rpn = "roi_head.bbox_head.", "rpn_head.rpn_"
    for leaf in ("weight", "bias"):
        logits, deltas = source[f"{head}fc_cls.{leaf}"], source[f"{head}fc_reg.{leaf}"]
        assert torch.equal(ours[f"box_head.class_logits.{leaf}"], torch.cat([logits[80:], logits[:80]]))
        assert not ours[f"box_head.box_deltas.{leaf}"][:4].any()
        for k in (0, 41, 79):
            assert torch.equal(
                ours[f"box_head.box_deltas.{leaf}"][4 * k + 4 : 4 * k + 8], deltas[4 * k : 4 * k + 4][SWAP]
            )
        for module, name in (
            ("mask_head.mask_logits", "mask_head.conv_logits"),
            ("maskiou_head.maskious", "mask_iou_head.fc_mask_iou"),
        ):
            assert torch.equal(ours[f"{module}.{leaf}"][1:], source[f"roi_head.{name}.{leaf}"])
            assert not ours[f"{module}.{leaf}"][0].any()
        for a in range(3):  # mmdet's ratios are height / width
            assert torch.equal(ours[f"rpn.objectness.{leaf}"][a], source[f"{rpn}cls.{leaf}"][2 - a])
            rows = source[f"{rpn}reg.{leaf}"][8 - 4 * a : 12 - 4 * a]
            assert torch.equal(ours[f"rpn.deltas.{leaf}"][4 * a : 4 * a + 4], rows[SWAP])
    assert torch.equal(ours["backbone.stem.weight"], source["backbone.conv1.weight"][:, [2, 1, 0]])
    var = source["backbone.layer3.2.bn2.running_var"].double() + 1e-5
    assert torch.equal(ours["backbone.layer3.2.conv2.norm.running_var"], var.float())
    same_names = {
        "backbone.layer1.0.shortcut.weight": "backbone.layer1.0.downsample.0.weight",
        "backbone.layer4.2.conv3.norm.bias": "backbone.layer4.2.bn3.bias",
        "backbone.stem.norm.running_mean": "backbone.bn1.running_mean",
        "fpn.lateral.3.weight": "neck.lateral_convs.3.conv.weight",
        "fpn.output.0.bias": "neck.fpn_convs.0.conv.bias",
        "box_head.fcs.1.weight": f"{head}shared_fcs.1.weight",
        "mask_head.upsample.weight": "roi_head.mask_head.upsample.weight",
        "maskiou_head.convs.0.weight": "roi_head.mask_iou_head.convs.0.weight",
    }
    for name, theirs in same_names.items():
        assert torch.equal(ours[name], source[theirs]), name


def test_the_first_anchor_is_tall():
    """Which is why sources whose ratio is height / width are reversed."""
    y1, x1, y2, x2 = model.cell_anchors(32, Config().RPN_ANCHOR_RATIOS, 4)[0].tolist()
    assert (y2 - y1) / (x2 - x1) == pytest.approx(2)


@pytest.mark.parametrize("name", ["p2_ms_r50", "p3_v1"])
def test_benchmark_and_torchvision_by_hand(name, folder):
    source, checkpoint = converted(folder, name)
    ours = checkpoint["model"]
    box = "roi_heads.box.predictor." if name == "p2_ms_r50" else "roi_heads.box_predictor."
    mask = "roi_heads.mask.predictor." if name == "p2_ms_r50" else "roi_heads.mask_predictor."
    assert torch.equal(ours["box_head.class_logits.weight"], source[f"{box}cls_score.weight"])
    deltas = source[f"{box}bbox_pred.weight"].reshape(-1, 4, 1024)[:, SWAP].reshape(-1, 1024)
    assert torch.equal(ours["box_head.box_deltas.weight"], deltas)
    assert torch.equal(ours["rpn.objectness.bias"], source["rpn.head.cls_logits.bias"].flip(0))
    assert torch.equal(ours["rpn.deltas.bias"][4:8], source["rpn.head.bbox_pred.bias"][4:8][SWAP])
    assert torch.equal(ours["rpn.deltas.bias"][8:], source["rpn.head.bbox_pred.bias"][:4][SWAP])
    assert torch.equal(ours["mask_head.mask_logits.weight"], source[f"{mask}mask_fcn_logits.weight"])
    stem = (
        source["backbone.body.stem.conv1.weight"].flip(1)
        if name == "p2_ms_r50"
        else source["backbone.body.conv1.weight"]
    )
    assert torch.equal(ours["backbone.stem.weight"], stem)
    var = "backbone.layer2.3.conv1.norm.running_var"  # eps 0 in both
    assert torch.equal(ours[var], source[var.replace("backbone", "backbone.body").replace("conv1.norm", "bn1")])
    if name == "p2_ms_r50":
        theirs = "roi_heads.maskiou.feature_extractor."
        assert torch.equal(ours["maskiou_head.convs.3.weight"], source[f"{theirs}maskiou_fcn4.weight"])
        assert torch.equal(ours["maskiou_head.fcs.0.weight"], source[f"{theirs}maskiou_fc1.weight"])
        assert torch.equal(ours["fpn.lateral.0.weight"], source["backbone.fpn.fpn_inner1.weight"])


def test_checkpoints_load_safely(folder, tmp_path):
    checkpoint = converted(folder, "p3_v1")[1]
    path = tmp_path / "ours.pth"
    write_checkpoint(path, checkpoint)
    loaded = torch.load(path, weights_only=True)
    assert same(loaded.pop("model"), checkpoint["model"])
    assert loaded == {key: value for key, value in checkpoint.items() if key != "model"}
    again = load_checkpoint(path)
    assert same(again["model"], checkpoint["model"])
    assert again["source"] == checkpoint["source"]
    assert again["config"] == checkpoint["config"]


def frozen(x, state, module):
    """Our backbone's convolution and batch norm with eps 0, in float64."""
    leaves = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"{module}.norm.{leaf}"].double()[:, None, None] for leaf in leaves)
    return (F.conv2d(x, state[f"{module}.weight"].double()) - mean) / var.sqrt() * weight + bias


def usual(x, state, conv, norm, eps):
    """A convolution with or without a bias, and batch norm, in float64."""
    bias = state.get(f"{conv}.bias")
    y = F.conv2d(x, state[f"{conv}.weight"].double(), bias if bias is None else bias.double())
    leaves = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(y, *(state[f"{norm}.{leaf}"].double() for leaf in leaves), eps=eps)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


def test_matterport_computes_what_it_did(folder):
    """Folded layers against the unfolded, in float64: what remains is the rounding of float32."""
    source, checkpoint = converted(folder, "p4")
    ours = checkpoint["model"]
    x = noise(2, 256, 7, 7)
    close(frozen(x, ours, "backbone.layer1.1.conv1"), usual(x, source, "fpn.C2.1.conv1", "fpn.C2.1.bn1", 1e-3))
    close(
        frozen(x, ours, "backbone.layer2.0.shortcut"),
        usual(x, source, *(f"fpn.C3.0.downsample.{i}" for i in (0, 1)), 1e-3),
    )
    first = usual(x, source, "classifier.conv1", "classifier.bn1", 1e-3)  # [2, 1024, 1, 1]
    ours_first = F.linear(x.flatten(1), ours["box_head.fcs.0.weight"].double(), ours["box_head.fcs.0.bias"].double())
    close(ours_first, first.flatten(1))
    second = usual(first.relu(), source, "classifier.conv2", "classifier.bn2", 1e-3)
    close(
        F.linear(ours_first.relu(), ours["box_head.fcs.1.weight"].double(), ours["box_head.fcs.1.bias"].double()),
        second.flatten(1),
    )
    conv = F.conv2d(x, ours["mask_head.convs.2.weight"].double(), ours["mask_head.convs.2.bias"].double())
    close(conv, usual(x, source, "mask.conv3", "mask.bn3", 1e-3))
    y = noise(2, 512, 3, 3)
    pairs = F.conv2d(y, source["rpn.conv_class.weight"].double(), source["rpn.conv_class.bias"].double())
    probs = pairs.reshape(2, 3, 2, 3, 3).softmax(2)[:, :, 1]  # anchor * 2 + (background, foreground)
    logits = F.conv2d(y, ours["rpn.objectness.weight"].double(), ours["rpn.objectness.bias"].double())
    close(logits.sigmoid(), probs)
    assert torch.equal(ours["rpn.deltas.weight"], source["rpn.conv_bbox.weight"])
    assert torch.equal(ours["box_head.box_deltas.bias"], source["classifier.linear_bbox.bias"])
    assert torch.equal(ours["mask_head.upsample.weight"], source["mask.deconv.weight"])
    assert torch.equal(ours["backbone.stem.weight"], source["fpn.C1.0.weight"])
    assert torch.equal(ours["fpn.output.3.weight"], source["fpn.P5_conv2.1.weight"])


def test_port2018_is_keras_bit_for_bit(folder):
    keras, port = converted(folder, "p4")[1], converted(folder, "p1")[1]
    assert same(keras["model"], port["model"])
    assert keras["config"] == port["config"]


def test_torchvision_v2_computes_what_it_did(folder):
    source, checkpoint = converted(folder, "p3_v2")
    ours, x = checkpoint["model"], noise(2, 256, 5, 5)
    body = "backbone.body.layer1.1."
    close(frozen(x, ours, "backbone.layer1.1.conv1"), usual(x, source, f"{body}conv1", f"{body}bn1", 1e-5))
    for name, theirs in {
        "fpn.lateral.0": "backbone.fpn.inner_blocks.0",
        "fpn.output.2": "backbone.fpn.layer_blocks.2",
        "box_head.convs.3": "roi_heads.box_head.3",
        "mask_head.convs.0": "roi_heads.mask_head.0",
    }.items():
        folded = F.conv2d(x, ours[f"{name}.weight"].double(), ours[f"{name}.bias"].double())
        close(folded, usual(x, source, f"{theirs}.0", f"{theirs}.1", 1e-5))
    assert torch.equal(ours["box_head.fcs.0.weight"], source["roi_heads.box_head.5.weight"])
    assert torch.equal(ours["rpn.convs.1.weight"], source["rpn.head.conv.1.0.weight"])


def test_torchvisions_names_of_2019_and_of_today_are_the_same(light, tmp_path):
    published = numbered("p3_v1")
    today = dict(zip(golden_weights.keys("p3_v1_current"), published.values(), strict=True))
    assert published.keys() != today.keys()
    files = save(tmp_path / "a.pth", published), save(tmp_path / "b.pth", today)
    assert same(*(load_checkpoint(file)["model"] for file in files))


@pytest.mark.parametrize("name", ["p2_ms_r101", "p3_v2", "x101-32x4d"])
def test_saved_by_ddp_is_the_same(light, name, tmp_path):
    plain = numbered(name)
    wrapped = {f"module.{tensor}": value for tensor, value in plain.items()}
    extra = {"optimizer": {"lr": 1}, "scheduler": {}, "iteration": 7}
    files = save(tmp_path / "a.pth", plain), save(tmp_path / "b.pth", {"model": wrapped, **extra})
    assert same(*(load_checkpoint(file)["model"] for file in files))


def test_torchvision_with_batch_norms_that_count(light, tmp_path):
    """The usual batch norm has eps 1e-5; the published v1 has frozen ones with eps 0."""
    var = {"backbone__body__bn1__running_var": torch.full((64,), 0.25)}
    frozen_norm = load_checkpoint(save(tmp_path / "a.pth", stand_in("p3_v1", **var)))
    counts = {"backbone__body__bn1__num_batches_tracked": torch.tensor(3)}
    counting = load_checkpoint(save(tmp_path / "b.pth", stand_in("p3_v1", **var, **counts)))
    name = "backbone.stem.norm.running_var"
    assert frozen_norm["model"][name].unique().tolist() == [0.25]
    assert torch.equal(counting["model"][name], torch.full((64,), 0.25 + 1e-5, dtype=torch.float64).float())


FORMAT_OF = {source.name: source for source in FORMATS}


def test_eps_of_torchvision_follows_what_the_file_tells():
    """Frozen batch norms have eps 0 in the published ResNet-50 only; where nothing tells, it may be given."""
    published, usual = FORMAT_OF["torchvision"], ["x.num_batches_tracked"]
    assert _eps(published, [], "resnet50", None) == 0
    assert _eps(published, [], "resnet50", 1e-5) == 1e-5
    assert _eps(published, [], "resnet18", None) == 1e-5
    assert _eps(published, usual, "resnet50", None) == 1e-5
    with pytest.raises(ValueError, match="eps 0 contradicts the checkpoint, whose batch norms have 1e-05"):
        _eps(published, usual, "resnet50", 0.0)
    with pytest.raises(ValueError, match="eps 0 contradicts"):
        _eps(FORMAT_OF["mmdet"], [], "resnet50", 0.0)


def test_half_precision_and_strided_sources(tmp_path):
    state = stand_in("p3_v1")
    weight = golden_weights.fill_peer("w", (64, 3, 7, 7))
    state["backbone.body.conv1.weight"] = torch.from_numpy(weight).half().to(memory_format=torch.channels_last)
    stem = load_checkpoint(save(tmp_path / "half.pth", state))["model"]["backbone.stem.weight"]
    assert torch.equal(stem, torch.from_numpy(weight).half().float())
    assert stem.is_contiguous()


############################################################
#  Keras' files
############################################################


def write_layout(path, layers=None, root=None, text=False, split=False, suffix=""):
    """An .h5 with zeros that take no space, in one of the ways that Keras has written it."""
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        layers = golden_weights.keras_layers() if layers is None else layers
        kind = str if text else str.encode
        encode = lambda names: np.array([kind(name) for name in names], h5py.string_dtype() if text else None)  # noqa: E731
        names = [layer for layer, _ in layers]
        if split:
            top.attrs["layer_names0"], top.attrs["layer_names1"] = encode(names[:100]), encode(names[100:])
        else:
            top.attrs["layer_names"] = encode(names)
        for layer, weights in layers:
            group = top.create_group(layer)
            weights = [(re.sub("/", f"{suffix}/", weight, count=1), shape) for weight, shape, *_ in weights]
            group.attrs["weight_names"] = encode([weight for weight, _ in weights]) if weights else np.array([])
            for weight, shape in weights:
                group.create_dataset(weight, shape, np.float32)
    return path


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"root": "model_weights"},
        {"text": True},
        {"split": True},
        {"suffix": "_1"},
        {"split": True, "text": True, "suffix": "_2"},
    ],
    ids=str,
)
def test_keras_variants(light, variant, tmp_path):
    path = write_layout(tmp_path / "no_suffix", **variant)
    if "root" in variant:
        with h5py.File(path, "a") as file:
            file.create_group("optimizer_weights")
    checkpoint = load_checkpoint(path)
    assert checkpoint["config"]["BACKBONE"] == "resnet101"
    assert checkpoint["config"]["NUM_CLASSES"] == 81


def test_keras_of_tensorflow_2_in_training_mode(light, tmp_path):
    layers = [*golden_weights.keras_layers(), ("anchors", [("anchors/Variable:0", (1, 261888, 4))])]
    path = write_layout(tmp_path / "a.h5", layers=layers)
    with h5py.File(path, "a") as file:
        file.create_group("top_level_model_weights")
    assert len(load_checkpoint(path)["model"]) == 562
    flat = [*golden_weights.keras_layers(), ("anchors", [("Variable:0", (1, 261888, 4))])]
    assert len(load_checkpoint(write_layout(tmp_path / "b.h5", layers=flat))["model"]) == 562


def test_keras_resnet50_finetuned_on_other_classes(light, tmp_path, capsys):
    layers = []
    for layer, weights in golden_weights.keras_layers():
        if re.match(r"(res|bn)4[g-w]_", layer):
            continue
        if layer in ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask"):
            weights = [(w, (*shape[:-1], shape[-1] // 81 * 3), peer) for w, shape, peer in weights]
        layers.append((layer, weights))
    path = write_layout(tmp_path / "mask_rcnn_balloon_0030.h5", layers=layers)
    assert load_checkpoint(path)["class_names"] == ["BG", "class 1", "class 2"]
    assert 'no names of classes: they are called "class 1" to "class 2"; --classes FILE' in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"class_names has 3 names, .* has 2 classes and a background; leave the background out"
    ):
        load_checkpoint(path, class_names=["BG", "balloon", "string"])
    checkpoint = load_checkpoint(path, class_names=["balloon", "string"])
    assert checkpoint["config"]["BACKBONE"] == "resnet50"
    assert checkpoint["config"]["NAME"] == "mask_rcnn_balloon_0030"
    assert checkpoint["class_names"] == ["BG", "balloon", "string"]
    assert checkpoint["category_ids"] == [0, 1, 2]


def test_keras_files_that_are_wrong(tmp_path):
    layers = golden_weights.keras_layers()
    without = [(name, weights[:1] if name == "fpn_p3" else weights) for name, weights in layers]
    with pytest.raises(ValueError, match=r"missing 1 .*fpn\.output\.1\.bias"):
        load_checkpoint(write_layout(tmp_path / "a.h5", layers=without))
    with pytest.raises(ValueError, match=r"missing 4 .*mask_head\.convs\.1\.norm\.bias"):
        load_checkpoint(
            write_layout(tmp_path / "b.h5", layers=[pair for pair in layers if pair[0] != "mrcnn_mask_bn2"])
        )
    with pytest.raises(ValueError, match=r"left over 1: extra_dense\.kernel"):
        load_checkpoint(
            write_layout(tmp_path / "c.h5", layers=[*layers, ("extra_dense", [("extra_dense/kernel:0", (2, 2))])])
        )
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_group("_layer_checkpoint_dependencies")
    with pytest.raises(ValueError, match=r"not Keras weights.*_layer_checkpoint_dependencies"):
        load_checkpoint(tmp_path / "d.h5")
    data = write_layout(tmp_path / "e.h5").read_bytes()
    (tmp_path / "e.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_checkpoint(tmp_path / "e.h5")


############################################################
#  Style, pixels and classes
############################################################

CAFFE_TEXT = """model = dict(
    type='MaskScoringRCNN',
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]))))
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [dict(
        type='Normalize',
        mean=[102.9801, 115.9465, 122.7717],
        std=[1.0, 1.0, 1.0],
        to_rgb=False)]
"""
PYTORCH_TEXT = """data_preprocessor=dict(
    bgr_to_rgb=True, mean=[
        123.675,
        116.28,
        103.53,
    ], std=[58.395, 57.12, 57.375]), backbone=dict(style='pytorch')
"""


@pytest.fixture
def mmdet(light, tmp_path):
    """A function that converts an R-50 of mmdetection under a file name, with what is stored beside the weights."""
    stem = torch.arange(3.0).reshape(1, 3, 1, 1).expand(64, 3, 7, 7)

    def run(file_name, style=None, class_names=None, **meta):
        state = stand_in("r50", backbone__conv1__weight=stem)
        return load_checkpoint(save(tmp_path / file_name, {"meta": meta, "state_dict": state}), style, class_names)

    return run


def test_style_from_name_text_and_argument(mmdet):
    for name in ("ms_rcnn_r50_caffe_fpn_1x_coco_20200702_180848-61c9355e.pth", "ms-rcnn_r50-caffe_fpn_1x_coco.pth"):
        config = mmdet(name)["config"]
        assert (config["BACKBONE_STYLE"], config["STD_PIXEL"]) == ("caffe", [1, 1, 1])
        assert config["MEAN_PIXEL"] == [123.675, 116.28, 103.53]
    config = mmdet("mask_rcnn_r50_fpn_1x_coco.pth")["config"]
    assert (config["BACKBONE_STYLE"], config["STD_PIXEL"]) == ("pytorch", [58.395, 57.12, 57.375])
    with pytest.raises(ValueError, match=r"epoch_12\.pth does not tell whether .*--style"):
        mmdet("epoch_12.pth")
    assert mmdet("epoch_12.pth", style="caffe")["config"]["BACKBONE_STYLE"] == "caffe"
    assert mmdet("r50_caffe_fpn.pth", style="pytorch")["config"]["BACKBONE_STYLE"] == "pytorch"
    with pytest.raises(ValueError, match="style must be caffe or pytorch, not 'tf'"):
        mmdet("epoch_12.pth", style="tf")


def test_style_and_pixels_from_the_stored_config(mmdet):
    checkpoint = mmdet("r50_fpn.pth", config=CAFFE_TEXT)  # mmdetection 2
    assert checkpoint["config"]["BACKBONE_STYLE"] == "caffe"
    assert checkpoint["config"]["MEAN_PIXEL"] == [122.7717, 115.9465, 102.9801]
    assert checkpoint["config"]["STD_PIXEL"] == [1, 1, 1]
    assert checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    checkpoint = mmdet("caffe.pth", cfg=PYTORCH_TEXT)  # mmdetection 3
    assert checkpoint["config"]["BACKBONE_STYLE"] == "pytorch"
    assert checkpoint["config"]["MEAN_PIXEL"] == [123.675, 116.28, 103.53]
    assert checkpoint["config"]["STD_PIXEL"] == [58.395, 57.12, 57.375]
    assert checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist() == [0, 1, 2]
    checkpoint = mmdet(
        "epoch_1.pth", config=PYTORCH_TEXT + CAFFE_TEXT
    )  # early mmdetection 2: a base, then what it changes
    assert checkpoint["config"]["BACKBONE_STYLE"] == "caffe"
    assert checkpoint["config"]["MEAN_PIXEL"] == [122.7717, 115.9465, 102.9801]
    with pytest.raises(ValueError, match=r"style 'pytorch' contradicts .*, which is caffe: what is stored"):
        mmdet("a.pth", style="pytorch", config=CAFFE_TEXT)


def test_style_that_cannot_be(light, tmp_path):
    with pytest.raises(ValueError, match=r"style 'caffe' contradicts .*ResNeXts"):
        load_checkpoint(save(tmp_path / "a.pth", stand_in("x101-32x4d")), style="caffe")
    with pytest.raises(ValueError, match=r"style 'pytorch' contradicts .*, which is caffe"):
        load_checkpoint(save(tmp_path / "a.pth", stand_in("p1")), style="pytorch")
    with pytest.raises(ValueError, match=r"style 'caffe' contradicts .*, which is pytorch"):
        load_checkpoint(save(tmp_path / "a.pth", stand_in("p3_v1")), style="caffe")


def test_classes_of_coco(light, mmdet, tmp_path):
    checkpoint = mmdet("r50_fpn.pth", CLASSES=tuple(COCO_CATEGORIES[index] for index in COCO_IDS))
    assert checkpoint["class_names"][:3] == ["BG", "person", "bicycle"]
    assert checkpoint["class_names"][-1] == "toothbrush"
    assert checkpoint["category_ids"] == [0, *COCO_IDS]
    assert checkpoint["config"]["CATEGORY_IDS"] == checkpoint["category_ids"]
    names = load_checkpoint(save(tmp_path / "v1.pth", stand_in("p3_v1")))
    assert names["category_ids"] == list(range(91))
    assert names["class_names"][12] == "N/A"
    assert names["class_names"][13] == "stop sign"
    assert names["class_names"].count("N/A") == 10


def test_classes_of_others(mmdet):
    names = [f"kind {index}" for index in range(80)]
    for checkpoint in (
        mmdet("r50_fpn.pth", class_names=names),
        mmdet("r50_fpn.pth", CLASSES=tuple(names)),
        mmdet("r50_fpn.pth", dataset_meta={"classes": tuple(names), "palette": []}),
    ):
        assert checkpoint["class_names"] == ["BG", *names]
        assert checkpoint["category_ids"] == list(range(81))
        assert checkpoint["config"]["NAME"] == "r50_fpn"
    with pytest.raises(ValueError, match=r"class_names has 2 names, but .* has 80 classes"):
        mmdet("r50_fpn.pth", class_names=["a", "b"])


def test_finetuned_torchvision(light, tmp_path):
    state = stand_in("p3_v1")
    for name, tensor in state.items():
        if "predictor" in name and len(tensor) % 91 == 0:
            state[name] = tensor[: len(tensor) // 91 * 2]
    path = save(tmp_path / "pedestrians.pth", state)
    assert load_checkpoint(path)["class_names"] == ["BG", "class 1"]
    checkpoint = load_checkpoint(path, class_names=["pedestrian"])
    assert checkpoint["config"]["NUM_CLASSES"] == 2
    assert list(checkpoint["model"]["box_head.box_deltas.weight"].shape) == [8, 1024]


def test_class_files(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeff# my classes\ncat\n\n  hot dog \n# end\n", encoding="utf-8")
    assert read_class_names(path) == ["cat", "hot dog"]
    for text, match in {"cat\ncat": "once.*cat", "# none": "it names none", "BG\ncat": "background is class 0"}.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            read_class_names(path)
    path.write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(ValueError, match="UTF-8"):
        read_class_names(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_class_names(tmp_path / "none.txt")


def test_plain_mask_rcnn_of_mmdet(light, tmp_path):
    state = {name: tensor for name, tensor in stand_in("r50").items() if "mask_iou" not in name}
    checkpoint = load_checkpoint(save(tmp_path / "mask_rcnn_r50_fpn.pth", {"state_dict": state}))
    assert not checkpoint["config"]["USE_MASKIOU_HEAD"]
    assert not any(name.startswith("maskiou") for name in checkpoint["model"])


############################################################
#  ImageNet
############################################################


@pytest.mark.parametrize(
    "backbone", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d"]
)
def test_imagenet(light, backbone, tmp_path):
    checkpoint = load_checkpoint(save(tmp_path / "x.pth", imagenet_state(backbone)))
    config = Config.from_dict(checkpoint["config"])
    assert (config.BACKBONE, config.BACKBONE_STYLE, checkpoint["class_names"]) == (backbone, "pytorch", None)
    expected = model.network_shapes(config, only_backbone=True)
    assert {name: tensor.shape for name, tensor in checkpoint["model"].items()} == expected
    assert checkpoint["model"]["backbone.stem.norm.running_var"][0] == np.float32(1 + 1e-5)
    path = tmp_path / "ours.pth"
    write_checkpoint(path, checkpoint)
    assert same(load_checkpoint(path)["model"], checkpoint["model"])
    with pytest.raises(ValueError, match="is a backbone alone"):
        load_model(path)
    assert "the backbone alone" in describe(checkpoint)


def test_imagenet_of_caffe(light, tmp_path):
    """OpenMMLab's files for detectors of caffe style: BGR pixels minus the mean, a bias that mmdetection ignores."""
    state = imagenet_state("resnet50") | {"conv1.bias": torch.zeros(64)}
    state["conv1.weight"] = torch.arange(3.0)[None, :, None, None].expand(64, 3, 7, 7)
    checkpoint = load_checkpoint(save(tmp_path / "x.pth", state))
    config = Config.from_dict(checkpoint["config"])
    assert (config.BACKBONE_STYLE, config.MEAN_PIXEL, config.STD_PIXEL) == (
        "caffe",
        (123.675, 116.28, 103.53),
        (1.0, 1.0, 1.0),
    )
    assert checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"style 'pytorch' contradicts .* which is caffe"):
        load_checkpoint(tmp_path / "x.pth", "pytorch")


def test_backbones_of_no_name(tmp_path):
    state = {name: value for name, value in imagenet_state("resnet50").items() if not name.startswith("layer3.5")}
    save(tmp_path / "x.pth", state)
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 3\) bottleneck blocks .* none of resnet18"):
        load_checkpoint(tmp_path / "x.pth")
    state = imagenet_state("resnet50")
    for block in range(3):  # ResNeXt-50 32x4d
        state[f"layer1.{block}.conv2.weight"] = torch.zeros(128, 4, 3, 3)
    save(tmp_path / "x.pth", state)
    with pytest.raises(ValueError, match="128 channels in 32 groups"):
        load_checkpoint(tmp_path / "x.pth")


############################################################
#  Foreign files in MaskRCNN.load_weights
############################################################


@pytest.fixture
def drawn(monkeypatch):
    """Names of the tensors that load_weights draws anew. No numbers are drawn, which would take seconds."""
    names = []
    monkeypatch.setattr(model, "initialise", lambda network, some=None: names.extend(some or []))
    return names


# The file: settings of a model that takes its weights, and what the report calls the file's format.
FOREIGN = {
    "p1": ({"DIALECT": "matterport", "USE_MASKIOU_HEAD": False}, "2018 PyTorch port"),
    "p2_ms_r50": ({"DIALECT": "benchmark", "BACKBONE": "resnet50"}, "the paper's code"),
    "p3_v1": ({"DIALECT": "torchvision", "BACKBONE": "resnet50", "USE_MASKIOU_HEAD": False}, "torchvision's Mask"),
    "r50-caffe": ({"BACKBONE": "resnet50", "BACKBONE_STYLE": "caffe", "STD_PIXEL": (1, 1, 1)}, "mmdetection 2 or 3"),
}
CLASS_LAYERS = {
    "box_head.class_logits", "box_head.box_deltas", "mask_head.mask_logits", "maskiou_head.maskious"
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_load_weights_takes_foreign_files(light, drawn, name, tmp_path, capsys):
    """All tensors with as many classes; those without classes with another number; none under another dialect."""
    settings, title = FOREIGN[name]
    path = save(tmp_path / "epoch_12.pth", {"state_dict": numbered(name)})  # of mmdetection, the style is the model's
    converted = load_checkpoint(path, settings.get("BACKBONE_STYLE"))["model"]
    network = model.MaskRCNN(Config(**settings, NUM_CLASSES=91 if name == "p3_v1" else 81))
    network.load_weights(path)
    assert same(dict(network.state_dict()), converted)
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in network.source
    printed = capsys.readouterr().out
    assert title in printed
    assert f"loaded: {len(converted)} of the model's {len(converted)} tensors" in printed
    network = model.MaskRCNN(Config(**settings, NUM_CLASSES=3))
    with pytest.raises(ValueError, match="does not fit the model; nothing was loaded"):
        network.load_weights(path)
    network.load_weights(path, by_name=True)
    expected = {tensor for tensor in converted if tensor.rpartition(".")[0] in CLASS_LAYERS}
    assert set(drawn) == expected
    for tensor, value in network.state_dict().items():
        assert tensor in expected or torch.equal(value, converted[tensor]), tensor
    other = "mmdet" if settings.get("DIALECT") == "torchvision" else "torchvision"
    with pytest.raises(ValueError, match=f"made for DIALECT = .*, but the model has {other}"):
        model.MaskRCNN(Config(DIALECT=other, BACKBONE="resnet18")).load_weights(path, by_name=True)


def test_load_weights_of_matterports_file(drawn, tmp_path):
    """As Matterport's balloon.py loads mask_rcnn_coco.h5, and then its own, whose classes have no names."""
    settings = {"DIALECT": "matterport", "USE_MASKIOU_HEAD": False, "CLASS_NAMES": ("BG", "balloon")}
    heads = ["mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox", "mrcnn_mask"]
    network = model.MaskRCNN(Config(**settings, NUM_CLASSES=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    network.load_weights(write_layout(tmp_path / "mask_rcnn_coco.h5"), by_name=True, exclude=heads)
    for name, tensor in network.named_parameters():
        assert (tensor == (7 if name.rpartition(".")[0] in CLASS_LAYERS else 0)).all(), name
    assert drawn == []
    layers = []
    for layer, weights in golden_weights.keras_layers():
        if layer in ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask"):
            weights = [(w, (*shape[:-1], shape[-1] // 81 * 2), peer) for w, shape, peer in weights]
        layers.append((layer, weights))
    network.load_weights(write_layout(tmp_path / "mask_rcnn_balloon_0030.h5", layers=layers))
    assert all((tensor == 0).all() for tensor in network.parameters())
    assert network.class_names == ["BG", "balloon"]


def test_copy_classes_of_a_foreign_file(light, drawn, tmp_path):
    """torchvision's 91 classes have ten of the name N/A, and rows all the same."""
    state = numbered("p3_v1")
    state["roi_heads.box_predictor.cls_score.bias"] = torch.arange(91.0)
    settings = {**FOREIGN["p3_v1"][0], "CLASS_NAMES": ("BG", "toothbrush", "unicorn", "person"), "NUM_CLASSES": 4}
    network = model.MaskRCNN(Config(**settings))
    with torch.no_grad():
        network.box_head.class_logits.bias.fill_(-1)
    network.load_weights(save(tmp_path / "v1.pth", state), copy_classes=True)
    assert network.box_head.class_logits.bias.tolist() == [0, 90, -1, 1]


def test_load_weights_of_an_imagenet_file(light, drawn, tmp_path):
    path = save(tmp_path / "resnet18.pth", imagenet_state("resnet18"))
    network = model.MaskRCNN(Config(BACKBONE="resnet18"))
    network.load_weights(path, by_name=True, copy_classes=True)
    assert (network.backbone.stem.weight == 1).all()
    with pytest.raises(ValueError, match="these weights were made for BACKBONE = resnet18"):
        model.MaskRCNN(Config(BACKBONE="resnet34")).load_weights(path, by_name=True)


############################################################
#  Files that are wrong
############################################################


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("write", ["zip", "legacy", "pickle", "nested"])
def test_code_is_never_run(write, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "was_run"
    if write == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Evil(trace)}, protocol=2))
    elif write == "nested":
        save(path, {"state_dict": stand_in("p3_v1"), "meta": {"deep": [Evil(trace)]}})
    else:
        save(path, {"a": Evil(trace)}, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_checkpoint(path)
    assert not trace.exists()


def test_code_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds a Python object that is no weight: \w+\.system\. It could run code"):
        load_checkpoint(save(tmp_path / "evil.pth", {"a": Evil(tmp_path / "x")}))
    with pytest.raises(ValueError, match=r"no weight: torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint(save(tmp_path / "whole.pth", {"model": torch.nn.Linear(2, 2)}))


def test_containers_of_published_files(light, tmp_path, monkeypatch):
    """mmengine's logs and NumPy's numbers lie in mmdetection's files. They are skipped, not built."""

    class HistoryBuffer:
        def __init__(self):
            self.log_history = np.arange(3.0)

        def min(self):
            return min(self.log_history)

        def __getstate__(self):
            return {**self.__dict__, "statistics_methods": {"min": HistoryBuffer.min}}

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for thing, name in ((HistoryBuffer, "HistoryBuffer"), (HistoryBuffer.min, "HistoryBuffer.min")):
        thing.__module__, thing.__qualname__ = module.__name__, name
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        contents = {
            "meta": OrderedDict(epoch=np.int64(3), loss=np.float64(0.5)),
            "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
            "optimizer": {"state": {}},
            "state_dict": stand_in("x101-32x4d"),
        }
        path = save(tmp_path / "epoch_12.pth", contents)
    checkpoint, report = load_with_report(path)
    assert checkpoint["config"]["BACKBONE"] == "resnext101_32x4d"
    assert {"message_hub", "optimizer", "meta"} <= set(report.dropped)


def test_missing_and_useless_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)
    path = tmp_path / "file.pth"
    for content, match in {
        b"": "is empty",
        b"<!DOCTYPE html><html>Sign in</html>": "is a web page",
        b"\n  <html lang='en'>Quota exceeded</html>": "is a web page",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git-lfs pointer",
        b"hello world, this is no checkpoint": "neither a file of torch.save nor HDF5.*hello",
        b"\x80\x04garbage": "is truncated or damaged",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model.pth", b"1")
    with pytest.raises(ValueError, match=r"zip archive that torch did not write \(weights/model\.pth\)"):
        load_checkpoint(path)


def test_formats_of_torch_that_hold_no_plain_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/model.py"):
            archive.writestr(name, b"1")
    with pytest.raises(ValueError, match="TorchScript"):
        load_checkpoint(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ValueError, match="a tar archive"):
        load_checkpoint(tmp_path / "old.tar")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated(zipped, part, tmp_path):
    stream = io.BytesIO()
    torch.save({"a": torch.rand(1000), "b": torch.rand(1000)}, stream, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "part.pth"
    path.write_bytes(stream.getvalue()[: int(part * stream.tell())])
    with pytest.raises(ValueError, match=r"part\.pth is truncated or damaged"):
        load_checkpoint(path)


def test_legacy_files(light, tmp_path):
    files = [save(tmp_path / f"{new}.pth", numbered("p1"), _use_new_zipfile_serialization=new) for new in (True, False)]
    assert same(*(load_checkpoint(file)["model"] for file in files))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {}}, {"model": {"a": 1}}], ids=str)
def test_no_state_dict(content, tmp_path):
    with pytest.raises(ValueError, match=r"no state dict|where a checkpoint is a dict"):
        load_checkpoint(save(tmp_path / "x.pth", content))


def test_unknown_formats(tmp_path):
    path = save(tmp_path / "x.pth", {"encoder.weight": torch.zeros(2)})
    with pytest.raises(
        ValueError, match=r"of no known format\. Looked for names as keras: mrcnn_.* It has encoder\.weight"
    ):
        load_checkpoint(path)
    old = {name.replace("roi_head.", ""): value for name, value in stand_in("r50").items()}
    with pytest.raises(ValueError, match=r"mmdetection 1\.x"):
        load_checkpoint(save(path, {"state_dict": old}))
    rows = {"roi_head__mask_head__conv_logits__weight": torch.zeros(1).expand(81, 256, 1, 1)}
    rows["roi_head__bbox_head__fc_reg__weight"] = torch.zeros(1).expand(324, 1024)
    with pytest.raises(ValueError, match=r"81 rows .* as mmdetection 1\.x"):
        load_checkpoint(save(path, {"state_dict": stand_in("r50", **rows)}))
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \[2\], expected two dimensions or more"):
        load_checkpoint(save(path, {"model": {"backbone.bottom_up.stem.conv1.weight": torch.zeros(2)}}))
    with pytest.raises(ValueError, match="bare state dict of this project"):
        load_checkpoint(save(path, tiny_model().state_dict()))


BROKEN = {
    "r50": ("roi_head.mask_iou_head.fc_mask_iou.bias", r"maskiou_head\.maskious\.bias"),
    "p1": ("fpn.C4.7.bn2.running_mean", r"backbone\.layer3\.7\.conv2\.norm\.running_mean"),
    "p2_ms_r50": ("rpn.head.bbox_pred.weight", r"rpn\.deltas\.weight"),
    "p3_v1": ("backbone.fpn.layer_blocks.2.bias", r"fpn\.output\.2\.bias"),
    "p3_v2": ("roi_heads.mask_head.1.1.running_var", r"mask_head\.convs\.1\.norm\.running_var"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_missing_renamed_misshaped_and_nan(name, tmp_path):
    tensor, ours = BROKEN[name]
    path, state = tmp_path / "x_r50_fpn.pth", stand_in(name)
    value = state.pop(tensor)
    with pytest.raises(ValueError, match=rf"missing 1 .*: {ours}$"):
        load_checkpoint(save(path, state))
    with pytest.raises(ValueError, match=rf"missing 1 .*: {ours}; left over 1: {re.escape(tensor)}x"):
        load_checkpoint(save(path, {**state, f"{tensor}x": value}))
    with pytest.raises(ValueError, match=rf"left over 1: {re.escape(tensor)}x"):
        load_checkpoint(save(path, {**state, tensor: value, f"{tensor}x": value}))
    nan = torch.zeros(value.shape)
    nan.view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match=rf"tensor {re.escape(tensor)} has 1 of {value.numel()} values that are NaN"):
        load_checkpoint(save(path, {**state, tensor: nan}))
    with pytest.raises(ValueError, match=r"float|dimension"):
        load_checkpoint(save(path, {**state, tensor: torch.tensor(1)}))
    with pytest.raises(ValueError, match=r"dimension|no numbers"):
        load_checkpoint(save(path, {**state, tensor: torch.zeros(0)}))


def test_misshaped_says_what_was_expected(tmp_path):
    path = tmp_path / "x_r50_fpn.pth"
    changed = {"neck__fpn_convs__1__conv__weight": torch.zeros(1).expand(256, 256, 1, 1)}
    changed["backbone__layer1__0__conv2__weight"] = torch.zeros(1).expand(64, 32, 3, 3)
    with pytest.raises(ValueError, match=r"2 tensors of another shape") as caught:
        load_checkpoint(save(path, stand_in("r50", **changed)))
    assert (
        "neck.fpn_convs.1.conv.weight -> fpn.output.1.weight: got [256, 256, 1, 1], expected [256, 256, 3, 3]"
        in str(caught.value)
    )
    assert "got [64, 32, 3, 3], expected [64, 64, 3, 3]" in str(caught.value)
    for name, rows, match in (
        ("roi_head.bbox_head.fc_cls.weight", 61, r"got \[61, 1024\], expected \[81, 1024\]"),
        ("roi_head.bbox_head.fc_reg.weight", 321, "has 321 rows; expected a multiple of 4"),
        (
            "roi_head.mask_head.conv_logits.weight",
            70,
            r"got \[71, 256, 1, 1\], in the file \[70, 256, 1, 1\], expected \[81",
        ),
        ("backbone.bn1.running_mean", 65, "65 numbers in running_mean for 64 channels"),
    ):
        state = stand_in("r50")
        state[name] = torch.zeros(1).expand(rows, *state[name].shape[1:])
        with pytest.raises(ValueError, match=match):
            load_checkpoint(save(path, state))


def test_variances_that_cannot_be(tmp_path):
    name = "backbone__body__stem__bn1__running_var"
    with pytest.raises(ValueError, match=r"stem\.bn1\.running_var is a variance and has negative values, down to -1"):
        load_checkpoint(save(tmp_path / "x.pth", stand_in("p2_ms_r50", **{name: -torch.ones(64)})))
    with pytest.raises(ValueError, match=r"running_var.* has zeros"):
        load_checkpoint(save(tmp_path / "x.pth", stand_in("p2_ms_r50", **{name: torch.zeros(64)})))


############################################################
#  Our own
############################################################


@pytest.fixture(scope="module")
def ours(folder):
    """A small checkpoint of ours, as MaskRCNN.save writes it."""
    names = ("BG", "cell", "nucleus")
    config = Config(
        NAME="cells",
        BACKBONE="resnet18",
        BACKBONE_WIDTH=0.25,
        CLASS_NAMES=names,
        NUM_CLASSES=3,
        TOP_DOWN_PYRAMID_SIZE=16,
        RPN_CHANNELS=16,
        FPN_CLASSIF_FC_LAYERS_SIZE=16,
        MASK_HEAD_CHANNELS=16,
        MASKIOU_HEAD_CHANNELS=16,
        MASKIOU_FC_LAYERS_SIZE=16,
    )
    network = model.MaskRCNN(config)
    path = folder / "cells.pth"
    network.save(path)
    return path, torch.load(path, weights_only=True)


def test_ours_comes_back(ours, tmp_path):
    path, contents = ours
    checkpoint = load_checkpoint(path)
    assert same(checkpoint["model"], contents["model"])
    assert checkpoint["config"] == contents["config"]
    assert (checkpoint["class_names"], checkpoint["source"]) == (contents["class_names"], contents["source"])
    half = {**contents, "optimizer": {}, "model": {name: tensor.half() for name, tensor in contents["model"].items()}}
    checkpoint = load_checkpoint(save(tmp_path / "half.pth", half), class_names=["a", "b"])
    assert set(checkpoint) == set(CHECKPOINT_KEYS)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint["model"].values())
    assert checkpoint["class_names"] == ["BG", "a", "b"]
    assert (
        load_model(save(tmp_path / "half.pth", half), "cpu", DETECTION_MAX_INSTANCES=7).config.DETECTION_MAX_INSTANCES
        == 7
    )


def test_ours_is_read_and_checked_once(ours, monkeypatch):
    calls = []

    def check(*arguments, **options):
        calls.append("checked")
        check_values(*arguments, **options)

    def read(path):
        calls.append("read")
        return load_torch_file(path)

    monkeypatch.setattr("weights.checkpoint.check_values", check)
    monkeypatch.setattr("weights.convert.load_torch_file", read)
    load_model(ours[0], "cpu")
    assert calls == ["read", "checked"]
    load_checkpoint(ours[0])
    assert calls == ["read", "checked"] * 2
    checkpoint = read_checkpoint(ours[0])
    assert read_checkpoint(checkpoint) is checkpoint
    with pytest.raises(ValueError, match="the checkpoint says dialect 'tf'"):
        read_checkpoint({**checkpoint, "dialect": "tf"})  # a changed copy is checked again


def test_tensors_are_stored_without_what_lies_beside_them(tmp_path):
    """torch.save writes a whole storage for a view; and what need not change is not copied."""
    row, plain = torch.rand(1000, 3)[5], torch.rand(4)
    contents = make_checkpoint(Config(), "a test", {"row": row, "plain": plain, "half": plain.half()})
    assert torch.equal(contents["model"]["row"], row)
    assert contents["model"]["row"].untyped_storage().nbytes() == 12
    assert contents["model"]["plain"].data_ptr() == plain.data_ptr()
    assert contents["model"]["half"].dtype == torch.float32
    write_checkpoint(tmp_path / "x.pth", contents)
    assert (tmp_path / "x.pth").stat().st_size < 10_000
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        write_checkpoint(tmp_path / "none" / "x.pth", contents)


def test_the_reader_of_ours_names_the_converter(tmp_path):
    for path in (save(tmp_path / "x.pth", {"model": {}}), write_layout(tmp_path / "x.h5", layers=[])):
        with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint of this project; `python convert_wei"):
            read_checkpoint(path)


def test_ours_that_is_wrong(ours, tmp_path):
    contents = ours[1]
    tensors = contents["model"]
    first = "fpn.output.0.bias"
    without = {name: tensor for name, tensor in tensors.items() if name != first}
    nan = {**tensors, first: torch.full_like(tensors[first], float("inf"))}
    for change, match in (
        ({"version": 2}, r"x\.pth is a checkpoint of version 2, this code reads 1"),
        ({"dialect": "tf"}, "dialect 'tf', its config 'mmdet'"),
        ({"config": {**contents["config"], "COLOUR": 1}}, "config that this code does not know: COLOUR"),
        ({"model": without}, rf"missing: {re.escape(first)} \[16\]"),
        ({"model": {**tensors, "extra": tensors[first]}}, r"not of this model: extra \[16\]"),
        ({"model": {**tensors, first: torch.zeros(3)}}, r"fpn\.output\.0\.bias is \[3\], the model's \[16\]"),
        ({"model": nan}, rf"{re.escape(first)} has 16 of 16 values"),
        ({"model": [1]}, "lacks a dict as model"),
        ({"model": {**tensors, first: tensors[first].long()}}, r"is torch\.int64, .*floating"),
        ({"class_names": ["BG"]}, "config that this code does not know: CLASS_NAMES"),
    ):
        path = save(tmp_path / "x.pth", {**contents, **change})
        for load in (load_checkpoint, load_model):
            with pytest.raises(ValueError, match=match):
                load(path)
    save(tmp_path / "x.pth", {key: contents[key] for key in contents if key != "category_ids"})
    with pytest.raises(ValueError, match="lacks category_ids"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="style 'caffe' contradicts"):
        load_checkpoint(ours[0], style="caffe")


############################################################
#  Published weights
############################################################


def test_published_models_say_how_to_train_them_anew():
    trainable = {name: published.settings for name, published in PUBLISHED.items() if published.settings}
    assert "coco" in trainable
    for name, settings in trainable.items():
        config, published = Config(**settings), PUBLISHED[name]
        assert (config.BACKBONE, config.BACKBONE_STYLE) in IMAGENET
        assert published.style == config.BACKBONE_STYLE
        assert config.SCHEDULE is not None
        assert f"_{config.SCHEDULE}_coco" in published.url
        assert model.network_shapes(config), "a network"
        _, mean, std = _pixels("", config.BACKBONE_STYLE)
        assert (mean, std) == (config.MEAN_PIXEL, config.STD_PIXEL)


@pytest.fixture
def server(tmp_path, ours, monkeypatch):
    """torchvision's file is on a local server, and is a small one of ours. Folders of models and cache are empty."""
    folder = tmp_path / "server"
    folder.mkdir()
    data = ours[0].read_bytes()
    (folder / "weights.pth").write_bytes(data)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/weights.pth"
        sha256 = hashlib.sha256(data).hexdigest()[:8]
        published = dataclasses.replace(PUBLISHED["torchvision"], url=url, sha256=sha256, style=None)
        monkeypatch.setitem(PUBLISHED, "torchvision", published)
        monkeypatch.setattr("weights.published.MODELS", tmp_path / "models")
        monkeypatch.setenv("MASKSCORING_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        running.shutdown()
        thread.join()


def test_names_are_looked_for_and_downloaded(server, tmp_path):
    cached = tmp_path / "cache" / "weights.pth"
    assert find_weights("torchvision") == cached
    assert cached.read_bytes() == (server / "weights.pth").read_bytes()
    (server / "weights.pth").unlink()  # now it has to be found
    assert find_weights("torchvision") == cached
    (tmp_path / "models").mkdir()
    cached.rename(tmp_path / "models" / "weights.pth")
    assert find_weights("torchvision") == tmp_path / "models" / "weights.pth"
    assert load_model("torchvision", "cpu").class_names == ["BG", "cell", "nucleus"]
    (tmp_path / "models" / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"weights\.pth has sha256 .*, expected .* Remove it"):
        find_weights("torchvision")


def test_download_of_another_file(server, tmp_path):
    (server / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"(?i)sha256|hash"):
        find_weights("torchvision")
    assert not (tmp_path / "cache" / "weights.pth").exists()


def test_offline(server, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("weights.published.download", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        find_weights("torchvision")
    for text in ("no route to host", PUBLISHED["torchvision"].url, str(tmp_path / "models"), str(tmp_path / "cache")):
        assert text in str(caught.value)


def test_names_that_are_none(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"1")
    assert find_weights(path) == path
    with pytest.raises(
        ValueError, match=r"'torchvison' is neither a file nor one of coco, .*; did you mean torchvision\?"
    ):
        find_weights("torchvison")
    for missing in ("none.pth", "folder/none", tmp_path / "none.h5"):
        with pytest.raises(FileNotFoundError, match="none"):
            find_weights(missing)
    with pytest.raises(ValueError, match="is a folder"):
        find_weights(tmp_path)


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("MASKSCORING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/mask-scoring-rcnn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/mask-scoring-rcnn").expanduser()


def test_imagenet_as_a_name(monkeypatch):
    monkeypatch.setattr("weights.published._fetch", lambda published: published.url)
    assert find_weights("imagenet", "resnet50", "pytorch").endswith("/resnet50-0676ba61.pth")
    assert find_weights("imagenet", "resnet152", "pytorch").endswith("/models/resnet152-394f9c45.pth")
    assert find_weights("imagenet", "resnet18", "caffe").endswith("/resnet18-f37072fd.pth")  # no 1x1 to have a stride
    assert find_weights("imagenet", "resnet50", "caffe").endswith("/third_party/resnet50_msra-5891d200.pth")
    assert find_weights("imagenet", "resnext101_32x4d").endswith("/third_party/resnext101_32x4d-a5af3160.pth")
    for backbone, style, match in (
        ("resnext101_32x4d", "caffe", r"published for resnext101_32x4d of caffe style .*--model PATH"),
        (None, None, "imagenet needs the backbone"),
    ):
        with pytest.raises(ValueError, match=match):
            find_weights("imagenet", backbone, style)
    with pytest.raises(ValueError, match="imagenet is a backbone alone"):
        load_model("imagenet")


def test_imagenet_weights_of_a_config(monkeypatch, tmp_path):
    monkeypatch.setattr("weights.published._fetch", lambda published: published.url)
    caffe = Config(BACKBONE="resnet50", BACKBONE_STYLE="caffe")
    assert imagenet_weights(caffe).endswith("/third_party/resnet50_msra-5891d200.pth")
    path = tmp_path / "mine.pth"
    caffe.IMAGENET_MODEL_PATH = str(path)
    with pytest.raises(FileNotFoundError, match=r"IMAGENET_MODEL_PATH .*mine\.pth must be a file .* no such file"):
        imagenet_weights(caffe)
    path.touch()
    assert imagenet_weights(caffe) == path


def test_the_style_of_a_published_checkpoint_is_known(monkeypatch, tmp_path):
    """A file in the cache may have any name, so the name of the model tells it; a wish is a wish."""
    styles = []
    monkeypatch.setattr("weights.load.find_weights", lambda name: Path("cached.pth"))
    monkeypatch.setattr(
        "weights.load.convert", lambda path, shapes, style, *rest, **more: styles.append((path, style)) or 1 / 0
    )
    for name, style, expected in (
        ("ms_rcnn_r50_caffe_fpn_1x_coco", None, "caffe"),
        ("ms_rcnn_x101_32x4d_fpn_1x_coco", None, "pytorch"),
        ("ms_rcnn_r50_caffe_fpn_1x_coco", "pytorch", "pytorch"),
        ("mine.pth", None, None),
    ):
        for load in (load_checkpoint, load_model):
            with pytest.raises(ZeroDivisionError):
                load(name, style=style)
            assert styles.pop() == (Path("cached.pth"), expected)
    monkeypatch.chdir(tmp_path)
    assert find_published("torchvision") is PUBLISHED["torchvision"]
    Path("torchvision").write_bytes(b"a file of that name")
    assert find_published("torchvision") is None


def test_load_model_of_a_foreign_file(light, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "initialise", lambda network: None)  # seconds of random numbers
    path = save(tmp_path / "ms_rcnn_r50_caffe.pth", {"state_dict": numbered("r50")})
    checkpoint, network = load_checkpoint(path), load_model(path, "cpu", DETECTION_MIN_CONFIDENCE=0.5)
    assert same(dict(network.state_dict()), checkpoint["model"])
    assert network.config.DETECTION_MIN_CONFIDENCE == 0.5
    assert network.config.BACKBONE_STYLE == "caffe"
    assert network.class_names == checkpoint["class_names"]


############################################################
#  Command line
############################################################


def test_command_line(light, tmp_path, capsys):
    source = save(tmp_path / "epoch_12.pth", {"state_dict": stand_in("r50"), "optimizer": {}})
    target, classes = tmp_path / "ours.pth", tmp_path / "classes.txt"
    classes.write_text("\n".join(f"kind {index}" for index in range(80)))
    arguments = [str(source), str(target), "--style", "caffe", "--classes", str(classes)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for text in (
        "mmdet",
        "mapped      321 tensors to 321",
        "BGR",
        "num_batches_tracked (53)",
        "optimizer",
        "resnet50, caffe",
        "kind 0",
    ):
        assert text in printed
    assert torch.load(target, weights_only=True)["class_names"][1] == "kind 0"
    before = target.read_bytes()
    for extra in ([], ["--force", "--style", "pytorch", "--classes", str(tmp_path / "none.txt")]):
        assert main([*arguments, *extra]) == 2
        assert target.read_bytes() == before
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_half_precision_is_stored_and_read_as_float32(tmp_path, capsys):
    """Matrices and filters in half of the bytes, to 11 bits; vectors, such as variances, as they are."""
    model = tiny_model()
    with torch.no_grad():
        model.backbone.stem.norm.running_var.fill_(1e5)  # beyond float16
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    model.save(source)
    assert main([str(source), str(target), "--half"]) == 0
    assert target.stat().st_size < 0.6 * source.stat().st_size
    stored, loaded = torch.load(target, weights_only=True), load_model(target, "cpu")
    for name, tensor in model.state_dict().items():
        assert stored["model"][name].dtype == (torch.float16 if tensor.ndim > 1 else tensor.dtype), name
        if tensor.is_floating_point():
            found = loaded.state_dict()[name]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, tensor, rtol=2**-11 if tensor.ndim > 1 else 0, atol=1e-7)
    with torch.no_grad():
        model.box_head.box_deltas.weight[0] = 1e5
    model.save(source)
    assert main([str(source), str(target), "--half", "--force"]) == 2
    assert "--half: box_head.box_deltas.weight has numbers beyond 65504" in capsys.readouterr().err


def test_settings_are_stored_with_the_weights(tmp_path, capsys):
    model = tiny_model(IMAGE_RESIZE_MODE="crop", CLASS_NAMES=("BG", "a", "b", "c"))
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    model.save(source)
    words = ["--set", "IMAGE_RESIZE_MODE=pad64", "--set", "CLASS_NAMES=BG,x,y,z"]
    assert main([str(source), str(target), *words]) == 0
    loaded = load_model(target, "cpu")
    assert loaded.config.IMAGE_RESIZE_MODE == "pad64"
    assert loaded.class_names == ["BG", "x", "y", "z"]
    stored = {**loaded.config.to_dict(), "IMAGE_RESIZE_MODE": "crop", "CLASS_NAMES": model.config.CLASS_NAMES}
    assert stored == {**model.config.to_dict(), "CLASS_NAMES": model.config.CLASS_NAMES}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    before = target.read_bytes()
    for setting, message in {
        "NUM_CLASSES=9": "CLASS_NAMES",
        "RPN_CHANNELS=24": "--set RPN_CHANNELS: the weights are of another network:\n  rpn.convs.0.weight is [16, 16",
        "USE_MASKIOU_HEAD=False": "of another network:\n  not of this model: maskiou_head",
        "RPN_CHANELS=24": "did you mean RPN_CHANNELS?",
    }.items():
        assert main([str(source), str(target), "--force", "--set", setting]) == 2
        assert message in capsys.readouterr().err
    assert target.read_bytes() == before


def test_embedded_models(tmp_path, monkeypatch):
    """Those that come with the project: by name, from assets/, and never from the network."""
    for name, path in EMBEDDED.items():
        found = find_weights(name)
        assert found == path
        assert name == load_model(name, "cpu").config.NAME
        assert path.stat().st_size < 24e6
    assert load_model("nuclei", device="cpu").source == "nuclei, trained by this project (docs/results.md)"
    assert load_model(EMBEDDED["nuclei"], device="cpu").source == "trained from nothing", "what the file itself says"
    monkeypatch.setitem(EMBEDDED, "shapes", tmp_path / "shapes.pth")
    with pytest.raises(FileNotFoundError, match=r"shapes should be in .*; `git checkout .*` restores it"):
        find_weights("shapes")


def test_command_line_errors(tmp_path, capsys):
    good = save(tmp_path / "epoch_12.pth", {"state_dict": stand_in("r50")})
    for source, target, message in (
        (tmp_path / "none.pth", tmp_path / "a.pth", "none.pth does not exist"),
        (good, tmp_path / "a.pth", "--style"),
        (good, tmp_path, "is a folder"),
        (good, tmp_path / "no" / "a.pth", "no does not exist"),
    ):
        assert main([str(source), str(target)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()

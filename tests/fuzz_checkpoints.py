"""Damaged checkpoints: a sentence that names the file, or the same weights as before."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import torch
from fuzzing import damaged_bytes, damaged_json, fuzz
from helpers import tiny_model

from config import Config
from model import network_shapes
from weights.keras_files import read_keras
from weights.load import load_checkpoint, load_model

NAME = "damaged.pth"


def saved(contents, zipped=True):
    """The bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(contents, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torchvision_contents():
    """A torchvision Mask R-CNN with a ResNet-18 and small heads, as its training script saves it. Weights repeat."""
    sizes = {"TOP_DOWN_PYRAMID_SIZE": 8, "RPN_CHANNELS": 8, "FPN_CLASSIF_FC_LAYERS_SIZE": 8, "MASK_HEAD_CHANNELS": 8}
    config = Config(DIALECT="torchvision", BACKBONE="resnet18", USE_MASKIOU_HEAD=False, NUM_CLASSES=3, **sizes)
    state = {}
    for number, (name, shape) in enumerate(network_shapes(config).items()):
        state[_in_torchvisions_words(name)] = torch.tensor(1 + number / 1000).expand(shape)
    return {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.02}]}, "epoch": 25}


def _in_torchvisions_words(name):
    words = {
        "backbone.stem.norm": "backbone.body.bn1",
        "backbone.stem": "backbone.body.conv1",
        "backbone.": "backbone.body.",
        "fpn.lateral": "backbone.fpn.inner_blocks",
        "fpn.output": "backbone.fpn.layer_blocks",
        "rpn.convs.0": "rpn.head.conv",
        "rpn.objectness": "rpn.head.cls_logits",
        "rpn.deltas": "rpn.head.bbox_pred",
        "box_head.fcs.0": "roi_heads.box_head.fc6",
        "box_head.fcs.1": "roi_heads.box_head.fc7",
        "box_head.class_logits": "roi_heads.box_predictor.cls_score",
        "box_head.box_deltas": "roi_heads.box_predictor.bbox_pred",
        "mask_head.convs.": "roi_heads.mask_head.mask_fcn",
        "mask_head.upsample": "roi_heads.mask_predictor.conv5_mask",
        "mask_head.mask_logits": "roi_heads.mask_predictor.mask_fcn_logits",
    }
    ours = next(prefix for prefix in words if name.startswith(prefix))
    rest = name.removeprefix(ours)
    if ours == "mask_head.convs.":
        rest = f"{int(rest[0]) + 1}{rest[1:]}"
    for norm in ("conv1", "conv2"):
        rest = rest.replace(f"{norm}.norm", norm.replace("conv", "bn"))
    return words[ours] + rest.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.fixture(scope="module")
def contents():
    """The contents of each checkpoint."""
    network_shapes(Config())  # the first call in a process takes seconds
    return {"ours": tiny_model().to_checkpoint(), "torchvision": torchvision_contents()}


@pytest.mark.parametrize(("kind", "count"), [("ours", 50), ("torchvision", 8)])
def test_bytes_of_an_archive(kind, count, contents, tmp_path):
    """An archive has checksums: what can be read has the weights that were written."""
    path, good = tmp_path / NAME, saved(contents[kind])
    path.write_bytes(good)
    expected = load_checkpoint(path)["model"]

    def case(rng):
        path.write_bytes(damaged_bytes(good, rng))
        found = load_checkpoint(path)["model"]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found), "weights that differ in silence"

    fuzz(case, count, NAME)


@pytest.mark.parametrize(("kind", "count"), [("ours", 40), ("torchvision", 8)])
def test_bytes_of_an_older_file(kind, count, contents, tmp_path):
    """The format of before torch 1.6 has no checksums. The weights that come have their shapes and are finite."""
    path, good = tmp_path / NAME, saved(contents[kind], zipped=False)
    end = good.rfind(b"X\x07\x00\x00\x00storage")  # the weights lie behind, where damage cannot be seen
    path.write_bytes(good)
    load_checkpoint(path)

    def case(rng):
        whole = rng.random() < 0.3
        path.write_bytes(damaged_bytes(good, rng) if whole else damaged_bytes(good[:end], rng) + good[end:])
        load_checkpoint(path)

    fuzz(case, count, NAME)


@pytest.mark.parametrize(("kind", "count"), [("ours", 50), ("torchvision", 8)])
def test_the_pickle_in_an_archive_with_right_checksums(kind, count, contents, tmp_path):
    """What somebody wrote on purpose, or a program with a fault."""
    path, good = tmp_path / NAME, saved(contents[kind])
    path.write_bytes(good)
    load_checkpoint(path)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickle_name = next(name for name in entries if name.endswith("/data.pkl"))

    def case(rng):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, damaged_bytes(data, rng) if name == pickle_name else data)
        load_checkpoint(path)

    fuzz(case, count, NAME)


@pytest.mark.parametrize(("kind", "count"), [("ours", 25), ("torchvision", 5)])
def test_values(kind, count, contents, tmp_path):
    """Other values in the place of settings, names and weights: a file that torch.save wrote without a fault."""
    path = tmp_path / NAME

    def case(rng):
        torch.save(damaged_json(contents[kind], rng), path)
        load_model(path, "cpu") if kind == "ours" else load_checkpoint(path)

    fuzz(case, count, NAME)


def keras_bytes(path, libver, compression):
    """A Keras file of a few layers, in an old or new version of HDF5's format."""
    layers = {
        "conv1": {"conv1/kernel:0": (7, 7, 3, 8), "conv1/bias:0": (8,)},
        "bn_conv1": {"bn_conv1/gamma:0": (8,)},
        "mrcnn_mask": {"mrcnn_mask/kernel:0": (1, 1, 8, 3)},
    }
    with h5py.File(path, "w", libver=libver) as file:
        file.attrs["layer_names"] = np.array([layer.encode() for layer in layers])
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([weight.encode() for weight in weights])
            for weight, shape in weights.items():
                values = np.random.default_rng(0).random(shape, np.float32)
                group.create_dataset(weight, data=values, compression=compression)
    return path.read_bytes()


def test_keras_files(tmp_path):
    """HDF5 has no checksums of numbers, so that changed ones cannot be noticed; names, shapes and sizes can."""
    path = tmp_path / NAME
    goods = [keras_bytes(path, libver, packed) for libver in ("earliest", "latest") for packed in (None, "gzip")]

    def case(rng):
        path.write_bytes(damaged_bytes(goods[rng.integers(len(goods))], rng))
        tensors, _ = read_keras(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) < 1 << 30
        with pytest.raises(ValueError, match=NAME):  # layers are missing in any case
            load_checkpoint(path)

    fuzz(case, 100, NAME)


def test_safetensors(tmp_path):
    package = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / NAME
    good = package.save({name: tensor.clone() for name, tensor in torchvision_contents()["model"].items()
                         if tensor.numel() < 1000})  # fmt: skip
    end = 8 + int.from_bytes(good[:8], "little")

    def case(rng):
        path.write_bytes(damaged_bytes(good[:end], rng) + good[end:])
        with pytest.raises(ValueError, match=NAME):  # layers are missing in any case
            load_checkpoint(path)

    fuzz(case, 20, NAME)

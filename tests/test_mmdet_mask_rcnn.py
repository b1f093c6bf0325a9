"""mmdetection's plain Mask R-CNN, versions 2 and 3: names, shapes and pixels as the configs of its model zoo give.

Weights have no memory: each tensor is one number, seen in its shape.
"""

import golden_weights
import numpy as np
import pytest
import torch
from foreign_shapes import mask_rcnn_shapes, without_memory

import model
from config import Config
from model import network_shapes
from weights.convert import convert
from weights.load import load_checkpoint, load_model, load_with_report
from weights.published import PUBLISHED

RGB, BGR = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]", "mean=[103.53, 116.28, 123.675]"
CAFFE, CAFFE2 = f"{BGR}, std=[1.0, 1.0, 1.0]", f"{BGR}, std=[57.375, 57.12, 58.395]"


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Conversions leave tensors without memory as they are, and networks start from what they have."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)


def state_of(backbone: str, classes: int = 80) -> dict[str, torch.Tensor]:
    return without_memory(mask_rcnn_shapes(backbone, classes))


def write(path, backbone, config="", version=2, **meta):
    """A file of mmdetection's trainer, of version 2 or 3. config: its text; empty: an old file that stores none."""
    text = {"config" if version == 2 else "cfg": config} if config else {}
    torch.save({"meta": {"epoch": 36, **text, **meta}, "state_dict": state_of(backbone)}, path)
    return path


############################################################
#  Names and shapes
############################################################


@pytest.mark.parametrize(
    ("name", "backbone"), [("r50", "resnet50"), ("r101-caffe", "resnet101"), ("x101-32x4d", "resnext101_32x4d"),
                           ("x101-64x4d", "resnext101_64x4d")],
)  # fmt: skip
def test_these_rules_give_what_mmdetection_itself_has(name, backbone):
    """Mask R-CNN is Mask Scoring R-CNN without its last head, whose names and shapes mmdetection 3.3.0 wrote."""
    theirs = golden_weights.keys(name)
    assert mask_rcnn_shapes(backbone) == {
        tensor: shape for tensor, shape in theirs.items() if "mask_iou_head" not in tensor
    }


# As the configs write them: version, backbone, style, stored pixels, whether BGR, standard deviation.
DEVIATION = (58.395, 57.12, 57.375)
CONFIGS = {
    "mask_rcnn_r50_fpn_1x_coco": (2, "resnet50", "pytorch", f"{RGB}, to_rgb=True", False, DEVIATION),
    "mask_rcnn_r50_caffe_fpn_mstrain-poly_2x_coco": (2, "resnet50", "caffe", f"{CAFFE}, to_rgb=False", True, (1, 1, 1)),
    "mask-rcnn_r101-caffe_fpn_ms-poly-3x": (3, "resnet101", "caffe", f"{CAFFE}, bgr_to_rgb=False", True, (1, 1, 1)),
    "mask-rcnn_r101_fpn_2x_coco": (3, "resnet101", "pytorch", f"{RGB}, bgr_to_rgb=True", False, DEVIATION),
    "mask_rcnn_x101_32x4d_fpn_2x_coco": (2, "resnext101_32x4d", "pytorch", f"{RGB}, to_rgb=True", False, DEVIATION),
    "mask-rcnn_x101-64x4d_fpn_1x": (3, "resnext101_64x4d", "pytorch", f"{RGB}, bgr_to_rgb=True", False, DEVIATION),
    "mask_rcnn_x101_32x8d_fpn_1x_coco": (2, "resnext101_32x8d", "pytorch", f"{CAFFE2}, to_rgb=False", True, DEVIATION),
    "mask-rcnn_x101-32x8d_fpn": (3, "resnext101_32x8d", "pytorch", f"{CAFFE2}, bgr_to_rgb=False", True, DEVIATION),
    "mask-rcnn_r18_fpn_8xb8-amp-lsj-200e": (3, "resnet18", "pytorch", f"{RGB}, bgr_to_rgb=True", False, DEVIATION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_files_of_both_versions_are_recognised(name, tmp_path):
    version, backbone, style, pixels, bgr, deviation = CONFIGS[name]
    text = f"model = dict(backbone=dict(style='{style}'))\nimg_norm_cfg = dict({pixels})"
    path = write(tmp_path / "latest.pth", backbone, text, version)
    checkpoint, report = load_with_report(path)
    config = checkpoint["config"]
    assert checkpoint["dialect"] == "mmdet"
    assert (config["BACKBONE"], config["BACKBONE_STYLE"], config["NUM_CLASSES"]) == (backbone, style, 81)
    assert (config["NAME"], config["USE_MASKIOU_HEAD"]) == ("coco", False)
    assert tuple(config["MEAN_PIXEL"]) == (123.675, 116.28, 103.53), "in RGB order"
    assert tuple(config["STD_PIXEL"]) == deviation
    stem = checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist()
    assert stem == ([3, 2, 1] if bgr else [1, 2, 3]), "the first convolution takes RGB"
    assert not any(note.startswith(("pixels in", f"{style} style")) for note in report.assumed)
    shapes = network_shapes(Config.from_dict(config))
    assert {key: value.shape for key, value in checkpoint["model"].items()} == dict(shapes)


def test_a_narrow_one_is_a_network_with_its_numbers(tmp_path):
    """From the file to the model: R-18, two classes that the file names, both versions alike."""
    for version, key in ((2, "CLASSES"), (3, "dataset_meta")):
        names = ("cell", "nucleus")
        meta = {key: names if version == 2 else {"classes": names}}
        path = tmp_path / f"r18_fpn_{version}.pth"
        torch.save({"meta": meta, "state_dict": state_of("resnet18", 2)}, path)
        network = load_model(path, "cpu")
        assert network.class_names == ["BG", "cell", "nucleus"]
        weights = network.state_dict()
        assert weights["box_head.class_logits.bias"].tolist() == [0.5] * 3
        assert weights["mask_head.mask_logits.bias"].tolist() == [0, 0.5, 0.5], "the background has no mask"
        assert weights["backbone.stem.norm.running_var"][0] == np.float32(1 + 1e-5)


############################################################
#  What files do not say
############################################################


def test_the_order_of_channels_is_guessed_and_printed(tmp_path, capsys):
    for name, backbone, style, order in (
        ("mask_rcnn_x101_32x8d_fpn.pth", "resnext101_32x8d", None, "BGR order, as mmdetection's models of resnext101_"),
        ("mask_rcnn_x101_32x4d_fpn.pth", "resnext101_32x4d", None, "RGB order, as mmdetection's models of pytorch sty"),
        ("mask_rcnn_r50_caffe_fpn.pth", "resnet50", None, "BGR order, as mmdetection's models of caffe style have"),
        ("mine.pth", "resnet50", "pytorch", "RGB order, as mmdetection's models of pytorch style have"),
    ):
        checkpoint = load_checkpoint(write(tmp_path / name, backbone), style)
        assert f"assumed     pixels in {order}" in capsys.readouterr().out
        stem = checkpoint["model"]["backbone.stem.weight"][0, :, 0, 0].tolist()
        assert stem == ([3, 2, 1] if order.startswith("BGR") else [1, 2, 3])


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("mask_rcnn_") and "mstrain" in name])
def test_published_models_leave_nothing_to_guess(name, tmp_path, monkeypatch, capsys):
    """By name, a file without a config has the style and the pixels of its config."""
    published = PUBLISHED[name]
    short = name.removeprefix("mask_rcnn_").partition("_fpn")[0].removesuffix("_caffe")
    backbone = short.replace("x101", "resnext101") if short.startswith("x") else short.replace("r", "resnet")
    monkeypatch.setattr("weights.load.find_weights", lambda name: write(tmp_path / "cached.pth", backbone))
    checkpoint = load_checkpoint(name)
    assert capsys.readouterr().out == ""
    config = checkpoint["config"]
    assert (config["BACKBONE"], config["BACKBONE_STYLE"]) == (backbone, published.style)
    is_bgr = published.style == "caffe" or "32x8d" in name
    assert checkpoint["model"]["backbone.stem.weight"][0, 0, 0, 0] == (3 if is_bgr else 1)
    assert tuple(config["STD_PIXEL"]) == ((1, 1, 1) if published.style == "caffe" else (58.395, 57.12, 57.375))


############################################################
#  What cannot be read
############################################################


def test_another_roi_align_is_refused(tmp_path):
    """configs/mask_rcnn/mask_rcnn_r50_caffe_fpn_poly_1x_coco_v1.py: the weights look like all others."""
    for sign in ("sampling_ratio=2,\n aligned=False", "'aligned': False", "dict(aligned = False)"):
        path = write(tmp_path / "r50_caffe_v1.pth", "resnet50", f"roi_layer=dict(type='RoIAlign', {sign})")
        with pytest.raises(ValueError, match=r"r50_caffe_v1\.pth is not converted: the config in it says .*_v1"):
            convert(path, network_shapes)
    path = write(tmp_path / "r50_fpn.pth", "resnet50", "roi_layer=dict(sampling_ratio=0, aligned=True)")
    assert convert(path, network_shapes)[0]["dialect"] == "mmdet"


def test_c4_is_refused_by_name(tmp_path):
    state = state_of("resnet50")
    state = {name.replace("backbone.layer4.", "roi_head.shared_head.layer4."): state[name] for name in state}
    state = {name: value for name, value in state.items() if not name.startswith("neck.")}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "c4.pth")
    with pytest.raises(ValueError, match=r"c4\.pth is not converted: it is a C4 model of mmdetection"):
        load_checkpoint(tmp_path / "c4.pth")

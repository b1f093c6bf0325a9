"""Models of other projects, trained in detectron2, open with one command: docs/other_projects.md.

Checkpoints have the names and shapes of each project's network; the configuration beside them says what theirs says.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml
from foreign_shapes import detectron2_shapes, mask_rcnn_shapes, without_memory
from zoo_files import changed, config_yaml

import demo
import model
import utils
from config import Config
from weights.class_names import KNOWN_CLASSES, read_class_names
from weights.load import load_checkpoint, load_model

DEVIATION = (58.395, 57.12, 57.375)


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Conversions leave tensors without memory as they are, and networks start from what they have."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)


def source_config(depth=50, classes=80, groups=1, width=64, stride_in_1x1=True, std=(1.0, 1.0, 1.0), **changes) -> dict:
    """What detectron2's trainer writes for its mask_rcnn_*_FPN_3x, the keys that these projects change and some more.

    changes: {dotted key, "__" for ".": value}.
    """
    contents = config_yaml(
        MODEL__PIXEL_STD=list(std),
        MODEL__BACKBONE={"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 2},
        MODEL__RESNETS={
            "DEPTH": depth,
            "NORM": "FrozenBN",
            "NUM_GROUPS": groups,
            "WIDTH_PER_GROUP": width,
            "STRIDE_IN_1X1": stride_in_1x1,
        },
        MODEL__RPN={"PRE_NMS_TOPK_TEST": 1000, "POST_NMS_TOPK_TEST": 1000},
        MODEL__ROI_HEADS={"NUM_CLASSES": classes, "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5},
        MODEL__ROI_BOX_HEAD={"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_TYPE": "ROIAlignV2"},
        MODEL__ROI_MASK_HEAD={"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_TYPE": "ROIAlignV2"},
    )
    return changed(contents, **changes)


X_101 = {"depth": 101, "groups": 32, "width": 8, "stride_in_1x1": False, "std": (57.375, 57.12, 58.395)}
# What each project publishes: backbone, configuration (None: no such file), --classes, and the settings that follow.
PROJECTS = {
    "LayoutParser, PubLayNet, R-50": (
        "resnet50", source_config(50, 5), "publaynet", {"BACKBONE_STYLE": "caffe", "STD_PIXEL": (1, 1, 1)}
    ),
    "LayoutParser, PubLayNet, X-101": (
        "resnext101_32x8d", source_config(classes=5, **X_101), "publaynet",
        {"BACKBONE_STYLE": "pytorch", "STD_PIXEL": DEVIATION},
    ),
    "LayoutParser, PRImA, R-50": ("resnet50", source_config(50, 7), "prima", {"BACKBONE_STYLE": "caffe"}),
    "detectron2 on PubLayNet, R-101": (
        "resnet101",
        {"_BASE_": "Base-RCNN-FPN.yaml",
         "MODEL": {"MASK_ON": True, "RESNETS": {"DEPTH": 101}, "ROI_HEADS": {"NUM_CLASSES": 5}}},
        "publaynet", {"BACKBONE_STYLE": "caffe", "STD_PIXEL": (1, 1, 1)},
    ),
    "detectree2, R-101": ("resnet101", None, "tree", {"BACKBONE_STYLE": "caffe", "STD_PIXEL": (1, 1, 1)}),
    "Restor, R-50": (
        "resnet50",
        source_config(50, 2, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.2, TEST__DETECTIONS_PER_IMAGE=512,
                      MODEL__RPN__PRE_NMS_TOPK_TEST=512, MODEL__RPN__POST_NMS_TOPK_TEST=512,
                      INPUT__MIN_SIZE_TEST=0, INPUT__MAX_SIZE_TEST=2048),
        "restor",
        {"DETECTION_MIN_CONFIDENCE": 0.2, "DETECTION_MAX_INSTANCES": 512, "PRE_NMS_LIMIT": 512,
         "POST_NMS_ROIS_INFERENCE": 512, "IMAGE_MAX_DIM": 2048},
    ),
}  # fmt: skip


def publish(folder, name):
    """The files of a project, as its trainer wrote them, and the argument of --classes."""
    backbone, contents, classes, _ = PROJECTS[name]
    state = without_memory(detectron2_shapes(backbone, len(KNOWN_CLASSES[classes])))
    torch.save({"model": state, "optimizer": {}, "iteration": 9999}, folder / "model_final.pth")
    if contents is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(contents))
    return folder / "model_final.pth", classes


@pytest.mark.parametrize("name", PROJECTS)
def test_a_checkpoint_beside_its_configuration_opens(name, tmp_path, capsys):
    path, classes = publish(tmp_path, name)
    names = read_class_names(classes)
    network = load_model(path, "cpu", class_names=names)
    expected = {"DIALECT": "detectron2", "BACKBONE": PROJECTS[name][0], **PROJECTS[name][3]}
    assert {setting: getattr(network.config, setting) for setting in expected} == expected
    assert network.class_names == ["BG", *names]
    assert network.config.MEAN_PIXEL == (123.675, 116.28, 103.53)
    assert network.state_dict()["backbone.stem.weight"][0, :, 0, 0].tolist() == [3, 2, 1], "their images are BGR"
    printed = capsys.readouterr().out
    has_file = PROJECTS[name][1] is not None
    assert ("assumed     caffe style, as detectron2's ResNets have" in printed) == (not has_file), printed
    assert ("INPUT.MIN_SIZE_TEST 0" in printed) == (name == "Restor, R-50")


def test_the_configuration_may_lie_elsewhere(tmp_path, capsys):
    path, _ = publish(tmp_path, "LayoutParser, PubLayNet, X-101")
    elsewhere = tmp_path / "configs"
    elsewhere.mkdir()
    (tmp_path / "config.yaml").rename(elsewhere / "DLA_mask_rcnn_X_101_32x8d_FPN_3x.yaml")
    config = load_checkpoint(path, source_config=elsewhere / "DLA_mask_rcnn_X_101_32x8d_FPN_3x.yaml")["config"]
    assert tuple(config["STD_PIXEL"]) == DEVIATION
    assert "no names of classes" in capsys.readouterr().out
    assert tuple(load_checkpoint(path)["config"]["STD_PIXEL"]) == (1, 1, 1), "a guess, without it"
    assert "divided by 1 1 1; the file does not say these" in capsys.readouterr().out


def test_the_command_line_opens_it(tmp_path, monkeypatch):
    """With the words of docs/other_projects.md."""
    path, classes = publish(tmp_path, "Restor, R-50")
    opened = []
    monkeypatch.setattr("cli.load_model", lambda *arguments, **options: opened.append((arguments, options)) or 1 / 0)
    words = ["--classes", classes, "--set", "IMAGE_MIN_DIM=2048", "IMAGE_MAX_DIM=2048"]
    with pytest.raises(ZeroDivisionError):
        demo.main(["--model", str(path), "--output", str(tmp_path), *words])
    ((arguments, options),) = opened
    monkeypatch.undo()
    monkeypatch.setattr(model, "initialise", lambda *arguments: None)
    network = load_model(*arguments, **options)
    assert network.class_names == ["BG", "canopy", "tree"]
    assert (network.config.IMAGE_MIN_DIM, network.config.IMAGE_MAX_DIM) == (2048, 2048)
    sides = network.config.IMAGE_MIN_DIM, network.config.IMAGE_MAX_DIM
    assert utils.plan_resize(2048, 2048, *sides, mode="shorter").scale == 1


def test_models_without_masks_are_refused(tmp_path):
    """LayoutParser's faster_rcnn_R_50_FPN_3x, and all of TableBank, NewspaperNavigator and MFD."""
    shapes = {name: shape for name, shape in detectron2_shapes("resnet50", 1).items() if "mask" not in name}
    torch.save({"model": without_memory(shapes)}, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match="it finds boxes only and has no mask head"):
        load_checkpoint(tmp_path / "model_final.pth")


def test_the_table_knows_the_classes_of_each_project():
    """As LayoutParser's label maps, Restor's data set and detectree2 number them."""
    used = {classes for _, _, classes, _ in PROJECTS.values()}
    assert used | {"cityscapes"} == set(KNOWN_CLASSES)
    assert KNOWN_CLASSES["prima"][1:] == (
        "TextRegion", "ImageRegion", "TableRegion", "MathsRegion", "SeparatorRegion", "OtherRegion"
    )  # fmt: skip


def test_the_names_and_shapes_are_detectron2s_own():
    """The list is of detectron2's constructor: see tests/test_foreign_checkpoints.py."""
    keys = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "foreign_keys.json.gz").read_bytes()))
    theirs = {name: tuple(shape) for name, shape in keys["detectron2_mask_rcnn_R_50_FPN_3x"]}
    assert detectron2_shapes("resnet50") == theirs
    assert len(detectron2_shapes("resnext101_32x8d")) == 562
    assert len(mask_rcnn_shapes("resnet50")) == len(theirs) + 53, "mmdetection's norms count batches"
    assert Config(DIALECT="detectron2").STD_PIXEL == (1, 1, 1)

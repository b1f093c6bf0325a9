"""Files of Detectron2 and its relatives: zoo and trainer, configurations beside them, ImageNet backbones, refusals."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny_model
from zoo_files import (
    backbone_shapes,
    changed,
    config_yaml,
    detectron2_state,
    in_caffe2s_words,
    in_detectron2s_words,
    numbers,
    trainer_contents,
    zoo_bytes,
)

import cli
import convert_weights
from config import WEIGHTS, Config, settings_that
from weights.load import load_checkpoint, load_model, load_with_report

STATE = detectron2_state()
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "detectron2"


def zoo(folder, state=None, name="model_final.pkl", **others):
    (folder / name).write_bytes(zoo_bytes(STATE if state is None else state, **others))
    return folder / name


def trainer(folder, state=None, **others):
    torch.save(trainer_contents(STATE if state is None else state, **others), folder / "model_final.pth")
    return folder / "model_final.pth"


def write_config(folder, name="config.yaml", **changes):
    (folder / name).write_text(yaml.dump(config_yaml(**changes)))
    return folder / name


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


############################################################
#  Zoo and trainer
############################################################


@pytest.mark.parametrize("protocol", range(6))
def test_zoo_and_trainer_give_the_same(protocol, tmp_path):
    path = zoo(tmp_path, protocol=protocol)
    expected = load_checkpoint(trainer(tmp_path))
    assert same(load_checkpoint(path)["model"], expected["model"])
    assert expected["config"]["DIALECT"] == "detectron2"
    assert expected["config"]["NUM_CLASSES"] == 4


def test_what_a_trainer_stores_beside_the_weights_is_dropped(tmp_path):
    """The trainer evaluates "model", also where it keeps an average; a line says so then."""
    average = {name: tensor + 1 for name, tensor in trainer_contents(STATE)["model"].items()}
    path = trainer(tmp_path, ema_state=average)
    checkpoint, report = load_with_report(path)
    assert {"optimizer", "scheduler", "iteration", "ema_state"} <= {*report.dropped}
    assert any("not their moving average, ema_state" in line for line in report.assumed)
    (tmp_path / "plain").mkdir()
    assert same(checkpoint["model"], load_checkpoint(trainer(tmp_path / "plain"))["model"])


def test_other_byte_orders_and_types_of_numbers(tmp_path):
    expected = load_checkpoint(zoo(tmp_path))["model"]
    for change in (
        lambda array: array.astype(">f4"),
        lambda array: array.astype("<f8"),
        np.asfortranarray,
        lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    ):
        path = zoo(tmp_path, {name: change(array) for name, array in STATE.items()})
        assert same(load_checkpoint(path)["model"], expected)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/detectron2 is not there")
@pytest.mark.parametrize("name", ["mask_rcnn_R_101_FPN_400ep_LSJ", "mask_rcnn_X_101_32x8d_FPN_3x"])
def test_names_of_the_zoo(name, tmp_path, monkeypatch):
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    keys = json.loads((GOLDEN / f"keys_{name}.json").read_text())
    state = {key: torch.tensor(1.0).expand(shape) for key, shape in keys["keys"]}
    state |= {key: torch.tensor(value) for key, value in keys["constants"].items()}
    torch.save({"model": state}, tmp_path / "x.pth")
    config = load_checkpoint(tmp_path / "x.pth")["config"]
    assert config["BACKBONE"] == ("resnext101_32x8d" if "X_101" in name else "resnet101")
    assert config["BACKBONE_STYLE"] == ("pytorch" if "X_101" in name else "caffe")


############################################################
#  Configurations
############################################################


def test_a_configuration_beside_the_checkpoint(tmp_path, capsys):
    path = trainer(tmp_path)
    plain = load_checkpoint(path)
    assert "caffe style" not in capsys.readouterr().out, "a ResNet-18 has no bottlenecks"
    config = write_config(
        tmp_path, MODEL__RPN__NMS_THRESH=0.6, MODEL__RESNETS__STRIDE_IN_1X1=False, INPUT__MIN_SIZE_TEST=600,
        MODEL__ANCHOR_GENERATOR__SIZES=[[8], [16], [32], [64], [128]], TEST__DETECTIONS_PER_IMAGE=7,
    )  # fmt: skip
    found = load_checkpoint(path)["config"]
    assert (found["RPN_NMS_THRESHOLD"], found["BACKBONE_STYLE"], found["IMAGE_MIN_DIM"]) == (0.6, "pytorch", 600)
    assert (found["RPN_ANCHOR_SCALES"], found["DETECTION_MAX_INSTANCES"]) == ([8, 16, 32, 64, 128], 7)
    printed = capsys.readouterr().out
    assert f"configured  {config}: images in BGR, BACKBONE_STYLE pytorch" in printed
    assert "RPN_NMS_THRESHOLD 0.6" in printed
    assert "assumed" not in printed.replace("assumed     no names of classes", "")
    assert load_checkpoint(path, source_config="none")["config"] == plain["config"]
    assert load_model(path, "cpu", DETECTION_MAX_INSTANCES=9).config.DETECTION_MAX_INSTANCES == 9


def test_rgb_images_are_not_turned(tmp_path):
    """FORMAT says whether the first convolution's channels are turned, and what order means and deviations have."""
    path = trainer(tmp_path)
    weights = {}
    for order in ("BGR", "RGB"):
        write_config(tmp_path, INPUT__FORMAT=order, MODEL__PIXEL_MEAN=[1.0, 2.0, 3.0], MODEL__PIXEL_STD=[4.0, 5.0, 6.0])
        checkpoint = load_checkpoint(path)
        assert checkpoint["config"]["MEAN_PIXEL"] == ([3, 2, 1] if order == "BGR" else [1, 2, 3])
        assert checkpoint["config"]["STD_PIXEL"] == ([6, 5, 4] if order == "BGR" else [4, 5, 6])
        weights[order] = checkpoint["model"]["backbone.stem.weight"]
    expected = torch.from_numpy(STATE["backbone.bottom_up.stem.conv1.weight"])
    assert torch.equal(weights["RGB"], expected)
    assert torch.equal(weights["BGR"], expected.flip(1))


def test_a_configuration_that_contradicts_the_weights(tmp_path):
    path = zoo(tmp_path)
    write_config(tmp_path, MODEL__ROI_HEADS__NUM_CLASSES=80)
    with pytest.raises(ValueError, match=r"config\.yaml contradicts the checkpoint: .*NUM_CLASSES 81, .* have 4\."):
        load_checkpoint(path)
    norms = write_config(tmp_path, "norms.yaml", MODEL__RESNETS__NORM="GN")
    with pytest.raises(ValueError, match=r"norms\.yaml contradicts the checkpoint: MODEL\.RESNETS\.NORM is GN"):
        load_checkpoint(path, source_config=norms)
    right = write_config(tmp_path, "right.yaml", MODEL__RPN__NMS_THRESH=0.65)
    assert load_checkpoint(path, source_config=right)["config"]["RPN_NMS_THRESHOLD"] == 0.65
    assert load_checkpoint(path, source_config="none")["config"]["RPN_NMS_THRESHOLD"] == 0.7


def test_a_style_that_is_given_counts_more(tmp_path):
    path, config = zoo(tmp_path), write_config(tmp_path)
    checkpoint, report = load_with_report(path, style="pytorch")
    assert checkpoint["config"]["BACKBONE_STYLE"] == "pytorch"
    assert f"pytorch style as given, where {config} says caffe" in report.configured


def test_settings_that_are_given_count_more(tmp_path):
    path = zoo(tmp_path)
    write_config(tmp_path, MODEL__ANCHOR_GENERATOR__SIZES=[[8], [16], [32], [64], [128]])
    scales = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert load_checkpoint(path, RPN_ANCHOR_SCALES=scales)["config"]["RPN_ANCHOR_SCALES"] == [*scales]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BACKBONE_NORM", "group"),
        ("BACKBONE_STYLE", "pytorch"),
        ("RPN_ANCHOR_SCALES", (8, 16, 32, 64, 128)),
        ("MEAN_PIXEL", (1.0, 2.0, 3.0)),
    ],
)
def test_settings_say_in_a_training_what_they_say_in_a_detection(setting, value, tmp_path, capsys):
    """Both print what is assumed, and name these settings there."""
    left_out = "pixel_|cell_anchors|running_" if setting == "BACKBONE_NORM" else "pixel_|cell_anchors"
    path = trainer(tmp_path, {name: tensor for name, tensor in STATE.items() if not re.search(left_out, name)})
    settings = {setting: value, "IMAGE_MIN_DIM": 96, "IMAGE_MAX_DIM": 160}
    detector = load_model(path, "cpu", **settings)
    printed = capsys.readouterr().out
    start = cli.find_start(str(path), Config, tmp_path, settings)
    assert capsys.readouterr().out == printed
    model = cli.starting_model(start, Config, tmp_path, settings)
    names = (*settings, *settings_that(WEIGHTS))
    assert [getattr(model.config, name) for name in names] == [getattr(detector.config, name) for name in names]
    assert getattr(model.config, setting) == value
    assert same(model.state_dict(), detector.state_dict())


def test_pixels_of_a_training_with_other_channels_say_nothing_of_the_file(tmp_path):
    settings = {"IMAGE_CHANNEL_COUNT": 1, "MEAN_PIXEL": (7.0,), "STD_PIXEL": (2.0,)}
    start = cli.find_start(str(trainer(tmp_path)), Config, tmp_path, settings)
    assert len(start.checkpoint["config"]["MEAN_PIXEL"]) == 3
    assert cli.training_config(start, Config, settings).MEAN_PIXEL == (7,)


def test_a_file_without_a_row_for_the_background(tmp_path):
    rows = {name: tensor[:-1] if "cls_score" in name else tensor for name, tensor in STATE.items()}
    with pytest.raises(ValueError, match="a model of Detectron2 has one more for classes, that of the background"):
        load_checkpoint(zoo(tmp_path, rows))


def test_files_of_something_else_beside_the_checkpoint(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: resnet50\nlr: 0.1\n")
    path = trainer(tmp_path)
    load_checkpoint(path)
    expected = f"configured  {tmp_path / 'config.yaml'}, beside the checkpoint, is no configuration of Detectron2"
    assert expected in capsys.readouterr().out
    with pytest.raises(ValueError, match="is no configuration of Detectron2: it has neither MODEL nor model"):
        load_checkpoint(path, source_config=tmp_path / "config.yaml")


def test_other_formats_have_no_such_configuration(tmp_path):
    """A config.yaml beside them is of something else; one that is given is a mistake."""
    torch.save(tiny_model().to_checkpoint(), tmp_path / "ours.pth")
    write_config(tmp_path, MODEL__MASK_ON=False)
    load_checkpoint(tmp_path / "ours.pth")
    load_checkpoint(tmp_path / "ours.pth", source_config="none")
    with pytest.raises(ValueError, match=r"source-config.* is for detectors of Detectron2, and .*ours\.pth is a check"):
        load_checkpoint(tmp_path / "ours.pth", source_config=tmp_path / "config.yaml")


def test_the_command_line(tmp_path, capsys):
    path, other = zoo(tmp_path), write_config(tmp_path, "other.yaml", MODEL__RPN__NMS_THRESH=0.6)
    target = tmp_path / "ours.pth"
    assert convert_weights.main([str(path), str(target), "--source-config", str(other)]) == 0
    assert f"configured  {other}" in capsys.readouterr().out
    assert load_checkpoint(target)["config"]["RPN_NMS_THRESHOLD"] == 0.6
    assert convert_weights.main([str(path), str(target), "--force", "--source-config", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml, the configuration of the checkpoint, does not exist" in capsys.readouterr().err
    parser = cli.Parser("x", None)
    cli.add_checkpoint_options(parser)
    assert cli.checkpoint_options(parser.parse_args(["--source-config", "a.yaml"]))["source_config"] == "a.yaml"


############################################################
#  ImageNet backbones
############################################################


def caffe2_state(backbone, statistics, leaves=("s", "b")):
    """MSRA's and FAIR's files: Caffe2's names, with a last layer, and biases that nobody adds."""
    state = {}
    for ours, shape in backbone_shapes(backbone).items():
        name = in_caffe2s_words(ours)
        if statistics or not name.endswith(("_rm", "_riv")):
            for old, new in zip(("bn_s", "bn_b", "bn_rm", "bn_riv"), leaves, strict=False):
                name = name.replace(old, f"bn_{new}") if name.endswith(old) else name
            state[name] = numbers(ours, shape)
    others = {
        "conv1_b": 64,
        "res2_0_branch2a_b": 64,
        "res2_0_branch1_b": 256,
        "fc1000_w": (1000, 2048),
        "fc1000_b": 1000,
    }
    return {**state, **{name: np.ones(shape, np.float32) for name, shape in others.items()}}


def expected_backbone(backbone, statistics=True, bgr=True):
    """The tensors of a converted backbone: eps counts, and BGR becomes RGB."""
    tensors = {name: torch.from_numpy(numbers(name, shape)) for name, shape in backbone_shapes(backbone).items()}
    for name in tensors:
        if name.endswith("running_mean") and not statistics:
            tensors[name] = torch.zeros_like(tensors[name])
        if name.endswith("running_var"):
            var = tensors[name] if statistics else torch.ones_like(tensors[name])
            tensors[name] = (var.double() + 1e-5).float()
    if bgr:
        tensors["backbone.stem.weight"] = tensors["backbone.stem.weight"].flip(1)
    return tensors


NAMES_OF_ZOO = ("gamma", "beta", "running_mean", "running_var")


@pytest.mark.parametrize("leaves", [("s", "b", "rm", "riv"), NAMES_OF_ZOO], ids=["Detectron", "Detectron2"])
@pytest.mark.parametrize("statistics", [False, True])
def test_caffe2s_resnet(statistics, leaves, tmp_path, capsys):
    """MSRA's R-50.pkl: caffe style, BGR, no deviation. Both ways to wrap the arrays."""
    state = caffe2_state("resnet50", statistics, leaves)
    for contents in (state, {"model": state, "__author__": "Caffe2", "matching_heuristics": True}, {"blobs": state}):
        (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(contents, 2))
        checkpoint = load_checkpoint(tmp_path / "R-50.pkl")
        assert same(checkpoint["model"], expected_backbone("resnet50", statistics))
    config = checkpoint["config"]
    assert (config["BACKBONE"], config["BACKBONE_STYLE"]) == ("resnet50", "caffe")
    assert (config["MEAN_PIXEL"], config["STD_PIXEL"]) == ([123.675, 116.28, 103.53], [1, 1, 1])
    assert "assumed     caffe style and pixels in BGR order, as MSRA's ResNets" in capsys.readouterr().out
    with pytest.raises(ValueError, match="style 'pytorch' contradicts"):
        load_checkpoint(tmp_path / "R-50.pkl", style="pytorch")


def test_caffe2s_resnext(tmp_path):
    """FAIR's X-101-32x8d.pkl: the stride in the 3x3 convolution, BGR, ImageNet's deviation."""
    state = caffe2_state("resnext101_32x8d", True)
    state["pred_w"], state["pred_b"] = state.pop("fc1000_w"), state.pop("fc1000_b")
    (tmp_path / "X.pkl").write_bytes(pickle.dumps(state, 4))
    checkpoint = load_checkpoint(tmp_path / "X.pkl")
    assert same(checkpoint["model"], expected_backbone("resnext101_32x8d"))
    config = checkpoint["config"]
    assert (config["BACKBONE"], config["BACKBONE_STYLE"]) == ("resnext101_32x8d", "pytorch")
    assert config["STD_PIXEL"] == [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    ("author", "style", "expected"),
    [("torchvision", None, "pytorch"), ("me", None, "pytorch"), ("me", "caffe", "caffe"), ("me", "pytorch", "pytorch")],
)
def test_classifiers_with_detectron2s_names(author, style, expected, tmp_path, capsys):
    """What convert-torchvision-to-d2.py writes: RGB and ImageNet's deviation."""
    shapes = backbone_shapes("resnet50")
    state = {
        in_detectron2s_words(name).removeprefix("backbone.bottom_up."): numbers(name, shape)
        for name, shape in shapes.items()
    }
    state |= {"stem.fc.weight": np.ones((10, 256), np.float32), "stem.fc.bias": np.ones(10, np.float32)}
    (tmp_path / "R-50.pkl").write_bytes(zoo_bytes(state, matching_heuristics=True, __author__=author))
    checkpoint = load_checkpoint(tmp_path / "R-50.pkl", style=style)
    assert checkpoint["config"]["BACKBONE_STYLE"] == expected
    assert same(checkpoint["model"], expected_backbone("resnet50", bgr=expected == "caffe"))
    assert checkpoint["config"]["STD_PIXEL"] == ([1, 1, 1] if expected == "caffe" else [58.395, 57.12, 57.375])
    assert ("assumed" in capsys.readouterr().out) == (author == "me" and style is None)


def test_a_training_starts_from_a_backbone(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2_state("resnet50", False), 2))
    start = cli.find_start(str(tmp_path / "R-50.pkl"), Config, tmp_path, {})
    config = cli.training_config(start, Config, {"NUM_CLASSES": 3})
    assert (config.BACKBONE, config.BACKBONE_STYLE, config.STD_PIXEL) == ("resnet50", "caffe", (1, 1, 1))


############################################################
#  Refusals
############################################################


def d2(*names, without=(), state=None):
    """The names of a Mask R-CNN with others; without those that begin so."""
    kept = [name for name in (STATE if state is None else state) if not name.startswith(tuple(without))]
    return [*kept, *names]


MASKS = ("roi_heads.mask_head",)
C4 = [name.replace("bottom_up.", "") for name in STATE if name.startswith("backbone.bottom_up") and "res5" not in name]
HEADS = [name for name in STATE if name.startswith("roi_heads.")]
RPN = [name for name in STATE if name.startswith("proposal_generator.")]
DC5 = [name.replace("bottom_up.", "") for name in STATE if name.startswith("backbone.bottom_up")]
NETWORKS = {
    "C4": (d2("roi_heads.res5.0.conv1.weight", *C4, *RPN, state=HEADS, without=["roi_heads.box_head"]),
           "it is a C4 model of Detectron2"),
    "DC5": ([*DC5, *RPN, *HEADS], "without a feature pyramid (DC5"),
    "RegNet": (d2("backbone.bottom_up.stem.conv.weight", "backbone.bottom_up.s1.b1.f.a.weight",
                  without=["backbone.bottom_up"]), "its backbone is a RegNet"),
    "deformable": (d2("backbone.bottom_up.res3.0.conv2_offset.weight"), "deformable convolutions"),
    "deformable C4": (["roi_heads.res5.0.conv2_offset.weight", *C4], "deformable convolutions"),
    "Cascade": (d2("roi_heads.box_head.0.fc1.weight", "roi_heads.box_predictor.0.cls_score.weight",
                   without=["roi_heads.box_head", "roi_heads.box_predictor"]), "Cascade R-CNN"),
    "PointRend": (d2("roi_heads.mask_head.point_head.fc1.weight", "roi_heads.mask_head.coarse_head.fc1.weight"),
                  "it is PointRend"),
    "old PointRend": (d2("roi_heads.mask_point_head.fc1.weight", "roi_heads.mask_coarse_head.fc1.weight"),
                      "it is PointRend"),
    "RetinaNet": (d2("head.cls_subnet.0.weight", "head.bbox_pred.weight",
                     without=["roi_heads", "proposal_generator"]), "one-stage detector of Detectron2"),
    "keypoints": (d2("roi_heads.keypoint_head.conv_fcn1.weight", without=MASKS), "it finds keypoints"),
    "DensePose": (d2("roi_heads.densepose_head.body_conv_fcn1.weight", without=MASKS), "it is DensePose"),
    "Faster R-CNN": (d2(without=MASKS), "it finds boxes only and has no mask head"),
    "RPN": (d2(without=["roi_heads"]), "it is a region proposal network alone"),
    "semantic": (["backbone.stem.conv1.weight", "sem_seg_head.predictor.weight"], "labels the pixels of a whole image"),
    "ViTDet": (d2("backbone.net.blocks.0.norm1.weight", "backbone.simfp_2.0.weight", without=["backbone"]),
               "its backbone is a transformer"),
    "Swin": (d2("backbone.bottom_up.layers.0.blocks.0.norm1.weight", without=["backbone.bottom_up"]),
             "its backbone is a transformer"),
    "MViT": (d2("backbone.bottom_up.patch_embed.proj.weight", without=["backbone.bottom_up"]),
             "its backbone is a transformer"),
    "VoVNet": (d2("backbone.bottom_up.stage2.OSA2_1.concat.weight", without=["backbone.bottom_up"]),
               "its backbone is no ResNet with Detectron2's names"),
    "DeepLab's stem": (d2("backbone.bottom_up.stem.conv2.weight"), "its backbone is no ResNet with Detectron2's names"),
    "Detectron": (["conv1_w", "res2_0_branch2a_w", "fpn_inner_res5_2_sum_w", "conv_rpn_fpn2_w", "mask_fcn_logits_w"],
                  "it is a detector of Detectron, the Caffe2 code"),
    "group norm": (["conv1_w", "conv1_gn_s", "res2_0_branch2a_w"], "with group norms"),
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_other_networks_are_refused_by_name(network, tmp_path):
    names, reason = NETWORKS[network]
    path = zoo(tmp_path, dict.fromkeys(names, np.zeros((1, 1), np.float32)))
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path} is not converted: ")
    assert str(error.value).count("\n") == 0


def test_instances_of_a_panoptic_model(tmp_path, capsys):
    """The heads of instances do not depend on the semantic head, which is left out with a line."""
    semantic = {f"sem_seg_head.{name}": np.zeros(3, np.float32) for name in ("p2.0.weight", "predictor.bias")}
    (tmp_path / "panoptic").mkdir()
    checkpoint = load_checkpoint(zoo(tmp_path / "panoptic", {**STATE, **semantic}))
    assert (
        "assumed     instances alone: the semantic head of this panoptic model is left out" in capsys.readouterr().out
    )
    assert same(checkpoint["model"], load_checkpoint(zoo(tmp_path))["model"])


def test_configurations_of_other_networks_beside_the_checkpoint(tmp_path):
    """What weights do not show."""
    path = zoo(tmp_path)
    for change, words in (
        ({"MODEL__RESNETS__RES5_DILATION": 2}, "RES5_DILATION is 2"),
        ({"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlign"}, "POOLER_TYPE is ROIAlign"),
    ):
        (tmp_path / "config.yaml").write_text(yaml.dump(changed(config_yaml(), **change)))
        with pytest.raises(ValueError, match=f"{words}, and this project has .*--source-config none"):
            load_checkpoint(path)

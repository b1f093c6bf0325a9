"""Configurations of Detectron2 beside a checkpoint: what they give, and what is refused."""

import copy

import pytest
import yaml
from zoo_files import changed

from config import Config
from weights.source_config import find_source_config, read_source_config

# What Detectron2's trainer writes for mask_rcnn_R_50_FPN_3x, the keys that matter here and some others.
FULL = {
    "VERSION": 2,
    "CUDNN_BENCHMARK": False,
    "DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]},
    "INPUT": {
        "FORMAT": "BGR",
        "MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",
    },
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": True,
        "KEYPOINT_ON": False,
        "LOAD_PROPOSALS": False,
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50,
            "NORM": "FrozenBN",
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            "STRIDE_IN_1X1": True,
            "RES5_DILATION": 1,
            "DEFORM_ON_PER_STAGE": [False, False, False, False],
        },
        "FPN": {
            "IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "OUT_CHANNELS": 256,
            "NORM": "",
            "FUSE_TYPE": "sum",
        },
        "ANCHOR_GENERATOR": {
            "NAME": "DefaultAnchorGenerator",
            "SIZES": [[32], [64], [128], [256], [512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "OFFSET": 0.0,
        },
        "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
        "RPN": {
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "IOU_THRESHOLDS": [0.3, 0.7],
            "BATCH_SIZE_PER_IMAGE": 256,
            "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
            "PRE_NMS_TOPK_TRAIN": 2000,
            "PRE_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TRAIN": 1000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
            "CONV_DIMS": [-1],
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "IOU_THRESHOLDS": [0.5],
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
            "POOLER_RESOLUTION": 7,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_FC": 2,
            "FC_DIM": 1024,
            "NUM_CONV": 0,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_CONV": 4,
            "CONV_DIM": 256,
        },
    },
    "TEST": {"DETECTIONS_PER_IMAGE": 100, "AUG": {"ENABLED": False}},
}
# The same, as LazyConfig.save writes it: what refers to other keys stays as it is.
LAZY = {
    "model": {
        "_target_": "detectron2.modeling.GeneralizedRCNN",
        "backbone": {
            "_target_": "detectron2.modeling.backbone.fpn.FPN",
            "bottom_up": {
                "_target_": "detectron2.modeling.backbone.resnet.ResNet",
                "stages": {
                    "_target_": "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
                    "depth": 50,
                    "stride_in_1x1": True,
                    "norm": "FrozenBN",
                },
            },
            "in_features": "${.bottom_up.out_features}",
            "out_channels": 256,
        },
        "proposal_generator": {
            "_target_": "detectron2.modeling.proposal_generator.rpn.RPN",
            "in_features": ["p2", "p3", "p4", "p5", "p6"],
            "head": {
                "_target_": "detectron2.modeling.proposal_generator.rpn.StandardRPNHead",
                "in_channels": 256,
                "conv_dims": [-1, -1],
            },
            "anchor_generator": {
                "_target_": "detectron2.modeling.anchor_generator.DefaultAnchorGenerator",
                "sizes": [[32], [64], [128], [256], [512]],
                "aspect_ratios": [0.5, 1.0, 2.0],
                "offset": 0.0,
            },
            "anchor_matcher": {"_target_": "detectron2.modeling.matcher.Matcher", "thresholds": [0.3, 0.7]},
            "box2box_transform": {"weights": [1.0, 1.0, 1.0, 1.0]},
            "batch_size_per_image": 256,
            "pre_nms_topk": [2000, 900],
            "post_nms_topk": [1000, 800],
            "nms_thresh": 0.7,
        },
        "roi_heads": {
            "_target_": "detectron2.modeling.roi_heads.roi_heads.StandardROIHeads",
            "num_classes": 7,
            "batch_size_per_image": 512,
            "positive_fraction": 0.25,
            "box_pooler": {"output_size": 7, "sampling_ratio": 0, "pooler_type": "ROIAlignV2"},
            "box_head": {"_target_": "detectron2.modeling.roi_heads.box_head.FastRCNNConvFCHead"},
            "box_predictor": {
                "test_score_thresh": 0.3,
                "test_topk_per_image": 70,
                "num_classes": "${..num_classes}",
                "box2box_transform": {"weights": [10, 10, 5, 5]},
            },
            "mask_pooler": {"output_size": 14, "sampling_ratio": 0, "pooler_type": "ROIAlignV2"},
            "mask_head": {"_target_": "detectron2.modeling.roi_heads.mask_head.MaskRCNNConvUpsampleHead"},
        },
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [1.0, 1.0, 1.0],
        "input_format": "BGR",
    },
    "dataloader": {
        "test": {
            "mapper": {
                "augmentations": [
                    {
                        "_target_": "detectron2.data.transforms.ResizeShortestEdge",
                        "short_edge_length": 1024,
                        "max_size": 1024,
                    }
                ]
            }
        }
    },
}


def write(path, contents):
    path.write_text(contents if isinstance(contents, str) else yaml.dump(contents))
    return path


def read(tmp_path, **values):
    return read_source_config(write(tmp_path / "config.yaml", changed(FULL, **values)))


############################################################
#  What is read
############################################################


def test_the_usual_configuration_is_the_dialect(tmp_path):
    found = read(tmp_path)
    usual = Config(DIALECT="detectron2").to_dict()
    here = Config(DIALECT="detectron2", **found.settings).to_dict()
    assert {name for name in here if here[name] != usual[name]} == {"MULTI_SCALE"}
    assert here["MULTI_SCALE"] == [640, 672, 704, 736, 768, 800]
    assert found.input_format == "BGR"
    assert not found.notes
    expected = Config(DIALECT="detectron2", NUM_CLASSES=81, BACKBONE="resnet50", BOX_HEAD_FC_LAYERS=2)
    found.check(expected)
    assert {fact.setting for fact in found.facts} == {
        "NUM_CLASSES", "TOP_DOWN_PYRAMID_SIZE", "POOL_SIZE", "BOX_HEAD_CONVS", "BOX_HEAD_FC_LAYERS",
        "FPN_CLASSIF_FC_LAYERS_SIZE", "MASK_HEAD_CONVS", "MASK_HEAD_CHANNELS", "RPN_CONVS", "BACKBONE",
    }  # fmt: skip


SETTINGS = [
    ({"MODEL__RESNETS__STRIDE_IN_1X1": False}, {"BACKBONE_STYLE": "pytorch"}),
    ({"MODEL__RESNETS__NORM": "GN"}, {"BACKBONE_NORM": "group"}),
    ({"MODEL__PIXEL_MEAN": [1, 2, 3], "MODEL__PIXEL_STD": [4, 5, 6]},
     {"MEAN_PIXEL": (3, 2, 1), "STD_PIXEL": (6, 5, 4)}),
    ({"MODEL__PIXEL_MEAN": [1, 2, 3], "INPUT__FORMAT": "RGB"}, {"MEAN_PIXEL": (1, 2, 3)}),
    ({"MODEL__PIXEL_MEAN": [7], "MODEL__PIXEL_STD": [8], "INPUT__FORMAT": "L"},
     {"MEAN_PIXEL": (7,), "STD_PIXEL": (8,)}),
    ({"MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64], [128]]}, {"RPN_ANCHOR_SCALES": (8, 16, 32, 64, 128)}),
    ({"MODEL__ANCHOR_GENERATOR__SIZES": [[48]]}, {"RPN_ANCHOR_SCALES": (48,) * 5}),
    ({"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[0.25, 1.0, 5.0]]}, {"RPN_ANCHOR_RATIOS": (0.2, 1, 4)}),
    ({"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[1.0, 2.0]] * 5}, {"RPN_ANCHOR_RATIOS": (0.5, 1)}),
    ({"MODEL__RPN__PRE_NMS_TOPK_TEST": 11, "MODEL__RPN__PRE_NMS_TOPK_TRAIN": 12},
     {"PRE_NMS_LIMIT": 11, "PRE_NMS_LIMIT_TRAINING": 12}),
    ({"MODEL__RPN__POST_NMS_TOPK_TEST": 11, "MODEL__RPN__POST_NMS_TOPK_TRAIN": 12},
     {"POST_NMS_ROIS_INFERENCE": 11, "POST_NMS_ROIS_TRAINING": 12}),
    ({"MODEL__RPN__NMS_THRESH": 0.6, "MODEL__RPN__BATCH_SIZE_PER_IMAGE": 64, "MODEL__RPN__IOU_THRESHOLDS": [0.2, 0.8]},
     {"RPN_NMS_THRESHOLD": 0.6, "RPN_TRAIN_ANCHORS_PER_IMAGE": 64, "RPN_NEGATIVE_IOU": 0.2, "RPN_POSITIVE_IOU": 0.8}),
    ({"MODEL__RPN__BBOX_REG_WEIGHTS": [2, 4, 5, 10]}, {"RPN_BBOX_STD_DEV": (0.25, 0.5, 0.1, 0.2)}),
    ({"MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": [2, 4, 5, 10]}, {"BBOX_STD_DEV": (0.25, 0.5, 0.1, 0.2)}),
    ({"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.7, "MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.3},
     {"DETECTION_MIN_CONFIDENCE": 0.7, "DETECTION_NMS_THRESHOLD": 0.3}),
    ({"MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 128, "MODEL__ROI_HEADS__POSITIVE_FRACTION": 0.5,
      "MODEL__ROI_HEADS__IOU_THRESHOLDS": [0.6]},
     {"TRAIN_ROIS_PER_IMAGE": 128, "ROI_POSITIVE_RATIO": 0.5, "ROI_POSITIVE_IOU": 0.6}),
    ({"MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION": 28}, {"MASK_POOL_SIZE": 28}),
    ({"TEST__DETECTIONS_PER_IMAGE": 500}, {"DETECTION_MAX_INSTANCES": 500}),
    ({"INPUT__MIN_SIZE_TEST": 600, "INPUT__MAX_SIZE_TEST": 1000}, {"IMAGE_MIN_DIM": 600, "IMAGE_MAX_DIM": 1000}),
    ({"INPUT__MIN_SIZE_TEST": 1600}, {"IMAGE_MIN_DIM": 1333, "IMAGE_MAX_DIM": 1333}),
    ({"INPUT__MIN_SIZE_TRAIN": [512], "INPUT__RANDOM_FLIP": "vertical"},
     {"HORIZONTAL_FLIP": 0.0, "VERTICAL_FLIP": 0.5}),
    ({"MODEL__RPN__NMS_THRESH": "7e-1"}, {"RPN_NMS_THRESHOLD": 0.7}),  # a text in YAML, without a point
    ({"UNKNOWN__KEY": [1, {"a": None}], "MODEL__NEW": "x"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), SETTINGS, ids=[" ".join(values) for values, _ in SETTINGS])
def test_settings(values, expected, tmp_path):
    usual, found = read(tmp_path).settings, read(tmp_path, **values).settings
    if "INPUT__MIN_SIZE_TRAIN" in values:
        assert found.pop("MULTI_SCALE", None) is None
        del usual["MULTI_SCALE"]
    assert found == usual | expected


def test_pixels_and_style_are_detectron2s_where_nothing_says_them(tmp_path):
    """STRIDE_IN_1X1 is True and FORMAT is BGR in Detectron2 without the keys."""
    found = read_source_config(write(tmp_path / "x.yaml", {"MODEL": {"MASK_ON": True}}))
    assert found.settings == {
        "BACKBONE_STYLE": "caffe", "MEAN_PIXEL": (123.675, 116.28, 103.53), "STD_PIXEL": (1.0, 1.0, 1.0)
    }  # fmt: skip
    assert found.input_format == "BGR"


def test_tuples_of_python_are_lists(tmp_path):
    text = yaml.dump(
        changed(FULL, MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS=(10.0, 10.0, 5.0, 5.0), INPUT__MIN_SIZE_TRAIN=(1, 2))
    )
    assert text.count("!!python/tuple") == 2
    found = read_source_config(write(tmp_path / "config.yaml", text)).settings
    assert found["BBOX_STD_DEV"] == (0.1, 0.1, 0.2, 0.2)
    assert found["MULTI_SCALE"] == (1, 2)


# As people and Detectron2's own configs write tuples, and YAML takes them for texts.
TEXTS = {
    "INPUT__MIN_SIZE_TRAIN": ("(480, 512)", [480, 512]),
    "MODEL__PIXEL_STD": ("[57.375, 57.120, 58.395]", [57.375, 57.12, 58.395]),
    "MODEL__ANCHOR_GENERATOR__SIZES": (" ((16,), (32,), (64,), (128,), (256,))", [[16], [32], [64], [128], [256]]),
    "MODEL__FPN__IN_FEATURES": ("['res2', 'res3', 'res4', 'res5']", ["res2", "res3", "res4", "res5"]),
}


@pytest.mark.parametrize("key", TEXTS)
def test_texts_of_tuples_are_lists(key, tmp_path):
    text, value = TEXTS[key]
    assert read(tmp_path, **{key: text}).settings == read(tmp_path, **{key: value}).settings


@pytest.mark.parametrize("text", ["(640, 800", "[f(1)]", "(" * 900, "(1, " * 90, "[1, 2]" + " " * 2000])
def test_texts_that_are_no_tuples_stay_texts(text, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_MEAN must be a list of 3 numbers"):
        read(tmp_path, MODEL__PIXEL_MEAN=text)


def test_a_lazy_config(tmp_path):
    found = read_source_config(write(tmp_path / "config.yaml", LAZY))
    settings = found.settings
    assert settings["BACKBONE_STYLE"] == "caffe"
    assert (settings["MEAN_PIXEL"], found.input_format) == ((123.675, 116.28, 103.53), "BGR")
    assert (settings["PRE_NMS_LIMIT"], settings["PRE_NMS_LIMIT_TRAINING"]) == (900, 2000)
    assert (settings["POST_NMS_ROIS_INFERENCE"], settings["POST_NMS_ROIS_TRAINING"]) == (800, 1000)
    assert (settings["DETECTION_MIN_CONFIDENCE"], settings["DETECTION_MAX_INSTANCES"]) == (0.3, 70)
    assert (settings["IMAGE_MIN_DIM"], settings["IMAGE_MAX_DIM"]) == (1024, 1024)
    assert settings["RPN_ANCHOR_RATIOS"] == (0.5, 1, 2)
    facts = {fact.setting: fact.value for fact in found.facts}
    assert facts["NUM_CLASSES"] == 8
    assert facts["BACKBONE"] == "resnet50"


def test_a_lazy_config_of_another_network(tmp_path):
    lazy = copy.deepcopy(LAZY)
    lazy["model"]["roi_heads"]["_target_"] = "detectron2.modeling.roi_heads.cascade_rcnn.CascadeROIHeads"
    with pytest.raises(ValueError, match=r"config.yaml: MODEL.ROI_HEADS.NAME is CascadeROIHeads, and this project has"):
        read_source_config(write(tmp_path / "config.yaml", lazy))
    lazy = copy.deepcopy(LAZY)
    lazy["model"]["backbone"]["bottom_up"]["_target_"] = "detectron2.modeling.backbone.regnet.RegNet"
    with pytest.raises(ValueError, match=r"MODEL.BACKBONE.NAME is RegNet"):
        read_source_config(write(tmp_path / "config.yaml", lazy))
    lazy = copy.deepcopy(LAZY)
    del lazy["model"]["roi_heads"]["mask_head"]
    with pytest.raises(ValueError, match=r"MODEL.MASK_ON is False"):
        read_source_config(write(tmp_path / "config.yaml", lazy))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"TEST__AUG": {"ENABLED": True}}, "TEST.AUG.ENABLED"),
        ({"MODEL__META_ARCHITECTURE": "PanopticFPN"}, "its semantic map is not"),
        ({"INPUT__MIN_SIZE_TEST": 0}, "INPUT.MIN_SIZE_TEST 0"),
        ({"INPUT__MIN_SIZE_TRAIN_SAMPLING": "range"}, "unless MULTI_SCALE"),
    ],
)
def test_what_is_left_out_is_said(values, note, tmp_path):
    found = read(tmp_path, **values)
    assert len(found.notes) == 1
    assert note in found.notes[0]


############################################################
#  What is refused
############################################################

OTHERS = {
    "MODEL__META_ARCHITECTURE": "RetinaNet",
    "MODEL__MASK_ON": False,
    "MODEL__KEYPOINT_ON": True,
    "MODEL__LOAD_PROPOSALS": True,
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__RES5_DILATION": 2,
    "MODEL__FPN__FUSE_TYPE": "avg",
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__PROPOSAL_GENERATOR__NAME": "RRPN",
    "MODEL__PROPOSAL_GENERATOR__MIN_SIZE": 4,
    "MODEL__RPN__IN_FEATURES": ["p2"],
    "MODEL__ANCHOR_GENERATOR__NAME": "RotatedAnchorGenerator",
    "MODEL__ANCHOR_GENERATOR__OFFSET": 0.5,
    "MODEL__ROI_HEADS__NAME": "Res5ROIHeads",
    "MODEL__ROI_HEADS__IN_FEATURES": ["p3"],
    "MODEL__ROI_BOX_HEAD__NAME": "OtherHead",
    "MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True,
    "MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlign",
    "MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO": 2,
    "MODEL__ROI_MASK_HEAD__NAME": "PointRendMaskHead",
    "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIPool",
    "MODEL__ROI_MASK_HEAD__POOLER_SAMPLING_RATIO": 2,
    "INPUT__FORMAT": "YUV-BT.601",
}


@pytest.mark.parametrize("key", OTHERS)
def test_other_networks_and_rules_are_refused(key, tmp_path):
    """The key, the value, and what there is instead."""
    value, name = OTHERS[key], key.replace("__", ".")
    first = value[0] if isinstance(value, list) else value
    with pytest.raises(ValueError, match=rf"config\.yaml: {name} is \[?{first}.*, and this project has \S"):
        read(tmp_path, **{key: value})


WRONG = [
    ({"MODEL__RESNETS__DEFORM_ON_PER_STAGE": [False, True, True, True]}, "no deformable convolutions"),
    ({"MODEL__ANCHOR_GENERATOR__SIZES": [[32, 64, 128, 256, 512]]}, "SIZES has several sizes on one level"),
    ({"MODEL__ANCHOR_GENERATOR__SIZES": [32, 64, 128, 256, 512]}, "SIZES has several sizes on one level"),
    ({"MODEL__ANCHOR_GENERATOR__SIZES": [[32], [64]]}, "SIZES must have a list for each of P2 to P6"),
    ({"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[1.0]] * 4 + [[2.0]]}, "has other ratios on some levels"),
    ({"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[0.0]]}, "must be numbers above 0"),
    ({"MODEL__RPN__NMS_THRESH": 7}, "RPN_NMS_THRESHOLD must lie in"),
    ({"MODEL__RPN__NMS_THRESH": [1]}, r"NMS_THRESH must be a number, not \[1\]"),
    ({"MODEL__RPN__NMS_THRESH": float("nan")}, "must be a number, not nan"),
    ({"MODEL__RPN__PRE_NMS_TOPK_TEST": 0.5}, "must be a whole number, not 0.5"),
    ({"MODEL__RPN__PRE_NMS_TOPK_TEST": 10**4000}, "must be a number, not an enormous number"),
    ({"MODEL__ROI_HEADS__NUM_CLASSES": "many\x1b[2J"}, r"NUM_CLASSES must be a number, not many\\x1b"),
    ({"MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": [1, 2]}, "must be a list of 4 numbers"),
    ({"MODEL__PIXEL_MEAN": [1, 2]}, "MODEL.PIXEL_MEAN must be a list of 3 numbers"),
    ({"MODEL__PIXEL_STD": [1, 2, 0]}, "STD_PIXEL must be above 0"),
    ({"MODEL__RESNETS__STRIDE_IN_1X1": "maybe"}, "must be true or false, not maybe"),
    (
        {"_BASE_": "../Base-RCNN-C4.yaml"},
        r"_BASE_ is \.\./Base-RCNN-C4\.yaml, a file that is not read; give the complete",
    ),
]


@pytest.mark.parametrize(("values", "match"), WRONG)
def test_values_that_cannot_be(values, match, tmp_path):
    with pytest.raises(ValueError, match=match) as error:
        read(tmp_path, **values)
    assert str(error.value).startswith(str(tmp_path / "config.yaml"))
    assert len(str(error.value)) < 700


def test_the_usual_base_is_what_is_usual(tmp_path):
    contents = {"_BASE_": "../Base-RCNN-FPN.yaml", "MODEL": {"MASK_ON": True, "RESNETS": {"STRIDE_IN_1X1": False}}}
    assert read_source_config(write(tmp_path / "x.yaml", contents)).settings["BACKBONE_STYLE"] == "pytorch"


NO_YAML = {
    "a Python object": (
        "MODEL: !!python/object/apply:os.mkdir ['{marker}']",
        "it holds a Python object, object/apply:os.mkdir",
    ),
    "a Python name": ("MODEL: !!python/name:os.system ''", "it holds a Python object, name:os.system"),
    "a merge": ("a: &a {b: 1}\nMODEL:\n  <<: *a\n", "it merges keys with <<"),
    "an unknown tag": ("MODEL: !x 1", "could not determine a constructor"),
    "no yaml": ("MODEL: [1", "cannot be read as plain YAML"),
    "control characters": ("MODEL: \x1b[2J", "cannot be read as plain YAML"),
    "a list": ("- 1", "holds no keys and values"),
    "too long": ("MODEL: {}\n" + "# x" * 50_000, "too long for a configuration"),
    "lists in lists": ("MODEL: " + "[" * 5000, "more than 50 lists or dicts lie in each other"),
    "items in items": ("MODEL:\n " + "- " * 5000, "more than 50 lists or dicts lie in each other"),
    "no model": ("DATASETS: {}", "is no configuration of Detectron2: it has neither MODEL nor model"),
    "another's model": ("MODEL: resnet\nmodel: {a: 1}", "it has neither MODEL nor model._target_"),
}


@pytest.mark.parametrize("name", NO_YAML)
def test_files_that_are_none(name, tmp_path):
    """Given by name it is an error; beside a checkpoint a line says that it is not used."""
    text, match = NO_YAML[name]
    marker = tmp_path / "made"
    path = write(tmp_path / "config.yaml", text.replace("{marker}", str(marker)))
    with pytest.raises(ValueError, match=match) as error:
        find_source_config(tmp_path / "model_final.pth", path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 1000
    found, lines = find_source_config(tmp_path / "model_final.pth", None)
    assert found is None
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}, beside the checkpoint, is no configuration of Detectron2 and is not used")
    assert not marker.exists()


def test_aliases_take_no_memory(tmp_path):
    """Lists that are ten times in the next one, ten times: 10^10 entries as a tree."""
    lines = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    text = "\n".join([*lines, "MODEL: {RPN: {NMS_THRESH: *a10}}"])
    with pytest.raises(ValueError, match=r"NMS_THRESH must be a number, not \[\[\[\["):
        read_source_config(write(tmp_path / "config.yaml", text))


def test_aliases_of_dicts_take_no_memory(tmp_path):
    lines = ["MODEL:", "  a0: &a0 {b: 1}"]
    lines += [f"  a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(10))}}}" for n in range(1, 11)]
    with pytest.raises(ValueError, match=r"config\.yaml: it has more than 5,000 keys"):
        read_source_config(write(tmp_path / "config.yaml", "\n".join(lines)))


def test_a_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder; give the file in it"):
        read_source_config(tmp_path)


def test_which_file_is_found(tmp_path):
    checkpoint = tmp_path / "model_final.pth"
    assert find_source_config(checkpoint, None) == (None, [])
    write(tmp_path / "config.yml", FULL)
    assert find_source_config(checkpoint, None)[0].path == tmp_path / "config.yml"
    write(tmp_path / "config.yaml", FULL)
    assert find_source_config(checkpoint, None)[0].path == tmp_path / "config.yaml"
    assert find_source_config(checkpoint, "none") == (None, [])
    other = write(tmp_path / "other.yaml", changed(FULL, MODEL__RPN__NMS_THRESH=0.6))
    assert find_source_config(checkpoint, other)[0].settings["RPN_NMS_THRESHOLD"] == 0.6
    with pytest.raises(FileNotFoundError, match=r"none\.yaml, the configuration of the checkpoint, does not exist"):
        find_source_config(checkpoint, tmp_path / "none.yaml")
    write(tmp_path / "config.yaml", changed(FULL, MODEL__KEYPOINT_ON=True))
    with pytest.raises(ValueError, match="If it belongs to another checkpoint, give --source-config none"):
        find_source_config(checkpoint, None)


def test_the_weights_must_not_contradict_it(tmp_path):
    fitting = {"DIALECT": "detectron2", "NUM_CLASSES": 81, "BACKBONE": "resnet50"}
    read(tmp_path).check(Config(**fitting))
    for key, value, words in (
        (
            "MODEL__ROI_HEADS__NUM_CLASSES",
            5,
            "MODEL.ROI_HEADS.NUM_CLASSES makes NUM_CLASSES 6, and the weights have 81",
        ),
        ("MODEL__RPN__CONV_DIMS", [-1, -1], "RPN_CONVS 2, and the weights have 1"),
        ("MODEL__RESNETS__DEPTH", 101, "BACKBONE resnet101, and the weights have resnet50"),
        ("MODEL__RESNETS__NUM_GROUPS", 32, "BACKBONE resnext50_32x64d, and the weights have resnet50"),
    ):
        with pytest.raises(ValueError, match=f"config.yaml contradicts the checkpoint: .*{words}. .*--source-config"):
            read(tmp_path, **{key: value}).check(Config(**fitting))


def test_what_is_printed(tmp_path):
    text = read(tmp_path, MODEL__RPN__NMS_THRESH=0.6, INPUT__MIN_SIZE_TRAIN=[800]).text()
    assert text.startswith(
        f"{tmp_path / 'config.yaml'}: images in BGR, BACKBONE_STYLE caffe, MEAN_PIXEL 123.675 116.28"
    )
    assert "RPN_NMS_THRESHOLD 0.6, and " in text
    assert text.endswith("settings as Detectron2 usually has them")
    assert "POST_NMS" not in text

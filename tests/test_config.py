"""Settings: defaults by dialect, names and types that are checked, round trips, and what --set means."""

import argparse
from pathlib import Path

import numpy as np
import pytest

import config as configlib
from cli import whole_number
from coco import CocoConfig
from config import DIALECTS, Config, parse_settings
from data.coco_files import COCO_CATEGORIES

MATTERPORT_NAMES = """NAME GPU_COUNT IMAGES_PER_GPU STEPS_PER_EPOCH VALIDATION_STEPS BACKBONE COMPUTE_BACKBONE_SHAPE
BACKBONE_STRIDES FPN_CLASSIF_FC_LAYERS_SIZE TOP_DOWN_PYRAMID_SIZE NUM_CLASSES RPN_ANCHOR_SCALES RPN_ANCHOR_RATIOS
RPN_ANCHOR_STRIDE RPN_NMS_THRESHOLD RPN_TRAIN_ANCHORS_PER_IMAGE PRE_NMS_LIMIT POST_NMS_ROIS_TRAINING
POST_NMS_ROIS_INFERENCE USE_MINI_MASK MINI_MASK_SHAPE IMAGE_RESIZE_MODE IMAGE_MIN_DIM IMAGE_MAX_DIM IMAGE_MIN_SCALE
IMAGE_CHANNEL_COUNT MEAN_PIXEL TRAIN_ROIS_PER_IMAGE ROI_POSITIVE_RATIO POOL_SIZE MASK_POOL_SIZE MASK_SHAPE
MAX_GT_INSTANCES RPN_BBOX_STD_DEV BBOX_STD_DEV DETECTION_MAX_INSTANCES DETECTION_MIN_CONFIDENCE
DETECTION_NMS_THRESHOLD LEARNING_RATE LEARNING_MOMENTUM WEIGHT_DECAY LOSS_WEIGHTS USE_RPN_ROIS TRAIN_BN
GRADIENT_CLIP_NORM IMAGENET_MODEL_PATH BATCH_SIZE IMAGE_SHAPE IMAGE_META_SIZE BACKBONE_SHAPES""".split()  # noqa: SIM905


def test_every_name_of_matterport_is_there():
    settings = Config()
    assert [name for name in MATTERPORT_NAMES if not hasattr(settings, name)] == []


def test_every_setting_has_a_comment_above_it():
    source = Path(configlib.__file__).read_text()
    body = source[source.index("class Config:") : source.index("def __init_subclass__")]
    lines = [line.strip() for line in body.splitlines()]
    for name in Config().to_dict():
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
        while lines[index - 1] and not lines[index - 1].startswith("#"):
            index -= 1  # settings that share a comment
        assert lines[index - 1].startswith("#"), f"{name} has no comment"


@pytest.mark.parametrize("name", DIALECTS)
def test_dialect_gives_defaults_and_a_subclass_overrides_them(name):
    class Chosen(Config):
        DIALECT = name
        DETECTION_NMS_THRESHOLD = 0.45

    settings = Chosen()
    assert settings.dialect is DIALECTS[name]
    assert settings.DETECTION_NMS_THRESHOLD == 0.45
    for key, value in DIALECTS[name].defaults.items():
        if key != "DETECTION_NMS_THRESHOLD":
            assert getattr(settings, key) == value
    assert {"matterport": 0.3}.get(name, 0.5) == Config(DIALECT=name).DETECTION_NMS_THRESHOLD
    assert Config(DIALECT=name, DETECTION_NMS_THRESHOLD=0.6).DETECTION_NMS_THRESHOLD == 0.6
    assert all(key in Config().to_dict() for key in DIALECTS[name].defaults)


def test_dialects_are_the_table_of_the_design():
    assert [d.pooling for d in DIALECTS.values()] == ["adaptive", "legacy", "legacy", "crop"]
    assert [d.stem_pool for d in DIALECTS.values()] == ["symmetric"] * 3 + ["same"]
    assert Config().DIALECT == "mmdet"
    with pytest.raises(AttributeError):
        DIALECTS["mmdet"].pooling = "crop"  # frozen


def test_subclass_with_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"Wrong\.IMAGE_MINDIM is not a setting; did you mean IMAGE_MIN_DIM\?"):

        class Wrong(Config):
            IMAGE_MINDIM = 512


def test_subclass_with_a_wrong_type():
    with pytest.raises(ValueError, match="NUM_CLASSES must be int, not '81'"):

        class Wrong(Config):
            NUM_CLASSES = "81"


def test_unknown_names_are_refused_everywhere():
    settings = Config()
    with pytest.raises(ValueError, match="did you mean NUM_CLASSES"):
        Config(NUMCLASSES=3)
    with pytest.raises(ValueError, match="did you mean LEARNING_RATE"):
        settings.LEARNIG_RATE = 0.1
    with pytest.raises(ValueError, match="did you mean BACKBONE"):
        Config.from_dict({"BACKBON": "resnet50"})
    with pytest.raises(ValueError, match=r"config\.display"):
        parse_settings(["FOO=1"])


def test_values_may_be_set_and_are_checked():
    settings = Config()
    settings.IMAGES_PER_GPU = 5
    assert settings.BATCH_SIZE == 5
    with pytest.raises(ValueError, match="IMAGES_PER_GPU must be int"):
        settings.IMAGES_PER_GPU = 2.5
    with pytest.raises(ValueError, match="set IMAGES_PER_GPU"):
        settings.BATCH_SIZE = 4
    with pytest.raises(ValueError, match="DIALECT decides"):
        settings.DIALECT = "matterport"


def test_arrays_and_lists_become_tuples():
    settings = Config(MEAN_PIXEL=np.array([1.0, 2.0, 3.0]), RPN_ANCHOR_SCALES=[8, 16, 32, 64, 128], POOL_SIZE=7.0)
    assert settings.MEAN_PIXEL == (1.0, 2.0, 3.0)
    assert settings.RPN_ANCHOR_SCALES == (8, 16, 32, 64, 128)
    assert settings.POOL_SIZE == 7
    assert isinstance(settings.POOL_SIZE, int)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"BACKBONE": "resnet52"}, "BACKBONE must be one of resnet18"),
        ({"DIALECT": "detectron"}, "DIALECT must be one of mmdet, benchmark"),
        ({"IMAGE_RESIZE_MODE": "stretch"}, "IMAGE_RESIZE_MODE must be one of"),
        ({"BACKBONE_STYLE": "tf"}, "BACKBONE_STYLE must be one of"),
        ({"NUM_CLASSES": 0}, "NUM_CLASSES must be at least 1"),
        ({"RPN_NMS_THRESHOLD": 1.5}, r"RPN_NMS_THRESHOLD must lie in \[0, 1\]"),
        ({"RPN_NMS_THRESHOLD": float("nan")}, "RPN_NMS_THRESHOLD"),
        ({"IMAGE_CHANNEL_COUNT": 1}, "MEAN_PIXEL must have 1 entries"),
        ({"STD_PIXEL": (1, 0, 1)}, "above 0"),
        ({"IMAGE_MIN_DIM": 1500}, "IMAGE_MIN_DIM 1500 is above IMAGE_MAX_DIM 1333"),
        ({"MASK_SHAPE": (56, 56)}, "twice MASK_POOL_SIZE"),
        ({"IMAGE_RESIZE_MODE": "square"}, "multiple of 64"),
        ({"CLASS_NAMES": ("BG", "cell")}, "CLASS_NAMES must have 1 entries"),
        ({"RPN_ANCHOR_SCALES": (32, 64)}, "RPN_ANCHOR_SCALES must have 5 entries"),
    ],
)
def test_values_that_do_not_exist_or_contradict(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_round_trip_through_plain_values():
    class Cells(Config):
        NAME = "cells"
        NUM_CLASSES = 3
        CLASS_NAMES = ("BG", "alive", "dead")
        DIALECT = "matterport"
        LOSS_WEIGHTS = {"mrcnn_mask_loss": 2}  # noqa: RUF012

    plain = Cells().to_dict()
    assert all(type(value) in (int, float, str, bool, list, dict, type(None)) for value in plain.values())
    again = Config.from_dict(plain, IMAGE_MAX_DIM=2048)
    assert again.to_dict() == {**plain, "IMAGE_MAX_DIM": 2048}


def test_callables_are_stored_by_name_and_wanted_again():
    plain = Config(BACKBONE=dict).to_dict()
    assert plain["BACKBONE"] == "<builtins.dict>"
    with pytest.raises(ValueError, match="give the callable again"):
        Config.from_dict(plain)
    assert Config.from_dict(plain, BACKBONE=dict).BACKBONE is dict


def test_derived_values():
    settings = Config(IMAGE_RESIZE_MODE="square", IMAGE_MAX_DIM=1024, GPU_COUNT=2, IMAGES_PER_GPU=3, NUM_CLASSES=5)
    assert settings.BATCH_SIZE == 6
    assert settings.IMAGE_SHAPE == (1024, 1024, 3)
    assert settings.IMAGE_META_SIZE == 12 + 5
    assert settings.BACKBONE_SHAPES == ((256, 256), (128, 128), (64, 64), (32, 32), (16, 16))
    assert Config(GPU_COUNT=0).BATCH_SIZE == 2, "no GPU is one CPU"
    assert Config(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=512).IMAGE_SHAPE[:2] == (512, 512)


def test_display_prints_every_setting(capsys):
    Config(NAME="cells").display()
    lines = capsys.readouterr().out.splitlines()
    assert f"{'NAME':30} cells" in lines
    assert f"{'BATCH_SIZE':30} 2" in lines
    assert len([line for line in lines if line]) == len(Config().to_dict()) + 4 + 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("IMAGE_MIN_DIM=512", 512),
        ("LEARNING_RATE=1e-3", 0.001),
        ("LEARNING_RATE=1", 1),
        ("USE_MASKIOU_HEAD=false", False),
        ("USE_MASKIOU_HEAD=True", True),
        ("RPN_ANCHOR_SCALES=8,16,32,64,128", (8, 16, 32, 64, 128)),
        ("RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)", (8, 16, 32, 64, 128)),
        ("MEAN_PIXEL=0.5", (0.5,)),
        ("CLASS_NAMES=BG,red cell,2", ("BG", "red cell", "2")),
        ("NAME=12", "12"),
        ("NAME=none", None),
        ("NAME=a=b", "a=b"),
        ("BACKBONE=resnet50", "resnet50"),
        ("LOSS_WEIGHTS={'mrcnn_mask_loss': 2}", {"mrcnn_mask_loss": 2}),
    ],
)
def test_set(text, value):
    assert parse_settings([text]) == {text.split("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IMAGE_MIN_DIM", "NAME=VALUE"),
        ("IMAGE_MIN_DIM=big", "IMAGE_MIN_DIM must be int, not 'big'"),
        ("IMAGE_MIN_DIM=1.5", "IMAGE_MIN_DIM must be int, not 1.5"),
        ("USE_MASKIOU_HEAD=1", "USE_MASKIOU_HEAD must be bool"),
        ("MEAN_PIXEL=a,b,c", "MEAN_PIXEL must be a list of float"),
        ("IMAGE_MIN_DIM=__import__('os')", "must be int"),
    ],
)
def test_set_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse_settings([text])


def test_whole_numbers_of_a_command_line():
    assert [whole_number(least)(text) for least, text in ((0, "0"), (1, "1"), (1, "12"))] == [0, 1, 12]
    for least, text in ((0, "-1"), (1, "0"), (1, "1.5"), (1, "x"), (1, ""), (3, "2")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"a whole number from {least} up, not {text!r}"):
            whole_number(least)(text)


def test_coco_config():
    settings = CocoConfig()
    assert (settings.NUM_CLASSES, len(COCO_CATEGORIES)) == (81, 80)
    assert settings.CLASS_NAMES[:3] == ("BG", "person", "bicycle")
    assert settings.CATEGORY_IDS[1] == 1
    assert dict(zip(settings.CATEGORY_IDS, settings.CLASS_NAMES, strict=True))[90] == "toothbrush"
    gaps = set(range(1, 91)) - set(COCO_CATEGORIES)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}

"""Settings: defaults by dialect, checks of names, types and ranges, what depends on a setting, round trips, --set."""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch

import config as configlib
import model as modellib
from coco import CocoConfig
from config import (
    BACKBONE_WEIGHTS,
    DERIVED,
    DETECTION,
    DIALECTS,
    LOSSES,
    MEMORY,
    REMOVED,
    RUN,
    SETTINGS,
    SHAPE,
    WEIGHTS,
    AtLeast,
    Config,
    parse_settings,
    settings_of,
    settings_that,
)
from data.coco_files import COCO_CATEGORIES

ROOT = Path(configlib.__file__).parent

MATTERPORT_NAMES = """NAME GPU_COUNT IMAGES_PER_GPU STEPS_PER_EPOCH VALIDATION_STEPS BACKBONE COMPUTE_BACKBONE_SHAPE
BACKBONE_STRIDES FPN_CLASSIF_FC_LAYERS_SIZE TOP_DOWN_PYRAMID_SIZE NUM_CLASSES RPN_ANCHOR_SCALES RPN_ANCHOR_RATIOS
RPN_ANCHOR_STRIDE RPN_NMS_THRESHOLD RPN_TRAIN_ANCHORS_PER_IMAGE PRE_NMS_LIMIT POST_NMS_ROIS_TRAINING
POST_NMS_ROIS_INFERENCE USE_MINI_MASK MINI_MASK_SHAPE IMAGE_RESIZE_MODE IMAGE_MIN_DIM IMAGE_MAX_DIM IMAGE_MIN_SCALE
IMAGE_CHANNEL_COUNT MEAN_PIXEL TRAIN_ROIS_PER_IMAGE ROI_POSITIVE_RATIO POOL_SIZE MASK_POOL_SIZE MASK_SHAPE
MAX_GT_INSTANCES RPN_BBOX_STD_DEV BBOX_STD_DEV DETECTION_MAX_INSTANCES DETECTION_MIN_CONFIDENCE
DETECTION_NMS_THRESHOLD LEARNING_RATE LEARNING_MOMENTUM WEIGHT_DECAY LOSS_WEIGHTS TRAIN_BN
GRADIENT_CLIP_NORM IMAGENET_MODEL_PATH BATCH_SIZE IMAGE_SHAPE IMAGE_META_SIZE BACKBONE_SHAPES""".split()  # noqa: SIM905


def test_every_name_of_matterport_is_there():
    settings = Config()
    assert [name for name in MATTERPORT_NAMES if not hasattr(settings, name)] == []


def test_every_setting_has_a_comment_above_it():
    source = Path(configlib.__file__).read_text()
    body = source[source.index("class Config:") : source.index("def __init_subclass__")]
    lines = [line.strip() for line in body.splitlines()]
    for name in Config().to_dict():
        *_, index = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
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
    assert [d.pooling for d in DIALECTS.values()] == ["adaptive", "legacy", "legacy", "crop", "adaptive"]
    assert [d.stem_pool for d in DIALECTS.values()] == ["symmetric"] * 3 + ["same", "symmetric"]
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPTIMIZER", "adam", "OPTIMIZER must be one of sgd, adamw, not 'adam'"),
        ("LEARNING_RATE_DECAY", "foo", "LEARNING_RATE_DECAY must be one of steps, cosine"),
        ("DETECTION_MAX_INSTANCES", -1, "DETECTION_MAX_INSTANCES must be at least 1, not -1"),
        ("IMAGES_PER_GPU", 0, "IMAGES_PER_GPU must be at least 1, not 0"),
        ("DETECTION_MIN_CONFIDENCE", 7, r"DETECTION_MIN_CONFIDENCE must lie in \[0, 1\], not 7"),
        ("RPN_ANCHOR_SCALES", (32, 64), "RPN_ANCHOR_SCALES must have 5 entries"),
        ("LOSS_WEIGHTS", {"mask_loss": 1}, "LOSS_WEIGHTS must have no key but"),
    ],
)
def test_values_that_are_set_must_lie_in_their_range(name, value, message):
    settings = Config()
    with pytest.raises(ValueError, match=message):
        setattr(settings, name, value)
    assert getattr(settings, name) == getattr(Config, name)


def test_values_that_depend_on_others_may_be_set_one_after_another():
    settings = Config()
    settings.CLASS_NAMES = ("BG", "cell")
    with pytest.raises(ValueError, match="CLASS_NAMES must have 1 entries"):
        settings.validate()
    settings.NUM_CLASSES = 2
    settings.ACCEPT_CALIBRATION = range(12)
    settings.EARLY_STOPPING = None
    settings.validate()


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
        ({"IMAGE_CHANNEL_COUNT": 1, "MEAN_PIXEL": (1, 2, 3)}, "MEAN_PIXEL must have 1 entries"),
        ({"MEAN_PIXEL": (1, 2)}, "MEAN_PIXEL must have 3 entries"),
        ({"STD_PIXEL": (1, 0, 1)}, "above 0"),
        ({"IMAGE_MIN_DIM": 1500}, "IMAGE_MIN_DIM 1500 is above IMAGE_MAX_DIM 1333"),
        ({"GPU_COUNT": -1}, "GPU_COUNT must be at least 0, not -1"),
        ({"FROZEN_STAGES": 5}, r"FROZEN_STAGES must lie in \[0, 4\], not 5"),
        ({"EARLY_STOPPING": 0}, "EARLY_STOPPING must be at least 1, not 0"),
        ({"BACKBONE_WIDTH": 0.0}, "BACKBONE_WIDTH must be above 0, not 0"),
        ({"BBOX_STD_DEV": (0.1, 0.1, 0, 0.2)}, r"BBOX_STD_DEV must be above 0, not \(0.1, 0.1, 0, 0.2\)"),
        ({"MINI_MASK_SHAPE": (56,)}, r"MINI_MASK_SHAPE must have 2 entries \(height, width\), not 1"),
        ({"SCALE_JITTER": (1.0, 2.0, 3.0)}, "SCALE_JITTER must have 2 entries"),
        ({"SCALE_JITTER": (2.0, 1.0)}, r"SCALE_JITTER must be \(smallest, largest\) factor"),
        ({"SCHEDULE": "3x"}, "SCHEDULE must be one of None, 0.25x, 1x, 2x, matterport, not '3x'"),
        ({"LOSS_WEIGHTS": {"mask_loss": 1}}, "LOSS_WEIGHTS must have no key but rpn_class_loss, .* not 'mask_loss'"),
        ({"LOSS_WEIGHTS": {"mrcnn_mask_loss": -1}}, "LOSS_WEIGHTS must be at least 0"),
        ({"RPN_NEGATIVE_IOU": 0.8}, "RPN_NEGATIVE_IOU 0.8 is above RPN_POSITIVE_IOU 0.7"),
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
    assert settings.MASK_SHAPE == (28, 28)
    assert Config(MASK_POOL_SIZE=7).MASK_SHAPE == (14, 14)
    assert settings.IMAGE_SHAPE == (1024, 1024, 3)
    assert settings.IMAGE_META_SIZE == 12 + 5
    assert settings.BACKBONE_SHAPES == ((256, 256), (128, 128), (64, 64), (32, 32), (16, 16))
    assert Config(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=512).IMAGE_SHAPE[:2] == (512, 512)


def test_batch_size_counts_the_processes_of_torchrun(monkeypatch):
    """GPU_COUNT = 8 without torchrun is one process on one GPU: its batches have 2 images, not 16."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [Config(GPU_COUNT=count, IMAGES_PER_GPU=2).BATCH_SIZE for count in (0, 1, 8)] == [2, 2, 2]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [Config(GPU_COUNT=count, IMAGES_PER_GPU=2).BATCH_SIZE for count in (0, 1, 8)] == [8, 8, 8]


def test_shapes_of_a_callable_are_taken_where_pyramid_shapes_are_needed():
    def shapes(config, image_shape):
        return np.array([[image_shape[0] // stride, config.IMAGE_MIN_DIM] for stride in (2, 4, 8, 16, 32)])

    settings = Config(BACKBONE=dict, COMPUTE_BACKBONE_SHAPE=shapes, IMAGE_MIN_DIM=7, IMAGE_MAX_DIM=64)
    assert settings.BACKBONE_SHAPES == ((32, 7), (16, 7), (8, 7), (4, 7), (2, 7))
    assert settings.backbone_shapes((128, 64)) == ((64, 7), (32, 7), (16, 7), (8, 7), (4, 7))
    computed = modellib.compute_backbone_shapes(settings, (128, 64, 3))
    assert computed.dtype == np.int64
    assert computed.tolist() == [[64, 7], [32, 7], [16, 7], [8, 7], [4, 7]]
    assert Config().backbone_shapes((65, 64, 3)) == ((17, 16), (9, 8), (5, 4), (3, 2), (2, 1))


def test_losses_stand_once():
    assert tuple(Config.LOSS_WEIGHTS) == LOSSES
    assert set(Config().LOSS_WEIGHTS.values()) == {1.0}


def test_config_for_detection():
    class Cells(Config):
        NAME = "cells"
        IMAGE_RESIZE_MODE = "crop"
        IMAGE_MIN_DIM = 512
        IMAGES_PER_GPU = 8

    training = Cells(LEARNING_RATE=0.5)
    detection = training.for_detection(DETECTION_MIN_CONFIDENCE=0.4)
    changed = {"IMAGE_RESIZE_MODE": "pad64", "IMAGES_PER_GPU": 1, "DETECTION_MIN_CONFIDENCE": 0.4}
    assert detection.to_dict() == {**training.to_dict(), **changed}
    assert isinstance(detection, Cells)
    assert (training.IMAGE_RESIZE_MODE, training.IMAGES_PER_GPU) == ("crop", 8), "a copy"
    assert Config().for_detection().IMAGE_RESIZE_MODE == "shorter"
    assert training.for_detection(IMAGE_RESIZE_MODE="square", IMAGES_PER_GPU=3, IMAGE_MAX_DIM=1024).IMAGES_PER_GPU == 3
    with pytest.raises(ValueError, match="multiple of 64"):
        training.for_detection(IMAGE_RESIZE_MODE="square", IMAGE_MAX_DIM=1000)
    with pytest.raises(ValueError, match="did you mean NUM_CLASSES"):
        training.for_detection(NUMCLASSES=3)


############################################################
#  What depends on a setting
############################################################


def test_a_setting_without_a_range_or_effect_is_an_error_at_import():
    class Planted:
        OLD: Annotated[int | None, AtLeast(1), DETECTION, MEMORY] = 1
        FLAG: Annotated[bool | None, SHAPE] = None
        lower_case: int = 3

    class Bare(Planted):
        NEW: int = 1

    class NoRange(Planted):
        NEW: Annotated[int, RUN] = 1

    class NoEffect(Planted):
        NEW: Annotated[int, AtLeast(1)] = 1

    class NoEffectOfFlag(Planted):
        NEW: bool = True

    settings = settings_of(Planted)
    assert list(settings) == ["OLD", "FLAG"]
    assert settings["OLD"] == configlib.Setting(int | None, (AtLeast(1),), DETECTION | MEMORY)
    assert Planted.OLD == 1, "the class attribute is the plain default"
    for planted in (Bare, NoRange):
        with pytest.raises(TypeError, match=rf"{planted.__name__}\.NEW must say its range"):
            settings_of(planted)
    for planted in (NoEffect, NoEffectOfFlag):
        with pytest.raises(TypeError, match=rf"{planted.__name__}\.NEW must say what it affects"):
            settings_of(planted)


def test_what_weights_and_memory_depend_on():
    backbone = {"BACKBONE", "BACKBONE_STYLE", "MEAN_PIXEL", "STD_PIXEL"}
    assert set(settings_that(BACKBONE_WEIGHTS)) == backbone
    boxes = {"RPN_BBOX_STD_DEV", "BBOX_STD_DEV", "BACKBONE_STRIDES"}
    anchors = {"RPN_ANCHOR_RATIOS", "RPN_ANCHOR_SCALES", "RPN_ANCHOR_STRIDE"}
    assert set(settings_that(WEIGHTS)) == {"DIALECT", "PIXEL_RANGE"} | backbone | boxes | anchors
    convolutions = ("IMAGES_PER_GPU", "IMAGE_MIN_DIM", "IMAGE_MAX_DIM", "TRAIN_DTYPE", "ACTIVATION_CHECKPOINTING")
    assert set(settings_that(MEMORY)) == {*convolutions, "TRAIN_ROIS_PER_IMAGE"}
    names = settings_that(WEIGHTS, SHAPE)
    assert set(names) == {*settings_that(WEIGHTS), *settings_that(SHAPE)}
    assert list(names) == [name for name in SETTINGS if name in names], "in the order of Config"
    assert set(names) < set(settings_that(DETECTION))


def test_what_a_run_chooses_anew():
    run = settings_that(RUN)
    machine = ("GPU_COUNT", "IMAGES_PER_GPU", "STEPS_PER_EPOCH", "VALIDATION_STEPS", "WORKERS", "SEED")
    assert {"NAME", *machine, "FROZEN_STAGES", "IMAGENET_MODEL_PATH", "OPTIMIZER", "LOSS_WEIGHTS"} <= set(run)
    assert {"MAX_DATA_ERRORS", "TRAIN_BN", "EMA_DECAY", "EVAL_EVERY"} <= set(run)
    assert not {*run} & {*settings_that(WEIGHTS, SHAPE)}
    assert {*run} & {*settings_that(DETECTION)} == {"IMAGES_PER_GPU", "TF32"}


class Watched(Config):
    """Notes the settings that something reads."""

    def __getattribute__(self, name):
        if name in SETTINGS:
            super().__getattribute__("__dict__").setdefault("read", set()).add(name)
        return super().__getattribute__(name)

    def validate(self):
        """Reads every setting, which does not count."""


def test_detection_reads_no_other_settings_than_it_says():
    """A resumed evaluation compares settings_that(DETECTION): one that detection reads must be among them."""
    small = {"BACKBONE": "resnet18", "BACKBONE_WIDTH": 0.25, "TOP_DOWN_PYRAMID_SIZE": 16, "RPN_CHANNELS": 16}
    settings = Watched(**small, NUM_CLASSES=3, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64, DETECTION_MIN_CONFIDENCE=0.0)
    torch.manual_seed(0)
    model = modellib.MaskRCNN(settings).eval()
    (detected,) = model.detect([np.zeros((60, 64, 3), np.uint8)])
    assert len(detected["scores"]) > 0
    assert {"BACKBONE", "MEAN_PIXEL", "RPN_NMS_THRESHOLD", "MASKIOU_CLAMP", "IMAGES_PER_GPU"} <= settings.read
    of_training = {"ACTIVATION_CHECKPOINTING", "SEED"}  # the network is built with them
    assert settings.read - set(settings_that(DETECTION)) == of_training


############################################################
#  Settings that nothing reads
############################################################


def names_read(tree: ast.AST) -> set[str]:
    """Names of attributes that code reads: as `config.NAME`, or as getattr(config, "NAME")."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names |= {word.value for word in node.args[1:2] if isinstance(word, ast.Constant)}
    return names


def unread_settings(names: Iterable[str], config_source: str, other_sources: Iterable[str]) -> list[str]:
    """The names that no other source reads, neither directly nor by a method or property of Config that it uses.

    Checks of values are no use.
    """
    read = set().union(*(names_read(ast.parse(source)) for source in other_sources))
    (config,) = (node for node in ast.parse(config_source).body if getattr(node, "name", "") == "Config")
    methods = {node.name: names_read(node) for node in config.body if isinstance(node, ast.FunctionDef)}
    waiting = [name for name in methods if name in read and name != "validate"]
    while waiting:
        new = methods[waiting.pop()] - read
        read |= new
        waiting += [name for name in new if name in methods and name != "validate"]
    return [name for name in names if name not in read]


def product_sources() -> list[str]:
    """The text of every file that a setting can take effect in: not config.py, tests, benchmarks, assets or samples."""
    folders = ("nms", "roialign", "data", "weights", "training", "evaluation")
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py"))]
    return [path.read_text() for path in paths if path.name != "config.py"]


def test_every_setting_is_read_somewhere():
    source = (ROOT / "config.py").read_text()
    assert unread_settings(SETTINGS, source, product_sources()) == []


def test_a_setting_that_nothing_reads_is_noticed():
    source = (ROOT / "config.py").read_text()
    planted = [*SETTINGS, "PLANTED"]
    others = [*product_sources(), "config.PLANTED = 1\nCocoConfig(PLANTED=2)\n# config.PLANTED\nname = 'PLANTED'"]
    assert unread_settings(planted, source, others) == ["PLANTED"]
    assert unread_settings(planted, source, [*others, "if config.PLANTED: pass"]) == []
    assert unread_settings(planted, source, [*others, "getattr(config, 'PLANTED')"]) == []
    unused_method = [text.replace("config.backbone_shapes", "config.other") for text in others]
    assert unread_settings(planted, source, unused_method) == ["COMPUTE_BACKBONE_SHAPE", "PLANTED"]


############################################################
#  Settings that are gone
############################################################


def test_old_checkpoints_load_with_settings_that_are_gone(tmp_path):
    """As those of the time in which USE_RPN_ROIS and MASK_SHAPE were settings, and some of today's were not."""
    for name in ("shapes", "nuclei"):
        checkpoint = torch.load(ROOT / "assets" / f"{name}.pth", map_location="cpu", weights_only=True)
        stored = {"USE_RPN_ROIS": True, "MASK_SHAPE": [28, 28], **checkpoint["config"]}
        for later in ("BOX_HEAD_LOOKS", "MASK_NEAREST", "MASKIOU_DETECTIONS", "TF32", "COPY_PASTE"):
            del stored[later]
        torch.save({**checkpoint, "config": stored}, tmp_path / "old.pth")
        kept = {key: value for key, value in stored.items() if key in SETTINGS}
        loaded = Config.from_dict(stored, MASK_POOL_SIZE=7)
        assert loaded.to_dict() == {**Config().to_dict(), **kept, "MASK_POOL_SIZE": 7}
        assert loaded.MASK_SHAPE == (14, 14)
        opened = modellib.MaskRCNN.from_checkpoint(tmp_path / "old.pth", "cpu").config
        assert (opened.MASK_SHAPE, opened.BOX_HEAD_LOOKS) == ((28, 28), 1)


def test_a_stored_mask_shape_must_agree():
    with pytest.raises(ValueError, match=r"MASK_SHAPE \[56, 56\] must be twice MASK_POOL_SIZE 14"):
        Config.from_dict({"MASK_SHAPE": [56, 56]})
    assert Config.from_dict({"MASK_SHAPE": [56, 56], "MASK_POOL_SIZE": 28}).MASK_SHAPE == (56, 56)


@pytest.mark.parametrize("name", REMOVED)
def test_settings_that_are_gone_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"{name} is not a setting: .*; leave it out"):
        Config(**{name: True})
    with pytest.raises(ValueError, match=rf"{name} is not a setting: .*; leave it out"):
        parse_settings([f"{name}=True"])


@pytest.mark.parametrize("name", DERIVED)
def test_derived_values_name_the_setting_to_change(name):
    settings = Config()
    assert hasattr(settings, name)
    message = rf"{name} follows from other settings; set {DERIVED[name]} instead"
    with pytest.raises(ValueError, match=message):
        Config(**{name: 1})
    with pytest.raises(ValueError, match=message):
        setattr(settings, name, 1)
    with pytest.raises(ValueError, match=rf"Wrong\.{message}"):
        type("Wrong", (Config,), {name: 1})
    assert set(DERIVED[name].replace(",", "").replace(" or", "").split()) <= set(SETTINGS)


def test_display_prints_every_setting(capsys):
    Config(NAME="cells").display()
    lines = capsys.readouterr().out.splitlines()
    assert f"{'NAME':30} cells" in lines
    assert f"{'BATCH_SIZE':30} 2" in lines
    assert len([line for line in lines if line]) == len(SETTINGS) + len(DERIVED) + 1


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
        ("IMAGE_RESIZE_MODE=none", "none"),
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
        ("LEARNING_RATE=nan", "LEARNING_RATE must be float, not 'nan'"),
        ("LEARNING_RATE=1e999", "LEARNING_RATE must be float, finite and of 64 bits at most, not inf"),
        ("GRADIENT_CLIP_NORM=-1e999", "GRADIENT_CLIP_NORM must be float or None, finite .* not -inf"),
        ("MEAN_PIXEL=1,2,1e999", r"MEAN_PIXEL must be a list of float, finite .* not \(1, 2, inf\)"),
        ("LOSS_WEIGHTS={'mrcnn_mask_loss': 1e999}", "LOSS_WEIGHTS must be a dict of numbers, finite"),
        ("SEED=1e300", "SEED must be int, finite and of 64 bits at most"),
        (f"SEED=0x{'f' * 9000}", "SEED must be int, finite .* not a int that is too long to print"),
        (f"SEED={'[' * 5000}", "SEED must be int, not"),
        ("RPN_ANCHOR_SCALES=b'abcde'", "must be a list of float"),
        ("RPN_ANCHOR_RATIOS=()", "RPN_ANCHOR_RATIOS must have at least one entry"),
        ("A\x1b[2J=1", r"'A\\x1b\[2J' is not a setting"),
    ],
)
def test_set_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        Config(**parse_settings([text]))


def test_a_setting_has_one_value():
    assert parse_settings(["SEED=1", "SEED=1.0"]) == {"SEED": 1}, "the same one twice is no question"
    with pytest.raises(ValueError, match="--set has two values for SEED: 1 and 2; give one of them"):
        parse_settings(["SEED=1", "SEED=2"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 2**63, 1e19])
@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.kind is not bool])
def test_no_setting_takes_a_number_that_is_not_finite(name, number):
    """In any place where a setting may have a number. A float may be large."""
    for value in (number, [number] * 5, {"mrcnn_mask_loss": number}):
        if number == 1e19 and float in number_kinds(name):
            continue
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Config(**{name: value})


def number_kinds(name: str) -> list[type]:
    return [float] if "float" in str(SETTINGS[name].kind) else []


def test_display_shows_control_characters(capsys):
    Config(NAME="a\x1b[2J\nb").display()
    assert "NAME                           'a\\x1b[2J\\nb'\n" in capsys.readouterr().out


def test_messages_are_short():
    for settings in ({"RPN_ANCHOR_SCALES": [1.0] * 10**6}, {"CLASS_NAMES": ["x" * 10**6] * 3}, {"NAME": range(10**12)}):
        with pytest.raises(ValueError, match="must") as error:
            Config(**settings)
        assert len(str(error.value)) < 500


def test_stored_settings_of_wrong_types_are_named():
    with pytest.raises(ValueError, match="the name of a setting must be a text, not 3"):
        Config.from_dict({3: 4})
    with pytest.raises(ValueError, match="MASK_POOL_SIZE must be int, not None"):
        Config.from_dict({"MASK_POOL_SIZE": None})
    with pytest.raises(ValueError, match="MASK_SHAPE 28 must be twice"):
        Config.from_dict({"MASK_SHAPE": 28})
    with pytest.raises(ValueError, match=r"DIALECT must be one of .* not \['mmdet'\]"):
        Config.from_dict({"DIALECT": ["mmdet"]})


def test_coco_config():
    settings = CocoConfig()
    assert (settings.NUM_CLASSES, len(COCO_CATEGORIES)) == (81, 80)
    assert settings.CLASS_NAMES[:3] == ("BG", "person", "bicycle")
    assert settings.CATEGORY_IDS[1] == 1
    assert dict(zip(settings.CATEGORY_IDS, settings.CLASS_NAMES, strict=True))[90] == "toothbrush"
    gaps = set(range(1, 91)) - set(COCO_CATEGORIES)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}

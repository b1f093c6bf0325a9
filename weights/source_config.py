"""The configuration that Detectron2's trainer writes beside a checkpoint: what weights cannot tell.

    config.yaml of a yacs configuration     MODEL: {RESNETS: {STRIDE_IN_1X1: true}, PIXEL_MEAN: [...], ...}, INPUT: ...
    config.yaml of a LazyConfig             model: {_target_: ...GeneralizedRCNN, backbone: {...}, ...}, dataloader: ...

A LazyConfig is first brought into the keys of the other kind. Tables say what a key is worth: a setting of Config, a
fact that the weights show too and must not contradict, or something that this project computes in one way only. Other
keys are of no concern here. Nothing in a file is executed: tuples are read as lists, other Python objects are refused
by name.
"""

import ast
import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import utils
from config import Config

FILES = ("config.yaml", "config.yml")  # what the trainer, and people, call the file
NONE = "none"  # in place of a file: use no configuration
_MOST_BYTES = 1 << 16  # Detectron2's own have 10,000
_MOST_KEYS = 5000  # with those of aliases, each time that they are named; Detectron2's own have 300
_LONGEST_TEXT = 1000  # of a list or tuple; Detectron2's own have up to 100 characters
_DEEPEST = 50  # lists and dicts in each other; Detectron2's own have up to 6
_COMPLETE = "give the complete config.yaml that Detectron2's trainer writes beside its checkpoints"
_NO_MODEL = "it has neither MODEL nor model._target_"
_BASE = "Base-RCNN-FPN.yaml"  # of Detectron2's configs; it says what is usual


class Fact(NamedTuple):
    """What a configuration says of weights. key: its own name of it. setting: ours, of Config."""

    key: str
    setting: str
    value: Any


class SourceConfig(NamedTuple):
    """A configuration, in our words.

    settings: of Config. facts: the weights show them too. input_format: the channels of an image, BGR, RGB or L (gray);
    None: nobody says it. notes: what of it is not done here, for people.
    """

    path: Path
    settings: dict[str, Any]
    facts: list[Fact]
    input_format: str | None
    notes: list[str]

    def text(self) -> str:
        """What the file gave, for people: pixels and style in any case, and what is not usual."""
        always = ("BACKBONE_STYLE", "MEAN_PIXEL", "STD_PIXEL")
        here, usual = _config_of(self.settings).to_dict(), _config_of({}).to_dict()
        named = {n: value for n, value in self.settings.items() if n in always or here[n] != usual[n]}
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in named.items())
        others = len(self.settings) - len(named)
        rest = f", and {others} settings as Detectron2 usually has them" if others else ""
        return f"{self.path}: images in {self.input_format}, {shown}{rest}"

    def check(self, config: Config, names: Iterable[str] = ()) -> None:
        """Raises ValueError if weights say something else.

        config: whose shapes are those of the weights. names: of the weights, in our words.
        """
        wrong = [
            f"{key} makes {setting} {value}, and the weights have {getattr(config, setting)}"
            for key, setting, value in self.facts
            if getattr(config, setting) != value
        ]
        has_statistics = any(name.startswith("backbone.") and name.endswith(".running_var") for name in names)
        if self.settings.get("BACKBONE_NORM") == "group" and has_statistics:
            wrong.append("MODEL.RESNETS.NORM is GN, and the weights have the statistics of batch norms")
        if wrong:
            raise ValueError(
                f"{self.path} contradicts the checkpoint: {wrong[0]}. Give the configuration of this checkpoint with "
                f"--source-config FILE, or none with --source-config {NONE}, in Python source_config=..."
            )


def _config_of(settings: Mapping[str, Any]) -> Config:
    channels = len(settings.get("MEAN_PIXEL", Config.MEAN_PIXEL))
    return Config(DIALECT="detectron2", IMAGE_CHANNEL_COUNT=channels, **settings)


NO_CONFIG = SourceConfig(Path(), {}, [], None, [])


############################################################
#  Files
############################################################


def find_source_config(checkpoint: Path, given: str | Path | None) -> tuple[SourceConfig | None, list[str]]:
    """The configuration of a checkpoint, if there is one, and lines for people: what it gave, or why it is not used.

    given: its file; "none": use none; None: config.yaml or config.yml in the checkpoint's folder.

    Raises: as read_source_config, but for a file beside the checkpoint that is of something else.
    """
    if given is not None:
        return (None, []) if str(given) == NONE else _with_lines(read_source_config(given))
    path = next((path for name in FILES if (path := checkpoint.parent / name).is_file()), None)
    if path is None:
        return None, []
    try:
        is_of_detectron2 = _model_key(_read_yaml(path)) is not None
        reason = _NO_MODEL
    except ValueError as error:
        is_of_detectron2, reason = False, str(error)
    if not is_of_detectron2:
        return None, [f"{path}, beside the checkpoint, is no configuration of Detectron2 and is not used: {reason}"]
    try:
        return _with_lines(read_source_config(path))
    except ValueError as error:
        hint = f"If it belongs to another checkpoint, give --source-config {NONE}, in Python source_config='{NONE}'"
        raise ValueError(f"{error}. {hint}") from None


def _with_lines(config: SourceConfig) -> tuple[SourceConfig, list[str]]:
    return config, [config.text(), *config.notes]


def read_source_config(path: str | Path) -> SourceConfig:
    """A configuration of Detectron2.

    Raises: FileNotFoundError; ValueError for a file that is none, for a network or a way to compute that this project
        does not have, and for values that no setting can have.
    """
    path = Path(path)
    contents = _read_yaml(path)
    kind = _model_key(contents)
    if kind is None:
        raise ValueError(
            f"{path} is no configuration of Detectron2: {_NO_MODEL}; {_COMPLETE}, or say what it would with --style "
            "and --set"
        )
    try:
        values = _keys_of_lazy(contents) if kind == "model" else _flat(contents)
        _check_base(values)
        _check_supported(values)
        pixels, order = _pixels(values)
        settings = {**_style(values), **pixels, **_settings(values)}
        _config_of(settings)  # checks the ranges
        return SourceConfig(path, settings, _facts(values), order, _notes(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_yaml(path: Path) -> dict:
    """The dict of a file. Raises: FileNotFoundError; ValueError for what cannot be read as plain YAML."""
    import yaml  # here: few checkpoints have such files

    if not path.is_file():
        problem = "is a folder; give the file in it" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path}, the configuration of the checkpoint, {problem}")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, which is too long for a configuration")
    try:
        value = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_loader())
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(utils.printable(error, 500).replace("\\n", " ").split())
        raise ValueError(
            f"{path} cannot be read as plain YAML ({reason or type(error).__name__}); if it is of Detectron2, say what "
            "it would with --style and --set"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no keys and values, as a configuration of Detectron2 does")
    return value


@functools.cache
def _loader() -> type:
    """PyYAML's safe loader, which also reads the tuples that Python writes, as lists. It refuses all other objects by
    name; keys that merge others in, which make a small file large; and lists in many lists, which take it minutes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token: type) -> None:
            self._check_depth()
            super().fetch_flow_collection_start(token)

        def add_indent(self, column: int) -> bool:
            self._check_depth()
            return super().add_indent(column)

        def _check_depth(self) -> None:
            if self.flow_level + len(self.indents) > _DEEPEST:
                raise yaml.YAMLError(f"more than {_DEEPEST} lists or dicts lie in each other")

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("it merges keys with <<")

    def refuse(loader: Any, suffix: str, node: Any) -> None:
        raise yaml.YAMLError(f"it holds a Python object, {suffix}, which was not made")

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", Loader.construct_yaml_seq)
    Loader.add_multi_constructor("tag:yaml.org,2002:python/", refuse)
    return Loader


def _model_key(contents: Mapping) -> str | None:
    """MODEL, as yacs has it, model of a LazyConfig, or None."""
    if isinstance(contents.get("MODEL"), dict):
        return "MODEL"
    model = contents.get("model")
    return "model" if isinstance(model, dict) and "_target_" in model else None


def _flat(contents: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of dicts in dicts. Lists are values. Raises: ValueError for more keys than anybody writes."""
    flat: dict[str, Any] = {}
    left = [("", contents)]
    for _ in range(_MOST_KEYS):
        if not left:
            return flat
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{key}.{name}".lstrip("."), item) for name, item in value.items() if isinstance(name, str)]
        else:
            flat[key] = _decoded(value)
    raise ValueError(f"it has more than {_MOST_KEYS:,} keys, counted each time that an alias names them")


def _decoded(value: Any) -> Any:
    """A value as yacs reads it: the text of a tuple or list, such as (640, 800), which YAML has as text, as a list."""
    if not isinstance(value, str) or not re.match(r"\s*[(\[]", value) or len(value) > _LONGEST_TEXT or "\\" in value:
        return value
    try:
        return _lists(ast.literal_eval(value.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _lists(value: Any) -> Any:
    """A value with lists in place of tuples."""
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value


############################################################
#  LazyConfig
############################################################

_PREDICTOR, _RPN = "roi_heads.box_predictor.", "proposal_generator."
# {our key of a LazyConfig, below model: the key of yacs}
_LAZY = {
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "input_format": "INPUT.FORMAT",
    "backbone.fuse_type": "MODEL.FPN.FUSE_TYPE",
    "backbone.out_channels": "MODEL.FPN.OUT_CHANNELS",
    "backbone.bottom_up.stages.depth": "MODEL.RESNETS.DEPTH",
    "backbone.bottom_up.stages.norm": "MODEL.RESNETS.NORM",
    "backbone.bottom_up.stages.num_groups": "MODEL.RESNETS.NUM_GROUPS",
    f"{_RPN}anchor_generator.sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    f"{_RPN}anchor_generator.aspect_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    f"{_RPN}anchor_generator.offset": "MODEL.ANCHOR_GENERATOR.OFFSET",
    f"{_RPN}anchor_matcher.thresholds": "MODEL.RPN.IOU_THRESHOLDS",
    f"{_RPN}box2box_transform.weights": "MODEL.RPN.BBOX_REG_WEIGHTS",
    f"{_RPN}batch_size_per_image": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    f"{_RPN}nms_thresh": "MODEL.RPN.NMS_THRESH",
    f"{_RPN}min_box_size": "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    "roi_heads.num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
    "roi_heads.batch_size_per_image": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "roi_heads.positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "roi_heads.proposal_matcher.thresholds": "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    f"{_PREDICTOR}test_score_thresh": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    f"{_PREDICTOR}test_nms_thresh": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    f"{_PREDICTOR}test_topk_per_image": "TEST.DETECTIONS_PER_IMAGE",
    f"{_PREDICTOR}use_sigmoid_ce": "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
    f"{_PREDICTOR}box2box_transform.weights": "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    **{
        f"roi_heads.{part}_pooler.{lazy}": f"MODEL.ROI_{part.upper()}_HEAD.POOLER_{key}"
        for part in ("box", "mask")
        for lazy, key in (
            ("output_size", "RESOLUTION"),
            ("sampling_ratio", "SAMPLING_RATIO"),
            ("pooler_type", "TYPE"),
        )
    },
}
# {the name of a class, below model: (the key of yacs, {class: the name that yacs has for it})}
_CLASSES = {
    "": ("MODEL.META_ARCHITECTURE", {}),
    "backbone.": ("MODEL.BACKBONE.NAME", {"FPN": "build_resnet_fpn_backbone"}),
    _RPN: ("MODEL.PROPOSAL_GENERATOR.NAME", {}),
    f"{_RPN}head.": ("MODEL.RPN.HEAD_NAME", {}),
    f"{_RPN}anchor_generator.": ("MODEL.ANCHOR_GENERATOR.NAME", {}),
    "roi_heads.": ("MODEL.ROI_HEADS.NAME", {}),
    "roi_heads.box_head.": ("MODEL.ROI_BOX_HEAD.NAME", {}),
    "roi_heads.mask_head.": ("MODEL.ROI_MASK_HEAD.NAME", {}),
}


def _keys_of_lazy(contents: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of a LazyConfig as yacs would have them. What refers to another key (${...}) is left out."""
    lazy = {key: value for key, value in _flat(contents["model"]).items() if not _is_reference(value)}
    values = {key: lazy[name] for name, key in _LAZY.items() if name in lazy}
    for name, (key, classes) in _CLASSES.items():
        if name + "_target_" in lazy:
            target = str(lazy[name + "_target_"]).rpartition(".")[2]
            values[key] = classes.get(target, target)
    bottom_up = str(lazy.get("backbone.bottom_up._target_", "ResNet")).rpartition(".")[2]
    if bottom_up != "ResNet":
        values["MODEL.BACKBONE.NAME"] = bottom_up
    values["MODEL.RESNETS.STRIDE_IN_1X1"] = lazy.get("backbone.bottom_up.stages.stride_in_1x1", False)
    values["MODEL.MASK_ON"] = any(name.startswith("roi_heads.mask_head.") for name in lazy)
    values["MODEL.KEYPOINT_ON"] = any(name.startswith("roi_heads.keypoint_head.") for name in lazy)
    for name in ("pre_nms_topk", "post_nms_topk"):
        counts = lazy.get(_RPN + name)
        if isinstance(counts, list) and len(counts) == 2:
            values[f"MODEL.RPN.{name.upper()}_TRAIN"], values[f"MODEL.RPN.{name.upper()}_TEST"] = counts
    return {**values, **_lazy_sizes(_flat(contents).get("dataloader.test.mapper.augmentations"))}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


def _lazy_sizes(augmentations: Any) -> dict[str, Any]:
    """The sizes that images are resized to, of the augmentations of a LazyConfig's test."""
    for step in augmentations if isinstance(augmentations, list) else ():
        if isinstance(step, dict) and str(step.get("_target_")).endswith("ResizeShortestEdge"):
            short = step.get("short_edge_length")
            short = short[0] if isinstance(short, list) and len(short) == 1 else short
            sizes = {"INPUT.MIN_SIZE_TEST": short, "INPUT.MAX_SIZE_TEST": step.get("max_size")}
            return {key: value for key, value in sizes.items() if value is not None and not _is_reference(value)}
    return {}


############################################################
#  Values
############################################################


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value[:20])) + (" ..." if len(value) > 20 else "")
    return f"{value:g}" if isinstance(value, float) else utils.printable(value, 100)


def _number(key: str, value: Any) -> float:
    """A number; YAML takes 1e-3, without a point, for a text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise ValueError(f"{key} must be a number, not {_quoted(value)}")
    return value


def _whole(key: str, value: Any) -> int:
    number = _number(key, value)
    if number != int(number):
        raise ValueError(f"{key} must be a whole number, not {_quoted(value)}")
    return int(number)


def _number_list(key: str, value: Any, count: int | None = None) -> tuple[float, ...]:
    """Numbers above which nothing is said. count: how many, where it matters."""
    if not isinstance(value, list) or not 0 < len(value) <= 100 or len(value) != (count or len(value)):
        raise ValueError(f"{key} must be a list of {count or 'up to 100'} numbers, not {_quoted(value)}")
    return tuple(_number(key, number) for number in value)


def _inverse(key: str, value: Any, count: int | None = None) -> tuple[float, ...]:
    numbers = _number_list(key, value, count)
    if min(numbers) <= 0:
        raise ValueError(f"{key} must be numbers above 0, not {_quoted(value)}")
    return tuple(1 / number for number in numbers)


def _quoted(value: Any) -> str:
    """A value for a message."""
    return utils.printable(_outline(value), 100)


def _outline(value: Any, depth: int = 0) -> str:
    """A list or dict for a message: its first entries, and not those of a hundred others inside them."""
    if isinstance(value, list | dict):
        items = list(value)[:5]
        inside = ", ".join(_outline(item, depth + 1) for item in items) if depth < 3 else "..."
        return f"[{inside}{', ...' if len(value) > 5 else ''}]"
    is_enormous = isinstance(value, int) and value.bit_length() > 100  # Python prints no number of 5,000 digits
    return "an enormous number" if is_enormous else utils.printable(value, 100)


############################################################
#  What this project computes in one way only
############################################################

_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {  # {key: (values, what is supported, for people)}
    "MODEL.META_ARCHITECTURE": (("GeneralizedRCNN", "PanopticFPN"), "a Mask R-CNN: GeneralizedRCNN"),
    "MODEL.MASK_ON": ((True,), "models with masks: True"),
    "MODEL.KEYPOINT_ON": ((False,), "models without keypoints: False"),
    "MODEL.LOAD_PROPOSALS": ((False,), "a region proposal network: False"),
    "MODEL.BACKBONE.NAME": (("build_resnet_fpn_backbone",), "a ResNet with FPN: build_resnet_fpn_backbone"),
    "MODEL.RESNETS.RES5_DILATION": ((1,), "1; DC5 models have 2"),
    "MODEL.FPN.IN_FEATURES": ((["res2", "res3", "res4", "res5"],), "res2 to res5"),
    "MODEL.FPN.FUSE_TYPE": (("sum",), "sum"),
    "MODEL.PROPOSAL_GENERATOR.NAME": (("RPN",), "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": ((0,), "0"),
    "MODEL.RPN.HEAD_NAME": (("StandardRPNHead",), "StandardRPNHead"),
    "MODEL.RPN.IN_FEATURES": ((["p2", "p3", "p4", "p5", "p6"],), "p2 to p6"),
    "MODEL.ANCHOR_GENERATOR.NAME": (("DefaultAnchorGenerator",), "DefaultAnchorGenerator"),
    "MODEL.ANCHOR_GENERATOR.OFFSET": ((0,), "0"),
    "MODEL.ROI_HEADS.NAME": (("StandardROIHeads",), "StandardROIHeads, not C4's, cascades or PointRend's"),
    "MODEL.ROI_HEADS.IN_FEATURES": ((["p2", "p3", "p4", "p5"],), "p2 to p5"),
    "MODEL.ROI_BOX_HEAD.NAME": (("FastRCNNConvFCHead",), "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": ((False,), "a softmax over the classes: False"),
    "MODEL.ROI_MASK_HEAD.NAME": (("MaskRCNNConvUpsampleHead",), "MaskRCNNConvUpsampleHead"),
    **{f"MODEL.ROI_{part}_HEAD.POOLER_TYPE": (("ROIAlignV2",), "ROIAlignV2") for part in ("BOX", "MASK")},
    **{f"MODEL.ROI_{part}_HEAD.POOLER_SAMPLING_RATIO": ((0,), "0, as many as needed") for part in ("BOX", "MASK")},
}


def _check_base(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a file that only says what differs from another one, unless it is the usual one."""
    base = values.get("_BASE_")
    if base is not None and not (isinstance(base, str) and re.split(r"[/\\]", base)[-1] == _BASE):
        raise ValueError(f"_BASE_ is {_quoted(base)}, a file that is not read; {_COMPLETE}")


def _check_supported(values: Mapping[str, Any]) -> None:
    """Raises ValueError for the first value that this project does not compute."""
    for key, (supported, words) in _ONLY.items():
        value = values.get(key)
        number = int(value) if type(value) is float and value.is_integer() else value  # 0.0 is 0, and False is not
        if value is not None and not any(type(number) is type(one) and number == one for one in supported):
            raise ValueError(f"{key} is {_quoted(value)}, and this project has {words}")
    stages = values.get("MODEL.RESNETS.DEFORM_ON_PER_STAGE")
    if isinstance(stages, list) and any(stage is True for stage in stages):
        raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE has True, and this project has no deformable convolutions")


def _notes(values: Mapping[str, Any]) -> list[str]:
    """What a configuration asks for and is left out, for people."""
    notes = []
    if values.get("TEST.AUG.ENABLED") is True:
        notes.append("TEST.AUG.ENABLED: images are seen once here, without the test-time augmentation of evaluations")
    if values.get("MODEL.META_ARCHITECTURE") == "PanopticFPN":
        notes.append("MODEL.META_ARCHITECTURE PanopticFPN: its instances are detected, its semantic map is not")
    if values.get("INPUT.MIN_SIZE_TRAIN_SAMPLING") == "range":
        notes.append(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range: a training sees images of the size of tests, unless MULTI_SCALE has "
            "other short sides"
        )
    if values.get("INPUT.MIN_SIZE_TEST") == 0:
        usual = _config_of({})
        notes.append(
            f"INPUT.MIN_SIZE_TEST 0, which leaves images as they are: here their short sides get {usual.IMAGE_MIN_DIM} "
            "pixels; IMAGE_MIN_DIM and IMAGE_MAX_DIM change it"
        )
    return notes


############################################################
#  Settings
############################################################

_PLAIN: dict[str, tuple[str, Callable[[str, Any], Any]]] = {  # {key: (the setting, how its value is read)}
    "INPUT.MAX_SIZE_TEST": ("IMAGE_MAX_DIM", _whole),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("PRE_NMS_LIMIT", _whole),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": ("PRE_NMS_LIMIT_TRAINING", _whole),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("POST_NMS_ROIS_INFERENCE", _whole),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": ("POST_NMS_ROIS_TRAINING", _whole),
    "MODEL.RPN.NMS_THRESH": ("RPN_NMS_THRESHOLD", _number),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("RPN_TRAIN_ANCHORS_PER_IMAGE", _whole),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("TRAIN_ROIS_PER_IMAGE", _whole),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("ROI_POSITIVE_RATIO", _number),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("DETECTION_MIN_CONFIDENCE", _number),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("DETECTION_NMS_THRESHOLD", _number),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": ("MASK_POOL_SIZE", _whole),
    "TEST.DETECTIONS_PER_IMAGE": ("DETECTION_MAX_INSTANCES", _whole),
}
_FLIPS = {"horizontal": (0.5, 0.0), "vertical": (0.0, 0.5), "none": (0.0, 0.0)}


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of Config, but for style and pixels."""
    known = {key: value for key, value in values.items() if value is not None}
    settings = {name: read(key, known[key]) for key, (name, read) in _PLAIN.items() if key in known}
    for part, name in (("RPN", "RPN_BBOX_STD_DEV"), ("ROI_BOX_HEAD", "BBOX_STD_DEV")):
        key = f"MODEL.{part}.BBOX_REG_WEIGHTS"
        if key in known:
            dx, dy, dw, dh = _inverse(key, known[key], 4)
            settings[name] = (dy, dx, dh, dw)
    if "MODEL.RPN.IOU_THRESHOLDS" in known:
        low, high = _number_list("MODEL.RPN.IOU_THRESHOLDS", known["MODEL.RPN.IOU_THRESHOLDS"], 2)
        settings |= {"RPN_NEGATIVE_IOU": low, "RPN_POSITIVE_IOU": high}
    if "MODEL.ROI_HEADS.IOU_THRESHOLDS" in known:
        key = "MODEL.ROI_HEADS.IOU_THRESHOLDS"
        settings["ROI_POSITIVE_IOU"] = _number_list(key, known[key], 1)[0]
    if "MODEL.RESNETS.NORM" in known:
        settings["BACKBONE_NORM"] = "group" if known["MODEL.RESNETS.NORM"] == "GN" else "batch"
    if known.get("INPUT.RANDOM_FLIP") in _FLIPS:
        settings |= zip(("HORIZONTAL_FLIP", "VERTICAL_FLIP"), _FLIPS[known["INPUT.RANDOM_FLIP"]], strict=True)
    return {**settings, **_sizes(known), **_anchors(known)}


def _sizes(known: Mapping[str, Any]) -> dict[str, Any]:
    """The sides of images. A short side above the longest is never reached: the long side decides then."""
    settings: dict[str, Any] = {}
    short = _whole("INPUT.MIN_SIZE_TEST", known.get("INPUT.MIN_SIZE_TEST", 0))
    longest = _whole("INPUT.MAX_SIZE_TEST", known.get("INPUT.MAX_SIZE_TEST", Config.IMAGE_MAX_DIM))
    if short:
        settings["IMAGE_MIN_DIM"] = min(short, longest)
    elif longest < Config.IMAGE_MIN_DIM:
        settings["IMAGE_MIN_DIM"] = longest
    trained = known.get("INPUT.MIN_SIZE_TRAIN")
    if isinstance(trained, list) and len(trained) > 1 and known.get("INPUT.MIN_SIZE_TRAIN_SAMPLING") != "range":
        sides = _number_list("INPUT.MIN_SIZE_TRAIN", trained)
        settings["MULTI_SCALE"] = tuple(_whole("INPUT.MIN_SIZE_TRAIN", side) for side in sides)
    return settings


def _anchors(known: Mapping[str, Any]) -> dict[str, Any]:
    """RPN_ANCHOR_SCALES and RPN_ANCHOR_RATIOS: width to height, the last one first, because conversions turn the
    anchors of a cell round."""
    settings: dict[str, Any] = {}
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        lists = known.get(key)
        if lists is None:
            continue
        lists = [lists] if isinstance(lists, list) and lists and not isinstance(lists[0], list) else lists
        if not isinstance(lists, list) or len(lists) not in (1, 5):
            raise ValueError(f"{key} must have a list for each of P2 to P6, or one for all, not {_quoted(lists)}")
        levels = [_number_list(key, numbers) for numbers in lists]
        if key.endswith("SIZES"):
            if any(len(sizes) != 1 for sizes in levels):
                raise ValueError(f"{key} has several sizes on one level, {_quoted(lists)}, and this project has one")
            settings["RPN_ANCHOR_SCALES"] = tuple(sizes[0] for sizes in levels * (5 // len(levels)))
        elif any(ratios != levels[0] for ratios in levels):
            raise ValueError(f"{key} has other ratios on some levels, {_quoted(lists)}, and this project has the same")
        else:
            settings["RPN_ANCHOR_RATIOS"] = _inverse(key, list(levels[0]))[::-1]
    return settings


def _style(values: Mapping[str, Any]) -> dict[str, str]:
    """BACKBONE_STYLE. Where nothing says it, it is what Detectron2 does without the key."""
    in_first = values.get("MODEL.RESNETS.STRIDE_IN_1X1", True)
    if type(in_first) is not bool:
        raise ValueError(f"MODEL.RESNETS.STRIDE_IN_1X1 must be true or false, not {_quoted(in_first)}")
    return {"BACKBONE_STYLE": "caffe" if in_first else "pytorch"}


def _pixels(values: Mapping[str, Any]) -> tuple[dict[str, tuple[float, ...]], str]:
    """MEAN_PIXEL and STD_PIXEL in RGB, or of gray, and the order of the channels that the weights take.

    Where the file does not say them, they are what Detectron2 does without these keys.
    """
    order = values.get("INPUT.FORMAT", "BGR")
    if order not in ("BGR", "RGB", "L"):
        raise ValueError(f"INPUT.FORMAT is {_quoted(order)}, and this project has BGR, RGB and L")
    defaults = {"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675], "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    pixels = {}
    for (key, default), name in zip(defaults.items(), ("MEAN_PIXEL", "STD_PIXEL"), strict=True):
        numbers = _number_list(key, values.get(key, default), 1 if order == "L" else 3)
        pixels[name] = numbers[::-1] if order == "BGR" else numbers
    return pixels, order


############################################################
#  Facts that the weights show too
############################################################

_FACTS = {  # {key: (the setting, what is added to its value)}
    "MODEL.ROI_HEADS.NUM_CLASSES": ("NUM_CLASSES", 1),  # the background
    "MODEL.FPN.OUT_CHANNELS": ("TOP_DOWN_PYRAMID_SIZE", 0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("POOL_SIZE", 0),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": ("BOX_HEAD_CONVS", 0),
    "MODEL.ROI_BOX_HEAD.NUM_FC": ("BOX_HEAD_FC_LAYERS", 0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("FPN_CLASSIF_FC_LAYERS_SIZE", 0),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": ("MASK_HEAD_CONVS", 0),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ("MASK_HEAD_CHANNELS", 0),
}


def _facts(values: Mapping[str, Any]) -> list[Fact]:
    """What a configuration says and weights show."""
    known = {key: value for key, value in values.items() if value is not None}
    facts = [Fact(key, name, _whole(key, known[key]) + more) for key, (name, more) in _FACTS.items() if key in known]
    dims = known.get("MODEL.RPN.CONV_DIMS")
    if dims is not None:
        facts.append(Fact("MODEL.RPN.CONV_DIMS", "RPN_CONVS", len(_number_list("MODEL.RPN.CONV_DIMS", dims))))
    if "MODEL.RESNETS.DEPTH" in known:
        depth = _whole("MODEL.RESNETS.DEPTH", known["MODEL.RESNETS.DEPTH"])
        groups = _whole("MODEL.RESNETS.NUM_GROUPS", known.get("MODEL.RESNETS.NUM_GROUPS", 1))
        width = known.get("MODEL.RESNETS.WIDTH_PER_GROUP")
        if groups == 1:
            facts.append(Fact("MODEL.RESNETS.DEPTH", "BACKBONE", f"resnet{depth}"))
        elif width is not None:
            name = f"resnext{depth}_{groups}x{_whole('MODEL.RESNETS.WIDTH_PER_GROUP', width)}d"
            facts.append(Fact("MODEL.RESNETS.DEPTH, NUM_GROUPS and WIDTH_PER_GROUP", "BACKBONE", name))
    return facts

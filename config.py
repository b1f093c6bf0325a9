"""Settings: Config, one attribute each, and Dialect, how a family of checkpoints computes.

Subclass Config for a data set and override what differs:

    class BalloonConfig(Config):
        NAME = "balloon"
        CLASS_NAMES = ("BG", "balloon")
        NUM_CLASSES = 2

A name that Config does not know is an error that suggests the one that was meant. Values come from, strongest first:
keyword arguments of the constructor (`--set NAME=VALUE` on every command line), the subclass, the dialect, Config.

Imports nothing of this project.
"""

import ast
import copy
import difflib
import enum
import functools
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

############################################################
#  Dialects
############################################################


@dataclass(frozen=True)
class Dialect:
    """How one family of checkpoints computes what all have in common: rounding, centres, orders, sampling.

    Weights are right only under the dialect that they were trained in. Numbers that a user may set are not here: they
    are attributes of Config, and `defaults` holds those whose usual value differs in this dialect.
    """

    size_rounding: str  # resized sides of mode "shorter": a rule of utils.ROUNDINGS
    resampling: str  # what resizes images: opencv, pillow, torch or skimage
    pads_before_mean: bool  # True: padding is black pixels; False: padding is zero after the mean is subtracted
    stem_pool: str  # the 3x3 max pool pads on all sides (symmetric), or at the right and bottom only (same)
    anchor_rounding: str  # exact; stride (rounded at the stride's size, then scaled); or corners
    anchor_centre: float  # of a cell, in strides: 0 is its corner
    anchor_stride: str  # fixed (BACKBONE_STRIDES), or from the padded image and the feature map (map)
    coordinates: str  # what the sources' boxes are: half_open; inclusive, "+1"; or normalised by (side - 1)
    delta_limits: tuple[float | None, float | None]  # log sizes are clamped to these before exp
    proposals_of: str  # PRE_NMS_LIMIT and NMS apply to each level, or to the whole image
    proposal_order: str  # anchors are ranked by probability, or by logit
    drops_infinite: bool  # anchors and RoIs with a logit or a delta that is no finite number give nothing
    min_proposal_side: float  # proposals must be larger along both sides, pixels
    min_detection_side: float  # the same for detections
    level_rule: str  # pyramid level of an RoI: a branch of model.roi_levels
    pooling: str  # adaptive (aligned RoIAlign), legacy (RoIAlign, 2 samples) or crop (crop_and_resize)
    detections_of: str  # every class above the threshold may give a detection, or only an RoI's best class
    clips_result: bool  # boxes in the original image are clipped to it, and empty ones dropped
    paste: str  # masks are sampled at pixel centres, expanded by a cell, or resized into the rounded box
    anchors_outside: bool  # in training: anchors that reach outside of the image take part
    rpn_counts_missing: bool  # in training: an image without positive anchors counts as if it had one; negative too
    rpn_counts_quota: bool  # in training: the RPN's divisor is RPN_TRAIN_ANCHORS_PER_IMAGE, however few there are
    low_quality_steals: bool  # in training: an object's best anchors are its own, though they overlap another one more
    low_quality_rois: bool  # in training: RoIs are matched as anchors are: the best of an object are its own
    gt_rois_first: bool  # in training: ground-truth boxes become RoIs before the proposals, or after them
    rpn_beta: float  # smooth L1 of anchor deltas is quadratic below this; 0 is L1
    box_beta: float  # the same of box deltas
    trains_affine: bool  # in training: factors and shifts of frozen batch norms learn, but for the style "caffe"
    defaults: Mapping[str, Any] = field(default_factory=dict)


_LOG_LIMIT = math.log(1000 / 16)
_BOTH_LIMITS, _UPPER_LIMIT = (-_LOG_LIMIT, _LOG_LIMIT), (None, _LOG_LIMIT)

# fmt: off
_COLUMNS = (
    # what                  mmdet             benchmark         torchvision       matterport        detectron2
    ("size_rounding",      "half_up",        "truncate",       "floor",          "half_even",      "scale_twice"),
    ("resampling",         "opencv",         "pillow",         "torch",          "skimage",        "pillow"),
    ("pads_before_mean",   False,            False,            False,            True,             False),
    ("stem_pool",          "symmetric",      "symmetric",      "symmetric",      "same",           "symmetric"),
    ("anchor_rounding",    "exact",          "stride",         "corners",        "exact",          "exact"),
    ("anchor_centre",      0.0,              0.5,              0.0,              0.0,              0.0),
    ("anchor_stride",      "fixed",          "fixed",          "map",            "fixed",          "fixed"),
    ("coordinates",        "half_open",      "inclusive",      "half_open",      "normalised",     "half_open"),
    ("delta_limits",       _BOTH_LIMITS,     _UPPER_LIMIT,     _UPPER_LIMIT,     (None, None),     _UPPER_LIMIT),
    ("proposals_of",       "level",          "level",          "level",          "image",          "level"),
    ("proposal_order",     "probability",    "probability",    "logit",          "probability",    "logit"),
    ("drops_infinite",     False,            False,            False,            False,            True),
    ("min_proposal_side",  0.0,              -1.0,             1e-3,             -1.0,             0.0),
    ("min_detection_side", -1.0,             -1.0,             1e-2,             -1.0,             -1.0),
    ("level_rule",         "inside_56",      "inside_224",     "outside",        "round",          "inside_1e-8"),
    ("pooling",            "adaptive",       "legacy",         "legacy",         "crop",           "adaptive"),
    ("detections_of",      "every class",    "every class",    "every class",    "best class",     "every class"),
    ("clips_result",       False,            False,            False,            False,            True),
    ("paste",              "centres",        "expand",         "expand",         "resize",         "centres"),
    ("anchors_outside",    True,             False,            True,             True,             True),
    ("rpn_counts_missing", True,             False,            False,            False,            False),
    ("rpn_counts_quota",   False,            False,            False,            False,            True),
    ("low_quality_steals", True,             False,            False,            False,            False),
    ("low_quality_rois",   True,             False,            False,            False,            False),
    ("gt_rois_first",      True,             False,            False,            True,             False),
    ("rpn_beta",           0.0,              1 / 9,            1 / 9,            1.0,              0.0),
    ("box_beta",           0.0,              1.0,              1 / 9,            1.0,              0.0),
    ("trains_affine",      True,             False,            False,            False,            False),
)
# fmt: on

# What Config's own values, which are mmdet's, are replaced by. Pixels are RGB, 0 to 255.
_DEFAULTS = {
    "mmdet": {},
    "benchmark": {
        "MEAN_PIXEL": (122.7717, 115.9465, 102.9801),
        "STD_PIXEL": (1.0, 1.0, 1.0),
        "BACKBONE_STYLE": "caffe",
        "POST_NMS_ROIS_TRAINING": 2000,
        "BIAS_LEARNING_RATE_FACTOR": 2.0,
        "WEIGHT_DECAY_BIASES": False,
    },
    "torchvision": {
        "MEAN_PIXEL": (0.485 * 255, 0.456 * 255, 0.406 * 255),
        "STD_PIXEL": (0.229 * 255, 0.224 * 255, 0.225 * 255),
        "POST_NMS_ROIS_TRAINING": 2000,
    },
    "matterport": {
        "IMAGE_RESIZE_MODE": "square",
        "IMAGE_MAX_DIM": 1024,
        "MEAN_PIXEL": (123.7, 116.8, 103.9),
        "STD_PIXEL": (1.0, 1.0, 1.0),
        "BACKBONE_STYLE": "caffe",
        "RPN_CHANNELS": 512,
        "RPN_BBOX_STD_DEV": (0.1, 0.1, 0.2, 0.2),
        "PRE_NMS_LIMIT": 6000,
        "PRE_NMS_LIMIT_TRAINING": 6000,
        "MASK_NEAREST": "corners",
        "POST_NMS_ROIS_TRAINING": 2000,
        "TRAIN_ROIS_PER_IMAGE": 200,
        "ROI_POSITIVE_RATIO": 0.33,
        "DETECTION_MIN_CONFIDENCE": 0.7,
        "DETECTION_NMS_THRESHOLD": 0.3,
        "WEIGHT_DECAY_NORMS": False,
    },
    "detectron2": {
        "STD_PIXEL": (1.0, 1.0, 1.0),
        "BACKBONE_STYLE": "caffe",
        "WEIGHT_DECAY_NORMS": False,
    },
}

# Where new training departs from a reference on purpose; with these it computes what mmdetection's own code does.
REFERENCE_TRAINING = {
    "MASKIOU_TARGET_LOGIT": 0.5,
    "MASKIOU_KEEP_ZERO_TARGETS": False,
    "MASKIOU_EXACT_AREA": False,
    "MASK_NEAREST": "floor",
    "CROWD_OVERLAP": None,
    "GRADIENT_CLIP_NORM": None,
}

DIALECTS: dict[str, Dialect] = {
    name: Dialect(**{row[0]: row[column] for row in _COLUMNS}, defaults=defaults)
    for column, (name, defaults) in enumerate(_DEFAULTS.items(), start=1)
}


class Architecture(NamedTuple):
    """The blocks of a ResNet or ResNeXt."""

    blocks: tuple[int, ...]  # of each of the four stages
    is_bottleneck: bool  # three convolutions a block, else two
    groups: int  # of a bottleneck's 3x3 convolution
    group_width: int  # channels of a group in the first stage


# The named backbones. weights/published.py has the ImageNet weights for them.
BACKBONES: dict[str, Architecture] = {
    "resnet18": Architecture((2, 2, 2, 2), False, 1, 64),
    "resnet34": Architecture((3, 4, 6, 3), False, 1, 64),
    "resnet50": Architecture((3, 4, 6, 3), True, 1, 64),
    "resnet101": Architecture((3, 4, 23, 3), True, 1, 64),
    "resnet152": Architecture((3, 8, 36, 3), True, 1, 64),
    "resnext101_32x4d": Architecture((3, 4, 23, 3), True, 32, 4),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), True, 64, 4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), True, 32, 8),
}
RESIZE_MODES = ("shorter", "square", "pad64", "crop", "none")


############################################################
#  What a setting says of itself
############################################################


class Affects(enum.Flag):
    """What depends on a setting. A setting may affect several things; settings_that lists the settings of each."""

    DETECTION = enum.auto()  # what a model detects in an image
    TRAINING = enum.auto()  # what a model learns from: images, targets and losses
    RUN = enum.auto()  # how one training goes; another training that starts from its checkpoint chooses anew
    MEMORY = enum.auto()  # the memory that a training takes; the settings to lower when memory runs out
    _SHAPE = enum.auto()
    _WEIGHTS = enum.auto()
    _BACKBONE = enum.auto()
    SHAPE = _SHAPE | DETECTION  # which layers the network has, and the shapes of its weights
    WEIGHTS = _WEIGHTS | DETECTION  # what weights mean: they are right only with the value that they were trained with
    BACKBONE_WEIGHTS = _BACKBONE | WEIGHTS  # the same, and weights of a backbone alone depend on it already


DETECTION, TRAINING, RUN, MEMORY = Affects.DETECTION, Affects.TRAINING, Affects.RUN, Affects.MEMORY
SHAPE, WEIGHTS, BACKBONE_WEIGHTS = Affects.SHAPE, Affects.WEIGHTS, Affects.BACKBONE_WEIGHTS


class Range:
    """Which values of its type a setting may have. None, where the type allows it, is in every range."""

    @property
    def stands_alone(self) -> bool:
        """Whether no other setting decides which values are in the range."""
        return True

    def problem(self, value: Any, config: "Config") -> str | None:
        """What is wrong with a value, as "must be ..., not ...", or None."""
        return None


@dataclass(frozen=True)
class AtLeast(Range):
    """Numbers that are not below low; of a tuple or a dict, every number in it."""

    low: float

    def problem(self, value: Any, config: "Config") -> str | None:
        is_inside = all(number >= self.low for number in _numbers_in(value))
        return None if is_inside else f"must be at least {self.low}, not {_shown(value)}"


@dataclass(frozen=True)
class Above(Range):
    """Numbers above low; of a tuple, every number in it."""

    low: float

    def problem(self, value: Any, config: "Config") -> str | None:
        is_inside = all(number > self.low for number in _numbers_in(value))
        return None if is_inside else f"must be above {self.low}, not {_shown(value)}"


@dataclass(frozen=True)
class Between(Range):
    """Numbers from low to high, both included."""

    low: float
    high: float

    def problem(self, value: Any, config: "Config") -> str | None:
        return None if self.low <= value <= self.high else f"must lie in [{self.low}, {self.high}], not {value}"


@dataclass(frozen=True)
class OneOf(Range):
    """Some values, and any callable where the type allows one."""

    values: Sequence[Any]

    def problem(self, value: Any, config: "Config") -> str | None:
        if value in self.values or callable(value):
            return None
        is_callable = isinstance(value, str) and value.startswith("<")
        hint = "; give the callable again: from_checkpoint(..., BACKBONE=...)" if is_callable else ""
        return f"must be one of {', '.join(map(str, self.values))}, not {_shown(value)}{hint}"


@dataclass(frozen=True)
class Length(Range):
    """Tuples of this many entries.

    count: the number, or the name of the setting that holds it. entries: what they are, for the error message.
    """

    count: int | str
    entries: str = ""

    @property
    def stands_alone(self) -> bool:
        return not isinstance(self.count, str)

    def problem(self, value: Any, config: "Config") -> str | None:
        count = getattr(config, self.count) if isinstance(self.count, str) else self.count
        if len(value) == count:
            return None
        return f"must have {count} entries ({self.entries or self.count}), not {len(value)}: {_shown(value)}"


@dataclass(frozen=True)
class OfEachClass(Range):
    """Tuples of this many numbers for each class, one class after another, background first."""

    count: int

    @property
    def stands_alone(self) -> bool:
        return False

    def problem(self, value: Any, config: "Config") -> str | None:
        expected = self.count * config.NUM_CLASSES
        return (
            None
            if len(value) == expected
            else f"must have {expected} numbers, {self.count} for each class, not {len(value)}"
        )


@dataclass(frozen=True)
class Keys(Range):
    """Dicts that have no other keys than these."""

    names: Sequence[str]

    def problem(self, value: Any, config: "Config") -> str | None:
        unknown = [key for key in value if key not in self.names]
        return f"must have no key but {', '.join(self.names)}, not {_shown(unknown[0])}" if unknown else None


@dataclass(frozen=True)
class NotEmpty(Range):
    """Tuples with an entry or more."""

    def problem(self, value: Any, config: "Config") -> str | None:
        return None if value else "must have at least one entry"


ANY, SHARE = Range(), Between(0, 1)
PER_CLASS, PER_CHANNEL = Length("NUM_CLASSES"), Length("IMAGE_CHANNEL_COUNT")
PER_LEVEL, PER_DELTA = Length(5, "P2 to P6"), Length(4, "dy, dx, dh, dw")


def _shown(value: Any, limit: int = 300) -> str:
    """A value as a message shows it: its repr, which has no control characters, cut after limit characters."""
    if isinstance(value, str | list | tuple):
        value = value[: limit + 1]  # more is not shown, and a repr of all may take long
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints, or lists in lists
        text = f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= limit else text[:limit] + "..."


def _numbers_in(value: Any) -> Sequence[float]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Setting:
    """What the annotation of a setting says: its type, the ranges that it must lie in, and what depends on it."""

    kind: Any
    ranges: tuple[Range, ...]
    affects: Affects


def settings_of(cls: type) -> dict[str, Setting]:
    """The settings that the annotations of a class declare, by name, in their order.

    Raises: TypeError for a setting that does not say its range (bools need none) or what it affects.
    """
    settings = {}
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        if not name.isupper():
            continue
        is_annotated = typing.get_origin(annotation) is Annotated
        kind, *notes = typing.get_args(annotation) if is_annotated else (annotation,)
        ranges = tuple(note for note in notes if isinstance(note, Range))
        affects = [note for note in notes if isinstance(note, Affects)]
        if not ranges and not {bool, type(None)}.issuperset(_alternatives(kind)):
            raise TypeError(f"{cls.__name__}.{name} must say its range, such as Annotated[int, AtLeast(1), TRAINING]")
        if not affects:
            raise TypeError(f"{cls.__name__}.{name} must say what it affects, such as Annotated[bool, TRAINING]")
        settings[name] = Setting(kind, ranges, functools.reduce(operator.or_, affects))
    return settings


def settings_that(*affects: Affects) -> tuple[str, ...]:
    """Names of the settings that affect any of these, in the order of Config: settings_that(WEIGHTS, SHAPE)."""
    return tuple(name for name, setting in SETTINGS.items() if any(each in setting.affects for each in affects))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a union allows."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


############################################################
#  Config
############################################################

# The losses of a training, in the order of the losses that the model returns.
LOSSES = (
    "rpn_class_loss",
    "rpn_bbox_loss",
    "mrcnn_class_loss",
    "mrcnn_bbox_loss",
    "mrcnn_mask_loss",
    "mrcnn_maskiou_loss",
)

# Values that follow from settings, and the settings to change instead.
DERIVED = {
    "BATCH_SIZE": "IMAGES_PER_GPU",
    "IMAGE_SHAPE": "IMAGE_MAX_DIM, IMAGE_MIN_DIM or IMAGE_RESIZE_MODE",
    "IMAGE_META_SIZE": "NUM_CLASSES",
    "BACKBONE_SHAPES": "BACKBONE_STRIDES or COMPUTE_BACKBONE_SHAPE",
    "MASK_SHAPE": "MASK_POOL_SIZE",
}

# Settings of older releases and of Matterport that are gone, and why. Config.from_dict accepts them, so that older
# checkpoints load.
REMOVED = {
    "USE_RPN_ROIS": "nothing ever read it, and training always takes the RoIs of the RPN",
}


# Settings that have an entry for each channel of an image.
PER_CHANNEL_SETTINGS = ("MEAN_PIXEL", "STD_PIXEL")


def for_channels(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Values of each channel, for another number of channels: new ones get the mean of the others. Of fewer channels
    than before nobody knows which they are, and all get the mean. weights/stem.py treats the weights alike."""
    mean = sum(values) / len(values) if values else 0.0
    return (*values, *[mean] * (count - len(values))) if count >= len(values) else (mean,) * count


class Config:
    """Settings of a model, its training and its detection. Subclass it for each data set.

    The annotation of a setting says its type, its range and what depends on it (Affects):

        RPN_NMS_THRESHOLD: Annotated[float, SHARE, DETECTION, TRAINING] = 0.7

    Values may be set later, too: `config.IMAGES_PER_GPU = 1`. Type and range are checked at once. How a value fits to
    the others is checked by validate(), which a model calls before it trains and detects.

    Raises: ValueError for names that do not exist, values of the wrong type or outside of their range, and values that
        contradict each other.
    """

    # Short name of the experiment; the log folder is called after it. Override it.
    NAME: Annotated[str | None, ANY, RUN] = None

    # The name of each class, "BG" first: NUM_CLASSES names. Checkpoints store them, and pictures show them. Classes of
    # a data set are found by name, in whatever order. None: a training takes the names of its data set.
    CLASS_NAMES: Annotated[tuple[str, ...] | None, PER_CLASS, DETECTION] = None

    # Category id of each class index in the data set's own numbering, 0 for background. None: a training takes those of
    # its data set; else the class index.
    CATEGORY_IDS: Annotated[tuple[int, ...] | None, PER_CLASS, DETECTION] = None

    # How to compute: "mmdet" (new training), "benchmark", "torchvision", "matterport" or "detectron2". Checkpoints
    # carry theirs.
    DIALECT: Annotated[str, OneOf(tuple(DIALECTS)), WEIGHTS, TRAINING] = "mmdet"

    ### Machine

    # 0 trains on the CPU, any other number on a GPU. How many processes train together, each on a GPU of its own, is
    # the choice of `torchrun --nproc_per_node=N`, whatever the number here.
    GPU_COUNT: Annotated[int, AtLeast(0), RUN] = 1

    # NVIDIA GPUs from 2020 on multiply float32 numbers about 8 times as fast if they may round them to 11 significant
    # bits, which they call TF32. True: they may, in detection and in training. False: all 24 bits count; choose it to
    # compare numbers with a CPU. It changes nothing on CPUs, and with bfloat16.
    TF32: Annotated[bool, DETECTION, RUN] = True

    # Images in a batch of each process; BATCH_SIZE counts those of all processes. Lower it when memory runs out. On a
    # CPU, training Mask R-CNN with ResNet-50 on two images of 800 x 1088 takes 2.3 GB (docs/speed.md).
    IMAGES_PER_GPU: Annotated[int, AtLeast(1), DETECTION, RUN, MEMORY] = 2

    # Batches in an epoch; None is once through the data. Lower it to see validation and checkpoints sooner.
    STEPS_PER_EPOCH: Annotated[int | None, AtLeast(1), RUN] = 1000

    # Batches of validation at the end of an epoch; None is all of the validation data.
    VALIDATION_STEPS: Annotated[int | None, AtLeast(1), RUN] = 50

    # Processes that load images beside the training. 0 loads them in the training process; None chooses by the
    # number of cores.
    WORKERS: Annotated[int | None, AtLeast(0), RUN] = None

    # Seed of everything random in a training: the order of images, augmentation, samples, new weights.
    SEED: Annotated[int, AtLeast(0), RUN] = 0

    ### Images

    # "shorter": scale the short side to IMAGE_MIN_DIM and the long side to at most IMAGE_MAX_DIM, then pad both to
    # multiples of IMAGE_SIZE_DIVISOR. "square": scale into IMAGE_MAX_DIM x IMAGE_MAX_DIM and pad to it. "pad64": pad
    # to multiples of 64. "crop": take random crops of IMAGE_MIN_DIM x IMAGE_MIN_DIM, to train on large images.
    # "none": leave images as they are.
    IMAGE_RESIZE_MODE: Annotated[str, OneOf(RESIZE_MODES), DETECTION, TRAINING] = "shorter"

    # How many bits of 16-bit images are in use: 8 to 16, or "auto". 12 makes 4095 white. "auto" looks at some images of
    # the data set and takes the fewest of 8, 10, 12, 14 and 16 bits that hold their values; training stores the number.
    BIT_DEPTH: Annotated[int | str, OneOf(("auto", *range(8, 17))), DETECTION, TRAINING] = "auto"

    # How values become 0 to 255. "depth": as BIT_DEPTH says. "percentiles": in each image and channel, the percentiles
    # 0.1 and 99.9 become 0 and 255, whatever the type of its values. For microscopy, where exposure varies.
    PIXEL_RANGE: Annotated[str, OneOf(("depth", "percentiles")), WEIGHTS, TRAINING] = "depth"

    # Pixels; what they mean depends on the mode. Smaller images are faster and lose small objects.
    IMAGE_MIN_DIM: Annotated[int, AtLeast(1), DETECTION, TRAINING, MEMORY] = 800
    IMAGE_MAX_DIM: Annotated[int, AtLeast(1), DETECTION, TRAINING, MEMORY] = 1333

    # Modes "square", "pad64" and "crop": scale images up by at least this factor. 0: as the other settings say.
    IMAGE_MIN_SCALE: Annotated[float, AtLeast(0), DETECTION, TRAINING] = 0

    # Mode "shorter": the padded sides are multiples of this.
    IMAGE_SIZE_DIVISOR: Annotated[int, AtLeast(1), DETECTION, TRAINING] = 32

    # Channels of an image: 3 is RGB, 1 gray. Where MEAN_PIXEL and STD_PIXEL are not set, they follow it: for_channels.
    IMAGE_CHANNEL_COUNT: Annotated[int, AtLeast(1), SHAPE] = 3

    ### Backbone and pyramid

    # One of BACKBONES, or a callable: config -> module that maps images to [C2, C3, C4, C5] and has `channels`.
    BACKBONE: Annotated[str | Callable, OneOf(tuple(BACKBONES)), BACKBONE_WEIGHTS, SHAPE] = "resnet101"

    # Where a bottleneck has its stride: "pytorch" in the 3x3 convolution, "caffe" in the first 1x1. The weights do not
    # show it; it must be what they were trained with.
    BACKBONE_STYLE: Annotated[str, OneOf(("pytorch", "caffe")), BACKBONE_WEIGHTS] = "pytorch"

    # Mean that is subtracted from each channel of an image (RGB, 0 to 255), and deviation that divides it then. They
    # belong to the backbone's weights.
    MEAN_PIXEL: Annotated[tuple[float, ...], PER_CHANNEL, BACKBONE_WEIGHTS] = (123.675, 116.28, 103.53)
    STD_PIXEL: Annotated[tuple[float, ...], PER_CHANNEL, Above(0), BACKBONE_WEIGHTS] = (58.395, 57.12, 57.375)

    # Norm after each convolution of the backbone: "batch" (TRAIN_BN says whether it learns), or "group", which needs
    # no statistics and suits training from random weights in small batches.
    BACKBONE_NORM: Annotated[str, OneOf(("batch", "group")), SHAPE] = "batch"

    # Stages of the backbone that never learn, up to 4: 1 is the stem and the first stage. None: 1 if training starts
    # from weights, 0 if it starts from random ones or from weights for another number of channels.
    FROZEN_STAGES: Annotated[int | None, Between(0, 4), RUN] = None

    # Factor on the channels of every stage; below 1 for small models trained from random weights.
    BACKBONE_WIDTH: Annotated[float, Above(0), SHAPE] = 1.0

    # For a BACKBONE whose maps have other sizes than BACKBONE_STRIDES give: a callable (config, image_shape) -> the
    # (height, width) of P2 to P6. None: image sides divided by the strides, rounded up.
    COMPUTE_BACKBONE_SHAPE: Annotated[Callable | None, ANY, SHAPE] = None

    # Pixels of the image for each cell of P2 to P6.
    BACKBONE_STRIDES: Annotated[tuple[int, ...], PER_LEVEL, AtLeast(1), WEIGHTS] = (4, 8, 16, 32, 64)

    # Channels of P2 to P6.
    TOP_DOWN_PYRAMID_SIZE: Annotated[int, AtLeast(1), SHAPE] = 256

    # Norm after each convolution of the pyramid: None, or "group", which detectron2's models of group norm have.
    FPN_NORM: Annotated[str | None, OneOf((None, "group")), SHAPE] = None

    # File with ImageNet weights of the backbone, which `--model imagenet` starts from. None: the published weights.
    IMAGENET_MODEL_PATH: Annotated[str | None, ANY, RUN] = None

    ### Region proposal network

    # Side of the square anchor of each level, pixels. Halve them for small objects.
    RPN_ANCHOR_SCALES: Annotated[tuple[float, ...], PER_LEVEL, Above(0), WEIGHTS] = (32, 64, 128, 256, 512)

    # Width / height of the anchors of a cell.
    RPN_ANCHOR_RATIOS: Annotated[tuple[float, ...], NotEmpty(), Above(0), WEIGHTS, SHAPE] = (0.5, 1, 2)

    # Anchors at every cell (1), at every second cell (2), ...
    RPN_ANCHOR_STRIDE: Annotated[int, AtLeast(1), WEIGHTS] = 1

    # 3x3 convolutions of the RPN, and their channels.
    RPN_CONVS: Annotated[int, AtLeast(1), SHAPE] = 1
    RPN_CHANNELS: Annotated[int, AtLeast(1), SHAPE] = 256

    # Factors of the anchor deltas (dy, dx, dh, dw).
    RPN_BBOX_STD_DEV: Annotated[tuple[float, ...], PER_DELTA, Above(0), WEIGHTS] = (
        1.0,
        1.0,
        1.0,
        1.0,
    )

    # Anchors kept before NMS: of each level, or of the image (Dialect.proposals_of).
    PRE_NMS_LIMIT: Annotated[int, AtLeast(1), DETECTION] = 1000
    PRE_NMS_LIMIT_TRAINING: Annotated[int, AtLeast(1), TRAINING] = 2000

    # Proposals that overlap a better one by more than this IoU are dropped. Higher keeps more, for crowded images.
    RPN_NMS_THRESHOLD: Annotated[float, SHARE, DETECTION, TRAINING] = 0.7

    # RoIs kept of each image after the RPN's NMS. Fewer are faster and may miss objects; keep more than
    # DETECTION_MAX_INSTANCES.
    POST_NMS_ROIS_TRAINING: Annotated[int, AtLeast(1), TRAINING] = 1000
    POST_NMS_ROIS_INFERENCE: Annotated[int, AtLeast(1), DETECTION] = 1000

    # Anchors of each image that the RPN learns from.
    RPN_TRAIN_ANCHORS_PER_IMAGE: Annotated[int, AtLeast(1), TRAINING] = 256

    ### Heads

    # Classes, background included.
    NUM_CLASSES: Annotated[int, AtLeast(1), SHAPE] = 1

    # Side of the grid of cells that an RoI is pooled to for the box head.
    POOL_SIZE: Annotated[int, AtLeast(1), SHAPE] = 7

    # The same for the mask and MaskIoU heads. A predicted mask has twice as many pixels a side: MASK_SHAPE.
    MASK_POOL_SIZE: Annotated[int, AtLeast(1), SHAPE] = 14

    # Box head: 3x3 convolutions first (torchvision v2 has 4), then fully connected layers.
    BOX_HEAD_CONVS: Annotated[int, AtLeast(0), SHAPE] = 0

    # Channels of these convolutions; None: TOP_DOWN_PYRAMID_SIZE. Norm after each: None or "group".
    BOX_HEAD_CHANNELS: Annotated[int | None, AtLeast(1), SHAPE] = None
    BOX_HEAD_NORM: Annotated[str | None, OneOf((None, "group")), SHAPE] = None

    # The fully connected layers of the box head: their number and width.
    BOX_HEAD_FC_LAYERS: Annotated[int, AtLeast(1), SHAPE] = 2
    FPN_CLASSIF_FC_LAYERS_SIZE: Annotated[int, AtLeast(1), SHAPE] = 1024

    # Factors of the box deltas (dy, dx, dh, dw).
    BBOX_STD_DEV: Annotated[tuple[float, ...], PER_DELTA, Above(0), WEIGHTS] = (0.1, 0.1, 0.2, 0.2)

    # How often the box head looks at each object in detection: at the RoIs, and then at the boxes that it made of them.
    # The last look gives the boxes, and the mean over all looks the class probabilities. 1 in all references. For small
    # networks 2 is worth its time: docs/results.md.
    BOX_HEAD_LOOKS: Annotated[int, AtLeast(1), DETECTION] = 1

    # Mask head: 3x3 convolutions, their channels, and the norm after each: None or "group".
    MASK_HEAD_CONVS: Annotated[int, AtLeast(1), SHAPE] = 4
    MASK_HEAD_CHANNELS: Annotated[int, AtLeast(1), SHAPE] = 256
    MASK_HEAD_NORM: Annotated[str | None, OneOf((None, "group")), SHAPE] = None

    # MaskIoU head: False is plain Mask R-CNN. Channels of its convolutions, width of its two fully connected layers.
    USE_MASKIOU_HEAD: Annotated[bool, SHAPE] = True
    MASKIOU_HEAD_CHANNELS: Annotated[int, AtLeast(1), SHAPE] = 256
    MASKIOU_FC_LAYERS_SIZE: Annotated[int, AtLeast(1), SHAPE] = 1024

    # Limit predicted IoUs to [0, 1] in the mask score. Imported weights have False, as the code that they come from.
    MASKIOU_CLAMP: Annotated[bool, DETECTION] = True

    ### Training targets

    # RoIs of each image for the second stage, and the share of positive ones among them.
    TRAIN_ROIS_PER_IMAGE: Annotated[int, AtLeast(1), TRAINING, MEMORY] = 512
    ROI_POSITIVE_RATIO: Annotated[float, SHARE, TRAINING] = 0.25

    # An anchor or RoI belongs to an object if their IoU is at least the positive one. It is background if its IoU with
    # every object is below the negative one (of RoIs: below the positive one).
    RPN_POSITIVE_IOU: Annotated[float, SHARE, TRAINING] = 0.7
    RPN_NEGATIVE_IOU: Annotated[float, SHARE, TRAINING] = 0.3
    ROI_POSITIVE_IOU: Annotated[float, SHARE, TRAINING] = 0.5

    # An anchor or RoI is not background if more than this share of it lies in a crowd. None: it may be.
    CROWD_OVERLAP: Annotated[float | None, SHARE, TRAINING] = 0.5

    # Training uses at most this many objects of an image: the largest. It drops the others, with a warning.
    MAX_GT_INSTANCES: Annotated[int, AtLeast(1), TRAINING] = 400

    # Ground-truth masks are kept cropped to their boxes. True shrinks them to MINI_MASK_SHAPE too, which takes less
    # memory and makes them coarser.
    USE_MINI_MASK: Annotated[bool, TRAINING] = False
    MINI_MASK_SHAPE: Annotated[tuple[int, ...], Length(2, "height, width"), AtLeast(1), TRAINING] = (56, 56)

    # Which pixel of a ground-truth mask each pixel of the resized one copies. "centre": that in which its centre lies.
    # "floor": that of its upper left corner, as OpenCV and mmdetection; masks, and boxes that are computed from them,
    # move half a pixel down and right. "corners": Matterport's, scipy.ndimage.zoom.
    MASK_NEAREST: Annotated[str, OneOf(("centre", "floor", "corners")), TRAINING] = "centre"

    # A pixel counts as predicted if its mask logit is above this, in the IoU that the MaskIoU head learns. 0 is
    # probability 0.5; mmdetection has the logit 0.5.
    MASKIOU_TARGET_LOGIT: Annotated[float, ANY, TRAINING] = 0.0

    # Learn also from masks that miss their object completely, whose IoU is 0; the references leave them out.
    MASKIOU_KEEP_ZERO_TARGETS: Annotated[bool, TRAINING] = True

    # Measure the part of an object inside an RoI exactly; False truncates the RoI's corners to pixels (mmdetection).
    MASKIOU_EXACT_AREA: Annotated[bool, TRAINING] = True

    # True: the MaskIoU loss does not reach the mask head and the features. In the references it does.
    MASKIOU_DETACH: Annotated[bool, TRAINING] = False

    # True: the MaskIoU head learns from the RoIs as the box head moves them, as it sees them in detection. This costs a
    # second pass of both heads. False: from the RoIs that the mask head learns from, as in the references.
    MASKIOU_REFINED_ROIS: Annotated[bool, TRAINING] = False

    # True: the MaskIoU head learns from the best detections in the images, as it judges them in detection, right or
    # wrong: without an object of their class, their true IoU is 0. MASKIOU_REFINED_ROIS changes nothing then.
    MASKIOU_DETECTIONS: Annotated[bool, TRAINING] = False

    # "target": only the output of the object's class learns. "all": the outputs of other classes learn 0.
    MASKIOU_LOSS_CLASSES: Annotated[str, OneOf(("target", "all")), TRAINING] = "target"

    ### Augmentation

    # Chance that an image is flipped left to right, and upside down. Only where a mirror image is as likely.
    HORIZONTAL_FLIP: Annotated[float, SHARE, TRAINING] = 0.5
    VERTICAL_FLIP: Annotated[float, SHARE, TRAINING] = 0.0

    # Turn each image by a random number of quarter turns, for pictures that have no upright direction: microscopy,
    # views from above. In mode "shorter", images that are not square then take more padding.
    QUARTER_TURNS: Annotated[bool, TRAINING] = False

    # Short sides to choose from for each image, instead of IMAGE_MIN_DIM (multi-scale training).
    MULTI_SCALE: Annotated[tuple[int, ...] | None, NotEmpty(), AtLeast(1), TRAINING] = None

    # Smallest and largest of a random factor on the image's size, before a random crop of the usual size (large-scale
    # jitter): (0.1, 2.0), or (0.8, 1.25) for a mild one.
    SCALE_JITTER: Annotated[tuple[float, ...] | None, Length(2, "smallest, largest factor"), Above(0), TRAINING] = None

    # Random change of brightness, contrast and saturation by up to this share, such as 0.4. For photographs.
    COLOR_JITTER: Annotated[float, SHARE, TRAINING] = 0.0

    # Random change of brightness alone and of contrast alone by up to this share, such as 0.2, with one factor for all
    # channels: colours keep their hue. For microscopy.
    BRIGHTNESS_JITTER: Annotated[float, SHARE, TRAINING] = 0.0
    CONTRAST_JITTER: Annotated[float, SHARE, TRAINING] = 0.0

    # Chance that objects of another image of the training data are pasted into an image, with the same augmentation.
    # They cover what is below. For few images and many kinds of places; crowds are not pasted.
    COPY_PASTE: Annotated[float, SHARE, TRAINING] = 0.0

    # Images with a class that is in few images come more often: with a class that a share f of the images has, each
    # comes sqrt(REPEAT_THRESHOLD / f) times in a pass through the data, if that is more than once (repeat factor
    # sampling of LVIS, arXiv:1908.03195). 0: each image once. LVIS takes 0.001; 0.5 where a few classes are uneven.
    REPEAT_THRESHOLD: Annotated[float, SHARE, TRAINING] = 0.0

    ### Detection

    # Most instances of an image. Raise it for dense images (nuclei: 500).
    DETECTION_MAX_INSTANCES: Annotated[int, AtLeast(1), DETECTION] = 100

    # Detections with a class score of no more than this are dropped. 0.05 to evaluate, about 0.5 for pictures.
    DETECTION_MIN_CONFIDENCE: Annotated[float, SHARE, DETECTION] = 0.05

    # Detections of a class that overlap a better one by more than this IoU are dropped.
    DETECTION_NMS_THRESHOLD: Annotated[float, SHARE, DETECTION] = 0.5

    # A detection's box is the smallest one round its mask, in whole pixels, and not where the box head sees the object.
    # Better for small objects whose masks are exact, worse for others: docs/results.md. False in all references. None:
    # nobody chose, and it is the box head's; training with custom.py stores True where that is better on the validation
    # data.
    BOXES_OF_MASKS: Annotated[bool | None, DETECTION] = None

    # Least score of an object that `custom.py detect` keeps: mask score, without a MaskIoU head class score. Training
    # with custom.py stores the one with the best F1 on the validation data. None: nobody chose one, and 0.5 is taken.
    SCORE_THRESHOLD: Annotated[float | None, SHARE, RUN] = None

    # Chance that a mask is good, from class score and predicted IoU: the factors of their two logits and a constant,
    # for a true IoU of 0.7 and of 0.8, so six numbers for each class, background first. Evaluation on the validation
    # data fits them (evaluation/accept.py). None: nobody did.
    ACCEPT_CALIBRATION: Annotated[tuple[float, ...] | None, OfEachClass(6), RUN] = None

    ### Optimiser

    # "sgd" with momentum, or "adamw" (then a learning rate of about 1e-4).
    OPTIMIZER: Annotated[str, OneOf(("sgd", "adamw")), RUN] = "sgd"

    # Learning rate, momentum and L2 penalty. The schedules "0.25x", "1x" and "2x" have learning rates of their own.
    LEARNING_RATE: Annotated[float, AtLeast(0), RUN] = 0.001
    LEARNING_MOMENTUM: Annotated[float, SHARE, RUN] = 0.9
    WEIGHT_DECAY: Annotated[float, AtLeast(0), RUN] = 0.0001

    # Whether the L2 penalty is on biases, and on the weights of norms; factor on the learning rate of biases.
    WEIGHT_DECAY_BIASES: Annotated[bool, RUN] = True
    WEIGHT_DECAY_NORMS: Annotated[bool, RUN] = True
    BIAS_LEARNING_RATE_FACTOR: Annotated[float, AtLeast(0), RUN] = 1.0

    # "1x": 12 epochs, a tenth of the learning rate after 8 and 11. "2x": 24, after 16 and 22. "0.25x": 3, after 2, for
    # a MaskIoU head alone. "matterport": the heads for 40 epochs, 4+ until 120, all until 160 at a tenth. None:
    # the epochs and layers that train_model is given.
    SCHEDULE: Annotated[str | None, OneOf((None, "0.25x", "1x", "2x", "matterport")), RUN] = None

    # How the learning rate falls. "steps": as SCHEDULE says, or not at all. "cosine": along half a cosine to 0 at the
    # last epoch, which gets more out of short trainings. A phase that trains other layers begins a new cosine.
    LEARNING_RATE_DECAY: Annotated[str, OneOf(("steps", "cosine")), RUN] = "steps"

    # Steps over which the learning rate rises linearly from this share of it.
    WARMUP_STEPS: Annotated[int, AtLeast(0), RUN] = 500
    WARMUP_FACTOR: Annotated[float, SHARE, RUN] = 0.001

    # Batches whose gradients are averaged before a step of the optimiser: larger batches in the same memory.
    ACCUMULATE_STEPS: Annotated[int, AtLeast(1), RUN] = 1

    # Gradients with a larger norm are scaled down to this norm. None or 0: never.
    GRADIENT_CLIP_NORM: Annotated[float | None, AtLeast(0), RUN] = 5.0

    # Factor of each loss in the sum.
    LOSS_WEIGHTS: Annotated[dict[str, float], Keys(LOSSES), AtLeast(0), RUN, TRAINING] = types.MappingProxyType(
        dict.fromkeys(LOSSES, 1.0)
    )

    # True: batch norm takes the statistics of each batch. False: frozen statistics, as small batches need. None:
    # frozen if training starts from weights, of each batch if it starts from random ones.
    TRAIN_BN: Annotated[bool | None, RUN] = None

    # Type of numbers in which the convolutions of a training compute: "float32", or "bfloat16" where the processor has
    # it. Weights and losses are float32. "bfloat16" brings the 2.3 GB of IMAGES_PER_GPU's example to 1.7 GB.
    TRAIN_DTYPE: Annotated[str, OneOf(("float32", "bfloat16")), RUN, MEMORY] = "float32"

    # Compute activations of the backbone twice instead of keeping them: half of the memory, a fifth more time.
    ACTIVATION_CHECKPOINTING: Annotated[bool, RUN, MEMORY] = False

    # Put the backbone and the pyramid through torch.compile: minutes at the start, for long trainings on a GPU.
    COMPILE: Annotated[bool, RUN] = False

    # Detect and validate with a running average of the weights that keeps this share of itself at each step, such as
    # 0.999. 0: no average.
    EMA_DECAY: Annotated[float, SHARE, RUN] = 0.0

    ### Checkpoints

    # Minutes between checkpoints within an epoch; each epoch ends with one. 0: none within.
    CHECKPOINT_MINUTES: Annotated[float, AtLeast(0), RUN] = 15.0

    # Checkpoints that stay, beside the best.
    CHECKPOINTS_KEPT: Annotated[int, AtLeast(1), RUN] = 3

    # Epochs between evaluations (COCO-style AP) by the callback of train_model. 0: never.
    EVAL_EVERY: Annotated[int, AtLeast(0), RUN] = 1

    # Epochs without a better result after which training stops. None: never.
    EARLY_STOPPING: Annotated[int | None, AtLeast(1), RUN] = None

    # Images that may fail to load before training stops.
    MAX_DATA_ERRORS: Annotated[int, AtLeast(1), RUN] = 5

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.isupper() and name not in SETTINGS:
                raise _unknown(name, f"{cls.__name__}.{name}")
            if name.isupper():
                _convert(name, value)

    def __init__(self, **overrides: Any) -> None:
        for name in overrides:
            if name not in SETTINGS:
                raise _unknown(name, name)
        cls = type(self)
        dialect = overrides.get("DIALECT", cls.DIALECT)
        if not isinstance(dialect, str) or dialect not in DIALECTS:
            raise ValueError(f"DIALECT must be one of {', '.join(DIALECTS)}, not {_shown(dialect)}")
        chosen = {name for base in cls.__mro__[: cls.__mro__.index(Config)] for name in vars(base)}
        for name in SETTINGS:
            value = getattr(cls, name)
            if name not in chosen:
                value = DIALECTS[dialect].defaults.get(name, value)
            self.__dict__[name] = _convert(name, overrides.get(name, value))
        for name in PER_CHANNEL_SETTINGS:
            if name not in chosen and name not in overrides:  # the values of RGB
                self.__dict__[name] = for_channels(self.__dict__[name], self.IMAGE_CHANNEL_COUNT)
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "DIALECT" and value != self.DIALECT:
            raise ValueError("DIALECT decides the defaults of others: set it in the class, or Config(DIALECT=...)")
        if name.isupper() and name not in SETTINGS:
            raise _unknown(name, name)
        if name in SETTINGS:
            value = _convert(name, value)
            self._check_ranges(name, value, [each for each in SETTINGS[name].ranges if each.stands_alone])
        self.__dict__[name] = value

    @property
    def dialect(self) -> Dialect:
        """The rules that DIALECT names."""
        return DIALECTS[self.DIALECT]

    @property
    def BATCH_SIZE(self) -> int:
        """Images in a batch of all processes together: IMAGES_PER_GPU times the processes that torchrun started.

        Without torchrun there is one process, whatever GPU_COUNT says. torchrun writes their number into the
        environment variable WORLD_SIZE.
        """
        return self.IMAGES_PER_GPU * int(os.environ.get("WORLD_SIZE", 1))

    @property
    def IMAGE_SHAPE(self) -> tuple[int, int, int]:
        """Largest shape of an image that enters the network: (height, width, channels)."""
        side = self.IMAGE_MIN_DIM if self.IMAGE_RESIZE_MODE == "crop" else self.IMAGE_MAX_DIM
        return side, side, self.IMAGE_CHANNEL_COUNT

    @property
    def IMAGE_META_SIZE(self) -> int:
        """Numbers that compose_image_meta makes: id, two shapes, window, scale, a flag a class."""
        return 1 + 3 + 3 + 4 + 1 + self.NUM_CLASSES

    @property
    def MASK_SHAPE(self) -> tuple[int, int]:
        """(height, width) of a predicted mask: the mask head doubles MASK_POOL_SIZE, which is the setting to change."""
        return 2 * self.MASK_POOL_SIZE, 2 * self.MASK_POOL_SIZE

    @property
    def BACKBONE_SHAPES(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of P2 to P6 for IMAGE_SHAPE."""
        return self.backbone_shapes(self.IMAGE_SHAPE)

    def backbone_shapes(self, image_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of P2 to P6 for an image of (height, width, ...), by COMPUTE_BACKBONE_SHAPE if it is set."""
        if self.COMPUTE_BACKBONE_SHAPE is not None:
            shapes = self.COMPUTE_BACKBONE_SHAPE(self, image_shape)
            return tuple((int(height), int(width)) for height, width in shapes)
        height, width = image_shape[:2]
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in self.BACKBONE_STRIDES)

    def validate(self) -> None:
        """Raise ValueError for values outside of their range, and for values that contradict each other."""
        for name, setting in SETTINGS.items():
            self._check_ranges(name, getattr(self, name), setting.ranges)
        if self.IMAGE_MIN_DIM > self.IMAGE_MAX_DIM:
            raise ValueError(
                f"IMAGE_MIN_DIM {self.IMAGE_MIN_DIM} is above IMAGE_MAX_DIM {self.IMAGE_MAX_DIM}; set both"
            )
        if self.IMAGE_RESIZE_MODE in ("square", "crop") and self.IMAGE_SHAPE[0] % 64:
            raise ValueError(
                f"IMAGE_RESIZE_MODE {self.IMAGE_RESIZE_MODE!r} makes squares of {self.IMAGE_SHAPE[0]} pixels, which "
                "must be a multiple of 64, so that P2 to P6 fit onto each other"
            )
        if self.RPN_NEGATIVE_IOU > self.RPN_POSITIVE_IOU:
            raise ValueError(
                f"RPN_NEGATIVE_IOU {self.RPN_NEGATIVE_IOU} is above RPN_POSITIVE_IOU {self.RPN_POSITIVE_IOU}; "
                "anchors between the two teach nothing"
            )
        if self.SCALE_JITTER is not None and self.SCALE_JITTER[0] > self.SCALE_JITTER[1]:
            raise ValueError(f"SCALE_JITTER must be (smallest, largest) factor, not {_shown(self.SCALE_JITTER)}")

    def _check_ranges(self, name: str, value: Any, ranges: Sequence[Range]) -> None:
        for each in ranges if value is not None else ():
            if problem := each.problem(value, self):
                raise ValueError(f"{name} {problem}")

    def detection_settings(self, **settings: Any) -> dict[str, Any]:
        """The settings to change so that a model sees one image at a time, and whole images where training takes crops.

        settings: others to change; they count first.
        """
        whole = {"IMAGE_RESIZE_MODE": "pad64"} if self.IMAGE_RESIZE_MODE == "crop" else {}
        return {"IMAGES_PER_GPU": 1, **whole, **settings}

    def for_detection(self, **settings: Any) -> "Config":
        """A copy of this config to detect with: its detection_settings. It is what Matterport's users write as a class
        InferenceConfig.
        """
        detection = copy.copy(self)
        for name, value in self.detection_settings(**settings).items():
            setattr(detection, name, value)
        detection.validate()
        return detection

    def display(self) -> None:
        """Print every setting, and the values that follow from them."""
        print("\nConfigurations:")
        for name in sorted([*SETTINGS, *DERIVED]):
            value = getattr(self, name)
            print(f"{name:30} {value if str(value).isprintable() else repr(value)}")
        print()

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain numbers, strings, lists and dicts, for checkpoints and JSON.

        Of a callable only the name is kept; from_dict needs the callable again.
        """
        plain = {}
        for name in SETTINGS:
            value = getattr(self, name)
            if callable(value):
                value = f"<{value.__module__}.{value.__qualname__}>"
            plain[name] = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
        return plain

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **overrides: Any) -> "Config":
        """The Config that to_dict described, of this release or an older one.

        settings: names in REMOVED do not count. MASK_SHAPE, once a setting, must be what MASK_POOL_SIZE gives.
        overrides: values that replace those of settings.

        Raises: ValueError for names that do not exist and values of the wrong type.
        """
        for name in settings:
            if not isinstance(name, str):
                raise ValueError(f"the name of a setting must be a text, not {_shown(name)}")
        kept = {name: value for name, value in settings.items() if name not in REMOVED and name != "MASK_SHAPE"}
        pool_size = settings.get("MASK_POOL_SIZE", cls.MASK_POOL_SIZE)
        pool_size = _convert("MASK_POOL_SIZE", pool_size)
        mask_shape = settings.get("MASK_SHAPE", (2 * pool_size, 2 * pool_size))
        if not isinstance(mask_shape, list | tuple) or tuple(mask_shape) != (2 * pool_size, 2 * pool_size):
            raise ValueError(
                f"MASK_SHAPE {_shown(mask_shape)} must be twice MASK_POOL_SIZE {pool_size} along both sides: "
                "the mask head doubles the resolution"
            )
        return cls(**{**kept, **overrides})


############################################################
#  Types of settings
############################################################

SETTINGS: dict[str, Setting] = settings_of(Config)


def _unknown(name: str, shown: str) -> ValueError:
    if name in DERIVED:
        return ValueError(f"{shown} follows from other settings; set {DERIVED[name]} instead")
    if name in REMOVED:
        return ValueError(f"{shown} is not a setting: {REMOVED[name]}; leave it out")
    close = difflib.get_close_matches(name[:100].upper(), SETTINGS, n=1)
    hint = f"did you mean {close[0]}?" if close else "config.display() lists all names"
    shown = shown if shown.isprintable() and shown and len(shown) <= 300 else _shown(shown)
    return ValueError(f"{shown} is not a setting; {hint}")


# The largest list that a setting may be, and the largest whole number: what 64 bits hold.
_MOST_ENTRIES, _LARGEST_INT = 100_000, 2**63 - 1


def _convert(name: str, value: Any) -> Any:
    """The value as its setting's type: lists and arrays become tuples, whole floats ints."""
    if callable(getattr(value, "tolist", None)):  # NumPy arrays and numbers
        value = value.tolist()
    kinds = _alternatives(SETTINGS[name].kind)
    for kind in kinds:
        converted = _as_kind(kind, value)
        if converted is not None or (value is None and kind is type(None)):
            return converted
    finite = ", finite and of 64 bits at most" if _is_beyond(value) or _is_beyond_int(value) else ""
    raise ValueError(f"{name} must be {' or '.join(map(_kind_name, kinds))}{finite}, not {_shown(value)}")


def _is_beyond(value: Any) -> bool:
    """Whether a value is a number, or has one, that is not finite or has no place in 64 bits."""
    if isinstance(value, list | tuple | Mapping):
        items = list(value.values() if isinstance(value, Mapping) else value[:_MOST_ENTRIES])
        return any(_is_beyond(item) for item in items if isinstance(item, int | float))
    if isinstance(value, int):
        return abs(value) > _LARGEST_INT
    return isinstance(value, float) and not math.isfinite(value)


def _is_beyond_int(value: Any) -> bool:
    return isinstance(value, float) and abs(value) > _LARGEST_INT


def _as_kind(kind: Any, value: Any) -> Any:
    """The value as a kind, or None if it is not of that kind."""
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or _is_beyond(value):
            return None
        if kind is float:
            return value
        return int(value) if value == int(value) and not _is_beyond_int(value) else None
    if kind is Callable:
        return value if callable(value) else None
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > _MOST_ENTRIES:
            return None
        items = tuple(_as_kind(typing.get_args(kind)[0], item) for item in value)
        return None if None in items else items
    if typing.get_origin(kind) is dict:
        numbers = {name: _as_kind(float, number) for name, number in value.items()} if _is_table(value) else {"": None}
        return None if None in numbers.values() else numbers
    return None


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) <= _MOST_ENTRIES and all(isinstance(name, str) for name in value)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {typing.get_args(kind)[0].__name__}"
    if typing.get_origin(kind) is dict:
        return "a dict of numbers"
    return {type(None): "None", Callable: "a callable"}.get(kind) or kind.__name__


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """What `--set NAME=VALUE ...` means: a dict for Config(**settings).

    texts: such as ["IMAGE_MIN_DIM=512", "RPN_ANCHOR_SCALES=8,16,32,64,128", "USE_MASKIOU_HEAD=False", "NAME=cells"].

    Raises: ValueError for a text without "=", an unknown name, a value of the wrong type, a number that is not finite,
        and a name that has two values.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"--set needs NAME=VALUE, not {_shown(text)}; no spaces around the '='?")
        if name not in SETTINGS:
            raise _unknown(name, name)
        converted = _convert(name, _literal(name, value.strip()))
        if name in settings and settings[name] != converted:
            values = f"{_shown(settings[name])} and {_shown(converted)}"
            raise ValueError(f"--set has two values for {name}: {values}; give one of them")
        settings[name] = converted
    return settings


def _literal(name: str, text: str) -> Any:
    kinds = _alternatives(SETTINGS[name].kind)
    if text.lower() in ("true", "false") or (text.lower() == "none" and type(None) in kinds):
        text = text.capitalize()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # MemoryError: very deep brackets
        value = text  # a word, such as resnet50
    if str in kinds and type(value) not in kinds and value is not None:
        return text  # a name that happens to be a number
    if isinstance(value, str) and typing.get_origin(kinds[0]) is tuple:
        return [part.strip() for part in value.split(",")]
    if typing.get_origin(kinds[0]) is tuple and isinstance(value, int | float):
        return [value]
    return value


############################################################
#  A small network
############################################################


class SmallConfig(Config):
    """A small network that learns from random weights in one or two hours on two CPU cores. Subclass it.

    It suits objects of 5 to 150 pixels in images of a few hundred pixels, and a few classes. The samples use it.
    """

    BACKBONE = "resnet18"
    BACKBONE_WIDTH = 0.5
    TOP_DOWN_PYRAMID_SIZE = 128
    RPN_CHANNELS = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    FPN_CLASSIF_FC_LAYERS_SIZE = 256
    MASK_HEAD_CHANNELS = 64
    MASKIOU_HEAD_CHANNELS = 64
    MASKIOU_FC_LAYERS_SIZE = 256

    BOX_HEAD_LOOKS = 2

    OPTIMIZER = "adamw"
    LEARNING_RATE = 1e-3
    LEARNING_RATE_DECAY = "cosine"
    TRAIN_DTYPE = "bfloat16"  # float32 learns as much, and takes twice as long where the processor has bfloat16

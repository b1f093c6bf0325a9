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
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

############################################################
#  Dialects
############################################################


@dataclass(frozen=True)
class Dialect:
    """How one family of checkpoints computes what all have in common: rounding, centres, orders, sampling.

    Weights are right only under the dialect that they were trained in. Numbers that a user may set are not here: they
    are attributes of Config, and `defaults` holds those whose usual value differs in this dialect.
    """

    size_rounding: str  # resized sides of mode "shorter": half_up, truncate (after maskrcnn-benchmark's rule) or floor
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
    min_proposal_side: float  # proposals must be larger along both sides, pixels
    min_detection_side: float  # the same for detections
    level_rule: (
        str  # pyramid level of an RoI: floor with 1e-6 added inside the log, to size / 56 or / 224, outside; round
    )
    pooling: str  # adaptive (aligned RoIAlign), legacy (RoIAlign, 2 samples) or crop (crop_and_resize)
    detections_of: str  # every class above the threshold may give a detection, or only an RoI's best class
    paste: str  # masks are sampled at pixel centres, expanded by a cell, or resized into the rounded box
    anchors_outside: bool  # in training: anchors that reach outside of the image take part
    rpn_counts_missing: bool  # in training: an image without positive anchors counts as if it had one; negative too
    low_quality_steals: bool  # in training: an object's best anchors are its own, though they overlap another one more
    low_quality_rois: bool  # in training: RoIs are matched as anchors are: the best of an object are its own
    gt_rois_first: bool  # in training: ground-truth boxes become RoIs before the proposals, or after them
    rpn_beta: float  # smooth L1 of anchor deltas is quadratic below this; 0 is L1
    box_beta: float  # the same of box deltas
    trains_affine: bool  # in training: factors and shifts of frozen batch norms learn, but for the style "caffe"
    defaults: Mapping[str, Any] = field(default_factory=dict)


_LOG_LIMIT = math.log(1000 / 16)

# fmt: off
_COLUMNS = (
    # what                  mmdet             benchmark         torchvision       matterport
    ("size_rounding",      "half_up",        "truncate",       "floor",          "half_even"),
    ("resampling",         "opencv",         "pillow",         "torch",          "skimage"),
    ("pads_before_mean",   False,            False,            False,            True),
    ("stem_pool",          "symmetric",      "symmetric",      "symmetric",      "same"),
    ("anchor_rounding",    "exact",          "stride",         "corners",        "exact"),
    ("anchor_centre",      0.0,              0.5,              0.0,              0.0),
    ("anchor_stride",      "fixed",          "fixed",          "map",            "fixed"),
    ("coordinates",        "half_open",      "inclusive",      "half_open",      "normalised"),
    ("delta_limits",       (-_LOG_LIMIT, _LOG_LIMIT), (None, _LOG_LIMIT), (None, _LOG_LIMIT), (None, None)),
    ("proposals_of",       "level",          "level",          "level",          "image"),
    ("proposal_order",     "probability",    "probability",    "logit",          "probability"),
    ("min_proposal_side",  0.0,              -1.0,             1e-3,             -1.0),
    ("min_detection_side", -1.0,             -1.0,             1e-2,             -1.0),
    ("level_rule",         "inside_56",      "inside_224",     "outside",        "round"),
    ("pooling",            "adaptive",       "legacy",         "legacy",         "crop"),
    ("detections_of",      "every class",    "every class",    "every class",    "best class"),
    ("paste",              "centres",        "expand",         "expand",         "resize"),
    ("anchors_outside",    True,             False,            True,             True),
    ("rpn_counts_missing", True,             False,            False,            False),
    ("low_quality_steals", True,             False,            False,            False),
    ("low_quality_rois",   True,             False,            False,            False),
    ("gt_rois_first",      True,             False,            False,            True),
    ("rpn_beta",           0.0,              1 / 9,            1 / 9,            1.0),
    ("box_beta",           0.0,              1.0,              1 / 9,            1.0),
    ("trains_affine",      True,             False,            False,            False),
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
        "POST_NMS_ROIS_TRAINING": 2000,
        "TRAIN_ROIS_PER_IMAGE": 200,
        "ROI_POSITIVE_RATIO": 0.33,
        "DETECTION_MIN_CONFIDENCE": 0.7,
        "DETECTION_NMS_THRESHOLD": 0.3,
        "WEIGHT_DECAY_NORMS": False,
    },
}

# Where new training departs from a reference on purpose; with these it computes what mmdetection's own code does.
REFERENCE_TRAINING = {
    "MASKIOU_TARGET_LOGIT": 0.5,
    "MASKIOU_KEEP_ZERO_TARGETS": False,
    "MASKIOU_EXACT_AREA": False,
    "CROWD_OVERLAP": None,
    "GRADIENT_CLIP_NORM": None,
}

DIALECTS: dict[str, Dialect] = {
    name: Dialect(**{row[0]: row[column] for row in _COLUMNS}, defaults=defaults)
    for column, (name, defaults) in enumerate(_DEFAULTS.items(), start=1)
}

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x4d",
    "resnext101_64x4d",
    "resnext101_32x8d",
)
RESIZE_MODES = ("shorter", "square", "pad64", "crop", "none")


############################################################
#  Config
############################################################


class Config:
    """Settings of a model, its training and its detection. Subclass it for each data set.

    Raises: ValueError for names that do not exist, values of the wrong type, and values that contradict each other.
    """

    # Short name of the experiment; the log folder is called after it. Override it.
    NAME: str | None = None

    # What each class index is called, "BG" first, NUM_CLASSES names. Stored in checkpoints, shown in pictures.
    CLASS_NAMES: tuple[str, ...] | None = None

    # Category id of each class index in the data set's own numbering, 0 for background. None: the class index.
    CATEGORY_IDS: tuple[int, ...] | None = None

    # How to compute: "mmdet" (new training), "benchmark", "torchvision" or "matterport". Checkpoints carry theirs.
    DIALECT: str = "mmdet"

    ### Machine

    # GPUs used; 0 means CPU.
    GPU_COUNT: int = 1

    # Images in a batch on each GPU (or on the CPU). Lower it when memory runs out.
    IMAGES_PER_GPU: int = 2

    # Batches in an epoch; None is once through the data. Lower it to see validation and checkpoints sooner.
    STEPS_PER_EPOCH: int | None = 1000

    # Batches of validation at the end of an epoch; None is all of the validation data.
    VALIDATION_STEPS: int | None = 50

    # Processes that load images beside the training; 0 loads in the training process. None: by the machine's cores.
    WORKERS: int | None = None

    # Every order, augmentation and sample of a training follows from this.
    SEED: int = 0

    ### Images

    # "shorter": short side to IMAGE_MIN_DIM, long side at most IMAGE_MAX_DIM, padded to IMAGE_SIZE_DIVISOR.
    # "square": scaled into, and padded to, IMAGE_MAX_DIM squared. "pad64": padded to multiples of 64.
    # "crop": random crops of IMAGE_MIN_DIM, for training on large images. "none": as it is.
    IMAGE_RESIZE_MODE: str = "shorter"

    # Pixels; what they mean depends on the mode. Smaller is faster and loses small objects.
    IMAGE_MIN_DIM: int = 800
    IMAGE_MAX_DIM: int = 1333

    # Modes "square", "pad64" and "crop": scale images up by at least this factor; 0 for no such demand.
    IMAGE_MIN_SCALE: float = 0

    # Mode "shorter": the padded sides are multiples of this.
    IMAGE_SIZE_DIVISOR: int = 32

    # Channels of an image: 3 is RGB. For others set MEAN_PIXEL and STD_PIXEL too.
    IMAGE_CHANNEL_COUNT: int = 3

    # Subtracted from, then dividing, each channel (RGB, 0 to 255). They belong to the backbone's weights.
    MEAN_PIXEL: tuple[float, ...] = (123.675, 116.28, 103.53)
    STD_PIXEL: tuple[float, ...] = (58.395, 57.12, 57.375)

    ### Backbone and pyramid

    # One of BACKBONES, or a callable: config -> module that maps images to [C2, C3, C4, C5] and has `channels`.
    BACKBONE: str | Callable = "resnet101"

    # Where a bottleneck has its stride: "pytorch" in the 3x3 convolution, "caffe" in the first 1x1. It cannot be seen
    # in the weights and must be what they were trained with.
    BACKBONE_STYLE: str = "pytorch"

    # Norm after each convolution of the backbone: "batch" (TRAIN_BN says whether it learns), or "group", which does
    # without statistics: for training from nothing in small batches.
    BACKBONE_NORM: str = "batch"

    # Stages of the backbone that never learn: 1 is the stem and the first. None: 1 from weights, 0 from nothing.
    FROZEN_STAGES: int | None = None

    # Factor on the channels of every stage; below 1 for small models trained from nothing.
    BACKBONE_WIDTH: float = 1.0

    # With a callable BACKBONE: (config, image_shape) -> [5, (height, width)] for compute_backbone_shapes.
    COMPUTE_BACKBONE_SHAPE: Callable | None = None

    # Pixels a cell, of P2 to P6.
    BACKBONE_STRIDES: tuple[int, ...] = (4, 8, 16, 32, 64)

    # Channels of P2 to P6.
    TOP_DOWN_PYRAMID_SIZE: int = 256

    # File with ImageNet weights of the backbone, for --model imagenet. None: the published ones.
    IMAGENET_MODEL_PATH: str | None = None

    ### Region proposal network

    # Side of the square anchor of each level, pixels. Halve them for small objects.
    RPN_ANCHOR_SCALES: tuple[float, ...] = (32, 64, 128, 256, 512)

    # Width / height of the anchors of a cell.
    RPN_ANCHOR_RATIOS: tuple[float, ...] = (0.5, 1, 2)

    # Anchors at every cell (1), every second (2), ...
    RPN_ANCHOR_STRIDE: int = 1

    # 3x3 convolutions of the RPN, and their channels.
    RPN_CONVS: int = 1
    RPN_CHANNELS: int = 256

    # Anchor deltas are multiplied by these (dy, dx, dh, dw).
    RPN_BBOX_STD_DEV: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    # Anchors kept before NMS: of each level, or of the image (Dialect.proposals_of).
    PRE_NMS_LIMIT: int = 1000
    PRE_NMS_LIMIT_TRAINING: int = 2000

    # Proposals that overlap a better one by more than this IoU are dropped. Higher keeps more, for crowded images.
    RPN_NMS_THRESHOLD: float = 0.7

    # RoIs kept per image after the RPN's NMS. Fewer is faster and may miss objects; more than
    # DETECTION_MAX_INSTANCES is always needed.
    POST_NMS_ROIS_TRAINING: int = 1000
    POST_NMS_ROIS_INFERENCE: int = 1000

    # Anchors an image that the RPN learns from.
    RPN_TRAIN_ANCHORS_PER_IMAGE: int = 256

    # False: the data generator brings the RoIs, to train the heads alone.
    USE_RPN_ROIS: bool = True

    ### Heads

    # Classes, background included.
    NUM_CLASSES: int = 1

    # Cells of an RoI for the box head; for the mask and MaskIoU heads; of a predicted mask, twice the latter.
    POOL_SIZE: int = 7
    MASK_POOL_SIZE: int = 14
    MASK_SHAPE: tuple[int, ...] = (28, 28)

    # Box head: 3x3 convolutions first (torchvision v2 has 4), then fully connected layers of this width.
    BOX_HEAD_CONVS: int = 0
    BOX_HEAD_FC_LAYERS: int = 2
    FPN_CLASSIF_FC_LAYERS_SIZE: int = 1024

    # Box deltas are multiplied by these (dy, dx, dh, dw).
    BBOX_STD_DEV: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)

    # Mask head: 3x3 convolutions and their channels.
    MASK_HEAD_CONVS: int = 4
    MASK_HEAD_CHANNELS: int = 256

    # MaskIoU head: False is plain Mask R-CNN. Channels of its convolutions, width of its two fully connected layers.
    USE_MASKIOU_HEAD: bool = True
    MASKIOU_HEAD_CHANNELS: int = 256
    MASKIOU_FC_LAYERS_SIZE: int = 1024

    # Limit predicted IoUs to [0, 1] in the mask score. Imported weights have it False, as their own code.
    MASKIOU_CLAMP: bool = True

    ### Training targets

    # RoIs an image for the second stage, and the share of positive ones among them.
    TRAIN_ROIS_PER_IMAGE: int = 512
    ROI_POSITIVE_RATIO: float = 0.25

    # Anchors and RoIs are an object's if their IoU with it is at least this, background below the other one.
    RPN_POSITIVE_IOU: float = 0.7
    RPN_NEGATIVE_IOU: float = 0.3
    ROI_POSITIVE_IOU: float = 0.5

    # Anchors and RoIs of which more than this share lies in a crowd are no background. None: they are.
    CROWD_OVERLAP: float | None = 0.5

    # Objects of an image used in training; the rest is dropped, with a warning.
    MAX_GT_INSTANCES: int = 400

    # Ground-truth masks are kept cropped to their boxes; True also shrinks them to MINI_MASK_SHAPE: less memory,
    # coarser masks.
    USE_MINI_MASK: bool = False
    MINI_MASK_SHAPE: tuple[int, ...] = (56, 56)

    # A pixel counts as predicted when its mask logit is above this, in the IoU that the MaskIoU head learns. 0 is
    # probability 0.5; mmdetection has 0.5.
    MASKIOU_TARGET_LOGIT: float = 0.0

    # Learn from masks that miss their object wholly, too; the references leave them out.
    MASKIOU_KEEP_ZERO_TARGETS: bool = True

    # The part of an object inside an RoI by exact area; False truncates the RoI's corners to pixels (mmdetection).
    MASKIOU_EXACT_AREA: bool = True

    # True: the MaskIoU loss does not reach the mask head and the features. The references let it.
    MASKIOU_DETACH: bool = False

    # True: the MaskIoU head learns from the RoIs as the box head moves them, which is what it sees in detection; False:
    # from those that the mask head learns from, as the references do. It costs a second pass of both heads.
    MASKIOU_REFINED_ROIS: bool = False

    # "target": only the output of the object's class learns. "all": the others learn 0.
    MASKIOU_LOSS_CLASSES: str = "target"

    ### Augmentation

    # Chance that an image is flipped left to right.
    HORIZONTAL_FLIP: float = 0.5

    # Short sides to choose from for each image, instead of IMAGE_MIN_DIM (multi-scale training).
    MULTI_SCALE: tuple[int, ...] | None = None

    # Range of a random factor on the image's size, then a random crop of the usual size (large-scale jitter):
    # (0.1, 2.0), or (0.8, 1.25) for a mild one.
    SCALE_JITTER: tuple[float, ...] | None = None

    # Random change of brightness, contrast and saturation by up to this share, such as 0.2.
    COLOR_JITTER: float = 0.0

    ### Detection

    # Most instances of an image. Raise it for dense images (nuclei: 400).
    DETECTION_MAX_INSTANCES: int = 100

    # Detections with a class score of no more than this are dropped. 0.05 to evaluate, about 0.5 for pictures.
    DETECTION_MIN_CONFIDENCE: float = 0.05

    # Detections of a class that overlap a better one by more than this IoU are dropped.
    DETECTION_NMS_THRESHOLD: float = 0.5

    ### Optimiser

    # "sgd" with momentum, or "adamw" (then a learning rate of about 1e-4).
    OPTIMIZER: str = "sgd"

    # Learning rate, momentum and L2 penalty. The schedules have learning rates of their own.
    LEARNING_RATE: float = 0.001
    LEARNING_MOMENTUM: float = 0.9
    WEIGHT_DECAY: float = 0.0001

    # Whether the L2 penalty is on biases, and on the weights of norms; factor on the learning rate of biases.
    WEIGHT_DECAY_BIASES: bool = True
    WEIGHT_DECAY_NORMS: bool = True
    BIAS_LEARNING_RATE_FACTOR: float = 1.0

    # "1x": 12 epochs, a tenth of the learning rate after 8 and 11. "2x": 24, after 16 and 22. "matterport": the heads
    # for 40 epochs, 4+ until 120, all until 160 at a tenth. None: what train_model is given.
    SCHEDULE: str | None = None

    # How the learning rate falls: "steps", as SCHEDULE says, or not at all; "cosine", along half a cosine to 0 at the
    # last epoch, which gets more out of short trainings. Where other layers learn on, that is a new cosine.
    LEARNING_RATE_DECAY: str = "steps"

    # Steps over which the learning rate rises linearly from this share of it.
    WARMUP_STEPS: int = 500
    WARMUP_FACTOR: float = 0.001

    # Batches whose gradients are averaged before a step of the optimiser: larger batches in the same memory.
    ACCUMULATE_STEPS: int = 1

    # Gradients are scaled down to this norm. None or 0: they are not.
    GRADIENT_CLIP_NORM: float | None = 5.0

    # Factor of each loss in the sum.
    LOSS_WEIGHTS: dict[str, float] = types.MappingProxyType(
        {
            "rpn_class_loss": 1.0,
            "rpn_bbox_loss": 1.0,
            "mrcnn_class_loss": 1.0,
            "mrcnn_bbox_loss": 1.0,
            "mrcnn_mask_loss": 1.0,
            "mrcnn_maskiou_loss": 1.0,
        }
    )

    # Statistics of batch norm from each batch (True), or frozen (False), as small batches need. None: frozen from
    # weights, not from nothing.
    TRAIN_BN: bool | None = None

    # What the convolutions of a training compute in: "float32", or "bfloat16" where the processor has it. Weights and
    # losses are float32.
    TRAIN_DTYPE: str = "float32"

    # Compute activations of the backbone twice instead of keeping them: half of the memory, a fifth more time.
    ACTIVATION_CHECKPOINTING: bool = False

    # Put the backbone and the pyramid through torch.compile: minutes at the start, for long trainings on a GPU.
    COMPILE: bool = False

    # Detect and validate with an average of the weights that forgets by this factor a step, such as 0.999. 0: none.
    EMA_DECAY: float = 0.0

    ### Checkpoints

    # Minutes between checkpoints within an epoch; each epoch ends with one. 0: none within.
    CHECKPOINT_MINUTES: float = 15.0

    # Checkpoints that stay, beside the best.
    CHECKPOINTS_KEPT: int = 3

    # Epochs between evaluations (COCO-style AP), where a callback does them. 0: never.
    EVAL_EVERY: int = 1

    # Epochs without a better result after which training stops. None: never.
    EARLY_STOPPING: int | None = None

    # Images that may fail to load before training stops.
    MAX_DATA_ERRORS: int = 5

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.isupper() and name not in _KINDS:
                raise _unknown(name, f"{cls.__name__}.{name}")
            if name.isupper():
                _convert(name, value)

    def __init__(self, **overrides: Any) -> None:
        for name in overrides:
            if name not in _KINDS:
                raise _unknown(name, name)
        cls = type(self)
        dialect = overrides.get("DIALECT", cls.DIALECT)
        if dialect not in DIALECTS:
            raise ValueError(f"DIALECT must be one of {', '.join(DIALECTS)}, not {dialect!r}")
        chosen = {name for base in cls.__mro__[: cls.__mro__.index(Config)] for name in vars(base)}
        for name in _KINDS:
            value = getattr(cls, name)
            if name not in chosen:
                value = DIALECTS[dialect].defaults.get(name, value)
            self.__dict__[name] = _convert(name, overrides.get(name, value))
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE", "BACKBONE_SHAPES"):
            raise ValueError(f"{name} follows from other settings; set IMAGES_PER_GPU, IMAGE_MAX_DIM, ... instead")
        if name == "DIALECT" and value != self.DIALECT:
            raise ValueError("DIALECT decides the defaults of others: set it in the class, or Config(DIALECT=...)")
        if name.isupper() and name not in _KINDS:
            raise _unknown(name, name)
        self.__dict__[name] = _convert(name, value) if name in _KINDS else value

    @property
    def dialect(self) -> Dialect:
        """The rules that DIALECT names."""
        return DIALECTS[self.DIALECT]

    @property
    def BATCH_SIZE(self) -> int:
        """Images in a batch on all GPUs."""
        return self.IMAGES_PER_GPU * max(self.GPU_COUNT, 1)

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
    def BACKBONE_SHAPES(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of P2 to P6 for IMAGE_SHAPE."""
        height, width, _ = self.IMAGE_SHAPE
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in self.BACKBONE_STRIDES)

    def validate(self) -> None:
        """Raise ValueError for values that do not exist or contradict each other."""
        for name, values in {
            "IMAGE_RESIZE_MODE": RESIZE_MODES,
            "BACKBONE_STYLE": ("pytorch", "caffe"),
            "BACKBONE": BACKBONES,
            "BACKBONE_NORM": ("batch", "group"),
            "MASKIOU_LOSS_CLASSES": ("target", "all"),
            "OPTIMIZER": ("sgd", "adamw"),
            "SCHEDULE": (None, "1x", "2x", "matterport"),
            "LEARNING_RATE_DECAY": ("steps", "cosine"),
            "TRAIN_DTYPE": ("float32", "bfloat16"),
        }.items():
            value = getattr(self, name)
            if value not in values and not callable(value):
                hint = "; give the callable again: from_checkpoint(..., BACKBONE=...)" if value[:1] == "<" else ""
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, not {value!r}{hint}")
        for name in _POSITIVE:
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in _SHARES:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in _COUNTS:
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        self._validate_training()
        self._validate_lengths()
        if any(not value > 0 for value in (*self.STD_PIXEL, self.BACKBONE_WIDTH)):
            raise ValueError(f"STD_PIXEL {self.STD_PIXEL} and BACKBONE_WIDTH {self.BACKBONE_WIDTH} must be above 0")
        if self.IMAGE_MIN_DIM > self.IMAGE_MAX_DIM:
            raise ValueError(
                f"IMAGE_MIN_DIM {self.IMAGE_MIN_DIM} is above IMAGE_MAX_DIM {self.IMAGE_MAX_DIM}; set both"
            )
        if tuple(self.MASK_SHAPE) != (2 * self.MASK_POOL_SIZE,) * 2:
            raise ValueError(
                f"MASK_SHAPE {self.MASK_SHAPE} must be twice MASK_POOL_SIZE {self.MASK_POOL_SIZE} along both sides: "
                "the mask head doubles the resolution"
            )
        if self.IMAGE_RESIZE_MODE in ("square", "crop") and self.IMAGE_SHAPE[0] % 64:
            raise ValueError(
                f"IMAGE_RESIZE_MODE {self.IMAGE_RESIZE_MODE!r} makes squares of {self.IMAGE_SHAPE[0]} pixels, which "
                "must be a multiple of 64, so that P2 to P6 fit onto each other"
            )

    def _validate_training(self) -> None:
        if self.RPN_NEGATIVE_IOU > self.RPN_POSITIVE_IOU:
            raise ValueError(
                f"RPN_NEGATIVE_IOU {self.RPN_NEGATIVE_IOU} is above RPN_POSITIVE_IOU {self.RPN_POSITIVE_IOU}; "
                "anchors between the two teach nothing"
            )
        if (self.FROZEN_STAGES or 0) > 4:
            raise ValueError(f"FROZEN_STAGES must be at most 4, not {self.FROZEN_STAGES}: the backbone has no more")
        for name in self.LOSS_WEIGHTS:
            if name not in _LOSSES:
                raise ValueError(f"LOSS_WEIGHTS has no loss {name!r}; the losses are {', '.join(sorted(_LOSSES))}")
        jitter = self.SCALE_JITTER
        if jitter is not None and not (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]):
            raise ValueError(f"SCALE_JITTER must be (smallest, largest) factor above 0, not {jitter}")

    def _validate_lengths(self) -> None:
        lengths = {
            "MEAN_PIXEL": (self.IMAGE_CHANNEL_COUNT, "IMAGE_CHANNEL_COUNT"),
            "STD_PIXEL": (self.IMAGE_CHANNEL_COUNT, "IMAGE_CHANNEL_COUNT"),
            "BACKBONE_STRIDES": (5, "P2 to P6"),
            "RPN_ANCHOR_SCALES": (5, "P2 to P6"),
            "RPN_BBOX_STD_DEV": (4, "dy, dx, dh, dw"),
            "BBOX_STD_DEV": (4, "dy, dx, dh, dw"),
            "CLASS_NAMES": (self.NUM_CLASSES, "NUM_CLASSES"),
            "CATEGORY_IDS": (self.NUM_CLASSES, "NUM_CLASSES"),
        }
        for name, (length, reason) in lengths.items():
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise ValueError(f"{name} must have {length} entries ({reason}), not {len(value)}: {value}")

    def display(self) -> None:
        """Print every setting."""
        print("\nConfigurations:")
        names = [*_KINDS, "BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE", "BACKBONE_SHAPES"]
        for name in sorted(names):
            print(f"{name:30} {getattr(self, name)}")
        print()

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain numbers, strings, lists and dicts, for checkpoints and JSON.

        Of a callable only the name is kept: from_dict wants it given again.
        """
        plain = {}
        for name in _KINDS:
            value = getattr(self, name)
            if callable(value):
                value = f"<{value.__module__}.{value.__qualname__}>"
            plain[name] = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
        return plain

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **overrides: Any) -> "Config":
        """The Config that to_dict described.

        Raises: ValueError for names that do not exist and values of the wrong type.
        """
        return cls(**{**settings, **overrides})


############################################################
#  Types of settings
############################################################

_KINDS: dict[str, Any] = {name: kind for name, kind in typing.get_type_hints(Config).items() if name.isupper()}
_POSITIVE = [
    *("IMAGES_PER_GPU", "STEPS_PER_EPOCH", "IMAGE_MIN_DIM", "IMAGE_MAX_DIM", "IMAGE_SIZE_DIVISOR", "NUM_CLASSES"),
    *("IMAGE_CHANNEL_COUNT", "TOP_DOWN_PYRAMID_SIZE", "RPN_ANCHOR_STRIDE", "RPN_CONVS", "RPN_CHANNELS"),
    *("PRE_NMS_LIMIT", "PRE_NMS_LIMIT_TRAINING", "POST_NMS_ROIS_TRAINING", "POST_NMS_ROIS_INFERENCE", "POOL_SIZE"),
    *("MASK_POOL_SIZE", "BOX_HEAD_FC_LAYERS", "FPN_CLASSIF_FC_LAYERS_SIZE", "MASK_HEAD_CONVS", "MASK_HEAD_CHANNELS"),
    *("MASKIOU_HEAD_CHANNELS", "MASKIOU_FC_LAYERS_SIZE", "TRAIN_ROIS_PER_IMAGE", "DETECTION_MAX_INSTANCES"),
    *("RPN_TRAIN_ANCHORS_PER_IMAGE", "MAX_GT_INSTANCES", "VALIDATION_STEPS", "ACCUMULATE_STEPS", "CHECKPOINTS_KEPT"),
    *("EARLY_STOPPING", "MAX_DATA_ERRORS"),
]
_SHARES = [
    *("RPN_NMS_THRESHOLD", "DETECTION_NMS_THRESHOLD", "DETECTION_MIN_CONFIDENCE", "ROI_POSITIVE_RATIO"),
    *("RPN_POSITIVE_IOU", "RPN_NEGATIVE_IOU", "ROI_POSITIVE_IOU", "CROWD_OVERLAP", "HORIZONTAL_FLIP", "EMA_DECAY"),
    *("WARMUP_FACTOR", "COLOR_JITTER"),
]
_LOSSES = set(Config.LOSS_WEIGHTS)
_NAMES = list(_KINDS)
# Settings of a run of training, not of the network: who starts from a checkpoint chooses them anew.
RUN_SETTINGS = {
    "FROZEN_STAGES",
    *_NAMES[_NAMES.index("GPU_COUNT") : _NAMES.index("SEED") + 1],
    *_NAMES[_NAMES.index("OPTIMIZER") :],
}
# Numbers of any size from 0 up.
_COUNTS = ["WORKERS", "WARMUP_STEPS", "EVAL_EVERY", "CHECKPOINT_MINUTES", "FROZEN_STAGES", "GRADIENT_CLIP_NORM", "SEED"]


def _unknown(name: str, shown: str) -> ValueError:
    close = difflib.get_close_matches(name.upper(), _KINDS, n=1)
    hint = f"did you mean {close[0]}?" if close else "config.display() lists all names"
    return ValueError(f"{shown} is not a setting; {hint}")


def _convert(name: str, value: Any) -> Any:
    """The value as its setting's type: lists and arrays become tuples, whole floats ints."""
    if callable(getattr(value, "tolist", None)):  # NumPy arrays and numbers
        value = value.tolist()
    for kind in _alternatives(_KINDS[name]):
        converted = _as_kind(kind, value)
        if converted is not None or (value is None and kind is type(None)):
            return converted
    expected = " or ".join(_kind_name(kind) for kind in _alternatives(_KINDS[name]))
    raise ValueError(f"{name} must be {expected}, not {value!r}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _as_kind(kind: Any, value: Any) -> Any:
    """The value as a kind, or None if it is not of that kind."""
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        whole = kind is float or float(value).is_integer()
        return (value if kind is float else int(value)) if whole else None
    if kind is Callable:
        return value if callable(value) else None
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return None
        items = tuple(_as_kind(typing.get_args(kind)[0], item) for item in value)
        return None if None in items else items
    if typing.get_origin(kind) is dict:
        is_numbers = isinstance(value, Mapping) and all(isinstance(item, int | float) for item in value.values())
        return dict(value) if is_numbers else None
    return None


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {typing.get_args(kind)[0].__name__}"
    if typing.get_origin(kind) is dict:
        return "a dict of numbers"
    return {type(None): "None", Callable: "a callable"}.get(kind) or kind.__name__


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """What `--set NAME=VALUE ...` means: a dict for Config(**settings).

    texts: such as ["IMAGE_MIN_DIM=512", "RPN_ANCHOR_SCALES=8,16,32,64,128", "USE_MASKIOU_HEAD=False", "NAME=cells"].

    Raises: ValueError for a text without "=", an unknown name, or a value of the wrong type.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"--set needs NAME=VALUE, not {text!r}; no spaces around the '='?")
        if name not in _KINDS:
            raise _unknown(name, name)
        settings[name] = _convert(name, _literal(name, value.strip()))
    return settings


def _literal(name: str, text: str) -> Any:
    kinds = _alternatives(_KINDS[name])
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text  # a word, such as resnet50
    if str in kinds and not isinstance(value, str) and value is not None:
        return text  # a name that happens to be a number
    if isinstance(value, str) and typing.get_origin(kinds[0]) is tuple:
        return [part.strip() for part in value.split(",")]
    if typing.get_origin(kinds[0]) is tuple and isinstance(value, int | float):
        return [value]
    return value

"""Chooses the settings of a training from the data, each with its reason.

The numbers that decide are measured: the sizes of pictures and objects, how many there are, how much they overlap, and
how well anchors of some size meet them at some scale. docs/training.md has what each default was tried against.

    N objects   P pictures
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import utils
from data.check import OTHERS_OF_PARTLY, Report, partly_labelled
from data.recognise import Records

############################################################
#  What is known of the data
############################################################


VIEW_SIDE = 1024  # pixels; detection sees pictures of more than four times its square in tiles of about this side


class Facts(NamedTuple):
    """What a plan is made from: the pictures that train."""

    class_names: list[str]  # without the background
    sizes: np.ndarray  # int64 [P, (height, width)]
    boxes: np.ndarray  # float32 [N, (y1, x1, y2, x2)], crowds left out
    pictures: np.ndarray  # int64 [N], the picture of each object
    classes: np.ndarray  # int64 [N], places in class_names
    is_gray: bool  # of all pictures
    bits: int  # the most of a picture
    channels: int
    format_title: str
    partly: str = ""  # how many pictures are labelled for some classes only, in words; empty: none

    @property
    def sides(self) -> np.ndarray:
        """The side of each object: the root of the area of its box, float64 [N]."""
        heights, widths = (self.boxes[:, 2:] - self.boxes[:, :2]).astype(np.float64).T
        return np.sqrt(heights * widths)

    @property
    def most_objects(self) -> int:
        """The number of objects in the picture that has the most."""
        return int(np.bincount(self.pictures, minlength=1).max())

    @property
    def most_objects_in_view(self) -> int:
        """As most_objects, where of large pictures the part of VIEW_SIDE pixels a side counts that has the most.

        Detection sees these in tiles. A part begins at every half of its side; objects count by their middle.
        """
        is_large = self.sizes.prod(axis=1) > 4 * VIEW_SIDE**2
        cells = np.zeros((len(self.boxes), 3), np.int64)
        cells[:, 0] = self.pictures
        middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        cells[:, 1:] = np.where(is_large[self.pictures][:, None], middles // (VIEW_SIDE // 2), 0)
        counts: dict[tuple[int, int, int], int] = {}
        for (picture, row, column), count in zip(*np.unique(cells, axis=0, return_counts=True), strict=True):
            for y, x in itertools.product((row - 1, row), (column - 1, column)) if is_large[picture] else [(0, 0)]:
                counts[picture, y, x] = counts.get((picture, y, x), 0) + int(count)
        return max(counts.values(), default=0)


def facts_of(records: Records, report: Report, channels: int = 3) -> Facts:
    """The facts of the pictures that train: those of the split train, or all where there are no splits.

    records: with their splits decided (data.split.apply_split). report: of check, of the same pictures or of more.
    channels: of the data set's pictures.
    """
    table, pictures = report.table, records.pictures
    is_learned = np.array([picture.is_labelled and picture.split in ("train", None) for picture in pictures], bool)
    kinds = [thumbnail.kind for thumbnail in report.thumbnails]
    of_object = is_learned[table.pictures] & ~table.crowds if len(table.pictures) else np.zeros(0, bool)
    place = np.cumsum(is_learned) - 1
    return Facts(
        table.class_names,
        np.array([(p.height, p.width) for p, learned in zip(pictures, is_learned, strict=True) if learned], np.int64)
        .reshape(-1, 2),
        table.boxes[of_object],
        place[table.pictures[of_object]].astype(np.int64),
        table.classes[of_object].astype(np.int64),
        all(kind.startswith("gray") for kind in kinds),
        max((int(match[1]) for kind in kinds if (match := re.search(r"(\d+) bit", kind))), default=8),
        channels,
        report.title,
        partly_labelled(picture for picture, learned in zip(pictures, is_learned, strict=True) if learned),
    )  # fmt: skip


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below count, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


############################################################
#  Scale and anchors
############################################################

BASES = (8, 12, 16, 24, 32, 48)  # sides of the smallest anchor that are tried; each level doubles it
ENLARGEMENTS = (1.0, 1.5, 2.0, 3.0, 4.0)
REDUCTIONS = (0.75, 0.5, 1 / 3, 0.25, 1 / 6, 0.125)
STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1, 2)
LEAST_SHARE = 0.8  # of the objects that an anchor must be able to meet with IoU 0.5
_DRAWS = 16  # places of an object's centre in its cell
_MOST_OBJECTS = 4000  # that are tried


class Coverage(NamedTuple):
    """The shares of objects that some anchor meets with an IoU of 0.5 and of 0.7, at the best of all bases."""

    base: int
    half: float
    seventy: float


def coverage(sizes: np.ndarray, base: float, seed: int = 0) -> tuple[float, float]:
    """The shares of objects whose best anchor has an IoU of 0.5, and of 0.7, wherever their centres lie in a cell.

    sizes: float [N, (height, width)] of the objects in the network's input. base: side of the smallest anchor.
    """
    rng = np.random.default_rng(seed)
    if not len(sizes):
        return 0.0, 0.0
    best = np.zeros((_DRAWS, len(sizes)))
    for level, stride in enumerate(STRIDES):
        shift = np.abs(rng.uniform(-0.5, 0.5, (_DRAWS, len(sizes), 2)) * stride)
        for ratio in RATIOS:
            side = base * 2**level
            anchor = np.array([side / math.sqrt(ratio), side * math.sqrt(ratio)])
            # Two intervals with centres at a distance share this much along an axis.
            shared = np.minimum(np.minimum(sizes, anchor), (sizes + anchor) / 2 - shift).clip(0).prod(axis=2)
            best = np.maximum(best, shared / (sizes.prod(axis=1) + anchor.prod() - shared))
    return float((best >= 0.5).mean()), float((best >= 0.7).mean())


def best_coverage(sizes: np.ndarray, bases: Sequence[float] = BASES) -> Coverage:
    """The base whose anchors meet the most objects. The arguments are those of coverage."""
    tried = [Coverage(base, *coverage(sizes, base)) for base in bases]
    return max(tried, key=lambda each: each.half + each.seventy)


############################################################
#  The plan
############################################################

AUGMENTATIONS = ("microscopy", "natural", "top", "none")
_MICROSCOPY_FORMATS = re.compile("label images|ImageJ|QuPath|GeoJSON|binary masks", re.IGNORECASE)
_MOST_PIXELS = {"cpu": 1 << 20, "cuda": 2 << 20}  # of an input that holds a whole picture
LEAST_SIDE = 24  # pixels in the network's input that half of the objects should have
CROP_SIDES = (256, 320, 384, 512, 640, 768, 1024)
LARGE_PICTURE = 1 << 24  # pixels, from which on photographs are seen in crops, too, if half of their objects would have
LEAST_SIDE_OF_WHOLE = 8  # fewer pixels than this in the whole picture
OBJECTS_IN_CROP = 4  # times the side of a large object is the side of a crop
VALIDATIONS = 8  # in a training
VIEWS_FROM_WEIGHTS = (60, 3_000, 120_000)  # of each picture; the least and the most of all together
VIEWS_FROM_NOTHING = (240, 12_000, 48_000)
LEAST_VIEWS_FROM_WEIGHTS, LEAST_VIEWS_FROM_NOTHING = 400, 2_000  # before which a model finds little
REPORT_SECONDS = 30  # of the evaluation at the end, beside the detection
FEW_OBJECTS = 1000
SMALL_SET = 500  # pictures, below which natural ones change their size little
_HANDED = re.compile(r"\b(left|right)\b|^(left|right)[-_ ]|[-_ ](left|right)$", re.IGNORECASE)


class Choice(NamedTuple):
    """A line of the plan."""

    what: str
    value: str
    why: str


@dataclasses.dataclass
class Plan:
    """The settings of a training, and why."""

    settings: dict[str, Any]  # of Config
    choices: list[Choice]
    batches: int  # of the whole training, before its time is known
    heads_first: bool  # the heads learn alone at first, because trained weights would be spoiled
    epochs: int  # each ends with a validation

    def to_json(self) -> dict[str, Any]:
        """In types that json.dump takes; from_json is the inverse."""
        return {**dataclasses.asdict(self), "choices": [list(choice) for choice in self.choices]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """Raises: TypeError, KeyError or ValueError for another value."""
        choices = [Choice(*map(str, choice)) for choice in value["choices"]]
        numbers = {name: int(value[name]) for name in ("batches", "epochs")}
        return cls(dict(value["settings"]), choices, heads_first=bool(value["heads_first"]), **numbers)

    def text(self) -> str:
        """The choices, each with its reason on a line of its own."""
        width = max(len(choice.what) for choice in self.choices)
        lines = []
        for what, value, why in self.choices:
            lines += [f"  {what:<{width}}  {value}", f"  {'':<{width}}    {why}"]
        return "\n".join(lines)


def make_plan(
    facts: Facts,
    device: str = "cpu",
    augment: str | None = None,
    start: Mapping[str, Any] | None = None,
    is_detector: bool = False,
) -> Plan:
    """Chooses the settings of a training.

    device: "cpu" or "cuda". augment: one of AUGMENTATIONS; None: chosen by the data.
    start: the settings of the checkpoint that the training starts from; None: random weights.
    is_detector: whether that checkpoint has been trained to detect: its anchors are kept.

    Raises: ValueError if there is no object to learn from.
    """
    if not len(facts.boxes):
        raise ValueError("there is no object to learn from in the pictures that train; custom.py check says why")
    settings: dict[str, Any] = {}
    choices: list[Choice] = []
    kind, why = _preset(facts)
    preset, why = (augment, "--augment") if augment else (kind, why)
    kind = kind if preset == "none" else preset
    anchors = tuple(start["RPN_ANCHOR_SCALES"]) if start is not None and is_detector else None
    _plan_images(facts, kind, device, anchors, settings, choices)
    _plan_caps(facts, settings, choices)
    _plan_augmentation(facts, preset, why, settings, choices)
    if facts.partly:
        choices.append(Choice("labels", facts.partly, OTHERS_OF_PARTLY))
    _plan_pixels(facts, start, settings, choices)
    plan = Plan(settings, choices, 0, False, VALIDATIONS)
    _plan_length(facts, start is not None, plan)
    return plan


def _preset(facts: Facts) -> tuple[str, str]:
    """The augmentation that fits to the data, and why."""
    reasons = [
        (facts.channels not in (1, 3), f"{facts.channels} channels"),
        (facts.bits > 8, f"{facts.bits} bit"),
        (_MICROSCOPY_FORMATS.search(facts.format_title), f"labels are {facts.format_title}"),
        (facts.is_gray, "all pictures are gray"),
    ]
    reason = next((words for is_true, words in reasons if is_true), None)
    if reason:
        return "microscopy", f"{reason}, as microscopes give them; else --augment natural"
    return "natural", "colour pictures; --augment microscopy or top if they have no upright direction"


### Images


def _plan_images(
    facts: Facts, kind: str, device: str, anchors: tuple | None, settings: dict[str, Any], choices: list[Choice]
) -> None:
    """IMAGE_RESIZE_MODE with its sizes, RPN_ANCHOR_SCALES, IMAGES_PER_GPU."""
    why = _why_crops(facts, device)
    if kind == "microscopy" or why:
        scale, crop = _enlargement(facts, anchors, enlarges=True)
        crop = CROP_SIDES[-1] if crop is None and why else crop
        if crop is not None:
            _plan_crops(facts, scale, crop, anchors, settings, choices)
            choices += [Choice("large pictures", "crops are read by themselves", why)] if why else []
            return
    _plan_whole(facts, device, anchors, settings, choices)


def _why_crops(facts: Facts, device: str) -> str:
    """Why pictures of every kind are seen in crops: they are large. Empty if they are not."""
    most = facts.sizes.prod(axis=1).max()
    if most > utils.MAX_IMAGE_PIXELS:
        return f"the largest picture has {most / 1e6:,.0f} million pixels, which no memory should hold at once"
    pixels = float(np.median(facts.sizes.prod(axis=1)))
    shrunk = math.sqrt(min(1.0, _MOST_PIXELS[device] / pixels))
    middle = float(np.median(facts.sides))
    if pixels < LARGE_PICTURE or middle * shrunk >= LEAST_SIDE_OF_WHOLE:
        return ""
    return f"seen whole, a middle object of {middle:.0f} px would have {middle * shrunk:.1f}"


def _sample(facts: Facts) -> np.ndarray:
    """Indices of at most _MOST_OBJECTS objects, evenly."""
    return np.array(evenly(len(facts.boxes), _MOST_OBJECTS), np.int64)


def _best(sizes: np.ndarray, anchors: tuple | None) -> Coverage:
    return best_coverage(sizes, BASES if anchors is None else anchors[:1])


def _enlargement(facts: Facts, anchors: tuple | None, enlarges: bool) -> tuple[float, int | None]:
    """The scale of crops, and their side; no side if objects are too large for crops."""
    rows = _sample(facts)
    sizes = (facts.boxes[:, 2:] - facts.boxes[:, :2])[rows].astype(np.float64)
    middle, large = np.percentile(np.sqrt(sizes.prod(axis=1)), [50, 95])
    tried = [(scale, _best(sizes * scale, anchors)) for scale in ENLARGEMENTS]
    fits = [scale for scale, each in tried if each.half >= LEAST_SHARE and middle * scale >= LEAST_SIDE]
    scale = fits[0] if fits else max(tried, key=lambda pair: pair[1].half)[0]
    wanted = OBJECTS_IN_CROP * large * scale
    crop = next((side for side in CROP_SIDES if side >= wanted), None)
    longest = int(facts.sizes.max()) * scale
    if crop is not None and crop > longest:  # a crop larger than every picture shows padding alone
        crop = max(64 * math.ceil(longest / 64), CROP_SIDES[0])
    return scale, crop


def _plan_crops(
    facts: Facts, scale: float, crop: int, anchors: tuple | None, settings: dict[str, Any], choices: list[Choice]
) -> None:
    sizes = (facts.boxes[:, 2:] - facts.boxes[:, :2])[_sample(facts)].astype(np.float64)
    as_it_is, chosen = _best(sizes, anchors), _best(sizes * scale, anchors)
    settings.update(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=crop, IMAGE_MAX_DIM=crop, IMAGE_MIN_SCALE=scale)
    settings["IMAGES_PER_GPU"] = _batch(crop * crop)
    enlarged = f", enlarged {scale:g} x" if scale != 1 else ""
    reason = f"anchors can meet {chosen.half:.0%} of the objects (IoU 0.5)"
    if scale != 1:
        middle = np.median(facts.sides)
        reason += f", {as_it_is.half:.0%} as they are; a middle object has {middle:.0f} px, then {middle * scale:.0f}"
    choices.append(Choice("pictures", f"crops of {crop}{enlarged}, {settings['IMAGES_PER_GPU']} at a time", reason))
    _plan_anchors(chosen, anchors, settings, choices)


def _plan_whole(
    facts: Facts, device: str, anchors: tuple | None, settings: dict[str, Any], choices: list[Choice]
) -> None:
    """Photographs differ in size: all pictures are scaled to about the same size, and seen whole."""
    shorts, longs = facts.sizes.min(axis=1), facts.sizes.max(axis=1)
    short, long = float(np.median(shorts)), float(np.median(longs))
    of_object = facts.pictures[_sample(facts)]
    sizes = (facts.boxes[:, 2:] - facts.boxes[:, :2])[_sample(facts)].astype(np.float64)
    sizes *= (short / shorts[of_object])[:, None]
    most = _MOST_PIXELS[device]
    scales = [scale for scale in (*REDUCTIONS[::-1], *ENLARGEMENTS) if short * long * scale**2 <= most]
    scales = scales or [math.sqrt(most / (short * long))]
    tried = {scale: _best(sizes * scale, anchors) for scale in scales}
    usual = max((scale for scale in scales if scale <= 1), default=scales[0])
    fits = [scale for scale in scales if scale >= usual and tried[scale].half >= LEAST_SHARE]
    fits += [scale for scale in reversed(scales) if scale < usual and tried[scale].half >= LEAST_SHARE]
    scale = fits[0] if fits else max(scales, key=lambda each: tried[each].half)
    side = max(64, round(short * scale))
    limit = max(side, round(float(np.percentile(longs / shorts, 95)) * side))
    settings.update(IMAGE_RESIZE_MODE="shorter", IMAGE_MIN_DIM=side, IMAGE_MAX_DIM=limit, IMAGE_MIN_SCALE=0)
    settings["IMAGES_PER_GPU"] = _batch(side * limit)
    reason = f"anchors can meet {tried[scale].half:.0%} of the objects (IoU 0.5)"
    if scale < 1:
        budget = "the network takes at most" if scale == usual else "objects are large;"
        reason += f"; {budget} {most / 1e6:.1f} million pixels here" if scale == usual else f"; {budget} reduced"
    value = f"whole, the shorter side {side} (x {scale:.2g}), {settings['IMAGES_PER_GPU']} at a time"
    choices.append(Choice("pictures", value, reason))
    _plan_anchors(tried[scale], anchors, settings, choices)


def _plan_anchors(chosen: Coverage, anchors: tuple | None, settings: dict[str, Any], choices: list[Choice]) -> None:
    if anchors is None:
        anchors, why = tuple(chosen.base * 2**level for level in range(5)), "the best of those tried at this scale"
    else:
        why = "those of the weights, whose RPN means them"
    settings["RPN_ANCHOR_SCALES"] = anchors
    choices.append(Choice("anchors", ", ".join(f"{side:g}" for side in anchors), why))


def _batch(pixels: int) -> int:
    """Images of a batch by the pixels of an input: as many as a computer with 8 GB takes."""
    return next(count for limit, count in ((1 << 18, 4), (1 << 20, 2), (math.inf, 1)) if pixels <= limit)


### Caps


def _plan_caps(facts: Facts, settings: dict[str, Any], choices: list[Choice]) -> None:
    """How many objects and detections a picture may have."""
    most = facts.most_objects
    seen = facts.most_objects_in_view if settings["IMAGE_RESIZE_MODE"] == "crop" else most
    instances = max(100, 50 * math.ceil(1.5 * seen / 50))
    overlap = overlapping_share(facts)
    settings.update(
        MAX_GT_INSTANCES=max(100, math.ceil(1.1 * most)),
        DETECTION_MAX_INSTANCES=instances,
        POST_NMS_ROIS_INFERENCE=max(1000, 4 * instances),
        PRE_NMS_LIMIT=max(1000, 4 * instances),
        DETECTION_NMS_THRESHOLD=0.6 if overlap > 0.02 else 0.5,
        POST_NMS_ROIS_TRAINING=500,
        TRAIN_ROIS_PER_IMAGE=128,
        ROI_POSITIVE_RATIO=0.33,
    )
    choices.append(
        Choice(
            "detections",
            f"{instances} a picture at most" + (", or a tile of a large one" if seen < most else ""),
            f"{most} object{'s' * (most != 1)} at most in a picture that trains"
            + (f", {seen} in {VIEW_SIDE} x {VIEW_SIDE} pixels of it" if seen < most else ""),
        )
    )
    if overlap > 0.02:
        why = f"{overlap:.0%} of the objects overlap another of their class with IoU 0.5 or more"
        choices.append(Choice("DETECTION_NMS_THRESHOLD", "0.6", why))


def overlapping_share(facts: Facts, pictures: int = 200) -> float:
    """The share of objects whose box has an IoU of 0.5 or more with that of another object of their class.

    pictures: how many of those with objects are looked at, evenly chosen.
    """
    with_objects = np.unique(facts.pictures)
    chosen = with_objects[evenly(len(with_objects), pictures)]
    overlapping = total = 0
    for picture in chosen:
        rows = np.flatnonzero(facts.pictures == picture)[:1000]
        boxes, classes = facts.boxes[rows], facts.classes[rows]
        ious = utils.compute_overlaps(boxes, boxes) * (classes[:, None] == classes)
        np.fill_diagonal(ious, 0)
        overlapping += int((ious >= 0.5).any(axis=1).sum())
        total += len(rows)
    return overlapping / max(total, 1)


### Augmentation and pixels


def _plan_augmentation(
    facts: Facts, preset: str, why: str, settings: dict[str, Any], choices: list[Choice]
) -> None:  # fmt: skip
    handed = [name for name in facts.class_names if _HANDED.search(name)]
    signs = [name for name in facts.class_names if len(name) == 1 and name.isalnum()]
    flips = not handed and len(signs) < 2
    settings.update(HORIZONTAL_FLIP=0.5 if flips else 0.0)
    if preset == "microscopy":
        settings.update(VERTICAL_FLIP=0.5 if flips else 0.0, QUARTER_TURNS=True)
        settings.update(SCALE_JITTER=(0.8, 1.25), BRIGHTNESS_JITTER=0.2, CONTRAST_JITTER=0.2, COLOR_JITTER=0.0)
        value = "flips, quarter turns, scale 0.8 to 1.25, brightness and contrast 0.2"
    elif preset in ("natural", "top"):
        jitter = (0.8, 1.25) if len(facts.sizes) < SMALL_SET else (0.5, 2.0)
        settings.update(SCALE_JITTER=jitter, COLOR_JITTER=0.4 if facts.channels == 3 else 0.0)
        value = f"flips, scale {jitter[0]:g} to {jitter[1]:g}, colour 0.4"
        if preset == "top":
            settings.update(VERTICAL_FLIP=0.5 if flips else 0.0, QUARTER_TURNS=True)
            value = value.replace("flips", "flips, quarter turns")
    else:
        settings.update(HORIZONTAL_FLIP=0.0)
        value, flips = "none", True
    if not flips:
        named = utils.listed(map(utils.printable, handed or signs), 3)
        value, why = value.replace("flips", "no flips"), f"{why}; classes such as {named} are not their mirror images"
    choices.append(Choice("augmentation", f"{preset}: {value}", why))


def _plan_pixels(
    facts: Facts, start: Mapping[str, Any] | None, settings: dict[str, Any], choices: list[Choice]
) -> None:
    settings["IMAGE_CHANNEL_COUNT"] = facts.channels
    if facts.bits > 8:
        settings["PIXEL_RANGE"] = "percentiles"
        why = f"{facts.bits} bit: the percentiles 0.1 and 99.9 of each picture and channel become black and white"
        choices.append(Choice("brightness", "by percentiles", why))
    if facts.channels != 3:
        why = "the first layer takes the mean of the weights of three" if start else "as the pictures have them"
        choices.append(Choice("channels", str(facts.channels), why))


### Length


def _plan_length(facts: Facts, has_weights: bool, plan: Plan) -> None:
    """How many batches, and which layers learn when."""
    pictures, objects = len(facts.sizes), len(facts.boxes)
    each, least, most = VIEWS_FROM_WEIGHTS if has_weights else VIEWS_FROM_NOTHING
    views = min(max(each * pictures, least), most)
    plan.batches = math.ceil(views / plan.settings["IMAGES_PER_GPU"])
    plan.heads_first = has_weights and objects < FEW_OBJECTS
    rate = 1e-4 if has_weights else 1e-3
    plan.settings |= {"OPTIMIZER": "adamw", "LEARNING_RATE": rate, "LEARNING_RATE_DECAY": "cosine"}
    plan.choices.append(length_choice(plan, pictures, has_weights))
    if plan.heads_first:
        plan.settings["FROZEN_STAGES"] = 2
        why = f"{objects:,} objects are few: the trained layers keep what they know"
        plan.choices.append(Choice("layers", "heads first, then all but two stages", why))


def length_choice(plan: Plan, pictures: int, has_weights: bool) -> Choice:
    """The line on the length of a plan. pictures: that train."""
    views = plan.batches * plan.settings["IMAGES_PER_GPU"]
    head = head_batches(plan)
    value = f"{plan.batches:,} steps" + (f", then {head:,} of the MaskIoU head" if head else "")
    start = "from trained weights" if has_weights else "without trained weights"
    return Choice("length", value, f"{views:,} views, {views / pictures:.0f} of each picture, {start}")


def set_length(plan: Plan, batches: int) -> None:
    """Divides the batches of a training into epochs with a validation after each; sets the warm-up."""
    plan.settings["STEPS_PER_EPOCH"] = max(1, batches // plan.epochs)
    plan.batches = plan.settings["STEPS_PER_EPOCH"] * plan.epochs
    plan.settings["WARMUP_STEPS"] = min(500, plan.batches // 10)


class Pace(NamedTuple):
    """What was measured on a machine, and what there is to evaluate."""

    step: float  # seconds of a step
    image: float  # seconds of the detection in a picture
    images: int  # that each evaluation in the training takes
    all_images: int  # that the evaluation at the end takes


def evaluations(plan: Plan) -> int:
    """How many evaluations a training makes before the one at its end."""
    return plan.epochs + bool(head_batches(plan))


def seconds_of(plan: Plan, pace: Pace) -> tuple[float, float]:
    """The seconds of all steps, and of all evaluations, with the report at the end."""
    # Where an epoch is evaluated on some pictures, the best one and the last are compared on all, before the report.
    passes = 3 if pace.all_images > pace.images else 1
    report = REPORT_SECONDS + passes * pace.all_images * pace.image if pace.images else 0.0
    return (plan.batches + head_batches(plan)) * pace.step, evaluations(plan) * pace.images * pace.image + report


def head_batches(plan: Plan) -> int:
    """The batches of the last phase, in which the MaskIoU head learns alone."""
    return plan.batches // plan.epochs if plan.settings.get("USE_MASKIOU_HEAD", True) else 0


def fit_to_minutes(plan: Plan, minutes: float, pace: Pace) -> None:
    """Shortens or lengthens a training so that its steps, evaluations and report take this many minutes.

    There are fewer evaluations where they would take more than a third of the time.

    Raises: ValueError if there is no time for a step before each evaluation.
    """
    while plan.epochs > 1 and seconds_of(plan, pace)[1] > 20 * minutes:
        plan.epochs -= 1
        set_length(plan, plan.batches)
    other = seconds_of(plan, pace)[1]
    batches = int((60 * minutes - other) / pace.step / (1 + bool(head_batches(plan)) / plan.epochs))
    if batches < plan.epochs:
        least = math.ceil((60 + other + 2 * plan.epochs * pace.step) / 60)
        raise ValueError(f"--minutes {minutes:g} leaves no time to learn; at least {least} minutes are needed here")
    set_length(plan, batches)


def warn_if_short(plan: Plan, pace: Pace, has_weights: bool) -> None:
    """Adds a line to a plan in which a model would see too little to find anything."""
    least = LEAST_VIEWS_FROM_WEIGHTS if has_weights else LEAST_VIEWS_FROM_NOTHING
    views = plan.batches * plan.settings["IMAGES_PER_GPU"]
    if views >= least:
        return
    steps = least / plan.settings["IMAGES_PER_GPU"] * (1 + bool(head_batches(plan)) / plan.epochs)
    minutes = math.ceil((steps * pace.step + seconds_of(plan, pace)[1]) / 60)
    more = "" if has_weights else ", or start from a trained model with --model"
    why = f"{views:,} views, and a model finds little before {least:,}: take {minutes} minutes at least{more}"
    plan.choices.append(Choice("careful", "this is too short", why))

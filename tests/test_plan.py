"""The settings that a plan chooses from the data."""

import json

import numpy as np
import pytest

import utils
from config import Config
from data.plan import (
    CROP_SIDES,
    LEAST_SHARE,
    Facts,
    Pace,
    Plan,
    best_coverage,
    coverage,
    fit_to_minutes,
    head_batches,
    length_choice,
    make_plan,
    overlapping_share,
    seconds_of,
    set_length,
    warn_if_short,
)


def facts(side=13.0, size=(256, 256), pictures=32, each=20, **changes) -> Facts:
    """Pictures of one size with square objects of one side, on a grid."""
    numbers = np.arange(pictures * each)
    y, x = (numbers % each) * side * 1.5, np.zeros(len(numbers))
    boxes = np.stack([y, x, y + side, x + side], axis=1).astype(np.float32)
    values = {
        "class_names": ["cell"], "sizes": np.tile(size, (pictures, 1)), "boxes": boxes,
        "pictures": numbers // each, "classes": np.zeros(len(numbers), int), "is_gray": True, "bits": 8, "channels": 3,
        "format_title": "COCO json",
    }  # fmt: skip
    return Facts(**{**values, **changes})


def choice(plan: Plan, what: str):
    return next(each for each in plan.choices if each.what == what)


############################################################
#  Large pictures
############################################################

PHOTOGRAPHS = {"is_gray": False, "pictures": 4, "each": 50}


def scattered(size: tuple[int, int], **changes) -> Facts:
    """Pictures with objects all over them."""
    made = facts(size=size, **changes)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, np.array(size) - 100, (len(made.boxes), 2))
    return made._replace(boxes=np.concatenate([low, low + made.boxes[:, 2:] - made.boxes[:, :2]], axis=1))


def test_large_photographs_of_small_objects_are_seen_in_crops():
    seen = make_plan(scattered((5000, 5000), side=30.0, **PHOTOGRAPHS))
    assert seen.settings["IMAGE_RESIZE_MODE"] == "crop"
    assert choice(seen, "large pictures").why == "seen whole, a middle object of 30 px would have 6.1"
    for size, side in (((5000, 5000), 200.0), ((3000, 3000), 10.0)):
        assert make_plan(scattered(size, side=side, **PHOTOGRAPHS)).settings["IMAGE_RESIZE_MODE"] == "shorter"


def test_pictures_that_no_memory_holds_are_seen_in_crops_whatever_they_show():
    made = scattered((20_000, 20_000), side=700.0, **PHOTOGRAPHS)
    plan = make_plan(made)
    assert (plan.settings["IMAGE_RESIZE_MODE"], plan.settings["IMAGE_MIN_DIM"]) == ("crop", CROP_SIDES[-1])
    assert choice(plan, "large pictures").why.startswith("the largest picture has 400 million pixels")


def test_the_detections_of_large_pictures_are_those_of_a_tile():
    made = scattered((5000, 5000), pictures=1, each=1000)
    seen = made.most_objects_in_view
    assert made.most_objects == 1000
    assert 1000 / 25 < seen < 1000 / 10
    plan = make_plan(made)
    assert plan.settings["DETECTION_MAX_INSTANCES"] == max(100, 50 * -(-1.5 * seen // 50)) <= 150
    assert plan.settings["MAX_GT_INSTANCES"] >= 1000
    assert choice(plan, "detections").value.endswith("a picture at most, or a tile of a large one")
    small = facts()
    assert small.most_objects_in_view == small.most_objects == 20
    middle = np.array([[500, 500, 520, 520], [1030, 1030, 1050, 1050], [1600, 1600, 1610, 1610]], np.float32)
    few = facts(size=(4000, 4000), pictures=1, each=3)._replace(boxes=middle)
    assert few.most_objects_in_view == 2, "windows begin at every half"


############################################################
#  Anchors
############################################################


def brute_coverage(size: float, base: float, draws: int = 4000) -> float:
    """The share of places at which a square object meets an anchor with IoU 0.5, from boxes and utils' overlaps."""
    rng = np.random.default_rng(1)
    met = np.zeros(draws, bool)
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        centre = rng.uniform(-stride / 2, stride / 2, (draws, 2))
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
        for ratio in (0.5, 1, 2):
            height, width = base * 2**level / ratio**0.5, base * 2**level * ratio**0.5
            anchor = np.array([[-height, -width, height, width]], np.float32) / 2
            met |= utils.compute_overlaps(boxes, anchor)[:, 0] >= 0.5
    return met.mean()


@pytest.mark.parametrize(("size", "base"), [(13, 8), (6, 8), (20, 32), (40, 24), (9, 12)])
def test_coverage_is_that_of_boxes_at_random_places(size, base):
    share, _ = coverage(np.full((500, 2), float(size)), base)
    assert share == pytest.approx(brute_coverage(size, base), abs=0.03)


def test_an_object_like_an_anchor_is_covered_and_one_of_a_pixel_is_not():
    assert coverage(np.full((50, 2), 128.0), 32)[0] == 1.0
    assert coverage(np.full((50, 2), 1.0), 8) == (0.0, 0.0)
    assert coverage(np.zeros((0, 2)), 8) == (0.0, 0.0)
    assert best_coverage(np.full((200, 2), 24.0)).base in (12, 24)


############################################################
#  Pictures
############################################################


def test_small_objects_are_enlarged_until_anchors_meet_them():
    plan = make_plan(facts(side=10))
    settings = plan.settings
    assert settings["IMAGE_RESIZE_MODE"] == "crop"
    assert 10 * settings["IMAGE_MIN_SCALE"] >= 24
    sizes = np.full((640, 2), 10.0 * settings["IMAGE_MIN_SCALE"])
    assert coverage(sizes, settings["RPN_ANCHOR_SCALES"][0])[0] >= LEAST_SHARE
    assert "a middle object has 10 px" in choice(plan, "pictures").why
    Config(NUM_CLASSES=2, **settings)


def test_objects_that_fit_stay_as_they_are_and_lie_whole_in_a_crop():
    settings = make_plan(facts(side=60, size=(1000, 1400))).settings
    assert settings["IMAGE_MIN_SCALE"] == 1
    assert settings["IMAGE_MIN_DIM"] in CROP_SIDES
    assert settings["IMAGE_MIN_DIM"] >= 4 * 60


def test_objects_too_large_for_crops_are_seen_in_whole_pictures():
    settings = make_plan(facts(side=700, size=(2000, 3000), each=2)).settings
    assert settings["IMAGE_RESIZE_MODE"] == "shorter"
    assert settings["IMAGE_MIN_DIM"] * settings["IMAGE_MAX_DIM"] <= 1.1 * 2**20


@pytest.mark.parametrize("size", [(320, 240), (480, 640), (3000, 4000), (64, 64)])
def test_photographs_are_seen_whole_and_within_the_budget(size):
    plan = make_plan(facts(side=size[0] / 4, size=size, is_gray=False))
    settings = plan.settings
    assert settings["IMAGE_RESIZE_MODE"] == "shorter"
    assert settings["IMAGE_MIN_DIM"] * settings["IMAGE_MAX_DIM"] <= 1.1 * 2**20
    if size[0] <= 640:
        assert settings["IMAGE_MIN_DIM"] == min(size), "what fits is not made smaller"
    Config(NUM_CLASSES=2, **settings)


def test_anchors_of_trained_weights_are_kept():
    start = {"RPN_ANCHOR_SCALES": (64, 128, 256, 512, 1024)}
    plan = make_plan(facts(side=16), start=start, is_detector=True)
    assert plan.settings["RPN_ANCHOR_SCALES"] == (64, 128, 256, 512, 1024)
    assert plan.settings["IMAGE_MIN_SCALE"] > make_plan(facts(side=16)).settings["IMAGE_MIN_SCALE"]
    assert make_plan(facts(side=16), start=start).settings["RPN_ANCHOR_SCALES"][0] < 32, "a backbone has no anchors"


############################################################
#  Caps, augmentation, pixels
############################################################


def test_caps_follow_the_fullest_picture():
    settings = make_plan(facts(each=375)).settings
    assert settings["MAX_GT_INSTANCES"] >= 375
    assert settings["DETECTION_MAX_INSTANCES"] == 600
    assert settings["POST_NMS_ROIS_INFERENCE"] >= 4 * 600
    assert make_plan(facts(each=3)).settings["DETECTION_MAX_INSTANCES"] == 100


def test_objects_that_overlap_raise_the_threshold_of_nms():
    boxes = np.array([[0, 0, 10, 10], [0, 2, 10, 12], [40, 40, 50, 50], [80, 0, 90, 10]], np.float32)
    crowded = facts(pictures=1, each=4, boxes=boxes)
    assert overlapping_share(crowded) == 0.5
    assert make_plan(crowded).settings["DETECTION_NMS_THRESHOLD"] == 0.6
    assert overlapping_share(crowded._replace(classes=np.array([0, 1, 0, 0]))) == 0, "of different classes"
    assert make_plan(facts()).settings["DETECTION_NMS_THRESHOLD"] == 0.5


@pytest.mark.parametrize(
    ("changes", "preset"),
    [
        ({}, "microscopy"),
        ({"is_gray": False}, "natural"),
        ({"is_gray": False, "bits": 16}, "microscopy"),
        ({"is_gray": False, "channels": 5}, "microscopy"),
        ({"is_gray": False, "format_title": "QuPath GeoJSON"}, "microscopy"),
    ],
)
def test_the_augmentation_fits_to_the_kind_of_pictures(changes, preset):
    plan = make_plan(facts(**changes))
    assert choice(plan, "augmentation").value.startswith(preset)
    assert plan.settings.get("QUARTER_TURNS", False) == (preset == "microscopy")
    assert bool(plan.settings["COLOR_JITTER"]) == (preset == "natural")


def test_augment_decides_and_none_leaves_pictures_as_they_are():
    assert make_plan(facts(is_gray=False), augment="top").settings["QUARTER_TURNS"]
    plan = make_plan(facts(), augment="none")
    assert plan.settings["HORIZONTAL_FLIP"] == 0
    assert plan.settings["IMAGE_RESIZE_MODE"] == "crop", "the kind of pictures is still that of the data"


@pytest.mark.parametrize("names", [["left_hand", "right_hand"], ["Hand (left)"], ["3", "8"], ["A", "b"]])
def test_classes_that_a_mirror_would_change_are_not_flipped(names):
    plan = make_plan(facts(class_names=names))
    assert plan.settings["HORIZONTAL_FLIP"] == plan.settings["VERTICAL_FLIP"] == 0
    assert "not their mirror images" in choice(plan, "augmentation").why
    assert make_plan(facts(class_names=["leftover", "bright"])).settings["HORIZONTAL_FLIP"] == 0.5


def test_16_bit_pictures_are_scaled_by_percentiles():
    assert make_plan(facts(bits=16)).settings["PIXEL_RANGE"] == "percentiles"
    assert "PIXEL_RANGE" not in make_plan(facts()).settings


def test_the_network_has_the_channels_of_the_pictures():
    assert make_plan(facts(channels=5)).settings["IMAGE_CHANNEL_COUNT"] == 5


############################################################
#  Length
############################################################


def test_the_length_follows_the_number_of_pictures():
    assert make_plan(facts(pictures=10)).batches == 12_000 / 4
    assert make_plan(facts(pictures=100)).batches == 24_000 / 4
    assert make_plan(facts(pictures=5000, each=1)).batches == 48_000 / 4
    trained = make_plan(facts(pictures=10), start={"RPN_ANCHOR_SCALES": (8, 16, 32, 64, 128)}, is_detector=True)
    assert trained.batches < 12_000 / 4
    assert trained.settings["LEARNING_RATE"] < make_plan(facts()).settings["LEARNING_RATE"]
    assert trained.heads_first
    assert trained.settings["FROZEN_STAGES"] == 2


def test_minutes_are_the_time_of_steps_evaluations_and_report():
    plan, pace = make_plan(facts()), Pace(step=0.5, image=1.0, images=12, all_images=12)
    fit_to_minutes(plan, 20, pace)
    assert sum(seconds_of(plan, pace)) / 60 == pytest.approx(20, rel=0.02)
    assert plan.settings["STEPS_PER_EPOCH"] == head_batches(plan)
    assert plan.epochs == 8
    with pytest.raises(ValueError, match=r"--minutes 0\.5 leaves no time to learn; at least 3 minutes"):
        fit_to_minutes(plan, 0.5, pace)


def test_the_best_epoch_and_the_last_take_time_where_epochs_see_a_part_of_val():
    """By hand: each evaluation takes 12 s, and all pictures of val are detected three times at the end."""
    plan = make_plan(facts())
    of_part, of_all = (seconds_of(plan, Pace(0.5, 1.0, 12, count))[1] for count in (100, 12))
    assert of_part == 9 * 12 + 30 + 3 * 100
    assert of_all == 9 * 12 + 30 + 12


def test_a_short_training_evaluates_less_and_says_that_it_is_short():
    plan, pace = make_plan(facts()), Pace(step=0.5, image=2.0, images=12, all_images=12)
    fit_to_minutes(plan, 5, pace)
    evaluation = seconds_of(plan, pace)[1]
    assert plan.epochs < 8
    assert evaluation <= 100 or plan.epochs == 1
    assert sum(seconds_of(plan, pace)) == pytest.approx(300, rel=0.05)
    warn_if_short(plan, pace, has_weights=False)
    line = choice(plan, "careful")
    assert line.value == "this is too short"
    minutes = int(line.why.split("take ")[1].split()[0])
    fit_to_minutes(plan, minutes, pace)
    longer = Plan(plan.settings, [], plan.batches, False, plan.epochs)
    warn_if_short(longer, pace, has_weights=False)
    assert longer.choices == [], "the minutes that it advises are enough"
    enough = make_plan(facts())
    warn_if_short(enough, pace, has_weights=False)
    assert all(line.what != "careful" for line in enough.choices)


def test_without_a_maskiou_head_no_steps_are_planned_for_it():
    plan = make_plan(facts())
    assert choice(plan, "length").value == "3,000 steps, then 375 of the MaskIoU head"
    plan.settings["USE_MASKIOU_HEAD"] = False
    assert head_batches(plan) == 0
    assert length_choice(plan, 32, False).value == "3,000 steps"


def test_a_plan_is_the_same_after_json():
    plan = make_plan(facts())
    set_length(plan, 801)
    stored = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    config = Config(NUM_CLASSES=2, **stored.settings)
    assert config.to_dict() == Config(NUM_CLASSES=2, **plan.settings).to_dict()
    assert (stored.choices, stored.batches, stored.epochs) == (plan.choices, 800, plan.epochs)
    assert all(f"{line.what:<12}  {line.value}" in plan.text() and line.why in plan.text() for line in plan.choices)


def test_without_objects_there_is_no_plan():
    with pytest.raises(ValueError, match="no object to learn from"):
        make_plan(facts(each=0))

"""Detectron2's Mask R-CNN: what its rules, files and norms become, against its own outputs and against a reference."""

import functools
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import detectron2_reference as reference
import golden_weights
import numpy as np
import pytest
import skimage.data
import torch
from conftest import GOLDEN
from detectron2_reference import Source
from helpers import TinyConfig, make_targets, random_image, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import model as modellib
import utils
from config import DIALECTS, Config
from model import BACKGROUND, Images, MaskRCNN
from weights.convert import convert
from weights.load import load_checkpoint, load_model, load_with_report
from weights.source_config import SourceConfig

SHARED = Path(__file__).parents[2] / "shared" / "golden" / "detectron2"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/golden/detectron2 is not here")
ZOO = ["R_50_FPN_3x", "R_50_FPN_100ep_LSJ"]  # with all stages
SHAPES = [*ZOO, "R_101_FPN_3x", "R_101_FPN_400ep_LSJ", "X_101_32x8d_FPN_3x"]
D2 = Config(DIALECT="detectron2")
# What detection tests compare: as Detectron2 configures such networks, but narrow.
SOURCES = {
    "caffe": Source(),
    "lsj": Source(norm="SyncBN", norm_elsewhere="SyncBN", rpn_convs=2, box_convs=4, box_channels=24, box_fcs=1),
    "gn": Source(
        stem=32,
        group_width=32,
        norm="GN",
        norm_elsewhere="GN",
        stride_in_1x1=False,
        pyramid=32,
        box_convs=2,
        box_channels=32,
        box_fcs=1,
        mask_channels=32,
    ),
    "agnostic": Source(norm="old", agnostic=True, classes=7, pooler=5, fc_width=40),
    "resnext": Source(
        depth=101,
        groups=32,
        group_width=1,
        stride_in_1x1=False,
        std=(57.375, 57.12, 58.395),
    ),
    "rgb": Source(
        input_format="RGB",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        stride_in_1x1=False,
        sizes=(12, 24, 48, 96, 192),
        ratios=(0.4, 1.0, 1.7, 3.0),
        classes=1,
    ),
    "basic": Source(depth=18, ratios=(1.0, 0.5, 2.0), box_fcs=3, mask_convs=2, mask_channels=24, classes=2),
}


def state_of(source: Source, with_constants: bool = True) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under Detectron2's names."""
    divides = source.std[0] != 1
    names = reference.keys(source).items()
    state = {name: torch.from_numpy(golden_weights.fill_detectron2(name, shape, divides)) for name, shape in names}
    return state | (reference.constants(source) if with_constants else {})


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": state, "optimizer": {}, "scheduler": {}, "iteration": 89999}, path)
    return path


def settings_of(source: Source) -> dict:
    """What no weight of a source says."""
    return {
        "IMAGE_MIN_DIM": source.min_size,
        "IMAGE_MAX_DIM": source.max_size,
        "DETECTION_MIN_CONFIDENCE": source.threshold,
    }


def model_of(source: Source, path: Path, with_constants: bool = True, **settings) -> MaskRCNN:
    return load_model(save(path, state_of(source, with_constants)), "cpu", **settings_of(source), **settings)


def is_close(actual, expected, tolerance: float) -> None:
    actual, expected = torch.as_tensor(actual).float(), torch.as_tensor(expected).float()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def swapped(xyxy) -> torch.Tensor:
    """x1, y1, x2, y2 as y1, x1, y2, x2, or the other way round."""
    return torch.as_tensor(xyxy)[:, [1, 0, 3, 2]]


def agreeing(result: dict, boxes, class_ids, scores, masks, pixels=1.0, score=3e-3) -> int:
    """How many expected detections the result has: class, box, score, and masks of IoU 0.98."""
    free, good = set(range(len(result["rois"]))), 0
    for i, box in enumerate(boxes):
        for j in sorted(free):
            is_same = result["class_ids"][j] == class_ids[i] and abs(result["scores"][j] - scores[i]) <= score
            if not is_same or np.abs(result["rois"][j] - box).max() > pixels:
                continue
            one, other = result["masks"][..., j], masks[..., i]
            if (one & other).sum() >= 0.98 * (one | other).sum():
                free.remove(j)
                good += 1
                break
    return good


############################################################
#  Detectron2's own outputs
############################################################


@functools.cache
def coffee() -> np.ndarray:
    return np.asarray(skimage.data.coffee())


def zoo_keys(name: str) -> dict:
    return json.loads((SHARED / f"keys_mask_rcnn_{name}.json").read_text())


def write_zoo(name: str, path: Path) -> Path:
    """A file of the model zoo with deterministic weights, as the trainer would have saved it."""
    described = zoo_keys(name)
    constants = {key: torch.tensor(value) for key, value in described["constants"].items()}
    state = {
        key: torch.from_numpy(golden_weights.fill_detectron2(key, shape, described["std"]))
        for key, shape in described["keys"]
        if key not in constants
    }
    return save(path, state | constants)


class Run:
    """A model of the zoo on coffee, with its intermediates."""

    def __init__(self, name: str, model: MaskRCNN) -> None:
        self.name, self.model, self.config, self.out = name, model, model.config, {}
        molded, _, windows = model.mold_inputs([coffee()])
        pixels = torch.from_numpy(molded).permute(0, 3, 1, 2)
        with torch.no_grad():
            model(Images(pixels, torch.from_numpy(windows).float()), out=self.out)
        self.pixels, self.image_shape = pixels, pixels.shape[2:]
        self.pyramid = [self.out[f"fpn/p{level}"] for level in range(2, 7)]


@pytest.fixture(scope="module", params=ZOO)
def run(request, tmp_path_factory) -> Run:
    """Each model of ZOO in turn, for all tests that take it."""
    path = write_zoo(request.param, tmp_path_factory.mktemp("zoo") / f"{request.param}.pth")
    model = load_model(path, "cpu")
    path.unlink()
    return Run(request.param, model)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(SHARED / f"golden_mask_rcnn_{name}_coffee.npz") as file:
        return {key: file[key] for key in file.files}


@needs_shared
def test_input_features_and_proposals_are_detectron2s(run):
    expected = golden(run.name)
    assert list(run.pixels.shape) == expected["input_shape"].tolist()
    is_close(run.pixels[0].flip(0)[:, 100:108, 100:108], expected["input_patch"], 1e-5)
    for level in range(2, 7):
        actual = run.out[f"fpn/p{level}"]
        y, x = actual.shape[2] // 2, actual.shape[3] // 2
        stats = [actual.double().mean(), actual.double().std(correction=0), actual.min(), actual.max()]
        scale = 2e-5 * float(np.abs(expected[f"fpn/p{level}_stat"][2:]).max())
        is_close(actual[0, :16, y : y + 4, x : x + 4], expected[f"fpn/p{level}_patch"], scale)
        is_close(torch.tensor([float(stat) for stat in stats]), expected[f"fpn/p{level}_stat"], scale)
    proposals = swapped(expected["proposals"])
    distance = (run.out["proposals"][None] - proposals[:, None]).abs().amax(dim=2)
    assert (distance.amin(dim=1) <= 0.1).sum() >= 990
    nearest = run.out["proposal_scores"][distance.argmin(dim=1)]
    is_close(nearest[distance.amin(dim=1) <= 0.1], expected["proposal_logits"][distance.amin(dim=1) <= 0.1], 2e-4)


@needs_shared
def test_heads_are_detectron2s_on_its_own_boxes(run):
    expected = golden(run.name)
    proposals = swapped(expected["proposals"])
    image = torch.zeros(len(proposals), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, proposals, image, 7, run.image_shape, run.config)
        logits, deltas = run.model.box_head(features)
    is_close(features[:64, :8], expected["box/pooled_first8"], 1e-4)
    is_close(logits[:, [*range(1, 81), 0]], expected["box/class_logits"], 1e-3)
    is_close(deltas[:64, 1:][..., [1, 0, 3, 2]].flatten(1), expected["box/deltas_first"], 1e-3)
    boxes, classes = swapped(expected["det/boxes_input"]), torch.from_numpy(expected["det/classes"])
    image = torch.zeros(len(boxes), dtype=torch.long)
    with torch.no_grad():
        features = modellib.pool_rois(run.pyramid, boxes, image, 14, run.image_shape, run.config)
        is_close(run.model.mask_head(features, classes + 1), expected["mask/logits"], 1e-3)


@needs_shared
def test_results_are_detectron2s(run):
    (result,) = run.model.detect([coffee()])
    expected = golden(run.name)
    masks = utils.rle_to_mask(json.loads(str(expected["final/rle.json"])))
    boxes, class_ids = swapped(expected["final/boxes_xyxy"]).numpy(), expected["final/classes"] + 1
    good = agreeing(result, boxes, class_ids, expected["final/scores"], masks)
    print(f"detectron2 {run.name}: {good} of {len(boxes)}")
    assert good >= 97
    assert len(result["rois"]) <= 100


@needs_shared
@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_of_the_zoos_files_is_used(name, tmp_path, monkeypatch):
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    described = zoo_keys(name)
    fills = {"num_batches_tracked": torch.tensor(0), "running_var": torch.tensor(1.0)}
    state = {key: fills.get(key.rpartition(".")[2], torch.tensor(0.0)).expand(s) for key, s in described["keys"]}
    state |= {key: torch.tensor(value) for key, value in described["constants"].items()}
    checkpoint, report = load_with_report(save(tmp_path / "x.pth", state))
    config = checkpoint["config"]
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert report.read + len(described["constants"]) + len(counters) == len(state)
    assert {*report.dropped} == {*counters, "optimizer", "scheduler", "iteration"}
    settings = "MEAN_PIXEL, STD_PIXEL, RPN_ANCHOR_SCALES, RPN_ANCHOR_RATIOS"
    assert f"7 constants of pixels and anchors into {settings}" in report.folded
    is_resnext, is_new = name.startswith("X"), name.endswith("LSJ")
    assert config["BACKBONE"] == ("resnext101_32x8d" if is_resnext else f"resnet{name.split('_')[1]}")
    assert config["BACKBONE_STYLE"] == ("pytorch" if is_resnext else "caffe")
    assert config["MEAN_PIXEL"] == [123.675, 116.28, 103.53]
    assert config["STD_PIXEL"] == ([58.395, 57.12, 57.375] if is_resnext else [1, 1, 1])
    assert (config["RPN_ANCHOR_SCALES"], config["RPN_ANCHOR_RATIOS"]) == ([32, 64, 128, 256, 512], [0.5, 1, 2])
    assert (config["BOX_HEAD_CONVS"], config["BOX_HEAD_FC_LAYERS"]) == ((4, 1) if is_new else (0, 2))
    assert (config["RPN_CONVS"], config["NUM_CLASSES"], config["NAME"]) == (2 if is_new else 1, 81, "coco")


############################################################
#  The whole network against the reference
############################################################


def photograph(height: int = 150, width: int = 110) -> np.ndarray:
    """A part of coffee, shrunk to these sides."""
    return utils.resize_pixels(np.ascontiguousarray(coffee()[40:360, 100:460]), (height, width), "pillow")


@pytest.mark.parametrize("case", SOURCES)
def test_detections_are_the_references(case, tmp_path):
    """Features closely, and nearly all detections: where two scores tie, rounding decides."""
    source, image = SOURCES[case], photograph(150, 110) if case != "gn" else photograph(64, 96)
    model = model_of(source, tmp_path / "x.pth")
    expected = reference.detect(state_of(source), source, image)
    molded, _, windows = model.mold_inputs([image])
    out: dict = {}
    with torch.no_grad():
        pixels = torch.from_numpy(molded).permute(0, 3, 1, 2)
        model(Images(pixels, torch.from_numpy(windows).float()), out=out)
    for level, features in enumerate(expected["pyramid"], start=2):
        is_close(out[f"fpn/p{level}"], features, 2e-5 * float(np.abs(features).max()))
    distance = (out["proposals"][None] - swapped(expected["proposals"])[:, None]).abs().amax(dim=2).amin(dim=1)
    assert (distance <= 0.01).float().mean() >= 0.99
    (result,) = model.detect([image])
    boxes, masks = swapped(expected["boxes"]).numpy(), expected["masks"].transpose(1, 2, 0)
    count = len(boxes)
    assert count >= 20, "enough to compare"
    good = agreeing(result, boxes, expected["classes"] + 1, expected["scores"], masks, 0.05, 1e-4)
    print(f"{case}: {good} of {count}, and {len(result['rois'])} found")
    assert good >= 0.97 * count
    assert abs(len(result["rois"]) - count) <= 0.03 * count


def convert_with_config(monkeypatch, path, stated=None, input_format=None, **arguments):
    """convert() of a file beside which a configuration lies that says these settings."""
    config = SourceConfig(path.with_name("config.yaml"), stated or {}, [], input_format, [])
    monkeypatch.setattr("weights.convert.find_source_config", lambda *_: (config, []))
    return convert(path, modellib.network_shapes, **arguments)


def test_a_file_without_constants_is_the_same_with_its_settings(tmp_path, monkeypatch):
    source = SOURCES["rgb"]
    settings = {
        "BACKBONE_STYLE": "pytorch",
        "MEAN_PIXEL": source.mean,
        "STD_PIXEL": source.std,
        "RPN_ANCHOR_SCALES": source.sizes,
        "RPN_ANCHOR_RATIOS": tuple(1 / ratio for ratio in reversed(source.ratios)),
    }
    full = load_checkpoint(save(tmp_path / "full.pth", state_of(source)))
    path = save(tmp_path / "bare.pth", state_of(source, with_constants=False))
    bare, report = convert_with_config(monkeypatch, path, settings, "RGB")
    names = [name for name in full["config"] if name not in ("NAME", "RPN_ANCHOR_RATIOS")]
    assert [bare["config"][name] for name in names] == [full["config"][name] for name in names]
    np.testing.assert_allclose(bare["config"]["RPN_ANCHOR_RATIOS"], full["config"]["RPN_ANCHOR_RATIOS"], rtol=1e-6)
    assert all(torch.equal(tensor, full["model"][name]) for name, tensor in bare["model"].items())
    assert [line.split()[0] for line in report.assumed] == ["no", "images"], "nothing but classes and sizes"


############################################################
#  Rules of inference
############################################################


def test_the_dialect_is_mmdets_but_for_what_the_rules_say():
    ours, mmdet = DIALECTS["detectron2"], DIALECTS["mmdet"]
    differing = {name for name in vars(ours) if getattr(ours, name) != getattr(mmdet, name)}
    inference = {"size_rounding", "resampling", "proposal_order", "level_rule", "delta_limits"}
    inference |= {"drops_infinite", "clips_result"}
    training = {"rpn_counts_missing", "rpn_counts_quota", "low_quality_steals", "low_quality_rois", "gt_rois_first"}
    assert differing == inference | training | {"trains_affine", "defaults"}
    assert (D2.MEAN_PIXEL, D2.STD_PIXEL, D2.BACKBONE_STYLE) == ((123.675, 116.28, 103.53), (1, 1, 1), "caffe")
    assert (D2.PRE_NMS_LIMIT, D2.PRE_NMS_LIMIT_TRAINING, D2.POST_NMS_ROIS_INFERENCE) == (1000, 2000, 1000)
    assert (D2.POST_NMS_ROIS_TRAINING, D2.TRAIN_ROIS_PER_IMAGE, D2.ROI_POSITIVE_RATIO) == (1000, 512, 0.25)
    assert (D2.DETECTION_MIN_CONFIDENCE, D2.DETECTION_NMS_THRESHOLD, D2.DETECTION_MAX_INSTANCES) == (0.05, 0.5, 100)


def plan_of(height: int, width: int, **settings) -> utils.ResizePlan:
    return utils.plan_image((height, width), Config(DIALECT="detectron2", **settings))


@given(st.integers(2, 4000), st.integers(2, 4000), st.sampled_from([(800, 1333), (640, 1333), (1024, 2048), (97, 131)]))
def test_sizes_are_the_references(height, width, limits):
    plan = plan_of(height, width, IMAGE_MIN_DIM=limits[0], IMAGE_MAX_DIM=limits[1])
    expected = reference.resized_shape(height, width, *limits)
    assert plan.size == tuple(max(1, side) for side in expected)
    assert plan.padded_shape == tuple(-(-side // 32) * 32 for side in plan.size)
    assert plan.window == (0, 0, *plan.size)


def test_sizes_by_hand():
    assert plan_of(400, 600).size == (800, 1200)
    assert plan_of(427, 640).size == (800, 1199), "1199.06"
    assert plan_of(1000, 500).size == (1333, 667), "666.5 is rounded up"
    assert plan_of(3, 4000).size == (1, 1333), "0.99975"
    assert plan_of(1, 4000).size == (1, 1333), "never 0, where detectron2 fails"
    assert plan_of(800, 1333).padded_shape == (800, 1344)


@pytest.mark.parametrize(("shape", "expected"), [((240, 992), (322, 1333)), ((1240, 60), (1333, 64))])
def test_two_multiplications_end_below_a_half_where_one_does_not(shape, expected):
    """1333 / 992 * 240 is 322.5; 800 times what is left of 1333 after the first multiplication is a hair less."""
    assert plan_of(*shape).size == expected
    assert utils.plan_image(shape, Config()).size == tuple(side + (side < 1333) for side in expected)


def test_images_are_resized_as_bytes_in_each_channel():
    image = random_image(50, 70)
    resized = utils.resize_pixels(image, (37, 90), D2.dialect.resampling)
    settings = Source(min_size=37, max_size=90)
    pixels, _ = reference.network_input(image[:, :70], replace(settings, mean=(0.0, 0.0, 0.0)))
    assert resized.dtype == np.uint8
    again = utils.resize_pixels(image, reference.resized_shape(50, 70, 37, 90), "pillow")
    assert np.array_equal(pixels[0, :, : again.shape[0], : again.shape[1]].flip(0).permute(1, 2, 0), again)


def test_padding_is_zero_after_the_mean():
    plan = plan_of(40, 50, IMAGE_MIN_DIM=40, IMAGE_MAX_DIM=50)
    molded = modellib.mold_padded(np.zeros((40, 50, 3), np.uint8), plan, D2)
    assert molded.shape == (64, 64, 3)
    assert (molded[40:] == 0).all()
    assert (molded[:, 50:] == 0).all()
    is_close(molded[0, 0], [-123.675, -116.28, -103.53], 1e-4)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(0, 0), (111.99997, 0), (112, 1), (223.99995, 1), (224, 2), (447.9998, 2), (448, 3), (1e5, 3)],
)
def test_levels_at_their_borders(side, expected):
    """1e-6 inside of the logarithm, as mmdetection has it, would lift 223.99995 to the next level; 1e-8 does not."""
    box = torch.tensor([[0.0, 0.0, side, side]])
    assert modellib.roi_levels(box, (800, 1216), D2).tolist() == [expected]
    assert reference.level_of(box[0].numpy()) == expected
    if side == 223.99995:
        assert modellib.roi_levels(box, (800, 1216), Config(DIALECT="mmdet")).tolist() == [2]


@given(st.lists(st.tuples(st.floats(0.1, 1500), st.floats(0.1, 1500)), min_size=1, max_size=20))
def test_levels_are_the_references(sides):
    boxes = torch.tensor([[0, 0, height, width] for height, width in sides], dtype=torch.float32)
    expected = [reference.level_of(box) for box in swapped(boxes).numpy()]
    assert modellib.roi_levels(boxes, (800, 1216), D2).tolist() == expected


def test_sizes_are_limited_above_and_not_below():
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    moved = modellib.decode_boxes(boxes, torch.tensor([[0.0, 0, 9, -9]]), (1, 1, 1, 1), D2)
    sides = moved[0, 2:] - moved[0, :2]
    is_close(sides, [625, 10 * math.exp(-9)], 1e-3)
    assert sides[1] < 0.01, "mmdetection would stop at 0.16"


def proposals_of(logits, deltas, anchors, windows=((0, 0, 64, 64),)) -> torch.Tensor:
    """Proposals of one level. logits: [A]. deltas: [A, 4]. anchors: [A, 4]."""
    arguments = [torch.tensor(logits)[None]], [torch.tensor(deltas)[None]], [torch.tensor(anchors)]
    return modellib.propose(*arguments, torch.tensor(windows).float(), D2, 1000, 1000)[0]


def test_proposals_are_ranked_by_logits_that_probabilities_cannot_tell():
    anchors = [[0.0, 0, 8, 8], [0, 0, 8, 9], [40, 40, 48, 48]]
    assert proposals_of([30.0, 31.0, 29.0], [[0.0] * 4] * 3, anchors).tolist() == [anchors[1], anchors[2]]


def test_proposals_without_finite_numbers_or_sides_are_dropped():
    anchors = [[8.0 * i, 0, 8 * i + 8, 8] for i in range(6)]
    logits = [math.inf, math.nan, 1.0, 2.0, 3.0, -math.inf]
    deltas = [[0.0] * 4 for _ in anchors]
    deltas[2] = [math.inf, 0, 0, 0]
    deltas[3] = [0.0, 9.0, 0, 0]  # beyond the right edge: clipped to nothing
    assert proposals_of(logits, deltas, anchors).tolist() == [anchors[4]]


def detections_of(class_logits, box_deltas, rois):
    """Detections of one image of 64 x 64."""
    rois = torch.tensor(rois, dtype=torch.float32)
    config = TinyConfig(DIALECT="detectron2", DETECTION_MIN_CONFIDENCE=0.05)
    windows = torch.tensor([[0.0, 0, 64, 64]])
    image = torch.zeros(len(rois), dtype=torch.long)
    return modellib.detect_boxes(class_logits, box_deltas, rois, image, windows, config)


def test_rois_without_finite_numbers_give_no_detection():
    logits = torch.zeros(4, 4)
    logits[0, 1] = math.inf
    deltas = torch.zeros(4, 4, 4)
    deltas[1, 3, 0] = math.nan  # of one class: the RoI gives nothing for the others either
    deltas[2, 3, 1] = math.inf
    found = detections_of(logits, deltas, [[8 * i, 8 * i, 8 * i + 8, 8 * i + 8] for i in range(4)])
    assert found.boxes.unique(dim=0).tolist() == [[24, 24, 32, 32]]
    assert sorted(found.class_ids.tolist()) == [1, 2, 3]


def test_the_threshold_is_above_and_every_class_counts():
    probs = torch.tensor([[0.35, 0.05, 0.3, 0.3]])
    logits = probs.log()
    exact = logits.softmax(dim=1)[0, 1]
    config = TinyConfig(DIALECT="detectron2", DETECTION_MIN_CONFIDENCE=float(exact))
    roi, class_ids, _ = modellib._candidates(logits.softmax(dim=1), config)
    assert (roi.tolist(), class_ids.tolist()) == ([0, 0], [2, 3]), "equal is not above"


def test_boxes_in_the_image_are_clipped_and_empty_ones_dropped():
    """The window of 10 x 20 is an image of 5 x 7 pixels."""
    boxes = torch.tensor([[0.0, 0, 10, 20], [2, 4, 6, 10], [3, 5, 3, 9], [10, 0, 10.4, 5], [-1, -2, 4, 5]])
    found, keep = modellib.unmold_detections(boxes, (0, 0, 10, 20), (5, 7), D2)
    is_close(found[:2], [[0, 0, 5, 7], [1, 1.4, 3, 3.5]], 1e-6)
    assert found[4].tolist() == pytest.approx([0, 0, 2, 1.75])
    assert keep.tolist() == [True, True, False, False, True]
    found, keep = modellib.unmold_detections(boxes, (0, 0, 10, 20), (5, 7), Config())
    assert keep.all(), "mmdetection keeps them"
    assert found[4].tolist() == pytest.approx([-0.5, -0.7, 2, 1.75])
    anchors = modellib.unmold_boxes(boxes, (0, 0, 10, 20), (5, 7), D2)
    assert torch.equal(anchors, found), "what is no detection is not clipped"


def test_empty_boxes_count_among_the_best_before_they_are_dropped():
    """An RoI that the deltas shrink to nothing takes its place among DETECTION_MAX_INSTANCES, and is no result."""
    logits = torch.zeros(2, 4)
    logits[0, 1], logits[1, 1] = 9.0, 5.0
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 1] = torch.tensor([0.0, 500, 0, 0])  # far to the right: no width is left
    found = detections_of(logits, deltas, [[8, 8, 16, 16], [32, 32, 40, 40]])
    assert found.boxes[:2].tolist() == [[8, 64, 16, 64], [32, 32, 40, 40]]
    model = tiny_model(DIALECT="detectron2", USE_MASKIOU_HEAD=False)
    count = len(found.boxes)
    with_masks = replace(found, mask_logits=torch.ones(count, 28, 28))
    result = model.to_result(with_masks, (0, 0, 64, 64), (64, 64))
    assert len(result["rois"]) == count - 1
    assert result["masks"].shape == (64, 64, count - 1)


############################################################
#  Rules of training
############################################################


def test_the_rpns_losses_are_divided_by_its_quota():
    matched = torch.tensor([[0, *[BACKGROUND] * 9], [BACKGROUND] * 10])
    sample = modellib.sample_anchors(matched, torch.arange(2), D2)
    assert len(sample.anchors) == 20
    assert float(sample.count) == 512, "256 an image, though there are 10"


def test_rois_of_the_ground_truth_come_last_and_nothing_is_stolen():
    boxes = np.array([[0, 0, 8, 7], [0, 0, 8, 5]], np.float32)
    masks = [np.ones((8, 8), np.uint8)] * 2
    targets = make_targets([(boxes, np.ones(2, int), masks, np.zeros((0, 4), np.float32), 0)])
    rois = torch.tensor([[0.0, 0, 8, 8]])
    sample = modellib.sample_rois(rois, torch.zeros(1, dtype=torch.long), targets, D2)
    assert sample.rois.tolist() == [[0, 0, 8, 8], *boxes.tolist()]
    assert sample.matched.tolist() == [0, 0, 1], "the proposal belongs to the object that it overlaps most"


def test_losses_of_boxes_are_their_absolute_errors():
    assert (D2.dialect.rpn_beta, D2.dialect.box_beta) == (0, 0)
    boxes = np.array([[0, 0, 8, 8]], np.float32)
    targets = make_targets([(boxes, np.array([2]), [np.ones((8, 8), np.uint8)], np.zeros((0, 4), np.float32), 0)])
    sample = modellib.RoiSample(torch.tensor(boxes).repeat(2, 1), torch.zeros(2).long(), torch.tensor([0, BACKGROUND]))
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 2] = torch.tensor([0.01, 0, -0.03, 0])
    losses = modellib.average_losses(
        [modellib.box_losses(torch.zeros(2, 4), deltas, sample, targets, TinyConfig(DIALECT="detectron2"))], D2
    )
    assert losses["mrcnn_bbox_loss"].item() == pytest.approx(0.04 / 2), "divided by both RoIs"
    assert losses["mrcnn_class_loss"].item() == pytest.approx(math.log(4))


def test_anchors_beyond_the_image_learn_and_a_poor_best_one_is_positive():
    boxes = np.array([[0, 0, 9, 9]], np.float32)
    targets = make_targets([(boxes, np.array([1]), [np.ones((9, 9), np.uint8)], np.zeros((0, 4), np.float32), 0)])
    anchors = torch.tensor([[-16.0, -16, 16, 16], [20, 20, 52, 52]])
    matched = modellib.match_anchors(anchors, torch.tensor([[0.0, 0, 64, 64]]), targets, D2)
    assert matched.tolist() == [[0, BACKGROUND]], "an IoU of 0.08 is the object's best"


############################################################
#  Files
############################################################


def converted(source: Source, path: Path, state=None, **settings):
    return load_with_report(save(path, state_of(source) if state is None else state), **settings)


def test_norms_fold_in_pyramid_and_heads(tmp_path):
    source = SOURCES["lsj"]
    checkpoint, report = converted(source, tmp_path / "x.pth")
    assert not any(
        name.startswith(("fpn", "box_head", "mask_head")) and ".norm." in name for name in checkpoint["model"]
    )
    assert "16 batch norms into the convolutions and fully connected layers before them" in report.folded
    assert sum(name.endswith("num_batches_tracked") for name in report.dropped) == 69
    state = state_of(source)
    name = "roi_heads.mask_head.mask_fcn2"
    scale = state[f"{name}.norm.weight"] / (state[f"{name}.norm.running_var"] + 1e-5).sqrt()
    is_close(checkpoint["model"]["mask_head.convs.1.weight"], state[f"{name}.weight"] * scale.view(-1, 1, 1, 1), 1e-6)
    config = checkpoint["config"]
    assert (config["BOX_HEAD_CHANNELS"], config["BOX_HEAD_CONVS"], config["BACKBONE_WIDTH"]) == (24, 4, 0.125)


def test_group_norms_stay_norms(tmp_path):
    checkpoint, report = converted(SOURCES["gn"], tmp_path / "x.pth")
    config = checkpoint["config"]
    names = ("BACKBONE_NORM", "FPN_NORM", "BOX_HEAD_NORM", "MASK_HEAD_NORM")
    assert [config[name] for name in names] == ["group"] * 4
    assert config["BACKBONE_STYLE"] == "pytorch"
    assert any(line.startswith("group norms") for line in report.assumed)
    assert any(line.startswith("pytorch style, as detectron2's models with group norm") for line in report.assumed)
    model = MaskRCNN.from_checkpoint(checkpoint, device="cpu")
    norms = [module for module in model.modules() if isinstance(module, modellib.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(32, 1e-5)}
    assert len(norms) == 53 + 8 + 2 + 4


@pytest.mark.parametrize("part", ["fpn_", "box_head.", "mask_head."])
def test_each_part_may_have_a_norm_of_its_own(part, tmp_path):
    """Group norm in one place, batch norm in the others."""
    source = replace(SOURCES["gn"], norm="BN", norm_elsewhere="BN")
    state = {
        name: tensor
        for name, tensor in state_of(source).items()
        if part not in name or ("running" not in name and "num_batches" not in name)
    }
    config = converted(source, tmp_path / "x.pth", state)[0]["config"]
    expected = {"fpn_": "FPN_NORM", "box_head.": "BOX_HEAD_NORM", "mask_head.": "MASK_HEAD_NORM"}
    assert config["BACKBONE_NORM"] == "batch"
    assert {name: config[name] for name in expected.values() if config[name]} == {expected[part]: "group"}


def test_frozen_norms_without_statistics_have_mean_0_and_variance_1(tmp_path):
    source = SOURCES["agnostic"]
    checkpoint, report = converted(source, tmp_path / "x.pth")
    assert checkpoint["config"]["BACKBONE_NORM"] == "batch"
    mean, variance = (checkpoint["model"][f"backbone.layer3.5.conv2.norm.running_{leaf}"] for leaf in ("mean", "var"))
    assert mean.unique().tolist() == [0]
    assert variance.unique().tolist() == [np.float32(1 + 1e-5)], "eps counts"
    assert any(line.startswith("mean 0 and variance 1 of the backbone's norms") for line in report.assumed)
    assert report.read == len(reference.keys(source))
    source = replace(SOURCES["gn"], norm_elsewhere="")
    grouped, _ = converted(source, tmp_path / "x.pth", BACKBONE_NORM="group")
    assert "backbone.stem.norm.running_var" not in grouped["model"], "somebody said that they are group norms"
    said = load_with_report(tmp_path / "x.pth", BACKBONE_NORM="batch")[1].assumed
    assert not any("norms" in line for line in said), "nothing is guessed then"


def test_a_lost_statistic_is_missing_and_not_made_up(tmp_path):
    state = state_of(SOURCES["caffe"])
    del state["backbone.bottom_up.res3.1.conv2.norm.running_var"]
    with pytest.raises(ValueError, match=r"missing 1 \(our names\): backbone\.layer2\.1\.conv2\.norm\.running_var"):
        converted(SOURCES["caffe"], tmp_path / "x.pth", state)


def test_agnostic_rows_are_repeated_for_each_class(tmp_path):
    source = SOURCES["agnostic"]
    checkpoint, report = converted(source, tmp_path / "x.pth")
    assert checkpoint["config"]["NUM_CLASSES"] == 8
    state, model = state_of(source), checkpoint["model"]
    rows = state["roi_heads.box_predictor.bbox_pred.weight"][[1, 0, 3, 2]]
    assert torch.equal(model["box_head.box_deltas.weight"].view(8, 4, -1)[1:], rows.expand(7, 4, -1))
    assert torch.equal(model["mask_head.mask_logits.bias"][1:], state["roi_heads.mask_head.predictor.bias"].expand(7))
    assert model["mask_head.mask_logits.bias"][0] == 0, "the background has no mask"
    assert sum("are repeated for each class" in line for line in report.folded) == 2


@pytest.mark.parametrize("depth", [18, 50, 101])
@pytest.mark.parametrize("stem", [8, 16, 64])
def test_widths_and_depths_follow_from_shapes(depth, stem, tmp_path, monkeypatch):
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    source = Source(depth=depth, stem=stem, group_width=stem, pyramid=24, fc_width=48, pooler=6, classes=3)
    one, counter = torch.tensor(1.0), torch.tensor(0)
    state = {
        name: (counter if name.endswith("tracked") else one).expand(shape)
        for name, shape in reference.keys(source).items()
    }
    config = converted(source, tmp_path / "x.pth", state)[0]["config"]
    assert (config["BACKBONE"], config["BACKBONE_WIDTH"]) == (f"resnet{depth}", stem / 64)
    names = ("TOP_DOWN_PYRAMID_SIZE", "FPN_CLASSIF_FC_LAYERS_SIZE", "POOL_SIZE", "NUM_CLASSES", "MASK_HEAD_CHANNELS")
    assert [config[name] for name in names] == [24, 48, 6, 4, 16]
    assert config["CLASS_NAMES"] == ["BG", "class 1", "class 2", "class 3"]


def test_the_name_of_one_class_alone(tmp_path):
    _, report = converted(replace(SOURCES["caffe"], classes=1), tmp_path / "x.pth")
    assert [line for line in report.assumed if "class" in line] == [
        'no names of classes: the only one is called "class 1"; --classes FILE, in Python class_names=[...], names them'
    ]


def test_what_is_assumed_is_printed(tmp_path, capsys):
    """For a file of the trainer: style, order, anchors, sizes, mean and deviation."""
    load_checkpoint(save(tmp_path / "x.pth", state_of(SOURCES["caffe"], with_constants=False)))
    printed = capsys.readouterr().out
    assert "x.pth is of Detectron2" in printed
    assert "caffe style, as detectron2's ResNets have; --style" in printed
    assert "pixels in BGR order, as detectron2 has without another INPUT.FORMAT" in printed
    for text in ("anchors of 32 64 128 256 512", "pixels minus 123.675 116.28 103.53", "divided by 1 1 1"):
        assert text in printed
    load_checkpoint(save(tmp_path / "x.pth", state_of(SOURCES["caffe"])))
    printed = capsys.readouterr().out
    assert "pixels in BGR order, as its pixel_mean has" in printed
    assert "anchors of" not in printed
    assert "pixels minus" not in printed
    load_checkpoint(tmp_path / "x.pth", style="pytorch")
    assert " style" not in capsys.readouterr().out.replace("--style", "")


@pytest.mark.parametrize(("case", "style"), [("caffe", "caffe"), ("resnext", "pytorch"), ("rgb", "pytorch")])
def test_styles_that_are_guessed_and_given(case, style, tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", state_of(SOURCES[case]))
    other = {"caffe": "pytorch", "pytorch": "caffe"}[style]
    styles = [
        load_checkpoint(path, **arguments)["config"]["BACKBONE_STYLE"]
        for arguments in ({}, {"style": other}, {"BACKBONE_STYLE": other})
    ]
    assert styles == [style, other, other]
    with pytest.raises(ValueError, match="style must be caffe or pytorch"):
        convert(path, modellib.network_shapes, "tensorflow")
    stated, _ = convert_with_config(monkeypatch, path, {"BACKBONE_STYLE": other})
    assert stated["config"]["BACKBONE_STYLE"] == other
    both, _ = convert_with_config(monkeypatch, path, {"BACKBONE_STYLE": other}, style=style)
    assert both["config"]["BACKBONE_STYLE"] == style, "the caller counts more"


def test_order_of_channels(tmp_path, monkeypatch):
    """By the mean, unless the configuration of the training says it; settings are RGB in any case."""
    bgr, rgb = (103.53, 116.28, 123.675), (123.675, 116.28, 103.53)
    stem = "backbone.bottom_up.stem.conv1.weight"
    for mean, input_format, turned in (
        (bgr, None, True),
        (rgb, None, False),
        ((1.0, 2.0, 3.0), None, True),
        ((1.0, 2.0, 3.0), "RGB", False),
        (rgb, "BGR", True),
        (bgr, "RGB", False),
    ):
        source = replace(SOURCES["caffe"], mean=mean, std=(1.0, 2.0, 4.0))
        path = save(tmp_path / "x.pth", state_of(source))
        checkpoint, _ = convert_with_config(monkeypatch, path, input_format=input_format)
        config, weight = checkpoint["config"], state_of(source)[stem]
        assert config["MEAN_PIXEL"] == list(mean[::-1] if turned else mean)
        assert config["STD_PIXEL"] == ([4, 2, 1] if turned else [1, 2, 4])
        assert torch.equal(checkpoint["model"]["backbone.stem.weight"], weight.flip(1) if turned else weight)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_not_turned(channels, tmp_path):
    """Nobody knows what BGR would be of them."""
    stem, mean = "backbone.bottom_up.stem.conv1.weight", torch.arange(channels) + 1.0
    weight = torch.rand(8, channels, 7, 7)
    state = state_of(SOURCES["caffe"]) | {stem: weight, "pixel_mean": mean, "pixel_std": mean + 1}
    checkpoint, report = converted(SOURCES["caffe"], tmp_path / "x.pth", state)
    assert checkpoint["config"]["MEAN_PIXEL"] == mean.tolist()
    assert checkpoint["config"]["STD_PIXEL"] == (mean + 1).tolist()
    assert torch.equal(checkpoint["model"]["backbone.stem.weight"], weight)
    assert not any("order" in line for line in report.assumed)


def test_settings_count_more_than_the_files_constants(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", state_of(SOURCES["caffe"]))
    sizes = (8, 16, 32, 64, 128)
    checkpoint, report = load_with_report(path, RPN_ANCHOR_SCALES=sizes)
    assert checkpoint["config"]["RPN_ANCHOR_SCALES"] == list(sizes)
    note = "RPN_ANCHOR_SCALES 8 16 32 64 128 as given, where the file's own constants say 16 32 64 128 256"
    assert note in report.assumed
    stated = {"RPN_ANCHOR_SCALES": (1, 2, 3, 4, 5), "DETECTION_MIN_CONFIDENCE": 0.3, "IMAGE_MIN_DIM": 600}
    settings = {"RPN_ANCHOR_SCALES": sizes}
    checkpoint, _ = convert_with_config(monkeypatch, path, stated, settings=settings)
    names = ("RPN_ANCHOR_SCALES", "DETECTION_MIN_CONFIDENCE", "IMAGE_MIN_DIM")
    assert [checkpoint["config"][name] for name in names] == [list(sizes), 0.3, 600]


def cells(level: int) -> str:
    return f"proposal_generator.anchor_generator.cell_anchors.{level}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({cells(4): None}, r"anchors for 4 feature maps, and this project has 5"),
        ({cells(1): torch.tensor([[-8.0, -8, 8, 8], [-16, -16, 16, 16]])}, r"anchors of several sizes on level 1"),
        ({cells(1): torch.tensor([[0.0, 0, 16, 16]])}, r"centres that are not those of the cells on level 1"),
        ({cells(2): torch.tensor([[-8.0, -8, 8, 8]])}, r"anchors of other ratios on some levels than on P2"),
        ({cells(0): torch.zeros(3, 4)}, r"anchors of level 0 must be \[A, \(x1, y1, x2, y2\)\]"),
        ({cells(0): torch.zeros(3, 5)}, r"anchors of level 0 must be"),
        ({cells(0): torch.full((3, 4), math.nan)}, r"values that are NaN or infinite"),
        ({"pixel_std": torch.zeros(3, 1, 1)}, r"pixel_std must have a number above 0 for each channel"),
        ({"pixel_mean": torch.zeros(2, 1, 1)}, r"MEAN_PIXEL must have 3 entries"),
        ({"pixel_mean": torch.zeros(3, dtype=torch.long)}, r"where weights are dense and floating"),
        ({"proposal_generator.rpn_head.mystery.weight": torch.zeros(1, 1)}, r"left over 1: proposal_generator"),
    ],
)
def test_constants_that_no_settings_describe(changes, message, tmp_path):
    state = state_of(SOURCES["caffe"]) | changes
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        converted(SOURCES["caffe"], tmp_path / "x.pth", state)
    assert str(error.value).startswith(str(tmp_path / "x.pth"))


def test_another_number_of_anchors_needs_their_ratios(tmp_path):
    source = replace(SOURCES["rgb"], ratios=(0.4, 1.0, 1.7, 3.0))
    with pytest.raises(ValueError, match="has 4 anchors in each cell, and RPN_ANCHOR_RATIOS is"):
        converted(source, tmp_path / "x.pth", state_of(source, with_constants=False))


def test_weights_load_into_a_model_of_the_same_settings(tmp_path, capsys):
    """Where the file does not say them, anchors, pixels and style are the model's, and no line names other values."""
    source = SOURCES["rgb"]
    model = model_of(source, tmp_path / "x.pth")
    fresh = MaskRCNN(model.config)
    fresh.load_weights(tmp_path / "x.pth")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    changes = {"BACKBONE_STYLE": "caffe", "MEAN_PIXEL": (1, 2, 3), "IMAGE_MIN_DIM": 448, "IMAGE_MAX_DIM": 640}
    config = Config(**{**model.config.to_dict(), **changes})
    fresh = MaskRCNN(config)
    fresh.load_weights(save(tmp_path / "bare.pth", state_of(source, with_constants=False)))
    assert torch.equal(fresh.fpn.lateral[0].weight, model.fpn.lateral[0].weight)
    printed = capsys.readouterr().out
    assert "caffe style, as the model has it; the model's setting BACKBONE_STYLE changes it" in printed
    assert "images of 448 to 640 pixels, pixels minus 1 2 3" in printed
    stored = convert(tmp_path / "x.pth", modellib.network_shapes, model_config=config)[0]["config"]
    assert stored["MEAN_PIXEL"] == list(source.mean), "what the file says counts more than the model"


def test_the_published_names_are_all_in_the_table(tmp_path, monkeypatch):
    """Names and shapes that Detectron2's own constructor made, for R-50 with 81 classes."""
    monkeypatch.setattr("weights.checkpoint._storable", lambda tensor: tensor)
    names = json.loads(gzip.decompress((GOLDEN / "foreign_keys.json.gz").read_bytes()))
    fills = {"num_batches_tracked": torch.tensor(0), "running_var": torch.tensor(1.0)}
    listed = names["detectron2_mask_rcnn_R_50_FPN_3x"]
    state = {name: fills.get(name.rpartition(".")[2], torch.tensor(0.0)).expand(shape) for name, shape in listed}
    anchors = {name: value for name, value in reference.constants(Source()).items() if name in state}
    checkpoint, report = converted(Source(), tmp_path / "x.pth", state | anchors | {"pixel_std": torch.ones(3, 1, 1)})
    assert report.read == sum(not name.startswith(("pixel_", cells(0)[:-1])) for name in state)
    assert (checkpoint["config"]["BACKBONE"], checkpoint["config"]["BACKBONE_WIDTH"]) == ("resnet50", 1)


@pytest.mark.parametrize("norm", [None, "group"])
def test_a_network_of_norms_learns(norm):
    """Gradients reach every weight, norms too."""
    settings = {"FPN_NORM": norm, "BOX_HEAD_NORM": norm, "MASK_HEAD_NORM": norm, "BOX_HEAD_CONVS": 1}
    model = tiny_model(DIALECT="detectron2", BOX_HEAD_CHANNELS=8, **settings)
    pyramid = model.fpn([torch.rand(1, count, 16 >> i, 16 >> i) for i, count in enumerate(model.backbone.channels)])
    logits, deltas = model.box_head(torch.rand(2, 16, 7, 7))
    masks = model.mask_head(torch.rand(2, 16, 14, 14), torch.tensor([1, 2]))
    (sum(level.square().sum() for level in pyramid) + logits.sum() + deltas.sum() + masks.sum()).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name, _ in model.named_parameters() if name.startswith(("fpn.", "box_head.", "mask_head."))}
    assert expected <= learning
    assert any(".norm." in name for name in expected) == (norm == "group")

"""The training half of MaskRCNN: what learns, norms, precision, memory, and train_model from data to checkpoint."""

import copy
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    SquaresDataset,
    TinyConfig,
    TrainConfig,
    batch_of,
    imagenet_state,
    settings_of,
    tiny_model,
    train_squares,
    untrained,
)
from PIL import Image
from torch import nn

import model as modellib
from config import Config
from model import BatchNorm, Conv, MaskRCNN
from training.checkpoints import find_last
from training.loop import Progress
from weights.load import load_checkpoint
from weights.torch_files import load_torch_file

HEADS = {"fpn", "rpn", "box_head", "mask_head", "maskiou_head"}
STAGES = {f"backbone.layer{stage}" for stage in range(1, 5)}


def learner(seed: int = 0, **overrides) -> MaskRCNN:
    """A small model in training mode, all of which learns."""
    model = tiny_model(seed, **{**settings_of(TrainConfig), **overrides}).train()
    model.set_trainable("all")
    return model


def gradients(model: MaskRCNN, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(model(*batch).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


############################################################
#  What learns
############################################################


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("heads", HEADS),
        ("3+", HEADS | {"backbone.layer2", "backbone.layer3", "backbone.layer4"}),
        ("4+", HEADS | {"backbone.layer3", "backbone.layer4"}),
        ("5+", HEADS | {"backbone.layer4"}),
        ("all", HEADS | {"backbone.stem", *STAGES}),
        ("maskiou", {"maskiou_head"}),
        ("detector", {"fpn", "rpn", "box_head", "mask_head", "backbone.stem", *STAGES}),
        (r"mask_head\.convs|fpn\.output\.0", {"mask_head", "fpn"}),
        (r"rpn\.objectness\.bias", {"rpn"}),
    ],
)
def test_layers_that_learn(layers, expected):
    model = tiny_model(FROZEN_STAGES=0)
    model.set_trainable("maskiou")  # what an earlier phase froze, learns again
    names = model.set_trainable(layers)
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = {".".join(name.split(".")[: 2 if name.startswith("backbone") else 1]) for name in names}
    assert parts == expected
    if "objectness" in layers:
        assert names == ["rpn.objectness.bias"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("4+x", r"layers='4\+x' \(--layers\) matches nothing.*heads.*box_head\.fcs"),
        ("(", r"layers must be one of all, heads, .*regular expression, not '\(': missing \)"),
        (None, "layers must be one of .* as a text, not NoneType: None"),
        (5, "layers must be .* not int: 5"),
        (["heads"], r"layers must be .* not list: \['heads'\]"),
    ],
)
def test_layers_that_are_none(layers, message, tmp_path):
    """Nothing changes then: what learned, learns."""
    model = untrained(tmp_path, FROZEN_STAGES=0)
    before = model.set_trainable("all")
    norms = [module.learns for module in model.modules() if isinstance(module, BatchNorm)]
    with pytest.raises(ValueError, match=message):
        model.set_trainable(layers)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == before
    assert [module.learns for module in model.modules() if isinstance(module, BatchNorm)] == norms
    with pytest.raises(ValueError, match=message):
        train_squares(model, 1, layers=layers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("detections", [False, True])
def test_a_maskiou_head_that_stays_as_it_is_costs_nothing(detections, monkeypatch):
    """The other losses are those of a step in which it learns. If nothing learns, all losses are asked for."""
    model = learner(FROZEN_STAGES=0, MASKIOU_DETECTIONS=detections)
    batch = batch_of(model.config)
    with torch.no_grad():
        whole = model(*batch)
        model.requires_grad_(False)
        assert model(*batch) == whole
        model.set_trainable("detector")
        monkeypatch.setattr(model.maskiou_head, "forward", None)
        monkeypatch.setattr(model, "_find", None)
        losses = model(*batch)
    assert list(whole) == [*losses, "mrcnn_maskiou_loss"]
    assert losses == {name: whole[name] for name in losses}


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({}, ["box_losses"]),
        ({"MASKIOU_REFINED_ROIS": True}, ["box_losses"]),
        ({"MASKIOU_DETECTIONS": True, "DETECTION_MIN_CONFIDENCE": 0.0}, ["box_losses", "refine_objects"]),
    ],
)
def test_a_detector_that_stays_as_it_is_has_no_losses(settings, unused, monkeypatch):
    """The MaskIoU head's loss is that of a step in which all learn."""
    model = learner(FROZEN_STAGES=0, TRAIN_BN=False, **settings)
    batch = batch_of(model.config)
    with torch.no_grad():
        whole = model(*batch)["mrcnn_maskiou_loss"]
        model.set_trainable("maskiou")
        for name in ("match_anchors", "sample_anchors", "rpn_losses", "mask_loss", *unused):
            monkeypatch.setattr(modellib, name, None)
        monkeypatch.setattr(model.rpn, "forward_at", None)
        assert model(*batch) == {"mrcnn_maskiou_loss": whole}
    assert whole > 0


def test_a_new_maskiou_head_leaves_class_scores_as_they_are():
    """Until it has learned, it says 1 of any mask, however large the features of a trained detector are."""
    config = TinyConfig()
    head = MaskRCNN(config).maskiou_head
    side, generator = config.MASK_POOL_SIZE, torch.Generator().manual_seed(0)
    features = 1000 * torch.randn(50, config.TOP_DOWN_PYRAMID_SIZE, side, side, generator=generator)
    maskious = head(features, torch.randn(50, 2 * side, 2 * side, generator=generator))
    assert (maskious == 1).all()
    maskious.square().sum().backward()
    assert head.maskious.weight.grad.abs().min(dim=0).values.max() > 0, "its last layer learns at once"


@pytest.mark.parametrize(("style", "affine_learns"), [("pytorch", True), ("caffe", False)])
def test_frozen_stages_and_norms(style, affine_learns):
    model = tiny_model(FROZEN_STAGES=2, BACKBONE_STYLE=style)
    model.source = "a file"
    names = set(model.set_trainable("all"))
    assert not any(name.startswith(("backbone.stem", "backbone.layer1.", "backbone.layer2.")) for name in names)
    assert "backbone.layer3.0.conv1.weight" in names
    assert ("backbone.layer3.0.conv1.norm.weight" in names) == affine_learns
    assert not any(norm.learns for norm in model.modules() if isinstance(norm, BatchNorm))


def test_from_nothing_everything_learns_and_from_weights_the_first_stage_stays(tmp_path):
    model = tiny_model()
    assert "backbone.stem.weight" in model.set_trainable("all")
    assert model.backbone.stem.norm.learns
    model.save(tmp_path / "weights.pth")
    checkpoint = load_torch_file(tmp_path / "weights.pth")
    model.load_weights({**checkpoint, "source": "a file"})
    assert not any(name.startswith(("backbone.stem", "backbone.layer1.")) for name in model.set_trainable("all"))
    assert not model.backbone.layer4[0].conv1.norm.learns


############################################################
#  Norms
############################################################


def test_batch_norm_that_learns_is_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    ours.learns = True
    ours.running_var.fill_(1 + ours.EPS)
    x = torch.randn(4, 5, 6, 7) * 3 + 1
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var + theirs.eps)
    conv = Conv(5, 5, 1, norm="batch").eval()
    conv.norm = ours.eval()
    nn.init.dirac_(conv.weight)
    torch.testing.assert_close(conv(x), theirs.eval()(x))


def test_group_norm_does_not_know_its_batch():
    model = learner(BACKBONE_NORM="group")
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    together, alone = model.backbone(x)[-1][:1], model.backbone(x[:1])[-1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert "backbone.layer4.0.conv1.norm.weight" in gradients(model, batch_of(model.config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_group_norm_is_as_exact_as_its_input(dtype):
    norm = modellib.GroupNorm(64)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 64, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    result = norm(x)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    exact = nn.functional.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=3e-6)


@pytest.mark.parametrize("trains_bn", [False, True])
def test_recomputed_activations_change_nothing(trains_bn):
    plain = learner(TRAIN_BN=trains_bn, FROZEN_STAGES=1)
    frugal = copy.deepcopy(plain)
    frugal.backbone.recomputes = True
    batch = batch_of(plain.config)
    expected, actual = gradients(plain, batch), gradients(frugal, batch)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)
    for (name, expected), actual in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


def test_recomputing_keeps_less():
    def kept(recomputes: bool) -> int:
        model, sizes = learner(FROZEN_STAGES=0), {}
        model.backbone.recomputes = recomputes

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        images, targets = batch_of(model.config)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model(images, targets)
        assert losses
        return sum(sizes.values())

    assert kept(True) < 0.8 * kept(False)


############################################################
#  Forward with targets
############################################################


def test_validation_computes_what_training_does_and_changes_nothing():
    model = learner(TRAIN_BN=False)
    batch = batch_of(model.config)
    expected = {name: loss.item() for name, loss in model(*batch).items()}
    assert list(expected) == list(model.config.LOSS_WEIGHTS)
    with torch.no_grad():
        actual = {name: loss.item() for name, loss in model.eval()(*batch).items()}
    assert actual == pytest.approx(expected, rel=1e-6)


def test_loss_weights():
    model = learner()
    batch = batch_of(model.config)
    expected = {name: loss.item() for name, loss in model(*batch).items()}
    weights = {name: float(i) for i, name in enumerate(expected)}
    model.config.LOSS_WEIGHTS = weights
    actual = {name: loss.item() for name, loss in model(*batch).items()}
    assert actual == pytest.approx({name: weights[name] * value for name, value in expected.items()}, rel=1e-6)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_is_close(norm):
    model = learner(BACKBONE_NORM=norm, FROZEN_STAGES=0)
    expected = model(*batch_of(model.config))
    model.config.TRAIN_DTYPE = "bfloat16"
    images, targets = batch_of(model.config)
    assert images.pixels.dtype == torch.bfloat16
    losses = model(images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.15, abs=0.02), name
    sum(losses.values()).backward()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_objects(empty):
    model = learner()
    losses = model(*batch_of(model.config, empty=empty))
    assert losses["rpn_class_loss"] > 0
    assert losses["mrcnn_class_loss"] > 0
    if len(empty) == 2:
        for name in ("rpn_bbox_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss", "mrcnn_maskiou_loss"):
            assert losses[name] == 0
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():  # DistributedDataParallel waits for each
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_plain_mask_rcnn_has_five_losses():
    model = learner(USE_MASKIOU_HEAD=False)
    assert list(model(*batch_of(model.config))) == list(model.config.LOSS_WEIGHTS)[:5]


@pytest.mark.parametrize("dialect", ["mmdet", "benchmark", "torchvision", "matterport"])
def test_every_dialect_trains(dialect):
    model = learner(DIALECT=dialect, MEAN_PIXEL=(120, 110, 100), STD_PIXEL=(1, 1, 1))
    losses = model(*batch_of(model.config))
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert gradients(model, batch_of(model.config))["rpn.deltas.weight"].abs().sum() > 0


def test_mini_masks_are_nearly_the_masks():
    model = learner()
    outs = []
    for mini in (False, True):
        model.config.USE_MINI_MASK = mini
        out = {}
        model(*batch_of(model.config), out)
        outs.append(out)
    for name in ("targets/masks", "targets/inside_fractions"):
        assert (outs[0][name] - outs[1][name]).abs().mean() < 0.05, name
    assert len(outs[0]["targets/masks"]) > 0


def test_padding_to_a_larger_batch_is_no_part_of_an_image():
    """Anchors on the padding that another image of the batch causes are ignored."""
    config = TinyConfig()
    anchors = torch.cat(modellib.generate_pyramid_anchors([(16, 24)], (64, 96), _one_level(config)))
    targets = _no_objects(2)
    windows = torch.tensor([[0.0, 0, 64, 96], [0, 0, 40, 60]])
    matched = modellib.match_anchors(anchors, windows, targets, config).view(2, 16, 24, -1)
    assert (matched[0] == modellib.BACKGROUND).all()
    assert (matched[1, :, :16] == modellib.BACKGROUND).all()  # 64 of 60, rounded up to 32s
    assert (matched[1, :, 16:] == modellib.IGNORED).all()


def _one_level(config):
    config = copy.copy(config)
    config.__dict__.update(RPN_ANCHOR_SCALES=(32,), BACKBONE_STRIDES=(4,))
    return config


def _no_objects(images: int) -> modellib.Targets:
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    pairs = torch.zeros(0, 2, dtype=torch.int64)
    masks = modellib.MaskCrops(torch.zeros(0, dtype=torch.uint8), none, pairs, pairs, pairs)
    return modellib.Targets(nothing, none, none, masks, nothing, none, torch.arange(images))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_backbone_and_pyramid_can_be_compiled():
    model = learner(TRAIN_BN=False)
    batch = batch_of(model.config)
    expected = gradients(model, batch)
    model.backbone.compile(backend="eager", fullgraph=True)
    model.fpn.compile(backend="eager", fullgraph=True)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


############################################################
#  Own classes
############################################################


def test_heads_of_other_classes_start_anew_and_are_named(tmp_path, capsys):
    tiny_model(1).save(tmp_path / "weights.pth")
    model = tiny_model(2, NUM_CLASSES=3, CLASS_NAMES=("BG", "cow", "hen"))
    old = model.state_dict()["mask_head.mask_logits.weight"].clone()
    with pytest.raises(ValueError, match="another number of classes"):
        model.load_weights(tmp_path / "weights.pth")
    model.load_weights(tmp_path / "weights.pth", by_name=True)
    printed = capsys.readouterr().out
    assert "initialised anew: box_head.class_logits.weight" in printed
    assert not torch.equal(model.mask_head.mask_logits.weight, old)
    assert model.box_head.class_logits.weight.std() < 0.02  # initialise's 0.01, not the test's 0.2
    assert torch.equal(model.rpn.objectness.weight, tiny_model(1).rpn.objectness.weight)


def test_rows_of_the_same_classes_are_copied(tmp_path):
    source = tiny_model(1)
    source.save(tmp_path / "weights.pth")
    model = tiny_model(2, NUM_CLASSES=3, CLASS_NAMES=("BG", "cow", "hen"))
    before = model.box_head.class_logits.weight[2].clone()
    model.load_weights(tmp_path / "weights.pth", by_name=True, copy_classes=True)
    for name in ("box_head.class_logits", "mask_head.mask_logits", "maskiou_head.maskious"):
        rows = dict(model.named_parameters())[f"{name}.weight"]
        sources = dict(source.named_parameters())[f"{name}.weight"]
        assert torch.equal(rows[1], sources[3]), name  # cow
        assert torch.equal(rows[0], sources[0]), name  # BG
    assert torch.equal(model.box_head.class_logits.weight[2], before)


############################################################
#  train_model
############################################################


def weights(model: MaskRCNN) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_training_from_data_to_checkpoint(tmp_path):
    model = untrained(tmp_path)
    before = weights(model)
    progress = train_squares(model, 2)
    assert (progress.epoch, progress.interrupted, model.epoch) == (2, None, 2)
    assert not model.training
    for name in ("backbone.stem.weight", "rpn.deltas.weight", "maskiou_head.maskious.weight"):
        assert not torch.equal(before[name], weights(model)[name]), name
    path = model.find_last()
    assert path.endswith("mask_rcnn_tiny_0002.pth")
    assert {"metrics.jsonl", "metrics.csv", "losses.png", "mask_rcnn_tiny_best.pth"} <= {
        path.name for path in model.log_dir.iterdir()
    }
    records = [json.loads(line) for line in (model.log_dir / "metrics.jsonl").read_text().splitlines()]
    assert set(model.config.LOSS_WEIGHTS) <= set(next(record for record in records if record["kind"] == "train"))
    loaded = MaskRCNN.from_checkpoint(path, "cpu")
    assert_equal_weights(weights(loaded), weights(model))
    assert loaded.source == "trained from nothing"
    assert (loaded.config.TRAIN_BN, loaded.config.FROZEN_STAGES) == (True, 0)


def test_training_leaves_the_callers_config_as_it_is(tmp_path):
    """What the start decides is in the model's config and in checkpoints, not in the caller's object or class."""

    def settings_of(holder: object) -> dict:  # copy.copy notes __slotnames__ in the class
        return {name: value for name, value in vars(holder).items() if name.isupper()}

    config, other = TrainConfig(), TrainConfig()
    before = settings_of(config), settings_of(TrainConfig)
    assert before[1], "the class has settings of its own"
    model = MaskRCNN(config, tmp_path)
    train_squares(model, 1)
    assert (settings_of(config), settings_of(TrainConfig)) == before
    assert (config.TRAIN_BN, config.FROZEN_STAGES) == (None, None)
    assert (model.config.TRAIN_BN, model.config.FROZEN_STAGES) == (True, 0)
    continued = MaskRCNN(other, tmp_path)
    continued.load_weights(model.find_last())
    assert continued.epoch == 1
    assert (continued.config.TRAIN_BN, continued.config.FROZEN_STAGES) == (True, 0)
    assert settings_of(other) == before[0]
    decided = continued.config
    train_squares(continued, 2)
    assert continued.config is decided, "what is decided once is not decided again"


def test_continued_training_is_the_uninterrupted_one(tmp_path):
    whole = untrained(tmp_path / "whole")
    train_squares(whole, 3)
    train_squares(untrained(tmp_path / "parts"), 1)
    second = untrained(tmp_path / "parts")
    second.load_weights(second.find_last())
    assert second.epoch == 1
    train_squares(second, 3)
    assert_equal_weights(weights(second), weights(whole))
    assert len(list((tmp_path / "parts").iterdir())) == 1  # one log folder


def run_program(logs, images: int, epochs: int, processes: int = 1) -> dict[str, torch.Tensor]:
    """The checkpoint that train_squares.py writes, run by torchrun if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).parent / "train_squares.py"), logs, images, epochs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_torch_file(find_last(logs, "tiny"))


def losses_in(folder) -> list[dict[str, float]]:
    (path,) = folder.glob("*/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    names = ("loss", *TrainConfig.LOSS_WEIGHTS, *(f"val_{name}" for name in TrainConfig.LOSS_WEIGHTS))
    return [{name: record[name] for name in names if name in record} for record in records]


def test_two_processes_train_as_one_with_the_same_batch(tmp_path):
    one = run_program(tmp_path / "one", images=2, epochs=1)
    two = run_program(tmp_path / "two", images=1, epochs=1, processes=2)
    expected, actual = losses_in(tmp_path / "one"), losses_in(tmp_path / "two")
    assert len(expected) == 4  # three steps and a validation
    assert len(actual) == 4
    for ours, theirs in zip(actual[:3], expected[:3], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_weights_of_elsewhere_start_a_new_training(tmp_path):
    first = untrained(tmp_path / "one")
    train_squares(first, 1)
    second = untrained(tmp_path / "two")
    second.load_weights(first.find_last())
    assert second.epoch == 0
    assert second.log_dir is None
    with_config = untrained(tmp_path / "one")
    with_config.load_weights(first.find_last(), exclude=["mrcnn_mask"])
    assert with_config.epoch == 0


def test_a_training_that_has_nothing_left_says_so(tmp_path, capsys):
    model = untrained(tmp_path, STEPS_PER_EPOCH=1)
    train_squares(model, 2)
    before = weights(model)
    assert "nothing left" not in capsys.readouterr().out
    assert train_squares(model, 1).epoch == 2
    printed = capsys.readouterr().out
    assert "nothing left to train: 2 of 1 epochs are done; a larger total goes on (--epochs; in Python" in printed
    assert "from epoch 2" not in printed
    assert_equal_weights(weights(model), before)
    train_squares(model, 3)
    assert "from epoch 2" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"by_name": True}, {"exclude": ["mrcnn_mask"]}], ids=["all", "named", "part"])
def test_other_weights_end_a_training(options, tmp_path, capsys):
    """The new training is the one of a model that was in none before, to the bit."""
    train_squares(untrained(tmp_path / "logs"), 1)
    plain = tmp_path / "plain.pth"
    untrained(tmp_path, SEED=7).save(plain)
    model, other = untrained(tmp_path / "logs"), untrained(tmp_path / "other")
    model.load_weights(model.find_last())
    assert model.config.TRAIN_BN, "decided by the training from nothing"
    other.load_state_dict(model.state_dict())  # "part" keeps some of them
    before = model.log_dir
    for each in (model, other):
        each.load_weights(plain, **options)
    assert f"a new training; the one in {before} ends after epoch 1" in capsys.readouterr().out
    assert (model.epoch, model.log_dir, model.config.TRAIN_BN, model.config.FROZEN_STAGES) == (0, None, None, None)
    assert train_squares(model, 1).epoch == 1
    train_squares(other, 1)
    assert model.log_dir != before
    assert_equal_weights(weights(model), weights(other))


def test_what_a_failed_training_decided_is_open_again_and_what_the_user_chose_is_not(tmp_path):
    plain = tmp_path / "plain.pth"
    untrained(tmp_path).save(plain)
    model = untrained(tmp_path / "logs")
    with pytest.raises(ValueError, match="needs epochs"):
        model.train_model(SquaresDataset().load_squares(2), None)
    assert (model.config.TRAIN_BN, model.config.FROZEN_STAGES) == (True, 0)
    model.config.FROZEN_STAGES = 2
    model.load_weights(plain)
    assert (model.config.TRAIN_BN, model.config.FROZEN_STAGES) == (None, 2)


def test_a_damaged_training_changes_nothing(tmp_path):
    train_squares(untrained(tmp_path), 1)
    model = untrained(tmp_path, SEED=7)
    path, before = Path(model.find_last()), weights(model)
    contents = torch.load(path, weights_only=True)
    contents["training"]["epoch"] = "x"
    torch.save(contents, path)
    with pytest.raises(ValueError, match=rf"{path}: the state of the training in it is damaged: epoch should be"):
        model.load_weights(path)
    assert_equal_weights(weights(model), before)
    assert (model.source, model.epoch, model.log_dir) == ("untrained", 0, None)


def test_phases_of_a_schedule(tmp_path, monkeypatch):
    model = untrained(tmp_path, SCHEDULE="matterport", LEARNING_RATE=0.5, STEPS_PER_EPOCH=1)
    calls = []

    def noted(module, *arguments, **options):
        learning = sum(parameter.requires_grad for parameter in module.parameters())
        phase = options["phase"]
        calls.append((phase.layers, phase.epochs, phase.factor * options["learning_rate"], learning))
        return Progress(module, model.log_dir, phase.epochs, 1, phase.epochs)

    monkeypatch.setattr("training.loop.train", noted)
    model.train_model(SquaresDataset().load_squares(3), None)
    assert [call[:3] for call in calls] == [("heads", 40, 0.5), ("4+", 120, 0.5), ("all", 160, 0.05)]
    assert calls[0][3] < calls[1][3] < calls[2][3]
    model.config.SCHEDULE, model.config.IMAGES_PER_GPU = "1x", 4
    calls.clear()
    model.train_model(SquaresDataset().load_squares(3), None, layers="heads")
    assert calls[0][:3] == ("heads", 12, pytest.approx(0.02 * 4 / 16))


def test_evaluation_decides_the_best(tmp_path):
    values = iter([0.5, 0.9, 0.1])
    model = untrained(tmp_path)
    train_squares(model, 3, evaluate=lambda evaluated: {"mask AP": next(values), "training": float(evaluated.training)})
    best = load_torch_file(model.log_dir / "mask_rcnn_tiny_best.pth")
    assert best["training"]["epoch"] == 2
    records = [json.loads(line) for line in (model.log_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["training"] for record in records if record["kind"] == "eval"] == [0.0, 0.0, 0.0]


def test_validation_is_in_order_and_not_augmented(tmp_path):
    model = untrained(tmp_path, HORIZONTAL_FLIP=1.0, STEPS_PER_EPOCH=1)
    progress = train_squares(model, 1)
    with torch.no_grad():
        losses = model(*batch_of(model.config))  # of the first two images; VALIDATION_STEPS is 1
    assert progress.logs["val_loss"] == pytest.approx(sum(losses.values()).item(), rel=1e-5)


def test_mistakes(tmp_path):
    model = untrained(tmp_path)
    dataset = SquaresDataset().load_squares(2)
    with pytest.raises(ValueError, match="needs epochs"):
        model.train_model(dataset, None)
    with pytest.raises(ValueError, match=r"train_dataset must be a utils\.Dataset, not list"):
        model.train_model([1], None, 0.1, 1)
    small = MaskRCNN(TrainConfig(NUM_CLASSES=3, CLASS_NAMES=None), tmp_path)
    with pytest.raises(ValueError, match=r"the training data has 4 classes.*NUM_CLASSES of the model is 3"):
        small.train_model(dataset, None, 0.1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluate": 5}, "evaluate must be a function of the model that returns numbers, not int"),
        ({"custom_callbacks": print}, "custom_callbacks must be a list of callbacks, not builtin"),
        ({"custom_callbacks": [5]}, "custom_callbacks: 5 must be a function"),
    ],
)
def test_functions_that_are_none(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_squares(untrained(tmp_path), 1, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_file(tmp_path):
    model = untrained(tmp_path)
    with pytest.raises(ValueError, match=r"filepath must be the path of a file, or .* a checkpoint, not NoneType"):
        model.load_weights(None)
    with pytest.raises(ValueError, match=r"exclude must be a list of layers, not a text: \['mrcnn_mask'\]"):
        model.load_weights(tmp_path / "none.pth", exclude="mrcnn_mask")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", value) for value in (float("nan"), float("inf"), -0.1, "0.1", True)),
        *(("epochs", value) for value in (0, -1, 1.5, "2", True)),
    ],
)
def test_lengths_and_rates_that_make_no_training(name, value, tmp_path):
    arguments = {"learning_rate": 0.01, "epochs": 1, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be a .* up, .*not {re.escape(repr(value))}"):
        untrained(tmp_path).train_model(SquaresDataset().load_squares(2), None, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NUM_CLASSES": 3, "CLASS_NAMES": ("BG", "cat", "dog")}, "NUM_CLASSES = 3, but .* built with 4, .* new Mask"),
        ({"BACKBONE": "resnet50"}, "BACKBONE = resnet50, but the network was built with resnet18"),
        ({"RPN_ANCHOR_SCALES": (1, 2, 3, 4, 5)}, "RPN_ANCHOR_SCALES = "),
        ({"IMAGE_MIN_DIM": 1000}, "IMAGE_MIN_DIM 1000 is above IMAGE_MAX_DIM 64"),
    ],
)
def test_settings_that_were_changed_must_fit(settings, message, tmp_path):
    """Checkpoints of another network than their settings describe could not be loaded."""
    model = untrained(tmp_path)
    for name, value in settings.items():
        setattr(model.config, name, value)
    molded = np.zeros((0, 64, 64, 3), np.float32), np.zeros((0, 12 + model.config.NUM_CLASSES))
    for call in (
        lambda: train_squares(model, 1),
        lambda: model.detect([]),
        lambda: next(model.detect_batches([[]])),
        lambda: model.detect_molded(*molded),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_losses_fall(tmp_path):
    """A training that teaches: on three images, the losses fall to less than half."""
    model = untrained(tmp_path, STEPS_PER_EPOCH=15, GRADIENT_CLIP_NORM=5.0, HORIZONTAL_FLIP=0.0)
    dataset = SquaresDataset().load_squares(4)
    totals = []
    model.train_model(dataset, None, 0.02, 4, custom_callbacks=[partial(_note_total, totals)])
    assert totals[-1] < 0.5 * totals[0]


def _note_total(totals: list[float], event: str, progress: Progress) -> None:
    if event == "epoch_end":
        totals.append(sum(progress.logs[name] for name in progress.module.config.LOSS_WEIGHTS))


def test_a_backbone_of_imagenet_starts_a_training(tmp_path):
    torch.save(imagenet_state("resnet18"), tmp_path / "backbone.pth")
    checkpoint = load_checkpoint(tmp_path / "backbone.pth")
    model = MaskRCNN(Config(BACKBONE="resnet18", NUM_CLASSES=3))
    before = model.fpn.output[0].weight.clone()
    model.load_weights(checkpoint, by_name=True)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, checkpoint["model"]["backbone.layer4.1.conv2.weight"])
    assert torch.equal(model.fpn.output[0].weight, before)
    learning = model.set_trainable("all")
    assert "backbone.layer2.0.conv1.weight" in learning
    assert "backbone.layer1.0.conv1.weight" not in learning


def test_a_training_stores_how_it_scaled_16_bit_images(tmp_path):
    """Otherwise a dark image would be brighter in detection than it was in training."""
    train, val = SquaresDataset().load_squares(2), SquaresDataset().load_squares(1)
    for number, (info, high) in enumerate(zip(train.image_info + val.image_info, (4000, 300, 700), strict=True)):
        info["path"] = tmp_path / f"{number}.png"
        Image.fromarray(np.full((64, 64), high, np.uint16)).save(info["path"])
    model = untrained(tmp_path / "logs")
    caller = model.config
    model.train_model(train, val, learning_rate=0.0, epochs=1)
    assert (caller.BIT_DEPTH, model.config.BIT_DEPTH) == ("auto", 12)
    assert (train.reader.chosen, val.reader.chosen) == (12, 12)
    assert MaskRCNN.from_checkpoint(model.find_last(), "cpu").config.BIT_DEPTH == 12


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a file", "a file, trained further"),
        ("shapes, trained by this project", "shapes, trained by this project, trained further"),
        ("a file, trained further", "a file, trained further"),
        ("trained from nothing", "trained from nothing"),
    ],
)
def test_a_model_says_where_its_weights_come_from(source, expected):
    model = tiny_model(GPU_COUNT=0)
    model.source = source
    model._begin_training()
    assert model.source == expected

"""`coco.py train --layers maskiou`: a MaskIoU head on a detector that stays as it is, to the bit."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from helpers import TrainConfig, batch_of
from torch import nn
from toy_coco import SETTINGS, TINY, run, write_coco

import coco
from config import DIALECTS, Config
from config import SETTINGS as ALL_SETTINGS
from model import MaskRCNN
from training.checkpoints import find_last
from training.loop import Trainer
from weights.checkpoint import read_checkpoint, write_checkpoint

NAMES = ("BG", "person", "car", "toothbrush")  # of the data set
STEPS = ["--workers", "0", "--set", "STEPS_PER_EPOCH=3", "VALIDATION_STEPS=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def detector(path: Path, has_head: bool = False, **settings) -> Path:
    """A checkpoint of a detector with statistics and shifts that training would change."""
    network = {**TINY, "NUM_CLASSES": 4, "CLASS_NAMES": NAMES, "CATEGORY_IDS": (0, 1, 3, 90), **settings}
    model = MaskRCNN(Config(**network, USE_MASKIOU_HEAD=has_head))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
            elif name.endswith(("class_logits.weight", "objectness.weight")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    model.source = "published"
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return path


def train(data: Path, model: Path | str, logs: Path, *more: str, evaluates: int = 0) -> int:
    """The exit code of a training. evaluates: every so many epochs; 0 is never, which is faster."""
    return run("train", data, "--model", str(model), "--logs", str(logs), *STEPS, f"EVAL_EVERY={evaluates}", *more)


def last(logs: Path) -> dict:
    return read_checkpoint(find_last(logs, "coco"))


def parts(checkpoint: dict) -> tuple[dict, dict]:
    """The tensors of a checkpoint: those of the detector, and those of the MaskIoU head."""
    found = {True: {}, False: {}}
    for name, tensor in checkpoint["model"].items():
        found[name.startswith("maskiou_head.")][name] = tensor
    return found[False], found[True]


def assert_equal(one: dict, other: dict) -> None:
    """Every tensor is the same, to the bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


############################################################
#  What learns and what does not
############################################################


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_but_the_head_changes(dialect, data, tmp_path, capsys):
    """Also not the statistics of norms. What is trained keeps its dialect, and finds the same boxes and masks."""
    path = detector(tmp_path / "plain.pth", DIALECT=dialect)
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--epochs", "1") == 0
    printed = capsys.readouterr().out
    before, after = read_checkpoint(path), last(tmp_path / "logs")
    (detector_before, nothing), (detector_after, head) = parts(before), parts(after)
    assert nothing == {}
    assert_equal(detector_before, detector_after)
    weights = sum(tensor.numel() for tensor in head.values())
    assert "the MaskIoU head learns alone: a new one, since the checkpoint has none" in printed
    assert f"training {weights:,} weights (maskiou)" in printed
    random = MaskRCNN(Config.from_dict(after["config"])).state_dict()
    assert all(not torch.equal(tensor, random[name]) for name, tensor in head.items()), "each of its tensors learns"
    assert after["dialect"] == after["config"]["DIALECT"] == dialect
    image = (torch.rand(90, 70, 3, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8).numpy()
    one, other = (MaskRCNN.from_checkpoint(each, "cpu").detect([image])[0] for each in (before, after))
    assert len(one["rois"])
    for name in ("rois", "class_ids", "scores", "masks"):
        assert (one[name] == other[name]).all()
    assert one["mask_ious"] is None
    assert other["mask_ious"] is not None


def test_group_norms_stay(data, tmp_path):
    """Of the backbone, and where networks have them, of pyramid and heads."""
    names = ("BACKBONE_NORM", "FPN_NORM", "BOX_HEAD_NORM", "MASK_HEAD_NORM")
    norms = {name: "group" for name in names if name in ALL_SETTINGS}
    path = detector(tmp_path / "plain.pth", BOX_HEAD_CONVS=1, **norms)
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--epochs", "1") == 0
    assert_equal(read_checkpoint(path)["model"], parts(last(tmp_path / "logs"))[0])


@pytest.mark.parametrize(
    "settings", [{"MASKIOU_REFINED_ROIS": True}, {"MASKIOU_DETECTIONS": True, "DETECTION_MIN_CONFIDENCE": 0.0}]
)
def test_a_frozen_detector_keeps_no_activations(settings):
    """No graph: nothing is stored for gradients before the MaskIoU head begins."""
    model = MaskRCNN(TrainConfig(**settings, ACTIVATION_CHECKPOINTING=True, TRAIN_BN=True))
    stored, out = [], {}
    model.set_trainable("maskiou")
    model.train()
    model.maskiou_head.register_forward_pre_hook(lambda *_: stored.append("head"))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor) or tensor, lambda tensor: tensor
    ):
        losses = model(*batch_of(model.config), out=out)
    assert stored.index("head") == 0
    assert len(stored) > 10, "of the head itself"
    tensors = [value for name, value in out.items() if isinstance(value, torch.Tensor)]
    assert [tensor.requires_grad for tensor in tensors].count(True) == 1, "the predicted IoUs"
    assert [name for name, loss in losses.items() if loss.requires_grad] == ["mrcnn_maskiou_loss"]


class OwnBackbone(nn.Module):
    """A backbone of another author, with torch's own batch norms and a dropout."""

    channels = (8, 8, 8, 8)

    def __init__(self, config):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels):
        x = self.dropout(self.norm(self.stem(pixels)))
        return [x, *(nn.functional.max_pool2d(x, 2**level) for level in (1, 2, 3))]


def test_norms_of_another_author_stay_too():
    model = MaskRCNN(TrainConfig(BACKBONE=OwnBackbone))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.set_trainable("maskiou")
    model.train()
    first, second = (model(*batch_of(model.config))["mrcnn_maskiou_loss"] for _ in range(2))
    assert first == second > 0, "no dropout"
    assert_equal(before, model.backbone.state_dict())
    assert model.maskiou_head.training
    model.set_trainable("all")
    model.train()
    model(*batch_of(model.config))
    assert not torch.equal(before["norm.running_mean"], model.backbone.norm.running_mean)


############################################################
#  Settings and schedule
############################################################


def test_what_it_sets_by_itself(data, tmp_path, capsys):
    """A new head has the range of new models, learns from refined boxes, and takes a quarter of 1x."""
    path = detector(tmp_path / "plain.pth", DIALECT="torchvision", MASKIOU_CLAMP=False)
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--batch-size", "1", evaluates=3) == 0
    config, training = last(tmp_path / "logs")["config"], last(tmp_path / "logs")["training"]
    assert (config["MASKIOU_CLAMP"], config["MASKIOU_REFINED_ROIS"], config["SCHEDULE"]) == (True, True, "0.25x")
    assert (training["epoch"], training["schedule"]) == (3, {"learning_rate": 0.02 / 16, "steps_at": [2]})
    printed = capsys.readouterr().out
    names = "USE_MASKIOU_HEAD=True, MASKIOU_CLAMP=True, MASKIOU_REFINED_ROIS=True, SCHEDULE=0.25x"
    assert f"settings for a head alone, which --set changes: {names}" in printed
    assert "learning rate 0.00125: schedule 0.25x has 0.02 for 16 images, and a step has 1" in printed
    assert "box AP" in printed
    assert re.search(r"mask AP \(class score\) \S+, mask AP \S+, re-scoring gain", printed), "with and without"


def test_what_the_command_line_says_counts_more(data, tmp_path, capsys):
    path = detector(tmp_path / "plain.pth")
    settings = ["MASKIOU_REFINED_ROIS=False", "MASKIOU_CLAMP=False"]
    more = ["--layers", "maskiou", "--epochs", "1", "--schedule", "2x", "--set", *settings]
    assert train(data, path, tmp_path / "logs", *more) == 0
    config = last(tmp_path / "logs")["config"]
    assert (config["MASKIOU_CLAMP"], config["MASKIOU_REFINED_ROIS"], config["SCHEDULE"]) == (False, False, "2x")
    assert "which --set changes: USE_MASKIOU_HEAD=True\n" in capsys.readouterr().out


def test_a_head_that_is_there_goes_on_learning(data, tmp_path, capsys):
    path = detector(tmp_path / "scoring.pth", has_head=True, MASKIOU_CLAMP=False)
    more = ["--layers", "maskiou", "--epochs", "1", "--set", "LEARNING_RATE=0", "SCHEDULE=None"]
    assert train(data, path, tmp_path / "logs", *more) == 0
    printed, after = capsys.readouterr().out, last(tmp_path / "logs")
    assert "the MaskIoU head learns alone: that of the checkpoint goes on" in printed
    assert_equal(read_checkpoint(path)["model"], after["model"])  # the learning rate is 0
    assert after["config"]["MASKIOU_CLAMP"] is False, "its outputs mean what they meant"


def test_a_detector_of_more_classes_keeps_them(data, tmp_path):
    """Classes of the data set go by name; the rows of the others stay."""
    names = ("BG", "toothbrush", "kite", "car", "person", "dog")
    path = detector(tmp_path / "plain.pth", NUM_CLASSES=6, CLASS_NAMES=names, CATEGORY_IDS=(0, 90, 38, 3, 1, 18))
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--epochs", "1") == 0
    assert last(tmp_path / "logs")["class_names"] == list(names)
    assert_equal(read_checkpoint(path)["model"], parts(last(tmp_path / "logs"))[0])


############################################################
#  Continue
############################################################


def interrupted_after(monkeypatch, steps: int) -> None:
    """The next training gets Ctrl-C after so many steps."""
    report = Trainer.report_update
    count = 0

    def noted(self, *arguments):
        nonlocal count
        report(self, *arguments)
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "report_update", noted)


def test_an_interrupted_training_continues_to_the_bit(data, tmp_path, monkeypatch, capsys):
    """--model last is enough: layers, epochs and settings are those that the training began with."""
    path = detector(tmp_path / "plain.pth", DIALECT="torchvision")
    assert train(data, path, tmp_path / "whole", "--layers", "maskiou", "--epochs", "2") == 0
    with monkeypatch.context() as patch:
        interrupted_after(patch, 4)
        status = train(data, path, tmp_path / "parts", "--layers", "maskiou", "--epochs", "2")
    assert status == 128 + signal.SIGINT
    assert last(tmp_path / "parts")["training"]["step"] == 2
    capsys.readouterr()
    assert run("train", data, "--model", "last", "--logs", str(tmp_path / "parts"), "--workers", "0") == 0
    printed = capsys.readouterr().out
    assert "layers that learn, as in the training that continues: maskiou" in printed
    one, other = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert_equal(one["model"], other["model"])
    assert other["training"]["epoch"] == other["training"]["epochs"] == 2
    one, other = (each["training"]["optimizer"]["state"] for each in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[number]["momentum_buffer"], other[number]["momentum_buffer"]) for number in one)


def test_other_trainings_continue_with_their_layers(data, tmp_path, capsys):
    logs = tmp_path / "logs"
    more = ["--model", "none", "--logs", str(logs), "--workers", "0", "--set", *SETTINGS, "EVAL_EVERY=0"]
    assert run("train", data, *more, "--layers", "heads", "--epochs", "1") == 0
    assert run("train", data, "--model", "last", "--logs", str(logs), "--workers", "0", "--epochs", "2") == 0
    assert last(logs)["training"]["learning"][1] == "heads"
    capsys.readouterr()
    assert run("train", data, "--model", "last", "--logs", str(logs), "--layers", "maskiou") == 2
    checkpoint = find_last(logs, "coco")
    assert f"--model {checkpoint} --layers maskiou begins a training of the head alone" in capsys.readouterr().err


def test_evaluation_with_and_without_rescoring(data, tmp_path, capsys):
    """One evaluation gives both: by class score it is that of the plain detector, and the mask score reorders masks."""
    path = detector(tmp_path / "plain.pth")
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--epochs", "1") == 0
    results = []
    for more in (["--model", "last", "--logs", str(tmp_path / "logs")], ["--model", str(path)]):
        folder = tmp_path / f"out-{len(results)}"
        assert run("evaluate", data, *more, "--output", str(folder)) == 0
        results.append([json.loads((folder / name).read_text()) for name in ("bbox.json", "segm.json", "metrics.json")])
    printed = capsys.readouterr().out
    for line in ("masks by class score (A)", "masks by mask score (B)", "re-scoring gain (B - A)"):
        assert line in printed
    (boxes, masks, metrics), (plain_boxes, plain_masks, plain_metrics) = results
    assert boxes == plain_boxes
    assert metrics["metrics"]["mask AP (class score)"] == plain_metrics["metrics"]["mask AP (class score)"]
    names = ("image_id", "category_id", "segmentation")
    one, other = ([{name: mask[name] for name in names} for mask in each] for each in (masks, plain_masks))
    assert sorted(map(str, one)) == sorted(map(str, other))
    assert [mask["score"] for mask in plain_masks] == [box["score"] for box in plain_boxes]
    assert [mask["score"] for mask in masks] != [mask["score"] for mask in plain_masks]


############################################################
#  What cannot be
############################################################


def test_refused_before_anything_is_read(tmp_path, capsys):
    """The folder of the data set does not exist, and nothing asks for it."""
    for more, expected in (
        ([], "train without --model starts from a backbone alone; name one, such as --model torchvision"),
        (["--model", "imagenet"], "--model imagenet starts from a backbone alone"),
        (["--model", "none"], "--model none starts from random weights"),
        (["--model", "torchvision", "--set", "USE_MASKIOU_HEAD=False"], "USE_MASKIOU_HEAD=False leaves it out"),
    ):
        assert run("train", tmp_path / "absent", "--layers", "maskiou", *more) == 2
        assert expected in capsys.readouterr().err


def test_a_backbone_in_a_file_is_refused(data, tmp_path, capsys):
    stored = dict(read_checkpoint(detector(tmp_path / "plain.pth")))
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if name.startswith("backbone.")}
    stored["class_names"] = stored["category_ids"] = None
    write_checkpoint(tmp_path / "backbone.pth", stored)
    assert train(data, tmp_path / "backbone.pth", tmp_path / "logs", "--layers", "maskiou") == 2
    assert "backbone.pth is a backbone alone; name a whole detector" in capsys.readouterr().err


def test_a_detector_of_other_classes_is_refused(data, tmp_path, capsys):
    """Rows of unknown classes would start at random weights, and never learn."""
    path = detector(tmp_path / "other.pth", CLASS_NAMES=("BG", "person", "bicycle", "cow"), CATEGORY_IDS=(0, 1, 2, 21))
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou") == 2
    error = capsys.readouterr().err
    assert "does not know 2 classes of" in error
    assert "'car'" in error
    assert "it knows person, bicycle, cow" in error
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("change", ["MASK_HEAD_CONVS=2", "FPN_CLASSIF_FC_LAYERS_SIZE=24", "IMAGE_CHANNEL_COUNT=4",
                                    "MASKIOU_FC_LAYERS_SIZE=24"])  # fmt: skip
def test_settings_that_change_the_detector_are_refused(change, data, tmp_path, capsys):
    """Also a head that is there: the trained one would be lost."""
    path = detector(tmp_path / "scoring.pth", has_head=change.startswith("MASKIOU"))
    assert train(data, path, tmp_path / "logs", "--layers", "maskiou", "--set", change) == 2
    assert "makes another network than that of --model" in capsys.readouterr().err


def test_matterports_schedule_has_layers_of_its_own(data, tmp_path, capsys):
    path = detector(tmp_path / "plain.pth")
    more = ["--layers", "maskiou", "--schedule", "matterport"]
    assert train(data, path, tmp_path / "logs", *more) == 2
    assert "SCHEDULE matterport chooses the layers that learn, which contradicts layers='maskiou'" in (
        capsys.readouterr().err
    )
    assert train(data, path, tmp_path / "logs", *more, "--epochs", "1") == 0
    assert_equal(read_checkpoint(path)["model"], parts(last(tmp_path / "logs"))[0])


def test_a_last_training_without_a_head_is_refused(data, tmp_path, capsys):
    logs = tmp_path / "logs"
    more = ["--model", "none", "--logs", str(logs), "--workers", "0", "--epochs", "1"]
    assert run("train", data, *more, "--set", *SETTINGS, "EVAL_EVERY=0", "USE_MASKIOU_HEAD=False") == 0
    assert run("train", data, "--model", "last", "--logs", str(logs), "--layers", "maskiou", "--epochs", "2") == 2
    error = capsys.readouterr().err
    assert "in which all learned without a MaskIoU head; --model" in error
    assert coco.HEAD_ALONE in error

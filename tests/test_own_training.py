"""A training on own data, by the command line."""

import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from helpers import SquaresDataset, tiny_model
from PIL import Image

import custom
import own_training
from config import parse_settings
from data.plan import Plan
from evaluation.run import whole_images
from model import MaskRCNN
from own_training import OwnConfig, best_anchor_ious, measure_pixels

TINY = [
    "BACKBONE_WIDTH=0.125", "TOP_DOWN_PYRAMID_SIZE=16", "RPN_CHANNELS=16", "FPN_CLASSIF_FC_LAYERS_SIZE=16",
    "MASK_HEAD_CHANNELS=8", "MASKIOU_HEAD_CHANNELS=8", "MASKIOU_FC_LAYERS_SIZE=16", "MASK_HEAD_CONVS=1",
    "IMAGES_PER_GPU=1", "IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64", "IMAGE_MIN_SCALE=1",
    "TRAIN_DTYPE=float32",
]  # fmt: skip


def write_set(folder: Path, count: int = 12, kind: str = "gray") -> Path:
    """Label images as StarDist has them: bright squares on noise, three in a picture."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 60, (64, 64), dtype=np.uint8)
        labels = np.zeros((64, 64), np.uint16)
        for label, (y, x) in enumerate([(4, 6), (30, 8), (20, 36)], start=1):
            side = int(rng.integers(14, 22))
            pixels[y : y + side, x : x + side] += 150
            labels[y : y + side, x : x + side] = label
        if kind == "4 channels":
            values = np.stack([pixels.astype(np.uint16) * factor for factor in (16, 8, 4, 2)])
            tifffile.imwrite(
                folder / "images" / f"cell{number:02}.tif", values, photometric="minisblack", metadata={"axes": "CYX"}
            )
        else:
            Image.fromarray(pixels).save(folder / "images" / f"cell{number:02}.png")
        Image.fromarray(labels).save(folder / "masks" / f"cell{number:02}.png")
    return folder


@pytest.fixture
def short(monkeypatch):
    """Trainings of two epochs, the last one of the MaskIoU head."""
    monkeypatch.setattr("data.plan.VALIDATIONS", 1)


def train(dataset: Path, output: Path, *more: str) -> int:
    words = ["train", "--dataset", str(dataset), "--output", str(output), "--device", "cpu"]
    return custom.main([*words, "--set", *TINY, "STEPS_PER_EPOCH=2", *more])


def test_the_bare_command_plans_trains_and_writes_a_model(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells"), tmp_path / "out"
    before = sorted(path.name for path in dataset.rglob("*"))
    assert train(dataset, output) == 0
    printed = capsys.readouterr().out
    assert "python custom.py detect --dataset NEW_PICTURES --model" in printed
    assert (output / "evaluation" / "report.html").is_file()
    assert re.search(r"length +2 steps, then 2 of the MaskIoU head\n +2 views", printed)
    assert "s a step on this machine" in printed
    assert re.search(r"Self-check: 8 pictures read and augmented, \d+ of \d+ objects can be matched", printed)
    assert {"plan.json", "split.json", "first_batch.jpg", "model.pth", "logs", "check", "evaluation", "losses.png"} <= {
        path.name for path in output.iterdir()
    }
    assert sorted(path.name for path in dataset.rglob("*")) == before, "the data stay as they are"
    model = MaskRCNN.from_checkpoint(output / "model.pth")
    assert model.class_names == ["BG", "object"]
    assert model.config.IMAGE_RESIZE_MODE == "pad64", "it sees whole pictures"
    split = json.loads((output / "split.json").read_text())
    assert len(split["val"]) + len(split["train"]) == 12


def test_the_same_command_continues_and_another_is_refused(tmp_path, capsys, short, monkeypatch):
    dataset, output = write_set(tmp_path / "cells"), tmp_path / "out"
    calls = []
    original = own_training.Job.phases
    monkeypatch.setattr(own_training.Job, "phases", lambda self, has_head: original(self, False))
    assert train(dataset, output) == 0
    plan = (output / "plan.json").read_text()
    monkeypatch.setattr(own_training.Job, "phases", original)
    monkeypatch.setattr(own_training, "measure", lambda *_: calls.append(1))
    capsys.readouterr()
    assert train(dataset, output, "--model", "last") == 0
    assert "from epoch 1, step 0, to epoch 2" in capsys.readouterr().out
    assert (output / "plan.json").read_text() == plan
    assert calls == [], "a plan that exists is not made anew"
    assert train(dataset, output) == 0
    assert "Use it:" in capsys.readouterr().out, "a finished training says its result again"
    assert train(dataset, output, "--minutes", "3") == 2
    error = capsys.readouterr().err
    assert "--minutes was not given, and is 3.0 now" in error
    assert "another --output" in error
    (dataset / "images" / "cell00.png").unlink()
    (dataset / "masks" / "cell00.png").unlink()
    assert train(dataset, output) == 2
    assert "pictures or objects of the data set came or went" in capsys.readouterr().err


def test_plan_prints_and_writes_nothing(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells"), tmp_path / "out"
    assert train(dataset, output, "--plan") == 0
    printed = capsys.readouterr().out
    assert "--set" in printed
    assert "IMAGES_PER_GPU=1, not 4" in printed
    assert not output.exists()


def test_a_damaged_plan_is_refused_by_its_name(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells"), tmp_path / "out"
    output.mkdir()
    for text in ("{", "[]", '{"format": "x"}', '{"format": "mask-scoring-rcnn plan", "version": 1, "plan": {}}'):
        (output / "plan.json").write_text(text)
        assert train(dataset, output) == 2
        assert "plan.json is no plan of a training" in capsys.readouterr().err


def test_too_few_pictures_train_without_validation(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells", count=3), tmp_path / "out"
    assert train(dataset, output) == 0
    assert "no number that says how good the model is" in capsys.readouterr().out
    model = (output / "model.pth").read_bytes()
    assert train(dataset, output) == 0
    assert (output / "model.pth").read_bytes() == model, "a training that is finished stays as it is"


def test_pictures_of_16_bit_and_four_channels(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells", kind="4 channels"), tmp_path / "out"
    assert train(dataset, output) == 0
    printed = capsys.readouterr().out
    assert "brightness" in printed
    model = MaskRCNN.from_checkpoint(output / "model.pth")
    assert model.config.IMAGE_CHANNEL_COUNT == 4
    assert model.config.PIXEL_RANGE == "percentiles"
    assert len(set(model.config.MEAN_PIXEL)) > 0
    assert (output / "first_batch.jpg").is_file()


def test_a_step_that_memory_does_not_hold_halves_the_batch(tmp_path, monkeypatch):
    sizes, told = [], []

    def measured(job):
        sizes.append(job.plan.settings["IMAGES_PER_GPU"])
        if sizes[-1] > 1:
            raise MemoryError("out of memory")
        return "float32", 1.0, 1.0

    monkeypatch.setattr(own_training, "_measured", measured)
    plan = Plan({"IMAGES_PER_GPU": 4, "STEPS_PER_EPOCH": 10}, [], 80, False, 8)

    @dataclasses.dataclass
    class Stub:
        plan: Plan

    assert own_training.measure(Stub(plan), told.append) == ("float32", 1.0, 1.0)
    assert sizes == [4, 2, 1]
    assert plan.batches == 320, "as many views as before"
    assert told[0] == "memory does not hold 4 images at a time: 2 are taken"


@pytest.mark.parametrize(("last", "taken"), [(0.4, "last"), (0.3, "best epoch"), (0.2, "best epoch")])
def test_the_best_epoch_and_the_last_are_compared_on_all_pictures(tmp_path, capsys, short, monkeypatch, last, taken):
    """Epochs are compared on some, which is luck where they have few objects. A choice is made once."""
    dataset, output = write_set(tmp_path / "cells"), tmp_path / "out"
    monkeypatch.setattr(own_training, "EVALUATED_PICTURES", 1)
    compared = []

    def callback(dataset, image_ids=None, **options):
        if image_ids is not None:  # after an epoch; the first one is the best of these
            return lambda model: {"mask AP": 1 - 0.1 * model.epoch}
        return lambda model: compared.append(model) or {"mask AP": 0.3 if len(compared) % 2 else last}

    monkeypatch.setattr(own_training, "evaluation_callback", callback)
    assert train(dataset, output) == 0
    logs = next((output / "logs").iterdir())
    printed = capsys.readouterr().out
    assert f"mask AP 0.300 (best epoch) and {last:.3f} (last): the {taken} is taken" in printed
    assert "choice.json" in printed, "it is listed with what the folder holds"
    wanted = logs / ("mask_rcnn_own_0002.pth" if taken == "last" else "mask_rcnn_own_best.pth")
    weights, model = (torch.load(path, weights_only=True)["model"] for path in (wanted, output / "model.pth"))
    assert all(torch.equal(weights[name], model[name]) for name in weights)
    assert len(compared) == 2
    before = (output / "model.pth").read_bytes()
    assert train(dataset, output) == 0
    assert len(compared) == 2
    assert f"the {taken} is taken" in capsys.readouterr().out
    assert (output / "model.pth").read_bytes() == before
    (output / "choice.json").write_text("[")
    assert train(dataset, output) == 0
    assert len(compared) == 4, "a damaged file is no choice"


@pytest.mark.parametrize(("steps", "expected"), [([9.0, 1.0, 3.0], 2.0), ([9.0, 4.0], 4.0)])
def test_the_time_of_a_step_is_the_mean_of_several(monkeypatch, steps, expected):
    """The first one is not counted, and no further one begins after _TIMED_SECONDS. Pictures come from all places."""
    dataset = SquaresDataset().load_squares(12)
    seen = []
    load = dataset.load_image
    dataset.load_image = lambda image_id: seen.append(image_id) or load(image_id)
    clock = iter([number for end, step in zip(np.cumsum(steps), steps, strict=True) for number in (end - step, end)])
    monkeypatch.setattr(own_training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(own_training, "_TIMED_STEPS", 2)
    monkeypatch.setattr(own_training, "_TIMED_SECONDS", 12.5)
    model = tiny_model(GPU_COUNT=0, IMAGES_PER_GPU=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    assert own_training.step_seconds(model, dataset) == expected
    assert seen == [0, 2, 4, 6, 8, 11][: 2 * len(steps)]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items() if "num_" not in name)


def test_a_model_is_evaluated_with_the_weights_that_it_has_and_in_whole_pictures():
    model = MaskRCNN(OwnConfig(NUM_CLASSES=2, IMAGE_RESIZE_MODE="crop", **parse_settings(TINY)))
    with torch.no_grad():
        for weights in model.parameters():
            weights += 1.0  # random weights follow from SEED, so a copy without them would have the same
    model.source = "a training"
    copied = whole_images(model, DETECTION_MAX_INSTANCES=7)
    assert all(torch.equal(weights, copied.state_dict()[name]) for name, weights in model.state_dict().items())
    assert (copied.config.IMAGE_RESIZE_MODE, copied.config.DETECTION_MAX_INSTANCES) == ("pad64", 7)
    assert model.config.IMAGE_RESIZE_MODE == "crop", "the training goes on as before"
    assert copied.source == "a training"
    assert not copied.training


def test_the_threshold_of_the_evaluation_is_stored_in_the_model(tmp_path, short, monkeypatch):
    calibration = tuple(map(float, range(12)))

    def evaluate(model, dataset, folder, **options):
        assert options["model_name"] == str(tmp_path / "out" / "model.pth")
        settings = {"SCORE_THRESHOLD": 0.31, "ACCEPT_CALIBRATION": calibration}
        return SimpleNamespace(settings=settings, report=Path(folder) / "report.html")

    monkeypatch.setattr(own_training, "evaluate_own", evaluate)
    assert train(write_set(tmp_path / "cells"), tmp_path / "out") == 0
    config = MaskRCNN.from_checkpoint(tmp_path / "out" / "model.pth").config
    assert (0.31, calibration) == (config.SCORE_THRESHOLD, config.ACCEPT_CALIBRATION)


def test_the_best_anchor_of_a_box_like_one_is_nearly_it():
    config = OwnConfig(NUM_CLASSES=2)
    boxes = np.array([[64 - 16, 64 - 16, 64 + 16, 64 + 16], [3, 3, 4, 4]], np.float32)
    ious = best_anchor_ious(boxes, (128, 128, 3), config)
    assert ious[0] == pytest.approx(1.0)
    assert ious[1] < 0.1
    assert best_anchor_ious(np.zeros((0, 4)), (128, 128, 3), config).shape == (0,)


def test_pixels_are_measured_over_the_pictures(tmp_path):
    class Pictures:
        num_images = 2

        def inspect_images(self, *settings):
            assert settings == ("auto", "depth", 3)

        def load_regions(self, image_id):
            return None  # neither is large

        def load_image(self, image_id):
            return np.full((4, 5, 3), (10, 20, 30 + 10 * image_id), np.uint8)

    mean, deviation = measure_pixels(Pictures(), {"IMAGE_CHANNEL_COUNT": 3})
    assert mean == (10.0, 20.0, 35.0)
    assert deviation == (1.0, 1.0, 5.0), "a channel that never changes is not divided by 0"


def test_an_interrupted_training_says_that_the_same_command_continues(tmp_path, capsys, short):
    dataset, output = write_set(tmp_path / "cells", count=3), tmp_path / "out"

    def stop(self, progress):
        raise AssertionError("not finished")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_training.Job, "finish", stop)
        patch.setattr("training.loop.Trainer.validate", lambda self: os.kill(os.getpid(), signal.SIGINT) or {})
        assert train(dataset, output) == 130
    assert re.search(r"saved in .*\nto continue: the same command\n", capsys.readouterr().out)

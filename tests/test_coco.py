"""coco.py as a program: trainings and evaluations of a small data set on disk, and what its arguments mean."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_coco import SETTINGS, TINY, run, write_coco, write_subset

import coco
import native
import utils
from config import Config
from evaluation import detect
from evaluation.results import ground_truth
from evaluation.run import evaluate_dataset
from model import MaskRCNN
from training.checkpoints import find_last
from training.loop import Progress
from weights.checkpoint import read_checkpoint, write_checkpoint
from weights.convert import _pixels
from weights.published import IMAGENET, PUBLISHED

DATA = native.ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def renamed(checkpoint: dict, **changes: list) -> dict:
    """A checkpoint with other class_names or category_ids."""
    settings = {name.upper(): value for name, value in changes.items()}
    return {**checkpoint, **changes, "config": {**checkpoint["config"], **settings}}


def parse(*words: str):
    return coco.build_parser().parse_args(words)


@pytest.fixture(scope="module")
def logs(data, tmp_path_factory) -> Path:
    """A log folder with a training of two steps."""
    logs = tmp_path_factory.mktemp("logs")
    more = ["--model", "none", "--logs", str(logs), "--epochs", "1", "--workers", "0", "--set", *SETTINGS]
    assert run("train", data, *more) == 0
    return logs


############################################################
#  Train and evaluate
############################################################


def test_a_training_knows_its_data(logs, data):
    checkpoint = read_checkpoint(find_last(logs, "coco"))
    assert checkpoint["class_names"] == ["BG", "person", "car", "toothbrush"]
    assert checkpoint["category_ids"] == [0, 1, 3, 90]
    assert (checkpoint["training"]["epoch"], checkpoint["training"]["epochs"]) == (1, 1)
    records = [json.loads(line) for line in next(logs.glob("*/metrics.jsonl")).read_text().splitlines()]
    assert "mask AP (true IoU)" in records[-1]
    assert records[-1]["images"] == 5


def test_last_goes_on_with_its_own_settings(logs, data, tmp_path, capsys):
    """--set is not repeated: the network is the checkpoint's."""
    shutil.copytree(logs, tmp_path / "logs")
    more = ["--model", "last", "--logs", str(tmp_path / "logs"), "--epochs", "2", "--workers", "0"]
    assert run("train", data, *more, "--set", "LEARNING_RATE=0.5", "SCHEDULE=None") == 0
    assert "training continues after epoch 1" in capsys.readouterr().out
    checkpoint = read_checkpoint(find_last(tmp_path / "logs", "coco"))
    assert (checkpoint["training"]["epoch"], checkpoint["config"]["LEARNING_RATE"]) == (2, 0.5)
    assert checkpoint["config"]["BACKBONE_WIDTH"] == 0.125
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_evaluate(logs, data, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("evaluate", data, "--model", "last", "--logs", str(logs), "--output", str(output)) == 0
    printed = capsys.readouterr().out
    assert "masks by mask score (B)" in printed
    assert "5 images, 100 detections" in printed
    assert str(output / "report.html") in printed
    boxes, masks = (json.loads((output / name).read_text()) for name in ("bbox.json", "segm.json"))
    assert len(boxes) == len(masks) == 100
    assert {entry["category_id"] for entry in masks} <= {1, 3, 90}
    assert {entry["image_id"] for entry in masks} == {101, 102, 103, 104, 105}
    assert all("bbox" not in entry for entry in masks)
    metrics = json.loads((output / "metrics.json").read_text())["metrics"]
    assert metrics["images"] == 5
    assert metrics["objects"] == 6


def test_what_is_written_is_what_the_model_detects(logs, data, tmp_path):
    output = tmp_path / "out"
    assert run("evaluate", data, "--logs", str(logs), "--output", str(output), "--batch-size", "1") == 0
    model = MaskRCNN.from_checkpoint(find_last(logs, "coco"), "cpu", IMAGES_PER_GPU=1)
    (found,) = model.detect([utils.read_image(data / "val2017" / "000000000102.png")], masks="rle")
    entries = [entry for entry in json.loads((output / "segm.json").read_text()) if entry["image_id"] == 102]
    assert [entry["segmentation"] for entry in entries] == [utils.rle_to_json(rle) for rle in found["masks"]]
    assert [entry["score"] for entry in entries] == found["mask_scores"].tolist()
    assert [entry["class_score"] for entry in entries] == found["scores"].tolist()
    assert [entry["mask_iou"] for entry in entries] == found["mask_ious"].tolist()
    boxes = [entry for entry in json.loads((output / "bbox.json").read_text()) if entry["image_id"] == 102]
    assert [entry["score"] for entry in boxes] == found["scores"].tolist()
    y1, x1, y2, x2 = found["rois"][0].tolist()
    assert boxes[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]


def test_limit_says_that_it_is_a_subset(logs, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", data, "--logs", str(logs), "--limit", "2") == 0
    assert run("evaluate", data, "--logs", str(logs), "--limit", "0") == 0
    folders = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert [name[:16] for name in folders] == ["val2017-" + folders[0][8:16], "val2017-first2-" + folders[1][15]]
    facts = json.loads((tmp_path / "output" / folders[1] / "metrics.json").read_text())["facts"]
    assert facts["images"] == "2 of 5: a subset, so these are no standard numbers"
    assert json.loads((tmp_path / "output" / folders[0] / "metrics.json").read_text())["facts"]["images"] == "all 5"


@pytest.mark.parametrize("with_output", [False, True])
def test_an_evaluation_hashes_the_weights_once(logs, data, tmp_path, monkeypatch, with_output):
    monkeypatch.chdir(tmp_path)
    calls, hash_weights = [], detect.hash_weights
    monkeypatch.setattr(detect, "hash_weights", lambda model: calls.append(model) or hash_weights(model))
    output = ["--output", "out"] if with_output else []
    assert run("evaluate", data, "--logs", str(logs), "--limit", "1", *output) == 0
    assert len(calls) == 1


def test_the_same_command_again_detects_nothing(logs, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", data, "--logs", str(logs)) == 0
    first = {path: path.read_bytes() for path in tmp_path.glob("output/*/*.json")}
    monkeypatch.setattr(MaskRCNN, "_infer", lambda *_: pytest.fail("detected again"))
    assert run("evaluate", data, "--logs", str(logs)) == 0
    assert len(first) == 4
    for path in first:
        if path.name != "metrics.json":  # which says when, and how long it took
            assert path.read_bytes() == first[path], path


def test_another_evaluation_in_the_folder_is_left_alone(logs, data, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("evaluate", data, "--logs", str(logs), "--output", str(output)) == 0
    before = (output / "segm.json").read_bytes()
    more = ["--set", "DETECTION_NMS_THRESHOLD=0.9"]
    assert run("evaluate", data, "--logs", str(logs), "--output", str(output), *more) == 2
    assert "holds another evaluation: DETECTION_NMS_THRESHOLD 0.5 there, 0.9 now" in capsys.readouterr().err
    assert (output / "segm.json").read_bytes() == before


def test_an_evaluation_that_is_killed_goes_on(logs, data, tmp_path):
    """kill -9 in the middle; then the same command; the files are those of an uninterrupted evaluation."""
    command = [sys.executable, str(native.ROOT / "coco.py"), "evaluate", "--dataset", str(data), "--logs", str(logs)]
    command += ["--device", "cpu", "--batch-size", "1", "--output"]
    slow = (
        "import runpy, sys, time, data.images\n"
        "read = data.images.read_image\n"
        "data.images.read_image = lambda *a, **k: (time.sleep(0.5), read(*a, **k))[1]\n"
        f"sys.argv = {[*command[1:], str(tmp_path / 'killed')]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=native.ROOT, stdout=subprocess.DEVNULL)
    part = tmp_path / "killed" / "detections" / "part-000.jsonl"
    deadline = time.monotonic() + 100
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= part.read_bytes().count(b"\n") < 5
    assert not (tmp_path / "killed" / "segm.json").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    for name in ("bbox.json", "segm.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_evaluate_as_one(logs, data, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for name, launch in (("one", []), ("two", launcher)):
        command = [sys.executable, *launch, str(native.ROOT / "coco.py"), "evaluate", "--dataset", str(data)]
        command += ["--logs", str(logs), "--device", "cpu", "--output", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "two" / "detections").iterdir())) == 2
    for name in ("bbox.json", "segm.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("one", "two"))
    assert one == two


@pytest.mark.skipif(not (DATA / "coco_real_lite").is_dir(), reason=f"there is no {DATA / 'coco_real_lite'}")
def test_real_images(tmp_path):
    """Both commands on images of COCO; a small network and few steps, so that the numbers say nothing."""
    folder = DATA / "coco_real_lite"
    small = [*(text for text in SETTINGS if not text.startswith("IMAGE_MIN_DIM")), "IMAGE_MIN_DIM=96"]
    more = ["--logs", str(tmp_path / "logs"), "--workers", "0"]
    assert run("train", folder, "--model", "none", "--epochs", "1", "--limit", "2", *more, "--set", *small) == 0
    output = str(tmp_path / "out")
    assert run("evaluate", folder, "--limit", "6", *more, "--output", output, "--max-dets", "50") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert (metrics["images"], metrics["max_dets"]) == (6, 50)
    assert "box AR50" in metrics


############################################################
#  Where a training starts
############################################################


@pytest.fixture
def started(monkeypatch):
    """Does not train; holds the arguments of train_model."""
    calls = []

    def noted(*arguments, **named):
        calls.append((arguments, named))
        return Progress(None, Path(), 1, 1)

    monkeypatch.setattr(MaskRCNN, "train_model", noted)
    return calls


def test_what_is_trained_on(data, started, tmp_path):
    assert run("train", data, "--model", "none", "--layers", "heads", "--epochs", "7", "--set", *SETTINGS) == 0
    (((model, train_data, val_data), named),) = started
    assert [info["id"] for info in train_data.image_info] == [1, 2, 4, 5], "those of no objects are left out"
    assert [info["id"] for info in val_data.image_info] == [101, 102, 103, 104, 105]
    assert (named["epochs"], named["layers"]) == (7, "heads")
    assert model.config.SCHEDULE == "1x"
    assert run("train", data, "--model", "none", "--empty-images", "--set", *SETTINGS) == 0
    assert started[1][0][1].num_images == 6
    assert started[1][1]["epochs"] is None


def test_2014_trains_on_valminusminival_too(tmp_path, started):
    write_subset(tmp_path, "train2014", 4)
    write_subset(tmp_path, "val2014", 4, first=101)
    for subset, first in (("minival2014", 103), ("valminusminival2014", 101)):
        contents = json.loads((tmp_path / "annotations" / "instances_val2014.json").read_text())
        contents["images"] = [entry for entry in contents["images"] if first <= entry["id"] < first + 2]
        contents["annotations"] = [entry for entry in contents["annotations"] if first <= entry["image_id"] < first + 2]
        (tmp_path / "annotations" / f"instances_{subset}.json").write_text(json.dumps(contents))
    assert run("train", tmp_path, "--model", "none", "--empty-images", "--set", *SETTINGS) == 0
    (((_, train_data, val_data), _),) = started
    assert [info["id"] for info in train_data.image_info] == [1, 2, 3, 4, 101, 102]
    assert [info["id"] for info in val_data.image_info] == [103, 104]
    assert coco.find_year(parse("train", "--dataset", str(tmp_path))) == "2014"
    assert coco.find_year(parse("train", "--dataset", str(tmp_path), "--year", "2017")) == "2017"
    assert coco.find_year(parse("train", "--dataset", str(tmp_path / "none"), "--download")) == "2017"
    with pytest.raises(NotADirectoryError, match=r"--dataset .*none is no folder; give the one that has annotations/"):
        coco.find_year(parse("train", "--dataset", str(tmp_path / "none")))


def test_imagenet_is_the_default_start(data, started, tmp_path, monkeypatch):
    source = MaskRCNN(Config(**{**TINY, "BACKBONE": "resnet18", "SEED": 1}))
    stored = source.to_checkpoint()
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if name.startswith("backbone.")}
    stored["class_names"] = stored["category_ids"] = None
    stored["source"] = "imagenet"
    write_checkpoint(tmp_path / "backbone.pth", stored)
    asked = []

    def find(*arguments):
        asked.append(arguments)
        return tmp_path / "backbone.pth"

    monkeypatch.setattr("weights.published.find_weights", find)
    assert run("train", data, "--set", *SETTINGS) == 0
    assert asked == [("imagenet", "resnet18", "pytorch")]
    (((model, *_), _),) = started
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    assert not torch.equal(model.rpn.convs[0].weight, source.rpn.convs[0].weight)
    assert model.source == "imagenet"


def test_imagenet_weights_of_a_file(data, started, tmp_path, monkeypatch, capsys):
    """--model imagenet with IMAGENET_MODEL_PATH starts from that file, not from the published weights."""
    monkeypatch.setattr("weights.published.find_weights", lambda *arguments: pytest.fail("asks for published weights"))
    source = MaskRCNN(Config(BACKBONE="resnet18", BACKBONE_WIDTH=0.125, MEAN_PIXEL=(7.0, 8.0, 9.0)))
    stored = source.to_checkpoint()
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if name.startswith("backbone.")}
    stored["class_names"] = stored["category_ids"] = None
    path = tmp_path / "backbone.pth"
    write_checkpoint(path, stored)
    assert run("train", data, "--model", "imagenet", "--set", *SETTINGS, f"IMAGENET_MODEL_PATH={path}") == 0
    (((model, *_), _),) = started
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    assert model.config.MEAN_PIXEL == (7.0, 8.0, 9.0)
    assert run("train", data, "--set", *SETTINGS, f"IMAGENET_MODEL_PATH={tmp_path / 'missing.pth'}") == 2
    assert "missing.pth must be a file with ImageNet weights, and there is no such file" in capsys.readouterr().err


def test_a_model_that_was_stored_with_settings_that_are_gone(data, started, logs, tmp_path):
    """A training continues, and another one starts, from a checkpoint of a release that had USE_RPN_ROIS."""
    path = tmp_path / "logs" / Path(find_last(logs, "coco")).relative_to(logs)
    shutil.copytree(logs, tmp_path / "logs")
    checkpoint = dict(read_checkpoint(path))
    checkpoint["config"] = {**checkpoint["config"], "USE_RPN_ROIS": True, "MASK_SHAPE": [28, 28]}
    write_checkpoint(path, checkpoint)
    for model in ("last", str(path)):
        assert run("train", data, "--model", model, "--logs", str(tmp_path / "logs")) == 0
    assert [arguments[0].config.MASK_SHAPE for arguments, _ in started] == [(28, 28), (28, 28)]


def test_other_classes_start_with_the_rows_of_the_same_names(data, started, logs, tmp_path):
    """A checkpoint of other classes: what fits is taken, and settings of its run are not."""
    checkpoint = dict(read_checkpoint(find_last(logs, "coco")))
    checkpoint = renamed(checkpoint, class_names=["BG", "car", "bicycle", "cow"])
    checkpoint["config"] = {**checkpoint["config"], "LEARNING_RATE": 7.0, "RPN_NMS_THRESHOLD": 0.61}
    path = tmp_path / "other.pth"
    write_checkpoint(path, checkpoint)
    assert run("train", data, "--model", str(path)) == 0
    (((model, *_), _),) = started
    own, theirs = model.box_head.class_logits.weight, checkpoint["model"]["box_head.class_logits.weight"]
    assert torch.equal(own[2], theirs[1])  # car
    assert not torch.equal(own[1], theirs[1])
    assert torch.equal(model.backbone.stem.weight, checkpoint["model"]["backbone.stem.weight"])
    assert model.config.RPN_NMS_THRESHOLD == 0.61
    assert model.config.LEARNING_RATE == coco.CocoConfig.LEARNING_RATE
    assert model.config.STEPS_PER_EPOCH is None
    assert model.class_names == ["BG", "person", "car", "toothbrush"]


def test_class_layers_of_another_width_start_anew(data, started, logs, tmp_path):
    """Other classes and a narrower box head: rows of the mask head are copied; those of the box head cannot be."""
    checkpoint = renamed(dict(read_checkpoint(find_last(logs, "coco"))), class_names=["BG", "car", "bicycle", "cow"])
    path = tmp_path / "other.pth"
    write_checkpoint(path, checkpoint)
    assert run("train", data, "--model", str(path), "--set", "FPN_CLASSIF_FC_LAYERS_SIZE=24") == 0
    (((model, *_), _),) = started
    assert model.box_head.class_logits.weight.shape == (4, 24)
    masks = checkpoint["model"]["mask_head.mask_logits.weight"]
    assert torch.equal(model.mask_head.mask_logits.weight[2], masks[1]), "car"


def test_settings_come_from_the_strongest(data, logs):
    dataset = coco.CocoDataset()
    dataset.load_coco(data, "train")
    dataset.prepare()
    words = ["--backbone", "resnet34", "--seed", "3", "--batch-size", "5", "--schedule", "2x", "--device", "cpu"]
    words += ["--dtype", "bfloat16", "--config", "ms_rcnn_r50_caffe_fpn_1x_coco", "--set", "SEED=9"]
    config = coco.CocoConfig(**coco.training_settings(parse("train", *words), dataset))
    assert (config.BACKBONE, config.BACKBONE_STYLE, config.STD_PIXEL) == ("resnet34", "caffe", (1, 1, 1))
    assert (config.SEED, config.IMAGES_PER_GPU, config.SCHEDULE) == (9, 5, "2x")
    assert (config.GPU_COUNT, config.TRAIN_DTYPE) == (0, "bfloat16")
    assert (config.NUM_CLASSES, config.CATEGORY_IDS) == (4, (0, 1, 3, 90))
    settings = coco.training_settings(parse("train", "--set", "NUM_CLASSES=9"), dataset)
    assert settings["NUM_CLASSES"] == 4, "classes are the data set's"


@pytest.mark.parametrize("name", coco.CONFIGS)
def test_named_configs_are_those_of_the_published_checkpoints(name):
    """A training of a configuration starts from weights that fit it, and gives what the published file has."""
    config = coco.CocoConfig(**coco.CONFIGS[name])
    published = PUBLISHED[name]
    assert (published.style, name.split("_")[-2]) == (config.BACKBONE_STYLE, config.SCHEDULE)
    _, mean, std = _pixels("", config.BACKBONE_STYLE)
    assert (mean, std) == (config.MEAN_PIXEL, config.STD_PIXEL)
    assert (config.BACKBONE, config.BACKBONE_STYLE) in IMAGENET
    depth = {"r50": "resnet50", "r101": "resnet101"}
    short = "_".join(name.split("_")[2:-3]).replace("_caffe", "")
    assert depth.get(short, f"resnext101_{short.removeprefix('x101_')}") == config.BACKBONE


############################################################
#  Mistakes
############################################################


@pytest.mark.parametrize(("text", "value"), [
    ("--download", True), ("--download=False", False), ("--download=false", False), ("--download=no", False),
    ("--download=0", False), ("--download=True", True), ("--download=1", True), ("--seed=1", False),
])  # fmt: skip
def test_download_false_is_false(text, value):
    assert parse("train", text).download is value


def test_download_is_passed_on(data, started, monkeypatch):
    asked = []
    monkeypatch.setattr(coco.CocoDataset, "auto_download", lambda self, *what: asked.append(what))
    assert run("train", data, "--model", "none", "--download", "--set", *SETTINGS) == 0
    assert [subset for _, subset, _ in asked] == ["train", "val"]


@pytest.mark.parametrize(("words", "message"), [
    (["--download=maybe"], "must be true or false, not 'maybe'"),
    (["--limit", "-1"], "whole number from 0 up"),
    (["--limit", "many"], "whole number from 0 up"),
    (["--epochs", "0"], "whole number from 1 up"),
    (["--max-dets", "0"], "whole number from 1 up"),
    (["--backbone", "vgg16"], "invalid choice: 'vgg16'"),
    (["--schedule", "3x"], "invalid choice: '3x'"),
    (["--layers", "("], "argument --layers: layers must be one of all, heads"),
])  # fmt: skip
def test_arguments_that_cannot_be(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse("train", *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_mistakes_end_in_one_line(data, logs, tmp_path, capsys):
    for words, message in (
        (["train", "--output", "x", "--model", "none"], "--output is an argument of evaluate only"),
        (["train", "--max-dets", "5", "--model", "none"], "--max-dets is an argument of evaluate only"),
        (["evaluate", "--backbone", "resnet50"], "--backbone is an argument of train only"),
        (["evaluate", "--seed", "0"], "--seed is an argument of train only"),
        (["evaluate", "--empty-images"], "--empty-images is an argument of train only"),
        (["evaluate", "--model", "none"], "--model none is random weights, which finds no objects"),
        (["evaluate", "--model", "imagenet"], "--model imagenet is a backbone without heads, which finds no objects"),
        (["evaluate", "--logs", str(tmp_path)], "there is no checkpoint"),
        (["train", "--model", "last", "--logs", str(tmp_path)], "there is no checkpoint"),
        (["train", "--model", "coca"], "did you mean coco?"),
        (["train", "--model", "none", "--set", "SEEED=1"], "did you mean SEED?"),
    ):
        assert run(words[0], data, *words[1:]) == 2
        assert f"coco.py: {''}" in (printed := capsys.readouterr().err)
        assert message in printed
    assert coco.main(["train", "--dataset", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert f"coco.py: --dataset {tmp_path / 'nowhere'} is no folder; give the one that has annotations/" in error
    assert "--download" in error
    assert error.count("\n") == 1
    file = tmp_path / "file"
    file.touch()
    assert coco.main(["evaluate", "--dataset", str(file), "--download"]) == 2
    assert f"--dataset {file} is no folder" in capsys.readouterr().err
    assert run("evaluate", data, "--logs", str(logs), "--output", str(file)) == 2
    assert f"coco.py: --output {file}: {file} is no folder\n" in capsys.readouterr().err


def test_an_incomplete_data_set_is_not_evaluated(logs, tmp_path, capsys):
    write_subset(tmp_path, "val2017", 4, first=101)
    (tmp_path / "val2017" / "000000000102.png").unlink()
    assert run("evaluate", tmp_path, "--logs", str(logs), "--output", str(tmp_path / "out")) == 2
    printed = capsys.readouterr().err
    assert "the data set is not complete" in printed
    assert "000000000102.png" in printed


def test_a_model_of_other_categories(data, logs, tmp_path, capsys):
    """Names decide, not ids. A category that the model does not know is named; a model that knows none is refused."""
    checkpoint = dict(read_checkpoint(find_last(logs, "coco")))
    path = tmp_path / "other.pth"
    for number, (change, code, message) in enumerate(
        (
            ({"class_names": ["BG", "person", "tank", "toothbrush"]}, 0, "'car'"),
            ({"category_ids": [0, 31, 33, 35]}, 0, ""),
            ({"class_names": ["BG", "tank", "plane", "boat"]}, 2, "person"),
        )
    ):
        write_checkpoint(path, renamed(checkpoint, **change))
        folder = tmp_path / f"out{number}"
        assert run("evaluate", data, "--model", str(path), "--output", str(folder)) == code
        printed = capsys.readouterr()
        assert message in (printed.err if code else printed.out + printed.err)


def test_class_scores_that_evaluation_asks_for(data, logs, tmp_path):
    """Trained with 0.7, evaluated from 0.05 on, as all others are; a wish is a wish."""
    checkpoint = dict(read_checkpoint(find_last(logs, "coco")))
    path = tmp_path / "strict.pth"
    for stored, words, expected in (
        (0.7, [], 0.05),
        (0.01, [], 0.01),
        (0.7, ["--set", "DETECTION_MIN_CONFIDENCE=0.3"], 0.3),
    ):
        checkpoint["config"] = {**checkpoint["config"], "DETECTION_MIN_CONFIDENCE": stored}
        write_checkpoint(path, checkpoint)
        model = coco.evaluated_model(parse("evaluate", "--model", str(path), *words), torch.device("cpu"))
        assert expected == model.config.DETECTION_MIN_CONFIDENCE
    checkpoint["config"] = {**checkpoint["config"], "DIALECT": "matterport"}
    write_checkpoint(path, {**checkpoint, "dialect": "matterport"})
    assert coco.evaluated_model(parse("evaluate", "--model", str(path)), "cpu").config.DETECTION_MIN_CONFIDENCE == 0


############################################################
#  Matterport's functions
############################################################


def test_build_coco_results(data):
    dataset = coco.CocoDataset()
    dataset.load_coco(data, "val")
    dataset.prepare()
    masks = np.zeros((60, 80, 2), bool)
    masks[10:20, 30:50, 0] = masks[0:5, 0:5, 1] = True
    rois = np.array([[10, 30, 20, 50], [0, 0, 5, 5]])
    results = coco.build_coco_results(dataset, [101], rois, np.array([2, 1]), np.array([0.5, 0.25]), masks)
    assert [entry["category_id"] for entry in results] == [3, 1]
    assert results[0]["bbox"] == [30, 10, 20, 10]
    assert (results[0]["image_id"], results[0]["score"]) == (101, 0.5)
    np.testing.assert_array_equal(utils.rle_to_mask(json.loads(json.dumps(results))[1]["segmentation"]), masks[..., 1])
    assert coco.build_coco_results(dataset, [101], None, [], [], None) == []


def test_evaluate_coco(data, logs):
    dataset = coco.CocoDataset()
    index = dataset.load_coco(data, "val", return_coco=True)
    dataset.prepare()
    model = MaskRCNN.from_checkpoint(find_last(logs, "coco"), "cpu")
    expected = evaluate_dataset(model, dataset, [0, 1], verbose=False)
    boxes = coco.evaluate_coco(model, dataset, index, "bbox", limit=2)
    assert boxes["AP"] == expected["box AP"]
    masks = coco.evaluate_coco(model, dataset, index, "segm", image_ids=[0, 1])
    assert masks["AP (class score)"] == expected["mask AP (class score)"]
    with pytest.raises(ValueError, match="eval_type must be 'bbox' or 'segm', not 'mask'"):
        coco.evaluate_coco(model, dataset, index, "mask")


def test_ground_truth_in_the_numbers_of_the_file(data):
    dataset = coco.CocoDataset()
    dataset.load_coco(data, "val")
    dataset.prepare()
    contents = ground_truth(dataset)
    assert [entry["id"] for entry in contents["categories"]] == [1, 3, 90]
    assert [entry["id"] for entry in contents["images"]] == [101, 102, 103, 104, 105]
    assert [entry["image_id"] for entry in contents["annotations"]] == [101, 101, 103, 103, 104, 104]
    assert [entry["id"] for entry in contents["annotations"]] == [1, 2, 3, 4, 5, 6]

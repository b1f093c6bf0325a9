"""Evaluation of own data, from the pictures to the sentences, the report and the settings that are stored."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NASTY, detection_result, rectangle, segm_result, tiny_model, truth_of
from PIL import Image
from scipy import ndimage
from torch import nn

import custom
import own_evaluation
from config import Config
from data.check import check
from data.reading import Options
from data.recognise import open_records
from data.record_dataset import RecordDataset
from data.split import Split, write_split
from evaluation.errors import Error
from evaluation.metrics import boxes_round
from evaluation.own import evaluate_own, store_settings
from evaluation.own_numbers import own_numbers
from evaluation.own_words import leak_sentence, of_ten, small_misses
from own_evaluation import choose_pictures, find_model, split_file
from weights.checkpoint import halved, read_checkpoint, write_checkpoint

SIDE = 64
# (y, x, side) of squares; the last two of a picture touch, so that a detector of bright spots takes them as one
SQUARES = ((4, 6, 14), (30, 8, 14), (4, 36, 12), (30, 36, 10), (30, 46, 10))


def write_set(folder: Path, splits: dict[str, int], names: tuple[str, ...] = ("cell",), squares=SQUARES) -> Path:
    """COCO's format: bright squares on noise, of the classes in turn."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = np.repeat(np.repeat(rng.integers(0, 60, (8, 8), dtype=np.uint8), 8, axis=0), 8, axis=1)
            for i, (y, x, side) in enumerate(squares):
                pixels[y : y + side, x : x + side] = 150 + 10 * i + number
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": 1 + i % len(names), "iscrowd": 0,
                    "segmentation": [[x, y, x + side, y, x + side, y + side, x + 0.1, y + side]],
                    "bbox": [x, y, side, side], "area": side * side,
                })  # fmt: skip
            Image.fromarray(pixels).save(folder / split / f"{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "width": SIDE, "height": SIDE})
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        (folder / "annotations").mkdir(exist_ok=True)
        value = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    return folder


class Spots(nn.Module):
    """Stands in for a model: finds bright spots, and is surer of whole masks than of those that it cuts."""

    def __init__(self, names=("cell",), head=True, least=140, **settings) -> None:
        super().__init__()
        self.config = Config(NUM_CLASSES=1 + len(names), IMAGES_PER_GPU=1, GPU_COUNT=0, **settings)
        self.class_names, self.device, self.source = ["BG", *names], torch.device("cpu"), "bright spots"
        self.head, self.least, self.seconds = head, least, {}
        self.weight = nn.Parameter(torch.zeros(1))

    def detect_batches(self, batches, dtype="float32", masks="rle"):
        for images in batches:
            yield [self.find(image) for image in images]

    def find(self, image: np.ndarray) -> dict:
        pixels = image[..., 0].astype(int)
        labels, count = ndimage.label(pixels > self.least)
        rng = np.random.default_rng(int(pixels.sum()))
        found, ids, scores, ious = [], [], [], []
        for label in range(1, count + 1):
            mask = labels == label
            sure = rng.random()
            if rng.random() > 1 / (1 + np.exp(-15 * (sure - 0.4))):  # a bad mask: half of it
                mask &= np.cumsum(mask, axis=1) <= 6
            found.append(mask)
            ids.append(1 + (label % (self.config.NUM_CLASSES - 1)))
            scores.append(0.5 + 0.5 * sure)
            ious.append(np.clip(sure, 0.05, 0.95))
        masks = np.stack(found, axis=-1) if found else np.zeros((*pixels.shape, 0), bool)
        return detection_result(masks, ids, scores, ious if self.head else None)


def dataset_of(folder: Path, split: str = "val") -> RecordDataset:
    records = open_records(folder)
    check(records)
    return RecordDataset(records, split)


@pytest.fixture
def no_page(monkeypatch):
    """Plots and pictures take most of the time, and most tests do not look at them."""
    monkeypatch.setattr("evaluation.report.render", lambda *_: "")
    monkeypatch.setattr("evaluation.report.own_view", lambda *_: {})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A data set of 40 pictures, the model, the result, its folder."""
    folder = tmp_path_factory.mktemp("own")
    dataset, model = dataset_of(write_set(folder / "set", {"val": 40})), Spots()
    result = evaluate_own(model, dataset, folder / "out", leaks=[], model_name="out/model.pth", verbose=False)
    return dataset, model, result, folder / "out"


############################################################
#  The whole
############################################################


def test_the_result_in_sentences(evaluated):
    _, _, result, _ = evaluated
    first, second, missed, wrong, accept, threshold, leaks = result.sentences
    number = r"\d+(?:\.\d+)?"
    assert re.fullmatch(
        rf"On 40 pictures of val that it has not learned from \(200 objects\): mask AP {number}, AP50 {number}\.", first
    )
    assert re.fullmatch(
        rf"Finds \d of 10 objects at the threshold {number}, where \d+ of 10+ finds are right\.", second
    )
    quality = result.numbers.quality
    assert missed.startswith(f"Misses {quality.false_negatives} objects")
    assert "taken as one with a neighbour (" in missed
    assert wrong.startswith(f"{quality.false_positives} finds are wrong: ")
    assert re.fullmatch(rf"{number}% of the finds .* {number}% of these have it \(cross-validated\)\.", accept)
    assert "best F1 on the pictures of val themselves" in threshold
    assert leaks == "No picture of val looks like one of another split."
    for sentence, total in ((missed, quality.false_negatives), (wrong, quality.false_positives)):
        assert sum(map(int, re.findall(r"\((\d+)\)", sentence))) == total, sentence


def test_numbers_have_their_names(evaluated):
    _, _, result, out = evaluated
    numbers, metrics = result.numbers, json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"] == result.metrics
    assert result.metrics["threshold"] == result.threshold == numbers.threshold
    assert result.metrics["F1 at IoU 0.5"] == numbers.quality.f1 == pytest.approx(numbers.curve.f1.max())
    assert result.metrics["true positives at IoU 0.9"] == numbers.counts.quality(0.9).true_positives
    assert result.metrics["PQ at IoU 0.7"] == pytest.approx(
        result.metrics["SQ at IoU 0.7"] * result.metrics["RQ at IoU 0.7"]
    )
    assert 0 < result.metrics["boundary AP"] <= result.metrics["mask AP"]
    assert metrics["own"]["sentences"] == result.sentences
    assert metrics["own"]["sizes"]["large"]["0.5"]["F1"] is None, "there is no large object"
    assert metrics["own"]["sizes"]["small"] == metrics["own"]["all"]
    assert metrics["classes"][0]["F1 at IoU 0.5"] == numbers.quality.f1
    head, row = (line.split(",") for line in (out / "classes.csv").read_text().splitlines())
    assert dict(zip(head, row, strict=True))["recall at IoU 0.5"] == str(numbers.quality.recall)


def test_chances_are_those_of_the_detections_that_count(evaluated):
    _, _, result, _ = evaluated
    accept, quality = result.numbers.accept, result.numbers.quality
    assert len(accept.good) == len(accept.predicted) == quality.true_positives + quality.false_positives
    assert accept.tables[0.7][0].accepted == np.count_nonzero(accept.predicted[:, 0] >= 0.5)
    assert accept.good[:, 0].sum() == result.numbers.counts.quality(0.7).true_positives, "of disjoint objects"


def test_panoptic_quality_is_of_disjoint_detections():
    mask = rectangle(10, 10, 30, 30)
    results = [segm_result(1, 1, mask, 0.9), segm_result(1, 1, mask, 0.8)]
    numbers = own_numbers(truth_of((1, 1, mask)), results, 100, 1.0, Config(NUM_CLASSES=3), {1: 1, 2: 2}, False)
    assert numbers.metrics()["F1 at IoU 0.5"] == numbers.metrics()["precision at IoU 0.5"] * 4 / 3 == 2 / 3
    assert [numbers.metrics()[f"{name} at IoU 0.5"] for name in ("PQ", "SQ", "RQ")] == [1, 1, 1]
    assert numbers.class_metrics(1)["PQ at IoU 0.5"] == 1
    assert numbers.class_metrics(2)["PQ at IoU 0.5"] == -1, "nothing of this class"
    whole = numbers.to_json()
    assert [whole["all"]["0.5"][name] for name in ("F1", "PQ")] == [2 / 3, 1]
    assert whole["classes"]["class 2"]["0.5"]["PQ"] is None


def test_chances_are_stored_by_the_classes_of_the_model(monkeypatch):
    """The data set's category 1 is class 3 of the model."""
    monkeypatch.setattr("evaluation.accept.LEAST_OF_A_CLASS", 50)
    mask, images = rectangle(10, 10, 30, 30), tuple(range(1, 61))
    contents = truth_of(*((image, 1, mask) for image in images), images=images, categories=(1,))
    masks = [mask if image % 3 else rectangle(10, 10, 30, 20) for image in images]
    results = [segm_result(image, 1, each, 0.5 + image / 200) for image, each in zip(images, masks, strict=True)]
    numbers = own_numbers(contents, results, 100, 1.0, Config(NUM_CLASSES=4), {1: 3, 2: 1}, True)
    assert numbers.accept.fit.own_classes == (3,)
    assert len(numbers.accept.fit.calibration) == 24


def test_the_model_gets_what_was_chosen(evaluated):
    _, model, result, _ = evaluated
    assert result.settings == {name: getattr(model.config, name) for name in result.settings}
    assert result.settings == {"SCORE_THRESHOLD": result.threshold, "ACCEPT_CALIBRATION": result.calibration}
    model.config.validate()
    assert np.reshape(result.calibration, (2, 2, 3))[1, 0, :2].sum() > 0, "sure masks are better"


class WideSpots(Spots):
    """Its box head draws boxes a third too large."""

    def find(self, image: np.ndarray) -> dict:
        result = super().find(image)
        sides = result["rois"][:, 2:] - result["rois"][:, :2]
        wider = np.concatenate([result["rois"][:, :2] - sides / 6, result["rois"][:, 2:] + sides / 6], axis=1)
        return {**result, "rois": wider.astype(np.float32)}


def test_boxes_round_the_masks_are_chosen_where_they_are_better(evaluated, tmp_path, no_page):
    dataset, _, usual, _ = evaluated
    model = WideSpots()
    result = evaluate_own(model, dataset, tmp_path / "wide", verbose=False)
    assert result.metrics["box AP of masks"] == usual.metrics["box AP"] > result.metrics["box AP"] + 0.1
    assert result.settings == {**usual.settings, "BOXES_OF_MASKS": True}
    assert model.config.BOXES_OF_MASKS
    words = f"box AP {usual.metrics['box AP']:.2f} instead of {result.metrics['box AP']:.2f}"
    assert [words in sentence for sentence in result.sentences].count(True) == 1
    assert usual.numbers.to_json()["boxes"]["of masks"] is False
    assert not any("instead of" in sentence for sentence in usual.sentences)


@pytest.mark.parametrize(("settings", "fit"), [({"BOXES_OF_MASKS": False}, True), ({}, False)])
def test_whose_boxes_is_chosen_only_where_nobody_has(settings, fit, evaluated, tmp_path, no_page):
    dataset, *_ = evaluated
    model = WideSpots(**settings)
    result = evaluate_own(model, dataset, tmp_path / "wide", fit=fit, verbose=False)
    assert "BOXES_OF_MASKS" not in result.settings
    assert model.config.BOXES_OF_MASKS is settings.get("BOXES_OF_MASKS")
    assert result.numbers.to_json()["boxes"]["of masks"] is None
    assert not any("instead of" in sentence for sentence in result.sentences)


def test_boxes_round_masks_have_their_class_score():
    results = [segm_result(1, 2, rectangle(10, 20, 30, 50), 0.9), segm_result(3, 1, rectangle(0, 0, 0, 0), 0.8)]
    scores = [entry["class_score"] for entry in results]
    assert boxes_round(results) == [
        {"image_id": 1, "category_id": 2, "bbox": [20, 10, 30, 20], "score": scores[0]},
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 0, 0], "score": scores[1]},
    ]
    assert boxes_round([]) == []


@pytest.mark.parametrize(("box_ap", "is_chosen"), [(0.989, True), (0.992, False), (1.0, False)])
def test_a_point_of_box_ap_decides_whose_boxes(box_ap, is_chosen):
    mask = rectangle(10, 10, 30, 30)
    results = [segm_result(1, 1, mask, 0.9)]
    numbers = own_numbers(truth_of((1, 1, mask)), results, 100, box_ap, Config(NUM_CLASSES=3), {1: 1, 2: 2}, True)
    assert numbers.box_ap_of_masks == pytest.approx(1)
    assert numbers.boxes_of_masks is is_chosen


def test_the_report_shows_it_all(evaluated):
    _, _, result, out = evaluated
    page = (out / "report.html").read_text()
    for name in ("found", "threshold", "accept", "errors", "use", "facts", "numbers"):
        assert f'<section id="{name}">' in page, name
        assert f'href="#{name}"' in page, name
    assert all(sentence in page for sentence in result.sentences)
    assert "python custom.py detect --dataset NEW_PICTURES --model out/model.pth" in page
    for kind, counts in result.numbers.error_counts.items():
        part = page.split(f'<div id="{kind.replace(" ", "-")}">')[1].split("</div>\n<div id")[0]
        assert f": {counts.errors}</h3>" in part
        assert part.split("</section>")[0].count("<figure>") == min(counts.errors, 12), kind
    assert "No picture:" not in page


def test_the_same_call_continues_and_gives_the_same(evaluated, capsys, no_page):
    dataset, _, result, out = evaluated
    again = evaluate_own(Spots(), dataset, out, leaks=[], model_name="out/model.pth")
    printed = capsys.readouterr().out
    assert "taken over from an earlier run: 40 of 40 images" in printed
    assert again.metrics == result.metrics
    assert again.sentences == result.sentences
    assert printed.rstrip().endswith(result.sentences[-1])
    assert re.search(rf"\nright +{result.numbers.quality.true_positives} ", printed)
    assert re.search(r"\naccept above, IoU 0\.7 +accepted +right\n0\.50 ", printed)


def test_what_the_model_has_is_taken_without_fit(evaluated, tmp_path, no_page):
    dataset, _, result, _ = evaluated
    other = Spots(SCORE_THRESHOLD=0.6, ACCEPT_CALIBRATION=result.calibration)
    stored = evaluate_own(other, dataset, tmp_path / "a", "test", fit=False, verbose=False)
    assert (stored.threshold, stored.settings) == (0.6, {})
    assert "The threshold is the one that is stored in the model." in stored.sentences
    assert stored.numbers.accept.source == "stored in the model"
    assert not any("cross-validated" in sentence for sentence in stored.sentences)
    assert other.config.SCORE_THRESHOLD == 0.6
    usual = evaluate_own(Spots(), dataset, tmp_path / "b", None, fit=False, verbose=False)
    assert usual.threshold == 0.5
    assert "Nobody has chosen a threshold for this model: it is the usual one." in usual.sentences
    assert usual.sentences[0].startswith("On 40 pictures (200 objects): ")


def test_what_was_stored_from_these_pictures_is_known(evaluated, tmp_path, no_page):
    """Figures on the pictures that a calibration was fitted to would be too good: they are cross-validated again."""
    dataset, _, result, _ = evaluated
    again = evaluate_own(Spots(**result.settings), dataset, tmp_path, fit=False, leaks=[], verbose=False)
    assert again.sentences == result.sentences
    assert (again.numbers.accept.source, again.settings) == ("cross-validated", {})
    half = list(range(20))
    other = evaluate_own(Spots(**result.settings), dataset, tmp_path / "half", fit=False, image_ids=half, verbose=False)
    assert other.numbers.accept.source == "stored in the model"


def test_leaks_are_said(evaluated, tmp_path, no_page):
    dataset, *_ = evaluated
    leaks = [("val/val1.png", "train/<b>.png"), ("a.png", "b.png")]
    result = evaluate_own(Spots(), dataset, tmp_path, leaks=leaks, verbose=False)
    assert result.sentences[-1] == (
        "These figures are too good: a pair of pictures in two splits shows the same, such as val/val1.png and "
        "train/<b>.png."
    )


############################################################
#  Little, nothing, other classes
############################################################


def test_without_a_head_the_class_score_decides(tmp_path, no_page):
    dataset = dataset_of(write_set(tmp_path / "set", {"val": 30}))
    result = evaluate_own(Spots(head=False), dataset, tmp_path / "out", verbose=False)
    assert result.threshold >= 0.25
    assert np.reshape(result.calibration, (-1, 3))[:, 1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("least", "squares", "words"),
    [
        (255, SQUARES, "It finds nothing at the threshold 0.50."),
        (140, (), "On 3 pictures of val that it has not learned from (0 objects) there is no AP"),
        (0, (), "where there is none."),
    ],
    ids=["nothing found", "no objects", "inventions alone"],
)
def test_nothing_to_count(tmp_path, least, squares, words):
    write_set(tmp_path / "set", {"train": 1})
    write_set(tmp_path / "set", {"val": 3}, squares=squares)
    dataset = dataset_of(tmp_path / "set")
    model = Spots(least=least)
    result = evaluate_own(model, dataset, tmp_path / "out", verbose=True)
    assert any(words in sentence for sentence in result.sentences), result.sentences
    assert any("too few, 50 are needed" in sentence for sentence in result.sentences)
    assert (result.calibration, result.settings, model.config.SCORE_THRESHOLD) == (None, {}, None)
    assert "was not calibrated: " in (tmp_path / "out" / "report.html").read_text()
    json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_crowds_alone_are_no_objects(tmp_path, no_page):
    folder = write_set(tmp_path / "set", {"val": 3}, squares=SQUARES[:1])
    path = folder / "annotations" / "instances_val.json"
    value = json.loads(path.read_text())
    for entry in value["annotations"]:
        entry["iscrowd"] = 1
    path.write_text(json.dumps(value))
    records = open_records(folder, None, Options(crowds="ignore"))
    check(records, Options(crowds="ignore"))
    result = evaluate_own(Spots(), RecordDataset(records, "val"), tmp_path / "out", verbose=False)
    assert result.numbers.quality[:3] == (0, 0, 0), "what lies in a crowd is neither right nor wrong"
    assert result.metrics["F1 at IoU 0.5"] == -1


def test_classes_are_matched_by_name(tmp_path, no_page):
    """The model numbers its classes the other way round, and has one more."""
    dataset = dataset_of(write_set(tmp_path / "set", {"val": 40}, names=("ant", "bee")))
    result = evaluate_own(Spots(names=("cow", "bee", "ant")), dataset, tmp_path / "out", verbose=True)
    assert [row["name"] for row in result.evaluation.classes] == ["ant", "bee"]
    found = result.numbers.error_counts["wrong class"]
    assert found.errors > 0
    assert len(result.calibration) == 4 * 6


def test_names_that_break_pages_are_escaped(tmp_path):
    folder = write_set(tmp_path / "set", {"val": 2}, names=(NASTY[0], NASTY[3]))
    (folder / "val" / "val1.png").rename(folder / "val" / "<i>1.png")
    path = folder / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace("val1.png", "<i>1.png"))
    model, leaks = Spots(names=(NASTY[3], NASTY[0])), [("val/val2.png", "train/<b>.png")]
    result = evaluate_own(
        model, dataset_of(folder), tmp_path / "out", fit=False, leaks=leaks, model_name='<u>"; rm -r ~', verbose=False
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert not any(text in page for text in (NASTY[0], NASTY[3], "<i>1.png", "<u>", "<b>.png"))
    assert "&lt;i&gt;1.png" in page
    assert '<p class="warning">These figures are too good' in page
    assert "train/&lt;b&gt;.png" in page
    assert result.numbers.error_counts["wrong class"].errors > 0
    assert "&lt;script&gt;alert(1)&lt;/script&gt; taken for &#39;&gt;&lt;img src=x&gt;" in page
    assert "<h3>By class</h3>" in page
    assert "was not calibrated for this model" in page
    assert "--model &#39;&lt;u&gt;&#34;; rm -r ~&#39;" in page, "the shell takes it as one word"


############################################################
#  Words
############################################################


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "none of the"), (0.004, "1 of 100"), (0.049, "5 of 100"), (0.05, "1 of 10"), (0.25, "3 of 10"),
        (0.849, "8 of 10"), (0.85, "9 of 10"), (0.9499, "9 of 10"), (0.95, "95 of 100"), (0.9999, "99 of 100"),
        (1.0, "all"),
    ],
)  # fmt: skip
def test_of_ten(share, words):
    assert of_ten(share) == words


class Missed:
    """What small_misses reads. missed, found: sides of objects."""

    def __init__(self, missed, found) -> None:
        objects = [{"area": side * side} for side in missed]
        self.errors = [Error("miss", 1, [], [entry], 0, [entry]) for entry in objects]
        self.object_areas = np.square([*missed, *found]).astype(float)


@pytest.mark.parametrize(
    ("missed", "found", "expected"),
    [
        ([5] * 8 + [40], [40] * 20, (8, 8)),
        ([5] * 8, [5] * 2 + [20] * 10, (8, 8)),
        ([5] * 4 + [40] * 4, [5] * 10 + [40] * 10, None),  # small ones are missed as often as others
        ([5] * 2 + [40] * 8, [40] * 20, None),  # few of the missed ones are small
        ([5] * 5, [5] * 5, None),  # all are of one size
        ([], [5, 40], None),
    ],
)
def test_small_misses(missed, found, expected):
    assert small_misses(Missed(missed, found)) == expected


def test_a_whole_data_set_has_no_other_split():
    assert leak_sentence([], None) == ""


############################################################
#  What is stored
############################################################

SETTINGS = {"SCORE_THRESHOLD": 0.42, "ACCEPT_CALIBRATION": [0.5] * 24}


def test_settings_are_stored_and_nothing_else_changes(tmp_path):
    model = tiny_model(NUM_CLASSES=4)
    model.save(tmp_path / "model.pth")
    contents = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save({**contents, "training": {"epoch": 3}}, tmp_path / "model.pth")
    assert store_settings(tmp_path / "model.pth", SETTINGS) == tmp_path / "model.pth"
    stored = read_checkpoint(tmp_path / "model.pth")
    assert stored["config"] == {**contents["config"], **SETTINGS}
    assert stored["training"] == {"epoch": 3}, "a training continues"
    assert all(torch.equal(stored["model"][name], tensor) for name, tensor in contents["model"].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth"]
    before = (tmp_path / "model.pth").read_bytes()
    store_settings(tmp_path / "model.pth", {"SCORE_THRESHOLD": 0.1}, tmp_path / "copy.pth")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert read_checkpoint(tmp_path / "copy.pth")["config"]["SCORE_THRESHOLD"] == 0.1


def test_a_halved_model_stays_halved(tmp_path):
    write_checkpoint(tmp_path / "model.pth", halved(tiny_model(NUM_CLASSES=4).to_checkpoint()))
    before = read_checkpoint(tmp_path / "model.pth")["model"]
    store_settings(tmp_path / "model.pth", SETTINGS)
    after = read_checkpoint(tmp_path / "model.pth")["model"]
    assert {tensor.dtype for tensor in before.values()} == {torch.float16, torch.float32}
    assert all(tensor.dtype == before[name].dtype and tensor.equal(before[name]) for name, tensor in after.items())


def test_a_disk_that_refuses_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    tiny_model(NUM_CLASSES=4).save(tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weights.checkpoint.torch.save", refuse)
    with pytest.raises(OSError, match=r"model\.pth could not be written"):
        store_settings(tmp_path / "model.pth", SETTINGS)
    assert (tmp_path / "model.pth").read_bytes() == before


############################################################
#  Which model, which pictures
############################################################


def subset_of(folder: Path, wanted: str | None = None, path: Path | None = None):
    records = open_records(folder)
    return choose_pictures(records, check(records), wanted, path)


@pytest.mark.parametrize(
    ("splits", "wanted", "name", "count", "note"),
    [
        ({"train": 2, "val": 3, "test": 4}, None, "val", 3, "evaluates val"),
        ({"train": 2, "test": 4}, None, "test", 4, "evaluates test: the data set has no pictures of val"),
        ({"train": 2}, None, "all", 2, "evaluates all: the data set has no pictures of val and none of test"),
        ({"train": 2, "val": 3, "test": 4}, "test", "test", 4, None),
        ({"train": 2, "val": 3}, "all", "all", 5, None),
    ],
)
def test_the_pictures_of_a_split(tmp_path, splits, wanted, name, count, note):
    subset = subset_of(write_set(tmp_path / "set", splits), wanted)
    assert (subset.name, subset.dataset.num_images, subset.notes) == (name, count, [note] if note else [])
    assert subset.split == (None if name == "all" else name)


def test_a_split_that_is_not_there(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 2, "val": 1})
    with pytest.raises(ValueError, match=r"--subset test: .* it has --subset val, --subset train, --subset all"):
        subset_of(folder, "test")


def test_the_split_of_the_training_counts(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 4})
    path = tmp_path / "split.json"
    write_split(
        Split(["train/train1.png", "train/train2.png"], ["train/train3.png"], {"train/train4.png": "why"}, []), path
    )
    subset = subset_of(folder, None, path)
    assert (subset.name, [info["id"] for info in subset.dataset.image_info]) == ("val", ["train/train3.png"])
    assert subset.notes == [f"train and val are those of {path}", "evaluates val"]
    assert subset_of(folder, "all", path).dataset.num_images == 4
    write_split(Split(["other/1.png", "other/2.png"], ["other/3.png"], {}, []), path)
    subset = subset_of(folder, None, path)
    assert (subset.name, subset.notes[0]) == (
        "all", f"{path} divides another data set: the splits of this one count",
    )  # fmt: skip


def test_pictures_of_test_that_a_training_used_are_no_test(tmp_path):
    folder = write_set(tmp_path / "set", {"test": 4})
    path = tmp_path / "split.json"
    write_split(Split(["test/test1.png"], ["test/test3.png"], {}, []), path)
    subset = subset_of(folder, "test", path)
    assert [info["id"] for info in subset.dataset.image_info] == ["test/test2.png", "test/test4.png"]
    assert subset.notes == [f"2 of the 4 pictures of test are left out: the training used them ({path})"]
    write_split(Split(["test/test1.png", "test/test2.png"], ["test/test3.png", "test/test4.png"], {}, []), path)
    with pytest.raises(ValueError, match=r"--subset test: the training used 4 of the 4 pictures .* --subset val has"):
        subset_of(folder, "test", path)
    write_split(Split([f"test/test{i}.png" for i in range(1, 5)], [], {}, []), path)
    with pytest.raises(ValueError, match=r"used 4 of the 4 pictures .* pictures; label others for that"):
        subset_of(folder, "test", path)
    write_split(Split(["train/a.png", "train/b.png", "test/test1.png"], [], {}, []), path)
    assert "divides another data set" in subset_of(folder, "test", path).notes[0]


def test_pictures_of_another_split_that_look_alike(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 2, "val": 2})
    for i in (1, 2):
        shutil.copyfile(folder / "train" / "train1.png", folder / "val" / f"val{i}.png")
    assert subset_of(folder).leaks == [("train/train1.png", f"val/val{i}.png") for i in (1, 2)]
    assert subset_of(folder, "all").leaks == []


def test_split_json_lies_beside_the_model_or_above_its_logs(tmp_path):
    logs = tmp_path / "logs" / "own20261128T1200"
    logs.mkdir(parents=True)
    assert split_file(tmp_path / "model.pth") is None
    (tmp_path / "split.json").touch()
    assert split_file(tmp_path / "model.pth") == tmp_path / "split.json"
    assert split_file(logs / "mask_rcnn_own_0001.pth") == tmp_path / "split.json"
    assert split_file("nuclei") is None


def test_last_is_the_model_of_the_data_sets_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither output/set/model\.pth nor .*custom\.py train --dataset set"):
        find_model("last", "set")
    logs = tmp_path / "output" / "set" / "logs" / "own20261128T1200"
    logs.mkdir(parents=True)
    (logs / "mask_rcnn_own_0002.pth").touch()
    assert Path(find_model(None, "set")).resolve() == logs / "mask_rcnn_own_0002.pth"
    (tmp_path / "output" / "set" / "model.pth").touch()
    assert find_model("last", "set") == Path("output/set/model.pth")
    assert find_model("other.pth", "set") == "other.pth"
    with pytest.raises(ValueError, match="finds no objects"):
        find_model("imagenet", "set")


############################################################
#  The command
############################################################


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a data set with its model, output/set/model.pth, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", {"train": 2, "val": 3})
    (tmp_path / "output" / "set").mkdir(parents=True)
    names = {"NUM_CLASSES": 2, "CLASS_NAMES": ("BG", "cell"), "CATEGORY_IDS": (0, 1)}
    tiny_model(
        IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64, DETECTION_MIN_CONFIDENCE=0.5, **names
    ).save("output/set/model.pth")
    return tmp_path / "output" / "set"


def evaluate(*words: str) -> int:
    return custom.main(["evaluate", "--dataset", "set", "--device", "cpu", *words])


def test_the_bare_command(trained, capsys, no_page):
    assert evaluate() == 0
    printed = capsys.readouterr().out
    assert "evaluates output/set/model.pth\n" in printed
    assert "On 3 pictures of val that it has not learned from (15 objects): mask AP " in printed
    (folder,) = trained.glob("evaluation-val-*")
    assert f"the report is {folder.relative_to(Path.cwd())}/report.html" in printed
    assert {"report.html", "metrics.json", "classes.csv", "check"} <= {path.name for path in folder.iterdir()}
    facts = json.loads((folder / "metrics.json").read_text())["facts"]
    assert facts["data"] == "val in set"
    assert facts["command"] == "python custom.py evaluate --dataset set --device cpu"
    assert facts["least class score"] == "0.05"
    assert "pad64" in facts["input"], "whole pictures, though training takes crops"
    assert evaluate("--limit", "2") == 0
    assert "On 2 pictures" in capsys.readouterr().out
    assert len(list(trained.glob("evaluation-val-*"))) == 2


def test_pictures_that_the_training_left_out(trained, capsys, no_page):
    """split.json knows no test; what was checked has all pictures, and the check's page shows them."""
    shutil.rmtree("set")
    write_set(Path("set"), {"train": 2, "test": 4, "val": 3})
    left_out = {f"test/test{i}.png": "of the data set's own test" for i in range(1, 5)}
    train, val = ([f"{name}/{name}{i}.png" for i in range(1, count + 1)] for name, count in (("train", 2), ("val", 3)))
    write_split(Split(train, val, left_out, []), trained / "split.json")
    assert evaluate("--output", "out") == 0
    printed = capsys.readouterr().out
    assert f"train and val are those of {trained}" in printed
    assert "On 3 pictures of val" in printed
    page = Path("out/check/check.html").read_text()
    assert all(f"{name}1.png" in page for name in ("train", "test", "val"))


def test_store_writes_into_the_model(trained, capsys, monkeypatch, no_page):
    model = trained / "model.pth"

    def spots(arguments: argparse.Namespace, checkpoint, device):
        return Spots()

    monkeypatch.setattr(own_evaluation, "open_detector", spots)
    assert evaluate("--output", "out") == 0
    printed = capsys.readouterr().out
    assert re.search(r"; --store writes the threshold \d\.\d+ into output/set/model\.pth\n", printed)
    assert read_checkpoint(model)["config"]["SCORE_THRESHOLD"] is None
    assert evaluate("--output", "out", "--store") == 0
    assert re.search(r"\nthe threshold \d\.\d+ is stored in output/set/model\.pth\n", capsys.readouterr().out)
    stored = read_checkpoint(model)["config"]["SCORE_THRESHOLD"]
    assert 0 < stored < 1
    assert evaluate("--output", "out", "--store", "copy.pth") == 0
    assert read_checkpoint("copy.pth")["config"]["SCORE_THRESHOLD"] == stored


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "--subset", "train"], "--store with the pictures of train: the model has learned from them"),
        (["--store", "--model", "shapes"], "name a file: --store my_model.pth"),
        (["--store", "nowhere/copy.pth"], "--store nowhere/copy.pth: there is no such folder"),
        (["--subset", "test"], "--subset test: --dataset"),
        (["--model", "absent.pth"], "absent.pth"),
    ],
)
def test_mistakes_are_said_before_the_work(trained, capsys, words, message):
    assert evaluate(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(trained.glob("evaluation-*"))


def test_faults_of_the_data_are_counted(trained, capsys, no_page):
    path = Path("set/annotations/instances_val.json")
    value = json.loads(path.read_text())
    value["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
    path.write_text(json.dumps(value))
    assert evaluate("--output", "out") == 0
    printed = capsys.readouterr().out
    assert re.search(r"\n2 errors( and \d+ warnings?)? in the data: out/check/check\.html lists all\n", printed)
    assert "(14 objects)" in printed
    assert (Path("out") / "check" / "check.html").is_file()
    assert "faults" in json.loads(Path("out/metrics.json").read_text())["facts"]


def test_more_objects_than_the_model_can_find(trained, capsys, no_page):
    assert evaluate("--set", "DETECTION_MAX_INSTANCES=3") == 0
    assert "a picture has 5 objects, and the model finds at most 3: --set DETECTION_MAX_INSTANCES=7" in (
        capsys.readouterr().out
    )


def test_labels_without_a_class_are_of_the_models_only_class(tmp_path, capsys, monkeypatch, no_page):
    """Label images say no class, and a model of nuclei knows one only."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    labels = np.zeros((SIDE, SIDE), np.uint16)
    for label, (y, x, side) in enumerate(SQUARES[:3], start=1):
        labels[y : y + side, x : x + side] = label
    for number in range(2):
        Image.fromarray((150 + number) * (labels > 0).astype(np.uint8)).save(f"set/images/{number}.png")
        Image.fromarray(labels).save(f"set/masks/{number}.png")
    monkeypatch.setattr(own_evaluation, "open_detector", lambda *_: Spots())
    assert evaluate("--model", "spots.pth") == 0
    printed = capsys.readouterr().out
    assert "the labels say no class: all objects count as cell, the only class of the model\n" in printed
    assert "On 2 pictures (6 objects): mask AP " in printed
    monkeypatch.setattr(own_evaluation, "open_detector", lambda *_: Spots(("cell", "dog")))
    assert evaluate("--model", "spots.pth") == 2
    assert "the model has 'cell', 'dog', and the data set has 'object'" in capsys.readouterr().err


def test_a_checkpoint_may_lie_in_the_root_folder():
    assert split_file("/nowhere.pth") is None
    assert split_file(Path("/nowhere") / "model.pth") is None

"""The report of an evaluation: its words are true, its numbers those of the table, and nothing breaks it."""

import csv
import dataclasses
import html
import io
import itertools
import json
import re
from pathlib import Path

import markupsafe
import numpy as np
import pytest
from helpers import NASTY, nasty_evaluation, one_example
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_evaluation import (
    HEIGHT,
    MEASURES,
    WIDTH,
    disc,
    empty_evaluation,
    load_toy_image,
    toy_evaluation,
)

import runtime
import utils
import visualize
from evaluation import charts, report
from evaluation.calibration import calibrate
from evaluation.metrics import Evaluation
from evaluation.names import CLASS_COLUMNS, ROWS
from evaluation.page import GALLERIES, render
from evaluation.report import write_report
from evaluation.words import answer, explanations, images_evaluated, points

FILES = ["classes.csv", "metrics.csv", "metrics.json", "report.html"]
# After render, so that the tests look at what a reader sees: tags go, entities become characters
TAG = re.compile(r"<[^>]*>")


def words(page: str) -> str:
    """The text of a page or a part of it, a blank for each tag."""
    body = page.split("</style>")[-1].split("<script>")[0]
    return " ".join(html.unescape(TAG.sub(" ", body)).split())


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def section_of(evaluation: Evaluation, name: str, load_image=load_toy_image) -> str:
    """A section of an evaluation's page."""
    return section(render(evaluation, load_image), name)


def table_rows(page: str, kind: str) -> list[list[str]]:
    """The texts of the rows of the first table of these CSS classes."""
    table = page.split(f'<table class="{kind}">')[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    return [[words(cell) for cell in row] for row in rows]


def with_metrics(evaluation: Evaluation, **changes: float) -> Evaluation:
    """changes: AP measures of masks before and after, or plain metrics, _ for a blank."""
    changed = {name.replace("_", " "): value for name, value in changes.items()}
    return dataclasses.replace(evaluation, metrics=evaluation.metrics | changed)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report of 80 classes: the evaluation, the folder."""
    evaluation = toy_evaluation()
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert write_report(evaluation, folder, load_toy_image) == folder / "report.html"
    return evaluation, folder


############################################################
#  Files
############################################################


def test_writes_four_files_and_nothing_else(full):
    assert sorted(path.name for path in full[1].iterdir()) == FILES


def test_page_is_small_and_complete(full):
    page = (full[1] / "report.html").read_text("utf-8")
    assert len(page) < 5e6
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "<title>Evaluation of logs/coco/checkpoint_0012.pth, ms_rcnn_r50 on coco val2017</title>" in page
    links = re.findall(r'href="#(\w+)"', page)
    assert links == ["facts", "numbers", "classes", "curves", "confusion", "calibration", "examples", "timing"]
    assert re.findall(r'<section id="(\w+)"', page) == links
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 3 + 1 + 4 + 36
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) == {"data:"} | {f"#{name}"[:5] for name in links}
    assert not re.search(r"url\(|@import|<link|<iframe", page)


def test_one_report_is_like_another(full, tmp_path):
    write_report(toy_evaluation(), tmp_path, load_toy_image)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (full[1] / name).read_bytes(), name


def test_json_holds_everything_at_full_precision(full):
    evaluation, folder = full
    read = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    parts = ["metrics", "classes", "curves", "confusion", "calibration", "facts", "seconds", "dataset_images"]
    assert list(read) == parts
    assert read["metrics"] == evaluation.metrics
    assert read["classes"] == evaluation.classes
    assert read["curves"].keys() == evaluation.curves.keys()
    assert all(read["curves"][name] == curve.tolist() for name, curve in evaluation.curves.items())
    assert read["confusion"] == {
        "rule": evaluation.confusion_rule,
        "class_names": evaluation.class_names,
        "counts": evaluation.confusion.tolist(),
    }
    assert read["calibration"] == {
        "predicted IoU": calibrate(evaluation.mask_ious, evaluation.true_ious)._asdict(),
        "class score": calibrate(evaluation.class_scores, evaluation.true_ious)._asdict(),
    }
    assert read["facts"] == evaluation.facts
    assert read["seconds"] == evaluation.seconds
    assert read["dataset_images"] == evaluation.dataset_images == 5000


def test_csv_of_the_table(full):
    evaluation, folder = full
    rows = list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))
    assert [row["ranking"] for row in rows] == [row.title for row in ROWS]
    assert list(rows[0]) == ["ranking", *MEASURES, "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    metrics = evaluation.metrics
    for name in MEASURES:
        gain = "re-scoring gain" if name == "AP" else f"re-scoring gain {name}"
        of_masks = [f"mask {name} (class score)", f"mask {name}", gain, f"mask {name} (true IoU)"]
        assert [float(row[name]) for row in rows] == [metrics[key] for key in [f"box {name}", *of_masks]]
    assert [row["AR10"] for row in rows] == ["0.475", "", "0.475", "", ""], "recall of boxes and of B"


def test_csv_of_the_classes(full):
    evaluation, folder = full
    rows = list(csv.DictReader(io.StringIO((folder / "classes.csv").read_text())))
    assert len(rows) == 80
    for row, truth in zip(rows, evaluation.classes, strict=True):
        assert row.pop("name") == truth["name"]
        assert {name: float(value) for name, value in row.items()} == {k: v for k, v in truth.items() if k != "name"}


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    evaluation = empty_evaluation(2, objects=7)
    evaluation.metrics = {name: np.float64(value) for name, value in evaluation.metrics.items()}
    evaluation.classes = [row | {"objects": np.int64(7), "box AP": np.float32(0.5)} for row in evaluation.classes]
    write_report(evaluation, tmp_path, load_toy_image)
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["classes"][0]["objects"] == 7
    assert read["classes"][0]["box AP"] == 0.5
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "np.float" not in page
    assert 'data-value="0.5"' in page


@pytest.mark.parametrize("broken", ["render", "to_json", "class_rows", "metrics_rows"])
def test_an_error_leaves_the_former_report(broken, monkeypatch, tmp_path):
    write_report(empty_evaluation(3), tmp_path, load_toy_image)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(empty_evaluation(4), tmp_path, load_toy_image)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_each_file_is_replaced_whole(monkeypatch, tmp_path):
    """A full disk at the second file: what was there stays whole, and no part is left."""
    write_report(empty_evaluation(3), tmp_path, load_toy_image)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, calls = runtime.write_atomically, itertools.count()

    def fill_up(path, write_content):
        def cut_off(file):
            file.write(b"{")
            raise OSError("no space left")

        write(path, cut_off if next(calls) == 1 else write_content)

    monkeypatch.setattr("runtime.write_atomically", fill_up)
    with pytest.raises(OSError, match="no space left"):
        write_report(empty_evaluation(4), tmp_path, load_toy_image)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in FILES if after[name] != before[name]] == ["metrics.json"]


def test_names_that_are_no_text(tmp_path):
    """A file name of other bytes than UTF-8 has lone surrogates, which no file can hold."""
    evaluation = empty_evaluation(1)
    evaluation.facts["data"] = "caf\udce9"
    evaluation.classes[0]["name"] = "\udcff"
    write_report(evaluation, tmp_path, load_toy_image)
    assert "on caf?</title>" in (tmp_path / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["facts"]["data"] == "caf\udce9"


############################################################
#  The answer, and the table
############################################################


def answer_of(before: float, after: float, best: float = 0.5, **changes) -> str:
    values = {"mask AP (class score)": before, "mask AP": after, "mask AP (true IoU)": best}
    evaluation = toy_evaluation(2, 5)
    return answer(with_metrics(evaluation, **values, re_scoring_gain=after - before, **changes))


def test_answer_when_it_gained():
    assert answer_of(0.35, 0.365) == (
        "Re-scoring raised mask AP from 35.0 to 36.5 on 5,000 images: +1.5 points (AP50 -0.2, AP75 +1.6). That is 10% "
        "of what a perfect prediction of the IoU would bring."
    )
    assert "perfect" not in answer_of(0.35, 0.365, best=0.35), "an upper bound that bounds nothing"


def test_answer_when_it_lost_or_changed_nothing():
    lost = answer_of(0.35, 0.3429, images=1)
    assert lost == "Re-scoring lowered mask AP from 35.0 to 34.3 on 1 image: -0.7 points (AP50 -0.2, AP75 +1.6)."
    same = (
        "Re-scoring changed next to nothing: mask AP is 35.0 either way on 5,000 images (AP50 -0.2, AP75 +1.6 points)."
    )
    assert [answer_of(0.35, after) for after in (0.35, 0.3504, 0.3496)] == [same] * 3
    assert "raised" in answer_of(0.35, 0.3506)


def test_answer_without_a_head_detections_or_objects():
    headless = toy_evaluation(2, 5, head=False)
    assert answer(headless).startswith("Nothing was re-scored: the model has no MaskIoU head")
    assert "Mask AP is 35.1 on 5,000 images." in answer(headless)
    nothing = empty_evaluation(objects=4)
    nothing.mask_ious = None  # without detections nobody can tell whether there is a head
    found_nothing = "The model found nothing in 3 images with 4 objects: there was nothing to re-score."
    assert answer(nothing) == found_nothing
    no_objects = "There is no object in 3 images, so that there is no AP; detections: {}."
    assert answer(empty_evaluation()) == no_objects.format(0)
    assert answer(empty_evaluation(detections=1200)) == no_objects.format("1,200")


def test_table_on_the_page(full):
    page = (full[1] / "report.html").read_text("utf-8")
    assert table_rows(page, "numbers") == [
        ["average precision", *MEASURES],
        ["boxes by class score", "37.4", "58.7", "39.5", "17.8", "40.2", "54.7"],
        ["masks by class score (A)", "35.1", "56.3", "37.2", "15.5", "37.9", "52.4"],
        ["masks by mask score (B)", "36.2", "56.1", "38.7", "15.5", "37.9", "54.8"],
        ["re-scoring gain (B - A)", "+1.1", "-0.2", "+1.6", "0.0", "0.0", "+2.4"],
        ["upper bound (true IoU)", "42.6", "63.8", "44.6", "23.0", "45.3", "59.9"],
    ]
    recalls = page.split('<table class="numbers">')[2]
    assert table_rows('<table class="numbers">' + recalls, "numbers") == [
        ["average recall", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"],
        ["boxes", "31.0", "47.5", "49.3", "29.0", "52.0", "64.0"],
        ["masks by mask score", "31.0", "47.5", "49.3", "29.0", "52.0", "64.0"],
    ]
    text = words(section(page, "numbers"))
    assert (
        "5,000 images, 36,335 objects, 4,000 detections; the best 100 of a class in an image count (max_dets)" in text
    )
    assert "standard" not in text
    assert "published" not in text


def test_sizes_without_an_object():
    """-1 and a gain of 0: a dash on the page, nothing in CSV. A gain of exactly -1 is a gain."""
    evaluation = toy_evaluation(1, 5)
    for name in ("box APs", "mask APs", "mask APs (class score)", "mask APs (true IoU)", "mask ARs", "box ARs"):
        evaluation.metrics[name] = -1.0
    evaluation.metrics |= {"mask AP50": 0.0, "mask AP50 (class score)": 1.0, "re-scoring gain AP50": -1.0}
    rows = table_rows(section_of(evaluation, "numbers"), "numbers")
    assert [row[4] for row in rows] == ["APs", "-", "-", "-", "-", "-"]
    assert rows[4][2] == "-100.0"
    written = report.metrics_rows(evaluation.metrics)
    assert [row[4] for row in written] == ["APs", None, None, None, None, None]
    assert [row[written[0].index("ARs")] for row in written[1:]] == [None] * 5
    assert written[4][2] == -1.0


def test_says_when_a_number_is_not_the_standard_one():
    evaluation = toy_evaluation(1, 5)
    evaluation.dataset_images = 9000
    evaluation.facts["images"] = "whatever"
    evaluation.metrics = {name.replace("AR100", "AR400"): value for name, value in evaluation.metrics.items()}
    evaluation.metrics["max_dets"] = 400
    text = words(section_of(evaluation, "numbers"))
    subset = "5000 of 9000: a subset, so these are no standard numbers"
    assert f"Not to be compared with published numbers: {subset}." in text
    assert "the best 400 of a class in an image count (max_dets); the standard is 100" in text
    assert "AR1 AR10 AR400" in text
    assert "AR1, AR10 ... AR400" in text


def test_a_subset_is_a_fact_and_no_word():
    evaluation = toy_evaluation(1, 5)
    assert not evaluation.is_subset
    evaluation.facts["images"] = "a subset, says a sentence"
    assert "Not to be compared" not in render(evaluation, load_toy_image)
    assert dataclasses.replace(evaluation, dataset_images=5001).is_subset
    assert not dataclasses.replace(evaluation, dataset_images=None).is_subset
    assert images_evaluated(5, 5) == "all 5"
    assert images_evaluated(2, 5) == "2 of 5: a subset, so these are no standard numbers"
    assert images_evaluated(2, None) == "2"


def test_every_number_is_explained(full):
    evaluation, folder = full
    sentences = explanations(evaluation.metrics)
    terms = " ".join(sentences).replace(",", " ").split()
    assert {*MEASURES, "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(terms)
    assert {row.title for row in ROWS} <= sentences.keys()
    text = words((folder / "report.html").read_text("utf-8"))
    for term, sentence in sentences.items():
        assert f"{term} {sentence}" in text


@pytest.mark.parametrize(("value", "text"), [(0.3812, "38.1"), (1, "100.0"), (0, "0.0"), (None, "-")])
def test_points(value, text):
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.009, "+0.9"), (-0.009, "-0.9"), (-0.0004, "0.0"), (0.0004, "0.0"), (-0.0, "0.0"), (None, "-")],
)
def test_signed_points(value, text):
    assert points(value, signed=True) == text


############################################################
#  Classes, confusion
############################################################


def test_classes_on_the_page(full):
    evaluation, folder = full
    page = (folder / "report.html").read_text("utf-8")
    rows = table_rows(page, "numbers classes sortable")
    assert rows[0] == ["class", "objects", *CLASS_COLUMNS]
    ordered = sorted(evaluation.classes, key=lambda row: -row["mask AP"])
    assert [row[0] for row in rows[1:]] == [row["name"] for row in ordered]
    best = ordered[0]
    columns = ("box AP", "mask AP (class score)", "mask AP", "re-scoring gain", "mask AP (true IoU)")
    numbers = [100 * best[name] for name in (*columns, "mask AP50", "mask AP75")]
    assert rows[1][1:] == [
        f"{best['objects']:,}",
        *(f"{x:+.1f}" if i == 3 else f"{x:.1f}" for i, x in enumerate(numbers)),
    ]
    gains = [row["re-scoring gain"] for row in evaluation.classes]
    up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    summary = f"80 classes, 80 with objects. Re-scoring raised mask AP in {up}, lowered it in {down} and left it"
    assert f"{summary} as it was in {80 - up - down}." in words(section(page, "classes"))


def test_bars_are_as_long_as_their_numbers():
    evaluation = toy_evaluation(3, 5)
    for row, gain in zip(evaluation.classes, (0.02, -0.01, 0.0), strict=True):
        row |= {"box AP": 0.25, "mask AP (class score)": 0.5, "mask AP": 0.5 + gain, "re-scoring gain": gain}
    page = section_of(evaluation, "classes")
    assert re.findall(r'"boxes" style="width:([\d.]+)%', page) == ["25.0"] * 3
    assert re.findall(r'"after" style="width:([\d.]+)%', page) == ["52.0", "50.0", "49.0"]
    assert re.findall(r'"(?:up|down)" style="[^"]*"', page) == [
        '"up" style="left:50%;width:50.0%"',
        '"up" style="left:50%;width:0.0%"',
        '"down" style="left:25.0%;width:25.0%"',
    ]


def test_class_without_objects_is_last_and_has_no_number():
    evaluation = toy_evaluation(3, 5)
    absent = evaluation.classes[0]
    absent |= {name: -1.0 for name in absent if "AP" in name} | {"re-scoring gain": 0.0, "objects": 0}
    page = section_of(evaluation, "classes")
    rows = table_rows(page, "numbers classes sortable")
    assert rows[-1] == [absent["name"], "0"] + ["-"] * 7
    assert "3 classes, 2 with objects." in words(page)
    assert report.class_rows(evaluation.classes)[1] == [absent["name"], 1, 0] + [None] * 7


def test_small_confusion_is_a_table():
    evaluation = toy_evaluation(2, 5)
    evaluation.confusion = np.array([[0, 3, 1], [2, 6, 0], [1, 1, 6]])
    page = section_of(evaluation, "confusion")
    assert table_rows(page, "numbers confusion") == [
        ["", "missed", "found: person", "found: bicycle"],
        ["no object there", "", "3 75%", "1 25%"],
        ["true: person", "2 25%", "6 75%", "0"],
        ["true: bicycle", "1 12%", "1 12%", "6 75%"],
    ]
    text = words(page)
    assert evaluation.confusion_rule in text
    assert (
        "Of 16 objects, 75.0% were found as what they are, 6.2% were taken for another class, 18.8% were missed."
        in text
    )
    assert "4 detections where there is no object." in text
    assert "<img" not in page


def test_large_confusion_names_its_largest_cells():
    evaluation = toy_evaluation(20, 5)
    evaluation.confusion = np.zeros((21, 21), np.int64)
    evaluation.confusion[[5, 5, 8, 5, 0], [5, 7, 2, 0, 9]] = [10, 6, 8, 4, 1234]
    page = section_of(evaluation, "confusion")
    tables = [table_rows(part, "numbers") for part in page.split("<h3>")[1:]]
    names = evaluation.class_names
    assert tables[0][1:] == [[f"{names[8]} → {names[2]}", "8", "100%"], [f"{names[5]} → {names[7]}", "6", "30%"]]
    assert tables[1][1:] == [[names[5], "4", "20%"]]
    assert tables[2][1:] == [[names[9], "1,234", "100%"]]
    assert page.count("<img") == 1


def test_row_shares():
    shares = charts.row_shares(np.array([[0, 3, 1], [0, 0, 0], [1, 1, 6]]))
    assert shares.tolist() == [[0, 0.75, 0.25], [0, 0, 0], [0.125, 0.125, 0.75]]


############################################################
#  Calibration
############################################################


def test_calibration_on_the_page(full):
    evaluation, folder = full
    page = section((folder / "report.html").read_text("utf-8"), "calibration")
    text = words(page)
    for label, correlation in (("predicted IoU", "0.732"), ("class score", "0.412")):
        error = calibrate(evaluation.iou_scores[label], evaluation.true_ious).expected_error
        assert f"Correlation of {label} and true IoU: {correlation}. Expected calibration error: {error:.3f}" in text
    bins = calibrate(evaluation.mask_ious, evaluation.true_ious)
    rows = table_rows(page, "numbers")
    assert rows[0] == ["predicted IoU", "detections", "mean predicted", "mean true IoU"]
    last = [f"{bins.counts[-1]:,}", f"{bins.mean_predicted[-1]:.3f}", f"{bins.mean_true[-1]:.3f}"]
    assert rows[10] == ["0.9 to 1.0", *last]


def test_calibration_without_a_head(tmp_path):
    write_report(toy_evaluation(2, 50, head=False), tmp_path, load_toy_image)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The model has no MaskIoU head, so that there is no predicted IoU." in words(section(page, "calibration"))
    assert section(page, "calibration").count("<img") == 2
    assert "The model has no MaskIoU head: the mask score is the class score, and B is A." in words(page)
    assert list(json.loads((tmp_path / "metrics.json").read_text())["calibration"]) == ["class score"]
    assert "predicted IoU -" in words(section(page, "examples"))


############################################################
#  Pictures
############################################################


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def near(image: np.ndarray, color: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    """Where an image has a colour: bool [H, W]."""
    return (np.abs(image - color) <= tolerance).all(axis=2)


def test_picture_shows_mask_and_truth():
    mask, truth = disc(60, 60, 20), disc(60, 90, 20)
    example = one_example(box=(40, 40, 80, 80), mask=utils.mask_to_rle(mask), truth=utils.mask_to_rle(truth))
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    shown = pixels(charts.picture(example, image))
    assert max(shown.shape) == 320
    assert image.min() == image.max() == 100, "the image is not drawn upon"
    y1, x1, _, x2 = charts._window(example, image.shape)
    scale = 320 / (x2 - x1)

    def at(y, x):
        return shown[round((y + 0.5 - y1) * scale), round((x + 0.5 - x1) * scale)]

    tint = 0.45 * 100 + 0.55 * 255 * np.array(visualize.SKY_BLUE)
    assert np.abs(at(60, 50) - tint).max() < 12, "the mask is tinted"
    assert np.abs(at(60, 100) - 100).max() < 12, "inside of the truth the image is seen"
    assert np.abs(at(45, 42) - 100).max() < 12, "nothing is drawn outside"
    yellow = near(shown, rgb(visualize.YELLOW), 60)
    rows, columns = np.nonzero(yellow)
    assert columns.min() == pytest.approx((71 - x1) * scale, abs=4)
    assert columns.max() == pytest.approx((109 - x1) * scale, abs=4)
    assert rows.max() - rows.min() == pytest.approx(39 * scale, abs=5)
    assert yellow.mean() < 0.05, "a line, not an area"
    assert near(shown, (0, 0, 0), 50).any(), "black around it"
    alone = pixels(charts.picture(example._replace(truth=None), image))
    assert not near(alone, rgb(visualize.YELLOW), 60).any()


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.tuples(*[st.floats(-5, 65)] * 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_picture_of_anything(height, width, corners, empty, seed):
    """Images of a pixel, boxes partly outside or without area, empty masks: always a picture of at most 320 x 320."""
    (y1, y2), (x1, x2) = sorted(corners[:2]), sorted(corners[2:])
    mask = np.random.default_rng(seed).random((height, width)) > (1 if empty else 0.7)
    code = utils.mask_to_rle(mask)
    example = one_example(box=(y1, x1, y2, x2), mask=code, truth=code if seed % 2 else None)
    shown = pixels(charts.picture(example, np.zeros((height, width, 3), np.uint8)))
    assert max(shown.shape[:2]) == 320
    assert min(shown.shape[:2]) >= 1


def test_window_holds_box_mask_and_truth():
    image = (1000, 1000)
    apart = one_example(
        box=(400, 400, 500, 500),
        mask=utils.crop_to_rle(410, 410, np.ones((80, 80), bool), image),
        truth=utils.crop_to_rle(300, 450, np.ones((50, 150), bool), image),
    )
    assert charts._window(apart, image) == (266, 366, 534, 634), "a margin of 15 percent and 4 pixels"
    far = apart._replace(mask=utils.mask_to_rle(np.zeros(image, bool)), truth=None)
    assert charts._window(far, image) == (381, 381, 519, 519), "an empty mask widens nothing"
    small = far._replace(box=(500, 500, 504, 502))
    assert charts._window(small, image) == (486, 485, 518, 517), "surroundings of 32 pixels at least"
    flat = far._replace(box=(500, 100, 510, 500))
    y1, x1, y2, x2 = charts._window(flat, image)
    assert (y2 - y1) / (x2 - x1) == pytest.approx(0.5, abs=0.01)
    assert charts._window(far._replace(box=(0, 0, 10, 10)), image) == (0, 0, 21, 21), "cut off at the image's sides"


def test_picture_of_another_size():
    with pytest.raises(
        ValueError, match=r"the image has 10 x 20 pixels and a mask in it 120 x 160; was the file changed"
    ):
        charts.picture(one_example(), np.zeros((10, 20, 3), np.uint8))


def test_galleries(full):
    evaluation, folder = full
    page = section((folder / "report.html").read_text("utf-8"), "examples")
    assert re.findall(r'<div id="(\w+)">', page) == list(GALLERIES)
    assert page.count("data:image/jpeg;base64,") == 36
    widths = [int(width) for width in re.findall(r'width="(\d+)"', page)]
    assert max(widths) <= 320
    assert 'alt="bicycle in 000000000001.jpg: predicted mask and outline of the true object"' in page
    example = evaluation.examples["overrated"][1]
    scores = f"class score 0.97 predicted IoU 0.41 mask score 0.40 true IoU {example.true_iou:.2f}"
    assert f"bicycle 000000000001.jpg {scores}" in words(page)


@pytest.mark.parametrize("error", [OSError("no <file>"), ValueError("cut off"), KeyError("id"), RuntimeError("any")])
def test_unreadable_image_is_named_in_its_place(error):
    def load(image_id):
        if image_id == 3:
            raise error
        return load_toy_image(image_id)

    evaluation = toy_evaluation(1, 5)
    page = section_of(evaluation, "examples", load)
    assert page.count("<img") == 33
    message = markupsafe.escape(f"{type(error).__name__}: {error}")
    assert page.count(f"No picture: {message}</p><figcaption><strong>person</strong> <span>000000000003.jpg") == 3


def test_damaged_masks_and_wrong_sizes_are_named_too():
    evaluation = toy_evaluation(1, 5)
    first = evaluation.examples["best"][0]
    evaluation.examples = {"best": [first._replace(mask={"size": [120, 80], "counts": b"\x00"}), first]}
    page = section_of(evaluation, "examples", lambda image_id: load_toy_image(image_id)[:, ::2])
    assert "No picture: ValueError: the counts of an RLE are damaged" in words(page)
    assert "No picture: ValueError: the image has 120 x 80 pixels and a mask in it 120 x 160" in words(page)
    assert words(page).count("There is none.") == 2


############################################################
#  Plots
############################################################


def rgb(color: tuple[float, float, float]) -> tuple[int, int, int]:
    return tuple(round(255 * channel) for channel in color)


def test_curves_are_drawn_where_they_lie():
    levels = {"box AP50": 0.9, "mask AP50 (class score)": 0.7, "mask AP50": 0.5}
    curves = {name: np.full(101, level) for name, level in levels.items()}
    shown = pixels(charts.precision_recall(curves, "AP50", "title"))
    assert shown.shape[:2] == (640, 720)
    colors = [rgb(color) for color in (visualize.DARK_GRAY, visualize.VERMILION, visualize.BLUE)]
    heights = [np.median(np.nonzero(near(shown[:400, 150:700], color, 20))[0]) for color in colors]
    assert heights[0] < heights[1] < heights[2], "0.9 above 0.7 above 0.5"
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=3)


def test_curves_of_no_objects():
    missing = {name: np.full(101, -1.0) for name in ("box AP", "mask AP (class score)", "mask AP")}
    shown = pixels(charts.precision_recall(missing, "AP", "title"))
    assert not near(shown, rgb(visualize.BLUE), 30).any()
    alone = pixels(charts.precision_recall(missing | {"mask AP": np.ones(101)}, "AP", "title"))
    assert near(alone, rgb(visualize.BLUE), 30).any()
    assert not near(alone, rgb(visualize.VERMILION), 30).any()


@pytest.mark.parametrize("count", [0, 1, 2, 500_000])
def test_plots_of_any_number_of_detections(count):
    rng = np.random.default_rng(0)
    predicted, true = rng.normal(0.5, 0.4, count), rng.random(count)
    sizes = [len(charts.density(predicted, true, "score"))]
    sizes.append(len(charts.reliability(calibrate(predicted, true), "score")))
    assert max(sizes) < 150_000


def test_density_shows_where_detections_are():
    true = np.array([0.5] + [0.1] * 2500)  # more than are drawn as points
    low = pixels(charts.density(np.array([0.5] + [0.9] * 2500), true, "score"))
    outside = pixels(charts.density(np.array([0.5] + [7.0] * 2500), true, "score"))
    dark = near(low[100:560, 90:550], (8, 48, 107), 40)  # the shade of the largest count
    rows, columns = np.nonzero(dark)
    assert dark.any()
    assert rows.mean() > 300, "a low true IoU lies below"
    assert columns.mean() > 300, "a high prediction lies to the right"
    assert near(outside[100:560, 90:550], (8, 48, 107), 40).any(), "what lies outside is counted at the edge"


def test_reliability_bars_have_the_height_of_the_mean():
    heights = []
    for true in (0.25, 0.5):
        found = calibrate(np.full(10, 0.75), np.full(10, true))
        shown = pixels(charts.reliability(found, "score"))
        heights.append(near(shown, rgb(visualize.BLUE), 20).any(axis=1).sum())
    assert heights[1] == pytest.approx(2 * heights[0], abs=4)


@pytest.mark.parametrize("classes", [12, 80, 365])
def test_confusion_picture(classes):
    names = ["BG", *(f"class {i}" for i in range(classes))]
    shown = pixels(charts.confusion_matrix(np.diag(np.arange(classes + 1)), names))
    assert shown.shape[:2] == (1000, 1120)
    blank = pixels(charts.confusion_matrix(np.zeros((classes + 1,) * 2, np.int64), names))
    assert (shown != blank).any()


@pytest.mark.parametrize(
    "name", ["$x^2$", "$\\wrong{$", "$", "人", "a\nb", "\x00", "\udcff", "a very long name of a class", "", "_", "\\"]
)
def test_confusion_picture_draws_any_name(name):
    """matplotlib warns of characters that its font lacks, and takes dollars for formulas: warnings are errors here."""
    charts.confusion_matrix(np.eye(14, dtype=np.int64), ["BG", *[name] * 13])


############################################################
#  Odd evaluations
############################################################


@pytest.mark.parametrize("times", [1, 2], ids=["table", "picture"])
def test_nothing_from_outside_is_html(times, full):
    evaluation = nasty_evaluation()
    if times == 2:  # more than 12 classes
        evaluation.class_names += NASTY
        evaluation.confusion = np.ones((1 + 2 * len(NASTY),) * 2, np.int64)

    def load(image_id):
        raise OSError(NASTY[0])

    page = render(evaluation, load)
    plain = (full[1] / "report.html").read_text("utf-8")
    tags = set(re.findall(r"<[^!][^ >]*", page))
    assert tags - set(re.findall(r"<[^!][^ >]*", plain)) <= {"<small", "</small"}
    assert page.count("<script") == plain.count("<script") == 1
    assert page.count("</style>") == page.count("</title>") == 1
    assert "onload" not in re.sub(r"&#34; onload=&#34;x", "", page)
    text = words(page)
    assert all(
        " ".join(name.split()) in text for name in [*NASTY, "a < b & c", "<i>name</i> <u>value</u>", "<em>read</em>"]
    )


def test_only_our_own_style_and_script_are_taken_as_html():
    template = (Path(charts.__file__).parent / "page.html.j2").read_text("utf-8")
    assert re.findall(r"(\w+)\s*\|\s*safe", template) == ["style", "script"]
    assert "autoescape" not in template


@pytest.mark.parametrize("classes", [0, 1, 80])
@pytest.mark.parametrize(("objects", "detections"), [(0, 0), (0, 7), (5, 0)])
@pytest.mark.parametrize("head", [True, False])
def test_empty_evaluations(classes, objects, detections, head, tmp_path):
    evaluation = empty_evaluation(classes, objects, detections)
    if not head or not detections:
        evaluation.mask_ious = None
    write_report(evaluation, tmp_path, load_toy_image)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"\b(nan|inf|None|NaN)\b", words(page))
    text = (tmp_path / "metrics.json").read_text()
    assert not re.search("NaN|Infinity", text)
    assert json.loads(text)["metrics"] == evaluation.metrics
    assert ("no MaskIoU head" in page) == (bool(detections) and not head), "without detections nobody can tell"
    assert ("There are no detections." in page) == (detections == 0)
    assert ("no curves" in page) == (objects == 0)
    assert ("Re-scoring raised mask AP in 0" in page) == (objects > 0 and classes > 0), "no change to speak of"
    assert "Nothing was timed." in page
    assert "Not stated." in page
    assert ("There are no classes." in page) == (classes == 0)


def test_time_by_stage():
    evaluation = toy_evaluation(1, 5)
    page = section_of(evaluation, "timing")
    assert "5,000 images in 4,300.1 s: 1.16 images/s. Stages run side by side" in words(page)
    assert table_rows(page, "numbers") == [
        ["stage", "seconds", "of the total"],
        ["read", "65.2", "2%"],
        ["network", "4,123.9", "96%"],
        ["masks", "310.0", "7%"],
        ["evaluation", "92.4", "2%"],
        ["total", "4,300.1", ""],
    ]
    evaluation.seconds = {"network": 1.0, "total": 2.0, "images": 1}
    text = words(section_of(evaluation, "timing"))
    assert "1 image in 2.0 s: 0.50 images/s. stage" in text, "stages one after the other need no remark"


def test_wrong_evaluations_are_refused(tmp_path):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            write_report(dataclasses.replace(toy_evaluation(2, 4), **changes), tmp_path / "x", load_toy_image)

    bad = np.array([0.5, np.nan, 0.5, np.inf])
    refused(r"true_ious must have one value a detection, \[4\], not \[3\]", true_ious=np.zeros(3))
    refused(r"mask_ious must be finite; 2 of 4 are NaN or infinite: did the training diverge\?", mask_ious=bad)
    refused(r"confusion must be \[K, K\] = \[3, 3\] for 3 class_names.* not \[2, 2\]", confusion=np.zeros((2, 2)))
    metrics = toy_evaluation().metrics
    refused("metrics must be finite, these are not: mask AR1", metrics=metrics | {"mask AR1": float("nan")})
    del metrics["mask AP50 (true IoU)"], metrics["re-scoring gain"]
    refused(r"missing: re-scoring gain, mask AP50 \(true IoU\)", metrics=metrics)
    assert not (tmp_path / "x").exists()


def test_colors_of_the_page_are_those_of_the_plots(monkeypatch):
    evaluation = toy_evaluation()
    colors = "--before: rgb(213 94 0); --after: rgb(0 114 178); --shade-of-counts: 0 114 178;"
    assert colors in render(evaluation, load_toy_image)
    monkeypatch.setattr(visualize, "BLUE", (0.0, 1.0, 0.2))
    page = render(evaluation, load_toy_image)
    assert "--after: rgb(0 255 51); --shade-of-counts: 0 255 51;" in page
    assert "--after: rgb(64 255 102); }" in page, "on a dark ground"
    assert "background:rgb(var(--shade-of-counts)/0." in render(nasty_evaluation(), load_toy_image)

"""custom.py detect: results in every form, resumed, with pictures that cannot be read, from an object store."""

import csv
import json
import os
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import torch
from detect_blobs import BlobFinder, save_blobs
from helpers import TinyConfig, detection_result
from PIL import Image

import cli
import custom
import utils
from data.recognise import open_records
from data.writers.all import WRITERS
from data.writers.pictures import comment_of, save_picture
from evaluation.own_detect import detection_settings
from model import MaskRCNN

FACTORS = [0.0] * 6 + [1.0, 1.0, -2.0, 1.0, 1.0, -3.0] * 3  # of ACCEPT_CALIBRATION, for four classes


@pytest.fixture
def finder(monkeypatch):
    """The detector that custom.py opens."""
    finder = BlobFinder()
    monkeypatch.setattr(cli, "open_model", lambda *arguments, **options: finder)
    return finder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "slides"
    save_blobs(folder / "a.png", (1, 0.9, 4, 5, 12, 25), (2, 0.8, 20, 30, 35, 40), (3, 0.3, 2, 50, 6, 60))
    save_blobs(folder / "plate 1" / "b.png", (2, 0.8, 0, 0, 10, 10))
    save_blobs(folder / "plate 1" / "empty.png", size=(30, 31))
    return folder


def detect(folder, *options, out=None) -> int:
    out = out or Path(folder).parent / "out"
    return custom.main(["detect", "--dataset", str(folder), "--model", "x", "--output", str(out), *map(str, options)])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "objects.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


############################################################
#  Results
############################################################


def test_the_results_by_default(pictures, finder, tmp_path, capsys):
    assert detect(pictures) == 0
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert "3 pictures; threshold: mask score 0.5" in printed
    assert (
        "3 pictures, 3 objects (dog 2, cat, small 1), of which the model doubts 2 (predicted IoU below 0.7): "
        f"see pictures/, annotations.json and results.json, objects.csv in {out}"
    ) in printed
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert [name for name in files if not name.startswith((".", "detections/"))] == [
        "annotations.json", "evaluation.json", "objects.csv", "pictures/a.jpg", "pictures/plate 1/b.jpg",
        "pictures/plate 1/empty.jpg", "results.json",
    ]  # fmt: skip
    first, second, third = rows_of(out)
    assert (first["file"], first["number"], first["class"]) == ("a.png", "1", "cat, small"), "best mask first"
    assert (first["class_score"], first["predicted_iou"], first["mask_score"]) == ("0.901961", "0.9", "0.811765")
    assert (second["class"], second["class_score"], second["predicted_iou"]) == ("dog", "0.8", "0.68")
    assert [second[f"box_{name}_px"] for name in ("x", "y", "width", "height")] == ["30", "20", "10", "15"]
    assert (second["area_px"], second["length_px"], second["width_px"]) == ("150", "15", "10")
    assert (second["mean_1"], second["mean_2"], second["mean_3"], second["deviation_1"]) == ("120", "204", "250", "0")
    assert (first["accept"], first["touches_edge"], third["touches_edge"]) == ("", "no", "yes")
    assert "area_um2" not in first
    assert third["file"] == "plate 1/b.png"


def test_annotations_and_results_are_of_the_same_numbers(pictures, finder, tmp_path):
    assert detect(pictures) == 0
    value = json.loads((tmp_path / "out" / "annotations.json").read_text())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [image["file_name"] for image in value["images"]] == ["a.png", "plate 1/b.png", "plate 1/empty.png"]
    assert value["images"][2]["width"] == 31, "also of a picture without objects"
    assert value["categories"] == [{"id": i, "name": BlobFinder.class_names[i]} for i in (1, 2, 3)]
    for annotation, result in zip(value["annotations"], results, strict=True):
        for name in ("image_id", "category_id", "segmentation"):
            assert annotation[name] == result[name]
        assert annotation["attributes"]["mask_score"] == pytest.approx(result["score"], abs=1e-6)
        assert annotation["bbox"] == result["bbox"]
    records = open_records_of(tmp_path, pictures)
    assert [len(picture.objects) for picture in records.pictures] == [2, 1, 0]


def open_records_of(tmp_path: Path, pictures: Path):
    """annotations.json read beside its pictures."""
    copy = pictures / "annotations.json"
    copy.write_bytes((tmp_path / "out" / "annotations.json").read_bytes())
    records = open_records(pictures)
    copy.unlink()
    return records


def test_the_picture_shows_masks_and_numbers(pictures, finder, tmp_path):
    assert detect(pictures) == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / "a.jpg")).astype(int)
    plain = np.asarray(Image.open(pictures / "a.png")).astype(int)
    assert drawn.shape == plain.shape
    changed = np.abs(drawn - plain).max(axis=2) > 40
    assert changed[20:35, 30:40].mean() > 0.3, "the mask has a colour and an outline"
    assert not changed[3:6, 51:59].any(), "an object below the threshold is not drawn"


@pytest.mark.parametrize("kind", WRITERS)
def test_labels_for_every_tool(kind, pictures, finder, tmp_path):
    assert detect(pictures, "--to", kind) == 0
    out = tmp_path / "out" if kind == "coco" else tmp_path / "out" / kind
    assert out.is_dir()
    assert not (tmp_path / "out" / "objects.csv").exists()
    text = b"".join(
        path.read_bytes() for path in out.rglob("*") if path.suffix in (".json", ".xml", ".geojson", ".csv")
    )
    if kind in ("coco", "labelme", "geojson", "cvat", "label_images"):
        assert b"mask_iou" in text
        assert b"0.9" in text
    if kind in ("yolo", "voc"):
        assert sum(len(picture.objects) for picture in open_records(out).pictures) == 3


def test_an_object_has_the_number_of_its_row_in_all_files(pictures, finder, tmp_path):
    assert detect(pictures, "--to", "csv,coco,geojson,labelme,cvat,imagej,label_images") == 0
    out = tmp_path / "out"
    expected = [(row["number"], round(float(row["mask_score"]), 6)) for row in rows_of(out) if row["file"] == "a.png"]
    assert [number for number, _ in expected] == ["1", "2"]
    coco = json.loads((out / "annotations.json").read_text())["annotations"][:2]
    features = json.loads((out / "geojson" / "a.geojson").read_text())["features"]
    shapes = json.loads((out / "labelme" / "a.json").read_text())["shapes"]
    for objects in (
        [entry["attributes"] for entry in coco],
        [entry["properties"]["measurements"] for entry in features],
        [entry["attributes"] for entry in shapes],
    ):
        assert [(str(each["number"]), each["mask_score"]) for each in objects] == expected
    with (out / "label_images" / "classes.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0].count("number") == 1
    first = [dict(zip(table[0], row, strict=True)) for row in table[1:3]]
    assert [(row["number"], round(float(row["mask_score"]), 4)) for row in first] == [
        (number, round(score, 4)) for number, score in expected
    ]


def test_a_calibrated_model_says_accept(pictures, finder, tmp_path, capsys):
    finder.config = TinyConfig(ACCEPT_CALIBRATION=FACTORS, SCORE_THRESHOLD=0.7)
    assert detect(pictures, "--to", "csv,geojson") == 0
    printed = capsys.readouterr().out
    assert "threshold: mask score 0.7" in printed
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 1
    logits = [np.log(p / (1 - p)) for p in (0.901961, 0.9)]
    assert float(rows[0]["accept"]) == pytest.approx(1 / (1 + np.exp(2 - sum(logits))), abs=0.001)
    assert re.search(r"the model doubts \d \(accept below 0\.5\)", printed)
    value = json.loads((tmp_path / "out" / "geojson" / "a.geojson").read_text())
    measured = value["features"][0]["properties"]["measurements"]
    assert list(measured) == ["number", "score", "mask_iou", "mask_score", "accept"]
    assert measured["accept"] == pytest.approx(float(rows[0]["accept"]), abs=1e-5)


def test_a_model_without_a_maskiou_head(pictures, finder, tmp_path, capsys):
    finder.has_ious = False
    assert detect(pictures, "--to", "csv,coco") == 0
    assert "doubts" not in capsys.readouterr().out
    assert {row["predicted_iou"] for row in rows_of(tmp_path / "out")} == {""}
    value = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert list(value["annotations"][0]["attributes"]) == ["number", "score", "mask_score"]


def test_micrometres_and_values_of_16_bits(finder, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    pixels = np.full((30, 40), 300, np.uint16)
    pixels[5:15, 10:30] = 4000
    sized = {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "micron"}}
    tifffile.imwrite(folder / "sized.tif", pixels, **sized)
    Image.fromarray(pixels).save(folder / "unsized.png")

    def find_white(image: np.ndarray) -> dict:  # white is the largest value of 12 bits
        mask = image[..., 2] > 200
        return {**detection_result(mask[..., None], [1], [0.9], [0.8]), "masks": [utils.mask_to_rle(mask)]}

    finder._find = find_white
    assert detect(folder, "--to", "csv") == 0
    first, second = rows_of(tmp_path / "out")
    assert (first["mean_1"], first["deviation_1"]) == ("4000", "0"), "the picture's own values"
    assert (first["area_px"], float(first["area_um2"]), float(first["length_um"])) == ("200", 12.5, 5.0)
    assert (second["area_um2"], second["pixel_size_um"]) == ("", "")
    assert detect(folder, "--to", "csv", "--pixel-size", "0.5") == 0
    assert [float(row["area_um2"]) for row in rows_of(tmp_path / "out")] == [50, 50]


############################################################
#  Again and again
############################################################


def test_a_second_run_repeats_nothing(pictures, finder, tmp_path, capsys):
    assert detect(pictures) == 0
    out, times = tmp_path / "out", {}
    first = (out / "objects.csv").read_bytes()
    for path in (out / "pictures").rglob("*.jpg"):
        os.utime(path, (1, 1))
        times[path] = path.stat().st_mtime
    assert detect(pictures) == 0
    assert len(finder.seen) == 3, "the network saw nothing again"
    assert "taken over from an earlier run: 3 pictures" in capsys.readouterr().out
    assert (out / "objects.csv").read_bytes() == first
    assert {path: path.stat().st_mtime for path in times} == times, "nor was anything drawn again"


def test_an_interrupted_run_continues(pictures, finder, tmp_path, capsys):
    finder.stop_after = 2
    assert detect(pictures) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    finder.stop_after = None
    assert detect(pictures) == 0
    assert sorted(finder.seen) == [(30, 31), (40, 60), (40, 60)], "each once"
    whole = tmp_path / "whole"
    assert detect(pictures, out=whole) == 0
    for name in ("objects.csv", "annotations.json", "pictures/a.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_another_threshold_needs_no_detection(pictures, finder, tmp_path):
    assert detect(pictures) == 0
    before = (tmp_path / "out" / "pictures" / "a.jpg").read_bytes()
    assert detect(pictures, "--threshold", "0.2", "--to", "pictures,csv,labelme") == 0
    assert len(finder.seen) == 3
    assert len(rows_of(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "pictures" / "a.jpg").read_bytes() != before
    assert len(json.loads((tmp_path / "out" / "labelme" / "a.json").read_text())["shapes"]) == 3


def test_pictures_may_be_added_and_changed(pictures, finder, tmp_path, capsys):
    assert detect(pictures) == 0
    save_blobs(pictures / "0.png", (1, 0.9, 4, 5, 12, 25))
    save_blobs(pictures / "a.png", (1, 0.9, 4, 5, 12, 25))
    assert detect(pictures) == 0
    assert len(finder.seen) == 5
    assert "detected again, because their files have changed: 1 picture: " in capsys.readouterr().out
    assert [row["file"] for row in rows_of(tmp_path / "out")] == ["0.png", "a.png", "plate 1/b.png"]


def test_a_folder_belongs_to_one_run(pictures, finder, tmp_path, capsys):
    assert detect(pictures, "--limit", "1") == 0
    assert finder.seen == [(40, 60)]
    other = save_blobs(tmp_path / "other" / "x.png")
    assert detect(other.parent, out=tmp_path / "out") == 2
    assert "dataset" in capsys.readouterr().err
    finder.state_dict = lambda: {"weight": torch.zeros(2)}
    assert detect(pictures) == 2
    assert "Choose another --output" in capsys.readouterr().err


############################################################
#  What goes wrong
############################################################


def test_a_picture_that_cannot_be_read_costs_itself_only(pictures, finder, tmp_path, capsys):
    finder.config = TinyConfig(IMAGES_PER_GPU=4)
    (pictures / "broken.png").write_bytes(b"no picture")
    assert detect(pictures) == 1
    printed = capsys.readouterr()
    assert "3 pictures, 3 objects" in printed.out
    assert "1 picture cannot be read and had to be left out\nnot read: image " in printed.err
    assert "broken.png" in printed.err
    assert len(finder.seen) == 3
    assert detect(pictures) == 1
    assert len(finder.seen) == 3, "the others of its batch are not repeated"
    save_blobs(pictures / "broken.png", (1, 0.9, 4, 5, 12, 25))
    assert detect(pictures) == 0
    assert len(rows_of(tmp_path / "out")) == 4


def test_mistakes_are_one_sentence(pictures, finder, tmp_path, capsys):
    assert detect(tmp_path / "gone") == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    assert detect(pictures, out=pictures) == 2
    assert "holds pictures of --dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        detect(pictures, "--to", "pictures,nonsense")
    assert "must be some of pictures, csv, coco, yolo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_last_is_the_newest_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--model last: there is no .*model\.pth, which custom\.py train"):
        custom.newest_model(tmp_path)
    for time, name in ((2, "b"), (3, "a"), (1, "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pth").touch()
        os.utime(tmp_path / name / "model.pth", (time, time))
    assert custom.newest_model(tmp_path) == tmp_path / "a" / "model.pth"


@pytest.mark.parametrize(("name", "expected"), [
    ("slides", "slides"), ("a/my slides/", "my slides"), ("x/photo.jpg", "photo"), ("scans/*.tif", "pictures"),
    ("s3://bucket/some/folder", "folder"),
])  # fmt: skip
def test_the_folder_of_results_has_the_name_of_the_pictures(name, expected):
    assert custom.detect_folder([name]) == Path("output") / "detect" / expected


def test_the_output_is_not_detected_in(pictures, finder, tmp_path):
    out = pictures / "results"
    assert detect(pictures, out=out) == 0
    assert detect(pictures, out=out) == 0
    assert len(finder.seen) == 3


def test_models_see_whole_pictures_and_keep_low_scores():
    config = TinyConfig(IMAGE_RESIZE_MODE="crop", DETECTION_MIN_CONFIDENCE=0.7, IMAGES_PER_GPU=2)
    assert detection_settings(config, None) == {
        "DETECTION_MIN_CONFIDENCE": 0.05, "IMAGE_RESIZE_MODE": "pad64", "IMAGES_PER_GPU": 1
    }  # fmt: skip
    assert detection_settings(config, 0.01, IMAGES_PER_GPU=4)["DETECTION_MIN_CONFIDENCE"] == 0.01
    assert detection_settings(config, 0.01, IMAGES_PER_GPU=4)["IMAGES_PER_GPU"] == 4
    assert detection_settings(config, None, DETECTION_MIN_CONFIDENCE=0.4)["DETECTION_MIN_CONFIDENCE"] == 0.4


############################################################
#  With a network, and from an object store
############################################################


def test_a_model_from_a_file(pictures, tmp_path, capsys):
    path = tmp_path / "tiny.pth"
    torch.manual_seed(0)
    MaskRCNN(TinyConfig(IMAGE_RESIZE_MODE="crop")).save(path)
    arguments = [
        "detect",
        "--dataset",
        str(pictures / "plate 1"),
        "--model",
        str(path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert custom.main([*arguments, "--threshold", "0.01", "--device", "cpu", "--to", "csv,imagej"]) == 0
    assert "2 pictures; threshold: mask score 0.01" in capsys.readouterr().out
    settings = json.loads((tmp_path / "o" / "evaluation.json").read_text())["identity"]["settings"]
    assert settings["IMAGE_RESIZE_MODE"] == "pad64"
    assert settings["DETECTION_MIN_CONFIDENCE"] == 0.0, "that of the model is lower still"
    assert {row["file"] for row in rows_of(tmp_path / "o")} <= {"b.png", "empty.png"}


def test_pictures_of_an_object_store(pictures, finder, tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    for path in pictures.rglob("*.png"):
        memory.pipe_file(f"/cells/{path.relative_to(pictures).as_posix()}", path.read_bytes())
    memory.pipe_file("/cells/broken.png", b"no picture")
    try:
        kinds = ("--to", "pictures,csv,coco,labelme,geojson,imagej,cvat,label_images")
        assert detect("memory://cells", *kinds, out=tmp_path / "out") == 1
        printed = capsys.readouterr()
        assert "image memory:///cells/broken.png: not an image" in printed.err
        assert "3 pictures, 3 objects" in printed.out
        assert [row["file"] for row in rows_of(tmp_path / "out")] == ["a.png", "a.png", "plate 1/b.png"]
        assert (tmp_path / "out" / "pictures" / "plate 1" / "b.jpg").is_file()
        assert (tmp_path / "out" / "geojson" / "plate 1" / "b.geojson").is_file()
        seen = len(finder.seen)
        assert detect("memory://cells", *kinds, out=tmp_path / "out") == 1
        assert len(finder.seen) == seen
        assert detect("memory://cells", "--to", "yolo", out=tmp_path / "out") == 2
        assert "--to yolo needs the pictures beside its labels" in capsys.readouterr().err
    finally:
        memory.rm("/cells", recursive=True)


def test_comments_of_pictures(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    for suffix in (".jpg", ".png"):
        save_picture(pixels, tmp_path / f"a{suffix}", "what it shows")
        assert comment_of(tmp_path / f"a{suffix}") == "what it shows"
        save_picture(pixels, tmp_path / f"a{suffix}")
        assert comment_of(tmp_path / f"a{suffix}") == ""
    assert comment_of(tmp_path / "gone.jpg") == ""
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert comment_of(tmp_path / "a.jpg") == ""

"""demo.py as a user runs it, on a tiny model."""

import json

import numpy as np
import pytest
from PIL import Image
from test_model import random_image, tiny_model

import convert_weights
import demo
import utils


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    tiny_model(CATEGORY_IDS=(0, 17, 18, 21)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("b.png", "a.jpg", "C.PNG")):
        Image.fromarray(random_image(40, 60 + i, i)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_pictures_and_results(weights, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [str(photos), "--model", str(weights), "--output", str(output), "--threshold", "0"]
    assert demo.main(arguments) == 0
    assert sorted(path.name for path in output.iterdir()) == ["C.jpg", "a.jpg", "b.jpg", "detections.json"]
    with Image.open(output / "b.jpg") as picture:
        assert picture.size == (60, 40)
        assert np.abs(np.asarray(picture).astype(int) - random_image(40, 60, 0)).mean() > 5, "something is drawn"
    entries = json.loads((output / "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {1, 2, 3}
    assert {entry["category_id"] for entry in entries} <= {17, 18, 21}
    entry = entries[0]
    assert entry["file_name"].endswith("C.PNG"), "sorted by name"
    assert utils.rle_to_mask(entry["segmentation"]).shape == (40, 62)
    assert entry["score"] == pytest.approx(entry["class_score"] * min(max(entry["mask_iou"], 0), 1))
    printed = capsys.readouterr().out
    assert f"{len(entries)} instances in 3 images" in printed
    for stage in ("read", "detect", "resize", "network", "masks", "draw", "write"):
        assert stage in printed


def test_boxes_are_cocos(weights):
    model = convert_weights.load_model(weights, device="cpu")
    (result,) = model.detect([random_image(40, 60)], masks="rle")
    entries = demo.to_coco(result, 7, "x.png", model.category_ids)
    y1, x1, y2, x2 = result["rois"][0].tolist()
    assert entries[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert entries[0]["category_id"] == model.category_ids[result["class_ids"][0]]
    assert entries[0]["image_id"] == 7
    json.dumps(entries)


def test_threshold_and_settings(weights, photos, tmp_path, capsys):
    arguments = [str(photos / "a.jpg"), "--model", str(weights), "--output", str(tmp_path / "out")]
    assert demo.main([*arguments, "--threshold", "0.999999"]) == 0
    assert "0 instances in 1 images" in capsys.readouterr().out
    assert demo.main([*arguments, "--threshold", "0", "--set", "DETECTION_MAX_INSTANCES=2"]) == 0
    assert "2 instances in 1 images" in capsys.readouterr().out
    assert demo.main([*arguments, "--threshold", "0", "--dtype", "bfloat16"]) == 0


def test_a_file_that_cannot_be_read_does_not_stop_the_others(weights, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    arguments = [str(photos), "--model", str(weights), "--output", str(tmp_path / "out")]
    assert demo.main(arguments) == 1
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "in 3 images" in captured.out
    assert (tmp_path / "out" / "detections.json").exists()


def test_mistakes_are_one_line(weights, photos, tmp_path, capsys):
    for arguments, message in {
        (str(tmp_path / "none.jpg"),): "there is no file, folder or match",
        (str(photos), "--model", str(tmp_path / "none.pth")): "none.pth",
        (str(photos), "--model", "cocoo"): "did you mean coco?",
        (str(photos), "--model", str(weights), "--set", "NUM_CLASES=2"): "did you mean NUM_CLASSES?",
    }.items():
        assert demo.main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("demo.py: ")
        assert message in error
        assert "Traceback" not in error
    empty = tmp_path / "empty"
    empty.mkdir()
    assert demo.main([str(empty)]) == 2
    assert "has no images" in capsys.readouterr().err


def test_find_images(photos, monkeypatch):
    names = [path.name for path in demo.find_images([str(photos)])]
    assert names == ["C.PNG", "a.jpg", "b.png"]
    monkeypatch.chdir(photos)
    found = demo.find_images(["*.jpg", "b.png", "a.jpg"])
    assert [path.name for path in found] == ["a.jpg", "b.png"], "each once"


def test_names_do_not_collide(tmp_path):
    paths = [tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.png", tmp_path / "A.bmp", tmp_path / "b.jpg"]
    assert demo.output_names(paths) == ["a.jpg", "a_2.jpg", "A_3.jpg", "b.jpg"]


def test_without_the_default_model_it_says_so_and_what_it_did(monkeypatch, tmp_path, capsys):
    def offline(*_, **__):
        raise FileNotFoundError("coco is not on this machine; fetch http://x/y.pth and put it into models/")

    built = []

    def tiny(config):
        built.append(config)
        return tiny_model()

    monkeypatch.setattr(convert_weights, "load_model", offline)
    monkeypatch.setattr(demo, "MaskRCNN", tiny)
    assert demo.main(["--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "fetch http://x/y.pth" in printed
    assert "UNTRAINED network runs instead" in printed
    assert "weights: untrained" in printed
    assert built[0].NUM_CLASSES == 81
    assert (tmp_path / "out" / "coffee.jpg").exists(), "the image in assets/"
    assert demo.main(["--model", "coco", "--output", str(tmp_path / "out")]) == 2, "asked for by name: no stand-in"

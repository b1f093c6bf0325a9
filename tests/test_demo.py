"""demo.py as a user runs it, on a tiny model. test_video.py has what it does with videos."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers import files_of_at_most, interrupt_drawing, random_image, tiny_model
from PIL import Image

import cli
import custom
import demo
import fonts
import utils
import visualize
from data.images import read_image
from evaluation.own import store_settings
from evaluation.own_detect import LEAST_SCORE
from evaluation.results import to_results
from video import Source
from weights.load import load_model
from weights.published import EMBEDDED


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("b.png", "a.jpg", "C.PNG")):
        Image.fromarray(random_image(40, 60 + i, i)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_16_bit_images_are_read_alike(tmp_path):
    """The dark one of a folder is scaled as the others are, or as the model's training was."""
    for name, high in (("a.png", 4000), ("b.png", 500)):
        Image.fromarray(np.array([[0, high]], np.uint16)).save(tmp_path / name)
    sources = [Source(str(tmp_path / name), "image") for name in ("a.png", "b.png")]
    for bit_depth, white in (("auto", 4095), (12, 4095), (16, 65535)):
        failures = []
        frames = list(demo.read_frames(sources, 1, failures, bit_depth))
        assert failures == []
        assert [frame.image[0, 1, 0] for frame in frames] == [round(high * 255 / white) for high in (4000, 500)]


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
    for stage in ("read", "resize", "network", "masks", "draw", "write", "in all"):
        assert f"\n{stage} " in printed


def test_boxes_are_cocos(weights):
    model = load_model(weights, device="cpu")
    (result,) = model.detect([random_image(40, 60)], masks="rle")
    entries = demo.to_coco(result, 7, "x.png", model.category_ids)
    boxes, masks = to_results(result, 7, model.category_ids)
    assert entries == [
        {**mask, "bbox": box["bbox"], "file_name": "x.png"} for box, mask in zip(boxes, masks, strict=True)
    ]
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 0.5),
        (["--threshold", "0.25"], 0.25),
        (["--set", "DETECTION_MIN_CONFIDENCE=0.125"], 0.125),
        (["--threshold", "0.25", "--set", "DETECTION_MIN_CONFIDENCE=0.125"], 0.125),
    ],
)
def test_the_threshold_is_an_argument_or_a_setting(words, expected, weights, photos, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(
        demo, "detect_all", lambda model, *_: configs.append(model.config) or demo.Outcome(0, 0, [], None, None)
    )
    assert demo.main([str(photos), "--model", str(weights), "--output", str(tmp_path / "out"), *words]) == 0
    assert [config.DETECTION_MIN_CONFIDENCE for config in configs] == [expected]
    store_settings(weights, {"SCORE_THRESHOLD": 0.3}, tmp_path / "stores.pth")
    model = ["--model", str(tmp_path / "stores.pth"), "--output", str(tmp_path / "out")]
    assert demo.main([str(photos), *model, *words]) == 0
    least = expected if words else LEAST_SCORE  # a mask score of 0.3 may belong to any class score above
    assert [config.DETECTION_MIN_CONFIDENCE for config in configs[1:]] == [least]


@pytest.mark.parametrize("head", [True, False])
def test_a_stored_threshold_keeps_what_custom_detect_keeps(head, photos, tmp_path, capsys):
    model = tiny_model(USE_MASKIOU_HEAD=head, DETECTION_MIN_CONFIDENCE=0.0)
    (found,) = model.detect([read_image(photos / "a.jpg")], masks="rle")
    stored = round(float(np.median(found["mask_scores"])), 4)
    model.config.SCORE_THRESHOLD = stored
    model.save(tmp_path / "model.pth")

    def shown_by(command, file, *words):
        source = ["detect", "--dataset"] if command is custom else []
        output = tmp_path / command.__name__
        source += [str(photos / "a.jpg"), "--model", str(tmp_path / "model.pth"), "--output", str(output)]
        assert command.main([*source, *words]) == 0
        entries = json.loads((output / file).read_text())
        # custom.py leaves out what has no pixel
        return [(entry["score"], entry["bbox"]) for entry in entries if utils.rle_area(entry["segmentation"])]

    shown = shown_by(demo, "detections.json")
    kind = "mask score" if head else "class score"
    assert f"threshold: {kind} {stored:g}, which the model stores" in capsys.readouterr().out
    assert sorted(shown) == sorted(shown_by(custom, "results.json"))
    assert min(score for score, _ in shown) >= stored
    for words in (["--threshold", "0"], ["--set", "DETECTION_MIN_CONFIDENCE=0"]):
        capsys.readouterr()
        everything = shown_by(demo, "detections.json", *words)
        assert "which the model stores" not in capsys.readouterr().out
        assert len(everything) > len(shown)
        assert min(score for score, _ in everything) < stored


def test_negative_predicted_ious_hide_nothing(photos, tmp_path):
    model = tiny_model(MASKIOU_CLAMP=False, DETECTION_MIN_CONFIDENCE=0.0)
    with torch.no_grad():
        model.maskiou_head.maskious.bias.fill_(-5)
    model.save(tmp_path / "model.pth")
    words = [str(photos / "a.jpg"), "--model", str(tmp_path / "model.pth"), "--output", str(tmp_path / "out")]
    assert demo.main([*words, "--threshold", "0"]) == 0
    scores = [entry["score"] for entry in json.loads((tmp_path / "out" / "detections.json").read_text())]
    assert scores
    assert max(scores) < 0


def test_labels(weights, photos, tmp_path, monkeypatch, capsys):
    """What the command line says comes to draw_instances; what it says by default is auto."""
    asked, draw = [], visualize.draw_instances
    monkeypatch.setattr(visualize, "draw_instances", lambda *a, labels: asked.append(labels) or draw(*a, labels=labels))
    arguments = [str(photos / "a.jpg"), "--model", str(weights), "--output", str(tmp_path / "out"), "--threshold", "0"]
    for options in ([], ["--labels", "all"], ["--labels", "none"]):
        assert demo.main([*arguments, *options]) == 0
    assert asked == ["auto", "all", "none"]
    with pytest.raises(SystemExit):
        demo.main([*arguments, "--labels", "some"])
    assert "choose from auto, all, none" in capsys.readouterr().err.replace("'", "")


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
        (str(photos), "--model", "last"): "--model last: this command has no trainings",
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


def test_find_sources(photos, monkeypatch):
    for name in ("film.MP4", "7", "._a.jpg"):
        (photos / name).write_bytes(b"")
    os.mkfifo(photos / "pipe.jpg")  # to open it would wait for ever
    kinds = {"C.PNG": "image", "a.jpg": "image", "b.png": "image", "film.MP4": "video"}
    sources = [Source(str(photos / name), kind) for name, kind in kinds.items()]
    assert demo.find_sources([str(photos)]) == sources, "and nothing that is hidden"
    monkeypatch.chdir(photos)
    (photos / "folder.jpg").mkdir()
    assert demo.find_sources(["*.jpg", "b.png", "a.jpg"]) == [Source("a.jpg", "image"), Source("b.png", "image")]
    assert demo.find_sources(["*.MP4"]) == [Source("film.MP4", "video")]
    cameras = [Source("0", "camera"), Source("7", "image"), Source("7", "camera"), Source("Front", "camera")]
    assert demo.find_sources(["0", "7", "camera:7", "camera:Front", "camera:0"]) == cameras
    assert str(cameras[0]) == "camera:0"


def test_names_do_not_collide(tmp_path):
    names = ["x/a.jpg", "y/a.png", "A.bmp", "b.jpg", "z/a.mov", "w/a.mp4"]
    sources = [Source(name, "video" if name.endswith(("mov", "mp4")) else "image") for name in names]
    paths = demo.plan_outputs([*sources, Source("0", "camera")], tmp_path)
    outputs = ["a.jpg", "a_2.jpg", "A_3.jpg", "b.jpg", "a.mp4", "a_2.mp4", "camera_0.mp4"]
    assert paths == [tmp_path / name for name in outputs]


def test_nothing_that_is_looked_at_is_replaced(weights, photos, capsys, monkeypatch):
    before = (photos / "a.jpg").read_bytes()
    monkeypatch.chdir(photos)
    assert demo.main(["b.png", "a.jpg", "--model", str(weights), "--output", "."]) == 2
    assert f"--output . would replace {photos / 'a.jpg'}; choose another" in capsys.readouterr().err
    (photos / "a.json").write_bytes(before)  # the content decides
    assert demo.main(["a.json", "--model", str(weights), "--save-json", str(photos / "a.json")]) == 2
    assert "a.json would replace a source" in capsys.readouterr().err
    assert (photos / "a.jpg").read_bytes() == (photos / "a.json").read_bytes() == before


def test_save_json(weights, photos, tmp_path, capsys):
    arguments = [str(photos), "--model", str(weights), "--output", str(tmp_path / "out"), "--threshold", "0"]
    whole, lines = tmp_path / "new" / "whole.json", tmp_path / "lines.jsonl"
    assert demo.main([*arguments, "--save-json", str(whole)]) == 0
    assert f"{whole}\n" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.json*"))
    assert demo.main([*arguments, "--save-json", str(lines)]) == 0
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [entry["file_name"] for entry in entries] == [str(photos / name) for name in ("C.PNG", "a.jpg", "b.png")]
    assert [(entry["image_id"], entry["frame"], entry["seconds"]) for entry in entries] == [
        (i, 0, 0) for i in (1, 2, 3)
    ]
    assert [one for entry in entries for one in entry["detections"]] == json.loads(whole.read_text())
    assert demo.main([*arguments, "--save-json", "out.txt"]) == 2
    assert (
        "--save-json must be a file .json (a list) or .jsonl (a line for each image), not out.txt"
        in capsys.readouterr().err
    )


def test_each_line_is_safe_at_once(weights, tmp_path):
    model = load_model(weights, device="cpu")
    (result,) = model.detect([random_image(40, 60)], masks="rle")
    results = demo.Results(tmp_path / "lines.jsonl")
    for count in (1, 2):
        results.add("x.png", demo.Frame(random_image(40, 60), 0), result, model.category_ids)
        assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == count, "before the file is closed"
    results.close()


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_keeps_what_is_done(weights, photos, tmp_path, monkeypatch, signals):
    """The first one finishes what is begun, the second stops at once; the list is written in both cases."""
    for i in range(40):
        Image.fromarray(random_image(40, 60, i)).save(photos / f"d{i:02}.png")
    interrupt_drawing(monkeypatch, 2, signals)
    handler = signal.getsignal(signal.SIGINT)
    arguments = [str(photos), "--model", str(weights), "--output", str(tmp_path / "out"), "--threshold", "0"]
    assert demo.main(arguments) == 130
    assert signal.getsignal(signal.SIGINT) == handler
    done = {entry["image_id"] for entry in json.loads((tmp_path / "out" / "detections.json").read_text())}
    assert len(done) == len(list((tmp_path / "out").glob("*.jpg")))
    assert len(done) == 1 if signals == 2 else 2 <= len(done) < 30


def test_every_has_to_be_positive(capsys):
    for wrong in ("0", "-1", "1.5", "x"):
        with pytest.raises(SystemExit):
            demo.build_parser().parse_args(["--every", wrong])
        assert "must be a whole number from 1 up" in capsys.readouterr().err
    assert demo.build_parser().parse_args(["--every", "3"]).every == 3


def test_stopwatch(monkeypatch):
    times = iter([0, 2, 10, 11, 20, 20.5])
    monkeypatch.setattr(demo.time, "perf_counter", lambda: next(times))
    watch = demo.Stopwatch()
    for stage in ("draw", "read", "draw"):
        with watch.time(stage):
            pass
    assert watch.seconds == {"draw": 2.5, "read": 1}
    head, *rows = watch.table(10).splitlines()
    assert head.split()[:2] == ["ms", "images/s"]
    assert [row.split() for row in rows] == [["read", "100.0", "10.0"], ["draw", "250.0", "4.0"]], "in their order"


############################################################
#  Stages
############################################################


def test_stages_are_written_for_the_first_image(weights, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [str(photos), "--model", str(weights), "--output", str(output), "--threshold", "0", "--stages"]
    assert demo.main(arguments) == 0
    names = [f"C_{name}.png" for name in ("1_anchors", "2_refinement", "3_masks", "4_composition", "5_mask_scoring")]
    assert sorted(path.name for path in output.glob("*.png")) == names
    printed = capsys.readouterr().out
    for name in names:
        assert f"stage: {output / name}" in printed
        with Image.open(output / name) as picture:
            assert np.asarray(picture).std() > 10, "something is drawn"
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    assert demo.main([str(photos / "broken.jpg"), *arguments[1:]]) == 2
    assert "--stages has no image to look at: image" in capsys.readouterr().err


@pytest.fixture
def offline(monkeypatch):
    """The model "coco" cannot be had; others can."""

    def fetch(published):
        raise FileNotFoundError(f"{published.name} is not on this machine; fetch http://x/y.pth")

    monkeypatch.setattr("weights.published._fetch", fetch)


def test_without_the_default_model_the_embedded_ones_show_what_they_can(offline, tmp_path, capsys):
    """demo.py says so, and finds what is in the images; a model or a photograph that was named has no stand-in."""
    assert demo.main(["--output", str(tmp_path / "out"), "--save-json", str(tmp_path / "all.json")]) == 0
    printed = capsys.readouterr().out
    assert "fetch http://x/y.pth" in printed
    assert "two small models show what they can do" in printed
    first, second = (
        printed.index(f"weights: {name}, trained by this project (docs/results.md)") for name in ("nuclei", "shapes")
    )
    assert first < second
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    pictures = ["out/nuclei/nuclei_1.jpg", "out/nuclei/nuclei_2.jpg", "out/shapes/shapes.jpg"]
    assert files == ["all_nuclei.json", "all_shapes.json", *pictures]
    assert len(json.loads((tmp_path / "all_nuclei.json").read_text())) > 40
    assert len(json.loads((tmp_path / "all_shapes.json").read_text())) > 3
    for named in (["--model", "coco"], [str(demo.PHOTOGRAPH)]):
        assert demo.main([*named, "--output", str(tmp_path / "other")]) == 2
        assert "fetch http://x/y.pth" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_signal_ends_both_runs(offline, tmp_path, monkeypatch):
    interrupt_drawing(monkeypatch, 1, 1)
    assert demo.main(["--output", str(tmp_path / "out")]) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["nuclei"]


def test_what_it_looks_at_by_default(weights, monkeypatch, tmp_path):
    arguments = ["--output", str(tmp_path / "out"), "--threshold", "0"]
    assert demo.main(["--model", str(weights), *arguments]) == 0
    assert (tmp_path / "out" / "coffee.jpg").exists()
    monkeypatch.setitem(EMBEDDED, "shapes", weights)
    assert demo.main(["--model", "shapes", *arguments]) == 0
    assert (tmp_path / "out" / "shapes.jpg").exists()
    (tmp_path / "out" / "coffee.jpg").unlink()
    tiny_model(BACKBONE_STYLE="caffe").save(tmp_path / "coco.pth")
    monkeypatch.setattr("weights.published._fetch", lambda published: tmp_path / "coco.pth")
    assert demo.main(arguments) == 0
    assert (tmp_path / "out" / "coffee.jpg").exists(), "with the model coco, which is there"


def test_the_model_of_photographs_finds_the_cat(tmp_path):
    assert demo.main(["--model", "photos", "--output", str(tmp_path)]) == 0
    (cat,) = json.loads((tmp_path / "detections.json").read_text())
    assert (tmp_path / "chelsea.jpg").exists()
    assert cat["category_id"] == 17, "COCO's number of cats"
    assert cat["score"] > 0.7
    x, y, width, height = cat["bbox"]
    assert x < 40
    assert y < 20
    assert x + width > 400
    assert y + height > 280


############################################################
#  Odd inputs and places
############################################################


@pytest.fixture
def detect(weights, tmp_path):
    """demo.py on something, into out/: its exit code."""
    options = ["--model", str(weights), "--output", str(tmp_path / "out"), "--threshold", "0"]
    return lambda *arguments: demo.main([*options, *map(str, arguments)])


def test_odd_names_of_files(detect, tmp_path, capsys):
    """White space, control characters, bytes that are no text, signs of patterns, long names, options."""
    stems = ["a b", "a\nb\x1b[2J", "caf\udce9", "треугольник", "a[1]*", "-x", "x" * 240, "%s", "😀"]
    (tmp_path / "in").mkdir()
    for i, stem in enumerate(stems):
        Image.fromarray(random_image(20, 30, i)).save(tmp_path / "in" / f"{stem}.png")
    (tmp_path / "in" / "b\x1b[2J.png").write_bytes(b"no image")
    assert detect(tmp_path / "in") == 1
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.jpg")) == sorted(stems)
    names = {entry["file_name"] for entry in json.loads((tmp_path / "out" / "detections.json").read_text())}
    assert names == {str(tmp_path / "in" / f"{stem}.png") for stem in stems}, "the true names"
    printed = capsys.readouterr()
    assert r"b\x1b[2J.png" in printed.err
    assert "\x1b" not in printed.out + printed.err
    assert detect(tmp_path / "in" / "a[1]*.png") == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_images_of_odd_sizes(detect, tmp_path, size):
    Image.fromarray(random_image(*size)).save(tmp_path / "a.png")
    assert detect(tmp_path / "a.png") == 0
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.size == size[::-1]


def test_a_picture_that_is_too_long_for_jpeg_is_a_png(tmp_path):
    pictures = demo.Pictures([tmp_path / "a.jpg"])
    pictures.add(demo.Frame(random_image(1, 1), 0), np.zeros((2, 70_000, 3), np.uint8))
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.size, picture.format) == ((70_000, 2), "PNG")


def test_names_of_classes_are_drawn(photos, tmp_path, capsys, caplog):
    """In any script; letters that no font has are named once, with the flag that helps, and no control character."""
    names = ("BG", "треугольник\x1b[2J", "三角形", "$x_1$")
    tiny_model(CLASS_NAMES=names).save(tmp_path / "tiny.pth")
    words = [str(photos), "--model", str(tmp_path / "tiny.pth"), "--output", str(tmp_path / "out"), "--threshold", "0"]
    assert demo.main([*words, "--labels", "all"]) == 0
    printed = capsys.readouterr()
    assert [record.getMessage() for record in caplog.records] == [
        "三角形 in the texts of pictures: DejaVuSans.ttf has no such letters, so boxes are drawn instead; --font FILE "
        "draws in another font"
    ]
    assert "\x1b" not in printed.out + printed.err
    before = (tmp_path / "out" / "a.jpg").read_bytes()
    assert demo.main([*words, "--labels", "all", "--font", str(fonts.dejavu().with_name("DejaVuSerif.ttf"))]) == 0
    assert (tmp_path / "out" / "a.jpg").read_bytes() != before
    assert demo.main([*words, "--font", str(photos / "notes.txt")]) == 2
    assert "notes.txt: not a font that can be read" in capsys.readouterr().err


def test_places_that_cannot_be_written_are_named_first(photos, tmp_path, capsys, monkeypatch):
    """Before a model is read or downloaded."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    monkeypatch.setattr(cli, "open_model", None)
    cases = {
        ("--output", str(tmp_path / "file")): f"--output {tmp_path}/file: {tmp_path}/file is no folder",
        ("--output", str(tmp_path / "file" / "out")): f"--output {tmp_path}/file/out: {tmp_path}/file is no folder",
        (
            "--save-json",
            str(tmp_path / "file" / "a.json"),
        ): f"--save-json {tmp_path}/file: {tmp_path}/file is no folder",
        ("--save-json", str(tmp_path / "folder.json")): f"--save-json {tmp_path}/folder.json is a folder; name a file",
    }
    for arguments, message in cases.items():
        assert demo.main([str(photos), *arguments]) == 2
        assert capsys.readouterr().err == f"demo.py: {message}\n"
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    assert demo.main([str(photos), "--output", str(tmp_path / "new" / "out")]) == 2
    assert f"new/out: you may not write into {tmp_path}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "name"), [([], "C.jpg"), (["--save-json", "x.jsonl"], "C.jpg")])
def test_a_full_disk_names_the_file(detect, photos, tmp_path, monkeypatch, capsys, words, name):
    monkeypatch.chdir(tmp_path)
    with files_of_at_most(100):
        assert detect(photos, *words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("demo.py: ")
    assert error.endswith(": File too large")
    assert str(tmp_path / "out" / name) in error
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json"])
def test_a_full_disk_names_the_results(detect, photos, tmp_path, monkeypatch, capsys, name):
    """Those that are written at once, and those that are written at the end."""
    monkeypatch.setattr(demo.Pictures, "add", lambda self, frame, picture: None)
    with files_of_at_most(100):
        assert detect(photos, "--save-json", tmp_path / name) == 1
    assert capsys.readouterr().err.endswith(f"demo.py: {tmp_path / name}: File too large\n")


def test_a_folder_without_images_says_what_to_do(detect, tmp_path, capsys):
    (tmp_path / "in" / "inside").mkdir(parents=True)
    assert detect(tmp_path / "in") == 2
    error = capsys.readouterr().err
    assert "has no images (" in error
    assert f"give a pattern, such as '{tmp_path}/in/*/*'" in error
    demo.save_picture(random_image(20, 30), tmp_path / "in" / "inside" / "a.png")
    assert detect(f"{tmp_path}/in/*/*") == 0


@pytest.mark.parametrize("device", ["cuda", "gpu", "GPU:0", "mps"])
def test_a_device_that_is_not_there_is_one_sentence(device, detect, photos, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit) as end:
        detect(photos, "--device", device)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"demo.py: argument --device: device '{device}' cannot be used: ")
    assert error.count("\n") == 1
    assert "choose cpu" in error


def test_sources_may_stand_between_options(weights, photos, tmp_path):
    words = [str(photos / "a.jpg"), "--model", str(weights), str(photos / "b.png"), "--output", str(tmp_path / "out")]
    assert demo.main([*words, str(photos / "C.PNG")]) == 0
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


def test_the_threshold_is_a_share(capsys):
    for text in ("nan", "inf", "2"):
        with pytest.raises(SystemExit):
            demo.build_parser().parse_args(["--threshold", text])
        assert "argument --threshold: must be a number from 0 to 1" in capsys.readouterr().err

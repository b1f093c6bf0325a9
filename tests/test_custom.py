"""custom.py: what check prints and writes, what convert writes, and their exit codes."""

import base64
import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import custom
import utils
from data.formats.coco import CocoDataset
from data.object_checks import check_objects
from data.reading import Options
from data.recognise import open_records
from data.writers.all import WRITERS
from evaluation.data_page import oddest

EXAMPLES = Path(__file__).parents[2] / "shared" / "data" / "own_examples"
NASTY = '<img src=x onerror="alert(1)">'
POLYGON = [4.2, 4, 20, 5.5, 18, 22, 6, 20]


def write_coco_set(folder: Path, name: str = "cat", count: int = 3, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """A set in COCO's own layout, with `count` pictures a split."""
    rng = np.random.default_rng(0)
    for split in splits:
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            noise = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((64, 48), Image.BICUBIC).save(folder / split / f"{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "width": 64, "height": 48})
            for shift in (0, 24):
                ring = np.add(np.reshape(POLYGON, (-1, 2)), [shift, 0]).ravel().tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number, "category_id": 1 + (shift > 0), "iscrowd": 0,
                        "segmentation": [ring], "bbox": [4.2 + shift, 4, 15.8, 18], "area": 250,
                    }
                )  # fmt: skip
        categories = [{"id": 1, "name": name}, {"id": 2, "name": "dog"}]
        value = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    return folder


def masks_of(records) -> dict[str, list[tuple[str, bytes, bool]]]:
    """{picture: (class, code of the mask, is a crowd)}."""
    return {
        picture.name: [
            (parsed.name, parsed.mask(picture.height, picture.width)["counts"], parsed.is_crowd)
            for parsed in picture.objects
        ]
        for picture in records.pictures
    }


def change(path: Path, function) -> None:
    value = json.loads(path.read_text())
    function(value)
    path.write_text(json.dumps(value))


############################################################
#  check
############################################################


def test_check_of_a_clean_set(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set")
    out = tmp_path / "out"
    assert custom.main(["check", "--dataset", str(dataset), "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert "Errors    none\nWarnings  none" in printed.out
    assert "Looked at 6 pictures and 12 objects" in printed.out
    assert re.search(r"^cat +3 +3", printed.out, flags=re.MULTILINE)
    assert printed.err == ""
    value = json.loads((out / "check.json").read_text())
    assert value["errors"] == value["warnings"] == []
    assert value["splits"]["val"]["objects"] == {"cat": 3, "dog": 3}
    assert sorted(path.name for path in out.iterdir()) == ["check.html", "check.json"]


def test_errors_in_the_data_are_exit_code_1_and_named(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set")
    (dataset / "train" / "train1.png").unlink()
    change(dataset / "annotations" / "instances_val.json",
           lambda value: value["annotations"][0].update(segmentation=[[900, 4, 920, 4, 920, 30]]))  # fmt: skip
    assert custom.main(["check", "--dataset", str(dataset), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "train1.png" in printed
    assert "outside of the image: annotations/instances_val.json: id 1 of val1.png" in printed
    value = json.loads((tmp_path / "out" / "check.json").read_text())
    assert any("val1.png" in place for error in value["errors"] for place in error["places"])


@pytest.mark.parametrize("kind", ["absent", "no labels", "boxes", "two formats"])
def test_data_that_cannot_be_used_are_exit_code_2(tmp_path, capsys, kind):
    dataset, words = tmp_path / "set", {"absent": "no such folder", "no labels": "no labels", "boxes": "boxes"}
    if kind == "no labels":
        dataset.mkdir()
        Image.new("RGB", (8, 8)).save(dataset / "a.png")
    elif kind != "absent":
        write_coco_set(dataset, splits=("train",))
    if kind == "boxes":
        change(dataset / "annotations" / "instances_train.json",
               lambda value: [entry.pop("segmentation") for entry in value["annotations"]])  # fmt: skip
    elif kind == "two formats":
        for number in (1, 2, 3):
            shape = {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
            value = {"shapes": [shape], "imagePath": f"train{number}.png", "imageHeight": 48, "imageWidth": 64}
            (dataset / "train" / f"train{number}.json").write_text(json.dumps(value))
    assert custom.main(["check", "--dataset", str(dataset), "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("custom.py check: ")
    assert words.get(kind, "choose by --format coco or --format labelme") in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_with_html_are_text(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set", name=NASTY)
    change(dataset / "annotations" / "instances_train.json",
           lambda value: value["annotations"].append({**value["annotations"][0], "id": 99}))  # fmt: skip
    assert custom.main(["check", "--dataset", str(dataset), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "check.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=" in page
    assert "<script" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "script-src" not in page, "the policy allows no script at all"
    assert page.count('<img src="data:image/jpeg') == 6
    assert not re.search(r"(src|href)=\"(?!data:)", page), "nothing is loaded"
    assert "is there twice" in capsys.readouterr().out


def test_the_oddest_object_is_the_one_that_differs(tmp_path):
    dataset = write_coco_set(tmp_path / "set", count=8, splits=("train",))
    flat = {"segmentation": [[4, 4, 60, 4, 60, 6, 4, 6]], "bbox": [4, 4, 56, 2]}
    change(dataset / "annotations" / "instances_train.json", lambda value: value["annotations"][6].update(flat))
    table = check_objects(open_records(dataset))
    odd = oddest(table)
    assert [found.row for found in odd] == [6]
    assert "length over width 28" in odd[0].reason
    assert oddest(check_objects(open_records(write_coco_set(tmp_path / "few")))) == [], "too few to say what is odd"


############################################################
#  convert
############################################################


def test_convert_comes_back_as_the_same_masks(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set")
    out = tmp_path / "out"
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "coco", str(out), "--copy-pictures"]) == 0
    assert f"{out / 'annotations.json'}: 6 pictures, 12 objects" in capsys.readouterr().out
    first, second = open_records(dataset), open_records(out)
    assert masks_of(second) == masks_of(first)
    assert [picture.split for picture in second.pictures] == ["train"] * 3 + ["val"] * 3
    assert (out / "train" / "train1.png").read_bytes() == (dataset / "train" / "train1.png").read_bytes()


def test_convert_names_pictures_relative_to_the_data_set(tmp_path):
    dataset = write_coco_set(tmp_path / "set")
    out = tmp_path / "deep" / "out"
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "coco", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["annotations.json"]
    value = json.loads((out / "annotations.json").read_text())
    assert value["images"][0] == {
        "id": 1, "file_name": "train/train1.png", "width": 64, "height": 48, "split": "train"
    }  # fmt: skip
    assert [category["name"] for category in value["categories"]] == ["cat", "dog"]
    loaded = CocoDataset()
    loaded.load_annotations(out / "annotations.json", dataset)
    loaded.prepare()
    assert not loaded.skipped
    assert loaded.num_annotations == 12


def test_convert_keeps_crowds_and_says_how_to_read_them(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set", splits=("train",))

    def mark(value):
        mask = np.zeros((48, 64), bool)
        mask[30:40, 30:50] = True
        crowd = {"segmentation": utils.rle_to_json(utils.mask_to_rle(mask)), "bbox": [30, 30, 20, 10], "area": 200}
        value["annotations"].append({**crowd, "id": 99, "image_id": 1, "category_id": 1, "iscrowd": 1})

    change(dataset / "annotations" / "instances_train.json", mark)
    out, ignored = tmp_path / "out", Options(crowds="ignore")
    arguments = [
        "convert",
        "--dataset",
        str(dataset),
        "--crowds",
        "ignore",
        "--to",
        "coco",
        str(out),
        "--copy-pictures",
    ]
    assert custom.main(arguments) == 0
    assert "1 of them are crowds, so many that --crowds ignore" in capsys.readouterr().out
    crowds = [row for rows in masks_of(open_records(out, options=ignored)).values() for row in rows if row[2]]
    assert len(crowds) == 1
    assert masks_of(open_records(out, options=ignored)) == masks_of(open_records(dataset, options=ignored))


def test_convert_of_pictures_inside_labels_needs_to_copy_them(tmp_path, capsys):
    dataset = tmp_path / "set"
    dataset.mkdir()
    for number in (1, 2):
        file = io.BytesIO()
        Image.new("RGB", (32, 24), (9, 9 * number, 200)).save(file, "PNG")
        shape = {"label": "cat", "points": [[1.5, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
        value = {
            "shapes": [shape], "imagePath": f"gone{number}.png", "imageHeight": 24, "imageWidth": 32,
            "imageData": base64.b64encode(file.getvalue()).decode(),
        }  # fmt: skip
        (dataset / f"a{number}.json").write_text(json.dumps(value))
    out = tmp_path / "out"
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "coco", str(out)]) == 2
    assert "--copy-pictures writes them" in capsys.readouterr().err
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "coco", str(out), "--copy-pictures"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a1.png", "a2.png", "annotations.json"]
    assert [len(rows) for rows in masks_of(open_records(out)).values()] == [1, 1]


@pytest.mark.parametrize(("out", "words"), [("", "is that folder"), ("deep/out", "lies in it"), ("..", "holds it")])
def test_convert_does_not_mix_labels(tmp_path, capsys, out, words):
    dataset = write_coco_set(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "labelme", str(dataset / out)]) == 2
    assert f"the one {words}, so that the labels of both would mix" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert custom.main(["convert", "--dataset", str(dataset), "--to", "labelme", str(dataset / "output" / "x")]) == 0
    assert len(open_records(dataset).pictures) == 6, "nobody looks into output/"


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "coco"])
def test_convert_to_all_formats(tmp_path, capsys, name):
    dataset, out = write_coco_set(tmp_path / "set"), tmp_path / "out"
    assert custom.main(["convert", "--dataset", str(dataset), "--to", name, str(out), "--copy-pictures"]) == 0
    printed = capsys.readouterr()
    assert ": 6 pictures, 12 objects" in printed.out
    assert printed.err == ""
    assert ("pictures are copied" in printed.out) == (name in ("yolo", "voc"))
    read = open_records(out)
    assert masks_of(read) == masks_of(open_records(dataset))
    assert [picture.split for picture in read.pictures] == ["train"] * 3 + ["val"] * 3


def test_convert_leaves_out_what_nobody_labelled(tmp_path, capsys):
    dataset, out = write_coco_set(tmp_path / "set", splits=("train",)), tmp_path / "out"
    Image.new("RGB", (9, 9)).save(dataset / "train" / "new.png")
    arguments = ["convert", "--dataset", str(dataset), "--to", "yolo", str(out)]
    assert custom.main(arguments) == 0
    assert "1 picture has no label: train/new.png -- left out" in capsys.readouterr().out
    assert not list(out.rglob("new*"))
    assert custom.main([*arguments, "--empty", "label", "--force"]) == 0
    assert len(list(out.rglob("new*"))) == 2


@pytest.mark.parametrize("name", WRITERS)
def test_convert_does_not_write_among_other_files_unless_told(tmp_path, capsys, name):
    """The classes of another data set would name these labels, or a file of the user's be replaced."""
    dataset, out = write_coco_set(tmp_path / "set", splits=("train",)), tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()  # which nobody put there
    arguments = ["convert", "--dataset", str(dataset), "--to", name, str(out)]
    assert custom.main(arguments) == 0
    (out / "annotations.json").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert custom.main(arguments) == 2
    assert f"OUT {out} holds files already (" in (said := capsys.readouterr().err)
    assert "--force" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert custom.main([*arguments, "--force"]) == 0


############################################################
#  The examples of ../shared
############################################################


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no ../shared/data/own_examples beside the checkout")
@pytest.mark.parametrize("name", [path.parent.name for path in sorted(EXAMPLES.glob("broken/*/expected.json"))])
def test_a_broken_example_is_named(name, tmp_path, capsys):
    """The rules of own_examples/check_broken.py."""
    expected = json.loads((EXAMPLES / "broken" / name / "expected.json").read_text())
    dataset = tmp_path / "data"
    shutil.copytree(EXAMPLES / "broken" / name / "data", dataset)
    code = custom.main(["check", "--dataset", str(dataset), "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    text = captured.out + captured.err
    if expected.get("clean"):
        assert code == 0
        assert "Errors    none\nWarnings  none" in text
        return
    lines = text.lower().splitlines()
    for name in expected["must_name"]:
        assert name in text
    near = [i for i, line in enumerate(lines) for name in expected["must_name"] or [""] if name.lower() in line]
    words = " ".join(line for i in near for line in lines[max(0, i - 2) : i + 3])
    assert any(word.lower() in words for word in expected["any_word"])
    assert (code == 2) == (not expected["goes_on"])


def test_how_polygons_are_filled_can_be_said(tmp_path, capsys):
    """Whole numbers throughout are taken for contours, which have their outline's pixels too; --filling decides."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    Image.new("RGB", (100, 100)).save(data / "images" / "a.png")
    (data / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    areas = {}
    for filling in ("auto", "contour", "centres"):
        out = tmp_path / filling
        assert custom.main(["convert", "--dataset", str(data), "--to", "coco", str(out), "--filling", filling]) == 0
        (entry,) = json.loads((out / "annotations.json").read_text())["annotations"]
        areas[filling] = entry["area"]
    assert areas == {"auto": 41 * 41, "contour": 41 * 41, "centres": 40 * 40}


def test_the_log_of_others_speaks_again_afterwards(tmp_path, capsys):
    """Whoever calls main from Python still hears the warnings of data sets."""
    levels = [logging.getLogger(name).level for name in ("data.formats.coco", "data.images", "data.file_names")]
    data = write_coco_set(tmp_path / "data")
    assert custom.main(["check", "--dataset", str(data), "--output", str(tmp_path / "out")]) == 0
    assert levels == [logging.getLogger(name).level for name in ("data.formats.coco", "data.images", "data.file_names")]


############################################################
#  --rename
############################################################


def test_two_spellings_of_a_class_become_one_by_rename(tmp_path, capsys):
    dataset = write_coco_set(tmp_path / "set", name="Dog ")
    words = ["check", "--dataset", str(dataset), "--output", str(tmp_path / "out")]
    assert custom.main(words) == 0
    printed = capsys.readouterr().out
    assert '"Dog " and "dog", 6 and 6 objects' in printed
    assert '--rename "OLD=NEW"' in printed
    assert custom.main([*words, "--rename", "Dog =dog"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^dog +6 +6", printed, flags=re.MULTILINE)
    assert "Warnings  none" in printed
    assert '6 objects, "Dog ", are called "dog" -- by --rename' in printed


@pytest.mark.parametrize(
    ("rename", "message"),
    [("cat", "must be OLD=NEW"), ("=dog", "must be OLD=NEW"), ("cow=dog", 'no object is called so, but "cat", "dog"')],
)
def test_a_rename_that_cannot_be_is_one_sentence(tmp_path, capsys, rename, message):
    dataset = write_coco_set(tmp_path / "set")
    words = ["check", "--dataset", str(dataset), "--output", str(tmp_path / "out"), "--rename", rename]
    try:
        code = custom.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err

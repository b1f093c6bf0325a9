"""custom.py review and suggest, from the command line to the files: with the embedded model of nuclei on drawn ones."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import custom
import utils
from data.recognise import open_records
from data.split import Split, write_split

NASTY = '<img src=x onerror="alert(1)">'
MIDDLES = [(24, 24), (24, 70), (70, 24), (70, 70)]  # (y, x)
RADIUS = 11
SIDE = 96


def disc(y: float, x: float, radius: float = RADIUS) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def draw(path: Path, middles=MIDDLES, seed: int = 0) -> None:
    """Gray discs on a dark ground, as nuclei look."""
    rng = np.random.default_rng(seed)
    pixels = 12 + rng.normal(0, 2, (SIDE, SIDE))
    for y, x in middles:
        pixels[disc(y, x)] = 90
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_set(folder: Path, masks: dict[str, list[np.ndarray]], name: str = "nucleus", crowds=()) -> Path:
    """A set in COCO's format. masks: of the labels, by the names of pictures below folder/val."""
    images, annotations = [], []
    for number, (file_name, of_picture) in enumerate(masks.items(), start=1):
        draw(folder / "val" / file_name, seed=number)
        images.append({"id": number, "file_name": file_name, "width": SIDE, "height": SIDE})
        for mask in of_picture:
            rle = utils.mask_to_rle(mask)
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            annotations.append(
                {
                    "id": 100 + len(annotations), "image_id": number, "category_id": 1,
                    "iscrowd": int(len(annotations) in crowds), "segmentation": utils.rle_to_json(rle),
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": utils.rle_area(rle),
                }
            )  # fmt: skip
    value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": name}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(value))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    """A set with a fault of each kind that one class can have, and what review writes for it."""
    folder = tmp_path_factory.mktemp("review")
    right = [disc(y, x) for y, x in MIDDLES]
    half = disc(*MIDDLES[1])
    half[:, 70:] = False
    masks = {
        "a.png": [right[0], half, right[2], right[3]],  # id 101 is sloppy
        "b.png": [disc(33, 30), right[1], right[2], right[3]],  # id 104 is shifted
        "c.png": [*right[:3], disc(47, 47, 9)],  # one is missing, id 111 is surplus
    }
    dataset, out = write_set(folder / "set", masks), folder / "out"
    before = contents(dataset)
    arguments = ["review", "--dataset", str(dataset), "--model", "nuclei", "--top", "4", "--output", str(out)]
    assert custom.main(arguments) == 0
    assert contents(dataset) == before, "nothing in the data set is changed"
    return dataset, out, arguments


def test_the_planted_faults_are_the_head_of_the_queue(reviewed):
    _, out, _ = reviewed
    value = json.loads((out / "review.json").read_text())
    head = {(entry["file"], entry["place"].rpartition(": ")[2], entry["kind"]) for entry in value["queue"][:4]}
    assert ("val/a.png", "id 101", "sloppy") in head
    assert ("val/b.png", "id 104", "shifted") in head
    assert ("val/c.png", "id 111", "surplus") in head
    missing = [entry for entry in value["queue"][:4] if entry["kind"] == "missing"]
    assert [entry["file"] for entry in missing] == ["val/c.png"]
    y1, x1, y2, x2 = missing[0]["box"]
    assert utils.compute_iou(np.array([y1, x1, y2, x2]), np.array([[59, 59, 82, 82]]), 529, np.array([529]))[0] > 0.6
    assert value["labels"] == 12
    suspicions = [entry["suspicion"] for entry in value["queue"]]
    assert suspicions == sorted(suspicions, reverse=True)
    assert suspicions[3] > 2 * suspicions[4], "what is right follows far behind"
    first = value["queue"][0]
    assert {"score", "mask_iou", "mask_score", "iou", "why", "class", "split"} <= first.keys()


def test_the_labels_carry_the_numbers(reviewed):
    dataset, out, _ = reviewed
    value = json.loads((out / "coco" / "annotations.json").read_text())
    assert len(value["annotations"]) == 13, "the labels, and the missing object as a proposal"
    attributes = [entry["attributes"] for entry in value["annotations"]]
    assert [numbers["kind"] for numbers in attributes].count("missing") == 1
    assert all(0 <= numbers["suspicion"] <= 1 for numbers in attributes)
    sloppy = attributes[1]
    assert sloppy["kind"] == "sloppy"
    assert sloppy["mask_score"] == pytest.approx(sloppy["score"] * sloppy["mask_iou"], abs=1e-3)
    first = open_records(dataset).pictures[0]
    assert value["annotations"][1]["segmentation"] == utils.rle_to_json(first.objects[1].mask(SIDE, SIDE))


def test_labelme_opens_the_labels_with_their_numbers(reviewed):
    """Each picture has its json, from which imagePath leads to the picture."""
    dataset, out, _ = reviewed
    paths = sorted((out / "labelme").rglob("*.json"))
    assert [path.name for path in paths] == ["a.json", "b.json", "c.json"]
    values = [json.loads(path.read_text()) for path in paths]
    assert [len(value["shapes"]) for value in values] == [4, 4, 5]
    for path, value, name in zip(paths, values, "abc", strict=True):
        assert (path.parent / value["imagePath"]).resolve() == (dataset / "val" / f"{name}.png").resolve()
        assert all("suspicion" in json.dumps(shape) for shape in value["shapes"])


def test_a_second_run_detects_nothing_again(reviewed, capsys):
    """Also after a label was corrected, which is what the queue is for."""
    dataset, _, arguments = reviewed
    path = dataset / "annotations" / "instances_val.json"
    text = path.read_text()
    value = json.loads(text)
    value["annotations"][1]["segmentation"] = utils.rle_to_json(utils.mask_to_rle(disc(*MIDDLES[1])))
    try:
        path.write_text(json.dumps(value))
        assert custom.main(arguments) == 0
    finally:
        path.write_text(text)
    printed = capsys.readouterr().out
    assert "taken over from an earlier run: 3 of 3 images" in printed
    assert "Looked at 12 labels in 3 pictures" in printed
    assert "IoU of a label with the model's outline, in the middle: val 0." in printed
    head = [line for line in printed.splitlines() if re.match(r"  0\.\d\d  ", line)]
    assert len(head) == 4
    assert not any("id 101" in line for line in head[:3]), "it has been corrected"
    assert any(re.search(r"shifted +val/b.png  annotations/instances_val.json: id 104  it lies", line) for line in head)


def test_the_page_shows_the_crops_and_loads_nothing(reviewed):
    _, out, _ = reviewed
    page = (out / "review.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 4
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for words in ("id 104", "val/b.png", "predicted IoU", "IoU with the label", "trained on these very labels"):
        assert words in page


def test_the_division_of_the_training_counts(reviewed, tmp_path, capsys):
    """The model has not seen what its own training held out."""
    dataset, _, _ = reviewed
    shutil.copy(Path(custom.__file__).parent / "assets" / "nuclei.pth", tmp_path / "model.pth")
    write_split(Split(["val/b.png", "val/c.png"], ["val/a.png"], {}, []), tmp_path / "split.json")
    arguments = ["--subset", "val", "--model", str(tmp_path / "model.pth"), "--output", str(tmp_path / "out")]
    assert custom.main(["review", "--dataset", str(dataset), *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"train and val are those of {tmp_path / 'split.json'}" in printed
    assert "Looked at 4 labels in 1 picture" in printed
    value = json.loads((tmp_path / "out" / "review.json").read_text())
    assert {entry["file"] for entry in value["queue"]} == {"val/a.png"}
    labels = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())
    assert [entry["file_name"] for entry in labels["images"]] == ["val/a.png"]


def test_names_are_text(tmp_path, capsys):
    name = f"{NASTY.replace('/', '')}\x1b[2J.png"
    dataset = write_set(tmp_path / "set", {name: [disc(*middle) for middle in MIDDLES[:3]]}, name=NASTY)
    model = tmp_path / "nasty.pth"
    checkpoint = torch.load(custom.__file__.replace("custom.py", "assets/nuclei.pth"), weights_only=True)
    torch.save({**checkpoint, "class_names": ["BG", NASTY]}, model)
    arguments = ["--model", str(model), "--output", str(tmp_path / "out")]
    assert custom.main(["review", "--dataset", str(dataset), *arguments]) == 0
    assert custom.main(["suggest", "--unlabelled", str(dataset), *arguments[:2], "--output", str(tmp_path / "o")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    for path in (tmp_path / "out" / "review.html", tmp_path / "o" / "suggest.html"):
        page = path.read_text()
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page
        assert "\x1b" not in page


def test_suggest_puts_the_doubtful_picture_first_and_copies_last(tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    draw(pictures / "clear.png")
    draw(pictures / "deep" / "crowded.png", [(24, 24), (30, 36), (36, 24), (28, 48), (70, 70), (74, 60)], seed=1)
    draw(pictures / "deep" / "same.png", [(24, 24), (30, 36), (36, 24), (28, 48), (70, 70), (74, 60)], seed=1)
    Image.new("L", (SIDE, SIDE), 12).save(pictures / "nothing.png")
    (pictures / "cut.png").write_bytes((pictures / "clear.png").read_bytes()[:400])
    before = contents(pictures)
    arguments = ["suggest", "--unlabelled", str(pictures), "--model", "nuclei", "--top", "2", "--output", str(out)]
    assert custom.main(arguments) == 1, "a picture cannot be read"
    assert contents(pictures) == before
    printed = capsys.readouterr().out
    assert "cut.png" in printed
    assert "in 1 the model finds nothing" in printed
    assert "1 show the same as others, and come last" in printed
    value = json.loads((out / "suggest.json").read_text())
    names = [entry["file"] for entry in value["pictures"]]
    assert names == ["deep/crowded.png", "clear.png", "nothing.png", "deep/same.png"]
    assert value["pictures"][3]["shows the same as"] == "deep/crowded.png"
    assert value["pictures"][0]["doubt"] > value["pictures"][1]["doubt"] > value["pictures"][2]["doubt"] == 0
    page = (out / "suggest.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 2
    labels = json.loads((out / "coco" / "annotations.json").read_text())
    assert [entry["file_name"] for entry in labels["images"]] == names[:2]
    clear = [entry for entry in labels["annotations"] if entry["image_id"] == 2]
    assert len(clear) == 4
    assert all({"score", "mask_iou", "mask_score"} <= entry["attributes"].keys() for entry in clear)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["review", "--dataset", "SET"], "name the model with --model FILE"),
        (["review", "--dataset", "SET", "--model", "shapes"], "none of the classes of the labels: nucleus"),
        (
            ["review", "--dataset", "SET", "--model", "nuclei", "--subset", "train"],
            "has no such pictures; it has --subset val",
        ),
        (["review", "--dataset", "SET", "--model", "nuclei", "--output", "SET/review"], "lies inside of --dataset"),
        (["suggest", "--unlabelled", "SET/val"], "--model must name a checkpoint file"),
        (["suggest", "--unlabelled", "SET/none", "--model", "nuclei"], "there is no such folder"),
        (["suggest", "--unlabelled", "SET/annotations", "--model", "nuclei"], "there is no picture"),
        (
            ["suggest", "--unlabelled", "SET/val", "--model", "nuclei", "--output", "SET/val/x"],
            "inside of --unlabelled",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, words):
    write_set(tmp_path / "set", {"a.png": [disc(*MIDDLES[0])]})
    arguments = [argument.replace("SET", str(tmp_path / "set")) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "out")]
    assert custom.main(arguments) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("custom.py")]
    assert words in line

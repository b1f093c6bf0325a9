"""Data sets, checkpoints and configs that name classes differently, bad images, seeds: by coco.py and in Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SquaresDataset, TinyConfig, TrainConfig, settings_of, tiny_model
from PIL import Image

import coco
import native
import runtime
from data.formats.coco import CocoDataset
from evaluation.run import evaluate_dataset, evaluate_to_folder, evaluation_callback
from model import MaskRCNN
from training.checkpoints import find_last
from weights.checkpoint import read_checkpoint

CASES = native.ROOT.parent / "shared" / "cases" / "coco"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"there is no {CASES}")
TINY = {
    name: value
    for name, value in settings_of(TinyConfig).items()
    if name != "NAME" and not name.endswith("CLASSES") and name != "CLASS_NAMES"
}
SET = [
    *("--device", "cpu", "--workers", "0", "--set", "STEPS_PER_EPOCH=2", "VALIDATION_STEPS=2"),
    *(f"{name}={value}" for name, value in {**TINY, "TRAIN_ROIS_PER_IMAGE": 16, "MASKIOU_HEAD_CHANNELS": 16}.items()),
]
ORDERED, SWAPPED = {1: "square", 2: "bar"}, {1: "bar", 2: "square"}


def write_split(folder: Path, split: str, categories: dict[int, str], objects=("square", "bar"), count=4) -> None:
    """Images with a square and a bar, and a file of annotations with these categories, in whatever case."""
    ids = {name.lower(): number for number, name in categories.items()}
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng([number, split == "val2017"])
        pixels = rng.integers(0, 50, (64, 96, 3), np.uint8)
        for x, (name, size) in zip((4, 50), {"square": (24, 24), "bar": (8, 30)}.items(), strict=True):
            y = int(rng.integers(4, 30))
            pixels[y : y + size[0], x : x + size[1]] = 250 if name == "square" else 120
            polygon = [x, y, x + size[1], y, x + size[1], y + size[0], x, y + size[0]]
            box = [x, y, size[1], size[0]]
            if name in objects:
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[name], "iscrowd": 0}
                annotations.append({**entry, "bbox": box, "area": size[0] * size[1], "segmentation": [polygon]})
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 96})
    entries = [{"id": number, "name": name} for number, name in categories.items()]
    contents = {"images": images, "annotations": annotations, "categories": entries}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(contents))


def write_data(folder: Path, train: dict[int, str], val: dict[int, str], **options) -> Path:
    write_split(folder, "train2017", train)
    write_split(folder, "val2017", val, **options)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _without_curves():
    """Drawing them takes longer than the trainings of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.save_curves", lambda log_dir: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("ordered"), ORDERED, ORDERED)


def train(data: Path, logs: Path, *words: str) -> int:
    model = () if "--model" in words else ("--model", "none")
    return coco.main(["train", "--dataset", str(data), "--logs", str(logs), *model, *words, *SET])


def last(logs: Path) -> dict:
    return read_checkpoint(find_last(logs, "coco"))


def records(logs: Path, kind: str) -> list[dict]:
    (path,) = logs.glob("*/metrics.jsonl")  # one folder: a training that continued, continued there
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]


def assert_same_weights(one: dict, other: dict) -> None:
    assert one["model"].keys() == other["model"].keys()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name


def same_numbers(one: Path, other: Path) -> bool:
    """Whether two trainings have the same validation losses and metrics."""
    return all(records(one, kind) == records(other, kind) != [] for kind in ("val", "eval"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The log folder of an epoch."""
    logs = tmp_path_factory.mktemp("trained")
    assert train(data, logs, "--epochs", "1") == 0
    return logs


############################################################
#  --model last
############################################################


@pytest.mark.parametrize("source", ["own", pytest.param("case", marks=needs_cases)])
def test_a_training_continues_with_swapped_categories(source, data, tmp_path, capsys):
    """To the bit as it would have without the change: the rows are those of the names."""
    before, after = CASES / "T2_resume_swapped" / "before", CASES / "T2_resume_swapped" / "after"
    if source == "own":
        before, after = data, write_data(tmp_path / "after", SWAPPED, {7: "bar", 9: "square"})
    assert train(before, tmp_path / "whole", "--epochs", "2") == 0
    assert train(before, tmp_path / "parts", "--epochs", "1") == 0
    capsys.readouterr()
    assert train(after, tmp_path / "parts", "--epochs", "2", "--model", "last") == 0
    assert "the training's classes keep their order: 'square', 'bar'" in capsys.readouterr().out
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert_same_weights(whole, parts)
    assert parts["training"]["epoch"] == 2
    assert parts["class_names"] == ["BG", "square", "bar"]
    assert parts["config"]["CLASS_NAMES"] == ["BG", "square", "bar"]
    assert parts["category_ids"] == [0, 2, 1], "the ids are the new data set's"
    assert same_numbers(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("categories", [{**ORDERED, 3: "ring"}, {1: "square", 2: "ring", 3: "bar"}])
def test_a_training_cannot_continue_with_more_classes(categories, trained, tmp_path, capsys):
    data, logs = write_data(tmp_path / "data", categories, ORDERED), tmp_path / "logs"
    shutil.copytree(trained, logs)
    assert train(data, logs, "--model", "last", "--epochs", "2") == 2
    assert "cannot continue with other classes than it began with (added: 'ring')" in capsys.readouterr().err
    assert last(logs)["training"]["epoch"] == 1
    path = find_last(logs, "coco")
    assert train(data, tmp_path / "new", "--model", str(path), "--epochs", "1") == 0, "what the message advises"
    assert last(tmp_path / "new")["class_names"] == ["BG", *categories.values()]


############################################################
#  Validation data
############################################################


@pytest.mark.parametrize("categories", [
    SWAPPED, {0: "square", 1: "bar"}, {5: "bar", 8: "square"},
    {2: "Square", 9: "bar"},
])  # fmt: skip
def test_val_categories_of_other_ids(categories, trained, tmp_path, capsys):
    """T6: the same losses and the same metrics as with the ids and the order of the training data."""
    data = write_data(tmp_path / "data", ORDERED, categories)
    assert train(data, tmp_path / "logs", "--epochs", "1") == 0
    assert same_numbers(tmp_path / "logs", trained)
    assert ("'Square' is taken for the class 'square'" in capsys.readouterr().out) == ("Square" in categories.values())


@needs_cases
def test_val_categories_case(tmp_path):
    assert train(CASES / "T6_val_categories" / "data", tmp_path / "renumbered", "--epochs", "1") == 0
    assert train(CASES / "T2_resume_swapped" / "before", tmp_path / "plain", "--epochs", "1") == 0
    assert same_numbers(tmp_path / "renumbered", tmp_path / "plain")


@pytest.mark.parametrize("source", ["own", pytest.param("case", marks=needs_cases)])
def test_val_with_fewer_categories(source, tmp_path):
    """T8: the same as with a file that lists all categories, and has the same objects.

    Only detections of classes that are not listed are not counted.
    """
    subset, full = tmp_path / "subset", tmp_path / "full"
    if source == "case":
        for folder in (subset, full):
            shutil.copytree(CASES / "T8_val_subset_loss" / "data", folder)
    else:
        for folder in (subset, full):
            write_data(folder, ORDERED, {2: "bar"}, objects=("bar",))
    path = full / "annotations" / "instances_val2017.json"
    contents = json.loads(path.read_text())
    contents["categories"] = [{"id": number, "name": name} for number, name in ORDERED.items()]
    path.chmod(0o644)
    path.write_text(json.dumps(contents))
    for folder in (subset, full):
        assert train(folder, tmp_path / f"logs {folder.name}", "--epochs", "1") == 0
    assert records(tmp_path / "logs subset", "val") == records(tmp_path / "logs full", "val") != []
    (one,), (other,) = (records(tmp_path / f"logs {name}", "eval") for name in ("subset", "full"))
    counted = ("detections", "IoU correlation", "class score correlation")
    assert {**one, **dict.fromkeys(counted)} == {**other, **dict.fromkeys(counted)}


def test_val_categories_that_the_model_does_not_know(trained, tmp_path, capsys):
    """Rings are named, and are crowds for the validation loss; AP is that of the other classes."""
    categories = {1: "square", 2: "ring"}
    data = write_data(tmp_path / "data", ORDERED, {1: "square", 2: "bar"})
    path = data / "annotations" / "instances_val2017.json"
    contents = json.loads(path.read_text())
    unknown = {**contents, "categories": [{"id": number, "name": name} for number, name in categories.items()]}
    path.write_text(json.dumps(unknown))
    assert train(data, tmp_path / "unknown", "--epochs", "1") == 0
    printed = capsys.readouterr().out
    assert "the validation data: the model does not know 'ring' (its id 2 is 'bar' in the model); objects of" in printed
    assert "the data set of the evaluation: the model does not know 'ring'" in printed
    for entry in contents["annotations"]:
        entry["iscrowd"] = int(entry["category_id"] == 2)
    path.write_text(json.dumps(contents))
    assert train(data, tmp_path / "crowds", "--epochs", "1") == 0
    assert records(tmp_path / "unknown", "val") == records(tmp_path / "crowds", "val")
    (known,), (both,) = records(tmp_path / "unknown", "eval"), records(trained, "eval")
    assert (known["objects"], both["objects"]) == (4, 8)
    model = MaskRCNN.from_checkpoint(find_last(tmp_path / "unknown", "coco"), "cpu")
    path.write_text(json.dumps(unknown))
    capsys.readouterr()
    evaluate_to_folder(model, open_val(data), tmp_path / "out")
    assert "the data set: the model does not know 'ring'" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "does not know 'ring'" in facts["facts"]["classes"]
    assert [row["name"] for row in facts["classes"]] == ["square"]
    assert "does not know &#39;ring&#39;" in (tmp_path / "out" / "report.html").read_text()


def open_val(data: Path) -> CocoDataset:
    dataset = CocoDataset()
    dataset.load_coco(data, "val")
    dataset.prepare()
    return dataset


def test_val_of_other_classes_is_refused_before_the_first_step(tmp_path, capsys):
    data = write_data(tmp_path / "data", ORDERED, ORDERED)
    path = data / "annotations" / "instances_val2017.json"
    contents = json.loads(path.read_text())
    contents["categories"] = [{"id": 1, "name": "ring"}, {"id": 2, "name": "star"}]
    path.write_text(json.dumps(contents))
    assert train(data, tmp_path / "logs", "--epochs", "1") == 2
    message = (
        "the model knows none of the classes of the validation data: the model has 'square', 'bar', and the validation"
    )
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("logs/*/*.pth"))


############################################################
#  Bad images
############################################################


def spoil(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "size":
        Image.open(path).resize((30, 20)).save(path)
    else:
        path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["size", "cut"])
def test_a_bad_validation_image_costs_that_image(kind, data, tmp_path, capsys, caplog):
    """It is named, the numbers say of how many images they are, and the training goes on, also when it continues."""
    shutil.copytree(data, tmp_path / "data")
    spoil(tmp_path / "data" / "val2017" / "2.png", kind)
    assert train(tmp_path / "data", tmp_path / "logs", "--epochs", "1") == 0
    assert train(tmp_path / "data", tmp_path / "logs", "--epochs", "2", "--model", "last") == 0
    printed = capsys.readouterr().out
    before = "images to validate with that cannot be read; validation goes on without them: "
    assert printed.count(before) == (0 if kind == "cut" else 2), "a cut file has a good header"
    assert printed.count("evaluation goes on without images that cannot be read: 2 (") == 2
    assert "2.png" in printed
    for number in (1, 2):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"epoch {number}/{number}: ")]
        assert line.count(" on 3 of 4 images") == 5, line  # val_loss, three APs and the gain
    assert "validation goes on without this image" in caplog.text
    assert "ValueError: image" not in caplog.text, "a sentence that names the file needs no other name"
    for kind_of, names in (("val", ("val_missing_images", "val_images")), ("eval", ("missing_images", "images"))):
        assert [[line[name] for name in names] for line in records(tmp_path / "logs", kind_of)] == [[1, 3]] * 2


@needs_cases
def test_a_bad_validation_image_case(tmp_path, capsys):
    assert train(CASES / "T5_bad_val_image" / "data", tmp_path, "--epochs", "1") == 0
    assert "0002.png has 48 x 64 pixels, but its annotations are for 96 x 128" in capsys.readouterr().out


def test_the_validation_loss_is_that_of_the_other_images(data, tmp_path):
    """Without the bad image in the file: the same loss, except that batches are divided differently."""
    for name in ("bad", "without"):
        shutil.copytree(data, tmp_path / name)
    for number in (3, 4):
        spoil(tmp_path / "bad" / "val2017" / f"{number}.png", "cut")
    path = tmp_path / "without" / "annotations" / "instances_val2017.json"
    contents = json.loads(path.read_text())
    contents["images"] = contents["images"][:2]
    contents["annotations"] = [entry for entry in contents["annotations"] if entry["image_id"] <= 2]
    path.write_text(json.dumps(contents))
    for name in ("bad", "without"):
        assert train(tmp_path / name, tmp_path / f"logs {name}", "--epochs", "1") == 0
    (bad,), (without,) = (records(tmp_path / f"logs {name}", "val") for name in ("bad", "without"))
    assert bad == {**without, "val_missing_images": 2, "val_images": 2}
    (bad,), (without,) = (records(tmp_path / f"logs {name}", "eval") for name in ("bad", "without"))
    assert bad == {**without, "missing_images": 2}


def test_an_evaluation_alone_stays_strict(trained, data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    spoil(tmp_path / "data" / "val2017" / "2.png", "cut")
    words = ["--dataset", str(tmp_path / "data"), "--logs", str(trained), "--device", "cpu"]
    assert coco.main(["evaluate", *words, "--output", str(tmp_path / "out")]) == 2
    assert "1 images could not be read, so that not all of them have results: 2 (" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()
    model = MaskRCNN.from_checkpoint(find_last(trained, "coco"), "cpu")
    with pytest.raises(ValueError, match=r"2\.png"):
        evaluate_dataset(model, open_val(tmp_path / "data"), verbose=False)


############################################################
#  Seeds
############################################################


def test_the_same_seed_is_the_same_training(data, trained, tmp_path):
    for name, words in {"one": ["--seed", "1"], "again": ["--set", "SEED=1"], "other": ["--seed", "2"]}.items():
        torch.rand(3)  # whatever was drawn before
        assert train(data, tmp_path / name, "--epochs", "1", *words) == 0
    one, again, other = (last(tmp_path / name) for name in ("one", "again", "other"))
    assert_same_weights(one, again)
    for states in zip(*(each["training"]["optimizer"]["state"].values() for each in (one, again)), strict=True):
        assert torch.equal(*(state["momentum_buffer"] for state in states))
    assert records(tmp_path / "one", "train") == records(tmp_path / "again", "train")
    assert not torch.equal(one["model"]["rpn.objectness.weight"], other["model"]["rpn.objectness.weight"])


def test_heads_that_start_anew_follow_from_the_seed(trained, tmp_path):
    """Of a checkpoint of other classes; the shared generators stay as they are."""
    path, heads = find_last(trained, "coco"), []
    for seed in (1, 1, 2):
        states = runtime.random_states()
        config = coco.CocoConfig(**TINY, NUM_CLASSES=4, CLASS_NAMES=("BG", "a", "b", "c"), CATEGORY_IDS=None, SEED=seed)
        model = MaskRCNN(config)
        first = model.box_head.class_logits.weight.clone()
        model.load_weights(path, by_name=True)
        assert torch.equal(torch.get_rng_state(), states["torch"])
        assert torch.equal(runtime.random_states()["numpy"][1], states["numpy"][1])
        heads.append(model.box_head.class_logits.weight)
        assert not torch.equal(first, heads[-1])
        torch.rand(5)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_of_a_seed():
    """They follow from SEED, not from torch.manual_seed, and leave torch's generator alone."""
    torch.manual_seed(11)
    one, again, other = (MaskRCNN(TinyConfig(SEED=seed)).state_dict() for seed in (5, 5, 6))
    assert torch.initial_seed() == 11
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["backbone.stem.weight"], other["backbone.stem.weight"])


############################################################
#  In Python
############################################################


def squares(names=("cat", "dog", "cow"), ids=None, count: int = 4) -> SquaresDataset:
    """SquaresDataset with its classes in another order, under other ids: "dog" is of the same brightness always."""
    dataset = Renamed()
    dataset.names, dataset.ids = list(names), ids
    for number, name in enumerate(names, start=1):
        dataset.add_class("squares", number, name)
    for number in range(count):
        dataset.add_image("squares", number, None, width=64, height=64, is_empty=False)
    dataset.prepare()
    return dataset


class Renamed(SquaresDataset):
    NAMES = ("BG", "cat", "dog", "cow")

    @property
    def category_ids(self):
        if self.ids is None:
            raise AttributeError("category_ids")
        return [0, *self.ids]

    def load_mask(self, image_id):
        masks, class_ids = super().load_mask(image_id)
        return masks, np.array([1 + self.names.index(self.NAMES[class_id]) for class_id in class_ids], np.int32)


def new_model(folder, **settings) -> MaskRCNN:
    return MaskRCNN(TrainConfig(**settings), folder)


def weights(model: MaskRCNN) -> dict:
    return {"model": {name: tensor.clone() for name, tensor in model.state_dict().items()}}


REORDERED = ("cow", "cat", "dog")


def test_training_data_follow_the_model(tmp_path):
    """In another order, the same weights to the bit, and the same evaluation."""
    models = []
    for names, val_names in ((("cat", "dog", "cow"), ("cat", "dog", "cow")), (REORDERED, ("dog", "cow", "cat"))):
        model = new_model(tmp_path / names[0])
        val = squares(val_names)
        progress = model.train_model(squares(names), val, 0.01, 1, evaluate=evaluation_callback(val))
        assert model.class_names == ["BG", "cat", "dog", "cow"]
        models.append((model, progress.logs))
    assert_same_weights(*(weights(model) for model, _ in models))
    assert models[0][1] == models[1][1]
    ((one, _), (other, _)) = models
    expected = evaluate_dataset(one, squares(), verbose=False)
    assert evaluate_dataset(other, squares(REORDERED), verbose=False) == expected


def test_a_config_without_names_takes_those_of_the_data_set(tmp_path):
    """With any ids, and in the checkpoint, too; the caller's config stays as it is."""
    config = TrainConfig(CLASS_NAMES=None)
    model = MaskRCNN(config, tmp_path)
    val = squares(("cow", "dog"), [1, 4])
    progress = model.train_model(squares(REORDERED, [40, 0, 7]), val, 0.01, 1, evaluate=evaluation_callback(val))
    assert "mask AP" in progress.logs
    assert (config.CLASS_NAMES, config.CATEGORY_IDS) == (None, None)
    stored = read_checkpoint(model.find_last())
    assert (stored["class_names"], stored["category_ids"]) == (["BG", *REORDERED], [0, 40, 0, 7])
    again = MaskRCNN(config, tmp_path)
    again.load_weights(again.find_last())
    assert (again.class_names, again.category_ids, again.epoch) == (["BG", *REORDERED], [0, 40, 0, 7], 1)
    again.train_model(squares(("dog", "cow", "cat"), [3, 4, 5]), None, 0.01, 2)
    assert (again.class_names, again.category_ids) == (["BG", *REORDERED], [0, 4, 5, 3])


def test_fewer_classes_than_the_config_counts(tmp_path):
    model = new_model(tmp_path, CLASS_NAMES=None, STEPS_PER_EPOCH=1)
    dataset = squares(ids=[2, 3, 4])
    dataset.class_info.pop()
    dataset.names, dataset.NAMES = ["cat", "dog"], ("BG", "cat", "dog", "dog")
    dataset.ids = [2, 3]
    dataset.prepare()
    model.train_model(dataset, None, 0.01, 1)
    assert (model.class_names, model.category_ids) == (["BG", "cat", "dog", "class 3"], [0, 2, 3, 4])


@pytest.mark.parametrize("options", [{}, {"by_name": True}])
def test_the_recipe_after_weights_of_as_many_other_classes(options, tmp_path, capsys):
    """The checkpoint knows hens, dogs and oxen; dogs keep their rows, and the other rows start anew."""
    own = {"CLASS_NAMES": ("BG", "hen", "dog", "ox"), "CATEGORY_IDS": (0, 5, 6, 7)}
    source = tiny_model(1, **{**settings_of(TrainConfig), **own})
    source.save(tmp_path / "source.pth")
    model = new_model(tmp_path, CLASS_NAMES=None, LEARNING_RATE=0.0)
    model.load_weights(tmp_path / "source.pth", **options)
    assert (model.class_names, model.category_ids) == (["BG", "hen", "dog", "ox"], [0, 5, 6, 7])
    model.train_model(squares(REORDERED, [8, 9, 5]), None, 0.0, 1)
    assert (model.class_names, model.category_ids) == (["BG", *REORDERED], [0, 8, 9, 5])
    own, theirs = model.box_head.class_logits.weight, source.box_head.class_logits.weight
    assert torch.equal(own[3], theirs[2]), "dog"
    assert torch.equal(own[0], theirs[0]), "BG"
    assert all(not torch.equal(own[row], theirs[other]) for row in (1, 2) for other in range(4))
    assert "classes are now the data set's: cow, cat, dog; rows of other names start anew" in capsys.readouterr().out


def test_classes_that_the_model_lacks_are_refused(tmp_path):
    model = new_model(tmp_path, CLASS_NAMES=("BG", "cat", "dog", "hen"))
    with pytest.raises(ValueError, match=r"the training data has classes that the model does not know: 'cow'; the mod"):
        model.train_model(squares(), None, 0.01, 1)
    val = squares()
    val.class_info[1:] = [{**info, "name": f"{info['name']}s"} for info in val.class_info[1:]]
    val.prepare()
    with pytest.raises(ValueError, match="knows none of the classes of the validation data"):
        new_model(tmp_path).train_model(squares(), val, 0.01, 1)
    assert not list(tmp_path.iterdir()), "nothing was trained"


def test_what_evaluation_checks_is_checked_before_the_first_step(tmp_path):
    val = squares()
    for evaluate, message in (
        (evaluation_callback(val, max_dets=0), "max_dets must be at least 1"),
        (evaluation_callback(val, image_ids=[1, 1]), "images have the same id"),
    ):
        with pytest.raises(ValueError, match=message):
            new_model(tmp_path).train_model(squares(), val, 0.01, 1, evaluate=evaluate)
    assert not list(tmp_path.iterdir())


def test_rows_move_with_their_names(tmp_path):
    source = tiny_model(1)
    source.save(tmp_path / "source.pth")
    model = tiny_model(2, CLASS_NAMES=("BG", *REORDERED))
    model.load_weights(tmp_path / "source.pth")
    for layer in ("box_head.class_logits", "mask_head.mask_logits", "maskiou_head.maskious"):
        for leaf in ("weight", "bias"):
            own, theirs = (dict(each.named_parameters())[f"{layer}.{leaf}"] for each in (model, source))
            assert torch.equal(own, theirs[[0, 3, 1, 2]]), layer
    deltas, theirs = (each.box_head.box_deltas.weight.view(4, 4, -1) for each in (model, source))
    assert torch.equal(deltas, theirs[[0, 3, 1, 2]])
    image = squares().load_image(0)
    (ours,), (theirs,) = (each.detect([image]) for each in (model, source))
    assert sorted(map(model.class_names.__getitem__, ours["class_ids"])) == sorted(
        map(source.class_names.__getitem__, theirs["class_ids"])
    )


def test_rows_of_other_classes_are_refused_or_start_anew(tmp_path, capsys):
    tiny_model(1).save(tmp_path / "source.pth")
    settings = {"CLASS_NAMES": ("BG", "cat", "hen", "ox"), "SEED": 2}
    model = tiny_model(**settings)
    before = weights(model)
    with pytest.raises(ValueError, match=r"other classes than the model \(added: 'hen', 'ox'; removed: 'dog', 'cow'\)"):
        model.load_weights(tmp_path / "source.pth")
    assert_same_weights(weights(model), before)
    model.load_weights(tmp_path / "source.pth", by_name=True)
    source = tiny_model(1)
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    assert not torch.equal(model.box_head.class_logits.weight[1], source.box_head.class_logits.weight[1])
    model.load_weights(tmp_path / "source.pth", copy_classes=True)
    assert torch.equal(model.box_head.class_logits.weight[1], source.box_head.class_logits.weight[1])
    assert not torch.equal(model.box_head.class_logits.weight[2], source.box_head.class_logits.weight[2])
    printed = capsys.readouterr().out
    assert "classes that the checkpoint does not have, whose rows start anew: 'hen', 'ox'\n" in printed


def test_a_training_continues_in_its_own_order_in_python(tmp_path):
    whole = new_model(tmp_path / "whole")
    whole.train_model(squares(), None, 0.01, 2)
    new_model(tmp_path / "parts").train_model(squares(), None, 0.01, 1)
    second = new_model(tmp_path / "parts", CLASS_NAMES=("BG", *REORDERED))
    second.load_weights(second.find_last())
    assert (second.epoch, second.class_names) == (1, ["BG", "cat", "dog", "cow"])
    second.train_model(squares(REORDERED), None, 0.01, 2)
    assert_same_weights(weights(second), weights(whole))
    other = new_model(tmp_path / "parts", CLASS_NAMES=("BG", "cat", "dog", "hen"))
    with pytest.raises(ValueError, match=r"cannot continue with other classes .*\(added: 'hen'; removed: 'cow'\)"):
        other.load_weights(other.find_last())
    other.load_weights(other.find_last(), copy_classes=True)
    assert (other.epoch, other.log_dir) == (0, None)

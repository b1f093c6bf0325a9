"""samples/nucleus.py: both layouts of its data set, submissions, and its command line on a tiny model."""

import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from helpers import TINY_SHAPES, detection_result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cli
import utils
from benchmarks import measure_gain
from config import Config
from data.dataset import Dataset
from data.samples import TrainingData
from evaluation.results import ground_truth
from model import MaskRCNN
from native import ROOT
from samples import nucleus
from training.checkpoints import find_last
from training.loop import Progress
from weights.checkpoint import read_checkpoint, write_checkpoint
from weights.load import load_model

DATA = ROOT.parent / "shared" / "data" / "nuclei"
SETTINGS = {
    **TINY_SHAPES, "IMAGE_MIN_DIM": 64, "IMAGE_MAX_DIM": 64, "IMAGES_PER_GPU": 2, "STEPS_PER_EPOCH": 2,
    "VALIDATION_STEPS": 1, "EVAL_EVERY": 1, "TRAIN_DTYPE": "float32", "SCALE_JITTER": None,
}  # fmt: skip
SET = ["--set", *(f"{name}={value}" for name, value in SETTINGS.items())]
IDS = ("a005", "b2e1", "c008", "d001")  # only the third is held out, of shares from 0.1 to 0.6


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on black, no two overlapping, of other places and sizes in each image: [H, W, 3] and [H, W, N]."""
    rng = np.random.default_rng(number)
    height, width = 40 + 8 * (number % 2), 48
    y, x = np.mgrid[:height, :width]
    radii = rng.uniform(4, 7, (2, 3))
    discs = [(y - 12 - 18 * i) ** 2 + (x - 8 - 16 * j) ** 2 < radii[i, j] ** 2 for i in range(2) for j in range(3)]
    masks = np.stack(discs[: 4 + number % 3], axis=-1)
    image = np.where(masks.any(axis=2), 200, 10) + rng.integers(0, 10, (height, width))
    return image.astype(np.uint8)[..., None].repeat(3, axis=2), masks


def write_coco(folder, subset, numbers=range(4), category_ids=(1,), first=528):
    """COCO's layout, with uncompressed RLEs that are no crowds. Ids count from `first`, as in the real val."""
    (folder / subset).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in numbers:
        image, masks = picture(number)
        Image.fromarray(image).save(folder / subset / f"{IDS[number]}.png")
        size = {"height": image.shape[0], "width": image.shape[1]}
        images.append({"id": first + number, "file_name": f"{IDS[number]}.png", **size})
        for i, rle in enumerate(utils.mask_to_rle(masks)):
            annotations.append({
                "id": 100 * number + i + 1, "image_id": first + number, "iscrowd": 0, "area": utils.rle_area(rle),
                "category_id": category_ids[i % len(category_ids)], "segmentation": utils.rle_to_json(rle),
            })  # fmt: skip
    categories = [{"id": category, "name": f"kind {category}"} for category in category_ids]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{subset}.json").write_text(json.dumps(contents))
    return folder


def write_bowl(folder, subset, numbers=range(4), has_masks=True):
    """The Bowl's layout: RGBA images, and a file a mask."""
    for number in numbers:
        image, masks = picture(number)
        own = folder / subset / IDS[number]
        (own / "images").mkdir(parents=True)
        Image.fromarray(image).convert("RGBA").save(own / "images" / f"{IDS[number]}.png")
        if has_masks:
            (own / "masks").mkdir()
            for i in range(masks.shape[2]):
                Image.fromarray(masks[..., i].astype(np.uint8) * 255).save(own / "masks" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a tiny untrained model, as training would write it: of crops."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.manual_seed(0)
    MaskRCNN(nucleus.NucleusConfig(**SETTINGS)).save(path)
    return path


############################################################
#  Data set
############################################################


@pytest.mark.parametrize(("write", "layout"), [(write_coco, "COCO"), (write_bowl, "Data Science Bowl")])
def test_both_layouts_hold_the_same(write, layout, tmp_path, capsys):
    dataset = nucleus.make_dataset(write(tmp_path, "train"), "train")
    assert capsys.readouterr().out == f"{tmp_path}: train, layout {layout}, 4 images\n"
    assert dataset.layout == layout
    assert dataset.class_names == ["BG", "nucleus"]
    assert [dataset.name(image_id) for image_id in dataset.image_ids] == list(IDS)
    for image_id in dataset.image_ids:
        image, masks = picture(image_id)
        np.testing.assert_array_equal(dataset.load_image(image_id), image)
        class_ids, rles, _ = dataset.load_instances(image_id)
        assert isinstance(rles, list)
        assert class_ids.tolist() == [1] * masks.shape[2], "no crowds, though they are RLEs"
        np.testing.assert_array_equal(utils.rle_to_mask(rles), masks)
        np.testing.assert_array_equal(dataset.load_mask(image_id)[0], masks)
        assert dataset.load_mask(image_id)[1].tolist() == [1] * masks.shape[2]


@pytest.mark.parametrize("write", [write_coco, write_bowl])
def test_both_layouts_can_be_evaluated(write, tmp_path):
    dataset = nucleus.make_dataset(write(tmp_path, "val"), "val")
    contents = ground_truth(dataset)
    first = 528 if write is write_coco else 1  # ids are those of the file
    assert [image["id"] for image in contents["images"]] == [first + number for number in range(4)]
    _, masks = picture(2)
    found = [entry for entry in contents["annotations"] if entry["image_id"] == first + 2]
    assert [entry["area"] for entry in found] == masks.sum(axis=(0, 1)).tolist()
    rows, columns = np.nonzero(masks[..., 1])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert found[1]["bbox"] == [columns.min(), rows.min(), width, height]
    assert [entry["iscrowd"] for entry in found] == [0] * masks.shape[2]
    np.testing.assert_array_equal(utils.rle_to_mask(found[1]["segmentation"]), masks[..., 1])


def test_all_categories_are_nuclei(tmp_path):
    dataset = nucleus.make_dataset(write_coco(tmp_path, "train", category_ids=(5, 7, 0)), "train")
    assert dataset.class_names == ["BG", "nucleus"]
    assert dataset.load_instances(1).class_ids.tolist() == [1] * 5
    assert dataset.category_ids == [0, 0]  # the first one's
    assert {entry["category_id"] for entry in dataset.annotations(1)} == {0}


def test_masks_are_read_once(tmp_path):
    dataset = nucleus.make_dataset(write_bowl(tmp_path, "train"), "train")
    before = dataset.load_instances(0)
    for path in (tmp_path / "train" / IDS[0] / "masks").iterdir():
        path.unlink()
    assert dataset.load_instances(0).masks == before.masks
    assert dataset.load_instances(1).masks != before.masks


@pytest.mark.parametrize("kind", ["1", "0 and 1", "16 bits", "RGB", "RGBA", "palette"])
def test_masks_are_what_is_not_black(kind, tmp_path):
    mask = picture(0)[1][..., 0]
    dataset = nucleus.make_dataset(write_bowl(tmp_path, "train"), "train")
    image = {
        "1": lambda: Image.fromarray(mask),
        "0 and 1": lambda: Image.fromarray(mask.astype(np.uint8)),
        "16 bits": lambda: Image.fromarray(mask.astype(np.uint16)),
        "RGB": lambda: Image.fromarray(mask[..., None] * np.array([0, 0, 1], np.uint8)),
        "RGBA": lambda: Image.fromarray(mask.astype(np.uint8) * 255).convert("RGBA"),
        "palette": lambda: Image.fromarray(mask.astype(np.uint8) * 255).convert("P"),
    }[kind]()
    image.save(tmp_path / "train" / IDS[0] / "masks" / "0.png")
    np.testing.assert_array_equal(dataset.load_mask(0)[0][..., 0], mask)


def test_an_image_without_nuclei_and_an_empty_mask(tmp_path):
    write_bowl(tmp_path, "train")
    for path in (tmp_path / "train" / IDS[0] / "masks").iterdir():
        path.unlink()
    Image.new("L", (48, 48)).save(tmp_path / "train" / IDS[1] / "masks" / "empty.png")
    dataset = nucleus.make_dataset(tmp_path, "train")
    assert dataset.load_mask(0)[0].shape == (40, 48, 0)
    assert dataset.annotations(0) == []
    assert len(dataset.load_instances(1).masks) == 6
    assert len(dataset.annotations(1)) == 5


def test_masks_that_do_not_fit_are_named(tmp_path):
    dataset = nucleus.make_dataset(write_bowl(tmp_path, "train"), "train")
    path = tmp_path / "train" / IDS[0] / "masks" / "0.png"
    Image.new("L", (40, 48)).save(path)
    with pytest.raises(ValueError, match=r"0.png has \(48, 40\) pixels \(height, width\), its image \(40, 48\)"):
        dataset.load_instances(0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"mask .*0.png cannot be read"):
        dataset.load_instances(0)
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"mask .*0.png cannot be read"):
        dataset.load_mask(0)


def test_wrong_folders_are_explained(tmp_path):
    write_coco(tmp_path / "coco", "val")
    write_bowl(tmp_path / "bowl", "stage1_train", [0])
    (tmp_path / "bowl" / "stage1_train" / IDS[0] / "images" / "notes.txt").write_text("no image")
    write_bowl(tmp_path / "bowl", "stage1_test", [1, 2], has_masks=False)
    (tmp_path / "flat").mkdir()
    for folder, subset, expected in [
        ("nowhere", "train", "nowhere: there is no such folder"),
        ("coco", "train", r"expected annotations/instances_train.json and train/, or train/IMAGE_ID/images/\*.png; "
         "found annotations, val. --subset can be val"),
        ("bowl", "train", "found stage1_test, stage1_train. --subset can be stage1_test, stage1_train"),
        ("flat", "train", "found nothing. Is it a folder too high or too deep?"),
        ("bowl/stage1_train", IDS[0], "images alone by --dataset .*without --subset"),
    ]:  # fmt: skip
        with pytest.raises(FileNotFoundError, match=expected):
            nucleus.make_dataset(tmp_path / folder, subset)
    with pytest.raises(ValueError, match=r"2 of 2 images have no folder masks, such as b2e1; .*only detect takes"):
        nucleus.make_dataset(tmp_path / "bowl", "stage1_test")
    assert nucleus.make_dataset(tmp_path / "bowl", "stage1_test", masks=False).num_images == 2
    assert nucleus.make_dataset(tmp_path / "bowl", "stage1_train").num_images == 1


def test_two_images_of_one_name(tmp_path):
    for path in ("x.png", "x.tif"):
        Image.new("L", (8, 8)).save(tmp_path / path)
    with pytest.raises(ValueError, match="two images are called x"):
        nucleus.find_images(tmp_path, None)


@given(names=st.sets(st.text(min_size=1), min_size=1), share=st.floats(0, 1))
def test_what_is_held_out_depends_on_its_name_alone(names, share):
    held_out = {name for name in names if nucleus.is_held_out(name, share)}
    assert all(nucleus.is_held_out(name, min(1, share * 1.5)) for name in held_out), "a larger share holds more"
    assert not any(nucleus.is_held_out(name, 0) for name in names)
    assert all(nucleus.is_held_out(name, 1) for name in names)


def test_a_tenth_is_held_out():
    names = [f"{number:064x}" for number in range(2000)]
    assert sum(nucleus.is_held_out(name, 0.1) for name in names) == pytest.approx(200, abs=40)
    assert [nucleus.is_held_out(name, 0.5) for name in IDS] == [False, False, True, False]  # on any machine


@pytest.mark.parametrize("write", [write_coco, write_bowl])
def test_the_parts_make_up_the_whole(write, tmp_path, capsys):
    write(tmp_path, "train")
    rest, held_out = (nucleus.make_dataset(tmp_path, "train", part, 0.5) for part in ("rest", "held out"))
    assert [held_out.name(i) for i in held_out.image_ids] == ["c008"]
    assert [rest.name(i) for i in rest.image_ids] == ["a005", "b2e1", "d001"]
    np.testing.assert_array_equal(held_out.load_mask(0)[0], picture(2)[1])
    np.testing.assert_array_equal(rest.load_mask(2)[0], picture(3)[1])
    assert "1 images of 4, held out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--val-share 0 of 4 images leaves none that are 'held out'"):
        nucleus.make_dataset(tmp_path, "train", "held out", 0)
    with pytest.raises(ValueError, match="--val-share 1 of 4 images leaves none that are 'rest'"):
        nucleus.make_dataset(tmp_path, "train", "rest", 1)
    with pytest.raises(ValueError, match="part must be 'all', 'held out' or 'rest', not 'half'"):
        nucleus.make_dataset(tmp_path, "train", "half")


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/ is not here: the images may not be in the repository")
@pytest.mark.parametrize(("subset", "images", "nuclei", "most"), [("train", 527, 23084, 369), ("val", 95, 4844, 375)])
def test_the_real_data(subset, images, nuclei, most):
    dataset = nucleus.make_dataset(DATA, subset)
    counts = [len(dataset.load_instances(image_id).masks) for image_id in dataset.image_ids]
    assert (dataset.num_images, sum(counts), max(counts)) == (images, nuclei, most)
    assert dataset.skipped == {}
    assert (dataset.load_instances(0).class_ids == 1).all()
    crowded = int(np.argmax(counts))
    assert dataset.load_mask(crowded)[0].shape == (*dataset.load_image(crowded).shape[:2], most)


############################################################
#  Configuration and augmentation
############################################################


def test_the_detector_has_the_same_weights_and_other_settings():
    model = MaskRCNN(nucleus.NucleusConfig(**SETTINGS)).eval()
    image = picture(0)[0]
    dataset = nucleus_of_one(image)
    dataset.category_ids = [0, 7]
    detector = nucleus.whole_image_detector(model, dataset, DETECTION_MAX_INSTANCES=3)
    assert not detector.training
    assert detector.source == model.source
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in detector.state_dict().items())
    assert TrainingData(dataset, model.config).sample(0).shape == (64, 64), "training sees crops"
    assert detector.mold_inputs([image])[0].shape == (1, 128, 128, 3), "40 x 48 enlarged twice and padded"
    assert (list(detector.category_ids), detector.config.DETECTION_MAX_INSTANCES) == ([0, 7], 3)
    assert (model.config.IMAGE_RESIZE_MODE, model.config.IMAGES_PER_GPU) == ("crop", 2), "the model stays as it is"
    assert list(model.category_ids) == [0, 1]
    with torch.no_grad():
        model.box_head.class_logits.bias.add_(1)
    assert not torch.equal(detector.box_head.class_logits.bias, model.box_head.class_logits.bias)


def test_commands_make_the_same_detector_at_once(weights, monkeypatch):
    """And a wrapper that opening a model may put around it, such as of tiles, is not lost."""
    image = picture(0)[0]
    dataset = nucleus_of_one(image)
    dataset.category_ids = [0, 7]
    arguments = argparse.Namespace(model=str(weights), device="cpu", set=["DETECTION_MAX_INSTANCES=3"])
    detector = nucleus.open_detector(arguments, dataset, DETECTION_MIN_CONFIDENCE=0.0)
    trained = load_model(str(weights), "cpu", DETECTION_MIN_CONFIDENCE=0.0)
    copied = nucleus.whole_image_detector(trained, dataset, DETECTION_MAX_INSTANCES=3)
    assert detector.config.to_dict() == copied.config.to_dict()
    assert list(detector.category_ids) == list(copied.category_ids) == [0, 7]
    (result,), (expected,) = (each.detect([image], masks="rle") for each in (detector, copied))
    assert len(result["scores"]) == 3
    np.testing.assert_array_equal(result["rois"], expected["rois"])
    assert result["masks"] == expected["masks"]
    monkeypatch.setattr(cli, "load_model", lambda *args, **settings: ("in tiles", load_model(*args, **settings)))
    kind, model = nucleus.open_detector(arguments, dataset)
    assert (kind, model.config.IMAGE_RESIZE_MODE) == ("in tiles", "pad64")


def nucleus_of_one(image: np.ndarray) -> Dataset:
    """A data set of this one image without nuclei."""
    dataset = Dataset()
    dataset.add_class("nuclei", 1, "nucleus")
    dataset.add_image("nuclei", 1, None)
    dataset.load_image = lambda image_id: image
    dataset.load_mask = lambda image_id: (np.zeros((*image.shape[:2], 0), bool), np.zeros(0, np.int32))
    dataset.prepare()
    return dataset


def test_samples_are_repeatable_and_in_eight_ways(tmp_path):
    dataset = nucleus.make_dataset(write_coco(tmp_path, "train"), "train")
    config = nucleus.NucleusConfig(IMAGE_RESIZE_MODE="none", COLOR_JITTER=0, SCALE_JITTER=None)
    data = TrainingData(dataset, config)
    samples = [data.sample(0, seed) for seed in range(60)]
    assert len({(sample.shape, sample.image.numpy().tobytes()) for sample in samples}) == 8
    for seed in (0, 1, 2):
        again = data.sample(0, seed)
        assert torch.equal(again.image, samples[seed].image)
        assert torch.equal(again.targets.masks.pixels, samples[seed].targets.masks.pixels)
    for sample in samples[:8]:
        for box in sample.targets.boxes.int().tolist():
            assert sample.image[box[0] : box[2], box[1] : box[3]].max() >= 200


############################################################
#  Submission
############################################################

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


def test_runs_by_hand():
    mask = np.array([[1, 1, 0], [0, 1, 1]], bool)  # down the columns: 1 0, 1 1, 0 1
    assert nucleus.rle_encode(mask) == "1 1 3 2 6 1"
    assert nucleus.rle_encode(mask.T) == "1 2 5 2"
    assert nucleus.rle_encode(np.zeros((2, 3))) == ""
    assert nucleus.rle_encode(np.full((2, 3), 255)) == "1 6"
    np.testing.assert_array_equal(nucleus.rle_decode("2 2 5 1", (2, 3)), [[0, 1, 1], [1, 0, 0]])


@given(MASKS)
def test_decoding_undoes_encoding(mask):
    text = nucleus.rle_encode(mask)
    np.testing.assert_array_equal(nucleus.rle_decode(text, mask.shape), mask)
    numbers = [int(word) for word in text.split()]
    assert sum(numbers[1::2]) == mask.sum()
    assert all(end < start for end, start in zip(np.add(numbers[::2], numbers[1::2])[:-1], numbers[2::2], strict=True))


@pytest.mark.parametrize("text", ["1", "0 2", "1 0", "3 1 1 1", "1 2 2 1", "6 2", "1 -1", "a b", "1.0 2", "9 99999999"])
def test_bad_runs_are_refused(text):
    with pytest.raises(ValueError, match="EncodedPixels"):
        nucleus.rle_decode(text, (2, 3))


@st.composite
def scored_masks(draw):
    """Masks [H, W, N] and scores [N], of which some are equal."""
    height, width, count = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 6))
    masks = draw(arrays.arrays(bool, (height, width, count)))
    return masks, np.array(draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=count, max_size=count)))


@given(scored_masks())
def test_nuclei_do_not_overlap_and_the_better_has_the_pixel(case):
    masks, scores = case
    lines = nucleus.mask_to_rle("cell", masks, scores).split("\n")
    assert lines == nucleus.mask_to_rle("cell", utils.mask_to_rle(masks), scores).split("\n"), "of any kind of masks"
    found = [nucleus.rle_decode(line.removeprefix("cell,"), masks.shape[:2]) for line in lines]
    free, expected = np.ones(masks.shape[:2], bool), []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        expected.append(masks[..., i] & free)
        free &= ~masks[..., i]
    expected = [mask for mask in expected if mask.any()] or [np.zeros(masks.shape[:2], bool)]
    np.testing.assert_array_equal(found, expected)


def test_lines_by_hand():
    masks = np.zeros((2, 3, 3), bool)
    masks[:, :2, 0] = masks[0, :, 1] = masks[0, 0, 2] = True
    assert nucleus.mask_to_rle("x", masks, [0.2, 0.7, 0.1]) == "x,1 1 3 1 5 1\nx,2 1 4 1"
    assert nucleus.mask_to_rle("x", masks[..., :0], []) == "x,"
    assert nucleus.mask_to_rle("x", [], []) == "x,"
    assert nucleus.mask_to_rle("a,b", masks[..., 2:], [1]) == '"a,b",1 1'
    with pytest.raises(ValueError, match="masks and scores must be of the same nuclei, not 3 and 2"):
        nucleus.mask_to_rle("x", masks, [0.2, 0.7])


############################################################
#  Command line
############################################################


def test_of_equal_scores_the_first_is_the_best():
    """Each mask has the first pixel, and one of its own."""
    masks, scores = np.zeros((1, 101, 100), bool), np.arange(100) % 3
    masks[0, 0, :] = masks[0, np.arange(1, 101), np.arange(100)] = True
    order = [i for score in (2, 1, 0) for i in range(100) if scores[i] == score]
    expected = ["x,1 1 4 1", *(f"x,{i + 2} 1" for i in order[1:])]
    assert nucleus.mask_to_rle("x", masks, scores).split("\n") == expected


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set in COCO's layout, and the logs of training on it: two epochs, and one of the MaskIoU head."""
    folder = tmp_path_factory.mktemp("trained")
    for subset in ("train", "val"):
        write_coco(folder / "data", subset)
    command = ["train", "--dataset", str(folder / "data"), "--logs", str(folder / "logs"), "--device", "cpu"]
    command += ["--epochs", "2", "--head-epochs", "1", "--seed", "3", "--eval-images", "2", *SET]
    assert nucleus.main(command) == 0
    return folder


def test_training_writes_what_all_else_needs(trained):
    path = find_last(trained / "logs", "nuclei")
    checkpoint = read_checkpoint(path)
    assert checkpoint["training"]["epoch"] == 3
    assert checkpoint["class_names"] == ["BG", "nucleus"]
    assert (checkpoint["config"]["SEED"], checkpoint["config"]["IMAGE_RESIZE_MODE"]) == (3, "crop")
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert sum("mask AP" in json.dumps(line) for line in lines) == 3, "each epoch is evaluated"
    assert checkpoint["training"]["best"]["metric"] == "mask AP"


def test_the_maskiou_head_learns_at_last_and_alone(trained):
    path = find_last(trained / "logs", "nuclei")
    before, after = (read_checkpoint(path.with_name(f"mask_rcnn_nuclei_000{epoch}.pth")) for epoch in (2, 3))
    changed = {name for name, tensor in before["model"].items() if not torch.equal(tensor, after["model"][name])}
    learned = {name for name in after["model"] if name.startswith("maskiou_head")}
    assert changed == learned
    assert [each["config"]["MASKIOU_DETECTIONS"] for each in (before, after)] == [True, True]


def test_training_goes_on(trained, capsys):
    command = ["train", "--dataset", str(trained / "data"), "--logs", str(trained / "logs"), "--device", "cpu"]
    assert nucleus.main([*command, "--model", "last", "--epochs", "2", "--head-epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "training continues after epoch 3" in printed
    assert "(all)" not in printed, "the head is what was learning"
    checkpoint = read_checkpoint(find_last(trained / "logs", "nuclei"))
    assert checkpoint["training"]["epoch"] == 4
    assert checkpoint["config"]["SEED"] == 3, "what is not asked for stays"


def test_evaluate(trained, tmp_path, capsys):
    command = ["evaluate", "--dataset", str(trained / "data"), "--device", "cpu", "--logs", str(trained / "logs")]
    assert nucleus.main(command) == 0
    printed = capsys.readouterr().out
    assert "val, layout COCO, 4 images" in printed
    assert "at most 1000 of a class in an image" in printed
    capsys.readouterr()
    assert nucleus.main([*command, "--subset", "train", "--val-share", "0.5"]) == 0
    assert "1 images of 4, held out" in capsys.readouterr().out


def test_numbers_are_of_all_images_or_none(trained, tmp_path, capsys):
    write_coco(tmp_path, "val")
    (tmp_path / "val" / f"{IDS[1]}.png").unlink()
    command = ["evaluate", "--dataset", str(tmp_path), "--logs", str(trained / "logs"), "--device", "cpu"]
    assert nucleus.main(command) == 2
    assert re.search(rf"nucleus.py: the data set is not complete, .*{IDS[1]}.png", capsys.readouterr().err)


def test_evaluate_to_a_folder(trained, tmp_path):
    """Results have the ids of the file: of images from 528, and the category 7."""
    write_coco(tmp_path, "test", category_ids=(7,))
    command = ["evaluate", "--dataset", str(tmp_path), "--subset", "test", "--logs", str(trained / "logs")]
    command += ["--device", "cpu", "--eval-images", "2", "--output", str(tmp_path / "out")]
    assert nucleus.main([*command, "--set", "DETECTION_MIN_CONFIDENCE=0"]) == 0
    contents = json.loads((tmp_path / "out" / "segm.json").read_text())
    assert {(result["image_id"], result["category_id"]) for result in contents} == {(528, 7), (529, 7)}
    report = (tmp_path / "out" / "report.html").read_text()
    for text in ("pad64", f"test in {tmp_path}", "the best 1000 of a class in an image"):
        assert text in report


def test_perfect_detections_of_any_category_and_number_are_perfect(tmp_path, monkeypatch):
    """400 nuclei of category 7, found wholly: AP 1. With COCO's 100 results an image it would be a quarter."""
    write_coco(tmp_path, "val", [0], category_ids=(7,))
    path = tmp_path / "annotations" / "instances_val.json"
    contents = json.loads(path.read_text())
    masks = np.zeros((40, 48, 400), bool)
    places = np.arange(400)
    masks[places // 20 * 2, places % 20 * 2, places] = True
    contents["annotations"] = [
        {**contents["annotations"][0], "id": i + 1, "segmentation": utils.rle_to_json(rle), "area": 1}
        for i, rle in enumerate(utils.mask_to_rle(masks))
    ]
    path.write_text(json.dumps(contents))
    dataset = nucleus.make_dataset(tmp_path, "val")
    ones = np.ones(400, np.float32)
    found = {
        "rois": utils.extract_bboxes(masks).astype(np.float32), "class_ids": ones.astype(np.int32), "scores": ones,
        "mask_ious": ones, "mask_scores": ones, "masks": utils.mask_to_rle(masks),
    }  # fmt: skip
    model = MaskRCNN(nucleus.NucleusConfig(**SETTINGS))
    monkeypatch.setattr(MaskRCNN, "detect_batches", lambda self, batches, *_: ([found] for _ in batches))
    metrics = nucleus.evaluate_nuclei(model, dataset, verbose=False)
    assert metrics["mask AP"] == metrics["box AP"] == pytest.approx(1)


def read_submission(path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows[0] == ("ImageId", "EncodedPixels")
    return rows[1:]


def test_one_picture_and_an_output_that_is_no_folder(weights, tmp_path, capsys):
    write_bowl(tmp_path, "stage1_test")
    (picture,) = (tmp_path / "stage1_test" / IDS[0] / "images").iterdir()
    command = ["detect", "--dataset", str(picture), "--model", str(weights), "--device", "cpu", "--output"]
    assert nucleus.main([*command, str(tmp_path / "out")]) == 0
    assert f"{tmp_path / 'out'}: 1 picture and submit.csv with " in capsys.readouterr().out
    assert nucleus.main([*command, str(picture)]) == 2
    assert f"nucleus.py: --output {picture}: {picture} is no folder\n" in capsys.readouterr().err
    words = ["evaluate", "--dataset", str(tmp_path), "--subset", "stage1_test", "--model", str(weights)]
    assert nucleus.main([*words, "--output", str(picture)]) == 2
    assert f"nucleus.py: --output {picture}: {picture} is no folder\n" in capsys.readouterr().err


def test_detect_in_a_subset_without_masks(weights, tmp_path, capsys):
    write_bowl(tmp_path, "stage1_test", has_masks=False)
    output = tmp_path / "out"
    command = ["detect", "--dataset", str(tmp_path), "--subset", "stage1_test", "--model", str(weights)]
    command += ["--device", "cpu", "--output", str(output), "--set"]
    assert nucleus.main([*command, "DETECTION_MIN_CONFIDENCE=0"]) == 0
    rows = read_submission(output / "submit.csv")
    assert {row[0] for row in rows} == set(IDS)
    assert f"{output}: 4 pictures and submit.csv with {len(rows)} nuclei" in capsys.readouterr().out
    model = MaskRCNN.from_checkpoint(weights, "cpu")
    model.config = model.config.for_detection(DETECTION_MIN_CONFIDENCE=0.0)
    for number, name in enumerate(IDS):
        image = picture(number)[0]
        (found,) = model.detect([image])
        own = nucleus.mask_to_rle(name, found["masks"], found["mask_scores"]).split("\n")
        assert [",".join(row) for row in rows if row[0] == name] == own
        drawn = np.asarray(Image.open(output / f"{name}.png"))
        assert drawn.shape == image.shape
        assert (drawn != image).any()
    assert nucleus.main([*command, "DETECTION_MIN_CONFIDENCE=0.99"]) == 0
    assert read_submission(output / "submit.csv") == [(name, "") for name in IDS]
    assert "submit.csv with 0 nuclei" in capsys.readouterr().out


def test_the_best_mask_is_drawn_on_top():
    image, masks = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 2), bool)
    masks[2:12, 2:12, 0] = masks[6:18, 6:28, 1] = True
    masks[17, 27, 1] = False
    result = detection_result(masks, [1, 1], [0.3, 0.8])
    drawn = nucleus.draw_nuclei(image, result)
    assert not drawn[~masks.any(axis=2)].any(), "no boxes"
    assert (drawn[6, 6:28] == drawn[6, 20]).all(), "its outline is whole"
    assert (drawn[11, 2:12] != drawn[11, 2]).any(), "the other's is hidden by it"


def test_detect_in_plain_images(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    Image.fromarray(picture(0)[0]).save(tmp_path / "plain" / "one.tif")
    Image.fromarray(picture(1)[0]).save(tmp_path / "plain" / "two.PNG")
    (tmp_path / "plain" / "notes.txt").write_text("no image")
    assert nucleus.find_images(tmp_path / "plain", None).layout == "images"
    command = ["detect", "--model", str(weights), "--device", "cpu", "--dataset"]
    assert nucleus.main([*command, "plain"]) == 0
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["one.png", "submit.csv", "two.png"]
    assert nucleus.main([*command, "plain/one.tif", "--output", "single"]) == 0
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == ["one.png", "submit.csv"]
    (tmp_path / "plain" / "broken.png").write_text("no image")
    capsys.readouterr()
    assert nucleus.main([*command, "plain", "--output", "rest"]) == 1
    assert {row[0] for row in read_submission(tmp_path / "rest" / "submit.csv")} == {"one", "two"}
    assert "1 images could not be read: image plain/broken.png" in capsys.readouterr().err


def test_what_is_more_likely_no_nucleus_is_not_shown(weights, tmp_path):
    checkpoint = read_checkpoint(weights)
    bias = {"box_head.class_logits.bias": torch.tensor([1.0, 0.0])}
    write_checkpoint(tmp_path / "doubtful.pth", {**checkpoint, "model": {**checkpoint["model"], **bias}})
    Image.fromarray(picture(0)[0]).save(tmp_path / "cell.png")
    command = ["detect", "--dataset", str(tmp_path / "cell.png"), "--model", str(tmp_path / "doubtful.pth")]
    command += ["--device", "cpu", "--output", str(tmp_path / "out")]
    assert nucleus.main(command) == 0
    assert read_submission(tmp_path / "out" / "submit.csv") == [("cell", "")]
    assert nucleus.main([*command, "--set", "DETECTION_MIN_CONFIDENCE=0.05"]) == 0
    assert len(read_submission(tmp_path / "out" / "submit.csv")) > 1


def test_detect_replaces_no_image(weights, tmp_path, capsys):
    path = tmp_path / "cell.png"
    Image.fromarray(picture(0)[0]).save(path)
    before = path.read_bytes()
    command = ["detect", "--model", str(weights), "--device", "cpu", "--dataset", str(tmp_path)]
    assert nucleus.main([*command, "--output", str(tmp_path)]) == 2
    assert f"would replace {path}" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], ("pad64", 1, 2)), (["IMAGE_MIN_SCALE=3"], ("pad64", 1, 3)), (["IMAGE_RESIZE_MODE=none"], ("none", 1, 2))],
)
def test_settings_are_those_of_the_command_line_then_of_detection(words, expected, weights, tmp_path, monkeypatch):
    write_coco(tmp_path, "val")
    configs = []
    monkeypatch.setattr(nucleus, "evaluate_dataset", lambda model, *_: configs.append(model.config))
    command = ["evaluate", "--dataset", str(tmp_path), "--model", str(weights), "--device", "cpu"]
    assert nucleus.main([*command, *(["--set", *words] if words else [])]) == 0
    assert [(each.IMAGE_RESIZE_MODE, each.IMAGES_PER_GPU, each.IMAGE_MIN_SCALE) for each in configs] == [expected]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Calls of train_model, which does nothing but report the signal in `calls.interrupted`."""
    noted = SimpleNamespace(all=[], interrupted=None)

    def train_model(*args, **named):
        noted.all.append((args, named))
        return Progress(None, tmp_path, 3, 1, interrupted=noted.interrupted)

    monkeypatch.setattr(MaskRCNN, "train_model", train_model)
    return noted


def test_train_holds_out_what_has_no_val(calls, tmp_path, capsys):
    write_bowl(tmp_path, "stage1_train")
    command = ["train", "--dataset", str(tmp_path), "--subset", "stage1_train", "--device", "cpu", "--epochs", "3"]
    assert nucleus.main([*command, "--val-share", "0.5", *SET]) == 0
    assert "held out for validation, by a hash of their names: c008\n" in capsys.readouterr().out
    ((model, train_data, val_data), named), (_, head) = calls.all
    assert [train_data.name(i) for i in train_data.image_ids] == ["a005", "b2e1", "d001"]
    assert [val_data.name(i) for i in val_data.image_ids] == ["c008"]
    assert [(each["layers"], each["epochs"]) for each in (named, head)] == [("detector", 3), ("maskiou", 5)]
    assert named["custom_callbacks"] == []
    assert model.config.SEED == 0


def test_an_interrupted_training_ends_there(calls, tmp_path):
    write_coco(tmp_path, "train")
    calls.interrupted = 15
    assert nucleus.main(["train", "--dataset", str(tmp_path), "--device", "cpu", *SET]) == 143
    assert [named["layers"] for _, named in calls.all] == ["detector"]


@pytest.mark.parametrize(
    ("done", "head_epochs", "expected"),
    [
        (2, 2, ["detector", "maskiou"]),
        (3, 2, ["maskiou"]),
        (4, 2, ["maskiou"]),
        (2, 0, ["detector"]),
        (3, 0, ["detector"]),
    ],
)
def test_a_training_continues_with_the_phase_that_it_is_in(done, head_epochs, expected, calls, tmp_path, monkeypatch):
    write_coco(tmp_path, "train")
    monkeypatch.setattr(MaskRCNN, "epoch", done)
    command = ["train", "--dataset", str(tmp_path), "--device", "cpu", "--epochs", "3", *SET]
    assert nucleus.main([*command, "--head-epochs", str(head_epochs)]) == 0
    assert [named["layers"] for _, named in calls.all] == expected


@pytest.mark.parametrize("asked", [[], ["--set", "MASKIOU_DETECTIONS=False"], ["--set", "MASKIOU_DETECTIONS=True"]])
def test_the_boxes_that_the_head_learns_from_can_be_chosen(asked, calls, tmp_path, monkeypatch):
    write_coco(tmp_path, "train")
    train_model, seen = MaskRCNN.train_model, []

    def note(model, *args, **named):
        seen.append(model.config.MASKIOU_DETECTIONS)
        return train_model(model, *args, **named)

    monkeypatch.setattr(MaskRCNN, "train_model", note)
    assert nucleus.main(["train", "--dataset", str(tmp_path), "--device", "cpu", *asked]) == 0
    assert seen == [asked == [] or asked[1].endswith("True")] * 2


@pytest.mark.parametrize("without", [["--head-epochs", "0"], ["--set", "USE_MASKIOU_HEAD=False"]])
def test_training_without_an_own_part_for_the_head(without, calls, tmp_path):
    write_coco(tmp_path, "train")
    assert nucleus.main(["train", "--dataset", str(tmp_path), "--device", "cpu", *without]) == 0
    assert [named["layers"] for _, named in calls.all] == ["detector"]


def test_a_detector_that_stays_as_it_is(calls, trained, tmp_path):
    path = find_last(trained / "logs", "nuclei")
    command = ["train", "--dataset", str(trained / "data"), "--device", "cpu", "--logs", str(tmp_path)]
    assert nucleus.main([*command, "--model", str(path), "--epochs", "0", "--head-epochs", "2"]) == 0
    assert [(named["layers"], named["epochs"]) for _, named in calls.all] == [("maskiou", 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--model none gives only random weights; name a detector"),
        (["--epochs", "0", "--head-epochs", "0", "--model", "nuclei"], "for --head-epochs 1 or more"),
        (["--epochs", "0", "--model", "nuclei", "--set", "USE_MASKIOU_HEAD=False"], "leaves the MaskIoU head alone"),
    ],
)
def test_no_epochs_need_a_detector_and_a_head(words, message, calls, tmp_path, capsys):
    write_coco(tmp_path, "train")
    assert nucleus.main(["train", "--dataset", str(tmp_path), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err
    assert not calls.all


def test_train_takes_val_where_there_is_one(calls, tmp_path):
    for subset, numbers in (("train", [0, 1]), ("val", [2]), ("test", [3])):
        write_bowl(tmp_path, subset, numbers)
    command = ["train", "--dataset", str(tmp_path), "--device", "cpu", *SET]
    assert nucleus.main(command) == 0
    ((_, train_data, val_data), _) = calls.all[0]
    assert [train_data.name(i) for i in train_data.image_ids] == ["a005", "b2e1"]
    assert [val_data.name(i) for i in val_data.image_ids] == ["c008"]


@pytest.mark.parametrize(
    ("subset", "share", "expected"),
    [
        ("train", [], "train a005, b2e1, c008, d001; val a005, b2e1, c008, d001"),
        ("train", ["--val-share", "0.1"], "train a005, b2e1, d001; train c008"),
        ("train", ["--val-share", "0.7"], "train a005; train b2e1, c008, d001"),
        ("val", [], "val a005, b2e1, d001; val c008"),
    ],
)
@pytest.mark.parametrize("write", [write_coco, write_bowl])
def test_nothing_is_trained_on_and_validated_with(write, subset, share, expected, calls, tmp_path):
    for name in ("train", "val"):
        write(tmp_path, name)
    assert nucleus.main(["train", "--dataset", str(tmp_path), "--subset", subset, *share, "--device", "cpu", *SET]) == 0
    ((_, *datasets), _) = calls.all[0]
    found = []
    for dataset in datasets:
        path = Path(dataset.image_info[0]["path"]).relative_to(tmp_path)
        found.append(f"{path.parts[0]} {', '.join(map(dataset.name, dataset.image_ids))}")
    assert "; ".join(found) == expected


@pytest.mark.parametrize(
    ("subsets", "share", "expected"),
    [
        ([("train", range(4))], [], "train c008"),
        ([("train", range(4))], ["--val-share", "0.7"], "train b2e1, c008, d001"),
        ([("train", [0, 1]), ("val", [2, 3])], [], "val c008, d001"),
        ([("train", range(4)), ("val", [0])], ["--val-share", "0.1"], "train c008"),
    ],
)
@pytest.mark.parametrize("write", [write_coco, write_bowl])
def test_evaluate_takes_what_training_validates_with(
    write, subsets, share, expected, calls, weights, tmp_path, monkeypatch, capsys
):
    """Without --subset. A line says so where the images are a part of train."""
    for name, numbers in subsets:
        write(tmp_path, name, numbers)
    options = ["--dataset", str(tmp_path), *share, "--device", "cpu"]
    assert nucleus.main(["train", *options, *SET]) == 0
    ((_, _, val_data), _) = calls.all[0]
    capsys.readouterr()
    evaluated = []
    monkeypatch.setattr(nucleus, "evaluate_dataset", lambda _, dataset, image_ids, *__: evaluated.append(dataset))
    assert nucleus.main(["evaluate", *options, "--model", str(weights)]) == 0
    (dataset,) = evaluated
    assert [info["path"] for info in dataset.image_info] == [info["path"] for info in val_data.image_info]
    subset = Path(dataset.image_info[0]["path"]).relative_to(tmp_path).parts[0]
    assert f"{subset} {', '.join(map(dataset.name, dataset.image_ids))}" == expected
    line = "evaluates the images of train that training holds out for validation: --val-share "
    held_out = f"{line}{share[1] if share else '0.1'}\n"
    assert (held_out in capsys.readouterr().out) == (subset == "train")


def test_the_evaluation_of_training_is_of_whole_images(calls, tmp_path):
    for name in ("train", "val"):
        write_coco(tmp_path, name)
    command = ["train", "--dataset", str(tmp_path), "--device", "cpu", "--eval-images", "3", "--minutes", "5", *SET]
    assert nucleus.main(command) == 0
    ((model, _, val_data), named), _ = calls.all
    evaluate = named["evaluate"]
    detector = evaluate.adapt(model)
    assert detector.config.IMAGE_RESIZE_MODE == "pad64"
    assert torch.equal(detector.backbone.stem.weight, model.backbone.stem.weight)
    assert evaluate.dataset is val_data
    assert (evaluate.image_ids, evaluate.max_dets, evaluate.verbose) == ([0, 1, 2], 1000, False)
    metrics = evaluate(model)
    assert (metrics["images"], metrics["max_dets"]) == (3, 1000)
    assert model.config.IMAGE_RESIZE_MODE == "crop"
    assert isinstance(named["custom_callbacks"][0], nucleus.TimeLimit)


def test_the_time_is_over(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(nucleus.time, "monotonic", lambda: now[0])
    limit, progress = nucleus.TimeLimit(2), SimpleNamespace(stop=False)
    for event, seconds, stops in [("epoch_end", 219, False), ("train_end", 230, False), ("epoch_end", 221, True)]:
        now[0] = seconds
        limit(event, progress)
        assert progress.stop is stops
    assert "the time of --minutes is over" in capsys.readouterr().out


def test_another_detector_starts_a_training(calls, tmp_path, capsys):
    """Of other classes and sizes: its network and weights are taken, its training and its anchors are not."""
    write_coco(tmp_path, "train")
    network = {**TINY_SHAPES, "BACKBONE": "resnet34", "NUM_CLASSES": 4, "MEAN_PIXEL": (1.0, 2.0, 3.0)}
    other = MaskRCNN(Config(**network, LEARNING_RATE=0.7, IMAGE_MIN_DIM=512))
    other.save(tmp_path / "other.pth")
    command = ["train", "--dataset", str(tmp_path), "--val-share", "0.5", "--device", "cpu"]
    assert nucleus.main([*command, "--model", str(tmp_path / "other.pth")]) == 0
    ((model, *_), _), _ = calls.all
    config = model.config
    assert (config.BACKBONE, config.MEAN_PIXEL, config.RPN_CHANNELS) == ("resnet34", (1.0, 2.0, 3.0), 8)
    assert (config.IMAGE_MIN_DIM, config.LEARNING_RATE) == (256, 1e-4)
    assert config.RPN_ANCHOR_SCALES == (8, 16, 32, 64, 128)
    assert (config.NUM_CLASSES, model.class_names) == (2, ["BG", "nucleus"])
    assert torch.equal(model.box_head.fcs[0].weight, other.box_head.fcs[0].weight)
    assert model.box_head.class_logits.weight.shape[0] == 2


def test_a_backbone_starts_a_training(calls, tmp_path, monkeypatch):
    write_coco(tmp_path, "train")
    source = MaskRCNN(Config(BACKBONE="resnet18", MEAN_PIXEL=(7.0, 8.0, 9.0)))
    stored = source.to_checkpoint()
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if name.startswith("backbone.")}
    stored["class_names"] = stored["category_ids"] = None
    path, asked = tmp_path / "backbone.pth", []
    write_checkpoint(path, stored)
    monkeypatch.setattr("weights.published.find_weights", lambda *names: asked.append(names) or path)
    command = ["train", "--dataset", str(tmp_path), "--val-share", "0.5", "--device", "cpu", "--model", "imagenet"]
    assert nucleus.main([*command, "--set", "LEARNING_RATE=0.002"]) == 0
    ((model, *_), _), _ = calls.all
    assert asked == [("imagenet", "resnet18", "pytorch")]
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    assert (model.config.BACKBONE_WIDTH, model.config.MEAN_PIXEL) == (1.0, (7.0, 8.0, 9.0))
    assert (model.config.LEARNING_RATE, model.config.RPN_CHANNELS) == (0.002, 128)
    assert nucleus.main([*command, "--set", f"IMAGENET_MODEL_PATH={path}", "STEPS_PER_EPOCH=3"]) == 0
    (model, *_), _ = calls.all[-1]
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    assert len(asked) == 1, "the published weights are not asked for"


def test_a_network_of_other_settings_is_taken_over(calls, tmp_path):
    """The network and what its weights mean come from the checkpoint; classes, anchor sizes and training do not."""
    strides = {
        "RPN_ANCHOR_STRIDE": 2,
        "BACKBONE_STRIDES": (4, 8, 16, 32, 60),
        "RPN_ANCHOR_SCALES": (9, 18, 36, 72, 144),
    }
    four = {"IMAGE_CHANNEL_COUNT": 4, "MEAN_PIXEL": (1.0, 2.0, 3.0, 4.0), "STD_PIXEL": (5.0, 6.0, 7.0, 8.0)}
    training = {"RPN_NMS_THRESHOLD": 0.6, "IMAGES_PER_GPU": 7, "LEARNING_RATE": 0.5, "ROI_POSITIVE_RATIO": 0.9}
    other = MaskRCNN(Config(**TINY_SHAPES, **strides, **four, **training, NUM_CLASSES=5, USE_MASKIOU_HEAD=False))
    other.save(tmp_path / "other.pth")
    write_coco(tmp_path, "train")
    command = ["train", "--dataset", str(tmp_path), "--val-share", "0.5", "--device", "cpu"]
    assert nucleus.main([*command, "--model", str(tmp_path / "other.pth")]) == 0
    config = calls.all[0][0][0].config
    assert (config.RPN_ANCHOR_STRIDE, config.BACKBONE_STRIDES) == (2, (4, 8, 16, 32, 60))
    assert (config.IMAGE_CHANNEL_COUNT, config.MEAN_PIXEL) == (4, (1.0, 2.0, 3.0, 4.0))
    assert config.RPN_ANCHOR_SCALES == nucleus.NucleusConfig.RPN_ANCHOR_SCALES
    assert (config.NUM_CLASSES, config.USE_MASKIOU_HEAD) == (2, True)
    names = ("RPN_NMS_THRESHOLD", "IMAGES_PER_GPU", "ROI_POSITIVE_RATIO")
    assert [getattr(config, name) for name in names] == [getattr(nucleus.NucleusConfig, name) for name in names]
    assert config.LEARNING_RATE == nucleus.NucleusConfig.LEARNING_RATE / 10


def test_a_model_of_other_things_finds_no_nuclei(tmp_path, capsys):
    write_coco(tmp_path, "val")
    MaskRCNN(Config(**TINY_SHAPES, NUM_CLASSES=3, CLASS_NAMES=("BG", "cat", "dog"))).save(tmp_path / "pets.pth")
    for command in ("evaluate", "detect"):
        arguments = [command, "--dataset", str(tmp_path), "--subset", "val", "--model", str(tmp_path / "pets.pth")]
        assert nucleus.main([*arguments, "--device", "cpu"]) == 2
        assert "the model knows cat, dog, not nuclei" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--dataset", "nowhere"], "there is no checkpoint"),
        (["train", "--dataset", "nowhere"], "--dataset nowhere: there is no such folder"),
        (["evaluate", "--dataset", ".", "--model", "none"], "--model none is random weights"),
        (["detect", "--dataset", "nowhere"], "--dataset nowhere: there is no such file or folder"),
        (["detect", "--dataset", "."], "folder . has no images"),
        (["train", "--dataset", ".", "--set", "EPOCHS=3"], "EPOCHS is not a setting"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nucleus.main(arguments) == 2
    assert f"nucleus.py: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "-1"], "argument --epochs: must be a whole number from 0 up, not '-1'"),
        (["--minutes", "-1"], "argument --minutes: must be a number above 0, not '-1'"),
        (["--eval-images", "0"], "argument --eval-images: must be a whole number from 1 up, not '0'"),
    ],
)
def test_numbers_that_cannot_be(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        nucleus.main(["train", "--dataset", ".", *words])
    assert end.value.code == 2
    assert f"nucleus.py: {message}" in capsys.readouterr().err


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(nucleus, "find_images", interrupted)
    assert nucleus.main(["detect", "--dataset", "."]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_runs_from_anywhere(tmp_path):
    command = [sys.executable, str(ROOT / "samples" / "nucleus.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "submit.csv" in done.stdout


############################################################
#  Results
############################################################


def test_measure_gain_looks_at_whole_images_and_counts_all_nuclei(weights, tmp_path, monkeypatch, capsys):
    folder, output = write_coco(tmp_path / "data", "val"), tmp_path / "gain.json"
    models = []

    def measure(model, dataset, max_dets, *others):
        models.append(model)
        return {"max_dets asked for": max_dets, **original(model, dataset, max_dets, *others)}

    original = measure_gain.measure
    monkeypatch.setattr(measure_gain, "measure", measure)
    words = ["nuclei", "--dataset", str(folder), "--model", str(weights), "--samples", "10"]
    assert measure_gain.main([*words, "--images", "3", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["models"].values()
    assert (row["images"], row["max_dets asked for"]) == (3, nucleus.MAX_DETS)
    (model,) = models
    assert (model.config.IMAGE_RESIZE_MODE, model.config.IMAGES_PER_GPU) == ("pad64", 1)
    numbers = nucleus.evaluate_nuclei(model, nucleus.make_dataset(folder, "val"), [0, 1, 2], verbose=False)
    assert {name: row[name] for name in numbers} == numbers
    assert measure_gain.main(["nuclei", "--model", str(weights)]) == 2
    assert "nuclei need --dataset" in capsys.readouterr().err


LITE = DATA.parent / "nuclei_lite"


@pytest.mark.skipif(not LITE.is_dir(), reason="the data of ../shared is not here")
def test_the_embedded_model_finds_nuclei_that_it_has_not_seen(capsys):
    """On the small part of the subset val; docs/results.md has the numbers of all of it."""
    model = load_model("nuclei", "cpu")
    assert (model.config.IMAGE_RESIZE_MODE, model.config.IMAGES_PER_GPU) == ("pad64", 1)
    numbers = nucleus.evaluate_nuclei(model, nucleus.make_dataset(LITE, "val"), verbose=False)
    assert numbers["images"] == 12
    assert numbers["mask AP"] > 0.45
    assert numbers["mask AP50"] > 0.7
    assert numbers["IoU correlation"] > 0.5


def test_boxes_are_those_of_the_masks():
    """Of the embedded model, and of new ones."""
    (result,) = load_model("nuclei", "cpu").detect([np.asarray(Image.open(ROOT / "assets" / "nuclei_1.jpg"))])
    assert len(result["rois"]) > 20
    assert result["rois"].tolist() == utils.boxes_of_masks(result["masks"], result["rois"]).tolist()
    assert nucleus.NucleusConfig().BOXES_OF_MASKS

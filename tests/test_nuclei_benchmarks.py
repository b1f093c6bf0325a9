"""benchmarks/box_ablations.py and benchmarks/rivals.py: what they compare, on a few pictures."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from helpers import write_pictures
from PIL import Image

import fused
import model as modellib
import native
import utils
from benchmarks import box_ablations, measure_gain, rivals, rivals_train
from config import Config
from evaluation.results import ground_truth
from samples import nucleus

TINY = [
    "BACKBONE_WIDTH=0.25", "TOP_DOWN_PYRAMID_SIZE=16", "RPN_CHANNELS=16", "FPN_CLASSIF_FC_LAYERS_SIZE=16",
    "MASK_HEAD_CHANNELS=8", "MASKIOU_HEAD_CHANNELS=8", "MASKIOU_FC_LAYERS_SIZE=16", "MASK_HEAD_CONVS=1",
    "IMAGES_PER_GPU=2", "IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64", "TRAIN_DTYPE=float32", "WARMUP_STEPS=1",
]  # fmt: skip

############################################################
#  box_ablations.py
############################################################


def test_giou_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]])
    others = torch.tensor([[0.0, 0, 10, 10], [0, 10, 10, 20], [0, 5, 10, 15], [0, 0, 10, 10]])
    # The hull of the second pair is filled; that of the third has 150 of which 150 are filled, and a third is shared
    assert box_ablations.giou(boxes, others).tolist() == pytest.approx([1, 0, 1 / 3, 0])
    apart = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[9.0, 9, 10, 10]])
    assert box_ablations.giou(*apart).item() == pytest.approx(-0.98)
    moving = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    box_ablations.giou(moving, apart[1]).sum().backward()
    assert (moving.grad[0, 2:] > 0).all(), "boxes that do not touch are drawn together"


def test_giou_takes_the_place_of_the_box_loss_alone():
    config = Config(NUM_CLASSES=2)
    rois = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    sample = modellib.RoiSample(rois, torch.zeros(2, dtype=torch.int64), torch.tensor([0, modellib.BACKGROUND]))
    targets = modellib.Targets(
        torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([1]), torch.tensor([0]), None, torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64), torch.tensor([0]),
    )  # fmt: skip
    logits, deltas = torch.randn(2, 2), torch.zeros(2, 2, 4)
    plain = modellib.box_losses(logits, deltas, sample, targets, config)
    other = box_ablations.giou_losses(logits, deltas, sample, targets, config)
    assert other.sums["mrcnn_class_loss"] == plain.sums["mrcnn_class_loss"]
    assert other.sums["mrcnn_bbox_loss"].item() == pytest.approx(0.5), "the RoI is half of its object"
    assert other.counts == plain.counts


def test_shift_is_that_of_the_middles():
    objects = [(1, [10, 20, 8, 6]), (1, [40, 40, 10, 10]), (2, [5, 5, 20, 20])]
    contents = {"annotations": [{"image_id": image_id, "bbox": box} for image_id, box in objects]}
    boxes = [{"image_id": i, "bbox": [x + 0.5, y - 1, w, h], "score": 0.9} for i, (x, y, w, h) in objects]
    boxes += [
        {"image_id": 2, "bbox": [100, 100, 5, 5], "score": 0.9},
        {"image_id": 3, "bbox": [0, 0, 5, 5], "score": 1.0},
    ]
    boxes += [{"image_id": 1, "bbox": [13, 23, 8, 6], "score": 0.4}]
    assert box_ablations.shift(contents, boxes) == pytest.approx((-1, 0.5))
    assert np.isnan(box_ablations.shift(contents, [])).all()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("nuclei"), ("train", "val"), (12, 3))


def ablate(pictures, folder, *words) -> tuple[int, str]:
    words = ["--dataset", str(pictures), "--steps", "4", "--folder", str(folder), *words, "--set", *TINY]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = box_ablations.main(words)
    return status, printed.getvalue()


def test_box_ablations_train_what_their_names_say(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKSCORING_KEEP_MEMORY", "0")
    detectors, detect = [], box_ablations.detect_dataset
    monkeypatch.setattr(box_ablations, "detect_dataset", lambda *args: detectors.append(args[0]) or detect(*args))
    names = [box_ablations.BASE, box_ablations.GIOU, "14 cells", box_ablations.TWICE]
    status, printed = ablate(pictures, tmp_path, "--seeds", "0", "--variants", *names)
    assert status == 0
    facts = json.loads(printed.splitlines()[-1])
    assert list(facts["runs"]) == [name for name in box_ablations.VARIANTS if name in names]
    run = facts["runs"][box_ablations.BASE]["0"]
    assert {"box AP", "box AP of masks", "mask AP (class score)", "shift", "shift of masks"} <= set(run)
    assert {detector.config.BOXES_OF_MASKS for detector in detectors} == {False}, "boxes are those of the box head"
    assert run["images"] < 12, "measured on the images that are held out"
    assert run["dtype"] == "float32"
    assert (run["steps"], facts["runs"][box_ablations.TWICE]["0"]["steps"]) == (4, 8)
    stored = {}
    for name in names:
        (path,) = (box_ablations.run_folder(tmp_path, name, 0) / "logs").glob("*/mask_rcnn_nuclei_0004.pth")
        stored[name] = torch.load(path, weights_only=True)
    changed = {
        key for key, value in stored["14 cells"]["config"].items() if value != stored[names[0]]["config"][key]
    }  # fmt: skip
    assert changed == {"POOL_SIZE"}
    head = "maskiou_head.maskious.bias"
    assert (stored[names[0]]["model"][head] == 1).all(), "which learns nothing here"
    weights = [stored[name]["model"]["box_head.box_deltas.weight"] for name in names[:2]]
    assert not torch.equal(*weights), "the loss is another"
    assert modellib.box_losses is box_ablations._BOX_LOSSES, "and that of the model comes back"
    before = {path: path.read_bytes() for path in tmp_path.glob("*/numbers.json")}
    assert len(before) == 4
    assert ablate(pictures, tmp_path, "--seeds", "0", "--variants", "14 cells")[1].splitlines()[-6:-1]
    assert {path: path.read_bytes() for path in tmp_path.glob("*/numbers.json")} == before


@pytest.mark.parametrize(("given", "dtype"), [([], "float32"), (["TRAIN_DTYPE=bfloat16"], "bfloat16")])
def test_box_ablations_train_in_what_the_processor_has(given, dtype, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fused, "widens", lambda device, asked: (device, asked) == ("cpu", torch.bfloat16))
    config = nucleus.NucleusConfig(GPU_COUNT=0)

    def stop(config, logs):
        raise ValueError(f"it would train in {config.TRAIN_DTYPE}")

    assert config.TRAIN_DTYPE == "bfloat16"
    monkeypatch.setattr(box_ablations, "continued", stop)
    words = ["--dataset", str(pictures), "--folder", str(tmp_path), *(["--set", *given] if given else [])]
    assert box_ablations.main(words) == 2
    out, err = capsys.readouterr()
    assert f"it would train in {dtype}" in err
    assert ("computes in float32" in out) == (not given)


def test_table_of_box_ablations():
    def run(box, shift=(0.0, 0.0)):
        return {
            "box AP": box,
            "box AP75": 0.3,
            "mask AP (class score)": 0.4,
            "box AP of masks": 0.45,
            "shift": shift,
            "shift of masks": (1, 2),
        }

    runs = {
        box_ablations.BASE: {0: run(0.5), 1: run(0.52)},
        "GIoU": {0: run(0.51, (0.2, -0.1)), 1: run(0.54, (0.4, 0.1))},
    }
    *_, base, giou = (line.split(" | ") for line in box_ablations.table(runs).splitlines())
    assert base[1:] == ["2", "51.0", "30.0", "40.0", "45.0", "+0.00, +0.00", "+1.00, +2.00", "- |"]
    assert giou[1:3] == ["2", "52.5"]
    assert giou[6] == "+0.30, +0.00"
    assert giou[8] == f"{measure_gain.difference([0.01, 0.02], 1)} |"


############################################################
#  rivals.py
############################################################


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    assert rivals.main(["prepare", "--dataset", str(pictures), "--folder", str(folder)]) == 0
    return folder


def write_results(folder, name, subset_folder, labels_of=lambda labels: labels):
    """A rival that finds what labels_of makes of the true labels, with falling scores."""
    (folder / name).mkdir()
    for path in sorted((subset_folder / "labels").glob("*.npy")):
        labels = labels_of(np.load(path))
        scores = 0.9 - 0.01 * np.arange(labels.max(), dtype=np.float32)
        np.savez_compressed(folder / name / f"{path.stem}.npz", labels=labels, scores=scores)
    (folder / name / "facts.json").write_text(json.dumps({"threshold": 0.5, "minutes": 1}))


def test_prepared_images_and_labels_are_the_data_sets(pictures, prepared):
    dataset = nucleus.make_dataset(pictures, "val")
    names, images, labels = rivals_train.read(prepared / "val")
    assert names == [dataset.name(image_id) for image_id in dataset.image_ids]
    for image_id, image, found in zip(dataset.image_ids, images, labels, strict=True):
        np.testing.assert_array_equal(image, dataset.load_image(image_id))
        masks, _ = dataset.load_mask(image_id)
        np.testing.assert_array_equal(found, (masks * np.arange(1, masks.shape[2] + 1)).max(axis=2))


def test_rivals_are_measured_alike(pictures, prepared, tmp_path, capsys):
    """One that finds all objects, and one that finds every second one and adds a false one."""

    def half(labels):
        labels = np.where(labels == 1, 1, 0)
        labels[:4, :4] = 2
        return labels.astype(np.int32)

    for name, labels_of in (("stardist", lambda labels: labels), ("cellpose", half)):
        write_results(prepared, name, prepared / "val", labels_of)
    output, other = tmp_path / "numbers.json", native.ROOT / "assets" / "nuclei.pth"
    words = ["measure", "--dataset", str(pictures), "--folder", str(prepared), "--output", str(output)]
    assert rivals.main([*words, "--model", "nuclei", str(other)]) == 0
    rows = json.loads(output.read_text())["models"]
    assert list(rows) == ["this project, nuclei", f"this project, {other}", "stardist", "cellpose"]
    assert rows["stardist"]["mask AP"] == rows["stardist"]["box AP"] == rows["stardist"]["accuracy 0.9"] == 1
    assert rows["cellpose"]["accuracy 0.5"] == pytest.approx(1 / 3), "one of two, and a false one"
    assert 0.45 < rows["cellpose"]["mask AP"] < 0.55
    assert rows["this project, nuclei"]["threshold"] in rivals.THRESHOLDS
    assert rows["stardist"]["minutes"] == 1
    printed = capsys.readouterr().out
    assert "| stardist | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |" in printed
    assert rivals.main([*words, "--rivals", "stardist"]) == 0
    assert list(json.loads(output.read_text())["models"]) == ["this project, nuclei", "stardist"]


def test_a_rival_that_was_not_trained_is_named(pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rivals_train\.py stardist .* trains it"):
        rivals.found_by(tmp_path / "stardist", nucleus.make_dataset(pictures, "val"))


def test_the_best_threshold_leaves_out_what_is_wrong(pictures):
    dataset = nucleus.make_dataset(pictures, "val")
    contents = ground_truth(dataset)
    masks = [
        {"image_id": entry["image_id"], "category_id": 1, "segmentation": entry["segmentation"], "score": 0.62}
        for entry in contents["annotations"]
    ]  # fmt: skip
    wrong = utils.rle_to_json(utils.mask_to_rle(np.eye(64, dtype=bool)[..., None])[0])
    masks += [{"image_id": masks[0]["image_id"], "category_id": 1, "segmentation": wrong, "score": 0.41}]
    assert rivals.best_threshold(contents, masks) == 0.45


def test_images_and_labels_of_stardist_turn_together():
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 2:7] = 1
    seen = set()
    for seed in range(40):
        image, turned = rivals_train.turned(labels.astype(float), labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(image > (image.min() + image.max()) / 2, turned > 0)
        seen.add(turned.tobytes() + bytes(turned.shape))
    assert len(seen) == 8


def test_accuracy_of_label_images():
    labels = np.zeros((10, 10), np.int32)
    labels[:4, :4], labels[6:, 6:] = 1, 2
    assert rivals_train.accuracy_of(labels, labels) == 1
    found = np.where(labels == 1, 3, 0)
    assert rivals_train.accuracy_of(found, labels) == 1 / 2
    found[0, 9] = 1
    assert rivals_train.accuracy_of(found, labels) == 1 / 3
    assert rivals_train.accuracy_of(np.zeros_like(labels), np.zeros_like(labels)) == 1


def test_read_takes_the_folder_that_prepare_writes(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.fromarray(np.full((3, 4), 7, np.uint8)).save(tmp_path / "images" / "a.png")
    np.save(tmp_path / "labels" / "a.npy", np.ones((3, 4), np.int32))
    names, images, labels = rivals_train.read(tmp_path)
    assert (names, images[0].shape, labels[0].sum()) == (["a"], (3, 4, 3), 12)

"""samples/shapes.py: the images that it draws, and its command line on a tiny untrained model."""

import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from helpers import TINY_SHAPES, tiny_weights
from PIL import Image

from evaluation.run import evaluate_dataset
from model import MaskRCNN
from native import ROOT
from samples import shapes
from training.loop import Progress
from weights.load import load_model


def drawn(count, *arguments, **options) -> shapes.ShapesDataset:
    dataset = shapes.ShapesDataset()
    dataset.load_shapes(count, *arguments, **options)
    dataset.prepare()
    return dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights"))


def test_the_network_is_the_small_one_with_norms_in_its_mask_head():
    """1.6 points of mask AP: docs/results.md, Shapes."""
    model = MaskRCNN(shapes.ShapesConfig(GPU_COUNT=0))
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.GroupNorm)]
    assert norms
    assert all(name.startswith("mask_head.") for name in norms)
    assert len(norms) == model.config.MASK_HEAD_CONVS


############################################################
#  The images
############################################################


def test_an_image_is_the_same_on_every_machine():
    """Numbers from the machine that this was written on; a level of gray may differ where rounding does."""
    dataset = drawn(8, 96, 128, seed=3, subset="val")
    image, (masks, class_ids) = dataset.load_image(7), dataset.load_mask(7)
    assert [dataset.class_names[class_id] for class_id in class_ids] == [
        "ring", "star", "square", "square", "square", "square", "star",
    ]  # fmt: skip
    assert masks.sum(axis=(0, 1)).tolist() == [354, 326, 591, 939, 131, 263, 117]
    expected = [[186, 174, 244, 171], [142, 182, 153, 174], [179, 179, 176, 166]]
    np.testing.assert_allclose(image[16::32, 16::32, 1], expected, rtol=0, atol=1)
    assert image.mean() == pytest.approx(159.6226, abs=0.01)


def test_an_image_follows_from_subset_seed_and_number_alone():
    whole, part = drawn(20, seed=5), pickle.loads(pickle.dumps(drawn(9, seed=5)))
    part.load_mask(2)
    np.testing.assert_array_equal(part.load_image(8), whole.load_image(8))
    for one, other in zip(part.load_mask(8), whole.load_mask(8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_is_drawn_once_for_its_pixels_and_its_masks(monkeypatch):
    """Training asks for both. What a caller does to its arrays changes nothing."""
    draw, calls = shapes.draw, []
    monkeypatch.setattr(shapes, "draw", lambda *arguments: calls.append(arguments[:2]) or draw(*arguments))
    shapes.draw_stream.cache_clear()
    dataset = drawn(2, 64, 96)
    image, (masks, class_ids) = dataset.load_image(1), dataset.load_mask(1)
    assert calls == [(64, 96)]
    kept = image.copy(), masks.copy(), class_ids.copy()
    image[:], masks[:], class_ids[:] = 0, True, 9
    for again, expected in zip((dataset.load_image(1), *dataset.load_mask(1)), kept, strict=True):
        np.testing.assert_array_equal(again, expected)
    dataset.load_image(0)
    assert len(calls) == 2


def test_no_two_images_are_the_same():
    """Not within a subset, nor in two, nor with two seeds: what is evaluated has never been trained on."""
    datasets = [drawn(12, 64, 64, seed=seed, subset=subset) for subset in shapes.SUBSETS for seed in (0, 1, 2)]
    codes = [zlib.crc32(dataset.load_image(i).tobytes()) for dataset in datasets for i in dataset.image_ids]
    assert len(set(codes)) == len(codes) == 108


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 200), (512, 512)])
def test_masks_are_what_can_be_seen(height, width):
    dataset = drawn(6, height, width)
    for image_id in dataset.image_ids:
        image, (masks, class_ids) = dataset.load_image(image_id), dataset.load_mask(image_id)
        assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
        assert (masks.shape, masks.dtype) == ((height, width, len(class_ids)), bool)
        assert class_ids.dtype == np.int32
        assert set(class_ids) <= set(range(1, 8))
        assert masks.sum(axis=2).max(initial=0) <= 1, "the nearest object has the pixel"
        assert masks.sum(axis=(0, 1)).min(initial=20) >= 20


def test_a_mask_is_where_the_object_is(monkeypatch):
    """A star, alone on a plain ground: pixels have its colour inside of its mask, and the ground's outside."""
    whole = shapes.outlines("star", np.random.default_rng(0))
    names = []

    def one_star(name, rng):
        names.append(name)
        return whole if len(names) == 1 else [np.zeros((3, 2))]

    def flat(color, height, width, rng):
        return np.tile(np.asarray(color, np.float32), (height, width, 1))

    monkeypatch.setattr(shapes, "outlines", one_star)
    monkeypatch.setattr(shapes, "texture", flat)
    monkeypatch.setattr(shapes, "waves", lambda height, width, *_: np.zeros((height, width), np.float32))
    monkeypatch.setattr(shapes, "spoil", lambda image, rng: image)
    image, masks, class_ids = shapes.draw(192, 160, np.random.default_rng(8))
    assert [shapes.CLASSES[class_id - 1] for class_id in class_ids] == names[:1]
    differs = np.abs(image - image[0, 0]).max(axis=2)
    np.testing.assert_array_equal(differs >= 0.5 * differs.max(), masks[..., 0])
    assert 100 < masks.sum() < 2000


def test_an_object_hides_what_is_behind_it(monkeypatch):
    """Each fills the image: only the nearest is left, and a bar in front leaves nothing."""
    names = []

    def everywhere(name, rng):
        names.append(name)
        return [np.array([[-99, -99], [99, -99], [99, 99], [-99, 99]])]

    monkeypatch.setattr(shapes, "outlines", everywhere)
    nearest = set()
    for number in range(20):
        _, masks, class_ids = shapes.draw(32, 32, np.random.default_rng(number))
        assert [shapes.CLASSES[class_id - 1] for class_id in class_ids] == [names[-1]] * (names[-1] != "bar")
        assert masks.all()
        nearest.add(names[-1])
    assert "bar" in nearest
    assert len(nearest) > 3


@pytest.mark.parametrize(("columns_left", "seen"), [(20, 2), (15, 1)])  # of 120; 15 % are 18
def test_objects_that_are_hidden_nearly_are_left_out(columns_left, seen, monkeypatch):
    calls = []

    def two_objects(polygons, height, width):
        calls.append((height, width))
        covered = np.zeros((height, width), np.float32)
        covered[:, : {1: 120, 2: 120 - columns_left}.get(len(calls), 0)] = 1
        return covered

    monkeypatch.setattr(shapes, "outlines", lambda name, rng: [np.array([[-99, -99], [99, -99], [99, 99], [-99, 99]])])
    monkeypatch.setattr(shapes, "cover", two_objects)
    _, masks, class_ids = shapes.draw(100, 120, np.random.default_rng(8))
    assert calls[0] == (100, 120)
    assert masks.sum(axis=(0, 1)).tolist() == [100 * columns_left, 100 * (120 - columns_left)][-seen:]
    assert len(class_ids) == seen


def test_a_ring_has_a_hole_and_edges_have_shares():
    ring = [10 * polygon + 12 for polygon in shapes.outlines("ring", np.random.default_rng(0))]
    covered = shapes.cover(ring, 24, 24)
    assert covered[12, 12] == 0
    assert covered.max() == 1
    assert ((covered > 0) & (covered < 1)).any()
    np.testing.assert_array_equal(covered * 16, np.round(covered * 16))
    square = shapes.cover([np.array([[2, 3], [6, 3], [6, 9], [2, 9]])], 12, 12)
    np.testing.assert_array_equal(np.argwhere(square >= 0.5)[[0, -1]], [[3, 2], [8, 5]])
    assert (square >= 0.5).sum() == 24


def test_every_class_is_there_and_no_image_is_like_another():
    dataset = drawn(150)
    class_ids = np.concatenate([dataset.load_mask(i)[1] for i in dataset.image_ids])
    counts = np.bincount(class_ids, minlength=8)
    assert counts[0] == 0
    assert counts[1:].min() > 0.6 * counts[1:].max()
    per_image = [len(dataset.load_mask(i)[1]) for i in range(50)]
    assert min(per_image) <= 1
    assert max(per_image) >= 8


@pytest.mark.parametrize("options", [{"subset": "minival"}, {"seed": -1}, {"height": 0}, {"count": 0}])
def test_mistakes_are_named(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"{name}\b.*{name}={value!r}"):
        drawn(**{"count": 1, **options})


############################################################
#  Command line
############################################################


def test_show_runs_from_anywhere(tmp_path):
    command = [sys.executable, str(ROOT / "samples" / "shapes.py"), "show", "--images", "3", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "shapes.png: 3 images\n"
    with Image.open(tmp_path / "shapes.png") as sheet:
        assert sheet.size == (4 * 256, 2 * 256)
        pixels = np.asarray(sheet)
    first = drawn(1, seed=1, subset="test").load_image(0)
    np.testing.assert_array_equal(pixels[:256:2, :256:2], first)
    assert (pixels[256:, :256] != pixels[:256, :256]).any(), "objects are outlined"
    assert not pixels[:, 768:].any(), "no fourth image"


def test_show_what_a_model_finds(weights, tmp_path):
    output = tmp_path / "sheet.png"
    arguments = ["show", "--model", str(weights), "--images", "1", "--output", str(output), "--device", "cpu"]
    assert shapes.main([*arguments, "--set", "DETECTION_MIN_CONFIDENCE=0"]) == 0
    pixels = np.asarray(Image.open(output))
    assert pixels.shape == (3 * 256, 4 * 256, 3)
    assert (pixels[512:, :256] != pixels[:256, :256]).any(), "an untrained model finds something, too"


def test_boxes_of_enlarged_pictures():
    boxes, masks = np.array([[5.0, 5, 10, 15]]), np.zeros((20, 24, 1), bool)
    picture = shapes.picture(np.zeros((20, 24, 3), np.uint8), boxes, masks, [""])
    rows, columns = np.nonzero(picture.any(axis=2))
    assert picture.shape == (40, 48, 3)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 29)


def test_evaluate(weights, capsys):
    assert shapes.main(["evaluate", "--model", str(weights), "--images", "3", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "masks by mask score" in printed
    assert "3 images, 15 detections" in printed


def test_train_is_given_data_settings_and_evaluation(weights, tmp_path, monkeypatch):
    calls, progress = [], Progress(None, tmp_path, 3, 1)

    def noted(*args, **named):
        calls.append((args, named))
        return progress

    monkeypatch.setattr(MaskRCNN, "train_model", noted)
    settings = [f"{name}={value}" for name, value in TINY_SHAPES.items()]
    arguments = ["train", "--epochs", "3", "--seed", "4", "--images", "6", "--device", "cpu", "--logs", "somewhere"]
    assert shapes.main([*arguments, "--model", str(weights), "--set", *settings]) == 0
    ((model, train_data, val_data), named), (_, head) = calls
    assert str(model.model_dir) == "somewhere"
    assert model.config.SEED == 4
    stored = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert [info["stream"] for info in train_data.image_info] == [(0, 4, i) for i in range(6)]
    assert {info["stream"][:2] for info in val_data.image_info} == {(1, 0)}
    assert [(each["layers"], each["epochs"]) for each in (named, head)] == [("detector", 3), ("maskiou", 7)]
    assert model.config.MASKIOU_DETECTIONS
    assert named["evaluate"].dataset is val_data
    assert named["evaluate"](model)["images"] == val_data.num_images
    progress.interrupted = 15
    assert shapes.main([*arguments, "--model", str(weights), "--set", *settings]) == 143


def test_mistakes_end_in_one_line(tmp_path, capsys):
    assert shapes.main(["evaluate", "--logs", str(tmp_path)]) == 2
    assert "shapes.py: there is no checkpoint" in capsys.readouterr().err
    assert shapes.main(["show", "--set", "IMAGE_MAX=1"]) == 2
    assert "did you mean IMAGE_MAX_DIM?" in capsys.readouterr().err
    assert shapes.main(["train", "--epochs", "0", "--images", "2", "--logs", str(tmp_path), "--device", "cpu"]) == 2
    assert "--epochs 0 trains the MaskIoU head of a trained detector" in capsys.readouterr().err


############################################################
#  The embedded model
############################################################


def test_the_embedded_model_finds_shapes_that_it_has_not_seen():
    """On a few images of the subset test; docs/results.md has the numbers of many."""
    model = load_model("shapes", "cpu")
    numbers = evaluate_dataset(model, shapes.make_dataset(model.config, "test", 40), verbose=False)
    assert numbers["mask AP"] > 0.35
    assert numbers["mask AP50"] > 0.5
    assert numbers["re-scoring gain"] > 0.005

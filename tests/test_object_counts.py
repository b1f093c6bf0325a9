"""How many objects a training sees is known before its first step, and is what TrainingData then has."""

import json
import re

import numpy as np
import pytest
from helpers import SquaresDataset, TrainConfig
from PIL import Image

import native
import utils
from config import Config
from data.formats.coco import CocoDataset
from data.object_counts import count_objects, describe_objects
from data.samples import TrainingData
from model import MaskRCNN

CASES = native.ROOT.parent / "shared" / "cases" / "annotations"


class TwoClasses(Config):
    NAME = "two"
    NUM_CLASSES = 3
    HORIZONTAL_FLIP = 0


@pytest.fixture
def make(tmp_path):
    """make(size, boxes, ...): a data set with an image of each size (height, width) that has these boxes."""

    def run(*images, crowds=(), changes=None, **options):
        entries, annotations = [], []
        for number, ((height, width), boxes) in enumerate(images, 1):
            Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
            entries.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for x, y, w, h in boxes:
                ring = [x, y, x + w, y, x + w, y + h, x, y + h]
                rle = utils.polygons_to_rle([ring], height, width)
                index = len(annotations)
                fields = {"bbox": [x, y, w, h], "area": max(utils.rle_area(rle), 1), "segmentation": [ring]}
                ids = {"id": index + 1, "image_id": number, "category_id": 1 + index % 2}
                annotations.append({**ids, **fields, "iscrowd": int(index in crowds), **(changes or {}).get(index, {})})
        categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
        path = tmp_path / "own.json"
        path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
        dataset = CocoDataset()
        dataset.load_annotations(path, tmp_path, **options)
        dataset.prepare()
        return dataset

    return run


LARGE = [[5, 5, 30, 30], [40, 10, 20, 25]]


def test_what_is_counted(make):
    boxes = [*LARGE, [1, 1, 1, 1], [60, 60, 25, 25]]
    dataset = make(((100, 100), boxes), ((100, 100), LARGE), crowds=[1], changes={5: {"segmentation": []}})
    config = TwoClasses(IMAGE_RESIZE_MODE="square", IMAGE_MIN_DIM=1, IMAGE_MAX_DIM=64, MAX_GT_INSTANCES=1)
    counts = count_objects(dataset, config)
    assert counts._asdict() == {
        "listed": 6, "images": 2, "seen": 2, "unusable": 1, "not_chosen": 0, "crowds": 1, "vanishing": 1, "surplus": 1,
        "vanishing_images": [0],
    }  # fmt: skip
    path = dataset.image_info[0]["path"]
    assert describe_objects(dataset, config) == (
        "Training sees 2 of 6 objects in 2 images; not seen: 1 cannot be used (see the warnings above), 1 crowd, "
        f"1 smaller than a pixel in the network's input, in {path} (100 x 100), "
        "1 beyond MAX_GT_INSTANCES = 1 of their image"
    )
    dataset = make(((100, 100), boxes), ((90, 100), []), class_ids=[1], empty_images=False)
    assert count_objects(dataset, TwoClasses())[:5] == (4, 1, 2, 0, 2)
    assert describe_objects(dataset, TwoClasses()) == (
        "Training sees 2 of 4 objects in 1 image; not seen: 2 in images or categories that were not chosen"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"IMAGE_RESIZE_MODE": "square", "IMAGE_MIN_DIM": 40, "IMAGE_MAX_DIM": 64},
        {"IMAGE_RESIZE_MODE": "square", "IMAGE_MIN_DIM": 40, "IMAGE_MAX_DIM": 64, "DIALECT": "matterport"},
        {"IMAGE_RESIZE_MODE": "square", "IMAGE_MIN_DIM": 40, "IMAGE_MAX_DIM": 64, "USE_MINI_MASK": True},
        {"IMAGE_RESIZE_MODE": "shorter", "IMAGE_MIN_DIM": 30, "IMAGE_MAX_DIM": 50},
        {"IMAGE_RESIZE_MODE": "shorter", "IMAGE_MIN_DIM": 300, "IMAGE_MAX_DIM": 500},
        {"IMAGE_RESIZE_MODE": "none"},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_count_is_what_training_gets(make, settings, seed):
    rng = np.random.default_rng(seed)
    decimals = 0 if settings.get("USE_MINI_MASK") else 1  # then the masks' own boxes count, which are not known here
    images = []
    for size in ((301, 200), (150, 222), (301, 200)):
        corners = rng.uniform(0, 100, (25, 2))
        images.append(
            (size, np.concatenate([corners, 2 ** rng.uniform(0.6, 5, (25, 2))], axis=1).round(decimals).tolist())
        )
    dataset, config = make(*images, crowds=range(0, 75, 9)), TwoClasses(**settings)
    data = TrainingData(dataset, config, augment=False)
    seen = sum(len(data[i].targets.boxes) for i in range(3))
    counts = count_objects(dataset, config)
    assert counts.seen == seen
    assert counts.vanishing == 75 - seen - counts.crowds
    if settings["IMAGE_RESIZE_MODE"] != "none" and settings["IMAGE_MIN_DIM"] < 100:
        assert 10 < seen < 60


def test_several_sizes_count_with_the_largest(make):
    dataset = make(((100, 100), [[5, 5, 4, 4]]))
    config = TwoClasses(IMAGE_RESIZE_MODE="shorter", IMAGE_MIN_DIM=20, IMAGE_MAX_DIM=200, MULTI_SCALE=(20, 80))
    assert count_objects(dataset, config).seen == 1
    with pytest.raises(ValueError, match="sees no object to learn from, of 1 object in 1 image: 1 smaller"):
        describe_objects(dataset, TwoClasses(IMAGE_RESIZE_MODE="shorter", IMAGE_MIN_DIM=20, IMAGE_MAX_DIM=200))


def test_crops_do_not_count(make):
    """A crop shows a part of the image, another one each time; all objects are seen in the end."""
    dataset = make(((400, 300), [[1, 1, 20, 20], [250, 350, 20, 20], [100, 100, 0.9, 0.9]]))
    config = TwoClasses(IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64)
    assert count_objects(dataset, config).seen == 2


def test_images_with_tiny_objects_are_named(make):
    dataset = make(*[((100, 100), [*LARGE, [1, 1, 1, 1]])] * 5)
    text = describe_objects(dataset, TwoClasses(IMAGE_RESIZE_MODE="square", IMAGE_MIN_DIM=1, IMAGE_MAX_DIM=64))
    names = [f"{info['path']} (100 x 100)" for info in dataset.image_info[:3]]
    assert text == (
        "Training sees 10 of 15 objects in 5 images; not seen: 5 smaller than a pixel in the network's input, in "
        f"{', '.join(names)}, and 2 more images"
    )


def test_nothing_but_crowds(make):
    dataset = make(((100, 100), LARGE), crowds=[0, 1])
    with pytest.raises(
        ValueError, match=r"no object to learn from, of 2 objects in 1 image: 2 crowds; are objects mark"
    ):
        describe_objects(dataset, TwoClasses())


def test_boxes_of_a_data_set(make):
    dataset = make(((100, 90), LARGE), ((50, 60), []), ((80, 200), LARGE), crowds=[3])
    dataset.image_info.reverse()
    dataset.prepare()
    objects = dataset.object_boxes()
    assert objects.sizes.tolist() == [[80, 200], [50, 60], [100, 90]]
    for image_id in range(3):
        class_ids, _, boxes = dataset.load_instances(image_id)
        here = objects.image_ids == image_id
        assert objects.class_ids[here].tolist() == class_ids.tolist()
        assert objects.boxes[here].tolist() == boxes.tolist()
    assert (objects.listed, objects.unusable) == (4, 0)


def test_data_sets_that_cannot_tell(make):
    dataset = SquaresDataset().load_squares(2)
    assert dataset.object_boxes() is None
    assert count_objects(dataset, TrainConfig()) is None
    assert describe_objects(dataset, TrainConfig()) == ""
    dataset = make(((100, 90), LARGE))
    dataset.add_image("own", "more", None)
    dataset.prepare()
    assert dataset.object_boxes() is None
    assert CocoDataset().object_boxes() is None


def test_a_training_says_it_before_its_first_step(make, tmp_path, capsys, monkeypatch):
    dataset = make(((100, 100), LARGE), crowds=[1])
    config = TrainConfig(NUM_CLASSES=3, CLASS_NAMES=("BG", "cup", "plate"))
    model = MaskRCNN(config, tmp_path / "logs")
    monkeypatch.setattr(MaskRCNN, "_train_phase", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.train_model(dataset, None, 0.001, epochs=1, layers="all")
    assert "Training sees 1 of 2 objects in 1 image; not seen: 1 crowd\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the training sees no object to learn from"):
        model.train_model(make(((100, 100), LARGE), crowds=[0, 1]), None, 0.001, epochs=1, layers="all")


@pytest.mark.skipif(not CASES.is_dir(), reason=f"there is no {CASES}")
def test_the_case_of_tiny_objects():
    dataset = CocoDataset()
    dataset.load_annotations(CASES / "15_tiny" / "ann.json", CASES / "15_tiny" / "images")
    dataset.prepare()
    config = Config(NAME="tiny", NUM_CLASSES=2, IMAGE_RESIZE_MODE="square", IMAGE_MIN_DIM=96, IMAGE_MAX_DIM=128)
    message = "the training sees no object to learn from, of 50 objects in 1 image: 50 smaller than a pixel in the"
    with pytest.raises(ValueError, match=f"{re.escape(message)}.*im1.png .3000 x 2000.; raise IMAGE_MIN_DIM"):
        describe_objects(dataset, config)
    config.IMAGE_MAX_DIM = 1024
    assert describe_objects(dataset, config) == "Training sees 50 of 50 objects in 1 image"

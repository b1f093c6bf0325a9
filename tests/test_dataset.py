"""The Dataset base class, and the check of what a user's load_mask returns."""

import logging
import pickle

import numpy as np
import PIL.Image
import pytest

from data.dataset import Dataset, check_mask, fit_boxes


def two_sources(**options) -> Dataset:
    dataset = Dataset(**options)
    dataset.add_class("coco", 3, "car")
    dataset.add_class("coco", 18, "dog, hound")
    dataset.add_class("voc", 7, "automobile")
    dataset.add_class("voc", 12, "dog")
    dataset.add_image("coco", 139, "139.jpg", width=640, annotations=[1, 2])
    dataset.add_image("voc", "2007_000032", "32.jpg")
    return dataset


############################################################
#  Classes and images
############################################################


def test_prepare():
    dataset = two_sources()
    dataset.prepare()
    assert dataset.num_classes == 5
    assert dataset.class_ids.tolist() == [0, 1, 2, 3, 4]
    assert dataset.class_names == ["BG", "car", "dog", "automobile", "dog"]  # up to the comma; not merged
    assert dataset.num_images == 2
    assert dataset.image_ids.tolist() == dataset._image_ids.tolist() == [0, 1]
    assert dataset.sources == ["", "coco", "voc"]
    assert dataset.source_class_ids == {"": [0], "coco": [0, 1, 2], "voc": [0, 3, 4]}
    assert dataset.class_from_source_map == {".0": 0, "coco.3": 1, "coco.18": 2, "voc.7": 3, "voc.12": 4}
    assert dataset.image_from_source_map == {"coco.139": 0, "voc.2007_000032": 1}
    assert dataset.class_info[2] == {"source": "coco", "id": 18, "name": "dog, hound"}
    assert dataset.image_info[0] == {
        "id": 139, "source": "coco", "path": "139.jpg", "width": 640, "annotations": [1, 2],
    }  # fmt: skip


def test_source_class_ids_both_ways():
    dataset = two_sources()
    dataset.prepare()
    assert dataset.map_source_class_id("voc.12") == 4
    assert dataset.get_source_class_id(4, "voc") == 12
    with pytest.raises(ValueError, match=r"source_class_id 'coco.12' is not in the data set.*coco\.3"):
        dataset.map_source_class_id("coco.12")
    with pytest.raises(ValueError, match=r"class_id 4 has no class in source 'coco'; the sources are"):
        dataset.get_source_class_id(4, "coco")


def test_an_empty_dataset():
    dataset = Dataset()
    dataset.prepare()
    assert dataset.class_names == ["BG"]
    assert dataset.num_images == 0
    assert dataset.image_ids.tolist() == []
    assert dataset.source_class_ids == {"": [0]}


@pytest.mark.parametrize("name", [*Dataset._PREPARED, "image_ids"])
def test_before_prepare(name):
    dataset = two_sources()
    with pytest.raises(AttributeError, match=f"^{name} is not set yet; call prepare"):
        getattr(dataset, name)
    dataset.prepare()
    getattr(dataset, name)
    dataset.add_class("coco", 3, "car")  # a repeat changes nothing
    getattr(dataset, name)
    dataset.add_image("coco", 140, "140.jpg")
    with pytest.raises(AttributeError, match="call prepare"):
        getattr(dataset, name)


def test_methods_before_prepare_say_so():
    with pytest.raises(AttributeError, match="call prepare"):
        two_sources().map_source_class_id("coco.3")
    with pytest.raises(AttributeError, match="object has no attribute 'clas_names'"):
        two_sources().clas_names  # noqa: B018


def test_prepare_twice():
    dataset = two_sources()
    dataset.prepare()
    dataset.add_class("voc", 20, "tv")
    dataset.prepare()
    dataset.prepare()
    assert dataset.class_names == ["BG", "car", "dog", "automobile", "dog", "tv"]
    assert dataset.num_images == 2


def test_a_dataset_can_be_pickled():
    """As the workers of a data loader need it."""
    dataset = two_sources()
    dataset.prepare()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.class_names == dataset.class_names
    assert copy.image_info == dataset.image_info
    with pytest.raises(AttributeError, match="call prepare"):
        _ = pickle.loads(pickle.dumps(two_sources())).num_images


def test_class_ids_may_be_numpy_integers():
    dataset = Dataset()
    dataset.add_class("a", np.int64(2), "two")
    dataset.prepare()
    assert dataset.map_source_class_id("a.2") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my.data", 1, "cat"), r"source must be text without a '\.', not 'my\.data'"),
        (("", 1, "cat"), "source must be text"),
        (("a", 0, "cat"), "class_id must be an integer of at least 1, not 0.*background"),
        (("a", -3, "cat"), "class_id must be an integer of at least 1, not -3"),
        (("a", "1", "cat"), "class_id must be an integer of at least 1, not '1'"),
        (("a", 1, 7), "class_name must be text, not 7"),
        (("coco", 3, "bus"), "class_name of coco.3 is already 'car' and cannot also be 'bus'"),
    ],
)
def test_add_class_refuses(arguments, message):
    dataset = two_sources()
    with pytest.raises(ValueError, match=message):
        dataset.add_class(*arguments)
    assert len(dataset.class_info) == 5


def test_add_image_refuses():
    dataset = two_sources()
    with pytest.raises(ValueError, match=r"image_id 139 of source 'coco' was added before; was the same subset"):
        dataset.add_image("coco", 139, "other.jpg")
    with pytest.raises(ValueError, match="source must be text"):
        dataset.add_image("a.b", 1, None)
    dataset.add_image("voc", 139, None)  # another source
    assert len(dataset.image_info) == 3


############################################################
#  class_map
############################################################


def check_merged(dataset):
    assert dataset.class_names == ["BG", "car", "dog", "dog"]
    assert dataset.num_classes == 4
    assert dataset.class_ids.tolist() == [0, 1, 2, 3]
    assert dataset.map_source_class_id("voc.7") == dataset.map_source_class_id("coco.3") == 1
    assert dataset.map_source_class_id("voc.12") == 3  # not in the map: stays apart
    assert dataset.source_class_ids == {"": [0], "coco": [0, 1, 2], "voc": [0, 1, 3]}
    assert dataset.get_source_class_id(1, "voc") == 7
    assert dataset.get_source_class_id(1, "coco") == 3
    assert len(dataset.class_info) == 5


def test_class_map_joins_a_class_to_one_of_that_name():
    dataset = two_sources()
    dataset.prepare({"voc.7": "car"})
    check_merged(dataset)
    dataset.prepare({})
    assert dataset.num_classes == 5


def test_class_map_of_the_constructor():
    dataset = two_sources(class_map={"voc.7": "car"})
    dataset.prepare()
    check_merged(dataset)


def test_class_map_works_in_either_order_and_with_new_names():
    dataset = two_sources()
    dataset.prepare({"coco.3": "automobile", "coco.18": "pet", "voc.12": "pet"})
    assert dataset.class_names == ["BG", "automobile", "pet"]
    assert dataset.class_from_source_map == {".0": 0, "coco.3": 1, "coco.18": 2, "voc.7": 1, "voc.12": 2}


def test_several_classes_of_one_source_give_the_first_id():
    dataset = two_sources()
    dataset.prepare({"coco.3": "thing", "coco.18": "thing"})
    assert dataset.get_source_class_id(1, "coco") == 3


def test_class_map_refuses():
    message = r"class_map has source classes that were not added: \['coco.4'\]; those added are coco"
    with pytest.raises(ValueError, match=message):
        two_sources().prepare({"coco.4": "car"})
    with pytest.raises(ValueError, match=r"not added: \['\.0'\]"):
        two_sources().prepare({".0": "nothing"})
    with pytest.raises(ValueError, match="cannot name a class 'BG', the background"):
        two_sources().prepare({"coco.3": "BG"})


############################################################
#  Images and masks
############################################################


def test_load_image(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = Dataset()
    dataset.add_image("a", 1, tmp_path / "a.png")
    dataset.add_image("a", 2, None)
    dataset.prepare()
    assert np.array_equal(dataset.load_image(0), pixels)
    assert dataset.source_image_link(0) == tmp_path / "a.png"
    assert dataset.image_reference(0) == ""
    with pytest.raises(ValueError, match=r"image a\.2 has no path; override load_image"):
        dataset.load_image(1)


def test_load_mask_without_a_return():
    class Forgetful(Dataset):
        def load_mask(self, image_id):
            pass

    with pytest.raises(ValueError, match=r"Forgetful\.load_mask must return \(masks, class_ids\), not NoneType"):
        Forgetful().load_instances(0)


def test_load_mask_not_overridden(caplog):
    class Drawn(Dataset):
        def load_image(self, image_id):
            return np.zeros((6, 7, 3), np.uint8)

    dataset = Drawn()
    dataset.add_image("a", 1, None)
    dataset.prepare()
    with caplog.at_level(logging.WARNING):
        masks, class_ids = dataset.load_mask(0)
    assert "Drawn does not override load_mask" in caplog.text
    assert masks.shape == (6, 7, 0)
    assert masks.dtype == bool
    assert class_ids.shape == (0,)
    assert class_ids.dtype == np.int32


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_check_mask(dtype):
    masks = np.zeros((4, 6, 2), dtype)
    masks[1:3, 2:5, 0] = 1
    checked, class_ids = check_mask(masks, [2, -1], (4, 6, 3), "image 5", num_classes=3)
    assert checked.dtype == bool
    assert np.array_equal(checked, masks.astype(bool))
    assert np.shares_memory(checked, masks) == (dtype is bool)
    assert class_ids.dtype == np.int32
    assert class_ids.tolist() == [2, -1]


def test_check_mask_of_no_instances():
    for masks in (np.empty((0, 0, 0)), np.zeros((4, 6, 0), bool), []):
        checked, class_ids = check_mask(masks, [], (4, 6, 3), "image 5")
        assert checked.shape == (4, 6, 0)
        assert checked.dtype == bool
        assert class_ids.shape == (0,)
        assert class_ids.dtype == np.int32


def ones(*shape):
    return np.ones(shape, bool)


@pytest.mark.parametrize(
    ("masks", "class_ids", "message"),
    [
        (ones(4, 6, 2), [1], r"masks \[4, 6, 1\].*not \[4, 6, 2\]; are there as many class ids as masks"),
        (ones(4, 6, 2), [], r"masks \[4, 6, 0\].*as many class ids"),
        (ones(4, 6, 0), [1], r"masks \[4, 6, 1\].*not \[4, 6, 0\]; are there as many"),
        (ones(2, 4, 6), [1, 1], r"not \[2, 4, 6\]; np.moveaxis\(masks, 0, -1\)"),
        (ones(4, 6), [1], r"not \[4, 6\]; a single mask is mask\[:, :, np.newaxis\]"),
        (ones(6, 4, 1), [1], r"not \[6, 4, 1\]; height comes before width, or .* EXIF"),
        (ones(8, 12, 1), [1], r"not \[8, 12, 1\]; .* another size"),
        (ones(4, 6, 1) * np.uint8(255), [1], r"not values from 255 to 255; .* masks > 127"),
        (np.full((4, 6, 1), np.nan), [1], "bool or 0 and 1"),
        (ones(4, 6, 1).astype("U"), [1], "bool or 0 and 1, not of dtype <U"),
        (ones(4, 6, 1), ["cat"], r"class_ids int32 \[N\], not <U3 \[1\]; are they class names\? map_source_class_id"),
        (ones(4, 6, 1), [[1]], r"class_ids int32 \[N\], not int64 \[1, 1\]"),
        (ones(4, 6, 1), [1.5], r"class_ids int32 \[N\], not float64"),
        (ones(4, 6, 1), [np.nan], r"class_ids int32 \[N\], not float64"),
        (ones(4, 6, 1), [True], r"class_ids int32 \[N\], not bool"),
        (ones(4, 6, 1), [0], "class_ids of 1 to 2 .*not 0; 0 is the background"),
        (ones(4, 6, 1), [3], "class_ids of 1 to 2 .*not 3; .*the ids of the source"),
        (ones(4, 6, 1), [-3], "class_ids of 1 to 2 .*not -3"),
    ],
)
def test_check_mask_names_the_image_and_the_cause(masks, class_ids, message):
    with pytest.raises(ValueError, match=f"^image 5 of balloons: load_mask must return .*{message}"):
        check_mask(masks, class_ids, (4, 6, 3), "image 5 of balloons", num_classes=3)


def test_check_mask_without_the_number_of_classes():
    masks, class_ids = check_mask(ones(4, 6, 1), np.array([90.0]), (4, 6), "x")
    assert class_ids.tolist() == [90]
    with pytest.raises(ValueError, match="class_ids of 1 or more"):
        check_mask(masks, [0], (4, 6), "x")


############################################################
#  Boxes against masks
############################################################


def test_boxes_that_fit_stay():
    bounds = np.array([[10, 10, 20, 20], [10, 10, 11, 40], [0, 0, 0, 0]], np.float32)
    boxes = np.array([[10, 10, 20, 15.5], [10.25, 10, 10.5, 40], [3, 3, 9, 9]], np.float32)
    fitting, count = fit_boxes(boxes, bounds)
    assert fitting.tolist() == boxes.tolist()
    assert count == 0
    assert fit_boxes(boxes[:0], bounds[:0])[0].shape == (0, 4)


def test_boxes_that_do_not_fit_are_those_of_the_masks():
    bounds = np.array([[10, 30, 20, 55], [10, 10, 20, 20], [5, 5, 9, 9]], np.float32)
    boxes = np.array([[30, 10, 55, 20], [10, 10, 20, 14.5], [0, 0, 0, 0]], np.float32)
    fitting, count = fit_boxes(boxes, bounds)
    assert fitting.tolist() == bounds.tolist()
    assert count == 3

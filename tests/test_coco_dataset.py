"""CocoDataset: what it reads, against pycocotools; what it does with bad files; how it explains wrong layouts."""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import native
import utils
from benchmarks import synthetic_coco
from data.dataset import Dataset, check_instances
from data.formats.coco import CocoDataset
from evaluation.metrics import RankedEvaluation, as_coco
from evaluation.results import ground_truth

DATA = native.ROOT.parent / "shared" / "data"
REAL = [
    ("coco_real", "instances_train2017", "train2017"),
    ("coco_real", "instances_val2017", "val2017"),
    ("coco_real_lite", "instances_train2017", "train2017"),
    ("coco_real_lite", "instances_val2017", "val2017"),
    ("coco_person_small", "instances_train", "train"),
    ("coco_person_small", "instances_val", "val"),
    ("nuclei", "instances_train", "train"),
    ("nuclei", "instances_val", "val"),
]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # coco_mask.decode
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}")

SQUARE = [10.0, 10, 20, 10, 20, 20, 10, 20]  # 100 pixels
TRIANGLE = [0.5, 0.25, 30.75, 3.5, 4.1, 28.9]
HEIGHT, WIDTH = 40, 60


def image(image_id, name=None, height=HEIGHT, width=WIDTH) -> dict:
    return {"id": image_id, "file_name": name or f"{image_id}.jpg", "height": height, "width": width, "license": 1}


def annotation(annotation_id, image_id=1, category_id=3, **changes) -> dict:
    entry = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "bbox": [10, 10, 10, 10],
        "area": 100.0,
        "segmentation": [SQUARE],
    }
    entry |= changes
    return {key: value for key, value in entry.items() if value is not ...}


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def contents(annotations=None, images=None, categories=None) -> dict:
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [annotation(5)] if annotations is None else annotations,
        "categories": CATEGORIES if categories is None else categories,
    }


@pytest.fixture
def load(tmp_path):
    """Writes a file and empty images 0.jpg to 9.jpg, and loads it."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"{number}.jpg").touch()

    def run(data, kind=CocoDataset, **options):
        path = tmp_path / "data" / "own.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        dataset = kind()
        index = dataset.load_annotations(path, folder, **options)
        dataset.prepare()
        return (dataset, index) if options.get("return_coco") else dataset

    return run


def ids_of(dataset) -> list[int]:
    return [info["id"] for info in dataset.image_info]


def uncompressed(mask) -> dict:
    """RLE with a list of counts."""
    flat = np.asarray(mask, bool).flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()}


def some_mask(seed=0, height=HEIGHT, width=WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) > 0.6


COUNTS = uncompressed(some_mask())


############################################################
#  What is read
############################################################


@needs_data
@pytest.mark.parametrize(("name", "file", "folder"), REAL)
def test_everything_real_is_as_pycocotools_has_it(name, file, folder, capsys):
    path = DATA / name / "annotations" / f"{file}.json"
    dataset, reference = CocoDataset(), COCO(path)
    dataset.load_annotations(path, DATA / name / folder)
    dataset.prepare()
    assert dataset.skipped == {}
    assert ids_of(dataset) == sorted(reference.imgs)
    assert dataset.num_annotations == len(reference.anns)
    for image_id in dataset.image_ids:
        info = dataset.image_info[image_id]
        theirs = reference.imgToAnns[info["id"]]
        ours = dataset.annotations(image_id)
        assert [{**one, "segmentation": 0} for one in ours] == [
            {key: 0 if key == "segmentation" else one[key] for key in ours[0]} for one in theirs
        ]
        rles = [reference.annToRLE(one) for one in theirs]
        for one, rle in zip(ours, rles, strict=True):
            assert one["segmentation"] == utils.rle_to_json(rle)
        class_ids, masks, boxes = dataset.load_instances(image_id)
        assert [utils.rle_to_json(mask) for mask in masks] == [one["segmentation"] for one in ours]
        assert class_ids.dtype == np.int32
        assert [dataset.category_ids[abs(one)] for one in class_ids] == [one["category_id"] for one in theirs]
        assert (class_ids < 0).tolist() == [one["iscrowd"] == 1 for one in theirs]
        x, y, w, h = np.array([one["bbox"] for one in theirs]).reshape(-1, 4).T
        inside = np.stack([y, x, y + h, x + w], axis=1).clip(0, [info["height"], info["width"]] * 2)
        np.testing.assert_array_equal(boxes, inside.astype(np.float32))
        check_instances(dataset.load_instances(image_id), (info["height"], info["width"]), "", dataset.num_classes)


@needs_data
def test_real_images_and_masks_have_one_size():
    dataset = CocoDataset()
    dataset.load_coco(DATA / "coco_real_lite", "val", 2017)
    dataset.prepare()
    for image_id in dataset.image_ids[:10]:
        pixels = dataset.load_image(image_id)
        masks, class_ids = dataset.load_mask(image_id)
        assert masks.dtype == bool
        assert masks.shape == (*pixels.shape[:2], len(class_ids))
    assert dataset.num_classes == 81
    assert dataset.class_names[1] == "person"
    assert dataset.category_ids[:13] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]


@needs_data
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_evaluation_is_that_of_the_original_file(kind, capsys):
    """The twelve numbers are the same when the ground truth went through CocoDataset."""
    path = DATA / "coco_real" / "annotations" / "instances_val2017.json"
    dataset, original, ours = CocoDataset(), COCO(path), COCO()
    dataset.load_coco(DATA / "coco_real", "val", 2017)
    dataset.prepare()
    annotations = [one for image_id in dataset.image_ids for one in dataset.annotations(image_id)]
    ours.dataset = {**original.dataset, "annotations": annotations}
    ours.createIndex()
    rng, results = np.random.default_rng(0), []
    for one in original.dataset["annotations"]:
        mask = np.roll(original.annToMask(one), rng.integers(-4, 4, 2), (0, 1))
        entry = {"image_id": one["image_id"], "category_id": one["category_id"], "score": float(rng.random())}
        box = (np.array(one["bbox"]) + rng.normal(0, 3, 4).clip(-5, 5)).tolist()
        rle = utils.rle_to_json(coco_mask.encode(np.asfortranarray(mask)))
        results.append({**entry, "bbox": box} if kind == "bbox" else {**entry, "segmentation": rle})
    stats = []
    for truth in (original, ours):
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats.append(evaluation.stats.tolist())
    assert stats[0] == stats[1]
    assert 0.2 < stats[0][0] < 0.9


def test_segmentations_of_every_kind(load):
    """Polygons, several parts, RLE with counts as a list and as text; crowds have negative class ids."""
    mask, other = some_mask(1), some_mask(2)
    rle = coco_mask.encode(np.asfortranarray(other, np.uint8))
    dataset = load(
        contents(
            [
                annotation(11, segmentation=[SQUARE, TRIANGLE], bbox=[1, 0, 30, 29], area=450),
                annotation(
                    12, category_id=7, iscrowd=1, segmentation=uncompressed(mask), bbox=[0, 0, WIDTH, HEIGHT], area=960
                ),
                annotation(13, segmentation=utils.rle_to_json(rle), bbox=[1.5, 2.25, 100, 37.5], area=900.5),
            ]
        )
    )
    masks, class_ids = dataset.load_mask(0)
    assert dataset.class_names == ["BG", "cat", "dog"]  # ascending by category id
    assert dataset.category_ids == [0, 3, 7]
    assert class_ids.tolist() == [1, -2, 1]
    assert class_ids.dtype == np.int32
    parts = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([SQUARE, TRIANGLE], HEIGHT, WIDTH)))
    np.testing.assert_array_equal(masks, np.stack([parts, mask, other], axis=-1).astype(bool))
    _, _, boxes = dataset.load_instances(0)
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[0, 1, 29, 31], [0, 0, HEIGHT, WIDTH], [2.25, 1.5, 39.75, WIDTH]]
    assert [one["bbox"] for one in dataset.annotations(0)] == [
        [1, 0, 30, 29],
        [0, 0, WIDTH, HEIGHT],
        [1.5, 2.25, 100, 37.5],
    ]
    assert dataset.annotations(0)[2] == {
        "id": 13,
        "image_id": 1,
        "category_id": 3,
        "iscrowd": 0,
        "bbox": [1.5, 2.25, 100, 37.5],
        "area": 900.5,
        "segmentation": utils.rle_to_json(rle),
    }
    json.dumps(dataset.annotations(0))


def test_an_image_without_annotations(load):
    dataset = load(contents())
    masks, class_ids = dataset.load_mask(1)
    assert masks.shape == (HEIGHT, WIDTH, 0)
    assert masks.dtype == bool
    assert class_ids.dtype == np.int32
    assert dataset.annotations(1) == []
    check_instances(dataset.load_instances(1), (HEIGHT, WIDTH), "", 3)


@st.composite
def files(draw):
    """Annotations of three images in any order, polygons and RLEs mixed."""
    kinds = draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ABCDX")), max_size=12))
    seeds = draw(st.integers(0, 1000))
    entries = []
    for number, (image_id, kind) in enumerate(kinds):
        rng = np.random.default_rng((seeds, number))
        ring = rng.uniform(-5, 70, 2 * int(rng.integers(3, 9))).round(2).tolist()
        segmentation = {
            "A": [ring],
            "B": [SQUARE, ring, TRIANGLE],
            "C": uncompressed(some_mask(number)),
            "D": utils.rle_to_json(utils.mask_to_rle(some_mask(number))),
            "X": [[1, 2, 3, 4]],  # to be skipped
        }[kind]
        rle = utils.annotation_to_rle(segmentation, HEIGHT, WIDTH)
        y1, x1, y2, x2 = utils.rle_to_bbox(rle)
        box, area = [x1 + 0.25, y1, x2 - x1, y2 - y1 + 0.125], utils.rle_area(rle) * 1.0625
        if area or kind == "X":  # the others have no pixel
            entries.append(annotation(100 - number, image_id, segmentation=segmentation, bbox=box, area=area))
    return entries


@given(files(), st.sampled_from([(), (1,), (3, 2)]))
def test_any_order_and_mixture_is_as_pycocotools_has_it(tmp_path_factory, entries, classes):
    folder = tmp_path_factory.mktemp("any")
    for number in (1, 2, 3):
        (folder / f"{number}.jpg").touch()
    entries = [{**entry, "category_id": 1 + entry["id"] % 3} for entry in entries]
    good = [entry for entry in entries if entry["segmentation"] != [[1, 2, 3, 4]]]
    wanted = [entry for entry in good if not classes or entry["category_id"] in classes]
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    data = contents(entries, [image(number) for number in (2, 3, 1)], categories)
    (folder / "own.json").write_text(json.dumps(data))
    dataset = CocoDataset()
    if (entries and not good) or (classes and not wanted):
        with pytest.raises(ValueError, match=r"none of .* can be used"):
            dataset.load_annotations(folder / "own.json", folder, class_ids=classes or None)
        return
    index = dataset.load_annotations(folder / "own.json", folder, class_ids=classes or None, return_coco=True)
    dataset.prepare()
    assert ids_of(dataset) == sorted({entry["image_id"] for entry in wanted} if classes else {1, 2, 3})
    for image_id in dataset.image_ids:
        theirs = [entry for entry in wanted if entry["image_id"] == ids_of(dataset)[image_id]]
        expected = [
            {**entry, "segmentation": utils.rle_to_json(dataset.annToRLE(entry, HEIGHT, WIDTH))} for entry in theirs
        ]
        assert dataset.annotations(image_id) == expected
        of_index = index.loadAnns(index.getAnnIds(imgIds=ids_of(dataset)[image_id]))
        assert [utils.rle_to_json(index.annToRLE(entry)) for entry in of_index] == [
            entry["segmentation"] for entry in expected
        ]


def test_ann_to_mask_is_that_of_pycocotools(load):
    dataset, index = load(contents([annotation(1, segmentation=[TRIANGLE])]), return_coco=True)
    mask = dataset.annToMask(annotation(1, segmentation=[TRIANGLE]), HEIGHT, WIDTH)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, index.annToMask(index.anns[1]))
    assert dataset.annToRLE(annotation(1, segmentation=uncompressed(mask)), HEIGHT, WIDTH) == index.annToRLE(
        index.anns[1]
    )


def test_coordinates_stay_exact(load):
    """As float32 this triangle would lose pixels on its long edge."""
    ring = [0.1, 0.1, 59.7, 39.3, 0.3, 39.9]
    dataset, index = load(
        contents([annotation(1, segmentation=[ring], bbox=[0.1, 0.1, 59, 39.8], area=1178.91)]), return_coco=True
    )
    assert index.anns[1]["segmentation"] == [ring]
    assert dataset.annotations(0)[0]["area"] == 1178.91


############################################################
#  What is kept
############################################################


def test_empty_images(load):
    """An image with nothing but a crowd has no object to learn from."""
    data = contents(
        [annotation(1, 3), annotation(2, 2, iscrowd=1), annotation(3, 4, segmentation=[[1, 2]])],
        [image(number) for number in (4, 3, 2, 1)],
    )
    assert ids_of(load(data)) == [1, 2, 3, 4]
    assert ids_of(load(data, empty_images=False)) == [3]
    for crowds, reason in (([annotation(2, 2, iscrowd=1)], "all are crowds"), ([], "the file lists none")):
        with pytest.raises(ValueError, match=f"No image has an object to learn from: {reason}"):
            load(contents(crowds, data["images"]), empty_images=False)


def test_class_ids(load):
    data = contents(
        [annotation(1, 3, 7), annotation(2, 2, 3), annotation(3, 3, 3), annotation(4, 1, 7, iscrowd=1)],
        [image(number) for number in (3, 2, 1, 4)],
    )
    dataset, index = load(data, class_ids=[7], return_coco=True)
    assert ids_of(dataset) == [1, 3]  # of a crowd, too, as Matterport
    assert dataset.class_names == ["BG", "dog"]
    assert dataset.category_ids == [0, 7]
    assert [[one["id"] for one in dataset.annotations(image_id)] for image_id in (0, 1)] == [[4], [1]]
    assert sorted(index.anns) == [1, 4]
    assert sorted(index.imgs) == [1, 3]
    assert sorted(index.cats) == [7]
    assert ids_of(load(data, class_ids=[7], empty_images=False)) == [3]
    assert load(data, class_ids=np.array([7, 3])).class_names == ["BG", "cat", "dog"]
    for wrong in ([], [4], ["dog"]):
        with pytest.raises(ValueError, match=r"class_ids must be some of .*3 cat, 7 dog"):
            load(data, class_ids=wrong)


def test_class_map(load):
    data = contents([annotation(1), annotation(2, category_id=7)])
    dataset, index = load(data, class_map={"own.3": "pet", "own.7": "pet"}, return_coco=True)
    assert dataset.class_names == ["BG", "pet"]
    assert dataset.load_mask(0)[1].tolist() == [1, 1]
    assert dataset.category_ids == [0, 3]
    assert [one["category_id"] for one in dataset.annotations(0)] == [3, 3]
    assert index.anns[2]["category_id"] == 7
    with pytest.raises(ValueError, match=r"class_map must name classes that are loaded, as 'own\.3', not 'coco\.3'"):
        load(data, class_map={"coco.3": "pet"})
    with pytest.raises(ValueError, match="missing in class_ids"):
        load(data, class_map={"own.7": "pet"}, class_ids=[3])


def test_categories_that_start_at_0(load):
    """As many tools count them. Class 0 is the background all the same."""
    dataset = load(
        contents([annotation(1, category_id=0)], categories=[{"id": 0, "name": "a"}, {"id": 1, "name": "b"}])
    )
    assert dataset.class_names == ["BG", "a", "b"]
    assert dataset.category_ids == [0, 0, 1]
    assert dataset.load_mask(0)[1].tolist() == [1]
    assert dataset.annotations(0)[0]["category_id"] == 0


def test_several_files_in_one_data_set(load, tmp_path):
    dataset = load(contents())
    path, folder = tmp_path / "data" / "own.json", tmp_path / "data" / "images"
    path.write_text(json.dumps(contents([annotation(5, 0, 7, segmentation=[TRIANGLE])], [image(0)])))
    index = dataset.load_annotations(path, folder, return_coco=True)
    assert (sorted(index.imgs), [one["segmentation"] for one in index.anns.values()]) == ([0], [[TRIANGLE]])
    dataset.add_image("own", 100, None)
    dataset.prepare()
    assert ids_of(dataset) == [1, 2, 0, 100]
    assert [len(dataset.load_instances(image_id).masks) for image_id in range(3)] == [1, 0, 1]
    assert dataset.annotations(2)[0]["category_id"] == 7
    assert dataset.num_annotations == 2
    dataset.image_info.reverse()  # people do such things, and take a slice
    assert dataset.annotations(1)[0]["category_id"] == 7
    with pytest.raises(ValueError, match="has no annotations of COCO"):
        dataset.annotations(0)
    with pytest.raises(ValueError, match="was the same subset loaded twice"):
        dataset.load_annotations(path, folder)
    path.write_text(json.dumps(contents([annotation(8), annotation(9)], [image(1)])))
    dataset.load_annotations(path, folder, source="other")
    dataset.prepare()
    assert [len(dataset.load_instances(image_id).masks) for image_id in (3, 4)] == [1, 2]  # both are image 1
    assert dataset.load_mask(4)[1].tolist() == [3, 3]
    with pytest.raises(ValueError, match="overlap"):
        _ = dataset.category_ids


def test_sources_and_references(load, tmp_path):
    assert load(contents()).image_reference(0) == ""
    assert load(contents(), source="coco").image_reference(1) == "", "COCO calls its images by 12 digits"
    (tmp_path / "data" / "images" / "000000000002.jpg").touch()
    dataset = load(contents(images=[image(1), image(2, "000000000002.jpg")]), source="coco")
    assert dataset.image_reference(1) == "https://cocodataset.org/#explore?id=2"
    info = dataset.image_info[0]
    assert info == {"id": 1, "source": "coco", "path": info["path"], "width": WIDTH, "height": HEIGHT}
    assert Path(info["path"]).name == "1.jpg"
    assert dataset.map_source_class_id("coco.7") == 2


def test_arrays_not_objects(load):
    """A file of a million annotations must not become a million dicts."""
    dataset = load(contents([annotation(number, segmentation=[SQUARE] * 20) for number in range(1, 200)]))
    table = dataset._files[0].annotations
    assert all(isinstance(value, np.ndarray | bytes) for value in vars(table).values())
    assert sum(getattr(value, "nbytes", len(value)) for value in vars(table).values()) < 200 * (20 * (64 + 16) + 200)


def test_what_was_not_chosen_takes_no_memory(load):
    kinds = [{"segmentation": [SQUARE, TRIANGLE] * 9}, {"segmentation": COUNTS}]
    data = contents([annotation(2 * number + i + 1, category_id=7, **kinds[i]) for number in range(20) for i in (0, 1)])
    data["annotations"][20:20] = [annotation(100, segmentation=[TRIANGLE]), annotation(101, segmentation=COUNTS)]
    dataset, index = load(data, class_ids=[3], return_coco=True)
    table = dataset._files[0].annotations
    assert table.coordinates.tolist() == TRIANGLE
    assert table.rings.tolist() == [[0, 6]]
    assert index.anns[100]["segmentation"] == [TRIANGLE]
    assert table.codes == utils.annotation_to_rle(COUNTS, HEIGHT, WIDTH)["counts"]
    assert dataset.annotations(0)[1]["segmentation"]["counts"].encode() == table.codes


############################################################
#  Images
############################################################


def turned_photo(path, orientation) -> None:
    """A JPEG stored with 20 rows and 30 columns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20)])
def test_images_are_turned_as_their_annotations_are(load, height, width):
    dataset = load(contents(images=[image(1, height=height, width=width)]))
    turned_photo(dataset.image_info[0]["path"], 6)
    pixels = dataset.load_image(0)
    assert pixels.shape == (height, width, 3)
    expected = utils.read_image(dataset.image_info[0]["path"], upright=height == 30)
    np.testing.assert_array_equal(pixels, expected)


def test_an_image_that_fits_either_way_is_upright(load):
    dataset = load(contents(images=[image(1, height=20, width=30)]))
    turned_photo(dataset.image_info[0]["path"], 3)
    assert dataset.load_image(0)[0, 0, 0] < 50  # white is at the left as stored
    assert dataset.load_image(0)[0, -1, 0] > 200


def test_an_image_of_another_size(load):
    dataset = load(contents(images=[image(1, height=21, width=30)]))
    turned_photo(dataset.image_info[0]["path"], 1)
    with pytest.raises(ValueError, match=r"1\.jpg has 20 x 30 pixels.* 21 x 30 \(height x width\); was it resized"):
        dataset.load_image(0)


############################################################
#  Bad annotations
############################################################

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_id": 99}, "annotations of images that are not in the file"),
        ({"image_id": "x1"}, "image_id is a text, such as 'x1', and no image has this id"),
        ({"image_id": ...}, "annotations without an image_id"),
        (
            {"category_id": "horse"},
            "unknown categories: category_id is a text, such as 'horse', and no category has this id",
        ),
        ({"category_id": 4}, "unknown categories"),
        ({"category_id": None}, "unknown categories"),
        ({"category_id": ...}, "unknown categories"),
        ({"iscrowd": 2}, "iscrowd other than 0 and 1"),
        ({"iscrowd": "some"}, "iscrowd other than 0 and 1"),
        ({"segmentation": ...}, "without a segmentation"),
        ({"segmentation": "abc"}, "without a segmentation"),
        ({"segmentation": []}, "without any good polygon"),
        ({"segmentation": [[1, 2, 3, 4]]}, "without any good polygon"),
        ({"segmentation": SQUARE[:4]}, "without any good polygon"),
        ({"segmentation": {}}, "damaged RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": COUNTS["counts"][:-1]}}, "damaged RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}, "damaged RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "a\u20ac"}}, "damaged RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzz"}}, "damaged RLE"),
        ({"segmentation": {"size": HEIGHT, "counts": []}}, "damaged RLE"),
        ({"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}, "damaged RLE"),
        ({"segmentation": {**COUNTS, "size": [WIDTH, HEIGHT]}}, "another size"),
        ({"segmentation": uncompressed(some_mask(0, HEIGHT, WIDTH + 1))}, "another size"),
        ({"segmentation": uncompressed(some_mask(0, HEIGHT + 1, WIDTH))}, "another size"),
        ({"segmentation": [[100, 100, 110, 100, 110, 110]]}, "mask outside of the image"),
        ({"bbox": None, "segmentation": [[-9, 1, -1, 1, -1, 9]]}, "mask outside of the image"),
    ],
)
def test_annotations_that_are_skipped(load, caplog, changes, problem):
    bad = annotation(6, **changes)
    dataset = load(contents([annotation(5), bad, annotation(7)]))
    assert [one["id"] for one in dataset.annotations(0)] == [5, 7]
    (key,) = [key for key in dataset.skipped if problem in key]
    assert key.endswith("(skipped)")
    assert dataset.skipped[key] == (["#1"] if changes == {"image_id": ...} else [6])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"1 {key}: " in warnings[0]
    assert "own.json" in warnings[0]
    with pytest.raises(ValueError, match=rf"none of .* can be used(.|\n)*{problem}|without any segmentation"):
        load(contents([bad]))


@pytest.mark.parametrize(
    ("ring", "problem"),
    [
        ([1, 2, 3, 4], "fewer than 3 points"),
        ([*SQUARE, 1], "odd number"),
        ([*SQUARE, 1, NAN], "not finite"),
        ([*SQUARE, INF, 1], "not finite"),
        ([NAN, *SQUARE, 1], "not finite"),
        ([*SQUARE, 1, 1e7], "absurd"),
        ([*SQUARE, "one", 2], "no flat list"),
        ([*SQUARE, 10**400, 2], "not finite"),
        ([[1, 2], [3, 4]], "no flat list"),
        ([], "no flat list"),
        (5, "no flat list"),
    ],
)
def test_polygons_that_are_left_out(load, ring, problem):
    """What is good of the annotation stays, and so do its neighbours."""
    data = contents(
        [
            annotation(4, segmentation=[TRIANGLE], bbox=[1, 0, 30, 29], area=360),
            annotation(5, segmentation=[SQUARE, ring, TRIANGLE], bbox=[1, 0, 30, 29], area=450),
            annotation(6),
        ]
    )
    dataset, index = load(data, return_coco=True)
    assert [index.anns[number]["segmentation"] for number in (4, 5, 6)] == [[TRIANGLE], [SQUARE, TRIANGLE], [SQUARE]]
    assert [(problem in key, what) for key, what in dataset.skipped.items()] == [(True, [5])]
    expected = coco_mask.merge(coco_mask.frPyObjects([SQUARE, TRIANGLE], HEIGHT, WIDTH))
    assert dataset.load_instances(0).masks[1] == expected


@pytest.mark.parametrize(
    "box",
    [None, ..., [], [1, 2, 3], [10, 10, 10, 10, 1], [NAN, 1, 2, 3], [1, 2, -3, 4], [1, 2, 3, "four"], [1, 2, INF, 3],
     [1e308, 2, 1e308, 3], [10**400, 2, 3, 4], "1234", {"x": 1}],
)  # fmt: skip
def test_boxes_that_are_none_are_made_from_the_mask(load, box):
    dataset = load(contents([annotation(4), annotation(5, bbox=box), annotation(6)]))
    assert [one["bbox"] for one in dataset.annotations(0)] == [[10, 10, 10, 10]] * 3
    assert dataset.skipped == {"annotations without a usable bbox (made from the mask)": [5]}


@pytest.mark.parametrize("area", [None, ..., NAN, INF, -1, "much", [1], True])
def test_areas_that_are_none_are_made_from_the_mask(load, area):
    dataset = load(contents([annotation(5, area=area), annotation(6, area=70)]))
    assert [one["area"] for one in dataset.annotations(0)] == [100, 70]
    assert dataset.skipped == {"annotations without a usable area (made from the mask)": [5]}


def test_boxes_that_reach_out_are_kept_and_counted(load):
    boxes = [[-1, 0, 61, 40], [-1.5, 0, 60, 40], [0, 0, WIDTH + 1, HEIGHT], [0, 0, 50, HEIGHT + 1.5]]
    mask = [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]]
    entries = [annotation(i, bbox=box, area=2400, segmentation=mask) for i, box in enumerate(boxes, 1)]
    dataset = load(contents(entries))
    assert [one["bbox"] for one in dataset.annotations(0)] == boxes
    assert dataset.load_instances(0).boxes[:2].tolist() == [[0, 0, 40, 60], [0, 0, 40, 58.5]]
    assert list(dataset.skipped.values()) == [[2, 4]]
    assert "more than a pixel" in next(iter(dataset.skipped))


def test_missing_and_boolean_crowds(load):
    dataset = load(contents([annotation(1, iscrowd=...), annotation(2, iscrowd=None), annotation(3, iscrowd=True)]))
    assert dataset.load_mask(0)[1].tolist() == [1, 1, -1]
    assert dataset.skipped == {}


def test_annotations_that_are_repeated(load):
    """Exact repeats go; others of the same id get a new one, or pycocotools would take the last for all."""
    data = contents(
        [annotation(5), annotation(5), annotation(5, area=93), annotation(5, 2), annotation(0), annotation(None)]
    )
    dataset = load(data)
    assert [one["id"] for one in dataset.annotations(0)] == [5, 6, 8, 9]
    assert [one["area"] for one in dataset.annotations(0)] == [100, 93, 100, 100]
    assert [one["id"] for one in dataset.annotations(1)] == [7]
    assert {key.split(" (")[0]: what for key, what in dataset.skipped.items()} == {
        "annotations that are listed twice": [5],
        "annotation ids that several annotations have": [5, 5],
        "annotations without an id": ["#5"],
        "annotations of id 0, which pycocotools takes for none": [0],
    }


def test_numbers_as_other_tools_write_them(load):
    """12.0 is 12, and int64 is exact; what is beyond it is a text."""
    data = contents([annotation(5.0, 2.0, 7.0, area=94, bbox=[10, 10, 9, 9]), annotation(2**60), annotation(10**30)])
    data["images"][1] = image(2.0, "2.jpg", height=40.0, width=60.0)
    dataset = load(data)
    assert dataset.annotations(1)[0]["category_id"] == 7
    assert dataset.annotations(1)[0]["bbox"] == [10, 10, 9, 9]
    assert dataset.load_mask(1)[0].shape == (40, 60, 1)
    assert [one["id"] for one in dataset.annotations(0)] == [2**60, 2**60 + 1]
    assert list(dataset.skipped.values()) == [[str(10**30)]]
    json.dumps(dataset.annotations(1))


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": [TRIANGLE]},
        {"segmentation": COUNTS},
        {"bbox": [11, 10, 10, 10]},
        {"iscrowd": 1},
        {"category_id": 7},
        {"area": 90},
        {"image_id": 2},
    ],
)
def test_what_makes_annotations_differ(load, change):
    dataset = load(contents([annotation(5), annotation(5, **change)]))
    assert sorted(one["id"] for image_id in (0, 1) for one in dataset.annotations(image_id)) == [5, 6]
    dataset = load(contents([annotation(5, **change), annotation(5, **change)]))
    assert [one["id"] for image_id in (0, 1) for one in dataset.annotations(image_id)] == [5]


def test_masks_that_differ_only_in_their_rle(load):
    rles = [uncompressed(some_mask(seed)) for seed in (1, 2, 1)]
    dataset = load(contents([annotation(5, segmentation=rle) for rle in rles]))
    assert [one["id"] for one in dataset.annotations(0)] == [5, 6]


############################################################
#  Bad images and categories
############################################################


@pytest.mark.parametrize(
    ("entry", "problem", "what"),
    [
        (image(3, "missing.jpg"), "images without a file", "missing.jpg"),
        (image(3, "no/such/folder.jpg"), "images without a file", "no/such/folder.jpg"),
        (image(3, "nul\0.jpg"), "images without a file", "nul\0.jpg"),
        (image(3, "nul\0/a.jpg"), "images without a file", "nul\0/a.jpg"),
        (image(3, "\ud800/a.jpg"), "images without a file", "\ud800/a.jpg"),
        (image(3, "folder"), "images without a file", "folder"),
        (image(3, "../secret.jpg"), "leads out of the data folder", "../secret.jpg"),
        (image(3, "a/../../secret.jpg"), "leads out of the data folder", "a/../../secret.jpg"),
        (image(3, "..\\secret.jpg"), "leads out of the data folder", "..\\secret.jpg"),
        (image(3, "a\\..\\..\\secret.jpg"), "leads out of the data folder", "a\\..\\..\\secret.jpg"),
        (image(3, "/etc/passwd"), "leads out of the data folder", "/etc/passwd"),
        (image(3, "\\windows\\x.jpg"), "leads out of the data folder", "\\windows\\x.jpg"),
        (image(3, "c:x.jpg"), "leads out of the data folder", "c:x.jpg"),
        (image(3, "C:\\x.jpg"), "leads out of the data folder", "C:\\x.jpg"),
        (image(3, "//server/share/x.jpg"), "leads out of the data folder", "//server/share/x.jpg"),
        (image(3, width=0), "height and width", "3.jpg"),
        (image(3, height=-4), "height and width", "3.jpg"),
        (image(3, height=None), "height and width", "3.jpg"),
        (image(3, width="wide"), "height and width", "3.jpg"),
        (image(3, width=10**6, height=10**6), "height and width", "3.jpg"),
        ({"id": 3, "file_name": "3.jpg"}, "height and width", "3.jpg"),
        ({"id": 3, "height": HEIGHT, "width": WIDTH}, "without a file_name", 3),
        ({**image(3), "file_name": 3}, "without a file_name", 3),
        ({**image(3), "file_name": ""}, "without a file_name", 3),
        (image("", "3.jpg"), "without an id", "3.jpg"),
        (image(3.5, "3.jpg"), "without an id", "3.jpg"),
        (image(None, "3.jpg"), "without an id", "3.jpg"),
        (3, "without an id", "#1"),
    ],
)  # fmt: skip
def test_images_that_are_skipped(load, tmp_path, caplog, entry, problem, what):
    (tmp_path / "data" / "secret.jpg").touch()
    (tmp_path / "data" / "images" / "folder").mkdir()
    dataset = load(contents([annotation(5), annotation(6, 3)], [image(1), entry]))
    assert ids_of(dataset) == [1]
    (key,) = [key for key in dataset.skipped if problem in key]
    assert dataset.skipped[key] == [what]
    assert len(dataset.skipped) == 1 + ("without an id" in problem)  # then its annotation is nobody's
    assert f"1 {key}: {what!r}" in caplog.text
    assert "secret" not in {Path(info["path"]).stem for info in dataset.image_info}


def test_images_in_sub_folders(load, tmp_path):
    inner, real = tmp_path / "data" / "images" / "a" / "b", tmp_path / "elsewhere"
    inner.mkdir(parents=True)
    real.mkdir()
    (inner / "x.jpg").touch()
    (real / "y.jpg").touch()
    (tmp_path / "data" / "images" / "link").symlink_to(real)
    images = [image(1, "a/b/x.jpg"), image(2, "a\\b\\x.jpg"), image(3, "./a/b/x.jpg"), image(4, "link/y.jpg")]
    dataset = load(contents(images=images))
    assert dataset.skipped == {}
    assert [Path(info["path"]).is_file() for info in dataset.image_info] == [True] * 4
    _, index = load(contents(images=images), return_coco=True)
    assert index.imgs[2]["file_name"] == "a/b/x.jpg"


class Lvis(CocoDataset):
    """A reader of files as LVIS has them."""

    IMAGE_FACTS = ("coco_url", "neg_category_ids")

    def file_name(self, entry) -> str | None:
        return entry["coco_url"].rsplit("/", 1)[-1] if "coco_url" in entry else super().file_name(entry)


def lvis_image(image_id, **facts) -> dict:
    url = f"http://images.cocodataset.org/train2017/{image_id}.jpg"
    return {"id": image_id, "coco_url": url, "height": HEIGHT, "width": WIDTH, "license": 1, **facts}


def test_a_subclass_says_where_images_are(load):
    misleading = lvis_image(3, file_name="missing.jpg")
    images = [lvis_image(2), misleading, image(4), {"coco_url": "x/7.jpg", "width": 5}, lvis_image(11)]
    dataset, index = load(contents([annotation(5, 3)], images), Lvis, return_coco=True)
    assert [Path(info["path"]).name for info in dataset.image_info] == ["2.jpg", "3.jpg", "4.jpg"]
    assert [entry["file_name"] for entry in index.imgs.values()] == ["2.jpg", "3.jpg", "4.jpg"]
    assert list(dataset.skipped.values()) == [["7.jpg"], ["11.jpg"]]
    assert Path(load(contents([], images=[lvis_image(2)])).image_info[0]["path"]).name == "2.jpg", "by its coco_url"


def test_a_subclass_hands_facts_of_images_to_evaluation(load):
    images = [lvis_image(3, file_name="3.jpg", neg_category_ids=[2, 9]), lvis_image(2, neg_category_ids=[]), image(4)]
    data = contents([annotation(5, 3)], images)
    dataset = load(data, Lvis)
    urls = [lvis_image(number)["coco_url"] for number in (2, 3)]
    expected = [{"coco_url": urls[0], "neg_category_ids": []}, {"coco_url": urls[1], "neg_category_ids": [2, 9]}, {}]
    assert [dataset.image_facts(image_id) for image_id in range(3)] == expected
    sizes = [{"id": number, "height": HEIGHT, "width": WIDTH} for number in (2, 3, 4)]
    assert ground_truth(dataset)["images"] == [facts | size for facts, size in zip(expected, sizes, strict=True)]
    ranked = RankedEvaluation(as_coco(ground_truth(dataset)), [], "segm", 100)
    assert ranked.cocoGt.imgs[3]["neg_category_ids"] == [2, 9]
    assert load(contents([annotation(5, 4)], [image(4)])).image_facts(0) == Dataset().image_facts(0) == {}


def test_one_listing_a_folder(load, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(Path, "exists", None)
    load(contents(images=[image(number) for number in range(10)]))
    assert len(listed) == 1


def test_images_that_are_repeated(load):
    dataset = load(contents(images=[image(1), image(2), image(1)]))
    assert ids_of(dataset) == [1, 2]
    assert list(dataset.skipped.values()) == [[1]]
    assert "listed twice" in next(iter(dataset.skipped))
    with pytest.raises(ValueError, match=r"image id 1 is .*'1\.jpg'.* and .*'2\.jpg'.*joined without new ids"):
        load(contents(images=[image(1), image(1, "2.jpg")]))


def test_images_may_have_an_image_id(load):
    assert ids_of(load(contents(images=[{**image(1), "image_id": 1}]))) == [1]


def test_categories_that_are_repeated(load):
    dataset = load(contents(categories=[*CATEGORIES, CATEGORIES[1], {"id": 9, "name": "cat"}]))
    assert dataset.class_names == ["BG", "cat", "dog", "cat"]
    assert {key.split(" (")[0]: what for key, what in dataset.skipped.items()} == {
        "categories that are listed twice": [3],
        "categories with the name of another": [9],
    }
    with pytest.raises(ValueError, match="category id 3 is 'cat' and 'mouse'"):
        load(contents(categories=[*CATEGORIES, {"id": 3, "name": "mouse"}]))


@pytest.mark.parametrize("entry", [{"id": 1.5, "name": "a"}, {"id": -1, "name": "a"}, {"name": "a"}, {"id": 1}, 5,
                                   {"id": 1, "name": ""}, {"id": 1, "name": " "},
                                   {"id": 1, "name": None}, {"id": 1, "name": True}])  # fmt: skip
def test_categories_that_are_none(load, entry):
    with pytest.raises(ValueError, match="category number 2 must have an id"):
        load(contents(categories=[*CATEGORIES, entry]))


def test_a_name_that_is_a_number(load):
    """Classes of digits are called so."""
    dataset = load(contents(categories=[*CATEGORIES, {"id": 30, "name": 5}]))
    assert dataset.class_names[-1] == "5"


def test_what_was_skipped_adds_up(load, tmp_path, caplog):
    dataset = load(contents([annotation(number, 99) for number in range(1, 9)] + [annotation(9)]))
    assert "8 annotations of images that are not in the file (skipped): 1, 2, 3, and 5 more" in caplog.text
    path = tmp_path / "data" / "own.json"
    path.write_text(json.dumps(contents([annotation(20, 98), annotation(21, 4)], [image(4)])))
    dataset.load_annotations(path, tmp_path / "data" / "images")
    assert list(dataset.skipped.values()) == [[*range(1, 9), 20]]


############################################################
#  Files that are something else
############################################################

GOOD = json.dumps(contents())


@pytest.mark.parametrize("length", range(1, len(GOOD)))
def test_a_file_that_is_cut_off(load, length):
    with pytest.raises(ValueError, match=r"own\.json is cut off, at line 1, column \d+ .*Export or copy it again"):
        load(GOOD[:length])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"own\.json is empty"),
        ("<html></html>", "is HTML or XML, and not JSON: is it a web page"),
        ("abc", "is not JSON"),
        (GOOD + "x" * 20, "is not JSON"),
        (GOOD.replace(":", ";", 1), "is not JSON"),
        ("[" * 100_000, "cannot be read as JSON: its brackets are nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "cannot be read as JSON: it has a number of thousands of digits"),
        ("5", "holds one int"),
        ("[]", "is a list. It must be a file of COCO instances"),
        (json.dumps([{**annotation(1), "score": 0.5}]), "list of results"),
        ("{}", "has no list 'images'; its keys are none"),
        (json.dumps({**contents(), "images": None}), "has no list 'images'; its keys are 'images', 'annotations'"),
        (json.dumps({"images": [image(1)], "annotations": []}), "has no list 'categories'"),
        (json.dumps({"images": [image(1)], "categories": []}), "labels are not published"),
        (json.dumps(contents([{"id": 1, "image_id": 1, "caption": "a dog"}, {"image_id": 1}])), "has captions"),
        (json.dumps(contents([annotation(1, segmentation=..., keypoints=[1, 2, 2])])), "keypoints without any segm"),
        (json.dumps(contents([annotation(1, segmentation=...)])), "boxes without any segmentation"),
        (json.dumps(contents([{"image_id": 1}])), "annotations without any segmentation"),
        (json.dumps(contents([{"image_id": 1, "file_name": "1.png", "segments_info": []}])), "panoptic"),
        (json.dumps({"version": "5", "shapes": [], "imagePath": "1.jpg"}), "labelme"),
        (json.dumps({"1.jpg": {"regions": {}}}), "VGG Image Annotator"),
        (json.dumps(contents(images=[])), "none of 0 images and 1 annotations can be used"),
    ],
)
def test_files_that_are_something_else(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_files_in_other_encodings(load, tmp_path):
    path = tmp_path / "data" / "own.json"
    dataset = load(contents(categories=[*CATEGORIES, {"id": 8, "name": "B\u00e4r"}]))
    text = path.read_text()
    named = json.dumps(json.loads(text), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(named.encode(encoding))
        dataset = CocoDataset()
        dataset.load_annotations(path, tmp_path / "data" / "images")
        assert dataset.class_info[-1]["name"] == "B\u00e4r"
    path.write_bytes(b"\x1f\x8b" + bytes(range(200, 250)) * 20)
    with pytest.raises(ValueError, match="is no text; is it packed"):
        dataset.load_annotations(path, tmp_path)
    path.write_bytes(named.encode("cp1252"))
    with pytest.raises(ValueError, match=r"own\.json is not in UTF-8.*save it as UTF-8 \(at byte"):
        dataset.load_annotations(path, tmp_path)
    path.write_bytes(named.encode()[: named.encode().index("\u00e4".encode()) + 1])
    with pytest.raises(ValueError, match="is cut off"):
        dataset.load_annotations(path, tmp_path)


def test_no_annotations_at_all(load):
    """A file of images without any object is a data set to evaluate on."""
    dataset = load(contents([]))
    assert ids_of(dataset) == [1, 2]
    with pytest.raises(ValueError, match=r"can be used.\n    No image has an object"):
        load(contents([]), empty_images=False)


def test_a_failed_load_leaves_nothing_behind(load, tmp_path):
    dataset = CocoDataset()
    path = tmp_path / "data" / "own.json"
    path.write_text(json.dumps(contents([annotation(1, 77)])))
    with pytest.raises(ValueError, match=r"none of .* can be used"):
        dataset.load_annotations(path, tmp_path / "data" / "images")
    assert dataset.image_info == []
    assert len(dataset.class_info) == 1
    assert dataset.skipped == {}


############################################################
#  Layouts
############################################################


@pytest.fixture
def layout(tmp_path):
    """Makes COCO's folder: layout(JSON, "val2017/000000000001.jpg") with these files."""
    root = tmp_path / "coco"
    root.mkdir()

    def make(*names):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                images = [image(number, f"{number:012}.jpg") for number in (1, 2)]
                path.write_text(json.dumps(contents(images=images)))
            else:
                path.touch()
        return root

    return make


def load_coco(root, subset="val", year=2017, **options) -> CocoDataset:
    dataset = CocoDataset()
    dataset.load_coco(root, subset, year, **options)
    dataset.prepare()
    return dataset


def everything(*years) -> list[str]:
    return [
        name
        for year in years
        for subset in ("train", "val")
        for name in (
            f"annotations/instances_{subset}{year}.json",
            f"{subset}{year}/000000000001.jpg",
            f"{subset}{year}/000000000002.jpg",
        )
    ]


@pytest.mark.parametrize("year", [2014, 2017, "2014"])
@pytest.mark.parametrize("subset", ["train", "val"])
def test_load_coco(layout, subset, year):
    dataset = load_coco(layout(*everything(2014, 2017)), subset, year)
    assert Path(dataset.image_info[0]["path"]).parent.name == f"{subset}{year}"
    assert dataset.image_info[0]["source"] == "coco"


@pytest.mark.parametrize(("years", "chosen"), [([2014, 2017], 2017), ([2014], 2014), ([2017], 2017)])
def test_the_year_that_is_there(layout, years, chosen):
    dataset = load_coco(str(layout(*everything(*years))), "train", None)
    assert Path(dataset.image_info[0]["path"]).parent.name == f"train{chosen}"


def test_load_coco_hands_its_arguments_on(layout):
    dataset = CocoDataset()
    index = dataset.load_coco(
        layout(*everything(2017)), "val", 2017, class_ids=[3], class_map={"coco.3": "pet"}, return_coco=True
    )
    dataset.prepare()
    assert (sorted(index.imgs), dataset.class_names) == ([1], ["BG", "pet"])
    assert ids_of(load_coco(layout(), empty_images=False)) == [1]
    assert ids_of(load_coco(layout())) == [1, 2]


def test_minival(layout, caplog):
    """The images of 2017's val, out of 2014's."""
    root = layout("annotations/instances_val2014.json", "annotations/instances_val2017.json",
                  *(f"val2014/COCO_val2014_{number}.jpg" for number in range(5)))  # fmt: skip
    images = [image(number, f"COCO_val2014_{number}.jpg") for number in (3, 1, 0, 4, 2)]
    annotations = [annotation(number + 1, number) for number in range(5)]
    (root / "annotations/instances_val2014.json").write_text(json.dumps(contents(annotations, images)))
    (root / "annotations/instances_val2017.json").write_text(json.dumps(contents([], [image(3), image(1)])))
    minival, rest = load_coco(root, "minival", 2014), load_coco(root, "valminusminival", None)
    assert ids_of(minival) == [1, 3]
    assert ids_of(rest) == [0, 2, 4]
    assert [one["id"] for one in minival.annotations(1)] == [4]
    assert (minival.num_annotations, rest.num_annotations) == (2, 3)
    assert "has 2 images instead of 5000" in caplog.text
    both = CocoDataset()
    both.load_coco(root, "minival", 2014)
    both.load_coco(root, "valminusminival", 2014)
    both.prepare()
    assert [[one["id"] for one in both.annotations(number)] for number in range(5)] == [[2], [4], [1], [3], [5]]
    (root / "annotations/instances_minival2014.json").write_text(json.dumps(contents([], images[:1])))
    assert ids_of(load_coco(root, "minival", 2014)) == [3]  # a file of its own comes first
    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"valminusminival needs instances_valminusminival2014\.json, or else"):
        load_coco(root, "valminusminival", 2014)


def test_wrong_subsets_and_years(layout):
    root = layout(*everything(2017))
    with pytest.raises(ValueError, match="subset must be one of train, val, minival, valminusminival, not 'test'"):
        load_coco(root, "test")
    with pytest.raises(ValueError, match="must be 2014 or 2017, not 2015"):
        load_coco(root, "val", 2015)
    with pytest.raises(ValueError, match="minival is 2017's val: use subset='val'"):
        load_coco(root, "minival", 2017)


HOW = r"(.|\n)*To get COCO: python coco\.py train --dataset .* --download\n.*zips/val2017\.zip \(0\.8 GB\)"


@pytest.mark.parametrize(
    ("files", "below", "message"),
    [
        ([], "nowhere", "nowhere: there is no such folder"),
        ([], "", r"There is no .*annotations/instances_val2017\.json"),
        (["instances_val2017.json"], "", "one folder too high. A link makes it known: mkdir .*/annotations && ln -s"),
        (["annotations/annotations/instances_val2017.json"], "", "one folder too deep"),
        (everything(2017), "annotations", r"coco has annotations/instances_val2017\.json: give this folder"),
        (everything(2017), "val2017", r"coco has annotations/instances_val2017\.json: give this folder"),
        ([f"coco2017/{name}" for name in everything(2017)], "", r"coco2017 has annotations/.*: give this folder"),
        (["annotations_trainval2017.zip"], "", "is not unpacked: unzip -n .*/annotations_trainval2017.zip -d .*/coco"),
        (["annotations/annotations_trainval2017.zip"], "", "is not unpacked"),
        (["annotations/captions_val2017.json"], "", r"annotations has captions_val2017\.json\.\n"),
        (everything(2014), "", r"\nsubset='train', year=2014 or subset='val', year=2014 can be loaded"),
        (["annotations/instances_train2017.json"], "", r"\nsubset='train', year=2017 can be loaded"),
    ],
)
def test_missing_annotation_files(layout, files, below, message):
    with pytest.raises(FileNotFoundError, match=message) as error:
        load_coco(layout(*files) / below)
    assert error.match(HOW)


def test_a_folder_that_is_a_file(layout):
    with pytest.raises(FileNotFoundError, match="it is a file; give the folder"):
        load_coco(layout("x.zip") / "x.zip")


JSON = "annotations/instances_val2017.json"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([JSON], "There is no .*val2017"),
        ([JSON, "val2017/other.jpg"], r"val2017 has none of the images, such as '000000000001\.jpg'"),
        (
            [JSON, "images/val2017/000000000001.jpg"],
            "images/val2017 has it. A link makes it known: ln -s .*/images/val2017 .*/coco/val2017",
        ),
        ([JSON, "images/000000000001.jpg"], "coco/images has it"),
        (
            [JSON, "val2017/COCO_val2014_000000000001.jpg"],
            r"val2017/COCO_val2014_000000000001\.jpg has a name of 2014; is year=2014 meant",
        ),
        ([JSON, "val2014/COCO_val2014_000000000001.jpg"], "has a name of 2014"),
        ([JSON, "val2017.zip"], "val2017.zip is not unpacked: unzip -n .*val2017.zip -d .*/coco"),
        ([JSON, "images/val2017.zip"], "images/val2017.zip is not unpacked"),
        ([JSON, "train2017/9.jpg"], "coco has images of train2017"),
        ([JSON, "train/000000000001.jpg", "val/000000000001.jpg"], r"coco/val has it. [^\n]*\n(?!.*coco/train has it)"),
    ],
)
def test_missing_images(layout, files, message):
    with pytest.raises(FileNotFoundError, match=message) as error:
        load_coco(layout(*files))
    assert error.match(HOW)
    lines = str(error.value).splitlines()
    assert len(set(lines)) == len(lines)
    assert "has images of val2017" not in str(error.value)


def test_missing_files_of_own_data(load, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"images has none of the images, such as 'a\.jpg'(.|\n)*image_dir must"
    ) as error:
        load(contents(images=[image(1, "a.jpg")]))
    assert "cocodataset" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"json_path .*none\.json: there is no such file"):
        CocoDataset().load_annotations(tmp_path / "none.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no .*/nowhere"):
        CocoDataset().load_annotations(tmp_path / "data" / "own.json", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"own\.json is a file, and should be the folder of the images"):
        CocoDataset().load_annotations(tmp_path / "data" / "own.json", tmp_path / "data" / "own.json")


############################################################
#  The benchmark's file
############################################################


def test_the_synthetic_file_is_a_good_one(tmp_path, capsys):
    path = tmp_path / "own.json"
    count = synthetic_coco.write_annotations(path, 300, seed=1)
    again = synthetic_coco.write_annotations(tmp_path / "again.json", 300, seed=1)
    other = synthetic_coco.write_annotations(tmp_path / "other.json", 300, seed=2)
    assert count == again
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    assert path.read_bytes() != (tmp_path / "other.json").read_bytes()
    assert other > 1500
    synthetic_coco.write_images(tmp_path / "images", 300)
    dataset, reference = CocoDataset(), COCO(path)
    dataset.load_annotations(path, tmp_path / "images", source="coco")
    dataset.prepare()
    assert [(key.split(" (")[0], what) for key, what in dataset.skipped.items()] == [
        ("annotations with a mask without a pixel", [966])
    ]
    assert dataset.num_annotations == count == len(reference.anns)
    assert 6 * 300 < count < 8.5 * 300
    assert dataset.num_classes == 81
    assert any(one["iscrowd"] for one in reference.anns.values())
    assert any(not dataset.annotations(image_id) for image_id in dataset.image_ids)
    for image_id in dataset.image_ids[:40]:
        theirs = reference.imgToAnns[ids_of(dataset)[image_id]]
        assert [one["segmentation"] for one in dataset.annotations(image_id)] == [
            utils.rle_to_json(reference.annToRLE(one)) for one in theirs
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_loading_is_measured(tmp_path, capsys):
    path = tmp_path / "own.json"
    count = synthetic_coco.write_annotations(path, 50)
    synthetic_coco.write_images(tmp_path, 50)
    measured = synthetic_coco.measure_load(path, tmp_path)
    assert (measured["images"], measured["annotations"]) == (50, count)
    assert measured["seconds"] > 0
    assert measured["peak_mb"] >= measured["after_mb"] > 50
    synthetic_coco.main(["--images", "20", "--seed", "3"])
    assert json.loads(capsys.readouterr().out)["images"] == 20

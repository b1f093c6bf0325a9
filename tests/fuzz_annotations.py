"""Damaged files of annotations: every one is read, or refused in a sentence that names the file."""

import json

import numpy as np
import pytest
from fuzzing import damaged_bytes, damaged_json, fuzz
from PIL import Image

import utils
from data.formats.coco import CocoDataset

HEIGHT, WIDTH = 30, 40


def counted(mask) -> dict:
    """An RLE with a list of counts."""
    flat = np.concatenate([[False], mask.flatten(order="F"), [True]]).astype(int)
    counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0, append=mask.size).tolist()
    return {"size": list(mask.shape), "counts": counts[: len(counts) - (counts[-1] == 0)]}


def good_file() -> dict:
    """Polygons, an RLE of each kind, a crowd; three images."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 8:28] = True
    segmentations = [
        [[5, 5, 20.5, 5, 20.5, 18, 5, 18]],
        [[1, 1, 9, 1, 9, 9], [12.25, 12, 30, 12, 30, 25, 12, 25]],
        utils.rle_to_json(utils.mask_to_rle(mask)),
        counted(mask),
        counted(~mask),
    ]
    annotations = []
    for number, segmentation in enumerate(segmentations, 1):
        rle = utils.annotation_to_rle(segmentation, HEIGHT, WIDTH)
        y1, x1, y2, x2 = utils.rle_to_bbox(rle)
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": utils.rle_area(rle), "iscrowd": int(number == 5)}
        ids = {"id": number, "image_id": 1 + number % 2, "category_id": 1 + number % 2}
        annotations.append({**ids, **box, "segmentation": segmentation, "attributes": {"occluded": False}})
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def use(tmp_path):
    """A function that writes a file and uses all of it."""
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{number}.png")
    path = tmp_path / "labels.json"

    def run(data: bytes) -> CocoDataset:
        path.write_bytes(data)
        dataset = CocoDataset()
        index = dataset.load_annotations(path, tmp_path, return_coco=True)
        dataset.prepare()
        for image_id in dataset.image_ids:
            info = dataset.image_info[image_id]
            size = info["height"], info["width"]
            class_ids, rles, boxes = dataset.load_instances(image_id)
            assert all(rle["size"] == list(size) for rle in rles)
            assert np.isfinite(boxes).all()
            assert (class_ids != 0).all()
            for entry, rle in zip(dataset.annotations(image_id), rles, strict=True):
                json.dumps(entry, allow_nan=False)
                assert utils.rle_area(rle) > 0
                assert entry["area"] > 0
            if np.prod(size) * len(rles) <= 1e8:  # more is a large image, and not a fault
                masks, _ = dataset.load_mask(image_id)
                assert masks.shape == (*size, len(rles))
        assert len(index.anns) == dataset.num_annotations
        objects = dataset.object_boxes()
        assert len(objects.boxes) == dataset.num_annotations
        return dataset

    return run


def test_the_file_is_a_good_one(use):
    dataset = use(json.dumps(good_file()).encode())
    assert dataset.skipped == {}
    assert dataset.num_annotations == 5


def test_damaged_values(use):
    fuzz(lambda rng: use(json.dumps(damaged_json(good_file(), rng)).encode()), 200, "labels.json")


def test_damaged_segmentations(use):
    """Only polygons and run-length codes, with numbers and texts that are nearly right."""

    def case(rng):
        data = good_file()
        for entry in data["annotations"]:
            if rng.random() < 0.6:
                entry["segmentation"] = damaged_json({"segmentation": entry["segmentation"]}, rng).get("segmentation")
            elif isinstance(entry["segmentation"], dict) and isinstance(entry["segmentation"]["counts"], str):
                code = damaged_bytes(entry["segmentation"]["counts"].encode(), rng)
                entry["segmentation"]["counts"] = code.decode("latin-1")
            if rng.random() < 0.2:
                entry["bbox"] = (rng.normal(0, 1, 4) * 10 ** rng.uniform(0, 8)).tolist()
        use(json.dumps(data).encode())

    fuzz(case, 200, "labels.json")


def test_damaged_bytes(use):
    data = json.dumps(good_file()).encode()
    fuzz(lambda rng: use(damaged_bytes(data, rng)), 200, "labels.json")

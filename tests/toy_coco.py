"""A data set like COCO's of eleven images, and coco.py on it with a tiny network."""

import json
from pathlib import Path

import numpy as np
from helpers import TinyConfig, settings_of
from PIL import Image

import coco

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
TINY = {
    **{name: value for name, value in settings_of(TinyConfig).items() if "CLASSES" not in name and "NAME" not in name},
    "STEPS_PER_EPOCH": 2,
    "VALIDATION_STEPS": 1,
    "TRAIN_ROIS_PER_IMAGE": 16,
}
SETTINGS = [f"{name}={value}" for name, value in TINY.items()]


def write_subset(folder: Path, subset: str, count: int, first: int = 1) -> None:
    """Images of two rectangles each, every third without any; a crowd in the second."""
    rng = np.random.default_rng(first)
    (folder / subset).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id in range(first, first + count):
        height, width = (60, 80) if image_id % 2 else (80, 60)
        pixels = rng.integers(0, 50, (height, width, 3), np.uint8)
        for number, category in enumerate((1, 3) if image_id % 3 else ()):
            y, x = rng.integers(0, 30, 2).tolist()
            pixels[y : y + 24, x : x + 20] = 255 if category == 1 else 120
            polygon = [x, y, x + 20, y, x + 20, y + 24, x, y + 24]
            annotations.append(
                {
                    "id": 10 * image_id + number,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, 20, 24],
                    "area": 480,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        name = f"{image_id:012d}.png"
        Image.fromarray(pixels).save(folder / subset / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    contents = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations" / f"instances_{subset}.json").write_text(json.dumps(contents))


def write_coco(folder: Path) -> Path:
    """Make a folder one like COCO's of 2017. Returns: the folder."""
    write_subset(folder, "train2017", 6)
    write_subset(folder, "val2017", 5, first=101)
    return folder


def run(command: str, data: Path, *more: str) -> int:
    arguments = [command, "--dataset", str(data), "--device", "cpu", *more]
    return coco.main(arguments)

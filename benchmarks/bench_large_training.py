"""What a sample of a training costs, if its picture is large: time of one core, and memory.

    python benchmarks/bench_large_training.py [--side PIXELS] [--objects N] [--samples N] [--quick] [--output FILE]

A TIFF of side x side pixels, in tiles of 256, with as many outlines in COCO's format, is made in a folder of its own,
checked as `custom.py check` does, and sampled: crops of 512, quarter turns, flips, scale 0.8 to 1.25. The digest is of
pixels, boxes and masks of all samples: releases that give the same have the same. The last line printed is JSON.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import hashlib
import json
import tempfile
import time
from typing import Any

import numpy as np
import tifffile
import torch

import cli
from benchmarks import machine
from config import SmallConfig
from data.check import check
from data.recognise import open_records
from data.record_dataset import RecordDataset
from data.samples import TrainingData

CROP = 512


def make_set(folder: Path, side: int, objects: int, seed: int = 0) -> None:
    """Writes a picture of squares of 4 x 4 pixels, and outlines of 24 points with radii of 10 to 30 pixels."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(60, 200, (side // 4, side // 4, 3), np.uint8)
    pixels = cells.repeat(4, axis=0).repeat(4, axis=1)
    tifffile.imwrite(folder / "slide.tif", pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    annotations = []
    for number in range(1, objects + 1):
        (x, y), radius = rng.uniform(60, side - 60, 2), rng.uniform(10, 30)
        ring = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1).round(1)
        box = [x - radius, y - radius, 2 * radius, 2 * radius]
        annotations.append(
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [ring.ravel().tolist()],
             "area": float(np.pi * radius**2), "bbox": box}
        )  # fmt: skip
    image = {"id": 1, "file_name": "slide.tif", "height": pixels.shape[0], "width": pixels.shape[1]}
    contents = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "annotations.json").write_text(json.dumps(contents))


def measure(folder: Path, samples: int) -> dict[str, Any]:
    """Seconds of one core and megabytes, of the check and of a sample; the objects of all samples and their digest."""
    start = time.process_time()
    records = open_records(folder)
    check(records)
    dataset, facts = RecordDataset(records), {"check_s": time.process_time() - start}
    config = SmallConfig(
        NUM_CLASSES=2, CLASS_NAMES=("BG", "cell"), IMAGE_RESIZE_MODE="crop", IMAGE_MIN_DIM=CROP, IMAGE_MAX_DIM=CROP,
        SCALE_JITTER=(0.8, 1.25), QUARTER_TURNS=True, HORIZONTAL_FLIP=0.5, VERTICAL_FLIP=0.5, GPU_COUNT=0,
    )  # fmt: skip
    data, digest, objects = TrainingData(dataset, config), hashlib.sha256(), 0
    data.sample(0, samples)  # opens the file
    start = time.process_time()
    for seed in range(samples):
        sample = data.sample(0, seed)
        objects += len(sample.targets.boxes)
        for values in (sample.image, sample.targets.boxes, sample.targets.masks.pixels):
            digest.update(values.numpy().tobytes())
    facts |= {"sample_s": (time.process_time() - start) / samples, "peak_mb": machine.resident_mb(peak=True)}
    return {**facts, "objects": objects, "digest": digest.hexdigest()[:16]}


def main() -> int:
    """Measure, and print the JSON line."""
    parser = machine.make_parser("bench_large_training.py", __doc__, "2,100 pixels a side, 30 objects and 2 samples")
    parser.add_argument("--side", type=cli.whole_number(CROP), default=10_000, metavar="PIXELS", help="default: 10,000")
    parser.add_argument("--objects", type=cli.whole_number(1), default=3000, metavar="N", help="default: 3,000")
    parser.add_argument("--samples", type=cli.whole_number(1), default=20, metavar="N", help="default: 20")
    arguments = parser.parse_args()
    return cli.run("bench_large_training.py", lambda: run(arguments))


def run(arguments: Any) -> int:
    """Measure, print, write. Returns the exit code."""
    torch.set_num_threads(1)
    given = (arguments.side, arguments.objects, arguments.samples)
    side, objects, samples = (2100, 30, 2) if arguments.quick else given
    with tempfile.TemporaryDirectory(prefix="large-training-") as folder:
        make_set(Path(folder), side, objects)
        facts = measure(Path(folder), samples)
    print(f"check {facts['check_s']:.2f} s, a sample {facts['sample_s']:.4f} s, at most {facts['peak_mb']:.0f} MB")
    settings = {"benchmark": "large training", "side": side, "listed": objects, "samples": samples, "threads": 1}
    machine.finish({**settings, **machine.describe(), **facts}, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

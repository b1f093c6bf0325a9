"""Speed of drawing: draw_instances for video, display_instances for a large picture.

    python benchmarks/bench_visualize.py [--quick] [--output FILE]

All on one core. Instances are discs, log-uniform from 3 to 30 % of the image's height across, with captions of class,
score, IoU and mask score. draw_instances gives an array; display_instances goes through matplotlib to the bytes of a
PNG file. Times are medians after warm-up. The last line printed is JSON.
"""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch

import utils
import visualize
from benchmarks import machine
from captions import Caption

NAMES = ("BG", "person", "bicycle", "traffic light")


def scene(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray, list[visualize.Crop], np.ndarray]:
    """Noise, and discs in it: image, boxes [N, 4], masks as crops, class_ids [N]."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    boxes, crops = [], []
    for _ in range(count):
        radius = int(height * np.exp(rng.uniform(np.log(0.03), np.log(0.3))) / 2)
        y1, x1 = rng.integers(0, height - 2 * radius), rng.integers(0, width - 2 * radius)
        across = np.arange(-radius, radius) ** 2
        crops.append((int(y1), int(x1), across[:, None] + across < radius**2))
        boxes.append((y1, x1, y1 + 2 * radius, x1 + 2 * radius))
    return image, np.array(boxes, np.float32), crops, rng.integers(1, len(NAMES), count)


def cases(quick: bool) -> Iterator[tuple[str, float | None, Callable[[], object]]]:
    """Names, targets in milliseconds, calls."""
    height, width, count = (180, 320, 10) if quick else (720, 1280, 50)
    image, boxes, crops, class_ids = scene(height, width, count)
    rles = [utils.crop_to_rle(*crop, (height, width)) for crop in crops]
    stack = np.stack([utils.rle_to_mask(rle) for rle in rles]).transpose(1, 2, 0)  # in the order of detect()'s
    captions = [Caption(f"{NAMES[class_id]} 0.95 · IoU 0.87 · mask 0.83", short="0.83") for class_id in class_ids]
    title = f"draw_instances, {width} x {height}, {count} instances"
    for kind, masks in (("run-length codes", rles), ("bool [H, W, N]", stack), ("crops", crops), ("no masks", None)):
        yield f"{title}, {kind}", 60, lambda masks=masks: visualize.draw_instances(image, boxes, masks, captions)
    height, width, count = (216, 384, 20) if quick else (2160, 3840, 200)
    large, boxes, crops, class_ids = scene(height, width, count)
    scores = np.full(count, 0.95)
    rles = [utils.crop_to_rle(*crop, (height, width)) for crop in crops]

    def display() -> None:
        figure = visualize.display_instances(
            large, boxes, rles, class_ids, NAMES, scores, mask_ious=scores, mask_scores=scores**2
        )
        figure.savefig(io.BytesIO(), format="png")

    yield f"display_instances, {width} x {height}, {count} instances, to PNG", 6000, display


def main() -> None:
    """Measure, print the table and the JSON line."""
    arguments = machine.make_parser("bench_visualize.py", __doc__, "small pictures").parse_args()
    torch.set_num_threads(1)
    facts = machine.describe()
    print("\n".join(f"{name}: {value}" for name, value in facts.items() if name != "kernels") + "\n")
    print(f"{'':<70}{'ms':>10}{'target':>10}")
    rows = []
    for name, target, run in cases(arguments.quick):
        took = machine.median_ms(run, seconds=0.1 if arguments.quick else 3.0, warm_up=1)
        rows.append({"name": name, "ms": took, "target_ms": target})
        print(f"{name:<70}{took:10.1f}{target:10.0f}", flush=True)
    machine.finish({"benchmark": "visualize", "quick": arguments.quick, **facts, "cases": rows}, arguments.output)


if __name__ == "__main__":
    main()

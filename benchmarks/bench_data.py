"""What it costs to load pictures for a training: decoding, masks, resizing, flips; torchvision's reference beside it.

    python benchmarks/bench_data.py [--dataset DIR] [--images N] [--rounds N] [--quick] [--output FILE]

DIR is a folder in COCO's layout. One process and one thread load the same pictures of val2017, or train2017 with
--subset train, at 800 x 1333. The figures are CPU time for each picture, the median over rounds that take turns, so
that other programs on the machine matter little. Both sides end with a picture in the size of the network, boxes,
classes and masks, neither normalised nor padded. torchvision's side has the steps of its references/detection: Pillow,
masks of pycocotools, a flip of half of the pictures, then the resizing of its GeneralizedRCNNTransform. The last line
printed is JSON.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import statistics
import time

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import cli
from benchmarks import machine
from coco import DATASET, CocoConfig
from data.crops import NO_FLIPS, Flips
from data.formats.coco import CocoDataset
from data.regions import ArraySource
from data.samples import TrainingData

try:
    import torchvision
    import torchvision.transforms.v2.functional
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
except ImportError:
    torchvision = None

Seconds = dict[str, float]  # by stage
OURS = ("decode", "labels", "cut out", "resize", "place masks")
THEIRS = ("decode", "masks", "flip", "resize")


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Adds the CPU time inside to a stage."""
    start = time.process_time()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - start


############################################################
#  Ours
############################################################


def load_ours(data: TrainingData, indices: Sequence[int]) -> Seconds:
    """The stages one by one, as TrainingData runs them, and "whole" for samples made in one go."""
    seconds: Seconds = {}
    dataset = data.dataset
    for index in indices:
        image_id, rng = int(dataset.image_ids[index]), np.random.default_rng(index)
        with timed(seconds, "decode"):
            image = dataset.load_image(image_id)
        with timed(seconds, "labels"):
            instances = dataset.load_instances(image_id)
        plan = data._plan(image.shape, True, rng)
        flips = Flips(False, True) if index % 2 else NO_FLIPS
        with timed(seconds, "cut out"):
            around = data._extents(instances)
            seen, crops = data._cut(instances.masks, around, plan, image.shape, 0)
        with timed(seconds, "resize"):
            torch.from_numpy(np.array(data._pixels(ArraySource(image), plan, 0, flips), order="C"))
        with timed(seconds, "place masks"):
            boxes = None if instances.boxes is None else instances.boxes[seen]
            _, placed = data._place(boxes, crops, plan, flips)
            data._masks(placed, plan)
        with timed(seconds, "whole"):
            data.sample(index, seed=index)
    return seconds


############################################################
#  torchvision's
############################################################


def load_theirs(dataset: CocoDataset, annotations: dict[int, list[dict]], indices: Sequence[int]) -> Seconds:
    """The steps of references/detection of torchvision: coco_utils.py, presets.py, and the resizing of its models.

    annotations: of COCO's file, by the number of the image.
    Source: github.com/pytorch/vision, references/detection, of 0.28.
    """
    seconds: Seconds = {}
    resize = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3).resize
    for index in indices:
        info = dataset.image_info[int(dataset.image_ids[index])]
        start = time.process_time()
        with timed(seconds, "decode"), Image.open(info["path"]) as file:
            image = torchvision.transforms.v2.functional.pil_to_tensor(file.convert("RGB"))
        with timed(seconds, "masks"):
            target = target_of(annotations.get(info["id"], []), *image.shape[1:])
        with timed(seconds, "flip"):
            if index % 2:
                image, width = image.flip(-1), image.shape[2]
                target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
                target["masks"] = target["masks"].flip(-1)
        with timed(seconds, "resize"):
            resize(image.float() / 255, target)
        seconds["whole"] = seconds.get("whole", 0.0) + time.process_time() - start
    return seconds


def target_of(objects: list[dict], height: int, width: int) -> dict[str, torch.Tensor]:
    """ConvertCocoPolysToMask: boxes, labels, and uint8 masks of the whole picture. Crowds are left out."""
    objects = [entry for entry in objects if entry["iscrowd"] == 0]
    boxes = torch.as_tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    masks = []
    for entry in objects:
        decoded = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], height, width))
        decoded = decoded if decoded.ndim == 3 else decoded[..., None]
        masks.append(torch.as_tensor(decoded, dtype=torch.uint8).any(dim=2))
    stack = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)
    kept = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    return {"boxes": boxes[kept], "labels": labels[kept], "masks": stack[kept].to(torch.uint8)}


############################################################
#  Command
############################################################


def measure(run: Callable[[], Seconds] | None, rounds: list[Seconds]) -> None:
    """One more round of one side, if there is that side."""
    if run is not None:
        rounds.append(run())


def milliseconds(rounds: list[Seconds], count: int) -> dict[str, float]:
    """For each stage and picture: the median over rounds."""
    return {name: 1e3 * statistics.median(seconds[name] for seconds in rounds) / count for name in rounds[0]}


def print_table(title: str, stages: Sequence[str], figures: dict[str, float]) -> None:
    """A line for each stage."""
    print(f"\n{title:<14}{'ms a picture':>14}{'share':>8}")
    for name in (*stages, "whole"):
        print(f"{name:<14}{figures[name]:14.2f}{figures[name] / figures['whole']:8.0%}")


def main() -> int:
    """Measure, print the tables and the JSON line."""
    parser = machine.make_parser("bench_data.py", __doc__, "4 pictures, one round, and rough figures")
    parser.add_argument(
        "--dataset", type=Path, default=DATASET, metavar="DIR", help=f"a folder in COCO's layout; default: {DATASET}"
    )
    parser.add_argument("--subset", choices=["train", "val"], default="val", help="default: val")
    parser.add_argument(
        "--images", type=cli.whole_number(1), default=100, metavar="N", help="the first N pictures; default: 100"
    )
    parser.add_argument("--rounds", type=cli.whole_number(1), default=3, metavar="N", help="default: 3")
    arguments = parser.parse_args()
    return cli.run("bench_data.py", lambda: run(arguments))


def run(arguments: Any) -> int:
    """Measure, print, write. Returns the exit code."""
    torch.set_num_threads(1)
    count, rounds = (4, 1) if arguments.quick else (arguments.images, arguments.rounds)
    dataset = CocoDataset()
    file = dataset.load_coco(arguments.dataset, arguments.subset, "2017", return_coco=True)
    dataset.prepare()
    indices = range(min(count, dataset.num_images))
    data = TrainingData(dataset, CocoConfig())
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    data.sample(0)  # what the first picture imports
    for _ in range(rounds):
        measure(lambda: load_ours(data, indices), ours)
        measure((lambda: load_theirs(dataset, file.imgToAnns, indices)) if torchvision else None, theirs)
    facts = {**machine.describe(), "benchmark": "data", "quick": arguments.quick, "pictures": len(indices)}
    facts["ours_ms"] = milliseconds(ours, len(indices))
    print_table("ours", OURS, facts["ours_ms"])
    if theirs:
        facts["torchvision"], facts["torchvision_ms"] = torchvision.__version__, milliseconds(theirs, len(indices))
        facts["speedup"] = facts["torchvision_ms"]["whole"] / facts["ours_ms"]["whole"]
        print_table(f"torchvision {torchvision.__version__}", THEIRS, facts["torchvision_ms"])
        print(f"\nours is {facts['speedup']:.2f} x as fast")
    else:
        print("\ntorchvision is not installed here, so nothing is compared with it; docs/speed.md says how to get it.")
    machine.finish(facts, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Overfitting: from random weights to mask AP50 0.9 on the 32 images that it learns from, on two cores in 15 minutes.

    python benchmarks/overfit_nuclei.py [--data FOLDER] [--minutes N] [--threads N] [--output FOLDER]

A training that cannot do this has an error in its targets, losses, optimiser or detection, whatever its tests say. The
images are nuclei_lite's (2018 Data Science Bowl, 756 nuclei); --data takes any folder that samples/nucleus.py takes.
Nothing is augmented, nothing is validated: how well it generalises is not asked. The last line printed is JSON.

--output gets overfit_nuclei.jsonl, the losses of every step, and overfit_nuclei.json, that last line.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch

from benchmarks import machine
from config import SmallConfig
from data.dataset import Dataset
from evaluation.run import evaluate_dataset
from model import MaskRCNN
from samples import nucleus

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "nuclei_lite"
TARGET = 0.9


class NucleiConfig(SmallConfig):
    """A smaller network, for objects of 5 to 40 pixels in images of 256 x 256, which are enlarged."""

    NAME = "nuclei"
    NUM_CLASSES = 2
    CLASS_NAMES = ("BG", "nucleus")
    GPU_COUNT = 0
    WORKERS = 0
    IMAGES_PER_GPU = 2

    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 448
    MEAN_PIXEL = (13.0, 13.0, 13.0)
    STD_PIXEL = (17.0, 17.0, 17.0)
    HORIZONTAL_FLIP = 0.0

    BACKBONE_NORM = "group"
    TOP_DOWN_PYRAMID_SIZE = 64
    RPN_CHANNELS = 64
    RPN_ANCHOR_SCALES = (16, 32, 64, 128, 256)
    MASKIOU_FC_LAYERS_SIZE = 128

    PRE_NMS_LIMIT_TRAINING = 1000
    POST_NMS_ROIS_TRAINING = 500
    TRAIN_ROIS_PER_IMAGE = 128
    ROI_POSITIVE_RATIO = 0.33
    DETECTION_MAX_INSTANCES = 400

    LEARNING_RATE_DECAY = "steps"
    SCHEDULE = "1x"  # 12 epochs, a tenth of the learning rate after 8 and 11
    TRAIN_DTYPE = "float32"
    STEPS_PER_EPOCH = 75
    WARMUP_STEPS = 50
    CHECKPOINTS_KEPT = 1


def overfit(dataset: Dataset, log_dir: str | Path, minutes: float = 15.0, **settings: Any) -> MaskRCNN:
    """Train on a data set from random weights, into a new folder of log_dir.

    settings: of NucleiConfig, to change.

    Returns: the model; model.log_dir has metrics.jsonl, a line a step.
    """
    config = NucleiConfig(**settings)
    model = MaskRCNN(config, log_dir)
    model.train_model(
        dataset, None, learning_rate=config.LEARNING_RATE, layers="all", custom_callbacks=[nucleus.TimeLimit(minutes)]
    )
    return model


def read_losses(log_dir: str | Path) -> list[float]:
    """The sum of the losses at each step of a training."""
    lines = map(json.loads, (Path(log_dir) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def main() -> int:
    """Train, evaluate, print the JSON line. Returns the exit status: 1 if AP50 stays below the target."""
    quick = "two steps and two images, which prove nothing"
    parser = machine.make_parser("overfit_nuclei.py", __doc__, quick, threads=True, output="DIR")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help=f"folder of the nuclei; default: {DATA}")
    parser.add_argument("--minutes", type=float, default=14.0, help="most minutes of training; default: 14")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or 2)
    start = time.monotonic()
    dataset = nucleus.make_dataset(arguments.data, "train")
    settings = {"STEPS_PER_EPOCH": 2, "IMAGE_MIN_DIM": 128, "IMAGE_MAX_DIM": 128} if arguments.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        model = overfit(dataset, folder, 0.0 if arguments.quick else arguments.minutes, **settings)
        losses, seconds = read_losses(model.log_dir), time.monotonic() - start
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            shutil.copy(model.log_dir / "metrics.jsonl", arguments.output / "overfit_nuclei.jsonl")
    metrics = evaluate_dataset(model, dataset, dataset.image_ids[:2] if arguments.quick else None)
    facts = {
        **machine.describe(),
        "quick": arguments.quick,
        "training_s": seconds,
        "total_s": time.monotonic() - start,
        "steps": len(losses),
        "loss_of_first_steps": float(np.mean(losses[:10])),
        "loss_of_last_steps": float(np.mean(losses[-10:])),
        **metrics,
    }
    machine.finish(facts, arguments.output and arguments.output / "overfit_nuclei.json")
    return 0 if arguments.quick or metrics["mask AP50"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())

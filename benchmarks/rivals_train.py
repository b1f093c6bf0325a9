"""Trains StarDist or Cellpose's network from nothing on a folder of rivals.py, and writes what it finds in val.

Each has an environment of its own. Nothing of this project is imported here, and nothing of theirs in the project:

    python -m venv ~/stardist && ~/stardist/bin/pip install stardist tensorflow-cpu pillow
    python -m venv ~/cellpose && ~/cellpose/bin/pip install "cellpose<4" pillow

    ~/stardist/bin/python benchmarks/rivals_train.py stardist FOLDER --minutes 75
    ~/cellpose/bin/python benchmarks/rivals_train.py cellpose FOLDER --minutes 75

Both learn as their own tutorials say: StarDist with 32 rays on a grid of 2, flips, quarter turns and random
brightness; Cellpose in gray values, scaled to a mean diameter of 17 pixels as its model of nuclei, by its own SGD.
Cellpose scores no object: here it is the mean probability of its pixels. It sees each image twice, the second time
scaled by the diameter that it found at first. Both choose their thresholds on 60 of the training images.

Writes FOLDER/NAME/IMAGE.npz with labels int32 [H, W] and scores float32 [objects], and FOLDER/NAME/facts.json. What
Cellpose learned stays in FOLDER/cellpose: after an interruption, the same command only detects.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

THRESHOLD_IMAGES = 60
CELLPOSE_DIAMETER, CELLPOSE_BATCH = 17.0, 8
CELLPOSE_EPOCHS = 150
TRIAL = 3  # steps
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
STEPS_PER_EPOCH = 100


def read(folder: Path) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """The names of the images of a subset, their pixels uint8 [H, W, 3], and their labels int32 [H, W]."""
    names = sorted(path.stem for path in (folder / "images").glob("*.png"))
    images = [np.asarray(Image.open(folder / "images" / f"{name}.png").convert("RGB")) for name in names]
    labels = [np.load(folder / "labels" / f"{name}.npy") for name in names]
    return names, images, labels


############################################################
#  StarDist
############################################################


def turned(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both in one of the eight ways in which a slide can lie, and the image in another brightness."""
    turns, mirrored = rng.integers(4), rng.random() < 0.5
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if mirrored:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2), labels


def stardist(train: tuple, test: tuple, folder: Path, minutes: float, seed: int) -> tuple[list, dict]:
    """The labels and scores of each test image, and facts."""
    import tensorflow
    from csbdeep.utils import normalize
    from stardist import fill_label_holes
    from stardist.models import Config2D, StarDist2D

    tensorflow.keras.utils.set_random_seed(seed)
    images = [normalize(image, 1, 99.8, axis=(0, 1, 2)) for image in train[1]]
    labels = [fill_label_holes(each) for each in train[2]]
    held_out = max(len(images) // 10, 1)  # validates the learning rate, as StarDist wants it
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    parts = [[[each[i] for i in part] for each in (images, labels)] for part in (order[held_out:], order[:held_out])]
    config = Config2D(
        n_rays=32, grid=(2, 2), n_channel_in=3, train_patch_size=(256, 256), train_batch_size=4,
        train_steps_per_epoch=STEPS_PER_EPOCH, train_reduce_lr={"factor": 0.5, "patience": 8, "min_delta": 0},
        train_tensorboard=False,
    )  # fmt: skip
    model = StarDist2D(config, name="model", basedir=str(folder))

    class Stop(tensorflow.keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.start = time.monotonic()

        def on_epoch_end(self, epoch, logs=None):
            spent = time.monotonic() - self.start
            epochs.append(spent)
            if spent + spent / len(epochs) > 60 * minutes:
                self.model.stop_training = True

    def augment(image, labels):
        return turned(image, labels, rng)

    epochs: list[float] = []
    model.prepare_for_training()
    model.callbacks.append(Stop())
    model.train(*parts[0], validation_data=tuple(parts[1]), augmenter=augment, epochs=100_000, seed=seed)
    chosen = order[:THRESHOLD_IMAGES]
    thresholds = model.optimize_thresholds([images[i] for i in chosen], [labels[i] for i in chosen])
    found = []
    for image in test[1]:
        # All that could be a nucleus: scores order them, and the threshold is chosen when they are measured
        predicted, details = model.predict_instances(
            normalize(image, 1, 99.8, axis=(0, 1, 2)),
            prob_thresh=min(0.05, thresholds["prob"]),
            nms_thresh=thresholds["nms"],
        )
        found.append((predicted.astype(np.int32), np.asarray(details["prob"], np.float32)))
    facts = {"epochs": len(epochs), "steps": len(epochs) * STEPS_PER_EPOCH, "training_s": epochs[-1]}
    return found, {**facts, "threshold": float(thresholds["prob"]), "nms_threshold": float(thresholds["nms"])}


############################################################
#  Cellpose
############################################################


def cellpose(train: tuple, test: tuple, folder: Path, minutes: float, seed: int) -> tuple[list, dict]:
    """The labels and scores of each test image, and facts."""
    import torch
    from cellpose import dynamics, models

    def new_model(pretrained=False):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- Cellpose draws from it
        return models.CellposeModel(gpu=False, pretrained_model=pretrained, diam_mean=CELLPOSE_DIAMETER)

    # Freed memory stays with the process, as in this project's trainings: giving it back takes time at each step
    libc = ctypes.CDLL(None)
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(option, 1 << 30)
    path, asked = folder / "training.json", {"minutes": minutes, "seed": seed}
    facts = json.loads(path.read_text()) if path.is_file() else {}
    if {name: facts.get(name) for name in asked} != asked:  # what was learned counts for the same training only
        facts = {**asked, **train_cellpose(new_model, train, folder, minutes)}
        path.write_text(json.dumps(facts))
    model = new_model(str(folder / "models" / "model"))

    def look(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Flows, logits of pixels, and the steps along the flows, at the diameter that a first look finds."""
        labels, _, _ = model.eval(image, channels=[0, 0], diameter=facts["diameter"])
        areas = np.bincount(labels.ravel())[1:]
        areas = areas[areas > 0]
        diameter = float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)) if len(areas) else facts["diameter"]
        _, flows, _ = model.eval(image, channels=[0, 0], diameter=diameter, compute_masks=False)
        return flows[1], flows[2], 200 * diameter / CELLPOSE_DIAMETER

    def labels_of(looked: tuple[np.ndarray, np.ndarray, float], threshold: float) -> np.ndarray:
        flows, logits, steps = looked
        return dynamics.resize_and_compute_masks(flows, logits, niter=steps, cellprob_threshold=threshold)

    chosen = np.random.default_rng(seed).permutation(len(train[1]))[:THRESHOLD_IMAGES]
    looks = [look(train[1][i]) for i in chosen]
    accuracy = {}
    for threshold in (-2.0, -1.0, 0.0, 1.0):
        pairs = [(labels_of(each, threshold), train[2][i]) for each, i in zip(looks, chosen, strict=True)]
        accuracy[threshold] = float(np.mean([accuracy_of(*pair) for pair in pairs]))
    best = max(accuracy, key=accuracy.get)
    found = []
    for looked in map(look, test[1]):
        labels = labels_of(looked, best).astype(np.int32)
        sizes = np.bincount(labels.ravel())[1:]
        sums = np.bincount(labels.ravel(), (1 / (1 + np.exp(-looked[1]))).ravel())[1:]
        found.append((labels, sums / np.maximum(sizes, 1)))
    return found, {**facts, "threshold": 0.0, "cellprob_threshold": best, "accuracy of thresholds": accuracy}


def train_cellpose(new_model: Callable, train: tuple, folder: Path, minutes: float) -> dict:
    """Write folder/models/model, and return facts."""
    import torch
    from cellpose.dynamics import labels_to_flows
    from cellpose.train import train_seg

    flows = labels_to_flows(train[2], device=torch.device("cpu"))  # once, for all calls below
    options = {
        "train_data": train[1], "train_labels": flows, "channels": [0, 0], "batch_size": CELLPOSE_BATCH,
        "learning_rate": 0.2, "SGD": True, "weight_decay": 1e-5, "min_train_masks": 1, "save_path": str(folder),
    }  # fmt: skip
    seconds = []
    for count in (1, 1 + TRIAL):  # the difference is of steps: train_seg prepares all images before the first
        start = time.monotonic()
        train_seg(new_model().net, n_epochs=1, nimg_per_epoch=count * CELLPOSE_BATCH, model_name="trial", **options)
        seconds.append(time.monotonic() - start)
    step = max(seconds[1] - seconds[0], 0.1) / TRIAL
    total = max(int((60 * minutes - seconds[0]) / step), 1)
    # It warms up for 10 epochs and slows down in the last 50 of more than 100, so that epochs are parts of the images
    steps = max(total // CELLPOSE_EPOCHS, 1)
    epochs = total // steps
    print(f"a step takes {step:.1f} s: {epochs} epochs of {steps} steps", flush=True)
    model = new_model()
    start = time.monotonic()
    train_seg(model.net, n_epochs=epochs, nimg_per_epoch=steps * CELLPOSE_BATCH, model_name="model", **options)
    facts = {"epochs": epochs, "steps": epochs * steps, "training_s": time.monotonic() - start}
    return {**facts, "diameter": float(model.net.diam_labels.item())}


def accuracy_of(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Pairs with an IoU above 0.5, by true and false positives and false negatives; such pairs are one to one."""
    shape = int(predicted.max()) + 1, int(labels.max()) + 1
    shared = np.zeros(shape, np.int64)
    np.add.at(shared, (predicted.ravel(), labels.ravel()), 1)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
    pairs = int((2 * shared[1:, 1:] > union[1:, 1:]).sum())
    total = int(len(np.unique(predicted[predicted > 0])) + len(np.unique(labels[labels > 0]))) - pairs
    return pairs / total if total else 1.0


############################################################
#  Command line
############################################################


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["stardist", "cellpose"])
    parser.add_argument("folder", type=Path, help="of rivals.py prepare")
    parser.add_argument("--minutes", type=float, default=75, help="of the training; default: 75")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(arguments.threads), TF_NUM_INTRAOP_THREADS=str(arguments.threads))
    output = arguments.folder / arguments.name
    output.mkdir(parents=True, exist_ok=True)
    train, test = (read(arguments.folder / subset) for subset in ("train", "val"))
    learn = stardist if arguments.name == "stardist" else cellpose
    found, facts = learn(train, test, output, arguments.minutes, arguments.seed)
    for name, (labels, scores) in zip(test[0], found, strict=True):
        np.savez_compressed(output / f"{name}.npz", labels=labels, scores=scores)
    version = importlib.metadata.version(arguments.name)
    facts = {"name": arguments.name, "version": version, "threads": arguments.threads, "seed": arguments.seed, **facts}
    (output / "facts.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

"""Evaluations that no model made: what a report may meet, from realistic to empty."""

from typing import Any

import numpy as np

import utils
from evaluation.examples import Example
from evaluation.metrics import Evaluation
from evaluation.names import CLASS_COLUMNS, MEASURES
from evaluation.page import GALLERIES

THINGS = ("person", "bicycle", "traffic light", "baseball glove", "hot dog", "potted plant", "dining table", "zebra")
HEIGHT, WIDTH = 120, 160


def toy_evaluation(classes: int = 80, detections: int = 4000, seed: int = 0, head: bool = True) -> Evaluation:
    """What a decent model might reach. classes: without background. head: whether there is a MaskIoU head."""
    rng = np.random.default_rng(seed)
    names = [THINGS[i] if i < len(THINGS) else f"{THINGS[i % len(THINGS)]} {i}" for i in range(classes)]
    true = rng.beta(4, 1.6, detections) * (rng.random(detections) > 0.25)
    scores = np.clip(0.3 * true + 0.7 * rng.beta(0.6, 1, detections), 0.05, 1)
    predicted = 0.15 + 0.8 * true + rng.normal(0, 0.12, detections)
    mask_scores = scores * np.clip(predicted, 0, 1) if head else scores
    return Evaluation(
        metrics=metrics_of(rng, classes, detections, head),
        classes=[class_of(rng, name, i + 1, head) for i, name in enumerate(names)],
        curves=curves_of(head),
        confusion=confusion_of(rng, classes),
        confusion_rule="Detections of class score .50 or more, best first, each take the object they overlap most.",
        class_names=["BG", *names],
        class_scores=scores,
        mask_ious=predicted if head else None,
        mask_scores=mask_scores,
        true_ious=true,
        examples={
            name: [example(rng, names[i % classes], i, head) for i in range(12 if classes else 0)] for name in GALLERIES
        },
        dataset_images=5000,
        facts={
            "model": "logs/coco/checkpoint_0012.pth, ms_rcnn_r50",
            "data": "coco val2017",
            "images": "all 5000",
            "max_dets": "100",
            "machine": "2 cores, no GPU",
        },
        seconds={"read": 65.2, "network": 4123.9, "masks": 310.0, "evaluation": 92.4, "total": 4300.1, "images": 5000},
    )


def metrics_of(rng: np.random.Generator, classes: int, detections: int, head: bool) -> dict[str, float]:
    values = {"AP": 0.3512, "AP50": 0.5634, "AP75": 0.3716, "APs": 0.1549, "APm": 0.3785, "APl": 0.5238}
    gains = dict.fromkeys(MEASURES, 0.0)
    if head:
        gains |= {"AP": 0.0113, "AP50": -0.0021, "AP75": 0.0158, "APs": 0.0, "APm": 0.00004, "APl": 0.0244}
    metrics: dict[str, float] = {}
    for name in MEASURES:
        value = values.get(name, 0.4)
        metrics[f"box {name}"] = value + 0.0231
        metrics[f"mask {name} (class score)"] = value
        metrics[f"mask {name}"] = value + gains[name]
        metrics[f"mask {name} (true IoU)"] = value + 0.0749
        metrics["re-scoring gain" if name == "AP" else f"re-scoring gain {name}"] = gains[name]
    for kind in ("box", "mask"):
        recalls = {"AR1": 0.31, "AR10": 0.475, "AR100": 0.493, "ARs": 0.29, "ARm": 0.52, "ARl": 0.64}
        metrics |= {f"{kind} {name}": value for name, value in recalls.items()}
    metrics |= {"IoU correlation": 0.7321 if head else 0.0, "class score correlation": 0.4123}
    return metrics | {"images": 5000, "detections": detections, "objects": 36335, "max_dets": 100}


def class_of(rng: np.random.Generator, name: str, category_id: int, head: bool) -> dict[str, Any]:
    before = float(rng.beta(3, 5))
    gain = float(rng.normal(0.01, 0.008)) if head else 0.0
    return {
        "name": name,
        "category_id": category_id,
        "objects": int(rng.integers(9, 11000)),
        **{str(metric): before for metric in CLASS_COLUMNS.values()},
        "box AP": before + 0.03,
        "mask AP (class score)": before,
        "mask AP": max(before + gain, 0.0),
        "re-scoring gain": max(before + gain, 0.0) - before,
        "mask AP (true IoU)": before + 0.07,
        "mask AP50": min(1.6 * before, 1.0),
        "mask AP75": 0.9 * before,
    }


def curves_of(head: bool) -> dict[str, np.ndarray]:
    recall = np.linspace(0, 1, 101)
    curves = {}
    for i, measure in enumerate(("AP50", "AP", "AP75")):
        after = np.clip(1 - recall ** (2 - 0.5 * i), 0, 1) * (recall < 0.9 - 0.1 * i)
        curves[f"box {measure}"] = 0.95 * after
        curves[f"mask {measure}"] = after
        curves[f"mask {measure} (class score)"] = after - 0.12 * recall * after if head else after
    return curves


def confusion_of(rng: np.random.Generator, classes: int) -> np.ndarray:
    counts = rng.poisson(0.4, (classes + 1, classes + 1)) + np.diag(rng.integers(50, 500, classes + 1))
    counts[1:, 0] += rng.integers(5, 150, classes)
    counts[0, 1:] += rng.integers(5, 150, classes)
    counts[0, 0] = 0
    return counts.astype(np.int64)


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def example(rng: np.random.Generator, name: str, image_id: int, head: bool = True) -> Example:
    y, x, radius = rng.uniform(30, 90), rng.uniform(30, 130), rng.uniform(4, 30)
    mask, truth = disc(y, x, radius), disc(y + 0.4 * radius, x + 0.3 * radius, 1.2 * radius)
    return Example(
        image_id=image_id,
        title=f"{image_id:012d}.jpg",
        class_name=name,
        class_score=0.97,
        mask_iou=0.41 if head else None,
        mask_score=0.4 if head else 0.97,
        true_iou=float((mask & truth).sum() / (mask | truth).sum()),
        box=tuple(map(float, utils.extract_bboxes(mask[..., None])[0])),
        mask=utils.mask_to_rle(mask),
        truth=utils.mask_to_rle(truth) if image_id % 4 else None,
    )


def load_toy_image(image_id: int) -> np.ndarray:
    """uint8 [120, 160, 3]: as hard to compress as a photograph."""
    rng = np.random.default_rng(image_id)
    waves = np.sin(np.mgrid[:HEIGHT, :WIDTH] / rng.uniform(3, 20, (2, 1, 1))).sum(axis=0)
    return (128 + 40 * waves[..., None] + rng.normal(0, 12, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)


def empty_evaluation(classes: int = 1, objects: int = 0, detections: int = 0) -> Evaluation:
    """Nothing: no objects unless some are asked for, no detections unless some are."""
    there_are = toy_evaluation(classes, detections)
    absent = 0.0 if objects else -1.0
    metrics = {name: 0.0 if "gain" in name or "correlation" in name else absent for name in there_are.metrics}
    there_are.metrics = metrics | {"images": 3, "detections": detections, "objects": objects, "max_dets": 100}
    for row in there_are.classes:
        row |= {name: 0.0 if "gain" in name else absent for name in row if "AP" in name or "gain" in name}
        row["objects"] = objects
    there_are.curves = {name: np.full(101, absent) for name in there_are.curves}
    there_are.confusion = np.zeros_like(there_are.confusion)
    there_are.confusion[1:, 0] = objects
    there_are.true_ious = np.zeros(detections)
    there_are.examples = {}
    there_are.dataset_images = 3
    there_are.facts = {}
    there_are.seconds = {}
    return there_are

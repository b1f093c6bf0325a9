"""An evaluation as a whole: detect, compare, report. For any data set."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import torch

import runtime
from data.dataset import Dataset

from .detect import detect_dataset, detect_to_folder, load_results, write_submission
from .metrics import Evaluation, evaluate_results
from .report import write_report
from .results import Detector, ResumableDetector, ground_truth, image_number
from .words import images_evaluated, metrics_table


def evaluate_dataset(
    model: Detector,
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = True,
    contents: dict[str, Any] | None = None,
) -> dict[str, float]:
    """COCO-style evaluation in memory: one pass of detection, with and without re-scoring.

    model: a MaskRCNN, or another Detector of the data set's classes.
    dataset: prepared; objects of negative class id are crowds. image_ids: the images to evaluate; all by default.
    max_dets: how many of an image's best results of a class count; by default DETECTION_MAX_INSTANCES, or COCO's 100
        if that is more. verbose: show progress, and print a table. contents: of ground_truth(dataset, image_ids), for
        callers that evaluate several times.

    Returns: numbers by name, see evaluate_results.
    Raises: ValueError if model and data set differ in classes, or max_dets is below 1.
    """
    max_dets = _max_dets(model, max_dets)
    results = detect_dataset(model, dataset, image_ids, verbose=verbose)
    contents = contents or ground_truth(dataset, image_ids)
    metrics = evaluate_results(contents, *results, max_dets).metrics
    if verbose:
        print(metrics_table(metrics))
    return metrics


def _max_dets(model: Detector, max_dets: int | None) -> int:
    max_dets = max(100, model.config.DETECTION_MAX_INSTANCES) if max_dets is None else max_dets
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    return max_dets


def evaluation_callback(
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = False,
) -> Callable[[Detector], dict[str, float]]:
    """A function for train_model's `evaluate`: it evaluates the model that it is given, as evaluate_dataset does.

    The first call collects the ground truth, and later calls use it again.
    """
    contents: dict[str, Any] = {}

    def evaluate(model: Detector) -> dict[str, float]:
        if not contents:
            contents.update(ground_truth(dataset, image_ids))
        return evaluate_dataset(model, dataset, image_ids, max_dets, verbose, contents)

    return evaluate


def evaluate_to_folder(
    model: ResumableDetector,
    dataset: Dataset,
    folder: str | os.PathLike,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    dtype: str = "float32",
    workers: int = 2,
    facts: Mapping[str, str] | None = None,
    verbose: bool = True,
    identity: dict[str, Any] | None = None,
) -> Evaluation | None:
    """Evaluate on the disk, with a report. An interrupted evaluation continues; processes of a group share the work.

    folder: gets detections/, bbox.json and segm.json (COCO's submission format), metrics.json, metrics.csv,
        classes.csv and report.html. A folder takes one evaluation.
    dtype: of detect(). workers: threads that read images. facts: further rows of the report's table of what was
        evaluated. identity: of identify(), for callers that have it. The others as in evaluate_dataset.

    Returns: every number; None in all processes but the first.
    Raises: ValueError as evaluate_dataset; if the folder holds another evaluation; if images cannot be read, after all
        others are done.
    """
    max_dets = _max_dets(model, max_dets)
    image_ids = [int(image_id) for image_id in (dataset.image_ids if image_ids is None else image_ids)]
    seconds = detect_to_folder(model, dataset, image_ids, folder, dtype, workers, verbose, identity)
    if runtime.rank() > 0:
        return None
    start = time.perf_counter()
    by_number = {image_number(dataset, image_id): image_id for image_id in image_ids}
    boxes, masks = load_results(folder, list(by_number))
    write_submission(folder, boxes, masks)
    contents = ground_truth(dataset, image_ids)
    evaluation = evaluate_results(contents, boxes, masks, max_dets)
    evaluation.seconds = {**seconds, "evaluation": time.perf_counter() - start}
    evaluation.dataset_images = dataset.num_images
    evaluation.facts = {**(facts or {}), **_facts(model, dataset, image_ids, max_dets, dtype)}
    report = write_report(evaluation, folder, lambda number: dataset.load_image(by_number[number]))
    if verbose:
        print(metrics_table(evaluation.metrics))
        print(f"report: {report}")
    return evaluation


def _facts(
    model: ResumableDetector, dataset: Dataset, image_ids: Sequence[int], max_dets: int, dtype: str
) -> dict[str, str]:
    config = model.config
    return {
        "weights": model.source,
        "images": images_evaluated(len(image_ids), dataset.num_images),
        "detections that count": f"the best {max_dets} of a class in an image",
        "network": f"{config.BACKBONE}, dialect {config.DIALECT}",
        "MaskIoU head": "yes" if config.USE_MASKIOU_HEAD else "no",
        "input": f"{config.IMAGE_RESIZE_MODE} {config.IMAGE_MIN_DIM} to {config.IMAGE_MAX_DIM} pixels, {dtype}",
        "least class score": f"{config.DETECTION_MIN_CONFIDENCE:g}",
        "most detections of an image": str(config.DETECTION_MAX_INSTANCES),
        "device": f"{model.device}, {runtime.world_size()} process(es), torch {torch.__version__}",
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "revision": runtime.git_revision() or "unknown",
    }

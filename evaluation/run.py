"""An evaluation as a whole: detect, compare, report. For any data set."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import torch

import runtime
import utils
from config import Config
from data.dataset import Dataset
from model import MaskRCNN

from .detect import detect_dataset, detect_to_folder, load_results, write_submission
from .metrics import Evaluation, evaluate_results
from .report import write_report
from .results import (
    Detector,
    ResumableDetector,
    categories_of_model,
    class_notes,
    ground_truth,
    image_number,
    known_truth,
    load_picture,
    without_images,
)
from .tiled import in_tiles, most_found, tile_notes
from .words import images_evaluated, metrics_table, unlabelled_sentence

USUAL_MAX_DETS = 100  # COCO's


def evaluate_dataset(
    model: Detector,
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = True,
    contents: dict[str, Any] | None = None,
) -> dict[str, float]:
    """COCO-style evaluation in memory: one pass of detection, with and without re-scoring.

    Large images are detected in tiles, see in_tiles.

    Classes of model and data set are matched by name. A class that the model does not know is named and left out of all
    numbers, with its objects. A class that the data set does not have has no objects.

    model: a MaskRCNN, or another Detector of the data set's classes.
    dataset: prepared; objects of negative class id are crowds. image_ids: the images to evaluate; all by default.
    max_dets: how many of an image's best results of a class count; by default DETECTION_MAX_INSTANCES, or COCO's 100
        if that is more, and all of an image that is detected in tiles. verbose: show progress, and print a table.
    contents: of ground_truth(dataset, image_ids), for callers that evaluate several times.

    Returns: numbers by name, see evaluate_results.
    Raises: ValueError if the model knows none of the data set's classes, or max_dets is below 1; if an image cannot be
        read. In a training, evaluation_callback goes on without such an image.
    """
    _max_dets(model, max_dets)
    model = in_tiles(model, dataset, image_ids, verbose=verbose)
    notes = [*class_notes(model, dataset), *tile_notes(model, dataset)]
    boxes, masks = detect_dataset(model, dataset, image_ids, verbose=verbose)
    contents = known_truth(model, dataset, contents or ground_truth(dataset, image_ids))
    metrics = evaluate_results(contents, boxes, masks, _max_dets(model, max_dets, masks)).metrics
    if verbose:
        print("\n".join([metrics_table(metrics), *notes]))
    return metrics


def _max_dets(model: Detector, max_dets: int | None, masks: Sequence[dict[str, Any]] = ()) -> int:
    """How many of an image's results of a class count. max_dets: as it was asked for. masks: all results."""
    if max_dets is None:
        max_dets = max(USUAL_MAX_DETS, model.config.DETECTION_MAX_INSTANCES, most_found(model, masks))
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    return max_dets


def count_weak_detections(config: Config) -> None:
    """Lets detections count from a class score of 0.05 on, under the dialect matterport from 0 on: AP needs them."""
    least = 0.0 if config.DIALECT == "matterport" else 0.05
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE, least)


class EvaluationCallback:
    """What evaluation_callback returns: a function of the model, and a check before the first step."""

    def __init__(
        self,
        dataset: Dataset,
        image_ids: Sequence[int] | None,
        max_dets: int | None,
        verbose: bool,
        adapt: Callable[[Any], Detector] | None,
    ) -> None:
        self.dataset, self.max_dets, self.verbose = dataset, max_dets, verbose
        self.image_ids = list(map(int, dataset.image_ids if image_ids is None else image_ids))
        self.adapt = adapt or (lambda model: model)
        self._contents: dict[str, Any] = {}  # of all images whose objects can be read
        self._failures: dict[int, str] = {}  # by image_id: why an image is not in contents
        self._named: set[int] = set()  # images that were named as unreadable

    def check(self, model: Any) -> None:
        """Everything that an evaluation checks, but the pixels of the images. train_model calls it before step 1.

        Prints which classes the model does not know, and which images are left out.

        Raises: ValueError as evaluate_dataset, and if no image can be evaluated.
        """
        detector = self.adapt(model)
        _max_dets(detector, self.max_dets)
        notes = class_notes(detector, self.dataset, "the data set of the evaluation")
        for note in (*notes, *tile_notes(in_tiles(detector, self.dataset, self.image_ids), self.dataset)):
            print(note)
        categories_of_model(detector, self.dataset)
        self._collect_truth()
        annotations = known_truth(detector, self.dataset, self._contents)["annotations"]
        if all(entry["iscrowd"] for entry in annotations):
            print(
                "the data set of the evaluation has no object that the model knows: each average precision will be -1"
            )

    def __call__(self, model: Any) -> dict[str, float]:
        """The numbers of evaluate_dataset, in all images that can be read.

        If some cannot, "missing_images" counts them, and "images" the others. Without any image there is no number.
        """
        self._collect_truth()
        detector, failures = self.adapt(model), dict(self._failures)
        image_ids = [image_id for image_id in self.image_ids if image_id not in failures]
        detector = in_tiles(detector, self.dataset, image_ids, verbose=self.verbose)
        boxes, masks = detect_dataset(detector, self.dataset, image_ids, verbose=self.verbose, failures=failures)
        self._report(failures)
        missing = len(failures) + self._lost_images()
        if len(failures) == len(self.image_ids):
            return {"missing_images": missing}
        numbers = {image_number(self.dataset, image_id) for image_id in failures}
        contents = without_images(known_truth(detector, self.dataset, self._contents), numbers)
        metrics = evaluate_results(contents, boxes, masks, _max_dets(detector, self.max_dets, masks)).metrics
        if missing:
            metrics["missing_images"] = missing
        if self.verbose:
            print(metrics_table(metrics))
        return metrics

    def _collect_truth(self) -> None:
        if self._contents:
            return
        contents = ground_truth(self.dataset, self.image_ids, self._failures)
        self._report(self._failures)
        if not contents["images"]:
            reasons = utils.listed(map(utils.printable, self._failures.values()), 3) or "the data set has none"
            raise ValueError(
                f"no image can be evaluated: {reasons}. Give evaluation another data set, or train without evaluate"
            )
        self._contents = contents

    def _report(self, failures: Mapping[int, str]) -> None:
        """Names each image that cannot be read, once."""
        new = {image_id: text for image_id, text in failures.items() if image_id not in self._named}
        self._named |= new.keys()
        if new:
            texts = [f"{self.dataset.image_info[i]['id']} ({utils.printable(text, 300)})" for i, text in new.items()]
            print(f"evaluation goes on without images that cannot be read: {utils.listed(texts, 10)}")

    def _lost_images(self) -> int:
        """Images that the data set left out when it was loaded, if all images are evaluated."""
        if len(self.image_ids) < self.dataset.num_images:
            return 0
        return sum(map(len, getattr(self.dataset, "lost_images", {}).values()))


def evaluation_callback(
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = False,
    adapt: Callable[[Any], Detector] | None = None,
) -> EvaluationCallback:
    """A function for train_model's `evaluate`: it evaluates the model that it is given, as evaluate_dataset does.

    train_model lets it check classes, annotations and max_dets before the first step. An image that cannot be read is
    named and left out, and the numbers say of how many images they are: a training does not end because of it.

    adapt: makes the detector to evaluate from the model that is trained; by default it is the model itself.
    """
    return EvaluationCallback(dataset, image_ids, max_dets, verbose, adapt)


def whole_images(model: MaskRCNN, **settings: Any) -> MaskRCNN:
    """A copy of a model in training that sees whole images, where training takes crops.

    It is for the argument adapt of evaluation_callback. settings: of Config, others to change.
    """
    detector = MaskRCNN(model.config.for_detection(**settings))
    detector.load_state_dict(model.state_dict())
    detector.source = model.source
    return detector.to(model.device).eval()


def evaluate_to_folder(
    model: ResumableDetector,
    dataset: Dataset,
    folder: str | os.PathLike,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    facts: Mapping[str, str] | None = None,
    verbose: bool = True,
    identity: dict[str, Any] | None = None,
    add_own: Callable[[Evaluation, dict[str, Any], list[dict[str, Any]]], Any] | None = None,
) -> Evaluation | None:
    """Evaluate on the disk, with a report. An interrupted evaluation continues; processes of a group share the work.

    folder: gets detections/, bbox.json and segm.json (COCO's submission format), metrics.json, metrics.csv,
        classes.csv and report.html. A folder takes one evaluation.
    dtype: of detect(). workers: as of detect_to_folder. facts: further rows of the report's table of what was
        evaluated. identity: of identify(), for callers that have it.
    add_own: computes further numbers from the evaluation, the ground truth and the results of masks, as own.py does,
        and returns what write_report shall show of them. The others as in evaluate_dataset.

    Returns: every number; None in all processes but the first.
    Raises: ValueError as evaluate_dataset; if the folder holds another evaluation; if images cannot be read, after all
        others are done.
    """
    _max_dets(model, max_dets)
    class_notes(model, dataset)  # raises before the folder is claimed
    image_ids = [int(image_id) for image_id in (dataset.image_ids if image_ids is None else image_ids)]
    model = in_tiles(model, dataset, image_ids, verbose=verbose)
    tiled = tile_notes(model, dataset)
    if verbose and runtime.rank() == 0:
        print("".join(f"{note}\n" for note in tiled), end="")
    seconds = detect_to_folder(model, dataset, image_ids, folder, dtype, workers, verbose, identity)
    if runtime.rank() > 0:
        return None
    start = time.perf_counter()
    by_number = {image_number(dataset, image_id): image_id for image_id in image_ids}
    boxes, masks = load_results(folder, list(by_number))
    write_submission(folder, boxes, masks)
    contents = known_truth(model, dataset, ground_truth(dataset, image_ids))
    max_dets = _max_dets(model, max_dets, masks)
    evaluation = evaluate_results(contents, boxes, masks, max_dets)
    notes = class_notes(model, dataset)
    evaluation.seconds = {**seconds, "evaluation": time.perf_counter() - start}
    evaluation.dataset_images = dataset.num_images
    evaluation.facts = {**(facts or {}), **_facts(model, dataset, image_ids, max_dets, dtype)}
    evaluation.facts |= {"classes": "; ".join(notes)} if notes else {}
    evaluation.facts |= {"tiles": "; ".join(tiled)} if tiled else {}
    left_out = unlabelled_sentence(evaluation.metrics)
    evaluation.facts |= {"classes that are not labelled": left_out} if left_out else {}
    own = None if add_own is None else add_own(evaluation, contents, masks)
    report = write_report(evaluation, folder, lambda number: load_picture(model, dataset, by_number[number]), own)
    if verbose:
        print("\n".join([metrics_table(evaluation.metrics), *notes]))
        if tiled:
            print(f"the best {max_dets:,} detections of a class in a picture count: tiles may find any number")
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

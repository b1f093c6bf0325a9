"""Evaluates a model on somebody's own data: COCO's numbers, those at one threshold, and the result in sentences.

    result = evaluate_own(model, val_dataset, "output/evaluate")
    print("\\n".join(result.sentences))
    store_settings("model.pth", result.settings)

It chooses the threshold and the boxes, calibrates the chance that a mask is good, gives all to the model, and writes
the report.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from model import MaskRCNN, network_shapes
from weights.checkpoint import read_checkpoint, with_settings, write_checkpoint
from weights.load import load_checkpoint

from .metrics import Evaluation
from .own_numbers import CHOSEN_HERE, OwnNumbers, own_numbers
from .own_words import OwnReport, sentences, tables
from .results import categories_of_model
from .run import evaluate_to_folder


@dataclasses.dataclass
class OwnEvaluation:
    """The result of evaluate_own."""

    evaluation: Evaluation
    numbers: OwnNumbers
    sentences: list[str]  # the result for people, the most important one first
    report: Path  # the page

    @property
    def metrics(self) -> dict[str, float]:
        """Every number over all classes by name: COCO's and those at the threshold."""
        return self.evaluation.metrics

    @property
    def threshold(self) -> float:
        """The score from which on detections count."""
        return self.numbers.threshold

    @property
    def calibration(self) -> tuple[float, ...] | None:
        """What was fitted for ACCEPT_CALIBRATION; None if nothing was."""
        return self.numbers.accept.fit.calibration if self.numbers.accept.fit else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were chosen on these pictures, for store_settings."""
        if not self.numbers.is_fit:
            return {}
        settings = {"SCORE_THRESHOLD": self.threshold} if self.numbers.threshold_source == CHOSEN_HERE else {}
        settings |= {"BOXES_OF_MASKS": True} if self.numbers.boxes_of_masks else {}
        return settings | ({"ACCEPT_CALIBRATION": self.calibration} if self.calibration else {})


def evaluate_own(
    model: MaskRCNN,
    dataset: Dataset,
    folder: str | os.PathLike,
    split: str | None = "val",
    fit: bool = True,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    facts: Mapping[str, str] | None = None,
    leaks: Sequence[tuple[str, str]] | None = None,
    model_name: str | None = None,
    verbose: bool = True,
    identity: dict[str, Any] | None = None,
) -> OwnEvaluation | None:
    """Evaluates, chooses the threshold, calibrates, and writes the report. Interrupted, it continues.

    model: as it sees whole images: see Config.for_detection. It gets the threshold, the calibration, and where boxes
        round its masks are better, BOXES_OF_MASKS.
    split: what the pictures are, "train", "val" or "test"; None: a whole data set, of which nobody knows whether the
        model has learned from it.
    fit: choose and calibrate on these pictures; False: take what is stored in the model.
    leaks: of data.check.Report; None: nobody looked. Pairs without an evaluated picture do not count.
    model_name: for "how to use the model" in the report. The others: as for evaluate_to_folder.

    Returns: None in all processes but the first.
    Raises: as evaluate_to_folder.
    """
    class_ids = {number: class_id for class_id, number in enumerate(categories_of_model(model, dataset)) if class_id}
    leaks = None if leaks is None else _leaks_of(leaks, dataset, image_ids)
    reports: list[OwnReport] = []

    def add_own(evaluation: Evaluation, contents: dict[str, Any], masks: list[dict[str, Any]]) -> OwnReport:
        most = int(evaluation.metrics["max_dets"])
        numbers = own_numbers(contents, masks, most, evaluation.metrics["box AP"], model.config, class_ids, fit)
        evaluation.metrics |= numbers.metrics()
        for row in evaluation.classes:
            row |= numbers.class_metrics(row["category_id"])
        words = sentences(numbers, evaluation.metrics, split, leaks)
        reports.append(OwnReport(numbers, words, leaks, model_name))
        return reports[0]

    evaluation = evaluate_to_folder(
        model, dataset, folder, image_ids, max_dets, dtype, workers, facts, verbose, identity, add_own
    )
    if evaluation is None:
        return None
    result = OwnEvaluation(evaluation, reports[0].numbers, reports[0].sentences, Path(folder) / "report.html")
    for name, value in result.settings.items():
        setattr(model.config, name, value)
    if verbose:
        print("\n".join(["", tables(result.numbers), "", *result.sentences]))
    return result


def _leaks_of(
    leaks: Sequence[tuple[str, str]], dataset: Dataset, image_ids: Sequence[int] | None
) -> list[tuple[str, str]]:
    """The pairs of which a picture is evaluated."""
    ids = dataset.image_ids if image_ids is None else image_ids
    names = {dataset.image_info[image_id]["id"] for image_id in ids}
    return [tuple(pair) for pair in leaks if names & set(pair)]


def store_settings(
    model: str | Path, settings: Mapping[str, Any], target: str | Path | None = None, **options: Any
) -> Path:
    """Writes settings into a checkpoint of this project, whole or not at all. A training in it can still continue.

    model: the checkpoint; with a target, any model that weights.load knows. target: the file to write; None: the
    checkpoint itself. options: of load_checkpoint, for a target.

    Returns: the file that was written.
    Raises: FileNotFoundError, ValueError as read_checkpoint or load_checkpoint; OSError as write_checkpoint.
    """
    checkpoint = read_checkpoint(model) if target is None else load_checkpoint(model, **options)
    path = Path(model if target is None else target)
    write_checkpoint(path, {**checkpoint, **with_settings(checkpoint, settings, network_shapes)})
    return path

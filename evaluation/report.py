"""The report of an evaluation: a page, and its numbers as JSON and CSV. Knows arrays and numbers, no model or data set.

K classes, 0 is background
AP lies in [0, 1] in the files and is in points, 0 to 100, on the page. If there is no object to compute it from, it is
-1 in Evaluation and JSON, "-" on the page and nothing in CSV.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runtime
import utils

from .calibration import calibrate
from .metrics import Evaluation
from .names import CLASS_COLUMNS, CORRELATIONS, COUNTS, MEASURES, OWN_CLASS_COLUMNS, ROWS, known_value, recall_measures
from .own_page import own_view
from .own_words import OwnReport
from .page import render


def write_report(
    evaluation: Evaluation,
    folder: str | Path,
    load_image: Callable[[int], np.ndarray],
    own: OwnReport | None = None,
) -> Path:
    """Write report.html, metrics.json, metrics.csv and classes.csv, each of them atomically.

    All four are made before the first is written, so that an error leaves a former report as it was. The page needs no
    other file and no network.

    folder: is made if need be. load_image: gives the picture of an Example's image_id, uint8 [H, W, 3]; the message of
        an error that it raises is shown instead of the picture.

    Returns: the path of report.html.
    Raises: ValueError if arrays of the evaluation differ in length, or a number is not finite or missing.
    """
    check_evaluation(evaluation)
    contents = {
        "metrics.json": json.dumps(to_json(evaluation, own), indent=1, allow_nan=False),
        "metrics.csv": _csv(metrics_rows(evaluation.metrics)),
        "classes.csv": _csv(class_rows(evaluation.classes)),
        "report.html": render(evaluation, load_image, own and own_view(own, load_image)),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content.encode("utf-8", "replace")  # file names may hold bytes that are no text
        runtime.write_atomically(folder / name, lambda file, data=data: file.write(data))
    return folder / "report.html"


############################################################
#  Numbers
############################################################


def check_evaluation(evaluation: Evaluation) -> None:
    """Raises: ValueError if arrays differ in length, or a number is missing or not finite."""
    count, classes = len(evaluation.class_scores), len(evaluation.class_names)
    for name in ("class_scores", "mask_ious", "mask_scores", "true_ious"):
        values = getattr(evaluation, name)
        if values is not None and np.shape(values) != (count,):
            raise ValueError(f"{name} must have one value a detection, [{count}], not {list(np.shape(values))}")
        if values is not None and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"{name} must be finite; {bad} of {count} are NaN or infinite: did the training diverge?")
    if evaluation.confusion.shape != (classes, classes):
        raise ValueError(
            f"confusion must be [K, K] = {[classes, classes]} for {classes} class_names, background included, not "
            f"{list(evaluation.confusion.shape)}"
        )
    names = [str(row.metric(measure)) for row in ROWS for measure in MEASURES]
    names += [*COUNTS, *CORRELATIONS.values()]
    if missing := [name for name in names if name not in evaluation.metrics]:
        raise ValueError(f"metrics must have every number of the report; missing: {utils.listed(missing)}")
    if bad := [name for name, value in evaluation.metrics.items() if not np.isfinite(value)]:
        raise ValueError(f"metrics must be finite, these are not: {utils.listed(bad)}")


def metrics_rows(metrics: Mapping[str, float]) -> list[list[Any]]:
    """The table at full precision: a head, then a row a ranking. Recalls are of boxes and of masks by mask score."""
    recalls = recall_measures(metrics)
    rows: list[list[Any]] = [["ranking", *MEASURES, *recalls]]
    for row in ROWS:
        cells = [known_value(metrics, row.metric(measure)) for measure in MEASURES]
        has_recalls = (row.kind, row.ranking) in (("box", "class score"), ("mask", "mask score"))
        cells += [known_value(metrics, row.metric(name)) if has_recalls else None for name in recalls]
        rows.append([row.title, *cells])
    return rows


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """AP of each class at full precision, and of own data what holds at the threshold: a head, then a row a class."""
    head = ["name", "category_id", "objects"]
    own = [name for name in OWN_CLASS_COLUMNS.values() if classes and name in classes[0]]
    rows = []
    for row in classes:
        cells = [known_value(row, metric) for metric in CLASS_COLUMNS.values()]
        rows.append([row[name] for name in head] + cells + [row[name] if row[name] >= 0 else None for name in own])
    return [head + [str(metric) for metric in CLASS_COLUMNS.values()] + own, *rows]


def to_json(evaluation: Evaluation, own: OwnReport | None = None) -> dict[str, Any]:
    """Every number of the report at full precision, as json.dump takes it."""
    confusion = {
        "rule": evaluation.confusion_rule,
        "class_names": evaluation.class_names,
        "counts": evaluation.confusion,
    }
    calibrations = {
        name: calibrate(values, evaluation.true_ious)._asdict() for name, values in evaluation.iou_scores.items()
    }
    return _plain(
        {
            "metrics": evaluation.metrics,
            "classes": evaluation.classes,
            "curves": evaluation.curves,
            "confusion": confusion,
            "calibration": calibrations,
            "facts": evaluation.facts,
            "seconds": evaluation.seconds,
            "dataset_images": evaluation.dataset_images,
            **({} if own is None else {"own": own.to_json()}),
        }
    )


def _plain(value: Any) -> Any:
    """NumPy's arrays and numbers as lists and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()

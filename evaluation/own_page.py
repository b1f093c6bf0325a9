"""The sections of a report that an evaluation of somebody's own data adds: own.html.j2 has their text."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import charts
from .accept import GOOD_IOUS
from .calibration import calibrate
from .errors import KINDS, error_examples
from .examples import EXAMPLES, EXAMPLES_OF_AN_IMAGE
from .matching import IOUS
from .own_numbers import NOT_CALIBRATED, OwnNumbers
from .own_words import PART_HEAD, OwnReport, accept_rows, number, part_rows, quality_rows
from .page import Cell, Picture, Table, plot_picture, show_example

KIND_TITLES = {
    "merge": "Merged",
    "split": "Split",
    "wrong class": "Wrong class",
    "sloppy": "Sloppy",
    "invention": "Invented",
    "miss": "Missed",
}


def own_view(own: OwnReport, load_image: Callable[[int], np.ndarray]) -> dict[str, Any]:
    """Everything that own.html.j2 shows. load_image: as of write_report."""
    numbers = own.numbers
    return {
        "sentences": own.sentences,
        "has_leaks": bool(own.leaks),
        "threshold": numbers.threshold,
        "threshold_source": numbers.threshold_source,
        "qualities": _table([f"at an IoU of {iou}" for iou in IOUS], quality_rows(numbers)),
        "boundary": [(name, number(value)) for name, value in numbers.boundary.items() if not name.startswith("AR")],
        "parts": {name: _table(PART_HEAD, rows) for name, rows in part_rows(numbers).items() if rows},
        "threshold_plots": _threshold_plots(numbers),
        "accept": _accept(numbers),
        "most_examples": EXAMPLES,
        "most_of_an_image": EXAMPLES_OF_AN_IMAGE,
        "kinds": _kinds(numbers, load_image),
        "model_name": None if own.model_name is None else shlex.quote(own.model_name),
        "model_path": repr(own.model_name),
    }


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], title: str = "") -> Table:
    return Table([title, *head], [(name, [Cell(text) for text in cells]) for name, cells in rows])


def _threshold_plots(numbers: OwnNumbers) -> list[Picture]:
    curve, quality = numbers.curve, numbers.quality
    curves = {"F1": curve.f1, "precision": curve.precision, "recall": curve.recall}
    has_mark = quality.recall is not None and quality.true_positives + quality.false_positives > 0
    mark = (quality.recall, quality.precision) if has_mark else None
    return [
        plot_picture(
            charts.threshold_plot(curve.thresholds, curves, numbers.threshold),
            "F1, precision and recall over the threshold of the score, with the threshold marked",
        ),
        plot_picture(
            charts.marked_precision_recall(curve.precision, curve.recall, mark),
            "Precision over recall at each threshold, with the threshold marked",
        ),
    ]


def _accept(numbers: OwnNumbers) -> dict[str, Any]:
    accept = numbers.accept
    plots, tables = [], {}
    if accept.source != NOT_CALIBRATED:
        for g, iou in enumerate(GOOD_IOUS):
            calibration = calibrate(accept.predicted[:, g], accept.good[:, g].astype(np.float64))
            data = charts.reliability(calibration, f"chance of an IoU of {iou}", f"share with an IoU of {iou}")
            alt = f"Share of masks with a true IoU of {iou} or more in each bin of the stated chance, and their number"
            plots.append(plot_picture(data, alt))
            tables[iou] = _table(["accepted", "of these right"], accept_rows(accept.tables[iou]), "accept above")
    return {
        "source": accept.source,
        "is_known": accept.source != NOT_CALIBRATED,
        "problem": accept.fit.problem if accept.fit else "",
        "is_fitted": accept.fit is not None and accept.fit.calibration is not None,
        "errors": {iou: number(error) for iou, error in accept.errors.items()},
        "plots": plots,
        "tables": tables,
    }


def _kinds(numbers: OwnNumbers, load_image: Callable[[int], np.ndarray]) -> list[dict[str, Any]]:
    examples = error_examples(numbers.errors, numbers.class_names, numbers.titles)
    return [
        {
            "name": kind.replace(" ", "-"),
            "title": KIND_TITLES[kind],
            "meaning": meaning,
            "counts": numbers.error_counts[kind],
            "examples": [show_example(example, load_image) for example in examples[kind]],
        }
        for kind, meaning in KINDS.items()
    ]

"""The curves of a training, from its records: losses.png in the folder of its logs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runtime
import visualize

from .logs import NOT_LOSSES, PLACE, read_records

logger = logging.getLogger(__name__)

_AP_CURVES = {
    "mask AP": "masks, by mask score",
    "mask AP (class score)": "masks, by class score",
    "box AP": "boxes",
}


def save_curves(log_dir: Path) -> None:
    """Draw log_dir/losses.png from log_dir/metrics.jsonl, at the end of an epoch.

    A drawing that fails is logged as a warning: it is no reason to end a training.
    """
    try:
        figure = draw_curves(read_records(log_dir / "metrics.jsonl"), title=log_dir.resolve().name)
        picture = visualize.figure_to_png(figure)
        runtime.write_atomically(log_dir / "losses.png", lambda file: file.write(picture))
    except OSError as error:
        logger.warning("losses.png could not be written: %s", error)
    except Exception:
        logger.warning("losses.png could not be drawn", exc_info=True)


def draw_curves(records: Sequence[Mapping[str, Any]], title: str = "") -> Any:
    """visualize.plot_training of records: losses, learning rate, and average precision if it was measured.

    records: as read_records returns them.

    Returns: matplotlib's figure.
    """
    train, val, evals = (_curves_of(records, kind) for kind in ("train", "val", "eval"))
    losses = {name: curve for name, curve in train.items() if name == "loss" or name not in NOT_LOSSES}
    val_losses = {name.removeprefix("val_"): curve for name, curve in val.items() if not name.endswith("images")}
    ap = {label: evals[name] for name, label in _AP_CURVES.items() if name in evals}
    return visualize.plot_training(losses, val_losses, train.get("learning_rate"), ap, title)


def _curves_of(records: Sequence[Mapping[str, Any]], kind: str) -> dict[str, visualize.Curve]:
    """The curves of all numbers in records of a kind."""
    epoch_steps = {record["epoch"]: record["step"] for record in records if record["kind"] == "train"}
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record["kind"] == kind:
            steps = max(epoch_steps.get(record["epoch"], 1), record["step"], 1)
            epoch = record["epoch"] + record["step"] / steps
            for name, value in record.items():
                if name not in PLACE and value is not None:
                    points.setdefault(name, []).append((epoch, value))
    return {name: tuple(np.array(curve).T) for name, curve in points.items()}

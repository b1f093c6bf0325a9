"""The numbers of an evaluation: their keys, and the one place where a key becomes a name.

Users, logs and files know a number by its name, such as "mask AP50 (class score)". The code knows it by its key,
Metric("mask", "AP50", "class score"), and writes str(key) where a name is needed.
"""

from collections.abc import Mapping
from typing import NamedTuple

AREAS = ("all", "small", "medium", "large")


class Measure(NamedTuple):
    """A kind of average precision."""

    iou: float | None  # the IoU threshold; None stands for the mean over .50, .55 ... .95
    area: str  # one of AREAS: the size of the objects that count


MEASURES = {
    "AP": Measure(None, "all"),
    "AP50": Measure(0.5, "all"),
    "AP75": Measure(0.75, "all"),
    "APs": Measure(None, "small"),
    "APm": Measure(None, "medium"),
    "APl": Measure(None, "large"),
}
CLASS_MEASURES = ("AP", "AP50", "AP75")  # also computed for each class, and drawn as curves

# A ranking is the score by which detections are sorted. A name leaves out the usual ranking of its kind.
_USUAL_RANKING = {"box": "class score", "mask": "mask score", "gain": "mask score"}


class Metric(NamedTuple):
    """The key of a number."""

    kind: str  # "box", "mask", or "gain": what a ranking of masks adds to the ranking by class score
    measure: str  # one of MEASURES, or a recall such as "AR100"
    ranking: str  # "class score", "mask score" or "true IoU"

    def __str__(self) -> str:
        if self.kind == "gain":
            name = "re-scoring gain" if self.measure == "AP" else f"re-scoring gain {self.measure}"
        else:
            name = f"{self.kind} {self.measure}"
        return name if self.ranking == _USUAL_RANKING[self.kind] else f"{name} ({self.ranking})"


class Row(NamedTuple):
    """A row of the tables of average precision: boxes or masks in one ranking, or a gain."""

    title: str
    kind: str  # as in Metric
    ranking: str  # as in Metric
    meaning: str  # for readers of the report

    def metric(self, measure: str) -> Metric:
        """The key of the row's number in the column of a measure."""
        return Metric(self.kind, measure, self.ranking)


ROWS = (
    Row(
        "boxes by class score",
        "box",
        "class score",
        "The overlap is that of boxes. Mask scoring does not change boxes.",
    ),
    Row(
        "masks by class score (A)",
        "mask",
        "class score",
        "The overlap is that of masks, sorted by the class score: Mask R-CNN.",
    ),
    Row(
        "masks by mask score (B)",
        "mask",
        "mask score",
        "The very same masks, sorted by class score x predicted IoU: Mask Scoring R-CNN. Only the order differs from "
        "A.",
    ),
    Row(
        "re-scoring gain (B - A)",
        "gain",
        "mask score",
        "What the new order brings, in points; below zero it does harm. Computed before rounding, so that it may "
        "differ by 0.1 from what the rows above suggest.",
    ),
    Row(
        "upper bound (true IoU)",
        "mask",
        "true IoU",
        "The same masks sorted by class score x true IoU: about the most that a perfect MaskIoU head could reach.",
    ),
)

# Columns of the table of classes: title, and the key of the number
CLASS_COLUMNS = {
    "box AP": Metric("box", "AP", "class score"),
    "mask AP (A)": Metric("mask", "AP", "class score"),
    "mask AP (B)": Metric("mask", "AP", "mask score"),
    "gain (B - A)": Metric("gain", "AP", "mask score"),
    "upper bound": Metric("mask", "AP", "true IoU"),
    "mask AP50": Metric("mask", "AP50", "mask score"),
    "mask AP75": Metric("mask", "AP75", "mask score"),
}

# Further columns where a data set of somebody's own was evaluated: title, and the name of the number
OWN_CLASS_COLUMNS = {
    "F1": "F1 at IoU 0.5",
    "precision": "precision at IoU 0.5",
    "recall": "recall at IoU 0.5",
    "PQ": "PQ at IoU 0.5",
    "boundary AP": "boundary AP",
}

COUNTS = ("images", "detections", "objects", "max_dets")
# The correlation of a score with the true IoU of the masks: the score, and the name of the number
CORRELATIONS = {"predicted IoU": "IoU correlation", "class score": "class score correlation"}


def known_value(numbers: Mapping[str, float], metric: Metric) -> float | None:
    """A number of Evaluation.metrics or of one of its classes; None if there is no object to compute it from.

    An AP of -1 says that there is no object. A gain of -1 is a gain: there, the AP of masks decides.
    """
    precision = Metric("mask", metric.measure, "mask score") if metric.kind == "gain" else metric
    return float(numbers[str(metric)]) if numbers[str(precision)] >= 0 else None


def recall_measures(metrics: Mapping[str, float]) -> list[str]:
    """The average recalls among the metrics: AR1, AR10 ... by their number, then ARs, ARm, ARl."""
    prefix = str(Metric("mask", "AR", "mask score"))
    endings = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    limits = sorted(int(ending) for ending in endings if ending.isdecimal())
    return [f"AR{limit}" for limit in limits] + [f"AR{size}" for size in "sml" if size in endings]

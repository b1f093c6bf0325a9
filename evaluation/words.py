"""The numbers of an evaluation in words: for the terminal and for the report."""

from collections.abc import Mapping

from .metrics import Evaluation
from .names import MEASURES, ROWS, Metric, known_value


def metrics_table(metrics: dict[str, float]) -> str:
    """The numbers of evaluate_results as a table of text: AP in points (0 to 100), a ranking a line."""
    is_known = [metrics[str(Metric("box", measure, "class score"))] >= 0 for measure in MEASURES]  # -1: no such object
    lines = [f"{'':26}" + "".join(f"{measure:>8}" for measure in MEASURES)]
    for row in ROWS:
        sign = "+" if row.kind == "gain" else ""
        values = [f"{100 * metrics[str(row.metric(measure))]:{sign}.1f}" for measure in MEASURES]
        cells = [f"{value if known else '-':>8}" for value, known in zip(values, is_known, strict=True)]
        lines.append(f"{row.title:26}" + "".join(cells))
    lines.append(
        f"{metrics['images']:.0f} images, {metrics['detections']:.0f} detections, at most {metrics['max_dets']:.0f} of "
        f"a class in an image; correlation of predicted and true IoU: {metrics['IoU correlation']:.2f}"
    )
    if left_out := unlabelled_sentence(metrics):
        lines.append(left_out)
    if missing := metrics.get("missing_images", 0):
        lines.append(f"PARTIAL: {missing:.0f} of {metrics['images'] + missing:.0f} images could not be read")
    return "\n".join(lines)


def unlabelled_sentence(metrics: Mapping[str, float]) -> str:
    """How many detections of classes that are not labelled in their images were left out; "" if all are labelled."""
    if "unlabelled_detections" not in metrics:
        return ""
    left_out = count_of(metrics["unlabelled_detections"], "more detection")
    are = "is" if metrics["unlabelled_detections"] == 1 else "are"
    return f"{left_out} {are} of classes that are not labelled in their images: neither right nor wrong, not counted"


def points(value: float | None, signed: bool = False) -> str:
    """AP or a difference of two in points, "38.1" or "+0.9"; "-" for None, and no sign at 0.0."""
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return "0.0" if float(text) == 0 else text


def count_of(number: float, noun: str) -> str:
    """ "1 image", "5,000 images"."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def images_evaluated(count: int, total: int | None) -> str:
    """How many of a data set's images were evaluated, with a warning if not all were. total: None if not known."""
    if total is None:
        return str(count)
    return f"all {count}" if count == total else f"{count} of {total}: a subset, so these are no standard numbers"


def lacks_head(evaluation: Evaluation) -> bool:
    """Whether the model has no MaskIoU head. Without a detection nobody can tell, and the answer is False."""
    return evaluation.mask_ious is None and len(evaluation.class_scores) > 0


def answer(evaluation: Evaluation) -> str:
    """What did re-scoring change? In plain words, also where it lost, changed nothing or had nothing to change."""
    metrics = evaluation.metrics
    images, objects = count_of(metrics["images"], "image"), count_of(metrics["objects"], "object")
    before, after, best = (
        known_value(metrics, Metric("mask", "AP", ranking)) for ranking in ("class score", "mask score", "true IoU")
    )
    if before is None or after is None:
        return f"There is no object in {images}, so that there is no AP; detections: {metrics['detections']:,.0f}."
    if metrics["detections"] == 0:
        return f"The model found nothing in {images} with {objects}: there was nothing to re-score."
    if lacks_head(evaluation):
        return (
            f"Nothing was re-scored: the model has no MaskIoU head, so that masks are ranked by class score alone. "
            f"Mask AP is {points(before)} on {images}."
        )
    gain = points(after - before, signed=True)
    gains = {name: known_value(metrics, Metric("gain", name, "mask score")) for name in ("AP50", "AP75")}
    others = ", ".join(f"{name} {points(value, signed=True)}" for name, value in gains.items())
    if gain == "0.0":
        return (
            f"Re-scoring changed next to nothing: mask AP is {points(after)} either way on {images} ({others} points)."
        )
    verb = "raised" if after > before else "lowered"
    change = (
        f"Re-scoring {verb} mask AP from {points(before)} to {points(after)} on {images}: {gain} points ({others})."
    )
    if after > before and best is not None and best > before:
        change += (
            f" That is {(after - before) / (best - before):.0%} of what a perfect prediction of the IoU would bring."
        )
    return change


def explanations(metrics: Mapping[str, float]) -> dict[str, str]:
    """A plain sentence on each number of the report's tables."""
    most = f"{metrics['max_dets']:.0f}"
    return {
        "AP": "Average precision, COCO's main number: sort the detections of a class by score, go down the list, and "
        "take the mean share of right ones (precision) over all shares of objects found (recall); then the mean over "
        "ten IoU thresholds, .50, .55 ... .95, and over the classes. 100 points is perfect.",
        "AP50": "AP where a detection is right if it overlaps an object of its class by an IoU of .50 or more: was the "
        "object found at all?",
        "AP75": "The same with .75: was it outlined well?",
        "APs, APm, APl": "AP of small, medium and large objects: an area under 32 x 32 pixels, between, over 96 x 96. "
        '"-" says that there is no such object.',
        **{row.title: row.meaning for row in ROWS},
        f"AR1, AR10 ... AR{most}": "Average recall: the share of objects that are found, a mean over the same ten IoU "
        f"thresholds, if only the best 1, 10 ... {most} detections of a class in an image count. No false detection "
        "lowers it, so that it says what is found, and AP how cleanly. Masks are sorted by mask score.",
        "ARs, ARm, ARl": f"Average recall of small, medium and large objects, of the best {most} detections.",
    }

"""The report of an evaluation: a page, and its numbers as JSON and CSV. Knows arrays and numbers, no model or data set.

K classes, 0 is background   N detections   T bins
AP lies in [0, 1] in the files and is in points, 0 to 100, on the page. No such object: -1 in Evaluation and JSON, "-"
on the page, nothing in CSV. report.css and report.js go into the page.
"""

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import runtime
import utils

from . import charts
from .metrics import MEASURES, Evaluation, Example, gain_name

# Rows of the table: title, and the name in Evaluation.metrics of a measure
RANKINGS = {
    "boxes by class score": "box {}",
    "masks by class score (A)": "mask {} (class score)",
    "masks by mask score (B)": "mask {}",
    "re-scoring gain (B - A)": "re-scoring gain {}",
    "upper bound (true IoU)": "mask {} (true IoU)",
}
# Columns of the table of classes: title, and the name in Evaluation.classes
CLASS_COLUMNS = {
    "box AP": "box AP",
    "mask AP (A)": "mask AP (class score)",
    "mask AP (B)": "mask AP",
    "gain (B - A)": "re-scoring gain",
    "upper bound": "mask AP (true IoU)",
    "mask AP50": "mask AP50",
    "mask AP75": "mask AP75",
}


def write_report(evaluation: Evaluation, folder: str | Path, load_image: Callable[[int], np.ndarray]) -> Path:
    """Write report.html, metrics.json, metrics.csv and classes.csv, each of them atomically.

    All four are made before the first is written, so that an error leaves a former report as it was. The page needs no
    other file and no network.

    folder: is made if need be. load_image: gives the picture of an Example's image_id, uint8 [H, W, 3]; whatever it
        raises is written in the picture's place.

    Returns: the path of report.html.
    Raises: ValueError if arrays of the evaluation differ in length, or a number is not finite or missing.
    """
    check_evaluation(evaluation)
    contents = {
        "metrics.json": json.dumps(to_json(evaluation), indent=1, allow_nan=False),
        "metrics.csv": _csv(metrics_rows(evaluation.metrics)),
        "classes.csv": _csv(class_rows(evaluation.classes)),
        "report.html": render(evaluation, load_image),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _write(folder / name, content)
    return folder / "report.html"


def _write(path: Path, content: str) -> None:
    data = content.encode("utf-8", "replace")  # file names may hold bytes that are no text
    runtime.write_atomically(path, lambda file: file.write(data))


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
    wanted = [_metric(pattern, measure) for pattern in RANKINGS.values() for measure in MEASURES]
    wanted += ["images", "detections", "objects", "max_dets", "IoU correlation", "class score correlation"]
    if missing := [name for name in wanted if name not in evaluation.metrics]:
        raise ValueError(f"metrics must have every number of the report; missing: {utils.listed(missing)}")
    if bad := [name for name, value in evaluation.metrics.items() if not np.isfinite(value)]:
        raise ValueError(f"metrics must be finite, these are not: {utils.listed(bad)}")


def _metric(pattern: str, measure: str) -> str:
    return gain_name(measure) if "gain" in pattern else pattern.format(measure)


def _known(metrics: Mapping[str, float], pattern: str, measure: str) -> float | None:
    """A number of the table; None where there is no such object. A gain of -1 is a gain: the AP itself decides."""
    exists = metrics[f"mask {measure}"] if "gain" in pattern else metrics[_metric(pattern, measure)]
    return float(metrics[_metric(pattern, measure)]) if exists >= 0 else None


def recall_measures(metrics: Mapping[str, float]) -> list[str]:
    """Names of the recalls that there are: AR1, AR10 ... by number, then ARs, ARm, ARl."""
    numbers = sorted(int(match[1]) for name in metrics if (match := re.fullmatch(r"mask AR(\d+)", name)))
    return [f"AR{number}" for number in numbers] + [name for name in ("ARs", "ARm", "ARl") if f"mask {name}" in metrics]


def metrics_rows(metrics: Mapping[str, float]) -> list[list[Any]]:
    """The table at full precision: a head, then a row a ranking. Recalls are of boxes and of masks by mask score."""
    recalls = recall_measures(metrics)
    rows: list[list[Any]] = [["ranking", *MEASURES, *recalls]]
    for title, pattern in RANKINGS.items():
        cells = [_known(metrics, pattern, measure) for measure in MEASURES]
        has_recall = pattern in ("box {}", "mask {}")
        rows.append([title, *cells, *(_known(metrics, pattern, name) if has_recall else None for name in recalls)])
    return rows


def _of_class(row: Mapping[str, Any], name: str) -> float | None:
    """As _known, of a row of Evaluation.classes."""
    exists = row["mask AP"] if "gain" in name else row[name]
    return float(row[name]) if exists >= 0 else None


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """AP of each class at full precision: a head, then a row a class."""
    head = ["name", "category_id", "objects", *CLASS_COLUMNS.values()]
    rows = [[row["name"], row["category_id"], row["objects"]] for row in classes]
    numbers = [[_of_class(row, name) for name in CLASS_COLUMNS.values()] for row in classes]
    return [head, *(row + cells for row, cells in zip(rows, numbers, strict=True))]


def calibrate(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Whether predictions are right on average, in bins of what was predicted.

    predicted: float [N]; what lies outside [0, 1] counts in the first or the last bin. true: float [N].

    Returns: "edges" [T + 1]; "counts" [T]; "mean_predicted" and "mean_true" [T], None in an empty bin;
        "expected_error", the mean distance of the two weighted by count, None without detections.
    """
    index = np.clip((np.asarray(predicted) * bins).astype(int), 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values, minlength=bins) for values in (predicted, true)]
    means = [
        [float(total / count) if count else None for total, count in zip(of_bins, counts, strict=True)]
        for of_bins in sums
    ]
    error = float(np.abs(sums[0] - sums[1]).sum() / counts.sum()) if counts.any() else None
    edges = [i / bins for i in range(bins + 1)]
    return {
        "edges": edges,
        "counts": counts.tolist(),
        "mean_predicted": means[0],
        "mean_true": means[1],
        "expected_error": error,
    }


def calibrations(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """calibrate of the predicted IoU, where there is a MaskIoU head, and of the class score."""
    predicted = {"predicted IoU": evaluation.mask_ious, "class score": evaluation.class_scores}
    return {label: calibrate(values, evaluation.true_ious) for label, values in predicted.items() if values is not None}


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Every number of the report at full precision, as json.dump takes it."""
    confusion = {
        "rule": evaluation.confusion_rule,
        "class_names": evaluation.class_names,
        "counts": evaluation.confusion,
    }
    return _plain(
        {
            "metrics": evaluation.metrics,
            "classes": evaluation.classes,
            "curves": evaluation.curves,
            "confusion": confusion,
            "calibration": calibrations(evaluation),
            "facts": evaluation.facts,
            "seconds": evaluation.seconds,
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


############################################################
#  Words
############################################################


def points(value: float | None, signed: bool = False) -> str:
    """AP or a difference of two in points, "38.1" or "+0.9"; "-" for None, and no sign at 0.0."""
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return "0.0" if float(text) == 0 else text


def count_of(number: float, noun: str) -> str:
    """ "1 image", "5,000 images"."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def is_subset(facts: Mapping[str, str]) -> bool:
    return "subset" in facts.get("images", "")


def lacks_head(evaluation: Evaluation) -> bool:
    """Whether the model has no MaskIoU head. Without a detection nobody can tell."""
    return evaluation.mask_ious is None and len(evaluation.class_scores) > 0


def answer(evaluation: Evaluation) -> str:
    """What did re-scoring change? In plain words, also where it lost, changed nothing or had nothing to change."""
    metrics = evaluation.metrics
    images, objects = count_of(metrics["images"], "image"), count_of(metrics["objects"], "object")
    before, after, best = (_known(metrics, f"mask {{}}{kind}", "AP") for kind in (" (class score)", "", " (true IoU)"))
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
    others = ", ".join(
        f"{name} {points(_known(metrics, 're-scoring gain {}', name), signed=True)}" for name in ("AP50", "AP75")
    )
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


def explanations(evaluation: Evaluation) -> dict[str, str]:
    """A plain sentence on each number of the tables."""
    most = f"{evaluation.metrics['max_dets']:.0f}"
    return {
        "AP": "Average precision, COCO's main number: sort the detections of a class by score, go down the list, and "
        "take the mean share of right ones (precision) over all shares of objects found (recall); then the mean over "
        "ten IoU thresholds, .50, .55 ... .95, and over the classes. 100 points is perfect.",
        "AP50": "AP where a detection is right if it overlaps an object of its class by an IoU of .50 or more: was the "
        "object found at all?",
        "AP75": "The same with .75: was it outlined well?",
        "APs, APm, APl": "AP of small, medium and large objects: an area under 32 x 32 pixels, between, over 96 x 96. "
        '"-" says that there is no such object.',
        "boxes by class score": "The overlap is that of boxes. Mask scoring does not change boxes.",
        "masks by class score (A)": "The overlap is that of masks, sorted by the class score: Mask R-CNN.",
        "masks by mask score (B)": "The very same masks, sorted by class score x predicted IoU: Mask Scoring R-CNN. "
        "Only the order differs from A.",
        "re-scoring gain (B - A)": "What the new order brings, in points; below zero it does harm. Computed before "
        "rounding, so that it may differ by 0.1 from what the rows above suggest.",
        "upper bound (true IoU)": "The same masks sorted by class score x true IoU: about the most that a perfect "
        "MaskIoU head could reach.",
        f"AR1, AR10 ... AR{most}": "Average recall: the share of objects that are found, a mean over the same ten IoU "
        f"thresholds, if only the best 1, 10 ... {most} detections of a class in an image count. No false detection "
        "lowers it, so that it says what is found, and AP how cleanly. Masks are sorted by mask score.",
        "ARs, ARm, ARl": f"Average recall of small, medium and large objects, of the best {most} detections.",
    }


############################################################
#  HTML
############################################################


def _text(value: Any) -> str:
    """Text as HTML shows it. Whatever comes from outside goes through here."""
    return html.escape(str(value))


def _cell(text: str, value: float | None = None, bar: str = "") -> str:
    """A cell with a number: what to show, what to sort by, a bar below it."""
    sort = "" if value is None else f' data-value="{value!r}"'
    return f"<td{sort}>{_text(text)}{bar}</td>"


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table that scrolls in a frame of its own.

    head: texts. rows: the text that heads a row, and its cells, which are HTML. kind: CSS classes.
    """
    heads = "".join(f'<th scope="col">{_text(title)}</th>' for title in head)
    body = "".join(f'<tr><th scope="row">{_text(title)}</th>{"".join(cells)}</tr>' for title, cells in rows)
    table = f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="frame" tabindex="0">{table}</div>'


def _image(data: bytes, alt: str, density: int = 1) -> str:
    """An image as a data URI. density: its pixels per pixel of the page."""
    with Image.open(io.BytesIO(data)) as image:
        kind, (width, height) = image.get_format_mimetype(), image.size
    code = base64.b64encode(data).decode()
    size = f'width="{width // density}" height="{height // density}"'
    return f'<img src="data:{kind};base64,{code}" alt="{_text(alt)}" {size}>'


def _plot(data: bytes, alt: str, caption: str = "") -> str:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure class="plot">{_image(data, alt, charts.DENSITY)}{below}</figure>'


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{_text(title)}</h2>{"".join(parts)}</section>'


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_text(text)}</p>'


############################################################
#  Sections
############################################################


def _title(facts: Mapping[str, str]) -> str:
    words = {"of": "model", "on": "data"}
    return "Evaluation" + "".join(f" {word} {facts[name]}" for word, name in words.items() if name in facts)


def _headline(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    tiles = {
        "box AP": points(_known(metrics, "box {}", "AP")),
        "mask AP by class score (A)": points(_known(metrics, "mask {} (class score)", "AP")),
        "mask AP by mask score (B)": points(_known(metrics, "mask {}", "AP")),
        "gain, B - A": points(_known(metrics, "re-scoring gain {}", "AP"), signed=True),
    }
    boxes = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in tiles.items())
    rows = [(name, [f'<td class="words">{_text(value)}</td>']) for name, value in evaluation.facts.items()]
    return (
        f"<header><h1>{_text(_title(evaluation.facts))}</h1>{_paragraph(answer(evaluation), 'answer')}"
        f'<dl class="tiles">{boxes}</dl></header>'
        + _section(
            "facts", "What was evaluated", _table(["", ""], rows, "facts") if rows else _paragraph("Not stated.")
        )
    )


def _ranking_section(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    rows = []
    for title, pattern in RANKINGS.items():
        values = [_known(metrics, pattern, measure) for measure in MEASURES]
        rows.append((title, [_cell(points(value, "gain" in pattern)) for value in values]))
    recalls = recall_measures(metrics)
    found = [
        (title, [_cell(points(_known(metrics, pattern, name))) for name in recalls])
        for title, pattern in (("boxes", "box {}"), ("masks by mask score", "mask {}"))
    ]
    most = metrics["max_dets"]
    note = (
        f"{count_of(metrics['images'], 'image')}, {count_of(metrics['objects'], 'object')}, "
        f"{count_of(metrics['detections'], 'detection')}; the best {most:.0f} of a class in an image count (max_dets)"
        f"{'' if most == 100 else '; the standard is 100'}. AP and AR in points, 0 to 100."
    )
    parts = [_paragraph(note)]
    if is_subset(evaluation.facts):
        parts.append(_paragraph(f"Not to be compared with published numbers: {evaluation.facts['images']}.", "warning"))
    if lacks_head(evaluation):
        parts.append(_paragraph("The model has no MaskIoU head: the mask score is the class score, and B is A."))
    words = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in explanations(evaluation).items())
    parts += [_table(["average precision", *MEASURES], rows, "numbers")]
    if recalls:
        parts += [_table(["average recall", *recalls], found, "numbers")]
    parts += ["<h3>What these numbers mean</h3>", f'<dl class="words">{words}</dl>']
    return _section("numbers", "Average precision", *parts)


def _bar(value: float | None, kind: str, scale: float = 1.0) -> str:
    """A bar below a number: from the left, or, of a gain, from the middle to either side."""
    if value is None:
        return ""
    width = min(abs(value) / scale, 1) * 100
    if kind == "gain":
        side = "left:50%" if value >= 0 else f"left:{50 - width / 2:.1f}%"
        sign = "up" if value >= 0 else "down"
        return f'<i class="bar gain"><b class="{sign}" style="{side};width:{width / 2:.1f}%"></b></i>'
    return f'<i class="bar"><b class="{kind}" style="width:{width:.1f}%"></b></i>'


def _class_section(evaluation: Evaluation) -> str:
    if not evaluation.classes:
        return _section("classes", "Classes", _paragraph("There are no classes."))
    # Best first; classes without objects last
    classes = sorted(evaluation.classes, key=lambda row: -row["mask AP"])
    gains = [gain for row in classes if (gain := _of_class(row, "re-scoring gain")) is not None]
    widest = max([abs(gain) for gain in gains], default=0) or 1
    kinds = {"box AP": "boxes", "mask AP (class score)": "before", "mask AP": "after", "re-scoring gain": "gain"}
    rows = []
    for row in classes:
        cells = [_cell(f"{row['objects']:,.0f}", float(row["objects"]))]
        for name in CLASS_COLUMNS.values():
            value, kind = _of_class(row, name), kinds.get(name, "")
            bar = _bar(value, kind, widest if kind == "gain" else 1) if kind else ""
            cells.append(_cell(points(value, kind == "gain"), value, bar))
        rows.append((row["name"], cells))
    signs = np.sign(gains)
    summary = f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}, {len(gains) or 'none'} with objects."
    if gains and not lacks_head(evaluation):
        summary += f" Re-scoring raised mask AP in {(signs > 0).sum()}, lowered it in {(signs < 0).sum()} and left it "
        summary += f"as it was in {(signs == 0).sum()}."
    hint = "Sorted by mask AP (B)."
    script_hint = '<span class="script" hidden> Click on a heading to sort by it.</span>'
    return _section(
        "classes",
        "Classes",
        _paragraph(summary),
        f"<p>{hint}{script_hint}</p>",
        _table(["class", "objects", *CLASS_COLUMNS], rows, "numbers classes sortable"),
    )


def _curve_section(evaluation: Evaluation) -> str:
    if _known(evaluation.metrics, "mask {}", "AP") is None:
        return _section("curves", "Precision and recall", _paragraph("There are no objects, and so no curves."))
    titles = {"AP50": "IoU of .50 or more", "AP75": "IoU of .75 or more", "AP": "mean over IoU .50 to .95"}
    plots = [
        _plot(
            charts.precision_recall(evaluation.curves, measure, title),
            f"Precision over recall, {title}: boxes, masks by class score, masks by mask score",
        )
        for measure, title in titles.items()
    ]
    text = (
        "Down the list of detections, from the highest score: recall is the share of objects found so far, precision "
        "the share of detections so far that are right; a mean over the classes. The area below a curve is its AP. "
        "Where B lies above A, re-scoring put better masks first."
    )
    return _section("curves", "Precision and recall", _paragraph(text), f'<div class="plots">{"".join(plots)}</div>')


def _confusion_section(evaluation: Evaluation) -> str:
    confusion, names = evaluation.confusion, evaluation.class_names
    objects, false = int(confusion[1:].sum()), int(confusion[0].sum())
    right, missed = int(np.trace(confusion[1:, 1:])), int(confusion[1:, 0].sum())
    parts = [_paragraph(evaluation.confusion_rule)]
    if objects:
        shares = f"{right / objects:.1%} were found as what they are, {(objects - right - missed) / objects:.1%} were "
        shares += f"taken for another class, {missed / objects:.1%} were missed"
        parts.append(_paragraph(f"Of {count_of(objects, 'object')}, {shares}."))
    parts.append(_paragraph(f"{count_of(false, 'detection')} where there is no object."))
    if len(names) <= 12:
        parts.append(_whole_confusion(confusion, names))
        return _section("confusion", "Confusion", *parts)
    plot = _plot(
        charts.confusion_matrix(confusion, names), "Confusion matrix as shades: the table has its largest cells"
    )
    parts.append(f'<div class="frame plotframe" tabindex="0">{plot}</div>')
    parts.append('<div class="tables">')
    for title, head, rows in _largest_confusions(confusion, names):
        parts.append(f"<div><h3>{_text(title)}</h3>")
        parts.append(_table(head, rows, "numbers") if rows else _paragraph("There are none."))
        parts.append("</div>")
    return _section("confusion", "Confusion", *parts, "</div>")


def _whole_confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as a table: count and share of the row, shaded."""
    shares = charts.row_shares(confusion)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, count in enumerate(confusion[i].tolist()):
            share = f"<small>{shares[i, j]:.0%}</small>" if count else ""
            shade = f"background:rgb(0 114 178/{0.6 * shares[i, j]:.3f})"
            cells.append("<td></td>" if i == j == 0 else f'<td style="{shade}">{count:,}{share}</td>')
        rows.append(("no object there" if i == 0 else f"true: {name}", cells))
    head = ["", *("missed" if i == 0 else f"found: {name}" for i, name in enumerate(names))]
    return _table(head, rows, "numbers confusion")


def _largest_confusions(
    confusion: np.ndarray, names: Sequence[str], limit: int = 12
) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Tables of the largest cells off the diagonal: title, head and rows of each."""
    shares = charts.row_shares(confusion)
    pairs = confusion.copy()
    np.fill_diagonal(pairs, 0)

    def largest(counts: np.ndarray) -> list[int]:
        order = np.argsort(-counts, axis=None, kind="stable")[:limit]
        return [int(i) for i in order if counts.flat[i] > 0]

    def numbers(i: int, j: int) -> list[str]:
        return [_cell(f"{confusion[i, j]:,}"), _cell(f"{shares[i, j]:.0%}")]

    inner = [divmod(place, len(names) - 1) for place in largest(pairs[1:, 1:])]
    taken = [(f"{names[i + 1]} \N{RIGHTWARDS ARROW} {names[j + 1]}", numbers(i + 1, j + 1)) for i, j in inner]
    missed = [(names[i + 1], numbers(i + 1, 0)) for i in largest(pairs[1:, 0])]
    false = [(names[j + 1], numbers(0, j + 1)) for j in largest(pairs[0, 1:])]
    return [
        ("Taken for another class", ["true class \N{RIGHTWARDS ARROW} taken for", "objects", "of its objects"], taken),
        ("Missed", ["true class", "objects", "of its objects"], missed),
        ("Found where there is no object", ["predicted class", "detections", "of all such"], false),
    ]


def _calibration_section(evaluation: Evaluation) -> str:
    metrics, heading = evaluation.metrics, "Do scores tell good masks from bad ones?"
    if not len(evaluation.true_ious):
        return _section("calibration", heading, _paragraph("There are no detections."))
    text = (
        "A score is of use for ranking masks if it says how good a mask is. True IoU is the largest IoU of a mask with "
        "an object of its class. First picture: how many detections have which predicted and which true value; on the "
        "dashed line the prediction is right. Second: the mean true IoU of detections with about the same prediction; "
        "a bar that ends below the line says that the prediction is too high, above it too low."
    )
    parts = [_paragraph(text)]
    if lacks_head(evaluation):
        parts.append(_paragraph("The model has no MaskIoU head, so that there is no predicted IoU."))
    correlations = {"predicted IoU": "IoU correlation", "class score": "class score correlation"}
    predicted = {"predicted IoU": evaluation.mask_ious, "class score": evaluation.class_scores}
    for label, calibration in calibrations(evaluation).items():
        caption = (
            f"Correlation of {label} and true IoU: {metrics[correlations[label]]:.3f}. Expected calibration error: "
            f"{calibration['expected_error']:.3f}, the mean distance from the line."
        )
        cloud = charts.density(predicted[label], evaluation.true_ious, label)
        means = charts.reliability(calibration, label)
        plots = _plot(cloud, f"Density of detections by {label} and true IoU") + _plot(
            means, f"Mean true IoU in each bin of the {label}, and how many detections are in it"
        )
        title = label.capitalize().replace("iou", "IoU")
        parts.append(f'<h3>{_text(title)}</h3>{_paragraph(caption)}<div class="plots">{plots}</div>')
        parts.append(f"<details><summary>The bins as numbers</summary>{_bins(calibration, label)}</details>")
    return _section("calibration", heading, *parts)


def _bins(calibration: Mapping[str, Any], label: str) -> str:
    edges = calibration["edges"]
    rows = []
    for i, count in enumerate(calibration["counts"]):
        means = [calibration[name][i] for name in ("mean_predicted", "mean_true")]
        cells = [_cell("-" if mean is None else f"{mean:.3f}") for mean in means]
        rows.append((f"{edges[i]:.1f} to {edges[i + 1]:.1f}", [_cell(f"{count:,}"), *cells]))
    return _table([label, "detections", "mean predicted", "mean true IoU"], rows, "numbers")


GALLERIES = {
    "overrated": (
        "High class score, poor mask",
        "The model is sure of the class, yet the mask fits badly. Ranked by class score, such masks stand before good "
        "ones: this is what mask scoring is about.",
    ),
    "corrected": (
        "Put right by the mask score",
        "The mask score lies far below the class score, and rightly so: the mask is poor, and the MaskIoU head saw it.",
    ),
    "best": ("Best masks", "High scores, and masks that fit."),
}


def _gallery_section(evaluation: Evaluation, load_image: Callable[[int], np.ndarray]) -> str:
    text = "In blue the predicted mask, outlined in yellow the true object that it overlaps most."
    parts = [_paragraph(text)]
    for name, (title, meaning) in GALLERIES.items():
        examples = evaluation.examples.get(name, [])
        figures = "".join(_example(example, load_image) for example in examples)
        shown = f'<div class="gallery">{figures}</div>' if examples else _paragraph("There is none.")
        parts.append(f'<div id="{name}"><h3>{_text(title)}</h3>{_paragraph(meaning)}{shown}</div>')
    return _section("examples", "Examples", *parts)


def _example(example: Example, load_image: Callable[[int], np.ndarray]) -> str:
    try:
        data = charts.picture(example, load_image(example.image_id))
        shown = _image(data, f"{example.class_name} in {example.title}: predicted mask and outline of the true object")
    except Exception as error:  # a data set may raise anything; a report without a picture is better than none
        shown = _paragraph(f"No picture: {type(error).__name__}: {error}", "missing")
    scores = {
        "class score": example.class_score,
        "predicted IoU": example.mask_iou,
        "mask score": example.mask_score,
        "true IoU": example.true_iou,
    }
    numbers = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{'-' if value is None else f'{value:.2f}'}</dd></div>"
        for name, value in scores.items()
    )
    caption = f"<strong>{_text(example.class_name)}</strong> <span>{_text(example.title)}</span><dl>{numbers}</dl>"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _timing_section(evaluation: Evaluation) -> str:
    seconds = evaluation.seconds
    stages = {name: value for name, value in seconds.items() if name not in ("total", "images")}
    total, images = seconds.get("total", 0), seconds.get("images", 0)
    if not total:
        return _section("timing", "Time", _paragraph("Nothing was timed."))
    rows = [
        (name, [_cell(f"{value:,.1f}"), _cell(f"{value / total:.0%}", bar=_bar(value / total, "boxes"))])
        for name, value in stages.items()
    ]
    rows.append(("total", [_cell(f"{total:,.1f}"), "<td></td>"]))
    text = f"{count_of(images, 'image')} in {total:,.1f} s: {images / total:.2f} images/s."
    if sum(stages.values()) > total:
        text += " Stages run side by side, so that they add up to more than the total."
    return _section("timing", "Time", _paragraph(text), _table(["stage", "seconds", "of the total"], rows, "numbers"))


############################################################
#  Page
############################################################

_SECTIONS = {
    "facts": "What was evaluated",
    "numbers": "AP",
    "classes": "Classes",
    "curves": "Curves",
    "confusion": "Confusion",
    "calibration": "Calibration",
    "examples": "Examples",
    "timing": "Time",
}


def render(evaluation: Evaluation, load_image: Callable[[int], np.ndarray]) -> str:
    """The page as one HTML document, which loads nothing.

    The browser is told to run its own script only and to fetch nothing, whatever a class or a file is called.
    """
    style, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#{name}">{_text(title)}</a>' for name, title in _SECTIONS.items())
    parts = [
        f"<nav>{links}</nav>",
        _headline(evaluation),
        _ranking_section(evaluation),
        _class_section(evaluation),
        _curve_section(evaluation),
        _confusion_section(evaluation),
        _calibration_section(evaluation),
        _gallery_section(evaluation, load_image),
        _timing_section(evaluation),
    ]
    files = "The same numbers at full precision: metrics.json, metrics.csv and classes.csv beside this page."
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(_title(evaluation.facts))}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<footer>{files}</footer>\n<script>{script}</script>\n</body>\n</html>\n"
    )

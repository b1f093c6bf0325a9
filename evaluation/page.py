"""The page of a report: page.html.j2 has its text, this file makes the values that it shows.

K classes, 0 is background
AP is in points, 0 to 100; "-" stands where there is no object to compute it from. report.css and report.js go into the
page.
"""

import base64
import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import visualize

from . import charts, words
from .calibration import Calibration, calibrate
from .examples import Example
from .metrics import Evaluation
from .names import CLASS_COLUMNS, CORRELATIONS, MEASURES, ROWS, Metric, known_value, recall_measures


class Bar(NamedTuple):
    """A bar below a number: from the left, or, of a gain, from the middle to either side."""

    css: str  # classes of the whole bar
    color: str  # class of its filled part
    style: str  # where its filled part is


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    sort_by: float | None = None
    bar: Bar | None = None
    note: str = ""  # in small print below the text
    shade: float | None = None  # in [0, 1], of the background
    css: str = ""


class Table(NamedTuple):
    """A table: the texts of its head, the title and the cells of each row, and its CSS classes."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    css: str = "numbers"


class Picture(NamedTuple):
    """An image inside the page."""

    uri: str
    alt: str
    width: int  # as shown
    height: int


@functools.cache
def template(name: str) -> Any:
    """A page's jinja2.Template, a file of this folder. What it shows is escaped."""
    import jinja2  # here: detections come long before a page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names, file names and error messages come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count_of": words.count_of, "percent": "{:.1%}".format}
    return environment.get_template(name)


def render(
    evaluation: Evaluation, load_image: Callable[[int], np.ndarray], own: Mapping[str, Any] | None = None
) -> str:
    """The page as one HTML document, which loads nothing. own: of own_page.own_view.

    The page's policy lets the browser run the page's own script only and fetch nothing, whatever a class or a file is
    called.
    """
    style, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    view = {**page_view(evaluation, load_image), "own": own}
    return template("page.html.j2").render(view, colors=_colors(), style=style, script=script, script_digest=digest)


def _colors() -> dict[str, str]:
    """The colours that the page shares with its plots, as CSS has them; on a dark ground, a quarter lighter."""
    colors = {"before": visualize.VERMILION, "after": visualize.BLUE}
    lighter = {f"{name}_in_dark": [0.75 * channel + 0.25 for channel in color] for name, color in colors.items()}
    numbers = {
        name: " ".join(f"{255 * channel:.0f}" for channel in color) for name, color in (colors | lighter).items()
    }
    return {"counts": numbers["after"], **{name: f"rgb({text})" for name, text in numbers.items()}}


def page_view(evaluation: Evaluation, load_image: Callable[[int], np.ndarray]) -> dict[str, Any]:
    """Everything that page.html.j2 shows, as texts, numbers, tables and pictures."""
    metrics, facts = evaluation.metrics, evaluation.facts
    parts = {"of": facts.get("model"), "on": facts.get("data")}
    tiles = {
        "box AP": Metric("box", "AP", "class score"),
        "mask AP by class score (A)": Metric("mask", "AP", "class score"),
        "mask AP by mask score (B)": Metric("mask", "AP", "mask score"),
        "gain, B - A": Metric("gain", "AP", "mask score"),
    }
    return {
        "title": "Evaluation" + "".join(f" {word} {text}" for word, text in parts.items() if text is not None),
        "answer": words.answer(evaluation),
        "tiles": {title: _points(metrics, metric) for title, metric in tiles.items()},
        "facts": Table(["", ""], [(name, [Cell(text, css="words")]) for name, text in facts.items()], "facts"),
        "metrics": metrics,
        "is_subset": evaluation.is_subset,
        "images_evaluated": words.images_evaluated(int(metrics["images"]), evaluation.dataset_images),
        "lacks_head": words.lacks_head(evaluation),
        "rankings": _rankings(metrics),
        "recalls": _recalls(metrics),
        "explanations": words.explanations(metrics),
        "classes": _classes(evaluation),
        "curves": _curves(evaluation),
        "confusion": _confusion(evaluation),
        "calibrations": _calibrations(evaluation),
        "galleries": _galleries(evaluation, load_image),
        "timing": _timing(evaluation.seconds),
    }


def _points(numbers: Mapping[str, float], metric: Metric) -> str:
    return words.points(known_value(numbers, metric), signed=metric.kind == "gain")


def inline_picture(data: bytes, alt: str, density: int = 1) -> Picture:
    """The image of a PNG or JPEG file. density: pixels of the image per pixel of the page."""
    with Image.open(io.BytesIO(data)) as image:
        kind, (width, height) = image.get_format_mimetype(), image.size
    return Picture(f"data:{kind};base64,{base64.b64encode(data).decode()}", alt, width // density, height // density)


def plot_picture(data: bytes, alt: str) -> Picture:
    """The image of a plot of charts."""
    return inline_picture(data, alt, charts.DENSITY)


############################################################
#  Sections of the page
############################################################


def _rankings(metrics: Mapping[str, float]) -> Table:
    rows = [(row.title, [Cell(_points(metrics, row.metric(measure))) for measure in MEASURES]) for row in ROWS]
    return Table(["average precision", *MEASURES], rows)


def _recalls(metrics: Mapping[str, float]) -> Table | None:
    recalls = recall_measures(metrics)
    kinds = {"boxes": ("box", "class score"), "masks by mask score": ("mask", "mask score")}
    rows = [
        (title, [Cell(_points(metrics, Metric(kind, name, ranking))) for name in recalls])
        for title, (kind, ranking) in kinds.items()
    ]
    return Table(["average recall", *recalls], rows) if recalls else None


# How the bars below the numbers of a class are filled
_BAR_COLORS = {"box AP": "boxes", "mask AP (A)": "before", "mask AP (B)": "after"}


def _bar(share: float, color: str) -> Bar:
    """A bar from the left. share: filled part, from 0; 1 and more fill the bar."""
    return Bar("bar", color, f"width:{min(abs(share), 1) * 100:.1f}%")


def _gain_bar(share: float) -> Bar:
    """A bar from the middle: to the right if the share is positive, to the left if it is negative."""
    width = min(abs(share), 1) * 100
    left = "50%" if share >= 0 else f"{50 - width / 2:.1f}%"
    return Bar("bar gain", "up" if share >= 0 else "down", f"left:{left};width:{width / 2:.1f}%")


def _classes(evaluation: Evaluation) -> dict[str, Any] | None:
    """The table of classes, best first and classes without objects last, and how many classes gained."""
    after, gain = CLASS_COLUMNS["mask AP (B)"], CLASS_COLUMNS["gain (B - A)"]
    gains = [value for row in evaluation.classes if (value := known_value(row, gain)) is not None]
    widest = max((abs(value) for value in gains), default=0) or 1
    rows = []
    for row in sorted(evaluation.classes, key=lambda row: -row[str(after)]):
        cells = [Cell(f"{row['objects']:,.0f}", float(row["objects"]))]
        for title, metric in CLASS_COLUMNS.items():
            value, bar = known_value(row, metric), None
            if value is not None and metric == gain:
                bar = _gain_bar(value / widest)
            elif value is not None and title in _BAR_COLORS:
                bar = _bar(value, _BAR_COLORS[title])
            cells.append(Cell(_points(row, metric), value, bar))
        rows.append((row["name"], cells))
    if not rows:
        return None
    signs = np.sign(gains)
    return {
        "count": len(rows),
        "with_objects": len(gains),
        "raised": (signs > 0).sum(),
        "lowered": (signs < 0).sum(),
        "unchanged": (signs == 0).sum(),
        "table": Table(["class", "objects", *CLASS_COLUMNS], rows, "numbers classes sortable"),
    }


def _curves(evaluation: Evaluation) -> list[Picture]:
    """Plots of precision over recall; none without objects."""
    if known_value(evaluation.metrics, Metric("mask", "AP", "mask score")) is None:
        return []
    titles = {"AP50": "IoU of .50 or more", "AP75": "IoU of .75 or more", "AP": "mean over IoU .50 to .95"}
    return [
        plot_picture(
            charts.precision_recall(evaluation.curves, measure, title),
            f"Precision over recall, {title}: boxes, masks by class score, masks by mask score",
        )
        for measure, title in titles.items()
    ]


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    """Shares of the objects; the matrix itself if it is small, else a plot and tables of its largest cells."""
    confusion, names = evaluation.confusion, evaluation.class_names
    objects, right, missed = int(confusion[1:].sum()), int(np.trace(confusion[1:, 1:])), int(confusion[1:, 0].sum())
    counted, is_small = max(objects, 1), len(names) <= 12
    view = {
        "rule": evaluation.confusion_rule,
        "objects": objects,
        "right": right / counted,
        "mistaken": (objects - right - missed) / counted,
        "missed": missed / counted,
        "false": int(confusion[0].sum()),
    }
    if is_small:
        return view | {"whole": _whole_confusion(confusion, names)}
    alt = "Confusion matrix as shades: the table has its largest cells"
    plot = plot_picture(charts.confusion_matrix(confusion, names), alt)
    return view | {"whole": None, "plot": plot, "largest": _largest_confusions(confusion, names)}


def _whole_confusion(confusion: np.ndarray, names: Sequence[str]) -> Table:
    """Each cell: count, share of the row as a note and as a shade."""
    shares = charts.row_shares(confusion)
    rows = []
    for i, name in enumerate(names):
        cells = [
            Cell(f"{count:,}", note=f"{share:.0%}" if count else "", shade=share)
            for count, share in zip(confusion[i].tolist(), shares[i].tolist(), strict=True)
        ]
        rows.append((f"true: {name}", cells) if i else ("no object there", [Cell(""), *cells[1:]]))
    return Table(["", "missed", *(f"found: {name}" for name in names[1:])], rows, "numbers confusion")


def _largest_confusions(confusion: np.ndarray, names: Sequence[str], limit: int = 12) -> dict[str, Table]:
    """Tables of the largest cells off the diagonal, by their titles."""
    shares = charts.row_shares(confusion)
    true, predicted = np.indices(confusion.shape)  # [K, K] each
    arrow = "\N{RIGHTWARDS ARROW}"
    parts = {  # title of the table: its head, its cells, the title of a row
        "Taken for another class": (
            [f"true class {arrow} taken for", "objects", "of its objects"],
            (true > 0) & (predicted > 0) & (true != predicted),
            f"{{true}} {arrow} {{predicted}}",
        ),
        "Missed": (["true class", "objects", "of its objects"], (true > 0) & (predicted == 0), "{true}"),
        "Found where there is no object": (
            ["predicted class", "detections", "of all such"],
            (true == 0) & (predicted > 0),
            "{predicted}",
        ),
    }
    tables = {}
    for title, (head, is_part, row_title) in parts.items():
        counts = np.where(is_part, confusion, 0)
        rows = []
        for place in np.argsort(-counts, axis=None, kind="stable")[:limit].tolist():
            i, j = divmod(place, len(names))
            if counts[i, j] > 0:
                cells = [Cell(f"{counts[i, j]:,}"), Cell(f"{shares[i, j]:.0%}")]
                rows.append((row_title.format(true=names[i], predicted=names[j]), cells))
        tables[title] = Table(head, rows)
    return tables


def _calibrations(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Plots and numbers of each score that may say the true IoU; none without detections."""
    if not len(evaluation.true_ious):
        return []
    sections = []
    for name, values in evaluation.iou_scores.items():
        calibration = calibrate(values, evaluation.true_ious)
        density = charts.density(values, evaluation.true_ious, name)
        reliability = charts.reliability(calibration, name)
        sections.append(
            {
                "name": name,
                "title": name[0].upper() + name[1:],
                "correlation": evaluation.metrics[CORRELATIONS[name]],
                "expected_error": calibration.expected_error,
                "plots": [
                    plot_picture(density, f"Density of detections by {name} and true IoU"),
                    plot_picture(
                        reliability, f"Mean true IoU in each bin of the {name}, and how many detections are in it"
                    ),
                ],
                "bins": _bins(calibration, name),
            }
        )
    return sections


def _bins(calibration: Calibration, name: str) -> Table:
    rows = []
    for i, count in enumerate(calibration.counts):
        means = calibration.mean_predicted[i], calibration.mean_true[i]
        cells = [Cell(f"{count:,}"), *(Cell("-" if mean is None else f"{mean:.3f}") for mean in means)]
        rows.append((f"{calibration.edges[i]:.1f} to {calibration.edges[i + 1]:.1f}", cells))
    return Table([name, "detections", "mean predicted", "mean true IoU"], rows)


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


def _galleries(evaluation: Evaluation, load_image: Callable[[int], np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "title": title,
            "meaning": meaning,
            "examples": [show_example(example, load_image) for example in evaluation.examples.get(name, [])],
        }
        for name, (title, meaning) in GALLERIES.items()
    ]


def show_example(example: Example, load_image: Callable[[int], np.ndarray]) -> dict[str, Any]:
    """What the template shows of an example: the picture, or why there is none, and the scores."""
    image, message = None, ""
    try:
        data = charts.picture(example, load_image(example.image_id))
        image = inline_picture(
            data, f"{example.class_name} in {example.title}: predicted mask and outline of the true object"
        )
    except Exception as error:  # a data set may raise anything; a report without a picture is better than none
        message = f"{type(error).__name__}: {error}"
    scores = {
        "class score": example.class_score,
        "predicted IoU": example.mask_iou and min(max(example.mask_iou, 0.0), 1.0),  # as mask scores take it
        "mask score": example.mask_score,
        "true IoU": example.true_iou,
    }
    names = {"class_name": example.class_name, "title": example.title}
    has_scores = example.class_score is not None  # not of an object that was missed
    return {"image": image, "error": message, "scores": scores if has_scores else {}, **names}


def _timing(seconds: Mapping[str, float]) -> dict[str, Any] | None:
    total, images = seconds.get("total", 0), seconds.get("images", 0)
    if not total:
        return None
    parts = {name: value for name, value in seconds.items() if name not in ("total", "images")}
    rows = [
        (name, [Cell(f"{value:,.1f}"), Cell(f"{value / total:.0%}", bar=_bar(value / total, "boxes"))])
        for name, value in parts.items()
    ]
    rows.append(("total", [Cell(f"{total:,.1f}"), Cell("")]))
    table = Table(["stage", "seconds", "of the total"], rows)
    return {"total": total, "images": images, "overlaps": sum(parts.values()) > total, "table": table}

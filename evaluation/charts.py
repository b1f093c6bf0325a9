"""The pictures of a report: plots as PNG, examples as JPEG. Knows arrays, not pages.

K classes, 0 is background   N detections
A plot has twice the pixels that it is shown with, and text of 11 pixels and more. Colours and figures are visualize's.
Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from PIL import Image

import fonts
import utils
import visualize
from visualize import BLUE, DARK_GRAY, SKY_BLUE, VERMILION, YELLOW

from .calibration import Calibration
from .examples import Example
from .names import Metric

DENSITY = 2  # pixels of a plot per pixel on the page
PICTURE_SIDE = 320  # longer side of an example, pixels
_SMALL, _NORMAL = 9, 10  # points: 12 and 13 pixels

############################################################
#  Plots
############################################################


def _figure(width: int, height: int) -> Any:
    """A figure of this size on the page, in pixels."""
    return visualize.new_figure(width / 96, height / 96, dpi=96, layout="constrained")


def _png(figure: Any) -> bytes:
    return visualize.figure_to_png(figure, DENSITY)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=_NORMAL)
    axes.set_xlabel(x, fontsize=_SMALL)
    axes.set_ylabel(y, fontsize=_SMALL)
    axes.tick_params(labelsize=_SMALL)


def _unit_square(axes: Any) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])


def _write(axes: Any, text: str) -> None:
    """Write in the middle of axes that have nothing to show."""
    style = {"ha": "center", "va": "center", "fontsize": _NORMAL, "color": DARK_GRAY, "backgroundcolor": "white"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)


# Kind and ranking of a curve, label, colour, dashes: the dashes tell curves apart without colour, too
_CURVES = (
    ("box", "class score", "boxes", DARK_GRAY, ":"),
    ("mask", "class score", "masks, class score (A)", VERMILION, "--"),
    ("mask", "mask score", "masks, mask score (B)", BLUE, "-"),
)


def precision_recall(curves: Mapping[str, np.ndarray], measure: str, title: str) -> bytes:
    """Precision over recall of boxes and of masks in both rankings.

    curves: precision [101] by name, as in Evaluation. measure: "AP", "AP50" or "AP75".

    Returns: a PNG.
    """
    figure = _figure(360, 320)
    axes = figure.subplots()
    _label(axes, title, "recall", "precision")
    _unit_square(axes)
    axes.set_ylim(0, 1.03)  # a precision of 1 does not hide in the frame
    axes.grid(alpha=0.3)
    for kind, ranking, label, color, dashes in _CURVES:
        precision = np.asarray(curves[str(Metric(kind, measure, ranking))])
        if (precision >= 0).all():
            recall = np.linspace(0, 1, len(precision))
            axes.plot(recall, precision, color=color, linestyle=dashes, linewidth=1.8, label=label)
    if axes.lines:
        axes.legend(fontsize=_SMALL, loc="lower left", framealpha=0.8)
    else:
        _write(axes, "no objects")
    return _png(figure)


############################################################
#  Calibration
############################################################


def density(predicted: np.ndarray, true: np.ndarray, label: str) -> bytes:
    """Which true IoUs detections of a predicted value have: visualize's plot, of one size for any N.

    predicted, true: float [N]; values outside [0, 1] are drawn at the edge. label: names the prediction.

    Returns: a PNG.
    """
    figure = _figure(360, 320)
    axes = figure.subplots()
    visualize.plot_agreement(axes, predicted, true, label)
    axes.title.set_fontsize(_SMALL)  # it is longer than the plot is wide
    if not len(true):
        _write(axes, "no detections")
    return _png(figure)


def reliability(calibration: Calibration, label: str, truth: str = "mean true IoU") -> bytes:
    """The mean of the truth in each bin of the prediction and, below, the number of detections in it.

    calibration: of calibrate(). label: names the prediction. truth: names the mean of the truth.

    Returns: a PNG.
    """
    figure = _figure(360, 380)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    _label(upper, f"is the {label} right?", "", truth)
    _label(lower, "", label, "detections")
    _unit_square(upper)
    edges = np.array(calibration.edges)
    counts = np.array(calibration.counts)
    widths = np.diff(edges)
    filled = counts > 0
    true = np.array([0.0 if mean is None else mean for mean in calibration.mean_true])
    style = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(edges[:-1][filled], true[filled], widths[filled], color=BLUE, **style)
    upper.plot([0, 1], [0, 1], color=VERMILION, linestyle="--", linewidth=1.4, label="right on average")
    upper.legend(fontsize=_SMALL, loc="upper left", framealpha=0.8)
    lower.bar(edges[:-1], counts, widths, color=DARK_GRAY, **style)
    lower.set_ylim(0, max(1.05 * counts.max(), 1))
    most = max(int(counts.max()), 1)
    lower.set_yticks([0, most], ["0", f"{most:,}"])
    if not filled.any():
        _write(upper, "no detections")
    return _png(figure)


############################################################
#  Threshold and chance
############################################################


def threshold_plot(thresholds: np.ndarray, curves: Mapping[str, np.ndarray], chosen: float) -> bytes:
    """F1, precision and recall over the threshold, which is marked.

    thresholds: float64 [C]. curves: [C] by label, in the order F1, precision, recall.

    Returns: a PNG.
    """
    figure = _figure(360, 320)
    axes = figure.subplots()
    _label(axes, "what a threshold keeps, IoU .50", "threshold of the score", "share")
    _unit_square(axes)
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    styles = ((BLUE, "-"), (VERMILION, "--"), (DARK_GRAY, ":"))
    for (label, values), (color, dashes) in zip(curves.items(), styles, strict=True):
        axes.plot(thresholds, values, color=color, linestyle=dashes, linewidth=1.8, label=label)
    axes.axvline(chosen, color="black", linewidth=1.2, label=f"{chosen:.2f}")
    if len(thresholds):
        axes.legend(fontsize=_SMALL, loc="lower center", framealpha=0.8)
    else:
        _write(axes, "no objects, or no detections")
    return _png(figure)


def marked_precision_recall(precision: np.ndarray, recall: np.ndarray, mark: tuple[float, float] | None) -> bytes:
    """Precision over recall of all classes together, at each threshold, with the chosen one marked.

    precision, recall: float64 [C]. mark: (recall, precision) at the threshold; None without detections.

    Returns: a PNG.
    """
    figure = _figure(360, 320)
    axes = figure.subplots()
    _label(axes, "precision over recall, IoU .50", "recall", "precision")
    _unit_square(axes)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    if len(recall):
        axes.plot(recall, precision, color=BLUE, linewidth=1.8, label="all thresholds")
    if mark is not None:
        axes.plot(*mark, "o", color=VERMILION, markersize=9, label="the threshold")
    if axes.lines:
        axes.legend(fontsize=_SMALL, loc="lower left", framealpha=0.8)
    else:
        _write(axes, "no objects, or no detections")
    return _png(figure)


############################################################
#  Confusion matrix
############################################################


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """The matrix [K, K] with each row divided by its sum; rows of zeros stay. Returns: float64 [K, K]."""
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str]) -> bytes:
    """The whole matrix as shades of each row's shares, with as many class names as fit.

    confusion: int [K, K] as in Evaluation. class_names: K.

    Returns: a PNG, to be shown 560 pixels wide.
    """
    from matplotlib.colors import PowerNorm

    figure = _figure(560, 500)
    axes = figure.subplots()
    shares = row_shares(confusion)
    # Root scale: a hundredth of a row is still seen
    style = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1), "interpolation": "nearest", "aspect": "equal"}
    shades = axes.imshow(shares, **style)
    _label(axes, "", "predicted class", "true class")
    step = -(-len(class_names) * 15 // 350)  # 15 pixels a name, 350 for all
    places = range(0, len(class_names), step)
    names = [_short(class_names[place]) for place in places]
    fonts.name_ticks(axes.xaxis, ["missed", *names[1:]], places, rotation=90)
    fonts.name_ticks(axes.yaxis, ["no object", *names[1:]], places)
    bar = figure.colorbar(shades, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "20%", "40%", "60%", "80%", "100%"])
    bar.set_label("share of the row", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    return _png(figure)


def _short(name: str, limit: int = 16) -> str:
    """A class name as the plot has room for it. The page's tables have all of it."""
    short = fonts.one_line(name)
    return short if len(short) <= limit else short[: limit - 1] + "…"


############################################################
#  Examples
############################################################


def picture(example: Example, image: np.ndarray) -> bytes:
    """The surroundings of detections and objects: masks tinted blue, true objects outlined in yellow.

    image: [H, W, C], as utils.viewable takes it; or a data.large.RegionImage, of which the surroundings are read.

    Returns: a JPEG of at most 320 x 320 pixels.
    Raises: ValueError if a mask is damaged or has another size than the image.
    """
    found, truths = _codes(example)
    for code in (*found, *truths):
        if tuple(code["size"]) != tuple(image.shape[:2]):
            raise ValueError(
                f"the image has {image.shape[0]} x {image.shape[1]} pixels and a mask in it {code['size'][0]} x "
                f"{code['size'][1]}; was the file changed since?"
            )
    y1, x1, y2, x2 = window = _window(example, image.shape)
    part = utils.viewable(image)[y1:y2, x1:x2] if isinstance(image, np.ndarray) else utils.viewable(image.read(*window))
    scale = PICTURE_SIDE / max(y2 - y1, x2 - x1)
    size = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)
    crop = np.array(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC))
    masks = [_mask_in(code, window) for code in (*found, *truths)]
    masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks]
    for mask in masks[: len(found)]:
        visualize.apply_mask(crop, mask, SKY_BLUE, alpha=0.55)
    for mask in masks[1 : len(found)]:
        _outline(crop, mask, SKY_BLUE)
    for mask in masks[len(found) :]:
        _outline(crop, mask, YELLOW)
    file = io.BytesIO()
    Image.fromarray(crop).save(file, format="JPEG", quality=82)
    return file.getvalue()


def _mask_in(code: dict, window: Sequence[int]) -> np.ndarray:
    """The pixels of an RLE in a window (y1, x1, y2, x2), bool [y2 - y1, x2 - x1]."""
    y1, x1, y2, x2 = window
    y, x, part = utils.rle_to_crop(code, window)
    mask = np.zeros((y2 - y1, x2 - x1), bool)
    if part.size:
        mask[y - y1 : y - y1 + part.shape[0], x - x1 : x - x1 + part.shape[1]] = part
    return mask


def _codes(example: Example) -> tuple[list[dict], list[dict]]:
    """The RLEs of the detections and of the objects of an example."""
    found = [code for code in (example.mask, *example.more_masks) if code is not None]
    return found, [code for code in (example.truth, *example.more_truths) if code is not None]


def _window(example: Example, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The part of an image to show: box and masks with a margin, at least 32 pixels, sides at most 2 to 1."""
    boxes = [example.box]
    found, truths = _codes(example)
    boxes += [utils.rle_to_bbox(code) for code in (*found, *truths) if utils.rle_area(code)]
    lows, highs = np.min(boxes, axis=0)[:2], np.max(boxes, axis=0)[2:]
    sides = 1.3 * (highs - lows) + 8
    sides = np.maximum(sides, [max(32, sides[1] / 2), max(32, sides[0] / 2)])
    middle = (lows + highs) / 2
    limits = np.array(shape[:2])
    lows = np.clip(np.floor(middle - sides / 2), 0, limits - 1).astype(int)
    highs = np.clip(np.ceil(middle + sides / 2), lows + 1, limits).astype(int)
    return int(lows[0]), int(lows[1]), int(highs[0]), int(highs[1])


def _outline(image: np.ndarray, mask: np.ndarray, color: Sequence[float]) -> None:
    """Draw in place a line along the inside of a mask and a black line around it, to be seen on any image."""
    image[scipy.ndimage.binary_dilation(mask) & ~mask] = 0
    image[mask & ~scipy.ndimage.binary_erosion(mask, iterations=2)] = np.round(255 * np.array(color)).astype(np.uint8)

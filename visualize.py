"""Pictures of detections, of every stage of the network, and of a training; tables. Knows arrays, not models.

Names and arguments are Matterport's. Each display_*, plot_*, draw_boxes and draw_rois returns matplotlib's figure and
takes

    save_path   a file to write, atomically; its suffix decides its format: .png, .jpg, .pdf, .svg
    show        True opens a window; only then is pyplot imported. A notebook shows the figure that a cell returns.
    ax          Axes to draw into, in some functions; the returned figure is theirs then
    labels      where there are captions: "auto" writes those that hide nothing (see captions.py), or "all", or "none"

A picture of an image has the image's aspect, and no margin but for a title. draw_instances draws into an array, without
matplotlib: it is fast enough for video. new_figure makes all figures, and the palette has all colours.

    H, W image height and width   N instances   C channels
    Boxes are (y1, x1, y2, x2) in pixels; (y2, x2) lies outside. In a figure, (0, 0) is the image's outer corner.
    Masks are bool [H, W, N], a list of N COCO run-length codes, or a list of N crops (y1, x1, bool [h, w]).
    Functions take tensors wherever they take arrays.
"""

import functools
import html
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.measure
from PIL import Image, ImageDraw

import fonts
import runtime
import utils
from captions import DIGITS_TO_ZERO, Caption, fit_captions
from config import Config
from evaluation.calibration import calibrate, correlation

Color = Sequence[float]  # RGB in [0, 1]
Crop = tuple[int, int, np.ndarray]  # y1, x1, bool [h, w]: a mask inside its bounds

############################################################
#  Colours
############################################################

# Plots: Okabe and Ito's colours, which differ for colour-blind eyes as well, and a gray for text and counts.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY_BLUE, YELLOW = (
    tuple(channel / 255 for channel in bytes.fromhex(code))
    for code in ("0072b2", "d55e00", "009e73", "e69f00", "cc79a7", "56b4e9", "f0e442")
)
DARK_GRAY, LIGHT_GRAY = (1 / 3,) * 3, (0.62,) * 3
CURVES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY_BLUE, DARK_GRAY)  # in this order; all can be read on white

# Images: the ground truth is mint, predictions are red.
TRUTH, PREDICTION = (0.4, 1.0, 0.8), (1.0, 0.1, 0.0)

# Instances: ten colours as far apart as can be for normal and for colour-blind eyes, and farthest from those before and
# after: at least 26 in CIELAB for deuteranopes, 41 between neighbours. Found by search; tests/test_visualize.py has the
# measure.
_PALETTE = ("0099ff", "ffe680", "cc0066", "b3ff00", "66ffcc", "b31ab3", "ff1a00", "ffb3ff", "334dff", "e68066")
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def random_colors(N: int, bright: bool = True) -> list[tuple[float, float, float]]:
    """N colours that differ as much as possible, RGB in [0, 1]: always the same ones in the same order.

    Colour-blind readers can tell ten apart, too. After ten, they repeat, darker or lighter each time.
    """
    colors = []
    for i in range(N):
        turn, place = divmod(i, len(_PALETTE))
        share = 0.45 * (turn * _GOLDEN_RATIO % 1)
        pure = np.array(list(bytes.fromhex(_PALETTE[place]))) / 255
        mixed = pure + share * (turn % 2 - pure)  # black in even turns, white in odd ones
        colors.append(tuple((mixed * (1.0 if bright else 0.7)).tolist()))
    return colors


def _colors_of(count: int, class_ids: np.ndarray, colors: Sequence[Color] | None, color_by: str) -> Sequence[Color]:
    """The given colours, or else one for each instance or class."""
    if color_by not in ("instance", "class"):
        raise ValueError(f"color_by must be 'instance' or 'class', not {color_by!r}")
    if colors is not None:
        return _counted("colors", list(colors), count)
    if color_by == "instance":
        return random_colors(count)
    class_ids = np.abs(class_ids)  # a crowd has the colour of its class
    of_class = random_colors(int(class_ids.max(initial=0)) + 1)
    return [of_class[max(0, class_id - 1)] for class_id in class_ids.tolist()]  # class 0, the background, needs none


def _ink(color: Color) -> tuple[float, float, float]:
    """Black or white, whichever reads better on a colour."""
    return (0.0,) * 3 if _luminance(color) > 0.18 else (1.0,) * 3


def _luminance(color: Color) -> float:
    """How light a colour looks, from 0 (black) to 1 (white)."""
    return float(np.asarray(color[:3]) ** 2.2 @ [0.2126, 0.7152, 0.0722])


def _dark_colors(count: int = 4) -> list[Color]:
    """The darkest colours of the palette, for lines on a pale image. Each differs most from the one before it."""
    *darkest, color = sorted(random_colors(len(_PALETTE)), key=_luminance)[:count]
    colors = [color]
    while darkest:
        distances = np.linalg.norm(np.subtract(darkest, colors[-1]), axis=1)
        colors.append(darkest.pop(distances.argmax()))
    return colors


############################################################
#  Arguments
############################################################


def _array(values: Any) -> np.ndarray:
    """An array of a tensor on any device and of any type, or of anything that NumPy takes."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _rgb(image: Any) -> np.ndarray:
    return utils.viewable(_array(image))


def _counted(name: str, values: Any, count: int, what: str = "box") -> Any:
    """The values. Raises: ValueError unless there is one for each box."""
    if values is not None and len(values) != count:
        raise ValueError(f"{name} must have one entry for each {what}, {count}, not {len(values)}")
    return values


def _numbers(name: str, values: Any, count: int | None = None) -> np.ndarray | None:
    """An array [N] of finite numbers; None stays None."""
    if values is None:
        return None
    values = _array(values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be [N], got {list(values.shape)}")
    if count is not None:
        _counted(name, values, count)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite; leave those instances out")
    return values


def _boxes(name: str, boxes: Any) -> np.ndarray:
    """float64 [N, 4]."""
    boxes = _array(boxes).astype(np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be [N, (y1, x1, y2, x2)], got {list(boxes.shape)}")
    if not np.isfinite(boxes).all():
        raise ValueError(f"{name} has coordinates that are not finite; did a training diverge?")
    return boxes


def _names_of(class_ids: np.ndarray, class_names: Sequence[str], crowds: bool = False, limit: int = 60) -> list[str]:
    """The name of each class. crowds: allow negative ids, which data sets give to crowds."""
    if crowds:
        names = _names_of(np.abs(class_ids), class_names)
        return [f"{name} (crowd)" if i < 0 else name for name, i in zip(names, class_ids.tolist(), strict=True)]
    if len(class_ids) and not (class_ids.min() >= 0 and class_ids.max() < len(class_names)):
        raise ValueError(
            f"class_ids lie in {class_ids.min()}..{class_ids.max()}, but class_names has {len(class_names)} names, "
            "0 of them the background's; are they those of another model or data set?"
        )
    return [fonts.one_line(class_names[class_id], limit) for class_id in class_ids]


def _class_ids(class_ids: Any, count: int) -> np.ndarray:
    return _numbers("class_ids", class_ids, count).astype(np.int64)


def _crops(masks: Any, count: int, image_shape: Sequence[int]) -> list[Crop]:
    """Masks of any kind as crops. Raises: ValueError if they do not fit the image, or their number is not count."""
    height, width = image_shape[:2]
    if not isinstance(masks, list | tuple):
        stack = _array(masks)
        if stack.shape != (height, width, count):
            hint = "; are they [N, H, W]?" if stack.shape == (count, height, width) else ""
            raise ValueError(f"masks must be [H, W, N] = {[height, width, count]}, not {list(stack.shape)}{hint}")
        stack = stack if stack.dtype == bool else stack != 0
        bounds = enumerate(utils.mask_bounds(stack).tolist())
        return [(y1, x1, np.ascontiguousarray(stack[y1:y2, x1:x2, i])) for i, (y1, x1, y2, x2) in bounds]
    crops = []
    for i, mask in enumerate(_counted("masks", masks, count)):
        if isinstance(mask, dict) and list(mask.get("size", ())) != [height, width]:
            raise ValueError(f"masks[{i}] is of {mask.get('size')}, the image of {[height, width]}")
        y1, x1, crop = utils.rle_to_crop(mask) if isinstance(mask, dict) else mask
        crop = _array(crop) != 0
        if crop.ndim != 2 or y1 < 0 or x1 < 0 or y1 + crop.shape[0] > height or x1 + crop.shape[1] > width:
            raise ValueError(f"masks[{i}], {list(crop.shape)} at {(y1, x1)}, does not lie in {[height, width]}")
        crops.append((int(y1), int(x1), crop))
    return crops


############################################################
#  Captions
############################################################

SEPARATOR = " \N{MIDDLE DOT} "


def captions_of(result: dict[str, Any], class_names: Sequence[str]) -> list[Caption]:
    """The class, class score and, where they are known, predicted IoU and mask score of each instance.

    result: as detect() returns it. A predicted IoU beyond [0, 1], which no IoU is, is written as 0 or 1.

    Returns: N of "cat 0.91 · IoU 0.50 · mask 0.46", whose short form is "0.46".
    """
    names = _names_of(result["class_ids"], class_names)
    return _captions(names, *_scores_of(result).values())


def _captions(names: Sequence[str], scores: Any, mask_ious: Any = None, mask_scores: Any = None) -> list[Caption]:
    columns = [[None] * len(names) if values is None else values for values in (scores, mask_ious, mask_scores)]
    captions = []
    for name, score, mask_iou, mask_score in zip(names, *columns, strict=True):
        iou = None if mask_iou is None else min(max(mask_iou, 0), 1)
        parts = {name: score, "IoU": iou, "mask": mask_score}
        numbers = {label: f"{value:.2f}" for label, value in parts.items() if value is not None}
        text = SEPARATOR.join([f"{name} {numbers.pop(name, '')}".rstrip(), *map(" ".join, numbers.items())])
        last_score = mask_score if mask_score is not None else score
        captions.append(Caption(text, "" if last_score is None else f"{last_score:.2f}"))
    return captions


def _scores_of(result: dict[str, Any]) -> dict[str, Any]:
    """Class scores, predicted IoUs and mask scores. Without IoUs, only class scores: mask scores would repeat them."""
    scored = result.get("mask_ious") is not None
    names = ("scores", "mask_ious", "mask_scores")
    return {name: result[name] if scored or name == "scores" else None for name in names}


def _texts(captions: Iterable[Any]) -> list[str]:
    """Captions as texts that can be drawn, of which None is an empty one."""
    texts = ["" if caption is None else caption if isinstance(caption, str) else str(caption) for caption in captions]
    return [Caption(fonts.several_lines(text), getattr(text, "short", "")) for text in texts]


############################################################
#  Images as arrays, fast
############################################################


def apply_mask(image: np.ndarray, mask: np.ndarray, color: Color, alpha: float = 0.5) -> np.ndarray:
    """Tint the pixels of a mask, in place.

    image: uint8 [H, W, 3]. mask: [H, W], true or not 0 where the object is. color: RGB in [0, 1]. alpha: 0 leaves the
    image, 1 covers it.

    Returns: the image.
    Raises: ValueError if image and mask differ in size, or the image is of another type.
    """
    mask = np.asarray(mask)
    if image.dtype != np.uint8 or image.shape != (*mask.shape, 3):
        raise ValueError(
            f"image must be uint8 [H, W, 3] and mask [H, W], got {image.dtype} {list(image.shape)} and "
            f"{list(mask.shape)}; for one of a stack, give masks[:, :, i]"
        )
    inside = mask if mask.dtype == bool else mask != 0
    table = np.arange(256)[:, None] * (1 - alpha) + np.asarray(color[:3], np.float64) * (255 * alpha)
    for channel, tinted in enumerate(table.astype(np.uint8).T):
        np.copyto(image[..., channel], tinted.take(image[..., channel]), where=inside)
    return image


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | Sequence[dict] | Sequence[Crop] | None,
    captions: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    alpha: float = 0.5,
    show_bbox: bool = True,
    labels: str = "auto",
) -> np.ndarray:
    """The image with masks, boxes and captions, at its own resolution. Fast enough for video, most of all with RLEs.

    image: uint8 [H, W, 3]. boxes: [N, 4]. masks: of any kind, or None for none.
    captions: N texts, or Captions with a short form. colors: N of RGB in [0, 1]; random_colors by default.
    show_bbox: draw the boxes. labels: "auto", "all" or "none" of the captions, see captions.py.

    Returns: a new image. The first instance lies on top: detections come best first.
    Raises: ValueError if boxes, masks, captions and colors differ in number, or the masks do not fit the image.
    """
    image, boxes = _rgb(image), _boxes("boxes", boxes)
    count = len(boxes)
    colors = random_colors(count) if colors is None else _counted("colors", colors, count)
    captions = None if captions is None else _texts(_counted("captions", captions, count))
    drawn = image.copy()
    if masks is not None:
        for crop, color in reversed(list(zip(_crops(masks, count, image.shape), colors, strict=True))):
            _tint(drawn, crop, color, alpha)
    picture = Image.fromarray(drawn)
    pen = ImageDraw.Draw(picture)
    width = max(1, round(max(image.shape[:2]) / 500))
    for (y1, x1, y2, x2), color in reversed(list(zip(boxes.tolist(), colors, strict=True)) if show_bbox else []):
        thin = min(width, max(1, round(min(y2 - y1, x2 - x1) / 25)))  # a frame hides little of a small object
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=_bytes(color), width=thin)
    if captions is not None:
        _write_captions(pen, boxes, captions, colors, image.shape, labels)
    return np.array(picture)


def _bytes(color: Color) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in color[:3])


def _tint(image: np.ndarray, crop: Crop, color: Color, alpha: float, outline: bool = True) -> None:
    """apply_mask on a crop; outline: also a line along the inside of the mask. In place."""
    y1, x1, inside = crop
    part = image[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]]
    apply_mask(part, inside, color, alpha)
    if outline:
        framed = np.pad(inside, 1)
        inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        part[inside & ~inner] = np.asarray(color[:3]) * 255


def _write_captions(
    pen: Any,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    image_shape: Sequence[int],
    labels: str,
) -> None:
    """Write each caption that fits on a patch of its colour. The first lie on top."""
    side, pad = min(image_shape[:2]), 2
    extent = functools.cache(lambda text, size: fonts.extent(pen, text, size))
    fonts.warn_of_missing(captions)

    def measure(text: str, size: int) -> tuple[float, float]:
        left, top, right, bottom = extent(text, size)
        return bottom - top + 2 * pad, right - left + 2 * pad

    font_size = max(10, side // 40) if sum(map(bool, captions)) <= 20 else max(10, side // 50)
    for i, text, size, y, x in reversed(
        fit_captions(np.rint(boxes), captions, font_size, measure, image_shape, labels)
    ):
        pattern = text.translate(DIGITS_TO_ZERO)
        (height, width), (left, top, _, _) = measure(pattern, size), extent(pattern, size)
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=_bytes(colors[i]))
        fonts.draw_text(pen, (x + pad - left, y + pad - top), text, size, _bytes(_ink(colors[i])))


############################################################
#  Figures
############################################################

_DPI = 100
_TITLE, _TEXT = 12, 10  # sizes of type, in points


def new_figure(width: float, height: float, show: bool = False, dpi: float | None = None, **options: Any) -> Any:
    """An empty matplotlib figure: the one place of this project that makes them. It needs no display.

    width, height: inches. dpi: pixels an inch, 100 by default. The figure is rounded to whole pixels.
        A plot of 360 x 320 pixels for a web page: new_figure(360 / 96, 320 / 96, dpi=96, layout="constrained").
    show: make a window for it, through pyplot. Otherwise the figure belongs to Agg, and pyplot is not imported.
    options: of matplotlib.figure.Figure, such as layout="constrained".

    Returns: the figure. figure.subplots() or figure.add_axes() makes axes; a notebook that gets the figure shows it;
        figure_to_png and figure_to_image turn it into bytes and pixels.
    """
    dpi = _DPI if dpi is None else dpi
    size = [max(1, round(side * dpi)) / dpi for side in (width, height)]
    if show:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=size, dpi=dpi, FigureClass=fonts.figure_class(), **options)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: detection alone should not wait for matplotlib

    figure = fonts.figure_class()(figsize=size, dpi=dpi, **options)
    FigureCanvasAgg(figure)
    figure._repr_png_ = functools.partial(figure_to_png, figure)  # a notebook calls this
    return figure


def figure_to_png(figure: Any, scale: float = 1) -> bytes:
    """A figure as a PNG file: the same bytes for the same figure.

    scale: pixels of the file for each pixel of the figure; 2 keeps a plot sharp on dense screens.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi * scale, metadata={"Software": None})
    return file.getvalue()


def figure_to_image(figure: Any, scale: float = 1) -> np.ndarray:
    """A figure as pixels: uint8 [H, W, 3]. scale: as for figure_to_png."""
    return np.array(Image.open(io.BytesIO(figure_to_png(figure, scale))).convert("RGB"))


def _finish(figure: Any, save_path: Any, show: bool) -> Any:
    """Save and show a figure, if its caller wants that. Returns: the figure."""
    if save_path is not None:
        kind = Path(save_path).suffix[1:].lower() or "png"
        options = {"pil_kwargs": {"quality": 92}} if kind in ("jpg", "jpeg") else {}
        runtime.write_atomically(save_path, lambda file: figure.savefig(file, format=kind, dpi=figure.dpi, **options))
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    return figure


def _wrapped(title: str, inches: float, size: float = _TITLE) -> str:
    """A title in lines that fit: a letter is about 0.6 of its size wide."""
    letters = max(10, int(inches * 72 / (0.6 * size)))
    return "\n".join(line for part in title.splitlines() for line in textwrap.wrap(part, letters))


def _room(title: str, size: float = _TITLE) -> float:
    """Inches that a title takes above an image."""
    return (1.25 * size * len(title.splitlines()) + 8) / 72 if title else 0.0


def _image_axes(image: np.ndarray, ax: Any, figsize: Any, title: str, show: bool) -> Any:
    """Axes with an image, and nothing around it but the title. New axes are as large as figsize allows."""
    height, width = image.shape[:2]
    is_new = ax is None
    if is_new:
        size = (figsize, figsize) if np.isscalar(figsize) else figsize
        scale = min(size[0] / width, size[1] / height)  # inches a pixel
        title = _wrapped(title, width * scale)
        figure = new_figure(width * scale, height * scale + _room(title), show)
        ax = figure.add_axes((0, 0, 1, height * scale / (height * scale + _room(title))))
    ax.imshow(image, extent=(0, width, height, 0), aspect="auto" if is_new else "equal")
    ax.set_title(title, fontsize=_TITLE, **fonts.text_style())
    ax.set_axis_off()
    ax.set_autoscale_on(False)
    return ax


def _plot_box(ax: Any, box: Sequence[float], color: Color, style: str = "solid", alpha: float = 1, width=2) -> None:
    y1, x1, y2, x2 = box
    width = _line_width(ax, min(y2 - y1, x2 - x1), width)
    ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linestyle=style, alpha=alpha, linewidth=width)


def _plot_outline(ax: Any, crop: Crop, color: Color) -> None:
    y1, x1, inside = crop
    if inside.any():
        width = _line_width(ax, min(inside.shape), 1.2)
        for line in skimage.measure.find_contours(np.pad(inside, 1).astype(np.float32), 0.5):
            ax.plot(line[:, 1] + x1 - 0.5, line[:, 0] + y1 - 0.5, color=color, linewidth=width)


def _line_width(ax: Any, side: float, largest: float) -> float:
    """Points that a line around an object of so many pixels of the image may be wide: small objects get thin lines."""
    left, right = ax.get_xlim()
    points = side * ax.bbox.width / max(abs(right - left), 1e-9) * 72 / ax.figure.dpi
    return float(np.clip(points / 15, 0.5, largest))


def _plot_captions(
    ax: Any,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    image_shape: Sequence[int],
    labels: str,
) -> None:
    """Write each caption that fits on a patch of its colour, in the image. The first lie on top."""
    pad = 2  # points
    ax.apply_aspect()
    pixels = np.array([image_shape[0] / ax.bbox.height, image_shape[1] / ax.bbox.width])  # image by screen
    margin = pad * ax.figure.dpi / 72
    probe = ax.text(0, 0, "", **fonts.text_style())
    fonts.warn_of_missing(captions)

    def measure(text: str, size: float) -> tuple[float, float]:
        probe.set(text=fonts.drawable(text), fontsize=size)
        extent = probe.get_window_extent()
        return tuple((np.array([extent.height, extent.width]) + 2 * margin) * pixels)

    size = _TEXT if sum(map(bool, captions)) <= 30 else 8
    drawn = fit_captions(boxes, captions, size, measure, image_shape, labels)
    probe.remove()
    for rank, (i, text, size, y, x) in enumerate(drawn):
        patch = {"facecolor": colors[i], "edgecolor": "none", "pad": pad}
        style = {"color": _ink(colors[i]), "fontsize": size, "va": "top", "ha": "left", "bbox": patch}
        y, x = np.array([y, x]) + margin * pixels
        ax.text(x, y, fonts.drawable(text), zorder=10 - rank / len(drawn), clip_on=True, **style, **fonts.text_style())


def _panels(aspects: Sequence[float], cols: int, titles: Sequence[str], title: str, show: bool, width: float) -> tuple:
    """A figure with a grid of axes, each with its title above, and no margin around.

    aspects: height / width of each. width: of the figure, in inches.

    Returns: the figure and a list of axes without ticks.
    """
    gap, cell = 0.08, (width - 0.08 * (cols - 1)) / cols
    cols = max(1, min(cols, len(aspects)))  # fewer panels are not larger
    width = cols * (cell + gap) - gap
    titles = [_wrapped(text, cell, _TEXT) for text in titles]
    title = _wrapped(title, width)
    rows = [range(i, min(i + cols, len(aspects))) for i in range(0, len(aspects), cols)]
    heads = [max(_room(titles[i], _TEXT) for i in row) for row in rows]
    cells = [min(1.5, max(aspects[i] for i in row)) * cell for row in rows]
    total = max(_room(title) + sum(heads) + sum(cells) + gap * (len(rows) - 1), 0.5)
    figure = new_figure(width, total, show)
    if title:
        figure.text(0.5, 1 - 4 / 72 / total, title, ha="center", va="top", fontsize=_TITLE)
    axes, top = [], total - _room(title)
    for row, head, height in zip(rows, heads, cells, strict=True):
        for column, i in enumerate(row):
            place = (column * (cell + gap) / width, (top - head - height) / total, cell / width, height / total)
            axes.append(figure.add_axes(place))
            axes[-1].set_title(titles[i], fontsize=_TEXT)
            axes[-1].set_axis_off()
        top -= head + height + gap
    return figure, axes


############################################################
#  Images
############################################################


def display_images(
    images, titles=None, cols=4, cmap=None, norm=None, interpolation=None, save_path=None, show=False
) -> Any:
    """Images in a grid.

    images: each [H, W], coloured by cmap (gray by default) and norm, or [H, W, 3 or 4], uint8 or floating in [0, 1].
        Floats beyond 1 are taken for 0..255.
    """
    pixels = [_pixels(image, f"images[{i}]") for i, image in enumerate(images)]
    titles = [""] * len(pixels) if titles is None else _counted("titles", list(titles), len(pixels), "image")
    aspects = [image.shape[0] / image.shape[1] for image in pixels]
    figure, axes = _panels(aspects, cols, titles, "" if pixels else "no images", show, 14)
    for ax, image in zip(axes, pixels, strict=True):
        height, width = image.shape[:2]
        options = {"cmap": cmap or "gray", "norm": norm, "interpolation": interpolation}
        ax.imshow(image, extent=(0, width, height, 0), **options)
    return _finish(figure, save_path, show)


def _pixels(image: Any, name: str) -> np.ndarray:
    """An image as imshow takes it: with one channel or three, and floats in [0, 1]."""
    if (image := _array(image)).ndim == 3 and image.shape[2] not in (3, 4):
        image = image[..., 0] if image.shape[2] == 1 else utils.viewable(image, name)
    if image.size == 0 or image.ndim not in (2, 3):
        raise ValueError(f"{name} must be [H, W] or [H, W, 1, 3 or 4], got {list(image.shape)}; are channels first?")
    if image.ndim == 3 and image.dtype != np.uint8 and image.max() > 1:
        return image.clip(0, 255).astype(np.uint8)
    return image.astype(np.float32) if image.dtype in (bool, np.float16) else image


############################################################
#  Instances
############################################################


def display_instances(
    image,
    boxes,
    masks,
    class_ids,
    class_names,
    scores=None,
    title="",
    figsize=(16, 16),
    ax=None,
    show_mask=True,
    show_bbox=True,
    colors=None,
    captions=None,
    mask_ious=None,
    mask_scores=None,
    color_by="instance",
    labels="auto",
    save_path=None,
    show=False,
) -> Any:
    """The image with masks, outlines, dashed boxes and captions.

    image: [H, W, 3]. boxes: [N, 4]; rows of zeros are Matterport's padding, whose instances are not drawn.
    masks: of any kind, or None for none. class_ids: [N], negative ones are of crowds. scores, mask_ious, mask_scores:
        [N], for the captions.
    figsize: the most inches that the image may take, at 100 pixels an inch.
    color_by: "instance", or "class", whose colour then is the same in every picture. colors: N of RGB, instead.
    labels: "auto", "all" or "none" of the captions, see captions.py.

    Returns: the figure. The first instance lies on top: detections come best first.
    Raises: ValueError if the arguments differ in number, or the masks do not fit the image.
    """
    image, boxes = _rgb(image), _boxes("boxes", boxes)
    count = len(boxes)
    class_ids = _class_ids(class_ids, count)
    crops = [] if masks is None else _crops(masks, count, image.shape)
    colors = _colors_of(count, class_ids, colors, color_by)
    if captions is None:
        values = {"scores": scores, "mask_ious": mask_ious, "mask_scores": mask_scores}
        values = [_numbers(name, column, count) for name, column in values.items()]
        captions = _captions(_names_of(class_ids, class_names, crowds=True), *values)
    captions = _texts(_counted("captions", captions, count))
    present = np.flatnonzero(boxes.any(axis=1)).tolist()
    crops = crops if show_mask else []
    painted = image.copy()
    for i in reversed(present):
        if crops:
            _tint(painted, crops[i], colors[i], alpha=0.5, outline=False)
    ax = _image_axes(painted, ax, figsize, title, show)
    for i in reversed(present):
        if crops:
            _plot_outline(ax, crops[i], colors[i])
        if show_bbox:
            _plot_box(ax, boxes[i], colors[i], "dashed", 0.8)
    _plot_captions(
        ax, boxes[present], [captions[i] for i in present], [colors[i] for i in present], image.shape, labels
    )
    return _finish(ax.figure, save_path, show)


def display_result(image: Any, result: dict[str, Any], class_names: Sequence[str], **options: Any) -> Any:
    """display_instances of what detect() returns for an image: captions say all the scores.

    options: of display_instances.
    """
    instances = (result["rois"], result["masks"], result["class_ids"])
    return display_instances(image, *instances, class_names, **{**_scores_of(result), **options})


def display_differences(
    image,
    gt_box,
    gt_class_id,
    gt_mask,
    pred_box,
    pred_class_id,
    pred_score,
    pred_mask,
    class_names,
    title="",
    ax=None,
    show_mask=True,
    show_box=True,
    iou_threshold=0.5,
    score_threshold=0.5,
    figsize=(16, 16),
    labels="auto",
    save_path=None,
    show=False,
) -> Any:
    """Ground truth and predictions in one image, the predictions with score and IoU, the missed objects named.

    iou_threshold, score_threshold: of utils.compute_matches.
    """
    image, gt_box, pred_box = _rgb(image), _boxes("gt_box", gt_box), _boxes("pred_box", pred_box)
    gt_ids, pred_ids = _class_ids(gt_class_id, len(gt_box)), _class_ids(pred_class_id, len(pred_box))
    scores = _numbers("pred_score", pred_score, len(pred_box))
    order = np.argsort(-scores, kind="stable")  # that of compute_matches
    gt_mask, pred_mask = _stack(gt_mask, gt_box, image.shape), _stack(pred_mask, pred_box, image.shape)[..., order]
    pred_box, pred_ids, scores = pred_box[order], pred_ids[order], scores[order]
    gt_match, pred_match, overlaps = utils.compute_matches(
        gt_box, gt_ids, gt_mask, pred_box, pred_ids, scores, pred_mask, iou_threshold, score_threshold
    )
    best = overlaps.max(axis=1, initial=0)
    ious = [overlaps[i, match] if match > -1 else best[i] for i, match in enumerate(pred_match.tolist())]
    names = _names_of(np.abs(gt_ids), class_names)  # a crowd's are negative
    captions = [f"missed {name}" if match < 0 else "" for name, match in zip(names, gt_match, strict=True)]
    predictions = zip(_names_of(pred_ids, class_names), scores, ious, strict=True)
    captions = [
        Caption(f"{name} {score:.2f} / {iou:.2f}", f"{score:.2f} / {iou:.2f}") for name, score, iou in predictions
    ] + captions
    return display_instances(
        image,
        np.concatenate([pred_box, gt_box]),
        np.concatenate([pred_mask, gt_mask], axis=-1),
        np.concatenate([pred_ids, np.abs(gt_ids)]),
        class_names,
        title=title or "Ground truth: mint. Predictions: red, with score / IoU.",
        figsize=figsize,
        ax=ax,
        show_mask=show_mask,
        show_bbox=show_box,
        colors=[PREDICTION] * len(pred_box) + [TRUTH] * len(gt_box),
        captions=captions,
        labels=labels,
        save_path=save_path,
        show=show,
    )


def _stack(masks: Any, boxes: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """bool [H, W, N] of masks of any kind."""
    stack = np.zeros((*image_shape[:2], len(boxes)), bool)
    for i, (y1, x1, crop) in enumerate(_crops(masks, len(boxes), image_shape)):
        stack[y1 : y1 + crop.shape[0], x1 : x1 + crop.shape[1], i] = crop
    return stack


############################################################
#  Boxes on their way: anchors, RoIs, refinement
############################################################


def _plot_refinement(ax: Any, before: Any, after: Any, color: Color, style: str, alpha: float = 1) -> None:
    """Draw a box in a style, the refined box solid, and lines between their corners."""
    if before is not None:
        _plot_box(ax, before, color, style, alpha)
    if after is not None:
        _plot_box(ax, after, color)
    if before is not None and after is not None:
        for row, column in ((0, 1), (2, 3), (0, 3), (2, 1)):
            ax.plot([before[column], after[column]], [before[row], after[row]], color=color, linewidth=1)


def draw_boxes(
    image,
    boxes=None,
    refined_boxes=None,
    masks=None,
    captions=None,
    visibilities=None,
    title="",
    ax=None,
    figsize=(12, 12),
    colors=None,
    labels="auto",
    save_path=None,
    show=False,
) -> Any:
    """Boxes before and after refinement, with masks and captions, each as visible as asked.

    boxes: [N, 4], in the style of their visibility. refined_boxes: [N, 4], solid, joined with the boxes at the corners.
    masks: of any kind. captions: N texts. colors: N of RGB.
    visibilities: N of 0 gray and dotted, 1 (the default) in colour and dotted, 2 in colour and solid.

    Raises: ValueError without boxes of either kind, or if arguments differ in number.
    """
    if boxes is None and refined_boxes is None:
        raise ValueError("draw_boxes needs boxes or refined_boxes")
    image = _rgb(image)
    after = None if refined_boxes is None else _boxes("refined_boxes", refined_boxes)
    before = None if boxes is None else _boxes("boxes", boxes)
    main = before if after is None else after
    count = len(main)
    _counted("boxes", before, count)
    colors = random_colors(count) if colors is None else _counted("colors", colors, count)
    visibilities = [1] * count if visibilities is None else _counted("visibilities", visibilities, count)
    captions = [""] * count if captions is None else _counted("captions", captions, count)
    if not {0, 1, 2}.issuperset(visibilities):
        raise ValueError(f"visibilities must be 0, 1 or 2, got {utils.listed(map(str, visibilities))}")
    looks = [((LIGHT_GRAY, "dotted", 0.8), (color, "dotted", 1), (color, "solid", 1)) for color in colors]
    looks = [look[int(visibility)] for look, visibility in zip(looks, visibilities, strict=True)]
    crops = [] if masks is None else _crops(masks, count, image.shape)
    present = np.flatnonzero(main.any(axis=1)).tolist()
    painted = image.copy()
    for i in reversed(present if crops else []):
        _tint(painted, crops[i], looks[i][0], alpha=0.5)
    ax = _image_axes(painted, ax, figsize, title, show)
    for i in reversed(present):
        _plot_refinement(ax, None if before is None else before[i], None if after is None else after[i], *looks[i])
    captions = _texts(captions[i] for i in present)
    _plot_captions(ax, main[present], captions, [looks[i][0] for i in present], image.shape, labels)
    return _finish(ax.figure, save_path, show)


def display_refinement(
    image,
    boxes,
    refined_boxes,
    captions=None,
    title="",
    ax=None,
    figsize=(12, 12),
    colors=None,
    labels="auto",
    save_path=None,
    show=False,
) -> Any:
    """Boxes before their deltas dashed, after them solid, with lines between their corners.

    boxes, refined_boxes: [N, 4], a row each of anchors and proposals, or of proposals and detections.

    Raises: ValueError if the arguments differ in number.
    """
    image, before, after = _rgb(image), _boxes("boxes", boxes), _boxes("refined_boxes", refined_boxes)
    count = len(_counted("refined_boxes", after, len(before)))
    colors = random_colors(count) if colors is None else _counted("colors", colors, count)
    ax = _image_axes(image, ax, figsize, title or "dashed: before refinement, solid: after", show)
    for i in reversed(range(count)):
        _plot_refinement(ax, before[i], after[i], colors[i], "dashed")
    captions = _texts(_counted("captions", captions, count) or [""] * count)
    _plot_captions(ax, after, captions, colors, image.shape, labels)
    return _finish(ax.figure, save_path, show)


def display_boxes(image, boxes, cols=4, limit=200, title="", save_path=None, show=False) -> Any:
    """The same image with several sets of boxes, side by side: one for each step of a filter, for example.

    boxes: {title: [N, 4]}. limit: how many of each set are drawn, the first ones; the titles have the full numbers.
    """
    image = _rgb(image)
    sets = {name: _boxes(f"boxes[{name!r}]", rows) for name, rows in boxes.items()}
    titles = [f"{name}: {len(rows):,}" + f", {limit} shown" * (len(rows) > limit) for name, rows in sets.items()]
    figure, axes = _panels([image.shape[0] / image.shape[1]] * len(sets), cols, titles, title, show, 14)
    for ax, rows in zip(axes, sets.values(), strict=True):
        _image_axes(image, ax, None, ax.get_title(), show)
        ax.title.set_fontsize(_TEXT)
        rows = rows[:limit]
        for box, color in reversed(list(zip(rows, random_colors(len(rows)), strict=True))):
            _plot_box(ax, box, color, width=1.2)
    return _finish(figure, save_path, show)


def display_anchors(
    image, anchors, anchors_per_cell=3, cell=(0.5, 0.5), names=None, cols=3, title="", save_path=None, show=False
) -> Any:
    """The anchors of each level: a dot at the centre of each cell, and all anchors of one cell.

    image: the padded one that the network sees, to which the anchors belong. anchors: a list of [A, 4], one for each
        level, in the order y, x, ratio, as generate_pyramid_anchors gives them; or [A, 4] of one level.
    cell: the cell whose anchors are drawn, as (y, x) in shares of the image. names: of the levels; P2 ... by default.

    Raises: ValueError if the number of anchors is no multiple of anchors_per_cell.
    """
    image = _rgb(image)
    levels = list(anchors) if isinstance(anchors, list | tuple) else [anchors]
    levels = [_boxes(f"anchors[{i}]", level) for i, level in enumerate(levels)]
    names = _counted("names", names, len(levels), "level") or [f"P{i}" for i in range(2, 2 + len(levels))]
    levels_drawn, titles = [], []
    for i, (level, name) in enumerate(zip(levels, names, strict=True)):
        if len(level) % anchors_per_cell:
            raise ValueError(f"anchors[{i}] has {len(level)}, not {anchors_per_cell} a cell: see anchors_per_cell")
        centres = ((level[:, :2] + level[:, 2:]) / 2).reshape(-1, anchors_per_cell, 2).mean(axis=1)  # [cells, 2]
        nearest = np.linalg.norm(centres - np.multiply(cell, image.shape[:2]), axis=1)
        of_cell = level.reshape(-1, anchors_per_cell, 4)[nearest.argmin()] if len(level) else level
        sides = (of_cell[:, 2:] - of_cell[:, :2]).prod(axis=1) ** 0.5
        titles.append(
            f"{name}: {len(level):,} anchors" + (f" of about {sides.mean():.0f} pixels" if len(of_cell) else "")
        )
        levels_drawn.append((centres, of_cell))
    figure, axes = _panels([image.shape[0] / image.shape[1]] * len(levels), cols, titles, title, show, 14)
    for ax, (centres, of_cell) in zip(axes, levels_drawn, strict=True):
        _image_axes(image // 2 + 127, ax, None, ax.get_title(), show)
        ax.scatter(centres[:, 1], centres[:, 0], s=min(9.0, 9e3 / max(1, len(centres))), color="black", linewidths=0)
        for box, color in zip(of_cell, itertools.cycle(_dark_colors()), strict=False):
            _plot_box(ax, box, color)
    return _finish(figure, save_path, show)


def display_activations(
    features, channels=None, limit=32, cols=8, cmap="viridis", title="", save_path=None, show=False
) -> Any:
    """Channels of a feature map in a grid. Each is scaled to its own range, which stands above it.

    features: [C, H, W]. channels: their indices; by default the first `limit`.
    """
    features = _array(features)
    if features.ndim != 3 or 0 in features.shape[1:]:
        hint = "; of a batch, take one image: features[0]" if features.ndim == 4 else ""
        raise ValueError(f"features must be [C, H, W], got {list(features.shape)}{hint}")
    channels = list(range(min(limit, len(features))) if channels is None else channels)
    if not all(0 <= channel < len(features) for channel in channels):
        raise ValueError(f"channels must lie in 0..{len(features) - 1}, got {utils.listed(map(str, channels))}")
    maps = features[channels]
    titles = [f"{i}:  {values.min():.2g} to {values.max():.2g}" for i, values in zip(channels, maps, strict=True)]
    height, width = features.shape[1:]
    title = title or f"{len(channels)} of {len(features)} channels, {height} x {width}"
    figure, axes = _panels([height / width] * len(maps), cols, titles, title, show, 14)
    for ax, values in zip(axes, maps, strict=True):
        ax.imshow(values, cmap=cmap, extent=(0, width, height, 0))
    return _finish(figure, save_path, show)


############################################################
#  Mask scoring
############################################################


def display_mask_scoring(
    image, result, class_names, true_ious=None, limit=8, title="", save_path=None, show=False
) -> Any:
    """The order of the detections by class score above, by mask score below, with lines between the same ones.

    result: as detect() returns it, of a model with a MaskIoU head; the `limit` best by class score are shown.
    true_ious: [N], of each mask with its object, if known. The title then says how many pairs of all instances each
        score puts in the order of the true IoU.

    Raises: ValueError without mask_ious in the result.
    """
    if result.get("mask_ious") is None:
        raise ValueError("result has no mask_ious: the model has no MaskIoU head, so there is no mask scoring to show")
    image, boxes = _rgb(image), _boxes("rois", result["rois"])
    count = len(boxes)
    names = _names_of(_class_ids(result["class_ids"], count), class_names)
    scores, ious, mask_scores = (_numbers(name, result[name], count) for name in ("scores", "mask_ious", "mask_scores"))
    ious = ious.clip(0, 1)  # as mask scores count them
    truth = _numbers("true_ious", true_ious, count)
    crops = _crops(result["masks"], count, image.shape)
    above = np.argsort(-scores, kind="stable")[:limit].tolist()
    below = sorted(above, key=lambda i: -mask_scores[i])
    texts = [f"{rank}. {names[i]}\nclass score {scores[i]:.2f}" for rank, i in enumerate(above, 1)]
    for rank, i in enumerate(below, 1):
        moved = above.index(i) + 1 - rank
        arrow = f" \N{BLACK UP-POINTING TRIANGLE}{moved}" if moved > 0 else ""
        arrow = f" \N{BLACK DOWN-POINTING TRIANGLE}{-moved}" if moved < 0 else arrow
        true_iou = "" if truth is None else f", true {truth[i]:.2f}"
        texts.append(f"{rank}. {names[i]}{arrow}\nmask score {mask_scores[i]:.2f}\nIoU {ious[i]:.2f}{true_iou}")
    title = (
        title or f"{len(above)} of {count} detections. Mask score = class score \N{MULTIPLICATION SIGN} predicted IoU"
    )
    if truth is not None and _pairs_in_order(scores, truth) is not None:
        shares = [100 * _pairs_in_order(values, truth) for values in (scores, mask_scores)]
        title += "\nPairs in the order of the true IoU: {:.0f} % by class score, {:.0f} % by mask score".format(*shares)
    figure, axes = _two_rows(len(above), texts, title, show)
    colors = dict(zip(above, random_colors(len(above)), strict=True))
    for ax, i in zip(axes, above + below, strict=True):
        _show_instance(ax, image, boxes[i], crops[i], colors[i])
    _join_rows(figure, axes, [below.index(i) for i in above], [colors[i] for i in above])
    return _finish(figure, save_path, show)


def _pairs_in_order(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """The share of the pairs with different truth that the scores put in the same order; None without such pairs."""
    higher = truth[:, None] > truth
    return float((scores[:, None] > scores)[higher].mean()) if higher.any() else None


def _two_rows(cols: int, texts: Sequence[str], title: str, show: bool) -> tuple:
    """A figure with two rows of square axes, texts above the first and below the second row, and room between."""
    cell, gap, band = 1.62, 0.1, 0.9  # inches
    width = 0.4 + max(cols, 4) * (cell + gap)
    margin = width - cols * (cell + gap) if cols >= 4 else (width - cols * (cell + gap)) / 2
    title = _wrapped(title, width)
    heights = {"title": _room(title), "texts": 0.45, "above": cell, "band": band, "below": cell, "more texts": 0.65}
    total = sum(heights.values())
    figure = new_figure(width, total, show)
    figure.text(0.5, 1 - 4 / 72 / total, title, ha="center", va="top", fontsize=_TITLE)
    tops = dict(zip(heights, total - np.cumsum([0, *heights.values()]), strict=False))
    axes = []
    for row, word in (("above", "class score"), ("below", "mask score")):
        middle = (tops[row] - cell / 2) / total
        figure.text((margin - 0.2) / width, middle, f"by {word}", rotation=90, ha="center", va="center", fontsize=_TEXT)
        for column in range(cols):
            place = (margin + column * (cell + gap), tops[row] - cell, cell, cell)
            axes.append(figure.add_axes(tuple(np.divide(place, (width, total, width, total)))))
    for i, (ax, text) in enumerate(zip(axes, texts, strict=True)):
        at, va = (1.05, "bottom") if i < cols else (-0.05, "top")
        ax.text(0.5, at, text, transform=ax.transAxes, ha="center", va=va, fontsize=9, linespacing=1.15)
    return figure, axes


def _show_instance(ax: Any, image: np.ndarray, box: np.ndarray, crop: Crop, color: Color) -> None:
    """A square of the image around a box, with its mask, in a frame of its colour. White where the image ends."""
    painted = image.copy()
    _tint(painted, crop, color, alpha=0.4, outline=False)
    height, width = image.shape[:2]
    ax.imshow(painted, extent=(0, width, height, 0))
    _plot_outline(ax, crop, color)
    (y, x), half = (box[:2] + box[2:]) / 2, max(0.6 * float((box[2:] - box[:2]).max()), 4)
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=3)


def _join_rows(figure: Any, axes: Sequence[Any], places: Sequence[int], colors: Sequence[Color]) -> None:
    """Lines from each axes of the first row to its place in the second: thick ones for those that moved."""
    from matplotlib.lines import Line2D

    for i, (place, color) in enumerate(zip(places, colors, strict=True)):
        above, below = axes[i].get_position(), axes[len(places) + place].get_position()
        x, y = [(spot.x0 + spot.x1) / 2 for spot in (above, below)], [above.y0, below.y1]
        moved = {"linewidth": 3, "alpha": 1} if place != i else {"linewidth": 1.5, "alpha": 0.5}
        figure.add_artist(Line2D(x, y, color=color, zorder=0, **moved))


def plot_calibration(mask_ious, true_ious, class_scores=None, bins=10, title="", save_path=None, show=False) -> Any:
    """The predicted IoU and, beside it, the class score, each against the true IoU of the mask.

    mask_ious, true_ious, class_scores: [N]. bins: see plot_agreement.
    """
    true_ious = _numbers("true_ious", true_ious)
    columns = {"predicted IoU": ("mask_ious", mask_ious), "class score": ("class_scores", class_scores)}
    columns = {label: _numbers(name, values, len(true_ious)) for label, (name, values) in columns.items()}
    columns = {label: values for label, values in columns.items() if values is not None}
    figure = new_figure(5.5 * len(columns), 5.5, show, layout="constrained")
    figure.suptitle(_wrapped(title, 5.5 * len(columns)), fontsize=_TITLE)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (label, values) in zip(axes, columns.items(), strict=True):
        plot_agreement(ax, values, true_ious, label, bins)
    return _finish(figure, save_path, show)


def plot_agreement(ax: Any, predicted: np.ndarray, true: np.ndarray, label: str, bins: int = 10) -> None:
    """Draw predicted against true IoU into axes: the one such plot, in figures and in the report.

    Up to 2,000 instances are points; more are counted in cells of 0.025 and shaded by their logarithm. Lines: the
    diagonal, and the mean true IoU in bins of the prediction. The title has the correlation and the mean error.

    predicted, true: [N]; values outside [0, 1] are drawn at its ends. label: the name of what is predicted.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    x, y = np.clip(predicted, 0, 1), np.clip(true, 0, 1)
    if len(true) > 2000:
        shades = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))  # the lightest differs from white
        edges = np.linspace(0, 1, 41)
        *_, cells = ax.hist2d(x, y, bins=edges, cmap=shades, norm=LogNorm(), cmin=1)
        ax.figure.colorbar(cells, ax=ax, shrink=0.7, label="instances", format="{x:,.0f}")
    else:
        ax.scatter(x, y, s=14, color=BLUE, alpha=0.5, linewidths=0)
    ax.plot([0, 1], [0, 1], color="black", linestyle="dotted", linewidth=1.5, label="exact")
    calibration = calibrate(predicted, true, bins)
    means = [pair for pair in zip(calibration.mean_predicted, calibration.mean_true, strict=True) if None not in pair]
    ax.plot(*np.reshape(means, (-1, 2)).T, color=VERMILION, marker="o", linewidth=2, label="mean")
    related = correlation(predicted, true)
    title = f"correlation {related:.2f}" if related else "no correlation"
    error = f", mean error {np.abs(predicted - true).mean():.2f}" if len(true) else ""
    ax.set_title(f"{title}{error}, N = {len(true)}", fontsize=_TEXT)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=label, ylabel="true IoU of the mask", aspect="equal")
    ax.legend(loc="upper left")


############################################################
#  Histograms
############################################################


def plot_histograms(values, bins=50, cols=4, title="", save_path=None, show=False) -> Any:
    """Histograms, such as of the weights of layers or the deltas of anchors.

    values: {title: numbers of any shape}. Mean and standard deviation stand above each.

    Raises: ValueError for numbers that are not finite.
    """
    values = {name: _numbers(f"values[{name!r}]", _array(numbers).ravel()) for name, numbers in values.items()}
    cols = max(1, min(cols, len(values)))
    rows = max(1, -(-len(values) // cols))
    figure = new_figure(3.5 * cols, 2.3 * rows + _room(title), show, layout="constrained")
    figure.suptitle(title, fontsize=_TITLE)
    axes = figure.subplots(rows, cols, squeeze=False).flat
    for ax, (name, numbers) in itertools.zip_longest(axes, values.items(), fillvalue=("", np.zeros(0))):
        if len(numbers) == 0:
            ax.set_axis_off()
        else:
            low, high = float(numbers.min()), float(numbers.max())
            wide = high - low > 1e-5 * max(abs(low), abs(high))
            ax.hist(numbers, bins=bins, color=BLUE, range=(low, high) if wide else (low - 0.5, high + 0.5))
            name = f"{name}\nmean {numbers.mean():.3g}, std {numbers.std():.3g}"
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=8)
    return _finish(figure, save_path, show)


############################################################
#  Curves of a training
############################################################

Curve = tuple[np.ndarray, np.ndarray]  # epochs [n], values [n]; all finite
_POINTS = 120  # the most that a curve has: each is the mean of some steps, as a picture has fewer pixels than steps


def plot_training(
    train: Mapping[str, Curve],
    val: Mapping[str, Curve],
    learning_rate: Curve | None = None,
    ap: Mapping[str, Curve] | None = None,
    title: str = "",
    save_path: Any = None,
    show: bool = False,
) -> Any:
    """The total loss and each loss of a training and its validation, the learning rate, and average precision.

    train, val: curves by the name of the loss; "loss" is the total. ap: curves in 0..1 by name; -1 stands for an epoch
        without objects to find. What is not given has no axes.
    """
    panels = [["total", "losses"]]
    if learning_rate is not None or ap:
        panels += [["ap" if learning_rate is None else "learning_rate", "ap" if ap else "learning_rate"]]
    figure = new_figure(13, 4.25 * len(panels), show, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic(panels)
    _plot_loss(axes["total"], "total loss", train.get("loss"), val.get("loss"))
    _plot_losses(axes["losses"], train, val)
    if learning_rate is not None:
        axes["learning_rate"].set_title("learning rate")
        _plot_mean(axes["learning_rate"], learning_rate, color=DARK_GRAY)
    if ap:
        axes["ap"].set_title("average precision, in points")
        for (label, (x, y)), color in zip(ap.items(), itertools.cycle(CURVES), strict=False):
            axes["ap"].plot(x[y >= 0], 100 * y[y >= 0], color=color, marker="o", markersize=4, label=label)
        axes["ap"].set_ylim(bottom=0)
        axes["ap"].legend(loc="lower right")
    for name, ax in axes.items():
        ax.set_xlabel("epoch")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        if name != "ap":
            _scale_values(ax)
    return _finish(figure, save_path, show)


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, means, lowest and highest values of at most _POINTS neighbourhoods."""
    x, y = (np.array_split(part, min(len(part), _POINTS)) if len(part) else [] for part in curve)
    columns = (x, np.mean), (y, np.mean), (y, np.min), (y, np.max)
    return tuple(np.array([reduced(part) for part in parts]) for parts, reduced in columns)


def _plot_mean(ax: Any, curve: Curve, **style: Any) -> None:
    x, mean, _, _ = _thinned(curve)
    ax.plot(x, mean, marker="." if len(x) < 10 else None, **style)


def _plot_loss(ax: Any, name: str, train: Curve | None, val: Curve | None) -> None:
    """One loss: means of a training's steps with their range shaded, and a validation's values."""
    ax.set_title(f"{name} (shaded: from the lowest to the highest step)")
    if train is not None:
        x, _, low, high = _thinned(train)
        ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0)
        _plot_mean(ax, train, color=BLUE, label="training")
    if val is not None:
        ax.plot(*val, color=VERMILION, marker="o", markersize=4, label="validation")
    if ax.lines:
        ax.legend(loc="best")


def _plot_losses(ax: Any, train: Mapping[str, Curve], val: Mapping[str, Curve]) -> None:
    """All losses but the total, in different colours."""
    ax.set_title("each loss" + (" (dashed: validation)" if val else ""))
    names = [name for name in dict.fromkeys([*train, *val]) if name != "loss"]
    for name, color in zip(names, itertools.cycle(CURVES), strict=False):
        if name in train:
            _plot_mean(ax, train[name], color=color, label=name)
        if name in val:
            ax.plot(*val[name], color=color, linestyle="--", marker="o", markersize=3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", fontsize="small", ncols=2)


def _scale_values(ax: Any) -> None:
    """Logarithmic where values differ by a factor of 10 or more, over four decades at most; otherwise from 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = np.concatenate([[0.0], *(line.get_ydata() for line in ax.lines)])
    positive = values[values > 0]
    if not positive.size or positive.max() < 10 * positive.min():
        ax.set_ylim(bottom=min(0.0, values.min()))
        return
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylim(bottom=0.8 * max(positive.min(), 1e-4 * positive.max()), top=2 * positive.max())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    ax.yaxis.set_minor_locator(LogLocator(subs=()))


############################################################
#  Tables
############################################################


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first their headings: text when printed, and HTML in a notebook."""

    rows: list[list[str]]

    def __str__(self) -> str:
        rows = [[utils.printable(cell) for cell in row] for row in self.rows]
        columns = itertools.zip_longest(*rows, fillvalue="")
        widths = [max(map(len, column)) for column in columns]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows)
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def display_table(table: Iterable[Iterable[Any]], save_path: Any = None, show: bool = False) -> Table:
    """Rows of values as a table.

    save_path: an .html file, or else one of text. show: print it.

    Returns: the Table, which a notebook shows.
    """
    rows = Table([[str(value) for value in row] for row in table])
    if save_path is not None:
        text = rows._repr_html_() if Path(save_path).suffix.lower() in (".html", ".htm") else f"{rows}\n"
        runtime.write_atomically(save_path, lambda file: file.write(text.encode(errors="replace")))
    if show:
        print(rows)
    return rows


############################################################
#  For users of Matterport's names: no other file of this project calls these, notebooks aside
############################################################


def draw_box(image: np.ndarray, box: Sequence[float], color: Sequence[int]) -> np.ndarray:
    """A frame of two pixels along the inside of a box, in place.

    image: uint8 [H, W, 3]. box: (y1, x1, y2, x2). color: RGB in 0..255, as Matterport has it.

    Returns: the image.
    """
    (box,) = _boxes("box", [box])
    height, width = image.shape[:2]
    y1, x1, y2, x2 = np.rint(box).clip(0, [height, width, height, width]).astype(int).tolist()
    for frame in (np.s_[y1 : min(y1 + 2, y2), x1:x2], np.s_[max(y2 - 2, y1) : y2, x1:x2]):
        image[frame] = color
    for frame in (np.s_[y1:y2, x1 : min(x1 + 2, x2)], np.s_[y1:y2, max(x2 - 2, x1) : x2]):
        image[frame] = color
    return image


def display_top_masks(image, mask, class_ids, class_names, limit=4, save_path=None, show=False) -> Any:
    """The image, and beside it the masks of the classes that cover most of it, an instance a colour."""
    image = _rgb(image)
    class_ids = _class_ids(class_ids, len(class_ids))
    crops = _crops(mask, len(class_ids), image.shape)
    areas = np.array([crop.sum() for _, _, crop in crops])
    classes = sorted(set(class_ids.tolist()), key=lambda class_id: -areas[class_ids == class_id].sum())[:limit]
    panels, titles = [image], [f"{image.shape[0]} x {image.shape[1]}"]
    for class_id, name in zip(classes, _names_of(np.array(classes, int), class_names, crowds=True), strict=True):
        of_class = [crop for crop, crop_id in zip(crops, class_ids, strict=True) if crop_id == class_id]
        panels.append(np.zeros_like(image))
        for crop, color in zip(of_class, random_colors(len(of_class)), strict=True):
            _tint(panels[-1], crop, color, alpha=1, outline=False)
        titles.append(f"{name}: {len(of_class)}")
    return display_images(panels, titles, cols=limit + 1, save_path=save_path, show=show)


def draw_rois(
    image, rois, refined_rois, mask, class_ids, class_names, limit=10, save_path=None, show=False, labels="auto"
) -> Any:
    """The training sample of the second stage: RoIs dashed, gray for background; refined RoIs solid; mask targets.

    rois, refined_rois: [R, 4]. class_ids: [R], 0 is background. mask: [R, M, M] in [0, 1], one for each RoI, or one for
        each RoI that is not background, in order; None for none.
    limit: how many RoIs are drawn, chosen at random, always the same ones.
    """
    image, rois, refined = _rgb(image), _boxes("rois", rois), _boxes("refined_rois", refined_rois)
    count = len(_counted("refined_rois", refined, len(rois), "RoI"))
    class_ids = _class_ids(class_ids, count)
    names, masks = _names_of(class_ids, class_names), _roi_masks(mask, class_ids)
    picked = np.sort(np.random.default_rng(0).choice(count, min(limit, count), replace=False)).tolist()
    colors = dict(zip(picked, random_colors(len(picked)), strict=True))
    painted = image.copy()
    for i in picked:
        if i in masks:
            apply_mask(painted, utils.unmold_mask(masks[i], rois[i].astype(int), image.shape[:2]), colors[i])
    positive = int((class_ids > 0).sum())
    share = f", {100 * positive / count:.0f} %" if count else ""
    title = f"{len(picked)} of {count} RoIs. Of all, {positive} are of objects{share}. Gray: background"
    ax = _image_axes(painted, None, (12, 12), title, show)
    for i in picked:
        if class_ids[i] > 0:
            _plot_refinement(ax, rois[i], refined[i], colors[i], "dashed")
        else:
            _plot_box(ax, rois[i], LIGHT_GRAY, "dashed")
    named = [i for i in picked if class_ids[i] > 0]
    _plot_captions(ax, refined[named], [names[i] for i in named], [colors[i] for i in named], image.shape, labels)
    return _finish(ax.figure, save_path, show)


def _roi_masks(mask: Any, class_ids: np.ndarray) -> dict[int, np.ndarray]:
    """The mask target [M, M] of each RoI that is not background, by the index of the RoI."""
    if mask is None:
        return {}
    positive = np.flatnonzero(class_ids > 0).tolist()
    mask = _array(mask)
    if mask.ndim != 3 or len(mask) not in (len(class_ids), len(positive)):
        raise ValueError(
            f"mask must be [R, M, M] with R = {len(class_ids)}, or {len(positive)}, one an RoI that is not background, "
            f"got {list(mask.shape)}; of masks by class, take the RoI's class first"
        )
    rows = positive if len(mask) == len(class_ids) else range(len(positive))
    return {i: mask[row].astype(np.float32) for i, row in zip(positive, rows, strict=True)}


def plot_precision_recall(AP, precisions, recalls, ax=None, save_path=None, show=False) -> Any:
    """The precision-recall curve that utils.compute_ap returns.

    AP: in [0, 1]. precisions, recalls: [points].
    """
    precisions = _numbers("precisions", precisions)
    recalls = _numbers("recalls", recalls, len(precisions))
    ax = ax or new_figure(6, 5, show, layout="constrained").subplots()
    ax.plot(recalls, precisions, color=BLUE, linewidth=2)
    ax.fill_between(recalls, precisions, color=BLUE, alpha=0.15, linewidth=0)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.05), xlabel="recall", ylabel="precision")
    ax.set_title(f"precision over recall, AP {AP:.3f}", fontsize=_TITLE)
    ax.grid(alpha=0.3)
    return _finish(ax.figure, save_path, show)


def plot_overlaps(
    gt_class_ids, pred_class_ids, pred_scores, overlaps, class_names, threshold=0.5, save_path=None, show=False
) -> Any:
    """IoU of each prediction with each object: bold from the threshold on, with "class?" if the class is wrong.

    gt_class_ids: [G]. pred_class_ids, pred_scores: [P], in the order of overlaps [P, G].
    """
    overlaps = _array(overlaps)
    shape = (len(pred_class_ids), len(gt_class_ids))
    if overlaps.shape != shape:
        raise ValueError(f"overlaps must be [predictions, objects] = {list(shape)}, got {list(overlaps.shape)}")
    gt_ids, pred_ids = _class_ids(gt_class_ids, shape[1]), _class_ids(pred_class_ids, shape[0])
    scores = _numbers("pred_scores", pred_scores, shape[0])
    figure = new_figure(2.5 + 0.6 * max(shape[1], 3), 1.8 + 0.4 * max(shape[0], 2), show, layout="constrained")
    ax = figure.subplots()
    ax.set_title(f"IoU; bold from {threshold:g} on", fontsize=_TITLE)
    ax.set(xlabel="ground truth", ylabel="predictions")
    names, gt_names = _names_of(pred_ids, class_names, limit=24), _names_of(np.abs(gt_ids), class_names, limit=24)
    fonts.name_ticks(ax.yaxis, [f"{name} ({score:.2f})" for name, score in zip(names, scores, strict=True)])
    fonts.name_ticks(ax.xaxis, gt_names, rotation=90)
    if overlaps.size:
        ax.imshow(overlaps, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), iou in np.ndenumerate(overlaps):
        reached = iou >= threshold
        wrong = "\nclass?" if reached and gt_ids[column] != pred_ids[row] else ""
        style = {"color": "white" if iou > 0.7 else "black", "weight": "bold" if reached else "normal"}
        if iou > 0:
            ax.text(column, row, f"{iou:.2f}{wrong}", ha="center", va="center", fontsize=8, **style)
    return _finish(figure, save_path, show)


def plot_loss(loss, val_loss, save=True, log_dir=None, save_path=None, show=False) -> Any:
    """plot_training of arrays of losses, an epoch a row.

    loss, val_loss: [epochs, losses]: the total, then those of Config.LOSS_WEIGHTS in order. Further columns are
        numbered.
    save: write a picture of each loss into the folder log_dir: loss.png, rpn_class_loss.png ...

    Returns: the figure with all of them.
    Raises: ValueError if the two differ in columns, or log_dir is missing.
    """
    loss, val_loss = (np.asarray(_array(values), np.float64) for values in (loss, val_loss))
    loss, val_loss = (values[:, None] if values.ndim == 1 else values for values in (loss, val_loss))
    if loss.ndim != 2 or val_loss.shape[1:] != loss.shape[1:]:
        raise ValueError(
            f"loss and val_loss must be [epochs, losses], got {list(loss.shape)} and {list(val_loss.shape)}"
        )
    if save and log_dir is None:
        raise ValueError("log_dir must be the folder to write into; or save=False only draws")
    names = ["loss", *Config.LOSS_WEIGHTS]
    names += [f"loss_{i}" for i in range(len(names), loss.shape[1])]
    train, val = ({}, {})
    for curves, values in ((train, loss), (val, val_loss)):
        for name, column in zip(names, values.T, strict=False):
            finite = np.isfinite(column)
            curves[name] = (1.0 + np.flatnonzero(finite), column[finite])
    for name in train if save else ():
        figure = new_figure(6.4, 4.8, layout="constrained")
        ax = figure.subplots()
        _plot_loss(ax, name, train[name], val[name])
        ax.set_xlabel("epoch")
        _scale_values(ax)
        _finish(figure, Path(log_dir) / f"{name}.png", False)
    return plot_training(train, val, save_path=save_path, show=show)


def display_weight_stats(model: Any, save_path: Any = None, show: bool = False) -> Table:
    """Shape, extremes and standard deviation of all weights and statistics of a model, and what looks wrong.

    model: a Module, or anything with a state_dict().

    Returns: the Table. Its last column says "dead?" where all values are one, which is normal for a bias; "overflow?"
        where one is beyond 1000, which is normal for a variance; and "not finite".
    """
    rows = [["weight", "shape", "min", "max", "std", ""]]
    for name, tensor in model.state_dict().items():
        values = _array(tensor)
        if values.size and values.dtype.kind == "f":
            numbers = [f"{number:+9.4f}" for number in (values.min(), values.max(), values.std(dtype=np.float64))]
            rows.append([name, str(list(values.shape)), *numbers, _alert(name, values)])
    return display_table(rows, save_path, show)


def _alert(name: str, values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "not finite"
    if np.abs(values).max() > 1000 and not name.endswith("running_var"):
        return "overflow?"
    constant = values.size > 1 and values.min() == values.max()
    return "dead?" if constant and not name.endswith("bias") else ""

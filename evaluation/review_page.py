"""The page of a review, or of a suggestion: review_page.html.j2 has its text, this file makes the values it shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import utils
import visualize
from data.records import Picture

from .data_page import inline_pixels, load_pixels
from .label_queue import Entry, Review, attributes_of, class_name_of
from .page import template
from .review import MISSING
from .words import count_of

SIDE = 320  # pixels of the longer side of a crop on the page
_MOST_ENLARGED = 8
_LINE = 2  # pixels of an outline
LABEL_COLOR, MODEL_COLOR, OTHER_COLOR = visualize.random_colors(10)[1], visualize.random_colors(10)[6], (0.6, 0.6, 0.6)

_SOURCE_NOTE = (
    "A model that was trained on these very labels has learned their mistakes with them, and finds fewer. Use one that "
    "has not seen them: train on one half and review the other, and the other way round."
)


def render(view: dict[str, Any]) -> str:
    """The page as one HTML document, which loads nothing and has no script. view: of review_view or suggest_view."""
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return template("review_page.html.j2").render(view, style=style)


def review_view(model: Any, done: Review, top: int, title: str) -> dict[str, Any]:
    """What the page of a review shows. model: as label_queue.to_json takes it. title: the name of the data set."""
    head = done.queue[:top]
    counts = ", ".join(f"{count} {kind}" for kind, count in done.counts(head).items() if count)
    facts = {
        "model": str(model.source),
        "labels looked at": f"{done.looked_at:,} in {count_of(len(done.pictures), 'picture')}",
        "crowds, never suspicious": f"{done.crowds:,}",
        "classes that the model does not know": utils.listed(done.unknown, 10) or "none",
        "IoU of a label with the model's outline, in the middle": ", ".join(
            f"{split} {iou:.2f}" for split, iou in done.agreement().items()
        ),
    }
    return {
        "title": f"Review of {utils.printable(title)}",
        "answer": f"The {len(head):,} most suspicious places of {len(done.queue):,}: {counts or 'none'}.",
        "note": _SOURCE_NOTE,
        "legend": [("the label", css(LABEL_COLOR)), ("the model's outline", css(MODEL_COLOR))],
        "facts": {name: utils.printable(text, 500) for name, text in facts.items()},
        "examples": review_examples(model, head),
        "footer": "review.json has all places. Nothing in the data set was changed.",
    }


def review_examples(model: Any, head: Sequence[Entry]) -> list[dict[str, Any]]:
    """The crops of the page, in the order of the queue. Each picture is read once."""
    examples: dict[int, dict[str, Any]] = {}
    of_picture: dict[int, list[int]] = {}
    for place, entry in enumerate(head):
        of_picture.setdefault(id(entry.reviewed), []).append(place)
    for places in of_picture.values():
        picture = head[places[0]].reviewed.seen.picture
        pixels, problem = read_pixels(picture)
        for place in places:
            examples[place] = _example(model, head[place], place + 1, pixels, problem)
    return [examples[place] for place in range(len(head))]


def _example(model: Any, entry: Entry, rank: int, pixels: np.ndarray | None, problem: str) -> dict[str, Any]:
    suspect, seen = entry.suspect, entry.reviewed.seen
    name = utils.printable(class_name_of(model, entry), 60)
    numbers = {"suspicion": f"{suspect.suspicion:.2f}"}
    outlines = []
    if suspect.detection is not None:
        values = attributes_of(model.config, seen.found, suspect.detection)
        words = {"score": "class score", "mask_iou": "predicted IoU", "mask_score": "mask score", "accept": "accept"}
        numbers |= {words[key]: f"{value:.2f}" for key, value in values.items()}
        if suspect.kind != MISSING:
            numbers["IoU with the label"] = f"{suspect.iou:.2f}"
        outlines.append((seen.found.masks[suspect.detection], MODEL_COLOR))
    if suspect.label is not None:
        outlines.append((entry.reviewed.labels.masks[suspect.label], LABEL_COLOR))
    if suspect.twin is not None:
        outlines.append((entry.reviewed.labels.masks[suspect.twin], OTHER_COLOR))
    title = f"{rank}. {suspect.kind}: {name}"
    shown = None
    if pixels is not None:
        boxes = [utils.rle_to_bbox(mask) for mask, _ in outlines]
        shown = inline_pixels(
            draw_outlines(pixels, region_around(boxes, pixels.shape[:2]), outlines), f"{title}, {entry.why}"
        )
    lines = [utils.printable(seen.name, 300), entry.place]
    return {"title": title, "lines": lines, "note": entry.why, "numbers": numbers,
            "image": shown, "problem": problem}  # fmt: skip


############################################################
#  Pictures
############################################################


def read_pixels(picture: Picture) -> tuple[np.ndarray | None, str]:
    """The pixels of a picture in the frame of its labels, uint8 [H, W, 3], or what is wrong with it."""
    try:
        return load_pixels(picture), ""
    except (ValueError, OSError) as error:
        return None, utils.printable(error, 300)


def region_around(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A region (y1, x1, y2, x2) of a picture of (height, width) with all boxes and half as much around them."""
    y1, x1 = np.min(boxes, axis=0)[:2].tolist()
    y2, x2 = np.max(boxes, axis=0)[2:].tolist()
    room = max(12, (y2 - y1) // 2, (x2 - x1) // 2)
    return max(0, y1 - room), max(0, x1 - room), min(size[0], y2 + room), min(size[1], x2 + room)


def draw_outlines(
    pixels: np.ndarray,
    region: tuple[int, int, int, int],
    outlines: Sequence[tuple[dict, visualize.Color]],
    side: int = SIDE,
) -> np.ndarray:
    """A region of a picture with the outlines of masks on it; the last is on top.

    outlines: run-length codes of the whole picture, and a colour each. side: the longer one of the result, in pixels.
    """
    y1, x1, y2, x2 = region
    scale = min(_MOST_ENLARGED, side / max(y2 - y1, x2 - x1))
    height, width = max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale))
    rows = y1 + ((np.arange(height) + 0.5) * (y2 - y1) / height).astype(int)
    columns = x1 + ((np.arange(width) + 0.5) * (x2 - x1) / width).astype(int)
    part = Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2]))
    way = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    image = np.array(part.resize((width, height), way))
    for mask, color in outlines:
        top, left, crop = utils.rle_to_crop(mask)
        inside = np.zeros((height, width), bool)
        is_row = (rows >= top) & (rows < top + crop.shape[0])
        is_column = (columns >= left) & (columns < left + crop.shape[1])
        inside[np.ix_(is_row, is_column)] = crop[np.ix_(rows[is_row] - top, columns[is_column] - left)]
        image[_rim(inside)] = np.round(np.multiply(color[:3], 255))
    return image


def _rim(inside: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool [H, W], that are nearer than _LINE pixels to its outside."""
    inner = inside
    for _ in range(_LINE):
        framed = np.pad(inner, 1, mode="edge")
        inner = inner & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return inside & ~inner


def css(color: visualize.Color) -> str:
    """A colour as CSS has it."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in color[:3])

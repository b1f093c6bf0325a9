"""The page of a check of a data set: data_page.html.j2 has its text, this file makes the values that it shows."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import utils
import visualize
from data.check import WHOLE, Report, sentence
from data.images import ImageReader, read_image
from data.large import RegionImage, open_large
from data.object_checks import ObjectTable, class_name, picture_name
from data.recognise import Records
from data.records import SEVERITIES, Object, Picture
from data.regions import ArraySource, Source

from .page import Cell, Table, inline_picture, template
from .page import Picture as Shown
from .words import count_of

CONTACT_PICTURES = 24
ODD_OBJECTS = 12
_MOST_PLACES = 200  # of a fault that the page lists; check.json has all
_SIDE = 480  # pixels of the longer side of a picture on the page
_PART = 1024  # of a side of the part of a large picture that is shown
_LEAST_OBJECTS = 8  # of a class, to say what is odd in it


def render(report: Report, records: Records) -> str:
    """The page as one HTML document, which loads nothing and has no script.

    report: of data.check.check. records: those that were checked.
    """
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return template("data_page.html.j2").render(page_view(report, records), style=style)


def page_view(report: Report, records: Records) -> dict[str, Any]:
    """Everything that data_page.html.j2 shows."""
    chosen = contact_pictures(report, records)
    colors = _class_colors(report.table)
    words = {severity: len(faults) for severity, faults in report.faults.items()}
    answer = ", ".join(f"{count or 'no'} kind{'s' * (count != 1)} of {name}" for name, count in words.items())
    of = f"{len(chosen)} of {len(records.pictures):,}, from all parts of the data set"
    return {
        "title": f"Check of {utils.printable(report.root.resolve().name)}",
        "answer": f"{answer}.",
        "severities": [_severity(name, report) for name in SEVERITIES],
        "facts": _facts(report),
        "counts": _counts(report),
        "contact_words": of,
        "contact": [_contact(records, records.pictures[number], colors) for number in chosen],
        "oddest": [_odd(records, report.table, odd, colors) for odd in oddest(report.table)],
        "footer": f"Checked in {report.seconds:.1f} s. check.json has everything that this page says.",
    }


def _severity(name: str, report: Report) -> dict[str, Any]:
    faults = []
    for fault, places in report.faults[name]:
        shown = [utils.printable(place, 300) for place in places if place]
        more = len(shown) - _MOST_PLACES
        faults.append(
            {
                "sentence": sentence(fault, places),
                "fix": fault.fix,
                "count": f"all {len(shown):,}" if more <= 0 else f"{_MOST_PLACES} of {len(shown):,}",
                "places": shown[:_MOST_PLACES] if len(shown) > 3 else [],
            }
        )
    return {"title": f"{name.capitalize()}s", "faults": faults}


def _facts(report: Report) -> Table:
    middle, most = report.objects_a_picture
    sides = "{:.1f}, {:.1f} and {:.1f} px at 5, 50 and 95 %".format(*report.sides) if report.sides else "-"
    facts = {
        "folder": str(report.root),
        "format": f"{report.title}: {report.evidence}",
        "sizes": _listed(report.sizes),
        "kinds": _listed(report.kinds),
        "objects a picture": f"{middle} in the middle, {most} at most",
        "side of a box": sides,
    }
    rows = [(name, [Cell(utils.printable(text, 500), css="words")]) for name, text in facts.items()]
    return Table(["", ""], rows, "facts")


def _listed(counts: dict[str, int]) -> str:
    return utils.listed([f"{name} ({count:,})" for name, count in counts.items()], 8)


def _counts(report: Report) -> Table:
    splits = list(report.splits.values())
    rows = [
        ("pictures", [Cell(f"{facts.pictures:,}") for facts in splits]),
        ("without objects", [Cell(f"{facts.empty:,}") for facts in splits]),
        ("crowds, ignored", [Cell(f"{facts.crowds:,}") for facts in splits]),
    ]
    for name in report.table.class_names:
        rows.append((utils.printable(name), [Cell(f"{facts.objects.get(name, 0):,}") for facts in splits]))
    return Table(["", *("pictures" if name == WHOLE else name for name in report.splits)], rows)


############################################################
#  Pictures
############################################################


def contact_pictures(report: Report, records: Records) -> list[int]:
    """Places of up to CONTACT_PICTURES pictures with objects, evenly from the splits one after the other."""
    has_objects = np.zeros(len(records.pictures), bool)
    has_objects[report.table.pictures] = True
    order = np.flatnonzero(has_objects) if has_objects.any() else np.arange(len(records.pictures))
    order = sorted(order.tolist(), key=lambda number: records.pictures[number].split or "")
    count = min(CONTACT_PICTURES, len(order))
    return [order[place] for place in np.linspace(0, len(order) - 1, count).astype(int).tolist()] if count else []


def _class_colors(table: ObjectTable) -> dict[str, Any]:
    names = table.class_names
    return dict(zip(names, visualize.random_colors(len(names)), strict=True)) if names else {}


def load_pixels(picture: Picture) -> np.ndarray:
    """The picture, uint8 [H, W, 3], in the frame of its labels. Raises: as data.images.read_image."""
    if picture.path is None:
        return picture.embedded()
    return read_image(picture.path, upright=not picture.is_stored)


def open_pixels(picture: Picture) -> Source | RegionImage:
    """The picture, to be read as uint8 [h, w, 3]; a large one by regions. Raises: as load_pixels."""
    large = None
    if picture.path is not None:
        large = open_large(picture.path, ImageReader(), not picture.is_stored)
    return ArraySource(load_pixels(picture)) if large is None else large


def _contact(records: Records, picture: Picture, colors: dict) -> dict[str, Any]:
    name = utils.printable(picture_name(records, picture))
    note = f"{picture.width} x {picture.height}, {count_of(len(picture.objects), 'object')}"
    example = {"title": name, "note": note, "image": None, "problem": ""}
    try:
        image, region = open_pixels(picture), (0, 0, picture.height, picture.width)
        if isinstance(image, RegionImage):
            region = _part_of(picture)
            example["note"] += f"; a part of {region[3] - region[1]} x {region[2] - region[0]}"
        drawn = _drawn(image, picture.objects, region, colors)
        example["image"] = inline_pixels(drawn, f"{name} with its labels")
    except (ValueError, OSError) as error:
        example["problem"] = utils.printable(error, 300)
    return example


def _part_of(picture: Picture) -> tuple[int, int, int, int]:
    """A region of _PART pixels of a large picture, around the object in the middle of its list."""
    y, x = picture.height // 2, picture.width // 2
    if picture.objects:
        middle = picture.objects[len(picture.objects) // 2].mask(picture.height, picture.width)
        y1, x1, y2, x2 = utils.rle_to_bbox(middle)
        y, x = (y1 + y2) // 2, (x1 + x2) // 2
    height, width = min(_PART, picture.height), min(_PART, picture.width)
    y, x = min(max(y - height // 2, 0), picture.height - height), min(max(x - width // 2, 0), picture.width - width)
    return y, x, y + height, x + width


def _drawn(
    image: Source | RegionImage, objects: list[Object], region: tuple[int, int, int, int], colors: dict,
    captions: bool = True,
) -> np.ndarray:  # fmt: skip
    """A region (y1, x1, y2, x2) of a picture with its labels, with a longer side of at most _SIDE pixels."""
    y1, x1, y2, x2 = region
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(y2 - y1, x2 - x1))
    size = max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale))
    rows = y1 + ((np.arange(size[0]) + 0.5) * (y2 - y1) / size[0]).astype(int)
    columns = x1 + ((np.arange(size[1]) + 0.5) * (x2 - x1) / size[1]).astype(int)
    part = Image.fromarray(np.ascontiguousarray(image.read(*region)))
    pixels = np.asarray(part.resize(size[::-1], Image.Resampling.BOX))
    shown = [(parsed, _cells(parsed.mask(height, width), region, rows, columns)) for parsed in objects]
    shown = [(parsed, mask) for parsed, mask in shown if mask is not None]
    if not shown:
        return pixels
    objects, masks = zip(*shown, strict=True)
    stack = np.stack(masks, axis=2)
    names = [class_name(parsed) for parsed in objects]
    labels = [f"{name} (crowd)" if parsed.is_crowd else name for name, parsed in zip(names, objects, strict=True)]
    return visualize.draw_instances(
        pixels, utils.extract_bboxes(stack), stack, labels if captions and len(colors) > 1 else None,
        [colors[name] for name in names], show_bbox=False,
    )  # fmt: skip


def _cells(code: dict, region: Sequence[int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """The pixels of an RLE in these rows and columns of a region, bool [h, w]; None if it has none there."""
    y, x, mask = utils.rle_to_crop(code, region)
    cells = np.zeros((len(rows), len(columns)), bool)
    down = (rows >= y) & (rows < y + mask.shape[0])
    across = (columns >= x) & (columns < x + mask.shape[1])
    cells[np.ix_(down, across)] = mask[np.ix_(rows[down] - y, columns[across] - x)]
    return cells if cells.any() else None


def inline_pixels(pixels: np.ndarray, alt: str) -> Shown:
    """Pixels, uint8 [H, W, 3], as an image inside of the page."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return inline_picture(file.getvalue(), alt)


############################################################
#  The oddest objects
############################################################


class Odd(NamedTuple):
    """An object that differs from those of its class."""

    row: int  # in the ObjectTable
    reason: str


def oddest(table: ObjectTable, count: int = ODD_OBJECTS) -> list[Odd]:
    """The objects that are the farthest from the middle of their class, in side, elongation or filling of the box.

    The distance is counted in spreads of the class: its median absolute deviation, but at least a tenth of a doubling.
    """
    sides = np.maximum(table.boxes[:, 2:] - table.boxes[:, :2], 1)
    measures = {
        "side": np.log2(np.sqrt(sides.prod(axis=1))),
        "length over width": np.log2(sides.max(axis=1) / sides.min(axis=1)),
        "share of its box": np.log2(np.maximum(table.areas, 1) / sides.prod(axis=1)),
    }
    far = np.zeros((len(measures), len(table.classes)))
    middles = np.zeros_like(far)
    for class_id in range(len(table.class_names)):
        rows = np.flatnonzero((table.classes == class_id) & ~table.crowds)
        if len(rows) < _LEAST_OBJECTS:
            continue
        for i, values in enumerate(measures.values()):
            middles[i, rows] = middle = np.median(values[rows])
            deviations = np.abs(values[rows] - middle)
            far[i, rows] = deviations / max(1.4826 * np.median(deviations), 0.1)
    order = np.argsort(-far.max(axis=0), kind="stable")[:count] if far.size else []
    names, columns = list(measures), list(measures.values())
    odd = []
    for row in [int(row) for row in order if far[:, row].max() > 3]:
        i = int(far[:, row].argmax())
        value, middle = 2 ** columns[i][row], 2 ** middles[i, row]
        unit = " px" if names[i] == "side" else ""
        odd.append(Odd(row, f"{names[i]} {value:.3g}{unit}; the middle of its class is {middle:.3g}{unit}"))
    return odd


def _odd(records: Records, table: ObjectTable, odd: Odd, colors: dict) -> dict[str, Any]:
    picture = records.pictures[int(table.pictures[odd.row])]
    parsed = picture.objects[int(table.numbers[odd.row])]
    name = utils.printable(picture_name(records, picture))
    title = f"{utils.printable(class_name(parsed))}, {name}: {utils.printable(parsed.place)}"
    example = {"title": title, "note": odd.reason, "image": None, "problem": ""}
    y1, x1, y2, x2 = table.boxes[odd.row].astype(int).tolist()
    room = max(16, (y2 - y1) // 2, (x2 - x1) // 2)
    region = max(0, y1 - room), max(0, x1 - room), min(picture.height, y2 + room), min(picture.width, x2 + room)
    try:
        drawn = _drawn(open_pixels(picture), [parsed], region, colors, captions=False)
        example["image"] = inline_pixels(drawn, f"{title} in the middle")
    except (ValueError, OSError) as error:
        example["problem"] = utils.printable(error, 300)
    return example

"""Ranks pictures without labels by what a model doubts in them: the first ones teach it the most.

benchmarks/label_review.py measures how well a doubt predicts the true error of a picture, and what else was tried.

D detections
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils
from data.check import check_files
from data.likeness import find_alike
from data.listing import Listing
from data.reading import Reading
from data.recognise import Records
from data.records import Object, Picture
from model import MaskRCNN

from .data_page import inline_pixels
from .label_queue import Seen, attributes_of
from .review import Found
from .review_page import LABEL_COLOR, MODEL_COLOR, css, draw_outlines, read_pixels
from .words import count_of

DOUBTFUL_SHOWN = 8  # objects of a picture that the page marks
_SIDE = 480  # pixels of the longer side of a picture on the page


############################################################
#  Doubt
############################################################


def doubts(found: Found, threshold: float = 0.5) -> dict[str, float]:
    """How much a model doubts what it finds in a picture, in several ways. Higher is more doubt.

    threshold: the least mask score of an object that is kept.

    Returns: "expected error": 1 - the F1 that the mask scores lead to expect, if each is the chance that its object is
            right; 1 if nothing is kept, although something is found.
        "sum": class score x (1 - predicted IoU), added up over all detections; more objects have more doubt.
        "mean": the same, divided by the sum of class scores.
        All are 0 for a picture in which nothing is found.
    """
    scores, ious = found.scores, found.mask_ious
    if not len(scores):
        return {"expected error": 0.0, "sum": 0.0, "mean": 0.0}
    rights = scores * ious
    kept = rights >= threshold
    doubt = float((scores * (1 - ious)).sum())
    expected_f1 = 2 * rights[kept].sum() / (kept.sum() + rights.sum())
    return {"expected error": float(1 - expected_f1), "sum": doubt, "mean": doubt / float(scores.sum())}


MEASURE = "expected error"


class Suggested(NamedTuple):
    """A picture in the order in which pictures should be labelled."""

    seen: Seen
    doubt: float
    like: str  # the name of an earlier picture that shows the same; empty if there is none


def suggest(
    seen: Sequence[Seen], thumbnails: np.ndarray, threshold: float = 0.5, measure: str = MEASURE
) -> list[Suggested]:
    """All pictures, the most doubtful first. Those that show the same as an earlier one come after all others.

    thumbnails: uint8 [pictures, SIDE, SIDE] of data.likeness. threshold, measure: of doubts().
    """
    values = [doubts(one.found, threshold)[measure] for one in seen]
    alike: dict[int, set[int]] = {}
    for i, j in find_alike(thumbnails):
        alike.setdefault(i, set()).add(j)
        alike.setdefault(j, set()).add(i)
    first, later, taken = [], [], set()
    for place in np.argsort(-np.array(values), kind="stable").tolist():
        same = sorted(alike.get(place, set()) & taken)
        if same:
            later.append(Suggested(seen[place], values[place], seen[same[0]].name))
        else:
            first.append(Suggested(seen[place], values[place], ""))
            taken.add(place)
    return first + later


def picture_records(folder: Path) -> tuple[Records, np.ndarray]:
    """All pictures below a folder, as records without objects, and their thumbnails, uint8 [pictures, SIDE, SIDE].

    Pictures that cannot be read are left out; the findings name them.

    Raises: FileNotFoundError or NotADirectoryError if there is no such folder; ValueError if it has no picture that can
        be read.
    """
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"--unlabelled {utils.printable(folder)}: there is no such folder")
    reading = Reading(folder)
    listing: Listing = reading.listing
    pictures = []
    for name in listing.pictures:
        size = reading.image_size(listing.path(name))
        if size is not None:
            height, width = size.shown
            pictures.append(Picture(listing.path(name), "", height=height, width=width))
    records = Records(listing.root, "pictures", "", pictures, reading.findings)
    found = len(listing.pictures)
    thumbnails = check_files(records) if pictures else []
    if not thumbnails:
        what = f"none of {found:,} pictures can be read" if found else "there is no picture"
        raise ValueError(f"--unlabelled {utils.printable(folder)}: {what}")
    return records, np.stack([thumbnail.pixels for thumbnail in thumbnails])


############################################################
#  Results
############################################################


def doubtful(found: Found, count: int = DOUBTFUL_SHOWN) -> list[int]:
    """The detections that the model doubts most: class score x (1 - predicted IoU), and at least 0.1."""
    doubt = found.scores * (1 - found.mask_ious)
    return [int(place) for place in np.argsort(-doubt, kind="stable")[:count] if doubt[place] >= 0.1]


def kept(found: Found, threshold: float) -> list[int]:
    """The detections with a mask score of the threshold and more."""
    return np.flatnonzero(found.scores * found.mask_ious >= threshold).tolist()


def proposals(model: MaskRCNN, records: Records, head: Sequence[Suggested], threshold: float) -> Records:
    """The pictures of the head with the objects that the model finds, to be corrected in a tool."""
    pictures = []
    for suggested in head:
        found = suggested.seen.found
        objects = [
            Object(
                model.class_names[int(found.rows[place])], f"detection {place + 1}", rle=found.masks[place],
                attributes=attributes_of(model.config, found, place),
            )
            for place in kept(found, threshold)
        ]  # fmt: skip
        pictures.append(dataclasses.replace(suggested.seen.picture, objects=objects))
    return dataclasses.replace(records, pictures=pictures)


def to_json(model: MaskRCNN, ranking: Sequence[Suggested], threshold: float) -> dict[str, Any]:
    """The order of all pictures, as json.dump takes it."""
    pictures = []
    for suggested in ranking:
        found = suggested.seen.found
        pictures.append(
            {
                "file": suggested.seen.name,
                "doubt": round(suggested.doubt, 4),
                **{name: round(value, 4) for name, value in doubts(found, threshold).items()},
                "objects": len(kept(found, threshold)),
                "detections": len(found.scores),
                "shows the same as": suggested.like or None,
            }
        )
    return {"model": str(model.source), "doubt": MEASURE, "threshold": threshold, "pictures": pictures}


def suggest_lines(ranking: Sequence[Suggested], top: int, threshold: float) -> list[str]:
    """What custom.py suggest prints."""
    like = sum(bool(suggested.like) for suggested in ranking)
    nothing = [suggested.seen.name for suggested in ranking if not len(suggested.seen.found.scores)]
    lines = [f"Looked at {count_of(len(ranking), 'picture')}"]
    if like:
        lines.append(f"{like:,} show the same as others, and come last")
    if nothing:
        names = utils.listed([utils.printable(name) for name in nothing], 3)
        lines.append(f"in {len(nothing):,} the model finds nothing, so it has nothing to doubt; look at them: {names}")
    lines.append(
        f"The first {min(top, len(ranking)):,} to label, with doubt, objects found, and doubtful ones among them"
    )
    for suggested in ranking[:top]:
        found = suggested.seen.found
        numbers = f"{len(kept(found, threshold)):>5} {len(doubtful(found, len(found.scores))):>5}"
        same = f"  shows the same as {utils.printable(suggested.like)}" if suggested.like else ""
        lines.append(f"  {suggested.doubt:.2f} {numbers}  {utils.printable(suggested.seen.name)}{same}")
    return lines


def suggest_view(model: Any, ranking: Sequence[Suggested], top: int, threshold: float, title: str) -> dict[str, Any]:
    """What the page of review_page.render shows. title: the name of the folder."""
    head = ranking[:top]
    return {
        "title": f"What to label next in {utils.printable(title)}",
        "answer": f"Where the model doubts most: {count_of(len(head), 'picture')} of {len(ranking):,}.",
        "note": "Correct the proposals beside this page, train with them, and ask again: the order changes.",
        "legend": [("found", css(MODEL_COLOR)), ("doubtful", css(LABEL_COLOR))],
        "facts": {
            "model": utils.printable(model.source, 500),
            "doubt": f"{MEASURE}, 0 to 1",
            "objects shown": f"of a mask score of {threshold:g} and more, and up to {DOUBTFUL_SHOWN} doubtful ones",
        },
        "examples": [_example(suggested, rank, threshold) for rank, suggested in enumerate(head, start=1)],
        "footer": "suggest.json has all pictures. Nothing in the folder was changed.",
    }


def _example(suggested: Suggested, rank: int, threshold: float) -> dict[str, Any]:
    seen = suggested.seen
    pixels, problem = read_pixels(seen.picture)
    name, shown = utils.printable(seen.name, 300), None
    unsure = doubtful(seen.found)
    if pixels is not None:
        outlines = [(seen.found.masks[place], MODEL_COLOR) for place in kept(seen.found, threshold)]
        outlines += [(seen.found.masks[place], LABEL_COLOR) for place in unsure]
        region = (0, 0, *pixels.shape[:2])
        shown = inline_pixels(draw_outlines(pixels, region, outlines, _SIDE), f"{name} with what the model finds")
    numbers = {
        "doubt": f"{suggested.doubt:.2f}",
        "objects found": f"{len(kept(seen.found, threshold)):,}",
        "doubtful": f"{len(doubtful(seen.found, len(seen.found.scores))):,}",
    }
    note = f"shows the same as {utils.printable(suggested.like)}" if suggested.like else ""
    return {
        "title": f"{rank}. {name}",
        "lines": [],
        "note": note,
        "numbers": numbers,
        "image": shown,
        "problem": problem,
    }

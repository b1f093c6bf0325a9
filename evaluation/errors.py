"""What goes wrong at the score threshold: objects missed, invented, merged, split, sloppy, or of the wrong class.

Every detection without an object, and every object without a detection, belongs to exactly one kind, so that the kinds
add up to the false positives and false negatives at an IoU of 0.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from .examples import Example, choose_largest
from .matching import Scene, match

ERROR_IOU = 0.5  # from which on a detection and an object are a pair
SLOPPY_IOU = 0.1  # from which on a detection is meant for an object, though it is no pair
HALF = 0.5  # of an object that a merge covers; of a detection that shares an object with another one

# In the order in which they are looked for: what each kind means
KINDS = {
    "merge": "One detection covers half or more of two or more objects.",
    "split": "Two or more detections share an object: half or more of each of them lies in it.",
    "wrong class": f"The mask fits an object of another class, with an IoU of {ERROR_IOU} or more.",
    "sloppy": f"The mask overlaps an object of its class, but only by an IoU of {SLOPPY_IOU} to {ERROR_IOU}.",
    "invention": "There is no object of the class that another detection has not found.",
    "miss": "There is no detection of the class that does not belong to another object.",
}


class Error(NamedTuple):
    """One thing that went wrong."""

    kind: str  # one of KINDS
    image: int
    detections: list[dict[str, Any]]  # that take part, best score first
    objects: list[dict[str, Any]]  # that take part
    false_positives: int  # of these detections that have no object
    missed: list[dict[str, Any]]  # of these objects that have no detection


def find_errors(scenes: Iterable[Scene]) -> list[Error]:
    """Everything that went wrong, image by image, kind by kind."""
    return [error for scene in scenes for error in _errors_of(scene)]


def _errors_of(scene: Scene) -> list[Error]:
    rows, columns = match(scene.class_overlaps, ERROR_IOU)
    found = _Finder(scene, rows, columns)
    found.merges()
    found.splits()
    found.wrong_classes()
    found.sloppy()
    for row in np.flatnonzero(found.false):
        found.add("invention", [row], [])
    for column in np.flatnonzero(found.missed):
        found.add("miss", [], [column])
    return found.errors


class _Finder:
    """Looks for one kind after the other; what a kind explains is no error of a later kind."""

    def __init__(self, scene: Scene, rows: np.ndarray, columns: np.ndarray) -> None:
        self.scene, self.errors = scene, []
        self.false = ~scene.ignored(rows)  # [D], detections that no kind explains yet
        self.false[rows] = False
        self.missed = np.ones(len(scene.objects), bool)  # [G], objects that no kind explains yet
        self.missed[columns] = False
        self.counts = ~scene.ignored(rows)  # [D], detections outside of crowds
        self.of_objects, self.of_detections = _covered(scene)

    def add(self, kind: str, rows: Iterable[int], columns: Iterable[int]) -> None:
        """An error of these detections and objects. Those of them that are still open are explained by it."""
        rows, columns = list(map(int, rows)), list(map(int, columns))
        missed = [self.scene.objects[column] for column in columns if self.missed[column]]
        false = int(self.false[rows].sum())
        self.false[rows], self.missed[columns] = False, False
        detections, objects = [self.scene.detections[i] for i in rows], [self.scene.objects[i] for i in columns]
        self.errors.append(Error(kind, self.scene.image, detections, objects, false, missed))

    def merges(self) -> None:
        for row in np.flatnonzero(self.counts):
            columns = np.flatnonzero(self.of_objects[row] >= HALF)
            if len(columns) > 1 and (self.false[row] or self.missed[columns].any()):
                self.add("merge", [row], columns)

    def splits(self) -> None:
        for column in range(len(self.scene.objects)):
            rows = np.flatnonzero((self.of_detections[:, column] >= HALF) & self.counts)
            if len(rows) > 1 and self.false[rows].any():
                self.add("split", rows, [column])

    def wrong_classes(self) -> None:
        overlaps = np.where(self.scene.is_same, 0.0, self.scene.overlaps) * self.false[:, None] * self.missed
        for row, column in zip(*match(overlaps, ERROR_IOU), strict=True):
            self.add("wrong class", [row], [column])

    def sloppy(self) -> None:
        overlaps = self.scene.class_overlaps * self.false[:, None] * self.missed
        for row, column in zip(*match(overlaps, SLOPPY_IOU), strict=True):
            self.add("sloppy", [row], [column])


def _covered(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The share of each object that lies in a detection of its class, and that of the detection in the object.

    Returns: float64 [D, G] each.
    """
    shape = len(scene.detections), len(scene.objects)
    if 0 in shape:
        return np.zeros(shape), np.zeros(shape)
    detections, objects = ([entry["segmentation"] for entry in each] for each in (scene.detections, scene.objects))
    # Of a pair of masks of which the second is a crowd, pycocotools gives the share of the first that lies in it
    of_objects = np.asarray(coco_mask.iou(objects, detections, [1] * shape[0])).T
    of_detections = np.asarray(coco_mask.iou(detections, objects, [1] * shape[1]))
    return np.where(scene.is_same, of_objects, 0.0), np.where(scene.is_same, of_detections, 0.0)


############################################################
#  Counts
############################################################


class KindCount(NamedTuple):
    """How often a kind happened."""

    errors: int
    false_positives: int  # detections without an object that it explains
    false_negatives: int  # objects without a detection that it explains


def count_errors(errors: Iterable[Error]) -> dict[str, KindCount]:
    """The counts of each of KINDS."""
    counts = {kind: KindCount(0, 0, 0) for kind in KINDS}
    for error in errors:
        former = counts[error.kind]
        counts[error.kind] = KindCount(
            former.errors + 1,
            former.false_positives + error.false_positives,
            former.false_negatives + len(error.missed),
        )
    return counts


############################################################
#  Pictures
############################################################


def error_examples(
    errors: Sequence[Error], class_names: Mapping[int, str], titles: Mapping[int, str]
) -> dict[str, list[Example]]:
    """Choose at most EXAMPLES errors of each kind, as find_examples chooses detections.

    Detections that the model is sure of come first, and large ones of the missed objects.

    class_names: by category id. titles: of the images, by id.
    """
    examples: dict[str, list[Example]] = {}
    for kind in KINDS:
        of_kind = [error for error in errors if error.kind == kind]
        worth = np.array([_worth(error) for error in of_kind])
        images = [{"image_id": error.image} for error in of_kind]
        examples[kind] = [_describe_error(of_kind[i], class_names, titles) for i in choose_largest(worth, images)]
    return examples


def _worth(error: Error) -> float:
    if error.detections:
        return 1e-9 + max(entry["score"] for entry in error.detections)
    return max(entry["area"] for entry in error.objects)


def _describe_error(error: Error, class_names: Mapping[int, str], titles: Mapping[int, str]) -> Example:
    masks, truths = ([entry["segmentation"] for entry in each] for each in (error.detections, error.objects))
    first = error.detections[0] if error.detections else None
    overlaps = coco_mask.iou(masks[:1], truths, [0] * len(truths))[0] if masks and truths else np.zeros(0)
    categories = {entry["category_id"]: None for entry in (*error.objects, *error.detections)}
    boxes = np.array([coco_mask.toBbox(code) for code in (*masks, *truths)])
    (x, y), (right, bottom) = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return Example(
        image_id=error.image,
        title=titles[error.image],
        class_name=" taken for ".join(class_names[category] for category in categories),
        class_score=first and first["class_score"],
        mask_iou=first and first["mask_iou"],
        mask_score=first and first["score"],
        true_iou=float(overlaps.max()) if overlaps.size else None if first is None else 0.0,
        box=(float(y), float(x), float(bottom), float(right)),
        mask=masks[0] if masks else None,
        truth=truths[0] if truths else None,
        more_masks=tuple(masks[1:]),
        more_truths=tuple(truths[1:]),
    )

"""Detections matched with objects at a score threshold: F1 and panoptic quality, as biologists report them.

A detection and an object of its class are a pair if their masks overlap by at least an IoU. Pairs are one to one, as
many as possible, and among those with the largest sum of IoUs (StarDist's matching). A detection without an object is
ignored if at least half of it lies in a crowd of its class.

    T IoU thresholds   K categories   A sizes   D detections and G objects of an image
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import utils
from roialign.paste import crop_to_rle

from .boundary import boundary_of
from .names import AREAS

IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
SIZES = AREAS[1:]
SIZE_LIMITS = (32**2, 96**2)  # pixels: COCO's small objects are below the first, its large ones from the second on
CROWD_SHARE = 0.5  # of a detection that lies in a crowd
VISIBLE_SHARE = 0.5  # of a detection that no better one covers, for panoptic quality

############################################################
#  Scenes
############################################################


class Scene(NamedTuple):
    """The objects of an image, and its detections from a score threshold on."""

    image: int  # its id
    detections: list[dict[str, Any]]  # D results, best score first
    objects: list[dict[str, Any]]  # G annotations, without crowds
    overlaps: np.ndarray  # float64 [D, G], the IoU of masks, across classes too
    crowded: np.ndarray  # float64 [D], the largest share of a detection that lies in one crowd of its class

    @property
    def is_same(self) -> np.ndarray:
        """Whether a detection and an object are of one class: bool [D, G]."""
        return _categories(self.detections)[:, None] == _categories(self.objects)

    @property
    def class_overlaps(self) -> np.ndarray:
        """The overlaps, 0 between different classes: float64 [D, G]."""
        return np.where(self.is_same, self.overlaps, 0.0)

    def ignored(self, rows: np.ndarray) -> np.ndarray:
        """Whether a detection lies in a crowd and has no object: bool [D]. rows: of the detections that have one."""
        ignored = self.crowded >= CROWD_SHARE
        ignored[rows] = False
        return ignored


def _categories(entries: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([entry["category_id"] for entry in entries], np.int64)


def make_scenes(truth: COCO, masks: Iterable[dict[str, Any]], threshold: float) -> list[Scene]:
    """All images of a ground truth, in ascending order of their ids.

    truth: of metrics.as_coco. masks: results as to_results makes them, of images and categories of the ground truth.
    threshold: the least "score" of a detection that counts: the mask score, without a MaskIoU head the class score.
    """
    chosen: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in sorted((entry for entry in masks if entry["score"] >= threshold), key=lambda entry: -entry["score"]):
        chosen[entry["image_id"]].append(entry)
    return [make_scene(image, chosen[image], truth.imgToAnns.get(image, [])) for image in sorted(truth.imgs)]


def make_scene(image: int, detections: list[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> Scene:
    """A scene of these detections, best first. annotations: of the image, with crowds."""
    objects = [entry for entry in annotations if not entry["iscrowd"]]
    crowds = [entry for entry in annotations if entry["iscrowd"]]
    inside = np.where(
        _categories(detections)[:, None] == _categories(crowds), _overlaps(detections, crowds, crowded=True), 0.0
    )
    crowded = inside.max(axis=1) if crowds else np.zeros(len(detections))
    return Scene(image, detections, objects, _overlaps(detections, objects), crowded)


def _overlaps(detections: Sequence[dict], others: Sequence[dict], crowded: bool = False) -> np.ndarray:
    """The IoU of masks, float64 [D, len(others)]; with crowded, the share of each detection in another mask."""
    if not detections or not others:
        return np.zeros((len(detections), len(others)))
    codes = ([entry["segmentation"] for entry in entries] for entries in (detections, others))
    return np.asarray(coco_mask.iou(*codes, [int(crowded)] * len(others)), np.float64)


def make_disjoint(scene: Scene, size: tuple[int, int], annotations: Sequence[dict[str, Any]]) -> Scene:
    """A scene in which no two detections share a pixel, as panoptic quality wants it.

    A pixel belongs to the detection with the best score. A detection of which less than VISIBLE_SHARE is left is no
    detection any more.

    size: (height, width) of the image. annotations: of the image, with crowds.
    Source: Panoptic Segmentation (arXiv:1801.00868), section 7.
    """
    taken, kept, is_changed = np.zeros(size, bool), [], False
    for entry in scene.detections:
        y, x, crop = utils.rle_to_crop(entry["segmentation"])
        window = taken[y : y + crop.shape[0], x : x + crop.shape[1]]
        visible = crop & ~window
        left, area = np.count_nonzero(visible), np.count_nonzero(crop)
        is_changed |= left < area
        if left == 0 or left < VISIBLE_SHARE * area:
            continue
        window |= visible
        changed = {"segmentation": crop_to_rle(y, x, np.ascontiguousarray(visible), size), "area": float(left)}
        kept.append({**entry, **changed} if left < area else entry)
    return make_scene(scene.image, kept, annotations) if is_changed else scene


############################################################
#  Matching
############################################################


def match(overlaps: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of an IoU of at least `iou`: one to one, as many as possible, then with the largest sum.

    overlaps: float64 [D, G].

    Returns: rows and columns, int64 [pairs] each, in ascending order of rows.
    Source: stardist/matching.py, github.com/stardist/stardist. There, overlaps below `iou` count in the sum, too.
    """
    is_pair = overlaps >= iou
    rows, columns = np.flatnonzero(is_pair.any(axis=1)), np.flatnonzero(is_pair.any(axis=0))
    possible = is_pair[np.ix_(rows, columns)]
    # All sums together stay below 1, so that they decide only between matchings of as many pairs
    worth = possible * (1 + overlaps[np.ix_(rows, columns)] / (2 * max(len(rows), 1)))
    first, second = scipy.optimize.linear_sum_assignment(-worth)
    chosen = possible[first, second]
    return rows[first[chosen]], columns[second[chosen]]


class Quality(NamedTuple):
    """Counts at a threshold of score and IoU. A number is None where there is neither an object nor a detection."""

    true_positives: int  # pairs
    false_positives: int  # detections without an object
    false_negatives: int  # objects without a detection
    iou_sum: float  # over the pairs
    boundary_sum: float = 0.0  # of boundary IoUs, over the pairs

    def _share(self, total: float, of: float | None = None) -> float | None:
        if not self.true_positives + self.false_positives + self.false_negatives:
            return None
        part = self.true_positives if of is None else of
        return float(part / total) if self.true_positives else 0.0

    @property
    def precision(self) -> float | None:
        """The share of detections that are right."""
        return self._share(self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The share of objects that are found."""
        return self._share(self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; the recognition quality RQ."""
        return self._share(self._units)

    @property
    def accuracy(self) -> float | None:
        """Pairs among pairs, false positives and false negatives: StarDist's accuracy."""
        return self._share(self.true_positives + self.false_positives + self.false_negatives)

    @property
    def mean_iou(self) -> float | None:
        """The mean IoU of the pairs: StarDist's mean matched score, the segmentation quality SQ."""
        return self._share(self.true_positives, self.iou_sum)

    @property
    def mean_boundary_iou(self) -> float | None:
        """The mean boundary IoU of the pairs."""
        return self._share(self.true_positives, self.boundary_sum)

    @property
    def panoptic_quality(self) -> float | None:
        """SQ x RQ, if detections are disjoint."""
        return self._share(self._units, self.iou_sum)

    @property
    def _units(self) -> float:
        return self.true_positives + (self.false_positives + self.false_negatives) / 2


@dataclasses.dataclass
class Counts:
    """Counts for each of IOUS, each category and each size. A pair has the size of its object."""

    categories: list[int]  # K, ascending
    values: np.ndarray  # float64 [5, T, K, A], in the order of Quality

    def quality(self, iou: float, category: int | None = None, size: str | None = None) -> Quality:
        """The counts at an IoU, summed over categories and sizes unless one is named."""
        values = self.values[:, IOUS.index(iou)]  # [5, K, A]
        values = values if category is None else values[:, [self.categories.index(category)]]
        values = values if size is None else values[:, :, [SIZES.index(size)]]
        *counts, iou_sum, boundary_sum = values.sum(axis=(1, 2)).tolist()
        return Quality(*map(int, counts), iou_sum, boundary_sum)

    def mean_over_classes(self, name: str, iou: float) -> float | None:
        """The mean of a number of Quality over the categories that have an object or a detection; None without any."""
        values = [getattr(self.quality(iou, category), name) for category in self.categories]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None


def count(scenes: Iterable[Scene], categories: Sequence[int], boundaries: bool = False) -> Counts:
    """The counts over all scenes. categories: of the ground truth. boundaries: sum boundary IoUs, too."""
    order = sorted(categories)
    counts = Counts(order, np.zeros((5, len(IOUS), len(order), len(SIZES))))
    for scene in scenes:
        cells = {
            "detections": _cells(scene.detections, order),
            "objects": _cells(scene.objects, order),
        }
        overlaps = scene.class_overlaps
        for t, iou in enumerate(IOUS):
            rows, columns = match(overlaps, iou)
            false = ~scene.ignored(rows)
            false[rows] = False
            missed = np.ones(len(scene.objects), bool)
            missed[columns] = False
            pairs = tuple(cells["objects"][columns].T)
            values = counts.values[:, t]
            np.add.at(values[0], pairs, 1)
            np.add.at(values[1], tuple(cells["detections"][false].T), 1)
            np.add.at(values[2], tuple(cells["objects"][missed].T), 1)
            np.add.at(values[3], pairs, overlaps[rows, columns])
            if boundaries:
                np.add.at(values[4], pairs, _boundary_ious(scene, rows, columns))
    return counts


def _cells(entries: Sequence[dict[str, Any]], categories: Sequence[int]) -> np.ndarray:
    """The place of each entry's category and size: int64 [entries, 2]."""
    areas = np.array([entry["area"] for entry in entries], np.float64)
    places = np.searchsorted(categories, _categories(entries))
    return np.stack([places, np.searchsorted(SIZE_LIMITS, areas, side="right")], axis=1)


def _boundary_ious(scene: Scene, rows: np.ndarray, columns: np.ndarray) -> list[float]:
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    entries = [(scene.detections[row], scene.objects[column]) for row, column in pairs]
    return [float(coco_mask.iou([boundary_of(a)], [boundary_of(b)], [0])[0, 0]) for a, b in entries]

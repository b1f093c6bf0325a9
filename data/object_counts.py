"""Counts the objects that a training will see, before its first step and without reading an image."""

from typing import Any, NamedTuple

import numpy as np

import utils
from data.dataset import Dataset, ObjectBoxes


class ObjectCounts(NamedTuple):
    """The objects of a data set, by what a training does with them."""

    listed: int  # in the data set's files
    images: int
    seen: int  # of which the network learns
    unusable: int  # left out when the files were loaded
    not_chosen: int  # of images or categories that were not loaded
    crowds: int  # regions that are neither objects nor background
    vanishing: int  # smaller than a pixel in the network's input
    surplus: int  # beyond MAX_GT_INSTANCES of their image
    vanishing_images: list[int]  # the image_ids of the images with such objects


def count_objects(dataset: Dataset, config: Any) -> ObjectCounts | None:
    """Counts the objects of a data set as TrainingData will take them, from their boxes and the sizes of the images.

    Crops and SCALE_JITTER are random and not considered. MULTI_SCALE counts with its largest size.

    dataset: prepared. config: the Config of the training.

    Returns: None if the data set does not know its boxes (Dataset.object_boxes).
    """
    objects = dataset.object_boxes()
    if objects is None:
        return None
    is_crowd = objects.class_ids < 0
    vanishes = ~is_crowd & _vanishing(objects, config)
    visible = np.bincount(objects.image_ids[~is_crowd & ~vanishes], minlength=dataset.num_images)
    surplus = int((visible - config.MAX_GT_INSTANCES).clip(0).sum())
    return ObjectCounts(
        listed=objects.listed,
        images=dataset.num_images,
        seen=int(visible.sum()) - surplus,
        unusable=objects.unusable,
        not_chosen=objects.listed - objects.unusable - len(is_crowd),
        crowds=int(is_crowd.sum()),
        vanishing=int(vanishes.sum()),
        surplus=surplus,
        vanishing_images=np.unique(objects.image_ids[vanishes]).tolist(),
    )


def _vanishing(objects: ObjectBoxes, config: Any) -> np.ndarray:
    """bool [N]: the objects that have no pixel, or no box of a pixel a side, in the network's input."""
    vanishes = np.zeros(len(objects.boxes), bool)
    heights, widths = objects.sizes[objects.image_ids].T
    order = np.lexsort((widths, heights))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(heights[order]) != 0) | (np.diff(widths[order]) != 0)
    for rows in np.split(order, np.flatnonzero(is_first)[1:]) if len(order) else ():
        vanishes[rows] = _vanish_in(objects.boxes[rows], (int(heights[rows[0]]), int(widths[rows[0]])), config)
    return vanishes


def _vanish_in(boxes: np.ndarray, size: tuple[int, int], config: Any) -> np.ndarray:
    """As _vanishing, for the boxes of images of one size (height, width)."""
    min_dim = max(config.MULTI_SCALE) if config.MULTI_SCALE else None
    plan = utils.plan_image(size, config, min_dim, np.random.default_rng(0))._replace(crop=None)
    low = np.rint(boxes[:, :2])  # the first pixel whose centre is inside
    high = np.maximum(np.rint(boxes[:, 2:]), low + 1)
    has_pixels = np.ones(len(boxes), bool)
    for axis, sources in enumerate((plan.rows(config.MASK_NEAREST), plan.columns(config.MASK_NEAREST))):
        has_pixels &= np.searchsorted(sources, low[:, axis]) < np.searchsorted(sources, high[:, axis])
    if config.USE_MINI_MASK:  # boxes are then those of the masks
        return ~has_pixels
    resized = plan.boxes_in_region(boxes).clip(0, np.array(plan.size * 2, np.float32))
    return ~(has_pixels & (resized[:, 2:] - resized[:, :2] >= 1).all(axis=1))


def describe_objects(dataset: Dataset, config: Any) -> str:
    """A sentence: how many objects the training sees of how many in the files. Empty if that is unknown.

    Raises: ValueError if it sees none.
    """
    counts = count_objects(dataset, config)
    if counts is None:
        return ""
    reasons = [
        (counts.unusable, "cannot be used (see the warnings above)"),
        (counts.not_chosen, "in images or categories that were not chosen"),
        (counts.crowds, "crowds" if counts.crowds > 1 else "crowd"),
        (counts.vanishing, _vanishing_words(dataset, counts)),
        (counts.surplus, f"beyond MAX_GT_INSTANCES = {config.MAX_GT_INSTANCES} of their image"),
    ]
    lost = ", ".join(f"{number:,} {words}" for number, words in reasons if number)
    total = (
        f"{counts.listed:,} object{'s' * (counts.listed != 1)} in {counts.images:,} image{'s' * (counts.images != 1)}"
    )
    if counts.seen == 0:
        hint = "; raise IMAGE_MIN_DIM and IMAGE_MAX_DIM" if counts.vanishing else ""
        hint += "; are objects marked with iscrowd 1, as some tools do for masks?" if counts.crowds else ""
        raise ValueError(f"the training sees no object to learn from, of {total}: {lost or 'there are none'}{hint}")
    return f"Training sees {counts.seen:,} of {total}" + (f"; not seen: {lost}" if lost else "")


def _vanishing_words(dataset: Dataset, counts: ObjectCounts) -> str:
    """Says which objects vanish, with their first images."""
    infos = [dataset.image_info[image_id] for image_id in counts.vanishing_images[:3]]
    names = [utils.printable(info.get("path") or info["id"]) for info in infos]
    sizes = [f" ({info['width']} x {info['height']})" if "width" in info else "" for info in infos]
    images = utils.listed([name + size for name, size in zip(names, sizes, strict=True)])
    more = len(counts.vanishing_images) - len(infos)
    return f"smaller than a pixel in the network's input, in {images}" + (f", and {more} more images" if more else "")

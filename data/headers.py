"""Which image files of a data set cannot be read, told from their headers before a training begins."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import utils

from .dataset import Dataset
from .formats.coco import CocoDataset
from .images import image_size

SAMPLE = 2000  # training images of which the header is read; 2000 take less than a second on a local disk
_THREADS = 8


def unreadable_images(dataset: Dataset, image_ids: Sequence[int] | None = None) -> dict[int, str]:
    """Reads the headers of image files: whether each is there, is an image, and has the size that image_info says.

    A file whose header is in doubt is read as a whole, by the data set. A file that ends too early is not found: its
    header is fine. Images are skipped where load_image is a user's, who may read other files.

    image_ids: default: all.

    Returns: {image_id: the reason}.
    """
    if type(dataset).load_image not in (Dataset.load_image, CocoDataset.load_image):
        return {}
    image_ids = [int(image_id) for image_id in (dataset.image_ids if image_ids is None else image_ids)]
    with ThreadPoolExecutor(_THREADS, "headers") as pool:
        reasons = pool.map(lambda image_id: _problem(dataset, image_id), image_ids)
        return {image_id: reason for image_id, reason in zip(image_ids, reasons, strict=True) if reason}


def _problem(dataset: Dataset, image_id: int) -> str | None:
    """Why an image cannot be read, or None."""
    info = dataset.image_info[image_id]
    size = info.get("height"), info.get("width")
    try:
        found = image_size(info["path"])
        if size in (found.shown, found.stored) or not all(size):
            return None
    except Exception:  # decoders' errors are of many kinds
        pass
    try:
        dataset.load_image(image_id)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def check_headers(train_dataset: Dataset, val_dataset: Dataset | None, max_errors: int) -> None:
    """Prints which images cannot be read: of all validation images, and of 2000 training images spread evenly.

    max_errors: MAX_DATA_ERRORS, so many images end a training.

    Raises: ValueError if so many of the training images are found, or if no validation image can be read.
    """
    step = max(1, -(-train_dataset.num_images // SAMPLE))
    failures = unreadable_images(train_dataset, np.arange(0, train_dataset.num_images, step))
    if len(failures) >= max_errors:
        raise ValueError(
            f"{len(failures)} images to train on cannot be read (MAX_DATA_ERRORS is {max_errors}): {_listed(failures)}"
        )
    if failures:
        print(f"images to train on that cannot be read; others take their places: {_listed(failures)}")
    failures = {} if val_dataset is None else unreadable_images(val_dataset)
    if failures and len(failures) == val_dataset.num_images:
        raise ValueError(f"none of the {len(failures)} images to validate with can be read: {_listed(failures)}")
    if failures:
        print(f"images to validate with that cannot be read; validation goes on without them: {_listed(failures)}")


def _listed(failures: dict[int, str]) -> str:
    return utils.listed((utils.printable(text, 300) for text in failures.values()), 5)

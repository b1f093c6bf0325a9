"""Ground truth and detections in COCO's format, as COCOeval reads them and as they are submitted.

A data set that has COCO's annotations (CocoDataset, by its method `annotations`) keeps the category ids and image ids
of its file. In any other data set, category ids are class ids and image ids are image_id + 1, because pycocotools takes
an id 0 for "none".

COCO's boxes are (x, y, width, height); everywhere else boxes are (y1, x1, y2, x2).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

import utils
from config import Config
from data.dataset import Dataset, check_instances
from detections import ImageDetections

############################################################
#  Models
############################################################


@runtime_checkable
class Detector(Protocol):
    """What evaluation needs of a model. MaskRCNN has it; so can anything that detects with the help of one.

    config: NUM_CLASSES, IMAGES_PER_GPU and DETECTION_MAX_INSTANCES are read.
    class_names: [K], background first; they may be missing if the data set is not in COCO's format.
    category_ids: [K], of COCO's categories, 0 for background; read only if the data set is in COCO's format.
    """

    config: Config
    class_names: Sequence[str]
    category_ids: Sequence[int]

    def detect_batches(
        self, batches: Iterable[Sequence[np.ndarray]], dtype: str = "float32", masks: str = "rle"
    ) -> Iterator[list[dict[str, Any]]]:
        """For each batch of at most IMAGES_PER_GPU images, the results of its images as detect() returns them.

        batches: images, uint8 [H, W, 3]. dtype: of the convolutions. masks: evaluation asks for "rle".
        """
        ...


@runtime_checkable
class ResumableDetector(Detector, Protocol):
    """What an evaluation on the disk needs besides, to know whether it continues the same evaluation and to report.

    device: hashed with the weights. seconds: how long each part of the last detect_batches() took.
    source: where the weights come from, in words.
    """

    device: torch.device
    seconds: Mapping[str, float]
    source: str

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """All weights by name."""
        ...


############################################################
#  Numbers
############################################################


def is_coco(dataset: Dataset) -> bool:
    """Whether a data set has annotations in COCO's format, whose ids it keeps."""
    return hasattr(dataset, "annotations")


def image_number(dataset: Dataset, image_id: int) -> int:
    """The id of an image in results."""
    return int(dataset.image_info[image_id]["id"]) if is_coco(dataset) else int(image_id) + 1


def image_numbers(dataset: Dataset, image_ids: Sequence[int] | None = None) -> list[int]:
    """The ids of images in results; of all by default.

    Raises: ValueError if two images have the same id: their results could not be told apart.
    """
    numbers = [image_number(dataset, image_id) for image_id in (dataset.image_ids if image_ids is None else image_ids)]
    repeated = [str(number) for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise ValueError(
            f"images have the same id: {utils.listed(repeated, 5)}; does image_ids have an image twice, or the data "
            "set images of the same id from several sources?"
        )
    return numbers


def category_numbers(dataset: Dataset) -> list[int]:
    """The category id of each class of a data set in results; 0 for background."""
    return list(dataset.category_ids) if is_coco(dataset) else list(range(dataset.num_classes))


def categories_of_model(model: Detector, dataset: Dataset) -> list[int]:
    """The category id in results of each class index of a model.

    For a data set in COCO's format the model's category_ids say it, in whatever order and with whatever gaps. For any
    other data set, a class of the model is the data set's class of the same name; if the two do not have the same
    names, it is the class in the same place.

    Raises: ValueError if the model was made for other classes.
    """
    if is_coco(dataset):
        _check_categories(model, dataset)
        return [int(category) for category in model.category_ids]
    if dataset.num_classes != model.config.NUM_CLASSES:
        raise ValueError(
            f"the model has {model.config.NUM_CLASSES} classes and the data set {dataset.num_classes}, background "
            f"included: {', '.join(dataset.class_names)}; was the model trained on another data set?"
        )
    names = list(getattr(model, "class_names", ()))
    if sorted(names) == sorted(dataset.class_names) and len(set(names)) == len(names):
        return [dataset.class_names.index(name) for name in names]
    return list(range(dataset.num_classes))


def _check_categories(model: Detector, dataset: Dataset) -> None:
    of_model, of_data = (
        dict(zip(each.category_ids[1:], each.class_names[1:], strict=True)) for each in (model, dataset)
    )
    shared = [category for category in of_data if category in of_model]
    if not shared:
        raise ValueError(
            f"the model knows none of the data set's categories: its are {utils.listed(map(str, of_model))}, "
            f"the data set's {utils.listed(map(str, of_data))}; was the model trained on another data set?"
        )
    renamed = [
        f"{i} is {of_model[i]!r}, here {of_data[i]!r}" for i in shared if _plain(of_model[i]) != _plain(of_data[i])
    ]
    if renamed:
        raise ValueError(
            f"the model's categories have other names than the data set's: {utils.listed(renamed, 5)}; was the model "
            "trained on another data set? (category_ids and class_names of the checkpoint say what its classes are)"
        )


def _plain(name: str) -> str:
    """Letters and digits only, in lower case: "hair drier" and "Hair-Drier" are the same category."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


############################################################
#  Ground truth
############################################################


def ground_truth(dataset: Dataset, image_ids: Sequence[int] | None = None) -> dict[str, Any]:
    """A data set as the contents of a COCO annotation file, with its images without objects.

    dataset: prepared. image_ids: the images to include; all by default.

    Returns: {"images", "categories", "annotations"}. An image has id, height, width, and what dataset.image_facts says.
        Annotations count from 1: pycocotools takes an annotation 0 for "no match", and confuses two of one id.
    Raises: as image_numbers.
    """
    image_ids = dataset.image_ids if image_ids is None else image_ids
    images, annotations = [], []
    for image_id, number in zip(map(int, image_ids), image_numbers(dataset, image_ids), strict=True):
        height, width = image_size(dataset, image_id)
        images.append({**dataset.image_facts(image_id), "id": number, "height": height, "width": width})
        for entry in _annotations(dataset, image_id, (height, width)):
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": number})
    names = list(zip(category_numbers(dataset), dataset.class_names, strict=True))
    categories = [{"id": number, "name": name} for number, name in names[1:]]
    return {"images": images, "categories": categories, "annotations": annotations}


def image_size(dataset: Dataset, image_id: int) -> tuple[int, int]:
    """(height, width) by image_info, or by the image itself if image_info does not have it."""
    info = dataset.image_info[image_id]
    if info.get("height") and info.get("width"):
        return int(info["height"]), int(info["width"])
    return dataset.load_image(image_id).shape[:2]


def _annotations(dataset: Dataset, image_id: int, shape: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """An image's objects as annotations without ids.

    A mask without a pixel is no object, except in COCO's format, where the file decides.
    """
    if is_coco(dataset):
        yield from dataset.annotations(image_id)
        return
    info = dataset.image_info[image_id]
    name = f"image {info['source']}.{info['id']}"
    class_ids, masks, boxes = check_instances(dataset.load_instances(image_id), shape, name, dataset.num_classes)
    rles = masks if isinstance(masks, list) else utils.mask_to_rle(masks)
    for i, (class_id, rle) in enumerate(zip(class_ids.tolist(), rles, strict=True)):
        area = utils.rle_area(rle)
        if area == 0:
            continue
        y1, x1, y2, x2 = utils.rle_to_bbox(rle) if boxes is None else boxes[i].tolist()
        yield {
            "category_id": abs(class_id),
            "iscrowd": int(class_id < 0),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "segmentation": utils.rle_to_json(rle),
        }


############################################################
#  Results
############################################################


def to_results(
    detections: dict[str, Any], image_id: int, category_ids: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One image's detections as COCO results, which json.dump takes.

    detections: of detect(masks="rle"). image_id: as in the ground truth. category_ids: of each class index.

    Returns: the boxes, scored by class score; the masks, scored by mask score, with "class_score" and "mask_iou" (None
        without a MaskIoU head) beside it. Masks have no "bbox": pycocotools would take the area of the box for the
        area of the mask.
    """
    masks = ImageDetections.of(detections).to_coco(image_id, category_ids)
    boxes = [
        {name: entry[name] for name in ("image_id", "category_id")}
        | {"bbox": entry.pop("bbox"), "score": entry["class_score"]}
        for entry in masks
    ]
    return boxes, masks

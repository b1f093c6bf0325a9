"""Ground truth and detections in COCO's format, as COCOeval reads them and as they are submitted.

A data set that has COCO's annotations (CocoDataset, by its method `annotations`) keeps the category ids and image ids
of its file. In any other data set, category ids are class ids and image ids are image_id + 1, because pycocotools takes
an id 0 for "none".

COCO's boxes are (x, y, width, height); everywhere else boxes are (y1, x1, y2, x2).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

import utils
from config import Config
from data.classes import UNKNOWN, Classes, map_to_model
from data.dataset import Dataset, check_instances
from data.formats.coco_file import LABELLED
from detections import ImageDetections

############################################################
#  Models
############################################################


@runtime_checkable
class Detector(Protocol):
    """What evaluation needs of a model. MaskRCNN has it; so can anything that detects with the help of one.

    config: NUM_CLASSES, IMAGES_PER_GPU and DETECTION_MAX_INSTANCES are read.
    class_names: [K], background first: a class of the data set is the one of the same name. They may be missing if the
        data set has as many classes, in the same order.
    category_ids: [K], 0 for background. They tell classes of the same name apart, and may be missing.
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


@runtime_checkable
class LoadingDetector(Detector, Protocol):
    """A detector that loads images in a way of its own, such as TiledDetector, which reads large ones by regions.

    identity: what its detections depend on beside weights and settings, as json.dump takes it.
    """

    identity: Mapping[str, Any]

    def load_image(self, dataset: Dataset, image_id: int) -> Any:
        """An image as detect_batches takes it: an array, or what has `shape` and `read`.

        Raises: as Dataset.load_image.
        """
        ...


def load_picture(model: Detector, dataset: Dataset, image_id: int) -> Any:
    """An image of a data set as a detector takes it. Raises: as Dataset.load_image."""
    return model.load_image(dataset, image_id) if isinstance(model, LoadingDetector) else dataset.load_image(image_id)


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

    A class of the model is the data set's class of the same name, whatever its place or id: see data.classes. A class
    that the data set does not have keeps the model's category id, or gets an unused one where the data set uses that id
    for another class.

    Raises: ValueError if the model knows none of the data set's classes.
    """
    if dataset.num_classes < 2:
        raise ValueError("the data set has no classes, and so no objects to evaluate; was add_class called?")
    numbers, own = category_numbers(dataset), Classes.of(model)
    own_numbers = list(range(len(own.names))) if own.ids is None else own.ids
    return map_to_model(dataset, model).numbers_of_rows(numbers, own_numbers)


def class_notes(model: Detector, dataset: Dataset, title: str = "the data set") -> list[str]:
    """What a reader should know about how classes of a model and a data set were matched: a sentence each.

    title: what the sentences call the data set.

    Raises: as categories_of_model.
    """
    return map_to_model(dataset, model, title).sentences("their objects are left out of all numbers")


############################################################
#  Ground truth
############################################################


def ground_truth(
    dataset: Dataset, image_ids: Sequence[int] | None = None, failures: dict[int, str] | None = None
) -> dict[str, Any]:
    """A data set as the contents of a COCO annotation file, with its images without objects.

    dataset: prepared. image_ids: the images to include; all by default.
    failures: a dict to be filled with the reason for each image_id whose size or objects cannot be read, which is then
        left out. None: the error is raised.

    Returns: {"images", "categories", "annotations"}. An image has id, height, width, and what dataset.image_facts says;
        if only some of its classes are labelled (dataset.labelled_class_ids), their category ids as "labelled_classes",
        by which metrics.counted_results goes. Annotations count from 1: pycocotools takes an annotation 0 for "no
        match", and confuses two of one id.
    Raises: as image_numbers.
    """
    image_ids = dataset.image_ids if image_ids is None else image_ids
    images, annotations, categories = [], [], category_numbers(dataset)
    for image_id, number in zip(map(int, image_ids), image_numbers(dataset, image_ids), strict=True):
        try:
            height, width = image_size(dataset, image_id)
            entries = list(_annotations(dataset, image_id, (height, width)))
        except Exception as error:  # users' code and files may raise anything
            if failures is None or isinstance(error, MemoryError):
                raise
            failures[image_id] = str(error) or type(error).__name__
            continue
        images.append({**dataset.image_facts(image_id), "id": number, "height": height, "width": width})
        images[-1].pop(LABELLED, None)
        labelled = dataset.labelled_class_ids(image_id)
        if labelled is not None:
            images[-1][LABELLED] = [categories[class_id] for class_id in labelled]
        for entry in entries:
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": number})
    names = list(zip(categories, dataset.class_names, strict=True))
    categories = [{"id": number, "name": name} for number, name in names[1:]]
    return {"images": images, "categories": categories, "annotations": annotations}


def known_truth(model: Detector, dataset: Dataset, contents: dict[str, Any]) -> dict[str, Any]:
    """A ground truth without the categories that a model does not know, and without their objects.

    contents: of ground_truth(dataset); it stays as it is.

    Raises: as categories_of_model.
    """
    numbers = np.array(category_numbers(dataset))
    unknown = set(numbers[map_to_model(dataset, model).rows == UNKNOWN].tolist())
    categories = [entry for entry in contents["categories"] if entry["id"] not in unknown]
    annotations = [entry for entry in contents["annotations"] if entry["category_id"] not in unknown]
    return {**contents, "categories": categories, "annotations": annotations}


def without_images(contents: dict[str, Any], numbers: Collection[int]) -> dict[str, Any]:
    """A ground truth without the images of these numbers, and without their objects. contents stays as it is."""
    images = [entry for entry in contents["images"] if entry["id"] not in numbers]
    annotations = [entry for entry in contents["annotations"] if entry["image_id"] not in numbers]
    return {**contents, "images": images, "annotations": annotations}


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

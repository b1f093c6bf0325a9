"""COCO: its configuration, and COCO-style evaluation of any data set.

81 classes, 0 is background; index i is COCO's i-th smallest category id.

Evaluation goes from detections to results (lists in COCO's submission format) to COCOeval to numbers. Boxes are ranked
by class score. The same masks are ranked three times: by class score, by mask score, and by class score x true IoU,
which is what a MaskIoU head that is never wrong would give.

COCO's boxes are (x, y, width, height); everywhere else boxes are (y1, x1, y2, x2).
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

import utils
from config import COCO_CATEGORIES, Config

############################################################
#  Configuration
############################################################


class CocoConfig(Config):
    """Mask Scoring R-CNN on COCO's 80 categories."""

    NAME = "coco"
    NUM_CLASSES = 1 + len(COCO_CATEGORIES)
    CLASS_NAMES = ("BG", *(COCO_CATEGORIES[category] for category in sorted(COCO_CATEGORIES)))
    CATEGORY_IDS = (0, *sorted(COCO_CATEGORIES))


############################################################
#  Ground truth and results in COCO's format
############################################################


def ground_truth(dataset: utils.Dataset, image_ids: Sequence[int] | None = None) -> dict[str, Any]:
    """A data set as the contents of a COCO annotation file. Images without objects are in it.

    dataset: prepared. image_ids: the images wanted; all by default.

    Returns: {"images", "categories", "annotations"}. Category ids are class ids, image ids are image_id + 1, and
        annotations count from 1: pycocotools takes an annotation 0 for "no match".
    """
    images, annotations = [], []
    for image_id in map(int, dataset.image_ids if image_ids is None else image_ids):
        height, width = dataset.load_image(image_id).shape[:2]
        images.append({"id": image_id + 1, "height": height, "width": width})
        for entry in _annotations(dataset, image_id, (height, width)):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id + 1, **entry})
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.class_names) if i > 0]
    return {"images": images, "categories": categories, "annotations": annotations}


def _annotations(dataset: utils.Dataset, image_id: int, shape: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """An image's objects as annotations without ids. Masks without a pixel are no objects."""
    info = dataset.image_info[image_id]
    name = f"image {info['source']}.{info['id']}"
    class_ids, masks, boxes = utils.check_instances(dataset.load_instances(image_id), shape, name, dataset.num_classes)
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


def to_results(
    detections: dict[str, Any], image_id: int, category_ids: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One image's detections as COCO results, which json.dump takes.

    detections: of detect(masks="rle"). image_id: of the COCO file. category_ids: of each class index.

    Returns: the boxes, scored by class; the masks, scored by mask score, with class_score and mask_iou (None without a
        MaskIoU head) beside it. Masks have no "bbox": pycocotools would take the area of the box for the mask's.
    """
    boxes, masks = [], []
    ious = detections["mask_ious"]
    for i, (y1, x1, y2, x2) in enumerate(detections["rois"].tolist()):
        entry = {"image_id": image_id, "category_id": int(category_ids[int(detections["class_ids"][i])])}
        class_score = float(detections["scores"][i])
        boxes.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": class_score})
        mask = {
            "segmentation": utils.rle_to_json(detections["masks"][i]),
            "score": float(detections["mask_scores"][i]),
            "class_score": class_score,
            "mask_iou": None if ious is None else float(ious[i]),
        }
        masks.append({**entry, **mask})
    return boxes, masks


def detect_dataset(
    model: Any, dataset: utils.Dataset, image_ids: Sequence[int] | None = None, verbose: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detect in the images of a data set, a batch at a time.

    model: MaskRCNN, or what has its detect() and config. verbose: show progress.

    Returns: results of all boxes, results of all masks; ids as in ground_truth.
    Raises: ValueError if the model has another number of classes than the data set.
    """
    if dataset.num_classes != model.config.NUM_CLASSES:
        raise ValueError(
            f"the model has {model.config.NUM_CLASSES} classes and the data set {dataset.num_classes}, background "
            f"included: {', '.join(dataset.class_names)}; was the model trained on another data set?"
        )
    image_ids = [int(image_id) for image_id in (dataset.image_ids if image_ids is None else image_ids)]
    boxes, masks = [], []
    with tqdm(total=len(image_ids), unit="image", disable=not verbose) as progress:
        for start in range(0, len(image_ids), model.config.IMAGES_PER_GPU):
            batch = image_ids[start : start + model.config.IMAGES_PER_GPU]
            found = model.detect([dataset.load_image(image_id) for image_id in batch], masks="rle")
            for image_id, detections in zip(batch, found, strict=True):
                of_boxes, of_masks = to_results(detections, image_id + 1, dataset.class_ids)
                boxes += of_boxes
                masks += of_masks
            progress.update(len(batch))
    return boxes, masks


############################################################
#  Average precision
############################################################

AREAS = ("all", "small", "medium", "large")
# What is reported: name: (IoU threshold or None for the mean of .50 to .95, area)
MEASURES = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pycocotools prints each of its steps."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def as_coco(contents: dict[str, Any], results: list[dict[str, Any]] | None = None) -> COCO:
    """pycocotools' index of a ground truth, or, with results, what its loadRes(results) makes of them.

    Unlike loadRes it takes an empty list, and leaves the results as they are.
    """
    index = COCO()
    index.dataset = contents
    if results is not None:
        index.dataset = {**contents, "annotations": [_as_annotation(entry, i) for i, entry in enumerate(results, 1)]}
    with _quiet():
        index.createIndex()
    return index


def _as_annotation(entry: dict[str, Any], number: int) -> dict[str, Any]:
    area = entry["bbox"][2] * entry["bbox"][3] if "bbox" in entry else coco_mask.area(entry["segmentation"])
    return {**entry, "id": number, "area": float(area), "iscrowd": 0}


def run_cocoeval(truth: COCO, results: list[dict[str, Any]], kind: str, max_dets: int) -> COCOeval:
    """Match results to a ground truth, over all of its images.

    kind: "bbox" or "segm". max_dets: how many of an image's best results of a class count.

    Returns: COCOeval after evaluate() and accumulate(); average_precision reads it. Its summarize() is no good here:
        it prints, and wants the 100 of COCO among several max_dets.
    """
    evaluation = COCOeval(truth, as_coco(truth.dataset, results), kind)
    evaluation.params.maxDets = [max_dets]
    with _quiet():
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def average_precision(
    evaluation: COCOeval, iou: float | None = None, area: str = "all", category: int | None = None
) -> float:
    """COCO's AP: precision at 101 recalls, then the mean over recalls, IoU thresholds and categories.

    iou: one of the ten thresholds; all by default. area: one of AREAS. category: a category id; all by default.

    Returns: AP in [0, 1]; -1, as pycocotools has it, if there is no such object.
    """
    params = evaluation.params
    precision = evaluation.eval["precision"][:, :, :, AREAS.index(area), -1]  # [T, R, K]
    if iou is not None:
        precision = precision[np.isclose(params.iouThrs, iou)]
    if category is not None:
        precision = precision[:, :, [params.catIds.index(category)]]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


############################################################
#  What mask scoring changes
############################################################

# How masks are ranked: what it adds to the name of a measure, the score of a result with this true IoU.
RANKINGS: dict[str, Callable[[dict, float], float]] = {
    " (class score)": lambda entry, true_iou: entry["class_score"],
    "": lambda entry, true_iou: entry["score"],
    " (true IoU)": lambda entry, true_iou: entry["class_score"] * true_iou,
}


def true_ious(truth: COCO, masks: list[dict[str, Any]]) -> np.ndarray:
    """The largest IoU of each mask with an object of its class that is no crowd; 0 where there is none.

    Returns: float64 [N].
    """
    objects, found = {}, {}
    for annotation in truth.dataset["annotations"]:
        if not annotation["iscrowd"]:
            key = annotation["image_id"], annotation["category_id"]
            objects.setdefault(key, []).append(annotation["segmentation"])
    for i, entry in enumerate(masks):
        found.setdefault((entry["image_id"], entry["category_id"]), []).append(i)
    ious = np.zeros(len(masks))
    for key in found.keys() & objects.keys():
        codes = [masks[i]["segmentation"] for i in found[key]]
        ious[found[key]] = coco_mask.iou(codes, objects[key], [0] * len(objects[key])).max(axis=1)
    return ious


def correlation(masks: list[dict[str, Any]], ious: np.ndarray) -> float:
    """Pearson's, of the predicted and the true IoUs; 0 where it has no meaning (no MaskIoU head, all the same)."""
    if len(masks) < 2 or masks[0]["mask_iou"] is None:
        return 0.0
    predicted = np.array([entry["mask_iou"] for entry in masks])
    if np.ptp(predicted) == 0 or np.ptp(ious) == 0:
        return 0.0
    return float(np.corrcoef(predicted, ious)[0, 1])


def compare(
    contents: dict[str, Any], boxes: list[dict[str, Any]], masks: list[dict[str, Any]], max_dets: int
) -> dict[str, float]:
    """Every number of an evaluation: see evaluate_dataset.

    contents: a ground truth in COCO's format. boxes, masks: results, as detect_dataset has them.
    """
    truth = as_coco(contents)
    evaluation = run_cocoeval(truth, boxes, "bbox", max_dets)
    metrics = {f"box {name}": average_precision(evaluation, *what) for name, what in MEASURES.items()}
    ious = true_ious(truth, masks)
    for ranking, score in RANKINGS.items():
        ranked = [{**entry, "score": score(entry, iou)} for entry, iou in zip(masks, ious.tolist(), strict=True)]
        evaluation = run_cocoeval(truth, ranked, "segm", max_dets)
        metrics |= {f"mask {name}{ranking}": average_precision(evaluation, *what) for name, what in MEASURES.items()}
    for name in MEASURES:
        metrics[_gain(name)] = metrics[f"mask {name}"] - metrics[f"mask {name} (class score)"]
    counts = {"images": len(contents["images"]), "detections": len(masks), "max_dets": max_dets}
    return metrics | {"IoU correlation": correlation(masks, ious), **counts}


def _gain(name: str) -> str:
    return "re-scoring gain" if name == "AP" else f"re-scoring gain {name}"


def metrics_table(metrics: dict[str, float]) -> str:
    """The numbers of compare for people: AP in points (0 to 100), a ranking a line."""
    rows = {
        "boxes by class score": [f"box {name}" for name in MEASURES],
        "masks by class score": [f"mask {name} (class score)" for name in MEASURES],
        "masks by mask score": [f"mask {name}" for name in MEASURES],
        "re-scoring gain": [_gain(name) for name in MEASURES],
        "masks by true IoU (limit)": [f"mask {name} (true IoU)" for name in MEASURES],
    }
    known = [metrics[f"box {name}"] >= 0 for name in MEASURES]  # -1: there is no object of this size
    lines = [f"{'':26}" + "".join(f"{name:>8}" for name in MEASURES)]
    for title, names in rows.items():
        sign = "+" if "gain" in title else ""
        values = [f"{100 * metrics[name]:{sign}.1f}" for name in names]
        cells = [f"{value if shown else '-':>8}" for value, shown in zip(values, known, strict=True)]
        lines.append(f"{title:26}" + "".join(cells))
    lines.append(
        f"{metrics['images']:.0f} images, {metrics['detections']:.0f} detections, at most {metrics['max_dets']:.0f} of "
        f"a class in an image; correlation of predicted and true IoU: {metrics['IoU correlation']:.2f}"
    )
    return "\n".join(lines)


############################################################
#  Evaluation
############################################################


def evaluate_dataset(
    model: Any,
    dataset: utils.Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = True,
) -> dict[str, float]:
    """COCO-style evaluation: one pass of detection, with and without re-scoring.

    model: MaskRCNN, or what has its detect() and config; its classes are those of the data set.
    dataset: prepared; objects of negative class id are crowds. image_ids: the images wanted; all by default.
    max_dets: how many of an image's best results of a class count; by default DETECTION_MAX_INSTANCES, or COCO's 100
        if that is more. verbose: show progress, and print a table.

    Returns: numbers by name. AP is in [0, 1], -1 if there is no such object; X is AP, AP50, AP75, or of small, medium
        and large objects APs, APm, APl:
            "box X", by class score; "mask X", by mask score; "mask X (class score)"; "mask X (true IoU)", by class
            score x true IoU, the upper bound of re-scoring;
            "re-scoring gain", "re-scoring gain AP50" ...: by mask score minus by class score;
            "IoU correlation" of predicted and true IoU over all detections;
            "images", "detections", "max_dets".
    Raises: ValueError if model and data set differ in classes, or max_dets is below 1.
    """
    if max_dets is None:
        max_dets = max(100, model.config.DETECTION_MAX_INSTANCES)
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    boxes, masks = detect_dataset(model, dataset, image_ids, verbose)
    metrics = compare(ground_truth(dataset, image_ids), boxes, masks, max_dets)
    if verbose:
        print(metrics_table(metrics))
    return metrics


def evaluation_callback(
    dataset: utils.Dataset,
    image_ids: Sequence[int] | None = None,
    max_dets: int | None = None,
    verbose: bool = False,
) -> Callable[[Any], dict[str, float]]:
    """What train_model takes as `evaluate`: a function of the model that evaluates it as evaluate_dataset does."""
    return lambda model: evaluate_dataset(model, dataset, image_ids, max_dets, verbose)

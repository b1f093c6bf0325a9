"""What detect() returns, as other packages have it: supervision (Roboflow) and FiftyOne (Voxel51).

    to_supervision(result, class_names)     supervision.Detections: annotators, trackers, zones
    to_fiftyone(result, class_names)        fiftyone.Detections: a field of a sample, to look at in the app

result is a dict of MaskRCNN.detect or of onnx_detect.Detector.detect, with masks as an array or as run-length codes.
The packages are optional: `pip install supervision`, `pip install fiftyone`. Only run-length codes need torch.

    N objects   H, W the image's height and width
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def to_supervision(result: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Any:
    """The detections of an image as supervision.Detections.

    result: as detect() returns it. class_names: of each class index, the background first; with them, the annotators
        of supervision write names.

    Returns: xyxy float32 [N, (x1, y1, x2, y2)]; mask bool [N, H, W], or None without an object whose run-length code
        would say H and W; class_id int [N], where 1 is the first class; confidence float32 [N], the mask score; data
        with class_score [N] and, with a MaskIoU head, mask_iou [N], and class_name [N].
    Raises: ImportError without the package.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(f"to_supervision needs the package supervision: pip install supervision ({error})") from error
    masks = result["masks"]
    if isinstance(masks, list):
        import utils

        masks = np.moveaxis(utils.rle_to_mask(masks), -1, 0) if masks else None
    else:
        masks = np.moveaxis(masks, -1, 0)
    class_ids = result["class_ids"].astype(int)
    data = {"class_score": result["scores"]}
    if result["mask_ious"] is not None:
        data["mask_iou"] = result["mask_ious"]
    if class_names is not None:
        data["class_name"] = np.array([class_names[i] for i in class_ids], dtype=str)
    return supervision.Detections(
        xyxy=result["rois"][:, [1, 0, 3, 2]],
        mask=masks,
        class_id=class_ids,
        confidence=result["mask_scores"],
        data=data,
    )


def to_fiftyone(result: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    """The detections of an image as fiftyone.Detections, for a field of its sample.

    Each has its label, its mask inside its box, the mask score as confidence, and the attributes class_score and, with
    a MaskIoU head, mask_iou. The boxes are those around the masks, because FiftyOne stretches a mask to its box. An
    object without a pixel is left out.

    result: as detect() returns it. class_names: of each class index, the background first.

    Raises: ImportError without the package.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise ImportError(f"to_fiftyone needs the package fiftyone: pip install fiftyone ({error})") from error
    detections = []
    for i, (y, x, crop, (height, width)) in enumerate(_crops(result["masks"])):
        if not crop.size:
            continue
        scores = {"class_score": float(result["scores"][i])}
        if result["mask_ious"] is not None:
            scores["mask_iou"] = float(result["mask_ious"][i])
        detection = fiftyone.Detection(
            label=class_names[int(result["class_ids"][i])],
            bounding_box=[x / width, y / height, crop.shape[1] / width, crop.shape[0] / height],
            mask=crop,
            confidence=float(result["mask_scores"][i]),
            **scores,
        )
        detections.append(detection)
    return fiftyone.Detections(detections=detections)


def _crops(masks: Any) -> Iterator[tuple[int, int, np.ndarray, tuple[int, int]]]:
    """Of each mask its first row and column, its pixels inside the smallest box, and the (height, width) of the image.

    masks: bool [H, W, N] or run-length codes.
    """
    if isinstance(masks, list):
        import utils

        for code in masks:
            yield (*utils.rle_to_crop(code), tuple(code["size"]))
        return
    for mask in np.moveaxis(masks, -1, 0):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y1, y2 = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        x1, x2 = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
        yield int(y1), int(x1), mask[y1:y2, x1:x2], mask.shape

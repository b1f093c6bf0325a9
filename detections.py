"""What is found in images, as columns of equal length: Detections of a batch, ImageDetections of one image.

detections[detections.scores > 0.5]        rows by a mask, by indices or by a slice
detections.sorted_by("scores")             best first
Detections.cat([detections, others])       one below the other
len(detections)

N instances   M mask side   H, W the image's height and width
Boxes are (y1, x1, y2, x2); (y2, x2) lies outside.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import runtime
import utils


class _Columns:
    """Rows of a dataclass whose fields are columns: tensors, arrays or lists of one length, or None."""

    def _map(self, function: Callable[[str, Any], Any]) -> Self:
        """The same with function(name, column) of each column that is not None."""
        columns = ((field.name, getattr(self, field.name)) for field in fields(self))
        return type(self)(*(None if column is None else function(name, column) for name, column in columns))

    def __getitem__(self, rows: Any) -> Self:
        """rows: bool [N], indices [n], or a slice."""
        if isinstance(rows, int | np.integer):
            raise TypeError(f"detections[{rows}] is not one row: give a list [{rows}], a mask or a slice")
        return self._map(lambda name, column: self._rows_of(name, column, rows))

    @staticmethod
    def _rows_of(name: str, column: Any, rows: Any) -> Any:
        return column[rows]

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """One below the other; at least one part.

        Raises: ValueError if a column is None in some parts only.
        """
        parts, columns = list(parts), []
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            is_none = [value is None for value in values]
            if any(is_none) and not all(is_none):
                raise ValueError(f"{field.name} is None in some of the parts only; are they of different models?")
            columns.append(None if all(is_none) else cls._joined(field.name, values))
        return cls(*columns)

    @staticmethod
    def _joined(name: str, values: Sequence[Any]) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Detections(_Columns):
    """What the network finds in a batch, in pixels of its input: tensors on one device.

    The network returns the detections of an image together, highest score first.
    """

    boxes: Tensor  # [N, 4], shrunk (see model.py)
    batch_index: Tensor  # [N], the image of each
    class_ids: Tensor  # [N], never 0
    scores: Tensor  # [N], of the class
    mask_logits: Tensor | None = None  # [N, M, M], of the class
    maskious: Tensor | None = None  # [N], of the class, unbounded; None without a MaskIoU head

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def _joined(name: str, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))

    def sorted_by(self, name: str) -> "Detections":
        """Highest first by a column of numbers, such as "scores"; ties keep their order."""
        return self[getattr(self, name).argsort(descending=True, stable=True)]

    def to(self, device: torch.device | str) -> "Detections":
        if torch.device(device).type == "cpu" and self.scores.device.type != "cpu":
            return self._downloaded()
        return self._map(lambda name, column: column.to(device))

    def _downloaded(self) -> "Detections":
        """On the CPU, by one copy of all columns. It waits for the device, and so would a copy of each column."""
        columns: dict[str, Tensor] = {}
        self._map(columns.setdefault)
        # The widest numbers come first, so that all are aligned.
        names = sorted(columns, key=lambda name: columns[name].element_size(), reverse=True)
        packed = torch.cat([columns[name].flatten().view(torch.uint8) for name in names])
        host = runtime.empty_for_copies(packed.device, packed.shape, torch.uint8).copy_(packed)
        parts = dict(zip(names, host.split([columns[name].nbytes for name in names]), strict=True))
        return self._map(lambda name, column: parts[name].view(column.dtype).view(column.shape))


@dataclass(frozen=True, eq=False)
class ImageDetections(_Columns):
    """What detect() finds in one image, in pixels of the image: arrays, by the names of detect()'s dict."""

    rois: np.ndarray  # float32 [N, 4]
    class_ids: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N], of the class
    mask_ious: np.ndarray | None  # float32 [N], predicted; None without a MaskIoU head
    mask_scores: np.ndarray  # float32 [N], scores x mask_ious
    masks: np.ndarray | list[dict[str, Any]]  # bool [H, W, N], or N run-length codes

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "ImageDetections":
        """Of a dict as detect() returns it. Other entries of it are left out."""
        return cls(*(result[field.name] for field in fields(cls)))

    def to_result(self) -> dict[str, Any]:
        """The dict that detect() returns."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def _rows_of(name: str, column: Any, rows: Any) -> Any:
        rows = np.asarray(rows, dtype=None if len(rows) else int) if isinstance(rows, Sequence) else rows
        if isinstance(column, list):
            return [column[i] for i in np.arange(len(column))[rows]]
        return column[..., rows] if name == "masks" else column[rows]

    @staticmethod
    def _joined(name: str, values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [code for codes in values for code in codes]
        return np.concatenate(values, axis=-1 if name == "masks" else 0)

    def sorted_by(self, name: str) -> "ImageDetections":
        """Highest first by a column of numbers, such as "mask_scores"; ties keep their order."""
        return self[np.argsort(-getattr(self, name), kind="stable")]

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """An entry for each instance in COCO's format of results, as json.dump takes it.

        image_id: the number of the image. category_ids: of each class index. The masks must be run-length codes.

        Returns: dicts of image_id, category_id, segmentation, score (that of the mask), class_score, mask_iou (None
            without a MaskIoU head) and bbox (x, y, width, height).
        """
        entries = []
        for i, (y1, x1, y2, x2) in enumerate(self.rois.tolist()):
            entry = {
                "image_id": image_id,
                "category_id": int(category_ids[int(self.class_ids[i])]),
                "segmentation": utils.rle_to_json(self.masks[i]),
                "score": float(self.mask_scores[i]),
                "class_score": float(self.scores[i]),
                "mask_iou": None if self.mask_ious is None else float(self.mask_ious[i]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            entries.append(entry)
        return entries

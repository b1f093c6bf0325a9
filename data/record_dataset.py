"""A Dataset of records: trains and evaluates on labels of any format."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

import utils
from data.dataset import Dataset, Instances, ObjectBoxes
from data.images import count_channels, fit_channels
from data.large import RegionImage
from data.object_checks import class_name, picture_name, sorted_names
from data.recognise import Records

logger = logging.getLogger(__name__)

SOURCE = "own"


class RecordDataset(Dataset):
    """The pictures of a data set in any format, of one split or of all. prepare() is done.

    Classes are the names of all splits, in the order of object_checks.sorted_names, so they have the same numbers in
    each split. Category ids are 1, 2 ... in this order. An object without a class name is of the class "object".

    Masks are kept as run-length codes in one block of bytes, so that worker processes share their memory.
    """

    boxes_are_checked = boxes_are_exact = True  # they are made from the masks

    def __init__(self, records: Records, split: str | None = None, class_names: Sequence[str] | None = None) -> None:
        """records: as open_records returns them; after data.check.check, without objects that cannot be used.

        split: one of records.SPLITS; None: all pictures. Pictures that nobody labelled are left out.
        class_names: without the background; None: those of records.

        Raises: ValueError if no picture is left, or class_names lacks a class.
        """
        super().__init__()
        self._channel_count: int | None = None
        names = list(class_names) if class_names is not None else sorted_names(records.pictures)
        for number, name in enumerate(names, start=1):
            self.add_class(SOURCE, number, name)
        pictures = [picture for picture in records.pictures if picture.is_labelled and split in (None, picture.split)]
        if not pictures:
            raise ValueError(f"{records.root} has no labelled picture{f' in the split {split}' if split else ''}")
        for picture in pictures:
            self.add_image(
                SOURCE, picture_name(records, picture), None if picture.path is None else str(picture.path),
                height=picture.height, width=picture.width, is_stored=picture.is_stored, embedded=picture.embedded,
                labelled_classes=picture.labelled_classes,
            )  # fmt: skip
        self._store(pictures, {name: number for number, name in enumerate(names, start=1)})
        self.prepare()

    def _store(self, pictures: list, number_of: dict[str, int]) -> None:
        """Turns all objects into columns: codes, class ids, boxes."""
        codes, class_ids, boxes, counts = [], [], [], []
        for picture in pictures:
            masks = [parsed.mask(picture.height, picture.width) for parsed in picture.objects]
            counts.append(len(masks))
            codes += [mask["counts"] for mask in masks]
            for parsed in picture.objects:
                if class_name(parsed) not in number_of:
                    raise ValueError(f"class_names lacks {class_name(parsed)!r}, which {picture.name} has")
                class_ids.append(number_of[class_name(parsed)] * (-1 if parsed.is_crowd else 1))
            if masks:
                x, y, width, height = coco_mask.toBbox(masks).T
                boxes.append(np.stack([y, x, y + height, x + width], axis=1))
        self._codes = b"".join(codes)
        self._ends = np.cumsum([0, *map(len, codes)], dtype=np.int64)  # of each code in _codes
        self._rows = np.cumsum([0, *counts], dtype=np.int64)  # the first row of each image
        self._object_classes = np.array(class_ids, np.int32)
        self._boxes = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32)

    @property
    def category_ids(self) -> list[int]:
        """The category id of each class id: 0 for the background, 1, 2 ..."""
        return list(range(self.num_classes))

    def image_facts(self, image_id: int) -> dict[str, Any]:
        """The name of the picture, relative to the data set: reports show it."""
        return {"file_name": self.image_info[image_id]["id"]}

    def labelled_class_ids(self, image_id: int) -> list[int] | None:
        """The classes that are labelled in a picture, by Picture.labelled_classes; None: all."""
        names = self.image_info[image_id]["labelled_classes"]
        if names is None:
            return None
        return [class_id for class_id in range(1, self.num_classes) if self.class_info[class_id]["name"] in names]

    @property
    def channel_count(self) -> int:
        """The IMAGE_CHANNEL_COUNT of a network that takes what the pictures have: 3 for gray and for colour.

        If the numbers differ, it is the most frequent one, and a line says so once. Pictures of fewer channels get
        black ones, and of others the first channels are read (data.images.fit_channels).
        """
        if self._channel_count is None:
            paths = [info["path"] for info in self.image_info if info["path"] is not None]
            self._channel_count = agree_on_channels(count_channels(paths))
        return self._channel_count

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, as Dataset.load_image returns it, in the frame that its labels were drawn in.

        Raises: as Dataset.load_image.
        """
        info = self.image_info[image_id]
        if info["path"] is None:
            return fit_channels(info["embedded"](), self.reader.channels)
        if self._inspected is None:
            self.inspect_images()
        return self.reader.read(info["path"], upright=not info["is_stored"])

    def load_regions(self, image_id: int) -> RegionImage | None:
        """As Dataset.load_regions, in the frame that its labels were drawn in."""
        is_own = type(self).load_image is RecordDataset.load_image
        return self._regions_of(image_id, not self.image_info[image_id]["is_stored"]) if is_own else None

    def load_instances(self, image_id: int) -> Instances:
        """The instances as RLEs, with the boxes around them."""
        info = self.image_info[image_id]
        rows = range(*self._rows[image_id : image_id + 2].tolist())
        size = [info["height"], info["width"]]
        masks = [{"size": size, "counts": self._codes[self._ends[row] : self._ends[row + 1]]} for row in rows]
        part = slice(rows.start, rows.stop)
        return Instances(self._object_classes[part].copy(), masks, self._boxes[part].copy())

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The masks, bool [H, W, N], and the class ids, int32 [N], negative for a crowd."""
        instances, info = self.load_instances(image_id), self.image_info[image_id]
        if not instances.masks:
            return np.zeros((info["height"], info["width"], 0), bool), instances.class_ids
        return utils.rle_to_mask(instances.masks), instances.class_ids

    def object_boxes(self) -> ObjectBoxes:
        """The boxes of all objects."""
        sizes = np.array([(info["height"], info["width"]) for info in self.image_info], np.int64)
        images = np.repeat(np.arange(self.num_images), np.diff(self._rows))
        return ObjectBoxes(images, self._object_classes, self._boxes, sizes, len(images), 0)


def agree_on_channels(found: dict[int, int]) -> int:
    """The number of channels for all pictures. found: how many pictures have each number."""
    counts: dict[int, int] = {}
    for channels, pictures in found.items():
        channels = 3 if channels == 1 else channels
        counts[channels] = counts.get(channels, 0) + pictures
    chosen = max(counts, key=lambda channels: (counts[channels], channels), default=3)
    if len(counts) > 1:
        listed = ", ".join(f"{pictures:,} have {channels}" for channels, pictures in sorted(found.items()))
        logger.warning(
            "pictures have different numbers of channels: of those that were looked at, %s. %d are read of each: the "
            "first ones of more, and black ones where there are fewer; IMAGE_CHANNEL_COUNT sets another number",
            listed, chosen,
        )  # fmt: skip
    return chosen

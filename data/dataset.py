"""Dataset, the classes and images that one trains on or evaluates, and what each image holds: Instances.

Subclass Dataset for your own data. What its load_mask returns is checked before anything learns from it.
"""

import logging
import operator
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import utils

logger = logging.getLogger(__name__)


class Instances(NamedTuple):
    """The instances of an image."""

    class_ids: np.ndarray  # int32 [N], the negative of its class_id for a crowd
    masks: np.ndarray | list[dict]  # bool [H, W, N]; or N RLEs, which are decoded one at a time
    boxes: np.ndarray | None = None  # float32 [N, (y1, x1, y2, x2)] in pixels of the image; None: around the masks


class Dataset:
    """The classes and images of one data set, or of several together. Subclass it for your own.

    In the subclass, a method such as load_balloons calls add_class and add_image; load_mask (and load_image, if the
    images are no files) is overridden. Then call prepare(), after which everything is numbered:

        class_id   0, 1 ... num_classes - 1, in the order of add_class; 0 is the background, "BG"
        image_id   0, 1 ... num_images - 1, in the order of add_image

    A source is a name for where they come from, such as "coco", in which they have ids of their own: class 18 of coco
    is the source class "coco.18".

    class_info: [{"source", "id", "name"}], as added. image_info: [{"id", "source", "path", and what else add_image
        was given}], by image_id.

    prepare() sets:
    num_classes, class_ids [num_classes], class_names: a list; the text before the first comma of each name.
    num_images, image_ids [num_images].
    class_from_source_map: {"coco.18": class_id}. image_from_source_map: {"coco.139": image_id}.
    sources: the sources of classes; the background's, "", is first. source_class_ids: {source: its class_ids and 0}.
    """

    _PREPARED = (
        "num_classes", "class_ids", "class_names", "num_images", "_image_ids", "class_from_source_map",
        "image_from_source_map", "sources", "source_class_ids",
    )  # fmt: skip

    _MIN_CLASS_ID = 1  # of a source

    def __init__(self, class_map: Mapping[str, str] | None = None) -> None:
        """class_map: the one that prepare() takes if it is given none."""
        self.class_info = [{"source": "", "id": 0, "name": "BG"}]
        self.image_info = []
        self._class_map = class_map
        self._class_keys = {".0": "BG"}  # source class: name
        self._image_keys = set()

    def __getattr__(self, name: str):
        """Called for what is not there: before prepare(), that is what prepare() sets."""
        if name in (*Dataset._PREPARED, "image_ids"):
            raise AttributeError(f"{name} is not known yet; call prepare() after the last add_class and add_image")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _forget(self) -> None:
        for name in Dataset._PREPARED:
            self.__dict__.pop(name, None)

    def add_class(self, source: str, class_id: int, class_name: str) -> None:
        """Registers a class; a class that is there already is ignored. prepare() is due afterwards.

        source: without a ".". class_id: 1 or more, the class's id in its source. class_name: any text.

        Raises: ValueError for others, and for a second name of one class.
        """
        _check_source(source)
        try:
            number = operator.index(class_id)
        except TypeError:
            number = -1
        if number < self._MIN_CLASS_ID:
            raise ValueError(
                f"class_id must be an integer of at least {self._MIN_CLASS_ID}, not {class_id!r} "
                f"(class {class_name!r} of {source!r}); 0 is the background, which every data set has already"
            )
        if not isinstance(class_name, str):
            raise ValueError(f"class_name must be text, not {class_name!r} (class {number} of {source!r})")
        key = f"{source}.{number}"
        if key in self._class_keys:
            if self._class_keys[key] != class_name:
                raise ValueError(
                    f"class_name of {key} is {self._class_keys[key]!r} already and cannot be {class_name!r} too; "
                    "does another class have the same id?"
                )
            return
        self._class_keys[key] = class_name
        self.class_info.append({"source": source, "id": number, "name": class_name})
        self._forget()

    def add_image(self, source: str, image_id: int | str, path: str | os.PathLike | None, **kwargs) -> None:
        """Registers an image. prepare() is due afterwards.

        source: without a ".". image_id: the image's id or file name in its source. path: its file, or None if
        load_image needs none. kwargs: what else image_info should say, such as width, height, annotations.

        Raises: ValueError if the source has an image of this id already.
        """
        _check_source(source)
        key = f"{source}.{image_id}"
        if key in self._image_keys:
            raise ValueError(
                f"image_id {image_id!r} of source {source!r} was added before; was the same subset loaded twice, or "
                "do files of one name lie in several folders? Use the path as the id then"
            )
        self._image_keys.add(key)
        self.image_info.append({"id": image_id, "source": source, "path": path, **kwargs})
        self._forget()

    def prepare(self, class_map: Mapping[str, str] | None = None) -> None:
        """Numbers classes and images. Call it after the last add_class and add_image; again is fine.

        class_map: {source class: class name}, such as {"voc.7": "car", "coco.6": "car"}: these classes and any that
            has that name already become one class of that name, numbered where the first of them is. Classes that it
            does not name stay apart, even if their names are equal. Then num_classes is less than len(class_info).

        Raises: ValueError for a source class that was not added, or if it is to become the background.
        """
        self._forget()
        class_map = dict(self._class_map or {}) if class_map is None else dict(class_map)
        names, numbers = self._merge_classes(class_map)
        keys = [f"{info['source']}.{info['id']}" for info in self.class_info]
        self.num_classes = len(names)
        self.class_ids = np.arange(self.num_classes)
        self.class_names = names
        self.class_from_source_map = dict(zip(keys, numbers, strict=True))
        self.sources = list(dict.fromkeys(info["source"] for info in self.class_info))
        self.source_class_ids = {
            source: sorted(
                {0} | {n for n, info in zip(numbers, self.class_info, strict=True) if info["source"] == source}
            )
            for source in self.sources
        }
        self.num_images = len(self.image_info)
        self._image_ids = np.arange(self.num_images)
        self.image_from_source_map = {f"{info['source']}.{info['id']}": i for i, info in enumerate(self.image_info)}

    def _merge_classes(self, class_map: dict[str, str]) -> tuple[list[str], list[int]]:
        """The class names, and the class_id of every entry of class_info."""
        unknown = [key for key in class_map if key not in self._class_keys or key == ".0"]
        if unknown:
            known = ", ".join(list(self._class_keys)[1:6]) or "none"
            raise ValueError(f"class_map has source classes that were not added: {unknown}; there are {known} ...")
        if "BG" in class_map.values():
            raise ValueError("class_map cannot make a class background ('BG'); leave its instances out in load_mask")
        names, numbers, joined = [], [], {}  # joined: class_id by the names that class_map gives
        for info in self.class_info:
            name = class_map.get(f"{info['source']}.{info['id']}", info["name"].split(",")[0])
            number = joined.get(name, len(names))
            if number == len(names):
                names.append(name)
                if name in class_map.values():
                    joined[name] = number
            numbers.append(number)
        return names, numbers

    @property
    def image_ids(self) -> np.ndarray:
        """[num_images], 0, 1 ..."""
        return self._image_ids

    def map_source_class_id(self, source_class_id: str) -> int:
        """The class_id of a source class such as "coco.12".

        Raises: ValueError if there is none.
        """
        if source_class_id not in self.class_from_source_map:
            known = ", ".join(list(self.class_from_source_map)[1:6]) or "none"
            raise ValueError(
                f"source_class_id {source_class_id!r} is not in the data set; it must be one of {known} ..."
            )
        return self.class_from_source_map[source_class_id]

    def get_source_class_id(self, class_id: int, source: str) -> int:
        """The id that a class has in a source; the first, where prepare's class_map joined several of one source.

        Raises: ValueError if the class has none there.
        """
        for info in self.class_info:
            if info["source"] == source and self.class_from_source_map[f"{source}.{info['id']}"] == class_id:
                return info["id"]
        raise ValueError(f"class_id {class_id} has no class in source {source!r}; the sources are {self.sources}")

    def source_image_link(self, image_id: int) -> str | os.PathLike | None:
        """Where to look at the image: its path. Override it to give a URL."""
        return self.image_info[image_id]["path"]

    def image_reference(self, image_id: int) -> str:
        """What helps to find the image again, for messages and notebooks. Override it."""
        return ""

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, (R, G, B)]; gray is repeated, alpha is dropped.

        Raises: ValueError if it has no path; FileNotFoundError and ValueError as read_image.
        """
        info = self.image_info[image_id]
        if info["path"] is None:
            raise ValueError(f"image {info['source']}.{info['id']} has no path; override load_image to make its pixels")
        return utils.read_image(info["path"])

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The masks of an image's instances. Override it; this one warns, and returns none.

        Returns: masks bool [H, W, N]; class_ids int32 [N], the negative of its class_id for a crowd.
        """
        logger.warning("%s does not override load_mask: image %d has no instances", type(self).__name__, image_id)
        height, width = self.load_image(image_id).shape[:2]
        return np.zeros((height, width, 0), bool), np.zeros(0, np.int32)

    def load_instances(self, image_id: int) -> Instances:
        """The instances that training and evaluation see: load_mask's. Override it where RLEs or boxes are known.

        RLEs spare the memory of a stack of masks, which counts where an image has hundreds of instances.
        """
        masks, class_ids = self.load_mask(image_id)
        return Instances(class_ids, masks)


def check_mask(
    masks: ArrayLike, class_ids: ArrayLike, image_shape: Sequence[int], name: str, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks what a load_mask returned, and gives it the dtypes that everything else expects.

    masks: [H, W, N], bool or numbers 0 and 1; any array of size 0 if there are no instances.
    class_ids: whole numbers [N], of 1 or more; negative for a crowd.
    image_shape: (H, W, ...) of the image. name: what to call the image in errors.
    num_classes: Dataset.num_classes, which the class ids must stay under; None does not check that.

    Returns: masks bool [H, W, N], not copied if they are bool; class_ids int32 [N].
    Raises: ValueError naming the image and the likely cause.
    """
    masks, class_ids = np.asarray(masks), np.asarray(class_ids)
    height, width = (int(side) for side in image_shape[:2])
    if masks.size == 0 and class_ids.size == 0:
        return np.zeros((height, width, 0), bool), np.zeros(0, np.int32)
    class_ids = _check_class_ids(class_ids, name, num_classes)
    count = len(class_ids)
    if masks.ndim != 3 or masks.shape != (height, width, count):
        raise ValueError(f"{name}: load_mask must return masks {_explain_shape(masks.shape, height, width, count)}")
    if masks.dtype == bool:
        return masks, class_ids
    if masks.dtype.kind not in "uif":
        raise ValueError(f"{name}: load_mask must return masks that are bool or 0 and 1, not of dtype {masks.dtype}")
    inside = masks != 0
    if not (masks == inside).all():
        raise ValueError(
            f"{name}: load_mask must return masks that are bool or 0 and 1, not values from {masks.min()} to "
            f"{masks.max()}; for a picture of 0 and 255 return masks > 127, for one of numbered instances a mask each"
        )
    return inside, class_ids


def check_instances(
    instances: Instances, image_shape: Sequence[int], name: str, num_classes: int | None = None
) -> Instances:
    """Checks what a load_instances returned, and gives it the dtypes that everything else expects. The counts of RLEs
    are checked when they are decoded.

    image_shape, name, num_classes: as for check_mask.

    Returns: the same instances, masks not copied.
    Raises: ValueError naming the image and the likely cause.
    """
    class_ids, masks, boxes = instances
    if isinstance(masks, list) and all(isinstance(rle, dict) for rle in masks):
        class_ids = _check_class_ids(np.asarray(class_ids), name, num_classes)
        _check_rles(masks, len(class_ids), image_shape, name)
    else:
        masks, class_ids = check_mask(masks, class_ids, image_shape, name, num_classes)
    if boxes is not None:
        boxes = _check_boxes(np.asarray(boxes), len(class_ids), name)
    return Instances(class_ids, masks, boxes)


def _check_rles(rles: list, count: int, image_shape: Sequence[int], name: str) -> None:
    if len(rles) != count:
        raise ValueError(f"{name}: load_instances returned {len(rles)} RLEs for {count} class ids")
    height, width = (int(side) for side in image_shape[:2])
    for i, rle in enumerate(rles):
        if list(rle.get("size", ())) != [height, width]:
            raise ValueError(
                f"{name}: load_instances must return RLEs of the image's size [{height}, {width}] (height, width), "
                f"not {rle.get('size')} (instance {i}); annotation_to_rle makes them of COCO's annotations"
            )


def _check_boxes(boxes: np.ndarray, count: int, name: str) -> np.ndarray:
    if boxes.size == 0 and count == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.shape != (count, 4) or boxes.dtype.kind not in "uif":
        raise ValueError(
            f"{name}: load_instances must return boxes float32 [{count}, 4], one for each class id, "
            f"not {boxes.dtype} {list(boxes.shape)}"
        )
    boxes = boxes.astype(np.float32)
    wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    if wrong.any():
        raise ValueError(
            f"{name}: load_instances must return boxes (y1, x1, y2, x2) of finite numbers, y2 not above y1 nor x2 left "
            f"of x1, not {boxes[wrong][0].tolist()} (instance {int(wrong.argmax())}); COCO's are (x, y, width, height)"
        )
    return boxes


def _check_class_ids(class_ids: np.ndarray, name: str, num_classes: int | None) -> np.ndarray:
    """class_ids as int32 [N], if they are that and in range."""
    if class_ids.size == 0:
        return np.zeros(0, np.int32)
    whole = class_ids.dtype.kind in "ui" or (class_ids.dtype.kind == "f" and np.isfinite(class_ids).all())
    if class_ids.ndim != 1 or not whole or (class_ids != np.round(class_ids)).any():
        raise ValueError(
            f"{name}: load_mask must return class_ids int32 [N], not {class_ids.dtype} {list(class_ids.shape)}; "
            "class names are turned into ids by map_source_class_id('source.id')"
        )
    wrong = class_ids[(class_ids == 0) | (np.abs(class_ids.astype(np.float64)) >= (num_classes or np.inf))]
    if len(wrong):
        limit = "1 or more" if num_classes is None else f"1 to {num_classes - 1}"
        raise ValueError(
            f"{name}: load_mask must return class_ids of {limit} (negative for a crowd), not {wrong[0]}; 0 is the "
            "background. Are these the ids of the source? map_source_class_id('source.id') turns them into class ids"
        )
    return class_ids.astype(np.int32)


def _explain_shape(shape: tuple[int, ...], height: int, width: int, count: int) -> str:
    """What the masks should have been, what they are, and the likely cause."""
    wrong = f"[{height}, {width}, {count}] (the image's height and width, one for each class id), not {list(shape)}"
    if len(shape) == 2:
        return f"{wrong}; a single mask is mask[:, :, np.newaxis]"
    if shape == (count, height, width):
        return f"{wrong}; np.moveaxis(masks, 0, -1) puts the instances last"
    if shape[:2] == (height, width):
        return f"{wrong}; are there as many class ids as masks?"
    if shape[:2] == (width, height):
        return (
            f"{wrong}; height comes before width, or the image is turned by its EXIF orientation and the masks are not"
        )
    return f"{wrong}; were the masks drawn on a copy of the image of another size?"


def _check_source(source: str) -> None:
    if not isinstance(source, str) or not source or "." in source:
        raise ValueError(
            f"source must be text without a '.', not {source!r}; the dot parts it from the id, as in 'coco.12'"
        )

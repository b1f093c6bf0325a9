"""Dataset: the classes and images to train on or to evaluate. Instances: the objects of an image.

Users of Matterport know the class as utils.Dataset. Subclass it for your own data. The results of load_mask are checked
before they are used.
"""

import logging
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import utils
from data.images import ImageReader, reading_settings
from data.large import LEAST_PIXELS, RegionImage, open_large

logger = logging.getLogger(__name__)


class Instances(NamedTuple):
    """The instances of an image."""

    class_ids: np.ndarray  # int32 [N], negative for a crowd
    masks: np.ndarray | list[dict]  # bool [H, W, N]; or N RLEs, which are decoded one at a time
    boxes: np.ndarray | None = None  # float32 [N, (y1, x1, y2, x2)] in pixels; None: the boxes around the masks


class ObjectBoxes(NamedTuple):
    """The objects of a whole data set, as far as they are known without a mask being decoded."""

    image_ids: np.ndarray  # int64 [N], ascending or not
    class_ids: np.ndarray  # int32 [N], negative for a crowd
    boxes: np.ndarray  # float32 [N, (y1, x1, y2, x2)] in pixels
    sizes: np.ndarray  # int64 [num_images, (height, width)]
    listed: int  # how many objects the files of the data set list, chosen or not
    unusable: int  # how many of these were left out because their annotations are damaged


class Dataset:
    """The classes and images of one data set, or of several together. Subclass it for your own data.

    A method of the subclass, such as load_balloons, calls add_class and add_image. The subclass overrides load_mask,
    and load_image if the images are not files. Then prepare() numbers all classes and images:

        class_id   0, 1 ... num_classes - 1, in the order of add_class; 0 is the background, "BG"
        image_id   0, 1 ... num_images - 1, in the order of add_image

    A source is the name of a data set, such as "coco", which has ids of its own. Class 18 of coco is the source class
    "coco.18".

    class_info: [{"source", "id", "name"}] of each add_class.
    image_info: [{"id", "source", "path", and the further arguments of add_image}], by image_id.
    reader: an ImageReader, which reads all images alike; see inspect_images.

    prepare() sets:
    num_classes, class_ids [num_classes], class_names: a list, the text before the first comma of each name.
    num_images, image_ids [num_images].
    class_from_source_map: {"coco.18": class_id}. image_from_source_map: {"coco.139": image_id}.
    sources: the sources of classes; the first one is "", the background's.
    source_class_ids: {source: its class_ids, and 0}.
    """

    _PREPARED = (
        "num_classes", "class_ids", "class_names", "num_images", "_image_ids", "class_from_source_map",
        "image_from_source_map", "sources", "source_class_ids",
    )  # fmt: skip

    # Whether the boxes of load_instances were compared with the masks when they were loaded. If not, training does it.
    boxes_are_checked = False

    # Whether no mask has a pixel outside of its box, so that boxes say which objects a crop of the image shows.
    boxes_are_exact = False

    _MIN_CLASS_ID = 1  # the least class id that a source may have

    def __init__(self, class_map: Mapping[str, str] | None = None) -> None:
        """class_map: the default of prepare()."""
        self.class_info = [{"source": "", "id": 0, "name": "BG"}]
        self.image_info = []
        self.reader = ImageReader()
        self._inspected: tuple | None = None  # the number of images and the settings of inspect_images
        self._class_map = class_map
        self._class_keys = {".0": "BG"}  # source class: name
        self._image_keys = set()

    def __getattr__(self, name: str):
        """Explains a missing attribute. Python calls this for such attributes only."""
        if name in (*Dataset._PREPARED, "image_ids"):
            raise AttributeError(f"{name} is not set yet; call prepare() after the last add_class and add_image")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _forget(self) -> None:
        """Removes the attributes that prepare() set."""
        for name in Dataset._PREPARED:
            self.__dict__.pop(name, None)

    def add_class(self, source: str, class_id: int, class_name: str) -> None:
        """Adds a class. A class that was added before is ignored. Call prepare() afterwards.

        source: text without a ".". class_id: 1 or more, the id of the class in its source. class_name: any text.

        Raises: ValueError for other arguments, and for a class that already has another name.
        """
        _check_source(source)
        try:
            number = operator.index(class_id)
        except TypeError:
            number = -1
        if number < self._MIN_CLASS_ID:
            raise ValueError(
                f"class_id must be an integer of at least {self._MIN_CLASS_ID}, not {class_id!r} "
                f"(class {class_name!r} of {source!r}); 0 is the background, which every data set already has"
            )
        if not isinstance(class_name, str):
            raise ValueError(f"class_name must be text, not {class_name!r} (class {number} of {source!r})")
        key = f"{source}.{number}"
        if key in self._class_keys:
            if self._class_keys[key] != class_name:
                raise ValueError(
                    f"class_name of {key} is already {self._class_keys[key]!r} and cannot also be {class_name!r}; "
                    "does another class have the same id?"
                )
            return
        self._class_keys[key] = class_name
        self.class_info.append({"source": source, "id": number, "name": class_name})
        self._forget()

    def add_image(self, source: str, image_id: int | str, path: str | os.PathLike | None, **kwargs) -> None:
        """Adds an image. Call prepare() afterwards.

        source: text without a ".". image_id: the image's id or file name in its source.
        path: its file, or None if load_image needs no file.
        kwargs: further entries of image_info, such as width, height, annotations.

        Raises: ValueError if the source already has an image with this id.
        """
        _check_source(source)
        key = f"{source}.{image_id}"
        if key in self._image_keys:
            raise ValueError(
                f"image_id {image_id!r} of source {source!r} was added before; was the same subset loaded twice? If "
                "several folders have files of the same name, use the path as image_id"
            )
        self._image_keys.add(key)
        self.image_info.append({"id": image_id, "source": source, "path": path, **kwargs})
        self._forget()

    def prepare(self, class_map: Mapping[str, str] | None = None) -> None:
        """Numbers classes and images. Call it after the last add_class and add_image. It may be called again.

        class_map: {source class: class name}, such as {"voc.7": "car", "coco.6": "car"}. All classes with such a name
            become one class, with the number of the first of them; num_classes is then less than len(class_info). Other
            classes stay apart, even if their names are equal.

        Raises: ValueError for a source class that was not added, and for a class name of "BG".
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
            keys = utils.listed(list(self._class_keys)[1:], 5) or "none"
            raise ValueError(f"class_map has source classes that were not added: {unknown}; those added are {keys}")
        if "BG" in class_map.values():
            raise ValueError("class_map cannot name a class 'BG', the background; let load_mask leave it out")
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

        Raises: ValueError if the data set has no such class.
        """
        if source_class_id not in self.class_from_source_map:
            keys = utils.listed(list(self.class_from_source_map)[1:], 5) or "none"
            raise ValueError(f"source_class_id {source_class_id!r} is not in the data set; its classes are {keys}")
        return self.class_from_source_map[source_class_id]

    def get_source_class_id(self, class_id: int, source: str) -> int:
        """The id of a class in a source. If class_map joined several classes of the source, the first one's id.

        Raises: ValueError if the source does not have the class.
        """
        for info in self.class_info:
            if info["source"] == source and self.class_from_source_map[f"{source}.{info['id']}"] == class_id:
                return info["id"]
        raise ValueError(f"class_id {class_id} has no class in source {source!r}; the sources are {self.sources}")

    def source_image_link(self, image_id: int) -> str | os.PathLike | None:
        """The image's path. Override it to return a URL."""
        return self.image_info[image_id]["path"]

    def image_reference(self, image_id: int) -> str:
        """A text for messages and notebooks that helps to find the image. Override it."""
        return ""

    def image_facts(self, image_id: int) -> dict[str, Any]:
        """Facts of an image that evaluation needs beside its id and size, in types that json.dump takes. Override it.

        evaluation.results.ground_truth puts them into the image's entry, where a subclass of COCOeval finds them as
        cocoGt.imgs[id]. LVIS, for example, says of each image in neg_category_ids what it does not show.
        """
        return {}

    def labelled_class_ids(self, image_id: int) -> list[int] | None:
        """The classes of which every object of an image is labelled, if not all classes are. Override it.

        What the image may show of other classes is neither object nor background, in training and in evaluation.
        Objects that are labelled nevertheless are objects.

        Returns: class ids, ascending, without the background; None: all classes are labelled.
        """
        return None

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, (R, G, B)]. Gray is repeated, alpha is dropped.

        After inspect_for(config), it has IMAGE_CHANNEL_COUNT channels; see data.images.fit_channels.

        Raises: ValueError if it has no path; FileNotFoundError and ValueError as data.images.read_image.
        """
        info = self.image_info[image_id]
        if info["path"] is None:
            raise ValueError(f"image {info['source']}.{info['id']} has no path; override load_image to return pixels")
        if self._inspected is None:
            self.inspect_images()
        return self.reader.read(info["path"])

    def load_regions(self, image_id: int) -> RegionImage | None:
        """The image, to be read by regions as load_image would give it; None if it is not large, or no file of such a
        kind. Trainings on crops, and evaluation in tiles, then ask for nothing else.

        None, too, where a subclass has a load_image of its own.

        Raises: as data.large.open_large.
        """
        return self._regions_of(image_id) if type(self).load_image is Dataset.load_image else None

    def _regions_of(self, image_id: int, upright: bool = True) -> RegionImage | None:
        """load_regions of the image's file. upright: as of ImageReader.read."""
        info = self.image_info[image_id]
        is_small = 0 < (info.get("height") or 0) * (info.get("width") or 0) < LEAST_PIXELS
        if info["path"] is None or is_small:
            return None
        if self._inspected is None:
            self.inspect_images()
        return open_large(info["path"], self.reader, upright)

    def inspect_images(self, bit_depth: int | str = "auto", pixel_range: str = "depth", channels: int = 3) -> int | str:
        """Decides, by some of the files, how all images are read, and logs it.

        bit_depth: as Config.BIT_DEPTH; "auto" takes reader.bit_depth. pixel_range: as Config.PIXEL_RANGE.
        channels: as Config.IMAGE_CHANNEL_COUNT.

        Returns: the number of bits that were chosen for values of 16 bits; "auto" if no image has such values.
        """
        state = len(self.image_info), bit_depth, pixel_range, channels
        if self._inspected != state:
            paths = [info["path"] for info in self.image_info if info["path"] is not None]
            self.reader.inspect(paths, bit_depth, pixel_range, channels)
            self._inspected = state
        return self.reader.chosen

    def inspect_for(self, config: Any) -> int | str:
        """inspect_images by the settings of a Config. Training and evaluation call it first. Returns: the same."""
        return self.inspect_images(*reading_settings(config))

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The masks of an image's instances. Override it: this one warns, and returns no instances.

        Returns: masks bool [H, W, N]; class_ids int32 [N], negative for a crowd.
        """
        logger.warning("%s does not override load_mask: image %d has no instances", type(self).__name__, image_id)
        height, width = self.load_image(image_id).shape[:2]
        return np.zeros((height, width, 0), bool), np.zeros(0, np.int32)

    def load_instances(self, image_id: int) -> Instances:
        """The instances for training and evaluation, by default from load_mask. Override it if you have RLEs or boxes.

        RLEs save the memory of a stack of masks, which matters if an image has hundreds of instances.
        """
        result = self.load_mask(image_id)
        if not isinstance(result, Sequence) or len(result) != 2:
            raise ValueError(
                f"{type(self).__name__}.load_mask must return (masks, class_ids), not {type(result).__name__}; does it "
                "end without a return?"
            )
        masks, class_ids = result
        return Instances(class_ids, masks)

    def object_boxes(self) -> ObjectBoxes | None:
        """The boxes of all objects, to count them before a training. None: unknown without loading every image."""
        return None


def check_mask(
    masks: ArrayLike, class_ids: ArrayLike, image_shape: Sequence[int], name: str, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the masks and class ids that a load_mask returned, and converts their dtypes.

    masks: [H, W, N], bool or numbers 0 and 1; any array of size 0 if there are no instances.
    class_ids: whole numbers [N], 1 or more; negative for a crowd.
    image_shape: (H, W, ...) of the image. name: the image's name in errors.
    num_classes: Dataset.num_classes; class ids must be less. None does not check this.

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
            f"{masks.max()}; of a picture with 0 and 255 return masks > 127, of numbered instances return one mask each"
        )
    return inside, class_ids


def check_instances(
    instances: Instances, image_shape: Sequence[int], name: str, num_classes: int | None = None
) -> Instances:
    """Checks the instances that a load_instances returned, and converts their dtypes.

    The counts of RLEs are checked later, when they are decoded.

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


def fit_boxes(boxes: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, int]:
    """Boxes of a data set, replaced by those of the masks where they do not fit.

    A box does not fit if its IoU with that of the mask is below 0.5, and one of its sides more than a pixel off.

    boxes, bounds: float32 [N, (y1, x1, y2, x2)] in pixels; bounds are around the masks, zeros for an empty mask.

    Returns: boxes float32 [N, 4]; how many of them are replaced.
    """
    shared = (np.minimum(boxes[:, 2:], bounds[:, 2:]) - np.maximum(boxes[:, :2], bounds[:, :2])).clip(0).prod(axis=1)
    union = sum((part[:, 2:] - part[:, :2]).prod(axis=1) for part in (boxes, bounds)) - shared
    is_far = (np.abs(boxes - bounds) > 1).any(axis=1) & (bounds != 0).any(axis=1)
    wrong = is_far & (shared < 0.5 * union)
    return np.where(wrong[:, None], bounds, boxes), int(wrong.sum())


def _check_rles(rles: list, count: int, image_shape: Sequence[int], name: str) -> None:
    if len(rles) != count:
        raise ValueError(f"{name}: load_instances returned {len(rles)} RLEs for {count} class ids")
    height, width = (int(side) for side in image_shape[:2])
    for i, rle in enumerate(rles):
        if list(rle.get("size", ())) != [height, width]:
            raise ValueError(
                f"{name}: load_instances must return RLEs of the image's size [{height}, {width}] (height, width), "
                f"not {rle.get('size')} (instance {i}); utils.annotation_to_rle makes them from COCO's annotations"
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
            f"{name}: load_instances must return boxes (y1, x1, y2, x2) of finite numbers with y1 <= y2 and x1 <= x2, "
            f"not {boxes[wrong][0].tolist()} (instance {int(wrong.argmax())}); COCO's are (x, y, width, height)"
        )
    return boxes


def _check_class_ids(class_ids: np.ndarray, name: str, num_classes: int | None) -> np.ndarray:
    """Checks class ids. Returns: int32 [N]."""
    if class_ids.size == 0:
        return np.zeros(0, np.int32)
    whole = class_ids.dtype.kind in "ui" or (class_ids.dtype.kind == "f" and np.isfinite(class_ids).all())
    if class_ids.ndim != 1 or not whole or (class_ids != np.round(class_ids)).any():
        raise ValueError(
            f"{name}: load_mask must return class_ids int32 [N], not {class_ids.dtype} {list(class_ids.shape)}; "
            "are they class names? map_source_class_id('source.id') returns the id of a class"
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
    """The end of an error message: the expected shape of masks, their shape, and the likely cause."""
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
            f"source must be text without a '.', not {source!r}; the dot separates it from the id, as in 'coco.12'"
        )

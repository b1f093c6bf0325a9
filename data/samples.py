"""The images and objects of a data set as training takes them: augmented, resized, as tensors, in batches.

    Dataset ─ TrainingData ─ Sample ─ collate ─ Batch       (the ground truth of both: Targets)
                BatchOrder (which images, which seeds) ─┴─ Loader (in which processes)

No mask is as large as its image. It is cut out where it is not empty and only that part is resized. All masks of a
batch lie one after the other in one tensor of bytes (roialign.MaskCrops).

Everything random about an image follows from its seed, and the seed from SEED, the epoch and the place in the epoch
(see loader.py).

    B images   G objects   C crowds   N instances, crowds included   H, W an image's height and width
    Boxes are (y1, x1, y2, x2) in pixels of the network's input; (y2, x2) lies outside. Sizes are (height, width).
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import runtime
import utils
from roialign import MaskCrops

from .augment import (
    View,
    call_augmentation,
    check_augmentation,
    checked_masks,
    jitter_color,
    jitter_light,
    jitter_scale,
    paste_objects,
)
from .classes import ClassMapping
from .crops import (
    NO_FLIPS,
    Crop,
    Flips,
    bounds,
    clip_boxes,
    cut_out,
    extents,
    flip_boxes,
    pack,
    resize_crop,
    shrink,
    turn_boxes,
    turn_crop,
    turned_size,
)
from .dataset import Dataset, Instances, check_instances, fit_boxes
from .images import image_size
from .large import RegionImage, resize_region
from .regions import ArraySource

############################################################
#  Samples and batches
############################################################


class Targets(NamedTuple):
    """The ground truth of one image, or of a batch: then the objects of all its images, one image after another.

    Boxes and masks are in pixels of the network's input.
    """

    boxes: Tensor  # float32 [G, 4]
    class_ids: Tensor  # int64 [G], 1 to K - 1
    batch_index: Tensor  # int64 [G], the image of each object, ascending
    masks: MaskCrops  # of G objects; their canvas is the padded input, with USE_MINI_MASK the mini mask
    crowd_boxes: Tensor  # float32 [C, 4]: regions of many objects, which count neither as objects nor as background
    crowd_index: Tensor  # int64 [C], the image of each crowd
    seeds: Tensor  # int64 [B]; the anchors and RoIs that an image is trained on are sampled by its seed
    mini_masks: bool = False  # True: masks have MINI_MASK_SHAPE, and each fills its object's box (USE_MINI_MASK)
    object_counts: list[int] | None = None  # of each image; nobody has to wait for a GPU to count batch_index
    crowd_counts: list[int] | None = None  # likewise. None: they are counted
    # bool [B, K], the classes whose objects are labelled in each image, background included; None: all in all images
    labelled: Tensor | None = None

    def objects_of_images(self) -> list[Tensor]:
        """The rows of each image's objects: B of int64 [n]."""
        return _rows_of_images(self.batch_index, self.object_counts, len(self.seeds))

    def crowds_of_images(self) -> list[Tensor]:
        """The rows of each image's crowds: B of int64 [n]."""
        return _rows_of_images(self.crowd_index, self.crowd_counts, len(self.seeds))

    def to(self, device: torch.device | str) -> "Targets":
        """A copy on another device."""
        return _map_tensors(functools.partial(Tensor.to, device=device), self)


class Sample(NamedTuple):
    """One image as the network learns from it: resized, neither padded nor normalised, on the CPU."""

    image: Tensor  # [h, w, C] in 0..255; uint8, or float32 where the dialect's resampling does not round
    window: tuple[int, int, int, int]  # (y1, x1, y2, x2), where it lies in the padded input
    shape: tuple[int, int]  # (height, width) of the padded input
    original: tuple[int, int]  # (height, width) of the image as the data set has it
    targets: Targets  # of this one image
    image_id: int


class Batch(NamedTuple):
    """Several samples. Images smaller than the batch are not padded yet; padding goes to the bottom and right."""

    images: list[Tensor]  # B of [h, w, C]
    windows: Tensor  # float32 [B, 4]
    shape: tuple[int, int]  # (height, width), the largest of the samples' along each side
    targets: Targets
    image_ids: list[int]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """A copy on another device."""
        return _map_tensors(functools.partial(Tensor.to, device=device, non_blocking=non_blocking), self)

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which a GPU can copy while the program goes on."""
        return _map_tensors(Tensor.pin_memory, self)


def _rows_of_images(image: Tensor, counts: Sequence[int] | None, images: int) -> list[Tensor]:
    """image: [N], the image of each row. counts: the rows of each image, one image after another; None: unknown."""
    if counts is None:
        return [(image == number).nonzero()[:, 0] for number in range(images)]
    return list(torch.arange(len(image), device=image.device).split(counts))


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with each tensor in it, at any depth, replaced by the function of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batch | Targets | MaskCrops):
        return type(value)(*(_map_tensors(function, field) for field in value))
    if isinstance(value, list):
        return [_map_tensors(function, item) for item in value]
    return value


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of at least one sample."""
    height, width = (max(sample.shape[axis] for sample in samples) for axis in (0, 1))
    return Batch(
        images=[sample.image for sample in samples],
        windows=torch.tensor([sample.window for sample in samples], dtype=torch.float32),
        shape=(height, width),
        targets=join_targets([sample.targets for sample in samples], (height, width)),
        image_ids=[sample.image_id for sample in samples],
    )


def join_targets(images: Sequence[Targets], shape: tuple[int, int]) -> Targets:
    """The targets of a batch from those of its images, at least one.

    images: the targets of one image each. shape: (height, width) of the batch's padded input.
    """
    objects = [len(targets.boxes) for targets in images]
    crowds = [len(targets.crowd_boxes) for targets in images]
    mini_masks = images[0].mini_masks
    return Targets(
        boxes=torch.cat([targets.boxes for targets in images]),
        class_ids=torch.cat([targets.class_ids for targets in images]),
        batch_index=torch.arange(len(images)).repeat_interleave(torch.tensor(objects)),
        masks=_join_masks([targets.masks for targets in images], None if mini_masks else shape),
        crowd_boxes=torch.cat([targets.crowd_boxes for targets in images]),
        crowd_index=torch.arange(len(images)).repeat_interleave(torch.tensor(crowds)),
        seeds=torch.cat([targets.seeds for targets in images]),
        mini_masks=mini_masks,
        object_counts=objects,
        crowd_counts=crowds,
        labelled=_join_labelled([targets.labelled for targets in images]),
    )


def _join_labelled(rows: Sequence[Tensor | None]) -> Tensor | None:
    """Targets.labelled of a batch. rows: that of each image, [1, K] or None."""
    known = next((row for row in rows if row is not None), None)
    return known if known is None else torch.cat([torch.ones_like(known) if row is None else row for row in rows])


def _join_masks(masks: Sequence[MaskCrops], canvas: tuple[int, int] | None) -> MaskCrops:
    """The masks of several images as one MaskCrops, all on one canvas (height, width). None keeps each mask's own."""
    pixels, _, sizes, origins, canvases = (torch.cat(column) for column in zip(*masks, strict=True))
    areas = sizes.prod(dim=1)
    if canvas is not None:
        canvases = torch.tensor(canvas).expand(len(sizes), 2).contiguous()
    return MaskCrops(pixels, areas.cumsum(0) - areas, sizes, origins, canvases)


############################################################
#  TrainingData
############################################################


class TrainingData:
    """The images of a Dataset as Samples: loaded, checked, augmented, resized.

    augmentation gets an image at its own size, with all of its masks, and may return another size. The boxes of an
    augmented image are computed from its masks. An augmentation is one of
        a callable (image uint8 [H, W, C], masks bool [H, W, N]) -> (image, masks);
        a callable with the keywords image and masks (a list of N uint8 [H, W]) that returns a dict of both, such as
            albumentations' Compose without bbox_params;
        an object with to_deterministic() and augment_image(): imgaug's, as in Matterport's code.
    The shared generators of random, NumPy and torch are seeded for each image. An augmentation with a generator of its
    own is repeatable only if it has a method set_random_seed or seed_.

    An image without objects makes a sample, too.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Any,
        augmentation: Callable | None = None,
        no_augmentation_sources: Collection[str] | None = None,
        augment: bool = True,
        classes: ClassMapping | None = None,
    ) -> None:
        """
        dataset: prepared. Workers on Windows and macOS need one that can be pickled.
        config: a Config. Its settings of augmentation, from HORIZONTAL_FLIP to COPY_PASTE, augment the images as well.
        no_augmentation_sources: sources of the data set whose images are not augmented in any way.
        augment: False for validation: no image is augmented.
        classes: which row of the model each class of the data set is; None: class ids are rows. Objects of classes
            that the model does not have become crowds.

        Raises: ValueError if the data set is empty, has more classes than the config, or lacks a source, or the
            augmentation is none.
        """
        self.dataset, self.config, self.augmentation, self.augment = dataset, config, augmentation, augment
        if isinstance(no_augmentation_sources, str):
            raise ValueError(
                f"no_augmentation_sources must be a list of sources, not a text: [{no_augmentation_sources!r}]"
            )
        self.no_augmentation_sources = frozenset(no_augmentation_sources or ())
        self.classes = None if classes is None or classes.is_identity else classes
        self.class_notes = [] if classes is None else classes.sentences()  # on how classes were matched
        self._is_wide: np.ndarray | None = None
        self._donors: list[int] | None = None  # the image_ids that COPY_PASTE takes objects from
        if dataset.num_images == 0:
            raise ValueError(
                f"{type(dataset).__name__} has no images; was its load_... method called before prepare()?"
            )
        if self.classes is None and dataset.num_classes > config.NUM_CLASSES:
            raise ValueError(
                f"{type(dataset).__name__} has {dataset.num_classes} classes, background included, and NUM_CLASSES is "
                f"{config.NUM_CLASSES}; they are {utils.listed(dataset.class_names)}"
            )
        if augmentation is not None:
            check_augmentation(augmentation)
        sources = {info["source"] for info in dataset.image_info} if self.no_augmentation_sources else set()
        unknown = [source for source in self.no_augmentation_sources if source not in sources]
        if unknown:
            raise ValueError(
                f"no_augmentation_sources has {unknown[0]!r}, and the images of the data set are of "
                f"{utils.listed(map(repr, sorted(sources)), 5)}; add_image names the source"
            )
        dataset.inspect_for(config)

    def __len__(self) -> int:
        return self.dataset.num_images

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, seed: int = 0) -> Sample:
        """The sample of an image. The same seed always makes the same sample.

        index: of dataset.image_ids. seed: at least 0, below 2**63.

        Raises: what the data set raises; ValueError that names the image if the data set returns something wrong.
        """
        return self._make(index, seed)[0]

    def name(self, image_id: int) -> str:
        """The name of an image in messages, such as "image coco.139 (val2017/000000000139.jpg)"."""
        info = self.dataset.image_info[image_id]
        reference = self.dataset.image_reference(image_id) or info.get("path")
        return f"image {info['source']}.{info['id']}" + (f" ({reference})" if reference else "")

    def _make(self, index: int, seed: int) -> tuple[Sample, str | None]:
        """The sample of an image, and a warning if there is one."""
        image_id = int(self.dataset.image_ids[index])
        augment = self.augment and self._may_augment(image_id)
        rng = np.random.default_rng(seed)
        view, notes = self._view(image_id, augment, seed, rng)
        if augment and self.config.COPY_PASTE and rng.random() < self.config.COPY_PASTE:
            view, failures = self._with_pasted(view, rng)
            notes += failures
        boxes, crops, plan = view.boxes + np.array(view.plan.window[:2] * 2, np.float32), view.crops, view.plan
        objects, crowds = _usable(boxes, crops, view.class_ids)
        chosen = _largest(crops, objects, self.config.MAX_GT_INSTANCES)
        if len(objects) > len(chosen):
            notes.append(f"has {len(objects)} objects; MAX_GT_INSTANCES leaves the {len(chosen)} largest")
        targets = Targets(
            boxes=torch.from_numpy(boxes[chosen]),
            class_ids=torch.from_numpy(view.class_ids[chosen].astype(np.int64)),
            batch_index=torch.zeros(len(chosen), dtype=torch.int64),
            masks=self._masks([crops[i] for i in chosen], plan),
            crowd_boxes=torch.from_numpy(boxes[crowds]),
            crowd_index=torch.zeros(len(crowds), dtype=torch.int64),
            seeds=torch.tensor([seed], dtype=torch.int64),
            mini_masks=bool(self.config.USE_MINI_MASK),
            labelled=self._labelled(image_id),
        )
        sample = Sample(
            image=torch.from_numpy(np.array(view.pixels, order="C")),  # a copy: the data set may keep what it returned
            window=plan.window,
            shape=plan.padded_shape,
            original=view.original,
            targets=targets,
            image_id=image_id,
        )
        return sample, f"{self.name(image_id)} " + "; it ".join(notes) if notes else None

    def _labelled(self, image_id: int) -> Tensor | None:
        """Targets.labelled of an image: bool [1, NUM_CLASSES], or None where all classes are labelled.

        Objects that COPY_PASTE brings from another image change nothing: what else is there is the image's own.
        """
        labelled = self.dataset.labelled_class_ids(image_id)
        if labelled is None:
            return None
        classes = self.classes or ClassMapping(np.arange(self.dataset.num_classes), [], [])
        is_labelled = classes.labelled_rows(labelled, self.config.NUM_CLASSES)
        return None if is_labelled.all() else torch.from_numpy(is_labelled)[None]

    def _may_augment(self, image_id: int) -> bool:
        return self.dataset.image_info[image_id]["source"] not in self.no_augmentation_sources

    def _view(self, image_id: int, augment: bool, seed: int, rng: np.random.Generator) -> tuple[View, list[str]]:
        """A picture with its objects, augmented and scaled, and what is to be said of it.

        A setting that is off draws no random number, so that all others draw the same.
        """
        config, flips, turns = self.config, NO_FLIPS, 0
        with runtime.seeded(seed):  # users' code may draw from the generators that all modules share
            image, instances, original = self._load(image_id, augment, seed)
        around = self._extents(instances)
        boxes, misfits = self._given_boxes(instances.boxes, around)
        if augment and config.QUARTER_TURNS:
            turns = int(rng.integers(4))
        plan = self._plan(turned_size(image.shape, turns), augment, rng)
        if augment:
            horizontal = rng.random() < config.HORIZONTAL_FLIP
            flips = Flips(bool(config.VERTICAL_FLIP) and rng.random() < config.VERTICAL_FLIP, horizontal)
        pixels = self._pixels(image, plan, turns, flips)
        if augment and config.COLOR_JITTER:
            pixels = jitter_color(pixels, config.COLOR_JITTER, rng)
        if augment and (config.BRIGHTNESS_JITTER or config.CONTRAST_JITTER):
            pixels = jitter_light(pixels, config.BRIGHTNESS_JITTER, config.CONTRAST_JITTER, rng)
        seen, crops = self._cut(instances.masks, around, plan, image.shape, turns)
        boxes = None if boxes is None else turn_boxes(boxes[seen], image.shape, turns)
        boxes, crops = self._place(boxes, crops, plan, flips)
        notes = []
        if misfits:
            notes.append(
                f"has {misfits} boxes, of {len(around)}, that do not fit their masks, whose boxes are taken instead; "
                "does load_instances return (y1, x1, y2, x2)?"
            )
        return View(pixels, boxes, crops, instances.class_ids[seen], plan, original), notes

    def _with_pasted(self, view: View, rng: np.random.Generator) -> tuple[View, list[str]]:
        """A view with objects of another image, which is augmented as every image is: COPY_PASTE.

        Returns: the view; why it got no objects, if an image could not be loaded.
        """
        if self._donors is None:
            self._donors = [int(i) for i in self.dataset.image_ids if self._may_augment(int(i))]
        donor_id = self._donors[rng.integers(len(self._donors))]
        donor_seed = int(rng.integers(2**63))
        try:
            donor, _ = self._view(donor_id, True, donor_seed, np.random.default_rng(donor_seed))
        except MemoryError:
            raise
        except Exception as error:  # as in the loader. The image counts as broken when its own turn comes
            return view, [f"got no objects of {self.name(donor_id)}, which cannot be loaded: {utils.printable(error)}"]
        objects, _ = _usable(donor.boxes, donor.crops, donor.class_ids)
        if not len(objects):
            return view, []
        count = int(rng.integers(1, len(objects), endpoint=True))
        chosen = np.sort(rng.choice(objects, count, replace=False)).tolist()
        room = np.subtract(view.pixels.shape[:2], donor.pixels.shape[:2])
        y, x = (int(rng.integers(min(side, 0), max(side, 0), endpoint=True)) for side in room)
        return paste_objects(view, donor, chosen, (y, x)), []

    def _load(
        self, image_id: int, augment: bool, seed: int
    ) -> tuple[ArraySource | RegionImage, Instances, tuple[int, int]]:
        """The image, to be read as uint8 [h, w, C], and its instances, checked and, with augment, augmented by the
        user's code; the (height, width) of the image before that."""
        name = self.name(image_id)
        channels, has_code = self.config.IMAGE_CHANNEL_COUNT, augment and self.augmentation is not None
        is_cut = self.config.IMAGE_RESIZE_MODE == "crop" and not has_code
        image = self.dataset.load_regions(image_id) if is_cut else None
        if image is None:
            pixels = self.dataset.load_image(image_id)
            image = ArraySource(utils.check_channels(pixels, channels, name, self.config.PIXEL_RANGE))
        instances = self.dataset.load_instances(image_id)
        class_count = self.config.NUM_CLASSES if self.classes is None else len(self.classes.rows)
        instances = check_instances(instances, image.shape, name, class_count)
        if self.classes is not None:
            instances = instances._replace(class_ids=self.classes.rows_of(instances.class_ids))
        original = image.shape[:2]
        if not has_code:
            return image, instances, original
        masks = instances.masks
        if isinstance(masks, list):
            masks = utils.rle_to_mask(masks) if masks else np.zeros((*image.shape[:2], 0), bool)
        image, masks = call_augmentation(self.augmentation, image.array, masks, seed)
        image = utils.check_channels(image, channels, f"{name}, what augmentation returned,")
        masks = checked_masks(masks, image, len(instances.class_ids), name)
        return ArraySource(image), Instances(instances.class_ids, masks), original

    def _plan(self, shape: Sequence[int], augment: bool, rng: np.random.Generator) -> utils.ResizePlan:
        config = self.config
        min_dim = int(rng.choice(config.MULTI_SCALE)) if augment and config.MULTI_SCALE else None
        plan = utils.plan_image(shape, config, min_dim, rng)
        if augment and config.SCALE_JITTER:
            factor = rng.uniform(*config.SCALE_JITTER)
            plan = jitter_scale(plan, factor, config.IMAGE_RESIZE_MODE, config.IMAGE_SIZE_DIVISOR, rng)
        return plan

    def _pixels(self, image: ArraySource | RegionImage, plan: utils.ResizePlan, turns: int, flips: Flips) -> np.ndarray:
        """[h, w, C]: the image turned, scaled, cropped and flipped, as large as the plan's window."""

        def read(y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
            """Pixels of the turned image."""
            region = turn_boxes(np.array([(y1, x1, y2, x2)]), plan.image_shape, -turns)[0]
            return np.rot90(image.read(*region.tolist()), turns)

        pixels = resize_region(read, plan.image_shape, plan.size, plan.region, self.config.dialect.resampling)
        return pixels[:: -1 if flips.vertical else 1, :: -1 if flips.horizontal else 1]

    def _extents(self, instances: Instances) -> np.ndarray:
        """float32 [N, 4]: a box around each mask."""
        if self.dataset.boxes_are_exact and instances.boxes is not None:
            return instances.boxes
        return extents(instances.masks)

    def _cut(
        self, masks: np.ndarray | list[dict], around: np.ndarray, plan: utils.ResizePlan, shape: Sequence[int],
        turns: int,
    ) -> tuple[np.ndarray, list[Crop]]:  # fmt: skip
        """The indices of the masks that the plan's window shows, at least in part, and their crops of the turned image.

        No other mask is decoded, and of these the part that is seen alone. around: of _extents. shape: of the image
        before it is turned by quarters.
        """
        rows, columns = self._sources(plan)
        window = np.array([(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)])
        window = turn_boxes(window, plan.image_shape, -turns)
        low, high = np.maximum(around[:, :2], window[:, :2]), np.minimum(around[:, 2:], window[:, 2:])
        seen = np.flatnonzero((low < high).all(axis=1))
        crops = cut_out(masks, seen, np.concatenate([low, high], axis=1)[seen])
        return seen, [turn_crop(crop, shape, turns) for crop in crops]

    def _sources(self, plan: utils.ResizePlan) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of a mask that those of the plan's window copy."""
        return plan.rows(self.config.MASK_NEAREST), plan.columns(self.config.MASK_NEAREST)

    def _given_boxes(self, boxes: np.ndarray | None, around: np.ndarray) -> tuple[np.ndarray | None, int]:
        """The boxes of the data set, and how many of them do not fit their masks, and are replaced.

        None: the boxes around the masks are to be taken. Mini masks fill these.
        """
        if boxes is None or self.config.USE_MINI_MASK:
            return None, 0
        return (boxes, 0) if self.dataset.boxes_are_checked else fit_boxes(boxes, around)

    def _place(
        self, boxes: np.ndarray | None, crops: Sequence[Crop], plan: utils.ResizePlan, flips: Flips
    ) -> tuple[np.ndarray, list[Crop]]:
        """The boxes, as of _given_boxes, and masks of an image in the plan's window: float32 [N, 4], and N crops.

        Both count from the window's corner. Boxes are clipped to the window.
        """
        rows, columns = self._sources(plan)
        crops = [resize_crop(crop, rows, columns, flips) for crop in crops]
        if boxes is None:
            return bounds(crops), crops
        size = plan.region[2:]
        boxes = flip_boxes(plan.boxes_in_region(boxes), size, flips)
        return clip_boxes(boxes, bounds(crops), size, plan.crop is not None), crops

    def _masks(self, crops: Sequence[Crop], plan: utils.ResizePlan) -> MaskCrops:
        if not self.config.USE_MINI_MASK:
            return pack(crops, plan.padded_shape, plan.window[:2])
        shape = tuple(self.config.MINI_MASK_SHAPE)
        return pack([shrink(crop, shape) for crop in crops], shape)

    def repeats(self) -> np.ndarray | None:
        """float64 [len(self)]: how often each image comes in a pass through the data, by REPEAT_THRESHOLD; None: once.

        It is the largest factor of the classes of its objects; crowds do not count.

        Raises: ValueError if the data set does not know its objects without their masks.
        Source: LVIS (arXiv:1908.03195), appendix B: repeat factor sampling.
        """
        threshold = self.config.REPEAT_THRESHOLD
        if not threshold:
            return None
        objects = self.dataset.object_boxes()
        if objects is None:
            raise ValueError(
                f"REPEAT_THRESHOLD is {threshold:g}, which needs the classes of all objects before the training, and "
                f"{type(self.dataset).__name__}.object_boxes does not know them; override it, or set REPEAT_THRESHOLD=0"
            )
        class_ids = objects.class_ids if self.classes is None else self.classes.rows_of(objects.class_ids)
        pairs = np.unique(np.stack([objects.image_ids, class_ids])[:, class_ids > 0], axis=1)  # [2, P]: image, class
        shares = np.bincount(pairs[1], minlength=1) / len(self)  # of the images with an object of each class
        factors = np.ones(self.dataset.num_images)
        np.maximum.at(factors, pairs[0], np.sqrt(threshold / shares[pairs[1]]))
        return factors[self.dataset.image_ids]

    def is_wide(self) -> np.ndarray:
        """bool [len(self)]: whether each image is at least as wide as it is high. BatchOrder batches by this.

        Height and width come from image_info, or else from the file's header. An image without either counts as wide.
        So do all images if the resize mode makes squares of them.
        """
        if self._is_wide is None:
            if self.config.IMAGE_RESIZE_MODE in ("square", "crop"):
                self._is_wide = np.ones(len(self), bool)
            else:
                infos = (self.dataset.image_info[image_id] for image_id in self.dataset.image_ids)
                self._is_wide = np.array([_is_wide(info) for info in infos])
        return self._is_wide


def _usable(boxes: np.ndarray, crops: Sequence[Crop], class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the objects and of the crowds that still have a pixel, and a box of at least one pixel a side."""
    has_pixels = np.array([crop.mask.size > 0 for crop in crops], bool)
    is_usable = has_pixels & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return np.flatnonzero(is_usable & (class_ids > 0)), np.flatnonzero(is_usable & (class_ids < 0))


def _largest(crops: Sequence[Crop], objects: np.ndarray, limit: int) -> np.ndarray:
    """The objects with the most pixels, at most `limit` of them, in their old order. objects: indices of crops."""
    if len(objects) <= limit:
        return objects
    areas = np.array([np.count_nonzero(crops[i].mask) for i in objects])
    return objects[np.sort(np.argsort(-areas, kind="stable")[:limit])]


def _is_wide(info: dict[str, Any]) -> bool:
    height, width = info.get("height"), info.get("width")
    if height and width:
        return width >= height
    try:
        height, width = image_size(info["path"]).shown
        return width >= height
    except Exception:  # no file, or one that only the data set can read: it is asked when the image's turn comes
        return True

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
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import runtime
import utils
from roialign import MaskCrops

from .classes import ClassMapping
from .dataset import Dataset, Instances, check_instances, fit_boxes
from .images import image_size

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

    def to(self, device: torch.device | str) -> "Targets":
        """A copy on another device."""
        return _map_tensors(functools.partial(Tensor.to, device=device), self)


class Sample(NamedTuple):
    """One image as the network learns from it: resized, neither padded nor normalised, on the CPU."""

    image: Tensor  # [h, w, C] in 0..255; uint8, or float32 where the dialect's resampling does not round
    window: tuple[int, int, int, int]  # (y1, x1, y2, x2), where it lies in the padded input
    shape: tuple[int, int]  # (height, width) of the padded input
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
    objects = torch.tensor([len(targets.boxes) for targets in images])
    crowds = torch.tensor([len(targets.crowd_boxes) for targets in images])
    mini_masks = images[0].mini_masks
    return Targets(
        boxes=torch.cat([targets.boxes for targets in images]),
        class_ids=torch.cat([targets.class_ids for targets in images]),
        batch_index=torch.arange(len(images)).repeat_interleave(objects),
        masks=_join_masks([targets.masks for targets in images], None if mini_masks else shape),
        crowd_boxes=torch.cat([targets.crowd_boxes for targets in images]),
        crowd_index=torch.arange(len(images)).repeat_interleave(crowds),
        seeds=torch.cat([targets.seeds for targets in images]),
        mini_masks=mini_masks,
    )


def _join_masks(masks: Sequence[MaskCrops], canvas: tuple[int, int] | None) -> MaskCrops:
    """The masks of several images as one MaskCrops, all on one canvas (height, width). None keeps each mask's own."""
    pixels, _, sizes, origins, canvases = (torch.cat(column) for column in zip(*masks, strict=True))
    areas = sizes.prod(dim=1)
    if canvas is not None:
        canvases = torch.tensor(canvas).expand(len(sizes), 2).contiguous()
    return MaskCrops(pixels, areas.cumsum(0) - areas, sizes, origins, canvases)


############################################################
#  Masks
############################################################


class _Crop(NamedTuple):
    """A mask where it is not empty."""

    y: int
    x: int
    mask: np.ndarray  # bool [h, w]; 0 x 0 if it is empty


def _cut_out(masks: np.ndarray | list[dict]) -> list[_Crop]:
    """The crops of a stack [H, W, N], or of N RLEs."""
    if isinstance(masks, list):
        return [_Crop(*utils.rle_to_crop(rle)) for rle in masks]
    rows, columns = masks.any(axis=1).T, masks.any(axis=0).T  # [N, H], [N, W]
    crops = []
    for i in range(masks.shape[2]):
        (y1, y2), (x1, x2) = _span(rows[i]), _span(columns[i])
        crops.append(_Crop(y1, x1, masks[y1:y2, x1:x2, i]))
    return crops


def _span(filled: np.ndarray) -> tuple[int, int]:
    """The index of the first True in bool [n], and the index after the last one; (0, 0) if there is none."""
    indices = np.flatnonzero(filled)
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, 0)


def _trim(y: int, x: int, mask: np.ndarray) -> _Crop:
    """The crop without its empty rows and columns."""
    (top, bottom), (left, right) = _span(mask.any(axis=1)), _span(mask.any(axis=0))
    return _Crop(y + top, x + left, mask[top:bottom, left:right])


def _resize_crop(crop: _Crop, rows: np.ndarray, columns: np.ndarray, flip: bool) -> _Crop:
    """The crop of the resized mask: as utils.resize_mask resizes a whole mask, but only the part that is not empty.

    rows, columns: int64 [h] and [w], ascending: which row and column of the mask each of the result copies.
    flip: mirror the result, left to right.
    """
    y, x, mask = crop
    top, bottom = np.searchsorted(rows, (y, y + mask.shape[0])).tolist()
    left, right = np.searchsorted(columns, (x, x + mask.shape[1])).tolist()
    mask = mask[rows[top:bottom] - y][:, columns[left:right] - x]
    if flip:
        mask, left = mask[:, ::-1], len(columns) - right
    return _trim(top, left, mask)


def _bounds(crops: Sequence[_Crop]) -> np.ndarray:
    """float32 [N, 4]: the box around each crop."""
    boxes = [(y, x, y + mask.shape[0], x + mask.shape[1]) for y, x, mask in crops]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _shrink(crop: _Crop, shape: tuple[int, int]) -> _Crop:
    """The mini mask of a crop: resized to a shape, with (0, 0) as its corner."""
    height, width = crop.mask.shape
    return _Crop(0, 0, utils.minimize_mask(np.array([[0, 0, height, width]]), crop.mask[..., None], shape)[..., 0])


def _pack(crops: Sequence[_Crop], canvas: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> MaskCrops:
    """All crops as one MaskCrops. origin: (y, x) in the canvas of the point that the crops' y and x count from."""
    pixels = np.concatenate([np.zeros(0, bool), *(crop.mask.ravel() for crop in crops)])
    sizes = torch.tensor([crop.mask.shape for crop in crops], dtype=torch.int64).view(-1, 2)
    origins = torch.tensor([(crop.y, crop.x) for crop in crops], dtype=torch.int64).view(-1, 2)
    areas = sizes.prod(dim=1)
    return MaskCrops(
        pixels=torch.from_numpy(pixels.view(np.uint8)),
        offsets=areas.cumsum(0) - areas,
        sizes=sizes,
        origins=origins + torch.tensor(origin),
        canvases=torch.tensor(canvas).expand(len(crops), 2).contiguous(),
    )


############################################################
#  Augmentation
############################################################

# Augmenters of imgaug that move pixels. All others change colours only, and must not be applied to masks.
_MOVING_AUGMENTERS = {
    *("Sequential", "SomeOf", "OneOf", "Sometimes", "Fliplr", "Flipud", "CropAndPad", "Affine"),
    *("PiecewiseAffine", "PerspectiveTransform", "ElasticTransformation", "Rot90", "Resize", "CropToFixedSize"),
    *("PadToFixedSize", "KeepSizeByResize", "WithPolarWarping", "Jigsaw"),
}


def _call_augmentation(augmentation: Callable, image: np.ndarray, masks: np.ndarray, seed: int) -> tuple[Any, Any]:
    """(image, masks) as the augmentation returns them. masks: bool [H, W, N].

    It may be of any style that TrainingData describes. It gets copies: the data set may keep its own arrays.
    """
    for method in ("set_random_seed", "seed_"):  # albumentations' and imgaug's own generators
        if hasattr(augmentation, method):
            getattr(augmentation, method)(seed % 2**32)
    if hasattr(augmentation, "to_deterministic"):
        fixed = augmentation.to_deterministic()
        image = fixed.augment_image(image.copy())
        if masks.shape[2]:
            masks = fixed.augment_image(masks.astype(np.uint8), **_mask_hooks(augmentation))
        return image, masks
    if not _takes_keywords(augmentation):
        return augmentation(image.copy(), masks.copy("K"))
    planes = list(np.ascontiguousarray(np.moveaxis(masks, 2, 0), np.uint8))
    if not planes:
        return augmentation(image=image.copy())["image"], None
    result = augmentation(image=image.copy(), masks=planes)
    return result["image"], np.stack(list(result["masks"]), axis=-1)


def _takes_keywords(augmentation: Callable) -> bool:
    """Whether it takes image= and masks=, as albumentations does, instead of (image, masks)."""
    try:
        parameters = inspect.signature(augmentation).parameters.values()
    except (TypeError, ValueError):  # a built-in function has no signature
        return False
    positional = sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )
    return positional < 2 and any(
        parameter.kind in (parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY) for parameter in parameters
    )


def _mask_hooks(augmentation: Any) -> dict[str, Any]:
    """Arguments of imgaug's augment_image that keep it from changing the values of masks."""
    package = sys.modules.get(type(augmentation).__module__.partition(".")[0])
    return {"hooks": package.HooksImages(activator=_moves_pixels)} if hasattr(package, "HooksImages") else {}


def _moves_pixels(images: Any, augmenter: Any, parents: Any, default: Any) -> bool:
    return any(base.__name__ in _MOVING_AUGMENTERS for base in type(augmenter).__mro__)


def _jitter_color(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, saturation (of RGB) and contrast changed, each by a factor in 1 - amount .. 1 + amount."""
    brightness, saturation, contrast = rng.uniform(1 - amount, 1 + amount, 3)
    mixture = np.eye(image.shape[2])  # [C, C]; with less saturation, each channel comes closer to the gray value
    if image.shape[2] == 3:
        mixture = saturation * mixture + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    pixels = image.astype(np.float32) @ (brightness * mixture.T).astype(np.float32)  # [h, w, C]
    mean = pixels.mean()
    pixels -= mean
    pixels *= np.float32(contrast)
    pixels += mean
    pixels.clip(0, 255, out=pixels)
    return np.rint(pixels, out=pixels).astype(np.uint8) if image.dtype == np.uint8 else pixels


def _jitter_scale(
    plan: utils.ResizePlan, factor: float, mode: str, divisor: int, rng: np.random.Generator
) -> utils.ResizePlan:
    """The plan with the image scaled by one more factor.

    An image that is then larger than the plan's padded input is cropped to it, at random. A smaller one is padded by
    the rule of its resize mode; modes "crop" and "none" pad at the bottom and right, to the plan's padded input.
    """
    canvas = plan.padded_shape
    size = tuple(max(1, round(side * factor)) for side in plan.size)
    height, width = (min(side, limit) for side, limit in zip(size, canvas, strict=True))
    y, x = (int(rng.integers(side - kept, endpoint=True)) for side, kept in zip(size, (height, width), strict=True))
    multiple = {"shorter": divisor, "pad64": 64}.get(mode)  # of which the padded sides are multiples
    missing = [
        -kept % multiple if multiple else side - kept for side, kept in zip(canvas, (height, width), strict=True)
    ]
    top, left = (count // 2 if mode in ("square", "pad64") else 0 for count in missing)
    padding = (top, missing[0] - top), (left, missing[1] - left)
    window = (top, left, top + height, left + width)
    return utils.ResizePlan(plan.image_shape, size, padding, (y, x, height, width), window, plan.scale * factor)


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
        config: a Config. Its HORIZONTAL_FLIP, MULTI_SCALE, SCALE_JITTER and COLOR_JITTER augment the images as well.
        no_augmentation_sources: sources of the data set whose images are not augmented in any way.
        augment: False for validation: no image is augmented.
        classes: which row of the model each class of the data set is; None: class ids are rows. Objects of classes
            that the model does not have become crowds.

        Raises: ValueError if the data set is empty, has more classes than the config, or the augmentation is none.
        """
        self.dataset, self.config, self.augmentation, self.augment = dataset, config, augmentation, augment
        self.no_augmentation_sources = frozenset(no_augmentation_sources or ())
        self.classes = None if classes is None or classes.is_identity else classes
        self.class_notes = [] if classes is None else classes.sentences()  # on how classes were matched
        self._is_wide: np.ndarray | None = None
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
            _check_augmentation(augmentation)
        dataset.inspect_images(config.BIT_DEPTH)

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
        """The sample, and a warning if there is one."""
        image_id = int(self.dataset.image_ids[index])
        augment = self.augment and self.dataset.image_info[image_id]["source"] not in self.no_augmentation_sources
        rng = np.random.default_rng(seed)
        with runtime.seeded(seed):  # users' code may draw from the generators that all modules share
            image, instances = self._load(image_id, augment, seed)
        plan = self._plan(image.shape, augment, rng)
        flip = augment and rng.random() < self.config.HORIZONTAL_FLIP
        pixels = self._pixels(image, plan, flip)
        if augment and self.config.COLOR_JITTER:
            pixels = _jitter_color(pixels, self.config.COLOR_JITTER, rng)
        boxes, crops, misfits = self._place(instances, plan, flip)
        objects, crowds = _usable(boxes, crops, instances.class_ids)
        chosen = _largest(crops, objects, self.config.MAX_GT_INSTANCES)
        targets = Targets(
            boxes=torch.from_numpy(boxes[chosen]),
            class_ids=torch.from_numpy(instances.class_ids[chosen].astype(np.int64)),
            batch_index=torch.zeros(len(chosen), dtype=torch.int64),
            masks=self._masks([crops[i] for i in chosen], plan),
            crowd_boxes=torch.from_numpy(boxes[crowds]),
            crowd_index=torch.zeros(len(crowds), dtype=torch.int64),
            seeds=torch.tensor([seed], dtype=torch.int64),
            mini_masks=bool(self.config.USE_MINI_MASK),
        )
        sample = Sample(
            image=torch.from_numpy(np.array(pixels, order="C")),  # a copy: the data set may keep what it returned
            window=plan.window,
            shape=plan.padded_shape,
            targets=targets,
            image_id=image_id,
        )
        return sample, self._warning(image_id, len(boxes), misfits, len(objects))

    def _warning(self, image_id: int, count: int, misfits: int, objects: int) -> str | None:
        """What to say of an image: of count boxes, misfits do not fit their masks; it has so many usable objects."""
        problems, limit = [], self.config.MAX_GT_INSTANCES
        if misfits:
            problems.append(
                f"has {misfits} boxes, of {count}, that do not fit their masks, whose boxes are taken instead; "
                "does load_instances return (y1, x1, y2, x2)?"
            )
        if objects > limit:
            problems.append(f"has {objects} objects; MAX_GT_INSTANCES leaves the {limit} largest")
        return f"{self.name(image_id)} " + "; it ".join(problems) if problems else None

    def _load(self, image_id: int, augment: bool, seed: int) -> tuple[np.ndarray, Instances]:
        """The image uint8 [H, W, C] and its instances, checked and, with augment, augmented by the user's code."""
        name = self.name(image_id)
        image = utils.check_channels(self.dataset.load_image(image_id), self.config.IMAGE_CHANNEL_COUNT, name)
        instances = self.dataset.load_instances(image_id)
        class_count = self.config.NUM_CLASSES if self.classes is None else len(self.classes.rows)
        instances = check_instances(instances, image.shape, name, class_count)
        if self.classes is not None:
            instances = instances._replace(class_ids=self.classes.rows_of(instances.class_ids))
        if not augment or self.augmentation is None:
            return image, instances
        masks = instances.masks
        if isinstance(masks, list):
            masks = utils.rle_to_mask(masks) if masks else np.zeros((*image.shape[:2], 0), bool)
        image, masks = _call_augmentation(self.augmentation, image, masks, seed)
        image = utils.check_channels(image, self.config.IMAGE_CHANNEL_COUNT, f"{name}, what augmentation returned,")
        return image, Instances(instances.class_ids, _checked_masks(masks, image, len(instances.class_ids), name))

    def _plan(self, shape: Sequence[int], augment: bool, rng: np.random.Generator) -> utils.ResizePlan:
        config = self.config
        min_dim = int(rng.choice(config.MULTI_SCALE)) if augment and config.MULTI_SCALE else None
        plan = utils.plan_image(shape, config, min_dim, rng)
        if augment and config.SCALE_JITTER:
            factor = rng.uniform(*config.SCALE_JITTER)
            plan = _jitter_scale(plan, factor, config.IMAGE_RESIZE_MODE, config.IMAGE_SIZE_DIVISOR, rng)
        return plan

    def _pixels(self, image: np.ndarray, plan: utils.ResizePlan, flip: bool) -> np.ndarray:
        """[h, w, C]: the image scaled, cropped and flipped, as large as the plan's window."""
        pixels = utils.resize_pixels(image, plan.size, self.config.dialect.resampling)
        y, x, height, width = plan.region
        pixels = pixels[y : y + height, x : x + width]
        return pixels[:, ::-1] if flip else pixels

    def _place(self, instances, plan: utils.ResizePlan, flip: bool) -> tuple[np.ndarray, list[_Crop], int]:
        """The boxes and masks of instances in the network's input.

        Returns: boxes float32 [N, 4], clipped to the window; N crops, whose y and x count from the window's corner; how
            many boxes do not fit their masks, and are replaced.
        """
        nearest = "corners" if self.config.DIALECT == "matterport" else "floor"
        rows, columns = plan.rows(nearest), plan.columns(nearest)
        whole = _cut_out(instances.masks)
        crops, misfits = [_resize_crop(crop, rows, columns, flip) for crop in whole], 0
        boxes = _bounds(crops)
        if instances.boxes is not None and not self.config.USE_MINI_MASK:  # mini masks fill their boxes
            given = instances.boxes
            if not self.dataset.boxes_are_checked:
                given, misfits = fit_boxes(given, _bounds(whole))
            given = plan.boxes_in_region(given)
            boxes = _fit_boxes(given, boxes, plan.region[2:], flip, plan.crop is not None)
        return boxes + np.array(plan.window[:2] * 2, np.float32), crops, misfits

    def _masks(self, crops: Sequence[_Crop], plan: utils.ResizePlan) -> MaskCrops:
        if not self.config.USE_MINI_MASK:
            return _pack(crops, plan.padded_shape, plan.window[:2])
        shape = tuple(self.config.MINI_MASK_SHAPE)
        return _pack([_shrink(crop, shape) for crop in crops], shape)

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


def _fit_boxes(
    boxes: np.ndarray, bounds: np.ndarray, size: tuple[int, int], flip: bool, is_cropped: bool
) -> np.ndarray:
    """Boxes of a data set, flipped and clipped to the image: float32 [N, 4].

    bounds: [N, 4], the boxes around the masks, flipped already. They replace boxes that a crop cuts: the rest of an
        object may be smaller than the rest of its box. size: (height, width) of the image.
    """
    height, width = size
    if flip:
        boxes = np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)
    inside = boxes.clip(0, np.array([height, width] * 2, np.float32))
    is_cut = (inside != boxes).any(axis=1, keepdims=True) & is_cropped
    return np.where(is_cut, bounds, inside)


def _usable(boxes: np.ndarray, crops: Sequence[_Crop], class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the objects and of the crowds that still have a pixel, and a box of at least one pixel a side."""
    has_pixels = np.array([crop.mask.size > 0 for crop in crops], bool)
    is_usable = has_pixels & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return np.flatnonzero(is_usable & (class_ids > 0)), np.flatnonzero(is_usable & (class_ids < 0))


def _largest(crops: Sequence[_Crop], objects: np.ndarray, limit: int) -> np.ndarray:
    """The objects with the most pixels, at most `limit` of them, in their old order. objects: indices of crops."""
    if len(objects) <= limit:
        return objects
    areas = np.array([np.count_nonzero(crops[i].mask) for i in objects])
    return objects[np.sort(np.argsort(-areas, kind="stable")[:limit])]


def _checked_masks(masks: Any, image: np.ndarray, count: int, name: str) -> np.ndarray:
    """The masks that an augmentation returned, as bool [H, W, N]. image: as it returned it. count: N."""
    masks = np.zeros((*image.shape[:2], 0), bool) if masks is None or count == 0 else np.asarray(masks)
    if masks.shape != (*image.shape[:2], count):
        raise ValueError(
            f"{name}: augmentation must return masks [{image.shape[0]}, {image.shape[1]}, {count}], of its image's "
            f"size, not {list(masks.shape)}; were only the image or only the masks moved?"
        )
    return masks if masks.dtype == bool else masks > 0.5


def _check_augmentation(augmentation: Any) -> None:
    if not callable(augmentation) and not hasattr(augmentation, "to_deterministic"):
        raise ValueError(
            "augmentation must be a callable (image, masks) -> (image, masks), or albumentations' or imgaug's, "
            f"not {type(augmentation).__name__}"
        )
    if "bboxes" in getattr(augmentation, "processors", {}):
        raise ValueError(
            "augmentation has bbox_params, but it gets no boxes: these are computed from the masks it returns. "
            "Leave bbox_params out"
        )


def _is_wide(info: dict[str, Any]) -> bool:
    height, width = info.get("height"), info.get("width")
    if height and width:
        return width >= height
    try:
        height, width = image_size(info["path"]).shown
        return width >= height
    except Exception:  # no file, or one that only the data set can read: it is asked when the image's turn comes
        return True

"""What several test files share: tiny networks, small data sets, made-up masks, detections and weights."""

import contextlib
import copy
import io
import json
import re
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from toy_evaluation import toy_evaluation

import utils
import visualize
from config import Config
from data.dataset import Dataset
from data.loader import make_loader
from data.samples import TrainingData
from evaluation.metrics import Evaluation
from model import MaskRCNN, Targets, mold_batch, network_shapes
from roialign import MaskCrops
from samples import shapes
from training.loop import Progress

############################################################
#  Disks
############################################################


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A context in which no file can grow beyond `size` bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


############################################################
#  Tiny networks
############################################################


class TinyConfig(Config):
    """As small as it gets: it runs in milliseconds, and keeps every detection."""

    NAME = "tiny"
    BACKBONE = "resnet18"
    BACKBONE_WIDTH = 0.125
    TOP_DOWN_PYRAMID_SIZE = 16
    RPN_CHANNELS = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    MASK_HEAD_CHANNELS = 16
    MASK_HEAD_CONVS = 1
    MASKIOU_HEAD_CHANNELS = 16
    MASKIOU_FC_LAYERS_SIZE = 32
    NUM_CLASSES = 4
    CLASS_NAMES = ("BG", "cat", "dog", "cow")
    IMAGE_MIN_DIM = 64
    IMAGE_MAX_DIM = 128
    DETECTION_MIN_CONFIDENCE = 0.0
    DETECTION_MAX_INSTANCES = 20
    POST_NMS_ROIS_INFERENCE = 60
    TF32 = False


def tiny_model(seed: int = 0, **overrides) -> MaskRCNN:
    if overrides.get("DIALECT") == "detectron2":
        # It does not divide pixels. Random weights then make boxes without area, which this dialect drops at the end.
        overrides = {"STD_PIXEL": Config.STD_PIXEL, **overrides}
    torch.manual_seed(seed)
    with patch("model._seeded", contextlib.nullcontext):  # one generator for these weights and for those below
        model = MaskRCNN(TinyConfig(**overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            if name.startswith(("rpn.objectness", "box_head.class_logits")):
                parameter.normal_(std=0.2)  # so that images differ in what is found
            if name.startswith(("rpn.deltas", "box_head.box_deltas")):
                parameter.normal_(std=0.02)
    return model


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


############################################################
#  A data set of squares
############################################################


class SquaresDataset(Dataset):
    """One bright square on noise in each image, of the class that its brightness tells."""

    def load_squares(self, count: int, side: int = 64, empty: tuple[int, ...] = ()) -> "SquaresDataset":
        for class_id, name in enumerate(TinyConfig.CLASS_NAMES[1:], start=1):
            self.add_class("squares", class_id, name)
        for number in range(count):
            self.add_image("squares", number, None, width=side, height=side, is_empty=number in empty)
        self.prepare()
        return self

    def _square(self, image_id: int) -> tuple[np.random.Generator, int, int, int, int]:
        rng = np.random.default_rng(image_id)
        return rng, *rng.integers([4, 4, 20, 1], [20, 20, 40, 4]).tolist()

    def load_image(self, image_id: int) -> np.ndarray:
        rng, y, x, side, class_id = self._square(image_id)
        info = self.image_info[image_id]
        image = rng.integers(0, 60, (info["height"], info["width"], 3), np.uint8)
        if not info["is_empty"]:
            image[y : y + side, x : x + side] += np.uint8(60 * class_id)
        return image

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        _, y, x, side, class_id = self._square(image_id)
        info = self.image_info[image_id]
        count = 0 if info["is_empty"] else 1
        mask = np.zeros((info["height"], info["width"], count), bool)
        mask[y : y + side, x : x + side] = True
        return mask, np.full(count, class_id, np.int32)


class TrainConfig(TinyConfig):
    GPU_COUNT = 0
    IMAGES_PER_GPU = 2
    STEPS_PER_EPOCH = 3
    VALIDATION_STEPS = 1
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    TRAIN_ROIS_PER_IMAGE = 16
    WARMUP_STEPS = 2


def settings_of(config: type) -> dict:
    return {name: value for name, value in vars(config).items() if name.isupper()}


def batch_of(config, count: int = 2, empty: tuple[int, ...] = ()):
    """(images, targets) of the first squares."""
    data = TrainingData(SquaresDataset().load_squares(count, empty=empty), config, augment=False)
    (batch,) = make_loader(data, shuffle=False)
    return mold_batch(batch, torch.device("cpu"), config)


def train_squares(model: MaskRCNN, epochs: int, **options) -> Progress:
    return model.train_model(
        SquaresDataset().load_squares(7, empty=(3,)), SquaresDataset().load_squares(3), 0.01, epochs, **options
    )


def untrained(folder, **overrides) -> MaskRCNN:
    return MaskRCNN(TrainConfig(**overrides), folder)


############################################################
#  Weights of shapes
############################################################

TINY_SHAPES = {
    "BACKBONE_WIDTH": 0.0625, "TOP_DOWN_PYRAMID_SIZE": 8, "RPN_CHANNELS": 8, "FPN_CLASSIF_FC_LAYERS_SIZE": 8,
    "MASK_HEAD_CHANNELS": 8, "MASKIOU_HEAD_CHANNELS": 8, "MASKIOU_FC_LAYERS_SIZE": 8, "DETECTION_MAX_INSTANCES": 5,
    "DETECTION_MIN_CONFIDENCE": 0.0,
}  # fmt: skip


def tiny_weights(folder):
    """A checkpoint of a small untrained model of shapes, the same each time."""
    path = folder / "tiny.pth"
    MaskRCNN(shapes.ShapesConfig(**TINY_SHAPES)).save(path)
    return path


############################################################
#  Crops of masks
############################################################

NAN, INF = float("nan"), float("inf")


def make_masks(crops: list[Tensor], origins: list, canvases: list) -> MaskCrops:
    """MaskCrops from crops [h, w] of 0 and 1."""
    sizes = torch.tensor([crop.shape for crop in crops], dtype=torch.int64).view(-1, 2)
    lengths = sizes.prod(dim=1)
    pixels = torch.cat([torch.zeros(0, dtype=torch.uint8), *[crop.flatten().to(torch.uint8) for crop in crops]])
    geometry = [torch.tensor(field, dtype=torch.int64).view(-1, 2) for field in (origins, canvases)]
    return MaskCrops(pixels, lengths.cumsum(0) - lengths, sizes, *geometry)


def random_masks(count: int, seed: int = 0, largest: int = 40) -> MaskCrops:
    """Masks on canvases of several sizes; some crops are the whole canvas, some have no pixels."""
    generator = torch.Generator().manual_seed(seed)
    crops, origins, canvases = [], [], []
    for i in range(count):
        canvas = torch.randint(1, largest, (2,), generator=generator)
        size = canvas if i % 5 == 0 else (torch.rand(2, generator=generator) * (canvas + 1)).long()
        crops.append(torch.randint(0, 2, size.tolist(), generator=generator))
        origins.append((torch.rand(2, generator=generator) * (canvas - size + 1)).long().tolist())
        canvases.append(canvas.tolist())
    return make_masks(crops, origins, canvases)


def random_rois(count: int, scale: float, seed: int = 0) -> Tensor:
    """Boxes inside, across the edge of and outside a scale x scale canvas, some without area, some upside down."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * scale * 1.4 - scale * 0.4
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * scale - 0.05 * scale], dim=1)


SPECIAL_ROIS = torch.tensor(
    [
        [0.0, 0.0, 40.0, 40.0],
        [-0.5, -0.5, 30.5, 30.5],  # a corner at -1 in cells, the last position that counts
        [-9.0, 3.0, -1.0, 8.0],  # above the canvas
        [3.0, 50.0, 8.0, 90.0],  # right of it
        [5.0, 5.0, 5.0, 5.0],  # a point
        [5.0, 5.0, 5.01, 9.0],
        [8.0, 8.0, 2.0, 2.0],  # upside down
        [2.5, 1.5, 3.5, 2.5],
        [NAN, 0.0, 9.0, 9.0],
        [0.0, 0.0, 9.0, INF],
        [-500.0, -300.0, 3000.0, 700.0],  # more than 64 samples a bin
        [-1e9, -1e9, 1e9, 1e9],
    ]
)


############################################################
#  Training targets
############################################################

NO_CROWDS = np.zeros((0, 4), np.float32)


def crop_bitmap(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a mask [H, W] that is not empty, and its first pixel (y, x)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return mask[:0, :0], (0, 0)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(rows[0]), int(columns[0]))


def mask_crops(masks: Sequence[np.ndarray]) -> MaskCrops:
    """Bitmaps [H, W] as the loader hands them over."""
    crops = [crop_bitmap(np.asarray(mask)) for mask in masks]
    pixels = [crop.astype(np.uint8).ravel() for crop, _ in crops]
    lengths = np.array([len(part) for part in pixels], np.int64)
    return MaskCrops(
        torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *pixels])),
        torch.from_numpy(lengths.cumsum() - lengths),
        torch.tensor([crop.shape for crop, _ in crops], dtype=torch.int64).view(-1, 2),
        torch.tensor([origin for _, origin in crops], dtype=torch.int64).view(-1, 2),
        torch.tensor([np.shape(mask) for mask in masks], dtype=torch.int64).view(-1, 2),
    )


def make_targets(images: Sequence[tuple]) -> Targets:
    """images: of each boxes [G, 4], class_ids [G], masks [G, H, W], crowd_boxes [C, 4] and a seed."""
    boxes, class_ids, masks, crowds, seeds = zip(*images, strict=True)

    def owners(lists: Sequence) -> Tensor:
        return torch.arange(len(lists)).repeat_interleave(torch.tensor([len(part) for part in lists]))

    return Targets(
        boxes=torch.cat([torch.as_tensor(part, dtype=torch.float32).reshape(-1, 4) for part in boxes]),
        class_ids=torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in class_ids]),
        batch_index=owners(boxes),
        masks=mask_crops([mask for part in masks for mask in part]),
        crowd_boxes=torch.cat([torch.as_tensor(part, dtype=torch.float32).reshape(-1, 4) for part in crowds]),
        crowd_index=owners(crowds),
        seeds=torch.tensor(seeds, dtype=torch.int64),
    )


############################################################
#  Detections
############################################################


def rectangles(*boxes, shape=(100, 120)) -> np.ndarray:
    masks = np.zeros((*shape, len(boxes)), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, i] = True
    return masks


def detection_result(masks, class_ids, scores, mask_ious=None) -> dict:
    scores = np.array(scores, np.float32)
    ious = None if mask_ious is None else np.array(mask_ious, np.float32)
    return {
        "rois": np.array(utils.extract_bboxes(masks), np.float32).reshape(-1, 4),
        "class_ids": np.array(class_ids, np.int32),
        "scores": scores,
        "mask_ious": ious,
        "mask_scores": scores if ious is None else scores * ious,
        "masks": utils.mask_to_rle(masks),
    }


def random_rectangles(rng, count) -> np.ndarray:
    corners = rng.integers(0, [60, 80], (count, 2))
    return rectangles(*np.concatenate([corners, corners + rng.integers(5, 60, (count, 2))], axis=1).tolist())


############################################################
#  COCO's ground truth and results
############################################################

HEIGHT, WIDTH = 120, 130  # room for an object of every size: large is from 96 x 96


def rectangle(y1, x1, y2, x2, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def to_rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def truth_of(*objects, images=(1,), categories=(1, 2)) -> dict:
    """objects: (image, category, mask[, iscrowd])."""
    annotations = []
    for number, (image, category, mask, *crowd) in enumerate(objects, start=1):
        annotations.append({
            "id": number, "image_id": image, "category_id": category, "iscrowd": int(bool(crowd and crowd[0])),
            "segmentation": to_rle(mask), "area": int(mask.sum()), "bbox": coco_mask.toBbox(to_rle(mask)).tolist(),
        })  # fmt: skip
    return {
        "images": [{"id": image, "height": HEIGHT, "width": WIDTH, "file_name": f"{image}.jpg"} for image in images],
        "categories": [{"id": category, "name": f"class {category}"} for category in categories],
        "annotations": annotations,
    }


def segm_result(image, category, mask, class_score, mask_iou=1.0) -> dict:
    score = class_score if mask_iou is None else class_score * mask_iou
    entry = {"image_id": image, "category_id": category, "segmentation": to_rle(mask), "score": score}
    return {**entry, "class_score": class_score, "mask_iou": mask_iou}


def boxes_of(masks) -> list[dict]:
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": coco_mask.toBbox(entry["segmentation"]).tolist(),
            "score": entry["class_score"],
        }
        for entry in masks
    ]


def random_mask(rng) -> np.ndarray:
    """A rectangle of any size with holes, or a square whose area lies just between small, medium and large."""
    if rng.random() < 0.2:
        (y, x), side = rng.integers(0, 20, 2), rng.choice([32, 96])
        return rectangle(y, x, y + side, x + side)
    y1, x1 = rng.integers(0, [HEIGHT - 4, WIDTH - 4])
    y2, x2 = y1 + rng.integers(3, HEIGHT - y1 + 1), x1 + rng.integers(3, WIDTH - x1 + 1)
    return rectangle(y1, x1, y2, x2) * (rng.random((HEIGHT, WIDTH)) > rng.choice([0, 0.1]))


def random_case(seed, images=3, categories=3, objects=4, results=6) -> tuple[dict, list[dict]]:
    """Objects, a third of them crowds or near another; results near objects, some in other places; few scores."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.arange(0, 1000), images + categories, replace=False).tolist()
    images, categories = ids[:images], ids[images:]
    masks: dict[int, list] = {image: [] for image in images}
    entries, found = [], []
    for image in images:
        for _ in range(rng.integers(0, objects + 1)):
            near = masks[image] and rng.random() < 0.3
            mask = np.roll(masks[image][-1], 2, axis=0) if near else random_mask(rng)
            masks[image].append(mask)
            entries.append((image, int(rng.choice(categories)), mask, rng.random() < 0.15))
        for _ in range(rng.integers(0, results + 1)):
            near = masks[image] and rng.random() < 0.8
            mask = masks[image][rng.integers(len(masks[image]))] if near else random_mask(rng)
            mask = np.roll(mask, rng.integers(-2, 12), axis=rng.integers(2))
            same = [entry[1] for entry in entries if entry[0] == image]
            category = int(rng.choice(same if same and rng.random() < 0.8 else categories))
            found.append(
                segm_result(image, category, mask, float(rng.choice([0.2, 0.5, 0.7, 0.9])), float(rng.random()))
            )
    order = rng.permutation(len(found))
    return truth_of(*entries, images=images, categories=categories), [found[i] for i in order]


def run_pycocotools(contents, results, kind, max_dets=(1, 10, 100)) -> COCOeval:
    """pycocotools called as its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(contents)
        index.createIndex()
        ours = COCOeval(index, index.loadRes(copy.deepcopy(results)), kind)
        ours.params.maxDets = list(max_dets)
        ours.evaluate()
        ours.accumulate()
        if list(max_dets) == [1, 10, 100]:
            ours.summarize()
    return ours


############################################################
#  x
############################################################


def two_rankings(images: int, right: int) -> tuple[dict, list[dict]]:
    """In each image a good and a bad mask of one object, the bad one with the better class score; in so many of the
    images the mask score puts that right."""
    good, bad = rectangle(10, 10, 50, 50), rectangle(10, 10, 50, 32)  # IoU 1 and 0.55
    contents = truth_of(*((image, 1, good) for image in range(images)), images=range(images), categories=(1,))
    masks = []
    for image in range(images):
        masks.append(segm_result(image, 1, bad, 0.9 - 1e-3 * image, 0.5 if image < right else 1.0))
        masks.append(segm_result(image, 1, good, 0.8 - 1e-3 * image, 1.0))
    return contents, masks


############################################################
#  Foreign weights
############################################################


def imagenet_state(backbone, classes=1000):
    """The state dict of torchvision's classifier, from our own backbone's shapes."""
    state = {}
    for name, shape in network_shapes(Config(BACKBONE=backbone), only_backbone=True).items():
        theirs = name.removeprefix("backbone.").replace("stem.norm", "bn1").replace("stem", "conv1")
        theirs = re.sub(r"conv(\d)\.norm", r"bn\1", theirs)
        theirs = theirs.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        state[theirs] = torch.ones(1).expand(shape)
        if theirs.endswith("running_var"):
            state[theirs.replace("running_var", "num_batches_tracked")] = torch.tensor(1)
    return {**state, "fc.weight": torch.zeros(1).expand(classes, 8), "fc.bias": torch.zeros(classes)}


############################################################
#  Ctrl-C
############################################################


def interrupt_drawing(monkeypatch, number: int, signals: int) -> None:
    """Press Ctrl-C so many times when the picture of this number is drawn; signals close together count, too."""
    monkeypatch.setattr("runtime.REPEAT_SECONDS", -1)
    draw, calls = visualize.draw_instances, []

    def draw_and_interrupt(*arguments, **options):
        calls.append(arguments)
        for _ in range(signals if len(calls) == number else 0):
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments, **options)

    monkeypatch.setattr(visualize, "draw_instances", draw_and_interrupt)


############################################################
#  Maps
############################################################


def geotiff(path, array, nodata=None, epsg=32633, **options):
    """A GeoTIFF of half metres whose upper left corner lies at (500000, 4000000)."""
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, epsg)
    tags = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4000000.0, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]
    tags += [] if nodata is None else [(42113, 2, 0, str(nodata), True)]
    tifffile.imwrite(path, array, extratags=tags, metadata=None, **options)


############################################################
#  Names that break pages
############################################################


def one_example(**changes):
    return toy_evaluation(1, 5).examples["best"][1]._replace(**changes)


NASTY = [
    "<script>alert(1)</script>",
    "a & b",
    '" onload="x',
    "'><img src=x>",
    "人物 é",
    "{0} %s",
    "</style>",
    "]]>",
    "",
]


def nasty_evaluation() -> Evaluation:
    """Names that would break out of any place of the page."""
    evaluation = toy_evaluation(len(NASTY), 30)
    evaluation.class_names[1:] = NASTY
    for row, name in zip(evaluation.classes, NASTY, strict=True):
        row["name"] = name
    evaluation.confusion_rule = "a < b & c"
    evaluation.facts = {"model": NASTY[0], "data": "</title><b>", "<i>name</i>": "<u>value</u>"}
    evaluation.seconds |= {"<em>read</em>": 1.0}
    examples = [one_example(title=name, class_name=name, image_id=i) for i, name in enumerate(NASTY)]
    evaluation.examples = {"best": examples}
    return evaluation


def write_pictures(folder: Path, subsets: tuple[str, ...], counts: tuple[int, ...]) -> Path:
    """COCO's layout, two classes: a bright and a dark rectangle on noise in each picture of 64 x 64 pixels."""
    rng, number = np.random.default_rng(0), 0
    (folder / "annotations").mkdir(parents=True)
    for subset, count in zip(subsets, counts, strict=True):
        (folder / subset).mkdir()
        images, annotations = [], []
        for _ in range(count):
            number += 1
            pixels = rng.integers(100, 140, (64, 64, 3), np.uint8)
            for category, (value, left) in enumerate([(250, 4), (10, 36)], start=1):
                top, side = (int(each) for each in rng.integers(12, 24, 2))
                pixels[top : top + side, left : left + side] = value
                corners = [left, top, left + side, top, left + side, top + side, left, top + side]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                box = {"bbox": [left, top, side, side], "area": side * side}
                annotations.append({**entry, **box, "segmentation": [corners]})
            Image.fromarray(pixels).save(folder / subset / f"{number:03}.png")
            images.append({"id": number, "file_name": f"{number:03}.png", "height": 64, "width": 64})
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        contents = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{subset}.json").write_text(json.dumps(contents))
    return folder

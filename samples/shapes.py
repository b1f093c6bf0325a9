"""Shapes: a data set that needs no download, and the sample to copy from for your own.

    python samples/shapes.py show                      a sheet of images with their objects: shapes.png
    python samples/shapes.py train                     from random weights
    python samples/shapes.py train --model last        continue where the last training stopped
    python samples/shapes.py evaluate --model last     COCO-style AP with and without mask scoring
    python samples/shapes.py show --model last         the same sheet, with the detections of a model below the objects

An image is drawn when it is loaded. It depends on (subset, seed, number) alone, and is the same on every machine. The
subsets train, val and test have no image in common, whatever the seed. The images are hard for masks rather than for
classes: thin, concave and occluded shapes, textures, edges that fade into the background, bars in front, blur, noise.
"""

import argparse
import functools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import cli
import runtime
import utils
import visualize
from config import Config, SmallConfig
from data.dataset import Dataset
from evaluation.run import evaluate_dataset, evaluation_callback

CLASSES = ("square", "circle", "triangle", "star", "ring", "crescent", "cross")
SUBSETS = ("train", "val", "test")

############################################################
#  Configuration
############################################################


class ShapesConfig(SmallConfig):
    """The small network for images of 128 x 128 pixels."""

    NAME = "shapes"
    NUM_CLASSES = 1 + len(CLASSES)
    CLASS_NAMES = ("BG", *CLASSES)

    IMAGES_PER_GPU = 8
    STEPS_PER_EPOCH = 250
    VALIDATION_STEPS = 10
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 128

    MASK_HEAD_NORM = "group"  # 1.6 points of mask AP; on nuclei, it gained nothing
    RPN_TRAIN_ANCHORS_PER_IMAGE = 128
    PRE_NMS_LIMIT_TRAINING = 500
    POST_NMS_ROIS_TRAINING = 250
    TRAIN_ROIS_PER_IMAGE = 64
    PRE_NMS_LIMIT = 250
    POST_NMS_ROIS_INFERENCE = 250

    WARMUP_STEPS = 100
    EVAL_EVERY = 4


############################################################
#  Data set
############################################################


class ShapesDataset(Dataset):
    """Images that are drawn when they are loaded, from image_info alone."""

    def load_shapes(self, count: int, height: int = 128, width: int = 128, seed: int = 0, subset: str = "train"):
        """Registers images 0 to count - 1 of a subset and a seed.

        count: images. height, width: pixels, 128 to 512 look best. seed: 0 or more. subset: train, val or test.

        Raises: ValueError for another subset, a negative seed, no images or images without pixels.
        """
        if subset not in SUBSETS or seed < 0 or min(count, height, width) < 1:
            raise ValueError(
                f"subset must be one of {', '.join(SUBSETS)}, seed 0 or more, count, height and width at least 1, not "
                f"subset={subset!r}, seed={seed}, count={count}, height={height}, width={width}"
            )
        for class_id, name in enumerate(CLASSES, start=1):
            self.add_class("shapes", class_id, name)
        for number in range(count):
            stream = (SUBSETS.index(subset), seed, number)
            name = f"{subset}-{seed}-{number}-{height}x{width}"
            self.add_image("shapes", name, path=None, height=height, width=width, stream=stream)

    def load_image(self, image_id: int) -> np.ndarray:
        """The image, uint8 [H, W, 3]."""
        return self._draw(image_id)[0].copy()

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The visible part of each object: masks bool [H, W, N], class_ids int32 [N]."""
        _, masks, class_ids = self._draw(image_id)
        return masks.copy(), class_ids.copy()

    def _draw(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        info = self.image_info[image_id]
        return draw_stream(info["height"], info["width"], info["stream"])


############################################################
#  Drawing
############################################################

# Directions and corners are rounded and the rest is sums and products, so that every machine draws the same pixels.


def directions(angles: np.ndarray | float) -> np.ndarray:
    """Unit vectors (x, y) of angles, [..., 2]."""
    return np.round(np.stack([np.cos(angles), np.sin(angles)], axis=-1), 4)


CIRCLE = directions(np.linspace(0, 2 * np.pi, 48, endpoint=False))


def outlines(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Polygons [points, (x, y)] of a shape of radius 1; a second one is cut out of the first."""
    thin, hollow, spikes = rng.uniform(0.1, 0.4), rng.uniform(0.75, 0.95), rng.integers(5, 8)
    match name:
        case "bar":
            return [np.array([[-3, -0.2], [3, -0.2], [3, 0.2], [-3, 0.2]]) * [1, thin]]
        case "square":
            return [CIRCLE[::12]]
        case "circle":
            return [CIRCLE]
        case "triangle":
            return [CIRCLE[::16]]
        case "star":
            star = directions(np.linspace(0, 2 * np.pi, 2 * spikes, endpoint=False))
            return [star * np.tile([[1], [thin + 0.2]], (spikes, 1))]
        case "ring":
            return [CIRCLE, CIRCLE * (1 - thin)]
        case "crescent":
            return [CIRCLE, CIRCLE * hollow + [thin + 0.1, 0]]
        case "cross":
            arm, quarter = np.array([[1, -thin], [1, thin], [thin, thin]]), np.array([[0, 1], [-1, 0]])
            return [np.concatenate([arm, arm @ quarter, -arm, -arm @ quarter])]


def cover(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The share of each pixel that a shape covers, in sixteenths: float32 [H, W]."""
    canvas = Image.new("L", (4 * width, 4 * height))
    for polygon, fill in zip(polygons, (240, 0), strict=False):
        ImageDraw.Draw(canvas).polygon(np.round(4 * polygon).astype(int).flatten().tolist(), fill)
    return np.asarray(canvas.reduce(4), np.float32) / 240


def waves(height: int, width: int, period: float, rng: np.random.Generator) -> np.ndarray:
    """From 1 to 0 and back in a period, along any direction: float32 [H, W]."""
    dx, dy = directions(rng.uniform(0, 2 * np.pi)) / period
    return np.abs((np.arange(width) * dx + np.arange(height)[:, None] * dy) % 1 - 0.5).astype(np.float32) * 2


def texture(color: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A surface of about this colour, float32 [H, W, 3]: a second one in a gradient, in stripes or in clouds."""
    kind = rng.integers(3)
    if kind == 2:
        cells = Image.fromarray(rng.integers(0, 256, rng.integers(3, 20, 2), np.uint8))
        share = np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    else:
        share = waves(height, width, rng.uniform(4, 24) if kind else 2 * max(height, width), rng)
    return (color + share[..., None] * rng.uniform(-70, 70, 3)).astype(np.float32)


def draw(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with its objects, from the farthest to the nearest.

    Returns: uint8 [H, W, 3]; masks bool [H, W, N], the visible part of each object; class_ids int32 [N]. Objects of
        which less than 15 % or 20 pixels can be seen are left out.
    """
    image = texture(rng.uniform(40, 215, 3), height, width, rng)
    masks, areas, class_ids = [], [], []
    for class_id in rng.integers(0, 1 + len(CLASSES), rng.integers(2, 11)).tolist():
        dx, dy = directions(rng.uniform(0, 2 * np.pi)) * rng.uniform(0.09, 0.28) * min(height, width)
        turn = np.array([[dx, dy], [-dy, dx]]) * [[1], [rng.uniform(0.6, 1)]]
        centre = rng.uniform(0.05, 0.95, 2) * [width, height]
        polygons = [polygon @ turn + centre for polygon in outlines(("bar", *CLASSES)[class_id], rng)]
        x1, y1 = np.floor(polygons[0].min(axis=0)).clip(0).astype(int)
        x2, y2 = np.ceil(polygons[0].max(axis=0)).clip(None, [width, height]).astype(int)
        box, size = np.s_[y1:y2, x1:x2], (y2 - y1, x2 - x1)
        covered = cover([polygon - [x1, y1] for polygon in polygons], *size)
        inside = covered >= 0.5
        if not inside.any():
            continue
        behind = image[box][inside].mean(axis=0, dtype=np.float64).astype(np.float32)
        towards = np.where(rng.uniform(0, 255, 3) < behind, -1, 1)  # more often to where there is more room
        color = behind + towards * rng.uniform(15, 90) * rng.uniform(0.5, 1.5, 3)  # more or less easy to tell apart
        surface = texture(color, *size, rng)
        fade = waves(*size, 2 * max(size), rng) * max(0, rng.uniform(-0.9, 0.9))
        surface += fade[..., None] * (behind - surface)
        image[box] += covered[..., None] * (surface - image[box])
        for mask in masks:
            mask[box] &= ~inside
        if class_id > 0:  # bars are in the way, and no objects
            mask = np.zeros((height, width), bool)
            mask[box] = inside
            masks, areas, class_ids = [*masks, mask], [*areas, inside.sum()], [*class_ids, class_id]
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= max(20, 0.15 * areas[i])]
    masks = np.stack([np.zeros((height, width), bool), *(masks[i] for i in seen)], axis=-1)[..., 1:]
    return spoil(image, rng), masks, np.array([class_ids[i] for i in seen], np.int32)


@functools.lru_cache(maxsize=1)  # training asks for an image and then for its masks
def draw_stream(height: int, width: int, stream: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What draw() returns for the random numbers of (subset, seed, number). Others get it, too: copy it."""
    return draw(height, width, np.random.default_rng(stream))


def spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur and noise, as of a camera: uint8 [H, W, 3]."""
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    level = rng.integers(0, 16)
    noise = rng.integers(-level, level, image.shape, np.int16, endpoint=True)
    return (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)


############################################################
#  Data and a model for a first look
############################################################


def make_dataset(config: Config, subset: str, count: int, seed: int = 0) -> ShapesDataset:
    """Images of the size that the config has, ready to use."""
    dataset = ShapesDataset()
    dataset.load_shapes(count, *config.IMAGE_SHAPE[:2], seed, subset)
    dataset.prepare()
    return dataset


def is_quick() -> bool:
    """Whether MASKSCORING_QUICK=1 asks for trainings of a few steps, to see that all runs rather than to learn."""
    return os.environ.get("MASKSCORING_QUICK") == "1"


############################################################
#  Command line
############################################################


def load_training_data(arguments: argparse.Namespace, config: Config) -> tuple[ShapesDataset, ShapesDataset]:
    """The images to train on, which the seed decides, and those to validate with, which are always the same."""
    count = arguments.images or 32000  # each is seen once
    return make_dataset(config, "train", count, config.SEED), make_dataset(config, "val", 100)


def train(arguments: argparse.Namespace) -> int:
    """Train all but the MaskIoU head, then this head alone. Evaluates on the same images whatever the seed.

    Returns: the exit code.
    """
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")  # training is faster, and this network needs little memory
    settings = cli.settings_of(arguments, SEED=arguments.seed, GPU_COUNT=cli.gpu_count(arguments.device))
    start = cli.find_start(arguments.model or "none", ShapesConfig, arguments.logs, settings)
    cli.check_epochs(arguments, start, ShapesConfig)
    model = cli.starting_model(start, ShapesConfig, arguments.logs, settings, network_only=True)
    train_dataset, val_dataset = load_training_data(arguments, model.config)
    evaluate = evaluation_callback(val_dataset)
    progress = cli.train_detector_then_head(model, (train_dataset, val_dataset), arguments, settings, evaluate=evaluate)
    return 128 + progress.interrupted if progress.interrupted else 0


def evaluate(arguments: argparse.Namespace) -> None:
    """Print COCO-style AP on images that no training has seen."""
    model = cli.open_model(arguments, "last", ShapesConfig)
    evaluate_dataset(model, make_dataset(model.config, "test", arguments.images or 500, arguments.seed or 0))


def show(arguments: argparse.Namespace) -> None:
    """Write a sheet: each image, its objects below it and, if there is a model, the model's detections below these."""
    has_model = arguments.model not in (None, "none")
    model = cli.open_model(arguments, "last", ShapesConfig, DETECTION_MIN_CONFIDENCE=0.5) if has_model else None
    config = model.config if model else ShapesConfig(**cli.settings_of(arguments))
    dataset = make_dataset(config, "test", arguments.images or 12, arguments.seed or 0)
    tiles = []
    for image_id in dataset.image_ids:
        image, (masks, class_ids) = dataset.load_image(image_id), dataset.load_mask(image_id)
        names = [dataset.class_names[class_id] for class_id in class_ids]
        tile = [enlarged(image), picture(image, utils.extract_bboxes(masks), masks, names)]
        if model:
            (result,) = model.detect([image])
            captions = visualize.captions_of(result, model.class_names)
            tile.append(picture(image, result["rois"], result["masks"], captions))
        tiles.append(np.concatenate(tile))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 4)
    sheet = np.concatenate([np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, len(tiles), 4)])
    runtime.write_atomically(arguments.output, lambda file: Image.fromarray(sheet).save(file, "PNG"))
    print(f"{arguments.output}: {dataset.num_images} images")


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Pixels of an image or of masks twice as large, for captions that can be read."""
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def picture(image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, captions: list[str]) -> np.ndarray:
    """The image twice as large, with its objects."""
    return visualize.draw_instances(enlarged(image), 2 * boxes, enlarged(masks), captions, alpha=0.25)


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("shapes.py", __doc__)
    parser.add_argument("command", choices=["train", "evaluate", "show"])
    cli.add_model(parser, "none for train, last for evaluate; show draws no detections without it", trains=True)
    cli.add_epochs(parser, 12, "the MaskIoU head learns alone", least=0)
    cli.add_head_epochs(parser, 4)
    parser.add_argument(
        "--images",
        type=cli.whole_number(1),
        metavar="N",
        help="how many images; default: 32000 to train, 500 to evaluate, 12 to show",
    )
    cli.add_seed(parser, "the images and of training")
    cli.add_logs(parser)
    cli.add_output(parser, "the sheet of show", "shapes.png", "FILE")
    cli.add_device(parser)
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    parser = build_parser()
    of_commands = {"train": ("--epochs", "--head-epochs"), "show": ("--output",)}
    commands = {"train": train, "evaluate": evaluate, "show": show}
    return cli.run_command(parser.parse_args(argv), parser, commands, of_commands)


if __name__ == "__main__":
    sys.exit(main())

"""Nuclei: cell nuclei in microscope images, the 2018 Data Science Bowl's task, or any images with one kind of object.

    python samples/nucleus.py train --dataset DIR --subset train            from random weights
    python samples/nucleus.py train --dataset DIR --subset train --model last      go on where the last one stopped
    python samples/nucleus.py evaluate --dataset DIR --subset val --model last     COCO-style AP, 1000 results an image
    python samples/nucleus.py detect --dataset DIR --subset stage1_test --model last   pictures, and submit.csv
    python samples/nucleus.py detect --dataset PICTURES --model nuclei      a folder of images, or one image

DIR has one of two layouts:
    annotations/instances_SUBSET.json, SUBSET/...                          COCO's
    SUBSET/IMAGE_ID/images/IMAGE_ID.png, SUBSET/IMAGE_ID/masks/*.png       the Bowl's: a file a nucleus
Training is validated on the subset val. Where there is none, a tenth of the images is held out by a hash of their
names, always the same ones; evaluate --subset train --val-share 0.1 looks at these alone.
"""

import argparse
import copy
import csv
import hashlib
import io
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image
from tqdm import tqdm

import coco
import runtime
import utils
import visualize
from cli import whole_number
from config import BACKBONE_WEIGHTS, SHAPE, WEIGHTS, Config, parse_settings, settings_that
from data.dataset import Instances
from data.formats.coco import CocoDataset
from detections import ImageDetections
from evaluation.run import evaluate_dataset, evaluate_to_folder
from model import MaskRCNN
from training.checkpoints import find_last
from training.loop import Progress
from weights import load
from weights.checkpoint import is_backbone, read_checkpoint
from weights.load import load_checkpoint
from weights.published import imagenet_weights

MAX_DETS = 1000  # results of an image that count in evaluation: images have up to 375 nuclei, COCO's limit is 100
VAL_SHARE = 0.1

############################################################
#  Configuration
############################################################


class NucleusConfig(Config):
    """A small model for nuclei of 5 to 100 pixels, to be trained from nothing on a few cores.

    It learns from crops of images enlarged twice; Config.for_detection lets it see whole ones.
    """

    NAME = "nuclei"
    NUM_CLASSES = 2
    CLASS_NAMES = ("BG", "nucleus")

    IMAGES_PER_GPU = 4
    STEPS_PER_EPOCH = 500
    VALIDATION_STEPS = 24
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 256
    IMAGE_MIN_SCALE = 2

    # Matterport's mean of the Bowl's images, and a round deviation: dark images have less of it, stained ones more.
    MEAN_PIXEL = (43.53, 39.56, 48.22)
    STD_PIXEL = (50.0, 50.0, 50.0)

    BACKBONE = "resnet18"
    BACKBONE_WIDTH = 0.5
    TOP_DOWN_PYRAMID_SIZE = 128
    RPN_CHANNELS = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    FPN_CLASSIF_FC_LAYERS_SIZE = 256
    MASK_HEAD_CHANNELS = 64
    MASKIOU_HEAD_CHANNELS = 64
    MASKIOU_FC_LAYERS_SIZE = 256

    POST_NMS_ROIS_TRAINING = 500
    TRAIN_ROIS_PER_IMAGE = 128
    ROI_POSITIVE_RATIO = 0.33
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_INFERENCE = 2000
    DETECTION_MAX_INSTANCES = 500

    SCALE_JITTER = (0.8, 1.25)
    COLOR_JITTER = 0.2
    OPTIMIZER = "adamw"
    LEARNING_RATE = 1e-3
    LEARNING_RATE_DECAY = "cosine"
    WARMUP_STEPS = 200
    TRAIN_DTYPE = "bfloat16"  # float32 learns as much, and takes twice as long where the processor has bfloat16
    EVAL_EVERY = 4


def detector_of(model: MaskRCNN) -> MaskRCNN:
    """A second model that shares the weights of the first one and sees whole images, while the first learns from
    crops."""
    detector = copy.copy(model)
    detector.config = model.config.for_detection()
    return detector


############################################################
#  Data set
############################################################


class NucleusDataset(CocoDataset):
    """Images of nuclei in either layout, or without any, to look for nuclei in. Masks are kept as run-length codes.

    layout: which was found, "COCO", "Data Science Bowl" or "images".
    """

    layout = ""

    def load_nucleus(self, dataset_dir: str | Path, subset: str, masks: bool = True) -> None:
        """Registers the images of a subset.

        dataset_dir: the folder, see above. masks: whether images without masks are an error.

        Raises: FileNotFoundError if the folder has neither layout, ValueError for images without masks; else as
            CocoDataset.load_annotations.
        """
        folder, name = Path(dataset_dir), f"annotations/instances_{subset}.json"
        if (folder / name).is_file():
            self.layout = "COCO"
            self.load_annotations(folder / name, folder / subset, "nuclei")
            return
        entries = sorted((folder / subset).glob("*/images/*"))
        entries = [path for path in entries if path.suffix.lower() in utils.IMAGE_SUFFIXES]
        if not entries:
            raise FileNotFoundError(_expected(folder, subset))
        self.layout = "Data Science Bowl"
        without = [entry.parents[1].name for entry in entries if masks and not (entry.parents[1] / "masks").is_dir()]
        if without:
            raise ValueError(
                f"{folder / subset}: {len(without)} of {len(entries)} images have no folder masks, such as "
                f"{without[0]}; without masks there is nothing to learn and nothing to compare with: only detect "
                "takes such a subset"
            )
        self.add_images(entries, [entry.parents[1].name for entry in entries])

    def add_images(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        """Registers image files. names: what to call them in results; by default as the files, without the suffix.

        Raises: ValueError if two have one name.
        """
        names = [path.stem for path in paths] if names is None else names
        twice = [name for name, other in zip(sorted(names), sorted(names)[1:], strict=False) if name == other]
        if twice:
            raise ValueError(f"two images are called {twice[0]}: their results could not be told apart")
        self.layout = self.layout or "images"
        self.add_class("nuclei", 1, "nucleus")
        for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
            self.add_image("nuclei", number, path, name=name)

    def name(self, image_id: int) -> str:
        """What an image is called in results: the Bowl's ImageId."""
        info = self.image_info[image_id]
        return info.get("name") or Path(info["path"]).stem

    def keep(self, wanted: Sequence[bool]) -> None:
        """Keeps these of the images. wanted: [num_images]. prepare() is due afterwards."""
        self.image_info = [info for info, is_wanted in zip(self.image_info, wanted, strict=True) if is_wanted]
        self._forget()

    def load_instances(self, image_id: int) -> Instances:
        """The nuclei as run-length codes. The Bowl's files of masks are read once.

        Raises: ValueError for a mask that cannot be read, or is of another size than its image.
        """
        info = self.image_info[image_id]
        if "name" not in info:
            return super().load_instances(image_id)
        if "rles" not in info:
            paths = sorted((info["path"].parents[1] / "masks").glob("*.png"))
            size = self.load_image(image_id).shape[:2]
            info["rles"] = [utils.mask_to_rle(_read_mask(path, size)) for path in paths]
        return Instances(np.ones(len(info["rles"]), np.int32), info["rles"])

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [H, W, N], and class ids int32 [N]."""
        class_ids, rles, _ = self.load_instances(image_id)
        height, width = self.load_image(image_id).shape[:2]
        return (utils.rle_to_mask(rles) if rles else np.zeros((height, width, 0), bool)), class_ids

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """As CocoDataset, also of files of masks. Empty masks are no nuclei."""
        info = self.image_info[image_id]
        if "name" not in info:
            return super().annotations(image_id)
        found = []
        for rle in self.load_instances(image_id).masks:
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            entry = {"image_id": info["id"], "category_id": 1, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            found.append({**entry, "area": utils.rle_area(rle), "segmentation": utils.rle_to_json(rle)})
        return [entry for entry in found if entry["area"]]


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W], what is not black in a file. size: (H, W), which it has to have."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L") if image.mode in ("LA", "PA", "RGBA") else image)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a damaged PNG
        raise ValueError(f"mask {path} cannot be read: {error}") from None
    if pixels.shape[:2] != size:
        raise ValueError(f"mask {path} has {pixels.shape[:2]} pixels (height, width), its image {size}")
    return pixels.astype(bool) if pixels.ndim == 2 else pixels.any(axis=2)


def _expected(folder: Path, subset: str) -> str:
    """What a folder should have had, and what it has."""
    if not folder.is_dir():
        return f"--dataset {folder}: there is no such folder"
    there = utils.listed(sorted(entry.name for entry in folder.iterdir()), 8) or "nothing"
    jsons = [path.stem.removeprefix("instances_") for path in sorted(folder.glob("annotations/instances_*.json"))]
    bowl = sorted({path.parents[2].name for path in folder.glob("*/*/images/*.png")})
    known = jsons + [name for name in bowl if name not in jsons]
    hint = f"--subset can be {utils.listed(known)}" if known else "Is it a folder too high or too deep?"
    if (folder / subset).is_dir():
        hint += f"; detect takes images alone by --dataset {folder / subset}, without --subset"
    return (
        f"--dataset {folder} has no subset {subset!r}: expected annotations/instances_{subset}.json and {subset}/, or "
        f"{subset}/IMAGE_ID/images/*.png; found {there}. {hint}"
    )


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is for validation, by its name alone: other images do not change it. share: of all, [0, 1]."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < share * 2**32


def make_dataset(
    dataset_dir: str | Path, subset: str, part: str = "all", val_share: float = VAL_SHARE, masks: bool = True
) -> NucleusDataset:
    """The images of a subset, ready to use. Whatever categories a COCO file has count as one: nucleus.

    part: all, "held out" for validation, or the "rest", by is_held_out. masks: as of load_nucleus.

    Raises: as load_nucleus; ValueError if val_share leaves no images, or part is something else.
    """
    if part not in ("all", "held out", "rest"):
        raise ValueError(f"part must be 'all', 'held out' or 'rest', not {part!r}")
    dataset = NucleusDataset()
    dataset.load_nucleus(dataset_dir, subset, masks)
    dataset.prepare()
    count = dataset.num_images
    if part != "all":
        held_out = [is_held_out(dataset.name(image_id), val_share) for image_id in dataset.image_ids]
        dataset.keep([held == (part == "held out") for held in held_out])
        if not dataset.image_info:
            raise ValueError(f"--val-share {val_share:g} of {count} images leaves none that are {part!r}")
    dataset.prepare({f"{info['source']}.{info['id']}": "nucleus" for info in dataset.class_info[1:]})
    of_all = "" if part == "all" else f" of {count}, {part}"
    print(f"{dataset_dir}: {subset}, layout {dataset.layout}, {dataset.num_images} images{of_all}")
    return dataset


############################################################
#  Augmentation
############################################################


def augment(image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random number of quarter turns, by the generator of `random`, which training seeds for each image.

    With HORIZONTAL_FLIP, which comes after it, these are all eight ways to lay a slide, flips top to bottom included.

    image: [H, W, 3]. masks: bool [H, W, N]. Returns: both, turned.
    """
    turns = random.randrange(4)
    return np.rot90(image, turns), np.rot90(masks, turns)


############################################################
#  Submission
############################################################

# A line a nucleus: the image, and runs of its pixels as "start length start length", counted from 1 down the columns.


def rle_encode(mask: np.ndarray) -> str:
    """The runs of a mask, bool [H, W]; empty if it is."""
    values, starts, lengths = _runs(np.asarray(mask) != 0)
    return _text(starts[values == 1], lengths[values == 1])


def rle_decode(text: str, shape: Sequence[int]) -> np.ndarray:
    """The mask of runs: undoes rle_encode.

    shape: (H, W). Returns: bool [H, W].
    Raises: ValueError for what is not pairs of whole numbers, ascending and inside of the image.
    """
    height, width = map(int, shape)
    words = text.split()
    mask, end = np.zeros(height * width, bool), 0
    if len(words) % 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"EncodedPixels must be pairs of whole numbers, start and length, not {text[:60]!r}")
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        first, end = end, start - 1 + length
        if not first < start <= end <= height * width:
            raise ValueError(
                f"EncodedPixels: the run {start} {length} must have a pixel, begin after pixel {first} and end by "
                f"pixel {height * width}, the last of {height} x {width}; is the shape (height, width)?"
            )
        mask[start - 1 : end] = True
    return mask.reshape(width, height).T


def mask_to_rle(image_id: str, masks: np.ndarray | list[dict], scores: Sequence[float]) -> str:
    """The lines of an image, best first. A pixel belongs to the best of the masks that have it, for nuclei must not
    overlap. One line with an empty field if nothing is left.

    masks: bool [H, W, N], or N run-length codes of COCO's, as detect() returns. scores: [N].

    Raises: ValueError if masks and scores differ in number.
    """
    rles = masks if isinstance(masks, list) else utils.mask_to_rle(np.asarray(masks))
    if len(rles) != len(scores):
        raise ValueError(f"masks and scores must be of the same nuclei, not {len(rles)} and {len(scores)}")
    labels = np.zeros(rles[0]["size"] if rles else (0, 0), np.int32)  # 1 for the best
    ranks = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    for label, i in reversed(list(enumerate(ranks, start=1))):
        y, x, crop = utils.rle_to_crop(rles[i])
        labels[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = label
    values, starts, lengths = _runs(labels)
    own = [values == label for label in range(1, len(rles) + 1)]
    rows = [(image_id, _text(starts[runs], lengths[runs])) for runs in own if runs.any()]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows or [(image_id, "")])
    return lines.getvalue().removesuffix("\n")


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The value, first pixel and length of each run of equal numbers [H, W], down the columns."""
    flat = labels.ravel("F").astype(np.int32)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
    return flat[starts], starts, np.diff(starts, append=flat.size)


def _text(starts: np.ndarray, lengths: np.ndarray) -> str:
    return " ".join(map(str, np.stack([starts + 1, lengths], axis=1).ravel().tolist()))


############################################################
#  Train
############################################################


class TimeLimit:
    """A callback that ends training after the epoch during which the time is over."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes

    def __call__(self, event: str, progress: Progress) -> None:
        if event == "epoch_end" and time.monotonic() > self.deadline:
            progress.stop = True
            print("the time of --minutes is over")


def load_training_data(arguments: argparse.Namespace) -> tuple[NucleusDataset, NucleusDataset]:
    """What is trained on, and what is validated with: the subset val, or what is held out."""
    folder, subset, share = arguments.dataset, arguments.subset or "train", arguments.val_share
    has_val = (folder / "annotations" / "instances_val.json").is_file() or any(folder.glob("val/*/images"))
    if has_val and share is None and subset != "val":
        return make_dataset(folder, subset), make_dataset(folder, "val")
    share = VAL_SHARE if share is None else share
    rest, held_out = (make_dataset(folder, subset, part, share) for part in ("rest", "held out"))
    names = [held_out.name(image_id) for image_id in held_out.image_ids]
    print(f"held out for validation, by a hash of their names: {utils.listed(names)}")
    return rest, held_out


def starting_model(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> MaskRCNN:
    """The model that training starts from: new, of the training that goes on, or with the weights of another."""
    name, logs = arguments.model, arguments.logs
    if name == "none":
        return MaskRCNN(NucleusConfig(**settings), logs)
    if name == "last":
        path = find_last(logs, NucleusConfig.NAME)
        model = MaskRCNN(NucleusConfig.from_dict(read_checkpoint(path)["config"], **settings), logs)
        model.load_weights(path)
        return model
    if name == "imagenet":
        config = NucleusConfig(**settings)
        checkpoint = load_checkpoint(imagenet_weights(config))
    else:
        checkpoint = load_checkpoint(name)
    return finetuned_model(checkpoint, logs, settings)


def finetuned_model(checkpoint: Mapping[str, Any], logs: Path, settings: Mapping[str, Any]) -> MaskRCNN:
    """A model that starts from the weights of a checkpoint as far as they fit, at a tenth of the learning rate.

    The network is the checkpoint's. Classes, anchor sizes, the choice of a MaskIoU head, images and training are this
    sample's.
    """
    if is_backbone(checkpoint):
        names, stored = settings_that(BACKBONE_WEIGHTS), {"BACKBONE_WIDTH": 1.0}
    else:
        names, stored = settings_that(WEIGHTS, SHAPE), {}
    kept = {"NUM_CLASSES", "RPN_ANCHOR_SCALES", "USE_MASKIOU_HEAD"}
    stored |= {name: value for name, value in checkpoint["config"].items() if name in names and name not in kept}
    rate = NucleusConfig.LEARNING_RATE / 10
    model = MaskRCNN(NucleusConfig(**{"LEARNING_RATE": rate, **stored, **settings}), logs)
    anchors = {"RPN_ANCHOR_SCALES": model.config.RPN_ANCHOR_SCALES}  # the RPN learns what fits to new ones
    model.load_weights({**checkpoint, "config": {**checkpoint["config"], **anchors}}, by_name=True)
    return model


def train(arguments: argparse.Namespace, settings: dict) -> int:
    """Train all, then the MaskIoU head alone on the boxes and masks that are final.

    The best checkpoint is that of the highest mask AP on whole images, every EVAL_EVERY epochs and after each part.
    """
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")  # it takes little, and is faster so
    settings = {"GPU_COUNT": int(arguments.device != "cpu"), **settings}
    if arguments.seed is not None:
        settings = {"SEED": arguments.seed, **settings}
    train_dataset, val_dataset = load_training_data(arguments)
    model = starting_model(arguments, settings)
    wanted = val_dataset.image_ids[: arguments.eval_images]

    def evaluate(model: MaskRCNN) -> dict[str, float]:
        return evaluate_nuclei(detector_of(model), val_dataset, wanted, verbose=False)

    limits = [TimeLimit(arguments.minutes)] if arguments.minutes is not None else []
    head_epochs = arguments.head_epochs if model.config.USE_MASKIOU_HEAD else 0
    parts = [("all", arguments.epochs)] + [("maskiou", arguments.epochs + head_epochs)] * bool(head_epochs)
    for layers, epochs in parts:
        if epochs < parts[-1][1] and model.epoch >= epochs:
            continue  # a training goes on that is in its last part
        model.config.MASKIOU_REFINED_ROIS = settings.get("MASKIOU_REFINED_ROIS", layers == "maskiou")
        progress = model.train_model(
            train_dataset,
            val_dataset,
            epochs=epochs,
            layers=layers,
            augmentation=augment,
            custom_callbacks=limits,
            evaluate=evaluate,
        )
        if progress.interrupted or progress.stop:
            break
    return 128 + progress.interrupted if progress.interrupted else 0


############################################################
#  Evaluate and detect
############################################################


def load_model(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> MaskRCNN:
    """The model of a checkpoint, to look at whole images.

    Raises: ValueError for a model of other classes; else as weights.load.load_model.
    """
    name = arguments.model
    path = find_last(arguments.logs, NucleusConfig.NAME) if name == "last" else name
    model = load.load_model(path, arguments.device, **settings)
    model.config = model.config.for_detection(**settings)
    if model.config.NUM_CLASSES != NucleusConfig.NUM_CLASSES:
        raise ValueError(
            f"--model {name} knows {utils.listed(model.class_names[1:], 3)}, not nuclei; training can start from it"
        )
    return model


def evaluate_nuclei(
    model: MaskRCNN, dataset: NucleusDataset, image_ids: Sequence[int] | None = None, verbose: bool = True
) -> dict[str, float]:
    """coco.evaluate_dataset with MAX_DETS. The one class of the model is that of the data set, whatever its number."""
    model.category_ids = dataset.category_ids
    return evaluate_dataset(model, dataset, image_ids, MAX_DETS, verbose)


def evaluate(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Print COCO-style AP of a subset, or of what is held out of it; with --output, write a report."""
    model = load_model(arguments, settings)
    part = "all" if arguments.val_share is None else "held out"
    dataset = make_dataset(arguments.dataset, arguments.subset or "val", part, arguments.val_share or 0)
    coco.check_complete(dataset)
    image_ids = dataset.image_ids[: arguments.eval_images]
    if arguments.output is None:
        evaluate_nuclei(model, dataset, image_ids)
        return
    model.category_ids = dataset.category_ids
    facts = {"data": f"{arguments.subset or 'val'} in {arguments.dataset}"}
    evaluate_to_folder(model, dataset, arguments.output, image_ids, MAX_DETS, facts=facts)


def find_images(path: Path, subset: str | None) -> NucleusDataset:
    """What to look for nuclei in: a subset of a data set, the images of a folder, or one image.

    Raises: FileNotFoundError if there is none; ValueError as NucleusDataset.add_images.
    """
    if subset is not None:
        return make_dataset(path, subset, masks=False)
    if not path.exists():
        raise FileNotFoundError(f"--dataset {path}: there is no such file or folder")
    paths = utils.image_files(path, "; of a data set, name the --subset, too") if path.is_dir() else [path]
    dataset = NucleusDataset()
    dataset.add_images(paths)
    dataset.prepare()
    return dataset


def draw_nuclei(image: np.ndarray, found: Mapping[str, Any]) -> np.ndarray:
    """The image with the outlines of what detect() found in it with RLEs, the best mask on top; boxes would hide it."""
    best = ImageDetections.of(found).sorted_by("mask_scores")
    return visualize.draw_instances(image, best.rois, best.masks, alpha=0.25, show_bbox=False)


def detect(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Write a picture of each image with its nuclei, and submit.csv. Images that cannot be read are told at the end."""
    dataset, folder = find_images(arguments.dataset, arguments.subset), arguments.output or Path("results")
    pictures = [folder / f"{dataset.name(image_id)}.png" for image_id in dataset.image_ids]
    replaced = {path.resolve() for path in pictures} & {Path(info["path"]).resolve() for info in dataset.image_info}
    if replaced:
        raise ValueError(f"--output {folder} would replace {min(replaced)} and others; choose another folder")
    model = load_model(arguments, {"DETECTION_MIN_CONFIDENCE": 0.5, **settings})
    folder.mkdir(parents=True, exist_ok=True)
    lines, failures = ["ImageId,EncodedPixels"], []
    with model.prepared():
        for image_id, path in zip(tqdm(dataset.image_ids, unit="image"), pictures, strict=True):
            try:
                image = dataset.load_image(image_id)
            except (OSError, ValueError) as error:
                failures.append(str(error))
                continue
            (found,) = model.detect([image], masks="rle")
            lines.append(mask_to_rle(dataset.name(image_id), found["masks"], found["mask_scores"]))
            picture = Image.fromarray(draw_nuclei(image, found))
            runtime.write_atomically(path, lambda file, picture=picture: picture.save(file, "PNG"))
    text = "\n".join([*lines, ""])
    runtime.write_atomically(folder / "submit.csv", lambda file: file.write(text.encode()))
    nuclei = sum(1 for line in text.splitlines()[1:] if not line.endswith(","))
    print(f"{folder}: {len(lines) - 1} pictures and submit.csv with {nuclei} nuclei")
    if failures:
        raise ValueError(f"{len(failures)} images could not be read: {utils.listed(failures, 3)}")


############################################################
#  Command line
############################################################


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "evaluate", "detect"])
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="see above")
    parser.add_argument("--subset", help="default: train for train, val for evaluate; detect without it: images of DIR")
    parser.add_argument(
        "--model", help="last, a checkpoint, or a name that convert_weights.py knows; to train, also none (random "
        "weights) and imagenet. Default: none for train, else last",
    )  # fmt: skip
    parser.add_argument("--val-share", type=float, metavar="SHARE", help="of the images, held out; default: see above")
    parser.add_argument("--epochs", type=int, default=16, help="when training ends, counted from nothing; default: 16")
    parser.add_argument(
        "--head-epochs", type=whole_number(0), default=2, metavar="N", help="of the MaskIoU head alone; default: 2"
    )
    parser.add_argument("--minutes", type=float, help="training stops after the epoch during which they are over")
    parser.add_argument("--seed", type=int, help="of all that is random in training; default: 0")
    parser.add_argument("--eval-images", type=int, metavar="N", help="evaluate the first N images only; default: all")
    parser.add_argument("--logs", type=Path, default=Path("logs"), metavar="DIR", help="of trainings; default: logs")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="of detect; default: results. Of evaluate, to get a report"
    )
    parser.add_argument("--device", default=runtime.find_device().type, help="cpu or cuda")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of config.py to change")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 2 for a mistake in it, 128 + its number after a signal."""
    arguments = build_parser().parse_args(argv)
    arguments.model = arguments.model or ("none" if arguments.command == "train" else "last")
    try:
        for name in ("epochs", "minutes", "eval_images"):
            if getattr(arguments, name) is not None and not getattr(arguments, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {getattr(arguments, name)}")
        settings = parse_settings(arguments.set)
        return {"train": train, "evaluate": evaluate, "detect": detect}[arguments.command](arguments, settings) or 0
    except (OSError, ValueError) as error:
        print(f"nucleus.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nnucleus.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

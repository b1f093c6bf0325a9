"""Nuclei: cell nuclei in microscope images, the 2018 Data Science Bowl's task, or any images with one kind of object.

    python samples/nucleus.py train --dataset DIR --subset train                   from random weights
    python samples/nucleus.py train --dataset DIR --subset train --model last      continue the last training
    python samples/nucleus.py evaluate --dataset DIR --model last                  COCO-style AP, 1000 results an image
    python samples/nucleus.py detect --dataset DIR --subset stage1_test --model last   pictures, and submit.csv
    python samples/nucleus.py detect --dataset PICTURES --model nuclei             in a folder of images, or one image

DIR has one of two layouts:
    annotations/instances_SUBSET.json, SUBSET/...                          COCO's
    SUBSET/IMAGE_ID/images/IMAGE_ID.png, SUBSET/IMAGE_ID/masks/*.png       the Bowl's: one file for each nucleus
Training is validated on the subset val. If there is none, a tenth of the images is held out. A hash of their names
chooses them, so that they are always the same. Without --subset, evaluate takes the images that validate a training on
the subset train; with it, all images of the subset, or those that --val-share holds out.
"""

import argparse
import csv
import hashlib
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from PIL import Image
from tqdm import tqdm

import cli
import coco
import runtime
import utils
import visualize
from config import Config, SmallConfig
from data.dataset import Dataset, Instances
from data.formats.coco import CocoDataset
from data.images import read_mask
from detections import ImageDetections
from evaluation.run import evaluate_dataset, evaluate_to_folder, evaluation_callback, whole_images
from evaluation.words import count_of
from model import MaskRCNN
from training.loop import Progress

MAX_DETS = 1000  # results of an image that count in evaluation: images have up to 375 nuclei, COCO's limit is 100
VAL_SHARE = 0.1

############################################################
#  Configuration
############################################################


class NucleusConfig(SmallConfig):
    """The small network for nuclei of 5 to 100 pixels.

    It learns from crops of images that are enlarged twice. Config.for_detection lets it see whole images.
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

    # The mean is Matterport's for the Bowl's images. The deviation is round: dark images vary less, stained ones more.
    MEAN_PIXEL = (43.53, 39.56, 48.22)
    STD_PIXEL = (50.0, 50.0, 50.0)

    POST_NMS_ROIS_TRAINING = 500
    TRAIN_ROIS_PER_IMAGE = 128
    ROI_POSITIVE_RATIO = 0.33
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_INFERENCE = 2000
    DETECTION_MAX_INSTANCES = 500
    BOXES_OF_MASKS = True

    QUARTER_TURNS = True  # with HORIZONTAL_FLIP, an image appears in all eight ways in which a slide can lie
    SCALE_JITTER = (0.6, 1.6)
    COLOR_JITTER = 0.4
    WARMUP_STEPS = 200
    EVAL_EVERY = 4


def detection_settings(config: Config, dataset: Dataset, **settings: Any) -> dict[str, Any]:
    """The settings to change so that a model sees whole images, where training takes crops. Its class then has the
    number of the data set.

    config: of the model. settings: others to change.

    Raises: ValueError for a model of other classes than nuclei.
    """
    if config.NUM_CLASSES != NucleusConfig.NUM_CLASSES:
        names = utils.listed(config.CLASS_NAMES[1:], 3) if config.CLASS_NAMES else f"{config.NUM_CLASSES - 1} classes"
        raise ValueError(f"the model knows {names}, not nuclei; only a training can start from it (train --model)")
    return config.detection_settings(**{**settings, "CATEGORY_IDS": dataset.category_ids})


def open_detector(arguments: argparse.Namespace, dataset: Dataset, **settings: Any) -> MaskRCNN:
    """The model that --model names, as it sees whole images of a data set. arguments, settings: as for cli.open_model.

    Raises: as cli.open_model and detection_settings.
    """
    adapt = partial(detection_settings, dataset=dataset, **cli.settings_of(arguments))
    return cli.open_model(arguments, "last", NucleusConfig, adapt=adapt, **settings)


def whole_image_detector(model: MaskRCNN, dataset: Dataset, **settings: Any) -> MaskRCNN:
    """A copy of a model in training, with detection_settings. The arguments and errors are those of that function."""
    return whole_images(model, **detection_settings(model.config, dataset, **settings))


############################################################
#  Data set
############################################################


class NucleusDataset(CocoDataset):
    """Images of nuclei in either layout, or images alone, to detect nuclei in. Masks are kept as run-length codes.

    layout: "COCO", "Data Science Bowl" or "images".
    """

    layout = ""

    def load_nucleus(self, dataset_dir: str | Path, subset: str, masks: bool = True) -> None:
        """Registers the images of a subset.

        dataset_dir: a folder of either layout. masks: whether images without masks are an error.

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
                f"{without[0]}; training and evaluation need masks, and only detect takes images without them"
            )
        self.add_images(entries, [entry.parents[1].name for entry in entries])

    def add_images(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        """Registers image files. names: of the images in results; default: the files' names without the suffix.

        Raises: ValueError if two images have the same name.
        """
        names = [path.stem for path in paths] if names is None else names
        repeated = [name for name, other in zip(sorted(names), sorted(names)[1:], strict=False) if name == other]
        if repeated:
            raise ValueError(f"two images are called {repeated[0]}: their results could not be told apart")
        self.layout = self.layout or "images"
        self.add_class("nuclei", 1, "nucleus")
        for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
            self.add_image("nuclei", number, path, name=name)

    def name(self, image_id: int) -> str:
        """The name of an image in results: the Bowl's ImageId."""
        info = self.image_info[image_id]
        return info.get("name") or Path(info["path"]).stem

    def keep(self, is_kept: Sequence[bool]) -> None:
        """Removes the other images. is_kept: [num_images]. Call prepare() afterwards."""
        self.image_info = [info for info, kept in zip(self.image_info, is_kept, strict=True) if kept]
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
        """The nuclei as CocoDataset has them, from files of masks, too. Empty masks are no nuclei."""
        info = self.image_info[image_id]
        if "name" not in info:
            return super().annotations(image_id)
        entries = []
        for rle in self.load_instances(image_id).masks:
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            entry = {"image_id": info["id"], "category_id": 1, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            entries.append({**entry, "area": utils.rle_area(rle), "segmentation": utils.rle_to_json(rle)})
        return [entry for entry in entries if entry["area"]]


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a mask file that are not black, bool [H, W]. size: (H, W) of the image, and so of the mask."""
    try:
        mask = read_mask(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"mask {path} cannot be read: {error}") from None
    if mask.shape != size:
        raise ValueError(f"mask {path} has {mask.shape} pixels (height, width), its image {size}")
    return mask


def _expected(folder: Path, subset: str) -> str:
    """A message: the layouts that a folder should have, and what it has."""
    if not folder.is_dir():
        return f"--dataset {folder}: there is no such folder"
    contents = utils.listed(sorted(entry.name for entry in folder.iterdir()), 8) or "nothing"
    subsets = [path.stem.removeprefix("instances_") for path in sorted(folder.glob("annotations/instances_*.json"))]
    bowl = sorted({path.parents[2].name for path in folder.glob("*/*/images/*.png")})
    subsets += [name for name in bowl if name not in subsets]
    hint = f"--subset can be {utils.listed(subsets)}" if subsets else "Is it a folder too high or too deep?"
    if (folder / subset).is_dir():
        hint += f"; detect takes images alone by --dataset {folder / subset}, without --subset"
    return (
        f"--dataset {folder} has no subset {subset!r}: expected annotations/instances_{subset}.json and {subset}/, or "
        f"{subset}/IMAGE_ID/images/*.png; found {contents}. {hint}"
    )


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is for validation. Only its name decides, not the other images. share: of all images, [0, 1]."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:4], "big") < share * 2**32


def make_dataset(
    dataset_dir: str | Path, subset: str, part: str = "all", val_share: float = VAL_SHARE, masks: bool = True
) -> NucleusDataset:
    """The images of a subset, ready to use. All categories of a COCO file count as one: nucleus.

    part: "all", those "held out" for validation by is_held_out, or the "rest". masks: as for load_nucleus.

    Raises: as load_nucleus; ValueError if val_share leaves no images, or for another part.
    """
    if part not in ("all", "held out", "rest"):
        raise ValueError(f"part must be 'all', 'held out' or 'rest', not {part!r}")
    dataset = NucleusDataset()
    dataset.load_nucleus(dataset_dir, subset, masks)
    dataset.prepare()
    count = dataset.num_images
    if part != "all":
        held_out = [is_held_out(dataset.name(image_id), val_share) for image_id in dataset.image_ids]
        dataset.keep([is_out == (part == "held out") for is_out in held_out])
        if not dataset.image_info:
            raise ValueError(f"--val-share {val_share:g} of {count} images leaves none that are {part!r}")
    dataset.prepare({f"{info['source']}.{info['id']}": "nucleus" for info in dataset.class_info[1:]})
    of_all = "" if part == "all" else f" of {count}, {part}"
    print(f"{dataset_dir}: {subset}, layout {dataset.layout}, {dataset.num_images} images{of_all}")
    return dataset


############################################################
#  Submission
############################################################

# One line for each nucleus: the image, and runs of pixels as "start length start length". Pixels are counted
# from 1, down the columns.


def rle_encode(mask: np.ndarray) -> str:
    """The runs of a mask, bool [H, W]; an empty text for an empty mask."""
    values, starts, lengths = _runs(np.asarray(mask) != 0)
    return _text(starts[values == 1], lengths[values == 1])


def rle_decode(text: str, shape: Sequence[int]) -> np.ndarray:
    """The mask of runs, bool [H, W]: the inverse of rle_encode.

    shape: (H, W).
    Raises: ValueError unless the text is pairs of whole numbers, ascending and inside the image.
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
    """The lines of an image, best nucleus first; one line with an empty field if there is no nucleus.

    Nuclei must not overlap: a pixel of several masks belongs to the best of them.

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
    runs_of_each = [values == label for label in range(1, len(rles) + 1)]
    rows = [(image_id, _text(starts[runs], lengths[runs])) for runs in runs_of_each if runs.any()]
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
    """A callback that stops training after the epoch in which the time is over."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes

    def __call__(self, event: str, progress: Progress) -> None:
        if event == "epoch_end" and time.monotonic() > self.deadline:
            progress.stop = True
            print("the time of --minutes is over")


def held_out_share(folder: Path, subset: str, share: float | None) -> float | None:
    """The share of a subset that is held out to validate a training on it; None if the subset val does that.

    share: of --val-share, None if it is not given.
    """
    has_val = (folder / "annotations" / "instances_val.json").is_file() or any(folder.glob("val/*/images"))
    if has_val and share is None and subset != "val":
        return None
    return VAL_SHARE if share is None else share


def load_training_data(arguments: argparse.Namespace) -> tuple[NucleusDataset, NucleusDataset]:
    """The images to train on, and those to validate with: the subset val, or images held out of the first."""
    folder, subset = arguments.dataset, arguments.subset or "train"
    share = held_out_share(folder, subset, arguments.val_share)
    if share is None:
        return make_dataset(folder, subset), make_dataset(folder, "val")
    rest, held_out = (make_dataset(folder, subset, part, share) for part in ("rest", "held out"))
    names = [held_out.name(image_id) for image_id in held_out.image_ids]
    print(f"held out for validation, by a hash of their names: {utils.listed(map(utils.printable, names))}")
    return rest, held_out


def train(arguments: argparse.Namespace) -> int:
    """Train all but the MaskIoU head, then this head alone.

    The best checkpoint is that of the highest mask AP on whole images, every EVAL_EVERY epochs and after each phase.
    """
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")  # training is faster, and this network needs little memory
    settings = cli.settings_of(arguments, SEED=arguments.seed, GPU_COUNT=cli.gpu_count(arguments.device))
    train_dataset, val_dataset = load_training_data(arguments)
    name = arguments.model or "none"
    if name not in ("none", "last"):  # trained weights need smaller steps
        settings = {"LEARNING_RATE": NucleusConfig.LEARNING_RATE / 10, **settings}
    start = cli.find_start(name, NucleusConfig, arguments.logs, settings)
    cli.check_epochs(arguments, start, NucleusConfig)
    model = cli.starting_model(start, NucleusConfig, arguments.logs, settings, network_only=True)
    image_ids = val_dataset.image_ids[: arguments.eval_images]
    adapt = partial(whole_image_detector, dataset=val_dataset)
    evaluate = evaluation_callback(val_dataset, image_ids, MAX_DETS, adapt=adapt)
    limits = [TimeLimit(arguments.minutes)] if arguments.minutes is not None else []
    progress = cli.train_detector_then_head(
        model, (train_dataset, val_dataset), arguments, settings, custom_callbacks=limits, evaluate=evaluate
    )
    return 128 + progress.interrupted if progress.interrupted else 0


############################################################
#  Evaluate and detect
############################################################


def evaluate_nuclei(
    model: MaskRCNN, dataset: NucleusDataset, image_ids: Sequence[int] | None = None, verbose: bool = True
) -> dict[str, float]:
    """COCO-style AP on whole images, with MAX_DETS results each. The arguments are those of evaluate_dataset."""
    return evaluate_dataset(whole_image_detector(model, dataset), dataset, image_ids, MAX_DETS, verbose)


def load_evaluation_data(arguments: argparse.Namespace) -> tuple[NucleusDataset, str]:
    """The images to evaluate, and what they are in words.

    Without --subset, these are the images that training on the subset train validates with. With it, they are those of
    the subset, or the share of them that --val-share holds out.
    """
    folder, subset, share = arguments.dataset, arguments.subset, arguments.val_share
    if subset is None:
        share = held_out_share(folder, "train", share)
        subset = "val" if share is None else "train"
        if subset == "train":
            print(f"evaluates the images of train that training holds out for validation: --val-share {share:g}")
    part = "all" if share is None else "held out"
    dataset = make_dataset(folder, subset, part, share or 0)
    return dataset, f"{subset} in {folder}" + ("" if share is None else f", held out with --val-share {share:g}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Print COCO-style AP of the images of load_evaluation_data; with --output, write a report."""
    cli.named_checkpoint(arguments, "last", NucleusConfig)  # raises before the data set is read
    if arguments.output is not None:
        cli.check_folder("--output", arguments.output)
    dataset, description = load_evaluation_data(arguments)
    coco.check_complete(dataset)
    detector = open_detector(arguments, dataset)
    image_ids = dataset.image_ids[: arguments.eval_images]
    if arguments.output is None:
        evaluate_dataset(detector, dataset, image_ids, MAX_DETS)
        return
    evaluate_to_folder(detector, dataset, arguments.output, image_ids, MAX_DETS, facts={"data": description})


def find_images(path: Path, subset: str | None) -> NucleusDataset:
    """The images to detect nuclei in: a subset of a data set, the images of a folder, or one image.

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


def draw_nuclei(image: np.ndarray, result: Mapping[str, Any]) -> np.ndarray:
    """The image with the outlines of its nuclei, the best mask on top. Boxes are left out: they would hide nuclei.

    result: of detect() with masks="rle".
    """
    best_first = ImageDetections.of(result).sorted_by("mask_scores")
    return visualize.draw_instances(image, best_first.rois, best_first.masks, alpha=0.25, show_bbox=False)


def detect(arguments: argparse.Namespace) -> None:
    """Write a picture of each image with its nuclei, and submit.csv.

    Raises: cli.Failure at the end, if images could not be read.
    """
    dataset, folder = find_images(arguments.dataset, arguments.subset), arguments.output or Path("results")
    pictures = [folder / f"{dataset.name(image_id)}.png" for image_id in dataset.image_ids]
    replaced = {path.resolve() for path in pictures} & {Path(info["path"]).resolve() for info in dataset.image_info}
    if replaced:
        raise ValueError(f"--output {folder} would replace {min(replaced)} and others; choose another folder")
    cli.check_folder("--output", folder)
    detector = open_detector(arguments, dataset, DETECTION_MIN_CONFIDENCE=0.5)
    dataset.inspect_for(detector.config)
    folder.mkdir(parents=True, exist_ok=True)
    lines, failures = ["ImageId,EncodedPixels"], []
    with detector.prepared():
        for image_id, path in zip(tqdm(dataset.image_ids, unit="image"), pictures, strict=True):
            try:
                image = dataset.load_image(image_id)
            except (OSError, ValueError) as error:
                failures.append(str(error))
                continue
            (result,) = detector.detect([image], masks="rle")
            lines.append(mask_to_rle(dataset.name(image_id), result["masks"], result["mask_scores"]))
            picture = Image.fromarray(draw_nuclei(image, result))
            runtime.write_atomically(path, lambda file, picture=picture: picture.save(file, "PNG"))
    text = "\n".join([*lines, ""])
    runtime.write_atomically(folder / "submit.csv", lambda file: file.write(text.encode(errors="surrogateescape")))
    nuclei = sum(1 for line in text.splitlines()[1:] if not line.endswith(","))
    found = f"{nuclei} {'nucleus' if nuclei == 1 else 'nuclei'}"
    print(f"{folder}: {count_of(len(lines) - 1, 'picture')} and submit.csv with {found}")
    if failures:
        raise cli.Failure(f"{len(failures)} images could not be read: {utils.listed(failures, 3)}")


############################################################
#  Command line
############################################################


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("nucleus.py", __doc__)
    parser.add_argument("command", choices=["train", "evaluate", "detect"])
    parser.add_argument(
        "--dataset",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder described above; detect also takes one image",
    )
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="default: train for train; for evaluate, the images that a training on train validates with; without it, "
        "detect takes the images that lie in DIR",
    )
    cli.add_model(parser, "none for train, last for evaluate and detect", trains=True)
    parser.add_argument(
        "--val-share",
        type=cli.share,
        metavar="SHARE",
        help="the share of the images to hold out for validation, which evaluate then takes; default: 0.1 if there is "
        "no subset val, else none",
    )
    cli.add_epochs(parser, 16, "the MaskIoU head learns alone", least=0)
    cli.add_head_epochs(parser, 2)
    parser.add_argument(
        "--minutes", type=cli.positive_number, help="stop training after the epoch in which this time is over"
    )
    parser.add_argument(
        "--eval-images", type=cli.whole_number(1), metavar="N", help="evaluate the first N images only; default: all"
    )
    cli.add_seed(parser)
    cli.add_logs(parser)
    cli.add_output(parser, "the pictures and submit.csv of detect (default: results), or the report of evaluate")
    cli.add_device(parser)
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    parser = build_parser()
    of_commands = {
        "train": ("--epochs", "--head-epochs", "--minutes", "--seed", "--val-share", "--eval-images"),
        "evaluate": ("--output", "--val-share", "--eval-images"),
        "detect": ("--output",),
    }
    commands = {"train": train, "evaluate": evaluate, "detect": detect}
    return cli.run_command(parser.parse_args(argv), parser, commands, of_commands)


if __name__ == "__main__":
    sys.exit(main())

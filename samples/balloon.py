"""Balloons: find one kind of object, and paint everything else gray. Short, to be copied for your own objects.

    python samples/balloon.py train --dataset DIR --model coco     the heads, from a model trained on COCO
    python samples/balloon.py train --dataset DIR --model last     continue
    python samples/balloon.py splash photo.jpg party.mp4           pictures and videos with colour in balloons only

DIR has train/ and val/ with pictures and labels in any format that custom.py reads, such as VIA's via_region_data.json.
To copy it: change OBJECT, and what splash does with the masks. `python custom.py train` does more, by itself.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from PIL import Image
from tqdm import tqdm

import cli
import runtime
import video
from config import Config
from data.check import check
from data.images import read_image
from data.recognise import open_records
from data.record_dataset import RecordDataset
from demo import find_sources, plan_outputs
from evaluation.run import evaluation_callback
from model import MaskRCNN

OBJECT = "balloon"


class BalloonConfig(Config):
    """Trains the heads of a COCO model. The layers below stay as they are, which a few pictures would spoil."""

    NAME = OBJECT
    NUM_CLASSES = 1 + 1  # the background, and the balloon
    CLASS_NAMES = ("BG", OBJECT)
    STEPS_PER_EPOCH = 100
    IMAGE_MIN_DIM, IMAGE_MAX_DIM = 512, 1024
    OPTIMIZER, LEARNING_RATE, LEARNING_RATE_DECAY = "adamw", 1e-4, "cosine"
    WARMUP_STEPS = 100
    EVAL_EVERY = 5


def load_balloons(folder: Path) -> tuple[RecordDataset, RecordDataset]:
    """The data sets of train/ and val/. All objects are of one class, whatever the labels call them."""
    records = open_records(folder)
    print(check(records).text())
    for picture in records.pictures:
        for balloon in picture.objects:
            balloon.name = OBJECT
    return RecordDataset(records, "train", [OBJECT]), RecordDataset(records, "val", [OBJECT])


def train(arguments: argparse.Namespace) -> int:
    """Trains the heads, and evaluates on val every few epochs. Returns the exit code."""
    if arguments.dataset is None:
        raise ValueError("train needs --dataset DIR, a folder with train/ and val/")
    train_dataset, val_dataset = load_balloons(arguments.dataset)
    settings = cli.settings_of(arguments, SEED=arguments.seed, GPU_COUNT=cli.gpu_count(arguments.device))
    start = cli.find_start(arguments.model or "coco", BalloonConfig, arguments.logs, settings)
    model = cli.starting_model(start, BalloonConfig, arguments.logs, settings, network_only=True)
    evaluate = evaluation_callback(val_dataset)
    progress = model.train_model(
        train_dataset, val_dataset, epochs=arguments.epochs, layers=arguments.layers, evaluate=evaluate
    )
    return 128 + progress.interrupted if progress.interrupted else 0


def color_splash(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image in gray, with its colours where a mask is.

    image: uint8 [H, W, 3]. masks: bool [H, W, N]. Returns: uint8 [H, W, 3].
    """
    gray = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
    return np.where(masks.any(axis=2, keepdims=True), image, gray)


def splash(arguments: argparse.Namespace) -> int:
    """Writes a picture or a video for each file. Returns the exit code."""
    sources = find_sources(arguments.files)
    paths = plan_outputs(sources, arguments.output)
    cli.check_folder("--output", arguments.output)
    model = cli.open_model(arguments, "last", BalloonConfig, DETECTION_MIN_CONFIDENCE=0.7)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for index, (source, path) in enumerate(zip(sources, paths, strict=True)):
        if source.kind == "image":
            picture = Image.fromarray(splash_of(model, read_image(source.name)))
            runtime.write_atomically(path, lambda file, picture=picture: picture.save(file, "JPEG", quality=95))
        else:
            splash_video(model, source, index, path)
        print(path)
    return 0


def splash_of(model: MaskRCNN, image: np.ndarray) -> np.ndarray:
    """color_splash of what the model finds in an image, uint8 [H, W, 3]."""
    (result,) = model.detect([image])
    return color_splash(image, result["masks"])


def splash_video(model: MaskRCNN, source: video.Source, index: int, path: Path) -> None:
    """Writes a video, frame by frame."""
    writer = None
    for frame in tqdm(video.read_video(source, index, every=1), total=video.count_frames(source, 1), unit="frame"):
        writer = writer or video.VideoWriter(path, frame)
        writer.write(frame.time, splash_of(model, frame.image))
    if writer is not None:
        writer.close()


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("balloon.py", __doc__)
    parser.add_argument("command", choices=["train", "splash"])
    parser.add_argument("files", nargs="*", default=[], metavar="FILE", help="splash: pictures, videos, folders")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="train: a folder with train/ and val/")
    cli.add_model(parser, "coco for train, last for splash", trains=True)
    cli.add_epochs(parser, 30)
    cli.add_layers(parser, "heads")
    cli.add_seed(parser)
    cli.add_logs(parser)
    cli.add_output(parser, "what splash makes", "splash")
    cli.add_device(parser)
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    parser = build_parser()
    of_commands = {"train": ("--dataset", "--epochs", "--layers", "--seed"), "splash": ("files", "--output")}
    commands = {"train": train, "splash": splash}
    return cli.run_command(parser.parse_intermixed_args(argv), parser, commands, of_commands)


if __name__ == "__main__":
    sys.exit(main())

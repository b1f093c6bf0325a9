"""Detect objects in images: pictures with boxes, masks and scores, and the results as JSON.

    python demo.py                                    the image in assets/, with the model "coco"
    python demo.py photo.jpg holiday/ "scans/*.tif"   files, folders, patterns
    python demo.py photo.jpg --model torchvision --threshold 0.7 --device cuda --dtype bfloat16

For each image OUTPUT/NAME.jpg is its picture; OUTPUT/detections.json has all instances in COCO's result format. The
score in it is the mask score; class_score and mask_iou stand beside it.
"""

import argparse
import glob
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import convert_weights
import utils
import visualize
from coco import CocoConfig
from config import parse_settings
from model import MaskRCNN

ROOT = Path(__file__).parent
EXAMPLE = ROOT / "assets" / "coffee.jpg"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


############################################################
#  What to look at
############################################################


def find_images(names: list[str]) -> list[Path]:
    """The image files that files, folders and patterns name, each once, in order.

    Raises: FileNotFoundError for a name that nothing answers to.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            paths = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            missing = f"folder {name} has no images ({', '.join(sorted(SUFFIXES))})"
        else:
            paths = [path] if path.is_file() else [Path(file) for file in sorted(glob.glob(name, recursive=True))]
            missing = f"there is no file, folder or match of {name!r}"
        if not paths:
            raise FileNotFoundError(missing)
        found |= dict.fromkeys(paths)
    return list(found)


def load_model(arguments: argparse.Namespace) -> MaskRCNN:
    """The model that was asked for. Without a wish, an untrained one where the default cannot be had; it says so."""
    settings = parse_settings(arguments.set)
    if arguments.threshold is not None:
        settings["DETECTION_MIN_CONFIDENCE"] = arguments.threshold
    elif not {"DETECTION_MIN_CONFIDENCE"} & settings.keys():
        settings["DETECTION_MIN_CONFIDENCE"] = 0.5
    name = arguments.model or "coco"
    try:
        return convert_weights.load_model(name, device=arguments.device, style=arguments.style, **settings)
    except (OSError, ConnectionError) as error:
        if arguments.model is not None:
            raise
        print(
            f"{error}\n\nThe default model could not be had, so an UNTRAINED network runs instead: it shows that all "
            "works and how long it takes. What it finds, if anything, means nothing.\n"
        )
        return MaskRCNN(CocoConfig(**settings)).to(arguments.device or "cpu").eval()


############################################################
#  What comes of it
############################################################


def to_coco(result: dict[str, Any], image_id: int, path: Path, category_ids: list[int]) -> list[dict[str, Any]]:
    """One image's detections as COCO results: boxes (x, y, width, height), masks as run-length codes."""
    entries = []
    for i, (y1, x1, y2, x2) in enumerate(result["rois"].tolist()):
        ious = result["mask_ious"]
        entries.append(
            {
                "image_id": image_id,
                "file_name": str(path),
                "category_id": category_ids[int(result["class_ids"][i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(result["mask_scores"][i]),
                "class_score": float(result["scores"][i]),
                "mask_iou": None if ious is None else float(ious[i]),
                "segmentation": utils.rle_to_json(result["masks"][i]),
            }
        )
    return entries


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an image [H, W, 3] atomically, in the format of its suffix."""
    kind = {".jpg": "JPEG"}.get(path.suffix.lower(), "PNG")
    utils.write_atomically(path, lambda file: Image.fromarray(picture).save(file, kind, quality=92))


def output_names(paths: list[Path]) -> list[str]:
    """A file name for each picture; those of the same name from different folders are numbered."""
    names, taken = [], set()
    for path in paths:
        name, number = f"{path.stem}.jpg", 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}_{number}.jpg"
        taken.add(name.lower())
        names.append(name)
    return names


class Stopwatch:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Forget what has passed since the last lap."""
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count what has passed since the last lap for a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def table(self, images: int) -> str:
        """A line a stage."""
        return "\n".join(
            f"{stage:10} {1000 * total / images:8.1f} ms an image" for stage, total in self.seconds.items()
        )


def detect_all(model: MaskRCNN, paths: list[Path], output: Path, dtype: str) -> tuple[list[dict], list[str], Stopwatch]:
    """Detect in every image and write its picture.

    Returns: COCO results of all, what could not be read, the time each stage took.
    """
    watch, entries, failures = Stopwatch(), [], []
    output.mkdir(parents=True, exist_ok=True)
    for image_id, (path, name) in enumerate(tqdm(list(zip(paths, output_names(paths), strict=True)), unit="image"), 1):
        watch.restart()
        try:
            image = utils.read_image(path)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        watch.lap("read")
        (result,) = model.detect([image], dtype=dtype, masks="rle")
        watch.lap("detect")
        for stage, seconds in model.seconds.items():
            stage = f"  {stage}"
            watch.seconds[stage] = watch.seconds.get(stage, 0.0) + seconds
        captions = visualize.captions_of(result, model.class_names)
        picture = visualize.draw_instances(image, result["rois"], result["masks"], captions)
        watch.lap("draw")
        save_picture(picture, output / name)
        entries += to_coco(result, image_id, path, model.category_ids)
        watch.lap("write")
    return entries, failures, watch


############################################################
#  Command line
############################################################


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER|GLOB", help="default: the image in assets/")
    parser.add_argument(
        "--model", help=f"a checkpoint, or one of {', '.join(convert_weights.PUBLISHED)}; default: coco"
    )
    parser.add_argument("--style", choices=["caffe", "pytorch"], help="of a backbone whose checkpoint does not tell")
    parser.add_argument("--output", default="output", type=Path, metavar="DIR", help="default: output")
    parser.add_argument("--threshold", type=float, help="least class score of an instance; default: 0.5")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the convolutions")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of config.py to change")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 1 if an image could not be read."""
    arguments = parse_arguments(argv)
    try:
        paths = find_images(arguments.images or [str(EXAMPLE)])
        model = load_model(arguments)
    except (OSError, ValueError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    print(f"weights: {model.source}")
    entries, failures, watch = detect_all(model, paths, arguments.output, arguments.dtype)
    results = arguments.output / "detections.json"
    utils.write_atomically(results, lambda file: file.write(json.dumps(entries).encode()))
    done = len(paths) - len(failures)
    if done:
        print(f"{len(entries)} instances in {done} images: pictures and {results.name} are in {arguments.output}/")
        print(watch.table(done))
    for failure in failures:
        print(f"not read: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""This project against what a biologist would pick for nuclei: StarDist, and Cellpose's network, both from nothing.

    python benchmarks/rivals.py prepare --dataset ../shared/data/nuclei --folder FOLDER
    ~/stardist/bin/python benchmarks/rivals_train.py stardist FOLDER --minutes 75    in an environment of its own
    ~/cellpose/bin/python benchmarks/rivals_train.py cellpose FOLDER --minutes 75
    python benchmarks/rivals.py measure --dataset ../shared/data/nuclei --folder FOLDER [--model nuclei last ...]
        [--rivals stardist cellpose]

prepare writes the images of the subsets train and val as PNG, and their objects as label images. rivals_train.py says
how its environments are made. measure evaluates what they found in val, and what each --model finds, alike:
    mask AP     COCO's, with 1,000 results an image
    accuracy    pairs / (pairs + false positives + false negatives) at an IoU of 0.5 to 0.9, as StarDist counts over
                all images; detections are made disjoint before. Each model counts from the score that is best for it
                on 60 images of train
Prints a table and one line of JSON.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from PIL import Image

import cli
import runtime
import utils
from benchmarks import machine
from evaluation.detect import detect_dataset
from evaluation.matching import IOUS, Scene, count, make_disjoint, make_scenes
from evaluation.metrics import as_coco, evaluate_results
from evaluation.results import ground_truth
from samples import nucleus

SUBSETS = ("train", "val")
RIVALS = ("stardist", "cellpose")
THRESHOLD_IMAGES = 60  # of train, on which the score is chosen from which on a detection counts
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

############################################################
#  Prepare
############################################################


def prepare(arguments: argparse.Namespace) -> None:
    """Write FOLDER/SUBSET/images/NAME.png and FOLDER/SUBSET/labels/NAME.npy, int32 [H, W]."""
    for subset in SUBSETS:
        dataset = nucleus.make_dataset(arguments.dataset, subset)
        folder = arguments.folder / subset
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for image_id in dataset.image_ids:
            image, name = dataset.load_image(image_id)[..., :3], dataset.name(image_id)
            labels = np.zeros(image.shape[:2], np.int32)
            for number, rle in enumerate(dataset.load_instances(image_id).masks, start=1):
                y, x, crop = utils.rle_to_crop(rle)
                labels[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = number
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
            runtime.write_atomically(
                folder / "labels" / f"{name}.npy", lambda file, labels=labels: np.save(file, labels)
            )


############################################################
#  Measure
############################################################


def found_by(folder: Path, dataset: nucleus.NucleusDataset) -> tuple[list[dict], list[dict]]:
    """The results (boxes, masks) of a rival in COCO's format.

    Raises: FileNotFoundError if it has not been trained.
    """
    if not (folder / "facts.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no facts.json: `rivals_train.py {folder.name} {folder.parent}` trains it and writes it"
        )
    boxes, masks = [], []
    for image_id in dataset.image_ids:
        with np.load(folder / f"{dataset.name(image_id)}.npz") as file:
            labels, scores = file["labels"], file["scores"]
        for number, score in enumerate(scores.tolist(), start=1):
            mask = labels == number
            if not mask.any():
                continue
            rle = utils.mask_to_rle(mask[..., None])[0]
            y1, x1, y2, x2 = map(float, utils.rle_to_bbox(rle))
            entry = {
                "image_id": dataset.image_info[image_id]["id"],
                "category_id": dataset.category_ids[1],
                "score": score,
            }
            boxes.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            masks.append({**entry, "class_score": score, "mask_iou": None, "segmentation": utils.rle_to_json(rle)})
    return boxes, masks


def scenes_of(contents: Mapping[str, Any], masks: Sequence[dict], threshold: float) -> list[Scene]:
    """All images with their detections from a score on, made disjoint."""
    truth = as_coco(contents)
    sizes = {image["id"]: (image["height"], image["width"]) for image in contents["images"]}
    scenes = make_scenes(
        truth, [{**each, "area": float(utils.rle_area(each["segmentation"]))} for each in masks], threshold
    )
    return [make_disjoint(scene, sizes[scene.image], truth.imgToAnns.get(scene.image, [])) for scene in scenes]


def accuracies(contents: Mapping[str, Any], masks: Sequence[dict], threshold: float) -> dict[str, float]:
    """The accuracy at each of IOUS, over all images."""
    counts = count(scenes_of(contents, masks, threshold), [entry["id"] for entry in contents["categories"]])
    return {f"accuracy {iou}": counts.quality(iou).accuracy or 0.0 for iou in IOUS}


def best_threshold(contents: Mapping[str, Any], masks: Sequence[dict]) -> float:
    """The score from which on detections give the best accuracy at an IoU of 0.5."""
    return max(THRESHOLDS, key=lambda threshold: accuracies(contents, masks, threshold)["accuracy 0.5"])


def numbers(
    contents: Mapping[str, Any], boxes: Sequence[dict], masks: Sequence[dict], threshold: float
) -> dict[str, float]:
    """COCO's numbers, and the accuracies from a score on."""
    metrics = evaluate_results(contents, boxes, masks, nucleus.MAX_DETS).metrics
    names = ("box AP", "mask AP", "mask AP50", "mask AP75")
    return {**{name: metrics[name] for name in names}, **accuracies(contents, masks, threshold), "threshold": threshold}


def measure(arguments: argparse.Namespace) -> None:
    """Print the table and the JSON line."""
    dataset = nucleus.make_dataset(arguments.dataset, "val")
    train = nucleus.make_dataset(arguments.dataset, "train")
    contents = ground_truth(dataset)
    chosen = train.image_ids[:THRESHOLD_IMAGES]
    truth = ground_truth(train, chosen)
    rows = {}
    for name in arguments.model:
        choice = argparse.Namespace(model=name, device="cpu", set=[])
        model = nucleus.open_detector(choice, dataset, DETECTION_MIN_CONFIDENCE=0.05)
        threshold = best_threshold(truth, detect_dataset(model, train, chosen)[1])
        found = numbers(contents, *detect_dataset(model, dataset), threshold)
        rows[f"this project, {name}"] = {"model": model.source, **found}
    for name in arguments.rivals:
        results = found_by(arguments.folder / name, dataset)
        facts = json.loads((arguments.folder / name / "facts.json").read_text())
        rows[name] = {**facts, **numbers(contents, *results, facts["threshold"])}
    print(table(rows))
    machine.finish({**machine.describe(), "models": rows}, arguments.output)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A model a line, in points (0 to 100)."""
    columns = ["mask AP", "mask AP50", "mask AP75", "box AP", *(f"accuracy {iou}" for iou in IOUS)]
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [
        f"| {name} | {' | '.join(f'{100 * row[column]:.1f}' for column in columns)} |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("rivals.py", __doc__)
    parser.add_argument("command", choices=["prepare", "measure"])
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="the folder of nuclei")
    parser.add_argument("--folder", type=Path, required=True, help="of the rivals' images and results")
    parser.add_argument(
        "--model", nargs="+", default=["nuclei"], metavar="NAME", help="checkpoint files or names; default: nuclei"
    )
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS, help="to measure; default: both")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return cli.run("rivals.py", lambda: {"prepare": prepare, "measure": measure}[arguments.command](arguments))


if __name__ == "__main__":
    sys.exit(main())

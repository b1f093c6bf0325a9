"""Why boxes of nuclei are worse than their masks: one choice in the training of boxes changed at a time.

    python benchmarks/box_ablations.py --dataset ../shared/data/nuclei [--seeds 0 1 2] [--variants NAME ...]

Each run trains the network of samples/nucleus.py from nothing for --steps steps, without its MaskIoU head, on the
images of the subset train without a fifth that their names hold out, and measures on this fifth: no other image has a
part in a choice. FOLDER/VARIANT-seed-N has its checkpoints and numbers: what is finished stays, what was interrupted
goes on, and several processes can share the folder if they have different seeds. Runs of one seed see the same images
in the same order, so differences to "as it is" are taken seed by seed; the interval of 95 % is Student's t over the
seeds.

"Shift" is how far boxes, and the boxes round masks, lie below and to the right of their objects, in pixels of the
image: the median over detections with a class score of 0.5 that meet an object with an IoU of 0.6.

Prints a table and one line of JSON, of the runs that are finished.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from torch import Tensor

import cli
import model as modellib
import native
import utils
from benchmarks import machine
from benchmarks.ablations import BASE, EPOCHS, against_base, continued, finished, run_folder
from config import Config
from data.dataset import Dataset
from evaluation.detect import detect_dataset
from evaluation.metrics import as_coco, box_ap_of_masks, boxes_round, evaluate_results
from evaluation.results import ground_truth
from model import MaskRCNN
from samples import nucleus

HELD_OUT = 0.2  # of the subset train
GIOU = "GIoU"
GIOU_WEIGHT = 10.0  # mmdetection's, for the same loss in the same place
TWICE = "twice the steps"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    TWICE: {},
    "group norm": {"FPN_NORM": "group", "MASK_HEAD_NORM": "group"},
    "weight decay": {"WEIGHT_DECAY": 0.05, "WEIGHT_DECAY_BIASES": False, "WEIGHT_DECAY_NORMS": False},
    "masks resized by corners": {"MASK_NEAREST": "floor"},
    "box loss twice": {"LOSS_WEIGHTS": {**Config.LOSS_WEIGHTS, "mrcnn_bbox_loss": 2.0}},
    GIOU: {"LOSS_WEIGHTS": {**Config.LOSS_WEIGHTS, "mrcnn_bbox_loss": GIOU_WEIGHT}},
    "14 cells": {"POOL_SIZE": 14},
    "IoU 0.4": {"ROI_POSITIVE_IOU": 0.4},
    "IoU 0.6": {"ROI_POSITIVE_IOU": 0.6},
    "3 x": {"IMAGE_MIN_SCALE": 3},
}
METRICS = {
    "box AP": "box AP",
    "box AP75": "box AP75",
    "mask AP (class score)": "mask AP",
    "box AP of masks": "of masks",
}

############################################################
#  GIoU
############################################################


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """The generalised IoU of each pair of boxes, [N, 4] and [N, 4]: in [-1, 1], [N].

    Source: Rezatofighi et al., Generalized Intersection over Union (arXiv:1902.09630).
    """
    low, high = boxes[:, :2].maximum(others[:, :2]), boxes[:, 2:].minimum(others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(dim=1) for each in (boxes, others)]
    union = areas[0] + areas[1] - shared
    hull = (boxes[:, 2:].maximum(others[:, 2:]) - boxes[:, :2].minimum(others[:, :2])).prod(dim=1)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def giou_losses(class_logits: Tensor, box_deltas: Tensor, sample, targets, config: Config) -> modellib.LossSums:
    """As model.box_losses, with 1 - GIoU in the place of L1."""
    losses = _BOX_LOSSES(class_logits, box_deltas, sample, targets, config)
    positive = (sample.matched >= 0).nonzero()[:, 0]
    matched = sample.matched[positive]
    deltas = box_deltas[positive, targets.class_ids[matched]]
    boxes = modellib.decode_boxes(sample.rois[positive], deltas, config.BBOX_STD_DEV, config)
    wanted = modellib.shrink(targets.boxes, config)[matched]
    losses.sums["mrcnn_bbox_loss"] = (1 - giou(boxes, wanted)).sum()
    return losses


_BOX_LOSSES = modellib.box_losses

############################################################
#  Measuring
############################################################


def shift(contents: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """How far detections lie below and to the right of their objects: the medians (dy, dx), pixels.

    contents: of ground_truth(). boxes: COCO results.
    """
    objects: dict[Any, list] = {}
    for annotation in contents["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    found: dict[Any, list] = {}
    for box in boxes:
        if box["score"] >= 0.5 and box["image_id"] in objects:
            found.setdefault(box["image_id"], []).append(box["bbox"])
    shifts = [np.zeros((0, 2))]
    for image_id, detected in found.items():
        pairs = [np.array(each, np.float64) for each in (detected, objects[image_id])]
        centres = [each[:, 1::-1] + each[:, 3:1:-1] / 2 for each in pairs]
        corners = [np.concatenate([each[:, 1::-1], each[:, 1::-1] + each[:, 3:1:-1]], axis=1) for each in pairs]
        ious = utils.compute_overlaps(*corners)
        best = ious.argmax(axis=1)
        shifts.append((centres[0] - centres[1][best])[ious.max(axis=1) >= 0.6])
    moved = np.concatenate(shifts)
    return tuple(np.median(moved, axis=0).tolist()) if len(moved) else (np.nan, np.nan)


def measure(model: MaskRCNN, dataset: Dataset) -> dict[str, Any]:
    """The metrics of evaluate_results, "box AP of masks", which takes the box round each mask, and both shifts."""
    settings = {"DETECTION_MIN_CONFIDENCE": 0.05, "BOXES_OF_MASKS": False}  # boxes are those of the box head
    settings = nucleus.detection_settings(model.config, dataset, **settings)
    boxes, masks = detect_dataset(MaskRCNN.from_checkpoint(model.to_checkpoint(), "cpu", **settings), dataset)
    contents = ground_truth(dataset)
    metrics = evaluate_results(contents, boxes, masks, nucleus.MAX_DETS).metrics
    of_masks = box_ap_of_masks(as_coco(contents), masks, nucleus.MAX_DETS)
    shifts = {"shift": shift(contents, boxes), "shift of masks": shift(contents, boxes_round(masks))}
    return {**metrics, "box AP of masks": of_masks, **shifts}


############################################################
#  Runs
############################################################


def run(arguments, variant: str, seed: int) -> dict[str, Any]:
    """The numbers of a run: those in its folder, or after training and measuring.

    Raises: KeyboardInterrupt if a signal ended the training; what is done is saved.
    """
    folder = run_folder(arguments.folder, variant, seed)
    path = folder / "numbers.json"
    if path.is_file():
        return json.loads(path.read_text())
    start = time.monotonic()
    steps = arguments.steps * (2 if variant == TWICE else 1)
    common = {"SEED": seed, "GPU_COUNT": 0, "STEPS_PER_EPOCH": -(-steps // EPOCHS), "EVAL_EVERY": 0}
    settings = cli.settings_of(arguments)
    config = nucleus.NucleusConfig(**{**common, **settings, **VARIANTS[variant]})
    cli.choose_dtype(config, settings)
    model = continued(config, folder / "logs")
    parts = [nucleus.make_dataset(arguments.dataset, "train", part, HELD_OUT) for part in ("rest", "held out")]
    with mock.patch.object(modellib, "box_losses", giou_losses if variant == GIOU else _BOX_LOSSES):
        if model.train_model(parts[0], None, epochs=EPOCHS, layers="detector").interrupted:
            raise KeyboardInterrupt
    facts = {"variant": variant, "seed": seed, "steps": steps, "dtype": config.TRAIN_DTYPE, **measure(model, parts[1])}
    facts["seconds"] = time.monotonic() - start
    machine.write_json(facts, path)
    return facts


def table(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """A variant a line, means over its seeds, AP in points (0 to 100)."""
    lines = [f"| | seeds | {' | '.join(METRICS.values())} | shift down, right | of masks | box AP, against as it is |"]
    lines.append("| --- |" + " --- |" * (len(METRICS) + 4))
    for variant, by_seed in runs.items():
        cells = [f"{100 * np.mean([run[metric] for run in by_seed.values()]):.1f}" for metric in METRICS]
        for name in ("shift", "shift of masks"):
            dy, dx = np.mean([run[name] for run in by_seed.values()], axis=0)
            cells.append(f"{dy:+.2f}, {dx:+.2f}")
        cells.append(against_base(variant, runs, "box AP", 1))
        lines.append(f"| {variant} | {len(by_seed)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("box_ablations.py", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="the folder of nuclei")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of trainings; default: 0 1 2")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME",
        help=f"default: all, which are {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("--steps", type=cli.whole_number(EPOCHS), default=800, help="of a training; default: 800")
    folder = native.ROOT / "output" / "box_ablations"
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help=f"all runs; default: {folder}")
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    return cli.run("box_ablations.py", lambda: run_all(build_parser().parse_args(argv)))


def run_all(arguments) -> None:
    """Do each run that is not finished, and print the table and the JSON line."""
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    for seed in arguments.seeds:
        for variant in arguments.variants:
            facts = run(arguments, variant, seed)
            print(f"{variant}, seed {seed}: box AP {100 * facts['box AP']:.1f}, {facts['seconds']:.0f} s", flush=True)
    runs = finished(arguments.folder, VARIANTS)
    print(table(runs))
    machine.finish({**machine.describe(), "steps": arguments.steps, "runs": runs}, arguments.output)


if __name__ == "__main__":
    sys.exit(main())

"""Which way of training the MaskIoU head gains most, on detectors that do not change: differences are the head's alone.

    python benchmarks/head_choices.py --detectors a.pth b.pth c.pth [--variants NAME ...] [--steps 3000]

The detectors are models of samples/shapes.py of several seeds, such as `make reproduce MODELS=shapes` trains. Each gets
one new head for each variant, which learns alone (layers="maskiou") from the images that the detector learned from. The
row "own" is the head that the detector comes with. Detections are the same for all heads of a detector, to the bit, and
only their order by mask score differs.

    detections      on the detections, also where there is no object of the class (MASKIOU_DETECTIONS)
    refined boxes   on the RoIs of objects as the box head refines them (MASKIOU_REFINED_ROIS)
    proposals       on the RoIs of objects, which the mask head learns from
    all classes     the outputs of all other classes learn 0 (MASKIOU_LOSS_CLASSES = "all")
    refined, all    the same on refined boxes
    probability     the output is the probability of a sigmoid, and learns by cross-entropy with the IoU as its target
    zeros dropped   masks that miss their object wholly teach nothing (MASKIOU_KEEP_ZERO_TARGETS)

Choices are made on the subset val; --subset test, which results are of, confirms them. FOLDER/DETECTOR-VARIANT has each
run: what is finished stays, and what was interrupted goes on. Differences to "detections" are taken detector by
detector; the interval of 95 % is Student's t over the detectors. Prints a table and one line of JSON.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import cli
import model as modellib
import native
from benchmarks import machine, measure_gain
from benchmarks.head_afterwards import EPOCHS, plain
from config import Config
from model import MaskRCNN
from samples import shapes
from training.checkpoints import find_last
from weights.load import load_checkpoint

BASE, OWN, PROBABILITY = "detections", "own", "probability"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "refined boxes": {"MASKIOU_DETECTIONS": False, "MASKIOU_REFINED_ROIS": True},
    "proposals": {"MASKIOU_DETECTIONS": False},
    "all classes": {"MASKIOU_LOSS_CLASSES": "all"},
    "refined, all": {"MASKIOU_DETECTIONS": False, "MASKIOU_REFINED_ROIS": True, "MASKIOU_LOSS_CLASSES": "all"},
    PROBABILITY: {},
    "zeros dropped": {"MASKIOU_KEEP_ZERO_TARGETS": False},
}

############################################################
#  A probability instead of a linear output
############################################################


def probability_loss(
    maskious: Tensor, class_ids: Tensor, target_maskious: Tensor, counts: Tensor, config: Config
) -> modellib.LossSums:
    """As model.maskiou_loss, of predictions that are probabilities: the cross-entropy, less that of a perfect one."""
    chances = maskious.gather(1, class_ids[:, None])[:, 0].clamp(1e-6, 1 - 1e-6)
    target = target_maskious.to(chances.dtype)
    entropy = -torch.special.xlogy(target, target) - torch.special.xlogy(1 - target, 1 - target)
    errors = F.binary_cross_entropy(chances, target, reduction="none") + entropy.neg()
    total = torch.where(counts, errors, 0).sum()
    return modellib.LossSums({"mrcnn_maskiou_loss": total}, {"mrcnn_maskiou_loss": counts.sum().to(total.dtype)})


@contextlib.contextmanager
def outputs_of(variant: str) -> Iterator[None]:
    """A context in which MaskIoU heads predict and learn as a variant says."""
    if variant != PROBABILITY:
        yield
        return
    linear = modellib.MaskIoUHead.forward
    with (
        mock.patch.object(modellib.MaskIoUHead, "forward", lambda *arguments: linear(*arguments).sigmoid()),
        mock.patch.object(modellib, "maskiou_loss", probability_loss),
    ):
        yield


############################################################
#  Runs
############################################################


def train(detector: str, variant: str, logs: Path, arguments: argparse.Namespace) -> MaskRCNN:
    """A detector with a new head, after what is left of its training.

    Raises: KeyboardInterrupt if a signal ended it; cli.Failure if the detector changed.
    """
    settings = {
        "GPU_COUNT": 0, "STEPS_PER_EPOCH": -(-arguments.steps // EPOCHS), "MASKIOU_DETECTIONS": True,
        **VARIANTS[variant], **cli.settings_of(arguments),
    }  # fmt: skip
    checkpoint = load_checkpoint(detector)
    settings = {"BOX_HEAD_LOOKS": checkpoint["config"].get("BOX_HEAD_LOOKS", 1), **settings}  # as the detector has it
    if list(logs.glob("*/*.pth")):
        start = cli.find_start("last", shapes.ShapesConfig, logs, {})
    else:
        start = cli.Start(plain(checkpoint))
    model = cli.starting_model(start, shapes.ShapesConfig, logs, settings, network_only=True)
    count = EPOCHS * model.config.STEPS_PER_EPOCH * model.config.IMAGES_PER_GPU
    dataset = shapes.make_dataset(model.config, "train", count, checkpoint["config"]["SEED"])
    if model.train_model(dataset, None, epochs=EPOCHS, layers="maskiou").interrupted:
        raise KeyboardInterrupt
    model.load_weights(find_last(logs, model.config.NAME))
    own = model.state_dict()
    changed = [
        name for name, before in checkpoint["model"].items()
        if not name.startswith("maskiou_head.") and not torch.equal(before.float(), own[name].float())
    ]  # fmt: skip
    if changed:
        raise cli.Failure(f"{len(changed)} tensors of the detector changed while its head learned: {changed[:3]}")
    return model


def run(detector: str, number: int, variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of measure_gain.measure for a head: those in its folder, or after training and measuring."""
    folder = arguments.folder / f"{number}-{variant.replace(' ', '-')}"
    path = folder / f"{arguments.subset}.json"
    if path.is_file():
        return json.loads(path.read_text())
    start = time.monotonic()
    with outputs_of(variant):
        if variant == OWN:
            model = MaskRCNN.from_checkpoint(load_checkpoint(detector), "cpu")
        else:
            model = train(detector, variant, folder / "logs", arguments)
        trained = time.monotonic()
        model = MaskRCNN.from_checkpoint(model.to_checkpoint(), "cpu", DETECTION_MIN_CONFIDENCE=0.05)
        dataset = shapes.make_dataset(model.config, arguments.subset, arguments.images)
        facts = measure_gain.measure(model, dataset, 100, arguments.samples)
    facts |= {"detector": detector, "variant": variant, "training_s": trained - start}
    folder.mkdir(parents=True, exist_ok=True)
    machine.write_json(facts, path)
    return facts


############################################################
#  All of them
############################################################


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A variant a line, means over the detectors, AP in points (0 to 100)."""
    lines = ["| | AP by class score | AP by mask score | AP75 | gain | IoU correlation | gain, against detections |"]
    lines.append("| --- |" + " --- |" * 6)
    base = [row["gains"]["AP"][0] for row in runs.get(BASE, [])]
    for variant, rows in runs.items():
        metrics = ("mask AP (class score)", "mask AP", "mask AP75")
        means = [f"{100 * np.mean([row[metric] for row in rows]):.2f}" for metric in metrics]
        gains = [row["gains"]["AP"][0] for row in rows]
        correlations = [np.mean([row[name] for row in rows]) for name in ("IoU correlation", "correlation on objects")]
        cells = [*means, f"{100 * np.mean(gains):+.2f}", "{:.2f}, on objects {:.2f}".format(*correlations)]
        differences = [gain - other for gain, other in zip(gains, base, strict=True)] if base else []
        cells.append(measure_gain.difference(differences) if differences and variant != BASE else "-")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("head_choices.py", __doc__)
    parser.add_argument(
        "--detectors", nargs="+", required=True, metavar="FILE", help="checkpoints of samples/shapes.py"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=[OWN, *VARIANTS], default=[OWN, *VARIANTS], metavar="NAME",
        help=f"default: all, which are {', '.join([OWN, *VARIANTS])}",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=cli.whole_number(EPOCHS), default=3000, help="of a head; default: 3000, as those of a detector"
    )
    parser.add_argument("--subset", choices=["val", "test"], default="val", help="to measure on; default: val")
    parser.add_argument("--images", type=cli.whole_number(1), default=1000, help="to measure on; default: 1000")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap; default: 1000")
    folder = native.ROOT / "output" / "head_choices"
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help=f"all runs; default: {folder}")
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    return cli.run("head_choices.py", lambda: run_all(build_parser().parse_args(argv)))


def run_all(arguments: argparse.Namespace) -> None:
    """Do each run that is not finished, and print the table and the JSON line."""
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in arguments.variants}
    for number, detector in enumerate(arguments.detectors):
        for variant in arguments.variants:
            runs[variant].append(run(detector, number, variant, arguments))
            print(f"{variant}, detector {number}: gain {100 * runs[variant][-1]['gains']['AP'][0]:+.2f}", flush=True)
    print(table(runs))
    machine.finish(
        {**machine.describe(), "steps": arguments.steps, "subset": arguments.subset, "runs": runs}, arguments.output
    )


if __name__ == "__main__":
    sys.exit(main())

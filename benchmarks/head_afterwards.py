"""What a MaskIoU head gains that is trained afterwards, on a detector that does not change any more.

    python benchmarks/head_afterwards.py shapes                                      three seeds, on 1,000 images
    python benchmarks/head_afterwards.py nuclei --dataset ../shared/data/nuclei      three seeds, on the subset val

The detector is the embedded model without its MaskIoU head: a plain Mask R-CNN. A new head learns alone on it, from the
images that the detector learned from, as `coco.py train --layers maskiou` trains it. Detections are the same with each
head, to the bit, and only their order by mask score differs. The first row of the table is the embedded head, which
learned together with the detector.

FOLDER/DATA-STEPS-seed-N has the checkpoints and numbers of a seed: what is finished stays, and what was interrupted
goes on. All images and numbers are those of measure_gain.py. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import torch

import cli
import native
from benchmarks import machine, measure_gain
from data.dataset import Dataset
from model import MaskRCNN
from samples import nucleus, shapes
from training.checkpoints import find_last
from weights.load import load_checkpoint

EPOCHS = 4  # the steps are divided among them
STEPS = {"shapes": 1000, "nuclei": 800}
TOGETHER = "embedded head"


def plain(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without its MaskIoU head."""
    tensors = {name: each for name, each in checkpoint["model"].items() if not name.startswith("maskiou_head.")}
    return {**checkpoint, "model": tensors, "config": {**checkpoint["config"], "USE_MASKIOU_HEAD": False}}


def new_model(data: str, settings: Mapping[str, Any], logs: Path) -> MaskRCNN:
    """The embedded detector with a new head, or what a training into logs has made of it so far."""
    config_class = {"shapes": shapes.ShapesConfig, "nuclei": nucleus.NucleusConfig}[data]
    if list(logs.glob("*/*.pth")):
        start = cli.find_start("last", config_class, logs, {})
    else:
        start = cli.Start(plain(load_checkpoint(data)))
    looks = load_checkpoint(data)["config"].get("BOX_HEAD_LOOKS", 1)  # it detects as the detector does
    return cli.starting_model(start, config_class, logs, {"BOX_HEAD_LOOKS": looks, **settings}, network_only=True)


def train(model: MaskRCNN, arguments: argparse.Namespace) -> None:
    """Train the MaskIoU head alone. Raises: KeyboardInterrupt if a signal ended it; what is done is saved."""
    if arguments.data == "nuclei":
        dataset = nucleus.make_dataset(arguments.dataset, "train")
    else:
        count = model.config.STEPS_PER_EPOCH * EPOCHS * model.config.IMAGES_PER_GPU
        dataset = shapes.make_dataset(model.config, "train", count)  # of seed 0, as those of the detector
    if model.train_model(dataset, None, epochs=EPOCHS, layers="maskiou").interrupted:
        raise KeyboardInterrupt


def check_frozen(model: MaskRCNN, data: str) -> None:
    """Raises cli.Failure unless the detector is the embedded one, to the bit."""
    before, after = load_checkpoint(data)["model"], model.state_dict()
    names = [name for name in before if not name.startswith("maskiou_head.")]
    changed = [name for name in names if not torch.equal(before[name].float(), after[name].float())]
    if changed:
        raise cli.Failure(f"{len(changed)} tensors of the detector changed while its head learned: {changed[:3]}")


def test_set(arguments: argparse.Namespace, model: MaskRCNN) -> tuple[Dataset, int, dict[str, Any]]:
    """The images to measure on, how many detections of an image count, and the settings of a detector of whole ones."""
    if arguments.data == "shapes":
        dataset = shapes.make_dataset(model.config, "test", arguments.images or measure_gain.SHAPES_IMAGES)
        return dataset, 100, {"DETECTION_MIN_CONFIDENCE": 0.05}
    dataset = nucleus.make_dataset(arguments.dataset, "val")
    return dataset, nucleus.MAX_DETS, nucleus.detection_settings(model.config, dataset, DETECTION_MIN_CONFIDENCE=0.05)


def measured(model: MaskRCNN, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of measure_gain.measure."""
    dataset, max_dets, settings = test_set(arguments, model)
    detector = MaskRCNN.from_checkpoint(model.to_checkpoint(), "cpu", **settings)
    return measure_gain.measure(
        detector, dataset, max_dets, arguments.samples, dataset.image_ids[: arguments.images or None]
    )


def run(arguments: argparse.Namespace, name: str, seed: int | None) -> dict[str, Any]:
    """The numbers of a head: those in its folder, or after training and measuring. seed: None is the embedded head."""
    folder = arguments.folder / f"{arguments.data}-{arguments.steps}-{name.replace(' ', '-')}"
    path = folder / "numbers.json"
    if path.is_file():
        return json.loads(path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"source": "embedded"}
    if seed is None:
        model = MaskRCNN.from_checkpoint(load_checkpoint(arguments.data), "cpu")
    else:
        steps = {"STEPS_PER_EPOCH": -(-arguments.steps // EPOCHS)}
        settings = {"SEED": seed, "GPU_COUNT": 0, "MASKIOU_REFINED_ROIS": True, **steps, **cli.settings_of(arguments)}
        model = new_model(arguments.data, settings, folder / "logs")
        begin = time.monotonic()
        train(model, arguments)
        facts = {"steps": EPOCHS * model.config.STEPS_PER_EPOCH, "training_s": time.monotonic() - begin}
        check_frozen(model, arguments.data)
        model.load_weights(find_last(folder / "logs", model.config.NAME))  # as a user opens it
    facts |= measured(model, arguments)
    machine.write_json(facts, path)
    return facts


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The embedded head, and below it the table of measure_gain.py for the heads that were trained afterwards."""
    together = measure_gain.table({TOGETHER: rows[TOGETHER]}).splitlines()
    afterwards = measure_gain.table({name: row for name, row in rows.items() if name != TOGETHER}).splitlines()
    return "\n".join([*together, *afterwards[2:]])


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("head_afterwards.py", __doc__)
    parser.add_argument("data", choices=list(STEPS))
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="the folder of nuclei")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of trainings; default: 0 1 2")
    parser.add_argument(
        "--steps", type=cli.whole_number(EPOCHS), metavar="N",
        help=f"steps of a training; default: {', '.join(f'{count} of {data}' for data, count in STEPS.items())}",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=cli.whole_number(1), metavar="N",
        help=f"measure on the first N images; default: {measure_gain.SHAPES_IMAGES} of shapes, all of nuclei",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=1000, help="samples of the bootstrap; default: 1000")
    folder = native.ROOT / "output" / "head_afterwards"
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help=f"all runs; default: {folder}")
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    arguments = build_parser().parse_args(argv)
    return cli.run("head_afterwards.py", lambda: run_all(arguments))


def run_all(arguments: argparse.Namespace) -> None:
    """Do what is not finished, and print the table and the JSON line.

    Raises: ValueError without --dataset where one is needed.
    """
    if arguments.data == "nuclei" and arguments.dataset is None:
        raise ValueError("nuclei need --dataset, the folder of the data set")
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    arguments.steps = arguments.steps or STEPS[arguments.data]
    rows = {}
    for seed in [None, *arguments.seeds]:
        name = TOGETHER if seed is None else f"seed {seed}"
        rows[name] = run(arguments, name, seed)
        print(f"{name}: gain {100 * rows[name]['gains']['AP'][0]:+.2f}", flush=True)
    print(table(rows))
    facts = {**machine.describe(), "data": arguments.data, "steps": arguments.steps, "models": rows}
    machine.finish(facts, arguments.output)


if __name__ == "__main__":
    sys.exit(main())

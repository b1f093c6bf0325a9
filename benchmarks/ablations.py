"""What decides how much mask scoring gains: one choice of the MaskIoU head's training changed at a time, on shapes.

    python benchmarks/ablations.py [--seeds 0 1 2] [--variants NAME ...] [--folder FOLDER] [--output FILE]

Each run trains the model of samples/shapes.py from nothing for --steps steps, a fifth of its usual training, and
measures on the subset val, so that nothing is chosen by the subset test, which results are of. FOLDER/VARIANT-seed-N
has its checkpoints and numbers: what is finished stays, what was interrupted goes on, and several processes can share
the folder if they have different seeds. Runs of one seed see the same images in the same order, so the difference to
"as it is" is taken seed by seed; its interval of 95 % is Student's t over the seeds.

Prints a table and one line of JSON, of the runs that are finished.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import cli
import native
from benchmarks import machine, measure_gain
from config import Config
from evaluation.bootstrap import Interval
from model import MaskRCNN
from samples import shapes
from training.checkpoints import find_last

EPOCHS = 4  # of which the learning rate's cosine has as many pieces; the steps are divided among them
HEAD_SHARE = 0.5  # of the steps, again, for a head that is trained afterwards
BASE = "as it is"
AFTERWARDS = "head afterwards"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "zeros dropped": {"MASKIOU_KEEP_ZERO_TARGETS": False},
    "detached": {"MASKIOU_DETACH": True},
    "not clamped": {"MASKIOU_CLAMP": False},
    "logit 0.5": {"MASKIOU_TARGET_LOGIT": 0.5},
    "all classes": {"MASKIOU_LOSS_CLASSES": "all"},
    AFTERWARDS: {"LOSS_WEIGHTS": {**Config.LOSS_WEIGHTS, "mrcnn_maskiou_loss": 0.0}},
}
ALIKE = {"not clamped": BASE}  # weights are those of another variant: the setting is one of detection

############################################################
#  A run
############################################################


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where a run's checkpoints and numbers are."""
    return folder / f"{variant.replace(' ', '-')}-seed-{seed}"


def continued(config: Config, logs: Path, start: Mapping[str, Any] | None = None) -> MaskRCNN:
    """A model that goes on where a training into logs ended or stopped, or a new one, with the weights of start."""
    model = MaskRCNN(config, logs)
    if list(logs.glob("*/*.pth")):
        model.load_weights(find_last(logs, config.NAME))
    elif start is not None:
        model.load_weights(start)
    return model


def train(model: MaskRCNN, images: int, epochs: int, layers: str) -> None:
    """Raises: KeyboardInterrupt if a signal ended it; what is done is saved."""
    dataset = shapes.make_dataset(model.config, "train", images, model.config.SEED)
    if model.train_model(dataset, None, epochs=epochs, layers=layers).interrupted:
        raise KeyboardInterrupt


def trained_model(folder: Path, variant: str, seed: int, steps: int, settings: Mapping[str, Any]) -> MaskRCNN:
    """The model of a variant and a seed, after what is left of its training."""
    folder = run_folder(folder, ALIKE.get(variant, variant), seed)
    common = {"SEED": seed, "GPU_COUNT": 0, "STEPS_PER_EPOCH": -(-steps // EPOCHS), **settings}
    config = shapes.ShapesConfig(**{**common, **VARIANTS[ALIKE.get(variant, variant)]})
    cli.choose_dtype(config, settings)
    images = EPOCHS * config.STEPS_PER_EPOCH * config.BATCH_SIZE
    model = continued(config, folder / "logs")
    train(model, images, EPOCHS, "all")
    if variant == AFTERWARDS:
        config = shapes.ShapesConfig(**{**common, "FROZEN_STAGES": 0, "TRAIN_BN": False})
        cli.choose_dtype(config, settings)
        head = continued(config, folder / "head", start=model.to_checkpoint())
        train(head, images, round(HEAD_SHARE * EPOCHS), "maskiou")
        model = head
    return MaskRCNN.from_checkpoint(model.to_checkpoint(), "cpu", **VARIANTS[variant])


def run(folder: Path, variant: str, seed: int, steps: int, images: int, samples: int, settings) -> dict[str, Any]:
    """The numbers of a run: those in its folder, or after training and measuring."""
    path = run_folder(folder, variant, seed) / "numbers.json"
    if path.is_file():
        return json.loads(path.read_text())
    start = time.monotonic()
    model = trained_model(folder, variant, seed, steps, settings)
    numbers = measure_gain.measure(model, shapes.make_dataset(model.config, "val", images), 100, samples)
    facts = {"variant": variant, "seed": seed, "steps": steps, "seconds": time.monotonic() - start, **numbers}
    path.parent.mkdir(parents=True, exist_ok=True)
    machine.write_json(facts, path)
    return facts


############################################################
#  All of them
############################################################


def finished(folder: Path, variants: Iterable[str] = VARIANTS) -> dict[str, dict[int, dict[str, Any]]]:
    """The numbers of all finished runs in a folder, by variant and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for variant in variants:
        paths = folder.glob(f"{variant.replace(' ', '-')}-seed-*/numbers.json")
        runs = {facts["seed"]: facts for facts in (json.loads(path.read_text()) for path in paths)}
        if runs:
            found[variant] = dict(sorted(runs.items()))
    return found


def table(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """A variant a line, means over its seeds, AP in points (0 to 100)."""
    lines = ["| | seeds | AP by class score | AP by mask score | gain | IoU correlation | gain, against as it is |"]
    lines.append("| --- |" + " --- |" * 6)
    for variant, by_seed in runs.items():
        means = [
            sum(run[metric] for run in by_seed.values()) / len(by_seed)
            for metric in ("mask AP (class score)", "mask AP", "re-scoring gain", "IoU correlation")
        ]
        cells = [f"{100 * value:.2f}" for value in means[:2]] + [f"{100 * means[2]:+.2f}", f"{means[3]:.3f}"]
        lines.append(
            f"| {variant} | {len(by_seed)} | {' | '.join(cells)} | {against_base(variant, runs, 're-scoring gain')} |"
        )
    return "\n".join(lines)


def against_base(
    variant: str, runs: Mapping[str, Mapping[int, Mapping[str, Any]]], metric: str, digits: int = 2
) -> str:
    """The mean difference of a metric to BASE, seed by seed, with its interval where there is one."""
    base = runs.get(BASE, {})
    seeds = sorted(runs[variant].keys() & base.keys())
    if variant == BASE or not seeds:
        return "-"
    return measure_gain.difference([runs[variant][seed][metric] - base[seed][metric] for seed in seeds], digits)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    return cli.run("ablations.py", lambda: run_all(build_parser().parse_args(argv)))


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("ablations.py", __doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of trainings; default: 0 1 2")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME",
        help=f"default: all, which are {', '.join(VARIANTS)}",
    )
    parser.add_argument("--steps", type=int, default=600, help="steps of a training; default: 600")
    parser.add_argument("--images", type=int, default=500, help="images to measure on; default: 500")
    parser.add_argument("--samples", type=int, default=200, help="samples of the bootstrap; default: 200")
    folder = native.ROOT / "output" / "ablations"
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help=f"all runs; default: {folder}")
    cli.add_set(parser)
    return parser


def run_all(arguments: argparse.Namespace) -> None:
    """Do each run that is not finished, and print the table and the JSON line."""
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    sizes = arguments.steps, arguments.images, arguments.samples
    settings = cli.settings_of(arguments)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            facts = run(arguments.folder, variant, seed, *sizes, settings)
            gain = Interval(*facts["gains"]["AP"])
            print(f"{variant}, seed {seed}: gain {100 * gain.value:+.2f}, {facts['seconds']:.0f} s", flush=True)
    runs = finished(arguments.folder)
    print(table(runs))
    machine.finish({**machine.describe(), "runs": runs}, arguments.output)


if __name__ == "__main__":
    sys.exit(main())

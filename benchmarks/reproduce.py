"""The results on shapes, from nothing: train the model of samples/shapes.py with three seeds, measure, compare.

    python benchmarks/reproduce.py [--seeds 0 1 2] [--folder FOLDER] [--output FILE]
    python benchmarks/reproduce.py --check      only the first 20 steps, a minute or two

First, the first 20 steps of the first seed are trained twice. All losses and the weights must be equal to the bit: the
same seed is the same run. Seed 0 is also compared with the committed losses of these steps, which another processor
must reach within 5 %.

Each seed is the training of `python samples/shapes.py train --seed N`, into FOLDER/seed-N. What is finished stays, and
what was interrupted goes on. Then each model, in half precision as it is published, is measured as measure_gain.py
does, and the numbers stand beside those of benchmarks/results/. Other processors differ from them: sums are rounded in
another order, and a training amplifies that.

FOLDER/seed-N.pth are the models, FOLDER/seed-N.json their numbers; without the latter a model is measured again.
FOLDER/first-steps.json has the losses of the first steps. Prints tables and one line of JSON.
"""

import argparse
import json
import math
import sys
import tempfile
import time
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
from evaluation.detect import hash_weights
from samples import shapes
from training.checkpoints import find_last
from training.logs import read_records
from training.loop import Progress
from weights.checkpoint import halved, write_checkpoint
from weights.load import load_checkpoint, load_model

RESULTS = native.ROOT / "benchmarks" / "results"
COMPARED = {**measure_gain.COLUMNS, "gain": "re-scoring gain", "IoU correlation": "correlation on objects"}


TOLERANCE = 0.05  # the share by which a loss of the first steps may differ from the committed one

############################################################
#  The first steps
############################################################


def first_steps(seed: int, steps: int, settings: list[str]) -> dict[str, Any]:
    """The losses of the first steps of a seed's training, and a hash of the weights after them.

    The steps are those of the whole training: it has the same number of steps here, and stops early. settings: as for
    train().
    """
    arguments = shapes.build_parser().parse_args(["train", "--seed", str(seed), *settings])
    chosen = cli.settings_of(arguments, SEED=arguments.seed, GPU_COUNT=0)
    whole = shapes.ShapesConfig(**chosen)
    steps_of_all = arguments.epochs * whole.STEPS_PER_EPOCH
    with tempfile.TemporaryDirectory() as folder:
        chosen |= {"STEPS_PER_EPOCH": min(steps, steps_of_all), "EVAL_EVERY": 0}
        model = cli.starting_model(cli.Start(), shapes.ShapesConfig, Path(folder), chosen, network_only=True)
        dataset = shapes.make_dataset(model.config, "train", arguments.images or 24000, model.config.SEED)
        epochs = math.ceil(steps_of_all / model.config.STEPS_PER_EPOCH)
        model.train_model(dataset, None, epochs=epochs, custom_callbacks=[_stop_after_an_epoch])
        records = read_records(model.log_dir / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    return {"seed": seed, "losses": losses, "weights": hash_weights(model)}


def _stop_after_an_epoch(event: str, progress: Progress) -> None:
    progress.stop = progress.stop or event == "epoch_end"


def check_first_steps(seed: int, steps: int, settings: list[str]) -> dict[str, Any]:
    """Train the first steps twice, and compare them with each other and with the committed ones. Returns: first_steps.

    Raises: cli.Failure if two runs differ in a bit, or a loss is further than TOLERANCE from the committed one.
    """
    one = first_steps(seed, steps, settings)
    torch.rand(1)  # what was drawn before must not matter
    other = first_steps(seed, steps, settings)
    count = len(one["losses"])
    different = [step for step in range(count) if one["losses"][step] != other["losses"][step]]
    if different or one["weights"] != other["weights"]:
        where = f"from step {different[0] + 1} on" if different else f"in the weights after {count} steps"
        raise cli.Failure(f"seed {seed} trained twice gave two trainings: they differ {where}")
    print(f"the first {count} steps of seed {seed}, trained twice: all losses and weights are equal to the bit")
    path = max(RESULTS.glob("*-first-steps-*.json"), default=None)
    known = json.loads(path.read_text()) if path else None
    if known is not None and not settings and known["seed"] == seed:
        pairs = zip(one["losses"], known["losses"], strict=False)
        difference = max(abs(here - there) / there for here, there in pairs)
        print(
            f"beside {path.name}, whose processor is {known['cpu']}: losses differ by at most {difference:.2g} of them"
        )
        if difference > TOLERANCE:
            raise cli.Failure(
                f"losses of the first {count} steps differ from {path.name} by {difference:.1%}, where {TOLERANCE:.0%} "
                "is what rounding explains; did a change of the code change the training?"
            )
    return one


############################################################
#  Whole trainings
############################################################


def train(seed: int, folder: Path, settings: list[str]) -> Path:
    """The last checkpoint of a seed's training, after what is left of it. settings: more words for the command line.

    Raises: cli.Failure if the training fails, KeyboardInterrupt if a signal ended it.
    """
    logs = folder / f"seed-{seed}"
    words = ["train", "--seed", str(seed), "--logs", str(logs), "--device", "cpu"]
    words += ["--model", "last" if list(logs.glob("*/*.pth")) else "none", *settings]
    print(f"python samples/shapes.py {' '.join(words)}", flush=True)
    status = shapes.main(words)
    if status > 128:
        raise KeyboardInterrupt
    if status:
        raise cli.Failure(f"the training of seed {seed} failed, see above")
    return find_last(logs, shapes.ShapesConfig.NAME)


def run_seed(seed: int, folder: Path, images: int, samples: int, settings: list[str]) -> dict[str, Any]:
    """The numbers of a seed: what FOLDER/seed-N.json says, or after training and measuring it."""
    path = folder / f"seed-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    time_path, model_path = folder / f"seed-{seed}-training.json", folder / f"seed-{seed}.pth"
    if not time_path.is_file():
        start = time.monotonic()
        checkpoint = load_checkpoint(train(seed, folder, settings))
        write_checkpoint(model_path, halved(checkpoint))
        seconds = time.monotonic() - start  # of the last part, if it was interrupted
        machine.write_json({"training_s": seconds}, time_path)
    model = load_model(model_path, "cpu")
    numbers = measure_gain.measure(model, shapes.make_dataset(model.config, "test", images), 100, samples)
    facts = {**json.loads(time_path.read_text()), "megabytes": model_path.stat().st_size / 1e6, **numbers}
    machine.write_json(facts, path)
    return facts


def committed() -> tuple[str, dict[str, dict[str, Any]]]:
    """The newest results of shapes in benchmarks/results/: the file's name, and the numbers of each seed."""
    path = max(RESULTS.glob("*-shapes-*.json"), default=None)
    return (path.name, json.loads(path.read_text())["models"]) if path else ("no committed figures", {})


def comparison(rows: dict[str, dict[str, Any]], known: dict[str, dict[str, Any]]) -> str:
    """For each seed that both have: number here, number there, difference; AP in points."""
    lines = [f"{'':26}{'here':>10}{'committed':>12}{'difference':>12}"]
    for name in rows.keys() & known.keys():
        for title, metric in COMPARED.items():
            factor = 1 if "correlation" in metric else 100
            here, there = factor * rows[name][metric], factor * known[name][metric]
            lines.append(f"{name + ', ' + title.strip():26}{here:10.2f}{there:12.2f}{here - there:+12.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    parser = machine.make_parser("reproduce.py", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of trainings; default: 0 1 2")
    folder, images = native.ROOT / "output" / "reproduce", measure_gain.SHAPES_IMAGES
    parser.add_argument(
        "--folder", type=Path, default=folder, metavar="DIR", help=f"folder of models and logs; default: {folder}"
    )
    parser.add_argument("--images", type=int, default=images, help=f"images to measure on; default: {images}")
    parser.add_argument("--samples", type=int, default=1000, help="samples of the bootstrap; default: 1000")
    parser.add_argument(
        "--steps", type=cli.whole_number(0), default=20, metavar="N",
        help="train the first N steps twice before all else, and compare; 0 does not; default: 20",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="end after these first steps")
    parser.add_argument(
        "--train",
        nargs=argparse.REMAINDER,
        default=[],
        help="all arguments that follow this one are arguments of samples/shapes.py train",
    )
    arguments = parser.parse_args(argv)
    return cli.run("reproduce.py", lambda: reproduce(arguments))


def reproduce(arguments: argparse.Namespace) -> None:
    """Train and measure each seed, and print the tables and the JSON line."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "first-steps.json"
    if arguments.check or (arguments.steps and not path.is_file()):
        first = check_first_steps(arguments.seeds[0], arguments.steps or 20, arguments.train)
        machine.write_json({**machine.describe(), **first}, path)
    if arguments.check:
        machine.finish(json.loads(path.read_text()), arguments.output)
        return
    sizes = arguments.images, arguments.samples
    rows = {f"seed {seed}": run_seed(seed, arguments.folder, *sizes, arguments.train) for seed in arguments.seeds}
    print(measure_gain.table(rows))
    name, known = committed()
    print(f"\nbeside {name}:\n{comparison(rows, known)}\n")
    machine.finish(
        {**machine.describe(), "data": "shapes", "images": arguments.images, "models": rows}, arguments.output
    )


if __name__ == "__main__":
    sys.exit(main())

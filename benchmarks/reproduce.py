"""The results of this project's models, from nothing: train shapes, nuclei and photos, measure, compare.

    python benchmarks/reproduce.py [shapes nuclei photos] [--seeds 0 1 2] [--folder FOLDER] [--output FILE]
    python benchmarks/reproduce.py nuclei --minutes 10    a training that is planned to end within this time
    python benchmarks/reproduce.py --check                only the first 20 steps of shapes, a minute or two

Before shapes, the first 20 steps of the first seed are trained twice. All losses and the weights must be equal to the
bit: the same seed is the same run. Seed 0 is also compared with the committed losses of these steps, which another
processor must reach within 5 %.

The trainings of a seed N:

    shapes    python samples/shapes.py train --seed N
    nuclei    python samples/nucleus.py train --seed N --dataset DIR --subset train
    photos    python custom.py train --seed N --dataset DIR --set ..., with the settings of PHOTOS

DIR is ../shared/data/nuclei or ../shared/data/photos. A model whose folder is missing is left out; --dataset names
another place. Checkpoints go into FOLDER/MODEL/seed-N. What is finished stays, and what was interrupted goes on. Then
each model, in half precision as it is published, is measured as measure_gain.py does: shapes on 1,000 images of the
subset test, nuclei on val, photos on test_easy, which custom.py calls test. The numbers stand beside those of
benchmarks/results/. Other processors differ from them: sums are rounded in another order, and a training amplifies
that.

--minutes plans the steps of each training by the time of a step on this machine, as custom.py train does, with an
evaluation after each epoch (of nuclei, on 24 images). It never lengthens shapes and nuclei. A shorter training is not
expected to reach the committed numbers. FOLDER keeps it apart, in MODEL-M-minutes.

FOLDER/MODEL/seed-N.pth are the models, FOLDER/MODEL/seed-N.json their numbers; without the latter a model is measured
again. FOLDER/first-steps.json has the losses of the first steps. Prints tables, and one line of JSON for each model.
"""

import argparse
import json
import math
import shlex
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
import custom
import native
from benchmarks import machine, measure_gain
from data.plan import Pace, Plan, fit_to_minutes, head_batches, set_length
from evaluation.detect import hash_weights
from model import MaskRCNN
from own_training import MODEL_NAME, detection_seconds, step_seconds
from samples import nucleus, shapes
from training.checkpoints import best_path, find_last
from training.logs import read_records
from training.loop import Progress
from weights.checkpoint import halved, write_checkpoint
from weights.load import load_checkpoint

RESULTS = native.ROOT / "benchmarks" / "results"
DATA = native.ROOT.parent / "shared" / "data"  # has the folders nuclei and photos
COMPARED = {**measure_gain.COLUMNS, "gain": "re-scoring gain", "IoU correlation": "correlation on objects"}
SEEDS = {"shapes": [0, 1, 2], "nuclei": [0], "photos": [0]}  # of the committed models, or of one to come
SHORT_EVALUATION = 24  # images of nuclei after each epoch of a shortened training, where whole ones take all 95
PHOTOS = (
    "REPEAT_THRESHOLD=0.5", "COPY_PASTE=0.3", "IMAGE_MIN_DIM=320", "IMAGE_MAX_DIM=320", "SCALE_JITTER=0.7,1.4",
    "TRAIN_ROIS_PER_IMAGE=64",
)  # fmt: skip
PHOTOS_LENGTH = ("STEPS_PER_EPOCH=1400", "WARMUP_STEPS=300")  # without --minutes
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
        dataset, _ = shapes.load_training_data(arguments, model.config)
        epochs = math.ceil(steps_of_all / model.config.STEPS_PER_EPOCH)
        model.train_model(dataset, None, epochs=epochs, layers="detector", custom_callbacks=[_stop_after_an_epoch])
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
#  Trainings
############################################################


def train(data: str, seed: int, folder: Path, arguments: argparse.Namespace) -> Path:
    """The checkpoint of a seed's training, after what is left of it. data: the model, a key of SEEDS.

    Raises: cli.Failure if the training fails, KeyboardInterrupt if a signal ended it.
    """
    logs = folder / f"seed-{seed}"
    words = ["train", "--seed", str(seed), "--device", "cpu"]
    if data == "photos":
        words += ["--dataset", str(dataset_of(data, arguments)), "--output", str(logs), "--set", *PHOTOS]
        words += PHOTOS_LENGTH if arguments.minutes is None else ["--minutes", f"{arguments.minutes:g}"]
        _run("custom.py", custom, [*words, *arguments.train])
        return logs / MODEL_NAME
    words += ["--logs", str(logs), "--model", "last" if list(logs.glob("*/*.pth")) else "none"]
    words += [*_data_words(data, arguments), *arguments.train, *planned_length(data, seed, folder, arguments)]
    if data == "shapes":
        _run("samples/shapes.py", shapes, words)
        return find_last(logs, shapes.ShapesConfig.NAME)
    _run("samples/nucleus.py", nucleus, words)
    return best_path(find_last(logs, nucleus.NucleusConfig.NAME).parent, nucleus.NucleusConfig.NAME)


def _run(program: str, module: Any, words: list[str]) -> None:
    print(f"python {shlex.join([program, *words])}", flush=True)
    status = module.main(words)
    if status > 128:
        raise KeyboardInterrupt
    if status:
        raise cli.Failure(f"the training of seed {words[words.index('--seed') + 1]} failed, see above")


def _data_words(data: str, arguments: argparse.Namespace) -> list[str]:
    """The words that name the data of a sample."""
    return [] if data == "shapes" else ["--dataset", str(dataset_of(data, arguments)), "--subset", "train"]


def planned_length(data: str, seed: int, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The words that shorten the training of a sample to --minutes; none if the whole of it takes less time.

    The plan is that of custom.py train: each epoch ends with an evaluation, and the MaskIoU head learns alone in one
    more. FOLDER/MODEL/seed-N-length.json keeps the words, so that a training keeps the length that it began with.

    Raises: ValueError if the time is too short for a step an epoch.
    """
    path = folder / f"seed-{seed}-length.json"
    if arguments.minutes is None:
        return []
    if path.is_file():
        return json.loads(path.read_text())["words"]
    sample, config_class = {
        "shapes": (shapes, shapes.ShapesConfig), "nuclei": (nucleus, nucleus.NucleusConfig),
    }[data]  # fmt: skip
    chosen = sample.build_parser().parse_args(["train", *_data_words(data, arguments), *arguments.train])
    model = MaskRCNN(config_class(**cli.settings_of(chosen, SEED=seed, GPU_COUNT=0)))
    config = model.config
    datasets = shapes.load_training_data(chosen, config) if data == "shapes" else nucleus.load_training_data(chosen)
    print("measuring the time of a step ...", flush=True)
    seconds = step_seconds(model, datasets[0]), detection_seconds(model, datasets[1])
    images = datasets[1].num_images if data == "shapes" else min(datasets[1].num_images, SHORT_EVALUATION)
    has_head_phase = config.USE_MASKIOU_HEAD
    whole = chosen.epochs * config.STEPS_PER_EPOCH
    whole_head = chosen.head_epochs * config.STEPS_PER_EPOCH if has_head_phase else 0
    plan = Plan({"USE_MASKIOU_HEAD": has_head_phase}, [], whole, False, chosen.epochs)
    fit_to_minutes(plan, arguments.minutes, Pace(*seconds, images, 0))
    words = []
    if plan.batches + head_batches(plan) < whole + whole_head:
        set_length(plan, min(plan.batches, whole))
        words = ["--epochs", str(plan.epochs), *(["--head-epochs", "1"] if has_head_phase else [])]
        words += ["--eval-images", str(images)] if data == "nuclei" else []
        lengths = {name: plan.settings[name] for name in ("STEPS_PER_EPOCH", "WARMUP_STEPS")}
        words += ["--set", *(f"{name}={value}" for name, value in {**lengths, "EVAL_EVERY": 1}.items())]
    machine.write_json({"words": words, "step_s": seconds[0]}, path)
    return words


############################################################
#  Numbers
############################################################


def run_seed(data: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a seed: what FOLDER/MODEL/seed-N.json says, or after training and measuring it."""
    length = "" if arguments.minutes is None else f"-{arguments.minutes:g}-minutes"
    folder = arguments.folder / f"{data}{length}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    time_path, model_path = folder / f"seed-{seed}-training.json", folder / f"seed-{seed}.pth"
    if not time_path.is_file():
        start = time.monotonic()
        checkpoint = load_checkpoint(train(data, seed, folder, arguments))
        write_checkpoint(model_path, halved(checkpoint))
        seconds = time.monotonic() - start  # of the last part, if it was interrupted
        machine.write_json({"training_s": seconds}, time_path)
    choice = argparse.Namespace(
        data=data, dataset=dataset_of(data, arguments), subset=None, images=arguments.images, device="cpu", set=[]
    )
    model, dataset, max_dets = measure_gain.open_model(choice, str(model_path))
    image_ids = dataset.image_ids[: arguments.images]
    numbers = measure_gain.measure(model, dataset, max_dets, arguments.samples, image_ids)
    facts = {**json.loads(time_path.read_text()), "megabytes": model_path.stat().st_size / 1e6, **numbers}
    machine.write_json(facts, path)
    return facts


def committed(data: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The newest results of a model in benchmarks/results/: the file's name, and the numbers of each seed."""
    path = max(RESULTS.glob(f"????-??-??-{data}-*.json"), default=None)
    if path is None:
        return f"no committed result of {data}", {}
    return path.name, json.loads(path.read_text())["models"]


def comparison(rows: dict[str, dict[str, Any]], known: dict[str, dict[str, Any]]) -> str:
    """For each seed that both have: number here, number there, difference; AP in points."""
    lines = [f"{'':26}{'here':>10}{'committed':>12}{'difference':>12}"]
    for name in (name for name in rows if name in known):
        for title, metric in COMPARED.items():
            factor = 1 if "correlation" in metric else 100
            here, there = factor * rows[name][metric], factor * known[name][metric]
            lines.append(f"{name + ', ' + title.strip():26}{here:10.2f}{there:12.2f}{here - there:+12.2f}")
    return "\n".join(lines)


############################################################
#  Command line
############################################################


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. After Ctrl-C, the same command continues."""
    parser = machine.make_parser("reproduce.py", __doc__)
    parser.add_argument(
        "models", nargs="*", type=_model, metavar="MODEL", help=f"some of {', '.join(SEEDS)}; default: all"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="seeds of trainings; default: 0 1 2 of shapes, 0 of the others"
    )
    parser.add_argument(
        "--minutes", type=cli.positive_number, metavar="M",
        help="the time of each training; measuring comes on top. A shorter training is not expected to reach the "
        "committed numbers; default: whole trainings",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR",
        help=f"the data set of nuclei or of photos, if one of them is asked for; default: {DATA / 'MODEL'}",
    )  # fmt: skip
    folder, images = native.ROOT / "output" / "reproduce", measure_gain.SHAPES_IMAGES
    parser.add_argument(
        "--folder", type=Path, default=folder, metavar="DIR", help=f"folder of models and logs; default: {folder}"
    )
    parser.add_argument(
        "--images", type=int, help=f"measure on the first N images; default: {images} of shapes, all of the others"
    )
    parser.add_argument("--samples", type=int, default=1000, help="samples of the bootstrap; default: 1000")
    parser.add_argument(
        "--steps", type=cli.whole_number(0), default=20, metavar="N",
        help="train the first N steps of shapes twice before all else, and compare; 0 does not; default: 20",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="end after these first steps")
    parser.add_argument(
        "--train",
        nargs=argparse.REMAINDER,
        default=[],
        help="all arguments that follow this one are arguments of the command that trains",
    )
    arguments = parser.parse_args(argv)
    return cli.run("reproduce.py", lambda: reproduce(arguments))


def _model(text: str) -> str:
    """A type for argparse: a key of SEEDS."""
    if text not in SEEDS:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(SEEDS)}, not {text!r}")
    return text


def dataset_of(data: str, arguments: argparse.Namespace) -> Path | None:
    """The folder of the data set of a model; None for shapes, which are drawn."""
    return None if data == "shapes" else arguments.dataset or DATA / data


def choose_models(arguments: argparse.Namespace) -> list[str]:
    """The models of the command line, each once, without those whose data set is missing at its usual place.

    Raises: ValueError or FileNotFoundError if --dataset cannot be meant.
    """
    names = list(dict.fromkeys(arguments.models)) or list(SEEDS)
    if arguments.dataset is not None:
        if sum(name != "shapes" for name in names) != 1:
            raise ValueError(f"--dataset is the data set of nuclei or of photos, not of {' and '.join(names)}")
        if not arguments.dataset.is_dir():
            raise FileNotFoundError(f"--dataset {arguments.dataset}: there is no such folder")
    chosen = []
    for name in names:
        folder = dataset_of(name, arguments)
        if folder is None or folder.is_dir():
            chosen.append(name)
        else:
            print(f"{name} is left out: there is no folder {folder}; reproduce.py {name} --dataset DIR names another")
    return chosen


def reproduce(arguments: argparse.Namespace) -> None:
    """Check the first steps of shapes, then train, measure and compare each model."""
    names = choose_models(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "first-steps.json"
    if arguments.check or ("shapes" in names and arguments.steps and not path.is_file()):
        seed = (arguments.seeds or SEEDS["shapes"])[0]
        first = check_first_steps(seed, arguments.steps or 20, arguments.train)
        machine.write_json({**machine.describe(), **first}, path)
    if arguments.check:
        machine.finish(json.loads(path.read_text()), arguments.output)
        return
    for name in names:
        output = arguments.output
        if output is not None and len(names) > 1:
            output = output.with_stem(f"{output.stem}-{name}")
        reproduce_model(name, arguments, output)


def reproduce_model(data: str, arguments: argparse.Namespace, output: Path | None) -> None:
    """Train and measure each seed of a model, and print the tables and the JSON line. output: a file for that line."""
    rows = {f"seed {seed}": run_seed(data, seed, arguments) for seed in arguments.seeds or SEEDS[data]}
    print(f"\n{data}\n{measure_gain.table(rows)}\n")
    name, known = committed(data)
    if known:
        print(f"beside {name}:\n{comparison(rows, known)}\n")
    else:
        print(f"there is {name} yet, so these numbers are compared with nothing\n")
    if known and arguments.minutes is not None:
        print(
            f"Each training was planned to end within {arguments.minutes:g} minutes (--minutes). A training that is "
            "shorter than the committed one is not expected to reach its numbers.\n"
        )
    count = next(iter(rows.values()))["images"]
    facts = {**machine.describe(), "data": data, "minutes": arguments.minutes, "images": count, "models": rows}
    machine.finish(facts, output)


if __name__ == "__main__":
    sys.exit(main())

"""What mask scoring gains, on images that no training has seen, and how sure that is.

    python benchmarks/measure_gain.py shapes                              the embedded model, on 1,000 images
    python benchmarks/measure_gain.py shapes --model a.pth b.pth c.pth    models of several seeds, and their mean
    python benchmarks/measure_gain.py nuclei --dataset ../shared/data/nuclei --subset val
    python benchmarks/measure_gain.py photos --dataset ../shared/data/photos --model model.pth    of custom.py train

For each model, one pass of detection ranks the same masks by class score, by mask score, and by class score x true IoU,
the most that any MaskIoU head could give. The interval of a gain holds it with a confidence of 95 %: AP over images
drawn 1,000 times from those that there are, with replacement, both rankings on the same ones. With several models, the
mean stands with the interval of Student's t over them: what the mean over all seeds may be.

The correlation of predicted and true IoU is that of all detections and, after it, of those that lie on an object of
their class (true IoU of 0.1 and more). Of a detection of a wrong class the true IoU is 0, and whether the class is
right is not what the MaskIoU head is asked.

Prints a table and one line of JSON.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from scipy import stats

import cli
import custom
import own_evaluation
from benchmarks import machine
from data.check import check
from data.dataset import Dataset
from evaluation.bootstrap import Interval, bootstrap_gains
from evaluation.calibration import correlation
from evaluation.detect import detect_dataset
from evaluation.metrics import evaluate_results
from evaluation.results import ground_truth, known_truth
from model import MaskRCNN
from samples import nucleus, shapes

SHAPES_IMAGES = 1000
ON_OBJECT = 0.1

# The columns of the table: what they are called, the metric.
COLUMNS = {
    "box AP": "box AP",
    "AP by class score": "mask AP (class score)",
    "AP50": "mask AP50 (class score)",
    "AP75": "mask AP75 (class score)",
    "AP by mask score": "mask AP",
    "AP50 ": "mask AP50",
    "AP75 ": "mask AP75",
    "by true IoU": "mask AP (true IoU)",
}


def measure(
    model: MaskRCNN,
    dataset: Dataset,
    max_dets: int,
    samples: int = 1000,
    image_ids: Sequence[int] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Every number of a model: metrics of evaluate_results, "gains" of bootstrap_gains, "correlation on objects".

    dataset: prepared. max_dets: how many of an image's best results of a class count. samples: of the bootstrap.
    image_ids: the images to measure on; default: all. dtype: of detect().
    """
    start = time.perf_counter()
    boxes, masks = detect_dataset(model, dataset, image_ids, dtype=dtype, verbose=True)
    seconds = time.perf_counter() - start
    contents = known_truth(model, dataset, ground_truth(dataset, image_ids))
    found = evaluate_results(contents, boxes, masks, max_dets)
    there = found.true_ious >= ON_OBJECT
    predicted = None if found.mask_ious is None else found.mask_ious[there]
    gains = bootstrap_gains(contents, masks, max_dets, samples)
    return {
        **found.metrics,
        "correlation on objects": correlation(predicted, found.true_ious[there]),
        "gains": {name: list(interval) for name, interval in gains.items()},
        "detection_s": seconds,
    }


def mean_gain(gains: Sequence[float]) -> Interval:
    """The mean over seeds, with the interval of Student's t: what the mean over all seeds may be.

    Raises: ValueError for fewer than two.
    """
    if len(gains) < 2:
        raise ValueError(f"an interval over seeds needs two of them at least, not {len(gains)}")
    mean, error = float(np.mean(gains)), float(stats.sem(gains))
    reach = error * float(stats.t.ppf(0.975, len(gains) - 1))
    return Interval(mean, mean - reach, mean + reach)


def difference(values: Sequence[float], digits: int = 2) -> str:
    """Differences of seeds in points (0 to 100), for people: their mean, and its interval where there are several."""
    if len(values) < 2:
        return f"{100 * values[0]:+.{digits}f}"
    value, low, high = (f"{100 * number:+.{digits}f}" for number in mean_gain(values))
    return f"{value} ({low} to {high})"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The numbers for people, AP in points (0 to 100): a model a line, and their mean if there are several."""
    lines = ["| | " + " | ".join(name.strip() for name in COLUMNS) + " | gain, 95 % interval | IoU correlation |"]
    lines.append("| --- |" + " --- |" * (len(COLUMNS) + 2))
    numbers = (*COLUMNS.values(), "IoU correlation", "correlation on objects")
    lines += [_line(name, row, Interval(*row["gains"]["AP"])) for name, row in rows.items()]
    if len(rows) > 1:
        means = {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in numbers}
        lines.append(_line("mean", means, mean_gain([row["gains"]["AP"][0] for row in rows.values()])))
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any], gain: Interval) -> str:
    value, low, high = (f"{100 * each:+.2f}" for each in gain)
    correlations = f"{row['IoU correlation']:.2f}, on objects {row['correlation on objects']:.2f}"
    cells = [f"{100 * row[metric]:.1f}" for metric in COLUMNS.values()]
    return f"| {' | '.join([name, *cells, f'{value} ({low} to {high})', correlations])} |"


def open_model(arguments: argparse.Namespace, name: str) -> tuple[MaskRCNN, Dataset, int]:
    """A model, images that its training has not seen, and how many detections of an image count.

    Raises: ValueError without --dataset where one is needed, and as what opens them.
    """
    settings = {"DETECTION_MIN_CONFIDENCE": 0.05}
    choice = argparse.Namespace(model=name, device=arguments.device, set=arguments.set)
    if arguments.data == "shapes":
        model = cli.open_model(choice, name, **settings)
        return model, shapes.make_dataset(model.config, "test", arguments.images or SHAPES_IMAGES), 100
    if arguments.dataset is None:
        raise ValueError(f"{arguments.data} need --dataset, the folder of the data set")
    if arguments.data == "nuclei":
        dataset = nucleus.make_dataset(arguments.dataset, arguments.subset or "val")
        return nucleus.open_detector(choice, dataset, **settings), dataset, nucleus.MAX_DETS
    return *open_own(arguments.dataset, arguments.subset or "test", name, arguments.device, arguments.set), 100


def open_own(
    folder: Path, subset: str, name: str, device: str, settings: Sequence[str] = ()
) -> tuple[MaskRCNN, Dataset]:
    """A model of custom.py train, and pictures of a data set that it reads, both as custom.py evaluate takes them.

    settings: NAME=VALUE, as --set takes them.

    Raises: as what opens them.
    """
    words = ["evaluate", "--dataset", str(folder), "--subset", subset, "--model", name]
    words += ["--set", *settings] if settings else []
    arguments = custom.build_parser().parse_args(words)
    records, options = custom.open_dataset(arguments)
    pictures = own_evaluation.choose_pictures(records, check(records, options), subset)
    return own_evaluation.open_detector(arguments, name, torch.device(device)), pictures.dataset


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = machine.make_parser("measure_gain.py", __doc__, device=True)
    parser.add_argument("data", choices=["shapes", "nuclei", "photos"])
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="the folder of nuclei or photos")
    parser.add_argument("--subset", help="the subset of these; default: val of nuclei, test of photos")
    parser.add_argument(
        "--model", nargs="+", metavar="NAME", help="checkpoint files or names; default: the embedded model"
    )
    parser.add_argument(
        "--images",
        type=int,
        help=f"measure on the first N images; default: {SHAPES_IMAGES} of shapes, all of the others",
    )
    parser.add_argument("--samples", type=int, default=1000, help="samples of the bootstrap; default: 1000")
    cli.add_dtype(parser)
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return cli.run("measure_gain.py", lambda: measure_models(arguments))


def measure_models(arguments: argparse.Namespace) -> None:
    """Measure each model of the command line, and print the table and the JSON line."""
    rows = {}
    for name in arguments.model or [arguments.data]:
        model, dataset, max_dets = open_model(arguments, name)
        image_ids = dataset.image_ids[: arguments.images]
        numbers = measure(model, dataset, max_dets, arguments.samples, image_ids, arguments.dtype or "float32")
        rows[name] = {"source": model.source, **numbers}
    print(table(rows))
    facts = {**machine.describe(arguments.device), "data": arguments.data, "set": arguments.set, "models": rows}
    machine.finish(facts, arguments.output)


if __name__ == "__main__":
    sys.exit(main())

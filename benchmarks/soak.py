"""Memory of a long run: detection on images of ever other sizes, and many small steps of training.

    python benchmarks/soak.py [--minutes 30] [--steps 2000] [--quick] [--threads N] [--output DIR]

Detection: the embedded model of nuclei, in batches of one to three images of random sizes from 32 to 320 pixels,
for that many minutes. Training: the network of samples/shapes.py on images of random sizes, for that many steps, with
200 checkpoints.
Each runs in a process of its own. Memory is sampled 200 times, as

    resident    megabytes of the process in memory
    used        of them, blocks that are allocated with the C library: tensors, arrays, Python's objects
    kept        free blocks that the C library keeps for later; runtime.keep_memory has the limits
    objects     Python objects that the garbage collector knows

The table has their least and greatest values in each fifth of the run. "used" and "objects" that grow from fifth to
fifth are a leak; "kept" that grows alone is the C library's. The last line printed is JSON; DIR gets it, and the curve.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import matplotlib.pyplot as plt
import numpy as np
import torch

import cli
import runtime
from benchmarks import machine
from model import MaskRCNN
from samples.shapes import ShapesConfig, ShapesDataset
from training.loop import Progress
from weights.load import load_model

SAMPLES = 200
FIFTHS = 5
COLUMNS = ("seconds", "count", "resident", "used", "kept", "objects")


class Curve:
    """Rows of COLUMNS: seconds since the start, calls or steps so far, megabytes, objects."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.rows: list[list[float]] = []

    def add(self, count: int) -> None:
        """Adds a row. count: the calls or steps so far."""
        used, kept = (size / 1e6 for size in runtime.allocated_memory())
        seconds = time.perf_counter() - self.start
        self.rows.append([round(seconds, 1), count, machine.resident_mb(), round(used, 1), round(kept, 1), _objects()])
        print(*zip(COLUMNS, self.rows[-1], strict=True), file=sys.stderr, flush=True)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def soak_detection(minutes: float, rng: np.random.Generator) -> Curve:
    """Detects in images of random sizes for that long."""
    model, curve, count = load_model("nuclei", "cpu"), Curve(), 0
    while curve.seconds() < 60 * minutes:
        sizes = rng.integers(32, 321, (rng.integers(1, 4), 2))
        model.detect([rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes], masks="rle")
        count += 1
        if curve.seconds() >= 60 * minutes * len(curve.rows) / SAMPLES:
            curve.add(count)
    return curve


def soak_training(steps: int, rng: np.random.Generator) -> Curve:
    """Trains for that many steps, on images of random sizes."""
    dataset = ShapesDataset()
    for number, (height, width) in enumerate(rng.integers(64, 257, (50, 2)).tolist()):
        dataset.load_shapes(1, height, width, seed=number)
    dataset.prepare()
    per_epoch = max(1, steps // SAMPLES)
    config = ShapesConfig(
        GPU_COUNT=0, STEPS_PER_EPOCH=per_epoch, WORKERS=0, TRAIN_DTYPE="float32", CHECKPOINTS_KEPT=1,
        IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=256, IMAGES_PER_GPU=2,
    )  # fmt: skip
    curve = Curve()

    def sample(event: str, progress: Progress) -> None:
        if event == "epoch_end":
            curve.add(progress.epoch * per_epoch)

    with tempfile.TemporaryDirectory() as folder:
        model = MaskRCNN(config, folder)
        model.train_model(dataset, None, epochs=steps // per_epoch, layers="all", custom_callbacks=[sample])
    return curve


def in_process(kind: str, amount: float, threads: int) -> dict:
    """The curve of a kind of run, which has a process of its own."""
    command = [sys.executable, __file__, "--run", kind, "--amount", str(amount), "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def fifths(rows: list[list[float]], column: str) -> list[tuple[float, float]]:
    """The least and the greatest value of a column in each fifth of a run."""
    values = np.array(rows)[:, COLUMNS.index(column)]
    return [(float(part.min()), float(part.max())) for part in np.array_split(values, FIFTHS) if len(part)]


def print_table(kind: str, rows: list[list[float]]) -> None:
    """The fifths of a run in lines."""
    print(f"\n{kind}: {rows[-1][1]:,.0f} calls in {rows[-1][0] / 60:.1f} minutes")
    for column in COLUMNS[2:]:
        print(f"  {column:9}" + "".join(f"{least:11,.0f} to {most:9,.0f}" for least, most in fifths(rows, column)))


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    """The curves as a picture."""
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4), squeeze=False)
    for axis, (kind, rows) in zip(axes[0], curves.items(), strict=True):
        values = np.array(rows)
        for column in COLUMNS[2:5]:
            axis.plot(values[:, 0] / 60, values[:, COLUMNS.index(column)], label=column)
        axis.set(title=kind, xlabel="minutes", ylabel="MB", ylim=(0, None))
        axis.legend()
    runtime.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100, bbox_inches="tight"))
    plt.close(figure)


def build_parser() -> cli.Parser:
    parser = machine.make_parser("soak.py", __doc__, quick="seconds instead of minutes", threads=True, output="DIR")
    parser.add_argument(
        "--minutes", type=cli.positive_number, default=30, metavar="N", help="of detection; default: 30"
    )
    parser.add_argument(
        "--steps", type=cli.whole_number(1), default=2000, metavar="N", help="of training; default: 2000"
    )
    parser.add_argument("--run", choices=["detection", "training"], help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=float, help=argparse.SUPPRESS)
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.run:
        run = {"detection": soak_detection, "training": lambda steps, rng: soak_training(int(steps), rng)}
        print(json.dumps(run[arguments.run](arguments.amount, np.random.default_rng(0)).rows))
        return
    amounts = {"detection": arguments.minutes, "training": arguments.steps}
    if arguments.quick:
        amounts = {"detection": 0.05, "training": 10}
    curves = {kind: in_process(kind, amount, torch.get_num_threads()) for kind, amount in amounts.items()}
    for kind, rows in curves.items():
        print_table(kind, rows)
    facts = {**machine.describe(), "columns": COLUMNS, "curves": curves}
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        draw(curves, arguments.output / "soak.png")
    machine.finish(facts, arguments.output / "soak.json" if arguments.output else None)


if __name__ == "__main__":
    main(build_parser().parse_args())

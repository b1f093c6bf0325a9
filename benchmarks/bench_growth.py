"""How time and memory grow: with the image's area, with detections, objects, batch and threads, and with the data set.

    python benchmarks/bench_growth.py [--curve NAME ...] [--threads N] [--quick] [--output DIR]

    area         detect() of one square image; 100 detections
    detections   detect() of one image of 512 x 512, run-length codes of that many masks
    batch        detect() of so many images of 512 x 512 at once; 100 detections each
    threads      detect() of one image of 832 x 832
    objects      a training step of one image of 512 x 512 with so many objects; 128 RoIs
    evaluation   COCO's numbers of boxes and of masks in three rankings, of so many images with 10 detections each

Mask Scoring R-CNN R-50 in float32 with the weights of golden_weights.py. Each curve has a process of its own. A time is
the median of three calls, but one call of the evaluation. Memory is the peak of a call beyond what was in use before,
measured while freed memory goes back to the system. "Each more" is the slope of the line from the first point of a
curve to the last. The last line printed is JSON; DIR gets it, and the curves as a picture.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import golden_weights
import numpy as np
import torch
from PIL import Image

import cli
import runtime
import visualize
from benchmarks import bench_detect, bench_eval, bench_train, machine
from model import MaskRCNN
from weights.load import load_checkpoint

CALLS = 3


class Curve(NamedTuple):
    """What is measured at several values."""

    label: str  # of the values
    values: Sequence[int]
    quick: Sequence[int]  # values of --quick
    prepare: Callable[[int], Callable[[], object]]  # of a value: the call that is measured
    size_of: Callable[[int], float] = float  # the value on the picture's axis
    calls: int = CALLS


############################################################
#  Calls
############################################################


def detector(side: int, **settings: Any) -> MaskRCNN:
    """Mask Scoring R-CNN R-50 for square images."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(golden_weights.write_checkpoint("benchmark", folder))
    square = {"IMAGE_RESIZE_MODE": "square", "IMAGE_MIN_DIM": side, "IMAGE_MAX_DIM": side}
    return MaskRCNN.from_checkpoint(checkpoint, "cpu", **square, **settings)


def square_photograph(side: int) -> np.ndarray:
    return np.array(Image.fromarray(bench_detect.photograph()).resize((side, side), Image.Resampling.BICUBIC))


def detect(side: int, images: int = 1, threads: int | None = None, **settings: Any) -> Callable[[], object]:
    """detect() of so many images, in one chunk."""
    if threads:
        torch.set_num_threads(threads)
    model = detector(side, IMAGES_PER_GPU=images, **settings)
    photographs = [square_photograph(side)] * images
    return lambda: model.detect(photographs, masks="rle")


def detect_so_many(count: int) -> Callable[[], object]:
    """detect() of one image with exactly that many detections."""
    run = detect(512, DETECTION_MAX_INSTANCES=count, DETECTION_MIN_CONFIDENCE=0.0, DETECTION_NMS_THRESHOLD=0.9)
    found = len(run()[0]["scores"])
    if found != count:
        raise RuntimeError(f"{found} detections, where {count} were to be measured")
    return run


def training_step(objects: int) -> Callable[[], object]:
    """A training step of one image with so many objects, with RoIs of its own RPN."""
    size = bench_train.Size(512, 512, 128)
    scene = bench_train.make_scene(0, size, objects)._replace(rois=torch.zeros(0, 4))
    subject = bench_train.Ours(bench_train.Case("MS R-CNN", maskiou=True), [scene], size.rois, "cpu", "mmdet")
    return lambda: bench_train.step(subject, time.perf_counter)


def evaluation(images: int) -> Callable[[], object]:
    """COCO's numbers of made-up results."""
    _, results = bench_eval.measure_masks(images, 10, plain_images=1)
    return lambda: bench_eval.our_evaluation(*results)


CORES = runtime.usable_cores()
CURVES = {
    "area": Curve("megapixels", (256, 512, 1024, 2048), (64, 128), detect, lambda side: side**2 / 1e6),
    "detections": Curve("detections", (10, 30, 100, 300, 1000), (10, 20), detect_so_many),
    "batch": Curve("images at once", (1, 2, 4, 8), (1, 2), partial(detect, 512)),
    "threads": Curve(
        "threads",
        [2**i for i in range(CORES.bit_length()) if 2**i <= CORES],
        (1,),
        lambda threads: detect(832, threads=threads),
    ),
    "objects": Curve("objects", (10, 30, 100, 300, 1000), (5, 10), training_step),
    "evaluation": Curve("images", (1000, 5000, 20000, 50000), (10, 20), evaluation, calls=1),
}


############################################################
#  Measuring
############################################################


def measure(curve: Curve, quick: bool) -> list[dict[str, float | None]]:
    """A row of each value: value, size, ms and MB."""
    rows: list[dict[str, Any]] = []
    os.environ["MASKSCORING_KEEP_MEMORY"] = "0"  # all peaks first: a process that keeps memory goes on keeping it
    for value in curve.quick if quick else curve.values:
        run = curve.prepare(value)
        peak = machine.Peak(trim=True)
        ms = call_ms(run)
        rows.append({"value": value, "size": curve.size_of(value), "mb": peak.megabytes(), "ms": ms})
        print(rows[-1], file=sys.stderr, flush=True)
    del os.environ["MASKSCORING_KEEP_MEMORY"]
    for row in rows if curve.calls > 1 else []:
        run = curve.prepare(row["value"])
        run()
        row["ms"] = statistics.median(call_ms(run) for _ in range(curve.calls))
        print(row, file=sys.stderr, flush=True)
    return rows


def call_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def in_process(script: str, arguments: Sequence[str]) -> Any:
    """What a script prints as its last line of JSON, in a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def slope(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """What one more of a curve's unit costs, from the first point to the last. None with one point or no memory."""
    first, last = rows[0], rows[-1]
    if first is last or first[column] is None or last[column] is None:
        return None
    return (last[column] - first[column]) / (last["size"] - first["size"])


def slopes(curves: dict[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """What one more of its unit costs, of each curve: ms and MB."""
    return {name: {column: slope(rows, column) for column in ("ms", "mb")} for name, rows in curves.items()}


def print_table(name: str, label: str, rows: Sequence[dict[str, Any]]) -> None:
    """A curve in lines. label: of its values."""
    print(f"\n{name}: {label}")
    for row in rows:
        print(f"  {row['size']:12,.5g} {row['ms']:12,.0f} ms {row['mb'] or math.nan:10,.0f} MB")
    more = slopes({name: rows})[name]
    print("  each more: " + ", ".join(f"{value:.3g} {column}" for column, value in more.items() if value is not None))


def draw(curves: dict[str, Sequence[dict[str, Any]]], labels: dict[str, str], path: Path) -> None:
    """The curves as a picture: time and memory of each. labels: of the values of each."""
    columns = min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = visualize.new_figure(4.2 * columns, 3.4 * lines, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(curves) :]:
        axis.axis("off")
    for axis, (name, rows) in zip(axes, curves.items(), strict=False):
        sizes = [row["size"] for row in rows]
        seconds, memory = [row["ms"] / 1e3 for row in rows], [row["mb"] or math.nan for row in rows]
        axis.plot(sizes, seconds, "o-", color="tab:blue")
        axis.set(title=name, xlabel=labels[name], xlim=(0, None), ylim=(0, 1.1 * max(seconds)))
        axis.set_ylabel("seconds", color="tab:blue")
        other = axis.twinx()
        other.plot(sizes, memory, "s--", color="tab:orange")
        other.set_ylim(0, 1.1 * np.nanmax([1, *memory]))
        other.set_ylabel("MB", color="tab:orange")
    runtime.write_atomically(path, lambda file: file.write(visualize.figure_to_png(figure)))


############################################################
#  Command line
############################################################


def build_parser() -> cli.Parser:
    parser = machine.make_parser("bench_growth.py", __doc__, quick="small values", threads=True, output="DIR")
    parser.add_argument(
        "--curve", nargs="+", choices=CURVES, default=list(CURVES), metavar="NAME", help=f"of {', '.join(CURVES)}"
    )
    parser.add_argument("--run", choices=CURVES, help=argparse.SUPPRESS)
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.run:
        print(json.dumps(measure(CURVES[arguments.run], arguments.quick)))
        return
    words = ["--threads", str(torch.get_num_threads()), *["--quick"] * arguments.quick]
    curves = {name: in_process(__file__, ["--run", name, *words]) for name in arguments.curve}
    labels = {name: CURVES[name].label for name in curves}
    for name, rows in curves.items():
        print_table(name, labels[name], rows)
    facts = {**machine.describe(), "quick": arguments.quick, "labels": labels, "curves": curves}
    facts["slopes"] = slopes(curves)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        draw(curves, labels, arguments.output / "growth.png")
    machine.finish(facts, arguments.output / "growth.json" if arguments.output else None)


if __name__ == "__main__":
    main(build_parser().parse_args())

"""The exported network in the runtimes that take it, beside ours: time, and what is found.

    python benchmarks/bench_export.py [--threads N] [--rounds N] [--images N] [--quick] [--output FILE]

Needs the packages of export.py; OpenVINO is measured if it is installed. Speed: Mask Scoring R-CNN R-50 with the weights
of golden_weights.py, an input of 480 x 640 with 100 detections, the network alone; and from the image to masks of its
size. All take turns, round by round; the times are the medians of the rounds. Accuracy: mask AP of the embedded model
shapes on --images images that no training has seen. The last line printed is JSON.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch

import cli
import export
import runtime
from benchmarks import bench_detect, machine
from data.images import read_image
from evaluation.run import evaluate_dataset
from model import Images, MaskRCNN, _ready_weights
from onnx_detect import Detector
from samples.shapes import ShapesDataset
from weights.load import load_model

try:
    import openvino
except ImportError:
    openvino = None

INPUT = (480, 640)


class OpenVino(Detector):
    """A Detector whose network runs in OpenVINO. hint: f32 or bf16, or None for OpenVINO's own choice."""

    def __init__(self, path: Path, threads: int, hint: str | None) -> None:
        super().__init__(path, threads)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
        self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(self, pixels: np.ndarray, windows: np.ndarray) -> list[np.ndarray]:
        results = self._compiled({"pixels": pixels, "windows": windows})
        return [results[name] for name in self.outputs]


def detectors(path: Path, threads: int) -> Iterator[tuple[str, Detector]]:
    """Each runtime that is installed, with the file."""
    yield "onnxruntime, float32", Detector(path, threads)
    if openvino is not None:
        for name, hint in (("float32", "f32"), ("bfloat16", "bf16"), ("no hint", None)):
            yield f"OpenVINO, {name}", OpenVino(path, threads, hint)


class Evaluated:
    """A Detector as evaluation takes it: evaluation.results.Detector."""

    def __init__(self, detector: Detector, model: MaskRCNN) -> None:
        self.detector, self.config = detector, model.config
        self.class_names, self.category_ids = model.class_names, model.category_ids

    def detect_batches(
        self, batches: Iterable[Sequence[np.ndarray]], dtype: str = "float32", masks: str = "rle"
    ) -> Iterator[list[dict[str, Any]]]:
        for images in batches:
            yield [self.detector.detect(image, masks) for image in images]


class InDtype:
    """A MaskRCNN that evaluation runs in a dtype."""

    def __init__(self, model: MaskRCNN, dtype: str) -> None:
        self.model, self.dtype, self.config = model, dtype, model.config
        self.class_names, self.category_ids = model.class_names, model.category_ids

    def detect_batches(self, batches, dtype: str = "float32", masks: str = "rle") -> Iterator[list[dict[str, Any]]]:
        yield from self.model.detect_batches(batches, self.dtype, masks)


def export_to(folder: str, model: MaskRCNN) -> Path:
    """The file of a model, not checked."""
    path = Path(folder) / "model.onnx"
    path.write_bytes(export.export_model(model)[0])
    return path


def our_network(model: MaskRCNN, pixels: torch.Tensor, windows: torch.Tensor, dtype: str) -> Callable[[], Any]:
    """A call of our network with prepared weights."""
    weights = _ready_weights(model, getattr(torch, dtype))
    images = Images(pixels.to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last), windows)
    return lambda: model.predict(images, weights=weights)


def measure_speed(threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each runtime: milliseconds of the network and of a whole detection, in turns."""
    model = bench_detect.our_model("r50-caffe", "cpu").eval()
    pixels = torch.randn(1, 3, *INPUT, generator=torch.Generator().manual_seed(0)) * 50
    windows = torch.tensor([[0.0, 0.0, *INPUT]])
    image = read_image(ROOT / "assets" / "coffee.jpg")
    networks = {f"ours, {dtype}": our_network(model, pixels, windows, dtype) for dtype in ("float32", "bfloat16")}
    wholes: dict[str, Callable[[], Any]] = {
        f"ours, {dtype}": lambda dtype=dtype: model.detect([image], dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    with tempfile.TemporaryDirectory() as folder:
        arrays = pixels.numpy(), windows.numpy()
        for name, detector in detectors(export_to(folder, model), threads):
            networks[name] = lambda detector=detector: detector.run(*arrays)
            wholes[name] = lambda detector=detector: detector.detect(image)
        rows = []
        with model.prepared("float32"), model.prepared("bfloat16"):
            times = {"network": _in_turns(networks, rounds), "whole": _in_turns(wholes, rounds)}
        for name in networks:
            row = {"name": name} | {f"{part}_ms": statistics.median(of[name]) for part, of in times.items()}
            rows.append({**row, "rounds_ms": {part: of[name] for part, of in times.items()}})
    return rows


def _in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure_accuracy(threads: int, images: int) -> dict[str, float]:
    """Mask AP in points of the embedded model shapes, by runtime."""
    model = load_model("shapes", torch.device("cpu"))
    dataset = ShapesDataset()
    dataset.load_shapes(images, subset="test")
    dataset.prepare()
    with tempfile.TemporaryDirectory() as folder:
        runners: dict[str, Any] = {f"ours, {dtype}": InDtype(model, dtype) for dtype in ("float32", "bfloat16")}
        for name, detector in detectors(export_to(folder, model), threads):
            runners[name] = Evaluated(detector, model)
        return {
            name: 100 * evaluate_dataset(runner, dataset, verbose=False)["mask AP"] for name, runner in runners.items()
        }


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = machine.make_parser("bench_export.py", __doc__, "one round, few images", threads=True)
    parser.add_argument("--rounds", type=cli.whole_number(1), default=7, metavar="N", help="default: 7")
    parser.add_argument("--images", type=cli.whole_number(1), default=500, metavar="N", help="for AP; default: 500")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runtime.keep_memory()
    threads, rounds = torch.get_num_threads(), 1 if arguments.quick else arguments.rounds
    accuracy = measure_accuracy(threads, 5 if arguments.quick else arguments.images)
    rows = measure_speed(threads, rounds)
    print(f"{'':26}{'network, ms':>14}{'of ours':>10}{'image to masks, ms':>22}{'of ours':>10}{'mask AP, shapes':>18}")
    for row in rows:
        shares = [row[f"{part}_ms"] / rows[0][f"{part}_ms"] for part in ("network", "whole")]
        print(
            f"{row['name']:26}{row['network_ms']:14.0f}{shares[0]:10.2f}{row['whole_ms']:22.0f}{shares[1]:10.2f}"
            f"{accuracy[row['name']]:18.2f}"
        )
    facts = {"quick": arguments.quick, "rounds": rounds, "cases": rows, "shapes_mask_ap": accuracy}
    versions = {name: runtime_version(name) for name in ("onnxruntime", "openvino")}
    machine.finish({**machine.describe(), **versions, **facts}, arguments.output)


def runtime_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

"""The network of Mask Scoring R-CNN R-50, part by part, here and in the runtimes that run exported networks.

    python benchmarks/bench_peers.py [--threads N] [--rounds N] [--quick] [--output FILE]

Needs onnx and onnxscript, and onnxruntime or openvino, which the project itself does not need. An image of 800 x 1088,
1,000 RoIs for the box head, 100 for the mask heads, weights of golden_weights.py. Each part is exported to
ONNX in float32; results are compared with ours. OpenVINO's bfloat16 is its hint INFERENCE_PRECISION_HINT. RoI pooling,
NMS, resizing and pasting are not in it: the runtimes lack them. All take turns, round by round; the times are the
medians of the rounds, and so are the ratios. The last line printed is JSON.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from torch import Tensor, nn

import cli
import runtime
from benchmarks import bench_detect, machine
from model import MaskRCNN, _inference, _ready_weights

try:
    import openvino
except ImportError:
    openvino = None
try:
    import onnxruntime
except ImportError:
    onnxruntime = None


class Dense(nn.Module):
    """Backbone, FPN and RPN: pixels [B, 3, H, W] to P2 to P5 and the RPN's predictions."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.backbone, self.fpn, self.rpn = model.backbone, model.fpn, model.rpn

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        pyramid = self.fpn(self.backbone(pixels))
        logits, deltas = self.rpn(pyramid)
        return *pyramid[:4], *logits, *deltas


class Masks(nn.Module):
    """Mask head and MaskIoU head: features [N, C, 14, 14] and classes [N] to masks and IoUs."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.mask_head, self.maskiou_head = model.mask_head, model.maskiou_head

    def forward(self, features: Tensor, class_ids: Tensor) -> tuple[Tensor, ...]:
        logits = self.mask_head(features, class_ids)
        return logits, self.maskiou_head(features, logits)


def parts(model: MaskRCNN, quick: bool) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Name, module and inputs of each part."""
    generator = torch.Generator().manual_seed(0)
    height, width, rois, found = (128, 160, 20, 5) if quick else (800, 1088, 1000, 100)
    pixels = torch.randn(1, 3, height, width, generator=generator) * 50
    yield "backbone, FPN, RPN", Dense(model), (pixels.contiguous(memory_format=torch.channels_last),)
    features = torch.randn(rois, 256, 7, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    yield "box head", model.box_head, (features,)
    features = torch.randn(found, 256, 14, 14, generator=generator).contiguous(memory_format=torch.channels_last)
    yield "mask and MaskIoU head", Masks(model), (features, torch.arange(found) % 80 + 1)


def ours(model: MaskRCNN, part: nn.Module, inputs: tuple[Tensor, ...], dtype: str) -> Callable[[], list[Tensor]]:
    """A call of a part with prepared weights. Results stay in the dtype that the next part takes."""
    weights = _ready_weights(model, getattr(torch, dtype))
    given = [a.to(getattr(torch, dtype)) if a.is_floating_point() else a for a in inputs]

    def run() -> list[Tensor]:
        with _inference(weights, model.device):
            results = part(*given)
        return list(results)

    return run


def onnx_file(part: nn.Module, inputs: tuple[Tensor, ...], folder: str) -> str:
    """The part as an ONNX file, in float32."""
    path = str(Path(folder) / "part.onnx")
    torch.onnx.export(part, inputs, path, dynamo=True, verbose=False, optimize=True)
    return path


def peers(path: str, inputs: tuple[Tensor, ...], threads: int) -> Iterator[tuple[str, Callable[[], list]]]:
    """Name and call of each runtime that is installed."""
    arrays = [np.ascontiguousarray(a.numpy()) for a in inputs]
    if onnxruntime is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        feed = {node.name: array for node, array in zip(session.get_inputs(), arrays, strict=True)}
        yield f"onnxruntime {onnxruntime.__version__}, float32", lambda: session.run(None, feed)
    if openvino is None:
        return
    for hint, name in (("f32", "float32"), ("bf16", "bfloat16")):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(openvino.convert_model(path), "CPU", settings)
        version = openvino.__version__.split("-")[0]
        yield f"OpenVINO {version}, {name}", lambda compiled=compiled: list(compiled(arrays).to_tuple())


def difference(results: list, expected: list[Tensor]) -> float:
    """The greatest difference, as a share of the greatest value of each result. results: tensors or arrays."""
    pairs = [(torch.as_tensor(a).float(), b) for a, b in zip(results, expected, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs if b.numel())


def measure(model: MaskRCNN, threads: int, rounds: int, quick: bool) -> list[dict]:
    """A row for each runtime: milliseconds and difference of each part."""
    rows: dict[str, dict] = {}
    for name, part, inputs in parts(model, quick):
        runs = {f"ours, {dtype}": ours(model, part, inputs, dtype) for dtype in ("float32", "bfloat16")}
        with tempfile.TemporaryDirectory() as folder:
            runs |= dict(peers(onnx_file(part, inputs, folder), inputs, threads))
        expected = runs["ours, float32"]()
        times: dict[str, list[float]] = {runner: [] for runner in runs}
        for runner, run in runs.items():
            row = rows.setdefault(runner, {"name": runner, "ms": {}, "rounds_ms": {}, "difference": {}})
            row["difference"][name] = difference(run(), expected)
        for _ in range(rounds):
            for runner, run in runs.items():
                start = time.perf_counter()
                run()
                times[runner].append(1e3 * (time.perf_counter() - start))
        for runner, of_runner in times.items():
            rows[runner]["ms"][name] = statistics.median(of_runner)
            rows[runner]["rounds_ms"][name] = of_runner
    for row in rows.values():
        row["all_ms"] = sum(row["ms"].values())
    return list(rows.values())


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = machine.make_parser("bench_peers.py", __doc__, "small inputs, one round", threads=True)
    parser.add_argument("--rounds", type=cli.whole_number(1), default=9, metavar="N", help="default: 9")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runtime.keep_memory()
    model = bench_detect.our_model("benchmark", "cpu").eval()
    rounds = 1 if arguments.quick else arguments.rounds
    rows = measure(model, torch.get_num_threads(), rounds, arguments.quick)
    names = list(rows[0]["ms"])
    print(f"{'ms':32}" + "".join(f"{name:>24}" for name in names) + f"{'all':>8}")
    for row in rows:
        print(f"{row['name']:32}" + "".join(f"{row['ms'][name]:24.0f}" for name in names) + f"{row['all_ms']:8.0f}")
    machine.finish({**machine.describe(), "quick": arguments.quick, "rounds": rounds, "cases": rows}, arguments.output)


if __name__ == "__main__":
    main()

"""detect() from a photograph to masks, by stage, against torchvision where it can be imported.

    python benchmarks/bench_detect.py [--threads N] [--device cpu|cuda] [--seconds S] [--quick] [--output FILE]

A photograph of 640 x 480 at 800/1333 gives 100 detections with the deterministic weights of golden_weights.py: Mask
R-CNN R-50 in torchvision's layout, which torchvision loads too, and Mask Scoring R-CNN R-50 in the paper's. Both go
through weights.load. torchvision runs in this process, with the same threads and image, before anything of ours,
as the C library is by default, and once more while that keeps freed memory, as ours makes it (runtime.keep_memory). Its
results are compared with ours. Times are medians of whole calls; those of stages are means and include waiting for
the device.

GFLOP counts two for a multiplication with its sum, in convolutions and products. GFLOP/s of the convolution part is
that over the time inside the convolution kernels; the peak beside it is the best of three convolutions that cost most,
measured alone in the same run. Peak MB is what the call takes beyond the model, its result included, while freed
memory goes back to the system; a photograph of 4000 x 3000 pixels is measured too.
The last line printed is JSON.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import golden_weights
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

import runtime
import utils
from benchmarks import machine
from fused import fuses, widens
from model import MaskRCNN
from weights.load import load_checkpoint

try:
    import torchvision
except ImportError:
    torchvision = None

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STAGES = ("backbone", "fpn", "rpn", "box_head", "mask_head", "maskiou_head")
# Channels in and out, kernel, images, height, width: RPN and FPN on P2, mask head, a 3x3 of the fourth stage.
PEAK_SHAPES = ((256, 256, 3, 1, 200, 272), (256, 256, 3, 100, 14, 14), (256, 256, 3, 1, 50, 68))


############################################################
#  What is measured
############################################################


def photograph() -> np.ndarray:
    """scikit-image's coffee, 640 x 480."""
    return np.array(Image.fromarray(skimage.data.coffee()).resize((640, 480), Image.Resampling.BICUBIC))


def our_model(name: str, device: str, **settings: int) -> MaskRCNN:
    """A model of golden_weights.py, through weights.load."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(golden_weights.write_checkpoint(name, folder))
    return MaskRCNN.from_checkpoint(checkpoint, device, **settings)


def torchvision_model(device: str) -> torch.nn.Module:
    """torchvision's Mask R-CNN R-50 with weights of golden_weights.py and, as they need, frozen norms with eps 0."""
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                frozen = torchvision.ops.misc.FrozenBatchNorm2d(child.num_features, eps=0.0)
                setattr(parent, name, frozen)
    model.load_state_dict(golden_weights.peer_state_dict("p3_v1"))
    return model.to(device).eval()


def torchvision_detect(model: torch.nn.Module, image: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """What detect() returns, from torchvision: masks as bool [H, W, N]."""
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float().div(255)
    with torch.no_grad():
        (found,) = model([pixels])
    return {
        "rois": found["boxes"][:, [1, 0, 3, 2]].cpu().numpy(),
        "class_ids": found["labels"].cpu().numpy(),
        "scores": found["scores"].cpu().numpy(),
        "masks": (found["masks"][:, 0] > 0.5).permute(1, 2, 0).cpu().numpy(),
    }


def matches(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many detections of one are in the other: class, 1 px, score 3e-3 and mask IoU 0.98."""
    count = 0
    for i, box in enumerate(one["rois"]):
        near = np.abs(other["rois"] - box).max(axis=1) <= 1
        near &= (other["class_ids"] == one["class_ids"][i]) & (np.abs(other["scores"] - one["scores"][i]) <= 3e-3)
        for j in np.nonzero(near)[0]:
            inter, union = (operation(one["masks"][..., i], other["masks"][..., j]).sum() for operation in (
                np.logical_and, np.logical_or))  # fmt: skip
            if inter >= 0.98 * union:
                count += 1
                break
    return count


def overlapping(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many detections of one have one of their class in other, with a box IoU of 0.5."""
    same_class = one["class_ids"][:, None] == other["class_ids"][None]
    return int(((utils.compute_overlaps(one["rois"], other["rois"]) >= 0.5) & same_class).any(axis=1).sum())


############################################################
#  How it is measured
############################################################


@contextmanager
def stage_seconds(model: MaskRCNN):
    """A dict that, inside, adds up the seconds of each part of the network."""
    seconds, started, handles = {}, {}, []

    def start(name: str) -> Callable:
        def hook(*_: Any) -> None:
            runtime.wait_for(model.device)
            started[name] = time.perf_counter()

        return hook

    def stop(name: str) -> Callable:
        def hook(*_: Any) -> None:
            runtime.wait_for(model.device)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started[name]

        return hook

    for name in STAGES:
        if (part := getattr(model, name)) is not None:
            handles += [part.register_forward_pre_hook(start(name)), part.register_forward_hook(stop(name))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def stages_ms(model: MaskRCNN, run: Callable[[], object], calls: int) -> dict[str, float]:
    """Milliseconds a call of each stage: resize, the parts of the network, the rest of it, masks."""
    outer: dict[str, float] = {}
    with stage_seconds(model) as inner:
        for _ in range(calls):
            run()
            for name, seconds in model.seconds.items():
                outer[name] = outer.get(name, 0.0) + seconds
    rest = outer["network"] - sum(inner.values())
    seconds = {"resize": outer["resize"], **inner, "boxes, NMS, pooling": rest, "pasting masks": outer["masks"]}
    return {name: 1e3 * value / calls for name, value in seconds.items()}


def convolution_ms(run: Callable[[], object], device: str, calls: int) -> float:
    """Milliseconds a call spent in convolution kernels, by torch's profiler; on CUDA, those of the whole device."""
    with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            run()
    events = profiler.key_averages()
    if device == "cuda":
        return sum(event.self_device_time_total for event in events) / 1e3 / calls
    kernels = ("mkldnn_convolution", "mkldnn::_convolution", "mkldnn::_linear", "aten::addmm", "mkldnn_linear")
    chosen = [event for event in events if any(name in event.key for name in kernels)]
    return sum(event.self_cpu_time_total for event in chosen) / 1e3 / calls


def peak_gflops(device: str, dtype: torch.dtype, seconds: float) -> float:
    """The most GFLOP/s that one convolution of the network reaches alone."""
    best = 0.0
    with torch.no_grad():
        for channels_in, channels_out, kernel, images, height, width in PEAK_SHAPES:
            options = {"device": device, "dtype": dtype}
            x = torch.randn(images, channels_in, height, width, **options).contiguous(memory_format=torch.channels_last)
            weight = torch.randn(channels_out, channels_in, kernel, kernel, **options)
            weight = weight.contiguous(memory_format=torch.channels_last)
            ms = machine.median_ms(lambda x=x, w=weight, p=kernel // 2: F.conv2d(x, w, padding=p), device, seconds)
            flop = 2 * images * channels_in * channels_out * kernel**2 * height * width
            best = max(best, flop / ms / 1e6)
    return best


def _convolution_flop(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)


def _residual_convolution_flop(_other: Any, x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)


def _product_flop(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


def count_gflop(run: Callable[[], object]) -> float:
    """1e9 floating-point operations of a call."""
    formulas = {}
    if fuses("cpu", torch.float32):  # torch counts its own convolutions and products, and these of oneDNN not
        formulas = {
            torch.ops.mkldnn._convolution_pointwise: _convolution_flop,
            torch.ops.mkldnn._convolution_pointwise_: _residual_convolution_flop,
            torch.ops.mkldnn._linear_pointwise: _product_flop,
        }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops() / 1e9


def large_photograph_mb(model: MaskRCNN) -> dict[str, float | None]:
    """Peak megabytes of detect() on 4000 x 3000 pixels, as array and as run-length codes, and of the network alone."""
    large = np.array(Image.fromarray(photograph()).resize((4000, 3000), Image.Resampling.BICUBIC))
    small = np.array(Image.fromarray(large).resize((1067, 800)))
    memory = {"network": peak_mb(model, small, masks="rle")}
    memory |= {kind: peak_mb(model, large, masks=kind) for kind in ("array", "rle")}
    memory["instances"] = len(model.detect([large], masks="rle")[0]["scores"])
    return memory


def peak_mb(model: MaskRCNN, image: np.ndarray, **options: str) -> float | None:
    """Megabytes that a call takes, while the C library gives freed memory back: only before runtime.keep_memory."""
    before = os.environ.get("MASKSCORING_KEEP_MEMORY")
    os.environ["MASKSCORING_KEEP_MEMORY"] = "0"
    try:
        return machine.peak_mb(lambda: model.detect([image], **options), model.device.type, trim=True)
    finally:
        os.environ.pop("MASKSCORING_KEEP_MEMORY")
        if before is not None:
            os.environ["MASKSCORING_KEEP_MEMORY"] = before


def measure(name: str, model: MaskRCNN, dtype: str, image: np.ndarray, seconds: float, peak: float) -> dict[str, Any]:
    """All figures of one model in one dtype."""

    def run() -> list[dict[str, Any]]:
        return model.detect([image], dtype=dtype)

    device = model.device.type
    found = len(run()[0]["scores"])
    calls = 2 if seconds < 1 else 5
    convolution = convolution_ms(run, device, calls)
    row = {
        "name": name,
        "dtype": dtype,
        "ms": machine.median_ms(run, device, seconds),
        "detections": found,
        "gflop": count_gflop(run),
        "convolution_ms": convolution,
        "peak_gflop_per_s": peak,
        "stages_ms": stages_ms(model, run, calls),
    }
    row["convolution_gflop_per_s"] = row["gflop"] / convolution * 1e3
    row["share_of_peak"] = row["convolution_gflop_per_s"] / peak
    return row


############################################################
#  Command line
############################################################


def format_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    speedup = f"{row['speedup']:.2f} x" if row.get("speedup") else "-"
    memory = f"{row['peak_mb']:.0f}" if row["peak_mb"] is not None else "-"
    return (
        f"{row['name']:24} {row['dtype']:9} {row['ms']:9.1f} {speedup:>8} {row['gflop']:8.1f} "
        f"{row['convolution_gflop_per_s']:9.0f} {100 * row['share_of_peak']:6.0f} % {memory:>8}"
    )


def main() -> None:
    """Measure, print the table and the JSON line."""
    quick = "Mask Scoring R-CNN only, a short side of 320 pixels, few calls"
    parser = machine.make_parser("bench_detect.py", __doc__, quick, device=True, threads=True)
    parser.add_argument("--seconds", type=float, default=15.0, help="time to measure for each figure; default: 15")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, seconds = arguments.device, 0.1 if arguments.quick else arguments.seconds
    facts = {**machine.describe(device), "quick": arguments.quick, "cases": []}
    image = photograph()
    other, theirs = None, None
    if torchvision is not None and not arguments.quick:
        network = torchvision_model(device)
        theirs = partial(torchvision_detect, network, image, device)
        other = {"version": torchvision.__version__, "ms": machine.median_ms(theirs, device, seconds)}
    names = {"Mask R-CNN R-50": "torchvision", "MS R-CNN R-50": "benchmark"}
    settings = {"IMAGE_MIN_DIM": 320} if arguments.quick else {}
    models = {name: our_model(weights, device, **settings) for name, weights in list(names.items())[arguments.quick :]}
    # Where bfloat16 is computed in float32, it has no peak of its own.
    dtypes = [dtype for dtype, numbers in DTYPES.items() if not widens(torch.device(device).type, numbers)]
    memory = {(name, dtype): peak_mb(model, image, dtype=dtype) for name, model in models.items() for dtype in dtypes}
    facts["large_photograph_mb"] = None if arguments.quick else large_photograph_mb(models["MS R-CNN R-50"])
    facts["keeps_memory"] = device == "cpu" and runtime.keep_memory()
    if other is not None:
        other["ms_keeping_memory"] = machine.median_ms(theirs, device, seconds)
    facts["torchvision"] = other
    peaks = {dtype: peak_gflops(device, DTYPES[dtype], seconds / 5) for dtype in dtypes}
    print(f"{'':24} {'':9} {'ms':>9} {'':>8} {'GFLOP':>8} {'GFLOP/s':>9} {'of peak':>8} {'peak MB':>8}")
    for name, model in models.items():
        for dtype in dtypes:
            with model.prepared(dtype):
                row = measure(name, model, dtype, image, seconds, peaks[dtype])
            row["peak_mb"] = memory[name, dtype]
            row["overlapping_float32"] = overlapping(model.detect([image])[0], model.detect([image], dtype=dtype)[0])
            if other is not None:
                row["speedup"] = other["ms"] / row["ms"]
                row["speedup_keeping_memory"] = other["ms_keeping_memory"] / row["ms"]
            if other is not None and names[name] == "torchvision":
                row["matches_of_torchvision"] = matches(theirs(), model.detect([image], dtype=dtype)[0])
            facts["cases"].append(row)
            print(format_row(row))
            print("    " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in row["stages_ms"].items()))
    if other is not None:
        print(
            f"torchvision {other['version']}: {other['ms']:.1f} ms; keeping memory {other['ms_keeping_memory']:.1f} ms"
        )
    if facts["large_photograph_mb"]:
        print(f"4000 x 3000 pixels, peak MB: {facts['large_photograph_mb']}")
    machine.finish(facts, arguments.output)


if __name__ == "__main__":
    main()

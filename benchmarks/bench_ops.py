"""The operators against their reference, and against torchvision where it can be imported.

    python benchmarks/bench_ops.py [--threads N] [--device cpu|cuda] [--quick] [--output FILE]

All run in one process with the same threads and the same inputs, and their results are compared before they are
timed. Times are medians after warm-up, the allocation of the result included. GB/s counts what has to move: every
feature map read once and the result written once (backward the other way round). Peak MB is the memory that a
call takes beyond its inputs, its result included (less where the allocator hands out memory that it already held).
The last line printed is JSON.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import torch
from torch import Tensor

import nms
import roialign
from benchmarks import machine

try:
    import torchvision
    from torchvision import ops as torchvision_ops
except ImportError:
    torchvision = torchvision_ops = None

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
WIDTH, HEIGHT = 1216, 800  # of the image, in pixels


@dataclass
class Case:
    """One operator on one input, as several implementations compute it."""

    name: str
    ours: Callable[[], object]
    reference: Callable[[], object]
    torchvision: Callable[[], object] | None  # None: it has no such operator
    target: float | None = None  # times as fast as torchvision, on 2 CPU threads
    moved_bytes: int | None = None  # None: bound by arithmetic


@dataclass
class Row:
    name: str
    ours_ms: float
    reference_ms: float | None  # None: on a GPU, where it would take minutes
    torchvision_ms: float | None
    speedup: float | None
    target: float | None
    gb_per_s: float | None
    peak_mb: float | None  # beyond the inputs, the result included
    result_mb: float


############################################################
#  Inputs
############################################################


def random_boxes(n: int, generator: torch.Generator) -> Tensor:
    """Boxes (y1, x1, y2, x2) of 12 to 400 pixels a side, sides log-uniform, clipped to the image."""
    size = torch.tensor([HEIGHT, WIDTH])
    centre = torch.rand(n, 2, generator=generator) * size
    half = torch.exp(torch.rand(n, 2, generator=generator) * 3.5 + 2.5) / 2
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, size)], dim=1)


def fpn_level(boxes: Tensor) -> Tensor:
    """torchvision's rule: 0 to 3 for P2 to P5."""
    side = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    return (torch.floor(4 + torch.log2(side / 224) + 1e-6).clamp(2, 5) - 2).long()


def xyxy(boxes: Tensor) -> Tensor:
    return boxes[:, [1, 0, 3, 2]].contiguous()


############################################################
#  Cases
############################################################


def roi_cases(device: str, shrink: int) -> Iterator[Case]:
    """Pooling of 1000 box RoIs and 100 mask RoIs from the feature maps of an 800 x 1216 image."""
    generator = torch.Generator().manual_seed(0)
    count, channels = 1000 // shrink, 256 // shrink
    boxes = random_boxes(count, generator)
    shapes = [(1, channels, HEIGHT // 4 >> level, WIDTH // 4 >> level) for level in range(4)]
    last = torch.channels_last
    maps = [torch.randn(shape, generator=generator).to(device, memory_format=last) for shape in shapes]
    levels, rois = fpn_level(boxes).to(device), boxes.to(device)
    case = AlignCase(maps[0], rois)
    few = AlignCase(maps[0], rois[: count // 10])
    yield case.forward(f"roi_align forward, {count} RoIs, 7x7, 2 samples", 7, 2, False, target=15)
    yield case.backward("roi_align backward of the same", 7, 2, False, target=10)
    yield few.forward(f"roi_align forward, {count // 10} mask RoIs, 14x14, 2 samples", 14, 2, False, target=10)
    yield pyramid_case(f"pyramid_roi_align, {count} RoIs, P2..P5, 7x7, 2 samples", maps, rois, levels, 2, False, 15)
    yield pyramid_case("the same, adaptive samples, aligned", maps, rois, levels, 0, True)
    planar = AlignCase(maps[0].contiguous(), rois)
    yield planar.forward("roi_align forward, contiguous, not channels_last", 7, 2, False)
    half = AlignCase(maps[0].bfloat16(), rois)
    yield half.forward("roi_align forward, bfloat16", 7, 2, False)
    yield crop_case(f"crop_and_resize forward, {count} boxes, 7x7", maps[0], rois)


@dataclass
class AlignCase:
    """roi_align from one feature map at 1/4 scale."""

    features: Tensor
    rois: Tensor

    def __post_init__(self):
        self.index = torch.zeros(len(self.rois), dtype=torch.int64, device=self.rois.device)
        image = self.index[:, None].to(self.rois.dtype)
        self.peer_rois = torch.cat([image, xyxy(self.rois)], dim=1).to(self.features.dtype)

    def ours(self, features: Tensor, size: int, ratio: int, aligned: bool) -> Tensor:
        return roialign.roi_align(features, self.rois, self.index, size, SCALES[0], ratio, aligned)

    def reference(self, features: Tensor, size: int, ratio: int, aligned: bool) -> Tensor:
        return roialign.reference.pyramid_roi_align(
            [features], self.rois, self.index, None, (size, size), [SCALES[0]], ratio, aligned
        )

    def torchvision(self, features: Tensor, size: int, ratio: int, aligned: bool) -> Tensor:
        return torchvision_ops.roi_align(features, self.peer_rois, size, SCALES[0], ratio, aligned)

    def moved_bytes(self, size: int) -> int:
        pooled = len(self.rois) * self.features.shape[1] * size**2
        return (self.features.numel() + pooled) * self.features.element_size()

    def forward(self, name: str, size: int, ratio: int, aligned: bool, target: float | None = None) -> Case:
        rule = (size, ratio, aligned)
        peer = self.torchvision if torchvision and self.features.dtype == torch.float32 else None
        return Case(
            name,
            lambda: self.ours(self.features, *rule),
            lambda: self.reference(self.features, *rule),
            peer and (lambda: peer(self.features, *rule)),
            target,
            self.moved_bytes(size),
        )

    def backward(self, name: str, size: int, ratio: int, aligned: bool, target: float | None = None) -> Case:
        rule = (size, ratio, aligned)
        features = self.features.clone().requires_grad_()
        shape = (len(self.rois), self.features.shape[1], size, size)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.features.device)
        grad = grad.contiguous(memory_format=torch.channels_last)

        def gradient_of(pool: Callable) -> Callable[[], Tensor]:
            pooled = pool(features, *rule)
            return lambda: torch.autograd.grad(pooled, features, grad, retain_graph=True)[0]

        def reference() -> Tensor:
            spread = torch.zeros_like(features)
            pooling = (self.rois, self.index, None, [SCALES[0]], ratio, aligned)
            roialign.reference.pyramid_roi_align_backward(grad, [spread], *pooling)
            return spread

        peer = gradient_of(self.torchvision) if torchvision else None
        return Case(name, gradient_of(self.ours), reference, peer, target, self.moved_bytes(size))


def torchvision_pyramid(maps: list[Tensor], rois: Tensor, levels: Tensor, ratio: int, aligned: bool) -> Tensor:
    """MultiScaleRoIAlign; it is never aligned, so that an aligned one is put together from roi_align a level."""
    if not aligned:
        pool = torchvision_ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, ratio)
        return pool({str(i): fmap for i, fmap in enumerate(maps)}, [xyxy(rois)], [(HEIGHT, WIDTH)])
    pooled = rois.new_empty(len(rois), maps[0].shape[1], 7, 7)
    for level, (fmap, scale) in enumerate(zip(maps, SCALES, strict=True)):
        rows = levels == level
        peer_rois = torch.cat([rois.new_zeros(int(rows.sum()), 1), xyxy(rois[rows])], dim=1)
        pooled[rows] = torchvision_ops.roi_align(fmap, peer_rois, 7, scale, ratio, aligned)
    return pooled


def pyramid_case(
    name: str, maps: list[Tensor], rois: Tensor, levels: Tensor, ratio: int, aligned: bool, target: float | None = None
) -> Case:
    index = torch.zeros_like(levels)
    rule = (levels, (7, 7), SCALES, ratio, aligned)
    peer = partial(torchvision_pyramid, maps, rois, levels, ratio, aligned) if torchvision else None
    pooled = len(rois) * maps[0].shape[1] * 49
    return Case(
        name,
        lambda: roialign.pyramid_roi_align(maps, rois, index, *rule),
        lambda: roialign.reference.pyramid_roi_align(maps, rois, index, *rule),
        peer,
        target,
        4 * (sum(fmap.numel() for fmap in maps) + pooled),
    )


def crop_case(name: str, image: Tensor, rois: Tensor) -> Case:
    index = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    boxes = rois / torch.tensor([HEIGHT, WIDTH, HEIGHT, WIDTH], device=rois.device)
    return Case(
        name,
        lambda: roialign.crop_and_resize(image, boxes, index, 7),
        lambda: roialign.reference.crop_and_resize(image, boxes, index, (7, 7), 0.0),
        None,
        moved_bytes=4 * (image.numel() + len(rois) * image.shape[1] * 49),
    )


def nms_cases(device: str, shrink: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for n, level_count, target in ((6000 // shrink, 1, 30), (5000 // shrink, 5, 10)):
        boxes = random_boxes(n, generator).to(device)
        scores = torch.randperm(n, generator=generator).to(device, torch.float32)  # no ties: torchvision breaks them
        levels = torch.arange(n, device=device) * level_count // n
        groups = None if level_count == 1 else levels
        name = f"nms, {n} boxes" if groups is None else f"batched_nms, {level_count} levels x {n // level_count} boxes"
        yield nms_case(f"{name}, IoU 0.7", boxes, scores, groups, target)


def nms_case(name: str, boxes: Tensor, scores: Tensor, groups: Tensor | None, target: float) -> Case:
    peer, peer_boxes = None, xyxy(boxes)
    if torchvision and groups is None:
        peer = partial(torchvision_ops.nms, peer_boxes, scores, 0.7)
    elif torchvision:
        peer = partial(torchvision_ops.batched_nms, peer_boxes, scores, groups, 0.7)
    return Case(
        name,
        lambda: nms.batched_nms(boxes, scores, groups, 0.7),
        lambda: nms.reference.batched_nms(boxes, scores, groups, 0.7, None),
        peer,
        target,
    )


############################################################
#  Measuring
############################################################


def check(case: Case) -> None:
    """Raises AssertionError if the implementations do not agree."""
    ours = case.ours()
    tolerance = {"rtol": 1e-2 if ours.dtype == torch.bfloat16 else 1e-4, "atol": 1e-3, "check_device": False}
    torch.testing.assert_close(ours, case.reference(), **tolerance)
    if case.torchvision is None:
        return
    peer = case.torchvision()
    if ours.dtype == torch.int64:  # boxes that are kept; torchvision on CUDA rounds otherwise, near the threshold
        shared = len(set(ours.tolist()) & set(peer.tolist()))
        assert shared >= 0.99 * max(len(ours), len(peer)), (
            f"torchvision keeps {len(peer)} boxes, we keep {len(ours)}; {shared} in both"
        )
    else:
        torch.testing.assert_close(ours, peer, **tolerance)


def cases_on(device: str, shrink: int) -> Iterator[Case]:
    """All cases. On a GPU, the kernels of the CPU are the reference, on the same numbers."""
    for cases in (roi_cases, nms_cases):
        if device == "cpu":
            yield from cases(device, shrink)
            continue
        for case, on_cpu in zip(cases(device, shrink), cases("cpu", shrink), strict=True):
            yield replace(case, reference=on_cpu.ours)


def measure(case: Case, device: str, seconds: float) -> Row:
    check(case)
    ours = machine.median_ms(case.ours, device, seconds, warm_up=10)
    reference = machine.median_ms(case.reference, device, 0.0, warm_up=0) if device == "cpu" else None
    peer = machine.median_ms(case.torchvision, device, seconds) if case.torchvision else None
    speedup = peer / ours if peer else None
    rate = case.moved_bytes / ours / 1e6 if case.moved_bytes else None
    result = case.ours()
    result_mb = result.numel() * result.element_size() / 1e6
    del result
    peak_mb = machine.peak_mb(case.ours, device)
    return Row(case.name, ours, reference, peer, speedup, case.target, rate, peak_mb, result_mb)


def format_row(row: Row) -> str:
    def cell(value: float | None, digits: int, unit: str = "") -> str:
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    cells = [
        cell(row.ours_ms, 2), cell(row.reference_ms, 1), cell(row.torchvision_ms, 1),
        cell(row.speedup, 1, "x"), cell(row.target, 0, "x"), cell(row.gb_per_s, 1),
        cell(row.peak_mb, 1), cell(row.result_mb, 1),
    ]  # fmt: skip
    return f"{row.name:<54}" + "".join(f"{text:>11}" for text in cells)


def main() -> None:
    """Measure, print the table and the JSON line."""
    quick = "an eighth of the RoIs and channels, and rough figures"
    arguments = machine.make_parser("bench_ops.py", __doc__, quick, device=True, threads=True).parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine.describe(arguments.device)
    facts["torchvision"] = torchvision.__version__ if torchvision else None
    print("\n".join(f"{name}: {value}" for name, value in facts.items() if name != "kernels"))
    print("\n".join(facts["kernels"]) + "\n")
    shrink, seconds = (8, 0.1) if arguments.quick else (1, 2.0)
    headings = ("ours ms", "reference", "tvision", "speedup", "target", "GB/s", "peak MB", "result MB")
    print(f"{'':<54}" + "".join(f"{heading:>11}" for heading in headings))
    rows = []
    for case in cases_on(arguments.device, shrink):
        rows.append(measure(case, arguments.device, seconds))
        print(format_row(rows[-1]), flush=True)
    if torchvision is None:
        print("\ntorchvision is not installed here, so nothing is compared with it; docs/speed.md says how to get it.")
    cases = [asdict(row) for row in rows]
    machine.finish({"benchmark": "ops", "quick": arguments.quick, **facts, "cases": cases}, arguments.output)


if __name__ == "__main__":
    main()

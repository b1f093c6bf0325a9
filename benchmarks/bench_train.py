"""A training step from a batch to changed weights, by stage, against torchvision where it can be imported.

    python benchmarks/bench_train.py [--threads N] [--device cpu|cuda] [--steps N] [--rounds N] [--dialect NAME]
        [--quick] [--output FILE]

Two images of 800 x 1088 with 8 objects each, ResNet-50, stem and first stage frozen, 91 classes, the same weights
(golden_weights.py), SGD with a learning rate of 0. Both models compute their RPN's proposals, and then are handed the
same 504 RoIs an image instead, which with the 8 objects' own boxes make 128 positive and 384 negative ones.
torchvision's transform normalises and batches, without resizing; our mold_batch does the same.

Every case runs in a process of its own, so that none is helped by memory that another freed, and the cases take turns,
--rounds times. The C library is as it is by default; "keeping memory" is with runtime.keep_memory.
ms is the median of all steps. Stages are means of further steps: inside the forward they are what is listed behind it,
backward and optimiser are not split. Peak MB is what a process takes beyond its imports: weights, gradients, momentum,
batch and all else; on CUDA, what torch allocated. Saved MB is what the graph keeps for the backward pass, each storage
once, parameters not. "400 objects" has as many an image, and RoIs of its own RPN; its share of targets is the time
of matching, sampling, masks and MaskIoU targets. The last line printed is JSON.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import golden_weights
import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

import model
import native
import runtime
import utils
from benchmarks import machine
from config import Config
from data.samples import Sample, Targets, collate
from roialign import MaskCrops
from training.optimizer import make_optimizer
from weights.load import load_checkpoint

try:
    import torchvision
except ImportError:
    torchvision = None

CLASSES = 91
IMAGES = 2
OBJECTS, MANY_OBJECTS = 8, 400


class Size(NamedTuple):
    """Of an image, in pixels, and how many RoIs it has, a quarter of them positive."""

    height: int = 800
    width: int = 1088
    rois: int = 512


QUICK = Size(128, 192, 48)


class Case(NamedTuple):
    """What one process measures."""

    name: str
    library: str = "ours"
    dtype: str = "float32"
    maskiou: bool = False
    keeps_memory: bool = False
    objects: int = OBJECTS


THEIRS = Case("torchvision", "torchvision")
THEIRS_KEEPING = Case("torchvision, keeping memory", "torchvision", keeps_memory=True)
OURS = [
    Case("Mask R-CNN"),
    Case("Mask R-CNN", dtype="bfloat16"),
    Case("MS R-CNN", maskiou=True),
    Case("MS R-CNN", dtype="bfloat16", maskiou=True),
]
KEEPING = Case("Mask R-CNN, keeping memory", keeps_memory=True)
MANY = Case("MS R-CNN, 400 objects", maskiou=True, objects=MANY_OBJECTS)

# Of each stage of the forward pass, what computes it: attributes of the model, or functions of the module `model`.
OUR_STAGES = {
    "backbone": ["backbone"],
    "fpn": ["fpn"],
    "rpn": ["rpn"],
    "proposals": ["_proposals"],
    "targets": [
        *("match_anchors", "sample_anchors", "sample_rois"),
        *("build_mask_targets", "inside_fractions", "build_maskiou_targets"),
    ],
    "roi features": ["pool_rois"],
    "heads": ["box_head", "mask_head", "maskiou_head"],
}
THEIR_STAGES = {
    "backbone": ["backbone.body"],
    "fpn": ["backbone.fpn"],
    "rpn": ["rpn.head"],
    "proposals": ["rpn.filter_proposals"],
    "targets": ["rpn.assign_targets_to_anchors", "roi_heads.select_training_samples", "project_masks_on_boxes"],
    "roi features": ["roi_heads.box_roi_pool", "roi_heads.mask_roi_pool"],
    "heads": ["roi_heads.box_head", "roi_heads.box_predictor", "roi_heads.mask_head", "roi_heads.mask_predictor"],
}


############################################################
#  Images, objects and RoIs
############################################################


class Scene(NamedTuple):
    """An image with its objects, and RoIs of which a known number is positive."""

    image: np.ndarray  # [h, w, 3] uint8
    boxes: Tensor  # float32 [G, 4], whole pixels
    class_ids: Tensor  # int64 [G]
    crops: list[Tensor]  # G masks within their boxes, uint8
    rois: Tensor  # float32 [R, 4]


def make_scene(seed: int, size: Size, objects: int) -> Scene:
    """scikit-image's coffee with ellipses as objects, of all sizes and places; no RoIs if objects are too many."""
    random = np.random.default_rng(seed)
    height, width, count = size
    image = np.array(Image.fromarray(skimage.data.coffee()).resize((width, height), Image.Resampling.BICUBIC))
    boxes = _random_boxes(random, objects, height, width, 32).round()
    crops = [_ellipse(*(int(side) for side in box[2:] - box[:2])) for box in boxes]
    class_ids = torch.from_numpy(random.integers(1, CLASSES, objects))
    rois = make_rois(random, boxes, size) if objects < count // 4 else torch.zeros(0, 4)
    return Scene(image, boxes, class_ids, crops, rois)


def make_rois(random: np.random.Generator, boxes: Tensor, size: Size) -> Tensor:
    """With the boxes [G, 4] of the objects themselves, as many that overlap one, and that do not, as Size says."""
    height, width, count = size
    positives = count // 4
    near = boxes[torch.from_numpy(random.integers(0, len(boxes), 8 * positives))]
    sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + sides * torch.from_numpy(random.uniform(-0.15, 0.15, near.shape)).float()
    near = near.clamp(min=0).minimum(torch.tensor([height, width, height, width]))
    far = _random_boxes(random, 8 * count, height, width, 16)
    near = near[utils.compute_overlaps(near, boxes).amax(dim=1) > 0.55][: positives - len(boxes)]
    far = far[utils.compute_overlaps(far, boxes).amax(dim=1) < 0.45][: count - positives]
    return torch.cat([near, far])


def _random_boxes(random: np.random.Generator, count: int, height: int, width: int, smallest: float) -> Tensor:
    """float32 [count, 4] inside of the image. Sides: smallest to half of its height, even in their logarithm."""
    sides = np.exp(random.uniform(math.log(smallest), math.log(height / 2), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (np.array([height, width]) - sides)
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()


def _ellipse(height: int, width: int) -> Tensor:
    y = (torch.arange(height)[:, None] + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return (y**2 + x**2 <= 0.25).to(torch.uint8)


############################################################
#  The two libraries
############################################################


def trained_weights() -> dict[str, Tensor]:
    """torchvision's Mask R-CNN R-50 of golden_weights.py, named as ours."""
    with tempfile.TemporaryDirectory() as folder:
        return load_checkpoint(golden_weights.write_checkpoint("p3_v1", folder))["model"]


class Ours:
    """Our training step, by its parts."""

    def __init__(self, case: Case, scenes: Sequence[Scene], rois: int, device: str, dialect: str) -> None:
        config = Config(
            DIALECT=dialect,
            BACKBONE="resnet50",
            NUM_CLASSES=CLASSES,
            USE_MASKIOU_HEAD=case.maskiou,
            TRAIN_ROIS_PER_IMAGE=rois,
            TRAIN_DTYPE=case.dtype,
            LEARNING_RATE=0.0,
            FROZEN_STAGES=1,
            TRAIN_BN=False,
        )
        torch.manual_seed(0)
        self.config, self.model = config, model.MaskRCNN(config)
        self.model.load_state_dict(trained_weights(), strict=False)  # random in the MaskIoU head
        self.model.to(device).train()
        self.model.set_trainable("all")
        self.optimizer = make_optimizer(self.model, config)
        self.batch = collate([_sample(scene, seed) for seed, scene in enumerate(scenes)])
        self.device = torch.device(device)
        if all(len(scene.rois) for scene in scenes):
            rois = torch.cat([scene.rois for scene in scenes]).to(device)
            index = torch.arange(len(scenes), device=device).repeat_interleave(len(rois) // len(scenes))
            sample_rois = model.sample_rois
            model.sample_rois = lambda _rois, _index, targets, config: sample_rois(rois, index, targets, config)

    def prepare(self) -> tuple:
        return model.mold_batch(self.batch, self.device, self.config)

    def forward(self, images: model.Images, targets: model.Targets) -> dict[str, Tensor]:
        return self.model(images, targets)

    def stages(self) -> list[tuple[Any, str, str]]:
        """(owner, attribute, stage) of what is to be timed."""
        found = []
        for stage, names in OUR_STAGES.items():
            for name in names:
                owner = self.model if hasattr(self.model, name) else model
                if getattr(owner, name) is not None:
                    found.append((owner, name, stage))
        return found


def _sample(scene: Scene, seed: int) -> Sample:
    height, width = scene.image.shape[:2]
    sizes = torch.tensor([crop.shape for crop in scene.crops])
    areas = sizes.prod(dim=1)
    masks = MaskCrops(
        pixels=torch.cat([crop.flatten() for crop in scene.crops]),
        offsets=areas.cumsum(0) - areas,
        sizes=sizes,
        origins=scene.boxes[:, :2].long(),
        canvases=torch.tensor([[height, width]]).expand(len(sizes), 2),
    )
    targets = Targets(
        boxes=scene.boxes,
        class_ids=scene.class_ids,
        batch_index=torch.zeros(len(scene.boxes), dtype=torch.int64),
        masks=masks,
        crowd_boxes=torch.zeros(0, 4),
        crowd_index=torch.zeros(0, dtype=torch.int64),
        seeds=torch.tensor([seed]),
    )
    return Sample(torch.from_numpy(scene.image), (0, 0, height, width), (height, width), (height, width), targets, seed)


class Torchvision:
    """torchvision's training step, by the same parts."""

    def __init__(self, case: Case, scenes: Sequence[Scene], device: str) -> None:
        network = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):  # frozen, as it is when training starts from weights
                    setattr(parent, name, torchvision.ops.misc.FrozenBatchNorm2d(child.num_features, eps=0.0))
        network.load_state_dict(golden_weights.peer_state_dict("p3_v1"))
        for part in (network.backbone.body.conv1, network.backbone.body.layer1):  # trainable_backbone_layers=3
            part.requires_grad_(False)
        network.transform._skip_resize = True
        self.model = network.to(device).train()
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=0.0, momentum=0.9, weight_decay=1e-4)
        self.device, self.dtype = torch.device(device), case.dtype
        self.images = [torch.from_numpy(scene.image).permute(2, 0, 1).float().div(255) for scene in scenes]
        self.targets = [_torchvision_target(scene) for scene in scenes]
        rois = [scene.rois[:, [1, 0, 3, 2]].to(device) for scene in scenes]
        select = network.roi_heads.select_training_samples
        network.roi_heads.select_training_samples = lambda _proposals, targets: select(list(rois), targets)

    def prepare(self) -> tuple:
        images = [image.to(self.device) for image in self.images]
        targets = [{name: tensor.to(self.device) for name, tensor in target.items()} for target in self.targets]
        return images, targets

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        bfloat16 = self.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            return self.model(images, targets)

    def stages(self) -> list[tuple[Any, str, str]]:
        """(owner, attribute, stage) of what is to be timed."""
        found = [(self.model, "transform", "prepare")]
        for stage, names in THEIR_STAGES.items():
            for name in names:
                *path, name = name.split(".")
                owner = self.model.get_submodule(".".join(path)) if path else torchvision.models.detection.roi_heads
                found.append((owner, name, stage))
        return found


def _torchvision_target(scene: Scene) -> dict[str, Tensor]:
    masks = torch.zeros(len(scene.crops), *scene.image.shape[:2], dtype=torch.uint8)
    for mask, crop, (y1, x1, y2, x2) in zip(masks, scene.crops, scene.boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = crop
    return {"boxes": scene.boxes[:, [1, 0, 3, 2]], "labels": scene.class_ids, "masks": masks}


############################################################
#  How a process measures one case
############################################################


def step(subject: Ours | Torchvision, clock: Callable[[], float]) -> tuple[dict[str, float], dict[str, float]]:
    """One training step. Returns: the losses, and the seconds of its parts."""
    times = [clock()]
    prepared = subject.prepare()
    times.append(clock())
    losses = subject.forward(*prepared)
    times.append(clock())
    sum(losses.values()).backward()
    times.append(clock())
    subject.optimizer.step()
    subject.optimizer.zero_grad()
    times.append(clock())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    names = ("prepare", "forward", "backward", "optimiser")
    return {name: loss.item() for name, loss in losses.items()}, dict(zip(names, seconds, strict=True))


def stage_seconds(subject: Ours | Torchvision, clock: Callable[[], float], steps: int) -> dict[str, float]:
    """Seconds a step of its parts and of those of the forward pass; the latter add up to "forward"."""
    inner: dict[str, float] = {}
    originals = []

    def timed(function: Callable, stage: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = function(*args, **kwargs)
            inner[stage] = inner.get(stage, 0.0) + clock() - start
            return result

        return call

    for owner, name, stage in subject.stages():
        part = getattr(owner, name)
        owner, name = (part, "forward") if isinstance(part, nn.Module) else (owner, name)
        originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, timed(getattr(owner, name), stage))
    outer: dict[str, float] = {}
    for _ in range(steps):
        for name, seconds in step(subject, clock)[1].items():
            outer[name] = outer.get(name, 0.0) + seconds
    for owner, name, original in originals:
        setattr(owner, name, original)
    inner["rest of the forward"] = outer.pop("forward") - sum(inner.values())
    inner["prepare"] = inner.get("prepare", 0.0) + outer.pop("prepare")
    return {name: seconds / steps for name, seconds in {**inner, **outer}.items()}


def saved_megabytes(subject: Ours | Torchvision) -> float:
    """What the graph of a step keeps for the backward pass; storages that several tensors share count once."""
    kept = [*subject.model.parameters(), *subject.model.buffers()]
    skipped = {tensor.untyped_storage().data_ptr() for tensor in kept}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = subject.forward(*subject.prepare())
    return sum(saved.values()) / 1e6 if losses else 0.0  # the graph lives until here: no address serves twice


def run_case(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of a case, in this process."""
    device = arguments.device
    if device == "cpu" and case.keeps_memory:
        runtime.keep_memory()

    def clock() -> float:
        runtime.wait_for(device)
        return time.perf_counter()

    size = QUICK if arguments.quick else Size()
    scenes = [make_scene(seed, size, case.objects) for seed in range(IMAGES)]
    peak = machine.Peak(device)
    if case.library == "torchvision":
        subject = Torchvision(case, scenes, device)
    else:
        subject = Ours(case, scenes, size.rois, device, arguments.dialect)
    peak.restart(trim=True)  # making the model took memory that no step needs
    losses, _ = step(subject, clock)
    times = [sum(step(subject, clock)[1].values()) for _ in range(arguments.steps)]
    row = {"losses": losses, "step_ms": [1e3 * seconds for seconds in times], "peak_mb": peak.megabytes()}
    if not arguments.brief:
        row["stages_ms"] = {name: 1e3 * value for name, value in stage_seconds(subject, clock, arguments.steps).items()}
        row["saved_mb"] = saved_megabytes(subject)
        row["kernels"] = native.status().splitlines()
    return row


############################################################
#  Command line
############################################################


def measure(case: Case, arguments: argparse.Namespace, brief: bool) -> dict[str, Any]:
    """run_case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case), "--device", arguments.device]
    command += ["--steps", str(arguments.steps), "--dialect", arguments.dialect]
    command += ["--threads", str(torch.get_num_threads())]
    command += ["--quick"] * arguments.quick + ["--brief"] * brief
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the process that measures {case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def choose_cases(arguments: argparse.Namespace) -> list[Case]:
    """What is measured, in the order in which it takes turns."""
    if arguments.quick:
        return OURS[2:3]
    is_cpu = arguments.device == "cpu"
    theirs = []
    if torchvision is not None:
        theirs = [THEIRS, THEIRS_KEEPING] if is_cpu else [THEIRS, THEIRS._replace(dtype="bfloat16")]
    return [*theirs, *OURS, MANY, *([KEEPING] if is_cpu else [])]


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to each row how it compares with torchvision, if that was measured."""
    theirs = {(row["name"], row["dtype"]): row for row in rows if row["library"] == "torchvision"}
    for row in rows:
        row["images_per_s"] = 1e3 * IMAGES / row["ms"]
        row["targets_share"] = row["stages_ms"].get("targets", 0.0) / sum(row["stages_ms"].values())
        for (name, dtype), other in theirs.items():
            suffix = ("_keeping_memory" if name != THEIRS.name else "") + ("_bfloat16" if dtype != "float32" else "")
            row[f"speedup{suffix}"] = other["ms"] / row["ms"]
            if row["peak_mb"] and other["peak_mb"]:
                row[f"memory_share{suffix}"] = row["peak_mb"] / other["peak_mb"]


def format_row(row: dict[str, Any]) -> str:
    """One line of the table, and one of its stages."""
    speedup = f"{row['speedup']:.2f} x" if row.get("speedup") else "-"
    memory = f"{row['peak_mb']:.0f}" if row["peak_mb"] is not None else "-"
    share = f"{100 * row['memory_share']:.0f} %" if row.get("memory_share") else "-"
    return (
        f"{row['name']:27} {row['dtype']:9} {row['ms']:9.1f} {row['images_per_s']:9.3f} {speedup:>8} {memory:>8} "
        f"{share:>7} {row['saved_mb']:9.0f} {100 * row['targets_share']:6.1f} %\n"
        "    " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in row["stages_ms"].items())
    )


def parse() -> argparse.Namespace:
    quick = "Mask Scoring R-CNN in float32 only, small images, one step"
    parser = machine.make_parser("bench_train.py", __doc__, quick, device=True, threads=True)
    parser.add_argument("--steps", type=int, default=3, help="steps to measure in each process; default: 3")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each case; default: 3")
    parser.add_argument(
        "--dialect",
        default="mmdet",
        help="dialect of this project's model; torchvision has the formulas of torchvision's model; default: mmdet",
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # in a process that measures
    parser.add_argument("--brief", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = arguments.rounds = 1
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def main() -> None:
    """Measure, print the table and the JSON line."""
    arguments = parse()
    if arguments.case:
        print(json.dumps(run_case(Case(*arguments.case), arguments)))
        return
    cases = choose_cases(arguments)
    measured: list[list[dict[str, Any]]] = [[] for _ in cases]
    for turn in range(arguments.rounds):
        for case, rows in zip(cases, measured, strict=True):
            rows.append(measure(case, arguments, brief=turn > 0))
            times = ", ".join(f"{ms:.0f}" for ms in rows[-1]["step_ms"])
            print(f"{case.name}, {case.dtype}: {times} ms", file=sys.stderr)
    results = []
    for case, rows in zip(cases, measured, strict=True):
        times = [ms for row in rows for ms in row["step_ms"]]
        peaks = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
        peak = statistics.median(peaks) if peaks else None
        results.append({**case._asdict(), **rows[0], "step_ms": times, "ms": statistics.median(times), "peak_mb": peak})
    compare(results)
    facts = {**machine.describe(arguments.device), "quick": arguments.quick, "dialect": arguments.dialect}
    facts["torchvision"] = None if torchvision is None else torchvision.__version__
    facts["cases"] = results
    print(f"{'':27} {'':9} {'ms':>9} {'images/s':>9} {'':>8} {'peak MB':>8} {'':>7} {'saved MB':>9} {'targets':>8}")
    for row in results:
        print(format_row(row))
    machine.finish(facts, arguments.output)


if __name__ == "__main__":
    main()

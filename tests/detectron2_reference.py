"""What Detectron2 computes, written once more from its rules, in torch and NumPy alone: test_detectron2.py compares.

It works on tensors under Detectron2's own names, in its conventions (x1, y1, x2, y2; background last; BGR images), one
image at a time, with a loop where the network has a kernel. Nothing of this project is imported.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@dataclass(frozen=True)
class Source:
    """A configuration of Detectron2, in narrow."""

    depth: int = 50
    stem: int = 8  # STEM_OUT_CHANNELS; the other channels of the backbone are in proportion
    groups: int = 1  # NUM_GROUPS
    group_width: int = 8  # WIDTH_PER_GROUP
    norm: str = "FrozenBN"  # of the backbone; "old": FrozenBN without statistics
    norm_elsewhere: str = ""  # of the pyramid and the heads
    stride_in_1x1: bool = True
    pyramid: int = 16
    rpn_convs: int = 1
    box_convs: int = 0
    box_channels: int = 16  # CONV_DIM
    box_fcs: int = 2
    fc_width: int = 32
    mask_convs: int = 4
    mask_channels: int = 16
    classes: int = 5
    agnostic: bool = False
    pooler: int = 7
    mean: tuple[float, ...] = (103.53, 116.28, 123.675)  # in the order of input_format
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    input_format: str = "BGR"
    sizes: tuple[float, ...] = (16, 32, 64, 128, 256)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    min_size: int = 96
    max_size: int = 160
    threshold: float = 0.05


############################################################
#  Names and shapes
############################################################


def keys(source: Source) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint, without constants."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int, norm: str) -> None:
        found[f"{name}.weight"] = (out, into, kernel, kernel)
        if not norm:
            found[f"{name}.bias"] = (out,)
        leaves = ("weight", "bias") if norm in ("GN", "old") else ("weight", "bias", "running_mean", "running_var")
        found.update({f"{name}.norm.{leaf}": (out,) for leaf in leaves if norm})
        if norm in ("BN", "SyncBN"):
            found[f"{name}.norm.num_batches_tracked"] = ()

    conv("backbone.bottom_up.stem.conv1", source.stem, 3, 7, source.norm)
    is_basic, into, channels_of_stage = source.depth < 50, source.stem, []
    for stage, count in enumerate(BLOCKS[source.depth]):
        width = (source.stem if is_basic else source.groups * source.group_width) << stage
        out = width if is_basic else (4 * source.stem) << stage
        for block in range(count):
            prefix = f"backbone.bottom_up.res{stage + 2}.{block}."
            if into != out:
                conv(f"{prefix}shortcut", out, into, 1, source.norm)
            if is_basic:
                conv(f"{prefix}conv1", out, into, 3, source.norm)
                conv(f"{prefix}conv2", out, out, 3, source.norm)
            else:
                conv(f"{prefix}conv1", width, into, 1, source.norm)
                conv(f"{prefix}conv2", width, width // source.groups, 3, source.norm)
                conv(f"{prefix}conv3", out, width, 1, source.norm)
            into = out
        channels_of_stage.append(out)
    other, pyramid = source.norm_elsewhere, source.pyramid
    for level, count in enumerate(channels_of_stage, start=2):
        conv(f"backbone.fpn_lateral{level}", pyramid, count, 1, other)
        conv(f"backbone.fpn_output{level}", pyramid, pyramid, 3, other)
    rpn, anchors = "proposal_generator.rpn_head.", len(source.ratios)
    for index in range(source.rpn_convs):
        conv(f"{rpn}conv.conv{index}" if source.rpn_convs > 1 else f"{rpn}conv", pyramid, pyramid, 3, "")
    conv(f"{rpn}objectness_logits", anchors, pyramid, 1, "")
    conv(f"{rpn}anchor_deltas", 4 * anchors, pyramid, 1, "")
    into = pyramid
    for index in range(source.box_convs):
        conv(f"roi_heads.box_head.conv{index + 1}", source.box_channels, into, 3, other)
        into = source.box_channels
    into *= source.pooler**2
    rows = {f"box_head.fc{index + 1}": source.fc_width for index in range(source.box_fcs)}
    rows |= {"box_predictor.cls_score": source.classes + 1}
    rows |= {"box_predictor.bbox_pred": 4 if source.agnostic else 4 * source.classes}
    for name, out in rows.items():
        found[f"roi_heads.{name}.weight"], found[f"roi_heads.{name}.bias"] = (out, into), (out,)
        into = source.fc_width
    into = pyramid
    for index in range(source.mask_convs):
        conv(f"roi_heads.mask_head.mask_fcn{index + 1}", source.mask_channels, into, 3, other)
        into = source.mask_channels
    found["roi_heads.mask_head.deconv.weight"] = (into, into, 2, 2)
    found["roi_heads.mask_head.deconv.bias"] = (into,)
    conv("roi_heads.mask_head.predictor", 1 if source.agnostic else source.classes, into, 1, "")
    return found


def constants(source: Source) -> dict[str, Tensor]:
    """What files of the model zoo hold beside the weights."""
    cells = {
        f"proposal_generator.anchor_generator.cell_anchors.{level}": cell_anchors(size, source.ratios)
        for level, size in enumerate(source.sizes)
    }
    pixels = {"pixel_mean": source.mean, "pixel_std": source.std}
    return {**{name: torch.tensor(values).view(-1, 1, 1) for name, values in pixels.items()}, **cells}


def cell_anchors(size: float, ratios: tuple[float, ...]) -> Tensor:
    rows = []
    for ratio in ratios:
        width = math.sqrt(size**2 / ratio)
        height = ratio * width
        rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows)


############################################################
#  Image and features
############################################################


def resized_shape(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(height, width) of the network's image."""
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        factor = longest / max(new_height, new_width)
        new_height, new_width = new_height * factor, new_width * factor
    return int(new_height + 0.5), int(new_width + 0.5)


def network_input(image: np.ndarray, source: Source) -> tuple[Tensor, tuple[int, int]]:
    """An RGB image as [1, 3, H, W], and its size without the padding."""
    height, width = resized_shape(*image.shape[:2], source.min_size, source.max_size)
    ordered = image[..., ::-1] if source.input_format == "BGR" else image
    planes = [Image.fromarray(np.ascontiguousarray(ordered[..., c])).resize((width, height), 2) for c in range(3)]
    pixels = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).float()
    pixels = (pixels - torch.tensor(source.mean).view(3, 1, 1)) / torch.tensor(source.std).view(3, 1, 1)
    return F.pad(pixels, (0, -width % 32, 0, -height % 32))[None], (height, width)


class Network:
    """The layers of a checkpoint, by name."""

    def __init__(self, state: dict[str, Tensor], source: Source) -> None:
        self.state, self.source = state, source

    def conv(self, name: str, x: Tensor, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        x = F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, 1, groups)
        if not norm:
            return x
        scale, shift = self.state[f"{name}.norm.weight"], self.state[f"{name}.norm.bias"]
        if norm == "GN":
            return F.group_norm(x, 32, scale, shift, 1e-5)
        mean = self.state.get(f"{name}.norm.running_mean", torch.zeros(len(scale)))
        variance = self.state.get(f"{name}.norm.running_var", torch.ones(len(scale)))
        return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, 1e-5)

    def features(self, x: Tensor) -> list[Tensor]:
        """P2 to P6."""
        source, prefix = self.source, "backbone.bottom_up."
        x = F.max_pool2d(self.conv(f"{prefix}stem.conv1", x, source.norm, 2).relu(), 3, 2, 1)
        maps = []
        for stage, count in enumerate(BLOCKS[source.depth]):
            for block in range(count):
                name = f"{prefix}res{stage + 2}.{block}."
                x = self.block(name, x, 2 if stage > 0 and block == 0 else 1)
            maps.append(x)
        merged: Tensor | None = None
        pyramid: list[Tensor] = []
        for level in (5, 4, 3, 2):
            lateral = self.conv(f"backbone.fpn_lateral{level}", maps[level - 2], source.norm_elsewhere)
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            pyramid.insert(0, self.conv(f"backbone.fpn_output{level}", merged, source.norm_elsewhere))
        return [*pyramid, F.max_pool2d(pyramid[-1], 1, 2)]

    def block(self, name: str, x: Tensor, stride: int) -> Tensor:
        source, has_shortcut = self.source, f"{name}shortcut.weight" in self.state
        residual = self.conv(f"{name}shortcut", x, source.norm, stride) if has_shortcut else x
        if source.depth < 50:
            x = self.conv(f"{name}conv1", x, source.norm, stride).relu()
            return (self.conv(f"{name}conv2", x, source.norm) + residual).relu()
        first, second = (stride, 1) if source.stride_in_1x1 else (1, stride)
        x = self.conv(f"{name}conv1", x, source.norm, first).relu()
        x = self.conv(f"{name}conv2", x, source.norm, second, source.groups).relu()
        return (self.conv(f"{name}conv3", x, source.norm) + residual).relu()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def box_head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, K + 1] and deltas [R, K or 1, 4]."""
        for index in range(self.source.box_convs):
            x = self.conv(f"roi_heads.box_head.conv{index + 1}", x, self.source.norm_elsewhere).relu()
        x = x.flatten(1)
        for index in range(self.source.box_fcs):
            x = self.linear(f"roi_heads.box_head.fc{index + 1}", x).relu()
        names = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
        logits, deltas = (self.linear(name, x) for name in names)
        return logits, deltas.view(len(x), -1, 4)

    def mask_head(self, x: Tensor, classes: Tensor) -> Tensor:
        """Probabilities [N, 28, 28] of the classes, counted from 0."""
        for index in range(self.source.mask_convs):
            x = self.conv(f"roi_heads.mask_head.mask_fcn{index + 1}", x, self.source.norm_elsewhere).relu()
        name = "roi_heads.mask_head.deconv"
        x = F.conv_transpose2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=2).relu()
        masks = self.conv("roi_heads.mask_head.predictor", x, "").sigmoid()
        return masks[torch.arange(len(x)), torch.zeros_like(classes) if self.source.agnostic else classes]


############################################################
#  Boxes
############################################################


def decode(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes [N, 4] moved by deltas [N, 4]."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    dx, dy, dw, dh = (deltas[:, i] / weights[i] for i in range(4))
    dw, dh = (delta.clamp(max=math.log(1000 / 16)) for delta in (dw, dh))
    x, y, width, height = dx * width + x, dy * height + y, dw.exp() * width, dh.exp() * height
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def is_not_empty(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] > 0) & (boxes[:, 3] - boxes[:, 1] > 0)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    """The boxes that stay, best first; each suppresses those of its group that overlap it by more."""
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    x1, y1, x2, y2 = boxes.double().numpy().T
    area, group, kept = (x2 - x1) * (y2 - y1), groups.numpy(), []
    alive = np.ones(len(boxes), bool)
    for i in order:
        if not alive[i]:
            continue
        kept.append(i)
        width = (np.minimum(x2, x2[i]) - np.maximum(x1, x1[i])).clip(0)
        inter = width * (np.minimum(y2, y2[i]) - np.maximum(y1, y1[i])).clip(0)
        with np.errstate(invalid="ignore"):
            alive &= ~((inter / (area + area[i] - inter) > threshold) & (group == group[i]))
    return kept


def propose(network: Network, pyramid: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Proposals [R, 4] of an image, best first, and their logits."""
    source, name = network.source, "proposal_generator.rpn_head."
    boxes, logits, levels = [], [], []
    for level, x in enumerate(pyramid):
        for index in range(source.rpn_convs):
            x = network.conv(f"{name}conv.conv{index}" if source.rpn_convs > 1 else f"{name}conv", x, "").relu()
        objectness = network.conv(f"{name}objectness_logits", x, "")[0].permute(1, 2, 0).flatten()
        deltas = network.conv(f"{name}anchor_deltas", x, "")[0].permute(1, 2, 0).reshape(-1, 4)
        stride, (rows, columns) = 4 << level, x.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        anchors = (shifts + cell_anchors(source.sizes[level], source.ratios)).view(-1, 4)
        best = objectness.topk(min(1000, len(objectness)))
        boxes.append(decode(anchors[best.indices], deltas[best.indices], (1, 1, 1, 1)))
        logits.append(best.values)
        levels.append(torch.full_like(best.indices, level))
    boxes, logits, levels = torch.cat(boxes), torch.cat(logits), torch.cat(levels)
    finite = boxes.isfinite().all(dim=1) & logits.isfinite()
    boxes, logits, levels = clip(boxes[finite], size), logits[finite], levels[finite]
    keep = is_not_empty(boxes)
    boxes, logits, levels = boxes[keep], logits[keep], levels[keep]
    keep = nms(boxes, logits, levels, 0.7)[:1000]
    return boxes[keep], logits[keep]


def level_of(box: np.ndarray) -> int:
    """0 for P2 to 3 for P5."""
    area = np.float32((box[2] - box[0]) * (box[3] - box[1]))
    side = np.sqrt(area, dtype=np.float32) / np.float32(224) + np.float32(1e-8)
    return int(min(max(math.floor(4 + np.log2(side)), 2), 5)) - 2


def roi_align(pyramid: list[Tensor], boxes: Tensor, cells: int) -> Tensor:
    """[R, C, cells, cells]: means over as many points a cell as the RoI has pixels, RoIs aligned by half a pixel."""
    pooled = []
    for box in boxes.numpy():
        level = level_of(box)
        grid, scale = pyramid[level][0].numpy(), 1 / (4 << level)
        x1, y1, x2, y2 = box * np.float32(scale) - np.float32(0.5)
        height, width = (y2 - y1) / cells, (x2 - x1) / cells
        rows, columns = max(math.ceil(height), 0), max(math.ceil(width), 0)
        if not rows or not columns:
            pooled.append(torch.zeros(len(grid), cells, cells))
            continue
        y = y1 + (np.arange(cells * rows) + 0.5) * height / rows
        x = x1 + (np.arange(cells * columns) + 0.5) * width / columns
        points = sample(grid, y, x).reshape(len(grid), cells, rows, cells, columns)
        pooled.append(torch.from_numpy(points.mean(axis=(2, 4))).float())
    return torch.stack(pooled) if pooled else torch.zeros(0, pyramid[0].shape[1], cells, cells)


def sample(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear samples of a map [C, H, W] at y [n] and x [m]: [C, n, m]. More than a cell outside is 0."""

    def taps(places: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inside = (places >= -1) & (places <= side)
        places = places.clip(0, side - 1)
        low = np.minimum(np.floor(places).astype(int), side - 1)
        return low, np.minimum(low + 1, side - 1), np.stack([1 - (places - low), places - low]) * inside

    (top, bottom, of_row), (left, right, of_column) = taps(y, grid.shape[1]), taps(x, grid.shape[2])
    rows = grid[:, top] * of_row[0][:, None] + grid[:, bottom] * of_row[1][:, None]
    return rows[:, :, left] * of_column[0] + rows[:, :, right] * of_column[1]


############################################################
#  Detection
############################################################


def detect(state: dict[str, Tensor], source: Source, image: np.ndarray) -> dict[str, np.ndarray]:
    """boxes [N, (x1, y1, x2, y2)], scores, classes (from 0), masks bool [N, H, W]; features and proposals as well."""
    network = Network(state, source)
    with torch.no_grad():
        pixels, size = network_input(image, source)
        pyramid = network.features(pixels)
        proposals, _ = propose(network, pyramid, size)
        logits, deltas = network.box_head(roi_align(pyramid, proposals, source.pooler))
        boxes, scores, classes = second_stage(proposals, logits, deltas, size, source)
        probs = network.mask_head(roi_align(pyramid, boxes, 14), classes)
    height, width = image.shape[:2]
    factors = torch.tensor([width / size[1], height / size[0]] * 2)
    boxes = clip(boxes * factors, (height, width))
    keep = is_not_empty(boxes)
    boxes, scores, classes, probs = boxes[keep], scores[keep], classes[keep], probs[keep]
    masks = [paste(prob, box, height, width) for prob, box in zip(probs, boxes, strict=True)]
    return {
        "pyramid": [level.numpy() for level in pyramid],
        "proposals": proposals.numpy(),
        "boxes": boxes.numpy(),
        "scores": scores.numpy(),
        "classes": classes.numpy(),
        "masks": np.stack(masks) if masks else np.zeros((0, height, width), bool),
    }


def second_stage(
    proposals: Tensor, logits: Tensor, deltas: Tensor, size: tuple[int, int], source: Source
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes of the best 100."""
    probs = logits.softmax(dim=1)[:, :-1]
    boxes, scores, classes = [], [], []
    for index in range(source.classes):
        of_class = decode(proposals, deltas[:, 0 if source.agnostic else index], (10, 10, 5, 5))
        passes = probs[:, index] > source.threshold
        boxes.append(clip(of_class, size)[passes])
        scores.append(probs[passes, index])
        classes.append(torch.full((int(passes.sum()),), index))
    boxes, scores, classes = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    keep = nms(boxes, scores, classes, 0.5)[:100]
    return boxes[keep], scores[keep], classes[keep]


def paste(prob: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """A mask [28, 28] in its box, sampled at the centres of the image's pixels: bool [H, W]."""
    x1, y1, x2, y2 = box.tolist()
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    return (F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0] >= 0.5).numpy()

"""Export a model to one file that finds the same objects without this project: ONNX, of standard operators only.

    python export.py MODEL OUT.onnx [--check IMAGE ...] [--half] [--triton config.pbtxt]
                                    [--style caffe|pytorch] [--classes FILE] [--eps EPS] [--source-config FILE]
                                    [--set NAME=VALUE ...] [--force]

MODEL is a checkpoint file of any format that convert_weights.py reads, or a name such as shapes, nuclei or coco. At the
end, detection with the file (onnx_detect.py, without torch) is compared with detection here: in blank and in real
images, of two sizes, one by one and three together. A file that finds something else is not written.

The network takes any number of images of any size; in IMAGE_RESIZE_MODE square, and in the dialect matterport, of one
size. Settings and class names are in the file. With OUT.pt2 the result is a program of torch.export, which needs this
project's nms/ and roialign/ to run. docs/export.md shows how to use both.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import contextlib
import copy
import functools
import importlib.util
import io
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import cli
import onnx_detect
import runtime
import utils
from config import Config
from data.images import read_image, reading_settings
from model import Images, MaskRCNN, _prepare_weights
from onnx_detect import INPUTS, METADATA, OUTPUTS, Detector

ROOT = Path(__file__).parent
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
CHECK_IMAGES = [ROOT / "assets" / name for name in ("coffee.jpg", "nuclei_1.jpg", "shapes.jpg")]

############################################################
#  Settings
############################################################


def settings_of(model: MaskRCNN) -> dict[str, Any]:
    """What onnx_detect.Settings reads: how images become inputs, and outputs detections.

    Raises: ValueError for settings that a file cannot have.
    """
    config, dialect = model.config, model.config.dialect
    bit_depth, pixel_range, channels = reading_settings(config)
    mode = config.IMAGE_RESIZE_MODE
    if mode == "crop":
        raise ValueError("IMAGE_RESIZE_MODE is crop, which is for training; --set IMAGE_RESIZE_MODE=pad64 detects")
    if dialect.pooling == "crop" and mode != "square":
        raise ValueError(
            f"IMAGE_RESIZE_MODE is {mode}, and the dialect {config.DIALECT} is exported for one size of images: --set "
            "IMAGE_RESIZE_MODE=square"
        )
    if config.RPN_ANCHOR_STRIDE != 1 and dialect.anchor_stride == "map":
        raise ValueError("RPN_ANCHOR_STRIDE must be 1 in an exported model of this dialect")
    threshold = 0.5 if config.SCORE_THRESHOLD is None else config.SCORE_THRESHOLD
    return {
        "format": onnx_detect.FORMAT,
        "dialect": config.DIALECT,
        "source": model.source,
        "resize_mode": mode,
        "size_rounding": dialect.size_rounding,
        "resampling": dialect.resampling,
        "min_dim": config.IMAGE_MIN_DIM,
        "max_dim": config.IMAGE_MAX_DIM,
        "min_scale": config.IMAGE_MIN_SCALE or 0,
        "divisor": config.IMAGE_SIZE_DIVISOR,
        "channels": channels,
        "mean": list(config.MEAN_PIXEL),
        "std": list(config.STD_PIXEL),
        "pads_before_mean": dialect.pads_before_mean,
        "bit_depth": bit_depth,
        "pixel_range": pixel_range,
        "coordinates": dialect.coordinates,
        "clips_result": dialect.clips_result,
        "paste": dialect.paste,
        "clamps_mask_iou": config.MASKIOU_CLAMP,
        "boxes_of_masks": bool(config.BOXES_OF_MASKS),
        "min_score": config.DETECTION_MIN_CONFIDENCE,
        "max_detections": config.DETECTION_MAX_INSTANCES,
        "score_threshold": threshold,
        "class_names": model.class_names,
        "category_ids": model.category_ids,
    }


############################################################
#  Tracing
############################################################


class _Network(nn.Module):
    """The network with tensors as inputs and outputs, by the names INPUTS and OUTPUTS."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, windows: Tensor) -> tuple[Tensor, ...]:
        found = self.model(Images(pixels, windows))
        tensors = found.boxes, found.batch_index, found.class_ids, found.scores, found.mask_logits.sigmoid()
        return tensors if found.maskious is None else (*tensors, found.maskious)


def output_names(model: MaskRCNN) -> list[str]:
    """The outputs of the exported network, in order."""
    return [*OUTPUTS, *([] if model.maskiou_head is None else ["mask_ious"])]


def frozen(model: MaskRCNN, half: bool = False) -> MaskRCNN:
    """A copy on the CPU whose weights are prepared for inference once for all: norms are folded into convolutions.

    half: large weights are rounded to float16. They stay float32, and the copy computes in float32.

    Raises: ValueError if float16 cannot hold a weight.
    """
    network = copy.deepcopy(model).to("cpu").eval().requires_grad_(False)
    with torch.no_grad():
        for layer, tensors in _prepare_weights(network, torch.float32).items():
            names = [None if tensor is None else f"prepared_{i}" for i, tensor in enumerate(tensors)]
            for name, tensor in zip(names, tensors, strict=True):
                if name is not None:
                    layer.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))
            layer._prepare = functools.partial(_prepared, layer, names)
        for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
            if half and tensor.numel() >= _LARGE and tensor.is_floating_point():
                tensor.copy_(_rounded(name, tensor))
    return network


_LARGE = 1024  # numbers of a weight that --half stores in float16; smaller ones take no room


def _prepared(layer: nn.Module, names: Sequence[str | None], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(None if name is None else getattr(layer, name).to(dtype) for name in names)


def _rounded(name: str, tensor: Tensor) -> Tensor:
    rounded = tensor.half().float()
    if not rounded.isfinite().all():
        raise ValueError(
            f"--half: a number of the weight {name} is above 65504, which float16 cannot hold; leave it out"
        )
    return rounded


def trace(network: MaskRCNN) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, for any number of images, and any size unless settings fix it.

    network: of frozen().
    """
    config, any_number = network.config, torch.export.Dim.DYNAMIC
    is_fixed = config.IMAGE_RESIZE_MODE == "square"
    height, width = (config.IMAGE_MAX_DIM, config.IMAGE_MAX_DIM) if is_fixed else (448, 576)
    pixels = torch.zeros(2, config.IMAGE_CHANNEL_COUNT, height, width)
    windows = torch.tensor([[0.0, 0.0, height, width]] * 2)
    sides = {} if is_fixed else {2: any_number, 3: any_number}
    with torch.no_grad(), _quiet():
        return torch.export.export(
            _Network(network).eval(),
            (pixels, windows),
            dynamic_shapes={"pixels": {0: any_number, **sides}, "windows": {0: any_number}},
            strict=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which torch and onnxscript do not tell how they work."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


############################################################
#  Our operators in ONNX
############################################################

# Runtimes order equal keys in different ways: OpenVINO's TopK does not put the lower index first, as ONNX wants. So no
# sort below has two equal keys.

_FLOAT, _INT64 = 1, 7  # of onnx.TensorProto.DataType
_FLOAT_MAX = float(np.finfo(np.float32).max)


def _translations() -> dict[Any, Any]:
    """What torch.onnx.export writes for each operator of this project."""
    from onnxscript import opset18 as op

    return {
        torch.ops.maskscoring.batched_nms.default: functools.partial(_write_nms, op),
        torch.ops.maskscoring.roi_pool.default: functools.partial(_write_roi_pool, op),
    }


def _column(op: Any, values: Any) -> Any:
    """Values [N, 1] as [N]."""
    return op.Reshape(values, op.Constant(value_ints=[-1]))


def _ascending(op: Any, keys: Any) -> tuple[Any, Any]:
    """int64 keys [N], no two of them equal, in ascending order, and their indices."""
    return op.TopK(keys, op.Shape(keys), axis=0, largest=0, sorted=1)


def _best_first(op: Any, scores: Any) -> Any:
    """The indices of finite scores [N], the highest first; of equal scores, the lower index comes first."""
    count = op.Shape(scores)
    values, order = op.TopK(scores, count, axis=0, largest=1, sorted=1)  # equal ones are in any order
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    before = op.Concat(
        op.Slice(values, zero, one, zero), op.Slice(values, zero, op.Constant(value_ints=[-1]), zero), axis=0
    )
    place = op.CumSum(op.Cast(op.Not(op.Equal(values, before)), to=_INT64), op.Constant(value_int=0))
    _, again = _ascending(op, op.Add(op.Mul(place, count), order))
    return op.Gather(order, again, axis=0)


def _write_nms(op, boxes, scores, groups, iou_threshold, max_keep=None, max_boxes=None) -> Any:
    """maskscoring::batched_nms by NonMaxSuppression, exactly.

    Ranks take the place of scores, so that scores of any sign have one order. Groups become classes: a box has its rank
    in the row of its group, and 0, which is below the threshold, elsewhere. max_boxes: the exported network gives no
    group more boxes than that.
    """
    largest, zero = op.Constant(value_float=_FLOAT_MAX), op.Constant(value_ints=[0])
    finite = op.Cast(op.LessOrEqual(op.Abs(boxes), largest), to=_FLOAT)  # [N, 4]
    has_box = op.Greater(op.ReduceMin(finite, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.5))
    usable = op.And(has_box, op.LessOrEqual(op.Abs(scores), largest))  # [N]; NaN fails
    order = _best_first(op, op.Where(usable, scores, op.Constant(value_float=-_FLOAT_MAX)))
    boxes, groups = op.Gather(boxes, order, axis=0), op.Gather(groups, order, axis=0)
    count = op.Squeeze(op.Shape(order), zero)
    rank = op.Range(count, op.Constant(value_int=0), op.Constant(value_int=-1))  # N to 1
    rank = op.Mul(op.Cast(rank, to=_FLOAT), op.Cast(op.Gather(usable, order, axis=0), to=_FLOAT))
    last = op.ReduceMax(op.Concat(groups, zero, axis=0), zero, keepdims=0)
    every = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
    is_member = op.Equal(op.Unsqueeze(every, op.Constant(value_ints=[1])), op.Unsqueeze(groups, zero))  # [G, N]
    ranks = op.Mul(op.Cast(is_member, to=_FLOAT), op.Unsqueeze(rank, zero))
    limit = op.Shape(order) if max_keep is None else op.Constant(value_ints=[max_keep])
    selected = op.NonMaxSuppression(
        op.Unsqueeze(boxes, zero),
        op.Unsqueeze(ranks, zero),
        limit,
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.5]),
        center_point_box=0,
    )  # [K, (image, class, box)]
    kept, _ = _ascending(op, op.Gather(selected, op.Constant(value_int=2), axis=1))
    return op.Gather(order, kept, axis=0)


def _write_roi_pool(
    op, features, rois, batch_index, levels, output_size, spatial_scales, sampling_ratio, aligned, crop, outside
) -> Any:
    """maskscoring::roi_pool by a RoiAlign for each level, whose results are then put into the order of the RoIs."""
    (height, width), pooled, rows = output_size, [], []
    for level, feature in enumerate(features):
        here = _column(op, op.NonZero(op.Equal(levels, op.Constant(value_int=level))))  # [n]
        rows.append(here)
        boxes, image = op.Gather(rois, here, axis=0), op.Gather(batch_index, here, axis=0)
        if crop:
            pooled.append(_write_crop(op, feature, boxes, image, height))
        else:
            mode = "half_pixel" if aligned else "output_half_pixel"
            rule = {"sampling_ratio": sampling_ratio, "spatial_scale": spatial_scales[level]}
            pooled.append(_write_roi_align(op, feature, boxes, image, mode, height, width, **rule))
    _, order = _ascending(op, op.Concat(*rows, axis=0))
    return op.Gather(op.Concat(*pooled, axis=0), order, axis=0)


def _write_roi_align(op, feature, boxes, image, mode, height, width, sampling_ratio, spatial_scale) -> Any:
    """boxes: [n, (y1, x1, y2, x2)]. All attributes are written: readers differ in what a missing one means."""
    boxes = op.Gather(boxes, op.Constant(value_ints=[1, 0, 3, 2]), axis=1)  # x first
    return op.RoiAlign(
        feature,
        boxes,
        image,
        coordinate_transformation_mode=mode,
        mode="avg",
        output_height=height,
        output_width=width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


def _write_crop(op, feature, boxes, image, bins) -> Any:
    """crop_and_resize as a RoiAlign of one sample a bin, of a box that lies half a step around the samples.

    RoiAlign takes the edge where a sample is rounded past it, and crop_and_resize 0: positions are computed in the same
    order, and the same ones give 0.
    """
    last = op.Sub(op.Cast(op.Shape(feature, start=2), to=_FLOAT), op.Constant(value_float=1.0))  # [(y, x)]
    low, high = (op.Gather(boxes, op.Constant(value_ints=pair), axis=1) for pair in ([0, 1], [2, 3]))  # [n, 2]
    step = op.Div(op.Mul(op.Sub(high, low), last), op.Constant(value_float=float(bins - 1)))
    start = op.Mul(low, last)
    corner = op.Sub(op.Add(start, op.Constant(value_float=0.5)), op.Mul(step, op.Constant(value_float=0.5)))
    around = op.Concat(corner, op.Add(corner, op.Mul(step, op.Constant(value_float=float(bins)))), axis=1)
    pooled = _write_roi_align(op, feature, around, image, "half_pixel", bins, bins, 1, 1.0)
    third = op.Constant(value_ints=[2])
    index = op.Constant(value_floats=[float(i) for i in range(bins)])
    position = op.Add(op.Unsqueeze(start, third), op.Mul(op.Unsqueeze(step, third), index))  # [n, 2, bins]
    low_enough = op.LessOrEqual(position, op.Unsqueeze(last, op.Constant(value_ints=[1])))
    inside = op.And(op.GreaterOrEqual(position, op.Constant(value_float=0.0)), low_enough)
    rows, columns = (op.Gather(inside, op.Constant(value_int=axis), axis=1) for axis in (0, 1))  # [n, bins]
    both = op.And(
        op.Unsqueeze(rows, op.Constant(value_ints=[1, 3])), op.Unsqueeze(columns, op.Constant(value_ints=[1, 2]))
    )
    return op.Where(both, pooled, op.Constant(value_float=0.0))


############################################################
#  Files
############################################################


def to_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], settings: Mapping[str, Any]) -> bytes:
    """The ONNX file of a program of trace(), with standard operators only. outputs: their names."""
    with _quiet():
        exported = torch.onnx.export(
            program,
            input_names=list(INPUTS),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table=_translations(),
        )
    proto = exported.model_proto
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA, value=json.dumps(settings))
    names = {"pixels": ["batch", None, "height", "width"], "windows": ["batch", None]}
    names |= {name: ["detections", None, None] for name in outputs}
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            if name and not dimension.HasField("dim_value"):
                dimension.dim_param = name
    others = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    assert not others, f"operators that are not standard: {others}"
    assert not proto.functions, "functions of the file, which some runtimes cannot read"
    del proto.graph.value_info[:]  # shapes of intermediates, by the names of symbols that nobody knows
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    return proto.SerializeToString()


def halve(data: bytes) -> bytes:
    """An ONNX file whose large weights are stored as float16 where that loses nothing, and cast to float32 at load."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load_from_string(data)
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != _FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            small = values.astype(np.float16)
        if values.size >= _LARGE and np.array_equal(small.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(small, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=_FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()


def to_pt2(program: torch.export.ExportedProgram, settings: Mapping[str, Any]) -> bytes:
    """The file of a program of trace(), for torch.export.load."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={f"{METADATA}.json": json.dumps(settings)})
    return file.getvalue()


class ProgramDetector(Detector):
    """onnx_detect.Detector on a .pt2 file of this project. nms and roialign must be importable.

    data: the bytes of the file.
    """

    def __init__(self, data: bytes) -> None:
        self.name = "the program"
        texts = {f"{METADATA}.json": ""}
        with _quiet():
            self._program = torch.export.load(io.BytesIO(data), extra_files=texts).module()
        settings = json.loads(texts[f"{METADATA}.json"])
        side = settings["max_dim"] if settings["resize_mode"] == "square" else None
        outputs = [*OUTPUTS, *(["mask_ious"] if settings["has_mask_ious"] else [])]
        self._set_up(
            json.dumps(settings),
            {"pixels": [None, settings["channels"], side, side], "windows": [None, 4]},
            {name: [None] for name in outputs},
        )

    def run(self, pixels: np.ndarray, windows: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in self._program(torch.from_numpy(pixels), torch.from_numpy(windows))]


_TRITON_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


def triton_config(data: bytes, name: str = "maskscoring") -> str:
    """The config.pbtxt with which Triton serves an ONNX file: the names, types and shapes that the file has.

    The outputs of a batch are one below the other, so the batch is no dimension that Triton may divide.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def block(node: Any) -> str:
        dims = ", ".join(str(side) if isinstance(side, int) else "-1" for side in node.shape)
        return f'  {{ name: "{node.name}", data_type: {_TRITON_TYPES[node.type]}, dims: [ {dims} ] }}'

    lists = (("input", session.get_inputs()), ("output", session.get_outputs()))
    blocks = [f"{kind} [\n" + ",\n".join(map(block, nodes)) + "\n]" for kind, nodes in lists]
    return "\n".join([f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0", *blocks]) + "\n"


############################################################
#  Check
############################################################

BOX_TOLERANCE, SCORE_TOLERANCE, MASK_IOU = 1.0, 3e-3, 0.98  # pixels; scores; least IoU of two masks
MISSES = 0.03  # of the detections of an image that may differ: rounding decides about some pairs of boxes in NMS


class Agreement(NamedTuple):
    """How the detections of two programs in one image agree."""

    expected: int  # detections of the first
    found: int  # of the second
    matched: int  # pairs of one class, whose boxes, scores and masks are alike
    identical: int  # pairs whose masks are equal to the pixel
    misses: int  # detections of either without a partner, without those at the limit of what is reported

    @property
    def is_good(self) -> bool:
        """Whether the two find the same. A detection that differs is missed on both sides."""
        count = max(self.expected, self.found)
        return self.misses <= 2 * max(MISSES * count, 1 if count >= 20 else 0)


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], settings: onnx_detect.Settings) -> Agreement:
    """Two results of detect() for one image, with masks as arrays. A detection has one partner at most."""
    pairs = list(_pairs(expected, found))
    counts = [len(result["scores"]) for result in (expected, found)]
    identical = sum(bool((expected["masks"][..., i] == found["masks"][..., j]).all()) for i, j in pairs)
    misses = 0
    for result, partners in ((expected, {i for i, _ in pairs}), (found, {j for _, j in pairs})):
        scores = result["scores"]
        is_full = len(scores) >= settings.max_detections
        least = max(settings.min_score, float(scores.min()) if is_full else 0) + SCORE_TOLERANCE
        misses += sum(1 for i, score in enumerate(scores) if i not in partners and score > least)
    return Agreement(*counts, len(pairs), identical, misses)


def _pairs(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The indices of detections that are alike, each in one pair."""
    free = np.ones(len(found["scores"]), bool)
    for i, (box, score) in enumerate(zip(expected["rois"], expected["scores"], strict=True)):
        alike = free & (found["class_ids"] == expected["class_ids"][i])
        alike &= np.abs(found["rois"] - box).max(axis=1, initial=0) <= BOX_TOLERANCE
        alike &= np.abs(found["scores"] - score) <= SCORE_TOLERANCE
        for j in np.flatnonzero(alike):
            if _masks_agree(expected["masks"][..., i], found["masks"][..., j]):
                free[j] = False
                yield i, int(j)
                break


def _masks_agree(mask: np.ndarray, other: np.ndarray) -> bool:
    union = int((mask | other).sum())
    different = int((mask ^ other).sum())
    return different <= max(1, (1 - MASK_IOU) * union)  # of a mask of few pixels, one is more than a fiftieth


def check(model: MaskRCNN, detector: Detector, images: Mapping[str, np.ndarray]) -> list[str]:
    """Compare detection with a file to detection with a model: in each image, in a part of it, and in blank images.

    images: uint8 arrays [H, W, C] by their names.

    Returns: a sentence for each batch.
    Raises: ValueError that names the image in which they find something else.
    """
    sentences = []
    for name, batch in _check_batches(images, model.config).items():
        expected, found = model.detect(batch), detector.detect_batch(batch)
        agreements = [compare(*pair, detector.settings) for pair in zip(expected, found, strict=True)]
        for image, agreement in zip(batch, agreements, strict=True):
            is_constant = (image == image[0, 0]).all()
            # In a constant image hundreds of places have exactly one score, and rounding decides which of them win.
            is_good = agreement.is_good or (is_constant and min(agreement.expected, agreement.found) > 0)
            if not is_good:
                raise ValueError(
                    f"the exported network finds something else than the model in {name}: {agreement.expected} objects "
                    f"here, {agreement.found} there, {agreement.matched} of them alike; nothing was written. Please "
                    "report this, with the versions of torch and onnxruntime"
                )
        total = [sum(column) for column in zip(*agreements, strict=True)]
        words = "nothing, as it should" if not any(total[:2]) else f"{total[2]} of {total[0]} alike"
        masks = f", {total[3]} masks to the pixel" if total[2] else ""
        sentences.append(f"checked in {name}: {words}{masks}")
    return sentences


def _check_batches(images: Mapping[str, np.ndarray], config: Config) -> dict[str, list[np.ndarray]]:
    """Each image, most of it, three images together, and images of one colour."""
    batches = {}
    for name, image in images.items():
        height, width = image.shape[:2]
        # Padding of one colour has ties, as blank images have: in mode square a part has the shape of the image.
        part = image[: height - height // 4, : width - width // (4 if config.IMAGE_RESIZE_MODE == "square" else 3)]
        batches |= {name: [image], f"a part of {name}": [part]}
    name, image = next(iter(images.items()))
    batches[f"three images like {name}"] = [image, np.full_like(image, 128), np.ascontiguousarray(image[:, ::-1])]
    batches["a blank image"] = [np.zeros((120, 160, config.IMAGE_CHANNEL_COUNT), np.uint8)]
    return batches


############################################################
#  Command line
############################################################


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("export.py", __doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint file of any format, or a name such as shapes or coco"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write: .onnx, or .pt2 for torch.export")
    cli.add_checkpoint_options(parser)
    cli.add_set(parser)
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        action="extend",
        type=Path,
        metavar="IMAGE",
        help="images in which the file must find the same as the model, best such as it was made for; default: "
        f"{', '.join(path.name for path in CHECK_IMAGES)} of assets/",
    )
    parser.add_argument(
        "--half", action="store_true", help="store weights in float16, half of the bytes; they compute in float32"
    )
    parser.add_argument("--triton", type=Path, metavar="FILE", help="write the config.pbtxt for NVIDIA Triton, too")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    return parser


def check_target(arguments: argparse.Namespace) -> None:
    """Raises ValueError, FileNotFoundError or cli.Failure for what cannot be written: before the work."""
    target = arguments.target
    if target.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"OUT {target} must be a file .onnx, or .pt2 for a program of torch.export")
    for name, path in (("OUT", target), ("--triton", arguments.triton)):
        if path is None:
            continue
        if path.is_dir() or (path.exists() and not arguments.force):
            reason = "is a folder; name a file in it" if path.is_dir() else "exists; --force replaces it"
            raise ValueError(f"{name} {path} {reason}")
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"{name} {path}: the folder {path.resolve().parent} does not exist")
    if target.suffix == ".pt2":
        if arguments.half or arguments.triton:
            raise ValueError("--half and --triton are of .onnx files, and OUT is a .pt2")
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise cli.Failure(f"export needs packages that are not installed: pip install {' '.join(missing)}")


def export_model(model: MaskRCNN, suffix: str = ".onnx", half: bool = False) -> tuple[bytes, MaskRCNN, Detector]:
    """A model as a file .onnx or .pt2, not checked.

    Returns: the file; the network that it must agree with, which is the model itself unless half; its Detector.
    Raises: ValueError for settings that cannot be exported.
    """
    settings = {**settings_of(model), "has_mask_ious": model.maskiou_head is not None}
    network = frozen(model, half)
    program = trace(network)
    if suffix == ".pt2":
        data = to_pt2(program, settings)
        return data, model, ProgramDetector(data)
    data = to_onnx(program, output_names(model), settings)
    data = halve(data) if half else data
    return data, network if half else model, Detector(data)


def export(arguments: argparse.Namespace) -> None:
    """Export MODEL, check the file, and write it. Raises: ValueError, OSError or cli.Failure."""
    check_target(arguments)
    model = cli.open_model(arguments, "", device=torch.device("cpu"))
    bit_depth, pixel_range, channels = reading_settings(model.config)
    options = {"bit_depth": bit_depth, "pixel_range": pixel_range, "channels": channels}
    paths = arguments.check or CHECK_IMAGES
    images = {utils.printable(path.name): read_image(path, **options) for path in paths}
    print(f"weights     {utils.printable(model.source)}")
    print("exporting   (a minute or more)", flush=True)
    data, network, detector = export_model(model, arguments.target.suffix, arguments.half)
    for sentence in check(network, detector, images):
        print(sentence, flush=True)
    runtime.write_atomically(arguments.target, lambda file: file.write(data))
    print(f"written     {utils.printable(arguments.target)}, {len(data) / 1e6:.1f} MB")
    if arguments.triton:
        config = triton_config(data, arguments.target.stem)
        runtime.write_atomically(arguments.triton, lambda file: file.write(config.encode()))
        print(f"written     {utils.printable(arguments.triton)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    arguments = build_parser().parse_args(argv)
    return cli.run("export.py", lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())

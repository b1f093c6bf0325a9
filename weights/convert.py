"""Any published checkpoint of the family as one of this project.

A source is recognised by its contents, never by its suffix:

    keras        Matterport's Mask R-CNN, HDF5        port2018     its PyTorch port of 2018
    benchmark    the paper's code, and its ancestor   mmdet        MS R-CNN and Mask R-CNN of mmdetection 2 and 3
    torchvision  Mask R-CNN v1 and v2                 imagenet     classifiers of torchvision, OpenMMLab, Detectron2
    detectron2   Mask R-CNN with FPN, of its model zoo and its trainer

The network has one canonical form (model.py). A source may differ in names (formats.py has a table for each format),
class order, row order, colour order and batch norm: the conversion makes these equal in the weights. All other
differences are the dialect, which the checkpoint names. Every tensor of a source is used, or on its format's list of
dropped names, and every tensor of the network comes from the source in the right shape; otherwise a ValueError lists
the names.

Files are data: torch_files.py, keras_files.py and safe_files.py read them, and build nothing but tensors and plain
containers. What a file does not say and changes numbers, such as the eps of its batch norms, is assumed as published;
the report says so.

    K classes, 0 is background   A anchors of a cell   rows of deltas are (dy, dx, dh, dw)
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import utils
from config import BACKBONES, PER_CHANNEL_SETTINGS, SHAPE, WEIGHTS, Config, settings_that
from data.coco_files import COCO_CATEGORIES

from .checkpoint import (
    CHECKPOINT_KEYS,
    FORMAT,
    Checkpoint,
    NetworkShapes,
    check_values,
    config_of,
    make_checkpoint,
    read_checkpoint,
    shapes_of,
)
from .constants import (
    Constants,
    add_statistics,
    contradictions,
    group_norm_settings,
    guess_style,
    numbers,
    read_constants,
)
from .download import sha256_of
from .formats import FORMATS, LEAVES, NORM, STYLES, Format, Table
from .refusals import refuse, refuse_config
from .safe_files import read_safetensors
from .source_config import NO_CONFIG, NONE, SourceConfig, find_source_config
from .state_dicts import StateDict, find_state_dict
from .torch_files import file_kind, load_torch_file

############################################################
#  Names
############################################################


def _recognise(path: Path, names: Iterable[str], kind: str) -> Format:
    """The format whose signs are among the names.

    Raises: ValueError if no format's are, and for formats that must not be mistaken for another.
    """
    names = list(names)
    if kind != "hdf5":
        refuse(path, names)
    for candidate in FORMATS:
        if (candidate.name == "keras") == (kind == "hdf5") and any(name.startswith(candidate.signs) for name in names):
            return candidate
    looked_for = "; ".join(f"{candidate.name}: {' or '.join(candidate.signs)}..." for candidate in FORMATS)
    raise ValueError(f"{path} is of no known format. Looked for names as {looked_for}. It has {_shown(names, 10)}")


def _shown(names: Iterable[str], limit: int = 20) -> str:
    """Names of a file, for a message."""
    return utils.listed((utils.printable(name, 100) for name in names), limit)


def _rename(
    path: Path, source: Format, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str], list[str], list[str]]:
    """Give tensors our names.

    Returns: tensors by our name, {our name: the source's name}, names dropped on purpose, names in no table.
    Raises: ValueError for two tensors of one name.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    dropped, unused = [], []
    for name, tensor in tensors.items():
        target = _target(source.table, name)
        if name.endswith(".num_batches_tracked") or any(_is_dropped(rule, name) for rule in source.dropped):
            dropped.append(name)
        elif target is None:
            unused.append(name)
        elif target in renamed:
            raise ValueError(f"{path}: {utils.printable(name)} and {origin[target]} are both {target}")
        else:
            renamed[target], origin[target] = tensor, name
    return renamed, origin, dropped, unused


def _is_dropped(rule: str, name: str) -> bool:
    """Whether a rule of Format.dropped means a name."""
    if rule.endswith("$"):
        return re.fullmatch(_numbered(rule.removesuffix("$")), name) is not None
    return name == rule or _pattern(rule).match(name) is not None


def _target(table: Table, name: str) -> str | None:
    """Our name of a source's tensor, or None."""
    for rule, template in table:
        match = _pattern(rule).fullmatch(name)
        if match and match["leaf"] in LEAVES:
            numbers = iter([int(text) if text.isdigit() else ord(text) - ord("a") for text in match.groups()[:-1]])
            fill = lambda place, numbers=numbers: str(next(numbers) + int(place[1] or 0))  # noqa: E731
            return re.sub(r"#([+-]\d)?", fill, template) + LEAVES[match["leaf"]]
    return None


@functools.cache
def _pattern(rule: str) -> re.Pattern:
    """The pattern of the names that a rule of the tables in formats.py stands for."""
    return re.compile(_numbered(rule) + r"(?P<leaf>\w+)")


def _numbered(rule: str) -> str:
    return re.escape(rule).replace(r"\#", r"([0-9]{1,3})").replace("@", "([a-z])")  # 999 layers at most


def _check_names(
    path: Path, source: Format, names: set[str], expected: Iterable[str], unused: list[str], origin: Mapping[str, str]
) -> None:
    """Raises a ValueError that lists missing names and names too many, unless there are none.

    names: ours, of the file's tensors. expected: of the network's. unused: names of the file that are in no table.
    """
    expected = set(expected)
    must_be_normed = {name.removesuffix(".weight") for name in expected if name.endswith(".weight") and source.normed}
    normed = {name.rsplit(".norm.", 1)[0] for name in names if ".norm." in name}
    normed |= {module for module in must_be_normed if module.startswith(source.normed)}
    normed = {module for module in normed if not _is_group_norm(f"{module}.norm", expected)}
    biases = {f"{module}.bias" for module in normed}  # optional: the batch norm gives the bias in any case
    required = expected | {f"{module}.norm.{leaf}" for module in normed for leaf in NORM}
    missing = sorted(required - names - biases)
    unused = unused + [origin[name] for name in sorted(names - required - biases)]
    problems = [f"missing {len(missing)} (our names): {utils.listed(missing)}"] if missing else []
    problems += [f"left over {len(unused)}: {_shown(unused)}"] if unused else []
    if problems:
        raise ValueError(f"{path} is a {source.name} checkpoint, but its tensors are not those. " + "; ".join(problems))


def _is_group_norm(norm: str, names: Iterable[str]) -> bool:
    """Whether a norm, by the names of a network's tensors, is one that no convolution takes up."""
    return f"{norm}.weight" in names and f"{norm}.running_var" not in names


def _check_ranks(path: Path, tensors: Mapping[str, Tensor], origin: Mapping[str, str]) -> None:
    """Raises ValueError for a weight of less than two dimensions, or a vector that is none."""
    for name, tensor in tensors.items():
        is_matrix = name.endswith(".weight") and not name.endswith(".norm.weight")
        if (tensor.dim() < 2) if is_matrix else (tensor.dim() != 1):
            expected = "two dimensions or more" if is_matrix else "one dimension"
            shape = list(tensor.shape)
            raise ValueError(f"{path}: tensor {origin.get(name, name)} has shape {shape}, expected {expected}")


def _check_shapes(
    path: Path,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, torch.Size],
    origin: Mapping[str, str],
    raw: Mapping[str, Tensor],
) -> None:
    """Raises a ValueError that lists the folded tensors of another shape than the network's, with the file's shapes."""
    wrong = []
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            source = origin.get(name, name)
            raw_shape = list(raw[source].shape) if source in raw else None
            in_file = f", in the file {raw_shape}" if raw_shape and raw_shape != list(tensors[name].shape) else ""
            wrong.append(f"{source} -> {name}: got {list(tensors[name].shape)}{in_file}, expected {list(shape)}")
    if wrong:
        raise ValueError(f"{path} has {len(wrong)} tensors of another shape. {utils.listed(wrong)}")


############################################################
#  Folds
############################################################


def _fold(tensors: dict[str, Tensor], source: Format, eps: float, bgr: bool, classes: int) -> list[str]:
    """Bring renamed tensors into the canonical form, in place.

    classes: their number, background included.

    Returns: a line for each kind of change, for the report.
    Raises: ValueError for shapes that do not fit their names.
    """
    notes = _fold_norms(tensors, eps)
    for name in [name for name in tensors if name.startswith("box_head.fcs.") and tensors[name].dim() == 4]:
        tensors[name] = tensors[name].flatten(1)  # a convolution over the whole RoI: [out, (channel, y, x)]
    if bgr and "backbone.stem.weight" in tensors:
        tensors["backbone.stem.weight"] = tensors["backbone.stem.weight"].flip(1)
        notes.append("the first convolution from BGR to RGB")
    if source.pairs:
        notes.append("pairs of objectness logits into their difference")
        _change(tensors, "rpn.objectness", 2, foreground_minus_background)
    if source.xyxy:
        notes.append("anchors to tall first, rows of deltas from (dx, dy, dw, dh) to (dy, dx, dh, dw)")
        _change(tensors, "rpn.objectness", 1, lambda rows: rows.flip(0))
        _change(tensors, "rpn.deltas", 4, lambda rows: swap_xy(rows).flip(0))
        _change(tensors, "box_head.box_deltas", 4, swap_xy)
    if source.background_last:
        for module in _AGNOSTIC:
            if _is_agnostic({name: tensor.shape for name, tensor in tensors.items()}, module, classes):
                notes.append(f"class-agnostic rows of {module}, which are repeated for each class")
                _change(tensors, module, _AGNOSTIC[module], lambda rows: torch.cat([rows] * (classes - 1)))
        notes.append("background from last to first, with zeros where it had no row")
        _change(tensors, "box_head.class_logits", 1, lambda rows: rows.roll(1, 0))
        for module in ("box_head.box_deltas", "mask_head.mask_logits", "maskiou_head.maskious"):
            _change(tensors, module, 4 if module.endswith("deltas") else 1, prepend_zeros)
    return notes


# Layers that may have one class for all, and the rows that they have then.
_AGNOSTIC = {"box_head.box_deltas": 4, "mask_head.mask_logits": 1}


def _is_agnostic(shapes: Mapping[str, Sequence[int]], module: str, classes: int) -> bool:
    """Whether a layer without a row for the background does not tell classes apart. classes: background included."""
    shape = shapes.get(f"{module}.weight")
    return classes > 2 and shape is not None and shape[0] == _AGNOSTIC.get(module)


def _change(tensors: dict[str, Tensor], module: str, group: int, change: Callable[[Tensor], Tensor]) -> None:
    """Apply a change to a layer's rows, weight and bias, seen as [rows / group, group, ...]."""
    for name in (f"{module}.weight", f"{module}.bias"):
        if name not in tensors:
            continue
        tensor = tensors[name]
        if len(tensor) % group:
            raise ValueError(f"{name}, in our names, has {len(tensor)} rows; expected a multiple of {group}")
        changed = change(tensor.reshape(-1, group, *tensor.shape[1:]))
        tensors[name] = changed.reshape(-1, *tensor.shape[1:])


def foreground_minus_background(pairs: Tensor) -> Tensor:
    """[A, (background, foreground), ...] -> [A, ...]: softmax over two logits is the sigmoid of their difference."""
    return (pairs[:, 1].double() - pairs[:, 0].double()).float()


def swap_xy(rows: Tensor) -> Tensor:
    """[N, (dx, dy, dw, dh), ...] -> [N, (dy, dx, dh, dw), ...]."""
    return rows[:, [1, 0, 3, 2]]


def prepend_zeros(rows: Tensor) -> Tensor:
    """[K - 1, ...] -> [K, ...], zeros for the background."""
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def _fold_norms(tensors: dict[str, Tensor], eps: float) -> list[str]:
    """Fold batch norms into the convolutions before them, in place; those of the backbone and group norms stay.

    A batch norm of our backbone adds no eps and follows a convolution without bias, so its statistics take up both.

    Returns, raises: as _fold.
    """
    counts: Counter = Counter()
    for module in [name.removesuffix(".norm.weight") for name in tensors if name.endswith(".norm.weight")]:
        if _is_group_norm(f"{module}.norm", tensors):
            continue
        weight, bias = tensors[f"{module}.weight"], tensors.get(f"{module}.bias")
        norm = [tensors[f"{module}.norm.{leaf}"] for leaf in NORM]
        for leaf, vector in zip((*NORM, "bias"), (*norm, norm[0] if bias is None else bias), strict=True):
            if len(vector) != len(weight):
                raise ValueError(
                    f"{module}.norm, in our names, has {len(vector)} numbers in {leaf} for {len(weight)} channels"
                )
        if not module.startswith("backbone."):
            tensors[f"{module}.weight"], tensors[f"{module}.bias"] = fold_norm(weight, bias, *norm, eps)
            for leaf in NORM:
                del tensors[f"{module}.norm.{leaf}"]
            counts["{} batch norms into the convolutions and fully connected layers before them"] += 1
            continue
        if eps:
            tensors[f"{module}.norm.running_var"] = (norm[3].double() + eps).float()
            counts[f"eps {eps:g} of {{}} batch norms of the backbone into the variance"] += 1
        if bias is not None:
            tensors[f"{module}.norm.running_mean"] = (norm[2].double() - bias.double()).float()
            del tensors[f"{module}.bias"]
            counts["{} biases of the backbone into the mean of the batch norm that follows"] += 1
        if float(tensors[f"{module}.norm.running_var"].min()) <= 0:
            raise ValueError(f"{module}.norm.running_var, in our names, has zeros, by whose root it divides")
    return [line.format(count) for line, count in counts.items()]


def fold_norm(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that computes what a layer and the batch norm after it do.

    weight: [out, ...]. bias: [out] or None. scale, shift, mean, var: [out] of the batch norm.

    Returns: weight and bias, float32, computed in float64.
    """
    factor = scale.double() / (var.double() + eps).sqrt()  # [out]
    start = -mean.double() if bias is None else bias.double() - mean.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.float(), (shift.double() + start * factor).float()


############################################################
#  Settings from shapes and names
############################################################


def _backbone(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """BACKBONE and BACKBONE_WIDTH, from its blocks, its channels and the groups of its 3x3 convolutions."""
    tensors_of_block = Counter(match[0] for name in shapes if (match := re.match(r"backbone\.layer\d\.\d+\.", name)))
    blocks = tuple(
        sum(block.startswith(f"backbone.layer{stage}.") and count > 2 for block, count in tensors_of_block.items())
        for stage in (1, 2, 3, 4)
    )
    is_bottleneck = any(re.match(r"backbone\.layer\d\.\d+\.conv3\.", name) for name in shapes)
    width = _common(shapes, 64, (r"backbone\.layer1\.\d+\.conv2\.weight", 0))
    groups = width // max(_common(shapes, width, (r"backbone\.layer1\.\d+\.conv2\.weight", 1)), 1)
    stem = _common(shapes, 64, (r"backbone\.stem\.weight", 0))
    for planes in (64, stem):  # of narrow and wide networks, all channels are in proportion to those of the stem
        for name, architecture in BACKBONES.items():
            full = planes * architecture.group_width // 64 * architecture.groups
            if (blocks, is_bottleneck, groups, width) == (*architecture[:3], full) and planes % 8 == 0:
                return {"BACKBONE": name, "BACKBONE_WIDTH": planes / 64}
    if not any(blocks):
        raise ValueError(f"{path} has no backbone with the names of a ResNet: {_shown(shapes, 5)}, in our names")
    raise ValueError(
        f"{path} has a backbone of {blocks} {'bottleneck' if is_bottleneck else 'basic'} blocks with 3x3 convolutions "
        f"of {width} channels in {groups} groups, which is none of {', '.join(BACKBONES)}"
    )


def _common(shapes: Mapping[str, Sequence[int]], default: int, *places: tuple[str, int]) -> int:
    """The size that most of some tensors have, so that one wrong tensor does not decide.

    places: patterns of names, each with the dimension that counts.
    """
    sizes = [
        shape[dim]
        for pattern, dim in places
        for name, shape in shapes.items()
        if len(shape) > dim and re.fullmatch(pattern, name)
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else default


def _count(shapes: Mapping[str, Sequence[int]], module: str) -> int:
    """The number of layers of a module list, as far as the file has them: up to the first that is missing."""
    indices = {int(match[1]) for name in shapes if (match := re.match(rf"{re.escape(module)}\.(\d+)\.", name))}
    return next(count for count in range(len(indices) + 1) if count not in indices)


def _settings(path: Path, source: Format, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings of Config that follow from the shapes of renamed tensors, before they are folded."""
    settings = {
        "DIALECT": source.dialect,
        **_backbone(path, shapes),
        "MASKIOU_CLAMP": False,
        "IMAGE_CHANNEL_COUNT": _common(shapes, 3, (r"backbone\.stem\.weight", 1)),
    }
    if source.name == "imagenet":
        return settings
    pyramid = _common(shapes, 256, (r"fpn\.\w+\.\d\.weight", 0))
    box, mask, iou = r"box_head\.", r"mask_head\.", r"maskiou_head\."
    iou_head = any(name.startswith("maskiou_head.") for name in shapes)
    maskiou = {
        "MASKIOU_HEAD_CHANNELS": _common(shapes, 256, (iou + r"convs\.\d\.weight", 0)),
        "MASKIOU_FC_LAYERS_SIZE": _common(shapes, 1024, (iou + r"fcs\.\d\.weight", 0), (iou + r"maskious\.weight", 1)),
    }
    return {
        **settings,
        "TOP_DOWN_PYRAMID_SIZE": pyramid,
        "RPN_CONVS": _count(shapes, "rpn.convs") or 1,
        "RPN_CHANNELS": _common(shapes, 256, (r"rpn\.convs\.\d\.weight", 0), (r"rpn\.(objectness|deltas)\.weight", 1)),
        **_box_head(shapes, pyramid),
        **(group_norm_settings(shapes) if source.group_norms else {}),
        "BOX_HEAD_FC_LAYERS": _count(shapes, "box_head.fcs") or 1,
        "FPN_CLASSIF_FC_LAYERS_SIZE": _common(
            shapes, 1024, (box + r"fcs\.\d\.weight", 0), (box + r"(class_logits|box_deltas)\.weight", 1)
        ),
        "MASK_HEAD_CONVS": _count(shapes, "mask_head.convs") or 1,
        "MASK_HEAD_CHANNELS": _common(
            shapes, 256, (mask + r"convs\.\d\.weight", 0), (mask + r"mask_logits\.weight", 1)
        ),
        "USE_MASKIOU_HEAD": iou_head,
        **(maskiou if iou_head else {}),
        "NUM_CLASSES": _num_classes(path, source, shapes),
    }


def _box_head(shapes: Mapping[str, Sequence[int]], pyramid: int) -> dict[str, int | None]:
    """The convolutions of the box head, and the cells of an RoI that its first fully connected layer sees.

    pyramid: channels of the pyramid.
    """
    channels = _common(shapes, pyramid, (r"box_head\.convs\.\d\.weight", 0))
    settings = {"BOX_HEAD_CONVS": _count(shapes, "box_head.convs")}
    settings["BOX_HEAD_CHANNELS"] = None if channels == pyramid else channels
    inputs = math.prod(shapes.get("box_head.fcs.0.weight", ())[1:])  # (channel, y, x)
    side = math.isqrt(inputs // max(channels, 1))
    return {**settings, "POOL_SIZE": side} if side > 0 and side * side * channels == inputs else settings


def _num_classes(path: Path, source: Format, shapes: Mapping[str, Sequence[int]]) -> int:
    """Classes, background included, that most of the layers with rows for classes have.

    Raises: ValueError for a file without a row for the background, and for one of mmdetection 1.x, which must not be
        read as one of version 2.
    """
    rows = {
        name: shapes[f"{name}.weight"][0]
        for name in ("box_head.class_logits", "mask_head.mask_logits", "box_head.box_deltas", "maskiou_head.maskious")
        if shapes.get(f"{name}.weight")
    }
    rows["box_head.box_deltas"] = rows.get("box_head.box_deltas", 0) // 4
    classes, masks = rows.get("box_head.class_logits", 0), rows.get("mask_head.mask_logits")
    if source.background_last and classes == masks == rows["box_head.box_deltas"]:
        alike = f"{path} has {classes} rows for classes, boxes and masks alike"
        if source.name != "mmdet":
            raise ValueError(f"{alike}, and a model of {source.title} has one more for classes, that of the background")
        raise ValueError(
            f"{alike}, as mmdetection 1.x, which has the background first; version 2 has one row less for boxes and "
            "masks. Take a file of version 2 or later"
        )
    if source.background_last:
        rows = {name: count for name, count in rows.items() if not _is_agnostic(shapes, name, classes)}
    votes = Counter(
        [classes, *(n + source.background_last for name, n in rows.items() if name != "box_head.class_logits")]
    )
    return max(votes.most_common(1)[0][0], 1)


def _class_names(
    path: Path,
    source: Format,
    count: int,
    given: Sequence[str] | None,
    stored: Sequence[str] | None,
    model_config: Config | None,
) -> tuple[list[str], list[int]]:
    """The name of each class index, background first, and its category id. Where nothing names them: "class 1", ...

    count: classes, background included. given, stored: names of the foreground classes by the caller and in the file.
    model_config: as convert.

    Raises: ValueError for names that do not fit.
    """
    coco_ids = sorted(COCO_CATEGORIES)
    coco = [COCO_CATEGORIES[category] for category in coco_ids]
    if given is not None:
        return _given_names(path, count, given)
    if stored is not None and len(stored) == count - 1 and [*stored] != coco:
        return ["BG", *stored], list(range(count))
    if count == len(coco) + 1:
        return ["BG", *coco], [0, *coco_ids]
    if source.name == "torchvision" and count == coco_ids[-1] + 1:
        return ["BG", *(COCO_CATEGORIES.get(index, "N/A") for index in range(1, count))], list(range(count))
    if model_config is not None and model_config.CLASS_NAMES and len(model_config.CLASS_NAMES) == count:
        return list(model_config.CLASS_NAMES), list(range(count))
    return ["BG", *(f"class {index}" for index in range(1, count))], list(range(count))


def _given_names(path: Path, count: int, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names and category ids of classes that the caller names. Raises: ValueError unless there are count - 1 names."""
    if len(names) != count - 1:
        hint = "; leave the background out" if len(names) == count else ""
        raise ValueError(
            f"class_names has {len(names)} names, but {path} has {count - 1} classes and a background{hint}"
        )
    return ["BG", *names], list(range(count))


def _meta(contents: Mapping[str, Any]) -> tuple[str, Sequence[str] | None]:
    """The config text and the class names that mmdetection stores beside the weights; ("", None) without them."""
    meta = contents.get("meta")
    if not isinstance(meta, Mapping):
        return "", None
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    dataset = meta.get("dataset_meta")
    names = [meta, dataset if isinstance(dataset, Mapping) else {}]
    lists = [place.get(key) for place in names for key in ("CLASSES", "classes")]
    is_names = lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)  # noqa: E731
    return text, next((value for value in lists if is_names(value)), None)


def _style(
    path: Path, source: Format, backbone: str, text: str, style: str | None, model_config: Config | None = None
) -> tuple[str, str | None]:
    """Where bottlenecks have their stride, caffe or pytorch: as the format, the stored config, the caller, the file's
    name or the model says.

    text: of the stored config. style: the caller's, or None. model_config: as convert.

    Returns: the style, and if it was guessed, by what.
    Raises: ValueError where nothing says it, or where the caller contradicts what is known.
    """
    if style not in (None, *STYLES):
        raise ValueError(f"style must be caffe or pytorch, not {style!r}")
    certain, reason = source.style, f"{source.title} knows no other"
    if source.name == "mmdet" and backbone.startswith("resnext"):
        certain, reason = "pytorch", "mmdetection's ResNeXts know no other"
    stored = _last(r"\bstyle['\"]?\s*[=:]\s*['\"](caffe|pytorch)['\"]", text)
    if certain is None and stored:
        certain, reason = stored, "what is stored in it says so"
    if style and certain and style != certain:
        raise ValueError(f"style {style!r} contradicts {path}, which is {certain}: {reason}")
    if style or certain:
        return style or certain, None
    if source.name == "benchmark":
        return ("pytorch" if backbone.startswith("resnext") else "caffe"), "as published"
    if "caffe" in path.name:
        return "caffe", "as the name of the file says"
    if re.search(r"r(18|34|50|101|152)[_-]fpn", path.name):
        return "pytorch", "as the name of the file says"
    if model_config is not None:
        return model_config.BACKBONE_STYLE, "as the model has it"
    raise ValueError(
        f"{path} does not tell whether its ResNet is caffe style (stride in the first 1x1 convolution, BGR images) or "
        "pytorch style (in the 3x3, RGB), and weights of one are wrong as the other. Say it with `--style caffe` or "
        "`--style pytorch`, in Python style='caffe' or style='pytorch': mmdetection's caffe configs have "
        "caffe in their names"
    )


# Backbones of pytorch style whose ImageNet weights came from Caffe2, and which learned from BGR images therefore.
_CAFFE2 = ("resnext101_32x8d",)


def _pixels(text: str, style: str, backbone: str = "") -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
    """mmdetection's pixels, from the stored config or else style and backbone: whether BGR, then mean and std in RGB
    order."""
    flag = _last(r"to_rgb['\"]?\s*[=:]\s*(True|False)", text)
    bgr = flag == "False" if flag else style == "caffe" or backbone in _CAFFE2
    defaults = {"mean": (123.675, 116.28, 103.53), "std": (1.0,) * 3 if style == "caffe" else (58.395, 57.12, 57.375)}
    statistics = []
    for name, default in defaults.items():
        numbers = _last(rf"\b{name}['\"]?\s*[=:]\s*[\[(]([\d.,\s]+)[\])]", text) or ""
        value = tuple(float(number) for number in re.findall(r"\d+\.?\d*|\.\d+", numbers))
        statistics.append(default if len(value) != 3 else value[::-1] if bgr else value)
    return bgr, *statistics


def _last(pattern: str, text: str) -> str | None:
    """The last match: an old config is the texts of all its bases, one after another, and the last one counts."""
    matches = re.findall(pattern, text)
    return matches[-1] if matches else None


############################################################
#  Conversion
############################################################


@dataclass
class Report:
    """What a conversion did."""

    title: str  # of the format that was recognised
    read: int = 0  # tensors of the source that were used
    folded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # what was taken off the names of the tensors
    assumed: list[str] = field(default_factory=list)  # what the file does not say and changes results
    configured: list[str] = field(default_factory=list)  # what a configuration beside the file said

    def text(self, written: int) -> str:
        """The report for people. written: tensors that came out."""
        kinds = Counter(map(_kind_of_name, self.dropped))
        dropped = utils.listed(f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.items())
        lines = [f"recognised  {self.title}", f"mapped      {self.read} tensors to {written}"]
        lines += [f"names       {note}" for note in self.names]
        lines += [f"folded      {note}" for note in self.folded]
        return "\n".join([*lines, f"dropped     {dropped or 'nothing'}", *self.notes()])

    def notes(self) -> list[str]:
        """A line for each thing that was assumed, or said by a configuration beside the file."""
        return [f"configured  {line}" for line in self.configured] + [f"assumed     {note}" for note in self.assumed]


def _kind_of_name(name: str) -> str:
    """What a report calls a dropped tensor: its name, and if there are many like it, what they have in common."""
    if re.match(r"(module\.|model\.)*ema_", name):
        return "ema_*"
    return name.rsplit(".", 1)[-1] if "num_batches" in name else re.sub(r"\d+", "#", utils.printable(name, 100))


def convert(
    path: str | Path,
    network_shapes: NetworkShapes,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    eps: float | None = None,
    model_config: Config | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    source_config: str | Path | None = None,
) -> tuple[Checkpoint, Report]:
    """Any checkpoint of the family as one of this project, and a report.

    path: a file of any format of the module's docstring, or of this project. The latter is only read and checked, and
        may hold more than a checkpoint needs, such as the state of a training; match_to_network is the caller's.
    network_shapes: model.network_shapes.
    style: "caffe" or "pytorch", for mmdetection's ResNets where neither the file nor its name says it.
    class_names: names of the foreground classes, where they are not COCO's 80 (or torchvision's 91). Without them,
        "class 1" and so on.
    eps: of the batch norms of a torchvision ResNet-50 with frozen ones, which the file does not say: 0 (the default)
        for the published one and what was trained from it, 1e-5 for what was trained from an ImageNet backbone.
    model_config: the settings of a model that takes the weights. Where nothing else says them, the file's style,
        anchors and pixels are the model's, and its class names are if the model has as many classes.
    settings: of Config, for what a foreign file does not say or cannot, such as RPN_ANCHOR_RATIOS. They count before
        shapes are checked.
    source_config: the file of the configuration that a Detectron2 checkpoint was trained with. None: config.yaml or
        config.yml in the checkpoint's folder, if it is there; "none": no file. What it says counts less than settings
        and style, and more than constants of the file.

    Returns: the checkpoint: plain data, and tensors on the CPU, float32 if converted; some are mapped from the file.
        "model" has only the backbone for ImageNet weights.
    Raises: FileNotFoundError; ValueError for files that are damaged, unknown, incomplete, ambiguous, or hold code.
    """
    path = Path(path)
    kind, contents, (raw, others, names) = _read(path)
    if contents.get("format") == FORMAT:
        return _checked(path, contents, style, class_names, eps, source_config)
    source = _recognise(path, raw, kind)
    style = style or settings.get("BACKBONE_STYLE")
    found, lines = _source_config(path, source, source_config, style)
    tensors, origin, dropped, unused = _rename(path, source, raw)
    check_values(path, tensors, origin)
    _check_ranks(path, tensors, origin)
    constants = read_constants(path, raw if source.name == "detectron2" else {}, found.input_format)
    known = {**constants.settings, **found.settings}
    config = _config(path, source, tensors, settings, model_config, known)
    found.check(config, tensors)
    dropped = [name for name in dropped if name not in constants.names]
    report = Report(f"{source.name}: {source.title}", len(origin), [], dropped + others, names, configured=lines)
    report.assumed += contradictions(constants.settings, config)
    _decide_norms(source, config, tensors, origin, report, "BACKBONE_NORM" in {*found.settings, *settings})
    shapes = shapes_of(config, network_shapes, source.name == "imagenet", str(path))
    _check_names(path, source, set(tensors), shapes, unused, origin)
    text, stored_names = _meta(contents)
    refuse_config(path, text if source.name == "mmdet" else "")
    if source.name == "detectron2":
        bgr = _decide_style(config, constants, style or found.settings.get("BACKBONE_STYLE"), model_config, report)
    elif source.name == "imagenet":
        bgr = _decide_classifier(path, source, config, contents, style, report)
    else:
        bgr = _decide_pixels(path, source, config, text, style, model_config, report)
    used_eps = _eps(source, dropped, config.BACKBONE, eps)
    _check_zero_variances(path, source, tensors, used_eps)
    try:
        report.folded += _fold(tensors, source, used_eps, bgr, config.NUM_CLASSES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_shapes(path, tensors, shapes, origin, raw)
    config.NAME = source.name
    if source.name != "imagenet":
        given = class_names if class_names is not None else (settings.get("CLASS_NAMES") or (None,))[1:] or None
        classes = _class_names(path, source, config.NUM_CLASSES, given, stored_names, model_config)
        _name_classes(config, path, classes)
        _assume(report, source, config, eps, used_eps, {*known, *settings}, model_config or config)
    note = f"{source.name}, {utils.printable(path.name)}, sha256 {sha256_of(path)}"
    return Checkpoint(make_checkpoint(config, note, {name: tensors[name] for name in shapes})), report


def _read(path: Path) -> tuple[str, Mapping[str, Any], StateDict]:
    """The kind and the contents of a file, and the weights in them; none of a checkpoint of this project.

    Raises: as convert.
    """
    kind = file_kind(path)
    if kind == "hdf5":
        from .keras_files import read_keras  # here, with h5py: few files are of Keras

        return kind, {}, StateDict(*read_keras(path), [])
    contents = read_safetensors(path) if kind == "safetensors" else load_torch_file(path)
    is_ours = contents.get("format") == FORMAT
    return kind, contents, StateDict({}, [], []) if is_ours else find_state_dict(path, contents)


def _source_config(
    path: Path, source: Format, given: str | Path | None, style: str | None
) -> tuple[SourceConfig, list[str]]:
    """The configuration of a checkpoint's training, an empty one if there is none; and lines that say so.

    given: as source_config of convert. style: the caller's. Raises: ValueError for one that is given to files of other
    formats.
    """
    if source.name == "detectron2":
        found, lines = find_source_config(path, given)
        said = found.settings.get("BACKBONE_STYLE") if found else None
        if None not in (said, style) and style != said:
            lines.append(f"{style} style as given, where {found.path} says {said}")
        return (found or NO_CONFIG), lines
    _check_no_config(path, source.title, given)
    return NO_CONFIG, []


def _check_no_config(path: Path, title: str, given: str | Path | None) -> None:
    if given is not None and str(given) != NONE:
        raise ValueError(
            f"--source-config, in Python source_config, is for detectors of Detectron2, and {path} is {title}; leave "
            "it out"
        )


# What weights mean, and no foreign file says: anchors, pixels, ...
_MEANING = tuple(sorted({*settings_that(WEIGHTS)} - {"DIALECT", "BACKBONE", "BACKBONE_STYLE"}))


def _config(
    path: Path,
    source: Format,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    model_config: Config | None,
    known: Mapping[str, Any],
) -> Config:
    """The settings of a foreign file: the caller's, then known ones, then those of the model that takes the weights,
    then what the shapes of its tensors say.

    settings, model_config: as for convert. known: what the file or its training's configuration says.

    Raises: ValueError if they contradict each other, or if the file has another number of anchors than they say.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = _settings(path, source, shapes)
    if source.name != "imagenet" and model_config is not None:
        has_own_pixels = source.dialect == "mmdet" or found["IMAGE_CHANNEL_COUNT"] != model_config.IMAGE_CHANNEL_COUNT
        own = {"PIXEL_RANGE", *(PER_CHANNEL_SETTINGS if has_own_pixels else ())}
        found |= {name: getattr(model_config, name) for name in _MEANING if name not in own}
    names = {*_MEANING, *settings_that(SHAPE)} - {"DIALECT", "BACKBONE", "BACKBONE_STYLE"}
    found |= known
    found |= {name: value for name, value in settings.items() if name in names}
    try:
        config = Config(**found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rows = shapes.get("rpn.objectness.weight", (0,))[0] // (2 if source.pairs else 1)
    anchors, ratios = rows, config.RPN_ANCHOR_RATIOS
    if anchors == shapes.get("rpn.deltas.weight", (0,))[0] // 4 and anchors not in (0, len(ratios)):
        raise ValueError(
            f"{path} has {anchors} anchors in each cell, and RPN_ANCHOR_RATIOS is {ratios}. Give the {anchors} ratios "
            "of width to height that it was trained with, in rising order, as --set RPN_ANCHOR_RATIOS=0.5,1,2 or in "
            "Python RPN_ANCHOR_RATIOS=(0.5, 1, 2). Several sizes of anchors on one level are not possible"
        )
    return config


def _decide_pixels(
    path: Path,
    source: Format,
    config: Config,
    text: str,
    style: str | None,
    model_config: Config | None,
    report: Report,
) -> bool:
    """Set the style of a config, and under mmdetection's dialect its mean and std. What is guessed is reported.

    text: of the stored config. style, model_config: as for convert.

    Returns: whether the first convolution takes BGR.
    """
    config.BACKBONE_STYLE, guess = _style(path, source, config.BACKBONE, text, style, model_config)
    if guess:
        report.assumed.append(_style_note(config.BACKBONE_STYLE, guess, model_config))
    if source.dialect != "mmdet":
        return source.bgr
    bgr, config.MEAN_PIXEL, config.STD_PIXEL = _pixels(text, config.BACKBONE_STYLE, config.BACKBONE)
    if "mean" not in text:
        models = config.BACKBONE if config.BACKBONE in _CAFFE2 else f"{config.BACKBONE_STYLE} style"
        report.assumed.append(f"pixels in {'BGR' if bgr else 'RGB'} order, as mmdetection's models of {models} have")
    return bgr


def _decide_classifier(
    path: Path, source: Format, config: Config, contents: Mapping[str, Any], style: str | None, report: Report
) -> bool:
    """Set style, mean and std of an ImageNet classifier's config. What is guessed is reported.

    contents: of the file. style: the caller's, or None.

    Returns, raises: as _decide_pixels.
    """
    if source.bgr:
        is_resnext = config.BACKBONE.startswith("resnext")
        known, maker = ("pytorch", "FAIR's ResNeXts") if is_resnext else ("caffe", "MSRA's ResNets")
        report.assumed.append(f"{known} style and pixels in BGR order, as {maker} with Caffe2's names have")
    elif source.group_norms:
        is_certain = contents.get("__author__") == "torchvision" or style is not None
        known = style or "pytorch"
        if not is_certain:
            report.assumed.append(
                "pytorch style and pixels in RGB order, as torchvision's weights in Detectron2's names have; give "
                "--style caffe, in Python style='caffe', for MSRA's, which are caffe style in BGR"
            )
    else:  # only Caffe's have that bias
        known = "caffe" if "conv1.bias" in report.dropped else "pytorch"
    config.BACKBONE_STYLE, _ = _style(path, source, config.BACKBONE, f"style='{known}'", style)
    bgr, config.MEAN_PIXEL, config.STD_PIXEL = _pixels("", config.BACKBONE_STYLE)
    return bgr or source.bgr


def _style_note(style: str, reason: str, model_config: Config | None) -> str:
    """A line about a style that was guessed, and what changes it. model_config: as for convert."""
    change = "--style or style=..." if model_config is None else "the model's setting BACKBONE_STYLE"
    return f"{style} style, {reason}; {change} changes it"


def _decide_style(
    config: Config, constants: Constants, style: str | None, model_config: Config | None, report: Report
) -> bool:
    """Set the style of a config of Detectron2. What is guessed is reported.

    style: what somebody said. model_config: as for convert.

    Returns: whether the first convolution takes BGR.
    Raises: ValueError for a style that does not exist.
    """
    if style not in (None, *STYLES):
        raise ValueError(f"style must be caffe or pytorch, not {style!r}")
    guessed, reason = guess_style(config)
    if model_config is not None:
        guessed, reason = model_config.BACKBONE_STYLE, "as the model has it"
    config.BACKBONE_STYLE = style or guessed
    if style is None and reason:
        report.assumed.append(_style_note(guessed, reason, model_config))
    is_color = config.IMAGE_CHANNEL_COUNT == 3
    if constants.guess and is_color:
        report.assumed.append(f"pixels in {constants.order} order, {constants.guess}")
    if constants.settings:
        count = len(constants.names)
        report.folded.append(f"{count} constants of pixels and anchors into {', '.join(constants.settings)}")
    return is_color and constants.order == "BGR"


def _decide_norms(
    source: Format,
    config: Config,
    tensors: dict[str, Tensor],
    origin: dict[str, str],
    report: Report,
    is_said: bool,
) -> None:
    """Complete the norms of a backbone that has no statistics. What is guessed is reported.

    is_said: somebody said which norms these are.
    """
    if not source.group_norms:
        return
    is_filled = config.BACKBONE_NORM == "batch" and add_statistics(tensors, origin)
    if is_said:
        return
    if is_filled:
        report.assumed.append(
            "mean 0 and variance 1 of the backbone's norms, which have no statistics, as in older files of frozen "
            "batch norms; if they are group norms, set BACKBONE_NORM to group"
        )
    elif config.BACKBONE_NORM == "group":
        report.assumed.append("group norms in the backbone, because its norms and others have no statistics")


def _check_zero_variances(path: Path, source: Format, tensors: Mapping[str, Tensor], eps: float) -> None:
    """Raises ValueError for variances of zero in a torchvision file that is taken to have eps 0."""
    zeros = [name for name, tensor in tensors.items() if name.endswith("running_var") and float(tensor.min()) <= 0]
    if source.name == "torchvision" and eps == 0 and zeros:
        raise ValueError(
            f"{path}: {zeros[0]}, in our names, has zeros, so its batch norms cannot have the eps 0 of the published "
            "detector. Was it trained from an ImageNet backbone? Then give --eps 1e-5, in Python eps=1e-5"
        )


UNNAMED = "no names of classes"  # how the note of _assume begins that published files may leave, too


def _assume(
    report: Report, source: Format, config: Config, eps: float | None, used_eps: float, known: set[str], usual: Config
) -> None:
    """Report what a foreign detector's file does not say and changes results.

    known: the settings that somebody said. usual: has the values of the others: the config, or that of a model which
    takes the weights.
    """
    if source.name == "torchvision" and eps is None and used_eps == 0:
        training = "the file is of a training, because it has an optimizer; " if "optimizer" in report.dropped else ""
        report.assumed.append(
            f"eps 0 of the batch norms, as in the published detector and what was trained from it; {training}give "
            "--eps 1e-5, in Python eps=1e-5, if the training began from an ImageNet backbone"
        )
    if any(name.startswith("sem_seg_head.") for name in report.dropped):
        report.assumed.append("instances alone: the semantic head of this panoptic model is left out")
    if "ema_state" in report.dropped:
        report.assumed.append(
            "the weights of model, as Detectron2 takes them by default, and not their moving average, ema_state, which "
            "the file has too; it opens if it is saved alone, as a file of its own"
        )
    if config.CLASS_NAMES[1:2] == ("class 1",):
        last = config.NUM_CLASSES - 1
        called = f'they are called "class 1" to "class {last}"' if last > 1 else 'the only one is called "class 1"'
        report.assumed.append(f"{UNNAMED}: {called}; --classes FILE, in Python class_names=[...], names them")
    names = ("RPN_ANCHOR_SCALES", "IMAGE_MIN_DIM", "IMAGE_MAX_DIM", "MEAN_PIXEL", "STD_PIXEL")
    values = {name: numbers(getattr(usual, name)) for name in names}
    texts = {
        "RPN_ANCHOR_SCALES": f"anchors of {values['RPN_ANCHOR_SCALES']} pixels",
        "IMAGE_MIN_DIM": f"images of {values['IMAGE_MIN_DIM']} to {values['IMAGE_MAX_DIM']} pixels",
        "MEAN_PIXEL": f"pixels minus {values['MEAN_PIXEL']}",
        "STD_PIXEL": f"divided by {values['STD_PIXEL']}",
    }
    said = [text for name, text in texts.items() if name not in known]
    if said:
        changes = ", ".join(name for name in names if name not in known)
        report.assumed.append(f"{', '.join(said)}; the file does not say these, and the settings {changes} change them")


def _checked(
    path: Path,
    contents: Mapping[str, Any],
    style: str | None,
    class_names: Sequence[str] | None,
    eps: float | None,
    source_config: str | Path | None,
) -> tuple[Checkpoint, Report]:
    """A checkpoint of this project, with other names of classes where class_names gives them."""
    checkpoint = read_checkpoint(contents, path)
    _check_no_config(path, "a checkpoint of this project", source_config)
    if eps is not None:
        raise ValueError(f"eps {eps:g} is for checkpoints of torchvision; {path} is of this project, which adds none")
    stored_style = checkpoint["config"].get("BACKBONE_STYLE", Config.BACKBONE_STYLE)
    if style not in (None, stored_style):
        raise ValueError(f"style {style!r} contradicts {path}, whose config says {stored_style!r}")
    if class_names is not None:
        config = config_of(checkpoint)
        _name_classes(config, path, _given_names(path, config.NUM_CLASSES, class_names))
        plain = config.to_dict()
        names = {"class_names": plain["CLASS_NAMES"], "category_ids": plain["CATEGORY_IDS"]}
        checkpoint = Checkpoint({**checkpoint, "config": plain, **names})
    others = [name for name in checkpoint if name not in CHECKPOINT_KEYS]
    return checkpoint, Report("a checkpoint of this project", len(checkpoint["model"]), [], others)


def _eps(source: Format, dropped: Iterable[str], backbone: str, eps: float | None) -> float:
    """The number that a format's batch norms add to the variance.

    torchvision's frozen batch norms add 1e-5, but those of the published v1, a ResNet-50, add 0. Its usual batch norms,
    which count batches, always add 1e-5.

    eps: the caller's, or None. Raises: ValueError if it contradicts the checkpoint.
    """
    counts_batches = any(name.endswith(".num_batches_tracked") for name in dropped)
    if source.name != "torchvision":
        expected = source.eps
    elif counts_batches or backbone != "resnet50":
        expected = 1e-5
    else:
        return source.eps if eps is None else eps
    if eps not in (None, expected):
        raise ValueError(f"eps {eps:g} contradicts the checkpoint, whose batch norms have {expected:g}")
    return expected


def _name_classes(config: Config, path: Path, classes: tuple[list[str], list[int]]) -> None:
    """Give a config names and category ids of classes, and a NAME: coco, or that of the file."""
    config.CLASS_NAMES, config.CATEGORY_IDS = classes
    coco = {category: name for name, category in zip(*classes, strict=True) if category in COCO_CATEGORIES}
    config.NAME = "coco" if coco == COCO_CATEGORIES else re.sub(r"\W+", "_", path.stem).strip("_") or "custom"

"""What a file of Detectron2 holds beside its weights, and what is assumed where it does not say.

Files of its model zoo have a mean and a deviation of pixels (`pixel_mean`, `pixel_std`) and, for each level, the
anchors of a cell (`proposal_generator.anchor_generator.cell_anchors.0` to `.4`). Files of its trainer may lack them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from config import BACKBONES, Config

from .checkpoint import check_values

_CELLS = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors\.(\d{1,3})")
_PIXELS = {"pixel_mean": "MEAN_PIXEL", "pixel_std": "STD_PIXEL"}
_LEVELS = 5  # P2 to P6
_MOST_ROWS = 1000  # channels of an image, or anchors of a cell
_IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB
# The settings that say which norm a part of the network has, and how names of the part begin.
_NORMED_PARTS = {
    "BACKBONE_NORM": "backbone.",
    "FPN_NORM": "fpn.",
    "BOX_HEAD_NORM": "box_head.convs.",
    "MASK_HEAD_NORM": "mask_head.convs.",
}


class Constants(NamedTuple):
    """settings: of Config, as a file's constants say them; names: the file's, of these constants.

    order: of the channels of its images, "BGR" or "RGB". guess: why order was assumed; None: somebody said it.
    """

    settings: dict[str, Any]
    names: tuple[str, ...]
    order: str
    guess: str | None


############################################################
#  Pixels and anchors
############################################################


def read_constants(path: Path, raw: Mapping[str, Tensor], input_format: str | None = None) -> Constants:
    """The constants of a file of Detectron2. Other files have none.

    raw: the file's tensors. input_format: its INPUT.FORMAT, "BGR", "RGB" or "L", where somebody says it.

    Raises: ValueError for constants that are none, and for anchors that no settings describe.
    """
    found = {name: tensor for name, tensor in raw.items() if name in _PIXELS or _CELLS.fullmatch(name)}
    check_values(path, found)
    pixels = {setting: _pixel_values(path, name, raw[name]) for name, setting in _PIXELS.items() if name in raw}
    order, guess = _order(pixels.get("MEAN_PIXEL", ()), input_format)
    if order == "BGR":
        pixels = {name: values[::-1] if len(values) == 3 else values for name, values in pixels.items()}
    return Constants({**pixels, **_read_anchors(path, raw)}, tuple(found), order, guess)


def _pixel_values(path: Path, name: str, tensor: Tensor) -> tuple[float, ...]:
    """The number of each channel, in the file's order."""
    values = tensor.flatten().float()
    if len(values) > _MOST_ROWS or (name == "pixel_std" and float(values.min()) <= 0):
        expected = "a number above 0" if name == "pixel_std" else "a number"
        raise ValueError(f"{path}: {name} must have {expected} for each channel; is the file damaged?")
    return tuple(float(str(value)) for value in values.numpy())  # 103.53, not 103.52999877929688


def _order(mean: Sequence[float], input_format: str | None) -> tuple[str, str | None]:
    """The order of a file's channels, and why it is assumed. mean: of pixels, in that order; () if nobody says it."""
    if input_format is not None:
        return ("RGB" if input_format == "RGB" else "BGR"), None
    for order, expected in (("RGB", _IMAGENET_MEAN), ("BGR", _IMAGENET_MEAN[::-1])):
        if len(mean) == 3 and all(abs(one - other) < 2 for one, other in zip(mean, expected, strict=True)):
            return order, "as its pixel_mean has"
    return "BGR", "as detectron2 has without another INPUT.FORMAT"


def _read_anchors(path: Path, raw: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """RPN_ANCHOR_SCALES and RPN_ANCHOR_RATIOS of the anchors in a file, {} without them."""
    levels = {int(match[1]): tensor for name, tensor in raw.items() if (match := _CELLS.fullmatch(name))}
    if not levels:
        return {}
    if sorted(levels) != list(range(_LEVELS)):
        raise ValueError(f"{path} has anchors for {len(levels)} feature maps, and this project has {_LEVELS}, P2 to P6")
    scales, ratios = zip(*(_anchors_of_level(path, level, levels[level]) for level in range(_LEVELS)), strict=True)
    if any(not _same(ratios[0], other) for other in ratios):
        raise ValueError(
            f"{path} has anchors of other ratios on some levels than on P2, and RPN_ANCHOR_RATIOS is the same for all"
        )
    # The conversion turns the anchors of a cell round: theirs begin with the wide ones, ours with the tall ones.
    return {"RPN_ANCHOR_SCALES": scales, "RPN_ANCHOR_RATIOS": ratios[0][::-1]}


def _anchors_of_level(path: Path, level: int, anchors: Tensor) -> tuple[float, tuple[float, ...]]:
    """The size and the ratios of width to height of anchors [A, (x1, y1, x2, y2)] about (0, 0)."""
    shape, anchors = list(anchors.shape), anchors.double()
    is_right = len(shape) == 2 and shape[1] == 4 and shape[0] <= _MOST_ROWS
    if not is_right or not (anchors[:, 2:] > anchors[:, :2]).all():
        raise ValueError(f"{path}: anchors of level {level} must be [A, (x1, y1, x2, y2)]; is the file damaged?")
    sides = anchors[:, 2:] - anchors[:, :2]  # [A, (width, height)]
    sizes = sides.prod(dim=1).sqrt()
    is_centred = ((anchors[:, :2] + anchors[:, 2:]).abs() <= 1e-5 * sides).all()
    if not is_centred or not _same(sizes.tolist(), [float(sizes[0])] * len(sizes)):
        problem = "several sizes" if is_centred else "centres that are not those of the cells"
        raise ValueError(
            f"{path} has anchors of {problem} on level {level}, and RPN_ANCHOR_SCALES has one size for each level"
        )
    return _rounded(float(sizes[0])), tuple(_rounded(ratio) for ratio in (sides[:, 0] / sides[:, 1]).tolist())


def _rounded(value: float) -> float:
    """A number that went through float32, as people wrote it: 32, not 32.000001."""
    short = float(f"{value:.6g}")
    return short if math.isclose(short, value, rel_tol=3e-7) else value


def _same(values: Sequence[float], others: Sequence[float]) -> bool:
    return len(values) == len(others) and all(
        math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-5) for pair in zip(values, others, strict=True)
    )


def contradictions(constants: Mapping[str, Any], config: Config) -> list[str]:
    """A line for each setting of a config that a file's constants say otherwise."""
    return [
        f"{name} {numbers(getattr(config, name))} as given, where the file's own constants say {numbers(value)}"
        for name, value in constants.items()
        if not _same(value, getattr(config, name))
    ]


def numbers(value: Any) -> str:
    """A number, or several, for people."""
    return " ".join(f"{number:g}" for number in (value if isinstance(value, tuple | list) else (value,)))


############################################################
#  Norms
############################################################


def group_norm_settings(names: Iterable[str]) -> dict[str, str]:
    """The settings that say "group", for the parts whose norms have no statistics.

    A backbone's norms without statistics are group norms if the pyramid or a head has such norms too. Otherwise they
    are the frozen batch norms of older files: add_statistics.

    names: ours, of a file's tensors.
    """
    names = list(names)
    found = {setting: "group" for setting, prefix in _NORMED_PARTS.items() if _has_plain_norms(names, prefix)}
    return found if found.keys() - {"BACKBONE_NORM"} else {}


def _has_plain_norms(names: Iterable[str], prefix: str) -> bool:
    """Whether a part of the network has norms, and none of them has statistics."""
    leaves = {name.rpartition(".norm.")[2] for name in names if name.startswith(prefix) and ".norm." in name}
    return "weight" in leaves and not leaves & {"running_mean", "running_var"}


def add_statistics(tensors: dict[str, Tensor], origin: dict[str, str]) -> bool:
    """Give the frozen batch norms of a backbone that has no statistics at all the mean 0 and the variance 1.

    tensors: by our names; changed in place. origin: {our name: the file's}; changed in place.

    Returns: whether there were such norms.
    """
    if not _has_plain_norms(tensors, "backbone."):
        return False
    for name in [name for name in tensors if name.startswith("backbone.") and name.endswith(".norm.weight")]:
        module = name.removesuffix("weight")
        for leaf, value in (("running_mean", 0.0), ("running_var", 1.0)):
            tensors[module + leaf] = torch.full_like(tensors[name], value, dtype=torch.float32)
            origin[module + leaf] = origin[name]
    return True


############################################################
#  Style
############################################################


def guess_style(config: Config) -> tuple[str, str | None]:
    """Where bottlenecks have their stride in detectron2's own models of such a network, and why; None: it is no guess,
    because the network has no bottlenecks."""
    if not BACKBONES[config.BACKBONE].is_bottleneck:
        return "caffe", None
    if config.BACKBONE.startswith("resnext"):
        return "pytorch", "as detectron2's models with ResNeXt have"
    if config.BACKBONE_NORM == "group":
        return "pytorch", "as detectron2's models with group norm have"
    if any(deviation != 1 for deviation in config.STD_PIXEL):
        return "pytorch", "as detectron2's models whose pixels are divided by a deviation have"
    return "caffe", "as detectron2's ResNets have"

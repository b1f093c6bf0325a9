"""A checkpoint by name or path, and the network that it makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model import MaskRCNN

from .checkpoint import is_backbone
from .convert import convert
from .published import EMBEDDED, PUBLISHED, find_weights


def load_checkpoint(
    name_or_path: str | Path, style: str | None = None, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The contents of a checkpoint of ours, of a path, ours or foreign, or a published name, whose style is known.

    style, class_names, raises: as find_weights and convert.
    """
    path, name = find_weights(name_or_path), str(name_or_path)
    if style is None and name in PUBLISHED:
        style = PUBLISHED[name].style
    checkpoint = convert(path, style, class_names)
    if path == EMBEDDED.get(name):  # its file says "trained from nothing", which is true and tells a user little
        checkpoint["source"] = f"{name}, trained by this project (docs/results.md)"
    return checkpoint


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    **config_overrides: Any,
) -> MaskRCNN:
    """The network of a checkpoint: a path, ours or foreign, or a published name. `--model` of every command line.

    device: where to put it; None leaves the choice to MaskRCNN.from_checkpoint.
    style, class_names: as for convert.
    config_overrides: settings of Config that replace the checkpoint's.

    Raises: as find_weights and convert; ValueError for weights of a backbone alone, which can only start a training.
    """
    name = str(name_or_path)
    if name == "imagenet" and not Path(name).is_file():
        raise ValueError("model imagenet is a backbone alone: training can start from it, detection cannot")
    checkpoint = load_checkpoint(name_or_path, style, class_names)
    if is_backbone(checkpoint):
        raise ValueError(f"{name} is a backbone alone: training can start from it, detection cannot")
    return MaskRCNN.from_checkpoint(checkpoint, device, **config_overrides)

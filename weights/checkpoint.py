"""A checkpoint of this project: what is in it, reading and writing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import runtime
import utils
from config import Config

from .torch_files import load_torch_file

FORMAT, FORMAT_VERSION = "mask-scoring-rcnn", 1
CHECKPOINT_KEYS = ("format", "version", "config", "dialect", "class_names", "category_ids", "source", "model")


def read_checkpoint(checkpoint: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint of ours, checked: format, version, settings, class names and finite weights.

    Raises: FileNotFoundError; ValueError which says what is wrong.
    """
    name = "the checkpoint"
    if not isinstance(checkpoint, Mapping):
        name, checkpoint = str(checkpoint), load_torch_file(checkpoint)
    if not isinstance(checkpoint, Mapping) or checkpoint.get("format") != FORMAT:
        raise ValueError(
            f"{name} is not a checkpoint of this project; `python convert_weights.py SRC DST` makes one of those of "
            "Matterport, the 2018 port, maskrcnn-benchmark, mmdetection and torchvision"
        )
    if checkpoint.get("version") != FORMAT_VERSION:
        raise ValueError(f"{name} has version {checkpoint.get('version')}; this code reads {FORMAT_VERSION}")
    for key in ("config", "class_names", "category_ids", "source", "model"):
        if key not in checkpoint:
            raise ValueError(f"{name} lacks {key!r}; it was not written whole")
    for key, tensor in checkpoint["model"].items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: {key} is {type(tensor).__name__}, not a tensor")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: {key} is not finite everywhere; the training diverged or the file is damaged")
    return checkpoint


def is_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a backbone and nothing else."""
    return all(name.startswith("backbone.") for name in checkpoint["model"])


def make_checkpoint(config: Config, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    plain = config.to_dict()
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": plain,
        "dialect": config.DIALECT,
        "class_names": plain["CLASS_NAMES"],
        "category_ids": plain["CATEGORY_IDS"],
        "source": source,
        "model": {name: _own(tensor) for name, tensor in tensors.items()},
    }


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, float32, in memory of its own: neither a view nor a mapped file."""
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, wholly or not at all."""
    runtime.write_atomically(path, lambda stream: torch.save(dict(checkpoint), stream))


def halved(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint in half of the bytes: matrices and filters as float16, which is read as float32 again.

    Vectors stay as they are: they are few, and variances may be beyond float16.

    Raises: ValueError for weights that are beyond float16.
    """
    tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in checkpoint["model"].items()}
    beyond = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise ValueError(f"--half: {utils.listed(beyond)} has numbers beyond 65504, the most that float16 can hold")
    return {**checkpoint, "model": tensors}

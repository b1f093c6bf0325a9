"""Errors of a training that say what to do: memory, numbers that are not finite, and what to write to a file then."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import MEMORY, settings_that


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine was too small."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def memory_advice(config, device: torch.device) -> str:
    """Which settings to change after an error that is_out_of_memory, with their values."""
    values = ", ".join(f"{name} = {getattr(config, name)}" for name in settings_that(MEMORY))
    return (
        f"out of memory on {device}. Lower IMAGES_PER_GPU (ACCUMULATE_STEPS keeps the batch as large), set "
        "ACTIVATION_CHECKPOINTING = True or TRAIN_DTYPE = 'bfloat16', or lower IMAGE_MIN_DIM and IMAGE_MAX_DIM or "
        f"TRAIN_ROIS_PER_IMAGE. They are: {values}"
    )


def image_ids_of(batches: Sequence[Any]) -> list:
    """The image_ids of batches, one batch after another; none for batches without them."""
    return [image for batch in batches for image in getattr(batch, "image_ids", ())]


def all_finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


def infinite_tensors(module: nn.Module) -> list[str]:
    """The names of a module's parameters and buffers that hold NaN or infinity. Waits for the device once."""
    tensors = module.state_dict()
    flags = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, flags, strict=True) if not is_finite]


def plain(value: Any) -> Any:
    """The value in types that torch.load(weights_only=True) reads: tensors on the CPU, numbers, strings, lists, dicts.

    Anything else becomes its repr.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | str | None) else repr(value)

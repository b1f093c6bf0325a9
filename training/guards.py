"""What keeps a training from losing work, or its user from guessing: signals, and errors that say what to do."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

############################################################
#  Signals
############################################################

# A terminal and torchrun both hand on Ctrl-C: signals this close together are one.
REPEAT_SECONDS = 1.0


class StopSignals:
    """Within this context the first SIGINT or SIGTERM is only noted; another one does what it did before."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may
            self._handlers = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a forked loader: what stops the training stops it
            return
        if self.received is None:
            self.received, self._time = number, time.monotonic()
            text = f"\n{signal.Signals(number).name}: finishing what is begun, then saving. Again: stops at once.\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())  # print is not allowed here, where it may have been interrupted itself
        elif time.monotonic() - self._time > REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)


############################################################
#  Errors that say what to do
############################################################


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of a GPU's, or the machine's, memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


# What takes memory, from what helps most without changing results.
_MEMORY_SETTINGS = (
    *("IMAGES_PER_GPU", "ACTIVATION_CHECKPOINTING", "TRAIN_DTYPE", "IMAGE_MIN_DIM", "IMAGE_MAX_DIM"),
    "TRAIN_ROIS_PER_IMAGE",
)


def memory_advice(config, device: torch.device) -> str:
    values = ", ".join(f"{name} = {getattr(config, name)}" for name in _MEMORY_SETTINGS)
    return (
        f"out of memory on {device}. Lower IMAGES_PER_GPU (ACCUMULATE_STEPS keeps the batch as large), set "
        "ACTIVATION_CHECKPOINTING = True or TRAIN_DTYPE = 'bfloat16', or lower IMAGE_MIN_DIM and IMAGE_MAX_DIM or "
        f"TRAIN_ROIS_PER_IMAGE. They are: {values}"
    )


def image_ids_of(batches: Sequence[Any]) -> list:
    return [image for batch in batches for image in getattr(batch, "image_ids", ())]


def all_finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


def plain(value: Any) -> Any:
    """The value as torch.load(weights_only=True) can read it: tensors on the CPU, numbers, strings, lists and dicts."""
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

"""A thread that prints what a training is doing when it makes no progress."""

import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

import runtime


class Stall(NamedTuple):
    """How long an activity may take, and the usual causes if it takes longer."""

    activity: str  # regular expression that fits the names of the activities
    patience: float  # how many times longer than usual it may take
    advice: str


_BUSY = (
    "Usual causes: the first steps of COMPILE = True (minutes, once), memory swapped to disk or a GPU shared with "
    "other programs (see top and nvidia-smi; lower IMAGES_PER_GPU), or very large images."
)
STALLS = (  # the first one that fits an activity counts
    Stall(
        "other processes",
        5,
        "Another process is behind or has died: its own messages say where it stands.",
    ),
    Stall(
        "data",
        1,
        "Usual causes: an augmentation or load_image() that does not return, a slow or unreachable disk, a loader that "
        "died or waits for a lock. Set WORKERS = 0: then this process loads, and you see the error. If loading is only "
        "slow: more WORKERS, smaller image files, a local disk.",
    ),
    Stall("forward", 1, _BUSY),
    Stall("backward", 1, f"{_BUSY} With torchrun: another process that died or stalls."),
    Stall(
        "weights|optimi[sz]er",
        1,
        "Usual causes: memory swapped to disk, or a GPU that hangs in what it was given earlier "
        "(CUDA_LAUNCH_BLOCKING=1 shows where).",
    ),
    Stall(
        "checkpoint",
        1,
        "Usual causes: a full or slow disk, or a network drive that does not answer (see df -h). Lower "
        "CHECKPOINTS_KEPT, raise CHECKPOINT_MINUTES, or train into a local folder.",
    ),
    Stall(
        "validation",
        1,
        "Usual causes: those of waiting for data. Set WORKERS = 0 to see an error; fewer VALIDATION_STEPS are faster.",
    ),
    Stall(
        "evaluation",
        10,
        "It detects in every image, which takes long for a large data set: evaluate fewer images, or less often "
        "(EVAL_EVERY).",
    ),
    Stall("callback", 5, "A function or object of custom_callbacks has not returned."),
)
_OTHER_STALL = Stall("", 1, "")


class Watchdog:
    """Prints what a training is doing when it stalls, for how long, where in the code, and what usually causes it.

    The training sets `activity` whenever it begins something else. The watchdog never stops anything, for the training
    may only be slow. It prints again after twice the time.
    """

    def __init__(
        self, seconds: float = 120.0, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        seconds: how long most activities may take; some, like an evaluation, may take several times as long.
        stream: where to write; sys.stderr by default. clock: seconds.

        Raises: ValueError unless seconds is above 0.
        """
        if not seconds > 0:
            raise ValueError(f"seconds must be above 0, not {seconds}; it is how long an activity may take")
        self.seconds = seconds
        self._stream, self._clock = sys.stderr if stream is None else stream, clock
        self._current: tuple[str, float, int] | None = None  # the activity, when it began, and the thread that does it
        self._warned: tuple[str, float, int] | None = None  # the activity that the last warning was of
        self._next_warning = 0.0  # seconds after that activity began
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="training watchdog", daemon=True)
        self._thread.start()

    @property
    def activity(self) -> str | None:
        """The present activity: one that STALLS knows, or any other words. None before the first."""
        return None if self._current is None else self._current[0]

    @activity.setter
    def activity(self, name: str) -> None:
        """The calling thread does this from now on. The same activity again counts as progress, too."""
        self._current = name, self._clock(), threading.get_ident()  # one assignment: no lock is needed

    def check(self) -> str | None:
        """The warning to print now; None while the activity has not taken too long."""
        current = self._current
        if current is None:
            return None
        name, began, thread = current
        stall = next((stall for stall in STALLS if re.search(stall.activity, name)), _OTHER_STALL)
        if current is not self._warned:
            self._next_warning = self.seconds * stall.patience
        elapsed = self._clock() - began
        if elapsed < self._next_warning:
            return None
        self._warned, self._next_warning = current, 2 * elapsed
        process = f" of process {runtime.rank()}" if runtime.world_size() > 1 else ""
        return f"no progress{process} for {elapsed:.0f} s: {name}{_where(thread)}. {stall.advice}".rstrip()

    def close(self) -> None:
        """Stop watching. A second call does nothing."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self.seconds / 4):
            text = self.check()
            if text is not None:
                try:
                    self._stream.write(f"\n{text}\n")
                    self._stream.flush()
                except (OSError, ValueError):  # the terminal was closed
                    return


def _where(thread: int) -> str:
    """The lines of code that a thread is running, the innermost first; "" for a thread that has ended."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    calls = reversed(traceback.extract_stack(frame)[-3:])
    return ", in " + " < ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)

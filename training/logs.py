"""The logs of a training: metrics in files, and a line of progress.

LOGS/{name}{YYYYmmddTHHMM}/metrics.jsonl   the records, one JSON object a line: kind, epoch, step and numbers
                           metrics.csv     the same as a table, derived from it
                           losses.png      the same as curves (curves.py)
                           events.out.*    the same for TensorBoard, where that is installed

No record depends on the clock, so a continued training writes the same records as an uninterrupted one.
"""

import csv
import importlib.util
import io
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

import runtime

logger = logging.getLogger(__name__)

# The keys of a record that say what it is of: its kind, the completed epochs, and the steps of the next epoch.
PLACE = ("kind", "epoch", "step")
# The other numbers in a record of training than its single losses: see Trainer.report_update in loop.py.
NOT_LOSSES = ("loss", "learning_rate", "gradient_norm")

############################################################
#  Records
############################################################


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl, in order. A line that a killed training did not finish is left out.

    Returns: dicts of kind, epoch, step and numbers; None stands for a number that was not finite. [] without the file.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    records = []
    for line in filter(None, lines):
        try:
            record = json.loads(line, parse_constant=lambda name: None)
            records.append({key: record[key] for key in PLACE} | record)
        except (ValueError, KeyError, TypeError):  # not JSON or not Unicode, or JSON of something else
            logger.warning("%s: a line cannot be read and is dropped; was the training killed? %.80r", path, line)
    return records


class Recorder:
    """Writes the metrics of a training to its files at once, so that a killed process loses none."""

    def __init__(self, log_dir: str | os.PathLike, resume_step: tuple[int, int] | None = None) -> None:
        """
        log_dir: the folder, which exists.
        resume_step: (completed epochs, steps of the next) that the training begins at. Records beyond it are dropped.
            None keeps all records.
        """
        self.log_dir = Path(log_dir)
        self._path, self._csv_path = self.log_dir / "metrics.jsonl", self.log_dir / "metrics.csv"
        records = read_records(self._path)
        if resume_step is not None:
            records = [record for record in records if (record["epoch"], record["step"]) <= tuple(resume_step)]
        self._columns = list(PLACE)
        self._epoch_steps: dict[int, int] = {}  # the last step of training seen in each epoch
        for record in records:
            self._note(record)
        text = "".join(_json_line(record) for record in records)
        runtime.write_atomically(self._path, lambda file: file.write(text.encode()))
        self._json = self._path.open("a", encoding="utf-8", newline="")
        self._csv: TextIO | None = None
        self._write_table(records)
        self._tensorboard = _summary_writer(self.log_dir, self._global_step(*resume_step or (sys.maxsize, 0)) + 1)

    def record(self, kind: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write numbers down.

        kind: "train", "val", "eval" or any other word. epoch: completed epochs. step: steps of the next.
        values: numbers by name, also tensors of one element. Training's total is "loss"; a validation's names begin
            with "val_".

        Raises: ValueError for a value that is no number; OSError that names the file if it cannot be written.
        """
        record = {"kind": kind, "epoch": int(epoch), "step": int(step)} | _numbers(values)
        try:
            self._json.write(_json_line(record))
            self._json.flush()
            if self._note(record):
                self._write_table(read_records(self._path))
            else:
                self._csv.write(_csv_text(self._columns, [record]))
                self._csv.flush()
        except OSError as error:
            text = f"the metrics in {self.log_dir} cannot be written ({error.strerror or error}); is the disk full?"
            raise OSError(error.errno, text) from error
        if self._tensorboard is not None:
            self._record_in_tensorboard(record)

    def _record_in_tensorboard(self, record: Mapping[str, Any]) -> None:
        kind, global_step = record["kind"], self._global_step(record["epoch"], record["step"])
        try:
            for name in [name for name in record if name not in PLACE]:
                value = math.nan if record[name] is None else record[name]
                self._tensorboard.add_scalar(f"{kind}/{name.removeprefix(f'{kind}_')}", value, global_step)
        except OSError as error:  # its thread keeps an error until the next call, so it may be one of a former record
            logger.warning("TensorBoard's file in %s cannot be written, so it gets no more: %s", self.log_dir, error)
            self._tensorboard = None

    def close(self) -> None:
        """Close the files. Calling it again does nothing."""
        for file in (self._json, self._csv, self._tensorboard):
            try:
                if file is not None:
                    file.close()
            except OSError as error:  # record has already said so, or nothing is lost
                logger.warning("closing the metrics in %s: %s", self.log_dir, error)
        self._tensorboard = None

    def _note(self, record: Mapping[str, Any]) -> bool:
        """Remember the record's names and step, on which later records depend. Returns: whether a name is new."""
        if record["kind"] == "train":
            self._epoch_steps[record["epoch"]] = record["step"]
        new = [name for name in record if name not in self._columns]
        self._columns += new
        return bool(new)

    def _global_step(self, epoch: int, step: int) -> int:
        """Steps since the start of the training, for TensorBoard, which knows no epochs."""
        return sum(steps for other, steps in self._epoch_steps.items() if other < epoch) + step

    def _write_table(self, records: list[dict[str, Any]]) -> None:
        if self._csv is not None:
            self._csv.close()
        header = dict(zip(self._columns, self._columns, strict=True))
        text = _csv_text(self._columns, [header, *records])
        runtime.write_atomically(self._csv_path, lambda file: file.write(text.encode()))
        self._csv = self._csv_path.open("a", encoding="utf-8", newline="")


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The values as numbers for JSON. It has no NaN and no infinity: None stands for them."""
    numbers = {}
    for name, value in values.items():
        if name in PLACE:
            raise ValueError(f"values: {name!r} is a key that every record has already; use another name")
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
            raise ValueError(f"values[{name!r}] must be a number, not {type(value).__name__}: {value}") from error
        numbers[str(name)] = number if math.isfinite(number) else None
    return numbers


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _csv_text(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Lines of the table. A number that a record lacks stays empty; one that is not finite is "nan"."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for record in records:
        cells = (record.get(name, "") for name in columns)
        writer.writerow(["nan" if cell is None else cell for cell in cells])
    return text.getvalue()


def _summary_writer(log_dir: Path, purge_step: int) -> Any:
    """TensorBoard's writer, None where TensorBoard is not installed. It hides older records from purge_step on."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(log_dir), purge_step=purge_step)
    except Exception as error:  # often its version does not fit that of protobuf or NumPy
        logger.warning("TensorBoard is installed and does not work, so it gets nothing: %s", error)
        return None


############################################################
#  The line of progress
############################################################

_TERMINAL_SECONDS, _FILE_SECONDS = 0.1, 30.0  # at least, between two lines
_DECAY = 0.98  # rates are means over about the last 50 updates


class ProgressLine:
    """Shows how far the training is: on a terminal one line that changes, in a file a new line every half minute.

    The most important numbers come first, and a terminal gets as many as fit into its width.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        device: torch.device | str | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        epochs: of the whole training. device: the one whose peak memory is shown; None: the CPU.
        stream: where to write; sys.stderr by default. clock: seconds.
        """
        self.epochs, self.steps_per_epoch, self.device = epochs, steps_per_epoch, device
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._clock = clock
        self._written_at = -math.inf
        self._shown = 0  # characters of an unfinished line
        self._updates, self._step = 0, 0  # updates seen; steps since the start of the training
        self._recent = np.zeros(4)  # decaying sums: steps, images, seconds, seconds of waiting for data
        self._began, self._steps, self._seconds = 0.0, 0, 0.0  # end of the first update; steps and seconds since then

    def update(
        self,
        epoch: int,
        step: int,
        values: Mapping[str, float],
        learning_rate: float,
        images: float,
        data_seconds: float,
        step_seconds: float,
    ) -> None:
        """Show an update of the weights. Most calls write nothing; the call of an epoch's last step always does.

        epoch: completed epochs. step: steps of the next, with those of this update.
        values: losses by name; "loss" is their total. Without it, the sum of the others is shown.
        images: of this update, in all processes. step_seconds: duration of the update. data_seconds: the part of it
            that was spent waiting for data.
        """
        now, is_last = self._clock(), step >= self.steps_per_epoch
        self._measure(now, epoch * self.steps_per_epoch + step, images, data_seconds, step_seconds)
        if not is_last and now - self._written_at < (_TERMINAL_SECONDS if self._is_terminal else _FILE_SECONDS):
            return
        self._written_at = now
        self._write(self._parts(now, epoch, step, values, learning_rate), is_last)

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._shown:
            self._print("\n")
            self._shown = 0

    def _measure(self, now: float, step: int, images: float, data_seconds: float, seconds: float) -> None:
        """Add an update to the sums. step: since the start of the training."""
        seconds = seconds if 0 < seconds < math.inf else 0.0
        data_seconds = min(data_seconds, seconds) if data_seconds > 0 else 0.0
        steps = max(step - self._step, 1) if self._updates else 1
        if self._updates == 1:  # the first update takes longer than others, so it is forgotten
            self._recent[:] = 0
        self._recent = _DECAY * self._recent + [steps, images, seconds, data_seconds]
        if self._updates:
            self._steps += steps
            self._seconds += seconds
        else:
            self._began = now
        self._updates += 1
        self._step = step

    def _seconds_left(self, now: float) -> float:
        """Seconds to the end of the whole training, validations and checkpoints between the updates included."""
        steps, _, seconds, _ = self._recent
        between = max(now - self._began - self._seconds, 0.0) / self._steps if self._steps else 0.0
        remaining_steps = max(self.epochs * self.steps_per_epoch - self._step, 0)
        return remaining_steps * (seconds / steps + between)

    def _parts(self, now: float, epoch: int, step: int, values: Mapping[str, float], learning_rate: float) -> list[str]:
        """The parts of the line, the most important first."""
        losses = {name: float(value) for name, value in values.items() if name not in NOT_LOSSES}
        total = float(values["loss"]) if "loss" in values else sum(losses.values())
        _, images, seconds, data_seconds = self._recent
        width, memory = len(str(self.steps_per_epoch)), runtime.peak_memory_mb(self.device)
        return [
            f"epoch {epoch + 1}/{self.epochs} step {step:{width}}/{self.steps_per_epoch}",
            f"ETA {_duration(self._seconds_left(now))}" if seconds else "ETA ?",
            f"loss {_short(total)}",
            f"{images / seconds:.1f} images/s" if seconds else "? images/s",
            f"data wait {data_seconds / seconds:.0%}" if seconds else "data wait ?",
            *([f"peak {memory / 1000:.1f} GB"] if math.isfinite(memory) else []),
            f"lr {learning_rate:.3g}",
            *(f"{name.removesuffix('_loss')} {_short(value)}" for name, value in losses.items()),
        ]

    def _write(self, parts: list[str], is_last: bool) -> None:
        if not self._is_terminal:
            self._print("  ".join(parts) + "\n")
            return
        width = _terminal_width(self._stream) - 1  # a full line would wrap
        line = parts[0][:width]
        for part in parts[1:]:
            if len(line) + 2 + len(part) > width:
                break
            line += "  " + part
        self._print("\r" + line.ljust(min(self._shown, width)) + ("\n" if is_last else ""))
        self._shown = 0 if is_last else len(line)

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal was closed; the training goes on
            self._stream, self._is_terminal = io.StringIO(), False


def _terminal_width(stream: TextIO) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours and days if there are any: 12:34, 1:12:34, 2d 01:12:34."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""The training loop: any module that returns a dict of losses, trained over epochs, without ever losing what was done.

From a batch to a step, by the names of Trainer's methods:

    resume(start)                              weights, optimiser, random states and position, from a checkpoint
    run_epoch(), until the phase ends:
        train_epoch():
            self_check(batches)                once: one batch forward and backward, which changes nothing
            update(batches), until the epoch ends:
                ACCUMULATE_STEPS times:
                    batch = next_batch(batches)
                    add_gradients(batch)       losses = module(*hooks.prepare(batch)), backward
                clip_gradients                 to GRADIENT_CLIP_NORM
                synchronize(losses, norm)      mean losses of all processes. Does one of them have to stop, or to save?
                check_finite(losses)           if not: write the batches to a file, and end the training
                optimizer.step()               then averaged.update()
            report_update(), and save() if a signal came or CHECKPOINT_MINUTES passed
        check_weights()                        are they finite? The last update was not followed by a loss
        validate(), run_evaluation(), update_best()
        report_epoch(), save(), call_callbacks("epoch_end"), decide_to_stop()

A step is one batch; ACCUMULATE_STEPS of them make one update of the weights. Checkpoints are written between updates.

A continued training equals the uninterrupted one to the bit. For this a checkpoint holds everything that the next
update depends on, and whatever else draws random numbers (loading, self-check, validation, evaluation, callbacks)
leaves the generators as they were.
"""

import contextlib
import copy
import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import native
import runtime
import utils

from . import checkpoints
from .checkpoints import Position
from .curves import save_curves
from .guards import all_finite, image_ids_of, infinite_tensors, is_out_of_memory, memory_advice, plain
from .logs import ProgressLine, Recorder
from .optimizer import AveragedWeights, Phase, clip_gradients, learning_rate_at, make_optimizer, set_learning_rate
from .state_checks import check_optimizer, check_state, check_weights
from .watchdog import Watchdog

############################################################
#  Progress: train returns it, and callbacks see it
############################################################


@dataclasses.dataclass
class Progress:
    """How far a training has come."""

    module: nn.Module = dataclasses.field(repr=False)
    log_dir: Path
    epochs: int  # completed ones at the end of the phase
    steps: int  # batches of an epoch, in this process
    epoch: int = 0  # completed epochs
    step: int = 0  # batches of the next epoch that are done
    learning_rate: float = 0.0  # of the last update
    logs: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last epoch: losses, val_*, metrics
    best: dict[str, Any] | None = None  # of the best epoch: {"metric", "value", "epoch"}
    checkpoint: Path | None = None  # the last one written
    stop: bool = False  # a callback sets it to end the training after this epoch
    interrupted: int | None = None  # the signal that ended the training; the program should exit with 128 + it
    state: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # what `start` of the next phase takes


############################################################
#  Hooks and callbacks
############################################################


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The functions that the loop calls, because it knows neither the network nor its checkpoints nor its metrics.

    prepare: batch -> arguments of the module, on its device.
    describe: () -> the part of a checkpoint that describes the model, with its weights as they are then.
    evaluate: completed epochs -> metrics or None, every EVAL_EVERY epochs, in the first process, with the module in
        eval mode and averaged weights in place. The best checkpoint is that of the highest "mask AP"; without that
        metric, that of the lowest validation loss.
    callbacks: see call_back. Only the first process calls them.
    to_continue: what an interrupted training says of how it goes on.
    """

    prepare: Callable[[Any], tuple]
    describe: Callable[[], dict[str, Any]]
    evaluate: Callable[[int], Mapping[str, float] | None] | None = None
    callbacks: Sequence[Any] = ()
    to_continue: str = "the same command with --model=last; in Python, model.load_weights(model.find_last())"


def call_back(callbacks: Sequence[Any], event: str, progress: Progress) -> None:
    """Call every callback with an event: "train_begin", "epoch_end" or "train_end".

    A callback is a function of (event, progress), or an object with methods as Keras has them: on_train_begin(logs),
    on_epoch_end(epoch, logs), on_train_end(logs), where epoch counts from 0.
    """
    for callback in callbacks:
        if _is_keras(callback):
            method = getattr(callback, f"on_{event}", None)
            arguments = (progress.epoch - 1, progress.logs) if event == "epoch_end" else (progress.logs,)
            if method is not None:
                method(*arguments)
        else:
            callback(event, progress)


def _is_keras(callback: Any) -> bool:
    return any(hasattr(callback, f"on_{event}") for event in ("train_begin", "epoch_end", "train_end"))


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raises ValueError unless each is one that call_back can call."""
    if not isinstance(callbacks, list | tuple):
        raise ValueError(f"custom_callbacks must be a list of callbacks, not {type(callbacks).__name__}")
    for callback in callbacks:
        if isinstance(callback, type) or not (_is_keras(callback) or callable(callback)):
            raise ValueError(
                f"custom_callbacks: {callback!r} must be a function of (event, progress), or an object with "
                "on_epoch_end(epoch, logs)"
                + ("; it is a class, give an instance" if isinstance(callback, type) else "")
            )


############################################################
#  The loop
############################################################


def train(
    module: nn.Module,
    train_data: Any,
    val_data: Any,
    config: Any,
    *,
    phase: Phase,
    learning_rate: float,
    hooks: Hooks,
    log_dir: str | Path,
    start: Mapping[str, Any] | None = None,
) -> Progress:
    """Train a module until the end of a phase, or until a signal.

    module: called as module(*hooks.prepare(batch)); returns a dict of scalar losses, whose sum is minimised. Validation
        calls it likewise, in eval mode and without gradients, and then it must change nothing. It is on its device.
    train_data, val_data: loaders of batches, as make_loader returns them: steps is the length of an epoch, after
        set_epoch(epoch, start_step) an iteration brings the rest of one. val_data may be None. If it leaves out images
        that it cannot load, its `missing_images` and `images` say how many of how many.
    config: a Config, of which the settings under "Optimiser" and "Checkpoints" are read.
    phase: when the training ends, and how the learning rate falls until then (with LEARNING_RATE_DECAY "cosine" it
        ignores steps_at). The caller has chosen which parameters learn: those that require gradients.
    learning_rate: after the warm-up, times phase.factor.
    hooks: how the loop reaches what it does not know: see Hooks.
    log_dir: folder of checkpoints and logs; no other training may be writing into it.
    start: the "training" part of the checkpoint whose weights the module has, or Progress.state. None: from the start.

    Returns: Progress; with EMA_DECAY the module has the averaged weights then.
    Raises: ValueError for arguments that cannot be; FloatingPointError for a loss or weights that are not finite,
        MemoryError, and OSError if a checkpoint cannot be written, each with what to do.
    """
    check_callbacks(hooks.callbacks)
    return Trainer(module, train_data, val_data, config, phase, learning_rate, hooks, Path(log_dir)).run(start)


# The numbers that are printed at the end of an epoch. The files have all of them.
_PRINTED = ("loss", "val_loss", "box AP", "mask AP (class score)", "mask AP", "re-scoring gain")


def _partial(name: str, logs: Mapping[str, float], metrics: Mapping[str, float]) -> str:
    """ " on 11 of 12 images" for a number of validation or evaluation that lacks images; else nothing."""
    prefix, numbers = ("val_", logs) if name.startswith("val_") else ("", metrics if name in metrics else {})
    missing, images = numbers.get(f"{prefix}missing_images", 0), numbers.get(f"{prefix}images", 0)
    return f" on {images:.0f} of {images + missing:.0f} images" if missing else ""


def _checked_metrics(metrics: Any) -> dict[str, float]:
    """What evaluate returned, as numbers. Raises: ValueError if it is something else."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ValueError(f"evaluate must return a dict of numbers, or None, not {type(metrics).__name__}")
    numbers = {}
    for name, value in (metrics or {}).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: of a tensor of several numbers
            raise ValueError(f"evaluate must return a dict of numbers, not {value!r} for {name!r}") from None
    return numbers


# Why numbers are not finite, most of the time.
_DIVERGED = "Is the learning rate too high for the batch (LEARNING_RATE, WARMUP_STEPS, GRADIENT_CLIP_NORM)"


class Trainer:
    """One call of train(). The methods stand in the order in which they are called; the module's docstring shows it."""

    def __init__(
        self, module, train_data, val_data, config, phase: Phase, learning_rate: float, hooks: Hooks, log_dir: Path
    ) -> None:
        if train_data.steps < 1:
            raise ValueError("train_data has no batches; is the data set empty, or smaller than a batch?")
        self.module, self.train_data, self.val_data, self.config = module, train_data, val_data, config
        self.phase, self.learning_rate = phase, phase.factor * learning_rate
        self.hooks, self.log_dir = hooks, log_dir
        self.progress = Progress(module, log_dir, phase.epochs, train_data.steps)
        self.device = next(module.parameters()).device
        self.is_main = runtime.rank() == 0
        self.parallel_module = (
            module  # called where gradients are needed; DistributedDataParallel with several processes
        )
        self.optimizer = make_optimizer(module, config)
        self.optimizer_epoch = 0  # epochs that were completed when the optimiser began
        self.parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self.averaged: AveragedWeights | None = None
        self.updates_per_epoch = math.ceil(train_data.steps / config.ACCUMULATE_STEPS)
        self.loss_names: list[str] = []  # those that the module returned last
        self.loss_sums: dict[str, float] = {}  # over the updates of this epoch
        self.signals = runtime.StopSignals()
        self.revision = runtime.git_revision() if self.is_main else None
        self.last_save = time.monotonic()
        self.seconds_waiting = 0.0  # for data, in this update
        self.is_self_checked = False

    def run(self, start: Mapping[str, Any] | None) -> Progress:
        """The whole phase. start: as train takes it."""
        progress = self.progress
        with contextlib.ExitStack() as stack:
            if self.is_main:
                stack.enter_context(runtime.locked_folder(self.log_dir))
            stack.enter_context(runtime.random_states_kept(self.device))  # the caller's
            stack.enter_context(self.signals)
            self.watchdog = stack.enter_context(contextlib.closing(Watchdog()))
            self.resume(start or {})
            if self.is_main:
                self.open_logs(stack)
            self.parallelize()
            self.module.train()
            self.call_callbacks("train_begin")
            while progress.epoch < progress.epochs and not progress.stop and progress.interrupted is None:
                self.run_epoch()
            self.call_callbacks("train_end")
        if self.averaged is not None:
            self.averaged.swap()
        if progress.interrupted is not None:
            self.print_once(
                f"stopped after {progress.epoch} epochs and {progress.step} steps, saved in {progress.checkpoint}\n"
                f"to continue: {self.hooks.to_continue}"
            )
        return progress

    def print_once(self, text: str) -> None:
        """Print in the first process only."""
        if self.is_main:
            print(text, flush=True)

    ### Before the first epoch

    def resume(self, start: Mapping[str, Any]) -> None:
        """Restore everything as it was when the checkpoint was written. start: {} for a new training."""
        progress, file = self.progress, start.get("file", "the state to continue from")
        if start:
            check_state(start, file)
        progress.epoch, progress.step, progress.best = start.get("epoch", 0), start.get("step", 0), start.get("best")
        if progress.step and start["steps"] != progress.steps:
            self.print_once(
                f"an epoch had {start['steps']} steps and has {progress.steps} now: "
                f"epoch {progress.epoch + 1} begins again"
            )
            progress.step = 0
        self.loss_sums = dict(start.get("sums", {})) if progress.step else {}
        if self.config.EMA_DECAY:  # until the weights are loaded, the module has the averages
            self.averaged = AveragedWeights(self.module, self.config.EMA_DECAY, start.get("averaged_updates", 0))
        if start.get("weights"):
            check_weights(start["weights"], self.module, file)
            self.module.load_state_dict(start["weights"])
        if start.get("optimizer"):
            if start.get("learning") == self.optimizer_identity():
                check_optimizer(start["optimizer"], self.optimizer, file)
                self.optimizer.load_state_dict(copy.deepcopy(start["optimizer"]))  # start stays as it is
                self.optimizer_epoch = start.get("begin", 0)
            else:
                self.optimizer_epoch = progress.epoch
                self.print_once("other layers learn, or by another optimiser: the optimiser begins anew")
        states = start.get("random", ())
        if runtime.rank() < len(states):
            runtime.set_random_states(states[runtime.rank()], self.device)
        else:
            runtime.seed_all(self.config.SEED, runtime.rank())

    def optimizer_identity(self) -> list[str]:
        """An optimiser's state can be restored only where these are the same: optimiser, layers, parameters."""
        return [self.config.OPTIMIZER, self.phase.layers, *self.parameters]

    def open_logs(self, stack: contextlib.ExitStack) -> None:
        """Open the log files, to be closed by the stack, and print what is going to be trained, if anything is."""
        progress, config = self.progress, self.config
        position = Position(progress.epoch, progress.step)
        for path in checkpoints.set_aside_later(self.log_dir, config.NAME, position):
            self.print_once(f"{path} is of another training, or another continuation of this one")
        self.recorder = stack.enter_context(contextlib.closing(Recorder(self.log_dir, position)))
        line = ProgressLine(progress.epochs, progress.steps, self.device)
        self.progress_line = stack.enter_context(contextlib.closing(line))
        if progress.epoch >= progress.epochs:
            return
        weights = sum(parameter.numel() for parameter in self.parameters.values())
        per_process, world = config.IMAGES_PER_GPU, runtime.world_size()
        processes = f" ({per_process} in each of {world} processes)" if world > 1 else ""
        batches = f", {config.ACCUMULATE_STEPS} of them an update" if config.ACCUMULATE_STEPS > 1 else ""
        self.print_once(
            f"training {weights:,} weights ({self.phase.layers}) on {self.device}, into {self.log_dir}\n"
            f"from epoch {progress.epoch}, step {progress.step}, to epoch {progress.epochs} of {progress.steps} steps: "
            f"batches of {per_process * world} images{processes}{batches}, learning rate {self.learning_rate:g}"
        )
        if native.status():
            self.print_once(native.status())

    def parallelize(self) -> None:
        """Let several processes average their gradients."""
        if runtime.world_size() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.parallel_module = nn.parallel.DistributedDataParallel(
                self.module, device_ids=devices, gradient_as_bucket_view=True
            )
            self.parallel_module.broadcast_buffers = False  # not at each forward: share_buffers does it when needed

    ### An epoch

    def run_epoch(self) -> None:
        """The rest of an epoch: its batches, validation, evaluation, and a checkpoint."""
        progress, every = self.progress, self.config.EVAL_EVERY
        self.train_epoch()
        if progress.interrupted is not None:
            return
        self.check_weights()
        number = progress.epoch + 1
        evaluates = self.hooks.evaluate is not None and every and (number % every == 0 or number == progress.epochs)
        if evaluates:
            self.save()  # an evaluation takes long, and may fail
        logs = {name: total / self.updates_per_epoch for name, total in self.loss_sums.items()}
        logs |= self.validate()
        metrics = self.run_evaluation(number) if evaluates else {}
        progress.logs = {**logs, **metrics}
        progress.epoch, progress.step, self.loss_sums = number, 0, {}
        is_best = self.is_main and self.update_best(progress.logs)
        if self.is_main:
            self.report_epoch(logs, metrics)
        self.save(is_best)
        self.call_callbacks("epoch_end")
        self.decide_to_stop()

    def train_epoch(self) -> None:
        """The rest of an epoch's batches, or those until a signal comes."""
        progress = self.progress
        if progress.step == progress.steps:  # the checkpoint was written before validation
            return
        self.train_data.set_epoch(progress.epoch, progress.step)
        with runtime.random_states_kept(self.device):
            batches = iter(self.train_data)
        if not self.is_self_checked:
            batches = self.self_check(batches)
            self.is_self_checked = True
        while progress.step < progress.steps:
            step, begin, self.seconds_waiting = progress.step, time.perf_counter(), 0.0
            values, stops, saves = self.update(batches)
            if self.is_main:
                self.report_update(values, progress.step - step, time.perf_counter() - begin)
            if stops:
                progress.interrupted = int(self.signals.received or signal.SIGTERM)
            if stops or saves:
                self.save()
            if stops:
                return

    def self_check(self, batches: Iterator) -> Iterator:
        """Take one batch through forward and backward, and print what took how long. Nothing is changed.

        Returns: the same batches, the first one included.
        """
        times = [time.perf_counter()]
        batch = self.next_batch(batches)
        times.append(time.perf_counter())
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with runtime.random_states_kept(self.device), self.errors_name_images([batch], "in the self-check"):
            losses = self.losses_of(self.parallel_module, batch)
            runtime.wait_for(self.device)
            times.append(time.perf_counter())
            losses.sum().backward()
            runtime.wait_for(self.device)
            times.append(time.perf_counter())
        self.check_finite(dict(zip(self.loss_names, losses.tolist(), strict=True)), losses, [batch])
        self.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, kept in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        load, forward, backward = (f"{end - begin:.2f} s" for begin, end in itertools.pairwise(times))
        peak = runtime.peak_memory_mb(self.device)
        self.print_once(
            f"self-check of one batch of {self.config.IMAGES_PER_GPU} images: loading {load} (with the start of the "
            f"loader), forward {forward}, backward {backward}, peak memory {peak:,.0f} MB"
        )
        return itertools.chain([batch], batches)

    ### An update of the weights

    def update(self, batches: Iterator) -> tuple[dict[str, float], bool, bool]:
        """Returns: losses and gradient norm, the same in all processes; whether to stop; whether to save."""
        progress, config = self.progress, self.config
        size = min(config.ACCUMULATE_STEPS, progress.steps - progress.step)
        group, losses = [], 0
        for index in range(size):
            batch = self.next_batch(batches)
            group.append(batch)
            with self.errors_name_images([batch], f"in epoch {progress.epoch + 1}, step {progress.step}"):
                losses = losses + self.add_gradients(batch, size, is_last=index == size - 1) / size
        norm = clip_gradients(list(self.parameters.values()), config.GRADIENT_CLIP_NORM)
        values, stops, saves = self.synchronize(losses, norm)
        self.check_finite(values, losses, group)
        self.watchdog.activity = "update of the weights"
        progress.learning_rate = self.next_learning_rate()
        set_learning_rate(self.optimizer, progress.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update()
        progress.step += size
        for name, value in values.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value
        return values, stops, saves

    def next_batch(self, batches: Iterator) -> Any:
        self.watchdog.activity = "waiting for data"
        begin = time.perf_counter()
        with runtime.random_states_kept(self.device):
            batch = next(batches, None)
        if batch is None:
            progress = self.progress
            raise RuntimeError(
                f"the loader ended after {progress.step} of {progress.steps} batches of epoch {progress.epoch + 1}"
            )
        self.seconds_waiting += time.perf_counter() - begin
        return batch

    def add_gradients(self, batch: Any, size: int, is_last: bool) -> Tensor:
        """Add a batch's share of the gradients of an update. Processes exchange gradients with the last batch only.

        size: batches of the update.

        Returns: the batch's losses, float32 [losses].
        """
        exchanges = is_last or self.parallel_module is self.module
        with contextlib.nullcontext() if exchanges else self.parallel_module.no_sync():
            losses = self.losses_of(self.parallel_module, batch)
            self.watchdog.activity = "backward"
            (losses.sum() / size).backward()
        return losses.detach()

    def losses_of(self, module: nn.Module, batch: Any) -> Tensor:
        """float32 [losses], in the order of self.loss_names."""
        self.watchdog.activity = "forward"
        losses = module(*self.hooks.prepare(batch))
        if not isinstance(losses, Mapping) or not losses or any(loss.numel() != 1 for loss in losses.values()):
            raise ValueError(f"the module must return a dict of scalar losses, not {type(losses).__name__}: {losses}")
        self.loss_names = list(losses)
        return torch.stack([loss.float().reshape(()) for loss in losses.values()])

    @contextlib.contextmanager
    def errors_name_images(self, group: Sequence[Any], where: str) -> Iterator[None]:
        """Errors inside say which images were computed, and those of memory which settings to change.

        group: batches. where: in the training, such as "in validation".
        """
        try:
            yield
        except Exception as error:
            text = f"{where}, images {utils.listed(map(str, image_ids_of(group)))}, process {runtime.rank()}"
            if is_out_of_memory(error):
                raise MemoryError(f"{text}: {memory_advice(self.config, self.device)}. ({error})") from error
            error.add_note(text)
            raise

    def synchronize(self, losses: Tensor, norm: Tensor) -> tuple[dict[str, float], bool, bool]:
        """Average losses over the processes, and find out whether any of them has to stop or to save.

        Of all that an update does, only this waits for the device and for the other processes.

        losses: [losses], of this process. norm: of the gradients, which are the same in all processes.

        Returns: the mean losses, their sum as "loss", and "gradient_norm"; whether to stop; whether to save.
        """
        minutes = self.config.CHECKPOINT_MINUTES
        saves = self.is_main and minutes and time.monotonic() - self.last_save > minutes * 60
        # torch.full takes its number along; a tensor of a list would be copied, and the program would wait for that.
        flags = [torch.full_like(losses[:1], flag) for flag in (self.signals.received is not None, bool(saves))]
        shared = torch.cat([losses, *flags, norm.detach().float()[None]])  # [losses + 3]
        self.watchdog.activity = "backward" if runtime.world_size() == 1 else "backward, other processes"
        *means, stops, saves, norm = (runtime.world_sum(shared) / runtime.world_size()).tolist()
        values = {"loss": sum(means), **dict(zip(self.loss_names, means, strict=True)), "gradient_norm": norm}
        return values, stops > 0, saves > 0

    def check_finite(self, values: Mapping[str, float], losses: Tensor, group: Sequence[Any]) -> None:
        """Raises FloatingPointError unless all values are finite, and writes the batches and the weights to a file.

        Only a process whose own losses are not finite writes a file, or all if it is the gradients that are not.

        values: as synchronize returns them. losses: [losses], of this process. group: the batches of the update.
        """
        if all_finite(values):
            return
        progress, number = self.progress, runtime.rank()
        where = f"in epoch {progress.epoch + 1}, step {progress.step}, process {number}"
        local = dict(zip(self.loss_names, losses.tolist(), strict=True))
        if all_finite(local) and not all(math.isfinite(values[name]) for name in local):
            raise FloatingPointError(f"{where}: the losses of another process are not finite; its message says which")
        process = f"_process{number}" if number else ""
        path = self.log_dir / f"nonfinite_{progress.epoch:04d}_{progress.step:06d}{process}.pth"
        contents = {
            "batches": plain(list(group)),
            "values": {**values, **local},
            "model": plain(self.module.state_dict()),
        }
        saved = f"Batch and weights are in {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save_checkpoint(path, contents)
        except OSError as error:
            saved = f"Batch and weights could not be saved ({error})"
        bad = (f"{name} is {value}" for name, value in {**values, **local}.items() if not math.isfinite(value))
        raise FloatingPointError(
            f"{where}: {', '.join(bad)}; images {utils.listed(map(str, image_ids_of(group)))}, learning rate "
            f"{self.next_learning_rate():g}. {saved}, and no weight was updated in this step. {_DIVERGED}, or an "
            "image broken?"
        )

    def check_weights(self) -> None:
        """Raises FloatingPointError unless all weights are finite: a checkpoint of others could not be read."""
        bad = infinite_tensors(self.module)
        if bad:
            progress = self.progress
            raise FloatingPointError(
                f"after epoch {progress.epoch + 1}, step {progress.step}, process {runtime.rank()}: "
                f"{len(bad)} tensors of weights are not finite, {utils.listed(bad, 3)}; the learning rate of the last "
                f"update was {progress.learning_rate:g}. No checkpoint of them is written, and earlier ones are "
                f"intact. {_DIVERGED}?"
            )

    def next_learning_rate(self) -> float:
        """The learning rate of the update that comes next."""
        progress, config = self.progress, self.config
        update = progress.epoch * self.updates_per_epoch + progress.step // config.ACCUMULATE_STEPS
        drops = [epoch * self.updates_per_epoch for epoch in self.phase.steps_at]
        cosine_updates = None
        if config.LEARNING_RATE_DECAY == "cosine":  # each phase has a cosine of its own
            update -= self.optimizer_epoch * self.updates_per_epoch
            cosine_updates = (progress.epochs - self.optimizer_epoch) * self.updates_per_epoch
        warmup = config.WARMUP_STEPS, config.WARMUP_FACTOR
        return learning_rate_at(update, self.learning_rate, drops, *warmup, cosine_updates)

    def report_update(self, values: Mapping[str, float], batches: int, seconds: float) -> None:
        """Show an update in the line of progress, and record it."""
        progress = self.progress
        images = batches * self.config.IMAGES_PER_GPU * runtime.world_size()
        position, rate = (progress.epoch, progress.step), progress.learning_rate
        self.progress_line.update(*position, values, rate, images, self.seconds_waiting, seconds)
        self.recorder.record("train", *position, {**values, "learning_rate": rate})

    ### After the batches of an epoch

    @contextlib.contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """The module as detection takes it: averaged weights, eval mode, no gradients.

        Random numbers that are drawn inside do not change those of the training.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(runtime.random_states_kept(self.device))
            if self.averaged is not None:
                stack.enter_context(self.averaged.swapped())
            stack.enter_context(torch.no_grad())
            self.module.eval()
            stack.callback(self.module.train)
            yield

    def validate(self) -> dict[str, float]:
        """Mean losses of the validation data: val_loss, their sum, and each as val_NAME. {} without such data."""
        if self.val_data is None or self.val_data.steps == 0:
            return {}
        self.share_buffers()
        total, count = 0, 0
        with self.evaluation_mode():
            self.val_data.set_epoch(0)
            batches = iter(self.val_data)
            self.watchdog.activity = "validation, waiting for data"
            for batch in batches:
                with self.errors_name_images([batch], "in validation"):
                    total = total + self.losses_of(self.module, batch)
                count += 1
                self.watchdog.activity = "validation, waiting for data"
        if count == 0:
            self.print_once("no image of the validation data can be loaded, so there is no validation loss")
            return {}
        self.watchdog.activity = "validation, other processes"
        missing = getattr(self.val_data, "missing_images", 0)
        counts = total.new_tensor([count, missing, getattr(self.val_data, "images", 0)])
        *totals, count, missing, images = runtime.world_sum(torch.cat([total, counts])).tolist()
        losses = {f"val_{name}": total / count for name, total in zip(self.loss_names, totals, strict=True)}
        partial = {"val_missing_images": missing, "val_images": images - missing} if missing else {}
        return {"val_loss": sum(losses.values()), **losses, **partial}

    def run_evaluation(self, number: int) -> dict[str, float]:
        """The metrics of the weights after so many epochs. The first process evaluates; the others wait and get {}."""
        self.watchdog.activity = "evaluation"
        metrics: dict[str, float] = {}
        if self.is_main:
            with self.evaluation_mode():
                metrics = _checked_metrics(self.hooks.evaluate(number))
            unclear = [name for name, value in metrics.items() if not math.isfinite(value)]
            if unclear:
                self.print_once(f"evaluate returned no finite number for {utils.listed(map(str, unclear), 5)}")
        if runtime.world_size() > 1:
            dist.barrier()
        return metrics

    def update_best(self, logs: Mapping[str, float]) -> bool:
        """Whether the epoch that has just ended is the best one so far; progress.best says so from then on.

        "mask AP" decides if an evaluation brought it, else the validation loss. Once there has been a "mask AP", an
        epoch without one cannot be the best.
        """
        metric = "mask AP" if "mask AP" in logs else "val_loss"
        value = logs.get(metric, math.nan) * (1 if metric == "mask AP" else -1)  # higher is better
        best = self.progress.best
        if best is not None and best["metric"] == metric:
            is_better = value > best["value"]
        else:
            is_better = math.isfinite(value) and (best is None or metric == "mask AP")
        if is_better:
            self.progress.best = {"metric": metric, "value": value, "epoch": self.progress.epoch}
        return is_better

    def report_epoch(self, logs: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        """Record and print an epoch's numbers, and draw the curves anew."""
        progress = self.progress
        position = progress.epoch, progress.step
        validation = {name: value for name, value in logs.items() if name.startswith("val_")}
        if validation:
            self.recorder.record("val", *position, validation)
        if metrics:
            self.recorder.record("eval", *position, metrics)
        save_curves(self.recorder.log_dir)
        printed = {name: value for name, value in {**logs, **metrics}.items() if name in _PRINTED} or logs
        numbers = ", ".join(f"{name} {value:.4g}" + _partial(name, logs, metrics) for name, value in printed.items())
        self.print_once(f"epoch {progress.epoch}/{progress.epochs}: {numbers}")

    def call_callbacks(self, event: str) -> None:
        if self.is_main and self.hooks.callbacks:
            self.watchdog.activity = "callbacks"
            with runtime.random_states_kept(self.device):
                call_back(self.hooks.callbacks, event, self.progress)

    def decide_to_stop(self) -> None:
        """Stop after this epoch, in all processes: for a signal, for a callback, or by EARLY_STOPPING."""
        progress, patience = self.progress, self.config.EARLY_STOPPING
        is_early = bool(
            self.is_main
            and patience
            and progress.best is not None
            and progress.epoch - progress.best["epoch"] >= patience
        )
        if is_early:
            self.print_once(f"stopping early: epoch {progress.best['epoch']} was the best for {patience} epochs")
        flags = [self.signals.received is not None, progress.stop or is_early]
        signalled, stops = runtime.world_sum(torch.tensor(flags, dtype=torch.float32, device=self.device)).tolist()
        progress.stop = stops > 0
        if signalled:
            progress.interrupted = int(self.signals.received or signal.SIGTERM)

    ### Checkpoints

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of the training as it is now. All processes call this together."""
        progress, config = self.progress, self.config
        self.watchdog.activity = "writing a checkpoint"
        self.share_buffers()
        self.check_weights()
        progress.state = self.training_state(self.gather_random_states())
        if self.is_main:
            progress.checkpoint = checkpoints.checkpoint_path(self.log_dir, config.NAME, progress.epoch, progress.step)
            training = {**progress.state, "config": config.to_dict(), "git": self.revision, "time": time.time()}
            with self.averaged.swapped() if self.averaged is not None else contextlib.nullcontext():
                checkpoints.save_checkpoint(progress.checkpoint, {**self.hooks.describe(), "training": training})
            if progress.step == 0:  # the checkpoint from before the evaluation has the same weights
                before = checkpoints.checkpoint_path(self.log_dir, config.NAME, progress.epoch - 1, progress.steps)
                before.unlink(missing_ok=True)
            if is_best:
                checkpoints.keep_as_best(progress.checkpoint, checkpoints.best_path(self.log_dir, config.NAME))
            checkpoints.prune_checkpoints(self.log_dir, config.NAME, config.CHECKPOINTS_KEPT)
        self.last_save = time.monotonic()

    def training_state(self, random_states: list) -> dict[str, Any]:
        """Everything that the next update depends on, beside the model's part of a checkpoint. On the CPU.

        NOTE: files on disk have these keys. Renaming one breaks the continuation of earlier trainings.
        """
        progress = self.progress
        state = {
            "epoch": progress.epoch,
            "step": progress.step,
            "steps": progress.steps,
            "epochs": progress.epochs,
            "schedule": {"learning_rate": self.learning_rate, "steps_at": list(self.phase.steps_at)},
            "learning": self.optimizer_identity(),
            "begin": self.optimizer_epoch,
            "optimizer": plain(self.optimizer.state_dict()),
            "sums": dict(self.loss_sums),
            "best": progress.best,
            "random": random_states,
        }
        if self.averaged is not None:  # the model's part of the checkpoint has the averages
            state["averaged_updates"] = self.averaged.updates
            weights = self.module.state_dict()
            state["weights"] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        return state

    def gather_random_states(self) -> list:
        """The states of the random generators in each process."""
        if runtime.world_size() == 1:
            return [runtime.random_states(self.device)]
        states = [None] * runtime.world_size()
        dist.all_gather_object(states, runtime.random_states(self.device))
        return states

    def share_buffers(self) -> None:
        """Copy the first process's buffers to all: until then, batch norm's statistics are of each one's images."""
        if runtime.world_size() > 1:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, 0)

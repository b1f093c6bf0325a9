"""The loop: any module that returns a dict of losses, trained over epochs, and never losing what was done.

    loader ─ prepare ─ module ─ losses ─ backward ─┬─ optimiser ─ average of the weights ─ checkpoints
              (micro-batches of an update)         └─ agreement of all processes: losses, stop, save

A step is a batch; ACCUMULATE_STEPS of them make an update of the weights. Checkpoints are written between updates.
Everything that the next update depends on is in a checkpoint, and what happens besides (loading, self-check,
validation, evaluation, callbacks) draws its random numbers apart. So a continued training is the uninterrupted one, to
the bit.
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
from .guards import all_finite, image_ids_of, is_out_of_memory, memory_advice, plain
from .logs import ProgressLine, Recorder, peak_memory_mb
from .optimizer import AveragedWeights, Phase, clip_gradients, learning_rate_at, make_optimizer, set_learning_rate
from .watchdog import Watchdog

############################################################
#  What train returns and callbacks see
############################################################


@dataclasses.dataclass
class Progress:
    """How far a training has come."""

    module: nn.Module = dataclasses.field(repr=False)
    log_dir: Path
    epochs: int  # in all
    steps: int  # batches of an epoch, of this process
    epoch: int = 0  # completed
    step: int = 0  # batches into the next
    learning_rate: float = 0.0
    logs: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last epoch: losses, val_*, metrics
    best: dict[str, Any] | None = None  # {"metric", "value", "epoch"}
    checkpoint: Path | None = None  # the last one written
    stop: bool = False  # a callback sets it to end the training after this epoch
    interrupted: int | None = None  # the signal that ended it: a program exits with 128 + it
    state: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # `start` of the next phase


############################################################
#  What train calls
############################################################


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The functions through which the loop reaches the network, its checkpoints and the user, who are strangers to it.

    prepare: batch -> arguments of the module, on its device.
    describe: () -> the part of a checkpoint that describes the model, with its weights as they are then.
    evaluate: completed epochs -> metrics or None, every EVAL_EVERY epochs, in the first process, with the module in
        eval mode and averaged weights in place. The best checkpoint is that of the highest "mask AP"; without that
        metric, that of the lowest validation loss.
    callbacks: see call_back. Only the first process calls them.
    """

    prepare: Callable[[Any], tuple]
    describe: Callable[[], dict[str, Any]]
    evaluate: Callable[[int], Mapping[str, float] | None] | None = None
    callbacks: Sequence[Any] = ()


def call_back(callbacks: Sequence[Any], event: str, progress: Progress) -> None:
    """Tell every callback of an event: "train_begin", "epoch_end" or "train_end".

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


def _check_callbacks(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        if isinstance(callback, type) or not (_is_keras(callback) or callable(callback)):
            raise ValueError(
                f"callbacks: {callback!r} must be a function of (event, progress), or an object with "
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
        set_epoch(epoch, start_step) an iteration brings the rest of one. val_data may be None.
    config: a Config, of which the settings under "Optimiser" and "Checkpoints" are read.
    phase: when the training ends, and how the learning rate falls until then (with LEARNING_RATE_DECAY "cosine" it
        ignores steps_at). The caller has chosen which parameters learn: those that require gradients.
    learning_rate: after the warm-up, times phase.factor.
    hooks: how the loop reaches what it does not know: see Hooks.
    log_dir: folder of checkpoints and logs; no other training may be writing into it.
    start: the "training" part of the checkpoint whose weights the module has, or Progress.state. None: from the start.

    Returns: Progress; with EMA_DECAY the module has the averaged weights then.
    Raises: ValueError for arguments that cannot be; FloatingPointError for a loss that is not finite, MemoryError, and
        OSError if a checkpoint cannot be written, each with what to do.
    """
    _check_callbacks(hooks.callbacks)
    trainer = Trainer(module, train_data, val_data, config, hooks, Path(log_dir))
    trainer.plan(phase, learning_rate)
    return trainer.run(start)


# What is printed at the end of an epoch; the rest is in the files.
_TOLD = ("loss", "val_loss", "box AP", "mask AP (class score)", "mask AP", "re-scoring gain")


class Trainer:
    """One call of train(). The methods are in the order in which they happen."""

    def __init__(self, module, train_data, val_data, config, hooks: Hooks, log_dir: Path) -> None:
        self.module, self.train_data, self.val_data, self.config = module, train_data, val_data, config
        self.hooks, self.log_dir = hooks, log_dir
        self.device = next(module.parameters()).device
        self.is_main = runtime.rank() == 0
        self.parallel = module  # what is called for gradients
        self.optimizer = make_optimizer(module, config)
        self.learning = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self.averaged: AveragedWeights | None = None
        self.signals = runtime.StopSignals()
        self.sums: dict[str, float] = {}  # over the epoch's updates
        self.revision = runtime.git_revision() if self.is_main else None
        self.saved_at = time.monotonic()
        self.seconds_waiting = 0.0  # for data, in this update
        self.begin = 0  # the epoch that the optimiser began in
        self.checked = False

    ### Before the first epoch

    def plan(self, phase: Phase, learning_rate: float) -> None:
        steps = self.train_data.steps
        if steps < 1:
            raise ValueError("train_data has no batches; is the data set empty, or smaller than a batch?")
        self.phase, self.learning_rate = phase, phase.factor * learning_rate
        self.updates = math.ceil(steps / self.config.ACCUMULATE_STEPS)  # in an epoch
        self.at = Progress(self.module, self.log_dir, phase.epochs, steps)

    def run(self, start: Mapping[str, Any] | None) -> Progress:
        with contextlib.ExitStack() as stack:
            if self.is_main:
                stack.enter_context(runtime.locked_folder(self.log_dir))
            stack.enter_context(runtime.random_states_kept(self.device))  # the caller's
            stack.enter_context(self.signals)
            self.watchdog = stack.enter_context(contextlib.closing(Watchdog()))
            self.resume(start)
            if self.is_main:
                self.open_logs(stack)
            self.parallelize()
            self.module.train()
            self.tell("train_begin")
            while self.at.epoch < self.at.epochs and not self.at.stop and self.at.interrupted is None:
                self.run_epoch()
            self.tell("train_end")
        return self.finish()

    def resume(self, start: Mapping[str, Any] | None) -> None:
        """Everything as it was when the checkpoint was written."""
        at, start = self.at, start or {}
        at.epoch, at.step, at.best = start.get("epoch", 0), start.get("step", 0), start.get("best")
        if at.step and start["steps"] != at.steps:
            self.say(f"an epoch had {start['steps']} steps and has {at.steps} now: epoch {at.epoch + 1} begins again")
            at.step = 0
        self.sums = dict(start.get("sums", {})) if at.step else {}
        if self.config.EMA_DECAY:  # the module still has the averages
            self.averaged = AveragedWeights(self.module, self.config.EMA_DECAY, start.get("averaged_updates", 0))
        if start.get("weights"):
            self.module.load_state_dict(start["weights"])
        if start.get("optimizer"):
            if start.get("learning") == self.what_learns():
                self.optimizer.load_state_dict(copy.deepcopy(start["optimizer"]))  # start stays as it is
                self.begin = start.get("begin", 0)
            else:
                self.begin = at.epoch
                self.say("other layers learn, or by another optimiser: the optimiser begins anew")
        states = start.get("random", ())
        if runtime.rank() < len(states):
            runtime.set_random_states(states[runtime.rank()], self.device)
        else:
            runtime.seed_all(self.config.SEED, runtime.rank())

    def what_learns(self) -> list[str]:
        """What the optimiser's state is of."""
        return [self.config.OPTIMIZER, self.phase.layers, *self.learning]

    def open_logs(self, stack: contextlib.ExitStack) -> None:
        at = self.at
        for path in checkpoints.set_aside_later(self.log_dir, self.config.NAME, Position(at.epoch, at.step)):
            self.say(f"{path} is of another training, or another continuation of this one")
        self.recorder = stack.enter_context(contextlib.closing(Recorder(self.log_dir, (at.epoch, at.step))))
        self.line = stack.enter_context(contextlib.closing(ProgressLine(at.epochs, at.steps, self.device)))
        weights = sum(parameter.numel() for parameter in self.learning.values())
        per_process, world = self.config.IMAGES_PER_GPU, runtime.world_size()
        processes = f" ({per_process} in each of {world} processes)" if world > 1 else ""
        batches = f", {self.config.ACCUMULATE_STEPS} of them an update" if self.config.ACCUMULATE_STEPS > 1 else ""
        self.say(
            f"training {weights:,} weights ({self.phase.layers}) on {self.device}, into {self.log_dir}\n"
            f"from epoch {at.epoch}, step {at.step}, to epoch {at.epochs} of {at.steps} steps: batches of "
            f"{per_process * world} images{processes}{batches}, learning rate {self.learning_rate:g}"
        )
        if native.status():
            self.say(native.status())

    def parallelize(self) -> None:
        if runtime.world_size() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = nn.parallel.DistributedDataParallel(
                self.module, device_ids=devices, gradient_as_bucket_view=True
            )
            self.parallel.broadcast_buffers = False  # at each forward; share_buffers does it where they are used

    def self_check(self, batches: Iterator) -> Iterator:
        """One batch through everything, and what took how long. Nothing is changed. Returns: the same batches."""
        times = [time.perf_counter()]
        batch = self.next_batch(batches)
        times.append(time.perf_counter())
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with runtime.random_states_kept(self.device), self.explained([batch], "in the self-check"):
            losses = self.losses_of(self.parallel, batch)
            self.wait_for_device()
            times.append(time.perf_counter())
            losses.sum().backward()
            self.wait_for_device()
            times.append(time.perf_counter())
        self.check_finite(dict(zip(self.names, losses.tolist(), strict=True)), losses, [batch])
        self.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, kept in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        load, forward, backward = (f"{end - begin:.2f} s" for begin, end in itertools.pairwise(times))
        self.say(
            f"self-check of one batch of {self.config.IMAGES_PER_GPU} images: loading {load} (with the start of the "
            f"loader), forward {forward}, backward {backward}, peak memory {peak_memory_mb(self.device):,.0f} MB"
        )
        return itertools.chain([batch], batches)

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    ### An epoch

    def run_epoch(self) -> None:
        at, every = self.at, self.config.EVAL_EVERY
        self.train_epoch()
        if at.interrupted is not None:
            return
        number = at.epoch + 1
        evaluates = self.hooks.evaluate is not None and every and (number % every == 0 or number == at.epochs)
        if evaluates:
            self.save()  # it takes long, and somebody else's code may fail
        logs = {name: total / self.updates for name, total in self.sums.items()}
        logs |= self.validate()
        metrics = self.run_evaluation(number) if evaluates else {}
        at.logs = {**logs, **metrics}
        at.epoch, at.step, self.sums = number, 0, {}
        is_best = self.is_main and self.compare(at.logs)
        if self.is_main:
            self.record(logs, metrics)
        self.save(is_best)
        self.tell("epoch_end")
        self.agree_to_end()

    def train_epoch(self) -> None:
        """The rest of an epoch."""
        at = self.at
        if at.step == at.steps:  # only validation is missing
            return
        self.train_data.set_epoch(at.epoch, at.step)
        with runtime.random_states_kept(self.device):
            batches = iter(self.train_data)
        if not self.checked:
            batches = self.self_check(batches)
            self.checked = True
        while at.step < at.steps:
            step, begin, self.seconds_waiting = at.step, time.perf_counter(), 0.0
            values, stops, saves = self.update(batches)
            if self.is_main:
                self.show(values, at.step - step, time.perf_counter() - begin)
            if stops:
                at.interrupted = int(self.signals.received or signal.SIGTERM)
            if stops or saves:
                self.save()
            if stops:
                return

    ### An update of the weights

    def update(self, batches: Iterator) -> tuple[dict[str, float], bool, bool]:
        """Returns: losses and gradient norm, the same in all processes; whether to stop; whether to save."""
        at, config = self.at, self.config
        size = min(config.ACCUMULATE_STEPS, at.steps - at.step)
        group, losses = [], 0
        for left in reversed(range(size)):
            batch = self.next_batch(batches)
            group.append(batch)
            with self.explained([batch], f"in epoch {at.epoch + 1}, step {at.step}"):
                losses = losses + self.add_gradients(batch, size, left == 0) / size
        norm = clip_gradients(list(self.learning.values()), config.GRADIENT_CLIP_NORM)
        values, stops, saves = self.agree(losses, norm)
        self.check_finite(values, losses, group)
        self.watchdog.activity = "update of the weights"
        at.learning_rate = self.next_learning_rate()
        set_learning_rate(self.optimizer, at.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update()
        at.step += size
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return values, stops, saves

    def next_learning_rate(self) -> float:
        at, config = self.at, self.config
        update = at.epoch * self.updates + at.step // config.ACCUMULATE_STEPS
        drops = [epoch * self.updates for epoch in self.phase.steps_at]
        cosine = None
        if config.LEARNING_RATE_DECAY == "cosine":  # each phase has its own
            update, cosine = update - self.begin * self.updates, (at.epochs - self.begin) * self.updates
        warmup = config.WARMUP_STEPS, config.WARMUP_FACTOR
        return learning_rate_at(update, self.learning_rate, drops, *warmup, cosine)

    def next_batch(self, batches: Iterator) -> Any:
        self.watchdog.activity = "waiting for data"
        begin = time.perf_counter()
        with runtime.random_states_kept(self.device):
            batch = next(batches, None)
        if batch is None:
            raise RuntimeError(
                f"the loader ended after {self.at.step} of {self.at.steps} batches of epoch {self.at.epoch + 1}"
            )
        self.seconds_waiting += time.perf_counter() - begin
        return batch

    def losses_of(self, module: nn.Module, batch: Any) -> Tensor:
        """float32 [losses]; self.names says which they are."""
        self.watchdog.activity = "forward"
        losses = module(*self.hooks.prepare(batch))
        if not isinstance(losses, Mapping) or not losses or any(loss.numel() != 1 for loss in losses.values()):
            raise ValueError(f"the module must return a dict of scalar losses, not {type(losses).__name__}: {losses}")
        self.names = list(losses)
        return torch.stack([loss.float().reshape(()) for loss in losses.values()])

    def add_gradients(self, batch: Any, size: int, is_last: bool) -> Tensor:
        """Adds a batch's share of the gradients of an update of size batches. Returns: its losses."""
        with contextlib.nullcontext() if is_last or self.parallel is self.module else self.parallel.no_sync():
            losses = self.losses_of(self.parallel, batch)
            self.watchdog.activity = "backward"
            (losses.sum() / size).backward()
        return losses.detach()

    @contextlib.contextmanager
    def explained(self, group: Sequence[Any], where: str) -> Iterator[None]:
        """Errors inside name the images, and those of memory the settings to change."""
        try:
            yield
        except Exception as error:
            text = f"{where}, images {utils.listed(map(str, image_ids_of(group)))}, process {runtime.rank()}"
            if is_out_of_memory(error):
                raise MemoryError(f"{text}: {memory_advice(self.config, self.device)}. ({error})") from error
            error.add_note(text)
            raise

    def agree(self, losses: Tensor, norm: Tensor) -> tuple[dict[str, float], bool, bool]:
        """What all processes do next. The one place of an update that waits for the device and for the others.

        losses: of this process. norm: of the gradients, which are the same everywhere.
        """
        minutes = self.config.CHECKPOINT_MINUTES
        saves = self.is_main and minutes and time.monotonic() - self.saved_at > minutes * 60
        flags = losses.new_tensor([self.signals.received is not None, bool(saves)])
        shared = torch.cat([losses, flags, norm.detach().float()[None]])  # [losses + 3]
        self.watchdog.activity = "backward" if runtime.world_size() == 1 else "backward, other processes"
        *means, stops, saves, norm = (runtime.world_sum(shared) / runtime.world_size()).tolist()
        values = {"loss": sum(means), **dict(zip(self.names, means, strict=True)), "gradient_norm": norm}
        return values, stops > 0, saves > 0

    def check_finite(self, values: Mapping[str, float], losses: Tensor, group: Sequence[Any]) -> None:
        """Raises FloatingPointError unless all values are finite, with the batches and the weights in a file.

        losses: of this process. If they are finite and those of another are not, that one has the file.
        """
        own = dict(zip(self.names, losses.tolist(), strict=True)) if not all_finite(values) else {}
        if not own:
            return
        at, number = self.at, runtime.rank()
        where = f"in epoch {at.epoch + 1}, step {at.step}, process {number}"
        if all_finite(own) and not all(math.isfinite(values[name]) for name in own):
            raise FloatingPointError(f"{where}: the losses of another process are not finite; its message says which")
        path = self.log_dir / f"nonfinite_{at.epoch:04d}_{at.step:06d}{f'_process{number}' if number else ''}.pth"
        contents = {
            "batches": plain(list(group)),
            "values": {**values, **own},
            "model": plain(self.module.state_dict()),
        }
        saved = f"Batch and weights are in {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save_checkpoint(path, contents)
        except OSError as error:
            saved = f"Batch and weights could not be saved ({error})"
        bad = (f"{name} is {value}" for name, value in {**values, **own}.items() if not math.isfinite(value))
        raise FloatingPointError(
            f"{where}: {', '.join(bad)}; images {utils.listed(map(str, image_ids_of(group)))}, learning rate "
            f"{self.next_learning_rate():g}. {saved}, and nothing was updated. Is the learning "
            "rate too high for the batch (LEARNING_RATE, WARMUP_STEPS, GRADIENT_CLIP_NORM), or an image broken?"
        )

    def show(self, values: Mapping[str, float], batches: int, seconds: float) -> None:
        """Tell people of an update, and write it down."""
        at = self.at
        images = batches * self.config.IMAGES_PER_GPU * runtime.world_size()
        self.line.update(at.epoch, at.step, values, at.learning_rate, images, self.seconds_waiting, seconds)
        self.recorder.record("train", at.epoch, at.step, {**values, "learning_rate": at.learning_rate})

    ### After the batches of an epoch

    @contextlib.contextmanager
    def detecting(self) -> Iterator[None]:
        """The module as detection has it: averaged weights, eval mode, no gradients; random numbers do not count."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(runtime.random_states_kept(self.device))
            if self.averaged is not None:
                stack.enter_context(self.averaged.swapped())
            stack.enter_context(torch.no_grad())
            self.module.eval()
            stack.callback(self.module.train)
            yield

    def validate(self) -> dict[str, float]:
        """Mean losses of the validation data, called val_*."""
        if self.val_data is None or self.val_data.steps == 0:
            return {}
        self.share_buffers()
        total, count = 0, 0
        with self.detecting():
            for batch in self.validation_batches():
                with self.explained([batch], "in validation"):
                    total = total + self.losses_of(self.module, batch)
                count += 1
        self.watchdog.activity = "validation, other processes"
        *totals, count = runtime.world_sum(torch.cat([total, total.new_tensor([count])])).tolist()
        losses = {f"val_{name}": total / count for name, total in zip(self.names, totals, strict=True)}
        return {"val_loss": sum(losses.values()), **losses}

    def validation_batches(self) -> Iterator:
        self.val_data.set_epoch(0)
        batches = iter(self.val_data)
        while True:
            self.watchdog.activity = "validation, waiting for data"
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def run_evaluation(self, number: int) -> dict[str, float]:
        """The metrics of the weights after so many epochs, in the first process; the others wait."""
        self.watchdog.activity = "evaluation"
        metrics = None
        if self.is_main:
            with self.detecting():
                metrics = self.hooks.evaluate(number)
        if runtime.world_size() > 1:
            dist.barrier()
        return {name: float(value) for name, value in (metrics or {}).items()}

    def compare(self, logs: Mapping[str, float]) -> bool:
        """Whether this epoch is the best; with "mask AP" from an evaluation, epochs without one cannot be."""
        metric = "mask AP" if "mask AP" in logs else "val_loss"
        value = logs.get(metric, math.nan) * (1 if metric == "mask AP" else -1)
        best = self.at.best
        if best is not None and best["metric"] == metric:
            better = value > best["value"]
        else:
            better = math.isfinite(value) and (best is None or metric == "mask AP")
        if better:
            self.at.best = {"metric": metric, "value": value, "epoch": self.at.epoch}
        return better

    def record(self, logs: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        at = self.at
        values = {name: value for name, value in logs.items() if name.startswith("val_")}
        if values:
            self.recorder.record("val", at.epoch, at.step, values)
        if metrics:
            self.recorder.record("eval", at.epoch, at.step, metrics)
        save_curves(self.recorder.log_dir)
        told = {name: value for name, value in {**logs, **metrics}.items() if name in _TOLD} or logs
        self.say(f"epoch {at.epoch}/{at.epochs}: " + ", ".join(f"{name} {value:.4g}" for name, value in told.items()))

    def tell(self, event: str) -> None:
        if self.is_main and self.hooks.callbacks:
            self.watchdog.activity = "callbacks"
            with runtime.random_states_kept(self.device):
                call_back(self.hooks.callbacks, event, self.at)

    def agree_to_end(self) -> None:
        """Whether the training ends after this epoch: a signal, a callback, or nothing gets better."""
        at, patience = self.at, self.config.EARLY_STOPPING
        tired = self.is_main and patience and at.best is not None and at.epoch - at.best["epoch"] >= patience
        if tired:
            self.say(f"stopping early: epoch {at.best['epoch']} was the best for {patience} epochs")
        flags = [self.signals.received is not None, at.stop or bool(tired)]
        signalled, stops = runtime.world_sum(torch.tensor(flags, dtype=torch.float32, device=self.device)).tolist()
        at.stop = stops > 0
        if signalled:
            at.interrupted = int(self.signals.received or signal.SIGTERM)

    ### Checkpoints

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of now; all processes call it together."""
        at, config = self.at, self.config
        self.watchdog.activity = "writing a checkpoint"
        self.share_buffers()
        at.state = self.state(self.all_random_states())
        if self.is_main:
            at.checkpoint = checkpoints.checkpoint_path(self.log_dir, config.NAME, at.epoch, at.step)
            training = {**at.state, "config": config.to_dict(), "git": self.revision, "time": time.time()}
            with self.averaged.swapped() if self.averaged is not None else contextlib.nullcontext():
                checkpoints.save_checkpoint(at.checkpoint, {**self.hooks.describe(), "training": training})
            if at.step == 0:  # what was written before validation has the same weights
                last = checkpoints.checkpoint_path(self.log_dir, config.NAME, at.epoch - 1, at.steps)
                last.unlink(missing_ok=True)
            if is_best:
                checkpoints.keep_as_best(at.checkpoint, checkpoints.best_path(self.log_dir, config.NAME))
            checkpoints.prune_checkpoints(self.log_dir, config.NAME, config.CHECKPOINTS_KEPT)
        self.saved_at = time.monotonic()

    def state(self, random_states: list) -> dict[str, Any]:
        """Everything that the next update depends on, beside the module's part of a checkpoint. On the CPU."""
        at = self.at
        state = {
            "epoch": at.epoch,
            "step": at.step,
            "steps": at.steps,
            "epochs": at.epochs,
            "schedule": {"learning_rate": self.learning_rate, "steps_at": list(self.phase.steps_at)},
            "learning": self.what_learns(),
            "begin": self.begin,
            "optimizer": plain(self.optimizer.state_dict()),
            "sums": dict(self.sums),
            "best": at.best,
            "random": random_states,
        }
        if self.averaged is not None:  # the module's part of the checkpoint has the averages
            state["averaged_updates"] = self.averaged.updates
            weights = self.module.state_dict()
            state["weights"] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        return state

    def all_random_states(self) -> list:
        own = runtime.random_states(self.device)
        if runtime.world_size() == 1:
            return [own]
        states = [None] * runtime.world_size()
        dist.all_gather_object(states, own)
        return states

    def share_buffers(self) -> None:
        """Every process takes the first one's: statistics of batch norm are of each one's images until then."""
        if runtime.world_size() > 1:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, 0)

    def finish(self) -> Progress:
        at = self.at
        if self.averaged is not None:
            self.averaged.swap()
        if at.interrupted is not None:
            self.say(
                f"stopped after {at.epoch} epochs and {at.step} steps, saved in {at.checkpoint}\n"
                "to continue: the same command with --model=last"
            )
        return at

    def say(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)

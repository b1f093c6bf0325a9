"""The loop on a toy: continuing to the bit, signals, errors that help, processes together, schedules, the optimiser."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import Toy, ToyLoader, continue_toy, toy_config, train_toy, weights_of

import runtime
import training
from config import Config
from training import guards, loop
from training.checkpoints import best_path, checkpoint_path, list_checkpoints
from training.logs import read_records
from training.optimizer import SCHEDULES, learning_rate_at, make_optimizer, schedule_learning_rate, set_learning_rate

SCRIPT = Path(__file__).parent / "toy_training.py"


SAVE_CURVES = loop.save_curves


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """They take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_curves", lambda log_dir: None)
        yield


def test_numbers_of_some_images_say_so(tmp_path, capsys):
    class Partial(ToyLoader):
        missing_images, images = 1, 12

    metrics = {"mask AP": 0.41, "images": 30, "missing_images": 2}
    result = train_toy(tmp_path, val_data=Partial(), epochs=1, evaluate=lambda number: metrics)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1: ")]
    assert " on 11 of 12 images, mask AP 0.41 on 30 of 32 images" in line
    assert line.count("images") == 2, "the loss of training has all of its images"
    assert (result.logs["val_missing_images"], result.logs["val_images"]) == (1, 11)
    train_toy(
        tmp_path / "whole", val_data=ToyLoader(), epochs=1, evaluate=lambda number: {"mask AP": 0.41, "images": 9}
    )
    assert "images" not in capsys.readouterr().out.splitlines()[-1]


def test_validation_data_of_which_no_image_can_be_loaded(tmp_path, capsys):
    class Nothing(ToyLoader):
        def __iter__(self):
            return iter(())

    result = train_toy(tmp_path, val_data=Nothing(), epochs=1)
    assert "no image of the validation data can be loaded, so there is no validation loss" in capsys.readouterr().out
    assert "val_loss" not in result.logs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What trainings that were interrupted have to arrive at."""
    return train_toy(tmp_path_factory.mktemp("logs") / "toy")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def newest(log_dir):
    return list(list_checkpoints(log_dir, "toy").values())[-1]


def assert_same_training(one, other):
    """Averaged weights, raw weights and statistics, optimiser, logs and random numbers are the same."""
    assert_same(weights_of(one.module), weights_of(other.module))
    ours, theirs = (torch.load(result.checkpoint, weights_only=True)["training"] for result in (one, other))
    assert_same(ours["weights"], theirs["weights"])
    for index, state in ours["optimizer"]["state"].items():
        assert_same(state, theirs["optimizer"]["state"][index])
    assert_same({"torch": ours["random"][0]["torch"]}, {"torch": theirs["random"][0]["torch"]})
    assert one.logs == other.logs


############################################################
#  What training computes
############################################################


def test_is_the_textbook_loop(tmp_path):
    """Updates of mean gradients, clipped, at the schedule's rates, and their average, written out by hand."""
    config = toy_config(GRADIENT_CLIP_NORM=0.5, OPTIMIZER="sgd")
    result = train_toy(tmp_path, Toy(dropout=0), config=config)
    module, loader = Toy(dropout=0), ToyLoader()
    average, velocity, update = [p.detach().clone() for p in module.parameters()], None, 0
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        for group in (batches[:2], batches[2:]):
            module.zero_grad()
            for batch in group:
                (sum(module(batch.points).values()) / len(group)).backward()
            gradients = [parameter.grad for parameter in module.parameters()]
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            rate = 0.05 * (0.1 + 0.9 * min(update / 3, 1)) * (0.1 if epoch >= 2 else 1)
            velocity = velocity or [torch.zeros_like(gradient) for gradient in gradients]
            with torch.no_grad():
                for parameter, gradient, speed, mean in zip(
                    module.parameters(), gradients, velocity, average, strict=True
                ):
                    speed.mul_(0.9).add_(gradient * min(1, 0.5 / norm) + 1e-4 * parameter)
                    parameter -= rate * speed
                    mean.lerp_(parameter, 1 - min(0.9, (1 + update) / (10 + update)))
            update += 1
    for ours, theirs in zip(result.module.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    raw = dict(module.named_parameters())
    for name, tensor in raw.items():
        torch.testing.assert_close(result.state["weights"][name], tensor.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.module.norm.running_mean, module.norm.running_mean)
    assert (update, result.epoch, result.step) == (6, 3, 0)


def test_nothing_beside_training_changes_it(tmp_path, uninterrupted):
    """Validation, evaluation and callbacks, though they draw numbers, and checkpoints within epochs."""

    def draw(*arguments):
        torch.rand(5), np.random.rand(5)  # noqa: NPY002
        return {"mask AP": 0.5}

    config = toy_config(CHECKPOINT_MINUTES=1e-9)
    result = train_toy(tmp_path, config=config, val_data=ToyLoader(2), callbacks=[draw], evaluate=draw)
    assert_same(weights_of(result.module), weights_of(uninterrupted.module))
    assert_same(result.state["weights"], uninterrupted.state["weights"])


def test_seed_decides(tmp_path, uninterrupted):
    torch.rand(7)  # and not what was drawn before
    again = train_toy(tmp_path / "a", callbacks=[])
    other = train_toy(tmp_path / "b", config=toy_config(SEED=1))
    assert_same_training(again, uninterrupted)
    assert not torch.equal(other.module.last.weight, again.module.last.weight)


def test_random_numbers_of_the_caller_go_on(tmp_path):
    module = Toy()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train_toy(tmp_path, module, epochs=1, val_data=ToyLoader(1))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_validation_and_evaluation_see_averages_and_change_nothing(tmp_path):
    seen = []

    class Watched(Toy):
        def forward(self, points):
            if not self.training:
                seen.append((torch.is_grad_enabled(), self.last.weight.detach().clone()))
            return super().forward(points)

    module = Watched()
    evaluated = []

    def evaluate(epoch):
        evaluated.append((epoch, module.training, module.last.weight.detach().clone()))

    result = train_toy(tmp_path, module, val_data=ToyLoader(2), evaluate=evaluate, config=toy_config(EVAL_EVERY=2))
    assert len(seen) == 3 * 2
    assert not any(gradients for gradients, _ in seen)
    assert [(epoch, training) for epoch, training, _ in evaluated] == [(2, False), (3, False)]  # the last one, too
    for _, weight in (seen[-1], evaluated[-1][1:]):
        assert torch.equal(weight, module.last.weight)  # which train leaves averaged
    assert not torch.equal(module.last.weight, result.state["weights"]["last.weight"])
    assert module.norm.num_batches_tracked == 3 * 3
    assert result.logs["val_loss"] == pytest.approx(result.logs["val_distance"] + result.logs["val_size"])
    assert module.training


def test_without_average_checkpoints_have_the_weights(tmp_path):
    result = train_toy(tmp_path, config=toy_config(EMA_DECAY=0))
    checkpoint = torch.load(result.checkpoint, weights_only=True)
    assert_same(checkpoint["model"], weights_of(result.module))
    assert "weights" not in checkpoint["training"]


############################################################
#  Continuing
############################################################


def interrupt_at(epoch, step, number=signal.SIGINT):
    """A loader during which a signal comes."""
    return ToyLoader(at_batch=lambda *at: os.kill(os.getpid(), number) if at == (epoch, step) else None)


# Updates begin at steps 0 and 2. The self-check takes the first batch of a run.
@pytest.mark.parametrize(
    ("at", "saved"),
    [((0, 0), (0, 2)), ((0, 1), (0, 2)), ((0, 2), (0, 3)), ((1, 0), (1, 2)), ((1, 2), (1, 3)), ((2, 1), (2, 2))],
)
def test_interrupted_anywhere_and_continued(tmp_path, capsys, uninterrupted, at, saved):
    stopped = train_toy(tmp_path, loader=interrupt_at(*at))
    assert (stopped.epoch, stopped.step, stopped.interrupted) == (*saved, signal.SIGINT)
    assert stopped.checkpoint.name == f"mask_rcnn_toy_{saved[0]:04d}_{saved[1]:06d}.pth"
    assert str(stopped.checkpoint) in capsys.readouterr().out
    result = continue_toy(stopped.checkpoint)
    assert result.interrupted is None
    assert_same_training(result, uninterrupted)


def test_interrupted_again_and_again(tmp_path, uninterrupted):
    result = train_toy(tmp_path, loader=interrupt_at(0, 0))
    for at in ((0, 2), (1, 0), (1, 2), (2, 0)):
        result = continue_toy(result.checkpoint, loader=interrupt_at(*at))
    result = continue_toy(result.checkpoint)
    assert_same_training(result, uninterrupted)
    lines, expected = ((each.log_dir / "metrics.jsonl").read_text() for each in (result, uninterrupted))
    assert lines == expected
    assert len(lines.splitlines()) == 6


def test_continued_in_the_same_process(tmp_path, uninterrupted):
    """With what train returned, and no file."""
    stopped = train_toy(tmp_path, loader=interrupt_at(1, 0))
    assert_same_training(train_toy(tmp_path, stopped.module, start=stopped.state), uninterrupted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_continued_on_a_gpu(tmp_path):
    whole = train_toy(tmp_path / "whole", Toy().cuda())
    stopped = train_toy(tmp_path / "parts", Toy().cuda(), loader=interrupt_at(1, 1))
    parts = continue_toy(stopped.checkpoint, module=Toy().cuda())
    assert_same_training(parts, whole)
    assert torch.load(parts.checkpoint, weights_only=True)["training"]["optimizer"]["state"]  # needs no GPU


@pytest.mark.parametrize("epoch", [1, 2])
def test_continued_from_an_epoch(tmp_path, uninterrupted, epoch):
    path = checkpoint_path(uninterrupted.log_dir, "Toy", epoch)
    assert_same_training(continue_toy(path, tmp_path), uninterrupted)


def test_killed_and_continued(tmp_path, uninterrupted):
    done = subprocess.run([sys.executable, SCRIPT, "killed", tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (tmp_path / ".mask_rcnn_toy_0001.pth.abc.tmp").write_text("half of a checkpoint")
    path = newest(tmp_path)
    assert path.name == "mask_rcnn_toy_0001_000002.pth"
    assert_same_training(continue_toy(path), uninterrupted)
    assert not list(tmp_path.glob(".mask*"))


def test_interrupted_while_evaluating(tmp_path, uninterrupted):
    """What had been trained is kept, and the evaluation repeated."""
    with pytest.raises(ZeroDivisionError):
        train_toy(tmp_path, evaluate=lambda epoch: {"mask AP": 1 / (epoch - 2)})
    path = checkpoint_path(tmp_path, "toy", 1, 3)
    assert path.exists()
    evaluated = []
    result = continue_toy(path, evaluate=evaluated.append)
    assert evaluated == [2, 3]
    assert_same(weights_of(result.module), weights_of(uninterrupted.module))
    assert result.logs == uninterrupted.logs


def test_another_phase_begins_with_a_fresh_optimizer(tmp_path, capsys):
    first = train_toy(tmp_path, epochs=1, layers="heads")
    weights = first.state["weights"]
    second = train_toy(tmp_path, first.module, start=first.state, epochs=2, layers="all", learning_rate=0.0)
    assert "the optimiser begins anew" in capsys.readouterr().out
    assert (second.epoch, second.checkpoint.name) == (2, "mask_rcnn_toy_0002.pth")
    assert torch.equal(second.state["weights"]["last.weight"], weights["last.weight"])
    momentum = [result.state["optimizer"]["state"][0]["momentum_buffer"] for result in (first, second)]
    again = train_toy(tmp_path / "b", first.module, start={**second.state, "optimizer": {}, "epoch": 1}, epochs=2)
    assert not torch.equal(*momentum)
    assert again.epoch == 2


def test_the_state_has_the_keys_that_older_checkpoints_have(tmp_path, uninterrupted):
    """Renaming one would lose it in older files. A key that is no longer known is left alone."""
    stopped = train_toy(tmp_path, loader=interrupt_at(1, 1))
    checkpoint = torch.load(stopped.checkpoint, weights_only=True)
    assert set(checkpoint["training"]) == {
        *("epoch", "step", "steps", "epochs", "schedule", "learning", "begin", "optimizer", "sums", "best", "random"),
        *("averaged_updates", "weights", "config", "git", "time"),
    }
    assert checkpoint["training"]["learning"][:2] == ["sgd", "all"]
    assert checkpoint["training"]["schedule"] == {"learning_rate": 0.05, "steps_at": [2]}
    checkpoint["training"]["stage"] = "all"
    torch.save(checkpoint, stopped.checkpoint)
    assert_same_training(continue_toy(stopped.checkpoint), uninterrupted)


def test_an_epoch_of_another_length_begins_again(tmp_path, capsys):
    stopped = train_toy(tmp_path, loader=interrupt_at(1, 0))
    result = continue_toy(stopped.checkpoint, loader=ToyLoader(5))
    assert "epoch 2 begins again" in capsys.readouterr().out
    assert (result.epoch, result.steps) == (3, 5)


def test_nothing_left_to_do(tmp_path):
    result = train_toy(tmp_path)
    weights = weights_of(result.module)
    again = continue_toy(result.checkpoint)
    assert_same(weights_of(again.module), weights)
    assert again.interrupted is None


def test_later_checkpoints_are_set_aside(tmp_path):
    train_toy(tmp_path)
    continue_toy(checkpoint_path(tmp_path, "toy", 1), epochs=2)
    assert [path.name for path in sorted(tmp_path.glob("*_0*"))] == [
        "mask_rcnn_toy_0001.pth",
        "mask_rcnn_toy_0002.pth",
        "mask_rcnn_toy_0002.pth.superseded",
        "mask_rcnn_toy_0003.pth.superseded",
    ]


def test_a_new_training_in_a_used_folder(tmp_path):
    train_toy(tmp_path)
    result = train_toy(tmp_path, epochs=1)
    assert newest(tmp_path) == result.checkpoint
    assert len(list(tmp_path.glob("*.superseded"))) == 3
    assert len(read_records(tmp_path / "metrics.jsonl")) == 2


############################################################
#  Signals
############################################################


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_put_back(tmp_path, number):
    before = signal.getsignal(number)
    assert train_toy(tmp_path, loader=interrupt_at(1, 1, number)).interrupted == number
    assert signal.getsignal(number) is before


def test_second_signal_stops_at_once(tmp_path, monkeypatch):
    def twice(epoch, step):
        if (epoch, step) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert train_toy(tmp_path / "a", loader=ToyLoader(at_batch=twice)).interrupted  # torchrun repeats signals
    monkeypatch.setattr("runtime.REPEAT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "b", loader=ToyLoader(at_batch=twice))
    assert newest(tmp_path / "b").name == "mask_rcnn_toy_0001.pth"


def test_signal_after_the_last_batch(tmp_path):
    """In the evaluation: it is finished, and the epoch saved."""
    result = train_toy(tmp_path, evaluate=lambda epoch: os.kill(os.getpid(), signal.SIGTERM))
    assert (result.epoch, result.step, result.interrupted) == (1, 0, signal.SIGTERM)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["mask_rcnn_toy_0001.pth"]


############################################################
#  Errors
############################################################


class Broken(Toy):
    """A Toy with which something goes wrong when the images of one batch come."""

    def __init__(self, problem, call=5):
        super().__init__()
        self.problem, self.call, self.calls = problem, call, 0

    def forward(self, points):
        losses = super().forward(points)
        self.calls += 1
        return self.problem(losses) if self.calls == self.call else losses


# Calls of the module: the self-check, then a batch each. The fifth is step 0 of epoch 2.
@pytest.mark.parametrize(
    ("problem", "names"),
    [
        (lambda losses: {**losses, "size": losses["size"] * float("nan")}, "loss is nan, size is nan"),
        (lambda losses: {**losses, "size": losses["size"] / 0}, "size is inf"),
        (lambda losses: {**losses, "size": (losses["size"] - losses["size"]).sqrt()}, "gradient_norm is nan"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_not_finite(tmp_path, problem, names):
    module = Broken(problem)
    with pytest.raises(FloatingPointError, match=names) as error:
        train_toy(tmp_path, module)
    path = tmp_path / "nonfinite_0001_000000.pth"
    for text in ("epoch 2, step 0", "images 0, 1, 2, 3", "learning rate 0.035", str(path), "no weight was updated in"):
        assert text in str(error.value)
    contents = torch.load(path, weights_only=True)
    assert [batch["image_ids"] for batch in contents["batches"]] == [[0, 1], [2, 3]]
    assert contents["batches"][0]["points"].shape == (2, 3)
    last = torch.load(newest(tmp_path), weights_only=True)["training"]
    assert torch.equal(contents["model"]["last.weight"], last["weights"]["last.weight"])  # nothing was updated
    assert torch.equal(module.last.weight, last["weights"]["last.weight"])


@pytest.mark.parametrize(("minutes", "step"), [(0, 3), (1e-9, 2)], ids=["end of an epoch", "within it"])
@pytest.mark.parametrize("validates", [False, True])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, minutes, step, validates):
    """The last update of an epoch is followed by no loss that would show it. A checkpoint of NaN cannot be read."""
    module, config = Toy(), toy_config(CHECKPOINT_MINUTES=minutes, ACCUMULATE_STEPS=1)

    def spoil(epoch, at):
        if (epoch, at) == (1, step - 1):
            module.last.register_full_backward_hook(lambda *_: module.last.bias.data.fill_(float("nan")) and None)

    with pytest.raises(FloatingPointError, match=rf"after epoch 2, step {step}, .*: 1 tensors .* last.bias; .* 0.0"):
        train_toy(tmp_path, module, ToyLoader(at_batch=spoil), config, val_data=ToyLoader(1) if validates else None)
    for path in tmp_path.glob("*.pth"):
        stored = torch.load(path, weights_only=True)
        assert all(tensor.isfinite().all() for tensor in stored["model"].values())


def test_not_finite_in_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "world_sum", lambda tensor: tensor * float("nan"))
    with pytest.raises(FloatingPointError, match="process 0: the losses of another process are not finite"):
        train_toy(tmp_path)
    assert not list(tmp_path.glob("nonfinite*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_says_what_to_change(tmp_path, error):
    def fail(losses):
        raise error

    with pytest.raises(MemoryError, match="epoch 2, step 0, images 0, 1") as caught:
        train_toy(tmp_path, Broken(fail), config=toy_config(TRAIN_ROIS_PER_IMAGE=99))
    for text in ("IMAGES_PER_GPU = 2", "TRAIN_ROIS_PER_IMAGE = 99", "ACTIVATION_CHECKPOINTING = False", "TRAIN_DTYPE"):
        assert text in str(caught.value)
    assert caught.value.__cause__ is error


def test_real_allocation_is_out_of_memory():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(10**17)
    assert guards.is_out_of_memory(error.value)
    assert not guards.is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize(("call", "where"), [(1, "in the self-check"), (5, "in epoch 2, step 0")])
def test_errors_name_the_images(tmp_path, call, where):
    def fail(losses):
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake") as error:
        train_toy(tmp_path, Broken(fail, call))
    assert error.value.__notes__ == [f"{where}, images 0, 1, process 0"]


@pytest.mark.parametrize("losses", [None, {}, {"loss": torch.ones(2)}, torch.ones(())])
def test_losses_must_be_a_dict_of_scalars(tmp_path, losses):
    with pytest.raises(ValueError, match="dict of scalar losses"):
        train_toy(tmp_path, Broken(lambda _: losses, call=1))


def test_nothing_learns(tmp_path):
    module = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        train_toy(tmp_path, module)


def test_no_batches(tmp_path):
    with pytest.raises(ValueError, match="train_data has no batches"):
        train_toy(tmp_path, loader=ToyLoader(0))


def test_full_disk(tmp_path, monkeypatch, uninterrupted):
    """Training stops with what to do; the checkpoint before is whole, and continues as if nothing had been."""
    write = runtime.write_atomically

    def refuse(path, *arguments):
        if Path(path).name == "mask_rcnn_toy_0002.pth":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments)

    monkeypatch.setattr("runtime.write_atomically", refuse)
    with pytest.raises(OSError, match=r"mask_rcnn_toy_0002\.pth could not be written \(No space left on device\)"):
        train_toy(tmp_path)
    monkeypatch.undo()
    assert newest(tmp_path).name == "mask_rcnn_toy_0001.pth"
    assert_same_training(continue_toy(newest(tmp_path)), uninterrupted)


def test_loader_that_ends_early(tmp_path):
    class Short(ToyLoader):
        def __iter__(self):
            yield next(super().__iter__())

    with pytest.raises(RuntimeError, match="the loader ended after 1 of 3 batches of epoch 1"):
        train_toy(tmp_path, loader=Short(), config=toy_config(ACCUMULATE_STEPS=1))


def test_one_training_in_a_folder(tmp_path):
    def again(event, progress):
        message = rf"folder .* is in use by another training or evaluation \(process {os.getpid()} on"
        with pytest.raises(ValueError, match=message):
            train_toy(tmp_path)

    train_toy(tmp_path, epochs=1, callbacks=[again])
    train_toy(tmp_path, epochs=1)


############################################################
#  Callbacks, the best, and the end
############################################################


def test_callbacks(tmp_path):
    events, epochs = [], []

    class Keras:
        def on_epoch_end(self, epoch, logs):
            epochs.append((epoch, logs["val_loss"]))

    def function(event, progress):
        events.append((event, progress.epoch, progress.checkpoint and progress.checkpoint.name))
        progress.stop = event == "epoch_end" and progress.epoch == 2

    result = train_toy(tmp_path, val_data=ToyLoader(1), callbacks=[Keras(), function])
    assert events == [
        ("train_begin", 0, None),
        ("epoch_end", 1, "mask_rcnn_toy_0001.pth"),
        ("epoch_end", 2, "mask_rcnn_toy_0002.pth"),
        ("train_end", 2, "mask_rcnn_toy_0002.pth"),
    ]
    assert [epoch for epoch, _ in epochs] == [0, 1]
    assert epochs[1][1] == result.logs["val_loss"]
    assert (result.epoch, result.interrupted) == (2, None)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"mask AP": "x"}, "evaluate must return a dict of numbers, not 'x' for 'mask AP'"),
        ({"mask AP": torch.ones(2)}, "evaluate must return a dict of numbers, not tensor"),
        (0.5, "evaluate must return a dict of numbers, or None, not float"),
    ],
)
def test_what_is_no_metric(tmp_path, metrics, message):
    with pytest.raises(ValueError, match=message):
        train_toy(tmp_path, evaluate=lambda epoch: metrics)


def test_metrics_that_are_not_finite_are_named(tmp_path, capsys):
    result = train_toy(tmp_path, epochs=1, evaluate=lambda epoch: {"mask AP": float("nan"), "box AP": 0.5})
    assert "evaluate returned no finite number for mask AP\n" in capsys.readouterr().out
    assert (result.best, result.logs["box AP"]) == (None, 0.5)


@pytest.mark.parametrize("callback", [3, ToyLoader])
def test_what_is_no_callback(tmp_path, callback):
    with pytest.raises(ValueError, match=r"callbacks: .* must be a function"):
        train_toy(tmp_path, callbacks=[callback])


def test_best_by_mask_ap(tmp_path):
    values = [0.1, 0.4, 0.3, 0.2]
    config = toy_config(EARLY_STOPPING=2, CHECKPOINTS_KEPT=1)
    result = train_toy(
        tmp_path, config=config, epochs=9, val_data=ToyLoader(1), evaluate=lambda epoch: {"mask AP": values[epoch - 1]}
    )
    assert result.best == {"metric": "mask AP", "value": 0.4, "epoch": 2}
    assert result.epoch == 4
    assert result.logs["mask AP"] == 0.2
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["mask_rcnn_toy_0004.pth", "mask_rcnn_toy_best.pth"]
    assert torch.load(best_path(tmp_path, "toy"), weights_only=True)["training"]["epoch"] == 2
    assert torch.load(result.checkpoint, weights_only=True)["training"]["best"] == result.best


def test_evaluations_now_and_then(tmp_path):
    """Epochs without one are not the best, however small their validation loss is."""
    config = toy_config(EVAL_EVERY=2)
    result = train_toy(tmp_path, config=config, val_data=ToyLoader(1), evaluate=lambda epoch: {"mask AP": 0.0})
    assert result.best == {"metric": "mask AP", "value": 0.0, "epoch": 2}


def test_best_by_validation_loss(tmp_path):
    losses = []
    result = train_toy(
        tmp_path, val_data=ToyLoader(2), epochs=5, callbacks=[lambda event, p: losses.append(p.logs.get("val_loss"))]
    )
    best = int(np.argmin(losses[1:-1]))
    assert result.best == {"metric": "val_loss", "value": -losses[1 + best], "epoch": 1 + best}


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    """Every minute, where time goes by 25 s a batch."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def tick(epoch, step):
        now[0] += 25

    saved = []
    monkeypatch.setattr(
        training.checkpoints, "prune_checkpoints", lambda *a: saved.append(sorted(tmp_path.glob("*_0*")))
    )
    config = toy_config(CHECKPOINT_MINUTES=1, ACCUMULATE_STEPS=1)
    train_toy(tmp_path, loader=ToyLoader(7, at_batch=tick), config=config, epochs=1)
    assert [path.name[-11:-4] for path in saved[-1]] == ["_000003", "_000006", "oy_0001"]


def test_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "save_curves", SAVE_CURVES)
    train_toy(tmp_path, epochs=1, val_data=ToyLoader(1), evaluate=lambda epoch: {"mask AP": 0.5})
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(record["kind"], record["epoch"], record["step"]) for record in records] == [
        *(("train", 0, 2), ("train", 0, 3)),
        *(("val", 1, 0), ("eval", 1, 0)),
    ]
    assert records[0].keys() >= {"loss", "distance", "size", "gradient_norm", "learning_rate"}
    assert records[2].keys() >= {"val_loss", "val_distance", "val_size"}
    assert records[3]["mask AP"] == 0.5
    assert (tmp_path / "losses.png").stat().st_size > 1000
    output = capsys.readouterr()
    assert "epoch 1/1 step 3/3" in output.err
    for text in ("self-check of one batch of 2 images: loading", "into", "learning rate 0.05", "epoch 1/1: loss"):
        assert text in output.out


############################################################
#  Optimiser and schedules
############################################################


def test_groups_of_parameters(tmp_path):
    module = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "norm": nn.GroupNorm(1, 2), "frozen": nn.Linear(1, 1)})
    module["frozen"].requires_grad_(False)
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def groups(**settings):
        optimizer = make_optimizer(module, Config(**settings))
        return {
            names[id(parameter)]: (group["weight_decay"], group["lr_factor"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    everything = dict.fromkeys(("conv.weight", "conv.bias", "norm.weight", "norm.bias"), (1e-4, 1.0))
    assert groups() == everything
    assert groups(DIALECT="benchmark") == everything | {"conv.bias": (0.0, 2.0), "norm.bias": (0.0, 2.0)}
    assert groups(DIALECT="matterport") == everything | {"norm.weight": (0.0, 1.0), "norm.bias": (0.0, 1.0)}


def test_factors_on_the_learning_rate_and_adamw():
    optimizer = make_optimizer(Toy(), Config(DIALECT="benchmark", OPTIMIZER="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"], "on a CPU the other ways take longer than the gradients of a small network"
    set_learning_rate(optimizer, 0.25)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.25, 0.5]


# mmdetection 3, 7330 iterations an epoch; golden/mmdet/lr_schedule.json
@pytest.mark.parametrize("name", ["1x", "2x"])
def test_schedules_are_mmdetections(name):
    (phase,) = SCHEDULES[name]
    rates = {
        0: 2e-05, 1: 6.004008016032065e-05, 2: 0.0001000801603206413, 100: 0.0040240080160320645,
        250: 0.010030020040080153, 498: 0.01995995991983963, 499: 0.02, 500: 0.02, 7330: 0.02,
        **({58639: 0.02, 58640: 0.002, 80629: 0.002, 80630: 0.0002} if name == "1x" else
           {109950: 0.02, 117280: 0.002, 153930: 0.002, 161260: 0.0002, 168590: 0.0002}),
    }  # fmt: skip
    drops = [7330 * epoch for epoch in phase.steps_at]
    for update, rate in rates.items():
        assert learning_rate_at(update, 0.02, drops, 500, 0.001) == pytest.approx(rate, rel=1e-12)
    assert (Config().WARMUP_STEPS, Config().WARMUP_FACTOR) == (500, 0.001)


def test_schedule_of_the_papers_code():
    """maskrcnn-benchmark's, golden/peers/golden_units_p2.npz: its warm-up reaches the full rate one update later."""
    rates = {0: 0.00666667, 1: 0.00669333, 2: 0.00672, 250: 0.01333333, 499: 0.01997333, 500: 0.02, 501: 0.02}
    rates |= {59999: 0.02, 60000: 0.002, 79999: 0.002, 80000: 0.0002, 89999: 0.0002}
    for update, rate in rates.items():
        assert learning_rate_at(update, 0.02, (60000, 80000), 501, 1 / 3) == pytest.approx(rate, rel=1e-6)


def test_no_warmup():
    assert learning_rate_at(0, 0.5) == learning_rate_at(0, 0.5, (), 1, 0.1) == 0.5


def test_cosine():
    """Half a cosine over all updates, the warm-up as a factor on it."""
    rates = [learning_rate_at(update, 0.5, (1,), cosine_updates=4) for update in (0, 1, 2, 3, 4, 9)]
    root = 2**0.5
    assert rates == pytest.approx([0.5, 0.125 * (2 + root), 0.25, 0.125 * (2 - root), 0, 0], abs=1e-15)
    assert learning_rate_at(0, 0.5, (), 3, 0.1, cosine_updates=4) == pytest.approx(0.05)
    assert learning_rate_at(1, 0.5, (), 3, 0.1, 4) == pytest.approx(0.55 * 0.125 * (2 + root))


def test_cosine_over_the_epochs_of_a_training(tmp_path):
    config = toy_config(LEARNING_RATE_DECAY="cosine", WARMUP_STEPS=0, ACCUMULATE_STEPS=1)
    train_toy(tmp_path, config=config, epochs=2, learning_rate=0.5, steps_at=(1,))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * update / 6)) for update in range(6)])


def test_each_phase_has_its_own_cosine_wherever_it_was_interrupted(tmp_path):
    config = toy_config(LEARNING_RATE_DECAY="cosine", WARMUP_STEPS=0, ACCUMULATE_STEPS=1, CHECKPOINTS_KEPT=9)
    cosine = {"config": config, "learning_rate": 0.5, "steps_at": ()}
    first = train_toy(tmp_path, epochs=1, **cosine)
    train_toy(tmp_path, first.module, epochs=3, layers="other", start=first.state, **cosine)
    (path,) = tmp_path.glob("*_0002.pth")
    continue_toy(path, epochs=3, layers="other", **cosine)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    expected = [update / steps for steps in (3, 6) for update in range(steps)]
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * share)) for share in expected])


def test_matterports_phases():
    heads, upper, everything = SCHEDULES["matterport"]
    assert (heads.layers, heads.epochs, heads.factor) == ("heads", 40, 1.0)
    assert (upper.layers, upper.epochs, upper.factor) == ("4+", 120, 1.0)
    assert (everything.layers, everything.epochs, everything.factor) == ("all", 160, 0.1)


def test_learning_rate_follows_the_batch():
    rate, why = schedule_learning_rate(Config(SCHEDULE="1x", IMAGES_PER_GPU=2, ACCUMULATE_STEPS=4))
    assert rate == pytest.approx(0.02 * 8 / 16)
    assert "0.01:" in why
    assert "0.02 for 16 images" in why
    assert "IMAGES_PER_GPU 2 x 1 processes x ACCUMULATE_STEPS 4" in why
    assert schedule_learning_rate(Config(SCHEDULE="2x", OPTIMIZER="adamw"))[0] == pytest.approx(1e-4 / 8)
    assert schedule_learning_rate(Config(SCHEDULE="matterport"))[0] == 0.001


############################################################
#  Several processes
############################################################


def torchrun(role, log_dir):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        SCRIPT,
        role,
        log_dir,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_two_processes(tmp_path):
    """They compute what one does with twice the images, and a signal to one stops both."""
    done = torchrun("pair", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = train_toy(tmp_path / "alone", Toy(norm=False, dropout=0), val_data=ToyLoader(2))
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["pair"] == {"logs": pytest.approx(alone.logs, rel=1e-5), "interrupted": None}
    checkpoint = torch.load(newest(tmp_path / "pair"), weights_only=True)
    for name, tensor in weights_of(alone.module).items():
        torch.testing.assert_close(checkpoint["model"][name], tensor, rtol=1e-6, atol=1e-6)
    assert len(checkpoint["training"]["random"]) == 2
    assert len(list((tmp_path / "pair").glob("*.pth"))) == 4  # one writer: three epochs and the best
    assert result["stopped"]["interrupted"] == signal.SIGTERM
    assert newest(tmp_path / "stopped").name == "mask_rcnn_toy_0001_000002.pth"


def test_a_dead_process_ends_the_others(tmp_path):
    done = torchrun("dead", tmp_path)  # within a minute, or subprocess raises
    assert done.returncode != 0
    assert "RuntimeError: what went wrong" in done.stderr

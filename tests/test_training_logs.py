"""Metrics, curves, the line of progress and the watchdog of a training."""

import csv
import errno
import importlib.machinery
import io
import json
import math
import os
import sys
import threading
import types

import numpy as np
import pytest
import torch
from PIL import Image

import runtime
from training import curves, logs
from training.curves import draw_curves
from training.logs import ProgressLine, Recorder, read_records
from training.watchdog import Watchdog

############################################################
#  Records
############################################################


def record_training(recorder, begin=(0, 0), end=(3, 0), steps=4):
    """What a training of 3 epochs records from one place to another; an evaluation only after epoch 2."""
    for epoch in range(3):
        for step in range(1, steps + 1):
            if begin < (epoch, step) <= end:
                loss = 1 / (1 + epoch * steps + step)
                values = {"loss": loss, "mask_loss": loss / 3, "learning_rate": 0.1}
                recorder.record("train", epoch, step, values)
        if begin < (epoch + 1, 0) <= end:
            recorder.record("val", epoch + 1, 0, {"val_loss": 0.1 * epoch, "val_mask_loss": math.pi})
            if epoch == 1:
                recorder.record("eval", epoch + 1, 0, {"mask AP": 0.25, "mask AP (class score)": 0.2})


def contents(folder):
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    recorder = Recorder(folder, (0, 0))
    record_training(recorder)
    recorder.close()
    return folder


def test_records_are_lines_of_json_and_a_table(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.record("train", 0, 1, {"loss": torch.tensor(0.5), "learning_rate": np.float32(0.25)})
    recorder.record("train", 0, 2, {"loss": math.nan, "learning_rate": 1})
    recorder.record("eval", 1, 0, {"mask AP, small": math.inf})
    recorder.close()
    recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"kind": "train", "epoch": 0, "step": 1, "loss": 0.5, "learning_rate": 0.25},
        {"kind": "train", "epoch": 0, "step": 2, "loss": None, "learning_rate": 1.0},
        {"kind": "eval", "epoch": 1, "step": 0, "mask AP, small": None},
    ]
    assert read_records(tmp_path / "metrics.jsonl") == [json.loads(line) for line in lines]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["kind", "epoch", "step", "loss", "learning_rate", "mask AP, small"],
            ["train", "0", "1", "0.5", "0.25", ""],
            ["train", "0", "2", "nan", "1.0", ""],
            ["eval", "1", "0", "", "", "nan"],
        ]


def test_every_record_is_in_the_files_at_once(tmp_path):
    """No close(), no flush of ours: the process may be killed after any record."""
    recorder = Recorder(tmp_path)
    for step in range(1, 4):
        recorder.record("train", 0, step, {"loss": 1})
        assert [len(text.splitlines()) for text in contents(tmp_path)] == [step, step + 1]
    recorder.close()


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (0, 4), (1, 0), (1, 2), (2, 0), (2, 4), (3, 0)])
@pytest.mark.parametrize("torn", [b"", b'{"kind": "train", "epoch": 2, "st', b"\xff\x00", b"7"])
def test_a_continued_training_has_the_records_of_an_uninterrupted_one(tmp_path, uninterrupted, place, torn):
    """Killed at the end of all, after which the last checkpoint is found to be that of place."""
    killed = Recorder(tmp_path, (0, 0))
    record_training(killed)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(torn)
    resumed = Recorder(tmp_path, place)
    record_training(resumed, begin=place)
    killed.close()
    resumed.close()
    assert contents(tmp_path) == contents(uninterrupted)


def test_a_last_line_without_its_end_counts(tmp_path, uninterrupted):
    """Only the newline was not written: the record is whole, and the next one gets a line of its own."""
    (tmp_path / "metrics.jsonl").write_bytes((uninterrupted / "metrics.jsonl").read_bytes()[:-1])
    Recorder(tmp_path).close()
    assert contents(tmp_path) == contents(uninterrupted)


def test_an_unreadable_line_is_told_of(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "epoch": 0, "step": 1}\n{"kind\n[1]\n')
    assert read_records(tmp_path / "metrics.jsonl") == [{"kind": "train", "epoch": 0, "step": 1}]
    assert caplog.text.count("cannot be read") == 2
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("value", ["high", None, torch.zeros(2), [1]])
def test_values_are_numbers(tmp_path, value):
    recorder = Recorder(tmp_path)
    with pytest.raises(ValueError, match=r"values\['loss'\] must be a number"):
        recorder.record("train", 0, 1, {"loss": value})
    with pytest.raises(ValueError, match="'step' is a key that every record has"):
        recorder.record("train", 0, 1, {"step": 1})
    recorder.close()
    assert read_records(tmp_path / "metrics.jsonl") == []


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


def test_a_full_disk_is_named(tmp_path):
    recorder = Recorder(tmp_path)
    recorder._json.close()
    recorder._json = FullDisk()
    with pytest.raises(OSError, match="is the disk full") as error:
        recorder.record("train", 0, 1, {"loss": 1})
    assert error.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(error.value)
    recorder.close()  # says it, and does not hide the error above


############################################################
#  TensorBoard
############################################################


class SummaryWriter:
    """What Recorder uses of TensorBoard's."""

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.scalars, self.closed = log_dir, purge_step, [], 0
        type(self).last = self

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def close(self):
        self.closed += 1


def install_tensorboard(monkeypatch, writer):
    package = types.ModuleType("tensorboard")
    package.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    module = types.ModuleType("torch.utils.tensorboard")
    if writer is not None:
        module.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_tensorboard_gets_what_is_recorded(tmp_path, monkeypatch):
    install_tensorboard(monkeypatch, SummaryWriter)
    recorder = Recorder(tmp_path, (0, 0))
    writer = SummaryWriter.last
    assert (writer.log_dir, writer.purge_step) == (str(tmp_path), 1)
    record_training(recorder, end=(1, 1))
    recorder.record("train", 1, 2, {"gradient_norm": math.nan})
    recorder.close()
    recorder.close()
    totals = [(tag, step) for tag, _, step in writer.scalars if tag in ("train/loss", "val/loss")]
    assert totals == [*(("train/loss", step) for step in (1, 2, 3, 4)), ("val/loss", 4), ("train/loss", 5)]
    assert ("val/mask_loss", math.pi, 4) in writer.scalars
    assert not {"train/kind", "train/epoch", "train/step"} & {tag for tag, _, _ in writer.scalars}
    tag, value, step = writer.scalars[-1]
    assert (tag, step) == ("train/gradient_norm", 6)
    assert math.isnan(value)
    assert writer.closed == 1


@pytest.mark.parametrize(("place", "purged"), [((0, 2), 3), ((0, 4), 5), ((1, 0), 5), ((2, 3), 12), (None, 13)])
def test_tensorboard_hides_what_is_done_again(tmp_path, monkeypatch, uninterrupted, place, purged):
    (tmp_path / "metrics.jsonl").write_bytes((uninterrupted / "metrics.jsonl").read_bytes())
    install_tensorboard(monkeypatch, SummaryWriter)
    Recorder(tmp_path, place).close()
    assert SummaryWriter.last.purge_step == purged


def test_without_tensorboard_it_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    imported = []
    finder = types.SimpleNamespace(find_spec=lambda name, *rest: imported.append(name))
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    recorder = Recorder(tmp_path)
    recorder.record("train", 0, 1, {"loss": 1})
    recorder.close()
    assert "torch.utils.tensorboard" not in imported
    assert not list(tmp_path.glob("events*"))


def test_a_broken_tensorboard_does_not_stop_a_training(tmp_path, monkeypatch, caplog):
    install_tensorboard(monkeypatch, None)  # the import fails
    recorder = Recorder(tmp_path)
    recorder.record("train", 0, 1, {"loss": 1})
    recorder.close()
    assert "TensorBoard is installed and does not work" in caplog.text
    assert len(read_records(tmp_path / "metrics.jsonl")) == 1


############################################################
#  Curves
############################################################


def lines_of(axes):
    """The lines of a panel: label -> (x, y); those without a label by their number."""
    return {
        line.get_label() if line.get_label()[0] != "_" else i: (line.get_xdata().tolist(), line.get_ydata().tolist())
        for i, line in enumerate(axes.lines)
    }


def panels(figure):
    return {axes.get_title().split(" (")[0]: axes for axes in figure.axes}


def test_curves(uninterrupted):
    figure = draw_curves(read_records(uninterrupted / "metrics.jsonl"), title="nuclei")
    drawn = panels(figure)
    assert list(drawn) == ["total loss", "each loss", "learning rate", "average precision, in points"]
    epochs = [step / 4 for step in range(1, 13)]
    losses = [1 / (1 + step) for step in range(1, 13)]
    total = lines_of(drawn["total loss"])
    assert total["training"] == (epochs, losses)
    assert total["validation"] == ([1, 2, 3], [0.0, 0.1, 0.2])
    assert lines_of(drawn["each loss"]) == {
        "mask_loss": (epochs, [loss / 3 for loss in losses]),
        1: ([1, 2, 3], [math.pi] * 3),
    }
    assert lines_of(drawn["learning rate"])[0] == (epochs, [0.1] * 12)
    assert lines_of(drawn["average precision, in points"]) == {
        "masks, by mask score": ([2], [25]),
        "masks, by class score": ([2], [20]),
    }
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)


def test_an_average_precision_of_nothing_is_not_drawn():
    values = (0.1, -1.0, 0.3)
    records = [{"kind": "eval", "epoch": i + 1, "step": 0, "mask AP": value} for i, value in enumerate(values)]
    axes = panels(draw_curves(records))["average precision, in points"]
    assert lines_of(axes) == {"masks, by mask score": ([1, 3], [10, 30])}


def test_a_long_training_is_thinned_without_losing_its_peaks():
    values = np.ones(10_000)
    values[4321] = 50
    records = [{"kind": "train", "epoch": 0, "step": i + 1, "loss": value} for i, value in enumerate(values)]
    axes = panels(draw_curves(records))["total loss"]
    x, y = axes.lines[0].get_data()
    assert len(x) == 120
    assert 1 < max(y) < 2
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 50  # the shade


@pytest.mark.parametrize(
    ("values", "scale"), [([1, 2, 5], "linear"), ([1, 0.01], "log"), ([0, 0], "linear"), ([0, 1, 1e-9], "log")]
)
def test_scales(values, scale):
    records = [{"kind": "train", "epoch": 0, "step": i + 1, "loss": value} for i, value in enumerate(values)]
    figure = draw_curves(records)
    figure.canvas.draw()
    axes = panels(figure)["total loss"]
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] == pytest.approx(0 if scale == "linear" else 0.8 * max(0.0001, values[1] % 1))


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"kind": "train", "epoch": 0, "step": 1, "loss": None}],
        [{"kind": "val", "epoch": 1, "step": 0, "val_loss": 1, "val_mask_loss": 1}],
        [{"kind": "eval", "epoch": 1, "step": 0, "mask AP": -1}, {"kind": "other", "epoch": 0, "step": 0, "x": 1}],
    ],
)
def test_curves_of_next_to_nothing(records):
    draw_curves(records).canvas.draw()


def test_the_picture_is_drawn_without_pyplot(tmp_path, uninterrupted, monkeypatch):
    (tmp_path / "metrics.jsonl").write_bytes((uninterrupted / "metrics.jsonl").read_bytes())
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    curves.save_curves(tmp_path)
    image = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB"))
    assert image.shape == (850, 1300, 3)
    assert 0.5 < (image == 255).all(axis=2).mean() < 0.99


def test_a_picture_that_fails_does_not_stop_a_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(curves, "draw_curves", lambda *args, **named: 1 / 0)
    curves.save_curves(tmp_path)
    assert "ZeroDivisionError" in caplog.text
    assert not (tmp_path / "losses.png").exists()


############################################################
#  The line of progress
############################################################


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines that a terminal would show."""
        lines = []
        for written in self.getvalue().split("\n"):
            shown = ""
            for part in written.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


def run(line, clock, steps, seconds=2.0, data_seconds=0.5, images=4, **values):
    """Updates of that many seconds, one step each."""
    for epoch, step in steps:
        clock.seconds += seconds
        line.update(epoch, step, values or {"loss": 0.5, "mask_loss": 0.5}, 0.02, images, data_seconds, seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def test_the_line_says_how_far_and_how_fast(clock):
    stream = io.StringIO()
    line = ProgressLine(3, 100, stream=stream, clock=clock)
    line.update(1, 50, {"loss": 1.23456, "rpn_loss": 1.2, "mask_loss": 0.03456}, 0.02, 4, 0.5, 2.0)
    memory = runtime.peak_memory_mb() / 1000
    assert stream.getvalue() == (  # 150 steps of 2 s are left
        f"epoch 2/3 step  50/100  ETA 5:00  loss 1.235  2.0 images/s  data wait 25%  peak {memory:.1f} GB  lr 0.02  "
        "rpn 1.200  mask 0.035\n"
    )


def test_without_a_total_it_is_the_sum(clock):
    stream = io.StringIO()
    ProgressLine(1, 10, stream=stream, clock=clock).update(0, 1, {"a": 1, "b": 2, "gradient_norm": 9}, 0.1, 1, 0, 1)
    assert "loss 3.000" in stream.getvalue()
    assert "gradient" not in stream.getvalue()


def test_a_file_gets_a_line_each_half_minute_and_each_epoch(clock):
    stream = io.StringIO()
    line = ProgressLine(2, 40, stream=stream, clock=clock)
    run(line, clock, [(0, step) for step in range(1, 41)])
    run(line, clock, [(1, step) for step in range(1, 41)])
    line.close()
    at = [text.split("  ETA")[0] for text in stream.getvalue().splitlines()]
    # The first step; 30 s, which is 15 steps, after each line; the last of each epoch
    steps = [(1, 1), (1, 16), (1, 31), (1, 40), (2, 15), (2, 30), (2, 40)]
    assert at == [f"epoch {epoch}/2 step {step:2}/40" for epoch, step in steps]
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_ten_lines_a_second(clock, wide):
    stream = Terminal()
    line = ProgressLine(1, 1000, stream=stream, clock=clock)
    run(line, clock, [(0, step) for step in range(1, 1001)], seconds=0.003)
    assert 20 <= stream.getvalue().count("\r") <= 31  # in 3 s
    assert "\n" not in stream.getvalue()[:-1]
    assert [text.split("  ")[0] for text in stream.screen()] == ["epoch 1/1 step 1000/1000", ""]


@pytest.mark.parametrize("columns", [10, 40, 60, 80, 300])
def test_the_line_fits_the_terminal(clock, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    run(ProgressLine(1, 1000, stream=stream, clock=clock), clock, [(0, 1), (0, 2)])
    widths = [len(text) for text in stream.getvalue().split("\r")]
    assert 0 < max(widths) < columns
    shown = stream.screen()[0]
    assert shown.startswith("epoch 1/1"[:columns])
    assert ("ETA" in shown, "images/s" in shown, "mask 0.500" in shown) == (columns > 10, columns > 60, columns == 300)


def test_a_shorter_line_leaves_nothing_of_a_longer_one(clock, wide):
    stream = Terminal()
    line = ProgressLine(1, 10, stream=stream, clock=clock)
    run(line, clock, [(0, 1)], loss=0.5, mask_loss=1e-30)
    run(line, clock, [(0, 2)], loss=0.5)
    assert stream.screen()[0].endswith("lr 0.02")
    line.close()
    line.close()
    assert stream.getvalue().endswith("\n")
    assert not stream.getvalue().endswith("\n\n")


def eta(stream):
    """Seconds that the last line has left."""
    text = stream.getvalue().split("ETA ")[-1].split("  ")[0]
    parts = [float(part) for part in text.split(":")]
    return sum(part * 60**i for i, part in enumerate(reversed(parts)))


def test_the_time_left_forgets_the_first_step(clock, wide):
    """It warms up: its 100 s would be 100 steps."""
    stream = Terminal()
    line = ProgressLine(1, 102, stream=stream, clock=clock)
    run(line, clock, [(0, 1)], seconds=100)
    run(line, clock, [(0, 2)], seconds=1)
    assert eta(stream) == 100


def test_the_time_left_follows_a_change_of_speed_smoothly(clock, wide):
    stream = Terminal()
    line = ProgressLine(10, 1000, stream=stream, clock=clock)
    run(line, clock, [(0, step) for step in range(1, 500)], seconds=0.5)
    before = eta(stream)
    run(line, clock, [(0, 500)], seconds=5)
    assert before < eta(stream) < 1.3 * before
    run(line, clock, [(0, step) for step in range(501, 900)], seconds=5)
    assert eta(stream) == pytest.approx(5 * 9101, rel=0.02)


def test_the_time_left_counts_what_is_between_updates(clock, wide):
    """After epoch 1 of 3 a validation of 50 s: two more are to come."""
    stream = Terminal()
    line = ProgressLine(3, 100, stream=stream, clock=clock)
    run(line, clock, [(0, step) for step in range(1, 101)], seconds=1)
    assert eta(stream) == 200
    clock.seconds += 50
    run(line, clock, [(1, 1)], seconds=1)
    assert eta(stream) == pytest.approx(199 * 1.5, abs=1)


def test_the_time_left_with_a_clock_that_stands_still(clock, wide):
    stream = Terminal()
    line = ProgressLine(1, 10, stream=stream, clock=clock)
    for step in (1, 2, 3):
        line._written_at = -math.inf  # the clock would say that it is too early for another line
        line.update(0, step, {"loss": 1}, 0.1, 1, 0.0, 5.0)
    assert eta(stream) == 7 * 5


def test_accumulated_and_resumed_steps(clock, wide):
    """Updates of 4 steps each, from the middle of the training."""
    stream = Terminal()
    line = ProgressLine(4, 100, stream=stream, clock=clock)
    run(line, clock, [(2, step) for step in range(4, 101, 4)], seconds=8, images=16)
    assert eta(stream) == 100 * 2
    assert "2.0 images/s" in stream.getvalue()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 0.0])
def test_times_that_cannot_be(clock, wide, seconds):
    stream = Terminal()
    line = ProgressLine(1, 5, stream=stream, clock=clock)
    line.update(0, 1, {"loss": math.nan, "mask_loss": -math.inf}, math.nan, 4, seconds, seconds)
    assert "ETA ?  loss nan  ? images/s  data wait ?" in stream.screen()[0]
    clock.seconds -= 100  # whoever sets a clock back
    run(line, clock, [(0, 2)], data_seconds=seconds)
    line.update(0, 9, {"loss": 0}, 0, 4, 0.0, 1.0)  # beyond the end
    assert "ETA 0:00" in stream.screen()[0]
    assert "-" not in stream.screen()[0]


def test_a_closed_terminal_does_not_stop_a_training(clock):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        line = ProgressLine(1, 10, stream=stream, clock=clock)
        run(line, clock, [(0, 1), (0, 10)])
        line.close()
        with open(os.devnull, "w") as nowhere:  # for what is still in the stream's buffer
            os.dup2(nowhere.fileno(), writer)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (93784, "1d 02:03:04")],
)
def test_durations(seconds, text):
    assert logs._duration(seconds) == text


############################################################
#  The watchdog
############################################################


@pytest.fixture
def dog(clock):
    """A watchdog whose thread does not wake up: the test asks."""
    dog = Watchdog(100, stream=io.StringIO(), clock=clock)
    yield dog
    dog.close()


@pytest.mark.parametrize(
    ("activity", "advice"),
    [
        ("waiting for data", "WORKERS = 0"),
        ("validation, waiting for data", "WORKERS = 0"),
        ("forward", "COMPILE"),
        ("backward", "IMAGES_PER_GPU"),
        ("backward, other processes", "its own messages"),
        ("update of the weights", "CUDA_LAUNCH_BLOCKING"),
        ("optimizer", "CUDA_LAUNCH_BLOCKING"),
        ("writing a checkpoint", "full or slow disk"),
        ("validation", "VALIDATION_STEPS"),
        ("evaluation", "EVAL_EVERY"),
        ("callbacks", "custom_callbacks"),
        ("tea", "no progress"),
    ],
)
def test_a_stall_is_named_with_its_causes(dog, clock, activity, advice):
    assert dog.activity is None
    dog.activity = activity
    assert dog.activity == activity
    clock.seconds += 1000
    message = dog.check()
    assert message.startswith(f"no progress for 1000 s: {activity}, in ")
    assert advice in message
    assert "test_training_logs.py" in message  # where this thread is


def test_a_stall_is_repeated_after_twice_the_time(dog, clock):
    assert dog.check() is None  # nothing has begun
    dog.activity = "forward"
    said = []
    for _ in range(100):
        clock.seconds += 10
        message = dog.check()
        said += [message.split(":")[0]] if message else []
    assert said == [f"no progress for {seconds} s" for seconds in (100, 200, 400, 800)]


def test_progress_calms_the_watchdog(dog, clock):
    for _ in range(5):
        for activity in ("waiting for data", "forward"):
            dog.activity = activity
            clock.seconds += 99
            assert dog.check() is None
    dog.activity = "forward"  # the same again is progress, too
    assert dog.check() is None
    clock.seconds += 101
    assert dog.check() is not None
    dog.activity = "forward"
    clock.seconds += 101
    assert dog.check() is not None  # a new stall, not the repetition of the old one


def test_an_evaluation_may_take_longer(dog, clock):
    dog.activity = "evaluation"
    clock.seconds += 999
    assert dog.check() is None
    clock.seconds += 1
    assert dog.check() is not None


def test_the_watchdog_barks_by_itself():
    class Stream(io.StringIO):
        heard = threading.Event()

        def flush(self):
            self.heard.set()

    stream = Stream()
    dog = Watchdog(0.01, stream=stream)
    dog.activity = "waiting for data"
    assert stream.heard.wait(30)
    dog.close()
    dog.close()
    assert not dog._thread.is_alive()
    assert dog._thread.daemon  # a program that fails to close it ends all the same
    assert "waiting for data" in stream.getvalue()
    assert "wait" in stream.getvalue().split(", in ")[1].split(".")[0]  # the innermost call of this thread
    said = stream.getvalue()
    dog.activity = "forward"
    assert stream.getvalue() == said


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_the_watchdogs_patience_is_positive(seconds):
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Watchdog(seconds)

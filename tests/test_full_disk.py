"""A full disk names the file, whoever writes it; the old file stays, and nothing half-written is left."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import files_of_at_most, random_image, tiny_model
from PIL import Image

import demo
import runtime
import visualize
from evaluation.detect import write_submission
from training.curves import save_curves
from training.logs import Recorder
from weights.checkpoint import make_checkpoint, write_checkpoint

IMAGE = random_image(60, 80)


def figure(path: Path):
    visualize.display_images([IMAGE], save_path=path)


def pillow(path: Path):
    runtime.write_atomically(path, lambda file: Image.fromarray(IMAGE).save(file, path.suffix[1:]))


def checkpoint(path: Path):
    model = tiny_model()
    write_checkpoint(path, make_checkpoint(model.config, "tiny", model.state_dict()))


def metrics(path: Path):
    recorder = Recorder(path.parent)
    try:
        for step in range(200):
            recorder.record("train", 0, step, {"loss": 1.0, "learning_rate": 0.1})
    finally:
        recorder.close()


# What is written, and the beginning of the name that the message must have.
WRITERS = {
    **{f"figure.{kind}": figure for kind in ("png", "jpg", "pdf", "svg")},
    **{f"image.{kind}": pillow for kind in ("png", "jpeg", "tiff", "webp", "bmp")},
    "picture.jpg": lambda path: demo.save_picture(IMAGE, path),
    "table.html": lambda path: visualize.display_table([["cell"] * 99] * 99, path),
    "table.txt": lambda path: visualize.display_table([["cell"] * 99] * 99, path),
    "model.pth": checkpoint,
    "metrics.jsonl": metrics,
    "bbox.json": lambda path: write_submission(path.parent, [{"image_id": 1}] * 99, [{"image_id": 1}]),
    "state.pt": lambda path: runtime.write_atomically(path, lambda file: torch.save(torch.zeros(999), file)),
    "array.npy": lambda path: runtime.write_atomically(path, lambda file: np.save(file, np.zeros(999))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file(name, tmp_path, capsys):
    path, write = tmp_path / "folder" / name, WRITERS[name]
    path.parent.mkdir()
    write(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert name in before, "it works on another disk"
    with files_of_at_most(100), pytest.raises((OSError, RuntimeError)) as error:
        write(path)
    assert isinstance(error.value, OSError)
    assert str(path.parent) in str(error.value)
    assert "File too large" in str(error.value)
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert after.keys() == before.keys(), "and nothing else"
    assert after[name].startswith(before[name][:100])


def test_curves_that_cannot_be_written_are_one_line(tmp_path, caplog):
    """They are no reason to end a training."""
    recorder = Recorder(tmp_path)
    recorder.record("train", 0, 1, {"loss": 1.0})
    recorder.close()
    with files_of_at_most(100):
        save_curves(tmp_path)
    (record,) = caplog.records
    assert "losses.png could not be written: " in record.getMessage()
    assert record.exc_info is None


def test_tensorboard_that_cannot_be_written_does_not_end_a_training(tmp_path, caplog):
    class Full:
        def add_scalar(self, tag, value, step):
            raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path)
    recorder._tensorboard = Full()
    for step in (1, 2):
        recorder.record("train", 0, step, {"loss": 1.0})
    recorder.close()
    assert ["TensorBoard's file in" in record.getMessage() for record in caplog.records] == [True]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2

"""Damaged states of trainings: the training continues, or a sentence names the file."""

import pytest
import torch
from fuzzing import damaged_json, fuzz
from helpers import tiny_model
from toy_training import Toy, ToyLoader, toy_config, train_toy

from training import loop

NAME = "damaged.pth"


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    monkeypatch.setattr(loop, "save_curves", lambda log_dir: None)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_states_of_a_training(optimizer, tmp_path):
    """One damaged value or several, then two more steps."""
    config = toy_config(OPTIMIZER=optimizer)
    state = train_toy(tmp_path / "good", config=config, epochs=1).state
    state = {**state, "best": {"metric": "val_loss", "value": -1.0, "epoch": 1}}

    def case(rng):
        start = {**damaged_json(state, rng), "file": NAME}
        train_toy(tmp_path / "damaged", Toy(), ToyLoader(steps=2), config, epochs=2, steps_at=(), start=start)

    fuzz(case, 30, NAME)


def test_files_of_a_training(tmp_path):
    """The whole file, as --model last reads it."""
    model = tiny_model()
    state = train_toy(tmp_path / "toy", epochs=1).state
    contents = {**model.to_checkpoint(), "training": state}
    path = tmp_path / "logs" / "tiny20260101T0000" / NAME
    path.parent.mkdir(parents=True)
    model.model_dir = tmp_path / "logs"

    def case(rng):
        torch.save({**contents, "training": damaged_json(state, rng)}, path)
        model.load_weights(path)
        assert model.epoch >= 0

    fuzz(case, 12, NAME)

"""A training step hardly waits for a GPU: counted on a CPU, with the code that a GPU runs.

tests/waiting.py counts in detection, where tensors can be seen that go from one device to the other. Autograd does not
take such tensors, so tests/waits.py looks at the operators.
"""

import pytest
import torch
from helpers import SquaresDataset, TrainConfig, settings_of, tiny_model
from toy_training import ToyLoader
from waits import Waits

import model as modellib
import runtime
from data.loader import make_loader
from data.samples import TrainingData
from nms import batched_nms
from training.loop import Hooks, Trainer
from training.optimizer import Phase

# These read tensors that are not on the device.
ON_THE_HOST = {
    "Tensor.tolist in mold_batch",
    *("aten.lift_fresh.default in random_states", "Tensor.tolist in set_random_states"),
    "Tensor.numpy in set_random_states",
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(runtime, "avoids_waits", lambda device: True)


def trainer_of(folder, **settings) -> tuple[Trainer, list]:
    """The training loop before its first step, and batches of two images, of which some have no object."""
    model = tiny_model(0, **{**settings_of(TrainConfig), "VALIDATION_STEPS": 3, **settings}).train()
    model.set_trainable("all")
    data = TrainingData(SquaresDataset().load_squares(6, empty=(1,)), model.config, augment=False)
    batches = list(make_loader(data, shuffle=False))
    hooks = Hooks(lambda batch: modellib.mold_batch(batch, torch.device("cpu"), model.config), dict)
    phase = Phase("all", 1)
    trainer = Trainer(model, ToyLoader(steps=len(batches)), None, model.config, phase, 0.01, hooks, folder)
    trainer.watchdog = Silent()
    if model.config.EMA_DECAY:
        trainer.averaged = modellib.loop.AveragedWeights(model, model.config.EMA_DECAY)
    return trainer, batches


class Silent:
    activity = ""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"DIALECT": "matterport", "IMAGE_MAX_DIM": 64},
        {"DIALECT": "benchmark", "MASKIOU_REFINED_ROIS": True, "EMA_DECAY": 0.9},
        {"DIALECT": "torchvision", "OPTIMIZER": "adamw", "USE_MINI_MASK": True, "GRADIENT_CLIP_NORM": 1.0},
        {"TRAIN_DTYPE": "bfloat16", "ACTIVATION_CHECKPOINTING": True, "USE_MASKIOU_HEAD": False},
    ],
    ids=lambda settings: settings.get("DIALECT", "mmdet"),
)
def test_a_training_step_waits_five_times(settings, as_on_a_gpu, tmp_path):
    """From the batch to the changed weights: forward, backward, clipping, the loop's flags, optimiser, average.

    The first step copies constants to the device, and is not counted. What Waits cannot see, its docstring says; and
    the loop's own work between two steps, which is the loader's, a line of progress and logs, touches no tensor of a
    GPU.
    """
    trainer, batches = trainer_of(tmp_path, **settings)
    trainer.update(iter(batches[:1]))
    with Waits() as waits:
        trainer.update(iter(batches[1:2]))
    places = [wait.split(", ")[0] for wait in waits.found]
    places = [place for place in places if place not in ON_THE_HOST]
    assert places == [
        "Tensor.tolist in sample_anchors",  # anchors of objects and background, of each level
        "aten.index.Tensor in _filled",  # proposals
        *["Tensor.tolist in sample_rois"] * 2,  # proposals of each image; RoIs of objects and background
        "Tensor.tolist in Trainer.synchronize",  # losses, norm, flags
    ], "\n".join(waits.found)


def test_waits_are_seen():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    cases = {
        "nonzero": lambda: mask.nonzero(),
        "index.Tensor": lambda: x[mask],
        "lift_fresh": lambda: x.new_tensor([1.0, 2.0]),
        "_local_scalar_dense": lambda: float(x.sum()),
        "tolist": lambda: x.tolist(),
        "bincount": lambda: x.long().bincount(),
        "masked_select": lambda: x.masked_select(mask),
        "unique": lambda: x.unique(),
        "cpu": lambda: x.cpu(),
        "numpy": lambda: x.numpy(),
        "index_put_": lambda: x.clone().__setitem__(mask, x[:3]),
        "repeat_interleave": lambda: x.repeat_interleave(mask.long()),
        "batched_nms": lambda: batched_nms(torch.rand(2, 4), x[:2], x[:2].long(), 0.5),
    }
    for name, call in cases.items():
        with Waits() as waits:
            call()
        assert len(waits.found) == 1, (name, waits.found)
        assert name in waits.found[0]


def test_what_does_not_wait_is_not_found():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    rows = torch.tensor([0, 2])
    with Waits() as waits:
        torch.where(mask, x, 0.0), x.masked_fill(mask, 1), x[rows], x.index_fill(0, rows, 2), x.sort(), x.topk(2)
        torch.nonzero_static(mask, size=3), torch.full((2,), 3.0), x.cumsum(0), torch.arange(3), x[1:], x[None, :, None]
    assert waits.found == []


def test_a_wait_names_its_place():
    mask = torch.tensor([True, False])
    with Waits() as waits:
        modellib._indices(mask)
    (wait,) = waits.found
    assert wait.rpartition(":")[0] == "aten.nonzero.default in _indices, model.py"

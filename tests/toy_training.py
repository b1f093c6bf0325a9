"""A module of a few weights, its data, and trainings of it: what the tests of the loop run, here or in other processes.

python tests/toy_training.py ROLE LOG_DIR     (also under torchrun; see main)
"""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import runtime
from config import Config
from training import loop
from training.loop import Hooks, train
from training.optimizer import Phase


class ToyBatch(NamedTuple):
    points: Tensor  # [B, 3]
    image_ids: list[int]


class ToyLoader:
    """Images of three numbers that follow from epoch and number, as the images of training.Loader do."""

    def __init__(self, steps=3, size=2, rank=0, world=1, at_batch=None):
        self.steps, self.size, self.rank, self.world = steps, size, rank, world
        self.at_batch = at_batch or (lambda epoch, step: None)  # called before each batch
        self.set_epoch(0)

    def set_epoch(self, epoch, start_step=0):
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self):
        torch.rand(3)  # a loader may draw as it likes
        for step in range(self.start_step, self.steps):
            self.at_batch(self.epoch, step)
            first = (step * self.world + self.rank) * self.size
            ids = list(range(first, first + self.size))
            rows = [np.random.default_rng((self.epoch, image)).normal(size=3) for image in ids]
            yield ToyBatch(torch.tensor(np.array(rows), dtype=torch.float32), ids)


class Toy(nn.Module):
    """Batch norm, dropout (which draws numbers), and a loss divided by a count over all processes."""

    def __init__(self, norm=True, dropout=0.3):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4, 1)

    def forward(self, points):
        x = self.last(self.dropout(self.norm(self.linear(points)).relu()))[:, 0]  # [B]
        targets = points.sum(dim=1)
        picked = targets > -0.5  # their count differs between batches, and between processes
        count = runtime.world_mean(picked.sum())
        distance = ((x - targets).square() * picked).sum() / count.clamp(min=0.5)
        return {"distance": distance, "size": x.abs().mean()}


def toy_config(**settings):
    defaults = {
        "NAME": "Toy",
        "IMAGES_PER_GPU": 2,
        "CHECKPOINT_MINUTES": 0,
        "WARMUP_STEPS": 4,
        "WARMUP_FACTOR": 0.1,
        "ACCUMULATE_STEPS": 2,
        "EMA_DECAY": 0.9,
    }
    return Config(**{**defaults, **settings})


def train_toy(log_dir, module=None, loader=None, config=None, **arguments):
    """Three epochs of three steps, if nothing else is said."""
    module = module or Toy()
    options = {"layers": "all", "epochs": 3, "steps_at": (2,), "callbacks": (), "evaluate": None, **arguments}
    return train(
        module,
        loader or ToyLoader(),
        options.pop("val_data", None),
        config or toy_config(),
        phase=Phase(options.pop("layers"), options.pop("epochs"), options.pop("steps_at")),
        learning_rate=options.pop("learning_rate", 0.05),
        hooks=Hooks(
            prepare=lambda batch: (batch.points,),
            describe=lambda: {"format": "toy", "model": weights_of(module)},
            callbacks=options.pop("callbacks"),
            evaluate=options.pop("evaluate"),
        ),
        log_dir=log_dir,
        **options,
    )


def continue_toy(path, log_dir=None, **arguments):
    """Continue from a checkpoint with a module that knows nothing of what was before."""
    checkpoint = torch.load(path, weights_only=True)
    module = arguments.pop("module", None) or Toy()
    module.load_state_dict(checkpoint["model"])
    return train_toy(log_dir or Path(path).parent, module, start=checkpoint["training"], **arguments)


def weights_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def main(role, log_dir):
    """killed: dies in the second epoch, by SIGKILL. dead: one of 2 processes has an error, in the first.

    pair: 2 processes of 1 image each; then the same again, where one gets a SIGTERM in the second epoch.
    """
    torch.set_num_threads(1)
    loop.save_curves = lambda log_dir: None
    runtime.setup_distributed("cpu", timeout_minutes=5)
    rank, world = runtime.rank(), runtime.world_size()

    part = role

    def at_batch(epoch, step):
        if role == "killed" and (epoch, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        if part == "stopped" and (epoch, step, rank) == (1, 0, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        if role == "dead" and (epoch, step, rank) == (0, 2, 1):
            raise RuntimeError("what went wrong")

    if role == "killed":
        train_toy(log_dir, loader=ToyLoader(at_batch=at_batch), config=toy_config(CHECKPOINT_MINUTES=1e-9))
        return
    results = {}
    for part in (role, "stopped") if role == "pair" else (role,):
        loader = ToyLoader(size=2 // world, rank=rank, world=world, at_batch=at_batch)
        validation = ToyLoader(steps=2, size=2 // world, rank=rank, world=world)
        module, start = Toy(norm=False, dropout=0), None
        for epochs in (2, 3):
            result = train_toy(*(Path(log_dir) / part, module, loader), val_data=validation, epochs=epochs, start=start)
            start = result.state
            if result.interrupted:
                break
        results[part] = {"logs": result.logs, "interrupted": result.interrupted}
    if rank == 0:
        torch.save(results, Path(log_dir) / "result.pt")
    runtime.close_distributed()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Schedules of the learning rate, the optimiser with its groups of parameters, and the average of the weights."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import runtime

############################################################
#  Schedules
############################################################


class Phase(NamedTuple):
    """A part of a training in which the same layers learn."""

    layers: str  # what learns, as MaskRCNN.set_trainable takes it. With other layers, the optimiser begins anew
    epochs: int  # completed at the phase's end, counted from the start of the whole training
    steps_at: tuple[int, ...] = ()  # epochs after which the learning rate falls to a tenth
    factor: float = 1.0  # on the training's learning rate


# The values of Config.SCHEDULE. 1x and 2x are Detectron's, as in mmdetection; 0.25x is 1x in a quarter of the time;
# "matterport" is that of its coco.py.
SCHEDULES: dict[str, tuple[Phase, ...]] = {
    "0.25x": (Phase("all", 3, (2,)),),
    "1x": (Phase("all", 12, (8, 11)),),
    "2x": (Phase("all", 24, (16, 22)),),
    "matterport": (Phase("heads", 40), Phase("4+", 120), Phase("all", 160, factor=0.1)),
}
BASE_BATCH = 16  # images in a batch for which BASE_LEARNING_RATES are right, with 0.25x, 1x and 2x
BASE_LEARNING_RATES = {"sgd": 0.02, "adamw": 1e-4}


def schedule_learning_rate(config) -> tuple[float, str]:
    """The learning rate of config.SCHEDULE for the batch size of this training, and a line that explains it."""
    if config.SCHEDULE not in ("0.25x", "1x", "2x"):
        return config.LEARNING_RATE, f"learning rate {config.LEARNING_RATE:g}, as LEARNING_RATE says"
    base = BASE_LEARNING_RATES[config.OPTIMIZER]
    factors = config.IMAGES_PER_GPU, runtime.world_size(), config.ACCUMULATE_STEPS
    rate = base * math.prod(factors) / BASE_BATCH
    return rate, (
        f"learning rate {rate:g}: schedule {config.SCHEDULE} has {base:g} for {BASE_BATCH} images, and a step has "
        f"{math.prod(factors)} (IMAGES_PER_GPU {factors[0]} x {factors[1]} processes x ACCUMULATE_STEPS {factors[2]})"
    )


def learning_rate_at(
    update: int,
    rate: float,
    drops: Sequence[int] = (),
    warmup_steps: int = 0,
    warmup_factor: float = 1.0,
    cosine_updates: int | None = None,
) -> float:
    """The learning rate of an update of the weights.

    update: index of the update, 0 for the first. rate: the learning rate after the warm-up.
    drops: at each of these updates, the learning rate falls to a tenth.
    warmup_steps: number of updates in which it rises linearly, from warmup_factor * rate to rate.
    cosine_updates: replaces drops: number of updates in which it falls along half a cosine, to 0 after the last.

    Source: mmdetection's LinearLR and MultiStepLR; maskrcnn-benchmark's with warmup_steps 501, warmup_factor 1 / 3.
    """
    if update < warmup_steps - 1:
        rate *= warmup_factor + (1 - warmup_factor) * update / (warmup_steps - 1)
    if cosine_updates is not None:
        return rate * (1 + math.cos(math.pi * min(update / cosine_updates, 1))) / 2
    return rate * 0.1 ** sum(update >= drop for drop in drops)


############################################################
#  Optimiser
############################################################


def make_optimizer(module: nn.Module, config) -> torch.optim.Optimizer:
    """SGD or AdamW for the parameters that learn, in groups that share their L2 penalty and learning rate.

    Biases are the parameters named "bias"; norms are modules with "norm" in the name of their class, such as GroupNorm.
    Each group's "lr_factor" multiplies the learning rate (see set_learning_rate).

    Raises: ValueError if no parameter requires a gradient.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parent in module.modules():
        for name, parameter in parent.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups.setdefault(_group_of(parent, name, config), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model requires a gradient; do the layers to train name any?")
    settings = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), parameters in groups.items()
    ]
    if config.OPTIMIZER == "adamw":
        return torch.optim.AdamW(settings, lr=config.LEARNING_RATE, fused=True)  # much faster on a CPU
    return torch.optim.SGD(settings, lr=config.LEARNING_RATE, momentum=config.LEARNING_MOMENTUM)


def _group_of(parent: nn.Module, name: str, config) -> tuple[float, float]:
    """(L2 penalty, factor on the learning rate) of a parameter."""
    is_bias, is_norm = name == "bias", "norm" in type(parent).__name__.lower()
    decays = (config.WEIGHT_DECAY_BIASES or not is_bias) and (config.WEIGHT_DECAY_NORMS or not is_norm)
    return config.WEIGHT_DECAY if decays else 0.0, config.BIAS_LEARNING_RATE_FACTOR if is_bias else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def clip_gradients(parameters: Sequence[Tensor], limit: float | None) -> Tensor:
    """Scale the gradients down to a norm of at most limit; None or 0 leaves them. Returns: their norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


############################################################
#  Average of the weights
############################################################


class AveragedWeights:
    """An exponential moving average of a module's parameters. Buffers are not averaged.

    decay: the share of the old average in each new one. At update n it is at most (1 + n) / (10 + n), so that the
        weights of the start are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.parameters = list(module.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)  # on a GPU a few launches for all of them
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their averages."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module has the averages; afterwards, its own parameters again."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

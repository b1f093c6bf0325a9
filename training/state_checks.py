"""Checks of the state of a training that a checkpoint holds, before a training continues from it.

A file may be damaged or edited. What is wrong is said in a sentence that names the file, and nothing has changed then.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import runtime
import utils
from weights.checkpoint import match_to_network

_LARGEST_COUNT = 1 << 40  # of epochs, steps and updates


class _Wrong(Exception):
    """What is wrong with a state: an entry, and what it should be."""


def check_state(state: Any, name: str | Path) -> None:
    """Raises ValueError unless a state has the entries that training_state writes, of the right types and ranges.

    name: of the file.
    """
    try:
        _check_counts(state)
        _check_best(state.get("best"))
        _check_random(state.get("random", []))
        for key in ("optimizer", "sums", "weights"):
            _expect(isinstance(state.get(key, {}), Mapping), key, "a dict")
        sums = state.get("sums", {})
        _expect(all(isinstance(key, str) and _is_finite(value) for key, value in sums.items()), "sums", "numbers")
        names = state.get("learning", [])
        is_list = isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)
        _expect(is_list, "learning", "a list of names")
    except _Wrong as error:
        raise _error(name, error) from None


def _error(name: str | Path, problem: Any) -> ValueError:
    return ValueError(
        f"{name}: the state of the training in it is damaged: {problem}. The training cannot continue from this file; "
        "take an earlier checkpoint, or begin a new training from its weights (--model FILE)"
    )


def _expect(is_right: bool, entry: str, expected: str) -> None:
    if not is_right:
        raise _Wrong(f"{entry} should be {expected}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1 << 1000 and math.isfinite(value)


def _check_counts(state: Any) -> None:
    _expect(isinstance(state, Mapping), "it", "a dict")
    together = ("steps", "learning", "optimizer", "random")  # without any of them, only the position is known
    for key in together if any(key in state for key in together) else ():
        _expect(key in state, key, "there")
    weights = state.get("weights")
    is_whole = "averaged_updates" not in state or (isinstance(weights, Mapping) and len(weights) > 0)
    _expect(is_whole, "weights", "there, beside the averaged ones")
    for key in ("epoch", "step"):
        _expect(_is_count(state.get(key)), key, "a whole number from 0 up")
    for key in ("steps", "epochs", "begin", "averaged_updates"):
        _expect(_is_count(state.get(key, 0)), key, "a whole number from 0 up")
    steps = state.get("steps", 0)
    _expect(state["step"] <= steps, "step", f"at most steps, {steps}")
    _expect(state.get("begin", 0) <= state["epoch"], "begin", f"at most epoch, {state['epoch']}")


def _check_best(best: Any) -> None:
    if best is None:
        return
    is_best = isinstance(best, Mapping) and isinstance(best.get("metric"), str) and _is_finite(best.get("value"))
    _expect(is_best and _is_count(best.get("epoch")), "best", "a metric, its value and an epoch")


def _check_random(states: Any) -> None:
    """The random states of each process. They are tried: this process has its own again afterwards."""
    _expect(isinstance(states, list | tuple), "random", "a list")
    for state in states:
        try:
            position = state["numpy"][2]
            _expect(type(position) is int and 0 <= position <= 624, "random", "the states of random generators")
            numbers = [state["python"][1], state["numpy"][1]]
            is_whole = all(isinstance(each, Tensor) and each.dtype == torch.int64 for each in numbers)
            _expect(
                is_whole and [each.shape for each in numbers] == [(625,), (624,)],
                "random",
                "the states of random generators",
            )
            is_uint32 = all(bool(((each >= 0) & (each < 1 << 32)).all()) for each in numbers)
            _expect(is_uint32 and len(state["numpy"]) == 5, "random", "the states of random generators")
            _expect(_is_finite(state["numpy"][4]), "random", "the states of random generators")
            with runtime.random_states_kept():
                runtime.set_random_states(state)
                np.random.random()  # noqa: NPY002
        except _Wrong:
            raise
        except Exception:
            raise _Wrong("random should be the states of random generators") from None


def check_weights(weights: Mapping[str, Any], module: nn.Module, name: str | Path) -> None:
    """Raises ValueError unless the weights beside the averaged ones are those of the module, and finite."""
    target = module.state_dict()
    wrong = [each for each, value in weights.items() if not (isinstance(each, str) and isinstance(value, Tensor))]
    wrong += [
        each
        for each, value in weights.items()
        if each not in wrong and each in target and value.dtype != target[each].dtype
    ]
    wrong += [each for each, value in weights.items() if each not in wrong and not torch.isfinite(value).all()]
    if wrong:
        shown = utils.printable(wrong[0], 100) if isinstance(wrong[0], str) else "a name"
        raise _error(name, f"weights has {shown}, which is no tensor of finite numbers of this model")
    shapes = {each: tensor.shape for each, tensor in target.items()}
    match_to_network(weights, shapes, f"{name}: the weights of its training are of another model")


def check_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, name: str | Path) -> None:
    """Raises ValueError unless an optimiser's saved state fits the optimiser: groups, shapes, finite numbers."""
    try:
        groups, states = saved.get("param_groups"), saved.get("state")
        own = optimizer.state_dict()["param_groups"]
        is_alike = isinstance(groups, list) and len(groups) == len(own) and isinstance(states, Mapping)
        _expect(is_alike, "optimizer", f"a dict with state and {len(own)} param_groups")
        for group, own_group in zip(groups, own, strict=True):
            _check_group(group, own_group)
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        for number, state in states.items():
            _expect(type(number) is int and 0 <= number < len(parameters), "optimizer.state", "of this model's layers")
            _check_parameter_state(state, parameters[number])
    except _Wrong as error:
        raise _error(name, error) from None


def _check_group(group: Any, own: Mapping[str, Any]) -> None:
    is_alike = isinstance(group, Mapping) and own.keys() <= group.keys() and group["params"] == own["params"]
    _expect(is_alike, "optimizer.param_groups", "as this optimiser has them")
    for key, value in own.items():
        if key == "params":
            continue
        numbers = group[key] if isinstance(group[key], list | tuple) else [group[key]]
        if isinstance(value, list | tuple):
            is_right = isinstance(group[key], list | tuple) and len(numbers) == len(value)
            is_right = is_right and all(_is_finite(number) and number >= 0 for number in numbers)
        elif type(value) in (int, float):
            is_right = _is_finite(group[key]) and group[key] >= 0
        else:
            is_right = group[key] is None or isinstance(group[key], bool)
        _expect(is_right, f"optimizer.param_groups {key}", f"a value such as {value}")


def _check_parameter_state(state: Any, parameter: Tensor) -> None:
    """SGD keeps a momentum_buffer; AdamW the number of the step, and averages of the gradient and its square."""
    _expect(isinstance(state, Mapping), "optimizer.state", "dicts")
    if not state:
        return
    buffer = state.get("momentum_buffer")
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size([])}
    if state.keys() == {"momentum_buffer"}:
        shapes = {} if buffer is None else {"momentum_buffer": parameter.shape}
    for key, shape in shapes.items():
        value = state.get(key)
        is_right = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
        is_right = is_right and bool(torch.isfinite(value).all())
        is_right = is_right and (key not in ("step", "exp_avg_sq") or float(value.min()) >= 0)
        _expect(is_right, f"optimizer.state {key}", f"finite numbers of shape {list(shape)}")

"""States of trainings are checked before a training continues from them."""

import copy

import pytest
import torch
from helpers import tiny_model
from toy_training import Toy, toy_config, train_toy

from training import loop
from training.optimizer import make_optimizer
from training.state_checks import check_optimizer, check_state, check_weights


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """The state after an epoch, by optimiser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_curves", lambda log_dir: None)
        folder = tmp_path_factory.mktemp("toy")
        return {
            name: train_toy(folder / name, config=toy_config(OPTIMIZER=name), epochs=1).state
            for name in ("sgd", "adamw")
        }


def changed(state, *keys, value=None):
    """A copy with another value at a place; without a value, the place is missing."""
    state = copy.deepcopy(state)
    place = state
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return state


WRONG = [
    (("epoch",), -1, "epoch should be a whole number from 0 up"),
    (("epoch",), None, "epoch should be a whole number"),
    (("epoch",), True, "epoch should be a whole number"),
    (("step",), 99, "step should be at most steps, 3"),
    (("begin",), 99, "begin should be at most epoch, 1"),
    (("averaged_updates",), "3", "averaged_updates should be a whole number"),
    (("weights",), None, "weights should be there, beside the averaged ones"),
    (("weights",), torch.zeros(3), "weights should be there"),
    (("optimizer",), None, "optimizer should be there"),
    (("learning",), [1], "learning should be a list of names"),
    (("sums",), {"loss": float("nan")}, "sums should be numbers"),
    (("sums",), {"loss": 10**400}, "sums should be numbers"),
    (("best",), {"metric": "mask AP"}, "best should be a metric, its value and an epoch"),
    (("random",), 5, "random should be a list"),
    (("random", 0, "torch"), torch.zeros(3), "random should be the states of random generators"),
    (("random", 0, "python"), None, "random should be the states"),
    (
        ("random", 0, "numpy"),
        ("MT19937", torch.zeros(624, dtype=torch.int64), 10**6, 0, 0.0),
        "random should be the st",
    ),
    (("random", 0, "numpy"), ("MT19937", torch.zeros(5, dtype=torch.int64), 0, 0, 0.0), "random should be the states"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_entries_of_a_state(keys, value, message, states):
    check_state(states["sgd"], "a.pth")
    random_numbers = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"a\.pth: the state of the training in it is damaged: {message}"):
        check_state(changed(states["sgd"], *keys, value=value), "a.pth")
    assert torch.equal(torch.get_rng_state(), random_numbers), "the states were tried, and taken back"


def test_weights_beside_the_averaged_ones(states):
    weights, module = states["sgd"]["weights"], Toy()
    check_weights(weights, module, "a.pth")
    first = "linear.weight"
    for changes, message in (
        ({first: weights[first] * float("inf")}, "linear.weight, which is no tensor of finite numbers"),
        ({first: weights[first].double()}, "linear.weight, which is no tensor"),
        ({first: [1]}, "linear.weight, which is no tensor"),
        ({first: torch.zeros(2)}, r"of another model:\n  linear.weight is \[2\], the model's \[4, 3\]"),
        ({"extra": torch.zeros(2)}, r"of another model:\n  not of this model: extra"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            check_weights({**weights, **changes}, module, "a.pth")
        assert str(error.value).startswith("a.pth: ")


@pytest.mark.parametrize(
    ("optimizer", "keys", "value", "message"),
    [
        ("sgd", ("param_groups", 0, "momentum"), float("nan"), "param_groups momentum should be a value such as 0.9"),
        ("sgd", ("param_groups", 0, "weight_decay"), -1.0, "param_groups weight_decay should be"),
        ("sgd", ("param_groups", 0, "maximize"), 7, "param_groups maximize should be"),
        ("sgd", ("param_groups", 0, "lr_factor"), None, "param_groups should be as this optimiser has them"),
        ("sgd", ("param_groups",), [], "a dict with state and 1 param_groups"),
        (
            "sgd",
            ("state", 0, "momentum_buffer"),
            torch.zeros(2),
            r"momentum_buffer should be finite numbers of shape \[",
        ),
        ("sgd", ("state", 99), {"momentum_buffer": torch.zeros(2)}, "of this model's layers"),
        ("adamw", ("state", 0, "step"), torch.tensor(-1.0), r"state step should be finite numbers of shape \[\]"),
        ("adamw", ("state", 0, "exp_avg"), 5, "state exp_avg should be finite numbers"),
        ("adamw", ("state", 0, "exp_avg_sq"), None, "state exp_avg_sq should be finite numbers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_states_of_optimisers(optimizer, keys, value, message, states):
    saved, own = states[optimizer]["optimizer"], make_optimizer(Toy(), toy_config(OPTIMIZER=optimizer))
    check_optimizer(saved, own, "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: the state of the training in it is damaged: .*{message}"):
        check_optimizer(changed(saved, *keys, value=value), own, "a.pth")


def test_a_training_that_cannot_continue_names_its_file(states, tmp_path):
    """From the file on: load_weights refuses what it can see, and the training the rest, before its first step."""
    model = tiny_model()
    model.model_dir = tmp_path / "logs"
    path = model.model_dir / "tiny20260101T0000" / "mask_rcnn_tiny_0001.pth"
    path.parent.mkdir(parents=True)
    state = changed(states["sgd"], "epoch", value="1")
    torch.save({**model.to_checkpoint(), "training": state}, path)
    with pytest.raises(
        ValueError, match=r"mask_rcnn_tiny_0001\.pth: the state of the training in it is damaged: epoch"
    ):
        model.load_weights(path)
    start = {
        **changed(states["sgd"], "optimizer", "state", 0, "momentum_buffer", value=torch.zeros(2)),
        "file": "a.pth",
    }
    with pytest.raises(ValueError, match=r"a\.pth: the state of the training in it is damaged: optimizer\.state"):
        train_toy(tmp_path / "toy", start=start)

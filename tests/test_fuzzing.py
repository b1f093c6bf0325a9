"""The fuzzers' own rules: what they let pass, and what they fail for."""

import json
import time

import fuzzing
import numpy as np
import pytest
from fuzzing import damaged_bytes, damaged_json, fuzz


def raising(error: BaseException):
    def case(rng: np.random.Generator) -> None:
        raise error

    return case


def test_refusals_that_name_the_input_pass():
    seeds = []
    fuzz(lambda rng: seeds.append(rng.integers(1 << 30)), 5, "a.json")
    assert len(set(seeds)) == 5, "each case has a seed of its own"
    fuzz(raising(ValueError("a.json is empty")), 3, "a.json")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ValueError("is empty"), AssertionError),
        (ValueError("a.json \x1b[2J"), AssertionError),
        (ValueError("a.json" + "x" * fuzzing.MAX_MESSAGE), AssertionError),
        (KeyError("a.json"), KeyError),
        (MemoryError("a.json"), MemoryError),
    ],
)
def test_other_errors_fail(error, failure):
    with pytest.raises(failure):
        fuzz(raising(error), 1, "a.json")


def test_slow_and_large_cases_fail(monkeypatch):
    monkeypatch.setattr(fuzzing, "MAX_SECONDS", 0.05)
    with pytest.raises(fuzzing.TooSlow):
        fuzz(lambda rng: time.sleep(1), 1, "")
    with pytest.raises(MemoryError):
        fuzz(lambda rng: bytearray(3 << 30), 1, "")


def test_a_single_seed_and_a_budget_of_time(monkeypatch):
    runs = []
    monkeypatch.setattr(fuzzing, "seconds_per_fuzzer", 0.05)
    fuzz(runs.append, 2, "")
    assert len(runs) > 2, "it goes on with further seeds"
    monkeypatch.setenv("FUZZ_SEED", "7")
    first = []
    fuzz(lambda rng: first.append(rng.integers(1 << 30)), 2, "")
    assert first == [np.random.default_rng(7).integers(1 << 30)]


def test_damage_is_the_same_for_the_same_seed_and_differs_otherwise():
    data, value = bytes(range(256)) * 4, {"images": [{"id": 1, "name": "a"}], "size": [3, 4]}
    for damage, good in ((damaged_bytes, data), (damaged_json, value)):
        results = [repr(damage(good, np.random.default_rng(seed))) for seed in range(50)]
        assert results == [repr(damage(good, np.random.default_rng(seed))) for seed in range(50)]
        assert len(set(results)) > 40
    assert value == json.loads('{"images": [{"id": 1, "name": "a"}], "size": [3, 4]}'), "the input itself is unchanged"
    assert damaged_bytes(b"", np.random.default_rng(0)) == b""

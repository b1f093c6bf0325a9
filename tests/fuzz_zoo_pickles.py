"""Damaged files of Detectron2's model zoo and damaged configurations: a sentence that names the file, or a model."""

import itertools
import pickle
import pickletools

import numpy as np
import pytest
import yaml
from fuzzing import damaged_bytes, damaged_json, fuzz
from zoo_files import config_yaml, detectron2_state, zoo_bytes

from config import Config
from model import network_shapes
from weights.load import load_checkpoint
from weights.source_config import read_source_config
from weights.state_dicts import find_state_dict
from weights.torch_files import load_torch_file

NAME = "damaged.pkl"


@pytest.fixture(scope="module")
def state():
    """Few arrays of many kinds, so that damage often meets what is not numbers."""
    network_shapes(Config())  # the first call in a process takes seconds
    rng = np.random.default_rng(0)
    arrays = {
        "conv1_w": rng.random((8, 3, 2, 2)),
        "columns": np.asfortranarray(rng.random((9, 30))),
        "scalar": rng.random(()),
    }
    return {
        f"{name}{code}": array.astype(code) for name, array in arrays.items() for code in ("<f4", ">f8", "<f2", "<i4")
    }


def test_bytes_of_pickles(state, tmp_path):
    """All protocols. What comes is a dict of tensors that are no larger than the file."""
    path = tmp_path / NAME
    goods = [zoo_bytes(state, protocol) for protocol in range(6)] + [pickle.dumps({"blobs": state}, 2)]

    def case(rng):
        path.write_bytes(damaged_bytes(goods[rng.integers(len(goods))], rng))
        tensors = find_state_dict(path, load_torch_file(path)).tensors
        assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size + (2 << 20)

    fuzz(case, 1000, NAME)


def test_instructions_of_pickles(state, tmp_path):
    """Instructions are left out, doubled and exchanged: what somebody writes on purpose."""
    path = tmp_path / NAME
    goods = [_instructions(zoo_bytes(state, protocol)) for protocol in (0, 2, 5)]

    def case(rng):
        parts = list(goods[rng.integers(len(goods))])
        for _ in range(rng.integers(1, 6)):
            here, there = rng.integers(len(parts), size=2)
            match rng.integers(3):
                case 0:
                    del parts[here]
                case 1:
                    parts.insert(there, parts[here])
                case 2:
                    parts[here], parts[there] = parts[there], parts[here]
        path.write_bytes(b"".join(parts))
        find_state_dict(path, load_torch_file(path))

    fuzz(case, 250, NAME)


def _instructions(data):
    """The bytes of each instruction of a pickle."""
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[start:end] for start, end in itertools.pairwise([*starts, len(data)])]


def test_values_of_a_detector(tmp_path):
    """A pickle without a fault, of names and arrays that no detector has."""
    path, good = tmp_path / NAME, detectron2_state()
    path.write_bytes(zoo_bytes(good))
    load_checkpoint(path)
    names = list(good)

    def case(rng):
        state = dict(good)
        for _ in range(rng.integers(1, 3)):
            name = names[rng.integers(len(names))]
            match rng.integers(5):
                case 0:
                    state.pop(name, None)
                case 1:
                    state[names[rng.integers(len(names))]] = good[name]
                case 2:
                    state[name + "\x1b[2J"] = good[name]
                case 3:
                    state[name] = good[name].reshape(-1)[: int(rng.integers(10))]
                case 4:
                    state[name] = np.full_like(good[name], rng.choice([np.nan, np.inf, 0, -1]))
        path.write_bytes(zoo_bytes(damaged_json({"model": state}, rng) if rng.random() < 0.2 else state))
        load_checkpoint(path)

    fuzz(case, 8, NAME)


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_configurations(kind, tmp_path):
    path = tmp_path / "damaged.yaml"
    good = config_yaml(_BASE_="../Base-RCNN-FPN.yaml", MODEL__TUPLE=(1, 2), MODEL__RPN__IOU_THRESHOLDS=[0.3, 0.7])
    text = yaml.dump(good).encode()

    def case(rng):
        if kind == "bytes":
            path.write_bytes(damaged_bytes(text, rng))
        else:
            path.write_text(yaml.dump(damaged_json(good, rng), allow_unicode=True), errors="surrogatepass")
        read_source_config(path).text()

    fuzz(case, 100, "damaged.yaml")

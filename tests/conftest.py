"""What all tests share. Tests on CUDA run wherever torch sees a GPU, and skip elsewhere."""

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest
import torch
from helpers import tiny_model
from hypothesis import settings

# Deterministic: a failure on one machine is a failure on all. More examples: HYPOTHESIS_PROFILE=long make test
settings.register_profile("default", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A shell that starts the tests in the background has SIGINT ignored; tests of Ctrl-C need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a GPU, tests compare products of float32 with each other and with a CPU's: no rounding to TF32, which torch has on
# for convolutions. Models have a setting of their own, and helpers.TinyConfig switches it off.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
GOLDEN = Path(__file__).parent / "golden"


@contextlib.contextmanager
def host_waits() -> Iterator[list[str]]:
    """A block in which CUDA says when the CPU waits for it. Gives a list that gets the message of each wait."""
    waits: list[str] = []

    def note(message, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            waits.append(str(message))

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        try:
            warnings.simplefilter("ignore")  # torch sets the mode, and then warns once that it is a prototype
            torch.cuda.set_sync_debug_mode("warn")
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of a tiny network whose classes have COCO's ids."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    tiny_model(CATEGORY_IDS=(0, 17, 18, 21)).save(path)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """FUZZ_SECONDS is the time that all fuzzers of this run have together."""
    fuzzers = [item for item in items if item.path.name.startswith("fuzz_")]
    fuzzing.seconds_per_fuzzer = float(os.environ.get("FUZZ_SECONDS", 0)) / max(len(fuzzers), 1)

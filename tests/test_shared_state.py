"""One model in many threads, in forked processes, and under what callers may have switched on: nothing is shared."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import random_image, tiny_model

import model as network
from model import MaskRCNN
from stages import look_inside
from weights.load import load_model

ROOT = Path(__file__).parent.parent


def assert_identical(results: list[dict], expected: list[dict]) -> None:
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == other[name] if name == "masks" and isinstance(value, list) else (value == other[name]).all()


def learning_model(**overrides) -> MaskRCNN:
    """A model whose batch norms take the statistics of each batch in training mode."""
    model = tiny_model(BACKBONE_NORM="batch", TRAIN_BN=True, FROZEN_STAGES=0, **overrides)
    model.set_trainable("all")
    assert model.backbone.stem.norm.learns
    return model


############################################################
#  Threads
############################################################


def test_threads_detect_while_others_load_prepare_and_toggle(tmp_path):
    """Eight threads detect images of many sizes, with one model. Meanwhile others load models of other weights and
    settings, open and close blocks of both, and toggle the mode of the shared one. Every result has the bits that it
    has alone."""
    model, other = learning_model(), tiny_model(1, RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128), DIALECT="matterport")
    other.save(tmp_path / "other.pth")
    images = [[random_image(40 + 12 * i, 150 - 14 * i, i), random_image(64, 40 + i, i)] for i in range(8)]
    dtypes = ["float32", "bfloat16"] * 4
    expected = [model.detect(batch, dtype=dtype, masks="rle") for batch, dtype in zip(images, dtypes, strict=True)]
    expected_of_other = other.detect(images[0])
    statistics = model.backbone.stem.norm.running_mean.clone()
    random_state, start, done = torch.get_rng_state(), threading.Barrier(12), threading.Event()

    def detect(number: int) -> None:
        start.wait()
        for turn in range(6):
            if turn % 3 == 0:
                with model.prepared(dtypes[number]):
                    results = model.detect(images[number], dtype=dtypes[number], masks="rle")
            elif turn % 3 == 1:
                (results,) = model.detect_batches([images[number]], dtype=dtypes[number])
            else:
                results = model.detect(images[number], dtype=dtypes[number], masks="rle")
            assert_identical(results, expected[number])

    def load(_: int) -> None:
        start.wait()
        while not done.is_set():
            loaded = load_model(tmp_path / "other.pth", "cpu")
            with loaded.prepared():
                assert_identical(loaded.detect(images[0]), expected_of_other)

    def toggle(_: int) -> None:
        start.wait()
        while not done.is_set():
            model.train()
            with model.prepared("bfloat16"):
                model.eval()

    with ThreadPoolExecutor(12) as pool:
        detecting = [pool.submit(detect, number) for number in range(8)]
        meanwhile = [pool.submit(function, 0) for function in (load, load, toggle, toggle)]
        try:
            for future in detecting:
                future.result()
        finally:
            done.set()
        for future in meanwhile:
            future.result()
    assert torch.equal(model.backbone.stem.norm.running_mean, statistics), "detection learns nothing"
    assert torch.equal(torch.get_rng_state(), random_state), "loading draws no random numbers"
    assert not network._Block.of_network.get(model), "all blocks are closed"


def test_caches_have_a_bound():
    assert network._shared_anchors.cache_parameters()["maxsize"] == 4


############################################################
#  Forks
############################################################

SERVER = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from helpers import random_image, tiny_model
torch.set_num_threads(2)
model, image = tiny_model(IMAGE_MIN_DIM=256, IMAGE_MAX_DIM=256), random_image(200, 250)
expected = model.detect([image], masks="rle")[0]
list(model.detect_batches([[image]]))
for worker in range(2):
    process = os.fork()
    if process == 0:
        signal.alarm(30)  # a worker that waits for threads of its parent ends by this signal
        result = model.detect([image], masks="rle")[0]
        ((batch,),) = model.detect_batches([[image]])
        assert abs(result["rois"] - expected["rois"]).max() < 1 and len(batch["scores"]) == len(expected["scores"])
        os._exit(7 if torch.get_num_threads() == 1 else 8)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
assert torch.get_num_threads() == 2
model.detect([image])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_server_may_fork_after_it_detected():
    """The threads of OpenMP are not copied, though both torch and our kernels used them before the fork."""
    code = SERVER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.returncode) == (["7", "7"], 0), done.stderr


############################################################
#  What the caller switched on
############################################################


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    model, images = tiny_model(), [random_image(60, 90), random_image(90, 60)]
    expected, stages = model.detect(images), look_inside(model, images[0])
    with torch.autocast("cpu", dtype=dtype):
        assert_identical(model.detect(images), expected)
        assert_identical(next(model.detect_batches([images], masks="array")), expected)
        with model.prepared():  # the weights, too, are prepared without it
            assert_identical(model.detect(images), expected)
        assert (look_inside(model, images[0]).mask_probs == stages.mask_probs).all()
        assert torch.is_autocast_enabled("cpu"), "the caller's stays on"


def test_inference_mode_and_gradients_change_nothing():
    model, images = tiny_model(), [random_image(60, 90)]
    expected = model.detect(images)
    network._shared_anchors.cache_clear()
    with torch.inference_mode(), model.prepared(), ThreadPoolExecutor(1) as pool:
        assert_identical(model.detect(images), expected)
        # What the block prepared, and the anchors, serve other threads outside of inference mode.
        assert_identical(pool.submit(model.detect, images).result(), expected)
        weights = network._ready_weights(model, torch.float32)
        assert not any(tensor.is_inference() for pair in weights.values() for tensor in pair if tensor is not None)
    with torch.enable_grad():
        assert_identical(model.detect(images), expected)


def test_the_default_dtype_changes_nothing(tmp_path):
    model, images = tiny_model(BACKBONE_NORM="group"), [random_image(60, 90)]
    model.save(tmp_path / "tiny.pth")
    expected = model.detect(images)
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            network._shared_anchors.cache_clear()
            loaded = load_model(tmp_path / "tiny.pth", "cpu")
            assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
            assert_identical(loaded.detect(images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_training_mode_changes_nothing():
    """A callback of a training may detect: it gets the running statistics, and leaves them as they are."""
    model, images = learning_model(), [random_image(60, 90), random_image(90, 60)]
    expected = model.detect(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    assert_identical(model.detect(images), expected)
    with model.prepared("bfloat16"), torch.enable_grad():
        model.detect(images, dtype="bfloat16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.backbone.stem.norm.folds, "training itself still takes the statistics of the batch"

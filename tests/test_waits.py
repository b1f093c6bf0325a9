"""How often detection waits for a GPU, counted on the CPU: tests/waiting.py says how, and what it cannot see."""

import math
import warnings

import numpy as np
import pytest
import torch
import waiting
from conftest import host_waits
from helpers import TinyConfig, random_image, tiny_model

import model as modellib
import nms
import runtime
from config import DIALECTS

COLUMNS = ("boxes", "batch_index", "class_ids", "scores", "mask_logits", "maskious")


def detect(model, images, dtype="float32"):
    """The detections of a batch, on the CPU."""
    seconds = {"resize": 0.0, "network": 0.0}
    (chunk,) = model._resized_chunks([images], seconds)
    with torch.no_grad():
        return model._infer(chunk, dtype, seconds, modellib._ready_weights(model, modellib._DTYPES[dtype]))


@pytest.fixture(autouse=True)
def no_anchors_left():
    yield
    modellib._shared_anchors.cache_clear()
    modellib._kept_cell_anchors.cache_clear()


############################################################
#  detect
############################################################


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_detection_waits_three_times(dialect, batch):
    """For the number of proposals, for the number of detections, and for the detections.

    The images have a size that the process has not met before. Only the very first call copies constants, such as the
    anchors of a cell.
    """
    images = [random_image(64, 96, seed) for seed in range(batch)]
    model = tiny_model(DIALECT=dialect, IMAGES_PER_GPU=8)
    expected = detect(model, images)
    with waiting.counted() as waits:
        detect(waiting.model_on_device(model), [random_image(64, 64)])
        waits.clear()
        found = detect(model, images)
    assert [line.split(" at ")[0] for line in waits] == ["index", "index", "copy_"], "\n".join(waits)
    assert len(found) == len(expected) == 20 * batch
    for name in COLUMNS:
        # Layers may be computed in another way on a CPU; see below for what must be equal.
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-2, atol=0.5)


def test_detection_in_bfloat16_and_without_objects_waits_no_more():
    model = tiny_model(DETECTION_MIN_CONFIDENCE=1.0, IMAGES_PER_GPU=2)
    images = [random_image(64, 96, seed) for seed in range(2)]
    with waiting.counted() as waits:
        detect(waiting.model_on_device(model), [random_image(64, 64)], "bfloat16")
        waits.clear()
        found = detect(model, images, "bfloat16")
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.mask_logits.shape == (0, 28, 28)
    assert len(waits) == 3


############################################################
#  A GPU's way finds the same
############################################################


def tied(tensor: torch.Tensor, steps: int) -> torch.Tensor:
    """The numbers, rounded so that many are equal."""
    return (tensor * steps).round() / steps


def head_outputs(case: str, seed: int) -> tuple[torch.Tensor, ...]:
    """class_logits, box_deltas, rois and batch_index of three images; the second has no RoIs."""
    generator = torch.Generator().manual_seed(seed)
    count = 0 if case == "no RoIs" else 120
    logits = tied(torch.randn(count, 4, generator=generator) * 2, 2 if case == "ties" else 1000)
    deltas = torch.randn(count, 4, 4, generator=generator)
    if case == "ties":
        deltas = deltas * 0
    corners = (torch.rand(count, 2, generator=generator) * 50).round()
    rois = torch.cat([corners, corners + 5 + (torch.rand(count, 2, generator=generator) * 20).round()], 1)
    if case == "not finite":
        logits[::7, 1], logits[3::11], deltas[1::5, 2, 3] = math.nan, math.inf, math.nan
        rois[2::13, 0], rois[5::17] = math.inf, 0
    return logits, deltas, rois, torch.arange(count) // 60 * 2


@pytest.mark.parametrize("case", ["usual", "ties", "not finite", "no RoIs"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_detections_are_the_same_to_the_bit(dialect, case):
    for threshold, limit in ((0.0, 10), (0.26, 100), (0.5, 1), (1.0, 5)):
        config = TinyConfig(DIALECT=dialect, DETECTION_MIN_CONFIDENCE=threshold, DETECTION_MAX_INSTANCES=limit)
        inputs = (*head_outputs(case, 1), torch.tensor([[0.0, 0, 60, 60], [0, 0, 9, 9], [0, 0, 40, 50]]))
        expected = modellib.detect_boxes(*inputs, config)
        with waiting.counted() as waits:
            modellib.detect_boxes(*waiting.on_device(inputs), config, 60)  # copies constants, once in a process
            waits.clear()
            found = modellib.detect_boxes(*waiting.on_device(inputs), config, 60).to("cpu")
        assert len(waits) == 2
        for name in COLUMNS[:4]:
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert (len(expected) == 0) == (case == "no RoIs" or threshold == 1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_proposals_are_the_same_to_the_bit(dialect):
    config = TinyConfig(DIALECT=dialect, RPN_NMS_THRESHOLD=0.4)
    generator = torch.Generator().manual_seed(0)
    counts = (40, 12)
    centres = [torch.rand(count, 2, generator=generator) * 60 for count in counts]
    anchors = [torch.cat([centre - 12, centre + 12], 1) for centre in centres]
    logits = [tied(torch.randn(3, count, generator=generator), 2) for count in counts]
    logits[0][0, 3], logits[1][1] = math.nan, -math.inf
    deltas = [torch.randn(3, count, 4, generator=generator) * 0.2 for count in counts]
    windows = torch.tensor([[0.0, 0, 60, 60], [0, 0, 40, 50], [0, 0, 0, 0]])
    for limits in ((15, 8), (100, 100)):
        expected = modellib.propose(logits, deltas, anchors, windows, config, *limits)
        with waiting.counted() as waits:
            modellib.propose(*waiting.on_device((logits, deltas, anchors, windows)), config, *limits)
            waits.clear()
            found = modellib.propose(*waiting.on_device((logits, deltas, anchors, windows)), config, *limits)
            assert len(waits) == 1
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.to("cpu"), other)


def test_the_debug_mode_of_cuda_is_put_back(monkeypatch):
    """torch sets the mode and then warns, once; and warnings are errors in the tests."""
    mode = [0]

    def set_mode(value):
        mode.append({"default": 0, "warn": 1, "error": 2}.get(value, value))
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)

    def fail_after_two_waits() -> None:
        with host_waits() as waits:
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            raise KeyError(len(waits))

    with pytest.raises(KeyError, match="2"):
        fail_after_two_waits()
    assert mode == [0, 1, 0]


############################################################
#  The counter finds waits
############################################################

WAITS = {
    "nonzero": lambda x: (x > 0).nonzero(),
    "mask": lambda x: x[x > 0],
    "assigned by mask": lambda x: x.__setitem__(x > 0, x[0]),
    "assigned number": lambda x: x.__setitem__((x[:1] * 0).long(), 1.0),
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "int": lambda x: int(x[0]),
    "cpu": lambda x: x.cpu(),
    "cpu without blocking": lambda x: x.to("cpu", non_blocking=True),
    "copy to the CPU": lambda x: torch.zeros(4).copy_(x),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "as_tensor": lambda x: torch.as_tensor(np.zeros(3), device=x.device),
    "to": lambda x: torch.zeros(3).to(x.device),
    "pageable": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "pinned, blocking": lambda x: runtime.empty_for_copies(x.device, (3,), torch.float32).to(x.device),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: (x * 0).long().bincount(),
    "repeat_interleave": lambda x: x.repeat_interleave((x * 0).long()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x + 1),
    "nms": lambda x: nms.nms(x[:, None].expand(4, 4), x, 0.5),
}
NO_WAITS = {
    "arithmetic": lambda x: (x * 2 + torch.tensor(1.0)).clamp(0, 1).exp(),
    "indices": lambda x: x[x.argsort()].gather(0, torch.arange(2, device=x.device)),
    "shapes": lambda x: x[None].expand(3, len(x)).flatten().topk(2),
    "filled": lambda x: x.new_full((3,), 2.0) + x.new_zeros(3) + torch.ones(3, device=x.device),
    "masked": lambda x: x.masked_fill(x > 0, -math.inf).where(x > 1, x),
    "uploaded": lambda x: runtime.upload(torch.arange(3), x.device) + 1,
    "dtype": lambda x: x.to(torch.bfloat16).float().long(),
    "copied": lambda x: x.copy_(x.flip(0)),
    "of the CPU": lambda x: torch.zeros(3).copy_(torch.ones(3)).tolist(),
}


@pytest.mark.parametrize("name", [*WAITS, *NO_WAITS])
def test_the_counter_sees_waits_and_nothing_else(name):
    with waiting.counted() as waits:
        (WAITS | NO_WAITS)[name](waiting.on_device(torch.tensor([1.0, -1, 2, 0])))
    assert len(waits) == (name in WAITS), waits
    assert all("test_waits.py" in line for line in waits if "nms" not in name), "the line that waits is named"


def test_a_list_as_an_index_is_refused():
    """torch makes a tensor of it, which a GPU waits for, but gives one without values here."""
    with waiting.counted(), pytest.raises(AssertionError, match="came to meta unseen"):
        waiting.on_device(torch.zeros(3))[[0, 2]]


def test_values_on_the_device_are_those_of_the_cpu():
    values = torch.arange(6.0).view(2, 3)
    with waiting.counted():
        far = waiting.on_device(values.clone())
        assert far.device == waiting.DEVICE
        far[0].mul_(2)  # a view
        assert far.to("cpu").tolist() == [[0, 2, 4], [3, 4, 5]]
        assert runtime.upload(values.t(), waiting.DEVICE).to("cpu").tolist() == values.t().tolist()
    with pytest.raises(RuntimeError, match=r"outside of waiting\.counted"):
        far + 1

"""Detection on a device without float64, as Apple's GPUs are. There is none here: the CPU stands for it."""

import pytest
import torch
from helpers import random_image, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model
import nms.reference
import roialign.reference
from config import DIALECTS


class WideNumbers(TorchDispatchMode):
    """Collects the operators that read or make float64."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            self.operators.add(str(operator))
        return result


@pytest.mark.parametrize("dialect", DIALECTS)
def test_detection_needs_no_float64_on_the_device(dialect, monkeypatch):
    """From the pixels to the detections, with the operators' references, which run where there is no kernel."""
    spy, predict, anchors = WideNumbers(), model.MaskRCNN.predict, model.generate_pyramid_anchors

    def watched(*arguments, **options):
        with spy:
            return predict(*arguments, **options)

    def unwatched(*arguments):  # anchors are made on the CPU, and then moved
        with torch.utils._python_dispatch._disable_current_modes():
            made = anchors(*arguments)
        assert all(level.dtype == torch.float32 for level in made)
        return made

    monkeypatch.setattr(model.MaskRCNN, "predict", watched)
    monkeypatch.setattr(model, "generate_pyramid_anchors", unwatched)
    sizes = {"IMAGE_MAX_DIM": 128} if dialect == "matterport" else {}
    (result,) = tiny_model(DIALECT=dialect, **sizes).detect([random_image(60, 80)])
    assert len(result["scores"])
    assert spy.operators == set()


def test_references_of_detection_need_no_float64():
    """They are operators of their own in the test above, so that it does not look into them."""
    boxes, rows = 10 * torch.rand(20, 4).cumsum(dim=1), torch.zeros(20, dtype=torch.int64)
    maps = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)]
    with WideNumbers() as spy:
        for sampling_ratio, aligned in ((2, False), (0, True)):
            roialign.reference.pyramid_roi_align(
                maps, boxes, rows, rows, (7, 7), [0.25, 0.125], sampling_ratio, aligned
            )
        roialign.reference.pyramid_crop_and_resize(maps, boxes / 100, rows, rows, (7, 7), 0.0)
        nms.reference.batched_nms(boxes, torch.rand(20), torch.arange(20) % 3, 0.5, 5)
        assert spy.operators == set()
        torch.rand(1).double()
        assert spy.operators, "the spy sees them"

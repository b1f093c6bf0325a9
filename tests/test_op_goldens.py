"""The operators against what the four other implementations of the family computed (tests/golden/README.md)."""

import numpy as np
import pytest
import torch
from conftest import DEVICES, GOLDEN
from torch import Tensor

import native
from nms import nms
from roialign import crop_and_resize, roi_align


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "ops.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def yxyx(xyxy: Tensor) -> Tensor:
    return xyxy[:, [1, 0, 3, 2]]


def assert_pooled(actual: Tensor, expected: Tensor) -> None:
    """To the bit from the C++ kernels; the reference and CUDA add up in another order."""
    if native.is_native("roialign", "cpu") and actual.device.type == "cpu":
        assert torch.equal(actual, expected)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("peer", ["p1", "p2", "p3", "p4"])
def test_nms(golden, peer, iou_threshold, device):
    boxes = yxyx(golden["in/nms_boxes"])
    if peer in ("p1", "p2"):  # inclusive corners: an inclusive box is our half-open one with one pixel more
        boxes = boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
    keep = nms(boxes.to(device), golden["in/nms_scores"].to(device), iou_threshold).cpu()
    if peer == "p2":  # in ascending index
        assert sorted(keep.tolist()) == golden[f"p2/nms_keep_{iou_threshold}"].tolist()
    else:
        assert keep.tolist() == golden[f"{peer}/nms_keep_score_order_{iou_threshold}"].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("peer", ["p3", "p4"])
def test_nms_at_the_threshold(golden, peer, device):
    keep = nms(yxyx(golden["in/nms_tie_boxes"]).to(device), golden["in/nms_tie_scores"].to(device), 0.5)
    assert keep.tolist() == golden[f"{peer}/nms_tie_keep_0.5"].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("peer", "size", "sampling_ratio"), [("p2", 7, 2), ("p2", 14, 2), ("p2", 7, 0), ("p3", 7, 2), ("p3", 14, 2)]
)
def test_roi_align(golden, peer, size, sampling_ratio, layout, device):
    features = golden["in/feat"].to(device).contiguous(memory_format=layout)
    rois = yxyx(golden["in/rois"]).to(device)
    index = torch.zeros(len(rois), dtype=torch.int64, device=device)
    pooled = roi_align(features, rois, index, size, 0.25, sampling_ratio, aligned=False)
    assert_pooled(pooled, golden[f"{peer}/roi_align_{size}_scale0.25_sr{sampling_ratio}"])


@pytest.mark.parametrize("device", DEVICES)
def test_mask_targets(golden, device):
    """torchvision's mask targets: one-channel bitmaps, adaptive samples, full resolution."""
    masks = golden["p3/mask_target/in_masks"][:, None].float().to(device)
    rois, index = yxyx(golden["p3/mask_target/boxes"]).to(device), golden["p3/mask_target/idx"].to(device)
    pooled = roi_align(masks, rois, index, 28, 1.0, 0, aligned=False)[:, 0]
    assert_pooled(pooled, golden["p3/mask_target/out"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("peer", ["p1", "p4"])
def test_crop_and_resize(golden, peer, size, layout, device):
    image = golden["in/feat"].to(device).contiguous(memory_format=layout)
    boxes = golden[f"{peer}/crop_boxes_norm"].to(device)
    index = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    crops = crop_and_resize(image, boxes, index, size).cpu()
    assert torch.equal(crops, golden[f"{peer}/crop_and_resize_{size}"])

"""RoI pooling: every kernel against the reference, and the reference against cases done by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEVICES, host_waits, needs_cuda
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import native
from benchmarks.machine import peak_mb
from roialign import crop_and_resize, pyramid_crop_and_resize, pyramid_roi_align, reference, roi_align

roi_pool = torch.ops.maskscoring.roi_pool.default
roi_pool_backward = torch.ops.maskscoring.roi_pool_backward.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]
NAN, INF = float("nan"), float("inf")
# Widths that straddle a SIMD register (16), a thread's share (64) and a block (128) of channels.
CHANNELS = [1, 3, 16, 64, 70, 128, 130, 256]


def random_features(*shape: int, seed: int = 0, layout=torch.contiguous_format, dtype=torch.float32) -> Tensor:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return features.to(dtype).contiguous(memory_format=layout)


def random_rois(n: int, images: int, size: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes inside, across the edge of and outside a size x size image, some without area, some upside down."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size * 1.4 - size * 0.2
    extent = torch.rand(n, 2, generator=generator) * size * 0.8 - size * 0.05
    index = torch.randint(0, images, (n,), generator=generator)
    return torch.cat([corner, corner + extent], dim=1), index


def reference_align(features: Tensor, rois: Tensor, index: Tensor, size, scale, ratio, aligned) -> Tensor:
    return reference.pyramid_roi_align([features], rois, index, None, size, [scale], ratio, aligned)


def gradient(pooled: Tensor, features: Tensor, seed: int = 1) -> Tensor:
    """The gradient of a fixed random functional of what was pooled."""
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed))
    (grad,) = torch.autograd.grad((pooled.float() * weights.to(pooled.device)).sum(), features)
    return grad


############################################################
#  By hand
############################################################


@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_by_hand(device):
    features = torch.arange(16.0, device=device).view(1, 1, 4, 4)  # value = 4 y + x
    index = torch.zeros(1, dtype=torch.int64, device=device)
    roi = torch.tensor([[0.0, 0.0, 4.0, 4.0]], device=device)
    # Aligned: bins of 2 x 2 cells, four samples each, on the cells' centres: means of 2 x 2 cells.
    pooled = roi_align(features, roi, index, 2, 1.0, 2, aligned=True)
    assert pooled[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    # Legacy: everything half a cell further down and right; row and column 3.5 are clamped to 3.
    # One axis of a bin averages 0.5 and 1.5, or 2.5 and 3 (clamped): 1 and 2.75.
    pooled = roi_align(features, roi, index, 2, 1.0, 2, aligned=False)
    assert pooled[0, 0].tolist() == [[4 * y + x for x in (1.0, 2.75)] for y in (1.0, 2.75)]


@pytest.mark.parametrize("device", DEVICES)
def test_samples_more_than_a_cell_outside_count_as_zeros(device):
    features = torch.full((1, 1, 4, 4), 8.0, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    # Samples at y = -3, -1, 1, 3: the first lies beyond -1 and adds nothing, the second is clamped to row 0.
    pooled = roi_align(features, torch.tensor([[-4.0, 0.0, 4.0, 4.0]], device=device), index, 1, 1.0, 4, aligned=False)
    assert pooled.item() == 8.0 * 3 / 4


@pytest.mark.parametrize("device", DEVICES)
def test_adaptive_samples(device):
    """A bin of 2.5 x 1 cells takes 3 x 1 samples, at 2.5 / 6, 2.5 / 2 and 2.5 * 5 / 6 from its start."""
    features = torch.arange(6.0, device=device).view(1, 1, 6, 1).expand(1, 1, 6, 6)  # value = y
    index = torch.zeros(1, dtype=torch.int64, device=device)
    roi = torch.tensor([[1.0, 1.0, 3.5, 2.0]], device=device)
    pooled = roi_align(features, roi, index, 1, 1.0, 0, aligned=False)
    assert pooled.item() == pytest.approx(1 + 2.5 / 2)


@pytest.mark.parametrize("device", DEVICES)
def test_crop_and_resize_by_hand(device):
    image = torch.arange(9.0, device=device).view(1, 1, 3, 3)  # value = 3 y + x
    index = torch.zeros(3, dtype=torch.int64, device=device)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.5, 1.0]], device=device)
    crops = crop_and_resize(image, boxes, index, 2, extrapolation_value=-7.0)[:, 0]
    assert crops[0].tolist() == [[0.0, 2.0], [6.0, 8.0]]  # the corners
    assert crops[1].tolist() == [[0.0, 1.0], [3.0, 4.0]]
    assert crops[2].tolist() == [[3.0, 5.0], [-7.0, -7.0]]  # the second row lies below the image
    assert crop_and_resize(image, boxes[:1], index[:1], 1).item() == 4.0  # one sample: the centre
    upside_down = torch.tensor([[1.0, 0.0, 0.0, 1.0]], device=device)
    assert crop_and_resize(image, upside_down, index[:1], 2)[0, 0].tolist() == [[6.0, 8.0], [0.0, 2.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_by_hand(device):
    features = torch.zeros(1, 1, 2, 2, device=device, requires_grad=True)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    # One sample at (0.25, 0.5) of the four cells' square.
    roi = torch.tensor([[0.25, 0.5, 0.25, 0.5]], device=device) - 0.5
    roi_align(features, roi + 0.5, index, 1, 1.0, 1, aligned=True).sum().backward()
    expected = torch.zeros(2, 2)  # at (-0.25, 0) after the shift by half a cell: clamped to the first cell
    expected[0, 0] = 1.0
    torch.testing.assert_close(features.grad[0, 0].cpu(), expected)
    features.grad = None
    crop_and_resize(features, torch.tensor([[0.25, 0.5, 0.25, 0.5]], device=device), index, 1).sum().backward()
    assert features.grad[0, 0].tolist() == [[0.75 * 0.5, 0.75 * 0.5], [0.25 * 0.5, 0.25 * 0.5]]


############################################################
#  Against the reference
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (0, True), (3, True), (-1, False)])
def test_roi_align_matches_reference(channels, ratio, aligned, layout, device):
    features = random_features(2, channels, 13, 17, layout=layout).requires_grad_()
    rois, index = random_rois(12, images=2, size=60.0)
    expected = reference_align(features, rois, index, (5, 3), 0.25, ratio, aligned)
    expected_grad = gradient(expected, features)
    moved = features.detach().to(device).requires_grad_()
    pooled = roi_align(moved, rois.to(device), index.to(device), (5, 3), 0.25, ratio, aligned)
    torch.testing.assert_close(pooled.cpu(), expected, rtol=1e-5, atol=2e-6)
    assert pooled.is_contiguous(memory_format=layout if channels > 1 else torch.contiguous_format)
    torch.testing.assert_close(gradient(pooled, moved).cpu(), expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_crop_and_resize_matches_reference(channels, size, layout, device):
    image = random_features(2, channels, 13, 17, layout=layout).requires_grad_()
    boxes, index = random_rois(12, images=2, size=1.0)
    expected = reference.crop_and_resize(image, boxes, index, size, 0.25)
    expected_grad = gradient(expected, image)
    moved = image.detach().to(device).requires_grad_()
    crops = crop_and_resize(moved, boxes.to(device), index.to(device), size, 0.25)
    assert torch.equal(crops.cpu(), expected)  # one sample a bin: the same operations in the same order
    torch.testing.assert_close(gradient(crops, moved).cpu(), expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pyramid_pools_each_roi_from_its_level(layout, device):
    maps = [random_features(2, 20, 40 >> i, 56 >> i, seed=i, layout=layout).to(device) for i in range(4)]
    maps = [fmap.requires_grad_() for fmap in maps]
    rois, index = (tensor.to(device) for tensor in random_rois(40, images=2, size=160.0))
    levels = torch.arange(40, device=device) * 7 % 4
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    pooled = pyramid_roi_align(maps, rois, index, levels, 7, scales, 2, False)
    for row in range(40):
        level = levels[row].item()
        alone = roi_align(maps[level], rois[row : row + 1], index[row : row + 1], 7, scales[level], 2, False)
        assert torch.equal(pooled[row], alone[0])
    grads = torch.autograd.grad(pooled.square().sum(), maps)
    for level, (fmap, grad) in enumerate(zip(maps, grads, strict=True)):
        rows = levels == level
        alone = roi_align(fmap, rois[rows], index[rows], 7, scales[level], 2, False)
        torch.testing.assert_close(grad, torch.autograd.grad(alone.square().sum(), fmap)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 7, 64])
def test_half_precision_is_summed_in_float32(channels, dtype, layout, device):
    """Rounded once, at the end: what float32 gives from the same numbers, and its gradient."""
    features = random_features(2, channels, 12, 12, layout=layout, dtype=dtype).to(device).requires_grad_()
    rois, index = (tensor.to(device) for tensor in random_rois(30, images=2, size=48.0))
    wide = features.detach().float().requires_grad_()
    pooled = roi_align(features, rois, index, 4, 0.25, 2)
    expected = roi_align(wide, rois, index, 4, 0.25, 2)
    assert pooled.dtype == dtype
    last_digit = torch.finfo(dtype).eps
    torch.testing.assert_close(pooled, expected.to(dtype), rtol=last_digit, atol=1e-5)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    (grad,) = torch.autograd.grad(pooled, features, weights)
    (expected_grad,) = torch.autograd.grad(expected, wide, weights.float())
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.float(), expected_grad.to(dtype).float(), rtol=last_digit, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_to_even(dtype, layout, device):
    """Halfway between two cells: often exactly halfway between two representable numbers."""
    one_digit = torch.finfo(dtype).eps
    values = torch.tensor([1, 1 + one_digit, 1 + 2 * one_digit, -1, NAN, INF, -INF, INF, 0, 3e38, 1e-7, 5], dtype=dtype)
    image = values.view(1, 1, 1, -1).repeat(1, 3, 2, 1).to(device).contiguous(memory_format=layout)
    image = torch.cat([image, random_features(1, 3, 2, 20, dtype=dtype).to(device)], dim=3)
    box, index = torch.tensor([[0.3, 0.0, 0.6, 1.0]], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    size = (2, 2 * image.shape[3] - 1)  # samples on and halfway between all cells
    crop = crop_and_resize(image, box, index, size)
    expected = crop_and_resize(image.float(), box, index, size).to(dtype)
    torch.testing.assert_close(crop, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_bit(threads, layout):
    features = random_features(2, 96, 20, 20, layout=layout).requires_grad_()
    rois, index = random_rois(50, images=2, size=80.0)
    results = []
    before = torch.get_num_threads()
    for count in (1, threads, threads):
        torch.set_num_threads(count)
        pooled = roi_align(features, rois, index, 7, 0.25)
        results.append((pooled, gradient(pooled, features)))
    torch.set_num_threads(before)
    for pooled, grad in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, device):
    """Slices, steps, broadcasts and permutations are pooled where they lie."""
    whole = random_features(3, 24, 20, 22, layout=layout).to(device)
    rois, index = (tensor.to(device) for tensor in random_rois(9, images=1, size=14.0))
    views = [
        whole[1:2, 3:20:2, 2:, 1:-3],
        whole[:1, :, ::2, ::2],
        whole[:1, :1].expand(1, 5, 20, 22),
        whole[:1].permute(0, 2, 3, 1),
    ]
    for view in views:
        expected = roi_align(view.contiguous(), rois, index, 4)
        assert torch.equal(roi_align(view, rois, index, 4).contiguous(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [5, 32, 300])
def test_gradients_of_any_strides(channels, layout, dtype, device):
    """Read where they lie: contiguous, channels_last, or a broadcast number, as sum() gives."""
    features = random_features(2, channels, 9, 9, layout=layout, dtype=dtype).to(device).requires_grad_()
    rois, index = (tensor.to(device) for tensor in random_rois(5, images=2, size=9.0))
    pooled = roi_align(features, rois, index, (3, 2))
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    apart = torch.zeros(5, channels * 2, 3, 4, device=device, dtype=dtype)[:, ::2, :, 1:3]
    for kind in (grad, grad.contiguous(memory_format=torch.channels_last), apart.copy_(grad)):
        (actual,) = torch.autograd.grad(pooled, features, kind, retain_graph=True)
        (expected,) = torch.autograd.grad(pooled, features, grad, retain_graph=True)
        torch.testing.assert_close(actual, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)
        assert actual.is_contiguous(memory_format=layout)
    pooled.sum().backward()
    (ones,) = torch.autograd.grad(roi_align(features, rois, index, (3, 2)), features, torch.ones_like(grad))
    torch.testing.assert_close(features.grad, ones)


############################################################
#  Boxes of every kind
############################################################

coordinates = st.one_of(
    st.integers(-12, 40).map(float),
    st.floats(-50, 50, width=32),
    st.sampled_from([NAN, INF, -INF, 1e9, -1e9, 3e38, -3e38, 1e-30]),
)


@given(
    boxes=st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float32, (n, 4), elements=coordinates)),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_boxes_match_reference(boxes, ratio, aligned, layout):
    features = random_features(1, 5, 7, 9, layout=layout).requires_grad_()
    rois, index = torch.from_numpy(boxes), torch.zeros(len(boxes), dtype=torch.int64)
    expected = reference_align(features, rois, index, (3, 2), 0.25, ratio, aligned)
    pooled = roi_align(features, rois, index, (3, 2), 0.25, ratio, aligned)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    if expected.requires_grad:  # some RoI touches the map
        torch.testing.assert_close(gradient(pooled, features), gradient(expected, features), rtol=1e-4, atol=1e-4)
    crops = crop_and_resize(features, rois / 20, index, (3, 2), 0.5)
    assert torch.equal(crops, reference.crop_and_resize(features, rois / 20, index, (3, 2), 0.5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rois_that_are_not_finite_pool_to_zeros(bad, layout, device):
    features = torch.ones(1, 6, 8, 8, device=device).contiguous(memory_format=layout).requires_grad_()
    rois = torch.tensor([[1.0, 1.0, 5.0, 5.0]], device=device).repeat(5, 1)
    for row in range(4):
        rois[row, row] = bad
    index = torch.zeros(5, dtype=torch.int64, device=device)
    for pooled in (roi_align(features, rois, index, 2), crop_and_resize(features, rois / 8, index, 2)):
        assert (pooled[:4] == 0).all()
        assert (pooled[4] == 1).all()
        (grad,) = torch.autograd.grad(pooled[:4].sum(), features)
        assert (grad == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_adaptive_rois_match_reference(layout, device):
    """More than 64 samples a bin: those beyond the feature map are skipped, those on it are not."""
    features = random_features(1, 6, 80, 90, layout=layout).requires_grad_()
    rois = torch.tensor(
        [[0.0, 0.0, 80.0, 90.0], [-500.0, -30.0, 300.0, 400.0], [10.0, 20.0, 4000.0, 95.0], [-9e3, -9e3, 50.0, 60.0]]
    )
    index = torch.zeros(4, dtype=torch.int64)
    for size in ((1, 1), (2, 3)):
        expected = reference_align(features, rois, index, size, 1.0, 0, True)
        moved = features.detach().to(device).requires_grad_()
        pooled = roi_align(moved, rois.to(device), index.to(device), size)
        torch.testing.assert_close(pooled.cpu(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient(pooled, moved).cpu(), gradient(expected, features), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_huge_roi_costs_no_more_than_the_feature_map(device):
    """Adaptive sampling of a box of 1e9 pixels: 1e17 samples, of which a few lie on the map."""
    features = torch.ones(1, 2, 4, 4, device=device)
    rois = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [0.0, 0.0, 3e38, 3e38]], device=device)
    pooled = roi_align(features, rois, torch.zeros(2, dtype=torch.int64, device=device), 1)
    assert torch.isfinite(pooled).all()
    assert (pooled < 1e-6).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_to_pool(layout, device):
    index = torch.zeros(0, dtype=torch.int64, device=device)
    rois = torch.zeros(0, 4, device=device)
    maps = [torch.ones(2, 8, s, s, device=device).contiguous(memory_format=layout).requires_grad_() for s in (8, 4)]
    for pooled in (
        roi_align(maps[0], rois, index, 7),
        crop_and_resize(maps[0], rois, index, 7),
        pyramid_roi_align(maps, rois, index, index, 7, [1.0, 0.5]),
    ):
        assert pooled.shape == (0, 8, 7, 7)
        (grad,) = torch.autograd.grad(pooled.sum(), maps[0])
        assert (grad == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_feature_maps(device):
    rois, index = torch.ones(2, 4, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    assert roi_align(torch.ones(1, 3, 0, 5, device=device), rois, index, 2).tolist() == [[[[0.0] * 2] * 2] * 3] * 2
    assert roi_align(torch.ones(1, 0, 4, 5, device=device), rois, index, 2).shape == (2, 0, 2, 2)
    assert (crop_and_resize(torch.ones(1, 3, 0, 5, device=device), rois, index, 2, 4.0) == 4.0).all()


############################################################
#  As a torch op
############################################################


def op_arguments(device: str, layout, crop: bool, dtype=torch.float32) -> tuple:
    maps = [
        random_features(2, 6, 8 >> i, 10 >> i, layout=layout, dtype=dtype).to(device) for i in range(1 if crop else 2)
    ]
    rois, index = (tensor.to(device) for tensor in random_rois(5, images=2, size=1.0 if crop else 30.0))
    levels = None if crop else torch.arange(5, device=device) % 2
    scales = [0.25, 0.125][: len(maps)]
    return [fmap.requires_grad_() for fmap in maps], rois, index, levels, [3, 2], scales, 2, True, crop, 0.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("crop", [False, True])
def test_opcheck(crop, layout, device):
    arguments = op_arguments(device, layout, crop)
    torch.library.opcheck(roi_pool, arguments)
    maps, rois, index, levels, _, scales, *rule, _ = arguments
    grad = torch.randn(5, 6, 3, 2, device=device)
    sizes = [side for fmap in maps for side in fmap.shape[2:]]
    torch.library.opcheck(
        roi_pool_backward, (grad, rois, index, levels, 2, sizes, scales, *rule, layout == torch.channels_last)
    )


@pytest.mark.parametrize("crop", [False, True])
def test_gradcheck(crop):
    """In float64, which the reference computes."""
    maps, *rest = op_arguments("cpu", torch.contiguous_format, crop, dtype=torch.float64)
    rest[0] = rest[0].double()
    assert torch.autograd.gradcheck(lambda *features: roi_pool(list(features), *rest), maps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend, layout):
    """For any number of RoIs, and for scales that torch.compile makes symbols of after the first."""
    torch.compiler.reset()

    def pool(features, rois, index, levels, scale):
        maps = [features, features[:, :, ::2, ::2]]
        pyramid = pyramid_roi_align(maps, rois, index, levels, 3, [scale, scale / 2], 2)
        return pyramid + crop_and_resize(features, rois / 30, index, 3) * 2

    features = random_features(2, 8, 16, 16, layout=layout).requires_grad_()
    compiled = torch.compile(pool, fullgraph=True, backend=backend)
    for n, scale in ((5, 0.5), (9, 0.25), (0, 0.5), (3, 0.3)):
        rois, index = random_rois(n, images=2, size=30.0)
        arguments = (features, rois, index, torch.arange(n) % 2, scale)
        pooled, expected = compiled(*arguments), pool(*arguments)
        torch.testing.assert_close(pooled, expected)
        torch.testing.assert_close(gradient(pooled, features), gradient(expected, features))


def test_autocast_keeps_dtypes():
    """Features are pooled as they come; boxes are never rounded to half precision."""
    rois, index = random_rois(6, images=1, size=1000.0)
    for dtype in (torch.float32, torch.bfloat16):
        features = random_features(1, 8, 32, 32, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = roi_align(features, rois, index, 7, 1 / 32)
        assert pooled.dtype == dtype
        assert torch.equal(pooled, roi_align(features, rois, index, 7, 1 / 32))


def test_integers_of_any_kind():
    features, rois, index = torch.ones(1, 2, 8, 8), torch.ones(1, 4), torch.zeros(1, dtype=torch.int32)
    for size in (np.int64(3), (np.int32(3), 3), [3, 3], torch.Size([3, 3]), torch.tensor(3)):
        assert roi_align(features, rois, index, size, sampling_ratio=np.int64(2)).shape == (1, 2, 3, 3)


def test_the_last_cell_of_an_axis_that_float32_cannot_count():
    """2^24 + 3 rounds up to 2^24 + 4, which is no cell."""
    image = torch.zeros(1, 1, 1, 2**24 + 4)
    image[..., -1] = 1.0
    box, index = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, dtype=torch.int64)
    assert crop_and_resize(image, box, index, (1, 2)).view(-1).tolist() == [0.0, 1.0]
    assert reference.crop_and_resize(image, box, index, (1, 2), 0.0).view(-1).tolist() == [0.0, 1.0]


HALF_PRECISION_BACKWARD = """
import torch
from benchmarks.machine import peak_mb
from roialign import roi_align
features = torch.zeros(1, 64, 512, 512, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
pooled = roi_align(features.requires_grad_(), torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), 7)
grad = torch.ones_like(pooled)
peak = peak_mb(lambda: torch.autograd.grad(pooled, features, grad, retain_graph=True))
print(peak / (features.numel() * 2 / 1e6))
"""


def test_half_precision_backward_holds_no_more_than_the_gradient():
    """The float32 sums of the second half of the channels come after those of the first are gone.

    In a process of its own: what others left of the heap would blur it.
    """
    if native.sanitizing() or not native.is_native("roialign", "cpu") or peak_mb(lambda: torch.empty(1)) is None:
        pytest.skip("a promise of the native kernels, not seen where the sanitizer holds freed memory")
    command = [sys.executable, "-c", HALF_PRECISION_BACKWARD]
    done = subprocess.run(command, cwd=native.ROOT, capture_output=True, text=True)
    assert float(done.stdout) < 2.3, done.stderr  # the gradient and as much again, and pages of 2 MB


@needs_cuda
def test_backward_on_cuda_says_that_it_is_not_deterministic():
    features = torch.ones(1, 4, 4, 4, device="cuda", requires_grad=True)
    rois, index = torch.ones(1, 4, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            roi_align(features, rois, index, 2).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


############################################################
#  Errors
############################################################

FEATURES, ROIS, INDEX = torch.zeros(2, 3, 8, 8), torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": FEATURES[0]}, r"features must be floating \[B, C, H, W\], not torch.float32 \[3, 8, 8\]"),
        ({"features": FEATURES.long()}, "features must be floating"),
        ({"rois": torch.zeros(4, 5)}, "the image of each goes into batch_index"),
        ({"rois": ROIS.long()}, r"rois must be floating \[R, \(y1, x1, y2, x2\)\]"),
        ({"batch_index": INDEX[:3]}, "batch_index must be integers .R., one for each of 4 rois"),
        ({"batch_index": INDEX.float()}, "batch_index must be integers .R.*torch.float32"),
        ({"batch_index": INDEX + 2}, r"batch_index must lie in \[0, 2\), but goes from 2 to 2; there are 2 images"),
        ({"batch_index": INDEX - 1}, "goes from -1 to -1"),
        ({"batch_index": INDEX.to("meta")}, "must be on one device"),
        ({"output_size": 0}, "output_size must be a positive integer or .height, width., not 0"),
        ({"output_size": 7.0}, "output_size must be a positive integer or .height, width., not 7.0"),
        ({"output_size": None}, "output_size must be .* not None"),
        ({"sampling_ratio": 2.5}, "sampling_ratio must be an integer of at most 4096, not 2.5"),
        ({"sampling_ratio": 2**31}, "sampling_ratio must be an integer of at most 4096"),
        ({"batch_index": INDEX.numpy()}, "batch_index must be a torch.Tensor, not ndarray"),
        ({"features": FEATURES.numpy()}, "features must be a torch.Tensor, not ndarray"),
        ({"output_size": (3, 3, 3)}, "output_size must be"),
        ({"spatial_scale": NAN}, "spatial scales must be positive numbers"),
        ({"spatial_scale": 0.0}, "spatial scales must be positive numbers"),
    ],
)
def test_errors_of_roi_align(change, message):
    arguments = {"features": FEATURES, "rois": ROIS, "batch_index": INDEX, "output_size": 7} | change
    with pytest.raises(ValueError, match=message):
        roi_align(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "features must be 1 to 8 feature maps, not 0"),
        ({"features": [FEATURES] * 9}, "not 9"),
        ({"features": [FEATURES, FEATURES[:, :2]]}, r"must agree in B, C and dtype; .*\[2, 3, 8, 8\].*\[2, 2, 8, 8\]"),
        ({"features": [FEATURES, FEATURES.double()]}, "must agree in B, C and dtype"),
        ({"levels": INDEX + 2}, r"levels must lie in \[0, 2\), but goes from 2 to 2; there are 2 levels"),
        ({"levels": INDEX[:1]}, "levels must be integers"),
        ({"spatial_scales": [0.5]}, "spatial_scales has 1 numbers for 2 feature maps"),
    ],
)
def test_errors_of_pyramid_roi_align(change, message):
    arguments = {"features": [FEATURES, FEATURES], "rois": ROIS, "batch_index": INDEX, "levels": INDEX}
    arguments |= {"output_size": 7, "spatial_scales": [0.5, 0.25]} | change
    with pytest.raises(ValueError, match=message):
        pyramid_roi_align(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": FEATURES[0]}, "image must be floating"),
        ({"boxes": torch.zeros(4, 3)}, "boxes must be floating"),
        ({"batch_index": INDEX + 5}, "goes from 5 to 5"),
        ({"crop_size": (7, -1)}, "crop_size must be"),
        ({"extrapolation_value": INF}, "extrapolation_value must be finite, not inf"),
    ],
)
def test_errors_of_crop_and_resize(change, message):
    arguments = {"image": FEATURES, "boxes": ROIS, "batch_index": INDEX, "crop_size": 7} | change
    with pytest.raises(ValueError, match=message):
        crop_and_resize(**arguments)


@needs_cuda
def test_no_host_synchronisation_on_cuda():
    features = torch.ones(2, 8, 16, 16, device="cuda").requires_grad_()
    rois, index = torch.ones(3, 4, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")
    roi_align(features, rois, index, 7).sum().backward()  # what the first call alone has to wait for
    with host_waits() as waits:
        pyramid_roi_align([features, features], rois, index, index, 7, [0.5, 0.25]).sum().backward()
        crop_and_resize(features, rois, index, 7).sum().backward()
    assert waits == []


@needs_cuda
def test_an_image_that_does_not_exist_pools_to_zeros_on_cuda():
    features, rois = torch.ones(2, 4, 8, 8, device="cuda"), torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3, device="cuda")
    pooled = roi_align(features, rois, torch.tensor([0, -1, 2], device="cuda"), 2)
    assert pooled.flatten(1).sum(1).tolist() == [16.0, 0.0, 0.0]


############################################################
#  crop_and_resize from a pyramid
############################################################


def pyramid_boxes(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised boxes, some out of the image, with images (of 2) and levels (of 3)."""
    boxes, index = random_rois(count, 2, 1.0, seed)
    return boxes, index, torch.arange(count) % 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_pyramid_crop_is_each_levels_crop(count, layout, device):
    features = [random_features(2, 5, side, side + 3, seed=side, layout=layout).to(device) for side in (16, 8, 4)]
    boxes, index, levels = (tensor.to(device) for tensor in pyramid_boxes(count))
    crops = pyramid_crop_and_resize(features, boxes, index, levels, (7, 5))
    assert crops.shape == (count, 5, 7, 5)
    for i in range(count):
        one = crop_and_resize(features[int(levels[i])], boxes[i : i + 1], index[i : i + 1], (7, 5))
        assert torch.equal(crops[i], one[0])
    expected = reference.pyramid_crop_and_resize(features, boxes, index, levels, (7, 5), 0.0)
    torch.testing.assert_close(crops, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pyramid_crop_gradient(layout, device):
    boxes, index, levels = (tensor.to(device) for tensor in pyramid_boxes(20))
    features = [random_features(2, 5, side, side, seed=side, layout=layout).to(device) for side in (16, 8, 4)]
    features = [feature.requires_grad_() for feature in features]
    crops = pyramid_crop_and_resize(features, boxes, index, levels, 6)
    weights = torch.randn(crops.shape, generator=torch.Generator().manual_seed(1)).to(device)
    grads = torch.autograd.grad((crops * weights).sum(), features)
    for level, (feature, grad) in enumerate(zip(features, grads, strict=True)):
        own = levels == level
        one = crop_and_resize(feature, boxes[own], index[own], 6)
        (expected,) = torch.autograd.grad((one * weights[own]).sum(), feature)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


def test_pyramid_crop_gradcheck_and_opcheck():
    boxes, index, levels = pyramid_boxes(6)
    wide = [random_features(2, 2, side, side, seed=side, dtype=torch.float64).requires_grad_() for side in (6, 5, 4)]
    assert torch.autograd.gradcheck(
        lambda *features: pyramid_crop_and_resize(features, boxes.double(), index, levels, 3), wide
    )
    features = [random_features(2, 2, side, side, seed=side).requires_grad_() for side in (6, 5, 4)]
    arguments = (features, boxes, index, levels, [3, 3], [1.0] * 3, 1, False, True, 0.0)
    torch.library.opcheck(roi_pool, arguments)


def test_pyramid_crop_refuses():
    features = [random_features(1, 2, 8, 8), random_features(1, 2, 4, 4)]
    boxes, index = torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"levels must lie in \[0, 2\)"):
        pyramid_crop_and_resize(features, boxes, index, index + 2, 7)
    with pytest.raises(ValueError, match="levels must be integers"):
        pyramid_crop_and_resize(features, boxes, index, index.float(), 7)
    with pytest.raises(ValueError, match="crop_size"):
        pyramid_crop_and_resize(features, boxes, index, index, 0)


############################################################
#  What anyone may call
############################################################


def test_the_op_believes_nothing():
    """Kernels read as many numbers as shapes and dtypes say. Public functions convert; the op itself refuses."""
    maps, rois, index = [torch.ones(1, 2, 4, 4)], torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0])
    rule = ([2, 2], [1.0], 0, True, False, 0.0)
    pool, spread = torch.ops.maskscoring.roi_pool, torch.ops.maskscoring.roi_pool_backward
    assert pool(maps, rois, index, None, *rule).shape == (1, 2, 2, 2)
    for arguments, message in (
        ((maps, rois.double(), index, None, *rule), "rois of the op must be torch.float32"),
        ((maps, rois[:, :3], index, None, *rule), r"rois must be floating \[R"),
        ((maps, rois, index.int(), None, *rule), "batch_index of the op must be int64"),
        ((maps, rois, index, index.int(), *rule), "levels of the op must be int64"),
        ((maps, rois, index[:0], None, *rule), r"batch_index must be integers \[R\]"),
        ((maps, rois, index, index + 1, *rule), r"levels must lie in \[0, 1\)"),
        (([], rois, index, None, *rule), "features must be 1 to 8 feature maps, not 0"),
        (([*maps, torch.ones(1, 3, 4, 4)], rois, index, None, *rule), "features must agree in B, C and dtype"),
        ((maps, rois, index, None, [2], *rule[1:]), "output_size must be"),
        ((maps, rois, index, None, [2**62, 2**62], *rule[1:]), "output_size must be"),
        ((maps, rois, index, None, [2**24, 2**24], *rule[1:]), "output_size would make a tensor .* too large"),
        ((maps, rois, index, None, [2, 2], [1.0], 2**62, True, False, 0.0), "sampling_ratio must be"),
        ((maps, rois, index, None, [2, 2], [1.0], 0, True, False, 0.5), "outside of the op must be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pool(*arguments)
    grad, rest = torch.ones(1, 2, 2, 2), ([1.0], 0, True, False, False)
    assert spread(grad, rois, index, None, 1, [4, 4], *rest)[0].shape == (1, 2, 4, 4)
    for arguments, message in (
        ((grad, rois, index, index + 1, 1, [4, 4], *rest), r"levels must lie in \[0, 1\)"),
        ((grad, rois, index, None, 0, [4, 4], *rest), r"batch_index must lie in \[0, 0\)"),
        ((grad, rois, index, None, -1, [4, 4], *rest), "images must be a number of at least 0"),
        ((grad, rois, index, None, 1, [4], *rest), "sizes must be the heights and widths of 1 to 8 maps"),
        ((grad, rois, index, None, 1, [4, 4] * 9, *rest), "sizes must be the heights and widths of 1 to 8 maps"),
        ((grad, rois, index, None, 2**31, [2**20, 4], *rest), "sizes would make a tensor .* too large"),
        ((grad[0], rois, index, None, 1, [4, 4], *rest), r"grad must be floating .* \[2, 2, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            spread(*arguments)


LITTLE_MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
import torch, roialign
from pathlib import Path

torch.set_num_threads(2)
rois, index = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0])
roialign.roi_align(torch.ones(1, 1, 4, 4), rois, index, 2)  # imports what the first call needs
masks = roialign.MaskCrops(torch.ones(4, dtype=torch.uint8), *torch.tensor([[0], [2], [0], [4]]).unbind())
masks = masks._replace(**{{name: torch.tensor([[2, 2]]) for name in ("sizes", "origins", "canvases")}})
probs = torch.ones(1, 1, 1 << 24)
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (160 << 20), -1))  # enough for results of 64 MB, not for tables
for call in (
    lambda: roialign.roi_align(torch.ones(1, 1, 4, 4), rois, index, (1, 1 << 24)),
    lambda: roialign.crop_masks(masks, rois, index, (1, 1 << 24)),
    lambda: roialign.paste_rles(probs, rois, (9, 9), "centres"),
    lambda: roialign.paste_masks(probs, rois, (9, 9), "resize"),
):
    try:
        call()
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(not native.is_native("roialign", "cpu"), reason="the reference runs")
@pytest.mark.skipif(native.sanitizing(), reason="the sanitizer itself needs memory")
def test_kernels_that_run_out_of_memory_say_so():
    """They allocate in OpenMP's regions, which no exception may leave: the process would end."""
    code = LITTLE_MEMORY.format(root=str(native.ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["RoI pooling ran out of memory; pool fewer RoIs at a time, or to a smaller size"] * 2
    assert lines[2:] == ["pasting of 1 masks ran out of memory; paste fewer at a time"] * 2

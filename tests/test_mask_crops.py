"""Masks under RoIs: against roi_align of their canvases, a loop in numpy, and cases done by hand."""

import numpy as np
import pytest
import torch
from conftest import DEVICES
from helpers import INF, NAN, SPECIAL_ROIS, make_masks, random_masks, random_rois
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import native
import roialign
from roialign import MaskCrops, crop_masks, mask_areas, reference, roi_align


def paint(masks: MaskCrops, i: int) -> Tensor:
    """The whole canvas [height, width] of mask i, in float32."""
    (h, w), (y, x), offset = masks.sizes[i].tolist(), masks.origins[i].tolist(), int(masks.offsets[i])
    canvas = torch.zeros(masks.canvases[i].tolist())
    canvas[y : y + h, x : x + w] = masks.pixels[offset : offset + h * w].view(h, w)
    return canvas


def move(masks: MaskCrops, device: str) -> MaskCrops:
    return MaskCrops(*[field.to(device) for field in masks])


def align_canvases(masks: MaskCrops, rois: Tensor, mask_index: Tensor, size, device: str) -> Tensor:
    """What crop_masks stands for: roi_align of each RoI's canvas."""
    crops = torch.zeros(len(rois), *roialign._pair("size", size))
    for i in range(len(masks.offsets)):
        own = mask_index == i
        canvas, none = paint(masks, i)[None, None].to(device), torch.zeros(int(own.sum()), dtype=torch.int64)
        crops[own] = roi_align(canvas, rois[own].to(device), none.to(device), size)[:, 0].cpu()
    return crops


def align_in_numpy(canvas: np.ndarray, roi: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    """RoIAlign of one mask, sample by sample in float32: mmcv's roi_align with aligned=True and sampling_ratio 0."""
    one, half = np.float32(1), np.float32(0.5)
    starts, steps, counts = [], [], []
    for axis in range(2):
        starts.append(roi[axis] - half)
        steps.append((roi[axis + 2] - half - starts[axis]) / np.float32(bins[axis]))
        counts.append(max(int(np.ceil(steps[axis])), 0))

    def cells(axis: int, bin_number: int, i: int) -> tuple:
        """((cell, weight), (cell, weight)) of a sample, or nothing if it lies outside the canvas."""
        step = steps[axis]
        at = starts[axis] + np.float32(bin_number) * step + (np.float32(i) + half) * step / np.float32(counts[axis])
        if at < -1 or at > canvas.shape[axis]:
            return ()
        low = int(max(at, 0))
        if low >= canvas.shape[axis] - 1:
            return ((canvas.shape[axis] - 1, one), (canvas.shape[axis] - 1, one * 0))
        weight = np.float32(max(at, np.float32(0))) - np.float32(low)
        return ((low, one - weight), (low + 1, weight))

    result = np.zeros(bins, np.float32)
    for by, bx in np.ndindex(*bins):
        for iy, ix in np.ndindex(*counts):
            sample = np.float32(0)
            for y, y_weight in cells(0, by, iy):
                for x, x_weight in cells(1, bx, ix):
                    sample = sample + y_weight * x_weight * canvas[y, x]
            result[by, bx] += sample
    return result / np.float32(max(counts[0] * counts[1], 1))


############################################################
#  By hand
############################################################


@pytest.mark.parametrize("device", DEVICES)
def test_crop_masks_by_hand(device):
    """A crop of 2 x 3 at (1, 1) of a canvas of 4 x 5; each bin is a pixel, or four of them."""
    masks = move(make_masks([torch.tensor([[1, 0, 1], [1, 1, 0]])], [(1, 1)], [(4, 5)]), device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    pixels = crop_masks(masks, torch.tensor([[0.0, 0.0, 4.0, 5.0]], device=device), index, (4, 5))
    assert pixels.tolist() == [[[0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]]
    # Each bin takes 2 x 2 samples on the pixels' centres.
    quads = crop_masks(masks, torch.tensor([[0.0, 0.0, 4.0, 4.0]], device=device), index, 2)
    assert quads.tolist() == [[[0.25, 0.25], [0.25, 0.25]]]
    # One sample, on the corner that (1, 1), (1, 2), (2, 1) and (2, 2) share.
    assert crop_masks(masks, torch.tensor([[1.5, 1.5, 2.5, 2.5]], device=device), index, 1).item() == 0.75
    # Column 3 ends at 4; a sample a quarter to the right of its centre sees three quarters of it.
    assert crop_masks(masks, torch.tensor([[1.0, 3.25, 2.0, 4.25]], device=device), index, 1).item() == 0.75


@pytest.mark.parametrize("device", DEVICES)
def test_a_mask_at_the_edge_is_extended_as_a_feature_map_is(device):
    """Positions down to -1 and up to the canvas's size take the first or last pixel; those beyond are zeros."""
    masks = move(make_masks([torch.ones(2, 2)], [(0, 0)], [(2, 2)]), device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    crop = crop_masks(masks, torch.tensor([[-2.0, 0.0, 4.0, 2.0]], device=device), index, (6, 2))
    assert crop[0].tolist() == [[0, 0], [1, 1], [1, 1], [1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_mask_areas_by_hand(device):
    masks = make_masks([torch.tensor([[1, 0, 1], [1, 1, 0]]), torch.ones(3, 0)], [(1, 1), (0, 0)], [(4, 5), (4, 5)])
    boxes = {
        (0.0, 0.0, 4.0, 5.0): 4,
        (-INF, -INF, INF, INF): 4,
        (1.0, 1.0, 2.0, 4.0): 2,  # the first row
        (2.0, 1.0, 3.0, 2.0): 1,
        (1.5, 1.25, 2.25, 2.5): 0.5 * 0.75 + 0.25 * (0.75 + 0.5),
        (1.25, 3.25, 1.5, 3.5): 0.0625,  # within one pixel
        (3.0, 0.0, 9.0, 9.0): 0,
        (2.0, 2.0, 2.0, 3.0): 0,
        (3.0, 3.0, 1.0, 1.0): 0,
        (NAN, 0.0, 4.0, 5.0): 0,
        (0.0, 0.0, 4.0, NAN): 0,
    }
    index = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    arguments = torch.tensor(list(boxes), device=device), index
    assert mask_areas(move(masks, device), *arguments).tolist() == list(boxes.values())
    assert reference.mask_areas(*move(masks, device), *arguments).tolist() == list(boxes.values())
    assert not mask_areas(move(masks, device), arguments[0], index + 1).any()


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_outside_the_canvas_does_not_count(device):
    masks = make_masks([torch.ones(4, 4)] * 2, [(-1, -2), (2, 1)], [(5, 5), (5, 5)])
    cut = make_masks([torch.ones(3, 2), torch.ones(3, 4)], [(0, 0), (2, 1)], [(5, 5), (5, 5)])
    rois, index = random_rois(40, 6.0).to(device), (torch.arange(40) % 2).to(device)
    assert torch.equal(crop_masks(move(masks, device), rois, index, 3), crop_masks(move(cut, device), rois, index, 3))
    torch.testing.assert_close(mask_areas(move(masks, device), rois, index), mask_areas(move(cut, device), rois, index))
    whole = torch.tensor([[-9.0, -9.0, 9.0, 9.0]] * 2, device=device)
    assert mask_areas(move(masks, device), whole, index[:2]).tolist() == [6, 12]
    assert reference.mask_areas(*move(masks, device), whole, index[:2]).tolist() == [6, 12]


############################################################
#  Against roi_align and a loop
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, (3, 2), 14, 16, 28, (5, 33)])  # a SIMD block has 16 bins
def test_crops_are_those_of_the_canvas_to_the_bit(size, device):
    masks = random_masks(12)
    rois = torch.cat([SPECIAL_ROIS, *[random_rois(60, scale, seed=int(scale)) for scale in (5.0, 40.0, 200.0)]])
    index = torch.randint(0, 12, (len(rois),), generator=torch.Generator().manual_seed(1))
    crops = crop_masks(move(masks, device), rois.to(device), index.to(device), size).cpu()
    expected = align_canvases(masks, rois, index, size, device)
    if native.is_native("roialign", device):
        assert torch.equal(crops, expected)
    else:  # roi_align's reference sums in another order
        torch.testing.assert_close(crops, expected, rtol=1e-5, atol=1e-6)
    assert expected.mean() > 0.05  # they meet masks, and not only those
    assert (expected == 0).any()


def test_crops_are_those_of_a_loop_to_the_bit():
    masks, rois = random_masks(6, seed=3, largest=12), random_rois(30, 14.0)
    index = torch.arange(30) % 6
    for size in ((2, 3), (4, 1)):
        pairs = zip(rois, index.tolist(), strict=True)
        expected = [align_in_numpy(paint(masks, i).numpy(), roi.numpy(), size) for roi, i in pairs]
        for crops in (crop_masks(masks, rois, index, size), reference.crop_masks(*masks, rois, index, size)):
            assert torch.equal(crops, torch.from_numpy(np.stack(expected)))


def test_a_crop_larger_than_a_simd_block_of_samples():
    """One mask of 700 x 900 under RoIs with up to 30 samples a bin and axis."""
    circle = (torch.arange(700)[:, None] - 350) ** 2 + (torch.arange(900) - 450) ** 2 < 300**2
    masks = make_masks([circle], [(20, 100)], [(800, 1088)])
    rois = torch.tensor([[0.0, 0.0, 800.0, 1088.0], [-31.2, 50.7, 700.1, 800.9], [300.0, 500.0, 340.5, 540.25]])
    index = torch.zeros(3, dtype=torch.int64)
    crops = crop_masks(masks, rois, index, 28)
    torch.testing.assert_close(crops, align_canvases(masks, rois, index, 28, "cpu"), rtol=1e-5, atol=1e-6)
    assert torch.equal(crops, reference.crop_masks(*masks, rois, index, (28, 28)))


coordinates = st.one_of(
    st.integers(-12, 40).map(float),
    st.integers(-40, 80).map(lambda quarters: quarters / 4),
    st.floats(-50, 50, width=32),
    st.sampled_from([NAN, INF, -INF, 1e9, -1e9, 3e38, -3e38, 1e-30]),
)


@given(
    boxes=st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float32, (n, 4), elements=coordinates)),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([(1, 1), (3, 2), (2, 17)]),
)
def test_any_boxes_match_the_canvas(boxes, count, seed, size):
    masks, boxes = random_masks(count, seed, largest=20), torch.from_numpy(boxes)
    index = torch.randint(0, count, (len(boxes),), generator=torch.Generator().manual_seed(seed))
    crops = crop_masks(masks, boxes, index, size)
    torch.testing.assert_close(crops, align_canvases(masks, boxes, index, size, "cpu"), rtol=1e-4, atol=1e-6)
    assert torch.equal(crops, reference.crop_masks(*masks, boxes, index, size))
    areas = mask_areas(masks, boxes, index)
    expected = [float(area_of(paint(masks, i), box)) for box, i in zip(boxes, index.tolist(), strict=True)]
    torch.testing.assert_close(areas, torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(areas, reference.mask_areas(*masks, boxes, index), rtol=1e-6, atol=0)


def area_of(canvas: Tensor, box: Tensor) -> Tensor:
    """mask_areas of a whole canvas, in float64."""
    shares = []
    for axis, cells in enumerate(canvas.shape):
        cell = torch.arange(cells, dtype=torch.float64)
        low, high = box[axis].double(), box[axis + 2].double()
        shares.append((torch.minimum(cell + 1, high) - torch.maximum(cell, low)).clamp(min=0).nan_to_num(0))
    return shares[0] @ canvas.double() @ shares[1]


@pytest.mark.parametrize("device", DEVICES)
def test_areas_of_integer_boxes_count_pixels(device):
    masks = random_masks(300, seed=5)
    generator = torch.Generator().manual_seed(6)
    boxes = torch.randint(-3, 20, (500, 4), generator=generator)
    boxes[:, 2:] += boxes[:, :2]  # some upside down
    index = torch.randint(0, 300, (500,), generator=generator)
    expected = [
        float(paint(masks, i)[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)].sum())
        for (y1, x1, y2, x2), i in zip(boxes.tolist(), index.tolist(), strict=True)
    ]
    arguments = move(masks, device), boxes.float().to(device), index.to(device)
    assert mask_areas(*arguments).tolist() == expected
    assert reference.mask_areas(*arguments[0], *arguments[1:]).tolist() == expected
    assert sum(area > 0 for area in expected) > 50


@pytest.mark.parametrize("device", DEVICES)
def test_every_number_of_threads_gives_the_same(device):
    masks, rois = move(random_masks(20), device), random_rois(64, 40.0).to(device)
    index = (torch.arange(64) % 20).to(device)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append((crop_masks(masks, rois, index, 14), mask_areas(masks, rois, index)))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


############################################################
#  Nothing to do
############################################################


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 3])
def test_no_rois(count, device):
    masks, index = move(random_masks(count), device), torch.zeros(0, dtype=torch.int64, device=device)
    rois = torch.zeros(0, 4, device=device)
    for crops in (crop_masks(masks, rois, index, (7, 5)), reference.crop_masks(*masks, rois, index, (7, 5))):
        assert crops.shape == (0, 7, 5)
    for areas in (mask_areas(masks, rois, index), reference.mask_areas(*masks, rois, index)):
        assert areas.shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_without_pixels(device):
    """Alone, and after a mask whose pixels they must not take for theirs; on a canvas without pixels, too."""
    nothing = [torch.ones(0, 0), torch.ones(0, 4), torch.ones(4, 0)]
    rois = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 4, device=device)
    index = torch.arange(4, device=device)
    for first in (torch.ones(3, 3), torch.ones(0, 3)):
        masks = move(make_masks([first, *nothing], [(0, 0)] * 4, [(9, 9), (9, 9), (9, 9), (0, 9)]), device)
        for crops in (crop_masks(masks, rois, index, 3), reference.crop_masks(*masks, rois, index, (3, 3))):
            assert crops.sum(dim=(1, 2)).tolist() == [1.0 if first.numel() else 0.0, 0, 0, 0]
        for areas in (mask_areas(masks, rois, index), reference.mask_areas(*masks, rois, index)):
            assert areas.tolist() == [first.numel(), 0, 0, 0]


############################################################
#  As torch ops
############################################################


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    masks, rois, index = move(random_masks(4), device), random_rois(6, 30.0).to(device), torch.arange(6) % 4
    index = index.to(device)
    torch.library.opcheck(torch.ops.maskscoring.crop_masks.default, (*masks, rois, index, [3, 2]))
    torch.library.opcheck(torch.ops.maskscoring.mask_areas.default, (*masks, rois, index))


@pytest.mark.parametrize("device", DEVICES)
def test_any_layout_dtype_and_no_gradient(device):
    masks, rois, index = random_masks(4), random_rois(6, 30.0), torch.arange(6) % 4
    expected = crop_masks(masks, rois, index, 3), mask_areas(masks, rois, index)
    strided = MaskCrops(*[torch.stack([field, field], dim=-1)[..., 0].to(device) for field in masks])
    boxes = torch.stack([rois, rois], dim=-1)[..., 0].double().to(device).requires_grad_()
    narrow = index.to(torch.int32).to(device)
    crops, areas = crop_masks(strided, boxes, narrow, 3), mask_areas(strided, boxes, narrow)
    for actual, wanted in ((crops, expected[0]), (areas, expected[1])):
        assert torch.equal(actual.cpu(), wanted)
        assert actual.dtype == torch.float32
        assert not actual.requires_grad


def test_compiles_as_one_graph():
    torch.compiler.reset()

    def both(masks, rois, index):
        return crop_masks(masks, rois, index, 3).sum(dim=(1, 2)) + mask_areas(masks, rois, index)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for count in (5, 9):
        masks, rois, index = random_masks(count), random_rois(count, 30.0), torch.arange(count)
        torch.testing.assert_close(compiled(masks, rois, index), both(masks, rois, index))


############################################################
#  Errors
############################################################


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(3, 3, dtype=torch.uint8)}, r"masks\.pixels must be uint8 .* not torch\.uint8 \[3, 3\]"),
        ({"pixels": torch.zeros(9)}, r"masks\.pixels must be uint8 .* not torch\.float32 \[9\]"),
        ({"pixels": np.zeros(9, np.uint8)}, r"masks\.pixels must be a torch\.Tensor, not ndarray"),
        ({"offsets": torch.zeros(2, 1, dtype=torch.int64)}, r"masks\.offsets must be int64 \[2\], .* \[2, 1\]"),
        ({"sizes": torch.zeros(3, 2, dtype=torch.int64)}, r"masks\.sizes must be int64 \[2, 2\], .* \[3, 2\]"),
        ({"origins": torch.zeros(2, 2)}, r"masks\.origins must be int64 \[2, 2\], .* torch\.float32"),
        ({"canvases": torch.zeros(2, 4, dtype=torch.int64)}, r"masks\.canvases must be int64 \[2, 2\], .* \[2, 4\]"),
        ({"offsets": torch.tensor([0, 5])}, r"in the 8 pixels of masks, but mask 1 has offset 5 and size \[2, 2\]"),
        ({"offsets": torch.tensor([-1, 4])}, r"mask 0 has offset -1"),
        ({"sizes": torch.tensor([[2, 2], [-2, -2]])}, r"mask 1 has offset 4 and size \[-2, -2\]"),
        ({"sizes": torch.tensor([[2, 2], [3, 2]])}, r"mask 1 has offset 4 and size \[3, 2\]"),
        ({"sizes": torch.tensor([[2, 2], [2**24, 2**24]])}, r"mask 1 has offset 4 and size \[16777216, 16777216\]"),
        # Their product is 2^64, which is 0 in 64 bits.
        ({"sizes": torch.tensor([[2, 2], [2**32, 2**32]])}, r"sizes, .* at most 16777216, .* from 0 to 4294967296"),
        ({"offsets": torch.tensor([0, 2**62])}, r"mask 1 has offset 4611686018427387904"),
        ({"origins": torch.tensor([[0, 0], [0, -(2**63)]])}, "origins .* at most 16777216"),
        ({"origins": torch.tensor([[0, 0], [2**62, 0]])}, "origins .* at most 16777216"),
        ({"canvases": torch.tensor([[4, 4], [-1, 4]])}, "canvases at least 0"),
        ({"canvases": torch.tensor([[4, 4], [4, 2**31]])}, "canvases .* at most 16777216"),
    ],
)
def test_refuses_masks(change, message):
    masks = make_masks([torch.ones(2, 2)] * 2, [(0, 0)] * 2, [(4, 4)] * 2)._replace(**change)
    rois, index = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        crop_masks(masks, rois, index, 3)
    with pytest.raises(ValueError, match=message):
        mask_areas(masks, rois, index)


def test_refuses_other_arguments():
    masks, rois, index = random_masks(2), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="masks must be MaskCrops, not tuple"):
        crop_masks(tuple(masks), rois, index, 3)
    with pytest.raises(ValueError, match=r"rois must be floating \[P, .*, not torch\.int64 \[1, 4\]"):
        crop_masks(masks, rois.long(), index, 3)
    with pytest.raises(ValueError, match=r"boxes must be floating \[P, .*, not torch\.float32 \[4\]"):
        mask_areas(masks, rois[0], index)
    with pytest.raises(ValueError, match=r"mask_index must be integers \[P\], one for each of 1 rois, .* \[2\]"):
        crop_masks(masks, rois, torch.zeros(2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"mask_index must be integers .* not torch\.float32"):
        mask_areas(masks, rois, torch.zeros(1))
    with pytest.raises(ValueError, match="output_size must be a positive integer"):
        crop_masks(masks, rois, index, (3, 0))
    with pytest.raises(ValueError, match=r"must be on one device, not .*cpu.*meta"):
        crop_masks(masks, rois.to("meta"), index, 3)
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=r"mask_index must lie in \[0, 2\), .* there are 2 masks"):
            crop_masks(masks, rois, index + wrong, 3)
    with pytest.raises(ValueError, match=r"mask_index must lie in \[0, 0\), .* there are 0 masks"):
        mask_areas(random_masks(0), rois, index)

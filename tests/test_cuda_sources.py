"""The CUDA sources without a GPU: they compile for every architecture, and their kernels, run on a CPU by
cuda_emulator.h, give what the reference gives. On a GPU, test_nms.py and test_roialign.py run the real thing."""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import waiting
from helpers import SPECIAL_ROIS, make_masks, random_masks, random_rois

import native
import nms
import roialign
from nms import reference as nms_reference
from roialign import reference as roi_reference

HERE = Path(__file__).parent
# NAME<...><<<GRID, BLOCK, SHARED, STREAM>>>(ARGUMENTS);
LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)<<<(.+?)>>>\((.+?)\);")
DYNAMIC_SHARED = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


@pytest.fixture(scope="module")
def emulate(tmp_path_factory):
    """emulate("nms"): the package's CUDA library, compiled for the CPU."""
    if not native.find_cxx():
        pytest.skip("no C++ compiler")

    def build(package: str) -> ctypes.CDLL:
        (source,) = (native.ROOT / package / "src").glob("*.cu")
        text = re.sub(r"#include <cuda\w*\.h>", '#include "cuda_emulator.h"', source.read_text())
        text = LAUNCH.sub(r"emulator::launch(\2, [&] { \1(\3); });", text)
        text = DYNAMIC_SHARED.sub(r"\1* \2 = reinterpret_cast<\1*>(emulator::dynamic_shared.data());", text)
        assert "<<<" not in text
        folder = tmp_path_factory.mktemp(package)
        (folder / "kernels.cpp").write_text(text)
        library = folder / "kernels.so"
        flags = ["-O1", "-std=c++20", "-pthread", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
        # A misaligned pack of channels, which a GPU refuses to load, ends the process.
        flags += ["-fsanitize=alignment", "-fno-sanitize-recover=all"]
        include = [f"-I{source.parent}", f"-I{HERE}"]
        subprocess.run([*native.find_cxx(), *flags, *include, "-o", library, folder / "kernels.cpp"], check=True)
        return ctypes.CDLL(str(library))

    return build


############################################################
#  Compiled by nvcc
############################################################


@pytest.mark.skipif(not native.find_nvcc(), reason="no nvcc")
@pytest.mark.skipif("CUDA_ARCH" in os.environ, reason="built for CUDA_ARCH only")
@pytest.mark.parametrize(("package", "function"), [("nms", "nms_cuda"), ("roialign", "roi_pool_cuda")])
def test_library_is_built_for_all_major_architectures(package, function):
    path = native.library_path(package, "cuda")
    assert path.exists(), "make kernels builds it"
    assert not native.is_stale(package, "cuda")
    assert hasattr(ctypes.CDLL(str(path)), function)  # loads without a GPU and without libcuda
    known = subprocess.run([*native.find_nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    majors = {int(arch) // 10 for arch in re.findall(r"compute_(\d+)", known)}
    assert {int(arch) // 10 for arch in re.findall(rb"sm_(\d+)", path.read_bytes())} == majors


############################################################
#  Run by the emulator
############################################################


@pytest.fixture(scope="module")
def emulated_nms(emulate):
    return emulate("nms")


def nms_boxes(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores with ties, some of them not finite."""
    generator = torch.Generator().manual_seed(n)
    boxes = torch.rand(n, 4, generator=generator) * 30
    boxes[:, 2:] += boxes[:, :2]
    boxes[::17, 1] = float("nan")
    scores = torch.randint(0, 50, (n,), generator=generator) / 50
    scores[5::23], scores[7::29] = float("inf"), float("nan")
    return boxes, scores


@pytest.mark.parametrize(("n", "group_count"), [(0, 1), (1, 1), (63, None), (64, 1), (65, None), (200, None), (150, 7)])
def test_emulated_nms(emulated_nms, n, group_count):
    boxes, scores = nms_boxes(n)
    generator = torch.Generator().manual_seed(n)
    groups = None if group_count is None else torch.randint(0, group_count, (n,), generator=generator) - 3
    for rule in ((0.3, None, None), (0.6, 11, None), (0.6, 11, 40)):
        expected = nms_reference.batched_nms(boxes, scores, groups, *rule)
        actual = nms._run_cuda(emulated_nms, boxes, scores, groups, *rule, None)
        assert actual.tolist() == expected.tolist()


# Groups of 64 and 65 boxes begin and end within a word, and touch a word more than they fill.
@pytest.mark.parametrize(("sizes", "max_boxes"), [([1, 64, 63, 2], 64), ([63, 65, 65], 65), ([40, 130], 129), ([9], 1)])
def test_emulated_nms_of_images(emulated_nms, sizes, max_boxes):
    groups = torch.repeat_interleave(torch.arange(-1, len(sizes) - 1), torch.tensor(sizes))
    boxes, scores = nms_boxes(len(groups))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    for images, groups_per_image, limit in ((1, len(sizes), 9), (2, 1, len(groups)), (4, 1, 0)):
        rule = (images, groups_per_image, 0.6, limit, max_boxes)
        expected = nms_reference.nms_of_images(boxes, scores, groups, *rule)
        with waiting.counted() as waits:
            actual = nms._run_cuda_of_images(emulated_nms, boxes, scores, groups, *rule, None)
        assert [column.tolist() for column in actual] == [column.tolist() for column in expected]
        assert waits == []


def test_the_workspace_of_nms_grows_with_the_largest_group(emulated_nms):
    """Words of 64 boxes in a row of it: those of a group, which may begin anywhere in the first."""
    span = emulated_nms.nms_span_cuda
    span.argtypes, span.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    assert [span(100_000, most) for most in (1, 2, 65, 66, 1000, 100_000, 2**63 - 1)] == [1, 2, 2, 3, 17, 1563, 1563]
    # Refused before anything is read.
    emulated_nms.nms_cuda.argtypes, emulated_nms.nms_cuda.restype = nms._NMS_CUDA, ctypes.c_char_p
    for n, most in ((385_025, 2**63 - 1), (10**9, 385_000)):
        error = emulated_nms.nms_cuda(*[None] * 4, n, 0, 0.5, most, 1, *[None] * 3)
        assert error == b"too many boxes in a group; keep the best by score first, or give max_boxes"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [8, 5])  # packs of four, and single channels
@pytest.mark.parametrize("crop", [False, True])
def test_emulated_roi_pooling(emulated_pool, crop, channels, dtype, layout):
    sizes = [9, 11] if crop else [9, 11, 5, 6]
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, *sizes[i : i + 2], generator=generator) for i in range(0, len(sizes), 2)]
    maps = [fmap.to(dtype).contiguous(memory_format=layout) for fmap in maps]
    rois = torch.rand(7, 4, generator=generator) * (0.6 if crop else 30)
    rois[:, 2:] += rois[:, :2]
    rois[3, 2], rois[4, 1] = float("nan"), -1e9
    index, levels = torch.arange(7) % 2, None if crop else torch.arange(7) // 2 % 2
    rule = ([3, 2], [0.25, 0.125][: len(maps)], 0, True, crop, 0.5 if crop else 0.0)
    tolerance = {"rtol": torch.finfo(dtype).eps * 4, "atol": 1e-5}

    pooled = roialign._forward(emulated_pool, maps, rois, index, levels, *rule)
    expected = roialign._pool_in_torch(maps, rois, index, levels, *rule)
    torch.testing.assert_close(pooled, expected, **tolerance)

    grad = torch.randn(pooled.shape, generator=generator).to(dtype)
    rest = (rois, index, levels, 2, sizes, *rule[1:5], layout == torch.channels_last)
    grads = roialign._backward(emulated_pool, grad, *rest)
    for actual, wanted in zip(grads, roialign._backward_in_torch(grad, *rest), strict=True):
        torch.testing.assert_close(actual, wanted, **tolerance)


@pytest.fixture(scope="module")
def emulated_roialign(emulate):
    return emulate("roialign")


@pytest.fixture(scope="module")
def emulated_pool(emulated_roialign):
    return roialign._cuda_pool(emulated_roialign, current_stream=lambda: None)


@pytest.mark.parametrize(("first", "count"), [(0, 8), (1, 8), (0, 12)])
def test_emulated_packs_are_aligned(emulated_pool, first, count):
    """Slices of the channels: with strides of 18, and from the second on, four channels are not aligned."""
    whole = torch.randn(1, 18, 9, 11, generator=torch.Generator().manual_seed(0))
    features = [whole.contiguous(memory_format=torch.channels_last)[:, first : first + count]]
    rois, index = torch.tensor([[1.0, 2.0, 7.0, 8.0]]), torch.tensor([0])
    rule = ([3, 2], [1.0], 2, True, False, 0.0)
    pooled = roialign._forward(emulated_pool, features, rois, index, None, *rule)
    torch.testing.assert_close(pooled, roialign._pool_in_torch(features, rois, index, None, *rule))


def test_emulated_roi_without_image_pools_to_zeros(emulated_pool):
    features, rois = [torch.ones(2, 4, 8, 8)], torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3)
    pooled = roialign._forward(
        emulated_pool, features, rois, torch.tensor([0, -1, 2]), None, [2, 2], [1.0], 2, True, False, 0.0
    )
    assert pooled.flatten(1).sum(1).tolist() == [16.0, 0.0, 0.0]
    expected = roi_reference.pyramid_roi_align(features, rois[:1], torch.tensor([0]), None, (2, 2), [1.0], 2, True)
    assert torch.equal(pooled[:1], expected)


def test_emulated_masks_under_rois(emulated_roialign):
    """400 bins fill more than a block; boxes of 300 columns more than its threads."""
    (_, crop), (_, add) = roialign._mask_kernels(emulated_roialign, "cuda", lambda: None)
    masks, rois = random_masks(9), torch.cat([SPECIAL_ROIS, random_rois(28, 40.0)])
    index = torch.arange(len(rois)) % 9
    for size in ([3, 2], [1, 10]):
        assert torch.equal(crop(*masks, rois, index, size), roi_reference.crop_masks(*masks, rois, index, size))
    wide = make_masks([torch.arange(1500).view(5, 300) % 3 == 0], [(1, 2)], [(8, 310)])
    for crops, boxes, own in ((masks, rois, index), (wide, rois * 9, index * 0)):
        torch.testing.assert_close(add(*crops, boxes, own), roi_reference.mask_areas(*crops, boxes, own))


def test_emulated_masks_that_do_not_exist_are_zeros(emulated_roialign):
    (_, crop), (_, add) = roialign._mask_kernels(emulated_roialign, "cuda", lambda: None)
    masks = make_masks([torch.ones(2, 2)] * 4, [(0, 0)] * 4, [(2, 2)] * 4)
    masks.offsets[1], masks.offsets[2], masks.sizes[3, 0] = -1, 13, -2
    rois, index = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 6), torch.tensor([0, 1, 2, 3, -1, 4])
    assert crop(*masks, rois, index, [1, 1]).flatten().tolist() == [1, 0, 0, 0, 0, 0]
    assert add(*masks, rois, index).tolist() == [4, 0, 0, 0, 0, 0]
    # Sizes whose product is 0 in 64 bits, and numbers whose sums overflow: no pixel is read.
    for field, numbers in (("sizes", [2**32, 2**32]), ("origins", [2**62, -(2**63)]), ("canvases", [2**62, -1])):
        masks = make_masks([torch.ones(2, 2)], [(0, 0)], [(2, 2)])
        getattr(masks, field)[0] = torch.tensor(numbers)
        assert crop(*masks, rois[:1], index[:1], [1, 1]).item() == 0
        assert add(*masks, rois[:1], index[:1]).item() == 0
    for function in (crop, add):
        size = ([1, 1],) if function is crop else ()
        assert len(function(*masks, rois[:0], index[:0], *size)) == 0

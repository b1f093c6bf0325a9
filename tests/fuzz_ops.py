"""Damaged arguments of the operators: through the public functions and through torch.ops.maskscoring.

A call gives what the reference in torch gives, or is refused in words. No kernel reads or writes beyond a tensor:
`make sanitize` runs this file on kernels that would notice.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import fuzz
from helpers import SPECIAL_ROIS, random_masks, random_rois
from torch import Tensor

import nms
import roialign
from nms import reference as nms_reference
from roialign import MaskCrops, paste

############################################################
#  Damage
############################################################

_NUMBERS = [-1, 0, 1, 3, 2.5, True, float("nan"), float("inf"), -float("inf"), 2**31, 2**32, 2**62, -(2**63), 1e300]
_FLOATS = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3.4e38, 1e-40, -0.0, 2.0**24, 1e9, -1e9]
_INTEGERS = [-1, 0, 1, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63), -(2**32)]
_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
_DTYPES += [torch.bool, torch.complex64, torch.float8_e4m3fn]


def damaged_tensor(tensor: Tensor, rng: np.random.Generator) -> Any:
    """The tensor with other values, dtype, shape, strides, device or type."""
    match rng.integers(10):
        case 0 | 1 | 2:
            if not tensor.numel() or tensor.is_meta or not isinstance(tensor, Tensor):
                return tensor
            tensor = tensor.clone()
            numbers = _FLOATS if tensor.is_floating_point() else _INTEGERS
            for _ in range(rng.integers(1, 4)):
                number = numbers[rng.integers(len(numbers))]
                with contextlib.suppress(RuntimeError):  # the number may be too large for the dtype
                    tensor.view(-1)[int(rng.integers(tensor.numel()))] = number
            return tensor
        case 3:
            return tensor.to(_DTYPES[rng.integers(len(_DTYPES))])
        case 4:
            shapes = [tensor[:0], tensor[:1], tensor[None], tensor.flatten(), tensor[..., :-1], tensor[..., :0]]
            shapes += [torch.cat([tensor, tensor]), tensor.transpose(0, -1), tensor.new_zeros(())]
            return shapes[rng.integers(len(shapes))]
        case 5:
            return torch.stack([tensor, tensor], -1)[..., 0]  # the same values, not contiguous
        case 6:
            return tensor[:1].expand_as(tensor) if len(tensor) else tensor  # strides of 0
        case 7:
            return tensor.flatten()[:1].expand(
                int(rng.choice([3, 2**33, 2**40])), *tensor.shape[1:-1], tensor.shape[-1]
            )
        case 8:
            return tensor.to("meta")
        case _:
            return [None, 3, [1, 2], np.zeros(3, np.float32)][rng.integers(4)]


def damage(arguments: list, rng: np.random.Generator) -> None:
    """Damages some of the arguments, in place."""
    places = []
    for i, argument in enumerate(arguments):
        places.append((arguments, i))
        if isinstance(argument, list):
            places += [(argument, k) for k in range(len(argument))]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        parent, key = places[rng.integers(len(places))]
        value = parent[key]
        if isinstance(value, Tensor) and value.ndim:
            with contextlib.suppress(RuntimeError, IndexError, NotImplementedError):  # some damage is not possible
                parent[key] = damaged_tensor(value, rng)
        elif isinstance(value, MaskCrops):
            field = value._fields[rng.integers(len(value._fields))]
            with contextlib.suppress(RuntimeError, IndexError, NotImplementedError):
                parent[key] = value._replace(**{field: damaged_tensor(getattr(value, field), rng)})
        elif isinstance(value, int | float):
            parent[key] = _NUMBERS[rng.integers(len(_NUMBERS))]
        elif isinstance(value, list):
            parent[key] = [[], value[:-1], value + value, value * 5][rng.integers(4)]


############################################################
#  Calls
############################################################


def features(rng: np.random.Generator, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
    batch, channels, dtype = int(rng.integers(1, 3)), int(rng.choice([1, 3, 8])), _DTYPES[rng.integers(4)]
    maps = [torch.randn(batch, channels, 9 >> i, 12 >> i, generator=generator).to(dtype) for i in range(count)]
    return [fmap.contiguous(memory_format=torch.channels_last) for fmap in maps] if rng.random() < 0.5 else maps


def boxes(rng: np.random.Generator, scale: float) -> Tensor:
    rois = random_rois(int(rng.integers(0, 7)), scale, int(rng.integers(1 << 30)))
    special = SPECIAL_ROIS[torch.from_numpy(rng.integers(0, len(SPECIAL_ROIS), 2))] * (scale / 40)
    return torch.cat([rois, special])


def indices(rng: np.random.Generator, count: int, limit: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, limit, count))


def pooling(rng: np.random.Generator) -> list:
    """Arguments of pyramid_roi_align."""
    maps = features(rng, int(rng.integers(1, 4)))
    rois = boxes(rng, 40.0)
    index, levels = indices(rng, len(rois), len(maps[0])), indices(rng, len(rois), len(maps))
    scales = [0.25 / 2**i for i in range(len(maps))]
    return [
        maps,
        rois,
        index,
        levels,
        [int(rng.integers(1, 6)), 3],
        scales,
        int(rng.integers(0, 3)),
        rng.random() < 0.5,
    ]


def one_map(rng: np.random.Generator) -> list:
    (fmap,), rois, index, _, size, (scale,), *rule = next(
        case for case in iter(lambda: pooling(rng), None) if len(case[0]) == 1
    )
    return [fmap, rois, index, size, scale, *rule]


def pool_op(rng: np.random.Generator) -> list:
    maps, rois, *rest = pooling(rng)
    wide = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
    crop = rng.random() < 0.5
    return [maps, rois.to(wide), *rest, crop, 0.5 * crop]


def backward_op(rng: np.random.Generator) -> list:
    maps, rois, index, levels, size, scales, ratio, aligned, crop, _ = pool_op(rng)
    sizes = [side for fmap in maps for side in fmap.shape[2:]]
    grad = torch.ones(len(rois), maps[0].shape[1], *size, dtype=maps[0].dtype)
    return [grad, rois, index, levels, len(maps[0]), sizes, scales, ratio, aligned, crop, rng.random() < 0.5]


def crop_call(rng: np.random.Generator) -> list:
    maps, rois, index, levels, size, *_ = pooling(rng)
    return [maps, rois / 40, index, levels, size]


def mask_call(rng: np.random.Generator) -> list:
    masks, rois = random_masks(int(rng.integers(1, 6)), int(rng.integers(1 << 30))), boxes(rng, 40.0)
    return [masks, rois, indices(rng, len(rois), len(masks.offsets))]


def mask_op(rng: np.random.Generator) -> list:
    masks, rois, index = mask_call(rng)
    return [*masks, rois, index]


def nms_call(rng: np.random.Generator) -> list:
    rois = boxes(rng, 40.0)
    scores = torch.from_numpy(rng.integers(0, 9, len(rois))).float() / 8
    return [rois, scores, indices(rng, len(rois), 3), float(rng.choice([0.0, 0.5, 1.0])), int(rng.integers(0, 9))]


def nms_of_images_call(rng: np.random.Generator) -> list:
    rois, scores, groups, threshold, limit = nms_call(rng)
    return [rois, scores, groups, 2, 2, threshold, min(limit, len(rois)), int(rng.integers(1, 9))]


def paste_call(rng: np.random.Generator) -> list:
    generator, rois = torch.Generator().manual_seed(int(rng.integers(1 << 30))), boxes(rng, 40.0)
    probs = torch.rand(len(rois), int(rng.choice([1, 5, 28])), 28, generator=generator)
    return [probs, rois, [int(rng.integers(0, 50)), 40], str(rng.choice(paste.PASTE_RULES))]


def crop_to_rle_call(rng: np.random.Generator) -> list:
    crop = torch.from_numpy(rng.random((int(rng.integers(0, 9)), 5)) < 0.5)
    return [int(rng.integers(0, 30)), int(rng.integers(0, 30)), crop, [30, 30]]


_OPS = torch.ops.maskscoring
# The name of each call: its arguments, the function, and what it refuses them as.
_POOLED = "features|image|rois|boxes|batch_index|levels|output_size|crop_size"
_POOLED += "|spatial|sampling_ratio|grad|sizes|images|outside"
_MASKS = "masks|rois|boxes|mask_index|output_size"
_OF_IMAGES = "boxes|scores|groups|images|groups_per_image|iou_threshold|limit|max_boxes"
CALLS: dict[str, tuple[Callable, Callable, str]] = {
    "roi_align": (one_map, roialign.roi_align, _POOLED),
    "pyramid_roi_align": (pooling, roialign.pyramid_roi_align, _POOLED),
    "pyramid_crop_and_resize": (crop_call, roialign.pyramid_crop_and_resize, _POOLED),
    "roi_pool": (pool_op, _OPS.roi_pool, _POOLED),
    "roi_pool_backward": (backward_op, _OPS.roi_pool_backward, _POOLED),
    "crop_masks": (lambda rng: [*mask_call(rng), [int(rng.integers(1, 20)), 2]], roialign.crop_masks, _MASKS),
    "mask_areas": (mask_call, roialign.mask_areas, _MASKS),
    "crop_masks op": (lambda rng: [*mask_op(rng), [3, int(rng.integers(1, 20))]], _OPS.crop_masks, _MASKS),
    "mask_areas op": (mask_op, _OPS.mask_areas, _MASKS),
    "batched_nms": (nms_call, nms.batched_nms, "boxes|scores|groups|iou_threshold|max_keep"),
    "nms_of_images": (nms_of_images_call, nms.nms_of_images, _OF_IMAGES),
    "nms_of_images op": (nms_of_images_call, _OPS.nms_of_images, _OF_IMAGES),
    "batched_nms op": (nms_call, _OPS.batched_nms, "boxes|scores|groups|iou_threshold|max_keep"),
    "paste_masks": (paste_call, roialign.paste_masks, "probs|boxes|image_shape|rule"),
    "paste_rles": (paste_call, roialign.paste_rles, "probs|boxes|image_shape|rule"),
    "crop_to_rle": (crop_to_rle_call, paste.crop_to_rle, "crop|image_shape"),
}
_NO_MEMORY = ("allocate", "Storage size calculation overflowed", "out of memory", "array is too big", "Maximum allowed")


def is_meta(argument: Any) -> bool:
    leaves = torch.utils._pytree.tree_leaves(argument)
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in leaves)


def attempt(function: Callable, arguments: list, words: str) -> tuple[Any, str]:
    """The result, or None and the message of a refusal. Raises every other error."""
    arguments = copy.copy(arguments)
    try:
        return function(*arguments), ""
    except MemoryError as error:
        return None, str(error) or "out of memory"
    except AttributeError as error:
        # None beside a tensor on meta: torch computes shapes, and takes None for a tensor.
        if "'NoneType' object" not in str(error) or not any(is_meta(argument) for argument in arguments):
            raise
        return None, "maskscoring::"
    except (ValueError, RuntimeError) as error:  # torch's dispatcher and its allocator raise the latter
        message = str(error)
        is_named = isinstance(error, ValueError) and any(word in message for word in words.split("|"))
        if not (is_named or "maskscoring::" in message or any(text in message for text in _NO_MEMORY)):
            raise
        return None, message


@contextlib.contextmanager
def in_reference() -> Iterator[None]:
    """A block in which the public functions run the references."""

    def suppress(*arguments):
        nms._check_op(*arguments)
        return nms_reference.batched_nms(*arguments)

    def suppress_of_images(*arguments):
        nms._check_op_of_images(*arguments)
        return nms_reference.nms_of_images(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "_nms_of_images", suppress_of_images)
        patch.setattr(roialign, "_roi_pool", roialign._pool_in_torch)
        patch.setattr(roialign, "_crop_masks", roialign._crop_masks_in_torch)
        patch.setattr(roialign, "_mask_areas", roialign._mask_areas_in_torch)
        patch.setattr(nms, "_batched_nms", suppress)
        patch.setattr(paste, "_library", None)
        yield


_OF_OPS = {
    "roi_pool": lambda *arguments: roialign._pool_in_torch(*arguments),
    "roi_pool_backward": lambda *arguments: roialign._backward_in_torch(*arguments),
    "crop_masks op": lambda *arguments: roialign._crop_masks_in_torch(*arguments),
    "mask_areas op": lambda *arguments: roialign._mask_areas_in_torch(*arguments),
    "batched_nms op": lambda *arguments: nms._batched_nms(*arguments),
    "nms_of_images op": lambda *arguments: nms._nms_of_images(*arguments),
}


def compare(name: str, result: Any, expected: Any, arguments: list) -> None:
    tensors = [tensor for tensor in torch.utils._pytree.tree_leaves(arguments) if isinstance(tensor, Tensor)]
    if any(tensor.is_meta or tensor.numel() > 1 << 20 for tensor in tensors):
        return  # shapes alone, or one number that is repeated without end
    if "roi_" in name or "crop_and" in name:
        floats = arguments[0] if isinstance(arguments[0], list) else arguments[:1]
        if not all(tensor.double().abs().max() < 1e6 for tensor in floats if tensor.numel()):
            return  # infinities times weights of 0 depend on the order of operations
        narrow = floats[0].dtype in (torch.float16, torch.bfloat16)
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if narrow else {"rtol": 1e-3, "atol": 1e-4}
        scale = max([1.0, *(float(tensor.double().abs().max()) for tensor in floats if tensor.numel())])
        tolerance["atol"] *= scale
        for one, other in zip(*([r] if isinstance(r, Tensor) else r for r in (result, expected)), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True, **tolerance)
    elif isinstance(result, Tensor):
        torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    elif isinstance(result, tuple):  # of indices and counts
        assert [column.tolist() for column in result] == [column.tolist() for column in expected]
    elif isinstance(result, np.ndarray):
        assert result.shape == expected.shape
        assert (result != expected).mean() < 1e-3 if result.size else True  # values near 0.5, see test_paste.py
    elif isinstance(result, dict):
        assert result == expected
    else:
        assert [code["size"] for code in result] == [code["size"] for code in expected]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """The first call of any operator imports torch's compiler, which takes seconds."""
    nms.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.parametrize("name", CALLS)
def test_arguments(name):
    make, function, words = CALLS[name]

    def case(rng: np.random.Generator) -> None:
        arguments = make(rng)
        damage(arguments, rng)
        result, refusal = attempt(function, arguments, words)
        if "maskscoring::" in refusal:
            return  # by torch, which compares the arguments with the op's signature
        if name in _OF_OPS:
            expected, other_refusal = attempt(_OF_OPS[name], arguments, words + "|argument")
        else:
            with in_reference():
                expected, other_refusal = attempt(function, arguments, words)
        if not (refusal or other_refusal):
            compare(name, result, expected, arguments)

    fuzz(case, 25, "")

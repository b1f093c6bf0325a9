"""Pasting: predicted masks at their places in the image, as pixels or as COCO's run-length codes.

Both run on a native kernel where `make kernels` built it, and on the reference elsewhere.

    N masks of [M, M] cells   H, W the image's height and width
"""

import ctypes
import itertools
import operator
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from roialign import reference

PASTE_RULES = ("centres", "expand", "resize")  # in the order of RuleCode in src/paste.h
MAX_SIDE = 10**9  # of an image; whole() in src/paste.h takes no box to lie further away

############################################################
#  Public functions
############################################################


def paste_masks(probs: Tensor, boxes: Tensor, image_shape: Sequence[int], rule: str) -> np.ndarray:
    """Pastes predicted masks at their places in the image. Needs no memory but the result's.

    probs: [N, M, M] floating in [0, 1], on any device.
    boxes: [N, (y1, x1, y2, x2)] in pixels of the image; they may reach out of it.
    image_shape: (H, W).
    rule: "centres" (mmdetection) samples the mask at pixel centres, with zeros around the mask. A pixel belongs to the
        object from 0.5 on. "expand" (maskrcnn-benchmark, torchvision) puts a ring of zeros around the mask, expands
        the box accordingly, truncates it to whole pixels, the last one included, and resizes the mask to it. A pixel
        belongs to the object above 0.5. Give inclusive boxes as they are. "resize" (Matterport) resizes the mask to
        the whole pixels of the box, with zeros around the mask, but to no value below the mask's smallest. A pixel
        belongs to the object from 0.5 on.

    Returns: bool [H, W, N], stored as [N, H, W]; the system provides memory only where boxes lie. A mask is empty if
        its values or its box are not finite, if its box lies outside the image, or if its box is empty (with "expand",
        an empty box still covers a pixel).
    Raises: ValueError for wrong shapes or names.
    """
    probs, boxes, size = _check(probs, boxes, image_shape, rule)
    masks = np.zeros((len(probs), *size), bool)
    if is_native():
        probs = probs.cpu().contiguous()  # a name of its own: the kernel's pointer does not keep a copy alive
        pasting = _describe(probs, boxes, size, PASTE_RULES.index(rule))
        if _library.paste_masks_cpu(pasting, masks.ctypes.data) != 0:
            raise MemoryError(_OUT_OF_MEMORY.format(len(probs)))
    else:
        for mask, (y1, x1, crop) in zip(masks, reference.paste_crops(probs, boxes, size, rule), strict=True):
            height, width = crop.shape
            mask[y1 : y1 + height, x1 : x1 + width] = crop.cpu().numpy()
    return masks.transpose(1, 2, 0)


def paste_rles(probs: Tensor, boxes: Tensor, image_shape: Sequence[int], rule: str) -> list[dict]:
    """The run-length codes of what paste_masks returns, made without any mask of the image's size.

    probs, boxes, image_shape, rule: as for paste_masks.

    Returns: N compressed RLEs.
    Raises: ValueError as paste_masks, and for an image of 2**32 pixels or more, which such a code cannot hold.
    """
    probs, boxes, size = _check(probs, boxes, image_shape, rule)
    _check_codable(size)
    if is_native():
        codes = _encode(probs.cpu().contiguous(), boxes, PASTE_RULES.index(rule), size)
        return [{"size": list(size), "counts": code} for code in codes]
    return [crop_to_rle(y1, x1, crop, size) for y1, x1, crop in reference.paste_crops(probs, boxes, size, rule)]


def crop_to_rle(y1: int, x1: int, crop: Tensor | np.ndarray, image_shape: Sequence[int]) -> dict:
    """The run-length code of a mask that is 0 outside of a crop, made without the whole mask.

    y1, x1: the crop's first pixel in the image.
    crop: bool [h, w], inside the image.
    image_shape: (H, W).

    Returns: a compressed RLE, the same as utils.mask_to_rle makes of the whole mask.
    Raises: ValueError if the crop reaches out of the image, or the image has 2**32 pixels or more.
    """
    height, width = _size(image_shape)
    _check_codable((height, width))
    if not isinstance(crop, Tensor):
        pixels = np.array(crop)
        crop = torch.from_numpy(pixels if pixels.dtype.kind in "buif" else np.zeros(0))  # which is refused below
    if crop.ndim != 2 or crop.is_meta:
        raise ValueError(f"crop must be [h, w] with values, got {list(crop.shape)} on {crop.device}")
    rows, columns = crop.shape
    if y1 < 0 or x1 < 0 or y1 + rows > height or x1 + columns > width:
        raise ValueError(f"a crop of {rows} x {columns} at ({y1}, {x1}) is not inside an image of {height} x {width}")
    padded = np.zeros((columns, rows + 2), bool)  # columns become rows, each between two zeros
    padded[:, 1:-1] = crop.cpu().T.contiguous().numpy()
    flips = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, row = np.divmod(flips, rows + 1)
    flips = (column + x1) * height + row + y1  # starts and ends of runs, in turn
    if rows == height:  # a run that reaches the last row may continue in the next column
        joints = np.flatnonzero(flips[1:] == flips[:-1])
        flips = np.delete(flips, [joints, joints + 1])
    counts = np.diff(flips, prepend=0, append=height * width)
    return compress_counts(counts, height, width)


def compress_counts(counts: np.ndarray, height: int, width: int) -> dict:
    """The compressed RLE of counts [runs]: the lengths of runs, the first of zeros."""
    if counts[-1] == 0 and len(counts) > 1:  # pycocotools writes no empty last run either
        counts = counts[:-1]
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


############################################################
#  Checks
############################################################


def _check(
    probs: Tensor, boxes: Tensor, image_shape: Sequence[int], rule: str
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Raises ValueError unless the masks can be pasted.

    Returns: probs, float32 or float64; boxes, float32 on the CPU; (H, W).
    """
    for name, tensor in {"probs": probs, "boxes": boxes}.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}; torch.as_tensor makes one")
        if tensor.is_meta:
            raise ValueError(f"{name} must have values, and tensors on the device meta have none")
    if rule not in PASTE_RULES:
        raise ValueError(f"rule must be one of {', '.join(PASTE_RULES)}, got {rule!r}")
    if probs.ndim != 3 or not probs.is_floating_point() or (len(probs) and 0 in probs.shape):
        raise ValueError(f"probs must be floating [N, M, M], got {probs.dtype} {list(probs.shape)}")
    if tuple(boxes.shape) != (len(probs), 4):
        raise ValueError(f"boxes must be [{len(probs)}, 4], one for each mask, got {list(boxes.shape)}")
    if boxes.is_complex():
        raise ValueError(f"boxes must be real numbers, got {boxes.dtype}")
    size = _size(image_shape)
    probs = probs.detach() if probs.dtype == torch.float64 else probs.detach().float()
    return probs, boxes.detach().float().cpu().contiguous(), size


def _size(image_shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image or mask."""
    try:
        height, width = map(operator.index, image_shape[:2])
    except (TypeError, ValueError):
        raise ValueError(f"image_shape must be (H, W), got {image_shape!r}") from None
    if not (0 <= height <= MAX_SIDE and 0 <= width <= MAX_SIDE):
        raise ValueError(f"image_shape must be (H, W), got {tuple(image_shape)}; a side has at most {MAX_SIDE} pixels")
    return height, width


def _check_codable(size: tuple[int, int]) -> None:
    """Raises ValueError for a size (H, W) that a run-length code cannot have: its numbers have 32 bits."""
    if size[0] * size[1] >= 2**32:
        raise ValueError(f"image_shape {size} has more pixels than the 2**32 - 1 of an RLE; cut the image into tiles")


############################################################
#  Native kernel
############################################################

_BYTES = 4096  # Room for a code; nearly all codes are shorter. If they do not fit, all are encoded a second time.

_DTYPES = {torch.float32: 0, torch.float64: 1}  # their codes in src/paste.cpp

_OUT_OF_MEMORY = "pasting of {} masks ran out of memory; paste fewer at a time"

_library: ctypes.CDLL | None = None


class _Pasting(ctypes.Structure):  # Pasting in src/paste.cpp
    _fields_ = [
        ("probs", ctypes.c_void_p),
        ("boxes", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("mask_size", ctypes.c_int64 * 2),
        ("image_size", ctypes.c_int64 * 2),
        ("rule", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    ]


def register_cpu(library: ctypes.CDLL) -> None:
    """Uses the kernel of roialign's library from now on."""
    global _library
    library.paste_masks_cpu.argtypes = [ctypes.POINTER(_Pasting), ctypes.c_void_p]
    library.paste_masks_cpu.restype = ctypes.c_int
    library.paste_rles_cpu.argtypes = [ctypes.POINTER(_Pasting), ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.paste_rles_cpu.restype = ctypes.c_int64
    _library = library


def is_native() -> bool:
    """Whether the native kernel runs, and not the reference."""
    return _library is not None


def _describe(probs: Tensor, boxes: Tensor, image_size: tuple[int, int], rule: int) -> _Pasting:
    dtype = _DTYPES[probs.dtype]
    return _Pasting(probs.data_ptr(), boxes.data_ptr(), len(probs), tuple(probs.shape[1:]), image_size, rule, dtype)


def _encode(probs: Tensor, boxes: Tensor, rule: int, image_size: tuple[int, int]) -> list[bytes]:
    """The compressed counts of each mask's RLE, by the native kernel.

    probs, boxes: dense, on the CPU. rule: index in PASTE_RULES.
    """
    pasting, ends = _describe(probs, boxes, image_size, rule), np.empty(len(probs), np.int64)
    capacity, needed = -1, _BYTES * len(probs)
    while needed > capacity:
        capacity = needed
        codes = np.empty(capacity, np.uint8)
        needed = _library.paste_rles_cpu(pasting, codes.ctypes.data, capacity, ends.ctypes.data)
        if needed < 0:
            raise MemoryError(_OUT_OF_MEMORY.format(len(probs)))
    text = codes[:needed].tobytes()
    return [text[begin:end] for begin, end in itertools.pairwise([0, *ends.tolist()])]

"""The native kernel that pastes predicted masks and encodes them: what utils.paste_masks and utils.paste_rles run on.

They check what they are given, and have the same in numpy and torch for where no library is built.

    N masks of [M, M] cells   H, W the image's height and width
"""

import ctypes
import itertools

import numpy as np
import torch
from torch import Tensor

_BYTES = 4096  # of a code, more than nearly all take; where that is wrong, everything is done twice

_DTYPES = {torch.float32: 0, torch.float64: 1}  # their codes in src/paste.cpp

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
    """Takes the functions of roialign's library."""
    global _library
    library.paste_masks_cpu.argtypes = [ctypes.POINTER(_Pasting), ctypes.c_void_p]
    library.paste_masks_cpu.restype = None
    library.paste_rles_cpu.argtypes = [ctypes.POINTER(_Pasting), ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.paste_rles_cpu.restype = ctypes.c_int64
    _library = library


def is_native() -> bool:
    """Whether there is a library; the functions below need it."""
    return _library is not None


def _describe(probs: Tensor, boxes: Tensor, image_size: tuple[int, int], rule: int) -> _Pasting:
    dtype = _DTYPES[probs.dtype]
    return _Pasting(probs.data_ptr(), boxes.data_ptr(), len(probs), tuple(probs.shape[1:]), image_size, rule, dtype)


def paste_masks(probs: Tensor, boxes: Tensor, rule: int, masks: np.ndarray) -> None:
    """Sets the pixels of masks in an image.

    probs: float32 or float64 [N, M, M] on the CPU, dense.
    boxes: float32 [N, (y1, x1, y2, x2)] on the CPU, dense.
    rule: index in utils.PASTE_RULES.
    masks: bool [N, H, W], dense, False everywhere.
    """
    _library.paste_masks_cpu(_describe(probs, boxes, masks.shape[1:], rule), masks.ctypes.data)


def encode_masks(probs: Tensor, boxes: Tensor, rule: int, image_size: tuple[int, int]) -> list[bytes]:
    """The compressed counts of the RLE of each mask in an image of (H, W).

    probs, boxes, rule: as for paste_masks.
    """
    pasting, ends = _describe(probs, boxes, image_size, rule), np.empty(len(probs), np.int64)
    capacity, needed = -1, _BYTES * len(probs)
    while needed > capacity:
        capacity = needed
        codes = np.empty(capacity, np.uint8)
        needed = _library.paste_rles_cpu(pasting, codes.ctypes.data, capacity, ends.ctypes.data)
    text = codes[:needed].tobytes()
    return [text[begin:end] for begin, end in itertools.pairwise([0, *ends.tolist()])]

"""Bilinear resampling of images of bytes in whole numbers, by a native kernel.

utils.resize_pixels calls it, and has the same in NumPy for machines without the kernel.
"""

import ctypes

import numpy as np

_library: ctypes.CDLL | None = None


def register_cpu(library: ctypes.CDLL) -> None:
    """Uses the kernel of roialign's library from now on."""
    global _library
    axis = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.resize_cpu.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, *axis, *axis, ctypes.c_void_p]
    library.resize_cpu.restype = ctypes.c_int
    _library = library


def is_native() -> bool:
    """Whether there is a kernel."""
    return _library is not None


def resize(
    image: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, columns: np.ndarray, column_weights: np.ndarray
) -> np.ndarray:
    """The image at other numbers of rows and columns, each of them mixed from two.

    image: uint8 [H, W, C]. rows, columns: [2, h] and [2, w], the two that are mixed: the same, or neighbours.
    row_weights, column_weights: alike, their weights of 2048.

    Returns: uint8 [h, w, C].
    Raises: ValueError for rows or columns outside of the image, or weights of another shape; MemoryError.
    """
    image = np.ascontiguousarray(image, np.uint8)
    pixels = [np.ascontiguousarray(axis, np.int64) for axis in (rows, columns)]
    weights = [np.ascontiguousarray(axis, np.int32) for axis in (row_weights, column_weights)]
    for axis, shares, length in zip(pixels, weights, image.shape, strict=False):
        if axis.ndim != 2 or len(axis) != 2 or shares.shape != axis.shape:
            raise ValueError(f"rows and columns must be [2, n] with as many weights, not {axis.shape}, {shares.shape}")
        if axis.size and (axis.min() < 0 or axis.max() >= length or np.abs(axis[0] - axis[1]).max() > 1):
            raise ValueError(f"rows and columns must be neighbours in an image of {image.shape[:2]} pixels")
    height, width = (axis.shape[1] for axis in pixels)
    result = np.empty((height, width, image.shape[2]), np.uint8)
    down, across = (
        (axis.ctypes.data, shares.ctypes.data, axis.shape[1]) for axis, shares in zip(pixels, weights, strict=True)
    )
    if _library.resize_cpu(image.ctypes.data, *image.shape[1:], *down, *across, result.ctypes.data):
        raise MemoryError(f"resizing an image to {height} x {width} pixels ran out of memory")
    return result

"""Bilinear resampling of images of bytes in whole numbers: cv2.resize's rule, by a native kernel or in NumPy.

    rows, row_weights = fixed_point(old_height, new_height)
    columns, column_weights = fixed_point(old_width, new_width)
    mix(image, rows, row_weights, columns, column_weights)

A part of these rows and columns gives that part of the resized image, to the byte.
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


def fixed_point(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """cv2.resize's two pixels and weights (of 2048) for each of new along an axis of old: int64 and int32 [2, new]."""
    positions = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(positions).astype(np.int64)
    part = positions - first.astype(np.float32)
    weights = np.rint(np.float32(2048) * np.stack([1 - part, part])).astype(np.int32)
    return np.stack([first, first + 1]).clip(0, old - 1), weights


def mix(
    image: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, columns: np.ndarray, column_weights: np.ndarray
) -> np.ndarray:
    """The image at other numbers of rows and columns, each of them mixed from two: by the kernel, or else in NumPy.

    Arguments, result and errors: as resize.
    """
    if is_native():
        return resize(image, rows, row_weights, columns, column_weights)
    height, width = rows.shape[1], columns.shape[1]
    rows, row_of = np.unique(rows, return_inverse=True)  # the rows that are read, each once
    row_of = row_of.reshape(2, height)
    mixed = np.empty((len(rows), width, image.shape[2]), np.int32)
    result = np.empty((height, width, image.shape[2]), np.uint8)
    weights = column_weights[:, :, None]
    for start in range(0, len(rows), 32):  # as much as the cache holds
        block = slice(start, start + 32)
        pixels = image[rows[block]]
        left, right = (
            np.take(pixels, column, axis=1) * weight for column, weight in zip(columns, weights, strict=True)
        )
        np.right_shift(left + right, 4, out=mixed[block])
    for start in range(0, height, 32):
        block = slice(start, start + 32)
        upper, lower = (
            (mixed[row_of[tap, block]] * row_weights[tap, block, None, None]) >> 16 for tap in (0, 1)
        )  # fmt: skip
        result[block] = (upper + lower + 2) >> 2
    return result


def resize(
    image: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, columns: np.ndarray, column_weights: np.ndarray
) -> np.ndarray:
    """The image at other numbers of rows and columns, each of them mixed from two, by the kernel.

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

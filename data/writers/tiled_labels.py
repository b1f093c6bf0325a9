"""Writes label images of any size, tile by tile: as a tiled BigTIFF, or as OME-Zarr.

A pixel is the number of its object, uint32, 0 for the background. Tiles come row by row from the top, each from the
left, so neither the image nor a row of tiles is ever in memory.
"""

import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import runtime

SIDE = 512  # of a tile
SUFFIXES = (".tif", ".tiff", ".zarr")


class NumberTile(NamedTuple):
    """A part of a label image."""

    y: int  # a multiple of SIDE
    x: int
    numbers: np.ndarray | None  # uint32 [h, w], SIDE or what is left of the image; None: no object is there


def write_tiles(path: Path, size: tuple[int, int], tiles: Iterable[NumberTile], pixel_size: float | None) -> Path:
    """Writes a label image, completely or not at all, and its folder: the suffix of the path says in which format.

    path: .tif or .tiff for BigTIFF, .zarr for OME-Zarr. size: (height, width). tiles: all of them, in order.
    pixel_size: micrometres, or None.

    Returns: the path.
    Raises: ValueError for another suffix, and if the package zarr is needed and missing. OSError if the disk is full.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a label image must be named {', '.join(SUFFIXES)}, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_zarr if path.suffix.lower() == ".zarr" else _write_tiff
    write(path, size, tiles, pixel_size)
    return path


############################################################
#  TIFF
############################################################


def _write_tiff(path: Path, size: tuple[int, int], tiles: Iterable[NumberTile], pixel_size: float | None) -> None:
    import tifffile  # here: few commands write TIFFs

    options: dict[str, Any] = {"metadata": None}
    if pixel_size is not None:
        unit = {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        sides = {f"PhysicalSize{axis}": pixel_size for axis in "XY"}
        # tifffile's own identifier would be another one each time.
        name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name} {size} {pixel_size}"))
        options["metadata"] = {"axes": "YX", "UUID": name, **sides, **unit}
        options |= {"resolution": (1e4 / pixel_size,) * 2, "resolutionunit": "CENTIMETER"}

    def write(file: Any) -> None:
        with tifffile.TiffWriter(file, bigtiff=True, byteorder="<", ome=pixel_size is not None) as tiff:
            tiff.write(
                _packed(tiles), shape=size, dtype=np.uint32, tile=(SIDE, SIDE), photometric="minisblack",
                compression="zlib", **options,
            )  # fmt: skip

    runtime.write_atomically(path, write)


def _packed(tiles: Iterable[NumberTile]) -> Iterator[bytes]:
    """The tiles as deflate packs them. tifffile would collect half a gigabyte of them before it packs any."""
    blank = zlib.compress(bytes(4 * SIDE * SIDE))
    for tile in tiles:
        if tile.numbers is None:
            yield blank
            continue
        padded = np.zeros((SIDE, SIDE), "<u4")
        padded[: tile.numbers.shape[0], : tile.numbers.shape[1]] = tile.numbers
        yield zlib.compress(padded)


############################################################
#  OME-Zarr
############################################################

_LEVELS = 16  # at most


def _write_zarr(path: Path, size: tuple[int, int], tiles: Iterable[NumberTile], pixel_size: float | None) -> None:
    """OME-Zarr 0.4 with all its levels, of which each has every second pixel of the one before.

    Source: https://ngff.openmicroscopy.org/0.4, multiscales and labels.
    """
    try:
        import zarr
        from numcodecs import Zlib
    except ImportError as error:
        raise ValueError(f"{path.name}: OME-Zarr needs the package zarr: pip install zarr") from error
    runtime.remove_leftovers(path)
    temporary, former = runtime.temporary_path(path), runtime.temporary_path(path)
    try:
        with runtime.errors_name(path):
            root = zarr.create_group(str(temporary), zarr_format=2)
            options = {
                "dtype": "uint32", "chunks": (SIDE, SIDE), "compressors": Zlib(level=5), "fill_value": 0,
                "chunk_key_encoding": {"name": "v2", "separator": "/"},
            }  # fmt: skip
            levels = [root.create_array("0", shape=size, **options)]
            for y, x, numbers in tiles:
                if numbers is not None:
                    levels[0][y : y + numbers.shape[0], x : x + numbers.shape[1]] = numbers
            while max(levels[-1].shape) > SIDE and len(levels) < _LEVELS:
                shape = tuple(-(-side // 2) for side in levels[-1].shape)
                levels.append(root.create_array(str(len(levels)), shape=shape, **options))
                _halve(*levels[-2:])
            root.attrs.update(_ngff(path, len(levels), pixel_size))
            if path.exists():
                os.replace(path, former)
            os.replace(temporary, path)
    finally:
        for folder in (temporary, former):
            shutil.rmtree(folder, ignore_errors=True)


def _halve(source: Any, target: Any) -> None:
    """Every second pixel of an array, chunk by chunk."""
    for y in range(0, target.shape[0], SIDE):
        for x in range(0, target.shape[1], SIDE):
            part = source[2 * y : 2 * (y + SIDE), 2 * x : 2 * (x + SIDE)][::2, ::2]
            if part.any():
                target[y : y + SIDE, x : x + SIDE] = part


def _ngff(path: Path, levels: int, pixel_size: float | None) -> dict[str, Any]:
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    scales = [[float((pixel_size or 1.0) * 2**level)] * 2 for level in range(levels)]
    return {
        "multiscales": [
            {
                "version": "0.4",
                "name": path.name.removesuffix(path.suffix).removesuffix(".ome"),
                "axes": [{"name": name, "type": "space", **unit} for name in "yx"],
                "datasets": [
                    {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                    for level, scale in enumerate(scales)
                ],
                "type": "nearest",
            }
        ],
        "image-label": {"version": "0.4"},
    }

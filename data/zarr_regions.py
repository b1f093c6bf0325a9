"""Reads regions of OME-Zarr images (NGFF 0.1 to 0.5) and of plain Zarr arrays, of formats 2 and 3, by the package zarr.

What a folder's files say is looked at before zarr opens an array: zarr would run codecs that load Python objects
("pickle"), and make room for chunks of any size. Of times and slices, the first one is read.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils
from data.images import Refused
from data.measurements import in_micrometres, nearest_level, square_side
from data.tiff import MOST_BYTES, MOST_CHANNELS, channel_note, channels_read
from data.tiff_regions import Grid, PieceCache, cache_bytes, paste

_MOST_JSON_BYTES = 1 << 24
_LEAST_PIECE = 512  # side of what is read at once, where chunks are smaller
_CODECS = {
    "blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "bitround", "crc32", "crc32c", "adler32",
    "fletcher32", "bytes", "transpose", "sharding_indexed",
}  # fmt: skip


class _Image(NamedTuple):
    """An array of an image."""

    folder: Path
    header: dict[str, Any]  # the array's own
    axes: str  # a letter for each: "tczyx"
    sides: tuple[float, float] | None  # of a pixel in micrometres: height, width


class ZarrRegions:
    """The first image of a Zarr folder, or a smaller level, by regions. Attributes and methods: as TiffRegions."""

    orientation, bits, georeference, nodata = 1, None, None, None

    def __init__(self, folder: Path, channels: int = 3, micrometres: float | None = None) -> None:
        """Reads the headers. channels: those that a network takes. micrometres: of a pixel; the level that is nearest
        to it is read. None: the finest.

        Raises: Refused, and errors of many kinds.
        """
        images = _find_levels(folder, micrometres is not None)
        sizes = [square_side(image.sides) for image in images]
        number = nearest_level(sizes, micrometres)
        image, self.pixel_size = images[number], sizes[number]
        self.dtype, chunks = _check_header(image.header)
        shape = dict(zip(image.axes, image.header["shape"], strict=True))
        height, width = shape["y"], shape["x"]
        colours = shape.get("c", 1)
        self._count = channels_read(colours, channels)
        self.shape = (height, width) if self._count == 1 else (height, width, self._count)
        note = channel_note("Zarr images", colours, channels)
        others = math.prod(shape.values()) > height * width * colours
        self.notes = [note] if note else []
        self.notes += ["Zarr images with several slices or times: the first one is read"] if others else []
        self._axes = image.axes
        self._chunks = dict(zip(image.axes, chunks, strict=True))
        sides = (self._chunks[axis] * max(1, _LEAST_PIECE // self._chunks[axis]) for axis in "yx")
        self._grid = Grid(height, width, *sides)
        self._cache = PieceCache(cache_bytes(self._grid, self.dtype.itemsize * self._count))
        self._folder, self._array = image.folder, _open_array(image.folder)
        if tuple(self._array.shape) != tuple(image.header["shape"]):
            raise Refused("its headers do not agree; is the folder damaged?")

    def read(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The values of a region, [y2 - y1, x2 - x1] or [..., C]."""
        out = np.empty((y2 - y1, x2 - x1, *self.shape[2:]), self.dtype)
        for number, y, x in self._grid.touched(y1, x1, y2, x2):
            paste(out, (y1, x1, y2, x2), self._cache.get(number, lambda y=y, x=x: self._piece(y, x)), y, x)
        return out

    def _piece(self, y: int, x: int) -> np.ndarray:
        places = {
            "y": slice(y, min(y + self._grid.rows, self._grid.height)),
            "x": slice(x, min(x + self._grid.columns, self._grid.width)),
            "c": slice(0, self._count) if self._count > 1 else 0,
        }
        values = np.asarray(self._array[tuple(places.get(axis, 0) for axis in self._axes)])
        kept = [axis for axis in self._axes if isinstance(places.get(axis, 0), slice)]
        return values.transpose([kept.index(axis) for axis in "yxc" if axis in kept]).astype(self.dtype, copy=False)

    def is_empty(self, y1: int, x1: int, y2: int, x2: int) -> bool:
        """Whether none of the chunks of a region was written."""
        shape = getattr(self._array, "shards", None) or self._array.chunks
        sides = dict(zip(self._axes, shape, strict=True))
        name_of = getattr(self._array.metadata, "encode_chunk_key", None)
        if name_of is None:
            return False
        rows = range(y1 // sides["y"], -(-y2 // sides["y"]))
        columns = range(x1 // sides["x"], -(-x2 // sides["x"]))
        channels = range(-(-self._count // sides.get("c", 1)))
        places = ({"y": row, "x": column, "c": c} for row in rows for column in columns for c in channels)
        keys = (tuple(place.get(axis, 0) for axis in self._axes) for place in places)
        return not any((self._folder / name_of(key)).exists() for key in keys)

    def close(self) -> None:
        """Zarr keeps no file open."""


def is_zarr(folder: Path) -> bool:
    """Whether a folder has the header of a Zarr group or array."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs"))


def _open_array(folder: Path) -> Any:
    try:
        import zarr
    except ModuleNotFoundError:
        raise Refused("Zarr folders are read by the package zarr; pip install zarr") from None
    return zarr.open_array(str(folder), mode="r")


############################################################
#  Headers
############################################################


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; empty if there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise Refused(f"{utils.printable(path.name)} has more than {_MOST_JSON_BYTES >> 20} MB, and is no header")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{utils.printable(path.name)} is no JSON ({utils.printable(error)})") from None
    if not isinstance(found, dict):
        raise Refused(f"{utils.printable(path.name)} must hold an object, not {type(found).__name__}")
    return found


def _node(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The header of an array, or None if the folder is a group; and the attributes."""
    if header := _read_json(folder / "zarr.json"):
        attributes = header.get("attributes")
        is_array = header.get("node_type") == "array"
        return header if is_array else None, attributes if isinstance(attributes, dict) else {}
    return _read_json(folder / ".zarray") or None, _read_json(folder / ".zattrs")


def _find_levels(folder: Path, wants_all: bool) -> list[_Image]:
    """The array of full resolution, and those of smaller levels if these are wanted.

    Raises: Refused if there is no array, or none is the only one.
    """
    header, attributes = _node(folder)
    if header is not None:
        return [_Image(folder, header, _plain_axes(header), None)]
    ome = attributes["ome"] if isinstance(attributes.get("ome"), dict) else attributes
    if isinstance(ome.get("multiscales"), list) and ome["multiscales"]:
        return _of_multiscales(folder, ome["multiscales"][0], wants_all)
    if "plate" in ome:
        raise Refused("it is a plate with many wells; give the folder of one field, such as PLATE.zarr/A/1/0")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_zarr(path))
    if "bioformats2raw.layout" in ome and "0" in names:  # a series of images in numbered folders
        return _find_levels(folder / "0", wants_all)
    arrays = [name for name in names if _node(folder / name)[0] is not None]
    if len(arrays) != 1:
        listed = utils.listed((utils.printable(name) for name in names), 5)
        where = f"; give one of the folders in it ({listed})" if names else ", and has none inside"
        raise Refused(f"it is a group without an image of its own{where}")
    header = _node(folder / arrays[0])[0]
    return [_Image(folder / arrays[0], header, _plain_axes(header), None)]


def _plain_axes(header: dict[str, Any]) -> str:
    """Letters for the axes of an array: its own names, or else as data/tiff.py takes unnamed arrays."""
    shape, names = _shape_of(header), header.get("dimension_names")
    if isinstance(names, list) and len(names) == len(shape):
        letters = "".join(str(name)[:1].lower() for name in names)
        if {"y", "x"} <= set(letters) and len(set(letters)) == len(letters):
            return letters
    if len(shape) == 3:
        first, middle, last = shape
        if last <= MOST_CHANNELS < min(first, middle):
            return "yxc"
        return "cyx" if 1 < first <= MOST_CHANNELS < min(middle, last) else "zyx"
    if not 2 <= len(shape) <= 5:
        raise Refused(f"its array has the shape {shape}, and is no image")
    return "tczyx"[-len(shape) :] if len(shape) != 2 else "yx"


def _of_multiscales(folder: Path, image: Any, wants_all: bool) -> list[_Image]:
    """The levels of an OME-Zarr image, the finest first. Source: NGFF 0.4 and 0.5, multiscales."""
    try:
        datasets = list(image["datasets"]) if wants_all else image["datasets"][:1]
        names, axes = [dataset["path"] for dataset in datasets], image.get("axes", list("tczyx"))
        named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
        letters = "".join(str(axis["name"]).lower() for axis in named)
        names[0]
    except (TypeError, KeyError, IndexError, AttributeError):
        raise Refused("its multiscales do not name axes and an array") from None
    if len(letters) != len(named) or len(set(letters)) != len(letters) or not {"y", "x"} <= set(letters):
        raise Refused(f"its axes are {utils.printable(letters, 50)}; an image has y and x, and others of one letter")
    return [
        _level(folder, name, letters, _sides(image, dataset, named, letters))
        for name, dataset in zip(names, datasets, strict=True)
    ]


def _level(folder: Path, name: Any, letters: str, sides: tuple[float, float] | None) -> _Image:
    """An array of an OME-Zarr image."""
    inside = Path(str(name))
    if inside.is_absolute() or ".." in inside.parts:
        raise Refused(f"its array {utils.printable(name)} lies outside of the folder")
    header, _ = _node(folder / inside)
    if header is None:
        raise Refused(f"the array {utils.printable(name)}, which it names, is not there")
    shape = _shape_of(header)
    if len(letters) != len(shape):
        raise Refused(f"its array has the shape {shape}, and its axes are {utils.printable(letters, 50)}")
    return _Image(folder / inside, header, letters, sides)


def _sides(image: dict, dataset: dict, axes: list[dict], letters: str) -> tuple[float, float] | None:
    """Height and width of a pixel in micrometres, if scales and units say them."""
    sides = [1.0, 1.0]
    try:
        for place in (dataset, image):
            for transformation in place.get("coordinateTransformations") or []:
                if transformation.get("type") == "scale":
                    scale = transformation["scale"]
                    sides = [side * float(scale[letters.index(axis)]) for side, axis in zip(sides, "yx", strict=True)]
        found = [
            in_micrometres(side, str(axes[letters.index(axis)]["unit"])) for side, axis in zip(sides, "yx", strict=True)
        ]
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return None
    return None if None in found else (found[0], found[1])


def _shape_of(header: dict[str, Any]) -> list[int]:
    shape = header.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 1 << 40 for side in shape):
        raise Refused(f"its array has the shape {utils.printable(shape)}, and is no image")
    return shape


def _check_header(header: dict[str, Any]) -> tuple[np.dtype, list[int]]:
    """The type and the chunks of an array. Raises: Refused for codecs, types and sizes that are not read."""
    shape, is_new = _shape_of(header), "codecs" in header
    try:
        kind = header["data_type"] if is_new else header["dtype"]
        dtype = np.dtype(kind if isinstance(kind, str) and len(kind) < 16 else "O")
        if is_new:
            codecs = header["codecs"]
            chunks = header["chunk_grid"]["configuration"]["chunk_shape"]
            inner = [codec["configuration"] for codec in codecs if codec.get("name") == "sharding_indexed"]
            chunks = inner[0]["chunk_shape"] if inner else chunks
            codecs = codecs + [codec for shard in inner for codec in shard["codecs"] + shard.get("index_codecs", [])]
            names = [str(codec["name"]).removeprefix("numcodecs.") for codec in codecs]
        else:
            chunks = header["chunks"]
            codecs = [*(header.get("filters") or []), *([header["compressor"]] if header.get("compressor") else [])]
            names = [str(codec["id"]) for codec in codecs]
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        raise Refused("the header of its array is incomplete") from None
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise Refused(f"it has values of type {utils.printable(kind)}, and is no picture")
    if unknown := sorted(set(names) - _CODECS):
        raise Refused(f"its chunks are coded by {utils.printable(unknown[0])}, which is not read")
    is_fitting = isinstance(chunks, list) and len(chunks) == len(shape)
    if not is_fitting or not all(type(side) is int and side > 0 for side in chunks):
        raise Refused(f"its chunks {utils.printable(chunks)} do not fit its shape {shape}")
    if (size := math.prod(chunks) * dtype.itemsize) > MOST_BYTES:
        raise Refused(
            f"its chunks take {size / 2**30:.1f} GB each, more than {MOST_BYTES >> 30}; save it in smaller ones"
        )
    return dtype.newbyteorder("="), chunks

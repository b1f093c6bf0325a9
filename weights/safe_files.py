"""Files of the package safetensors: eight bytes with the length of a header, the header in JSON, and the numbers."""

import importlib
import json
import math
from pathlib import Path

from torch import Tensor

import utils

_LARGEST_HEADER = 100_000_000  # bytes, as in the package itself
_ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. The package reads it, after a check of the header.

    Raises: ValueError if the package is not installed, and for a file that is damaged or claims what it does not have.
    """
    try:
        _check_header(path)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is truncated or damaged; fetch it again ({utils.printable(error)})") from None
    try:
        package = importlib.import_module("safetensors.torch")
    except ImportError:
        raise ValueError(
            f"{path} is a safetensors file, which needs the package safetensors: `pip install safetensors`"
        ) from None
    try:
        return package.load_file(path)
    except Exception as error:  # damage shows as any error at all
        raise ValueError(f"{path} is truncated or damaged; fetch it again ({utils.printable(error)})") from None


def _check_header(path: Path) -> None:
    """Raises ValueError unless the tensors of the header lie in the file and have the bytes that their shapes need."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size - 8 - length
        if size < 0 or length > _LARGEST_HEADER:
            raise ValueError(f"its header should have {length:,} bytes")
        header = json.loads(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no dict")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or entry.get("dtype") not in _ITEM_SIZES:
            raise ValueError(f"the type of {utils.printable(name)} is none of {', '.join(_ITEM_SIZES)}")
        shape, places = entry.get("shape"), entry.get("data_offsets")
        if not all(isinstance(n, list) and all(type(m) is int and m >= 0 for m in n) for n in (shape, places)):
            raise ValueError(f"{utils.printable(name)} has no shape or no place")
        if len(places) != 2 or not places[0] <= places[1] <= size or len(shape) > 64:
            raise ValueError(f"{utils.printable(name)} lies beyond the end of the file")
        if math.prod(shape) * _ITEM_SIZES[entry["dtype"]] != places[1] - places[0]:
            raise ValueError(f"{utils.printable(name)} claims another size than it has")

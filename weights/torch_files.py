"""Files that torch.save wrote and pickles of arrays, read without executing anything in them; kinds of other files."""

import math
import mmap
import os
import pickle
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import utils

from .array_pickles import begins_a_pickle, read_array_pickle
from .pickles import Forbidden, Storage, StoredTensor, end_of_pickle, kind_of, read_pickle, resolve

_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, before version 1.6
# Tensors may repeat the numbers of a storage. So much memory they may take beyond the size of their file.
_MOST_REPEATED = 1 << 30  # bytes


def file_kind(path: str | os.PathLike) -> str:
    """hdf5, zip, legacy, safetensors or other, from the first bytes.

    Raises: FileNotFoundError; ValueError for a file that is certainly no checkpoint; OSError if it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint file")
    if not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, not a checkpoint file")
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise ValueError(f"{path} is empty; was its download interrupted?")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` where it comes from")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        raise ValueError(
            f"{path} is a web page, not a checkpoint; the link led to a page about the file, or to an error"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_TORCH):
        return "legacy"
    return "safetensors" if re.match(rb"[\s\S]{7}\x00\{\s*\"", head) else "other"


def load_torch_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """The dict that torch.save wrote, or a pickle of NumPy arrays, without running anything in it.

    Tensors are mapped into memory, so that unused ones take none. The checksums of the archive are compared first:
    torch does not do that, and a flipped bit in a weight would go unseen. A tensor that claims more than the file has
    is refused before it takes memory. Any number of threads may load files.

    Raises: FileNotFoundError; ValueError for a file that is damaged, not torch's, has code in it, or is not a dict.
    """
    path, kind = Path(path), file_kind(path)
    read = {"zip": _read_zip, "legacy": _read_legacy}.get(kind, _read_other)
    try:
        contents = read(path)
    except Forbidden as error:
        raise ValueError(
            f"{path} holds a Python object that is no weight: {error}. It could run code, so nothing of the file "
            "was loaded or run. If you trust where it comes from, load it there and save model.state_dict() alone"
        ) from None
    except Refused as error:
        raise ValueError(f"{path}{error}") from None
    except Exception as error:  # damage shows as any error at all
        raise ValueError(
            f"{path} is truncated or damaged; fetch it again ({type(error).__name__}: {utils.printable(error)})"
        ) from None
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds {kind_of(contents)}, where a checkpoint is a dict of tensors")
    return contents


class Refused(Exception):
    """What is wrong with a file: what a message says after the name of the file, such as " is damaged"."""


############################################################
#  Zip archives
############################################################


def _read_zip(path: Path) -> Any:
    """The contents of a zip archive of torch.save."""
    entries = _check_zip(path)
    prefix = next(name for name in entries if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # so that nothing writes into the file

    def content(name: str) -> tuple[int, int]:
        """Where an entry's bytes begin in the file, and how many they are."""
        entry = entries.get(prefix + name)
        if entry is None:
            raise KeyError(f"no {name}")
        header = data[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        return start, entry.file_size

    if f"{prefix}byteorder" in entries:
        start, size = content("byteorder")
        if data[start : start + size].decode("latin1") != sys.byteorder:
            raise Refused(" was written on a machine of another byte order; save it anew on one like this")
    start, size = content("data.pkl")
    tensors = _Tensors(data, lambda storage: content(f"data/{storage.key}"))
    return resolve(read_pickle(data[start : start + size])[0], tensors)


def _check_zip(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive by name.

    Raises: Refused unless torch wrote it, and each entry has the checksum that the archive says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            entries = {info.filename: info for info in infos}
            packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
            is_whole = not packed and sum(info.file_size for info in infos) <= path.stat().st_size
            damaged = next((info.filename for info in infos if is_whole and _is_damaged(archive, info)), None)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, UnicodeError):
        raise Refused(
            " is truncated or damaged: it is a zip archive that cannot be read to its end; fetch it again"
        ) from None
    if damaged is not None:
        raise Refused(
            f" is damaged: the bytes of {utils.printable(damaged)!r} do not have the checksum that the archive says; "
            "fetch it again"
        )
    if len(entries) < len(infos):
        raise Refused(" is damaged: two entries of the archive have the same name; fetch it again")
    files = {name.rpartition("/")[2] for name in entries}
    if "data.pkl" not in files:
        shown = utils.listed(map(utils.printable, entries), 5)
        raise Refused(f" is a zip archive that torch did not write ({shown}); unpack it and give what is inside")
    if not is_whole:
        shown = utils.listed(map(utils.printable, packed), 3)
        raise Refused(
            " is a zip archive that torch did not write: torch compresses nothing, and here "
            f"{shown or 'the sizes of the members exceed the file'}"
        )
    if "constants.pkl" in files:
        raise Refused(" is a TorchScript program; save its state_dict() with torch.save and give that")
    return entries


def _is_damaged(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether the bytes of an entry do not have its checksum. They are not compressed."""
    checksum = 0
    try:
        with archive.open(entry) as file:
            while piece := file.read(1 << 20):
                checksum = zlib.crc32(piece, checksum)
    except (zipfile.BadZipFile, EOFError):
        return True
    return checksum != entry.CRC


############################################################
#  Files of torch before 1.6, and others
############################################################


def _read_legacy(path: Path) -> Any:
    """The contents of a file of torch.save before torch 1.6: five pickles one after another, then the storages."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pickles = []
    for _ in range(5):
        start = data.tell()
        end = end_of_pickle(data)
        pickles.append(read_pickle(data[start:end]))
        data.seek(end)
    (system, _), (contents, storages), (keys, _) = pickles[2:]
    if not isinstance(system, dict) or system.get("little_endian", True) is not (sys.byteorder == "little"):
        raise Refused(" was written on a machine of another byte order; save it anew on one like this")
    return resolve(contents, _Tensors(data, _legacy_places(data, keys, storages)))


def _legacy_places(data: mmap.mmap, keys: Any, named: list[Storage]) -> Callable[[Storage], tuple[int, int]]:
    """A function that tells where the bytes of a storage begin, and how many they are.

    data: stands after the pickles. keys: of the storages, in the order of the file. named: the storages by the pickle.
    """
    storages: dict[str, Storage] = {}
    for storage in named:
        if storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError("a storage has two sizes")
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise pickle.UnpicklingError("no list of storages")
    places, position = {}, data.tell()
    for key in map(str, keys):
        if key not in storages:
            raise pickle.UnpicklingError("a storage that no tensor has")
        count, position = int.from_bytes(data[position : position + 8], "little"), position + 8
        size = storages[key].count * storages[key].dtype.itemsize
        if count != storages[key].count or position + size > len(data):
            raise pickle.UnpicklingError("a storage is cut off, or of another size")
        places[key] = position, size
        position += size
    return lambda storage: places[storage.key]


def _read_other(path: Path) -> Any:
    if tarfile.is_tarfile(path):
        raise Refused(" is a tar archive; unpack it and give what is inside")
    with path.open("rb") as file:
        head = file.read(16)
        if begins_a_pickle(head):
            return read_array_pickle(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    raise Refused(
        f" is neither a file of torch.save nor HDF5 nor a pickle of arrays, or damaged: it begins with {head!r}"
    )


############################################################
#  Tensors
############################################################


class _Tensors:
    """Makes the tensors that a pickle describes, as views of the file.

    data: the file. place_of: where the bytes of a storage begin in it, and how many they are.

    Raises: Refused for a tensor that claims more than its storage has, or all of them more than the file.
    """

    def __init__(self, data: mmap.mmap, place_of: Callable[[Storage], tuple[int, int]]) -> None:
        self._data, self._place_of = data, place_of
        self._bytes_left = len(data) + _MOST_REPEATED
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, tensor: StoredTensor) -> Tensor:
        numbers = self._storage(tensor.storage, tensor.dtype)  # [count]
        size, stride, offset = tensor.size, tensor.stride, tensor.offset
        if len(size) != len(stride) or any(number < 0 for number in (*size, *stride, offset)):
            raise pickle.UnpicklingError("a shape has negative numbers")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and last >= len(numbers):
            shown = utils.printable(str(size) if all(n < 1 << 64 for n in size) else "of enormous numbers")
            raise Refused(
                f" is damaged: a tensor of shape {shown} claims more numbers than the {len(numbers):,} of its storage"
            )
        self._bytes_left -= count * numbers.itemsize
        if self._bytes_left < 0:
            raise Refused(" is damaged: its tensors claim much more memory than the file has bytes")
        if max(size, default=0) >= 1 << 63:
            raise pickle.UnpicklingError("a shape has enormous numbers")
        return numbers.as_strided(size, stride, offset) if count else numbers.new_empty(size)

    def _storage(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """The numbers of a storage, [count]."""
        key = storage.key, dtype
        if key not in self._storages:
            start, size = self._place_of(storage)
            if (
                storage.count * storage.dtype.itemsize != size
                or size % dtype.itemsize
                or start + size > len(self._data)
            ):
                count = f"{storage.count:,}" if storage.count < 1 << 64 else "enormously many"
                raise Refused(
                    f" is damaged: the storage {utils.printable(storage.key)} should have {count} numbers and has "
                    f"{size:,} bytes"
                )
            count = size // dtype.itemsize
            numbers = torch.frombuffer(self._data, dtype=dtype, count=count, offset=start) if count else None
            if numbers is not None and start % dtype.itemsize:
                numbers = numbers.clone()  # views must begin at multiples of their numbers' size
            self._storages[key] = torch.empty(0, dtype=dtype) if numbers is None else numbers
        return self._storages[key]

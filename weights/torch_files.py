"""Files that torch.save wrote, read without executing anything in them."""

import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import utils


class _Ignored:
    """Takes the place of an object in published files that is no weight. It takes all arguments and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Mmengine's logs, NumPy's numbers and the arguments of torchvision's training script consist of these. None is built:
# each becomes an _Ignored.
_HARMLESS = [
    *("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace"),
]
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, before version 1.6


def file_kind(path: str | os.PathLike) -> str:
    """hdf5, zip, legacy or other, from the first bytes.

    Raises: FileNotFoundError; ValueError for a file that is certainly no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint file")
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
    return "legacy" if head.startswith(_LEGACY_TORCH) else "other"


def load_torch_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """The dict that torch.save wrote, without running anything in it.

    Tensors are mapped into memory (except from files older than torch 1.6), so that unused ones take none. The
    checksums of the archive are compared first: torch does not do that, and a flipped bit in a weight would go unseen.

    Raises: FileNotFoundError; ValueError for a file that is damaged, not torch's, has code in it, or is not a dict.
    """
    path, kind = Path(path), file_kind(path)
    if kind == "zip":
        _check_zip(path)
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in _HARMLESS]):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        raise _pickle_error(path, kind, str(error)) from None
    except Exception as error:  # damage shows as any error at all
        raise _damaged(path, kind, error) from None
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds a {type(contents).__name__}, where a checkpoint is a dict of tensors")
    return contents


def _check_zip(path: Path) -> None:
    """Raises ValueError unless torch wrote the archive and each member has the checksum that the archive says."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            size = sum(entry.file_size for entry in archive.infolist())
            is_whole = not packed and size <= path.stat().st_size  # so that nothing unpacks to more than the file
            damaged = archive.testzip() if is_whole else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError):
        raise ValueError(
            f"{path} is truncated or damaged: it is a zip archive that cannot be read to its end; fetch it again"
        ) from None
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the bytes of {damaged!r} do not have the checksum that the archive says; "
            "fetch it again"
        )
    files = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" not in files:
        raise ValueError(
            f"{path} is a zip archive that torch did not write ({utils.listed(names, 5)}); "
            "unpack it and give what is inside"
        )
    if not is_whole:
        raise ValueError(
            f"{path} is a zip archive that torch did not write: torch compresses nothing, and here "
            f"{utils.listed(packed, 3) if packed else 'the sizes of the members exceed the file'}"
        )
    if "constants.pkl" in files:
        raise ValueError(f"{path} is a TorchScript program; save its state_dict() with torch.save and give that")


def _pickle_error(path: Path, kind: str, text: str) -> ValueError:
    match = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"<(?:built-in )?(?:class|function) '?([\w.]+)", text)
    if match:
        return ValueError(
            f"{path} holds a Python object that is no weight: {match[1]}. It could run code, so nothing of the file "
            "was loaded or run. If you trust where it comes from, load it there and save model.state_dict() alone"
        )
    return _damaged(path, kind, text)


def _damaged(path: Path, kind: str, error: Any) -> ValueError:
    text = str(error).split(" In PyTorch 2.6, ")[0]  # torch goes on to advise running the code in the file
    unpickler = re.findall(r"Unpickler error: (.*)", str(error))
    text = ((unpickler[-1] if unpickler else "") or text or type(error).__name__).splitlines()[0][:200]
    if kind != "other":
        return ValueError(f"{path} is truncated or damaged; fetch it again ({text})")
    if tarfile.is_tarfile(path):
        return ValueError(f"{path} is a tar archive; unpack it and give what is inside")
    with path.open("rb") as file:
        head = file.read(16)
    return ValueError(f"{path} is neither a file of torch.save nor HDF5, or damaged: it begins with {head!r} ({text})")

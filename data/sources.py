"""Finds the pictures that names of files, folders, patterns and addresses of object stores mean, and opens them.

    slides/  photo.jpg  slide.svs  image.zarr/  "scans/**/*.tif"  s3://bucket/folder  "gs://bucket/*.png"

An object store is read through the package fsspec and the one that fsspec names for the store, such as s3fs. A picture
of it is copied into a temporary file while it is read, so it is read by the same rules as any other.
"""

import contextlib
import glob
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import utils
from data.listing import IGNORED_FOLDERS
from data.slide_regions import SUFFIXES as SLIDES
from data.zarr_regions import is_zarr

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class PictureFile(NamedTuple):
    """A picture that was found."""

    address: str  # its path, or its address in an object store
    name: str  # below the root, with / between folders


class Found(NamedTuple):
    """All pictures that were found, and the folder that they have in common."""

    root: str
    pictures: list[PictureFile]
    sources: list[str]  # the names that were given, as full paths or addresses


def is_address(name: str) -> bool:
    """Whether a name is that of an object store, such as s3://bucket/folder."""
    return _ADDRESS.match(name) is not None


def match_files(name: str) -> list[Path]:
    """The file of a name; else those that match it as a pattern, sorted. Empty if there is none."""
    path = Path(name)
    matches = [path] if path.is_file() else map(Path, glob.glob(name, recursive=True))
    return sorted(match for match in matches if match.is_file())


def find_pictures(names: Sequence[str], leave_out: Path | None = None) -> Found:
    """The pictures of files, folders with all folders inside, and patterns; each once, in the order of names.

    Of a folder, files with the suffixes of pictures and of slides count, and folders of Zarr. Hidden files and folders
    do not; nor do output/ and the like, which listing.IGNORED_FOLDERS has. Of a pattern, pictures count if it matches
    any, else all files.
    leave_out: a folder in which nothing is looked for: that of the output.

    Raises: FileNotFoundError for a name without any picture; ValueError for names of several stores, and for a store
        whose package is not installed; OSError if a store cannot be read.
    """
    remote = [name for name in names if is_address(name)]
    if remote and len(remote) < len(names):
        raise ValueError("--dataset takes either files and folders, or addresses of one object store, and not both")
    found: dict[str, None] = {}
    for name in names:
        files = _find_remote(name) if remote else _find_local(name, leave_out)
        if not files:
            kinds = ", ".join(sorted(utils.IMAGE_SUFFIXES))
            raise FileNotFoundError(f"--dataset {utils.printable(name)}: there are no pictures ({kinds})")
        found.update(dict.fromkeys(files))
    if len({address.partition("://")[0] for address in found if remote}) > 1:
        raise ValueError("--dataset has addresses of several object stores; name those of one at a time")
    sources = [name.rstrip("/") if remote else os.path.abspath(name) for name in names]
    return Found(*_named(list(found), bool(remote), names), sources)


def _named(addresses: list[str], is_remote: bool, names: Sequence[str]) -> tuple[str, list[PictureFile]]:
    """Pictures with their names below the folder that all have in common, or below the only folder that was named."""
    if is_remote:
        folders = [address.rpartition("/")[0].split("/") for address in addresses]
        shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
        root = "/".join(parts[0] for parts in shared)
        return root, [PictureFile(address, address[len(root) :].lstrip("/")) for address in addresses]
    if len(names) == 1 and Path(names[0]).is_dir() and not is_zarr(Path(names[0])):
        root = os.path.abspath(names[0])
    else:
        try:
            root = os.path.commonpath([os.path.dirname(address) for address in addresses])
        except ValueError:
            raise ValueError("--dataset has pictures on several drives; name those of one at a time") from None
    return root, [PictureFile(address, Path(address).relative_to(root).as_posix()) for address in addresses]


def _find_local(name: str, leave_out: Path | None) -> list[str]:
    path = Path(name)
    if path.is_dir() and is_zarr(path):
        return [os.path.abspath(path)]
    if not path.is_dir():
        files = match_files(name)
        if not files:
            raise FileNotFoundError(
                f"--dataset {utils.printable(name)}: there is no such file or folder, and nothing that matches it as a "
                "pattern"
            )
        files = [file for file in files if _is_picture(file.name)] or files
        return [os.path.abspath(file) for file in files]
    avoided = None if leave_out is None else os.path.abspath(leave_out)
    found = []
    for folder, folders, files in os.walk(os.path.abspath(path)):
        arrays = [inside for inside in folders if not inside.startswith(".") and is_zarr(Path(folder, inside))]
        found += [os.path.join(folder, inside) for inside in arrays]
        folders[:] = [
            inside for inside in folders
            if not (inside.startswith(".") or inside in IGNORED_FOLDERS or inside in arrays)
            and os.path.join(folder, inside) != avoided
        ]  # fmt: skip
        found += [os.path.join(folder, file) for file in files if _is_picture(file)]
    return sorted(found, key=lambda address: address.split(os.sep))


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in utils.IMAGE_SUFFIXES | SLIDES


############################################################
#  Object stores
############################################################


def _file_system(name: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. Raises: ValueError that names a missing package."""
    scheme = name.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--dataset {utils.printable(name)}: {scheme}:// needs the package {error.name}; pip install {error.name}"
        ) from None
    except ImportError as error:  # fsspec names the package of a store
        raise ValueError(f"--dataset {utils.printable(name)}: {scheme}:// cannot be opened: {error}") from None
    except ValueError as error:
        raise ValueError(f"--dataset {utils.printable(name)}: {utils.printable(error)}") from None


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Errors of a store, which are of many kinds, become an OSError that names the address."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{utils.printable(name, 500)}: there is no such file") from None
    except Exception as error:
        text = utils.printable(str(error) or type(error).__name__, 300)
        raise OSError(f"{utils.printable(name, 500)} cannot be read: {text}") from error


def _find_remote(name: str) -> list[str]:
    store, path = _file_system(name)
    with _errors_named(name):
        if glob.has_magic(path):
            paths = [match for match in store.glob(path) if store.isfile(match)]
        else:
            paths = [path] if store.isfile(path) else store.find(path)
    if paths != [path]:
        paths = [match for match in paths if _is_picture(PurePosixPath(match).name)]
    return sorted(store.unstrip_protocol(match) for match in paths)


@contextlib.contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """The file of a picture, for as long as the context lasts. One of an object store is a copy.

    Errors inside of the context name the address instead of the copy.

    Raises: OSError if the store cannot be read.
    """
    if not is_address(address):
        yield Path(address)
        return
    store, path = _file_system(address)
    with tempfile.TemporaryDirectory(prefix="picture-") as folder:
        copy = Path(folder) / re.sub(r"[^\w.-]", "_", PurePosixPath(path).name)[-100:]
        with _errors_named(address):
            copy.write_bytes(store.cat_file(path))
        try:
            yield copy
        except (ValueError, OSError) as error:
            raise type(error)(str(error).replace(str(copy), address)) from None


def evenly(items: Sequence[Any], limit: int) -> Iterable[Any]:
    """At most so many items, from all parts of a list."""
    return items[:: max(1, -(-len(items) // limit))]

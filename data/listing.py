"""The files of a data set: listed once, read as text or JSON whatever their encoding."""

import base64
import binascii
import contextlib
import gzip
import json
import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat

import utils
from data.records import WARNING, Fault, Findings

# Folders that hold no labels: hidden ones, what systems and tools leave behind, and our own output.
RESULT_FOLDERS = {"runs", "output", "logs"}
IGNORED_FOLDERS = {"__MACOSX", "__pycache__", *RESULT_FOLDERS}
PICTURE_SUFFIXES = utils.IMAGE_SUFFIXES | {".avif", ".jfif", ".jp2", ".jpe", ".pgm", ".pnm", ".ppm", ".tga"}
IGNORED_FILES = {"thumbs.db", "desktop.ini"}
MAX_FILES = 2_000_000
MAX_LABEL_BYTES = 4 << 30  # a label file above it is refused before it is read
MAX_UNPACKED = 1 << 30  # bytes of a packed label file

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_XML_ENCODING = re.compile(  # those of text; Python has others, of which some take a long time
    rb"\s*<\?xml\s[^>]{,200}?encoding\s*=\s*[\"']((?:windows|cp|iso|latin|koi8|mac|shift|euc|gb|big5)[\w-]{,30})[\"']",
    re.ASCII | re.IGNORECASE,
)
ENCODING = Fault(WARNING, "label files are not UTF-8", "read as cp1252", "save them as UTF-8")


class Listing:
    """The files below a folder, by names relative to it, with / between folders.

    files: all names, sorted. Nothing outside of the folder is ever listed: links that lead out of it are left out.
    links: the names of these. passed_over: folders of results below other folders, of which nothing is listed.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        """Raises: FileNotFoundError or NotADirectoryError if root is no folder; ValueError for more than MAX_FILES."""
        self.root = Path(root)
        if not self.root.is_dir():
            if self.root.exists():
                raise NotADirectoryError(f"--dataset {utils.printable(root)} is a file; give the folder that has it")
            raise FileNotFoundError(f"--dataset {utils.printable(root)}: there is no such folder")
        self.links: list[str] = []
        self.passed_over: list[str] = []
        self.files = sorted(self._walk())

    def _walk(self) -> Iterable[str]:
        root, waiting, count = os.path.realpath(self.root), [""], 0
        while waiting:
            prefix = waiting.pop()
            with contextlib.suppress(OSError), os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or name in IGNORED_FOLDERS or name.lower() in IGNORED_FILES:
                        if prefix and name in RESULT_FOLDERS and entry.is_dir(follow_symlinks=False):
                            self.passed_over.append(f"{prefix}{name}")
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{prefix}{name}/")
                    elif entry.is_file(follow_symlinks=False) or _is_inside(root, entry.path):
                        count += 1
                        yield f"{prefix}{name}"
                    elif entry.is_symlink():
                        self.links.append(f"{prefix}{name}")
            if count > MAX_FILES:
                raise ValueError(f"--dataset {self.root} has more than {MAX_FILES:,} files; name the folder itself")

    @cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        """{suffix in lower case, with its dot: names}."""
        groups = defaultdict(list)
        for name in self.files:
            groups[suffix_of(name)].append(name)
        return dict(groups)

    def of(self, *suffixes: str) -> list[str]:
        """The names with one of these suffixes, sorted."""
        return sorted(name for suffix in suffixes for name in self.by_suffix.get(suffix, ()))

    @cached_property
    def pictures(self) -> list[str]:
        """The names of image files, label images among them."""
        return self.of(*PICTURE_SUFFIXES)

    def path(self, name: str) -> Path:
        """The path of a listed file."""
        return self.root / name

    def relative(self, path: Path) -> str:
        """The name of a file of the data set."""
        return path.relative_to(self.root).as_posix()

    def samples(self, names: Iterable[str], count: int = 8) -> list[str]:
        """The first of each folder and others spread evenly: what a reader looks into to recognise a format."""
        folders = defaultdict(list)
        for name in names:
            folders[folder_of(name)].append(name)
        chosen = []
        for group in folders.values():
            step = max(1, (len(group) - 1) // max(count - 1, 1))
            chosen += group[::step][:count]
        return chosen

    def text(self, name: str, findings: Findings | None = None) -> str:
        """The text of a file, as decode_text reads it.

        A file NAME.gz is unpacked.

        findings: gets a warning for cp1252, which is a guess.

        Raises: ValueError for a file that is no text, or above MAX_LABEL_BYTES.
        """
        path = self.path(name)
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise ValueError(f"{utils.printable(name)} has more than {MAX_LABEL_BYTES >> 30} GB")
        data = _unpacked(path) if suffix_of(name) == ".gz" else path.read_bytes()
        text, encoding = decode_text(data, name)
        if encoding == "cp1252" and findings is not None:
            findings.add(ENCODING, name)
        return text

    def json(self, name: str, findings: Findings | None = None) -> Any:
        """The value of a JSON file. findings: as for text.

        Raises: ValueError that says where the text is broken, or that the file is empty.
        """
        text = self.text(name, findings)
        if not text.strip():
            raise ValueError(f"{utils.printable(name)} is empty")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            is_cut = error.pos >= len(text.rstrip()) - 10
            problem = "is cut off" if is_cut else "is no JSON, or damaged"
            place = f"line {error.lineno}, column {error.colno} ({error.msg})"
        except (RecursionError, ValueError) as error:  # numbers of thousands of digits are a ValueError
            problem, place = "cannot be read as JSON", utils.printable(error)
        raise ValueError(f"{utils.printable(name)} {problem}: {place}")


def _unpacked(path: Path) -> bytes:
    """The contents of a file that gzip packed. Raises: ValueError if it is damaged, or has more than MAX_UNPACKED."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_UNPACKED + 1)
    except (zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{utils.printable(path.name)} cannot be unpacked: {error}") from None
    if len(data) > MAX_UNPACKED:
        raise ValueError(f"{utils.printable(path.name)} has more than {MAX_UNPACKED >> 20} MB when it is unpacked")
    return data


def decode_text(data: bytes, name: str) -> tuple[str, str]:
    """The text of a file and its encoding: UTF-8, UTF-16 with a mark at its start, what XML declares, or else cp1252.

    Raises: ValueError for a file that is no text.
    """
    if data[:2] in _UTF16_MARKS:
        return data.decode("utf-16", "replace").removeprefix("\ufeff"), "utf-16"
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        if b"\0" in data:
            raise ValueError(f"{utils.printable(name)} is no text") from None
    declared = _XML_ENCODING.match(data)
    with contextlib.suppress(ValueError, LookupError):  # another text than it says, or an encoding that is none
        if declared is not None:
            return data.decode(declared[1].decode()), declared[1].decode()
    return data.decode("cp1252", "replace"), "cp1252"


def decode_head(data: bytes) -> str:
    """The text of the first bytes of a file, to recognise it: UTF-8, or UTF-16 with a mark at its start."""
    encoding = "utf-16" if data[:2] in _UTF16_MARKS else "utf-8-sig"
    return data.decode(encoding, "replace")


def decode_base64(text: Any) -> bytes:
    """The bytes of base64, which may have line breaks. Raises: ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("has no base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("has damaged base64") from None


def _is_inside(root: str, link: str) -> bool:
    """Whether a link leads to a file in a folder. root: the folder's real path."""
    real = os.path.realpath(link)
    return real.startswith(root.rstrip(os.sep) + os.sep) and os.path.isfile(real)


def parse_xml(text: str, name: str) -> ElementTree.Element:
    """The root of an XML document. Declarations of types and entities, which can fill the memory, are refused.

    Raises: ValueError that says where the text is broken.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8")  # whatever the document declares: it was decoded already

    def refuse(*declaration: Any) -> None:
        raise ValueError(f"{utils.printable(name)} has a DOCTYPE, which no annotation tool writes")

    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise ValueError(f"{utils.printable(name)} is no XML, or cut off: {error}") from None
    return builder.close()


def suffix_of(name: str) -> str:
    """The suffix in lower case: ".json"."""
    return PurePosixPath(name).suffix.lower()


def folder_of(name: str) -> str:
    """The folder of a listed name; empty for the root."""
    return name.rpartition("/")[0]


def stem_of(name: str) -> str:
    """The name without folder and suffix."""
    return PurePosixPath(name).stem


def folded(text: str) -> str:
    """Equal for names that look equal: any case, and accents however they are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())

"""Finds the image files that an annotation file means, inside one folder.

Annotation files come from other machines. Their names may start from another folder, or have backslashes, another case,
another suffix, percent codes, another Unicode form, or be URLs. A name that is right costs one look into the listing
of its folder; the files of all folders are listed only if a name is missing.

An annotation file cannot lead out of the folder: every match is a file that a listing of the folder has. Links that lie
in the folder are followed where a name says so exactly, because only the folder's owner can have made them.
"""

import contextlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import utils

logger = logging.getLogger(__name__)

# Keys of an image's entry that tools write its file's name or address to; the first one that is there counts.
NAME_KEYS = (
    "file_name", "filename", "fileName", "file", "path", "file_path", "filepath", "image_path", "img_path",
    "image_name", "name", "image", "coco_url", "url", "image_url", "flickr_url",
)  # fmt: skip
MOST_CANDIDATES = 100  # files of one name that are compared; of more, none is meant
MAX_FILES = 2_000_000  # that are listed for missing names; more of them are in no data set, but in "/"

_SUFFIXES = utils.IMAGE_SUFFIXES | {".avif", ".dng", ".heic", ".jfif", ".jp2", ".jpe", ".pgm", ".ppm", ".raw", ".tga"}

# How a file was found, in the words of the message.
FOLDERS = "without the first folders of the name"
CASE = "with other upper and lower case"
UNICODE = "in another Unicode form, which looks the same"
CODES = "with percent codes decoded"
SUFFIX = "with another suffix"
ANYWHERE = "in another folder, as the only file of this name"


class Match(NamedTuple):
    """What was found for a name."""

    path: str | None  # of the file, below the folder, with "/"; None if there is not exactly one
    rules: tuple[str, ...] = ()  # how it was found; empty if the name is right
    candidates: tuple[str, ...] = ()  # several files that it could be
    leads_out: bool = False  # the name starts outside of the folder, and nothing was found for it


def name_in_entry(entry: Mapping[str, Any]) -> Any:
    """The file name, path or address in an image's entry: the first text of NAME_KEYS, or else its file_name."""
    texts = (entry[key] for key in NAME_KEYS if key in entry and isinstance(entry[key], str) and entry[key])
    return next(texts, entry.get("file_name"))


def find_files(folder: str | os.PathLike, names: Sequence[Any]) -> list[Match]:
    """The file that each name means, inside a folder. Logs how many were found by which rule.

    names: of an annotation file; what is no text, or is empty, has no match.
    """
    folder = Path(folder)
    listings = _Listings(folder)
    matches = [_find_exactly(listings, name) for name in names]
    missing = [i for i, match in enumerate(matches) if match.path is None and isinstance(names[i], str) and names[i]]
    if missing and (index := FileIndex(folder)).paths:
        for i in missing:
            matches[i] = index.find(names[i])
        _drop_shared(names, matches)
    _report(folder, names, matches)
    return matches


def parts_of(name: str) -> tuple[tuple[str, ...], bool]:
    """The folders and the name of a file in a path or URL of any system, and whether it starts outside of a folder."""
    if not any(mark in name for mark in "/\\:") and name not in (".", ".."):
        return (name,), False  # as most names are
    is_url = _is_url(name)
    if is_url:
        with contextlib.suppress(ValueError):
            name = urlsplit(name).path.lstrip("/")
    path = PureWindowsPath(name)  # knows drives, and both / and \
    parts = path.parts[1:] if path.anchor else path.parts
    leads_out = is_url or bool(path.anchor) or ".." in parts
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    return tuple(parts), leads_out


def _is_url(name: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) is not None


class _Listings:
    """The files of a folder and of its subfolders. Each folder is listed once, when a file of it is first looked up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listings: dict[tuple[str, ...], set[str]] = {}

    def __contains__(self, parts: tuple[str, ...]) -> bool:
        subfolder = parts[:-1]
        if subfolder not in self.listings:
            self.listings[subfolder] = set()
            with contextlib.suppress(OSError, ValueError):  # no such folder, or a name that none can have
                entries = list(os.scandir(self.folder.joinpath(*subfolder)))
                self.listings[subfolder] = {entry.name for entry in entries if entry.is_file()}
        return parts[-1] in self.listings[subfolder]


def _find_exactly(listings: _Listings, name: Any) -> Match:
    if not isinstance(name, str) or not name:
        return Match(None)
    parts, leads_out = parts_of(name)
    if parts and not leads_out and parts in listings:
        return Match("/".join(parts))
    return Match(None, leads_out=leads_out or not parts)


############################################################
#  Names that are not exact
############################################################


def _unicode_form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    """Equal for names that differ in case, Unicode form or outer spaces."""
    return _unicode_form(_unicode_form(text).casefold()).strip()


class FileIndex:
    """All files below a folder, by their names in the forms that are compared. Links to folders are not followed."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []  # below the folder, with "/"
        self.by_tail: dict[str, list[str]] = {}  # folded last part, last two parts ...: paths
        self.by_stem: dict[str, list[str]] = {}  # folded path without suffix: paths of images
        for path in _walk(folder):
            # Archives of Windows that were unpacked here have backslashes in the names of files.
            text = _folded(path.replace("\\", "/"))
            self.paths.append(path)
            parts = text.split("/")
            for start in range(len(parts)):
                self.by_tail.setdefault("/".join(parts[start:]), []).append(path)
            if os.path.splitext(text)[1] in utils.IMAGE_SUFFIXES:
                self.by_stem.setdefault(_stem(text), []).append(path)

    def find(self, name: str) -> Match:
        """The file that a name means: by the most folders of the name that agree, and without codes if possible."""
        parts, leads_out = parts_of(name)
        readings = [(parts, ())] if parts else []
        if "%" in name and (decoded := parts_of(unquote(name))[0]):
            readings.append((decoded, (CODES,)))
        for find in (self._find_name, self._find_stem):
            for parts, rules in readings:
                match = find(parts, rules)
                if match.path is not None or match.candidates:
                    return match._replace(rules=match.rules or (FOLDERS,))
        return Match(None, leads_out=(leads_out and not _is_url(name)) or not readings)

    def _find_name(self, parts: tuple[str, ...], rules: tuple[str, ...]) -> Match:
        """A file with the last part of a name. Of several, the one of which the most folders agree."""
        for start in range(len(parts)):
            tail = parts[start:]
            paths = self.by_tail.get(_folded("/".join(tail)))
            if paths is None:
                continue
            if 1 < len(paths) <= MOST_CANDIDATES:
                paths = _best(tail, paths)
            if len(paths) > 1:
                return Match(None, candidates=tuple(sorted(paths)))
            return Match(paths[0], (*rules, *_differences(parts, tail, paths[0])))
        return Match(None)

    def _find_stem(self, parts: tuple[str, ...], rules: tuple[str, ...]) -> Match:
        """An image with another suffix, in the very folder that a name says, or without the first folders of it."""
        for start in range(len(parts)):
            if paths := self.by_stem.get(_stem(_folded("/".join(parts[start:])))):
                if len(paths) > 1:
                    return Match(None, candidates=tuple(sorted(paths)))
                return Match(paths[0], (*rules, *([FOLDERS] if start else []), SUFFIX))
        return Match(None)


def _stem(path: str) -> str:
    """A folded path without the suffix, if that is one of images. "scan.v2" has none."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix in _SUFFIXES else path


def _walk(folder: Path) -> Iterator[str]:
    """The paths of the files below a folder, with "/", at most MAX_FILES. A link counts if its file lies in the folder.

    Folders that cannot be read are left out.
    """
    root, waiting, count = os.path.realpath(folder), [""], 0
    while waiting:
        prefix = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path + "/")
                elif entry.is_file(follow_symlinks=False) or _is_inside(root, entry.path):
                    count += 1
                    yield path
                if count >= MAX_FILES:
                    logger.warning("%s has more than %d files; the others are not looked at", folder, MAX_FILES)
                    return


def _is_inside(root: str, link: str) -> bool:
    """Whether a link leads to a file in a folder. root: the folder's real path."""
    real = os.path.realpath(link)
    return real.startswith(root.rstrip(os.sep) + os.sep) and os.path.isfile(real)


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.replace("\\", "/").split("/"))


def _best(tail: Sequence[str], paths: list[str]) -> list[str]:
    """Of files whose last parts agree with a name's: those without further folders, then of the same spelling."""
    count = len(tail)
    best = [path for path in paths if len(_split(path)) == count] or paths
    for form in (_unicode_form, str):
        best = [path for path in best if form("/".join(_split(path)[-count:])) == form("/".join(tail))] or best
    return best


def _differences(parts: Sequence[str], tail: Sequence[str], path: str) -> list[str]:
    """The rules by which a name means a file. tail: the last parts of the name, which agree with the file's."""
    file_parts, rules = _split(path), []
    if len(file_parts) > len(tail):
        rules.append(ANYWHERE)
    elif len(parts) > len(tail):
        rules.append(FOLDERS)
    text, file_text = "/".join(tail), "/".join(file_parts[-len(tail) :])
    if text != file_text:
        rules.append(UNICODE if _unicode_form(text) == _unicode_form(file_text) else CASE)
    return rules


def _drop_shared(names: Sequence[Any], matches: list[Match]) -> None:
    """Takes back matches by which several different names would mean one file. A name that is right keeps its file."""
    claims: dict[str, set[str]] = {}
    for name, match in zip(names, matches, strict=True):
        if match.path is not None:
            claims.setdefault(match.path, set()).add(name)
    for i, match in enumerate(matches):
        if match.path is not None and match.rules and len(claims[match.path]) > 1:
            matches[i] = Match(None, candidates=(match.path,))


def _report(folder: Path, names: Sequence[Any], matches: Sequence[Match]) -> None:
    """Logs how many names were found by which rule, with an example of each."""
    found = [(name, match) for name, match in zip(names, matches, strict=True) if match.rules]
    if not found:
        return
    examples = {
        match.rules: f"{utils.printable(name)!s} is {utils.printable(match.path)}" for name, match in found[::-1]
    }
    counts = Counter(match.rules for _, match in found)
    texts = [f"{counts[rules]:,} {', '.join(rules)} ({examples[rules]})" for rules in counts]
    logger.warning(
        "%s: %s of %s images were found under other names than the file says: %s",
        utils.printable(folder, 500), f"{len(found):,}", f"{len(matches):,}", utils.listed(texts, 8),
    )  # fmt: skip

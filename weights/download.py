"""Downloads that can be interrupted, and archives unpacked with care."""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

import runtime

logger = logging.getLogger(__name__)


BACKOFF = 1.0  # seconds before the second attempt; twice as long before each further one
ZIP_RATIO = 200  # an archive may unpack to this many times its size. COCO's annotations, of text, reach about 5.
ZIP_SMALL = 100 * 2**20  # bytes that may be unpacked in any case
_CHUNK = 1 << 16  # bytes read at once; at most so many are lost with the connection


class _InterruptedDownload(Exception):
    """An attempt failed in a way that another may not."""


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, 64 hex digits.

    Raises: FileNotFoundError if there is no such file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    path: str | os.PathLike,
    sha256: str | None = None,
    progress: bool = True,
    timeout: float = 30,
    retries: int = 3,
) -> Path:
    """Downloads a file, unless it is there. What arrived stays in PATH.part, and the next call goes on from there.

    The file appears at path whole or not at all. Of several processes that ask for one path, one downloads and the
    others wait for it (PATH.lock; delete it whenever nobody downloads). Proxies are taken from the environment
    (https_proxy, no_proxy).

    url: http or https. path: the file to make; its folder is made too.
    sha256: the file's hash, 64 hex digits or the first 8 or more, as published. Without it, nothing but the size that
        the server tells is checked, and a file that is there is taken for the right one.
    progress: show a bar. timeout: seconds without a byte after which the connection counts as lost.
    retries: attempts after the first, where the connection was lost or the server was busy.

    Returns: path.
    Raises: ValueError if the hash differs (what was downloaded is deleted; what was there before is left alone), if
        the server answers with a web page, or for arguments that are not as above; ConnectionError, naming the URL, if
        the server refuses or all attempts fail; OSError if the disk is full or the folder cannot be written.
    """
    url, path = _check_url(url), Path(path)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 must be 64 hex digits, or the first 8 or more of them, not {sha256!r}")
    if retries < 0 or not timeout > 0:
        raise ValueError(f"retries must be at least 0 and timeout above 0 seconds, not {retries} and {timeout}")
    if path.is_dir():
        raise ValueError(f"path must name a file, but {path} is a folder; add the file's name")
    if _is_downloaded(path, sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, part, notes = (path.with_name(path.name + suffix) for suffix in (".lock", ".part", ".part.json"))
    with runtime.locked_file(lock, lambda: logger.warning("Another process is downloading %s; waiting for it", path)):
        if not _is_downloaded(path, sha256):
            _fetch(url, part, notes, sha256 is not None, progress, timeout, retries)
            _check_hash(part, notes, url, sha256)
            with open(part, "ab") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            notes.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows deletes no file that another process has open
            lock.unlink()  # another process may still wait for this lock; then it finds the finished file
    return path


def safe_extract(zip_path: str | os.PathLike, folder: str | os.PathLike, progress: bool = True) -> Path:
    """Unpacks a zip archive that need not be trusted.

    Everything is checked before the first file is written. Each file appears whole or not at all, and replaces one
    that is there; other files in the folder stay.

    zip_path: the archive. folder: where to; it is made. progress: show a bar.

    Returns: folder.
    Raises: FileNotFoundError if there is no archive; ValueError if it is damaged or encrypted, has a name that leaves
        the folder, twice the same name, a link or a device, or unpacks to more than ZIP_RATIO times its size; OSError
        if the disk has not enough room.
    """
    zip_path, folder = Path(zip_path), Path(folder)
    if not zip_path.is_file():
        raise FileNotFoundError(f"zip_path {zip_path} is no file; was it downloaded?")
    try:
        with zipfile.ZipFile(zip_path) as archive:
            targets = _check_members(zip_path, archive.infolist())
            total = sum(member.file_size for member in archive.infolist())
            folder.mkdir(parents=True, exist_ok=True)
            if total > shutil.disk_usage(folder).free:
                raise OSError(f"{zip_path} unpacks to {total:,} bytes, more than the disk of {folder} has left")
            with _bar(progress, total, zip_path.name) as bar:
                _extract_members(archive, targets, folder.resolve(), bar)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"zip_path {zip_path} is damaged or no zip archive ({error}); download it again") from error
    return folder


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must begin with http:// or https:// and name a host, not {url!r}")
    if not all("!" <= char <= "~" for char in url):
        raise ValueError(f"url must not have spaces or letters outside of ASCII: {url!r}; urllib.parse.quote helps")
    return url


def _is_downloaded(path: Path, sha256: str | None) -> bool:
    """Whether the file is there. Raises: ValueError if it is, and is not the one with this hash."""
    if not path.exists():
        return False
    if sha256 is not None and not (actual := sha256_of(path)).startswith(sha256.lower()):
        raise ValueError(
            f"path {path} is there but is another file: sha256 {sha256} was expected and it has {actual}; "
            "delete or move it to download the right one"
        )
    return True


def _check_hash(part: Path, notes: Path, url: str, sha256: str | None) -> None:
    if sha256 is None or (actual := sha256_of(part)).startswith(sha256.lower()):
        return
    _discard(part, notes)
    raise ValueError(
        f"{url} does not have the sha256 {sha256} that was expected, but {actual}; was the file replaced, or damaged "
        "on its way? What was downloaded is deleted, and the next try starts anew"
    )


def _fetch(url: str, part: Path, notes: Path, hashed: bool, progress: bool, timeout: float, retries: int) -> None:
    """Attempts until part is whole."""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(BACKOFF * 2 ** (attempt - 1), 30))
        try:
            _attempt(url, part, notes, hashed, progress, timeout)
            return
        except _InterruptedDownload as error:
            reason = error
    kept = part.stat().st_size if part.exists() else 0
    raise ConnectionError(
        f"{url} could not be downloaded in {retries + 1} attempts: {reason}. {kept:,} bytes are kept in {part}, and "
        "running again goes on from there. Is the network up, and https_proxy set if there is a proxy?"
    ) from reason


def _attempt(url: str, part: Path, notes: Path, hashed: bool, progress: bool, timeout: float) -> None:
    """One request, and what it brings into part."""
    have, known = _resume_point(url, part, notes, hashed)
    headers = {"User-Agent": "mask-scoring-rcnn", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = urllib.request.build_opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:
                _refuse(url, error.code, error.reason)
            if not have or not _continues(error.headers, have, known):
                _discard(part, notes)
                raise _InterruptedDownload("the file on the server is no longer the one that was begun") from error
        return  # nothing is missing: the last call ended just before it could rename part
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedDownload(_reason(error)) from error
    with response:
        _check_answer(url, response, part)
        if response.status == 206 and not _continues(response.headers, have, known):
            _discard(part, notes)
            raise _InterruptedDownload("the server went on with another part, or another file, than was begun")
        start = have if response.status == 206 else 0
        _receive(response, url, part, notes, start, progress)


def _resume_point(url: str, part: Path, notes: Path, hashed: bool) -> tuple[int, dict]:
    """How many bytes of part to keep, and what the server said of the file when they came.

    A part of which is not known that it came from this URL is kept only if a hash will tell whether that was right.
    """
    try:
        known = json.loads(notes.read_text())
        known = known if known["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    return part.stat().st_size if part.exists() and (known or hashed) else 0, known


def _continues(headers: http.client.HTTPMessage, have: int, known: dict) -> bool:
    """Whether an answer of status 206 or 416 goes on, after `have` bytes, with the file that is known."""
    pattern = r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<size>\d+|\*)"
    match = re.fullmatch(pattern, headers.get("Content-Range", "").strip())
    if match is None:
        return False
    start = match["start"] or match["size"]  # status 416 tells only the size: right if just nothing is missing
    same_size = known.get("size") is None or match["size"] in ("*", str(known["size"]))
    validator = _validator(headers)
    return start == str(have) and same_size and (validator is None or known.get("validator") in (None, validator))


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """What If-Range may be: a strong ETag, or else the date."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _refuse(url: str, status: int, reason: str) -> None:
    """Raises for an HTTP status that is no success: those that may pass are worth another attempt."""
    if status in (408, 429) or status >= 500:
        raise _InterruptedDownload(f"the server answered {status} {reason}")
    hint = "it was moved or removed" if status in (404, 410) else "it may need a login"
    raise ConnectionError(f"{url}: the server answered {status} {reason}; {hint}, so look at it in a browser")


def _check_answer(url: str, response: http.client.HTTPResponse, part: Path) -> None:
    """Raises unless what comes can be the file."""
    if response.status not in (200, 206):
        _refuse(url, response.status, response.reason)
    if urlsplit(response.url).scheme not in ("http", "https"):
        raise ValueError(f"{url} leads to {response.url}, which is neither http nor https")
    is_page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if is_page and part.with_suffix("").suffix.lower() not in (".html", ".htm", ".xhtml"):
        raise ValueError(
            f"{url} answered with a web page instead of the file: a login or error page, or one that asks for a click. "
            f"Download it in a browser and put it at {part.with_suffix('')}"
        )


def _receive(response: http.client.HTTPResponse, url: str, part: Path, notes: Path, start: int, progress: bool) -> None:
    """Writes the answer into part, from byte `start` on. Errors of the disk pass; those of the network do not."""
    length = response.headers.get("Content-Length")
    size = start + int(length) if length and length.isdigit() else None
    with open(part, "ab" if start else "wb") as file, _bar(progress, size, part.stem, start) as bar:
        if not start:  # part is empty by now: at no time do the notes speak of another file's bytes
            notes.write_text(json.dumps({"url": url, "validator": _validator(response.headers), "size": size}))
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))
        got = file.tell()
    if size is not None and got != size:
        raise _InterruptedDownload(f"the connection ended after {got:,} of {size:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedDownload(_reason(error)) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__


def _discard(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _bar(progress: bool, total: int | None, name: str, initial: int = 0) -> tqdm:
    return tqdm(
        total=total, initial=initial, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    )


def _check_members(zip_path: Path, members: list[zipfile.ZipInfo]) -> dict[tuple[str, ...], zipfile.ZipInfo]:
    """The members that are files, by the parts of their paths. Raises: ValueError for what is not safe to unpack."""
    targets = {}
    for member in members:
        path = PureWindowsPath(member.filename)  # which sees drives, and both / and \, as Windows would
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.drive or path.root or ".." in path.parts:
            raise ValueError(f"{zip_path} has {member.filename!r}, which leaves the folder; do not trust this archive")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(
                f"{zip_path} has {member.filename!r}, which is a link or a device; only files are unpacked"
            )
        if member.flag_bits & 1:
            raise ValueError(f"{zip_path} is encrypted ({member.filename!r}); unpack it with its password by hand")
        if not member.is_dir():
            if path.parts in targets or not path.parts:
                raise ValueError(f"{zip_path} has {member.filename!r} twice, or without a name; it is damaged")
            targets[path.parts] = member
    total, packed = sum(member.file_size for member in members), zip_path.stat().st_size
    if total > max(ZIP_SMALL, ZIP_RATIO * packed):
        raise ValueError(
            f"{zip_path} of {packed:,} bytes would unpack to {total:,}, more than {ZIP_RATIO} times as much: a zip "
            "bomb? If you trust it, unpack it by hand"
        )
    for parts in targets:
        if any(parts[:depth] in targets for depth in range(1, len(parts))):
            raise ValueError(f"{zip_path} has {'/'.join(parts)!r} inside of what is a file; it is damaged")
    return targets


def _extract_members(archive: zipfile.ZipFile, targets: dict, folder: Path, bar: tqdm) -> None:
    """Writes each file under another name, then renames it. folder: resolved."""
    checked = set()
    for parts, member in targets.items():
        target = folder.joinpath(*parts)
        if target.parent not in checked:
            if not target.parent.resolve().is_relative_to(folder):  # through a link that was there before
                raise ValueError(f"{target.parent} leads out of {folder}; remove the link to unpack {archive.filename}")
            target.parent.mkdir(parents=True, exist_ok=True)
            checked.add(target.parent)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with archive.open(member) as source, open(part, "wb") as file:
                _copy(source, file, bar)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def _copy(source: BinaryIO, file: BinaryIO, bar: tqdm) -> None:
    """Copies no more than the archive declares: zipfile stops there, and compares the checksum."""
    while chunk := source.read(_CHUNK):
        file.write(chunk)
        bar.update(len(chunk))

"""Downloads that can be interrupted and continued, and unpacking of archives."""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

from tqdm import tqdm

import runtime

logger = logging.getLogger(__name__)

BACKOFF = 1.0  # seconds before the second attempt; the pause doubles with each further attempt
ZIP_RATIO = 200  # an archive may unpack to this many times its size. COCO's annotations, which are text, reach about 5.
ZIP_SMALL = 100 * 2**20  # bytes that any archive may unpack to
_CHUNK = 1 << 16  # bytes read at once; a lost connection loses at most as many


class _Interrupted(Exception):
    """An attempt failed, and another attempt may succeed."""


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, 64 hex digits.

    Raises: FileNotFoundError if there is no such file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


############################################################
#  Download
############################################################


def download(
    url: str,
    path: str | os.PathLike,
    sha256: str | None = None,
    progress: bool = True,
    timeout: float = 30,
    retries: int = 3,
) -> Path:
    """Download a file, unless it exists. An interrupted download stays in PATH.part, and the next call continues it.

    The file appears at path complete or not at all. If several processes ask for the same path, one downloads and the
    others wait for its file. The lock is PATH.lock; a lock file that a killed process left behind locks nothing.
    Proxies are taken from the environment (https_proxy, no_proxy).

    url: http or https.
    path: the file to make. Its folder is made too.
    sha256: the file's hash, 64 hex digits or the first 8 or more, as published. Without it, only the size that the
        server announces is checked, and a file that exists already counts as the right one.
    progress: show a bar.
    timeout: seconds without a byte after which the connection counts as lost.
    retries: further attempts after the first, if the connection was lost or the server was busy.

    Returns: path.
    Raises: ValueError if the hash differs (the download is deleted; a file that existed before stays), if the server
        answers with a web page, or for arguments other than described; ConnectionError that names the URL if the
        server refuses or all attempts fail; OSError if the disk is full or the folder cannot be written.
    """
    path, parts = Path(path), urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must begin with http:// or https:// and name a host, not {url!r}")
    if not all("!" <= char <= "~" for char in url):
        raise ValueError(f"url must not have spaces or letters outside of ASCII: {url!r}; urllib.parse.quote helps")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 must be 64 hex digits, or the first 8 or more of them, not {sha256!r}")
    if retries < 0 or not timeout > 0:
        raise ValueError(f"retries must be at least 0 and timeout above 0 seconds, not {retries} and {timeout}")
    if path.is_dir():
        raise ValueError(f"path must name a file, but {path} is a folder; add the file's name")
    if _exists(path, sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with runtime.locked_file(lock, lambda: logger.warning("Another process is downloading %s; waiting for it", path)):
        if not _exists(path, sha256):
            _download_new(url, path, sha256, progress, timeout, retries)
        with contextlib.suppress(OSError):  # Windows deletes no file that another process has open
            lock.unlink()  # another process may still wait for this lock; then it finds the finished file
    return path


def _exists(path: Path, sha256: str | None) -> bool:
    """Whether the file exists. Raises: ValueError if it does and has another hash."""
    if not path.exists():
        return False
    if sha256 is not None and not (actual := sha256_of(path)).startswith(sha256.lower()):
        raise ValueError(
            f"path {path} is there but is another file: sha256 {sha256} was expected and it has {actual}; "
            "delete or move it to download the right one"
        )
    return True


def _download_new(url: str, path: Path, sha256: str | None, progress: bool, timeout: float, retries: int) -> None:
    """Complete PATH.part in as many attempts as allowed, check its hash and rename it to path."""
    part, notes = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(BACKOFF * 2 ** (attempt - 1), 30))
        try:
            _attempt(url, part, notes, sha256 is not None, progress, timeout)
            break
        except _Interrupted as error:
            reason = error
    else:
        kept = part.stat().st_size if part.exists() else 0
        raise ConnectionError(
            f"{url} could not be downloaded in {retries + 1} attempts: {reason}. {kept:,} bytes are kept in {part}, "
            "and running again goes on from there. Is the network up, and https_proxy set if there is a proxy?"
        ) from reason
    if sha256 is not None and not (actual := sha256_of(part)).startswith(sha256.lower()):
        part.unlink()
        notes.unlink(missing_ok=True)
        raise ValueError(
            f"{url} does not have the sha256 {sha256} that was expected, but {actual}; was the file replaced, or "
            "damaged on its way? What was downloaded is deleted, and the next try starts anew"
        )
    with open(part, "ab") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    notes.unlink(missing_ok=True)


def _attempt(url: str, part: Path, notes: Path, has_hash: bool, progress: bool, timeout: float) -> None:
    """Ask once for the missing bytes of a file and append them to part.

    notes: the file that remembers what the server said of the file when part was begun: url, size and validator.

    Raises: _Interrupted, ConnectionError and ValueError, as _check_answer; OSError of the disk.
    """
    try:
        source = json.loads(notes.read_text())
        source = source if source["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError):
        source = {}
    # Without notes, nothing but the hash in the end can tell whether part is the beginning of this file.
    start = part.stat().st_size if part.exists() and (source or has_hash) else 0
    headers = {"User-Agent": "mask-scoring-rcnn", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if source.get("validator"):
            headers["If-Range"] = source["validator"]
    request = urllib.request.Request(url, headers=headers)
    try:
        with _network_errors():
            response = urllib.request.build_opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error  # an error status is an answer too
    with response:
        _check_answer(url, response, part.with_suffix(""))
        if response.status in (206, 416) and not _continues(response.headers, start, source):
            part.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
            raise _Interrupted("the file on the server is no longer the one that was begun")
        if response.status == 416:
            return  # part is complete: the last call ended just before it could rename part
        _receive(response, url, part, notes, start if response.status == 206 else 0, progress)


def _check_answer(url: str, response: http.client.HTTPResponse, path: Path) -> None:
    """Raises an error unless an answer can be about the file: _Interrupted if another attempt may succeed."""
    status, reason = response.status, response.reason
    if status in (408, 429) or status >= 500:
        raise _Interrupted(f"the server answered {status} {reason}")
    if status not in (200, 206, 416):
        hint = "it was moved or removed" if status in (404, 410) else "it may need a login"
        raise ConnectionError(f"{url}: the server answered {status} {reason}; {hint}, so look at it in a browser")
    if urlsplit(response.url).scheme not in ("http", "https"):
        raise ValueError(f"{url} leads to {response.url}, which is neither http nor https")
    is_page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if status != 416 and is_page and path.suffix.lower() not in (".html", ".htm", ".xhtml"):
        raise ValueError(
            f"{url} answered with a web page instead of the file: a login or error page, or one that asks for a click. "
            f"Download it in a browser and put it at {path}"
        )


def _continues(headers: http.client.HTTPMessage, start: int, source: dict) -> bool:
    """Whether an answer of status 206 or 416 continues the file of these notes after `start` bytes."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None:
        return False
    first, size = match.groups()
    same_start = (first or size) == str(start)  # status 416 has no first byte: start must be the size, nothing missing
    same_size = source.get("size") is None or size in ("*", str(source["size"]))
    validator = _validator(headers)
    same_file = validator is None or source.get("validator") in (None, validator)
    return same_start and same_size and same_file


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """The header that tells versions of a file apart and that If-Range takes: a strong ETag, or else the date."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _receive(response: http.client.HTTPResponse, url: str, part: Path, notes: Path, start: int, progress: bool) -> None:
    """Write the answer into part, from byte `start` on."""
    length = response.headers.get("Content-Length") or ""
    size = start + int(length) if length.isdigit() else None
    with open(part, "ab" if start else "wb") as file, _bar(progress, size, part.stem, start) as bar:
        if not start:  # part is empty at this point, so the notes never describe the bytes of another file
            notes.write_text(json.dumps({"url": url, "validator": _validator(response.headers), "size": size}))
        while True:
            with _network_errors():
                chunk = response.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if size is not None and received != size:
        raise _Interrupted(f"the connection ended after {received:,} of {size:,} bytes")


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turns errors of the network, other than error statuses, into _Interrupted."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _bar(progress: bool, total: int | None, name: str, initial: int = 0) -> tqdm:
    """A progress bar that counts bytes."""
    return tqdm(
        total=total, initial=initial, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    )


############################################################
#  Archives
############################################################


def safe_extract(zip_path: str | os.PathLike, folder: str | os.PathLike, progress: bool = True) -> Path:
    """Unpack a zip archive into a folder, which is made.

    Each file appears complete or not at all, and replaces a file of its name; other files in the folder stay. Links in
    the archive become plain files.

    progress: show a bar.

    Returns: folder.
    Raises: FileNotFoundError if there is no archive; ValueError if it is damaged or encrypted, unpacks to more than
        ZIP_RATIO times its size, or has a file that would lie outside of the folder; OSError if the disk has too
        little room.
    """
    zip_path, folder = Path(zip_path), Path(folder)
    if not zip_path.is_file():
        raise FileNotFoundError(f"zip_path {zip_path} is no file; was it downloaded?")
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = _check_members(zip_path, members)
            folder.mkdir(parents=True, exist_ok=True)
            if total > shutil.disk_usage(folder).free:
                raise OSError(f"{zip_path} unpacks to {total:,} bytes, more than the disk of {folder} has left")
            with tempfile.TemporaryDirectory(dir=folder) as temporary, _bar(progress, total, zip_path.name) as bar:
                for member in members:
                    file = Path(archive.extract(member, temporary))
                    target = folder / file.relative_to(temporary)
                    if not target.parent.resolve().is_relative_to(folder.resolve()):
                        raise ValueError(f"{target.parent} is a link that leads out of {folder}; remove the link")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
                    bar.update(member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"zip_path {zip_path} is damaged or no zip archive ({error}); download it again") from error
    return folder


def _check_members(zip_path: Path, members: list[zipfile.ZipInfo]) -> int:
    """The number of bytes that members unpack to. Raises: ValueError for an archive that must not be unpacked."""
    for member in members:
        path = PureWindowsPath(member.filename)  # which knows drives, and both / and \, on every system
        if path.drive or path.root or ".." in path.parts:
            raise ValueError(f"{zip_path} has {member.filename!r}, which leaves the folder; do not trust this archive")
        if member.flag_bits & 1:
            raise ValueError(f"{zip_path} is encrypted ({member.filename!r}); unpack it with its password by hand")
    total, packed = sum(member.file_size for member in members), zip_path.stat().st_size
    if total > max(ZIP_SMALL, ZIP_RATIO * packed):
        raise ValueError(
            f"{zip_path} of {packed:,} bytes would unpack to {total:,}, more than {ZIP_RATIO} times as much: a zip "
            "bomb? If you trust it, unpack it by hand"
        )
    return total

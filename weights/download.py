"""Downloads that can be interrupted and continued, and unpacking of archives."""

import contextlib
import hashlib
import http.client
import json
import logging
import lzma
import os
import re
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

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
    return Digest("sha256", "").of(path)


class Digest(NamedTuple):
    """The hash that a file should have. Few digits tell a damaged file; only a whole sha256 tells a forged one."""

    kind: str  # sha256 or md5
    digits: str  # the first of its hex digits, in small letters

    def of(self, path: str | os.PathLike) -> str:
        """The hash of this kind that a file has. Raises: FileNotFoundError if there is no such file."""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(self.kind, usedforsecurity=False)).hexdigest()

    def mismatch(self, path: str | os.PathLike) -> str | None:
        """The hash of a file that has another one than this; None if it has this."""
        actual = self.of(path)
        return None if actual.startswith(self.digits) else actual


_LENGTHS = {"sha256": (8, 64), "md5": (6, 32)}  # hex digits: the fewest that are published, and all


def expected_digest(sha256: str | None, md5: str | None) -> Digest | None:
    """The hash that a download is compared with, of the two that may be published; None without one.

    Raises: ValueError for both, and for one that has other than 8 to 64 (sha256) or 6 to 32 (md5) hex digits.
    """
    if sha256 is not None and md5 is not None:
        raise ValueError("give sha256 or md5, not both; sha256 tells more")
    if sha256 is None and md5 is None:
        return None
    kind, digits = ("sha256", sha256) if md5 is None else ("md5", md5)
    fewest, all_ = _LENGTHS[kind]
    if not re.fullmatch(f"[0-9a-fA-F]{{{fewest},{all_}}}", digits):
        raise ValueError(f"{kind} must be {all_} hex digits, or the first {fewest} or more of them, not {digits!r}")
    return Digest(kind, digits.lower())


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
    limit: float = 24 * 3600,
    md5: str | None = None,
) -> Path:
    """Download a file, unless it exists. An interrupted download stays in PATH.part, and the next call continues it.

    The file appears at path complete or not at all. If several processes ask for the same path, one downloads and the
    others wait for its file. The lock is PATH.lock; a lock file that a killed process left behind locks nothing.
    Proxies are taken from the environment (https_proxy, no_proxy).

    url: http or https, and so are all addresses that it leads to.
    path: the file to make. Its folder is made too.
    sha256, md5: the file's hash, whichever is published: of sha256 64 hex digits or the first 8 or more, of md5 32 or
        the first 6 or more. Without one, only the size that the server announces is checked, if it does, and a file
        that exists already counts as the right one.
    progress: show a bar.
    timeout: seconds without a byte after which the connection counts as lost.
    retries: further attempts after the first, if the connection was lost or the server was busy.
    limit: seconds for all attempts together, however slowly bytes come.

    Returns: path.
    Raises: ValueError if the hash differs (the download is deleted; a file that existed before stays), if the server
        answers with a web page, or for arguments other than described; ConnectionError that names the URL if the
        server refuses or all attempts fail; OSError if the disk is full, the folder cannot be written, or a file
        beside path is a link.
    """
    path, parts = Path(path), urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must begin with http:// or https:// and name a host, not {url!r}")
    if not all("!" <= char <= "~" for char in url):
        raise ValueError(f"url must not have spaces or letters outside of ASCII: {url!r}; urllib.parse.quote helps")
    expected = expected_digest(sha256, md5)
    if retries < 0 or not timeout > 0 or not limit > 0:
        raise ValueError(
            f"retries must be at least 0, timeout and limit above 0 seconds, not {retries}, {timeout} and {limit}"
        )
    if path.is_dir():
        raise ValueError(f"path must name a file, but {path} is a folder; add the file's name")
    if _exists(path, expected):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with runtime.locked_file(lock, lambda: logger.warning("Another process is downloading %s; waiting for it", path)):
        if not _exists(path, expected):
            with _Deadline(limit) as deadline:
                _download_new(url, path, expected, progress, timeout, retries, deadline)
        with contextlib.suppress(OSError):  # Windows deletes no file that another process has open
            lock.unlink()  # another process may still wait for this lock; then it finds the finished file
    return path


def _exists(path: Path, expected: Digest | None) -> bool:
    """Whether the file exists. Raises: ValueError if it does and has another hash."""
    if not path.exists():
        return False
    if expected is not None and (actual := expected.mismatch(path)):
        raise ValueError(
            f"path {path} is there but is another file: {expected.kind} {expected.digits} was expected and it has "
            f"{actual}; delete or move it to download the right one"
        )
    return True


def _download_new(
    url: str, path: Path, expected: Digest | None, progress: bool, timeout: float, retries: int, deadline: "_Deadline"
) -> None:
    """Complete PATH.part in as many attempts as allowed, check its hash and rename it to path."""
    part, notes = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    attempts = 0
    while True:
        attempts += 1
        try:
            _attempt(url, part, notes, expected is not None, progress, timeout, deadline)
            break
        except _Interrupted as error:
            reason = error
        is_late = deadline.has_passed()
        if is_late or attempts > retries:
            cause = f"it took more than {deadline.seconds:g} seconds ({reason})" if is_late else f"{reason}"
            raise ConnectionError(
                f"{url} could not be downloaded in {attempts} attempts: {cause}. {_size_of(part):,} bytes are kept in "
                f"{part}, and running again goes on from there. Is the network up, and https_proxy set if there is a "
                "proxy?"
            ) from reason
        time.sleep(min(BACKOFF * 2 ** (attempts - 1), 30, deadline.seconds_left()))
    if expected is not None and (actual := expected.mismatch(part)):
        part.unlink()
        notes.unlink(missing_ok=True)
        raise ValueError(
            f"{url} does not have the {expected.kind} {expected.digits} that was expected, but {actual}; was the file "
            "replaced, or damaged on its way? What was downloaded is deleted, and the next try starts anew"
        )
    with runtime.errors_name(part), runtime.open_own(part, "ab") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    notes.unlink(missing_ok=True)


def _size_of(part: Path) -> int:
    """Bytes of a file that is downloaded, 0 without it. Raises: OSError if it is a link or no file."""
    try:
        with runtime.open_own(part, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


def _read_notes(notes: Path, url: str) -> dict[str, Any]:
    """What the server said of the file when part was begun: url, size and validator. {} if it was another file."""
    try:
        with runtime.open_own(notes, "rb") as file:
            source = json.loads(file.read(1 << 20))
        types = {"url": str, "size": int | None, "validator": str | None}
        is_ours = all(isinstance(source[name], kind) for name, kind in types.items()) and source["url"] == url
        return source if is_ours and not _is_header(source["validator"] or "") else {}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _is_header(text: str) -> bool:
    """Whether a text would break out of the header of a request."""
    return not all(" " <= character <= "~" for character in text)


def _attempt(
    url: str, part: Path, notes: Path, has_hash: bool, progress: bool, timeout: float, deadline: "_Deadline"
) -> None:
    """Ask once for the missing bytes of a file and append them to part.

    notes: the file that remembers what the server said of the file when part was begun: url, size and validator.

    Raises: _Interrupted, ConnectionError and ValueError, as _check_answer; OSError of the disk.
    """
    source, start = _read_notes(notes, url), _size_of(part)
    # Without notes, nothing but the hash in the end can tell whether part is the beginning of this file.
    start = start if source or has_hash else 0
    headers = {"User-Agent": "mask-scoring-rcnn", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if source.get("validator"):
            headers["If-Range"] = source["validator"]
    request = urllib.request.Request(url, headers=headers)
    try:
        with _network_errors():
            response = _opener(deadline).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error  # an error status is an answer too
    except ValueError as error:
        raise ConnectionError(f"{url} leads to an address that is not opened: {_printable(error)}") from error
    with response:
        _check_answer(url, response, part.with_suffix(""))
        if response.status in (206, 416) and not _continues(response.headers, start, source):
            part.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
            raise _Interrupted("the file on the server is no longer the one that was begun")
        if response.status == 416:
            return  # part is complete: the last call ended just before it could rename part
        start = start if response.status == 206 else 0
        size = _announced_size(response, start, source)
        received = _receive(response, url, part, notes, start, size, progress)
    if size is not None and received != size:
        raise _Interrupted(f"the connection ended after {received:,} of {size:,} bytes")
    if received == 0 or (size is None and deadline.has_passed()):
        raise _Interrupted("the answer is empty" if received == 0 else f"the answer was cut after {received:,} bytes")


############################################################
#  Connections
############################################################


class _Deadline:
    """Closes the connections of a download when its time is over, whatever they wait for. A context."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._close)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._timer.cancel()

    def seconds_left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def has_passed(self) -> bool:
        return self.seconds_left() == 0

    def watch(self, connection: socket.socket) -> None:
        """Close this connection, too. Raises: TimeoutError if the time is over."""
        self._sockets.append(connection)
        if self.has_passed():
            raise TimeoutError("no time is left")

    def _close(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not of SSLSocket, which is not for two threads


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only. Python's would follow one to ftp.

    Raises: ValueError for other addresses.
    """

    def http_error_302(self, request: Any, file: Any, code: int, message: str, headers: Any) -> Any:
        try:
            address = urljoin(request.full_url, headers.get("Location") or headers.get("URI") or "")
            if urlsplit(address).scheme not in ("http", "https"):
                raise ValueError(f"{address} is neither http nor https")
            return super().http_error_302(request, file, code, message, headers)
        except ValueError:
            file.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """Opens addresses of http and https and of no other kind, also after redirects."""

    def connection(kind: type) -> Callable[..., Any]:
        class Watched(kind):
            def connect(self) -> None:
                super().connect()
                deadline.watch(self.sock)

        return Watched

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(connection(http.client.HTTPConnection), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(connection(http.client.HTTPSConnection), request, context=self._context)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        Http(),
        Https(),
    ):
        opener.add_handler(handler)
    return opener


def _printable(text: Any) -> str:
    """A text of the server, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in str(text)[:200])


def _check_answer(url: str, response: http.client.HTTPResponse, path: Path) -> None:
    """Raises an error unless an answer can be about the file: _Interrupted if another attempt may succeed."""
    status, reason = response.status, _printable(response.reason)
    if status in (408, 429) or status >= 500:
        raise _Interrupted(f"the server answered {status} {reason}")
    if status not in (200, 206, 416):
        hint = "it was moved or removed" if status in (404, 410) else "it may need a login"
        raise ConnectionError(f"{url}: the server answered {status} {reason}; {hint}, so look at it in a browser")
    encodings = [response.headers.get(name) or "identity" for name in ("Content-Encoding", "Transfer-Encoding")]
    if encodings[0].strip().lower() != "identity" or encodings[1].strip().lower() not in ("identity", "chunked"):
        raise ConnectionError(
            f"{url} answered with other bytes than those of the file (encoded as {_printable(', '.join(encodings))}), "
            f"which was not asked for. Download it in a browser and put it at {path}"
        )
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


def _announced_size(response: http.client.HTTPResponse, start: int, source: dict[str, Any]) -> int | None:
    """The size of the whole file that an answer announces; None if it does not.

    start: the bytes that are there already. source: the notes of part.

    Raises: _Interrupted if it announces several sizes.
    """
    lengths = set(response.headers.get_all("Content-Length") or [])
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise _Interrupted(f"the server announces {_printable(' and '.join(sorted(lengths)))} bytes")
    if response.status == 206:  # it may have less than all that is missing; the next attempt asks for the rest
        total = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", "").strip())
        if total is not None or source.get("size") is not None:
            return int(total[1]) if total is not None else source["size"]
    return start + int(lengths.pop()) if lengths else None


def _receive(
    response: http.client.HTTPResponse, url: str, part: Path, notes: Path, start: int, size: int | None, progress: bool
) -> int:
    """Write the answer into part, from byte `start` on. size: that of the whole file, if it is known.

    Returns: the bytes that part has then.
    """
    with (
        runtime.errors_name(part),
        runtime.open_own(part, "ab" if start else "wb") as file,
        _bar(progress, size, part.stem, start) as bar,
    ):
        if not start:  # part is empty at this point, so the notes never describe the bytes of another file
            text = json.dumps({"url": url, "validator": _validator(response.headers), "size": size})
            with runtime.errors_name(notes), runtime.open_own(notes, "wb") as notes_file:
                notes_file.write(text.encode())
        received = start
        while size is None or received < size:
            with (
                _network_errors()
            ):  # read1 returns what there is: many bytes that come one by one end with the deadline
                chunk = response.read1(_CHUNK if size is None else min(_CHUNK, size - received))
            if not chunk:
                break
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    return received


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
            with _temporary_folder(folder, zip_path) as temporary, _bar(progress, total, zip_path.name) as bar:
                for member in members:
                    _extract_member(archive, member, temporary, folder)
                    bar.update(member.file_size)
    except _DAMAGE as error:
        raise ValueError(
            f"zip_path {zip_path} is damaged or no zip archive ({_printable(error)}); download it again"
        ) from error
    return folder


# What zipfile raises for damaged archives, beside ValueError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, struct.error, UnicodeError),
    *(OverflowError, IndexError, KeyError, MemoryError),
)


@contextlib.contextmanager
def _temporary_folder(folder: Path, zip_path: Path) -> Iterator[Path]:
    """A folder inside a folder, for files that are not finished. The next call removes that of a killed process."""
    name = folder / zip_path.name
    runtime.remove_leftovers(name)
    temporary = runtime.temporary_path(name)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, temporary: Path, folder: Path) -> None:
    """Write a file of an archive to its place in a folder, whole. temporary: a folder on the same disk."""
    target = folder / Path(*[part for part in PureWindowsPath(member.filename).parts if part != "."])
    file = temporary / "file"
    try:
        with runtime.errors_name(target), archive.open(member) as source, runtime.open_own(file, "wb") as output:
            shutil.copyfileobj(source, output)
    except OSError as error:
        if error.errno is None:  # bz2 says so that its data are damaged
            raise zipfile.BadZipFile(str(error)) from error
        raise
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{target.parent} is a link that leads out of {folder}; remove the link")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


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

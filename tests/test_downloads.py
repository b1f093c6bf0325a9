"""Downloads from a server that misbehaves, and archives that do."""

import errno
import hashlib
import http.server
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import files_of_at_most
from http_server import FileServer

from weights.download import _Deadline, _opener, download, safe_extract, sha256_of

CONTENT = bytes(range(256)) * 1200 + b"the end"  # a few chunks
HASH = hashlib.sha256(CONTENT).hexdigest()
HALF = 150_000


@pytest.fixture(autouse=True)
def plain_network(monkeypatch):
    """No proxies, no pauses."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("weights.download.BACKOFF", 0)


@pytest.fixture
def server():
    with FileServer(CONTENT) as file_server:
        yield file_server


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.pth"


def get(server, path, **options) -> Path:
    return download(server.url, path, **{"progress": False, **options})


def part_of(path) -> Path:
    return path.with_name("weights.pth.part")


def begin(server, path, size=HALF) -> None:
    """Leaves the first bytes, as a download that was cut off does."""
    server.drops = [size]
    with pytest.raises(ConnectionError):
        get(server, path, retries=0)
    assert part_of(path).stat().st_size == size
    server.requests.clear()


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


############################################################
#  download
############################################################


@pytest.mark.parametrize("sha256", [None, HASH, HASH[:8], HASH.upper()])
def test_download(server, path, sha256):
    target = path.parent / "new" / "folder" / path.name
    assert get(server, str(target), sha256=sha256) == target
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == {path.name}  # no part, notes or lock
    assert len(server.requests) == 1
    assert server.asked("Range") == [None]


def test_an_existing_file_is_kept(server, path):
    path.write_bytes(b"mine")
    assert get(server, path) == path
    mine = hashlib.sha256(b"mine").hexdigest()
    assert get(server, path, sha256=mine[:10]) == get(server, path, sha256=mine.upper()) == path
    with pytest.raises(ValueError, match=f"{path.name} is there but is another file: sha256 {HASH} was expected"):
        get(server, path, sha256=HASH)
    assert path.read_bytes() == b"mine"
    assert server.requests == []


def test_a_dropped_connection_is_resumed(server, path):
    server.drops = [HALF, 1000]
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT
    assert server.asked("Range") == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.asked("If-Range") == [None, '"1"', '"1"']
    assert names(path.parent) == {path.name}


def test_the_next_call_resumes(server, path):
    begin(server, path)
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={HALF}-"]
    assert names(path.parent) == {path.name}


def test_resume_by_date_if_the_etag_is_weak(server, path):
    server.etag, server.modified = 'W/"1"', "Mon, 01 Jan 2024 00:00:00 GMT"
    begin(server, path)
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("If-Range") == [server.modified]


def test_attempts_end(server, path):
    server.drops = [100] * 10
    message = rf"{server.url} could not be downloaded in 3 attempts: .* after 300 of 307,207 bytes. 300 bytes are kept"
    with pytest.raises(ConnectionError, match=message) as caught:
        get(server, path, retries=2)
    assert "running again goes on" in str(caught.value)
    assert len(server.requests) == 3
    assert not path.exists()
    server.drops = []
    assert get(server, path).read_bytes() == CONTENT


def test_pauses_grow(server, path, monkeypatch):
    pauses = []
    monkeypatch.setattr("weights.download.BACKOFF", 1.0)
    monkeypatch.setattr("time.sleep", pauses.append)
    server.statuses = [503] * 9
    with pytest.raises(ConnectionError, match="answered 503 Service Unavailable"):
        get(server, path, retries=7)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_a_busy_server_is_asked_again(server, path):
    server.statuses = [503, 429, 408]
    assert get(server, path).read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_nobody_answers(path):
    with FileServer(CONTENT) as gone:
        pass
    with pytest.raises(ConnectionError, match=r"could not be downloaded in 2 attempts: .*refused.* 0 bytes are kept"):
        get(gone, path, retries=1)


def test_a_stalled_server_times_out(server, path):
    server.hold = threading.Event()
    with pytest.raises(ConnectionError, match="timed out"):
        get(server, path, retries=0, timeout=0.2)
    server.hold.set()
    assert get(server, path).read_bytes() == CONTENT


def test_a_server_that_ignores_range(server, path):
    server.ranges = False
    begin(server, path)
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={HALF}-"]


@pytest.mark.parametrize("ranges", [True, "blind"])  # blind: only the answer's own ETag tells
def test_a_file_that_changed(server, path, ranges):
    begin(server, path)
    server.content, server.etag, server.ranges = CONTENT[::-1], '"2"', ranges
    assert get(server, path).read_bytes() == CONTENT[::-1]


def test_a_file_that_changed_and_shrank(server, path):
    begin(server, path)
    server.content, server.etag, server.ranges = b"short", '"2"', "blind"
    assert get(server, path).read_bytes() == b"short"  # after status 416


def test_a_file_that_changed_in_size_only(server, path):
    server.etag = None
    begin(server, path)
    server.content = CONTENT[::-1] + b"more"
    assert get(server, path).read_bytes() == server.content


def test_a_server_that_begins_elsewhere(server, path):
    begin(server, path)
    server.ranges = "shifted"
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={HALF}-", None]


def test_a_whole_part_needs_only_its_name(server, path):
    begin(server, path, len(CONTENT) - 1)
    with open(part_of(path), "ab") as file:
        file.write(CONTENT[-1:])  # as if the process had died before it could rename
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={len(CONTENT)}-"]


def test_a_part_of_unknown_origin(server, path):
    part_of(path).write_bytes(b"?" * 10)
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [None]
    path.unlink()
    part_of(path).write_bytes(CONTENT[:10])
    part_of(path).with_name("weights.pth.part.json").write_text("[]")
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT  # the hash is what makes that safe
    assert server.asked("Range") == [None, "bytes=10-"]


def test_a_part_of_another_url(server, path):
    begin(server, path)
    download(f"{server.root}/mirror", path, progress=False)
    assert server.asked("Range") == [None]
    path.unlink()
    begin(server, path)
    download(f"{server.root}/mirror", path, HASH, progress=False)
    assert server.asked("Range") == [f"bytes={HALF}-"]
    assert server.asked("If-Range") == [None]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", ["0" * 64, "f" + HASH[:7], HASH[:20] + "0000"])
def test_a_wrong_hash(server, path, wrong):
    with pytest.raises(ValueError, match=f"{server.url} does not have the sha256 {wrong} .* but {HASH}"):
        get(server, path, sha256=wrong)
    assert not path.exists()
    assert not part_of(path).exists()
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT
    assert server.asked("Range") == [None, None]


def test_the_hash_is_of_the_resumed_part_too(server, path):
    begin(server, path)
    with open(part_of(path), "r+b") as file:
        file.write(b"damage")
    with pytest.raises(ValueError, match="does not have the sha256"):
        get(server, path, sha256=HASH)
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT


def test_no_content_length(server, path):
    server.length = False
    assert get(server, path).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "hint"), [(404, "moved or removed"), (403, "may need a login")])
def test_a_refusal(server, path, status, hint):
    server.statuses = [status]
    with pytest.raises(ConnectionError, match=f"{server.url}: the server answered {status} .*{hint}"):
        get(server, path)
    assert len(server.requests) == 1  # another attempt would not help
    assert not path.exists()
    server.statuses = [204]
    with pytest.raises(ConnectionError, match="answered 204"):
        get(server, path)


def test_a_web_page_is_no_file(server, path):
    begin(server, path)
    server.content_type, server.ranges = "text/html; charset=utf-8", False
    with pytest.raises(ValueError, match=f"{server.url} answered with a web page .*login.*put it at .*weights.pth$"):
        get(server, path)
    assert part_of(path).read_bytes() == CONTENT[:HALF]  # which was no page, and stays
    assert get(server, path.with_suffix(".html")).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://host/file", "weights.pth", "http:///file", ""])
def test_only_http(url, path):
    with pytest.raises(ValueError, match="url must begin with http:// or https://"):
        download(url, path)
    assert list(path.parent.iterdir()) == []


def test_arguments(server, path):
    with pytest.raises(ValueError, match=r"url must not have spaces.*quote"):
        download(f"{server.root}/my file", path)
    for sha256 in ("abc", "g" * 64, HASH + "0", ""):
        with pytest.raises(ValueError, match="sha256 must be 64 hex digits"):
            get(server, path, sha256=sha256)
    with pytest.raises(ValueError, match=r"path must name a file, but .* is a folder"):
        get(server, path.parent)
    for options in ({"retries": -1}, {"timeout": 0}, {"limit": 0}, {"limit": float("nan")}):
        with pytest.raises(ValueError, match="retries must be at least 0, timeout and limit above 0 seconds"):
            get(server, path, **options)
    assert server.requests == []


def test_redirects(server, path):
    with FileServer(b"") as first:
        first.redirect = server.url
        assert get(first, path).read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["file:///etc/hosts", "FTP://127.0.0.1:1/x", "ftp://h/\x1b2J", "data:,x", "jar:x"])
def test_redirects_to_other_protocols(path, address):
    with FileServer(b"") as first:
        first.redirect = address
        message = rf"{first.url} leads to an address that is not opened: .* is neither http nor https"
        with pytest.raises(ConnectionError, match=message) as caught:
            get(first, path)
        assert str(caught.value).isprintable()
        assert len(first.requests) == 1


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://h:99999999/", "http://" + "a" * 70 + ".x/", "http:///x", "//"]
)
def test_redirects_to_broken_addresses(path, address):
    with FileServer(b"") as first:
        first.redirect = address
        with pytest.raises(ConnectionError, match=first.url):
            get(first, path, retries=0)


def test_redirects_in_a_circle(path):
    with FileServer(b"") as first:
        first.redirect = first.url
        with pytest.raises(ConnectionError, match=f"{first.url}: the server answered 302"):
            get(first, path)


def test_nothing_else_than_http_is_opened():
    """The opener of urllib opens files, FTP and data addresses, too."""
    with _Deadline(9) as deadline:
        for url in ("file:///etc/hosts", "ftp://127.0.0.1:1/x", "data:,x"):
            with pytest.raises(urllib.error.URLError, match="unknown url type"):
                _opener(deadline).open(url)


############################################################
#  download: time, sizes and encodings
############################################################


def test_bytes_that_come_one_by_one_are_not_waited_for_without_end(server, path):
    server.trickle = 0.02
    server.content = b"x" * 10_000
    start = time.monotonic()
    with pytest.raises(
        ConnectionError, match=r"in 1 attempts: it took more than 0\.5 seconds \(.*running again goes on"
    ):
        get(server, path, limit=0.5)  # within the headers
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("length", [True, False])
def test_the_limit_of_time_in_the_middle_of_a_file(server, path, length):
    server.content, server.length, server.etag, server.trickle = b"x" * 100_000, length, None, 0.0005
    with pytest.raises(ConnectionError, match=r"it took more than 1\.5 seconds"):
        get(server, path, limit=1.5)
    assert not path.exists()
    assert 0 < part_of(path).stat().st_size < 100_000
    server.trickle = 0
    assert get(server, path).read_bytes() == server.content


def test_the_limit_of_time_counts_pauses_and_all_attempts(server, path, monkeypatch):
    monkeypatch.setattr("weights.download.BACKOFF", 60)
    server.statuses = [503] * 9
    with pytest.raises(ConnectionError, match=r"it took more than 0\.3 seconds"):
        get(server, path, retries=8, limit=0.3)
    assert len(server.requests) < 9


@pytest.mark.parametrize("length", [True, False])
def test_an_empty_answer(server, path, length):
    server.content, server.length = b"", length
    with pytest.raises(ConnectionError, match=rf"{server.url} could not be .* in 2 attempts: the answer is empty"):
        get(server, path, retries=1)
    assert not path.exists()


def test_a_server_that_announces_more_than_it_sends(server, path):
    server.headers = {"Content-Length": str(len(CONTENT) + 5)}
    with pytest.raises(ConnectionError, match=r"the connection ended after 307,207 of 307,212 bytes"):
        get(server, path, retries=0)
    assert not path.exists()


def test_a_server_that_sends_more_than_it_announces(server, path):
    server.headers = {"Content-Length": "1000"}
    assert get(server, path).read_bytes() == CONTENT[:1000], "by the rules of HTTP, the rest is not of the file"


@pytest.mark.parametrize("length", ["-1", "1e9", "\xb2", " ", "9" * 30, ["1", "2"]])
def test_sizes_that_are_none(server, path, length):
    server.headers = {"Content-Length": length}
    with pytest.raises(ConnectionError, match="the server announces "):
        get(server, path, retries=0)
    assert not path.exists()


def test_a_server_that_sends_ranges_in_pieces(server, path):
    """It is asked for all that is missing, and answers with less: each attempt goes on."""
    begin(server, path)
    answer = server.answer

    def short(headers, path):
        status, out, body = answer(headers, path)
        end = len(CONTENT) - len(body) + 100_000
        if status == 206 and len(body) > 100_000:
            out["Content-Range"] = f"bytes {len(CONTENT) - len(body)}-{end - 1}/{len(CONTENT)}"
            body = body[:100_000]
        return status, out, body

    server.answer = short
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={HALF}-", f"bytes={HALF + 100_000}-"]


@pytest.mark.parametrize("headers", [
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "x\x1b[2J"}, {"Transfer-Encoding": "gzip, chunked"},
])  # fmt: skip
def test_other_encodings_are_refused(server, path, headers):
    server.headers = headers
    with pytest.raises(
        ConnectionError, match=r"answered with other bytes .*encoded as .*put it at .*weights\.pth"
    ) as caught:
        get(server, path)
    assert len(server.requests) == 1
    assert str(caught.value).isprintable()
    assert not path.exists()
    server.headers = {"Content-Encoding": "identity"}
    assert get(server, path).read_bytes() == CONTENT


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


@pytest.mark.parametrize("end", [b"", b"5\r\nab", b"x\r\n", b"5"])
def test_answers_in_chunks(server, path, end):
    server.headers, server.length = {"Transfer-Encoding": "chunked"}, False
    whole = server.content = chunked(CONTENT[:HALF], CONTENT[HALF:]) + b"0\r\n\r\n"
    assert get(server, path).read_bytes() == CONTENT
    path.unlink()
    server.content = chunked(CONTENT[:HALF]) + end
    with pytest.raises(ConnectionError, match="could not be downloaded in 1 attempts"):
        get(server, path, retries=0)
    assert not path.exists(), "a cut answer is none"
    server.content, server.ranges = whole, False
    assert get(server, path).read_bytes() == CONTENT


def test_words_of_the_server_are_printed_as_text(server, path, monkeypatch):
    monkeypatch.setitem(http.server.BaseHTTPRequestHandler.responses, 404, ("gone\x1b[2J", ""))
    server.statuses = [404]
    with pytest.raises(ConnectionError, match=r"answered 404 gone\?\[2J; it was moved"):
        get(server, path)


@pytest.mark.parametrize("name", ["weights.pth.part", "weights.pth.part.json", "weights.pth.lock"])
@pytest.mark.parametrize("exists", [True, False])
def test_links_that_somebody_planted(server, path, name, exists):
    target = path.parent / "target"
    if exists:
        target.write_bytes(b"mine")
    path.with_name(name).symlink_to(target)
    with pytest.raises(OSError, match=rf"{name} is a symbolic link.*remove the link"):
        get(server, path)
    assert target.read_bytes() == b"mine" if exists else not target.exists()
    assert not path.exists()


@pytest.mark.parametrize("notes", [
    b"[" * 100_000, b"{}", b"\xff", b'{"url": 5}', b'{"url": "URL", "size": "x", "validator": null}',
    b'{"url": "URL", "size": 307207, "validator": "a\\r\\nb"}', b'{"url": "URL", "size": 1e400, "validator": 3}',
])  # fmt: skip
def test_damaged_notes(server, path, notes):
    begin(server, path)
    part_of(path).with_name("weights.pth.part.json").write_bytes(notes.replace(b"URL", server.url.encode()))
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [None], "without its notes, nobody knows what the part is of"


def test_a_full_disk_names_the_part(server, path):
    with pytest.raises(OSError, match=r"File too large: .*weights\.pth\.part'"), files_of_at_most(100_000):
        get(server, path)
    assert part_of(path).stat().st_size == 100_000
    assert get(server, path, sha256=HASH).read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=100000-"]


############################################################
#  download: processes and proxies
############################################################


def test_a_proxy_is_used(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.root)
    download("http://example.invalid/file", path, progress=False)
    assert [asked for asked, _ in server.requests] == ["http://example.invalid/file"]


def test_a_full_disk_leaves_the_part(server, path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            get(server, path)
    assert len(server.requests) == 1
    assert not path.exists()
    assert part_of(path).stat().st_size == len(CONTENT)
    assert get(server, path).read_bytes() == CONTENT


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is closed to this user")
def test_a_folder_that_cannot_be_written(server, path):
    path.parent.chmod(0o555)
    with pytest.raises(PermissionError):
        get(server, path)


def test_where_nothing_can_be_locked_downloads_work(server, path):
    path.with_name("weights.pth.lock").mkdir()
    assert get(server, path).read_bytes() == CONTENT


def test_the_bar(server, path, capsys):
    get(server, path)
    assert capsys.readouterr().err == ""
    path.unlink()
    get(server, path, progress=True)
    assert "weights.pth: 100%" in capsys.readouterr().err


def test_one_of_several_threads_downloads(server, path, caplog):
    server.hold = threading.Event()
    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING):
        calls = [pool.submit(get, server, path, sha256=HASH) for _ in range(4)]
        threading.Timer(1.5, server.hold.set).start()
        assert [call.result().read_bytes() == CONTENT for call in calls] == [True] * 4
    assert len(server.requests) == 1
    assert caplog.text.count("Another process is downloading") == 3
    assert names(path.parent) == {path.name}


def test_a_killed_process_leaves_no_lock(server, path):
    """A process dies in the middle, as by kill -9: the next one goes on at once."""
    script = """
        import http.client, os, sys
        from weights.download import download
        read = http.client.HTTPResponse.read1
        def read_and_die(response, size, calls=[]):
            calls.append(1)
            return read(response, size) if len(calls) < 4 else os._exit(9)
        http.client.HTTPResponse.read1 = read_and_die
        download(sys.argv[1], sys.argv[2], progress=False)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), server.url, str(path)]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == 9
    assert names(path.parent) == {"weights.pth.lock", "weights.pth.part", "weights.pth.part.json"}
    begun = part_of(path).stat().st_size
    assert json.loads(part_of(path).with_name("weights.pth.part.json").read_text())["size"] == len(CONTENT)
    server.requests.clear()
    assert get(server, path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={begun}-"]
    assert begun > 0
    assert names(path.parent) == {path.name}


def test_sha256_of(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError, match="nothing"):
        sha256_of(tmp_path / "nothing")


############################################################
#  safe_extract
############################################################


def make_zip(path, members, **options) -> Path:
    """members: [(name or ZipInfo, bytes)]."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def test_extract(tmp_path):
    members = [("a.txt", b"A"), ("folder/", b""), ("empty/", b""), ("folder/sub/b.bin", CONTENT)]
    archive = make_zip(tmp_path / "x.zip", members)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_bytes(b"old")
    (out / "mine.txt").write_bytes(b"mine")
    assert safe_extract(str(archive), str(out), progress=False) == out
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files == {"a.txt": b"A", "mine.txt": b"mine", "folder/sub/b.bin": CONTENT}


def test_extract_shows_a_bar(tmp_path, capsys):
    archive = make_zip(tmp_path / "x.zip", [("a.txt", b"A" * 1000)])
    safe_extract(archive, tmp_path / "new" / "out")
    assert "x.zip: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "member",
    ["../evil", "a/../../evil", "/tmp/evil", "C:evil", "C:/evil", "..\\evil", "\\\\host\\share\\evil"],
)
def test_extract_refuses_names_that_leave_the_folder(tmp_path, member):
    archive = make_zip(tmp_path / "x.zip", [("good.txt", b"good"), (member, b"evil")])
    with pytest.raises(ValueError, match="leaves the folder"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path) == {"x.zip"}  # not even the good file, nor the folder


def test_extract_makes_no_links(tmp_path):
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    safe_extract(make_zip(tmp_path / "x.zip", [(member, b"/etc/hosts")]), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "link").read_bytes() == b"/etc/hosts"


def test_extract_does_not_follow_a_link_that_is_there(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "outside")
    archive = make_zip(tmp_path / "x.zip", [("a/sub/evil", b"!")])
    with pytest.raises(ValueError, match="leads out of"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "outside") == set()


def test_extract_replaces_a_link_instead_of_writing_through_it(tmp_path):
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "outside")
    safe_extract(make_zip(tmp_path / "x.zip", [("a", b"!")]), tmp_path / "out", progress=False)
    assert (tmp_path / "outside").read_bytes() == b"outside"
    assert (tmp_path / "out" / "a").read_bytes() == b"!"


def test_extract_refuses_a_bomb(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "x.zip", [("zeros", bytes(10**6))])
    safe_extract(archive, tmp_path / "small", progress=False)  # so little is no danger
    monkeypatch.setattr("weights.download.ZIP_SMALL", 1000)
    with pytest.raises(ValueError, match=r"would unpack to 1,000,000, more than 200 times as much: a zip bomb"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_extract_writes_no_more_than_declared(tmp_path):
    """An archive that says 10 bytes and holds a million is damaged, and is found out before a million are written."""
    archive = make_zip(tmp_path / "x.zip", [("zeros", bytes(10**6))])
    raw = archive.read_bytes().replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == set()


def test_extract_looks_at_the_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 5}))
    archive = make_zip(tmp_path / "x.zip", [("a", b"123456")])
    with pytest.raises(OSError, match="unpacks to 6 bytes, more than the disk"):
        safe_extract(archive, tmp_path / "out", progress=False)


def test_extract_of_what_is_no_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"zip_path .*none\.zip is no file"):
        safe_extract(tmp_path / "none.zip", tmp_path)
    (tmp_path / "x.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="damaged or no zip archive"):
        safe_extract(tmp_path / "x.zip", tmp_path)


def test_extract_of_a_damaged_file(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("a", os.urandom(1000))])
    raw = bytearray(archive.read_bytes())
    raw[500] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == set()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_extract_of_damage_in_other_methods(tmp_path, method):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a", os.urandom(1000))
    raw = bytearray(archive.read_bytes())
    raw[100] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == set()


def test_extract_removes_what_a_killed_one_left(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("a.txt", b"A"), ("b.txt", b"B")])
    safe_extract(archive, tmp_path / "out", progress=False)
    process = os.fork()
    if process == 0:
        shutil.copyfileobj = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            safe_extract(archive, tmp_path / "out", progress=False)
        finally:
            os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert len(names(tmp_path / "out")) == 3
    safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == {"a.txt", "b.txt"}


def test_extract_of_a_file_where_a_folder_is(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("a", b"1"), ("a/b", b"2")])
    with pytest.raises(OSError, match="/out/a"):
        safe_extract(archive, tmp_path / "out", progress=False)


def test_extract_to_a_full_disk_names_the_file(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("a.bin", bytes(100_000))])
    with pytest.raises(OSError, match=r"File too large: .*/out/a\.bin'$"), files_of_at_most(1000):
        safe_extract(archive, tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == set()


def test_extract_of_an_encrypted_archive(tmp_path):
    archive = make_zip(tmp_path / "x.zip", [("a", b"123")])
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="encrypted"):
        safe_extract(archive, tmp_path / "out", progress=False)

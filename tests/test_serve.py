"""serve.py: what it answers, what it refuses, and that it stands. tests/test_serve_browser.py tests the page."""

import concurrent.futures
import contextlib
import gc
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
import zlib
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from helpers import detection_result, rectangles, tiny_weights
from PIL import Image
from toy_server import SETTINGS, error_of, form, made_model, parsed, png, received, request, serving, talk, write_stub

import onnx_detect
import serve
import utils
from benchmarks.bench_serve import malformed
from data.images import read_image_bytes
from detections import ImageDetections
from weights.load import load_model

ROOT = Path(serve.__file__).parent
BOTH = rectangles((2, 3, 20, 30), (25, 5, 35, 50), shape=(40, 60))
MASKS = {"cat": BOTH[..., 0], "dog": BOTH[..., 1]}


@pytest.fixture(scope="module")
def server():
    with serving(made_model(MASKS)) as running:
        yield running


def parse(*words: str):
    return serve.build_parser().parse_args(list(words))


############################################################
#  Answers
############################################################


@pytest.mark.parametrize("path", serve.FILES)
def test_files_of_the_page(path, server):
    status, headers, body = talk(server, request("GET", f"{path}?x=1"))
    assert (status, body) == (200, (ROOT / serve.FILES[path][0]).read_bytes())
    assert headers["Content-Type"] == serve.FILES[path][1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    head = talk(server, request("HEAD", path))
    assert (head[0], head[1]["Content-Length"], head[2]) == (200, str(len(body)), b"")


def test_the_page_loads_what_is_served():
    text = (ROOT / "serving" / "page.html").read_text()
    loaded = set(re.findall(r'(?:href|src)="([^"]*)"', text)) - {"data:,"}
    assert {f"/{name}" for name in loaded} == serve.FILES.keys() - {"/"}
    assert not re.search(r"\son\w+=|<style|<script>|style=", text), "the page's policy forbids code and style inside"


def test_health(server):
    status, headers, body = talk(server, request("GET", "/health"))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"status": "ok", "model": "made", "classes": ["cat", "dog"]}


@pytest.mark.parametrize("kind", ["raw", "form", "raw with the type of a form", "quoted boundary"])
def test_detect(kind, server):
    body, types = png(), {
        "raw": None, "form": "multipart/form-data; boundary=xyz",
        "raw with the type of a form": "application/x-www-form-urlencoded",
        "quoted boundary": 'Multipart/Form-Data; charset=utf-8; boundary="xyz"',
    }  # fmt: skip
    is_form = kind in ("form", "quoted boundary")
    sent = form("süß.png", body) if is_form else body
    status, _, answer = talk(server, request("POST", "/detect", sent, Content_Type=types[kind]))
    answer = json.loads(answer)
    assert status == 200
    assert answer["model"] == "made"
    assert answer["image"] == {"file_name": "süß.png" if is_form else None, "width": 60, "height": 40}
    assert answer["categories"] == [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
    assert [entry["class_name"] for entry in answer["detections"]] == ["cat", "dog"]
    for entry, mask in zip(answer["detections"], MASKS.values(), strict=True):
        assert (utils.rle_to_mask(entry["segmentation"]) == mask).all()
    assert answer["seconds"] >= 0


def test_detect_is_the_model(tmp_path):
    """Of a checkpoint: the detections of MaskRCNN.detect, above the least score, in COCO's form."""
    path = tiny_weights(tmp_path)
    arguments = parse(str(path), "--device", "cpu", "--set", "DETECTION_MAX_INSTANCES=7")
    with contextlib.ExitStack() as stack:
        model = serve.open_checkpoint(arguments, stack)
        with serving(model) as running:
            answer = json.loads(talk(running, request("POST", "/detect", png(70, 90)))[2])
    network = load_model(path, "cpu", DETECTION_MAX_INSTANCES=7, IMAGES_PER_GPU=1)
    (result,) = network.detect([read_image_bytes(png(70, 90), "x")], masks="rle")
    expected = ImageDetections.of(result).to_coco(1, network.category_ids)
    assert len(expected) > 0
    names = dict(zip(network.category_ids, network.class_names, strict=True))
    assert answer["detections"] == [{**entry, "class_name": names[entry["category_id"]]} for entry in expected]
    assert [category["name"] for category in answer["categories"]] == network.class_names[1:]


def test_a_picture_is_turned_as_exif_says(server):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(file, "JPEG", exif=exif)
    answer = json.loads(talk(server, request("POST", "/detect", file.getvalue()))[2])
    assert (answer["image"]["width"], answer["image"]["height"]) == (10, 30)


def test_the_embedded_picture_limits_reach_the_reader(tmp_path):
    """--max-pixels and --max-network-pixels, of a checkpoint."""
    with contextlib.ExitStack() as stack:
        arguments = parse(str(tiny_weights(tmp_path)), "--max-pixels", "1000", "--max-network-pixels", "900000")
        model = serve.open_checkpoint(arguments, stack)
        assert model.read(png(20, 50), "x").shape == (20, 50, 3)
        with pytest.raises(ValueError, match="51 x 20 pixels are more than max_pixels=1000"):
            model.read(png(20, 51), "x")
        arguments.max_network_pixels = 100
        with pytest.raises(ValueError, match=r"the picture becomes \d+ x \d+ pixels for the network, and 100 are"):
            model.read(png(20, 50), "x")


############################################################
#  Refusals
############################################################


def png_of_size(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it has this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = zlib.compress(b"\0" * 1000)
    end = b"IDAT" + data
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data)) + end + struct.pack(">I", zlib.crc32(end))


FORM = "multipart/form-data; boundary=xyz"
REFUSED = {
    "no path": (request("GET", "/etc/passwd"), 404, "nothing else"),
    "a path above": (request("GET", "/../serve.py"), 404, "nothing else"),
    "a source": (request("GET", "/serving/page.js"), 404, "nothing else"),
    "GET of detect": (request("GET", "/detect"), 405, "/detect takes POST"),
    "POST of the page": (request("POST", "/", b"x"), 405, "/ takes GET and HEAD"),
    "DELETE": (request("DELETE", "/health"), 405, "/health takes GET"),
    "no length": (request("POST", "/detect"), 411, "Content-Length must say"),
    "chunks": (request("POST", "/detect", b"0\r\n\r\n", Transfer_Encoding="chunked"), 411, "chunks"),
    "negative length": (request("POST", "/detect", b"x", Content_Length="-1"), 400, "one whole number"),
    "length in words": (request("POST", "/detect", b"x", Content_Length="1e3"), 400, "one whole number"),
    "too long": (request("POST", "/detect", b"x", Content_Length=str(1 << 21)), 413, "--max-megabytes"),
    "empty": (request("POST", "/detect", b""), 400, "no picture"),
    "cut off": (request("POST", "/detect", b"x" * 10, Content_Length="100"), 400, "cut off: 10 of 100"),
    "nonsense": (request("POST", "/detect", b"nonsense"), 400, "not an image of a format that is read"),
    "a cut picture": (request("POST", "/detect", png()[:-3000]), 400, "is it cut off or damaged"),
    "a bomb": (request("POST", "/detect", png_of_size(30_000, 30_000)), 400, "decompression bomb"),
    "a form without boundary": (request("POST", "/detect", b"x", Content_Type="multipart/form-data"), 400, "boundary"),
    "a form without file": (
        request("POST", "/detect", b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--xyz--\r\n',
                Content_Type=FORM), 400, "no complete part"),
    "a form without end": (
        request("POST", "/detect", form("a.png", png())[:-12], Content_Type=FORM), 400, "no complete part"),
    "another host": (request("GET", "/", Host="evil.example"), 403, "has another name"),
    "another host, with port": (request("POST", "/detect", png(), Host="evil.example:8000"), 403, "has another name"),
    "no host": (request("GET", "/health", Host=None), 400, "one header Host, not 0"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "one header Host, not 2"),
    "another origin": (request("POST", "/detect", png(), Origin="http://evil.example"), 403, "other origins"),
    "origin null": (request("POST", "/detect", png(), Origin="null"), 403, "other origins"),
    "another site": (request("POST", "/detect", png(), Sec_Fetch_Site="cross-site"), 403, "other origins"),
    "long headers": (request("GET", "/", X="y" * 40_000), 431, "longer than 32,768 bytes"),
    "many headers": (request("GET", "/", **{f"X{i}": "y" for i in range(200)}), 431, "Too many headers"),
    "no HTTP": (b"\x16\x03\x01\x02\x00 hello there all\r\n\r\n", 400, "Bad request"),
    "a version of the future": (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505, "Invalid HTTP version"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, server):
    data, status, words = REFUSED[name]
    found, sentence = error_of(talk(server, data, ends=name in ("cut off", "no HTTP")))
    assert found == status
    assert words in sentence
    assert str(ROOT) not in sentence


def test_methods_that_would_work(server):
    assert talk(server, request("GET", "/detect"))[1]["Allow"] == "POST"
    assert talk(server, request("POST", "/health", b"x"))[1]["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine(host, server):
    assert talk(server, request("GET", "/health", Host=host))[0] == 200


def test_a_network_may_call_it_anything():
    with serving(made_model(MASKS), host="0.0.0.0") as running:
        assert running.own_names == set()
        answer = talk(running, request("POST", "/detect", png(), Host="lab:80", Origin="http://lab:80"))
        assert answer[0] == 200
        refused = talk(running, request("POST", "/detect", png(), Host="lab:80", Origin="http://evil.example"))
        assert refused[0] == 403


def test_a_proxy_may_change_the_host(server):
    """Then the browser itself says that it is the server's own page."""
    headers = {"Origin": "https://lab.example", "Sec_Fetch_Site": "same-origin"}
    assert talk(server, request("POST", "/detect", png(), **headers))[0] == 200


def test_names_in_errors_are_printable(server):
    sent = form("a\x1b[2J\u202e.png", b"nonsense")
    _, sentence = error_of(talk(server, request("POST", "/detect", sent, Content_Type=FORM)))
    assert sentence.startswith(r"image a\x1b[2J\u202e.png: not an image")


@pytest.mark.parametrize("sent", [b"GET / HT", b""])
def test_a_head_that_does_not_come(sent, server, monkeypatch):
    monkeypatch.setattr(serve, "HEAD_SECONDS", 0.2)
    assert error_of(talk(server, sent)) == (408, "the request took too long to arrive")


def test_a_body_that_trickles(server, monkeypatch):
    """Each byte comes in time, and all together do not."""
    monkeypatch.setattr(serve, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(serve, "LINGER_SECONDS", 0.1)
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(request("POST", "/detect", b"", Content_Length="1000"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.02)
        assert error_of(parsed(received(connection)))[0] == 408


def test_a_large_body_is_refused_before_it_comes(server):
    """And the client, which goes on sending, sees why."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(request("POST", "/detect", b"", Content_Length=str(5 << 20)))
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * (5 << 20))
        assert error_of(parsed(received(connection)))[0] == 413


def test_a_client_that_asks_first(server):
    """As curl does with pictures of more than a megabyte: it sends the picture after "100 Continue" only."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(request("POST", "/detect", b"", Content_Length=str(len(png())), Expect="100-continue"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(png())
        assert parsed(received(connection))[0] == 200
    status, _ = error_of(talk(server, request("POST", "/detect", b"", Content_Length="9999999", Expect="100-continue")))
    assert status == 413


############################################################
#  Many clients
############################################################


def test_eight_clients_at_once():
    busy, most = [], []

    def detect(pixels):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.02)
        busy.pop()
        return []

    model = made_model(MASKS)._replace(detect=detect)
    with serving(model) as running, concurrent.futures.ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda seed: talk(running, request("POST", "/detect", png(seed=seed))), range(16)))
    assert [answer[0] for answer in answers] == [200] * 16
    assert max(most) == 1, "one picture at a time"


@contextlib.contextmanager
def held_server(**limits):
    """A server whose model has begun with a picture and does not end before the context does."""
    hold, begun = threading.Event(), threading.Event()
    model = made_model(MASKS, hold)

    def read(data, name):
        begun.set()
        return model.read(data, name)

    with serving(model._replace(read=read), **limits) as running, concurrent.futures.ThreadPoolExecutor(4) as clients:
        first = clients.submit(talk, running, request("POST", "/detect", png()))
        assert begun.wait(20)
        try:
            yield running
        finally:
            hold.set()
        assert first.result()[0] == 200


def test_a_full_queue_says_when_to_come_back():
    with held_server(queue=0) as running:
        status, headers, body = talk(running, request("POST", "/detect", png()))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "1 pictures are waiting already; try again in 1 s" in json.loads(body)["error"]
        assert talk(running, request("GET", "/health"))[0] == 200, "it lives, and works"


def test_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(serve, "WAIT_SECONDS", 0.1)
    with held_server() as running:
        status, sentence = error_of(talk(running, request("POST", "/detect", png())))
        assert status == 503
        assert "has waited for 0.1 s" in sentence


def test_too_many_connections(monkeypatch):
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 2)
    with serving(made_model(MASKS)) as running:
        with contextlib.ExitStack() as stack:
            address = running.server_address[:2]
            for _ in range(2):
                stack.enter_context(socket.create_connection(address)).sendall(b"G")
            deadline = time.monotonic() + 20
            while running._connections._value and time.monotonic() < deadline:
                time.sleep(0.01)
            status, headers, _ = talk(running, b"")
            assert (status, headers["Retry-After"]) == (503, "1")
        while not running._connections._value and time.monotonic() < deadline:
            time.sleep(0.01)
        assert talk(running, request("GET", "/health"))[0] == 200


def test_malformed_requests_leave_it_standing(server, monkeypatch, capfd):
    """The short version of benchmarks/bench_serve.py: an answer in JSON or none, and no thread that stays."""
    monkeypatch.setattr(serve, "HEAD_SECONDS", 2.0)
    rng = np.random.default_rng(5)
    for number in range(60):
        name, data = malformed(rng, number, png())
        status, _, body = talk(server, data, ends=True)
        assert status == 0 or status == 200 or (400 <= status < 500 and list(json.loads(body)) == ["error"]), name
    assert talk(server, request("POST", "/detect", png()))[0] == 200
    deadline = time.monotonic() + 20
    while server._connections._value < serve.MOST_CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server._connections._value == serve.MOST_CONNECTIONS
    assert server._places._value == 9
    assert "Traceback" not in capfd.readouterr().err


def test_a_refused_picture_does_not_stay_in_memory():
    """Until the garbage collector comes by: an error has the frames of functions, and these the picture."""
    pictures = []

    def read(data, name):
        picture = np.zeros(9)
        pictures.append(weakref.ref(picture))
        raise ValueError("damaged")

    with serving(made_model(MASKS)._replace(read=read)) as running:
        gc.disable()
        try:
            for _ in range(3):
                assert error_of(talk(running, request("POST", "/detect", png()))) == (400, "damaged")
            deadline = time.monotonic() + 20
            while any(picture() is not None for picture in pictures) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [picture() for picture in pictures] == [None] * 3
        finally:
            gc.enable()


def test_a_fault_of_the_model_costs_one_answer(capsys):
    def detect(pixels):
        raise RuntimeError("a secret of the machine")

    with serving(made_model(MASKS)._replace(detect=detect)) as running:
        for _ in range(2):
            status, sentence = error_of(talk(running, request("POST", "/detect", png())))
            assert (status, sentence) == (500, "the server has a fault, which its log tells")
    assert "RuntimeError: a secret of the machine" in capsys.readouterr().err


def test_a_line_of_the_log_for_each_request(server, capsys):
    talk(server, b"GET /\x1b[2J\x9b HTTP/1.1\r\nHost: localhost\r\n\r\n")
    talk(server, request("POST", "/detect", png()))
    talk(server, request("POST", "/detect", b"nonsense"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert r"127.0.0.1 GET /\x1b[2J\x9b HTTP/1.1 404 " in lines[0]
    assert re.search(r"POST /detect HTTP/1.1 200 2 objects in 60 x 40, \d\.\d\d s$", lines[1])
    assert "400 image of the request: not an image" in lines[2]


############################################################
#  Forms
############################################################


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form("a.png", b"12\r\n--xy\r\n3"), (b"12\r\n--xy\r\n3", "a.png")),
        (form("", b"1"), (b"1", "")),
        (form("a.png", b""), (b"", "a.png")),
        (form("a.png", b"\r\n\r\n"), (b"\r\n\r\n", "a.png")),
    ],
)
def test_forms(body, expected):
    assert serve.picture_of(body, FORM) == expected


@pytest.mark.parametrize(
    "body", [b"", b"--xyz", b"--xyz\r\n\r\n", b"x" + form("a", b"1"), form("a", b"1")[:-9], b"--xyz--"]
)
def test_forms_without_a_file(body):
    with pytest.raises(serve.Refused, match="no complete part with a file"):
        serve.picture_of(body, FORM)


def test_a_form_of_many_parts_ends():
    part = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    with pytest.raises(serve.Refused, match="no complete part with a file"):
        serve.picture_of(part * 100_000 + form("a.png", b"1"), FORM)


def test_bodies_that_are_no_forms():
    for kind in ("", "image/png", "application/x-www-form-urlencoded", "text/plain; boundary=xyz"):
        assert serve.picture_of(b"--xyz\r\n", kind) == (b"--xyz\r\n", None)


############################################################
#  Command line
############################################################


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port must be from 0 to 65,535, not 70000"),
        (["--queue", "-1"], "--queue must be from 0 to 1,000, not -1"),
        (["--max-megabytes", "0"], "--max-megabytes must be from 1 to 10,000, not 0"),
        (["--max-pixels", "0"], "--max-pixels must be from 1 to 1,000,000,000, not 0"),
        (["--max-network-pixels", "0"], "--max-network-pixels must be from 1 to"),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is neither an address"),
        (["--host", "192.0.2.1", "--port", "0"], "--host '192.0.2.1' is no address of this machine"),
        (["--port", "0", "--device", "cpu"], "nowhere.pth"),
        (["--port", "0", "--set", "NO_SUCH=1"], "NO_SUCH"),
    ],
)
def test_mistakes_are_one_sentence(words, message, capsys):
    assert serve.main(["nowhere.pth", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_port_in_use(server, capsys):
    assert serve.main(["nowhere.pth", "--port", str(server.server_port)]) == 2
    message = f"serve.py: port {server.server_port} of 127.0.0.1 is in use; end the other program, or choose another"
    assert message in capsys.readouterr().err


@contextlib.contextmanager
def started(*words: str, cwd: Path = ROOT):
    """A process that serves, and its address. At the end it is killed, if it still runs."""
    command = [sys.executable, "serve.py", *words, "--port", "0"]
    options = {"cwd": cwd, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            address = next(
                filter(None, (re.search(r" is at (http://\S+) until Ctrl-C", line) for line in process.stdout))
            )
            yield process, address[1]
        except StopIteration:
            raise AssertionError(process.stderr.read()) from None
        finally:
            process.kill()


def end(process: subprocess.Popen, number: int) -> str:
    """Sends a signal, and returns what was written to stderr."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    return errors


def test_ctrl_c_ends_it(tmp_path):
    with started(str(tiny_weights(tmp_path))) as (process, address):
        with urllib.request.urlopen(f"{address}/health") as answer:
            assert json.load(answer)["classes"][:2] == ["square", "circle"]
        asked = urllib.request.Request(f"{address}/detect", png())
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["image"]["width"] == 60
        lines = end(process, signal.SIGINT).splitlines()
    assert len(lines) == 2
    assert [line.split()[-1] for line in lines if "health" in line] == ["200"]


def test_the_files_of_the_image_are_enough(tmp_path):
    """What the Dockerfile copies runs by itself on ONNX Runtime, of which a stub is here; SIGTERM ends it."""
    copied = re.findall(r"^COPY (.*) (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for sources, target in copied:
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        for source in sources.split():
            if source.endswith("/"):
                shutil.copytree(ROOT / source, tmp_path / target, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {f"!{source.rstrip('/')}" for sources, _ in copied for source in sources.split()} < {*ignored}
    write_stub(tmp_path)
    with started("model.onnx", cwd=tmp_path) as (process, address):
        for path in serve.FILES:
            with urllib.request.urlopen(address + path) as answer:
                assert answer.status == HTTPStatus.OK
        with urllib.request.urlopen(urllib.request.Request(f"{address}/detect", png(64, 96))) as answer:
            found = json.load(answer)
        asked = urllib.request.Request(f"{address}/detect", b"nonsense")
        with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(asked):
            pass
        assert refused.value.code == 400
        assert "image of the request: " in json.load(refused.value)["error"]
        refused.value.close()
        assert "Traceback" not in end(process, signal.SIGTERM)
    (entry,) = found["detections"]
    assert (entry["class_name"], entry["category_id"], entry["score"]) == ("dog", 18, 0.375)
    assert entry["bbox"] == [0, 0, 48, 32]
    mask = utils.rle_to_mask(entry["segmentation"])
    assert mask[:32, :48].all()
    assert mask.sum() == 32 * 48


def test_the_versions_of_the_image_are_those_of_the_tests():
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    named = dict(re.findall(r"([\w-]+)==([\d.]+)", (ROOT / "Dockerfile").read_text()))
    assert {"numpy", "Pillow", "onnxruntime"} == named.keys()
    assert {name: pins.get(name, version) for name, version in named.items()} == named


############################################################
#  ONNX Runtime
############################################################


@pytest.mark.parametrize("ious", [None, (0.9, 0.25)])
def test_results_without_torch_are_those_with_it(ious):
    """onnx_detect.coco_results has no torch, and ImageDetections.to_coco has; of arrays and of run-length codes."""
    result = detection_result(BOTH, [2, 1], [0.75, 0.5], ious)
    expected = ImageDetections.of(result).to_coco(7, [0, 17, 18])
    for masks in (result["masks"], BOTH):
        assert onnx_detect.coco_results({**result, "masks": masks}, 7, [0, 17, 18]) == expected
    nothing = detection_result(BOTH[..., :0], [], [], ious and ())
    assert onnx_detect.coco_results(nothing, 7, [0, 17, 18]) == []


def test_onnx_detect_reads_bytes():
    settings = onnx_detect.Settings.parse(json.dumps(SETTINGS))
    assert (onnx_detect.read_image_bytes(png(), "x", settings) == read_image_bytes(png(), "x")).all()
    with pytest.raises(ValueError, match="image x: 60 x 40 pixels: an image has at least 1 pixel, at most 2399, and"):
        onnx_detect.read_image_bytes(png(), "x", settings, max_pixels=2399)
    with pytest.raises(ValueError, match=r"^image a\\x1b: cannot identify image file: is it one of JPEG, "):
        onnx_detect.read_image_bytes(b"nonsense", "a\x1b", settings)


def test_the_limits_of_an_onnx_file(tmp_path, monkeypatch):
    write_stub(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    path = str(tmp_path / "model.onnx")
    arguments = serve.build_parser(is_onnx=True).parse_args(
        [path, "--max-pixels", "1000", "--max-network-pixels", "9000"]
    )
    model = serve.open_onnx(arguments)
    assert model.name == "model.onnx"
    assert model.categories == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert model.read(png(20, 50), "x").shape == (20, 50, 3)
    with pytest.raises(ValueError, match="51 x 20 pixels: an image has at least 1 pixel, at most 1000"):
        model.read(png(20, 51), "x")
    arguments.max_network_pixels = 100
    with pytest.raises(ValueError, match="the picture becomes 128 x 64 pixels for the network, and 100 are taken"):
        model.read(png(20, 50), "x")
    monkeypatch.delitem(sys.modules, "onnxruntime")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no such file"),
        (["--port", "-1"], "--port must be from 0 to 65,535, not -1"),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is neither"),
    ],
)
def test_mistakes_with_an_onnx_file_are_one_sentence(words, message, capsys):
    assert serve.main(["now\x1bhere.onnx", "--port", "0", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("serve.py: ")
    assert printed.count("\n") == 1
    assert printed[:-1].isprintable()

"""A page in the browser and an endpoint for programs, on one model.

    python serve.py shapes                      http://127.0.0.1:8000: drop a picture, see its masks, move thresholds
    python serve.py output/cells/model.pth      a checkpoint of any format that convert_weights.py reads
    python serve.py model.onnx                  a file of export.py; torch is not imported and need not be installed
    python serve.py model.onnx --host 0.0.0.0   for other machines, too; there is no password: see docs/serving.md

    curl --data-binary @photo.jpg http://127.0.0.1:8000/detect      or a form: curl -F image=@photo.jpg ...

GET / is the page. POST /detect takes a picture and answers with JSON: "detections" has all objects of a class score of
0.05 or more, in COCO's format of results, with their masks as run-length codes. GET /health tells that the server is
up. An error is {"error": SENTENCE}, with a fitting status.

One picture at a time is worked on, and a few wait; then the answer is 503, try again later. Ctrl-C ends the server when
the picture that is worked on is done.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import concurrent.futures
import contextlib
import errno
import functools
import http.server
import io
import ipaddress
import json
import math
import re
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import startup

ROOT = Path(__file__).parent
PROGRAM = "serve.py"
LEAST_SCORE = 0.05  # of the detections of an answer; the page's slider begins above it

# What a request may take. --max-megabytes and --max-pixels limit the picture itself.
HEAD_SECONDS, HEAD_BYTES = 10.0, 1 << 15  # until the empty line after the headers has come
BODY_SECONDS = 60.0
WAIT_SECONDS = 60.0  # until work on the picture begins
ANSWER_SECONDS = 60.0  # until the client has taken the answer
LINGER_SECONDS = 2.0  # a refused client may go on sending for so long; without this it would not see the answer
MOST_CONNECTIONS = 64

############################################################
#  Models
############################################################


class Model(NamedTuple):
    """What is served."""

    name: str  # as the command line has it
    categories: list[dict[str, Any]]  # {"id", "name"} of each class
    # The pixels of a file's contents, which have a name for messages. ValueError: they are no picture that can be used.
    read: Callable[[bytes, str], np.ndarray]
    # The objects in these pixels, as COCO's results: dicts as those of ImageDetections.to_coco.
    detect: Callable[[np.ndarray], list[dict[str, Any]]]


def open_checkpoint(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Model:
    """The model of a checkpoint or a name, run by torch. stack: holds what is open while the model serves.

    Raises: as cli.open_model.
    """
    import cli
    import utils
    from data.images import read_image_bytes, reading_settings
    from detections import ImageDetections
    from evaluation.own_detect import detection_settings

    adapt = functools.partial(detection_settings, threshold=LEAST_SCORE, **cli.settings_of(arguments))
    model = cli.open_model(arguments, "", adapt=adapt)
    dtype = arguments.dtype or "float32"
    bit_depth, pixel_range, channels = reading_settings(model.config)
    limits = (arguments.max_pixels, bit_depth, pixel_range, channels)
    stack.enter_context(model.prepared(dtype))

    def detect(pixels: np.ndarray) -> list[dict[str, Any]]:
        (result,) = model.detect([pixels], dtype=dtype, masks="rle")
        return ImageDetections.of(result).to_coco(1, model.category_ids)

    def read(data: bytes, name: str) -> np.ndarray:
        pixels = read_image_bytes(data, name, *limits)
        check_input(utils.plan_image(pixels.shape, model.config).padded_shape, arguments)
        return pixels

    return Model(arguments.model, categories_of(model.class_names, model.category_ids), read, detect)


def open_onnx(arguments: argparse.Namespace) -> Model:
    """The model of a file of export.py, run by ONNX Runtime. Torch is not imported.

    Raises: as onnx_detect.Detector.
    """
    from onnx_detect import Detector, coco_results, plan_resize, read_image_bytes

    detector = Detector(arguments.model)

    def detect(pixels: np.ndarray) -> list[dict[str, Any]]:
        return coco_results(detector.detect(pixels, masks="rle"), 1, detector.category_ids)

    def read(data: bytes, name: str) -> np.ndarray:
        pixels = read_image_bytes(data, name, detector.settings, arguments.max_pixels)
        check_input(plan_resize(*pixels.shape[:2], detector.settings).padded_shape, arguments)
        return pixels

    categories = categories_of(detector.class_names, detector.category_ids)
    return Model(Path(arguments.model).name, categories, read, detect)


def check_input(shape: tuple[int, int], arguments: argparse.Namespace) -> None:
    """Raises ValueError for a picture whose network input, (height, width), is too large: some models take pictures at
    their full size, and enlarge small sides.
    """
    if shape[0] * shape[1] > arguments.max_network_pixels:
        raise ValueError(
            f"the picture becomes {shape[1]} x {shape[0]} pixels for the network, and "
            f"{arguments.max_network_pixels:,} are taken; shrink or cut it, or start the server with a larger "
            "--max-network-pixels"
        )


def categories_of(class_names: Sequence[str], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO's categories of the classes without the background, which comes first in both lists."""
    pairs = zip(category_ids[1:], class_names[1:], strict=True)
    return [{"id": int(number), "name": str(name)} for number, name in pairs]


############################################################
#  Requests and answers
############################################################


class Refused(Exception):
    """A request that is answered with an error: a status, one sentence, and further headers."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


_FORM = re.compile(r"multipart/form-data\b", re.IGNORECASE)
_BOUNDARY = re.compile(r";\s*boundary=\"?([0-9A-Za-z'()+_,./:=? -]{1,70})", re.IGNORECASE)  # RFC 2046, 5.1.1
_FILE_NAME = re.compile(rb'^content-disposition:[^\r\n]*?\bfilename="([^"\r\n]*)"', re.IGNORECASE | re.MULTILINE)
_MOST_PARTS, _MOST_PART_HEAD = 20, 4096


def picture_of(body: bytes, content_type: str) -> tuple[bytes, str | None]:
    """The picture in the body of a request, and its file's name, if it has one.

    A form (multipart/form-data) has the picture in its first part with a file name. Any other body is the file itself,
    whatever its type says: `curl --data-binary` calls it another kind of form.

    Raises: Refused.
    """
    if not _FORM.match(content_type):
        return body, None
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Type multipart/form-data has no valid boundary")
    mark = b"--" + boundary[1].rstrip().encode("ascii")
    place = len(mark) if body.startswith(mark) else -1
    for _ in range(_MOST_PARTS):
        head_end = body.find(b"\r\n\r\n", place, place + _MOST_PART_HEAD)
        end = body.find(b"\r\n" + mark, head_end + 2)
        if place < 0 or head_end < 0 or end < 0:
            break
        if name := _FILE_NAME.search(body[place:head_end]):
            return body[head_end + 4 : end], name[1].decode("utf-8", "replace")
        place = end + 2 + len(mark)
    raise Refused(
        HTTPStatus.BAD_REQUEST, "the form has no complete part with a file; send one as `curl -F image=@photo.jpg` does"
    )


class _Client(io.RawIOBase):
    """What a client sends, with a limit of time and bytes for all of it.

    The time limit of a socket is one for each read: a client that sends a byte a second would hold a thread for hours.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.allow(HEAD_SECONDS, HEAD_BYTES)

    def allow(self, seconds: float, count: int) -> None:
        """Sets the limits anew, for what comes from now on."""
        self._end, self._bytes_left = time.monotonic() + seconds, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        if self._bytes_left <= 0:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are longer than {HEAD_BYTES:,} bytes"
            )
        self._connection.settimeout(seconds)
        count = self._connection.recv_into(memoryview(buffer)[: self._bytes_left])
        self._bytes_left -= count
        return count


# Everything that GET can ask for but /health. The files are read once, at the start.
FILES = {
    "/": ("serving/page.html", "text/html; charset=utf-8"),
    "/page.css": ("serving/page.css", "text/css; charset=utf-8"),
    "/page.js": ("serving/page.js", "text/javascript; charset=utf-8"),
    "/report.css": ("evaluation/report.css", "text/css; charset=utf-8"),
}
# The page loads its own files and talks to its own server, whatever a class or a file is called.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request. Connections are not kept: a request costs far more than a new connection."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that each error has a status line
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._client = _Client(self.connection)
        self.rfile = io.BufferedReader(self._client)
        self.requestline, self.command, self.request_version = "", "", self.default_request_version
        self._is_unread = True  # whether the client may still be sending

    def handle(self) -> None:
        """Reads and answers the request. Whatever it is, there is an answer, if there is a client to take it."""
        try:
            self.raw_requestline = self.rfile.readline(HEAD_BYTES + 1)
            if self.raw_requestline and self.parse_request():
                self._answer()
            self._is_unread &= bool(self.raw_requestline)
        except Refused as refused:
            self._refuse(refused)
        except TimeoutError:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive"))
        except OSError:  # the client went away
            self._log(0, "the client went away")
        except Exception:
            traceback.print_exc()
            self._refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the server has a fault, which its log tells"))

    def finish(self) -> None:
        """Lets the client see the answer before the connection ends, also if it is still sending."""
        with contextlib.suppress(OSError):
            if self._is_unread:
                self.connection.shutdown(socket.SHUT_WR)
                self._client.allow(LINGER_SECONDS, 1 << 40)
                buffer = bytearray(1 << 16)
                while self._client.readinto(buffer):
                    pass
        with contextlib.suppress(OSError):
            super().finish()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What parse_request calls for a request that is no HTTP."""
        status = HTTPStatus(code)
        self._refuse(Refused(status, f"{message or status.phrase} ({status.description or status.phrase})"))

    def handle_expect_100(self) -> bool:
        """Nothing yet: _body tells a client to go on, when the size of the picture is known to be right."""
        return True

    def _answer(self) -> None:
        self._is_unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        self._check_origin()
        path = self.path.partition("?")[0]
        if path != "/detect" and path != "/health" and path not in FILES:
            raise Refused(HTTPStatus.NOT_FOUND, "this server has /, /detect and /health, and nothing else")
        methods = ("POST",) if path == "/detect" else ("GET", "HEAD")
        if self.command not in methods:
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {' and '.join(methods)}", {"Allow": ", ".join(methods)}
            )
        if path == "/health":
            self._send_json(HTTPStatus.OK, self.server.health())
        elif path in FILES:
            self._send(HTTPStatus.OK, self.server.files[path], FILES[path][1])
        else:
            self._detect()

    def _check_origin(self) -> None:
        """Refuses what a page of another origin makes a browser send.

        On this machine alone, only the names of this machine are right: a page whose own name leads to 127.0.0.1 (DNS
        rebinding) would have the rights of ours. On a network, the server cannot know its names.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 and (hosts or self.request_version >= "HTTP/1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"a request has one header Host, not {len(hosts)}")
        host = hosts[0].strip().lower() if hosts else None
        if host is not None and self.server.own_names and re.sub(r":\d*$", "", host) not in self.server.own_names:
            names = ", ".join(sorted(self.server.own_names))
            raise Refused(HTTPStatus.FORBIDDEN, f"this server is called {names}; the header Host has another name")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        is_own = site in ("same-origin", "none") if site else origin is None or origin.partition("//")[2] == host
        if self.command == "POST" and not is_own:
            raise Refused(HTTPStatus.FORBIDDEN, "pages of other origins may not use this server")

    def _detect(self) -> None:
        length = self._length()
        start = time.perf_counter()
        with self.server.place():
            data, file_name = picture_of(self._body(length), self.headers.get("Content-Type", ""))
            answer = self.server.detect(data, file_name)
        size = f"{answer['image']['width']} x {answer['image']['height']}"
        seconds = time.perf_counter() - start
        count = len(answer["detections"])
        self._send_json(HTTPStatus.OK, answer, f"{count} object{'s' * (count != 1)} in {size}, {seconds:.2f} s")

    def _length(self) -> int:
        """The length of the body. Raises: Refused if it is not said, or more than what is taken."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refused(
                HTTPStatus.LENGTH_REQUIRED, "the header Content-Length must say how long the picture is; parts of "
                "unknown length (chunks) are not read"
            )  # fmt: skip
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0].strip()):
            raise Refused(HTTPStatus.BAD_REQUEST, "the header Content-Length must be one whole number")
        length = int(lengths[0])
        if length > self.server.max_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request has {length:,} bytes, and {self.server.max_bytes:,} "
                "are taken; --max-megabytes of the server changes that"
            )  # fmt: skip
        if not length:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request has no picture; curl needs @ before a file's name")
        return length

    def _body(self, length: int) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue" and self.request_version >= "HTTP/1.1":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        self._client.allow(BODY_SECONDS, length)
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the picture is cut off: {len(body):,} of {length:,} bytes came")
        self._is_unread = False
        return body

    def _refuse(self, refused: Refused) -> None:
        self._send_json(refused.status, {"error": refused.sentence}, refused.sentence, refused.headers)

    def _send_json(self, status: HTTPStatus, value: Any, note: str = "", headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode("ascii"), "application/json", note, headers)

    def _send(
        self, status: HTTPStatus, content: bytes, kind: str, note: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self._log(status, note)
        with contextlib.suppress(OSError):  # the client went away
            self.connection.settimeout(ANSWER_SECONDS)
            self.send_response_only(status)
            lines = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}
            for name, value in lines.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def _log(self, status: int, note: str) -> None:
        """A line for each request, in which nothing that a client sends can move a terminal or look like a line."""
        words = f"{ascii(self.requestline[:100])[1:-1]} {int(status)} {ascii(note)[1:-1]}".rstrip()
        with contextlib.suppress(OSError, ValueError):  # nobody reads the log any more
            sys.stderr.write(
                f"{time.strftime('%H:%M:%S')} {self.client_address[0]} {words}\n"
            )  # one write: a whole line


############################################################
#  The server
############################################################


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, up to MOST_CONNECTIONS, and one thread that works on one picture after another."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, queue: int, max_bytes: int) -> None:
        """Takes the port. queue: pictures that may wait. Raises: ValueError if the port cannot be had."""
        self.max_bytes, self._most = max_bytes, queue + 1
        self.files = {path: (ROOT / name).read_bytes() for path, (name, _) in FILES.items()}
        self._connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._places = threading.BoundedSemaphore(self._most)
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "model")
        self._taken, self._seconds = 0, 1.0  # pictures that have a place; how long the last one took
        self.model: Model | None = None  # to be set before it serves
        try:
            self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(address, Handler)
        except OSError as error:
            raise ValueError(_why_no_port(host, port, error)) from None
        own = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
        self.own_names = own if ipaddress.ip_address(self.server_address[0]).is_loopback else set()

    def server_bind(self) -> None:
        """Without a look into the DNS for this machine's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the pictures that wait, taken before a picture is read from the network, so that memory is
        bounded. Raises: Refused if there is none.
        """
        if not self._places.acquire(blocking=False):
            raise self._busy(f"{self._most} pictures are waiting already")
        try:
            yield
        finally:
            self._places.release()

    def _busy(self, reason: str) -> Refused:
        seconds = max(1, min(60, math.ceil(self._seconds * self._most)))
        sentence = f"{reason}; try again in {seconds} s"
        return Refused(HTTPStatus.SERVICE_UNAVAILABLE, sentence, {"Retry-After": str(seconds)})

    def detect(self, data: bytes, file_name: str | None) -> dict[str, Any]:
        """The answer for a picture, when its turn has come. Raises: Refused."""
        work = self._worker.submit(self._work, data, file_name)
        try:
            if not concurrent.futures.wait([work], WAIT_SECONDS).done and work.cancel():
                raise self._busy(f"the picture has waited for {WAIT_SECONDS:g} s")
            return work.result()
        except concurrent.futures.CancelledError:
            raise self._busy("the server ends") from None
        finally:
            # An error has the frames that it came through. With this name in one of them, it would keep itself and the
            # picture until the garbage collector comes by.
            del work

    def _work(self, data: bytes, file_name: str | None) -> dict[str, Any]:
        start = time.perf_counter()
        model = self.model
        try:
            pixels = model.read(data, "of the request" if file_name is None else file_name)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        except MemoryError:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the picture needs more memory than there is") from None
        entries = model.detect(pixels)
        names = {category["id"]: category["name"] for category in model.categories}
        self._seconds = time.perf_counter() - start
        return {
            "model": model.name,
            "image": {"file_name": file_name, "width": pixels.shape[1], "height": pixels.shape[0]},
            "categories": model.categories,
            "detections": [{**entry, "class_name": names[entry["category_id"]]} for entry in entries],
            "seconds": self._seconds,
        }

    def health(self) -> dict[str, Any]:
        """What GET /health answers."""
        classes = [category["name"] for category in self.model.categories]
        return {"status": "ok", "model": self.model.name, "classes": classes}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """For what even Handler cannot answer."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()

    def end(self) -> None:
        """Closes the port and waits for the picture that is worked on. Those that wait are refused."""
        self.server_close()
        self._worker.shutdown(wait=True, cancel_futures=True)


def _why_no_port(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host!a} is neither an address of this machine nor a name of one"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; end the other program, or choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host!a} is no address of this machine; 0.0.0.0 stands for all of them"
    if error.errno == errno.EACCES:
        return f"port {port} needs the rights of an administrator; choose one from 1024 up with --port"
    return f"port {port} of {host} cannot be used: {error.strerror}"


############################################################
#  Command line
############################################################


def build_parser(is_onnx: bool = False) -> argparse.ArgumentParser:
    """The command line's arguments. is_onnx: without those for checkpoints, whose module needs torch."""
    if is_onnx:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter}
        parser = argparse.ArgumentParser(PROGRAM, description=__doc__, **options)
        startup.end_of_imports()
    else:
        import cli

        parser = cli.Parser(PROGRAM, __doc__)
        cli.add_checkpoint_options(parser)
        cli.add_device(parser)
        cli.add_dtype(parser)
        cli.add_set(parser)
    parser.add_argument("model", metavar="MODEL", help="a name or checkpoint, as --model of demo.py; or a file .onnx")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, for this machine alone"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any free one")
    parser.add_argument(
        "--queue", type=int, default=8, metavar="N", help="pictures that may wait, while one is worked on; default: 8"
    )
    parser.add_argument("--max-megabytes", type=int, default=50, metavar="N", help="of a request, at most; default: 50")
    parser.add_argument(
        "--max-pixels", type=int, default=50_000_000, metavar="N", help="of a picture, at most; default: 50 million"
    )
    parser.add_argument(
        "--max-network-pixels", type=int, default=16_000_000, metavar="N",
        help="of what the network sees of a picture, at most, because its memory grows with them; default: 16 million",
    )  # fmt: skip
    return parser


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises ValueError for numbers of the command line that make no sense."""
    for name, least, most in (
        ("port", 0, 65535), ("queue", 0, 1000), ("max_megabytes", 1, 10_000), ("max_pixels", 1, 10**9),
        ("max_network_pixels", 1, 10**9),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')} must be from {least} to {most:,}, not {value}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    argv = sys.argv[1:] if argv is None else argv
    is_onnx = any(word.lower().endswith(".onnx") for word in argv)
    arguments = build_parser(is_onnx).parse_args(argv)
    if not is_onnx:
        import cli

        return cli.run(PROGRAM, lambda: serve_checkpoint(arguments))
    try:
        return serve(arguments, lambda: open_onnx(arguments))
    except (ValueError, OSError, ImportError) as error:  # as cli.run, which needs torch
        print(f"{PROGRAM}: {ascii(str(error))[1:-1]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def serve_checkpoint(arguments: argparse.Namespace) -> int:
    """serve() with torch."""
    with contextlib.ExitStack() as stack:
        return serve(arguments, lambda: open_checkpoint(arguments, stack))


def serve(arguments: argparse.Namespace, open_model: Callable[[], Model]) -> int:
    """Serves until a signal comes. Returns the exit code. Raises: ValueError for mistakes; as open_model."""
    check_numbers(arguments)
    server = Server(arguments.host, arguments.port, arguments.queue, arguments.max_megabytes << 20)
    try:
        model = server.model = open_model()
        signals: list[int] = []

        def stop(number: int, _: Any) -> None:
            signal.signal(number, signal.SIG_DFL)  # a second one ends at once
            signals.append(number)
            threading.Thread(target=server.shutdown).start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"{model.name!a} is at http://{host}:{server.server_port} until Ctrl-C", flush=True)
        if not server.own_names:
            print("every machine that reaches this port can use it: there is no password", flush=True)
        server.serve_forever()
    finally:
        server.end()
    return 128 + signals[0]


if __name__ == "__main__":
    sys.exit(main())

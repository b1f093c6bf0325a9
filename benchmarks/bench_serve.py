"""Many clients of serve.py: how fast it answers, and whether it stands when requests are malformed.

    python benchmarks/bench_serve.py [--model MODEL] [--image FILE] [--requests N] [--malformed N] [--quick]
                                     [--output FILE]

A server is started in a process of its own, on the model shapes unless told otherwise. The phases:

    one        one client, one picture after another
    eight      eight clients at once
    malformed  damaged requests and pictures of every kind, from eight clients at once, drawn at random (seed 0)
    same       the same once more: what grows now is a leak; before, it may be the largest picture's memory
    again      as eight

Seconds are those of a client, from before it connects until it has the answer: median and greatest. A request counts as
answered well if it is refused with a status from 400 to 499 and an error in JSON, or detected; some clients send
nothing or go away, and get no answer. Megabytes are those of the process in memory: after the start, after each phase,
and in ten parts of the phases malformed and same. The last line printed is JSON.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np

import cli
from benchmarks import machine

CLIENTS = 8
PARTS = 10  # of a phase of malformed requests, at whose ends memory is read


############################################################
#  Requests
############################################################


def request(body: bytes, length: int | None = None, kind: str = "image/png", host: str = "127.0.0.1") -> bytes:
    """A request of POST /detect. length: that it says, if it is not the body's."""
    length = len(body) if length is None else length
    head = f"POST /detect HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def _bomb(rng: np.random.Generator, picture: bytes) -> bytes:
    """A PNG of 100 bytes that says it has up to 4 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", *rng.integers(8000, 65_000, 2).tolist(), 8, 2, 0, 0, 0)
    return request(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)))


def _damaged(rng: np.random.Generator, picture: bytes) -> bytes:
    """The picture with some bytes changed, or cut off."""
    data = bytearray(picture[: rng.integers(1, len(picture))] if rng.random() < 0.5 else picture)
    for place in rng.integers(0, len(data), rng.integers(1, 50)).tolist():
        data[place] = rng.integers(256)
    return request(bytes(data))


def _form(rng: np.random.Generator, picture: bytes) -> bytes:
    """A form that is cut off or has another boundary than it says."""
    part = b'--xyz\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n' + picture + b"\r\n--xyz--\r\n"
    part = part[: rng.integers(len(part))]
    return request(part, kind=f"multipart/form-data; boundary={'xyz' if rng.random() < 0.7 else rng.bytes(9)}")


_KINDS: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "nothing": lambda rng, picture: b"",
    "noise": lambda rng, picture: rng.bytes(rng.integers(1, 5000)),
    "noise in a line": lambda rng, picture: b"POST " + rng.bytes(50) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "cut head": lambda rng, picture: request(picture)[: rng.integers(1, 90)],
    "long head": lambda rng, picture: (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * rng.integers(32_000, 200_000)
    ),
    "many headers": lambda rng, picture: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * rng.integers(101, 2000) + b"\r\n",
    "no length": lambda rng, picture: b"POST /detect HTTP/1.1\r\nHost: localhost\r\n\r\n" + picture,
    "wrong length": lambda rng, picture: request(picture, int(rng.choice([-1, 1, 10**9, 10**14, len(picture) + 1]))),
    "chunks": lambda rng, picture: b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    "method": lambda rng, picture: b"BREW /detect HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "path": lambda rng, picture: b"GET /../../etc/passwd%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "host": lambda rng, picture: request(picture, host="evil.example"),
    "no picture": lambda rng, picture: request(rng.bytes(rng.integers(1, 20_000))),
    "damaged picture": _damaged,
    "bomb": _bomb,
    "form": _form,
}


def malformed(rng: np.random.Generator, number: int, picture: bytes) -> tuple[str, bytes]:
    """The kind and the bytes of a malformed request; the kinds come in turn. picture: a valid file."""
    name = list(_KINDS)[number % len(_KINDS)]
    return name, _KINDS[name](rng, picture)


def ask(address: tuple[str, int], data: bytes, ends: bool = False) -> tuple[float, int, bytes]:
    """Sends bytes. ends: says that no more come. Returns seconds, the answer's status (0 without one) and its body."""
    start, answer = time.perf_counter(), b""
    with socket.create_connection(address, timeout=120) as connection, contextlib.suppress(ConnectionError):
        with contextlib.suppress(OSError):  # the server may have answered and closed before it has got all
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return time.perf_counter() - start, int(head.split()[1]) if head else 0, body


def is_right(status: int, body: bytes) -> bool:
    """Whether a malformed request is answered well."""
    if 400 <= status < 500:
        return list(json.loads(body)) == ["error"]
    return status in (0, 200)


############################################################
#  Phases
############################################################


def megabytes(process: int) -> float:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def measure_detections(address: tuple[str, int], data: bytes, clients: int, count: int) -> dict:
    """Detections of one picture, `count` in all."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda _: ask(address, data), range(count)))
    seconds = [answer[0] for answer in answers]
    return {
        "requests": count,
        "statuses": dict(Counter(answer[1] for answer in answers)),
        "objects": sorted({len(json.loads(answer[2])["detections"]) for answer in answers if answer[1] == 200}),
        "median_s": round(statistics.median(seconds), 3),
        "greatest_s": round(max(seconds), 3),
        "per_second": round(count / (time.perf_counter() - start), 2),
    }


def measure_malformed(address: tuple[str, int], process: int, picture: bytes, count: int) -> dict:
    """Malformed requests: how many of each kind were answered with which status, and memory meanwhile."""
    rng = np.random.default_rng(0)
    requests = [malformed(rng, number, picture) for number in range(count)]
    statuses, wrong, memory = Counter(), Counter(), []
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        for part in np.array_split(np.arange(count), PARTS):
            chosen = [requests[i] for i in part]
            for (name, _), answer in zip(chosen, pool.map(lambda r: ask(address, r[1], True), chosen), strict=True):
                statuses[answer[1]] += 1
                wrong[name] += not is_right(*answer[1:])
            memory.append(megabytes(process))
    return {
        "requests": count, "kinds": len(_KINDS), "statuses": dict(sorted(statuses.items())),
        "answered_wrongly": {name: number for name, number in wrong.items() if number}, "megabytes": memory,
    }  # fmt: skip


def measure(
    process: subprocess.Popen, address: tuple[str, int], picture: bytes, requests: int, malformed_count: int
) -> dict:
    """All phases."""
    data, memory = request(picture), {"start": megabytes(process.pid)}
    facts: dict = {"phases": {}, "megabytes": memory}
    for name, clients in (("one", 1), ("eight", CLIENTS), ("malformed", None), ("same", None), ("again", CLIENTS)):
        if clients is None:
            facts["phases"][name] = measure_malformed(address, process.pid, picture, malformed_count)
        else:
            facts["phases"][name] = measure_detections(address, data, clients, requests)
        memory[name] = megabytes(process.pid)
        print(f"{name:10} {memory[name]:8.1f} MB  {facts['phases'][name]}", flush=True)
    return facts


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    parser = machine.make_parser("bench_serve.py", __doc__, quick="16 requests and 64 malformed ones")
    parser.add_argument("--model", default="shapes", help="what serve.py serves; default: shapes")
    parser.add_argument("--image", type=Path, default=ROOT / "assets" / "shapes.jpg", help="default: assets/shapes.jpg")
    parser.add_argument("--requests", type=cli.whole_number(1), default=40, metavar="N", help="of a phase; default: 40")
    parser.add_argument("--malformed", type=cli.whole_number(1), default=1000, metavar="N", help="default: 1000")
    arguments = parser.parse_args(argv)
    return cli.run("bench_serve.py", lambda: run(arguments))


def run(arguments) -> int:
    """Start the server, measure, end it. Returns the exit code: 1 if a request was answered wrongly."""
    requests, count = (16, 64) if arguments.quick else (arguments.requests, arguments.malformed)
    picture = arguments.image.read_bytes()
    words = [sys.executable, "serve.py", arguments.model, "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            lines = iter(process.stdout)
            port = next((match[1] for line in lines if (match := re.search(r"http://127\.0\.0\.1:(\d+) ", line))), None)
            if port is None:
                raise cli.Failure(f"serve.py {arguments.model} did not start")
            facts = measure(process, ("127.0.0.1", int(port)), picture, requests, count)
        finally:
            process.terminate()
    facts["exit_code"] = process.returncode
    facts |= {"benchmark": "serve", "model": arguments.model, "image": arguments.image.name, **machine.describe()}
    machine.finish({**facts, "quick": arguments.quick}, arguments.output)
    well = [set(facts["phases"][name]["statuses"]) == {200} for name in ("one", "eight", "again")]
    return 0 if all(well) and not any(facts["phases"][n]["answered_wrongly"] for n in ("malformed", "same")) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A web server of one file, or of a few, in a thread, which misbehaves as it is told, for the tests of downloads."""

import contextlib
import http.server
import re
import threading
import time


class FileServer:
    """Use it as a context manager; change its attributes between requests.

    content: the file. files: {path: content} of further ones.
    etag, modified: headers, or None. content_type: as it says.
    ranges: True honours Range and If-Range; False ignores them; "blind" ignores If-Range only; "shifted" begins a byte
        late.
    length: whether Content-Length is told. statuses: what to answer first, such as [503, 404].
    drops: bytes after which to close the connection, for the next answers; None sends all.
    redirect: where to lead every request, or None. requests: (path, headers) of each request so far.
    hold: a threading.Event that answers wait for, or None.
    headers: {name: value} of each answer, which replace others; a list of values is sent one by one, None not at all.
    trickle: seconds between the bytes of an answer, headers included; 0 sends all at once.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.files, self.content_type = content, {}, "application/octet-stream"
        self.etag, self.modified, self.redirect, self.hold = '"1"', None, None, None
        self.ranges, self.length = True, True
        self.statuses, self.drops, self.requests = [], [], []
        self.headers, self.trickle = {}, 0.0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.root}/weights.pth"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked(self, header: str) -> list[str | None]:
        """A header of each request so far."""
        return [headers.get(header) for _, headers in self.requests]

    def answer(self, headers, path: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request with these headers."""
        out = {"Content-Type": self.content_type}
        out |= {"ETag": self.etag} if self.etag else {}
        out |= {"Last-Modified": self.modified} if self.modified else {}
        content = self.files.get(path, self.content)
        status, body = 200, content
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        same = self.ranges == "blind" or headers.get("If-Range") in (None, self.etag, self.modified)
        if wanted and self.ranges and same:
            start, size = int(wanted[1]) + (self.ranges == "shifted"), len(content)
            status, body = (206, content[start:]) if start < size else (416, b"")
            span = f"{start}-{size - 1}" if start < size else "*"
            out["Content-Range"] = f"bytes {span}/{size}"
        if self.redirect:
            return 302, {"Location": self.redirect}, b""
        return status, out, body

    def _handler(server):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append((self.path, dict(self.headers)))
                if server.hold:
                    server.hold.wait(10)
                status, headers, body = server.answer(self.headers, self.path)
                status = server.statuses.pop(0) if server.statuses else status
                drop = server.drops.pop(0) if server.drops else None
                self.send_response(status)
                headers |= {"Content-Length": str(len(body))} if server.length else {}
                headers |= server.headers
                for name, values in headers.items():
                    for value in values if isinstance(values, list) else [values] if values is not None else []:
                        self.send_header(name, value)
                self.close_connection = True
                if server.trickle:
                    self.trickle(b"".join(self._headers_buffer) + b"\r\n" + body[:drop])
                    return
                self.end_headers()
                self.wfile.write(body[:drop])

            def trickle(self, data):
                with contextlib.suppress(OSError):
                    for i in range(len(data)):
                        self.wfile.write(data[i : i + 1])
                        time.sleep(server.trickle)

            def log_message(self, *_):
                pass

        return Handler

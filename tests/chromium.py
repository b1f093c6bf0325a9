"""A headless Chromium, driven over its DevTools protocol: no driver, no port, a pipe to write to and one to read."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60  # seconds to wait for an answer
_LUMINANCES = r"""selector => {
  const light = color => {
    const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const [r, g, b] = color.match(/[\d.]+/g).map(value => linear(value / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (!/, 0\)$|\/ [\d.]+\)$/.test(color) && !/^rgba/.test(color)) return light(color);
    }
    return 1;
  };
  return [...document.querySelectorAll(selector)]
    .map(each => [light(getComputedStyle(each).color), ground(each), each.outerHTML.slice(0, 80)]);
}"""


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser with one page open. events holds what the page has reported since it was last opened."""

    def __init__(self, program: str, profile: Path):
        (child_in, to_child), (from_child, child_out) = os.pipe(), os.pipe()
        inherited = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (child_in, child_out)]
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
        ]
        flags += ["--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        # Chromium reads from descriptor 3 and writes to 4
        script = f'exec "$@" 3<&{inherited[0]} 4>&{inherited[1]} {inherited[0]}<&- {inherited[1]}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags, "about:blank"],
            pass_fds=inherited,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (child_in, child_out, *inherited):
            os.close(end)
        self._write, self._read = to_child, from_child
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol. Raises: RuntimeError with what the browser says went wrong."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                break
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._received:
            if not select.select([self._read], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"Chromium says nothing for {TIMEOUT} s")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError(f"Chromium ended with {self._process.wait()}")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False, media: str = "screen") -> None:
        """Open a file or an address in a window of that size, and wait until all of it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        url = page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=url)
        while self.evaluate("location.protocol + document.readyState") != f"{url.partition(':')[0]}:complete":
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def contrasts(self, selector: str) -> list[tuple[float, float, str]]:
        """Of each element: its text's contrast to its ground (WCAG), how light the ground is, and its beginning."""
        found = []
        for text, ground, what in self.evaluate(f"({_LUMINANCES})({json.dumps(selector)})"):
            high, low = max(text, ground), min(text, ground)
            found.append(((high + 0.05) / (low + 0.05), ground, what))
        return found

    def screenshot(self, path: Path, clip: dict[str, float] | None = None) -> None:
        """The whole page, or a part of it {"x", "y", "width", "height"}, as a PNG."""
        if clip is None:
            size = self.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1]}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

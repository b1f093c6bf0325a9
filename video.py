"""Videos, streams, webcams and windows: frames in, pictures out, one at a time, so that a video may be of any length.

PyAV and pyplot are imported when they are needed, and not before.
"""

import contextlib
import errno
import glob
import math
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
# Of streams from a network. A file or stream can name further ones, as a playlist does, and FFmpeg would open them: a
# file may read no network, and a stream no files.
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps")
_FILE_PROTOCOLS = "file"
_STREAM_PROTOCOLS = ",".join((*SCHEMES, "tcp", "tls", "udp", "rtp", "srtp", "httpproxy", "crypto", "data"))
CAMERA_SECONDS, CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 15.0, 30.0  # time limits: to open, and for each packet

############################################################
#  Reading
############################################################


class Source(NamedTuple):
    """An image, a video, a stream from a network or a camera to detect in."""

    name: str  # a path, a URL, or the number or name of a camera
    kind: str  # image, video, stream or camera

    def __str__(self) -> str:
        """The name for people and for results: without the password that a URL may have."""
        if self.kind == "stream":
            return re.sub(r"(?<=://)[^/@]*@", "***@", self.name)
        return f"camera:{self.name}" if self.kind == "camera" else self.name


class Frame(NamedTuple):
    """An image with its place in a source."""

    image: np.ndarray  # uint8 [H, W, 3]
    source: int  # index among the sources
    number: int = 0  # index in its video
    time: Fraction = Fraction(0)  # seconds since its video began
    clock: tuple[Fraction, Fraction] | None = None  # frames a second, seconds a tick; None for an image


def import_av() -> Any:
    """PyAV. Raises: ValueError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos and webcams need PyAV ({error}): {sys.executable} -m pip install av") from error
    return av


@contextlib.contextmanager
def open_video(source: Source) -> Iterator[tuple[Any, Fraction]]:
    """The video stream of a file, network or camera, and its frames a second.

    Raises: ValueError if it cannot be read, or while it is.
    """
    av = import_av()
    try:
        if source.kind == "camera":
            kind, device = CAMERAS[sys.platform]
            container = av.open(device.format(source.name), format=kind, timeout=CAMERA_SECONDS)
        elif source.kind == "stream":
            limits = (CONNECT_SECONDS, SILENCE_SECONDS)
            options = {"protocol_whitelist": _STREAM_PROTOCOLS, "rtsp_transport": "tcp"}
            container = av.open(source.name, timeout=limits, options=options)
        else:
            container = av.open(source.name, options={"protocol_whitelist": _FILE_PROTOCOLS})
        with container:
            if not container.streams.video:
                raise ValueError("it has no video, only sound or text")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream, stream.average_rate or stream.guessed_rate or Fraction(25)
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"cannot read {utils.printable(source)}: {_cause(source, error)}") from error


def _cause(source: Source, error: Exception) -> str:
    """What FFmpeg says, and what helps."""
    text = utils.printable(getattr(error, "strerror", None) or error)
    if source.kind == "camera":
        here = sys.platform == "linux"
        hint = f"; cameras here: {utils.listed(sorted(glob.glob('/dev/video*'))) or 'none'}" * here
        return f"{utils.printable(error)}{hint}"
    if source.kind == "stream" and isinstance(error, TimeoutError | import_av().ExitError):
        return f"nothing came for {CONNECT_SECONDS:g} s at the start, or {SILENCE_SECONDS:g} s later"
    if source.kind == "stream" and isinstance(error, import_av().InvalidDataError):
        return f"{text}; is it a video, and does it answer within {CONNECT_SECONDS:g} s?"
    if isinstance(error, import_av().InvalidDataError):
        path = Path(source.name)
        is_empty = source.kind == "video" and path.is_file() and path.stat().st_size == 0
        return "the file is empty" if is_empty else f"{text}; is it cut off or damaged, or no video?"
    return text


def count_frames(source: Source, every: int) -> int | None:
    """The number of frames to detect in; None if unknown. every: see read_video.

    A stream from a network is not opened for this: some cameras serve one connection only.

    Raises: ValueError if a video or camera cannot be opened.
    """
    if source.kind in ("image", "stream"):
        return 1 if source.kind == "image" else None
    with open_video(source) as (stream, rate):
        frames = _announced_frames(stream, rate)
    return None if source.kind == "camera" or frames < 1 else math.ceil(frames / every)


def _announced_frames(stream: Any, rate: Fraction) -> int:
    """The frames that a video has as its header says, about; 0 if it does not say."""
    seconds = (stream.duration or 0) * (stream.time_base or 0) or Fraction(stream.container.duration or 0, 1_000_000)
    by_time = round(seconds * rate)
    if stream.frames and "mp4" in stream.container.format.name and by_time:
        return min(stream.frames, by_time)  # an edit list may show a part of the frames; the time knows of it
    return stream.frames or by_time


def read_video(source: Source, index: int, every: int) -> Iterator[Frame]:
    """The frames 0, every, 2 * every ..., turned upright. index: of the source.

    Raises: ValueError if it cannot be read. If a part of it cannot be decoded, or if it ends long before the end that
        its header announces, ValueError comes after the last frame that can be.
    """
    with open_video(source) as (stream, rate):
        announced = _announced_frames(stream, rate) if source.kind == "video" else 0
        is_counted = bool(stream.frames)  # NOTE: a stream cannot be asked after the file is closed
        lost, start, now, number = [], None, Fraction(0), -1
        for number, frame in enumerate(_decode(stream, lost)):
            now = number / rate if frame.pts is None else frame.pts * frame.time_base
            start = now if start is None else start
            if number % every == 0:
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                yield Frame(image, index, number, now - start, (rate / every, stream.time_base))
    if source.kind == "video":  # a stream or camera begins and ends anywhere
        _check_complete(source, is_counted, announced, number + 1, float(now - (start or 0)), lost)


def _check_complete(
    source: Source, is_counted: bool, announced: int, frames: int, seconds: float, lost: list[str]
) -> None:
    """Raises ValueError if packets of a video are lost, or frames that its header announces are missing."""
    # Only where the frames are counted is their number exact; a sound track may be longer than the pictures.
    tolerated = max(2, announced / 20) if is_counted else max(25, announced / 4)
    reasons = [f"{len(lost)} of its packets cannot be decoded ({lost[0]})"] if lost else []
    reasons += [f"it announces about {announced} frames"] if announced - frames > tolerated else []
    if reasons:
        raise ValueError(
            f"{utils.printable(source)} is cut off or damaged: {'; '.join(reasons)}; {frames} frames ({seconds:.1f} s) "
            "could be read, and their results are kept"
        )


def _decode(stream: Any, lost: list[str]) -> Iterator[Any]:
    """The frames of a stream. lost: gets the reason for each packet that cannot be decoded.

    Raises: FFmpegError if the stream cannot be read any more.
    """
    av = import_av()
    for packet in stream.container.demux(stream):
        if packet.is_corrupt:
            lost.append("damaged data")
        try:
            yield from packet.decode()
        except av.InvalidDataError as error:
            lost.append(utils.printable(error.strerror or error))


############################################################
#  Writing and showing
############################################################


class VideoWriter:
    """An H.264 video of frames at their times. A file that is cut off plays up to the cut.

    Raises: OSError that names the file if it cannot be written, here and in write and close.
    """

    def __init__(self, path: Path, first: Frame) -> None:
        self.av, self.path, (rate, self.tick), self.last = import_av(), path, first.clock, -1
        with self._errors():
            self.container = self.av.open(str(path), "w", options={"movflags": "hybrid_fragmented"})
            self.stream = self.container.add_stream("libx264", rate=rate, options={"crf": "20"})
        self.stream.height, self.stream.width = first.image.shape[:2]
        even = self.stream.height % 2 == self.stream.width % 2 == 0
        self.stream.pix_fmt = "yuv420p" if even else "yuv444p"  # every player knows yuv420p, which needs even sides
        context = self.stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = self.tick, 48, 0
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, not full

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            cause = utils.printable(error.strerror or error)
            raise OSError(errno.EIO, f"the video cannot be written: {cause}", str(self.path)) from error

    def write(self, time: Fraction, picture: np.ndarray) -> None:
        """Append a picture, uint8 [H, W, 3], scaled to the first one's size. time: seconds since the start."""
        frame = self.av.VideoFrame.from_ndarray(picture, format="rgb24")
        size = {"width": self.stream.width, "height": self.stream.height}
        frame = frame.reformat(**size, format=self.stream.pix_fmt, dst_colorspace="ITU709", dst_color_range=1)
        self.last = max(round(time / self.tick), self.last + 1)
        frame.pts, frame.time_base = self.last, self.tick
        with self._errors():
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds."""
        with self._errors():
            self.container.mux(self.stream.encode())
            self.container.close()


class Window:
    """A window that shows one picture after another.

    Raises: ValueError where matplotlib cannot open one.
    """

    def __init__(self) -> None:
        import matplotlib.pyplot as plt
        from matplotlib.backends import BackendFilter, backend_registry

        reason = "no display, or no toolkit: apt install python3-tk, or pip install PyQt6"
        try:
            backend = plt.get_backend()
        except ImportError as error:
            backend, reason = "agg", str(error)
        if backend.lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
            raise ValueError(f"--show: matplotlib cannot open a window here ({reason}). Without it, see --output")
        self.plt, self.shown, self.closed = plt, None, False
        self.figure = plt.figure("demo.py", figsize=(12, 8))
        self.figure.canvas.mpl_connect("close_event", lambda event: setattr(self, "closed", True))

    def add(self, picture: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 3], instead of the last one."""
        if self.closed:
            return
        if self.shown is None or self.shown.get_array().shape != picture.shape:
            self.figure.clear()
            axes = self.figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            self.shown = axes.imshow(picture)
            self.plt.show(block=False)
        self.shown.set_data(picture)
        self.figure.canvas.draw_idle()
        self.figure.canvas.flush_events()

    def wait(self) -> None:
        """Wait until the user closes the window."""
        if not self.closed:
            self.plt.show()

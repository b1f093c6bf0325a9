"""Videos, webcams and windows: frames in, pictures out, one at a time, so that a video may be of any length.

PyAV and pyplot are imported when they are needed, and not before.
"""

import contextlib
import glob
import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}

############################################################
#  Reading
############################################################


class Source(NamedTuple):
    """An image, a video or a camera to detect in."""

    name: str  # a path, or the number or name of a camera
    kind: str  # image, video or camera

    def __str__(self) -> str:
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
    """The video stream of a file or camera, and its frames a second.

    Raises: ValueError if it cannot be read, or while it is.
    """
    av = import_av()
    try:
        if source.kind == "camera":
            kind, device = CAMERAS[sys.platform]
            container = av.open(device.format(source.name), format=kind, timeout=10.0)
        else:
            container = av.open(source.name)
        with container:
            if not container.streams.video:
                raise ValueError("it has no video, only sound or text")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream, stream.average_rate or stream.guessed_rate or Fraction(25)
    except (av.FFmpegError, ValueError) as error:
        hint = f"; cameras here: {utils.listed(sorted(glob.glob('/dev/video*'))) or 'none'}" * (sys.platform == "linux")
        raise ValueError(f"cannot read {source}: {error}{hint if source.kind == 'camera' else ''}") from error


def count_frames(source: Source, every: int) -> int | None:
    """The number of frames to detect in; None if unknown. every: see read_video."""
    if source.kind == "image":
        return 1
    with open_video(source) as (stream, rate):
        frames = stream.frames or round((stream.duration or 0) * (stream.time_base or 0) * rate)
    return None if source.kind == "camera" or frames < 1 else math.ceil(frames / every)


def read_video(source: Source, index: int, every: int) -> Iterator[Frame]:
    """The frames 0, every, 2 * every ..., turned upright. index: of the source."""
    with open_video(source) as (stream, rate):
        start = None
        for number, frame in enumerate(stream.container.decode(stream)):
            now = number / rate if frame.pts is None else frame.pts * frame.time_base
            start = now if start is None else start
            if number % every == 0:
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                yield Frame(image, index, number, now - start, (rate / every, stream.time_base))


############################################################
#  Writing and showing
############################################################


class VideoWriter:
    """An H.264 video of frames at their times. A file that is cut off plays up to the cut."""

    def __init__(self, path: Path, first: Frame) -> None:
        self.av, (rate, self.tick), self.last = import_av(), first.clock, -1
        self.container = self.av.open(str(path), "w", options={"movflags": "hybrid_fragmented"})
        self.stream = self.container.add_stream("libx264", rate=rate, options={"crf": "20"})
        self.stream.height, self.stream.width = first.image.shape[:2]
        even = self.stream.height % 2 == self.stream.width % 2 == 0
        self.stream.pix_fmt = "yuv420p" if even else "yuv444p"  # every player knows yuv420p, which needs even sides
        context = self.stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = self.tick, 48, 0
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, not full

    def write(self, time: Fraction, picture: np.ndarray) -> None:
        """Append a picture, uint8 [H, W, 3]. time: seconds since the start."""
        frame = self.av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format=self.stream.pix_fmt, dst_colorspace="ITU709", dst_color_range=1)
        self.last = max(round(time / self.tick), self.last + 1)
        frame.pts, frame.time_base = self.last, self.tick
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds."""
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

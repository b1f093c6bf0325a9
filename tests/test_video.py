"""video.py, and demo.py on the videos that this file makes with PyAV; without PyAV most of it skips."""

import contextlib
import http.server
import json
import re
import shutil
import socket
import struct
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import files_of_at_most, interrupt_drawing, random_image

import demo
import utils
import video
import visualize
from video import Frame, Source, VideoWriter

HEIGHT, WIDTH, RATE = 48, 64, Fraction(30000, 1001)


@pytest.fixture
def av():
    return pytest.importorskip("av", reason="PyAV is not installed here: pip install av")


def scene(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A square that moves over a gradient: what video coding hardly changes."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(40, 200, width)
    image[..., 1] = np.linspace(30, 160, height)[:, None]
    image[8:24, 2 * number % width : 2 * number % width + 16] = (230, 60, 90)
    return image


def write_video(av, path, frames, rate=RATE, ticks=None, codec="libx264") -> Source:
    """Frames as a video, at their ticks of 1 / rate seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p" if stream.width % 2 or stream.height % 2 else "yuv420p"
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Source(str(path), "video")


def decoded(av, path) -> tuple[list[np.ndarray], list[Fraction], Fraction]:
    """The frames of a video, their times, its rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.to_ndarray(format="rgb24"), frame.pts * frame.time_base) for frame in container.decode(stream)]
        return [image for image, _ in frames], [time for _, time in frames], stream.average_rate


@pytest.fixture
def film(av, tmp_path):
    return write_video(av, tmp_path / "film.mp4", [scene(i) for i in range(12)])


@pytest.fixture
def detect(weights, tmp_path):
    """demo.py on something, into out/: its exit status."""
    options = ["--model", str(weights), "--output", str(tmp_path / "out"), "--threshold", "0"]
    return lambda *arguments: demo.main([*map(str, arguments), *options])


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


############################################################
#  demo.py
############################################################


def test_video_in_video_out(av, film, detect, tmp_path, monkeypatch, capsys):
    draw, drawn = visualize.draw_instances, []
    monkeypatch.setattr(visualize, "draw_instances", lambda *a, **named: drawn.append(draw(*a, **named)) or drawn[-1])
    assert detect(film.name, "--set", "DETECTION_MAX_INSTANCES=2") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.jsonl", "film.mp4"]
    images, times, rate = decoded(av, tmp_path / "out" / "film.mp4")
    before, seen_times, _ = decoded(av, film.name)
    assert (len(images), rate, images[0].shape) == (12, RATE, (HEIGHT, WIDTH, 3))
    assert times == [time - seen_times[0] for time in seen_times] == [i / RATE for i in range(12)]
    entries = lines(tmp_path / "out" / "detections.jsonl")
    for i, entry in enumerate(entries):
        masks = [utils.rle_to_mask(one["segmentation"]) for one in entry["detections"]]
        assert {key: entry[key] for key in entry if key != "detections"} == {
            "image_id": i + 1, "file_name": film.name, "frame": i, "seconds": float(i / RATE)
        }  # fmt: skip
        assert {one["image_id"] for one in entry["detections"]} == {i + 1}
        assert np.abs(images[i].astype(int) - drawn[i]).mean() < 25, "what was drawn, but for coding"
        assert np.abs(images[i].astype(int) - before[i])[np.any(masks, axis=0)].mean() > 30, "masks are tinted"
    count = sum(len(entry["detections"]) for entry in entries)
    assert f"{count} instances in {len(entries)} images" in capsys.readouterr().out
    assert (count, len(entries)) == (24, 12)


def test_every_keeps_the_time(av, film, detect, tmp_path):
    assert detect(film.name, "--every", 5) == 0
    _, times, rate = decoded(av, tmp_path / "out" / "film.mp4")
    assert times == [i / RATE for i in (0, 5, 10)]
    assert [entry["frame"] for entry in lines(tmp_path / "out" / "detections.jsonl")] == [0, 5, 10]
    assert float(rate) == pytest.approx(float(RATE / 5))
    assert [video.count_frames(film, every) for every in (1, 5, 6, 11, 12)] == [12, 3, 2, 2, 1]


def test_images_and_videos_together(av, film, detect, tmp_path):
    """One stream of all: the second video begins when the first ends, an image between them is a picture."""
    demo.save_picture(scene(3), tmp_path / "photo.png")
    second = write_video(av, tmp_path / "second.mkv", [scene(i, 40, 80) for i in range(5)], Fraction(10))
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"no")
    assert detect(film.name, tmp_path / "photo.png", empty, second.name) == 1
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["detections.jsonl", "film.mp4", "photo.jpg", "second.mp4"]
    assert len(decoded(av, out / "film.mp4")[0]) == 12
    images, times, rate = decoded(av, out / "second.mp4")
    assert (len(images), images[0].shape, rate) == (5, (40, 80, 3), 10)
    assert times == [Fraction(i, 10) for i in range(5)]
    entries = lines(out / "detections.jsonl")
    assert [entry["image_id"] for entry in entries] == list(range(1, 19))
    assert [entry["frame"] for entry in entries] == [*range(12), 0, *range(5)]


def test_stages_of_a_video_are_those_of_its_first_frame(film, detect, tmp_path):
    assert detect(film.name, "--stages") == 0
    assert len(list((tmp_path / "out").glob("film_[1-5]_*.png"))) == 5
    assert len(lines(tmp_path / "out" / "detections.jsonl")) == 12, "the first frame is not lost"


def test_a_long_video_is_never_in_memory(film, detect, monkeypatch):
    """Frames are read a few ahead of those that are written, however many there are."""
    read, written, ahead = [], [], []

    def endless(source, index, every):
        for number in range(120):
            read.append(number)
            yield Frame(scene(number), index, number, number / RATE, (RATE, 1 / RATE))

    def add(self, frame, picture):
        written.append(frame.number)
        ahead.append(len(read) - len(written))

    monkeypatch.setattr(video, "read_video", endless)
    monkeypatch.setattr(demo.Pictures, "add", add)
    assert detect(film.name) == 0
    assert written == list(range(120))
    assert max(ahead) <= 16


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_leaves_a_film_that_plays(av, detect, tmp_path, monkeypatch, signals):
    film = write_video(av, tmp_path / "film.mp4", [scene(i) for i in range(60)])
    interrupt_drawing(monkeypatch, 4, signals)
    assert detect(film.name) == 130
    images = decoded(av, tmp_path / "out" / "film.mp4")[0]
    assert len(images) == len(lines(tmp_path / "out" / "detections.jsonl"))
    assert len(images) == 3 if signals == 2 else 4 <= len(images) < 40


def test_a_video_that_breaks_does_not_stop_the_others(av, film, detect, tmp_path, monkeypatch, capsys):
    other = write_video(av, tmp_path / "other.mp4", [scene(0)] * 3)
    read = video.read_video

    def broken(source, index, every):
        for frame in read(source, index, every):
            if source == film and frame.number == 5:
                raise ValueError(f"cannot read {source}: torn")
            yield frame

    monkeypatch.setattr(video, "read_video", broken)
    assert detect(film.name, other.name) == 1
    assert f"not read: cannot read {film}: torn" in capsys.readouterr().err
    assert len(decoded(av, tmp_path / "out" / "film.mp4")[0]) == 5
    assert len(decoded(av, tmp_path / "out" / "other.mp4")[0]) == 3


def test_mistakes_are_one_line(av, film, detect, tmp_path, capsys):
    text, sound = tmp_path / "text.mp4", tmp_path / "sound.mkv"
    text.write_text("no video")
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for arguments, message in {
        (text,): f"cannot read {text}: ",
        (sound,): f"cannot read {sound}: it has no video, only sound or text",
        (film.name, "--save-json", "x.json"): f"--save-json x.json: the results of {film} need a .jsonl",
        (film.name, "--output", film.name.removesuffix("film.mp4")): "film.mp4; choose another",
    }.items():
        demo_arguments = [*map(str, arguments), "--model", "none.pth"]  # videos are looked at before models
        assert demo.main(demo_arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("demo.py: ")
        assert message in error
        assert "Traceback" not in error


def test_without_pyav_it_says_how_to_get_it(detect, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    (tmp_path / "film.mp4").write_bytes(b"")
    for name in (tmp_path / "film.mp4", "camera:0"):
        assert detect(name) == 2
        assert f"{sys.executable} -m pip install av" in capsys.readouterr().err
    demo.save_picture(scene(3), tmp_path / "photo.png")
    assert detect(tmp_path / "photo.png") == 0, "images need none"


############################################################
#  Cameras
############################################################


def test_a_camera_is_read_as_it_comes(av, film, detect, tmp_path, monkeypatch, weights):
    """A file stands for the camera. Each frame is a batch of its own: nobody waits for the next one."""
    shutil.copy(film.name, tmp_path / "film0.mp4")
    monkeypatch.setitem(video.CAMERAS, sys.platform, ("mp4", str(tmp_path / "film{}.mp4")))
    sizes, detect_batches = [], demo.MaskRCNN.detect_batches

    def spy(self, batches, dtype, masks):
        return detect_batches(self, (sizes.append(len(batch)) or batch for batch in batches), dtype, masks)

    monkeypatch.setattr(demo.MaskRCNN, "detect_batches", spy)
    assert detect("0") == 0
    assert sizes == [1] * 12
    assert len(decoded(av, tmp_path / "out" / "camera_0.mp4")[0]) == 12
    assert {entry["file_name"] for entry in lines(tmp_path / "out" / "detections.jsonl")} == {"camera:0"}
    assert video.count_frames(Source("0", "camera"), 1) is None, "nobody knows"
    assert detect(film.name) == 0
    assert sizes[12:] == [2] * 6


def test_a_camera_that_is_not_there(av, detect, monkeypatch, capsys):
    monkeypatch.setattr(video.glob, "glob", lambda pattern: ["/dev/video3"])
    monkeypatch.setattr(sys, "platform", "linux")
    assert detect("camera:99") == 2
    error = capsys.readouterr().err
    assert error.startswith("demo.py: cannot read camera:99: ")
    assert "/dev/video99" in error
    assert error.endswith("; cameras here: /dev/video3\n")


############################################################
#  Reading and writing
############################################################


def test_times_are_kept(av, tmp_path):
    """A variable frame rate, a start that is not 0, and no two frames at one time."""
    source = write_video(av, tmp_path / "film.mp4", [scene(i) for i in range(4)], Fraction(20), [7, 8, 12, 31])
    frames = list(video.read_video(source, 5, 1))
    assert [frame.time for frame in frames] == [Fraction(i, 20) for i in (0, 1, 5, 24)]
    assert [(frame.source, frame.number) for frame in frames] == [(5, i) for i in range(4)]
    writer = VideoWriter(tmp_path / "copy.mp4", frames[0])
    for frame, seconds in zip([*frames, frames[-1]], [*(frame.time for frame in frames), frames[-1].time], strict=True):
        writer.write(seconds, frame.image)
    writer.close()
    images, times, _ = decoded(av, tmp_path / "copy.mp4")
    assert times == [*(frame.time for frame in frames), frames[-1].time + frames[0].clock[1]]
    assert np.abs(images[1].astype(int) - frames[1].image).mean() < 3


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 64), (48, 65), (720, 1280), (1, 3)])
def test_sizes_and_colours_are_kept(av, tmp_path, height, width):
    image = np.full((height, width, 3), (200, 60, 30), np.uint8)
    image[:, width // 2 :] = (30, 180, 90)
    first = Frame(image, 0, clock=(Fraction(25), Fraction(1, 25)))
    writer = VideoWriter(tmp_path / "film.mp4", first)
    writer.write(Fraction(0), image)
    writer.close()
    (copy,), _, _ = decoded(av, tmp_path / "film.mp4")
    assert copy.shape == image.shape
    np.testing.assert_allclose(copy[:, [0, -1]].mean(axis=0), image[0, [0, -1]], atol=6)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        even = height % 2 == width % 2 == 0
        assert stream.codec_context.pix_fmt == ("yuv420p" if even else "yuv444p")
        assert stream.codec_context.colorspace == 1, "what players take large videos for, said"


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_telephones_films_are_turned_upright(av, film, tmp_path, matrix, turns):
    """The matrix in the track header maps (x, y) to (a x + c y, b x + d y)."""
    a, b, c, d = (65536 * value for value in matrix)
    data, upright = Path(film.name).read_bytes(), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    assert data.count(upright) == 2, "of the film, and of its track"
    at = data.rindex(upright)
    (tmp_path / "turned.mp4").write_bytes(
        data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]
    )
    plain, turned = (
        list(video.read_video(source, 0, 1)) for source in (film, Source(str(tmp_path / "turned.mp4"), "video"))
    )
    for one, other in zip(plain, turned, strict=True):
        assert (other.image == np.rot90(one.image, turns)).all()


def test_a_film_that_is_cut_off_plays(av, tmp_path):
    """As after kill -9 or on a full disk: what was written before lies in the file."""
    first = Frame(random_image(HEIGHT, WIDTH), 0, clock=(Fraction(25), Fraction(1, 25)))
    writer = VideoWriter(tmp_path / "film.mp4", first)
    for i in range(300):
        writer.write(Fraction(i, 25), random_image(HEIGHT, WIDTH, i % 7))
    shutil.copy(tmp_path / "film.mp4", tmp_path / "cut.mp4")
    writer.close()
    assert len(decoded(av, tmp_path / "film.mp4")[0]) == 300
    played = 0
    with av.open(str(tmp_path / "cut.mp4")) as container, contextlib.suppress(av.FFmpegError):  # of half a frame
        for _ in container.decode(video=0):
            played += 1
    assert played >= 100


############################################################
#  Windows
############################################################


def test_show_without_a_display(detect, tmp_path, monkeypatch, capsys):
    plt = pytest.importorskip("matplotlib.pyplot")
    demo.save_picture(scene(3), tmp_path / "photo.png")
    monkeypatch.setattr(plt, "get_backend", lambda: "Agg")
    assert detect(tmp_path / "photo.png", "--show") == 2
    assert "--show: matplotlib cannot open a window here (no display, or no toolkit" in capsys.readouterr().err

    def impossible():
        raise ImportError("Cannot load backend 'TkAgg'")

    monkeypatch.setattr(plt, "get_backend", impossible)
    assert detect(tmp_path / "photo.png", "--show") == 2
    assert "(Cannot load backend 'TkAgg')" in capsys.readouterr().err


@pytest.fixture
def screen(monkeypatch):
    """Makes pyplot believe that it has windows. Returns the calls of show()."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    calls = []
    monkeypatch.setattr(plt, "get_backend", lambda: "tkagg")
    monkeypatch.setattr(plt, "show", lambda **options: calls.append(options))
    yield calls
    plt.close("all")


def close(window):
    """What a click on the window's corner does."""
    from matplotlib.backend_bases import CloseEvent

    window.figure.canvas.callbacks.process("close_event", CloseEvent("close_event", window.figure.canvas))


def test_window(screen):
    window = video.Window()
    for picture in (scene(1), scene(9), scene(9, 30, 40)):
        window.add(picture)
        window.figure.set_size_inches(picture.shape[1] / 100, picture.shape[0] / 100)
        window.figure.canvas.draw()
        shown = np.asarray(window.figure.canvas.buffer_rgba())[..., :3]
        assert shown.shape == picture.shape
        assert np.abs(shown.astype(int) - picture).mean() < 3
    assert screen == [{"block": False}] * 2, "once for each size"
    window.wait()
    assert screen[2:] == [{}]
    close(window)
    assert window.closed
    window.add(scene(2))
    window.wait()
    assert len(screen) == 3, "it stays closed"


def test_show(film, detect, tmp_path, screen, monkeypatch):
    """A picture stays until its window is closed; to close the window ends a video, and keeps what is done."""
    demo.save_picture(scene(3), tmp_path / "photo.png")
    assert detect(tmp_path / "photo.png", "--show") == 0
    assert screen == [{"block": False}, {}]
    add = video.Window.add

    def add_and_close(self, picture):
        add(self, picture)
        close(self)

    monkeypatch.setattr(video.Window, "add", add_and_close)
    assert detect(film.name, "--show") == 0
    assert len(lines(tmp_path / "out" / "detections.jsonl")) in range(1, 12)
    assert len(screen) == 3, "nothing to wait for"


############################################################
#  Damaged videos
############################################################


def damaged(path, low: float, high: float) -> Path:
    """A copy of a file in which each eighth byte between two shares of its length is another one."""
    data = bytearray(Path(path).read_bytes())
    for place in range(int(low * len(data)), int(high * len(data)), 8):
        data[place] ^= 0xFF
    copy = Path(path).with_stem("damaged")
    copy.write_bytes(data)
    return copy


def cut(path, share: float) -> Path:
    """A copy of a file that ends early."""
    data = Path(path).read_bytes()
    copy = Path(path).with_stem("cut")
    copy.write_bytes(data[: int(share * len(data))])
    return copy


def frames_until_error(path, every: int = 1) -> tuple[list[Frame], str]:
    """The frames of a video, and the message of the error that comes after them."""
    frames, message = [], ""
    try:
        frames.extend(video.read_video(Source(str(path), "video"), 0, every))
    except ValueError as error:
        message = str(error)
    return frames, message


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_the_frames_around_a_fault_are_kept(av, tmp_path, suffix):
    path = Path(write_video(av, tmp_path / f"film.{suffix}", [random_image(48, 64, i) for i in range(60)]).name)
    frames, message = frames_until_error(damaged(path, 0.4, 0.5))
    assert 20 <= len(frames) < 60
    assert f"{tmp_path}/damaged.{suffix} is cut off or damaged: " in message
    assert " of its packets cannot be decoded (" in message
    assert f"; {len(frames)} frames (" in message
    assert "could be read, and their results are kept" in message


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_video_that_ends_early_is_named(av, tmp_path, suffix):
    """FFmpeg takes the cut for the end."""
    path = Path(write_video(av, tmp_path / f"film.{suffix}", [random_image(48, 64, i) for i in range(90)]).name)
    assert len(list(video.read_video(Source(str(path), "video"), 0, 1))) == 90
    frames, message = frames_until_error(cut(path, 0.5), every=2)
    assert 10 <= len(frames) <= 25
    assert f"{tmp_path}/cut.{suffix} is cut off or damaged: " in message
    assert "it announces about 90 frames; " in message


def test_no_good_video_is_called_cut(av, tmp_path):
    """Also if it is short, or a frame has no place at the end."""
    for count, suffix in ((1, "mp4"), (2, "mkv"), (7, "avi"), (30, "webm")):
        codec = "libvpx" if suffix == "webm" else "libx264"
        source = write_video(av, tmp_path / f"{count}.{suffix}", [scene(i) for i in range(count)], codec=codec)
        assert len(list(video.read_video(source, 0, 1))) == count


def test_damaged_videos_do_not_stop_the_others(av, film, detect, tmp_path, capsys):
    """One that cannot be opened, one that breaks, one that is empty: the rest is done, and all are named once."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    long = write_video(av, tmp_path / "long.mkv", [random_image(48, 64, i) for i in range(90)])
    broken = cut(long.name, 0.5)
    headless = cut(film.name, 0.5)
    demo.save_picture(scene(3), tmp_path / "photo.png")
    assert detect(tmp_path / "empty.mp4", headless, broken, film.name, tmp_path / "photo.png") == 1
    error = capsys.readouterr().err
    assert error.count("not read: ") == 3
    assert f"not read: cannot read {tmp_path}/empty.mp4: the file is empty" in error
    assert f"not read: cannot read {headless}: Invalid data found" in error
    assert "is it cut off or damaged, or no video?" in error
    assert f"not read: {broken} is cut off or damaged: it announces about 90 frames" in error
    entries = lines(tmp_path / "out" / "detections.jsonl")
    counts = {name: sum(entry["file_name"] == str(name) for entry in entries) for name in (broken, film.name)}
    assert counts[film.name] == 12
    assert 20 <= counts[broken] <= 50
    assert len(decoded(av, tmp_path / "out" / "cut.mp4")[0]) == counts[broken]


def test_a_folder_stands_for_its_videos_too(av, film, detect, tmp_path, monkeypatch, capsys):
    demo.save_picture(scene(3), tmp_path / "photo.png")
    assert detect(tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.jsonl", "film.mp4", "photo.jpg"]
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "av", None)
    assert detect(tmp_path) == 1, "without PyAV, the images are done"
    captured = capsys.readouterr()
    assert "in 1 images" in captured.out
    assert "not read: videos and webcams need PyAV (" in captured.err


def test_a_video_that_changes_its_size(av, tmp_path):
    """As streams do: its pictures are scaled to the first one."""
    writer = VideoWriter(tmp_path / "film.mp4", Frame(scene(0), 0, clock=(Fraction(25), Fraction(1, 25))))
    writer.write(Fraction(0), scene(0))
    writer.write(Fraction(1, 25), scene(0, 2 * HEIGHT, 2 * WIDTH))
    writer.close()
    assert [image.shape for image in decoded(av, tmp_path / "film.mp4")[0]] == [(HEIGHT, WIDTH, 3)] * 2


def test_a_full_disk_names_the_video(av, tmp_path):
    writer = VideoWriter(
        tmp_path / "film.mp4", Frame(random_image(HEIGHT, WIDTH), 0, clock=(Fraction(25), Fraction(1, 25)))
    )

    def write_all():
        for i in range(200):
            writer.write(Fraction(i, 25), random_image(HEIGHT, WIDTH, i))
        writer.close()

    with files_of_at_most(2000), pytest.raises(OSError, match="File too large") as error:
        write_all()
    assert error.value.filename == str(tmp_path / "film.mp4")


def test_a_video_file_opens_nothing_else(av, film, tmp_path):
    """A playlist under the name of a video could name any address, and FFmpeg would fetch it."""
    with served({"/film.mkv": Path(film.name).read_bytes()}) as (address, asked):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}/film.mkv\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.mp4").write_text(playlist)
        frames, message = frames_until_error(tmp_path / "list.mp4")
        assert not frames
        assert "list.mp4: " in message
        assert not asked


############################################################
#  Streams
############################################################


@contextlib.contextmanager
def served(files: dict[str, bytes], silent: bool = False):
    """A web server of some files. silent: it takes the request, sends a half, and says nothing more.

    Yields its address, and a list of the paths that were asked for.
    """
    asked, end = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if data is not None:
                with contextlib.suppress(OSError):
                    self.wfile.write(data[: len(data) // 2] if silent else data)
                if silent:
                    end.wait(20)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        end.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def stream_file(av, tmp_path) -> bytes:
    """A video that can be read from its start to its end."""
    path = tmp_path / "stream.mkv"
    write_video(av, path, [random_image(HEIGHT, WIDTH, i) for i in range(12)])
    return path.read_bytes()


def test_a_stream_over_http(av, stream_file, detect, tmp_path, capsys):
    with served({"/live/channel%201.mkv?key=1": stream_file}) as (address, _):
        url = address.replace("//", "//user:secret@") + "/live/channel%201.mkv?key=1"
        assert detect(url) == 0
        assert detect(f"{address}/none.mkv", url) == 1
    captured = capsys.readouterr()
    assert f"not read: cannot read {address}/none.mkv: Server returned 404 Not Found" in captured.err
    assert "secret" not in captured.out + captured.err
    entries = lines(tmp_path / "out" / "detections.jsonl")
    assert {entry["file_name"] for entry in entries} == {url.replace("user:secret", "***")}, "no password in results"
    assert len(decoded(av, tmp_path / "out" / "channel_201.mp4")[0]) == 12


def test_a_stream_that_falls_silent(av, stream_file, detect, monkeypatch, capsys):
    monkeypatch.setattr(video, "SILENCE_SECONDS", 0.5)
    with served({"/a.mkv": stream_file}, silent=True) as (address, _):
        assert detect(f"{address}/a.mkv") == 1
    assert f"cannot read {address}/a.mkv: nothing came for 15 s at the start, or 0.5 s later" in capsys.readouterr().err


def test_an_address_that_does_not_answer(av, monkeypatch, capsys, detect):
    monkeypatch.setattr(video, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections, and never answers
        for scheme in ("http", "rtsp"):
            start = time.monotonic()
            assert detect(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/live") == 1
            assert time.monotonic() - start < 20
            assert re.search("nothing came for 0.5 s at the start|answer within 0.5 s", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x/a.mp4", "ftp://x/a.mp4: videos can be read from http://, https://, rtsp://"),
        ("file:///etc/passwd", "give a file as path"),
        ("concat://a|b", "give a file as path"),
        (
            "https://a:b@x.org/photo.JPG?x=1",
            "https://***@x.org/photo.JPG?x=1 is an image, and only videos are read from",
        ),
    ],
)
def test_urls_that_cannot_be_read(url, message, detect, capsys):
    assert detect(url) == 2
    assert message in capsys.readouterr().err


def test_names_of_streams():
    names = {
        "rtsp://u:p@cam.local:554/live/ch0": "ch0",
        "http://cam.local/": "cam.local",
        "HTTPS://x/../../etc/pa%00ss?a=/b.mp4": "pa_00ss",
    }
    for url, stem in names.items():
        (source,) = demo.find_sources([url])
        assert demo.file_stem(source) == stem
        assert source.kind == "stream"
        assert "p@" not in str(source)
    outputs = demo.plan_outputs([Source("rtsp://a/x", "stream"), Source("rtsp://b/x", "stream")], Path("out"))
    assert outputs == [Path("out/x.mp4"), Path("out/x_2.mp4")]

"""The lines in which an evaluation keeps its detections. They are written as they come, and read back only if intact.

FOLDER/detections/part-<process>.jsonl has a line for each image:

    {"image_id": 7, "evaluation": "3f2a9c01", "file": [...], "boxes": [...], "masks": [...], "checksum": "..."}

evaluation: the digest of weights, settings and images that the detections depend on.
file: size, times, SHA-256 and bit depth of the image's file when it was read; null for an image that has no file.
checksum: 16 hexadecimal digits of the SHA-256 of everything before it.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import runtime
import utils

MAX_LINE = 1 << 28  # bytes. The line of an image with 10,000 detections has about 10 MB.
LARGE = 1e9  # scores and pixels stay below
_CHECKSUM = re.compile(rb', "checksum": "([0-9a-f]{16})"\}\n')

############################################################
#  Image files
############################################################


class ImageFile(NamedTuple):
    """How the file of an image was when it was read."""

    size: int  # bytes
    modified: int  # nanoseconds, of the contents
    changed: int  # nanoseconds, of the contents, the name or the permissions; of the creation on Windows
    sha256: str
    bits: int | str  # how values of 16 bits were read, see Dataset.inspect_images

    @classmethod
    def of(cls, path: Any, bits: int | str = "auto") -> "ImageFile | None":
        """None for an image without a file, and for a file that cannot be read."""
        times = _times(path)
        try:
            return None if times is None else cls(*times, _sha256(path), bits)
        except OSError:
            return None

    def is_still(self, path: Any, bits: int | str = "auto") -> bool:
        """Whether a file has the same pixels. It is read only if the size is the same and a time is not."""
        times = _times(path)
        if times is None or times[0] != self.size or bits != self.bits:
            return False
        try:
            return times == self[:3] or _sha256(path) == self.sha256
        except OSError:
            return False


def is_unchanged(file: ImageFile | None, path: Any, bits: int | str = "auto") -> bool:
    """Whether the file of an image is what it was, or the image still has none."""
    return _times(path) is None if file is None else file.is_still(path, bits)


def _times(path: Any) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path) if isinstance(path, str | os.PathLike) else None
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(path: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


############################################################
#  Lines
############################################################


class Line(NamedTuple):
    """The results of an image: see to_results. evaluation and file: see above."""

    image_id: int
    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]]
    evaluation: str = ""
    file: ImageFile | None = None


def values_bytes(values: dict[str, Any]) -> bytes:
    """The text of a line that has these values, and their checksum at the end."""
    body = json.dumps(values)[:-1].encode()
    return body + b', "checksum": "' + _digest(body).encode() + b'"}\n'


def line_bytes(line: Line) -> bytes:
    """The text of a line. Raises: ValueError for values that results never have, such as a score of NaN."""
    if (fault := _fault(line)) is not None:
        raise ValueError(
            f"the detections in image {line.image_id} cannot be stored, because {fault}; are the weights damaged?"
        )
    names = ("image_id", "evaluation", "file", "boxes", "masks")
    return values_bytes({name: getattr(line, name) for name in names})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def read_values(text: bytes) -> Any:
    """The values of a line, without the checksum; None if they are no JSON.

    Raises: ValueError if the checksum does not fit, in words that go on after "line 7: ".
    """
    end = _CHECKSUM.search(text, max(0, len(text) - 64))
    if end is None:
        older = text.startswith(b'{"image_id": ') and text.endswith(b"}\n") and b'"checksum"' not in text[-64:]
        raise ValueError("it has no checksum, as in older releases" if older else "it has no checksum")
    if end[1].decode() != _digest(text[: end.start()]):
        raise ValueError("its checksum does not fit")
    try:
        return json.loads(text[: end.start()] + b"}")
    except (ValueError, RecursionError):
        return None


def read_line(text: bytes, codes: bool = False) -> Line:
    """A line from its text. codes: check the run-length codes of masks too, which takes longest.

    Raises: ValueError that says why the text is none, in words that go on after "line 7: ".
    """
    values = read_values(text)
    try:
        file = None if values["file"] is None else ImageFile(*values["file"])
        line = Line(**{**values, "file": file})
    except (TypeError, KeyError):
        raise ValueError("it is not the results of an image") from None
    if (fault := _fault(line)) is not None or (codes and (fault := _code_fault(line)) is not None):
        raise ValueError(fault)
    return line


def _fault(line: Line) -> str | None:
    """What no results have, in words; None for good ones."""
    if type(line.image_id) is not int or [type(line.boxes), type(line.masks)] != [list, list]:
        return "it is not the results of an image"
    try:
        entries = [*line.boxes, *line.masks]
        if len(line.boxes) != len(line.masks) or any(entry["image_id"] != line.image_id for entry in entries):
            return "its boxes and masks are not of one image"
        if not all(type(entry["category_id"]) is int and 0 <= entry["category_id"] < 1 << 63 for entry in entries):
            return "a category is no number of one"
        numbers = [number for entry in line.boxes for number in (entry["score"], *entry["bbox"])]
        numbers += [number for entry in line.masks for number in (entry["score"], entry["class_score"])]
        numbers += [entry["mask_iou"] for entry in line.masks if entry["mask_iou"] is not None]
        if any(len(entry["bbox"]) != 4 for entry in line.boxes):
            return "a box has no four numbers"
        if not all(type(number) in (int, float) and abs(number) < LARGE for number in numbers):  # NaN is not below it
            return "a score or a box is not finite, or far too large"
        sizes = {tuple(entry["segmentation"]["size"]) for entry in line.masks}
        if len(sizes) > 1 or not all(map(_is_size, sizes)):
            return "its masks have no size of one image"
        if not all(type(entry["segmentation"]["counts"]) is str for entry in line.masks):
            return "a mask has no run-length code"
    except (TypeError, KeyError, AttributeError, OverflowError):
        return "it is not the results of an image"
    return None


def _is_size(size: Sequence[Any]) -> bool:
    return (
        len(size) == 2 and all(type(side) is int and 0 < side < 1 << 31 for side in size) and math.prod(size) < 1 << 32
    )


def _code_fault(line: Line) -> str | None:
    try:
        for entry in line.masks:
            utils.rle_area(entry["segmentation"])
    except (ValueError, OverflowError):
        return "the run-length code of a mask does not fit its size"
    return None


############################################################
#  Parts
############################################################


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "detections").glob("part-*.jsonl"))


class Span(NamedTuple):
    """A place in a part: a whole line, from byte `start` up to `end`."""

    path: Path
    number: int  # of the line, from 1
    start: int
    end: int


def whole_lines(folder: str | os.PathLike) -> Iterator[tuple[Span, bytes | None]]:
    """The lines of all parts, each with its place and its text, which is None if it is longer than MAX_LINE.

    A killed process leaves a half line at the end of its part. That is none of them.
    """
    for path in _parts(Path(folder)):
        yield from _lines_of(path)


def _lines_of(path: Path) -> Iterator[tuple[Span, bytes | None]]:
    number = start = 0
    with runtime.open_own(path, "rb") as file:
        while text := file.readline(MAX_LINE):
            number, is_long, end = number + 1, False, start + len(text)
            while not text.endswith(b"\n") and len(text) == MAX_LINE:
                text, is_long = file.readline(MAX_LINE), True
                end += len(text)
            if not text.endswith(b"\n"):
                return
            yield Span(path, number, start, end), None if is_long else text
            start = end


def read_lines(folder: str | os.PathLike, evaluation: str, codes: bool = False) -> Iterator[tuple[Span, Line | str]]:
    """The whole lines of all parts: each with its place, and for a line that cannot be used the reason instead.

    evaluation: the digest that the lines must have. codes: as for read_line.

    Raises: ValueError for an intact line of another evaluation.
    """
    for span, text in whole_lines(folder):
        try:
            line = read_line(checked_length(text), codes)
        except ValueError as error:
            yield span, str(error)
            continue
        check_evaluation(span, line.evaluation, evaluation)
        yield span, line


def checked_length(text: bytes | None) -> bytes:
    """The text of whole_lines. Raises: ValueError for None, as read_line."""
    if text is None:
        raise ValueError(f"it has more than {MAX_LINE:,} bytes")
    return text


def check_evaluation(span: Span, stored: str, evaluation: str) -> None:
    """Raises ValueError if a line is of another evaluation than the folder. stored: the digest in the line."""
    if stored != evaluation:
        raise ValueError(
            f"{span.path}, line {span.number}, is of another evaluation ({utils.printable(stored)} there, "
            f"{evaluation} now): of other weights, settings or images. Choose another --output, or remove {span.path}"
        )


class StoredImage(NamedTuple):
    """An image that has results in a part."""

    span: Span
    file: ImageFile | None


def find_stored(
    folder: str | os.PathLike, evaluation: str, is_asked: Callable[[int], bool]
) -> tuple[dict[int, StoredImage], list[tuple[Span, str]]]:
    """The images with intact results, by number, and the lines that cannot be used with the reasons.

    evaluation: as for read_lines. is_asked: whether an evaluation has the image of a number.
    """
    stored: dict[int, StoredImage] = {}
    problems: list[tuple[Span, str]] = []
    contradicted = set()
    for span, line in read_lines(folder, evaluation, codes=True):
        if isinstance(line, str):
            problems.append((span, line))
        elif not is_asked(line.image_id):
            problems.append((span, f"the evaluation has no image {line.image_id}"))
        elif line.image_id not in stored:
            stored[line.image_id] = StoredImage(span, line.file)
        elif read_span(stored[line.image_id].span)[:3] != line[:3]:
            contradicted.add(line.image_id)
            problems.append((span, f"image {line.image_id} has other results in another line"))
    return {number: image for number, image in stored.items() if number not in contradicted}, problems


def read_span(span: Span) -> Line:
    """The line at a place that read_lines or find_stored gave. Raises: ValueError if it was changed meanwhile."""
    with runtime.open_own(span.path, "rb") as file:
        file.seek(span.start)
        return read_line(file.read(span.end - span.start))


def keep_lines(folder: str | os.PathLike, spans: Collection[Span]) -> None:
    """Remove all other lines from the parts of a folder, half-written ones too. Each part is replaced whole or not."""
    for path in _parts(Path(folder)):
        kept = sorted(span for span in spans if span.path == path)
        is_beginning = all(span.number == number for number, span in enumerate(kept, start=1))
        size = path.stat().st_size
        if is_beginning and (kept[-1].end if kept else 0) == size:
            continue
        if is_beginning:
            with runtime.errors_name(path), runtime.open_own(path, "rb+") as file:
                file.truncate(kept[-1].end if kept else 0)
        else:
            runtime.write_atomically(path, lambda file, kept=kept: _copy(kept, file))


def _copy(spans: Sequence[Span], file: Any) -> None:
    with runtime.open_own(spans[0].path, "rb") as part:
        for span in spans:
            part.seek(span.start)
            file.write(part.read(span.end - span.start))


def describe_problems(problems: Sequence[tuple[Span, str]], what: str = "images") -> list[str]:
    """A sentence for each part with lines that cannot be used. what: the lines are of."""
    texts: dict[Path, list[str]] = {}
    for span, reason in problems:
        texts.setdefault(span.path, []).append(f"line {span.number} ({reason})")
    return [
        f"{path}: {len(lines)} lines cannot be used, and their {what} are detected again: {utils.listed(lines, 5)}"
        for path, lines in texts.items()
    ]


class Writer:
    """Appends lines to the part of this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "detections" / f"part-{runtime.rank():03d}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = runtime.open_own(self.path, "ab", buffering=0)

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines at once, as append does."""
        self.append(b"".join(map(line_bytes, lines)))

    def append(self, text: bytes) -> None:
        """Write the text of lines. If the process is killed meanwhile, the next run cuts off the half-written line.

        Raises: OSError that names the part if the disk is full.
        """
        with runtime.errors_name(self.path):
            while text:
                text = text[self.file.write(text) :]

    def close(self) -> None:
        with runtime.errors_name(self.path):
            os.fsync(self.file.fileno())
            self.file.close()

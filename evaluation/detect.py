"""Detection in a whole data set. Results are written as they come, so an interruption loses nothing.

    images ─ chunks of IMAGES_PER_GPU ─ detect_batches ─ FOLDER/detections/part-<process>.jsonl ─ results in order

Each line has the results of one image, and the lines of a chunk are written at once. If the file lacks a line of a
chunk, the whole chunk is detected again. So an image is always detected together with the same others, and the results
depend neither on interruptions nor on the number of processes.

FOLDER/evaluation.json says which weights, settings and images the detections are of. A folder takes one evaluation.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tqdm import tqdm

import runtime
import utils
from config import DERIVED, DETECTION, REMOVED, SETTINGS, Config, settings_that
from data.dataset import Dataset

from .results import Detector, ResumableDetector, categories_of_model, image_number, image_numbers, to_results

FORMAT, FORMAT_VERSION = "mask-scoring-rcnn evaluation", 1
LISTED = 200  # images that could not be read are named up to here


############################################################
#  What is evaluated
############################################################


def identify(model: ResumableDetector, dataset: Dataset, image_ids: Sequence[int], dtype: str) -> dict[str, Any]:
    """All that the detections in a data set depend on, as JSON can hold it: weights, settings, images.

    Raises: as categories_of_model and image_numbers.
    """
    values = model.config.to_dict()
    settings = {name: values[name] for name in settings_that(DETECTION)}
    paths = [str(dataset.image_info[image_id]["path"]) for image_id in image_ids]
    images = list(zip(image_numbers(dataset, image_ids), paths, strict=True))
    identity = {
        "weights": hash_weights(model),
        "settings": settings,
        "categories": categories_of_model(model, dataset),
        "images": hashlib.sha256(json.dumps(images).encode()).hexdigest(),
        "count": len(images),
        "dtype": dtype,
        "device": model.device.type,
    }
    return json.loads(json.dumps(identity))


def hash_weights(model: ResumableDetector) -> str:
    """sha256 of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def claim_folder(folder: str | os.PathLike, identity: dict[str, Any]) -> None:
    """Reserve a folder for an evaluation. A folder that this evaluation has already reserved stays as it is.

    Raises: ValueError that names the differences, if the folder holds another evaluation.
    """
    path = Path(folder) / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        contents = {"format": FORMAT, "version": FORMAT_VERSION, "identity": identity}
        runtime.write_atomically(path, lambda file: file.write(json.dumps(contents, indent=1).encode()))
        return
    stored = _read_identity(path)
    stored["settings"] = _compared_settings(stored["settings"], identity["settings"])
    if stored != identity:
        raise ValueError(
            f"{folder} holds another evaluation: {_differences(stored, identity)}. Choose another --output, or remove "
            "the folder"
        )


def _compared_settings(stored: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a folder, which another release may have written, as far as they have to agree with ours.

    A setting that the folder does not have is newer than the folder, whose detections had its default. Settings of
    training, which older releases stored too, do not count. A name that this release never had counts: it comes from a
    later release.
    """
    defaults = Config(DIALECT=settings["DIALECT"]).to_dict()
    foreign = stored.keys() - SETTINGS.keys() - REMOVED.keys() - DERIVED.keys()
    return {name: stored.get(name, defaults.get(name)) for name in [*settings, *sorted(foreign)]}


def digest_of(identity: dict[str, Any]) -> str:
    """8 hexadecimal digits that differ for different evaluations.

    Settings at their default do not count, so that a new setting in a later release leaves the digest as it is.
    """
    defaults = Config(DIALECT=identity["settings"]["DIALECT"]).to_dict()
    changed = {name: value for name, value in identity["settings"].items() if value != defaults[name]}
    return hashlib.sha256(json.dumps({**identity, "settings": changed}, sort_keys=True).encode()).hexdigest()[:8]


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
        is_ours = contents["format"] == FORMAT
        version, identity = contents["version"], contents["identity"]
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours or not isinstance(identity, dict) or not isinstance(identity.get("settings"), dict):
        raise ValueError(f"{path} was not written by an evaluation; choose another --output, or remove the file")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has version {version!r} of the format, and this release writes {FORMAT_VERSION}; choose another "
            "--output, or remove the folder"
        )
    return identity


def _differences(stored: dict[str, Any], current: dict[str, Any]) -> str:
    stored, current = {**stored, **stored["settings"]}, {**current, **current["settings"]}
    names = [name for name in {**current, **stored} if name != "settings" and stored.get(name) != current.get(name)]
    texts = [f"{name} {_short(stored.get(name))} there, {_short(current.get(name))} now" for name in names]
    return utils.listed(texts, 5)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


############################################################
#  The files
############################################################


class Line(NamedTuple):
    """The results of an image: see to_results."""

    image_id: int
    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]]


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "detections").glob("part-*.jsonl"))


def _mend(path: Path) -> None:
    """Cut off the half-written line that a killed process leaves at the end of its file."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def read_lines(folder: str | os.PathLike) -> Iterator[Line]:
    """The whole lines of all parts. An image may come twice, then with the same results.

    Raises: ValueError for a line that is not the results of an image.
    """
    for path in _parts(Path(folder)):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                yield _read_line(line, f"{path}, line {number},")


def _read_line(text: bytes, name: str) -> Line:
    try:
        line = Line(**json.loads(text))
    except (ValueError, TypeError):
        line = None
    if line is None or [type(value) for value in line] != [int, list, list]:
        raise ValueError(
            f"{name} is damaged: it is not the results of an image. Remove the line, and its image is detected again"
        )
    return line


def done_images(folder: str | os.PathLike) -> set[int]:
    """The image ids that have results. Half-written lines are removed first."""
    for path in _parts(Path(folder)):
        _mend(path)
    return {line.image_id for line in read_lines(folder)}


def load_results(
    folder: str | os.PathLike, image_numbers: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All results of a folder, ordered by the place of their image in image_numbers, whatever the order of detection.

    Returns: boxes, masks, as to_results has them.
    Raises: ValueError if images are missing.
    """
    lines = {line.image_id: line for line in read_lines(folder)}
    missing = [number for number in image_numbers if number not in lines]
    if missing:
        raise ValueError(
            f"{folder} lacks the detections of {len(missing)} images: {utils.listed(map(str, missing), 5)}; do all "
            "processes write into one folder, on a disk that they share?"
        )
    boxes = [entry for number in image_numbers for entry in lines[number].boxes]
    return boxes, [entry for number in image_numbers for entry in lines[number].masks]


class _Writer:
    """Appends chunks to the part of this process."""

    def __init__(self, folder: Path) -> None:
        path = folder / "detections" / f"part-{runtime.rank():03d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab", buffering=0)

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines at once. If the process is killed meanwhile, the next run cuts off the half-written line."""
        text = "".join(json.dumps(line._asdict()) + "\n" for line in lines).encode()
        while text:
            text = text[self.file.write(text) :]

    def close(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()


############################################################
#  Detection
############################################################


def plan_chunks(model: Detector, image_ids: Sequence[int]) -> list[list[int]]:
    """The images of each chunk. Images of one chunk are always detected together, in every run and process."""
    size = model.config.IMAGES_PER_GPU
    return [list(map(int, image_ids[start : start + size])) for start in range(0, len(image_ids), size)]


def read_batches(
    dataset: Dataset, chunks: Sequence[Sequence[int]], failures: dict[int, str], workers: int = 2
) -> Iterator[tuple[list[int], list[Any]]]:
    """Each chunk with its images, read by several threads ahead of time.

    failures: a dict to be filled with the reason for each image_id that cannot be read. Its chunk is left out.
    """
    with ThreadPoolExecutor(workers, "images") as pool:
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append((list(chunk), [pool.submit(dataset.load_image, image_id) for image_id in chunk]))
            if len(waiting) > max(1, workers // len(chunk)):
                yield from _finished(*waiting.popleft(), failures)
        for chunk, futures in waiting:
            yield from _finished(chunk, futures, failures)


def _finished(chunk: list[int], futures: list, failures: dict[int, str]) -> Iterator[tuple[list[int], list[Any]]]:
    images = []
    for image_id, future in zip(chunk, futures, strict=True):
        try:
            images.append(future.result())
        except (OSError, ValueError) as error:
            failures[image_id] = str(error) or type(error).__name__
    if len(images) == len(chunk):
        yield chunk, images


def detect_to_folder(
    model: ResumableDetector,
    dataset: Dataset,
    image_ids: Sequence[int],
    folder: str | os.PathLike,
    dtype: str = "float32",
    workers: int = 2,
    verbose: bool = True,
    identity: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Detect in all images that have no results in a folder yet. All processes of a group call it together.

    image_ids: of the data set. folder: the same for all processes. dtype: of detect(). workers: threads that read
        images. verbose: show progress, in the first process. identity: of identify(), for callers that have it: it
        takes a hash of all weights.

    Returns: the seconds of resizing, network, masks and in "total" that this process took, and in "images" for how many
        images.
    Raises: ValueError if the folder holds another evaluation. ValueError if images cannot be read, after all others are
        detected and written.
    """
    with contextlib.ExitStack() as stack:
        folder, start = Path(folder), time.perf_counter()
        dataset.inspect_images(getattr(model.config, "BIT_DEPTH", "auto"))
        chunks = _remaining_chunks(model, dataset, image_ids, folder, dtype, identity, stack)
        chunks = chunks[runtime.rank() :: runtime.world_size()]
        seconds = _detect_chunks(model, dataset, chunks, folder, dtype, workers, verbose)
    return {**seconds, "total": time.perf_counter() - start}


def _detect_chunks(
    model: ResumableDetector, dataset: Dataset, chunks, folder, dtype, workers, verbose
) -> dict[str, float]:
    """Detect in the chunks of this process, and write the results."""
    categories = categories_of_model(model, dataset)
    failures: dict[int, str] = {}
    taken: deque[list[int]] = deque()

    def batches() -> Iterator[list[Any]]:
        for chunk, images in read_batches(dataset, chunks, failures, workers):
            taken.append(chunk)
            yield images

    writer = _Writer(folder)
    count = sum(map(len, chunks))
    silent = not verbose or runtime.rank() > 0
    images = 0
    try:
        with tqdm(total=count, unit="image", desc="detecting", disable=silent) as progress:
            for results in model.detect_batches(batches(), dtype, "rle"):
                chunk = [image_number(dataset, image_id) for image_id in taken.popleft()]
                pairs = zip(chunk, results, strict=True)
                writer.write([Line(number, *to_results(result, number, categories)) for number, result in pairs])
                progress.update(len(chunk))
                images += len(chunk)
    finally:
        writer.close()
    _check_failures(dataset, failures, folder)
    return {**model.seconds, "images": images}


def _remaining_chunks(
    model: ResumableDetector, dataset: Dataset, image_ids, folder: Path, dtype: str, identity, stack
) -> list[list[int]]:
    """The chunks without results. The first process decides for all, and its errors are raised in all.

    The first process also locks the folder, until the stack is closed.
    """
    answer: list[Any] = [None]
    if runtime.rank() == 0:
        try:
            identity = identity or identify(model, dataset, image_ids, dtype)
            stack.enter_context(runtime.locked_folder(folder))
            claim_folder(folder, identity)
            done = done_images(folder)
            remaining = [
                chunk
                for chunk in plan_chunks(model, image_ids)
                if not all(image_number(dataset, image_id) in done for image_id in chunk)
            ]
            answer = [remaining]
        except Exception as error:
            answer = [error]
    if runtime.world_size() > 1:
        dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _check_failures(dataset: Dataset, failures: dict[int, str], folder: Path) -> None:
    """Raises in all processes if one could not read an image."""
    everywhere: list[Any] = [failures]
    if runtime.world_size() > 1:
        everywhere = [None] * runtime.world_size()
        dist.all_gather_object(everywhere, failures)
    failures = {image_id: reason for of_process in everywhere for image_id, reason in of_process.items()}
    reasons = [f"{dataset.image_info[image_id]['id']} ({failures[image_id]})" for image_id in sorted(failures)]
    if reasons:
        raise ValueError(
            f"{len(reasons)} images could not be read, so that not all of them have results: "
            f"{utils.listed(reasons, LISTED)}. The detections in the others are kept in {folder}: repair these images, "
            "or take them out of the annotations, and run again"
        )


def detect_dataset(
    model: Detector,
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    dtype: str = "float32",
    verbose: bool = False,
    failures: dict[int, str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detect in the images of a data set and keep the results in memory: for validation within a training.

    verbose: show progress. failures: a dict to be filled with the reason for each image_id that cannot be read: it is
        left out then. None: the error is raised.

    Returns: results of all boxes, results of all masks; ids as in ground_truth.
    Raises: ValueError if the model was made for other classes, or an image cannot be read.
    """
    chunks = plan_chunks(model, dataset.image_ids if image_ids is None else image_ids)
    image_numbers(dataset, image_ids)
    dataset.inspect_images(getattr(model.config, "BIT_DEPTH", "auto"))
    categories = categories_of_model(model, dataset)
    taken: deque[list[int]] = deque()
    boxes, masks = [], []
    with tqdm(total=sum(map(len, chunks)), unit="image", disable=not verbose) as progress:
        for results in model.detect_batches(_batches(dataset, chunks, taken, failures), dtype, "rle"):
            chunk = taken.popleft()
            for image_id, result in zip(chunk, results, strict=True):
                of_boxes, of_masks = to_results(result, image_number(dataset, image_id), categories)
                boxes += of_boxes
                masks += of_masks
            progress.update(len(chunk))
    return boxes, masks


def _batches(
    dataset: Dataset, chunks: Sequence[Sequence[int]], taken: deque, failures: dict[int, str] | None
) -> Iterator[list[Any]]:
    """The images of each chunk. taken gets their ids. failures: as of detect_dataset."""
    for chunk in chunks:
        images = {}
        for image_id in chunk:
            try:
                images[image_id] = dataset.load_image(image_id)
            except Exception as error:  # users' code and files may raise anything
                if failures is None or isinstance(error, MemoryError):
                    raise
                failures[image_id] = str(error) or type(error).__name__
        if images:
            taken.append(list(images))
            yield list(images.values())


def write_submission(
    folder: str | os.PathLike, boxes: Sequence[dict[str, Any]], masks: Sequence[dict[str, Any]]
) -> tuple[Path, Path]:
    """bbox.json and segm.json, as COCO's evaluation server takes them. Each appears whole, or stays as it was."""
    paths = Path(folder) / "bbox.json", Path(folder) / "segm.json"
    for path, entries in zip(paths, (boxes, masks), strict=True):
        runtime.write_atomically(path, lambda file, entries=entries: _write_list(file, entries))
    return paths


def _write_list(file: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Write what json.dump would, entry by entry: the text of all would take as much memory again."""
    file.write(b"[")
    for i, entry in enumerate(entries):
        file.write((", " if i else "").encode() + json.dumps(entry).encode())
    file.write(b"]")

"""Detection in a whole data set. Results are written as they come, so an interruption loses nothing.

    images ─ chunks of IMAGES_PER_GPU ─ detect_batches ─ FOLDER/detections/part-<process>.jsonl ─ results in order

Each line has the results of one image, and the lines of a chunk are written at once; stream.py has their format. If a
line of a chunk is missing or damaged, or the file of one of its images has changed since, the whole chunk is detected
again. So an image is always detected together with the same others, and the results depend neither on interruptions
nor on the number of processes.

FOLDER/evaluation.json says which weights, settings and images the detections are of. A folder takes one evaluation.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

import runtime
import utils
from config import DERIVED, DETECTION, REMOVED, SETTINGS, Config, settings_that
from data.dataset import Dataset
from data.writers.streams import write_list

from .results import (
    Detector,
    LoadingDetector,
    ResumableDetector,
    categories_of_model,
    image_number,
    image_numbers,
    load_picture,
    to_results,
)
from .stream import ImageFile, Line, describe_problems, find_stored, is_unchanged, keep_lines, read_lines
from .stream import Writer as _Writer

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "mask-scoring-rcnn evaluation", 2  # version 1 had no checksums
MAX_RECORD = 1 << 26  # bytes of evaluation.json
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
        **(model.identity if isinstance(model, LoadingDetector) else {}),
    }
    return json.loads(json.dumps(identity))


def hash_weights(model: ResumableDetector) -> str:
    """sha256 of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def claim_folder(folder: str | os.PathLike, identity: dict[str, Any]) -> str:
    """Reserve a folder for an evaluation. A folder that this evaluation has already reserved stays as it is.

    Returns: the digest that lines of this evaluation have.
    Raises: ValueError that names the differences, if the folder holds another evaluation.
    """
    path = Path(folder) / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        record = _read_record(path)
        stored = {**record["identity"]}
        stored["settings"] = _compared_settings(stored["settings"], identity["settings"])
        if stored != identity:
            raise ValueError(
                f"{folder} holds another evaluation: {_differences(stored, identity)}. Choose another --output, or "
                "remove the folder"
            )
        if record["version"] == FORMAT_VERSION:
            return record["evaluation"]
    evaluation = digest_of(identity)
    contents = {"format": FORMAT, "version": FORMAT_VERSION, "evaluation": evaluation, "identity": identity}
    contents["checksum"] = _checksum(contents)
    runtime.write_atomically(path, lambda file: file.write(json.dumps(contents, indent=1).encode()))
    return evaluation


def evaluation_of(folder: str | os.PathLike) -> str:
    """The digest of the evaluation that has reserved a folder; "" if none has.

    Raises: ValueError if evaluation.json is damaged.
    """
    path = Path(folder) / "evaluation.json"
    return _read_record(path).get("evaluation", "") if path.exists() else ""


def stored_identity(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The identity that a folder was reserved with; None if nothing has reserved it. Raises: as evaluation_of."""
    path = Path(folder) / "evaluation.json"
    return _read_record(path)["identity"] if path.exists() else None


def _checksum(record: dict[str, Any]) -> str:
    """16 hexadecimal digits of a record without its checksum."""
    values = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


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


def _read_record(path: Path) -> dict[str, Any]:
    """The contents of evaluation.json: format, version, identity and, from version 2 on, evaluation and checksum."""
    try:
        record = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_RECORD else {}
        is_ours = record["format"] == FORMAT and isinstance(record["identity"]["settings"], dict)
        version, checksum = record["version"], record.get("checksum")
        is_ours = is_ours and (version == 1 or isinstance(record["evaluation"], str))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{path} was not written by an evaluation; choose another --output, or remove the file")
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has version {utils.printable(version)} of the format, and this release writes {FORMAT_VERSION}; "
            "choose another --output, or remove the folder"
        )
    if checksum != (None if version == 1 else _checksum(record)):
        raise ValueError(
            f"{path} is damaged: its checksum does not fit. Remove this file only, and run again: the detections "
            "beside it have checksums of their own, and those that are intact are taken over"
        )
    return record


def _differences(stored: dict[str, Any], current: dict[str, Any]) -> str:
    stored, current = {**stored, **stored["settings"]}, {**current, **current["settings"]}
    names = [name for name in {**current, **stored} if name != "settings" and stored.get(name) != current.get(name)]
    texts = [
        f"{utils.printable(name)} {_short(stored.get(name))} there, {_short(current.get(name))} now" for name in names
    ]
    return utils.listed(texts, 5)


def _short(value: Any) -> str:
    text = utils.printable(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


############################################################
#  The files
############################################################


def done_images(folder: str | os.PathLike) -> set[int]:
    """The numbers of the images that have intact results. The folder stays as it is."""
    lines = read_lines(folder, evaluation_of(folder))
    return {line.image_id for _, line in lines if not isinstance(line, str)}


def load_results(
    folder: str | os.PathLike, image_numbers: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All results of a folder, ordered by the place of their image in image_numbers, whatever the order of detection.

    Returns: boxes, masks, as to_results has them.
    Raises: ValueError if images are missing, or a line is damaged.
    """
    lines = {}
    for span, line in read_lines(folder, evaluation_of(folder)):
        if isinstance(line, str):
            raise ValueError(f"{span.path}, line {span.number}, is damaged: {line}. Run again: it is detected again")
        lines[line.image_id] = line
    missing = [number for number in image_numbers if number not in lines]
    if missing:
        raise ValueError(
            f"{folder} lacks the detections of {len(missing)} images: {utils.listed(map(str, missing), 5)}; do all "
            "processes write into one folder, on a disk that they share?"
        )
    boxes = [entry for number in image_numbers for entry in lines[number].boxes]
    return boxes, [entry for number in image_numbers for entry in lines[number].masks]


############################################################
#  Detection
############################################################


def plan_chunks(model: Detector, image_ids: Sequence[int]) -> list[list[int]]:
    """The images of each chunk. Images of one chunk are always detected together, in every run and process."""
    size = model.config.IMAGES_PER_GPU
    return [list(map(int, image_ids[start : start + size])) for start in range(0, len(image_ids), size)]


def reading_threads(workers: int | None) -> int:
    """How many threads read images: as many as asked for, one at least; None: one for each core, from 2 to 8.

    Processes of one machine that torchrun starts share its cores.
    """
    if workers is not None:
        return max(1, workers)
    cores = runtime.usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(cores, 2), 8)


def read_batches(
    dataset: Dataset,
    chunks: Sequence[Sequence[int]],
    failures: dict[int, str],
    workers: int | None = None,
    files: dict[int, ImageFile | None] | None = None,
    keeps_rest: bool = False,
    load_image: Callable[[int], Any] | None = None,
) -> Iterator[tuple[list[int], list[Any]]]:
    """Each chunk with its images, read by several threads ahead of time.

    workers: as of reading_threads.
    failures: a dict to be filled with the reason for each image_id that cannot be read. Its chunk is left out, or with
        keeps_rest, the image alone.
    files: a dict to be filled with the file of each image_id, as it is before the image is read. So an image that is
        replaced meanwhile counts as changed in the next run.
    load_image: of an image_id; None: the data set's.
    """
    load_image = load_image or dataset.load_image

    def load(image_id: int) -> Any:
        if files is not None:
            files[image_id] = ImageFile.of(dataset.image_info[image_id]["path"], dataset.reader.chosen)
        return load_image(image_id)

    workers = reading_threads(workers)
    with ThreadPoolExecutor(workers, "images") as pool:
        waiting: deque = deque()
        for chunk in chunks:
            waiting.append((list(chunk), [pool.submit(load, image_id) for image_id in chunk]))
            if len(waiting) > max(1, workers // len(chunk)):
                yield from _finished(*waiting.popleft(), failures, keeps_rest)
        for chunk, futures in waiting:
            yield from _finished(chunk, futures, failures, keeps_rest)


def _finished(
    chunk: list[int], futures: list, failures: dict[int, str], keeps_rest: bool
) -> Iterator[tuple[list[int], list[Any]]]:
    images = {}
    for image_id, future in zip(chunk, futures, strict=True):
        try:
            images[image_id] = future.result()
        except (OSError, ValueError) as error:
            failures[image_id] = str(error) or type(error).__name__
    if len(images) == len(chunk) or (keeps_rest and images):
        yield list(images), list(images.values())


def detect_to_folder(
    model: ResumableDetector,
    dataset: Dataset,
    image_ids: Sequence[int],
    folder: str | os.PathLike,
    dtype: str = "float32",
    workers: int | None = None,
    verbose: bool = True,
    identity: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Detect in all images that have no results in a folder yet. All processes of a group call it together.

    image_ids: of the data set. folder: the same for all processes. dtype: of detect(). workers: as of reading_threads.
        verbose: show progress and what is taken over, in the first process. identity: of identify(), for callers that
        have it: it takes a hash of all weights.

    An image is detected again if its file has other contents than before. Lines that are damaged are named in a
    warning, and their images are detected again.

    Returns: the seconds of resizing, network, masks and in "total" that this process took, and in "images" for how many
        images.
    Raises: ValueError if the folder holds another evaluation. ValueError if images cannot be read, after all others are
        detected and written.
    """
    with contextlib.ExitStack() as stack:
        folder, start = Path(folder), time.perf_counter()
        dataset.inspect_for(model.config)
        evaluation, chunks = _remaining_chunks(model, dataset, image_ids, folder, dtype, identity, stack, verbose)
        chunks = chunks[runtime.rank() :: runtime.world_size()]
        categories = categories_of_model(model, dataset)
        numbers = {image_id: image_number(dataset, image_id) for chunk in chunks for image_id in chunk}
        work = (numbers, categories, folder, evaluation, dtype, workers, verbose)
        seconds, failures = detect_chunks(model, dataset, chunks, *work)
        _check_failures(dataset, failures, folder)
    return {**seconds, "total": time.perf_counter() - start}


def detect_chunks(
    model: ResumableDetector, dataset: Dataset, chunks: Sequence[Sequence[int]], numbers: Mapping[int, int],
    categories: Sequence[int], folder: Path, evaluation: str, dtype: str, workers: int | None, verbose: bool,
    keeps_rest: bool = False,
) -> tuple[dict[str, float], dict[int, str]]:  # fmt: skip
    """Detect in the chunks of this process, and write the results into its part of the folder.

    numbers: of each image_id, for its line. categories: the category id of each class of the model. The others as in
        detect_to_folder and read_batches.

    Returns: seconds as of detect_to_folder; the reason for each image_id that could not be read.
    """
    failures: dict[int, str] = {}
    files: dict[int, ImageFile | None] = {}
    taken: deque[list[int]] = deque()

    def batches() -> Iterator[list[Any]]:
        load = functools.partial(load_picture, model, dataset)
        for chunk, images in read_batches(dataset, chunks, failures, workers, files, keeps_rest, load):
            taken.append(chunk)
            yield images

    def line(image_id: int, result: dict[str, Any]) -> Line:
        number = numbers[image_id]
        return Line(number, *to_results(result, number, categories), evaluation, files.pop(image_id))

    writer = _Writer(folder)
    count = sum(map(len, chunks))
    silent = not verbose or runtime.rank() > 0 or not count
    images = 0
    try:
        with tqdm(total=count, unit="image", desc="detecting", disable=silent) as progress:
            for results in model.detect_batches(batches(), dtype, "rle"):
                chunk = taken.popleft()
                writer.write([line(image_id, result) for image_id, result in zip(chunk, results, strict=True)])
                progress.update(len(chunk))
                images += len(chunk)
    finally:
        writer.close()
    return {**model.seconds, "images": images}, failures


def _remaining_chunks(
    model: ResumableDetector, dataset: Dataset, image_ids, folder: Path, dtype: str, identity, stack, verbose=False
) -> tuple[str, list[list[int]]]:
    """The digest of the evaluation, and the chunks without usable results.

    The first process decides for all, and its errors are raised in all. It also locks the folder, until the stack is
    closed.
    """
    answer: list[Any] = [None]
    if runtime.rank() == 0:
        try:
            identity = identity or identify(model, dataset, image_ids, dtype)
            stack.enter_context(runtime.locked_folder(folder))
            evaluation = claim_folder(folder, identity)
            answer = [(evaluation, _take_over(dataset, plan_chunks(model, image_ids), folder, evaluation, verbose))]
        except Exception as error:
            answer = [error]
    if runtime.world_size() > 1:
        dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _take_over(dataset: Dataset, chunks: list[list[int]], folder: Path, evaluation: str, verbose: bool) -> list:
    """The chunks that have to be detected. Lines of their images, and lines that cannot be used, are removed.

    Problems are logged; with verbose, what is taken over and which images have changed is printed.
    """
    numbers = {image_id: image_number(dataset, image_id) for chunk in chunks for image_id in chunk}
    stored, problems = find_stored(folder, evaluation, set(numbers.values()).__contains__)
    for text in describe_problems(problems):
        logger.warning(text)
    changed = []
    for image_id, number in numbers.items():
        path = dataset.image_info[image_id]["path"]
        if number in stored and not is_unchanged(stored[number].file, path, dataset.reader.chosen):
            del stored[number]
            changed.append(utils.printable(path))
    remaining = [chunk for chunk in chunks if not all(numbers[image_id] in stored for image_id in chunk)]
    for chunk in remaining:
        for image_id in chunk:
            stored.pop(numbers[image_id], None)
    keep_lines(folder, {image.span for image in stored.values()})
    if verbose and stored:
        print(f"taken over from an earlier run: {len(stored)} of {len(numbers)} images")
    if verbose and changed:
        print(f"detected again, because their files have changed: {len(changed)} images: {utils.listed(changed, 5)}")
    return remaining


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
    dataset.inspect_for(model.config)
    categories = categories_of_model(model, dataset)
    taken: deque[list[int]] = deque()
    boxes, masks = [], []
    with tqdm(total=sum(map(len, chunks)), unit="image", disable=not verbose) as progress:
        for results in model.detect_batches(_batches(model, dataset, chunks, taken, failures), dtype, "rle"):
            chunk = taken.popleft()
            for image_id, result in zip(chunk, results, strict=True):
                of_boxes, of_masks = to_results(result, image_number(dataset, image_id), categories)
                boxes += of_boxes
                masks += of_masks
            progress.update(len(chunk))
    return boxes, masks


def _batches(
    model: Detector, dataset: Dataset, chunks: Sequence[Sequence[int]], taken: deque, failures: dict[int, str] | None
) -> Iterator[list[Any]]:
    """The images of each chunk. taken gets their ids. failures: as of detect_dataset."""
    for chunk in chunks:
        images = {}
        for image_id in chunk:
            try:
                images[image_id] = load_picture(model, dataset, image_id)
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
        runtime.write_atomically(path, lambda file, entries=entries: write_list(file, entries))
    return paths

"""Detection in pictures that have no labels, with results for people and for tools: the engine of custom.py detect.

    pictures ─ detect_pictures ─ FOLDER/detections/part-<process>.jsonl ─ PictureResults ─ own_results.py
    large ones ─ large.py ─ FOLDER/large/NAME/detections/part-<process>.jsonl ─ TiledResults ─ own_results.py

The lines are those of evaluation/stream.py. A line is a picture's, whatever else is asked for: it has all detections
from the least score on, so that another threshold or another kind of output needs no network. FOLDER/evaluation.json
says which weights, settings and sources they are of. A folder takes one run, to which pictures may be added.

A picture that cannot be read costs itself only. It is named at the end, and tried again by the next run. Large pictures
are detected in tiles, see large.py: their rows of tiles are shared among the processes.
"""

import contextlib
import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

import runtime
import utils
from config import DETECTION, Config, settings_that
from data.dataset import Dataset
from data.sources import PictureFile, evenly, is_address, local_copy
from data.writers.common import counted
from detections import ImageDetections

from .accept import chances
from .detect import claim_folder, detect_chunks, hash_weights, plan_chunks
from .large import (
    BY_MODEL,
    Job,
    LargeImage,
    TileOptions,
    claim_image,
    describe_tiles,
    detect_rows,
    file_facts,
    hint_at_tiles,
    look_again,
    looks_into_tiles,
    remaining_rows,
)
from .results import ResumableDetector
from .stream import Line, Span, describe_problems, find_stored, is_unchanged, keep_lines

LEAST_SCORE = 0.05  # of the detections that are kept, so that a threshold above it needs no further detection
_SAMPLED_COPIES = 16  # pictures of an object store by which the bit depth of all is chosen
SOURCE = "own"


############################################################
#  Pictures
############################################################


class PictureSet(Dataset):
    """Pictures without labels, as a Dataset for detection. image_info has their address as "path"."""

    def __init__(self, pictures: Sequence[PictureFile]) -> None:
        super().__init__()
        self.pictures = list(pictures)
        for picture in self.pictures:
            self.add_image(SOURCE, picture.address, picture.address)
        self.prepare()

    def load_image(self, image_id: int) -> np.ndarray:
        """The picture, uint8 [H, W, 3]. Raises: as Dataset.load_image; OSError if an object store cannot be read."""
        with local_copy(self.pictures[image_id].address) as path:
            return self.reader.read(path)

    def number(self, image_id: int) -> int:
        """The number of a picture in lines: 60 bits of a hash of its address, which no other picture changes."""
        address = self.pictures[image_id].address
        return int(hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:15], 16)

    def inspect_images(self, *settings: Any) -> int | str:
        """As Dataset.inspect_images. Of pictures in an object store, some are copied for it."""
        if not self.pictures or not is_address(self.pictures[0].address):
            return super().inspect_images(*settings)
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            copies = []
            for number, picture in enumerate(evenly(self.pictures, _SAMPLED_COPIES)):
                with contextlib.suppress(OSError, ValueError), local_copy(picture.address) as path:
                    copies.append(Path(folder) / f"{number}{path.suffix}")
                    copies[-1].write_bytes(path.read_bytes())
            return self.reader.inspect(copies, *settings)


############################################################
#  Detection
############################################################


def detection_settings(config: Config, threshold: float | None, **settings: Any) -> dict[str, Any]:
    """The settings to change so that a model sees whole pictures, and keeps detections of low scores.

    config: of the model. threshold: that of the command line. settings: others, which count first.
    """
    least = min(LEAST_SCORE, config.DETECTION_MIN_CONFIDENCE, 1.0 if threshold is None else threshold)
    return config.detection_settings(**{"DETECTION_MIN_CONFIDENCE": least, **settings})


def identify_run(model: ResumableDetector, sources: Sequence[str], dtype: str) -> dict[str, Any]:
    """All that detections depend on but the pictures themselves, as JSON can hold it. sources: of the command line."""
    values = model.config.to_dict()
    identity = {
        "weights": hash_weights(model),
        "settings": {name: values[name] for name in settings_that(DETECTION)},
        "dataset": sorted(sources),
        "dtype": dtype,
        "device": model.device.type,
    }
    return json.loads(json.dumps(identity))


class Run(NamedTuple):
    """What detect_pictures did."""

    evaluation: str  # the digest of the lines
    taken_over: int  # pictures with results of an earlier run
    failures: dict[str, str]  # {address: why it could not be read}
    bits: int | str  # as which values of 16 bits were read, see Dataset.inspect_images
    large: dict[int, LargeImage]  # the pictures that were detected in tiles, by image_id

    def notes(self) -> list[str]:
        """What a user should know, a sentence each."""
        notes = [f"taken over from an earlier run: {counted(self.taken_over, 'pictures')}"] if self.taken_over else []
        if self.bits != "auto":
            notes.append(f"pictures of 16 bits are read as numbers of {self.bits} bits; --set BIT_DEPTH=N changes it")
        return notes


def detect_pictures(
    model: ResumableDetector, dataset: PictureSet, sources: Sequence[str], folder: Path, dtype: str = "float32",
    workers: int | None = None, verbose: bool = True, options: TileOptions = BY_MODEL,
) -> Run:  # fmt: skip
    """Detect in all pictures that have no results in a folder yet. All processes of a group call it together.

    sources: as identify_run. workers: threads that read. verbose: show progress, in the first process. options: which
    pictures are detected in tiles, and in which ones; the model is then a MaskRCNN.

    A picture is detected again if its file has other contents than before. Chunks are always the same, so that a
    picture is detected together with the same others, unless one of these cannot be read.

    Raises: ValueError if the folder holds another run, or another process uses it.
    """
    with contextlib.ExitStack() as stack:
        bits = dataset.inspect_for(model.config)
        config = as_read(model.config, bits)
        answer: list[Any] = [None]
        if runtime.rank() == 0:
            try:
                stack.enter_context(runtime.locked_folder(folder))
                identity = identify_run(model, sources, dtype)
                evaluation = claim_folder(folder, identity)
                large = _claim_large(dataset, folder, identity, config, options)
                others = [i for i in dataset.image_ids.tolist() if i not in large.images | large.failures]
                numbers = {i: dataset.number(i) for i in others}
                rest = _remaining(model, dataset, numbers, folder, evaluation)
                answer = [(evaluation, large, numbers, *rest)]
            except Exception as error:  # raised in all processes
                answer = [error]
        evaluation, large, numbers, chunks, taken_over = _told_by_first(answer)
        chunks, jobs = (work[runtime.rank() :: runtime.world_size()] for work in (chunks, large.jobs))
        categories = list(range(model.config.NUM_CLASSES))
        work = (numbers, categories, folder, evaluation, dtype, workers, verbose)
        _, failures = detect_chunks(model, dataset, chunks, *work, keeps_rest=True)
        named = {dataset.pictures[image_id].address: reason for image_id, reason in failures.items()}
        named |= detect_rows(model, jobs, config, dtype, verbose)
        everywhere = gathered(named)  # no process goes on before all have detected
        failed = {path for part in everywhere for path in part}
        whole = [image for image in large.images.values() if image.path not in failed]
        again = look_again(model, whole[runtime.rank() :: runtime.world_size()], config, dtype, verbose)
        everywhere += gathered(again)
    unread = {dataset.pictures[image_id].address: reason for image_id, reason in large.failures.items()}
    failures = unread | {key: text for part in everywhere for key, text in part.items()}
    return Run(evaluation, taken_over + large.taken_over, failures, bits, large.images)


def as_read(config: Config, bits: int | str) -> Config:
    """A config by which large pictures are read as the others are. bits: of Dataset.inspect_images."""
    config = copy.copy(config)
    config.BIT_DEPTH = bits
    return config


class _Large(NamedTuple):
    """The pictures that are detected in tiles."""

    images: dict[int, LargeImage]  # by image_id
    jobs: list[Job]  # rows that have no results yet, those of a picture together
    failures: dict[int, str]  # {image_id: why its file could not be read}
    taken_over: int  # pictures whose rows all have results


def _claim_large(
    dataset: PictureSet, folder: Path, identity: Mapping[str, Any], config: Config, options: TileOptions
) -> _Large:
    """Which pictures are detected in tiles, said once, and the rows that remain. Lines that cannot be used go."""
    chosen = _choose_large(dataset, config, options)
    kept = {name: value for name, value in identity.items() if name != "dataset"} | {"bits": config.BIT_DEPTH}
    images, jobs, failures = {}, [], {}
    taken_over = rows = 0
    for image_id in chosen:
        picture = dataset.pictures[image_id]
        name = re.sub(r"[^0-9A-Za-z._-]+", "_", picture.name)[-60:]
        place = folder / "large" / f"{name}-{dataset.number(image_id):x}"
        try:
            facts = file_facts(picture.address)
        except (OSError, ValueError) as error:
            failures[image_id] = str(error)
            continue
        image = claim_image(picture.address, facts, place, kept, config, options)
        remaining, problems = remaining_rows(image, config)
        for text in describe_problems(problems, "rows of tiles"):
            print(utils.printable(text, 2000))
        images[image_id] = image
        jobs += remaining
        rows += image.plan.shape[0] - len(remaining) if remaining else 0
        taken_over += not remaining
    if rows:
        print(f"taken over from an earlier run: {counted(rows, 'rows of tiles')}, where {len(jobs)} remain")
    return _Large(images, jobs, failures, taken_over)


def _choose_large(dataset: PictureSet, config: Config, options: TileOptions) -> list[int]:
    """The image_id of each picture that is detected in tiles. What was chosen and why is printed."""
    large, others = {}, {}
    is_local = not any(is_address(picture.address) for picture in dataset.pictures)
    if not is_local and isinstance(options.tiles, int):
        raise ValueError(
            "--tiles needs pictures on a disk, and these are in an object store; copy them first, or leave it out"
        )
    for image_id, picture in enumerate(dataset.pictures if is_local else ()):
        shape, in_tiles = looks_into_tiles(picture.address, config, options)
        if in_tiles:
            large[image_id] = shape
        elif shape is not None:
            others[picture.name] = shape
    named = {dataset.pictures[image_id].name: shape for image_id, shape in large.items() if shape is not None}
    for text in (*describe_tiles(named, config, options), *hint_at_tiles(others, config, options)):
        print(utils.printable(text, 2000))
    return list(large)


def _told_by_first(answer: list[Any]) -> Any:
    """What the first process found, in all processes. Raises: an error that it had."""
    if runtime.world_size() > 1:
        dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    values: list[Any] = [value]
    if runtime.world_size() > 1:
        values = [None] * runtime.world_size()
        dist.all_gather_object(values, value)
    return values


def _remaining(
    model: ResumableDetector, dataset: PictureSet, numbers: dict[int, int], folder: Path, evaluation: str
) -> tuple[list[list[int]], int]:
    """The chunks of pictures without usable results, and how many others there are. Lines that cannot be used go."""
    stored, problems = find_stored(folder, evaluation, lambda number: True)
    for text in describe_problems(problems):
        print(utils.printable(text, 2000))
    changed = []
    for image_id, number in numbers.items():
        address = dataset.pictures[image_id].address
        if number in stored and not is_unchanged(stored[number].file, address, dataset.reader.chosen):
            del stored[number]
            changed.append(utils.printable(address))
    keep_lines(folder, {image.span for image in stored.values()})
    if changed:
        count = counted(len(changed), "pictures")
        print(f"detected again, because their files have changed: {count}: {utils.listed(changed, 5)}")
    chunks = [[i for i in chunk if numbers[i] not in stored] for chunk in plan_chunks(model, list(numbers))]
    remaining = list(filter(None, chunks))
    return remaining, len(numbers) - sum(map(len, remaining))


############################################################
#  Results
############################################################


class PictureResults(NamedTuple):
    """What was found in a picture, best mask first."""

    picture: PictureFile
    height: int
    width: int
    found: ImageDetections
    accept: np.ndarray | None  # float64 [N], the chance of an IoU of 0.7 at least; None: the model is not calibrated


def find_results(folder: Path, evaluation: str) -> dict[int, Span]:
    """{number of a picture: the place of its line}. Raises: ValueError as read_lines."""
    return {number: image.span for number, image in find_stored(folder, evaluation, lambda number: True)[0].items()}


def results_of(
    picture: PictureFile, size: tuple[int, int], line: Line, config: Config, threshold: float
) -> PictureResults:
    """The results of a line: detections of a mask score of the threshold at least, and of a pixel at least.

    Without a MaskIoU head, the mask score is the class score.

    size: (height, width) of the picture, for a line without detections.
    """
    entries = [
        (box, mask) for box, mask in zip(line.boxes, line.masks, strict=True)
        if mask["score"] >= threshold and utils.rle_area(mask["segmentation"]) > 0
    ]  # fmt: skip
    corners = np.array([box["bbox"] for box, _ in entries], np.float32).reshape(-1, 4)
    x, y, width, height = corners.T
    ious = [mask["mask_iou"] for _, mask in entries]
    has_ious = bool(entries) and None not in ious
    found = ImageDetections(
        np.stack([y, x, y + height, x + width], axis=1),
        np.array([mask["category_id"] for _, mask in entries], np.int32),
        np.array([mask["class_score"] for _, mask in entries], np.float32),
        np.array(ious, np.float32) if has_ious else None,
        np.array([mask["score"] for _, mask in entries], np.float32),
        [{**mask["segmentation"], "counts": mask["segmentation"]["counts"].encode()} for _, mask in entries],
    ).sorted_by("mask_scores")
    accept = chances(config, found.class_ids, found.scores, found.mask_ious)
    return PictureResults(picture, *size, found, None if accept is None else accept[:, 0])

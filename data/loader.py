"""Batches in an order that can be resumed, loaded in this process or in others.

    BatchOrder (which images, which seeds) ─ Loader (in which processes) ─ Batch

Every order and every seed follows from (SEED, epoch, place in the epoch). So batches do not depend on the number of
workers, and an epoch can be entered at any step.
"""

import functools
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from .samples import Batch, Sample, TrainingData, collate

logger = logging.getLogger(__name__)


############################################################
#  Order
############################################################


def image_seed(seed: int, epoch: int, place: int) -> int:
    """The seed of the image at a place of an epoch, in 0 .. 2**63 - 1. seed: Config.SEED."""
    return int(np.random.SeedSequence((seed, epoch, place)).generate_state(1, np.uint64)[0] >> 1)


class BatchOrder:
    """Which images are in each batch of an epoch, and their seeds: a sampler for a DataLoader.

    Shuffled, for training: wide images come together, and high ones. Only what is left of either in the end is mixed,
    and filled up with images that had their turn, so that all batches are full. Such a pass through the data is
    followed by another, in another order, whether an epoch is longer or shorter than it: all images are seen equally
    often. Not shuffled, for validation: in order, once at most, with the same seeds in each epoch; the last batch may
    be smaller.

    In a distributed training each process takes its part of batches of IMAGES_PER_GPU * world images. Together they
    take what one process with as large a batch would. (The last batch of a validation is filled up to a multiple of
    world.)
    """

    def __init__(self, is_wide: np.ndarray, config: Any, rank: int = 0, world: int = 1, shuffle: bool = True) -> None:
        """
        is_wide: bool [images]. config: SEED, IMAGES_PER_GPU, STEPS_PER_EPOCH and VALIDATION_STEPS count.
        rank, world: this process's number, and how many there are.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0 .. world - 1, got rank {rank} of world {world}")
        self.is_wide, self.seed, self.rank, self.world, self.shuffle = is_wide, config.SEED, rank, world, shuffle
        self.size = config.IMAGES_PER_GPU * world
        self.epoch, self.start_step = 0, 0
        self._pass: tuple[int, np.ndarray] = (0, self._shuffled(0))
        if shuffle:
            self.steps = config.STEPS_PER_EPOCH or len(self._pass[1])
        else:
            self.steps = min(math.ceil(len(is_wide) / self.size), config.VALIDATION_STEPS or sys.maxsize)

    def __len__(self) -> int:
        """Batches from start_step to the end of the epoch."""
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """The batches of self.epoch from self.start_step on."""
        return map(functools.partial(self.batch, self.epoch), range(self.start_step, self.steps))

    def batch(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """(index, seed) of each image that this process takes."""
        images = self._training(epoch * self.steps + step) if self.shuffle else self._validation(step)
        share = len(images) // self.world
        first = self.rank * share
        epoch = epoch if self.shuffle else 0
        places = range(step * self.size + first, step * self.size + first + share)
        return [
            (image, image_seed(self.seed, epoch, place))
            for image, place in zip(images[first : first + share].tolist(), places, strict=True)
        ]

    def _training(self, number: int) -> np.ndarray:
        """[size]: the images of a batch, counted from the start of the training."""
        number, row = divmod(number, len(self._pass[1]))
        if self._pass[0] != number:
            self._pass = number, self._shuffled(number)
        return self._pass[1][row]

    def _validation(self, step: int) -> np.ndarray:
        images = np.arange(len(self.is_wide))
        batch = images[step * self.size : (step + 1) * self.size]
        return np.concatenate([batch, np.resize(images, -len(batch) % self.world)])

    def _shuffled(self, number: int) -> np.ndarray:
        """[batches, size]: the images of a pass through the data."""
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.is_wide))
        groups = [order[self.is_wide[order]], order[~self.is_wide[order]]]
        full = [len(group) // self.size * self.size for group in groups]
        rest = np.concatenate([group[count:] for group, count in zip(groups, full, strict=True)])
        others = order[~np.isin(order, rest)]
        rest = np.resize(np.concatenate([rest, others]), math.ceil(len(rest) / self.size) * self.size)
        batches = np.concatenate([*(group[:count] for group, count in zip(groups, full, strict=True)), rest])
        return rng.permutation(batches.reshape(-1, self.size))


############################################################
#  Loader
############################################################

# Forking needs no picklable data set and no guard around the main script, and starts in no time. Other systems spawn.
_START_METHOD = "fork" if sys.platform == "linux" else None


class _Loaded(NamedTuple):
    """What a worker sends."""

    batch: Batch | None  # None if too much failed. To raise is the other side's: torch's way of it leaves processes
    failures: dict[int, tuple[str, str]]  # by image_id: what went wrong, and the traceback
    warnings: dict[int, str]  # by image_id


class _Fetcher:
    """Makes batches of (index, seed) pairs, in whichever process."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, picks: Sequence[tuple[int, int]]) -> _Loaded:
        failures, warned = {}, {}
        samples = []
        for index, seed in picks:
            sample = self._sample(index, seed, failures, warned)
            if sample is None:
                return _Loaded(None, failures, warned)
            samples.append(sample)
        return _Loaded(collate(samples), failures, warned)

    def _sample(self, index: int, seed: int, failures: dict, warned: dict) -> Sample | None:
        """The sample of an image, or of the next one that can be loaded; None if MAX_DATA_ERRORS in a row cannot."""
        for candidate in range(index, index + min(self.data.config.MAX_DATA_ERRORS, len(self.data))):
            image_id = int(self.data.dataset.image_ids[candidate % len(self.data)])
            try:
                sample, warning = self.data._make(candidate % len(self.data), seed)
            except MemoryError:
                raise
            except Exception as error:  # whatever users' code and files come up with
                failures[image_id] = self._describe(image_id, error), traceback.format_exc()
            else:
                warned.update({image_id: warning} if warning else {})
                return sample
        return None

    def _describe(self, image_id: int, error: Exception) -> str:
        name, text = self.data.name(image_id), str(error)
        return text if text.startswith(name) else f"{name}: {type(error).__name__}: {text}"


def _as_it_is(loaded: _Loaded) -> _Loaded:
    return loaded


def worker_count(config: Any) -> int:
    """The processes that load images: WORKERS, or what suits the machine.

    0, which is to load in the training process, where training itself takes all cores (on the CPU), and where workers
    would have to be spawned (Windows, macOS): that takes seconds, and a main script with a guard.
    """
    if config.WORKERS is not None:
        return config.WORKERS
    if config.GPU_COUNT == 0 or not torch.cuda.is_available() or _START_METHOD != "fork":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    return max(0, min(8, cores - 1))


class Loader:
    """The batches of an epoch for one process, as often as it is iterated over; make_loader makes it.

    An image that cannot be loaded is replaced by the next one, with a warning, until MAX_DATA_ERRORS of them have
    failed: then the iteration raises ValueError, which names them.
    """

    def __init__(self, data: TrainingData, order: BatchOrder) -> None:
        self.data, self.order = data, order
        self._failures: dict[int, tuple[str, str]] = {}
        self._warned: set[int] = set()
        workers = worker_count(data.config)
        self._loader = DataLoader(
            _Fetcher(data),
            batch_size=None,  # what the order yields is a batch
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=_START_METHOD if workers else None,
            persistent_workers=order.shuffle and workers > 0,
            pin_memory=data.config.GPU_COUNT > 0 and torch.cuda.is_available(),
            generator=torch.Generator(),  # the shared one is left as it is
        )

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        return self.order.steps

    def __len__(self) -> int:
        """Batches that an iteration brings."""
        return len(self.order)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """What to iterate over from now on: an epoch, from a step on, both counted from 0."""
        self.order.epoch, self.order.start_step = epoch, start_step

    def __iter__(self) -> Iterator[Batch]:
        """Ends the iteration of a training that is under way: it has one set of workers."""
        with warnings.catch_warnings():  # Python 3.12's, of any fork; workers only do what is safe after one
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            return self._checked(iter(self._loader))

    def _checked(self, loaded: Iterator[_Loaded]) -> Iterator[Batch]:
        for batch, failures, warned in loaded:
            self._report(failures, warned, is_final=batch is None)
            yield batch

    def _report(self, failures: dict[int, tuple[str, str]], warned: dict[int, str], is_final: bool) -> None:
        """Logs what is new; raises ValueError when too many images have failed."""
        limit = self.data.config.MAX_DATA_ERRORS
        new = {image_id: failure for image_id, failure in failures.items() if image_id not in self._failures}
        self._failures |= new
        if is_final or len(self._failures) >= limit:
            causes = "\n  ".join(text for text, _ in self._failures.values())
            _, details = list(self._failures.values())[-1]
            raise ValueError(
                f"{len(self._failures)} images could not be loaded (MAX_DATA_ERRORS is {limit}):\n  {causes}\n"
                f"The last one's {details}"
            )
        for text, _ in new.values():
            logger.warning("%s; another image takes its place (MAX_DATA_ERRORS is %d)", text, limit)
        for image_id in warned.keys() - self._warned:
            logger.warning("%s", warned[image_id])
        self._warned |= warned.keys()


def make_loader(
    data: TrainingData, epoch: int = 0, start_step: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True
) -> Loader:
    """The batches of an epoch.

    data: its config says how large batches are, how many make an epoch, and how many processes load them.
    epoch, start_step: where to begin; Loader.set_epoch goes on to another.
    rank, world: of a distributed training, this process's number and how many there are.
    shuffle: False for validation: in order, and VALIDATION_STEPS long.
    """
    loader = Loader(data, BatchOrder(data.is_wide(), data.config, rank, world, shuffle))
    loader.set_epoch(epoch, start_step)
    return loader

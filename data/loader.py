"""Batches in an order that can be resumed, loaded in this process or in others.

    BatchOrder (which images, which seeds) ─ Loader (in which processes) ─ Batch

Orders and seeds depend on SEED, the epoch and the place in the epoch only. So the number of workers does not change
the batches, and an epoch can begin at any step.
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

import runtime

from .samples import Batch, Sample, TrainingData, collate

logger = logging.getLogger(__name__)

NO_OBJECT_AFTER = 100  # batches of a training, after which it says that it has seen none


############################################################
#  Order
############################################################


def image_seed(seed: int, epoch: int, place: int) -> int:
    """The seed of the image at a place in an epoch, 0 to 2**63 - 1. seed: Config.SEED. place: 0 for the first image."""
    return int(np.random.SeedSequence((seed, epoch, place)).generate_state(1, np.uint64)[0] >> 1)


class BatchOrder:
    """Which images are in each batch of an epoch, and their seeds: a sampler for a DataLoader.

    Shuffled, for training: landscape images share batches, and so do portrait ones, so that little padding is needed.
    The images that remain of both share the last batches, which are filled up with images that had their turn: all
    batches are full. One pass through the data follows another, each in an order of its own, however long an epoch is.
    So all images are seen equally often, or with `repeats`, each as often as these say.

    Not shuffled, for validation: the images in order, each once at most, with the same seeds in every epoch. The last
    batch may be smaller.

    In a distributed training, a batch has IMAGES_PER_GPU * world images, and each process takes its share of them.
    Together the processes take the images that one process with as large a batch would take. (The last batch of a
    validation is filled up to a multiple of world.)
    """

    def __init__(
        self, is_wide: np.ndarray, config: Any, rank: int = 0, world: int = 1, shuffle: bool = True,
        repeats: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """
        is_wide: bool [images], see TrainingData.is_wide. config: its SEED, IMAGES_PER_GPU, STEPS_PER_EPOCH and
            VALIDATION_STEPS are read. rank, world: the number of this process, and the count of processes.
        repeats: float [images], how often each comes in a pass, on average; at least 1. None: once. Only if shuffled.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0 .. world - 1, got rank {rank} of world {world}")
        self.is_wide, self.seed, self.rank, self.world, self.shuffle = is_wide, config.SEED, rank, world, shuffle
        self.size, self.repeats = config.IMAGES_PER_GPU * world, repeats
        self.epoch, self.start_step = 0, 0
        self._pass: tuple[int, np.ndarray] = (0, self._shuffled(0))  # number of the current pass, and its batches
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
        """(index, seed) of each image that this process takes in a step."""
        images = self._training_batch(epoch * self.steps + step) if self.shuffle else self._validation_batch(step)
        share = len(images) // self.world
        first = self.rank * share
        epoch = epoch if self.shuffle else 0
        places = range(step * self.size + first, step * self.size + first + share)
        return [
            (image, image_seed(self.seed, epoch, place))
            for image, place in zip(images[first : first + share].tolist(), places, strict=True)
        ]

    def _training_batch(self, number: int) -> np.ndarray:
        """[size]: the images of a batch. number: counts the batches since the start of the training."""
        pass_number, row = divmod(number, len(self._pass[1]))
        if self._pass[0] != pass_number:
            self._pass = pass_number, self._shuffled(pass_number)
        return self._pass[1][row]

    def _validation_batch(self, step: int) -> np.ndarray:
        images = np.arange(len(self.is_wide))
        batch = images[step * self.size : (step + 1) * self.size]
        return np.concatenate([batch, np.resize(images, -len(batch) % self.world)])

    def _shuffled(self, pass_number: int) -> np.ndarray:
        """[batches, size]: the images of a pass through the data."""
        rng = np.random.default_rng((self.seed, pass_number))
        order = rng.permutation(len(self.is_wide))
        if self.repeats is not None:
            # The images lie one after the other, each as long as its repeats, and equal steps from a random start take
            # them: each comes as often as its repeats, rounded down or up, and all passes are of one length.
            ends = self.repeats[order].cumsum()
            count = math.ceil(ends[-1])
            places = np.searchsorted(ends, (rng.random() + np.arange(count)) * ends[-1] / count, side="right")
            order = rng.permutation(order[places.clip(max=len(order) - 1)])
        groups = [order[self.is_wide[order]], order[~self.is_wide[order]]]
        counts = [len(group) // self.size * self.size for group in groups]  # in full batches
        remaining = np.concatenate([group[count:] for group, count in zip(groups, counts, strict=True)])
        others = order[~np.isin(order, remaining)]
        size = math.ceil(len(remaining) / self.size) * self.size
        mixed = np.resize(np.concatenate([remaining, others]), size)
        batches = np.concatenate([*(group[:count] for group, count in zip(groups, counts, strict=True)), mixed])
        return rng.permutation(batches.reshape(-1, self.size))


############################################################
#  Loader
############################################################

# A forked worker starts at once. It needs neither a data set that can be pickled, nor `if __name__ == "__main__"` in
# the main script. Other systems spawn workers, which need both.
_START_METHOD = "fork" if sys.platform == "linux" else None


class _Loaded(NamedTuple):
    """A batch with its problems, as a worker sends it to the training process."""

    # None if no image could be loaded. The process that takes the batches decides what that means: a worker that raises
    # may leave processes behind.
    batch: Batch | None
    failures: dict[int, tuple[str, str]]  # by image_id: the error in words, and its traceback
    warnings: dict[int, str]  # by image_id


class _Fetcher:
    """The data set that torch's DataLoader reads from: makes a batch of (index, seed) pairs, in a worker or here.

    replaces: whether the next image takes the place of one that cannot be loaded; otherwise the batch is smaller.
    fills: whether a batch without a single image that can be loaded gets the next ones. Processes that work together
        need as many batches each.
    """

    def __init__(self, data: TrainingData, replaces: bool = True, fills: bool = True) -> None:
        self.data, self.replaces, self.fills = data, replaces, fills

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, picks: Sequence[tuple[int, int]]) -> _Loaded:
        failures, warned = {}, {}
        samples = []
        if not self.replaces:
            loaded = [self._sample(index, seed, failures, warned, tries=1) for index, seed in picks]
            samples = [sample for sample in loaded if sample is not None]
        for index, seed in picks if self.replaces or (self.fills and not samples) else ():
            sample = self._sample(index, seed, failures, warned, tries=self.data.config.MAX_DATA_ERRORS)
            if sample is None:
                return _Loaded(None, failures, warned)
            samples.append(sample)
        return _Loaded(collate(samples) if samples else None, failures, warned)

    def _sample(self, index: int, seed: int, failures: dict, warned: dict, tries: int) -> Sample | None:
        """The sample of an image, or of the next one that can be loaded; None if so many in a row cannot."""
        for candidate in range(index, index + min(tries, len(self.data))):
            image_id = int(self.data.dataset.image_ids[candidate % len(self.data)])
            try:
                sample, warning = self.data._make(candidate % len(self.data), seed)
            except MemoryError:
                raise
            except Exception as error:  # users' code and files may raise anything
                name, text = self.data.name(image_id), str(error)
                path = str(self.data.dataset.image_info[image_id].get("path") or name)
                if isinstance(error, ValueError | OSError) and path in text:
                    name = ""  # a sentence of ours, which names the file
                text = text if text.startswith(name) else f"{name}: {type(error).__name__}: {text}"
                failures[image_id] = text, traceback.format_exc()
            else:
                warned.update({image_id: warning} if warning else {})
                return sample
        return None


def _unchanged(loaded: _Loaded) -> _Loaded:
    """DataLoader's collate_fn: the fetcher has collated already. A function at top level, so that it can be pickled."""
    return loaded


def worker_count(config: Any) -> int:
    """The number of processes that load images: WORKERS, or one that suits the machine.

    0 means that the training process loads them. It is chosen on the CPU, where training needs all cores, and on
    Windows and macOS, where workers are spawned: that takes seconds, and the main script needs
    `if __name__ == "__main__"`.
    """
    if config.WORKERS is not None:
        return config.WORKERS
    if runtime.training_device(config.GPU_COUNT).type == "cpu" or _START_METHOD != "fork":
        return 0
    cores = runtime.usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    return max(0, min(8, cores - 1))


class Loader:
    """The batches of an epoch for one process, from make_loader. Each iteration brings them anew.

    In training, an image that cannot be loaded is replaced by the next one, with a warning. When MAX_DATA_ERRORS images
    have failed, the iteration raises a ValueError that names them. If the first NO_OBJECT_AFTER batches show no object,
    or those of an epoch that is shorter, a warning says so: a mistake in load_mask() may look like that.

    In validation, such an image is left out, with a warning, and missing_images counts it. A batch without any other
    image is left out, too; of several processes, each takes the next images instead, because all need as many batches.
    """

    def __init__(self, data: TrainingData, order: BatchOrder) -> None:
        self.data, self.order = data, order
        self._failures: dict[int, tuple[str, str]] = {}
        self._warned: set[int] = set()
        self._missing: set[int] = set()
        self._without_object = 0  # batches of a training until the first object; -1 when there is nothing to say
        workers, device = worker_count(data.config), runtime.training_device(data.config.GPU_COUNT)
        self._loader = DataLoader(
            _Fetcher(data, replaces=order.shuffle, fills=order.world > 1),
            batch_size=None,  # the order yields whole batches
            sampler=order,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=_START_METHOD if workers else None,
            persistent_workers=order.shuffle and workers > 0,
            pin_memory=runtime.uses_pinned_memory(device),
            generator=torch.Generator(),  # so that the shared generator stays as it is
        )

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        return self.order.steps

    @property
    def images(self) -> int:
        """Images of a validation in this process."""
        order = self.order
        images = min(len(order.is_wide), order.steps * order.size)
        return math.ceil(images / order.world)

    @property
    def missing_images(self) -> int:
        """Images that could not be loaded since the last iteration began."""
        return len(self._missing)

    def __len__(self) -> int:
        """Batches of an iteration: those from start_step on."""
        return len(self.order)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iterations, and the step that they begin at. Both count from 0."""
        self.order.epoch, self.order.start_step = epoch, start_step

    def __iter__(self) -> Iterator[Batch]:
        """The batches from start_step to the end of the epoch.

        NOTE: a loader for training has one set of workers, so a new iteration ends one that is still going on.
        """
        self._missing = set()
        with (
            warnings.catch_warnings()
        ):  # Python 3.12 warns of every fork, but our workers do only what is safe after one
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            return self._checked(iter(self._loader))

    def _checked(self, loaded: Iterator[_Loaded]) -> Iterator[Batch]:
        for batch, failures, warned in loaded:
            self._report(failures, warned, is_final=batch is None)
            if batch is not None:
                self._report_objects(batch)
                yield batch

    def _report_objects(self, batch: Batch) -> None:
        """Log it if a training shows the model no object, once."""
        if self._without_object < 0 or not self.order.shuffle:
            return
        self._without_object += 1
        if len(batch.targets.class_ids) > 0:
            self._without_object = -1
        elif self._without_object == min(NO_OBJECT_AFTER, self.steps):
            logger.warning(
                "no object to learn from in batches 1 to %d (%s ...): does load_mask() of the data set return masks, "
                "and is anything labelled? So far, the model can only learn that there is nothing to find",
                self._without_object, self.data.name(batch.image_ids[0]),
            )  # fmt: skip
            self._without_object = -1

    def _report(self, failures: dict[int, tuple[str, str]], warned: dict[int, str], is_final: bool) -> None:
        """Log each failure and warning once. Raises ValueError when too many images have failed, except in validation.

        is_final: whether a batch has no image.
        """
        limit = self.data.config.MAX_DATA_ERRORS
        new = {image_id: failure for image_id, failure in failures.items() if image_id not in self._failures}
        self._failures |= new
        self._missing |= failures.keys()
        is_validation = not self.order.shuffle
        ends_training = not is_validation and len(self._failures) >= limit
        needs_batch = not is_validation or self.order.world > 1
        if ends_training or (is_final and needs_batch):
            causes = "\n  ".join(text for text, _ in self._failures.values())
            _, details = list(self._failures.values())[-1]
            raise ValueError(
                f"{len(self._failures)} images could not be loaded (MAX_DATA_ERRORS is {limit}):\n  {causes}\n"
                f"The last one's {details}"
            )
        for text, _ in new.values():
            if is_validation:
                logger.warning("%s; validation goes on without this image", text)
            else:
                logger.warning("%s; another image takes its place (MAX_DATA_ERRORS is %d)", text, limit)
        for image_id in warned.keys() - self._warned:
            logger.warning("%s", warned[image_id])
        self._warned |= warned.keys()


def make_loader(
    data: TrainingData, epoch: int = 0, start_step: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True
) -> Loader:
    """The batches of an epoch.

    data: its config says how large a batch is, how many make an epoch, and how many processes load them.
    epoch, start_step: where to begin; Loader.set_epoch changes both.
    rank, world: the number of this process in a distributed training, and the count of processes.
    shuffle: False for validation: images in order, VALIDATION_STEPS batches.
    """
    repeats = data.repeats() if shuffle else None
    loader = Loader(data, BatchOrder(data.is_wide(), data.config, rank, world, shuffle, repeats))
    loader.set_epoch(epoch, start_step)
    return loader

"""Evaluation in large images: a detector that sees them tile by tile, and everything else as the model does.

    detector = in_tiles(model, dataset, image_ids)     the model itself, if no image needs tiles and no user said so
    detector.detect_batches(...)                       whole objects, as run-length codes of the whole image

So the numbers, the report and the files of an evaluation are those of any image. large.py says which images need tiles.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import runtime
from config import Config
from data.dataset import Dataset
from data.images import image_size
from data.large import RegionImage
from data.regions import as_source
from model import MaskRCNN
from tiles import Plan, TiledDetections, detect_tiled, plan_tiles

from .large import BY_MODEL, TileOptions, describe_tiles, needs_tiles, tile_sizes
from .results import Detector, load_picture


class TiledDetector:
    """A model that detects in tiles where an image needs it. A ResumableDetector and a LoadingDetector.

    shapes: (height, width) of the images of the data set that are detected in tiles, by image_id.
    verbose: show how far a large image has come, in the first process.
    """

    def __init__(
        self, model: MaskRCNN, shapes: Mapping[int, tuple[int, int]], options: TileOptions, verbose: bool
    ) -> None:
        self.model, self.shapes, self.options, self.verbose = model, dict(shapes), options, verbose
        self.class_names, self.category_ids = model.class_names, model.category_ids
        self.seconds: dict[str, float] = {}

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def source(self) -> str:
        return self.model.source

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        return self.model.state_dict()

    @property
    def identity(self) -> dict[str, Any]:
        """Side and overlap of tiles, and their scale; nothing if no image is detected in tiles."""
        if not self.shapes:
            return {}
        sizes = dict(zip(("tile", "overlap", "scale"), tile_sizes(self.config, self.options), strict=True))
        return {"tiles": sizes}

    def load_image(self, dataset: Dataset, image_id: int) -> np.ndarray | RegionImage:
        """An image as detect_batches takes it. One for tiles is read by regions, if its file allows it."""
        image = dataset.load_regions(image_id) if image_id in self.shapes else None
        return dataset.load_image(image_id) if image is None else image

    def detect_batches(
        self, batches: Iterable[Sequence[np.ndarray | RegionImage]], dtype: str = "float32", masks: str = "rle"
    ) -> Iterator[list[dict[str, Any]]]:
        """As MaskRCNN.detect_batches, of images that load_image gives. masks: "rle"."""
        self.seconds = {}
        for has_large, group in itertools.groupby(batches, lambda batch: any(map(self._is_large, batch))):
            if has_large:
                yield from ([self._detect(image, dtype) for image in batch] for batch in group)
            else:
                yield from self.model.detect_batches(group, dtype, masks)
                for name, seconds in self.model.seconds.items():
                    self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def plan(self, image: np.ndarray | RegionImage) -> Plan:
        """Where the tiles of an image lie."""
        return plan_tiles(image.shape, self.config, *tile_sizes(self.config, self.options))

    def _is_large(self, image: np.ndarray | RegionImage) -> bool:
        return needs_tiles(image.shape, self.config, self.options)

    def _detect(self, image: np.ndarray | RegionImage, dtype: str) -> dict[str, Any]:
        """detect()'s dict of an image, in tiles if it needs them."""
        if not self._is_large(image):
            return self.model.detect([image], dtype=dtype, masks="rle")[0]
        is_silent = not self.verbose or runtime.rank() > 0
        rows = detect_tiled(self.model, image, *tile_sizes(self.config, self.options), dtype)
        rows = tqdm(rows, "rows of tiles", self.plan(image).shape[0], leave=False, unit="row", disable=is_silent)
        found = TiledDetections.cat(list(rows)).to_image_detections(image.shape)
        return found.sorted_by("scores").to_result()


def in_tiles(
    model: Detector,
    dataset: Dataset,
    image_ids: Sequence[int] | None = None,
    options: TileOptions = BY_MODEL,
    verbose: bool = False,
) -> Detector:
    """The detector for some images of a data set: a TiledDetector if one of them needs tiles, else the model itself.

    model: a MaskRCNN; any other detector is returned as it is. image_ids: all by default. options: what a user says
        about tiles; a TiledDetector keeps it, "off" too, so that nobody who calls this again decides otherwise.
        verbose: as of TiledDetector.
    """
    if not isinstance(model, MaskRCNN):
        return model
    image_ids = map(int, dataset.image_ids if image_ids is None else image_ids)
    sizes = {image_id: _size(dataset, image_id) for image_id in image_ids}
    shapes = {image_id: size for image_id, size in sizes.items() if size and needs_tiles(size, model.config, options)}
    return TiledDetector(model, shapes, options, verbose) if shapes or options != BY_MODEL else model


def _size(dataset: Dataset, image_id: int) -> tuple[int, int] | None:
    """(height, width) by image_info, or else by the header of the file; None if neither says it."""
    info = dataset.image_info[image_id]
    if info.get("height") and info.get("width"):
        return int(info["height"]), int(info["width"])
    try:
        return image_size(info["path"]).shown
    except (OSError, TypeError, ValueError):  # no file, or one that only the data set can read
        return None


def tile_notes(model: Detector, dataset: Dataset) -> list[str]:
    """Which images are detected in tiles, and why, as describe_tiles: a sentence, or none."""
    if not isinstance(model, TiledDetector):
        return []
    names = {str(dataset.image_info[image_id]["id"]): shape for image_id, shape in model.shapes.items()}
    return describe_tiles(names, model.config, model.options)


def estimate_seconds(model: MaskRCNN, dataset: Dataset, image_id: int) -> float:
    """How long a model takes about to detect in an image of a data set. Of many tiles a single one is timed."""
    detector, start, count = in_tiles(model, dataset, [image_id]), time.perf_counter(), 1
    image = load_picture(detector, dataset, image_id)
    if isinstance(detector, TiledDetector):
        plan = detector.plan(image)
        tile, count = plan.tile(plan.shape[0] // 2, plan.shape[1] // 2), math.prod(plan.shape)
        image = as_source(image).read(*tile.region)
    model.detect([image], masks="rle")
    return count * (time.perf_counter() - start)


def most_found(model: Detector, masks: Iterable[Mapping[str, Any]]) -> int:
    """The most results of an image, if some are detected in tiles: these may have any number. Otherwise 0.

    masks: results of masks, as to_results has them.
    """
    if not isinstance(model, TiledDetector) or not model.shapes:
        return 0
    counts: dict[int, int] = {}
    for entry in masks:
        counts[entry["image_id"]] = counts.get(entry["image_id"], 0) + 1
    return max(counts.values(), default=0)

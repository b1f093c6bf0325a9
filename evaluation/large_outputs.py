"""Results of a large image, written while its objects are read from the top, in the memory of a few rows of tiles.

    objects = NumberedRows(rows, threshold)      rows() gives TiledDetections anew, as detect_tiled does
    large = LargePicture(picture, source, objects, config, class_names)

    write_label(large, path)       .geojson: polygons; .tif, .zarr: a label image
    table_rows(large)              rows of objects.csv, for Table.write
    CocoObjects(large)             the objects of a record, for data/writers/coco.py
    coco_results_of(large, 1)      entries of results.json
    write_preview(large, path)     a picture of at most PREVIEW pixels a side

The number of an object is the same everywhere, and 1 is the best mask. Objects come in the order of rows of tiles, not
in that of numbers.

N objects   H, W the image's height and width
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import utils
import visualize
from config import Config
from data.crops import Crop, trim
from data.georeference import Georeference
from data.measurements import measure_crop
from data.records import Object
from data.sources import PictureFile
from data.tiff_regions import PieceCache
from data.writers.common import Overlaps, write_text
from data.writers.geojson import feature, write_features
from data.writers.label_images import add_classes, mask_name
from data.writers.pictures import save_picture
from data.writers.tiled_labels import SIDE, NumberTile, write_tiles
from tiles import Pixels, Source, TiledDetections

from .accept import chances
from .own_detect import PictureResults
from .own_outputs import TILE_COLUMNS, Table, draw, object_of, row_of

############################################################
#  Objects with their numbers
############################################################


class NumberedRows:
    """The objects of a large image whose mask scores reach a threshold, and their numbers.

    Iterating, any number of times, gives (TiledDetections, numbers int64 [N]) for each row of tiles. Masks have no
    empty rows and columns at their sides.

    complete: for each of these rows, how many rows of pixels no later object touches. Infinite at the end.
    """

    def __init__(self, rows: Callable[[], Iterable[TiledDetections]], threshold: float) -> None:
        """rows: gives the same objects each time it is called. They are read once, of which the scores are kept."""
        self._rows, self._threshold = rows, threshold
        scores, tops = [np.zeros(0, np.float32)], []
        for found in self._chosen():
            scores.append(found.mask_scores)
            tops.append(min((crop.y for crop in found.masks), default=math.inf))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        self._numbers = np.empty(len(order), np.int64)
        self._numbers[order] = np.arange(1, len(order) + 1)
        reversed_tops = itertools.accumulate(reversed([*tops[1:], math.inf]), min)
        self.complete: list[float] = list(reversed_tops)[::-1] if tops else []

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[tuple[TiledDetections, np.ndarray]]:
        start = 0
        for found in self._chosen():
            numbers = self._numbers[start : start + len(found)]
            start += len(found)
            if len(numbers) < len(found):
                break
            yield found, numbers
        if start != len(self):
            raise ValueError(
                f"the rows had {len(self)} objects when they were read first, and now {start}; were the stored "
                "detections changed meanwhile? Run again"
            )

    def _chosen(self) -> Iterator[TiledDetections]:
        for found in self._rows():
            crops = [trim(*crop) for crop in found.masks]
            has_pixels = np.array([crop.mask.size > 0 for crop in crops], bool)
            # As Python compares: a float32 of 0.9 does not reach a threshold of 0.9.
            is_good = found.mask_scores.astype(np.float64) >= self._threshold
            yield dataclasses.replace(found, masks=crops)[is_good & has_pixels]


class LargePicture(NamedTuple):
    """A large image, and what was found in it."""

    picture: PictureFile
    source: Source  # its pixels
    objects: NumberedRows
    config: Config  # of the model
    class_names: Sequence[str]  # [K], background first
    pixel_size: float | None = None  # micrometres
    georeference: Georeference | None = None
    verbose: bool = False  # show progress

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        height, width = self.source.shape[:2]
        return height, width

    def rows(self, task: str) -> Iterator[tuple[PictureResults, list[int]]]:
        """The objects of a row of tiles each time, with their numbers. task: a word for the line of progress."""
        with tqdm(total=len(self.objects), unit="object", desc=task, disable=not self.verbose, leave=False) as progress:
            for found, numbers in self.objects:
                accept = chances(self.config, found.class_ids, found.scores, found.mask_ious)
                accept = None if accept is None else accept[:, 0]
                yield PictureResults(self.picture, *self.size, found, accept), numbers.tolist()
                progress.update(len(found))


def _tile_facts(found: TiledDetections, i: int) -> dict[str, Any]:
    """Of how many tiles' views an object is joined, and whether a tile cuts it."""
    return {"pieces": int(found.pieces[i]), "is_cut": bool(found.is_cut[i])}


############################################################
#  Polygons and label images
############################################################

LARGE_KINDS = ("geojson", "label_images")  # the formats of data/writers/ for large pictures, beside COCO's
_INSTEAD = f"--to {' or '.join(LARGE_KINDS)} can"


def write_label(large: LargePicture, path: Path, overlaps: Overlaps | None = None) -> Path:
    """Writes the objects as a file for other tools, completely or not at all: the suffix of the path says which.

    .geojson: polygons, see write_features. They are in pixels, or on the map where the picture has a georeference.
    .tif, .zarr: a label image, see write_tiles. Where objects overlap, the best mask lies on top. If the picture has a
        georeference, a .tif gets a world file beside it, .tfw, which places it on the map.
    overlaps: counts what the label image loses.

    Returns: the path.
    Raises: ValueError for another suffix, and for a package that is missing; OSError if the disk is full.
    """
    if path.suffix.lower() == ".geojson":
        return write_features(path, _features(large), large.georeference and large.georeference.crs)
    write_tiles(path, large.size, number_tiles(large, overlaps or Overlaps()), large.pixel_size)
    if large.georeference is not None and path.suffix.lower() != ".zarr":
        write_text(path.with_suffix(".tfw"), large.georeference.world_file())
    return path


def write_labels_of_large(
    large: LargePicture, kind: str, folder: Path, name: str, overlaps: Overlaps | None = None
) -> Path:
    """Writes the objects beside those of ordinary pictures, and with the same names.

    kind: "geojson": folder/NAME.geojson. "label_images": folder/masks/NAME.tif and rows of classes.csv, to be called
        once that has the ordinary pictures; for an image in OME-Zarr, NAME.zarr.
    name: of the picture, with its suffix. overlaps: as of write_label.

    Returns: the folder.
    Raises: ValueError for another kind; as write_label.
    """
    if kind not in LARGE_KINDS:
        name = utils.printable(large.picture.name)
        raise ValueError(f"{name} is a large picture, which --to {kind} cannot hold; {_INSTEAD}")
    if kind == "geojson":
        write_label(large, folder / PurePosixPath(name).with_suffix(".geojson"))
        return folder
    mask = PurePosixPath(mask_name(name))
    mask = mask.with_suffix(".zarr") if name.lower().endswith(".zarr") else mask
    write_label(large, folder / mask, overlaps)
    add_classes(folder, str(mask), _numbered(large))
    return folder


def _numbered(large: LargePicture) -> Iterator[tuple[int, Object]]:
    for results, numbers in large.rows("classes"):
        for i, number in enumerate(numbers):
            parsed = object_of(results, i, number, large.class_names)
            parsed.attributes |= _tile_facts(results.found, i)
            yield number, parsed


def _features(large: LargePicture) -> Iterator[dict[str, Any]]:
    transform = large.georeference and large.georeference.transform
    for results, numbers in large.rows("polygons"):
        for i, number in enumerate(numbers):
            parsed, crop = object_of(results, i, number, large.class_names), results.found.masks[i]
            parsed.attributes["area_px"] = int(np.count_nonzero(crop.mask))
            entry = feature(parsed, crop, transform)
            entry["properties"] |= _tile_facts(results.found, i)
            yield entry


def number_tiles(large: LargePicture, overlaps: Overlaps) -> Iterator[NumberTile]:
    """The label image by tiles, row by row from the top. Where objects overlap, the smallest number lies on top.

    overlaps: counts the pixels that are of several objects.

    In memory are a tile, and the masks of objects that reach below the tiles that are done. An object waits until no
    later one can touch the tiles above its end.
    """
    height, width = large.size
    waiting: list[tuple[int, Crop]] = []
    y = 0
    rows = (zip(numbers, results.found.masks, strict=True) for results, numbers in large.rows("label image"))
    for added, complete in itertools.chain(zip(rows, large.objects.complete, strict=True), [([], math.inf)]):
        waiting += added
        while y < height and min(y + SIDE, height) <= complete:
            yield from _row_of_tiles(waiting, y, min(y + SIDE, height), width, overlaps)
            y += SIDE
            waiting = [(number, crop) for number, crop in waiting if crop.y + crop.mask.shape[0] > y]


def _row_of_tiles(
    objects: Iterable[tuple[int, Crop]], y1: int, y2: int, width: int, overlaps: Overlaps
) -> Iterator[NumberTile]:
    columns: dict[int, list[tuple[int, Crop]]] = {}
    for number, crop in sorted((entry for entry in objects if entry[1].y < y2), key=lambda entry: -entry[0]):
        for column in range(crop.x // SIDE, (crop.x + crop.mask.shape[1] - 1) // SIDE + 1):
            columns.setdefault(column, []).append((number, crop))
    for column, x1 in enumerate(range(0, width, SIDE)):
        values = None
        if column in columns:
            values = np.zeros((y2 - y1, min(SIDE, width - x1)), np.uint32)
            is_shared = np.zeros(values.shape, bool)
            for number, (y, x, mask) in columns[column]:
                top, left = max(y, y1), max(x, x1)
                part = mask[top - y : y2 - y, left - x : max(x1 + SIDE - x, 0)]
                place = np.s_[top - y1 : top - y1 + part.shape[0], left - x1 : left - x1 + part.shape[1]]
                is_shared[place] |= part & (values[place] > 0)
                values[place][part] = number
            overlaps.pixels += int(np.count_nonzero(is_shared))
        yield NumberTile(y1, x1, values)


############################################################
#  The table of objects
############################################################


def table_of_large(large: LargePicture) -> Table:
    """The columns that table_rows fills."""
    channels = large.source.shape[2] if len(large.source.shape) == 3 else 1
    return Table(large.pixel_size is not None, channels, large.georeference is not None, True)


def table_rows(large: LargePicture) -> Iterator[dict[str, Any]]:
    """A row of objects.csv for each object, as own_outputs.rows_of has them for ordinary pictures.

    Brightness is measured in the file's own values, of which only the blocks around objects are read.
    """
    blocks = _Blocks(large.source)
    for results, numbers in large.rows("measurements"):
        found, rows = results.found, {}
        for i in sorted(range(len(found)), key=lambda i: (found.masks[i].y // _BLOCK, found.masks[i].x // _BLOCK)):
            taken = measure_crop(*found.masks[i], large.size, blocks.pixels(found.masks[i]))
            places = large.pixel_size, large.georeference
            rows[i] = row_of(results, i, numbers[i], taken, large.class_names, *places)
            pieces, is_cut = _tile_facts(found, i).values()
            rows[i] |= dict(zip(TILE_COLUMNS, (pieces, "yes" if is_cut else "no"), strict=True))
        yield from (rows[i] for i in range(len(found)))


_BLOCK = 512  # side of the regions that are read
_KEPT_BYTES = 1 << 26


class _Blocks:
    """Reads a source by blocks, and keeps those that were used last: neighbouring objects lie in the same ones."""

    def __init__(self, source: Source) -> None:
        self._source, self._kept = source, PieceCache(_KEPT_BYTES)

    def pixels(self, crop: Crop) -> np.ndarray:
        """[area, C], the pixels where a mask is, block by block."""
        y1, x1, mask = crop
        parts = []
        for y in range(y1 - y1 % _BLOCK, y1 + mask.shape[0], _BLOCK):
            for x in range(x1 - x1 % _BLOCK, x1 + mask.shape[1], _BLOCK):
                part = mask[max(y - y1, 0) : y + _BLOCK - y1, max(x - x1, 0) : x + _BLOCK - x1]
                if part.any():
                    top, left = max(y1 - y, 0), max(x1 - x, 0)
                    block = self._block(y, x)[top : top + part.shape[0], left : left + part.shape[1]]
                    parts.append(block[part])
        return np.concatenate(parts)

    def _block(self, y: int, x: int) -> np.ndarray:
        height, width = self._source.shape[:2]
        y2, x2 = min(y + _BLOCK, height), min(x + _BLOCK, width)
        block = self._kept.get((y, x), lambda: self._source.read(y, x, y2, x2))
        return block[..., None] if block.ndim == 2 else block


############################################################
#  COCO
############################################################


def coco_problem(large: LargePicture) -> str | None:
    """Why COCO's files cannot hold a picture, as a sentence; None if they can."""
    height, width = large.size
    if height * width < 1 << 32:
        return None
    return (
        f"{utils.printable(large.picture.name)} has {height} x {width} pixels, and run-length codes as COCO has them "
        f"hold fewer than 2**32; {_INSTEAD}"
    )


class CocoObjects:
    """The objects of a large picture for a record (data/records.py), each made when it is read, with its code.

    Raises: ValueError with coco_problem.
    """

    def __init__(self, large: LargePicture) -> None:
        if problem := coco_problem(large):
            raise ValueError(problem)
        self._large = large

    def __len__(self) -> int:
        return len(self._large.objects)

    def __iter__(self) -> Iterator[Object]:
        for results, numbers in self._large.rows("annotations"):
            codes = results.found.to_image_detections(self._large.size).masks
            for i, (number, rle) in enumerate(zip(numbers, codes, strict=True)):
                parsed = object_of(results, i, number, self._large.class_names, rle)
                parsed.attributes |= _tile_facts(results.found, i)
                yield parsed


def coco_results_of(large: LargePicture, image_id: int) -> Iterator[dict[str, Any]]:
    """Entries in COCO's format of results, in the order of CocoObjects. image_id: as in annotations.json.

    Raises: ValueError with coco_problem.
    """
    if problem := coco_problem(large):
        raise ValueError(problem)
    for results, _ in large.rows("results"):
        yield from results.found.to_image_detections(large.size).to_coco(image_id, range(len(large.class_names)))


############################################################
#  Preview
############################################################

PREVIEW = 2000  # pixels of its longer side, at most
CAPTIONED = 100  # objects of a preview with captions, at most: of more, nobody could read them
_REGION = 1024  # side of the regions that are read for a preview, about
_COLOURS = 30


def write_preview(large: LargePicture, path: Path, comment: str = "") -> None:
    """Writes a small picture of the image with its masks, atomically. path, comment: as save_picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(preview(large), path, comment)


def preview(large: LargePicture) -> np.ndarray:
    """The image with its masks, shrunk to PREVIEW pixels a side at most: uint8 [h, w, 3].

    Few objects have captions, as in ordinary pictures. An object that is smaller than a pixel is a pixel.
    """
    step = max(1, math.ceil(max(large.size) / PREVIEW))
    image = _shrink_image(large, step)
    if len(large.objects) <= CAPTIONED:
        parts = [found for found, _ in large.objects]
        if not parts:
            return image
        found = TiledDetections.cat(parts).sorted_by("mask_scores")
        crops = [_shrink_mask(crop, step) for crop in found.masks]
        found = dataclasses.replace(found, rois=found.rois / step, masks=crops)
        return draw(image, PictureResults(large.picture, *image.shape[:2], found, None), large.class_names)
    colours = visualize.random_colors(_COLOURS)
    for results, numbers in large.rows("preview"):
        order = np.argsort(numbers)  # the best mask lies on top
        crops = [_shrink_mask(results.found.masks[i], step) for i in order]
        chosen = [colours[numbers[i] % _COLOURS] for i in order]
        boxes = results.found.rois[order] / step
        image = visualize.draw_instances(image, boxes, crops, None, chosen, alpha=0.3, show_bbox=False)
    return image


def _shrink_image(large: LargePicture, step: int) -> np.ndarray:
    """The mean of every step x step pixels, read by regions: uint8 [h, w, 3]."""
    pixels = Pixels(large.source, large.config)
    height, width = large.size
    region = math.ceil(_REGION / step) * step
    image = np.zeros((-(-height // step), -(-width // step), 3), np.uint8)
    starts = range(0, height, region)
    for y in tqdm(starts, unit="row of regions", desc="preview", disable=not large.verbose, leave=False):
        for x in range(0, width, region):
            read = utils.viewable(pixels.read(y, x, min(y + region, height), min(x + region, width)))
            missing = [(0, -side % step) for side in read.shape[:2]]
            whole = np.pad(read, [*missing, (0, 0)], mode="edge")
            rows, columns = whole.shape[0] // step, whole.shape[1] // step
            sums = whole.reshape(rows, step, columns, step, 3).sum(axis=(1, 3), dtype=np.uint32)
            image[y // step : y // step + rows, x // step : x // step + columns] = np.rint(sums / step**2)
    return image


def _shrink_mask(crop: Crop, step: int) -> Crop:
    """The pixels of a preview of which a mask covers half, or, if there is none, the one of which it covers most."""
    y, x, mask = crop
    ends = y + mask.shape[0], x + mask.shape[1]
    padded = np.pad(mask, [(y % step, -ends[0] % step), (x % step, -ends[1] % step)])
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    counts = padded.reshape(rows, step, columns, step).sum(axis=(1, 3))
    shrunk = 2 * counts >= step**2
    if not shrunk.any():
        shrunk.flat[counts.argmax()] = True
    return Crop(y // step, x // step, shrunk)

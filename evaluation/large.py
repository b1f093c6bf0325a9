"""Detection in large images: tile by tile, shared by processes, resumed after an interruption, merged at the end.

    rows of tiles ─ detect_rows ─┐
                                 ├ FOLDER/detections/part-<process>.jsonl ─ TiledResults ─ TiledDetections, from the top
    further tiles ─ look_again ──┘

The folder of an image has a line for each row of tiles, with what each tile of the row sees:

    {"row": 3, "evaluation": "3f2a9c01", "tiles": [{"column": 0, "count": 2, "views": [...]}, ...], "checksum": "..."}

Once all rows are there, one process lays further tiles round the objects that no tile sees whole, see tiles.Seams. All
that are laid at once have a line with the starts of their windows instead of columns:

    {"row": null, "evaluation": "3f2a9c01", "tiles": [{"start": [640, 192], "count": 2, "views": [...]}, ...], ...}

A line is written at once when its tiles are done. So a killed process loses at most a row, and what is missing or
damaged is detected again. Whole objects are always made of the lines, and never of what a process still has in its
memory: so the results depend neither on interruptions nor on the number of processes.

FOLDER/evaluation.json says which weights, settings, tiles and file the lines are of. A folder takes one of each.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import runtime
import utils
from config import Config
from data.crops import Crop
from data.images import image_size
from data.regions import Pixels, Source, open_source, source_shape
from data.slide_regions import SUFFIXES as SLIDES
from data.writers.common import counted
from model import MaskRCNN
from tiles import Look, Plan, Tile, TiledDetections, View, detect_views, make_view, merge_views, plan_tiles

from .detect import claim_folder, stored_identity
from .stream import (
    LARGE,
    Span,
    Writer,
    check_evaluation,
    checked_length,
    keep_lines,
    read_values,
    values_bytes,
    whole_lines,
)

############################################################
#  Which images are detected in tiles
############################################################

SIDE = 1024  # of a tile by default, pixels of the image
LARGEST_INPUT = 2048  # side of a tile by default, pixels of the network's input, at most
OVERLAP = 128  # by default, pixels of the image, at least
MOST_TILES = 4  # of the area of so many tiles, an image is still detected in one piece
SHRUNK = 4  # an image whose sides are divided by more than this on the way into the network is worth a hint
FIXED_SCALE = ("pad64", "crop", "none")  # IMAGE_RESIZE_MODE: objects have the same size in images of all sizes


class TileOptions(NamedTuple):
    """What a user says about tiles; None leaves it to the model."""

    tiles: int | str = "auto"  # the side, pixels of the image; "auto": where needs_tiles says so; "off": never
    overlap: int | None = None  # pixels of the image
    scale: float | None = None  # pixels of the network's input a pixel of the image


BY_MODEL = TileOptions()


def tile_sizes(config: Config, options: TileOptions) -> tuple[int, int, float]:
    """tile, overlap and scale as plan_tiles takes them, where the user does not say them by the model.

    The tile has SIDE pixels, or fewer where the model enlarges images, but at least those of the crops that it learned
    from. The overlap is OVERLAP, or twice an ordinary object if that is more, but at most a quarter of the tile. An
    ordinary object is as large as the middle one of RPN_ANCHOR_SCALES.
    """
    scale = options.scale or max(1.0, config.IMAGE_MIN_SCALE)
    is_fixed = config.IMAGE_RESIZE_MODE in ("pad64", "crop")
    crop = config.IMAGE_MIN_DIM / scale if is_fixed else 0  # detection with pad64 keeps the side of the crops here
    tile = options.tiles if isinstance(options.tiles, int) else math.ceil(max(min(SIDE, LARGEST_INPUT / scale), crop))
    anchors = sorted(config.RPN_ANCHOR_SCALES)
    ordinary = math.ceil(anchors[len(anchors) // 2] / scale)
    overlap = min(max(OVERLAP, 2 * ordinary), tile // 4) if options.overlap is None else options.overlap
    return tile, overlap, scale


def needs_tiles(shape: Sequence[int], config: Config, options: TileOptions = BY_MODEL) -> bool:
    """Whether an image is detected in tiles.

    With --tiles N, all images do that are larger than a tile. Else a model that learned at a fixed scale takes tiles
    for images of more than MOST_TILES tiles: it sees the same in them, and needs less memory. Another model sees whole
    photographs at about one size; whether tiles show it what it knows, nobody can tell, so it takes tiles only for
    images that are too large to be read in one piece.

    shape: (H, W, ...) of the image. config: of the model.
    """
    height, width = shape[:2]
    if options.tiles == "off":
        return False
    tile = tile_sizes(config, options)[0]
    if isinstance(options.tiles, int):
        return max(height, width) > tile
    if not is_one_piece(shape):
        return True
    return config.IMAGE_RESIZE_MODE in FIXED_SCALE and height * width > MOST_TILES * tile**2


def is_one_piece(shape: Sequence[int]) -> bool:
    """Whether an image of this shape can be read in one piece, see data/images.py."""
    height, width = shape[:2]
    return height * width <= utils.MAX_IMAGE_PIXELS and max(height, width) <= utils.MAX_IMAGE_SIDE


def shrinking(shape: Sequence[int], config: Config) -> float:
    """What the sides of an image are divided by on the way into the network in one piece; 1 if they are not shrunk."""
    if config.IMAGE_RESIZE_MODE in FIXED_SCALE:
        return 1.0
    return max(1.0, max(shape[:2]) / max(utils.plan_image(shape, config).size))


def picture_shape(path: str | os.PathLike) -> tuple[tuple[int, int] | None, bool]:
    """(height, width) of a picture by its header, and whether it is of a kind that can be read in one piece.

    None for a picture that cannot be read at all.
    """
    with contextlib.suppress(OSError, ValueError):
        return image_size(path, max_pixels=sys.maxsize).shown, True
    with contextlib.suppress(OSError, ValueError):
        return source_shape(path), False
    return None, False


def looks_into_tiles(
    path: str | os.PathLike, config: Config, options: TileOptions
) -> tuple[tuple[int, int] | None, bool]:
    """(height, width) of a picture, None if it cannot be read, and whether it is detected in tiles.

    A picture that can be read by regions only is, unless the user forbids it; so is what looks like one, such as a
    slide without the package that reads it, whose error says what is missing.
    """
    shape, is_whole = picture_shape(path)
    if shape is None:
        return None, options.tiles != "off" and (os.path.isdir(path) or Path(path).suffix.lower() in SLIDES)
    return shape, needs_tiles(shape, config, options) or (not is_whole and options.tiles != "off")


def describe_tiles(shapes: Mapping[str, Sequence[int]], config: Config, options: TileOptions) -> list[str]:
    """What was chosen for the pictures that are detected in tiles, and why: a sentence.

    Without any, none, or a sentence about what the user said of tiles in vain.

    shapes: (H, W, ...) of each, by name. config: of the model.
    """
    if not shapes:
        return unused_options(options)
    name, (height, width, *_) = next(iter(shapes.items()))
    plan = plan_tiles((height, width), config, *tile_sizes(config, options))
    tile, overlap, scale = round(plan.side / plan.scale), round(plan.overlap), plan.scale
    if isinstance(options.tiles, int):
        reason = f"as --tiles {options.tiles} says"
        shrunk = shrinking((height, width), config)
        if options.scale is None and shrunk > 1.5:
            reason += (
                f"; in one piece, the network sees it {shrunk:.1f} times smaller, as with --scale {1 / shrunk:.2g}"
            )
    elif any(map(is_one_piece, shapes.values())):
        reason = f"they have more pixels than {MOST_TILES} tiles; --tiles off detects in one piece"
    else:
        reason = "they are too large to be read in one piece"
    resized = f", scaled by {scale:g}" if scale != 1 else ""
    return [
        f"{counted(len(shapes), 'pictures')} in tiles of {tile} x {tile} pixels that overlap by {overlap}{resized}, "
        f"such as {utils.printable(name)} ({height} x {width}): {reason}"
    ]


def unused_options(options: TileOptions) -> list[str]:
    """A sentence about --overlap and --scale, if they were given and no picture is detected in tiles."""
    given = [name for name in ("overlap", "scale") if getattr(options, name) is not None]
    if not given:
        return []
    why = (
        "--tiles off says so"
        if options.tiles == "off"
        else "none is large enough; --tiles N takes tiles from N pixels on"
    )
    verb = "changes" if len(given) == 1 else "change"
    return [f"{' and '.join(f'--{name}' for name in given)} {verb} nothing, as no picture is detected in tiles: {why}"]


def hint_at_tiles(shapes: Mapping[str, Sequence[int]], config: Config, options: TileOptions) -> list[str]:
    """A sentence if pictures that are detected in one piece are shrunk a lot on the way into the network.

    Arguments: as of describe_tiles.
    """
    factors = {name: shrinking(shape, config) for name, shape in shapes.items()}
    shrunk = {name: factor for name, factor in factors.items() if factor > SHRUNK}
    if not shrunk or options.tiles != "auto":
        return []
    name = max(shrunk, key=shrunk.__getitem__)
    return [
        f"{counted(len(shrunk), 'pictures are')} shrunk more than {SHRUNK} times for the network, such as "
        f"{utils.printable(name)} ({shrunk[name]:.1f} times), and small objects are lost; "
        f"--tiles {min(SIDE, config.IMAGE_MAX_DIM)} detects in tiles, and --scale says how large the network sees the "
        "objects"
    ]


############################################################
#  What is detected
############################################################

SAMPLED_BYTES = 1 << 28  # files up to this are read for their digest; of larger ones samples, so many:
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16
FILE_FACTS = ("file size", "file digest", "height", "width", "bits")  # of an identity: what another file changes


class LargeImage(NamedTuple):
    """An image that is detected in tiles."""

    path: str
    folder: Path  # of its lines
    plan: Plan
    evaluation: str  # the digest that its lines have


def file_facts(path: str | os.PathLike) -> dict[str, Any]:
    """The size of an image, and a digest of its file or folder by which another run knows it again.

    The digest of a file of more than SAMPLED_BYTES is of samples of its contents and of the time of its last change;
    that of a folder is of the names, sizes and times of its files.

    Raises: as open_source; OSError if it cannot be read.
    """
    height, width = source_shape(path)
    size, digest = _digest(path)
    return {"height": height, "width": width, "file size": size, "file digest": digest}


def _digest(path: str | os.PathLike) -> tuple[int, str]:
    """Bytes, and the digest."""
    digest, status = hashlib.sha256(), os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        entries = sorted((str(file.relative_to(path)), file.stat()) for file in Path(path).rglob("*") if file.is_file())
        for name, entry in entries:
            digest.update(f"{name} {entry.st_size} {entry.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return sum(entry.st_size for _, entry in entries), digest.hexdigest()
    with open(path, "rb") as file:
        if status.st_size <= SAMPLED_BYTES:
            return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(str(status.st_mtime_ns).encode())
        for number in range(_SAMPLES):
            file.seek(max(0, status.st_size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return status.st_size, digest.hexdigest()


def claim_image(
    path: str, facts: Mapping[str, Any], folder: Path, identity: Mapping[str, Any], config: Config, options: TileOptions
) -> LargeImage:
    """Reserve a folder for the detection in an image. The first process does it for all.

    If the file has other contents than those that the folder is of, its rows are removed.

    facts: file_facts of the image. identity: what detections depend on but the image and the tiles; its "settings" are
        those of the model. config: of the model.

    Raises: ValueError that names the differences, if the folder is of other weights, settings or tiles; as plan_tiles.
    """
    tile, overlap, scale = tile_sizes(config, options)
    plan = plan_tiles((facts["height"], facts["width"]), config, tile, overlap, scale)
    wanted = {**identity, **facts, "tile": tile, "overlap": overlap, "scale": plan.scale}
    stored = stored_identity(folder) or wanted
    if stored != wanted and {**stored, **{name: wanted[name] for name in FILE_FACTS}} == wanted:
        print(f"detected again, because its file has changed: {utils.printable(path)}")
        keep_lines(folder, [])
        (folder / "evaluation.json").unlink()
    return LargeImage(path, folder, plan, claim_folder(folder, wanted))


############################################################
#  Lines
############################################################


class Seen(NamedTuple):
    """What a tile sees."""

    tile: Tile
    views: list[View]
    count: int  # detections, those without pixels included


Starts = tuple[tuple[int, int], ...]  # of the windows of further tiles, (y, x) in the network's input


class Row(NamedTuple):
    """What a row of tiles sees, or further tiles that are laid at once, by a line."""

    number: int | Starts  # of the row; of further tiles where they start
    evaluation: str
    seen: list[Seen]


def starts_of(tiles: Iterable[Tile]) -> Starts:
    """By which further tiles that are laid at once are known."""
    return tuple(sorted(tile.window[:2] for tile in tiles))


def row_bytes(row: Row, plan: Plan, config: Config) -> bytes:
    """The line of a row. Raises: ValueError for what no row sees, such as a score of NaN."""
    is_row = isinstance(row.number, int)
    tiles = [
        {
            **({"column": tile.column} if is_row else {"start": tile.window[:2]}),
            "count": count,
            "views": [_entry(view) for view in views],
        }
        for tile, views, count in row.seen
    ]
    text = values_bytes({"row": row.number if is_row else None, "evaluation": row.evaluation, "tiles": tiles})
    try:
        read_row(text, plan, config)
    except ValueError as error:
        where = f"row {row.number} of the tiles shows" if is_row else "further tiles show"
        raise ValueError(f"what {where} cannot be stored, because {error}; are the weights damaged?") from None
    return text


def _entry(view: View) -> dict[str, Any]:
    """A view as JSON. What the tile decides, as whether it cuts the view, is left out."""
    return {
        "number": view.number, "class_id": view.class_id, "score": view.score, "mask_iou": view.mask_iou,
        "mask_score": view.mask_score, "box": list(view.box), "y": view.mask.y, "x": view.mask.x,
        "mask": utils.rle_to_json(utils.mask_to_rle(view.mask.mask)),
    }  # fmt: skip


def read_row(text: bytes, plan: Plan, config: Config) -> Row:
    """A row from its line.

    Raises: ValueError that says why the text is none, in words that go on after "line 7: ".
    """
    values = read_values(text)
    try:
        number, seen = values["row"], []
        if set(values) != {"row", "evaluation", "tiles"}:
            raise TypeError
        for entry, tile in zip(values["tiles"], _tiles_of(number, values["tiles"], plan), strict=True):
            views = [_view(tile, each, plan, config) for each in entry["views"]]
            seen.append(Seen(tile, views, int(entry["count"])))
        number = starts_of(tile for tile, _, _ in seen) if number is None else number
    except (TypeError, KeyError, AttributeError, OverflowError):
        raise ValueError("it is not what a row of tiles sees") from None
    return Row(number, values["evaluation"], seen)


def _tiles_of(row: Any, entries: list[dict[str, Any]], plan: Plan) -> list[Tile]:
    """The tiles of a line. row: its number; None: further tiles."""
    if row is None:
        starts = [tuple(entry["start"]) for entry in entries]
        if any(type(y) is not int or type(x) is not int or min(y, x) < 0 for y, x in starts):
            raise TypeError
        if len(set(starts)) != len(starts) or any(
            y >= plan.input_shape[0] or x >= plan.input_shape[1] for y, x in starts
        ):
            raise ValueError("a tile lies outside of the image, or there twice")
        return [plan.further_tile(start) for start in starts]
    if type(row) is not int or not 0 <= row < plan.shape[0]:
        raise TypeError
    if sorted(entry["column"] for entry in entries) != list(range(plan.shape[1])):
        raise ValueError("it has not each tile of its row once")
    return [plan.tile(row, entry["column"]) for entry in entries]


def _view(tile: Tile, entry: dict[str, Any], plan: Plan, config: Config) -> View:
    """A view from JSON. Sizes are checked before the mask is made."""
    height, width = entry["mask"]["size"]
    places = (entry["number"], entry["class_id"], entry["y"], entry["x"], height, width)
    numbers = [*entry["box"], entry["score"], entry["mask_score"]]
    numbers += [entry["mask_iou"]] if config.USE_MASKIOU_HEAD else []
    if any(type(place) is not int for place in places) or len(entry["box"]) != 4:
        raise TypeError
    if not all(type(number) in (int, float) and abs(number) < LARGE for number in numbers):  # NaN is not below it
        raise ValueError("a score or a box is not finite, or far too large")
    if not 0 < entry["class_id"] < config.NUM_CLASSES:
        raise ValueError("a class is none of the model's")
    y1, x1, y2, x2 = tile.region
    y, x = entry["y"], entry["x"]
    if min(y - y1, x - x1, y2 - y - height, x2 - x - width) < 0 or min(height, width) < 1:
        raise ValueError("a mask lies outside of its tile")
    try:
        mask = utils.rle_to_mask(entry["mask"])
    except ValueError:
        raise ValueError("the run-length code of a mask does not fit its size") from None
    names = ("class_id", "score", "mask_iou", "mask_score")
    view = make_view(
        tile, entry["number"], plan.image_shape, entry["box"], Crop(y, x, mask), *(entry[name] for name in names)
    )
    if view is None:
        raise ValueError("a mask has no pixels")
    return view


def find_rows(image: LargeImage, config: Config) -> tuple[dict[int | Starts, Span], list[tuple[Span, str]]]:
    """The place of each row that has an intact line, those of further tiles too, and the lines that cannot be used.

    The latter with the reasons.

    Raises: ValueError for an intact line of another evaluation.
    """
    spans: dict[int | Starts, Span] = {}
    digests: dict[int | Starts, bytes] = {}
    problems: list[tuple[Span, str]] = []
    contradicted = set()
    for span, text in whole_lines(image.folder):
        try:
            row = read_row(checked_length(text), image.plan, config)
        except ValueError as error:
            problems.append((span, str(error)))
            continue
        check_evaluation(span, row.evaluation, image.evaluation)
        digest = hashlib.sha256(text).digest()
        if row.number not in spans:
            spans[row.number], digests[row.number] = span, digest
        elif digests[row.number] != digest:
            contradicted.add(row.number)
            what = f"row {row.number} of the tiles has" if isinstance(row.number, int) else "these further tiles have"
            problems.append((span, f"{what} other results in another line"))
    return {number: span for number, span in spans.items() if number not in contradicted}, problems


############################################################
#  Detection
############################################################


class Job(NamedTuple):
    """A row of tiles of an image that has to be detected."""

    image: LargeImage
    row: int


def remaining_rows(image: LargeImage, config: Config) -> tuple[list[Job], list[tuple[Span, str]]]:
    """The rows of an image without an intact line; lines that cannot be used, which are removed, with the reasons.

    Raises: as find_rows.
    """
    spans, problems = find_rows(image, config)
    keep_lines(image.folder, list(spans.values()))
    return [Job(image, row) for row in range(image.plan.shape[0]) if row not in spans], problems


def detect_rows(
    model: MaskRCNN, jobs: Sequence[Job], config: Config, dtype: str = "float32", verbose: bool = True
) -> dict[str, str]:
    """Detect in the rows of this process, and write each into its image's folder as soon as it is done.

    jobs: those of an image follow each other. config: the model's, with the BIT_DEPTH by which all files are read.
    verbose: show progress, in the first process.

    Returns: for the path of each image that cannot be read the reason. Its other rows are left out.
    Raises: OSError that names the part if the disk is full.
    """
    failures: dict[str, str] = {}
    total = sum(job.image.plan.shape[1] for job in jobs)
    silent = not verbose or runtime.rank() > 0 or not jobs
    with tqdm(total=total, unit="tile", desc="detecting in tiles", disable=silent) as progress:
        for image, group in itertools.groupby(jobs, key=itemgetter(0)):
            rows = [job.row for job in group]
            writer = Writer(image.folder)
            try:
                for row in _each_row(model, image, rows, config, dtype, failures, progress):
                    writer.append(row_bytes(row, image.plan, config))
            finally:
                writer.close()
    return failures


def _each_row(
    model: MaskRCNN, image: LargeImage, rows: Sequence[int], config: Config, dtype: str, failures: dict[str, str],
    progress: tqdm,
) -> Iterator[Row]:  # fmt: skip
    """What each of some rows sees, until the image cannot be read any further."""
    try:
        with _open_again(image, config) as source:
            pixels = Pixels(source, config)
            for number in rows:
                seen = []
                for entry in detect_views(model, pixels, image.plan, image.plan.row(number), dtype):
                    seen.append(Seen(*entry))
                    progress.update()
                yield Row(number, image.evaluation, seen)
    except (OSError, ValueError) as error:
        failures[image.path] = str(error) or type(error).__name__


def _open_again(image: LargeImage, config: Config) -> Source:
    """Raises: as open_source; ValueError if the file has another size than before."""
    source = open_source(image.path, config.IMAGE_CHANNEL_COUNT)
    if tuple(source.shape[:2]) != image.plan.image_shape:
        source.close()
        raise ValueError(f"image {image.path} has another size than before; does another program write it?")
    return source


############################################################
#  Results
############################################################


class _PackedMask(NamedTuple):
    """A mask in little memory."""

    y: int
    x: int
    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, crop: Crop) -> "_PackedMask":
        return cls(crop.y, crop.x, *crop.mask.shape, zlib.compress(np.packbits(crop.mask).tobytes(), 1))

    def unpacked(self) -> Crop:
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        mask = np.unpackbits(bits, count=self.height * self.width).view(bool)
        return Crop(self.y, self.x, mask.reshape(self.height, self.width))


class TiledResults:
    """The objects of an image whose rows are all detected, from the top, as often as needed.

    The first iteration makes them of the lines. It keeps them packed, about 400 bytes each, for the others.
    """

    def __init__(self, image: LargeImage, config: Config, look: Look | None = None) -> None:
        """config: of the model. look: detects in further tiles that have no line yet, as look_again does.

        Raises: ValueError if rows are missing, or a line is of another evaluation.
        """
        self.image, self.config, self.look = image, config, look
        self.spans, _ = find_rows(image, config)
        self._packed: list[tuple[TiledDetections, list[_PackedMask]]] | None = None
        missing = [str(row) for row in range(image.plan.shape[0]) if row not in self.spans]
        if missing:
            raise ValueError(
                f"{image.folder} lacks {len(missing)} rows of tiles of {utils.printable(image.path)}: "
                f"{utils.listed(missing, 5)}; do all processes write into one folder, on a disk that they share?"
            )

    def __iter__(self) -> Iterator[TiledDetections]:
        """For each row of tiles the objects that no later row can change, highest score of the class first.

        Raises: ValueError if further tiles are needed that have no line, and there is no `look`.
        """
        if self._packed is not None:
            for found, masks in self._packed:
                yield replace(found, masks=[mask.unpacked() for mask in masks])
            return
        packed, rows = [], map(self._read, range(self.image.plan.shape[0]))
        for found in merge_views(self.image.plan, rows, self.config, self._look):
            packed.append((replace(found, masks=[]), list(map(_PackedMask.of, found.masks))))
            yield found
        self._packed = packed

    def _read(self, row: int | Starts) -> Iterable[Seen]:
        span = self.spans[row]
        with runtime.open_own(span.path, "rb") as file:
            file.seek(span.start)
            return read_row(file.read(span.end - span.start), self.image.plan, self.config).seen

    def _look(self, tiles: list[Tile]) -> Iterable[Seen]:
        starts = starts_of(tiles)
        if starts in self.spans:
            return self._read(starts)
        if self.look is None:
            raise ValueError(
                f"{self.image.folder} lacks what {len(tiles)} further tiles of {utils.printable(self.image.path)} "
                "show; were its lines changed after the detection? Detect again into the same folder"
            )
        return [Seen(*entry) for entry in self.look(tiles)]


############################################################
#  Further tiles
############################################################


def look_again(
    model: MaskRCNN, images: Sequence[LargeImage], config: Config, dtype: str = "float32", verbose: bool = True
) -> dict[str, str]:
    """Detect in the further tiles of some images whose rows are all detected, and write them into their folders.

    Arguments, returns, raises: as of detect_rows.
    """
    failures: dict[str, str] = {}
    silent = not verbose or runtime.rank() > 0
    for image in images:
        try:
            with contextlib.ExitStack() as stack:
                results = TiledResults(image, config, _looking(model, image, config, dtype, stack))
                rows = image.plan.shape[0]
                for _ in tqdm(results, "joining", rows, leave=False, unit="row", disable=silent):
                    pass
        except (OSError, ValueError) as error:
            failures[image.path] = str(error) or type(error).__name__
    return failures


def _looking(model: MaskRCNN, image: LargeImage, config: Config, dtype: str, stack: contextlib.ExitStack) -> Look:
    """Detects in further tiles, and writes their line. The image is opened once it is needed; `stack` closes it."""

    @functools.cache
    def pixels() -> Pixels:
        return Pixels(stack.enter_context(_open_again(image, config)), config)

    def look(tiles: list[Tile]) -> list[Seen]:
        seen = [Seen(*entry) for entry in detect_views(model, pixels(), image.plan, tiles, dtype)]
        writer = Writer(image.folder)
        try:
            writer.append(row_bytes(Row(starts_of(tiles), image.evaluation, seen), image.plan, config))
        finally:
            writer.close()
        return seen

    return look

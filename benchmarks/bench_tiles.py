"""Large images: how well tiles agree with detection in one piece, beside others' rules, and what tiles cost.

    python benchmarks/bench_tiles.py [--part NAME ...] [--seeds N ...] [--images DIR] [--quick] [--output DIR]

    nuclei    mosaics of real images of cell nuclei, 2,048 x 2,048 pixels; tiles of 512
    shapes    drawn shapes that are larger than the overlap, tiles of 256, of 128 and of 96
    perfect   the rule of tiles.py alone: 3,000 ellipses that each tile sees exactly, in 10,000 x 10,000 pixels
    mosaic    detect_tiled() of mosaics of nuclei, from 1 to 16 megapixels
    sparse    detect_tiled() of TIFFs from 1 to 1,600 megapixels, read by regions; most of them is black
    objects   the rule of tiles.py alone, from 300 to 20,000 ellipses in 10,000 x 10,000 pixels

Nuclei and shapes: one-piece detection by the model of that name is the reference; its limits of proposals and
detections grow with the area, so that they cut nothing off. Objects of a class score of 0.5 count on both sides.
Reference and tiles are matched one to one within a class, the most similar masks first. For each rule:

    objects         that it finds
    0.95, 0.9, 0.5  share of the reference's objects that it finds with a mask of this IoU
    new             share of its objects without counterpart: no object of the reference has an IoU of 0.5 with it
    doubles         share of its objects whose counterpart is another object's already

"without looks" is tiles.py without further tiles, so that what no tile sees whole is joined from pieces. seam_rules.py
has the rules of others. "best view" of nuclei is no rule: it knows which view is the most similar to the
reference, so that no rule that chooses can do better. Of shapes, only those count that no tile sees whole:

    truth           share of the drawn shapes that have an IoU of 0.9 with an object of the same class
    right           the same, of the shapes of which that is true of the reference
    wrong           share of the objects that have an IoU of 0.5 with no drawn shape of their class

The line "one piece" has these of the reference. The model shapes knows shapes of up to 95 pixels, and two tiles of
plan_tiles() share 64 at least. So that shapes are larger than the overlap by more, and some are as large as a tile,
there are also tiles of 96 that share 32: so their coarsest features, those of the largest anchors, differ.

Mosaic, sparse and objects are curves: seconds, and megabytes at the peak beyond what was in use before, while freed
memory goes back to the system. Each part has a process of its own. The last line printed is JSON; DIR gets it, and the
curves as a picture.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import tifffile
import torch
from pycocotools import mask as coco_mask

import cli
import tiles
import utils
from benchmarks import bench_growth, machine, seam_rules
from benchmarks.make_mosaic import IMAGES, Scene, make_mosaic, make_shapes
from benchmarks.perfect_detector import USUAL, Check, Ellipses, Kind
from config import Config
from data.crops import bounds
from data.regions import Pixels, as_source, open_source
from detections import ImageDetections
from model import MaskRCNN
from roialign.paste import crop_to_rle
from weights.load import load_model

LEAST_SCORE = 0.5

############################################################
#  Agreement with one piece
############################################################


def detect_whole(model: MaskRCNN, image: np.ndarray, tile: int) -> ImageDetections:
    """What one piece shows. tile: side of the tiles; the limits are larger by as much as the image has more pixels."""
    factor = max(1, round(image.shape[0] * image.shape[1] / tile**2))
    names = ("PRE_NMS_LIMIT", "POST_NMS_ROIS_INFERENCE", "DETECTION_MAX_INSTANCES")
    limits = {name: factor * getattr(model.config, name) for name in names}
    settings = {**limits, "IMAGE_RESIZE_MODE": "pad64"}  # which does not shrink
    whole = MaskRCNN.from_checkpoint(model.to_checkpoint(), model.device, **settings)
    (result,) = whole.detect([image], masks="rle")
    return good(ImageDetections.of(result))


def good(detections: ImageDetections) -> ImageDetections:
    return detections[detections.scores >= LEAST_SCORE]


def class_ious(reference: ImageDetections, found: ImageDetections) -> np.ndarray:
    """The IoU of the masks of two sets of detections, [N, M]; 0 between classes."""
    ious = np.zeros((len(reference), len(found)))
    if ious.size:
        ious[:] = coco_mask.iou(reference.masks, found.masks, [0] * len(found))
    return ious * (reference.class_ids[:, None] == found.class_ids)


def agreement(reference: ImageDetections, found: ImageDetections, counted: np.ndarray | None = None) -> dict[str, Any]:
    """The numbers of the docstring, of detections with run-length codes.

    counted: bool [N], the objects of the reference that the shares are of; None: all.
    """
    ious = class_ious(reference, found)
    best, matched = np.zeros(len(reference)), np.zeros(len(found), bool)
    for index in np.argsort(-ious, axis=None, kind="stable").tolist():
        i, j = divmod(index, len(found))
        if ious[i, j] < 0.5:
            break
        if best[i] == 0 and not matched[j]:
            best[i], matched[j] = ious[i, j], True
    has_counterpart = (ious >= 0.5).any(axis=0)
    best = best if counted is None else best[counted]
    count, total = max(len(best), 1), max(len(found), 1)
    return {
        "objects": len(found),
        **{str(least): float((best >= least).sum() / count) for least in (0.95, 0.9, 0.5)},
        "new": float((~has_counterpart).sum() / total),
        "doubles": float((has_counterpart & ~matched).sum() / total),
    }


class Seen(NamedTuple):
    """What all tiles of an image see."""

    plan: tiles.Plan
    views: list[tuple[tiles.Tile, list[tiles.View], int]]  # as detect_views() gives them
    look: tiles.Look  # detects in further tiles


def see(model: MaskRCNN, image: np.ndarray, plan: tiles.Plan) -> Seen:
    look = functools.partial(tiles.detect_views, model, Pixels(as_source(image), model.config), plan)
    return Seen(plan, [seen for row in plan.rows() for seen in look(row)], look)


def merge(seen: Seen, limit: int, looks: bool) -> ImageDetections:
    """By tiles.py. limit: DETECTION_MAX_INSTANCES. looks: with further tiles."""
    seams = tiles.Seams(seen.plan, limit=limit, look=seen.look if looks else None)
    for place, views, count in seen.views:
        seams.add(place, views, count)
    found = seams.finish(seen.plan.shape[0] - 1)
    return good(found.to_image_detections(seen.plan.image_shape))


def by_each_rule(seen: Seen, limit: int) -> Iterator[tuple[str, ImageDetections]]:
    """The objects by tiles.py and by the rules of others, by their names."""
    yield "tiles.py", merge(seen, limit, looks=True)
    yield "without looks", merge(seen, limit, looks=False)
    every = tiles.detections_of([[view] for _, views, _ in seen.views for view in views if view.score >= LEAST_SCORE])
    shape = seen.plan.image_shape
    for name, rule in seam_rules.usable_rules(every, shape):
        yield name, good(rule(every, shape))


def print_row(row: dict[str, Any]) -> None:
    names = ("0.95", "0.9", "0.5", "new", "doubles", "truth", "right", "wrong")
    shares = "  ".join(f"{name} {100 * row[name]:5.1f} %" for name in names if row.get(name) is not None)
    where = f"seed {row['seed']} overlap {row['overlap']:4} of {row.get('tile', '')}"
    print(f"{where} {row['rule']:16} {row['objects']:5} objects  {shares}", file=sys.stderr, flush=True)


def nuclei(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of each seed, overlap and rule."""
    side, tile, overlaps = (256, 128, [32]) if arguments.quick else (2048, 512, [64, 128])
    model, rows = load_model("nuclei", "cpu"), []
    for seed in arguments.seeds:
        mosaic = make_mosaic(utils.image_files(arguments.images), side, side, seed)
        reference = detect_whole(model, mosaic, tile)
        for overlap in overlaps:
            seen = see(model, mosaic, tiles.plan_tiles(mosaic.shape, model.config, tile, overlap))
            case = {"seed": seed, "overlap": overlap, "reference": len(reference)}
            for rule, found in by_each_rule(seen, model.config.DETECTION_MAX_INSTANCES):
                rows.append({**case, "rule": rule, **agreement(reference, found)})
                print_row(rows[-1])
            every = tiles.detections_of([[view] for _, views, _ in seen.views for view in views])
            best = class_ious(reference, every.to_image_detections(mosaic.shape)).max(axis=1, initial=0)
            shares = {str(least): float((best >= least).mean()) for least in (0.95, 0.9, 0.5)}
            rows.append(
                {**case, "rule": "best view", "objects": len(reference), **shares, "new": None, "doubles": None}
            )
            print_row(rows[-1])
    return {"side": side, "tile": tile, "rows": rows}


############################################################
#  Objects larger than the overlap
############################################################


class Setting(NamedTuple):
    """Sizes in pixels."""

    least: float  # of the shapes
    most: float
    tile: int
    overlap: int
    side: int  # of the image


SETTINGS = Setting(66, 95, 256, 64, 2048), Setting(66, 95, 128, 64, 768), Setting(45, 90, 96, 32, 768)
QUICK_SIDE = 256


def plan_of(setting: Setting, shape: Sequence[int], config: Config) -> tiles.Plan:
    """Of tiles that may start anywhere."""
    plan = tiles.plan_tiles(shape, config, tile=128, overlap=64)
    return replace(plan, side=setting.tile, step=setting.tile - setting.overlap)


def unseen(boxes: np.ndarray, plan: tiles.Plan) -> np.ndarray:
    """bool [N], the boxes that no tile sees whole."""
    places = [tile.region for row in plan.rows() for tile in row]
    depths = [max(tiles.depth_in(box, region, plan.image_shape) for region in places) for box in boxes.tolist()]
    return np.array(depths) < tiles.CUT


def drawn(scene: Scene) -> ImageDetections:
    """The objects of a scene as detections."""
    ones = np.ones(len(scene.masks), np.float32)
    codes = [crop_to_rle(*mask, scene.image.shape[:2]) for mask in scene.masks]
    return ImageDetections(bounds(scene.masks), np.array(scene.class_ids, np.int32), ones, None, ones, codes)


def shapes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of each setting, seed and rule."""
    model, rows = load_model("shapes", "cpu"), []
    for setting, seed in itertools.product(SETTINGS, arguments.seeds):
        setting = setting._replace(side=QUICK_SIDE) if arguments.quick else setting
        scene = make_shapes(setting.side, setting.side, setting.least, setting.most, seed)
        reference, truth = detect_whole(model, scene.image, 128), drawn(scene)
        seen = see(model, scene.image, plan_of(setting, scene.image.shape, model.config))
        large, large_truth = unseen(reference.rois, seen.plan), unseen(truth.rois, seen.plan)
        right = large_truth & (class_ious(truth, reference).max(axis=1, initial=0) >= 0.9)
        case = {"seed": seed, **setting._asdict(), "reference": int(large.sum()), "drawn": int(large_truth.sum())}
        results = [("one piece", reference), *by_each_rule(seen, model.config.DETECTION_MAX_INSTANCES)]
        for rule, found in results:
            ious = class_ious(truth, found)
            is_found = ious.max(axis=1, initial=0) >= 0.9
            shares = {"truth": is_found[large_truth], "right": is_found[right], "wrong": (ious < 0.5).all(axis=0)}
            means = {name: float(values.mean()) if len(values) else None for name, values in shares.items()}
            rows.append(
                {**case, "rule": rule, **agreement(reference, found, large), **means, "right_of": int(right.sum())}
            )
            print_row(rows[-1])
    return {"rows": rows}


############################################################
#  The rule alone
############################################################


def perfect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ellipses that each tile sees exactly: how many come out once and exactly, and what that costs."""
    kinds = [Kind(30, 8, 60), Kind(2, 200, 400)] if arguments.quick else USUAL
    ellipses = Ellipses(1500 if arguments.quick else 10_000, kinds)
    seams, check, most, joined, seconds = seams_of(ellipses), Check(ellipses), 0, 0, 0.0
    for row in seams.plan.rows():
        for tile in row:
            views = ellipses.views(tile)
            start = time.process_time()
            seams.add(tile, views)
            seconds += time.process_time() - start
        most = max(most, len(seams))
        start = time.process_time()
        found = seams.finish(row[0].row)
        seconds += time.process_time() - start
        joined += int((found.pieces > 1).sum())
        check.add(found)
    facts = {"objects": check.count, "once": check.once, "wrong": check.wrong, "joined": joined, "views": most}
    facts |= {"merging_s": seconds, "peak_mb": machine.resident_mb(peak=True)}
    print(f"perfect: {facts}", file=sys.stderr)
    return facts


def seams_of(ellipses: Ellipses) -> tiles.Seams:
    """For an image of ellipses, with tiles of 1024 and an overlap of 160."""
    config = load_model("shapes", "cpu").config  # whose strides are the usual ones
    plan = tiles.plan_tiles(ellipses.image_shape, config, tile=1024, overlap=160)
    return tiles.Seams(plan, look=ellipses.look)


def objects(count: int) -> Callable[[], dict[str, int]]:
    """Merging of what tiles see of so many small ellipses and a few large ones. What they see is made before."""
    ellipses = Ellipses(10_000, [Kind(count - count // 150, 8, 20), Kind(count // 150, 200, 900)])
    seams = seams_of(ellipses)
    rows = [[(tile, ellipses.views(tile)) for tile in row] for row in seams.plan.rows()]

    def run() -> dict[str, int]:
        found = 0
        for number, row in enumerate(rows):
            for tile, views in row:
                seams.add(tile, views)
            found += len(seams.finish(number))
        return {"objects": found, "views": sum(len(views) for row in rows for _, views in row)}

    return run


############################################################
#  Time and memory
############################################################

TILE = 1024
PATCH = 512  # side of the parts of a sparse image that are not black, pixels


def detect(source: Any, scale: float | None = None) -> Callable[[], dict[str, int]]:
    """detect_tiled() of an image, one tile at a time, which drops what it finds, row by row."""
    model = load_model("nuclei", "cpu", IMAGES_PER_GPU=1)
    return lambda: {"objects": sum(map(len, tiles.detect_tiled(model, source, tile=TILE, scale=scale)))}


def write_sparse(path: Path, side: int, images: Sequence[Path]) -> None:
    """A TIFF in tiles of PATCH, of which 32 in 100 megapixels have nuclei, at most 128; the others are not stored."""
    columns = -(-side // PATCH)
    rng = np.random.default_rng(side)
    count = min(columns**2, max(4, min(128, round(32 * side**2 / 1e8))))
    filled = {0, *(1 + rng.choice(columns**2 - 1, count - 1, replace=False)).tolist()}  # tifffile looks at the first
    mosaic = make_mosaic(images, 4 * PATCH, 4 * PATCH, seed=0)
    patches = [mosaic[y : y + PATCH, x : x + PATCH] for y in range(0, 2048, PATCH) for x in range(0, 2048, PATCH)]
    places = (patches[i % len(patches)] if i in filled else None for i in range(columns**2))
    tifffile.imwrite(
        path,
        places,
        bigtiff=True,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(PATCH, PATCH),
        photometric="rgb",
        compression="zlib",
    )


def area_of(side: int) -> float:
    return side**2 / 1e6


class Curve(NamedTuple):
    """What is measured at several values."""

    label: str
    values: Sequence[int]
    quick: Sequence[int]
    size_of: Callable[[int], float]  # the value on the picture's axis


CURVES = {
    "mosaic": Curve("megapixels", (1024, 2048, 3072, 4096), (100, 200), area_of),
    "sparse": Curve("megapixels", (1024, 2048, 4096, 10_000, 20_000, 40_000), (300, 700), area_of),
    "objects": Curve("objects", (300, 1000, 3000, 10_000, 20_000), (150, 300), float),
}


def curve(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of each value: value, size, ms, MB beyond what was in use before, MB in all, and what the call says."""
    os.environ["MASKSCORING_KEEP_MEMORY"] = "0"
    images, rows = utils.image_files(arguments.images) if name != "objects" else [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        for value in CURVES[name].quick if arguments.quick else CURVES[name].values:
            if name == "objects":
                run = objects(value)
            elif name == "mosaic":
                run = detect(make_mosaic(images, value, value))
            else:
                path = Path(folder) / f"{value}.tif"
                write_sparse(path, value, images)
                run = detect(files.enter_context(open_source(path)), scale=1)
            peak = machine.Peak(trim=True)
            start = time.perf_counter()
            facts = run()
            ms = 1e3 * (time.perf_counter() - start)
            row = {"value": value, "size": CURVES[name].size_of(value), "ms": ms, "mb": peak.megabytes()}
            rows.append({**row, "mb_in_all": machine.resident_mb(peak=True), **facts})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


############################################################
#  Command line
############################################################

PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {"nuclei": nuclei, "shapes": shapes, "perfect": perfect}
NAMES = (*PARTS, *CURVES)


def build_parser() -> cli.Parser:
    parser = machine.make_parser("bench_tiles.py", __doc__, quick="small images", threads=True, output="DIR")
    parser.add_argument("--part", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    seed = cli.whole_number(0)
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--images", type=Path, default=IMAGES, metavar="DIR", help=f"folder of images; default: {IMAGES}"
    )
    parser.add_argument("--run", choices=NAMES, help=argparse.SUPPRESS)
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if name := arguments.run:
        print(json.dumps(PARTS[name](arguments) if name in PARTS else curve(name, arguments)))
        return
    words = [
        "--threads",
        str(torch.get_num_threads()),
        "--images",
        str(arguments.images),
        *["--quick"] * arguments.quick,
    ]
    words += ["--seeds", *map(str, arguments.seeds)]
    results = {name: bench_growth.in_process(__file__, ["--run", name, *words]) for name in arguments.part}
    curves = {name: rows for name, rows in results.items() if name in CURVES}
    labels = {name: CURVES[name].label for name in curves}
    for name, rows in curves.items():
        bench_growth.print_table(name, labels[name], rows)
    parts = {name: facts for name, facts in results.items() if name in PARTS}
    facts = {**machine.describe(), "quick": arguments.quick, **parts, "labels": labels, "curves": curves}
    facts["slopes"] = bench_growth.slopes(curves)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        if curves:
            bench_growth.draw(curves, labels, arguments.output / "tiles.png")
    machine.finish(facts, arguments.output / "tiles.json" if arguments.output else None)


if __name__ == "__main__":
    sys.exit(cli.run("bench_tiles.py", lambda: main(build_parser().parse_args())))

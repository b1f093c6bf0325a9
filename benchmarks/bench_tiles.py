"""How well detection in tiles agrees with detection in one piece, on a mosaic of real images of cell nuclei.

    python benchmarks/bench_tiles.py [--side PIXELS] [--seed N] [--tile PIXELS] [--overlap PIXELS ...] [--quick]

One-piece detection of the mosaic by the model nuclei is the reference; its limits of proposals and detections grow with
the area, so that they cut nothing off. Objects of a class score of 0.5 count on both sides. Reference and tiles are
matched one to one, the most similar masks first. Printed for each overlap:

    objects      that the tiles find
    0.95, 0.5    share of the reference's objects that are found with a mask of this IoU
    new          share of the found objects without counterpart: no object of the reference has an IoU of 0.5 with it
    doubles      share of the found objects whose counterpart is another object's already
    joined       objects that were joined from pieces
    views        the most views in memory at once

"no rule" takes all detections of all tiles, "box NMS" suppresses these by boxes of IoU 0.5, as most programs do. The
last line printed is JSON.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from pycocotools import mask as coco_mask

import cli
import tiles
import utils
from benchmarks import machine
from benchmarks.make_mosaic import IMAGES, SIDE, make_mosaic
from detections import ImageDetections
from model import MaskRCNN
from nms import nms
from weights.load import load_model

LEAST_SCORE = 0.5


def detect_whole(model: MaskRCNN, mosaic: np.ndarray, side: int) -> ImageDetections:
    """What one piece shows. side: of the tiles; the limits are so many times larger as the mosaic has more pixels."""
    factor = max(1, round(mosaic.shape[0] * mosaic.shape[1] / side**2))
    names = ("PRE_NMS_LIMIT", "POST_NMS_ROIS_INFERENCE", "DETECTION_MAX_INSTANCES")
    limits = {name: factor * getattr(model.config, name) for name in names}
    whole = MaskRCNN.from_checkpoint(model.to_checkpoint(), model.device, **limits)
    (result,) = whole.detect([mosaic], masks="rle")
    return _good(ImageDetections.of(result))


def _good(detections: ImageDetections) -> ImageDetections:
    return detections[detections.scores >= LEAST_SCORE]


def agreement(reference: ImageDetections, found: ImageDetections) -> dict[str, float]:
    """The numbers of the docstring, of detections with run-length codes and of one class."""
    ious = np.zeros((len(reference), len(found)))
    if ious.size:
        ious[:] = coco_mask.iou(reference.masks, found.masks, [0] * len(found))
    best, matched = np.zeros(len(reference)), np.zeros(len(found), bool)
    for index in np.argsort(-ious, axis=None, kind="stable").tolist():
        i, j = divmod(index, len(found))
        if ious[i, j] < 0.5:
            break
        if best[i] == 0 and not matched[j]:
            best[i], matched[j] = ious[i, j], True
    has_counterpart = (ious >= 0.5).any(axis=0)
    count, total = max(len(reference), 1), max(len(found), 1)
    return {
        "objects": len(found),
        "0.95": float((best >= 0.95).sum() / count),
        "0.5": float((best >= 0.5).sum() / count),
        "new": float((~has_counterpart).sum() / total),
        "doubles": float((has_counterpart & ~matched).sum() / total),
    }


def detect_in_tiles(model: MaskRCNN, mosaic: np.ndarray, tile: int, overlap: int) -> dict[str, dict[str, Any]]:
    """By the name of a rule: the detections, and what else is known of the run."""
    source = tiles.as_source(mosaic)
    plan = tiles.plan_tiles(source.shape, model.config, tile, overlap)
    seams = tiles.Seams(plan, limit=model.config.DETECTION_MAX_INSTANCES)
    pixels = tiles.Pixels(source, model.config)
    parts, every, most, merging = [], [], 0, 0.0
    for row in plan.rows():
        for place, views, count in tiles.detect_views(model, pixels, plan, row):
            start = time.process_time()
            seams.add(place, views, count)
            merging += time.process_time() - start
            every += views
        start = time.process_time()
        most = max(most, len(seams))
        parts.append(seams.finish(row[0].row))
        merging += time.process_time() - start
    found = tiles.TiledDetections.cat(parts)
    joined = int((found.pieces > 1).sum())
    facts = {"joined": joined, "views": most, "merging_s": merging, "tiles": plan.shape[0] * plan.shape[1]}
    alone = tiles.detections_of([[view] for view in every])
    order = nms(torch.from_numpy(alone.rois), torch.from_numpy(alone.scores), 0.5).numpy()
    found, alone, kept = (part.to_image_detections(mosaic.shape) for part in (found, alone, alone[order]))
    return {
        "tiles.py": {"found": found, **facts},
        "box NMS": {"found": kept},
        "no rule": {"found": alone},
    }


def print_line(overlap: int, rule: str, row: dict[str, float]) -> None:
    shares = " ".join(f"{100 * row[name]:8.1f} %" for name in ("0.95", "0.5", "new", "doubles"))
    print(f"{overlap:7} {rule:9} {row['objects']:8} {shares} {row.get('joined', ''):>8} {row.get('views', ''):>8}")


def build_parser() -> cli.Parser:
    parser = machine.make_parser("bench_tiles.py", __doc__, quick="a mosaic of 256 x 256, tiles of 128", threads=True)
    whole = cli.whole_number(1)
    parser.add_argument("--side", type=whole, default=SIDE, metavar="PIXELS", help=f"of the mosaic; default: {SIDE}")
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="of the mosaic; default: 0")
    parser.add_argument(
        "--images", type=Path, default=IMAGES, metavar="DIR", help=f"folder of images; default: {IMAGES}"
    )
    parser.add_argument("--tile", type=whole, default=512, metavar="PIXELS", help="default: 512")
    parser.add_argument(
        "--overlap", type=whole, nargs="+", default=[64, 96, 128], metavar="PIXELS", help="default: 64 96 128"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    side, tile, overlaps = (256, 128, [32]) if arguments.quick else (arguments.side, arguments.tile, arguments.overlap)
    mosaic = make_mosaic(utils.image_files(arguments.images), side, side, arguments.seed)
    model = load_model("nuclei", "cpu")
    reference = detect_whole(model, mosaic, tile)
    print(f"mosaic of {side} x {side}, tiles of {tile}; in one piece {len(reference)} objects")
    print("overlap rule       objects       0.95        0.5        new    doubles   joined    views")
    rows: list[dict[str, Any]] = []
    for overlap in overlaps:
        for rule, facts in detect_in_tiles(model, mosaic, tile, overlap).items():
            numbers = agreement(reference, _good(facts.pop("found")))
            rows.append({"overlap": overlap, "rule": rule, **numbers, **facts})
            print_line(overlap, rule, rows[-1])
    settings = {"side": side, "seed": arguments.seed, "tile": tile, "reference": len(reference)}
    machine.finish({**machine.describe(), **settings, "quick": arguments.quick, "rows": rows}, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    return cli.run("bench_tiles.py", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""How long evaluation takes after the network: masks, run-length codes, COCOeval, and reading annotations.

    python benchmarks/bench_eval.py --threads 2                 5,000 images x 100 detections, made up
    python benchmarks/bench_eval.py --quick                     a few, to see that it runs

The same steps are also done the plain pycocotools way, as torchvision's reference scripts have it: each mask is pasted
into an image of floats, all of them are stacked, compared with 0.5 and encoded one by one; then loadRes and COCOeval,
for boxes and for each of the three rankings of masks. That takes half an hour at full size: the plain masks are made
for --plain-images of the images, and their time is multiplied. COCOeval has all of them.

Prints a table and one line of JSON.
"""

import contextlib
import copy
import gc
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import roialign
import utils
from benchmarks import machine, synthetic_coco
from data.coco_files import COCO_CATEGORIES
from evaluation.detect import write_submission
from evaluation.metrics import RANKINGS, RankedEvaluation, as_coco, evaluate_results, summary
from evaluation.names import Metric
from evaluation.report import write_report
from evaluation.results import to_results

CATEGORIES = sorted(COCO_CATEGORIES)
OBJECTS = 7.27  # of an image of COCO, on average
MASK_SIDE = 28

############################################################
#  Detections of a network that is not there
############################################################


class Found(NamedTuple):
    """What the network would hand on of an image of 480 x 640 or 640 x 480."""

    probs: torch.Tensor  # float32 [N, 28, 28]
    boxes: torch.Tensor  # float32 [N, 4]
    class_ids: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N], as the next
    mask_ious: np.ndarray
    shape: tuple[int, int]


def ellipse(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Soft ellipses with ragged edges: float32 [count, 28, 28]."""
    y, x = np.mgrid[:MASK_SIDE, :MASK_SIDE] / (MASK_SIDE - 1) - 0.5
    wide = rng.uniform(0.3, 0.55, (count, 2, 1, 1))
    logits = 8 * (1 - np.sqrt((y / wide[:, 0]) ** 2 + (x / wide[:, 1]) ** 2))
    logits += rng.normal(0, 0.7, (count, MASK_SIDE, MASK_SIDE))
    return torch.from_numpy(logits.astype(np.float32)).sigmoid()


def random_boxes(count: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float64 [count, 4], of COCO's sizes: sides from 10 pixels to the image's."""
    limit = np.array(shape)
    sides = np.minimum(np.exp(rng.uniform(np.log(10), np.log(400), (count, 2))), limit)
    corners = rng.uniform(0, 1, (count, 2)) * (limit - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def make_image(number: int, detections: int) -> tuple[list[dict[str, Any]], Found]:
    """The objects of an image as annotations without ids, and its detections: most near an object, of its class."""
    rng = np.random.default_rng((7, number))
    shape = (480, 640) if number % 4 else (640, 480)
    count = int(rng.poisson(OBJECTS))
    own, classes = random_boxes(count, shape, rng), rng.zipf(1.3, count) % len(CATEGORIES) + 1
    objects = list(annotate(own, classes, shape, rng))
    near = rng.integers(0, max(count, 1), detections)
    boxes = random_boxes(detections, shape, rng)
    is_near = (rng.random(detections) < 0.6) & (count > 0)
    sides = np.tile(own[:, 2:] - own[:, :2], 2)[near[is_near]] if count else np.zeros((0, 4))
    boxes[is_near] = own[near[is_near]] + rng.normal(0, 0.06, sides.shape) * sides if count else 0
    class_ids = rng.integers(1, len(CATEGORIES) + 1, detections)
    class_ids[is_near] = classes[near[is_near]] if count else 0
    scores = np.sort(rng.uniform(0.05, 1, detections))[::-1].astype(np.float32)
    found = Found(ellipse(detections, rng), torch.from_numpy(boxes.astype(np.float32)), class_ids.astype(np.int32),
                  scores.copy(), rng.uniform(0.3, 1, detections).astype(np.float32), shape)  # fmt: skip
    return objects, found


def annotate(boxes: np.ndarray, classes: np.ndarray, shape: tuple[int, int], rng) -> Iterator[dict[str, Any]]:
    """Ellipses in boxes, as annotations without ids."""
    corners = torch.from_numpy(boxes.astype(np.float32))
    rles = roialign.paste_rles(ellipse(len(boxes), rng), corners, shape, "centres")
    for class_id, rle, (y1, x1, y2, x2) in zip(classes.tolist(), rles, boxes.tolist(), strict=True):
        yield {
            "category_id": CATEGORIES[class_id - 1],
            "iscrowd": int(rng.random() < 0.01),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(utils.rle_area(rle)),
            "segmentation": utils.rle_to_json(rle),
        }


############################################################
#  Masks
############################################################


def our_masks(found: Found) -> list[dict]:
    """As MaskRCNN.detect(masks="rle") does it."""
    return roialign.paste_rles(found.probs, found.boxes, found.shape, "centres")


def plain_masks(found: Found) -> list[dict]:
    """Full-size masks, all of them at once, encoded one by one."""
    height, width = found.shape
    pasted = []
    for prob, box in zip(found.probs, found.boxes, strict=True):
        y1, x1, y2, x2 = box.round().int().tolist()
        size = max(y2 - y1, 1), max(x2 - x1, 1)
        resized = F.interpolate(prob[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        full = torch.zeros(height, width)
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y1 + size[0], height), min(x1 + size[1], width)
        if bottom > top and right > left:
            full[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
        pasted.append(full)
    masks = (torch.stack(pasted) > 0.5).numpy()  # [N, H, W]
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def results_of(found: Found, masks: list[dict], number: int) -> tuple[list[dict], list[dict]]:
    """As evaluation.to_results makes them."""
    detections = {
        "rois": found.boxes.numpy(),
        "class_ids": found.class_ids,
        "scores": found.scores,
        "mask_ious": found.mask_ious,
        "mask_scores": found.scores * found.mask_ious,
        "masks": masks,
    }
    return to_results(detections, number + 1, [0, *CATEGORIES])


############################################################
#  COCOeval
############################################################


def our_evaluation(contents: dict, boxes: list[dict], masks: list[dict]) -> dict[str, float]:
    """AP of boxes and of the three rankings of masks, as evaluation.evaluate_results gets them."""
    truth = as_coco(contents)
    numbers = {"box AP": summary(RankedEvaluation(truth, boxes, "bbox", 100).rank())["AP"]}
    ranked = RankedEvaluation(truth, masks, "segm", 100)
    ious = ranked.true_ious()
    scores = [np.array([entry[name] for entry in masks]) for name in ("class_score", "score")]
    for ranking, score in RANKINGS.items():
        numbers[str(Metric("mask", "AP", ranking))] = summary(ranked.rank(score(*scores, ious)))["AP"]
    return numbers


def plain_evaluation(contents: dict, boxes: list[dict], masks: list[dict], ious: np.ndarray) -> dict[str, float]:
    """The same by loadRes and COCOeval, once for each. ious: true ones [N], whose time is not counted."""
    truth = COCO()
    truth.dataset = contents
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        numbers = {"box AP": plain_ap(truth, boxes, "bbox")}
        for ranking, score in RANKINGS.items():
            pairs = zip(masks, ious.tolist(), strict=True)
            ranked = [
                {**entry, "score": float(score(entry["class_score"], entry["score"], iou))} for entry, iou in pairs
            ]
            numbers[str(Metric("mask", "AP", ranking))] = plain_ap(truth, ranked, "segm")
    return numbers


def plain_ap(truth: COCO, results: list[dict], kind: str) -> float:
    run = COCOeval(truth, truth.loadRes(results), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return float(run.stats[0])


############################################################
#  Measurements
############################################################


def timed(run: Callable[[], Any]) -> tuple[Any, float, float | None]:
    """What it returns, its seconds, and the megabytes that it takes at its peak."""
    gc.collect()
    peak, start = machine.Peak(trim=True), time.perf_counter()
    result = run()
    return result, time.perf_counter() - start, peak.megabytes()


def measure_masks(images: int, detections: int, plain_images: int) -> tuple[dict[str, Any], tuple]:
    """Time of masks and codes in all images, of the plain way in some; and ground truth and results."""
    contents: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    contents["categories"] = [{"id": category, "name": COCO_CATEGORIES[category]} for category in CATEGORIES]
    boxes, masks, seconds, plain_seconds, differing = [], [], 0.0, 0.0, 0
    for number in range(images):
        objects, found = make_image(number, detections)
        height, width = found.shape
        contents["images"].append({"id": number + 1, "height": height, "width": width})
        for entry in objects:
            contents["annotations"].append({**entry, "id": len(contents["annotations"]) + 1, "image_id": number + 1})
        start = time.perf_counter()
        codes = our_masks(found)
        seconds += time.perf_counter() - start
        if number < plain_images:
            start = time.perf_counter()
            plain = plain_masks(found)
            plain_seconds += time.perf_counter() - start
            differing += sum(
                1 - coco_mask.iou([one], [other], [0])[0, 0] > 0.2 for one, other in zip(codes, plain, strict=True)
            )
        of_boxes, of_masks = results_of(found, codes, number)
        boxes += of_boxes
        masks += of_masks
    found = make_image(1, detections)[1]
    memory = {name: machine.peak_mb(lambda make=make: make(found), trim=True) for name, make in
              (("ours", our_masks), ("plain", plain_masks))}  # fmt: skip
    row = {
        "name": "masks to run-length codes",
        "ours_s": seconds,
        "plain_s": plain_seconds * images / plain_images,
        "plain_measured_on": plain_images,
        "ours_mb": memory["ours"],
        "plain_mb": memory["plain"],
        "differing": int(differing),
    }
    return row, (contents, boxes, masks)


def measure_evaluation(contents: dict, boxes: list[dict], masks: list[dict]) -> dict[str, Any]:
    """Both ways, on the same results; they have to agree."""
    ious = RankedEvaluation(as_coco(contents), masks, "segm", 100).true_ious()
    ours, ours_s, ours_mb = timed(lambda: our_evaluation(contents, boxes, masks))
    copies = copy.deepcopy((contents, boxes, masks))  # the plain way changes them
    plain, plain_s, plain_mb = timed(lambda: plain_evaluation(*copies, ious))
    worst = max(abs(ours[name] - plain[name]) for name in plain)
    if worst > 1e-12:
        raise RuntimeError(f"the two ways differ: {ours} and {plain}")
    return {
        "name": "COCOeval, boxes and 3 rankings of masks",
        "ours_s": ours_s,
        "plain_s": plain_s,
        "ours_mb": ours_mb,
        "plain_mb": plain_mb,
        "AP": ours,
        "largest_difference": worst,
    }


def measure_report(contents: dict, boxes: list[dict], masks: list[dict]) -> dict[str, float]:
    """Seconds of everything that evaluate_results does, and of writing."""
    with tempfile.TemporaryDirectory() as folder:
        found, all_numbers, _ = timed(lambda: evaluate_results(contents, boxes, masks, 100))
        _, files, _ = timed(lambda: write_submission(folder, boxes, masks))
        blank = np.zeros((640, 640, 3), np.uint8)
        _, report, _ = timed(lambda: write_report(found, folder, lambda number: blank))
        size = (Path(folder) / "report.html").stat().st_size / 1e6
    return {"all_numbers_s": all_numbers, "submission_s": files, "report_s": report, "report_mb": size}


def measure_loading(images: int) -> dict[str, float]:
    """Of a file as large as instances_train2017.json, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        synthetic_coco.write_annotations(path, images)
        synthetic_coco.write_images(Path(folder) / "images", images)
        return synthetic_coco.measure_load(path, Path(folder) / "images")


def format_row(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:42} {row['ours_s']:9.1f} {row['plain_s']:9.1f} {row['plain_s'] / row['ours_s']:8.1f} x "
        f"{row['ours_mb'] or 0:9.0f} {row['plain_mb'] or 0:9.0f}"
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = machine.make_parser("bench_eval.py", __doc__, "20 images", threads=True)
    parser.add_argument("--images", type=int, default=5000, help="images to evaluate; default: 5000")
    parser.add_argument("--detections", type=int, default=100, help="detections in each image; default: 100")
    parser.add_argument(
        "--plain-images", type=int, default=250, help="images whose masks are made the plain way, too; default: 250"
    )
    parser.add_argument(
        "--load-images", type=int, default=118287, help="images of the annotation file to load; default: 118287"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.plain_images, arguments.load_images = 20, 2, 200
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = {**machine.describe(), "quick": arguments.quick, "images": arguments.images}
    facts |= {"detections": arguments.detections, "loading": measure_loading(arguments.load_images)}
    masks, everything = measure_masks(arguments.images, arguments.detections, arguments.plain_images)
    rows = [masks, measure_evaluation(*everything)]
    rows.append({"name": "both", **{key: sum(row[key] for row in rows) for key in ("ours_s", "plain_s")}})
    rows[-1] |= {key: max(row[key] or 0 for row in rows[:2]) for key in ("ours_mb", "plain_mb")}
    facts |= {"cases": rows, **measure_report(*everything)}
    print(f"{'':42} {'ours, s':>9} {'plain, s':>9} {'faster':>10} {'ours, MB':>9} {'plain, MB':>9}")
    for row in rows:
        print(format_row(row))
    loading = facts["loading"]
    print(
        f"loading {loading['images']} images, {loading['annotations']} annotations, {loading['file_mb']:.0f} MB: "
        f"{loading['seconds']:.1f} s, peak {loading['peak_mb']:.0f} MB, then {loading['after_mb']:.0f} MB"
    )
    machine.finish(facts, arguments.output)


if __name__ == "__main__":
    main()

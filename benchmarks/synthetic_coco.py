"""A COCO annotation file that is made up, for measuring at COCO's size without COCO.

    python benchmarks/synthetic_coco.py                          118,287 images as in train2017: time and memory to load
    python benchmarks/synthetic_coco.py --images 5000
    python benchmarks/synthetic_coco.py --load FILE              only load a file; prints the numbers as JSON

As in instances_train2017.json: 7.27 objects an image, 1 % of images without any, polygons of 15 points in the median
with two decimals, some of several parts, crowds as uncompressed RLE, the ids of the 80 categories, and the fields of an
image that take most of its room. Objects are round blobs, and there are no pictures: files of images are empty.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np

import cli
import runtime
from benchmarks import machine
from data.coco_files import COCO_CATEGORIES
from data.formats.coco import CocoDataset

SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500))  # height, width
CROWDS = 0.0115  # of annotations
PARTS = 0.07  # of annotations that have several polygons

############################################################
#  Writing
############################################################


def write_annotations(path: str | Path, images: int, seed: int = 0, annotations_per_image: float = 7.27) -> int:
    """Writes a file of COCO instances, an image at a time. The same arguments give the same bytes.

    path: the file. images: how many; their ids have gaps. annotations_per_image: in the mean.

    Returns: how many annotations it has.
    """
    counts = _counts(images, np.random.default_rng((seed, 0)), annotations_per_image)
    categories = [{"supercategory": "thing", "id": i, "name": COCO_CATEGORIES[i]} for i in sorted(COCO_CATEGORIES)]

    def write(file) -> None:
        file.write(b'{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        _write_list(file, (_image(number) for number in range(images)))
        file.write(b'], "annotations": [')
        _write_list(file, _annotations(counts, seed))
        file.write(b'], "categories": ' + json.dumps(categories).encode() + b"}")

    runtime.write_atomically(path, write)
    return int(counts.sum())


def write_images(folder: str | Path, images: int) -> None:
    """Empty files by the names that write_annotations uses: loading only looks whether they are there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        (folder / _file_name(number)).touch()


def _write_list(file, entries) -> None:
    for i, entry in enumerate(entries):
        file.write((b", " if i else b"") + json.dumps(entry, separators=(",", ": ")).encode())


def _counts(images: int, rng: np.random.Generator, mean: float) -> np.ndarray:
    """Objects of each image: int64 [images], many with few and few with many."""
    counts = rng.negative_binomial(1.1, 1.1 / (1.1 + mean - 1), images) + 1
    counts[rng.random(images) < 0.01] = 0
    return counts.clip(max=93)


def _image_id(number: int) -> int:
    return 9 + 5 * number


def _file_name(number: int) -> str:
    return f"{_image_id(number):012}.jpg"


def _image(number: int) -> dict:
    height, width = SIZES[number % len(SIZES)]
    name = _file_name(number)
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{name[:-4]}_0123456789_z.jpg",
        "id": _image_id(number),
    }


def _annotations(counts: np.ndarray, seed: int):
    """Annotations image by image, in an order of images that is not that of their ids, as in COCO."""
    categories = np.array(sorted(COCO_CATEGORIES))
    annotation_id = 0
    for number in np.random.default_rng((seed, 1)).permutation(len(counts)).tolist():
        rng = np.random.default_rng((seed, 2, number))
        height, width = SIZES[number % len(SIZES)]
        for category in rng.choice(categories, counts[number]).tolist():
            annotation_id += int(rng.integers(1, 4))
            crowd = bool(rng.random() < CROWDS)
            segmentation, box, area = _crowd(height, width, rng) if crowd else _blob(height, width, rng)
            yield {
                "segmentation": segmentation,
                "area": area,
                "iscrowd": int(crowd),
                "image_id": _image_id(number),
                "bbox": box,
                "category_id": category,
                "id": annotation_id,
            }


def _blob(height: int, width: int, rng: np.random.Generator) -> tuple[list, list[float], float]:
    """Polygons, box and area of a round object."""
    parts = 1 if rng.random() > PARTS else int(rng.integers(2, 5))
    rings = [_ring(height, width, rng) for _ in range(parts)]  # each [points, (x, y)]
    points = np.concatenate(rings)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    area = sum(0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) for x, y in (r.T for r in rings))
    return [ring.ravel().tolist() for ring in rings], np.round([*low, *size], 2).tolist(), area


def _ring(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    count = int(np.clip(rng.lognormal(np.log(15), 0.7), 3, 300))
    radius = min(np.exp(rng.normal(3, 1)), 0.45 * min(height, width))
    angles = np.sort(rng.random(count)) * 2 * np.pi
    radii = radius * rng.uniform(0.6, 1, count)
    centre = rng.random(2) * (width, height)
    points = centre + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[0] = centre  # so that some of it is inside
    return np.round(points.clip(0, (width, height)), 2)


def _crowd(height: int, width: int, rng: np.random.Generator) -> tuple[dict, list[float], float]:
    """Uncompressed RLE, box and area of a region with a ragged edge: a run in each of its columns."""
    columns, top = int(rng.integers(width // 2, width - 20)), height // 4
    first = int(rng.integers(0, width - columns))
    starts = np.arange(first, first + columns) * height + top - rng.integers(0, 20, columns)
    ends = starts + rng.integers(height // 4, height // 2, columns)
    counts = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0, append=height * width)
    mask = {"counts": counts.tolist(), "size": [height, width]}
    y = [starts % height, ends % height]
    box = [first, int(y[0].min()), columns, int(y[1].max() - y[0].min())]
    return mask, [float(side) for side in box], int((ends - starts).sum())


############################################################
#  Loading
############################################################


def measure_load(path: str | Path, image_dir: str | Path) -> dict[str, float]:
    """Loads a file in a process of its own, as coco.CocoDataset does.

    Returns: seconds; peak_mb and after_mb, resident memory of the process, which had before_mb with all modules
        imported; images, annotations; file_mb.
    """
    command = [sys.executable, __file__, "--load", str(path), "--image-dir", str(image_dir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _load(path: Path, image_dir: Path) -> dict[str, float]:
    """What measure_load returns, of this process."""
    before, start = machine.resident_mb(), time.perf_counter()
    dataset = CocoDataset()
    dataset.load_annotations(path, image_dir, source="coco")
    dataset.prepare()
    seconds = time.perf_counter() - start
    gc.collect()
    return {
        "seconds": seconds,
        "peak_mb": machine.resident_mb(peak=True),
        "after_mb": machine.resident_mb(),
        "before_mb": before,
        "images": dataset.num_images,
        "annotations": dataset.num_annotations,
        "file_mb": round(path.stat().st_size / 1e6, 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.Parser("synthetic_coco.py", __doc__)
    parser.add_argument(
        "--images",
        type=int,
        default=118_287,
        help="images of the annotation file to make; default: 118287, as train2017",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the annotations; default: 0")
    parser.add_argument("--load", type=Path, metavar="FILE", help="only load this file, in this process")
    parser.add_argument("--image-dir", type=Path, metavar="DIR", help="folder of its images")
    arguments = parser.parse_args(argv)
    if arguments.load:
        print(json.dumps(_load(arguments.load, arguments.image_dir or arguments.load.parent)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder) / "instances.json", Path(folder) / "images"
        write_annotations(path, arguments.images, arguments.seed)
        write_images(images, arguments.images)
        print(json.dumps(measure_load(path, images)))


if __name__ == "__main__":
    main()

"""A mosaic of real images of cell nuclei, or of drawn shapes, as large as wanted, for benchmarks of large images.

    python benchmarks/make_mosaic.py FILE.png [--side PIXELS] [--seed N] [--images DIR]
    python benchmarks/make_mosaic.py FILE.png --shapes LEAST MOST [--side PIXELS] [--seed N]

Images are drawn by the seed and turned by quarters at random. They lie in rows, which are as high as their first image,
and in columns of these rows, which are as wide as theirs. An image is cut off where its row, its column or the mosaic
ends. The same seed makes the same pixels on every machine, if the images are the same files.

With --shapes, the shapes of samples/shapes.py lie apart from each other, in plain colours, with diameters from LEAST to
MOST pixels.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
from PIL import Image

import cli
import runtime
import utils
from data.crops import Crop, trim
from data.images import read_image
from samples import shapes

IMAGES = ROOT.parent / "shared" / "data" / "nuclei" / "val"
SIDE = 2048


def make_mosaic(paths: Sequence[Path], height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3], filled with images. What is narrower than its column leaves black.

    paths: of the images, in an order that every machine has.
    """
    rng = np.random.default_rng(seed)
    mosaic = np.zeros((height, width, 3), np.uint8)
    images = _drawn(paths, rng)
    bottom = 0
    while bottom < height:
        image = next(images)
        top, bottom, right = bottom, min(bottom + image.shape[0], height), 0
        while right < width:
            left, right = right, min(right + image.shape[1], width)
            _fill(mosaic[top:bottom, left:right], itertools.chain([image], images))
            image = next(images)
    return mosaic


def _fill(column: np.ndarray, images: Iterator[np.ndarray]) -> None:
    """Put images below each other into a part of the mosaic."""
    y = 0
    while y < len(column):
        image = next(images)[: len(column) - y, : column.shape[1]]
        column[y : y + image.shape[0], : image.shape[1]] = image
        y += image.shape[0]


def _drawn(paths: Sequence[Path], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All images in random order, again and again, each turned at random."""
    while True:
        for i in rng.permutation(len(paths)):
            yield np.rot90(read_image(paths[i]), rng.integers(4))


class Scene(NamedTuple):
    """An image and its objects."""

    image: np.ndarray  # uint8 [H, W, 3]
    masks: list[Crop]  # the visible part of each object
    class_ids: list[int]


def make_shapes(height: int, width: int, least: float, most: float, seed: int = 0) -> Scene:
    """Shapes that are easy to tell apart: of plain colours, none in front of another, so that only their size matters.

    least, most: the largest diameter of a shape is drawn between these, in pixels.
    """
    rng = np.random.default_rng(seed)
    background = rng.uniform(90, 160, 3)
    image = np.full((height, width, 3), background, np.float32)
    taken = np.zeros((height, width), bool)
    scene = Scene(np.zeros(0), [], [])
    for _ in range(round(40 * height * width / most**2)):  # more than there is room for
        class_id = int(rng.integers(1, 1 + len(shapes.CLASSES)))
        dx, dy = shapes.directions(rng.uniform(0, 2 * np.pi)) * rng.uniform(least, most) / 2
        polygons = [polygon @ [[dx, dy], [-dy, dx]] for polygon in shapes.outlines(shapes.CLASSES[class_id - 1], rng)]
        low = np.floor(polygons[0].min(axis=0)).astype(int) - 2
        size = np.ceil(polygons[0].max(axis=0)).astype(int) + 2 - low  # (width, height), with two pixels around
        x, y = (
            int(rng.integers(0, max(side - length, 0) + 1)) for side, length in zip((width, height), size, strict=True)
        )
        place = np.s_[y : y + size[1], x : x + size[0]]
        covered = shapes.cover([polygon - low for polygon in polygons], size[1], size[0])
        color = background + rng.choice([-1, 1], 3) * rng.uniform(60, 90, 3)
        if taken[place].shape != covered.shape or taken[place].any():
            continue
        taken[place] = True
        image[place] += covered[..., None] * (color - image[place])
        scene.masks.append(trim(y, x, covered >= 0.5))
        scene.class_ids.append(class_id)
    return scene._replace(image=shapes.spoil(image, rng))


def build_parser() -> cli.Parser:
    parser = cli.Parser("make_mosaic.py", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE.png")
    parser.add_argument(
        "--side", type=cli.whole_number(1), default=SIDE, metavar="PIXELS", help=f"default: {SIDE}; height and width"
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--images", type=Path, default=IMAGES, metavar="DIR", help=f"folder of images; default: {IMAGES}"
    )
    parser.add_argument(
        "--shapes", type=cli.whole_number(8), nargs=2, metavar=("LEAST", "MOST"), help="shapes of these sizes instead"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.shapes:
        mosaic = make_shapes(arguments.side, arguments.side, *arguments.shapes, arguments.seed).image
    else:
        mosaic = make_mosaic(utils.image_files(arguments.images), arguments.side, arguments.side, arguments.seed)
    png = io.BytesIO()
    Image.fromarray(mosaic).save(png, "png")
    runtime.write_atomically(arguments.file, lambda file: file.write(png.getvalue()))
    print(f"{arguments.file}: {arguments.side} x {arguments.side} pixels")


if __name__ == "__main__":
    sys.exit(cli.run("make_mosaic.py", lambda: main(build_parser().parse_args())))

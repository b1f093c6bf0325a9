"""A mosaic of real images of cell nuclei, as large as wanted, for benchmarks of large images.

    python benchmarks/make_mosaic.py FILE.png [--side PIXELS] [--seed N] [--images DIR]

Images are drawn by the seed and turned by quarters at random. They lie in rows, which are as high as their first image,
and in columns of these rows, which are as wide as theirs. An image is cut off where its row, its column or the mosaic
ends. The same seed makes the same pixels on every machine, if the images are the same files.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from data.images import read_image

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
    return parser


def main(arguments: argparse.Namespace) -> None:
    mosaic = make_mosaic(utils.image_files(arguments.images), arguments.side, arguments.side, arguments.seed)
    png = io.BytesIO()
    Image.fromarray(mosaic).save(png, "png")
    runtime.write_atomically(arguments.file, lambda file: file.write(png.getvalue()))
    print(f"{arguments.file}: {arguments.side} x {arguments.side} pixels")


if __name__ == "__main__":
    sys.exit(cli.run("make_mosaic.py", lambda: main(build_parser().parse_args())))

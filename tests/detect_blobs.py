"""A detector of bright blobs, which needs no network, and custom.py detect with it as a program, also for torchrun:
detect_blobs.py OPTIONS ARGUMENT ...

OPTIONS, in JSON: kill: [rank, bytes] after which that process kills itself while it writes rows of tiles; settings: of
the configuration. ARGUMENTS: those of custom.py detect.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
import torch
from deadly import kill_at
from helpers import TinyConfig, detection_result
from PIL import Image
from scipy import ndimage

import cli
import custom
import evaluation.large
import tiles
import utils


class BlobFinder:
    """A detector that finds the bright blobs of pictures. Their red says the class, and their green the score."""

    class_names, category_ids, source = ("BG", "cat, small", "dog", "cow"), (0, 1, 2, 3), "made by a test"
    device, has_ious = torch.device("cpu"), True

    def __init__(self, **settings) -> None:
        self.config = TinyConfig(**settings)
        self.seconds: dict[str, float] = {}
        self.seen: list[tuple[int, int]] = []  # the shapes of pictures
        self.seen_tiles: list[tuple[int, int]] = []  # (row, column)
        self.stop_after: int | None = None  # pictures and tiles

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.ones(2)}

    def detect_batches(self, batches, dtype="float32", masks="rle"):
        for batch in batches:
            self._stop_in_time()
            self.seen += [image.shape[:2] for image in batch]
            yield [self._find(image) for image in batch]

    def detect_views(self, pixels, plan, row, dtype="float32"):
        """What tiles.detect_views gives."""
        for tile in row:
            self._stop_in_time()
            self.seen_tiles.append((tile.row, tile.column))
            result = self._find(pixels.read(*tile.region))
            views = tiles.views_of_result(tile, result, tile.region[:2], plan.image_shape)
            yield tile, views, len(result["scores"])

    def _stop_in_time(self) -> None:
        if self.stop_after is not None and len(self.seen) + len(self.seen_tiles) >= self.stop_after:
            raise KeyboardInterrupt

    def _find(self, image: np.ndarray) -> dict:
        labels, count = ndimage.label(image[..., 2] > 200)
        found = [labels == number for number in range(1, count + 1)]
        pixels = [image[mask][0] for mask in found]
        stack = np.stack([*found, np.zeros(image.shape[:2], bool)], axis=-1)[..., : len(found)]
        result = detection_result(
            stack, [int(red) // 60 for red, _, _ in pixels], [green / 255 for _, green, _ in pixels],
            [0.9 if red // 60 == 1 else 0.68 for red, _, _ in pixels] if self.has_ious else None,
        )  # fmt: skip
        result["masks"] = list(utils.mask_to_rle(stack))
        return result


def save_blobs(path: Path, *blobs, size=(40, 60)) -> Path:
    """A picture with blobs (class, score, y1, x1, y2, x2)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), 30, np.uint8)
    for class_id, score, y1, x1, y2, x2 in blobs:
        pixels[y1:y2, x1:x2] = (60 * class_id, round(255 * score), 250)
    Image.fromarray(pixels).save(path)
    return path


def many_blobs(path: Path, size=(272, 200), step=20, seed=0) -> Path:
    """A picture with a blob of a random size in most cells of a grid, and two larger ones.

    One of these is larger than a tile of 128. The other is not, but none of the tiles that overlap by 64 sees it whole.
    """
    rng = np.random.default_rng(seed)
    blobs = []
    for y in range(2, size[0] - step, step):
        for x in range(2, size[1] - step, step):
            height, width, class_id = rng.integers([4, 4, 1], [step - 3, step - 3, 4]).tolist()
            if rng.random() < 0.7 and not (40 < y < 220 and 5 < x < 175):
                blobs.append((class_id, round(float(rng.uniform(0.3, 1)), 3), y, x, y + height, x + width))
    return save_blobs(path, *blobs, (2, 0.95, 70, 30, 215, 170), (1, 0.85, 60, 182, 132, 196), size=size)


def main(options: dict, arguments: list[str]) -> int:
    finder = BlobFinder(**options.get("settings", {}))
    cli.open_model = lambda *arguments, **options: finder
    evaluation.large.detect_views = lambda model, *arguments: model.detect_views(*arguments)
    if "kill" in options:
        kill_at(*options["kill"], parent="large")
    return custom.main(["detect", "--model", "x", "--device", "cpu", *arguments])


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))

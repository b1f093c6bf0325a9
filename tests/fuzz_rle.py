"""Damaged run-length codes and polygons: each gives a mask of its size, or is refused as an RLE or a polygon."""

from typing import Any

import numpy as np
from fuzzing import damaged_bytes, damaged_json, fuzz
from helpers import random_mask
from pycocotools import mask as coco_mask

import utils

_SIDES = [0, 1, 2, 7, 40, -1, 2**16, 2**31, 2**32, 2**62, 2**64, 1.5, 40.0, float("nan"), "7", None]
_RUNS = [
    0,
    1,
    5,
    40,
    -1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**64,
    -(2**63),
    1.5,
    4.0,
    1e300,
    float("inf"),
    "5",
    None,
    [1],
]


def use(code: Any) -> None:
    """Every function that reads a code. What they return fits together."""
    area, box = utils.rle_area(code), utils.rle_to_bbox(code)
    assert 0 <= area <= 2**32
    height, width, _ = utils._counts(code)
    if height * width > 1 << 22:
        return  # whole masks would take long
    y, x, crop = utils.rle_to_crop(code)
    assert crop.sum() == area
    assert (y, x, y + crop.shape[0], x + crop.shape[1]) == box
    mask = utils.rle_to_mask(code)
    assert mask.sum() == area
    again = utils.annotation_to_rle(code, *mask.shape)
    assert coco_mask.area(again) == area
    assert utils.mask_to_rle(mask) == utils.mask_to_rle(utils.rle_to_mask(again))


def test_codes():
    def case(rng: np.random.Generator) -> None:
        code: Any = utils.mask_to_rle(random_mask(rng)[:, : int(rng.integers(1, 90))])
        kind = rng.integers(5)
        if kind == 0:
            code = {"size": code["size"], "counts": damaged_bytes(code["counts"], rng)}
        elif kind == 1:
            text = damaged_bytes(code["counts"], rng).decode("latin-1")
            code = {"size": code["size"], "counts": text}
        else:
            code = {"size": list(code["size"]), "counts": utils._counts(code)[2].tolist()}
            for _ in range(rng.integers(0, 3)):
                if rng.random() < 0.3:
                    code["size"][rng.integers(2)] = _SIDES[rng.integers(len(_SIDES))]
                else:
                    code["counts"][rng.integers(len(code["counts"]))] = _RUNS[rng.integers(len(_RUNS))]
            if kind == 3:
                code = damaged_json(code, rng)
        use(code)

    fuzz(case, 200, "RLE")


def random_polygon(rng: np.random.Generator) -> list[float]:
    spread = float(rng.choice([0, 1, 20, 1e3, 9e5]))
    ring = rng.uniform(-spread, 40 + spread, 2 * int(rng.integers(3, 9)))
    return (ring.round() if rng.random() < 0.5 else ring).tolist()


def test_polygons():
    def case(rng: np.random.Generator) -> None:
        polygons: Any = [random_polygon(rng) for _ in range(rng.integers(1, 4))]
        if rng.random() < 0.6:
            polygons = damaged_json(polygons, rng)
        height, width = (int(side) for side in rng.choice([0, 1, 40, 300, 20_000], 2, p=[0.05, 0.1, 0.5, 0.3, 0.05]))
        code = utils.annotation_to_rle(polygons, height, width)
        y1, x1, y2, x2 = utils.rle_to_bbox(code)
        assert 0 <= y1 <= y2 <= height
        assert 0 <= x1 <= x2 <= width
        assert utils.rle_area(code) == coco_mask.area(code)

    fuzz(case, 100, "polygon")

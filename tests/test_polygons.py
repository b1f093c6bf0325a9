"""Polygons are filled as pycocotools fills them, to the bit, and in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import polygons
import utils
from roialign.paste import compress_counts


def filled(ring: np.ndarray, height: int, width: int) -> dict:
    return compress_counts(polygons.fill(ring, height, width), height, width)


def theirs(ring: np.ndarray, height: int, width: int) -> dict:
    return coco_mask.frPyObjects([ring.tolist()], height, width)[0]


def random_ring(rng: np.random.Generator, height: int, width: int, spread: float) -> np.ndarray:
    """Corners up to `spread` pixels outside; some lie on pixels or halves, some twice, some edges are upright."""
    points = rng.uniform(-spread, np.array([width, height]) + spread, (int(rng.integers(3, 12)), 2))
    step = rng.choice([0, 1, 2, 10])
    points = (points * step).round() / step if step else points
    if rng.random() < 0.3:
        points[1] = points[0]
        points[2, 0] = points[1, 0]
    return points.ravel()


@pytest.mark.parametrize("spread", [0, 1, 5, 50, 500, 5000])
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70))
def test_filling_is_pycocotools(spread, seed, height, width):
    """However far the polygon reaches out of the image."""
    ring = random_ring(np.random.default_rng(seed), height, width, spread)
    expected = theirs(ring, height, width)
    assert filled(ring, height, width) == expected
    assert utils.polygons_to_rle([ring], height, width) == expected


def test_in_chunks(monkeypatch):
    monkeypatch.setattr(polygons, "_CHUNK", 7)
    for seed in range(20):
        ring = random_ring(np.random.default_rng(seed), 30, 40, 20)
        assert filled(ring, 30, 40) == theirs(ring, 30, 40)


def test_by_hand():
    assert polygons.fill(np.array([2.0, 1, 6, 1, 6, 4, 2, 4]), 7, 8).tolist() == [15, 3, 4, 3, 4, 3, 4, 3, 17]
    assert polygons.fill(np.array([-9.0, -9, 99, -9, 99, 99, -9, 99]), 7, 8).tolist() == [0, 56]
    assert polygons.fill(np.array([-9.0, -9, -5, -9, -5, 99]), 7, 8).tolist() == [56]
    assert polygons.fill(np.array([0.0, 0, 5, 0, 5, 5]), 0, 8).tolist() == [0]


def test_far_polygons_take_no_memory():
    """40 corners a million pixels away took pycocotools 3.2 GB, and a minute."""
    rng = np.random.default_rng(0)
    ring = rng.choice([-1e6, 1e6], 80) + rng.uniform(-9, 9, 80)
    ring = ring.clip(-1e6, 1e6)
    assert not polygons.is_small(ring, 60, 80)
    tracemalloc.start()
    code = utils.polygons_to_rle([ring.tolist(), [2, 1, 6, 1, 6, 4, 2, 4]], 60, 80)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert utils.rle_to_mask(code)[1:4, 2:6].all()
    around = [-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]
    assert utils.rle_area(utils.polygons_to_rle([around], 60, 80)) == 60 * 80


def test_normal_polygons_are_pycocotools_own(monkeypatch):
    assert polygons.is_small(np.array([0.0, 0, 6000, 0, 6000, 4000, 0, 4000]), 4000, 6000)
    monkeypatch.setattr(polygons, "fill", None)
    assert utils.rle_area(utils.polygons_to_rle([[2, 1, 6, 1, 6, 4, 2, 4]], 7, 8)) == 12
    assert not polygons.is_small(np.array([0.0, 0, 6, 0, 6, 4]), 2**16, 2**15), "its 32-bit numbers would overflow"


@pytest.mark.parametrize(("height", "width"), [(-1, 5), (2**32, 2**32), (2**16, 2**16)])
def test_sizes_without_a_code(height, width):
    with pytest.raises(ValueError, match=rf"a mask of {height} x {width} \(height x width\) has no RLE"):
        utils.polygons_to_rle([[2, 1, 6, 1, 6, 4]], height, width)

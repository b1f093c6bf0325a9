"""Polygons are filled as pycocotools fills them, to the bit, and in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage

import polygons
import utils
from data.writers.outlines import inset, join_rings, outlines
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


############################################################
#  Exact outlines
############################################################


def noise(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 16, 2)
    return rng.random((height, width)) < rng.choice([0.2, 0.5, 0.7, 0.9])


def fill_all(rings, shape) -> np.ndarray:
    """Pixels whose centres lie in an odd number of rings, each filled by pycocotools' rule."""
    mask = np.zeros(shape, bool)
    for ring in rings:
        mask ^= utils.rle_to_mask(utils.polygons_to_rle([ring.ravel()], *shape))
    return mask


@pytest.mark.parametrize("seed", range(60))
def test_outlines_give_the_mask_back(seed):
    """Noise has single pixels, holes in holes, and parts that touch at corners."""
    mask = noise(seed)
    parts = outlines(mask)
    assert len(parts) == ndimage.label(mask)[1]
    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    assert np.array_equal(fill_all(rings, mask.shape), mask)
    assert np.array_equal(fill_all(map(inset, rings), mask.shape), mask)
    for ring in rings:
        assert len(np.unique(ring, axis=0)) == len(ring), "no ring touches itself"
        steps = np.roll(ring, -1, axis=0) - ring
        assert ((steps != 0).sum(axis=1) == 1).all(), "edges are level or upright"
        assert ((steps[:, 0] != 0) != (np.roll(steps, 1, axis=0)[:, 0] != 0)).all(), "no point lies on a straight edge"
    if rings:
        joined = join_rings([inset(ring) for ring in rings])
        assert np.array_equal(fill_all([joined], mask.shape), mask)
        assert len(joined) == sum(map(len, rings)) + 2 * (len(rings) - 1), "a bridge adds two points"


@pytest.mark.parametrize("seed", range(60))
def test_inset_outlines_are_the_mask_for_programs_that_fill_outlines(seed):
    """Pillow cuts coordinates off and fills the outline, too; labelme uses it, and OpenCV in ultralytics does alike."""
    mask = ndimage.binary_fill_holes(noise(seed))
    canvas = Image.new("1", mask.shape[::-1])
    for part in outlines(mask):
        assert part.holes == []
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in inset(part.outer).tolist()], fill=1, outline=1)
    assert np.array_equal(np.asarray(canvas), mask)


def test_outlines_by_hand():
    (part,) = outlines(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
    assert part.outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert [hole.tolist() for hole in part.holes] == [[[2, 1], [1, 1], [1, 2], [2, 2]]]
    assert inset(part.outer, 0.5).tolist() == [[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]]
    assert inset(part.holes[0], 0.5).tolist() == [[2.5, 0.5], [0.5, 0.5], [0.5, 2.5], [2.5, 2.5]]
    assert outlines(np.zeros((3, 3))) == []
    assert outlines(np.zeros((0, 3))) == []
    two = outlines(np.eye(2))
    assert [part.outer.tolist() for part in two] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]
    with pytest.raises(ValueError, match=r"mask must be \[H, W\], got \[2\]"):
        outlines(np.zeros(2))


def test_bridges_lead_to_the_nearest_ring():
    squares = [np.array([[x, 0], [x + 1, 0], [x + 1, 1], [x, 1]], float) for x in (0, 10, 4)]
    joined = join_rings(squares)
    lengths = np.abs(np.roll(joined, -1, axis=0) - joined).sum(axis=1)
    assert sorted(lengths[lengths > 1].tolist()) == [3, 3, 5, 5], "from 1 to 4 and from 5 to 10, there and back"

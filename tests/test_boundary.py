"""Boundary IoU: erosion step by step, pycocotools with other overlaps, and cases by hand."""

import contextlib
import copy
import io

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, random_case, random_mask, rectangle, segm_result, truth_of
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

import utils
from evaluation.boundary import BoundaryEvaluation, boundary_of, boundary_rle
from evaluation.metrics import as_coco, average_precision


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """As mask_to_boundary of boundary-iou-api: a frame of zeros, then one erosion after the other."""
    dilation = max(round(0.02 * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)), 1)
    eroded = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=dilation, border_value=1)
    return mask & ~eroded[1:-1, 1:-1]


@given(st.integers(0, 2**32))
def test_the_boundary_is_what_erosion_takes(seed):
    mask = random_mask(np.random.default_rng(seed)).astype(bool)
    assert (utils.rle_to_mask(boundary_rle(utils.mask_to_rle(mask))) == plain_boundary(mask)).all()


@pytest.mark.parametrize(
    ("shape", "distance"),
    [((10, 10), 1), ((300, 400), 10), ((120, 130), 4), ((1, 75), 2), ((3, 1), 1)],  # 2 % of 14, 500, 177, 75, 3
)
def test_the_distance_follows_the_diagonal(shape, distance):
    boundary = utils.rle_to_mask(boundary_rle(utils.mask_to_rle(np.ones(shape, bool))))
    inner = [max(side - 2 * distance, 0) for side in shape]
    assert boundary.sum() == np.prod(shape) - np.prod(inner), "the edge of the image is an outline, too"


def test_an_empty_mask_has_an_empty_boundary():
    assert utils.rle_area(boundary_rle(utils.mask_to_rle(np.zeros((20, 20), bool)))) == 0


def test_the_boundary_is_kept():
    entry = {"segmentation": utils.mask_to_rle(rectangle(10, 10, 60, 60).astype(bool))}
    assert boundary_of(entry) is boundary_of(entry)


def test_a_shift_hurts_the_boundary_more_than_the_mask():
    """100 x 100, shifted by 5: mask IoU 9500 / 10500. Rings of 4 pixels: 1536 each; what they share is counted."""
    first, second = rectangle(10, 10, 110, 110), rectangle(10, 15, 110, 115)
    truth = as_coco(truth_of((1, 1, first), categories=(1,)))
    ranked = BoundaryEvaluation(truth, [segm_result(1, 1, second, 0.9)], "segm", 100)
    rings = [plain_boundary(mask.astype(bool)) for mask in (first, second)]
    assert rings[0].sum() == 100**2 - 92**2
    expected = (rings[0] & rings[1]).sum() / (rings[0] | rings[1]).sum()
    assert ranked.overlaps[1, 1][0, 0] == pytest.approx(expected)
    assert expected < 0.5 < 9500 / 10500
    assert average_precision(ranked.rank(), 0.5) == 0


def test_a_small_object_is_boundary_throughout():
    mask = rectangle(10, 10, 18, 40).astype(bool)  # 8 rows, a distance of 4
    assert (utils.rle_to_mask(boundary_rle(utils.mask_to_rle(mask))) == mask).all()


def plain_boundary_ap(contents, results) -> float:
    """COCOeval with its overlaps replaced, as boundary-iou-api does."""

    class Evaluation(COCOeval):
        def computeIoU(self, image, category):
            overlaps = super().computeIoU(image, category)
            objects, found = self._gts[image, category], self._dts[image, category]
            if not objects or not found:
                return overlaps
            order = np.argsort([-entry["score"] for entry in found], kind="mergesort")[: self.params.maxDets[-1]]
            found, overlaps = [found[i] for i in order], np.array(overlaps)
            for j, entry in enumerate(objects):
                if not entry["iscrowd"]:
                    rings = [plain_boundary(utils.rle_to_mask(each["segmentation"])) for each in (entry, *found)]
                    codes = [utils.mask_to_rle(ring) for ring in rings]
                    overlaps[:, j] = np.minimum(overlaps[:, j], coco_mask.iou(codes[1:], codes[:1], [0])[:, 0])
            return overlaps

    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(contents)
        index.createIndex()
        evaluation = Evaluation(index, index.loadRes(copy.deepcopy(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@given(st.integers(0, 2**32))
def test_boundary_ap_is_that_of_the_published_code(seed):
    contents, results = random_case(seed)
    if not results:
        return
    ranked = BoundaryEvaluation(as_coco(contents), results, "segm", 100).rank()
    assert average_precision(ranked) == pytest.approx(plain_boundary_ap(contents, results), abs=1e-12)
    assert all((overlaps <= 1).all() for overlaps in ranked.overlaps.values())


def test_the_image_of_the_tests_has_a_distance_of_four():
    assert round(0.02 * np.hypot(HEIGHT, WIDTH)) == 4

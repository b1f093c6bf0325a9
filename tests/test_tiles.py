"""tiles.py: where tiles lie, what they read, and whole objects out of what they see."""

import itertools
import random

import numpy as np
import pytest
import torch
from helpers import TinyConfig, random_image, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import tiles
import utils
from data.crops import Crop, trim
from data.images import read_image
from data.regions import Pixels, as_source
from roialign.paste import crop_to_rle
from tiles import Seams, TiledDetections, plan_tiles
from utils import ResizePlan
from weights.load import load_model

CONFIG = TinyConfig()


############################################################
#  Where tiles lie
############################################################


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    tile=st.integers(1024, 2000),
    share=st.floats(0, 0.4),
    scale=st.sampled_from([None, 0.25, 0.7, 5 / 6, 1.0, 1.5, 2.0, 3.0]),
    mode=st.sampled_from(["shorter", "square", "pad64", "crop", "none"]),
)
def test_every_plan_covers_the_image_and_keeps_its_promises(height, width, tile, share, scale, mode):
    overlap = int(share * tile)
    config = TinyConfig(IMAGE_RESIZE_MODE=mode)
    plan = plan_tiles((height, width), config, tile, overlap, scale)
    stride = max(config.BACKBONE_STRIDES)
    assert (plan.step % stride, plan.side % stride) == (0, 0)
    assert abs(plan.scale - (scale or 1)) <= 0.01 * (scale or 1)
    assert plan.overlap >= overlap - 1e-6
    assert plan.side / plan.scale >= tile - 1e-6
    rows = list(plan.rows())
    for axis, line in ((0, [row[0] for row in rows]), (1, rows[0])):
        assert [tile.window[axis] % stride for tile in line] == [0] * len(line)
        assert (line[0].region[axis], line[-1].region[axis + 2]) == (0, plan.image_shape[axis])
        assert line[-1].window[axis + 2] <= plan.input_shape[axis]
        for first, second in itertools.pairwise(line):
            assert first.window[axis + 2] - first.window[axis] == plan.side
            assert first.region[axis + 2] - second.region[axis] >= min(overlap, plan.image_shape[axis])
            assert second.region[axis + 2] > first.region[axis + 2], "each tile sees something new"
            assert second.window[axis + 2] > first.window[axis + 2]


def test_a_small_image_has_one_tile():
    plan = plan_tiles((5, 7, 3), CONFIG)
    assert plan.shape == (1, 1)
    assert plan.tile(0, 0) == tiles.Tile(0, 0, (0, 0, 32, 32), (0, 0, 5, 7))
    assert plan.around(plan.tile(0, 0)) == []


def test_tiles_are_short_at_the_end_and_not_shifted():
    plan = plan_tiles((500, 256), CONFIG, tile=256, overlap=64)
    assert [row[0].window for row in plan.rows()] == [(0, 0, 256, 256), (192, 0, 448, 256), (384, 0, 512, 256)]
    assert [row[0].region[::2] for row in plan.rows()] == [(0, 256), (192, 448), (384, 500)]


def test_the_scale_is_the_one_of_large_images():
    assert plan_tiles((999, 999), CONFIG).scale == 1
    plan = plan_tiles((999, 999), TinyConfig(IMAGE_MIN_SCALE=2.0, IMAGE_RESIZE_MODE="pad64"))
    assert plan.scale == 2
    assert plan.image_window == (25, 25, 25 + 1998, 25 + 1998), "padding is centred"
    assert plan_tiles((999, 999), CONFIG, scale=0.7).scale == 64 / 91


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (0, 5)}, "an image of 0 x 5 pixels cannot be cut into tiles"),
        ({"overlap": -1}, "overlap must be 0 or more"),
        ({"tile": 200, "overlap": 101}, "at most half of tile, got overlap=101 and tile=200"),
        ({"tile": 0, "overlap": 0}, "tile=0"),
        ({"scale": 0.0}, "scale must be above 0 and at most 16, got 0.0"),
        ({"tile": 100, "scale": 0.1, "overlap": 20}, "tile must be at least 1280 pixels"),
    ],
)
def test_a_plan_says_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_tiles(**{"image_shape": (100, 100), "config": CONFIG, **arguments})


############################################################
#  Pixels
############################################################


class Counting:
    """A source that counts what is read."""

    def __init__(self, array):
        self.array, self.shape, self.regions = array, array.shape, []

    def read(self, y1, x1, y2, x2):
        assert 0 <= y1 < y2 <= self.shape[0]
        assert 0 <= x1 < x2 <= self.shape[1]
        self.regions.append((y1, x1, y2, x2))
        return self.array[y1:y2, x1:x2]


@pytest.mark.parametrize("mode", ["shorter", "pad64", "none"])
@pytest.mark.parametrize(
    ("scale", "resampling"),
    [(1.0, "matterport"), (2.0, "mmdet"), (2.0, "detectron2"), (0.8, "mmdet"), (0.5, "torchvision")],
)
def test_a_tile_has_the_pixels_of_the_whole_image_resized(mode, scale, resampling):
    height, width = 310, 490  # both make whole numbers of pixels at every scale
    config = TinyConfig(DIALECT=resampling, IMAGE_RESIZE_MODE=mode)
    plan = plan_tiles((height, width), config, tile=160, overlap=80, scale=scale)
    image = random_image(height, width)
    size = round(height * scale), round(width * scale)
    whole = image if scale == 1 else utils.resize_pixels(image, size, config.dialect.resampling)
    expected = np.zeros((*plan.input_shape, 3), whole.dtype)
    y1, x1, y2, x2 = plan.image_window
    expected[y1:y2, x1:x2] = whole
    source = Counting(image)
    pixels = tiles.Pixels(source, config)
    for tile in itertools.chain(*plan.rows()):
        part = tiles.read_tile(pixels, plan, tile, config)
        actual = np.zeros((*part.shape, 3), whole.dtype)
        y1, x1, y2, x2 = part.window
        actual[y1:y2, x1:x2] = part.image
        y1, x1, y2, x2 = tile.window
        np.testing.assert_allclose(actual, expected[y1:y2, x1:x2], atol=1e-3)
        (y, x), (rows, columns) = part.origin, part.canvas
        assert (y, x, y + rows, x + columns) == source.regions[-1], "masks are pasted on what is read"
        of_plan = ResizePlan((height, width), size, ((0, 0), (0, 0)), None, plan.image_window, scale)
        corners = np.array([[y, x, y + rows, x + columns]], np.float64)
        origin = np.array([*tile.window[:2]] * 2)
        assert of_plan.boxes(corners) - origin == pytest.approx(np.array([part.canvas_window]))


def test_only_little_more_than_a_tile_is_read():
    source = Counting(random_image(1000, 1000))
    plan = plan_tiles(source.shape, CONFIG, tile=256, overlap=64, scale=0.8)
    pixels = tiles.Pixels(source, CONFIG)
    for tile in itertools.chain(*plan.rows()):
        tiles.read_tile(pixels, plan, tile, CONFIG)
        y1, x1, y2, x2 = source.regions[-1]
        assert (y2 - y1) * (x2 - x1) <= (plan.side / plan.scale + 20) ** 2


def test_percentiles_are_those_of_the_whole_image():
    config = TinyConfig(PIXEL_RANGE="percentiles")
    image = np.arange(300 * 400, dtype=np.uint16).reshape(300, 400) % 4096
    image[:150] //= 2  # the upper tiles are darker
    pixels = tiles.Pixels(tiles.as_source(image), config)
    whole = utils.to_rgb(image, pixel_range="percentiles")
    np.testing.assert_array_equal(pixels.read(10, 20, 60, 80), whole[10:60, 20:80])
    color = np.stack([image, image[::-1], image // 3, image], axis=2)  # the last is alpha
    pixels = tiles.Pixels(tiles.as_source(color), config)
    np.testing.assert_array_equal(pixels.read(0, 0, 5, 9), utils.to_rgb(color, pixel_range="percentiles")[:5, :9])


def test_values_by_their_depth_are_not_read_before():
    source = Counting(np.full((300, 400), 65535, np.uint16))
    pixels = tiles.Pixels(source, CONFIG)
    assert source.regions == []
    assert pixels.read(0, 0, 2, 2).tolist() == np.full((2, 2, 3), 255).tolist()


@pytest.mark.parametrize("source", ["image.tif", np.zeros(5), np.zeros((2, 2, 3, 4)), None])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(ValueError, match="source must be an array"):
        tiles.as_source(source)


def test_a_source_that_reads_something_else_is_named():
    class Wrong(Counting):
        def read(self, *region):
            return super().read(*region)[1:]

    pixels = tiles.Pixels(Wrong(random_image(50, 50)), CONFIG)
    with pytest.raises(ValueError, match=r"source.read\(0, 0, 20, 30\) must return \[20, 30\] .* \(19, 30, 3\)"):
        pixels.read(0, 0, 20, 30)


############################################################
#  Seams, by hand
############################################################


SHAPE = (448, 448)  # 2 x 2 tiles of 256: rows and columns 0 to 256 and 192 to 448
PLAN = plan_tiles(SHAPE, CONFIG, tile=256, overlap=64)


def rectangle(y1, x1, y2, x2) -> Crop:
    return Crop(y1, x1, np.ones((y2 - y1, x2 - x1), bool))


def box_of(mask: Crop) -> tuple:
    return mask.y, mask.x, mask.y + mask.mask.shape[0], mask.x + mask.mask.shape[1]


def seen(tile, *masks, plan=PLAN, class_id=1, score=0.9, mask_iou=0.8):
    """The views of a tile that sees so much of masks as lies in it, exactly."""
    views = []
    for number, mask in enumerate(masks):
        y1, x1, y2, x2 = tile.region
        box = np.clip(box_of(mask), (y1, x1) * 2, (y2, x2) * 2).tolist()
        scores = {"score": score, "mask_iou": mask_iou, "mask_score": score * (1 if mask_iou is None else mask_iou)}
        views.append(tiles.make_view(tile, number, plan.image_shape, box, mask, class_id, **scores))
    return [view for view in views if view is not None]


def merge(*masks, plan=PLAN, **options) -> TiledDetections:
    """What comes out if every tile sees exactly its part of the masks."""
    seams, parts = Seams(plan, has_ious=options.get("mask_iou", 0.8) is not None), []
    for row in plan.rows():
        for tile in row:
            seams.add(tile, seen(tile, *masks, plan=plan, **options))
        parts.append(seams.finish(row[0].row))
    assert len(seams) == 0
    return TiledDetections.cat(parts)


def pixels_of(found: TiledDetections) -> list[list[int]]:
    """Of each object the box of its mask, sorted; all masks must be full rectangles."""
    assert all(mask.mask.all() for mask in found.masks)
    return sorted([*map(int, box_of(mask))] for mask in found.masks)


@pytest.mark.parametrize(
    ("box", "pieces"),
    [
        ((20, 30, 60, 90), 1),  # in one tile alone
        ((20, 200, 60, 250), 1),  # whole in two tiles
        ((200, 200, 250, 250), 1),  # whole in four tiles
        ((20, 180, 60, 230), 1),  # whole in the left tile, cut in the right one
        ((20, 230, 60, 270), 1),
        ((230, 230, 270, 270), 1),  # whole in one tile, cut in three
        ((20, 150, 60, 300), 2),  # larger than the overlap: one seam cuts it
        ((150, 150, 300, 300), 4),  # two seams do, at a corner
        ((0, 0, 448, 448), 4),  # the whole image
        ((40, 0, 70, 448), 2),  # larger than a tile
        ((255, 10, 257, 12), 1),
        ((0, 0, 1, 1), 1),
    ],
)
def test_an_object_comes_out_once_and_whole(box, pieces):
    found = merge(rectangle(*box))
    assert pixels_of(found) == [list(box)]
    assert found.rois.tolist() == [list(box)]
    assert (found.pieces.tolist(), found.is_cut.tolist(), found.class_ids.tolist()) == ([pieces], [False], [1])
    numbers = [found.scores, found.mask_ious, found.mask_scores]
    assert np.concatenate(numbers).tolist() == pytest.approx([0.9, 0.8, 0.72])


def test_touching_objects_of_a_class_stay_two():
    boxes = [[150, 100, 300, 130], [150, 130, 300, 160], [40, 220, 60, 240], [60, 220, 80, 240]]
    found = merge(*(rectangle(*box) for box in boxes))
    assert pixels_of(found) == sorted(boxes)
    assert sorted(found.pieces.tolist()) == [1, 1, 2, 2]


def test_objects_that_meet_end_to_end_at_a_seam_stay_two():
    boxes = [[20, 100, 60, 224], [20, 224, 60, 400]]
    assert pixels_of(merge(*(rectangle(*box) for box in boxes))) == boxes


def test_detections_of_one_tile_are_never_compared():
    left = PLAN.tile(0, 0)
    twice = [rectangle(20, 20, 60, 60)] * 2 + [rectangle(21, 21, 61, 61)]
    seams = Seams(PLAN)
    seams.add(left, seen(left, *twice))
    assert len(seams.finish(0)) == 3


def test_classes_are_not_mixed():
    left, right = PLAN.row(0)
    mask = rectangle(20, 200, 60, 250)
    seams = Seams(PLAN, context=0)  # no tile knows better
    seams.add(left, seen(left, mask, class_id=1))
    seams.add(right, seen(right, mask, class_id=2))
    assert sorted(seams.finish(0).class_ids.tolist()) == [1, 2]


def two_views(left_box, right_box, context=None, **right_scores) -> list[list[int]]:
    """What is kept if the upper left tile sees one rectangle, and the upper right one another."""
    left, right = PLAN.row(0)
    seams = Seams(PLAN, context)
    seams.add(left, seen(left, rectangle(*left_box)))
    seams.add(right, seen(right, rectangle(*right_box), **right_scores))
    return pixels_of(seams.finish(0))


def test_of_two_whole_views_the_one_with_more_context_is_kept():
    assert two_views((20, 200, 60, 220), (20, 201, 60, 221)) == [[20, 200, 60, 220]]  # 36 and 9 pixels deep
    assert two_views((20, 230, 60, 250), (20, 229, 60, 249)) == [[20, 229, 60, 249]]


def test_of_two_views_with_enough_context_the_one_of_the_higher_score_is_kept():
    boxes = (20, 212, 60, 232), (20, 213, 60, 233)  # 24 and 21 pixels deep
    assert two_views(*boxes, context=20, mask_iou=0.7) == [[20, 212, 60, 232]]
    assert two_views(*boxes, context=20, mask_iou=0.9) == [[20, 213, 60, 233]], "the predicted IoU decides"
    assert two_views(*boxes, context=20, score=0.91) == [[20, 213, 60, 233]]
    assert two_views(*boxes, context=30, mask_iou=0.9) == [[20, 212, 60, 232]], "context comes first"


def test_a_whole_view_explains_the_cut_one_that_it_covers():
    assert two_views((20, 190, 60, 240), (20, 192, 60, 241)) == [[20, 190, 60, 240]]
    small = (20, 150, 60, 240), (20, 192, 60, 242)  # their IoU is below a half
    assert two_views(*small) == [[20, 150, 60, 240]]


def test_a_tile_that_sees_deeper_and_sees_nothing_is_right():
    left, right = PLAN.row(0)
    seams = Seams(PLAN, limit=3)
    seams.add(left, seen(left, rectangle(100, 20, 120, 40)))
    seams.add(right, seen(right, rectangle(20, 200, 60, 220)))  # 8 pixels deep; the left tile is 36 deep there
    assert pixels_of(seams.finish(0)) == [[100, 20, 120, 40]]


def test_a_tile_with_all_the_detections_that_it_may_have_is_not_believed_to_see_nothing():
    def found(count, score):
        left, right = PLAN.row(0)
        seams = Seams(PLAN, limit=3)
        seams.add(left, seen(left, rectangle(100, 20, 120, 40), score=0.5), count)
        seams.add(right, seen(right, rectangle(20, 200, 60, 220), score=score))
        return len(seams.finish(0))

    assert found(count=2, score=0.4) == 1
    assert found(count=3, score=0.4) == 2, "the left tile may have seen it, but had no room"
    assert found(count=3, score=0.6) == 1, "the left tile would have had room for this score"


def test_pieces_that_do_not_agree_stay_apart():
    left, right = PLAN.row(0)
    seams = Seams(PLAN)
    seams.add(left, seen(left, rectangle(20, 100, 60, 300)))
    seams.add(right, seen(right, rectangle(50, 100, 90, 300)))
    found = seams.finish(0)
    assert pixels_of(found) == [[20, 100, 60, 256], [50, 192, 90, 300]]
    assert (found.is_cut.tolist(), found.pieces.tolist()) == ([True, True], [1, 1])


def test_a_piece_is_joined_with_one_piece_of_a_tile_only():
    left, right = PLAN.row(0)
    seams = Seams(PLAN)
    seams.add(left, seen(left, rectangle(20, 100, 60, 300)))  # took both for one
    seams.add(right, seen(right, rectangle(20, 100, 42, 300), rectangle(40, 100, 60, 300)))
    found = seams.finish(0)
    assert sorted(found.pieces.tolist()) == [1, 2]
    joined = found.masks[found.pieces.tolist().index(2)]
    assert joined.mask[:, -1].sum() == 22, "the more similar one"


def test_each_view_has_its_own_twin_among_similar_ones():
    """A doubtful detection beside a sure one, seen deeper, does not replace it."""
    left, right = PLAN.row(0)
    sure, doubtful = rectangle(20, 200, 60, 220), rectangle(20, 205, 60, 224)  # IoU 0.6; 36 and 32 pixels deep
    seams = Seams(PLAN)
    seams.add(left, seen(left, sure) + seen(left, rectangle(0, 0, 1, 1), doubtful, score=0.1)[1:])
    seams.add(right, seen(right, sure) + seen(right, rectangle(200, 300, 201, 301), doubtful, score=0.1)[1:])
    found = seams.finish(0)
    assert pixels_of(found) == [[20, 200, 60, 220], [20, 205, 60, 224]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.1])


def test_a_view_without_a_twin_of_its_own_is_not_believed():
    """The left tile is deeper, and shows one object where the right one shows two."""
    left, right = PLAN.row(0)
    seams = Seams(PLAN)
    seams.add(left, seen(left, rectangle(20, 200, 60, 220)))
    seams.add(right, seen(right, rectangle(20, 201, 60, 221), rectangle(20, 205, 60, 224)))
    assert pixels_of(seams.finish(0)) == [[20, 200, 60, 220]]


def test_twins_of_twins_are_never_two_views_of_one_tile():
    """Each view resembles the next one only; the first and the last are of one tile."""
    boxes = [rectangle(200, x, 220, x + 20) for x in (200, 205, 210, 215)]
    corner, right, below = PLAN.tile(0, 0), PLAN.tile(0, 1), PLAN.tile(1, 0)
    seams = Seams(PLAN, context=0)  # no tile knows better
    seams.add(corner, seen(corner, boxes[0], boxes[3]))
    seams.add(right, seen(right, boxes[1]))
    seams.add(below, seen(below, boxes[2]))
    seams.add(PLAN.tile(1, 1), [])
    assert len(seams.finish(1)) == 2


def test_a_piece_that_a_whole_view_covers_is_no_object():
    """The right tile shows a part of what it sees; near the left tile's side, so that this does not know better."""
    whole, part = (20, 195, 100, 250), (20, 180, 50, 254)
    assert two_views(whole, part) == [[*whole]]


def test_a_view_that_ends_too_early_is_a_piece():
    """The left tile shows the object 20 pixels shorter than it sees it, as if it ended there."""
    found = two_views((20, 40, 60, 236), (20, 40, 60, 330))
    assert found == [[20, 40, 60, 330]]
    assert two_views((20, 200, 60, 240), (20, 200, 60, 280)) == [[20, 200, 60, 280]], "unless another view is whole"


def join(left_views, right_views, mask=None) -> TiledDetections:
    """What comes of views (class, score, mask_iou) of one mask in the two upper tiles, which cut it."""
    mask = mask or rectangle(20, 100, 60, 352)  # 156 and 160 columns
    seams = Seams(PLAN)
    for tile, views in zip(PLAN.row(0), (left_views, right_views), strict=True):
        found = []
        for class_id, score, mask_iou in views:
            padding = [rectangle(440, 220, 441, 221)] * len(found)  # so that views have numbers of their own
            found += seen(tile, *padding, mask, class_id=class_id, score=score, mask_iou=mask_iou)[-1:]
        seams.add(tile, found)
    return seams.finish(0)


def test_a_joined_object_has_the_mean_of_the_scores_and_ious():
    found = join([(1, 0.9, 0.5)], [(1, 0.6, 0.9)])
    score, mask_iou = (156 * 0.9 + 160 * 0.6) / 316, (156 * 0.5 + 160 * 0.9) / 316
    assert found.scores.tolist() == pytest.approx([score])
    assert found.mask_ious.tolist() == pytest.approx([mask_iou])
    assert found.mask_scores.tolist() == pytest.approx([score * mask_iou])


def test_pieces_of_two_classes_are_joined_and_decide_about_the_class():
    found = join([(1, 0.9, 0.5)], [(2, 0.6, 0.9)])
    assert (found.pieces.tolist(), found.class_ids.tolist()) == ([2], [2]), "0.54 of 160 columns, 0.45 of 156"
    assert join([(1, 0.9, 0.9)], [(2, 0.6, 0.9)]).class_ids.tolist() == [1]
    assert join([(2, 0.5, 0.5)], [(1, 0.5, 0.5)], rectangle(20, 100, 60, 348)).class_ids.tolist() == [1], "a tie"


def test_pieces_of_one_class_are_joined_before_those_of_two():
    found = join([(1, 0.9, 0.9), (2, 0.2, 0.9)], [(2, 0.7, 0.9), (1, 0.1, 0.9)])
    assert found.pieces.tolist() == [2, 2]
    assert found.class_ids.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([(156 * 0.9 + 160 * 0.1) / 316, (156 * 0.2 + 160 * 0.7) / 316])
    alone = join([(1, 0.9, 0.9), (2, 0.2, 0.9)], [(3, 0.7, 0.9)])
    assert sorted(alone.pieces.tolist()) == [1, 2]


def test_whole_views_of_another_class_explain_no_piece():
    left, right = PLAN.row(0)
    seams = Seams(PLAN, context=0)  # no tile knows better
    seams.add(left, seen(left, rectangle(20, 195, 100, 250), class_id=2))
    seams.add(right, seen(right, rectangle(20, 180, 50, 254)))
    assert len(seams.finish(0)) == 2


def test_without_a_maskiou_head_there_are_no_ious():
    found = merge(rectangle(20, 150, 60, 300), rectangle(100, 20, 120, 40), mask_iou=None)
    assert found.mask_ious is None
    assert found.mask_scores.tolist() == pytest.approx([0.9, 0.9])


def test_nothing_is_found_in_an_empty_image():
    found = merge()
    assert (found.rois.shape, found.masks) == ((0, 4), [])
    assert len(found.to_image_detections(SHAPE)) == 0


def test_a_tile_is_added_once():
    seams = Seams(PLAN)
    seams.add(PLAN.tile(0, 1), [])
    with pytest.raises(ValueError, match="row 0 and column 1 was added before"):
        seams.add(PLAN.tile(0, 1), [])


def test_a_view_is_clipped_to_what_its_tile_sees():
    tile = PLAN.tile(1, 1)
    (view,) = seen(tile, rectangle(180, 300, 220, 340))
    assert (view.extent, view.box[0], view.is_cut, view.depth) == ((192, 300, 220, 340), 192, True, 0)
    assert view.area == 28 * 40
    assert seen(tile, rectangle(0, 0, 190, 190)) == []
    (corner,) = seen(tile, rectangle(400, 400, 448, 448))
    assert (corner.depth, corner.is_cut) == (208, False), "sides of the image are not near"


def test_detections_become_views_in_the_image():
    tile = PLAN.tile(1, 1)
    masks = np.zeros((100, 120, 2), bool)
    masks[10:20, 30:50, 0] = True  # the second is empty
    result = {
        "rois": np.array([[10, 30, 20, 50], [0, 0, 5, 5]], np.float32),
        "class_ids": np.array([2, 1], np.int32),
        "scores": np.array([0.75, 0.5], np.float32),
        "mask_ious": np.array([0.5, 0.5], np.float32),
        "mask_scores": np.array([0.375, 0.25], np.float32),
        "masks": utils.mask_to_rle(masks),
    }
    (view,) = tiles.views_of_result(tile, result, (190, 192), SHAPE)
    assert view.box == view.extent == (200, 222, 210, 242)
    assert (view.class_id, view.score, view.mask_iou, view.mask_score) == (2, 0.75, 0.5, 0.375)
    (view,) = tiles.views_of_result(tile, {**result, "mask_ious": None}, (190, 192), SHAPE)
    assert view.mask_iou is None


def test_crops_become_run_length_codes_of_the_image():
    found = merge(rectangle(20, 150, 60, 300))
    codes = found.to_image_detections((*SHAPE, 3))
    mask = np.zeros(SHAPE, bool)
    mask[20:60, 150:300] = True
    assert codes.masks == [utils.mask_to_rle(mask)]
    assert codes.to_coco(7, [0, 5])[0]["bbox"] == [150, 20, 150, 40]
    with pytest.raises(ValueError, match="cut the image into tiles"):
        found.to_image_detections((70_000, 70_000))


############################################################
#  Further tiles
############################################################


def looked(*masks, plan=PLAN, shown=None, **options) -> tuple[TiledDetections, list[tiles.Tile]]:
    """As merge, with further tiles, which see `shown`, or else the masks too. Also gives the further tiles."""
    laid = []

    def look(further):
        laid.extend(further)
        return [(tile, seen(tile, *(masks if shown is None else shown), plan=plan, **options), 1) for tile in further]

    seams, parts = Seams(plan, limit=options.pop("limit", None), look=look), []
    for row in plan.rows():
        for tile in row:
            seams.add(tile, seen(tile, *masks, plan=plan))
        parts.append(seams.finish(row[0].row))
    assert len(seams) == 0
    assert not any((seams._further, seams._asked, seams._denied, seams._twins, seams._covers))
    return TiledDetections.cat(parts), laid


@pytest.mark.parametrize(("box", "tiles_laid"), [
    ((20, 150, 60, 300), 1), ((150, 150, 300, 300), 1),
    ((100, 0, 140, 230), 0), ((0, 0, 200, 230), 0),  # barely whole, and no tile would show more room around them
])  # fmt: skip
def test_an_object_that_no_tile_sees_whole_is_seen_by_a_further_one(box, tiles_laid):
    found, laid = looked(rectangle(*box))
    assert pixels_of(found) == [list(box)]
    assert (found.pieces.tolist(), found.is_cut.tolist()) == ([1], [False])
    assert len(laid) == tiles_laid


@pytest.mark.parametrize("box", [(20, 30, 60, 90), (230, 10, 250, 30), (0, 0, 200, 200), (235, 235, 245, 245)])
def test_what_a_tile_sees_with_room_around_is_not_looked_at_again(box):
    assert looked(rectangle(*box))[1] == []


def test_what_tiles_see_barely_whole_is_looked_at_again():
    """The left tile shows the object as if it ended 8 pixels before the tile does."""
    left, right = PLAN.row(0)
    whole = rectangle(20, 190, 100, 300)
    seams = Seams(PLAN, look=lambda further: [(tile, seen(tile, whole, class_id=2), 1) for tile in further])
    seams.add(left, seen(left, rectangle(20, 190, 100, 248)))
    seams.add(right, [])
    found = seams.finish(0)
    assert pixels_of(found) == [[20, 190, 100, 300]]
    assert found.class_ids.tolist() == [2], "the further tile knows the class"


def test_only_what_is_larger_than_a_tile_is_joined():
    large, small = (40, 0, 70, 448), (150, 150, 300, 300)
    found, laid = looked(rectangle(*large), rectangle(*small))
    assert pixels_of(found) == [list(large), list(small)]
    assert sorted(found.pieces.tolist()) == [1, 2]
    assert len(laid) == 1


def test_one_further_tile_shows_all_objects_that_lie_deep_in_it():
    boxes = [[150, 100, 300, 130], [150, 130, 300, 160]]
    found, laid = looked(*(rectangle(*box) for box in boxes))
    assert pixels_of(found) == boxes
    assert len(laid) == 1


def test_what_a_further_tile_does_not_see_is_no_object():
    found, _ = looked(rectangle(20, 150, 60, 300), shown=[rectangle(400, 400, 420, 420)])
    assert len(found) == 0
    box = [20, 150, 60, 300]
    found, _ = looked(rectangle(*box), shown=[rectangle(61, 200, 70, 210)], limit=1)
    assert pixels_of(found) == [], "its detection has the lowest score, so another one would have been higher"
    found, _ = looked(rectangle(*box), shown=[rectangle(61, 200, 70, 210)], limit=1, score=0.95)
    assert pixels_of(found) == [box], "it had no room for one of this score"


def test_a_further_tile_that_cuts_the_object_leaves_its_pieces_joined():
    found, laid = looked(rectangle(20, 150, 60, 300), shown=[rectangle(20, 90, 60, 448)])
    assert pixels_of(found) == [[20, 150, 60, 300]]
    assert (found.pieces.tolist(), len(laid)) == ([2], 1)


def test_a_further_tile_knows_the_class():
    found, _ = looked(rectangle(20, 150, 60, 300), class_id=2)
    assert (found.class_ids.tolist(), found.pieces.tolist()) == ([2], [1])


def test_pieces_that_do_not_agree_are_one_object_if_a_further_tile_sees_one():
    left, right = PLAN.row(0)
    whole = rectangle(20, 100, 60, 300)
    seams = Seams(PLAN, look=lambda further: [(tile, seen(tile, whole), 1) for tile in further])
    seams.add(left, seen(left, whole))
    seams.add(right, seen(right, rectangle(20, 100, 39, 300)))
    assert pixels_of(seams.finish(0)) == [[20, 100, 60, 300]]


def test_what_a_further_tile_sees_waits_for_rows_that_see_it_too():
    """The pieces end above the second row of tiles. The whole object does not, and that row sees it as well."""
    plan = plan_tiles((1000, 448), CONFIG, tile=256, overlap=64)  # rows at 0, 192, ...
    whole = rectangle(150, 150, 215, 300)
    calls = []

    def look(further):
        calls.append(further)
        return [(tile, seen(tile, whole, plan=plan), 1) for tile in further]

    seams = Seams(plan, look=look)
    for tile in plan.row(0):
        seams.add(tile, seen(tile, rectangle(150, 150, 190, 300), plan=plan))
    assert len(seams.finish(0)) == 0
    assert len(seams) == 3
    for tile in plan.row(1):
        seams.add(tile, seen(tile, whole, plan=plan))
    assert pixels_of(seams.finish(1)) == [[150, 150, 215, 300]]
    assert len(calls) == 1


@given(st.integers(0, 10_000), st.sampled_from([1.0, 1.5, 2.0]))
def test_a_tile_around_a_box_sees_it_whole_if_any_can(seed, scale):
    rng = np.random.default_rng(seed)
    plan = plan_tiles(rng.integers(300, 1200, 2), CONFIG, tile=256, overlap=64, scale=scale)
    height, width = np.minimum(rng.integers(4, 400, 2), plan.image_shape)
    y1, x1 = (
        int(rng.integers(0, side - size + 1)) for side, size in zip(plan.image_shape, (height, width), strict=True)
    )
    box = (y1, x1, y1 + int(height), x1 + int(width))
    tile = plan.tile_around(box)
    if tile is None:
        is_known = any(not tiles.is_cut(box, each.region, plan.image_shape) for row in plan.rows() for each in row)
        assert is_known or max(height, width) * scale > plan.side - 0.1 * plan.side - 4 * scale
        return
    assert not tiles.is_cut(box, tile.region, plan.image_shape)
    assert max(tile.shape) <= plan.side
    assert min(tile.window) >= 0
    assert (np.array(tile.window[2:]) <= plan.input_shape).all()
    assert tile == plan.further_tile(tile.window[:2])
    if max(height, width) * scale < 100:
        assert all(start % plan.cell[1] == 0 for start in tile.window[:2]), "there is a place on the coarsest stride"


@given(st.integers(0, 10_000), st.booleans())
def test_the_tiles_around_one_are_those_that_overlap_with_it(seed, is_further):
    rng = np.random.default_rng(seed)
    plan = plan_tiles(rng.integers(100, 1200, 2), CONFIG, tile=256, overlap=int(rng.integers(0, 129)))
    tile = plan.tile(*(int(rng.integers(count)) for count in plan.shape))
    tile = plan.further_tile([int(rng.integers(side)) for side in plan.input_shape]) if is_further else tile

    def overlaps(other):
        low, high = np.maximum(tile.window[:2], other.window[:2]), np.minimum(tile.window[2:], other.window[2:])
        return (low < high).all() and other != tile

    assert plan.around(tile) == [other for row in plan.rows() for other in row if overlaps(other)]


############################################################
#  Seams, of many objects
############################################################

LARGE = plan_tiles((1100, 900), CONFIG, tile=256, overlap=64)


def scattered(seed: int, count: int = 100, plan=LARGE) -> list[Crop]:
    """Rectangles that do not overlap but may touch: small ones, and some larger than the overlap or than a tile."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(plan.image_shape, bool)
    masks = []
    for _ in range(count):
        height, width = rng.integers(4, 600 if rng.random() < 0.1 else 60, 2)
        y1, x1 = rng.integers(0, plan.image_shape)
        y2, x2 = np.minimum((y1 + height, x1 + width), plan.image_shape)
        if not taken[y1:y2, x1:x2].any():
            taken[y1:y2, x1:x2] = True
            masks.append(rectangle(int(y1), int(x1), int(y2), int(x2)))
    return masks


@given(st.integers(0, 10_000))
def test_with_perfect_views_every_object_comes_out_once(seed):
    masks = scattered(seed)
    assert pixels_of(merge(*masks, plan=LARGE)) == sorted([*box_of(mask)] for mask in masks)


@given(st.integers(0, 10_000))
def test_with_perfect_views_further_tiles_see_all_that_fits(seed):
    masks = scattered(seed)
    found, _ = looked(*masks, plan=LARGE)
    assert pixels_of(found) == sorted([*box_of(mask)] for mask in masks)
    boxes = [box_of(mask) for mask, pieces in zip(found.masks, found.pieces, strict=True) if pieces > 1]
    assert all(LARGE.tile_around(box) is None for box in boxes)


def ellipses(seed: int, plan=LARGE) -> list[Crop]:
    """Ellipses of 70 to 500 pixels that do not overlap."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(plan.image_shape, bool)
    masks = []
    for radius in rng.uniform(35, 250, 150):
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        angle, share = rng.uniform(0, np.pi), rng.uniform(0.4, 1)
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        mask = trim(0, 0, along**2 + (across / share) ** 2 <= radius**2).mask
        if min(np.subtract(plan.image_shape, mask.shape)) <= 0:
            continue
        y1, x1 = rng.integers(0, np.subtract(plan.image_shape, mask.shape)).tolist()
        place = taken[y1 : y1 + mask.shape[0], x1 : x1 + mask.shape[1]]
        if not (place & mask).any():
            place |= mask
            masks.append(Crop(y1, x1, mask))
    return masks


def blurred(tile, number, mask: Crop, rng, plan=LARGE):
    """The view of a tile as a mask head shows it: 28 x 28 cells in a box that is one hundredth off, or None."""
    y1, x1, y2, x2 = tile.region
    top, left = max(mask.y, y1), max(mask.x, x1)
    y, x, part = trim(top, left, mask.mask[top - mask.y : max(y2 - mask.y, 0), left - mask.x : max(x2 - mask.x, 0)])
    if part.sum() < 100:
        return None
    height, width = part.shape
    box = np.array([y, x, y + height, x + width]) + rng.normal(0, 0.01, 4) * [height, width, height, width]
    box = box.clip((y1, x1) * 2, (y2, x2) * 2)
    cells = utils.resize_pixels(part[..., None].astype(np.uint8) * 255, (28, 28), "pillow")
    top, left, bottom, right = np.rint(box).astype(int).tolist()
    pixels = utils.resize_pixels(cells, (max(bottom - top, 1), max(right - left, 1)))[..., 0] > 127
    crop = Crop(top, left, pixels)
    return tiles.make_view(tile, number, plan.image_shape, box, crop, 1, score=0.9, mask_iou=0.8, mask_score=0.72)


@pytest.mark.parametrize("seed", range(2))
def test_large_objects_are_joined_from_pieces_that_are_not_exact(seed):
    rng, masks = np.random.default_rng(seed), ellipses(seed)
    seams, parts = Seams(LARGE), []
    for row in LARGE.rows():
        for tile in row:
            views = [blurred(tile, number, mask, rng) for number, mask in enumerate(masks)]
            seams.add(tile, [view for view in views if view is not None])
        parts.append(seams.finish(row[0].row))
    found = TiledDetections.cat(parts)
    assert len(found) == len(masks) >= 10
    assert (found.pieces > 1).sum() >= 5
    codes = [crop_to_rle(*mask, LARGE.image_shape) for mask in masks]
    ious = coco_mask.iou(codes, found.to_image_detections(LARGE.image_shape).masks, [0] * len(found))
    assert (ious.max(axis=1) >= 0.9).mean() >= 0.95
    assert ious.max(axis=1).min() >= 0.8


def wobbly(seed: int, plan=LARGE) -> list[tuple]:
    """Tiles with views that differ between tiles, and some that are missing or too many."""
    rng, masks = np.random.default_rng(seed), scattered(seed, 80, plan)
    found = []
    for tile in itertools.chain(*plan.rows()):
        moved = [Crop(mask.y + int(rng.integers(4)), mask.x + int(rng.integers(4)), mask.mask) for mask in masks]
        moved = [mask for mask in moved if rng.random() < 0.9]
        views = seen(tile, *moved, plan=plan)
        found.append((tile, [view for view in views if rng.random() < 0.95]))
    return found


def texts_of(found: TiledDetections) -> list[str]:
    columns = zip(found.rois.tolist(), found.masks, found.pieces.tolist(), found.is_cut.tolist(), strict=True)
    return sorted(f"{box} {mask.y} {mask.x} {mask.mask.tolist()} {rest}" for box, mask, *rest in columns)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_tiles_does_not_matter(seed):
    found = wobbly(seed)
    by_rows, parts = Seams(LARGE), []
    for tile, views in found:
        by_rows.add(tile, views)
        if tile.column + 1 == LARGE.shape[1]:
            parts.append(by_rows.finish(tile.row))
    random.Random(seed).shuffle(found)
    at_once = Seams(LARGE)
    for tile, views in found:
        at_once.add(tile, views)
    expected = texts_of(at_once.finish(LARGE.shape[0] - 1))
    assert len(expected) > 30
    assert texts_of(TiledDetections.cat(parts)) == expected


def test_objects_are_released_as_soon_as_no_row_can_change_them():
    plan = plan_tiles((1000, 200), CONFIG, tile=256, overlap=64)  # rows at 0, 192, 384, 576, 768
    boxes = [(10, 10, 192, 20), (100, 40, 193, 50), (200, 60, 240, 80), (300, 10, 600, 20), (380, 100, 384, 120)]
    seams, released = Seams(plan), []
    for row in plan.rows():
        for tile in row:
            seams.add(tile, seen(tile, *(rectangle(*box) for box in boxes), plan=plan))
        released.append(pixels_of(seams.finish(row[0].row)))
    first, second, third, fourth, fifth = boxes
    assert released == [[list(first)], [list(second), list(third), list(fifth)], [], [list(fourth)], []]


def test_what_is_kept_does_not_grow_with_the_image():
    def peak(height):
        plan = plan_tiles((height, 600), CONFIG, tile=256, overlap=64)
        rng = np.random.default_rng(0)
        places = [(int(y), int(x)) for y in range(0, height - 30, 40) for x in rng.integers(0, 560, 4)]
        seams, most, total = Seams(plan), 0, 0
        for row in plan.rows():
            for tile in row:
                near = [rectangle(y, x, y + 30, x + 25) for y, x in places if tile.region[0] - 40 < y < tile.region[2]]
                seams.add(tile, seen(tile, *near, plan=plan))
                most = max(most, len(seams))
            total += len(seams.finish(row[0].row))
        assert seams._twins == seams._covers == {}
        assert len(seams._least_scores) <= 2 * plan.shape[1]
        return most, total

    (small, few), (large, many) = peak(1200), peak(6000)
    assert many > 4 * few > 0
    assert large <= 1.2 * small


############################################################
#  Detection
############################################################


def ious_of(found, reference) -> np.ndarray:
    return coco_mask.iou(reference.masks, found.masks, [0] * len(found))


@pytest.fixture(scope="module")
def nuclei():
    return load_model("nuclei", "cpu")


@pytest.fixture(scope="module")
def mosaic():
    """256 x 256 pixels of a picture at half its size: about 60 nuclei of 10 to 30 pixels."""
    image = read_image("assets/nuclei_1.jpg")
    return utils.resize_pixels(image, (image.shape[0] // 2, image.shape[1] // 2), "pillow")[:256, :256]


def test_tiles_find_what_one_piece_shows(nuclei, mosaic):
    (result,) = nuclei.detect([mosaic], masks="rle")
    reference = tiles.ImageDetections.of(result)
    found = TiledDetections.cat(list(tiles.detect_tiled(nuclei, mosaic, tile=128, overlap=64)))
    found = found.to_image_detections(mosaic.shape)
    reference, found = (part[part.scores >= 0.5] for part in (reference, found))
    ious = ious_of(found, reference)
    assert len(reference) >= 20
    assert found.mask_ious is not None
    assert (ious.max(axis=1) >= 0.95).mean() >= 0.9
    assert (ious.max(axis=0) < 0.5).mean() <= 0.05
    assert abs(len(found) - len(reference)) <= 0.05 * len(reference)


def test_one_tile_is_detection_in_one_piece(nuclei, mosaic):
    (result,) = nuclei.detect([mosaic], masks="rle")
    (found,) = tiles.detect_tiled(nuclei, Counting(mosaic), tile=256, overlap=64)
    codes = found.to_image_detections(mosaic.shape)
    filled = [utils.rle_area(code) > 0 for code in result["masks"]]
    reference = tiles.ImageDetections.of(result)[np.array(filled)]
    order = np.argsort(-reference.scores, kind="stable")
    np.testing.assert_allclose(codes.scores, reference.scores[order], atol=1e-6)
    np.testing.assert_allclose(codes.rois, reference.rois[order], atol=1e-3)
    assert codes.masks == reference[order].masks


def test_freed_memory_is_returned_after_each_batch(monkeypatch):
    model, calls = tiny_model(IMAGES_PER_GPU=2), []
    monkeypatch.setattr(tiles.runtime, "return_memory", lambda: calls.append(1))
    plan = plan_tiles((64, 192), model.config, tile=64, overlap=0)
    pixels = Pixels(as_source(random_image(64, 192)), model.config)
    assert len(list(tiles.detect_views(model, pixels, plan, plan.row(0)))) == 3
    assert len(calls) == 2


def test_a_batch_of_tiles_finds_the_same(mosaic):
    def texts(size):
        model = load_model("nuclei", "cpu", IMAGES_PER_GPU=size)
        found = TiledDetections.cat(list(tiles.detect_tiled(model, mosaic[:, :200], tile=128, overlap=32)))
        return np.round(found.rois, 1).tolist(), found.pieces.tolist()

    assert texts(1) == texts(3)


@pytest.mark.parametrize("dialect", ["mmdet", "benchmark", "torchvision", "matterport", "detectron2"])
def test_every_dialect_detects_in_tiles(dialect):
    model = tiny_model(DIALECT=dialect)
    image = random_image(150, 210)
    rows = list(tiles.detect_tiled(model, image, tile=128, overlap=64))
    found = TiledDetections.cat(rows).to_image_detections(image.shape)
    assert len(rows) == 2
    assert all(code["size"] == [150, 210] for code in found.masks)
    assert (found.rois.clip(0, [150, 210, 150, 210]) == found.rois).all()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, ()), ({"IMAGE_CHANNEL_COUNT": 1}, ()), ({"IMAGE_CHANNEL_COUNT": 5}, (5,))]
)
def test_gray_deep_and_many_channels_are_read_and_bfloat16_detects(settings, shape):
    model = tiny_model(PIXEL_RANGE="percentiles", **settings)
    image = np.random.default_rng(0).integers(0, 3000, (90, 200, *shape), np.uint16)
    (found,) = tiles.detect_tiled(model, image, tile=128, overlap=64, dtype="bfloat16")
    assert len(found) > 0
    assert np.isfinite(found.mask_scores).all()


def test_wrong_arguments_are_refused_before_detection():
    model = tiny_model()
    with pytest.raises(ValueError, match="at most half of tile"):
        tiles.detect_tiled(model, random_image(20, 20), tile=100, overlap=60)
    with pytest.raises(ValueError, match="source must be an array"):
        tiles.detect_tiled(model, ["image.png"])
    with pytest.raises(ValueError, match="dtype must be one of"):
        list(tiles.detect_tiled(model, random_image(20, 20), dtype="float16"))

"""Where captions go: the rule on random boxes, and cases by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captions import COVERED, place_captions


def shared_areas(rects, others):
    """[R, O] of rectangles [R, 4] and [O, 4], by hand."""
    low, high = np.maximum(rects[:, None, :2], others[:, :2]), np.minimum(rects[:, None, 2:], others[:, 2:])
    return (high - low).clip(0).prod(axis=2)


def random_captions(seed, count):
    """Boxes, some of them beyond an image of 200 x 220, and sizes of three forms of captions."""
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(-30, 250, (count, 2, 2)), axis=1).reshape(count, 4)
    small = rng.random(count) < 0.5
    boxes[small, 2:] = boxes[small, :2] + rng.uniform(5, 40, (small.sum(), 2))
    full = rng.uniform([8, 40], [20, 130], (count, 2))
    short = np.where(rng.random((count, 1)) < 0.8, 0.7 * full * [1, 0.2], 0)
    return boxes, np.stack([full, 0.7 * full, short])


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_no_caption_hides_an_object_or_another_caption(seed, count):
    boxes, sizes = random_captions(seed, count)
    forms, corners = place_captions(boxes, sizes, (200, 220, 3))
    assert forms.shape == (count,)
    assert corners.shape == (count, 2)
    drawn = np.flatnonzero(forms >= 0)
    extents = sizes[forms[drawn], drawn]
    assert (extents > 0).all(), "a form that does not exist is not chosen"
    captions = np.concatenate([corners[drawn], corners[drawn] + extents], axis=1)
    assert (captions >= -1e-9).all()
    assert (captions[:, 2:] <= [200 + 1e-9, 220 + 1e-9]).all(), "all lie in the image"
    assert (extents[:, 1] <= 110).all(), "and take half of its width at most"
    assert np.triu(shared_areas(captions, captions), 1).max(initial=0) < 1e-9, "no two captions overlap"
    seen = boxes.clip(0, [200, 220, 200, 220])
    shares = shared_areas(captions, seen) / np.maximum((seen[:, 2:] - seen[:, :2]).prod(axis=1), 1e-9)
    assert shares.sum(axis=1).max(initial=0) <= COVERED + 1e-9, "what one caption covers"
    assert shares.sum(axis=0).max(initial=0) <= COVERED + 1e-9, "what is covered of one box"
    again = place_captions(boxes, sizes, (200, 220, 3))
    assert (again[0] == forms).all()
    assert (again[1] == corners).all()
    fewer, places = place_captions(boxes[: count // 2], sizes[:, : count // 2], (200, 220, 3), "all")
    assert (fewer == 0).all(), "all captions are there, as long as they are"
    limit = np.maximum([200, 220] - sizes[0, : count // 2], 0)
    assert ((places >= 0) & (places <= limit + 1e-9)).all()


def test_captions_shrink_lose_their_words_and_vanish():
    """By hand: a box of 40 x 40 fills the middle of images that get narrower."""
    box, sizes = np.array([[60.0, 0, 100, 40]]), np.array([[[10.0, 80]], [[8, 60]], [[8, 20]]])
    forms = [place_captions(box, sizes, (200, width))[0][0] for width in (160, 159, 120, 119, 40, 39)]
    assert forms == [0, 1, 1, 2, 2, -1]
    roomy = place_captions(box, sizes, (200, 160))[1]
    assert roomy.tolist() == [[50, 0]], "above its box"
    tight = np.array([[0.0, 0, 40, 40]])
    forms, corners = place_captions(tight, sizes, (40, 160))
    assert (forms[0], corners[0].tolist()) == (0, [0, 40]), "beside it, where nothing is covered"
    forms, corners = place_captions(tight, sizes, (40, 40))
    assert (forms[0], corners[0].tolist()) == (2, [0, 0]), "on it, where a tenth is covered: 8 * 20 / 40 ** 2"
    assert place_captions(tight / 2, sizes, (20, 40))[0][0] == 2
    assert place_captions(tight / 2, sizes, (20, 39))[0][0] == -1, "it would cover 8 * 19 / 20 ** 2"


def test_captions_respect_objects_that_they_do_not_name():
    """Boxes that fill the image: each caption lies in its own box, or nowhere."""
    boxes = np.array([[0.0, 0, 20, 200], [20, 0, 40, 200], [40, 0, 60, 200], [60, 0, 80, 200]])
    forms, corners = place_captions(boxes, np.full((1, 4, 2), [10.0, 80]), (80, 200))
    assert forms.tolist() == [0, 0, 0, 0], "10 * 80 / (20 * 200) is COVERED exactly"
    assert [corners[i].tolist() for i in range(4)] == [[0, 0], [20, 0], [40, 0], [70, 0]]
    forms, _ = place_captions(boxes, np.full((1, 4, 2), [10.0, 81]), (80, 200))
    assert forms.tolist() == [-1, -1, -1, -1]


def test_all_captions_keep_out_of_each_others_way():
    boxes, sizes = np.array([[100, 100, 140, 150]] * 12, float), np.array([[10, 40]] * 12, float)
    forms, corners = place_captions(boxes, sizes[None], (300, 300, 3), "all")
    assert (forms == 0).all()
    assert corners[0].tolist() == [90, 100], "the first has its place above"
    captions = np.concatenate([corners, corners + sizes], axis=1)
    assert np.triu(shared_areas(captions, captions), 1).max() == 0
    assert np.abs(corners + sizes / 2 - [120, 125]).max() <= 70, "none far from its box"
    _, wide = place_captions(boxes[:1], np.array([[[400, 500]]]), (300, 300, 3), "all")
    assert wide.tolist() == [[0, 0]], "too large for the image"

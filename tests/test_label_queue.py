"""The queue of labels and the order of pictures, on made-up detections; what the pages draw."""

from pathlib import Path

import numpy as np
import pytest

import utils
from config import Config
from data.likeness import SIDE
from data.recognise import Records
from data.records import Findings, Object, Picture
from evaluation import label_queue, review_page, suggest
from evaluation.review import MISSING, Found

SIZE = (60, 80)


def box(y1: int, x1: int, y2: int, x2: int) -> dict:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return utils.mask_to_rle(mask)


def found(masks=(), scores=None, ious=None, rows=None) -> Found:
    count = len(masks)
    scores = np.array([0.9] * count if scores is None else scores, np.float64)
    ious = np.array([0.9] * count if ious is None else ious, np.float64)
    return Found(np.array(rows or [1] * count, np.int64), scores, ious, scores * ious, list(masks))


class Model:
    """What the queue asks of a model."""

    source = "made up"

    def __init__(self, names=("BG", "cat"), **settings) -> None:
        self.class_names, self.category_ids = list(names), list(range(len(names)))
        self.config = Config(NAME="x", NUM_CLASSES=len(names), **settings)


def picture(name: str, objects, split=None) -> Picture:
    made = Picture(Path("/data") / name, f"{name}.json", split=split, height=SIZE[0], width=SIZE[1])
    made.objects = objects
    return made


def seen(name: str, objects, what: Found, split=None) -> label_queue.Seen:
    return label_queue.Seen(picture(name, objects, split), name, what)


A, B = box(5, 5, 25, 25), box(30, 40, 55, 70)


def test_the_queue_goes_over_all_pictures():
    pictures = [
        seen("a.png", [Object("Cat", "shape 1", rle=A), Object("horse", "shape 2", rle=B)], found([A]), "train"),
        seen("b.png", [Object("Cat", "shape 1", rle=box(5, 5, 15, 25))], found([A, B]), "val"),
        seen("c.png", [Object("Cat", "shape 1", rle=A, is_crowd=True)], found([A]), "val"),
    ]
    done = label_queue.review(Model(), pictures)
    assert [(entry.reviewed.seen.name, entry.suspect.kind) for entry in done.queue[:2]] == [
        ("b.png", MISSING),
        ("b.png", "sloppy"),
    ]
    assert (done.looked_at, done.crowds, done.unknown) == (2, 1, ["horse"])
    assert done.queue[1].place == "b.png.json: shape 1"
    assert done.queue[0].place == "b.png.json: not there, x 40 to 70, y 30 to 55"
    assert done.agreement() == pytest.approx({"train": 1.0, "val": 0.5})
    assert done.counts(done.queue)["missing"] == 1
    text = "\n".join(label_queue.review_lines(done, 1))
    assert "classes that the model does not know: horse" in text
    assert "Looked at 2 labels in 3 pictures, beside 1 crowd" in text
    assert "'Cat' is taken for the class 'cat'" in text
    assert "sloppy" not in text.partition("most suspicious")[2]


def test_nothing_is_missing_of_classes_that_are_not_labelled():
    """A cat is labelled in each; the model finds a dog besides. Only the first two pictures are labelled for dogs."""
    cat = Object("cat", "shape 1", rle=A)
    pictures = [seen(f"{i}.png", [cat], found([A, B], rows=[1, 2])) for i in range(4)]
    pictures[0].picture.objects = [cat, Object("dog", "shape 2", rle=box(5, 50, 20, 70))]
    pictures[1].picture.labelled_classes = ("dog", "cat")
    pictures[2].picture.labelled_classes = ("cat",)
    pictures[3].picture.labelled_classes = ()
    done = label_queue.review(Model(("BG", "cat", "dog")), pictures)
    missing = [entry.reviewed.seen.name for entry in done.queue if entry.suspect.kind == MISSING]
    assert sorted(missing) == ["0.png", "1.png"]


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="the model knows cat, and none of the classes of the labels: dog"):
        label_queue.review(Model(), [seen("a.png", [Object("dog", "shape 1", rle=A)], found([A]))])


def test_labels_with_numbers_leave_the_labels_as_they_are():
    one = seen("a.png", [Object("cat", "shape 1", rle=A, attributes={"note": "mine"})], found([A, B]))
    records = Records(Path("/data"), "made up", "", [one.picture], Findings())
    done = label_queue.review(Model(), [one])
    (numbered,) = label_queue.labels_with_numbers(Model(), records, done, done.queue).pictures
    first, proposal = numbered.objects
    assert first.rle is A
    assert first.attributes["note"] == "mine"
    assert {"suspicion", "kind", "iou", "score", "mask_iou", "mask_score"} <= first.attributes.keys()
    assert (proposal.name, proposal.rle, proposal.attributes["kind"]) == ("cat", B, MISSING)
    assert one.picture.objects[0].attributes == {"note": "mine"}
    assert label_queue.to_json(Model(), done)["queue"][0]["box"] == [30, 40, 55, 70]


def test_numbers_of_a_detection_have_the_names_of_all_commands():
    what = found([A], [0.8], [0.5])
    assert label_queue.attributes_of(Model().config, what, 0) == {"score": 0.8, "mask_iou": 0.5, "mask_score": 0.4}
    without = Model(USE_MASKIOU_HEAD=False).config
    assert label_queue.attributes_of(without, found([A], [0.8], [1]), 0) == {"score": 0.8, "mask_score": 0.8}
    calibrated = Model(ACCEPT_CALIBRATION=(0.0,) * 12).config
    assert label_queue.attributes_of(calibrated, what, 0)["accept"] == 0.5


def test_the_model_sees_whole_pictures_and_keeps_what_it_is_not_sure_of():
    config = Config(
        NAME="x",
        NUM_CLASSES=2,
        IMAGE_RESIZE_MODE="crop",
        IMAGE_MIN_DIM=512,
        IMAGE_MAX_DIM=512,
        DETECTION_MIN_CONFIDENCE=0.5,
        IMAGES_PER_GPU=4,
    )
    assert label_queue.detection_settings(config, {}) == {
        "IMAGE_RESIZE_MODE": "pad64", "IMAGES_PER_GPU": 1, "DETECTION_MIN_CONFIDENCE": 0.05,
        "DETECTION_MAX_INSTANCES": 300,
    }  # fmt: skip
    assert "IMAGES_PER_GPU" not in label_queue.detection_settings(config, {"IMAGES_PER_GPU": 2})
    few = Config(NAME="x", NUM_CLASSES=2, POST_NMS_ROIS_INFERENCE=200, DETECTION_MAX_INSTANCES=100)
    assert label_queue.detection_settings(few, {})["DETECTION_MAX_INSTANCES"] == 200


def test_output_inside_of_the_data_is_refused(tmp_path):
    label_queue.check_output(tmp_path / "out", tmp_path / "data", "--dataset")
    label_queue.check_output(tmp_path / "output" / "review", tmp_path, "--dataset")  # no reader looks there
    for inside in (tmp_path, tmp_path / "review"):
        with pytest.raises(ValueError, match="lies inside of --dataset"):
            label_queue.check_output(inside, tmp_path, "--dataset")


############################################################
#  Pictures
############################################################


def test_outlines_lie_where_the_masks_are():
    pixels = np.zeros((*SIZE, 3), np.uint8)
    region = review_page.region_around([utils.rle_to_bbox(A)], SIZE)
    assert region == (0, 0, 37, 37)
    drawn = review_page.draw_outlines(pixels, region, [(A, (1, 0, 0))], side=37 * 4)
    assert drawn.shape == (148, 148, 3)
    red = np.argwhere(drawn[..., 0] == 255)
    assert (red.min(axis=0), red.max(axis=0)) == (pytest.approx([20, 20]), pytest.approx([99, 99]))
    assert not drawn[25:95, 25:95].any(), "only the outline is drawn"
    both = review_page.draw_outlines(pixels, region, [(A, (1, 0, 0)), (A, (0, 1, 0))], side=148)
    assert not both[..., 0].any(), "the last one is on top"
    assert review_page.draw_outlines(pixels, (0, 0, *SIZE), [], side=40).shape == (30, 40, 3)


def test_a_picture_that_is_gone_is_named_on_the_page():
    done = label_queue.review(Model(), [seen("gone.png", [Object("cat", "shape 1", rle=A)], found([A, B]))])
    page = review_page.render(review_page.review_view(Model(), done, 5, "data"))
    assert page.count('class="missing"') == 2
    assert "gone.png" in page


############################################################
#  Suggest
############################################################


def test_doubts_by_hand():
    what = found([A, B], [0.9, 0.4], [0.8, 0.5])
    values = suggest.doubts(what)
    assert values["sum"] == pytest.approx(0.9 * 0.2 + 0.4 * 0.5)
    assert values["mean"] == pytest.approx((0.9 * 0.2 + 0.4 * 0.5) / 1.3)
    assert values["expected error"] == pytest.approx(1 - 2 * 0.72 / (1 + 0.72 + 0.2))
    assert suggest.doubts(found([A], [0.3], [0.9]))["expected error"] == 1, "something is there, and nothing is kept"
    assert set(suggest.doubts(found()).values()) == {0}
    assert suggest.doubtful(what) == [1, 0]
    assert suggest.doubtful(what, 1) == [1]
    assert suggest.kept(what, 0.5) == [0]


def test_doubtful_pictures_come_first_and_likenesses_last():
    pictures = [
        seen("sure.png", [], found([A, B], [0.99, 0.99], [0.95, 0.95])),
        seen("unsure.png", [], found([A, B], [0.8, 0.4], [0.7, 0.6])),
        seen("copy.png", [], found([A, B], [0.8, 0.4], [0.65, 0.6])),
        seen("empty.png", [], found()),
    ]
    thumbnails = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE), dtype=np.uint8)
    thumbnails[1] = thumbnails[2][::-1]
    ranking = suggest.suggest(pictures, thumbnails)
    assert [one.seen.name for one in ranking] == ["copy.png", "sure.png", "empty.png", "unsure.png"]
    assert [one.like for one in ranking] == ["", "", "", "copy.png"]
    lines = suggest.suggest_lines(ranking, 2, 0.5)
    assert lines[0] == "Looked at 4 pictures"
    assert any("in 1 the model finds nothing" in line and "empty.png" in line for line in lines)
    records = Records(Path("/data"), "pictures", "", [one.picture for one in pictures], Findings())
    first = suggest.proposals(Model(), records, ranking[:2], 0.5)
    assert [len(one.objects) for one in first.pictures] == [1, 2]
    assert first.pictures[0].objects[0].attributes["score"] == 0.8
    value = suggest.to_json(Model(), ranking, 0.5)
    assert value["pictures"][3]["shows the same as"] == "copy.png"

"""COCO-style evaluation of any data set: cases by hand, and pycocotools called directly."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import detection_result, random_rectangles, rectangles
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evaluation
import utils
from config import Config
from data.dataset import Dataset, Instances
from evaluation.detect import detect_dataset
from evaluation.metrics import RankedEvaluation, as_coco, average_precision, run_cocoeval
from evaluation.names import MEASURES
from evaluation.results import (
    categories_of_model,
    category_numbers,
    class_notes,
    ground_truth,
    image_number,
    image_numbers,
    known_truth,
    to_results,
)
from evaluation.run import evaluate_dataset, evaluation_callback
from evaluation.words import metrics_table


class Drawn(Dataset):
    """Black images with the masks and class ids that it is given."""

    def __init__(self, *images: tuple[np.ndarray, list[int]]) -> None:
        super().__init__()
        self.add_class("drawn", 1, "cat")
        self.add_class("drawn", 2, "dog")
        for i, (masks, class_ids) in enumerate(images):
            self.add_image("drawn", i, None, masks=masks, classes=class_ids)
        self.prepare()

    def load_image(self, image_id):
        return np.full((*self.image_info[image_id]["masks"].shape[:2], 3), image_id, np.uint8)

    def load_mask(self, image_id):
        info = self.image_info[image_id]
        return info["masks"], np.array(info["classes"], np.int32)


class Oracle:
    """Stands in for a model: of an image it finds what it was told, known by the image's pixels."""

    def __init__(self, *found: dict, **settings) -> None:
        self.config = Config(NUM_CLASSES=3, **settings)
        self.found = found

    def detect_batches(self, batches, dtype="float32", masks="rle"):
        assert masks == "rle"
        for images in batches:
            assert len(images) <= self.config.IMAGES_PER_GPU
            yield [self.found[image[0, 0, 0]] for image in images]


def numbers(metrics, *names) -> list[float]:
    return [metrics[name] for name in names]


NOTHING = detection_result(rectangles(), [], [], [])


############################################################
#  By hand
############################################################


def test_perfect_predictions():
    """The very first object of the first image counts too: pycocotools would lose it if its id were 0."""
    first = rectangles((10, 10, 30, 40)), [1]
    second = rectangles((0, 0, 50, 50), (50, 20, 99, 90)), [2, 1]
    model = Oracle(detection_result(*first, [0.9], [0.8]), detection_result(*second, [0.7, 0.6], [0.9, 1.0]))
    metrics = evaluate_dataset(model, Drawn(first, second), verbose=False)
    names = ("box AP", "mask AP", "mask AP (class score)", "mask AP50", "mask AP75 (true IoU)", "mask APs", "mask APm")
    assert numbers(metrics, *names) == pytest.approx([1] * 7)  # of 600, 2500 and 3430 pixels
    assert metrics["mask APl"] == metrics["box APl"] == -1, "there is none"
    assert metrics["re-scoring gain"] == 0
    assert (metrics["images"], metrics["detections"], metrics["max_dets"]) == (2, 3, 100)


def test_mask_scores_rank_the_better_mask_first():
    """One object, twice found: 0.625 of it with class score 0.9, all of it with 0.8.

    By class score the better mask comes second. It counts at the seven thresholds from 0.65 up, with precision 1/2:
    AP (3 * 1 + 7 * 0.5) / 10. By mask score it comes first: AP 1.
    """
    truth = rectangles((0, 0, 40, 40)), [1]
    both = rectangles((0, 0, 25, 40), (0, 0, 40, 40))
    model = Oracle(detection_result(both, [1, 1], [0.9, 0.8], [0.6, 1.0]))
    metrics = evaluate_dataset(model, Drawn(truth), verbose=False)
    assert numbers(metrics, "mask AP (class score)", "box AP") == pytest.approx([0.65, 0.65])
    assert metrics["mask AP75 (class score)"] == pytest.approx(0.5)
    assert numbers(metrics, "mask AP", "mask AP75", "mask AP (true IoU)") == pytest.approx([1, 1, 1])
    assert metrics["re-scoring gain"] == pytest.approx(0.35)
    assert metrics["re-scoring gain AP75"] == pytest.approx(0.5)
    assert metrics["re-scoring gain AP50"] == 0
    assert metrics["IoU correlation"] == pytest.approx(1)


def test_wrong_mask_scores_lower_ap_and_the_upper_bound_stays():
    truth = rectangles((0, 0, 40, 40)), [1]
    both = rectangles((0, 0, 25, 40), (0, 0, 40, 40))
    model = Oracle(detection_result(both, [1, 1], [0.8, 0.9], [1.0, 0.5]))
    metrics = evaluate_dataset(model, Drawn(truth), verbose=False)
    assert numbers(metrics, "mask AP (class score)", "mask AP (true IoU)") == pytest.approx([1, 1])
    assert metrics["re-scoring gain"] == pytest.approx(-0.35)
    assert metrics["IoU correlation"] == pytest.approx(-1)


def test_the_upper_bound_is_class_score_times_true_iou():
    """0.9 of the object with score 0.9, all of it with 0.5: 0.81 comes before 0.5, which counts at 0.95 alone."""
    truth = rectangles((0, 0, 40, 40)), [1]
    model = Oracle(detection_result(rectangles((0, 0, 37, 40), (0, 0, 40, 40)), [1, 1], [0.9, 0.5], [0.1, 0.9]))
    metrics = evaluate_dataset(model, Drawn(truth), verbose=False)
    assert metrics["mask AP (true IoU)"] == pytest.approx((9 * 1 + 0.5) / 10)
    assert metrics["mask AP"] == pytest.approx(1)


def test_no_detections():
    metrics = evaluate_dataset(Oracle(NOTHING), Drawn((rectangles((0, 0, 9, 9)), [1])), verbose=False)
    assert numbers(metrics, "box AP", "mask AP", "mask AP50 (true IoU)") == [0, 0, 0]
    assert metrics["IoU correlation"] == metrics["detections"] == 0


def test_no_objects_at_all():
    metrics = evaluate_dataset(Oracle(NOTHING), Drawn((rectangles(), [])), verbose=False)
    assert metrics["box AP"] == metrics["mask AP"] == -1
    assert "-" in metrics_table(metrics)


def test_false_positives_in_an_image_without_objects_count():
    """Precision 1/2 at every recall, as the image without objects has the higher score."""
    truth = rectangles((0, 0, 40, 40)), [1]
    model = Oracle(detection_result(*truth, [0.8], [1.0]), detection_result(*truth, [0.9], [1.0]))
    dataset = Drawn(truth, (rectangles(), []))
    assert evaluate_dataset(model, dataset, verbose=False)["mask AP"] == pytest.approx(0.5)
    first = evaluate_dataset(model, dataset, image_ids=[0], verbose=False)
    assert numbers(first, "mask AP", "images", "detections") == pytest.approx([1, 1, 1])


def test_crowds_are_ignored():
    """What is found in a crowd is neither right nor wrong, and a crowd is no object that has to be found."""
    masks = rectangles((0, 0, 40, 40), (50, 0, 100, 120))
    inside = rectangles((0, 0, 40, 40), (60, 10, 80, 30))
    model = Oracle(detection_result(inside, [1, 1], [0.5, 0.9], [0.5, 0.9]))
    metrics = evaluate_dataset(model, Drawn((masks, [1, -1])), verbose=False)
    assert numbers(metrics, "box AP", "mask AP") == pytest.approx([1, 1])
    assert metrics["mask APl"] == -1, "the crowd of 6000 pixels would be a medium one, nothing is large"
    assert evaluate_dataset(model, Drawn((masks, [1, 1])), verbose=False)["mask AP"] < 0.6


def test_true_ious():
    """The best object of the class, and no crowd."""
    truth = rectangles((0, 0, 40, 40), (0, 60, 40, 100), (50, 0, 90, 40), (15, 0, 22, 9)), [1, 2, -1, 1]
    dataset = Drawn(truth)
    masks = rectangles((0, 0, 20, 40), (0, 60, 40, 100), (50, 0, 90, 40), (95, 100, 99, 110))
    _, results = detect_dataset(Oracle(detection_result(masks, [1, 1, 1, 2], [0.9] * 4, [0.5] * 4)), dataset)
    truth = as_coco(ground_truth(dataset))
    ious = RankedEvaluation(truth, results, "segm", 100).true_ious()
    assert ious.tolist() == [0.5, 0, 0, 0]


@pytest.mark.parametrize(("settings", "max_dets", "expected"), [
    ({"DETECTION_MAX_INSTANCES": 150}, None, 1),
    ({"DETECTION_MAX_INSTANCES": 50}, None, 67 / 101),  # recalls 0.00 to 0.66 are reached with 100 of 150
    ({}, 75, 51 / 101),
])  # fmt: skip
def test_150_objects(settings, max_dets, expected):
    boxes = [(10 * (i // 15), 10 * (i % 15), 10 * (i // 15) + 8, 10 * (i % 15) + 8) for i in range(150)]
    truth = rectangles(*boxes, shape=(100, 150)), [1] * 150
    model = Oracle(detection_result(*truth, np.linspace(1, 0.5, 150), [1.0] * 150), **settings)
    metrics = evaluate_dataset(model, Drawn(truth), max_dets=max_dets, verbose=False)
    assert numbers(metrics, "mask AP", "box AP", "mask APs") == pytest.approx([expected] * 3)


def test_without_a_maskiou_head():
    truth = rectangles((0, 0, 40, 40)), [1]
    metrics = evaluate_dataset(Oracle(detection_result(*truth, [0.8])), Drawn(truth), verbose=False)
    assert metrics["mask AP"] == pytest.approx(1)
    assert metrics["re-scoring gain"] == metrics["IoU correlation"] == 0


def test_masks_without_pixels_are_no_objects():
    masks = rectangles((0, 0, 40, 40), (0, 0, 0, 0))
    assert len(ground_truth(Drawn((masks, [1, 1])))["annotations"]) == 1


def test_rles_and_boxes_of_load_instances():
    """Ground-truth boxes are those that are given; boxes around the masks otherwise."""
    masks = rectangles((10, 20, 30, 60), (0, 0, 5, 5))

    class Annotated(Drawn):
        def load_instances(self, image_id):
            boxes = np.array([[10, 20, 30, 61.5], [0, 0, 5, 5]], np.float32)
            return Instances(np.array([1, -2]), utils.mask_to_rle(masks), boxes)

    first, second = ground_truth(Annotated((masks, [1, 1])))["annotations"]
    assert first["bbox"] == [20, 10, 41.5, 20]
    assert (second["category_id"], second["iscrowd"], second["area"]) == (2, 1, 25)
    assert ground_truth(Drawn((masks, [1, 1])))["annotations"][0]["bbox"] == [20, 10, 40, 20]


############################################################
#  Against pycocotools itself
############################################################


def summary(truth: dict, results: list, kind: str, capsys) -> np.ndarray:
    """pycocotools' own numbers: loadRes and summarize."""
    index = COCO()
    index.dataset = copy.deepcopy(truth)
    index.createIndex()
    evaluation = COCOeval(index, index.loadRes(copy.deepcopy(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    return evaluation.stats[:6]


def test_numbers_are_pycocotools(capsys):
    rng = np.random.default_rng(0)
    images, predictions = [], []
    for _ in range(6):
        masks = random_rectangles(rng, 8)
        images.append((masks, rng.choice([1, 2, 2, -1], 8).tolist()))
        shifted = np.roll(masks, rng.integers(0, 6), axis=0) | (random_rectangles(rng, 8) & (rng.random(8) < 0.2))
        predictions.append(detection_result(shifted, rng.choice([1, 2], 8), rng.random(8), rng.random(8)))
    dataset, model = Drawn(*images), Oracle(*predictions)
    metrics = evaluate_dataset(model, dataset, verbose=False)
    truth = ground_truth(dataset)
    boxes, masks = detect_dataset(model, dataset)
    by_class = [{**entry, "score": entry["class_score"]} for entry in masks]
    for kind, results, pattern in (
        ("bbox", boxes, "box {}"),
        ("segm", masks, "mask {}"),
        ("segm", by_class, "mask {} (class score)"),
    ):
        ours = [metrics[pattern.format(name)] for name in MEASURES]
        np.testing.assert_allclose(ours, summary(truth, results, kind, capsys), rtol=0, atol=1e-12)
    assert 0.01 < metrics["mask AP"] < 0.99
    assert metrics["mask AP (true IoU)"] > metrics["mask AP"]


def test_ap_of_a_category():
    truth = rectangles((0, 0, 40, 40), (50, 0, 90, 40)), [1, 2]
    dataset = Drawn(truth)
    _, masks = detect_dataset(Oracle(detection_result(truth[0][..., :1], [1], [0.9], [0.9])), dataset)
    ranked = run_cocoeval(as_coco(ground_truth(dataset)), masks, "segm", 100)
    assert average_precision(ranked, category=1) == pytest.approx(1)
    assert average_precision(ranked, category=2) == 0
    assert average_precision(ranked) == pytest.approx(0.5)


############################################################
#  Numbers
############################################################


class Filed(Drawn):
    """Knows annotations of COCO, as coco.CocoDataset does: image i has the id 100 - i, dogs are 18 and cats 7."""

    def __init__(self, *images, category_ids=(0, 7, 18)) -> None:
        super().__init__(*images)
        self.category_ids = list(category_ids)
        for i, info in enumerate(self.image_info):
            info["id"] = np.int64(100 - i)

    def annotations(self, image_id):
        empty = {"category_id": 18, "iscrowd": 0, "bbox": [1, 2, 3, 4], "area": 0.5, "id": 3}
        return (
            [{**empty, "segmentation": utils.rle_to_json(utils.mask_to_rle(np.zeros((100, 120), bool)))}]
            if image_id
            else []
        )


class Named:
    """What categories_of_model reads of a model."""

    def __init__(self, class_names, category_ids=None) -> None:
        self.class_names, self.category_ids = class_names, category_ids or list(range(len(class_names)))
        self.config = Config(NUM_CLASSES=len(class_names))


def empty_images(count: int, kind=Drawn, **arguments):
    return kind(*[(rectangles(), [])] * count, **arguments)


def test_numbers_of_images_and_categories():
    ours, theirs = empty_images(3), empty_images(3, Filed)
    assert image_numbers(ours) == [1, 2, 3]
    assert image_numbers(ours, np.array([2, 0])) == [3, 1]
    assert image_numbers(theirs, [2, 0]) == [98, 100]
    assert {type(number) for number in image_numbers(theirs)} == {int}
    assert [image_number(each, 1) for each in (ours, theirs)] == [2, 99]
    assert category_numbers(ours) == [0, 1, 2]
    assert category_numbers(theirs) == [0, 7, 18]
    theirs.image_info[2]["id"] = 99
    with pytest.raises(ValueError, match=r"images have the same id: 99; .* images of the same id from several sources"):
        image_numbers(theirs)
    with pytest.raises(ValueError, match=r"images have the same id: 99"):
        ground_truth(theirs)


def test_ground_truth_of_annotations():
    """As the file has them, objects without a pixel too; but counted from 1."""
    contents = ground_truth(empty_images(3, Filed), [0, 2, 1])
    assert contents["images"] == [{"id": number, "height": 100, "width": 120} for number in (100, 98, 99)]
    assert contents["categories"] == [{"id": 7, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert [(entry["id"], entry["image_id"]) for entry in contents["annotations"]] == [(1, 98), (2, 99)]
    assert all(entry["area"] == 0.5 and entry["bbox"] == [1, 2, 3, 4] for entry in contents["annotations"])
    zero = ground_truth(empty_images(1, Filed, category_ids=[0, 0, 5]))
    assert [entry["id"] for entry in zero["categories"]] == [0, 5]
    assert json.loads(json.dumps(contents)) == contents


def test_sizes_of_images():
    dataset = empty_images(1)
    assert evaluation.results.image_size(dataset, 0) == (100, 120)
    dataset.image_info[0] |= {"height": np.int64(9), "width": 8}
    assert evaluation.results.image_size(dataset, 0) == (9, 8)
    dataset.image_info[0]["width"] = 0
    assert evaluation.results.image_size(dataset, 0) == (100, 120)


@pytest.mark.parametrize(("names", "expected"), [
    (["BG", "cat", "dog"], [0, 1, 2]),
    (["BG", "dog", "cat"], [0, 2, 1]),
    (["BG", "dog", "hound"], [0, 2, 3]),  # 2 is the number of the data set's dogs, so hounds get a new one
    (["background", "horse", "Cat", "DOG"], [0, 4, 1, 2]),
    (["BG", "class 1", "class 2"], [0, 1, 2]),  # no names: by place
])  # fmt: skip
def test_classes_go_by_name(names, expected):
    assert categories_of_model(Named(names), empty_images(1)) == expected


@pytest.mark.parametrize("names", [["background", "feline", "canine"], ["BG", "dog", "dog"]])
def test_other_names_are_not_taken_by_their_place(names):
    with pytest.raises(ValueError, match="knows none of the classes of the data set: the model has '"):
        categories_of_model(Named(names), empty_images(1))


def test_a_data_set_without_classes():
    with pytest.raises(ValueError, match=r"the data set has no classes.*was add_class called"):
        categories_of_model(Named(["BG", "cat"]), SimpleNamespace(num_classes=1))


def test_classes_of_the_same_name_go_by_place():
    dataset = empty_images(1)
    dataset.class_names = ["BG", "dog", "dog"]
    assert categories_of_model(Named(["BG", "dog", "dog"]), dataset) == [0, 1, 2]


def test_categories_go_by_the_checkpoint():
    """In any order, with categories that the data set does not have, and names that differ in spelling."""
    dataset = empty_images(1, Filed)
    model = Named(["BG", "Dog", "horse", "c-a t"], [0, 18, np.int64(3), 7])
    categories = categories_of_model(model, dataset)
    assert categories == [0, 18, 3, 7]
    assert {type(category) for category in categories} == {int}
    assert categories_of_model(Named(["BG", "dog"], [0, 18]), dataset) == [0, 18]
    zero = empty_images(1, Filed, category_ids=[0, 0, 5])
    assert categories_of_model(Named(["BG", "cat"], [0, 0]), zero) == [0, 0]


def test_categories_of_other_ids():
    """Names decide; results have the data set's ids."""
    dataset = empty_images(1, Filed)
    assert categories_of_model(Named(["BG", "dog", "cat"]), dataset) == [0, 18, 7]
    assert categories_of_model(Named(["BG", "dog", "cat"], [0, 7, 18]), dataset) == [0, 18, 7]
    assert categories_of_model(Named(["BG", "dog", "dog"], [0, 7, 18]), dataset) == [0, 19, 18], "7 is the cats' id"
    assert class_notes(Named(["BG", "dog", "hound"], [0, 18, 7]), dataset) == [
        "the data set: the model does not know 'cat' (its id 7 is 'hound' in the model); their objects are left out of "
        "all numbers"
    ]


def test_unknown_classes_are_left_out_of_all_numbers():
    """Cats are found perfectly; dogs are unknown: their objects are no misses, and the mean is the cats'."""
    truth = rectangles((0, 0, 40, 40), (50, 50, 90, 90)), [1, 2]
    dataset = Drawn(truth)
    model = Oracle(detection_result(truth[0][..., :1], [2], [0.8], [0.9]))
    model.class_names, model.category_ids, model.config = ["BG", "ox", "cat"], [0, 1, 2], Config(NUM_CLASSES=3)
    metrics = evaluate_dataset(model, dataset, verbose=False)
    assert (metrics["mask AP"], metrics["mask AR1"], metrics["objects"]) == (pytest.approx(1), pytest.approx(1), 1)
    contents = ground_truth(dataset)
    known = known_truth(model, dataset, contents)
    assert [entry["name"] for entry in known["categories"]] == ["cat"]
    assert [entry["category_id"] for entry in known["annotations"]] == [1]
    assert len(contents["annotations"]) == 2, "what is given stays as it is"


def test_classes_that_the_data_set_lacks_have_no_objects():
    truth = rectangles((0, 0, 40, 40)), [2]
    model = Oracle(detection_result(truth[0], [1], [0.8], [0.9]))
    model.class_names, model.category_ids, model.config = ["BG", "dog", "cat", "ox"], None, Config(NUM_CLASSES=4)
    assert evaluate_dataset(model, Drawn(truth), verbose=False)["mask AP"] == pytest.approx(1)


############################################################
#  Results and calls
############################################################


def test_results_are_submissions():
    masks = rectangles((10, 20, 30, 60))
    boxes, segments = to_results(detection_result(masks, [2], [0.5], [0.25]), 7, [0, 17, 18])
    assert boxes == [{"image_id": 7, "category_id": 18, "bbox": [20, 10, 40, 20], "score": 0.5}]
    (segment,) = json.loads(json.dumps(segments))
    np.testing.assert_array_equal(utils.rle_to_mask(segment.pop("segmentation")), masks[..., 0])
    assert segment == {"image_id": 7, "category_id": 18, "score": 0.125, "class_score": 0.5, "mask_iou": 0.25}


def test_the_callback_does_the_same_and_is_quiet(capfd):
    truth = rectangles((0, 0, 40, 40)), [1]
    model, dataset = Oracle(detection_result(*truth, [0.8], [0.9])), Drawn(truth, (rectangles(), []))
    callback = evaluation_callback(dataset, image_ids=[0])
    metrics = callback(model)
    assert capfd.readouterr() == ("", "")
    assert metrics == evaluate_dataset(model, dataset, image_ids=[0])
    printed = capfd.readouterr().out
    assert "masks by mask score" in printed
    assert "100.0" in printed
    assert "index" not in printed, "pycocotools' own words"


def test_mistakes():
    dataset = Drawn((rectangles(), []))
    with pytest.raises(ValueError, match=r"max_dets must be at least 1, not 0"):
        evaluate_dataset(Oracle(NOTHING), dataset, max_dets=0)
    model = Oracle(NOTHING)
    model.config = Config(NUM_CLASSES=81)
    with pytest.raises(ValueError, match=r"the data set has 3 classes.*NUM_CLASSES of the model is 81.*'cat', 'dog'"):
        evaluate_dataset(model, dataset)


def test_the_callback_collects_the_ground_truth_once(monkeypatch):
    truth, calls = (rectangles((0, 0, 40, 40)), [1]), []
    monkeypatch.setattr(
        "evaluation.run.ground_truth", lambda *arguments: calls.append(arguments) or ground_truth(*arguments)
    )
    model, dataset = Oracle(detection_result(*truth, [0.8], [0.9])), Drawn(truth)
    evaluate = evaluation_callback(dataset)
    evaluate.check(model)
    assert evaluate(model) == evaluate(model)
    assert len(calls) == 1


class Torn(Drawn):
    """Images of which some cannot be read, and some have masks of another size."""

    torn, wrong = (), ()

    def load_image(self, image_id):
        if image_id in self.torn:
            raise OSError(f"image {image_id} is torn\x1b[2J")
        return super().load_image(image_id)

    def load_mask(self, image_id):
        masks, class_ids = super().load_mask(image_id)
        return (masks[1:] if image_id in self.wrong else masks), class_ids


def test_the_callback_goes_on_without_bad_images(capsys):
    """Two of four images; the same numbers as of the other two, and how many are missing. Each is named once."""
    truth = rectangles((0, 0, 40, 40)), [1]
    results, dataset = [detection_result(*truth, [0.8], [0.9])] * 4, Torn(truth, truth, truth, truth)
    for info in dataset.image_info:
        info |= {"height": 100, "width": 120}
    dataset.torn, dataset.wrong = (1,), (2,)
    callback = evaluation_callback(dataset, verbose=False)
    callback.check(Oracle(*results))
    assert "without images that cannot be read: 2 (image" in capsys.readouterr().out, "its masks are found at once"
    metrics = callback(Oracle(*results))
    printed = capsys.readouterr().out
    assert printed == "evaluation goes on without images that cannot be read: 1 (image 1 is torn\\x1b[2J)\n"
    assert (metrics.pop("missing_images"), metrics["images"], metrics["mask AP"]) == (2, 2, pytest.approx(1))
    dataset.torn = dataset.wrong = ()
    assert metrics == evaluate_dataset(Oracle(*results), dataset, [0, 3], verbose=False)
    assert "PARTIAL: 2 of 4 images could not be read" in metrics_table({**metrics, "missing_images": 2})
    assert "PARTIAL" not in metrics_table(metrics)
    assert capsys.readouterr().out == ""
    assert callback(Oracle(*results))["images"] == 3, "image 1 can be read again"
    dataset.torn = (1,)
    callback(Oracle(*results))
    assert capsys.readouterr().out == "", "each image is named once"


def test_the_callback_without_any_image():
    dataset = Torn((rectangles((0, 0, 40, 40)), [1]))
    dataset.torn = (0,)
    with pytest.raises(ValueError, match="no image can be evaluated: image 0 is torn"):
        evaluation_callback(dataset).check(Oracle(NOTHING))
    dataset.image_info[0] |= {"height": 100, "width": 120}
    assert evaluation_callback(dataset)(Oracle(NOTHING)) == {"missing_images": 1}


def test_the_callback_checks_before_the_first_step(capsys):
    truth = rectangles((0, 0, 40, 40)), [1]
    dataset = Drawn(truth)
    with pytest.raises(ValueError, match="max_dets must be at least 1, not 0"):
        evaluation_callback(dataset, max_dets=0).check(Oracle(NOTHING))
    with pytest.raises(ValueError, match="images have the same id: 1"):
        evaluation_callback(dataset, image_ids=[0, 0]).check(Oracle(NOTHING))
    with pytest.raises(ValueError, match="the data set of the evaluation: the model has 'ox'"):
        evaluation_callback(dataset).check(Named(["BG", "ox"]))
    evaluation_callback(dataset).check(Named(["BG", "cat"]))
    printed = capsys.readouterr().out
    assert "the data set of the evaluation: the model does not know 'dog'" in printed
    assert "no object" not in printed
    evaluation_callback(Drawn((rectangles(), []))).check(Oracle(NOTHING))
    assert "the data set of the evaluation has no object that the model knows" in capsys.readouterr().out
    adapted = evaluation_callback(dataset, adapt=lambda model: Named(["BG", model]))
    with pytest.raises(ValueError, match="the model has 'hen'"):
        adapted.check("hen")

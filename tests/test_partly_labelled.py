"""Pictures in which only some classes are labelled: what is read, what learns from them, and what counts."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import boxes_of, make_targets, rectangle, segm_result, truth_of
from hypothesis import given
from hypothesis import strategies as st
from own_sets import corners
from PIL import Image

import model as modellib
from config import Config
from data.check import check
from data.classes import UNKNOWN, ClassMapping
from data.converting import convert
from data.dataset import Dataset, Instances
from data.formats.coco import CocoDataset
from data.plan import facts_of, make_plan
from data.reading import Options
from data.recognise import open_records
from data.record_dataset import RecordDataset
from data.samples import TrainingData, collate, join_targets
from evaluation.bootstrap import bootstrap_gains
from evaluation.metrics import as_coco, confusion_matrix, counted_results, evaluate_results
from evaluation.own_numbers import own_numbers
from evaluation.results import ground_truth
from evaluation.review import MISSING, Found, Labels, review_picture
from evaluation.words import metrics_table
from model import BACKGROUND, RoiSample
from own_training import _digest

PHOTOS = Path(__file__).parent.parent.parent / "shared" / "data" / "photos"

############################################################
#  Reading
############################################################


def write_set(folder: Path, labelled: list) -> Path:
    """A file of COCO with an image for each value of labelled_classes (None: the image says nothing), a cat in each."""
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "horse"}]
    images, annotations = [], []
    for number, value in enumerate(labelled, start=1):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png", "height": 40, "width": 60}
        images.append(entry if value is None else {**entry, "labelled_classes": value})
        for category, box in ((3, (5, 6, 25, 26)), (7, (30, 8, 50, 30)), (9, (2, 30, 10, 39)))[
            : 3 if number == 1 else 1
        ]:
            outline = [float(side) for corner in corners(box) for side in corner]
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
                "segmentation": [outline], "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]),
            })  # fmt: skip
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def load(path: Path, kind: type = CocoDataset, **options) -> CocoDataset:
    dataset = kind()
    dataset.load_annotations(path, path.parent, **options)
    dataset.prepare()
    return dataset


def labelled_of(dataset: Dataset) -> list:
    return [dataset.labelled_class_ids(image_id) for image_id in dataset.image_ids]


def test_names_and_ids_say_what_is_labelled(tmp_path):
    """Class ids are cat 1, dog 2, horse 3, by ascending category ids."""
    path = write_set(tmp_path, [None, ["cat"], [7], ["dog", "3", 3], [], ["horse", "dog", "cat"]])
    dataset = load(path)
    assert labelled_of(dataset) == [None, [1], [2], [1, 2], [], [1, 2, 3]]
    assert dataset.skipped == {}
    assert Dataset().labelled_class_ids(0) is None


def test_a_subclass_with_facts_of_its_own_reads_it_too(tmp_path):
    class Facts(CocoDataset):
        IMAGE_FACTS = ("license", "labelled_classes")

    dataset = load(write_set(tmp_path, [None, ["cat"]]), Facts)
    assert labelled_of(dataset) == [None, [1]]
    assert [image.get("labelled_classes") for image in ground_truth(dataset)["images"]] == [None, [3]]


def test_what_names_no_category_is_told_with_its_image(tmp_path):
    path = write_set(tmp_path, [["Cat", "cat", 8, True, None, {"a": [1]}], "cat", {"cat": 1}, 3])
    dataset = load(path)
    assert labelled_of(dataset) == [[1], None, None, None]
    unknown, no_list = dataset.skipped.items()
    assert "neither a category's name nor its id" in unknown[0]
    assert unknown[1] == ["1.png: Cat, 8, True, and 2 more"]
    assert no_list == (
        "images whose labelled_classes are no list (taken as labelled for all classes)",
        ["2.png", "3.png", "4.png"],
    )
    findings = open_records(tmp_path).findings
    words = [f"{fault.severity} {fault.what}" for fault in findings.places]
    assert [word for word in words if "labelled_classes" in word] == [
        f"warning {problem.rpartition(' (')[0]}" for problem in dataset.skipped
    ]


def test_categories_whose_ids_are_texts(tmp_path):
    path = write_set(tmp_path, [None, ["k9"], ["cat"]])
    path.write_text(
        path.read_text().replace('"id": 7,', '"id": "k9",').replace('"category_id": 7', '"category_id": "k9"')
    )
    dataset = load(path)
    names = [[dataset.class_names[i] for i in labelled or ()] for labelled in labelled_of(dataset)]
    assert names == [[], ["dog"], ["cat"]]


def test_a_class_that_class_map_joins_is_labelled_where_all_of_its_categories_are(tmp_path):
    path = write_set(tmp_path, [None, ["cat"], ["cat", "dog"], ["horse"]])
    dataset = load(path, class_map={"own.3": "pet", "own.7": "pet"})
    assert dataset.class_names == ["BG", "pet", "horse"]
    assert labelled_of(dataset) == [None, [], [1], [2]]
    assert labelled_of(load(path, class_ids=[3, 9])) == [None, [1], [1], [2]]


def test_records_keep_it_and_rename_it(tmp_path):
    write_set(tmp_path, [None, ["cat"], ["dog", "cat"]])
    records = open_records(tmp_path)
    assert [picture.labelled_classes for picture in records.pictures] == [None, ("cat",), ("cat", "dog")]
    assert labelled_of(RecordDataset(records)) == [None, [1], [1, 2]]
    renamed = open_records(tmp_path, options=Options(rename={"cat": "pet", "dog": "pet"}))
    assert [picture.labelled_classes for picture in renamed.pictures] == [None, (), ("pet",)]
    digests = {_digest(records), _digest(renamed)}
    records.pictures[1].labelled_classes = None
    assert len(digests | {_digest(records)}) == 3, "a plan does not continue with other labels"


def test_pictures_of_two_files_are_labelled_for_what_one_of_them_says(tmp_path):
    path = write_set(tmp_path, [["cat"], ["cat"]])
    contents = json.loads(path.read_text())
    contents["images"][0]["labelled_classes"] = ["dog"]
    del contents["images"][1]["labelled_classes"]
    (tmp_path / "more.json").write_text(json.dumps(contents))
    pictures = open_records(tmp_path).pictures
    assert [picture.labelled_classes for picture in pictures] == [("cat", "dog"), None]


def test_convert_keeps_it_or_counts_what_is_lost(tmp_path):
    write_set(tmp_path / "from", [None, ["cat"], ["dog", "cat"], []])
    lines = convert(open_records(tmp_path / "from"), "coco", tmp_path / "coco", copy_pictures=True)
    assert not any("some classes" in line for line in lines)
    again = open_records(tmp_path / "coco").pictures
    assert [picture.labelled_classes for picture in again] == [None, ("cat",), ("cat", "dog"), ()]
    lines = convert(open_records(tmp_path / "from"), "yolo", tmp_path / "yolo", copy_pictures=True)
    assert "3 pictures are labelled for some classes only, which the format has no place for" in lines


def test_check_and_plan_say_it_in_a_line(tmp_path):
    write_set(tmp_path, [None, ["cat"], ["cat"], ["dog", "cat"], []])
    records = open_records(tmp_path)
    report = check(records)
    line = "4 pictures are labelled for some classes only: 2 for cat, 1 for cat and dog, 1 for none"
    assert f"  {line} -- what else they show is neither object nor background" in report.text().splitlines()
    facts = facts_of(records, report)
    choices = {choice.what: choice.value for choice in make_plan(facts).choices}
    assert choices["labels"] == line
    assert "labels" not in {choice.what for choice in make_plan(facts._replace(partly="")).choices}


############################################################
#  Training
############################################################


class Toy(Dataset):
    """Pictures of 32 x 32 with one object each. labelled: of each picture, class ids or None."""

    def __init__(self, class_ids, labelled):
        super().__init__()
        for number in range(1, 4):
            self.add_class("toy", number, f"class {number}")
        for number, (class_id, known) in enumerate(zip(class_ids, labelled, strict=True)):
            self.add_image("toy", number, None, height=32, width=32, class_id=class_id, labelled=known)
        self.prepare()

    def load_image(self, image_id):
        return np.random.default_rng(image_id).integers(0, 255, (32, 32, 3), np.uint8)

    def load_instances(self, image_id):
        mask = np.zeros((32, 32, 1), bool)
        mask[4:20, 4 + image_id : 20 + image_id] = True
        return Instances(np.array([self.image_info[image_id]["class_id"]], np.int32), mask)

    def labelled_class_ids(self, image_id):
        return self.image_info[image_id]["labelled"]


def settings(**options) -> Config:
    sizes = {"IMAGE_RESIZE_MODE": "none", "IMAGE_MIN_DIM": 32, "IMAGE_MAX_DIM": 32, "IMAGE_SIZE_DIVISOR": 32}
    return Config(NUM_CLASSES=4, HORIZONTAL_FLIP=0.0, GPU_COUNT=0, WORKERS=0, **sizes, **options)


def rows_of(targets) -> list | None:
    return None if targets.labelled is None else targets.labelled.int().tolist()


def test_targets_say_what_is_labelled():
    data = TrainingData(Toy([1, 1, 2, 1], [None, [1], [1, 2, 3], []]), settings())
    samples = [data.sample(index) for index in range(4)]
    assert [rows_of(sample.targets) for sample in samples] == [None, [[1, 1, 0, 0]], None, [[1, 0, 0, 0]]]
    batch = collate(samples)
    assert rows_of(batch.targets) == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.targets.labelled.dtype == torch.bool
    assert batch.to("meta").targets.labelled.is_meta
    assert collate([samples[0], samples[2]]).targets.labelled is None, "it costs nothing where all is labelled"


def test_classes_are_those_of_the_model():
    """The data set's classes are rows 3, none and 1 of the model, whose row 2 the data set does not have."""
    mapping = ClassMapping(np.array([0, 3, UNKNOWN, 1]), ["'class 2'"], [])
    data = TrainingData(Toy([1, 1, 1], [[1], [2], [1, 3]]), settings(), classes=mapping)
    rows = [rows_of(data.sample(index).targets) for index in range(3)]
    assert rows == [[[1, 0, 1, 1]], [[1, 0, 1, 0]], None]
    assert mapping.labelled_rows([], 5).tolist() == [True, False, True, False, True]


def test_pasted_objects_are_known_and_change_nothing_of_the_background():
    """Objects of pictures of class 2 come into pictures that are labelled for class 1 only."""
    dataset = Toy([1, 2, 2], [[1], [2], None])
    data = TrainingData(dataset, settings(COPY_PASTE=1.0))
    classes = set()
    for seed in range(20):
        targets = data.sample(0, seed).targets
        assert rows_of(targets) == [[1, 1, 0, 0]]
        assert rows_of(data.sample(2, seed).targets) is None, "whatever comes from partly labelled pictures"
        classes |= set(targets.class_ids.tolist())
    assert classes == {1, 2}


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(1, 3), unique=True)), min_size=1, max_size=5))
def test_joined_targets_are_those_of_each_image(labelled):
    data = TrainingData(Toy([1] * len(labelled), labelled), settings())
    images = [data.sample(index).targets for index in range(len(labelled))]
    joined = join_targets(images, (32, 32))
    is_partly = [known is not None and len(known) < 3 for known in labelled]
    assert (joined.labelled is None) == (not any(is_partly))
    for number, known in enumerate(labelled if any(is_partly) else ()):
        expected = [True, *(known is None or class_id in known for class_id in (1, 2, 3))]
        assert joined.labelled[number].tolist() == expected


def box_loss_case(labelled):
    """Two images with an RoI of class 2 and one of background each, and logits in which every class has its say."""
    box = np.float32([[0, 0, 8, 8]])
    mask = [np.ones((8, 8), np.uint8)]
    images = [(box, [2], mask, np.zeros((0, 4), np.float32), seed) for seed in (0, 1)]
    targets = make_targets(images)._replace(labelled=labelled)
    matched = torch.tensor([0, BACKGROUND, 1, BACKGROUND])
    sample = RoiSample(torch.tensor(box).repeat(4, 1), torch.tensor([0, 0, 1, 1]), matched)
    logits = torch.tensor([[1.0, 2, 4, 8]] * 4).log().requires_grad_()  # a sum of 15
    part = modellib.box_losses(logits, torch.zeros(4, 4, 4), sample, targets, Config(NUM_CLASSES=4))
    part.sums["mrcnn_class_loss"].backward()
    return part, logits.grad


def test_the_class_loss_by_hand():
    """In the second image only class 1 is labelled: its background is none of class 1, and its object is of class 2."""
    part, gradient = box_loss_case(torch.tensor([[True] * 4, [True, True, False, False]]))
    expected = math.log(15 / 4) + math.log(15) + math.log(15 / 4) + math.log(3)
    assert part.sums["mrcnn_class_loss"].item() == pytest.approx(expected)
    assert part.counts["mrcnn_class_loss"].item() == 4
    assert gradient[3].tolist() == [pytest.approx(1 / 3 - 1), pytest.approx(2 / 3), 0.0, 0.0], "neither up nor down"
    whole = torch.tensor([1.0, 2, 4, 8]) / 15
    torch.testing.assert_close(gradient[1], whole - torch.tensor([1.0, 0, 0, 0]))
    for row in (0, 2):  # an object is of its class and of no other, wherever it is
        torch.testing.assert_close(gradient[row], whole - torch.tensor([0, 0, 1.0, 0]))


def test_an_image_of_which_nothing_is_labelled_has_no_background():
    _, gradient = box_loss_case(torch.tensor([[True] * 4, [True, False, False, False]]))
    assert gradient[3].tolist() == [0.0] * 4
    assert gradient.isfinite().all()


def test_where_all_is_labelled_the_loss_is_the_same_to_the_bit():
    (none, first), (full, second) = (box_loss_case(labelled) for labelled in (None, torch.ones(2, 4, dtype=torch.bool)))
    assert torch.equal(first, second)
    assert {name: value.item() for name, value in none.sums.items()} == {
        name: value.item() for name, value in full.sums.items()
    }


############################################################
#  Evaluation
############################################################

LEFT, RIGHT, LOW = rectangle(0, 0, 40, 40), rectangle(0, 60, 40, 100), rectangle(60, 0, 100, 40)


def partly_labelled_case() -> tuple[dict, list[dict]]:
    """Image 1 is labelled for class 1 only; image 2 for both. Class 2 is found in both where no object is marked."""
    contents = truth_of((1, 1, LEFT), (2, 2, LEFT), (2, 1, LOW), images=(1, 2))
    contents["images"][0]["labelled_classes"] = [1]
    masks = [
        segm_result(1, 1, LEFT, 0.9), segm_result(1, 2, RIGHT, 0.95, 0.1), segm_result(1, 2, LEFT, 0.99),
        segm_result(2, 2, LEFT, 0.8), segm_result(2, 1, LOW, 0.7), segm_result(2, 2, RIGHT, 0.6),
    ]  # fmt: skip
    return contents, masks


def test_results_of_other_classes_count_nowhere():
    contents, masks = partly_labelled_case()
    numbers = evaluate_results(contents, boxes_of(masks), masks)
    assert numbers.metrics["mask AP"] == numbers.metrics["box AP"] == pytest.approx(1)
    assert numbers.metrics["detections"] == 4
    assert numbers.metrics["unlabelled_detections"] == 2
    assert numbers.confusion.tolist() == [[0, 0, 1], [0, 2, 0], [0, 0, 1]]
    table = metrics_table(numbers.metrics).splitlines()
    assert (
        "2 more detections are of classes that are not labelled in their images: neither right nor wrong, not counted"
        in table
    )
    without = {**contents, "images": [{**image} for image in contents["images"]]}
    del without["images"][0]["labelled_classes"]
    before = evaluate_results(without, boxes_of(masks), masks)
    assert before.metrics["mask AP"] < 0.8
    assert "unlabelled_detections" not in before.metrics
    assert before.confusion[0].tolist() == [0, 1, 2], "a class 2 took the object of class 1"
    own = own_numbers(contents, masks, 100, 1.0, Config(NUM_CLASSES=3), {1: 1, 2: 2}, fit=True)
    assert (own.quality.true_positives, own.quality.false_positives) == (3, 0), "the threshold leaves the last one out"
    assert [error.kind for error in own.errors] == []
    gains = bootstrap_gains(contents, masks, samples=3)
    assert gains["AP"].value == 0, "that the mask score lowers a result of another class is no gain"


def test_it_is_as_if_the_results_had_never_been():
    contents, masks = partly_labelled_case()
    kept = [entry for entry in masks if not (entry["image_id"] == 1 and entry["category_id"] == 2)]
    whole, less = (evaluate_results(contents, boxes_of(each), each).metrics for each in (masks, kept))
    assert {**whole, "unlabelled_detections": 0} == less
    assert counted_results(masks, as_coco(contents)) == kept


def test_names_are_as_good_as_ids_and_objects_of_other_classes_do_not_count():
    contents, masks = partly_labelled_case()
    contents["images"][0]["labelled_classes"] = ["class 1"]
    contents["annotations"].append({**contents["annotations"][0], "id": 9, "category_id": 2})
    truth = as_coco(contents)
    assert len(truth.anns) == 3
    assert confusion_matrix(truth, masks).tolist() == [[0, 0, 1], [0, 2, 0], [0, 0, 1]]
    assert evaluate_results(contents, boxes_of(masks), masks).metrics["objects"] == 3


def test_the_ground_truth_of_a_data_set_says_it(tmp_path):
    dataset = load(write_set(tmp_path, [None, ["cat"], ["horse", 7]]))
    images = ground_truth(dataset)["images"]
    assert [image.get("labelled_classes") for image in images] == [None, [3], [7, 9]]
    records = RecordDataset(open_records(tmp_path))  # its category ids are class ids
    assert [image.get("labelled_classes") for image in ground_truth(records)["images"]] == [None, [1], [2, 3]]


def test_a_review_misses_no_label_of_a_class_that_is_not_labelled():
    mask = {"size": [120, 130], "counts": ""}
    masks = [segm_result(1, 1, LEFT, 1.0)["segmentation"], segm_result(1, 1, RIGHT, 1.0)["segmentation"]]
    masks = [{**mask, **each, "counts": each["counts"].encode()} for each in masks]
    found = Found(np.array([2, 3]), np.full(2, 0.9), np.ones(2), np.full(2, 0.9), masks)

    def missing(unlabelled):
        labels = Labels(np.zeros(0, np.int64), np.zeros(0, bool), [], unlabelled)
        return [suspect.detection for suspect in review_picture(labels, found) if suspect.kind == MISSING]

    assert missing([]) == [0, 1]
    assert missing([2]) == [1]
    assert missing([1, 2, 3]) == []


############################################################
#  Real data
############################################################


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"there is no {PHOTOS}")
@pytest.mark.parametrize("split", ["val", "test_easy", "train"])
def test_photos(split):
    path = PHOTOS / "annotations" / f"instances_{split}.json"
    contents = json.loads(path.read_text())
    dataset = CocoDataset()
    dataset.load_annotations(path, PHOTOS / split)
    dataset.prepare()
    assert not any("labelled_classes" in problem for problem in dataset.skipped)
    names = [
        None if labelled is None else tuple(dataset.class_names[i] for i in labelled)
        for labelled in labelled_of(dataset)
    ]
    said = [image.get("labelled_classes") for image in contents["images"]]
    assert Counter(names) == Counter(None if value is None else tuple(value) for value in said)
    objects = dataset.object_boxes()
    for image_id, class_id in zip(objects.image_ids.tolist(), abs(objects.class_ids).tolist(), strict=True):
        assert names[image_id] is None or dataset.class_names[class_id] in names[image_id], "every object is labelled"

"""check: each planted fault is found and named with its file, and a clean set prints no warning."""

import pickle

import numpy as np
import pytest
from PIL import Image

import utils
from data.check import check, sentence, singular
from data.likeness import SIDE, difference_hashes, find_alike
from data.object_checks import crosses_itself, overlapping_pairs
from data.object_counts import count_objects
from data.reading import Options
from data.recognise import Records, open_records
from data.record_dataset import RecordDataset
from data.records import ERROR, REMARK, WARNING, Fault, Findings, Object, Picture

SQUARE = np.array([[4.0, 4], [14, 4], [14, 14], [4, 14]])


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """A picture that looks like no other."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size[::-1], Image.BICUBIC)


def made(folder, pictures: dict[str, list[Object]], images: dict | None = None) -> Records:
    """Records of pictures {name: objects} of 48 x 64 pixels, with a label file each. images: other pixels."""
    records = Records(folder, "made up", "", [], Findings())
    for seed, (name, objects) in enumerate(pictures.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (images or {}).get(name, scene(seed)).save(path)
        split = name.split("/")[0] if "/" in name else None
        records.pictures.append(Picture(path, f"{name}.label", None, split, objects, height=48, width=64))
    return records


def thing(points=SQUARE, name: str = "cat", place: str = "line 1", **values) -> Object:
    return Object(name, place, [np.array(points, float)], **values)


def found(report, severity: str, word: str) -> list[str]:
    """The places of the fault of a severity whose words have a word."""
    (places,) = [places for fault, places in report.faults[severity] if word in fault.what]
    return places


def test_a_clean_set_has_no_warning(tmp_path):
    records = made(tmp_path, {"train/a.png": [thing(), thing(SQUARE + 20)], "val/b.png": [thing(), thing(name="dog")]})
    report = check(records)
    assert not report.faults[ERROR]
    assert not report.faults[WARNING]
    assert not report.has_errors
    assert "Errors    none\nWarnings  none" in report.text()
    assert list(report.splits) == ["train", "val"]
    assert report.splits["train"].objects == {"cat": 2}
    assert report.splits["val"].objects == {"cat": 1, "dog": 1}
    assert report.sizes == {"64 x 48": 2}
    assert report.kinds == {"colour 8 bit, PNG": 2}
    assert report.sides == (10, 10, 10)
    assert report.objects_a_picture == (2, 2)


@pytest.mark.parametrize(
    ("points", "severity", "word", "kept"),
    [
        (np.add(SQUARE, [100, 0]), ERROR, "wholly outside", 0),
        (np.add(SQUARE, [0, -30]), ERROR, "wholly outside", 0),
        ([[5.1, 5.1], [5.3, 5.1], [5.3, 5.3]], ERROR, "zero pixels", 0),
        (np.add(SQUARE, [54, 0]), WARNING, "partly outside", 1),
        ([[4, 4], [30, 30], [30, 4], [4, 30]], WARNING, "cross themselves", 1),
        ([[4, 4], [40, 4], [40, 40], [19, 40], [21, 41], [20, 39], [4, 40]], REMARK, "small kink", 1),
    ],
)
def test_a_faulty_outline_is_named(tmp_path, points, severity, word, kept):
    records = made(tmp_path, {"a.png": [thing(points, place="line 7")], "b.png": [thing()]})
    report = check(records)
    assert found(report, severity, word) == ["a.png: line 7"]
    assert "a.png: line 7" in report.text()
    assert len(records.pictures[0].objects) == kept
    assert len(report.table.classes) == kept + 1
    assert report.has_errors == (severity == ERROR)


def test_the_second_of_two_equal_objects_is_left_out(tmp_path):
    near, far = thing(SQUARE + 0.2, place="line 2"), thing(SQUARE + 3, place="line 3")
    other, crowd = thing(name="dog", place="line 4"), thing(place="line 5", is_crowd=True)
    records = made(tmp_path, {"a.png": [thing(), near, far, other, crowd, thing(place="line 6")]})
    report = check(records)
    assert found(report, WARNING, "there twice") == ["a.png: line 1 and line 2", "a.png: line 1 and line 6"]
    assert [parsed.place for parsed in records.pictures[0].objects] == ["line 1", "line 3", "line 4", "line 5"]
    assert report.splits["all"].crowds == 1


def test_a_picture_may_have_any_number_of_objects(tmp_path):
    squares = [
        thing(np.array([[x, y], [x + 2, y], [x + 2, y + 2], [x, y + 2]]))
        for x in range(0, 60, 3)
        for y in range(0, 45, 3)
    ]
    report = check(made(tmp_path, {"a.png": squares}))
    assert report.splits["all"].objects == {"cat": 300}
    assert report.table.areas.tolist() == [4] * 300


def test_class_names_that_differ_by_case_or_spaces_are_named(tmp_path):
    objects = [thing(name="person"), thing(SQUARE + 20, name="Person "), thing(SQUARE + 30, name="parson")]
    report = check(made(tmp_path, {"a.png": objects}))
    assert found(report, WARNING, "case or spaces") == ['"Person " and "person", 1 and 1 objects']


def test_a_picture_that_is_cut_off_is_left_out(tmp_path):
    records = made(tmp_path, {"a.jpg": [thing()], "b.jpg": [thing()], "c.png": [thing()]})
    for name in ("a.jpg", "c.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    report = check(records)
    places = found(report, ERROR, "cannot be read")
    assert [place[:5] for place in places] == ["a.jpg", "c.png"]
    assert [picture.name for picture in records.pictures] == ["b.jpg"]
    assert report.has_errors


def test_a_picture_in_two_splits_is_named(tmp_path):
    first = scene(100)
    images = {
        "train/a.png": first,
        "val/smaller.jpg": first.resize((32, 24)).point(lambda value: min(255, value * 1.2)),
        "val/mirrored.png": first.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "val/turned.png": first.transpose(Image.Transpose.ROTATE_90),
    }
    names = [*images, "val/other.png"]
    records = made(tmp_path, {name: [] for name in names} | {"train/b.png": [thing()]}, images)
    report = check(records)
    assert report.leaks == [("train/a.png", name) for name in names[1:4]]
    assert len(found(report, WARNING, "pictures of another")) == 3
    assert "train/a.png and val/smaller.jpg" in report.text()


def test_equal_files_in_one_split_are_named(tmp_path):
    records = made(tmp_path, {"a.png": [thing()], "b.png": [], "c.png": []}, {"b.png": scene(0)})
    assert found(check(records), WARNING, "equal files") == ["a.png and b.png"]


def test_pictures_without_contrast_are_like_nothing():
    flat = np.full((3, SIDE, SIDE), 128, np.uint8)
    assert find_alike(flat) == []
    assert find_alike(np.zeros((0, SIDE, SIDE), np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 255, (40, SIDE, SIDE), dtype=np.uint8)
    assert find_alike(noise) == []
    noise[30] = np.rot90(noise[7], 3)[::-1]
    assert find_alike(noise) == [(7, 30)]
    assert difference_hashes(noise).shape == (40, 8)


def write_yolo(folder, labels: dict[str, str | None], pictures: list[str]) -> None:
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    for seed, name in enumerate(pictures):
        (folder / "images").mkdir(exist_ok=True)
        scene(seed).save(folder / "images" / name)
    for name, text in labels.items():
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / name).write_text(text)


LINE = "0 0.1 0.1 0.5 0.1 0.5 0.53\n"


def test_files_that_belong_to_nothing_are_named(tmp_path):
    write_yolo(tmp_path, {"a.txt": LINE, "b.txt": LINE, "gone.txt": LINE}, ["a.png", "b.png", "bare.png"])
    report = check(open_records(tmp_path))
    assert found(report, ERROR, "name a picture that is not there") == ["labels/gone.txt"]
    assert found(report, REMARK, "no label file") == ["images/bare.png"]
    assert report.has_errors


@pytest.mark.parametrize(("empty", "count"), [("skip", 2), ("label", 3)])
def test_a_picture_without_a_label_is_left_out_or_empty(tmp_path, empty, count):
    records = made(tmp_path, {"a.png": [thing()], "b.png": [thing()]})
    scene(9).save(tmp_path / "bare.png")
    report = check(records, Options(empty=empty))
    assert found(report, WARNING if empty == "skip" else REMARK, "no label") == ["bare.png"]
    assert len(records.pictures) == report.splits["all"].pictures == count


def test_a_damaged_label_file_is_named_though_no_format_takes_it(tmp_path):
    write_yolo(tmp_path, {"a.txt": LINE, "b.txt": LINE}, ["a.png", "b.png"])
    (tmp_path / "more").mkdir()
    scene(7).save(tmp_path / "more" / "c d.png")
    (tmp_path / "more" / "c d.json").write_text('{"shapes": [')
    (tmp_path / "notes.json").write_text("{}")
    report = check(open_records(tmp_path))
    assert [place.split(" is ")[0] for place in found(report, ERROR, "cannot be read")] == ["more/c d.json"]
    assert found(report, REMARK, "no label leads to") == ["more/c d.png"]


def test_a_set_without_usable_objects_is_an_error(tmp_path):
    report = check(made(tmp_path, {"a.png": []}))
    assert found(report, ERROR, "no object") == [""]
    assert "there is no object that can be used" in report.text()


def test_text_names_three_places_and_counts_all():
    fault = Fault(WARNING, "pictures have no label", "left out")
    assert sentence(fault, ["a"]) == "1 picture has no label: a -- left out"
    assert sentence(fault, list("abcd")) == "4 pictures have no label: a, b, c, and 1 more -- left out"
    assert sentence(fault, ["a\x1b[2J"]) == "1 picture has no label: a\\x1b[2J -- left out"
    assert singular("pairs of class names differ by case") == "pair of class names differs by case"
    assert singular("annotations with a mask outside") == "annotation with a mask outside"
    assert singular("label files cannot be read") == "label file cannot be read"


def test_a_ring_crosses_itself():
    bow = np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]])
    bridge = np.array([[0.0, 0], [4, 0], [4, 4], [9, 4], [9, 9], [9, 4], [4, 4], [0, 4]])
    assert crosses_itself(bow)
    assert not crosses_itself(bow[:3])
    assert not crosses_itself(SQUARE)
    assert not crosses_itself(bridge), "parts joined by a line of no width do not cross"


def test_overlapping_pairs_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (40, 2))
    high = low + rng.uniform(0, 12, (40, 2))
    touches = (low[:, None] <= high[None]).all(axis=2) & (low[None] <= high[:, None]).all(axis=2)
    expected = {(i, j) for i, j in np.argwhere(touches).tolist() if i < j}
    pairs = [tuple(sorted(pair)) for pair in np.stack(overlapping_pairs(low, high), axis=1).tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


def test_records_are_a_data_set(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    records = made(
        tmp_path,
        {"train/a.png": [thing(name="dog"), thing(name=""), thing(SQUARE + 5, is_crowd=True)], "val/b.jpg": [thing()]},
    )
    records.pictures[0].embedded, records.pictures[0].path = _Pixels(), None
    scene(3).save(tmp_path / "val/b.jpg", exif=exif)
    records.pictures[1].is_stored = True
    train, val, whole = (RecordDataset(records, split) for split in ("train", "val", None))
    assert train.class_names == val.class_names == ["BG", "cat", "dog", "object"]
    assert train.category_ids == [0, 1, 2, 3]
    assert whole.num_images == 2
    copy = pickle.loads(pickle.dumps(train))
    assert copy.load_image(0).shape == (48, 64, 3)
    assert val.load_image(0).shape == (48, 64, 3), "labels are of the stored pixels"
    instances = copy.load_instances(0)
    assert instances.class_ids.tolist() == [2, 3, -1]
    masks, _ = copy.load_mask(0)
    assert masks.shape == (48, 64, 3)
    assert [utils.rle_area(rle) for rle in instances.masks] == masks.sum(axis=(0, 1)).tolist()
    assert instances.boxes.tolist() == utils.extract_bboxes(masks).tolist()
    boxes = whole.object_boxes()
    assert boxes.image_ids.tolist() == [0, 0, 0, 1]
    assert boxes.class_ids.tolist() == [2, 3, -1, 1]
    with pytest.raises(ValueError, match="no labelled picture in the split test"):
        RecordDataset(records, "test")
    with pytest.raises(ValueError, match="class_names lacks 'dog'"):
        RecordDataset(records, "train", ["cat"])


class _Pixels:
    def __call__(self) -> np.ndarray:
        return np.zeros((48, 64, 3), np.uint8)


def test_a_training_counts_the_objects(tmp_path):
    from config import Config

    class Small(Config):
        NAME, NUM_CLASSES = "small", 2
        IMAGE_RESIZE_MODE, IMAGE_MIN_DIM, IMAGE_MAX_DIM = "square", 64, 64

    dataset = RecordDataset(made(tmp_path, {"a.png": [thing(), thing(SQUARE + 9)]}))
    counts = count_objects(dataset, Small())
    assert (counts.seen, counts.crowds, counts.images) == (2, 0, 1)

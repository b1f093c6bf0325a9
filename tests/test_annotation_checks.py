"""What CocoDataset does with boxes, areas and masks that contradict each other, and with values in unusual forms."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

import native
import utils
from data.formats.coco import CocoDataset
from data.formats.coco_file import IdNumbers, read_file, whole_number
from data.label_checks import LabelChecks, check_boxes, check_labels, check_segmentations, note, summary
from data.label_table import NO_NUMBER, POLYGONS

CASES = native.ROOT.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"there is no {CASES}")
HEIGHT, WIDTH = 60, 80
# (x1, y1, x2, y2) of the objects. Images 1 to 3 have two each.
OBJECTS = [(15, 11, 35, 27), (42, 11, 75, 20), (4, 30, 14, 57), (50, 24, 60, 44), (20, 3, 44, 15), (62, 40, 78, 55)]
BOXES = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in OBJECTS]
AREAS = [width * height for _, _, width, height in BOXES]


def ring(x1, y1, x2, y2) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def mask_of(x1, y1, x2, y2) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def counts_of(flat) -> list[int]:
    flat = np.concatenate([[False], np.asarray(flat, bool), [True]]).astype(int)
    counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0, append=len(flat) - 2).tolist()
    return counts[: len(counts) - (counts[-1] == 0)]


def contents(change=None, **common) -> dict:
    """A good file of six boxes. change: a function of each annotation and its corners that changes it."""
    annotations = [
        {"id": 11 + i, "image_id": 1 + i // 2, "category_id": 1 + i % 2, "iscrowd": 0, "bbox": BOXES[i],
         "area": AREAS[i], "segmentation": [ring(*OBJECTS[i])]} | common
        for i in range(6)
    ]  # fmt: skip
    for entry, corners in zip(annotations, OBJECTS, strict=True):
        if change:
            change(entry, corners)
    images = [{"id": i, "file_name": f"im{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("cup", "plate"), 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def load(tmp_path):
    """Writes a file and three images, and loads it."""
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"im{number}.png")

    def run(data, **options):
        path = tmp_path / "own.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        dataset = CocoDataset()
        dataset.load_annotations(path, tmp_path, **options)
        dataset.prepare()
        return dataset

    return run


def entries_of(dataset) -> list[dict]:
    return [entry for image_id in dataset.image_ids for entry in dataset.annotations(image_id)]


def assert_right(dataset, objects=range(6)) -> None:
    """All objects have the boxes, areas and masks that they should."""
    entries = entries_of(dataset)
    assert [entry["bbox"] for entry in entries] == [BOXES[i] for i in objects]
    assert [entry["area"] for entry in entries] == [AREAS[i] for i in objects]
    for entry, i in zip(entries, objects, strict=True):
        np.testing.assert_array_equal(utils.rle_to_mask(entry["segmentation"]), mask_of(*OBJECTS[i]))


def problem_of(dataset) -> str:
    (problem,) = dataset.skipped
    return problem


def test_a_good_file(load):
    dataset = load(contents())
    assert dataset.skipped == {}
    assert_right(dataset)


############################################################
#  Boxes and areas
############################################################

READINGS = {
    "x1 y1 x2 y2": lambda x1, y1, x2, y2: [x1, y1, x2, y2],
    "y x height width": lambda x1, y1, x2, y2: [y1, x1, y2 - y1, x2 - x1],
    "x y height width": lambda x1, y1, x2, y2: [x1, y1, y2 - y1, x2 - x1],
    "y1 x1 y2 x2": lambda x1, y1, x2, y2: [y1, x1, y2, x2],
    "fractions of the image size": lambda x1, y1, x2, y2: [x1 / 80, y1 / 60, (x2 - x1) / 80, (y2 - y1) / 60],
    "x1 y1 x2 y2 as fractions of the image size": lambda x1, y1, x2, y2: [x1 / 80, y1 / 60, x2 / 80, y2 / 60],
    "the centre, width and height": lambda x1, y1, x2, y2: [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    "the centre, width and height as fractions of the image size": lambda x1, y1, x2, y2: [
        (x1 + x2) / 160, (y1 + y2) / 120, (x2 - x1) / 80, (y2 - y1) / 60
    ],
}  # fmt: skip


@pytest.mark.parametrize("reading", READINGS)
def test_boxes_that_mean_something_else(load, caplog, reading):
    """All boxes of such a file come from the masks, those that fit by chance included."""
    dataset = load(contents(lambda entry, corners: entry.update(bbox=READINGS[reading](*corners))))
    assert_right(dataset)
    problem = problem_of(dataset)
    assert f"(made from the mask; read as {reading} instead of x y width height, " in problem
    assert len(dataset.skipped[problem]) == int(problem.split(", ")[-1].split()[0])
    assert problem in caplog.text


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [15, 11, 0, 16], [15, 11, 20, 0]])
def test_boxes_of_no_size(load, box):
    dataset = load(contents(bbox=box))
    assert_right(dataset)
    assert dataset.skipped == {"annotations with a bbox of no width or height (made from the mask)": [*range(11, 17)]}


def test_one_box_that_is_wrong(load):
    """The others stay to the bit, even where they are not exact."""
    data = contents()
    data["annotations"][0]["bbox"] = [15.25, 11.5, 19.5, 15.75]
    data["annotations"][3]["bbox"] = [0, 0, 5, 5]
    dataset = load(data)
    assert [entry["bbox"] for entry in entries_of(dataset)] == [[15.25, 11.5, 19.5, 15.75], *BOXES[1:]]
    assert dataset.skipped == {"annotations with a bbox that does not fit the mask (made from the mask)": [14]}


def test_absurd_boxes_among_wrong_ones(load):
    data = contents(bbox=[0, 0, 3, 3])
    for entry, box in zip(
        data["annotations"], [[1e308] * 4, [-1e308, 0, 1e308, 1e308], [float("inf")] * 4], strict=False
    ):
        entry["bbox"] = box
    assert_right(load(data))


def test_a_box_outside_of_the_image(load):
    data = contents()
    data["annotations"][2]["bbox"] = [500, 20, 10, 10]
    assert_right(load(data))


def test_the_box_of_a_thin_object_fits_its_pixels(load):
    """The polygon is 0.3 pixels high, its mask one pixel, and so is its box in the file."""
    thin = [10, 20.4, 40, 20.4, 40, 20.7, 10, 20.7]
    rle = utils.polygons_to_rle([thin], HEIGHT, WIDTH)
    y1, x1, y2, x2 = utils.rle_to_bbox(rle)
    data = contents()
    data["annotations"][0] |= {"segmentation": [thin], "bbox": [x1, y1, x2 - x1, y2 - y1], "area": utils.rle_area(rle)}
    assert load(data).skipped == {}


@pytest.mark.parametrize("area", [0, 1e12, 1.0, 100000, "1"])
def test_areas_that_do_not_fit(load, area):
    dataset = load(contents(area=area))
    assert_right(dataset)
    assert dataset.skipped == {
        "annotations with an area that does not fit the mask (made from the mask)": [*range(11, 17)]
    }


def test_areas_that_fit_stay(load):
    data = contents(lambda entry, corners: entry.update(area=entry["area"] * 0.8125))
    assert [entry["area"] for entry in entries_of(load(data))] == [area * 0.8125 for area in AREAS]
    assert load(data).skipped == {}


def test_the_area_of_a_wrong_box_goes_with_it(load):
    data = contents()
    data["annotations"][0] |= {"bbox": [15, 11, 35, 27], "area": 600}
    assert_right(load(data))


def test_crowds_are_checked_too(load):
    data = contents()
    rle = {"size": [HEIGHT, WIDTH], "counts": counts_of(mask_of(*OBJECTS[1]).T.ravel())}
    data["annotations"][1] |= {"iscrowd": 1, "segmentation": rle, "bbox": [0, 0, 0, 0], "area": 1e12}
    dataset = load(data)
    assert_right(dataset)
    assert dataset.load_instances(0).class_ids.tolist() == [1, -2]
    assert len(dataset.skipped) == 2


def test_overlapping_parts_count_once(load):
    """The area of the corners counts the shared part twice; the file's area is that of the pixels."""
    data = contents()
    data["annotations"][0]["segmentation"] = [ring(*OBJECTS[0])] * 5
    assert_right(load(data))
    assert load(data).skipped == {}


def test_ignore_is_a_crowd(load):
    data = contents()
    data["annotations"][0]["ignore"], data["annotations"][1]["ignore"] = 1, 0
    dataset = load(data)
    assert dataset.load_instances(0).class_ids.tolist() == [-1, 2]
    assert dataset.skipped == {"annotations with ignore 1 (taken as crowds)": [11]}


############################################################
#  Masks
############################################################


def fractions(entry, corners, factor=1.0) -> None:
    x1, y1, x2, y2 = corners
    entry["segmentation"] = [ring(x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT)]


def test_polygons_in_fractions(load):
    dataset = load(contents(fractions))
    assert_right(dataset)
    assert dataset.skipped == {
        "annotations with polygons in fractions of the image size (scaled to pixels)": [*range(11, 17)]
    }
    dataset = load(contents(fractions, bbox=None, area=None))
    assert_right(dataset)


def test_polygons_and_boxes_in_fractions(load):
    def change(entry, corners):
        fractions(entry, corners)
        entry["bbox"] = READINGS["fractions of the image size"](*corners)

    dataset = load(contents(change))
    assert_right(dataset)
    assert len(dataset.skipped) == 2


def test_one_polygon_inside_of_the_first_pixel(load):
    """A box decides whether it is in fractions; without one it is nonsense, and left out."""
    data = contents()
    fractions(data["annotations"][4], OBJECTS[4])
    assert_right(load(data))
    data["annotations"][4]["bbox"] = None
    dataset = load(data)
    assert_right(dataset, [0, 1, 2, 3, 5])
    assert dataset.skipped == {
        "annotations with polygons inside of the first pixel; are they fractions of the image size? (skipped)": [15],
    }
    data["annotations"][4] |= {"segmentation": [ring(0, 0, 1, 1)], "bbox": [0, 0, 1, 1], "area": 1}
    dataset = load(data)
    assert dataset.skipped == {}
    assert entries_of(dataset)[4]["bbox"] == [0, 0, 1, 1]


def swap(entry, corners) -> None:
    x1, y1, x2, y2 = corners
    entry["segmentation"] = [ring(y1, x1, y2, x2)]


@pytest.mark.parametrize("box", ["right", "swapped", "missing"])
def test_polygons_with_x_and_y_swapped(load, box):
    """Objects at the right of their images show it; the rest of the file is read in the same way."""

    def change(entry, corners):
        swap(entry, corners)
        x, y, width, height = entry["bbox"]
        entry["bbox"] = {"right": entry["bbox"], "swapped": [y, x, height, width], "missing": None}[box]

    dataset = load(contents(change))
    assert_right(dataset)
    assert "annotations with polygons whose x and y are swapped (read as y, x)" in dataset.skipped


def test_polygons_that_leave_the_image_in_part_are_swapped_if_boxes_say_so(load):
    """Two of four corners are outside. Without boxes that fit the swapped polygon, nothing tells."""
    corners = [*OBJECTS[:3], (50, 24, 64, 44), *OBJECTS[4:5], (55, 40, 65, 55)]
    data = contents()
    for entry, (x1, y1, x2, y2) in zip(data["annotations"], corners, strict=True):
        entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        swap(entry, (x1, y1, x2, y2))
    dataset = load(data)
    assert problem_of(dataset) == "annotations with polygons whose x and y are swapped (read as y, x)"
    assert [entry["bbox"] for entry in entries_of(dataset)] == [entry["bbox"] for entry in data["annotations"]]
    for entry in data["annotations"]:
        entry["bbox"] = None
    assert problem_of(load(data)).startswith("annotations without a usable bbox")


def test_some_polygons_with_x_and_y_swapped(load):
    """In a file that is right otherwise, a polygon is corrected if its box agrees, and left out if not."""
    data = contents()
    swap(data["annotations"][5], OBJECTS[5])
    dataset = load(data)
    assert_right(dataset)
    assert dataset.skipped == {"annotations with polygons whose x and y are swapped (read as y, x)": [16]}
    data["annotations"][5]["bbox"] = None
    dataset = load(data)
    assert_right(dataset, range(5))
    problem = "annotations with polygons outside of the image, but inside if x and y are swapped (skipped)"
    assert dataset.skipped == {problem: [16]}


def row_major(entry, corners) -> None:
    entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts_of(mask_of(*corners).ravel())}


def column_major(entry, corners) -> None:
    entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts_of(mask_of(*corners).T.ravel())}


def test_codes_along_rows(load):
    dataset = load(contents(row_major))
    assert_right(dataset)
    assert dataset.skipped == {"annotations with an RLE that counts along rows (read along rows)": [*range(11, 17)]}


def test_codes_along_columns(load):
    dataset = load(contents(column_major))
    assert_right(dataset)
    assert dataset.skipped == {}


@pytest.mark.parametrize("kind", [row_major, column_major])
def test_codes_with_width_before_height(load, kind):
    """The box tells how they are meant. Without one they are left out."""

    def change(entry, corners):
        kind(entry, corners)
        entry["segmentation"]["size"] = [WIDTH, HEIGHT]

    assert_right(load(contents(change)))
    data = contents(change)
    data["annotations"][0] = contents()["annotations"][0]
    for entry in data["annotations"][1:]:
        entry["bbox"] = None
    dataset = load(data)
    assert_right(dataset, [0])
    assert dataset.skipped == {
        "annotations with an RLE of another size than the image (skipped)": [*range(12, 17)],
    }


def test_one_code_along_rows(load):
    data = contents(column_major)
    row_major(data["annotations"][4], OBJECTS[4])
    dataset = load(data)
    assert_right(dataset)
    assert dataset.skipped == {"annotations with an RLE that counts along rows (read along rows)": [15]}


def test_boxes_that_are_wrong_do_not_turn_masks(load):
    """One wrong box happens to be that of the mask when it is read along rows."""
    data = contents(column_major, bbox=[70, 50, 5, 5])
    along_rows = utils.rle_to_mask(
        {"size": [WIDTH, HEIGHT], "counts": data["annotations"][4]["segmentation"]["counts"]}
    )
    y1, x1, y2, x2 = utils.rle_to_bbox(utils.mask_to_rle(along_rows.T))
    data["annotations"][4]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    assert_right(load(data))


def test_a_code_that_fits_its_box_in_no_way(load):
    """The mask is believed."""
    data = contents(column_major)
    data["annotations"][0]["bbox"] = [0, 0, 4, 3]
    assert_right(load(data))


EMPTY = [[20.1, 20.1, 20.2, 20.1, 20.2, 20.2]]


@pytest.mark.parametrize("mask", [{"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, EMPTY])
def test_masks_without_a_pixel(load, mask):
    assert utils.rle_area(utils.annotation_to_rle(mask, HEIGHT, WIDTH)) == 0
    data = contents()
    data["annotations"][1]["segmentation"] = mask
    dataset = load(data)
    assert_right(dataset, [0, 2, 3, 4, 5])
    assert dataset.skipped == {"annotations with a mask without a pixel (skipped)": [12]}
    for source in ("own", "coco"):
        with pytest.raises(ValueError, match=r"none of 3 images and 6 annotations can be used(.|\n)*without a pixel"):
            load(contents(segmentation=mask), source=source)
    data = contents()
    data["annotations"] += [{**data["annotations"][0], "id": 100 + i} for i in range(200)]
    data["annotations"][1]["segmentation"] = mask
    dataset = load(data, source="coco")  # whose evaluation counts the few that are empty
    assert len(entries_of(dataset)) == 206
    assert "(kept for evaluation; training leaves them out)" in problem_of(dataset)


############################################################
#  Values in unusual forms
############################################################


def as_text(value):
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) else value


def huge(entry, *_) -> None:
    entry["id"] = entry["id"] + 2**60


ACCEPTED = {
    "flat polygon": lambda entry, corners: entry.update(segmentation=ring(*corners)),
    "points": lambda entry, corners: entry.update(segmentation=np.reshape(ring(*corners), (-1, 2)).tolist()),
    "list of points": lambda entry, corners: entry.update(segmentation=[np.reshape(ring(*corners), (-1, 2)).tolist()]),
    "polygon as text": lambda entry, corners: entry.update(segmentation=as_text([ring(*corners)])),
    "flat polygon as text": lambda entry, corners: entry.update(segmentation=as_text(ring(*corners))),
    "polygon as JSON": lambda entry, corners: entry.update(segmentation=json.dumps([ring(*corners)])),
    "box as JSON": lambda entry, corners: entry.update(bbox=json.dumps(entry["bbox"])),
    "box as text": lambda entry, corners: entry.update(bbox=as_text(entry["bbox"])),
    "area as text": lambda entry, corners: entry.update(area=as_text(entry["area"])),
    "ids as text": lambda entry, corners: entry.update({key: str(entry[key]) for key in entry if key.endswith("id")}),
    "padded ids": lambda entry, corners: entry.update(
        {key: f" 00{entry[key]}.0" for key in ("image_id", "category_id")}
    ),
    "large id": huge,
    "crowd as text": lambda entry, corners: entry.update(iscrowd="0"),
    "crowd as a word": lambda entry, corners: entry.update(iscrowd="False"),
    "crowd as bool": lambda entry, corners: entry.update(iscrowd=False),
    "crowd as null": lambda entry, corners: entry.update(iscrowd=None),
    "image_id inside": lambda entry, corners: entry.update(attributes={"image_id": 7, "occluded": False}),
    "annotation inside": lambda entry, corners: entry.update(parent={**entry, "more": [{"image_id": 2}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_clear_is_accepted(load, name):
    dataset = load(contents(ACCEPTED[name]))
    assert dataset.skipped == {}
    assert_right(dataset)
    assert [entry["id"] % 2**60 for entry in entries_of(dataset)] == [*range(11, 17)]


def code_text(entry, corners) -> None:
    entry["segmentation"] = utils.rle_to_json(utils.mask_to_rle(mask_of(*corners)))


def change_rle(kind, **changes):
    def change(entry, corners):
        kind(entry, corners)
        rle = entry["segmentation"]
        rle |= {key: function(rle[key]) for key, function in changes.items() if function}
        for key in [key for key, function in changes.items() if function is None]:
            del rle[key]

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_rle(column_major, counts=lambda counts: [float(count) for count in counts]),
        change_rle(column_major, counts=as_text),
        change_rle(column_major, size=as_text),
        change_rle(code_text, size=as_text),
        change_rle(code_text, size=lambda size: [float(side) for side in size]),
        change_rle(column_major, size=None),
        change_rle(code_text, size=None),
        change_rle(code_text, size=lambda size: None),
    ],
)
def test_codes_in_unusual_forms(load, change):
    dataset = load(contents(change))
    assert dataset.skipped == {}
    assert_right(dataset)


@pytest.mark.parametrize("kind", [column_major, code_text])
def test_codes_of_parts(load, kind):
    """An object may have an RLE for each part. Parts of other sizes, or damaged ones, make no mask."""

    def change(entry, corners):
        x1, y1, x2, y2 = corners
        left, right = {}, {}
        kind(left, (x1, y1, x1 + 5, y2))
        kind(right, (x1 + 3, y1, x2, y2))
        entry["segmentation"] = [left["segmentation"], right["segmentation"]]

    data = contents(change)
    assert_right(load(data))
    kind(data["annotations"][0], OBJECTS[0])
    data["annotations"][0]["segmentation"] = [data["annotations"][0]["segmentation"]]
    data["annotations"][1]["segmentation"][1] = 5
    data["annotations"][2]["segmentation"][1] = {"size": [1, 1], "counts": [1]}
    data["annotations"][3]["segmentation"][1] = {"counts": [1]}
    dataset = load(data)
    assert_right(dataset, [0, 4, 5])
    assert dataset.skipped == {"annotations with a damaged RLE (skipped)": [12, 13, 14]}


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2**32, 2**32], "counts": [0, 5]},
        {"size": [2**32, 2**32], "counts": [2**64]},
        {"size": [HEIGHT, WIDTH], "counts": [2**62] * 4 + [HEIGHT * WIDTH]},
        {"size": [10**30, 1], "counts": [1]},
        {"size": [0, 0], "counts": [0, 0]},
        {"size": [HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"counts": [2**62] * 5},
        {"counts": "zzz"},
        {"counts": [10, 20]},
        {"size": [HEIGHT, WIDTH], "counts": [1.5, HEIGHT * WIDTH - 1.5]},
        {"size": [HEIGHT, WIDTH]},
        {},
    ],
)
def test_codes_that_are_refused(load, rle):
    data = contents()
    data["annotations"][0]["segmentation"] = rle
    dataset = load(data)
    assert_right(dataset, range(1, 6))
    assert dataset.skipped == {"annotations with a damaged RLE (skipped)": [11]}


def test_a_large_code_takes_no_memory(load):
    """A size that is not the image's is refused before a pixel of it exists."""
    data = contents()
    data["annotations"][0]["segmentation"] = {"size": [10_000, 17_000], "counts": [0, 170_000_000]}
    dataset = load(data)
    assert dataset.skipped == {"annotations with an RLE of another size than the image (skipped)": [11]}


def test_ids_that_are_texts(load, caplog):
    data = contents()
    for image in data["images"]:
        image["id"] = f"img_{'cab'[image['id'] - 1]}"
    for category in data["categories"]:
        category["id"] = {1: "thing-b", 2: "thing-a"}[category["id"]]
    for entry in data["annotations"]:
        entry["id"] = f"uuid-{entry['id']}"
        entry["image_id"] = f"img_{'cab'[entry['image_id'] - 1]}"
        entry["category_id"] = {1: "thing-b", 2: "thing-a"}[entry["category_id"]]
    dataset = load(data)
    assert [(info["id"], info["file_id"]) for info in dataset.image_info] == [(1, "img_a"), (2, "img_b"), (3, "img_c")]
    assert [info["path"][-7:] for info in dataset.image_info] == ["im2.png", "im3.png", "im1.png"]
    assert dataset.class_names == ["BG", "plate", "cup"]
    assert dataset.category_ids == [0, 1, 2]
    assert_right(dataset, [2, 3, 4, 5, 0, 1])
    assert sorted(entry["id"] for entry in entries_of(dataset)) == [1, 2, 3, 4, 5, 6]
    assert "3 images with an id that is a text (numbers 1 to 3, in the order of the texts): 'img_a'" in caplog.text
    assert "2 categories with an id that is a text (numbers 1 to 2" in caplog.text
    assert "6 annotations with an id that is a text (kept, with new ids): 'uuid-11'" in caplog.text


def test_texts_and_numbers_mixed(load):
    data = contents()
    data["images"][2]["id"] = "other"
    for entry in data["annotations"][4:]:
        entry["image_id"] = "other"
    dataset = load(data)
    assert_right(dataset)
    assert [info["id"] for info in dataset.image_info] == [1, 2, 3]


@pytest.mark.parametrize("suffix", [".png", ""])
def test_names_instead_of_ids(load, suffix):
    def change(entry, corners):
        entry["image_id"] = f"im{entry['image_id']}{suffix}"
        entry["category_id"] = ("cup", "plate")[entry["category_id"] - 1]

    dataset = load(contents(change))
    assert_right(dataset)
    assert [problem.split(" (")[0] for problem in dataset.skipped] == [
        "annotations whose image_id is a name", "annotations whose category_id is a name",
    ]  # fmt: skip


def test_names_without_folders_and_suffix(load, tmp_path):
    """A name that two images have means neither."""
    (tmp_path / "more").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "more" / "im2.png")
    data = contents()
    data["images"][2]["file_name"] = "more/im2.png"
    for entry, name in zip(data["annotations"], ["im1", "im1.png", 2, "im2.png", "more/im2.png", "im2"], strict=True):
        entry["image_id"] = name
    dataset = load(data)
    assert [entry["image_id"] for entry in entries_of(dataset)] == [1, 1, 2, 2, 3]
    assert list(dataset.skipped.values()) == [[11, 12, 14, 15], [16]]


def test_large_ids(load):
    data = contents(lambda entry, corners: entry.update(image_id=entry["image_id"] + 2**60))
    for image in data["images"]:
        image["id"] += 2**60
    dataset = load(data)
    assert_right(dataset)
    assert [info["id"] for info in dataset.image_info] == [2**60 + i for i in (1, 2, 3)]


def test_an_image_id_that_no_image_has(load):
    data = contents()
    data["annotations"][0]["image_id"] = "x1\x1b[2J"
    dataset = load(data)
    problem = "image_id is a text, such as 'x1\\x1b[2J', and no image has this id (skipped)"
    assert dataset.skipped == {f"annotations of images that are not in the file: {problem}": [11]}


def test_sizes_of_images(load, caplog):
    """Sizes may be texts. Without them, they are the image's own, as it is when upright."""
    data = contents()
    data["images"][0] |= {"height": "60", "width": "80.0"}
    del data["images"][1]["height"]
    data["images"][2]["width"] = None
    dataset = load(data)
    assert_right(dataset)
    problem = "images without a usable height and width (taken from the image)"
    assert dataset.skipped == {problem: ["im2.png", "im3.png"]}
    assert dataset.load_image(1).shape == (HEIGHT, WIDTH, 3)


def test_the_size_of_a_turned_image(load, tmp_path):
    data = contents()
    del data["images"][0]["height"]
    exif = Image.Exif()
    exif[0x0112] = 6
    load(data)
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "im1.png", exif=exif)  # stored on its side
    dataset = load(data)
    assert_right(dataset)
    assert dataset.load_image(0).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", [None, column_major, code_text])
def test_sizes_of_images_that_are_exchanged(load, kind):
    """The objects of image 1 lie in the part that is missing; the files of the others confirm it."""
    data = contents(kind)
    for image in data["images"]:
        image |= {"height": WIDTH, "width": HEIGHT}
    dataset = load(data)
    assert_right(dataset)
    problem = "images whose height and width are exchanged in the file (taken from the image)"
    assert dataset.skipped == {problem: ["im1.png", "im2.png", "im3.png"]}
    assert [dataset.load_image(image_id).shape[:2] for image_id in range(3)] == [(HEIGHT, WIDTH)] * 3


def test_labels_of_the_displayed_picture_with_the_size_as_stored(load, tmp_path):
    """A box outside of the image tells that the size is not the one that was labelled."""
    data = contents()
    data["images"][0] |= {"height": WIDTH, "width": HEIGHT}
    exif = Image.Exif()
    exif[0x0112] = 6
    load(data)
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "im1.png", exif=exif)
    dataset = load(data)
    assert_right(dataset)
    assert dataset.load_image(0).shape == (HEIGHT, WIDTH, 3)
    data["annotations"] = data["annotations"][2:]  # of other images
    assert load(data).load_image(0).shape == (WIDTH, HEIGHT, 3)


def test_objects_in_other_lists(load):
    dataset = load({**contents(), "predictions": contents()["annotations"][:2]})
    assert_right(dataset)
    assert dataset.skipped == {"other lists than annotations that have objects (not read)": ["predictions"]}


############################################################
#  The parts
############################################################


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), (5.0, 5), ("5", 5), (" 05 ", 5), ("-5.0", -5), (2**60 + 1, 2**60 + 1), (str(2**60 + 1), 2**60 + 1)],
)
def test_whole_numbers(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize("value", [5.5, "5.5", "", "x", None, True, [5], {}, 2**62, 10**30, 1e17, "9" * 5000, "٣"])
def test_what_is_no_whole_number(value):
    assert whole_number(value) == NO_NUMBER


def test_numbers_of_texts():
    numbers = IdNumbers()
    assert numbers.number(7) == numbers.number("7") == 7
    provisional = [numbers.number(text) for text in ("b", "a", "unused", "b", 10**30)]
    assert provisional[0] == provisional[3]
    assert len({*provisional}) == 4
    assert max(provisional) < -(2**62)
    assert numbers.number(None) == numbers.number("") == numbers.number(2.5) == NO_NUMBER
    assert numbers.settle([provisional[0], provisional[1], 7]) == {provisional[1]: 8, provisional[0]: 9}
    assert numbers.settle([provisional[0], -3]) == {provisional[0]: 1}


def make_table(tmp_path, data):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(data))
    return read_file(path).table


def test_bounds_of_outlines_and_of_pixels(tmp_path, monkeypatch):
    """Those without drawing are those of the corners, in whatever pieces they are computed."""
    rng = np.random.default_rng(0)
    rings = [rng.uniform(0, 50, 2 * int(rng.integers(3, 9))).tolist() for _ in range(40)]
    rle = utils.rle_to_json(utils.mask_to_rle(mask_of(5, 6, 9, 30)))
    masks = [rings[:1], rings[1:5], rle, rings[5:7], rings[7:40]]
    data = contents()
    data["annotations"] = [{"image_id": 1, "segmentation": mask} for mask in masks]
    table = make_table(tmp_path, data)
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr("data.label_table._CHUNK_POINTS", size)
        boxes, areas = table.outline_bounds()
        for row, mask in enumerate(masks):
            if isinstance(mask, dict):
                assert (boxes[row].tolist(), areas[row]) == ([5, 6, 4, 24], 96)
                continue
            points = np.concatenate([np.reshape(one, (-1, 2)) for one in mask])
            np.testing.assert_allclose(boxes[row], [*points.min(axis=0), *np.ptp(points, axis=0)])
            parts = (np.reshape(one, (-1, 2)).T for one in mask)
            area = sum(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 for x, y in parts)
            np.testing.assert_allclose(areas[row], area)
    boxes, areas = table.pixel_bounds(np.array([2, 0]), np.full((5, 2), (HEIGHT, WIDTH)))
    code = table.rle(0, HEIGHT, WIDTH)
    y1, x1, y2, x2 = utils.rle_to_bbox(code)
    assert boxes.tolist() == [[5, 6, 4, 24], [x1, y1, x2 - x1, y2 - y1]]
    assert areas.tolist() == [96, utils.rle_area(code)]


def test_checks_without_a_file_of_coco(tmp_path):
    """Readers of other formats fill a table and call the same checks."""
    table = make_table(tmp_path, contents(bbox=None))
    skipped = {}
    rows, sizes = LabelChecks(table, skipped, {12: "line 12"}), np.full((6, 2), (HEIGHT, WIDTH))
    table.kinds[1] = 3
    check_labels(rows, sizes)
    assert rows.good.tolist() == [True, False, True, True, True, True]
    assert table.boxes[[0, 2]].tolist() == [BOXES[0], BOXES[2]]
    assert skipped["annotations without a segmentation (skipped)"] == ["line 12"]
    rows = LabelChecks(make_table(tmp_path, contents()), skipped)
    check_segmentations(rows, sizes)
    check_boxes(rows, sizes, *rows.table.outline_bounds(), keep_empty=False)
    assert rows.good.all()
    assert (rows.table.kinds == POLYGONS).all()


def test_the_summary_of_problems():
    skipped = {}
    note(skipped, "things", [])
    assert skipped == {}
    note(skipped, "things", ["a\x1b[2J", 2])
    note(skipped, "things", [3, "x" * 500])
    note(skipped, "others", range(2000))
    assert summary(skipped) == "    4 things: 'a\\x1b[2J', 2, 3, and 1 more\n    2,000 others: 0, 1, 2, and 1997 more"


############################################################
#  Cases of others
############################################################


@needs_cases
@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("01_bbox_xyxy", "read as x1 y1 x2 y2 instead of x y width height, 6 would fit"),
        ("02_bbox_zero", "bbox of no width or height"),
        ("03_bbox_normalised", "read as fractions of the image size instead of x y width height, 6 would fit"),
        ("05b_area_one", "area that does not fit the mask"),
        ("06_seg_flat_list", ""),
        ("06l_seg_normalised", "polygons in fractions of the image size (scaled"),
        ("07b_ann_imageid_str", ""),
        ("07c_ann_category_str", ""),
        ("07g_ids_huge", ""),
        ("12e_rle_float_counts", ""),
        ("12h_rle_row_major", "RLE that counts along rows"),
        ("12j_rle_no_size", ""),
        ("13h_attr_image_id", ""),
    ],
)
def test_cases(case, problem, caplog):
    dataset = CocoDataset()
    folder = CASES / "annotations" / case
    dataset.load_annotations(folder / "ann.json", folder / "images")
    dataset.prepare()
    assert [problem in key for key in dataset.skipped] == [True] * bool(problem)
    assert {record.levelno for record in caplog.records} == ({logging.WARNING} if problem else set())
    boxes = np.concatenate([dataset.load_instances(image_id).boxes for image_id in dataset.image_ids])
    first = [[11, 15, 27, 35], [11, 40, 27, 60]]  # of image 1; those of the next ones are 5 and 3 pixels on
    expected = [[y1 + 3 * i, x1 + 5 * i, y2 + 3 * i, x2 + 5 * i] for i in range(3) for y1, x1, y2, x2 in first]
    assert boxes.tolist() == expected
    for image_id in dataset.image_ids:
        masks, class_ids = dataset.load_mask(image_id)
        assert class_ids.tolist() == [1, 2]
        np.testing.assert_array_equal(utils.extract_bboxes(masks), expected[2 * image_id : 2 * image_id + 2])
    assert {entry["area"] for entry in entries_of(dataset)} == {320}


@needs_cases
def test_a_case_of_empty_masks():
    folder = CASES / "annotations" / "12l_rle_empty_masks"
    with pytest.raises(
        ValueError, match=r"ann\.json: none of 3 images(.|\n)*6 annotations with a mask without a pixel"
    ):
        CocoDataset().load_annotations(folder / "ann.json", folder / "images")


@needs_cases
def test_the_case_of_a_training_without_boxes():
    dataset = CocoDataset()
    dataset.load_coco(CASES / "coco" / "T1_bbox_zero_train" / "data", "train", 2017)
    dataset.prepare()
    for image_id in dataset.image_ids:
        _, masks, boxes = dataset.load_instances(image_id)
        assert boxes.tolist() == [list(utils.rle_to_bbox(mask)) for mask in masks]
        assert (boxes[:, 2:] > boxes[:, :2]).all()

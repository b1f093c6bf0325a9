"""Which pictures train and which validate."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.recognise import Records
from data.records import Findings, Object, Picture
from data.split import apply_split, base_stem, make_split, read_split, write_split

RING = [np.array([[0, 0], [4, 0], [4, 4]], float)]


def records_of(pictures: dict, root: str = "/data") -> Records:
    """pictures: {name: (split, class names of its objects)}."""
    made = [
        Picture(Path(root) / name, f"{name}.json", split=split, objects=[Object(each, "", RING) for each in classes])
        for name, (split, classes) in pictures.items()
    ]
    return Records(Path(root), "made", "", made, Findings())


def likeness(*pairs) -> SimpleNamespace:
    return SimpleNamespace(alike=list(pairs))


def test_a_fifth_of_the_pictures_validates_and_again_the_same():
    records = records_of({f"{i}.png": (None, ["cell"] * 3) for i in range(50)})
    split = make_split(records, likeness())
    assert len(split.val) == 10
    assert set(split.val).isdisjoint(split.train)
    assert len(split.train) == 40
    assert make_split(records, likeness()) == split
    assert make_split(records, likeness(), seed=1).val != split.val
    assert "10 pictures of 50 validate, chosen by --seed 0" in split.notes


def test_given_splits_stay_as_they_are_and_test_stays_out():
    splits = {"a.png": ("train", ["x"]), "b.png": ("val", ["x"]), "c.png": ("test", ["x"]), "d.png": (None, ["x"])}
    split = make_split(records_of(splits), likeness())
    assert (split.train, split.val) == (["a.png", "d.png"], ["b.png"])
    assert split.left_out == {"c.png": "of the split test"}
    assert split.notes == ["train and val are the data set's own, and 1 picture of no split to train"]


def test_a_picture_of_val_that_train_has_too_does_not_validate():
    splits = {"a.png": ("train", ["x"]), "b.png": ("val", ["x"]), "c.png": ("val", ["x"])}
    split = make_split(records_of(splits), likeness((0, 2)))
    assert split.val == ["b.png"]
    assert split.left_out == {"c.png": "shows the same as a.png of train"}
    assert "c.png is a.png" in split.notes[1]


def test_a_test_split_without_val_stays_out_of_training():
    splits = {f"{i}.png": ("train" if i < 40 else "test", ["x"] * 5) for i in range(50)}
    split = make_split(records_of(splits), likeness())
    assert len(split.val) == 8
    assert sorted(split.left_out) == [f"{i}.png" for i in range(40, 50)]


def test_pictures_of_no_split_train_and_a_given_test_or_val_does_not():
    """The folder images/ beside test/images/, or val/ beside pictures at the top."""
    with_test = {f"{i}.png": (None if i < 40 else "test", ["x"] * 5) for i in range(50)}
    split = make_split(records_of(with_test), likeness())
    assert sorted(split.left_out) == [f"{i}.png" for i in range(40, 50)]
    assert (len(split.train), len(split.val)) == (32, 8)
    with_val = {f"{i}.png": (None if i < 40 else "val", ["x"] * 5) for i in range(50)}
    split = make_split(records_of(with_val), likeness())
    assert split.train == [f"{i}.png" for i in range(40)]
    assert split.val == [f"{i}.png" for i in range(40, 50)]
    divided = make_split(records_of(with_val), likeness(), share=0.5)
    assert len(divided.val) == 25, "a share divides all of them anew"


@pytest.mark.parametrize(("names", "note"), [
    (["val"], "no pictures of train: those of val"), (["test"], "pictures of test alone"),
    (["val", "test"], "no pictures of train: those of val"),
])  # fmt: skip
def test_a_data_set_without_pictures_to_learn_is_divided_and_it_is_said(names, note):
    splits = {f"{name}{i}.png": (name, ["x"] * 5) for name in names for i in range(25)}
    split = make_split(records_of(splits), likeness())
    assert (len(split.train), len(split.val)) == (20, 5)
    assert note in split.notes[0]
    assert {name[:4] for name in split.left_out} == set(names[1:])
    assert {name[: len(names[0])] for name in split.train + split.val} == {names[0]}


NAMES = ["s{}.rf.{}a.jpg", "s{}_aug{}.png", "s{}_x{}_y7.tif", "s{}_r{}_c2.png", "s{}_tile{}.png", "s{}_rot{}.png"]


@pytest.mark.parametrize("name", NAMES)
def test_versions_and_tiles_of_one_picture_stay_together(name):
    records = records_of({name.format(i, part): (None, ["x"] * 5) for i in range(20) for part in range(4)})
    split = make_split(records, likeness())
    sources = [{base_stem(picture) for picture in side} for side in (split.train, split.val)]
    assert sources[0].isdisjoint(sources[1])
    assert len(sources[0]) + len(sources[1]) == 20
    assert len(split.val) == 16


def test_pictures_that_look_alike_stay_together():
    records = records_of({f"{i}.png": (None, ["x"] * 5) for i in range(30)})
    chain = [(i, i + 1) for i in range(0, 30, 2)]
    split = make_split(records, likeness(*chain))
    for i, j in chain:
        assert (f"{i}.png" in split.val) == (f"{j}.png" in split.val)


def test_pictures_of_one_folder_stay_together_where_folders_are_many():
    records = records_of({f"patient{i}/{j}.png": (None, ["x"]) for i in range(15) for j in range(4)})
    split = make_split(records, likeness())
    patients = [{name.split("/")[0] for name in side} for side in (split.train, split.val)]
    assert patients[0].isdisjoint(patients[1])
    records = records_of({f"{i}/{j}.png": (None, [f"class{i}"]) for i in range(15) for j in range(10)})
    split = make_split(records, likeness())
    assert len({name.split("/")[0] for name in split.val}) == 15, "folders are classes: each must be on both sides"


def test_every_class_is_on_both_sides_where_it_can_be():
    pictures = {f"{i}.png": (None, ["often"]) for i in range(40)}
    pictures |= {f"rare{i}.png": (None, ["rare"]) for i in range(2)} | {"once.png": (None, ["once"])}
    records = records_of(pictures)
    for seed in range(5):
        split = make_split(records, likeness(), seed=seed)
        assert sum(name.startswith("rare") for name in split.val) == 1
        assert "once.png" in split.train
        assert any("val has no once" in note for note in split.notes)


def test_too_few_pictures_have_no_validation_and_it_is_said():
    split = make_split(records_of({"a.png": (None, ["x"]), "b.png": (None, ["x"])}), likeness())
    assert (split.train, split.val) == (["a.png", "b.png"], [])
    assert "no number that says how good" in split.notes[0]
    assert make_split(records_of({"a.png": ("train", ["x"])}), likeness(), share=0).val == []
    with pytest.raises(ValueError, match="no picture is left to train on"):
        make_split(records_of({}), likeness())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=40), st.integers(0, 3))
def test_no_picture_is_lost_or_on_both_sides(contents, seed):
    records = records_of({f"{i}.png": (None, classes) for i, classes in enumerate(contents)})
    split = make_split(records, likeness(), seed=seed)
    assert sorted([*split.train, *split.val]) == sorted(picture.path.name for picture in records.pictures)
    assert len(split.val) <= len(contents) / 2
    learned = {each for name in split.train for each in contents[int(name.split(".")[0])]}
    assert learned == {each for classes in contents for each in classes}, "a class that nobody learns"


def test_the_file_holds_the_split_and_pictures_that_come_later_train(tmp_path):
    records = records_of({f"{i}.png": (None, ["x"] * 5) for i in range(20)})
    split = make_split(records, likeness())
    write_split(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split
    later = records_of({f"{i}.png": ("val", ["x"]) for i in range(1, 22)})
    notes = apply_split(later, split)
    assert {picture.path.name for picture in later.pictures if picture.split == "val"} == set(split.val) - {"0.png"}
    assert "2 pictures came since split.json was made, to train: 20.png, 21.png" in notes[0]
    assert "1 picture of split.json is gone: 0.png" in notes[1]


@pytest.mark.parametrize("damage", [{"format": "x"}, {"train": "a"}, {"val": [1]}, {"left_out": 3}, {"notes": None}])
def test_a_damaged_file_is_refused(tmp_path, damage):
    split = make_split(records_of({"a.png": (None, ["x"])}), likeness())
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split.to_json() | damage))
    with pytest.raises(ValueError, match=r"is no split\.json of this project"):
        read_split(path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"is no split\.json"):
        read_split(path)

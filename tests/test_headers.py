"""data/headers.py: image files that cannot be read, found before a training begins."""

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from data.headers import check_headers, unreadable_images


class Own(Dataset):
    """Its images are no files."""

    def load_image(self, image_id):
        raise OSError("was asked")


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Five images: good, missing, a text, empty, of another size than image_info says."""
    return make(Dataset, tmp_path)


def make(kind, folder, count: int = 5) -> Dataset:
    dataset = kind()
    dataset.add_class("own", 1, "cat")
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
        dataset.add_image("own", number, path, **({"height": 20, "width": 30} if number else {}))
    dataset.prepare()
    (folder / "1.png").unlink(missing_ok=True)
    if count > 4:
        (folder / "2.png").write_text("no image")
        (folder / "3.png").write_bytes(b"")
        dataset.image_info[4]["width"] = 31
    return dataset


def test_what_cannot_be_read(dataset):
    """The size of image 4 is no reason here: Dataset.load_image does not mind it, and CocoDataset's does."""
    failures = unreadable_images(dataset)
    assert list(failures) == [1, 2, 3]
    assert all(f"{number}.png" in failures[number] for number in failures)
    assert list(unreadable_images(dataset, [0, 3, 4])) == [3]


def test_an_image_on_its_side_is_none_of_another_size(dataset, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(dataset.image_info[0]["path"], exif=exif)
    monkeypatch.setattr(Dataset, "load_image", lambda self, image_id: pytest.fail("is read as a whole"))
    for size in ((30, 20), (20, 30)):
        dataset.image_info[0] |= {"height": size[0], "width": size[1]}
        assert unreadable_images(dataset, [0]) == {}


def test_images_that_only_their_data_set_can_read(tmp_path):
    assert unreadable_images(make(Own, tmp_path)) == {}


def test_the_check_before_a_training(dataset, tmp_path, capsys):
    check_headers(dataset, dataset, max_errors=4)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("images to train on that cannot be read; others take their places: ")
    assert printed[1].startswith("images to validate with that cannot be read; validation goes on without them: ")
    assert all("2.png" in line for line in printed)
    with pytest.raises(ValueError, match=r"3 images to train on cannot be read \(MAX_DATA_ERRORS is 3\): .*1\.png"):
        check_headers(dataset, None, max_errors=3)
    (tmp_path / "good").mkdir()
    good = make(Dataset, tmp_path / "good", count=1)
    check_headers(good, good, max_errors=1)
    assert capsys.readouterr().out == ""
    (tmp_path / "good" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"none of the 1 images to validate with can be read: .*0\.png"):
        check_headers(dataset, good, max_errors=9)


def test_many_training_images_are_sampled(dataset, monkeypatch):
    asked = []
    monkeypatch.setattr("data.headers.unreadable_images", lambda data, ids=None: asked.append(ids) or {})
    for count in (5, 2000, 2001, 118287):
        dataset.num_images = count
        check_headers(dataset, dataset, 9)
    assert [len(ids) for ids in asked[::2]] == [5, 2000, 1001, 1972]
    assert asked[1::2] == [None] * 4, "all images to validate with"

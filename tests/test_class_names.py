"""Names of classes from a text file, from an annotation file, and by the name of a data set."""

import json

import pytest

from weights.class_names import KNOWN_CLASSES, read_class_names


def test_categories_count_in_the_order_of_their_ids(tmp_path):
    """Detectron2 numbers the classes of a data set so. LVIS's categories have more keys, and gaps are no classes."""
    categories = [
        {"id": 7, "name": "zebra", "synonyms": ["zebra"], "frequency": "f"},
        {"id": 1, "name": "aerosol_can"},
        {"id": 3, "name": " air conditioner "},
    ]
    path = tmp_path / "lvis_v0.5_val.json"
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": [], "categories": categories}))
    assert read_class_names(path) == ["aerosol_can", "air conditioner", "zebra"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("{", r"names\.json is no annotation file of JSON \("),
        ("[" * 100_000, r"names\.json is no annotation file of JSON \("),
        ("[1]", r"names\.json has no categories, a list of \{id, name\}"),
        ('{"categories": {"id": 1}}', "has no categories"),
        ('{"categories": [{"id": true, "name": "a"}]}', "has no categories"),
        ('{"categories": [{"id": 1, "name": null}]}', "has no categories"),
        ('{"categories": []}', "must name each class once, a line each; it names none"),
        (
            '{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "must name each class once, a line each; a",
        ),
        ('{"categories": [{"id": 0, "name": "Background"}]}', r"begins with 'Background'; .* call it otherwise"),
    ],
)
def test_files_that_name_no_classes(contents, message, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(contents)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_names(path)
    assert str(caught.value).isprintable()


def test_known_classes_are_meant_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_class_names("publaynet") == ["Text", "Title", "List", "Table", "Figure"]
    (tmp_path / "publaynet").write_text("page\n")
    assert read_class_names("publaynet") == ["page"]
    with pytest.raises(
        FileNotFoundError, match=r"publaynets, the file of class names, .* it is none of cityscapes, publay"
    ):
        read_class_names("publaynets")


@pytest.mark.parametrize("name", KNOWN_CLASSES)
def test_known_classes_are_names(name):
    names = KNOWN_CLASSES[name]
    assert len(set(names)) == len(names) > 0
    assert all(text == text.strip() and text.isprintable() for text in names)

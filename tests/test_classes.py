"""data/classes.py: which class of a data set is which row of a model, or of a checkpoint."""

import numpy as np
import pytest

from config import Config
from data.classes import UNKNOWN, Classes, RowMatch, map_classes, map_to_model, match_rows, unnamed
from data.dataset import Dataset


class Owner:
    """What Classes.of reads of a data set or a model."""

    def __init__(self, *names, ids=None) -> None:
        self.class_names, self.category_ids = ["BG", *names], ids


def rows_of(dataset: Classes, model: Classes) -> list[int]:
    return map_classes(dataset, model).rows.tolist()


def classes(*names, ids=None) -> Classes:
    return Classes(["BG", *names], ids)


############################################################
#  A data set and a model
############################################################


@pytest.mark.parametrize(
    ("dataset", "model", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1, 2]),
        (["cat", "dog"], ["dog", "cat"], [0, 2, 1]),
        (["dog"], ["cow", "cat", "dog"], [0, 3]),
        (["dog", "hen"], ["cow", "dog"], [0, 2, UNKNOWN]),
        (["dog", "hen"], ["cow"], [0, UNKNOWN, UNKNOWN]),
        ([], ["cow"], [0]),
        (["треугольник", "猫"], ["猫", "треугольник"], [0, 2, 1]),
    ],
)
def test_names_decide(dataset, model, expected):
    assert rows_of(classes(*dataset), classes(*model)) == expected
    ids = [0, *(9 - i for i in range(len(dataset)))]
    assert rows_of(classes(*dataset, ids=ids), classes(*model)) == expected, "whatever the ids"


def test_the_name_of_the_background_does_not_matter():
    assert rows_of(Classes(["BG", "cat"]), Classes(["background", "dog", "cat"])) == [0, 2]


def test_names_that_nearly_agree():
    """Case, spaces, hyphens and underscores; with a note, and only where nothing else could be meant."""
    mapping = map_classes(classes("Hair-Drier", "cat"), classes("cat", "hair drier"))
    assert mapping.rows.tolist() == [0, 2, 1]
    assert mapping.notes == ["'Hair-Drier' is taken for the class 'hair drier'"]
    assert rows_of(classes("tank+"), classes("tank-")) == [0, UNKNOWN]
    assert rows_of(classes("A b", "a B"), classes("ab")) == [0, UNKNOWN, UNKNOWN], "which of the two is it?"
    assert rows_of(classes("Cat", "cat"), classes("cat", "dog")) == [0, UNKNOWN, 1], "the exact name comes first"
    assert rows_of(classes("CAT"), classes("Cat", "cAt")) == [0, UNKNOWN]


def test_ids_tell_classes_of_one_name_apart():
    dataset, model = classes("N/A", "cat", "N/A", ids=[0, 12, 1, 26]), classes("cat", "N/A", "N/A", ids=[0, 1, 26, 12])
    assert rows_of(dataset, model) == [0, 3, 1, 2]
    assert rows_of(classes("dog", "dog"), classes("dog", "dog")) == [0, 1, 2], "equal lists"
    mapping = map_classes(classes("dog", "cat"), classes("dog", "dog", "cat"))
    assert mapping.rows.tolist() == [0, UNKNOWN, 3]
    assert mapping.unknown == ["'dog' (several classes have this name)"]


def test_a_model_without_names():
    assert unnamed(3) == ["BG", "class 1", "class 2"]
    model = Classes(unnamed(3), [0, 1, 2])
    mapping = map_classes(classes("cat", "dog", ids=[0, 5, 7]), model)
    assert mapping.rows.tolist() == [0, 1, 2]
    assert "in order: 1 is 'cat', 2 is 'dog'" in mapping.notes[0]
    by_id = map_classes(classes("cat", "dog", ids=[0, 5, 7]), Classes(unnamed(4), [0, 7, 3, 5]))
    assert by_id.rows.tolist() == [0, 3, 1]
    assert rows_of(classes("cat", "dog", "cow"), model) == [0, UNKNOWN, UNKNOWN, UNKNOWN]
    assert rows_of(classes("class 2", "class 1"), model) == [0, 2, 1], "some data sets have such names"


def test_unknown_classes_are_described():
    (text,) = map_classes(classes("hen", ids=[0, 2]), classes("cat", "dog", ids=[0, 1, 2])).unknown
    assert text == "'hen' (its id 2 is 'dog' in the model)"
    (text,) = map_classes(classes("he\x1b[2Jn"), classes("cat")).unknown
    assert text == "'he\\x1b[2Jn'"


def test_rows_of_class_ids():
    mapping = map_classes(classes("dog", "hen", "cat"), classes("cat", "dog"))
    assert mapping.rows_of(np.array([1, -3, 2, -2, 3], np.int32)).tolist() == [2, -1, -1, -1, 1]
    assert mapping.rows_of(np.array([], np.int32)).dtype == np.int32
    assert not mapping.is_identity
    assert map_classes(classes("dog"), classes("dog", "cat")).is_identity


def test_numbers_of_rows():
    """The data set's ids; a row that it lacks keeps its own id, unless the data set uses that."""
    mapping = map_classes(classes("dog", "cat"), classes("ox", "cat", "dog", "hen"))
    assert mapping.numbers_of_rows([0, 18, 7], [0, 3, 17, 16, 20]) == [0, 3, 7, 18, 20]
    assert mapping.numbers_of_rows([0, 18, 7], [0, 7, 17, 16, 18]) == [0, 19, 7, 18, 20]
    zero = map_classes(classes("dog"), classes("dog", "cat"))
    assert zero.numbers_of_rows([0, 0], [0, 1, 2]) == [0, 0, 2], "category 0 is not the background"


def test_a_data_set_that_goes_with_a_model():
    model = Owner("cat", "dog", ids=[0, 1, 2])
    mapping = map_to_model(Owner("Dog", "hen"), model, "the validation data")
    assert mapping.sentences("a pity") == [
        "the validation data: 'Dog' is taken for the class 'dog'",
        "the validation data: the model does not know 'hen'; a pity",
    ]
    assert map_to_model(Owner(), model).rows.tolist() == [0], "no classes, no complaint"
    with pytest.raises(ValueError, match=r"of the classes of the data set: the model has 'cat', 'dog'.* has 'hen'"):
        map_to_model(Owner("hen"), model)
    with pytest.raises(ValueError, match=r"x has classes that the model does not know: 'hen'; .*copy_classes=True"):
        map_to_model(Owner("hen", "cat"), model, "x", needs_all=True)


def test_a_data_set_that_is_not_prepared():
    dataset = Dataset()
    dataset.add_class("own", 1, "cat")
    with pytest.raises(AttributeError, match=r"class_names is not set yet; call prepare\(\)"):
        Classes.of(dataset)


def test_owners_without_names_or_with_ambiguous_ids():
    class Bare:
        config = Config(NUM_CLASSES=3)

    class Overlapping:
        class_names = ("BG", "cat")

        @property
        def category_ids(self):
            raise ValueError("category ids of the sources overlap")

    assert Classes.of(Bare()) == Classes(unnamed(3), None)
    assert Classes.of(Overlapping()) == Classes(["BG", "cat"], None)
    with pytest.raises(ValueError, match=r"the data set has 2 classes, background included, and NUM_CLASSES.* is 3"):
        map_to_model(Overlapping(), Bare())


############################################################
#  A checkpoint and a model
############################################################

BOTH = {"CLASS_NAMES", "CATEGORY_IDS"}


def match(names, own=("cat", "dog"), ids=None, takes=(), continues=False, takes_part=False) -> RowMatch:
    checkpoint = {"class_names": names and ["BG", *names], "category_ids": ids}
    model = Classes(["BG", *own], [0, *range(11, 11 + len(own))])
    return match_rows(model, checkpoint, takes, continues, takes_part)


def test_rows_of_the_same_classes(capsys):
    assert match(None) == match(["class 1", "class 2"]) == match(["cat", "dog"]) == RowMatch()
    assert match(["dog", "cat"]) == RowMatch(moves=True)
    assert match(["cat", "DOG"]) == RowMatch()
    assert capsys.readouterr().out == "the checkpoint: 'dog' is taken for the class 'DOG'\n"
    assert match(["dog", "cat"], continues=True) == RowMatch(names=["BG", "dog", "cat"], ids=[0, 12, 11])
    assert "the training's classes keep their order: 'dog', 'cat'" in capsys.readouterr().out


def test_what_the_config_leaves_open_comes_from_the_checkpoint():
    assert match(["cat", "dog"], ids=[0, 3, 4], takes=BOTH) == RowMatch(ids=[0, 3, 4])
    for own in (["class 1", "class 2"], ["hen", "ox"]):  # the latter came from an earlier checkpoint
        assert match(["dog", "cat"], own, [0, 3, 4], BOTH) == RowMatch(names=["BG", "dog", "cat"], ids=[0, 3, 4])
    assert match(["dog", "cat"], ids=[0, 3, 4], takes={"CATEGORY_IDS"}, continues=True).ids == [0, 3, 4]
    assert match(["a", "b", "c"], ["class 1", "class 2"], [0, 3, 4, 5], BOTH) == RowMatch(), "shapes do not fit"


def test_rows_of_other_classes():
    assert match(["cat", "hen"], takes_part=True) == RowMatch(fits=False)
    assert match(["cat", "hen", "dog"], takes_part=True) == match(["cat", "hen", "dog"]) == RowMatch(), "shapes differ"
    with pytest.raises(ValueError, match=r"\(added: 'dog'; removed: 'hen'\); with by_name=True .*copy_classes=True"):
        match(["cat", "hen"])
    for names in (["cat", "hen"], ["cat", "dog", "hen"]):
        with pytest.raises(ValueError, match=r"cannot continue with other classes.*removed: 'hen'\).*--model FILE"):
            match(names, continues=True)
    with pytest.raises(ValueError, match=r"\(added: 'dog'\)"):
        match(["cat"], continues=True)

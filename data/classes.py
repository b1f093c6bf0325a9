"""Which class of a data set is which class of a model. Names decide; order and category ids may differ.

    class ids of a data set ─ ClassMapping ─ rows of a model

A row is the place of a class in a model's weights and in its class_names. Row 0 and class id 0 are the background.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import utils

UNKNOWN = -1  # the row of a class that the model does not have


class Classes(NamedTuple):
    """The classes of a data set or of a model, background first."""

    names: list[str]
    ids: list[int] | None = None  # category ids, 0 for the background; None if there are none

    @classmethod
    def of(cls, owner: Any) -> "Classes":
        """The classes of a prepared Dataset, or of a model with class_names and category_ids.

        A detector without class_names has those that unnamed() makes. A data set of several sources whose category ids
        overlap has no ids.
        """
        if hasattr(owner, "config"):
            names = getattr(owner, "class_names", None) or unnamed(owner.config.NUM_CLASSES)
        else:
            names = owner.class_names  # a Dataset says if it is not prepared
        try:
            ids = getattr(owner, "category_ids", None)
        except ValueError:
            ids = None
        return cls(list(names), None if ids is None else list(map(int, ids)))


class ClassMapping(NamedTuple):
    """The row of each class of a data set."""

    rows: np.ndarray  # int64 [classes of the data set]; UNKNOWN where the model does not have the class
    unknown: list[str]  # the classes that the model does not have, each with what a message should say of it
    notes: list[str]  # decisions that a user should see
    title: str = "the data set"  # what messages call the data set

    @property
    def is_identity(self) -> bool:
        """Whether each class id is its row."""
        return bool((self.rows == np.arange(len(self.rows))).all())

    def sentences(self, consequence: str = "objects of these classes are ignored, as crowds are") -> list[str]:
        """What a user should see. consequence: what becomes of unknown classes."""
        unknown = [f"the model does not know {utils.listed(self.unknown, 10)}; {consequence}"] if self.unknown else []
        return [f"{self.title}: {sentence}" for sentence in (*self.notes, *unknown)]

    def rows_of(self, class_ids: np.ndarray) -> np.ndarray:
        """int32 [N]: the rows of class ids [N] of the data set, negative for a crowd.

        An object of an unknown class becomes a crowd: it counts neither as an object nor as background.
        """
        rows = self.rows[np.abs(class_ids)]
        return np.where(rows == UNKNOWN, -1, np.sign(class_ids) * rows).astype(np.int32)

    def labelled_rows(self, labelled: Sequence[int], count: int) -> np.ndarray:
        """bool [count]: the rows of a model that are labelled in an image, the background included.

        labelled: class ids, of Dataset.labelled_class_ids. count: rows of the model. A row of no class of the data set
        counts as labelled: it has no object in any image.
        """
        is_labelled = np.ones(count, bool)
        others = np.setdiff1d(np.arange(1, len(self.rows)), labelled)
        rows = self.rows[others]
        is_labelled[rows[rows != UNKNOWN]] = False
        return is_labelled

    def numbers_of_rows(self, numbers: Sequence[int], own: Sequence[int]) -> list[int]:
        """The category id of each row.

        numbers: of each class of the data set. own: of each row; they count for rows that the data set does not have.
            Where the data set uses such a number for another class, the row gets one that nobody uses.
        """
        class_of = {row: class_id for class_id, row in enumerate(self.rows.tolist()) if row > 0}
        used, unused = set(numbers[1:]), max([0, *numbers, *own]) + 1
        result = [0]
        for row in range(1, len(own)):
            if row in class_of:
                number = int(numbers[class_of[row]])
            elif own[row] in used:
                number, unused = unused, unused + 1
            else:
                number = int(own[row])
            used.add(number)
            result.append(number)
        return result


def unnamed(count: int) -> list[str]:
    """Names for so many classes that have none."""
    return ["BG", *(f"class {i}" for i in range(1, count))]


def map_classes(dataset: Classes, model: Classes) -> ClassMapping:
    """Finds the row of each class of a data set by its name.

    Names that differ only in case, spaces, hyphens and underscores are taken for the same, with a note. Category ids
    tell classes of the same name apart. Where they do not, such classes are unknown. A model that has no names gets
    those of the data set: by category ids if it has ids of its own, else in order if both have as many classes.
    """
    if dataset.names[1:] == model.names[1:]:
        return ClassMapping(np.arange(len(dataset.names)), [], [])
    rows, notes = np.full(len(dataset.names), UNKNOWN), []
    rows[0] = 0
    ambiguous = _match_equal_names(dataset, model, rows)
    if not (rows > 0).any() and model.names[1:] == unnamed(len(model.names))[1:]:
        notes += _match_numbers(dataset, model, rows)
    else:
        notes += _match_similar_names(dataset, model, rows, ambiguous)
    unknown = [_describe(i, dataset, model, i in ambiguous) for i in np.flatnonzero(rows == UNKNOWN).tolist()]
    return ClassMapping(rows, unknown, notes)


def _match_equal_names(dataset: Classes, model: Classes, rows: np.ndarray) -> set[int]:
    """Fills rows. Returns: the classes of the data set for which several rows remain."""
    ambiguous = set()
    places_of, counts = _places(model.names, range(1, len(model.names))), Counter(dataset.names[1:])
    for i, name in enumerate(dataset.names[1:], start=1):
        places = places_of[name]
        if len(places) > 1 or (places and counts[name] > 1):
            has_ids = dataset.ids is not None and model.ids is not None
            places = [row for row in places if has_ids and model.ids[row] == dataset.ids[i]]
            ambiguous |= set() if len(places) == 1 else {i}
        if len(places) == 1:
            rows[i] = places[0]
    return ambiguous


def _match_similar_names(dataset: Classes, model: Classes, rows: np.ndarray, ambiguous: set[int]) -> list[str]:
    """Fills rows that are unknown still. Returns: a note for each."""
    taken, notes = set(rows.tolist()), []
    free_rows = [row for row in range(1, len(model.names)) if row not in taken]
    free_classes = [i for i in np.flatnonzero(rows == UNKNOWN).tolist() if i not in ambiguous]
    places_of = _places(list(map(_plain, model.names)), free_rows)
    for plain_name, classes in _places(list(map(_plain, dataset.names)), free_classes).items():
        places = places_of[plain_name]
        if len(places) == len(classes) == 1:
            rows[classes[0]] = places[0]
            names = dataset.names[classes[0]], model.names[places[0]]
            notes.append("{} is taken for the class {}".format(*map(_quoted, names)))
    return notes


def _match_numbers(dataset: Classes, model: Classes, rows: np.ndarray) -> list[str]:
    """Fills rows for a model without names. Returns: a note."""
    count = len(model.names)
    if dataset.ids is not None and model.ids is not None and model.ids != list(range(count)):
        for i, number in enumerate(dataset.ids[1:], start=1):
            if number in model.ids[1:]:
                rows[i] = 1 + model.ids[1:].index(number)
        return ["the model's classes have no names; they are those of the data set with the same category id"]
    if len(dataset.names) == count:
        rows[:] = np.arange(count)
        names = utils.listed([f"{row} is {_quoted(name)}" for row, name in enumerate(dataset.names) if row], 5)
        return [f"the model's classes have no names; they are taken for the data set's in order: {names}"]
    return []


def _places(names: Sequence[str], places: Iterable[int]) -> dict[str, list[int]]:
    """The places of each name, among these places."""
    places_of: dict[str, list[int]] = defaultdict(list)
    for place in places:
        places_of[names[place]].append(place)
    return places_of


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if not letter.isspace() and letter not in "-_")


def _quoted(name: str) -> str:
    return f"'{utils.printable(name, 60)}'"


def _describe(i: int, dataset: Classes, model: Classes, is_ambiguous: bool) -> str:
    """A class that the model does not have, in words."""
    text = _quoted(dataset.names[i])
    if is_ambiguous:
        return f"{text} (several classes have this name)"
    if dataset.ids is not None and model.ids is not None and dataset.ids[i] in model.ids[1:]:
        row = 1 + model.ids[1:].index(dataset.ids[i])
        text += f" (its id {dataset.ids[i]} is {_quoted(model.names[row])} in the model)"
    return text


class RowMatch(NamedTuple):
    """How the rows of a checkpoint and of a model go together."""

    fits: bool = True  # the rows are those of the model's classes, or their classes have no names
    moves: bool = False  # they have to change places
    names: list[str] | None = None  # the model takes these names from the checkpoint
    ids: list[int] | None = None  # and these category ids


def match_rows(
    model: Classes, checkpoint: Mapping[str, Any], takes: Collection[str], continues: bool, takes_part: bool
) -> RowMatch:
    """Compares the classes of a checkpoint with a model's, before its weights are loaded. Decisions are printed.

    takes: CLASS_NAMES and CATEGORY_IDS, as far as the model may take them from a checkpoint.
    continues: a training continues, whose optimiser knows the rows by their places.
    takes_part: tensors that do not fit may be left out.

    Raises: ValueError for a training of other classes; for as many other classes, unless takes_part.
    """
    names, ids = list(checkpoint["class_names"] or ()), checkpoint["category_ids"]
    count = len(model.names)
    stored = Classes(names, None if ids is None else list(map(int, ids)))
    if names[1:] == unnamed(len(names))[1:]:
        return RowMatch()
    taken_ids = stored.ids if "CATEGORY_IDS" in takes and len(names) == count else None
    if names == model.names:
        return RowMatch(ids=taken_ids)
    if "CLASS_NAMES" in takes and len(names) == count:
        return RowMatch(names=names, ids=taken_ids)
    mapping = map_classes(model, stored)
    if not mapping.unknown and len(names) == count:
        for note in mapping.notes:
            print(f"the checkpoint: {note}")
        if not continues:
            return RowMatch(moves=not mapping.is_identity)
        print(f"the training's classes keep their order: {_listed(names)}")
        ids = taken_ids or mapping.numbers_of_rows(model.ids, stored.ids or [0] * count)
        return RowMatch(names=names, ids=ids)
    if continues or (len(names) == count and not takes_part):
        _refuse_rows(model.names, names, continues)
    return RowMatch(fits=len(names) != count)


def _refuse_rows(wanted: Sequence[str], stored: Sequence[str], continues: bool) -> None:
    """Raises ValueError for a checkpoint of other classes than those that are wanted."""
    added, removed = (
        [_quoted(name) for name in one[1:] if name not in other] for one, other in ((wanted, stored), (stored, wanted))
    )
    difference = "; ".join(
        f"{title} {utils.listed(names, 5)}" for title, names in (("added:", added), ("removed:", removed)) if names
    )
    if continues:
        raise ValueError(
            f"a training cannot continue with other classes than it began with ({difference}). Begin a new one from "
            "its checkpoint: --model FILE instead of --model last, or in Python load_weights(file, copy_classes=True). "
            "It keeps the rows of classes of the same names"
        )
    raise ValueError(
        f"the checkpoint has other classes than the model ({difference}); with by_name=True their rows start anew, and "
        "copy_classes=True keeps those of the same names"
    )


def map_to_model(dataset: Any, model: Any, title: str = "the data set", needs_all: bool = False) -> ClassMapping:
    """map_classes of a Dataset and a model, checked.

    title: what messages call the data set. needs_all: whether the model must have all of its classes.

    Raises: ValueError if the model has none of the classes, or with needs_all, lacks one.
    """
    of_dataset, of_model = Classes.of(dataset), Classes.of(model)
    mapping = map_classes(of_dataset, of_model)._replace(title=title)
    is_known = mapping.rows > 0
    if len(is_known) > 1 and not is_known.any():
        if of_model.names == unnamed(len(of_model.names)):
            raise ValueError(
                f"{title} has {len(is_known)} classes, background included, and NUM_CLASSES of the model is "
                f"{len(of_model.names)}; they are {_listed(of_dataset.names)}"
            )
        raise ValueError(
            f"the model knows none of the classes of {title}: the model has {_listed(of_model.names)}, and {title} has "
            f"{_listed(of_dataset.names)}; was the model trained on another data set?"
        )
    if mapping.unknown and needs_all:
        raise ValueError(
            f"{title} has classes that the model does not know: {utils.listed(mapping.unknown, 5)}; the model's are "
            f"{_listed(of_model.names)}. Make a model with a config that has the data set's CLASS_NAMES, or none; "
            "load_weights(file, copy_classes=True) then keeps what a checkpoint knows of classes of the same names"
        )
    return mapping


def _listed(names: Sequence[str]) -> str:
    return utils.listed(map(_quoted, names[1:]), 8) or "none"

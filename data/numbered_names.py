"""Tells classes from numbers of objects in names of masks and ROIs: cell1, cell2, cell3 are one class, CD4 and CD8 two.

A number behind a sign, as in CD4-0001, counts objects. Digits right behind letters are a count or a part of the class:
what all names of a data set say together decides, and is told.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import utils
from data.records import REMARK, WARNING, Fault, Findings, Object

_HASH = re.compile(r"[0-9a-f]{16,}|[0-9a-f-]{32,}", re.IGNORECASE)  # the UUIDs that roifile gives are such, too
_NO_CLASS = ("", "mask", "masks", "object", "obj", "instance", "label", "roi")
_COUNT = re.compile(r"[\s._-]+\d+$")
_DIGITS = re.compile(r"(.*[^\d\s._-])[\s._-]*(\d+)", re.DOTALL)
_FEW = 8  # classes that differ by their digits alone; more such names that are used about once are numbers

_NUMBERS = Fault(
    REMARK, "groups of names differ by the digits at their end, which count objects", "each group taken as one class",
    "if they are classes, put a number behind each name: G1_1",
)  # fmt: skip
_CLASSES = Fault(
    REMARK, "groups of names differ by the digits at their end, which do not count objects",
    "each name taken as a class", "--rename OLD=NEW joins them",
)  # fmt: skip
_UNCLEAR = Fault(
    WARNING, "groups of names differ by digits alone, which may count objects or be of their classes",
    "each group taken as one class", "if they are classes, put a number behind each name: G1_1",
)  # fmt: skip


class _Name(NamedTuple):
    """A name in parts: CD4-0001 is the text CD4, of the word CD and the number 4, and is counted."""

    text: str  # without the number behind a sign
    word: str  # without digits at its end
    number: int | None  # these digits
    is_counted: bool  # whether there was a number behind a sign


def settle_classes(pictures: Sequence[Sequence[Object]], findings: Findings) -> None:
    """Turns the names of objects into their classes: without the numbers that count objects, empty for a hash.

    pictures: the objects of each picture, with the names of their masks or ROIs. findings: gets what was guessed.
    """
    names = [[_parts(parsed.name) for parsed in objects] for objects in pictures]
    groups: dict[str, dict[int, list[_Name]]] = defaultdict(lambda: defaultdict(list))  # {word: {picture: names}}
    for place, found in enumerate(names):
        for name in found:
            groups[name.word][place].append(name)
    counts = [_counted([name.number for name in found if name.number is not None]) for found in names]
    is_usual = any(name.is_counted and name.number is not None for found in names for name in found)
    of_class = set()
    for word, group in groups.items():
        texts = {name.text: name.number or 0 for found in group.values() for name in found}
        if not any(name.number is not None for found in group.values() for name in found):
            continue
        fault = _decide(group, counts)
        if fault is _UNCLEAR and is_usual:  # others of the set have a number behind their digits
            fault = _CLASSES
        if fault is _CLASSES:
            of_class.add(word)
        if len(texts) > 1:
            findings.add(fault, utils.printable(utils.listed(sorted(texts, key=lambda text: (texts[text], text)), 5)))
    for objects, found in zip(pictures, names, strict=True):
        for parsed, name in zip(objects, found, strict=True):
            parsed.name = name.text if name.word in of_class else name.word


def is_hash(name: str) -> bool:
    """Whether a name is a hash or a UUID, which says no class."""
    return _HASH.fullmatch(name) is not None


def _parts(name: str) -> _Name:
    if is_hash(name):
        return _Name("", "", None, False)
    name = re.sub(r"^[\d\s._-]+|[\s._-]+$", "", name)
    text = _COUNT.sub("", name)
    found = _DIGITS.fullmatch(text)
    word = found[1] if found else text
    if word.lower() in _NO_CLASS:
        return _Name("", "", None, False)
    return _Name(text, word, int(found[2][-9:]) if found else None, text != name)


def _decide(group: dict[int, list[_Name]], counts: Sequence[int]) -> Fault:
    """What the digits at the end of the names of one word are.

    group: {picture: its names of the word}. counts: how many objects the numbers of all words of each picture count.
    """
    found = [name for names in group.values() for name in names]
    distinct = len({name.text for name in found})
    most_in_picture = max(Counter(name.text for name in names).most_common(1)[0][1] for names in group.values())
    if distinct > _FEW and 2 * distinct > len(found):
        return _NUMBERS
    if most_in_picture > 1 or any(name.is_counted and name.number is not None for name in found):
        return _CLASSES
    if distinct == 1:
        return _NUMBERS if found[0].number in (0, 1) else _CLASSES
    of_pictures = {place: _counted([name.number for name in names]) for place, names in group.items()}
    is_count = _counted([name.number for name in found]) or all(of_pictures[place] or counts[place] for place in group)
    if is_count and max(distinct, *(counts[place] for place in group), 0) > 2:
        return _NUMBERS
    comes_again = len(found) > distinct
    return _CLASSES if comes_again and distinct <= _FEW and not all(of_pictures.values()) else _UNCLEAR


def _counted(numbers: Sequence[int | None]) -> int:
    """How many objects numbers count that are 0, 1, 2 ... or 1, 2, 3 ... without gaps; else 0. None is the first."""
    ordered = sorted(1 if number is None else number for number in numbers)
    return len(ordered) if any(ordered == list(range(start, start + len(ordered))) for start in (0, 1)) else 0

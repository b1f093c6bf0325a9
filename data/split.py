"""Which pictures train a model, and which validate it.

Splits that the data set has are kept. Where it has none, a fifth of the pictures validates. Pictures that belong
together (copies, augmented versions, tiles of one picture, pictures that look alike) go to the same side, because a
model that has seen one of them has seen the others.

The file split.json holds the decision, so that training and evaluation agree, and a training that goes on does not
decide anew.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import runtime
import utils
from data.check import Report
from data.object_checks import class_name, picture_name
from data.recognise import Records
from data.records import Picture

VAL_SHARE = 0.2
FILE_NAME = "split.json"
FORMAT, VERSION = "mask-scoring-rcnn split", 1

LEAST_PICTURES, LEAST_OBJECTS = 5, 20  # on each side, where there are as many
LEAST_GROUPS = 4  # of pictures that belong together; of fewer, all must be learned
MANY_FOLDERS = 10  # folders of pictures from which on each is taken as one source: a patient, a plate, a video
MAX_FILE = 64 << 20  # bytes of split.json

# What tools append to the name of a picture that they cut up or augmented.
_PART_OF = re.compile(
    r"(\.rf\.[0-9a-z]+|[_-]aug(mented)?[_-]?\d*|[_-](flip|rot|bright|dark|blur|noise)\w*|[_-]x\d+[_-]y\d+"
    r"|[_-]y\d+[_-]x\d+|[_-]r\d+[_-]c\d+|[_-](tile|patch|crop)[_-]?\d+([_-]\d+)?)$",
    re.IGNORECASE,
)


@dataclasses.dataclass
class Split:
    """The pictures of a training, by name (object_checks.picture_name)."""

    train: list[str]
    val: list[str]
    left_out: dict[str, str]  # and why
    notes: list[str]  # what was decided, in sentences

    def to_json(self) -> dict[str, Any]:
        """The contents of split.json."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}


def make_split(records: Records, report: Report, share: float | None = None, seed: int = 0) -> Split:
    """Decides which pictures train and which validate.

    Pictures of a split test neither train nor validate, unless there are no others. Those of no split train.

    records: after check, whose report says which pictures look alike. share: of the pictures that validate, where the
        data set has no split val; None: VAL_SHARE; 0: none. With a share, a given split val is joined with train and
        divided anew. seed: another seed chooses other pictures.

    Raises: ValueError if no picture is left to train on.
    """
    names = [picture_name(records, picture) for picture in records.pictures]
    labelled = [i for i, picture in enumerate(records.pictures) if picture.is_labelled]
    by_split = {name: [i for i in labelled if records.pictures[i].split == name] for name in ("val", "test")}
    to_learn = [i for i in labelled if records.pictures[i].split not in by_split]  # those that no split claims, too
    if to_learn and by_split["val"] and share is None:
        split = _as_given(records, report, names, labelled)
    else:
        pool, tests, lacking = sorted(to_learn + by_split["val"]), by_split["test"], []
        if not pool:
            pool, tests = tests, []
            lacking = ["the data set has pictures of test alone: they are divided"] if pool else []
        elif not to_learn:
            lacking = ["the data set has no pictures of train: those of val are divided"]
        split = _divided(records, report, names, pool, VAL_SHARE if share is None else share, seed)
        split.notes[:0] = lacking
        split.left_out |= {names[i]: "of the split test" for i in tests}
    if not split.train:
        raise ValueError(f"--dataset {records.root}: no picture is left to train on; lower --val-share")
    return split


def _as_given(records: Records, report: Report, names: list[str], labelled: list[int]) -> Split:
    """The data set's own splits. A picture of val that shows the same as one of train does not validate."""
    sides: dict[str, list[int]] = defaultdict(list)
    for i in labelled:
        sides[records.pictures[i].split or "train"].append(i)
    twins: dict[int, int] = {}
    for i, j in report.alike:
        for one, other in ((i, j), (j, i)):
            if records.pictures[one].split == "val" and records.pictures[other].split in ("train", None):
                twins.setdefault(one, other)
    left_out = {names[i]: f"shows the same as {names[j]} of train" for i, j in twins.items()}
    left_out |= dict.fromkeys((names[i] for i in sides["test"]), "of the split test")
    unclaimed = sum(records.pictures[i].split is None for i in labelled)
    also = f", and {_pictures(unclaimed)} of no split to train" if unclaimed else ""
    notes = [f"train and val are the data set's own{also}"]
    if twins:
        pairs = [f"{names[i]} is {names[j]}" for i, j in sorted(twins.items())]
        notes.append(
            f"{_pictures(len(twins))} of val would make its score too good, and {'do' if len(twins) > 1 else 'does'} "
            f"not validate, because train has the same: {utils.listed(map(utils.printable, pairs), 3)}"
        )
    val = [names[i] for i in sides["val"] if i not in twins]
    return Split([names[i] for i in sides["train"]], val, left_out, notes)


def _divided(records: Records, report: Report, names: list[str], pool: list[int], share: float, seed: int) -> Split:
    """Some groups of pictures for validation, in an order that a hash of their names and the seed makes."""
    objects = [
        Counter(class_name(parsed) for parsed in picture.objects if not parsed.is_crowd) for picture in records.pictures
    ]
    for by_folder in (True, False):  # where each class has a folder of its own, folders cannot stay together
        groups = _groups(names, pool, report.alike, by_folder)
        ranked = sorted(groups, key=lambda group: _rank(f"{seed} {names[group[0]]}"))
        chosen = _choose(ranked, objects, len(pool), share) if share and len(ranked) >= LEAST_GROUPS else []
        if chosen:
            break
    val = {i for group in chosen for i in group}
    notes = []
    if not val:
        few = f"{_pictures(len(pool))} in {len(groups)} groups are too few" if share else "--val-share 0"
        notes.append(f"no picture validates ({few}): there will be no number that says how good the model is")
    else:
        largest = max(map(len, groups))
        together = f"; pictures that belong together stay together (up to {largest})" if largest > 1 else ""
        notes.append(f"{_pictures(len(val))} of {len(pool)} validate, chosen by --seed {seed}{together}")
    missing = [name for name in sum(objects, Counter()) if val and not any(objects[i][name] for i in val)]
    if missing:
        notes.append(f"val has no {utils.listed(map(utils.printable, missing), 5)}: too few pictures show it")
    return Split([names[i] for i in pool if i not in val], [names[i] for i in pool if i in val], {}, notes)


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' * (count != 1)}"


def _choose(ranked: list[list[int]], objects: list[Counter], count: int, share: float) -> list[list[int]]:
    """The groups that validate: enough pictures, objects and classes, and never more than half of the pictures.

    ranked: groups in the order in which they are asked. objects: of each picture, by class. count: of all pictures.
    """
    totals = sum((objects[i] for group in ranked for i in group), Counter())
    pictures = max(round(share * count), min(LEAST_PICTURES, count // 3))
    least_objects = min(LEAST_OBJECTS, sum(totals.values()) // 3)
    groups_of = Counter(name for group in ranked for name in {name for i in group for name in objects[i]})
    wanted = {name for name in totals if groups_of[name] > 1}
    chosen: list[list[int]] = []
    held = Counter()
    size = 0
    for group in ranked:
        found = sum((objects[i] for i in group), Counter())
        is_short = size < pictures or sum(held.values()) < least_objects
        if (not is_short and not (found.keys() & wanted - held.keys())) or size + len(group) > count // 2:
            continue
        if any(groups_of[name] == 1 for name in found):
            continue  # the only group with a class must be learned
        if any(totals[name] == held[name] + found[name] for name in found if name in wanted):
            continue  # nothing of a class would be left to learn
        chosen.append(group)
        held += found
        size += len(group)
    return chosen


def _groups(names: list[str], pool: list[int], alike: list[tuple[int, int]], by_folder: bool) -> list[list[int]]:
    """Pictures that belong together: alike, parts or versions of one, or of one folder where there are many."""
    leader = {i: i for i in pool}

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    pairs = [(i, j) for i, j in alike if i in leader and j in leader]
    folders = Counter(names[i].rpartition("/")[0] for i in pool)
    by_folder = by_folder and len(folders) >= MANY_FOLDERS
    first: dict[str, int] = {}
    for i in pool:
        folder, _, file = names[i].rpartition("/")
        keys = [f"{folder}/{base_stem(file)}"] + [f"{folder}/"] * by_folder
        pairs += [(i, first.setdefault(key, i)) for key in keys]
    for i, j in pairs:
        leader[max(find(i), find(j))] = min(find(i), find(j))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in pool:
        groups[find(i)].append(i)
    return list(groups.values())


def base_stem(file: str) -> str:
    """The name of a picture without its suffix and without what tools append to tiles and augmented copies."""
    stem, shorter = "", os.path.splitext(file)[0]
    while stem != shorter:
        stem, shorter = shorter, _PART_OF.sub("", shorter)
    return stem


############################################################
#  split.json
############################################################


def write_split(split: Split, path: Path) -> None:
    """Writes split.json, completely or not at all."""
    text = json.dumps(split.to_json(), indent=1)
    runtime.write_atomically(path, lambda file: file.write(text.encode()))


def read_split(path: Path) -> Split:
    """Reads split.json. Raises: FileNotFoundError; ValueError if it is damaged or something else."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError("it is too large")
        contents = json.loads(path.read_bytes())
        if contents["format"] != FORMAT or contents["version"] != VERSION:
            raise ValueError("its format or version is another")
        lists = {name: contents[name] for name in ("train", "val", "notes")}
        left_out = dict(contents["left_out"])
        texts = [*left_out, *left_out.values(), *(text for values in lists.values() for text in values)]
        if not all(isinstance(values, list) for values in lists.values()) or not all(isinstance(t, str) for t in texts):
            raise ValueError("train, val and notes must be lists of texts")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        problem = utils.printable(error, 300)
        raise ValueError(f"{path} is no {FILE_NAME} of this project ({problem}); delete it to divide anew") from None
    return Split(lists["train"], lists["val"], left_out, lists["notes"])


def apply_split(records: Records, split: Split) -> list[str]:
    """Sets the split of every picture of records, and takes out those that are left out.

    Pictures that the split does not know train. Returns: notes on pictures that came or went since it was made.
    """
    side = {**dict.fromkeys(split.train, "train"), **dict.fromkeys(split.val, "val")}
    kept: list[Picture] = []
    new = []
    for picture in records.pictures:
        name = picture_name(records, picture)
        if name in split.left_out:
            continue
        if picture.is_labelled and name not in side:
            new.append(name)
        picture.split = side.get(name, "train")
        kept.append(picture)
    gone = side.keys() - {picture_name(records, picture) for picture in kept}
    records.pictures[:] = kept
    notes = []
    if new:
        notes.append(f"{_pictures(len(new))} came since {FILE_NAME} was made, to train: {_names(new)}")
    if gone:
        notes.append(f"{_pictures(len(gone))} of {FILE_NAME} {'are' if len(gone) > 1 else 'is'} gone: {_names(gone)}")
    return notes


def _names(names: Any) -> str:
    return utils.listed([utils.printable(name) for name in sorted(names)], 3)

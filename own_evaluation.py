"""An evaluation on a person's own data: which model, which pictures, what to store. It is custom.py evaluate.

The model is the one that `custom.py train` made of the same data set, unless --model names another. The pictures are
those that it was not trained on: the split val of split.json where the training wrote one, else the data set's own.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

import cli
import runtime
import utils
from data.check import Report
from data.object_checks import NO_NAME, picture_name
from data.recognise import Records
from data.record_dataset import RecordDataset
from data.records import ERROR, WARNING
from data.split import FILE_NAME, Split, apply_split, read_split
from evaluation.detect import digest_of, identify
from evaluation.large import TileOptions
from evaluation.own import OwnEvaluation, evaluate_own, store_settings
from evaluation.run import count_weak_detections
from evaluation.tiled import TiledDetector, in_tiles
from model import MaskRCNN
from own_training import MODEL_NAME, OwnConfig, training_folder
from weights.checkpoint import read_checkpoint
from weights.published import EMBEDDED, find_published

SUBSETS = ("val", "test", "train", "all")
LEAST_SHARED = 0.5  # of the pictures of split.json that a data set must have to be the one that was divided


############################################################
#  Which model
############################################################


def find_model(name: str | None, dataset: str | Path) -> str | Path:
    """The checkpoint that --model names: "last" is model.pth of the data set's training, else its newest checkpoint.

    Raises: FileNotFoundError if there is no training; ValueError as cli.find_checkpoint.
    """
    if name not in (None, "last"):
        return cli.find_checkpoint(name)
    folder = training_folder(dataset)
    if (folder / MODEL_NAME).is_file():
        return folder / MODEL_NAME
    try:
        return cli.find_checkpoint("last", folder / "logs", OwnConfig.NAME)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is neither {folder / MODEL_NAME} nor a checkpoint in {folder / 'logs'}: name the model with "
            f"--model FILE, or train one with custom.py train --dataset {dataset}"
        ) from None


def split_file(model: str | Path) -> Path | None:
    """split.json of the training that a checkpoint comes from, if it lies where the training wrote it."""
    folder = Path(model).resolve().parent
    candidates = (folder / FILE_NAME, folder.parent.parent / FILE_NAME)  # the latter of FOLDER/logs/own2026.../
    return next((path for path in candidates if path.is_file()), None)


def open_detector(arguments: argparse.Namespace, checkpoint: str | Path, device: torch.device) -> MaskRCNN:
    """The model as it sees whole pictures, with its weak detections, which average precision needs.

    arguments: model, set, and those of cli.add_checkpoint_options. Raises: as cli.open_model.
    """
    arguments = argparse.Namespace(**{**vars(arguments), "model": str(checkpoint)})
    given = cli.settings_of(arguments)
    model = cli.open_model(
        arguments, "last", OwnConfig, device, adapt=lambda config: config.detection_settings(**given)
    )
    if "DETECTION_MIN_CONFIDENCE" not in given:
        count_weak_detections(model.config)
    return model


############################################################
#  Which pictures
############################################################


@dataclasses.dataclass
class Subset:
    """The pictures to evaluate."""

    dataset: RecordDataset
    name: str  # one of SUBSETS
    notes: list[str]  # how they were chosen
    leaks: list[tuple[str, str]]  # pictures that look alike, of which one is evaluated and the other of another split

    @property
    def split(self) -> str | None:
        """As evaluate_own takes it."""
        return None if self.name == "all" else self.name


def choose_pictures(records: Records, report: Report, wanted: str | None, path: Path | None = None) -> Subset:
    """The pictures of a split.

    records: after check, whose report this is; their splits are set as split.json says.
    wanted: one of SUBSETS; None: val, else test, else all. path: of split.json; None: the data set's own splits.

    Raises: ValueError if the data set does not have the split, or no labelled picture.
    """
    alike = [(records.pictures[i], records.pictures[j]) for i, j in report.alike]
    notes = []
    if path is not None and wanted != "all":
        split = read_split(path)
        names = {picture_name(records, picture) for picture in records.pictures}
        divided = {*split.train, *split.val}
        if len(divided & names) < LEAST_SHARED * len(divided):
            notes.append(f"{path} divides another data set: the splits of this one count")
        elif wanted == "test":
            notes += _leave_out(records, split, path)
        elif split.val or wanted == "train":
            notes += [f"train and val are those of {path}", *apply_split(records, split)]
    splits = {picture.split for picture in records.pictures if picture.is_labelled}
    name = wanted or next((name for name in ("val", "test") if name in splits), "all")
    if name != "all" and name not in splits:
        others = utils.listed([f"--subset {split}" for split in SUBSETS if split in splits or split == "all"])
        raise ValueError(f"--subset {name}: --dataset {records.root} has no such pictures; it has {others}")
    if wanted is None:
        missing = "no pictures of val" + (" and none of test" if name == "all" else "")
        notes.append("evaluates val" if name == "val" else f"evaluates {name}: the data set has {missing}")
    dataset = RecordDataset(records, None if name == "all" else name, report.table.class_names)
    if dataset.num_classes < 2:
        raise ValueError(f"--dataset {records.root} has no object that can be used, so that nothing can be evaluated")
    kept = {id(picture) for picture in records.pictures}
    leaks = [
        (picture_name(records, first), picture_name(records, second)) for first, second in alike
        if first.split != second.split and name in (first.split, second.split) and {id(first), id(second)} <= kept
    ]  # fmt: skip
    return Subset(dataset, name, notes, leaks)


def _leave_out(records: Records, split: Split, path: Path) -> list[str]:
    """Takes out the pictures of test that a training has used all the same. Returns: a note on them.

    split: what trained and what validated, by the file at path. Raises: ValueError if no other is left.
    """
    divided = {*split.train, *split.val}
    tests = [picture for picture in records.pictures if picture.split == "test" and picture.is_labelled]
    used = {id(picture) for picture in tests if picture_name(records, picture) in divided}
    if not used:
        return []
    count = f"{len(used):,} of the {len(tests):,} pictures of test"
    if len(used) == len(tests):
        raise ValueError(
            f"--subset test: the training used {count} ({path}), so they say nothing about new pictures; "
            + ("--subset val has those that it did not learn from" if split.val else "label others for that")
        )
    records.pictures[:] = [picture for picture in records.pictures if id(picture) not in used]
    return [f"{count} are left out: the training used them ({path})"]


def name_objects(records: Records, report: Report, model: MaskRCNN) -> str | None:
    """Lets objects of which no label says the class be of the model's class, if it knows one only.

    Returns: a sentence on it; None if there is nothing to say.
    """
    objects = [parsed for picture in records.pictures for parsed in picture.objects]
    if len(model.class_names) != 2 or not objects or any(parsed.name for parsed in objects):
        return None
    name = str(model.class_names[1])
    for parsed in objects:
        parsed.name = name
    report.table = report.table._replace(class_names=[name])
    if name == NO_NAME:
        return None
    return f"the labels say no class: all objects count as {utils.printable(name)}, the only class of the model"


def fault_sentence(report: Report, folder: Path) -> str:
    """What is wrong with the data, in a line; nothing if all is well. folder: of check.html."""
    counts = {
        severity: sum(max(len(places), 1) for _, places in report.faults[severity]) for severity in (ERROR, WARNING)
    }
    words = [f"{count:,} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
    return f"{' and '.join(words)} in the data: {folder / 'check.html'} lists all" if words else ""


############################################################
#  The evaluation
############################################################


@dataclasses.dataclass
class Evaluating:
    """An evaluation before it begins."""

    arguments: argparse.Namespace
    checkpoint: str | Path
    model: MaskRCNN | TiledDetector
    subset: Subset

    def __post_init__(self) -> None:
        limit = self.arguments.limit
        self.image_ids = [int(image_id) for image_id in self.subset.dataset.image_ids[: limit or None]]
        self.dtype = self.arguments.dtype or "float32"
        options = TileOptions(self.arguments.tiles, self.arguments.overlap, self.arguments.scale)
        self.model = in_tiles(self.model, self.subset.dataset, self.image_ids, options, verbose=True)
        self.identity = identify(self.model, self.subset.dataset, self.image_ids, self.dtype)

    @property
    def folder(self) -> Path:
        """The folder of the results: the same for the same evaluation, and for no other."""
        name = f"evaluation-{self.subset.name}-{digest_of(self.identity)}"
        return self.arguments.output or training_folder(self.arguments.dataset) / name

    def notes(self) -> list[str]:
        """What a reader should know before the evaluation begins, in sentences."""
        notes = [f"weights: {utils.printable(self.model.source)}", *self.subset.notes]
        dataset, most = self.subset.dataset, self.model.config.DETECTION_MAX_INSTANCES
        boxes = dataset.object_boxes()
        counts = np.bincount(boxes.image_ids[boxes.class_ids > 0], minlength=dataset.num_images)[self.image_ids]
        tiled = self.model.shapes if isinstance(self.model, TiledDetector) else {}
        counts[[image_id in tiled for image_id in self.image_ids]] = 0  # each tile may have as many as the model finds
        if counts.max() > most:
            notes.append(
                f"a picture has {counts.max():,} objects, and the model finds at most {most:,}: "
                f"--set DETECTION_MAX_INSTANCES={int(1.5 * counts.max())} lets it find more"
            )
        return notes

    def run(self, facts: Mapping[str, str]) -> OwnEvaluation | None:
        """Evaluates and, with --store, writes the threshold and the calibration. Returns: as evaluate_own."""
        arguments, config = self.arguments, self.model.config
        fit = arguments.store is not None or config.SCORE_THRESHOLD is None
        split = "" if self.subset.split is None else f"{self.subset.name} in "
        result = evaluate_own(
            self.model, self.subset.dataset, self.folder, self.subset.split, fit, self.image_ids, arguments.max_dets,
            self.dtype, facts={"data": f"{split}{arguments.dataset}", **facts}, leaks=self.subset.leaks,
            model_name=str(self.checkpoint), identity=self.identity,
        )  # fmt: skip
        if result is not None:
            print(f"\n{self._stored(result)}")
        return result

    def _stored(self, result: OwnEvaluation) -> str:
        """Stores what --store asks for. Returns: a sentence on it."""
        settings, store = result.settings, self.arguments.store
        words = ", ".join(
            text for name, text in {
                "SCORE_THRESHOLD": f"the threshold {result.threshold:.3f}", "BOXES_OF_MASKS": "the choice of boxes",
                "ACCEPT_CALIBRATION": "the calibration",
            }.items() if name in settings
        )  # fmt: skip
        words = " and ".join(words.rsplit(", ", 1))
        if store is None or not settings:
            can_store = settings and storing_problem(self.subset.name, self.checkpoint, "") is None
            hint = f"; --store writes {words} into {self.checkpoint}" if can_store else ""
            nothing = "nothing to store; " if store is not None else ""
            return f"{nothing}the report is {result.report}{hint}"
        path = store_settings(self.checkpoint, settings, store or None, **cli.checkpoint_options(self.arguments))
        return f"the report is {result.report}\n{words} are stored in {path}".replace(
            "are stored", "is stored" if len(settings) == 1 else "are stored"
        )


def storing_problem(subset: str, checkpoint: str | Path, target: str) -> str | None:
    """Why --store cannot be done, None if it can. target: the file that it names; empty: the checkpoint itself."""
    if subset in ("train", "test"):
        why = "the model has learned from them" if subset == "train" else "they would be no test any more"
        return f"--store with the pictures of {subset}: {why}; --subset val has those to choose a threshold with"
    is_name = not Path(checkpoint).is_file() and (str(checkpoint) in EMBEDDED or find_published(checkpoint))
    if not target and is_name:
        return (
            f"--store: {checkpoint} is a model of this project, which is not changed; name a file: --store my_model.pth"
        )
    return None


def open_evaluation(
    arguments: argparse.Namespace, records: Records, report: Report, device: torch.device
) -> Evaluating:
    """Everything that an evaluation needs, checked. arguments: of custom.py evaluate. records, report: of check.

    Raises: ValueError or FileNotFoundError for a model, a split or a file to store into that cannot be used.
    """
    checkpoint = find_model(arguments.model, arguments.dataset)
    model = open_detector(arguments, checkpoint, device)
    note = name_objects(records, report, model)
    subset = choose_pictures(records, report, arguments.subset, split_file(checkpoint))
    subset.notes += [note] if note else []
    if arguments.store is not None:
        if problem := storing_problem(subset.name, checkpoint, arguments.store):
            raise ValueError(problem)
        if not arguments.store:
            read_checkpoint(checkpoint)  # of another project, or no file: raises before the work
        elif not Path(arguments.store).resolve().parent.is_dir():
            raise FileNotFoundError(f"--store {arguments.store}: there is no such folder")
    if runtime.rank() == 0:
        print(f"evaluates {checkpoint}")
    return Evaluating(arguments, checkpoint, model, subset)

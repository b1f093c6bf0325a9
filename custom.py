"""Your own data, in whatever format it is.

    python custom.py check   --dataset DIR                   what is in it, and what is wrong with it
    python custom.py train   --dataset DIR                   a model, from a plan that fits to the data
    python custom.py evaluate --dataset DIR                  how good the model is, in sentences, and a report
    python custom.py detect  --dataset FILES|FOLDER|GLOB     finds objects: pictures, tables, labels for tools
    python custom.py convert --dataset DIR --to coco OUT     the same labels in another format
    python custom.py review  --dataset DIR                   labels, most suspicious first
    python custom.py suggest --unlabelled DIR --model FILE   pictures without labels, most doubtful first

The format is recognised by looking; --format names it. Nothing in DIR is changed. Exit codes of all: 0 all is well,
1 there are errors in the data, which were left out and are named, 2 the data cannot be used. docs/own_data.md explains
what is checked.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import dataclasses
import functools
import json
import logging
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cli
import runtime
import utils
from data.check import Report, check, check_orphans, fault_lines
from data.converting import check_place, convert
from data.images import count_channels
from data.object_checks import check_objects
from data.plan import AUGMENTATIONS, Plan, facts_of, make_plan
from data.reading import Options, without_log
from data.recognise import FORMAT_NAMES, Records, open_records
from data.record_dataset import agree_on_channels
from data.records import CENTRES, CONTOUR, ERROR, SEVERITIES
from data.sources import PictureFile, find_pictures
from data.writers.all import WRITERS
from data.writers.common import counted
from evaluation import data_page, label_queue, review_page, suggest
from evaluation.accept import USUAL_THRESHOLD, score_threshold
from evaluation.detect import LISTED
from evaluation.large import TileOptions
from evaluation.own_detect import PictureSet, detect_pictures, detection_settings
from evaluation.own_results import DEFAULT_KINDS, KINDS, summary, write_outputs
from evaluation.own_results import Request as DetectRequest
from model import MaskRCNN
from own_evaluation import (
    SUBSETS,
    choose_pictures,
    fault_sentence,
    find_model,
    name_objects,
    open_evaluation,
    split_file,
)
from own_training import MODEL_NAME, Request, is_first_process, open_job, open_job_together, training_folder
from weights.published import some_names

CHECK_FOLDER, REVIEW_FOLDER, SUGGEST_FOLDER = "output/check", "output/review", "output/suggest"
RESULTS = Path("output")  # of trainings and detections, a folder each
GPU_BATCH = 4  # pictures that a GPU detects in together


############################################################
#  Arguments
############################################################


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.Parser("custom.py", __doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="check | train | evaluate | detect | convert | review | suggest",
        parser_class=lambda prog, description, **options: cli.Parser(prog, description, **options),
    )  # fmt: skip
    checking = _add_command(commands, "check", "say what a data set holds, and what is wrong with it")
    cli.add_output(checking, "check.json and check.html, a page with pictures and their labels", CHECK_FOLDER)
    _add_train(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    _add_detect(commands)
    _add_review(commands)
    _add_suggest(commands)
    return parser


def _add_review(commands: Any) -> None:
    """The command review."""
    parser = _add_command(commands, "review", "rank labels by how likely they are wrong, as a model sees them")
    parser.add_argument(
        "--subset", choices=SUBSETS, default="all",
        help="the labels of this split only, as train divided the data or as they are; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=cli.whole_number(1), default=50, metavar="N", help="places to print and to show; default: 50"
    )
    cli.add_model(parser, f"last, which is output/NAME/{MODEL_NAME} of train, NAME being the name of DIR")
    _add_finding(parser, "review.html, review.json and the labels with their numbers", REVIEW_FOLDER)


def _add_suggest(commands: Any) -> None:
    """The command suggest."""
    words = "rank pictures without labels by what a model doubts in them"
    parser = commands.add_parser("suggest", description=f"{words.capitalize()}.", help=words)
    parser.add_argument(
        "--unlabelled", type=Path, required=True, metavar="DIR", help="folder of pictures; labels in it do not count"
    )
    parser.add_argument(
        "--top", type=cli.whole_number(1), default=20, metavar="N", help="pictures to print and to show; default: 20"
    )
    cli.add_model(parser, "none; name one")
    _add_finding(parser, "suggest.html, suggest.json and the model's proposals to correct", SUGGEST_FOLDER)


def _add_finding(parser: argparse.ArgumentParser, contents: str, folder: str) -> None:
    """The arguments of a command that looks at pictures with a model, and writes a folder."""
    cli.add_checkpoint_options(parser)
    cli.add_output(parser, contents, folder)
    cli.add_device(parser)
    cli.add_set(parser)


def _add_command(commands: Any, name: str, words: str) -> argparse.ArgumentParser:
    """A command with the arguments that say how a data set is read."""
    parser = commands.add_parser(name, description=f"{words.capitalize()}.", help=words)
    parser.add_argument("--dataset", required=True, metavar="DIR", help="folder of the pictures and their labels")
    parser.add_argument(
        "--format", choices=FORMAT_NAMES, metavar="NAME", help=f"{', '.join(FORMAT_NAMES)}; default: recognise it"
    )
    parser.add_argument(
        "--empty", choices=["skip", "label"], default="skip",
        help="pictures without a label: leave them out, or take them as pictures without objects; default: skip",
    )  # fmt: skip
    parser.add_argument(
        "--crowds", choices=["auto", "ignore", "objects"], default="auto",
        help="objects that are marked as crowds: ignored regions, or objects; default: auto, which takes them as "
        "objects where they are many",
    )  # fmt: skip
    parser.add_argument(
        "--class-attribute",
        default="",
        metavar="NAME",
        help="VIA: the attribute that is the class; default: by its name",
    )
    parser.add_argument(
        "--filling", choices=["auto", CENTRES, CONTOUR], default="auto",
        help="polygons: pixels whose centres lie inside, or those of the contour too; default: auto, by whole numbers",
    )  # fmt: skip
    parser.add_argument(
        "--rename", type=_renaming, action="append", default=[], metavar="OLD=NEW",
        help="call a class otherwise; two of one name are one class; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--split-parts", action="store_true", help="masks of foreground alone: each connected part is an object"
    )
    return parser


def _add_convert(commands: Any) -> None:
    parser = _add_command(commands, "convert", "write a data set in another format")
    parser.add_argument("--to", choices=list(WRITERS), required=True, help="the format to write")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the labels, outside of DIR")
    parser.add_argument(
        "--copy-pictures",
        action="store_true",
        help="copy the pictures into OUT, too, so that it is a data set of its own; yolo and voc always do",
    )
    parser.add_argument("--force", action="store_true", help="write into an OUT that holds files, and replace them")


def _renaming(text: str) -> tuple[str, str]:
    """A type for argparse: OLD=NEW, with spaces as they are."""
    old, equals, new = text.partition("=")
    if not equals or not old or not new.strip():
        raise argparse.ArgumentTypeError(f"must be OLD=NEW, two names of classes, not {text!r}")
    return old, new


def _add_train(commands: Any) -> None:
    """The command train, with its arguments."""
    parser = _add_command(commands, "train", "plan a training, train a model, and say how good it is")
    cli.add_output(parser, "the plan, the model and the report; default: output/ and the name of DIR")
    parser.add_argument(
        "--plan", action="store_true", help="print the plan, with the time that it takes on this machine, and stop"
    )
    parser.add_argument(
        "--minutes", type=cli.positive_number, metavar="N", help="plan a training of this time, evaluations included"
    )
    parser.add_argument(
        "--augment", choices=AUGMENTATIONS,
        help="how pictures are varied: microscopy (no upright direction, no change of hue), natural, top (photographs "
        "from above), none; default: by the data",
    )  # fmt: skip
    parser.add_argument(
        "--val-share", type=cli.share, metavar="SHARE",
        help="the share of the pictures that validate; default: the data set's own split val, else 0.2",
    )  # fmt: skip
    cli.add_model(parser, "random weights; last continues, as the same command does", trains=True)
    cli.add_checkpoint_options(parser)
    cli.add_seed(parser)
    cli.add_device(parser)
    cli.add_set(parser)


def _add_evaluate(commands: Any) -> None:
    """The command evaluate, with its arguments."""
    parser = _add_command(commands, "evaluate", "say how good a model is on labelled pictures")
    cli.add_model(parser, f"last, which is output/NAME/{MODEL_NAME} of train, NAME being the name of DIR")
    cli.add_checkpoint_options(parser)
    parser.add_argument(
        "--subset", choices=SUBSETS,
        help="the pictures: those of a split, or all; default: val, as train divided the data or as they are; where "
        "there is none test, else all",
    )  # fmt: skip
    parser.add_argument(
        "--store", nargs="?", const="", metavar="FILE",
        help="write the threshold with the best F1, and the calibration of the chance that a mask is good, into the "
        "model, or into FILE, a copy of it",
    )  # fmt: skip
    parser.add_argument(
        "--max-dets", type=cli.whole_number(1), metavar="N",
        help="how many of a picture's best results of a class count for average precision; default: 100, or "
        "DETECTION_MAX_INSTANCES if that is larger, or all if pictures are detected in tiles",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=cli.whole_number(0), default=0, metavar="N", help="the first N pictures only; default: all"
    )
    cli.add_tiles(parser)
    cli.add_output(parser, "results and report, one evaluation each; default: a folder of its own in output/NAME")
    cli.add_device(parser)
    cli.add_dtype(parser)
    cli.add_set(parser)


def _add_detect(commands: Any) -> None:
    words = "find objects in pictures: pictures, tables and labels for tools"
    parser = commands.add_parser("detect", description=f"{words.capitalize()}.", help=words)
    parser.add_argument(
        "--dataset", nargs="+", required=True, metavar="FILES|FOLDER|GLOB",
        help="pictures, folders with all folders inside, patterns, or addresses such as s3://bucket/folder",
    )  # fmt: skip
    cli.add_model(parser, f"last, the newest {RESULTS / '*' / 'model.pth'} that custom.py train has written")
    cli.add_checkpoint_options(parser)
    parser.add_argument(
        "--to", type=_kinds, default=list(DEFAULT_KINDS), metavar="KIND,KIND,...",
        help=f"what to write, of {', '.join(KINDS)}; default: {','.join(DEFAULT_KINDS)}",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=cli.share,
        help="the least mask score of an object, or class score without a MaskIoU head; default: the model's own, or "
        f"{USUAL_THRESHOLD:g}",
    )  # fmt: skip
    parser.add_argument(
        "--pixel-size", type=cli.positive_number, metavar="UM",
        help="side of a pixel in micrometres, for the table; default: by the metadata of each TIFF",
    )  # fmt: skip
    cli.add_tiles(parser)
    cli.add_output(parser, f"all results; default: {RESULTS / 'detect'}/ and the name of the first FOLDER")
    parser.add_argument("--limit", type=cli.whole_number(1), metavar="N", help="the first N pictures; default: all")
    parser.add_argument(
        "--workers", type=cli.whole_number(1), metavar="N", help="threads that read pictures; default: by the cores"
    )
    cli.add_device(parser)
    cli.add_dtype(parser)
    cli.add_set(parser)


def _kinds(text: str) -> list[str]:
    """The kinds of output of --to, each once."""
    kinds = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(KINDS)}, with commas between, not {text!r}")
    return kinds


def open_dataset(arguments: argparse.Namespace) -> tuple[Records, Options]:
    """The records of --dataset, and the options that they were read with. Raises: as open_records."""
    options = Options(
        class_attribute=arguments.class_attribute, empty=arguments.empty, crowds=arguments.crowds,
        split_parts=arguments.split_parts, filling=arguments.filling, rename=tuple(arguments.rename),
    )  # fmt: skip
    return open_records(arguments.dataset, arguments.format, options), options


############################################################
#  Check
############################################################


def run_check(arguments: argparse.Namespace) -> int:
    """Checks a data set, prints and writes what it found. Returns the exit code."""
    records, options = open_dataset(arguments)
    report = check(records, options)
    print(report.text())
    channels = agree_on_channels(count_channels([p.path for p in records.pictures if p.path is not None]))
    facts = facts_of(records, report, channels)
    suggestion = make_plan(facts) if len(facts.boxes) else None
    if suggestion is not None:
        print(f"\nSuggested settings, as train takes them\n{suggestion.text()}")
    write_report(report, records, arguments.output, suggestion)
    print(f"\n{arguments.output / 'check.html'} shows pictures with their labels; check.json has all names")
    return int(report.has_errors)


def write_report(report: Report, records: Records, folder: Path, suggestion: Plan | None = None) -> None:
    """Writes check.json and check.html into a folder. suggestion: the settings that fit to the data."""
    suggested = {} if suggestion is None else {"suggested_settings": suggestion.to_json()}
    files = {
        "check.json": json.dumps({**report.to_json(), **suggested}, indent=1),
        "check.html": data_page.render(report, records),
    }
    write_files(folder, files)


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Writes texts by the names of their files into a folder, each wholly or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        data = text.encode("utf-8", "backslashreplace")
        runtime.write_atomically(folder / name, lambda file, data=data: file.write(data))


############################################################
#  Convert
############################################################


def run_convert(arguments: argparse.Namespace) -> int:
    """Writes a data set in another format. Returns the exit code."""
    records, options = open_dataset(arguments)
    check_place(arguments.output, records.root, arguments.force)  # before the work
    check_orphans(records, options)
    check_objects(records, options)
    print("\n".join(convert(records, arguments.to, arguments.output, arguments.copy_pictures, arguments.force)))
    faults = {severity: list(records.findings.of(severity).items()) for severity in SEVERITIES}
    print("\n".join(fault_lines(faults)))
    return int(bool(faults[ERROR]))


############################################################
#  Train
############################################################


def run_train(arguments: argparse.Namespace) -> int:
    """Plans, trains and evaluates; continues what an earlier call began. Returns the exit code."""
    is_main = is_first_process()
    if arguments.plan and not is_main:
        return 0
    say = print if is_main else (lambda text: None)
    records, options = open_dataset(arguments)
    report = check(records, options)
    folder = arguments.output or training_folder(arguments.dataset)
    say(report.text())
    if is_main and not arguments.plan:
        write_report(report, records, folder / "check")
    request = Request(
        arguments.model, arguments.minutes, arguments.augment, arguments.val_share, arguments.seed, arguments.device,
        cli.settings_of(arguments), {"dataset": str(records.root.resolve()), **dataclasses.asdict(options)},
    )  # fmt: skip
    chosen = cli.checkpoint_options(arguments)
    rest = (records, report, request, chosen, arguments.plan, say)
    job = open_job(folder, *rest) if arguments.plan else open_job_together(folder, arguments.device, *rest)
    say("\n".join(["", "Plan", *(f"  {note}" for note in job.notes), job.plan.text(), ""]))
    if arguments.plan:
        return 0
    if is_main:
        say(f"Self-check: {job.self_check()}\n")
    progress = job.train()
    if progress.interrupted:
        return 128 + progress.interrupted
    job.finish(progress, {"command": command_of(arguments), "data": utils.printable(records.root)})
    runtime.close_distributed()
    return 0


def command_of(arguments: argparse.Namespace) -> str:
    """The command line, for a shell."""
    return shlex.join(["python", "custom.py", *arguments.words])


############################################################
#  Evaluate
############################################################


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates a model and writes the report; interrupted, the same command continues. Returns the exit code."""
    cli.check_shared_device(arguments.device)
    device = runtime.setup_distributed(arguments.device)
    records, options = open_dataset(arguments)
    report = check(records, options)
    checked = dataclasses.replace(records, pictures=list(records.pictures))  # a training's split takes pictures out
    evaluating = open_evaluation(arguments, records, report, device)
    folder, faults = evaluating.folder, fault_sentence(report, evaluating.folder / "check")
    if runtime.rank() == 0:
        write_report(report, checked, folder / "check")
        print("\n".join([*filter(None, [faults]), *evaluating.notes(), f"results go to {folder}"]))
    facts = {"command": shlex.join(["python", "custom.py", *arguments.words])}
    evaluating.run(facts | ({"faults": faults} if faults else {}))
    runtime.close_distributed()
    return 0


############################################################
#  Detect
############################################################


def run_detect(arguments: argparse.Namespace) -> int:
    """Detects in pictures without labels; continues what an earlier call began. Returns the exit code."""
    cli.check_shared_device(arguments.device)
    device = runtime.setup_distributed(arguments.device)
    folder = arguments.output or detect_folder(arguments.dataset)
    found = find_pictures(arguments.dataset, folder)
    pictures = found.pictures[: arguments.limit]
    check_output(folder, pictures)
    if arguments.model in (None, "last"):
        arguments.model = str(newest_model())
    batch = {} if device.type == "cpu" else {"IMAGES_PER_GPU": GPU_BATCH}
    adapt = functools.partial(detection_settings, threshold=arguments.threshold, **batch | cli.settings_of(arguments))
    model = cli.open_model(arguments, "last", device=device, adapt=adapt)
    threshold = score_threshold(model.config) if arguments.threshold is None else arguments.threshold
    say = print if runtime.rank() == 0 else (lambda text: None)
    say(f"weights: {utils.printable(model.source)}")
    kind = "mask score" if model.config.USE_MASKIOU_HEAD else "class score"
    say(f"{counted(len(pictures), 'pictures')}; threshold: {kind} {threshold:g}")
    dataset, tiles = PictureSet(pictures), TileOptions(arguments.tiles, arguments.overlap, arguments.scale)
    try:
        how = (arguments.dtype or "float32", arguments.workers, True, tiles)
        run = detect_pictures(model, dataset, found.sources, folder, *how)
        for text in run.notes():
            say(text)
        request = DetectRequest(arguments.to, threshold, arguments.pixel_size, model.class_names, model.config)
        outcome = write_outputs(dataset, folder, run, request, found.root)
    except KeyboardInterrupt:
        print(f"\ncustom.py detect: interrupted; the same command continues in {folder}", file=sys.stderr)
        return 128 + signal.SIGINT
    failures = run.failures | outcome.failures
    say(summary(outcome, request, folder))
    if failures and runtime.rank() == 0:
        texts = "".join(f"\nnot read: {utils.printable(text, 500)}" for text in list(failures.values())[:LISTED])
        what = counted(len(failures), "pictures cannot be read and had to be left out")
        print(f"{what}{texts}", file=sys.stderr)
    runtime.close_distributed()
    return int(bool(failures))


def detect_folder(names: Sequence[str]) -> Path:
    """Where the results of detection go by default, by the first of the names of --dataset."""
    name = Path(names[0].rstrip("/\\").partition("://")[2] or names[0])
    stem = name.stem if name.suffix else name.resolve().name
    return RESULTS / "detect" / (re.sub(r"[^\w. -]+", "_", stem).strip("._ ") or "pictures")


def check_output(folder: Path, pictures: Sequence[PictureFile]) -> None:
    """Raises ValueError if pictures lie in the folder of the results, which could replace them."""
    inside = [entry.address for entry in pictures if Path(entry.address).is_relative_to(folder.resolve())]
    if inside:
        raise ValueError(
            f"--output {utils.printable(folder)} holds pictures of --dataset, such as {utils.printable(inside[0])}, "
            "which results could replace; choose another --output"
        )


def newest_model(folder: Path = RESULTS) -> Path:
    """The newest model that custom.py train has finished. Raises: FileNotFoundError if there is none."""
    models = sorted(folder.glob(f"*/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise FileNotFoundError(
            f"--model last: there is no {folder / '*' / MODEL_NAME}, which custom.py train writes; name a checkpoint "
            "with --model"
        )
    return models[-1]


############################################################
#  Review and suggest
############################################################

LABEL_WRITERS = {name: WRITERS[name] for name in ("coco", "labelme")}  # of labels with numbers, and of proposals


def run_review(arguments: argparse.Namespace) -> int:
    """Ranks the labels of a data set, prints and writes the queue. Returns the exit code."""
    records, options = open_dataset(arguments)
    label_queue.check_output(arguments.output, records.root, "--dataset")
    checkpoint = find_model(arguments.model, arguments.dataset)
    model = open_finder(arguments, checkpoint)
    report = check(records, options)
    notes = [name_objects(records, report, model) or ""]
    if report.has_errors:
        notes.append("what cannot be used is left out; custom.py check names it")
    split = None if arguments.subset == "all" else arguments.subset
    if split is not None:
        notes += choose_pictures(records, report, split, split_file(checkpoint)).notes
    print("".join(f"{note}\n" for note in notes if note), end="")
    seen = label_queue.detect_pictures(model, records, arguments.output, split)
    done = label_queue.review(model, seen)
    print("\n".join(label_queue.review_lines(done, arguments.top)))
    write_files(
        arguments.output,
        {
            "review.json": json.dumps(label_queue.to_json(model, done), indent=1),
            "review.html": review_page.render(
                review_page.review_view(model, done, arguments.top, records.root.resolve().name)
            ),
        },
    )
    labels = label_queue.labels_with_numbers(model, records, done, done.queue[: arguments.top])
    folders = write_labels(labels, arguments.output)
    print(f"\n{arguments.output / 'review.html'} shows them; {folders} have all labels with these numbers, for a tool")
    print("A model that has learned from these labels finds fewer mistakes in them than one that has not seen them.")
    return int(report.has_errors)


def run_suggest(arguments: argparse.Namespace) -> int:
    """Ranks pictures without labels, prints and writes the order. Returns the exit code."""
    records, thumbnails = suggest.picture_records(arguments.unlabelled)
    label_queue.check_output(arguments.output, records.root, "--unlabelled")
    if arguments.model in (None, "last"):
        raise ValueError(f"--model must name a checkpoint file, or one of {some_names()}")
    model = open_finder(arguments, arguments.model)
    threshold = score_threshold(model.config)
    seen = label_queue.detect_pictures(model, records, arguments.output)
    ranking = suggest.suggest(seen, thumbnails, threshold)
    print("\n".join(suggest.suggest_lines(ranking, arguments.top, threshold)))
    title = records.root.resolve().name
    write_files(
        arguments.output,
        {
            "suggest.json": json.dumps(suggest.to_json(model, ranking, threshold), indent=1),
            "suggest.html": review_page.render(suggest.suggest_view(model, ranking, arguments.top, threshold, title)),
        },
    )
    folders = write_labels(suggest.proposals(model, records, ranking[: arguments.top], threshold), arguments.output)
    print(f"\n{arguments.output / 'suggest.html'} shows them; {folders} have what the model finds in them, to correct")
    faults = {severity: list(records.findings.of(severity).items()) for severity in SEVERITIES}
    if faults[ERROR]:
        print("\n".join(fault_lines(faults)))
    return int(bool(faults[ERROR]))


def open_finder(arguments: argparse.Namespace, checkpoint: str | Path) -> MaskRCNN:
    """The model as it sees whole pictures and keeps what it is not sure of. Raises: as cli.open_model."""
    given = cli.settings_of(arguments)
    arguments = argparse.Namespace(**{**vars(arguments), "model": str(checkpoint)})
    return cli.open_model(arguments, "", adapt=lambda config: label_queue.detection_settings(config, given))


def write_labels(records: Records, folder: Path) -> str:
    """Writes records in each of LABEL_WRITERS, into a folder each, and prints what a format cannot hold.

    Returns: the folders in words.
    """
    is_embedded = any(picture.path is None for picture in records.pictures)
    for name, write in LABEL_WRITERS.items():
        notes: list[str] = []
        write(records, folder / name, is_embedded, notes)
        print("".join(f"{folder / name}: {note}\n" for note in notes), end="")
    return " and ".join(str(folder / name) for name in LABEL_WRITERS)


############################################################
#  Command line
############################################################


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    with cli.plain_output():  # the handler keeps the stream that it finds
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "check": run_check, "train": run_train, "evaluate": run_evaluate, "convert": run_convert, "detect": run_detect,
        "review": run_review, "suggest": run_suggest,
    }  # fmt: skip
    with without_log("data.formats.coco", "data.images"):
        return cli.run(f"custom.py {arguments.command}", lambda: commands[arguments.command](arguments))


if __name__ == "__main__":
    sys.exit(main())

"""COCO: its configurations and data set, COCO-style evaluation of any data set, and the command line of both.

    python coco.py train --model=imagenet
    python coco.py evaluate --model=last
    python coco.py --help

81 classes, 0 is background; index i is COCO's i-th smallest category id. COCO's boxes are (x, y, width, height);
everywhere else boxes are (y1, x1, y2, x2).
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cli
import native
import runtime
import utils
from config import BACKBONES, Config
from data.classes import Classes, map_classes, unnamed
from data.coco_files import COCO_CATEGORIES, choose_year
from data.dataset import Dataset
from data.formats.coco import CocoDataset
from evaluation.detect import digest_of, identify
from evaluation.large import TileOptions
from evaluation.results import category_numbers
from evaluation.run import count_weak_detections, evaluate_dataset, evaluate_to_folder, evaluation_callback
from evaluation.tiled import in_tiles
from model import MaskRCNN, network_shapes
from training.optimizer import SCHEDULES
from training.state_checks import check_state
from weights.checkpoint import is_backbone
from weights.published import PUBLISHED

DATASET = Path("datasets/coco")
VALIDATION_IMAGES = 500  # evaluated after each epoch of a training
_CLASSES = ("NUM_CLASSES", "CLASS_NAMES", "CATEGORY_IDS")  # settings that a data set decides
VALIDATION_SUBSETS = {"2014": "minival", "2017": "val"}

############################################################
#  Configuration
############################################################


class CocoConfig(Config):
    """Mask Scoring R-CNN on COCO's 80 categories, by the schedule of the published models."""

    NAME = "coco"
    NUM_CLASSES = 1 + len(COCO_CATEGORIES)
    CLASS_NAMES = ("BG", *(COCO_CATEGORIES[category] for category in sorted(COCO_CATEGORIES)))
    CATEGORY_IDS = (0, *sorted(COCO_CATEGORIES))

    SCHEDULE = "1x"
    STEPS_PER_EPOCH = None


# The networks and schedules of published models, to train them anew: --config.
CONFIGS: dict[str, Mapping[str, Any]] = {
    name: published.settings for name, published in PUBLISHED.items() if published.settings and name == published.name
}


############################################################
#  Evaluation
############################################################


def build_coco_results(
    dataset: Dataset, image_ids: Sequence[Any], rois: Any, class_ids: Any, scores: Any, masks: np.ndarray
) -> list[dict[str, Any]]:
    """Matterport's: the detections of one image, for each of the given images, in COCO's result format.

    image_ids: of the COCO file. rois: [N, (y1, x1, y2, x2)]. class_ids: [N], of the data set. scores: [N], of the boxes
        and of the masks; give detect()'s mask_scores for masks. masks: [H, W, N].
    """
    if rois is None:
        return []
    categories = category_numbers(dataset)
    results = []
    for image_id in image_ids:
        for i, (y1, x1, y2, x2) in enumerate(np.asarray(rois, np.float64).tolist()):
            result = {"image_id": image_id, "category_id": categories[int(class_ids[i])], "score": float(scores[i])}
            code = utils.rle_to_json(utils.mask_to_rle(masks[:, :, i]))
            results.append({**result, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": code})
    return results


def evaluate_coco(
    model: Any,
    dataset: Dataset,
    coco: Any = None,
    eval_type: str = "bbox",
    limit: int = 0,
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Matterport's: print and return COCO numbers. evaluate_dataset with other arguments.

    coco: accepted, and not needed. eval_type: "bbox" or "segm"; both are evaluated, and one's numbers are returned.
    limit: evaluate this many images only; 0 is all.
    """
    if eval_type not in ("bbox", "segm"):
        raise ValueError(f"eval_type must be 'bbox' or 'segm', not {eval_type!r}")
    image_ids = list(dataset.image_ids if image_ids is None else image_ids)
    metrics = evaluate_dataset(model, dataset, image_ids[: limit or None])
    kind = "box " if eval_type == "bbox" else "mask "
    return {name.removeprefix(kind): value for name, value in metrics.items() if name.startswith(kind)}


############################################################
#  The MaskIoU head alone
############################################################

HEAD_ALONE = "maskiou"  # the value of --layers
_HEAD = "maskiou_head."  # its tensors


def check_detector_named(arguments: argparse.Namespace) -> None:
    """Raises ValueError if --layers maskiou has no detector to learn on, before anything is read or downloaded."""
    if arguments.layers != HEAD_ALONE:
        return
    name = arguments.model or "imagenet"
    if name in ("none", "imagenet"):
        given = f"--model {name}" if arguments.model else "train without --model"
        kind = "random weights" if name == "none" else "a backbone alone"
        raise ValueError(
            f"--layers maskiou learns to judge the masks of a trained Mask R-CNN, and {given} starts from {kind}; name "
            "one, such as --model torchvision, or leave --layers out"
        )
    if not cli.settings_of(arguments).get("USE_MASKIOU_HEAD", True):
        raise ValueError(
            "--layers maskiou trains the MaskIoU head, and --set USE_MASKIOU_HEAD=False leaves it out; give one of them"
        )


def head_alone(
    arguments: argparse.Namespace, start: cli.Start, settings: Mapping[str, Any], dataset: Dataset
) -> MaskRCNN:
    """The detector of a checkpoint as it is, with a MaskIoU head that is going to learn alone.

    start: of cli.find_start. settings: of training_settings, for the data set.

    Raises: ValueError if there is no detector, if it does not know all classes, or if settings change it; and as
        cli.starting_model.
    """
    settings = {name: value for name, value in settings.items() if name not in _CLASSES}  # the detector's stay
    if start.path is not None:
        _check_continued(arguments, start)
        return cli.starting_model(start, CocoConfig, arguments.logs, settings)
    _check_detector(start, arguments, dataset)
    chosen = _settings_for_head(start)
    _check_network(start, arguments, {**chosen, **settings})
    if runtime.rank() == 0:
        head = "that of the checkpoint goes on" if _has_head(start) else "a new one, since the checkpoint has none"
        changed = [f"{name}={value}" for name, value in chosen.items() if name not in settings]
        print(f"the MaskIoU head learns alone: {head}. Boxes, masks and class scores stay as they are")
        print(f"settings for a head alone, which --set changes: {', '.join(changed) or 'none'}")
    return cli.starting_model(start, CocoConfig, arguments.logs, {**chosen, **settings})


def _settings_for_head(start: cli.Start) -> dict[str, Any]:
    """The settings that a MaskIoU head alone is trained with, unless the command line has others.

    The detector is finished, so the head learns from the boxes that it will judge, and in a quarter of the time of a
    whole training. A new head has the output range of new models.
    """
    new = {} if _has_head(start) else {"MASKIOU_CLAMP": True}
    return {"USE_MASKIOU_HEAD": True, **new, "MASKIOU_REFINED_ROIS": True, "SCHEDULE": "0.25x"}


def _check_detector(start: cli.Start, arguments: argparse.Namespace, dataset: Dataset) -> None:
    """Raises ValueError if a new training's start is no detector, or not one of all classes of the data set."""
    name, checkpoint = utils.printable(arguments.model, 300), start.checkpoint
    if is_backbone(checkpoint):
        raise ValueError(
            f"--layers maskiou learns to judge the masks of a trained Mask R-CNN, and --model {name} is a backbone "
            "alone; name a whole detector, such as --model torchvision, or leave --layers out"
        )
    names = checkpoint["class_names"] or unnamed(checkpoint["config"]["NUM_CLASSES"])
    mapping = map_classes(Classes.of(dataset), Classes(list(names), checkpoint["category_ids"]))
    if mapping.unknown:
        raise ValueError(
            f"--layers maskiou leaves the detector as it is, and --model {name} does not know "
            f"{len(mapping.unknown)} classes of {arguments.dataset}: {utils.listed(mapping.unknown, 5)}; it knows "
            f"{utils.listed(map(utils.printable, names[1:]), 5)}. Leave --layers out, so that it learns them"
        )


def _check_network(start: cli.Start, arguments: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Raises ValueError if settings make other layers than the checkpoint has, but for a MaskIoU head that it lacks."""
    stored = {name: tensor.shape for name, tensor in start.checkpoint["model"].items()}
    own = network_shapes(cli.training_config(start, CocoConfig, settings))
    missing = [name for name in own if name not in stored and not (name.startswith(_HEAD) and not _has_head(start))]
    changed = [name for name in stored if own.get(name) != stored[name]] + missing
    if changed:
        raise ValueError(
            f"--layers maskiou leaves the detector as it is, but the command line makes another network than that of "
            f"--model {utils.printable(arguments.model, 300)}: {len(changed)} tensors differ, "
            f"{utils.listed(map(utils.printable, changed), 3)}. Leave out --backbone, --config and those of --set that "
            "change layers, or leave out --layers, so that all of it learns"
        )


def _has_head(start: cli.Start) -> bool:
    return any(name.startswith(_HEAD) for name in start.checkpoint["model"])


def _check_continued(arguments: argparse.Namespace, start: cli.Start) -> None:
    """Raises ValueError if --model last is a training that a MaskIoU head alone cannot continue."""
    learning = start.checkpoint.get("training", {}).get("learning", [])
    before = learning[1] if len(learning) > 1 else HEAD_ALONE
    has_head = _has_head(start)
    if not has_head or (before != HEAD_ALONE and arguments.epochs is None):
        path = utils.printable(start.path, 300)
        raise ValueError(
            f"--model last continues {path}, in which {utils.printable(before, 100)} learned"
            f"{'' if has_head else ' without a MaskIoU head'}; --model {shlex.quote(path)} --layers maskiou begins a "
            "training of the head alone on its weights"
        )


############################################################
#  Command line
############################################################

_DESCRIPTION = """\
Train and evaluate Mask Scoring R-CNN on COCO.

    python coco.py train --dataset DIR --download               get COCO 2017 (27 GB), train from ImageNet weights
    python coco.py train --dataset DIR --model imagenet --backbone resnet50 --schedule 1x
    python coco.py train --model last                           continue where the last training stopped
    python coco.py train --config ms_rcnn_r50_caffe_fpn_1x_coco train one of the published configurations
    python coco.py train --model torchvision --layers maskiou   a MaskIoU head for a published Mask R-CNN
    python coco.py evaluate --model last                        numbers, and a report with pictures
    python coco.py evaluate --model coco --limit 100            the published model, on 100 images
    torchrun --nproc_per_node=4 -- coco.py train ...            several GPUs; evaluate as well

DIR has annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ and val2017/ (or those of
2014, where minival and valminusminival split val). Training writes checkpoints, logs and curves into LOGS/coco<time>/.
After Ctrl-C or any other interruption, both commands continue: evaluate with the same arguments, train with
--model last.
"""


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("coco.py", _DESCRIPTION)
    parser.add_argument("command", choices=["train", "evaluate"])
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model and settings"))
    _add_training_arguments(parser.add_argument_group("training"))
    _add_evaluation_arguments(parser.add_argument_group("evaluation"))
    return parser


def _add_data_arguments(group: Any) -> None:
    group.add_argument(
        "--dataset", type=Path, default=DATASET, metavar="DIR", help=f"COCO's folder; default: {DATASET}"
    )
    group.add_argument("--year", choices=["2014", "2017"], help="default: 2014 if DIR has only that, else 2017")
    group.add_argument(
        "--download",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="download, check and unpack what DIR lacks; an interrupted download resumes",
    )
    group.add_argument(
        "--limit",
        type=cli.whole_number(0),
        metavar="N",
        help="evaluate the first N images only, so that the numbers are not COCO's; 0 for all. Default: all for "
        f"evaluate; {VALIDATION_IMAGES} after each epoch of train",
    )
    group.add_argument(
        "--workers",
        type=cli.whole_number(0),
        metavar="N",
        help="processes (train) or threads (evaluate) that load images; default: by the cores of this machine",
    )


def _add_model_arguments(group: Any) -> None:
    cli.add_model(group, "imagenet for train, last for evaluate", trains=True)
    cli.add_checkpoint_options(group)
    cli.add_set(group)
    cli.add_device(group)
    cli.add_dtype(group, trains=True)
    group.add_argument(
        "--batch-size", type=cli.whole_number(1), metavar="N", help="images at a time on each device; default: 2"
    )
    cli.add_logs(group)


def _add_training_arguments(group: Any) -> None:
    group.add_argument(
        "--config", choices=list(CONFIGS), metavar="NAME",
        help=f"train this published configuration, network and schedule: {', '.join(CONFIGS)}",
    )  # fmt: skip
    group.add_argument("--backbone", choices=BACKBONES, help="default: that of the checkpoint, else resnet101")
    cli.add_layers(group)
    group.add_argument(
        "--schedule",
        choices=list(SCHEDULES),
        help="epochs and learning rates; default: 1x, 12 epochs, and with --layers maskiou 0.25x, 3 epochs",
    )
    cli.add_epochs(group)
    cli.add_seed(group)
    group.add_argument(
        "--empty-images", type=_boolean, nargs="?", const=True, default=False, metavar="BOOL",
        help="train on images without objects, too; the published models were trained without them",
    )  # fmt: skip


def _add_evaluation_arguments(group: Any) -> None:
    cli.add_output(
        group, "results and report, one evaluation each; default: a folder in output/ with a name of its own"
    )
    group.add_argument(
        "--max-dets", type=cli.whole_number(1), metavar="N",
        help="how many of an image's best results of a class count; default: 100 as in COCO, or "
        "DETECTION_MAX_INSTANCES if that is larger",
    )  # fmt: skip
    cli.add_tiles(group)


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return values[text.lower()]


# The arguments that one command has and the other does not.
_ARGUMENTS_OF = {
    "train": ("--config", "--backbone", "--layers", "--schedule", "--epochs", "--seed", "--empty-images"),
    "evaluate": ("--output", "--max-dets", "--tiles", "--overlap", "--scale"),
}


def train(arguments: argparse.Namespace) -> int:
    """Train on COCO. Returns the exit code."""
    check_detector_named(arguments)
    train_dataset, val_dataset = load_training_data(arguments)
    settings = training_settings(arguments, train_dataset)
    options = cli.checkpoint_options(arguments)
    start = cli.find_start(arguments.model or "imagenet", CocoConfig, arguments.logs, settings, **options)
    layers, epochs = what_learns(arguments, start)
    if layers == HEAD_ALONE:
        model = head_alone(arguments, start, settings, train_dataset)
    else:
        model = cli.starting_model(start, CocoConfig, arguments.logs, settings)
    count = VALIDATION_IMAGES if arguments.limit is None else arguments.limit
    evaluate = evaluation_callback(val_dataset, val_dataset.image_ids[: count or None])
    progress = model.train_model(train_dataset, val_dataset, epochs=epochs, layers=layers, evaluate=evaluate)
    return 128 + progress.interrupted if progress.interrupted else 0


def what_learns(arguments: argparse.Namespace, start: cli.Start) -> tuple[str, int | None]:
    """The arguments layers and epochs of train_model.

    The training that --model last continues goes on with its own, where the command line does not say others: without
    --layers, a detector that was frozen stays frozen.

    Raises: ValueError if its state is damaged.
    """
    layers, epochs = arguments.layers, arguments.epochs
    training = start.checkpoint.get("training") if start.path is not None else None
    if training is None:
        return layers or "all", epochs
    check_state(training, start.path)
    before = start.checkpoint["config"].get("SCHEDULE")
    schedule = cli.settings_of(arguments, SCHEDULE=arguments.schedule).get("SCHEDULE", before)
    if "matterport" in (schedule, before) and epochs is None:
        return layers or "all", epochs  # the schedule decides
    learning = training.get("learning", [])
    if layers is None and len(learning) > 1:
        layers = learning[1]
        if layers != "all" and runtime.rank() == 0:
            print(f"layers that learn, as in the training that continues: {utils.printable(layers, 200)}")
    if epochs is None and schedule == before and training["epoch"] < training.get("epochs", 0):
        epochs = training["epochs"]
    return layers or "all", epochs


def load_training_data(arguments: argparse.Namespace) -> tuple[CocoDataset, CocoDataset]:
    """The data sets to train on and to validate with: train and val of 2017; of 2014, train with valminusminival, and
    minival."""
    year = find_year(arguments)
    subsets = ("train", "valminusminival") if year == "2014" else ("train",)
    train_dataset = CocoDataset()
    for subset in subsets:
        train_dataset.load_coco(
            arguments.dataset, subset, year, auto_download=arguments.download, empty_images=arguments.empty_images
        )
    train_dataset.prepare()
    return train_dataset, load_validation_data(arguments)


def load_validation_data(arguments: argparse.Namespace) -> CocoDataset:
    """The data set to evaluate on: val of 2017, or minival of 2014."""
    year = find_year(arguments)
    dataset = CocoDataset()
    dataset.load_coco(arguments.dataset, VALIDATION_SUBSETS[year], year, auto_download=arguments.download)
    dataset.prepare()
    return dataset


def find_year(arguments: argparse.Namespace) -> str:
    """The year of --year, or the one that the folder has.

    Raises: NotADirectoryError if there is no folder, and none is to be made.
    """
    folder = arguments.dataset
    if not folder.is_dir() and not (arguments.download and not folder.exists()):
        raise NotADirectoryError(
            f"--dataset {utils.printable(folder)} is no folder; give the one that has annotations/, or add --download, "
            "which gets COCO (27 GB) into a new one"
        )
    return str(choose_year(arguments.dataset, "val", arguments.year))


def training_settings(arguments: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """The settings of a training that the command line asks for, with the classes of the data set."""
    settings = cli.settings_of(
        arguments,
        BACKBONE=arguments.backbone,
        SCHEDULE=arguments.schedule,
        SEED=arguments.seed,
        IMAGES_PER_GPU=arguments.batch_size,
        WORKERS=arguments.workers,
        GPU_COUNT=cli.gpu_count(arguments.device),
        TRAIN_DTYPE=arguments.dtype,
    )
    classes = dict(zip(_CLASSES, (dataset.num_classes, dataset.class_names, dataset.category_ids), strict=True))
    return {**CONFIGS.get(arguments.config, {}), **settings, **classes}


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate on val (2017) or minival (2014). Returns the exit code."""
    dataset = load_validation_data(arguments)
    check_complete(dataset)
    cli.check_shared_device(arguments.device)
    if arguments.output is not None:
        cli.check_folder("--output", arguments.output)
    device = runtime.setup_distributed(arguments.device)
    model = evaluated_model(arguments, device)
    image_ids = dataset.image_ids[: arguments.limit or None].tolist()
    dtype = arguments.dtype or "float32"
    year = find_year(arguments)
    subset = VALIDATION_SUBSETS[year] + year
    options = TileOptions(arguments.tiles, arguments.overlap, arguments.scale)
    model = in_tiles(model, dataset, image_ids, options, verbose=True)
    identity = identify(model, dataset, image_ids, dtype)
    folder = arguments.output or default_output(identity, dataset, subset)
    command = shlex.join(["python", "coco.py", *arguments.words])
    facts = {"command": command, "data": f"{subset} in {arguments.dataset}"}
    if runtime.rank() == 0:
        print(f"weights: {utils.printable(model.source)}\nresults go to {folder}")
        print(native.status())
    try:
        evaluate_to_folder(
            model, dataset, folder, image_ids, arguments.max_dets, dtype, arguments.workers, facts, identity=identity
        )
    except KeyboardInterrupt:
        print(f"\ncoco.py: interrupted; the detections so far are in {folder}, and the same command continues",
              file=sys.stderr)  # fmt: skip
        return 128 + signal.SIGINT
    runtime.close_distributed()
    return 0


def check_complete(dataset: CocoDataset) -> None:
    """Raises ValueError if images of the annotation file cannot be evaluated."""
    problems = dataset.lost_images.items()
    lost = [f"{len(names)} {problem}: {utils.listed(map(str, names), 3)}" for problem, names in problems]
    if lost:
        raise ValueError(
            "the data set is not complete, and numbers without these images are those of another data set: "
            f"{'; '.join(lost)}. Put the images into their place, or take them out of the annotation file"
        )


def evaluated_model(arguments: argparse.Namespace, device: torch.device) -> MaskRCNN:
    """The model that --model names, set up to be evaluated.

    Unless --set says otherwise, detections count from a class score of 0.05 on, under the dialect matterport from 0 on.
    """
    batch = {} if arguments.batch_size is None else {"IMAGES_PER_GPU": arguments.batch_size}
    model = cli.open_model(arguments, "last", CocoConfig, device, **batch)
    if "DETECTION_MIN_CONFIDENCE" not in cli.settings_of(arguments):
        count_weak_detections(model.config)
    return model


def default_output(identity: dict[str, Any], dataset: Dataset, subset: str) -> Path:
    """The folder of an evaluation: the same for the same evaluation, and for no other. identity: of identify()."""
    limit = "" if identity["count"] == dataset.num_images else f"-first{identity['count']}"
    return Path("output") / f"{subset}{limit}-{digest_of(identity)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    with cli.plain_output():  # the handler keeps the stream that it finds
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return cli.run_command(arguments, parser, {"train": train, "evaluate": evaluate}, _ARGUMENTS_OF)


if __name__ == "__main__":
    sys.exit(main())

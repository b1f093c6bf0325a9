"""COCO: its configurations and data set, COCO-style evaluation of any data set, and the command line of both.

    python coco.py train --model=imagenet
    python coco.py evaluate --model=last
    python coco.py --help

81 classes, 0 is background; index i is COCO's i-th smallest category id. COCO's boxes are (x, y, width, height);
everywhere else boxes are (y1, x1, y2, x2).
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import native
import runtime
import utils
from cli import whole_number
from config import BACKBONE_WEIGHTS, BACKBONES, RUN, Config, parse_settings, settings_that
from data.coco_files import COCO_CATEGORIES, choose_year
from data.dataset import Dataset
from data.formats.coco import CocoDataset
from evaluation.detect import digest_of, identify
from evaluation.results import category_numbers
from evaluation.run import evaluate_dataset, evaluate_to_folder, evaluation_callback
from model import TRAINABLE, MaskRCNN
from training.checkpoints import find_last
from training.optimizer import SCHEDULES
from weights.checkpoint import is_backbone, read_checkpoint
from weights.load import load_checkpoint, load_model
from weights.published import MODEL_NAMES, PUBLISHED, imagenet_weights

DATASET, LOGS = Path("datasets/coco"), Path("logs")
VALIDATION_IMAGES = 500  # evaluated after each epoch of a training
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
#  Command line: what is asked for
############################################################

_DESCRIPTION = """\
Train and evaluate Mask Scoring R-CNN on COCO.

    python coco.py train --dataset DIR --download               get COCO 2017 (27 GB), train from ImageNet weights
    python coco.py train --dataset DIR --model imagenet --backbone resnet50 --schedule 1x
    python coco.py train --model last                           go on where the last training stopped
    python coco.py train --config ms_rcnn_r50_caffe_fpn_1x_coco one of the published configurations
    python coco.py train --model torchvision --layers maskiou   a MaskIoU head for a published Mask R-CNN
    python coco.py evaluate --model last                        numbers, and a report with pictures
    python coco.py evaluate --model coco --limit 100            the published model, on 100 images
    torchrun --nproc_per_node=4 -- coco.py train ...            several GPUs; evaluate as well

DIR has annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ and val2017/ (or those of
2014, where minival and valminusminival split val). Training writes checkpoints, logs and curves into LOGS/coco<time>/.
Interrupted, by Ctrl-C or in any other way, both go on with the same command: training with --model last.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="coco.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["train", "evaluate"])
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_run_arguments(parser.add_argument_group("how"))
    _add_training_arguments(parser.add_argument_group("training"))
    _add_evaluation_arguments(parser.add_argument_group("evaluation"))
    return parser


def _add_data_arguments(group: Any) -> None:
    group.add_argument("--dataset", type=Path, default=DATASET, metavar="DIR", help=f"default: {DATASET}")
    group.add_argument(
        "--year", choices=["2014", "2017"], help="default: 2017 if DIR has it, else 2014; without either, 2017"
    )
    group.add_argument(
        "--download",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="fetch what is missing in DIR: goes on where it was interrupted, checks hashes, unpacks",
    )
    group.add_argument(
        "--limit",
        type=whole_number(0),
        metavar="N",
        help="evaluate the first N images only, which gives no standard numbers; 0: all. Default: all for evaluate; "
        f"{VALIDATION_IMAGES} for the evaluation after each epoch of train",
    )


def _add_model_arguments(group: Any) -> None:
    group.add_argument(
        "--model",
        help="where to start: imagenet (a backbone), last (the newest checkpoint in LOGS), none (random weights), a "
        f"file of any format that convert_weights.py reads, or one of {', '.join(MODEL_NAMES)}. "
        "Default: imagenet for train, last for evaluate",
    )
    group.add_argument(
        "--config", choices=list(CONFIGS), metavar="NAME",
        help="network and schedule of a published model, to train it anew: one of the seven ms_rcnn_... above",
    )  # fmt: skip
    group.add_argument("--backbone", choices=BACKBONES, help="default: resnet101, or that of the model")
    group.add_argument("--style", choices=["caffe", "pytorch"], help="of a backbone whose checkpoint does not tell")
    group.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="settings of config.py to change"
    )


def _add_run_arguments(group: Any) -> None:
    group.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the convolutions; default: float32, or as trained"
    )
    group.add_argument(
        "--batch-size", type=whole_number(1), metavar="N", help="images at a time on each device; default: 2"
    )
    group.add_argument(
        "--workers", type=whole_number(0), metavar="N", help="processes (train) or threads that load images"
    )
    group.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help=f"of trainings; default: {LOGS}")


def _add_training_arguments(group: Any) -> None:
    group.add_argument("--layers", help=f"what learns: {', '.join(TRAINABLE)}, or a regular expression; default: all")
    group.add_argument("--schedule", choices=list(SCHEDULES), help="default: 1x, 12 epochs")
    group.add_argument("--epochs", type=whole_number(1), metavar="N", help="when training ends, counted from its start")
    group.add_argument("--seed", type=whole_number(0), metavar="N", help="of all that is random; default: 0")
    group.add_argument(
        "--empty-images", type=_boolean, nargs="?", const=True, default=False, metavar="BOOL",
        help="train on images without objects, too; the references leave them out",
    )  # fmt: skip


def _add_evaluation_arguments(group: Any) -> None:
    group.add_argument(
        "--output", type=Path, metavar="DIR",
        help="of results and report; one evaluation each. Default: a folder in output/, called after what is evaluated",
    )  # fmt: skip
    group.add_argument(
        "--max-dets", type=whole_number(1), metavar="N",
        help="results of a class in an image that count; default: 100, COCO's, or DETECTION_MAX_INSTANCES if larger",
    )  # fmt: skip


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return values[text.lower()]


def asked_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of settings, --set last."""
    flags = {
        "BACKBONE": arguments.backbone,
        "SCHEDULE": arguments.schedule,
        "SEED": arguments.seed,
        "IMAGES_PER_GPU": arguments.batch_size,
        "WORKERS": arguments.workers,
        "GPU_COUNT": None if arguments.device is None else int(arguments.device == "cuda"),
        "TRAIN_DTYPE": arguments.dtype if arguments.command == "train" else None,
    }
    named = CONFIGS[arguments.config] if arguments.config else {}
    given = {name: value for name, value in flags.items() if value is not None}
    return {**named, **given, **parse_settings(arguments.set)}


############################################################
#  Command line: train
############################################################


def train(arguments: argparse.Namespace) -> int:
    """Train from what --model says. Returns the exit status."""
    if arguments.output is not None:
        raise ValueError("--output is of evaluate; training writes into --logs")
    train_dataset, val_dataset = load_training_data(arguments)
    checkpoint, path = starting_checkpoint(arguments)
    config = training_config(arguments, train_dataset, checkpoint)
    model = MaskRCNN(config, arguments.logs)
    load_start(model, checkpoint, path)
    count = VALIDATION_IMAGES if arguments.limit is None else arguments.limit
    evaluate = evaluation_callback(val_dataset, val_dataset.image_ids[: count or None])
    progress = model.train_model(
        train_dataset, val_dataset, epochs=arguments.epochs, layers=arguments.layers or "all", evaluate=evaluate
    )
    return 128 + progress.interrupted if progress.interrupted else 0


def load_training_data(arguments: argparse.Namespace) -> tuple[CocoDataset, CocoDataset]:
    """What is trained on and what is validated with: train and val of 2017; of 2014 valminusminival joins train, and
    minival is val."""
    year = find_year(arguments)
    subsets = ("train", "valminusminival") if year == "2014" else ("train",)
    train_dataset, val_dataset = CocoDataset(), CocoDataset()
    for subset in subsets:
        train_dataset.load_coco(
            arguments.dataset, subset, year, auto_download=arguments.download, empty_images=arguments.empty_images
        )
    val_dataset.load_coco(arguments.dataset, VALIDATION_SUBSETS[year], year, auto_download=arguments.download)
    for dataset in (train_dataset, val_dataset):
        dataset.prepare()
    return train_dataset, val_dataset


def find_year(arguments: argparse.Namespace) -> str:
    """The year that was asked for, or that the folder has."""
    return str(choose_year(arguments.dataset, "val", arguments.year))


def starting_checkpoint(arguments: argparse.Namespace) -> tuple[Mapping[str, Any] | None, Path | None]:
    """The contents and, of a training that is to go on, the path of the checkpoint to start from.

    An ImageNet backbone depends on the settings, which without a checkpoint are known already.
    """
    name = arguments.model or "imagenet"
    if name == "none":
        return None, None
    if name == "last":
        path = find_last(arguments.logs, CocoConfig.NAME)
        return read_checkpoint(path), path
    if name == "imagenet":
        config = CocoConfig(**asked_settings(arguments))
        return load_checkpoint(imagenet_weights(config)), None
    return load_checkpoint(name, arguments.style), None


def training_config(
    arguments: argparse.Namespace, dataset: Dataset, checkpoint: Mapping[str, Any] | None
) -> CocoConfig:
    """Settings, strongest first: --set, flags, --config, the checkpoint's (but, unless its training goes on, those of a
    run of training), CocoConfig's. Classes are the data set's."""
    settings = {}
    if checkpoint is not None:
        settings = dict(checkpoint["config"])
        if is_backbone(checkpoint):
            settings = {name: settings[name] for name in settings_that(BACKBONE_WEIGHTS)}
        elif arguments.model != "last":
            settings = {name: value for name, value in settings.items() if name not in settings_that(RUN)}
    if arguments.layers == "maskiou":
        settings["USE_MASKIOU_HEAD"] = True
    classes = {
        "NUM_CLASSES": dataset.num_classes,
        "CLASS_NAMES": dataset.class_names,
        "CATEGORY_IDS": dataset.category_ids,
    }
    return CocoConfig.from_dict(settings, **{**asked_settings(arguments), **classes, "NAME": CocoConfig.NAME})


def load_start(model: MaskRCNN, checkpoint: Mapping[str, Any] | None, path: Path | None) -> None:
    """Give a new model the weights that it starts from: all, or what fits if it has other classes or another head."""
    if path is not None:
        model.load_weights(path)
    elif checkpoint is not None:
        same = set(checkpoint["model"]) == set(model.state_dict()) and checkpoint["class_names"] == model.class_names
        model.load_weights(checkpoint, by_name=not same, copy_classes=not same and not is_backbone(checkpoint))


############################################################
#  Command line: evaluate
############################################################


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate on val (2017) or minival (2014). Returns the exit status."""
    year = find_year(arguments)
    dataset = CocoDataset()
    dataset.load_coco(arguments.dataset, VALIDATION_SUBSETS[year], year, auto_download=arguments.download)
    dataset.prepare()
    check_complete(dataset)
    device = runtime.setup_distributed(arguments.device)
    model = evaluated_model(arguments, device)
    image_ids = dataset.image_ids[: arguments.limit or None].tolist()
    dtype = arguments.dtype or "float32"
    folder = arguments.output or default_output(model, dataset, image_ids, dtype, VALIDATION_SUBSETS[year] + year)
    command = shlex.join(["python", "coco.py", *arguments.words])
    facts = {"command": command, "data": f"{VALIDATION_SUBSETS[year]}{year} in {arguments.dataset}"}
    if runtime.rank() == 0:
        print(f"weights: {model.source}\nresults go to {folder}")
        print(native.status())
    workers = 2 if arguments.workers is None else max(1, arguments.workers)
    try:
        evaluate_to_folder(model, dataset, folder, image_ids, arguments.max_dets, dtype, workers, facts)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was detected is in {folder}, and the same command goes on", file=sys.stderr)
        return 130
    runtime.close_distributed()
    return 0


def check_complete(dataset: CocoDataset) -> None:
    """Raises ValueError if images of the annotation file cannot be evaluated."""
    problems = dataset.lost_images.items()
    lost = [f"{len(what)} {problem}: {utils.listed(map(str, what), 3)}" for problem, what in problems]
    if lost:
        raise ValueError(
            f"the data set is not complete, and without these images numbers are of another one: {'; '.join(lost)}. "
            "Put them into their place, or take them out of the annotation file"
        )


def evaluated_model(arguments: argparse.Namespace, device: torch.device) -> MaskRCNN:
    """The model that --model names, with settings that evaluation is done with unless --set says otherwise: no class
    score of more than 0.05 is asked for, under the dialect matterport none at all."""
    name = arguments.model or "last"
    if name in ("none", "imagenet"):
        raise ValueError(f"--model {name} has nothing to evaluate; train first, or name a checkpoint")
    if name == "last":
        name = find_last(arguments.logs, CocoConfig.NAME)
    settings = asked_settings(arguments)
    settings.pop("GPU_COUNT", None)
    model = load_model(name, device, arguments.style, **settings)
    if "DETECTION_MIN_CONFIDENCE" not in settings:
        least = 0.0 if model.config.DIALECT == "matterport" else 0.05
        model.config.DETECTION_MIN_CONFIDENCE = min(model.config.DETECTION_MIN_CONFIDENCE, least)
    return model


def default_output(model: MaskRCNN, dataset: Dataset, image_ids: Sequence[int], dtype: str, subset: str) -> Path:
    """The same folder for the same evaluation, and for no other."""
    digest = digest_of(identify(model, dataset, image_ids, dtype))
    limit = "" if len(image_ids) == dataset.num_images else f"-first{len(image_ids)}"
    return Path("output") / f"{subset}{limit}-{digest}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 2 for a mistake in it, 128 + its number after a signal."""
    arguments = build_parser().parse_args(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return {"train": train, "evaluate": evaluate}[arguments.command](arguments)
    except (OSError, ValueError) as error:
        print(f"coco.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

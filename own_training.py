"""A training on a person's own data, from its plan to its result. custom.py train is its command line.

    job = open_job(...)       the pictures of both sides, and the plan: chosen and measured, or read where one exists
    job.self_check()          first_batch.jpg, what the network sees
    job.train()               all phases; continues where an earlier call stopped
    job.finish()              model.pth, from the best checkpoint, and its evaluation

The folder of a job holds plan.json, split.json, first_batch.jpg, logs/, and at the end model.pth, evaluation/ and,
where two checkpoints were compared, choice.json.
plan.json says what was asked for: the same command continues, and another one is refused.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cli
import runtime
import utils
import visualize
from config import SmallConfig
from data.check import Report
from data.dataset import Dataset
from data.object_checks import picture_name
from data.plan import (
    Choice,
    Pace,
    Plan,
    evaluations,
    evenly,
    facts_of,
    fit_to_minutes,
    length_choice,
    make_plan,
    seconds_of,
    set_length,
    warn_if_short,
)
from data.recognise import Records
from data.record_dataset import RecordDataset
from data.samples import TrainingData, collate
from data.split import FILE_NAME, Split, apply_split, make_split, read_split, write_split
from evaluation.own import OwnEvaluation, evaluate_own, store_settings
from evaluation.run import evaluation_callback, whole_images
from evaluation.tiled import estimate_seconds
from evaluation.words import count_of
from model import MaskRCNN, generate_pyramid_anchors, load_image_gt, mold_batch
from training.checkpoints import best_path, find_last
from training.guards import is_out_of_memory
from training.loop import Progress
from weights.checkpoint import is_backbone, read_checkpoint, with_settings, write_checkpoint
from weights.load import network_shapes

PLAN_NAME, MODEL_NAME, PICTURE_NAME, CURVES_NAME = "plan.json", "model.pth", "first_batch.jpg", "losses.png"
CHOICE_NAME = "choice.json"
FORMAT, VERSION = "mask-scoring-rcnn plan", 1
EVALUATED_PICTURES = 50  # of val, after each epoch; the evaluations at the end take all
_TIMED_STEPS, _TIMED_SECONDS = 8, 10.0  # at most, and from when on no further step is timed
_CHECKED_PICTURES = 12  # before the training
_LOOKED_AT = 64  # pictures whose brightness is measured


class OwnConfig(SmallConfig):
    """What a plan does not choose: the small network, and how often it is saved."""

    NAME = "own"
    VALIDATION_STEPS = 8
    CHECKPOINT_MINUTES = 10.0


@dataclasses.dataclass
class Job:
    """A training on own data."""

    folder: Path
    plan: Plan
    split: Split
    train_dataset: RecordDataset
    val_dataset: RecordDataset | None
    start: cli.Start  # of a new training
    settings: dict[str, Any]  # of the plan, the data set and --set
    notes: list[str]
    dataset: str = "DIR"  # as it is named in commands

    @property
    def logs(self) -> Path:
        """The folder of log folders."""
        return self.folder / "logs"

    @property
    def network_settings(self) -> dict[str, Any]:
        """Settings with which a model is made."""
        return {**self.plan.settings, **self.settings}

    def new_model(self) -> MaskRCNN:
        """The model before its first step."""
        return cli.starting_model(self.start, OwnConfig, self.logs, self.network_settings, network_only=True)

    def current_model(self) -> MaskRCNN:
        """The model of the last checkpoint of this job, or a new one."""
        try:
            start = cli.find_start("last", OwnConfig, self.logs, {})
        except FileNotFoundError:
            return self.new_model()
        return cli.starting_model(start, OwnConfig, self.logs, {"GPU_COUNT": self.settings["GPU_COUNT"]})

    ############################################################
    #  Before the training
    ############################################################

    def self_check(self) -> str:
        """Draws what the network sees in its first batch into first_batch.jpg. Returns: a sentence.

        The loop checks one batch forward and backward by itself.
        """
        config = OwnConfig(**self.network_settings)
        image_ids = evenly(self.train_dataset.num_images, max(config.IMAGES_PER_GPU, _CHECKED_PICTURES))
        tiles, objects, met = [], 0, 0
        for image_id in image_ids:
            sample = load_image_gt(self.train_dataset, config, image_id, augment=True, seed=image_id)
            image, _, class_ids, boxes, masks = sample
            names = [self.train_dataset.class_names[class_id] for class_id in class_ids]
            tiles.append((len(boxes) == 0, visualize.draw_instances(utils.viewable(image), boxes, masks, names)))
            objects += len(boxes)
            met += int((best_anchor_ious(boxes, image.shape, config) >= 0.5).sum())
        path = self.folder / PICTURE_NAME
        tiles.sort(key=lambda tile: tile[0])  # crops without objects show little
        sheet = Image.fromarray(_side_by_side([tile for _, tile in tiles[: config.IMAGES_PER_GPU]]))
        runtime.write_atomically(path, lambda file: sheet.save(file, "JPEG", quality=90))
        return (
            f"{count_of(len(image_ids), 'picture')} read and augmented, {met} of {count_of(objects, 'object')} can be "
            f"matched by an anchor (IoU 0.5); {path} shows what the network sees"
        )

    ############################################################
    #  The training
    ############################################################

    def train(self) -> Progress:
        """Trains all phases, from where the last call stopped.

        Returns: the progress; its `interrupted` is the signal that ended the training, if one did.
        """
        os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")  # a fifth faster, and the plan chose a small batch
        model = self.current_model()
        model.to_continue = "the same command"
        evaluate = None
        if self.val_dataset is not None:
            image_ids = evenly(self.val_dataset.num_images, EVALUATED_PICTURES)
            evaluate = evaluation_callback(self.val_dataset, image_ids, adapt=whole_images)
        refined = self.settings.get("MASKIOU_REFINED_ROIS")
        phases = [
            (layers, epochs, {"MASKIOU_REFINED_ROIS": layers == "maskiou" if refined is None else refined})
            for layers, epochs in self.phases(model.config.USE_MASKIOU_HEAD)
        ]
        return cli.train_phases(model, (self.train_dataset, self.val_dataset), phases, evaluate=evaluate)

    def phases(self, has_head: bool) -> list[tuple[str, int]]:
        """(layers, the epoch after which the phase ends). In the last phase the MaskIoU head learns alone.

        The masks do not change any more then.
        """
        epochs = self.plan.epochs
        first = [("heads", 1)] if self.plan.heads_first else []
        return [*first, ("all", epochs), *([("maskiou", epochs + 1)] if has_head else [])]

    def last_epoch(self, has_head: bool) -> int:
        """The epoch after which the training ends."""
        return self.phases(has_head)[-1][1]

    ############################################################
    #  After the training
    ############################################################

    def finish(self, progress: Progress, facts: Mapping[str, str] | None = None) -> OwnEvaluation | None:
        """Writes model.pth and losses.png, evaluates the model, stores the threshold in it, and prints the result.

        facts: rows of the report. Returns: None without validation, and in all processes but the first.
        """
        path = self.folder / MODEL_NAME
        checkpoint = self.choose_checkpoint(progress)
        if runtime.rank() == 0:
            self.write_model(checkpoint, path)
            curves = progress.log_dir / CURVES_NAME
            if curves.is_file():
                data = curves.read_bytes()
                runtime.write_atomically(self.folder / CURVES_NAME, lambda file: file.write(data))
        if runtime.world_size() > 1:
            torch.distributed.barrier()
        if self.val_dataset is None:
            self._say(f"\n{path} holds the model. No picture validated it, so nobody knows how good it is: label more")
            return None
        model = MaskRCNN.from_checkpoint(path, next(progress.module.parameters()).device)
        pictures = count_of(self.val_dataset.num_images, "picture")
        self._say(f"\nEvaluation on {pictures} that the model has not learned from")
        rows = {f"plan: {what}": f"{value} ({why})" for what, value, why in self.plan.choices}
        result = evaluate_own(
            model, self.val_dataset, self.folder / "evaluation", facts={**(facts or {}), **rows}, leaks=[],
            model_name=str(path),
        )  # fmt: skip
        if result is not None:
            store_settings(path, result.settings)
            self._say("\n".join(["", *self.contents(result), "", *self.how_to_use(path)]))
        return result

    def choose_checkpoint(self, progress: Progress) -> Path:
        """The checkpoint of the best epoch, or the last one if it is better on all pictures of val.

        Epochs are compared on EVALUATED_PICTURES, where a class of a few objects decides by luck. All processes call
        this. The numbers stay in choice.json, so that they are computed once.
        """
        best, last = best_path(progress.log_dir, OwnConfig.NAME), find_last(self.logs, OwnConfig.NAME)
        if not best.is_file():
            return last
        count = 0 if self.val_dataset is None else self.val_dataset.num_images
        if count <= EVALUATED_PICTURES or best.samefile(last):
            return best
        path, names = self.folder / CHOICE_NAME, {"best epoch": best.name, "last": last.name}
        numbers = _read_choice(path, names)
        if numbers is None:
            evaluate = evaluation_callback(self.val_dataset, adapt=whole_images)
            device = next(progress.module.parameters()).device
            self._say(f"\nComparing the best epoch with the last one, on all {count} pictures of val")
            numbers = {
                name: evaluate(MaskRCNN.from_checkpoint(checkpoint, device))["mask AP"]
                for name, checkpoint in (("best epoch", best), ("last", last))
            }
            if runtime.rank() == 0:
                text = json.dumps({"checkpoints": names, "mask AP": numbers}, indent=1).encode()
                runtime.write_atomically(path, lambda file: file.write(text))
        is_last = numbers["last"] > numbers["best epoch"]
        self._say(
            f"mask AP {numbers['best epoch']:.3f} (best epoch) and {numbers['last']:.3f} (last): "
            f"the {'last' if is_last else 'best epoch'} is taken"
        )
        return last if is_last else best

    def write_model(self, checkpoint_path: Path, path: Path) -> None:
        """Writes the weights of a checkpoint, set to detect in whole pictures."""
        checkpoint = read_checkpoint(checkpoint_path)
        changed = OwnConfig.from_dict(checkpoint["config"]).detection_settings()
        write_checkpoint(path, with_settings(checkpoint, changed, network_shapes))

    def contents(self, result: OwnEvaluation) -> list[str]:
        """What the folder holds, in lines."""
        has_choice = (self.folder / CHOICE_NAME).is_file()
        return [
            f"{self.folder}/",
            f"  {MODEL_NAME:<21} the model, with its classes, settings and threshold",
            f"  {'evaluation/':<21} {result.report.name}, the numbers as json and csv, the detections",
            f"  {'losses.png':<21} losses and accuracy during the training",
            *([f"  {CHOICE_NAME:<21} the best epoch against the last one"] if has_choice else []),
            f"  {PICTURE_NAME:<21} what the network sees",
            f"  {'check/':<21} what is in the data, and what is wrong with it",
            f"  {f'{PLAN_NAME}, {FILE_NAME}':<21} how it was trained, and on which pictures",
        ]

    def how_to_use(self, path: Path) -> list[str]:
        """Commands for what one does next."""
        model = shlex.quote(str(path))
        return [
            f"Use it:        python custom.py detect --dataset NEW_PICTURES --model {model}",
            f"Doubt labels:  python custom.py review --dataset {shlex.quote(self.dataset)} --model {model}",
        ]

    @staticmethod
    def _say(text: str) -> None:
        if runtime.rank() == 0:
            print(text, flush=True)


def best_anchor_ious(boxes: np.ndarray, shape: Sequence[int], config: Any) -> np.ndarray:
    """The IoU of each box with its best anchor, float [N]. boxes: [N, 4]. shape: of the network's input."""
    anchors = torch.cat(generate_pyramid_anchors(config.backbone_shapes(shape), shape[:2], config)).numpy()
    if not len(boxes):
        return np.zeros(0)
    return utils.compute_overlaps(anchors, np.asarray(boxes, np.float32)).max(axis=0)


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in a row, uint8 [H, W, 3], with a white line between them."""
    height = max(picture.shape[0] for picture in pictures)
    columns = []
    for picture in pictures:
        padding = ((0, height - picture.shape[0]), (0, 8), (0, 0))
        columns.append(np.pad(picture, padding, constant_values=255))
    return np.concatenate(columns, axis=1)


############################################################
#  Open a job
############################################################


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for. Fields that are None or empty were not given."""

    model: str | None = None  # as --model
    minutes: float | None = None
    augment: str | None = None
    val_share: float | None = None
    seed: int | None = None
    device: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of --set
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # how the data set is read


def training_folder(dataset: str | Path) -> Path:
    """Where `custom.py train` writes to, unless --output says otherwise."""
    return Path("output") / Path(dataset).resolve().name


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, also before they know each other."""
    return int(os.environ.get("RANK", 0)) == 0


def open_job(
    folder: Path,
    records: Records,
    report: Report,
    request: Request,
    options: Mapping[str, Any] | None = None,
    is_trial: bool = False,
    say: Callable[[str], None] = print,
) -> Job:
    """The job of a folder: a new one, or the one that the same request has begun.

    records: of data.recognise, after check, whose report this is; their splits are set.
    options: of cli.checkpoint_options, for the checkpoint that a training starts from.
    is_trial: measure and plan, and write nothing. say: prints what takes long.

    Raises: ValueError if the folder holds a training of other data or another request; as make_plan and cli.find_start.
    """
    stored = _read_plan(folder / PLAN_NAME)
    digest = _digest(records)
    wanted = json.loads(json.dumps(dataclasses.asdict(request)))
    if stored is not None:
        _check_same(folder, stored, wanted, digest)
    path = folder / FILE_NAME
    split = read_split(path) if path.is_file() else make_split(records, report, request.val_share, request.seed or 0)
    facts_of_all = list(records.pictures)
    notes = [*split.notes, *apply_split(records, split)]
    train_dataset = RecordDataset(records, "train", report.table.class_names)
    has_val = any(picture.split == "val" for picture in records.pictures)
    val_dataset = RecordDataset(records, "val", report.table.class_names) if has_val else None
    settings = {
        "NUM_CLASSES": train_dataset.num_classes,
        "CLASS_NAMES": tuple(train_dataset.class_names),
        "CATEGORY_IDS": tuple(train_dataset.category_ids),
        "SEED": request.seed or 0,
        "GPU_COUNT": int(runtime.find_device(request.device).type == "cuda"),
        **request.settings,
    }
    model = None if request.model in (None, "last") else request.model
    start = cli.find_start(model or "none", OwnConfig, folder / "logs", settings, **(options or {}))
    job = Job(
        folder, Plan({}, [], 0, False, 1), split, train_dataset, val_dataset, start, settings, notes, str(records.root)
    )
    if stored is not None:
        job.plan = Plan.from_json(stored["plan"])
        return job
    facts = facts_of(
        Records(records.root, records.title, records.evidence, facts_of_all, records.findings),
        report,
        train_dataset.channel_count,
    )
    device = "cuda" if settings["GPU_COUNT"] else "cpu"
    checkpoint = None if start.checkpoint is None else start.checkpoint["config"]
    is_detector = start.checkpoint is not None and not is_backbone(start.checkpoint)
    job.plan = make_plan(facts, device, request.augment, checkpoint, is_detector)
    _complete(job, request, model, say)
    if not is_trial:
        folder.mkdir(parents=True, exist_ok=True)
        write_split(split, path)
        contents = {"format": FORMAT, "version": VERSION, "request": wanted, "data": digest, "plan": job.plan.to_json()}
        text = json.dumps(contents, indent=1).encode()
        runtime.write_atomically(folder / PLAN_NAME, lambda file: file.write(text))
    return job


def open_job_together(folder: Path, device: str | None, *arguments: Any) -> Job:
    """open_job in all processes of torchrun, which then know each other. The first one plans, the others read its plan.

    The first process joins the others after it has measured: a step of a model that they share would wait for them.
    device: of the command line. arguments: those of open_job after folder.
    """
    is_first = is_first_process()
    if is_first:
        job = open_job(folder, *arguments)
    runtime.setup_distributed(device)
    return job if is_first else open_job(folder, *arguments)


def _digest(records: Records) -> str:
    """Changes when pictures, objects or labelled classes come or go."""
    lines = [
        " ".join([picture_name(records, picture), str(len(picture.objects)), *(picture.labelled_classes or ())])
        for picture in records.pictures
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogatepass")).hexdigest()[:16]


def _read_choice(path: Path, names: Mapping[str, str]) -> dict[str, float] | None:
    """The mask AP of each of two checkpoints, if the file has them for checkpoints of these names."""
    try:
        value = json.loads(path.read_text())
        return {name: float(value["mask AP"][name]) for name in names} if value["checkpoints"] == names else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_plan(path: Path) -> dict[str, Any] | None:
    """The contents of plan.json; None if there is none. Raises: ValueError if it is damaged."""
    if not path.is_file():
        return None
    try:
        contents = json.loads(path.read_bytes())
        if contents["format"] != FORMAT or contents["version"] != VERSION:
            raise ValueError("its format or version is another")
        Plan.from_json(contents["plan"])
        dict(contents["request"]), str(contents["data"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        problem = utils.printable(error, 300)
        raise ValueError(
            f"{path} is no plan of a training ({problem}); choose another --output, or delete it"
        ) from None
    return contents


def _check_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], digest: str) -> None:
    """Raises ValueError if a folder holds a training of another request or of other data."""
    flags = {"val_share": "--val-share", "settings": "--set", "reading": "how the data are read"}
    ignored = {"device"} | ({"model"} if wanted["model"] == "last" else set())
    changes = [
        f"{flags.get(name, f'--{name}')} was {_said(stored['request'].get(name))}, and is {_said(value)} now"
        for name, value in wanted.items()
        if name not in ignored and stored["request"].get(name) != value
    ]
    if digest != stored["data"]:
        changes.append("pictures or objects of the data set came or went since then")
    if changes:
        raise ValueError(
            f"{folder} holds a training that was begun otherwise: {'; '.join(changes)}. The same command continues it; "
            "another --output begins a new one"
        )


def _said(value: Any) -> str:
    return utils.printable(value, 200) if value or value == 0 else "not given"


def _complete(job: Job, request: Request, model: str | None, say: Callable[[str], None]) -> None:
    """Adds to a plan what has to be measured: the brightness of pictures, the numbers' type, and the time.

    Raises: ValueError if --minutes and --set contradict each other, or the time is too short.
    """
    plan, given = job.plan, request.settings
    if job.start.checkpoint is None:
        mean, deviation = measure_pixels(job.train_dataset, plan.settings)
        plan.settings |= {"MEAN_PIXEL": mean, "STD_PIXEL": deviation}
    plan.choices.insert(0, _weights_choice(job, model))
    changed = [f"{name}={given[name]}, not {plan.settings[name]}" for name in given if name in plan.settings]
    if changed:
        plan.choices.append(Choice("--set", utils.printable(", ".join(changed), 300), "instead of what the plan chose"))
    plan.settings |= given
    steps = given.get("STEPS_PER_EPOCH")
    if steps and request.minutes is not None:
        raise ValueError("--minutes and --set STEPS_PER_EPOCH both say how long to train; give one of them")
    world = int(os.environ.get("WORLD_SIZE", 1))  # processes of torchrun share the views
    set_length(plan, steps * plan.epochs if steps else math.ceil(plan.batches / world))
    say("measuring the time of a step ...")
    dtype, step, image = measure(job, say)
    plan.settings["TRAIN_DTYPE"] = dtype
    all_images = 0 if job.val_dataset is None else job.val_dataset.num_images
    pace = Pace(step, image, min(EVALUATED_PICTURES, all_images), all_images)
    if request.minutes is not None:
        fit_to_minutes(plan, request.minutes, pace)
    plan.settings |= {name: given[name] for name in given if name in plan.settings}
    _tell_time(job, request.minutes, pace)


def _tell_time(job: Job, minutes: float | None, pace: Pace) -> None:
    """Writes steps and minutes into the choices of a plan."""
    plan, has_weights = job.plan, job.start.checkpoint is not None
    training, evaluation = (seconds / 60 for seconds in seconds_of(plan, pace))
    row = next(i for i, choice in enumerate(plan.choices) if choice.what == "length")
    plan.choices[row] = length_choice(plan, job.train_dataset.num_images, has_weights)
    words = f"{pace.step:.2f} s a step on this machine, in {plan.settings['TRAIN_DTYPE']}"
    if pace.images:
        looks = f"{count_of(evaluations(plan), 'evaluation')} of {count_of(pace.images, 'picture')}"
        words += f", and {looks}, with the report {_minutes(evaluation)}"
    words += "; asked for by --minutes" if minutes is not None else "; --minutes N plans for less"
    plan.choices.insert(row + 1, Choice("time", _minutes(training + evaluation), words))
    warn_if_short(plan, pace, has_weights)


def _minutes(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(1, math.ceil(minutes))} min"


def _weights_choice(job: Job, model: str | None) -> Any:
    """The first line of a plan: what the training starts from."""
    config = OwnConfig(**job.network_settings)
    if job.start.checkpoint is None:
        why = (
            "no --model; --model coco starts from photographs, --model nuclei from stained cells, both already trained"
        )
        return Choice("start", f"random weights, {config.BACKBONE} of half the width", why)
    return Choice("start", utils.printable(model, 60), utils.printable(job.start.checkpoint["source"], 100))


############################################################
#  Measure
############################################################


def measure_pixels(dataset: RecordDataset, settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean of each channel over some pictures, and the deviation from it, as MEAN_PIXEL and STD_PIXEL.

    settings: of Config, which say how pictures are read.
    """
    pixel_range, channels = settings.get("PIXEL_RANGE", "depth"), settings["IMAGE_CHANNEL_COUNT"]
    dataset.inspect_images("auto", pixel_range, channels)
    sums, squares, count = 0.0, 0.0, 0
    for image_id in evenly(dataset.num_images, _LOOKED_AT):
        large = dataset.load_regions(image_id)
        image = dataset.load_image(image_id) if large is None else large.sample()
        pixels = utils.check_channels(image, channels, pixel_range=pixel_range).astype(np.float64)
        pixels = pixels.reshape(-1, pixels.shape[-1])
        sums, squares, count = sums + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0), count + len(pixels)
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return tuple(np.round(mean, 2).tolist()), tuple(np.round(deviation, 2).tolist())


def measure(job: Job, say: Callable[[str], None]) -> tuple[str, float, float]:
    """The type of numbers in which training is faster here, the seconds of a step, and those of detection in a picture.

    Trains a copy of the model for a few steps. If memory runs out, the batch of the plan is halved until it fits.

    Raises: as the model, if not even one image fits into memory.
    """
    with runtime.random_states_kept():
        while True:
            try:
                return _measured(job)
            except (RuntimeError, MemoryError) as error:
                count = job.plan.settings["IMAGES_PER_GPU"]
                if not is_out_of_memory(error) or count == 1:
                    raise
                job.plan.settings["IMAGES_PER_GPU"] = count // 2
                set_length(job.plan, 2 * job.plan.batches)
                say(f"memory does not hold {count} images at a time: {count // 2} are taken")


def _measured(job: Job) -> tuple[str, float, float]:
    chosen = job.settings.get("TRAIN_DTYPE")
    seconds = {}
    for dtype in [chosen] if chosen else ["float32", "bfloat16"]:
        model = MaskRCNN(copy.copy(OwnConfig(**{**job.network_settings, "TRAIN_DTYPE": dtype})))
        seconds[dtype] = step_seconds(model, job.train_dataset)
    dtype = min(seconds, key=seconds.get)
    return dtype, seconds[dtype], detection_seconds(model, job.val_dataset or job.train_dataset)


def step_seconds(model: MaskRCNN, dataset: Dataset) -> float:
    """The seconds of a training step: the mean of a few, which change no weights.

    Batches differ by their objects and sizes, so that the fastest step says little. The first step is not counted.

    model: goes to the device of its configuration. dataset: prepared.
    """
    config, seconds = model.config, []
    device = runtime.training_device(config.GPU_COUNT)
    model.to(device).set_trainable("all")
    data = TrainingData(dataset, config)
    places = itertools.cycle(evenly(len(data), (_TIMED_STEPS + 1) * config.IMAGES_PER_GPU))
    for number in range(_TIMED_STEPS + 1):
        start = time.perf_counter()
        batch = collate([data.sample(place, number) for place in itertools.islice(places, config.IMAGES_PER_GPU)])
        model.train()
        losses = model(*mold_batch(batch, device, config))
        sum(losses.values()).backward()
        model.zero_grad()
        runtime.wait_for(device)
        seconds.append(time.perf_counter() - start)
        if number > 0 and sum(seconds) > _TIMED_SECONDS:
            break
    return statistics.fmean(seconds[1:])


def detection_seconds(model: MaskRCNN, dataset: Dataset) -> float:
    """The seconds of detection in a whole picture of a data set, the mean of two. model: of a training."""
    detector = whole_images(model)
    dataset.inspect_for(model.config)
    image_ids = evenly(dataset.num_images, 2)
    return sum(estimate_seconds(detector, dataset, image_id) for image_id in image_ids) / len(image_ids)

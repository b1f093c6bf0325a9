"""What all command lines share: arguments in one wording, the model that --model names, errors and exit codes.

Exit codes:

    0          the command did everything that it was asked for
    1          something failed while the command ran: a file could not be read, the disk is full, a loss is not finite
    2          a mistake in the command line, or in what it names: an argument, a setting, a file, a data set
    130, 143   Ctrl-C (130) or SIGTERM (143) ended the command; the results and checkpoints up to then are on the disk

An error is one line, `PROGRAM: MESSAGE`. A traceback means that this project has a fault.

A setting of a training comes from the first of these that has it:

    1. --set NAME=VALUE
    2. another argument that stands for a setting, such as --seed or --batch-size
    3. the published configuration that --config names (coco.py)
    4. the checkpoint that --model names, as training_config says
    5. the class, such as CocoConfig, then its dialect, then Config

Classes are an exception in coco.py: they are always the data set's. A training that continues keeps their order.
"""

import argparse
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

import fused
import runtime
import startup
import utils
from config import BACKBONE_WEIGHTS, PER_CHANNEL_SETTINGS, RUN, SHAPE, WEIGHTS, Config, parse_settings, settings_that
from data.dataset import Dataset
from model import TRAINABLE, MaskRCNN, layer_pattern
from training.checkpoints import find_last
from training.loop import Progress
from weights.checkpoint import is_backbone, read_checkpoint
from weights.class_names import KNOWN_CLASSES, read_class_names
from weights.formats import STYLES
from weights.load import load_checkpoint, load_model
from weights.published import find_published, imagenet_weights, some_names
from weights.stem import fit_images, settings_for_channels

LOGS = Path("logs")
MOST_TILE = 16_384  # pixels, the side of a tile; the network would need a hundred gigabytes for a larger one

############################################################
#  Errors and exit codes
############################################################

_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


class Failure(Exception):
    """Something failed while a command ran, and it is not a mistake of the user: exit code 1."""


_FAILURES = (Failure, OSError, MemoryError, FloatingPointError)


def run(program: str, command: Callable[[], int | None]) -> int:
    """Run a command, and print its error in one line.

    program: the name that the message begins with, such as "coco.py".
    command: returns an exit code, or None for 0.

    Returns: the exit code; the docstring of this file lists them.
    """
    runtime.limit_threads()
    with plain_output():
        try:
            return command() or 0
        except KeyboardInterrupt:
            message, code = "interrupted", 128 + signal.SIGINT
        except BrokenPipeError:  # `| head` has seen enough; nothing more can be printed, at the end of Python neither
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
            return 128 + 13  # as the signal SIGPIPE would end it
        except _MISTAKES as error:
            message, code = _sentence(error), 2
        except _FAILURES as error:
            message, code = _sentence(error), 1
        except NotImplementedError as error:
            if "MPS" not in str(error):
                raise
            message, code = (
                f"--device mps: {str(error).splitlines()[0]} PYTORCH_ENABLE_MPS_FALLBACK=1 in the "
                "environment lets the CPU do this part; --device cpu does without the Apple GPU",
                1,
            )
        print(f"{program}: {message}", file=sys.stderr)
        return code


def _sentence(error: Exception) -> str:
    """The message of an error, with the notes that it collected on its way."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:  # of the system: "[Errno 28] No space left on device: 'a.jpg'"
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        message = ": ".join([" and ".join(files), error.strerror]) if files else error.strerror
    return "; ".join([message, *getattr(error, "__notes__", ())])


class _PlainStream:
    """A stream for the terminal that shows control characters, and what its encoding lacks, as escape codes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text. New lines, tabs and the return to the start of a line stay."""
        self.stream.write(plain_text(text, getattr(self.stream, "encoding", None)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def plain_text(text: str, encoding: str | None = None) -> str:
    """A text without control characters but new lines, tabs and the return to the start of a line.

    encoding: of the terminal; characters that it lacks become escape codes, too. None: any.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c.isprintable() or c in "\n\r\t" else utils.printable(c) for c in text)
        if encoding is not None:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """A context in which all that is printed, logged or warned of passes plain_text.

    It is the last line of defence. A line that shows a text from a file says so itself, with utils.printable: this
    context cannot tell a new line of ours from one in the name of a class.
    """
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: _PlainStream(stream) for name, stream in streams.items() if stream is not None}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            if getattr(sys, name) is stream:  # and not replaced by somebody else meanwhile
                setattr(sys, name, streams[name])


class Parser(argparse.ArgumentParser):
    """An argparse parser that prints a mistake as `PROGRAM: MESSAGE`, without the usage, and exits with 2."""

    def __init__(self, program: str, description: str | None, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=program, description=description, **options)
        startup.end_of_imports()  # a command makes its parser when all is imported

    def error(self, message: str) -> None:
        message = utils.printable(message, 2000)
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains every argument\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        file = file or sys.stderr
        super()._print_message(plain_text(message, getattr(file, "encoding", None)), file)


############################################################
#  Arguments
############################################################


def run_command(
    arguments: argparse.Namespace,
    parser: argparse.ArgumentParser,
    commands: Mapping[str, Callable[[argparse.Namespace], int | None]],
    of_commands: Mapping[str, Sequence[str]],
) -> int:
    """Run the command that the arguments name, after check_arguments. Returns: the exit code, as run."""

    def command() -> int | None:
        check_arguments(arguments, parser, of_commands)
        return commands[arguments.command](arguments)

    return run(parser.prog, command)


def check_arguments(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, of_commands: Mapping[str, Sequence[str]]
) -> None:
    """Refuse an argument that the command at hand does not read: it would be believed to do something.

    arguments: with command. parser: made them; what has its default counts as not given. of_commands: the arguments
    that only some commands read, by command, such as {"train": ("--head-epochs",)}.

    Raises: ValueError with the commands that read it.
    """
    for word in dict.fromkeys(itertools.chain.from_iterable(of_commands.values())):
        readers = [command for command, words in of_commands.items() if word in words]
        name = word.lstrip("-").replace("-", "_")
        if arguments.command not in readers and getattr(arguments, name) != parser.get_default(name):
            writes = "; training writes into --logs" if (arguments.command, word) == ("train", "--output") else ""
            raise ValueError(f"{word} is an argument of {' and '.join(readers)} only{writes}")


# Each function adds an argument to a parser or to a group of one.


def add_model(parser: Any, default: str, trains: bool = False) -> None:
    """--model. default: the name in words; the value is None if the argument is not given.

    trains: whether the command can train, and has --logs.
    """
    names = f"a checkpoint file of any format that convert_weights.py reads, or one of {some_names()}"
    if trains:
        names += (
            "; or last, the newest checkpoint in --logs, which train continues. "
            "To train, also imagenet (a trained backbone) and none (random weights)"
        )
    parser.add_argument("--model", help=f"{names}. Default: {default}")


def add_checkpoint_options(parser: Any) -> None:
    """--style, --classes, --eps and --source-config: what a foreign checkpoint, named by --model, may not tell."""
    parser.add_argument(
        "--style",
        choices=STYLES,
        help="where the backbone of a foreign checkpoint has its stride, if the file does not tell",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the checkpoint's classes, if the file does not tell: a text file, one a line, without the "
        f"background; a .json file of annotations; or one of {', '.join(KNOWN_CLASSES)}",
    )
    parser.add_argument(
        "--eps",
        type=share,
        help="of a torchvision ResNet-50 with frozen batch norm, which the file does not say: 0 (default) if it was "
        "trained from the published detector, 1e-5 if from an ImageNet backbone",
    )
    parser.add_argument(
        "--source-config",
        metavar="FILE",
        help="the config.yaml that a Detectron2 checkpoint was trained with; none: use no file. Default: config.yaml "
        "in the folder of the checkpoint",
    )


def checkpoint_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What add_checkpoint_options added, as arguments for weights.load: style, class_names, eps and source_config.

    A command without these arguments has None for each. Raises: as read_class_names.
    """
    classes = getattr(arguments, "classes", None)
    return {
        "style": getattr(arguments, "style", None),
        "class_names": read_class_names(classes) if classes else None,
        "eps": getattr(arguments, "eps", None),
        "source_config": getattr(arguments, "source_config", None),
    }


def add_device(parser: Any, default: str | None = None) -> None:
    """--device. default: None takes CUDA if there is a GPU."""
    words = default or "cuda if there is a GPU, else cpu"
    parser.add_argument(
        "--device",
        type=_device,
        default=default,
        help=f"cpu, cuda, cuda:N for the GPU of number N, or mps; default: {words}",
    )


def add_dtype(parser: Any, trains: bool = False) -> None:
    """--dtype, None if it is not given. trains: whether the command can train."""
    training = "; to train: the setting TRAIN_DTYPE" if trains else ""
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help=f"the numbers that convolutions compute with; default: float32{training}",
    )


def add_set(parser: Any) -> None:
    """--set, which may be given several times: a list of texts for parse_settings."""
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="NAME=VALUE",
        help="change settings; config.py explains all of them",
    )


def add_tiles(parser: Any) -> None:
    """--tiles, --overlap and --scale, in which evaluation/large.py: TileOptions has them."""
    parser.add_argument(
        "--tiles", type=_tiles, default="auto", metavar="N|off|auto",
        help="images that are larger than N x N pixels: detect in tiles of that size; off: detect in one piece; auto, "
        "the default: by the size of the image and the model",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=whole_number(0), metavar="N",
        help="pixels that neighbouring tiles share; default: 128, or more for a model of large objects",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=positive_number, metavar="FACTOR",
        help="enlarge tiles by this for the network, or shrink them below 1, so that objects have the size that they "
        "had in training; default: as the model says",
    )  # fmt: skip


def _tiles(text: str) -> int | str:
    """A type for argparse: a side in pixels, off or auto."""
    if text in ("off", "auto"):
        return text
    if not text.isdecimal() or not 0 < int(text) <= MOST_TILE:
        raise argparse.ArgumentTypeError(
            f"must be auto, off, or the side of a tile, 1 to {MOST_TILE} pixels, not {text!r}"
        )
    return int(text)


def add_output(parser: Any, contents: str, default: str | None = None, metavar: str = "DIR") -> None:
    """--output, a Path. contents: what the folder or file will hold, in words. default: its path, if it has one."""
    words = f"; default: {default}" if default else ""
    kind = "folder" if metavar == "DIR" else "file"
    value = Path(default) if default else None
    parser.add_argument("--output", type=Path, default=value, metavar=metavar, help=f"{kind} for {contents}{words}")


def check_folder(argument: str, folder: Path) -> None:
    """Raises OSError if a folder cannot be made or written into: before the work, and not at its end."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{argument} {utils.printable(folder)}: {utils.printable(existing)} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{argument} {utils.printable(folder)}: you may not write into {utils.printable(existing)}"
        )


def add_logs(parser: Any) -> None:
    """--logs, a Path."""
    parser.add_argument(
        "--logs", type=Path, default=LOGS, metavar="DIR", help=f"folder of all trainings; default: {LOGS}"
    )


def add_seed(parser: Any, uses: str = "training") -> None:
    """--seed, None if it is not given. uses: what draws random numbers, in words."""
    parser.add_argument(
        "--seed", type=whole_number(0), metavar="N", help=f"seed of the random numbers of {uses}; default: 0"
    )


def add_epochs(parser: Any, default: int | None = None, end: str = "to stop", least: int = 1) -> None:
    """--epochs, None if it is not given and there is no default. end: what happens after that epoch, in words.

    least: 0 if the detector may stay as it is, see check_epochs.
    """
    words = "" if default is None else f"; default: {default}"
    words += "; 0: the detector of --model stays as it is" if least == 0 else ""
    parser.add_argument(
        "--epochs",
        type=whole_number(least),
        default=default,
        metavar="N",
        help=f"the epoch, counted from the first, after which {end}{words}",
    )


def add_layers(parser: Any, default: str | None = None) -> None:
    """--layers, as train_model takes it. default: what counts if it is not given; None stands for all."""
    parser.add_argument(
        "--layers",
        type=_layers,
        default=default,
        help=f"the layers that learn: {', '.join(TRAINABLE)}, or a regular expression; default: {default or 'all'}",
    )


def _layers(text: str) -> str:
    try:
        layer_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def whole_number(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number that is not below the least one."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, not {text!r}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """A type for argparse: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def share(text: str) -> float:
    """A type for argparse: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return number


def _device(text: str) -> str:
    try:
        return str(runtime.find_device(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


############################################################
#  Settings
############################################################


def settings_of(arguments: argparse.Namespace, **flags: Any) -> dict[str, Any]:
    """The settings that a command line asks for: those of --set, then those that other arguments stand for.

    flags: the values of these arguments by the name of the setting. None is an argument that was not given.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    return {**given, **parse_settings(arguments.set)}


def check_shared_device(device: str | None) -> None:
    """Raises ValueError for one GPU by its number, in a command that torchrun spreads over the GPUs."""
    if device is not None and device.startswith("cuda:"):
        raise ValueError(
            f"--device {device}: this command takes cuda without a number, because torchrun gives each process a GPU "
            "of its own; to use one GPU of several, set the environment variable CUDA_VISIBLE_DEVICES to its number"
        )


def gpu_count(device: str | None) -> int | None:
    """The setting GPU_COUNT that --device of a training stands for; None without --device.

    Raises: ValueError for a device that is none of runtime.TRAINING_DEVICES, and as check_shared_device.
    """
    check_shared_device(device)
    if device is None:
        return None
    if device not in runtime.TRAINING_DEVICES:
        raise ValueError(f"--device {device}: training takes {' or '.join(runtime.TRAINING_DEVICES)}")
    return int(device != "cpu")


############################################################
#  --model
############################################################


def find_checkpoint(name: str, logs: Path | None = None, experiment: str | None = None) -> str | Path:
    """The checkpoint that --model names, to detect or evaluate with: a path or a name for weights.load.load_model.

    logs: the folder of trainings, in which "last" is the newest checkpoint; None in a command that does not train.
    experiment: config.NAME of these trainings.

    Raises: ValueError for models that know no objects; FileNotFoundError if there is no last checkpoint.
    """
    if name in ("none", "imagenet"):
        weights = "random weights" if name == "none" else "a backbone without heads"
        raise ValueError(
            f"--model {name} is {weights}, which finds no objects: only a training can start from it; name a checkpoint"
        )
    if name != "last":
        return name
    if logs is None:
        raise ValueError("--model last: this command has no trainings; name a checkpoint file in logs/")
    return find_last(logs, experiment)


def named_checkpoint(arguments: argparse.Namespace, default: str, config_class: type[Config]) -> str | Path:
    """find_checkpoint for a command line. default: the name that counts if --model is not given.

    arguments: model and set, and if the command has it, logs. config_class: of the command's trainings.
    """
    experiment = settings_of(arguments).get("NAME", config_class.NAME)
    return find_checkpoint(arguments.model or default, getattr(arguments, "logs", None), experiment)


def open_model(
    arguments: argparse.Namespace,
    default: str,
    config_class: type[Config] = Config,
    device: torch.device | None = None,
    adapt: Callable[[Config], Mapping[str, Any]] | None = None,
    **settings: Any,
) -> MaskRCNN:
    """The model that --model names, to detect or evaluate with.

    arguments: model, device and set, and if the command has them, logs and those of add_checkpoint_options.
    default: the name that counts if --model is not given. config_class: of the command's trainings.
    device: None takes that of --device. adapt: as for weights.load.load_model.
    settings: settings that replace the checkpoint's unless --set has them.

    Raises: as find_checkpoint and weights.load.load_model.
    """
    settings |= settings_of(arguments)
    checkpoint = named_checkpoint(arguments, default, config_class)
    options = checkpoint_options(arguments)
    device = runtime.find_device(device or arguments.device)
    model = load_model(checkpoint, device, adapt=adapt, **options, **settings)
    if device.type == "cuda":
        print(runtime.describe_rounding(model.config.TF32, device))
    return model


class Start(NamedTuple):
    """Where a training starts.

    checkpoint: its contents; None for random weights.
    path: the file of a training that continues; None for a new training.
    """

    checkpoint: Mapping[str, Any] | None = None
    path: Path | None = None


def find_start(name: str, config_class: type[Config], logs: Path, settings: Mapping[str, Any], **options: Any) -> Start:
    """Where --model says that a training starts.

    name: none (random weights), imagenet (the trained backbone for these settings), last (the newest training of
        config_class continues), or a checkpoint to begin a new training from.
    logs: the folder of trainings. settings: those of the command line. options: of checkpoint_options.

    Raises: FileNotFoundError if there is no such file; ValueError as weights.load.load_checkpoint.
    """
    if name == "none":
        return Start()
    if name == "last":
        path = find_last(logs, settings.get("NAME", config_class.NAME))
        return Start(read_checkpoint(path), path)
    if name == "imagenet":
        return Start(load_checkpoint(imagenet_weights(config_class(**settings))))
    return Start(load_checkpoint(name, **options, **_said_of_a_file(name, config_class, settings)))


# What a foreign file may not say of its weights.
_OF_A_FILE = {*settings_that(WEIGHTS), "BACKBONE_NORM", "IMAGE_MIN_DIM", "IMAGE_MAX_DIM"} - {"DIALECT", "BACKBONE"}


def _said_of_a_file(name: str, config_class: type[Config], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that say what the weights of a foreign file mean, as they do in a detection.

    A published file is known; only ratios of anchors count there. MEAN_PIXEL and STD_PIXEL of a training whose images
    have other channels say nothing of the file.
    """
    names = set(_OF_A_FILE if find_published(name) is None else ("RPN_ANCHOR_RATIOS",))
    if settings.get("IMAGE_CHANNEL_COUNT", config_class.IMAGE_CHANNEL_COUNT) != Config.IMAGE_CHANNEL_COUNT:
        names -= {*PER_CHANNEL_SETTINGS}
    return {key: value for key, value in settings.items() if key in names}


# With network_only, config_class decides these, whatever the network of a checkpoint has.
_OF_THE_CLASS = ("NUM_CLASSES", "RPN_ANCHOR_SCALES", "USE_MASKIOU_HEAD")


def training_config(
    start: Start, config_class: type[Config], settings: Mapping[str, Any], network_only: bool = False
) -> Config:
    """The settings of a training: those of the command line, then those of the checkpoint, then those of the class.

    A training that continues takes all settings from its checkpoint, except the choice between CPU and GPU. A new
    training takes from a backbone what its weights mean, and its width. From a detector it takes everything but the
    settings of a training's run, such as the learning rate. An IMAGE_CHANNEL_COUNT of the command line, or of a class
    that sets another one than 3, counts more than the checkpoint's; MEAN_PIXEL and STD_PIXEL follow it.

    network_only: take only the network from a detector; classes, anchor sizes, the choice of a MaskIoU head, image
        sizes and thresholds stay config_class's.
    """
    if start.checkpoint is None:
        return config_class(**settings)
    stored = start.checkpoint["config"]
    if start.path is not None:
        names = stored.keys() - {"GPU_COUNT"}
    elif is_backbone(start.checkpoint):
        names = {*settings_that(BACKBONE_WEIGHTS), "BACKBONE_WIDTH"}
    elif network_only:
        names = {*settings_that(WEIGHTS, SHAPE)} - {*_OF_THE_CLASS}
    else:
        names = stored.keys() - {*settings_that(RUN)}
    taken = {name: stored[name] for name in stored if name in names}
    of_class = config_class.IMAGE_CHANNEL_COUNT
    own_count = settings.get("IMAGE_CHANNEL_COUNT", of_class if of_class != Config.IMAGE_CHANNEL_COUNT else None)
    if start.path is None and own_count not in (None, stored.get("IMAGE_CHANNEL_COUNT", 3)):
        taken |= settings_for_channels(stored, own_count)
        has_own = [name for name in PER_CHANNEL_SETTINGS if len(getattr(config_class, name)) == own_count != 3]
        taken = {name: value for name, value in taken.items() if name not in has_own}
    return config_class.from_dict(taken, **settings)


def choose_dtype(config: Config, settings: Collection[str]) -> None:
    """Sets float32 for a training where the processor has no bfloat16, unless someone chose its dtype, and says so.

    settings: the names of those that were chosen.
    """
    device = runtime.training_device(config.GPU_COUNT).type
    if "TRAIN_DTYPE" not in settings and fused.widens(device, getattr(torch, config.TRAIN_DTYPE)):
        print("this training computes in float32; --set TRAIN_DTYPE=bfloat16 would be slower here")
        config.TRAIN_DTYPE = "float32"


def starting_model(
    start: Start, config_class: type[Config], logs: Path, settings: Mapping[str, Any], network_only: bool = False
) -> MaskRCNN:
    """The model that a training starts with: its weights are those of the checkpoint as far as they fit.

    Layers for other classes start from random weights. Without network_only, the rows of classes that have the same
    name in the checkpoint are copied. The dtype of a new training is that of choose_dtype. The arguments are those of
    find_start and training_config.
    """
    config = training_config(start, config_class, settings, network_only)
    if start.path is None:
        choose_dtype(config, settings)
    model = MaskRCNN(config, logs)
    if start.path is not None:
        model.load_weights(start.path)
    elif start.checkpoint is not None and network_only:
        anchors = {"RPN_ANCHOR_SCALES": config.RPN_ANCHOR_SCALES}  # the RPN learns what fits to other anchors
        model.load_weights({**start.checkpoint, "config": {**start.checkpoint["config"], **anchors}}, by_name=True)
    elif start.checkpoint is not None:
        fits = start.checkpoint["class_names"] == model.class_names
        fits = fits and set(start.checkpoint["model"]) == set(model.state_dict())
        copies = not fits and not is_backbone(start.checkpoint)
        _, changes = fit_images(read_checkpoint(start.checkpoint), config)
        model.load_weights(start.checkpoint, by_name=not fits or bool(changes), copy_classes=copies)
    return model


def train_phases(
    model: MaskRCNN,
    datasets: Sequence[Dataset | None],
    phases: Sequence[tuple[str, int, Mapping[str, Any]]],
    **more: Any,
) -> Progress:
    """Train phase by phase, until a signal or a callback ends the training. A continued one begins with its own phase.

    datasets: to train on, and to validate with. phases: of each the layers that learn, the epoch after which it ends,
    and settings of the model's config. more: arguments of train_model.
    """
    for layers, last, settings in phases:
        if last < phases[-1][1] and model.epoch >= last:
            if runtime.rank() == 0:
                print(f"the phase of layers {layers}, until epoch {last}, is over: {model.epoch} epochs are done")
            continue
        for name, value in settings.items():
            setattr(model.config, name, value)
        progress = model.train_model(*datasets, epochs=last, layers=layers, **more)
        if progress.interrupted or progress.stop:
            break
    return progress


def check_epochs(arguments: argparse.Namespace, start: Start, config_class: type[Config]) -> None:
    """Raises ValueError if --epochs 0 is given without a trained detector, or without a MaskIoU head to train.

    arguments: as train_detector_then_head takes them. start, config_class: of find_start.
    """
    if arguments.epochs > 0:
        return
    if start.checkpoint is None or is_backbone(start.checkpoint):
        weights = "random weights" if start.checkpoint is None else "a backbone"
        raise ValueError(
            f"--epochs 0 trains the MaskIoU head of a trained detector, and --model {arguments.model or 'none'} gives "
            f"only {weights}; name a detector, such as last, or let it learn (--epochs 1 or more)"
        )
    if arguments.head_epochs == 0 or not settings_of(arguments).get("USE_MASKIOU_HEAD", config_class.USE_MASKIOU_HEAD):
        raise ValueError("--epochs 0 leaves the MaskIoU head alone to train, for --head-epochs 1 or more; give these")


def train_detector_then_head(
    model: MaskRCNN,
    datasets: Sequence[Dataset],
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    **more: Any,
) -> Progress:
    """Train all but the MaskIoU head, then this head alone, on the detections of a model that does not change any more.

    A step without the head is faster, and while the detector learns, the head would judge masks that the trained model
    does not make. A new head predicts 1 until it learns: until then, mask scores are class scores.

    arguments: with epochs, 0 for a detector that stays as it is, and head_epochs. settings: of the command line;
    without MASKIOU_DETECTIONS among them, this is turned on. datasets, more: as for train_phases.
    """
    chosen = {"MASKIOU_DETECTIONS": settings.get("MASKIOU_DETECTIONS", True)}
    phases = [("detector", arguments.epochs, chosen)] if arguments.epochs > 0 else []
    if model.config.USE_MASKIOU_HEAD and arguments.head_epochs > 0:
        phases.append(("maskiou", arguments.epochs + arguments.head_epochs, chosen))
    return train_phases(model, datasets, phases, **more)


def add_head_epochs(parser: Any, default: int) -> None:
    """--head-epochs, of train_detector_then_head."""
    words = f"epochs after these, in which the MaskIoU head learns alone; default: {default}"
    parser.add_argument("--head-epochs", type=whole_number(0), default=default, metavar="N", help=words)

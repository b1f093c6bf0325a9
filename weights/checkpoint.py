"""Checkpoints of this project: the one reader, the one writer, and the checks.

format, version  FORMAT, FORMAT_VERSION
config           every setting, as Config.to_dict writes them
dialect          the config's DIALECT
class_names      the name of each class index, background first; None for a backbone alone
category_ids     the data set's number of each class index; None: the index itself
source           where the weights come from, a text for people
model            {name: tensor} as MaskRCNN.state_dict(), or those of the backbone alone
training         only in log folders: the state of the training, which training/loop.py continues
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import runtime
import utils
from config import DIALECTS, SHAPE, Config, settings_that

from .pickles import kind_of
from .torch_files import file_kind, load_torch_file

FORMAT, FORMAT_VERSION = "mask-scoring-rcnn", 1
CHECKPOINT_KEYS = ("format", "version", "config", "dialect", "class_names", "category_ids", "source", "model")

# The names and shapes of a network's tensors, from its settings and whether only its backbone counts:
# model.network_shapes. weights/ lies below model.py and is handed this function.
NetworkShapes = Callable[[Config, bool], Mapping[str, torch.Size]]


class Checkpoint(dict):
    """Contents that read_checkpoint has checked. A changed copy, {**checkpoint, ...}, is a dict and unchecked.

    name: what messages call it.
    """

    name: str = "the checkpoint"

    def named(self, name: str | Path) -> "Checkpoint":
        """Itself, with this name."""
        self.name = str(name)
        return self


############################################################
#  Reading
############################################################


def read_checkpoint(checkpoint: str | Path | Mapping[str, Any], name: str | Path | None = None) -> Checkpoint:
    """A checkpoint of this project, checked: format, version, keys, settings, dialect, finite weights.

    Tensors of a file are mapped into memory, not copied. match_to_network checks names and shapes, for which the
    network must be known.

    checkpoint: a file, or its contents.
    name: what error messages call the contents; the default is the file's path.

    Raises: FileNotFoundError; ValueError that names what is wrong.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    contents, name = checkpoint, name or "the checkpoint"
    if not isinstance(checkpoint, Mapping):
        name = checkpoint
        contents = {} if file_kind(checkpoint) in ("hdf5", "safetensors") else load_torch_file(checkpoint)
    if not _is(contents.get("format"), FORMAT):
        raise ValueError(
            f"{name} is not a checkpoint of this project; `python convert_weights.py SRC DST` makes one from "
            "checkpoints of Matterport, the 2018 port, maskrcnn-benchmark, mmdetection, torchvision and Detectron2"
        )
    if not _is(contents.get("version"), FORMAT_VERSION):
        raise ValueError(
            f"{name} is a checkpoint of version {shown(contents.get('version'))}, this code reads {FORMAT_VERSION}; "
            "was it written by a newer release?"
        )
    missing = [key for key in CHECKPOINT_KEYS if key not in contents]
    missing += [f"a dict as {key}" for key in ("config", "model") if not isinstance(contents.get(key), Mapping)]
    missing += ["texts as names of tensors"] * (not missing and not all(isinstance(n, str) for n in contents["model"]))
    if missing:
        raise ValueError(f"{name} lacks {utils.listed(missing)}; was it written by other code, or edited?")
    _check_plain(name, contents)
    # Config.to_dict writes only the name of a callable BACKBONE. Whoever builds the network gives the callable again.
    is_own_backbone = str(contents["config"].get("BACKBONE")).startswith("<")
    try:
        config = config_of(contents, **({"BACKBONE": "resnet50"} if is_own_backbone else {}))
    except (ValueError, TypeError) as error:
        problem = utils.printable(error, 1000)
        raise ValueError(f"{name} has a config that this code does not know: {problem}") from None
    if contents["dialect"] not in DIALECTS or contents["dialect"] != config.DIALECT:
        dialect = shown(contents["dialect"])
        raise ValueError(f"{name} says dialect {dialect}, its config {config.DIALECT!r}; was it edited?")
    check_values(name, contents["model"], integers=is_own_backbone)
    _check_counts(name, config, contents["model"])
    return Checkpoint({**contents, "source": utils.printable(contents["source"], 1000)}).named(name)


def _is(value: Any, expected: str | int) -> bool:
    """Whether a value from a file is the expected one. Tensors, for example, cannot be compared."""
    return type(value) is type(expected) and value == expected


def shown(value: Any) -> str:
    """A value from a file, as a message may show it: short, whatever it is."""
    if isinstance(value, str):
        return f"'{utils.printable(value)}'"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return str(value)
    return "an enormous number" if isinstance(value, int) else kind_of(value)


def _check_plain(name: str | Path, contents: Mapping[str, Any]) -> None:
    """Raises ValueError unless settings, names and source are numbers, texts and lists of them, of sensible size."""
    for key in ("dialect", "source"):
        if not isinstance(contents[key], str):
            raise ValueError(f"{name}: {key} is {shown(contents[key])}, where it should be a text")
    entries = {**contents["config"], "class_names": contents["class_names"], "category_ids": contents["category_ids"]}
    for setting, value in entries.items():
        if not isinstance(setting, str):
            raise ValueError(f"{name}: the name of a setting is {shown(setting)}, where it should be a text")
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        wrong = [item for item in values if not _is_plain(item)]
        if wrong or len(values) > _LONGEST_LIST:
            problem = f"has {shown(wrong[0])}" if wrong else f"has {len(values):,} entries"
            raise ValueError(
                f"{name}: {utils.printable(setting, 60)} {problem}, where settings are texts, finite numbers and short "
                "lists of them; the file is damaged"
            )


_LONGEST_LIST = 100_000  # entries of a setting; there is one with an entry for each class
_LONGEST_TEXT = 10_000  # characters


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return value is None or (isinstance(value, float) and math.isfinite(value))


# Settings that count layers. The network is built from them, so the file must have as many tensors.
_COUNTS = ("RPN_CONVS", "BOX_HEAD_CONVS", "BOX_HEAD_FC_LAYERS", "MASK_HEAD_CONVS")
_LARGEST_SIZE = 1 << 20  # of a layer, in channels, classes or cells; no network is near it


def _check_counts(name: str | Path, config: Config, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for settings of a network that cannot be that of the tensors, before any network is built."""
    limits = dict.fromkeys(_COUNTS, len(tensors))
    limits |= {setting: _LARGEST_SIZE for setting in settings_that(SHAPE) if setting not in limits}
    for setting, limit in limits.items():
        value = getattr(config, setting)
        value = len(value) if isinstance(value, tuple) else value
        if isinstance(value, int | float) and value > limit:
            raise ValueError(
                f"{name}: its settings say {setting} = {shown(value)}, and its {len(tensors)} tensors cannot be "
                "of such a network; was it edited?"
            )


def shapes_of(
    config: Config, network_shapes: NetworkShapes, only_backbone: bool, name: str
) -> Mapping[str, torch.Size]:
    """The names and shapes of a network's tensors. name: of the file that says the settings.

    Raises: ValueError for a network that is too large to exist.
    """
    try:
        return network_shapes(config, only_backbone)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        raise ValueError(
            f"{name} describes a network that cannot be built ({utils.printable(error)}); is it damaged?"
        ) from None


def config_of(checkpoint: Mapping[str, Any], **overrides: Any) -> Config:
    """The settings of a checkpoint, with its names of classes. overrides: settings to change.

    Raises: ValueError as Config.from_dict.
    """
    names = {"CLASS_NAMES": checkpoint["class_names"], "CATEGORY_IDS": checkpoint["category_ids"]}
    return Config.from_dict({**checkpoint["config"], **names}, **overrides)


def check_values(
    file: str | Path,
    tensors: Mapping[str, Any],
    shown_names: Mapping[str, str] = MappingProxyType({}),
    integers: bool = False,
) -> None:
    """Raises ValueError unless all are dense, floating tensors of finite numbers, and no variance is negative.

    file: what the message says that the tensors are from.
    shown_names: what the message calls a tensor, by name, where this is not the name.
    integers: allow integers too, such as a backbone of one's own may count batches with.
    """
    for name, tensor in tensors.items():
        place = f"{file}: tensor {utils.printable(shown_names.get(name, name), 100)}"
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{place} is {kind_of(tensor)}, not a tensor")
        is_number = tensor.dtype in _FLOATING or (integers and tensor.dtype in _INTEGERS)
        if tensor.layout != torch.strided or tensor.device.type == "meta" or not is_number:
            raise ValueError(f"{place} is {tensor.dtype}, {tensor.layout}, where weights are dense and floating")
        if tensor.numel() == 0:
            raise ValueError(f"{place} has shape {list(tensor.shape)} and so no numbers")
        if not torch.isfinite(tensor.sum()) and (bad := int((~torch.isfinite(tensor)).sum())):
            raise ValueError(
                f"{place} has {bad} of {tensor.numel()} values that are NaN or infinite; the training diverged or the "
                "file is damaged"
            )
        if tensor.dtype == torch.float64 and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{place} has values beyond the range of float32; the training diverged?")
        if name.endswith(".running_var") and float(tensor.min()) < 0:
            raise ValueError(f"{place} is a variance and has negative values, down to {float(tensor.min()):g}")


_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def match_to_network(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], title: str) -> None:
    """Raises a ValueError that begins with title and lists what differs, unless names and shapes are a network's."""
    problems = [f"missing: {name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    problems += [
        f"not of this model: {utils.printable(name, 100)} {list(tensors[name].shape)}"
        for name in tensors
        if name not in shapes
    ]
    problems += [
        f"{name} is {list(tensors[name].shape)}, the model's {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{title}:\n  " + "\n  ".join(problems[:20]) + more)


def is_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a backbone and nothing else."""
    return all(name.startswith("backbone.") for name in checkpoint["model"])


def describe(checkpoint: Mapping[str, Any]) -> str:
    """A few lines for people: where a checkpoint comes from and what it is."""
    config, tensors = checkpoint["config"], checkpoint["model"]
    names = [name for name in (checkpoint["class_names"] or [])[1:] if name != "N/A"]
    heads = "MaskIoU head" if config["USE_MASKIOU_HEAD"] else "no MaskIoU head"
    if is_backbone(checkpoint):
        heads = "the backbone alone"
    numbers = ("MEAN_PIXEL", "STD_PIXEL")
    pixels = " / ".join("(" + ", ".join(f"{value:g}" for value in config[name]) + ")" for name in numbers)
    lines = {
        "source": utils.printable(checkpoint["source"]),
        "dialect": utils.printable(checkpoint["dialect"]),
        "backbone": f"{config['BACKBONE']}, {config['BACKBONE_STYLE']} style; {heads}",
        "pixels": f"{pixels}, mean / std in RGB",
        "classes": f"{len(names)}: {utils.listed(map(utils.printable, names), 8)}" if names else "none",
        "weights": f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers",
    }
    return "\n".join(f"{name:11} {text}" for name, text in lines.items())


############################################################
#  Making and writing
############################################################


def make_checkpoint(config: Config, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The contents of a checkpoint. Tensors are not copied unless their form requires it; see _storable."""
    plain = config.to_dict()
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": plain,
        "dialect": config.DIALECT,
        "class_names": plain["CLASS_NAMES"],
        "category_ids": plain["CATEGORY_IDS"],
        "source": source,
        "model": {name: _storable(tensor) for name, tensor in tensors.items()},
    }


def _storable(tensor: Tensor) -> Tensor:
    """On the CPU, float32 if floating, contiguous, and alone in its storage: torch.save writes storages as a whole."""
    tensor = tensor.detach().cpu()
    tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def halved(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of half the bytes: matrices and filters are float16, which a network reads as float32 again.

    Vectors stay as they are: they are few, and variances may be beyond float16.

    Raises: ValueError for weights beyond float16.
    """
    tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in checkpoint["model"].items()}
    beyond = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise ValueError(f"--half: {utils.listed(beyond)} has numbers beyond 65504, the most that float16 can hold")
    return {**checkpoint, "model": tensors}


def with_settings(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], network_shapes: NetworkShapes
) -> dict[str, Any]:
    """A checkpoint with other settings of Config, such as detection shall have by default. One that is halved stays so.

    Raises: ValueError for settings of a network that the weights do not fit.
    """
    config, tensors = Config.from_dict(checkpoint["config"], **settings), checkpoint["model"]
    title = f"--set {', '.join(settings)}: the weights are of another network"
    match_to_network(tensors, network_shapes(config, is_backbone(checkpoint)), title)
    changed = make_checkpoint(config, checkpoint["source"], tensors)
    halves = {name: tensor.half() for name, tensor in changed["model"].items() if tensors[name].dtype == torch.float16}
    return {**changed, "model": {**changed["model"], **halves}}


def write_checkpoint(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint, complete or not at all. Its folder must exist.

    Raises: FileNotFoundError without the folder; OSError that names the file and the room that it needs, if the disk
        refuses. A file that existed before stays as it was.
    """
    disk_errors: list[OSError] = []
    try:
        runtime.write_atomically(path, lambda file: torch.save(dict(contents), _WatchedFile(file, disk_errors)))
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else disk_errors[0] if disk_errors else None
        if cause is None:
            raise
        try:
            free = f"{shutil.disk_usage(Path(path).parent).free / 1e6:,.0f} MB are free"
        except OSError:
            free = "the folder cannot be reached"
        text = (
            f"the checkpoint {path} could not be written ({cause.strerror or cause}): it needs "
            f"{size_of(contents) / 1e6:,.0f} MB, and {free}"
        )
        raise OSError(cause.errno, text) from error


class _WatchedFile:
    """A file for torch.save, which replaces errors of the disk by errors of its own: this keeps the disk's."""

    def __init__(self, file: Any, disk_errors: list[OSError]) -> None:
        self._file, self._disk_errors = file, disk_errors

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._disk_errors.append(error)
            raise

    def flush(self) -> None:
        self._file.flush()


def size_of(contents: Any) -> int:
    """Bytes of the tensors in nested dicts, lists and tuples."""
    if isinstance(contents, Tensor):
        return contents.numel() * contents.element_size()
    if isinstance(contents, Mapping):
        contents = contents.values()
    elif not isinstance(contents, list | tuple):
        return 0
    return sum(map(size_of, contents))

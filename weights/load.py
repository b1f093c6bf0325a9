"""Checkpoints by name or path, of any format, and the networks that they make."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import runtime
from config import Config
from model import MaskRCNN, network_shapes

from .checkpoint import Checkpoint, config_of, is_backbone, make_checkpoint, match_to_network, shapes_of
from .convert import UNNAMED, Report, convert
from .published import EMBEDDED, find_published, find_weights
from .source_config import NONE


def load_checkpoint(
    name_or_path: str | Path,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    eps: float | None = None,
    source_config: str | Path | None = None,
    **settings: Any,
) -> Checkpoint:
    """The contents of a checkpoint, of any format that convert reads, as one of this project: plain data, and float32
    tensors on the CPU. A published name is downloaded if it is not on this machine.

    What a foreign file does not say and was assumed is printed.

    style, class_names, eps, source_config, raises: as find_weights and convert. settings: of Config, for a foreign
    file.
    """
    checkpoint, report = load_with_report(name_or_path, style, class_names, eps, source_config, **settings)
    _print_notes(name_or_path, report)
    return checkpoint


def load_with_report(
    name_or_path: str | Path,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    eps: float | None = None,
    source_config: str | Path | None = None,
    **settings: Any,
) -> tuple[Checkpoint, Report]:
    """load_checkpoint, and what the conversion did and assumed, which is not printed."""
    checkpoint, report = _load(name_or_path, style, class_names, eps, source_config, settings)
    config, tensors = Config.from_dict(checkpoint["config"]), checkpoint["model"]
    shapes = shapes_of(config, network_shapes, is_backbone(checkpoint), str(name_or_path))
    match_to_network(tensors, shapes, f"{name_or_path} does not fit the network that its settings describe")
    names = {"class_names": checkpoint["class_names"], "category_ids": checkpoint["category_ids"]}
    return Checkpoint({**make_checkpoint(config, checkpoint["source"], tensors), **names}).named(name_or_path), report


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    style: str | None = None,
    class_names: Sequence[str] | None = None,
    adapt: Callable[[Config], Mapping[str, Any]] | None = None,
    eps: float | None = None,
    source_config: str | Path | None = None,
    **config_overrides: Any,
) -> MaskRCNN:
    """The network of a checkpoint: a path of any format, or a published name. `--model` of every command line.

    What a foreign file does not say and was assumed is printed.

    device: where to put the network; None leaves the choice to MaskRCNN.from_checkpoint.
    style, class_names, eps, source_config: as for convert.
    config_overrides: settings of Config that replace the checkpoint's.
    adapt: a function that is given all settings, with these replaced, and returns further ones to replace.

    Raises: as find_weights, convert and adapt; ValueError for weights of a backbone alone, which can only start a
        training.
    """
    name = str(name_or_path)
    if name == "imagenet" and not Path(name).is_file():
        raise ValueError("model imagenet is a backbone alone: training can start from it, detection cannot")
    checkpoint, report = _load(name_or_path, style, class_names, eps, source_config, config_overrides)
    if is_backbone(checkpoint):
        raise ValueError(f"{name} is a backbone alone: training can start from it, detection cannot")
    _print_notes(name_or_path, report)
    if adapt is not None:
        config_overrides = {**config_overrides, **adapt(config_of(checkpoint, **config_overrides))}
    return MaskRCNN.from_checkpoint(checkpoint, device, **config_overrides)


def _print_notes(name_or_path: str | Path, report: Report) -> None:
    """Print what a conversion assumed and what configured it, in the first process only."""
    if report.notes() and runtime.rank() == 0:
        print("\n".join([f"{name_or_path} is of {report.title.partition(': ')[2]}", *report.notes()]))


def _load(
    name_or_path: str | Path,
    style: str | None,
    class_names: Sequence[str] | None,
    eps: float | None,
    source_config: str | Path | None,
    settings: Mapping[str, Any],
) -> tuple[Checkpoint, Report]:
    """The file of a name or path, converted. Nobody has matched a checkpoint of this project to its network yet."""
    published, path = find_published(name_or_path), find_weights(name_or_path)
    style, known = style or (published.style if published else None), dict(published.detection if published else {})
    if source_config is None and path != Path(name_or_path).expanduser():
        source_config = NONE  # what lies in the folder of downloads belongs to something else
    options = {"settings": {**known, **settings}, "source_config": source_config}
    checkpoint, report = convert(path, network_shapes, style, class_names, eps, **options)
    if published is not None:  # known, not assumed, but for names of classes that nobody gave
        report.assumed[:] = [note for note in report.assumed if note.startswith(UNNAMED)]
        own = {name: value for name, value in known.items() if name not in settings and name != "CLASS_NAMES"}
        if own:
            checkpoint = Checkpoint({**checkpoint, "config": Config.from_dict(checkpoint["config"], **own).to_dict()})
    if path == EMBEDDED.get(str(name_or_path)):  # its file says "trained from nothing", which tells a user little
        source = f"{name_or_path}, trained by this project (docs/results.md)"
        checkpoint = Checkpoint({**checkpoint, "source": source})
    return checkpoint.named(name_or_path), report

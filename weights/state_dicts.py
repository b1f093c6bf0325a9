"""The weights among the contents of a file, under the names that the model's code gave them.

Training code wraps a state dict in other dicts, and its names in the names of wrappers. Both are taken off here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import utils

from .pickles import kind_of

# Keys under which training code keeps a state dict, the first that is there counts. DeepSpeed has "module", Detectron 1
# "blobs".
_KEYS = ("state_dict", "model", "model_state_dict", "network", "net", "weights", "module", "blobs")
# Wrappers whose names may stand anywhere in a tensor's name: torch.compile, fully sharded training, ...
_INSIDE = re.compile(r"(^|\.)(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
# Wrappers whose names count only where all tensors have them, because they are words that a model may use itself:
# DistributedDataParallel and AveragedModel, Lightning's attribute, ...
_PREFIXES = ("module.", "model.", "state_dict.", "network.", "net.", "detector.")
_DEEPEST = 5  # dicts inside each other


class StateDict(NamedTuple):
    """tensors: by name. dropped: what else the file has. notes: what was taken off the names, for people."""

    tensors: dict[str, Tensor]
    dropped: list[str]
    notes: list[str]


def find_state_dict(path: Path, contents: Mapping[str, Any]) -> StateDict:
    """The weights among the contents of a file.

    What lies beside the weights is dropped: averages, as torch's AveragedModel and mmdetection's EMAHook store them
    (n_averaged, ema_backbone_conv1_weight), and the momentum of Caffe2's optimiser (conv1_w_momentum).

    Raises: ValueError if there are no weights.
    """
    dropped: list[str] = []
    for _ in range(_DEEPEST):
        key = next((key for key in _KEYS if isinstance(contents.get(key), Mapping)), None)
        if key is None:
            break
        dropped += [utils.printable(name, 100) for name in contents if name != key]
        contents = contents[key]
    _check_state_dict(path, contents)
    tensors = {name: value for name, value in contents.items() if not _is_no_weight(name)}
    dropped += [name for name in contents if name not in tensors]
    notes = []
    inside = sorted({match[2] for name in tensors for match in _INSIDE.finditer(name)})
    if inside:
        tensors = _renamed(path, tensors, {name: _INSIDE.sub("", name).removeprefix(".") for name in tensors})
        notes.append(f"without {utils.listed(inside)}")
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        notes.append(f"without the prefix {prefix}")
    if "" in tensors:
        raise ValueError(f"{path} has a tensor without a name; was it made by torch.save(model.state_dict(), ...)?")
    return StateDict(tensors, dropped, notes)


def _is_no_weight(name: str) -> bool:
    ends = name == "n_averaged" or name.endswith((".n_averaged", "_momentum"))
    return ends or re.match(r"(module\.|model\.)*ema_", name) is not None


def _renamed(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under other names. Raises: ValueError for two of the same name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if names[name] in renamed:
            raise ValueError(
                f"{path} has two tensors {utils.printable(names[name])}, one of them as {utils.printable(name)}"
            )
        renamed[names[name]] = tensor
    return renamed


def _check_state_dict(path: Path, contents: Mapping[Any, Any]) -> None:
    """Raises ValueError unless all keys are names and all values tensors."""
    is_right = lambda name, value: isinstance(name, str) and isinstance(value, Tensor)  # noqa: E731
    wrong = [
        f"{utils.printable(name, 60)} is {kind_of(value)}" if isinstance(name, str) else f"a name is {kind_of(name)}"
        for name, value in contents.items()
        if not is_right(name, value)
    ]
    if contents and not wrong:
        return
    hint = ""
    if "param_groups" in contents or (contents.keys() & {"optimizer", "optimizer_state_dict"}):
        hint = ". It has the state of an optimiser; the weights must be in another file"
    raise ValueError(
        f"{path} has no state dict: a dict of tensors, alone or under {', '.join(_KEYS)}; "
        f"{utils.listed(wrong, 5) or 'it is empty'}{hint}"
    )

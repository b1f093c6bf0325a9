"""Keras' HDF5 files of weights, read as data: nothing outside of the file, nothing larger than the file can hold."""

import math
import re
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

import utils

from .torch_files import Refused

# A data set may be larger than its file if it is compressed or holds only zeros. No layer of the family has more.
_LARGEST_UNPACKED = 1 << 28  # bytes
_LARGEST_SUM = 1 << 30  # bytes of all data sets beyond the size of the file
_MOST_NAMES = 100_000  # of layers, or of the weights of one


def read_keras(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a Keras HDF5 file in torch's layout, and the names of other things in the file.

    Returns: {"<layer>.<leaf>": tensor}, [out, in, y, x] of a convolution, [in, out, y, x] of a transposed one; names.
    Raises: ValueError for HDF5 that is damaged or not Keras weights.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file)
    except Refused as error:
        raise ValueError(f"{path}{error}") from None
    except Exception as error:  # damage shows as any error at all
        raise ValueError(
            f"{path} is truncated or damaged; fetch it again: {utils.printable(error) or type(error).__name__}"
        ) from None


def _read(path: Path, file: h5py.File) -> tuple[dict[str, Tensor], list[str]]:
    tensors: dict[str, Tensor] = {}
    root = _stored_here(file, "model_weights") if "model_weights" in file else file
    others = [f"{name} (of model.save)" for name in file if root is not file and name != "model_weights"]
    layers = _names(root, "layer_names")
    if not layers:
        shown = utils.listed((utils.printable(name) for name in file), 5)
        raise Refused(f" is HDF5, but not Keras weights: no layer_names, but {shown}; is it of Keras 3?")
    bytes_left = path.stat().st_size + _LARGEST_SUM
    for layer in layers:
        for weight in _names(_stored_here(root, layer), "weight_names"):
            name = _keras_name(layer, weight)
            if name in tensors:
                shown = utils.printable(name), utils.printable(layer)
                raise Refused(f" has two weights {shown[0]}, the second in group {shown[1]}")
            dataset = _checked(path, _stored_here(root, f"{layer}/{weight}"))
            bytes_left -= dataset.nbytes
            if bytes_left < 0:
                raise Refused(": its data sets claim much more memory than the file has bytes; it is damaged")
            tensors[name] = _in_torchs_layout(dataset)
    return tensors, others


def _names(group: h5py.Group, name: str) -> list[str]:
    """A list of names, bytes or str. Where it exceeds HDF5's 64 KB, Keras splits it into name0, name1, ..."""
    parts = [_attribute(group, name)] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(_attribute(group, f"{name}{len(parts)}"))
    values = [value for part in parts for value in np.asarray(part).ravel().tolist()]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _attribute(group: h5py.Group, name: str) -> np.ndarray:
    """An attribute, of which HDF5 would believe any size."""
    attribute = group.attrs.get_id(name)
    count = math.prod(attribute.shape or (0,))
    if count > _MOST_NAMES or count * attribute.dtype.itemsize > _LARGEST_UNPACKED:
        raise Refused(f": {name} claims {count:,} names, more than any model has; it is damaged")
    return group.attrs[name]


def _keras_name(layer: str, weight: str) -> str:
    """conv1.kernel, from group conv1 and weight conv1_1/kernel:0. In rpn_model, only the weight names its layer."""
    *scopes, leaf = weight.split(":")[0].split("/")
    if layer == "rpn_model" and scopes:
        layer = re.sub(r"_\d+$", "", scopes[-1])
    return f"{layer}.{leaf}"


def _stored_here(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The object of a name below a group. HDF5 can point to other files and places; weights never do.

    Raises: KeyError without such an object; Refused if any part of the name is a link.
    """
    for part in filter(None, name.split("/")):
        if not isinstance(group, h5py.Group) or group.get(part, getlink=True) is None:
            raise KeyError(f"no {part!r} in {group.name}")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            shown = utils.printable(f"{group.name}/{part}")
            raise Refused(
                f": {shown} is a link to another place or file, which was not followed. Weights are stored in the file "
                "itself; was it made to read other files?"
            )
        group = group[part]
    return group


def _checked(path: Path, dataset: h5py.Group | h5py.Dataset) -> h5py.Dataset:
    """A data set of numbers that the file itself holds. Raises: Refused for others."""
    shown = utils.printable(dataset.name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f" or dataset.shape is None:
        kind = dataset.dtype if isinstance(dataset, h5py.Dataset) else "a group"
        raise Refused(f": {shown} holds {utils.printable(kind)}, where weights are floating")
    if dataset.external or dataset.is_virtual:
        raise Refused(
            f": the numbers of {shown} are stored in other files, which were not opened. Weights are stored in the "
            "file itself; was it made to read other files?"
        )
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size > max(path.stat().st_size, _LARGEST_UNPACKED):
        raise Refused(
            f": {shown} has the shape {list(dataset.shape)}, {size / 1e6:,.0f} MB, which is more than the file can "
            "hold; it is damaged"
        )
    return dataset


def _in_torchs_layout(dataset: h5py.Dataset) -> Tensor:
    tensor = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if tensor.dim() == 2 else tensor

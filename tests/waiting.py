"""Counts how often the CPU would wait for a GPU, on a machine without one.

    with counted() as waits:               where the CPU waited, a line each
        model = model_on_device(model)     as if its weights were on a GPU
        ...

A tensor on DEVICE is a Distant one: torch and the code take it for a tensor of another device (of the type "meta"; not
"cpu", so the branches for a GPU run), while the values are computed on the CPU. So every value that goes from one
device to the other is seen, by whatever call: it has to pass a Counter.

What waits: a value that comes to the CPU; a tensor that goes from the CPU to DEVICE, unless it lies in memory that
runtime.empty_for_copies gave, and is copied with non_blocking; and the operators of _SIZES and _READERS, which look at
the values of tensors to know the shape of their result, or to check them.

What it cannot see: waits inside of kernels of torch that are not in these lists; torch.cuda.synchronize(), memory
that runs out, and the first use of a kernel, for which CUDA waits; what a package's own CUDA kernels do (_READERS has
the one that waits; tests/test_cuda_sources.py counts in the other).
"""

import contextlib
import functools
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import runtime

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parent.parent
# Operators whose results have a shape that depends on values.
_SIZES = {
    *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("repeat_interleave", "bincount", "histc", "argwhere", "masked_scatter"),
}
# Operators that read values, or may raise an error that depends on them.
_READERS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "_assert_async", "multinomial"),
    *("batched_nms", "linalg_inv_ex", "linalg_cholesky_ex", "_linalg_check_errors", "ctc_loss", "embedding_renorm_"),
}


class Distant(Tensor):
    """A tensor that says that it is on DEVICE. `values` is on the CPU, and only Counter reads it."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Distant":
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )

    def __init__(self, values: Tensor) -> None:
        self.values, self.is_constant = values, False

    def __repr__(self) -> str:
        return f"Distant({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of waiting.DEVICE, outside of waiting.counted()")


class Counter(TorchDispatchMode):
    """Runs operators on Distant tensors, and notes those that make the CPU wait.

    Operators of _SIZES and _READERS count on tensors of the CPU, too: tests of CUDA kernels run on these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.pinned: list[Tensor] = []  # memory that counts as pinned; kept, so that no other tensor comes to lie there

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        far = {id(leaf.values): leaf for leaf in tensors if isinstance(leaf, Distant)}
        for leaf in tensors:
            assert leaf.device.type == "cpu" or isinstance(leaf, Distant), (
                f"{func} got a tensor that came to {DEVICE} unseen, as a list does that is used as an index"
            )
        name = func._schema.name.split("::")[1]
        if name == "is_pinned":
            return self._is_pinned(args[0])
        goes_to = kwargs.get("device")
        is_far = bool(far) if goes_to is None else torch.device(goes_to) == DEVICE
        if name == "copy_":
            is_far = isinstance(args[0], Distant)
        if self._waits(name, args, kwargs, bool(far), is_far, tensors):
            self.waits.append(f"{name} at {_place()}")
        if goes_to is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "_to_copy" and goes_to is not None:
            kwargs["non_blocking"] = False
        out = func(*tree_map(_near, args), **tree_map(_near, kwargs))

        def given_back(value: Any) -> Any:
            if not is_far or not isinstance(value, Tensor):
                return value
            result = far.get(id(value))
            if result is None:
                result = Distant(value)
            result.is_constant = name == "scalar_tensor"
            return result

        return tree_map(given_back, out)

    def _waits(self, name: str, args, kwargs, from_far: bool, to_far: bool, tensors: Sequence[Tensor]) -> bool:
        if name in _SIZES or name in _READERS:
            return True
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"):
            indices = [index for index in args[1] if index is not None]
            by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            # A number that is assigned becomes a tensor of the CPU, and is copied.
            number = len(args) > 2 and getattr(args[2], "is_constant", False)
            return by_mask or number or (from_far and not all(isinstance(tensor, Distant) for tensor in tensors))
        if name == "copy_" and from_far:
            source = args[1]
            pinned = not isinstance(source, Distant) and self._is_pinned(source) and kwargs.get("non_blocking")
            return not pinned and not (to_far and isinstance(source, Distant))
        if name == "_to_copy" and from_far != to_far:
            return not (to_far and kwargs.get("non_blocking") and self._is_pinned(args[0]))
        if from_far and name != "scalar_tensor":  # tensors of the CPU without dimensions are arguments of kernels
            return any(tensor.ndim > 0 and not isinstance(tensor, Distant) for tensor in tensors)
        return False

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor.untyped_storage().data_ptr() == memory.data_ptr() for memory in self.pinned)

    def empty_for_copies(self, device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        memory = torch.empty(tuple(shape), dtype=dtype)
        if device == DEVICE:
            self.pinned.append(memory)
        return memory


def _near(value: Any) -> Any:
    return value.values if isinstance(value, Distant) else value


def _place() -> str:
    """The innermost line of the project's own code that led here."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path != Path(__file__).resolve() and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}: {frame.line}"
    return "?"


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """A block in which operators run on tensors of DEVICE, too. Gives a list that gets a line for each wait."""
    counter, autocast, is_autocast_enabled = Counter(), torch.autocast, torch.is_autocast_enabled
    tensor, as_tensor = torch.tensor, torch.as_tensor

    def no_autocast(device_type: str, *arguments: Any, **options: Any) -> Any:
        return contextlib.nullcontext() if device_type == DEVICE.type else autocast(device_type, *arguments, **options)

    def autocasts(device_type: str) -> bool:
        return device_type != DEVICE.type and is_autocast_enabled(device_type)

    # Of numbers, torch makes tensors without values on "meta". On a GPU they are copied there.
    def of_numbers(make, data: Any, dtype=None, device=None, **options: Any) -> Tensor:
        made = make(data, dtype=dtype, **options)
        return made if device is None else made.to(device)

    def new_tensor(like: Tensor, data: Any, dtype=None, device=None, **options: Any) -> Tensor:
        return of_numbers(tensor, data, dtype or like.dtype, device or like.device, **options)

    # It takes Distant tensors for those of torch.compile. On a GPU it copies each constant once.
    @functools.cache
    def kept_constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return of_numbers(tensor, values, dtype, device)

    def constant(values: Sequence[float], like: Tensor) -> Tensor:
        return kept_constant(tuple(values), like.dtype, like.device)

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", no_autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", autocasts))
        stack.enter_context(patch.object(torch, "tensor", functools.partial(of_numbers, tensor)))
        stack.enter_context(patch.object(torch, "as_tensor", functools.partial(of_numbers, as_tensor)))
        stack.enter_context(patch.object(Tensor, "new_tensor", new_tensor))
        stack.enter_context(patch.object(runtime, "constant", constant))
        stack.enter_context(patch.object(runtime, "empty_for_copies", counter.empty_for_copies))
        stack.enter_context(patch.object(runtime, "uses_pinned_memory", lambda device: device == DEVICE))
        stack.enter_context(counter)
        yield counter.waits


def on_device(tensors: Any) -> Any:
    """Tensors, in lists or tuples too, on DEVICE. Nothing waits for that."""
    return tree_map(lambda value: Distant(value.detach()) if isinstance(value, Tensor) else value, tensors)


def model_on_device(model: nn.Module) -> nn.Module:
    """The model, whose weights are on DEVICE from now on."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(on_device(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = on_device(buffer)
    return model

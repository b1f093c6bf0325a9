"""Pickles of torch.save, read as data: plain containers, numbers, texts, and where each tensor lies.

torch.load(weights_only=True) runs no code either. But it believes sizes: a tensor that claims more than its storage has
makes the storage grow. And its list of harmless names belongs to the whole process, so threads that load at the same
time disturb each other. Here every name in a pickle stands for a builder of this file, which only notes what it is
told; weights/torch_files.py then compares the notes with the file, and makes the tensors.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import utils


class Storage(NamedTuple):
    """A storage that the pickle names. The file has its numbers elsewhere."""

    key: str
    dtype: torch.dtype
    count: int  # numbers in it, as the pickle claims


class StoredTensor:
    """A tensor that the pickle describes."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor with a state")


class Ignored:
    """Takes the place of an object that is no weight, such as a log. It takes all arguments and does nothing."""

    kind = "an object"

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Forbidden(Exception):
    """The pickle names an object that could run code. The argument is the name."""


class _Dict(dict):
    """An OrderedDict or Counter. Attributes, such as the _metadata of a state dict, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Builder:
    """A function that a pickle may call. A pickle cannot change it, because it has no state."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


class _StorageType(NamedTuple):
    """The class of a storage, such as torch.FloatStorage."""

    dtype: torch.dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a class with a state")


############################################################
#  What the names in a pickle stand for
############################################################


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64 or not all(type(value) is int for value in values):
        raise pickle.UnpicklingError("a shape is no list of numbers")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2. rest: requires_grad, hooks, metadata."""
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise pickle.UnpicklingError("a tensor has no storage")
    return StoredTensor(storage, offset, _whole_numbers(size), _whole_numbers(stride), storage.dtype)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor_v3, for types of numbers that have no class of storages: they lie in bytes."""
    tensor = _tensor(storage, offset, size, stride)
    if len(rest) < 3 or not isinstance(rest[2], torch.dtype) or storage.dtype != torch.uint8:
        raise pickle.UnpicklingError("a tensor has no type of numbers")
    tensor.dtype = rest[2]
    return tensor


def _ignored(kind: str) -> _Builder:
    def build(*arguments: Any) -> Ignored:
        thing = Ignored()
        thing.kind = kind
        return thing

    return _Builder(build)


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, by which protocol 2 stores bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


_STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "Untyped": torch.uint8,
}
_NAMES: dict[str, Any] = {
    **{f"torch._utils._rebuild_{name}": _Builder(_tensor) for name in ("tensor", "tensor_v2")},
    "torch._utils._rebuild_tensor_v3": _Builder(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": _Builder(lambda data, *rest: data),
    "torch._utils._rebuild_parameter_with_state": _Builder(lambda data, *rest: data),
    "torch._tensor._rebuild_from_type_v2": _Builder(lambda function, kind, arguments, state: function(*arguments)),
    "torch._utils._rebuild_qtensor": _ignored("a quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _ignored("a sparse tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _ignored("a meta tensor, which has no numbers"),
    "torch._utils._rebuild_nested_tensor": _ignored("a nested tensor"),
    **{
        f"torch._utils._rebuild_{name}": _ignored("a tensor of another device or library")
        for name in ("wrapper_subclass", "device_tensor_from_numpy", "device_tensor_from_cpu_tensor")
    },
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    **{f"torch.cuda.{name}Storage": _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    "torch.storage.UntypedStorage": _StorageType(torch.uint8),
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    **{str(value): Ignored for value in vars(torch).values() if isinstance(value, torch.qscheme)},
    "torch.Size": _Builder(_whole_numbers),
    "torch.serialization._get_layout": _ignored("a layout"),
    "torch.device": _ignored("a device"),
    **{f"collections.{name}": _Dict for name in ("OrderedDict", "Counter")},
    "builtins.set": _Builder(lambda items=(): list(items)),
    "builtins.complex": _Builder(lambda *parts: complex(*parts)),
    "builtins.bytearray": _Builder(lambda *arguments: b"".join(filter(lambda part: type(part) is bytes, arguments))),
    "_codecs.encode": _Builder(_bytes),
    # Classes of tensors stand beside the tensors; mmengine's logs, NumPy's numbers and the arguments of torchvision's
    # training script consist of the rest.
    **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"), Ignored),
    **dict.fromkeys(("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"), Ignored),
    **{f"numpy.{core}.multiarray.{name}": Ignored for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    **dict.fromkeys(("numpy.dtype", "numpy.ndarray", "argparse.Namespace"), Ignored),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, storages: list[Storage]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # the latter in Python 2
        if full_name not in _NAMES:
            raise Forbidden(utils.printable(full_name))
        return _NAMES[full_name]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of ("storage", class, key, device, count[, view])."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("no storage, where one is named")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or type(count) is not int or count < 0 or view not in ([], [None]):
            raise pickle.UnpicklingError("a storage of unknown kind")
        if not isinstance(key, str | int) or len(str(key)) > 100:
            raise pickle.UnpicklingError("a storage without a name")
        self._storages.append(Storage(str(key), kind.dtype, count))
        return self._storages[-1]


############################################################
#  Reading
############################################################

_KINDS = {type(None): "None", bool: "a truth value", int: "a number", float: "a number", str: "a text", bytes: "bytes"}


def kind_of(value: Any) -> str:
    """What a value from a file is, in a few words, whatever it holds."""
    if isinstance(value, Ignored):
        return value.kind
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


_LARGEST_TUPLES = 10_000_000  # values in tuples, each time that it is named, of all tuples; a file has some thousands


class _Tuples:
    """Counts the values in the tuples of a pickle, with those in tuples inside.

    A tuple may be a key of a dict, and then all of that is looked at. A pickle of 100 bytes can name a tuple twice in
    the next one, 40 times, which would take days.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # the number of values of each object, 1 if it is no tuple; None: a mark
        self._memo: dict[int, int | None] = {}
        self._total = 0

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """The next instruction. Raises: pickle.UnpicklingError for tuples that are too large."""
        name = opcode.name
        if name.endswith("PUT") or name == "MEMOIZE":
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1] if self._stack else 1
            return
        values = self._taken(opcode.stack_before)
        size = 1
        if name.endswith("GET"):
            size = self._memo.get(argument) or 1
        elif name == "DUP":
            size = sum(values)
        elif name.startswith("TUPLE") or name in ("REDUCE", "BUILD"):  # some calls return what they are given
            size += sum(values)
        self._total += size if size > 1 else 0
        if self._total > _LARGEST_TUPLES:
            raise pickle.UnpicklingError("its tuples lie in each other so often that nobody could compare them")
        self._stack += [None if kind is pickletools.markobject else size for kind in opcode.stack_after]

    def _taken(self, kinds: list[Any]) -> list[int]:
        """The numbers of the values that an instruction takes off the stack."""
        values: list[int] = []
        if pickletools.markobject in kinds:
            while self._stack and (value := self._stack.pop()) is not None:
                values.append(value)
            kinds = kinds[: kinds.index(pickletools.markobject)]
        for _ in kinds[: len(self._stack)]:
            values.append(self._stack.pop() or 1)
        return values


def end_of_pickle(file: Any) -> int:
    """The position after the pickle that begins at a file's position, after a check of what its instructions claim.

    file: has read, readline and tell, such as io.BytesIO and mmap.

    Raises: ValueError for what is no pickle; pickle.UnpicklingError for one that would take memory for nothing.
    """
    start, count, opcode, position = file.tell(), 0, None, 0
    tuples = _Tuples()
    for opcode, argument, position in pickletools.genops(file):  # noqa: B007
        count += 1
        tuples.follow(opcode, argument)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= count:
            raise pickle.UnpicklingError(f"instruction {count} of the pickle claims {argument} objects")
    if count == 0:
        raise pickle.UnpicklingError("no pickle")
    return max(start, position) + 1  # of STOP, the last one, a single byte


def read_pickle(data: bytes) -> tuple[Any, list[Storage]]:
    """What a pickle holds: plain containers, in which each tensor is a StoredTensor; and the storages that it names.

    Raises: Forbidden; and any other error for damage.
    """
    end_of_pickle(io.BytesIO(data))
    storages: list[Storage] = []
    return _Unpickler(data, storages).load(), storages


_DEEPEST = 50  # containers inside each other; published files have up to 8


def resolve(value: Any, tensor_of: Callable[[Any], Any], note: type = StoredTensor) -> Any:
    """A copy of what read_pickle returned, of dicts, lists and tuples alone, with tensors in place of their notes.

    note: the class of the notes, which tensor_of is given.

    Raises: pickle.UnpicklingError for containers that hold themselves, or lie too deep in each other.
    """
    copies: dict[int, Any] = {}
    originals = []  # kept, so that no id is given twice
    running: set[int] = set()

    def copy(value: Any, depth: int) -> Any:
        if isinstance(value, note | dict | list | tuple):
            if id(value) in copies:
                return copies[id(value)]
            if depth > _DEEPEST or id(value) in running:
                raise pickle.UnpicklingError(f"containers hold themselves, or more than {_DEEPEST} lie in each other")
            running.add(id(value))
            copies[id(value)] = _copied(value, depth)
            originals.append(value)
            running.discard(id(value))
            return copies[id(value)]
        is_plain = value is None or isinstance(
            value, bool | int | float | complex | str | bytes | torch.dtype | Ignored
        )
        return value if is_plain else Ignored()

    def _copied(value: Any, depth: int) -> Any:
        if isinstance(value, Storage | _StorageType):
            return Ignored()
        if isinstance(value, note):
            return tensor_of(value)
        if isinstance(value, dict):
            return {key if isinstance(key, str | int) else copy(key, depth + 1): copy(item, depth + 1)
                    for key, item in value.items()}  # fmt: skip
        items = [copy(item, depth + 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items

    return copy(value, 0)

"""The process and its machine: files, memory, devices, ranks, signals, the code's revision, random states, locks.

Nothing here knows images or networks, so every other file may use it.
"""

import contextlib
import ctypes
import errno
import functools
import gc
import hashlib
import logging
import math
import os
import platform
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)

############################################################
#  Files
############################################################


# Of files that are not finished yet: .NAME.MACHINE-PROCESS-RANDOM.tmp; older releases wrote no machine and process.
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-)?[0-9a-f]{16}\.tmp", re.DOTALL
)
# An unfinished file of another machine counts as left over after this time without a change.
LEFTOVER_SECONDS = 24 * 3600.0
_MANY_FILES = 1000  # a folder with more of them is searched for left-over files only once
_leftovers_of: dict[str, dict[str, list[str]]] = {}  # by folder, for folders of many files; then by name


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file completely or not at all: when the process dies meanwhile, the old file is still there.

    A process that dies leaves an unfinished file beside it. The next call for the same path removes that.

    path: the file, or a link to it. Its directory must exist.
    write: writes to the binary file that it is given, as lambda file: torch.save(state, file) does.

    Raises: whatever write raises; the old file then stays. OSError that names path if the disk is full.
        FileNotFoundError without the directory.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {path.parent}")
    remove_leftovers(path)
    temporary = temporary_path(path)
    try:
        with errors_name(path):
            with temporary.open("xb") as file:
                write(_ThroughPython(file))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


class _ThroughPython:
    """A file without its descriptor: Pillow would write into that itself, and not say why it cannot."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if name == "fileno":
            raise AttributeError("this file has no descriptor")
        return getattr(self._file, name)


@contextlib.contextmanager
def errors_name(path: str | os.PathLike) -> Iterator[None]:
    """A context whose errors of the disk name a file: a write to a full disk does not say which file it was for."""
    try:
        yield
    except OSError as error:
        is_unnamed = error.filename is None and str(path) not in str(error)
        is_temporary = str(error.filename).startswith(str(_beginning(Path(path))))
        if error.errno is not None and (is_unnamed or is_temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def temporary_path(path: Path) -> Path:
    """A new name beside a path, for a file or folder that is not finished. It says who makes it."""
    return Path(f"{_beginning(path)}{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")


def _beginning(path: Path) -> Path:
    return path.with_name(f".{_short_name(path)}.")


def _short_name(path: Path) -> str:
    """The beginning of a file's name: a name can have at most 255 bytes, and the temporary one is longer."""
    return path.name.encode(errors="ignore")[:100].decode(errors="ignore")


def remove_leftovers(path: Path) -> None:
    """Remove what writers of a path that no longer live have left beside it.

    On this machine, a writer no longer lives if it has no process. Of other machines that share the folder nobody
    knows; their files are removed if nothing was written to them for LEFTOVER_SECONDS.
    """
    folder = str(path.parent)
    leftovers = _leftovers_of.get(folder)
    if leftovers is None:
        leftovers = _find_leftovers(folder)
    for file in leftovers.pop(_short_name(path), ()):
        if os.path.isdir(file) and not os.path.islink(file):
            shutil.rmtree(file, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(file)


def _find_leftovers(folder: str) -> dict[str, list[str]]:
    """The left-over files in a folder, by the short names of their paths."""
    leftovers: dict[str, list[str]] = {}
    count = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and _is_left_over(entry, match):
                leftovers.setdefault(match["name"], []).append(entry.path)
    if count > _MANY_FILES:
        _leftovers_of[folder] = leftovers
    return leftovers


def _is_left_over(entry: os.DirEntry, match: re.Match) -> bool:
    if match["machine"] == _machine() and os.name != "nt":  # os.kill of Windows would end the process
        try:
            os.kill(int(match["process"]), 0)
        except ProcessLookupError:
            return True
        except OSError:  # it lives, and is another user's
            return False
        return False
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_SECONDS
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    """8 hexadecimal digits for what gives processes their numbers: the machine since it was started, or a container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def open_own(path: str | os.PathLike, mode: str, buffering: int = -1) -> Any:
    """Opens a file that only this project makes, such as a part of a download. A link is not followed.

    In a folder where others can write, a link of that name could make us write into any file of the user.

    Raises: OSError that names path if it is a link, or no regular file; as open() otherwise.
    """

    def opener(name: str, flags: int) -> int:
        if os.path.islink(name):
            raise _link_error(name)
        try:
            file = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            raise (_link_error(name) if error.errno == errno.ELOOP else error) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, f"{name} is no regular file; remove it, or choose another folder")
        return file

    return open(path, mode, buffering, opener=opener)


def _link_error(path: str | os.PathLike) -> OSError:
    return OSError(
        errno.ELOOP, f"{path} is a symbolic link, which nothing of this project makes there, so it is not followed; "
        "remove the link"
    )  # fmt: skip


############################################################
#  Memory
############################################################


def keep_memory_if_told() -> None:
    """keep_memory(), if MASKSCORING_KEEP_MEMORY is 1: for work that takes more memory than is worth its time."""
    if os.environ.get("MASKSCORING_KEEP_MEMORY") == "1":
        keep_memory()


def keep_memory() -> bool:
    """Makes the C library keep large blocks that are freed, instead of returning them to the system at once.

    By default glibc maps every block of 32 MB or more anew, and the system clears it page by page. A network on a CPU
    allocates a feature map in each layer and spends a quarter of its time on this. After this call, the process keeps
    up to 2 GB of freed memory. MASKSCORING_KEEP_MEMORY=0 leaves the C library as it is. So does either of
    MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_, which set the same limits by hand.

    Returns: whether the C library keeps the blocks.
    """
    global _keeps_memory
    limits = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if os.environ.get("MASKSCORING_KEEP_MEMORY") == "0" or any(name in os.environ for name in limits):
        return False
    if _keeps_memory is None:
        libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
        _keeps_memory = libc is not None and all(libc.mallopt(*option) == 1 for option in _MALLOC_OPTIONS)
    return _keeps_memory


class _Mallinfo(ctypes.Structure):
    """The answer of glibc's mallinfo2: bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def allocated_memory() -> tuple[int, int] | None:
    """Bytes of the blocks that are in use, and of the free ones in the C library's heap, whether it keeps them or not.

    None for a C library that does not tell: glibc does since 2.33.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd, info.fordblks


def limit_kept_memory() -> None:
    """Returns freed memory to the system if the C library keeps more than KEPT_BYTES of it, after keep_memory().

    The C library's own limit counts the end of its heap alone. Images of ever other sizes leave free blocks in the
    middle, too, so that a process would grow for hours.
    """
    allocated = allocated_memory() if _keeps_memory else None
    if allocated is None:
        return
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    if (resident - of_files) * os.sysconf("SC_PAGE_SIZE") - allocated[0] > KEPT_BYTES:
        ctypes.CDLL(None).malloc_trim(0)


def return_memory() -> None:
    """Returns all freed memory to the system, for work whose memory is to stay small however long it takes.

    After keep_memory() only what is above its limit, see limit_kept_memory.
    """
    if _keeps_memory:
        limit_kept_memory()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


KEPT_BYTES = (1 << 31) - 1
_MALLOC_OPTIONS = ((-3, 1 << 29), (-1, KEPT_BYTES))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, bytes
_keeps_memory: bool | None = None  # None: keep_memory() has not been called yet


############################################################
#  Devices
############################################################


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name, if this machine has it.

    name: cpu, cuda, cuda:N or mps, in letters of any case; gpu is cuda. None: cuda if torch can use a GPU, else cpu.

    Raises: ValueError that says why the device cannot be used.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"(cpu|cuda|gpu|mps)(?::([0-9]{1,3}))?", str(name).strip().lower())
    if match is None:
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps, not {str(name)[:100]!r}")
    kind, number = match[1].replace("gpu", "cuda"), match[2]
    if kind != "cuda" and int(number or 0) > 0:
        raise ValueError(f"device {str(name)!r} cannot be used: there is one {kind}; leave the number out")
    device = torch.device(kind if number is None or kind != "cuda" else f"{kind}:{int(number)}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' cannot be used: torch finds no Apple GPU; choose cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        cause = "this torch is built without CUDA" if torch.version.cuda is None else f"torch sees {gpus} NVIDIA GPUs"
        choice = f"choose cpu or cuda:0 to cuda:{gpus - 1}" if gpus else "choose cpu"
        raise ValueError(f"device {str(name)!r} cannot be used: {cause}; {choice}")
    return device


# The kinds that training takes. MPS has no float64, which targets of masks need; detection needs none of it there, as
# tests/test_devices.py shows on a CPU. Nobody has run it on an Apple GPU yet.
TRAINING_DEVICES = ("cpu", "cuda")


def training_device(gpu_count: int) -> torch.device:
    """The device that a training without torchrun chooses. gpu_count: the setting GPU_COUNT."""
    return find_device("cpu" if gpu_count == 0 else None)


def uses_pinned_memory(device: torch.device) -> bool:
    """Whether copies to a device are faster from pinned memory of the CPU."""
    return device.type == "cuda"


def avoids_waits(device: torch.device) -> bool:
    """Whether a program should rather compute more than ask what came out: a GPU stands still while it is asked."""
    return device.type != "cpu"


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """A few numbers as a tensor of the dtype and on the device of another. They are copied to a GPU only once.

    Others share this tensor: leave it as it is.
    """
    if type(like) not in (Tensor, torch.nn.Parameter):  # tensors of torch.compile and torch.export, which have no data
        return like.new_tensor(values)
    return _kept_constant(tuple(values), like.dtype, like.device)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # usable under autograd, whoever asks first
def _kept_constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)  # waits: usable on all streams of a GPU


class Shared:
    """Tensors that are made once, on the stream of a GPU that is current then, and used on any stream."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor for tensor in tensors if tensor.is_cuda]
        if self.tensors:
            self._stream = torch.cuda.current_stream(self.tensors[0].device)
            self._made = self._stream.record_event()

    def use_here(self) -> None:
        """Call it before the current stream uses the tensors: the stream waits until they are made, and not the CPU.

        The memory of a tensor that is dropped meanwhile goes back only after what this stream has been asked to do.
        """
        if not self.tensors or torch.cuda.is_current_stream_capturing():  # before a capture, all streams are done
            return
        stream = torch.cuda.current_stream(self.tensors[0].device)
        if stream != self._stream:
            stream.wait_event(self._made)
            for tensor in self.tensors:
                tensor.record_stream(stream)


@contextlib.contextmanager
def rounding_of_products(tf32: bool, device: torch.device | str) -> Iterator[None]:
    """A block in which a GPU may round the factors of float32 products to TF32, or may not: Config.TF32.

    All threads of the process share torch's switches. Other devices have none.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    # NOTE: the newer fp32_precision makes torch.compile fail, which reads these (torch 2.13).
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = tf32
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def describe_rounding(tf32: bool, device: torch.device | str) -> str | None:
    """What is to be said of rounding_of_products; None where there is no choice."""
    if torch.device(device).type != "cuda":
        return None
    if tf32:
        return "products of float32 are rounded to TF32 on this GPU; --set TF32=False keeps all digits"
    return "products of float32 keep all digits on this GPU; --set TF32=True is faster"


def empty_for_copies(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of the CPU, not initialised, for copies to a device and from it: pinned where that makes them faster."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=uses_pinned_memory(device))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. The CPU does not wait for a GPU, which copies once its earlier work is done."""
    if device.type == "cpu":
        return tensor
    if tensor.is_pinned() or not uses_pinned_memory(device):
        return tensor.to(device, non_blocking=uses_pinned_memory(device))
    return upload(empty_for_copies(device, tensor.shape, tensor.dtype).copy_(tensor), device)


def wait_for(device: torch.device | str) -> None:
    """Waits until a device has done what was asked of it. A CPU has done it already."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device | str) -> str | None:
    """The name of a GPU; None for a CPU, and where torch does not tell."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None


def peak_memory_mb(device: torch.device | str | None = None) -> float:
    """The peak of used memory, in megabytes (10^6 bytes): of torch's tensors on a GPU, otherwise of this process.

    Returns: NaN where the system does not tell (Windows).
    """
    peak = tensor_bytes(device, peak=True)
    if peak is not None:
        return peak / 1e6
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB elsewhere


def tensor_bytes(device: torch.device | str | None, peak: bool = False) -> int | None:
    """Bytes of torch's tensors on a GPU, now or at their peak; None where torch does not count them, as on a CPU."""
    if device is None or torch.device(device).type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)


def forget_peak(device: torch.device | str) -> None:
    """Lets the peak of tensor_bytes begin anew."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


############################################################
#  Cores
############################################################

# Where control groups are mounted: version 2, that of systems which have both versions, version 1.
_UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_CPU = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")


def cpu_quota(root: str | os.PathLike = "/") -> float | None:
    """The cores whose time the control groups of this process grant it, such as 1.5; None without a limit.

    Containers and batch systems set such limits. A group also obeys the limits of those around it, so the least counts.

    root: the folder that has proc/ and sys/.
    """
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = [part for part in path.split("/") if part not in ("", "..")]
        for mount in _CPU if controllers else _UNIFIED:
            # In a container, the mounted folder may be the group itself; then the path does not exist in it.
            groups = [Path(root, mount, *inside[:depth]) for depth in range(len(inside) + 1)]
            quotas += [_quota_of(group, not controllers) for group in groups]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path, is_unified: bool) -> float | None:
    """The cores that one control group grants; None if it has no limit, or if there is no such group."""
    try:
        if is_unified:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def usable_cores(root: str | os.PathLike = "/") -> int:
    """The cores that this process may really use, at least 1: those that the system lets it run on, or fewer if
    cpu_quota() says so, rounded up. root: as of cpu_quota."""
    is_told = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def limit_threads(cores: int | None = None) -> None:
    """Lets torch and our kernels compute with at most as many threads as there are usable cores.

    More threads would only take the time from each other. OMP_NUM_THREADS counts more, if it is set.

    cores: usable_cores() by default.
    """
    cores = usable_cores() if cores is None else cores
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


############################################################
#  Processes
############################################################


def setup_distributed(device: str | None = None, timeout_minutes: float = 60) -> torch.device:
    """Joins the other processes that torchrun started, and chooses this process's device.

    device: as for find_device. Processes talk by NCCL on cuda, by gloo elsewhere.
    timeout_minutes: how long a process waits for the others. Choose more than an evaluation takes, which one process
        does alone. If a process dies, torchrun ends the others without waiting.

    Returns: cuda:LOCAL_RANK for cuda, else the device. Without torchrun there is nothing to join.
    Raises: ValueError as find_device, and for more processes than the machine has GPUs.
    """
    chosen = find_device(device)
    local = int(os.environ.get("LOCAL_RANK", 0))
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK {local} has no GPU: torch sees {torch.cuda.device_count()}; start torchrun with "
                f"--nproc_per_node={torch.cuda.device_count()}, or train on CPUs with GPU_COUNT=0"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    return chosen


def close_distributed() -> None:
    """Waits for the other processes and leaves them. Call it at the end of a program; one that fails simply ends."""
    if dist.is_initialized():
        dist.barrier()
        gc.collect()  # Ends the threads of DistributedDataParallel, which reference cycles keep alive.
        dist.destroy_process_group()


def world_size() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0. Process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_mean(tensor: Tensor) -> Tensor:
    """Mean over the processes, without a gradient. Losses are divided by such mean counts.

    DistributedDataParallel averages gradients over processes. If each process divides its sum of losses by the mean
    count, the average is the gradient that one process with the whole batch has. All processes must call this.
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone() if tensor.is_floating_point() else tensor.float()
    dist.all_reduce(total)
    return total / world_size()


def world_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place. All processes must call this."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _compute_on_one_thread() -> None:
    """Lets a process that was forked compute. OpenMP believes that its threads, which a fork does not copy, are still
    there: torch and our kernels would wait for them forever. A single thread waits for no other."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_compute_on_one_thread)


############################################################
#  Signals
############################################################


# A terminal and torchrun both pass Ctrl-C on. Signals that are this close together count as one.
REPEAT_SECONDS = 1.0


class StopSignals:
    """A context in which the first SIGINT or SIGTERM is only noted, in `received`. The second one acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only this thread may set handlers
            self._handlers = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # A forked loader ends together with the training.
            return
        if self.received is None:
            self.received, self._time = number, time.monotonic()
            name = signal.Signals(number).name
            text = f"\n{name}: finishing the current work, then saving. Repeat it to stop at once.\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())  # not print: the signal may have interrupted a print
        elif time.monotonic() - self._time > REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)


############################################################
#  The code's revision
############################################################


def git_revision(digits: int = 40) -> str | None:
    """The commit of this code, with "-dirty" if files were changed since. None without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", f"--abbrev={digits}", "--dirty"]
    command += ["--exclude=*"]  # a hash, never a tag
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


############################################################
#  Random states
############################################################


def random_states(device: torch.device | None = None) -> dict[str, Any]:
    """The random states of Python, NumPy, torch and a CUDA device, in types that torch.save keeps."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Restores the states that random_states returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device is not None and device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_all(seed: int, rank: int = 0) -> None:
    """Seeds the random numbers of Python, NumPy and torch, in each process of a distributed training differently."""
    seed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """A context in which the shared generators of Python, NumPy and torch are seeded; afterwards they go on.

    seed: at least 0. device: a CUDA device whose generator is seeded, too.
    """
    is_cuda = device is not None and device.type == "cuda"
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda_state = torch.cuda.get_rng_state(device) if is_cuda else None
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs, too
    if is_cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if is_cuda:
            torch.cuda.set_rng_state(cuda_state, device)


@contextlib.contextmanager
def random_states_kept(device: torch.device | None = None) -> Iterator[None]:
    """A context that restores the random states at its end: the training does not notice numbers drawn inside."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)


############################################################
#  Locks
############################################################


@contextlib.contextmanager
def locked_file(path: str | os.PathLike, when_busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file. The file is made if it is missing; its folder must exist.

    The system frees the lock when the process ends, also if it is killed. Processes that it forked do not hold the
    lock. A file system without locks gives the lock to everybody.

    when_busy: called once if another process or thread holds the lock. If it returns, the caller waits for the lock;
        it raises an error if the caller does not want to wait.

    Raises: OSError if path is a link, which is not followed.
    """
    if os.path.islink(path):
        raise _link_error(path)
    from filelock import FileLock, Timeout  # here: most commands lock nothing

    lock, process = FileLock(path, thread_local=False), os.getpid()
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            when_busy()
            lock.acquire()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_error(path) from error
        logger.debug("%s cannot be locked: %s", path, error)
    try:
        yield
    finally:
        if os.getpid() == process:  # a forked process must leave its parent's lock alone
            lock.release()


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Keep a folder for this process, as locked_file keeps a file. The folder is made if it is missing.

    Raises: ValueError that names the process that uses the folder. OSError if the files of the lock are links.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".lock.owner"  # not the lock file, which Windows lets nobody else read

    def refuse() -> None:
        name = ""
        with contextlib.suppress(OSError), open_own(owner, "rb") as file:
            name = "".join(filter(str.isprintable, file.read(200).decode(errors="replace")))
        raise ValueError(
            f"folder {folder} is in use by another training or evaluation ({name or 'of an unknown process'}); wait "
            "for it, stop it, or choose another folder"
        )

    with locked_file(folder / ".lock", refuse):
        with errors_name(owner), open_own(owner, "wb") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield

"""The process and its machine: ranks, signals, random states, files written whole, locks, memory, revision.

Nothing here knows of images or networks; whatever runs may use it.
"""

import contextlib
import ctypes
import gc
import logging
import os
import platform
import random
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

logger = logging.getLogger(__name__)

############################################################
#  Files
############################################################


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that, whatever happens, it is there in full or as it was before.

    path: the file; a link is followed. Its directory has to exist.
    write: is handed a binary file to write to, such as lambda file: torch.save(state, file).

    Raises: what write raises; then nothing is left behind. FileNotFoundError without the directory.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {path.parent}")
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


############################################################
#  Memory
############################################################


def keep_memory() -> bool:
    """Make the C library keep large blocks that are freed, instead of giving them back to the system at once.

    By default glibc maps every block of 32 MB or more anew and the system clears it, page by page: a network on a CPU,
    which allocates a feature map a layer, spends a quarter of its time there. Afterwards, up to 2 GB of freed memory
    stay with the process. MASKSCORING_KEEP_MEMORY=0 leaves the C library as it is; so do MALLOC_TRIM_THRESHOLD_ and
    MALLOC_MMAP_THRESHOLD_, by which users set the same themselves.

    Returns: whether it is so.
    """
    global _keeps_memory
    own = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if os.environ.get("MASKSCORING_KEEP_MEMORY") == "0" or any(name in os.environ for name in own):
        return False
    if _keeps_memory is None:
        libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
        _keeps_memory = libc is not None and all(libc.mallopt(*option) == 1 for option in _MALLOC_OPTIONS)
    return _keeps_memory


_MALLOC_OPTIONS = ((-3, 1 << 29), (-1, (1 << 31) - 1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, bytes
_keeps_memory: bool | None = None  # None: not asked for yet


############################################################
#  Processes
############################################################


def setup_distributed(device: str | None = None, timeout_minutes: float = 60) -> torch.device:
    """Join the other processes that torchrun started, and choose this process's device.

    device: "cuda" (NCCL) or "cpu" (gloo). None: CUDA where there is one.
    timeout_minutes: how long a process waits for the others; longer than an evaluation, which is done by one alone. A
        process that dies ends the others sooner: torchrun sees to it.

    Returns: cuda:LOCAL_RANK, or cpu. Without torchrun there is nothing to join.
    Raises: ValueError for more processes than the machine has GPUs.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK {local} has no GPU: torch sees {torch.cuda.device_count()}; start torchrun with "
                f"--nproc_per_node={torch.cuda.device_count()}, or train on CPUs with GPU_COUNT=0"
            )
        torch.cuda.set_device(local)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    return torch.device(device, local) if device == "cuda" else torch.device("cpu")


def close_distributed() -> None:
    """Leave the other processes, when all are done. For programs that end well; one that fails just ends."""
    if dist.is_initialized():
        dist.barrier()
        gc.collect()  # DistributedDataParallel lies in reference cycles, and its threads must not outlive Python
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is. 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_mean(tensor: Tensor) -> Tensor:
    """Mean over the processes, of counts by which losses are divided; it carries no gradient.

    DistributedDataParallel averages gradients over processes. A loss that is a sum divided by the mean count of the
    processes therefore gives the gradient that one process with the whole batch has. All processes have to call it.
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone() if tensor.is_floating_point() else tensor.float()
    dist.all_reduce(total)
    return total / world_size()


def world_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes. Without a process group, the tensor itself."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


############################################################
#  Signals
############################################################


# A terminal and torchrun both hand on Ctrl-C: signals this close together are one.
REPEAT_SECONDS = 1.0


class StopSignals:
    """Within this context the first SIGINT or SIGTERM is only noted; another one does what it did before."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may
            self._handlers = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a forked loader: what stops the training stops it
            return
        if self.received is None:
            self.received, self._time = number, time.monotonic()
            text = f"\n{signal.Signals(number).name}: finishing what is begun, then saving. Again: stops at once.\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())  # print is not allowed here, where it may have been interrupted itself
        elif time.monotonic() - self._time > REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)


############################################################
#  The code's revision
############################################################


def git_revision() -> str | None:
    """The commit that this code is of, "-dirty" if it was changed. None without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


############################################################
#  Random states
############################################################


def random_states(device: torch.device | None = None) -> dict[str, Any]:
    """The states of the random numbers of Python, NumPy, torch and a CUDA device, as checkpoints can hold them."""
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
    """Put back what random_states returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device is not None and device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed the random numbers of Python, NumPy and torch: others in each process of a distributed training."""
    seed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextlib.contextmanager
def random_states_kept(device: torch.device | None = None) -> Iterator[None]:
    """What happens inside draws numbers as it likes, and the training outside does not notice."""
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
    """
    lock, process = FileLock(path, thread_local=False), os.getpid()
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            when_busy()
            lock.acquire()
    except OSError as error:
        logger.debug("%s cannot be locked: %s", path, error)
    try:
        yield
    finally:
        if os.getpid() == process:  # a forked process must leave its parent's lock alone
            lock.release()


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Keep a folder for this process, as locked_file keeps a file. The folder is made if it is missing.

    Raises: ValueError that names the process that uses the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".lock.owner"  # not the lock file, which Windows lets nobody else read

    def refuse() -> None:
        name = owner.read_text(errors="replace").strip() if owner.is_file() else ""
        raise ValueError(
            f"folder {folder} is in use by another training or evaluation ({name or 'of an unknown process'}); wait "
            "for it, stop it, or choose another folder"
        )

    with locked_file(folder / ".lock", refuse):
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield

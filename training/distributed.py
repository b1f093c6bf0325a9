"""Several processes, one on each GPU or CPU, that train one model: what torchrun starts.

Without a process group everything here is the identity, so that the callers need no second path.
"""

import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


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

"""What this machine has, which kernels each op uses, and what to do about what is missing.

    python benchmarks/doctor.py

Ends with status 1 if something has to be done before the project can run.
"""

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import native
import startup

OPS = ("nms", "roialign")


def tool(command: list[str]) -> str:
    """A compiler and its version, as it says it itself."""
    if not command:
        return "none"
    lines = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.splitlines() or [
        "no version"
    ]
    return f"{' '.join(command)}, " + next(
        (line for line in lines if "release" in line), lines[0]
    )  # nvcc opens with its name


def torch_lines() -> tuple[list[str], list[str], bool]:
    """Report and advice about torch, and whether it can use a GPU."""
    try:
        import torch
    except ImportError as error:
        return [f"torch: {error}"], ["make test, or pip install -r requirements.txt, installs torch"], False
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [f"torch: {torch.__version__}, {cuda}", f"GPU: {', '.join(gpus) or 'none that torch can use'}"]
    advice = []
    if torch.__version__.split("+")[0].split(".")[:2] not in ([["2", str(minor)] for minor in (11, 12, 13)]):
        advice.append(f"torch {torch.__version__} is not tested; 2.11 to 2.13 are")
    if not gpus and native.has_gpu():
        advice.append("the machine has an NVIDIA GPU that torch cannot use: install a CUDA build of torch and a driver")
    return lines, advice, bool(gpus)


def core_lines() -> list[str]:
    """Report about cores and threads."""
    import torch

    import runtime

    quota, by_torch = runtime.cpu_quota(), torch.get_num_threads()
    runtime.limit_threads()
    limit = "no quota" if quota is None else f"a quota of {quota:g}"
    names = ("OMP_NUM_THREADS", *startup.WAITING)
    settings = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    return [
        f"cores: {os.cpu_count()} in this machine, {limit}; this process may use {runtime.usable_cores()}",
        f"threads: {torch.get_num_threads()} in commands, {by_torch} by torch; {settings or 'no variable sets them'}",
    ]


def kernel_lines(has_gpu: bool) -> tuple[list[str], list[str]]:
    """A line an op, and what to do where the slow reference would run."""
    for op in OPS:
        importlib.import_module(op)
    advice = []
    for backend, compiler, package in (
        ("cpu", native.find_cxx(), "g++"),
        ("cuda", native.find_nvcc(), "CUDA toolkit"),
    ):
        needed = backend == "cpu" or has_gpu
        if needed and not all(native.is_native(op, backend) for op in OPS):
            first = "" if compiler else f"install a compiler ({package}), then "
            advice.append(f"the {backend} kernels are not in use, so the slow reference runs: {first}make kernels")
    return native.status().splitlines(), advice


def fusion_lines() -> list[str]:
    """How this processor computes convolutions and products when it detects."""
    import torch

    import fused

    fusing = [name for name in ("float32", "bfloat16") if fused.fuses("cpu", getattr(torch, name))]
    one_pass = "convolutions and products with bias, residual and ReLU in one pass on the CPU"
    lines = [f"{one_pass}: {', '.join(fusing) or 'none'}"]
    if fused.widens("cpu", torch.bfloat16):
        lines.append("bfloat16 on the CPU: computed in float32, so that float32 is faster here")
    return lines


def main() -> int:
    python = f"Python: {platform.python_version()} at {sys.executable}"
    lines = [python, f"C++ compiler: {tool(native.find_cxx())}", f"nvcc: {tool(native.find_nvcc())}"]
    advice = [] if sys.version_info >= (3, 11) else ["Python 3.11 or newer is needed"]
    more_lines, more_advice, has_gpu = torch_lines()
    lines, advice = lines + more_lines, advice + more_advice
    can_run = sys.modules.get("torch") is not None and sys.version_info >= (3, 11)
    if can_run:
        more_lines, more_advice = kernel_lines(has_gpu)
        lines = lines + core_lines() + more_lines + fusion_lines()
        advice += more_advice
    print("\n".join(lines))
    print("\nTo do:" if advice else "\nNothing to do.")
    print("".join(f"- {line}\n" for line in advice), end="")
    return 0 if can_run else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compiles and loads the kernel libraries of nms/ and roialign/.

A kernel library has plain C functions over raw pointers and knows neither torch nor Python. So one binary serves every
release of both, and CUDA kernels can be built beside a torch without CUDA. A library is written to PACKAGE/_build/.
Its name has the platform and, for code of -march=native, the processor. Several machines can share a checkout: none
runs instructions that it lacks.

`make kernels` (or `python -m nms.build`) compiles; an import never does. Without a library, the reference in torch
runs, and `status()` says so. MASKSCORING_KERNELS=native makes a missing library an error; =reference ignores
libraries. MASKSCORING_SANITIZE=1 builds and loads CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SUFFIXES = {"cpu": ".cpp", "cuda": ".cu"}  # backend: suffix of its sources in PACKAGE/src

_states: dict[str, dict[str, str]] = {}  # package: {backend: "native", or "reference" and why}


class BuildError(RuntimeError):
    """The compiler failed; the message has its command and everything it printed."""


############################################################
#  Names
############################################################


def mode() -> str:
    """auto | native | reference, from MASKSCORING_KERNELS.

    Raises: ValueError for any other value.
    """
    value = os.environ.get("MASKSCORING_KERNELS") or "auto"
    if value not in ("auto", "native", "reference"):
        raise ValueError(
            f"MASKSCORING_KERNELS={value!r} must be auto (the default), native (a missing library is an error) "
            "or reference (plain torch)"
        )
    return value


def processor_id() -> str:
    """Eight hex digits; processors with different instruction sets have different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.lower().startswith(("flags", "features")))
        text = " ".join(sorted(flags.split(":", 1)[1].split()))
    except (OSError, StopIteration):  # not Linux
        text = platform.processor() + platform.version()
    return f"{zlib.crc32(text.encode()):08x}"


def library_path(package: str, backend: str) -> Path:
    """The path that the library of a package's backend ("cpu" or "cuda") has on this machine."""
    name = f"{backend}-{sys.platform}-{platform.machine()}"
    if backend == "cpu":
        name += f"-{processor_id()}" + ("-sanitize" if sanitizing() else "")
    return ROOT / package / "_build" / f"{name}.so"


def sanitizing() -> bool:
    return os.environ.get("MASKSCORING_SANITIZE", "0") not in ("", "0")


def is_stale(package: str, backend: str) -> bool:
    """Whether a source in PACKAGE/src, or native.h, is newer than the library, which must exist."""
    built = library_path(package, backend).stat().st_mtime
    folder = ROOT / package / "src"
    sources = [*ROOT.glob("native.h"), *folder.glob("*.h"), *folder.glob(f"*{SUFFIXES[backend]}")]
    return any(source.stat().st_mtime > built for source in sources)


############################################################
#  Build
############################################################


def find_cxx() -> list[str]:
    """The command of the C++ compiler: $CXX, or the first of g++, clang++, c++ on the PATH. Empty if there is none.

    Raises: FileNotFoundError if $CXX names no program.
    """
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])  # for example "ccache g++"
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(f"CXX={os.environ['CXX']!r} names no program on the PATH; correct or unset it")
        return command
    return list(filter(None, map(shutil.which, ("g++", "clang++", "c++"))))[:1]


def find_nvcc() -> list[str]:
    """The command of nvcc: $NVCC, on the PATH, or under $CUDA_HOME or /usr/local/cuda. Empty if none, or if CUDA=0."""
    if os.environ.get("CUDA") == "0":
        return []
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    candidates = (os.environ.get("NVCC") or "nvcc", str(home / "bin" / "nvcc"))
    return list(filter(None, map(shutil.which, candidates)))[:1]


def compile_command(package: str, backend: str, output: Path) -> list[str]:
    """The command that compiles a package's backend into output.

    Floating-point contraction is off everywhere. A fused multiply-add rounds once where the peers' code rounds twice,
    so decisions near a threshold would differ between machines.
    """
    sources = sorted((ROOT / package / "src").glob(f"*{SUFFIXES[backend]}"))
    files = ["-o", str(output), *map(str, sources)]
    if backend == "cuda":
        # Not native: on a machine without a GPU, nvcc would silently take the oldest architecture.
        arch = f"-arch={os.environ.get('CUDA_ARCH') or 'all-major'}"
        flags = ["-O3", "-std=c++17", arch, "--fmad=false", "--threads=0", "-shared", "-Xcompiler=-fPIC"]
        return [*find_nvcc(), *flags, *files]
    flags = ["-O3", "-std=c++17", "-march=native", "-fopenmp", "-ffp-contract=off", "-fPIC", "-shared"]
    flags += ["-Wall", "-Wextra"]  # main() prints the warnings
    # Otherwise g++ joins the loops over samples and channels and gathers single values, which is 2.5 x slower.
    flags += ["-fno-loop-unroll-and-jam"]
    if sanitizing():
        flags += ["-g", "-fno-omit-frame-pointer"]
        flags += ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    cxx = find_cxx()
    return [*cxx, *_accepted(cxx, flags), *files]


def _accepted(cxx: list[str], flags: list[str]) -> list[str]:
    """The flags that the compiler accepts and can link with. For example, clang may lack the library of -fopenmp."""

    def links(candidates: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            probe = os.path.join(folder, "probe.so")
            command = [*cxx, *candidates, "-shared", "-fPIC", "-x", "c++", os.devnull, "-o", probe]
            return subprocess.run(command, capture_output=True).returncode == 0

    return flags if links(flags) else [flag for flag in flags if links([flag])]


def build(package: str, backend: str) -> str:
    """Compiles one backend of a package, unless its library is newer than its sources and of the same command.

    Returns: a line that says what happened, and the compiler's warnings.
    Raises: BuildError with the compiler's command and output.
    """
    label = f"{package}: {backend} kernels"
    if not (find_cxx() if backend == "cpu" else find_nvcc()):
        return f"{label} not built: no {'C++ compiler' if backend == 'cpu' else 'nvcc'} found"
    library = library_path(package, backend)
    record = library.with_suffix(".txt")  # the command that made the library
    command = shlex.join(compile_command(package, backend, library))
    if library.exists() and not is_stale(package, backend) and record.exists() and record.read_text() == command:
        return f"{label} are up to date"
    library.parent.mkdir(exist_ok=True)
    begun = time.time()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unfinished = Path(folder) / library.name
        warnings_text = _run(compile_command(package, backend, unfinished), label)
        os.utime(unfinished, (begun, begun))  # so a source that was saved meanwhile is newer
        os.replace(unfinished, library)
        unfinished.write_text(command)
        os.replace(unfinished, record)
    return f"{label} built in {time.time() - begun:.1f} s" + (f"\n{warnings_text}" if warnings_text else "")


def _run(command: list[str], label: str) -> str:
    """Runs the compiler. Returns: the text that it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        hint = "\nTo build without the CUDA kernels: make kernels CUDA=0" if "cuda" in label else ""
        raise BuildError(f"{label} failed to compile\n$ {shlex.join(command)}\n{done.stdout}{done.stderr}{hint}")
    return (done.stdout + done.stderr).strip()


def main(packages: list[str]) -> int:
    """Builds all backends of the packages at the same time, and prints a line for each. Returns the exit status."""
    jobs = [(package, backend) for package in packages for backend in SUFFIXES]
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(build, *job) for job in jobs]
    failures = [future.exception() for future in futures if future.exception()]
    for future in futures:
        print(future.exception() or future.result())
    return 1 if failures else 0


############################################################
#  Load
############################################################


def register(package: str, **registrars: Callable[[ctypes.CDLL], None] | None) -> None:
    """Loads a package's libraries, and calls the function that registers the kernels of each.

    registrars: the function for cpu= and for cuda=; None if this torch does not have the backend.

    Raises: RuntimeError with MASKSCORING_KERNELS=native, if a library that this machine could use is missing.
    """
    states = _states.setdefault(package, {})
    for backend, registrar in registrars.items():
        if registrar is None:
            states[backend] = "not in this torch"
        elif (library := load(package, backend)) is not None:
            registrar(library)


def kernel(name: str, device: str) -> Callable[[Callable], Callable]:
    """A decorator of a function that computes the operator torch.ops.maskscoring.NAME on a device, "cpu" or "cuda".

    CustomOpDef.register_kernel does the same, but imports torch's compiler when the operator runs for the first time.
    That takes longer than to read a model and to detect in an image. Here the compiler is told to leave the function
    alone only if somebody has imported it.
    """
    import torch

    def add(compute: Callable) -> Callable:
        @functools.cache
        def uncompiled() -> Callable:
            return torch.compiler.disable(compute)

        def run(*arguments: Any) -> Any:
            return (uncompiled() if "torch._dynamo" in sys.modules else compute)(*arguments)

        torch.library.impl(f"maskscoring::{name}", device, run)
        return compute

    return add


def load(package: str, backend: str) -> ctypes.CDLL | None:
    """The library of a package's backend, or None if the reference must run; status() says why.

    A library that is older than its sources is not loaded, because its functions may have other arguments.

    Raises: RuntimeError with MASKSCORING_KERNELS=native, if no library can be used.
    """
    kernels = mode()
    library, problem = None, "MASKSCORING_KERNELS=reference"
    if kernels != "reference":
        library, problem = _open(package, backend)
    if library is None and kernels == "native" and (backend == "cpu" or has_gpu()):
        raise RuntimeError(f"{package}: MASKSCORING_KERNELS=native, but the {backend} library {problem}")
    _states.setdefault(package, {})[backend] = "native" if library is not None else f"reference ({problem})"
    return library


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU, even one that torch cannot use."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _open(package: str, backend: str) -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the problem with it."""
    path = library_path(package, backend)
    if not path.exists():
        return None, "is not built for this machine; run `make kernels`"
    if is_stale(package, backend):
        problem = "is older than its sources and was not loaded; run `make kernels`"
        warnings.warn(f"{package}: the {backend} library {problem}. Until then the slow reference runs.", stacklevel=4)
        return None, problem
    try:
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        problem = f"cannot be loaded ({error}); delete it and run `make kernels`"
        warnings.warn(f"{package}: the {backend} library {problem}", stacklevel=4)
        return None, problem


def is_native(package: str, backend: str) -> bool:
    """Whether the native kernels of a package's backend run in this process."""
    return _states.get(package, {}).get(backend) == "native"


def status() -> str:
    """A line for each operator that was imported: the kernels that run on each device, and why.

    For example "nms: cpu native, cuda reference (is not built for this machine; run `make kernels`)".
    """
    lines = (
        f"{package}: " + ", ".join(f"{backend} {state}" for backend, state in states.items())
        for package, states in _states.items()
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["nms", "roialign"]))

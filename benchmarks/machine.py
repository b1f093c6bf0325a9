"""What the benchmarks of this folder share: arguments, facts about the machine, measuring times and memory."""

import contextlib
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

import cli
import native
import runtime


def make_parser(
    program: str,
    description: str | None,
    quick: str | None = None,
    device: bool = False,
    threads: bool = False,
    output: str = "FILE",
) -> cli.Parser:
    """A parser with the arguments that benchmarks share. Each has --output; the others are chosen here.

    program: the file's name. description: its docstring.
    quick: what --quick measures, in words; None: no such argument. device, threads: whether to add these.
    output: FILE for the line of JSON, or DIR for a folder.
    """
    parser = cli.Parser(program, description)
    cli.add_output(parser, "the line of JSON" if output == "FILE" else "the log and the line of JSON", metavar=output)
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=f"see that it runs; {quick}")
    if device:
        parser.add_argument("--device", choices=runtime.TRAINING_DEVICES, default="cpu", help="default: cpu")
    if threads:
        parser.add_argument(
            "--threads", type=cli.whole_number(1), metavar="N", help="CPU threads of torch; default: torch's own choice"
        )
    return parser


def describe(device: str = "cpu") -> dict:
    """The machine, the software and the revision that a figure belongs to."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "revision": runtime.git_revision(12) or "unknown",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": native.status().splitlines(),
    }
    gpu = runtime.device_name(device)
    return facts if gpu is None else {**facts, "gpu": gpu}


def finish(facts: dict, output: Path | None) -> None:
    """Print the figures of a benchmark as a line of JSON, and write the same line to a file if there is a path."""
    print(json.dumps(facts))
    if output:
        write_json(facts, output)


def write_json(facts: dict, path: Path) -> None:
    """Write figures as a line of JSON, wholly or not at all."""
    runtime.write_atomically(path, lambda file: file.write(f"{json.dumps(facts)}\n".encode()))


def cpu_name() -> str:
    """The processor's name, and the widest vector instructions where they are told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = values.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), None)
    return (values.get("model name") or platform.machine()) + (f", {vectors}" if vectors else "")


def median_ms(run: Callable[[], object], device: str = "cpu", seconds: float = 2.0, warm_up: int = 3) -> float:
    """Milliseconds that a call takes: the median over as many calls as fit into the time, 3 at least.

    What the call returns is freed before the next, so that allocating the result is part of what is measured.
    """
    for _ in range(warm_up):
        run()
    times = []
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 200):
        runtime.wait_for(device)
        start = time.perf_counter()
        result = run()
        runtime.wait_for(device)
        times.append(time.perf_counter() - start)
        del result
    return statistics.median(times) * 1e3


def peak_mb(run: Callable[[], object], device: str = "cpu", trim: bool = False) -> float | None:
    """Megabytes that a call takes at its peak beyond what was in use before, its result included.

    On the CPU this is resident memory, rounded up to whole pages of up to 2 MB; None where the system does not tell.

    trim: give back what the C library kept of freed blocks first. Otherwise a call that fits into it takes nothing.
    """
    run()
    peak = Peak(device, trim)
    run()
    return peak.megabytes()


class Peak:
    """The most memory of this process from here on, beyond what is in use now. trim: as of peak_mb."""

    def __init__(self, device: str = "cpu", trim: bool = False) -> None:
        self.device = device
        self.restart(trim)
        self.before = self._in_use()

    def restart(self, trim: bool = False) -> None:
        """Forget the peak so far, but not what was in use when this was made."""
        if runtime.tensor_bytes(self.device) is not None:
            runtime.forget_peak(self.device)
            return
        if trim and platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float | None:
        """None where the system does not tell."""
        peak = runtime.tensor_bytes(self.device, peak=True)
        if peak is not None:
            return (peak - self.before) / 1e6
        return None if self.before is None else (_resident_kb("VmHWM") - self.before) / 1e3

    def _in_use(self) -> int | None:
        in_use = runtime.tensor_bytes(self.device)
        if in_use is not None:
            return in_use
        try:
            return _resident_kb("VmRSS") if os.access("/proc/self/clear_refs", os.W_OK) else None
        except OSError:
            return None


def resident_mb(peak: bool = False) -> float:
    """Megabytes of this process in memory, now or at the most since it started; of Linux only."""
    return _resident_kb("VmHWM" if peak else "VmRSS") / 1e3


def _resident_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

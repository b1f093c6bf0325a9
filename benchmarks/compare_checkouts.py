"""detect() of another checkout of this project against this one, in turns.

    python benchmarks/compare_checkouts.py CHECKOUT [--threads N] [--rounds N] [--variable NAME=VALUE ...]

CHECKOUT is a folder with another revision, its kernels built. Each checkout detects in a process of its own: one
image, Mask Scoring R-CNN R-50 with the deterministic weights of golden_weights.py, as bench_detect.py does. The calls
alternate: a machine that is faster at one time than at another disturbs both alike. --variable gives environment
variables to the other checkout's process alone: with CHECKOUT ".", it compares GOMP_SPINCOUNT, for example. Prints the
medians of the times, and that of the ratios of calls that followed each other; the last line printed is JSON.
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import cli
from benchmarks import machine

# Runs in each checkout: answers each dtype that it reads with the milliseconds of a call.
WORKER = """
import contextlib, io, sys, time
sys.path[:0] = [".", "tests"]
import torch
torch.set_num_threads(int(sys.argv[1]))
import golden_weights, runtime
from benchmarks import bench_detect
with contextlib.redirect_stdout(io.StringIO()):
    model = bench_detect.our_model("benchmark", "cpu")
runtime.keep_memory()
image = bench_detect.photograph()
with model.prepared("float32"), model.prepared("bfloat16"):
    for dtype in ("float32", "bfloat16"):
        model.detect([image], dtype=dtype)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        model.detect([image], dtype=line.strip())
        print(1e3 * (time.perf_counter() - start), flush=True)
"""


def start_worker(checkout: Path, threads: int, environment: dict[str, str]) -> subprocess.Popen:
    """A process of WORKER, that will say when it is ready."""
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=checkout, env={**os.environ, **environment}, **pipes)


def wait_until_ready(worker: subprocess.Popen, checkout: Path) -> None:
    """Raises: ValueError if the process ends instead."""
    if not any(line == "ready\n" for line in worker.stdout):
        raise ValueError(f"{checkout} cannot detect, see above; is it a checkout of this project, its kernels built?")


def compare(workers: list[subprocess.Popen], dtype: str, rounds: int) -> dict:
    """Milliseconds of each call, this checkout's and the other's, and what they say."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for worker, of_worker in zip(workers, times, strict=True):
            print(dtype, file=worker.stdin, flush=True)
            if not (line := worker.stdout.readline()):
                raise ValueError(f"a process that detects in {dtype} ended too early, see above")
            of_worker.append(float(line))
    ratios = [own / other for own, other in zip(*times, strict=True)]
    medians = [statistics.median(of_worker) for of_worker in times]
    return {"dtype": dtype, "ms": medians, "least_ms": [min(t) for t in times], "ratio": statistics.median(ratios)}


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table and the JSON line."""
    parser = machine.make_parser("compare_checkouts.py", __doc__, threads=True)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=cli.whole_number(1), default=9, metavar="N", help="default: 9")
    parser.add_argument(
        "--variable", nargs="+", default=[], metavar="NAME=VALUE", help="environment of the other process"
    )
    arguments = parser.parse_args(argv)
    facts = machine.describe()
    threads = arguments.threads or facts["threads"]
    if wrong := [pair for pair in arguments.variable if not re.fullmatch(r"\w+=.*", pair)]:
        parser.error(f"--variable takes NAME=VALUE, such as GOMP_SPINCOUNT=0, not {wrong[0]!r}")
    others = dict(pair.split("=", 1) for pair in arguments.variable)
    with contextlib.ExitStack() as stack:
        workers = []
        for checkout, environment in ((ROOT, {}), (arguments.checkout, others)):
            workers.append(stack.enter_context(start_worker(checkout, threads, environment)))
            wait_until_ready(workers[-1], checkout)
        rows = [compare(workers, dtype, arguments.rounds) for dtype in ("float32", "bfloat16")]
        for worker in workers:
            worker.stdin.close()
    for row in rows:
        print(f"{row['dtype']:9} here {row['ms'][0]:6.0f} ms, there {row['ms'][1]:6.0f} ms, ratio {row['ratio']:.3f}")
    facts |= {"threads": threads, "rounds": arguments.rounds, "other": str(arguments.checkout), "variables": others}
    machine.finish({**facts, "cases": rows}, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run("compare_checkouts.py", main))

"""All benchmarks in turn, as one file of results and as the tables of docs/speed.md.

    python benchmarks/bench.py [--only NAME ...] [--threads N] [--dataset DIR] [--quick] [--output FILE]

    ops  detect  train  eval  data  peers  visualize  growth  tiles

Each runs in a process of its own, on the same number of threads. What cannot run here is left out, with the reason:
"data" needs a data set, "peers" onnx, onnxscript, onnxruntime and openvino, "tiles" the images of nuclei in ../shared.
Where torchvision can be imported, it is measured too.

The file is benchmarks/results/DATE-MACHINE.json unless --output names one. With --only, a file that is there keeps the
other results, if they are of the same revision. If the file lies in benchmarks/results/, the tables of docs/speed.md
and docs/large_images.md are written too. After --quick nothing is written unless --output is given.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import torch

import cli
import runtime
from benchmarks import machine, make_mosaic, tables

RESULTS = ROOT / "benchmarks" / "results"
PROCESSORS = ("epyc", "xeon", "ryzen", "threadripper", "core", "graviton", "neoverse", "apple")


class Benchmark(NamedTuple):
    """How one benchmark runs."""

    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # packages
    dataset: bool = False  # needs --dataset
    threads: bool = True  # takes --threads
    folder: bool = False  # writes a folder, with a picture of its name
    images: Path | None = None  # a folder that must be there


BENCHMARKS = {
    "ops": Benchmark(),
    "detect": Benchmark(("--seconds", "6")),
    "train": Benchmark(("--rounds", "1")),
    "eval": Benchmark(("--plain-images", "100")),
    "data": Benchmark(dataset=True, threads=False),
    "peers": Benchmark(("--rounds", "5"), needs=("onnx", "onnxscript", "onnxruntime", "openvino")),
    "visualize": Benchmark(threads=False),
    "growth": Benchmark(folder=True),
    "tiles": Benchmark(folder=True, images=make_mosaic.IMAGES),
}


def machine_name(facts: dict[str, Any]) -> str:
    """The machine in a file's name, of its description: xeon-2-threads."""
    words = re.findall("[a-z]+", facts["cpu"].lower().replace("(r)", " "))
    processor = next((name for name in PROCESSORS if name in words), "cpu")
    return f"{processor}-{facts['threads']}-thread{'s' * (facts['threads'] != 1)}"


def reason_against(name: str, dataset: Path | None) -> str | None:
    """Why a benchmark cannot run here."""
    missing = [package for package in BENCHMARKS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        return f"pip install {' '.join(missing)}"
    images = BENCHMARKS[name].images
    if images is not None and not images.is_dir():
        return f"{images} is not there"
    return "give --dataset, a folder with COCO" if BENCHMARKS[name].dataset and dataset is None else None


def run(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one benchmark. Raises: RuntimeError if it fails."""
    benchmark = BENCHMARKS[name]
    output = folder / name if benchmark.folder else folder / f"{name}.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), "--output", str(output)]
    command += [] if arguments.quick else benchmark.arguments
    command += ["--threads", str(torch.get_num_threads())] * benchmark.threads
    command += ["--dataset", str(arguments.dataset)] * benchmark.dataset + ["--quick"] * arguments.quick
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise RuntimeError(f"bench_{name}.py failed; nothing is written")
    return json.loads((output / f"{name}.json" if benchmark.folder else output).read_text())


def kept_results(path: Path, revision: str) -> dict[str, Any]:
    """Results of the same revision in a file that is there."""
    if not path.is_file():
        return {}
    facts = json.loads(path.read_text())
    return facts["results"] if facts.get("revision") == revision else {}


def write(facts: dict[str, Any], pictures: Path, path: Path) -> None:
    """The file, the pictures of curves, and the tables of the pages where the file is one of their results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for picture in sorted(pictures.glob("*/*.png")):
        copy = path.with_name(f"{path.stem}-{picture.name}")
        runtime.write_atomically(copy, methodcaller("write", picture.read_bytes()))
    machine.write_json(facts, path)
    print(f"wrote {path}")
    if path.resolve().parent != RESULTS:
        return
    for page in tables.put_results(facts["results"], path.resolve().relative_to(ROOT).as_posix()):
        print(f"wrote the tables of {page.relative_to(ROOT)}")


def build_parser() -> cli.Parser:
    parser = machine.make_parser("bench.py", __doc__, quick="every benchmark with its own --quick", threads=True)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="COCO, for loading pictures")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine.describe()
    path = arguments.output or RESULTS / f"{facts['date']}-{machine_name(facts)}.json"
    if facts["revision"].endswith("-dirty"):
        print("the working tree has changes that are not committed: these figures are of no revision", file=sys.stderr)
    results = kept_results(path, facts["revision"])
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            if reason := reason_against(name, arguments.dataset):
                print(f"== {name} is left out: {reason}", flush=True)
                continue
            print(f"== {name}", flush=True)
            start = time.perf_counter()
            results[name] = run(name, Path(folder), arguments)
            print(f"== {name} took {time.perf_counter() - start:.0f} s", flush=True)
        if arguments.output or not arguments.quick:
            write({**facts, "quick": arguments.quick, "results": results}, Path(folder), path)


if __name__ == "__main__":
    sys.exit(cli.run("bench.py", lambda: main(build_parser().parse_args())))

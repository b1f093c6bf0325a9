"""Kills trainings, evaluations, detections, conversions and downloads, continues them, and compares the results.

    python benchmarks/kills.py       40 trainings, 30 evaluations, 30 detections in a large image, 20 conversions and 20
                                     downloads are killed
    python benchmarks/kills.py --training 0 --evaluation 0 --large 0 --conversion 2 --download 2

Each kind is a small real one, run by its command: samples/shapes.py train with a ResNet-18, coco.py evaluate on files
of shapes, custom.py detect in tiles of an image of shapes, convert_weights.py --half, and weights.download from a slow
server. A round starts in an empty folder. The process gets SIGKILL at a random instant, mostly after it began to write,
the same command continues, and so on, until one comes to its end. Then the results of the round must equal those of an
uninterrupted run to the bit: weights, optimiser, random states and losses; submission and numbers; tables, labels and
pictures; files. No unfinished file may be left. And what a killed process had on the disk, in steps, images, rows of
tiles or bytes, must still be there after the next.

Each command has a process of its own, forked from this one, which has all imports but has computed nothing: most of the
time of a small run would go into importing torch. A process has one thread.

Prints a table and one line of JSON. The exit code is 1 if anything was lost or differs.
"""

import argparse
import contextlib
import hashlib
import http.server
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from PIL import Image

import cli
import coco
import convert_weights
import custom
import utils
from benchmarks import machine
from evaluation.detect import done_images
from evaluation.stream import checked_length, read_values, whole_lines
from model import MaskRCNN
from samples import shapes
from training.checkpoints import find_last, list_checkpoints
from weights.checkpoint import read_checkpoint
from weights.download import download

COUNTS = {"training": 40, "evaluation": 30, "large": 30, "conversion": 20, "download": 20}
NAMES = {"large": "a detection in a large image"}  # in words
KILLS_A_ROUND = 5  # then the command may finish
EARLY = 0.15  # of the kills hit a process before it began to write
LATE_IMPORTS = ("matplotlib.pyplot", "torch._dynamo", "torch.utils.tensorboard")  # commands make these as they go
NETWORK = {
    "BACKBONE": "resnet18", "BACKBONE_WIDTH": 0.25, "TOP_DOWN_PYRAMID_SIZE": 32, "RPN_CHANNELS": 32,
    "FPN_CLASSIF_FC_LAYERS_SIZE": 64, "MASK_HEAD_CHANNELS": 16, "MASKIOU_HEAD_CHANNELS": 16,
    "MASKIOU_FC_LAYERS_SIZE": 64, "POST_NMS_ROIS_INFERENCE": 60, "DETECTION_MAX_INSTANCES": 20,
}  # fmt: skip


class Kind(NamedTuple):
    """A command that is killed and continued in a folder."""

    name: str
    run: Callable[[Path], int | None]  # starts it or continues it, by what the folder has; returns the exit code
    progress: Callable[[Path], int]  # steps, images, rows or bytes that the folder has; a kill must not lower it
    results: Callable[[Path], dict[str, str]]  # what must be equal in the end, or hashes of it, by name


############################################################
#  What is killed
############################################################


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """A hash of tensors and plain values, however deep in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        return sha256(
            f"{array.dtype} {list(array.shape)}".encode() + array.flatten().view(torch.uint8).numpy().tobytes()
        )
    if isinstance(value, Mapping):
        return sha256(json.dumps({str(name): digest(each) for name, each in value.items()}).encode())
    if isinstance(value, list | tuple):
        return sha256(json.dumps([digest(each) for each in value]).encode())
    return sha256(repr(value).encode())


def training() -> Kind:
    """Two epochs of five steps, with a checkpoint after nearly each of them."""
    settings = {**NETWORK, "STEPS_PER_EPOCH": 5, "IMAGES_PER_GPU": 2, "VALIDATION_STEPS": 1, "EVAL_EVERY": 0}
    settings |= {"CHECKPOINT_MINUTES": 0.0001, "WORKERS": 0, "WARMUP_STEPS": 3}
    words = ["--images", "20", "--epochs", "2", "--device", "cpu", "--set", *(f"{k}={v}" for k, v in settings.items())]
    name = shapes.ShapesConfig.NAME

    def run(folder: Path) -> int:
        start = "last" if list(folder.glob(f"*/mask_rcnn_{name}_0*.pth")) else "none"
        return shapes.main(["train", "--model", start, "--logs", str(folder), *words])

    def progress(folder: Path) -> int:
        positions = [position for logs in folder.glob("*") for position in list_checkpoints(logs, name)]
        return max((5 * position.epoch + position.step for position in positions), default=0)

    def results(folder: Path) -> dict[str, str]:
        last = find_last(folder, name)
        checkpoint = read_checkpoint(last)
        lines = [json.loads(line) for line in (last.parent / "metrics.jsonl").read_text().splitlines()]
        times = re.compile("seconds|per_second|memory|time")
        losses = [{name: line[name] for name in line if not times.search(name)} for line in lines]
        training = {name: value for name, value in checkpoint["training"].items() if name not in ("git", "time")}
        parts = {**checkpoint, "training": training, "losses": losses}
        return {part: digest(value) for part, value in parts.items()}

    return Kind("training", run, progress, results)


def write_model(path: Path) -> None:
    """A network of random weights that knows the shapes, by COCO's kind of ids."""
    torch.manual_seed(0)
    categories = tuple(range(1 + len(shapes.CLASSES)))
    MaskRCNN(shapes.ShapesConfig(**NETWORK, GPU_COUNT=0, CATEGORY_IDS=categories)).eval().save(path)


def write_data(folder: Path, count: int) -> None:
    """Images of shapes in COCO's layout."""
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        image, masks, class_ids = shapes.draw(96, 128, np.random.default_rng(number))
        Image.fromarray(image).save(folder / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        for class_id, rle in zip(class_ids.tolist(), utils.mask_to_rle(masks), strict=True):
            y1, x1, y2, x2 = utils.rle_to_bbox(rle)
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": class_id, "iscrowd": 0,
                "area": utils.rle_area(rle), "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": utils.rle_to_json(rle),
            })  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(shapes.CLASSES, start=1)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    machine.write_json(contents, folder / "annotations" / "instances_val2017.json")


def evaluation(data: Path, model: Path) -> Kind:
    """Two images at a time, with report."""

    def run(folder: Path) -> int:
        words = ["evaluate", "--dataset", data, "--model", model, "--output", folder, "--device", "cpu"]
        return coco.main([*map(str, words), "--batch-size", "2"])

    def progress(folder: Path) -> int:
        return len(done_images(folder)) // 2 * 2  # the first image of two does not count without the second

    def results(folder: Path) -> dict[str, str]:
        names = ("bbox.json", "segm.json", "metrics.csv", "classes.csv")
        return {name: sha256((folder / name).read_bytes()) for name in names}

    return Kind("evaluation", run, progress, results)


def large(picture: Path) -> Kind:
    """An image of shapes in 4 rows of tiles, by the embedded model, with all results that are written row by row."""

    def run(folder: Path) -> int:
        words = ["detect", "--dataset", picture, "--model", "shapes", "--output", folder, "--device", "cpu"]
        tiles = ["--tiles", "128", "--overlap", "64", "--threshold", "0.05"]
        return custom.main([*map(str, words), *tiles, "--to", "pictures,csv,coco,geojson,label_images"])

    def progress(folder: Path) -> int:
        rows = 0
        for place in (folder / "large").glob("*"):
            for _, text in whole_lines(place):
                with contextlib.suppress(ValueError):
                    rows += read_values(checked_length(text)) is not None
        return rows

    def results(folder: Path) -> dict[str, str]:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path for path in paths}
        kept = ("detections/", "large/", ".lock")
        return {name: sha256(path.read_bytes()) for name, path in names.items() if not name.startswith(kept)}

    return Kind("large", run, progress, results)


def conversion(model: Path) -> Kind:
    """A checkpoint to one in half precision."""

    def run(folder: Path) -> int:
        return convert_weights.main([str(model), str(folder / "half.pth"), "--half", "--force"])

    def progress(folder: Path) -> int:
        return int((folder / "half.pth").exists() and len(results(folder)))  # reading fails for half a file

    def results(folder: Path) -> dict[str, str]:
        return {part: digest(value) for part, value in read_checkpoint(folder / "half.pth").items()}

    return Kind("conversion", run, progress, results)


def downloading(url: str) -> Kind:
    """A file of which only the size is known. What is there already is not fetched again."""

    def run(folder: Path) -> None:
        download(url, folder / "file.bin", progress=False)

    def progress(folder: Path) -> int:
        paths = folder / "file.bin", folder / "file.bin.part"
        return max(path.stat().st_size if path.exists() else 0 for path in paths)

    def results(folder: Path) -> dict[str, str]:
        return {path.name: sha256(path.read_bytes()) for path in folder.iterdir() if path.suffix != ".lock"}

    return Kind("download", run, progress, results)


def serve(ready: Any, content: bytes, pieces: int = 100, seconds: float = 1.0) -> None:
    """Send a file to whoever asks, in pieces that take some time, from the byte on that is asked for.

    ready: a queue for the URL.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", '"1"')
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            size = len(content) // pieces + 1
            with contextlib.suppress(OSError):  # the client was killed
                for begin in range(start, len(content), size):
                    self.wfile.write(content[begin : begin + size])
                    time.sleep(seconds / pieces)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ready.put(f"http://127.0.0.1:{server.server_port}/file.bin")
    server.serve_forever()


############################################################
#  Kills
############################################################

FORK = multiprocessing.get_context("fork")


def in_process(function: Callable[..., Any], *arguments: Any, log: Path) -> multiprocessing.Process:
    """Call a function in a process of its own; its output goes to a file."""

    def call() -> None:
        sys.stdout = sys.stderr = log.open("a")
        for number in (1, 2):
            os.dup2(sys.stdout.fileno(), number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ["no_proxy"] = "127.0.0.1"
        torch.set_num_threads(1)
        sys.exit(function(*arguments))

    process = FORK.Process(target=call, daemon=True)
    process.start()
    return process


def start(kind: Kind, folder: Path) -> multiprocessing.Process:
    """Start or continue what a folder has. The output goes to FOLDER.log."""
    return in_process(kind.run, folder, log=folder.with_suffix(".log"))


def contents(folder: Path) -> list[tuple]:
    """What changes when something is written in a folder."""
    entries = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            status = path.stat()
            entries.append((path, status.st_size, status.st_mtime_ns))
    return entries


def wait_for_writing(process: multiprocessing.Process, folder: Path, before: list[tuple]) -> None:
    """Until the process writes something into the folder, or ends."""
    while process.is_alive() and contents(folder) == before:
        time.sleep(0.002)


def run_to_end(kind: Kind, folder: Path) -> tuple[float, float]:
    """Run the command. Returns: the seconds before it writes something, and from then to its last writing.

    Raises: cli.Failure if it fails.
    """
    begin, state, changes = time.monotonic(), contents(folder), []
    process = start(kind, folder)
    while process.is_alive():
        time.sleep(0.002)
        if (now := contents(folder)) != state:
            state = now
            changes.append(time.monotonic())
    check_end(kind, folder, process.exitcode)
    return (changes[0] - begin, changes[-1] - changes[0]) if changes else (0.0, 0.0)


def check_end(kind: Kind, folder: Path, status: int) -> None:
    """Raises cli.Failure if a command failed."""
    if status:
        log = folder.with_suffix(".log").read_text(errors="replace")[-1000:].strip()
        raise cli.Failure(f"{kind.name}: a command ended with {status}: {utils.printable(log, 1000)}")


def kill_once(kind: Kind, folder: Path, seconds: tuple[float, float], rng: random.Random) -> str:
    """Start the command and kill it at a random instant.

    seconds: of run_to_end.

    Returns: "early" if it had written nothing yet, "late" if it had, or "ended" if it ended before it could be killed.
    """
    before = contents(folder)
    process = start(kind, folder)
    try:
        if rng.random() < EARLY:
            time.sleep(rng.uniform(0, seconds[0]))
        else:
            wait_for_writing(process, folder, before)
            time.sleep(rng.uniform(0, seconds[1]))
    finally:
        process.kill()
        process.join()
    if process.exitcode != -signal.SIGKILL:
        check_end(kind, folder, process.exitcode)
        return "ended"
    return "early" if contents(folder) == before else "late"


def measure(kind: Kind, count: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Kill as often as asked, in as many rounds as that takes."""
    begin = time.monotonic()
    reference = folder / kind.name / "reference"
    reference.mkdir(parents=True)
    seconds = run_to_end(kind, reference)
    expected = kind.results(reference)
    row = {"name": kind.name, "kills": 0, "early": 0, "rounds": 0, "equal": 0, "lost": 0, "leftovers": 0}
    differing: set[str] = set()
    while row["kills"] < count:
        place = folder / kind.name / f"round-{row['rounds']}"
        place.mkdir()
        had = 0
        for _ in range(min(KILLS_A_ROUND, count - row["kills"])):
            instant = kill_once(kind, place, seconds, rng)
            has = kind.progress(place)
            row["lost"] += has < had
            had = has
            if instant == "ended":
                break
            row["kills"] += 1
            row["early"] += instant == "early"
        run_to_end(kind, place)
        row["rounds"] += 1
        results = kind.results(place)
        row["equal"] += results == expected
        differing |= {name for name in {**results, **expected} if results.get(name) != expected.get(name)}
        row["leftovers"] += sum(1 for path in place.rglob("*") if path.suffix in (".tmp", ".part"))
    return {**row, "differing": sorted(differing), "seconds": time.monotonic() - begin}


def prepare(folder: Path) -> None:
    """model.pth, data/ and large.png in a folder."""
    write_model(folder / "model.pth")
    write_data(folder / "data", 24)
    Image.fromarray(shapes.draw(300, 360, np.random.default_rng(0))[0]).save(folder / "large.png")


def run_all(counts: Mapping[str, int], folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """A row for each kind that is killed at all."""
    if counts["evaluation"] or counts["large"] or counts["conversion"]:
        preparation = Kind("preparation", prepare, lambda place: 0, lambda place: {})
        run_to_end(preparation, folder)  # in a process of its own, so that this one has computed nothing
    ready = FORK.SimpleQueue()
    server = in_process(serve, ready, random.Random(0).randbytes(8_000_000), log=folder.with_suffix(".log"))
    rows = []
    try:
        model = folder / "model.pth"
        kinds = (training(), evaluation(folder / "data", model), large(folder / "large.png"), conversion(model))
        for kind in (*kinds, downloading(ready.get())):
            if counts[kind.name]:
                print(f"{kind.name}: {counts[kind.name]} kills", file=sys.stderr, flush=True)
                rows.append(measure(kind, counts[kind.name], folder, rng))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        server.kill()
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = machine.make_parser("kills.py", __doc__)
    for name, count in COUNTS.items():
        parser.add_argument(
            f"--{name}", type=cli.whole_number(0), default=count, metavar="N",
            help=f"how often {NAMES.get(name, f'a {name}')} is killed; default: {count}",
        )  # fmt: skip
    cli.add_seed(parser, "the instants")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    seed = arguments.seed or 0
    counts = {name: getattr(arguments, name) for name in COUNTS}
    for module in LATE_IMPORTS if any(counts[name] for name in COUNTS if name != "download") else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "kills"  # its log lies beside it
        folder.mkdir()
        rows = run_all(counts, folder, random.Random(seed))
    columns = ("kills", "early", "rounds", "equal", "lost", "leftovers")
    print(f"{'':12}" + "".join(f"{name:>11}" for name in (*columns, "seconds")))
    for row in rows:
        print(f"{row['name']:12}" + "".join(f"{row[name]:>11}" for name in columns) + f"{row['seconds']:>11.0f}")
    machine.finish({**machine.describe(), "seed": seed, "cases": rows}, arguments.output)
    is_good = all(row["equal"] == row["rounds"] and not row["lost"] + row["leftovers"] for row in rows)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(cli.run("kills.py", main))

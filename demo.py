"""Detect objects in images, videos and webcams: pictures with boxes, masks and scores, and the results as JSON.

    python demo.py                                    assets/coffee.jpg, with the model "coco"; if that cannot be
                                                      downloaded, the next two
    python demo.py --model nuclei                     cell nuclei under the microscope, with an embedded model
    python demo.py --model shapes                     an image of shapes, with an embedded model
    python demo.py --model photos                     a cat; this embedded model also knows dogs, horses and persons
    python demo.py photo.jpg holiday/ "scans/*.tif"   files, folders, patterns
    python demo.py street.mp4 --every 5               every fifth frame of a video; videos need PyAV: pip install av
    python demo.py 0 --show                           webcam 0 in a window, until Ctrl-C or the window is closed
    python demo.py rtsp://192.168.1.20/live           a video from the network: rtsp, rtmp, http or https, until Ctrl-C
    python demo.py photo.jpg --stages                 pictures of each stage of the network, too
    python demo.py slide.tif --model nuclei           a large image: in tiles, where the model and its size ask for it
    python demo.py photo.jpg --model torchvision --threshold 0.7 --device cuda --dtype bfloat16

A folder stands for the images and videos in it. Each image gets a picture, OUTPUT/NAME.jpg; each video, stream or
webcam a video, OUTPUT/NAME.mp4, of the same size and speed, without sound. OUTPUT/detections.json has all instances in
COCO's result format; with videos it is OUTPUT/detections.jsonl, a line for each image or frame. Its score is the mask
score; class_score and mask_iou stand beside it. Ctrl-C ends the detection and keeps all results up to there.

What cannot be read is named at the end, and the rest goes on. Of a damaged video, the frames that can be read count.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import contextlib
import itertools
import json
import math
import re
import sys
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import cli
import fonts
import runtime
import stages
import utils
import video
import visualize
from captions import LABELS
from config import Config
from data.images import ImageReader, reading_settings
from data.regions import Pixels, open_source
from data.slide_regions import SUFFIXES as SLIDES
from data.sources import PictureFile, match_files
from data.writers.pictures import LONGEST_JPEG, save_picture
from data.zarr_regions import is_zarr
from detections import ImageDetections
from evaluation.large import TileOptions, describe_tiles, hint_at_tiles, looks_into_tiles, tile_sizes
from evaluation.large_outputs import LargePicture, NumberedRows, preview
from evaluation.own_detect import detection_settings
from model import MaskRCNN
from tiles import TiledDetections, detect_tiled, plan_tiles
from video import Frame, Source
from weights.published import find_weights

ROOT = Path(__file__).parent
PHOTOGRAPH = ROOT / "assets" / "coffee.jpg"
# The default images of each embedded model. No training has seen them: nuclei are of the validation split of the Data
# Science Bowl (NOTICE), shapes of the subset test of samples/shapes.py, the cat is scikit-image's.
EXAMPLES = {
    "nuclei": [ROOT / "assets" / "nuclei_1.jpg", ROOT / "assets" / "nuclei_2.jpg"],
    "shapes": [ROOT / "assets" / "shapes.jpg"],
    "photos": [ROOT / "assets" / "chelsea.jpg"],
}
OFFLINE = ("nuclei", "shapes")  # whose examples are shown where the default model cannot be had

############################################################
#  Sources and outputs
############################################################


def find_sources(names: list[str]) -> list[Source]:
    """The sources that names of files, folders, patterns, URLs and cameras (0, camera:0) mean, each once, in order.

    A folder stands for its images and videos, but not for those in folders inside.

    Raises: FileNotFoundError for a name without any source; ValueError for a URL that cannot be read.
    """
    sources: dict[Source, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            paths = [path] if is_zarr(path) else files_in(path)
        elif re.match("[A-Za-z][A-Za-z0-9+.-]+://", name):
            sources[Source(check_url(name), "stream")] = None
            continue
        elif name.startswith("camera:") or (name.isdecimal() and not path.exists()):
            sources[Source(name.removeprefix("camera:"), "camera")] = None
            continue
        else:
            paths = match_files(name)
        if not paths:
            raise FileNotFoundError(f"there is no file, folder or match of '{utils.printable(name)}'")
        for path in paths:
            sources[Source(str(path), "video" if path.suffix.lower() in video.SUFFIXES else "image")] = None
    return list(sources)


def files_in(folder: Path) -> list[Path]:
    """The images and videos of a folder by their suffixes, sorted; hidden files are none of them.

    Raises: FileNotFoundError if there are none.
    """
    suffixes = utils.IMAGE_SUFFIXES | SLIDES | video.SUFFIXES
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in shown if path.suffix.lower() in suffixes or is_zarr(path)]
    # A link to nothing is named later.
    paths = [path for path in paths if path.is_file() or is_zarr(path) or not path.exists()]
    if not paths:
        inside = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
        hint = (
            "" if inside is None else f"; of the folders inside, name each, or give a pattern, such as '{folder}/*/*'"
        )
        kinds = (
            f"images ({', '.join(sorted(utils.IMAGE_SUFFIXES))}) and no videos ({', '.join(sorted(video.SUFFIXES))})"
        )
        raise FileNotFoundError(utils.printable(f"folder {folder} has no {kinds}{hint}", 2000))
    return paths


def check_url(name: str) -> str:
    """The URL of a video. Raises: ValueError if its kind cannot be read, or if it is an image."""
    url = urllib.parse.urlsplit(name)
    if url.scheme.lower() not in video.SCHEMES:
        kinds = ", ".join(f"{scheme}://" for scheme in video.SCHEMES)
        raise ValueError(
            f"{utils.printable(Source(name, 'stream'))}: videos can be read from {kinds}; give a file as path"
        )
    if Path(url.path).suffix.lower() in utils.IMAGE_SUFFIXES:
        raise ValueError(
            f"{utils.printable(Source(name, 'stream'))} is an image, and only videos are read from the network; "
            "download it, for example with curl -LO, and give the file"
        )
    return name


def file_stem(source: Source) -> str:
    """The name of a source's output files, without suffix."""
    if source.kind == "camera":
        return f"camera_{Path(source.name).name}"
    if source.kind == "stream":
        url = urllib.parse.urlsplit(source.name)
        return re.sub(r"[^\w.-]+", "_", Path(url.path).stem or url.hostname or "stream")[:100]
    return Path(source.name).stem


def plan_outputs(sources: Sequence[Source], output: Path) -> list[Path]:
    """The output file of each source. Sources of the same name from different folders get numbers.

    Raises: ValueError if an output would replace a source.
    """
    paths, taken = [], set()
    for source in sources:
        stem = file_stem(source)
        suffix, number = ".jpg" if source.kind == "image" else ".mp4", 1
        name = f"{stem}{suffix}"
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        paths.append(output / name)
    replaced = {path.resolve() for path in paths} & {Path(source.name).resolve() for source in sources}
    if replaced:
        names = utils.listed(map(utils.printable, sorted(replaced)))
        raise ValueError(f"--output {output} would replace {names}; choose another")
    return paths


############################################################
#  Results and pictures
############################################################


def to_coco(result: dict[str, Any], image_id: int, name: str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections as COCO results: masks with their scores, each with its box (x, y, width, height)."""
    return [{**entry, "file_name": name} for entry in ImageDetections.of(result).to_coco(image_id, category_ids)]


class Results:
    """A file of results: .json is a list that is written at the end; .jsonl gets a line for each image at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.instances, self.images, self.entries = path, 0, 0, []
        self.lines = path.open("w", encoding="ascii") if path.suffix == ".jsonl" else None

    def add(self, name: str, frame: Frame, result: dict[str, Any], category_ids: Sequence[int]) -> None:
        """Add the detections in a frame. name: of its file."""
        self.images += 1
        entries = to_coco(result, self.images, name, category_ids)
        self.instances += len(entries)
        if self.lines is None:
            self.entries += entries
            return
        place = {"image_id": self.images, "file_name": name, "frame": frame.number, "seconds": float(frame.time)}
        with runtime.errors_name(self.path):
            self.lines.write(json.dumps({**place, "detections": entries}) + "\n")
            self.lines.flush()

    def close(self) -> None:
        """Finish the file."""
        if self.lines is None:
            runtime.write_atomically(self.path, lambda file: file.write(json.dumps(self.entries).encode()))
        else:
            with runtime.errors_name(self.path):
                self.lines.close()


class Pictures:
    """Writes the picture of each image, and the video of each video."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.video, self.source = paths, None, None

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], to the output of the frame's source."""
        if frame.clock is None:
            path = self.paths[frame.source]
            save_picture(picture, path if max(picture.shape) <= LONGEST_JPEG else path.with_suffix(".png"))
            return
        if self.source != frame.source:
            self.close()
            self.video, self.source = video.VideoWriter(self.paths[frame.source], frame), frame.source
        self.video.write(frame.time, picture)

    def close(self) -> None:
        """Finish the last video."""
        if self.video is not None:
            self.video.close()
            self.video = None


class Stopwatch:
    """Seconds spent in each kind of work. Several kinds may run at the same time."""

    KINDS = ("read", "resize", "network", "masks", "draw", "write", "show", "in tiles")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Add the seconds inside the with statement to a kind of work."""
        start = time.perf_counter()
        yield
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start

    def table(self, images: int) -> str:
        """A line for each kind of work, and one for the whole."""
        rows = [(name, self.seconds[name]) for name in (*self.KINDS, "in all") if self.seconds.get(name)]
        lines = [f"{name:8} {1000 * s / images:10.1f} {images / s:10.1f}" for name, s in rows]
        return "\n".join([f"{'':8} {'ms':>10} {'images/s':>10}   (these run at the same time)", *lines])


############################################################
#  Detection
############################################################


def read_frames(
    sources: Sequence[Source], every: int, failures: list[str], *settings: Any, left_out: Collection[int] = ()
) -> Iterator[Frame]:
    """All images and frames, one after another.

    failures: gets a message for each source that cannot be read. settings: of data.images.reading_settings. left_out:
    the places of sources that are not read.
    """
    reader = ImageReader()
    reader.inspect([source.name for source in sources if source.kind == "image"], *settings)
    for index, source in enumerate(sources):
        if index in left_out:
            continue
        try:
            if source.kind == "image":
                yield Frame(reader.read(source.name), index)
            else:
                yield from video.read_video(source, index, every)
        except (OSError, ValueError) as error:
            failures.append(str(error))


def batches(
    frames: Iterator[Frame], size: int, taken: deque, watch: Stopwatch, stopped: Callable[[], Any]
) -> Iterator[list[np.ndarray]]:
    """The images of frames, for detect_batches. taken: gets the frames of each batch. stopped: ends the batches."""
    while not stopped():
        with watch.time("read"):
            batch = list(itertools.islice(frames, size))
        if not batch:
            return
        taken.append(batch)
        yield [frame.image for frame in batch]


############################################################
#  Large images
############################################################

MOST_DRAWN = 1 << 26  # pixels of an image that is drawn as it is; a larger one gets a small copy
NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


def find_large(model: MaskRCNN, sources: Sequence[Source], arguments: argparse.Namespace) -> list[int]:
    """The places of images that are detected in tiles. What was chosen and why is printed."""
    options = tile_options(arguments)
    shapes, others = {}, {}
    for index, source in enumerate(sources):
        if source.kind != "image":
            continue
        shape, in_tiles = looks_into_tiles(source.name, model.config, options)
        if in_tiles:
            shapes[index] = shape
        elif shape is not None:
            others[str(source)] = shape
    named = {str(sources[index]): shape for index, shape in shapes.items() if shape is not None}
    for text in (*describe_tiles(named, model.config, options), *hint_at_tiles(others, model.config, options)):
        print(utils.printable(text, 2000))
    return list(shapes)


def tile_options(arguments: argparse.Namespace) -> TileOptions:
    """--tiles, --overlap and --scale."""
    return TileOptions(arguments.tiles, arguments.overlap, arguments.scale)


def add_large(
    model: MaskRCNN, source: Source, frame: Frame, pictures: Pictures, results: Results, arguments: argparse.Namespace,
    signals: runtime.StopSignals, failures: list[str],
) -> None:  # fmt: skip
    """Detect in an image in tiles, and add its picture and its results. After a signal, nothing is added.

    failures: gets a message if the image cannot be read.
    """
    if signals.received:
        return
    try:
        with open_source(source.name, model.config.IMAGE_CHANNEL_COUNT) as image:
            sizes = tile_sizes(model.config, tile_options(arguments))
            rows = plan_tiles(image.shape, model.config, *sizes).shape[0]
            parts = []
            with tqdm(total=rows, unit="row of tiles", desc=utils.printable(source), leave=False) as bar:
                for found in detect_tiled(model, image, *sizes, arguments.dtype or "float32"):
                    parts.append(found[found.mask_scores >= arguments.least_mask_score])
                    bar.update()
                    if signals.received:
                        return
            found = TiledDetections.cat(parts).sorted_by("scores")
            result = found.to_image_detections(image.shape).to_result()
            pictures.add(frame, draw_large(model, image, parts, found, arguments.labels))
            results.add(str(source), frame, result, model.category_ids)
    except (OSError, ValueError) as error:
        failures.append(str(error))


def draw_large(
    model: MaskRCNN, image: Any, parts: Sequence[TiledDetections], found: TiledDetections, labels: str
) -> np.ndarray:
    """The picture of an image that was detected in tiles: a small copy, if it is too large to look at.

    image: its source. parts: what was found, by rows of tiles. found: all of it. labels: of visualize.draw_instances.
    """
    height, width = image.shape[:2]
    if height * width > MOST_DRAWN:
        objects, name = NumberedRows(lambda: parts, 0.0), PictureFile("", "")
        return preview(LargePicture(name, image, objects, model.config, model.class_names))
    pixels = utils.viewable(Pixels(image, model.config).read(0, 0, height, width))
    captions = visualize.captions_of(found.to_result(), model.class_names)
    return visualize.draw_instances(pixels, found.rois, found.masks, captions, labels=labels)


############################################################
#  All sources
############################################################


class Outcome(NamedTuple):
    """The outcome of detect_all."""

    images: int
    instances: int
    failures: list[str]  # a message for each source that could not be read
    watch: Stopwatch
    signal: int | None  # the signal that ended the detection


def detect_all(
    model: MaskRCNN, sources: Sequence[Source], paths: Sequence[Path], arguments: argparse.Namespace, total, window
) -> Outcome:
    """Detect in every image and frame; write pictures, videos and results as they come.

    paths: of the picture or video of each source. total: images, or None. window: video.Window, or None.
    """
    watch, failures, taken = Stopwatch(), [], deque()
    large = find_large(model, sources, arguments)
    frames = read_frames(sources, arguments.every, failures, *reading_settings(model.config), left_out=large)
    is_live = any(source.kind in ("camera", "stream") for source in sources)
    size = 1 if is_live else model.config.IMAGES_PER_GPU
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(runtime.StopSignals())
        bar = stack.enter_context(tqdm(total=total, unit="image"))
        results = stack.enter_context(contextlib.closing(Results(arguments.save_json)))
        pictures = stack.enter_context(contextlib.closing(Pictures(paths)))
        stack.enter_context(watch.time("in all"))
        images = batches(frames, size, taken, watch, lambda: signals.received or (window and window.closed))
        # Closed here, also after Ctrl-C: its threads must end in this thread, not wherever the garbage collector runs.
        detected = model.detect_batches(images, arguments.dtype or "float32", "rle")
        stack.enter_context(contextlib.closing(detected))
        for batch_results in detected:
            for frame, result in zip(taken.popleft(), batch_results, strict=True):
                found = ImageDetections.of(result)
                result = found[found.mask_scores >= arguments.least_mask_score].to_result()
                with watch.time("draw"):
                    captions = visualize.captions_of(result, model.class_names)
                    instances = (result["rois"], result["masks"], captions)
                    drawn = visualize.draw_instances(frame.image, *instances, labels=arguments.labels)
                with watch.time("write"):
                    pictures.add(frame, drawn)
                    results.add(str(sources[frame.source]), frame, result, model.category_ids)
                if window is not None:
                    with watch.time("show"):
                        window.add(drawn)
                bar.update()
        watch.seconds |= model.seconds
        for index in large:
            with watch.time("in tiles"):
                rest = (pictures, results, arguments, signals, failures)
                add_large(model, sources[index], Frame(NO_IMAGE, index), *rest)
            bar.update()
    return Outcome(results.images, results.instances, failures, watch, signals.received)


############################################################
#  Command line
############################################################


def plan_runs(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of each run, with a model and sources.

    Usually there is one run. Without sources and --model, and if the model "coco" cannot be downloaded, each embedded
    model has a run on its own images, with a folder and a results file of its own.
    """
    if arguments.model is None and not arguments.sources:
        try:
            find_weights("coco")
        except OSError as error:
            print(
                f"{error}\n\nSo two small models show what they can do: {' and '.join(OFFLINE)}. This project trained "
                "them (samples/) and brings them along. They have never seen these images in training.\n"
            )
            return [_example_run(arguments, name) for name in OFFLINE]
    model = arguments.model or "coco"
    sources = arguments.sources or list(map(str, EXAMPLES.get(model, [PHOTOGRAPH])))
    return [argparse.Namespace(**vars(arguments) | {"model": model, "sources": sources})]


def _example_run(arguments: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments of the run of an embedded model on its own images."""
    path = arguments.save_json and arguments.save_json.with_stem(f"{arguments.save_json.stem}_{name}")
    changes = {"model": name, "sources": list(map(str, EXAMPLES[name])), "output": arguments.output / name}
    return argparse.Namespace(**vars(arguments) | changes | {"save_json": path})


def plan_results(arguments: argparse.Namespace, sources: Sequence[Source]) -> Path:
    """The path of the results. Raises: ValueError if that file cannot hold them, or is a source."""
    videos = [str(source) for source in sources if source.kind != "image"]
    path = arguments.save_json or arguments.output / ("detections.jsonl" if videos else "detections.json")
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"--save-json must be a file .json (a list) or .jsonl (a line for each image), not {path}")
    if path.is_dir():
        raise ValueError(f"--save-json {path} is a folder; name a file")
    if videos and path.suffix == ".json":
        first = utils.printable(videos[0])
        raise ValueError(f"--save-json {path}: the results of {first} need a .jsonl, which is written as they come")
    if path.resolve() in {Path(source.name).resolve() for source in sources}:
        raise ValueError(f"--save-json {path} would replace a source; choose another")
    return path


def write_stages(model: MaskRCNN, source: Source, output: Path) -> None:
    """Write the pictures of an image's stages, or of the first frame's."""
    failures: list[str] = []
    frame = next(read_frames([source], 1, failures, *reading_settings(model.config)), None)
    if frame is None:
        raise ValueError(f"--stages has no image to look at: {', '.join(failures) or f'{source} has no frames'}")
    for name, picture in stages.draw_stages(model, frame.image).items():
        path = output / f"{file_stem(source)}_{name}.png"
        save_picture(picture, path)
        print(f"stage: {utils.printable(path)}")


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    parser = cli.Parser("demo.py", __doc__)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="FILE|FOLDER|GLOB|URL|CAMERA",
        help="images, videos, folders of both, patterns, video streams, webcams; default: images in assets/",
    )
    cli.add_model(parser, "coco")
    cli.add_checkpoint_options(parser)
    cli.add_output(parser, "pictures, videos and results", "output")
    parser.add_argument(
        "--save-json", type=Path, metavar="FILE", help="write the results here instead of OUTPUT/detections.json[l]"
    )
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default="auto",
        help="captions: auto shrinks or leaves out those that would hide objects; all; none; default: auto",
    )
    parser.add_argument(
        "--font", type=Path, metavar="FILE", help=f"font of the captions, for scripts that {fonts.dejavu().stem} lacks"
    )
    parser.add_argument("--show", action="store_true", help="show the pictures in a window, too")
    parser.add_argument(
        "--stages", action="store_true", help="draw each stage of the first image, too: OUTPUT/NAME_*.png"
    )
    parser.add_argument(
        "--every",
        type=cli.whole_number(1),
        default=1,
        metavar="N",
        help="detect in each Nth frame of a video only; default: 1",
    )
    parser.add_argument(
        "--threshold", type=cli.share,
        help="the lowest class score of an instance; default: 0.5, or what --set says; of a model that stores a "
        "threshold, the mask score from which on `custom.py detect` keeps an object",
    )  # fmt: skip
    cli.add_tiles(parser)
    cli.add_device(parser)
    cli.add_dtype(parser)
    cli.add_set(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    arguments = build_parser().parse_intermixed_args(argv)  # sources may stand between options
    return cli.run("demo.py", lambda: run_all(arguments))


def run_all(arguments: argparse.Namespace) -> int:
    """Run what plan_runs says, and return the highest exit code. A signal ends all runs."""
    fonts.use_font(arguments.font, "--font FILE")
    code = 0
    for run_arguments in plan_runs(arguments):
        code = max(code, run(run_arguments))
        if code > 128:
            break
    return code


def openable(sources: Sequence[Source], every: int) -> tuple[list[Source], list[int | None], list[str]]:
    """The sources without the videos that cannot be opened, the number of frames of each, and what was left out why.

    Raises: ValueError if no source is left.
    """
    good, counts, failures = [], [], []
    for source in sources:
        try:
            counts.append(video.count_frames(source, every))
            good.append(source)
        except ValueError as error:
            failures.append(str(error))
    if not good:
        raise ValueError(utils.listed(dict.fromkeys(failures), 5))
    return good, counts, failures


def open_model(arguments: argparse.Namespace) -> MaskRCNN:
    """The model, which is named on the screen. arguments: gets least_mask_score, below which nothing is shown.

    Of a model that stores a threshold, as trainings of custom.py do, what `custom.py detect` keeps is shown, unless the
    command line names a class score. Raises: as cli.open_model.
    """
    chosen = arguments.threshold is not None or "DETECTION_MIN_CONFIDENCE" in cli.settings_of(arguments)
    least = 0.5 if arguments.threshold is None else arguments.threshold

    def adapt(config: Config) -> dict[str, Any]:
        stores = not chosen and config.SCORE_THRESHOLD is not None
        return detection_settings(config, None, **cli.settings_of(arguments)) if stores else {}

    model = cli.open_model(arguments, "coco", adapt=adapt, DETECTION_MIN_CONFIDENCE=least)
    print(f"weights: {utils.printable(model.source)}")
    stored = None if chosen else model.config.SCORE_THRESHOLD
    arguments.least_mask_score = -math.inf if stored is None else stored  # a predicted IoU may be negative
    if stored is not None:
        kind = "mask score" if model.config.USE_MASKIOU_HEAD else "class score"
        print(f"threshold: {kind} {stored:g}, which the model stores; --threshold names a class score instead")
    return model


def run(arguments: argparse.Namespace) -> int:
    """Detect with one model. Returns the exit code. Raises: OSError or ValueError for mistakes."""
    sources = find_sources(arguments.sources)
    sources, counts, failures = openable(sources, arguments.every)
    paths = plan_outputs(sources, arguments.output)
    arguments.save_json = plan_results(arguments, sources)
    for argument, folder in (("--output", arguments.output), ("--save-json", arguments.save_json.parent)):
        cli.check_folder(argument, folder)
    window = video.Window() if arguments.show else None
    model = open_model(arguments)
    if arguments.labels != "none":
        fonts.warn_of_missing(map(fonts.one_line, model.class_names))  # here, as the bar of progress begins below
    for folder in (arguments.output, arguments.save_json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.stages:
        write_stages(model, sources[0], arguments.output)
    total = None if None in counts else sum(counts)
    outcome = detect_all(model, sources, paths, arguments, total, window)
    if outcome.images:
        where = f"{arguments.output}/ and {arguments.save_json}"
        print(f"{outcome.instances} instances in {outcome.images} images: see {where}")
        print(outcome.watch.table(outcome.images))
    failures += outcome.failures
    for failure in dict.fromkeys(failures):
        print(f"not read: {utils.printable(failure, 2000)}", file=sys.stderr)
    if outcome.signal is not None:
        return 128 + outcome.signal
    if window is not None and sources[-1].kind == "image":
        window.wait()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

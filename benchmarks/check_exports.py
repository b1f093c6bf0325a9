"""Exported models in an interpreter without torch find what the models find: embedded ones, and one of each dialect.

    python benchmarks/check_exports.py --python OTHER/bin/python [--only NAME ...] [--output FILE]

OTHER is an environment with NumPy, Pillow and onnxruntime, and without torch. Each model is exported; there,
onnx_detect.py, copied alone beside the file, detects in image files; here, detect() does. Counted are detections that
are alike (class, box within 1 pixel, score within 0.003, mask IoU 0.98) and masks that are equal to the pixel. The R-50
models have the weights of golden_weights.py, which are random and react to every rounding. The last line printed is
JSON.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the deterministic weights

if __name__ == "__main__":
    import startup

    startup.begin()

import golden_weights
import numpy as np
import torch
from PIL import Image

import export
from benchmarks import machine
from data.images import read_image
from model import MaskRCNN
from weights.load import load_checkpoint, load_model

MODELS = ("shapes", "nuclei", "r50-caffe", "benchmark", "torchvision", "matterport", "port2018")
_PROGRAM = """
import sys
assert "torch" not in sys.modules
import numpy as np
from onnx_detect import Detector
try:
    import torch
    raise SystemExit("this interpreter has torch")
except ImportError:
    pass
detector = Detector("model.onnx")
groups = [name.split(",") for name in sys.argv[1:]]
for number, names in enumerate(groups):
    for i, result in enumerate(detector.detect_batch(names)):
        np.savez(f"{number}_{i}.npz", **{key: value for key, value in result.items() if value is not None})
"""


def model_of(name: str, folder: str) -> MaskRCNN:
    """An embedded model, or a ResNet-50 with deterministic weights."""
    if name in ("shapes", "nuclei"):
        return load_model(name, torch.device("cpu"))
    checkpoint = load_checkpoint(golden_weights.write_checkpoint(name, folder))
    overrides = {"DETECTION_MIN_CONFIDENCE": 0.0} if checkpoint["config"]["DIALECT"] == "matterport" else {}
    return MaskRCNN.from_checkpoint(checkpoint, device="cpu", **overrides)


def images_in(folder: Path) -> list[list[str]]:
    """Batches of image files, written into a folder: a photograph, parts of it, cells, shapes, noise, and black."""
    coffee = read_image(ROOT / "assets" / "coffee.jpg")
    pictures = {
        "coffee": coffee,
        "tall": coffee[:, 100:260],
        "cells": read_image(ROOT / "assets" / "nuclei_1.jpg"),
        "shapes": read_image(ROOT / "assets" / "shapes.jpg"),
        "noise": np.random.default_rng(0).integers(0, 256, (150, 211, 3), dtype=np.uint8),
        "black": np.zeros((100, 120, 3), np.uint8),
        "mirrored": coffee[:, ::-1],
        "turned": coffee[::-1, ::-1],
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    single = [[f"{name}.png"] for name in ("coffee", "tall", "cells", "shapes", "noise", "black")]
    return [*single, ["coffee.png", "mirrored.png", "turned.png"]]


def measure(name: str, python: str) -> Iterator[dict[str, Any]]:
    """A row for each batch of images."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model = model_of(name, text)
        data, _, detector = export.export_model(model)
        (folder / "model.onnx").write_bytes(data)
        (folder / "onnx_detect.py").write_bytes((ROOT / "onnx_detect.py").read_bytes())
        batches = images_in(folder)
        groups = [",".join(batch) for batch in batches]
        subprocess.run([python, "-c", _PROGRAM, *groups], cwd=folder, check=True)
        for number, batch in enumerate(batches):
            results = model.detect([folder / path for path in batch])
            total = np.zeros(5, int)
            for i, expected in enumerate(results):
                with np.load(folder / f"{number}_{i}.npz") as found:
                    total += export.compare(expected, dict(found), detector.settings)
            counts = dict(zip(export.Agreement._fields, total.tolist(), strict=True))
            yield {"model": name, "dialect": model.config.DIALECT, "images": batch, **counts}


def main() -> None:
    """Compare, and print the table and the JSON line."""
    parser = machine.make_parser("check_exports.py", __doc__)
    parser.add_argument("--python", required=True, help="an interpreter without torch")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="these models; default: all")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        for row in measure(name, arguments.python):
            rows.append(row)
            images = "+".join(Path(path).stem for path in row["images"])
            print(
                f"{name:12} {row['dialect']:12} {images:24} {row['matched']:4} of {row['expected']:4} alike, "
                f"{row['found']:4} found there, {row['identical']:4} masks to the pixel, {row['misses']} misses",
                flush=True,
            )
    machine.finish({**machine.describe(), "cases": rows}, arguments.output)


if __name__ == "__main__":
    main()

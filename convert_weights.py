"""Convert any checkpoint of the family into one of this project: the command line of weights/.

    python convert_weights.py SRC DST [--style caffe|pytorch] [--classes FILE] [--eps EPS] [--half] [--force]

weights/convert.py says which formats it reads, and how.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import parse_settings
from model import network_shapes
from weights.checkpoint import describe, halved, with_settings, write_checkpoint
from weights.convert import read_class_names
from weights.formats import STYLES
from weights.load import load_with_report
from weights.published import PUBLISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Convert any published checkpoint of the Mask R-CNN family into one of this project.",
        epilog="Names: " + ", ".join(f"{name} ({published.note})" for name, published in PUBLISHED.items()),
    )
    parser.add_argument("source", metavar="SRC", help="the checkpoint: a file of any format, or a published name")
    parser.add_argument("target", metavar="DST", help="the file to write, usually .pth")
    parser.add_argument("--style", choices=STYLES, help="of a ResNet of mmdetection, where nothing else tells")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, without the background")
    parser.add_argument(
        "--eps",
        type=float,
        help="of a torchvision ResNet-50 with frozen batch norm: 0 (default) if it was trained from the published "
        "detector, 1e-5 if from an ImageNet backbone; the file does not tell",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="settings of config.py to store"
    )
    parser.add_argument("--half", action="store_true", help="store weights in half precision, half of the bytes")
    parser.add_argument("--force", action="store_true", help="replace DST where it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exits with status 1 and a message where convert raises."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    target = Path(arguments.target)
    try:
        if target.exists() and (target.is_dir() or not arguments.force):
            how = "is a folder; name a file in it" if target.is_dir() else "exists; --force replaces it"
            raise ValueError(f"DST {target} {how}")
        if not target.resolve().parent.is_dir():
            raise FileNotFoundError(f"DST {target}: the folder {target.resolve().parent} does not exist")
        names = read_class_names(arguments.classes) if arguments.classes else None
        settings = parse_settings(arguments.set)
        checkpoint, report = load_with_report(arguments.source, arguments.style, names, arguments.eps)
        if settings:
            checkpoint = with_settings(checkpoint, settings, network_shapes)
        write_checkpoint(target, halved(checkpoint) if arguments.half else checkpoint)
    except (ValueError, OSError) as error:
        parser.exit(1, f"convert_weights.py: {error}\n")
    print(report.text(len(checkpoint["model"])))
    print(describe(checkpoint))
    print(f"written     {target}")


if __name__ == "__main__":
    main(sys.argv[1:])

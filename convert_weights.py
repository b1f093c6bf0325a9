"""Convert any checkpoint of the family into one of this project: the command line of weights/.

    python convert_weights.py SRC DST [--style caffe|pytorch] [--classes FILE] [--eps EPS] [--source-config FILE]
                                      [--set NAME=VALUE ...] [--half] [--force]

weights/convert.py says which formats it reads, and how.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cli
from model import network_shapes
from weights.checkpoint import describe, halved, with_settings, write_checkpoint
from weights.load import load_with_report
from weights.published import PUBLISHED


def build_parser() -> cli.Parser:
    """The command line's arguments."""
    names = ", ".join(f"{name} ({published.note})" for name, published in PUBLISHED.items())
    parser = cli.Parser("convert_weights.py", __doc__, epilog=f"Names: {names}")
    parser.add_argument("source", metavar="SRC", help="the checkpoint: a file of any format, or a published name")
    parser.add_argument("target", metavar="DST", type=Path, help="the file to write, usually .pth")
    cli.add_checkpoint_options(parser)
    cli.add_set(parser)
    parser.add_argument("--half", action="store_true", help="store weights in half precision, half of the bytes")
    parser.add_argument("--force", action="store_true", help="replace DST where it exists")
    return parser


def convert(arguments: argparse.Namespace) -> None:
    """Convert SRC, write DST, and print what the conversion did.

    Raises: ValueError or OSError for an SRC that cannot be converted and a DST that cannot be written.
    """
    target = arguments.target
    if target.exists() and (target.is_dir() or not arguments.force):
        reason = "is a folder; name a file in it" if target.is_dir() else "exists; --force replaces it"
        raise ValueError(f"DST {target} {reason}")
    if not target.resolve().parent.is_dir():
        raise FileNotFoundError(f"DST {target}: the folder {target.resolve().parent} does not exist")
    options, settings = cli.checkpoint_options(arguments), cli.settings_of(arguments)
    checkpoint, report = load_with_report(arguments.source, **options, **settings)
    if settings:
        checkpoint = with_settings(checkpoint, settings, network_shapes)
    write_checkpoint(target, halved(checkpoint) if arguments.half else checkpoint)
    print(report.text(len(checkpoint["model"])))
    print(describe(checkpoint))
    print(f"written     {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; cli.py lists them."""
    arguments = build_parser().parse_args(argv)
    return cli.run("convert_weights.py", lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())

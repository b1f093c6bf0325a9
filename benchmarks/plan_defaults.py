"""Whether the settings that custom.py train plans are better than others: one setting changed at a time.

    python benchmarks/plan_defaults.py --dataset DIR [--seeds 0 1] [--variants NAME ...] [--steps 320] [--folder FOLDER]

Each run is a short training by custom.py's plan, with --set for the variant, and its mask AP on val at the end. Runs of
one seed see the same pictures in the same order as far as the variant lets them. FOLDER/VARIANT-seed-N has each run:
what is finished stays. Prints a table of the differences to the plan, seed by seed, and one line of JSON.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import custom
from benchmarks import machine

BASE = "as planned"
VARIANTS = {
    BASE: [],
    "not enlarged": ["IMAGE_MIN_SCALE=1", "RPN_ANCHOR_SCALES=12,24,48,96,192"],
    "enlarged 3 x": ["IMAGE_MIN_SCALE=3"],
    "anchors 8 to 128": ["RPN_ANCHOR_SCALES=8,16,32,64,128"],
    "no turns": ["QUARTER_TURNS=False", "VERTICAL_FLIP=0"],
    "no brightness": ["BRIGHTNESS_JITTER=0", "CONTRAST_JITTER=0"],
    "no scale": ["SCALE_JITTER=None"],
    "scale 0.5 to 2": ["SCALE_JITTER=0.5,2"],
    "no colour": ["COLOR_JITTER=0"],
    "copy-paste": ["COPY_PASTE=0.5"],
    "half the side": ["IMAGE_MIN_DIM=114", "IMAGE_MAX_DIM=160", "RPN_ANCHOR_SCALES=24,48,96,192,384"],
    "constant rate": ["LEARNING_RATE_DECAY=steps"],
    "SGD": ["OPTIMIZER=sgd", "LEARNING_RATE=0.02"],
}


def run(dataset: Path, folder: Path, variant: str, seed: int, steps: int) -> float | None:
    """The mask AP of a variant at the end of its training, in points; None if it was interrupted."""
    output = folder / f"{variant.replace(' ', '-')}-seed-{seed}"
    words = ["train", "--dataset", str(dataset), "--output", str(output), "--seed", str(seed), "--device", "cpu"]
    settings = [f"STEPS_PER_EPOCH={max(1, steps // 8)}", "EVAL_EVERY=8", "VALIDATION_STEPS=1", *VARIANTS[variant]]
    metrics = output / "evaluation" / "metrics.json"
    if not metrics.is_file():
        output.mkdir(parents=True, exist_ok=True)
        with (output / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            if custom.main([*words, "--set", *settings]) != 0:
                return None
    return 100 * json.loads(metrics.read_text())["metrics"]["mask AP"]


def table(results: dict[str, dict[int, float]]) -> str:
    """A row a variant: the mean AP, and the difference to the plan of each seed that both have."""
    lines = [f"{'':<18} {'mask AP':>8}   difference to the plan, a seed each"]
    for variant, by_seed in results.items():
        mean = sum(by_seed.values()) / len(by_seed)
        differences = [by_seed[seed] - results[BASE][seed] for seed in by_seed if seed in results.get(BASE, {})]
        shown = "  ".join(f"{difference:+.1f}" for difference in differences) if variant != BASE else ""
        lines.append(f"{variant:<18} {mean:>8.1f}   {shown}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs what is not finished, and prints the table."""
    parser = machine.make_parser("plan_defaults.py", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=320, help="of each run; default: 320")
    parser.add_argument("--folder", type=Path, default=Path("plan_defaults"))
    arguments: argparse.Namespace = parser.parse_args(argv)
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    results: dict[str, dict[int, float]] = {}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            value = run(arguments.dataset, arguments.folder, variant, seed, arguments.steps)
            if value is not None:
                results.setdefault(variant, {})[seed] = round(value, 2)
                print(f"{variant}, seed {seed}: {value:.1f}", file=sys.stderr, flush=True)
    print(table(results))
    facts = {**machine.describe(), "dataset": str(arguments.dataset), "steps": arguments.steps, "mask AP": results}
    machine.finish(facts, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

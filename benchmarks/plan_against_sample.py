"""custom.py train's own plan against the settings that samples/nucleus.py chose by hand, on nuclei.

    python benchmarks/plan_against_sample.py --dataset DIR [--seeds 0 1 2] [--steps 900] [--folder FOLDER]

Both train the same network from random weights, in batches of four, for as many steps; the last ninth of them trains
the MaskIoU head alone. Both models are then evaluated alike: whole pictures of val, 1,000 results each. What is
finished stays in FOLDER. Prints the mask AP of each seed, the minutes of both trainings, and one line of JSON.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import startup

    startup.begin()

import custom
from benchmarks import machine
from evaluation.run import evaluate_dataset
from samples import nucleus
from training.checkpoints import best_path, find_last
from weights.load import load_model

EPOCHS = 8  # of the plan, and of the sample here, before the one of the MaskIoU head


def planned(dataset: Path, folder: Path, seed: int, steps: int) -> Path:
    """The model of custom.py train."""
    words = ["train", "--dataset", str(dataset), "--output", str(folder), "--seed", str(seed), "--device", "cpu"]
    settings = [f"STEPS_PER_EPOCH={steps // (EPOCHS + 1)}", "VALIDATION_STEPS=1", "EVAL_EVERY=4"]
    if custom.main([*words, "--set", *settings]):
        raise KeyboardInterrupt
    return folder / "model.pth"


def by_hand(dataset: Path, folder: Path, seed: int, steps: int) -> Path:
    """The model of samples/nucleus.py."""
    words = ["train", "--dataset", str(dataset), "--subset", "train", "--seed", str(seed), "--logs", str(folder)]
    words += ["--epochs", str(EPOCHS), "--head-epochs", "1", "--eval-images", "50", "--device", "cpu"]
    settings = [f"STEPS_PER_EPOCH={steps // (EPOCHS + 1)}", "VALIDATION_STEPS=1", "EVAL_EVERY=4"]
    start = ["--model", "last"] if list(folder.glob("*/*.pth")) else []
    if nucleus.main([*words, *start, "--set", *settings]):
        raise KeyboardInterrupt
    return best_path(find_last(folder, nucleus.NucleusConfig.NAME).parent, nucleus.NucleusConfig.NAME)


def mask_ap(path: Path, dataset: nucleus.NucleusDataset) -> float:
    """In points, in whole pictures."""
    model = load_model(path)
    settings = nucleus.detection_settings(model.config, dataset, DETECTION_MAX_INSTANCES=500)
    model = load_model(path, **settings)
    return 100 * evaluate_dataset(model, dataset, max_dets=nucleus.MAX_DETS, verbose=False)["mask AP"]


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates both, seed by seed."""
    parser = machine.make_parser("plan_against_sample.py", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--steps", type=int, default=900, help="of each training; default: 900")
    parser.add_argument("--folder", type=Path, default=Path("plan_against_sample"))
    arguments = parser.parse_args(argv)
    os.environ.setdefault("MASKSCORING_KEEP_MEMORY", "1")
    val = nucleus.make_dataset(arguments.dataset, "val")
    rows = []
    for seed in arguments.seeds:
        row = {"seed": seed}
        for name, train in (("planned", planned), ("by hand", by_hand)):
            folder = arguments.folder / f"{name.replace(' ', '-')}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            with (arguments.folder / f"{folder.name}.txt").open("a") as log, contextlib.redirect_stdout(log):
                path = train(arguments.dataset, folder, seed, arguments.steps)
            row |= {f"{name}, minutes": round((time.perf_counter() - start) / 60, 1)}
            row |= {f"{name}, mask AP": round(mask_ap(path, val), 2)}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    machine.finish({**machine.describe(), "steps": arguments.steps, "rows": rows}, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

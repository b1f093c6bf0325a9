"""The tables of docs/speed.md and docs/large_images.md, made of the results in benchmarks/results/.

    python benchmarks/tables.py            # writes the tables into the pages again
    python benchmarks/tables.py --check    # exit code 1 if that would change a page

A table stands between two comments of the page; the first names its subject and its file:

    <!-- table: detect benchmarks/results/2026-11-29-epyc-2-threads.json -->
    <!-- end of table -->

The file has the results of one benchmark, or those of all, as bench.py writes them.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import startup

    startup.begin()

import cli
import runtime

PAGE = ROOT / "docs" / "speed.md"
OTHER_PAGES = {"tiles": "large_images.md", "tiles_growth": "large_images.md"}  # of subjects
_BLOCK = re.compile(
    r"(?P<start><!-- table: (?P<subject>\w+) (?P<path>\S+) -->\n).*?(?P<end><!-- end of table -->)", flags=re.DOTALL
)
Row = Sequence[str]


############################################################
#  Tables
############################################################


def operators(facts: dict[str, Any]) -> list[Row]:
    """bench_ops.py."""
    theirs = f"torchvision {_version(facts['torchvision'])}, ms" if facts["torchvision"] else "torchvision, ms"
    rows = [[_machine(facts), "ours, ms", theirs, "faster by", "the reference in torch, ms"]]
    for case in facts["cases"]:
        other = "-" if case["torchvision_ms"] is None else f"{case['torchvision_ms']:.1f}"
        faster = "-" if case["speedup"] is None else f"{case['speedup']:.0f} x"
        reference = "-" if case.get("reference_ms") is None else f"{case['reference_ms']:.0f}"
        rows.append([case["name"], f"{case['ours_ms']:.2f}", other, faster, reference])
    return rows


def detection(facts: dict[str, Any]) -> list[Row]:
    """bench_detect.py."""
    titles = ["ms an image", "faster than torchvision", "GFLOP/s of the convolutions", "of the machine's peak"]
    rows = [[_machine(facts), *titles, "memory, MB"]]
    for case in facts["cases"]:
        numbers = [f"{case['ms']:.0f}", f"{case['speedup']:.2f} x" if case.get("speedup") else ""]
        numbers += [f"{case['convolution_gflop_per_s']:.0f}", f"{100 * case['share_of_peak']:.0f} %"]
        rows.append([f"{case['name']}, {case['dtype']}", *numbers, f"{case['peak_mb']:.0f}"])
    if theirs := facts["torchvision"]:
        name = f"torchvision {_version(theirs['version'])}, Mask R-CNN R-50, float32"
        rows.append([name, f"{theirs['ms']:.0f}", "", "", "", ""])
        rows.append([f"{name}, keeping memory", f"{theirs['ms_keeping_memory']:.0f}", "", "", "", ""])
    for dtype, peak in {case["dtype"]: case["peak_gflop_per_s"] for case in facts["cases"]}.items():
        rows.append([f"one convolution alone, {dtype}", "", "", f"{peak:.0f}", "100 %", ""])
    for kind, name in (("array", 'masks="array"'), ("rle", 'masks="rle"'), ("network", "the network alone")):
        if facts.get("large_photograph_mb"):
            memory = facts["large_photograph_mb"][kind]
            rows.append([f"MS R-CNN R-50, float32, 4000 x 3000 pixels, {name}", "", "", "", "", f"{memory:.0f}"])
    return rows


def training(facts: dict[str, Any]) -> list[Row]:
    """bench_train.py. Cases in which both libraries keep memory are compared with each other, too."""
    titles = ["ms a step", "images/s", "faster than torchvision", "peak memory, MB", "of torchvision's"]
    rows = [[_machine(facts), *titles, "kept for gradients, MB"]]
    for case in facts["cases"]:
        keeps = "_keeping_memory" if case["keeps_memory"] else ""
        speedup, share = case.get(f"speedup{keeps}"), case.get(f"memory_share{keeps}")
        compared = ["", ""]
        if case["library"] == "ours" and speedup:
            compared = [f"{speedup:.2f} x", f"{100 * share:.0f} %"]
        numbers = [f"{case['ms']:.0f}", f"{case['images_per_s']:.3f}", compared[0], f"{case['peak_mb']:.0f}"]
        rows.append([f"{case['name']}, {case['dtype']}", *numbers, compared[1], f"{case['saved_mb']:.0f}"])
    return rows


def evaluation(facts: dict[str, Any]) -> list[Row]:
    """bench_eval.py."""
    rows = [[_machine(facts), "ours, s", "plain pycocotools, s", "faster by", "ours, MB", "plain, MB"]]
    for case in facts["cases"]:
        seconds = [f"{case['ours_s']:.1f}", f"{case['plain_s']:.1f}", f"{case['plain_s'] / case['ours_s']:.1f} x"]
        rows.append([case["name"], *seconds, f"{case['ours_mb']:.0f}", f"{case['plain_mb']:.0f}"])
    loading = facts["loading"]
    name = f"loading a file of {loading['images']} images with {loading['annotations']} objects"
    return [*rows, [name, f"{loading['seconds']:.1f}", "", "", f"{loading['peak_mb']:.0f}", ""]]


def loading(facts: dict[str, Any]) -> list[Row]:
    """bench_data.py, by what both sides do."""
    ours, theirs = facts["ours_ms"], facts["torchvision_ms"]
    labels = ours["labels"] + ours["cut out"] + ours["place masks"], theirs["masks"] + theirs["flip"]
    pairs = {
        "decode": (ours["decode"], theirs["decode"]),
        "labels, masks and flip": labels,
        "resize to 800 x 1333, masks too on torchvision's side": (ours["resize"], theirs["resize"]),
        "the whole picture": (ours["whole"], theirs["whole"]),
    }
    rows = [[f"CPU time of one thread; {_machine(facts)}", "ours, ms a picture", "torchvision's, ms", "faster by"]]
    return rows + [[name, f"{a:.1f}", f"{b:.1f}", f"{b / a:.1f} x"] for name, (a, b) in pairs.items()]


def peers(facts: dict[str, Any]) -> list[Row]:
    """bench_peers.py."""
    ours = {case["name"].split(", ")[1]: case["all_ms"] for case in facts["cases"] if case["name"].startswith("ours")}
    rows = [[_machine(facts), "ms", "ours, of its time"]]
    for case in facts["cases"]:
        name, dtype = case["name"].split(", ")
        share = "" if name == "ours" else f"{ours[dtype] / case['all_ms']:.2f}"
        rows.append([case["name"], f"{case['all_ms']:.0f}", share])
    return rows


def drawing(facts: dict[str, Any]) -> list[Row]:
    """bench_visualize.py."""
    return [[_machine(facts), "ms"], *([case["name"], f"{case['ms']:.0f}"] for case in facts["cases"])]


def growth(facts: dict[str, Any]) -> list[Row]:
    """bench_growth.py: each curve from its first value to its last."""
    rows = [[_machine(facts), "from", "to", "seconds", "MB", "each more, ms", "each more, MB"]]
    for name, points in facts["curves"].items():
        if len(points) < 2:
            continue
        first, last, label = points[0], points[-1], facts["labels"][name]
        sizes = [f"{point['size']:,.3g}" if point["size"] < 1000 else f"{point['size']:,.0f}" for point in points]
        slopes = [facts["slopes"][name][column] for column in ("ms", "mb")]
        rows.append(
            [
                name if name == label else f"{name}, {label}",
                *(sizes[0], sizes[-1], f"{first['ms'] / 1e3:.1f} to {last['ms'] / 1e3:.1f}"),
                f"{first['mb']:,.0f} to {last['mb']:,.0f}",
                *(
                    "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
                    for value in slopes
                ),
            ]
        )
    return rows


def tiled(facts: dict[str, Any]) -> list[Row]:
    """bench_tiles.py: each rule's agreement with one piece, the mean of all seeds."""
    titles = ["objects", "IoU 0.95", "0.9", "0.5", "new", "doubles", "truth", "right", "wrong"]
    rows, cases = [["tile/overlap", *titles]], {}
    for part in ("nuclei", "shapes"):
        for row in facts.get(part, {}).get("rows", []):
            tile = row.get("tile", facts[part].get("tile"))
            cases.setdefault(f"{part}, {tile}/{row['overlap']}: {row['rule']}", []).append(row)
    for name, of_seeds in cases.items():
        cells = [f"{sum(row['objects'] for row in of_seeds) / len(of_seeds):,.0f}"]
        for column in ("0.95", "0.9", "0.5", "new", "doubles", "truth", "right", "wrong"):
            shares = [row.get(column) for row in of_seeds]
            cells.append("" if None in shares else f"{100 * sum(shares) / len(shares):.1f} %")
        rows.append([name, *cells])
    return rows


# Subjects, as the comments of the page name them: what makes the table, and the command that measures.
TABLES: dict[str, tuple[Callable[[dict[str, Any]], list[Row]], str]] = {
    "ops": (operators, "bench_ops.py"),
    "detect": (detection, "bench_detect.py"),
    "train": (training, "bench_train.py"),
    "eval": (evaluation, "bench_eval.py"),
    "data": (loading, "bench_data.py"),
    "peers": (peers, "bench_peers.py"),
    "visualize": (drawing, "bench_visualize.py"),
    "growth": (growth, "bench_growth.py"),
    "tiles": (tiled, "bench_tiles.py"),
    "tiles_growth": (growth, "bench_tiles.py"),
}


def _machine(facts: dict[str, Any]) -> str:
    count = facts["threads"]
    return f"{facts['cpu'].split(',')[0].strip()}, {count} thread{'s' * (count != 1)}"


def _version(text: str) -> str:
    return text.split("+")[0]


############################################################
#  Page
############################################################


def read_results(subject: str, path: Path) -> dict[str, Any]:
    """The results of one benchmark in a file, which may have those of others."""
    facts = json.loads(path.read_text())
    return facts["results"][_result_of(subject)] if "results" in facts else facts


def _result_of(subject: str) -> str:
    """The name that bench.py gives to the results of a subject."""
    return TABLES[subject][1].removeprefix("bench_").removesuffix(".py")


def page_of(subject: str) -> Path:
    """The page that has the tables of a subject."""
    return PAGE.with_name(OTHER_PAGES.get(subject, PAGE.name))


def table(subject: str, path: str) -> str:
    """A table in Markdown, and a sentence about where its figures come from. path: from the project's folder."""
    facts = read_results(subject, ROOT / path)
    rows = TABLES[subject][0](facts)
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    text = "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in lines)
    return (
        f"{text}\n\nMeasured at revision {facts['revision']} with torch {_version(facts['torch'])}; "
        f"[all figures](../{path}).\n"
    )


def with_tables(page: str) -> str:
    """A page with each of its tables made anew."""
    return _BLOCK.sub(lambda block: block["start"] + table(block["subject"], block["path"]) + block["end"], page)


def with_results(page: str, subject: str, path: str) -> str:
    """A page whose table of a subject is of another file: the table of the same machine, or a new one after the others.

    path: of the file, from the project's folder. Its name ends with the machine: 2026-11-28-xeon-2-threads.json.

    Raises: ValueError if the page has no table of the subject.
    """
    blocks = [block for block in _BLOCK.finditer(page) if block["subject"] == subject]
    if not blocks:
        raise ValueError(f"the page has no table of {subject!r}, after which this one could stand")
    new = f"<!-- table: {subject} {path} -->\n{table(subject, path)}<!-- end of table -->"
    same = [block for block in blocks if _machine_in(block["path"]) == _machine_in(path)]
    if same:
        return page[: same[0].start()] + new + page[same[0].end() :]
    return page[: blocks[-1].end()] + "\n\n" + new + page[blocks[-1].end() :]


def put_results(names: Iterable[str], path: str) -> list[Path]:
    """Put the tables of the results that a file has into their pages, as with_results. Returns the pages.

    names: of the results, as bench.py gives them.
    """
    pages: dict[Path, str] = {}
    for subject in TABLES:
        if _result_of(subject) in names:
            page = page_of(subject)
            pages[page] = with_results(pages.get(page) or page.read_text(), subject, path)
    for page, text in pages.items():
        runtime.write_atomically(page, methodcaller("write", text.encode()))
    return list(pages)


def _machine_in(path: str) -> str:
    """xeon-2-threads, of a file's name."""
    return "-".join(Path(path).stem.split("-")[-3:])


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns: the exit code."""
    parser = cli.Parser("tables.py", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table would change")
    arguments = parser.parse_args(argv)
    pages = sorted({page_of(subject) for subject in TABLES})
    changed = [page for page in pages if with_tables(page.read_text()) != page.read_text()]
    names = " and ".join(page.relative_to(ROOT).as_posix() for page in changed or pages)
    if not changed:
        print(f"the tables of {names} are those of the results")
        return 0
    if arguments.check:
        print(f"the tables of {names} are not those of the results; python benchmarks/tables.py")
        return 1
    for page in changed:
        text = with_tables(page.read_text())
        runtime.write_atomically(page, methodcaller("write", text.encode()))
    print(f"wrote the tables of {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""All benchmarks in one file, the tables made of it, and the curves of growth."""

import json
import math
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import matplotlib.image
import pytest
import torch

from benchmarks import bench, bench_growth, machine, tables
from benchmarks.bench_growth import Curve

ROOT = Path(__file__).resolve().parent.parent
FACTS = {"date": "2026-01-02", "revision": "abc", "cpu": "AMD EPYC 9R14, avx512f", "threads": 2, "torch": "2.13.0+cpu"}
DRAWING = {**FACTS, "cases": [{"name": "50 instances", "ms": 48.3}, {"name": "none", "ms": 1200.4}]}


############################################################
#  Tables
############################################################


def write_results(folder: Path, name: str, facts: dict) -> str:
    (folder / "benchmarks" / "results").mkdir(parents=True, exist_ok=True)
    path = f"benchmarks/results/{name}.json"
    (folder / path).write_text(json.dumps(facts))
    return path


def block(subject: str, path: str, text: str = "old\n") -> str:
    return f"<!-- table: {subject} {path} -->\n{text}<!-- end of table -->"


def test_a_table_has_the_figures_their_machine_and_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    path = write_results(tmp_path, "2026-01-02-visualize-epyc-2-threads", DRAWING)
    assert tables.table("visualize", path).splitlines() == [
        "| AMD EPYC 9R14, 2 threads | ms |",
        "| --- | --- |",
        "| 50 instances | 48 |",
        "| none | 1200 |",
        "",
        f"Measured at revision abc with torch 2.13.0; [all figures](../{path}).",
    ]
    everything = write_results(tmp_path, "2026-01-02-epyc-2-threads", {**FACTS, "results": {"visualize": DRAWING}})
    assert tables.table("visualize", everything) == tables.table("visualize", path).replace(path, everything)


def test_each_benchmark_has_its_table():
    """The columns, from figures that are easy to read. Empty cells are where a figure does not exist."""
    case = {"name": "nms", "ours_ms": 1.5, "torchvision_ms": None, "speedup": None, "reference_ms": 30}
    other = {"name": "pool", "ours_ms": 2, "torchvision_ms": 30.04, "speedup": 15.02}
    rows = tables.operators({**FACTS, "torchvision": "0.28.0+cpu", "cases": [case, other]})
    assert rows[0][2] == "torchvision 0.28.0, ms"
    assert rows[1:] == [["nms", "1.50", "-", "-", "30"], ["pool", "2.00", "30.0", "15 x", "-"]]

    case = {"name": "MS", "dtype": "float32", "ms": 1000, "convolution_gflop_per_s": 540, "share_of_peak": 0.9,
            "peak_mb": 500, "peak_gflop_per_s": 600}  # fmt: skip
    rows = tables.detection({**FACTS, "torchvision": None, "cases": [case]})
    assert rows[1:] == [
        ["MS, float32", "1000", "", "540", "90 %", "500"],
        ["one convolution alone, float32", "", "", "600", "100 %", ""],
    ]
    theirs = {"version": "0.28.0", "ms": 2000, "ms_keeping_memory": 1500}
    large = {"array": 3, "rle": 2, "network": 1}
    rows = tables.detection(
        {**FACTS, "torchvision": theirs, "large_photograph_mb": large, "cases": [{**case, "speedup": 2}]}
    )
    assert rows[1][2] == "2.00 x"
    assert [row[1] for row in rows[2:4]] == ["2000", "1500"]
    assert [row[-1] for row in rows[-3:]] == ["3", "2", "1"]

    case = {"name": "MS", "dtype": "float32", "library": "ours", "keeps_memory": True, "ms": 10, "images_per_s": 0.2,
            "peak_mb": 7, "saved_mb": 5, "speedup": 9, "memory_share": 9, "speedup_keeping_memory": 1.5,
            "memory_share_keeping_memory": 0.7}  # fmt: skip
    rows = tables.training({**FACTS, "cases": [case, {**case, "keeps_memory": False}, {**case, "library": "other"}]})
    assert [row[3:6] for row in rows[1:]] == [["1.50 x", "7", "70 %"], ["9.00 x", "7", "900 %"], ["", "7", ""]]

    case = {"name": "both", "ours_s": 2, "plain_s": 5, "ours_mb": 3, "plain_mb": 4}
    loaded = {"images": 10, "annotations": 20, "seconds": 1, "peak_mb": 6}
    rows = tables.evaluation({**FACTS, "cases": [case], "loading": loaded})
    assert rows[1:] == [["both", "2.0", "5.0", "2.5 x", "3", "4"],
                        ["loading a file of 10 images with 20 objects", "1.0", "", "", "6", ""]]  # fmt: skip

    ours = {"decode": 1, "labels": 2, "cut out": 3, "place masks": 4, "resize": 5, "whole": 15}
    theirs = {"decode": 2, "masks": 10, "flip": 8, "resize": 50, "whole": 60}
    rows = tables.loading({**FACTS, "ours_ms": ours, "torchvision_ms": theirs})
    assert [row[1:] for row in rows[1:]] == [["1.0", "2.0", "2.0 x"], ["9.0", "18.0", "2.0 x"],
                                             ["5.0", "50.0", "10.0 x"], ["15.0", "60.0", "4.0 x"]]  # fmt: skip

    cases = [{"name": "ours, float32", "all_ms": 90}, {"name": "OpenVINO 1, float32", "all_ms": 100}]
    assert tables.peers({**FACTS, "cases": cases})[1:] == [["ours, float32", "90", ""],
                                                           ["OpenVINO 1, float32", "100", "0.90"]]  # fmt: skip

    points = [{"size": 0.25, "ms": 1000, "mb": 100}, {"size": 4096, "ms": 8000, "mb": 2500}]
    facts = {**FACTS, "curves": {"area": points, "threads": points[:1]}, "labels": {"area": "pixels"}}
    rows = tables.growth({**facts, "slopes": {"area": {"ms": 1.51234, "mb": None}}})
    assert rows[1:] == [["area, pixels", "0.25", "4,096", "1.0 to 8.0", "100 to 2,500", "1.51", ""]]


def test_the_table_of_tiles_has_the_mean_of_seeds():
    case = {"overlap": 64, "rule": "tiles.py", "objects": 300, "0.95": 0.98, "0.9": 1.0, "0.5": 1.0, "new": 0.01}
    nuclei = [{**case, "doubles": 0.0}, {**case, "objects": 500, "0.95": 0.96, "doubles": None}]
    shapes = [{**case, "tile": tile, "doubles": 0.0, "truth": 0.5} for tile in (256, 128)]
    facts = {**FACTS, "nuclei": {"tile": 512, "rows": nuclei}, "shapes": {"rows": shapes}}
    rows = tables.tiled(facts)
    assert [row[0] for row in rows[2:]] == ["shapes, 256/64: tiles.py", "shapes, 128/64: tiles.py"]
    assert rows[1] == ["nuclei, 512/64: tiles.py", "400", "97.0 %", "100.0 %", "100.0 %", "1.0 %", "", "", "", ""]
    assert rows[2][-4:] == ["0.0 %", "50.0 %", "", ""]


def test_tables_of_a_page_are_made_anew_and_found_by_their_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    epyc = write_results(tmp_path, "2026-01-02-visualize-epyc-2-threads", DRAWING)
    xeon = write_results(tmp_path, "2026-01-03-xeon-2-threads", {"results": {"visualize": {**DRAWING, "threads": 1}}})
    page = f"before\n\n{block('visualize', epyc)}\n\nafter\n"
    made = tables.with_tables(page)
    assert made == f"before\n\n{block('visualize', epyc, tables.table('visualize', epyc))}\n\nafter\n"
    assert tables.with_tables(made) == made
    both = tables.with_results(made, "visualize", xeon)
    assert both.index(epyc) < both.index(xeon) < both.index("after")
    newer = write_results(tmp_path, "2027-01-01-epyc-2-threads", {"results": {"visualize": DRAWING}})
    replaced = tables.with_results(both, "visualize", newer)
    assert epyc not in replaced
    assert replaced.index(newer) < replaced.index(xeon)
    with pytest.raises(ValueError, match="no table of 'ops'"):
        tables.with_results(page, "ops", epyc)


def test_the_command_writes_the_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "speed.md")
    path = write_results(tmp_path, "2026-01-02-visualize-epyc-2-threads", DRAWING)
    tables.PAGE.write_text(block("visualize", path))
    tables.page_of("tiles").write_text("no tables")
    assert tables.main(["--check"]) == 1
    assert tables.PAGE.read_text() == block("visualize", path)
    assert tables.main([]) == 0
    assert "| 50 instances | 48 |" in tables.PAGE.read_text()
    assert tables.main(["--check"]) == 0
    assert "are those of the results" in capsys.readouterr().out


############################################################
#  All benchmarks
############################################################


def test_a_file_is_named_after_the_processor_and_its_threads():
    assert bench.machine_name(FACTS) == "epyc-2-threads"
    assert bench.machine_name({"cpu": "Intel(R) Xeon(R) Processor", "threads": 1}) == "xeon-1-thread"
    assert bench.machine_name({"cpu": "riscv64", "threads": 4}) == "cpu-4-threads"


def test_what_cannot_run_here_says_why(monkeypatch):
    assert bench.reason_against("ops", None) is None
    assert "--dataset" in bench.reason_against("data", None)
    assert bench.reason_against("data", Path()) is None
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "openvino" else object())
    assert bench.reason_against("peers", None) == "pip install openvino"


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """bench.py in another folder, with benchmarks that take no time: each writes its command as its figures."""

    def run(command, cwd):
        output = Path(command[command.index("--output") + 1])
        if "growth" in command[1]:
            output.mkdir()
            (output / "growth.png").write_bytes(b"picture")
            output /= "growth.json"
        output.write_text(json.dumps({**DRAWING, "command": command}))
        return Namespace(returncode=1 if "bench_ops" in command[1] else 0)

    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "speed.md")
    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(machine, "describe", lambda: FACTS)
    tables.PAGE.write_text(block("visualize", "benchmarks/results/2025-01-01-epyc-2-threads.json"))
    return tmp_path


def run_bench(*words: str) -> None:
    bench.main(bench.build_parser().parse_args([*words]))


def test_results_are_one_file_and_tables(faked, capsys):
    run_bench("--only", "visualize", "data")
    path = faked / "benchmarks" / "results" / "2026-01-02-epyc-2-threads.json"
    facts = json.loads(path.read_text())
    assert list(facts["results"]) == ["visualize"]
    assert "data is left out: give --dataset" in capsys.readouterr().out
    page = tables.PAGE.read_text()
    assert path.name in page
    assert "| 50 instances | 48 |" in page
    run_bench("--only", "growth", "--output", str(faked / "elsewhere.json"))  # leaves the page alone
    assert tables.PAGE.read_text() == page
    assert (faked / "elsewhere-growth.png").read_bytes() == b"picture"
    command = json.loads((faked / "elsewhere.json").read_text())["results"]["growth"]["command"]
    assert command[command.index("--threads") + 1] == str(torch.get_num_threads())
    assert "--quick" not in command
    run_bench("--quick", "--only", "visualize")
    assert json.loads(path.read_text()) == facts


def test_results_of_the_same_revision_stay(faked, monkeypatch):
    path = faked / "results.json"
    run_bench("--only", "visualize", "--output", str(path))
    run_bench("--only", "growth", "--output", str(path))
    assert set(json.loads(path.read_text())["results"]) == {"visualize", "growth"}
    monkeypatch.setattr(machine, "describe", lambda: {**FACTS, "revision": "def"})
    run_bench("--only", "growth", "--output", str(path))
    assert set(json.loads(path.read_text())["results"]) == {"growth"}


def test_a_benchmark_that_fails_writes_nothing(faked):
    with pytest.raises(RuntimeError, match=re.escape("bench_ops.py failed; nothing is written")):
        run_bench("--only", "visualize", "ops")
    assert not (faked / "benchmarks" / "results").exists()


############################################################
#  Growth
############################################################


def test_growth_measures_each_value_and_what_one_more_costs(tmp_path, capsys):
    sizes = []

    def prepare(side):
        return lambda: sizes.append(side) or torch.ones(side, side).sum()

    rows = bench_growth.measure(Curve("pixels", (8, 16), (4,), prepare, lambda side: side**2), quick=False)
    assert [(row["value"], row["size"]) for row in rows] == [(8, 64), (16, 256)]
    assert all(row["ms"] > 0 for row in rows)
    assert sizes == [8, 16] + [8] * (1 + bench_growth.CALLS) + [16] * (1 + bench_growth.CALLS)
    assert [row["value"] for row in bench_growth.measure(Curve("pixels", (8,), (4,), prepare, calls=1), True)] == [4]
    assert sizes[-1] == 4
    assert len(sizes) == 11
    line = [{"size": 10, "ms": 5, "mb": None}, {"size": 100, "ms": 50, "mb": 7}]
    assert bench_growth.slope(line, "ms") == 0.5
    assert bench_growth.slope(line, "mb") is None
    assert bench_growth.slope(line[:1], "ms") is None
    bench_growth.print_table("area", "pixels", line)
    assert "each more: 0.5 ms\n" in capsys.readouterr().out
    curves = dict.fromkeys(("area", "batch", "threads", "objects"), line)
    bench_growth.draw(curves, dict.fromkeys(curves, "pixels"), tmp_path / "growth.png")
    height, width = matplotlib.image.imread(tmp_path / "growth.png").shape[:2]
    assert (math.floor(width / 100), math.floor(height / 100)) == (12, 6)


def test_bench_growth_ends_with_a_json_line(tmp_path):
    command = [sys.executable, "benchmarks/bench_growth.py", "--quick", "--curve", "evaluation", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [row["value"] for row in facts["curves"]["evaluation"]] == [10, 20]
    assert json.loads((tmp_path / "growth.json").read_text()) == facts
    assert (tmp_path / "growth.png").is_file()

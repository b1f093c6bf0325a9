"""What README says of this project is so."""

import json
import re

import pytest

import native
from benchmarks import ablations, measure_gain
from weights.published import PUBLISHED, cache_folder

README = (native.ROOT / "README.md").read_text()


def test_every_make_target_exists_and_is_named():
    targets = re.search(r"\.PHONY: (.*)", (native.ROOT / "Makefile").read_text())[1].split()
    named = re.search(r"`Makefile` \| `([\w ]+)`", README)[1].split()
    assert sorted(named) == sorted(targets)


def test_every_file_of_the_tree_exists():
    tree = README.split("## The tree")[1].split("## ")[0]
    for path in re.findall(r"^\| `([\w./]+)`", tree, flags=re.MULTILINE):
        assert (native.ROOT / path).exists(), path


def test_speed_table_is_the_committed_result():
    """Each row of the table is a case of the results file that it names, rounded."""
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-ops-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert f"torchvision {facts['torchvision'].split('+')[0]}" in README
    assert facts["cpu"].split(",")[0] in README
    assert not facts["quick"]
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    for case in facts["cases"]:
        (row,) = re.findall(rf"^\| {re.escape(case['name'])} \| (.*) \|$", README, flags=re.MULTILINE)
        cells = row.split(" | ")
        assert cells[0] == f"{case['ours_ms']:.2f}"
        assert cells[1] == ("-" if case["torchvision_ms"] is None else f"{case['torchvision_ms']:.1f}")
        assert cells[2] == ("-" if case["speedup"] is None else f"{case['speedup']:.0f} x")


@pytest.mark.parametrize("name", ["MASKSCORING_KERNELS", "MASKSCORING_KEEP_MEMORY", "CUDA_ARCH", "CUDA_HOME"])
def test_every_variable_is_explained(name):
    assert name in README
    assert name in (native.ROOT / "native.py").read_text()


def test_detection_speed_is_the_committed_result():
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-detect-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    for case in facts["cases"]:
        (row,) = re.findall(rf"^\| {re.escape(case['name'])}, {case['dtype']} \| (.*) \|$", README, flags=re.MULTILINE)
        share = f"{100 * case['share_of_peak']:.0f} %"
        assert row.split(" | ") == [
            f"{case['ms']:.0f}",
            f"{case['speedup']:.2f} x",
            f"{case['convolution_gflop_per_s']:.0f}",
            share,
            f"{case['peak_mb']:.0f}",
        ]
    theirs = facts["torchvision"]
    assert f"torchvision {theirs['version'].split('+')[0]}, Mask R-CNN R-50, float32 | {theirs['ms']:.0f} |" in README
    assert f"{theirs['ms_keeping_memory']:.0f} ms." in README
    for kind in ("array", "rle", "network"):
        assert f"{facts['large_photograph_mb'][kind]:.0f} MB" in README


def test_every_published_name_is_in_the_table():

    for name in PUBLISHED:
        stem = re.sub(r"_[12]x_coco$", "", name)
        assert f"`{name}`" in README or f"`{stem}_" in README, name
    assert "mask-scoring-rcnn" in str(cache_folder())


def test_training_speed_is_the_committed_result():
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-train-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    for case in facts["cases"]:
        (row,) = re.findall(rf"^\| {re.escape(case['name'])}, {case['dtype']} \| (.*) \|$", README, flags=re.MULTILINE)
        is_ours = case["library"] == "ours"
        assert row.split(" |") == [
            f"{case['ms']:.0f}",
            f" {case['images_per_s']:.3f}",
            f" {case['speedup']:.2f} x" if is_ours else "",
            f" {case['peak_mb']:.0f}",
            f" {100 * case['memory_share']:.0f} %" if is_ours else "",
            f" {case['saved_mb']:.0f}",
        ]
    shares = {case["name"]: case["targets_share"] for case in facts["cases"]}
    assert f"targets take {100 * shares['MS R-CNN, 400 objects']:.1f} % of the step" in README


def test_overfitting_is_the_committed_result():
    folder = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-overfit-nuclei)\)", README)[1]
    facts = json.loads((folder / "overfit_nuclei.json").read_text())
    assert f"mask AP50 {facts['mask AP50']:.3f}" in README
    assert facts["mask AP50"] >= 0.9
    assert facts["training_s"] < 15 * 60


def test_evaluation_speed_is_the_committed_result():
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-eval-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    assert not facts["quick"]
    for case in facts["cases"]:
        (row,) = re.findall(rf"^\| {re.escape(case['name'])} \| (.*) \|$", README, flags=re.MULTILINE)
        ours, plain = case["ours_s"], case["plain_s"]
        memory = f"{case['ours_mb']:.0f} | {case['plain_mb']:.0f}"
        assert row == f"{ours:.1f} | {plain:.1f} | {plain / ours:.1f} x | {memory}"
    loading = facts["loading"]
    assert f"loads in {loading['seconds']:.1f} s with a peak of {loading['peak_mb']:.0f} MB" in README


@pytest.mark.parametrize("data", ["shapes", "nuclei"])
def test_results_are_the_committed_ones(data):
    """The table of each model is what measure_gain.py makes of the file that README names."""
    path = native.ROOT / re.search(rf"\((benchmarks/results/[\w.-]+-{data}-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    assert measure_gain.table(facts["models"]) in README
    for row in facts["models"].values():
        value, low, high = row["gains"]["AP"]
        assert low < value < high
        assert value == pytest.approx(row["mask AP"] - row["mask AP (class score)"], abs=1e-12)


def test_ablations_are_the_committed_ones():
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-ablations-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    runs = {variant: {int(seed): run for seed, run in seeds.items()} for variant, seeds in facts["runs"].items()}
    assert list(runs) == list(ablations.VARIANTS)
    assert all(len(seeds) == 3 for seeds in runs.values())
    assert ablations.table(runs) in README


def test_drawing_speed_is_the_committed_result():
    path = native.ROOT / re.search(r"\((benchmarks/results/[\w.-]+-visualize-[\w.-]+\.json)\)", README)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith("+"), "measured on a tree with changes"
    fast, *_, figure = (case["ms"] for case in facts["cases"])
    assert f"take {fast:.0f} ms on one core of an {facts['cpu'].split(',')[0]}" in " ".join(README.split())
    assert f"through matplotlib take {figure / 1000:.1f} s" in README

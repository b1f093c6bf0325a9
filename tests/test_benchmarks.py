"""The scripts of benchmarks/ run and say what they promise. How fast anything is, is not tested."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

import native
from benchmarks import bench_detect, bench_ops, doctor, machine


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=native.ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_bench_ops_ends_with_a_json_line(tmp_path):
    output = tmp_path / "ops.json"
    done = run("benchmarks/bench_ops.py", "--quick", "--threads", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    facts = json.loads(line)
    assert facts["threads"] == 1
    assert facts["revision"]
    assert output.read_text() == line + "\n"
    names = [case["name"] for case in facts["cases"]]
    assert any("backward" in name for name in names)
    assert any("batched_nms" in name for name in names)
    for case in facts["cases"]:
        assert case["ours_ms"] > 0
        assert any(case["name"] in row and f"{case['ours_ms']:.2f}" in row for row in table)


def test_bench_detect_ends_with_a_json_line(tmp_path):
    output = tmp_path / "detect.json"
    arguments = ("--quick", "--threads", "2", "--output", str(output))
    done = run("benchmarks/bench_detect.py", *arguments, MASKSCORING_KEEP_MEMORY="")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert output.read_text() == done.stdout.splitlines()[-1] + "\n"
    assert facts["keeps_memory"] == (platform.libc_ver()[0] == "glibc")
    assert [(case["name"], case["dtype"]) for case in facts["cases"]] == [
        ("MS R-CNN R-50", "float32"),
        ("MS R-CNN R-50", "bfloat16"),
    ]
    for case in facts["cases"]:
        assert case["detections"] == 100
        # 230 GMAC without, 39 with the MaskIoU head (the design's count), at 800 x 1067 padded to 1088
        assert case["gflop"] == pytest.approx(2 * 269, rel=0.05)
        assert case["convolution_gflop_per_s"] == pytest.approx(case["gflop"] / case["convolution_ms"] * 1e3)
        assert case["share_of_peak"] == pytest.approx(case["convolution_gflop_per_s"] / case["peak_gflop_per_s"])
        assert set(bench_detect.STAGES) | {"resize", "pasting masks"} < set(case["stages_ms"])


def test_matches_counts_what_agrees():
    masks = np.zeros((20, 20, 2), bool)
    masks[2:10, 2:10, 0] = masks[5:18, 5:18, 1] = True
    one = {
        "rois": np.array([[2.0, 2, 10, 10], [5, 5, 18, 18]]),
        "class_ids": np.array([1, 2]),
        "scores": np.array([0.9, 0.8]),
        "masks": masks,
    }
    assert bench_detect.matches(one, one) == 2
    for change in (
        {"rois": one["rois"] + [[0, 0, 0, 1.1], [0, 0, 0, 0]]},
        {"class_ids": np.array([3, 2])},
        {"scores": np.array([0.904, 0.8])},
        {"masks": np.stack([masks[..., 0] & (np.arange(20) > 2), masks[..., 1]], axis=-1)},
    ):
        assert bench_detect.matches(one, one | change) == 1


def test_overlapping_counts_boxes_of_a_class():
    one = {"rois": np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "class_ids": np.array([1, 2])}
    assert bench_detect.overlapping(one, one) == 2
    assert bench_detect.overlapping(one, one | {"class_ids": np.array([1, 1])}) == 1
    assert bench_detect.overlapping(one, one | {"rois": one["rois"] + [[0, 0, 0, 0], [0, 6, 0, 6]]}) == 1


def test_bench_ops_refuses_to_time_what_disagrees():
    case = bench_ops.Case("wrong", lambda: torch.zeros(3), lambda: torch.ones(3), None)
    with pytest.raises(AssertionError):
        bench_ops.measure(case, "cpu", 0.0)


def test_speedup_and_rate():
    case = bench_ops.Case("c", lambda: torch.ones(1), lambda: torch.ones(1), lambda: torch.ones(1), 2, 10**6)
    row = bench_ops.measure(case, "cpu", 0.0)
    assert row.speedup == pytest.approx(row.torchvision_ms / row.ours_ms)
    assert row.gb_per_s == pytest.approx(1e-3 / (row.ours_ms / 1e3))
    assert "-" in bench_ops.format_row(bench_ops.Row("c", 1.0, 1.0, None, None, None, None, None, 1.0))


def test_fpn_level():
    sides = torch.tensor([100.0, 112.0, 223.0, 224.0, 448.0, 2000.0])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    assert bench_ops.fpn_level(boxes).tolist() == [0, 1, 1, 2, 3, 3]


def test_median_is_over_at_least_three_calls():
    calls = []
    assert machine.median_ms(lambda: calls.append(0), seconds=0.0, warm_up=2) >= 0
    assert len(calls) == 5


def test_peak_memory():
    peak = machine.peak_mb(lambda: torch.ones(25_000_000).sum())
    assert peak is None or 90 < peak < 130


def test_machine_is_described():
    facts = machine.describe()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu"]


def test_doctor_reports():
    done = run("benchmarks/doctor.py")
    assert done.returncode == 0, done.stderr
    assert f"torch: {torch.__version__}" in done.stdout
    assert "C++ compiler: " in done.stdout
    assert "nms: cpu " in done.stdout
    assert "roialign: cpu " in done.stdout


def test_doctor_says_what_to_do():
    done = run("benchmarks/doctor.py", MASKSCORING_KERNELS="reference")
    assert done.returncode == 0
    assert "To do:\n" in done.stdout
    assert "the cpu kernels are not in use, so the slow reference runs" in done.stdout
    assert "make kernels" in done.stdout


def test_doctor_without_torch():
    """As on a fresh machine: the report still comes, and says how to get torch."""
    code = "import sys; sys.modules['torch'] = None; from benchmarks import doctor; sys.exit(doctor.main())"
    done = run("-c", code)
    assert done.returncode == 1, done.stderr
    assert "pip install -r requirements.txt" in done.stdout


def test_doctor_without_compilers():
    assert doctor.tool([]) == "none"

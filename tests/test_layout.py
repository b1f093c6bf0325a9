"""The tree keeps its shape: dependencies point one way, functions stay short, versions agree."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module may import modules of lower layers, never of its own or a higher one.
LAYERS = [
    {"config", "native"},
    {"nms", "roialign"},
    {"utils"},
    {"training"},
    {"model", "video", "visualize"},
    {"convert_weights", "stages"},
    {"evaluation", "coco_data"},
    {"coco"},
    {"custom", "demo", "samples"},
    {"assets", "benchmarks", "notebooks"},
    {"tests"},
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part == "_build" for part in path.relative_to(ROOT).parts)
)


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def unit(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_there_is_something_to_check():
    assert {"native", "nms", "roialign", "benchmarks", "tests"} <= {unit(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_dependencies_point_one_way(path):
    name = unit(path)
    assert name in LAYER_OF, f"{name} has no layer; add it to LAYERS and to the design"
    for imported in imports(path) & LAYER_OF.keys() - {name}:
        assert LAYER_OF[imported] < LAYER_OF[name], f"{path} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", [path for path in SOURCES if unit(path) != "tests"], ids=str)
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node)
            length = node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)
            assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_torchvision_is_only_compared_with():
    users = [str(path) for path in SOURCES if "torchvision" in imports(path)]
    assert users == ["benchmarks/bench_detect.py", "benchmarks/bench_ops.py", "benchmarks/bench_train.py"]


def test_pins_lie_in_the_ranges():
    """requirements.txt pins every dependency of pyproject.toml, inside its range."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\d.]+", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        name, low, high = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", dependency).groups()
        pin = version(pins[name])
        assert version(low) <= pin, f"{name} is pinned to {pins[name]}, below {low}"
        assert high is None or pin < version(high)


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_largest_number_of_levels_agrees():
    import roialign

    header = (ROOT / "roialign" / "src" / "roi_align.h").read_text()
    assert f"kMaxLevels = {roialign.MAX_LEVELS};" in header

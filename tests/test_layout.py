"""The tree keeps its shape: dependencies point one way, functions stay short, versions agree."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom. A file may import files of lower layers, and files of its own package that its package lists first.
LAYERS = [
    {"startup", "config", "runtime", "native", "polygons", "fused", "onnx_detect"},
    {"nms", "roialign"},
    {"utils", "captions", "evaluation.calibration"},
    {"converters", "detections", "fonts", "weights.torch_files", "weights.pickles", "weights.download"},
    {"data", "visualize", "video"},
    {"weights"},
    {"training"},
    {"model"},
    {"weights.load"},
    {"tiles"},
    {"evaluation", "stages"},
    {"cli"},
    {"own_training"},
    {"own_evaluation"},
    {"coco", "convert_weights", "custom", "export", "serve"},
    {"demo"},
    {"samples"},
    {"assets", "benchmarks", "notebooks"},
    {"tests"},
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part == "_build" for part in path.relative_to(ROOT).parts)
)


def module_of(path: Path) -> str:
    """ "data/formats/coco.py" is data.formats.coco; "nms/__init__.py" is nms."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports; of our own, the modules."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parts, node.module] if node.module else parts)
            inside = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inside or {source}
    return names


def layer_of(module: str) -> int:
    """The layer of the longest listed name that the module begins with."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((LAYER_OF[name] for name in names if name in LAYER_OF), -1)


def test_there_is_something_to_check():
    assert {"native", "nms", "roialign.reference", "data.formats.coco", "tests.test_layout"} <= MODULES.keys()
    assert "utils" in imports(Path("model.py"))
    assert "data.samples" in imports(Path("data/loader.py")), "relative imports are followed"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_dependencies_point_one_way(path):
    module = module_of(path)
    layer = layer_of(module)
    assert layer >= 0, f"{module} has no layer; add it to LAYERS and to CONTRIBUTING.md"
    for imported in imports(path):
        if layer_of(imported) < 0 or imported == module:
            continue  # not ours
        same_package = imported.split(".")[0] == module.split(".")[0] and len(path.parts) > 1
        assert layer_of(imported) < layer or same_package, f"{path} imports {imported}, which is not below it"


def test_no_imports_go_in_circles():
    arrows = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    while leaves := {module for module, targets in arrows.items() if not targets}:
        arrows = {module: targets - leaves for module, targets in arrows.items() if module not in leaves}
    assert not arrows, "these import each other"


def test_no_file_but_the_network_is_long():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES if path.parts[0] != "tests"}
    long = {str(path): length for path, length in lengths.items() if length > 1400}
    assert set(long) <= {"model.py"}, f"split these: {long}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] != "tests"], ids=str)
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node)
            length = node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)
            assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_no_test_imports_a_test():
    for path in SOURCES:
        tests = {name for name in imports(path) if name.split(".")[-1].startswith("test_")}
        assert not tests, f"{path} imports {tests}; what tests share is in tests/helpers.py"


def test_torchvision_is_only_compared_with():
    users = [str(path) for path in SOURCES if any(name.split(".")[0] == "torchvision" for name in imports(path))]
    assert users == [
        "benchmarks/bench_data.py",
        "benchmarks/bench_detect.py",
        "benchmarks/bench_ops.py",
        "benchmarks/bench_train.py",
    ]


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

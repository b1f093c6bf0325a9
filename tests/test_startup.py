"""Commands start fast and as good neighbours: what they do not import, and how their threads wait. Nothing is timed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_server import write_stub

ROOT = Path(__file__).parent.parent
# Packages and modules that take long to import, and that no command needs before its first image.
HEAVY = (
    "matplotlib.font_manager", "matplotlib.ft2font", "matplotlib.pyplot", "scipy.ndimage", "scipy.optimize",
    "scipy.sparse", "scipy.spatial", "scipy.stats", "skimage.measure._find_contours", "skimage.transform._warps",
    "sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.onnx._internal",
    "h5py", "tifffile", "jinja2", "yaml", "roifile", "filelock", "av", "cv2", "pandas", "torchvision", "onnx",
    "onnxscript", "onnxruntime", "zarr", "rasterio", "openslide",
)  # fmt: skip
COMMANDS = ("coco.py", "custom.py", "demo.py", "convert_weights.py", "export.py", "serve.py")


def run_python(code: str, **environment: str | None) -> str:
    """What a fresh process prints. environment: variables to set; None removes one."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


############################################################
#  Imports
############################################################


def test_commands_import_nothing_heavy():
    code = "\n".join(
        f"import {name}; print(json.dumps(['{name}', *sys.modules]))" for name in ("coco", "demo", "custom", "export")
    )
    for line in run_python(f"import sys, json\n{code}").splitlines():
        name, *loaded = json.loads(line)
        assert {name, "torch"} <= set(loaded)
        assert not set(HEAVY) & set(loaded), f"import {name}"


def test_the_first_image_needs_nothing_heavy(tmp_path):
    """From the shell to the results of demo.py: the compiler of torch alone would take longer than all the rest."""
    code = (
        "import demo, sys, json\n"
        f"assert demo.main(['--model', 'shapes', '--output', {str(tmp_path)!r}]) == 0\n"
        "print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(run_python(code).splitlines()[-1])
    assert (tmp_path / "detections.json").exists()
    assert not set(HEAVY) & set(loaded)


def test_serving_an_exported_model_imports_no_torch(tmp_path):
    """From the shell to the detections of a picture. A stub stands for ONNX Runtime, which is not always installed."""
    write_stub(tmp_path)
    code = (
        "import serve, sys, json\n"
        f"arguments = serve.build_parser(is_onnx=True).parse_args([{str(tmp_path / 'model.onnx')!r}])\n"
        "model = serve.open_onnx(arguments)\n"
        "entries = model.detect(model.read(open('assets/shapes.jpg', 'rb').read(), 'shapes.jpg'))\n"
        "assert len(entries) == 1\n"
        "assert serve.main(['missing.onnx', '--port', '0']) == 2\n"
        "print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(run_python(code, PYTHONPATH=str(tmp_path)).splitlines()[-1])
    assert not ({*HEAVY, "torch", "scipy", "cli", "model", "utils"} - {"onnxruntime"}) & set(loaded)


############################################################
#  What a command does first
############################################################


def statements(path: Path) -> list[ast.stmt]:
    """The statements of a file without its docstring."""
    body = ast.parse(path.read_text()).body
    return body[1:] if ast.get_docstring(ast.Module(body, [])) else body


def programs() -> list[Path]:
    """Every file that can be run as a command, but those that must run without torch or without this project."""
    folders = ("", "samples", "benchmarks", "assets")
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    apart = {"native.py", "doctor.py", "startup.py", "onnx_detect.py", "rivals_train.py"}
    return [path for path in files if "\nif __name__ ==" in path.read_text() and path.name not in apart]


def test_there_are_programs():
    names = {path.name for path in programs()}
    assert {*COMMANDS, "shapes.py", "nucleus.py", "balloon.py", "bench_detect.py", "make_pictures.py"} <= names


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.name)
def test_every_program_begins_with_startup(path):
    """Before the first import of what may load torch, and before the parser, which lets the garbage collector work."""
    ours = {file.stem for file in ROOT.glob("*.py")} | {"data", "evaluation", "model", "nms", "roialign", "training"}
    for statement in statements(path):
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            assert [ast.unparse(line) for line in statement.body] == ["import startup", "startup.begin()"]
            break
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = {name.name for name in statement.names} if isinstance(statement, ast.Import) else {statement.module}
            packages = {name.split(".")[0] for name in names}
            assert packages <= sys.stdlib_module_names - ours, f"{path.name}: {packages} before startup"
    else:
        pytest.fail(f"{path.name} does not begin with startup")
    assert "Parser(" in path.read_text() or "make_parser(" in path.read_text()


REPORT = "import os, gc; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'), gc.isenabled())"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None}, "1000 None False"),
        ({"GOMP_SPINCOUNT": "5000", "OMP_WAIT_POLICY": None}, "5000 None False"),
        ({"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": "active"}, "None active False"),
    ],
)
def test_begin(environment, expected):
    code = f"import startup, sys; startup.begin(); assert 'torch' not in sys.modules; {REPORT}"
    assert run_python(code, **environment).strip() == expected


def test_a_library_changes_nothing():
    printed = run_python(f"import model, coco; {REPORT}", GOMP_SPINCOUNT=None, OMP_WAIT_POLICY=None)
    assert printed.strip() == "None None True"


def test_the_garbage_collector_works_again():
    code = (
        "import startup, gc; startup.begin(); import cli; assert not gc.isenabled()\n"
        "cli.Parser('a.py', None); assert gc.isenabled() and gc.get_freeze_count() > 10_000\n"
        "gc.disable(); cli.Parser('a.py', None); assert not gc.isenabled()"  # a user's own choice
    )
    run_python(code)

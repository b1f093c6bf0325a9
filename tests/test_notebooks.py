"""The notebooks are committed clean, run from top to bottom without a download, and show what they promise.

Each runs in one namespace, in this process: as a kernel does, but on the device and with the warnings of the tests. One
runs in a kernel, the way of `make notebooks`.
"""

import ast
import base64
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import visualize
from native import ROOT

FOLDER = ROOT / "notebooks"
# How many figures and tables each shows.
SHOWN = {
    "demo": (3, 2),
    "inspect_data": (13, 1),
    "inspect_model": (17, 1),
    "inspect_weights": (3, 1),
    "train_shapes": (6, 0),
}


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def cells(name, kind):
    return ["".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == kind]


############################################################
#  As they are committed
############################################################


def test_each_notebook_is_known():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_but_the_cells_is_committed(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}


@pytest.mark.parametrize("name", SHOWN)
def test_the_format_is_valid(name):
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with requirements.txt")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_are_short_and_explained(name):
    code, text = cells(name, "code"), cells(name, "markdown")
    assert sum(bool(line.strip()) for cell in code for line in cell.splitlines()) <= 60
    assert text[0].startswith("# ")
    assert len(text) >= len(code), "each cell of code has its words"
    kinds = [cell["cell_type"] for cell in read(name)["cells"]]
    assert all("markdown" in pair for pair in itertools.pairwise(kinds)), "two cells of code in a row"
    assert re.search(r'^(DATASET|MODEL) = "shapes"  # or "coco"', code[0], flags=re.MULTILINE), "the switch"


def test_inspect_model_has_the_four_stages():
    headings = re.findall(r"^## (Stage \d)", "\n".join(cells("inspect_model", "markdown")), flags=re.MULTILINE)
    assert sorted(set(headings)) == ["Stage 1", "Stage 2", "Stage 3", "Stage 4"]


############################################################
#  Running
############################################################


class Display(list):
    """What a notebook shows, in order."""

    def __call__(self, *objects):
        self.extend(objects)


def run(name, folder):
    """The objects that the cells show, run as a kernel would: the value of a cell's last expression is shown."""
    display = Display()
    namespace = {"__name__": "__main__", "display": display}
    for number, source in enumerate(cells(name, "code")):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        where = f"{name}, cell of code {number}"
        exec(compile(tree, where, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), namespace)
            if value is not None:
                display(value)
    return display, namespace


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder to run in, beside which training may write."""
    monkeypatch.setenv("MASKSCORING_QUICK", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_run_and_show_what_they_promise(name, place):
    shown, namespace = run(name, place)
    figures = [one for one in shown if hasattr(one, "savefig")]
    tables = [one for one in shown if isinstance(one, visualize.Table)]
    assert (len(figures), len(tables)) == SHOWN[name]
    assert len(shown) == len(figures) + len(tables), "only figures and tables are shown"
    for number, figure in enumerate(figures):
        assert hasattr(figure, "_repr_png_"), f"a notebook would show figure {number} as a line of text"
        picture = visualize.figure_to_image(figure)
        assert picture.shape[1] <= 1500, f"figure {number} is too wide for a page"
        assert picture.std() > 3, f"figure {number} is empty"
    assert all(len(table.rows) > 1 for table in tables)
    if name == "inspect_data":
        check_data(namespace)
    if name == "train_shapes":
        assert Path(namespace["path"]).name == "mask_rcnn_shapes_0003.pth"
        assert 0 <= np.mean(namespace["aps"]) <= 1


def check_data(namespace):
    """The pictures of inspect_data are of what they say."""
    counts = namespace["counts"]
    assert counts[0] == 0
    assert (counts[1:] > 0).all()
    dataset, image_id = namespace["dataset"], namespace["IMAGE"]
    np.testing.assert_array_equal(namespace["masks"], dataset.load_mask(image_id)[0])
    assert len(namespace["positive"]) >= len(namespace["boxes"]), "each object has an anchor"
    moved = visualize.utils.apply_box_deltas(
        namespace["positive"],
        namespace["rpn_bbox"][: len(namespace["positive"])] * namespace["config"].RPN_BBOX_STD_DEV,
    )
    nearest = np.abs(moved[:, None] - namespace["boxes"]).max(axis=2).min(axis=1)
    assert nearest.max() < 0.01, "where they should move is their object's box"


def test_make_notebooks_renders_one(tmp_path):
    """In a kernel, to HTML. The others differ by what is in the cells only."""
    pytest.importorskip("nbconvert", reason="nbconvert comes with requirements.txt")
    pytest.importorskip("ipykernel", reason="ipykernel comes with requirements.txt")
    recipe = re.search(r"^notebooks:.*\n\t\$\(PY\) (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    command = recipe.replace("notebooks/*.ipynb", "notebooks/inspect_data.ipynb")
    command = command.replace("--output-dir output", f"--output-dir {tmp_path}").split()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=600)
    page = (tmp_path / "inspect_data.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == SHOWN["inspect_data"][0]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "<td>crescent</td>" in page

"""README, CONTRIBUTING and docs/ say what is so: links, code, commands, settings and figures."""

import argparse
import ast
import csv
import importlib
import inspect
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
import native
from benchmarks import ablations, box_ablations, head_choices, kills, measure_gain, reproduce, rivals, tables

ROOT = native.ROOT
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
# Environment variables, beside this project's own.
ENVIRONMENT = {
    "CUDA",
    "CUDA_ARCH",
    "CUDA_HOME",
    "CXX",
    "NVCC",
    "OMP_NUM_THREADS",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
    "HYPOTHESIS_PROFILE",
}


def code_blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page: those of a language, or those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in blocks if name == language]


def prose(text: str) -> str:
    """A page without its fenced blocks, as one line."""
    return " ".join(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split())


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", prose(text))


############################################################
#  README
############################################################


def test_readme_is_short():
    readme = ROOT / "README.md"
    assert readme.stat().st_size <= 12_000
    lines = readme.read_text().splitlines()
    assert len(lines) <= 180
    assert [line for line in lines if len(line) > 120] == []


def test_readme_links_every_page():
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").iterdir()}
    assert pages <= {target for target, _ in links(PAGES["README.md"])}


############################################################
#  Links
############################################################


def links(text: str) -> list[tuple[str, str]]:
    """(file, heading) of each link and picture that leads into the project; the file is "" for the page itself."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return [(target, heading) for target, heading in found if not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    assert links(PAGES[page]) or page == "CONTRIBUTING.md"
    for target, heading in links(PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if heading:
            assert heading in anchors(path.read_text()), f"{page} links to {target}#{heading}"


@pytest.mark.parametrize("page", PAGES)
def test_every_named_file_exists(page):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"output", "logs", "models", "datasets"}
    for name in inline_code(PAGES[page]):
        if re.fullmatch(r"[\w./-]+\.(py|json|md|png|yaml|txt)", name) and name.split("/")[0] in folders:
            assert (ROOT / name).exists(), f"{page} names {name}"


############################################################
#  make
############################################################


def make_targets() -> list[str]:
    return re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()


def test_every_make_target_is_named():
    (named,) = re.findall(r"has these targets: `([\w ]+)`", prose(PAGES["CONTRIBUTING.md"]))
    assert sorted(named.split()) == sorted(make_targets())


@pytest.mark.parametrize("page", PAGES)
def test_every_named_make_target_exists(page):
    blocks = "\n".join(code_blocks(PAGES[page]))
    named = re.findall(r"^make ([a-z]+)", blocks, flags=re.MULTILINE)
    named += [name for code in inline_code(PAGES[page]) for name in re.findall(r"\bmake ([a-z]+)$", code)]
    assert set(named) <= set(make_targets())


############################################################
#  Python
############################################################


PYTHON = [
    pytest.param(page, block, id=f"{page}-{number}")
    for page, text in PAGES.items()
    for number, block in enumerate(code_blocks(text, "python"), start=1)
]


def test_there_is_python_to_check():
    pages = {parameter.values[0] for parameter in PYTHON}
    assert {"README.md", "docs/data_sets.md", "docs/evaluation.md", "docs/operators.md"} <= pages


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each `from module import name`, (module, None) of each `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_python_compiles_and_its_imports_exist(page, block):
    """Attributes of imported modules, such as utils.read_image, exist too."""
    tree = ast.parse(block, page)
    compile(tree, page, "exec")
    for name, attribute in imported_names(tree):
        module = importlib.import_module(name)
        assert attribute is None or hasattr(module, attribute), f"{page}: from {name} import {attribute}"
    modules = {name for name, attribute in imported_names(tree) if attribute is None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(sys.modules[node.value.id], node.attr), f"{page}: {ast.unparse(node)}"


def method_calls(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """(object, method, call) of each call such as model.train_model(...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_calls_of_models_and_data_sets_fit(page, block):
    from data.formats.coco import CocoDataset
    from model import MaskRCNN

    owners = {"model": MaskRCNN, "dataset": CocoDataset}
    for name, method, call in method_calls(ast.parse(block)):
        if name in owners and method != "load_folder":  # which the example defines
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(getattr(owners[name], method)).bind(None, *[None] * len(call.args), **keywords)


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_configurations_of_examples_are_valid(page, block):
    for node in ast.parse(block).body:
        if isinstance(node, ast.ClassDef) and ast.unparse(node.bases[0]) == "Config":
            names = {"Config": config.Config}
            exec(ast.unparse(node), names)
            assert names[node.name]().NAME == "cells"


def test_the_data_set_of_own_data_reads_folders(tmp_path, monkeypatch):
    """The example of docs/data_sets.md runs as it is."""
    for folder in ("images", "masks/a"):
        (tmp_path / "cells/train" / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "cells/train/images/a.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "cells/train/images/empty.png")
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 255
    Image.fromarray(mask).save(tmp_path / "cells/train/masks/a/0.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    (block,) = [block for block in code_blocks(PAGES["docs/data_sets.md"], "python") if "utils.Dataset" in block]
    exec(block, names)
    dataset = names["dataset"]
    assert dataset.class_names == ["BG", "cell"]
    masks, class_ids = dataset.load_mask(0)
    assert class_ids.tolist() == [1]
    assert masks.shape == (6, 8, 1)
    assert masks[..., 0].tolist() == (mask > 0).tolist()
    assert dataset.load_mask(1)[0].shape == (6, 8, 0)


############################################################
#  Commands
############################################################


def commands() -> list:
    """(page, script, arguments) of each command line that runs a script of this project, in blocks and in sentences."""
    parameters = []
    for page, text in PAGES.items():
        for line in [line for block in code_blocks(text) for line in block.splitlines()] + inline_code(text):
            if match := re.match(r"(?:python|torchrun [^#]*?--) ([\w/]+\.py)(?: (.*))?$", line):
                arguments = shlex.split(match[2] or "", comments=True)
                parameters.append(pytest.param(page, match[1], arguments, id=line.split(" #")[0].strip()))
    return parameters


COMMANDS = commands()


class ParserCaught(Exception):
    """Carries the parser of a script out of it before it parses anything."""


def parser_of(script: str, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a script's main builds."""

    def catch(parser, *_):
        raise ParserCaught(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        patch.setattr(sys, "argv", [script])
        with pytest.raises(ParserCaught) as caught:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return caught.value.args[0]


def test_there_are_commands_to_check():
    scripts = {parameter.values[1] for parameter in COMMANDS}
    assert {"coco.py", "demo.py", "convert_weights.py", "samples/shapes.py", "samples/nucleus.py"} <= scripts
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("page", "script", "arguments"), COMMANDS)
def test_every_command_is_understood(page, script, arguments, monkeypatch, capsys):
    assert (ROOT / script).is_file()
    parser = parser_of(script, monkeypatch)
    if arguments == ["--help"]:
        return
    try:
        settings = getattr(parser.parse_args(arguments), "set", None) or []
    except SystemExit:
        pytest.fail(f"{page}: {capsys.readouterr().err}")
    assert set(config.parse_settings(settings)) == {setting.split("=")[0] for setting in settings}


@pytest.mark.parametrize("page", PAGES)
def test_every_named_setting_exists(page):
    """Words in capitals with an underscore are settings, environment variables or constants of a module named there."""
    for name in inline_code(PAGES[page]):
        match = re.match(r"(?:--set )?([A-Z]+(?:_[A-Z]+)+)\b(?!/)", name)
        if match and match[1] not in ENVIRONMENT and not match[1].startswith("MASKSCORING_"):
            assert hasattr(config.Config, match[1]) or f".py`: `{match[1]}`" in PAGES[page], f"{page}: {match[1]}"


@pytest.mark.parametrize(
    "name", ["MASKSCORING_KERNELS", "MASKSCORING_KEEP_MEMORY", "CUDA_ARCH", "CUDA_HOME", "MASKSCORING_CACHE", "NVCC"]
)
def test_every_variable_is_explained(name):
    assert name in PAGES["docs/operators.md"]
    sources = [*ROOT.glob("*.py"), *ROOT.glob("weights/*.py")]
    assert any(name in path.read_text() for path in sources)


############################################################
#  CONTRIBUTING
############################################################


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two first lines."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_path_of_the_tree_exists_and_is_named():
    """Each file and folder of the top level that has code is in the tree: a row of CONTRIBUTING's first table."""
    paths = [re.match(r"`([\w./]+)`", cells[0])[1] for cells in rows(PAGES["CONTRIBUTING.md"], "Where things are")]
    for path in paths:
        assert (ROOT / path).exists(), path
    files = {path.name for path in ROOT.glob("*.py")} | {f"{path.parent.name}/" for path in ROOT.glob("*/*.py")}
    missing = files - set(paths)
    assert not missing, f"add {missing} to the table of CONTRIBUTING.md, at the place of its layer"


def test_the_tree_has_the_order_of_the_layers():
    """From the top: a name never stands below a name of a lower layer of tests/test_layout.py."""
    tree = ast.parse((ROOT / "tests" / "test_layout.py").read_text())
    (layers,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "LAYERS"]
    layer_of = {name: layer for layer, names in enumerate(ast.literal_eval(layers)) for name in names}
    paths = [re.match(r"`([\w./]+)`", cells[0])[1] for cells in rows(PAGES["CONTRIBUTING.md"], "Where things are")]
    names = [path.rstrip("/").removesuffix(".py").replace("/", ".") for path in paths]
    assert {name for name in layer_of if "." not in name} <= set(names)
    order = [layer_of[name] for name in names if name in layer_of]
    assert order == sorted(order, reverse=True), list(zip(names, order, strict=False))


def test_every_change_has_at_most_two_places_and_these_exist():
    changes = rows(PAGES["CONTRIBUTING.md"], "Where does a change go?")
    assert len(changes) == 13
    for change, *places in changes:
        assert len(places) == 2, change
        assert places[0], change
        for place in places:
            path, _, text = place.partition(": ")
            for name in re.findall(r"`([\w.]+)`", text) if re.fullmatch(r"`[\w/]+\.py`", path) else []:
                assert name in definitions(ROOT / path.strip("`")), f"{change}: {path} has no {name}"
            for path in [] if place.startswith("new file `") else re.findall(r"`([\w.]+(?:/[\w.]*)+)`", place):
                assert (ROOT / path).exists(), f"{change}: {path}"


def definitions(path: Path) -> set[str]:
    """Names that a file defines at its top level, and those of methods and attributes as Class.name."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {f"{node.name}.{part.target.id}" for part in node.body if isinstance(part, ast.AnnAssign)}
    return names


############################################################
#  Models
############################################################


def test_every_published_name_is_in_the_table():
    from weights.published import EMBEDDED, PUBLISHED, cache_folder

    page = PAGES["docs/models.md"]
    figures_of = {name.strip("`"): figures for name, _, _, figures, _ in rows(page, "Names")}
    assert sorted(figures_of) == sorted([*PUBLISHED, *EMBEDDED])
    for name, published in PUBLISHED.items():
        figures = figures_of[name]
        assert re.fullmatch(r"(\d\d\.\d|-) / \d\d\.\d", figures), name
        if aps := re.findall(r"AP (\d\d\.\d)", published.note):
            assert figures == " / ".join(aps if len(aps) == 2 else ["-", *aps]), published.note
    assert "mask-scoring-rcnn" in str(cache_folder())
    assert "~/.cache/mask-scoring-rcnn" in page


def test_every_published_configuration_is_in_the_table():
    import coco
    from training.optimizer import SCHEDULES

    with_epochs = [cells[0].strip("`") for cells in rows(PAGES["docs/models.md"], "Names") if cells[2]]
    assert with_epochs == list(coco.CONFIGS)
    for name, settings in coco.CONFIGS.items():
        backbone, epochs, *_ = row_of("docs/models.md", f"`{name}`").split(" | ")
        assert backbone.lower().replace("-", "").replace(" ", "_") == settings["BACKBONE"]
        assert int(epochs) == SCHEDULES[settings["SCHEDULE"]][-1].epochs


def test_every_dialect_is_in_the_table():
    assert all(f"| `{name}` |" in PAGES["docs/models.md"] for name in config.DIALECTS)


def test_the_exit_codes_are_those_of_cli():
    import cli

    table = re.findall(r"^\| (\d[\d, ]*) \| (.*) \|$", PAGES["docs/own_data.md"], flags=re.MULTILINE)
    assert [codes for codes, _ in table] == ["0", "1", "2", "130, 143"]
    for codes, meaning in table:
        assert re.search(rf"^    {codes} +{re.escape(meaning)}$", cli.__doc__, flags=re.MULTILINE), codes


############################################################
#  Figures
############################################################


def committed(page: str, subject: str) -> dict:
    """The results of a subject in the file that a page links to; the page also names revision, torch and machine."""
    text = PAGES[page]
    path = ROOT / re.search(rf"\((?:\.\./)?(benchmarks/results/[\w.-]+-{subject}-[\w.-]+\.json)\)", text)[1]
    facts = json.loads(path.read_text())
    assert not facts["revision"].endswith(("+", "-dirty")), "measured on a tree with changes"
    assert f"revision {facts['revision']}" in prose(text)
    assert facts["torch"].split("+")[0] in text
    assert facts["cpu"].split(",")[0] in prose(text)
    assert not facts.get("quick", False)
    return facts


def row_of(page: str, name: str) -> str:
    (row,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", PAGES[page], flags=re.MULTILINE)
    return row


@pytest.mark.parametrize("name", sorted({tables.page_of(subject).name for subject in tables.TABLES}))
def test_the_tables_of_a_page_are_the_committed_results(name):
    """Nothing is typed by hand: benchmarks/tables.py makes them of files that were measured on a clean tree."""
    page = PAGES[f"docs/{name}"]
    assert tables.with_tables(page) == page
    blocks = re.findall(r"<!-- table: (\w+) (\S+) -->", page)
    assert {subject for subject, _ in blocks} == {key for key in tables.TABLES if tables.page_of(key).name == name}
    for subject, path in blocks:
        facts = tables.read_results(subject, ROOT / path)
        assert not facts["revision"].endswith(("+", "-dirty")), path
        assert not facts.get("quick", False), path


@pytest.mark.parametrize(("page", "names"), [
    ("docs/training.md", ["training", "evaluation", "conversion", "download"]),
    ("docs/large_images.md", ["large"]),
])  # fmt: skip
def test_kills_are_the_committed_result(page, names):
    facts = committed(page, "kills")
    assert [case["name"] for case in facts["cases"]] == names
    for case in facts["cases"]:
        numbers = [str(case[name]) for name in ("kills", "rounds", "equal", "lost")]
        assert row_of(page, case["name"]).split(" | ") == numbers
        assert case["kills"] == kills.COUNTS[case["name"]]
        assert (case["equal"], case["leftovers"]) == (case["rounds"], 0)


def test_what_the_server_took_is_the_committed_result():
    page = "docs/serving.md"
    both = committed(page, "serve"), committed(page, "serve-onnx")
    for phase, row in {
        "start": "the process after the start, MB", "eight": "after 48 detections, MB",
        "malformed": "after 1,000 malformed requests, MB", "same": "after the same 1,000 once more, MB",
    }.items():  # fmt: skip
        assert row_of(page, row) == " | ".join(f"{facts['megabytes'][phase]:.0f}" for facts in both)
    for phase, row in {"one": "an answer for one client, s", "eight": "an answer for one of eight clients, s"}.items():
        assert row_of(page, row) == " | ".join(f"{facts['phases'][phase]['median_s']:.2f}" for facts in both)
    for facts in both:
        for phase in ("malformed", "same"):
            assert (facts["phases"][phase]["requests"], facts["phases"][phase]["answered_wrongly"]) == (1000, {})
        assert facts["phases"]["again"]["statuses"] == {"200": facts["phases"]["again"]["requests"]}


def test_the_speed_of_exported_networks_is_the_committed_result():
    facts = committed("docs/export.md", "export")
    ours = facts["cases"][0]
    assert [case["name"] for case in facts["cases"]] == list(facts["shapes_mask_ap"])
    for case in facts["cases"]:
        numbers = [f"{case[name]:.0f} | {case[name] / ours[name]:.2f}" for name in ("network_ms", "whole_ms")]
        precision = f"{facts['shapes_mask_ap'][case['name']]:.2f}"
        assert row_of("docs/export.md", case["name"]) == " | ".join([*numbers, precision])


def test_the_share_of_targets_is_the_committed_result():
    path = ROOT / re.search(r"<!-- table: train (\S+) -->", PAGES["docs/speed.md"])[1]
    cases = json.loads(path.read_text())["results"]["train"]["cases"]
    shares = {case["name"]: case["targets_share"] for case in cases}
    assert f"targets take {100 * shares['MS R-CNN, 400 objects']:.1f} % of the step" in prose(PAGES["docs/speed.md"])


def test_overfitting_is_the_committed_result():
    text = PAGES["docs/training.md"]
    folder = ROOT / re.search(r"\(\.\./(benchmarks/results/[\w.-]+-overfit-nuclei)\)", text)[1]
    facts = json.loads((folder / "overfit_nuclei.json").read_text())
    assert f"mask AP50 {facts['mask AP50']:.3f}" in prose(text)
    assert f"After {facts['training_s'] / 60:.1f} minutes" in prose(text)
    assert f"revision {facts['revision'].rstrip('+')}" in prose(text)
    assert facts["mask AP50"] >= 0.9
    assert facts["training_s"] < 15 * 60


@pytest.mark.parametrize("data", ["shapes", "nuclei"])
def test_results_are_the_committed_ones(data):
    """The table of each model is what measure_gain.py makes of the file that the page names."""
    models = committed("docs/results.md", data)["models"]
    assert measure_gain.table(models) in PAGES["docs/results.md"]
    for row in models.values():
        value, low, high = row["gains"]["AP"]
        assert low < value < high
        assert value == pytest.approx(row["mask AP"] - row["mask AP (class score)"], abs=1e-12)
    before, after = (
        100 * np.mean([row[name] for row in models.values()]) for name in ("mask AP (class score)", "mask AP")
    )
    assert f"from {before:.1f} to {after:.1f}" in prose(PAGES["README.md"])


@pytest.mark.parametrize("data", ["shapes", "nuclei", "photos"])
def test_what_make_reproduce_gives_is_the_committed_result(data):
    """Of the recipe as it is, beside that of the embedded model, which may have learned otherwise."""
    page, (name, _) = PAGES["docs/results.md"], reproduce.committed(data)
    facts = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    assert f"(../benchmarks/results/{name})" in page
    assert f"revision {facts['revision']}" in prose(page)
    assert not facts["revision"].endswith(("+", "-dirty"))
    assert measure_gain.table(facts["models"]) in page


@pytest.mark.parametrize(("subject", "name"), [("rivals", "StarDist"), ("cellpose", "Cellpose")])
def test_rivals_are_the_committed_ones(subject, name):
    facts = committed("docs/results.md", subject)
    assert rivals.table(facts["models"]) in PAGES["docs/results.md"]
    assert f"{name} {facts['models'][name.lower()]['version']}" in prose(PAGES["docs/results.md"])


def test_photographs_are_the_committed_ones():
    page, results = PAGES["docs/results.md"], ROOT / "benchmarks" / "results"
    assert measure_gain.table(committed("docs/results.md", "photos")["models"]) in page
    with (results / "2026-11-30-photos" / "classes.csv").open() as file:
        for row in csv.DictReader(file):
            numbers = [
                f"{float(row['mask AP50']):.2f}",
                *(f"{100 * float(row[name]):.1f}" for name in ("mask AP", "box AP")),
            ]
            (line,) = re.findall(rf"^\| {row['name']} \| {row['objects']} \| (.*) \|$", page, flags=re.MULTILINE)
            cells = line.split(" | ")
            assert [cells[0], *cells[2:]] == numbers
            assert cells[1] == "-" or float(row["mask AP50"]) >= float(cells[1]), "it has what was wanted"


def test_looks_are_the_committed_ones():
    page = PAGES["docs/results.md"]
    for data in ("shapes", "nuclei"):
        (path,) = (ROOT / "benchmarks" / "results").glob(f"*-looks-{data}-*.json")
        facts = json.loads(path.read_text())
        assert facts["set"] == ["BOX_HEAD_LOOKS=2"]
        assert f"({path.relative_to(ROOT)})" in page.replace("../", "")
        assert f"revision {facts['revision']}" in prose(page)
        once = json.loads((path.parent / f"2026-11-27-{data}-xeon-1-thread.json").read_text())["models"]
        once = next(iter(once.values()))
        rows = {f"{data}, one look": once, f"{data}, two looks": facts["models"][data]}
        for line in measure_gain.table(rows).splitlines()[2:4]:
            assert line in page


def test_ablations_are_the_committed_ones():
    facts = committed("docs/results.md", "ablations")
    runs = {variant: {int(seed): run for seed, run in seeds.items()} for variant, seeds in facts["runs"].items()}
    assert list(runs) == list(ablations.VARIANTS)
    assert all(len(seeds) == 3 for seeds in runs.values())
    assert ablations.table(runs) in PAGES["docs/results.md"]


@pytest.mark.parametrize(("subject", "detectors"), [("head-choices", 3), ("embedded-heads", 1)])
def test_choices_of_heads_are_the_committed_ones(subject, detectors):
    facts = committed("docs/results.md", subject)
    assert {len(runs) for runs in facts["runs"].values()} == {detectors}
    assert head_choices.table(facts["runs"]) in PAGES["docs/results.md"]


@pytest.mark.parametrize("subject", ["boxes", "cells"])
def test_box_ablations_are_the_committed_ones(subject):
    facts = committed("docs/results.md", subject)
    assert next(iter(facts["runs"])) == ablations.BASE
    assert set(facts["runs"]) <= set(box_ablations.VARIANTS)
    runs = {variant: {int(seed): run for seed, run in seeds.items()} for variant, seeds in facts["runs"].items()}
    assert box_ablations.table(runs) in PAGES["docs/results.md"]


def test_the_choices_of_the_plan_are_the_committed_result():
    (path,) = (ROOT / "benchmarks" / "results").glob("*-plan-defaults-*.json")
    result, page = json.loads(path.read_text()), PAGES["docs/own_data.md"]
    section = page[page.index("### How good the plan is") : page.index("\n## Evaluate")]
    planned = result["mask AP"].pop("as planned")["0"]
    assert f"revision {result['revision']}" in section
    assert f"after {result['steps']} steps" in section
    assert f"The plan itself reaches {planned:.1f}" in section
    rows = {
        name: f"| {name} | {of_seed['0']:.1f} | {of_seed['0'] - planned:+.1f} |"
        for name, of_seed in result["mask AP"].items()
    }
    assert all(row in section for row in rows.values())


def test_the_plan_is_the_committed_result():
    (path,) = (ROOT / "benchmarks" / "results").glob("*-plan-against-sample-*.json")
    result, page = json.loads(path.read_text()), PAGES["docs/own_data.md"]
    section = page[page.index("### How good the plan is") : page.index("\n## Evaluate")]
    assert f"Revision {result['revision']}" in section
    assert f"{result['steps']} steps" in section
    for row in result["rows"]:
        planned, by_hand = row["planned, mask AP"], row["by hand, mask AP"]
        cells = [f"{planned:.1f}", f"{by_hand:.1f}", f"{planned - by_hand:+.1f}"]
        assert f"| seed {row['seed']} | {' | '.join(cells)} |" in section

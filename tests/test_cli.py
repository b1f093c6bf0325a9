"""cli.py: errors and exit codes, arguments that all commands share, and the model that --model names."""

import argparse
import errno
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY_SHAPES
from tqdm import tqdm

import cli
import coco
import convert_weights
import custom
import demo
import export
import fused
import native
import runtime
import serve
from benchmarks import ablations, box_ablations, head_afterwards, head_choices, measure_gain
from config import Config
from model import MaskRCNN
from samples import balloon, nucleus, shapes
from weights.checkpoint import describe, make_checkpoint, write_checkpoint

COMMANDS = {
    "coco.py": (coco.build_parser, ["train"]),
    "serve.py": (serve.build_parser, ["shapes"]),
    "convert_weights.py": (convert_weights.build_parser, ["a.pth", "b.pth"]),
    "export.py": (export.build_parser, ["shapes", "a.onnx"]),
    "demo.py": (demo.build_parser, []),
    "shapes.py": (shapes.build_parser, ["train"]),
    "ablations.py": (ablations.build_parser, []),
    "head_afterwards.py": (head_afterwards.build_parser, ["shapes"]),
    "head_choices.py": (head_choices.build_parser, ["--detectors", "a.pth"]),
    "box_ablations.py": (box_ablations.build_parser, ["--dataset", "x"]),
    "measure_gain.py": (measure_gain.build_parser, ["shapes"]),
    "nucleus.py": (nucleus.build_parser, ["train", "--dataset", "x"]),
    "balloon.py": (balloon.build_parser, ["train"]),
    "custom.py": (custom.build_parser, ["train", "--dataset", "x"]),
}
NETWORK = {name: value for name, value in TINY_SHAPES.items() if not name.startswith("DETECTION")}


def parser_of(command: str) -> argparse.ArgumentParser:
    return COMMANDS[command][0]()


def option(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    return next((action for action in parser._actions if name in action.option_strings), None)


############################################################
#  Errors and exit codes
############################################################


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("--limit is wrong"), 2, "--limit is wrong"),
        (FileNotFoundError("no a.png"), 2, "no a.png"),
        (PermissionError("a.png is locked"), 2, "a.png is locked"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (cli.Failure("2 images could not be read"), 1, "2 images could not be read"),
        (MemoryError("lower IMAGES_PER_GPU"), 1, "lower IMAGES_PER_GPU"),
        (FloatingPointError("loss is nan"), 1, "loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(error, code, message, capsys):
    def fail():
        raise error

    assert cli.run("x.py", fail) == code
    printed = capsys.readouterr().err
    assert printed.startswith("x.py: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_notes_of_an_error_are_printed(capsys):
    def fail():
        error = ValueError("boxes are empty")
        error.add_note("in epoch 1, step 2")
        raise error

    assert cli.run("x.py", fail) == 2
    assert capsys.readouterr().err == "x.py: boxes are empty; in epoch 1, step 2\n"


def test_a_fault_of_this_project_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run("x.py", lambda: 1 // 0)


def test_exit_codes_of_commands_that_end():
    assert cli.run("x.py", lambda: None) == 0
    assert cli.run("x.py", lambda: 143) == 143


def test_errors_of_the_system_name_the_file(capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "out/a\x1b.jpg")

    assert cli.run("x.py", fail) == 1
    assert capsys.readouterr().err == "x.py: out/a\\x1b.jpg: No space left on device\n"


def test_what_an_apple_gpu_lacks_is_one_line(capsys):
    def fail():
        raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.\nMore lines")

    assert cli.run("x.py", fail) == 1
    printed = capsys.readouterr().err
    assert "--device mps: The operator 'aten::x' is not" in printed
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in printed
    assert printed.count("\n") == 1
    with pytest.raises(NotImplementedError):
        cli.run("x.py", lambda: (_ for _ in ()).throw(NotImplementedError("another")))


WILD = "a\x1b[2J\x9b1m\x07\u202eb\udc80 треугольник"
TAME = r"a\x1b[2J\x9b1m\x07\u202eb\udc80 треугольник"


def test_nothing_that_a_command_prints_moves_the_terminal(capsys):
    """Printed, logged, warned of, or the message of its error."""

    def command():
        print(WILD, end="\r\n\t")
        print(WILD, file=sys.stderr)
        logging.getLogger("of_a_test").warning("%s", WILD)
        sys.stdout.writelines([WILD, "\n"])
        for _ in tqdm(range(1), desc=WILD, leave=True):
            pass
        raise ValueError(WILD)

    streams, propagates = (sys.stdout, sys.stderr), logging.root.handlers[:]
    logging.root.handlers[:] = [logging.lastResort]
    try:
        assert cli.run("x.py", command) == 2
    finally:
        logging.root.handlers[:] = propagates
    assert (sys.stdout, sys.stderr) == streams
    printed = capsys.readouterr()
    assert printed.out == f"{TAME}\r\n\t{TAME}\n"
    assert printed.err.count(TAME) >= 4
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\udc80"} & set(printed.err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "koi8-r"])
def test_any_terminal_can_show_it(encoding, monkeypatch):
    """What its letters lack is shown as codes, and nothing is an error."""
    files = io.BytesIO(), io.BytesIO()
    for name, file in zip(("stdout", "stderr"), files, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding, errors="strict", write_through=True))
    assert cli.run("x.py", lambda: print(WILD) or sys.stderr.write("é")) in (0, 1)
    with pytest.raises(SystemExit):
        parser_of("demo.py").parse_args(["--every", WILD])
    shown = TAME if encoding in ("utf-8", "koi8-r") else TAME.encode("ascii", "backslashreplace").decode()
    assert files[0].getvalue().decode(encoding) == f"{shown}\n"
    error = files[1].getvalue().decode(encoding)
    assert "must be a whole number from 1 up" in error
    assert error.isprintable() or error[:-1].isprintable()


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_in_messages_are_printable(command, capsys):
    for words in (["--device", "\x1b[2J"], [f"--{WILD.replace(' ', '_')}"], ["--model"], ["--epochs", WILD]):
        with pytest.raises(SystemExit):
            parser_of(command).parse_args([*COMMANDS[command][1], *words])
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert printed[:-1].isprintable()


def test_files_whose_names_are_no_unicode(tmp_path):
    """As a real process with a terminal of ASCII: the name is shown, and there is no UnicodeEncodeError."""
    run = subprocess.run(
        [sys.executable, "demo.py", os.fsencode(tmp_path) + b"/caf\xe9\x1b.pth"],
        capture_output=True,
        cwd=Path(cli.__file__).parent,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0"},
        timeout=120,
    )
    assert run.returncode == 2, run.stderr
    assert run.stderr.count(b"\n") == 1
    assert rb"caf\udce9\x1b.pth" in run.stderr


def test_the_texts_of_a_checkpoint_are_escaped():
    """convert_weights.py prints this: names must not look like lines of ours, nor move the terminal."""
    config = Config(NUM_CLASSES=2, CLASS_NAMES=("BG", WILD + "\n"))
    text = describe(make_checkpoint(config, "\x1b]0;title\x07\nsource      mine", {}))
    assert len(text.splitlines()) == 6
    assert all(line.isprintable() for line in text.splitlines())
    assert TAME + r"\n" in text


@pytest.mark.parametrize(("epoch", "trained"), [(0, ["detector", "maskiou"]), (3, ["maskiou"]), (7, ["maskiou"])])
def test_phases_that_are_over_are_named(epoch, trained, capsys):
    calls = []

    def train_model(*_, epochs, layers):
        calls.append(layers)
        return argparse.Namespace(interrupted=None, stop=False)

    model = argparse.Namespace(epoch=epoch, config=Config(), train_model=train_model)
    cli.train_phases(model, (None, None), [("detector", 3, {}), ("maskiou", 5, {})])
    assert calls == trained
    over = f"the phase of layers detector, until epoch 3, is over: {epoch} epochs are done\n"
    assert capsys.readouterr().out == (over if epoch else "")


@pytest.mark.parametrize("text", ["nan", "-1", "1.1", "inf", "x", ""])
def test_a_share_lies_between_0_and_1(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number from 0 to 1, not"):
        cli.share(text)
    assert [cli.share(good) for good in ("0", "1", "5e-1")] == [0, 1, 0.5]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_argument_is_one_line(command, capsys):
    with pytest.raises(SystemExit) as end:
        parser_of(command).parse_args([*COMMANDS[command][1], "--no-such-argument"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"{command}: ")
    assert "--help" in printed
    assert printed.count("\n") == 1


############################################################
#  Arguments
############################################################


@pytest.mark.parametrize("command", COMMANDS)
def test_every_set_counts(command):
    """`--set A=1 --set B=2` keeps both; a second parse begins anew."""
    build, words = COMMANDS[command]
    parser = build()
    arguments = parser.parse_args([*words, "--set", "SEED=1", "WORKERS=3", "--set", "IMAGE_MIN_DIM=64"])
    assert arguments.set == ["SEED=1", "WORKERS=3", "IMAGE_MIN_DIM=64"]
    assert parser.parse_args(words).set == []


@pytest.mark.parametrize(("device", "said"), [("cuda", "--set TF32=False keeps all digits\n"), ("cpu", "")])
def test_opening_a_model_says_how_a_gpu_rounds(device, said, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "find_device", torch.device)
    monkeypatch.setattr(cli, "load_model", lambda *_, **__: argparse.Namespace(config=Config()))
    cli.open_model(argparse.Namespace(model="shapes", device=device, set=[]), "coco")
    printed = capsys.readouterr().out
    assert printed.endswith(said)
    assert bool(printed) == bool(said)


def test_no_parser_is_forgotten():
    """COMMANDS has every program with --set, samples and benchmarks included."""
    programs = [path for folder in (".", "samples", "benchmarks") for path in (native.ROOT / folder).glob("*.py")]
    with_set = {path.name for path in programs if "add_set(" in path.read_text() and path.name != "cli.py"}
    assert with_set <= COMMANDS.keys()
    assert not {path.name for path in programs if re.search(r'add_argument\(\s*"--set"', path.read_text())} - {
        "cli.py"
    }, "cli.add_set makes it"


@pytest.mark.parametrize("name", ["--device", "--set", "--style", "--logs"])
def test_arguments_have_one_wording(name):
    commands = [command for command in COMMANDS if name != "--device" or command != "measure_gain.py"]
    actions = [option(parser_of(command), name) for command in commands]  # benchmarks measure on the CPU unless told
    assert len({(action.help, action.default if name != "--set" else None) for action in actions if action}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("tpu", "device must be cpu, cuda, cuda:N or mps, not 'tpu'"), ("cuda:99", "device 'cuda:99' cannot be used")],
)
def test_devices(text, message, capsys):
    parser = cli.Parser("x.py", None)
    cli.add_device(parser)
    assert parser.parse_args([]).device is None
    assert parser.parse_args(["--device", "cpu"]).device == "cpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", text])
    assert message in capsys.readouterr().err


def test_devices_of_a_training():
    assert [cli.gpu_count(device) for device in (None, "cpu", "cuda")] == [None, 0, 1]
    for check in (cli.gpu_count, cli.check_shared_device):
        with pytest.raises(ValueError, match=r"--device cuda:1: this command takes cuda without a number.*CUDA_VIS"):
            check("cuda:1")
    with pytest.raises(ValueError, match="--device mps: training takes cpu or cuda"):
        cli.gpu_count("mps")


def test_numbers():
    assert [cli.whole_number(least)(text) for least, text in ((0, "0"), (1, "1"), (1, "12"))] == [0, 1, 12]
    for least, text in ((0, "-1"), (1, "0"), (1, "1.5"), (1, "x"), (1, ""), (3, "2")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"a whole number from {least} up, not {text!r}"):
            cli.whole_number(least)(text)
    assert cli.positive_number("0.5") == 0.5
    for text in ("0", "-1", "x", "inf", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"a number above 0, not '{text}'"):
            cli.positive_number(text)


def test_output_and_seed():
    parser = cli.Parser("x.py", None)
    cli.add_output(parser, "pictures", "output")
    cli.add_seed(parser)
    assert parser.parse_args([]).output == Path("output")
    assert parser.parse_args([]).seed is None
    assert parser.parse_args(["--seed", "3"]).seed == 3
    assert "folder for pictures; default: output" in parser.format_help()


def test_set_is_stronger_than_other_arguments():
    arguments = argparse.Namespace(set=["SEED=9", "WORKERS=0"])
    settings = cli.settings_of(arguments, SEED=3, IMAGES_PER_GPU=5, BACKBONE=None)
    assert settings == {"SEED": 9, "IMAGES_PER_GPU": 5, "WORKERS": 0}


############################################################
#  --model
############################################################


class CellConfig(Config):
    """A program of its own: two classes, small anchors, a learning rate."""

    NAME = "cells"
    NUM_CLASSES = 2
    CLASS_NAMES = ("BG", "cell")
    BACKBONE = "resnet18"
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    LEARNING_RATE = 0.25
    IMAGE_MIN_DIM = 256


@pytest.fixture
def detector(tmp_path) -> Path:
    """A checkpoint of three classes: "cell" is the second, as CellConfig has it, and "dog" the third."""
    path = tmp_path / "detector.pth"
    names = {"NUM_CLASSES": 3, "CLASS_NAMES": ("BG", "cell", "dog"), "RPN_ANCHOR_SCALES": (9, 18, 36, 72, 144)}
    run = {"LEARNING_RATE": 0.75, "GPU_COUNT": 0, "IMAGE_MIN_DIM": 128, "NAME": "other"}
    MaskRCNN(Config(**{**NETWORK, "BACKBONE": "resnet34", **names, **run})).save(path)
    return path


def test_checkpoints_to_detect_with(tmp_path):
    assert cli.find_checkpoint("nuclei") == "nuclei"
    assert cli.find_checkpoint("a.pth", tmp_path, "cells") == "a.pth"
    with pytest.raises(ValueError, match=r"--model none is random weights, which finds no objects.*name a checkpoint"):
        cli.find_checkpoint("none")
    with pytest.raises(ValueError, match="--model imagenet is a backbone without heads"):
        cli.find_checkpoint("imagenet", tmp_path, "cells")
    with pytest.raises(ValueError, match="--model last: this command has no trainings"):
        cli.find_checkpoint("last")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint mask_rcnn_cells"):
        cli.find_checkpoint("last", tmp_path, "cells")
    path = tmp_path / "cells20260101T0000" / "mask_rcnn_cells_0002.pth"
    path.parent.mkdir()
    path.touch()
    assert cli.find_checkpoint("last", tmp_path, "cells") == path


def test_random_weights(tmp_path):
    start = cli.find_start("none", CellConfig, tmp_path, {})
    assert start == cli.Start(None, None)
    model = cli.starting_model(start, CellConfig, tmp_path, {**NETWORK, "SEED": 3})
    assert (model.config.SEED, model.config.LEARNING_RATE, model.model_dir) == (3, 0.25, tmp_path)
    assert isinstance(model.config, CellConfig)


def test_a_detector_with_all_but_its_run(detector, tmp_path):
    """Everything comes from the checkpoint but its run and what the command line says; rows of the same class too."""
    start = cli.find_start(str(detector), CellConfig, tmp_path, {})
    assert start.path is None
    settings = {"NUM_CLASSES": 2, "CLASS_NAMES": ("BG", "cell"), "CATEGORY_IDS": (0, 1)}
    model = cli.starting_model(start, CellConfig, tmp_path, settings)
    config = model.config
    assert (config.BACKBONE, config.RPN_ANCHOR_SCALES, config.IMAGE_MIN_DIM) == ("resnet34", (9, 18, 36, 72, 144), 128)
    assert (config.LEARNING_RATE, config.GPU_COUNT, config.NAME) == (0.25, CellConfig.GPU_COUNT, "cells")
    stored = start.checkpoint["model"]
    assert torch.equal(model.box_head.class_logits.weight, stored["box_head.class_logits.weight"][:2])
    assert torch.equal(model.box_head.fcs[0].weight, stored["box_head.fcs.0.weight"])


def test_only_the_network_of_a_detector(detector, tmp_path):
    start = cli.find_start(str(detector), CellConfig, tmp_path, {})
    model = cli.starting_model(start, CellConfig, tmp_path, {"SEED": 3}, network_only=True)
    config = model.config
    assert (config.BACKBONE, config.RPN_CHANNELS, config.SEED) == ("resnet34", 8, 3)
    assert (config.RPN_ANCHOR_SCALES, config.NUM_CLASSES) == ((8, 16, 32, 64, 128), 2)
    assert (config.IMAGE_MIN_DIM, config.LEARNING_RATE) == (256, 0.25)
    stored = start.checkpoint["model"]
    assert torch.equal(model.box_head.fcs[0].weight, stored["box_head.fcs.0.weight"])
    assert not torch.equal(model.box_head.class_logits.weight, stored["box_head.class_logits.weight"][:2])


def test_a_training_continues_with_its_settings_on_the_device_at_hand(tmp_path):
    log_dir = tmp_path / "cells20260101T0000"
    log_dir.mkdir()
    path = log_dir / "mask_rcnn_cells_0002.pth"
    model = MaskRCNN(CellConfig(**NETWORK, GPU_COUNT=0, SEED=7))
    write_checkpoint(path, {**model.to_checkpoint(), "training": {"epoch": 2, "step": 0}})
    start = cli.find_start("last", CellConfig, tmp_path, {})
    assert start.path == path
    config = cli.training_config(start, CellConfig, {"LEARNING_RATE": 0.5}, network_only=True)
    assert (config.RPN_CHANNELS, config.SEED, config.LEARNING_RATE) == (8, 7, 0.5)
    assert config.GPU_COUNT == CellConfig.GPU_COUNT, "the machine may be another one"
    continued = cli.starting_model(start, CellConfig, tmp_path, {})
    assert continued.epoch == 2
    assert continued.log_dir == log_dir
    assert torch.equal(continued.backbone.stem.weight, model.backbone.stem.weight)
    with pytest.raises(FileNotFoundError, match="mask_rcnn_tissue"):
        cli.find_start("last", CellConfig, tmp_path, {"NAME": "tissue"})


@pytest.mark.parametrize("network_only", [False, True])
def test_a_backbone(network_only, tmp_path, monkeypatch):
    """What its weights mean and its width come from the file, everything else from the class."""
    source = MaskRCNN(Config(BACKBONE="resnet18", BACKBONE_WIDTH=0.125, MEAN_PIXEL=(7.0, 8.0, 9.0), RPN_CHANNELS=64))
    stored = {**source.to_checkpoint(), "class_names": None, "category_ids": None}
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if name.startswith("backbone.")}
    path, asked = tmp_path / "backbone.pth", []
    write_checkpoint(path, stored)
    monkeypatch.setattr("weights.published.find_weights", lambda *names: asked.append(names) or path)
    start = cli.find_start("imagenet", CellConfig, tmp_path, {"BACKBONE_STYLE": "caffe"})
    assert asked == [("imagenet", "resnet18", "caffe")]
    model = cli.starting_model(start, CellConfig, tmp_path, {"TOP_DOWN_PYRAMID_SIZE": 8}, network_only)
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)
    config = model.config
    assert (config.BACKBONE_WIDTH, config.MEAN_PIXEL) == (0.125, (7.0, 8.0, 9.0))
    assert (config.RPN_CHANNELS, config.TOP_DOWN_PYRAMID_SIZE) == (Config.RPN_CHANNELS, 8)


def test_a_pipe_that_has_seen_enough_ends_the_command_in_silence():
    """As `| head -1` does."""
    lines = (
        "import cli, sys; sys.exit(cli.run('x.py', lambda: [print('line', i, flush=True) for i in range(10**6)] and 0))"
    )
    words = [sys.executable, "-c", lines]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, cwd=Path(cli.__file__).parent) as run:
        assert run.stdout.readline() == b"line 0\n"
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait(timeout=60) == 128 + 13


@pytest.mark.parametrize(("asked", "has", "dtype"), [
    (None, True, "bfloat16"), (None, False, "float32"), ("bfloat16", False, "bfloat16"), ("float32", True, "float32"),
])  # fmt: skip
def test_a_processor_without_bfloat16_trains_in_float32_unless_told(asked, has, dtype, tmp_path, monkeypatch, capsys):
    class FastConfig(CellConfig):
        TRAIN_DTYPE = "bfloat16"
        GPU_COUNT = 0

    monkeypatch.setattr(fused, "widens", lambda device, dtype: (device, dtype, has) == ("cpu", torch.bfloat16, False))
    settings = {**NETWORK, **({"TRAIN_DTYPE": asked} if asked else {})}
    model = cli.starting_model(cli.Start(), FastConfig, tmp_path, settings)
    chosen = model.config.TRAIN_DTYPE
    assert chosen == dtype
    assert ("TRAIN_DTYPE" in capsys.readouterr().out) == (dtype != (asked or "bfloat16"))


@pytest.mark.parametrize(
    ("program", "words", "refused"),
    [
        (shapes, ["train", "--output", "x.png"], "--output is an argument of show only; training writes into --logs"),
        (shapes, ["evaluate", "--output", "x.png"], "--output is an argument of show only"),
        (shapes, ["show", "--epochs", "3"], "--epochs is an argument of train only"),
        (shapes, ["evaluate", "--head-epochs", "0"], "--head-epochs is an argument of train only"),
        (nucleus, ["train", "--output", "x"], "--output is an argument of evaluate and detect only; training writes"),
        (nucleus, ["detect", "--val-share", "0.2"], "--val-share is an argument of train and evaluate only"),
        (nucleus, ["evaluate", "--minutes", "5"], "--minutes is an argument of train only"),
        (balloon, ["train", "a.jpg"], "files is an argument of splash only"),
        (balloon, ["splash", "a.jpg", "--layers", "all"], "--layers is an argument of train only"),
        (coco, ["evaluate", "--epochs", "3"], "--epochs is an argument of train only"),
    ],
)
def test_an_argument_that_a_command_does_not_read_is_refused(program, words, refused, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", str(tmp_path)] if program is nucleus else []
    assert program.main([*words, *data]) == 2
    assert refused in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

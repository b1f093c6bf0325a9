"""Settings of all kinds of values: a Config comes out that can be stored and read again, or a sentence that names the
setting."""

import contextlib
import json
from collections.abc import Iterator

import numpy as np
from fuzzing import fuzz

from config import RESIZE_MODES, SETTINGS, Config, parse_settings

NUMBERS = [
    *("0", "1", "-1", "7", "64", "1_000", "0x40", "0b11", "0o17", "007", "1e3", "5e2", ".5", "-0.0", "1e-320", "1/2"),
    *("nan", "NaN", "inf", "-Infinity", "1e999", "-1e999", "1e300", "1e19", "9" * 19, "9" * 5000, "0x" + "f" * 5000),
    *("1j", "١٢", "\uff11\uff12", "²", "1,2", "1 2", "--1", "+3"),
]
WORDS = [
    *(
        "",
        " ",
        "none",
        "None",
        "TRUE",
        "false",
        "resnet50",
        "sgd",
        "1x",
        "mmdet",
        "matterport",
        "pytorch",
        *RESIZE_MODES,
    ),
    *(
        "треугольник",
        "三角形",
        "a\x1b[2Jb",
        "a\nb",
        "\0",
        "\udc80",
        "'",
        "'a'",
        '"b',
        "b'abc'",
        "...",
        "a=b",
        "x" * 5000,
    ),
    *("lambda: 1", "__import__('os').abort()", "{}", "{1: 2}", "{'mrcnn_mask_loss': 2}", "{'rpn_class_loss': 1e999}"),
    *("[]", "()", "[[1]]", "[" * 3000, "(" * 150 + "1," + ")" * 150, "-" * 3000 + "1", "{1, 2}", "[None, 1]"),
]
VALUES = [
    *(None, True, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e300, float("nan"), float("inf"), 1j, "", "1", b"abcde"),
    *([], [1] * 5, [[1] * 5], (1.0, float("nan")), range(10**9), {"rpn_class_loss": 1}, {1: 2}, {"a": [1]}, {1, 2}),
    *(
        np.float32("nan"),
        np.arange(5),
        np.ones((5, 5)),
        object(),
        len,
        [10**400] * 5,
        ["a", "b"],
        "\x1b[2J",
        "a" * 3000,
    ),
]


def number(rng: np.random.Generator) -> str:
    return (
        str(rng.choice(NUMBERS)) if rng.random() < 0.5 else repr(float(rng.normal()) * 10.0 ** int(rng.integers(-9, 9)))
    )


def value_text(rng: np.random.Generator) -> str:
    match rng.integers(4):
        case 0:
            return number(rng)
        case 1:
            return WORDS[rng.integers(len(WORDS))]
        case 2:
            text = ",".join(number(rng) for _ in range(rng.choice([2, 3, 4, 5, 6, 2000])))
            return str(rng.choice(["{}", "({})", "[{}]", "[{}"])).format(text)
    count = int(rng.integers(1, 20))
    return "".join(map(chr, rng.choice([*range(128), 0x85, 0x202E, 0x4E09, 0xDC80, 0x1F600], count)))


def check(config: Config) -> None:
    """A config has finite numbers only, and comes back from a checkpoint or JSON as it was."""
    plain = {name: value for name, value in config.to_dict().items() if not str(value).startswith("<")}
    assert Config.from_dict(plain).to_dict() == {**Config().to_dict(), **plain}
    assert Config.from_dict(json.loads(json.dumps(plain, allow_nan=False))).to_dict() == {**Config().to_dict(), **plain}
    assert config.COMPUTE_BACKBONE_SHAPE is not None or len(config.BACKBONE_SHAPES) == 5
    config.for_detection()


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """A context in which each refusal must name the setting."""
    try:
        yield
    except ValueError as error:
        if name not in str(error):
            raise AssertionError(f"the message does not name {name}: {error}") from error
        raise


def test_texts():
    """--set NAME=VALUE, once or several times."""

    def case(rng):
        name = str(rng.choice(list(SETTINGS)))
        texts = [f"{name}={value_text(rng)}" for _ in range(1 if rng.random() < 0.9 else 2)]
        with named(name):
            check(Config(**parse_settings(texts)))

    fuzz(case, 400, "")


def test_names():
    names = [*SETTINGS, *WORDS, "MASK_SHAPE", "USE_RPN_ROIS", "display", "__init__", "a" * 10**5]

    def case(rng):
        letters = list(names[rng.integers(len(names))])
        for _ in range(rng.integers(1, 4)):
            letters.insert(int(rng.integers(len(letters) + 1)), chr(int(rng.choice([0, 27, 65, 95, 0x4E09, 0xDC80]))))
        check(Config(**parse_settings(["".join(letters) + str(rng.choice(["", "=", "=1", " = 1"]))])))

    fuzz(case, 200, "set")  # "is not a setting", "--set needs"


def test_values():
    """Config(**settings) and Config.from_dict of a damaged checkpoint."""

    def case(rng):
        name, value = str(rng.choice(list(SETTINGS))), VALUES[rng.integers(len(VALUES))]
        with named(name):
            check(
                Config(**{name: value}) if rng.random() < 0.5 else Config.from_dict({**Config().to_dict(), name: value})
            )

    fuzz(case, 500, "")


def test_large_images_take_no_memory():
    def case(rng):
        sides = {
            name: int(2 ** rng.uniform(0, 70)) for name in ("IMAGE_MIN_DIM", "IMAGE_MAX_DIM", "IMAGE_SIZE_DIVISOR")
        }
        check(Config(**sides))

    fuzz(case, 100, "IMAGE_")

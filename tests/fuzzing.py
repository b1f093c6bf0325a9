"""What the fuzzers share: seeds, limits of time and memory, and ways to damage an input.

A fuzzer is a file fuzz_SUBJECT.py, whose tests call fuzz() with a function that makes one damaged input and uses it:

    def test_annotations(tmp_path):
        def case(rng):
            path = tmp_path / "annotations.json"
            path.write_bytes(damaged_bytes(GOOD, rng))
            CocoDataset().load_annotations(path, IMAGES)

        fuzz(case, 300, "annotations.json")

`make test` runs the cases of fixed seeds. `make fuzz` goes on with further seeds for an hour, shared by all fuzzers.
FUZZ_SEED=N runs a single seed.
"""

import contextlib
import copy
import itertools
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_SECONDS = 5  # for a single case
MAX_BYTES = 2 << 30
MAX_MESSAGE = 3000  # characters
# The case that runs, for the one who looks for it after a crash.
CURRENT_CASE = Path(tempfile.gettempdir()) / "maskscoring_fuzz_case"

seconds_per_fuzzer = 0.0  # conftest.py sets it, from FUZZ_SECONDS


class TooSlow(BaseException):
    """A case took longer than MAX_SECONDS. No code that runs in a case catches this."""


def fuzz(case: Callable[[np.random.Generator], None], count: int, name: str) -> None:
    """Runs a case for many seeds. An input may work, or be refused in a sentence that names it.

    case: damages an input, and uses it. It gets a random generator, the same one for the same seed.
    count: the number of seeds that every run of the tests has.
    name: what each message must contain, such as the name of the file.

    Fails for: a message without the name, with control characters, or above MAX_MESSAGE; every error that is none of a
    user's mistakes (ValueError, OSError); a case above MAX_SECONDS; and a case that takes more than MAX_BYTES.
    """
    for seed in _seeds(count):
        CURRENT_CASE.write_text(f"{os.environ.get('PYTEST_CURRENT_TEST', '')} FUZZ_SEED={seed}\n")
        try:
            with _limits():
                case(np.random.default_rng(seed))
        except (ValueError, OSError) as error:
            _check_message(str(error), name, seed)
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={seed}")
            raise


def _seeds(count: int) -> Iterator[int]:
    if "FUZZ_SEED" in os.environ:
        yield int(os.environ["FUZZ_SEED"])
        return
    end = time.monotonic() + seconds_per_fuzzer
    yield from range(count)
    for seed in itertools.count(count):
        if time.monotonic() >= end:
            return
        yield seed


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Raises TooSlow after MAX_SECONDS, and lets the process have only MAX_BYTES of address space more than it has."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"a case took more than {MAX_SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, before[1]))
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _check_message(message: str, name: str, seed: int) -> None:
    assert name in message, f"FUZZ_SEED={seed}: the message does not name {name}: {message[:500]}"
    assert len(message) <= MAX_MESSAGE, f"FUZZ_SEED={seed}: {len(message)} characters: {message[:500]}"
    assert all(character.isprintable() or character == "\n" for character in message), f"FUZZ_SEED={seed}: {message!r}"


############################################################
#  Damage
############################################################

# Numbers that are at the end of some type.
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1)
# Values of JSON that a reader may not expect.
_VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**62, 10**30, -(2**63)),
    *(0.5, -0.0, 1e12, 1e308, float("nan"), float("inf")),
    *("", "0", "1", "text", "\x1b[2J\x07", "../../../etc/passwd", "/etc/passwd", "C:\\x.png", "\udc80", "a" * 3000),
    *([], [[]], [1, 2], [[1, 2, 3]], [[[[1]]]]),
    *({}, {"size": [2**32, 2**32], "counts": [0, 5]}, {"counts": "x"}),
]


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with one to four faults: flipped bits, numbers replaced, pieces cut out, doubled, moved or zeroed."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        start, length = int(rng.integers(len(data))), int(2 ** rng.uniform(0, 10))
        piece = slice(start, start + length)
        match rng.integers(8):
            case 0:
                data[start] ^= 1 << int(rng.integers(8))
            case 1:
                data[start] = int(rng.integers(256))
            case 2:
                width = int(rng.choice([1, 2, 4, 8]))
                number = int(_NUMBERS[rng.integers(len(_NUMBERS))]) % 2 ** (8 * width)
                data[start : start + width] = number.to_bytes(width, rng.choice(["little", "big"]))
            case 3:
                del data[piece]
            case 4:
                data[start:start] = data[piece]
            case 5:
                data[piece] = bytes(len(data[piece]))
            case 6:
                target = int(rng.integers(len(data)))
                data[target : target + length] = data[piece]
            case 7 if rng.random() < 0.25:
                del data[start:]
    return bytes(data)


def damaged_json(value: Any, rng: np.random.Generator) -> Any:
    """A copy of a JSON value in which one to three places are replaced, dropped, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(value))
        if not places:
            break
        parent, key = places[rng.integers(len(places))]
        match rng.integers(5):
            case 0 | 1:
                parent[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
            case 2:
                del parent[key]
            case 3:
                other, other_key = places[rng.integers(len(places))]
                parent[key] = copy.deepcopy(other[other_key])
            case 4 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 4:
                parent[str(_VALUES[rng.integers(len(_VALUES))])[:50]] = parent.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])

"""Files that are written entry by entry, or row by row: all entries, or their text, would take too much memory."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import runtime


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8. Its letters are unescaped, unless some are no Unicode, which JSON must escape."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent).encode()


def write_list(file: BinaryIO, entries: Iterable[Any]) -> None:
    """Writes what json.dump would, entry by entry."""
    file.write(b"[")
    for i, entry in enumerate(entries):
        file.write((b", " if i else b"") + json_bytes(entry))
    file.write(b"]")


def stream_json(path: Path, values: dict[str, Any] | Iterator[Any]) -> Path:
    """Writes JSON to a file and makes its folder, completely or not at all.

    values: an iterator is written as a list, entry by entry; of a dict, those values that are iterators.
    """

    def write(file: BinaryIO) -> None:
        if isinstance(values, Iterator):
            write_list(file, values)
            return
        file.write(b"{")
        for i, (name, value) in enumerate(values.items()):
            file.write((b", " if i else b"") + json_bytes(name) + b": ")
            if isinstance(value, Iterator):
                write_list(file, value)
            else:
                file.write(json_bytes(value))
        file.write(b"}")

    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomically(path, write)
    return path


def stream_csv(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """Writes a table to a file and makes its folder, whole or not at all. Names that are no UTF-8 keep their bytes."""

    def write(file: BinaryIO) -> None:
        for row in rows:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerow(row)
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))

    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomically(path, write)
    return path

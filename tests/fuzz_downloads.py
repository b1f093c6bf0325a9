"""Damaged archives: they are unpacked, or refused, and nothing is written outside of their folder."""

import io
import zipfile

import numpy as np
from fuzzing import damaged_bytes, fuzz

from weights.download import safe_extract


def archive(method: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as file:
        file.writestr("annotations/instances.json", b'{"images": []}' * 20)
        file.writestr("val/1.jpg", bytes(range(256)))
    return data.getvalue()


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def test_archives(tmp_path):
    archives = [archive(method) for method in METHODS]

    def case(rng: np.random.Generator) -> None:
        path = tmp_path / "some.zip"
        path.write_bytes(damaged_bytes(archives[rng.integers(len(archives))], rng))
        try:
            safe_extract(path, tmp_path / "some.zip.out", progress=False)
        finally:
            assert {each.name for each in tmp_path.iterdir()} <= {"some.zip", "some.zip.out"}

    fuzz(case, 300, "some.zip")

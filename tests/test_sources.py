"""data/sources.py: which pictures names of files, folders, patterns and addresses mean."""

import builtins
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from data.sources import evenly, find_pictures, is_address, local_copy, match_files


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (9, 8, 7)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.TIF", "sub/deep/c.jpg", "out/d.png", ".hidden/e.png", "output/f.png", ".g.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("x")
    return tmp_path / "in"


def names_of(found) -> list[str]:
    return [picture.name for picture in found.pictures]


def test_a_folder_stands_for_all_pictures_in_it(folder):
    found = find_pictures([str(folder)])
    assert names_of(found) == ["a.png", "out/d.png", "sub/b.TIF", "sub/deep/c.jpg"]
    assert found.root == str(folder)
    assert [Path(picture.address) for picture in found.pictures] == [folder / name for name in names_of(found)]
    assert names_of(find_pictures([str(folder)], leave_out=folder / "out")) == ["a.png", "sub/b.TIF", "sub/deep/c.jpg"]


def test_files_patterns_and_folders_together(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    found = find_pictures(["in/sub/**/*", "in/a.png", "in/a.png", "in/sub"])
    assert names_of(found) == ["sub/b.TIF", "sub/deep/c.jpg", "a.png"], "each once, below what they have in common"
    assert found.sources == [str(folder / name) for name in ("sub/**/*", "a.png", "a.png", "sub")]
    assert names_of(find_pictures(["in/*"])) == ["a.png"], "of the matches, those that are pictures"
    assert names_of(find_pictures(["in/*.txt"])) == ["notes.txt"], "what was named is tried"
    assert match_files("in/nothing*") == []
    save(folder / "x[1].png")
    assert names_of(find_pictures(["in/x[1].png"])) == ["x[1].png"], "a file is no pattern"


@pytest.mark.parametrize("name", ["gone", "gone/*.png", "empty"])
def test_names_without_pictures_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"--dataset .*(no such file or folder|there are no pictures)"):
        find_pictures([str(tmp_path / name)])


############################################################
#  Object stores
############################################################


@pytest.fixture
def store(tmp_path):
    memory = fsspec.filesystem("memory")
    data = save(tmp_path / "a.png").read_bytes()
    for name in ("slides/a.png", "slides/more/b.png", "slides/notes.txt", "other/c.png"):
        memory.pipe_file(f"/bucket/{name}", data)
    yield data
    memory.rm("/bucket", recursive=True)


def test_an_object_store(store):
    found = find_pictures(["memory://bucket/slides"])
    assert names_of(found) == ["a.png", "more/b.png"]
    assert found.root == "memory:///bucket/slides"
    with local_copy(found.pictures[1].address) as path:
        assert path.read_bytes() == store
    assert not path.exists()
    assert names_of(find_pictures(["memory://bucket/*/*.png"])) == ["other/c.png", "slides/a.png"]
    assert names_of(find_pictures(["memory://bucket/other/c.png"])) == ["c.png"]
    assert is_address("s3://bucket")
    assert not is_address("C:\\pictures")


def test_errors_name_the_address(store):
    with pytest.raises(FileNotFoundError, match="memory://bucket/gone: there are no pictures"):
        find_pictures(["memory://bucket/gone"])
    with (
        pytest.raises(FileNotFoundError, match=r"memory://bucket/x\.png: there is no such file"),
        local_copy("memory://bucket/x.png"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"image memory://bucket/other/c\.png: bad"),
        local_copy("memory://bucket/other/c.png") as path,
    ):
        raise ValueError(f"image {path}: bad")
    with pytest.raises(ValueError, match="either files and folders, or addresses"):
        find_pictures(["memory://bucket/slides", "."])
    with pytest.raises(ValueError, match="nonsense://x: Protocol not known: nonsense"):
        find_pictures(["nonsense://x"])


def test_a_missing_package_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"s3:// (needs the package s3fs|cannot be opened: .*s3fs)"):
        find_pictures(["s3://bucket/folder"])
    true_import = builtins.__import__

    def without(name, *arguments, **options):
        if name == "fsspec":
            raise ModuleNotFoundError("No module named 'fsspec'", name="fsspec")
        return true_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="s3:// needs the package fsspec; pip install fsspec"):
        find_pictures(["s3://bucket/folder"])


def test_evenly():
    assert list(evenly(range(10), 4)) == [0, 3, 6, 9]
    assert list(evenly(range(3), 4)) == [0, 1, 2]
    assert list(evenly([], 4)) == []

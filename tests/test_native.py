"""Building and loading kernel libraries, on a small package of its own."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

import native

needs_cxx = pytest.mark.skipif(not native.find_cxx(), reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(not native.find_nvcc(), reason="no nvcc")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package "toy" with one function, in a folder of its own; nothing built."""
    monkeypatch.setattr(native, "ROOT", tmp_path)
    monkeypatch.setattr(native, "_states", {})
    for name in ("MASKSCORING_KERNELS", "MASKSCORING_SANITIZE", "CUDA", "CUDA_ARCH"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "toy" / "src"
    folder.mkdir(parents=True)
    (folder / "toy.h").write_text("inline int twice(int x) { return 2 * x; }\n")
    (folder / "toy.cpp").write_text('#include "toy.h"\nextern "C" int toy(int x) { return twice(x); }\n')
    (folder / "toy.cu").write_text('#include "toy.h"\nextern "C" int toy_cuda(int x) { return twice(x) + 1; }\n')
    return "toy"


def age(path, seconds: float) -> None:
    moment = path.stat().st_mtime + seconds
    os.utime(path, (moment, moment))


############################################################
#  Build
############################################################


@needs_cxx
def test_build_and_load(package):
    assert native.build(package, "cpu").startswith("toy: cpu kernels built in ")
    library = native.load(package, "cpu")
    assert library.toy(21) == 42
    assert native.status() == "toy: cpu native"
    assert native.is_native(package, "cpu")
    assert native.build(package, "cpu") == "toy: cpu kernels are up to date"
    built = native.library_path(package, "cpu")
    assert set(built.parent.iterdir()) == {built, built.with_suffix(".txt")}  # and no temporary files
    assert sys.platform in built.name
    assert native.processor_id() in built.name


@needs_cxx
def test_all_sources_are_built(package):
    (native.ROOT / package / "src" / "more.cpp").write_text('extern "C" int more(int x) { return x + 5; }\n')
    native.build(package, "cpu")
    library = native.load(package, "cpu")
    assert (library.toy(21), library.more(1)) == (42, 6)
    age(native.ROOT / package / "src" / "more.cpp", 10)
    assert native.is_stale(package, "cpu")


@needs_nvcc
def test_build_cuda(package, monkeypatch):
    monkeypatch.setenv("CUDA_ARCH", "sm_90")
    assert native.build(package, "cuda").startswith("toy: cuda kernels built")
    assert ctypes.CDLL(str(native.library_path(package, "cuda"))).toy_cuda(1) == 3
    assert "-arch=sm_90" in native.compile_command(package, "cuda", native.ROOT / "x.so")
    monkeypatch.delenv("CUDA_ARCH")
    assert "-arch=all-major" in native.compile_command(package, "cuda", native.ROOT / "x.so")


@needs_cxx
def test_a_changed_source_is_rebuilt(package):
    native.build(package, "cpu")
    header = native.ROOT / "toy" / "src" / "toy.h"
    header.write_text("inline int twice(int x) { return 20 * x; }\n")
    age(header, 10)
    assert native.is_stale(package, "cpu")
    assert "built in" in native.build(package, "cpu")
    age(header, -20)  # the test's clock trick, undone
    assert native.load(package, "cpu").toy(2) == 40


@needs_cxx
def test_a_library_is_stale_when_the_shared_header_changes(package):
    native.build(package, "cpu")
    header = native.ROOT / "native.h"
    header.write_text("// What all packages share.\n")
    age(header, -10)
    assert not native.is_stale(package, "cpu")
    age(header, 10)
    assert native.is_stale(package, "cpu")


@needs_cxx
def test_build_error_shows_command_and_output(package):
    (native.ROOT / "toy" / "src" / "toy.cpp").write_text("this is no C++\n")
    with pytest.raises(native.BuildError) as caught:
        native.build(package, "cpu")
    message = str(caught.value)
    assert "toy: cpu kernels failed to compile" in message
    assert f"$ {native.find_cxx()[0]} -O3" in message
    assert "toy.cpp:1:1: error" in message
    assert not native.library_path(package, "cpu").exists()


@needs_cxx
def test_a_failed_rebuild_leaves_the_old_library(package):
    native.build(package, "cpu")
    source = native.ROOT / "toy" / "src" / "toy.cpp"
    source.write_text("this is no C++\n")
    age(source, 10)
    with pytest.raises(native.BuildError):
        native.build(package, "cpu")
    assert ctypes.CDLL(str(native.library_path(package, "cpu"))).toy(1) == 2


@needs_nvcc
def test_cuda_build_error_says_how_to_go_on(package):
    (native.ROOT / "toy" / "src" / "toy.cu").write_text("this is no CUDA\n")
    with pytest.raises(native.BuildError, match="make kernels CUDA=0"):
        native.build(package, "cuda")


def test_no_compiler_is_said_in_one_line(package, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("NVCC", raising=False)
    assert native.main([package]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "toy: cpu kernels not built: no C++ compiler found",
        "toy: cuda kernels not built: no nvcc found",
    ]


def test_cuda_0_hides_nvcc(monkeypatch):
    monkeypatch.setenv("CUDA", "0")
    assert native.find_nvcc() == []


def test_cxx_may_be_a_command_and_must_exist(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -m compiler")
    assert native.find_cxx() == [sys.executable, "-m", "compiler"]
    monkeypatch.setenv("CXX", "g+++")
    with pytest.raises(FileNotFoundError, match=r"CXX='g.*' names no program on the PATH"):
        native.find_cxx()


@needs_cxx
def test_flags_that_do_not_link_are_left_out():
    assert native._accepted(native.find_cxx(), ["-O3", "-fno-such-flag", "-lno_such_library"]) == ["-O3"]


@needs_cxx
def test_another_command_builds_anew(package, monkeypatch):
    """Flags that change are no newer source, and yet make another library."""
    native.build(package, "cpu")
    monkeypatch.setenv("CXX", f"{native.find_cxx()[0]} -DSOMETHING")
    assert "built in" in native.build(package, "cpu")
    assert "up to date" in native.build(package, "cpu")


@needs_cxx
def test_warnings_of_the_compiler_are_shown(package):
    (native.ROOT / "toy" / "src" / "toy.cpp").write_text('extern "C" int toy(int) { int unused; return 1; }\n')
    assert "unused" in native.build(package, "cpu")


@needs_cxx
def test_main_reports_every_failure(package, capsys):
    (native.ROOT / "toy" / "src" / "toy.cpp").write_text("this is no C++\n")
    assert native.main([package]) == 1
    assert "failed to compile" in capsys.readouterr().out


############################################################
#  Load
############################################################


def test_a_library_that_is_not_built(package, monkeypatch):
    assert native.load(package, "cpu") is None
    assert native.status() == "toy: cpu reference (is not built for this machine; run `make kernels`)"
    monkeypatch.setenv("MASKSCORING_KERNELS", "native")
    with pytest.raises(RuntimeError, match="toy: MASKSCORING_KERNELS=native, but the cpu library is not built"):
        native.load(package, "cpu")


@needs_cxx
def test_a_stale_library_is_said_loudly_and_not_loaded(package, monkeypatch):
    native.build(package, "cpu")
    age(native.ROOT / "toy" / "src" / "toy.cpp", 10)
    with pytest.warns(UserWarning, match="toy: the cpu library is older than its sources .* run `make kernels`"):
        assert native.load(package, "cpu") is None
    assert "older than its sources" in native.status()
    assert not native.is_native(package, "cpu")
    monkeypatch.setenv("MASKSCORING_KERNELS", "native")
    with pytest.warns(UserWarning, match="older"), pytest.raises(RuntimeError, match="older than its sources"):
        native.load(package, "cpu")


def test_a_broken_library(package):
    path = native.library_path(package, "cpu")
    path.parent.mkdir()
    path.write_bytes(b"not a library")
    age(path, 10)
    with pytest.warns(UserWarning, match="cannot be loaded .* delete it and run `make kernels`"):
        assert native.load(package, "cpu") is None


@needs_cxx
def test_reference_mode_ignores_libraries(package, monkeypatch):
    native.build(package, "cpu")
    monkeypatch.setenv("MASKSCORING_KERNELS", "reference")
    assert native.load(package, "cpu") is None
    assert native.status() == "toy: cpu reference (MASKSCORING_KERNELS=reference)"


def test_unknown_mode(monkeypatch):
    monkeypatch.setenv("MASKSCORING_KERNELS", "fast")
    with pytest.raises(ValueError, match="MASKSCORING_KERNELS='fast' must be auto"):
        native.mode()


@needs_cxx
def test_register(package):
    native.build(package, "cpu")
    registered = []
    native.register(package, cpu=registered.append, cuda=None)
    assert registered[0].toy(3) == 6
    assert native.status() == "toy: cpu native, cuda not in this torch"


def test_sanitized_libraries_have_a_name_of_their_own(package, monkeypatch):
    plain = native.library_path(package, "cpu")
    monkeypatch.setenv("MASKSCORING_SANITIZE", "1")
    assert native.library_path(package, "cpu") != plain
    if native.find_cxx():
        assert any("-fsanitize=address" in flag for flag in native.compile_command(package, "cpu", plain))


############################################################
#  The project's own packages
############################################################


@pytest.mark.parametrize("mode", ["auto", "native", "reference"])
def test_ops_follow_the_mode(mode):
    """In a process of its own, as a user starts it."""
    if mode == "native" and not all(native.library_path(name, "cpu").exists() for name in ("nms", "roialign")):
        pytest.skip("kernels are not built")
    code = """
        import native, torch, nms, roialign
        assert nms.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
        print(native.status())
    """
    environment = {**os.environ, "MASKSCORING_KERNELS": mode}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=native.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["nms", "roialign"]
    if mode != "auto":
        assert all(f"cpu {mode}" in line for line in lines)


@needs_cxx
@pytest.mark.parametrize("package_name", ["nms", "roialign"])
def test_build_module(package_name):
    """`python -m nms.build` builds, or finds everything up to date."""
    done = subprocess.run(
        [sys.executable, "-m", f"{package_name}.build"], cwd=native.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert f"{package_name}: cpu kernels" in done.stdout

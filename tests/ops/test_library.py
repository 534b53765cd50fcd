"""Which library of kernels is loaded, and the libraries in a wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from robust_lr.cli import main
from robust_lr.ops import build, doctor, library, wheel
from robust_lr.utils.errors import InputError, RunError


@pytest.fixture
def wheel_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the libraries of a wheel (empty files), and no compiler."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for variant in library.VARIANTS.values():
        (folder / f"robust_lr_{variant.name}.so").touch()
    monkeypatch.setattr(library, "PREBUILT", folder)
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setattr(library, "find_compiler", lambda: None)
    monkeypatch.delenv("ROBUST_LR_EXTENSION", raising=False)
    return folder


@pytest.mark.parametrize(
    ("capability", "name", "vectors"),
    [("AVX512", "avx512", "AVX-512"), ("AVX2", "avx2", "AVX2"), ("DEFAULT", "portable", "portable (16 bytes)")],
)
def test_processor_decides_which_library_of_a_wheel_is_used(
    capability: str, name: str, vectors: str, wheel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = library.find_or_build("cpu")
    assert found == library.Library(wheel_folder / f"robust_lr_{name}.so", vectors)
    assert library.vectors() == vectors
    assert (doctor.prospect("cpu").library, doctor.prospect("cpu").built) == (str(found.path), True)
    assert CliRunner().invoke(main, ["build", "--no-cuda"]).output.startswith(f"CPU kernels: {found.path}\n")


def test_wheel_has_no_library_for_another_kind_of_processor(
    wheel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert library.prebuilt("cpu") is None
    assert library.vectors() is None
    with pytest.raises(RunError, match=r"no C.. compiler was found"):
        library.find_or_build("cpu")


def test_cuda_library_of_a_wheel_is_used_where_it_runs(wheel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel_folder / "robust_lr_cuda.so").touch()
    (wheel_folder / "robust_lr_cuda.txt").write_text("8.0 9.0\n")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for gpu, runs in (((8, 0), True), ((8, 6), True), ((9, 0), True), ((12, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, gpu=gpu: gpu)
        assert (library.prebuilt("cuda") is not None) == runs, gpu
    monkeypatch.setattr(torch.version, "cuda", None)
    assert library.prebuilt("cuda") is None


def test_library_that_needs_more_than_the_stable_abi_is_refused(tmp_path: Path) -> None:
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("no compiler or no nm")

    def compiled(code: str) -> Path:
        (tmp_path / "code.cpp").write_text(code)
        command = [compiler, "-shared", "-fPIC", str(tmp_path / "code.cpp"), "-o", str(tmp_path / "code.so")]
        subprocess.run(command, check=True)
        return tmp_path / "code.so"

    wheel.check_symbols(compiled('extern "C" int aoti_torch_get_dim(); int f() { return aoti_torch_get_dim(); }'))
    for name in ("at", "c10", "torch"):
        with pytest.raises(RunError, match=f"is not in PyTorch's stable ABI: .*{name}"):
            wheel.check_symbols(compiled(f"namespace {name} {{ int sum(int); }} int f() {{ return {name}::sum(1); }}"))


def test_the_library_that_is_used_needs_only_the_stable_abi() -> None:
    """The compiler may call functions of the C++ library that PyTorch exports too, without a version."""
    if not library.load() or shutil.which("nm") is None:
        pytest.skip("no compiled kernels or no nm")
    wheel.check_symbols(library.find_or_build("cpu").path)


def test_compile_of_a_wheel_refuses_what_it_cannot_do(wheel_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="so the libraries of the wheel cannot be built"):
        wheel.compile_libraries(tmp_path / "out")
    with pytest.raises(InputError, match="capabilities must name"):
        wheel.compile_libraries(tmp_path / "out", "Voodoo")
    assert not (tmp_path / "out").exists()


def test_user_without_a_home_folder_has_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does if there is no home folder
    folder = build.cache_folder()
    assert folder == tmp_path / f"robust-lr-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert build.cache_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(RunError, match=r"not a folder that this user alone can write to; set XDG_CACHE_HOME"):
        build.cache_folder()


def test_home_that_cannot_be_written_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert build.cache_folder().parent == tmp_path


def test_key_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not depend on PyTorch's version and location, but on the variables that nvcc reads."""
    if build.missing("cpu") is not None:
        pytest.skip("no compiler")
    toolkit = build.nvcc.Toolkit("nvcc", "PATH", "13.0", (), ((9, 0),))
    monkeypatch.setattr(build.nvcc, "find", lambda: toolkit)
    monkeypatch.setattr(build.nvcc, "static_runtime", lambda toolkit: "libcudart_static.a")

    def keys() -> tuple[Path, Path]:
        return build.plan_for("cpu").library(), build.plan_for("cuda", [(9, 0)]).library()

    before = keys()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    monkeypatch.setattr(build, "_torch_folder", lambda: Path("/elsewhere/torch"))
    assert keys() == before
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-ccbin g++-12")
    assert keys()[0] == before[0]
    assert keys()[1] != before[1]

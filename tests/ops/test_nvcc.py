"""Finding the CUDA compiler, and choosing the GPUs that it compiles for."""

from pathlib import Path

import pytest
import torch

from robust_lr.ops import build, doctor, nvcc
from robust_lr.utils.errors import InputError, RunError


def toolkit(*capabilities: tuple[int, int]) -> nvcc.Toolkit:
    return nvcc.Toolkit("nvcc", "PATH", "13.0", (), capabilities)


def test_code_is_made_for_each_gpu() -> None:
    known = toolkit((7, 5), (8, 0), (8, 6), (9, 0))
    assert nvcc.architecture_flags(known, [(8, 0), (9, 0)]) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]
    # A GPU that is newer than the compiler gets PTX, which the driver translates.
    assert nvcc.architecture_flags(known, [(12, 0)]) == ["-gencode=arch=compute_90,code=[compute_90]"]
    with pytest.raises(RunError, match=r"need a GPU of compute capability 8.0 or newer, this is 7.5"):
        nvcc.architecture_flags(known, [(7, 5)])


def test_gpus_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX;8.0")
    assert nvcc.wanted_capabilities() == [(8, 0), (9, 0)]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper;10.0f 9.0a")
    assert nvcc.wanted_capabilities() == [(9, 0), (10, 0)]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hoper")
    with pytest.raises(InputError, match=r"TORCH_CUDA_ARCH_LIST must name .* like 8.0 or 9.0, or .*; got 'Hoper'"):
        nvcc.wanted_capabilities()


def present(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[int, int], driver: int = 13000) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i])
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)


@pytest.mark.parametrize(
    ("gpus", "names", "expected"),
    [
        ([(9, 0)], "7.5 8.0 8.6 9.0 10.0 12.0+PTX", [(9, 0)]),
        ([(8, 6), (9, 0)], "7.5 8.0 9.0", [(8, 0), (9, 0)]),
        ([(9, 0)], "7.0 7.5", [(9, 0)]),
        ([], "7.5 8.0 9.0", [(8, 0), (9, 0)]),
        ([(9, 0)], "", [(9, 0)]),
    ],
)
def test_presets_of_containers_are_narrowed_to_the_gpus_present(monkeypatch, caplog, gpus, names, expected) -> None:
    present(monkeypatch, *gpus)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", names)
    nvcc._log_once.cache_clear()
    with caplog.at_level("INFO", logger="robust_lr"):
        assert nvcc.wanted_capabilities() == expected
        assert nvcc.wanted_capabilities() == expected
    left_out = [record for record in caplog.records if "left out" in record.message]
    assert len(left_out) == (1 if names else 0)  # logged once
    assert not names or "7." in left_out[0].message


@pytest.mark.parametrize(
    ("version", "driver", "newer"), [("13.0", 12080, True), ("13.1", 13000, False), ("12.9", 13000, False)]
)
def test_a_toolkit_newer_than_the_driver_is_named(monkeypatch, version, driver, newer) -> None:
    toolkit = nvcc.Toolkit("/cuda/bin/nvcc", "PATH", version, (), ((9, 0),))
    assert nvcc.newer_than_driver(toolkit) is None  # no GPU, no driver to ask
    present(monkeypatch, (9, 0), driver=driver)
    reason = nvcc.newer_than_driver(toolkit)
    assert (reason is not None) == newer
    assert not newer or "CUDA 13.0, newer than the driver, which supports CUDA 12.8" in reason
    monkeypatch.setattr(nvcc, "find", lambda: toolkit)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert build.missing("cuda") == reason
    assert doctor.describe()["driver_supports"] == nvcc.name_of((driver // 1000, driver % 1000 // 10))


def fake_nvcc(folder: Path, script: str) -> None:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_toolkit_is_where_nvcc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolkit's libraries need not lie beside the nvcc that was found."""
    library = tmp_path / "elsewhere" / "lib"
    library.mkdir(parents=True)
    (library / "libcudart_static.a").touch()
    fake_nvcc(
        tmp_path,
        f"""case "$1" in
        --dryrun) echo '#$ LIBRARIES=  "-L{library}/../lib"' >&2 ;;
        --version) echo 'Cuda compilation tools, release 12.9, V12.9.1' ;;
        --list-gpu-arch) printf 'compute_90\ncompute_80\ncompute_121\n' ;;
        esac""",
    )
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = nvcc.find()
    assert found is not None
    assert (found.found_by, found.version) == ("CUDA_HOME", "12.9")
    assert found.capabilities == ((8, 0), (9, 0), (12, 1))
    assert nvcc.static_runtime(found) == str(library / "libcudart_static.a")


def test_broken_nvcc_is_an_error_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvcc(tmp_path, "echo 'nvcc fatal : out of luck' >&2; exit 1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RunError, match="out of luck"):
        nvcc.find()

"""Compile the libraries that a wheel brings, for `make wheel`.

python -m robust_lr.ops.wheel FOLDER [CAPABILITIES]
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from ..utils.errors import RunError
from . import build, nvcc
from .compiler import run
from .library import VARIANTS

#: symbols that a library may need: C functions of PyTorch's stable ABI, and those of system libraries, with a version
STABLE = re.compile(r"(aoti_torch_|torch_)\w+|.+@.+")


def compile_libraries(folder: Path, capabilities: str = "") -> list[Path]:
    """Compile a CPU library for each kind of processor, and one for CUDA where `capabilities` names GPUs.

    Raises:
        RunError: there is no compiler, it fails, or a library needs more of PyTorch than its stable ABI.
        InputError: `capabilities` is not a list like "8.0 9.0".
    """
    gpus = nvcc.capabilities(capabilities, "capabilities") if capabilities else []
    reason = build.missing("cuda" if gpus else "cpu", gpus)
    if reason is not None:
        raise RunError(f"{reason}, so the libraries of the wheel cannot be built")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for variant in VARIANTS.values():
        library = build.build_plan(build.plan_for("cpu", march=variant.march))
        made.append(Path(shutil.copy(library, folder / f"robust_lr_{variant.name}.so")))
    if gpus:
        library = build.build_plan(build.plan_for("cuda", gpus))
        made.append(Path(shutil.copy(library, folder / library.name)))
        (folder / "robust_lr_cuda.txt").write_text(" ".join(f"{major}.{minor}" for major, minor in gpus) + "\n")
    for path in made:
        check_symbols(path)
    return made


def check_symbols(library: Path) -> None:
    """Raise a `RunError` if a library needs more of PyTorch than the C functions of its stable ABI.

    C++ symbols differ between versions; PyTorch also exports some of the C++ library's, without a version.
    """
    answer = run(["nm", "--dynamic", "--undefined-only", str(library)])
    if answer.returncode != 0:
        raise RunError(f"nm cannot read {library}:\n{answer.stderr}".rstrip())
    symbols = [words[-1] for words in map(str.split, answer.stdout.splitlines()) if words[-2] == "U"]  # not weak ones
    if unstable := [symbol for symbol in symbols if not STABLE.fullmatch(symbol)]:
        raise RunError(f"{library} needs what is not in PyTorch's stable ABI: {', '.join(unstable)}")


if __name__ == "__main__":
    for path in compile_libraries(Path(sys.argv[1]), *sys.argv[2:]):
        print(path)

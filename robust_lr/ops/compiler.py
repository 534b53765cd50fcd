"""Find a C++ compiler and ninja.

`CXX` names the compiler, with flags if need be (GCC 10 or Clang 12, or newer); otherwise it is c++, g++ or clang++.
"""

import functools
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass

from ..utils.errors import RunError

PORTABLE = "portable (16 bytes)"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that works: its command, the flags for this machine, and its predefined macros."""

    command: tuple[str, ...]
    native: tuple[str, ...]
    macros: dict[str, str]

    @property
    def version(self) -> str:
        """The version that the compiler reports, e.g. "12.2.0"."""
        return self.macros.get("__VERSION__", "unknown").strip('"')

    @property
    def vectors(self) -> str:
        """The widest vectors that the kernels will use."""
        if "__AVX512F__" in self.macros:
            return "AVX-512"
        return "AVX2" if "__AVX2__" in self.macros else PORTABLE


def find_compiler() -> Compiler | None:
    """Find the compiler and check that it runs; return None where there is none.

    Raises:
        RunError: `CXX` names a compiler that is not there, or the compiler does not work.
    """
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise RunError(f"CXX names the compiler {command[0]!r}, which was not found")
        return _probe(tuple(command))
    found = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    return _probe((found,)) if found else None


def find_ninja() -> str | None:
    """Find the ninja of the ninja package, which need not be on the PATH, or else that of the system."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command and keep what it prints."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


@functools.cache
def _probe(command: tuple[str, ...]) -> Compiler:
    """Ask a compiler for its predefined macros, which also describe the processor that it compiles for."""
    for native in (("-march=native",), ()):
        answer = run([*command, *native, "-dM", "-E", "-x", "c++", os.devnull])
        if answer.returncode == 0:
            lines = (line.split(maxsplit=2) for line in answer.stdout.splitlines() if line.startswith("#define"))
            return Compiler(command, native, {name: "".join(value) for _, name, *value in lines})
    raise RunError(f"the C++ compiler {shlex.join(command)} does not work:\n{answer.stdout}{answer.stderr}".rstrip())

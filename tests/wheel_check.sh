#!/usr/bin/env bash
# Install a wheel in an empty environment outside the repository, where no compiler is on the PATH, and attack the
# network that ships with it: with the kernels that the wheel brings, for each kind of processor that this one can be.
# PyTorch and the other dependencies are borrowed from PYTHON's environment, whose robust-lr, if any, stays invisible.
# usage: wheel_check.sh PYTHON WHEEL
set -euo pipefail
python=$(realpath --no-symlinks "$1")
wheel=$(realpath "$2")
folder=$(mktemp -d)
trap "$(command -v rm) -rf '$folder'" EXIT
cd "$folder"
"$python" -m venv env
env/bin/pip install --quiet --no-deps --disable-pip-version-check "$wheel"
borrowed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$borrowed')" > "$(env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
export PATH="$folder/env/bin" XDG_CACHE_HOME="$folder/cache"
unset CXX ROBUST_LR_EXTENSION ATEN_CPU_CAPABILITY
check() { # the name of a library, and what PyTorch calls the processor
  ATEN_CPU_CAPABILITY=$2 env/bin/python - "$1" << 'CODE'
import pathlib, shutil, sys
import robust_lr
from robust_lr.ops import compiler, library
assert pathlib.Path(robust_lr.__file__).is_relative_to(pathlib.Path("env").resolve()), robust_lr.__file__
assert compiler.find_compiler() is None and shutil.which("cc") is None
assert library.load("cpu")
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "/robust_lr" in line and ".so" in line}
wanted = pathlib.Path(robust_lr.__file__).parent / "ops" / "lib" / f"robust_lr_{sys.argv[1]}.so"
assert loaded == {str(wanted)}, (loaded, wanted)
import torch
x, q = torch.rand(2, 16, 9, 9), torch.rand(2, 2, 9, 9)
torch.testing.assert_close(robust_lr.local_relation(x, q, q, None, kernel_size=3),
                           __import__("robust_lr.ops.reference", fromlist=["_"]).local_relation(x, q, q, None, kernel_size=3))
CODE
}
best=$(env/bin/python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())')
check portable default
case $best in AVX2 | AVX512) check avx2 avx2 ;; esac
case $best in AVX512) check avx512 avx512 ;; esac
env/bin/robust-lr doctor
ROBUST_LR_EXTENSION=require env/bin/robust-lr attack --targeted --limit 200
test -s runs/lrnet26-shipped/attacks/lrnet-targeted/result.json
test ! -e cache # nothing was compiled
echo "wheel: ok ($best)"

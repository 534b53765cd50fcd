#!/usr/bin/env bash
# Install a wheel in an empty environment outside the repository and attack the network that ships with it.
# PyTorch and the other dependencies are borrowed from PYTHON's environment, whose robust-lr, if any, stays invisible.
# usage: wheel_check.sh PYTHON WHEEL
set -euo pipefail
python=$(realpath --no-symlinks "$1")
wheel=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv env
env/bin/pip install --quiet --no-deps --disable-pip-version-check "$wheel"
borrowed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$borrowed" > "$(env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
env/bin/python -c "
import robust_lr, pathlib
assert pathlib.Path(robust_lr.__file__).is_relative_to(pathlib.Path('env').resolve()), robust_lr.__file__"
env/bin/robust-lr attack --targeted --limit 200
test -s runs/lrnet26-shipped/attacks/lrnet-targeted/result.json
echo "wheel: ok"

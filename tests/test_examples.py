"""The scripts in ``examples/`` run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDED = {"timm_model": "timm", "read_the_ledger": "pandas", "compare_two_models": "jinja2"}
SCRIPTS = sorted(file.stem for file in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name, tmp_path):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"{name}.py needs {NEEDED[name]}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_examples_are_listed():
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}.py`" in listed for name in SCRIPTS)
    assert listed.count("| `") == len(SCRIPTS)

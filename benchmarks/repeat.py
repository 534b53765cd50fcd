"""Repeat the committed results that take under an hour, and say which accuracies differ.

    python benchmarks/repeat.py [--out FOLDER] [NAME ...]

NAME is a file of benchmarks/results without .json; by default all that are listed here are repeated. Accuracies depend
on the number of threads and on the CPU's instructions, because sums round otherwise; on the machine that made the
committed files they repeat to the bit. Timings are not compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

#: by result, the arguments of the Python interpreter; {out} is the result's file and {runs} a folder for its runs
COMMANDS = {
    "table9-fashion-mnist-mini-cpu": "-m robust_lr table9 --seeds 10 --json {out} --out {runs}",
    "lrnet-training": "benchmarks/lrnet_training.py --study --runs {runs} --out {out}",
    "zoo": "benchmarks/zoo.py --twins --out {out}",
    "autoattack-fast": "benchmarks/autoattack.py --fast --network conv mlp smooth deep shipped-16 shipped --out {out}",
    "cycles-cpu": "benchmarks/cycles.py --out {out}",
}

#: keys whose numbers differ from run to run, or from machine to machine
VOLATILE = ("seconds", "overhead", "device", "versions", "sha256", "forwards", "backwards", "read_from_ledger")


def figures(record: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a record with its place, except under keys that contain a word of ``VOLATILE``."""
    if isinstance(record, dict):
        for key, value in record.items():
            if not any(word in key for word in VOLATILE):
                yield from figures(value, f"{place}.{key}" if place else key)
    elif isinstance(record, list):
        for index, value in enumerate(record):
            yield from figures(value, f"{place}[{index}]")
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield place, record


def differences(before: Any, after: Any) -> list[str]:
    """Describe each figure that changed, is new or is gone."""
    old, new = dict(figures(before)), dict(figures(after))
    return [
        f"{place}: {old.get(place, 'absent')} -> {new.get(place, 'absent')}"
        for place in dict.fromkeys([*old, *new])
        if old.get(place) != new.get(place)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in COMMANDS:
            parser.error(f"{name!r}: choose from {', '.join(COMMANDS)}")
    changed = False
    for name in arguments.names or COMMANDS:
        out = arguments.out / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        words = [word.format(out=out, runs=arguments.out / name) for word in COMMANDS[name].split()]
        subprocess.run([sys.executable, *words], check=True)
        committed = RESULTS / f"{name}.json"
        found = differences(json.loads(committed.read_text()), json.loads(out.read_text()))
        changed = changed or bool(found)
        print(f"{name}: {f'{len(found)} figures differ' if found else 'as committed'}")
        for line in found[:20]:
            print(f"  {line}")
    sys.exit(changed)


if __name__ == "__main__":
    main()

"""Effect of OMP_WAIT_POLICY on a small attack, on an idle and on a busy machine: PASSIVE against ACTIVE, in turns.

    python benchmarks/waiting_threads.py --out FILE

Each run is a process of its own, with a thread for each core: alone, beside one process for each core that keeps it
busy, and beside a second attack of the same kind. The JSON has every time, medians and ratios; seconds are this
machine's at this moment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLICIES = ("passive", "active")

ATTACK = """
import sys, time, torch
import robust_lr as rlr
model = rlr.load_model()
x, y, _ = rlr.data.load("fashion-mnist-mini", "test").batch(torch.arange(64))
attack = lambda steps: rlr.attacks.pgd_linf(model, x, y, eps=16 / 255, step_size=1 / 255, steps=steps)
attack(2)
began = time.perf_counter()
attack(30)
print((time.perf_counter() - began) / 30, flush=True)
"""

CORES = os.cpu_count() or 1
#: what runs beside: how many processes, and their code, which prints a line when it is under way
LOADS = {
    "alone": (0, ""),
    "beside a busy process a core": (CORES, "print(flush=True)\nwhile True: pass"),
    "beside another attack": (1, f"{ATTACK}\nwhile True: attack(5)"),
}


@contextmanager
def beside(load: str, environment: dict[str, str]) -> Iterator[None]:
    """The other processes of a load, from when they are under way."""
    count, code = LOADS[load]
    others = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def seconds(load: str, policy: str) -> float:
    """Wall time of one attack step on 64 images."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy.upper(), "OMP_NUM_THREADS": str(CORES)}
    with beside(load, environment):
        command = [sys.executable, "-c", ATTACK]
        return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    from robust_lr.utils.files import write_json
    from robust_lr.utils.provenance import device_name, versions

    times: dict[str, dict[str, list[float]]] = {load: {policy: [] for policy in POLICIES} for load in LOADS}
    for _ in range(arguments.repeats):
        for load, by in times.items():
            for policy, found in by.items():
                found.append(seconds(load, policy))
    medians = {load: {policy: statistics.median(t) for policy, t in by.items()} for load, by in times.items()}
    record = {
        "device": device_name(torch.device("cpu")),
        "cores": CORES,
        "versions": versions(),
        "seconds_per_step": times,
        "median": medians,
        "active_over_passive": {load: by["active"] / by["passive"] for load, by in medians.items()},
    }
    write_json(arguments.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""What OMP_WAIT_POLICY does to a small attack on a busy machine: PASSIVE against ACTIVE, in turns.

    python benchmarks/waiting_threads.py --out FILE

Each run is a process of its own, with a thread for each core, beside one process for each core that keeps it busy. The
JSON has medians and ratios; seconds are this machine's at this moment.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
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
attack(5)
print((time.perf_counter() - began) / 5)
"""


def busy() -> None:
    while True:
        pass


def seconds(policy: str) -> float:
    """Wall time of one attack step on 64 images."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy.upper()}
    answer = subprocess.run([sys.executable, "-c", ATTACK], env=environment, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    from robust_lr.provenance import device_name, versions
    from robust_lr.results import write_json

    cores = os.cpu_count() or 1
    times: dict[str, dict[str, list[float]]] = {}
    for load in ("quiet", "busy"):
        others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(cores)] if load == "busy" else []
        for process in others:
            process.start()
        times[load] = {policy: [] for policy in POLICIES}
        for _ in range(arguments.repeats):
            for policy in POLICIES:
                times[load][policy].append(seconds(policy))
        for process in others:
            process.terminate()
    medians = {load: {policy: statistics.median(t) for policy, t in by.items()} for load, by in times.items()}
    record = {
        "device": device_name(torch.device("cpu")),
        "cores": cores,
        "versions": versions(),
        "seconds_per_step": medians,
        "active_over_passive": {load: by["active"] / by["passive"] for load, by in medians.items()},
    }
    write_json(arguments.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

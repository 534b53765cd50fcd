"""Peak memory of one evaluation at 224 pixels, for one process and for two.

    python benchmarks/memory.py --out FILE [--network lrnet26] [--images N] [--rounds N]

Evaluations in one process and in two take turns; peaks are medians over the rounds. Memory is the proportional set size
of the evaluation and all its processes, sampled twenty times a second: what they share counts once. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

EVALUATION = """
import sys, torch
import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
network, images, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = rlr.build_model(network, num_classes=10)
data = rlr.data.from_arrays(torch.rand(images, 3, 224, 224), torch.arange(images) % 10, num_classes=10)
attack = rlr.protocols.PGD(eps=4 / 255, step_size=1 / 255, steps=1)
rlr.evaluate(model, data, attack, processes=processes, check="off", allow=tuple(GUARDS))
"""


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def megabytes(pid: int) -> float:
    """Proportional memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def peak(network: str, images: int, processes: int) -> float:
    """Megabytes of one evaluation at its peak."""
    command = [sys.executable, "-c", EVALUATION, network, str(images), str(processes)]
    most = 0.0
    with subprocess.Popen(command) as run:
        while run.poll() is None:
            try:
                most = max(most, sum(map(megabytes, family(run.pid))))
            except OSError:  # one ended while it was looked at
                continue
            time.sleep(0.05)
    if run.returncode:
        raise SystemExit(f"the evaluation in {processes} processes failed")
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default="lrnet26")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import torch

    from robust_lr.utils.files import write_json
    from robust_lr.utils.provenance import device_name, versions

    peaks: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for processes, each in peaks.items():
            each.append(peak(options.network, options.images, processes))
    found = {processes: statistics.median(each) for processes, each in peaks.items()}
    record = {
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "network": options.network,
        "images": options.images,
        "peak megabytes by processes": found,
        "all peaks": peaks,
        "two over one": found[2] / found[1],
    }
    print(record)
    write_json(options.out, record)


if __name__ == "__main__":
    main()

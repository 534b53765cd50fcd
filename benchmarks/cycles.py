"""Passes that the exact early end of fixed-step attacks saves, and what it costs where nothing repeats.

The shipped network is attacked with PGD (eps 16/255, step 1/255) with and without the early end, under both criteria.
The rows must be the same but for the passes. Overhead is measured with momentum 1, whose velocity never comes back, so
that nothing ends early: CPU time inside the functions that test the model (two passes, once) and follow the iterates,
over that of the rest of the evaluation, in one process and thread, for few steps and for many.

    python benchmarks/cycles.py --out FILE
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import robust_lr as rlr
from robust_lr.data.dataset import Dataset, spread
from robust_lr.evaluation import continuous_batching, session
from robust_lr.protocols.pgd import PGD
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

BALL: dict[str, Any] = {"eps": 16 / 255, "step_size": 1 / 255}
RECORD = (1, 2, 5, 10, 20, 50, 100, 200, 500)
#: fields of rows that may differ between the two runs, with values that replace theirs in the comparison
WORK = {"steps_skipped": 0, "forwards": 0, "backwards": 0, "seconds": 0.0}


def passes(model: torch.nn.Module, data: Dataset, protocol: PGD) -> dict[str, Any]:
    """Passes and CPU time with and without the early end; the rows are compared."""
    found, seconds = [], []
    for end in (True, False):
        began = time.process_time()
        found.append(rlr.evaluate(model, data, protocol, end_at_cycles=end, check="off"))
        seconds.append(time.process_time() - began)
    ended, full = found
    rows = [[dataclasses.replace(row, **WORK) for row in result.rows] for result in found]
    return {
        "images": ended.n,
        "attacked": ended.attacked,
        "robust": ended.robust.count,
        "rows_equal": rows[0] == rows[1],
        "curves_equal": ended.curve == full.curve,
        "ended_at_cycles": ended.ended_at_cycles,
        "backwards": [ended.backwards, full.backwards],
        "forwards": [ended.forwards, full.forwards],
        "fewer_passes": full.backwards / ended.backwards,
        "cpu_seconds": seconds,
    }


def overhead(model: torch.nn.Module, data: Dataset, protocol: PGD, runs: int) -> dict[str, Any]:
    """CPU time inside the detector over that of the rest of the evaluation, where no image repeats."""
    spent = 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            began = time.thread_time_ns()
            try:
                return function(*arguments)
            finally:
                spent += time.thread_time_ns() - began

        return call

    shares, ended = [], 0
    with (
        patch.object(continuous_batching, "skip_periods", timed(continuous_batching.skip_periods)),
        patch.object(continuous_batching, "begin_columns", timed(continuous_batching.begin_columns)),
        patch.object(session, "is_repeatable", timed(session.is_repeatable)),
    ):
        for _ in range(runs + 1):
            spent, began = 0, time.thread_time_ns()
            ended += rlr.evaluate(model, data, protocol, processes=1, check="off").ended_at_cycles
            shares.append(spent / (time.thread_time_ns() - began - spent))
    shares = shares[1:]  # the first run is a warm-up
    return {
        "images": len(data),
        "steps": protocol.steps,
        "ended_at_cycles": ended,
        "median": statistics.median(shares),
        "runs": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, data = rlr.load_model(), spread(rlr.data.load("fashion-mnist-mini", "test"), arguments.images)
    record = tuple(step for step in RECORD if step < arguments.steps)
    last = PGD(**BALL, steps=arguments.steps, record=(*record, arguments.steps))
    endless = [PGD(**BALL, steps=steps, momentum=1.0) for steps in (100, arguments.steps)]
    protocols = {
        "untargeted, last iterate": last,
        "targeted, last iterate": dataclasses.replace(last, targeted=True),
        "untargeted, worst seen": PGD(**BALL, steps=arguments.steps, criterion="worst"),
    }
    record_of: dict[str, Any] = {
        "command": "python benchmarks/cycles.py --out FILE",
        "device": device_name(torch.device("cpu")),
        "threads": arguments.threads,
        "versions": versions(),
        "steps": arguments.steps,
        "overhead": [overhead(model, spread(data, min(64, len(data))), each, arguments.runs) for each in endless],
    }
    for name, protocol in protocols.items():
        record_of[name] = passes(model, data, protocol)
        print(name, record_of[name], flush=True)
    print(record_of["overhead"])
    write_json(arguments.out, record_of)


if __name__ == "__main__":
    main()

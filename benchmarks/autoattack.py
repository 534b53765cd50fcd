"""AutoAttack of this package beside the official code: time and passes on the same network and images.

    AUTOATTACK=FOLDER python benchmarks/autoattack.py --out FILE [--images 256] [--rounds 3] [--network NAME ...]
    python benchmarks/autoattack.py --fast --out FILE [--images 256] [--network NAME ...]

FOLDER holds a checkout of fra31/auto-attack, of which nothing is part of this repository. Each run is a new process
with the defaults of its program and no environment variable set for it; the programs take turns. Seconds are those of
the evaluation alone, without imports and loading, on the wall and of the processors; the medians are compared. Passes
are images shown to the model, forward and backward. Ours is `evaluate` with guards, ledger and result, once without
probes and once with them. Networks are the shipped one and those of `parity.py`, which it trains.

With --fast, `autoattack-fast` is compared with `autoattack-standard` instead: verdicts and passes, which no load of the
machine changes. Networks that FILE has already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: network -> radius of the L-infinity ball
NETWORKS = {"shipped": 24 / 255, "conv": 0.2, "mlp": 0.2, "smooth": 0.2, "deep": 0.2}
PROGRAMS = ("official", "ours", "ours, probed")
#: variables that set how threads wait and how many there are
POLICY = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")


def load(network: str) -> Any:
    """The network in eval mode."""
    if network == "shipped":
        import robust_lr as rlr

        return rlr.load_model().eval()
    from parity import trained

    return trained(network, "linf")


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_official(model: Any, data: Any, eps: float) -> dict[str, Any]:
    """The official cascade, its passes counted."""
    sys.path.insert(0, os.environ["AUTOATTACK"])
    import torch
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    counts = {"forwards": 0, "backwards": 0}

    def counted(x: torch.Tensor) -> torch.Tensor:
        counts["forwards"] += len(x)
        logits: torch.Tensor = model(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: counts.update(backwards=counts["backwards"] + len(gradient)))
        return logits

    model.requires_grad_(False)
    x, y, _ = data.batch(torch.arange(len(data)))
    attack = AutoAttack(counted, norm="Linf", eps=eps, version="standard", device="cpu", verbose=False, seed=0)
    began, used = time.perf_counter(), processor_seconds()
    x_adv = attack.run_standard_evaluation(x, y)
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    with torch.no_grad():
        robust = (model(x_adv).argmax(1) == y).tolist()
    return {"seconds": seconds, "processor_seconds": used, **counts, "robust": robust}


def run_ours(model: Any, data: Any, eps: float, check: str) -> dict[str, Any]:
    """Our cascade."""
    import robust_lr as rlr

    protocol = rlr.protocols.get("autoattack-standard").at(eps)
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), processor_seconds()
        result = rlr.evaluate(model, data, protocol, out=folder, check=check)
        seconds, used = time.perf_counter() - began, processor_seconds() - used
    robust = {row.id: row.robust for row in result.rows}
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "robust": [robust[id_] for id_ in data.ids.tolist()],
    }


def run(program: str, network: str, images: int) -> None:
    """One run, in a process of its own; prints JSON."""
    import torch

    import robust_lr as rlr
    from robust_lr.data.dataset import spread

    model, eps = load(network), NETWORKS[network]
    data = spread(rlr.data.load("fashion-mnist-mini", "test"), images)
    with torch.no_grad():
        model(data.batch(torch.arange(2))[0])  # kernels are compiled, if at all, before the clock runs
    if program == "official":
        found = run_official(model, data, eps)
    else:
        found = run_ours(model, data, eps, "default" if "probed" in program else "off")
    print(json.dumps({**found, "threads": torch.get_num_threads()}))


def in_own_process(program: str, network: str, images: int) -> dict[str, Any]:
    """Run a program with a user's environment and parse what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in POLICY}
    command = [sys.executable, __file__, "--run", program, network, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(network: str, images: int, rounds: int, programs: list[str]) -> dict[str, Any]:
    """All programs on one network, each so many times, taking turns."""
    runs: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    for _ in range(rounds):
        for program in programs:
            runs[program].append(in_own_process(program, network, images))
            print(network, program, {k: v for k, v in runs[program][-1].items() if k != "robust"}, flush=True)
    first = {program: found[0] for program, found in runs.items()}
    record: dict[str, Any] = {
        "eps": NETWORKS[network],
        "images": images,
        "threads": {program: found["threads"] for program, found in first.items()},
        "robust": {program: sum(found["robust"]) for program, found in first.items()},
        "passes": {program: {key: found[key] for key in ("forwards", "backwards")} for program, found in first.items()},
    }
    for key in ("seconds", "processor_seconds"):
        medians = {program: statistics.median(each[key] for each in found) for program, found in runs.items()}
        record[key] = medians
        record[f"all_{key}"] = {program: [each[key] for each in found] for program, found in runs.items()}
        if "official" in medians:
            record[f"official_over, {key}"] = {name: medians["official"] / value for name, value in medians.items()}
    if "official" in first:
        record["same_verdicts_as_official"] = {
            program: sum(a == b for a, b in zip(found["robust"], first["official"]["robust"], strict=True))
            for program, found in first.items()
        }
    return record


def compare_fast(network: str, images: int) -> dict[str, Any]:
    """`autoattack-fast` and `autoattack-standard` on one network: accuracies, passes, and the verdicts that differ."""
    import robust_lr as rlr
    from robust_lr.data.dataset import spread

    data = spread(rlr.data.load("fashion-mnist-mini", "test"), images)
    model, eps = load(network), NETWORKS[network]
    found = {}
    for name in ("autoattack-fast", "autoattack-standard"):
        protocol = rlr.protocols.get(name).at(eps)
        found[name] = rlr.evaluate(model, data, protocol, check="off")
        print(network, name, found[name].robust.count, found[name].broken_by, flush=True)
    fast, standard = found.values()
    rows = {row.id: row for row in standard.rows}
    passes = {name: result.forwards + result.backwards for name, result in found.items()}
    return {
        "eps": eps,
        "images": len(data),
        "robust": {name: result.robust.count for name, result in found.items()},
        "points_above_standard": 100 * (fast.robust.value - standard.robust.value),
        "broken_by": {name: result.broken_by for name, result in found.items()},
        "passes": passes,
        "fewer_passes": passes["autoattack-standard"] / passes["autoattack-fast"],
        "robust_only_under_fast": {
            row.id: rows[row.id].broken_by for row in fast.rows if row.robust > rows[row.id].robust
        },
        "robust_only_under_standard": {row.id: row.broken_by for row in fast.rows if row.robust < rows[row.id].robust},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", nargs="+", default=["shipped"], choices=list(NETWORKS))
    parser.add_argument("--fast", action="store_true", help="autoattack-fast beside autoattack-standard")
    parser.add_argument("--program", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    options = parser.parse_args()
    if options.run:
        program, network, images = options.run
        run(program, network, int(images))
        return
    if options.out is None:
        parser.error("--out FILE is needed")
    if not options.fast and "official" in options.program and "AUTOATTACK" not in os.environ:
        parser.error("set AUTOATTACK to a folder with the official code (fra31/auto-attack)")
    import torch

    from robust_lr.utils.files import write_json
    from robust_lr.utils.provenance import device_name, versions

    record: dict[str, Any] = {
        "command": "AUTOATTACK=FOLDER python benchmarks/autoattack.py --out FILE"
        if not options.fast
        else "python benchmarks/autoattack.py --fast --out FILE",
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "versions": versions(),
        "networks": json.loads(options.out.read_text())["networks"] if options.out.exists() else {},
    }
    for network in options.network:
        if options.fast:
            if network not in record["networks"]:
                record["networks"][network] = compare_fast(network, options.images)
                write_json(options.out, record)
            continue
        record["networks"][network] = compare(network, options.images, options.rounds, options.program)
        write_json(options.out, record)


if __name__ == "__main__":
    main()

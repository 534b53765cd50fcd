"""AutoAttack of this package beside the official code: time and passes on the same network and images.

    AUTOATTACK=FOLDER python benchmarks/autoattack.py --out FILE [--images 256] [--parts 2] [--rounds 3] [--network ...]
    python benchmarks/autoattack.py --fast --network conv mlp smooth deep shipped-16 shipped --out FILE

FOLDER holds a checkout of fra31/auto-attack, of which nothing is part of this repository. Each run is a new process
with the defaults of its program and no environment variable set for it; the programs take turns. Seconds are those of
the evaluation alone, without imports and loading, on the wall and of the processors; the medians are compared. Passes
are images shown to the model, forward and backward. Ours is `evaluate` with guards, ledger and result, once without
probes and once with them. Networks are the shipped one and those of `parity.py`, which it trains.

With --parts, the images of every program are shared by so many runs one after the other, whose times add up; runs
that FILE has already are not made again, so that the benchmark goes on where it was interrupted.

With --fast, `autoattack-fast` is compared with `autoattack-standard` instead: verdicts and passes, which no load of the
machine changes. Networks that FILE has already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from own_process import run_script


class Attacked(NamedTuple):
    """The radius of the L-infinity ball around images of a network, and the number of images for --fast."""

    eps: float
    images: int


#: "shipped-16" is the shipped network at the radius that it was trained with, "shipped" the same at a larger radius
NETWORKS = {
    "shipped": Attacked(24 / 255, 256),
    "shipped-16": Attacked(16 / 255, 256),
    "conv": Attacked(0.2, 1000),
    "mlp": Attacked(0.2, 1000),
    "smooth": Attacked(0.2, 1000),
    "deep": Attacked(0.2, 1000),
}
PROGRAMS = ("official", "ours", "ours, probed")


def load(network: str) -> Any:
    """The network in eval mode."""
    if network.startswith("shipped"):
        import robust_lr as rlr

        return rlr.load_model().eval()
    from parity import trained

    return trained(network, "linf")


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_official(model: Any, data: Any, eps: float) -> dict[str, Any]:
    """Attack with the official cascade, and count its passes."""
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
    """Attack with our cascade."""
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


def run(program: str, network: str, images: int, part: int, parts: int) -> None:
    """Do one run, in a process of its own, and print the outcome as JSON."""
    import torch

    import robust_lr as rlr
    from robust_lr.data.dataset import spread

    model, eps = load(network), NETWORKS[network].eps
    data = spread(rlr.data.load("fashion-mnist-mini", "test"), images)
    data = data.subset(range(part, images, parts))
    with torch.no_grad():
        model(data.batch(torch.arange(2))[0])  # kernels are compiled before the clock starts
    if program == "official":
        found = run_official(model, data, eps)
    else:
        found = run_ours(model, data, eps, "default" if "probed" in program else "off")
    print(json.dumps({**found, "threads": torch.get_num_threads()}))


def measure(network: str, options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run all programs on one network for all rounds, in turns; runs that the file already has are not repeated."""
    kept: dict[str, Any] = {}
    if options.out.exists():
        kept = json.loads(options.out.read_text())["networks"].get(network, {}).get("runs", {})
    for number in range(options.rounds):
        for part in range(options.parts):
            for program in options.program:
                key = f"{program}, part {part + 1} of {options.parts}, round {number + 1}"
                if key not in kept:
                    kept[key] = run_script(__file__, program, network, options.images, part, options.parts)
                    print(network, key, {k: v for k, v in kept[key].items() if k != "robust"}, flush=True)
                    keep({"eps": NETWORKS[network].eps, "images": options.images, "runs": kept})
    return summary(network, options, kept)


def summary(network: str, options: argparse.Namespace, runs: dict[str, Any]) -> dict[str, Any]:
    """Sums over the parts, medians over the rounds, and the verdicts compared image by image."""

    def of(program: str, number: int) -> list[dict[str, Any]]:
        return [
            runs[f"{program}, part {part + 1} of {options.parts}, round {number + 1}"] for part in range(options.parts)
        ]

    first = {program: of(program, 0) for program in options.program}
    robust = {program: [value for found in parts for value in found["robust"]] for program, parts in first.items()}
    record: dict[str, Any] = {
        "eps": NETWORKS[network].eps,
        "images": options.images,
        "threads": {program: parts[0]["threads"] for program, parts in first.items()},
        "robust": {program: sum(values) for program, values in robust.items()},
        "passes": {
            program: {key: sum(found[key] for found in parts) for key in ("forwards", "backwards")}
            for program, parts in first.items()
        },
    }
    for key in ("seconds", "processor_seconds"):
        medians = {
            program: statistics.median(
                sum(found[key] for found in of(program, number)) for number in range(options.rounds)
            )
            for program in options.program
        }
        record[key] = medians
        if "official" in medians:
            record[f"official_over, {key}"] = {name: medians["official"] / value for name, value in medians.items()}
    if "official" in robust:
        record["same_verdicts_as_official"] = {
            program: sum(a == b for a, b in zip(values, robust["official"], strict=True))
            for program, values in robust.items()
        }
    return {**record, "runs": runs}


def compare_fast(network: str) -> dict[str, Any]:
    """`autoattack-fast` and `autoattack-standard` on one network: accuracies, passes, and the verdicts that differ."""
    import torch

    import robust_lr as rlr
    from robust_lr.data.dataset import spread
    from robust_lr.utils.provenance import device_name

    eps, images = NETWORKS[network]
    model, data = load(network), spread(rlr.data.load("fashion-mnist-mini", "test"), images)
    found = {}
    for name in ("autoattack-fast", "autoattack-standard"):
        protocol = rlr.protocols.get(name).at(eps)
        found[name] = rlr.evaluate(model, data, protocol, check="off")
        print(network, name, found[name].robust.count, found[name].broken_by, flush=True)
    fast, standard = found.values()
    rows = {row.id: row for row in standard.rows}
    passes = {name: result.forwards + result.backwards for name, result in found.items()}
    return {
        "device": device_name(torch.device("cpu")),
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


def describe_command(options: argparse.Namespace) -> str:
    """Return the command that reproduces the file."""
    if options.fast:
        return f"python benchmarks/autoattack.py --fast --network {' '.join(options.network)} --out FILE"
    return (
        f"AUTOATTACK=FOLDER python benchmarks/autoattack.py --images {options.images} --parts {options.parts}"
        f" --rounds {options.rounds} --program {' '.join(map(repr, options.program))} --out FILE"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--parts", type=int, default=1, help="runs that share the images of a program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", nargs="+", default=["shipped"], choices=list(NETWORKS))
    parser.add_argument("--fast", action="store_true", help="autoattack-fast beside autoattack-standard")
    parser.add_argument("--program", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    options = parser.parse_args()
    if options.run:
        program, network, *numbers = options.run
        run(program, network, *map(int, numbers))
        return
    if options.out is None:
        parser.error("--out FILE is needed")
    if not options.fast and "official" in options.program and "AUTOATTACK" not in os.environ:
        parser.error("set AUTOATTACK to a folder with the official code (fra31/auto-attack)")
    import torch

    from robust_lr.utils.files import write_json
    from robust_lr.utils.provenance import device_name, versions

    record: dict[str, Any] = {
        "command": describe_command(options),
        **({} if options.fast else {"device": device_name(torch.device("cpu"))}),  # with --fast, each network has one
        "cores": os.cpu_count(),
        "versions": versions(),
        "networks": json.loads(options.out.read_text())["networks"] if options.out.exists() else {},
    }
    for network in options.network:
        if options.fast:
            if network not in record["networks"]:
                record["networks"][network] = compare_fast(network)
                write_json(options.out, record)
            continue

        def keep(found: dict[str, Any], network: str = network) -> None:
            record["networks"][network] = found
            write_json(options.out, record)

        keep(measure(network, options, keep))


if __name__ == "__main__":
    main()

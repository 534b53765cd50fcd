"""LR-Net-26 against ResNet-26, adversarially trained with the recipe of the paper, over several seeds.

    python benchmarks/seeds.py --out FILE [--seeds 0 1 2] [--set train.epochs=8 ...]

On the embedded data, at a quarter of the paper's width, where both networks cost about the same. Every network is
attacked, targeted and untargeted, on all test images. What is finished in the folder of the runs is not done again.
The JSON has every result, and means and standard deviations over the seeds, of accuracies in percent.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robust_lr import build_model, config
from robust_lr.config.training import to_dict
from robust_lr.models.cost import profile
from robust_lr.paper.jobs import Event, Job, run_job
from robust_lr.results.result import Result
from robust_lr.training.run import prepare
from robust_lr.utils.devices import pick_device
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

NETWORKS = {"ResNet-26": "resnet26", "LR-Net-26": "lrnet26"}
ATTACKS = ("lrnet-targeted", "lrnet-untargeted")
BASE = "lrnet26_fashion_mnist_mini"


def one(job: Job) -> dict[str, Any]:
    """Train and attack one network; its record."""
    results: dict[str, Result] = {}

    def tell(event: Event) -> None:
        if event.kind == "result":
            name, result = event.detail
            results[name] = result
        elif event.kind == "train" and event.detail.test_accuracy is not None:
            step = event.detail
            print(f"{job.folder.name}: epoch {step.epoch:g}, clean {100 * step.test_accuracy:.1f} %", flush=True)

    run_job(0, job, tell)
    return {
        "label": job.label,
        "seed": job.config.seed,
        "accuracy": accuracies(results),
        "results": {name: result.to_dict() for name, result in results.items()},
    }


def accuracies(results: dict[str, Result]) -> dict[str, float]:
    """In percent: clean, and on the true label under each attack."""
    clean = next(iter(results.values())).clean
    return {"clean": percent(clean.value), **{name: percent(result.robust.value) for name, result in results.items()}}


def percent(value: float | None) -> float:
    return round(100 * (value or 0), 4)


def over_seeds(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) of each accuracy."""
    columns = {name: [record["accuracy"][name] for record in records] for name in records[0]["accuracy"]}
    return {
        name: {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
        for name, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    table: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for label, name in NETWORKS.items():
        records = []
        for seed in arguments.seeds:
            settings = config.load(BASE, ["recipe=lrnet", f"model.name={name}", f"seed={seed}", *arguments.set])
            folder = arguments.runs / f"{name}-{seed}"
            records.append(one(Job(label, "adversarial", settings, ATTACKS, limit=0, folder=folder)))
        ready = prepare(settings)
        costs[label] = asdict(profile(build_model(**ready.spec), torch.zeros(1, *ready.train.image_shape)))
        table[label] = {"runs": records, "over_seeds": over_seeds(records)}
    columns = ["clean", *ATTACKS]
    print(f"\n| network | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for label, row in table.items():
        cells = (f"{v['mean']:.1f} ± {v['std']:.1f}" for v in row["over_seeds"].values())
        print(f"| {label} | {' | '.join(cells)} |")
    record = {
        "what": "accuracy in percent on the true label, adversarially trained, mean and standard deviation over seeds",
        "config": to_dict(settings),
        "seeds": arguments.seeds,
        "costs": costs,
        "networks": table,
        "device": device_name(pick_device(settings.train.device)),
        "versions": versions(),
    }
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()

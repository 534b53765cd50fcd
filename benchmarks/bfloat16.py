"""Attacks in bf16 against attacks in fp32: robust accuracy of networks, and how many verdicts differ.

    python benchmarks/bfloat16.py --out FILE [--images N] RUN ...

Each RUN is a trained network, e.g. FOLDER/resnet-26-adversarial/seed-0 after `robust-lr table9 --out FOLDER`; the
network that ships is attacked too. Every verdict is that of the network itself in fp32, in either precision. The ratio
of the times is in what `benchmarks/networks.py` writes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

import robust_lr as rlr
from robust_lr.data.dataset import Dataset
from robust_lr.ops import doctor
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

PROTOCOLS = ("lrnet-untargeted", "lrnet-targeted")
CRITERIA = ("last", "worst")


def compare(model: nn.Module, data: Dataset, name: str, criterion: str) -> dict[str, float]:
    """Robust accuracies in both precisions, in points, and numbers of images.

    Those that are attacked again in fp32 are near the border, see ``evaluation.border``.
    """
    protocol = replace(rlr.protocols.get_pgd(name), criterion=criterion)
    fp32, bf16 = (rlr.evaluate(model, data, protocol, precision=each, check="off") for each in ("fp32", "bf16"))
    return {
        "attacked again": sum(row.forwards > protocol.steps + 2 for row in bf16.rows),
        "fp32": 100 * fp32.robust.value,
        "bf16": 100 * bf16.robust.value,
        "difference": 100 * (bf16.robust.value - fp32.robust.value),
        "verdicts that differ": sum(a.robust != b.robust for a, b in zip(fp32.rows, bf16.rows, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    data = rlr.data.load("fashion-mnist-mini", split="test").take(options.images)
    networks = {
        "shipped": rlr.load_model(),
        **{f"{run.parent.name}/{run.name}": rlr.load_model(run) for run in options.runs},
    }
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in networks.items():
        table[name] = {}
        for protocol, criterion in product(PROTOCOLS, CRITERIA):
            row = table[name][f"{protocol}, {criterion}"] = compare(model, data, protocol, criterion)
            print(name, protocol, criterion, row, flush=True)
    record = {
        "device": device_name(torch.device("cpu")),
        "kernels": {k: v for k, v in doctor.describe().items() if k in ("compiler_version", "vectors", "uses")},
        "versions": versions(),
        "images": len(data),
        "networks": table,
        "largest difference": max(abs(row["difference"]) for rows in table.values() for row in rows.values()),
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()

"""Compares attacks whose steps are replayed as CUDA graphs with the same attacks without: every row, to the bit.

    python benchmarks/cuda_graphs.py --out benchmarks/results/cuda_graphs.json

Each network is attacked twice, in passes of a fixed size, once with ROBUST_LR_CUDA_GRAPHS=1. Images are noise and
labels what the network says, so that most images survive a weak attack for a while. Exits with 1 where a row differs.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
from robust_lr.evaluation.step_graph import VARIABLE
from robust_lr.protocols import APGD
from robust_lr.protocols.base import Protocol
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import Row
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

NETWORKS = {"LR-Net-26": "lrnet26", "ResNet-26": "resnet26"}


def attacks(steps: int) -> dict[str, Protocol]:
    eps = 1 / 255
    return {
        "PGD, last iterate": PGD(eps=eps, step_size=eps / 4, steps=steps, criterion="last"),
        "PGD, worst seen": PGD(eps=eps, step_size=eps / 4, steps=steps, criterion="worst"),
        "APGD": APGD(eps=eps, steps=steps),
    }


def attack(
    network: nn.Module, data: tuple[torch.Tensor, torch.Tensor], protocol: Protocol, graphs: bool, batch: int
) -> tuple[list[Row], float]:
    """The rows by id, without their times, and the seconds that the attack took."""
    rows: list[Row] = []
    os.environ[VARIABLE] = str(int(graphs))
    began = time.perf_counter()
    rlr.evaluate(
        network, data, protocol, batch_size=batch, compute_batch=batch, processes=0, check="off", allow=tuple(GUARDS),
        on_rows=rows.extend,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return sorted((dataclasses.replace(row, seconds=0) for row in rows), key=lambda row: row.id), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False  # an algorithm that is chosen by time may round in another way
    found: dict[str, dict[str, object]] = {}
    for title, name in NETWORKS.items():
        torch.manual_seed(0)
        network = rlr.build_model(name, num_classes=10, width=arguments.width, stem="small").eval().to(device)
        images = torch.rand(arguments.images, 3, arguments.size, arguments.size)
        with torch.no_grad():
            labels = torch.cat([network(x.to(device)).argmax(1).cpu() for x in images.split(arguments.batch)])
        for attacked, protocol in attacks(arguments.steps).items():
            plain, seconds = attack(network, (images, labels), protocol, False, arguments.batch)
            graphed, graphed_seconds = attack(network, (images, labels), protocol, True, arguments.batch)
            differ = [row.id for row, other in zip(plain, graphed, strict=True) if row != other]
            found[f"{title}, {attacked}"] = {
                "rows": len(plain),
                "rows that differ": differ,
                "seconds": round(seconds, 3),
                "seconds with graphs": round(graphed_seconds, 3),
            }
            print(
                f"{title}, {attacked}: {seconds:.2f} s, with graphs {graphed_seconds:.2f} s, {len(differ)} rows differ"
            )
    write_json(arguments.out, {
        "device": device_name(device), "versions": versions(), "settings": {**vars(arguments), "out": None},
        "attacks": found,
    })  # fmt: skip
    return int(any(each["rows that differ"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())

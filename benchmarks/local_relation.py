"""The local relation kernel against the plain PyTorch path and against the 3x3 convolution that it replaces.

    python benchmarks/local_relation.py --out FILE [--threads N] [--width W] [--size S] [--batch N]

Layers of LR-Net-26, res2 to res5, and the convolutions of ResNet-26 in the same places. The candidates take turns, so
that a machine whose speed drifts treats them alike; the JSON has medians of seconds and their ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_lr import local_relation, reference
from robust_lr.provenance import device_name, versions
from robust_lr.results import write_json

#: LR-Net's and ResNet's channels, and the size relative to res2
STAGES = {"res2": (100, 64, 1), "res3": (200, 128, 2), "res4": (400, 256, 4), "res5": (800, 512, 8)}


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def candidates(lr: int, conv: int, size: int, batch: int) -> dict[str, Callable[[], object]]:
    """What takes turns in one stage: forward alone, and forward with the gradients of every input."""
    groups = ceil(lr / 8)
    x, dy = (torch.randn(batch, lr, size, size).to(memory_format=torch.channels_last) for _ in range(2))
    q, k = (torch.randn(batch, groups, size, size).to(memory_format=torch.channels_last) for _ in range(2))
    inputs = [t.requires_grad_() for t in (x, q, k, torch.randn(groups, 7, 7))]
    layer = nn.Conv2d(conv, conv, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    image = torch.randn(batch, conv, size, size).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(image)

    def forward(function: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad():
                return function(*inputs)

        return run

    def both(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*inputs), inputs, dy)

    def convolve() -> Tensor:
        with torch.no_grad():
            return layer(image)  # type: ignore[no-any-return]

    return {
        "kernel forward": forward(local_relation),
        "kernel forward+backward": both(local_relation),
        "plain forward": forward(reference.local_relation),
        "plain forward+backward": both(reference.local_relation),
        "convolution forward": convolve,
        "convolution forward+backward": lambda: torch.autograd.grad(layer(image), [image, layer.weight], gradient),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=56, help="of res2's feature map")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    medians: dict[str, dict[str, float]] = {}
    for stage, (lr, conv, shrink) in STAGES.items():
        size = ceil(arguments.size / shrink)
        runs = candidates(round(lr * arguments.width), round(conv * arguments.width), size, arguments.batch)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.repeats + 1):
            for name, run in runs.items():
                times[name].append(seconds(run))
        medians[stage] = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first warms up
    total = {name: sum(by[name] for by in medians.values()) for name in next(iter(medians.values()))}
    ratios = {
        f"{what} / {how}": total[f"{what} {how}"] / total[f"kernel {how}"]
        for what in ("plain", "convolution")
        for how in ("forward", "forward+backward")
    }
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    record = {
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "settings": settings,
        "seconds": medians,
        "times_the_kernel": ratios,
    }
    write_json(arguments.out, record)
    print(json.dumps({"settings": settings, "times_the_kernel": ratios}, indent=2))


if __name__ == "__main__":
    main()

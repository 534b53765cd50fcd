"""The local relation kernel against the plain PyTorch path and against the 3x3 convolution that it replaces, on a CPU.

    python benchmarks/local_relation.py --out FILE [--threads N] [--width W] [--size S] [--batch N]

The eight layers of LR-Net-26, res2 to res5, and the convolutions of ResNet-26 in the same places: forward, and forward
with backward for an attack (gradients of the activations) and for training (the parameters, too). The candidates take
turns, so that a machine whose speed drifts treats them alike. The JSON has medians of seconds, and ratios of their sums
over the layers with each candidate in its better memory format.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_lr import local_relation
from robust_lr.ops import doctor, reference
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

#: layer -> LR-Net's channels, ResNet's channels, the size relative to res2, the stride, how often
LAYERS = {
    "res2": (100, 64, 1, 1, 2),
    "res3.0": (200, 128, 1, 2, 1),
    "res3.1": (200, 128, 2, 1, 1),
    "res4.0": (400, 256, 2, 2, 1),
    "res4.1": (400, 256, 4, 1, 1),
    "res5.0": (800, 512, 4, 2, 1),
    "res5.1": (800, 512, 8, 1, 1),
}
FORMATS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
PASSES = ("forward", "attack", "training")

Run = Callable[[], object]


def passes(function: Callable[..., Tensor], activations: list[Tensor], parameters: list[Tensor]) -> dict[str, Run]:
    """A function's forward pass, and that with gradients for an attack and for training."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    y = forward()
    dy = torch.randn_like(y)

    def gradients(wanted: list[Tensor]) -> object:
        for tensor in (*activations, *parameters):
            tensor.requires_grad_(any(tensor is other for other in wanted))
        return torch.autograd.grad(function(), wanted, dy)

    return {
        "forward": forward,
        "attack": lambda: gradients(activations),
        "training": lambda: gradients([*activations, *parameters]),
    }


def candidates(layer: str, width: float, size: int, batch: int) -> Iterator[tuple[str, Run]]:
    """Candidates that take turns in one layer, by "candidate pass format"."""
    lr, conv, shrink, stride, _ = LAYERS[layer]
    lr, conv, size = round(lr * width), round(conv * width), ceil(size / shrink)
    groups, out = ceil(lr / 8), ceil(size / stride)
    for name, layout in FORMATS.items():
        x, q, k = (
            torch.randn(batch, channels, side, side).to(memory_format=layout)
            for channels, side in ((lr, size), (groups, out), (groups, size))
        )
        geo = torch.randn(groups, 7, 7)
        image = torch.randn(batch, conv, size, size).to(memory_format=layout)
        convolution = nn.Conv2d(conv, conv, 3, stride, padding=1, bias=False).to(memory_format=layout)
        functions: dict[str, tuple[Callable[[], Tensor], list[Tensor], list[Tensor]]] = {
            "kernel": (partial(local_relation, x, q, k, geo, stride=stride), [x, q, k], [geo]),
            "plain": (partial(reference.local_relation, x, q, k, geo, stride=stride), [x, q, k], [geo]),
            "convolution": (partial(convolution, image), [image], [convolution.weight]),
        }
        for candidate, (function, activations, parameters) in functions.items():
            for which, run in passes(function, activations, parameters).items():
                # The plain path takes seconds, in either format, and as long for an attack as for training.
                if candidate != "plain" or (name == "nchw" and which != "attack"):
                    yield f"{candidate} {which} {name}", run


def measure(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """The median seconds of each run, which take turns after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


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

    medians = {
        layer: measure(dict(candidates(layer, arguments.width, arguments.size, arguments.batch)), arguments.repeats)
        for layer in LAYERS
    }
    totals = {
        name: sum(LAYERS[layer][-1] * by[name] for layer, by in medians.items()) for name in medians[next(iter(LAYERS))]
    }

    def best(candidate: str, which: str) -> float:
        return min(time for name, time in totals.items() if name.startswith(f"{candidate} {which}"))

    ratios = {f"kernel / convolution, {p}": best("kernel", p) / best("convolution", p) for p in PASSES}
    ratios |= {f"plain / kernel, {p}": best("plain", p) / best("kernel", p) for p in ("forward", "training")}
    record = {
        "device": device_name(torch.device("cpu")),
        "kernels": {k: v for k, v in doctor.describe().items() if k in ("compiler_version", "vectors", "uses")},
        "versions": versions(),
        "settings": {name: value for name, value in vars(arguments).items() if name != "out"},
        "ratios": ratios,
        "seconds": totals,
        "seconds_by_layer": medians,
    }
    write_json(arguments.out, record)
    print(json.dumps({name: record[name] for name in ("device", "settings", "ratios", "seconds")}, indent=2))


if __name__ == "__main__":
    main()

"""Our CUDA kernels against the paper's authors' own operator, on the same inputs.

    python benchmarks/authors_op.py --source PATH --out FILE

PATH is the folder `ops/local_relation` of the branch LR-Net of github.com/microsoft/Swin-Transformer, in which
`python setup.py build_ext --inplace` has run; none of it is in this repository. Its operator takes float32 in NCHW and
channels that the groups divide, so the layers of LR-Net-26 have 104 channels for 100 here. It gives positions outside
the image a logit of -100 where ours leaves them out, which is the same to 1e-40. Results and gradients are compared
before anything is timed. The JSON has milliseconds and ratios of their sums.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cuda_layers import LAYERS, Layer, forward_and_backward
from torch import Tensor

from robust_lr.ops import local_relation as ops
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

#: of the authors' arguments: similarity 5 is the squared difference, normalization 0 the softmax
SQUARED_DIFFERENCE, SOFTMAX, OUTSIDE = 5, 0, -100.0

Operator = Callable[[], Tensor]


def authors_operator(source: Path) -> Callable[..., Tensor]:
    """The function that the folder's `local_relation_func.py` defines."""
    sys.path.insert(0, str(source.resolve().parent))
    found: Callable[..., Tensor] = importlib.import_module(
        f"{source.resolve().name}.local_relation_func"
    ).local_relation
    return found


def pair(layer: Layer, batch: int, authors: Callable[..., Tensor]) -> tuple[Operator, Operator, list[Tensor]]:
    """Ours, theirs, and the tensors that both take."""
    channels = -(-layer.channels // 8) * 8
    groups, out = channels // 8, layer.size // layer.stride
    shapes = (
        (batch, channels, layer.size, layer.size),
        (batch, groups, out, out),
        (batch, groups, layer.size, layer.size),
    )
    x, q, k = (torch.randn(shape, device="cuda").requires_grad_() for shape in shapes)
    geo = torch.randn(groups, 7, 7, device="cuda").requires_grad_()

    def theirs() -> Tensor:
        return authors(q, k, x, geo, 7, groups, layer.stride, 1, 1.0, OUTSIDE, SOFTMAX, SQUARED_DIFFERENCE)

    return lambda: ops.local_relation(x, q, k, geo, stride=layer.stride), theirs, [x, q, k, geo]


def largest_difference(ours: Operator, theirs: Operator, leaves: list[Tensor]) -> float:
    """Errors of the results and the gradients, relative in the 2-norm."""
    y = ours()
    dy = torch.randn_like(y)
    found, wanted = (
        [result, *torch.autograd.grad(result, leaves, dy)] for result in (operator() for operator in (ours, theirs))
    )
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    authors = authors_operator(arguments.source)
    rows = []
    for layer in LAYERS:
        ours, theirs, leaves = pair(layer, arguments.batch, authors)
        difference = largest_difference(ours, theirs, leaves)
        if difference > 1e-3:
            sys.exit(f"{layer.name}: the operators differ by {difference:.1e}, so their times say nothing")
        row: dict[str, object] = {"layer": layer.name, "difference": difference}
        for name, operator in (("ours", ours), ("theirs", theirs)):
            row[f"{name}_forward_ms"], row[f"{name}_backward_ms"] = forward_and_backward(operator, leaves)
        rows.append(row)

    def total(key: str) -> float:
        return sum(float(str(row[key])) for row in rows)

    record = {
        "device": device_name(torch.device("cuda")),
        "versions": versions(),
        "batch": arguments.batch,
        "theirs / ours": {p: total(f"theirs_{p}_ms") / total(f"ours_{p}_ms") for p in ("forward", "backward")},
        "layers": rows,
    }
    write_json(arguments.out, record)
    print(json.dumps(record["theirs / ours"], indent=1))


if __name__ == "__main__":
    main()

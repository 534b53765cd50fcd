"""Runs every CUDA kernel once, on small images, for compute-sanitizer to watch.

compute-sanitizer --tool racecheck python benchmarks/exercise.py
"""

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from robust_lr.ops import local_relation as ops
from robust_lr.ops.reference import Composability, Normalization, accumulation_dtype
from robust_lr.ops.stem_relation import stem_relation

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def cases() -> Iterator[tuple[torch.dtype, int, int, str, str]]:
    """dtype, window size, stride, weights and normalization of each kernel."""
    weights = tuple(itertools.product(get_args(Composability), get_args(Normalization)))
    for dtype, stride in itertools.product(DTYPES, (1, 2)):
        for composability, normalization in weights:
            yield dtype, 7, stride, composability, normalization
        for size in (3, 5, 9, 11):
            yield dtype, size, stride, "squared_difference", "softmax"
    for dtype, (composability, normalization) in itertools.product(DTYPES, weights):
        yield dtype, 7, 3, composability, normalization


def main() -> None:
    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    layouts = (("mask", torch.channels_last), ("zero", torch.contiguous_format))
    for (dtype, size, stride, composability, normalization), (border, layout) in itertools.product(cases(), layouts):
        options: dict[str, Any] = {
            "stride": stride,
            "composability": composability,
            "normalization": normalization,
            "border": border,
        }
        height, width, groups = 13, 17, 3
        geo = normal(groups, size, size, dtype=accumulation_dtype(dtype)).requires_grad_()
        x, q, k = (
            normal(2, channels, -(-height // step), -(-width // step), dtype=dtype)
            .contiguous(memory_format=layout)
            .requires_grad_()
            for channels, step in ((20, 1), (groups, stride), (groups, 1))
        )
        torch.autograd.grad(ops.local_relation(x, q, k, geo, **options).sum(), [x, q, k, geo])
        stem = [normal(*shape, dtype=dtype) for shape in ((2, 3, height, width), (20, 4), (groups, 20), (groups, 20))]
        leaves = [*(t.requires_grad_() for t in stem), geo]
        torch.autograd.grad(stem_relation(*leaves, **options).sum(), leaves)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()

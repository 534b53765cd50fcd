"""Run attacks in lower precision, provided that nearly all of their verdicts agree with fp32; see ``border``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..models.folding import in_bfloat16
from ..protocols.base import Protocol
from ..utils.checks import check_name
from ..utils.contexts import tf32
from ..utils.errors import InputError, RunError
from .batch_state import Rows, join
from .border import border_width
from .model_under_test import Bench

PRECISIONS = ("fp32", "tf32", "bf16")

#: share of a sample's verdicts that must agree with fp32
MIN_AGREEMENT = 0.95


def check_precision(precision: str, device: torch.device) -> None:
    check_name("precision", precision, PRECISIONS)
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision = 'tf32' needs a CUDA device, the model is on {device.type!r}: use fp32 or bf16")


def lower_precision(bench: Bench, precision: str, device: torch.device) -> Bench:
    """Return ``bench`` with the passes of the attack in the given precision."""
    bench = replace(bench, sizes=())  # the sizes were measured in fp32
    if precision == "tf32":
        return replace(bench, precision=tf32)
    kernels = in_bfloat16(bench.attacked) if device.type == "cpu" else None
    return replace(bench, attacked=kernels or InBfloat16(bench.attacked, device).eval())


def count_agreement(
    bench: Bench, precision: str, low: Bench, protocol: Protocol, attack: Callable[[Bench], Iterator[Rows]]
) -> tuple[int, int, float]:
    """Count on how many images of a sample a lower precision gives the verdicts of fp32.

    Args:
        bench, low: the model in fp32 and in the lower precision.
        protocol: the protocol of the attack.
        attack: attacks the sample and yields its rows.

    Returns:
        The number of images with equal verdicts, the number of images, and ``border_width``.

    Raises:
        RunError: the verdicts differ on more than 5 % of the sample.
    """
    exact, lower = (join(list(attack(each))) for each in (bench, low))
    before, after = verdicts_by_id(exact), verdicts_by_id(lower)
    same, n = sum(before[id_] == after[id_] for id_ in before), len(before)
    if same < MIN_AGREEMENT * n:
        raise RunError(
            f"precision = {precision!r} gives other verdicts than fp32 on {n - same} of {n} images: use fp32"
        )
    return same, n, border_width(exact, lower, protocol)


def verdicts_by_id(rows: Rows) -> dict[int, tuple[bool, bool]]:
    """Return the verdicts of each image by id: right at all last iterates, and right at every iterate."""
    columns = (rows["id"].tolist(), rows["robust_last"].tolist(), (rows["first_wrong"] < 0).tolist())
    return {id_: (robust_last, robust_seen) for id_, robust_last, robust_seen in zip(*columns, strict=True)}


class InBfloat16(nn.Module):
    """Run a model under autocast; its logits, and gradients with respect to the image, are fp32."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__()
        self.model, self.device_type = model, device.type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()

"""The binarization test (Zimmermann et al. 2022): does the attack find adversarial examples that must exist?

For each image, a linear classifier on the model's logits separates points well inside the ball, the image among them,
from one point at the surface of the ball. That point is, by construction, an adversarial example for the new two-class
model, so an attack that can follow the model's gradients must find one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.losses import lead
from ..attacks.pgd import pgd_l2, pgd_linf
from ..data.dataset import Dataset
from ..protocols.base import Protocol
from ..results.validity import Check
from ..utils.contexts import device_of, fp32, frozen
from ..utils.errors import InputError
from ..utils.rng import PROBE, normal, uniform
from .model_under_test import in_float32

#: number of points inside the ball, their maximum distance, and the distance of the adversarial point, in units of eps
INSIDE, REACH, EDGE = 64, 0.5, 1.0

#: share of the tests that a sound attack solves (the paper asks for 95 %)
MIN_SOLVED = 0.95


@dataclass(frozen=True)
class Binarized:
    """Outcome of the binarization test: numbers of tests, of tests the attack solved, and of tests noise solved."""

    tests: int
    solved: int
    by_noise: int

    def check(self) -> Check:
        if self.tests == 0:
            return Check("binarization test", None, "no test could be built: points in the ball cannot be separated")
        words = f"the attack solves {self.solved} of {self.tests} tests, random noise {self.by_noise}"
        passed = self.solved >= MIN_SOLVED * self.tests
        return Check("binarization test", passed, words, "" if passed else "the attack misses examples that exist")


class Separated(nn.Module):
    """A two-class model whose logits are a linear function of the model's logits, and its negative."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor):
        super().__init__()
        self.model, self.weight, self.bias = model, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        score = self.model(x) @ self.weight + self.bias
        return torch.stack([-score, score], dim=1)


def binarize(
    model: nn.Module,
    data: Dataset,
    protocol: Protocol,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Binarized:
    """Build a test for each image of ``data`` and attack it with the protocol's eps, norm, step size and steps.

    Raises:
        InputError: an empty ball, or a norm other than L-infinity and L2.
    """
    if protocol.eps == 0 or protocol.norm not in ("linf", "l2"):
        raise InputError(f"protocol {protocol.name!r}: the binarization test needs an L-infinity or L2 ball")
    device = device_of(model)
    tests = solved = by_noise = 0
    with frozen(model), fp32(device):
        for number in range(len(data)):
            x, _, id_ = (column.to(device) for column in data.batch(torch.tensor([number])))
            judge = in_float32(model, x)[0]
            found = one_test(judge, x, id_, protocol, seed)
            if found is not None:
                tests, solved, by_noise = tests + 1, solved + found[0], by_noise + found[1]
            if progress is not None:
                progress(number + 1, len(data))
    return Binarized(tests, solved, by_noise)


def one_test(model: nn.Module, x: Tensor, id_: Tensor, protocol: Protocol, seed: int) -> tuple[bool, bool] | None:
    """Return whether the attack and random noise solve the test of one image; None if no test can be built."""
    inner = draw_points(x, id_, REACH * protocol.eps, protocol.norm, INSIDE, seed, surface=False)
    edge = draw_points(x, id_, EDGE * protocol.eps, protocol.norm, 1, seed + 1, surface=True)
    with torch.no_grad():
        inside, outside = model(torch.cat([x, inner])), model(edge)
    # the threshold lies between the farthest inner point and the outer one, along the direction between their means
    weight = outside[0] - inside.mean(0)
    scores, goal = inside @ weight, float(outside[0] @ weight)
    if not goal > float(scores.max()):
        return None
    bias = -(0.1 * float(scores.max()) + 0.9 * goal) * torch.ones((), device=x.device)
    separated = Separated(model, weight, bias)
    labels = torch.zeros(1, dtype=torch.int64, device=x.device)
    steps = max(getattr(protocol, "steps", 20), 20)
    size: dict[str, Any] = {"eps": protocol.eps, "step_size": getattr(protocol, "step_size", protocol.eps / 8)}
    attack = pgd_linf if protocol.norm == "linf" else pgd_l2
    reached: list[bool] = []
    final = attack(
        separated,
        x,
        labels,
        steps=steps,
        loss=lambda logits, labels, targets: -lead(logits, labels),
        observe=lambda step, query, logits: reached.append(bool(logits.argmax(1))),
        **size,
    )
    with torch.no_grad():
        noise = draw_points(x, id_, protocol.eps, protocol.norm, INSIDE, seed + 2, surface=True)
        return any([*reached, bool(separated(final).argmax(1))]), bool(separated(noise).argmax(1).any())


def draw_points(x: Tensor, id_: Tensor, eps: float, norm: str, n: int, seed: int, *, surface: bool) -> Tensor:
    """Draw ``n`` random points in the ball around one image, or at its surface, clipped to [0, 1]."""
    ids = id_ * n + torch.arange(n, device=x.device)
    if norm == "linf":
        noise = 2 * uniform(seed, PROBE, ids, x.shape[1:]) - 1
        return (x + eps * (noise.sign() if surface else noise)).clamp(0, 1)
    noise = normal(seed, PROBE, ids, x.shape[1:])
    noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    length = eps if surface else eps * uniform(seed, PROBE, ids, (1, 1, 1), draw=1)
    moved: Tensor = (x + length * noise).clamp(0, 1)
    return moved

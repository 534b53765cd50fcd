"""Checks of a model's structure: state, hidden branches, and gradients that are not those of the function.

Each looks at a few images, clean ones and ones at random in the ball, and needs a handful of passes. Thresholds lie
well outside what honest networks of many kinds show (``benchmarks/zoo.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.losses import lead
from ..results.validity import Check
from ..utils.processes import parallel
from ..utils.rng import PROBE, uniform

#: a small step, in pixels of [0, 1]
STEP = 1e-3

#: a change that nobody sees; it leaves the grid of 8 bits on which clean images lie
INVISIBLE = 2e-5

#: a change that float32 still shows, and that hardly any pixel needs to cross a step of rounding
TINY = 2e-6

#: share of the largest logit by which two answers to the same question may differ
SAME = 1e-3

#: share of the largest logit by which an invisible change may move the logits
CONTINUOUS = 1e-2

#: actual rise of the margin over the one that the gradient predicts, for one small step
MIN_RISE, MAX_RISE = 0.25, 4.0

#: correlation of predicted and actual changes along random directions
MIN_CORRELATION = 0.3

#: share of the effect of moving all pixels that those without a gradient may have
MAX_WITHOUT_GRADIENT = 0.6


@dataclass(frozen=True, eq=False)
class Specimen:
    """Inputs of the structural checks.

    Attributes:
        fresh: makes copies of the model that have not seen any image; the model itself where it cannot be copied.
        used: the model as the evaluation left it.
        x, labels, ids: clean images [n, C, H, W].
        away: the same at random in the ball.
        eps: of the ball, per pixel.
        resolution: relative rounding of the dtype of the logits.
        seed: of random directions.
        forks: whether another process may be asked.
    """

    fresh: Callable[[], nn.Module]
    used: nn.Module
    x: Tensor
    labels: Tensor
    ids: Tensor
    away: Tensor
    eps: float
    resolution: float
    seed: int
    forks: bool = False

    def signs(self, draw: int) -> Tensor:
        return (uniform(self.seed, PROBE, self.ids, self.x.shape[1:], draw) < 0.5).to(self.x.dtype) * 2 - 1


Finding = tuple[bool | None, str]


def structure(specimen: Specimen) -> tuple[Check, ...]:
    """Every check of ``STRUCTURE``, in its order."""
    checks = []
    for name, (look, advice) in STRUCTURE.items():
        try:
            passed, found = look(specimen)
        except Exception as error:  # anybody's code; what cannot be looked at neither passes nor fails
            passed, found = None, f"could not be looked at: {type(error).__name__}"
        checks.append(Check(name, passed, found, advice if passed is False else ""))
    return tuple(checks)


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two answers as a share of the largest logit; no number is as far as can be."""
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf") if not torch.equal(one.isfinite(), other.isfinite()) else 0.0
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def margin_and_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margin of the best other logit over the label's, [n], and its gradient by the images."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        margin = -lead(model(x), labels)
        gradient = torch.autograd.grad(margin.sum(), x, allow_unused=True)[0] if margin.requires_grad else None
    found = torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0, 0, 0)
    return margin.detach(), found.detach()


def stateless(s: Specimen) -> Finding:
    """A copy that has seen nothing else agrees with one that has seen the images, their iterates and gradients."""
    worn = s.fresh()
    answers(worn, s.x)
    query = s.x
    for _ in range(12):
        _, gradient = margin_and_gradient(worn, query, s.labels)
        query = (s.x + (query + s.eps / 6 * gradient.sign() - s.x).clamp(-s.eps, s.eps)).clamp(0, 1)
        answers(worn, query)
    tolerance = max(SAME, 4 * s.resolution)
    for model in (worn, s.used):
        for x, words in ((query, "iterates of an attack"), (s.away, "perturbed images")):
            new = s.fresh()
            if (distance := apart(answers(new, x), answers(model, x))) > tolerance:
                return False, f"logits of {words} differ by {distance:.2g} of the largest from those of a fresh copy"
            (_, one), (_, other) = (margin_and_gradient(m, x, s.labels) for m in (s.fresh(), model))
            if (distance := apart(one, other)) > max(0.1, 16 * s.resolution):
                return False, f"gradients at {words} differ by {distance:.2g} of the largest from those of a fresh copy"
    return True, "fresh copies agree with the model that has seen images and iterates"


def same_in_another_process(s: Specimen) -> Finding:
    """Another process, which has not seen an image and what an attack makes of it, gives the same answers.

    Its memory is that of this one before: state that a copy of the model shares, such as a global variable, shows. The
    images are mixtures of two, which nothing has asked about before.
    """
    if not s.forks:
        return None, "no other process may be asked here"
    mixed = (s.x + s.x.flip(0)) / 2
    near = (mixed + s.eps * s.signs(6)).clamp(0, 1)

    def ask(times: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in times:
            answer = answers(s.used, near)
            yield answer, margin_and_gradient(s.used, near, s.labels)[1]

    there = next(parallel(ask, range(2), 2))
    answers(s.used, mixed)
    query = mixed
    for _ in range(12):
        _, gradient = margin_and_gradient(s.used, query, s.labels)
        query = (mixed + (query + s.eps / 6 * gradient.sign() - mixed).clamp(-s.eps, s.eps)).clamp(0, 1)
    here = next(ask(iter(range(1))))
    logits, gradients = (apart(one, other) for one, other in zip(there, here, strict=True))
    words = f"in another process logits differ by {logits:.2g} of the largest, gradients by {gradients:.2g}"
    return logits <= max(SAME, 4 * s.resolution) and gradients <= max(0.1, 16 * s.resolution), words


def same_with_gradients(s: Specimen) -> Finding:
    """Logits do not depend on whether gradients are recorded."""
    worst = 0.0
    for x in (s.x, s.away):
        with torch.enable_grad():
            recorded = s.fresh()(x.detach().requires_grad_()).detach()
        worst = max(worst, apart(answers(s.fresh(), x), recorded))
    return worst <= max(SAME, 4 * s.resolution), f"with gradients, logits differ by {worst:.2g} of the largest"


def same_in_another_batch(s: Specimen) -> Finding:
    """Logits of perturbed images do not depend on place and neighbors in the batch."""
    model, n = s.fresh(), (len(s.away) + 1) // 2
    worst = apart(answers(model, s.away)[:n], answers(model, s.away[:n].flip(0)).flip(0))
    return worst <= max(SAME, 4 * s.resolution), f"in another batch, logits differ by {worst:.2g} of the largest"


def continuous(s: Specimen) -> Finding:
    """A change that nobody sees moves no logits, at clean images and off them."""
    model, shares = s.fresh(), []
    for number, x in enumerate((s.x, s.away)):
        before, after = (answers(model, y) for y in (x, (x + INVISIBLE * s.signs(number)).clamp(0, 1)))
        moved = (after - before).abs().amax(1) / before.abs().amax().clamp_min(1e-30)
        shares.append(float((~(moved <= max(CONTINUOUS, 8 * s.resolution))).float().mean()))
    words = f"a change of {INVISIBLE:g} moves the logits of {100 * max(shares):.0f} % of the images"
    return max(shares) < 0.25, words


def gradient_predicts(s: Specimen) -> Finding:
    """One small step along the gradient's sign raises the margin by what the gradient says."""
    ratios = []
    for x in (s.x, s.away):
        model = s.fresh()
        before, gradient = margin_and_gradient(model, x, s.labels)
        there = (x + STEP * gradient.sign()).clamp(0, 1)
        predicted = ((there - x) * gradient).flatten(1).sum(1)
        actual = -lead(answers(model, there), s.labels) - before
        visible = predicted > 16 * s.resolution * answers(model, x).abs().amax(1)
        if int(visible.sum()) * 4 >= len(x):
            ratios.append(float((actual[visible] / predicted[visible]).nan_to_num(0).median()))
    if not ratios:
        return None, "the gradient predicts no change that the logits' dtype can show"
    words = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return all(MIN_RISE <= ratio <= MAX_RISE for ratio in ratios), f"the margin rises by {words} of what it predicts"


def gradient_correlates(s: Specimen) -> Finding:
    """Along random directions the margin changes as the gradient predicts."""
    model, predicted, actual = s.fresh(), [], []
    for number, x in enumerate((s.x, s.away)):
        before, gradient = margin_and_gradient(model, x, s.labels)
        there = (x + STEP * s.signs(2 + number)).clamp(0, 1)
        predicted.append(((there - x) * gradient).flatten(1).sum(1))
        actual.append(-lead(answers(model, there), s.labels) - before)
    one, other = torch.cat(predicted), torch.cat(actual).nan_to_num(0)
    floor = 8 * s.resolution * float(answers(model, s.x).abs().max())
    if float(other.abs().median()) <= floor:
        return None, "small steps in random directions change nothing that the logits' dtype can show"
    product = float(one.norm() * other.norm())
    found = float((one * other).sum()) / product if product > 0 else 0.0
    return found >= MIN_CORRELATION, f"predicted and actual changes along random directions correlate by {found:.2f}"


def gradient_everywhere(s: Specimen) -> Finding:
    """Pixels without a gradient matter less than those with one."""
    model = s.fresh()
    _, gradient = margin_and_gradient(model, s.x, s.labels)
    without = gradient == 0
    if float(without.float().mean()) < 0.05:
        return True, "pixels without a gradient are fewer than 5 %"
    moves = s.eps * s.signs(4)
    before = answers(model, s.x)
    some, all_ = (
        float((answers(model, (s.x + moves * where).clamp(0, 1)) - before).abs().mean()) for where in (without, 1)
    )
    share = some / max(all_, 1e-30)
    return share <= MAX_WITHOUT_GRADIENT, f"pixels without a gradient have {share:.2f} of the effect of all pixels"


def responds(s: Specimen) -> Finding:
    """Small changes of the image change the logits: they are not constant by pieces."""
    model = s.fresh()
    moved = (s.away + TINY * s.signs(5)).clamp(0, 1)
    still = float((answers(model, moved) == answers(model, s.away)).all(1).float().mean())
    if s.resolution > 1e-4:
        return None, "logits of low precision stand still for small changes"
    return still < 0.5, f"a change of {TINY:g} leaves the logits of {100 * still:.0f} % of the images as they are"


def finite_off_the_images(s: Specimen) -> Finding:
    """Perturbed images get logits that are numbers."""
    broken = float((~answers(s.fresh(), s.away).isfinite().all(1)).float().mean())
    return broken == 0, f"{100 * broken:.0f} % of the perturbed images get logits that are no numbers"


def optimizes_nothing(s: Specimen) -> Finding:
    """The forward pass takes no gradients of its own (AutoAttack's flag for optimization at inference)."""
    taken = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal taken
            taken += 1
            return function(*arguments, **options)

        return counted

    model, own = s.fresh(), (torch.autograd.grad, torch.autograd.backward)
    torch.autograd.grad, torch.autograd.backward = counting(own[0]), counting(own[1])
    try:
        answers(model, s.x)
    finally:
        torch.autograd.grad, torch.autograd.backward = own
    return taken == 0, f"the forward pass takes gradients {taken} times"


STRUCTURE: dict[str, tuple[Callable[[Specimen], Finding], str]] = {
    "the model keeps no state": (stateless, "ask a fresh copy for each query; state belongs in the attack's loop"),
    "same logits in another process": (
        same_in_another_process,
        "remove state that copies of the model share, such as global variables, and branches on the process",
    ),
    "same logits with gradients": (same_with_gradients, "remove branches on requires_grad or grad mode"),
    "same logits in another batch": (same_in_another_batch, "evaluate with fixed statistics, image by image"),
    "logits are continuous": (continuous, "attack the average over the noise (EOT), or remove the gate"),
    "the gradient predicts the margin": (
        gradient_predicts,
        "attack through BPDA: the identity for what hides the gradient",
    ),
    "the gradient holds in all directions": (gradient_correlates, "attack through BPDA, or by finite differences"),
    "the gradient reaches all pixels": (gradient_everywhere, "remove detach() and no_grad() from the forward pass"),
    "logits respond to small changes": (responds, "attack before the rounding (BPDA), or by a black-box attack"),
    "no optimization at inference": (
        optimizes_nothing,
        "attack through it: unroll it, or take the identity for it (BPDA)",
    ),
    "logits are finite off the images": (
        finite_off_the_images,
        "count refused images as errors, and attack the network inside",
    ),
}


def copies_of(pristine: nn.Module | None, model: nn.Module) -> Callable[[], nn.Module]:
    """Makes fresh copies, or gives the model itself where there is nothing to copy."""
    return (lambda: model) if pristine is None else (lambda: copy.deepcopy(pristine))

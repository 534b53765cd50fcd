"""Structural checks of a model: state, hidden branches, and gradients that do not belong to the function.

Each check looks at a few images, clean and at random points in the ball, and needs a handful of passes. Thresholds lie
well outside the values of many kinds of honest networks (``benchmarks/zoo.py``).
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

#: a small step, in units of pixels in [0, 1]
STEP = 1e-3

#: one level of 8 bits
LEVEL = 1 / 255

#: an invisible change, which moves clean images off their 8-bit grid
INVISIBLE = 2e-5

#: a change that float32 can represent, but that moves hardly any pixel across a rounding step
TINY = 2e-6

#: share of the largest logit by which the logits of two passes over the same images may differ
SAME = 1e-3

#: share of the largest logit by which an invisible change may move the logits
CONTINUOUS = 1e-2

#: bounds on the ratio of the actual rise of the margin to the predicted one, for one small step
MIN_RISE, MAX_RISE = 0.25, 4.0

#: minimum correlation of predicted and actual changes along random directions
MIN_CORRELATION = 0.3

#: maximum effect of pixels without a gradient, as a share of the effect of all pixels
MAX_WITHOUT_GRADIENT = 0.6


#: first draw of the random points inside the ball, and number of points at which a pixel may show its gradient
INNER, INNER_POINTS = 7, 6


@dataclass(frozen=True, eq=False)
class Specimen:
    """Inputs of the structural checks.

    Attributes:
        fresh: makes copies of the model that have not seen any image; the model itself if it cannot be copied.
        used: the model as the evaluation left it.
        x, labels, ids: clean images [n, C, H, W], classes and ids.
        away: random points in the balls around ``x``.
        eps: radius of the ball, per pixel.
        resolution: relative rounding error of the dtype of the logits.
        seed: seed of random directions.
        forks: whether another process may be started.
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

    def inner(self, draw: int) -> Tensor:
        """Random points in the ball whose pixels lie strictly between its ends and those of the range.

        Equal pixels, such as black ones, are where a maximum or a clamp has no derivative of its own.
        """
        low, high = (self.x - self.eps).clamp(min=0), (self.x + self.eps).clamp(max=1)
        share = uniform(self.seed, PROBE, self.ids, self.x.shape[1:], INNER + draw)
        return low + (0.02 + 0.96 * share) * (high - low)

    @property
    def max_difference(self) -> float:
        """Largest relative difference of logits that counts as rounding."""
        return max(SAME, 4 * self.resolution)

    @property
    def max_gradient_difference(self) -> float:
        """Largest relative difference of gradients that counts as rounding."""
        return max(0.1, 16 * self.resolution)


Finding = tuple[bool | None, str]


def run_structural_checks(specimen: Specimen) -> tuple[Check, ...]:
    """Run every check of ``STRUCTURE``, in order."""
    checks = []
    for name, (look, advice) in STRUCTURE.items():
        try:
            passed, found = look(specimen)
        except Exception as error:  # users' code may raise anything; a check that cannot run neither passes nor fails
            passed, found = None, f"could not be checked: {type(error).__name__}"
        checks.append(Check(name, passed, found, advice if passed is False else ""))
    return tuple(checks)


def query_logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest logit; infinite if NaN or infinity occur in only one."""
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf") if not torch.equal(one.isfinite(), other.isfinite()) else 0.0
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def margin_and_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin of the best other logit over the label's, [n], and its gradient with respect to the images."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        margin = -lead(model(x), labels)
        gradient = torch.autograd.grad(margin.sum(), x, allow_unused=True)[0] if margin.requires_grad else None
    found = torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0, 0, 0)
    return margin.detach(), found.detach()


def yield_iterates(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Iterator[Tensor]:
    """Yield the iterates of a short attack on ``model`` from the images ``x``."""
    query = x
    for _ in range(12):
        _, gradient = margin_and_gradient(model, query, labels)
        query = (x + (query + eps / 6 * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        yield query


def check_state(s: Specimen) -> Finding:
    """Check that a fresh copy agrees with one that has seen the images, iterates of an attack and gradients."""
    worn = s.fresh()
    query_logits(worn, s.x)
    query = s.x
    for query in yield_iterates(worn, s.x, s.labels, s.eps):
        query_logits(worn, query)
    for model in (worn, s.used):
        for x, words in ((query, "iterates of an attack"), (s.away, "perturbed images")):
            new = s.fresh()
            if (distance := relative_difference(query_logits(new, x), query_logits(model, x))) > s.max_difference:
                return False, f"logits of {words} differ by {distance:.2g} of the largest from those of a fresh copy"
            (_, one), (_, other) = (margin_and_gradient(m, x, s.labels) for m in (s.fresh(), model))
            if (distance := relative_difference(one, other)) > s.max_gradient_difference:
                return False, f"gradients at {words} differ by {distance:.2g} of the largest from those of a fresh copy"
    return True, "fresh copies agree with the model that has seen images and iterates"


def check_another_process(s: Specimen) -> Finding:
    """Check that another process, which has not seen an attack on these images, gives the same answers.

    The process has this one's memory from before the attack, so state that copies of the model share, such as a global
    variable, is revealed. The images are mixtures of two, which the model has never seen before.
    """
    if not s.forks:
        return None, "no other process may be started here"
    mixed = (s.x + s.x.flip(0)) / 2
    near = (mixed + s.eps * s.signs(6)).clamp(0, 1)

    def ask(times: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in times:
            answer = query_logits(s.used, near)
            yield answer, margin_and_gradient(s.used, near, s.labels)[1]

    there = next(parallel(ask, range(2), 2))
    query_logits(s.used, mixed)
    for _ in yield_iterates(s.used, mixed, s.labels, s.eps):
        pass
    here = next(ask(iter(range(1))))
    logits, gradients = (relative_difference(one, other) for one, other in zip(there, here, strict=True))
    words = f"in another process logits differ by {logits:.2g} of the largest, gradients by {gradients:.2g}"
    return logits <= s.max_difference and gradients <= s.max_gradient_difference, words


def check_grad_mode(s: Specimen) -> Finding:
    """Check that logits do not depend on whether gradients are recorded."""
    worst = 0.0
    for x in (s.x, s.away):
        with torch.enable_grad():
            recorded = s.fresh()(x.detach().requires_grad_()).detach()
        worst = max(worst, relative_difference(query_logits(s.fresh(), x), recorded))
    return worst <= s.max_difference, f"with gradients, logits differ by {worst:.2g} of the largest"


def check_another_batch(s: Specimen) -> Finding:
    """Check that logits of perturbed images do not depend on their place and neighbors in the batch."""
    model, n = s.fresh(), (len(s.away) + 1) // 2
    worst = relative_difference(query_logits(model, s.away)[:n], query_logits(model, s.away[:n].flip(0)).flip(0))
    return worst <= s.max_difference, f"in another batch, logits differ by {worst:.2g} of the largest"


def check_continuity(s: Specimen) -> Finding:
    """Check that an invisible change moves no logits, at clean images and off them."""
    model, shares = s.fresh(), []
    for number, x in enumerate((s.x, s.away)):
        before, after = (query_logits(model, y) for y in (x, (x + INVISIBLE * s.signs(number)).clamp(0, 1)))
        moved = (after - before).abs().amax(1) / before.abs().amax().clamp_min(1e-30)
        shares.append(float((~(moved <= max(CONTINUOUS, 8 * s.resolution))).float().mean()))
    words = f"a change of {INVISIBLE:g} moves the logits of {100 * max(shares):.0f} % of the images"
    return max(shares) < 0.25, words


def check_gradient_prediction(s: Specimen) -> Finding:
    """Check that one small step along the gradient's sign raises the margin as much as the gradient predicts.

    A step of one level of 8 bits may show it where a smaller one does not: rounding to such levels hides nothing from a
    straight-through gradient.
    """
    ratios = []
    for x in (s.x, s.away):
        model = s.fresh()
        before, gradient = margin_and_gradient(model, x, s.labels)
        smallest = 16 * s.resolution * query_logits(model, x).abs().amax(1)
        found = []
        for step in (STEP, LEVEL):
            there = (x + step * gradient.sign()).clamp(0, 1)
            predicted = ((there - x) * gradient).flatten(1).sum(1)
            actual = -lead(query_logits(model, there), s.labels) - before
            visible = predicted > smallest
            if int(visible.sum()) * 4 >= len(x):
                found.append(float((actual[visible] / predicted[visible]).nan_to_num(0).median()))
        ratios += [next((ratio for ratio in found if MIN_RISE <= ratio <= MAX_RISE), found[0])] if found else []
    if not ratios:
        return None, "the gradient predicts no change that the logits' dtype can represent"
    words = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return all(MIN_RISE <= ratio <= MAX_RISE for ratio in ratios), f"the margin rises by {words} of what it predicts"


def check_gradient_correlation(s: Specimen) -> Finding:
    """Check that the margin changes along random directions as the gradient predicts, at the images or in the ball."""
    model, found = s.fresh(), None
    floor = 8 * s.resolution * float(query_logits(model, s.x).abs().max())
    for step, points in ((STEP, (s.x, s.away)), (INVISIBLE, (s.inner(0),)), (LEVEL, (s.x, s.away))):
        predicted, actual = [], []
        for number, x in enumerate(points):
            before, gradient = margin_and_gradient(model, x, s.labels)
            there = (x + step * s.signs(2 + number)).clamp(0, 1)
            predicted.append(((there - x) * gradient).flatten(1).sum(1))
            actual.append(-lead(query_logits(model, there), s.labels) - before)
        one, other = torch.cat(predicted), torch.cat(actual).nan_to_num(0)
        if float(other.abs().median()) > floor:
            product = float(one.norm() * other.norm())
            correlation = float((one * other).sum()) / product if product > 0 else 0.0
            found = correlation if found is None else max(found, correlation)
            if found >= MIN_CORRELATION:
                break
    if found is None:
        return None, "small steps in random directions change nothing that the logits' dtype can represent"
    return found >= MIN_CORRELATION, f"predicted and actual changes along random directions correlate by {found:.2f}"


def check_gradient_coverage(s: Specimen) -> Finding:
    """Check that pixels without a gradient, at the images and in the ball, matter less than those with one."""
    model = s.fresh()
    without = margin_and_gradient(model, s.x, s.labels)[1] == 0
    for draw in range(INNER_POINTS if without.any() else 0):
        without &= margin_and_gradient(model, s.inner(draw), s.labels)[1] == 0
    if float(without.float().mean()) < 0.05:
        return True, "pixels without a gradient are fewer than 5 %"
    moves = s.eps * s.signs(4)
    before = query_logits(model, s.x)
    some, all_ = (
        float((query_logits(model, (s.x + moves * where).clamp(0, 1)) - before).abs().mean()) for where in (without, 1)
    )
    share = some / max(all_, 1e-30)
    return share <= MAX_WITHOUT_GRADIENT, f"pixels without a gradient have {share:.2f} of the effect of all pixels"


def check_response(s: Specimen) -> Finding:
    """Check that small changes of the image change the logits, that is, that they are not piecewise constant."""
    model = s.fresh()
    moved = (s.away + TINY * s.signs(5)).clamp(0, 1)
    still = float((query_logits(model, moved) == query_logits(model, s.away)).all(1).float().mean())
    if s.resolution > 1e-4:
        return None, "logits of low precision do not resolve small changes"
    return still < 0.5, f"a change of {TINY:g} leaves the logits of {100 * still:.0f} % of the images as they are"


def check_finite_logits(s: Specimen) -> Finding:
    """Check that the logits of perturbed images are finite."""
    broken = float((~query_logits(s.fresh(), s.away).isfinite().all(1)).float().mean())
    return broken == 0, f"{100 * broken:.0f} % of the perturbed images get logits that are not finite"


def check_no_optimization(s: Specimen) -> Finding:
    """Check that the forward pass computes no gradients (AutoAttack's flag for optimization at inference)."""
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
        query_logits(model, s.x)
    finally:
        torch.autograd.grad, torch.autograd.backward = own
    return taken == 0, f"the forward pass takes gradients {taken} times"


STRUCTURE: dict[str, tuple[Callable[[Specimen], Finding], str]] = {
    "the model keeps no state": (check_state, "ask a fresh copy for each query; state belongs in the attack's loop"),
    "same logits in another process": (
        check_another_process,
        "remove state that copies of the model share, such as global variables, and branches on the process",
    ),
    "same logits with gradients": (check_grad_mode, "remove branches on requires_grad or grad mode"),
    "same logits in another batch": (check_another_batch, "evaluate with fixed statistics, image by image"),
    "logits are continuous": (check_continuity, "attack the average over the noise (EOT), or remove the gate"),
    "the gradient predicts the margin": (
        check_gradient_prediction,
        "attack through BPDA: the identity for what hides the gradient",
    ),
    "the gradient holds in all directions": (
        check_gradient_correlation,
        "attack through BPDA, or by finite differences",
    ),
    "the gradient reaches all pixels": (check_gradient_coverage, "remove detach() and no_grad() from the forward pass"),
    "logits respond to small changes": (check_response, "attack before the rounding (BPDA), or by a black-box attack"),
    "no optimization at inference": (
        check_no_optimization,
        "attack through it: unroll it, or take the identity for it (BPDA)",
    ),
    "logits are finite off the images": (
        check_finite_logits,
        "count refused images as errors, and attack the network inside",
    ),
}


def make_copier(pristine: nn.Module | None, model: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that makes fresh copies, or returns the model itself if it cannot be copied."""
    return (lambda: model) if pristine is None else (lambda: copy.deepcopy(pristine))

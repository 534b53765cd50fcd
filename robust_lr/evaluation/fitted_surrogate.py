"""Fit a small network to a model's predictions: its gradients are useful where the model hides its own.

As in Papernot et al. 2017, a network is fitted to the model's answers for the images and for random points in the ball
around them, attacked, and fitted again with the model's answers for the results of that attack.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import margin
from ..attacks.pgd import pgd_linf
from ..attacks.stepwise import evaluate_objective
from ..results.verdict import DOMINATED
from . import oracles
from .oracles import Oracle, Queries
from .probe_attacks import Ball, Probe, Victims, from_clean, from_noise, noise_images, pgd_walk
from .probe_groups import Subject

#: side that larger images are downsampled to, channels of the two convolutions, and side of the last feature map
MAX_SIDE, CHANNELS, FEATURES = 64, (24, 48), 7

#: epochs of each of the two fits, and batch size
EPOCHS, BATCH = 8, 64

#: learning rate
RATE = 2e-3

#: steps of the attack on the first fit
STEPS = 5


class SmallNetwork(nn.Module):
    """Two convolutions and a linear layer, for images of any size."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.first = nn.Conv2d(channels, CHANNELS[0], 5, stride=2, padding=2)
        self.second = nn.Conv2d(*CHANNELS, 3, stride=2, padding=1)
        self.last = nn.Linear(CHANNELS[1] * FEATURES**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if max(x.shape[-2:]) > MAX_SIDE:
            x = F.adaptive_avg_pool2d(x, MAX_SIDE)
        z = F.relu(self.second(F.relu(self.first(x))))
        logits: Tensor = self.last(F.adaptive_avg_pool2d(z, FEATURES).flatten(1))
        return logits


def fitted_surrogate(subject: Subject, images: Victims, num_classes: int) -> tuple[nn.Module, float]:
    """Fit a small network to the model's answers on ``images`` and around them; also return the passes taken."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        network = SmallNetwork(images.x.shape[1], num_classes).to(images.x.device)
    shown = [images.x, *noise_images(images, subject.ball, subject.seed, 2)]
    answers = [target_probabilities(subject, x) for x in shown]
    fit(network, torch.cat(shown), torch.cat(answers), subject.seed)
    shown.append(attack_surrogate(network, images, subject.ball))
    answers.append(target_probabilities(subject, shown[-1]))
    fit(network, torch.cat(shown), torch.cat(answers), subject.seed)
    return network.eval().requires_grad_(False), float(len(images) * len(shown))


def target_probabilities(subject: Subject, x: Tensor) -> Tensor:
    """Return the probabilities that the surrogate learns: the softmax of standardized logits, which never saturates."""
    logits = torch.cat([oracles.logits_of(subject.fresh(), part) for part in torch.split(x, BATCH)])
    logits = logits.nan_to_num(0, 0, 0).double()
    spread = logits.std(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (2 * (logits - logits.mean(1, keepdim=True)) / spread).softmax(1).float()


def fit(network: nn.Module, x: Tensor, answers: Tensor, seed: int) -> None:
    """Train with Adam, implemented here because importing PyTorch's optimizers takes longer than the training."""
    order = torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step, rows in enumerate(
        rows for _ in range(EPOCHS) for rows in torch.split(torch.randperm(len(x), generator=order).to(x.device), BATCH)
    ):
        with torch.enable_grad():
            loss = F.cross_entropy(network(x[rows]), answers[rows])
            gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.01)
                bias = [1 - decay ** (step + 1) for decay in (0.9, 0.99)]
                p.sub_(RATE * mean / bias[0] / (square / bias[1]).sqrt().add(1e-8))


def attack_surrogate(network: nn.Module, images: Victims, ball: Ball) -> Tensor:
    """Attack the surrogate by PGD in L-infinity, with the change per pixel that uses up the ball."""
    eps = ball.per_pixel(images.x[0].numel())
    return pgd_linf(network, images.x, images.labels, eps=eps, step_size=eps / 3, steps=STEPS)


def surrogate_probes(surrogate: nn.Module, ball: Ball) -> list[Probe]:
    """Return attacks on the surrogate whose iterates are tried on the model."""
    oracle = partial(gradient_of_surrogate, surrogate=surrogate)
    return [
        Probe("fitted surrogate", DOMINATED, oracle, pgd_walk(ball, 15, 0.15), start, 37 + number)
        for number, start in enumerate((from_clean, from_noise))
    ]


def gradient_of_surrogate(model: nn.Module, surrogate: nn.Module) -> Oracle:
    """Return an oracle with the surrogate's gradient and the model's logits."""

    def ask(q: Queries) -> oracles.Answer:
        _, loss, direction = evaluate_objective(surrogate, q.x, q.labels, q.targets, margin)
        return oracles.logits_of(model, q.x), loss, direction

    return Oracle(ask, 1)

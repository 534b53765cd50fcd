"""A small network fitted to a model's predictions: its gradients lead where the model hides its own.

Papernot et al. 2017: the model is asked about images and random ones in the ball around them, a network is fitted to
its answers, and the model is asked once more where an attack on that network leads.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import margin
from ..attacks.pgd import pgd_linf
from ..attacks.stepwise import look
from ..results.verdict import DOMINATED
from . import oracles
from .oracles import Oracle, Queries
from .probe_attacks import Ball, Probe, Victims, from_clean, from_noise, noise_images, pgd
from .probe_groups import Subject

#: side that larger images are averaged down to, channels of the two convolutions, and side of the last features
MAX_SIDE, CHANNELS, FEATURES = 64, (24, 48), 7

#: epochs of each of the two fits, and images of a step
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
    """Fit a small network to what the model says of ``images`` and of the ball around them; and the passes it took."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        network = SmallNetwork(images.x.shape[1], num_classes).to(images.x.device)
    shown = [images.x, *noise_images(images, subject.ball, subject.seed, 2)]
    answers = [wanted(subject, x) for x in shown]
    fit(network, torch.cat(shown), torch.cat(answers), subject.seed)
    shown.append(lured(network, images, subject.ball))
    answers.append(wanted(subject, shown[-1]))
    fit(network, torch.cat(shown), torch.cat(answers), subject.seed)
    return network.eval().requires_grad_(False), float(len(images) * len(shown))


def wanted(subject: Subject, x: Tensor) -> Tensor:
    """Probabilities that the surrogate learns: the model's logits brought to one scale, so that none saturates."""
    logits = torch.cat([oracles.logits_of(subject.fresh(), part) for part in torch.split(x, BATCH)])
    logits = logits.nan_to_num(0, 0, 0).double()
    spread = logits.std(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (2 * (logits - logits.mean(1, keepdim=True)) / spread).softmax(1).float()


def fit(network: nn.Module, x: Tensor, answers: Tensor, seed: int) -> None:
    """Train by Adam, written out: the import of PyTorch's optimizers would take longer than the training."""
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


def lured(network: nn.Module, images: Victims, ball: Ball) -> Tensor:
    """Where an attack on the surrogate leads, with the change of every pixel that uses up the ball."""
    eps = ball.per_pixel(images.x[0].numel())
    return pgd_linf(network, images.x, images.labels, eps=eps, step_size=eps / 3, steps=STEPS)


def surrogate_probes(surrogate: nn.Module, ball: Ball) -> list[Probe]:
    """Attacks on the surrogate whose iterates are shown to the model."""
    oracle = partial(gradient_of_surrogate, surrogate=surrogate)
    return [
        Probe("fitted surrogate", DOMINATED, oracle, pgd(ball, 15, 0.15), start, 37 + number)
        for number, start in enumerate((from_clean, from_noise))
    ]


def gradient_of_surrogate(model: nn.Module, surrogate: nn.Module) -> Oracle:
    """The surrogate's gradient, the model's logits."""

    def ask(q: Queries) -> oracles.Answer:
        _, loss, direction = look(surrogate, q.x, q.labels, q.targets, margin)
        return oracles.logits_of(model, q.x), loss, direction

    return Oracle(ask, 1)

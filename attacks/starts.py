"""First iterates of attacks: functions of (seed, image id, draw), clipped to [0, 1]."""

from __future__ import annotations

from torch import Tensor

from ..utils.rng import RADIUS, START, normal, uniform
from .projections import onto_l1_ball

#: standard deviation of a start around the image, in pixels of [0, 1] (TRADES, Zhang et al. 2019: their code)
DEVIATION = 0.001


def clean(x: Tensor) -> Tensor:
    """Start from the images themselves."""
    return x


def around(x: Tensor, ids: Tensor, eps: float, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """Start from normal noise around the images, clipped to the L-infinity ball."""
    noise = DEVIATION * normal(seed, START, ids.to(x.device), x.shape[1:], draw)
    return (x + noise.clamp(-eps, eps)).clamp(0, 1)


def in_ball(x: Tensor, ids: Tensor, eps: float, norm: str, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """Start from uniform noise in the ball."""
    ids = ids.to(x.device)
    if norm == "linf":
        return (x + eps * _cube(x, ids, seed, draw)).clamp(0, 1)
    radius = uniform(seed, RADIUS, ids, (1, 1, 1), draw) ** (1 / x[0].numel())
    return (x + eps * radius * _sphere(x, ids, seed, draw)).clamp(0, 1)


def on_surface(x: Tensor, ids: Tensor, eps: float, norm: str, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """Start from noise at the surface of the ball, like the official APGD."""
    ids = ids.to(x.device)
    if norm == "l1":
        noise = normal(seed, START, ids, x.shape[1:], draw)
        return (x + eps * noise / noise.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    if norm == "linf":
        noise = _cube(x, ids, seed, draw)
        return (x + eps * (1 / noise.abs().amax(dim=(1, 2, 3), keepdim=True)) * noise).clamp(0, 1)
    return (x + eps * _sphere(x, ids, seed, draw)).clamp(0, 1)


def in_l1_ball(x: Tensor, ids: Tensor, eps: float, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """Start from normal noise, projected to the L1 ball and [0, 1], like the official APGD in L1."""
    return x + onto_l1_ball(x, normal(seed, START, ids.to(x.device), x.shape[1:], draw).to(x.dtype), eps)


def _cube(x: Tensor, ids: Tensor, seed: int, draw: int | Tensor) -> Tensor:
    return 2 * uniform(seed, START, ids, x.shape[1:], draw) - 1


def _sphere(x: Tensor, ids: Tensor, seed: int, draw: int | Tensor) -> Tensor:
    noise = normal(seed, START, ids, x.shape[1:], draw)
    norm = noise.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()  # the same for any number of rows
    return (noise / norm).to(x.dtype)

"""Projections that respect the pixel range [0, 1], separately for each row of [N, D]."""

from __future__ import annotations

import torch
from torch import Tensor


def onto_hyperplane(points: Tensor, normal: Tensor, offset: Tensor, norm: str) -> Tensor:
    """Return the shortest steps, in ``norm``, from points to the hyperplane ``normal . z = offset`` within [0, 1].

    If the hyperplane does not meet [0, 1], the step goes as far towards it as the range allows (Croce and Hein 2020,
    "Minimally distorted adversarial examples with a fast adaptive boundary attack").

    Args:
        points, normal: [N, D].
        offset: [N].
        norm: "linf", "l2" or "l1".
    """
    gap = (normal * points).sum(1) - offset
    side = torch.where(gap >= 0, 1.0, -1.0).to(points.dtype)[:, None]  # every coordinate moves against this sign
    slope = normal * side
    room = torch.where(slope > 0, points, 1 - points)
    weight = slope.abs()
    capacity = weight * room  # the part of the gap that a coordinate can close
    length = _greedy if norm == "l1" else _level
    moved = length(gap.abs()[:, None], weight, room, capacity, norm)
    return torch.where(weight > 0, -slope.sign() * moved, 0.0)


def _level(gap: Tensor, weight: Tensor, room: Tensor, capacity: Tensor, norm: str) -> Tensor:
    """Move each coordinate by ``level`` (L-infinity) or ``level * weight`` (L2), but no farther than its room."""
    pull = weight if norm == "linf" else weight.square()  # part of the gap that one unit of the level closes
    breakpoints = room if norm == "linf" else room / weight.clamp_min(1e-12)
    breakpoints, order = breakpoints.sort(dim=1)
    full = capacity.gather(1, order).cumsum(1)  # closed by the coordinates that have no room left
    rest = pull.sum(1, keepdim=True) - pull.gather(1, order).cumsum(1)
    closed = full + breakpoints * rest.clamp_min(0)
    at = torch.searchsorted(closed.cummax(1).values.contiguous(), gap).clamp_max(closed.shape[1] - 1)
    before = (at - 1).clamp_min(0)
    first = at == 0
    done = torch.where(first, 0.0, full.gather(1, before))
    slope = torch.where(first, pull.sum(1, keepdim=True), rest.gather(1, before))
    level = ((gap - done) / slope.clamp_min(1e-30)).clamp_min(0)
    level = torch.where(gap > closed[:, -1:], torch.inf, level)
    return torch.minimum(level if norm == "linf" else torch.nan_to_num(level * weight, nan=0.0, posinf=torch.inf), room)


def _greedy(gap: Tensor, weight: Tensor, room: Tensor, capacity: Tensor, norm: str) -> Tensor:
    """Move coordinates in L1, those with the largest weights first, as far as they can."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    ordered = capacity.gather(1, order)
    before = ordered.cumsum(1) - ordered
    share = ((gap - before) / ordered.clamp_min(1e-30)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))


def onto_l1_ball(x: Tensor, delta: Tensor, eps: float | Tensor, *, box: bool = True) -> Tensor:
    """Return the perturbations nearest to ``delta``, in L2, with an L1 norm of at most ``eps`` and x + delta in [0, 1].

    Croce and Hein 2021, "Mind the box". All coordinates shrink by one threshold, within their room; it is found from
    the sorted values at which a coordinate leaves zero or reaches the end of its room.

    Args:
        x, delta: [N, C, H, W].
        eps: one radius, or one per image, [N].
        box: whether x + delta must be in [0, 1]; otherwise this is the projection to the L1 ball alone.
    """
    size, sign = delta.flatten(1).abs(), delta.flatten(1).sign()
    room = torch.where(sign > 0, 1 - x.flatten(1), x.flatten(1)).clamp_min(0) if box else size
    ends, order = torch.cat([size, size - room], 1).sort(dim=1, descending=True, stable=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    falls = torch.cat([torch.zeros_like(ends[:, :1]), (ends[:, :-1] - ends[:, 1:]) * slope[:, :-1]], 1)
    norms = falls.cumsum(1)  # norm of the perturbation if the threshold is this end
    limit = torch.as_tensor(eps, dtype=norms.dtype, device=norms.device).expand(len(norms))[:, None].contiguous()
    at = torch.searchsorted(norms, limit).clamp(1, norms.shape[1] - 1)
    threshold = ends.gather(1, at) + (norms.gather(1, at) - limit) / slope.gather(1, at - 1).clamp_min(1)
    inside = torch.minimum(size, room).sum(1, keepdim=True) <= limit
    threshold = torch.where(inside, 0.0, threshold).clamp_min(0)
    return (sign * torch.minimum((size - threshold).clamp_min(0), room)).view_as(delta)

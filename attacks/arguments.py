"""Checks of the arguments that all attacks share, so that a mistake is an error and never a number."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ..utils.checks import check_whole
from ..utils.errors import InputError

#: rounding of x + delta that is tolerated in the results of libraries, in pixels of [0, 1]
TOLERANCE = 1e-6

#: maximum number of passes of a random model that one gradient is averaged over
MAX_EOT = 1000


def check_attack(*, eps: float, step_size: float, steps: int, norm: str = "linf") -> None:
    """Check the values of an attack; an L-infinity eps or step above 1 was probably meant in units of 0..255."""
    for name, value in {"eps": eps, "step_size": step_size}.items():
        if norm == "linf" and not 0 <= value <= 1:
            meant = 1 < value <= 255 and value == int(value)
            hint = f"for {value:g} of 255 levels write {value:g}/255" if meant else "for 8 of 255 levels write 8/255"
            raise InputError(f"{name} = {value:g} is outside [0, 1]: pixels are in [0, 1]; {hint}")
        if norm != "linf" and not 0 <= value < inf:
            raise InputError(f"{name} = {value:g}: an {norm.upper()} distance of pixels in [0, 1] is needed, 0 or more")
    check_whole(0, steps=steps)


def check_eot(eot: int) -> None:
    """Check the number of passes that a gradient is averaged over, 1 to ``MAX_EOT``."""
    check_whole(1, eot=eot)
    if eot > MAX_EOT:
        raise InputError(f"eot = {eot}: at most {MAX_EOT} passes of the model for each gradient")


def check_labels(x: Tensor, labels: Tensor) -> None:
    """Check that there is one int64 class index for each image."""
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels {tuple(labels.shape)} {labels.dtype}: one int64 class index for each of {len(x)} images is needed"
        )
    if (labels < 0).any():  # cross-entropy silently ignores the label -100
        raise InputError(f"labels: {int(labels.min())} is not a class; classes are numbered from 0")


def compare_with_ball(x: Tensor, y: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """Return the distances of y from x, [N], and whether they are at most eps up to rounding, [N] bool (NaN: False)."""
    distance = distances(x, y, norm)
    return distance, distance <= eps + max(TOLERANCE, rounding_tolerance(x, eps, norm))


def check_start(x: Tensor, start: Tensor, eps: float, norm: str = "linf") -> None:
    """Check that a first iterate has the images' shape and dtype and lies in the ball and [0, 1]."""
    if start.shape != x.shape or start.dtype != x.dtype:
        raise InputError(
            f"start {tuple(start.shape)} {start.dtype}: must be like the images, {tuple(x.shape)} {x.dtype}"
        )
    check_images(start)
    distance = float(distances(x, start, norm).max()) if x.numel() else 0.0
    if distance > eps + rounding_tolerance(x, eps, norm):
        raise InputError(f"start: is {distance:.6g} away from the images, outside the ball of eps = {eps:.6g}")


def distances(x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Return the distances between the images of two batches [N, C, H, W] in L-infinity, L2 or L1, [N]."""
    delta = (y - x).flatten(1)
    if norm == "linf":
        return delta.abs().amax(1)
    length: Tensor = torch.linalg.vector_norm(delta, ord=2 if norm == "l2" else 1, dim=1)
    return length


def rounding_tolerance(x: Tensor, eps: float, norm: str) -> float:
    """Return by how much rounding of x + delta may leave the ball: in one pixel (L-infinity) or all."""
    unit = 2 * torch.finfo(x.dtype).eps
    if norm == "linf":
        return unit
    return float(unit * (x[0].numel() ** (0.5 if norm == "l2" else 1.0) + eps))


def check_images(x: Tensor, ids: Tensor | None = None) -> None:
    """Check that images are [N, C, H, W] float pixels in [0, 1]; the error names the image if ids [N] are given.

    This reads every pixel, so call it before an attack, not in every step.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"images {tuple(x.shape)} {x.dtype}: [N, C, H, W] float pixels in [0, 1] are needed")
    if not x.numel():
        return
    low, high = x.flatten(1).aminmax(dim=1)
    outside = ~((low >= 0) & (high <= 1))  # negated, so that NaN is outside as well
    if outside.any():
        which = "images span"
        if ids is not None:
            which, low, high = f"image {int(ids[outside][0])} spans", low[outside][0], high[outside][0]
        raise InputError(
            f"{which} [{float(low.min()):.3g}, {float(high.max()):.3g}]: pixels must be in [0, 1]; "
            "normalization belongs inside the model"
        )

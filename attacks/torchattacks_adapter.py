"""Attacks of torchattacks (Kim 2020) as one pure function, which checks their results.

The library is imported only when an attack is called: its import is slow, and its release 3.5.1 pins an old `requests`
and installs an old top-level `robustbench`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..utils.checks import check_name, choose
from ..utils.contexts import frozen
from ..utils.errors import InputError, RunError
from .arguments import check_images, check_labels, compare_with_ball

if TYPE_CHECKING:
    from torchattacks.attack import Attack


def torchattack(
    name: str, model: nn.Module, x: Tensor, labels: Tensor, *, targets: Tensor | None = None, **values: Any
) -> Tensor:
    """Attack by the torchattacks class ``name``, e.g. "APGD", "Square", "MIFGSM", "CW", and verify the result.

    Args:
        model: pixels in [0, 1] -> logits; it is attacked in eval mode, and its mode is restored afterwards.
        x: clean images, [N, C, H, W] float in [0, 1].
        labels: true classes, [N] int64.
        targets: target classes, [N] int64, for a targeted attack.
        values: arguments of the class. Defaults of torchattacks are often weaker than those of the papers (its
            AutoAttack runs APGD for 10 steps, not 100), so give every value that matters.

    Returns:
        Images like ``x``, verified to lie in [0, 1] and, for an L-infinity or L2 attack with an ``eps``, in the ball.

    Raises:
        InputError: an unknown attack or argument, or targets for an attack without a targeted mode.
        RunError: the attack's result is out of bounds.
    """
    check_images(x)
    check_labels(x, labels if targets is None else targets)
    check_options(name, values)
    attack = _class(name)(model, **values)
    if targets is not None:
        if "targeted" not in attack.supported_mode:
            raise InputError(f"torchattacks' {name} has no targeted mode: leave targets out")
        attack.set_mode_targeted_by_label(quiet=True)
    with frozen(model):  # some attacks leave gradients in the parameters, and modes are restored for the root alone
        x_adv: Tensor = attack(x, labels if targets is None else targets).detach()
    norm = values.get("norm", "L2" if "L2" in name else "Linf").lower()
    _verify(name, x, x_adv, float(values["eps"]) if "eps" in values and norm in ("linf", "l2") else None, norm)
    return x_adv


def ball_options(name: str, eps: float, norm: str) -> dict[str, Any]:
    """Return the arguments that set the ball of the torchattacks class ``name``, if it has any.

    Raises:
        InputError: an unknown attack, or one that only supports another norm.
    """
    known = inspect.signature(_class(name).__init__).parameters
    radius = {key: eps for key in RADII if key in known}
    if "norm" in known:
        return {**radius, "norm": NORMS[norm]}
    own = "l2" if "L2" in name else "linf"
    if radius and norm != own:
        raise InputError(f"norm = {norm!r}: torchattacks' {name} takes its eps in {NORMS[own]}, set norm = {own!r}")
    return radius


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputError unless torchattacks has the attack ``name`` with parameters of all these names."""
    known = [key for key in inspect.signature(_class(name).__init__).parameters if key not in ("self", "model")]
    for key in options:
        check_name(f"option of torchattacks' {name}", key, known)


#: parameters of torchattacks' classes that are the radius of the ball
RADII = ("eps", "max_epsilon")

#: torchattacks' names for our norms
NORMS = {"linf": "Linf", "l2": "L2"}


def _class(name: str) -> type[Attack]:
    with warnings.catch_warnings():
        # the old requests warns about newer packages; the attacks do not use it
        warnings.filterwarnings("ignore", message=".*doesn't match a supported version")
        import torchattacks
    kinds = {
        key: kind
        for key, kind in vars(torchattacks).items()
        if isinstance(kind, type) and issubclass(kind, torchattacks.attack.Attack) and key != "MultiAttack"
    }
    return choose("attack of torchattacks", name, kinds)


def _verify(name: str, x: Tensor, x_adv: Tensor, eps: float | None, norm: str) -> None:
    if x_adv.shape != x.shape or not torch.isfinite(x_adv).all() or x_adv.min() < 0 or x_adv.max() > 1:
        raise RunError(
            f"torchattacks' {name} returned images that are not all of the input's shape, finite and in [0, 1]"
        )
    if eps is None:
        return
    distance, near = compare_with_ball(x, x_adv, eps, norm)
    if not near.all():
        raise RunError(f"torchattacks' {name} left the ball: distance {float(distance.max()):.6g}, eps {eps:.6g}")

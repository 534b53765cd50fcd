"""Transfer attacks: gradients come from a second network, verdicts from the model under test."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from ..models.checkpoint import weights_hash
from ..models.folding import attackable
from ..protocols.base import Protocol, StepwiseProtocol
from ..utils.contexts import device_of
from ..utils.errors import InputError
from .guards import answered, guard
from .model_under_test import in_float32, taken_out


def check_transfer(protocols: Sequence[Protocol]) -> None:
    """Check that the protocols judge nothing but last iterates; what a surrogate predicts on the way says nothing.

    Raises:
        InputError: names the protocol.
    """
    for protocol in protocols:
        single = isinstance(protocol, StepwiseProtocol) and protocol.follows_gradients
        if not single or protocol.criterion != "last" or protocol.record:
            raise InputError(
                f"protocol {protocol.name!r} cannot take its gradients from a `surrogate`: choose one with "
                "criterion = 'last' and without record, e.g. 'di-fgsm' or 'lrnet-untargeted'"
            )


def attackable_surrogate(
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Tensor,
    away: Tensor,
    num_classes: int,
    allow: Collection[str],
) -> nn.Module:
    """Return the surrogate in the form that gradients are taken through, once its guards have nothing to say.

    Raises:
        InputError: other classes than the model's, another device, or a complaint of a guard.
    """
    if device_of(surrogate) != images.device and list(surrogate.parameters()):
        raise InputError(f"the `surrogate` is on {device_of(surrogate)}, the model on {images.device}: move it there")
    judge = in_float32(taken_out(surrogate, images[:1])[0], images[:1])[0]
    try:
        logits = answered(judge, images[:1])
        if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] != num_classes:
            raise InputError(f"it has {logits.shape[1]} classes, the model {num_classes}")
        guard(
            judge,
            images,
            labels,
            ids,
            num_classes=num_classes,
            most=num_classes - 1,
            gradients=True,
            away=away,
            allow=allow,
        )
    except InputError as error:
        raise InputError(f"`surrogate`: {error}") from None
    return attackable(judge, away)


def described(surrogate: nn.Module) -> dict[str, str]:
    """Name and hash of a surrogate, for the result."""
    name = getattr(surrogate, "name", None)
    return {"name": name if isinstance(name, str) else type(surrogate).__name__, "weights": weights_hash(surrogate)}

"""Transfer attacks: a second network gives the gradients, the model under test the verdicts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from ..models.checkpoint import weights_hash
from ..models.folding import make_attackable
from ..protocols.base import Protocol, StepwiseProtocol
from ..utils.contexts import device_of
from ..utils.errors import InputError
from .guards import query_model, run_guards, run_guards_of_gradients
from .model_under_test import in_float32, unwrap_logits


def check_transfer(protocols: Sequence[Protocol]) -> None:
    """Check that the protocols judge only last iterates, because a surrogate's predictions on the way mean nothing.

    Raises:
        InputError: names the protocol that does not.
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
    """Run the guards on the surrogate, and return it in the form that gradients are taken through.

    Raises:
        InputError: another number of classes or another device than the model's, or a guard's complaint.
    """
    if device_of(surrogate) != images.device and list(surrogate.parameters()):
        raise InputError(f"the `surrogate` is on {device_of(surrogate)}, the model on {images.device}: move it there")
    judge = in_float32(unwrap_logits(surrogate, images[:1])[0], images[:1])[0]
    try:
        logits = query_model(judge, images[:1])
        if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] != num_classes:
            raise InputError(f"it has {logits.shape[1]} classes, the model {num_classes}")
        run_guards(
            judge,
            images,
            labels,
            ids,
            num_classes=num_classes,
            max_label=num_classes - 1,
            away=away,
            allow=allow,
        )
        attacked = make_attackable(judge, away)
        run_guards_of_gradients(attacked, images, labels, ids, allow=allow)
    except InputError as error:
        raise InputError(f"`surrogate`: {error}") from None
    return attacked


def describe_surrogate(surrogate: nn.Module) -> dict[str, str]:
    """Return the name and hash of a surrogate, for the result."""
    name = getattr(surrogate, "name", None)
    return {"name": name if isinstance(name, str) else type(surrogate).__name__, "weights": weights_hash(surrogate)}

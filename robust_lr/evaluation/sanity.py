"""Sanity checks of an attack: run variants that must be stronger or weaker than it on a sample of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..data.dataset import Dataset
from ..protocols.base import Protocol
from ..protocols.pgd import PGD
from ..protocols.presets import get
from ..protocols.square import Square
from ..results.validity import SIGNIFICANT, Check
from ..utils.errors import InputError
from ..utils.statistics import mcnemar
from .harness import evaluate_prepared
from .session import prepare

#: number of queries of the black-box attack
QUERIES = 300

#: norms of the balls that PGD attacks in
NORMS = ("linf", "l2")


def sanity(
    model: nn.Module,
    data: Dataset,
    protocol: str | Protocol = "lrnet-untargeted",
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[Check, ...]:
    """Attack a sample in several ways whose order of strength is known (Athalye et al. 2018; Carlini et al. 2019).

    All attacks are untargeted and count the worst iterate seen; they share eps and step size with ``protocol``.

    Args:
        model, data: as for ``evaluate``.
        protocol: the attack to check: PGD itself, or another attack, for whose eps PGD with 20 steps of 2.5 eps / 20 is
            checked.
        progress: called as ``progress(done, total)`` after each attack.
        options: options of ``session.prepare``, e.g. seed and allow.

    Raises:
        InputError, RunError: as ``evaluate``; InputError also for eps = 0.
    """
    base = as_untargeted_pgd(get(protocol) if isinstance(protocol, str) else protocol)
    if base.eps == 0:
        raise InputError(f"protocol {base.name!r} has eps = 0: there is nothing to check")
    eps, step = base.eps, base.step_size
    most = 1.0 if base.norm == "linf" else float(data[0][0].numel()) ** 0.5
    attacks: dict[str, Protocol] = {
        "the attack": base,
        "one step": replace(base, steps=1, step_size=eps, restarts=1),
        "random noise": replace(base, steps=0, restarts=max(5, base.restarts), start="uniform"),
        "4 times the steps": replace(base, steps=4 * base.steps),
        "3 restarts": replace(base, restarts=3 * base.restarts, start="uniform"),
        "twice the eps": replace(base, eps=min(2 * eps, most), step_size=min(2 * step, most)),
        # from the clean image: random starts in so large a ball are noise, which breaks most images without gradients
        "eps of 255/255": replace(base, eps=most, step_size=most / 10, steps=40, restarts=1, start="clean"),
    }
    if base.norm == "linf":
        attacks["black box"] = Square(eps=eps, queries=QUERIES)
    ready = prepare(model, data, list(attacks.values()), **options)
    broken: dict[str, set[int]] = {}
    for done, (name, attack) in enumerate(attacks.items()):
        _, rows = evaluate_prepared(ready, attack)
        broken[name] = {row.id for row in rows if not row.robust_worst_seen}
        if progress is not None:
            progress(done + 1, len(attacks))
    return compare_attacks(broken, len(data))


def as_untargeted_pgd(protocol: Protocol) -> PGD:
    """Return the untargeted PGD that is checked in place of a protocol.

    Raises:
        InputError: PGD does not support the protocol's norm.
    """
    if protocol.norm not in NORMS:
        raise InputError(
            f"protocol {protocol.name!r} has norm {protocol.norm!r}: only attacks in {' or '.join(NORMS)} "
            "can be checked"
        )
    if isinstance(protocol, PGD):
        steps = max(protocol.steps, 1)
        return replace(
            protocol, steps=steps, targeted=False, target="uniform", label="true", criterion="worst", record=()
        )
    return PGD(eps=protocol.eps, norm=protocol.norm, step_size=protocol.eps / 8, steps=20, criterion="worst")


def compare_attacks(broken: dict[str, set[int]], n: int) -> tuple[Check, ...]:
    """Compare attacks by the images, of ``n``, that each broke, with a paired test for two attacks.

    If more steps or restarts break more images, the attack is weak, which the verdict measures; here it fails only if
    they break significantly fewer.
    """
    attack = broken["the attack"]

    def beats(one: set[int], other: set[int]) -> bool:
        gained, lost = len(one - other), len(other - one)
        return gained > lost and mcnemar(gained, lost) < SIGNIFICANT

    def stronger(than: str) -> Check:
        weaker = broken[than]
        return Check(
            f"stronger than {than}",
            not beats(weaker, attack),
            f"{than} breaks {len(weaker)} of {n} images, {len(weaker - attack)} of them not broken by the attack "
            f"({len(attack)})",
        )

    def as_strong(than: str) -> Check:
        more = broken[than]
        return Check(
            f"no stronger than with {than}",
            not beats(attack, more),
            f"{than}: {len(more)} of {n} images broken instead of {len(attack)}",
        )

    twice, all_of_it = broken["twice the eps"], broken["eps of 255/255"]
    checks = [
        Check("eps of 255/255 breaks most images", 2 * len(all_of_it) > n, f"{len(all_of_it)} of {n} images broken"),
        Check(
            "a larger eps breaks no fewer images",
            not beats(attack, twice),
            f"twice the eps: {len(twice)} of {n} images broken instead of {len(attack)}",
        ),
        *(stronger(name) for name in ("one step", "random noise", "black box") if name in broken),
        *map(as_strong, ("4 times the steps", "3 restarts")),
    ]
    return tuple(checks)

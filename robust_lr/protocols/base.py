"""The base of every protocol: the values of an attack, and everything that the harness needs to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from ..attacks.arguments import compare_with_ball
from ..attacks.losses import Objective
from ..attacks.starts import clean
from ..attacks.stepwise import Stepwise, evaluate_objective
from ..utils.contexts import Model
from ..utils.errors import InputError

NORMS = ("linf", "l2", "l1")

#: ways to choose the target of a targeted attack
TARGETS = ("uniform", "least-likely", "given")

#: values that may be written as a fraction such as "8/255"
DISTANCES = ("eps", "step_size")


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """An attack and every value that changes a robustness number, as a frozen record.

    The class attributes hold for attacks that are untargeted and end at their first success.
    """

    if TYPE_CHECKING:  # fields or properties of every protocol; here they would become the fields' defaults

        @property
        def eps(self) -> float: ...
        @property
        def norm(self) -> str: ...
        @property
        def steps(self) -> int: ...
        @property
        def name(self) -> str: ...
        @property
        def source(self) -> str: ...

    # without annotations, so that they do not become dataclass fields
    criterion = "worst"
    targeted = False
    record = cast(tuple[int, ...], ())
    #: number of passes of a random model that each gradient is averaged over
    eot = 1
    #: number of images, those with the smallest ids; 0 for all
    first = 0
    #: number of images, drawn by the seed with equal numbers from all classes; 0 for all
    balanced = 0

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""

    def check(self) -> None:  # noqa: B027 - most protocols have nothing left to check
        """Check the values that only a library can check; InputError for a value that it refuses."""

    def attacks(self) -> tuple[Protocol, ...]:
        """Return the attacks that run one after the other, each on the images that withstood those before."""
        return (self,)

    def at(self, eps: float) -> Self:
        """Return the same attack in another ball."""
        return self.with_values(eps=eps)

    def with_values(self, **values: Any) -> Self:
        """Return the same attack with some fields replaced."""
        return cast(Any, replace)(self, **values)  # type: ignore[no-any-return]

    @property
    def finds_distances(self) -> bool:
        """True if the attack minimizes the perturbation of each image; the nearest adversarial image is then judged."""
        return False

    @property
    def follows_gradients(self) -> bool:
        """True if the attack uses gradients of the model."""
        return True

    @property
    def is_keyed_by_image(self) -> bool:
        """True if the attack on an image does not depend on other images."""
        return True

    @property
    def needs_targets(self) -> bool:
        """True if the targets must be passed to ``evaluate``."""
        return False

    def with_given_targets(self) -> Self:
        """Return the same attack with targets that are passed to ``evaluate``.

        Raises:
            InputError: the attack has no place for them.
        """
        raise InputError(f"protocol {self.name!r} takes no given targets: leave them out")

    def goals(
        self, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
    ) -> Tensor:
        """Return the classes of the attack's loss, [N] int64: targets if ``targeted``, otherwise labels."""
        return labels


@dataclass(frozen=True, kw_only=True)
class StepwiseProtocol(Protocol):
    """An attack that runs as a sequence of queries, see ``attacks.stepwise``."""

    if TYPE_CHECKING:

        @property
        def restarts(self) -> int: ...

    @property
    def stays_in_ball(self) -> bool:
        """True if every query lies in the ball; otherwise only queries inside it count."""
        return True

    @property
    def ends_at_success(self) -> bool:
        """True if an image leaves the attack at its first success."""
        return self.criterion == "worst" and not self.finds_distances

    def final(self, x: Tensor, query: Tensor, best: Tensor | None) -> Tensor:
        """Return the images to judge if no success ended the attack; ``best`` is the state's, if it has one."""
        if self.finds_distances:
            assert best is not None, f"{type(self).__name__} keeps no best image"
            return best
        if self.stays_in_ball:
            return query
        inside = compare_with_ball(x, query, self.eps, self.norm)[1]
        return torch.where(inside.view(-1, 1, 1, 1), query, x + 0 * query)  # the second term keeps NaN

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """The objective that the attack ascends."""

    @property
    def objective_takes_targets(self) -> bool:
        """True if the objective takes target classes."""
        return self.targeted

    @abstractmethod
    def stepwise(self, seed: int) -> Stepwise:
        """Return the attack as a sequence of queries."""

    def evaluate_query(
        self,
        model: Model,
        query: Tensor,
        rows: Mapping[str, Tensor],
        targets: Tensor | None,
        needs_gradient: bool,
        *,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and its gradient at ``query``, see ``attacks.stepwise.evaluate_objective``.

        ``rows`` has the columns id, draw, step, and away, the classes to move away from.
        """
        return evaluate_objective(model, query, rows["away"], targets, self.objective, needs_gradient)

    def passes_per_query(self, num_classes: int) -> tuple[int, int]:
        """Return the numbers of forward and backward passes that one query takes."""
        return 1, 1

    def starts(self, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
        """Return first iterates, like ``x`` [N, C, H, W]; ``draw`` is the number of the restart or epoch."""
        return clean(x)

    def draws(self, num_classes: int) -> int:
        """Return the maximum number of runs on one image: restarts, times targets if there are several."""
        return self.restarts

    def classes(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the classes that the next draw moves away from and towards, [N] each; -1 if there is none.

        ``rows`` has the columns label, target, clean (the prediction), ranking (classes by logit, the largest first)
        and draw.
        """
        return rows["label"], rows["target"]


def format_distance(value: float, norm: str) -> str:
    """Write a distance as usual: 0.0627... -> "16/255" in L-infinity, "0.5 (L2)" in L2."""
    return f"{value * 255:.4g}/255" if norm == "linf" else f"{value:.4g} ({norm.upper()})"


def parse_distance(key: str, value: Any, section: str = "") -> Any:
    """Convert a distance that is written as a fraction to a number; return any other value as it is."""
    if key not in DISTANCES or not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{section}{key} = {value!r}: a number or a fraction like 16/255 is needed") from None


def convert_fractions(protocol: Protocol) -> None:
    """Replace distances that were given as fractions in text, such as ``eps="8/255"``, by their numbers."""
    for key in DISTANCES:
        if isinstance(value := getattr(protocol, key, None), str):
            object.__setattr__(protocol, key, parse_distance(key, value))

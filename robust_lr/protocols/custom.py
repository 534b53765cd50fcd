"""Attacks of the user's own as protocols."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..attacks import targets
from ..attacks.arguments import check_attack
from ..utils.checks import check_name
from ..utils.contexts import Model
from ..utils.errors import InputError
from .base import NORMS, Protocol, convert_fractions, format_distance

TARGETS = ("uniform", "given")

Attack = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Custom(Protocol):
    """An attack of the user's own: ``function(model, x, labels, targets) -> x_adv``.

    What it returns must lie in the ball and in [0, 1], and is judged by a pass of the model itself. ``targets`` is None
    unless the attack is targeted.

    Args:
        function: called with images [n, C, H, W], labels and targets [n]; None for one that is only read about.
        eps, norm: of the ball that it must stay in.
        targeted, target: whether it aims at classes, and which: "uniform" over the wrong ones, or "given".
        together: whether the images of a batch are attacked together. By default each is attacked by itself, with
            PyTorch's generator seeded by (seed, image id), so that nothing depends on the images beside it.
        entry, code_sha256: name of the function, and hash of its code; filled in from the function.
        name, source: for reports, and where the values come from.

    Raises:
        InputError: a value out of range, or something that cannot be called.
    """

    steps: ClassVar[int] = 1  # at least

    function: Attack | None = field(default=None, repr=False, compare=False)
    eps: float
    norm: str = "linf"
    targeted: bool = False
    target: str = "uniform"
    together: bool = False
    entry: str = ""
    code_sha256: str = ""
    name: str = "custom"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_name("target", self.target, TARGETS)
        check_attack(eps=self.eps, step_size=self.eps, steps=1, norm=self.norm)
        if self.target != "uniform" and not self.targeted:
            raise InputError(f"target = {self.target!r} is for targeted attacks: set targeted = true as well")
        if self.function is None:
            return
        if not callable(self.function):
            raise InputError(f"attack {self.function!r}: a callable (model, x, labels, targets) -> x_adv is needed")
        if not self.entry:
            object.__setattr__(self, "entry", getattr(self.function, "__qualname__", type(self.function).__name__))
        if not self.code_sha256:
            object.__setattr__(self, "code_sha256", code_hash(self.function))

    @property
    def is_keyed_by_image(self) -> bool:
        """True if what happens to an image is independent of the images beside it."""
        return not self.together

    @property
    def needs_targets(self) -> bool:
        """True if the targets must be handed to ``evaluate``."""
        return self.target == "given"

    def with_given_targets(self) -> Custom:
        """The same attack on targets that are handed to ``evaluate``; InputError for an untargeted one."""
        return replace(self, target="given") if self.targeted else super().with_given_targets()

    def goals(
        self, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
    ) -> Tensor:
        """Targets if ``targeted``, otherwise labels, [N] int64."""
        return targets.uniform(labels, ids, num_classes, seed=seed, draw=draw) if self.targeted else labels

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and its source."""
        values = asdict(replace(self, function=None, entry=self.entry, code_sha256=self.code_sha256))
        del values["function"]
        return {"attack": "custom", "criterion": self.criterion, **values}

    def __str__(self) -> str:
        return f"{'targeted ' * self.targeted}{self.entry}, eps {format_distance(self.eps, self.norm)}"


def code_hash(function: Attack) -> str:
    """SHA-256 of the file that a function is in, else of its name: a changed attack is another evaluation."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function)) or inspect.getsourcefile(type(function))
    except TypeError:
        file = None
    content = Path(file).read_bytes() if file and Path(file).is_file() else repr(type(function)).encode()
    return hashlib.sha256(content).hexdigest()
